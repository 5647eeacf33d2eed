"""The main job under fire: losses and repeats by a seed, workers killed and frozen, and what is said compared with what was done.

The ground truth is the seed's. The sink is a consumer with the sidecar that says itself what it processed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cluster import KafkaCluster

from gapstream_sidecar import Sidecar
from tests.campaign.verdicts import runs
from tests.support.rig import Alerts, Rig, Worker, eventually, listed

SINK = "billing"


@dataclass
class Truth:
    """What is done on purpose, by (partition, offset)."""

    skipped: dict[int, set[int]] = field(default_factory=dict)
    repeated: dict[int, set[int]] = field(default_factory=dict)

    @classmethod
    def draw(cls, rng: random.Random, partitions: int, per_partition: int, singles: int, ranges: int, repeats: int) -> Truth:
        """Single offsets, ranges of 2 to 2,000 and repeats, none of them at a partition's ends (nothing lies beyond to pass them)."""
        truth = cls({p: set() for p in range(partitions)}, {p: set() for p in range(partitions)})
        low, high = 10, per_partition - 10
        for _ in range(singles):
            truth.skipped[rng.randrange(partitions)].add(rng.randrange(low, high))
        for _ in range(ranges):
            size = rng.randrange(2, 2_000)
            first = rng.randrange(low, high - size)
            truth.skipped[rng.randrange(partitions)].update(range(first, first + size))
        while sum(map(len, truth.repeated.values())) < repeats:
            partition, offset = rng.randrange(partitions), rng.randrange(low, high)
            if offset not in truth.skipped[partition]:
                truth.repeated[partition].add(offset)
        return truth


def fill(bootstrap: str, topic: str, partitions: int, per_partition: int) -> None:
    """Records of about 100 bytes, evenly spread."""
    admin = AdminClient({"bootstrap.servers": bootstrap})  # kept by name: it must outlive its future
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "batch.size": 200_000, "queue.buffering.max.messages": 500_000})
    payload = random.Random(1).randbytes(50).hex().encode()
    for number in range(per_partition):
        for partition in range(partitions):
            while True:
                try:
                    producer.produce(topic, payload, partition=partition)
                    break
                except BufferError:
                    producer.poll(0.1)
        if number % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


def consume(bootstrap: str, topic: str, total: int, truth: Truth, sidecar: Sidecar, seconds: float) -> None:
    """A consumer that loses and repeats what the seed says; takes about ``seconds``."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}-app",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([topic])
    seen, begun = 0, time.monotonic()
    try:
        while seen < total:
            batch: dict[int, list[int]] = {}
            for message in consumer.consume(5_000, timeout=1.0):
                assert message.error() is None, message.error()
                where, offset = message.partition(), message.offset()
                assert where is not None
                assert offset is not None
                batch.setdefault(where, []).append(offset)
            for partition, offsets in batch.items():
                seen += len(offsets)
                processed = [offset for offset in offsets if offset not in truth.skipped[partition]]
                for first, last in runs(processed):
                    sidecar.received(topic, partition, first, last)
                again = sorted(truth.repeated[partition].intersection(offsets))
                if again:
                    sidecar.flush()
                    for first, last in runs(again):
                        sidecar.received(topic, partition, first, last)
            ahead = seen / total * seconds - (time.monotonic() - begun)
            if ahead > 0:
                time.sleep(min(ahead, 1.0))
    finally:
        consumer.close()


class Fire:
    """Kills and freezes workers while the consumer runs, on a timetable of its own; polled, so that it needs no thread."""

    def __init__(self, rig: Rig, rng: random.Random, kills: int, freeze: float) -> None:
        self.rig, self.rng, self.kills, self.freeze = rig, rng, kills, freeze
        self.killed = self.frozen = 0

    def run(self) -> None:
        """All of it, in the calling thread."""
        victim = self.rig.workers[0]
        for _ in range(self.kills):
            time.sleep(self.rng.uniform(3, 20))
            victim.kill()
            self.killed += 1
            victim.start()
        if self.freeze:
            victim.ready()
            second = self.rig.worker().start().ready()
            victim.signal(signal.SIGSTOP)
            time.sleep(self.freeze)
            victim.signal(signal.SIGCONT)
            self.frozen += 1
            second.ready()


def judge(rig: Rig, worker: Worker, topic: str, truth: Truth, seconds: float) -> list[str]:
    """Differences between what is said and the truth; empty when there are none."""
    wanted = {(topic, partition, SINK): offsets for partition, offsets in truth.skipped.items() if offsets}

    def settled() -> bool:
        rows = worker.get(f"/api/partitions?topic={topic}&sink={SINK}")["partitions"]
        return len(rows) == len(truth.skipped) and sum(row["missing"] or 0 for row in rows) == sum(map(len, truth.skipped.values()))

    faults: list[str] = []
    try:
        eventually(settled, "all losses found, nothing more", seconds)
    except AssertionError as exc:
        faults.append(str(exc))
    answer = rig_json(worker, "gaps", "--topic", topic, "--json")
    if listed(answer) != wanted:
        faults.append(f"gaps --json differs: {difference(wanted, listed(answer))}")
    rows = rig_json(worker, "partitions", "--topic", topic, "--sink", SINK, "--json")["partitions"]
    for row in rows:
        expected = len(truth.repeated[row["partition"]])
        if row["duplicates"] != expected:
            faults.append(f"partition {row['partition']}: {row['duplicates']} duplicates, expected {expected}")
    alerts = folded(rig)
    if {key: set(gaps) for key, gaps in alerts.open.items() if gaps} != wanted:
        faults.append("the alerts topic folds to another set: " + difference(wanted, {k: set(g) for k, g in alerts.open.items() if g}))
    told = {key[1]: sorted(offsets) for key, offsets in alerts.duplicates.items()}
    for partition, offsets in truth.repeated.items():
        if told.get(partition, []) != sorted(offsets):
            faults.append(f"partition {partition}: duplicates told {len(told.get(partition, []))}, expected {len(offsets)}")
    faults += alerts.faults
    if alerts.repeats:
        faults.append(f"{alerts.repeats} events stand on the alerts topic more than once")
    return faults


def rig_json(worker: Worker, *arguments: str) -> dict[str, list[dict[str, int]]]:
    """Output of a command with --json."""
    done = worker.cli(*arguments)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def folded(rig: Rig) -> Alerts:
    """The alerts topic, folded."""
    alerts = Alerts()
    for message in rig.read(f"{rig.app_id}.alerts"):
        alerts.take(message)
    return alerts


def reported(rig: Rig, topic: str) -> dict[int, set[int]]:
    """What the sidecar wrote, by partition: tells whether a difference is the reporter's or the worker's."""
    found: dict[int, set[int]] = {}
    for message in rig.read(f"{rig.app_id}.observations.{topic}"):
        said = json.loads(message.value() or b"{}")
        for first, last in said.get("runs", []):
            found.setdefault(said["partition"], set()).update(range(first, last + 1))
    return found


def difference(wanted: dict[tuple[str, int, str], set[int]], found: dict[tuple[str, int, str], set[int]]) -> str:
    """A few offsets that one has and the other has not."""
    lines = []
    for key in sorted(wanted.keys() | found.keys()):
        lacks = sorted(wanted.get(key, set()) - found.get(key, set()))
        extra = sorted(found.get(key, set()) - wanted.get(key, set()))
        if lacks or extra:
            lines.append(f"{key}: not found {len(lacks)} {lacks[:5]}, too many {len(extra)} {extra[:5]}")
    return "; ".join(lines)


def campaign(options: argparse.Namespace, bootstrap: str, folder: Path) -> list[str]:
    """One run; the faults found."""
    rng = random.Random(options.seed)
    topic = f"orders-{options.seed}"
    per_partition = options.records // options.partitions
    truth = Truth.draw(rng, options.partitions, per_partition, options.singles, options.ranges, options.repeats)
    print(f"seed {options.seed}: filling {topic} with {per_partition * options.partitions:,} records", flush=True)
    fill(bootstrap, topic, options.partitions, per_partition)
    rig = Rig(folder, bootstrap, {topic: {"sinks": {SINK: {"type": "consumer", "grace": options.grace}}}}, f"gap-{options.seed}")
    try:
        rig.worker().start().ready()
        fire = Fire(rig, rng, options.kills, options.freeze)
        thread = threading.Thread(target=fire.run)
        thread.start()
        sidecar = Sidecar({"bootstrap.servers": bootstrap}, sink=SINK, app_id=rig.app_id, explicit=True)
        seconds = options.kills * 12 + options.freeze * 1.5
        consume(bootstrap, topic, per_partition * options.partitions, truth, sidecar, seconds)
        sidecar.flush()
        thread.join()
        last = rig.workers[-1]
        print(f"seed {options.seed}: consumed; {fire.killed} kills, {fire.frozen} freezes", flush=True)
        faults = [] if (fire.killed, bool(fire.frozen)) == (options.kills, options.freeze > 0) else ["the fire was not made as asked"]
        faults += judge(rig, last.ready(), topic, truth, options.patience)
        for partition, offsets in truth.skipped.items():
            for first, end in runs(sorted(offsets)):
                sidecar.received(topic, partition, first, end)
        sidecar.close()
        filled = Truth({p: set() for p in truth.skipped}, truth.repeated)
        faults += [f"after the late report: {fault}" for fault in judge(rig, last, topic, filled, options.patience)]
        if faults:
            said = reported(rig, topic)
            for partition in truth.skipped:
                lacks = set(range(per_partition)) - said.get(partition, set())
                print(f"partition {partition}: {len(lacks)} offsets are in no observation, {sorted(lacks)[:3]}", flush=True)
            for one in rig.workers:
                print(f"--- worker {one.number}\n{one.tail(6000)}", flush=True)
        return faults
    finally:
        rig.close()


def main(arguments: list[str]) -> int:
    """`scripts/campaign spine`."""
    parser = argparse.ArgumentParser(prog="campaign spine", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--singles", type=int, default=500)
    parser.add_argument("--ranges", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--kills", type=int, default=0, help="kill -9 of the worker so often, 3 to 20 s apart")
    parser.add_argument("--freeze", type=float, default=0, help="at the end SIGSTOP for so many seconds, with a second worker beside")
    parser.add_argument("--grace", default="2s")
    parser.add_argument("--patience", type=float, default=90, help="seconds until everything must be found")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gapstream-spine-"))
    with KafkaCluster() as cluster:
        faults = campaign(options, cluster.bootstrap, folder)
    print(f"seed {options.seed}: " + ("as expected" if not faults else "\n".join(faults)))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
