"""The questions of ``/v0/pipes``, answered from what the owners say by minute of record time and from the gaps they list: pure.

A row speaks of one topic, partition and sink. ``missing`` are records that the sink lacks and should have; what it lacks for a
good reason is ``explained``; see docs/pipes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from stream_app.core.minutes import MINUTE_MS
from stream_app.core.model import Gap, MinuteRow, Reason, Row, Run
from stream_app.service.told_minutes import RowKey
from stream_app.service.view import LOG, Allow, StatusView

STRING, PARTITION, OFFSET, COUNT, TIME, SECOND = "String", "Int32", "Int64", "UInt64", "DateTime64(3)", "DateTime"
"""ClickHouse's names of types."""
EXTRA = (("sink", STRING), ("duplicate_messages", COUNT), ("explained_messages", COUNT), ("open_missing_messages", COUNT))
"""Columns behind the guide's."""
_PLACE = (("__topic", STRING), ("__partition", PARTITION))


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted of a pipe."""

    minutes: int
    """Length of the window, which begins at a whole minute."""
    open: bool
    """Whether what is open is told beyond the window, too."""
    topic: str | None = None
    sink: str | None = None
    """None: every configured one. One that stands in no configuration has no gaps, but numbers where it is named."""
    allow: Allow | None = None


@dataclass(slots=True)
class Found:
    """The rows of an answer, values in the order of the pipe's columns; times in ms since the epoch."""

    rows: list[Sequence[Any]] = field(default_factory=list)
    rows_read: int = 0
    """Minutes and gaps that were looked at."""
    bytes_read: int = 0


@dataclass(slots=True)
class _Part:
    """What is known of one partition and sink."""

    key: RowKey
    row: Row
    minutes: list[MinuteRow]
    gaps: Sequence[Gap]

    @property
    def missing(self) -> int:
        """Everything that is open, of any time."""
        return self.row.missing or 0

    def since(self, minute: int) -> list[MinuteRow]:
        return [one for one in self.minutes if one.minute >= minute]

    def since_open(self) -> tuple[list[MinuteRow], int]:
        """The minutes from the first open record on, and how many open records are of no minute that is kept."""
        older = max(self.missing - sum(one.open for one in self.minutes), 0)
        first = min((one.minute for one in self.minutes if one.open), default=None)
        return self.since(0 if older or first is None else first), older


Answer = Callable[[_Part, int, Asked, int], Iterable[Sequence[Any]]]
"""Of one part: (what is known, first minute of the window, what is asked, now) -> rows."""


@dataclass(frozen=True, slots=True)
class Pipe:
    """One of the guide's queries."""

    name: str
    columns: tuple[tuple[str, str], ...]
    """Name and type."""
    minutes: int
    """Length of the window where none is asked for."""
    answer: Answer
    order: Callable[[Sequence[Any]], Any]
    open: bool = False
    """Whether it tells what is open beyond the window where nothing is said of that."""
    of_gaps: bool = True
    """Whether each of its rows says that something is missing: then none is of a sink that stands in no configuration."""

    def ask(self, view: StatusView, asked: Asked, now_ms: int) -> Found:
        """Everything that matches, in the pipe's order."""
        found = Found()
        for _ in self.steps(view, asked, now_ms, found):
            pass
        return found

    def steps(self, view: StatusView, asked: Asked, now_ms: int, found: Found) -> Iterator[None]:
        """The same, one partition and sink a step, so that others may work in between; ``found`` is right after the last one."""
        start = now_ms // MINUTE_MS - asked.minutes
        for part in _parts(view, asked, found, start, strangers=asked.sink is not None and not self.of_gaps):
            found.rows += self.answer(part, start, asked, now_ms)
            yield
        found.rows.sort(key=self.order)


def _parts(view: StatusView, asked: Asked, found: Found, start: int, *, strangers: bool) -> Iterator[_Part]:
    """``strangers``: with sinks that stand in no configuration."""
    for row in view.rows(asked.topic, asked.sink, asked.allow):
        if row.sink == LOG or not (row.configured or strangers):
            continue
        key = (row.topic, row.partition, row.sink)
        minutes, size = view.minutes.of(key, 0 if asked.open and row.missing else start)
        gaps = view.gaps_of(key)
        found.rows_read += len(minutes) + len(gaps)
        found.bytes_read += size
        yield _Part(key, row, minutes, gaps)


# --- by partition ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sum:
    """Some minutes of a part together."""

    first: int | None
    last: int | None
    received: int
    duplicates: int
    missing: int
    explained: int
    open: int
    low_ms: int | None
    high_ms: int | None

    @property
    def messages(self) -> int:
        return self.received + self.duplicates


def _sum(minutes: Sequence[MinuteRow], older: int = 0) -> _Sum:
    """``older``: open records of none of these minutes."""
    with_rows = [one for one in minutes if one.received]
    return _Sum(
        first=min((one.first for one in with_rows if one.first is not None), default=None),
        last=max((one.last for one in with_rows if one.last is not None), default=None),
        received=sum(one.received for one in minutes),
        duplicates=sum(one.duplicates for one in minutes),
        missing=sum(one.missing for one in minutes) + older,
        explained=sum(one.explained for one in minutes),
        open=sum(one.open for one in minutes) + older,
        low_ms=min((one.low_ms for one in with_rows), default=None),
        high_ms=max((one.high_ms for one in with_rows), default=None),
    )


def _lacking(part: _Part, start: int, asked: Asked) -> _Sum | None:
    """The window, or as far back as something is open where nothing of that lies in it; None: nothing is missing."""
    total = _sum(part.since(start))
    if asked.open and part.missing and not total.open:
        total = _sum(*part.since_open())
    return total if total.missing else None


def _missing_offsets(part: _Part, start: int, asked: Asked, now_ms: int) -> Iterator[Sequence[Any]]:
    topic, partition, sink = part.key
    one = _lacking(part, start, asked)
    if one is not None:
        yield topic, partition, one.first, one.last, one.messages, one.missing, sink, one.duplicates, one.explained, one.open


def _missing_offsets_alert(part: _Part, start: int, asked: Asked, now_ms: int) -> Iterator[Sequence[Any]]:
    topic, partition, sink = part.key
    one = _lacking(part, start, asked)
    if one is not None:
        place, numbers = (topic, partition), (one.missing, one.first, one.last, one.messages)
        yield *place, *numbers, one.low_ms, one.high_ms, now_ms, sink, one.duplicates, one.explained, one.open


def _offset_stats(part: _Part, start: int, asked: Asked, now_ms: int) -> Iterator[Sequence[Any]]:
    topic, partition, sink = part.key
    for row in part.minutes:
        if (row.minute >= start or (asked.open and row.open)) and (row.received or row.missing):
            one = _sum([row])
            numbers = (one.first, one.last, one.messages, one.received + one.missing, one.missing)
            yield row.minute * MINUTE_MS, topic, partition, *numbers, sink, one.duplicates, one.explained, one.open


# --- gaps ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hole:
    """Everything that a sink lacks between two records that it has."""

    gaps: Sequence[Gap]

    @property
    def missing(self) -> list[Gap]:
        return [gap for gap in self.gaps if _is_missing(gap)]

    @property
    def behind(self) -> Gap:
        return self.gaps[-1]

    def counts(self) -> tuple[int, int]:
        """Records explained, and open."""
        explained = sum(gap.count for gap in self.gaps if not _is_missing(gap))
        return explained, sum(gap.count for gap in self.gaps if gap.open)


def _is_missing(gap: Gap) -> bool:
    return gap.open or gap.cause == Reason.ACKNOWLEDGED


def _holes(gaps: Iterable[Gap]) -> Iterator[_Hole]:
    for _, some in groupby(gaps, key=lambda gap: gap.next_offset):
        yield _Hole(list(some))


def _gaps(part: _Part, start: int, asked: Asked) -> Iterator[tuple[_Hole, list[Gap]]]:
    for hole in _holes(part.gaps):
        missing = hole.missing
        if missing and ((missing[0].minute or -1) >= start or (asked.open and any(gap.open for gap in missing))):
            yield hole, missing


def _offset_gaps(part: _Part, start: int, asked: Asked, now_ms: int) -> Iterator[Sequence[Any]]:
    topic, partition, sink = part.key
    for hole, missing in _gaps(part, start, asked):
        size = sum(gap.count for gap in missing)
        yield topic, partition, missing[0].first, hole.behind.next_offset, size, sink, 0, *hole.counts()


def _find_gaps(part: _Part, start: int, asked: Asked, now_ms: int) -> Iterator[Sequence[Any]]:
    topic, partition, sink = part.key
    for hole, missing in _gaps(part, start, asked):
        size, last = sum(gap.count for gap in missing), max(gap.stop for gap in missing) - 1
        yield topic, partition, missing[0].first, last, size, hole.behind.next_timestamp_ms, sink, 0, *hole.counts()


# --- what is stored ------------------------------------------------------------------------------------------------------


def _offsets(part: _Part, start: int, asked: Asked, now_ms: int) -> Iterator[Sequence[Any]]:
    topic, partition, sink = part.key
    total = _sum(part.since_open()[0] if asked.open and part.missing else part.since(start))
    if total.first is None or total.last is None:
        return
    ranges = list(_ranges(part.gaps, total.first, total.last + 1, total.low_ms, total.high_ms))
    duplicates = total.duplicates if len(ranges) == 1 or not total.duplicates else None
    for (first, stop), first_ms, last_ms in ranges:
        yield topic, partition, first, stop - 1, first_ms, last_ms, sink, duplicates, 0, 0


def _ranges(
    gaps: Iterable[Gap], first: int, stop: int, low_ms: int | None, high_ms: int | None
) -> Iterator[tuple[Run, int | None, int | None]]:
    """What lies between the gaps in ``[first, stop)``, with the times of its first and its last record."""
    at, at_ms = first, low_ms
    for hole in _holes(gaps):
        edge, behind = hole.gaps[0], hole.behind
        if edge.first >= stop:
            break
        if edge.first > at:
            yield (at, edge.first), at_ms, edge.before_timestamp_ms
        if behind.next_offset is None:
            return
        if behind.next_offset >= at:
            at, at_ms = behind.next_offset, behind.next_timestamp_ms
    if at < stop:
        yield (at, stop), at_ms, high_ms


# --- the pipes -----------------------------------------------------------------------------------------------------------


def _nullable(kind: str) -> str:
    return f"Nullable({kind})"


_BOUNDS = (("min_offset", _nullable(OFFSET)), ("max_offset", _nullable(OFFSET)))

PIPES: Mapping[str, Pipe] = {
    pipe.name: pipe
    for pipe in (
        Pipe(
            "missing_offsets",
            (*_PLACE, *_BOUNDS, ("message_count", COUNT), ("missing_messages", OFFSET), *EXTRA),
            60,
            _missing_offsets,
            lambda row: (row[0], row[1], row[6]),
        ),
        Pipe(
            "offset_gaps",
            (*_PLACE, ("expected_offset", OFFSET), ("actual_offset", _nullable(OFFSET)), ("gap_size", OFFSET), *EXTRA),
            60,
            _offset_gaps,
            lambda row: (row[0], row[1], row[2], row[5]),
        ),
        Pipe(
            "missing_offsets_alert",
            (
                *_PLACE,
                ("missing_messages", OFFSET),
                *_BOUNDS,
                ("message_count", COUNT),
                ("first_message_time", _nullable(TIME)),
                ("last_message_time", _nullable(TIME)),
                ("alert_time", SECOND),
                *EXTRA,
            ),
            15,
            _missing_offsets_alert,
            lambda row: (-row[2], row[0], row[1], row[9]),
            open=True,
        ),
        Pipe(
            "find_gaps",
            (
                *_PLACE,
                ("missing_offset_start", OFFSET),
                ("missing_offset_end", OFFSET),
                ("gap_size", OFFSET),
                ("detected_at", _nullable(TIME)),
                *EXTRA,
            ),
            15,
            _find_gaps,
            lambda row: (row[0], row[1], row[2], row[6]),
        ),
        Pipe(
            "offset_stats",
            (
                ("minute", SECOND),
                *_PLACE,
                *_BOUNDS,
                ("messages_received", COUNT),
                ("expected_messages", OFFSET),
                ("missing_messages", OFFSET),
                *EXTRA,
            ),
            60,
            _offset_stats,
            lambda row: (-row[0], row[1], row[2], row[8]),
            of_gaps=False,
        ),
        Pipe(
            "offsets",
            (
                *_PLACE,
                ("first_offset", OFFSET),
                ("last_offset", OFFSET),
                ("first_timestamp", _nullable(TIME)),
                ("last_timestamp", _nullable(TIME)),
                EXTRA[0],
                (EXTRA[1][0], _nullable(COUNT)),
                *EXTRA[2:],
            ),
            60,
            _offsets,
            lambda row: (row[0], row[1], row[2], row[6]),
            of_gaps=False,
        ),
    )
}
