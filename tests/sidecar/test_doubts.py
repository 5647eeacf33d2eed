"""Where a log ends: what an answer tells, for how long, and how runs are parted by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapstream_sidecar.doubts import ASK_AGAIN_S, END_FRESH_S, NOWHERE, NOWHERE_S, UNWATCHED, LogEnd, split
from gapstream_sidecar.runs import RunList


def test_an_end_is_believed_for_a_while() -> None:
    log_end = LogEnd()
    assert not log_end.covers(1, 0)
    log_end.answered(100, 0)
    assert log_end.covers(100, END_FRESH_S - 1)
    assert not log_end.covers(101, 0)
    assert not log_end.covers(100, END_FRESH_S)
    log_end.answered(None, END_FRESH_S)
    assert not log_end.covers(100, END_FRESH_S), "no answer is none that it is still so"


def test_that_there_was_no_answer_is_known_for_a_while() -> None:
    log_end = LogEnd()
    assert not log_end.is_untold(0)
    log_end.answered(None, 0)
    assert log_end.is_untold(END_FRESH_S - 1)
    assert not log_end.is_untold(END_FRESH_S)


@pytest.mark.parametrize("answer", [NOWHERE, UNWATCHED])
def test_that_nobody_watches_is_believed_when_it_was_answered_for_long_enough(answer: int) -> None:
    log_end = LogEnd()
    log_end.answered(answer, 0)
    assert not log_end.is_nowhere(0)
    assert log_end.awaited_until == ASK_AGAIN_S
    log_end.answered(answer, NOWHERE_S)
    assert log_end.is_nowhere(NOWHERE_S + END_FRESH_S - 1)
    assert not log_end.is_nowhere(NOWHERE_S + END_FRESH_S), "then it is asked for again"
    log_end.answered(7, NOWHERE_S + END_FRESH_S)
    log_end.answered(answer, NOWHERE_S + END_FRESH_S + 1)
    assert not log_end.is_nowhere(NOWHERE_S + END_FRESH_S + 1), "it was there meanwhile"


runs = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 20)), min_size=1).map(lambda found: RunList((a, a + n) for a, n in found))


@given(runs, st.integers(0, 130))
def test_parted_runs_are_the_whole_and_lie_on_their_side(whole: RunList, end: int) -> None:
    before = list(whole)
    below, beyond = split(whole, end)
    assert list(whole) == before
    assert RunList([*below, *beyond]) == whole
    assert all(stop <= end for _, stop in below)
    assert all(first >= end for first, _ in beyond)
