"""How much the sidecar says beside what it reads, and how soon a skipped record is news."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cluster import KafkaCluster

from gapstream_sidecar import Sidecar
from scripts.bench.ground import CALL_S, VALUE_BYTES, CannotTellError
from scripts.bench.ground import worker as real_worker
from scripts.bench.sidecar_loop import APP
from tests.support.rig import Alerts

RATE = 100_000
PARTITIONS = 10
SKIP_EVERY_S = 0.1
"""Each partition once a second."""
WARM_S = 10.0
"""The first observations are behind us then, and the broker's compiler is done with most."""
FEWEST = 30
PATIENCE_S = 60.0
Place = tuple[int, int]
"""Partition and offset."""


def share_said(cluster: KafkaCluster, seconds: float) -> float:
    """Bytes of the observations over those of a topic that gets ``RATE`` records/s, all read in order and committed."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    said = f"{APP}.observations.{topic}"
    _make(cluster, topic, PARTITIONS)
    _make(cluster, said, PARTITIONS)
    total = int(RATE * seconds)
    writing = _writing(cluster, topic, total, seconds)
    conf = {"bootstrap.servers": cluster.bootstrap, "group.id": topic, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    with Sidecar({"bootstrap.servers": cluster.bootstrap}, sink="billing", app_id=APP) as sidecar:
        consumer = sidecar.wrap(Consumer({**conf, "fetch.queue.backoff.ms": 10}))
        consumer.subscribe([topic])
        deadline = time.monotonic() + seconds * 4 + PATIENCE_S
        while total > 0:
            if time.monotonic() > deadline:
                raise CannotTellError(f"{total:,} records are missing: this machine does not write {RATE:,} a second.")
            batch = consumer.consume(10_000, 0.1)
            total -= len(batch)
            if batch:
                consumer.commit(asynchronous=True)
        consumer.close()
    writing.join()
    return _size(cluster, said) / _size(cluster, topic)


def news_ms(cluster: KafkaCluster, seconds: float) -> list[float]:
    """From each commit that passes over a skipped record to its ``gap.opened``, as a consumer of the alerts sees it, in order.

    The topic gets ``RATE`` records/s meanwhile, and everything else is read and committed.
    """
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    _make(cluster, topic, PARTITIONS)
    sinks = {"billing": {"type": "consumer", "grace": "0s"}}
    with real_worker(cluster.bootstrap, {topic: {"sinks": sinks}}) as (rig, process):
        process.ready()
        news = _News(cluster.bootstrap, f"{rig.app_id}.alerts")
        writing = _writing(cluster, topic, int(RATE * seconds), seconds)
        with Sidecar({"bootstrap.servers": cluster.bootstrap}, sink="billing", app_id=rig.app_id) as sidecar:
            skipping = _Skipping(cluster, topic, sidecar)
            skipping.read(int(RATE * seconds), seconds)
        writing.join()
        deadline = time.monotonic() + PATIENCE_S
        while not skipping.committed.keys() <= news.seen.keys() and time.monotonic() < deadline:
            time.sleep(0.1)
        news.end()
    missed = skipping.committed.keys() - news.seen.keys()
    if missed or len(skipping.committed) < FEWEST:
        raise CannotTellError(f"{len(missed)} of {len(skipping.committed)} skipped records were not told: {process.tail()}")
    return sorted((news.seen[where] - committed) * 1e3 for where, committed in skipping.committed.items())


class _Skipping:
    """Reads and commits what is written, and passes over a record now and then, in each partition in turn."""

    def __init__(self, cluster: KafkaCluster, topic: str, sidecar: Sidecar) -> None:
        self.committed: dict[Place, float] = {}
        """Skipped record -> when it was committed that it was passed over."""
        self._skipped: dict[int, int] = {}
        """Partition -> a skipped record that was not committed over yet."""
        self._topic = topic
        conf = {"bootstrap.servers": cluster.bootstrap, "group.id": topic, "enable.auto.commit": False, "auto.offset.reset": "error"}
        self._consumer = sidecar.wrap(Consumer({**conf, "fetch.queue.backoff.ms": 10, "fetch.wait.max.ms": 10}))
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])

    def read(self, total: int, seconds: float) -> None:
        """Until everything is read."""
        turn, due = 0, time.monotonic() + WARM_S
        deadline = time.monotonic() + 4 * seconds + PATIENCE_S
        while total > 0:
            if time.monotonic() > deadline:
                raise CannotTellError(f"{total:,} records are missing: this machine does not write and read {RATE:,} a second.")
            batch = self._consumer.consume(10_000, 0.02)
            total -= len(batch)
            last: dict[int, int] = {message.partition(): message.offset() for message in batch}
            over = [partition for partition, offset in self._skipped.items() if last.get(partition, -1) > offset]
            now = time.monotonic()
            self.committed |= {(partition, self._skipped.pop(partition)): now for partition in over}
            if batch:
                self._consumer.commit(asynchronous=True)
            if now >= due and self._skip(turn % PARTITIONS, last):
                turn, due, total = turn + 1, now + SKIP_EVERY_S, total - 1
        self._consumer.close()

    def _skip(self, partition: int, last: dict[int, int]) -> bool:
        """Pass over the next record of the partition, if it is known to be there and to have another behind it."""
        if partition not in last or partition in self._skipped:
            return False
        skipped = last[partition] + 1
        if self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)[1] < skipped + 2:
            return False
        self._consumer.seek(TopicPartition(self._topic, partition, skipped + 1))
        self._skipped[partition] = skipped
        return True


class _News:
    """Reads the alerts topic on a thread, and notes when which offset was opened."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.seen: dict[Place, float] = {}
        self._ended = False
        conf = {"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "fetch.wait.max.ms": 10, "isolation.level": "read_committed"}
        self._consumer = Consumer({**conf, "auto.offset.reset": "earliest", "enable.auto.commit": False})
        self._consumer.subscribe([topic])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        alerts = Alerts()
        while not self._ended:
            message: Any = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            now = time.monotonic()
            alerts.take(message)
            for (_, partition, _), gaps in alerts.open.items():
                for offset in gaps:
                    self.seen.setdefault((partition, offset), now)

    def end(self) -> None:
        """Stop reading."""
        self._ended = True
        self._thread.join(CALL_S)
        self._consumer.close()


def _writing(cluster: KafkaCluster, topic: str, total: int, seconds: float) -> threading.Thread:
    """Kafka's own producer, at ``RATE`` records/s."""

    def write() -> None:
        cluster.tool(
            "org.apache.kafka.tools.ProducerPerformance",
            *("--topic", topic, "--num-records", str(total), "--record-size", str(VALUE_BYTES), "--throughput", str(RATE)),
            *("--producer-props", f"bootstrap.servers={cluster.bootstrap}", "linger.ms=20", "compression.type=none"),
            timeout=seconds * 4 + PATIENCE_S,
        )

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def _make(cluster: KafkaCluster, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(CALL_S)


def _size(cluster: KafkaCluster, topic: str) -> int:
    return sum(segment.stat().st_size for segment in cluster.log_dir().glob(f"{topic}-*/*.log"))
