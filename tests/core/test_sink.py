from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core.gaps import Gaps
from stream_app.core.log import LogState
from stream_app.core.model import Absent, Cause, Observation, Status
from stream_app.core.offsets import OffsetSet
from stream_app.core.openings import OPENINGS_MAX, Opening
from stream_app.core.policy import Policy
from stream_app.core.samples import SAMPLES_MAX
from stream_app.core.sink import AGAIN_MAX, SinkState
from stream_app.core.sources import SOURCES_MAX
from tests.core.naive import runs_of
from tests.core.strategies import GRACE, SKEW, TOPIC_ID, Rig, expand, policy

READ = 1_000


def log(**facts: Any) -> LogState:
    """A log of records, read to :data:`READ`."""
    return LogState(TOPIC_ID, **{"origin": 0, "seen_end": 0, "start": 0, "read": READ, "end": READ, "last_stable": READ, **facts})


def sink(**rules: Any) -> SinkState:
    state = SinkState(policy(**rules))
    state.floor = state.policy.floor
    return state


def hear(state: SinkState, *runs: tuple[int, int], at: int = 0, held: LogState | None = None, **said: Any) -> None:
    state.observe(Observation("s", runs, **said), held or log(), at + SKEW, at)


# --- repeats ---


def test_at_or_below_the_last_sequence_of_a_source_is_a_repeat() -> None:
    state = sink()
    for sequence in (5, 5, 4, 0):
        hear(state, (0, 10), source="a", sequence=sequence)
    assert (state.observed, state.duplicates) == (10, 0)
    hear(state, (0, 10), source="b", sequence=5)
    hear(state, (0, 10), source="a", sequence=6)
    assert (state.observed, state.duplicates) == (10, 20)


def test_a_repeat_changes_nothing_but_what_was_heard_of_its_source_last() -> None:
    state = sink()
    hear(state, (0, 10), source="a", sequence=5)
    before = deepcopy(state.sources), state.horizon, state.samples.copy()
    hear(state, (10, 20), claim=50, source="a", sequence=5)
    assert (state.sources, state.horizon, state.samples) == before


def test_the_source_silent_longest_is_forgotten_first() -> None:
    state = sink()
    for number in range(SOURCES_MAX):
        hear(state, (0, 1), source=f"source {number}", sequence=1)
    hear(state, (0, 1), source="source 0", sequence=1)  # a repeat, but a sign of life
    hear(state, (0, 1), source="one more", sequence=1)
    known = state.sources.sequences
    assert len(known) == SOURCES_MAX
    assert "source 0" in known
    assert "source 1" not in known


# --- the horizon ---


def test_without_a_claim_the_horizon_is_one_past_the_highest_offset() -> None:
    state = sink()
    assert state.horizon is None
    hear(state, (3, 7), (20, 21))
    hear(state, (1, 2))
    assert state.horizon == 21


@pytest.mark.parametrize("status", [Status.QUARANTINED, Status.UNOBSERVED])
def test_every_report_of_the_sink_moves_the_horizon(status: Status) -> None:
    state = sink()
    hear(state, (3, 7), status=status)
    assert (state.horizon, state.heard) == (7, True)


def test_an_acknowledgement_is_not_the_sinks_word() -> None:
    state = sink()
    hear(state, (3, 7), status=Status.ACKNOWLEDGED)
    assert (state.horizon, state.heard, state.lowest, state.samples) == (None, False, None, [])


def test_a_claim_counts_alone_and_only_rises() -> None:
    state = sink()
    hear(state, (0, 10), claim=4)
    assert state.horizon == 4
    hear(state, (50, 60))
    assert state.horizon == 4
    hear(state, claim=3)
    assert state.horizon == 4
    hear(state, claim=9)
    assert state.horizon == 9


def test_the_first_claim_takes_back_what_was_only_observed() -> None:
    state = sink()
    hear(state, (500, 510), at=0)
    hear(state, claim=11, at=500)
    passed = state.passed(None, GRACE)
    assert passed is None
    passed = state.passed(None, 500 + GRACE)
    assert passed == 11


def test_a_claim_of_nothing_is_a_horizon() -> None:
    state = sink(floor=None)
    hear(state, claim=0, at=0)
    assert state.passed(None, GRACE) == 0


# --- grace ---


@given(
    often=st.integers(1, 120),
    phase=st.integers(0, 10_000),
    grace=st.sampled_from([0, 1, 15, 100, 2_000, 30_000]),
)
@settings(max_examples=40)
def test_under_a_steady_stream_every_offset_is_judged_neither_early_nor_much_later(often: int, phase: int, grace: int) -> None:
    """The clocks tick in different phases, the sink reports all the time: the horizon of each moment grows old enough to be judged."""
    state, spacing = sink(grace_ms=grace), grace // often + 1
    state.settled = 0
    latest = grace + grace // 4 + 3 * spacing + 2
    seen: list[tuple[int, int]] = []
    judged = 0
    for offset, now in enumerate(range(0, 3 * grace + 40 * spacing, spacing), 1):
        state.observe(Observation("s", ((offset - 1, offset),)), log(), now + phase, now)
        seen.append((now, offset))
        passed = state.passed(now + phase, now)
        if passed is not None:
            state.settle(passed, None, log())
            judged = passed
        assert len(state.samples) <= SAMPLES_MAX
        assert all(at + grace <= now for at, horizon in seen if horizon <= judged)
        assert all(at + latest > now for at, horizon in seen if horizon > judged)
        seen = [(at, horizon) for at, horizon in seen if horizon > judged]


def test_samples_that_nobody_judges_get_fewer_but_keep_the_first_and_the_last() -> None:
    state = sink()
    for second in range(1, 500):
        hear(state, (0, second), at=second * 1_000)
        assert len(state.samples) <= SAMPLES_MAX
        assert (state.samples[0].horizon, state.samples[-1].horizon) == (1, second)
        assert [s.horizon for s in state.samples] == sorted(s.horizon for s in state.samples)


def test_a_horizon_that_does_not_rise_keeps_its_first_time() -> None:
    state = sink()
    for second in range(100):
        hear(state, (second % 50, 51), at=second * 1_000)
    assert [(sample.worker_ms, sample.horizon) for sample in state.samples] == [(0, 51)]


def test_each_clock_is_compared_with_itself_only() -> None:
    state = sink()
    state.observe(Observation("s", ((0, 5),)), log(), 9_000_000, 1_000)
    assert state.passed(9_000_000 + GRACE - 1, 1_000 + GRACE - 1) is None
    assert state.passed(None, None) is None
    assert state.passed(1_000 + GRACE, None) is None
    assert state.passed(9_000_000 + GRACE, None) is not None
    assert state.passed(None, 1_000 + GRACE) is not None


def test_of_copies_nothing_is_late_before_they_were_read_as_of_later_than_grace() -> None:
    state = sink(mirrored=True)
    hear(state, (0, 5), at=1_000)
    hear(state, (0, 9), at=1_500)
    late = 9_000 + GRACE
    assert state.passed(late + SKEW, late) is None
    state.copied_ms = 1_000 + GRACE - 1
    assert state.passed(late + SKEW, late) is None
    state.copied_ms = 1_000 + GRACE
    passed = state.passed(late + SKEW, late)
    assert passed is not None
    assert passed == 5, "what moved it later was copied later, too"
    assert state.passed(None, 1_000 + GRACE - 1) is None, "nor before the observations are known"


# --- the floor ---


@pytest.mark.parametrize(
    ("said", "floor"),
    [
        ([{"runs": [(30, 40)]}], 30),
        ([{"runs": [(30, 40)]}, {"runs": [(20, 25)]}], 20),
        ([{"runs": [(30, 40)]}, {"claim": 25}], 25),
        ([{"claim": 50}, {"claim": 60}], 50),
        ([{"runs": [(30, 40)], "status": Status.QUARANTINED}], 30),
        ([{"runs": [(3, 8)]}], 10),
        ([{"runs": [(3, 40)]}], 10),
        ([{"runs": [(30, 31)]}], 30),
    ],
)
def test_the_floor_is_the_lowest_offset_observed_or_claimed_before_the_first_verdict(said: list[dict[str, Any]], floor: int) -> None:
    state, held = sink(floor=None), log(origin=10)
    held.note_absent(Absent.TRANSACTION_MARKER, ((30, 31),))
    for each in said:
        hear(state, *each.pop("runs", ()), held=held, **each)
    state.fix_floor(held)
    assert (state.floor, state.settled) == (floor, floor)
    hear(state, (0, 5), held=held)
    state.fix_floor(held)
    assert state.floor == floor


def test_below_the_floor_nothing_is_held_or_counted() -> None:
    state = sink(floor=20)
    hear(state, (5, 25))
    assert expand(state.received) == {20, 21, 22, 23, 24}
    assert (state.observed, state.duplicates) == (5, 0)
    hear(state, (5, 20))
    assert (state.observed, state.duplicates) == (5, 0)


def test_unread_offsets_below_the_floor_are_not_the_sinks() -> None:
    state = sink(floor=None)
    state.note_unread(OffsetSet([(0, 50)]), log())
    hear(state, (40, 41))
    state.fix_floor(log())
    assert expand(state.unread) == set(range(41, 50))


# --- ahead of the log's reader ---


def test_what_is_observed_ahead_is_counted_when_the_log_is_read() -> None:
    state, held = sink(), log(read=0)
    for _ in range(3):
        hear(state, (0, 10), held=held)
    assert (state.observed, state.duplicates, state.absent_observed) == (0, 0, 0)
    held.note_absent(Absent.ABORTED, ((4, 6),))
    held.read = 8
    state.log_read_to(held, 0)
    assert (state.observed, state.duplicates, state.absent_observed) == (6, 12, 6)
    held.read = 10
    state.log_read_to(held, 8)
    assert (state.observed, state.duplicates, state.absent_observed) == (8, 16, 6)


def test_an_explanation_ahead_of_the_log_is_not_an_observation() -> None:
    state, held = sink(), log(read=0)
    hear(state, (0, 4), held=held, status=Status.QUARANTINED)
    hear(state, (4, 8), held=held, status=Status.UNOBSERVED)
    held.note_absent(Absent.ABORTED, ((0, 1), (4, 5)))
    held.read = 10
    state.log_read_to(held, 0)
    assert (state.observed, state.absent_observed) == (0, 1)


@pytest.mark.parametrize(("second", "told"), [({}, set()), ({"source": "b", "sequence": 1}, {0, 1})])
def test_a_duplicate_ahead_is_told_only_if_it_names_itself(second: dict[str, Any], told: set[int]) -> None:
    state, held = sink(), log(read=0)
    hear(state, (0, 2), held=held, source="a", sequence=1)
    hear(state, (0, 2), held=held, **second)
    held.read = 10
    state.log_read_to(held, 0)
    assert state.duplicates == 2
    assert expand(state.untold_duplicates[0]) == told


@pytest.mark.parametrize(("said", "told"), [({}, set()), ({"source": "b", "sequence": 1}, {0, 1}), ({"source": "b"}, set())])
def test_a_duplicate_is_told_only_if_it_names_itself(said: dict[str, Any], told: set[int]) -> None:
    state = sink()
    hear(state, (0, 2))
    hear(state, (0, 2), **said)
    assert state.duplicates == 2
    assert expand(state.untold_duplicates[0]) == told


def test_what_arrives_twice_more_is_told_twice() -> None:
    state = sink()
    for sequence in range(12):
        hear(state, (0, 1), (5, 6), source="a", sequence=sequence)
    hear(state, (0, 2), source="b", sequence=1)
    assert state.duplicates == 23
    levels = [expand(level) for level in state.untold_duplicates]
    assert levels == [{0, 5}] * AGAIN_MAX, "so often at once, and no oftener"


# --- gaps, openings, times ---


def some_of(offsets: list[int]) -> st.SearchStrategy[set[int]]:
    return st.sets(st.sampled_from(offsets), min_size=1)


@given(st.data())
@settings(max_examples=60)
def test_gaps_are_kept_up_to_date_as_by_counting_anew(data: st.DataObject) -> None:
    absent = data.draw(st.sets(st.integers(0, 120), max_size=60))
    held = log(read=130)
    held.note_absent(Absent.ABORTED, runs_of(absent))
    opened, kept = OffsetSet(), Gaps()
    for _ in range(data.draw(st.integers(1, 12))):
        records = set(range(121)) - absent
        free, taken = sorted(records - expand(opened)), sorted(expand(opened))
        if free and (not taken or data.draw(st.booleans())):
            new = OffsetSet(runs_of(data.draw(some_of(free))))
            opened.update(new)
            kept.opened(new, held)
        elif taken:
            gone = OffsetSet(runs_of(data.draw(some_of(taken))))
            opened.difference_update(gone)
            kept.closed(gone, opened)
        anew = Gaps()
        anew.opened(opened, held)
        assert list(kept) == list(anew)
        assert len(kept) == len(list(anew))
        inside = {offset for first, stop in kept for offset in range(first, stop)}
        assert inside >= expand(opened)
        assert inside - expand(opened) <= absent
        assert all(first in opened and stop - 1 in opened for first, stop in kept)
        assert all(not absent.issuperset(range(a, b)) for (_, a), (b, _) in zip(list(kept), list(kept)[1:], strict=False))


def test_a_gap_of_many_chunks_is_cut_where_something_arrives() -> None:
    held = log(read=100 * 65_536)
    held.note_absent(Absent.ABORTED, tuple((65_536 * i - 1, 65_536 * i + 1) for i in range(1, 100)))
    opened, kept = held.without_absent(OffsetSet([(10, 99 * 65_536)])), Gaps()
    kept.opened(opened, held)
    assert list(kept) == [(10, 99 * 65_536 - 1)]
    gone = held.without_absent(OffsetSet([(40 * 65_536, 60 * 65_536)]))
    opened.difference_update(gone)
    kept.closed(gone, opened)
    assert list(kept) == [(10, 40 * 65_536 - 1), (60 * 65_536 + 1, 99 * 65_536 - 1)]


def test_more_openings_than_are_kept_are_joined_with_their_neighbours() -> None:
    state, held = sink(), log(read=10 * OPENINGS_MAX)
    for number in range(3 * OPENINGS_MAX):
        cause = Cause.VANISHED if number % 5 == 0 else Cause.NOT_RECEIVED
        first = 3 * number
        state.add_open(cause, OffsetSet([(first, first + 1)]), held)
        state.remember(Opening(number + 1, cause, first, first + 1, 1_000 + number, 50 + number))
        assert len(state.openings) <= OPENINGS_MAX
    for number in range(0, 3 * OPENINGS_MAX, 7):
        cause = Cause.VANISHED if number % 5 == 0 else Cause.NOT_RECEIVED
        over = [o for o in state.openings if o.first <= 3 * number < o.stop and o.cause is cause]
        assert over
        assert min(o.opened_at_ms for o in over) <= 1_000 + number
        assert min(o.lowest_ms or 0 for o in over) <= 50 + number
    assert min(o.opened_at_ms for o in state.openings) == 1_000


def test_a_joined_opening_of_an_unknown_time_has_an_unknown_time() -> None:
    state = sink()
    for number in range(OPENINGS_MAX + 1):
        state.remember(Opening(number + 1, Cause.EXPIRED, number, number + 1, 5, None if number == 10 else 7))
    assert [o.lowest_ms for o in state.openings if o.first <= 10 < o.stop] == [None]
    assert {o.lowest_ms for o in state.openings if not o.first <= 10 < o.stop} == {7}


def test_tidying_drops_what_is_closed_and_cuts_what_is_partly_closed() -> None:
    rig = Rig()
    rig.read("record", 10, min_timestamp_ms=1_000)
    rig.read("record", 10, min_timestamp_ms=2_000)
    rig.observe((19, 20))
    rig.verdict()
    rig.flush()
    assert [(o.first, o.stop) for o in rig.sink().openings] == [(0, 19)]
    rig.sink().openings[0].lowest_ms = 1_000
    rig.observe((0, 12))
    rig.flush()
    assert [(o.first, o.stop, o.lowest_ms) for o in rig.sink().openings] == [(12, 19, 2_000)]
    rig.observe((12, 19))
    rig.flush()
    assert (rig.sink().openings, rig.sink().stamps) == ([], {})


def test_vanishing_is_judged_only_where_the_log_still_tells_records_apart() -> None:
    state, held = sink(), log(start=5)
    hear(state, (0, 20))
    state.fix_floor(held)
    state.settle(10, None, held)
    assert expand(state.vanish(OffsetSet([(0, 15)]), held)) == set(range(5, 15))
    assert expand(state.vanish(OffsetSet([(0, 40)]), held)) == set(range(15, 20))


def test_vanishing_before_the_first_verdict_takes_what_was_received() -> None:
    state = sink(floor=5)
    hear(state, (7, 9))
    assert expand(state.vanish(OffsetSet([(0, 20)]), log())) == {7, 8}


def test_vanishing_ahead_of_the_log_waits_for_the_log() -> None:
    state, held = sink(), log(read=5)
    hear(state, (3, 9), held=held)
    assert expand(state.vanish(OffsetSet([(0, 20)]), held)) == {3, 4}
    assert expand(state.received) == {5, 6, 7, 8}


def test_a_sink_that_stands_in_no_configuration_tells_nobody() -> None:
    rules = Policy.unconfigured("x")
    assert (rules.name, rules.configured, rules.stall_after_ms, rules.tell_duplicates) == ("x", False, None, False)
