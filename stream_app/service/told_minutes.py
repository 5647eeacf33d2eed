"""What the owners tell by minute of record time, as of the last record of the status topic applied."""

from __future__ import annotations

import msgspec

from stream_app.core.minutes import BLOCK
from stream_app.core.model import MinuteRow, MinutesRecord

RowKey = tuple[str, int, str]
"""Topic, partition, sink."""


class ToldMinutes:
    """What the owners said by minute, as bytes: there are many, and few are asked for."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._blocks: dict[RowKey, dict[int, bytes]] = {}
        self._decoder = msgspec.json.Decoder(MinutesRecord)

    def apply(self, rest: str, record: object, value: bytes | None) -> None:
        """Take one record of the status topic. Raises ValueError where it does not say what its key promises."""
        head, _, block_text = rest.rpartition("/")
        topic, number, sink = head.split("/", 2)
        key, block = (topic, int(number), sink), int(block_text)
        if value is None:
            self._blocks.get(key, {}).pop(block, None)
            if not self._blocks.get(key):
                self._blocks.pop(key, None)
            return
        if not isinstance(record, MinutesRecord) or (record.topic, record.partition, record.sink, record.block) != (*key, block):
            raise ValueError("the value does not match the key")
        self._blocks.setdefault(key, {})[block] = value

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()

    def of(self, key: RowKey, start: int) -> tuple[list[MinuteRow], int]:
        """The minutes of one partition and sink from ``start`` on, ascending, and how many bytes they were."""
        blocks = [value for block, value in sorted(self._blocks.get(key, {}).items()) if block >= start // BLOCK]
        rows = [row for value in blocks for row in self._decoder.decode(value).minutes if row.minute >= start]
        return rows, sum(map(len, blocks))
