"""What is asked of the cluster for internal topics, and in which order; the real thing is in tests/kafka_real/test_topics.py."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from stream_app.kafka.names import TopicNames
from stream_app.kafka.topics import Found, InternalTopics, TopicConfig, Topics, TopicsUnavailable

NAMES = {"orders": TopicNames.of("gap", "orders"), "sales": TopicNames.of("gap", "sales")}
COMPLETE = {"gap.alerts": 6, "gap.status": 6, "gap-orders-changelog": 4, "gap.observations.orders": 4, "orders": 4}


def answer(error: KafkaException | None = None) -> Future[Any]:
    future: Future[Any] = Future()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
    return future


class Admin(AdminClient):
    """Writes down what it is asked; ``refusing`` says what it answers for a topic, ``offset`` where a time is found."""

    offset = 0

    def __init__(self, refusing: Mapping[str, int] | None = None) -> None:
        self.journal: list[tuple[str, str, int]] = []
        self.created: dict[str, NewTopic] = {}
        self._refusing = dict(refusing or {})

    def _answer(self, topic: str) -> Future[Any]:
        code = self._refusing.get(topic)
        return answer(None if code is None else KafkaException(KafkaError(code)))

    def create_topics(self, new_topics: list[NewTopic], **options: Any) -> dict[str, Future[Any]]:  # type: ignore[override]  # as it is used
        for topic in new_topics:
            self.journal.append(("create", topic.topic, topic.num_partitions))
            self.created[topic.topic] = topic
        return {topic.topic: self._answer(topic.topic) for topic in new_topics}

    def create_partitions(self, new_partitions: list[NewPartitions], **options: Any) -> dict[str, Future[Any]]:  # type: ignore[override]  # as it is used
        self.journal += [("grow", topic.topic, topic.new_total_count) for topic in new_partitions]
        return {topic.topic: self._answer(topic.topic) for topic in new_partitions}

    def describe_configs(self, *args: Any, **options: Any) -> Any:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def list_offsets(self, wanted: Any, **options: Any) -> Any:  # type: ignore[override]  # as it is used
        found: Future[Any] = Future()
        found.set_result(SimpleNamespace(offset=self.offset))
        return dict.fromkeys(wanted, found)

    def list_topics(self, *args: Any, **options: Any) -> Any:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))


def topics_of(admin: AdminClient, *, create: bool = True, replication: int = -1) -> Topics:
    return Topics({}, "gap", InternalTopics(create, replication, 6, 1_000, 2_000), admin)


async def test_the_changelog_grows_first_and_the_observations_last() -> None:
    """The observations decide what is handed out: a partition must not be handed out before its changelog is there."""
    admin = Admin()
    assert await topics_of(admin).ensure(NAMES, Found("c", COMPLETE | {"orders": 6})) == {"orders": 6}
    assert admin.journal == [("grow", "gap-orders-changelog", 6), ("grow", "gap.observations.orders", 6)]


async def test_what_has_grown_already_is_left_alone() -> None:
    admin = Admin()
    await topics_of(admin).ensure(NAMES, Found("c", COMPLETE | {"orders": 6, "gap-orders-changelog": 6}))
    assert admin.journal == [("grow", "gap.observations.orders", 6)]
    admin = Admin()
    assert await topics_of(admin).ensure(NAMES, Found("c", COMPLETE | {"gap.observations.orders": 9})) == {"orders": 4}
    assert admin.journal == []


async def test_a_growth_that_fails_half_way_is_told() -> None:
    admin = Admin({"gap-orders-changelog": KafkaError.CLUSTER_AUTHORIZATION_FAILED})
    with pytest.raises(TopicsUnavailable, match="could not add partitions to gap-orders-changelog: "):
        await topics_of(admin).ensure(NAMES, Found("c", COMPLETE | {"orders": 6}))
    assert admin.journal == [("grow", "gap-orders-changelog", 6)], "the observations must not run ahead"


async def test_nothing_is_made_for_a_topic_that_does_not_exist() -> None:
    admin = Admin()
    assert await topics_of(admin).ensure(NAMES, Found("c", {})) == {}
    assert {name for _, name, _ in admin.journal} == {"gap.alerts", "gap.status"}


async def test_replication_is_as_configured() -> None:
    admin = Admin()
    await topics_of(admin, replication=2).ensure(NAMES, Found("c", {"orders": 3}))
    assert {topic.replication_factor for topic in admin.created.values()} == {2}
    assert admin.created["gap.observations.orders"].num_partitions == 3


async def test_a_topic_that_another_worker_made_meanwhile_is_no_fault() -> None:
    admin = Admin({"gap.alerts": KafkaError.TOPIC_ALREADY_EXISTS})
    assert await topics_of(admin).ensure(NAMES, Found("c", {"orders": 3})) == {"orders": 3}


async def test_a_refusal_is_told() -> None:
    admin = Admin({"gap.alerts": KafkaError.TOPIC_AUTHORIZATION_FAILED})
    with pytest.raises(TopicsUnavailable, match=r"could not create the internal topics: .*uthorization"):
        await topics_of(admin).ensure(NAMES, Found("c", {"orders": 3}))


async def test_brokers_that_are_away() -> None:
    topics = topics_of(Admin())
    with pytest.raises(TopicsUnavailable, match="could not list the topics: "):
        await topics.find()
    assert await topics.describe("orders") == TopicConfig(None, None)


async def test_no_answer_is_not_taken_for_a_time_that_was_not_reached_yet() -> None:
    """librdkafka tells OFFSET_INVALID, and no error, where the connection to the leader broke."""
    admin = Admin()
    admin.offset = -1
    assert await topics_of(admin).offset_at("orders", 3, 1_000) is None
    admin.offset = OFFSET_INVALID
    with pytest.raises(TopicsUnavailable, match="could not find the time in orders: the leader of partition 3 did not answer"):
        await topics_of(admin).offset_at("orders", 3, 1_000)
