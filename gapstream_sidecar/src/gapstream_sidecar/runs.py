"""Sets of offsets as runs: what a consumer was handed is nearly always a few long runs.

Ranges are half-open ``(first, stop)`` here, as Kafka's committed offset is; the step to closed ranges is made where
JSON is written.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

RUN_BYTES = 16
"""Memory of one run: two 64-bit integers."""


class RunList:
    """A set of offsets, kept as ascending, disjoint, non-touching runs.

    ``len`` is the number of runs, not of offsets; an empty one is false. ``bounds`` is the runs written one after the
    other (first, stop, first, stop, ...), so it rises strictly and an index's parity says whether it begins or ends a run.
    """

    __slots__ = ("bounds",)

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self.bounds: array[int] = array("q")
        for first, stop in runs:
            self.add(first, stop)

    def __len__(self) -> int:
        return len(self.bounds) >> 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        bounds = self.bounds
        return zip(bounds[::2], bounds[1::2], strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunList) and self.bounds == other.bounds

    __hash__ = None  # type: ignore[assignment]  # it changes; typeshed has no word for "not hashable"

    def __repr__(self) -> str:
        return f"RunList({list(self)!r})"

    def count(self) -> int:
        """Number of offsets."""
        return sum(self.bounds[1::2]) - sum(self.bounds[::2])

    def add(self, first: int, stop: int) -> None:
        """Add ``[first, stop)``, which must not be empty; what is there already changes nothing."""
        bounds = self.bounds
        if not bounds or first > bounds[-1]:
            bounds.append(first)
            bounds.append(stop)
        elif first == bounds[-1]:
            bounds[-1] = stop
        else:
            low = bisect_left(bounds, first)
            high = bisect_right(bounds, stop)
            # An odd index lies inside a run or at its stop: that run's own bound stays and swallows ours.
            ends = ([] if low & 1 else [first]) + ([] if high & 1 else [stop])
            bounds[low:high] = array("q", ends)

    def overlaps(self, first: int, stop: int) -> bool:
        """Whether an offset of ``[first, stop)`` is in the set."""
        bounds = self.bounds
        if not bounds or first >= bounds[-1]:
            return False
        at = bisect_right(bounds, first)
        return bool(at & 1) or bounds[at] < stop

    def take_below(self, stop: int) -> RunList:
        """Remove the offsets below ``stop``; what was removed."""
        taken = RunList()
        bounds = self.bounds
        at = bisect_left(bounds, stop)
        inside = at & 1
        if inside and bounds[at] == stop:
            at, inside = at + 1, 0
        taken.bounds = bounds[:at]
        if inside:  # stop cuts the run that begins at at - 1
            taken.bounds.append(stop)
            at -= 1
            bounds[at] = stop
        del bounds[:at]
        return taken

    def take_runs(self, number: int) -> RunList:
        """Remove the first ``number`` runs; what was removed."""
        taken = RunList()
        taken.bounds = self.bounds[: 2 * number]
        del self.bounds[: 2 * number]
        return taken

    def coarsen(self, most: int) -> None:
        """Have at most ``most`` (at least 1) runs, by closing the smallest holes: offsets in them come into the set."""
        excess = len(self) - most
        if excess <= 0:
            return
        bounds = self.bounds
        holes = sorted(range(1, len(bounds) - 1, 2), key=lambda at: bounds[at + 1] - bounds[at])
        closed = set(holes[:excess])
        kept = [bounds[0]]
        for at in range(1, len(bounds) - 1, 2):
            if at not in closed:
                kept.append(bounds[at])
                kept.append(bounds[at + 1])
        kept.append(bounds[-1])
        self.bounds = array("q", kept)

    def coarser(self, most: int) -> RunList:
        """A copy that has at most ``most`` runs; see ``coarsen``."""
        made = RunList()
        made.bounds = self.bounds[:]
        made.coarsen(most)
        return made
