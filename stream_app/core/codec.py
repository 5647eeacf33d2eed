"""Integers, runs, bitmaps and topic ids as bytes or text: LEB128 varints, varint deltas, portable Roaring, Kafka's base64.

Readers take ``(data, position)`` and give the value and the position after it, so that formats can be nested. Whatever
is cut short, oversized or out of order raises ``ValueError``: state that cannot be read is never guessed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from pyroaring import BitMap

from stream_app.core.model import MAX_OFFSET, Run, Runs

_VARINT_BYTES_MAX = 10
"""64 bits in groups of seven (DWARF, section 7.6: LEB128)."""
_VARINT_MAX = 2**64 - 1
_TOPIC_ID = re.compile(r"[A-Za-z0-9_-]{22}")
"""16 bytes in groups of six bits."""


def write_varint(out: bytearray, value: int) -> None:
    """Appends ``value`` (0 to 2**64 - 1) as an unsigned LEB128; ``ValueError`` outside."""
    if not 0 <= value <= _VARINT_MAX:
        raise ValueError(f"{value} is not an unsigned 64-bit integer")
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The unsigned LEB128 at ``position`` and the position after it; ``ValueError`` if cut short or above 64 bits."""
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        if position + index >= len(data):
            raise ValueError("a varint is cut short")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value > _VARINT_MAX:
                break
            return value, position + index + 1
    raise ValueError("a varint is longer than 64 bits")


def write_runs(out: bytearray, runs: Iterable[Run]) -> None:
    """Appends runs: their number, then for each the distance from the stop before it and its length, all varints.

    The runs are ascending, disjoint and not empty (touching is allowed); ``ValueError`` otherwise.
    """
    body = bytearray()
    count = previous = 0
    for first, stop in runs:
        if not previous <= first < stop <= MAX_OFFSET + 1:
            raise ValueError(f"run [{first}, {stop}) is empty, out of order or out of bounds")
        write_varint(body, first - previous)
        write_varint(body, stop - first)
        previous = stop
        count += 1
    write_varint(out, count)
    out += body


def read_runs(data: bytes | memoryview, position: int) -> tuple[Runs, int]:
    """The runs at ``position``, as ``write_runs`` wrote them, and the position after them; ``ValueError`` if damaged."""
    count, position = read_varint(data, position)
    if count * 2 > len(data) - position:
        raise ValueError("runs are cut short")
    runs: list[Run] = []
    previous = 0
    for _ in range(count):
        distance, position = read_varint(data, position)
        length, position = read_varint(data, position)
        first, stop = previous + distance, previous + distance + length
        if length == 0 or stop > MAX_OFFSET + 1:
            raise ValueError(f"run [{first}, {stop}) is empty or out of bounds")
        runs.append((first, stop))
        previous = stop
    return tuple(runs), position


def encode_runs(runs: Iterable[Run]) -> bytes:
    """``write_runs`` into bytes of their own."""
    out = bytearray()
    write_runs(out, runs)
    return bytes(out)


def decode_runs(data: bytes | memoryview) -> Runs:
    """The runs that fill ``data`` exactly; ``ValueError`` if damaged or if bytes are left over."""
    runs, position = read_runs(data, 0)
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes follow the runs")
    return runs


def decode_bitmap(data: bytes) -> BitMap:
    """The bitmap in Roaring's portable format (https://github.com/RoaringBitmap/RoaringFormatSpec); ``ValueError`` if damaged.

    Safe on bytes from anywhere: CRoaring reads within bounds only, and pyroaring (1.0.2 and later) has it check the
    whole structure (order, cardinalities, run bounds) before the bitmap is used. Bytes that follow are not looked at.
    """
    if not data:
        raise ValueError("a bitmap is cut short")
    return BitMap.deserialize(data)


def topic_id_text(topic_id: bytes) -> str:
    """A topic id (16 bytes) as Kafka's tools print it: URL-safe base64 without padding (``org.apache.kafka.common.Uuid``)."""
    return base64.urlsafe_b64encode(topic_id).rstrip(b"=").decode()


def topic_id_bytes(text: str) -> bytes:
    """The 16 bytes of a topic id in the form of ``topic_id_text``; ``ValueError`` for any other text."""
    if _TOPIC_ID.fullmatch(text):
        topic_id = base64.urlsafe_b64decode(text + "==")
        # 22 characters are 132 bits: with spare bits set it is nobody's way to write these bytes.
        if topic_id_text(topic_id) == text:
            return topic_id
    raise ValueError("a topic id is 22 characters of URL-safe base64 without padding")
