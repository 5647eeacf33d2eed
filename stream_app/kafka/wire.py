"""The primitive types of Kafka's protocol (https://kafka.apache.org/protocol, "Protocol Primitive Types").

"Flexible" versions of a message (KIP-482) write lengths as unsigned varints plus one and end every structure with tagged
fields; one flag carries the difference, so that each message is described once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from stream_app.kafka.failures import MalformedError

_INT8 = struct.Struct(">b")
_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")

NO_UUID = bytes(16)
"""What Kafka sends for "no topic id"."""


class Writer:
    """Builds the body of one request; methods append and return nothing."""

    def __init__(self, *, flexible: bool) -> None:
        self._flexible = flexible
        self._out = bytearray()

    def written(self) -> bytes:
        """All that was written."""
        return bytes(self._out)

    def int8(self, value: int) -> None:
        """Signed, 1 byte; also Kafka's boolean."""
        self._out += _INT8.pack(value)

    def int16(self, value: int) -> None:
        """Signed, 2 bytes, big-endian."""
        self._out += _INT16.pack(value)

    def int32(self, value: int) -> None:
        """Signed, 4 bytes, big-endian."""
        self._out += _INT32.pack(value)

    def int64(self, value: int) -> None:
        """Signed, 8 bytes, big-endian."""
        self._out += _INT64.pack(value)

    def uuid(self, value: bytes) -> None:
        """16 bytes."""
        if len(value) != 16:
            msg = f"a topic id has 16 bytes, not {len(value)}"
            raise ValueError(msg)
        self._out += value

    def uvarint(self, value: int) -> None:
        """Unsigned, 7 bits per byte, lowest first."""
        while value > 0x7F:
            self._out.append(value & 0x7F | 0x80)
            value >>= 7
        self._out.append(value)

    def string(self, value: str | None) -> None:
        """(Compact) nullable string."""
        raw = None if value is None else value.encode()
        if self._flexible:
            self.uvarint(0 if raw is None else len(raw) + 1)
        else:
            self.int16(-1 if raw is None else len(raw))
        self._out += raw or b""

    def array(self, count: int | None) -> None:
        """The length of a (compact) nullable array; its items follow."""
        if self._flexible:
            self.uvarint(0 if count is None else count + 1)
        else:
            self.int32(-1 if count is None else count)

    def tags(self) -> None:
        """No tagged fields, where the version has them."""
        if self._flexible:
            self._out.append(0)


class Cursor:
    """Reads one answer from ``view``; running off its end is a :class:`MalformedError`."""

    def __init__(self, view: memoryview, at: int = 0, *, flexible: bool) -> None:
        self._view = view
        self._flexible = flexible
        self.at = at

    def _take(self, kind: struct.Struct) -> int:
        try:
            value: int = kind.unpack_from(self._view, self.at)[0]
        except struct.error as error:
            raise MalformedError(_SHORT) from error
        self.at += kind.size
        return value

    def int8(self) -> int:
        """Signed, 1 byte; also Kafka's boolean."""
        return self._take(_INT8)

    def int16(self) -> int:
        """Signed, 2 bytes."""
        return self._take(_INT16)

    def int32(self) -> int:
        """Signed, 4 bytes."""
        return self._take(_INT32)

    def int64(self) -> int:
        """Signed, 8 bytes."""
        return self._take(_INT64)

    def skip(self, size: int) -> int:
        """Steps over ``size`` bytes and returns where they began."""
        start = self.at
        if size < 0 or start + size > len(self._view):
            raise MalformedError(_SHORT)
        self.at = start + size
        return start

    def uuid(self) -> bytes:
        """16 bytes."""
        start = self.skip(16)
        return bytes(self._view[start : self.at])

    def uvarint(self) -> int:
        """Unsigned varint of at most 5 bytes."""
        value = shift = 0
        while True:
            start = self.skip(1)
            byte = self._view[start]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                msg = "an answer of the broker holds a length that is too long; is this a Kafka broker?"
                raise MalformedError(msg)

    def _length(self, plain: struct.Struct) -> int:
        return self.uvarint() - 1 if self._flexible else self._take(plain)

    def string(self) -> str | None:
        """(Compact) nullable string."""
        size = self._length(_INT16)
        if size < 0:
            return None
        start = self.skip(size)
        return str(self._view[start : self.at], "utf-8", "replace")

    def array(self) -> range:
        """Counts the items of a (compact) array; null is empty."""
        count = self._length(_INT32)
        if count > len(self._view):
            raise MalformedError(_SHORT)
        return range(count)

    def records(self) -> tuple[int, int]:
        """Where a (compact) nullable byte field begins and ends; nothing is copied."""
        size = self._length(_INT32)
        start = self.skip(max(size, 0))
        return start, self.at

    def tags(self) -> Iterator[tuple[int, Cursor]]:
        """The tagged fields of the structure that ends here: tag, and a cursor on the content. Must be used up."""
        if not self._flexible:
            return
        for _ in range(self.uvarint()):
            tag = self.uvarint()
            size = self.uvarint()
            start = self.skip(size)
            yield tag, Cursor(self._view[: self.at], start, flexible=True)

    def end(self) -> None:
        """Steps over the tagged fields of the structure that ends here."""
        for _ in self.tags():
            pass


_SHORT = "an answer of the broker ends in the middle of a field; is this a Kafka broker?"
