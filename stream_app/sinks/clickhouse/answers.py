"""What the rows of an answer mean, and whether they are all there."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyroaring import BitMap

from stream_app.core.codec import decode_bitmap, read_varint
from stream_app.core.model import CHUNK, DOUBLED_MAX
from stream_app.core.offsets import OffsetSet
from stream_app.sinks.clickhouse.layout import Held, Layout, Span
from stream_app.sinks.clickhouse.statements import QUARANTINED, ROWS, SENTINEL

_SMALL_MAX = 32
"""Values that ClickHouse keeps as a plain list before it makes a bitmap of them (AggregateFunctionGroupBitmapData.h)."""


class Incomplete(Exception):
    """The answer is not whole, or makes no sense; nothing may be concluded from it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row of an answer."""

    rows: int
    offsets: BitMap
    """Low 16 bits; of doubled rows with the number of the row above them."""


Chunks = Mapping[tuple[int, int], Chunk]
"""By partition and number of the chunk."""


def decode_state(state: bytes) -> BitMap:
    """The values of a ``groupBitmapState`` over UInt32.

    Its first byte says how the rest is kept: 0, then a number of values (at most 32) and as many UInt32, little-endian;
    or 1, then a length as a varint and a bitmap in Roaring's portable format.

    Raises:
        ValueError: it is neither.
    """
    if not state:
        raise ValueError("a bitmap state is empty")
    if state[0] == 0:
        count, at = read_varint(state, 1)
        if count > _SMALL_MAX or len(state) != at + 4 * count:
            raise ValueError(f"a small bitmap state names {count} values in {len(state)} bytes")
        return BitMap(struct.unpack_from(f"<{count}I", state, at))
    if state[0] == 1:
        length, at = read_varint(state, 1)
        if len(state) != at + length:
            raise ValueError(f"a large bitmap state names {length} bytes and has {len(state) - at}")
        return decode_bitmap(state[at:])
    raise ValueError(f"a bitmap state begins with {state[0]}")


def read_chunks(rows: Sequence[Sequence[Any]], levels: int = 1) -> tuple[Chunks, Chunks]:
    """The rows of :func:`~stream_app.sinks.clickhouse.statements.check`: those of the table, those of its quarantine table.

    ``levels``: numbers that may stand above an offset, as in the answer to ``doubles``.

    Raises:
        Incomplete: the sentinel does not end them, or a row is not as it must be.
    """
    found: dict[int, dict[tuple[int, int], Chunk]] = {ROWS: {}, QUARANTINED: {}}
    if not rows or rows[-1][0] != SENTINEL:
        raise Incomplete("the answer is cut off: its last row is not there")
    for kind, partition, chunk, count, state in rows[:-1]:
        if kind not in found or (partition, chunk) in found[kind]:
            raise Incomplete(f"the answer names chunk {chunk} of partition {partition} as kind {kind}, or twice")
        try:
            offsets = decode_state(state)
        except ValueError as error:
            raise Incomplete(f"the answer for chunk {chunk} of partition {partition} makes no sense: {error}") from error
        if not 0 < len(offsets) <= count or offsets.max() >= levels * CHUNK:
            raise Incomplete(f"chunk {chunk} of partition {partition} has {count} rows and {len(offsets)} offsets")
        found[kind][partition, chunk] = Chunk(count, offsets)
    return found[ROWS], found[QUARANTINED]


def crowded(chunks: Chunks) -> list[Span]:
    """The chunks that hold more rows than offsets, whole."""
    return [
        Span(partition, chunk * CHUNK, (chunk + 1) * CHUNK)
        for (partition, chunk), found in sorted(chunks.items())
        if found.rows > len(found.offsets)
    ]


def held(layout: Layout, spans: Sequence[Span], table: Chunks, quarantine: Chunks, doubles: Chunks) -> tuple[Held, ...]:
    """What the table holds of each of ``spans``, which are as :func:`~stream_app.sinks.clickhouse.layout.joined` makes them.

    Raises:
        Incomplete: the answer speaks of what was not asked.
    """
    by_span = [dict(_sorted_out(spans, chunks)) for chunks in (table, quarantine, doubles)]
    found = []
    for index, span in enumerate(spans):
        rows, aside, twice = (some.get(index, []) for some in by_span)
        surplus: dict[int, int] = {}
        if layout.judges_duplicates and layout.duplicates == "final":
            surplus = {number: chunk.rows for number, chunk in twice}
        elif layout.judges_duplicates:
            surplus = {number: more for number, chunk in rows if (more := chunk.rows - len(chunk.offsets))}
        present = _offsets(rows)
        found.append(Held(span, present, surplus, _levels(twice, present), _offsets(aside)))
    return tuple(found)


def _levels(chunks: Sequence[tuple[int, Chunk]], present: OffsetSet) -> tuple[OffsetSet, ...]:
    """What of ``present`` has a second row, a third, and so on: what came between both questions is told by the next ones."""
    levels = []
    for level in range(DOUBLED_MAX):
        above = BitMap(range(level * CHUNK, (level + 1) * CHUNK))
        rows = [(number, Chunk(chunk.rows, (chunk.offsets & above).shift(-level * CHUNK))) for number, chunk in chunks]
        doubled = _offsets(rows) & present
        if not doubled:
            break
        levels.append(doubled)
    return tuple(levels)


def _sorted_out(spans: Sequence[Span], chunks: Chunks) -> Iterator[tuple[int, list[tuple[int, Chunk]]]]:
    """The chunks of each span that has any, by the span's index, ascending."""
    starts = [(span.partition, span.first // CHUNK) for span in spans]
    found: dict[int, list[tuple[int, Chunk]]] = {}
    for (partition, number), chunk in sorted(chunks.items()):
        index = bisect_right(starts, (partition, number)) - 1
        if index < 0 or spans[index].partition != partition or number > spans[index].last_chunk:
            raise Incomplete(f"the answer names chunk {number} of partition {partition}, which was not asked for")
        found.setdefault(index, []).append((number, chunk))
    yield from found.items()


def _offsets(chunks: Sequence[tuple[int, Chunk]]) -> OffsetSet:
    out = OffsetSet()
    for number, chunk in chunks:
        out.update(OffsetSet.from_bitmap(number * CHUNK, chunk.offsets))
    return out
