"""Holes that nothing explains, looked at once more before the log is accused: the log reader is a suspect too."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from stream_app.core.log import LogState
from stream_app.core.model import LogRead, Runs
from stream_app.core.offsets import OffsetSet
from stream_app.service.context import Port, Unavailable

log = structlog.get_logger("gapstream.holes")

POLICY_SECONDS = 60.0
"""So long it is waited for an answer to what cleanup.policy is; then holes count as compacted until it can be asked."""


@dataclass(slots=True)
class FreshPolicy:
    """Asks cleanup.policy before it counts against anybody that the topic never was compacted."""

    port: Port
    topic: str
    partition: int
    _unknown_since: float | None = None

    async def ask(self, state: LogState) -> None:
        """Note in ``state`` what it is now. Raises Unavailable while that is not told."""
        now = asyncio.get_running_loop().time()
        told = (await self.port.policy(self.topic, fresh=True)).compacted
        state.note_policy(told)
        if told is not None or state.ever_compacted is not False:
            self._unknown_since = None
            return
        self._unknown_since = now if self._unknown_since is None else self._unknown_since
        if now - self._unknown_since < POLICY_SECONDS:
            raise Unavailable(f"cleanup.policy of {self.topic} can't be asked: nobody is accused of what the log lacks meanwhile")
        reason = "cleanup.policy can't be asked; see the right to describe the topic's configuration"
        log.warning("holes in the log count as compacted", topic=self.topic, partition=self.partition, reason=reason)
        state.ever_compacted, self._unknown_since = None, None


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
