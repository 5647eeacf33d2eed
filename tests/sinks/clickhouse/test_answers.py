from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from stream_app.core.codec import write_varint
from stream_app.core.model import CHUNK
from stream_app.core.offsets import OffsetSet
from stream_app.sinks.clickhouse.answers import Incomplete, crowded, decode_state, held, read_chunks
from stream_app.sinks.clickhouse.layout import Layout, Span
from stream_app.sinks.clickhouse.statements import QUARANTINED, ROWS, SENTINEL
from tests.support.clickhouse_kit import ClickHouse

LAYOUT = Layout("default", "orders", "__offset", "__topic", "__partition")
END = (SENTINEL, 0, 0, 0, b"")


def small(*values: int) -> bytes:
    return bytes([0, len(values)]) + struct.pack(f"<{len(values)}I", *values)


def large(values: BitMap) -> bytes:
    body = values.serialize()
    out = bytearray(b"\x01")
    write_varint(out, len(body))
    return bytes(out) + body


# --- states -----------------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, CHUNK - 1), max_size=32))
def test_small_states(values: set[int]) -> None:
    assert set(decode_state(small(*values))) == values


@given(st.sets(st.integers(0, CHUNK - 1), min_size=1, max_size=400))
def test_large_states(values: set[int]) -> None:
    bitmap = BitMap(values)
    for optimized in (False, True):
        if optimized:
            bitmap.run_optimize()
        assert decode_state(large(bitmap)) == bitmap


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 34, 4_096, 4_097, 65_535, 65_536])
@pytest.mark.parametrize("step", [1, 7])
def test_states_of_the_engine(clickhouse: ClickHouse, count: int, step: int) -> None:
    values = f"toUInt32(bitAnd(number * {step}, 65535))"
    (row,) = clickhouse.rows(f"SELECT hex(CAST(groupBitmapState({values}) AS String)) FROM numbers({count})")
    state = bytes.fromhex(row[0])
    assert state[0] == (0 if count <= 32 else 1)
    assert set(decode_state(state)) == {number * step % CHUNK for number in range(count)}


@given(st.binary(max_size=80))
def test_damaged_states_are_refused(state: bytes) -> None:
    try:
        found = decode_state(state)
    except ValueError:
        return
    assert state[0] in (0, 1)  # by chance it was one
    assert len(found) <= 2**32


@pytest.mark.parametrize(
    "state",
    [
        *(b"", b"\x01", b"\x02\x01", b"\x00\x21" + bytes(4 * 33)),
        *(small(1, 2)[:-1], small(1, 2) + b"\0", large(BitMap([1, 2]))[:-1], large(BitMap([1])) + b"x"),
    ],
)
def test_what_is_cut_or_too_long_is_refused(state: bytes) -> None:
    with pytest.raises(ValueError, match=r"state|varint|cut short"):
        decode_state(state)


# --- rows -------------------------------------------------------------------------------------------------------------------


def test_rows_become_chunks() -> None:
    rows = [(ROWS, 0, 3, 5, small(1, 2)), (ROWS, 1, 3, 1, small(0)), (QUARANTINED, 0, 3, 1, small(9)), END]
    table, quarantine = read_chunks(rows)
    assert {key: (chunk.rows, set(chunk.offsets)) for key, chunk in table.items()} == {(0, 3): (5, {1, 2}), (1, 3): (1, {0})}
    assert {key: set(chunk.offsets) for key, chunk in quarantine.items()} == {(0, 3): {9}}
    assert crowded(table) == [Span(0, 3 * CHUNK, 4 * CHUNK)]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "cut off"),
        ([(ROWS, 0, 0, 1, small(1))], "cut off"),
        ([END, (ROWS, 0, 0, 1, small(1))], "cut off"),
        ([END, END], "kind 2"),
        ([(ROWS, 0, 0, 1, small(1)), (ROWS, 0, 0, 1, small(1)), END], "or twice"),
        ([(ROWS, 0, 0, 1, b"\x05"), END], "makes no sense"),
        ([(ROWS, 0, 0, 1, small(1, 2)), END], "has 1 rows and 2 offsets"),
        ([(ROWS, 0, 0, 0, small()), END], "has 0 rows and 0 offsets"),
        ([(ROWS, 0, 0, 1, small(CHUNK)), END], "has 1 rows"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(rows: list[tuple[int, int, int, int, bytes]], complaint: str) -> None:
    with pytest.raises(Incomplete, match=complaint):
        read_chunks(rows)


def test_a_row_above_the_levels_asked_for_is_refused() -> None:
    with pytest.raises(Incomplete, match="has 9 rows"):
        read_chunks([(ROWS, 0, 0, 9, small(3 * CHUNK)), END], levels=3)


def test_chunks_go_to_the_span_that_asked_for_them() -> None:
    spans = [Span(0, 10, CHUNK), Span(0, 5 * CHUNK, None), Span(2, CHUNK + 5, 2 * CHUNK + 1)]
    rows = [(ROWS, 0, 0, 3, small(10, 11)), (ROWS, 0, 9, 1, small(7)), (ROWS, 2, 2, 1, small(0)), (QUARANTINED, 2, 1, 1, small(5)), END]
    table, quarantine = read_chunks(rows)
    values = small(11, 12, CHUNK + 11, 2 * CHUNK + 11)  # 12 was doubled after the first question
    doubles, _ = read_chunks([(ROWS, 0, 0, 4, values), END], levels=3)
    first, second, third = held(LAYOUT, spans, table, quarantine, doubles)
    assert (first.span, first.present, first.rows, first.doubled) == (spans[0], OffsetSet([(10, 12)]), 3, OffsetSet([(11, 12)]))
    assert first.levels == (OffsetSet([(11, 12)]),) * 3
    assert (second.present, second.rows) == (OffsetSet([(9 * CHUNK + 7, 9 * CHUNK + 8)]), 1)
    assert (third.present, third.quarantined) == (OffsetSet([(2 * CHUNK, 2 * CHUNK + 1)]), OffsetSet([(CHUNK + 5, CHUNK + 6)]))


@pytest.mark.parametrize("where", [(1, 3), (0, 2), (0, 7), (3, 0)])
def test_what_was_not_asked_for_is_refused(where: tuple[int, int]) -> None:
    table, _ = read_chunks([(ROWS, *where, 1, small(1)), END])
    with pytest.raises(Incomplete, match="was not asked for"):
        held(LAYOUT, [Span(0, 3 * CHUNK, 7 * CHUNK), Span(2, 0, None)], table, {}, {})
