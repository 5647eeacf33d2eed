from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core.model import Run
from stream_app.core.runlist import RunList


def of(*runs: Run) -> RunList:
    out = RunList()
    for low, high in runs:
        out.add(low, high)
    return out


@pytest.mark.parametrize(
    ("added", "expected", "new"),
    [
        ((0, 5), [(0, 5), (10, 20), (30, 40)], 5),
        ((0, 10), [(0, 20), (30, 40)], 10),
        ((5, 15), [(5, 20), (30, 40)], 5),
        ((10, 20), [(10, 20), (30, 40)], 0),
        ((12, 18), [(10, 20), (30, 40)], 0),
        ((5, 25), [(5, 25), (30, 40)], 10),
        ((15, 25), [(10, 25), (30, 40)], 5),
        ((20, 25), [(10, 25), (30, 40)], 5),
        ((20, 30), [(10, 40)], 10),
        ((15, 35), [(10, 40)], 10),
        ((0, 50), [(0, 50)], 30),
        ((22, 25), [(10, 20), (22, 25), (30, 40)], 3),
        ((40, 45), [(10, 20), (30, 45)], 5),
        ((50, 60), [(10, 20), (30, 40), (50, 60)], 10),
    ],
)
def test_add(added: Run, expected: list[Run], new: int) -> None:
    runs = of((10, 20), (30, 40))
    assert runs.add(*added) == new
    assert list(runs) == expected


@pytest.mark.parametrize(
    ("removed", "expected", "gone"),
    [
        ((0, 10), [(10, 20), (30, 40)], 0),
        ((0, 15), [(15, 20), (30, 40)], 5),
        ((10, 20), [(30, 40)], 10),
        ((12, 18), [(10, 12), (18, 20), (30, 40)], 6),
        ((10, 15), [(15, 20), (30, 40)], 5),
        ((15, 20), [(10, 15), (30, 40)], 5),
        ((15, 35), [(10, 15), (35, 40)], 10),
        ((20, 30), [(10, 20), (30, 40)], 0),
        ((0, 50), [], 20),
        ((40, 50), [(10, 20), (30, 40)], 0),
    ],
)
def test_remove(removed: Run, expected: list[Run], gone: int) -> None:
    runs = of((10, 20), (30, 40))
    assert runs.remove(*removed) == gone
    assert list(runs) == expected


@pytest.mark.parametrize("window", [(10, 10), (15, 15), (20, 20), (25, 25), (15, 12)])
def test_nothing_is_within_an_empty_window(window: Run) -> None:
    assert list(of((10, 20), (30, 40)).within(*window)) == []


def test_copies_are_independent_and_equal() -> None:
    runs = of((1, 5))
    other = runs.copy()
    assert runs == other
    other.remove(1, 2)
    assert list(runs) == [(1, 5)]
    assert runs != other
    assert runs != [(1, 5)]


RANGES = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=25), st.lists(RANGES, max_size=8), RANGES)
def test_differential_against_a_set(steps: list[tuple[bool, Run]], others: list[Run], window: Run) -> None:
    runs, expected = RunList(), set[int]()
    for adding, (low, high) in steps:
        members = set(range(low, high))
        if adding:
            assert runs.add(low, high) == len(members - expected)
            expected |= members
        else:
            assert runs.remove(low, high) == len(members & expected)
            expected -= members
    assert {value for low, high in runs for value in range(low, high)} == expected
    assert all(stop < start for stop, start in zip(runs.stops, runs.starts[1:], strict=False))
    assert {value for value in range(-1, 60) if value in runs} == expected
    assert {value for low, high in runs.within(*window) for value in range(low, high)} == expected & set(range(*window))
    theirs = {value for low, high in others for value in range(low, high)}
    for common in (runs.common(of(*others)), of(*others).common(runs)):
        assert [value for low, high in common for value in range(low, high)] == sorted(expected & theirs)
