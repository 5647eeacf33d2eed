"""The headers of many record batches at once, column by column, and the stretches of plain ones among them.

Where each batch holds a record or two, looking at batch after batch costs more than all else together. Here only the hop from
length to length is made batch by batch; the rest goes by columns (numpy). It settles nothing by itself: what it
does not call plain is looked at one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import starmap
from typing import NamedTuple

import numpy as np

from stream_app.core.minutes import MINUTE_MS
from stream_app.kafka.crcs import LARGEST, proved
from stream_app.kafka.records import CONTROL, CRC_FROM, HAS_DELETE_HORIZON, HEADER_SIZE, LOG_APPEND_TIME, OVERHEAD, TRANSACTIONAL

_LENGTH = struct.Struct(">8xI")
"""Of a batch, unsigned: a damaged one must not lead backwards."""
_HEADER = np.dtype(
    {
        "names": ["base", "length", "epoch", "magic", "crc", "attributes", "delta", "base_time", "max_time", "count"],
        "formats": [">i8", ">i4", ">i4", "u1", ">u4", ">i2", ">i4", ">i8", ">i8", ">i4"],
        "offsets": [0, 8, 12, 16, 17, 21, 23, 27, 35, 57],
        "itemsize": HEADER_SIZE,
    }
)
"""``DefaultRecordBatch.java``, as far as it matters here."""


class Stretch(NamedTuple):
    """Batches of an answer that follow each other."""

    at: int
    stop: int
    """Where they begin and end in the answer."""
    batches: int
    plain: bool
    """Whether they are whole and undamaged, hold a record in each offset and nothing else, touch, and are of one leader epoch
    and one minute. Of a stretch that is not plain nothing below is meant."""
    transactional: bool
    """Whether any of them is."""
    first: int
    """Their first offset."""
    upto: int
    """One past their last."""
    epoch: int
    low: int
    high: int
    """Lowest and highest time in ms."""


def hop(view: memoryview, at: int, end: int, most: int) -> list[int]:
    """Where batches begin from ``at`` on, and where the last of them ends: one more than there are batches, ``most`` of which are told.

    All lie in ``view[at:end]``, if their lengths are right. Where the first one is large none are told: more like it will follow.
    """
    starts: list[int] = []
    append, unpack, last = starts.append, _LENGTH.unpack_from, end - HEADER_SIZE
    if at <= last and unpack(view, at)[0] > LARGEST:
        return starts
    for _ in range(most):
        if at > last:
            break
        append(at)
        at += unpack(view, at)[0] + OVERHEAD
    if at <= end:
        append(at)
    return starts


def stretches(view: memoryview, starts: list[int], *, bound: int, check_crcs: bool) -> Iterator[Stretch]:
    """The batches that :func:`hop` found, in order, as few stretches as can be; nothing plain lies at or above offset ``bound``.

    Ends before a batch that is large (there is little to gain), or whose length is nonsense.
    """
    edges = np.array(starts, np.int64) - starts[0]
    sizes = np.diff(edges)
    other = np.flatnonzero((sizes < HEADER_SIZE) | (sizes > LARGEST))
    edges = edges[: other[0] + 1] if len(other) else edges
    if len(edges) < 2:
        return iter(())
    at, stop = edges[:-1], edges[1:]
    held = np.array(view[starts[0] : starts[len(at)]])
    head = np.ndarray(len(held) - HEADER_SIZE + 1, f"V{HEADER_SIZE}", held, strides=1)[at].view(_HEADER)
    base, attributes, count, epoch = (head[name].astype(np.int64) for name in ("base", "attributes", "count", "epoch"))
    low, high = head["base_time"].astype(np.int64), head["max_time"].astype(np.int64)
    low = np.where(attributes & LOG_APPEND_TIME, high, low)
    minute = high // MINUTE_MS
    plain = (head["magic"] == 2) & (attributes & (CONTROL | HAS_DELETE_HORIZON) == 0)
    plain &= (count > 0) & (count == head["delta"].astype(np.int64) + 1) & (base <= bound - count) & (low // MINUTE_MS == minute)
    if check_crcs:
        np.ndarray((len(held) - CRC_FROM + 1, CRC_FROM), np.uint8, held, strides=(1, 1))[at] = 0
        plain &= proved(held.data, at + CRC_FROM, stop, head["crc"].astype(np.uint32))
    joined = (base[1:] == base[:-1] + count[:-1]) & (epoch[1:] == epoch[:-1]) & (minute[1:] == minute[:-1])
    breaks = np.flatnonzero(np.where(plain[1:] & plain[:-1], ~joined, plain[1:] != plain[:-1])) + 1
    begin, last = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(at)])) - 1
    columns = (
        at[begin] + starts[0],
        stop[last] + starts[0],
        last - begin + 1,
        plain[begin],
        np.logical_or.reduceat(attributes & TRANSACTIONAL != 0, begin),
        base[begin],
        base[last] + count[last],
        epoch[begin],
        np.minimum.reduceat(low, begin),
        np.maximum.reduceat(high, begin),
    )
    return starmap(Stretch, zip(*(column.tolist() for column in columns), strict=True))
