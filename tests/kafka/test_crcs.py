"""The CRCs of many pieces, checked at once, against one call for each."""

from __future__ import annotations

import random

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.kafka.crcs import LARGEST, proved


def checked(pieces: list[bytes], gaps: list[int], claims: list[int]) -> list[bool]:
    """``gaps``: bytes before each piece."""
    held, begins, stops = b"", [], []
    for piece, gap in zip(pieces, gaps, strict=True):
        held += bytes(gap)
        begins.append(len(held))
        held += piece
        stops.append(len(held))
    found = proved(memoryview(held), np.array(begins), np.array(stops), np.array(claims, np.uint32))
    return [bool(one) for one in found]


@pytest.mark.parametrize("size", [0, 1, 40, 127, 128, 129, 4094, 4095])
def test_one_piece_of_any_size(size: int) -> None:
    piece = random.Random(size).randbytes(size)
    assert checked([piece], [3], [crc32c(piece)]) == [True]
    assert checked([piece], [3], [crc32c(piece) ^ 1 << 31]) == [False]


def test_the_largest_pieces_side_by_side() -> None:
    rng = random.Random(1)
    pieces = [rng.randbytes(LARGEST - 1) for _ in range(9)]
    assert checked(pieces, [0] * 9, [crc32c(piece) for piece in pieces]) == [True] * 9


def test_claims_of_two_pieces_that_are_swapped_are_not_proved() -> None:
    pieces = [b"one of them", b"and another"]
    assert checked(pieces, [21, 21], [crc32c(pieces[1]), crc32c(pieces[0])]) == [False, False]


def test_a_damaged_piece_leaves_those_far_from_it_proved() -> None:
    rng = random.Random(2)
    pieces = [rng.randbytes(500) for _ in range(100)]
    claims = [crc32c(piece) for piece in pieces]
    pieces[50] = pieces[50][:-1] + bytes([pieces[50][-1] ^ 4])
    got = checked(pieces, [21] * 100, claims)
    assert not got[50]
    assert all(got[:40])
    assert all(got[60:])


@settings(max_examples=200)
@given(st.integers(0, 1 << 32), st.data())
def test_agrees_with_a_call_for_each(seed: int, data: st.DataObject) -> None:
    rng = random.Random(seed)
    many = data.draw(st.integers(1, 60))
    pieces = [rng.randbytes(rng.choice([0, 1, 50, 150, 150, 1000, LARGEST - 1])) for _ in range(many)]
    gaps = [rng.choice([0, 1, 21, 21, 3000]) for _ in range(many)]
    claims = [crc32c(piece) for piece in pieces]
    assert checked(pieces, gaps, claims) == [True] * many
    wrong = data.draw(st.integers(0, many - 1))
    claims[wrong] ^= 1 << rng.randrange(32)
    got = checked(pieces, gaps, claims)
    assert not got[wrong]
    assert all(got[at] for at in range(many) if sum(map(len, pieces[min(at, wrong) : max(at, wrong)])) > 2 * LARGEST)
