"""The log reader while topics are made anew or grow, and while a follower answers in the leader's place."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
from kafka_cluster import KafkaCluster

from stream_app.kafka.cluster import Cluster, fetch
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError
from stream_app.kafka.protocol import ClusterInfo, ErrorCode, Isolation, TopicInfo, Want
from stream_app.kafka.trouble import TroubleKind
from tests.support.kafka_kit import KafkaKit
from tests.support.leaders import make_placed
from tests.support.log_owner import owning


def settings_for(cluster: KafkaCluster) -> KafkaSettings:
    servers = [one.rpartition(":") for one in cluster.bootstrap.split(",")]
    return KafkaSettings(tuple((host, int(port)) for host, _, port in servers))


# ---------------------------------------------------------------------------------------------- topics made anew


@pytest.mark.parametrize("n", [3, 40])
async def test_T20_T21_a_topic_deleted_and_created_anew(kafka: KafkaCluster, kit: KafkaKit, n: int) -> None:
    """Shorter than the position, or longer, so that no offset is out of range."""
    topic = kit.make_topic()
    kit.produce(topic, 0, 20)
    async with owning(settings_for(kafka)) as owner:
        owner.assign(topic, 0, 0)
        old = await owner.read_to(20, topic)

        def again() -> None:
            kit.delete_topics(topic)
            kit.make_topic(name=topic)
            kit.produce(topic, 0, n)

        await asyncio.to_thread(again)
        anew = await owner.trouble(TroubleKind.RECREATED)
        assert anew.topic_id not in (None, old.topic_id)
        assert owner.reads[topic, 0][-1].next == 20
        owner.assign(topic, 0, None, topic_id=anew.topic_id)
        got = await owner.read_to(n, topic)
        assert (got.records, got.topic_id) == (((0, n),), anew.topic_id)


async def test_partitions_that_are_added(kafka: KafkaCluster, kit: KafkaKit) -> None:
    topic = kit.make_topic(1)
    async with owning(settings_for(kafka)) as owner:
        owner.assign(topic, 2, 0)
        assert (await owner.trouble(TroubleKind.UNKNOWN_TOPIC)).partition == 2
        await asyncio.to_thread(kit.add_partitions, topic, 3)
        await asyncio.to_thread(kit.produce, topic, 2, 5)
        assert (await owner.read_to(5, topic, 2)).records == ((0, 5),)


# ------------------------------------------------------------------------------------------------------- followers


class StaleCluster(Cluster):
    """Takes a follower for the leader, as long as ``stale`` says, as whoever asks a broker with an old view does."""

    follower = 1
    stale = 0

    async def metadata(self, topics: Iterable[str] | None) -> ClusterInfo:
        info = await super().metadata(topics)
        if self.stale <= 0:
            return info
        self.stale -= 1
        return replace(info, topics={name: self._taken(topic) for name, topic in info.topics.items()})

    def _taken(self, topic: TopicInfo) -> TopicInfo:
        return replace(topic, leaders={number: replace(leader, node=self.follower) for number, leader in topic.leaders.items()})


@pytest.fixture
async def lagging(kafka3: KafkaCluster, kit3: KafkaKit) -> AsyncIterator[str]:
    """A topic whose follower, node 1, is up and serves, but lacks most of the log: its replication is throttled to a standstill."""
    topic, throttle, value = "lagging", "follower.replication.throttled.rate", b"v" * 200_000
    await asyncio.to_thread(make_placed, kit3, topic, [0, 1], **{"min.insync.replicas": "1"})
    await asyncio.to_thread(kit3.set_topic_config, topic, {"follower.replication.throttled.replicas": "0:1"})
    await asyncio.to_thread(kit3.set_broker_config, 1, {throttle: "1"})
    await asyncio.to_thread(kafka3.stop_broker, 1)
    try:
        await asyncio.to_thread(kit3.produce, topic, 0, 30, value=value, conf={"acks": "1", "batch.num.messages": 1})
    finally:
        await asyncio.to_thread(kafka3.start_broker, 1)
    yield topic
    await asyncio.to_thread(kit3.set_broker_config, 1, {throttle: None})
    kit3.delete_topics(topic)


@pytest.mark.timeout(180)
async def test_t31_a_follower_that_lags_is_not_believed(kafka3: KafkaCluster, lagging: str) -> None:
    """It serves consumers (KIP-392), refuses our position, and says that our logs differ: only the leader decides."""
    settings = settings_for(kafka3)
    asked = Cluster(settings)
    info = (await asked.metadata([lagging])).topics[lagging]
    leader = info.leaders[0]
    assert leader.node == 0
    follower = replace(leader, node=1)
    connection = await asked.connection(1)
    for epoch, refused in ((-1, ErrorCode.OFFSET_OUT_OF_RANGE), (leader.epoch, ErrorCode.NONE)):
        want = Want(lagging, info.topic_id, 0, 25, leader.epoch, epoch, 1000)
        frame, (section,) = await fetch(connection, [want], isolation=Isolation.READ_UNCOMMITTED, max_wait_ms=0, max_bytes=1000)
        frame.release()
        assert (section.error, section.diverging is None) == (refused, refused != ErrorCode.NONE)
    for question in (asked.ends(lagging, 0, follower), asked.epoch_end(lagging, 0, follower, leader.epoch)):
        with pytest.raises(BrokerError, match="NOT_LEADER_OR_FOLLOWER"):
            await question
    await asked.close()
    async with owning(settings) as owner:
        stale = StaleCluster(settings)
        owner.reader._cluster = stale
        for epoch in (-1, leader.epoch):
            stale.stale = 3
            owner.assign(lagging, 0, 25, leader_epoch=epoch)
            assert (await owner.read_to(30, lagging)).records == ((25, 30),)
            assert stale.stale == 0
        assert owner.troubles == []
        await stale.close()
