"""The log reader while brokers stop, topics are made anew, logs are truncated, and segments are damaged on disk."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic
from kafka_cluster import KafkaCluster

from stream_app.core.model import LogRead
from stream_app.kafka.batches import Batch, whole_batches
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.probe import look
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.trouble import TroubleKind
from tests.support.kafka_kit import KafkaKit
from tests.support.log_bytes import flip
from tests.support.log_owner import Owner, owning

COMMITTED = Isolation.READ_COMMITTED


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


# --------------------------------------------------------------------------------------------- leaders that move


class Writer(threading.Thread):
    """Writes to every partition in turn, acknowledged by all replicas, until told to stop."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        super().__init__(daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 2, "message.timeout.ms": 60_000, "log_level": 2}
        )
        self._topic, self._partitions = topic, partitions
        self._stopping = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._stopping.wait(0.0005):
            self._producer.produce(self._topic, b"v" * 50, partition=number % self._partitions)
            self._producer.poll(0)
            number += 1

    def finish(self) -> None:
        """Returns when all is acknowledged."""
        self._stopping.set()
        self.join()
        assert self._producer.flush(60) == 0


async def follow(owner: Owner, until: asyncio.Event) -> None:
    while not until.is_set():
        owner.take()
        await asyncio.sleep(0.01)


@pytest.mark.timeout(180)
async def test_brokers_that_stop_and_come_back_under_load(kafka3: KafkaCluster, kit3: KafkaKit) -> None:
    topic = kit3.make_topic(3)
    writer = Writer(kafka3.bootstrap, topic, 3)
    writer.start()
    done = asyncio.Event()
    async with owning(settings_for(kafka3)) as owner:
        owner.patience_s = 60.0
        for partition in range(3):
            owner.assign(topic, partition, 0)
        following = asyncio.create_task(follow(owner, done))
        for broker, stop in ((0, kafka3.stop_broker), (1, kafka3.kill_broker)):
            await asyncio.to_thread(stop, broker)
            try:
                await asyncio.sleep(2)  # written to without it
            finally:
                await asyncio.to_thread(kafka3.start_broker, broker)
        await asyncio.to_thread(writer.finish)
        done.set()
        await following
        for partition in range(3):
            stop_at = (await asyncio.to_thread(kit3.offsets, topic, partition))[1]
            got = await owner.read_to(stop_at, topic, partition)
            assert stop_at > 0
            assert (got.records, got.holes, got.unreadable, got.unread) == (((0, stop_at),), (), (), ())
            assert [one.offset() for one in await asyncio.to_thread(kit3.read, topic, partition)] == list(range(stop_at))
        assert {one.kind for one in owner.troubles} <= {TroubleKind.NO_LEADER, TroubleKind.UNREACHABLE}


@pytest.mark.timeout(180)
async def test_an_unclean_election_is_told_as_truncation(kafka3: KafkaCluster, kit3: KafkaKit) -> None:
    """The new leader lacks what the old one had acknowledged alone; then it grows beyond that, so that no offset is out of range."""
    topic = "unclean"
    config = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
    made = kit3.admin.create_topics([NewTopic(topic, 1, config=config, replica_assignment=[[0, 1]])])
    await asyncio.to_thread(made[topic].result, 30)
    await asyncio.to_thread(kit3.await_partitions, topic, 1)
    loose = {"acks": "1"}
    down: set[int] = set()
    try:
        async with owning(settings_for(kafka3)) as owner:
            owner.patience_s = 60.0
            await asyncio.to_thread(kit3.produce, topic, 0, 10)
            kafka3.kill_broker(1)
            down.add(1)
            await asyncio.to_thread(kit3.produce, topic, 0, 20, conf=loose)
            owner.assign(topic, 0, 0)
            # What the old leader has alone counts as committed once the other one is out of the in-sync replicas.
            before = await owner.read_to(30, topic)
            assert before.records == ((0, 30),)
            owner.reader.unassign(topic, 0)
            kafka3.kill_broker(0)
            down.add(0)
            await asyncio.to_thread(kafka3.start_broker, 1)
            down.remove(1)
            written = await asyncio.to_thread(kit3.produce, topic, 0, 5, conf=loose)
            assert written == list(range(10, 15))
            await expect_cut(owner, topic, before)
            await asyncio.to_thread(kit3.produce, topic, 0, 40, conf=loose)
            await expect_cut(owner, topic, before)
            owner.assign(topic, 0, 10, leader_epoch=0)
            assert (await owner.read_to(55, topic)).records == ((10, 55),)
    finally:
        for broker in down:
            await asyncio.to_thread(kafka3.start_broker, broker)
        kit3.delete_topics(topic)


async def expect_cut(owner: Owner, topic: str, before: LogRead) -> None:
    owner.troubles.clear()
    owner.assign(topic, 0, 30, topic_id=before.topic_id, leader_epoch=before.leader_epoch)
    cut = await owner.trouble(TroubleKind.TRUNCATED)
    assert (cut.position, cut.end_offset) == (30, 10)
    assert (topic, 0) not in owner.reads


# ---------------------------------------------------------------------------------------------- damage on disk


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster(1) as cluster:
        yield cluster


def batches_of(log: bytes) -> list[Batch]:
    return list(whole_batches(memoryview(log), 0, len(log)))


async def test_segments_damaged_on_disk(own_kafka: KafkaCluster) -> None:
    kit = KafkaKit(own_kafka.bootstrap)
    names = ("flipped", "cut", "shifted", "short")
    for name in names:
        kit.make_topic(name=name)
        for _ in range(8):
            kit.produce(name, 0, 5)
    own_kafka.stop_broker(0)
    files: dict[str, Path] = {name: own_kafka.log_dir(0) / f"{name}-0" / f"{0:020}.log" for name in names}
    logs = {name: path.read_bytes() for name, path in files.items()}
    third = batches_of(logs["flipped"])[2]
    files["flipped"].write_bytes(flip(logs["flipped"], third.stop - 2))
    files["cut"].write_bytes(logs["cut"][: third.at] + logs["cut"][third.stop :])
    last = batches_of(logs["shifted"])[-1]
    files["shifted"].write_bytes(logs["shifted"][: last.at] + (last.base + 5).to_bytes(8, "big") + logs["shifted"][last.at + 8 :])
    files["short"].write_bytes(logs["short"][: third.at + 60] + b"\x04" + logs["short"][third.at + 61 :])
    own_kafka.start_broker(0)
    expected = {
        "flipped": (40, ((0, 10), (15, 40)), (), ((10, 15),)),
        "cut": (40, ((0, 10), (15, 40)), ((10, 15),), ()),
        "shifted": (45, ((0, 35), (40, 45)), ((35, 40),), ()),
        "short": (40, ((0, 10), (15, 40)), (), ((10, 15),)),
    }
    settings = settings_for(own_kafka)
    async with owning(settings) as owner:
        for name in names:
            owner.assign(name, 0, 0)
        for name, (end, records, holes, unreadable) in expected.items():
            got = await owner.read_to(end, name)
            assert (got.records, got.holes, got.unreadable) == (records, holes, unreadable), name
            found = await look(settings, name, 0, got.topic_id, COMMITTED, ((8, 17), (36, 38)))
            assert (found.upto, found.unreadable) == (38, unreadable), name
            assert found.holes == (((36, 38),) if name == "shifted" else holes), name
    kit.close()


async def test_a_broker_that_freezes(own_kafka: KafkaCluster) -> None:
    kit = KafkaKit(own_kafka.bootstrap)
    topic = kit.make_topic()
    kit.produce(topic, 0, 10)
    settings = settings_for(own_kafka)
    impatient = KafkaSettings(settings.bootstrap_servers, request_timeout_ms=1500)
    async with owning(impatient) as owner:
        owner.assign(topic, 0, 0)
        await owner.read_to(10, topic)
        own_kafka.pause_broker(0)
        begun = time.monotonic()
        try:
            await owner.trouble(TroubleKind.UNREACHABLE)
            assert 1.0 < time.monotonic() - begun < 15
        finally:
            own_kafka.resume_broker(0)
        await asyncio.to_thread(kit.produce, topic, 0, 10)
        assert (await owner.read_to(20, topic)).records == ((0, 20),)
    kit.close()
