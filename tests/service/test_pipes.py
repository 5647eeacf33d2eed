"""The questions of /v0/pipes on a view that is filled by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from stream_app.core.model import Gap, GapsRecord, MinuteRow, MinutesRecord, Row, StatusRecord
from stream_app.service.pipes import PIPES, Asked, Found
from stream_app.service.view import StatusView

NOW_MS = 1_700_000_015_000
NOW = NOW_MS // 60_000
"""The minute that is now."""


def minute(ago: int, *, received: int = 0, first: int | None = None, last: int | None = None, **numbers: int) -> MinuteRow:
    at = NOW - ago
    known = {"duplicates": 0, "missing": 0, "open": 0, "explained": 0, **numbers}
    return MinuteRow(
        at,
        received,
        known["duplicates"],
        first,
        last,
        known["missing"],
        known["open"],
        known["explained"],
        at * 60_000 + 1,
        at * 60_000 + 9,
    )


def gap(first: int, stop: int, behind: int | None, *, ago: int | None = 5, cause: str = "not_received", **known: Any) -> Gap:
    is_open = cause in ("not_received", "expired", "vanished", "unreadable")
    return Gap(
        first=first,
        stop=stop,
        count=known.pop("count", stop - first),
        cause=cause,
        open=is_open,
        minute=None if ago is None else NOW - ago,
        next_offset=behind,
        next_timestamp_ms=None if behind is None else behind * 1000,
        **known,
    )


class Filled:
    """A view with what is put into it."""

    def __init__(self) -> None:
        self.view = StatusView({"orders": {"s": "clickhouse"}}, 300)
        self.rows: dict[tuple[str, int], list[Row]] = {}

    def put(
        self,
        minutes: Iterable[MinuteRow] = (),
        gaps: Sequence[Gap] = (),
        *,
        topic: str = "orders",
        partition: int = 0,
        sink: str = "s",
        configured: bool = True,
    ) -> Filled:
        known: dict[str, Any] = {"topic": topic, "partition": partition, "sink": sink}
        missing = sum(one.count for one in gaps if one.open)
        row = Row(**known, configured=configured, heard=True, missing=missing, pages=1, updated_at_ms=NOW_MS, incarnation="AAA")
        rows = self.rows.setdefault((topic, partition), [])
        rows.append(row)
        self.apply(f"partition/{topic}/{partition}", StatusRecord(topic=topic, partition=partition, worker="w", rows=rows))
        self.apply(f"gaps/{topic}/{partition}/{sink}/0", GapsRecord(**known, block=0, gaps=list(gaps)))
        blocks: dict[int, list[MinuteRow]] = {}
        for one in minutes:
            blocks.setdefault(one.minute // 10, []).append(one)
        for block, some in blocks.items():
            self.apply(f"minutes/{topic}/{partition}/{sink}/{block}", MinutesRecord(**known, block=block, minutes=some))
        assert self.view.malformed == 0, self.view.last_malformed
        return self

    def apply(self, key: str, record: msgspec.Struct) -> None:
        self.view.apply(key.encode(), msgspec.json.encode(record))

    def found(self, pipe: str, *, minutes: int | None = None, open: bool | None = None, **asked: Any) -> Found:
        one = PIPES[pipe]
        wanted = Asked(one.minutes if minutes is None else minutes, one.open if open is None else open, **asked)
        return one.ask(self.view, wanted, NOW_MS)

    def ask(self, pipe: str, **asked: Any) -> list[dict[str, Any]]:
        names = [name for name, _ in PIPES[pipe].columns]
        return [dict(zip(names, row, strict=True)) for row in self.found(pipe, **asked).rows]


def pick(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


COUNTS = ("message_count", "missing_messages", "duplicate_messages", "explained_messages", "open_missing_messages")


# --- the window ---


def test_a_window_begins_at_a_whole_minute() -> None:
    filled = Filled().put([minute(ago, received=1, first=100 - ago, last=100 - ago, missing=1, open=1) for ago in (60, 61, 3)])
    assert pick(filled.ask("missing_offsets"), "min_offset", *COUNTS[:2]) == [(40, 2, 2)]
    assert pick(filled.ask("missing_offsets", minutes=61), "min_offset", *COUNTS[:2]) == [(39, 3, 3)]
    assert pick(filled.ask("offset_stats", minutes=3), "minute") == [((NOW - 3) * 60_000,)]
    assert filled.ask("missing_offsets", minutes=2) == []


def test_numbers_are_summed_and_offsets_and_times_are_those_of_what_was_received() -> None:
    first = minute(9, received=10, first=5, last=20, duplicates=2, missing=3, open=2, explained=1)
    filled = Filled().put([minute(10, missing=1, open=1), first, minute(8, received=4, first=21, last=24)])
    (row,) = filled.ask("missing_offsets")
    assert pick([row], "min_offset", "max_offset", *COUNTS) == [(5, 24, 16, 4, 2, 1, 3)]
    (row,) = filled.ask("missing_offsets_alert")
    assert pick([row], "first_message_time", "last_message_time", "alert_time") == [(first.low_ms, (NOW - 8) * 60_000 + 9, NOW_MS)]


def test_rows_without_a_loss_are_left_out() -> None:
    filled = Filled().put([minute(5, received=10, first=0, last=9, duplicates=1, explained=2)])
    assert [filled.ask(pipe) for pipe in ("missing_offsets", "missing_offsets_alert", "offset_gaps", "find_gaps")] == [[]] * 4
    assert pick(filled.ask("offset_stats"), "messages_received", "expected_messages", "missing_messages") == [(11, 10, 0)]


def test_a_minute_in_which_nothing_arrived_is_a_row_if_something_lacks() -> None:
    filled = Filled().put([minute(5, missing=3, open=3), minute(4, explained=2)])
    assert pick(filled.ask("offset_stats"), "min_offset", "messages_received", "expected_messages", "missing_messages") == [(None, 0, 3, 3)]


# --- open ---


def test_what_is_open_is_listed_beyond_the_window() -> None:
    old = [minute(200, received=10, first=0, last=11, missing=2, open=2), minute(199, received=5, first=12, last=16)]
    filled = Filled().put([*old, minute(3, received=4, first=17, last=20)], [gap(5, 7, 7, ago=200)])
    (row,) = filled.ask("missing_offsets_alert")
    assert pick([row], "min_offset", "max_offset", *COUNTS) == [(0, 20, 19, 2, 0, 0, 2)]
    assert filled.ask("missing_offsets_alert", open=False) == filled.ask("missing_offsets") == filled.ask("find_gaps") == []
    assert len(filled.ask("find_gaps", open=True)) == len(filled.ask("offset_gaps", open=True)) == 1
    assert pick(filled.ask("offset_stats", open=True), "missing_messages") == [(0,), (2,)]
    assert pick(filled.ask("offsets", open=True), "first_offset", "last_offset") == [(0, 4), (7, 20)]
    assert pick(filled.ask("offsets"), "first_offset", "last_offset") == [(17, 20)]


def test_what_is_open_in_the_window_is_told_of_the_window_alone() -> None:
    minutes = [minute(200, received=10, first=0, last=11, missing=2, open=2), minute(3, received=4, first=17, last=21, missing=1, open=1)]
    filled = Filled().put(minutes, [gap(5, 7, 7, ago=200), gap(18, 19, 19, ago=3)])
    assert pick(filled.ask("missing_offsets_alert"), "min_offset", "missing_messages", "open_missing_messages") == [(17, 1, 1)]


def test_what_is_open_for_more_than_a_day_is_counted_without_a_minute() -> None:
    filled = Filled().put([minute(3, received=4, first=90, last=93)], [gap(5, 7, 90, ago=None)])
    assert pick(filled.ask("missing_offsets_alert"), "min_offset", *COUNTS) == [(90, 4, 2, 0, 0, 2)]
    assert filled.ask("offset_stats", open=True)[0]["missing_messages"] == 0
    nothing = Filled().put([], [gap(5, 7, None, ago=None)])
    (row,) = nothing.ask("missing_offsets_alert")
    assert pick([row], "min_offset", "first_message_time", *COUNTS) == [(None, None, 0, 2, 0, 0, 2)]


def test_what_was_accepted_as_lost_is_missing_but_not_open() -> None:
    filled = Filled().put([minute(3, received=4, first=0, last=5, missing=2)], [gap(2, 4, 4, ago=3, cause="acknowledged")])
    assert pick(filled.ask("missing_offsets"), "missing_messages", "open_missing_messages") == [(2, 0)]
    assert pick(filled.ask("offset_gaps"), "gap_size", "open_missing_messages") == [(2, 0)]
    late = Filled().put([minute(300, received=4, first=0, last=5, missing=2)], [gap(2, 4, 4, ago=300, cause="acknowledged")])
    assert late.ask("missing_offsets_alert") == late.ask("find_gaps", open=True) == []


# --- gaps ---


def test_what_lies_between_two_received_records_is_one_row() -> None:
    listed = [
        gap(5, 7, 12, cause="not_received"),
        gap(7, 8, 12, cause="tombstone"),
        gap(8, 10, 12, cause="vanished"),
        gap(20, 24, 24, count=3),
        gap(30, 31, 31, cause="quarantined"),
    ]
    filled = Filled().put([], listed)
    names = ("gap_size", "explained_messages", "open_missing_messages", "duplicate_messages", "sink")
    assert pick(filled.ask("offset_gaps"), "expected_offset", "actual_offset", *names) == [
        (5, 12, 4, 1, 4, 0, "s"),
        (20, 24, 3, 0, 3, 0, "s"),
    ]
    assert pick(filled.ask("find_gaps"), "missing_offset_start", "missing_offset_end", "gap_size", "detected_at") == [
        (5, 9, 4, 12_000),
        (20, 23, 3, 24_000),
    ]


def test_a_loss_with_nothing_behind_it_is_told_without_an_end() -> None:
    filled = Filled().put([], [gap(5, 7, None)])
    assert pick(filled.ask("offset_gaps"), "expected_offset", "actual_offset", "gap_size") == [(5, None, 2)]
    assert pick(filled.ask("find_gaps"), "missing_offset_end", "detected_at") == [(6, None)]


# --- what is stored ---


def test_ranges_have_the_times_of_their_ends_where_these_are_known() -> None:
    minutes = [minute(9, received=10, first=3, last=11), minute(8, received=8, first=12, last=30, duplicates=1)]
    listed = [gap(5, 7, 7, before_timestamp_ms=4_444), gap(20, 22, 25), gap(22, 25, 25, cause="tombstone")]
    filled = Filled().put(minutes, listed)
    assert pick(filled.ask("offsets"), "first_offset", "last_offset", "first_timestamp", "last_timestamp", "duplicate_messages") == [
        (3, 4, minutes[0].low_ms, 4_444, None),
        (7, 19, 7_000, None, None),
        (25, 30, 25_000, minutes[1].high_ms, None),
    ]
    whole = Filled().put(minutes)
    assert pick(whole.ask("offsets"), "first_offset", "last_offset", "duplicate_messages") == [(3, 30, 1)]


def test_gaps_outside_of_the_window_do_not_cut_it() -> None:
    listed = [gap(0, 1, 3), gap(2, 3, 3), gap(31, 40, 40), gap(50, 60, None)]
    filled = Filled().put([minute(9, received=28, first=3, last=30)], listed)
    assert pick(filled.ask("offsets"), "first_offset", "last_offset", "first_timestamp") == [(3, 30, 3_000)]


# --- who, which, how many ---


def lossy(ago: int = 3, missing: int = 1) -> list[MinuteRow]:
    return [minute(ago, received=2, first=1, last=5, missing=missing, open=missing)]


def test_rows_are_of_a_topic_partition_and_sink_and_ordered_by_them() -> None:
    filled = Filled()
    for topic, partition, sink in (("b", 0, "s"), ("a", 1, "t"), ("a", 1, "s"), ("a", 0, "s")):
        filled.put(lossy(), [gap(2, 3, 4, ago=3)], topic=topic, partition=partition, sink=sink)
    ordered = [("a", 0, "s"), ("a", 1, "s"), ("a", 1, "t"), ("b", 0, "s")]
    for pipe in PIPES:
        rows = pick(filled.ask(pipe), "__topic", "__partition", "sink")
        assert sorted(set(rows)) == ordered
        assert rows == (sorted(rows) if pipe != "offsets" else rows)
    assert pick(filled.ask("missing_offsets", topic="a", sink="t"), "__partition") == [(1,)]
    assert filled.ask("missing_offsets", topic="none") == filled.ask("missing_offsets", sink="none") == []
    assert pick(filled.ask("missing_offsets", allow=lambda topic, sink: topic == "b"), "__topic") == [("b",)]


def test_alerts_begin_with_the_largest_loss_and_minutes_with_the_latest() -> None:
    filled = Filled()
    for partition, missing in enumerate((1, 7, 3)):
        filled.put(lossy(missing + 1, missing), partition=partition)
    assert pick(filled.ask("missing_offsets_alert"), "missing_messages") == [(7,), (3,), (1,)]
    assert pick(filled.ask("offset_stats"), "__partition") == [(0,), (2,), (1,)]


def test_the_log_is_no_sink_and_others_than_configured_ones_are_told_by_name_only() -> None:
    filled = Filled().put(lossy(), sink="log").put(lossy(), [gap(2, 3, 4)], sink="stranger", configured=False)
    for pipe in PIPES:
        assert filled.ask(pipe) == filled.ask(pipe, sink="log") == []
        assert bool(filled.ask(pipe, sink="stranger")) is (pipe in ("offset_stats", "offsets")), "its numbers, and no gaps"


def test_what_was_read_for_an_answer_is_counted() -> None:
    filled = Filled().put([*lossy(3), *lossy(300)], [gap(2, 3, 4)])
    found = filled.found("missing_offsets")
    assert (len(found.rows), found.rows_read, found.bytes_read > 50) == (1, 2, True)
    assert filled.found("missing_offsets", minutes=400).bytes_read > found.bytes_read


def test_a_new_reading_of_the_topic_begins_with_nothing() -> None:
    filled = Filled().put(lossy())
    filled.view.restart()
    assert filled.ask("offset_stats") == []


@pytest.mark.parametrize("pipe", PIPES)
def test_extra_columns_stand_behind_the_guides(pipe: str) -> None:
    assert [name for name, _ in PIPES[pipe].columns[-4:]] == ["sink", "duplicate_messages", "explained_messages", "open_missing_messages"]
