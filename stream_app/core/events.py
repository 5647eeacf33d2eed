"""The facts that the ledger tells, and their form on the alerts topic (contract section 5).

Events of one (topic, partition, sink) are numbered 1, 2, 3, ... without a hole for one birth of the state.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

import msgspec

from stream_app.core.model import CHUNK
from stream_app.core.offsets import END, OffsetSet

SPAN_MAX = 32 * CHUNK
"""Offsets that one event spans at most: 32 full bitmaps are 262 kB, 350 kB in base64, below Kafka's default of 1 MB."""
RANGES_MAX = 1_000
"""Ranges listed in one event; more travel as a bitmap."""

_MS_MAX = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last moment that RFC 3339 can write."""


class EventType(StrEnum):
    """Types of events; on the wire ``ce_type`` has the prefix ``gapstream.``."""

    GAP_OPENED = "gap.opened"
    GAP_FILLED = "gap.filled"
    GAP_EXPLAINED = "gap.explained"
    GAP_ACKNOWLEDGED = "gap.acknowledged"
    GAP_EXPIRED = "gap.expired"
    DUPLICATE_DETECTED = "duplicate.detected"
    SINK_STALLED = "sink.stalled"
    SINK_RESUMED = "sink.resumed"
    SINK_REWOUND = "sink.rewound"
    SINK_UNKNOWN = "sink.unknown"
    SINK_KNOWN = "sink.known"
    SINK_REMOVED = "sink.removed"
    LOG_TRUNCATED = "log.truncated"
    LOG_RECREATED = "log.recreated"
    LOG_EXPANDED = "log.expanded"
    LOG_UNREAD = "log.unread"
    LOG_UNREADABLE = "log.unreadable"


_T = EventType
_CRITICAL = {_T.GAP_OPENED, _T.GAP_EXPIRED, _T.LOG_TRUNCATED, _T.LOG_RECREATED, _T.LOG_UNREAD, _T.LOG_UNREADABLE}
_WARNING = {_T.DUPLICATE_DETECTED, _T.SINK_STALLED, _T.SINK_REWOUND, _T.SINK_UNKNOWN}


def severity(kind: EventType) -> str:
    """``critical``, ``warning`` or ``info``, by type."""
    if kind in _CRITICAL:
        return "critical"
    return "warning" if kind in _WARNING else "info"


@dataclass(frozen=True, slots=True)
class Event:
    """One fact about one (topic, partition, sink)."""

    type: EventType
    topic: str
    partition: int
    sink: str
    sequence: int
    detected_at_ms: int
    cause: str | None = None
    """The gap's cause; of ``gap.explained`` the cause it had, None when it never was open."""
    ranges: OffsetSet = field(default_factory=OffsetSet)
    """Offsets of records only; never changed after the event was made."""
    open_count: int | None = None
    open_gaps: int | None = None
    horizon: int | None = None
    log_start: int | None = None
    log_end: int | None = None
    first_timestamp_ms: int | None = None
    last_timestamp_ms: int | None = None
    expires_at_ms: int | None = None
    passed_at_ms: int | None = None
    """When the horizon passed the gap, by the clock that judged it."""
    reason: str | None = None
    by: str | None = None

    @property
    def id(self) -> str:
        """Unique within one birth of the state."""
        return f"{self.topic}/{self.partition}/{self.sink}/{self.sequence}"

    @property
    def key(self) -> str:
        """Key on the alerts topic: keeps the events of one sink and partition in order."""
        return f"{self.topic}/{self.partition}/{self.sink}"


def pieces(offsets: OffsetSet) -> Iterator[OffsetSet]:
    """Split into sets that fit one event each: at most :data:`SPAN_MAX` offsets from first to last."""
    first = offsets.first()
    while first is not None:
        stop = min(first + SPAN_MAX, END)
        yield offsets.within(first, stop)
        first = next((a for a, _ in offsets.runs(stop)), None)


def rfc3339(ms: int | None) -> str | None:
    """``2026-11-23T10:00:00.000Z``; None stays None.

    So does a time before 1970 or after 9999: producers set record times freely (CreateTime), and no clock shows those.
    """
    if ms is None or not 0 <= ms <= _MS_MAX:
        return None
    whole, rest = divmod(ms, 1000)
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:03d}Z"


def closed(offsets: OffsetSet, most: int | None = None) -> list[list[int]]:
    """Closed ranges, as every output has them; ``most`` at most."""
    return [[first, stop - 1] for first, stop in islice(offsets.runs(), most)]


def bitmap(offsets: OffsetSet) -> dict[str, Any]:
    """``{"base", "roaring"}``: the portable Roaring format in base64, values counted from base."""
    base, values = offsets.to_bitmap()
    values.run_optimize()
    return {"base": base, "roaring": base64.b64encode(values.serialize()).decode()}


def as_json(event: Event, source: str) -> bytes:
    """The value on the alerts topic; every key is there, what does not apply is null."""
    ranges = closed(event.ranges, RANGES_MAX + 1)
    first, last = event.ranges.first(), event.ranges.last()
    opened = None if event.open_count is None else {"count": event.open_count, "gaps": event.open_gaps}
    return msgspec.json.encode(
        {
            "v": 1,
            "source": source,
            "id": event.id,
            "sequence": event.sequence,
            "type": str(event.type),
            "severity": severity(event.type),
            "topic": event.topic,
            "partition": event.partition,
            "sink": event.sink,
            "cause": event.cause,
            "first_offset": first,
            "last_offset": last,
            "count": event.ranges.count if ranges else None,
            "ranges": ranges if 0 < len(ranges) <= RANGES_MAX else None,
            "bitmap": bitmap(event.ranges) if len(ranges) > RANGES_MAX else None,
            "open": opened,
            "horizon_offset": event.horizon,
            "log_start_offset": event.log_start,
            "log_end_offset": event.log_end,
            "first_timestamp": rfc3339(event.first_timestamp_ms),
            "last_timestamp": rfc3339(event.last_timestamp_ms),
            "expires_at": rfc3339(event.expires_at_ms),
            "passed_at": rfc3339(event.passed_at_ms),
            "detected_at": rfc3339(event.detected_at_ms),
            "reason": event.reason,
            "by": event.by,
        }
    )


def headers(event: Event, source: str) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 headers in Kafka's binary mode (cloudevents/spec, kafka-protocol-binding.md)."""
    pairs = {
        "ce_specversion": "1.0",
        "ce_id": event.id,
        "ce_source": source,
        "ce_type": f"gapstream.{event.type}",
        "ce_subject": event.key,
        "ce_time": rfc3339(event.detected_at_ms) or "",
        "content-type": "application/json",
    }
    return [(name, value.encode()) for name, value in pairs.items()]
