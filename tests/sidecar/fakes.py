"""A producer and a consumer that do what they are told.

Not imitated: partitioning, batching, the network, group membership, rebalances other than those that a test calls.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

Told = Callable[[KafkaError | None, Any], None]


class FakeProducer:
    """Acknowledges at the next ``poll``, unless it holds; ``failures`` are answered first, ``refusals`` raised first.

    ``missing``: partitions that it does not know.
    """

    def __init__(self, journal: list[str]) -> None:
        self.journal = journal
        self.records: list[tuple[str, int, bytes]] = []
        """Everything handed over: topic, partition, value."""
        self.acknowledged: list[tuple[str, int, bytes]] = []
        self.failures: deque[KafkaError] = deque()
        self.refusals: deque[Exception] = deque()
        self.missing: set[tuple[str, int]] = set()
        self.changed = threading.Condition()
        self.purged = False
        self._holding = False
        self._open: deque[tuple[tuple[str, int, bytes], Told]] = deque()

    def hold(self) -> None:
        with self.changed:
            self._holding = True

    def release(self) -> None:
        with self.changed:
            self._holding = False
            self.changed.notify_all()

    def produce(self, topic: str, value: bytes, *, partition: int, on_delivery: Told) -> None:
        with self.changed:
            if self.refusals:
                raise self.refusals.popleft()
            if (topic, partition) in self.missing:
                raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
            record = (topic, partition, value)
            self.records.append(record)
            self._open.append((record, on_delivery))
            self.journal.append("produce")
            self.changed.notify_all()

    def poll(self, timeout: float) -> int:
        with self.changed:
            self.changed.wait_for(lambda: bool(self._open) and not self._holding, timeout)
            due = [] if self._holding else list(self._open)
            if not self._holding:
                self._open.clear()
        for record, told in due:
            if self.failures:
                told(self.failures.popleft(), None)
                continue
            self.acknowledged.append(record)
            self.journal.append("acknowledged")
            told(None, None)
        return len(due)

    def purge(self) -> None:
        self.purged = True

    def await_records(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.records) >= number, 10), f"{len(self.records)} of {number} records"

    def said(self) -> list[dict[str, Any]]:
        """The observations acknowledged."""
        return [json.loads(value) for _, _, value in self.acknowledged]


class FakeMessage:
    """A record, or an event where ``problem`` is given."""

    def __init__(self, topic: str, partition: int, offset: int | None, problem: KafkaError | None = None) -> None:
        self._where = (topic, partition, offset)
        self._problem = problem

    def error(self) -> KafkaError | None:
        return self._problem

    def topic(self) -> str:
        return self._where[0]

    def partition(self) -> int:
        return self._where[1]

    def offset(self) -> int | None:
        return self._where[2]


class FakeConsumer:
    """Hands out ``queue``; ``commits`` are the arguments it was given."""

    def __init__(self, journal: list[str], *, auto_store: bool = True) -> None:
        self.journal = journal
        self.queue: deque[Any] = deque()
        self.commits: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.commit_error: Exception | None = None
        self.stored: list[dict[str, Any]] = []
        self.callbacks: dict[str, Callable[..., Any]] = {}
        self.closed = False
        self.note = "mine"
        self._auto_store = auto_store

    def poll(self, timeout: float = -1) -> Any:
        return self.queue.popleft() if self.queue else None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Any]:
        return [self.queue.popleft() for _ in range(min(num_messages, len(self.queue)))]

    def commit(self, *args: Any, **kwargs: Any) -> list[TopicPartition] | None:
        self.journal.append("commit")
        self.commits.append((args, kwargs))
        if self.commit_error is not None:
            raise self.commit_error
        return None if kwargs.get("asynchronous", True) else [TopicPartition("orders", 0, 1)]

    def store_offsets(self, **kwargs: Any) -> None:
        if self._auto_store:
            raise KafkaException(KafkaError(KafkaError._INVALID_ARG))
        self.stored.append(kwargs)

    def subscribe(self, topics: list[str], **callbacks: Callable[..., Any]) -> None:
        self.callbacks = callbacks

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.journal.append("assign")

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.journal.append("incremental_assign")

    def unassign(self) -> None:
        self.journal.append("unassign")

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self.journal.append("incremental_unassign")

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(one.topic, one.partition, 77) for one in partitions]

    def close(self) -> None:
        self.closed = True

    def deliver(self, topic: str, partition: int, *offsets: int) -> None:
        self.queue.extend(FakeMessage(topic, partition, offset) for offset in offsets)
