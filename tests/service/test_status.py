"""What an owner writes on the status topic, how it is read back, and signs of life; aiokafka is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaConnectionError

from stream_app.core import report
from stream_app.core.codec import topic_id_text
from stream_app.core.ledger import Ledger
from stream_app.core.model import (
    Gap,
    GapsRecord,
    MinuteRow,
    MinutesRecord,
    Observation,
    ObservationRead,
    Status,
    StatusRecord,
    Timed,
    WorkerRecord,
)
from stream_app.core.policy import Policy
from stream_app.kafka.writer import OutRecord
from stream_app.service import status as status_module
from stream_app.service.metrics import Counters
from stream_app.service.status import Life, StatusPages, StatusReader, copied_key
from stream_app.service.telemetry import Telemetry
from stream_app.service.view import StatusView
from tests.support.fakes import START_MS, TOPIC_ID, all_there, log_read, until

# --- pages --------------------------------------------------------------------------------------------------------------


class Book:
    """A ledger of which every second record is missing up to a number, and the pages written of it."""

    def __init__(self) -> None:
        policy = Policy("billing", grace_ms=0, floor=0, stall_after_ms=None)
        self.ledger = Ledger.create("orders", 3, "birth", topic_id=TOPIC_ID, log_start=0, log_end=0, policies={"billing": policy})
        self.ledger.begin(START_MS)
        self.pages = StatusPages("orders", 3, "gap", "worker-1")
        self.now_ms = START_MS
        self.said = 0

    def hear(self, runs: tuple[tuple[int, int], ...]) -> None:
        self.ledger.observe(ObservationRead(self.said, self.said, self.now_ms, b""), Observation("billing", runs), self.now_ms)
        self.said += 1

    def lose(self, first: int, gaps: int) -> None:
        """So many gaps of one record each from ``first`` on; the record after each is received."""
        stop = first + 2 * gaps
        if self.ledger.log.read < stop:
            self.ledger.fold_log(log_read(self.ledger.log.read, stop), self.now_ms)
        self.hear(tuple((offset + 1, offset + 2) for offset in range(first, stop, 2)))
        self.now_ms += 1_000
        self.ledger.heard_to_end(self.now_ms)
        while due := self.ledger.candidates():
            for step in due:
                self.ledger.settle(step, all_there(step.runs), self.now_ms)

    def write(self) -> dict[str, OutRecord]:
        """Records of one flush by key, the row's last."""
        rows = report.rows(self.ledger, self.now_ms)
        found = self.pages.records(self.ledger, rows)
        assert {record.topic for record in found} == {"gap.status"}
        assert {record.partition for record in found} == {None}
        assert found[-1].key == b"partition/orders/3"
        return {record.key.decode(): record for record in found}

    def row(self, written: dict[str, OutRecord], sink: str = "billing") -> Any:
        record = msgspec.json.decode(written["partition/orders/3"].value or b"", type=StatusRecord)
        assert (record.topic, record.partition, record.worker) == ("orders", 3, "worker-1")
        return next(row for row in record.rows if row.sink == sink)


def listed(record: OutRecord) -> list[Gap]:
    return msgspec.json.decode(record.value or b"", type=GapsRecord).gaps


def test_how_far_copies_were_read_is_for_all_workers_to_see() -> None:
    book = Book()
    book.ledger.mirrored = {"billing/topic:copy/1": (17, 4, TOPIC_ID)}
    view = StatusView({}, 300)
    for key, record in book.write().items():
        view.apply(key.encode(), record.value)
    assert view.copied_of("orders", topic_id_text(TOPIC_ID)) == {copied_key("billing/topic:copy/1", TOPIC_ID): 17}
    assert view.copied_of("orders", "another") == view.copied_of("sales", topic_id_text(TOPIC_ID)) == {}


def test_a_partition_without_gaps_is_one_record() -> None:
    book = Book()
    written = book.write()
    assert list(written) == ["partition/orders/3"]
    assert (book.row(written).pages, book.row(written, "log").pages) == (0, 0)


def test_the_list_comes_in_pages_before_the_row_that_counts_them() -> None:
    book = Book()
    book.lose(0, 1_200)
    written = book.write()
    assert list(written) == ["gaps/orders/3/billing/0", "gaps/orders/3/billing/1", "gaps/orders/3/billing/2", "partition/orders/3"]
    assert book.row(written).pages == 3
    found = [gap for name in list(written)[:3] for gap in listed(written[name])]
    assert [(gap.first, gap.stop, gap.count, gap.cause) for gap in found] == [(2 * n, 2 * n + 1, 1, "not_received") for n in range(1_200)]
    assert [len(listed(written[name])) for name in list(written)[:3]] == [500, 500, 200]


def test_only_pages_that_changed_are_written_again() -> None:
    book = Book()
    book.lose(0, 1_200)
    book.write()
    assert list(book.write()) == ["partition/orders/3"]
    book.lose(2_400, 10)
    assert list(book.write()) == ["gaps/orders/3/billing/2", "partition/orders/3"]


def test_pages_of_a_sink_that_was_forgotten_are_emptied_once() -> None:
    book = Book()
    book.lose(0, 600)
    book.write()
    book.ledger.configure({}, book.now_ms)
    assert book.ledger.forget("billing")
    written = book.write()
    assert {name: record.value for name, record in written.items() if name.startswith("gaps/")} == {
        "gaps/orders/3/billing/0": None,
        "gaps/orders/3/billing/1": None,
    }
    assert list(book.write()) == ["partition/orders/3"]


def test_pages_that_are_no_longer_needed_are_emptied() -> None:
    book = Book()
    book.lose(0, 1_200)
    book.write()
    book.hear(((0, 1_500),))  # 750 gaps are filled
    written = book.write()
    assert {name: record.value is None for name, record in written.items() if name.startswith("gaps")} == {
        "gaps/orders/3/billing/0": False, "gaps/orders/3/billing/1": True, "gaps/orders/3/billing/2": True,
    }  # fmt: skip
    assert book.row(written).pages == 1
    book.hear(((0, 2_400),))
    written = book.write()
    assert {name: record.value for name, record in written.items() if name.startswith("gaps")} == {"gaps/orders/3/billing/0": None}
    assert book.row(written).pages == 0


def test_whoever_takes_over_writes_the_whole_list() -> None:
    """It does not know what its predecessor wrote last; the row's number of pages tells which of those count."""
    book = Book()
    book.lose(0, 600)
    book.write()
    book.pages = StatusPages("orders", 3, "gap", "worker-2")
    rows = report.rows(book.ledger, book.now_ms)
    assert [record.key for record in book.pages.records(book.ledger, rows)][:2] == [b"gaps/orders/3/billing/0", b"gaps/orders/3/billing/1"]


def test_explained_gaps_are_listed_behind_the_open_ones_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "EXPLAINED_MAX", 2)
    book = Book()
    book.lose(0, 4)
    quarantined = Observation("billing", ((0, 1), (2, 3), (4, 5)), status=Status.QUARANTINED, reason="dlq")
    book.ledger.observe(ObservationRead(book.said, book.said, book.now_ms, b""), quarantined, book.now_ms)
    book.said += 1
    found = listed(book.write()["gaps/orders/3/billing/0"])
    assert [(gap.first, gap.open, gap.cause) for gap in found] == [
        (6, True, "not_received"), (2, False, "quarantined"), (4, False, "quarantined"),
    ]  # fmt: skip


# --- by minute ----------------------------------------------------------------------------------------------------------

MINUTE = START_MS // 60_000


def read_minute(book: Book, count: int, minute: int) -> None:
    at = book.ledger.log.read
    read = replace(log_read(at, at + count), minutes=(Timed(at, minute, minute * 60_000, minute * 60_000 + 9),))
    assert book.ledger.fold_log(read, book.now_ms)


def minutes_in(written: dict[str, OutRecord]) -> dict[str, list[MinuteRow] | None]:
    found = {name: record.value for name, record in written.items() if name.startswith("minutes/")}
    return {name: None if value is None else msgspec.json.decode(value, type=MinutesRecord).minutes for name, value in found.items()}


def test_minutes_are_written_where_they_changed() -> None:
    book = Book()
    read_minute(book, 10, MINUTE)
    book.hear(((0, 8),))
    key = f"minutes/orders/3/billing/{MINUTE // 10}"
    row = MinuteRow(MINUTE, 8, 0, 0, 7, 0, 0, 0, MINUTE * 60_000, MINUTE * 60_000 + 9)
    assert minutes_in(book.write()) == {key: [row]}
    assert minutes_in(book.write()) == {}
    read_minute(book, 10, MINUTE + 20)
    assert minutes_in(book.write()) == {f"minutes/orders/3/billing/{MINUTE // 10 + 2}": None}, "nothing was received there yet"
    book.hear(((8, 10),))
    assert minutes_in(book.write()) == {key: [MinuteRow(MINUTE, 10, 0, 0, 9, 0, 0, 0, row.low_ms, row.high_ms)]}


def test_minutes_of_a_day_ago_and_of_a_forgotten_sink_are_emptied() -> None:
    book = Book()
    read_minute(book, 10, MINUTE)
    book.hear(((0, 10),))
    (key,) = minutes_in(book.write())
    book.ledger.configure({}, book.now_ms)
    assert book.ledger.forget("billing")
    assert minutes_in(book.write()) == {key: None}
    book = Book()
    read_minute(book, 10, MINUTE)
    book.hear(((0, 10),))
    book.write()
    book.now_ms += 25 * 3_600_000
    book.ledger.fold_log(log_read(10, 10), book.now_ms)
    assert minutes_in(book.write()) == {key: None}


def test_a_gap_that_had_nothing_behind_it_is_written_again_when_it_has() -> None:
    book = Book()
    book.ledger.fold_log(log_read(0, 10), book.now_ms)
    observation = Observation("billing", ((0, 5),), claim=8)
    book.ledger.observe(ObservationRead(0, 0, book.now_ms, b""), observation, book.now_ms)
    book.said = 1
    book.ledger.heard_to_end(book.now_ms + 1)
    for step in book.ledger.candidates():
        book.ledger.settle(step, all_there(step.runs), book.now_ms)
    key = "gaps/orders/3/billing/0"
    assert [gap.next_offset for gap in listed(book.write()[key])] == [None]
    assert key not in book.write()
    book.ledger.observe(ObservationRead(1, 1, book.now_ms, b""), Observation("billing", ((8, 10),), claim=10), book.now_ms)
    assert [gap.next_offset for gap in listed(book.write()[key])] == [8]


# --- the reader ---------------------------------------------------------------------------------------------------------


@dataclass
class Consumer:
    """A consumer of the status topic; what it is to do comes from the ``Topic`` that made it."""

    topic: Topic
    options: dict[str, Any]
    stopped: bool = False
    read: int = 0

    def __post_init__(self) -> None:
        self._client = SimpleNamespace(_wait_on_metadata=self._metadata)

    async def _metadata(self, topic: str) -> set[int]:
        assert topic == "gap.status"
        return self.topic.partitions.pop(0) if len(self.topic.partitions) > 1 else self.topic.partitions[0]

    async def start(self) -> None:
        if self.topic.failures:
            raise self.topic.failures.pop(0)

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = partitions

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        assert list(partitions) == self.assigned

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.topic.end)

    async def position(self, tp: TopicPartition) -> int:
        return self.read

    async def getmany(self, timeout_ms: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        await asyncio.sleep(0)
        failure = self.topic.breaking.pop(0) if self.topic.breaking else None
        if failure is not None:
            raise failure
        if self.read >= len(self.topic.records):
            await asyncio.sleep(0.001)
            return {}
        self.read += 1
        return {self.assigned[0]: [self.topic.records[self.read - 1]]}


@dataclass
class Topic:
    """The status topic, and who reads it."""

    partitions: list[set[int]] = field(default_factory=lambda: [{0, 1}])
    records: list[ConsumerRecord] = field(default_factory=list)
    end: int = 0
    failures: list[Exception] = field(default_factory=list)
    breaking: list[Exception | None] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)

    def make(self, **options: Any) -> Consumer:
        self.consumers.append(Consumer(self, options))
        return self.consumers[-1]

    def write(self, worker: str) -> None:
        value = msgspec.json.encode(WorkerRecord(worker=worker, at_ms=START_MS, session_timeout_ms=6_000, topics={"orders": 1}))
        key = f"worker/{worker}".encode()
        self.records.append(ConsumerRecord("gap.status", 0, len(self.records), 0, 0, key, value, None, len(key), len(value), ()))


@dataclass
class Reading:
    """A reader, its view and its topic."""

    topic: Topic
    view: StatusView
    reader: StatusReader

    def workers(self) -> list[str]:
        return sorted(self.view._workers)


@pytest.fixture
async def reading(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reading]:
    topic = Topic()
    monkeypatch.setattr(status_module, "AIOKafkaConsumer", topic.make)
    monkeypatch.setattr(status_module, "RETRY_SECONDS", 0.001)
    view = StatusView({}, 300)
    made = Reading(topic, view, StatusReader({"bootstrap_servers": "broker:1"}, "gap", view, Telemetry(Counters())))
    yield made
    await made.reader.stop()


async def test_the_whole_topic_is_read_without_a_group(reading: Reading) -> None:
    for name in ("a", "b"):
        reading.topic.write(name)
    reading.topic.end = 2
    reading.reader.start()
    await until(lambda: reading.view.loaded)
    assert reading.workers() == ["a", "b"]
    (consumer,) = reading.topic.consumers
    assert consumer.options["isolation_level"] == "read_committed"
    assert "group_id" not in consumer.options
    assert consumer.assigned == [TopicPartition("gap.status", 0), TopicPartition("gap.status", 1)]
    reading.topic.write("c")
    await until(lambda: reading.workers() == ["a", "b", "c"])


async def test_nothing_is_answered_before_the_end_was_reached(reading: Reading) -> None:
    reading.topic.write("a")
    reading.topic.end = 2
    reading.reader.start()
    await until(lambda: reading.workers() == ["a"])
    assert not reading.view.loaded
    reading.topic.write("b")
    await until(lambda: reading.view.loaded)


async def test_a_topic_that_does_not_exist_yet_is_waited_for(reading: Reading) -> None:
    reading.topic.partitions = [set(), set(), {0}]
    reading.reader.start()
    await until(lambda: reading.view.loaded)
    assert reading.topic.consumers[0].assigned == [TopicPartition("gap.status", 0)]


async def test_brokers_that_are_away_are_one_line_a_minute(reading: Reading) -> None:
    reading.topic.failures = [KafkaConnectionError("no"), OSError("no"), KafkaConnectionError("no")]
    with structlog.testing.capture_logs() as lines:
        reading.reader.start()
        await until(lambda: reading.view.loaded)
    assert [line["event"] for line in lines] == ["the status topic can't be read now"]
    assert len(reading.topic.consumers) == 4
    assert all(consumer.stopped for consumer in reading.topic.consumers[:3])


@pytest.mark.parametrize("failure", [KafkaConnectionError("no"), ZeroDivisionError("a defect")])
async def test_what_breaks_while_it_reads_is_begun_anew(reading: Reading, failure: Exception) -> None:
    reading.topic.write("a")
    reading.topic.end = 1
    reading.topic.breaking = [None, None, failure]
    with structlog.testing.capture_logs() as lines:
        reading.reader.start()
        await until(lambda: len(reading.topic.consumers) == 2 and reading.view.loaded)
    assert reading.workers() == ["a"]
    assert len(lines) == 1
    assert reading.topic.consumers[0].stopped


async def test_stop_ends_the_consumer(reading: Reading) -> None:
    await reading.reader.stop()
    reading.reader.start()
    await until(lambda: reading.view.loaded)
    await reading.reader.stop()
    assert reading.topic.consumers[0].stopped


# --- signs of life ------------------------------------------------------------------------------------------------------


@dataclass
class Producer:
    """Writes down what is sent."""

    broker: Broker
    stopped: bool = False

    async def start(self) -> None:
        if self.broker.failures:
            raise self.broker.failures.pop(0)

    async def stop(self) -> None:
        self.stopped = True

    async def send_and_wait(self, topic: str, *, key: bytes, value: bytes) -> None:
        if self.broker.breaking:
            raise self.broker.breaking.pop(0)
        if self.broker.hanging:
            await asyncio.Event().wait()
        self.broker.said.append((topic, key, msgspec.json.decode(value, type=WorkerRecord)))


@dataclass
class Broker:
    said: list[tuple[str, bytes, WorkerRecord]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    breaking: list[Exception] = field(default_factory=list)
    hanging: bool = False
    producers: list[Producer] = field(default_factory=list)

    def make(self, **options: Any) -> Producer:
        assert options["acks"] == "all"
        self.producers.append(Producer(self))
        return self.producers[-1]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(status_module, "AIOKafkaProducer", made.make)
    monkeypatch.setattr(status_module, "LIFE_SECONDS", 0.001)
    monkeypatch.setattr(status_module, "RETRY_SECONDS", 0.001)
    return made


@pytest.fixture
def record() -> Callable[[bool], WorkerRecord]:
    return lambda stopped: WorkerRecord(worker="w1", at_ms=START_MS, session_timeout_ms=6_000, stopped=stopped)


@pytest.fixture
async def life(broker: Broker, record: Callable[[bool], WorkerRecord]) -> AsyncIterator[Life]:
    made = Life({}, "gap", record, Telemetry(Counters()))
    yield made
    broker.hanging = False
    await made.stop()


async def test_signs_of_life_are_given_until_the_stop_which_is_told(life: Life, broker: Broker) -> None:
    life.start()
    await until(lambda: len(broker.said) > 2)
    await life.stop()
    assert {(topic, key) for topic, key, _ in broker.said} == {("gap.status", b"worker/w1")}
    assert [one.stopped for _, _, one in broker.said][-2:] == [False, True]
    assert broker.producers[0].stopped
    said = len(broker.said)
    await asyncio.sleep(0.01)  # several signs long
    assert len(broker.said) == said


async def test_brokers_away_are_tried_again_and_told_once(life: Life, broker: Broker) -> None:
    broker.failures = [KafkaConnectionError("no"), OSError("no")]
    broker.breaking = [KafkaConnectionError("no")]
    with structlog.testing.capture_logs() as lines:
        life.start()
        await until(lambda: broker.said)
    assert [line["event"] for line in lines] == ["signs of life can't be written now"]
    assert len(broker.producers) == 4
    assert all(producer.stopped for producer in broker.producers[:3])


async def test_a_defect_does_not_end_them(life: Life, broker: Broker) -> None:
    broker.breaking = [ZeroDivisionError("a defect")]
    with structlog.testing.capture_logs() as lines:
        life.start()
        await until(lambda: broker.said)
    assert [line["log_level"] for line in lines] == ["error"]


async def test_a_stop_does_not_wait_for_brokers(life: Life, broker: Broker) -> None:
    life.start()
    await until(lambda: broker.said)
    broker.hanging = True
    begun = asyncio.get_running_loop().time()
    await life.stop()
    assert asyncio.get_running_loop().time() - begun < 4


async def test_a_stop_before_the_start(life: Life, broker: Broker) -> None:
    await life.stop()
    assert broker.said == []
