"""Which offsets of a log are of which minute of record time, for a day: what the answers by time are made of.

A run begins at a record and goes on up to the next run; offsets without a record belong to the run that they lie in. Where
times rise with offsets, a minute is one run. Where they don't, it has as many as it takes, up to :data:`RUNS_MAX` in all:
then the shortest ones are counted with the run before them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from stream_app.core.model import Run, Timed
from stream_app.core.offsets import OffsetSet

MINUTE_MS = 60_000
KEPT_MINUTES = 1_440
"""A day: the longest window that is answered."""
BLOCK = 10
"""Minutes that are told together, and forgotten together."""
HOUR = 60
"""Minutes that are stored together."""
RUNS_MAX = 4 * KEPT_MINUTES
"""About 70 kB of state, of a log whose times jump; a log in order needs a quarter of it."""
_KEPT_AFTER_THINNING = RUNS_MAX * 3 // 4


class MinuteRun(NamedTuple):
    """Offsets from ``first`` up to where the next run begins."""

    first: int
    minute: int | None
    """None: they count in no minute."""
    low_ms: int
    high_ms: int
    held: int | None = None
    """Offsets of it that hold a record or were unread, where the log does not tell them apart any more; else None."""
    tail: int = 0
    """Where ``held`` is told: offsets at its end that hold none."""


class Span(NamedTuple):
    """A run with its end."""

    first: int
    stop: int
    run: MinuteRun


_first = attrgetter("first")


class Minutes:
    """The runs of one log, ascending; the first one has a minute, and neighbours differ in theirs or in ``held``."""

    __slots__ = ("_changed", "_forgotten", "_per_minute", "runs", "told")

    def __init__(self, runs: Iterable[MinuteRun] = ()) -> None:
        """With what was stored, if anything."""
        self.runs = sorted(runs, key=_first)
        self.told: set[int] = set()
        """Blocks whose minutes lost or won offsets otherwise than by reading on, until somebody takes them."""
        self._changed: set[int] = set()
        self._forgotten = 0
        self._per_minute = Counter(run.minute for run in self.runs)

    # --- asking ---

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.runs)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same runs; what was told or stored doesn't count."""
        return isinstance(other, Minutes) and self.runs == other.runs

    __hash__ = None  # type: ignore[assignment]  # mutable; typeshed declares __hash__ as a method

    def has(self, minute: int) -> bool:
        """Whether any offset is of this minute."""
        return self._per_minute[minute] > 0

    def minute_of(self, offset: int) -> int | None:
        """The minute that a record is counted in."""
        at = bisect_right(self.runs, offset, key=_first) - 1
        return self.runs[at].minute if at >= 0 else None

    def touching(self, first: int, stop: int) -> set[int]:
        """The minutes that have offsets in ``[first, stop)``; the last run is taken to go on for ever."""
        low, high = max(bisect_right(self.runs, first, key=_first) - 1, 0), bisect_left(self.runs, stop, key=_first)
        return {run.minute for run in self.runs[low:high] if run.minute is not None}

    def parts(self, runs: Iterable[Run], end: int) -> Iterator[tuple[int, int, int]]:
        """The pieces of ascending ``runs`` that lie in a minute, each with it: (minute, first, stop)."""
        for first, stop in runs:
            at = max(bisect_right(self.runs, first, key=_first) - 1, 0)
            while at < len(self.runs) and self.runs[at].first < stop:
                edge = self._stop(at, end)
                minute, low, high = self.runs[at].minute, max(first, self.runs[at].first), min(stop, edge)
                if minute is not None and low < high:
                    yield minute, low, high
                at += 1

    def spans(self, minutes: Collection[int], end: int) -> dict[int, list[Span]]:
        """The runs of each of these minutes, ascending; ``end``: how far the log was read."""
        left = sum(self._per_minute[minute] for minute in minutes)
        found: dict[int, list[Span]] = {minute: [] for minute in minutes}
        at = len(self.runs)
        while left:  # what is asked for is nearly always at the end
            at -= 1
            minute = self.runs[at].minute
            if minute is not None and minute in found:
                found[minute].insert(0, Span(self.runs[at].first, self._stop(at, end), self.runs[at]))
                left -= 1
        return found

    def blocks(self) -> set[int]:
        """The blocks that hold a minute."""
        return {minute // BLOCK for minute in self._per_minute if minute is not None}

    def _stop(self, at: int, end: int) -> int:
        return self.runs[at + 1].first if at + 1 < len(self.runs) else max(end, self.runs[at].first)

    # --- changing ---

    def add(self, timed: Iterable[Timed]) -> None:
        """Take what was read behind everything that is known."""
        for first, minute, low_ms, high_ms in timed:
            self._append(MinuteRun(first, minute, low_ms, high_ms))
        if len(self.runs) > RUNS_MAX:
            self._thin()

    def _append(self, run: MinuteRun) -> None:
        last = self.runs[-1] if self.runs else None
        if last is None and run.minute is None:
            return
        self._note(run)
        if last is not None and (last.minute, last.held) == (run.minute, None):
            self.runs[-1] = last._replace(low_ms=min(last.low_ms, run.low_ms), high_ms=max(last.high_ms, run.high_ms))
        else:
            self.runs.append(run)
            self._per_minute[run.minute] += 1

    def _note(self, run: MinuteRun) -> None:
        self._changed.add(_hour(run.minute))

    def _thin(self) -> None:
        """Count the shortest runs with the one before them, no two in a row; the last one grows still and is left alone."""
        lengths = [after.first - run.first for run, after in pairwise(self.runs)]
        left = len(self.runs) - _KEPT_AFTER_THINNING
        longest = sorted(lengths[1:])[left - 1]
        kept, joined = self.runs[:1], False
        for run, length in zip(self.runs[1:-1], lengths[1:], strict=True):
            before = kept[-1]
            short = length <= longest and left > 0 and not joined and run.held is None and before.held is None
            if short or (run.minute, run.held) == (before.minute, before.held):
                self._note_moved(run, before)
                kept[-1] = _joined(before, run)
                left -= 1
            else:
                kept.append(run)
            joined = short
        self._replace([*kept, self.runs[-1]])
        if len(self.runs) > RUNS_MAX:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Count what was read first in no minute: frozen runs, as of a log whose times jump and whose start follows, are not joined."""
        surplus = len(self.runs) - _KEPT_AFTER_THINNING
        while self.runs[surplus].minute is None:
            surplus += 1
        self._note_moved(*self.runs[:surplus])
        self._replace(self.runs[surplus:])

    def _note_moved(self, *runs: MinuteRun) -> None:
        for run in runs:
            self._note(run)
            if run.minute is not None:
                self.told.add(run.minute // BLOCK)

    def _replace(self, runs: list[MinuteRun]) -> None:
        self.runs = runs
        self._per_minute = Counter(run.minute for run in runs)

    def forget(self, now_ms: int) -> None:
        """Drop the minutes of more than a day ago, by blocks."""
        oldest = (now_ms // MINUTE_MS - KEPT_MINUTES) // BLOCK * BLOCK
        if oldest <= self._forgotten:
            return
        self._forgotten = oldest
        if not any(minute is not None and minute < oldest for minute in self._per_minute):
            return
        kept: list[MinuteRun] = []
        for run in self.runs:
            if run.minute is not None and run.minute < oldest:
                self._note_moved(run)
                run = MinuteRun(run.first, None, 0, 0)
            if run.minute is not None or (kept and kept[-1].minute is not None):
                kept.append(run)
            if run.minute is None:
                self._note(run)
        self._replace(kept)

    def freeze(self, stop: int, end: int, floors: Iterable[int], records: Callable[[int, int], OffsetSet]) -> None:
        """The log is about to forget which offsets below ``stop`` hold records: note how many there are, between ``floors``.

        ``end``: how far the log was read. ``records(first, stop)``: the offsets that hold records, or were unread.
        """
        cuts = sorted({*(floor for floor in floors if floor < stop), stop})
        frozen: list[MinuteRun] = []
        for at, run in enumerate(self.runs):
            if run.first >= stop or run.held is not None or run.minute is None:
                frozen.append(run)
                continue
            run_stop = self._stop(at, end)
            edges = [run.first, *(cut for cut in cuts if run.first < cut < run_stop), run_stop]
            self._note(run)
            for first, edge in pairwise(edges):
                frozen.append(run._replace(first=first) if first >= stop else _frozen(run, first, edge, records(first, edge)))
        self._replace(frozen)

    def truncate(self, offset: int, end: int) -> None:
        """The log, read to ``end``, lost everything from ``offset`` on; how many records a frozen run that is cut has left is unknown."""
        at = bisect_left(self.runs, offset, key=_first)
        cut = at > 0 and self.runs[at - 1].held is not None and self._stop(at - 1, end) > offset
        self._note_moved(*self.runs[max(at - 1, 0) :])
        lost = self.runs[at - 1].first if cut else offset
        self._replace(self.runs[: at - cut])
        if cut:
            self._append(MinuteRun(lost, None, 0, 0))

    def take_told(self) -> set[int]:
        """The blocks in :attr:`told`, once."""
        told, self.told = self.told, set()
        return told

    # --- persistence ---

    def touch(self) -> None:
        """Count all of it as changed."""
        self._changed.update(_hour(run.minute) for run in self.runs)

    def take_changes(self) -> dict[int, list[MinuteRun]]:
        """By hour (-1: of no minute) what changed since the last call; an empty list: nothing is left of it."""
        changed, self._changed = self._changed, set()
        found: dict[int, list[MinuteRun]] = {hour: [] for hour in changed}
        for run in self.runs if found else ():
            if (runs := found.get(_hour(run.minute))) is not None:
                runs.append(run)
        return found


def _hour(minute: int | None) -> int:
    return -1 if minute is None else minute // HOUR


def _joined(before: MinuteRun, run: MinuteRun) -> MinuteRun:
    if before.minute is None or run.minute is None:
        return before
    return before._replace(low_ms=min(before.low_ms, run.low_ms), high_ms=max(before.high_ms, run.high_ms))


def _frozen(run: MinuteRun, first: int, stop: int, records: OffsetSet) -> MinuteRun:
    last = records.last()
    return run._replace(first=first, held=records.count, tail=stop - first if last is None else stop - 1 - last)


class MinuteCounts:
    """A number by minute: what was counted, and cannot be counted again."""

    __slots__ = ("_changed", "counts")

    def __init__(self, counts: Sequence[tuple[int, int]] = ()) -> None:
        """With what was stored, if anything."""
        self.counts = dict(counts)
        self._changed: set[int] = set()

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers."""
        return isinstance(other, MinuteCounts) and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]  # mutable; typeshed declares __hash__ as a method

    def add(self, minute: int, count: int) -> None:
        """``count`` more."""
        self.counts[minute] = self.counts.get(minute, 0) + count
        self._changed.add(_hour(minute))

    def keep(self, minutes: Minutes) -> None:
        """Drop what is of no minute any more."""
        for minute in [minute for minute in self.counts if not minutes.has(minute)]:
            del self.counts[minute]
            self._changed.add(_hour(minute))

    def touch(self) -> None:
        """Count all of it as changed."""
        self._changed.update(map(_hour, self.counts))

    def take_changes(self) -> dict[int, list[tuple[int, int]]]:
        """By hour what changed since the last call; an empty list: nothing is left of it."""
        changed, self._changed = self._changed, set()
        return {hour: sorted((m, n) for m, n in self.counts.items() if _hour(m) == hour) for hour in changed}
