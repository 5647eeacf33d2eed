"""What is remembered of ``gap.opened`` events for the listings; where there are too many, coarser, never wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream_app.core.model import Cause

OPENINGS_MAX = 2_000
"""Openings remembered per sink and partition, about 70 kB; where there are more, neighbours are joined."""


@dataclass(slots=True)
class Opening:
    """One ``gap.opened`` of which something is still open: what listings need and the sets do not hold."""

    sequence: int
    cause: Cause
    first: int
    stop: int
    opened_at_ms: int
    lowest_ms: int | None
    """Lowest record time in it; None: unknown."""


def coarser(openings: Iterable[Opening]) -> list[Opening]:
    """Half as many: neighbours of the same cause are joined."""
    ordered = sorted(openings, key=lambda o: (o.cause, o.first))
    found: list[Opening] = []
    for one, other in zip(ordered[::2], [*ordered[1::2], None], strict=False):
        found += _joined(one, other)
    return found


def _joined(one: Opening, other: Opening | None) -> list[Opening]:
    """One opening for two of the same cause: from the first on, since the earlier, not older than the older."""
    if other is None or other.cause is not one.cause:
        return [one] if other is None else [one, other]
    lowest = None if one.lowest_ms is None or other.lowest_ms is None else min(one.lowest_ms, other.lowest_ms)
    earlier = min(one, other, key=lambda o: (o.opened_at_ms, o.sequence))
    stop = max(one.stop, other.stop)
    return [Opening(earlier.sequence, one.cause, min(one.first, other.first), stop, earlier.opened_at_ms, lowest)]
