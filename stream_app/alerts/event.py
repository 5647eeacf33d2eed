"""One event of the alerts topic, as its JSON says it (contract section 5)."""

from __future__ import annotations

import msgspec

from stream_app.core.codec import decode_bitmap
from stream_app.core.model import MAX_OFFSET
from stream_app.core.offsets import OffsetSet

VERSION = 1

Key = tuple[str, int, str]
"""Topic, partition, sink."""


class EventError(ValueError):
    """What was read is no alert event; the message says what is wrong with it."""


class Bitmap(msgspec.Struct, frozen=True):
    """Offsets as a Roaring bitmap in the portable format, counted from ``base``."""

    base: int
    roaring: bytes


class OpenNow(msgspec.Struct, frozen=True):
    """What is open of this topic, partition and sink after the event."""

    count: int
    """Missing records."""
    gaps: int


class AlertEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event. Ranges are closed and times are text, as in the JSON; what does not apply is None."""

    v: int = VERSION
    source: str
    """``gapstream://<cluster id>/<app.id>/<birth of the state>``."""
    id: str
    """Unique within its source."""
    sequence: int
    """1, 2, 3, ... for each source, topic, partition and sink."""
    type: str
    severity: str
    topic: str
    partition: int
    sink: str
    cause: str | None = None
    first_offset: int | None = None
    last_offset: int | None = None
    count: int | None = None
    ranges: list[tuple[int, int]] | None = None
    bitmap: Bitmap | None = None
    open: OpenNow | None = None
    horizon_offset: int | None = None
    log_start_offset: int | None = None
    log_end_offset: int | None = None
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    expires_at: str | None = None
    passed_at: str | None = None
    detected_at: str | None = None
    reason: str | None = None
    by: str | None = None

    @property
    def key(self) -> Key:
        """What the event is about; on the topic the key is its parts joined by slashes."""
        return self.topic, self.partition, self.sink

    def offsets(self) -> OffsetSet:
        """The offsets that the event names, records only; empty for events that name none.

        Raises:
            EventError: they can't be read.
        """
        if self.bitmap is not None:
            try:
                return OffsetSet.from_bitmap(self.bitmap.base, decode_bitmap(self.bitmap.roaring))
            except ValueError as error:
                raise EventError(f"event {self.id}: its bitmap can't be read: {error}") from error
        for first, last in self.ranges or ():
            if not 0 <= first <= last <= MAX_OFFSET:
                raise EventError(f"event {self.id}: [{first}, {last}] is no range of offsets")
        return OffsetSet((first, last + 1) for first, last in self.ranges or ())

    def to_json(self) -> bytes:
        """The event's JSON, on one line."""
        return msgspec.json.encode(self)


_DECODER = msgspec.json.Decoder(AlertEvent)


def decode(value: bytes | None) -> AlertEvent:
    """The event in the value of a record of the alerts topic; fields that are not known are left out.

    Raises:
        EventError: it is none, or one of a later version of the format.
    """
    if value is None:
        raise EventError("it has no value")
    try:
        event = _DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        raise EventError(f"it is no alert event: {error}") from error
    if event.v != VERSION:
        raise EventError(f"it is of version {event.v}; this program knows version {VERSION}: install a later one")
    if event.sequence < 1:
        raise EventError(f"its sequence {event.sequence} is below 1")
    return event
