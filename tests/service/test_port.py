"""Kafka as the owners see it: each question goes to the right place, and each failure is one that is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP

from stream_app.core.codec import topic_id_text
from stream_app.core.model import LogEnds, Look, Row
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import RefusedError, UnreachableError
from stream_app.kafka.names import TopicNames
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.topics import TopicConfig, Topics, TopicsUnavailable
from stream_app.service import port as port_module
from stream_app.service.context import TopicFacts, Unavailable
from stream_app.service.port import KafkaPort, Reading
from tests.support.fakes import OBSERVATIONS_ID, TOPIC_ID, Clock

NAMES = TopicNames.of("gap", "orders")
SETTINGS = KafkaSettings((("127.0.0.1", 1),))


@dataclass
class World:
    """A reader, an administrator and a driver in one, as the port sees them."""

    journal: list[Any] = field(default_factory=list)
    failure: Exception | None = None
    seek_failure: Exception | None = None
    topics: dict[str, Any] = field(default_factory=dict)
    config: TopicConfig = field(default_factory=lambda: TopicConfig(False, 1_000))
    gate: asyncio.Event | None = None
    rows: list[Row] | None = None

    def _note(self, *what: Any) -> None:
        self.journal.append(what)
        if self.failure is not None:
            raise self.failure

    async def metadata(self, names: list[str]) -> Any:
        self._note("metadata", *names)
        return SimpleNamespace(topics=self.topics)

    async def ends(self, topic: str, partition: int) -> LogEnds:
        self._note("ends", topic, partition)
        return LogEnds(1, 9, 7)

    def assign(self, topic: str, partition: int, position: int, **options: Any) -> None:
        self.journal.append(("assign", topic, partition, position, options))

    def unassign(self, topic: str, partition: int) -> None:
        self.journal.append(("unassign", topic, partition))

    async def describe(self, topic: str) -> TopicConfig:
        self.journal.append(("describe", topic))
        if self.gate is not None:
            await self.gate.wait()
        return self.config

    async def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        self._note("offset_at", topic, partition, timestamp_ms)
        return 42

    async def seek(self, tp: TP, position: int) -> None:
        self.journal.append(("seek", tp, position))
        if self.seek_failure is not None:
            raise self.seek_failure


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world() -> World:
    present = {"orders": TOPIC_ID, NAMES.observations: OBSERVATIONS_ID}
    return World(topics={name: SimpleNamespace(topic_id=topic_id, error=0, partitions=3) for name, topic_id in present.items()})


@pytest.fixture
def port(world: World, clock: Clock) -> KafkaPort:
    readings = {"orders": Reading(Isolation.READ_UNCOMMITTED, False)}
    reader, topics, names = cast(LogReader, world), cast(Topics, world), {"orders": NAMES}
    return KafkaPort(
        SETTINGS, reader, topics, names, readings, clock, world.seek, lambda topic: world.rows, lambda topic, incarnation: {incarnation: 1}
    )


def test_how_far_copies_were_read_is_asked_by_incarnation(port: KafkaPort) -> None:
    assert port.copied("orders", TOPIC_ID) == {topic_id_text(TOPIC_ID): 1}


async def test_facts(port: KafkaPort, world: World) -> None:
    assert await port.facts("orders") == TopicFacts(TOPIC_ID, OBSERVATIONS_ID, 3, 3, False, 1_000)
    assert world.journal == [("metadata", "orders", NAMES.observations), ("describe", "orders")]


@pytest.mark.parametrize("name", ["orders", NAMES.observations])
@pytest.mark.parametrize("answer", [None, SimpleNamespace(topic_id=bytes(16), error=3)])
async def test_a_topic_that_is_away(port: KafkaPort, world: World, name: str, answer: Any) -> None:
    world.topics[name] = answer
    with pytest.raises(Unavailable, match=f"^topic {name} does not exist now; waiting for it$"):
        await port.facts("orders")


async def test_settings_are_asked_once_for_all_who_ask_at_the_same_time(port: KafkaPort, world: World, clock: Clock) -> None:
    world.gate = asyncio.Event()
    asking = [asyncio.create_task(port.facts("orders")) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    world.gate.set()
    assert {facts.retention_ms for facts in await asyncio.gather(*asking[1:])} == {1_000}
    assert world.journal.count(("describe", "orders")) == 1


async def test_settings_are_asked_again_after_a_while(port: KafkaPort, world: World, clock: Clock) -> None:
    await port.facts("orders")
    world.config = TopicConfig(True, None)
    clock.now_ms += 29_000
    assert (await port.policy("orders")).compacted is False
    clock.now_ms += 2_000
    assert (await port.policy("orders")).compacted is True


async def test_settings_are_asked_again_by_whoever_can_not_wait(port: KafkaPort, world: World, clock: Clock) -> None:
    await port.policy("orders")
    world.config = TopicConfig(True, None)
    clock.now_ms += 1
    assert (await port.policy("orders", fresh=True)).compacted is True
    assert (await port.policy("orders")).compacted is True


def seen(partition: int, partitions: int, topic_id: bytes = TOPIC_ID) -> Row:
    known: dict[str, Any] = {"configured": True, "heard": True, "updated_at_ms": 0, "incarnation": topic_id_text(topic_id)}
    return Row(topic="orders", partition=partition, sink="log", topic_partitions=partitions, **known)


async def test_how_many_partitions_there_were_at_first_sight(port: KafkaPort, world: World) -> None:
    with pytest.raises(Unavailable, match=r"^the status topic is not read to its end yet$"):
        await port.first_partitions("orders", TOPIC_ID)
    world.rows = []
    assert await port.first_partitions("orders", TOPIC_ID) is None
    world.rows = [seen(0, 3), seen(1, 3), seen(3, 5), seen(4, 0), seen(2, 1, OBSERVATIONS_ID)]
    assert await port.first_partitions("orders", TOPIC_ID) == 3


async def test_sinks_that_are_heard_of_are_looked_for_once_a_second(port: KafkaPort, world: World, clock: Clock) -> None:
    assert port.heard_sinks("orders", TOPIC_ID) == frozenset(), "nobody knows before the status topic is read"
    facts: dict[str, Any] = {"topic": "orders", "partition": 0, "configured": True, "updated_at_ms": 0}
    now, before = topic_id_text(TOPIC_ID), topic_id_text(OBSERVATIONS_ID)
    world.rows = [
        Row(**facts, sink="billing", heard=True, incarnation=now),
        Row(**facts, sink="silent", heard=False, incarnation=now),
        Row(**facts, sink="former", heard=True, incarnation=before),
    ]
    clock.now_ms += 999
    assert port.heard_sinks("orders", TOPIC_ID) == frozenset()
    clock.now_ms += 1
    assert port.heard_sinks("orders", TOPIC_ID) == {"billing"}
    assert port.heard_sinks("orders", OBSERVATIONS_ID) == {"former"}, "of another incarnation"


async def test_ends(port: KafkaPort) -> None:
    assert await port.ends("orders", 3) == LogEnds(1, 9, 7)


@pytest.mark.parametrize(("time", "ms"), [("2023-11-14T22:13:20Z", 1_700_000_000_000), ("-2h", 1_700_000_000_000 - 7_200_000), ("@5", 5)])
async def test_the_offset_of_a_time(port: KafkaPort, world: World, time: str, ms: int) -> None:
    assert await port.offset_at("orders", 3, time) == 42
    assert world.journal == [("offset_at", "orders", 3, ms)]


async def test_a_look_uses_the_topics_isolation(port: KafkaPort, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    async def look(*args: Any, **options: Any) -> Look:
        given.append((*args, options))
        return Look(9, 0)

    monkeypatch.setattr(port_module, "look", look)
    assert await port.look("orders", 3, TOPIC_ID, ((1, 9),)) == Look(9, 0)
    assert await port.look("orders", 3, TOPIC_ID, ((1, 9),), 70) == Look(9, 0)
    asked = (SETTINGS, "orders", 3, TOPIC_ID, Isolation.READ_UNCOMMITTED, ((1, 9),))
    assert given == [(*asked, {"older_than_ms": None}), (*asked, {"older_than_ms": 70})]


async def test_the_log_is_read_as_configured(port: KafkaPort, world: World) -> None:
    port.read_from("orders", 3, 17, TOPIC_ID, 4, ((4, 9),))
    port.stop_reading("orders", 3)
    options = {"isolation": Isolation.READ_UNCOMMITTED, "check_crcs": False, "topic_id": TOPIC_ID, "leader_epoch": 4, "epochs": ((4, 9),)}
    assert world.journal == [("assign", "orders", 3, 17, options), ("unassign", "orders", 3)]


@pytest.mark.parametrize(("offset", "position"), [(None, 1), (0, 1), (1, 1), (5, 5), (9, 9), (12, 9)])
async def test_observations_are_sought_through_the_driver(port: KafkaPort, world: World, offset: int | None, position: int) -> None:
    """Not below where they begin, not above where they end: aiokafka would begin anew."""
    assert await port.hear_from(NAMES.observations, 3, offset) == position
    assert world.journal == [("ends", NAMES.observations, 3), ("seek", TP(NAMES.observations, 3), position)]


CALLS: list[Callable[[KafkaPort], Any]] = [
    lambda port: port.facts("orders"),
    lambda port: port.ends("orders", 0),
    lambda port: port.hear_from(NAMES.observations, 0, 7),
    lambda port: port.look("orders", 0, TOPIC_ID, ((0, 1),)),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("failure", [UnreachableError("nobody answers"), RefusedError("no")])
async def test_failures_of_kafka_are_tried_again(
    port: KafkaPort, world: World, monkeypatch: pytest.MonkeyPatch, call: Callable[[KafkaPort], Any], failure: Exception
) -> None:
    async def look(*args: Any, **options: Any) -> Look:
        raise failure

    monkeypatch.setattr(port_module, "look", look)
    world.failure = failure
    with pytest.raises(Unavailable, match=f"^{failure}$"):
        await call(port)


async def test_failures_of_the_administrator_are_tried_again(port: KafkaPort, world: World) -> None:
    world.failure = TopicsUnavailable("could not find the time")
    with pytest.raises(Unavailable, match=r"^could not find the time$"):
        await port.offset_at("orders", 0, "@5")


@pytest.mark.parametrize("failure", [TimeoutError(), RuntimeError("no such partition is assigned")])
async def test_failures_of_aiokafka_are_tried_again(port: KafkaPort, world: World, failure: Exception) -> None:
    world.seek_failure = failure
    said = str(failure) or type(failure).__name__
    with pytest.raises(Unavailable, match=f"^observations of {NAMES.observations}/0 can't be read: {said}$"):
        await port.hear_from(NAMES.observations, 0, 7)
