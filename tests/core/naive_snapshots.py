"""What a sink says by snapshots, as plain sets of integers, for the naive model of a partition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stream_app.core.model import Snapshot
from stream_app.core.offsets import END

Horizon = tuple[int, int, int, int]
"""(broker's time, worker's time, horizon, time by the clock of the snapshots)."""


@dataclass
class NaiveSnapshots:
    """Of one sink."""

    last_ms: int | None = None
    maker: str | None = None
    agreed_to: int = 0
    covered: set[int] = field(default_factory=set)
    older: set[int] = field(default_factory=set)
    newer: set[int] = field(default_factory=set)
    older_ms: int = 0
    newer_ms: int = 0
    doubled: dict[int, int] = field(default_factory=dict)
    """Rows beyond the first, as many as were ever seen."""
    absent: set[int] = field(default_factory=set)

    def begin(self, snapshot: Snapshot, maker: str | None, horizons: list[Horizon], grace: int) -> list[Horizon]:
        """A piece of a snapshot comes; the horizons, timed by its maker's clock."""
        at = snapshot.at_ms
        if self.last_ms is None or maker != self.maker:
            self.older_ms = self.newer_ms = at
            horizons = [(broker_ms, worker_ms, horizon, at) for broker_ms, worker_ms, horizon, _ in horizons]
        if at != self.last_ms:
            self.covered = set()
            had_its_chance = self.last_ms is not None and self.older_ms + 2 * grace <= self.last_ms
            if self.last_ms is not None and self.newer and (not self.older or had_its_chance):
                self.older, self.older_ms, self.newer = self.older | self.newer, self.newer_ms, set()
        self.last_ms, self.maker = at, maker
        self.covered |= set(range(snapshot.first, snapshot.stop))
        return horizons

    def vanished(self, lacking: set[int], present: set[int], grace: int) -> set[int]:
        """``lacking`` was received."""
        assert self.last_ms is not None
        gone = set()
        self.older -= present
        self.newer -= present
        if self.older_ms + grace <= self.last_ms:
            gone |= self.older & lacking
        if self.newer_ms + grace <= self.last_ms:
            gone |= self.newer & lacking
        self.older -= gone
        self.newer -= gone
        new = lacking - gone - self.older - self.newer
        if new:
            self.newer |= new
            self.newer_ms = self.last_ms
        return gone

    def agree(self, start: int, horizons: Iterable[Horizon], grace: int) -> None:
        """How far this snapshot, and one before, have covered what lies below a horizon."""
        assert self.last_ms is not None
        for _, _, horizon, at in horizons:
            for offset in range(max(start, self.agreed_to), horizon if at + grace <= self.last_ms else 0):
                if not self.covered >= set(range(start, offset + 1)):
                    break
                self.agreed_to = offset + 1

    def keep(self, first: int = 0, stop: int = END) -> None:
        """Forget what is not in ``[first, stop)``."""
        self.older, self.newer, self.absent = ({o for o in some if first <= o < stop} for some in (self.older, self.newer, self.absent))
        self.doubled = {offset: rows for offset, rows in self.doubled.items() if first <= offset < stop}
