from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stream_app.core.log import ENDS_SEEN_MAX, EPOCHS_MAX, FALLEN_MS, TIMELINE_MAX, LogState, Timeline, add_runs, join_epochs
from stream_app.core.model import Absent, Epochs, LogRead
from stream_app.core.offsets import OffsetSet
from tests.core.strategies import BASE, OTHER_ID, TOPIC_ID, cut, expand, kinds, log_read, plain

HIGH = 10_000
"""High watermark of the logs that are read in several ways: the same in each answer."""


def log(read: int = 0) -> LogState:
    return LogState(TOPIC_ID, origin=read, seen_end=read, start=read, read=read, end=read, last_stable=read)


def read_on(state: LogState, each: list[str], *, now_ms: int = BASE, **facts: Any) -> None:
    said = log_read(state.read, each, now_ms=now_ms, **facts)
    assert state.takes(said)
    state.note_absent(Absent.COMPACTED, said.holes)
    state.advance(said, now_ms)


# --- timeline ---


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=400),
    st.integers(0, 3_000),
    st.integers(0, 3_000),
    st.integers(0, 3_000),
)
def test_a_timeline_never_promises_too_much(segments: list[tuple[int, int]], below: int, above: int, asked: int) -> None:
    timeline, times, first = Timeline(), dict[int, int](), 0
    for count, lowest in segments:
        timeline.add(first, lowest)
        times |= dict.fromkeys(range(first, first + count), lowest)
        first += count
    timeline.forget_below(below)
    timeline.forget_from(above)
    assert len(timeline.starts) == len(timeline.lowest) <= TIMELINE_MAX
    known = timeline.lowest_from(asked)
    if known is not None:
        # A segment that was cut in its middle still stands for what is left of it.
        assert known <= min((ms for offset, ms in times.items() if asked <= offset < above), default=50)
    elif asked >= below and above > 0:
        assert not timeline.starts


def test_a_timeline_is_exact_while_it_is_short_and_knows_what_it_does_not_know() -> None:
    timeline = Timeline()
    assert timeline.lowest_from(0) is None
    for first, lowest in ((10, 5), (20, 9), (30, 7), (40, 8)):
        timeline.add(first, lowest)
    assert [timeline.lowest_from(offset) for offset in (9, 10, 19, 20, 30, 39, 40, 1_000)] == [None, 5, 5, 7, 7, 7, 8, 8]
    timeline.forget_below(30)
    assert [timeline.lowest_from(offset) for offset in (10, 29, 30)] == [None, None, 7]
    timeline.forget_from(40)
    assert timeline.lowest_from(40) == 7
    timeline.forget_from(30)
    assert timeline.lowest_from(40) is None


def test_a_timeline_thins_what_is_old() -> None:
    timeline = Timeline()
    for first in range(10_000):
        timeline.add(first, first)
    assert len(timeline.starts) <= TIMELINE_MAX
    assert timeline.lowest_from(9_999) == 9_999
    for lag in (1, 10, 100, 1_000, 5_000, 9_000):
        offset = 9_999 - lag
        known = timeline.lowest_from(offset)
        assert known is not None
        assert offset - known <= 0.3 * lag + 1
    assert timeline.lowest_from(0) == 0


# --- one incarnation of a log ---


def test_only_what_follows_is_taken() -> None:
    state = log(100)
    assert state.takes(log_read(100, ["record"]))
    assert not state.takes(log_read(99, ["record"]))
    assert not state.takes(log_read(101, ["record"]))
    assert not state.takes(log_read(100, ["record"], topic_id=OTHER_ID))


def test_an_answer_is_counted_by_kind() -> None:
    state = log(10)
    read_on(state, [*["record"] * 5, "transaction_marker", *["aborted"] * 2, "hole", "unreadable", *["unread"] * 3], start=12, ahead=7)
    assert (state.read, state.start, state.end, state.last_stable) == (23, 12, 30, 30)
    assert state.records == 6
    assert state.absent_counts == {"transaction_marker": 1, "aborted": 2, "compacted": 1}
    assert expand(state.absent[Absent.ABORTED]) == {16, 17}
    assert (expand(state.unreadable), expand(state.unread)) == ({19}, {20, 21, 22})
    assert state.records_within(0, 1_000) == 6
    assert state.absent_within(0, 1_000) == 4


def test_the_end_is_read_when_nothing_below_the_last_stable_offset_is_left() -> None:
    state = log()
    read_on(state, ["record"] * 5, ahead=5, now_ms=1_000)
    assert state.end_read_ms is None
    read_on(state, ["record"] * 2, high_watermark=10, last_stable=7, now_ms=2_000)
    assert state.bound == 7
    assert state.end_read_ms == 2_000
    read_on(state, [], high_watermark=10, last_stable=7, now_ms=3_000)
    assert state.end_read_ms == 3_000
    read_on(state, [], high_watermark=10, last_stable=8, now_ms=4_000)
    assert state.end_read_ms == 3_000


def test_the_log_start_never_goes_back_and_an_unknown_epoch_changes_nothing() -> None:
    state = log()
    read_on(state, ["record"], start=1, leader_epoch=4)
    read_on(state, ["record"], start=0, leader_epoch=-1)
    assert (state.start, state.leader_epoch) == (1, 4)


def test_unread_offsets_are_held_at_the_last_time_before_the_first_of_them() -> None:
    state = log()
    read_on(state, ["unread"] * 2)
    assert state.unread_held_ms is None
    read_on(state, ["record"], now_ms=5_000)
    read_on(state, ["unread"], now_ms=6_000)
    assert state.unread_held_ms is None  # what is unknown of the first does not become known by the second
    state.truncate(0)
    read_on(state, ["record"], now_ms=7_000)
    read_on(state, ["unread"], now_ms=8_000)
    read_on(state, ["record"], now_ms=9_000)
    read_on(state, ["unread"], now_ms=9_500)
    assert state.unread_held_ms == 7_000


@given(kinds(60, of=("record", "record", "transaction_marker", "aborted", "hole", "unreadable", "unread")), st.sets(st.integers(0, 60)))
def test_how_the_log_was_cut_into_answers_does_not_matter(each: list[str], edges: set[int]) -> None:
    whole, pieces = log(100), log(100)
    read_on(whole, each, high_watermark=HIGH, last_stable=HIGH)
    for first, stop in cut(len(each), edges):
        read_on(pieces, each[first:stop], high_watermark=HIGH, last_stable=HIGH)
    volatile = {"timeline", "unread_held_ms"}  # finer where the answers were smaller
    assert {k: v for k, v in plain(whole).items() if k not in volatile} == {k: v for k, v in plain(pieces).items() if k not in volatile}
    assert whole.timeline.lowest_from(100) == pieces.timeline.lowest_from(pieces.timeline.starts[0] if pieces.timeline.starts else 0)


@given(kinds(80, min_size=1), st.integers(0, 90), st.integers(0, 90))
def test_questions_about_a_stretch_are_answered_as_by_counting(each: list[str], first: int, size: int) -> None:
    state, stop = log(3), first + size
    read_on(state, each)
    by_offset = dict(enumerate(each, 3))
    inside = [kind for offset, kind in by_offset.items() if first <= offset < stop]
    absent = {offset for offset, kind in by_offset.items() if kind != "record"}
    assert state.records_within(first, stop) == inside.count("record")
    assert state.has_record(first, stop) == ("record" in inside)
    assert state.absent_within(first, stop) == len([o for o in absent if first <= o < stop])
    assert state.only_absent(first, stop) == all(offset in absent for offset in range(first, stop))
    asked = OffsetSet([(first, stop)])
    assert expand(state.without_absent(asked)) == {offset for offset in range(first, stop) if offset not in absent}


def test_a_record_far_away_is_found_and_none_is_not() -> None:
    state = log()
    marked = 40 * 65_536
    state.note_absent(Absent.COMPACTED, ((1, marked),))
    state.advance(LogRead(0, marked + 1, TOPIC_ID, records=((0, 1), (marked, marked + 1))), BASE)
    assert state.has_record(1, marked + 1)
    assert not state.has_record(1, marked)
    assert not state.has_record(marked + 1, marked + 100)


def test_forgetting_keeps_counts_and_what_lies_in_gaps() -> None:
    state = log()
    read_on(state, ["record", "aborted", "hole", "record", "aborted", "unreadable", "aborted", "record"], now_ms=1_000)
    read_on(state, ["record"], now_ms=2_000)
    state.forget_below(6, OffsetSet([(0, 2)]))
    assert (expand(state.absent[Absent.ABORTED]), expand(state.absent[Absent.COMPACTED])) == ({1, 6}, set())
    assert (state.forgotten, expand(state.unreadable)) == (6, set())
    assert state.absent_counts == {"aborted": 3, "compacted": 1}
    assert (state.timeline.starts, state.timeline.lowest) == ([0, 8], [1_000, 2_000])
    state.forget_below(9, OffsetSet())
    assert not any(state.absent.values())
    assert state.timeline.starts == [8]


def test_truncation_forgets_places_and_keeps_counts() -> None:
    state = log(5)
    read_on(state, ["record", "aborted", "unread", "unreadable", "record", "hole"], start=7, ahead=9)
    state.truncate(6)
    assert (state.origin, state.start, state.read, state.end, state.last_stable) == (5, 6, 6, 6, 6)
    assert (state.records, state.absent_counts) == (3, {"aborted": 1, "compacted": 1})
    assert not any((*state.absent.values(), state.unread, state.unreadable))
    read_on(state, ["record"] * 2, start=6)
    assert (state.records, state.records_within(0, 100)) == (5, 3)


def test_truncation_below_everything_known_begins_lower() -> None:
    state = log(100)
    state.forgotten = 100
    read_on(state, ["record"] * 5, start=103)
    state.truncate(40)
    assert (state.origin, state.seen_end, state.start, state.read, state.forgotten) == (40, 40, 40, 40, 40)
    read_on(state, ["record"] * 3, start=40)
    assert state.records_within(0, 100) == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=60))
def test_runs_are_added_in_bulk_as_one_by_one(steps: list[tuple[int, int]]) -> None:
    runs, at = [], 0
    for distance, size in steps:
        runs.append((at + distance, at + distance + size))
        at += distance + size + 1
    target = OffsetSet([(2, 9)])
    add_runs(target, tuple(runs))
    assert expand(target) == set(range(2, 9)) | expand(runs)


# --- leader epochs ---


def test_epochs_are_joined_in_order_and_never_go_back() -> None:
    assert join_epochs((), ((-1, 0), (0, 5), (0, 9), (3, 20))) == ((0, 5), (3, 20))
    assert join_epochs(((0, 5), (3, 20)), ((2, 30), (3, 30), (4, 41))) == ((0, 5), (3, 20), (4, 41))


@given(st.integers(EPOCHS_MAX, 3 * EPOCHS_MAX), st.integers(0, 3 * EPOCHS_MAX))
def test_of_too_many_epochs_none_seems_to_begin_later_than_it_did(count: int, asked: int) -> None:
    """The lowest offset of an epoch above ``asked`` is where our log parts from one that knows no later epoch."""
    every = tuple((epoch, 10 * epoch) for epoch in range(count))
    kept: Epochs = ()
    for one in every:
        kept = join_epochs(kept, (one,))
    assert len(kept) == EPOCHS_MAX
    assert kept[-1] == every[-1]
    truth = min((first for epoch, first in every if epoch > asked), default=None)
    found = min((first for epoch, first in kept if epoch > asked), default=None)
    assert (truth is None) == (found is None)
    assert truth is None or found is None or found <= truth


def test_truncation_forgets_later_epochs() -> None:
    state = log()
    read_on(state, ["record"] * 30, leader_epoch=7, epochs=((2, 0), (5, 10), (7, 20)))
    assert state.leader_epoch == 7
    state.truncate(20)
    assert (state.epochs, state.leader_epoch) == (((2, 0), (5, 10)), 5)
    state.truncate(0)
    assert (state.epochs, state.leader_epoch) == ((), -1)


# --- open transactions ---


def test_a_stable_end_that_stands_still_below_the_end_is_timed() -> None:
    state = log()
    read_on(state, ["record"] * 5, ahead=5, last_stable=5, now_ms=BASE + 1)
    read_on(state, [], high_watermark=12, last_stable=5, now_ms=BASE + 2)
    assert state.open_since_ms == BASE + 1
    read_on(state, ["record"] * 2, high_watermark=12, last_stable=7, now_ms=BASE + 3)
    assert state.open_since_ms == BASE + 3
    read_on(state, ["record"] * 5, high_watermark=12, last_stable=12, now_ms=BASE + 4)
    assert state.open_since_ms is None


def test_what_was_in_the_log_before_a_transaction_began_is_known_to_be_decided() -> None:
    state = log()
    read_on(state, ["record"] * 5, now_ms=BASE + 1)
    assert state.stable_ms == BASE + 1
    read_on(state, [], high_watermark=9, last_stable=5, now_ms=BASE + 2)
    read_on(state, [], high_watermark=9, last_stable=5, now_ms=BASE + 3)
    read_on(state, [], high_watermark=20, last_stable=5, now_ms=BASE + 4)
    assert state.stable_ms == BASE + 1
    read_on(state, ["record"] * 4, high_watermark=20, last_stable=9, now_ms=BASE + 5)
    assert state.stable_ms == BASE + 3, "another one was open all the time, and began later"
    read_on(state, ["record"] * 11, high_watermark=20, last_stable=20, now_ms=BASE + 6)
    assert (state.stable_ms, state.ends_seen) == (BASE + 6, [])


def test_a_high_watermark_that_falls_ends_no_transaction() -> None:
    state = log()
    read_on(state, ["record"] * 5, now_ms=BASE + 1)
    read_on(state, [], high_watermark=9, last_stable=5, now_ms=BASE + 2)
    read_on(state, [], high_watermark=5, last_stable=5, now_ms=BASE + 3)
    assert (state.stable_ms, state.undecided) == (BASE + 1, True), "a new leader learns of it a moment later"
    read_on(state, [], high_watermark=9, last_stable=5, now_ms=BASE + 4)
    assert (state.stable_ms, state.undecided) == (BASE + 1, True)
    read_on(state, [], high_watermark=5, last_stable=5, now_ms=BASE + 4 + FALLEN_MS)
    assert (state.stable_ms, state.undecided) == (BASE + 4 + FALLEN_MS, False)
    read_on(state, [], high_watermark=9, last_stable=5, now_ms=BASE + 5 + FALLEN_MS)
    state.truncate(5)
    assert not state.undecided


def test_ends_of_a_log_that_hangs_for_long_are_remembered_coarsely() -> None:
    state = log()
    for number in range(1, 5_000):
        read_on(state, [], high_watermark=number, last_stable=0, now_ms=BASE + number)
    assert len(state.ends_seen) <= ENDS_SEEN_MAX
    read_on(state, ["record"] * 4_000, high_watermark=5_000, last_stable=4_000, now_ms=BASE + 5_000)
    assert state.stable_ms is not None
    assert BASE + 3_900 <= state.stable_ms <= BASE + 4_000


# --- settings ---


def test_compacted_once_is_compacted_for_ever_and_unknown_changes_nothing() -> None:
    state = log()
    for told, known in ((None, None), (False, False), (None, False), (True, True), (False, True), (None, True)):
        state.note_policy(told)
        assert state.ever_compacted is known
