"""The heads in a worker's changelog, as any other read_committed consumer sees them."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from scripts.bench.ground import CannotTellError
from stream_app.core.state import Head

_KEY = struct.Struct(">IB16sB")
"""Partition, format version, topic id, kind: :mod:`stream_app.core.state`."""
_HEAD = ord("h")
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class SeenHead:
    """One head."""

    partition: int
    read: int
    """Offsets of the log read, from 0."""
    written_s: float
    """When the worker handed it to its producer; seconds since the epoch, in whole milliseconds."""
    seen_s: float
    """When it was visible here, committed; by the same clock."""


class Heads:
    """Follows a changelog from its beginning; a context manager."""

    def __init__(self, bootstrap: str, changelog: str, partitions: int) -> None:
        """The changelog need not exist yet."""
        self._changelog, self._partitions = changelog, partitions
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "bench-observer",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 20,
                "log_level": 2,
            }
        )

    def __enter__(self) -> Heads:
        """As it is."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the consumer."""
        self._consumer.close()

    def follow(self, seconds: float) -> Iterator[SeenHead | None]:
        """Heads as they come, None when there was none for a moment; CannotTellError after ``seconds``."""
        deadline = time.monotonic() + seconds
        self._assign(deadline)
        while time.monotonic() < deadline:
            message = self._consumer.poll(_POLL_S)
            if message is None:
                yield None
                continue
            seen_s = time.time()
            if message.error() is not None:
                raise CannotTellError(f"{self._changelog} can't be read: {message.error()}")
            head = _decode(message, seen_s)
            if head is not None:
                yield head
        raise CannotTellError(f"{self._changelog} did not tell the log's end within {seconds:.0f} s.")

    def _assign(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            found = self._consumer.list_topics(timeout=10).topics.get(self._changelog)
            if found is not None and len(found.partitions) == self._partitions:
                self._consumer.assign([TopicPartition(self._changelog, partition, 0) for partition in range(self._partitions)])
                return
            time.sleep(_POLL_S)
        raise CannotTellError(f"the worker made no topic {self._changelog}.")


def _decode(message: Message, seen_s: float) -> SeenHead | None:
    key, value = message.key(), message.value()
    if not isinstance(key, bytes) or not isinstance(value, bytes) or len(key) != _KEY.size:
        return None
    partition, _, _, kind = _KEY.unpack(key)
    if kind != _HEAD:
        return None
    head = msgspec.msgpack.decode(value, type=Head)
    return SeenHead(partition, head.read - head.origin, message.timestamp()[1] / 1000, seen_s)
