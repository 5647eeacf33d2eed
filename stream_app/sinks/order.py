"""Orders on the observations topic: what a worker writes there for the owners of all partitions.

There is one: forget a sink that stands in no configuration. It is no observation, and the parser of those rejects it, so that
nobody who may only report can give it.
"""

from __future__ import annotations

import msgspec

from stream_app.core.model import Drop
from stream_app.sinks.observation import VERSION

_MARK = b'"drop"'


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    """``{"v": 1, "drop": SINK, "topic": ..., "partition": ..., "by": ...}``, and nothing else: no observation looks like that."""

    v: int
    drop: str
    topic: str
    partition: int
    by: str


_DECODER = msgspec.json.Decoder(_Wire)


def encode_drop(drop: Drop, topic: str, partition: int) -> bytes:
    """The record for one partition; :func:`parse_drop` gives it back."""
    return msgspec.json.encode(_Wire(VERSION, drop.sink, topic, partition, drop.by))


def parse_drop(value: bytes | None, topic: str, partition: int) -> Drop | None:
    """The order in ``value``; None: it is none, or stands elsewhere than it speaks of."""
    if value is None or _MARK not in value:
        return None
    try:
        wire = _DECODER.decode(value)
    except (ValueError, RecursionError):
        return None
    return Drop(wire.drop, wire.by) if (wire.v, wire.topic, wire.partition) == (VERSION, topic, partition) else None
