from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from stream_app.core.codec import (
    decode_bitmap,
    decode_runs,
    encode_runs,
    read_runs,
    read_varint,
    topic_id_bytes,
    topic_id_text,
    write_runs,
    write_varint,
)
from stream_app.core.model import Run

END = 2**63


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, b"\x00"), (1, b"\x01"), (127, b"\x7f"), (128, b"\x80\x01"), (624485, b"\xe5\x8e\x26"), (2**64 - 1, b"\xff" * 9 + b"\x01")],
)
def test_varint_is_unsigned_leb128(value: int, expected: bytes) -> None:
    out = bytearray(b"before")
    write_varint(out, value)
    assert out == b"before" + expected
    assert read_varint(bytes(out) + b"after", 6) == (value, len(out))


@pytest.mark.parametrize("value", [-1, 2**64])
def test_varint_outside_64_bits_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        write_varint(bytearray(), value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"\x80", "cut short"),
        (b"\xff" * 9, "cut short"),
        (b"\xff" * 9 + b"\x02", "64 bits"),
        (b"\xff" * 10 + b"\x01", "64 bits"),
    ],
)
def test_damaged_varint_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_varint(data, 0)


@st.composite
def ascending_runs(draw: st.DrawFn) -> tuple[Run, ...]:
    borders = sorted(draw(st.lists(st.integers(0, 300) | st.integers(0, END), max_size=30)))
    return tuple((first, stop) for first, stop in zip(borders[::2], borders[1::2], strict=False) if first < stop)


@settings(max_examples=200)
@given(ascending_runs(), st.binary(max_size=5))
def test_runs_come_back(runs: tuple[Run, ...], after: bytes) -> None:
    assert decode_runs(encode_runs(runs)) == runs
    out = bytearray(b"x")
    write_runs(out, runs)
    assert read_runs(bytes(out) + after, 1) == (runs, len(out))


def test_long_run_is_a_few_bytes() -> None:
    assert encode_runs([(0, 10**12)]) == b"\x01\x00\x80\xa0\x94\xa5\x8d\x1d"


@pytest.mark.parametrize("runs", [[(3, 3)], [(5, 4)], [(-1, 4)], [(0, 5), (4, 9)], [(10, 12), (0, 5)], [(0, END + 1)]])
def test_runs_out_of_order_are_not_written(runs: list[Run]) -> None:
    out = bytearray(b"before")
    with pytest.raises(ValueError, match="run"):
        write_runs(out, runs)
    assert out == b"before"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"\x01", "cut short"),
        (b"\x01\x05\x80", "cut short"),
        (b"\xff\xff\xff\xff\x0f\x00\x01", "cut short"),
        (b"\x01\x05\x00", "empty"),
        (b"\x01" + b"\xff" * 9 + b"\x01\x01", "out of bounds"),
        (b"\x01\x05\x01\x00", "1 bytes follow"),
    ],
)
def test_damaged_runs_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_runs(data)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_any_bytes_are_runs_or_refused(data: bytes) -> None:
    try:
        runs = decode_runs(data)
    except ValueError:
        return
    assert decode_runs(encode_runs(runs)) == runs


def test_bitmap_comes_back() -> None:
    bitmap = BitMap([1, 5, 70_000, 2**32 - 1])
    bitmap.add_range(200_000, 500_000)
    bitmap.run_optimize()
    assert decode_bitmap(bitmap.serialize()) == bitmap


def _array_container(values: bytes) -> bytes:
    """One array container of two-byte values: cookie, one container, key 0, cardinality less one, its offset, values."""
    return bytes.fromhex("3a300000 01000000 0000") + (len(values) // 2 - 1).to_bytes(2, "little") + bytes.fromhex("10000000") + values


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"\x00" * 64,
        BitMap(range(0, 9000, 3)).serialize()[:-1],
        bytes.fromhex("3a300000 ffffff7f"),
        _array_container(b"\x03\x00\x02\x00\x01\x00"),
        _array_container(b"\x01\x00\x01\x00"),
        bytes.fromhex("3b300000 01 0000 0000 0100 e8fd 8813"),
        bytes.fromhex("3b300000 01 0000 0000 0200 0000 3200 0a00 0500"),
        bytes.fromhex("3a300000 01000000 0000 feff 10000000") + bytes(8192),
    ],
    ids=["empty", "short", "zeros", "cut", "too many containers", "unsorted", "twice", "run past the end", "runs overlap", "cardinality"],
)
def test_damaged_bitmap_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"bitmap"):
        decode_bitmap(data)


@pytest.mark.parametrize(
    ("topic_id", "text"),
    [(bytes(16), "A" * 22), (b"\xff" * 16, "_" * 21 + "w"), (bytes(range(0xF0, 0x100)), "8PHy8_T19vf4-fr7_P3-_w")],
)
def test_topic_id_is_printed_as_kafka_prints_it(topic_id: bytes, text: str) -> None:
    assert topic_id_text(topic_id) == text
    assert topic_id_bytes(text) == topic_id


@pytest.mark.parametrize(
    "text",
    ["", "A" * 21, "A" * 23, "A" * 22 + "==", "A" * 21 + "B", "A" * 21 + "=", "A" * 22 + "\n", "+" + "A" * 21, " " * 22, "\u00e9" * 22],
)
def test_what_is_no_topic_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="22 characters of URL-safe base64"):
        topic_id_bytes(text)
