"""How often observations may go, second by second."""

from __future__ import annotations

import pytest

from gapstream_sidecar.pace import Pace


def sent_in(pace: Pace, begin: float, end: float, *, skipped: bool) -> list[float]:
    """When they go between two times if there is always something to send."""
    now, times = begin, list[float]()
    while True:
        pace.skipped = skipped
        now = max(now, pace.allowed_at())
        if now >= end:
            return times
        pace.sent(now, more=False)
        times.append(now)


def test_after_a_burst_what_is_in_order_goes_once_a_second() -> None:
    times = sent_in(Pace(), 0.0, 100.0, skipped=False)
    assert times[:5] == [0.0] * 5
    assert 99 <= len(times) <= 105


def test_what_was_skipped_goes_five_times_a_second() -> None:
    times = sent_in(Pace(), 0.0, 100.0, skipped=True)
    assert 499 <= len(times) <= 505


def test_no_second_has_more_than_ten() -> None:
    pace = Pace()
    times = sent_in(pace, 0.0, 20.0, skipped=False) + sent_in(pace, 20.0, 40.0, skipped=True) + sent_in(pace, 40.0, 60.0, skipped=False)
    assert max(sum(start <= one < start + 1 for one in times) for start in times) <= 10
    assert sum(one >= 41 for one in times) <= 20


def test_a_rest_lets_a_few_go_at_once_again() -> None:
    pace = Pace()
    sent_in(pace, 0.0, 10.0, skipped=False)
    assert sent_in(pace, 60.0, 60.5, skipped=False) == pytest.approx([60.0] * 5)


def test_something_skipped_does_not_wait_for_what_is_in_order() -> None:
    pace = Pace()
    sent_in(pace, 0.0, 10.0, skipped=False)
    pace.skipped = True
    assert pace.allowed_at() < 10.0
    pace.sent(10.0, more=False)
    assert not pace.skipped


def test_rested_is_who_has_more_than_one_to_spare() -> None:
    for skipped in (False, True):
        pace = Pace()
        said = []
        for _ in range(5):
            pace.skipped = skipped
            said.append(pace.rested(0.0))
            pace.sent(0.0, more=False)
        assert said == [True] * 4 + [False]
