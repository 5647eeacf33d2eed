"""The records inside a batch, for the few batches whose header does not say enough.

The compression codecs and the decoders are aiokafka's. Format v2 has a second, lenient decoder here: aiokafka's insists on
UTF-8 header keys, and a record is not unreadable because one of its headers is strange.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch

HEADER_SIZE = 61
"""Bytes before the records of a v2 batch (``DefaultRecordBatch.java``)."""
OVERHEAD = 12
"""Bytes of a batch's base offset and length; the length counts what follows."""
CRC_FROM = 21
"""The CRC of a v2 batch covers from the attributes to the end: neither the offset nor the length nor the epoch."""
CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
HAS_DELETE_HORIZON = 0x40
"""Bits of a batch's attributes (``DefaultRecordBatch.java``)."""

Record = tuple[int, int, bool]
"""Offset; time in ms, -1 where there is none; whether the value is null (a tombstone). A plain tuple: millions are made."""


class Detail(NamedTuple):
    """A record as it is shown to people; begins as :data:`Record` does."""

    offset: int
    timestamp_ms: int
    """-1: it has none."""
    tombstone: bool
    key: bytes | None
    size: int
    """Bytes of its key and its value."""


_CODECS: dict[int, Callable[[memoryview], bytes]] = {1: gzip_decode, 2: snappy_decode, 3: lz4_decode, 4: zstd_decode}


class UndecodableError(Exception):
    """No consumer can decode what is inside, though the CRC may be right."""


class SurplusError(UndecodableError):
    """The body goes on behind the records that the header counts: Java's consumer refuses such a batch.

    ``records`` are those that are counted. The rest is none: the count is under the CRC, and a broker never wrote another one.
    """

    def __init__(self, records: list[Record]) -> None:
        super().__init__(f"its body goes on behind the {len(records)} records that its header counts")
        self.records = records


def decode_batch(batch: memoryview, count: int, base: int, attributes: int, base_timestamp: int, max_timestamp: int) -> list[Record]:
    """The records of a whole v2 batch; the other arguments are fields of its header.

    With the delete horizon bit the timestamps' base is the removal time and the deltas are relative to that (KIP-534),
    so the sum is the record's time either way.

    Raises:
        UndecodableError: the batch does not hold ``count`` records and nothing else; :class:`SurplusError` if it holds more.
    """
    try:
        # Three times as fast as the decoder below. Whatever it stumbles over, the other one decides.
        return [(one.offset, one.timestamp, one.value is None) for one in DefaultRecordBatch(bytes(batch))]
    except Exception:
        return [one[:3] for one in _decode_leniently(batch, count, base, attributes, base_timestamp, max_timestamp)]


def decode_details(batch: memoryview, count: int, base: int, attributes: int, base_timestamp: int, max_timestamp: int) -> list[Detail]:
    """As :func:`decode_batch`, with what people want to see of a record.

    Raises:
        UndecodableError: the batch does not hold ``count`` records and nothing else.
    """
    try:
        return [_detail(one.offset, one.timestamp, one.key, one.value) for one in DefaultRecordBatch(bytes(batch))]
    except Exception:
        return _decode_leniently(batch, count, base, attributes, base_timestamp, max_timestamp)


def _detail(offset: int, timestamp: int | None, key: bytes | None, value: bytes | None) -> Detail:
    return Detail(offset, -1 if timestamp is None else timestamp, value is None, key, len(key or b"") + len(value or b""))


def _decode_leniently(batch: memoryview, count: int, base: int, attributes: int, base_timestamp: int, max_timestamp: int) -> list[Detail]:
    """The records without a look at their headers (``DefaultRecord.java`` has the layout)."""
    codec = attributes & CODEC_MASK
    data = _decompress(codec, batch[HEADER_SIZE:]) if codec else bytes(batch[HEADER_SIZE:])
    append_time = max_timestamp if attributes & LOG_APPEND_TIME else None
    records: list[Detail] = []
    at = 0
    try:
        for _ in range(count):
            length, at = _varint(data, at)
            stop = at + length
            delta, at = _varint(data, at + 1)
            offset_delta, at = _varint(data, at)
            key_size, at = _varint(data, at)
            key = data[at : at + key_size] if key_size >= 0 else None
            value_size, at = _varint(data, at + max(key_size, 0))
            if at + max(value_size, 0) > stop:
                raise UndecodableError("a record's value is longer than the record")
            time = base_timestamp + delta if append_time is None else append_time
            records.append(Detail(base + offset_delta, time, value_size < 0, key, max(key_size, 0) + max(value_size, 0)))
            at = stop
    except IndexError as error:
        raise UndecodableError("a record ends behind its batch") from error
    if at > len(data):
        raise UndecodableError("the batch holds less than its records")
    if at < len(data):
        if any(left[0] >= right[0] for left, right in pairwise(records)):
            raise UndecodableError("the batch holds more than its records, whose offsets don't rise")
        raise SurplusError([one[:3] for one in records])
    return records


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, as Protocol Buffers writes it, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise UndecodableError("a number of a record is longer than 10 bytes")


def _decompress(codec: int, body: memoryview) -> bytes:
    decode = _CODECS.get(codec)
    if decode is None:
        raise UndecodableError(f"compression codec {codec} is unknown")
    try:
        return decode(body)
    except Exception as error:  # each codec's library raises its own
        raise UndecodableError(f"decompression failed: {error}") from error


def decode_legacy(message: memoryview, magic: int, *, check_crc: bool) -> list[Record]:
    """The records of one message of format v0 or v1, which may be a compressed set of messages.

    The offset in a compressed message's header is that of its last record; the others' follow from the inner messages.

    Raises:
        UndecodableError: wrong CRC, or not what the format says.
    """
    return [one[:3] for one in decode_legacy_details(message, magic, check_crc=check_crc)]


def decode_legacy_details(message: memoryview, magic: int, *, check_crc: bool) -> list[Detail]:
    """As :func:`decode_legacy`, with what people want to see of a record.

    Raises:
        UndecodableError: likewise.
    """
    try:
        batch = LegacyRecordBatch(bytes(message), magic)
        right = not check_crc or batch.validate_crc()
        records = [_detail(one.offset, one.timestamp, one.key, one.value) for one in batch] if right else []
    except Exception as error:  # a damaged message makes the decoder raise whatever it stumbles over
        raise UndecodableError(f"format v{magic} message can't be decoded: {error}") from error
    if not right:
        raise UndecodableError("the CRC is wrong")
    return records
