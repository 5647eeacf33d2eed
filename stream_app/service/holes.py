"""Holes that nothing explains, looked at once more before the log is accused: the log reader is a suspect too."""

from __future__ import annotations

from dataclasses import replace

from stream_app.core.model import LogRead, Runs
from stream_app.core.offsets import OffsetSet
from stream_app.service.context import Port, Unavailable


async def seen_again(port: Port, topic: str, partition: int, read: LogRead, holes: Runs) -> LogRead | None:
    """The answer as looks at ``holes``, all of them its own, confirm it; None: there are records in them, or something else.

    Raises:
        Unavailable: they could not be looked at now.
    """
    found, at, start = OffsetSet(), 0, read.log_start
    while left := tuple((max(first, at), stop) for first, stop in holes if stop > at):
        look = await port.look(topic, partition, read.topic_id, left)
        if look.upto <= left[0][0]:
            raise Unavailable(f"{topic}/{partition} could not be looked at from offset {left[0][0]} on; it is tried again")
        found.update(OffsetSet(look.holes))
        at, start = look.upto, max(start, look.log_start)
    # What the log's start passed meanwhile can't be looked at any more: nobody read it, and nobody is accused.
    gone = OffsetSet(holes).within(0, start)
    if OffsetSet(holes) - found - gone:
        return None
    kept = OffsetSet(read.holes) - gone
    return replace(read, holes=tuple(kept.runs()), unread=tuple((OffsetSet(read.unread) | gone).runs()), log_start=start)
