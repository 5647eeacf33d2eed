"""Integers and runs of offsets as bytes: unsigned LEB128 varints, and runs as varint deltas.

Readers take ``(data, position)`` and give the value and the position after it, so that formats can be nested. Whatever
is cut short, oversized or out of order raises ``ValueError``: state that cannot be read is never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable

from stream_app.core.model import MAX_OFFSET, Run, Runs

_VARINT_BYTES_MAX = 10
"""64 bits in groups of seven (DWARF, section 7.6: LEB128)."""
_VARINT_MAX = 2**64 - 1


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
