"""Faults of brokers under load: leaders that move, brokers that are killed and frozen, elections that lose records.

Each scenario is a function of a cluster of three brokers, a folder and a source of random numbers; it gives what is expected, what
was found, how often the fault was made, and the details. Brokers may be stopped, and all three run afterwards.
"""

from __future__ import annotations

import json
import random
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka_cluster import KafkaCluster

from tests.support.kafka_kit import KafkaKit
from tests.support.leaders import await_in_sync, await_leader, leader_of, make_placed, move_leader
from tests.support.load import Reporter, Writer
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually

Found = tuple[str, str, int, list[str]]
"""What is expected, what was found, how often the fault was made, details."""

SINK = "billing"
NO_ALERT = "every record was read and received, none is missing or told twice, no alert"


@dataclass
class Load:
    """A topic that is written, received and watched while something happens to its brokers."""

    kit: KafkaKit
    topic: str
    partitions: int
    rig: Rig
    worker: Worker
    writer: Writer

    def verdict(self, seconds: float = 120.0) -> str:
        """Wait until all that is in the log by now was read and received; ``NO_ALERT``, or what differs. The load goes on."""
        ends = {partition: self.kit.offsets(self.topic, partition)[1] for partition in range(self.partitions)}
        complaints = [
            f"partition {partition} ends at {end}, but offset {self.writer.acked[partition]} was acknowledged"
            for partition, end in ends.items()
            if self.writer.acked[partition] >= self.kit.offsets(self.topic, partition)[1]
        ]
        eventually(lambda: self._judged_to(ends), f"{ends} read and received", seconds)
        complaints += [f"alert {one['type']} {one['topic']}/{one['partition']}/{one['sink']} {one['ranges']}" for one in events(self.rig)]
        if "Traceback" in self.worker.log.read_text():
            complaints.append("the worker logged a traceback")
        return "; ".join(complaints) or NO_ALERT

    def _judged_to(self, ends: dict[int, int]) -> bool:
        """Every offset up to there is a record, and was received once."""
        for sink in ("log", SINK):
            rows = {row["partition"]: row for row in rows_of(self.worker, self.topic, sink)}
            for partition, end in ends.items():
                row = rows[partition]
                if row["log_read_offset"] < end or (row["records"], row["missing"]) != (row["log_read_offset"], 0):
                    return False
                if sink == SINK and (row["horizon_offset"] < end or row["duplicates"] != 0):
                    return False
        return True


@contextmanager
def load(cluster: KafkaCluster, folder: Path, *, partitions: int = 3, give_up_s: float = 20.0) -> Iterator[Load]:
    """A topic under load with one worker that watches it."""
    kit = KafkaKit(cluster.bootstrap)
    topic = kit.make_topic(partitions)
    rig = Rig(folder, cluster.bootstrap, {topic: {"sinks": {SINK: {"type": "consumer", "grace": "1s"}}}}, f"app-{uuid.uuid4().hex[:8]}")
    writer = Writer(cluster.bootstrap, topic, partitions, give_up_s=give_up_s)
    reporter = Reporter(cluster.bootstrap, topic, partitions, sink=SINK, app_id=rig.app_id)
    try:
        worker = rig.worker().start().ready()
        writer.start()
        reporter.start()
        try:
            yield Load(kit, topic, partitions, rig, worker, writer)
        finally:
            writer.finish()
            reporter.finish()
    finally:
        rig.close()
        kit.close()


def events(rig: Rig) -> list[dict[str, Any]]:
    """Everything that the alerts topic says."""
    return [json.loads(message.value() or b"") for message in rig.read(f"{rig.app_id}.alerts")]


def rows_of(worker: Worker, topic: str, sink: str) -> list[dict[str, Any]]:
    """Rows of the partitions that somebody owns."""
    rows: list[dict[str, Any]] = worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]
    return [row for row in rows if row["worker"] is not None]


# ------------------------------------------------------------------------------------------- nothing may be alerted


def move_leaders(one: Load, rng: random.Random, moves: int, pause_s: float) -> Found:
    """Leaders move again and again, and no replica loses anything."""
    moved = []
    for number in range(moves):
        partition = number % one.partitions
        before = leader_of(one.kit, one.topic, partition)
        nodes = rng.sample(range(3), 3)
        if nodes[0] == before:
            nodes.reverse()
        move_leader(one.kit, one.topic, partition, nodes)
        moved.append(f"partition {partition} from {before} to {nodes[0]}")
        time.sleep(rng.uniform(0, 2 * pause_s))
    return NO_ALERT, one.verdict(), len(moved), moved


def fail_brokers(one: Load, cluster: KafkaCluster, rng: random.Random, seconds: float, longest_s: float) -> Found:
    """Brokers are killed and frozen in turn, one at a time, for ``seconds``, but each once at least."""
    made: list[str] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(made) < 2:
        broker, away_s, kill = rng.randrange(cluster.brokers), rng.uniform(0.2, longest_s), len(made) % 2 == 0
        (cluster.kill_broker if kill else cluster.pause_broker)(broker)
        try:
            time.sleep(away_s)
        finally:
            (cluster.start_broker if kill else cluster.resume_broker)(broker)
        made.append(f"broker {broker} {'killed' if kill else 'frozen'} for {away_s:.1f} s")
        time.sleep(rng.uniform(0, 2))
    return NO_ALERT, one.verdict(), len(made), [*made, f"{one.writer.given_up} records given up"]


def clean_moves(cluster: KafkaCluster, folder: Path, rng: random.Random) -> Found:
    """T30: 50 clean moves of leaders."""
    with load(cluster, folder) as one:
        return move_leaders(one, rng, 50, 1.0)


def kills_and_pauses(cluster: KafkaCluster, folder: Path, rng: random.Random) -> Found:
    """T32: four minutes of brokers killed and frozen; records that were given up may be in the log or not."""
    with load(cluster, folder) as one:
        return fail_brokers(one, cluster, rng, 240.0, 12.0)


# ------------------------------------------------------------------------------------------------ records that are lost


def unclean_elections(cluster: KafkaCluster, folder: Path, rng: random.Random, *, rounds: int = 6) -> Found:
    """T28, T29, T63: a replica that lags is elected, again and again, while the worker runs, is frozen, or is killed.

    What is expected and found are the ranges that are told as truncated.
    """
    kit = KafkaKit(cluster.bootstrap)
    topic = f"unclean-{uuid.uuid4().hex[:8]}"
    make_placed(kit, topic, [0, 1], **{"unclean.leader.election.enable": "true", "min.insync.replicas": "1"})
    rig = Rig(folder, cluster.bootstrap, {topic: {"sinks": {SINK: {"type": "consumer", "grace": "1s"}}}}, f"app-{uuid.uuid4().hex[:8]}")
    observer = Observer(cluster.bootstrap, rig.app_id)
    lost: list[list[int]] = []
    made: list[str] = []
    down: set[int] = set()

    def write(records: int, acks: str) -> int:
        return kit.produce(topic, 0, records, value=f"{len(made)}".encode(), conf={"acks": acks})[-1] + 1

    def await_read(stop: int) -> None:
        eventually(lambda: [row["log_read_offset"] for row in rows_of(worker, topic, "log")] == [stop], f"{topic} read to {stop}", 120)

    try:
        worker = rig.worker().start().ready()
        leader, follower = 0, 1
        for _ in range(rounds):
            await_in_sync(kit, topic, 2)
            first = kit.offsets(topic)[1]
            safe = write(rng.randint(1, 50), "all")
            cluster.stop_broker(follower)
            down.add(follower)
            long = write(rng.randint(1, 200), "1")
            await_read(long)
            observer.received(topic, 0, [first, long - 1])
            how = rng.choice(["running", "frozen", "killed"])
            if how == "frozen":
                worker.signal(signal.SIGSTOP)
            elif how == "killed":
                worker.kill()
            cluster.stop_broker(leader)
            down.add(leader)
            cluster.start_broker(follower)
            down.remove(follower)
            await_leader(kit, topic, follower)
            end = write(rng.randint(1, 300), "1")
            if how == "frozen":
                worker.signal(signal.SIGCONT)
            elif how == "killed":
                worker.start()
            cluster.start_broker(leader)
            down.remove(leader)
            lost.append([safe, long - 1])
            made.append(f"{how}: [{safe}, {long - 1}] lost, ends at {end}")
            await_read(end)
            observer.received(topic, 0, [safe, end - 1])
            leader, follower = follower, leader
        found = [ranges for one in events(rig) for ranges in one["ranges"] or [] if one["type"] == "log.truncated"]
        others = sorted({one["type"] for one in events(rig)} - {"log.truncated"})
        return f"{lost}, nothing else", f"{found}, {', '.join(others) or 'nothing else'}", len(made), made
    finally:
        rig.close()
        for broker in down:
            cluster.start_broker(broker)
        kit.close()
        kit.delete_topics(topic)
