"""The log reader and the second look against a real Kafka, offset by offset beside an ordinary consumer."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import asyncio
import random
import time

import pytest
from kafka_cluster import KafkaCluster

from stream_app.core.model import Absent, LogEnds, LogRead, Run
from stream_app.kafka import batches, evidence
from stream_app.kafka.batches import add_run
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.probe import Prober, look
from stream_app.kafka.protocol import SUPPORTED, Api, Isolation
from stream_app.kafka.records import Record
from stream_app.kafka.trouble import TroubleKind
from tests.support.kafka_kit import KafkaKit
from tests.support.log_owner import owning

COMMITTED, UNCOMMITTED = Isolation.READ_COMMITTED, Isolation.READ_UNCOMMITTED


def settings_for(bootstrap: str) -> KafkaSettings:
    servers = [one.rpartition(":") for one in bootstrap.split(",")]
    return KafkaSettings(tuple((host, int(port)) for host, _, port in servers))


@pytest.fixture
def settings(kafka: KafkaCluster) -> KafkaSettings:
    return settings_for(kafka.bootstrap)


def runs_of(offsets: list[int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for offset in sorted(offsets):
        add_run(runs, offset, offset + 1)
    return tuple(runs)


def oracle(kit: KafkaKit, topic: str, partition: int, isolation: Isolation) -> tuple[Run, ...]:
    """The offsets that librdkafka delivers."""
    return runs_of(kit.delivered(topic, partition, isolation=isolation.value))


async def read_all(settings: KafkaSettings, kit: KafkaKit, topic: str, partition: int, isolation: Isolation) -> LogRead:
    stop = kit.offsets(topic, partition, isolation=isolation.value)[1]
    async with owning(settings) as owner:
        owner.assign(topic, partition, None, isolation=isolation)
        got = await owner.read_to(stop, topic, partition)
        assert owner.troubles == []
    return got


# ------------------------------------------------------------------------------------------------- plain reading


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_T35_a_dense_topic_is_read_by_its_headers(
    settings: KafkaSettings, kit: KafkaKit, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the codec, and without decompressing anything; thinned out batches: tests/kafka_real/test_log_compaction.py."""

    def never(*batch: object) -> list[Record]:
        raise AssertionError("a dense batch was decoded")

    monkeypatch.setattr(batches, "decode_batch", never)
    topic = kit.make_topic()
    before = int(time.time() * 1000)
    kit.produce(topic, 0, 1000, value=b"v" * 100, conf={"compression.type": codec, "batch.num.messages": 30})
    got = await read_all(settings, kit, topic, 0, COMMITTED)
    assert (got.position, got.records, got.absent, got.holes) == (0, ((0, 1000),), {}, ())
    assert got.min_timestamp_ms is not None
    assert got.max_timestamp_ms is not None
    assert before - 1 <= got.min_timestamp_ms <= got.max_timestamp_ms <= int(time.time() * 1000) + 1
    assert (got.log_start, got.high_watermark, got.last_stable, got.leader_epoch) == (0, 1000, 1000, 0)


async def test_several_partitions_and_topics(settings: KafkaSettings, kit: KafkaKit) -> None:
    first, second = kit.make_topic(3), kit.make_topic(2)
    sizes = {(first, 0): 400, (first, 1): 10, (first, 2): 2000, (second, 0): 1, (second, 1): 700}
    for (topic, partition), n in sizes.items():
        kit.produce(topic, partition, n)
    async with owning(settings) as owner:
        for topic, partition in sizes:
            owner.assign(topic, partition, 0, isolation=COMMITTED if partition else UNCOMMITTED)
        for (topic, partition), n in sizes.items():
            assert (await owner.read_to(n, topic, partition)).records == ((0, n),)
        info = await owner.reader.metadata([first, second])
        assert info.topics[first].topic_id == owner.reads[first, 0][0].topic_id != owner.reads[second, 0][0].topic_id
        assert (info.topics[first].partitions, info.topics[second].partitions) == (3, 2)


CAPS = [
    *({Api.FETCH: version} for version in range(SUPPORTED[Api.FETCH][0], SUPPORTED[Api.FETCH][1] + 1)),
    *({Api.METADATA: version, Api.FETCH: 12} for version in range(4, 10)),
    *({Api.METADATA: version} for version in range(10, 13)),
    *({Api.LIST_OFFSETS: version} for version in range(2, 8)),
]


@pytest.mark.parametrize("caps", CAPS, ids=lambda caps: " ".join(f"{api.name} {version}" for api, version in caps.items()))
async def test_every_version_of_the_protocol(settings: KafkaSettings, kit: KafkaKit, versions_topic: str, caps: dict[Api, int]) -> None:
    async with owning(settings, caps=caps) as owner:
        owner.assign(versions_topic, 0, None)
        got = await owner.read_to(34, versions_topic)
        ends = await owner.reader.ends(versions_topic, 0)
    assert (got.position, got.records) == (3, ((3, 20), (21, 23), (31, 33)))
    assert got.absent == {Absent.TRANSACTION_MARKER: ((20, 21), (23, 24), (30, 31), (33, 34)), Absent.ABORTED: ((24, 30),)}
    assert ends == LogEnds(3, 34, 34)


@pytest.fixture
def versions_topic(kit: KafkaKit) -> str:
    topic = kit.make_topic()
    kit.transact(topic, 0, 20)
    kit.transact(topic, 0, 2)
    kit.transact(topic, 0, 6, commit=False)
    kit.transact(topic, 0, 2)
    kit.delete_records(topic, 0, 3)
    return topic


async def test_it_follows_what_is_written(settings: KafkaSettings, kit: KafkaKit) -> None:
    topic = kit.make_topic()
    async with owning(settings, max_wait_ms=5000) as owner:
        owner.assign(topic, 0, None)
        await owner.read_to(0, topic)
        for n in range(10):
            written = time.perf_counter()
            await asyncio.to_thread(kit.produce, topic, 0, 5)
            await owner.read_to(5 * n + 5, topic)
            assert time.perf_counter() - written < 4, "the broker answered at its own leisure"


async def test_T33_batches_larger_than_a_fetch(settings: KafkaSettings, kit: KafkaKit) -> None:
    topic = kit.make_topic(2)
    for partition in range(2):
        kit.produce(topic, partition, 20, value=random.randbytes(300_000), conf={"batch.size": 900_000, "linger.ms": 50})
    async with owning(settings, max_bytes=1000, partition_max_bytes=1000) as owner:
        for partition in range(2):
            owner.assign(topic, partition, 0)
        for partition in range(2):
            assert (await owner.read_to(20, topic, partition)).records == ((0, 20),)


# -------------------------------------------------------------------------------------------------- transactions


@pytest.mark.parametrize("isolation", [COMMITTED, UNCOMMITTED])
async def test_transactions(settings: KafkaSettings, kit: KafkaKit, isolation: Isolation) -> None:
    topic = kit.make_topic()
    rng = random.Random(3)
    producers = [kit.transactional_producer() for _ in range(3)]
    for producer in producers:
        producer.begin_transaction()
    for turn in range(60):
        producer = rng.choice(producers)
        for _ in range(rng.randrange(1, 5)):
            producer.produce(topic, b"v", partition=0)
        producer.flush(10)
        if rng.random() < 0.5:
            (producer.commit_transaction if rng.random() < 0.5 else producer.abort_transaction)(10)
            producer.begin_transaction()
        if turn % 7 == 0:
            kit.produce(topic, 0, 2)
    for producer in producers:
        producer.commit_transaction(10)
        producer.close()
    kit.produce(topic, 0, 1)
    got = await read_all(settings, kit, topic, 0, isolation)
    assert got.records == oracle(kit, topic, 0, isolation)
    everything = oracle(kit, topic, 0, UNCOMMITTED)
    absent = got.absent.get(Absent.ABORTED, ())
    assert bool(absent) == (isolation is COMMITTED)
    assert runs_of([offset for runs in (got.records, absent) for first, stop in runs for offset in range(first, stop)]) == everything
    assert got.holes == ()
    # From every position the same: the list of aborted transactions is relative to the fetch.
    async with owning(settings) as owner:
        for position in rng.sample(range(got.next), 25):
            owner.assign(topic, 0, position, isolation=isolation)
            part = await owner.read_to(got.next, topic)
            assert part.records == tuple((max(first, position), stop) for first, stop in got.records if stop > position)


async def test_T09_an_open_transaction_holds_the_stable_end(settings: KafkaSettings, kit: KafkaKit) -> None:
    topic = kit.make_topic()
    kit.produce(topic, 0, 10)
    producer = kit.transactional_producer()
    producer.begin_transaction()
    producer.produce(topic, b"v", partition=0)
    producer.flush(10)
    kit.produce(topic, 0, 5)
    async with owning(settings) as owner:
        owner.assign(topic, 0, 0)
        got = await owner.read_to(10, topic)
        assert (got.high_watermark, got.last_stable) == (16, 10)
        assert await owner.reader.ends(topic, 0) == LogEnds(0, 16, 10)
        await asyncio.to_thread(producer.commit_transaction, 10)
        got = await owner.read_to(17, topic)
        assert (got.records, got.absent) == (((0, 16),), {Absent.TRANSACTION_MARKER: ((16, 17),)})
    producer.close()


# ------------------------------------------------------------------------------------------------------ retention


async def test_T16_records_deleted_in_the_middle_of_a_batch(settings: KafkaSettings, kit: KafkaKit) -> None:
    topic = kit.make_topic()
    kit.produce(topic, 0, 100, conf={"linger.ms": 100})
    async with owning(settings) as owner:
        owner.assign(topic, 0, 0)
        await owner.read_to(100, topic)
        await asyncio.to_thread(kit.delete_records, topic, 0, 37)
        await owner.until(lambda: owner.reads[topic, 0][-1].log_start == 37)
        owner.assign(topic, 0, 12)
        got = await owner.read_to(100, topic)
        assert (got.unread, got.records) == (((12, 37),), ((37, 100),))
        owner.assign(topic, 0, 12, leader_epoch=0)
        assert (await owner.read_to(100, topic)).unread == ((12, 37),)
        await asyncio.to_thread(kit.delete_records, topic, 0, 100)
        owner.assign(topic, 0, 50)
        assert (await owner.read_to(100, topic)).unread == ((50, 100),)
        assert owner.troubles == []


async def test_a_position_above_the_end(settings: KafkaSettings, kit: KafkaKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known of what was read, time decides; a leader that is no newer than our last record is never believed."""
    monkeypatch.setattr(evidence, "BELIEVE_WITHOUT_EPOCHS_S", 1.0)
    topic = kit.make_topic()
    kit.produce(topic, 0, 10)
    async with owning(settings) as owner:
        owner.assign(topic, 0, 25)
        cut = await owner.trouble(TroubleKind.OUT_OF_RANGE)
        assert (cut.position, cut.end_offset) == (25, 10)
        owner.troubles.clear()
        owner.assign(topic, 0, 25, leader_epoch=0)
        told = await owner.trouble(TroubleKind.SUSPECT)
        assert (told.position, told.end_offset) == (25, None)
        assert (topic, 0) not in owner.reads
        await asyncio.to_thread(kit.produce, topic, 0, 20)
        assert (await owner.read_to(30, topic)).records == ((25, 30),)
        assert {one.kind for one in owner.troubles} == {TroubleKind.SUSPECT}


# ---------------------------------------------------------------------------------------------------- second look


async def test_a_second_look(settings: KafkaSettings, kit: KafkaKit) -> None:
    topic = kit.make_topic(2)
    kit.produce(topic, 0, 5000, value=lambda n: None if n % 10 == 3 else b"v" * 200, conf={"compression.type": "zstd"})
    recent = int(time.time() * 1000) - 60_000
    kit.produce(topic, 1, 3, timestamp_ms=recent)
    async with owning(settings) as owner:
        topic_id = (await owner.reader.metadata([topic])).topics[topic].topic_id
    kit.delete_records(topic, 0, 100)
    found = await look(settings, topic, 0, topic_id, COMMITTED, ((50, 120), (2003, 2004), (4990, 5000)))
    assert (found.upto, found.log_start, found.holes, found.unreadable) == (5000, 100, (), ())
    assert found.tombstones == ((103, 104), (113, 114), (2003, 2004), (4993, 4994))
    assert set(found.timestamps) == {100, 119, 2003, 4990, 4999}
    other = await look(settings, topic, 1, topic_id, COMMITTED, ((0, 2),))
    assert other.timestamps == {0: recent, 1: recent}
    times = {one.offset(): one.timestamp()[1] for one in kit.read(topic)}
    assert found.timestamps == {offset: times[offset] for offset in found.timestamps}


async def test_a_second_look_at_one_offset_is_quick(settings: KafkaSettings, kit: KafkaKit) -> None:
    topic = kit.make_topic()
    kit.produce(topic, 0, 20_000, value=b"v" * 100)
    took = []
    for offset in range(10_000, 10_010):
        begun = time.perf_counter()
        found = await look(settings, topic, 0, bytes(16), COMMITTED, ((offset, offset + 1),))
        took.append(time.perf_counter() - begun)
        assert list(found.timestamps) == [offset]
    assert min(took) < 0.1, took


@pytest.mark.parametrize("version", [5, 11, 12, 13])
async def test_a_second_look_by_old_versions(settings: KafkaSettings, kit: KafkaKit, versions_topic: str, version: int) -> None:
    async with Prober(settings, caps={Api.FETCH: version}) as prober:
        found = await prober.look(versions_topic, 0, bytes(16), COMMITTED, ((0, 5), (18, 34)))
    assert (found.upto, found.log_start, found.holes, found.tombstones) == (34, 3, (), ())
    assert set(found.timestamps) >= {3, 4, 18}
