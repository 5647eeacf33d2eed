"""Sinks that are topics of copies: whether it matters how far their copies were read."""

from __future__ import annotations

from stream_app.core.log import LogState
from stream_app.core.sink import SinkState


def awaits(log: LogState, sink: SinkState, at_ms: int) -> bool:
    """Whether it would tell something that the copies were read as of this time: something is to be judged, or waits for the sink."""
    stands_at = sink.stands_at
    if not sink.policy.mirrored or stands_at is None or at_ms <= (sink.copied_ms or 0):
        return False
    return sink.settled is None or sink.settled < min(stands_at, log.read) or log.has_record(stands_at, log.read)
