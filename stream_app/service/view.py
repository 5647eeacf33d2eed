"""What the whole cluster says of itself, folded from the status topic into memory: pure, and the same on every worker.

Feed ``StatusView.apply`` every record of the compacted status topic in the topic's order, read_committed; ask it for the
answers of the API at any time. Nothing here reads a clock: ``now_ms`` is an argument of every question.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from stream_app.core.model import Gap, GapsRecord, MinutesRecord, Row, StatusRecord, WorkerRecord
from stream_app.service.told_minutes import RowKey, ToldMinutes
from stream_app.web.times import rfc3339

LOG = "log"
"""The built-in sink: every partition has a row for it."""
STATES = ("unknown", "gaps", "catching_up", "stalled", "ok")
"""The states of a row and of a status line; the first that holds is the one that is told."""
NEVER_HEARD = "never heard of"
GAPS_LIMIT = 1_000
"""Gaps in one answer where the question names no limit: about 300 kB of JSON."""
GAPS_LIMIT_MAX = 10_000

Allow = Callable[[str, str], bool]
"""Whether the asker may see this topic and sink."""


class BadCursor(ValueError):
    """The cursor is none that this program gave out."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A row as of now: what its owner flushed, and what can be said of it."""

    topic: str
    partition: int
    sink: str
    state: str
    reason: str | None
    row: Row | None = None
    """None: this partition was never reported, or not yet with this sink."""
    never_heard: bool = False
    """The sink was heard of in no partition of the topic."""
    complete_through_ms: int | None = None
    updated_at_ms: int | None = None
    worker: str | None = None


class _Malformed(Exception):
    """A record of the status topic that does not say what its key promises."""


class StatusView:
    """The rows, gaps and workers of the cluster as of the last record applied.

    ``config_sinks`` maps each watched topic to its configured sinks and their types. It may be filled later (topics that
    match a pattern appear while the program runs): the view keeps the mapping, not a copy.
    """

    def __init__(self, config_sinks: Mapping[str, Mapping[str, str]], unknown_after_s: float) -> None:
        self._loaded = False
        self.malformed = 0
        """Records that could not be understood; each is left out, and the last value of its key stays."""
        self.last_malformed: str | None = None
        self._config = config_sinks
        self._unknown_after_ms = round(unknown_after_s * 1_000)
        self._decoder = msgspec.json.Decoder(StatusRecord | GapsRecord | MinutesRecord | WorkerRecord)
        self._partitions: dict[str, dict[int, StatusRecord]] = {}
        self._gaps: dict[RowKey, dict[int, list[Gap]]] = {}
        self._merged: dict[RowKey, tuple[int, list[Gap]]] = {}
        self.minutes = ToldMinutes()
        """Of each sink and partition, by minute of record time."""
        self._workers: dict[str, WorkerRecord] = {}
        self._complete: dict[RowKey, tuple[str, int]] = {}

    @property
    def loaded(self) -> bool:
        """Whether the status topic was read to its end; whoever reads it says so. Until then answers can't be relied on."""
        return self._loaded

    @loaded.setter
    def loaded(self, loaded: bool) -> None:
        self._loaded = loaded
        for held in [held for partitions in self._partitions.values() for held in partitions.values()]:
            self._advance(held)

    def restart(self) -> None:
        """The topic is about to be read from its beginning again: forget all but how far complete-through times had come."""
        self._loaded = False
        for held in (self._partitions, self._gaps, self._merged, self._workers, self.minutes):
            held.clear()

    def rows_of(self, topic: str) -> list[Row] | None:
        """What was flushed of a topic; None while the status topic is not read to its end."""
        return [row for held in self._partitions.get(topic, {}).values() for row in held.rows] if self._loaded else None

    def copied_of(self, topic: str, incarnation: str) -> dict[str, int]:
        """How far the copies of an incarnation of a topic were read and written down, as far as the workers have said."""
        of_it = [held for held in self._partitions.get(topic, {}).values() if held.rows and held.rows[0].incarnation == incarnation]
        return {key: position for held in of_it for key, position in held.copied.items()}

    # -- in ------------------------------------------------------------------------------------------------------

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take one record of the status topic; a repeat changes nothing. Malformed records are counted, never fatal."""
        try:
            kind, _, rest = key.decode().partition("/")
            record = None if value is None else self._decoder.decode(value)
            if record is not None and record.v != 1:
                raise _Malformed(f"version {record.v} is not known here")
            if kind == "partition":
                self._apply_partition(rest, record)
            elif kind == "gaps":
                self._apply_gaps(rest, record)
            elif kind == "minutes":
                self.minutes.apply(rest, record, value)
            elif kind == "worker":
                self._apply_worker(rest, record)
            else:
                raise _Malformed("the key is of no known kind")
        except (_Malformed, msgspec.MsgspecError, ValueError) as error:
            self.malformed += 1
            self.last_malformed = f"{key!r}: {error}"

    def _apply_partition(self, rest: str, record: object) -> None:
        topic, _, number = rest.rpartition("/")
        partition = int(number)
        if record is None:
            self._partitions.get(topic, {}).pop(partition, None)
            if not self._partitions.get(topic):
                self._partitions.pop(topic, None)
            self._forget_complete(topic, partition, keep=())
            return
        if not isinstance(record, StatusRecord) or (record.topic, record.partition) != (topic, partition):
            raise _Malformed("the value does not match the key")
        if any((row.topic, row.partition) != (topic, partition) for row in record.rows):
            raise _Malformed("a row is of another partition")
        self._partitions.setdefault(topic, {})[partition] = record
        self._forget_complete(topic, partition, keep=[row.sink for row in record.rows])
        self._advance(record)

    def _apply_gaps(self, rest: str, record: object) -> None:
        # A sink's name may hold a slash; a topic's can't, and what follows the sink is a number.
        head, _, page_text = rest.rpartition("/")
        topic, number, sink = head.split("/", 2)
        key, page = (topic, int(number), sink), int(page_text)
        if record is not None:
            if not isinstance(record, GapsRecord) or (record.topic, record.partition, record.sink, record.block) != (*key, page):
                raise _Malformed("the value does not match the key")
            self._gaps.setdefault(key, {})[page] = record.gaps
        else:
            self._gaps.get(key, {}).pop(page, None)
            if not self._gaps.get(key):
                self._gaps.pop(key, None)
        self._merged.pop(key, None)

    def _apply_worker(self, name: str, record: object) -> None:
        if record is None:
            self._workers.pop(name, None)
            return
        if not isinstance(record, WorkerRecord) or record.worker != name:
            raise _Malformed("the value does not match the key")
        checked = [(topic, int(number)) for topic, _, number in (tp.rpartition("/") for tp in record.checked)]
        self._workers[name] = record
        for topic, partition in checked:
            held = self._partitions.get(topic, {}).get(partition)
            if held is not None and held.worker == name:
                self._advance(held)

    def _forget_complete(self, topic: str, partition: int, keep: Iterable[str]) -> None:
        kept = set(keep)
        for key in [key for key in self._complete if key[:2] == (topic, partition) and key[2] not in kept]:
            del self._complete[key]

    def _advance(self, record: StatusRecord) -> None:
        """Move the complete-through times of a partition forward; they never move back within one incarnation.

        Not before the topic is read to its end: its partitions are read side by side, so that a row of last week and a
        sign of life of this second would be taken together.
        """
        if not self._loaded:
            return
        for row in record.rows:
            computed = self._bound_ms(row)
            key = (row.topic, row.partition, row.sink)
            held = self._complete.get(key)
            if held is not None and held[0] != row.incarnation:
                del self._complete[key]
                held = None
            if computed is not None and (held is None or computed > held[1]):
                self._complete[key] = (row.incarnation, computed)

    def _end_read_ms(self, row: Row) -> int | None:
        """When the end of the log was last read: as of the row's flush, or later by its owner's sign of life.

        A sign of life counts for the very flush that it names only: it may be read before or after another one.
        """
        held = self._partitions.get(row.topic, {}).get(row.partition)
        beat = None if held is None else self._workers.get(held.worker)
        tp = f"{row.topic}/{row.partition}"
        current = beat is not None and beat.flushed.get(tp) == row.updated_at_ms
        checked = beat.checked.get(tp) if beat is not None and current else None
        return max((t for t in (checked, row.end_read_ms) if t is not None), default=None)

    def _bound_ms(self, row: Row) -> int | None:
        end_read_ms = self._end_read_ms(row)
        if not row.complete_known or end_read_ms is None:
            return None
        # Lateness guards against records still to come with earlier times; the owner's bound has it taken off already.
        end = end_read_ms - row.lateness_ms
        return end if row.complete_bound_ms is None else min(end, row.complete_bound_ms)

    # -- judgement -----------------------------------------------------------------------------------------------

    def complete_through_ms(self, row: Row) -> int | None:
        """Through when ``row`` is complete; None while unknown. Never below what this view told before of the same row."""
        computed = self._bound_ms(row)
        held = self._complete.get((row.topic, row.partition, row.sink))
        if computed is None or held is None or held[0] != row.incarnation:
            return computed
        return max(computed, held[1])

    def updated_at_ms(self, row: Row) -> int:
        """As of when ``row`` holds: its flush, or its owner's later look at the log's end, which says that nothing changed."""
        return max(row.updated_at_ms, self._end_read_ms(row) or row.updated_at_ms)

    def heard(self, topic: str, sink: str) -> bool:
        """Whether the sink was heard of in any partition of the topic."""
        return any(row.heard and row.sink == sink for held in self._partitions.get(topic, {}).values() for row in held.rows)

    def stands_in_configuration(self, topic: str, sink: str) -> bool | None:
        """Whether some worker has the sink in its configuration; None: nobody knows it."""
        if sink == LOG or sink in self._config.get(topic, {}):
            return True
        rows = [row for held in self._partitions.get(topic, {}).values() for row in held.rows if row.sink == sink]
        return any(row.configured for row in rows) if rows else None

    def why_unknown(self, row: Row, now_ms: int) -> str | None:
        """Why nothing can be said of a row whose owner is alive; None where something can."""
        return self._why_row_unknown(row, now_ms, row.heard or self.heard(row.topic, row.sink))

    def _why_row_unknown(self, row: Row, now_ms: int, heard: bool) -> str | None:
        if row.unknown is not None:  # whoever is asked and never answered is not known by that alone
            return row.unknown
        if not (row.heard or row.sink == LOG or heard):
            return NEVER_HEARD
        end_read_ms = self._end_read_ms(row)
        if end_read_ms is not None and now_ms - end_read_ms > self._unknown_after_ms:
            return f"the end of the log was last read at {rfc3339(end_read_ms)}"
        return None

    def _why_worker_unknown(self, held: StatusRecord, updated_at_ms: int, now_ms: int) -> str | None:
        beat = self._workers.get(held.worker)
        if beat is None:
            return f"worker {held.worker} was never heard of"
        if beat.stopped:
            return f"worker {held.worker} has stopped and no other has taken over yet"
        if now_ms - beat.at_ms > beat.session_timeout_ms:
            return f"worker {held.worker} is gone, last heard of at {rfc3339(beat.at_ms)}"
        # A worker that is alive but lost the partition: its last rows would stand as if somebody still looked after them.
        owns = f"{held.topic}/{held.partition}" in beat.checked
        if not owns and beat.at_ms - updated_at_ms > beat.session_timeout_ms:
            return f"worker {held.worker} no longer reads it and no other has taken over yet"
        return None

    def _judge(self, row: Row, held: StatusRecord, now_ms: int, heard: bool) -> Judged:
        why = self._why_worker_unknown(held, row.updated_at_ms, now_ms) or self._why_row_unknown(row, now_ms, heard)
        holds = {"unknown": why is not None, "gaps": bool(row.gaps or row.missing), "catching_up": row.catching_up, "stalled": row.stalled}
        return Judged(
            topic=row.topic,
            partition=row.partition,
            sink=row.sink,
            state=next((state for state in STATES if holds.get(state)), "ok"),
            reason=why or row.reason,
            row=row,
            never_heard=why == NEVER_HEARD or not (row.heard or heard or row.sink == LOG),
            complete_through_ms=self.complete_through_ms(row),
            updated_at_ms=self.updated_at_ms(row),
            worker=held.worker,
        )

    def partition_count(self, topic: str, now_ms: int) -> int | None:
        """Partitions of a watched topic as the workers see it; None where none of them has seen the topic."""
        beats = [beat for beat in self._workers.values() if topic in beat.topics]
        alive = [beat for beat in beats if not beat.stopped and now_ms - beat.at_ms <= beat.session_timeout_ms]
        if alive:
            # While a topic grows, workers see it one after the other: the higher number is the newer.
            return max(beat.topics[topic] for beat in alive)
        latest = max(beats, key=lambda beat: beat.at_ms, default=None)
        return None if latest is None else latest.topics[topic]

    def _topics(self) -> list[str]:
        return sorted({*self._config, *self._partitions})

    def sinks(self, topic: str) -> list[str]:
        """The log, the configured sinks of a topic, and those that report."""
        reported = (row.sink for held in self._partitions.get(topic, {}).values() for row in held.rows)
        return sorted({LOG, *self._config.get(topic, {}), *reported})

    def _judged(self, topic: str, now_ms: int, only: int | None = None) -> Iterator[Judged]:
        """Every row of a topic (or of one partition) in the order of partition and sink, those that should be there and aren't included."""
        held_by_partition = self._partitions.get(topic, {})
        expected = {LOG, *self._config.get(topic, {})}
        heard = {row.sink for held in held_by_partition.values() for row in held.rows if row.heard}
        there = {*range(self.partition_count(topic, now_ms) or 0), *held_by_partition}
        for partition in sorted(there if only is None else there & {only}):
            held = held_by_partition.get(partition)
            rows = {} if held is None else {row.sink: row for row in held.rows}
            for sink in sorted(expected | rows.keys()):
                if held is not None and sink in rows:
                    yield self._judge(rows[sink], held, now_ms, sink in heard)
                elif sink != LOG and sink not in heard:
                    yield Judged(topic, partition, sink, "unknown", NEVER_HEARD, never_heard=True)
                else:
                    yield Judged(topic, partition, sink, "unknown", "no worker has reported it yet")

    # -- out -----------------------------------------------------------------------------------------------------

    def status(self, now_ms: int, allow: Allow | None = None) -> dict[str, Any]:
        """The answer of ``/api/status``: one line per topic and sink."""
        lines = []
        for topic in self._topics():
            by_sink: dict[str, list[Judged]] = {sink: [] for sink in self.sinks(topic) if allow is None or allow(topic, sink)}
            for judged in self._judged(topic, now_ms):
                if judged.sink in by_sink:
                    by_sink[judged.sink].append(judged)
            lines += [self._status_line(topic, sink, rows, now_ms) for sink, rows in by_sink.items()]
        return {"status": lines}

    def _status_line(self, topic: str, sink: str, judged: list[Judged], now_ms: int) -> dict[str, Any]:
        state = min((j.state for j in judged), key=STATES.index, default="unknown")
        never = sink != LOG and all(j.never_heard for j in judged)
        reported = [j.row for j in judged if j.row is not None]
        rows = [] if never else reported
        partitions = self.partition_count(topic, now_ms)
        # A partition without a row may lack anything: then nothing is known of the whole.
        whole = not never and partitions is not None and len(judged) >= partitions
        complete = [j.complete_through_ms for j in judged] if whole else []
        return {
            "topic": topic,
            "sink": sink,
            "type": LOG if sink == LOG else self._config.get(topic, {}).get(sink),
            "configured": sink == LOG or not reported or any(row.configured for row in reported),
            "state": state,
            "reason": NEVER_HEARD if never and not any(j.row and j.row.unknown for j in judged) else _common_reason(state, judged),
            "partitions": partitions or len(judged) or None,
            "partitions_with_gaps": _sum(None if row.gaps is None else int(row.gaps > 0) for row in rows),
            "missing": _sum(row.missing for row in rows),
            "duplicates": _sum(row.duplicates for row in rows),
            "lag": _sum(row.lag for row in rows),
            "complete_through": rfc3339(None if None in complete else _min(complete)),
            "oldest_gap_opened_at": rfc3339(_min(row.oldest_gap_opened_at_ms for row in rows)),
            "expires_at": rfc3339(_min(row.expires_at_ms for row in rows)),
            "updated_at": rfc3339(_min(j.updated_at_ms for j in judged)),
        }

    def partitions(self, now_ms: int, topic: str | None = None, sink: str | None = None, allow: Allow | None = None) -> dict[str, Any]:
        """The answer of ``/api/partitions``: one row per topic, partition and sink."""
        return {
            "partitions": [
                self._partition_row(judged)
                for name in self._topics()
                if topic in (None, name)
                for judged in self._judged(name, now_ms)
                if sink in (None, judged.sink) and (allow is None or allow(name, judged.sink))
            ]
        }

    def _partition_row(self, judged: Judged) -> dict[str, Any]:
        row = judged.row
        # What a sink never heard of has or lacks is not known, whatever number its empty ledger holds.
        heard = None if judged.never_heard else row
        return {
            "topic": judged.topic,
            "partition": judged.partition,
            "sink": judged.sink,
            "configured": judged.sink == LOG or row is None or row.configured,
            "state": judged.state,
            "reason": judged.reason,
            "log_start_offset": row and row.log_start_offset,
            "log_read_offset": row and row.log_read_offset,
            "log_end_offset": row and row.log_end_offset,
            "floor_offset": row and row.floor_offset,
            "horizon_offset": heard and heard.horizon_offset,
            "records": row and row.records,
            "observed": heard and heard.observed,
            "rows": heard and heard.rows,
            "missing": heard and heard.missing,
            "duplicates": heard and heard.duplicates,
            "lag": heard and heard.lag,
            "absent": {} if row is None else dict(row.absent),
            "explained": {} if row is None else dict(row.explained),
            "sequence": row and row.sequence,
            "complete_through": rfc3339(None if judged.never_heard else judged.complete_through_ms),
            "oldest_gap_opened_at": rfc3339(row.oldest_gap_opened_at_ms if row else None),
            "expires_at": rfc3339(row.expires_at_ms if row else None),
            "checked_at": rfc3339(row.checked_at_ms if row else None),
            "updated_at": rfc3339(judged.updated_at_ms),
            "worker": judged.worker,
        }

    def of_partition(self, topic: str, partition: int, now_ms: int) -> list[tuple[Judged, Sequence[Gap]]]:
        """Each sink of one partition, the log among them, with its gaps as listed, open and explained ones."""
        found: list[tuple[Judged, Sequence[Gap]]] = []
        for judged in self._judged(topic, now_ms, partition):
            key = (topic, partition, judged.sink)
            found.append((judged, self.gaps_of(key)))
        return found

    def rows(self, topic: str | None = None, sink: str | None = None, allow: Allow | None = None) -> Iterator[Row]:
        """Every row as its owner flushed it, unjudged, in the order of topic, partition and sink."""
        for name in sorted(self._partitions) if topic is None else [topic]:
            for _, held in sorted(self._partitions.get(name, {}).items()):
                for row in sorted(held.rows, key=lambda row: row.sink):
                    if sink in (None, row.sink) and (allow is None or allow(name, row.sink)):
                        yield row

    def gaps(
        self,
        now_ms: int,
        topic: str | None = None,
        partition: int | None = None,
        sink: str | None = None,
        cause: str | None = None,
        all: bool = False,
        limit: int = GAPS_LIMIT,
        cursor: str | None = None,
        allow: Allow | None = None,
    ) -> dict[str, Any]:
        """The answer of ``/api/gaps``: open gaps (with ``all`` explained ones too) by topic, partition, sink and offset.

        It is what a fold of the alerts topic holds, so gaps of sinks that stand in no configuration are left out: of these
        nothing is told there, and what was open of one that left was closed.

        ``next`` is the cursor of the next page, None on the last. A cursor names the last gap shown, so pages neither
        repeat nor leave out a gap that stays, whatever opens and closes between them.

        Raises:
            BadCursor: ``cursor`` is none that this method gave out.
        """
        after = None if cursor is None else _read_cursor(cursor)
        found: list[dict[str, Any]] = []
        for key in sorted(self._gaps):
            wanted = topic in (None, key[0]) and partition in (None, key[1]) and sink in (None, key[2])
            if not wanted or (after is not None and key < after[:3]) or not (allow is None or allow(key[0], key[2])):
                continue
            row = self._row_of(key)
            if row is None or not row.configured:
                continue
            gaps = self.gaps_of(key)
            start = bisect_right(gaps, after[3:], key=_gap_order) if after is not None and key == after[:3] else 0
            for index in range(start, len(gaps)):
                gap = gaps[index]
                if (not gap.open and not all) or cause not in (None, gap.cause):
                    continue
                if len(found) == limit:
                    return {"gaps": found, "next": _write_cursor(found[-1])}
                found.append(_gap_json(key, gap))
        return {"gaps": found, "next": None}

    def _row_of(self, key: RowKey) -> Row | None:
        """As its owner flushed it; None: it was not reported."""
        held = self._partitions.get(key[0], {}).get(key[1])
        return None if held is None else next((row for row in held.rows if row.sink == key[2]), None)

    def gaps_of(self, key: RowKey) -> Sequence[Gap]:
        """All gaps of a row, ascending, open and explained ones; pages that an earlier owner left over are none."""
        if key not in self._gaps:
            return []
        row = self._row_of(key)
        pages = 0 if row is None else row.pages
        merged = self._merged.get(key)
        if merged is None or merged[0] != pages:
            # Between two records of one flush a gap may stand on two pages.
            gaps = {_gap_order(gap): gap for page, listed in self._gaps[key].items() if page < pages for gap in listed}
            merged = self._merged[key] = pages, [gaps[order] for order in sorted(gaps)]
        return merged[1]


def _gap_order(gap: Gap) -> tuple[int, str]:
    return gap.first, gap.cause


def _gap_json(key: RowKey, gap: Gap) -> dict[str, Any]:
    topic, partition, sink = key
    return {
        "topic": topic,
        "partition": partition,
        "sink": sink,
        "first_offset": gap.first,
        "last_offset": gap.stop - 1,
        "count": gap.count,
        "cause": gap.cause,
        "opened_at": rfc3339(gap.opened_at_ms),
        "first_timestamp": rfc3339(gap.first_timestamp_ms),
        "last_timestamp": rfc3339(gap.last_timestamp_ms),
        "expires_at": rfc3339(gap.expires_at_ms),
        "sequence": gap.sequence,
    }


def _write_cursor(gap: Mapping[str, Any]) -> str:
    key = [gap[name] for name in ("topic", "partition", "sink", "first_offset", "cause")]
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[str, int, str, int, str]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=tuple[str, int, str, int, str])
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise BadCursor("the cursor is none that this server gave out") from error


def _sum(values: Iterable[int | None]) -> int | None:
    """Sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _min(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _common_reason(state: str, judged: list[Judged]) -> str | None:
    """The commonest reason among the rows that made the state; with how many they are, unless they all are."""
    if not judged:
        return "no worker has reported it yet"
    reasons = Counter(j.reason for j in judged if j.state == state and j.reason is not None)
    if not reasons:
        return None
    reason, count = reasons.most_common(1)[0]
    return reason if count == len(judged) else f"{count} of {len(judged)} partitions: {reason}"
