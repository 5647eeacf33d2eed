"""From events to what is open now (contract section 5): pure, needs no Kafka."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from stream_app.alerts.event import AlertEvent, EventError, Key
from stream_app.core.offsets import OffsetSet

REMEMBERED = 1_024
"""Latest events of each source and key whose contents are remembered, to notice two contents under one id: a delivery that
is repeated comes soon after the first, and 1,024 digests are about 100 kB."""

OPENED = "gap.opened"
EXPIRED = "gap.expired"
EXITS = frozenset({"gap.filled", "gap.explained", "gap.acknowledged"})

OpenGaps = dict[Key, dict[str, list[tuple[int, int]]]]
"""(topic, partition, sink) -> cause -> ascending closed ranges of missing records."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Events that never came, though later ones of the same source and key did."""

    source: str
    key: Key
    first: int
    """First sequence that is missing."""
    last: int
    """Last sequence that is missing."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """An event that came again under the same id with other contents; the first one counts."""

    source: str
    id: str


@dataclass(slots=True)
class _Stream:
    """The events of one source and key."""

    last: int = 0
    """Highest sequence so far."""
    digests: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    """By sequence, the latest last."""
    open: dict[str, OffsetSet] = field(default_factory=dict)
    """By cause."""


class Fold:
    """The open gaps of everything that its events speak of.

    Events of one topic, partition and sink must come in their order, as they stand in the topic; repeats are dropped. A
    new birth of the state (another source) starts empty, and what its predecessor had open is forgotten.
    """

    def __init__(self, *, from_start: bool = True) -> None:
        """``from_start``: events come from sequence 1 on, so one that begins later tells of a hole before it."""
        self.holes: list[Hole] = []
        """In the order in which they were noticed; with one, the fold can't be relied on for its key."""
        self.conflicts: list[Conflict] = []
        self._from_start = from_start
        self._streams: dict[tuple[str, Key], _Stream] = {}
        self._current: dict[Key, str] = {}
        self._superseded: dict[tuple[str, int], set[str]] = {}

    def apply(self, event: AlertEvent) -> bool:
        """Take one event; False: it is a repeat, or of a birth that has ended, and changes nothing.

        Raises:
            EventError: it names a gap but not its offsets or its cause; nothing is changed.
        """
        stream = self._streams.get((event.source, event.key), _Stream())
        digest = hashlib.blake2b(event.to_json(), digest_size=16).digest()
        if event.sequence <= stream.last:
            if stream.digests.get(event.sequence, digest) != digest:
                self.conflicts.append(Conflict(event.source, event.id))
            return False
        if self._is_past(event):
            return False
        offsets = _offsets(event)
        self._begin(event, stream)
        if event.sequence > stream.last + 1 and (stream.last or self._from_start):
            self.holes.append(Hole(event.source, event.key, stream.last + 1, event.sequence - 1))
        stream.last = event.sequence
        stream.digests[event.sequence] = digest
        if len(stream.digests) > REMEMBERED:
            stream.digests.popitem(last=False)
        _change(stream.open, event, offsets)
        return True

    def _is_past(self, event: AlertEvent) -> bool:
        """Whether this key has moved on to another birth: what comes late from the old one is a repeat."""
        return self._current.get(event.key) != event.source and (event.source, event.key) in self._streams

    def _begin(self, event: AlertEvent, stream: _Stream) -> None:
        before = self._current.get(event.key)
        if before == event.source:
            return
        self._streams[event.source, event.key] = stream
        self._current[event.key] = event.source
        if before is not None:
            self._superseded.setdefault((event.topic, event.partition), set()).add(before)
            ended = self._streams[before, event.key]
            ended.open.clear()
            ended.digests.clear()

    def open_gaps(self) -> OpenGaps:
        """What is open now; keys and causes with nothing open are left out.

        The state of a partition is born as a whole, so a key that was silent since its partition's rebirth has nothing open.
        """
        found: OpenGaps = {}
        for key in sorted(self._current):
            source = self._current[key]
            if source in self._superseded.get(key[:2], ()):
                continue
            causes = self._streams[source, key].open
            listed = {cause: [(first, stop - 1) for first, stop in causes[cause].runs()] for cause in sorted(causes) if causes[cause]}
            if listed:
                found[key] = listed
        return found


def _offsets(event: AlertEvent) -> OffsetSet:
    """The offsets of a gap's event; empty for events that open and close nothing."""
    if event.type not in {OPENED, EXPIRED, *EXITS}:
        return OffsetSet()
    offsets = event.offsets()
    if not offsets:
        raise EventError(f"event {event.id}: {event.type} without offsets")
    if event.type == OPENED and event.cause is None:
        raise EventError(f"event {event.id}: {event.type} without a cause")
    return offsets


def _change(opened: dict[str, OffsetSet], event: AlertEvent, offsets: OffsetSet) -> None:
    if event.type in EXITS or event.type == EXPIRED:
        # What was explained may never have been open: then there is nothing to take away.
        for those in opened.values():
            those.difference_update(offsets)
    if event.type == EXPIRED:
        opened.setdefault(event.cause or "expired", OffsetSet()).update(offsets)
    elif event.type == OPENED and event.cause is not None:
        opened.setdefault(event.cause, OffsetSet()).update(offsets)
