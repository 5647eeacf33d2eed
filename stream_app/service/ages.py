"""Which records of a partition are so old that a table's TTL may have taken their rows: that those lack says nothing.

Times of records need not rise with offsets. Below ``since`` every record is old; above it, each one that the table lacks is looked
at in Kafka, once for as long as the answer holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice

from stream_app.core.model import Look, Runs
from stream_app.core.offsets import END, OffsetSet

UNREADABLE_TTL_KEEPS_MS = 86_400_000
"""Of a TTL of which nothing can be said it is taken that it leaves rows alone for a day."""
TTL_MARGIN = 10
"""Rows are taken to be gone a tenth of the TTL early: the table's clock and its merges are not ours."""
LOOK_RUNS_MAX = 1_000


@dataclass(slots=True)
class Ages:
    """Of one partition and one table, while a worker asks it."""

    epoch: int = 0
    """Of the ledger that the offsets are of."""
    since: int = 0
    """Every record of a lower offset is old."""
    aged: OffsetSet = field(default_factory=OffsetSet)
    """At and above ``since``: records that are old, and those whose time nobody can tell any more."""
    _young: OffsetSet = field(default_factory=OffsetSet)
    """Records that are not, until the next renewal."""
    _kept_from_ms: int | None = None
    """Older records are old; None: there is no TTL."""
    _renewed_at: float | None = None

    async def renew(self, keeps_ms: int | None, every_s: float, now_ms: int, offset_at: Callable[[int], Awaitable[int]]) -> None:
        """Ask how far the TTL has come, if it was not asked lately; what is learnt holds until the next time.

        ``keeps_ms``: how long rows are kept; None: for ever. ``offset_at``: the first offset whose record is not older than a time (ms).
        """
        if keeps_ms is None:
            self.since, self.aged, self._young = 0, OffsetSet(), OffsetSet()
            self._kept_from_ms = self._renewed_at = None
            return
        now, margin_ms = asyncio.get_running_loop().time(), keeps_ms // TTL_MARGIN
        again_s = min(every_s, margin_ms / 1000)
        if self._renewed_at is None or now - self._renewed_at >= again_s:
            kept_from_ms = now_ms - keeps_ms + margin_ms + round(again_s * 1000)
            self.since = await offset_at(kept_from_ms)
            self._kept_from_ms, self._renewed_at = kept_from_ms, now
            self._young = OffsetSet()
            self.aged.remove(0, self.since)

    @property
    def matter(self) -> bool:
        """Whether the table has a TTL."""
        return self._kept_from_ms is not None

    async def sort(self, lacking: OffsetSet, received: OffsetSet, look: Callable[[Runs, int], Awaitable[Look]]) -> int:
        """Look at what the table lacks and nobody looked at yet; up to which offset all of it is sorted.

        ``received``: what the table had before. Of such a record that is in Kafka no more, nobody knows how old it was; one that the
        table never had is judged for that.
        """
        if self._kept_from_ms is None:
            return END
        left = lacking - self.aged - self._young
        left.remove(0, self.since)
        while (first := left.first()) is not None:
            found = await look(tuple(islice(left.runs(), LOOK_RUNS_MAX)), self._kept_from_ms)
            if found.upto <= first:
                return first
            seen = left.within(first, found.upto)
            left.remove(first, found.upto)
            old = seen & (OffsetSet(found.older) | OffsetSet([(0, found.log_start)]))
            old.update(seen & received & (OffsetSet(found.holes) | OffsetSet(found.unreadable)))
            self.aged.update(old)
            self._young.update(seen - old)
        return END
