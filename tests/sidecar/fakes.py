"""A producer and a consumer that do what they are told.

Not imitated: partitioning, batching, the network, group membership, rebalances other than those that a test calls.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

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
            self.land(record)
            self.journal.append("acknowledged")
            told(None, None)
        return len(due)

    def land(self, record: tuple[str, int, bytes]) -> None:
        """It is in the topic; told right after."""
        self.acknowledged.append(record)

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

    def __init__(
        self, topic: str, partition: int, offset: int | None, problem: KafkaError | None = None, headers: list[Any] | None = None
    ) -> None:
        self._where = (topic, partition, offset)
        self._problem = problem
        self._headers = headers

    def error(self) -> KafkaError | None:
        return self._problem

    def topic(self) -> str:
        return self._where[0]

    def partition(self) -> int:
        return self._where[1]

    def offset(self) -> int | None:
        return self._where[2]

    def headers(self) -> list[Any] | None:
        return self._headers

    def leader_epoch(self) -> int | None:
        return 7


class FakeGroup:
    """Committed offsets and their metadata, of all the consumers of a group."""

    def __init__(self) -> None:
        self.committed: dict[tuple[str, int], tuple[int, str | None]] = {}
        self.metadata_max = 4_096


class FakeConsumer:
    """Hands out ``queue`` and stands behind what it handed out; ``commits`` are the arguments it was given.

    ``lets_commit``: False for a member that the group no longer knows.
    """

    def __init__(self, journal: list[str], *, auto_store: bool = True, group: FakeGroup | None = None) -> None:
        self.journal = journal
        self.queue: deque[Any] = deque()
        self.group = group or FakeGroup()
        self.commits: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.commit_error: Exception | None = None
        self.read_error: Exception | None = None
        self.reads = 0
        self.stored: list[dict[str, Any]] = []
        self.callbacks: dict[str, Callable[..., Any]] = {}
        self.closed = False
        self.note = "mine"
        self.asked_for_positions = 0
        self._auto_store = auto_store
        self._at: dict[tuple[str, int], int] = {}
        self._stored: dict[tuple[str, int], tuple[int, str | None]] = {}

    def poll(self, timeout: float = -1) -> Any:
        return self._handed_out(self.queue.popleft()) if self.queue else None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Any]:
        return [self._handed_out(self.queue.popleft()) for _ in range(min(num_messages, len(self.queue)))]

    def _handed_out(self, message: Any) -> Any:
        if message.error() is None and message.offset() is not None:
            key = (message.topic(), message.partition())
            self._at[key] = message.offset() + 1
            if self._auto_store:
                self._stored[key] = (message.offset() + 1, None)
        return message

    def commit(self, *args: Any, **kwargs: Any) -> list[TopicPartition] | None:
        self.journal.append("commit")
        self.commits.append((args, kwargs))
        if self.commit_error is not None:
            raise self.commit_error
        message = args[0] if args else kwargs.get("message")
        offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
        known = self.group.committed
        made = {key: stored for key, stored in self._stored.items() if stored[0] > known.get(key, (0, None))[0]}
        if offsets is not None:
            made = {(one.topic, one.partition): (one.offset, one.metadata) for one in offsets}
        elif message is not None and message.error() is None:
            made = {(message.topic(), message.partition()): (message.offset() + 1, None)}
        if any(len(metadata or "") > self.group.metadata_max for _, metadata in made.values()):
            raise KafkaException(KafkaError(KafkaError.OFFSET_METADATA_TOO_LARGE))
        self.group.committed |= made
        return None if kwargs.get("asynchronous", True) else [TopicPartition("orders", 0, 1)]

    def store_offsets(self, *args: Any, **kwargs: Any) -> None:
        if self._auto_store:
            raise KafkaException(KafkaError(KafkaError._INVALID_ARG))
        self.stored.append(kwargs)
        message = args[0] if args else kwargs.get("message")
        if message is not None:
            self._stored[message.topic(), message.partition()] = (message.offset() + 1, None)
        for one in kwargs.get("offsets") or ():
            self._stored[one.topic, one.partition] = (one.offset, one.metadata)

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.reads += 1
        if self.read_error is not None:
            raise self.read_error
        none = (-1001, None)
        found = [(one, *self.group.committed.get((one.topic, one.partition), none)) for one in partitions]
        return [TopicPartition(one.topic, one.partition, offset, metadata or "") for one, offset, metadata in found]

    def subscribe(self, topics: list[str], **callbacks: Callable[..., Any]) -> None:
        self.callbacks = callbacks

    def seek(self, partition: TopicPartition) -> None:
        self.journal.append("seek")
        self._at.pop((partition.topic, partition.partition), None)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.journal.append("assign")

    def forget_positions(self) -> None:
        """As an assignment does."""
        self._at.clear()
        self._stored.clear()

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self.journal.append("incremental_assign")

    def unassign(self) -> None:
        self.journal.append("unassign")

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self.journal.append("incremental_unassign")

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        self.asked_for_positions += 1
        return [TopicPartition(one.topic, one.partition, self._at.get((one.topic, one.partition), -1001)) for one in partitions]

    def consumer_group_metadata(self) -> bytes:
        return b"group"

    def close(self) -> None:
        self.closed = True

    def deliver(self, topic: str, partition: int, *offsets: int) -> None:
        self.queue.extend(FakeMessage(topic, partition, offset) for offset in offsets)


class FakeTransactions:
    """A transactional producer: ``sent`` are the offsets handed over; a commit puts them into the group."""

    def __init__(self, group: FakeGroup) -> None:
        self.group = group
        self.sent: list[TopicPartition] = []
        self.commit_error: Exception | None = None

    def produce(self, topic: str, value: bytes) -> str:
        return f"{topic} {value!r}"

    def poll(self, timeout: float = 0) -> int:
        return 0

    def flush(self, timeout: float = 0) -> int:
        return 0

    def begin_transaction(self) -> None:
        self.sent = []

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], metadata: bytes, timeout: float = -1) -> None:
        self.sent += offsets

    def commit_transaction(self, timeout: float = -1) -> None:
        if self.commit_error is not None:
            raise self.commit_error
        self.group.committed |= {(one.topic, one.partition): (one.offset, one.metadata) for one in self.sent}

    def abort_transaction(self, timeout: float = -1) -> None:
        self.sent = []

    def __len__(self) -> int:
        return 0


class Part(NamedTuple):
    """As aiokafka's TopicPartition."""

    topic: str
    partition: int


class FakeRecord(NamedTuple):
    """The part of aiokafka's ConsumerRecord that is looked at."""

    topic: str
    partition: int
    offset: int
    headers: tuple[tuple[str, bytes], ...] = ()


class Committed(NamedTuple):
    """As aiokafka's OffsetAndMetadata."""

    offset: int
    metadata: str


class OffsetMetadataTooLargeError(Exception):
    """As aiokafka's."""


class FakeAioConsumer:
    """Hands out ``queue``; ``commits`` are the offsets it was given. It is its own coordinator."""

    def __init__(self, *, auto_commit: bool = False, group: FakeGroup | None = None, group_id: str | None = "g") -> None:
        self._enable_auto_commit = auto_commit
        self._group_id = group_id
        self._coordinator = self
        self.group = group or FakeGroup()
        self.queue: deque[FakeRecord] = deque()
        self.assigned: frozenset[Part] = frozenset()
        self.commits: list[Any] = []
        self.commit_error: Exception | None = None
        self.reads = 0
        self.stopped = False
        self.at: dict[Part, int] = {}

    def assign(self, *partitions: int) -> None:
        """A rebalance: another object, be it equal."""
        self.assigned = frozenset({Part("orders", one) for one in partitions})
        self.at = {one: self.group.committed[one][0] for one in self.assigned if one in self.group.committed}

    def assignment(self) -> Any:
        return self.assigned or set()

    def deliver(self, partition: int, *offsets: int, topic: str = "orders", headers: Any = ()) -> None:
        self.queue.extend(FakeRecord(topic, partition, offset, headers) for offset in offsets)

    async def getone(self, *_: Any) -> FakeRecord:
        record = self.queue.popleft()
        self.at[Part(record.topic, record.partition)] = record.offset + 1
        return record

    async def getmany(self, *_: Any, timeout_ms: int = 0, max_records: int | None = None) -> dict[Part, list[FakeRecord]]:
        found: dict[Part, list[FakeRecord]] = {}
        while self.queue:
            record = await self.getone()
            found.setdefault(Part(record.topic, record.partition), []).append(record)
        return found

    def __aiter__(self) -> FakeAioConsumer:
        return self

    async def __anext__(self) -> FakeRecord:
        if not self.queue:
            raise StopAsyncIteration
        return await self.getone()

    async def __aenter__(self) -> FakeAioConsumer:
        return self

    async def commit(self, offsets: Any = None) -> None:
        self.commits.append(offsets)
        if self.commit_error is not None:
            raise self.commit_error
        made: dict[tuple[str, int], tuple[int, str | None]] = {one: (at, "") for one, at in self.at.items() if one in self.assigned}
        if offsets is not None:
            made = {one: (at, "") if isinstance(at, int) else (at[0], at[1]) for one, at in offsets.items()}
        if any(len(metadata or "") > self.group.metadata_max for _, metadata in made.values()):
            raise OffsetMetadataTooLargeError
        self.group.committed.update(made)

    async def fetch_committed_offsets(self, partitions: list[Part]) -> dict[Part, Committed]:
        self.reads += 1
        known = self.group.committed
        return {one: Committed(known[one][0], known[one][1] or "") for one in partitions if one in known}

    def seek(self, partition: Part, offset: int) -> None:
        self.at[partition] = offset

    async def seek_to_beginning(self, *partitions: Part) -> bool:
        self.at |= dict.fromkeys(partitions or self.assigned, 0)
        return True

    async def seek_to_end(self, *partitions: Part) -> bool:
        self.at |= dict.fromkeys(partitions or self.assigned, 1_000)
        return True

    async def seek_to_committed(self, *partitions: Part) -> dict[Part, int]:
        found = {one: self.group.committed[one][0] for one in partitions or self.assigned}
        self.at |= found
        return found

    async def position(self, partition: Part) -> int:
        if partition not in self.at:  # on its way
            await asyncio.Event().wait()
        return self.at[partition]

    async def stop(self) -> None:
        self.stopped = True


def drain(consumer: Any) -> list[Any]:
    return list(iter(lambda: consumer.poll(0), None))


def carried(group: FakeGroup, topic: str = "orders", partition: int = 0) -> list[Any]:
    """Rows of the metadata of the last commit."""
    metadata = group.committed[topic, partition][1]
    return list(json.loads(metadata)["said"]) if metadata else []


def received(producers: list[FakeProducer]) -> Counter[tuple[tuple[str, int], int]]:
    """How often, as gapstream judges: an observation at or below the last sequence of its source is a repeat."""
    found, last = Counter[tuple[tuple[str, int], int]](), dict[tuple[tuple[str, int], str], int]()
    for one in [one for producer in producers for one in producer.said()]:
        key = (one["topic"], one["partition"])
        if one["sequence"] > last.get((key, one["source"]), 0):
            last[key, one["source"]] = one["sequence"]
            found.update((key, offset) for low, high in one["runs"] for offset in range(low, high + 1))
    return found
