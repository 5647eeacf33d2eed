"""A set of integers as runs: for what comes in few, long stretches."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from stream_app.core.model import Run


class RunList:
    """A mutable set of integers, held as half-open runs.

    Invariant: run i is ``[starts[i], stops[i])``; runs are not empty, ascending, disjoint and non-touching. Operations
    cost O(log n) in the number of runs, beside a memory move of the lists. ``len`` and ``bool`` speak of runs.
    """

    __slots__ = ("starts", "stops")

    def __init__(self) -> None:
        """An empty set."""
        self.starts: list[int] = []
        self.stops: list[int] = []

    def copy(self) -> RunList:
        """An independent copy."""
        out = RunList()
        out.starts = self.starts.copy()
        out.stops = self.stops.copy()
        return out

    def __len__(self) -> int:
        """Number of runs."""
        return len(self.starts)

    def __iter__(self) -> Iterator[Run]:
        """The runs, ascending."""
        return zip(self.starts, self.stops, strict=True)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same integers."""
        if not isinstance(other, RunList):
            return NotImplemented
        return self.starts == other.starts and self.stops == other.stops

    __hash__ = None  # type: ignore[assignment]  # mutable; typeshed declares __hash__ as a method

    def __contains__(self, value: int) -> bool:
        """Whether ``value`` is in one of the runs."""
        index = bisect_right(self.starts, value)
        return index > 0 and value < self.stops[index - 1]

    def within(self, low: int, high: int) -> Iterator[Run]:
        """The runs, clipped to ``[low, high)``, which may be empty; the set must not change meanwhile."""
        if low >= high:
            return
        for index in range(bisect_right(self.stops, low), bisect_left(self.starts, high)):
            yield max(self.starts[index], low), min(self.stops[index], high)

    def common(self, other: RunList) -> Iterator[Run]:
        """The runs of what is in both."""
        fewer, more = (self, other) if len(self) <= len(other) else (other, self)
        for low, high in fewer:
            yield from more.within(low, high)

    def add(self, low: int, high: int) -> int:
        """Adds ``[low, high)``, which is not empty; gives how many integers are new."""
        starts, stops = self.starts, self.stops
        begin, end = bisect_left(stops, low), bisect_right(starts, high)
        first, last, new = low, high, high - low
        if begin < end:
            if starts[begin] <= low and high <= stops[begin]:
                return 0
            first, last = min(low, starts[begin]), max(high, stops[end - 1])
            new -= sum(min(stops[index], high) - max(starts[index], low) for index in range(begin, end))
        starts[begin:end] = [first]
        stops[begin:end] = [last]
        return new

    def remove(self, low: int, high: int) -> int:
        """Removes ``[low, high)``, which is not empty; gives how many integers were there."""
        starts, stops = self.starts, self.stops
        begin, end = bisect_right(stops, low), bisect_left(starts, high)
        if begin >= end:
            return 0
        gone = sum(min(stops[index], high) - max(starts[index], low) for index in range(begin, end))
        kept = [(starts[begin], low)] if starts[begin] < low else []
        if stops[end - 1] > high:
            kept.append((high, stops[end - 1]))
        starts[begin:end] = [start for start, _ in kept]
        stops[begin:end] = [stop for _, stop in kept]
        return gone
