"""One broker's log files edited while it is stopped: what is missing, what can't be read, and what a lost disk means."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from kafka_cluster import KafkaCluster

from stream_app.core.model import Run
from stream_app.kafka.batches import Batch, whole_batches
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.probe import look
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.trouble import TroubleKind
from tests.support.kafka_kit import KafkaKit
from tests.support.log_bytes import batch, flip
from tests.support.log_owner import owning
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually

pytestmark = pytest.mark.timeout(180)

DAY_MS = 86_400_000
LOST = 2
"""The consumer sink never says that it received this one, so that its verdicts are seen to be passed."""


Event = tuple[str, str | None, list[list[int]], int | None]
"""Type, cause, ranges, count."""


@dataclass(frozen=True)
class Case:
    """A topic of eight batches of five records, and what is found in it afterwards (half-open)."""

    end: int = 40
    records: tuple[Run, ...] = ((0, 10), (15, 40))
    holes: tuple[Run, ...] = ()
    unreadable: tuple[Run, ...] = ()


CASES = {
    "t23": Case(holes=((10, 15),)),
    "t24": Case(holes=((10, 15),)),
    "t25": Case(end=45, records=((0, 35), (40, 45)), holes=((35, 40),)),
    "t26": Case(unreadable=((10, 15),)),
    "t26-recovered": Case(records=((0, 10), (20, 40)), holes=((10, 20),)),
    "t27": Case(records=((0, 11), (12, 13), (15, 40)), holes=((11, 12), (13, 15))),
    "t27-count": Case(holes=((13, 15),), unreadable=((10, 13),)),
}
WIPED = "wiped"
LATER = 10
"""Records written behind the damaged batch when all is read."""
ONE_BATCH = {"linger.ms": 2_000, "batch.num.messages": 5, "enable.idempotence": True}
"""A producer that is not idempotent sends the records of a batch one by one where it has to try again: each has a pause of its own."""


def segment_of(topic: str, number: int) -> int:
    """Where a batch goes; its time makes the broker roll a new segment."""
    if topic == "t24":
        return 0 if number < 2 else 1 if number < 3 else 2
    return number // 4


def batches_of(log: bytes) -> list[Batch]:
    return list(whole_batches(memoryview(log), 0, len(log)))


def replaced(log: bytes, one: Batch, by: bytes) -> bytes:
    return log[: one.at] + by + log[one.stop :]


def miscounted(log: bytes, one: Batch, count: int) -> bytes:
    """The whole batch with another record count, its CRC put right."""
    covered = log[one.at + 21 : one.at + 57] + count.to_bytes(4, "big") + log[one.at + 61 : one.stop]
    return log[one.at : one.at + 17] + crc32c(covered).to_bytes(4, "big") + covered


def damage(data: Path) -> None:
    """What happens to the files; the broker is stopped. Without its clean-shutdown mark it recovers what it finds."""

    def edit(topic: str, base: int, change: Callable[[bytes, list[Batch]], bytes], *, keep_index: bool = False) -> None:
        file = data / f"{topic}-0" / f"{base:020}.log"
        log = file.read_bytes()
        known = batches_of(log)
        assert [one.base for one in known] == list(range(base, base + 20, 5))
        file.write_bytes(change(log, known))
        if not keep_index:
            for suffix in (".index", ".timeindex"):
                file.with_suffix(suffix).unlink()

    edit("t23", 0, lambda log, all_: replaced(log, all_[2], b""))
    for file in (data / "t24-0").glob(f"{10:020}.*"):
        file.unlink()
    edit("t25", 20, lambda log, all_: replaced(log, all_[-1], (40).to_bytes(8, "big") + log[all_[-1].at + 8 : all_[-1].stop]))
    edit("t26", 0, lambda log, all_: flip(log, all_[2].stop - 2), keep_index=True)
    edit("t26-recovered", 0, lambda log, all_: flip(log, all_[2].stop - 2))
    edit("t27", 0, lambda log, all_: replaced(log, all_[2], batch(10, 14, keep=[10, 12])))
    edit("t27-count", 0, lambda log, all_: replaced(log, all_[2], miscounted(log, all_[2], 3)))
    shutil.rmtree(data / f"{WIPED}-0")
    (data / ".kafka_cleanshutdown").unlink()


@pytest.fixture(scope="module")
def alone() -> Iterator[KafkaCluster]:
    """One broker that may be stopped and frozen."""
    with KafkaCluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def damaged(alone: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Worker]]:
    """A worker that saw all topics while they were empty, was stopped while they were filled and damaged, and then read them."""
    kit = KafkaKit(alone.bootstrap)
    topics = [*CASES, WIPED]
    for topic in topics:
        kit.make_topic(name=topic)
    kit.produce(WIPED, 0, 30)
    sinks = {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}
    rig = Rig(tmp_path_factory.mktemp("damaged"), alone.bootstrap, dict.fromkeys(topics, sinks), "damaged")
    worker = rig.worker().start().ready()
    eventually(lambda: [one["records"] for one in read_by(worker, WIPED)] == [30], "the log that will be wiped is read")
    eventually(lambda: all(len(read_by(worker, topic)) == 1 for topic in CASES), "the others were seen empty")
    assert worker.stop() == 0
    oldest = int(time.time() * 1000) - 40 * DAY_MS
    for topic in CASES:
        for number in range(8):
            kit.produce(topic, 0, 5, timestamp_ms=oldest + 10 * DAY_MS * segment_of(topic, number), conf=ONE_BATCH)
    alone.stop_broker(0)
    damage(alone.log_dir(0))
    alone.start_broker(0)
    kit.produce(WIPED, 0, 40)
    worker.start()
    observer = Observer(alone.bootstrap, rig.app_id)
    for topic, case in CASES.items():
        received = [offset for first, stop in case.records for offset in range(first, stop) if offset != LOST]
        observer.received(topic, 0, *([offset, offset] for offset in received), claim=case.end)
    worker.ready()
    yield rig, worker
    rig.close()
    kit.close()


def read_by(worker: Worker, topic: str, sink: str = "log") -> list[dict[str, Any]]:
    """Rows of its one partition, if somebody owns it."""
    rows = worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]
    return [row for row in rows if row["worker"] is not None]


def closed(runs: tuple[Run, ...]) -> list[list[int]]:
    return [[first, stop - 1] for first, stop in runs]


def told(rig: Rig, topic: str, sink: str) -> list[Event]:
    """Every event of a key."""
    events = (json.loads(message.value() or b"") for message in rig.read(f"{rig.app_id}.alerts"))
    return [(one["type"], one["cause"], one["ranges"], one["count"]) for one in events if (one["topic"], one["sink"]) == (topic, sink)]


def count(runs: tuple[Run, ...]) -> int:
    return sum(stop - first for first, stop in runs)


@pytest.mark.parametrize("topic", CASES)
def test_t23_to_t27_a_worker_tells_what_the_log_lacks(damaged: tuple[Rig, Worker], topic: str) -> None:
    """T23 a batch cut out, T24 a segment deleted, T25 an offset shifted, T26 a bit flipped, T27 fewer records counted."""
    rig, worker = damaged
    case = CASES[topic]
    lost = {"not_received": [[LOST, LOST]]}
    unread = {"unreadable": closed(case.unreadable)} if case.unreadable else {}

    def gaps(sink: str) -> dict[str, list[list[int]]]:
        found: dict[str, list[list[int]]] = {}
        for gap in worker.get(f"/api/gaps?topic={topic}&sink={sink}")["gaps"]:
            found.setdefault(gap["cause"], []).append([gap["first_offset"], gap["last_offset"]])
        return found

    eventually(lambda: gaps("billing") == lost | unread, "the sink's own losses, and nothing that the log lacks")
    holes = {"log_hole": closed(case.holes)} if case.holes else {}
    eventually(lambda: gaps("log") == holes, "what the log lacks")
    expected: list[Event] = []
    if case.holes:
        expected.append(("gap.opened", "log_hole", closed(case.holes), count(case.holes)))
    if case.unreadable:
        expected.append(("log.unreadable", None, closed(case.unreadable), count(case.unreadable)))
    assert sorted(told(rig, topic, "log"), key=str) == expected, "each once, and nothing else"
    eventually(lambda: all(one["log_read_offset"] >= case.end for one in read_by(worker, topic)), "the log is read to its end")
    (row,) = read_by(worker, topic)
    later = row["log_read_offset"] - case.end  # another test writes to one of them
    assert (row["records"], later) in [(count(case.records) + count(case.unreadable) + more, more) for more in (0, LATER)]
    assert "Traceback" not in worker.log.read_text()


def test_t26_a_damaged_batch_ends_nothing(damaged: tuple[Rig, Worker], alone: KafkaCluster) -> None:
    """The worker goes on behind it: what is written later is read, and the damage is not told again."""
    rig, worker = damaged
    KafkaKit(alone.bootstrap).produce("t26", 0, LATER)
    stop = CASES["t26"].end + LATER
    eventually(lambda: [row["log_read_offset"] for row in read_by(worker, "t26")] == [stop], "what was written later is read")
    assert [one[0] for one in told(rig, "t26", "log")] == ["log.unreadable"]
    assert worker.process is not None
    assert worker.process.poll() is None


def test_a_lost_disk_is_told_as_truncation(damaged: tuple[Rig, Worker]) -> None:
    """The partition's folder was gone; the log has grown beyond what was read, so that no offset is out of range."""
    rig, worker = damaged
    eventually(lambda: [(row["log_read_offset"], row["records"]) for row in read_by(worker, WIPED)] == [(40, 70)], "it is read again")
    assert told(rig, WIPED, "log") == [("log.truncated", None, [[0, 29]], 30)]


@pytest.mark.usefixtures("damaged")
async def test_t23_to_t27_the_reader_and_a_second_look_agree(alone: KafkaCluster) -> None:
    host, _, port = alone.bootstrap.rpartition(":")
    settings = KafkaSettings(((host, int(port)),))
    async with owning(settings) as owner:
        for topic in CASES:
            owner.assign(topic, 0, 0)
        for topic, case in CASES.items():
            got = await owner.read_to((await owner.reader.ends(topic, 0)).high_watermark, topic)
            assert (got.holes, got.unreadable) == (case.holes, case.unreadable), topic
            found = await look(settings, topic, 0, got.topic_id, Isolation.READ_COMMITTED, ((5, 39),))
            inside = tuple((first, min(stop, 39)) for first, stop in case.holes)
            assert (found.upto, found.holes, found.unreadable) == (39, inside, case.unreadable), topic
        assert {one.kind for one in owner.troubles} == {TroubleKind.DAMAGED}
        assert {one.topic for one in owner.troubles} == {topic for topic, case in CASES.items() if case.unreadable}


async def test_a_broker_that_freezes(alone: KafkaCluster) -> None:
    kit = KafkaKit(alone.bootstrap)
    topic = kit.make_topic()
    kit.produce(topic, 0, 10)
    host, _, port = alone.bootstrap.rpartition(":")
    async with owning(KafkaSettings(((host, int(port)),), request_timeout_ms=1500)) as owner:
        owner.assign(topic, 0, 0)
        await owner.read_to(10, topic)
        alone.pause_broker(0)
        begun = time.monotonic()
        try:
            await owner.trouble(TroubleKind.UNREACHABLE)
            assert 1.0 < time.monotonic() - begun < 15
        finally:
            alone.resume_broker(0)
        await asyncio.to_thread(kit.produce, topic, 0, 10)
        assert (await owner.read_to(20, topic)).records == ((0, 20),)
    kit.close()
