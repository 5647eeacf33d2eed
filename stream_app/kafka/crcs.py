"""Checks the CRCs of many small pieces of a buffer with one pass over all of it.

A call for each piece costs ten times as much as the CRC itself. CRC32C is linear: without its initial and final inversion, the CRC
of pieces in a row is the exclusive or of theirs, each moved over the bytes that follow it (``crc32_combine`` of zlib), and bytes that
are zero count for nothing. So the bytes between the pieces are made zero, the CRC of the whole is taken, and what the pieces
claim is moved and added up by columns. If both agree all claims are right, as surely as one CRC tells: bytes that differ in one
piece are always found where its own CRC would find them, in several with a chance of 1 in 2^32 to be missed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

_GROUP = 12
"""Pieces are checked in groups of about 2 ** 12 bytes: what is damaged is found in one of them."""
LARGEST = 1 << _GROUP
"""Bytes of a piece are less."""
REACH = 2 * LARGEST
"""No claim is moved over so many bytes."""
_DIGIT = 7
"""Bits of a distance that are looked up first; the others come second."""
_CASTAGNOLI = 0x82F63B78
"""The polynomial of CRC32C, bits reversed, as in RFC 3720."""
_INVERTED = 0xFFFFFFFF


@cache
def _tables() -> tuple[Words, Words]:
    """By low and by high digit of a distance, and by place and value of each byte of a CRC: what this byte becomes, moved so far."""
    step = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        step = np.where(step & 1, step >> 1 ^ np.uint32(_CASTAGNOLI), step >> 1)
    here = (np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]).ravel()
    near = [here]
    for _ in range(1 << _DIGIT):
        near.append(step[near[-1] & 255] ^ near[-1] >> 8)
    page = near.pop()
    far = [here]
    while len(far) < REACH >> _DIGIT:
        far.append(_looked_up(page, far[-1], 0))
    return np.concatenate(near), np.concatenate(far)


def _looked_up(table: Words, crcs: Words, at: Ints | int) -> Words:
    """What becomes of all four bytes of each CRC; ``at``: where its distance begins in the table."""
    low, high = crcs & 65535, crcs >> 16
    return table[at + (low & 255)] ^ table[at + 256 + (low >> 8)] ^ table[at + 512 + (high & 255)] ^ table[at + 768 + (high >> 8)]


def _moved(crcs: Words, distances: Ints) -> Words:
    """Each of ``crcs`` (not inverted) moved over as many bytes as its distance says, below :data:`REACH`."""
    near, far = _tables()
    return _looked_up(far, _looked_up(near, crcs, (distances & (1 << _DIGIT) - 1) << 10), distances >> _DIGIT << 10)


@cache
def _inversions() -> Words:
    """By length of a piece, below :data:`REACH`: by what its CRC differs from the one without inversions."""
    lengths = np.arange(REACH, dtype=np.int64)
    return _moved(np.full(REACH, _INVERTED, np.uint32), lengths) ^ np.uint32(_INVERTED)


def proved(held: memoryview, begins: Ints, stops: Ints, claims: Words) -> npt.NDArray[np.bool_]:
    """Which of the pieces are of a group whose CRCs are all as claimed; the others must be looked at by themselves.

    ``held``: the pieces and zeros between them. The pieces, in order and apart, go from ``begins`` up to ``stops`` and are less than
    :data:`LARGEST` bytes each.
    """
    groups = np.flatnonzero(np.diff(begins >> _GROUP, prepend=-1))
    sizes = np.diff(groups, append=len(begins))
    ends = stops[groups + sizes - 1]
    inversions = _inversions()
    claimed = np.bitwise_xor.reduceat(_moved(claims ^ inversions[stops - begins], np.repeat(ends, sizes) - stops), groups)
    spans = zip(begins[groups].tolist(), ends.tolist(), strict=True)
    found = np.array([crc32c(held[begin:end]) for begin, end in spans], np.uint32) ^ inversions[ends - begins[groups]]
    return np.repeat(found == claimed, sizes)
