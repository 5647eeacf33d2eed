"""Runs a module that overlooks what the embedded broker lacks: ``python -m stream_app.demo.overlook -m MODULE ARGUMENTS``.

Three things, and only in this process (found in librdkafka 2.16, src/rdkafka_mock.c and rdkafka_mock_handlers.c):

- The mock cluster writes transaction markers with a checksum of 0, and aiokafka stops at what looks like a damaged batch.
  Such markers are given their checksum when they arrive; every other batch is checked as always.
- It names no controller, and librdkafka looks for one in vain for ten seconds before it gives up asking for a topic's
  settings, which the mock does not have. Here they are unknown at once.
- Of times it knows nothing: asked for the first record of a time it always names none. Here it is the first one of all.
"""

from __future__ import annotations

import runpy
import struct
import sys

import aiokafka.consumer.fetcher
from crc32c import crc32c

from stream_app.kafka.topics import TopicConfig, Topics

_BASE_AND_LENGTH = struct.Struct(">qi")
_CHECKED_FROM = 21
"""The checksum covers what follows it (org.apache.kafka.common.record.DefaultRecordBatch)."""
_MAGIC_CRC_ATTRIBUTES = struct.Struct(">BIh")
_MAGIC_AT = 16
_IS_CONTROL = 0x20


def with_checksums(records: bytes) -> bytes:
    """Record batches of format 2 with the checksums of control batches filled in where they are 0."""
    mended = bytearray(records)
    at = 0
    while at + _CHECKED_FROM + 2 <= len(mended):
        length = _BASE_AND_LENGTH.unpack_from(mended, at)[1]
        stop = at + _BASE_AND_LENGTH.size + length
        magic, crc, attributes = _MAGIC_CRC_ATTRIBUTES.unpack_from(mended, at + _MAGIC_AT)
        if magic == 2 and crc == 0 and attributes & _IS_CONTROL and stop <= len(mended):
            struct.pack_into(">I", mended, at + _MAGIC_AT + 1, crc32c(memoryview(mended)[at + _CHECKED_FROM : stop]))
        at = stop
    return bytes(mended)


async def _unknown_settings(self: Topics, topic: str) -> TopicConfig:
    return TopicConfig()


async def _first_of_all(self: Topics, topic: str, partition: int, timestamp_ms: int) -> int | None:
    return 0


def main(arguments: list[str]) -> None:
    """Mend aiokafka, then become MODULE."""
    read = aiokafka.consumer.fetcher.MemoryRecords
    aiokafka.consumer.fetcher.MemoryRecords = lambda records: read(with_checksums(records))
    Topics.describe = _unknown_settings  # type: ignore[method-assign]  # in this process only, as told above
    Topics.offset_at = _first_of_all  # type: ignore[method-assign]  # in this process only, likewise
    option, module, *rest = arguments
    assert option == "-m"
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
