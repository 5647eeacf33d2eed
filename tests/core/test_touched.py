from __future__ import annotations

import random

from stream_app.core.offsets import OffsetSet
from stream_app.core.touched import EVERYTHING, Touched
from tests.core.naive import runs_of
from tests.core.strategies import expand


def test_what_is_noted_is_taken_once() -> None:
    touched = Touched()
    touched.note(5, 7)
    touched.note(20, 21)
    touched.note(7, 9)
    touched.note(30, 30)
    assert touched.take() == [(5, 9), (20, 21)]
    assert touched.take() == []
    assert Touched(EVERYTHING).take() == [(0, 2**63)]


def test_sets_are_noted_by_their_runs_and_beyond_a_few_by_their_span() -> None:
    touched = Touched()
    touched.note_set(OffsetSet())
    touched.note_set(OffsetSet([(3, 5), (9, 10)]))
    assert touched.take() == [(3, 5), (9, 10)]
    touched.note_set(OffsetSet((at, at + 1) for at in range(0, 1000, 2)))
    (first, *_, last) = touched.take()
    assert (first[0], last[1]) == (0, 999)


def test_nothing_noted_is_ever_left_out_and_there_are_never_many_runs() -> None:
    for seed in range(50):
        dice = random.Random(seed)
        touched, noted = Touched(), set[int]()
        for _ in range(dice.randrange(60)):
            at = dice.randrange(5_000)
            some = set(range(at, at + dice.randrange(1, 20)))
            noted |= some
            if dice.random() < 0.5:
                touched.note(at, at + len(some))
            else:
                touched.note_set(OffsetSet(runs_of(some)))
        runs = touched.take()
        assert noted <= expand(runs)
        assert len(runs) <= 16
        assert runs == sorted(runs)
