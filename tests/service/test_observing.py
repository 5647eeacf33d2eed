"""Writing what came over HTTP: accepted means acknowledged, everything else is said, and nothing is overtaken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_app.demo.broker import EmbeddedBroker
from stream_app.kafka.names import TopicNames
from stream_app.kafka.topics import Found, TopicsUnavailable
from stream_app.service import observing
from stream_app.service.metrics import Counters
from stream_app.service.observing import ObservationsWriter
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.observation import VALUE_BYTES_MAX
from stream_app.web.api import Unavailable
from stream_app.web.observations import Line
from tests.sidecar.fakes import FakeProducer
from tests.support.fakes import until
from tests.support.kafka_kit import KafkaKit

NAMES = {topic: TopicNames.of("gap", topic) for topic in ("orders", "late")}


class Producer(FakeProducer):
    """Tells how much it holds, and lets go of it when it is purged, as librdkafka does."""

    def __init__(self, conf: dict[str, Any]) -> None:
        super().__init__([])
        self.conf = conf

    def __len__(self) -> int:
        with self.changed:
            return len(self._open)

    def purge(self) -> None:
        super().purge()
        with self.changed:
            self.failures.extend(KafkaError(KafkaError._PURGE_QUEUE) for _ in self._open)
        self.release()


class World:
    """A cluster and the producers that were made for it."""

    def __init__(self) -> None:
        self.known: tuple[dict[str, int], str | None] = ({"orders": 3}, None)
        self.found: dict[str, int] | None = {"orders": 4, "late": 1, "foreign": 9}
        self.asked = 0
        self.made: list[Producer] = []
        self.writer = ObservationsWriter(
            {"bootstrap.servers": "b:1", "security.protocol": "SSL"},
            NAMES,
            lambda: self.known,
            self.find,
            Telemetry(Counters()),
            make_producer=self.make,
        )
        self.make_next = Producer

    def make(self, conf: dict[str, Any]) -> Producer:
        self.made.append(self.make_next(conf))
        return self.made[-1]

    async def find(self) -> Found:
        self.asked += 1
        await asyncio.sleep(0)
        if self.found is None:
            raise TopicsUnavailable("could not list the topics: refused")
        return Found("cluster", self.found)

    async def write(self, *values: bytes, partition: int = 0) -> list[str | None]:
        failures = await self.writer.write(lines(values, partition))
        return [None if failure is None else failure.error for failure in failures]


def lines(values: Sequence[bytes], partition: int = 0) -> list[Line]:
    return [Line(number, "orders", partition, value) for number, value in enumerate(values, 1)]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(observing, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(observing, "STOP_SECONDS", 0.2)
    made = World()
    yield made
    await made.writer.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "observing"]


# --- writing ------------------------------------------------------------------------------------------------------------


async def test_acknowledged_is_accepted(world: World) -> None:
    assert await world.write(b"a", b"b", partition=2) == [None, None]
    assert await world.write(b"c") == [None]
    (producer,) = world.made
    topic = "gap.observations.orders"
    assert producer.acknowledged == [(topic, 2, b"a"), (topic, 2, b"b"), (topic, 0, b"c")]


async def test_the_producer_loses_and_doubles_nothing(world: World) -> None:
    await world.write(b"a")
    conf = world.made[0].conf
    assert (conf["bootstrap.servers"], conf["security.protocol"]) == ("b:1", "SSL")
    assert (conf["acks"], conf["enable.idempotence"], conf["message.timeout.ms"]) == ("all", True, 0)
    assert conf["allow.auto.create.topics"] is False
    assert conf["queue.buffering.max.messages"] > observing.BACKLOG_LINES_MAX
    assert conf["queue.buffering.max.kbytes"] * 1024 > observing.BACKLOG_BYTES_MAX
    assert conf["message.max.bytes"] > VALUE_BYTES_MAX


async def test_no_acknowledgement_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await world.write(b"a") == [None]
    monkeypatch.setattr(observing, "WAIT_SECONDS", 0.05)
    (producer,) = world.made
    producer.hold()
    assert await world.write(b"b", b"c") == ["Kafka did not acknowledge it within 0.05 s"] * 2
    producer.conf["error_cb"](KafkaError(KafkaError._ALL_BROKERS_DOWN, "2/2 brokers are down"))
    assert await world.write(b"b", b"c") == ["Kafka did not acknowledge it within 0.05 s: 2/2 brokers are down"] * 2
    producer.release()
    monkeypatch.undo()
    assert await world.write(b"d") == [None]
    assert [value for _, _, value in producer.acknowledged] == [b"a", b"b", b"c", b"b", b"c", b"d"], "nothing is dropped or overtaken"


async def test_a_full_backlog_takes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.write(b"a")
    (producer,) = world.made
    producer.hold()
    monkeypatch.setattr(observing, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(observing, "BACKLOG_LINES_MAX", 3)
    await world.write(b"b", b"c")
    for limit, size in (("BACKLOG_LINES_MAX", 3), ("BACKLOG_BYTES_MAX", 3)):
        monkeypatch.setattr(observing, limit, size)
        with pytest.raises(Unavailable, match="nothing was taken"):
            await world.write(b"d", b"e")
        monkeypatch.setattr(observing, limit, 1_000)
    producer.release()
    await until(lambda: len(producer.acknowledged) == 3)
    monkeypatch.setattr(observing, "BACKLOG_LINES_MAX", 2)
    await until(lambda: world.writer._has_room(2, 2))
    assert await world.write(b"d", b"e") == [None, None]
    assert [value for _, _, value in producer.records] == [b"a", b"b", b"c", b"d", b"e"]


async def test_kafka_refuses_one(world: World) -> None:
    await world.write(b"a")
    producer = world.made[0]
    producer.failures.append(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    producer.failures.append(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "not you"))
    large, forbidden, good = await world.writer.write(lines([b"b", b"c", b"d"]))
    assert large is not None
    assert (large.refused, "new sequences" in large.error) == (True, True)
    assert forbidden is not None
    assert (forbidden.refused, "ACLs forbid it (not you)" in forbidden.error) == (False, True)
    assert good is None


async def test_what_follows_a_line_that_can_not_be_queued_is_not_queued(world: World) -> None:
    class Full(Producer):
        def produce(self, topic: str, value: bytes, **more: Any) -> None:
            if value == b"b":
                raise BufferError("Local: Queue full")
            super().produce(topic, value, **more)

    world.make_next = Full
    assert await world.write(b"a", b"b", b"c") == [None, "Local: Queue full", "Local: Queue full"]
    assert [value for _, _, value in world.made[0].records] == [b"a"]
    assert await world.write(b"b") == ["Local: Queue full"], "nothing at all was queued, and nobody waits"


async def test_a_producer_that_failed_for_good_is_replaced(world: World) -> None:
    await world.write(b"a")
    world.made[0].failures.append(KafkaError(KafkaError._FATAL, "fenced", fatal=True))
    (failure,) = await world.write(b"b")
    assert failure is not None
    assert await world.write(b"b") == [None]
    assert [[value for _, _, value in producer.records] for producer in world.made] == [[b"a", b"b"], [b"b"]]
    await until(lambda: world.made[0].purged)
    assert not world.made[1].purged


async def test_the_end(world: World) -> None:
    """What waits is answered, as unknown; what comes later is sent to another worker."""
    await world.write(b"a")
    producer = world.made[0]
    producer.hold()
    waiting = asyncio.create_task(world.write(b"b"))
    await until(lambda: len(producer))
    await world.writer.close()
    (failure,) = await waiting
    assert failure is not None
    assert producer.purged
    with pytest.raises(Unavailable, match="stopping"):
        await world.write(b"c")


async def test_the_end_waits_for_what_is_nearly_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "STOP_SECONDS", 30.0)
    await world.write(b"a")
    producer = world.made[0]
    producer.hold()
    waiting = asyncio.create_task(world.write(b"b"))
    await until(lambda: len(producer))
    closing = asyncio.create_task(world.writer.close())
    await asyncio.sleep(0)
    producer.release()
    assert await waiting == [None]
    await closing


# --- partitions ---------------------------------------------------------------------------------------------------------


async def test_the_partitions_that_can_be_observed(world: World) -> None:
    assert world.writer.partitions() == {"orders": 3, "late": 0}
    world.known = ({"orders": 3}, "could not list the topics")
    assert world.writer.partitions() == {"orders": 3, "late": 0}, "brokers that are away change no topic"
    world.known = ({}, "starting")
    with pytest.raises(Unavailable, match="not ready: starting"):
        world.writer.partitions()


async def test_partitions_are_asked_for_once_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    many = await asyncio.gather(*(world.writer.partitions_now() for _ in range(50)))
    assert (many, world.asked) == ([{"orders": 4, "late": 1}] * 50, 1)
    await world.writer.partitions_now()
    assert world.asked == 1
    monkeypatch.setattr(observing, "LOOK_SECONDS", 0.0)
    world.found = None
    with pytest.raises(Unavailable, match="not ready: could not list the topics"):
        await world.writer.partitions_now()
    world.found = {"orders": 5}
    assert await world.writer.partitions_now() == {"orders": 5, "late": 0}


# --- with the real client -----------------------------------------------------------------------------------------------


async def test_the_real_client_on_an_embedded_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledged while the broker is there; not known once it has gone; and the end does not wait for it."""
    broker = EmbeddedBroker()
    topic = NAMES["orders"].observations
    broker.make([topic])

    async def find() -> Found:
        raise AssertionError("nobody asks")

    conf = {"bootstrap.servers": broker.bootstrap, "log_level": 0}
    writer = ObservationsWriter(conf, NAMES, lambda: ({}, None), find, Telemetry(Counters()))
    assert list(await writer.write(lines([b"a", b"b" * VALUE_BYTES_MAX], partition=3))) == [None, None]
    written = await asyncio.to_thread(KafkaKit(broker.bootstrap).read, topic, 3)
    assert [len(message.value() or b"") for message in written] == [1, VALUE_BYTES_MAX]
    (failure,) = await writer.write(lines([b"c"], partition=4))
    assert failure is not None
    assert not failure.refused
    broker.close()
    monkeypatch.setattr(observing, "WAIT_SECONDS", 0.5)
    (failure,) = await writer.write(lines([b"d"]))
    assert failure is not None
    assert failure.error.startswith("Kafka did not acknowledge it within 0.5 s")
    begun = time.monotonic()
    await writer.close()
    assert time.monotonic() - begun < 10


async def test_a_producer_that_can_not_be_made_leaves_nothing_behind(world: World) -> None:
    """A certificate that is gone: it is said, and once it is there again observations are taken."""

    def fail(conf: dict[str, Any]) -> Producer:
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, "ssl.ca.location failed: No such file"))

    world.make_next = fail  # type: ignore[assignment]  # in place of a class
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"ssl\.ca\.location failed"):
            await world.write(b"one")
    assert not world.writer._batches
    world.make_next = Producer
    assert await world.write(b"one") == [None]
