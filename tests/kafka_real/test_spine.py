"""The main job: losses and repeats by a seed, through sidecar, Kafka and worker processes, told exactly; then the same under fire."""

from __future__ import annotations

import random
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka_cluster import KafkaCluster

from gapstream_sidecar import Sidecar
from tests.campaign import spine
from tests.campaign.spine import SINK, Truth
from tests.campaign.verdicts import runs
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, Worker, eventually, listed

Where = tuple[str, int, str]
"""Topic, partition, sink."""
PARTITIONS = 3
PER_PARTITION = 20_000
SINKS = {"sinks": {SINK: {"type": "consumer", "grace": "500ms"}}}


@dataclass
class Run:
    """One topic with a truth about it, consumed through a sidecar."""

    rig: Rig
    topic: str
    truth: Truth
    records: dict[int, int]
    """Records by partition."""
    sidecar: Sidecar

    def consume(self, seconds: float = 0.0) -> None:
        """All of the topic, losing and repeating what the truth says."""
        spine.consume(self.rig.bootstrap, self.topic, sum(self.records.values()), self.truth, self.sidecar, seconds)
        assert self.sidecar.flush(30)

    def readable(self, partition: int) -> set[int]:
        """Offsets of records: markers and aborted ones inside a gap don't split it, so its ends alone don't tell them."""
        messages = self.rig.read(self.topic)
        return {offset for one in messages if one.partition() == partition and (offset := one.offset()) is not None}

    def judge(self, worker: Worker) -> list[str]:
        """What is said and is not so, by the command line, the API, and the alerts topic folded by an oracle."""
        lost = {(self.topic, partition, SINK): offsets for partition, offsets in self.truth.skipped.items() if offsets}
        query = f"topic={self.topic}&sink={SINK}"

        def settled() -> bool:
            rows = worker.get(f"/api/partitions?{query}")["partitions"]
            return len(rows) == len(self.records) and sum(row["missing"] or 0 for row in rows) == sum(map(len, lost.values()))

        eventually(settled, f"all losses of {self.topic} found, nothing more")
        answer = spine.rig_json(worker, "gaps", "--topic", self.topic, "--json")
        faults = compare("gaps --json", lost, {key: gaps & self.readable(key[1]) for key, gaps in listed(answer).items()})
        if sum(gap["count"] for gap in answer["gaps"]) != sum(map(len, lost.values())):
            faults.append("gaps --json counts what holds no record")
        rows = spine.rig_json(worker, "partitions", "--topic", self.topic, "--sink", SINK, "--json")["partitions"]
        for row in rows:
            number, missing = self.records[row["partition"]], len(self.truth.skipped[row["partition"]])
            wanted = (number, number - missing, missing, len(self.truth.repeated[row["partition"]]))
            found = (row["records"], row["observed"], row["missing"], row["duplicates"])
            if found != wanted:
                faults.append(f"{self.topic}/{row['partition']}: records, observed, missing, duplicates are {found}, expected {wanted}")
        alerts = spine.folded(self.rig)
        faults += alerts.faults + ([f"{alerts.repeats} events are there twice"] if alerts.repeats else [])
        faults += compare("the alerts topic", lost, {key: set(gaps) for key, gaps in alerts.open.items() if gaps and key[0] == self.topic})
        for partition, offsets in self.truth.repeated.items():
            told = sorted(alerts.duplicates.get((self.topic, partition, SINK), []))
            if told != sorted(offsets):
                faults.append(f"{self.topic}/{partition}: duplicates told are {told[:5]}..., expected {sorted(offsets)[:5]}...")
        return faults

    def report_late(self) -> None:
        """What was lost arrives after all."""
        for partition, offsets in self.truth.skipped.items():
            for first, last in runs(sorted(offsets)):
                self.sidecar.received(self.topic, partition, first, last)
        assert self.sidecar.flush(30)
        self.truth = Truth({partition: set() for partition in self.truth.skipped}, self.truth.repeated)


@pytest.fixture
def seed() -> int:
    """Printed by the test that uses it; the kills' moments are not in it."""
    return random.SystemRandom().randrange(10**6)


@pytest.fixture
def make_run() -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(rig: Rig, topic: str, truth: Truth, records: dict[int, int]) -> Run:
        sidecar = Sidecar({"bootstrap.servers": rig.bootstrap}, sink=SINK, app_id=rig.app_id, explicit=True)
        made.append(Run(rig, topic, truth, records, sidecar))
        return made[-1]

    yield make
    for run in made:
        run.sidecar.close()


def compare(what: str, wanted: dict[Where, set[int]], found: dict[Where, set[int]]) -> list[str]:
    return [] if wanted == found else [f"{what}: {spine.difference(wanted, found)}"]


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def test_every_loss_and_repeat_is_told_exactly(
    kafka: KafkaCluster, make_rig: Callable[..., Rig], make_run: Callable[..., Run], seed: int
) -> None:
    print(f"seed {seed}")
    topic = unique("orders")
    rig = make_rig({topic: SINKS})
    worker = rig.worker().start()  # while the topic does not exist yet
    spine.fill(kafka.bootstrap, topic, PARTITIONS, PER_PARTITION)
    truth = Truth.draw(random.Random(seed), PARTITIONS, PER_PARTITION, singles=60, ranges=6, repeats=60)
    run = make_run(rig, topic, truth, dict.fromkeys(range(PARTITIONS), PER_PARTITION))
    worker.ready()
    run.consume()
    assert run.judge(worker) == []
    events = spine.folded(rig)
    assert sum(len(gaps) for gaps in events.open.values()) == sum(map(len, truth.skipped.values())) > 0
    assert {value for gaps in events.open.values() for value in gaps.values()} == {"not_received"}
    run.report_late()
    assert run.judge(worker) == []
    assert worker.get("/api/gaps")["gaps"] == []
    assert_one_transaction_holds_events_and_state(kafka, rig, topic)
    assert worker.stop() == 0


BATCH = re.compile(r"baseOffset: (\d+) .*?producerId: (-?\d+) .*?isTransactional: (\w+) isControl: (\w+)")


def producers_of(kafka: KafkaCluster, prefix: str) -> set[tuple[int, bool]]:
    """(producer id, transactional) of every data batch on disk of the topics' partitions whose folder's name begins so."""
    files = [str(file) for folder in kafka.log_dir().glob(f"{prefix}*") for file in folder.glob("*.log") if file.stat().st_size]
    assert files, prefix
    dump = kafka.tool("kafka.tools.DumpLogSegments", "--files", ",".join(files))
    return {(int(producer), is_in == "true") for _, producer, is_in, control in BATCH.findall(dump) if control == "false"}


def assert_one_transaction_holds_events_and_state(kafka: KafkaCluster, rig: Rig, topic: str) -> None:
    """As Kafka's own tool reads the segments: whoever wrote an event wrote state with it, and all in transactions."""
    state = producers_of(kafka, f"{rig.app_id}-{topic}-changelog-")
    assert {is_in for _, is_in in state} == {True}
    assert producers_of(kafka, f"{rig.app_id}.alerts-") <= state


def draw_from(rng: random.Random, offsets: list[int]) -> Truth:
    """Losses and repeats among offsets that are not all there is."""
    inner = offsets[10:-10]
    lost = set(rng.sample(inner, 200))
    return Truth({0: lost}, {0: set(rng.sample([offset for offset in inner if offset not in lost], 20))})


class Sight:
    """Reads the alerts topic as it is written, uncommitted, from its end as of now."""

    def __init__(self, rig: Rig, partitions: int = 6) -> None:
        conf = {
            "bootstrap.servers": rig.bootstrap, "group.id": "sight", "isolation.level": "read_uncommitted", "fetch.wait.max.ms": 5,
            "fetch.queue.backoff.ms": 1, "enable.auto.commit": False, "auto.offset.reset": "latest", "log_level": 2,
        }  # fmt: skip
        self._consumer = Consumer(conf)
        parts = [TopicPartition(f"{rig.app_id}.alerts", partition) for partition in range(partitions)]
        for part in parts:
            part.offset = self._consumer.get_watermark_offsets(part, timeout=10)[1]
        self._consumer.assign(parts)

    def await_event(self) -> None:
        """Until an event stands there, its transaction most likely still open."""
        assert self._consumer.poll(30.0) is not None, "no event came"
        self._consumer.close()


@pytest.mark.timeout(180)
def test_kills_and_a_wiped_state_change_nothing(
    kafka: KafkaCluster, shared_kit: KafkaKit, make_rig: Callable[..., Rig], make_run: Callable[..., Run], seed: int
) -> None:
    """kill -9 at a random moment, at the sight of an event in flight, and once more with the state folder gone."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    plain, sales = unique("orders"), shared_kit.make_topic(1, name=unique("sales"))
    rig = make_rig({plain: SINKS, sales: SINKS})
    spine.fill(kafka.bootstrap, plain, PARTITIONS, PER_PARTITION)
    worker = rig.worker().start()
    shared_kit.transactions([sales], 400, 10, abort_every=4)
    committed = 3_000
    offsets = [offset for message in shared_kit.read(sales) if (offset := message.offset()) is not None]
    assert len(offsets) == committed < offsets[-1]
    runs = [
        make_run(
            rig,
            plain,
            Truth.draw(rng, PARTITIONS, PER_PARTITION, singles=300, ranges=4, repeats=60),
            dict.fromkeys(range(PARTITIONS), PER_PARTITION),
        ),
        make_run(rig, sales, draw_from(rng, offsets), {0: committed}),
    ]
    worker.ready()
    consuming = [threading.Thread(target=run.consume, args=(16.0,)) for run in runs]
    for thread in consuming:
        thread.start()
    time.sleep(rng.uniform(0.5, 3.0))  # a random moment is what is tried here
    worker.kill()
    worker.start().ready()
    sight = Sight(rig)
    sight.await_event()
    worker.kill()
    worker.start().ready()
    Sight(rig).await_event()
    worker.kill()
    shutil.rmtree(rig.folder / "state-1")
    worker.start().ready()
    for thread in consuming:
        thread.join()
    assert [fault for run in runs for fault in run.judge(worker)] == []
    absent = worker.get(f"/api/partitions?topic={sales}&sink=log")["partitions"][0]["absent"]
    assert absent == {"transaction_marker": 400, "aborted": 1_000}
    for run in runs:
        run.report_late()
    assert [fault for run in runs for fault in run.judge(worker)] == []
    births = {source.rsplit("/", 1)[1] for source, _ in spine.folded(rig).ids}
    assert len(births) <= PARTITIONS + 1, "a state began anew"
    eventually(lambda: worker.get("/readyz")["ready"], "the worker still ready")
