"""A confluent-kafka consumer with logs, positions, stored offsets and rebalances, as librdkafka 2.16 keeps them.

After ``rdkafka_queue.c``, ``rdkafka_offset.c`` and ``rdkafka_assignment.c``: each assignment forgets positions and stored offsets, a
seek forgets the position alone, and ``commit()`` commits what is stored and higher than what was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tests.sidecar.fakes import FakeGroup, FakeMessage

Key = tuple[str, int]
NOWHERE = -1001


class Client:
    """``logs``: a letter for each offset of a partition: r a record, e an event in its place, m a marker, a dot nothing.

    ``turns``: which of the partitions that have something is next, by its place, for each record.
    ``rebalances``: served by the next poll, as ("assign" or "revoke", partitions).
    ``handed``: everything that was handed out, in its order.
    """

    def __init__(self, logs: Mapping[Key, str], group: FakeGroup, *, auto_store: bool = True) -> None:
        self.logs, self.group = logs, group
        self.turns: list[int] = []
        self.rebalances: list[tuple[str, list[Key]]] = []
        self.handed: list[tuple[Key, int]] = []
        self.changed: Callable[[str, list[Key]], None] = lambda kind, keys: None
        self.assigned: set[Key] = set()
        self.at: dict[Key, int] = {}
        self.stored: dict[Key, tuple[int, str | None]] = {}
        self._auto_store = auto_store
        self._next: dict[Key, int] = {}
        self._paused: set[Key] = set()
        self._callbacks: dict[str, Callable[..., Any]] = {}

    # ------------------------------------------------------------------------------------------------- assignments

    def subscribe(self, topics: list[str], **callbacks: Callable[..., Any]) -> None:
        self._callbacks = callbacks

    def serve(self) -> None:
        """Rebalances take place, of partitions that are not assigned or are, respectively."""
        while self.rebalances:
            kind, keys = self.rebalances.pop(0)
            keys = [key for key in keys if (key in self.assigned) == (kind == "revoke")]
            if not keys:
                continue
            if kind == "assign":
                self.changed(kind, keys)
                self._callbacks["on_assign"](self, [TopicPartition(*key) for key in keys])
                for key in keys:
                    self._begin(key, self._committed(key))
            else:
                self._callbacks["on_revoke"](self, [TopicPartition(*key) for key in keys])
                for key in keys:
                    self._end(key)
                self.changed(kind, keys)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.unassign()
        self.incremental_assign(partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            key = (one.topic, one.partition)
            self._begin(key, one.offset if one.offset >= 0 else self._committed(key))

    def unassign(self) -> None:
        for key in list(self.assigned):
            self._end(key)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            self._end((one.topic, one.partition))

    def _begin(self, key: Key, offset: int) -> None:
        self._end(key)
        self.assigned.add(key)
        self._next[key] = offset
        self._paused.discard(key)

    def _end(self, key: Key) -> None:
        self.assigned.discard(key)
        for kept in (self._next, self.at, self.stored):
            kept.pop(key, None)

    # ----------------------------------------------------------------------------------------------------- records

    def poll(self, timeout: float = -1) -> FakeMessage | None:
        self.serve()
        while (key := self._turn()) is not None:
            kind, offset = self._take(key)
            if kind != "e":
                self._pass(key, offset + 1)
            if kind != "m":
                return self._message(key, kind, offset)
        return None

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[FakeMessage]:
        self.serve()
        taken: list[tuple[Key, str, int]] = []
        markers: list[tuple[Key, str, int]] = []
        while len(taken) < num_messages and (key := self._turn()) is not None:
            kind, offset = self._take(key)
            (markers if kind == "m" else taken).append((key, kind, offset))
        for key, kind, offset in [*taken, *markers]:
            if kind != "e" and offset >= self.at.get(key, 0):
                self._pass(key, offset + 1)
        return [self._message(*one) for one in taken]

    def _message(self, key: Key, kind: str, offset: int) -> FakeMessage:
        if kind == "e":
            return FakeMessage(*key, offset, KafkaError(KafkaError._BAD_MSG))
        self.handed.append((key, offset))
        return FakeMessage(*key, offset)

    def _turn(self) -> Key | None:
        able = [key for key in sorted(self.assigned - self._paused) if self.logs[key][self._next[key] :].strip(".")]
        return able[(self.turns.pop(0) if self.turns else 0) % len(able)] if able else None

    def _take(self, key: Key) -> tuple[str, int]:
        log, offset = self.logs[key], self._next[key]
        while log[offset] == ".":
            offset += 1
        self._next[key] = offset + 1
        return log[offset], offset

    def _pass(self, key: Key, position: int) -> None:
        self.at[key] = position
        if self._auto_store:
            self.stored[key] = (position, None)

    def seek(self, partition: TopicPartition) -> None:
        key = (partition.topic, partition.partition)
        if key not in self.assigned:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self._next[key] = partition.offset
        self.at.pop(key, None)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused |= {(one.topic, one.partition) for one in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused -= {(one.topic, one.partition) for one in partitions}

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(one.topic, one.partition, self.at.get((one.topic, one.partition), NOWHERE)) for one in partitions]

    # ----------------------------------------------------------------------------------------------------- commits

    def commit(self, message: Any = None, offsets: Any = None, asynchronous: bool = True) -> list[TopicPartition] | None:
        if message is not None:
            made: dict[Key, tuple[int, str | None]] = {(message.topic(), message.partition()): (message.offset() + 1, None)}
        elif offsets is not None:
            made = _named(offsets)
        else:
            made = {key: stored for key, stored in self.stored.items() if stored[0] > self._committed(key, -1)}
        self.group.committed |= made
        return None if asynchronous else [TopicPartition(*key, offset) for key, (offset, _) in made.items()]

    def store_offsets(self, message: Any = None, offsets: Any = None) -> None:
        made = {(message.topic(), message.partition()): (message.offset() + 1, None)} if message is not None else _named(offsets)
        if not made.keys() <= self.assigned:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.stored |= made

    def committed(self, partitions: list[TopicPartition], timeout: float | None = None) -> list[TopicPartition]:
        found = [(one, *self.group.committed.get((one.topic, one.partition), (NOWHERE, None))) for one in partitions]
        return [TopicPartition(one.topic, one.partition, offset, metadata or "") for one, offset, metadata in found]

    def consumer_group_metadata(self) -> bytes:
        return b"group"

    def close(self) -> None:
        self.rebalances = [("revoke", sorted(self.assigned))] if self._callbacks else []
        self.serve()

    def _committed(self, key: Key, without: int = 0) -> int:
        return self.group.committed.get(key, (without, None))[0]


def _named(offsets: Iterable[TopicPartition]) -> dict[Key, tuple[int, str | None]]:
    return {(one.topic, one.partition): (one.offset, one.metadata) for one in offsets}
