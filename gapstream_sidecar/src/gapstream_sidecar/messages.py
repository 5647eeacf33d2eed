"""Runs of offsets out of the messages that a confluent-kafka consumer handed out, and which of them are replays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from gapstream_sidecar.deliveries import Key

TOPIC, PARTITION, OFFSET = "source.topic", "source.partition", "source.offset"
"""Headers of a replayed record: where it comes from, as decimal text or as 8 bytes, big-endian."""
_OFFSET_BYTES = 8
_STRIDE = 16
"""Records of a run of which one is asked for its offset: few, so that hardly anything can hide between two of them."""
_DIGITS_MAX = 19


class Origin(NamedTuple):
    """A replayed record: where it was delivered, and where it comes from."""

    key: Key
    offset: int
    source: Key
    source_offset: int


class Run(NamedTuple):
    """Records that were handed out one after the other."""

    topic: str
    partition: int
    first: int
    stop: int


def are_plain(messages: Sequence[Any]) -> bool:
    """Whether all of them are records without headers, as nearly always.

    ``filter`` calls the client's own methods without a step of Python for each message.
    """
    kind = type(messages[0])
    return next(filter(kind.headers, messages), None) is None and next(filter(kind.error, messages), None) is None


def records(messages: Sequence[Any]) -> Sequence[Any]:
    """The messages that are records, not events."""
    if any(map(type(messages[0]).error, messages)):
        return [message for message in messages if message.error() is None]
    return messages


def replays(messages: Sequence[Any]) -> list[Origin]:
    """Those of the records that were replayed from somewhere else."""
    if not any(map(type(messages[0]).headers, messages)):
        return []
    found = []
    for message in messages:
        headers = message.headers()
        origin = origin_of(headers) if headers else None
        if origin is not None:
            found.append(Origin((message.topic(), message.partition()), message.offset(), *origin))
    return found


def runs(messages: Sequence[Any], topic: str | None = None) -> list[Run]:
    """The records as runs, in their order; offsets between them that were not handed out stay out.

    ``topic``: of all of them, where that is known; it costs a call for each to find out.
    """
    if topic is None or messages[0].topic() != topic:
        kind = type(messages[0])
        topics = set(map(kind.topic, messages))
        if len(topics) > 1:
            return [run for one, group in groupby(messages, kind.topic) for run in _runs(one, list(group))]
        topic = topics.pop()
    return _runs(topic, messages)


def _runs(topic: str, messages: Sequence[Any]) -> list[Run]:
    """The same of one topic: every record of a topic with markers passes through here.

    Each is asked for its partition, one in ``_STRIDE`` for its offset: a partition's offsets rise, so where they differ by as
    much as their places, all of those between were handed out. (Within a batch they fall only where the log lost its end
    meanwhile. Then offsets behind that, if as many are skipped within a stride, are offsets without a record.)
    """
    offset = type(messages[0]).offset
    found: list[Run] = []
    at = 0
    for partition, group in groupby(map(type(messages[0]).partition, messages)):
        end = at + len(list(group))
        while at < end:
            first = offset(messages[at])
            shift = first - at
            low, high = at + 1, at + _STRIDE
            while high < end and offset(messages[high]) - high == shift:
                low, high = high + 1, high + _STRIDE
            high = min(high, end)
            while low < high:
                middle = (low + high) >> 1
                if offset(messages[middle]) - middle == shift:
                    low = middle + 1
                else:
                    high = middle
            found.append(Run(topic, partition, first, low + shift))
            at = low
    return found


def origin_of(headers: Sequence[tuple[str, bytes | str | None]]) -> tuple[Key, int] | None:
    """What the headers say a record is a replay of; None where they don't say it, or not in a way that can be."""
    values = {name: value for name, value in headers if name in (TOPIC, PARTITION, OFFSET)}
    if len(values) < 3:
        return None
    topic, partition, offset = _text(values[TOPIC]), _number(values[PARTITION]), _number(values[OFFSET])
    if not topic or partition is None or offset is None or partition >= 2**31 or offset >= 2**63 - 1:
        return None
    return (topic, partition), offset


def _text(value: bytes | str | None) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value


def _number(value: bytes | str | None) -> int | None:
    text = _text(value)
    if text is not None and text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX:
        return int(text)
    if isinstance(value, bytes) and len(value) == _OFFSET_BYTES:
        number = int.from_bytes(value, "big", signed=True)
        return number if number >= 0 else None
    return None
