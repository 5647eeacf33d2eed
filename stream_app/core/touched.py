"""Where something changed, roughly."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from stream_app.core.model import Run
from stream_app.core.offsets import END, OffsetSet
from stream_app.core.runlist import RunList

EVERYTHING: tuple[Run, ...] = ((0, END),)
_TOUCHED_MAX = 16


class Touched:
    """Where something may have changed: a few runs of offsets, wider than true where there would be more."""

    __slots__ = ("_runs",)

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        """Nothing, or these."""
        self._runs = RunList()
        for first, stop in runs:
            self.note(first, stop)

    def note(self, first: int, stop: int) -> None:
        """Something of ``[first, stop)``."""
        if first >= stop:
            return
        self._runs.add(first, stop)
        if len(self._runs) > _TOUCHED_MAX:
            self._runs.add(self._runs.starts[0], self._runs.stops[_TOUCHED_MAX // 2])

    def note_set(self, offsets: OffsetSet) -> None:
        """Some of these offsets, which may be many."""
        last = offsets.last()
        if last is None:
            return
        runs = list(islice(offsets.runs(), _TOUCHED_MAX // 2))
        for first, stop in runs:
            self.note(first, stop)
        self.note(runs[-1][0], last + 1)

    def take(self) -> list[Run]:
        """The runs, ascending, once."""
        runs, self._runs = self._runs, RunList()
        return list(runs)
