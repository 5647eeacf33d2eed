"""Consumers with the sidecar under fire: two client libraries, three instances each, which come, go, die and make mistakes by a seed.

Each instance writes down what it asks for before it asks. Then: what the sidecars reported is compared with these notes, offset by offset,
and what gapstream says of it (gaps, duplicates, what is unknown, the alerts topic) with the reports, exactly.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cluster import KafkaCluster
from kafka_jars import KafkaError
from pyroaring import BitMap

from tests.campaign.sink_truth import Said, amount, compare, read_notes
from tests.campaign.spine import difference, folded
from tests.support.rig import ROOT, Rig, Worker, eventually, listed

PARTITIONS = 6
INSTANCES = 3
START_S = 180.0
DRAIN_S = 120.0
PATIENCE_S = 90.0
LONGER_S = 5.0
"""The fire goes on by so much, as long as something that has to happen did not."""
MODES = {"confluent": ("manual", "stored", "auto"), "aiokafka": ("manual", "auto")}
ASSIGNORS = {"confluent": ("cooperative-sticky", "range", "roundrobin"), "aiokafka": ("range", "roundrobin", "sticky")}
POINTS = {
    ("confluent", "manual"): ("processed", "asked", "observed", "committed", "confirmed", "ahead"),
    ("confluent", "stored"): ("processed", "asked", "stored", "ahead"),
    ("confluent", "auto"): ("handed", "processed", "back"),
    ("aiokafka", "manual"): ("processed", "asked", "observed", "committed", "confirmed", "ahead"),
    ("aiokafka", "auto"): ("handed", "processed", "back"),
}
"""Where an instance kills itself: between processing, observation and commit; after a commit that is ahead it may just leave."""
REQUIRED = ("killed at a point", "killed from outside", "left", "joined", "fault skip", "fault repeat", "fault latest", "assigned")


class Group:
    """One sink: the instances of one library, on a timetable of their own."""

    def __init__(self, library: str, rng: random.Random, rig: Rig, topic: str, folder: Path, sidecar: dict[str, str]) -> None:
        self.library, self.rng, self.rig, self.topic, self.folder = library, rng, rig, topic, folder
        self.sink = sidecar[library]
        self.mode = rng.choice(MODES[library])
        self.assignor = rng.choice(ASSIGNORS[library])
        self.static = rng.random() < 0.4
        self.made: Counter[str] = Counter()
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * INSTANCES
        self._ends = [0.0] * INSTANCES
        """When the slot is to be emptied or filled."""
        self._points = list(POINTS[library, self.mode])
        rng.shuffle(self._points)
        self._count = 0

    def __str__(self) -> str:
        members = "static" if self.static else "dynamic"
        return f"{self.sink}: {self.library}, commits {self.mode}, {self.assignor}, {members} members"

    def start(self, member: int, *extra: str) -> subprocess.Popen[bytes]:
        """An instance."""
        self._count += 1
        command = [sys.executable, "-m", "tests.campaign.sink_instance", "--library", self.library, "--mode", self.mode]
        command += ["--bootstrap", self.rig.bootstrap, "--topic", self.topic, "--group", f"{self.topic}-{self.sink}", "--sink", self.sink]
        command += ["--app-id", self.rig.app_id, "--seed", str(self.rng.randrange(10**9)), "--assignor", self.assignor]
        command += ["--notes", str(self.folder / f"{self.sink}-{self._count:03}.notes"), *extra]
        if self.static:
            command += ["--member", f"{self.sink}-{member}"]
        with (self.folder / f"{self.sink}.log").open("ab") as out:
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)

    def turn(self, now: float) -> None:
        """What is due: instances that are gone are replaced, some that run go, of their own accord or killed."""
        for slot, process in enumerate(self.processes):
            if process is not None and process.poll() is not None:
                self._gone(process.returncode)
                self.processes[slot] = process = None
                self._ends[slot] = now + self.rng.uniform(0.0, 1.5)
            if now < self._ends[slot]:
                continue
            if process is None:
                extra = []
                if self.rng.random() < 0.6:
                    extra = ["--die", self._points[self._count % len(self._points)], "--after", str(self.rng.randrange(3, 40))]
                self.processes[slot] = self.start(slot, *extra)
                self.made["joined"] += 1
                self._ends[slot] = now + self.rng.uniform(5.0, 14.0)
            elif self.rng.random() < 0.5:
                process.kill()
                self.made["killed from outside"] += 1
                process.wait()
                self.processes[slot] = None
                self._ends[slot] = now + self.rng.uniform(0.0, 1.5)
            else:
                process.terminate()
                self._ends[slot] = now + 20.0

    def _gone(self, status: int) -> None:
        if status == -9:
            self.made["killed at a point"] += 1
        elif status in (0, -15):  # told to go before it could listen
            self.made["left"] += 1
        else:
            raise AssertionError(f"an instance of {self.sink} ended with {status}: see {self.folder / f'{self.sink}.log'}")

    def quieten(self) -> None:
        """Everybody leaves; who does not within half a minute is killed."""
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.terminate()
        for process in self.processes:
            if process is None:
                continue
            try:
                self._gone(process.wait(30))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"an instance of {self.sink} does not end") from None
        self.processes = [None] * INSTANCES

    def drain(self, ends: dict[int, int]) -> None:
        """A fresh instance, without mistakes, to the end of the topic."""
        self.processes[0] = process = self.start(0, "--until", json.dumps(ends))
        try:
            status = process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.sink} can't be drained within {DRAIN_S:g} s") from None
        if status:
            raise AssertionError(f"the last instance of {self.sink} ended with {status}: see {self.folder / f'{self.sink}.log'}")

    def close(self) -> None:
        """Kill what runs."""
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def notes(self) -> list[list[dict[str, Any]]]:
        """Of all instances that came so far as to write some."""
        found = [read_notes(path) for path in sorted(self.folder.glob(f"{self.sink}-*.notes"))]
        return [notes for notes in found if notes]

    def happened(self) -> Counter[str]:
        """What was made, and how often."""
        counts = Counter(self.made)
        for note in (note for notes in self.notes() for note in notes):
            if note["note"] == "fault":
                counts[f"fault {note['kind']}"] += 1
            elif note["note"] == "death":
                counts[f"died: {note['point']}"] += 1
            elif note["note"] in ("assigned", "refused", "doubt", "error"):
                counts[note["note"]] += 1
        return counts

    def lacking(self) -> list[str]:
        """What has to happen, and did not yet."""
        counts = self.happened()
        return [name for name in [*REQUIRED, *(["fault ahead"] if self.mode != "auto" else [])] if not counts[name]]


class Source:
    """Writes records at a steady pace; polled, so that it needs no thread."""

    def __init__(self, bootstrap: str, topic: str, rate: float) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
        self._topic, self._rate, self._begun = topic, rate, time.monotonic()
        self._written = 0

    def turn(self, now: float) -> None:
        """As many as are due."""
        while self._written < (now - self._begun) * self._rate:
            self.write(self._written % PARTITIONS)
        self._producer.poll(0)

    def write(self, partition: int) -> None:
        """One record."""
        self._producer.produce(self._topic, b"x" * 50, partition=partition)
        self._written += 1

    def flush(self) -> None:
        """All of it is there."""
        if self._producer.flush(60):
            raise AssertionError("the topic can't be written to")


def said_of(rig: Rig, topic: str, sink: str) -> dict[int, Said]:
    """What stands in the observations topic; at or below the last number of its source it is a repeat."""
    found = {partition: Said() for partition in range(PARTITIONS)}
    last: dict[tuple[int, str], int] = {}
    for message in rig.read(f"{rig.app_id}.observations.{topic}"):
        one = json.loads(message.value() or b"{}")
        if one.get("sink") != sink:
            continue
        partition = message.partition()
        assert partition is not None
        assert one["partition"] == partition
        if one["sequence"] <= last.get((partition, one["source"]), 0):
            continue
        last[partition, one["source"]] = one["sequence"]
        offsets = [offset for first, end in one.get("runs", []) for offset in range(first, end + 1)]
        if "bitmap" in one:
            base = one["bitmap"]["base"]
            offsets += [base + offset for offset in BitMap.deserialize(base64.b64decode(one["bitmap"]["roaring"]))]
        if one.get("status", "received") == "received":
            found[partition].received.update(offsets)
        elif one["status"] == "unobserved":
            found[partition].unobserved.update(offsets)
        else:
            raise AssertionError(f"an observation of another status: {one}")
    return found


def judge(rig: Rig, worker: Worker, topic: str, sink: str, said: dict[int, Said], ends: dict[int, int]) -> list[str]:
    """Where gapstream says something else than what was reported to it."""
    gaps = {partition: one.missing(ends[partition]) for partition, one in said.items()}
    wanted = {(topic, partition, sink): offsets for partition, offsets in gaps.items() if offsets}
    counts = {partition: (len(gaps[partition]), one.duplicates.total(), len(one.unknown())) for partition, one in said.items()}
    faults: list[str] = []

    def settled() -> bool:
        rows = worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]
        found = {row["partition"]: (row["missing"], row["duplicates"], row["explained"].get("unobserved", 0)) for row in rows}
        read = all(row["horizon_offset"] == row["log_read_offset"] == ends[row["partition"]] for row in rows)
        if not read or found != counts:
            raise ValueError(f"missing, duplicates and unobserved by partition are {found}, reported {counts}; read to the end: {read}")
        return True

    try:
        eventually(settled, f"{sink}: what was reported is what is listed", PATIENCE_S)
    except AssertionError as exc:
        faults.append(str(exc))
    done = worker.cli("gaps", "--topic", topic, "--sink", sink, "--json")
    assert done.returncode == 0, done.stderr
    found = listed(json.loads(done.stdout))
    if found != wanted:
        faults.append(f"gaps --json differs from the reports: {difference(wanted, found)}")
    alerts = folded(rig)
    mine = {key: set(gaps) for key, gaps in alerts.open.items() if gaps and key[2] == sink}
    if mine != wanted:
        faults.append(f"the alerts topic folds to another set: {difference(wanted, mine)}")
    for partition, one in said.items():
        told = Counter(alerts.duplicates.get((topic, partition, sink), []))
        if told.keys() != one.duplicates.keys():
            lacks, extra = sorted(one.duplicates.keys() - told.keys())[:5], sorted(told.keys() - one.duplicates.keys())[:5]
            faults.append(f"{sink}/{partition}: duplicates told differ from the reports: not told {lacks}, too many {extra}")
    faults += alerts.faults
    if alerts.repeats:
        faults.append(f"{alerts.repeats} events stand on the alerts topic more than once")
    return faults


def late(rig: Rig, sink: str) -> int:
    """How many offsets were filled."""
    events = (json.loads(message.value() or b"{}") for message in rig.read(f"{rig.app_id}.alerts"))
    return sum(event["count"] for event in events if event["type"] == "gap.filled" and event["sink"] == sink)


def ends_of(bootstrap: str, topic: str) -> dict[int, int]:
    """The log's end of each partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "ends"})
    try:
        return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=30)[1] for p in range(PARTITIONS)}
    finally:
        consumer.close()


def campaign(options: argparse.Namespace, seed: int, cluster: KafkaCluster, folder: Path, say: Callable[[str], None]) -> list[str]:
    """One seed; what differs."""
    rng = random.Random(seed)
    topic, bootstrap = f"orders-{seed}", cluster.bootstrap
    admin = AdminClient({"bootstrap.servers": bootstrap})  # kept by name: it must outlive its future
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    sinks = {"confluent": "billing", "aiokafka": "shipping"}
    configured = {sink: {"type": "consumer", "grace": "2s", "from": "earliest"} for sink in sinks.values()}
    rig = Rig(folder, bootstrap, {topic: {"sinks": configured}}, f"gap-{seed}")
    groups = [Group(library, random.Random(f"{seed} {library}"), rig, topic, folder, sinks) for library in options.libraries]
    for group in groups:
        say(f"seed {seed}: {group}")
    try:
        worker = rig.worker().start().ready(START_S)
        source = Source(bootstrap, topic, options.rate * rng.uniform(0.5, 1.0))
        until = time.monotonic() + options.minutes * 60
        latest = until + options.minutes * 120
        while (now := time.monotonic()) < until:
            if until - now < 1 and until < latest and any(group.lacking() for group in groups):
                until += LONGER_S  # on a busy machine less happens in a minute
            source.turn(now)
            for group in groups:
                group.turn(now)
            time.sleep(0.02)
        say(f"seed {seed}: the fire is over, everybody leaves")
        for group in groups:
            group.quieten()
        for number in range(PARTITIONS * 10):
            source.write(number % PARTITIONS)
        source.flush()
        ends = ends_of(bootstrap, topic)
        for group in groups:
            group.drain(ends)
        say(f"seed {seed}: drained to the end")
        faults: list[str] = []
        for group in groups:
            faults += report(rig, worker, topic, group, ends)
        return faults
    finally:
        for group in groups:
            group.close()
        rig.close()


def report(rig: Rig, worker: Worker, topic: str, group: Group, ends: dict[int, int]) -> list[str]:
    """Print what was made and found of one sink; what differs."""
    notes = group.notes()
    truth = amount(notes, PARTITIONS, automatic=group.mode == "auto")
    said = said_of(rig, topic, group.sink)
    found = compare(truth, said, ends)
    faults = [f"{group.sink}: {one}" for one in found.differences] + judge(rig, worker, topic, group.sink, said, ends)
    print(f"{group}: what was made, and how often")
    made = group.happened()
    for name in sorted({*made, *group.lacking()}):
        print(f"  {made[name]:>7,}  {name}")
    least = sum(1 for p, one in truth.items() for o in range(ends[p]) if not one.certain[o] and not one.doubtful[o])
    print(f"  {found.records:,} records; by the notes {least:,} never asked for; missing {found.missing:,}, unobserved {found.unknown:,}")
    low = sum(max(0, times - 1) for one in truth.values() for times in one.certain.values())
    high = sum(max(0, one.certain[o] + one.doubtful[o] - 1) for one in truth.values() for o in {*one.certain, *one.doubtful})
    print(f"  duplicates by the notes {low:,} to {high:,}; found {found.duplicates:,}; {found.loose:,} offsets have several right outcomes")
    print(f"  {late(rig, group.sink):,} offsets were told as missing and came later: they had been passed, and were handed out again")
    faults += [f"{group.sink}: never happened: {name}" for name in group.lacking()]
    return faults


def main(arguments: list[str]) -> int:
    """`scripts/campaign sinks`."""
    parser = argparse.ArgumentParser(prog="campaign sinks", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after another on one cluster")
    parser.add_argument("--minutes", type=float, default=0.9, help="of fire, each seed")
    parser.add_argument("--rate", type=float, default=1_200, help="records a second at most")
    parser.add_argument("--libraries", nargs="+", choices=("confluent", "aiokafka"), default=["confluent", "aiokafka"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gapstream-sinks-"))
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)

    differing: list[int] = []
    cluster = KafkaCluster(logs=folder, properties={"group.min.session.timeout.ms": "1000", "group.initial.rebalance.delay.ms": "0"})
    folder.mkdir(parents=True, exist_ok=True)
    try:
        cluster.start(START_S)
    except KafkaError as exc:
        print(exc, file=sys.stderr)
        return 3
    with cluster:
        for seed in range(options.seed, options.seed + options.seeds):
            place = folder / f"seed-{seed}"
            place.mkdir()
            try:
                faults = campaign(options, seed, cluster, place, say)
            except AssertionError as exc:  # something did not happen that had to
                faults = [str(exc)]
            print(f"seed {seed}: " + ("as expected" if not faults else f"{len(faults)} differences; files in {place}"), flush=True)
            for fault in faults[:50]:
                print(f"  {fault}", flush=True)
            if faults:
                differing.append(seed)
    print(f"{options.seeds} seeds, " + (f"differing: {differing}" if differing else "all as expected"))
    if not differing and options.folder is None:
        shutil.rmtree(folder)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
