"""Internal topics on a real cluster: made as configured, grown with what they belong to, described, and asked by time."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType

from stream_app.kafka.names import TopicNames
from stream_app.kafka.topics import InternalTopics, TopicConfig, Topics, TopicsUnavailable
from tests.support.kafka_kit import KafkaKit

INTERNAL = InternalTopics(True, -1, 3, 30 * 86_400_000, 7 * 86_400_000)


@pytest.fixture
def app_id() -> str:
    return f"app-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_topics(kit: KafkaKit, app_id: str) -> Callable[..., Topics]:
    def make(**changes: Any) -> Topics:
        given = {name: getattr(INTERNAL, name) for name in InternalTopics.__slots__}
        return Topics({"bootstrap.servers": kit.bootstrap, "log_level": 2}, app_id, InternalTopics(**given | changes))

    return make


def settings_of(kit: KafkaKit, topic: str) -> dict[str, str | None]:
    (future,) = kit.admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return {name: entry.value for name, entry in future.result(10).items()}


def partitions_of(kit: KafkaKit, *topics: str) -> list[int]:
    found = kit.admin.list_topics(timeout=10).topics
    return [len(found[topic].partitions) if topic in found else 0 for topic in topics]


async def test_internal_topics_are_made_as_configured(kit: KafkaKit, make_topics: Callable[..., Topics], app_id: str) -> None:
    watched, away = kit.make_topic(4), f"away-{app_id}"
    names = {topic: TopicNames.of(app_id, topic) for topic in (watched, away)}
    topics = make_topics()
    found = await topics.find()
    assert found.cluster_id.startswith("gapstream")
    assert found.partitions[watched] == 4
    assert await topics.ensure(names, found) == {watched: 4}
    mine = names[watched]
    assert (mine.observations, mine.changelog) == (f"{app_id}.observations.{watched}", f"{app_id}-{watched}-changelog")
    assert partitions_of(kit, mine.observations, mine.changelog, f"{app_id}.alerts", f"{app_id}.status") == [4, 4, 3, 6]
    assert partitions_of(kit, names[away].observations, names[away].changelog, away) == [0, 0, 0]
    observations = settings_of(kit, mine.observations)
    assert (observations["message.timestamp.type"], observations["retention.ms"]) == ("LogAppendTime", str(7 * 86_400_000))
    assert observations["cleanup.policy"] == "delete"
    alerts = settings_of(kit, f"{app_id}.alerts")
    assert (alerts["cleanup.policy"], alerts["retention.ms"]) == ("delete", str(30 * 86_400_000))
    for name in (mine.changelog, f"{app_id}.status"):
        assert settings_of(kit, name)["cleanup.policy"] == "compact"
    assert settings_of(kit, mine.changelog)["delete.retention.ms"] == str(7 * 86_400_000)
    again = await topics.find()
    assert await topics.ensure(names, again) == {watched: 4}


async def test_two_workers_may_make_them_at_once(kit: KafkaKit, make_topics: Callable[..., Topics], app_id: str) -> None:
    watched = kit.make_topic(2)
    names = {watched: TopicNames.of(app_id, watched)}
    first, second = make_topics(), make_topics()
    found = await first.find()
    assert await first.ensure(names, found) == await second.ensure(names, found) == {watched: 2}


async def test_they_grow_with_the_watched_topic(kit: KafkaKit, make_topics: Callable[..., Topics], app_id: str) -> None:
    watched = kit.make_topic(2)
    names = {watched: TopicNames.of(app_id, watched)}
    topics = make_topics()
    await topics.ensure(names, await topics.find())
    kit.add_partitions(watched, 5)
    assert await topics.ensure(names, await topics.find()) == {watched: 5}
    for name in (names[watched].observations, names[watched].changelog):
        kit.await_partitions(name, 5)  # brokers learn of them a moment later


async def test_what_is_missing_is_named_where_it_must_not_be_made(kit: KafkaKit, make_topics: Callable[..., Topics], app_id: str) -> None:
    watched = kit.make_topic(2)
    names = {watched: TopicNames.of(app_id, watched)}
    made_by_others = make_topics()
    topics = make_topics(create=False)
    with pytest.raises(TopicsUnavailable) as refused:
        await topics.ensure(names, await topics.find())
    assert str(refused.value) == (
        f"these topics are missing and app.topics.create is false: {app_id}-{watched}-changelog, {app_id}.alerts, "
        f"{app_id}.observations.{watched}, {app_id}.status; create them, then the worker goes on"
    )
    assert partitions_of(kit, f"{app_id}.alerts", names[watched].changelog) == [0, 0]
    await made_by_others.ensure(names, await topics.find())
    for name, count in ((f"{app_id}.alerts", 3), (f"{app_id}.status", 6), (names[watched].changelog, 2), (names[watched].observations, 2)):
        kit.await_partitions(name, count)  # brokers learn of new topics a moment later
    assert await topics.ensure(names, await topics.find()) == {watched: 2}
    kit.add_partitions(watched, 3)
    with pytest.raises(TopicsUnavailable, match=rf"{names[watched].changelog} has fewer partitions .* give it 3"):
        await topics.ensure(names, await topics.find())
    assert partitions_of(kit, names[watched].changelog) == [2]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"retention.ms": "60000"}, TopicConfig(False, 60_000, "delete")),
        ({"retention.ms": "-1"}, TopicConfig(False, None, "delete")),
        ({"cleanup.policy": "compact", "retention.ms": "60000"}, TopicConfig(True, None, "compact")),
        ({"cleanup.policy": "compact,delete", "retention.ms": "60000"}, TopicConfig(True, 60_000, "compact,delete")),
    ],
)
async def test_describe(kit: KafkaKit, make_topics: Callable[..., Topics], config: dict[str, str], expected: TopicConfig) -> None:
    topics = make_topics()
    assert await topics.describe(kit.make_topic(1, config)) == expected


async def test_what_cant_be_described_is_unknown(make_topics: Callable[..., Topics]) -> None:
    assert await make_topics().describe("no-such-topic") == TopicConfig(None, None)


async def test_the_offset_of_a_time(kit: KafkaKit, make_topics: Callable[..., Topics]) -> None:
    topic = kit.make_topic(2)
    for minute in range(3):
        kit.produce(topic, 1, 5, timestamp_ms=1_700_000_000_000 + minute * 60_000)
    topics = make_topics()
    assert await topics.offset_at(topic, 1, 1_600_000_000_000) == 0
    assert await topics.offset_at(topic, 1, 1_700_000_000_001) == 5
    assert await topics.offset_at(topic, 1, 1_700_000_120_000) == 10
    assert await topics.offset_at(topic, 1, 1_700_000_120_001) is None
    assert await topics.offset_at(topic, 0, 0) is None
    with pytest.raises(TopicsUnavailable, match="could not find the time in no-such-topic: "):
        await topics.offset_at("no-such-topic", 0, 0)
