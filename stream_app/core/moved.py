"""What an observation moved."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream_app.core.model import Cause
from stream_app.core.offsets import OffsetSet
from stream_app.core.sources import Claimed


@dataclass(slots=True)
class Moved:
    """What one observation moved: record offsets by what is to be said of them."""

    repeat: bool = False
    claimed: Claimed | None = None
    filled: dict[Cause, OffsetSet] = field(default_factory=dict)
    explained: dict[Cause, OffsetSet] = field(default_factory=dict)
    """Left an open set for the reason of the observation."""
    accepted: OffsetSet = field(default_factory=OffsetSet)
    """Unread offsets that were acknowledged: they never were open."""
    reopened: dict[Cause, OffsetSet] = field(default_factory=dict)
    vanished: OffsetSet = field(default_factory=OffsetSet)
    """What agreeing snapshots lack, to be judged by :meth:`SinkState.vanish`."""
