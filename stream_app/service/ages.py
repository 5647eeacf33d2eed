"""Which records of a partition are so old that a table's TTL may have taken their rows: that those lack says nothing.

Times of records need not rise with offsets. Below the first record that is young enough all are old; above it, each one that the
table lacks is looked at in Kafka, once for as long as the answer holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from stream_app.core.minutes import MINUTE_MS
from stream_app.core.model import Look, Run, Runs
from stream_app.core.offsets import END, OffsetSet

UNREADABLE_TTL_KEEPS_MS = 86_400_000
"""Of a TTL of which nothing can be said it is taken that it leaves rows alone for a day."""
TTL_MARGIN = 10
"""Rows are taken to be gone a tenth of the TTL early, and as long before as the answer counts: up to another tenth."""
LOOK_RUNS_MAX = 1_000
LOOK_SECONDS = 5.0
"""No look begins after so long: what is left is not spoken of before the next check goes on there."""


@dataclass(slots=True)
class Ages:
    """Of one partition and one table, while a worker asks it."""

    epoch: int = 0
    """Of the ledger that the offsets are of."""
    kept_from_ms: int | None = None
    """Older records are old; None: there never was a TTL."""
    start: int = 0
    """Where the log started when that was asked."""
    since: int = 0
    """From ``start`` up to here all records are old."""
    aged: OffsetSet = field(default_factory=OffsetSet)
    """Other records that are old, or whose time nobody can tell any more."""
    _young: OffsetSet = field(default_factory=OffsetSet)
    """Records that are not, until the next renewal."""
    _keeps_ms: int | None = None
    _renewed_at: float | None = None

    async def renew(
        self,
        keeps_ms: int | None,
        former_ms: int | None,
        every_s: float,
        now_ms: int,
        log_start: int,
        offset_at: Callable[[int], Awaitable[int]],
    ) -> None:
        """Ask how far the TTL has come, if it is another one or was not asked lately; what is learnt holds until the next time.

        ``keeps_ms``: how long rows are kept; None: for ever. ``former_ms``: :attr:`kept_from_ms` of before, by whatever TTL: what one
        took stays away when it is lengthened. ``offset_at``: the first offset whose record is not older than a time (ms).
        """
        now, margin_ms = asyncio.get_running_loop().time(), (keeps_ms or 0) // TTL_MARGIN
        again_s = every_s if keeps_ms is None else min(every_s, margin_ms / 1000)
        if self._renewed_at is not None and keeps_ms == self._keeps_ms and now - self._renewed_at < again_s:
            return
        kept_from_ms = former_ms
        if keeps_ms is not None:
            kept_from_ms = max(now_ms - keeps_ms + margin_ms + round(again_s * 1000), former_ms or 0)
        if kept_from_ms is not None:
            self.since, self.start = max(await offset_at(kept_from_ms), log_start), log_start
            self.aged.remove(self.start, self.since)
        self._young = OffsetSet()
        self.kept_from_ms, self._keeps_ms, self._renewed_at = kept_from_ms, keeps_ms, now

    async def sort(
        self,
        received: OffsetSet,
        others: OffsetSet,
        look: Callable[[Runs, int], Awaitable[Look]],
        minutes: Callable[[Iterable[Run]], Iterator[tuple[int, int, int]]],
    ) -> int:
        """Look at what the table lacks and nobody looked at yet; up to which offset all of it is sorted.

        ``received``: what it had before; ``others``: what it never had. ``minutes``: which minute of record time offsets are of, as far
        as the ledger knows: what is in Kafka no more can't be asked there, and is old unless it is known to be young.
        """
        if self.kept_from_ms is None:
            return END
        left = (received | others) - self.aged - self._young
        left.remove(self.start, self.since)
        deadline = asyncio.get_running_loop().time() + LOOK_SECONDS
        while (first := left.first()) is not None:
            found = await look(tuple(islice(left.runs(), LOOK_RUNS_MAX)), self.kept_from_ms)
            if found.upto <= first:
                return first
            seen = left.within(first, found.upto)
            left.remove(first, found.upto)
            gone = seen.within(0, found.log_start)
            known = [(low, high) for minute, low, high in minutes(gone.runs()) if minute * MINUTE_MS >= self.kept_from_ms]
            old = (seen & OffsetSet(found.older)) | (gone - OffsetSet(known))
            old.update(seen & received & (gone | OffsetSet(found.holes) | OffsetSet(found.unreadable)))
            self.aged.update(old)
            self._young.update(seen - old)
            if asyncio.get_running_loop().time() >= deadline:
                break
        rest = left.first()
        return END if rest is None else rest
