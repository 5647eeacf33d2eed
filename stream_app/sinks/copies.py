"""Copies of records in another topic: where each came from, by its headers, and what that says of the sink that the topic is.

Pure. A copy carries the topic, partition and offset of its source in headers: decimal text, or 8 bytes big-endian (as Kafka's
``LongSerializer`` writes). Of a header that stands there more than once the last one counts, as in Kafka's ``lastHeader``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stream_app.core.model import MAX_OFFSET, Observation, Status
from stream_app.core.offsets import END, OffsetSet
from stream_app.sinks.observation import portions

TIMES_MAX = 1_000
"""Copies of one record, read at once, that are told one by one: more of them say nothing new, and each is an observation."""
RUNS_AT_ONCE = 10_000
"""Of one observation: about half of what it may have, even if each is written out in full."""

Header = tuple[str, bytes | str | None]


@dataclass(frozen=True, slots=True)
class SourceHeaders:
    """Names of the headers that hold a record's source."""

    topic: str
    partition: str
    offset: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record was copied from."""

    topic: str
    partition: int
    offset: int


def source_of(headers: Sequence[Header] | None, names: SourceHeaders) -> Source | None:
    """The source that ``headers`` tell; None: not all of it is there, or it makes no sense."""
    found: dict[str, bytes] = {}
    for name, value in headers or ():
        if value is not None:
            found[name] = value.encode() if isinstance(value, str) else value
    topic, partition, offset = found.get(names.topic), _number(found.get(names.partition)), _number(found.get(names.offset))
    if topic is None or partition is None or offset is None or partition >= 2**31:
        return None
    return Source(topic.decode(errors="replace"), partition, offset)


def _number(value: bytes | None) -> int | None:
    """Decimal text, else 8 bytes big-endian: digits as bytes would be a number beyond every offset that was ever written."""
    if value is None or not value:
        return None
    if value.isdigit():
        number = int(value)
    elif len(value) == 8:
        number = int.from_bytes(value, "big", signed=True)
    else:
        return None
    return number if 0 <= number < MAX_OFFSET else None


@dataclass(slots=True)
class Gathered:
    """What some copies say of one watched topic."""

    offsets: dict[int, list[OffsetSet]] = field(default_factory=dict)
    """By source partition: offsets copied at least once, twice, ...: each set an observation of its own."""
    unknown: int = 0
    """Records whose headers tell no source."""
    others: int = 0
    """Copies of other topics."""
    _times: dict[tuple[int, int], int] = field(default_factory=dict)
    """By source partition and offset: how often it was copied."""

    def add(self, sources: Iterable[Source | None], topic: str) -> None:
        """Takes some more."""
        for source in sources:
            if source is None:
                self.unknown += 1
            elif source.topic != topic:
                self.others += 1
            else:
                self._add(source.partition, source.offset)

    def _add(self, partition: int, offset: int) -> None:
        times = self._times[partition, offset] = self._times.get((partition, offset), 0) + 1
        if times > TIMES_MAX:
            return
        levels = self.offsets.setdefault(partition, [])
        if times > len(levels):
            levels.append(OffsetSet())
        levels[times - 1].add(offset, offset + 1)

    def set_apart(self, partition: int, end: int) -> None:
        """What is said to come from ``end`` on, where the log ends, becomes observations of its own: they are rejected whole."""
        levels = self.offsets[partition]
        beyond = [level.within(end, END) for level in levels]
        for level in levels:
            level.remove(end, END)
        self.offsets[partition] = [level for level in (*levels, *beyond) if level]


def observations(
    gathered: Gathered, sink: str, status: Status, reason: str | None, source: str, sequence: int
) -> list[tuple[int, Observation]]:
    """Source partition and observation, numbered from ``sequence`` on in the order of the list."""
    found = []
    for partition, levels in sorted(gathered.offsets.items()):
        for runs in (some for level in levels for some in portions(tuple(level.runs()), RUNS_AT_ONCE)):
            found.append((partition, Observation(sink, runs, status, reason=reason, source=source, sequence=sequence)))
            sequence += 1
    return found
