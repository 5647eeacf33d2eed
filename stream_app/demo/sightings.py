"""What the alert events say went wrong, in the words of the demo's faults; knows nothing of what was planned. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from stream_app.alerts import AlertEvent, Fold
from stream_app.core.model import Cause, Reason
from stream_app.core.offsets import OffsetSet
from stream_app.demo.faults import Fault, Kind

Place = tuple[str, int]
"""Topic and partition."""

FILLED = "gap.filled"
OPENED = "gap.opened"
EXPLAINED = "gap.explained"
DUPLICATE = "duplicate.detected"


class Sightings:
    """Events in, faults out. Lost and vanished are what the fold of the events holds open; the others are sets of offsets."""

    def __init__(self) -> None:
        self._fold = Fold()
        self._seen: dict[tuple[Kind, Place], OffsetSet] = {}

    def note(self, event: AlertEvent) -> list[Fault]:
        """Take one event; what it shows by itself (a gap that opens: lost, until it is filled)."""
        kind = _kind(event)
        if not self._fold.apply(event) or kind is None:
            return []
        offsets = event.offsets()
        if kind not in (Kind.LOST, Kind.VANISHED):
            self._seen.setdefault((kind, (event.topic, event.partition)), OffsetSet()).update(offsets)
        return list(_faults(kind, (event.topic, event.partition), offsets))

    @property
    def trouble(self) -> str | None:
        """Why the events can't be relied on; None: each came once, in order, without a hole."""
        wrong = [*self._fold.holes, *self._fold.conflicts]
        return f"the alert stream is not whole: {wrong[0]}" if wrong else None

    def faults(self) -> list[Fault]:
        """All of them as of now: each maximal run of offsets is one fault."""
        found = [fault for (kind, place), offsets in self._seen.items() for fault in _faults(kind, place, offsets)]
        lost: dict[tuple[Kind, Place], OffsetSet] = {}
        for (topic, partition, _), causes in self._fold.open_gaps().items():
            for cause, ranges in causes.items():
                offsets = lost.setdefault((_lost(cause), (topic, partition)), OffsetSet())
                offsets.update(OffsetSet((first, last + 1) for first, last in ranges))
        found += [fault for (kind, place), offsets in lost.items() for fault in _faults(kind, place, offsets)]
        return sorted(found, key=lambda fault: fault.order)


def _kind(event: AlertEvent) -> Kind | None:
    if event.type == EXPLAINED:
        return Kind.QUARANTINED if event.reason == Reason.QUARANTINED else None
    return {OPENED: _lost(event.cause), FILLED: Kind.LATE, DUPLICATE: Kind.DUPLICATE}.get(event.type)


def _lost(cause: str | None) -> Kind:
    return Kind.VANISHED if cause == Cause.VANISHED else Kind.LOST


def _faults(kind: Kind, place: Place, offsets: OffsetSet) -> Iterator[Fault]:
    for first, stop in offsets.runs():
        yield Fault(kind, *place, first, stop)
