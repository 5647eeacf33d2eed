"""What a ledger shows: a row per sink and the open gaps, as of now; the same for API, metrics and status topic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

from stream_app.core.codec import topic_id_text
from stream_app.core.ledger import LOG_SINK, Ledger
from stream_app.core.minutes import MINUTE_MS
from stream_app.core.model import Absent, Cause, Gap, Listed, Row, Run
from stream_app.core.offsets import OffsetSet
from stream_app.core.openings import Opening
from stream_app.core.sink import SinkState

LISTED_MAX = 32
"""Runs of each set that a row lists, about 600 bytes: a row is written with every flush."""


def rows(ledger: Ledger, now_ms: int) -> list[Row]:
    """One row per sink of this partition, the log's own first."""
    ordered = sorted(ledger.sinks.values(), key=lambda sink: (sink.policy.name != LOG_SINK, sink.policy.name))
    return [_row(ledger, sink, now_ms) for sink in ordered]


def _row(ledger: Ledger, sink: SinkState, now_ms: int) -> Row:
    log = ledger.log
    is_log = sink.policy.name == LOG_SINK
    heard = is_log or sink.heard
    by_cause = {str(cause): gap.count for cause, gap in sink.open.items() if gap}
    bound, known = ledger.complete_bound(sink)
    return Row(
        topic=ledger.topic,
        partition=ledger.partition,
        sink=sink.policy.name,
        configured=sink.policy.configured,
        heard=heard,
        stalled=sink.stalled,
        catching_up=log.end_read_ms is None or log.read < log.bound,
        reason=_reason(sink, heard),
        log_start_offset=log.start,
        log_read_offset=log.read,
        log_end_offset=log.bound,
        floor_offset=log.origin if is_log else sink.floor,
        horizon_offset=log.read if is_log else sink.horizon,
        records=log.records,
        observed=log.records if is_log else (sink.observed if heard else None),
        rows=sink.observed + sink.duplicates if sink.snapshots.last_ms is not None else None,
        missing=sum(by_cause.values()) if heard else None,
        missing_by_cause=by_cause,
        gaps=sum(map(len, sink.gaps.values())) if heard else None,
        duplicates=sink.duplicates if heard else None,
        lag=max(log.bound - log.read, 0) if is_log else ledger.lag(sink),
        absent={str(cause): count for cause, count in log.absent_counts.items() if count},
        explained=_explained(sink),
        sequence=sink.sequence,
        complete_bound_ms=bound,
        complete_known=known,
        lateness_ms=ledger.lateness_ms,
        end_read_ms=log.end_read_ms,
        oldest_gap_opened_at_ms=min((opening.opened_at_ms for opening in sink.openings), default=None),
        expires_at_ms=_expires(ledger, sink),
        checked_at_ms=ledger.heard_ms,
        settled_offset=log.read if is_log else sink.settled,
        received=_listed(sink.received),
        unread=_listed(log.unread if is_log else sink.unread),
        compacted=_listed(log.absent[Absent.COMPACTED]) if is_log else Listed(),
        ever_compacted=log.ever_compacted if is_log else None,
        updated_at_ms=now_ms,
        incarnation=topic_id_text(log.topic_id),
        unknown=sink.checks.why(),
        topic_partitions=ledger.partitions,
        last_stable_offset=log.last_stable if ledger.read_committed else None,
        open_since_ms=log.open_since_ms if ledger.read_committed else None,
    )


def _listed(offsets: OffsetSet) -> Listed:
    runs = list(islice(offsets.runs(), LISTED_MAX + 1))
    return Listed(runs) if len(runs) <= LISTED_MAX else Listed(runs[:-1], runs[-1][0])


def _reason(sink: SinkState, heard: bool) -> str | None:
    """What to know of a row beside its numbers; the first that holds."""
    if not heard:
        return "never heard of in this partition"
    behind = sink.sources.why_behind()
    if behind is not None:
        return behind
    group = sink.policy.group
    if group is not None and sink.claim is None:
        return f"group {group} has committed nothing in this partition yet"
    return f"by the commits of group {group} alone: what it sought past counts as received" if sink.policy.inferred else None


def _explained(sink: SinkState) -> dict[str, int]:
    return {str(reason): offsets.count for reason, offsets in sink.explained.items() if offsets}


def _expires(ledger: Ledger, sink: SinkState) -> int | None:
    """When retention takes the oldest record that is missing and still in Kafka; None: nothing missing, or unknown."""
    first = sink.open[Cause.NOT_RECEIVED].first()
    if ledger.retention_ms is None or first is None:
        return None
    oldest_ms = sink.stamps.get(first)
    if oldest_ms is None:
        oldest_ms = ledger.log.timeline.lowest_from(first)
    return None if oldest_ms is None else oldest_ms + ledger.retention_ms


def gaps(ledger: Ledger, sink: SinkState) -> list[Gap]:
    """The open gaps of a sink, ascending by first offset."""
    found = []
    for cause in Cause:
        listed = ledger.gaps_of(sink, cause)
        openings = _openings(sink, cause, [(first, stop) for first, stop, _ in listed])
        found += [_gap(ledger, sink, cause, *gap, opening) for gap, opening in zip(listed, openings, strict=True)]
    return sorted(found, key=lambda gap: (gap.first, gap.cause))


def _openings(sink: SinkState, cause: Cause, gaps: list[Run]) -> Iterator[Opening | None]:
    """For each gap, ascending, the opening that it belongs to: of its cause where there is one, then the earliest."""
    ordered = sorted(sink.openings, key=lambda o: o.first)
    over: list[tuple[bool, int, int, int]] = []
    at = 0
    for first, stop in gaps:
        while at < len(ordered) and ordered[at].first < stop:
            opening = ordered[at]
            heappush(over, (opening.cause is not cause, opening.opened_at_ms, opening.sequence, at))
            at += 1
        while over and ordered[over[0][3]].stop <= first:
            heappop(over)
        yield ordered[over[0][3]] if over else None


def _gap(ledger: Ledger, sink: SinkState, cause: Cause, first: int, stop: int, count: int, opening: Opening | None) -> Gap:
    first_ms, last_ms = sink.stamps.get(first), sink.stamps.get(stop - 1)
    expires = None
    if cause is Cause.NOT_RECEIVED and first_ms is not None and ledger.retention_ms is not None:
        expires = first_ms + ledger.retention_ms
    return Gap(
        first=first,
        stop=stop,
        count=count,
        cause=str(cause),
        opened_at_ms=opening.opened_at_ms if opening else None,
        first_timestamp_ms=first_ms,
        last_timestamp_ms=last_ms,
        expires_at_ms=expires,
        sequence=(opening.sequence or None) if opening else None,
    )


def note_neighbours(ledger: Ledger, sink: SinkState, gaps: list[Gap]) -> None:
    """Note what lies beside each of a sink's gaps, as far as it is known."""
    log, lacking = ledger.log, sink.missing()
    for known in (*sink.explained.values(), sink.unread):
        lacking.update(known)
    passed = [some for some in (lacking, *log.absent.values(), log.holes) if some]
    for gap in gaps:
        gap.minute = log.minutes.minute_of(gap.first)
        if gap.minute is None and gap.first_timestamp_ms is not None:
            gap.minute = gap.first_timestamp_ms // MINUTE_MS
        before = gap.first - 1
        gap.before_timestamp_ms = None if any(before in one for one in passed) else sink.stamps.get(before)
        behind = _first_outside(passed, gap.stop)
        received = behind < (sink.settled or 0) or (behind < log.read and behind in sink.received)
        gap.next_offset = behind if received else None
        gap.next_timestamp_ms = sink.stamps.get(behind) if received else None


def _first_outside(sets: Sequence[OffsetSet], offset: int) -> int:
    """The first offset from this one on that is in none of the sets."""
    while (within := next((one for one in sets if offset in one), None)) is not None:
        _, offset = next(within.runs(offset))
    return offset


def explained_gaps(ledger: Ledger, sink: SinkState) -> list[Gap]:
    """What is explained, by reason, as ``gaps --all`` lists it."""
    found = [
        Gap(first=first, stop=stop, count=stop - first, cause=str(reason), open=False)
        for reason, offsets in sink.explained.items()
        for first, stop in offsets.runs()
    ]
    return sorted(found, key=lambda gap: (gap.first, gap.cause))
