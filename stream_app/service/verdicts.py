"""Why an offset is what it is: what Kafka shows of it now, and what the rows and gaps on the status topic say. Pure.

Kafka is asked afresh, the ledger speaks by what its owner flushed. Where the two can't tell together, the answer says so: a
row has room for so many runs only, and below the log start Kafka tells nothing.
"""

from __future__ import annotations

import base64
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

from stream_app.core.codec import topic_id_text
from stream_app.core.model import Cause, Gap, Reason, Row, Run
from stream_app.core.states import State
from stream_app.kafka.examination import BatchFacts, Evidence, Found, Piece
from stream_app.kafka.records import Detail
from stream_app.kafka.wire import NO_UUID
from stream_app.service.status import EXPLAINED_MAX
from stream_app.web.times import rfc3339

AHEAD = "ahead"
"""At or above the sink's horizon, where the table of states says "in flight"."""
BELOW_FLOOR = "below the floor"
UNKNOWN = "unknown"
OR_ABSENT = " or absent"
"""Behind a state: the offset held no record, perhaps, and nobody can tell any more."""
_LEFT = "left"
"""Judged, and in no list: received, unless it is absent."""


class Verdict(StrEnum):
    """What an offset of the log is."""

    RECORD = "record"
    TRANSACTION_MARKER = "transaction_marker"
    ABORTED = "aborted"
    COMPACTED = "compacted"
    LOG_HOLE = "log_hole"
    UNREADABLE = "unreadable"
    UNREAD = "unread"
    """Retention took it before the log reader got to it."""
    EXPIRED = "expired"
    """Below the log start."""
    OPEN = "open"
    """At or above the last stable offset: a reader of committed records can't have it yet."""
    AHEAD = "ahead"
    """At or beyond the log's end."""
    UNKNOWN = "unknown"


_OF_FOUND = {
    Found.RECORD: Verdict.RECORD,
    Found.MARKER: Verdict.TRANSACTION_MARKER,
    Found.ABORTED: Verdict.ABORTED,
    Found.UNREADABLE: Verdict.UNREADABLE,
    Found.UNDECIDED: Verdict.OPEN,
    Found.BELOW: Verdict.EXPIRED,
    Found.BEYOND: Verdict.AHEAD,
    Found.UNSEEN: Verdict.UNKNOWN,
}


_COMPACTED: tuple[Verdict, str | None] = (Verdict.COMPACTED, None)
_LISTED_HOLE: tuple[Verdict, str | None] = (Verdict.LOG_HOLE, None)
"""As the ledger lists it; with a reason it is a hole that the ledger took for a record once."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the status topic says of one sink in this partition."""

    sink: str
    row: Row | None = None
    """None: nothing was reported yet."""
    gaps: Sequence[Gap] = ()
    """Open and explained ones, as listed."""
    unknown: str | None = None
    """Why nothing can be said of the sink as of now; what was judged before stays judged."""

    def of(self, topic_id: bytes) -> Account:
        """The same, as far as it speaks of this incarnation: nothing is compared across two."""
        if self.row is None or topic_id == NO_UUID or self.row.incarnation == topic_id_text(topic_id):
            return self
        return Account(self.sink, unknown="the topic was created anew, and no worker has reported the new one yet")


class _Strip:
    """One value per offset of ``[first, stop)``."""

    def __init__(self, first: int, stop: int, value: Any) -> None:
        self.first, self.stop = first, stop
        self.values: list[Any] = [value] * (stop - first)

    def paint(self, first: int | None, stop: int | None, value: Any) -> None:
        """``[first, stop)``, as far as it lies within; None: from the beginning, to the end."""
        low = self.first if first is None else max(first, self.first)
        high = self.stop if stop is None else min(stop, self.stop)
        if low < high:
            self.values[low - self.first : high - self.first] = [value] * (high - low)

    def paint_runs(self, runs: Iterable[Run], value: Any) -> None:
        """Each of the runs."""
        for first, stop in runs:
            self.paint(first, stop, value)


def _sure(gap: Gap) -> list[Run]:
    """The offsets that are in the gap for sure: offsets without a record inside don't split it, and only their number is told."""
    if gap.count == gap.stop - gap.first:
        return [(gap.first, gap.stop)]
    return [(gap.first, gap.first + 1), (gap.stop - 1, gap.stop)]


def explain(evidence: Evidence, policy: str | None, log: Account, sinks: Sequence[Account], *, show_keys: bool) -> list[dict[str, Any]]:
    """The list ``runs`` of the answer of ``/api/explain``: maximal runs of equal verdict, evidence and states.

    ``policy``: cleanup.policy as of now, None where it could not be asked. ``log``: the account of the log itself, whether or
    not it is one of ``sinks``.
    """
    first, stop = evidence.pieces[0].first, evidence.pieces[-1].stop
    topic_id = evidence.topic_id
    log, sinks = log.of(topic_id), [sink.of(topic_id) for sink in sinks]
    verdicts = _verdicts(evidence.pieces, policy, log)
    batches = _Strip(first, stop, None)
    for number, piece in enumerate(evidence.pieces):
        batches.paint(piece.first, piece.stop, None if piece.batch is None else number)
    holes = _holes(first, stop, log)
    told = [_states(sink, log, verdicts, holes) for sink in sinks]
    was = _was([sink for sink in sinks if sink.sink != log.sink], verdicts)
    common = _common(evidence, policy, log)
    unknown = {sink.sink: why for sink, (_, why) in zip(sinks, told, strict=True) if why is not None}
    columns = list(zip(verdicts.values, batches.values, was.values, *(strip.values for strip, _ in told), strict=True))
    runs = []
    for key, offsets in groupby(range(first, stop), key=lambda offset: columns[offset - first]):
        (verdict, why), number, record, *states = key
        low, *rest = offsets
        high = low + len(rest)
        batch = None if number is None else evidence.pieces[number].batch
        facts = _batch(batch) | common | {"reason": why, "was": record, "truncated": None, "unknown": unknown or None}
        if verdict is Verdict.RECORD and evidence.listed_to is not None and evidence.listed_to <= high:
            facts["truncated"] = f"records are listed up to offset {evidence.listed_to - 1}: there are too many, or their keys are too long"
        runs.append(
            {
                "first_offset": low,
                "last_offset": high,
                "verdict": str(verdict),
                "evidence": facts,
                "sinks": {sink.sink: state for sink, state in zip(sinks, states, strict=True)},
                "records": _records(evidence.records, low, high + 1, show_keys) if verdict is Verdict.RECORD else [],
            }
        )
    return runs


# --- the verdict ----------------------------------------------------------------------------------------------------------


def _verdicts(pieces: Sequence[Piece], policy: str | None, log: Account) -> _Strip:
    """(Verdict, reason) of each offset."""
    strip = _Strip(pieces[0].first, pieces[-1].stop, None)
    for piece in pieces:
        if piece.found is not Found.HOLE:
            strip.paint(piece.first, piece.stop, (_OF_FOUND[piece.found], piece.why))
            continue
        for first, stop, verdict in _of_hole(piece.first, piece.stop, policy, log):
            strip.paint(max(first, piece.first), min(stop, piece.stop), verdict)
    _below_the_start(strip, pieces, log)
    return strip


def _of_hole(first: int, stop: int, policy: str | None, log: Account) -> list[tuple[int, int, tuple[Verdict, str | None]]]:
    """What the hole ``[first, stop)`` is, by the policy and by what the ledger took it for; what comes later counts."""
    row = log.row
    compacted: list[Run] = [] if row is None else row.compacted.runs
    listed = [(gap.first, gap.stop, _LISTED_HOLE) for gap in log.gaps if gap.cause in (Cause.LOG_HOLE, Reason.ACKNOWLEDGED)]
    listed += [(low, high, _COMPACTED) for low, high in compacted]
    if (policy is not None and "compact" in policy) or (row is not None and row.ever_compacted):
        return [(first, stop, _COMPACTED), *listed]
    if row is None or row.log_read_offset is None:
        return [
            (first, stop, (Verdict.UNKNOWN, "there is no batch, cleanup.policy is not compact, and no worker has reported the log yet"))
        ]
    if row.ever_compacted is None:
        return [(first, stop, (Verdict.UNKNOWN, "there is no batch, and whether cleanup.policy ever was compact is not known")), *listed]
    read = row.log_read_offset
    found: list[tuple[int, int, tuple[Verdict, str | None]]] = [
        (first, read, (Verdict.LOG_HOLE, "it was a record when it was read, and nothing explains where it went")),
        (read, stop, (Verdict.UNKNOWN, "there is no batch; what that means is told when the log is read that far")),
    ]
    if row.compacted.to is not None:
        why = "there is no batch: compacted before the log was first seen, or lost since; cleanup.policy is not compact now"
        found.append((row.compacted.to, read, (Verdict.UNKNOWN, why)))
    return found + listed


def _below_the_start(strip: _Strip, pieces: Sequence[Piece], log: Account) -> None:
    below = max((piece.stop for piece in pieces if piece.found is Found.BELOW), default=strip.first)
    if log.row is not None:
        for first, stop in log.row.unread.runs:
            strip.paint(first, min(stop, below), (Verdict.UNREAD, None))
    for gap in log.gaps:
        if gap.cause in (Cause.LOG_HOLE, Reason.ACKNOWLEDGED):
            for first, stop in _sure(gap):
                strip.paint(first, min(stop, below), _LISTED_HOLE)


def _holes(first: int, stop: int, log: Account) -> _Strip:
    """Whether each offset was a hole when it was read: True, False, None where that is not told (any more)."""
    strip = _Strip(first, stop, None)
    row = log.row
    if row is not None and row.log_read_offset is not None:
        strip.paint(None, row.log_read_offset, False)
        strip.paint_runs(row.compacted.runs, True)
        if row.compacted.to is not None:
            strip.paint(row.compacted.to, row.log_read_offset, None)
        strip.paint(row.log_read_offset, None, True)  # it will be one
    return strip


# --- the states -----------------------------------------------------------------------------------------------------------


def _states(sink: Account, log: Account, verdicts: _Strip, holes: _Strip) -> tuple[_Strip, str | None]:
    """The state of each offset for one sink, and why some of them are unknown."""
    strip = _Strip(verdicts.first, verdicts.stop, UNKNOWN)
    row = sink.row
    if row is None:
        return strip, sink.unknown or "no worker has reported it yet"
    why = sink.unknown or (None if row.heard else row.reason)
    if row.horizon_offset is not None:
        _paint_judged(strip, row, stale=sink.unknown is not None)
    floors = [row.floor_offset, None if log.row is None else log.row.floor_offset]  # no sink answers for what was before our time
    strip.paint(None, max((one for one in floors if one is not None), default=strip.first), BELOW_FLOOR)
    if row.received.to is not None and row.received.to < strip.stop:
        why = why or f"not judged yet, and what was received is listed up to offset {row.received.to - 1}"
    strip.paint_runs(row.received.runs, State.RECEIVED)
    strip.paint_runs(row.unread.runs, State.UNREAD)
    edge, lacking = _listed_from(sink, row)
    if lacking is not None:
        why = why or lacking
        strip.values = [
            UNKNOWN if state == _LEFT and (edge is None or offset < edge) else state
            for offset, state in enumerate(strip.values, strip.first)
        ]
    sure = _Strip(strip.first, strip.stop, False)
    for gap in sink.gaps:
        strip.paint(gap.first, gap.stop, f"open {gap.cause}" if gap.open else f"explained {gap.cause}")
        sure.paint_runs(_sure(gap), True)
    sure.paint_runs((*row.received.runs, *row.unread.runs), True)
    known = log.row is not None and not any(log.row.absent.values()) and not log.row.missing
    is_log = sink.sink == log.sink
    strip.values = [
        _with_the_log(state, verdict, hole, certain=certain, all_records=known, is_log=is_log)
        for state, verdict, hole, certain in zip(strip.values, verdicts.values, holes.values, sure.values, strict=True)
    ]
    return strip, why


def _paint_judged(strip: _Strip, row: Row, *, stale: bool) -> None:
    """By floor, settled and horizon alone."""
    horizon = row.horizon_offset
    assert horizon is not None
    floor = row.floor_offset
    if floor is None:  # it will be the lowest offset that was spoken of; below that nothing is decided yet
        floor = max(min([horizon, *(first for first, _ in row.received.runs[:1])]), row.log_start_offset or 0)
    settled = floor if row.settled_offset is None else row.settled_offset
    strip.paint(floor, settled, _LEFT)
    strip.paint(settled, horizon, UNKNOWN if stale else State.IN_FLIGHT)
    strip.paint(max(settled, horizon), None, UNKNOWN if stale else AHEAD)
    if row.received.to is not None:
        strip.paint(row.received.to, None, UNKNOWN)
    if row.unread.to is not None:
        strip.paint(row.unread.to, min(settled, row.log_start_offset or 0), UNKNOWN)


def _listed_from(sink: Account, row: Row) -> tuple[int | None, str | None]:
    """Where the listing of gaps begins to be whole (None: nowhere), and why it is not (None: it is)."""
    if row.missing is None:
        return None, None
    opened = sum(gap.count for gap in sink.gaps if gap.open)
    explained = [gap for gap in sink.gaps if not gap.open]
    if opened == row.missing and sum(gap.count for gap in explained) == sum(row.explained.values()):
        return None, None
    if opened == row.missing and len(explained) >= EXPLAINED_MAX:
        return explained[0].first, f"what is explained is listed from offset {explained[0].first} on"
    return None, "the list of gaps is being written: ask again"


def _with_the_log(
    state: str, told: tuple[Verdict, str | None], hole: bool | None, *, certain: bool, all_records: bool, is_log: bool
) -> str:
    """A state by the sink's own account, and what the log says of the offset: one that holds no record is absent.

    ``certain``: the account lists this very offset.
    """
    verdict, _ = told
    if state == BELOW_FLOOR:
        return state
    if verdict in (Verdict.TRANSACTION_MARKER, Verdict.ABORTED):
        return State.ABSENT
    if state == UNKNOWN or certain:
        return state
    said = State.RECEIVED if state == _LEFT else state
    if verdict is Verdict.COMPACTED:
        return said + OR_ABSENT if hole is None else State.ABSENT if hole else said
    if told == _LISTED_HOLE:
        return said if is_log else State.ABSENT
    if verdict in (Verdict.EXPIRED, Verdict.LOG_HOLE, Verdict.UNKNOWN):
        below = verdict is Verdict.EXPIRED
        return State.ABSENT if below and hole else said if all_records else said + OR_ABSENT
    return said


def _was(sinks: Sequence[Account], verdicts: _Strip) -> _Strip:
    """Of what expired: ``record`` where some sink's list of gaps shows that it was one."""
    strip = _Strip(verdicts.first, verdicts.stop, None)
    for sink in sinks:
        for gap in sink.gaps:
            strip.paint_runs(_sure(gap), "record")
    strip.values = [
        value if verdict is Verdict.EXPIRED else None for value, (verdict, _) in zip(strip.values, verdicts.values, strict=True)
    ]
    return strip


# --- what is shown --------------------------------------------------------------------------------------------------------


def _common(evidence: Evidence, policy: str | None, log: Account) -> dict[str, Any]:
    """What holds for every run."""
    return {
        "isolation": str(evidence.isolation),
        "cleanup_policy": policy,
        "topic_id": None if evidence.topic_id == NO_UUID else topic_id_text(evidence.topic_id),
        "log_start_offset": evidence.ends.log_start,
        "last_stable_offset": evidence.ends.last_stable,
        "high_watermark": evidence.ends.high_watermark,
        "log_read_offset": None if log.row is None else log.row.log_read_offset,
    }


def _batch(batch: BatchFacts | None) -> dict[str, Any]:
    return {
        "batch_base_offset": batch and batch.base,
        "batch_last_offset": batch and batch.last,
        "record_count": batch and batch.records,
        "leader_epoch": batch and batch.leader_epoch,
        "producer_id": batch and batch.producer_id,
        "producer_epoch": batch and batch.producer_epoch,
        "base_sequence": batch and batch.base_sequence,
        "transactional": batch and batch.transactional,
        "control": batch and batch.control,
        "marker": batch and batch.marker,
        "compression": batch and batch.compression,
    }


def _records(records: Sequence[Detail], first: int, stop: int, show_keys: bool) -> list[Mapping[str, Any]]:
    low = bisect_left(records, first, key=lambda one: one.offset)
    high = bisect_left(records, stop, key=lambda one: one.offset)
    return [
        {
            "offset": one.offset,
            "timestamp": rfc3339(one.timestamp_ms) if one.timestamp_ms >= 0 else None,
            **(_key(one.key) if show_keys else {"key": None, "key_encoding": "hidden"}),
            "size": one.size,
            "tombstone": one.tombstone,
        }
        for one in records[low:high]
    ]


def _key(key: bytes | None) -> dict[str, str | None]:
    if key is None:
        return {"key": None, "key_encoding": None}
    try:
        return {"key": key.decode(), "key_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"key": base64.b64encode(key).decode(), "key_encoding": "base64"}
