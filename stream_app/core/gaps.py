"""The gaps of an open set, kept up to date as it changes, so that nobody counts them anew at every event."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from stream_app.core.log import LogState
from stream_app.core.model import CHUNK, Run
from stream_app.core.offsets import OffsetSet
from stream_app.core.runlist import RunList


class Gaps:
    """From the first to the last offset of each gap of one open set.

    A gap is a maximal run of open offsets that offsets without a record do not split. Invariant: each run begins and
    ends with an open offset, every other offset in it is open or absent, and between two runs is something that is neither.
    ``len`` is the number of gaps. A change costs O(log n) in the number of gaps, beside a look at the gap it touches.
    """

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        """Of an empty set."""
        self._runs = RunList()

    def __len__(self) -> int:
        """How many gaps there are."""
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        """Each gap's first offset and the one past its last, ascending."""
        return iter(self._runs)

    def opened(self, offsets: OffsetSet, log: LogState) -> None:
        """These offsets, all below ``log.read``, came into the open set."""
        starts, stops = self._runs.starts, self._runs.stops
        for first, stop in offsets.runs():
            low, high = first, stop
            after = bisect_left(starts, first)
            if after > 0 and log.only_absent(stops[after - 1], first):
                low = min(first, stops[after - 1])
            if after < len(starts) and log.only_absent(stop, starts[after]):
                high = max(stop, starts[after])
            self._runs.add(low, high)

    def closed(self, gone: OffsetSet, left: OffsetSet) -> None:
        """``gone`` left the open set, ``left`` is what it still holds."""
        starts, stops = self._runs.starts, self._runs.stops
        for first, stop in gone.runs():
            at = bisect_right(starts, first) - 1
            if at < 0 or stops[at] <= first:
                continue  # cut off with the run before it
            low, high = starts[at], stops[at]
            self._runs.remove(low, high)
            before = _end_of(left, low, first)
            if before is not None:
                self._runs.add(low, before)
            after = _end_of(left, stop, high)
            if after is not None:
                self._runs.add(next(left.runs(stop, high))[0], after)


def _end_of(offsets: OffsetSet, first: int, stop: int) -> int | None:
    """One past the last of the offsets within ``[first, stop)``; None if there is none."""
    low, width = stop, 1
    while low > first:
        low, width = max(first, low - width), max(2 * width, CHUNK)
        last = offsets.within(low, stop).last()
        if last is not None:
            return last + 1
    return None
