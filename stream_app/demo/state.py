"""What is known of a running demo: what the screen shows, and what is compared at the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stream_app.core.offsets import OffsetSet
from stream_app.demo.faults import Fault, Kind, listed

NEWEST = 500
"""Faults kept for the screen."""


@dataclass(slots=True)
class Row:
    """One injected fault and what became of it."""

    fault: Fault
    at: float
    """When it was done, seconds since the epoch."""
    told_at: float | None = None
    """When the detector had read its event."""

    @property
    def delay_s(self) -> float | None:
        """From the deed to the event; None: not told yet."""
        return None if self.told_at is None else max(self.told_at - self.at, 0.0)


@dataclass(slots=True)
class State:
    """Grows while the demo runs."""

    seed: int
    url: str
    """Of the worker's API."""
    seconds: float | None
    kinds: tuple[Kind, ...] = tuple(Kind)
    """What can go wrong in this run."""
    doing: str = "starting"
    begun_at: float | None = None
    """Monotonic; None: it has not begun."""
    produced: int = 0
    consumed: int = 0
    injected: list[Fault] = field(default_factory=list)
    detected: list[Fault] = field(default_factory=list)
    """As of the detector's last report."""
    trouble: str | None = None
    """What the detector finds wrong with the alert stream."""
    rows: deque[Row] = field(default_factory=lambda: deque(maxlen=NEWEST))
    told: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    """How many injected faults were told."""
    done: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    """How many were injected."""
    status: Sequence[Mapping[str, Any]] = ()
    """The worker's last answer."""
    _seen: dict[tuple[Kind, str, int], OffsetSet] = field(default_factory=dict)

    @property
    def elapsed_s(self) -> float:
        """Since the begin."""
        return 0.0 if self.begun_at is None else time.monotonic() - self.begun_at

    def note_injected(self, fault: Fault, at: float) -> Row:
        """The pipeline has done it."""
        self.injected.append(fault)
        self.done[fault.kind] += 1
        row = Row(fault, at)
        self.rows.append(row)
        if self._covers(fault):
            self._note_told(row, at)
        return row

    def note_seen(self, fault: Fault, at: float) -> list[Row]:
        """The detector has read of it; the faults that are told with it."""
        self._seen.setdefault((fault.kind, fault.topic, fault.partition), OffsetSet()).add(fault.first, fault.stop)
        told = [row for row in self.rows if row.told_at is None and self._covers(row.fault)]
        for row in told:
            self._note_told(row, at)
        return told

    def _covers(self, fault: Fault) -> bool:
        seen = self._seen.get((fault.kind, fault.topic, fault.partition))
        return seen is not None and seen.count_within(fault.first, fault.stop) == fault.stop - fault.first

    def _note_told(self, row: Row, at: float) -> None:
        row.told_at = at
        self.told[row.fault.kind] += 1

    def is_equal(self) -> bool:
        """Whether what was detected is what was injected."""
        return listed(self.injected) == listed(self.detected)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended."""

    state: State
    failure: str | None
    """Why it is no success, one sentence; None: all is well."""
    stopped_by: int | None = None
    """Signal that ended it."""

    def as_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        state = self.state
        injected, detected = listed(state.injected), listed(state.detected)
        return {"ok": self.failure is None, "seed": state.seed, "injected": injected, "detected": detected}
