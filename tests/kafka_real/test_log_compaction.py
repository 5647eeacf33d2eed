"""Compaction: batches thinned out, emptied and gone, tombstones and markers that go later, and a sink that is slower than the cleaner."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from confluent_kafka import KafkaException
from kafka_cluster import KafkaCluster

from stream_app.core.model import LogRead
from stream_app.kafka import batches, patches
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.probe import look
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.records import decode_batch
from tests.support.kafka_kit import KafkaKit, Written
from tests.support.log_files import gaps_between, headers, is_cleaned
from tests.support.log_owner import owning
from tests.support.rig import Rig, eventually
from tests.support.scene import SINKS, Scene, event_ranges, runs

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
BEFORE = (*CODECS, "producers", "emptied", "horizon", "flipped")
"""Compacted before the worker sees them; the others while it watches."""
TOPICS = SimpleNamespace(**{name: f"{name}-{uuid.uuid4().hex[:8]}" for name in (*BEFORE, "slow", "turned", "away")})
EAGER = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.001", "file.delete.delay.ms": "100"}
COMPACT = {"cleanup.policy": "compact", "delete.retention.ms": "0", **EAGER}
HELD = {**COMPACT, "min.cleanable.dirty.ratio": "1"}
"""The cleaner leaves it alone, until the ratio is lowered."""
ROUNDS = 12
START_MS = int(time.time() * 1000) - 3_600_000


def rounds(first: int = 0, tombstones: bool = False) -> list[list[Written]]:
    """Batches of ten keys that the next batch writes again; every other one has a key of its own too.

    Compacted, every other batch is gone and of the rest one record is left; with ``tombstones`` one or two in most of them, of which
    the tombstones stay for as long as the topic says. Each batch begins a segment: so they are timed.
    """
    found: list[list[Written]] = []
    for number in range(first, first + ROUNDS):
        ms = START_MS + number * 1_000
        batch: list[Written] = [(b"%d" % key, b"value" * 20, ms + key) for key in range(10)]
        if number % 2 == 0:
            batch.insert(5, (b"own-%d" % number, b"value", ms + 5))
        if tombstones and number % 4 == 0:
            batch.insert(6, (b"own-%d" % (number - 2), None, ms + 6))
        if tombstones and number % 4 == 1:
            batch.insert(5, (b"never-%d" % number, None, ms + 5))
        found.append(batch)
    return found


def fence(kit: KafkaKit, topic: str, name: str | None = None) -> None:
    """An open transaction that the producer's next life aborts: the marker's epoch is not that of the records, as after a crash."""
    name = name or f"fenced-{uuid.uuid4().hex[:8]}"
    dead = kit.transactional_producer(name)
    dead.begin_transaction()
    dead.produce(topic, b"value", b"fenced", partition=0, timestamp=0)
    dead.flush(30)
    kit.transactional_producer(name).close()
    with pytest.raises(KafkaException, match="fenced"):
        dead.close()


def write_producers(kit: KafkaKit) -> None:
    """A producer for each key, the last of them in a transaction; another one then writes all of them again."""
    for key in range(4):
        kit.write_batches(TOPICS.producers, [[(b"%d" % key, b"value", START_MS + key)]], conf={"enable.idempotence": True})
    producer = kit.transactional_producer()
    producer.begin_transaction()
    producer.produce(TOPICS.producers, b"value", b"4", 0, timestamp=START_MS + 4)
    producer.commit_transaction(30)
    producer.close()
    since = int(time.time() * 1000) - START_MS
    kit.write_batches(TOPICS.producers, rounds(first=2 * (since // 2_000) + 60))  # later than the marker, whose time is now


def await_cleaned(cluster: KafkaCluster, topics: Iterable[str]) -> None:
    for topic in topics:
        eventually(partial(is_cleaned, cluster, topic), f"{topic} compacted")


def empty_markers(cluster: KafkaCluster, kit: KafkaKit, topics: Sequence[str]) -> None:
    """Have the cleaner take the record out of a marker whose batch it has to keep (its producer is known still).

    It takes the transaction's records first, marks the marker next time, and empties it after that; each time something must
    be written for it to begin.
    """
    for topic in topics:
        fence(kit, topic)

    def emptied() -> bool:
        for topic in topics:
            kit.transact(topic, 0, 1, commit=False, key=b"rolls the segment")
        await_cleaned(cluster, topics)
        return all(any(one.control and not one.records for one in headers(cluster, topic)) for topic in topics)

    eventually(emptied, f"emptied markers in {', '.join(topics)}")


def write_emptied(cluster: KafkaCluster, kit: KafkaKit) -> None:
    kit.write_batches(TOPICS.emptied, [[(b"key", b"value", 0)]])
    empty_markers(cluster, kit, [TOPICS.emptied])
    kit.produce(TOPICS.emptied, 0, 3, key=b"last")


@pytest.fixture(scope="module", autouse=True)
def scene(kafka: KafkaCluster, shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Scene:
    kit = shared_kit
    configs = dict.fromkeys(vars(TOPICS).values(), COMPACT)
    configs |= dict.fromkeys((TOPICS.slow, TOPICS.away), HELD)
    configs[TOPICS.horizon] = COMPACT | {"delete.retention.ms": "3600000"}
    configs[TOPICS.turned] = HELD | {"cleanup.policy": "delete"}
    for topic, config in configs.items():
        kit.make_topic(1, config, name=topic)
    with ThreadPoolExecutor(8) as writing:
        writes = [writing.submit(kit.write_batches, vars(TOPICS)[codec], rounds(), conf={"compression.type": codec}) for codec in CODECS]
        writes += [writing.submit(write_producers, kit), writing.submit(write_emptied, kafka, kit)]
        writes += [writing.submit(kit.write_batches, TOPICS.flipped, rounds())]
        writes += [
            writing.submit(kit.write_batches, topic, rounds(tombstones=True)) for topic in (TOPICS.horizon, TOPICS.slow, TOPICS.turned)
        ]
        for write in writes:
            write.result()
    await_cleaned(kafka, (vars(TOPICS)[name] for name in BEFORE if name != "emptied"))
    kit.set_topic_config(TOPICS.flipped, {"cleanup.policy": "delete"})
    rig = make_rig(dict.fromkeys(vars(TOPICS).values(), SINKS))
    return Scene(kit, rig, rig.worker().start().ready())


def settings_of(cluster: KafkaCluster) -> KafkaSettings:
    host, _, port = cluster.bootstrap.partition(":")
    return KafkaSettings(((host, int(port)),))


async def read_log(cluster: KafkaCluster, kit: KafkaKit, topic: str, isolation: Isolation = Isolation.READ_COMMITTED) -> LogRead:
    async with owning(settings_of(cluster)) as owner:
        owner.assign(topic, 0, None, isolation=isolation)
        got = await owner.read_to(kit.offsets(topic, isolation=isolation.value)[1], topic)
        assert owner.troubles == []
    return got


def halfopen(offsets: Iterable[int]) -> tuple[tuple[int, int], ...]:
    return tuple((first, last + 1) for first, last in runs(offsets))


@pytest.mark.parametrize("isolation", list(Isolation))
async def test_T11_the_reader_and_a_second_look_beside_an_ordinary_consumer(
    kafka: KafkaCluster, scene: Scene, isolation: Isolation
) -> None:
    topic = TOPICS.producers
    got = await read_log(kafka, scene.kit, topic, isolation)
    assert got.records == halfopen(scene.kit.delivered(topic))
    holes = tuple((offset, offset + 1) for first, stop in got.holes for offset in range(first, stop))
    found = await look(settings_of(kafka), topic, 0, got.topic_id, isolation, holes)
    assert (found.upto, found.holes) == (holes[-1][1], got.holes)


def test_T11_batches_that_are_thinned_out_and_gone(kafka: KafkaCluster, scene: Scene) -> None:
    topic = TOPICS.none
    found, offsets, end = headers(kafka, topic), scene.kit.delivered(topic), scene.kit.offsets(topic)[1]
    assert [one for one in found if one.thinned]
    assert gaps_between(found) or found[0].base > 0
    scene.judge(topic, {offsets[2], offsets[-3]}, absent={"compacted": end - len(offsets)}, log_read_offset=end)
    assert {one["type"] for one in scene.told(topic)} == {"gap.opened"}


def test_T12_emptied_batches_of_producers_that_are_known_still(kafka: KafkaCluster, scene: Scene) -> None:
    topic = TOPICS.producers
    empty = [one for one in headers(kafka, topic) if not one.records and not one.control]
    assert len(empty) >= 5, "one for each producer whose last batch it is, transactional or not"
    offsets, end = scene.kit.delivered(topic), scene.kit.offsets(topic)[1]
    absent = {"compacted": end - len(offsets) - 1, "transaction_marker": 1}
    scene.judge(topic, {offsets[1]}, absent=absent, log_read_offset=end)


def test_T13_an_emptied_marker(scene: Scene) -> None:
    topic = TOPICS.emptied
    end = scene.kit.offsets(topic)[1]
    row = scene.await_row(topic, {"log_read_offset": end, "state": "ok"}, sink="log")
    assert row["records"] == len(scene.kit.delivered(topic))
    assert row["records"] + sum(row["absent"].values()) == end
    assert row["absent"].keys() >= {"compacted", "transaction_marker"}
    assert scene.await_commit(topic) == end


async def read_by_aiokafka(bootstrap: str, topic: str) -> list[int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", auto_offset_reset="none", group_id=None)
    await consumer.start()
    try:
        where = TopicPartition(topic, 0)
        consumer.assign([where])
        consumer.seek(where, 0)
        end = (await consumer.end_offsets([where]))[where]
        found: list[int] = []
        while await consumer.position(where) < end:
            found += [one.offset for some in (await consumer.getmany(where, timeout_ms=500)).values() for one in some]
        return found
    finally:
        await consumer.stop()


async def test_T13_an_emptied_marker_through_aiokafka(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the changelogs, the status and the observations are read with, as it is and as we mend it."""
    bootstrap, topic = scene.rig.bootstrap, TOPICS.emptied
    assert await read_by_aiokafka(bootstrap, topic) == scene.kit.delivered(topic)
    monkeypatch.setattr(PartitionRecords, "_contains_abort_marker", patches._contains_abort_marker)
    with pytest.raises(KafkaError, match="did not contain any records"):
        await read_by_aiokafka(bootstrap, topic)


async def test_T14_times_of_batches_whose_base_is_a_delete_horizon(kafka: KafkaCluster, scene: Scene) -> None:
    topic = TOPICS.horizon
    marked = [one for one in headers(kafka, topic) if one.delete_horizon]
    assert {one.records == 1 for one in marked} == {True, False}, "one record, whose time the header tells, and more"
    got = await read_log(kafka, scene.kit, topic)
    times = [one.timestamp()[1] for one in scene.kit.read(topic)]
    assert (got.min_timestamp_ms, got.max_timestamp_ms) == (min(times), max(times))
    assert max(times) < START_MS + 60_000, "not the time of removal"
    scene.judge(topic, {scene.kit.delivered(topic)[2]})


def test_T14_a_sink_that_is_slower_than_the_cleaner(kafka: KafkaCluster, scene: Scene) -> None:
    """Records and tombstones that were read go before the sink comes to them: explained, not missing; what was counted stays."""
    topic, kit = TOPICS.slow, scene.kit
    read = scene.await_row(topic, {"log_read_offset": kit.offsets(topic)[1]}, sink="log")["records"]
    scene.observer.received(topic, 0, [0, 29])
    scene.await_row(topic, {"observed": 30, "missing": 0})
    kit.set_topic_config(topic, EAGER)
    await_cleaned(kafka, [topic])
    tombstones = [one.offset() for one in kit.read(topic) if one.value() is None]
    kit.write_batches(topic, rounds(ROUNDS))
    await_cleaned(kafka, [topic])
    left = kit.delivered(topic)
    assert tombstones
    assert not set(left) & set(tombstones), "they went the second time"
    lost = {left[-2]}
    scene.observer.received(topic, 0, *runs({offset for offset in left if offset >= 30} - lost))
    end, early = kit.offsets(topic)[1], sum(offset < 30 for offset in left)
    wanted = {"missing": 1, "records": end, "explained": {"compacted": end - 30 - (len(left) - early)}, "duplicates": 0}
    scene.await_row(topic, wanted)
    assert read < end
    scene.await_missing(topic, lost)
    assert {one["type"] for one in scene.told(topic)} == {"gap.opened"}


def test_T15_holes_from_before_first_sight(scene: Scene) -> None:
    """The topic is not compacted any more, and nobody knows that it was: what was there then is not held against the log."""
    topic, kit = TOPICS.flipped, scene.kit
    offsets, end = kit.delivered(topic), kit.offsets(topic)[1]
    scene.judge(topic, {offsets[2]}, absent={"compacted": end - len(offsets)}, log_read_offset=end)
    assert scene.row(topic, sink="log")["missing"] == 0
    assert {one["type"] for one in scene.told(topic)} == {"gap.opened"}


def test_T15_a_topic_that_is_compacted_from_now_on(kafka: KafkaCluster, scene: Scene) -> None:
    topic, kit = TOPICS.turned, scene.kit
    end = kit.offsets(topic)[1]
    scene.await_row(topic, {"log_read_offset": end, "records": end}, sink="log")
    scene.observer.received(topic, 0, [0, 4])
    scene.await_row(topic, {"observed": 5, "missing": 0})
    kit.set_topic_config(topic, {"cleanup.policy": "compact", **EAGER})
    await_cleaned(kafka, [topic])
    left = [offset for offset in kit.delivered(topic) if offset > 4]
    scene.observer.received(topic, 0, *runs(left[1:]))
    scene.await_row(topic, {"missing": 1, "explained": {"compacted": end - 5 - len(left)}})
    scene.await_missing(topic, {left[0]})
    assert event_ranges(scene.told(topic)) == [("gap.opened", "billing", "not_received", [[left[0], left[0]]])]


@pytest.fixture(scope="module")
def restarted(kafka: KafkaCluster, scene: Scene) -> Scene:
    """While no worker ran a topic was compacted and then not any more, and the cleaner emptied markers of our own topics."""
    kit, app = scene.kit, scene.rig.app_id
    scene.await_row(TOPICS.away, {"log_read_offset": 0}, sink="log")
    own = [f"{app}-{TOPICS.emptied}-changelog", f"{app}.status"]
    assert scene.worker.stop() == 0
    kit.write_batches(TOPICS.away, rounds())
    kit.set_topic_config(TOPICS.away, EAGER)
    for topic in own:
        kit.set_topic_config(topic, COMPACT)
    empty_markers(kafka, kit, own)
    await_cleaned(kafka, [TOPICS.away])
    kit.set_topic_config(TOPICS.away, {"cleanup.policy": "delete"})
    shutil.rmtree(scene.rig.folder / "state-1")
    scene.worker.start().ready()
    return scene


def test_T13_emptied_markers_of_our_own_topics(restarted: Scene) -> None:
    """All state was read back from a changelog with one, and the rows from a status topic with one."""
    topic, end = TOPICS.emptied, restarted.kit.offsets(TOPICS.emptied)[1]
    row = restarted.await_row(topic, {"log_read_offset": end, "state": "ok"}, sink="log")
    assert row["records"] == len(restarted.kit.delivered(topic)), "counted once"
    assert [one for one in restarted.told(topic) if one["sink"] == "log"] == []


def test_T15_holes_of_a_compaction_that_was_known_and_is_over(restarted: Scene) -> None:
    topic, kit = TOPICS.away, restarted.kit
    offsets, end = kit.delivered(topic), kit.offsets(topic)[1]
    assert len(offsets) < end
    restarted.judge(topic, {offsets[2]}, absent={"compacted": end - len(offsets)}, log_read_offset=end)
    assert restarted.row(topic, sink="log")["missing"] == 0


async def test_T35_only_thinned_batches_are_decompressed(kafka: KafkaCluster, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every codec gives the same runs. A dense topic of each: tests/kafka_real/test_reader.py."""
    calls: list[int] = []

    def counting(view: memoryview, count: int, base: int, *rest: Any) -> Any:
        calls.append(base)
        return decode_batch(view, count, base, *rest)

    monkeypatch.setattr(batches, "decode_batch", counting)
    seen = set()
    for codec in CODECS:
        topic = vars(TOPICS)[codec]
        calls.clear()
        got = await read_log(kafka, scene.kit, topic)
        found = headers(kafka, topic)
        assert calls == [one.base for one in found if one.thinned], codec
        assert 0 < len(calls) < len(found), codec
        seen.add((got.records, got.holes))
    assert len(seen) == 1
