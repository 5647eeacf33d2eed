"""A flush is one transaction: the calls that are made, in their order, and every failure as one that says what to do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, ProducerFenced

from stream_app.kafka import writer as writer_module
from stream_app.kafka.writer import FencedWriter, OutRecord, WriterLost


@dataclass
class Metadata:
    topic: str
    offset: int


@dataclass
class Producer:
    """Stands in for aiokafka's; ``failing`` names the calls that raise."""

    options: dict[str, Any] = field(default_factory=dict)
    journal: list[Any] = field(default_factory=list)
    failing: dict[str, BaseException] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    end: asyncio.Future[None] | None = None
    hanging: set[str] = field(default_factory=set)

    async def _call(self, name: str) -> None:
        self.journal.append(name)
        if name in self.hanging:
            await asyncio.Event().wait()
        if name in self.failing:
            raise self.failing[name]

    async def start(self) -> None:
        await self._call("start")

    async def stop(self) -> None:
        await self._call("stop")

    async def begin_transaction(self) -> None:
        self.end = asyncio.get_running_loop().create_future()
        await self._call("begin")

    async def commit_transaction(self) -> None:
        await self._call("commit")

    async def abort_transaction(self) -> None:
        await self._call("abort")

    @property
    def _txn_manager(self) -> Producer:
        return self

    def wait_for_transaction_end(self) -> asyncio.Future[None] | None:
        return self.end

    async def send(
        self, topic: str, *, value: bytes | None, key: bytes, partition: int | None, headers: list[tuple[str, bytes]]
    ) -> asyncio.Future[Metadata]:
        await self._call("send")
        self.journal[-1] = (topic, key, value, partition, headers)
        future: asyncio.Future[Metadata] = asyncio.get_running_loop().create_future()
        if "delivery" in self.failing:
            future.set_exception(self.failing["delivery"])
        else:
            self.offsets[topic] = self.offsets.get(topic, -1) + 1
            future.set_result(Metadata(topic, self.offsets[topic]))
        return future


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    made = Producer()

    def make(**options: Any) -> Producer:
        made.options = options
        return made

    monkeypatch.setattr(writer_module, "AIOKafkaProducer", make)
    return made


@pytest.fixture
def writer(producer: Producer) -> FencedWriter:
    return FencedWriter({"bootstrap_servers": "broker:1", "client_id": "gap"}, "gap-orders-0")


RECORDS = [
    OutRecord("changelog", b"k1", b"v1", 3),
    OutRecord("changelog", b"k2", None, 3),
    OutRecord("alerts", b"k3", b"v3", headers=(("ce_id", b"1"),)),
    OutRecord("status", b"k4", b"v4"),
]


def test_one_transactional_id_for_each_partition(writer: FencedWriter, producer: Producer) -> None:
    assert producer.options["transactional_id"] == "gap-orders-0"
    assert producer.options["bootstrap_servers"] == "broker:1"
    assert producer.options["acks"] == "all"
    assert producer.options["transaction_timeout_ms"] == 20_000


async def test_starting_fences(writer: FencedWriter, producer: Producer) -> None:
    await writer.start()
    assert producer.journal == ["start", "begin", "abort"], "an empty transaction waits for the producer id, which is what fences"


async def test_a_write_is_one_transaction(writer: FencedWriter, producer: Producer) -> None:
    producer.offsets = {"changelog": 40, "alerts": 900}
    assert await writer.write(RECORDS, "changelog") == 42
    assert producer.journal == [
        "begin",
        ("changelog", b"k1", b"v1", 3, []),
        ("changelog", b"k2", None, 3, []),
        ("alerts", b"k3", b"v3", None, [("ce_id", b"1")]),
        ("status", b"k4", b"v4", None, []),
        "commit",
    ]


async def test_a_write_without_state_reaches_no_offset(writer: FencedWriter) -> None:
    assert await writer.write(RECORDS[2:], "changelog") is None


@pytest.mark.parametrize("call", ["begin", "send", "delivery", "commit"])
@pytest.mark.parametrize("error", [ProducerFenced(), KafkaError("no"), ValueError("no"), AssertionError("no")])
async def test_whatever_fails_the_writer_is_lost(writer: FencedWriter, producer: Producer, call: str, error: BaseException) -> None:
    producer.failing = {call: error}
    with pytest.raises(WriterLost, match=f"^{type(error).__name__}"):
        await writer.write(RECORDS, "changelog")
    assert "commit" not in producer.journal or call == "commit"


async def test_an_outcome_that_is_not_known_in_time_is_lost(
    writer: FencedWriter, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "TRANSACTION_TIMEOUT_MS", 20)
    producer.hanging = {"commit"}
    with pytest.raises(WriterLost, match="TimeoutError"):
        await writer.write(RECORDS, "changelog")


async def test_a_defect_is_not_taken_for_a_lost_writer(writer: FencedWriter, producer: Producer) -> None:
    producer.failing = {"send": ZeroDivisionError()}
    with pytest.raises(ZeroDivisionError):
        await writer.write(RECORDS, "changelog")


async def test_failures_that_nobody_awaits_leave_no_trace_in_the_log(writer: FencedWriter, producer: Producer) -> None:
    """The first failure is told; asyncio must not report the others as forgotten."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    producer.failing = {"delivery": KafkaError("no")}
    with pytest.raises(WriterLost):
        await writer.write(RECORDS, "changelog")
    assert producer.end is not None
    producer.end.set_exception(KafkaError("no"))
    await asyncio.sleep(0)
    producer.end = None
    assert reported == []


@pytest.mark.parametrize("error", [KafkaConnectionError("no broker"), OSError("no route"), ProducerFenced()])
@pytest.mark.parametrize("call", ["start", "begin", "abort"])
async def test_a_start_that_fails_is_a_lost_writer(writer: FencedWriter, producer: Producer, call: str, error: BaseException) -> None:
    producer.failing = {call: error}
    with pytest.raises(WriterLost, match=r"^no transactional producer could be started: "):
        await writer.start()


async def test_a_start_does_not_wait_for_ever(writer: FencedWriter, producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "START_SECONDS", 0.02)
    producer.hanging = {"begin"}
    with pytest.raises(WriterLost, match="TimeoutError"):
        await writer.start()


async def test_a_stop_ends_in_time_whatever_happens(writer: FencedWriter, producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "STOP_SECONDS", 0.02)
    await writer.stop()
    producer.failing = {"stop": ProducerFenced()}
    await writer.stop()
    producer.hanging = {"stop"}
    await writer.stop()
    assert producer.journal == ["stop"] * 3
