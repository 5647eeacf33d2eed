"""How much the sidecar says beside what it reads, and how soon a skipped record is news."""

from __future__ import annotations

import statistics
import threading
import time
import uuid
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cluster import KafkaCluster

from gapstream_sidecar import Sidecar
from scripts.bench.ground import CALL_S, VALUE_BYTES, CannotTellError
from scripts.bench.ground import worker as real_worker
from scripts.bench.sidecar_loop import APP
from tests.support.rig import Alerts

RATE = 100_000
PARTITIONS = 10
SKIP_EVERY_S = 0.4
FEWEST = 10
PATIENCE_S = 60.0


def share_said(cluster: KafkaCluster, seconds: float) -> float:
    """Bytes of the observations over those of a topic that gets ``RATE`` records/s, all read in order and committed."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    said = f"{APP}.observations.{topic}"
    _make(cluster, topic, PARTITIONS)
    _make(cluster, said, PARTITIONS)
    total = int(RATE * seconds)
    writing = threading.Thread(
        target=lambda: cluster.tool(
            "org.apache.kafka.tools.ProducerPerformance",
            *("--topic", topic, "--num-records", str(total), "--record-size", str(VALUE_BYTES), "--throughput", str(RATE)),
            *("--producer-props", f"bootstrap.servers={cluster.bootstrap}", "linger.ms=20", "compression.type=none"),
            timeout=seconds * 4 + PATIENCE_S,
        )
    )
    writing.start()
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


def news_ms(cluster: KafkaCluster, seconds: float) -> float:
    """From the commit that passes over a skipped record to its ``gap.opened``, as a consumer of the alerts sees it; the median."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    _make(cluster, topic, 1)
    sinks = {"billing": {"type": "consumer", "grace": "0s"}}
    skipped: dict[int, float] = {}
    with real_worker(cluster.bootstrap, {topic: {"sinks": sinks}}) as (rig, process):
        process.ready()
        news = _News(cluster.bootstrap, f"{rig.app_id}.alerts")
        with Sidecar({"bootstrap.servers": cluster.bootstrap}, sink="billing", app_id=rig.app_id) as sidecar:
            _process(cluster, topic, sidecar, seconds, skipped)
        deadline = time.monotonic() + PATIENCE_S
        while len(news.seen) < len(skipped) and time.monotonic() < deadline:
            time.sleep(0.1)
        news.end()
    delays = [news.seen[offset] - committed for offset, committed in skipped.items() if offset in news.seen]
    if len(delays) < max(FEWEST, len(skipped) // 2):
        raise CannotTellError(f"{len(delays)} of {len(skipped)} skipped records were told: {process.tail()}")
    return statistics.median(delays) * 1e3


def _process(cluster: KafkaCluster, topic: str, sidecar: Sidecar, seconds: float, skipped: dict[int, float]) -> None:
    """Read what is written meanwhile, and pass over a record now and then; notes the time of the commit that does."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "linger.ms": 1})
    conf = {"bootstrap.servers": cluster.bootstrap, "group.id": topic, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    consumer = sidecar.wrap(Consumer({**conf, "fetch.wait.max.ms": 10}))
    consumer.assign([TopicPartition(topic, 0, 0)])
    end = time.monotonic() + seconds
    due = time.monotonic() + 2.0  # the first observations are behind us then
    while time.monotonic() < end:
        producer.produce(topic, b"x" * VALUE_BYTES, partition=0)
        producer.poll(0)
        messages = consumer.consume(1_000, 0.02)
        if not messages:
            continue
        asked: Any = messages[-1]
        if time.monotonic() >= due:
            due = time.monotonic() + SKIP_EVERY_S
            offset = asked.offset()
            skipped[offset + 1] = 0.0
            consumer.commit(message=asked, asynchronous=True)
            for _ in range(3):  # or there would be nothing to seek to
                producer.produce(topic, b"x" * VALUE_BYTES, partition=0)
            producer.flush(CALL_S)
            consumer.seek(TopicPartition(topic, 0, offset + 2))
        else:
            passed = [one for one, when in skipped.items() if not when and one < asked.offset()]
            for one in passed:
                skipped[one] = time.monotonic()
            consumer.commit(message=asked, asynchronous=True)
    for one in [one for one, when in skipped.items() if not when]:
        del skipped[one]
    consumer.close()


class _News:
    """Reads the alerts topic on a thread, and notes when which offset was opened."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.seen: dict[int, float] = {}
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
            for gaps in alerts.open.values():
                for offset in gaps:
                    self.seen.setdefault(offset, now)

    def end(self) -> None:
        """Stop reading."""
        self._ended = True
        self._thread.join(CALL_S)
        self._consumer.close()


def _make(cluster: KafkaCluster, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(CALL_S)


def _size(cluster: KafkaCluster, topic: str) -> int:
    return sum(segment.stat().st_size for segment in cluster.log_dir().glob(f"{topic}-*/*.log"))
