"""Record batches made by hand, byte for byte, including those that no broker would write."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import cramjam
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from crc32c import crc32c

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, HORIZON = 0x08, 0x10, 0x20, 0x40
ABORT, COMMIT = 0, 1
T0 = 1_700_000_000_000
"""Time of the record at offset 0; every offset adds one millisecond."""


def varint(number: int) -> bytes:
    """Zigzag."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def record(
    delta: int,
    time_delta: int = 0,
    *,
    key: bytes | None = b"k",
    value: bytes | None = b"value",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """One record of format v2."""
    body = b"\0" + varint(time_delta) + varint(delta)
    for part in (key, value):
        body += varint(-1) if part is None else varint(len(part)) + part
    body += varint(len(headers))
    for name, content in headers:
        body += varint(len(name)) + name + varint(len(content)) + content
    return varint(len(body)) + body


def raw_batch(
    base: int,
    body: bytes,
    *,
    count: int,
    delta: int,
    attributes: int = 0,
    epoch: int = 0,
    producer: int = -1,
    base_time: int = T0,
    max_time: int = T0,
    magic: int = 2,
    producer_epoch: int | None = None,
    sequence: int = -1,
) -> bytes:
    """A v2 batch whose header says what is asked, around ``body``; the CRC is right."""
    if producer_epoch is None:
        producer_epoch = 0 if producer >= 0 else -1
    covered = struct.pack(">hiqqqhii", attributes, delta, base_time, max_time, producer, producer_epoch, sequence, count) + body
    return struct.pack(">qiiBI", base, 9 + len(covered), epoch, magic, crc32c(covered)) + covered


def batch(
    first: int,
    last: int,
    *,
    keep: Iterable[int] | None = None,
    codec: int = NONE,
    attributes: int = 0,
    epoch: int = 0,
    producer: int = -1,
    nulls: Iterable[int] = (),
    value: bytes = b"value",
    headers: Sequence[tuple[bytes, bytes]] = (),
    time: int = T0,
) -> bytes:
    """A batch of ``[first, last]`` (closed) that holds the offsets ``keep`` (default: all), as the cleaner leaves it.

    The record at an offset is of ``time`` plus the offset. With the delete horizon bit the base time is far in the future and
    the deltas are relative to it.
    """
    kept = list(range(first, last + 1)) if keep is None else sorted(keep)
    empty = set(nulls)
    base_time = time + first if not attributes & HORIZON else time + 86_400_000
    body = b"".join(
        record(offset - first, time + offset - base_time, value=None if offset in empty else value, headers=headers) for offset in kept
    )
    times = [time + offset for offset in kept]
    return raw_batch(
        first,
        compress(codec, body),
        count=len(kept),
        delta=last - first,
        attributes=attributes | codec,
        epoch=epoch,
        producer=producer,
        base_time=base_time if kept else -1,
        max_time=max(times, default=-1),
    )


def batches(first: int, stop: int, step: int = 10, **options: Any) -> list[bytes]:
    """Batches of ``step`` offsets from ``first`` on, half-open; options as :func:`batch`."""
    return [batch(at, min(at + step, stop) - 1, **options) for at in range(first, stop, step)]


def marker(offset: int, producer: int, kind: int = COMMIT, *, epoch: int = 0) -> bytes:
    """A control batch: ``kind`` is 0 abort, 1 commit, or anything else."""
    body = record(0, key=struct.pack(">hh", 0, kind), value=struct.pack(">hi", 0, 0))
    return raw_batch(
        offset, body, count=1, delta=0, attributes=TRANSACTIONAL | CONTROL, epoch=epoch, producer=producer, base_time=T0, max_time=T0
    )


def emptied(first: int, last: int, *, attributes: int = 0, producer: int = 7, epoch: int = 0) -> bytes:
    """A batch from which the cleaner removed every record: 61 bytes, base time -1."""
    return raw_batch(
        first, b"", count=0, delta=last - first, attributes=attributes, producer=producer, epoch=epoch, base_time=-1, max_time=-1
    )


def compress(codec: int, body: bytes) -> bytes:
    """As Java's client does it (snappy in xerial's framing)."""
    if codec == GZIP:
        return gzip.compress(body)
    if codec == SNAPPY:
        block = bytes(cramjam.snappy.compress_raw(body))
        return b"\x82SNAPPY\0" + struct.pack(">iii", 1, 1, len(block)) + block
    if codec == LZ4:
        compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        compressor.compress(body)
        return bytes(compressor.finish())
    if codec == ZSTD:
        return bytes(cramjam.zstd.compress(body))
    return body


def legacy(magic: int, offsets: Sequence[int], *, codec: int = NONE) -> bytes:
    """Messages of format v0 or v1: one after the other, or as a compressed set under one header with the last offset.

    Inside a compressed v1 message offsets are relative to the first one, with the holes that the cleaner left.
    """
    if codec == NONE:
        return b"".join(_legacy_message(magic, offset) for offset in offsets)
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for offset in offsets:
        builder.append(offset - offsets[0] if magic else offset, T0 + offset if magic else None, b"k", b"value")
    return struct.pack(">q", offsets[-1]) + bytes(builder.build())[8:]


def _legacy_message(magic: int, offset: int) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, NONE, 1 << 20)
    builder.append(offset, T0 + offset if magic else None, b"k", b"value")
    return bytes(builder.build())


def flip(data: bytes, at: int) -> bytes:
    """``data`` with one bit turned at index ``at`` (negative: from the end)."""
    damaged = bytearray(data)
    damaged[at] ^= 0x10
    return bytes(damaged)
