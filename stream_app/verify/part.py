"""That part of the log: which of its offsets are records, read off the headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stream_app.core.model import Absent, LogRead
from stream_app.core.offsets import OffsetSet
from stream_app.errors import CouldNotTell, Unavailable
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.trouble import HALTS, Trouble, TroubleKind

PATIENCE_S = 30.0
"""Nothing at all for so long: Kafka is away. Leadership moves in less."""
HOPELESS = frozenset({TroubleKind.UNKNOWN_TOPIC, TroubleKind.REFUSED, TroubleKind.UNSUPPORTED})
"""What does not pass by itself."""


@dataclass(slots=True)
class Part:
    """``[first, stop)`` of one partition, as far as it was read."""

    partition: int
    first: int
    stop: int
    read: int
    """Everything below it was read."""
    topic_id: bytes = b""
    records: OffsetSet = field(default_factory=OffsetSet)
    absent: dict[Absent, OffsetSet] = field(default_factory=dict)
    """Markers and aborted records."""
    holes: OffsetSet = field(default_factory=OffsetSet)
    """Offsets without anything: compacted, or a hole in the log."""
    unreadable: OffsetSet = field(default_factory=OffsetSet)
    """Records whose batches are damaged."""
    unread: OffsetSet = field(default_factory=OffsetSet)
    """Removed by retention before they could be read."""

    @classmethod
    def empty(cls, partition: int, first: int, stop: int) -> Part:
        """Nothing read yet."""
        return cls(partition, first, max(first, stop), first)

    def take(self, read: LogRead) -> None:
        """What the next answer says; it may reach beyond the part."""
        assert read.position == self.read
        self.topic_id = read.topic_id
        for into, runs in (
            (self.records, read.records),
            (self.holes, read.holes),
            (self.unreadable, read.unreadable),
            (self.unread, read.unread),
            *((self.absent.setdefault(cause, OffsetSet()), runs) for cause, runs in read.absent.items()),
        ):
            for first, stop in runs:
                if first < self.stop:
                    into.add(first, min(stop, self.stop))
        self.read = read.next

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self.read >= self.stop


async def read_parts(
    reader: LogReader, topic: str, parts: Mapping[int, Part], isolation: Isolation, *, check_crcs: bool, told: Callable[[int], None]
) -> None:
    """Read them all; ``told`` how many offsets were read, after each answer.

    Raises:
        Unavailable: Kafka can't be asked, or not for ``PATIENCE_S``.
        CouldNotTell: the topic was re-created or truncated meanwhile.
    """
    waiting = {partition for partition, part in parts.items() if not part.done}
    for partition in waiting:
        part = parts[partition]
        reader.assign(topic, partition, part.first, isolation=isolation, check_crcs=check_crcs, topic_id=part.topic_id or None)
    last: Trouble | None = None
    while waiting:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await reader.wait()
        except TimeoutError:
            why = last.message if last is not None else "it gives nothing"
            raise Unavailable(f"Kafka gave nothing more of {topic} for {PATIENCE_S:g} s: {why}") from None
        for last in reader.troubles():
            _judge(last)
        read = 0
        for (_, partition), one in reader.take().items():
            part = parts[partition]
            read += min(one.next, part.stop) - part.read
            part.take(one)
            if part.done:
                waiting.discard(partition)
                reader.unassign(topic, partition)
        told(read)


def _judge(trouble: Trouble) -> None:
    if trouble.kind in HALTS:
        raise CouldNotTell(f"{trouble.message}: run it again")
    if trouble.kind in HOPELESS:
        raise Unavailable(trouble.message)
