"""Kafka's messages as Kafka itself describes them: the JSON files in the kafka-clients jar, read and obeyed.

An oracle that shares nothing with the project's own encoders but the specification.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import Any

from kafka_jars import jars

_INTEGERS = {"int8": ">b", "int16": ">h", "int32": ">i", "int64": ">q", "uint16": ">H", "float64": ">d"}
_NO_DEFAULT = {"string": "", "bytes": b"", "records": None, "uuid": bytes(16), "bool": False}


@cache
def _files() -> dict[str, str]:
    jar = next(jars().glob("kafka-clients-*.jar"))
    with zipfile.ZipFile(jar) as archive:
        return {
            name.rpartition("/")[2][:-5]: archive.read(name).decode() for name in archive.namelist() if name.startswith("common/message/")
        }


class Message:
    """One request or response; ``name`` as in Kafka, ``FetchRequest`` for example. Values are dicts keyed by field name."""

    def __init__(self, name: str) -> None:
        text = re.sub(r"(?m)^\s*//.*$", "", _files()[name])
        self._spec: dict[str, Any] = json.loads(text)
        self._structs = {one["name"]: one["fields"] for one in self._spec.get("commonStructs", ())}

    def is_flexible(self, version: int) -> bool:
        """KIP-482."""
        return _contains(self._spec["flexibleVersions"], version)

    def encode(self, version: int, value: Mapping[str, Any]) -> bytes:
        """The body; fields that ``value`` lacks have their default."""
        out = bytearray()
        self._write_struct(out, self._spec["fields"], version, value)
        return bytes(out)

    def decode(self, version: int, data: bytes) -> dict[str, Any]:
        """All of ``data``."""
        at, value = self._read_struct(self._spec["fields"], version, data, 0)
        assert at == len(data), f"{len(data) - at} bytes too many"
        return value

    def _is_compact(self, field: dict[str, Any], version: int) -> bool:
        """A field may keep the old lengths: the client id in the header does, so that any broker can read it."""
        return _contains(field.get("flexibleVersions", self._spec["flexibleVersions"]), version)

    # ------------------------------------------------------------------------------------------------- writing

    def _write_struct(self, out: bytearray, fields: list[dict[str, Any]], version: int, value: Mapping[str, Any]) -> None:
        known = {field["name"] for field in fields}
        assert set(value) <= known, f"no such fields: {set(value) - known}"
        tagged: list[tuple[int, bytes]] = []
        for field in fields:
            if not _contains(field["versions"], version):
                continue
            if "tag" in field and _contains(field["taggedVersions"], version):
                if field["name"] in value:
                    content = bytearray()
                    self._write(content, field, field["type"], version, value[field["name"]])
                    tagged.append((field["tag"], bytes(content)))
                continue
            self._write(out, field, field["type"], version, value.get(field["name"], _default(field)))
        if self.is_flexible(version):
            out += _uvarint(len(tagged))
            for tag, raw in tagged:
                out += _uvarint(tag) + _uvarint(len(raw)) + raw

    def _write(self, out: bytearray, field: dict[str, Any], kind: str, version: int, value: Any) -> None:
        if kind in _INTEGERS:
            out += struct.pack(_INTEGERS[kind], value)
        elif kind == "bool":
            out.append(bool(value))
        elif kind == "uuid":
            out += value
        elif kind == "string":
            raw = None if value is None else value.encode()
            out += self._length(field, version, raw, ">h") + (raw or b"")
        elif kind in ("bytes", "records"):
            out += self._length(field, version, value, ">i") + (value or b"")
        elif kind.startswith("[]"):
            out += self._length(field, version, value, ">i")
            for item in value or ():
                self._write(out, field, kind[2:], version, item)
        else:
            self._write_struct(out, field.get("fields") or self._structs[kind], version, value)

    def _length(self, field: dict[str, Any], version: int, value: Any, plain: str) -> bytes:
        if self._is_compact(field, version):
            return _uvarint(0 if value is None else len(value) + 1)
        return struct.pack(plain, -1 if value is None else len(value))

    # ------------------------------------------------------------------------------------------------- reading

    def _read_struct(self, fields: list[dict[str, Any]], version: int, data: bytes, at: int) -> tuple[int, dict[str, Any]]:
        value: dict[str, Any] = {}
        tags: dict[int, dict[str, Any]] = {}
        for field in fields:
            if not _contains(field["versions"], version):
                continue
            if "tag" in field and _contains(field["taggedVersions"], version):
                tags[field["tag"]] = field
                continue
            at, value[field["name"]] = self._read(field, field["type"], version, data, at)
        if self.is_flexible(version):
            at, count = _read_uvarint(data, at)
            for _ in range(count):
                at, tag = _read_uvarint(data, at)
                at, size = _read_uvarint(data, at)
                end, value[tags[tag]["name"]] = self._read(tags[tag], tags[tag]["type"], version, data, at)
                assert end == at + size
                at = end
        return at, value

    def _read(self, field: dict[str, Any], kind: str, version: int, data: bytes, at: int) -> tuple[int, Any]:
        if kind in _INTEGERS:
            layout = struct.Struct(_INTEGERS[kind])
            return at + layout.size, layout.unpack_from(data, at)[0]
        if kind == "bool":
            return at + 1, bool(data[at])
        if kind == "uuid":
            return at + 16, data[at : at + 16]
        if kind in ("string", "bytes", "records"):
            at, size = self._read_length(field, version, data, at, ">h" if kind == "string" else ">i")
            if size < 0:
                return at, None
            raw = data[at : at + size]
            return at + size, raw.decode() if kind == "string" else raw
        if kind.startswith("[]"):
            at, count = self._read_length(field, version, data, at, ">i")
            if count < 0:
                return at, None
            items = []
            for _ in range(count):
                at, item = self._read(field, kind[2:], version, data, at)
                items.append(item)
            return at, items
        return self._read_struct(field.get("fields") or self._structs[kind], version, data, at)

    def _read_length(self, field: dict[str, Any], version: int, data: bytes, at: int, plain: str) -> tuple[int, int]:
        if self._is_compact(field, version):
            at, size = _read_uvarint(data, at)
            return at, size - 1
        layout = struct.Struct(plain)
        return at + layout.size, layout.unpack_from(data, at)[0]


def _contains(versions: str, version: int) -> bool:
    """``3``, ``3-5``, ``3+`` or ``none``."""
    if versions == "none":
        return False
    low, _, high = versions.partition("-")
    if low.endswith("+"):
        return version >= int(low[:-1])
    return int(low) <= version <= int(high or low)


def _default(field: dict[str, Any]) -> Any:
    kind = field["type"]
    given = field.get("default")
    if given is None:
        return [] if kind.startswith("[]") else _NO_DEFAULT.get(kind, {} if kind[0].isupper() else 0)
    if given == "null":
        return None
    if kind in _INTEGERS:
        return int(str(given), 0)
    return given in (True, "true") if kind == "bool" else given


def _uvarint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_uvarint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, number
        shift += 7
