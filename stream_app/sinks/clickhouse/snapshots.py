"""What a worker asks a table of the partitions that it owns, and the observations that the answer becomes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from stream_app.core.model import CHUNK, Observation, Runs, Snapshot, Status
from stream_app.core.offsets import END, OffsetSet
from stream_app.sinks.clickhouse.layout import Held, Span, chunk_runs, joined
from stream_app.sinks.observation import portions

AHEAD_CHUNKS = 4_096
"""Chunks from that of ``settled`` on that one check asks for: a table that is far ahead is taken in steps of 268 million offsets."""
PAST_CHUNKS = 2
"""Chunks above the log's last one that are asked for too: rows there are of another log, or of one that has grown meanwhile."""
RUNS_MAX = 20_000
"""Runs of one observation, those of doubled offsets included, unless a smaller piece has more: it may have 100,000."""
CHUNKS_MAX = 65_535
"""Chunks of one observation: a bitmap of 32 bits holds them."""
QUARANTINED = "in the quarantine table"
TOO_OLD = "older than the table's TTL when it was asked for"


@dataclass(slots=True)
class Standing:
    """What the ledger of a partition says that a check depends on, and what was found out for it."""

    partition: int
    topic_id: bytes
    settled: int
    """Below it everything is judged."""
    horizon: int
    """One past the highest offset that the sink was ever seen to have, or claimed; ``settled`` where there is none."""
    again: OffsetSet
    """What is asked for again below ``settled``: open gaps, and what lacked lately."""
    judged_from: int = 0
    since: int = 0
    """Rows of ``[judged_from, since)`` may have gone by the table's TTL: that they are not there says nothing."""
    aged: OffsetSet = field(default_factory=OffsetSet)
    """The same of these others; below ``settled`` only what was received."""
    lowest: int | None = 0
    """Where the sink begins, as far as that is known: of what never was there below its first row, nothing is said."""
    received: OffsetSet = field(default_factory=OffsetSet)
    """Received at and above ``settled``."""
    put_aside: OffsetSet = field(default_factory=OffsetSet)
    """Explained as quarantined."""
    heard: bool = True
    """Whether anything was ever said for the sink here."""
    at_ms: int = 0
    """When the question began, by the clock of the sink's snapshots."""
    end: int = 0
    """Where the log ends, as it is known: nothing above it may be observed."""
    source: str = ""
    sequence: int = 0
    """Of the next observation."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """The table has offsets that the log has not: its rows belong to another log."""

    partition: int
    last: int
    end: int


def spans(standings: Iterable[Standing]) -> list[Span]:
    """What a check asks for: everything from ``settled`` on, and the chunks with open gaps or suspects below it.

    Of what the table's TTL may have taken, only what may come back is asked for.
    """
    asked: list[Span] = []
    for one in standings:
        edge = min(one.since, one.settled)
        asked += [Span(one.partition, first, stop) for first, stop in one.again.within(0, edge).runs()]
        for first, stop in chunk_runs(one.again.within(edge, one.settled)):
            asked.append(Span(one.partition, max(first, edge), min(stop, one.settled)))
        asked.append(Span(one.partition, one.settled, reach(one)))
    return joined(asked)


def reach(standing: Standing) -> int:
    """Up to here one check asks."""
    last = min(standing.settled // CHUNK + AHEAD_CHUNKS, standing.end // CHUNK + PAST_CHUNKS)
    return min(max(last, standing.settled // CHUNK + 1) * CHUNK, END)


def sweep_spans(standings: Iterable[Standing], since: Mapping[int, int]) -> list[Span]:
    """What a sweep asks for: the settled offsets of each partition from ``since`` on, which is not above the log's start,
    the table's TTL and the sink's ``verify``."""
    return joined(Span(one.partition, since[one.partition], one.settled) for one in standings if since[one.partition] < one.settled)


def beyond(held: Iterable[Held], ends: Mapping[int, int]) -> list[Beyond]:
    """Partitions of which the table has offsets that the log has not; the highest of each."""
    found: dict[int, Beyond] = {}
    for one in held:
        last = _last(one)
        if last >= ends[one.span.partition]:
            found[one.span.partition] = Beyond(one.span.partition, last, ends[one.span.partition])
    return list(found.values())


def observations(held: Iterable[Held], standings: Mapping[int, Standing], sink: str) -> Iterator[tuple[int, Observation]]:
    """Each observation with its partition, in order of offsets, numbered from the standing's ``sequence`` on.

    A snapshot states all that the table has in its range. Above ``settled`` the range ends where the table does, or did before:
    rows that were there and are gone must be stated as gone, and of what never was there nothing is said.
    """
    for one in held:
        standing = standings[one.span.partition]
        for said in _of_span(one, standing, sink):
            yield standing.partition, said


def _of_span(held: Held, standing: Standing, sink: str) -> Iterator[Observation]:
    said = _Saying(sink, standing)
    first, stop = stated(held, standing)
    if held.quarantined:
        runs = tuple((held.quarantined.within(first, max(first, stop)) - standing.put_aside).runs())
        for some in portions(runs, RUNS_MAX):
            yield said.that(some, Status.QUARANTINED, reason=QUARANTINED)
    judged = min(standing.since, standing.settled)
    for start, end in (held.present.within(first, max(first, min(judged, stop))) & standing.again).runs():
        yield said.that(((start, end),), snapshot=Snapshot(start, end, end - start, standing.at_ms))  # back again; of others nothing
    first = max(first, judged)
    doubted = _doubted(standing, first, stop)
    unsure = doubted.within(standing.settled, END) - held.present - held.quarantined - standing.received
    low, high = _begins(held, standing), max(_last(held) + 1, standing.horizon)
    for some in portions(tuple(unsure.within(low, max(low, high)).runs()), RUNS_MAX):
        yield said.that(some, Status.UNOBSERVED, reason=TOO_OLD)
    yield from _snapshots(held.present | (doubted - unsure), held, first, stop, said)


def _begins(held: Held, standing: Standing) -> int:
    """The lowest offset that the sink answers for; what is unsure must not lower it."""
    first = (standing.lowest, held.present.first(), held.quarantined.first())
    return min((one for one in first if one is not None), default=END)


def stated(held: Held, standing: Standing) -> tuple[int, int]:
    """The range that an answer states something of."""
    return held.span.first, min(_stop(held, standing), standing.end)


def _stop(held: Held, standing: Standing) -> int:
    stop = END if held.span.stop is None else held.span.stop
    if stop <= standing.settled:
        return stop
    return min(stop, max(_last(held) + 1, standing.horizon, standing.settled + (not standing.heard)))


def _last(held: Held) -> int:
    return max((one for one in (held.present.last(), held.quarantined.last()) if one is not None), default=-1)


def _doubted(standing: Standing, first: int, stop: int) -> OffsetSet:
    """What is so old that nobody knows, of what is not there, whether it ever was. What is judged already stays as it is."""
    doubted = standing.aged.within(first, max(first, stop))
    low, high = max(first, standing.judged_from), min(standing.since, stop)
    if low < high:
        doubted.add(low, high)
    return doubted


def _snapshots(present: OffsetSet, held: Held, first: int, stop: int, said: _Saying) -> Iterator[Observation]:
    for begin, end in _pieces((present, *held.levels), first, stop):
        some, levels = present.within(begin, end), [runs for level in held.levels if (runs := tuple(level.runs(begin, end)))]
        # Rows are counted by chunk: those of a chunk in several pieces stand with the first of them.
        chunks = range(-(-begin // CHUNK) if begin > held.span.first else begin // CHUNK, (end - 1) // CHUNK + 1)
        surplus = sum(more for number, more in held.surplus.items() if number in chunks)
        more = max(surplus, sum(b - a for runs in levels for a, b in runs))
        snapshot = Snapshot(begin, end, some.count + more, said.standing.at_ms, tuple(levels))
        yield said.that(tuple(some.runs()), snapshot=snapshot)


@dataclass(frozen=True, slots=True)
class _Saying:
    """Who says it, of what."""

    sink: str
    standing: Standing

    def that(
        self, runs: Runs, status: Status = Status.RECEIVED, *, reason: str | None = None, snapshot: Snapshot | None = None
    ) -> Observation:
        """The next observation."""
        one = self.standing
        said = Observation(
            self.sink, runs, status, reason=reason, source=one.source, sequence=one.sequence, topic_id=one.topic_id, snapshot=snapshot
        )
        one.sequence += 1
        return said


def _pieces(sets: tuple[OffsetSet, ...], first: int, stop: int) -> Iterator[tuple[int, int]]:
    """``[first, stop)`` in pieces, between chunks where that is fine enough, each small enough to be written."""
    begin, taken, at = first, 0, first
    while at < stop:
        after = min((at // CHUNK + 1) * CHUNK, stop)
        count = _runs(sets, at, after)
        while count > RUNS_MAX:  # many single offsets, many rows of each
            after = (at + after) // 2
            count = _runs(sets, at, after)
        if at > begin and (taken + count > RUNS_MAX or at // CHUNK - begin // CHUNK >= CHUNKS_MAX):
            yield begin, at
            begin, taken = at, 0
        taken += count
        at = after
    if begin < stop:
        yield begin, stop


def _runs(sets: Iterable[OffsetSet], first: int, stop: int) -> int:
    return sum(1 for offsets in sets for _ in offsets.runs(first, stop))
