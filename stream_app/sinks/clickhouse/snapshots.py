"""What a worker asks a table of the partitions that it owns, and the observations that the answer becomes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stream_app.core.model import CHUNK, Observation, Snapshot, Status
from stream_app.core.offsets import END, OffsetSet
from stream_app.sinks.clickhouse.layout import Check, Held, Span, chunk_runs, joined

AHEAD_CHUNKS = 4_096
"""Chunks from that of ``settled`` on that one check asks for: a table that is far ahead is taken in steps of 268 million offsets."""
RUNS_MAX = 20_000
"""Runs of one observation, which may have 100,000: a chunk has 32,768 at most, so that two of them never come together."""
CHUNKS_MAX = 65_535
"""Chunks of one observation: a bitmap of 32 bits holds them."""
QUARANTINED = "in the quarantine table"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger of a partition says that a check depends on."""

    partition: int
    topic_id: bytes
    settled: int
    """Below it everything is judged."""
    horizon: int
    """One past the highest offset that the sink was ever seen to have; ``settled`` where nothing was."""
    open: OffsetSet
    """Open gaps below ``settled``."""
    end: int
    """Where the log ends, asked after the table answered: nothing above it may be observed."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """The table has offsets that the log has not: its rows belong to another log."""

    partition: int
    last: int
    end: int


def spans(standings: Iterable[Standing]) -> list[Span]:
    """What a check asks for: everything from ``settled`` on, and the chunks with open gaps below it."""
    asked: list[Span] = []
    for one in standings:
        for first, stop in chunk_runs(one.open):
            asked.append(Span(one.partition, first, min(stop, max(one.settled, first + 1))))
        asked.append(Span(one.partition, one.settled, (one.settled // CHUNK + AHEAD_CHUNKS) * CHUNK))
    return joined(asked)


def sweep_spans(standings: Iterable[Standing], since: Mapping[int, int]) -> list[Span]:
    """What a sweep asks for: the settled offsets of each partition from ``since`` on, which is not above the log's start,
    the table's TTL and the sink's ``verify``."""
    return joined(Span(one.partition, since[one.partition], one.settled) for one in standings if since[one.partition] < one.settled)


def observations(check: Check, standings: Mapping[int, Standing], sink: str) -> Iterator[tuple[int, Observation] | Beyond]:
    """Each observation with its partition, in order of offsets; what lies beyond the log's end is told apart and left out.

    A snapshot states all that the table has in its range. Above ``settled`` the range ends where the table does, or did before:
    rows that were there and are gone must be stated as gone, and of what never was there nothing is said.
    """
    for held in check.held:
        standing = standings[held.span.partition]
        last = max((one for one in (held.present.last(), held.quarantined.last()) if one is not None), default=-1)
        if last >= standing.end:
            yield Beyond(held.span.partition, last, standing.end)
        stop = END if held.span.stop is None else held.span.stop
        if stop > standing.settled:
            stop = min(stop, max(last + 1, standing.horizon, standing.settled))
        stop = min(stop, standing.end)
        for one in _snapshots(held, stop, check.at_ms, sink, standing.topic_id):
            yield held.span.partition, one
        for one in _quarantined(held, stop, sink, standing.topic_id):
            yield held.span.partition, one


def _snapshots(held: Held, stop: int, at_ms: int, sink: str, topic_id: bytes) -> Iterator[Observation]:
    for first, end, some in _pieces(held.present, held.span.first, stop):
        surplus = sum(more for number, more in held.surplus.items() if first // CHUNK <= number <= (end - 1) // CHUNK)
        snapshot = Snapshot(first, end, some.count + surplus, at_ms)
        yield Observation(sink, tuple(some.runs()), topic_id=topic_id, snapshot=snapshot)


def _quarantined(held: Held, stop: int, sink: str, topic_id: bytes) -> Iterator[Observation]:
    for _, _, some in _pieces(held.quarantined, held.span.first, stop):
        if some:
            yield Observation(sink, tuple(some.runs()), Status.QUARANTINED, reason=QUARANTINED, topic_id=topic_id)


def _pieces(offsets: OffsetSet, first: int, stop: int) -> Iterator[tuple[int, int, OffsetSet]]:
    """``[first, stop)`` in pieces between chunks, each with the offsets in it, small enough to be written."""
    begin, taken = first, 0
    at = first
    while at < stop:
        after = min((at // CHUNK + 1) * CHUNK, stop)
        count = sum(1 for _ in offsets.runs(at, after))
        if at > begin and (taken + count > RUNS_MAX or at // CHUNK - begin // CHUNK >= CHUNKS_MAX):
            yield begin, at, offsets.within(begin, at)
            begin, taken = at, 0
        taken += count
        at = after
    if begin < stop:
        yield begin, stop, offsets.within(begin, stop)
