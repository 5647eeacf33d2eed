"""Runs against a plain set of integers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapstream_sidecar.runs import RunList

SMALL = 60
runs = st.tuples(st.integers(0, SMALL), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def offsets(held: RunList) -> set[int]:
    return {offset for first, stop in held for offset in range(first, stop)}


def check_shape(held: RunList) -> None:
    bounds = list(held.bounds)
    assert len(bounds) == 2 * len(held)
    assert all(low < high for low, high in pairwise(bounds)), bounds


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        ([], (5, 6), [(5, 6)]),
        ([(0, 5)], (5, 6), [(0, 6)]),
        ([(0, 5)], (6, 7), [(0, 5), (6, 7)]),
        ([(5, 9)], (0, 5), [(0, 9)]),
        ([(5, 9)], (0, 4), [(0, 4), (5, 9)]),
        ([(5, 9)], (6, 8), [(5, 9)]),
        ([(5, 9)], (5, 9), [(5, 9)]),
        ([(5, 9)], (4, 10), [(4, 10)]),
        ([(5, 9)], (7, 12), [(5, 12)]),
        ([(5, 9)], (2, 6), [(2, 9)]),
        ([(0, 2), (4, 6), (8, 10)], (2, 4), [(0, 6), (8, 10)]),
        ([(0, 2), (4, 6), (8, 10)], (1, 9), [(0, 10)]),
        ([(0, 2), (4, 6), (8, 10)], (6, 8), [(0, 2), (4, 10)]),
    ],
)
def test_add_covers_every_overlap(before: list[tuple[int, int]], added: tuple[int, int], after: list[tuple[int, int]]) -> None:
    held = RunList(before)
    held.add(*added)
    assert list(held) == after


@given(st.lists(runs, max_size=40))
@settings(max_examples=200)
def test_add_is_a_set_union(added: list[tuple[int, int]]) -> None:
    held, plain = RunList(), set[int]()
    for first, stop in added:
        held.add(first, stop)
        plain |= set(range(first, stop))
        check_shape(held)
    assert offsets(held) == plain
    assert held.count() == len(plain)


@given(st.lists(runs, max_size=20), runs)
@settings(max_examples=200)
def test_overlaps_is_a_set_intersection(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    held = RunList(added)
    assert held.overlaps(*asked) == bool(offsets(held) & set(range(*asked)))


@given(st.lists(runs, max_size=20), st.integers(0, SMALL + 20))
@settings(max_examples=200)
def test_take_below_splits_the_set(added: list[tuple[int, int]], stop: int) -> None:
    held = RunList(added)
    plain = offsets(held)
    taken = held.take_below(stop)
    check_shape(held)
    check_shape(taken)
    assert offsets(taken) == {offset for offset in plain if offset < stop}
    assert offsets(held) == {offset for offset in plain if offset >= stop}


@given(st.lists(runs, max_size=20), st.integers(0, 20))
def test_take_runs_takes_the_first(added: list[tuple[int, int]], number: int) -> None:
    held = RunList(added)
    before = list(held)
    assert list(held.take_runs(number)) == before[:number]
    assert list(held) == before[number:]


@given(st.lists(runs, max_size=20), st.integers(1, 8))
@settings(max_examples=200)
def test_coarsen_closes_the_smallest_holes(added: list[tuple[int, int]], most: int) -> None:
    held = RunList(added)
    before = list(held)
    plain = offsets(held)
    holes = sorted(after[0] - one[1] for one, after in pairwise(before))
    held.coarsen(most)
    check_shape(held)
    assert len(held) == min(most, len(before))
    assert offsets(held) >= plain
    assert held.count() - len(plain) == sum(holes[: max(0, len(before) - most)])


def test_offsets_may_be_as_large_as_kafka_has_them() -> None:
    held = RunList([(2**63 - 3, 2**63 - 1)])
    assert held.count() == 2
    assert held.overlaps(2**63 - 2, 2**63 - 1)
