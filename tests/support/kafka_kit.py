"""What a test does to a real Kafka from outside: make topics, write, cut, and read with a client that shares no code with ours."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

Value = bytes | None | Callable[[int], bytes | None]
"""A record's value (None is a tombstone), or a function of the record's number, counted from 0."""
Written = tuple[bytes | None, bytes | None, int]
"""Key, value and CreateTime in milliseconds (0: now)."""
Headers = Sequence[tuple[str, bytes]]

_STEP_S = 0.02
_PATIENCE_S = 30.0
_QUIET = {"log_level": 2}
"""librdkafka's own log on stderr: critical only. Brokers that are killed on purpose are no news."""


class KafkaKit:
    """Tools of one test on one cluster; ``close`` removes the topics it made."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.admin = AdminClient({"bootstrap.servers": bootstrap, **_QUIET})
        self._topics: list[str] = []

    def close(self) -> None:
        """Delete the topics that were made here."""
        self.delete_topics(*self._topics)

    # ----------------------------------------------------------------------------------------------------- topics

    def make_topic(
        self, partitions: int = 1, config: Mapping[str, str] | None = None, *, replication: int = -1, name: str | None = None
    ) -> str:
        """Make a topic and wait until every partition can be written to; its name, unique unless given.

        ``replication`` -1: the cluster's default (as many as brokers, 3 at most).
        """
        topic = name or f"t-{uuid.uuid4().hex[:12]}"
        _all(self.admin.create_topics([NewTopic(topic, partitions, replication, config=dict(config or {}))]))
        if topic not in self._topics:
            self._topics.append(topic)
        self.await_partitions(topic, partitions)
        return topic

    def add_partitions(self, topic: str, total: int) -> None:
        """Let the topic grow to ``total`` partitions and wait until they can be written to."""
        _all(self.admin.create_partitions([NewPartitions(topic, total)]))
        self.await_partitions(topic, total)

    def await_partitions(self, topic: str, partitions: int) -> None:
        """Return when each of the partitions 0 to ``partitions`` - 1 has a leader that answers."""
        self._list_offsets([TopicPartition(topic, partition) for partition in range(partitions)], OffsetSpec.latest())

    def delete_topics(self, *topics: str) -> None:
        """Delete topics; those that are gone already are no fault."""
        if not topics:
            return
        for future in self.admin.delete_topics(list(topics)).values():
            try:
                future.result(_PATIENCE_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
        self._topics = [topic for topic in self._topics if topic not in topics]

    def set_topic_config(self, topic: str, config: Mapping[str, str]) -> None:
        """Set some of a topic's properties, leaving the others."""
        self._set_config(self.admin, ResourceType.TOPIC, topic, config)

    def set_broker_config(self, node: int, config: Mapping[str, str | None]) -> None:
        """Set some of a broker's dynamic properties; None takes one back."""
        # This request must go to that broker, and librdkafka does not connect again for it when the broker was restarted.
        self._set_config(AdminClient({"bootstrap.servers": self.bootstrap, **_QUIET}), ResourceType.BROKER, str(node), config)

    def _set_config(self, admin: AdminClient, kind: ResourceType, name: str, config: Mapping[str, str | None]) -> None:
        operation = {True: AlterConfigOpType.DELETE, False: AlterConfigOpType.SET}
        entries = [ConfigEntry(key, value, incremental_operation=operation[value is None]) for key, value in config.items()]
        _all(admin.incremental_alter_configs([ConfigResource(kind, name, incremental_configs=entries)]))

    def delete_records(self, topic: str, partition: int, before: int) -> int:
        """Have the log begin at offset ``before``; the new log start offset."""
        futures = self.admin.delete_records([TopicPartition(topic, partition, before)])
        return int(_all(futures)[0].low_watermark)

    def offsets(self, topic: str, partition: int = 0, *, isolation: str = "read_uncommitted") -> tuple[int, int]:
        """Log start offset and end offset (the last stable one under ``read_committed``), half-open."""
        where = TopicPartition(topic, partition)
        level = IsolationLevel.READ_COMMITTED if isolation == "read_committed" else IsolationLevel.READ_UNCOMMITTED
        first = self._list_offsets([where], OffsetSpec.earliest())[0]
        stop = self._list_offsets([where], OffsetSpec.latest(), isolation_level=level)[0]
        return first, stop

    def committed(self, group: str, topic: str, partition: int = 0) -> int | None:
        """What the group has committed; None: nothing."""
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition)])
        (found,) = _all(self.admin.list_consumer_group_offsets([asked]))
        offset = found.topic_partitions[0].offset
        return None if offset < 0 else int(offset)

    def await_end(self, topic: str, partition: int, stop: int) -> None:
        """Return when the log's end offset is ``stop`` or beyond."""
        deadline = time.monotonic() + _PATIENCE_S
        while (end := self.offsets(topic, partition)[1]) < stop:
            assert time.monotonic() < deadline, f"{topic}/{partition} ended at {end}, not at {stop}, for {_PATIENCE_S:g} s"
            self.admin.poll(_STEP_S)

    def _list_offsets(self, partitions: Sequence[TopicPartition], spec: OffsetSpec, **options: Any) -> list[int]:
        """Ask again while there is no leader: the topic is new, or its broker has just come back."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                found = _all(self.admin.list_offsets(dict.fromkeys(partitions, spec), request_timeout=5.0, **options))
                return [int(one.offset) for one in found]
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{partitions} had no leader for {_PATIENCE_S:g} s") from error
            # librdkafka's ListOffsets keeps to the leader epoch that it knows, fenced or not, until metadata are asked for.
            self.admin.list_topics(partitions[0].topic, timeout=5.0)
            self.admin.poll(_STEP_S)

    # ---------------------------------------------------------------------------------------------------- records

    def produce(
        self,
        topic: str,
        partition: int = 0,
        n: int = 1,
        *,
        value: Value = b"value",
        key: bytes | None = None,
        headers: Headers | None = None,
        timestamp_ms: int | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Write ``n`` records and wait for their acknowledgements; their offsets.

        ``conf`` holds librdkafka's properties: ``compression.type``, ``batch.num.messages``, ``linger.ms``, ...
        """
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 5, **_QUIET, **(conf or {})})
        try:
            return _send(producer, topic, partition, n, value, key, headers, timestamp_ms)
        finally:
            producer.close()

    def write_batches(
        self, topic: str, batches: Iterable[Sequence[Written]], partition: int = 0, *, conf: Mapping[str, Any] | None = None
    ) -> None:
        """Write each of ``batches`` as one record batch, in order."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 10_000, **_QUIET, **(conf or {})})
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failed.append(error)

        try:
            for batch in batches:
                for key, value, timestamp_ms in batch:
                    producer.produce(topic, value, key, partition, on_delivery=delivered, timestamp=timestamp_ms)
                left = producer.flush(_PATIENCE_S)
                assert (left, failed) == (0, []), f"{left} records were not acknowledged, {failed} refused"
        finally:
            producer.close()

    def transact(
        self, topic: str, partition: int = 0, n: int = 1, *, commit: bool = True, value: Value = b"value", key: bytes | None = None
    ) -> list[int]:
        """Write ``n`` records in one transaction, then commit or abort it; their offsets (the marker takes the next one).

        Returns when the marker is in the log, provided that nobody else writes to the partition meanwhile.
        """
        producer = self.transactional_producer()
        try:
            producer.begin_transaction()
            offsets = _send(producer, topic, partition, n, value, key, None, None)
            if commit:
                producer.commit_transaction(_PATIENCE_S)
            else:
                producer.abort_transaction(_PATIENCE_S)
            self.await_end(topic, partition, offsets[-1] + 2)  # the coordinator answers before it writes the markers
            return offsets
        finally:
            producer.close()

    def transactions(self, topics: Sequence[str], number: int, size: int, *, abort_every: int = 0, producers: int = 1) -> None:
        """``number`` transactions of ``size`` records in partition 0 of each topic, every ``abort_every``-th of them aborted.

        Each of the ``producers`` writes its share one after the other, all at the same time.
        """
        with ThreadPoolExecutor(producers) as threads:
            shares = [range(first, number + 1, producers) for first in range(1, producers + 1)]
            for done in [threads.submit(self._transactions, topics, share, size, abort_every) for share in shares]:
                done.result()

    def _transactions(self, topics: Sequence[str], share: Iterable[int], size: int, abort_every: int) -> None:
        producer = self.transactional_producer()
        try:
            for number in share:
                producer.begin_transaction()
                for topic in topics:
                    for _ in range(size):
                        producer.produce(topic, b"value", partition=0)
                if abort_every and number % abort_every == 0:
                    producer.flush(_PATIENCE_S)  # what was not sent would be dropped
                    producer.abort_transaction(_PATIENCE_S)
                else:
                    producer.commit_transaction(_PATIENCE_S)
        finally:
            producer.close()

    def transactional_producer(self, transactional_id: str | None = None, timeout_ms: int = 60_000) -> Producer:
        """A producer whose transactions are initialised, for transactions that stay open."""
        name = transactional_id or f"test-{uuid.uuid4().hex[:12]}"
        producer = Producer({"bootstrap.servers": self.bootstrap, "transactional.id": name, "transaction.timeout.ms": timeout_ms, **_QUIET})
        producer.init_transactions(_PATIENCE_S)
        return producer

    def read(self, topic: str, partition: int = 0, *, first: int = 0, isolation: str = "read_committed") -> list[Message]:
        """All records from ``first`` to the present end, as an ordinary consumer receives them: the oracle of many tests."""
        conf = {"bootstrap.servers": self.bootstrap, "group.id": "oracle", "enable.auto.commit": False, **_QUIET}
        conf |= {"isolation.level": isolation, "enable.partition.eof": True, "auto.offset.reset": "error", "fetch.wait.max.ms": 20}
        consumer = Consumer(conf)
        try:
            start, stop = self.offsets(topic, partition, isolation=isolation)
            consumer.list_topics(topic, timeout=5.0)  # otherwise the first look for the leader comes a second later
            consumer.assign([TopicPartition(topic, partition, max(first, start))])
            return _read_to(consumer, stop)
        finally:
            consumer.close()

    def delivered(self, topic: str, partition: int = 0, *, isolation: str = "read_committed") -> list[int]:
        """The offsets of :meth:`read`."""
        return [offset for one in self.read(topic, partition, isolation=isolation) if (offset := one.offset()) is not None]


def _read_to(consumer: Consumer, stop: int) -> list[Message]:
    found: list[Message] = []
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is None:
            continue
        error = message.error()
        if error is None:
            found.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            offset = message.offset()
            if offset is not None and offset >= stop:
                return found
        else:
            raise KafkaException(error)
    raise AssertionError(f"the end at {stop} was not reached within {_PATIENCE_S:g} s; {len(found)} records were")


def _send(
    producer: Producer,
    topic: str,
    partition: int,
    n: int,
    value: Value,
    key: bytes | None,
    headers: Headers | None,
    timestamp_ms: int | None,
) -> list[int]:
    """Produce and flush; offsets in the order of the records. Raises KafkaException for the first record that failed."""
    offsets: list[int] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise KafkaException(error)
        offset = message.offset()
        assert offset is not None
        offsets.append(offset)

    options: dict[str, Any] = {} if timestamp_ms is None else {"timestamp": timestamp_ms}
    for number in range(n):
        data = value(number) if callable(value) else value
        while True:
            try:
                producer.produce(topic, data, key, partition, on_delivery=delivered, headers=list(headers or []), **options)
                break
            except BufferError:  # librdkafka's queue is full: let it deliver
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(_PATIENCE_S)
    assert left == 0, f"{left} records were not acknowledged within {_PATIENCE_S:g} s"
    return offsets


def _all(futures: Mapping[Any, Future[Any]]) -> list[Any]:
    return [future.result(_PATIENCE_S) for future in futures.values()]
