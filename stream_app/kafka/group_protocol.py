"""What is asked about consumer groups: who coordinates one, what it committed, and where the logs start that it reads.

Like :mod:`stream_app.kafka.protocol`, after the message descriptions that ship with Kafka; bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stream_app.kafka.protocol import Api, Isolation, is_flexible
from stream_app.kafka.wire import Cursor, Writer

Partition = tuple[str, int]
_GROUP = 0
"""Type of a coordinator's key: a consumer group."""


def encode_find_coordinator(version: int, group: str) -> bytes:
    """FindCoordinator v1 to v3."""
    out = Writer(flexible=is_flexible(Api.FIND_COORDINATOR, version))
    out.string(group)
    out.int8(_GROUP)
    out.tags()
    return out.written()


def decode_find_coordinator(cursor: Cursor) -> tuple[int, tuple[str, int]]:
    """Error code, and the coordinator's host and port."""
    cursor.int32()
    error = cursor.int16()
    cursor.string()
    cursor.int32()
    return error, (cursor.string() or "", cursor.int32())


def encode_offset_fetch(version: int, group: str, partitions: Mapping[str, Sequence[int]]) -> bytes:
    """OffsetFetch v2 to v7: the last stable commits, whether or not transactions of the group are open."""
    out = Writer(flexible=is_flexible(Api.OFFSET_FETCH, version))
    out.string(group)
    out.array(len(partitions))
    for topic, numbers in partitions.items():
        out.string(topic)
        out.array(len(numbers))
        for number in numbers:
            out.int32(number)
        out.tags()
    if version >= 7:
        out.int8(0)  # require_stable
    out.tags()
    return out.written()


def decode_offset_fetch(cursor: Cursor, version: int) -> tuple[int, dict[Partition, tuple[int, int]]]:
    """Error code of the whole answer; per partition its error code and the commit, -1: none."""
    if version >= 3:
        cursor.int32()
    found: dict[Partition, tuple[int, int]] = {}
    for _ in cursor.array():
        topic = cursor.string() or ""
        for _ in cursor.array():
            number, offset = cursor.int32(), cursor.int64()
            if version >= 5:
                cursor.int32()
            cursor.string()
            found[topic, number] = (cursor.int16(), offset)
            cursor.end()
        cursor.end()
    return cursor.int16(), found


def encode_offsets_of(version: int, partitions: Mapping[str, Mapping[int, int]], timestamp: int, isolation: Isolation) -> bytes:
    """ListOffsets v2 to v7: the starts or ends of several logs of one leader; by topic, number to leader epoch."""
    out = Writer(flexible=is_flexible(Api.LIST_OFFSETS, version))
    out.int32(-1)
    out.int8(isolation.level)
    out.array(len(partitions))
    for topic, epochs in partitions.items():
        out.string(topic)
        out.array(len(epochs))
        for number, epoch in epochs.items():
            out.int32(number)
            if version >= 4:
                out.int32(epoch)
            out.int64(timestamp)
            out.tags()
        out.tags()
    out.tags()
    return out.written()


def decode_offsets_of(cursor: Cursor, version: int) -> dict[Partition, tuple[int, int]]:
    """Per partition its error code and the offset."""
    cursor.int32()
    found: dict[Partition, tuple[int, int]] = {}
    for _ in cursor.array():
        topic = cursor.string() or ""
        for _ in cursor.array():
            number, error = cursor.int32(), cursor.int16()
            cursor.int64()
            found[topic, number] = (error, cursor.int64())
            if version >= 4:
                cursor.int32()
            cursor.end()
        cursor.end()
    return found
