from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from stream_app.core.events import RANGES_MAX, SPAN_MAX, Event, EventType, as_json, closed, headers, pieces, rfc3339, severity
from stream_app.core.model import CHUNK
from stream_app.core.offsets import END, OffsetSet
from tests.core.strategies import expand, offsets_in

SOURCE = "gapstream://cluster/gapstream/1700000000000"
KEYS = [
    *("v", "source", "id", "sequence", "type", "severity", "topic", "partition", "sink", "cause", "first_offset", "last_offset"),
    *("count", "ranges", "bitmap", "open", "horizon_offset", "log_start_offset", "log_end_offset", "first_timestamp"),
    *("last_timestamp", "expires_at", "passed_at", "detected_at", "reason", "by"),
]
"""Of contract section 5, in its order."""
CRITICAL = {"gap.opened", "gap.expired", "log.truncated", "log.recreated", "log.unread", "log.unreadable"}
WARNING = {"duplicate.detected", "sink.stalled", "sink.rewound", "sink.unknown"}


def event(ranges: OffsetSet | None = None, kind: EventType = EventType.GAP_OPENED, **facts: Any) -> Event:
    return Event(kind, "orders", 3, "warehouse", 17, 1_795_428_000_123, ranges=ranges or OffsetSet(), **facts)


def test_an_event_says_what_the_contract_shows() -> None:
    told = event(
        OffsetSet([(15012, 15015), (15017, 15020)]),
        cause="not_received",
        open_count=6,
        open_gaps=1,
        horizon=15400,
        log_start=0,
        log_end=20000,
        passed_at_ms=1_795_428_000_000,
        first_timestamp_ms=1_795_427_000_001,
        last_timestamp_ms=1_795_427_000_002,
        expires_at_ms=1_795_427_000_003,
        reason="why",
        by="whom",
    )
    assert json.loads(as_json(told, SOURCE)) == {
        "v": 1,
        "source": SOURCE,
        "id": "orders/3/warehouse/17",
        "sequence": 17,
        "type": "gap.opened",
        "severity": "critical",
        "topic": "orders",
        "partition": 3,
        "sink": "warehouse",
        "cause": "not_received",
        "first_offset": 15012,
        "last_offset": 15019,
        "count": 6,
        "ranges": [[15012, 15014], [15017, 15019]],
        "bitmap": None,
        "open": {"count": 6, "gaps": 1},
        "horizon_offset": 15400,
        "log_start_offset": 0,
        "log_end_offset": 20000,
        "first_timestamp": "2026-11-23T09:43:20.001Z",
        "last_timestamp": "2026-11-23T09:43:20.002Z",
        "expires_at": "2026-11-23T09:43:20.003Z",
        "passed_at": "2026-11-23T10:00:00.000Z",
        "detected_at": "2026-11-23T10:00:00.123Z",
        "reason": "why",
        "by": "whom",
    }


@pytest.mark.parametrize("kind", EventType, ids=str)
def test_every_key_is_there_and_what_does_not_apply_is_null(kind: EventType) -> None:
    value = json.loads(as_json(event(kind=kind), SOURCE))
    assert list(value) == KEYS
    unsaid = {key for key in KEYS if value[key] is None}
    assert unsaid == set(KEYS) - {"v", "source", "id", "sequence", "type", "severity", "topic", "partition", "sink", "detected_at"}


@pytest.mark.parametrize("kind", EventType, ids=str)
def test_severity_is_the_contracts(kind: EventType) -> None:
    assert severity(kind) == ("critical" if kind in CRITICAL else "warning" if kind in WARNING else "info")


def test_headers_are_cloudevents_in_binary_mode() -> None:
    assert headers(event(), SOURCE) == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"orders/3/warehouse/17"),
        ("ce_source", SOURCE.encode()),
        ("ce_type", b"gapstream.gap.opened"),
        ("ce_subject", b"orders/3/warehouse"),
        ("ce_time", b"2026-11-23T10:00:00.123Z"),
        ("content-type", b"application/json"),
    ]


# --- times: producers write what they like ---


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1_709_164_800_007, "2024-02-29T00:00:00.007Z"),
        (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000, None),
        (2**63 - 1, None),
        (-1, None),
        (-(2**63), None),
        (None, None),
    ],
)
def test_rfc3339_has_milliseconds_and_is_null_where_no_clock_can_have_shown_it(ms: int | None, text: str | None) -> None:
    assert rfc3339(ms) == text


@given(st.integers(0, 253_402_300_799_999))
def test_rfc3339_loses_nothing(ms: int) -> None:
    text = rfc3339(ms)
    assert text is not None
    moment = datetime.fromisoformat(text)
    assert int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000 == ms


def test_impossible_times_do_not_keep_an_event_from_being_told() -> None:
    told = event(OffsetSet([(0, 1)]), first_timestamp_ms=-1, last_timestamp_ms=2**62, expires_at_ms=2**63)
    value = json.loads(as_json(told, SOURCE))
    assert value["first_timestamp"] is value["last_timestamp"] is value["expires_at"] is None


# --- splitting ---


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 3 * SPAN_MAX)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 3 * SPAN_MAX), st.integers(1, 50)), max_size=30),
)
@settings(max_examples=80)
def test_pieces_cover_the_set_and_each_fits_one_event(wide: list[tuple[int, int]], narrow: list[tuple[int, int]]) -> None:
    offsets = OffsetSet((first, first + size) for first, size in [*wide, *narrow])
    rejoined, before = OffsetSet(), -1
    for piece in pieces(offsets):
        first, last = piece.first(), piece.last()
        assert first is not None
        assert last is not None
        assert before < first <= last < first + SPAN_MAX
        rejoined.update(piece)
        before = last
    assert rejoined == offsets
    assert rejoined.count == offsets.count


@pytest.mark.parametrize(("size", "count"), [(1, 1), (SPAN_MAX, 1), (SPAN_MAX + 1, 2), (10 * SPAN_MAX, 10), (10 * SPAN_MAX + 1, 11)])
def test_a_gap_becomes_as_few_events_as_fit(size: int, count: int) -> None:
    assert SPAN_MAX == 32 * 65_536
    assert [piece.count for piece in pieces(OffsetSet([(7, 7 + size)]))] == [SPAN_MAX] * (count - 1) + [size - SPAN_MAX * (count - 1)]


def test_nothing_has_no_pieces() -> None:
    assert list(pieces(OffsetSet())) == []
    assert [piece.count for piece in pieces(OffsetSet([(END - 5, END)]))] == [5]


# --- ranges or a bitmap ---


@pytest.mark.parametrize(("runs", "listed"), [(1, True), (RANGES_MAX, True), (RANGES_MAX + 1, False)])
def test_up_to_a_thousand_ranges_are_listed_and_more_travel_as_a_bitmap(runs: int, listed: bool) -> None:
    assert RANGES_MAX == 1_000
    offsets = OffsetSet((70_000 + 3 * i, 70_002 + 3 * i) for i in range(runs))
    value = json.loads(as_json(event(offsets), SOURCE))
    assert (value["ranges"] is not None, value["bitmap"] is not None) == (listed, not listed)
    assert value["count"] == 2 * runs
    assert (value["first_offset"], value["last_offset"]) == (70_000, 70_000 + 3 * runs - 2)
    assert offsets_in(value) == expand(offsets)


@given(st.lists(st.integers(0, SPAN_MAX - 1), min_size=1, max_size=3_000), st.sampled_from([0, 5, CHUNK - 1, 2**40 + 3, END - SPAN_MAX]))
@settings(max_examples=60)
def test_what_an_event_lists_is_the_set(distances: list[int], base: int) -> None:
    offsets = OffsetSet()
    offsets.add_many([base + distance for distance in distances])
    value = json.loads(as_json(event(offsets), SOURCE))
    assert offsets_in(value) == expand(offsets)
    assert value["count"] == offsets.count
    assert all(first <= last for first, last in value["ranges"] or ())


def test_closed_ranges_can_be_cut_off() -> None:
    offsets = OffsetSet([(0, 3), (5, 6), (9, 12)])
    assert closed(offsets) == [[0, 2], [5, 5], [9, 11]]
    assert closed(offsets, 2) == [[0, 2], [5, 5]]


@pytest.mark.parametrize(("base", "share"), [(0, 0.5), (CHUNK - 1, 0.5), (1, 0.95)])
def test_the_largest_event_is_below_512_kilobytes(base: int, share: float, request: pytest.FixtureRequest) -> None:
    dice = random.Random(int(request.config.getoption("--hypothesis-seed")))
    wanted = BitMap(dice.sample(range(SPAN_MAX), int(SPAN_MAX * min(share, 1 - share))))
    wanted = wanted if share <= 0.5 else wanted.flip(0, SPAN_MAX)
    wanted.update((0, SPAN_MAX - 1))
    offsets = OffsetSet.from_bitmap(2**50 + base, wanted)
    assert [piece.count for piece in pieces(offsets)] == [len(wanted)]
    value = as_json(event(offsets, reason="r" * 1_000, by="b" * 200), SOURCE)
    assert len(value) < 512_000
    bitmap = json.loads(value)["bitmap"]
    assert bitmap["base"] == 2**50 + base
    assert offsets_in({"bitmap": bitmap}) == {2**50 + base + distance for distance in wanted}
