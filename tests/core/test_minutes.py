"""Runs of offsets by minute, against a plain dict from offset to minute."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.core.minutes import BLOCK, HOUR, KEPT_MINUTES, MINUTE_MS, RUNS_MAX, MinuteCounts, MinuteRun, Minutes, Span
from stream_app.core.model import Timed
from stream_app.core.offsets import OffsetSet
from tests.core.strategies import cut

NOW = 28_333_333
NOW_MS = NOW * MINUTE_MS


def at(first: int, minute: int | None, low: int = 0, high: int = 59_999) -> Timed:
    return Timed(first, None) if minute is None else Timed(first, minute, minute * MINUTE_MS + low, minute * MINUTE_MS + high)


def made(*timed: Timed) -> Minutes:
    minutes = Minutes()
    minutes.add(timed)
    minutes.take_changes()
    minutes.take_told()
    return minutes


def firsts(minutes: Minutes) -> list[tuple[int, int | None]]:
    return [(run.first, None if run.minute is None else run.minute - NOW) for run in minutes.runs]


# --- reading on ---


def test_runs_of_one_minute_join_and_widen_its_times() -> None:
    minutes = made(at(0, NOW, 500, 700), at(10, NOW, 300, 600), at(20, NOW + 1))
    assert firsts(minutes) == [(0, 0), (20, 1)]
    assert (minutes.runs[0].low_ms - NOW_MS, minutes.runs[0].high_ms - NOW_MS) == (300, 700)


def test_a_minute_that_comes_again_has_two_runs() -> None:
    minutes = made(at(0, NOW), at(10, NOW + 1), at(20, NOW))
    spans = minutes.spans({NOW, NOW + 1, NOW + 2}, 30)
    assert {minute - NOW: [span[:2] for span in some] for minute, some in spans.items()} == {0: [(0, 10), (20, 30)], 1: [(10, 20)], 2: []}


def test_what_has_no_minute_parts_and_is_none() -> None:
    minutes = made(at(0, None), at(5, NOW), at(10, None), at(15, NOW), at(20, None))
    assert firsts(minutes) == [(5, 0), (10, None), (15, 0), (20, None)]
    assert [minutes.minute_of(offset) for offset in (0, 4, 5, 9, 10, 15, 99)] == [None, None, NOW, NOW, None, NOW, None]
    assert minutes.touching(0, 100) == {NOW}
    assert minutes.touching(0, 5) == minutes.touching(10, 15) == set()


def test_asking_an_empty_one() -> None:
    minutes = Minutes()
    assert not minutes
    assert (minutes.minute_of(3), minutes.touching(0, 9), minutes.spans({NOW}, 9), minutes.blocks()) == (None, set(), {NOW: []}, set())
    assert list(minutes.parts([(0, 9)], 9)) == []


def test_runs_are_cut_into_minutes() -> None:
    minutes = made(at(0, NOW), at(10, None), at(20, NOW + 1))
    assert list(minutes.parts([(3, 4), (8, 23), (25, 40)], 30)) == [(NOW, 3, 4), (NOW, 8, 10), (NOW + 1, 20, 23), (NOW + 1, 25, 30)]


# --- against a dict, in pieces of any size ---

STEPS = st.lists(st.tuples(st.integers(1, 9), st.one_of(st.none(), st.integers(NOW - 3, NOW + 3))), max_size=30)


@given(STEPS, st.lists(st.integers(0, 200)), st.data())
def test_it_holds_what_a_dict_holds_however_it_is_read(
    steps: Sequence[tuple[int, int | None]], edges: list[int], data: st.DataObject
) -> None:
    each = [minute for size, minute in steps for _ in range(size)]
    known = dict(enumerate(each))
    whole, pieces = Minutes(), Minutes()
    whole.add(timed(range(len(each)), known))
    for first, stop in cut(len(each), edges) if each else ():
        pieces.add(timed(range(first, stop), known))
    assert whole == pieces
    assert {offset: whole.minute_of(offset) for offset in known} == known
    first, stop = sorted(data.draw(st.tuples(st.integers(0, 300), st.integers(0, 300))))
    if first < stop <= len(each):
        assert whole.touching(first, stop) == {known[offset] for offset in range(first, stop)} - {None}
    spans = whole.spans(set(each) - {None}, len(each))  # type: ignore[arg-type]  # without None these are integers
    for minute, some in spans.items():
        assert {o for span in some for o in range(span.first, span.stop)} == {o for o, held in known.items() if held == minute}
    parts = [
        (minute, offset)
        for minute, low, high in whole.parts([(first, stop)] if first < stop else [], len(each))
        for offset in range(low, high)
    ]
    assert parts == [(known[o], o) for o in range(first, min(stop, len(each))) if known[o] is not None]
    offset = data.draw(st.integers(0, 300))
    whole.truncate(offset, len(each))
    assert {o: whole.minute_of(o) for o in range(offset)} == {o: known.get(o, whole.minute_of(o)) for o in range(offset)}
    assert all(run.first < offset for run in whole.runs)


def timed(offsets: Iterable[int], known: dict[int, int | None]) -> list[Timed]:
    """One for each change, as the reader tells it."""
    found: list[Timed] = []
    for offset in offsets:
        if not found or found[-1].minute != known[offset]:
            found.append(at(offset, known[offset]))
    return found


# --- bounds ---


def test_of_too_many_runs_the_shortest_are_counted_with_their_neighbours() -> None:
    """Ten producers with times that differ by seconds: the minutes' middles stay where they are."""
    minutes, where, dice = Minutes(), 0, random.Random(1)
    middles = {}
    for minute in range(NOW - 600, NOW):
        minutes.add([at(where, minute)])
        middles[where + 500] = minute
        where += 1_000
        for _ in range(10):
            minutes.add([at(where, minute + 1), at(where + 3, minute)])
            where += dice.randrange(4, 9)
    assert len(minutes.runs) <= RUNS_MAX
    assert {offset: minutes.minute_of(offset) for offset in middles} == middles
    assert all(one.minute != other.minute for one, other in zip(minutes.runs, minutes.runs[1:], strict=False))


@pytest.mark.parametrize("size", [1, 7])
def test_times_without_any_order_are_bounded_and_every_offset_stays_in_some_minute(size: int) -> None:
    minutes, dice = Minutes(), random.Random(size)
    stop = 40_000
    for first in range(0, stop, size):
        minutes.add([at(first, dice.randrange(NOW - 1_000, NOW))])
    assert RUNS_MAX // 2 < len(minutes.runs) <= RUNS_MAX
    spans = minutes.spans({run.minute for run in minutes.runs if run.minute is not None}, stop)
    assert sum(span.stop - span.first for some in spans.values() for span in some) == stop
    assert len({run.minute for run in minutes.runs}) > 900, "not all in one"


def test_minutes_of_more_than_a_day_ago_are_forgotten_by_blocks() -> None:
    start = NOW // BLOCK * BLOCK
    minutes = made(*(at(10 * number, start + number) for number in range(25)))
    minutes.forget((start + KEPT_MINUTES + BLOCK - 1) * MINUTE_MS)
    assert firsts(minutes)[0] == (0, start - NOW), "the block's last minute is younger"
    minutes.forget((start + KEPT_MINUTES + BLOCK) * MINUTE_MS)
    assert firsts(minutes)[0] == (100, start + BLOCK - NOW)
    assert minutes.take_told() == {start // BLOCK}
    assert minutes.take_told() == set()
    minutes.forget((start + 9 * KEPT_MINUTES) * MINUTE_MS)
    assert minutes.runs == []


def test_an_old_minute_between_younger_ones_is_none() -> None:
    minutes = made(at(0, NOW), at(10, NOW - 100), at(20, NOW))
    minutes.forget((NOW - 50 + KEPT_MINUTES) * MINUTE_MS)
    assert firsts(minutes) == [(0, 0), (10, None), (20, 0)]


# --- what the log forgets ---


def test_what_is_frozen_keeps_its_counts_between_floors() -> None:
    minutes = made(at(0, NOW), at(30, NOW + 1))
    records = OffsetSet((offset, offset + 1) for offset in range(0, 60, 3))
    minutes.freeze(40, 60, [10, 55], lambda first, stop: records.within(first, stop))
    assert [(run.first, run.minute, run.held, run.tail) for run in minutes.runs] == [
        (0, NOW, 4, 0),
        (10, NOW, 6, 2),
        (30, NOW + 1, 4, 0),
        (40, NOW + 1, None, 0),
    ]
    minutes.freeze(60, 60, [], lambda first, stop: records.within(first, stop))
    assert [(run.first, run.held) for run in minutes.runs] == [(0, 4), (10, 6), (30, 4), (40, 6)]
    minutes.add([at(60, NOW + 1)])
    assert minutes.runs[-1] == MinuteRun(60, NOW + 1, *at(60, NOW + 1)[2:]), "what comes then is counted apart"
    assert minutes.spans({NOW}, 90)[NOW][1] == Span(10, 30, minutes.runs[1])


def test_of_a_frozen_run_that_is_truncated_nothing_is_known() -> None:
    minutes = made(at(0, NOW), at(10, NOW + 1), at(20, NOW + 2))
    minutes.freeze(20, 30, [], lambda first, stop: OffsetSet([(first, stop)]))
    minutes.truncate(30, 30)
    minutes.truncate(20, 30)
    minutes.truncate(20, 20)
    assert [(run.first, run.held) for run in minutes.runs] == [(0, 10), (10, 10)], "it ends there"
    minutes.truncate(15, 20)
    assert firsts(minutes) == [(0, 0), (10, None)]
    minutes.truncate(10, 15)
    assert firsts(minutes) == [(0, 0)]
    minutes.truncate(3, 10)
    assert minutes.runs == []


def test_a_run_without_records_is_frozen_whole() -> None:
    minutes = made(at(0, NOW), at(9, NOW + 1))
    minutes.freeze(9, 20, [], lambda first, stop: OffsetSet())
    assert (minutes.runs[0].held, minutes.runs[0].tail) == (0, 9)


# --- what is stored ---


def test_changes_are_given_by_hour_and_once() -> None:
    hour = NOW // HOUR
    start = hour * HOUR
    minutes = Minutes()
    minutes.add([at(0, start), at(5, start + 59), at(9, start + HOUR), at(12, None)])
    changes = minutes.take_changes()
    assert {key: [run.first for run in runs] for key, runs in changes.items()} == {hour: [0, 5], hour + 1: [9], -1: [12]}
    assert minutes.take_changes() == {}
    minutes.add([at(20, start + HOUR)])
    assert {key: [run.first for run in runs] for key, runs in minutes.take_changes().items()} == {hour + 1: [9, 20]}
    assert Minutes(run for runs in ({**changes, hour + 1: []}).values() for run in runs).runs == [
        minutes.runs[0],
        minutes.runs[1],
        minutes.runs[3],
    ]
    minutes.truncate(0, 100)
    assert minutes.take_changes() == {hour: [], hour + 1: [], -1: []}


# --- counts ---


def test_counts_by_minute_go_with_their_minute() -> None:
    minutes, counts = made(at(0, NOW), at(5, NOW + HOUR)), MinuteCounts()
    counts.add(NOW, 2)
    counts.add(NOW, 3)
    counts.add(NOW + HOUR, 1)
    assert counts.take_changes() == {NOW // HOUR: [(NOW, 5)], NOW // HOUR + 1: [(NOW + HOUR, 1)]}
    assert counts.take_changes() == {}
    minutes.truncate(5, 100)
    counts.keep(minutes)
    assert counts == MinuteCounts([(NOW, 5)])
    assert counts.take_changes() == {NOW // HOUR + 1: []}


def test_frozen_runs_are_bounded_too() -> None:
    """Of a log whose times jump and whose start follows: what was read first is of no minute then."""
    minutes, dice = Minutes(), random.Random(3)
    stop = 0
    while stop < 2 * RUNS_MAX:
        for _ in range(100):
            minutes.add([at(stop, dice.randrange(NOW - 1_000, NOW))])
            stop += 1
        minutes.freeze(stop - 10, stop, [], lambda first, end: OffsetSet(((first, end),)))
        assert len(minutes.runs) <= RUNS_MAX + 100
    assert minutes.runs[0].minute is not None
    assert minutes.minute_of(5) is None
    assert minutes.minute_of(stop - 1) is not None
    stored = {hour: runs for hour, runs in minutes.take_changes().items() if runs}
    assert Minutes(run for runs in stored.values() for run in runs) == minutes
