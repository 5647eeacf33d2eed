"""Observations as they are written: JSON on the observations topic, a line of NDJSON over HTTP.

``parse`` takes bytes from anywhere: what is not exactly an observation is ``Rejected`` with a reason, at a cost bounded
by the limits below. ``encode`` is the way back. Ranges are closed in JSON and half-open in ``Observation``.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
from pyroaring import BitMap

from stream_app.core.codec import decode_bitmap, topic_id_bytes, topic_id_text
from stream_app.core.model import DOUBLED_MAX, MAX_OFFSET, Observation, Run, Runs, Snapshot, Status
from stream_app.core.offsets import OffsetSet, bitmap_runs

VERSION = 1
VALUE_BYTES_MAX = 1024 * 1024
"""Kafka's own default limit of a record batch is 1 MiB (``message.max.bytes``, 1,048,588 with the batch's overhead)."""
RUNS_MAX = 100_000
"""About 16 MB as Python tuples, and some 100 ms of work."""
NAME_CHARS_MAX = 200
"""Sink, source and ``by``: they stand in keys, labels and rows."""
REASON_CHARS_MAX = 1_000
"""A sentence or two; it is repeated in every event that it explains."""
BUILT_IN_SINK = "log"
TOPIC_ID_BYTES = 16

_RUNS_IN_JSON_MAX = 1_000
"""More runs are written as a bitmap where their span allows: up to 40 bytes a run become 4 or fewer."""
_DETAIL_CHARS_MAX = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_AT_MS_MAX = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND
"""The end of the year 9999 in UTC: with an offset, RFC 3339 reaches a little beyond it."""
_DIGEST_CHARS = 16


def portions(runs: Runs, most: int) -> Iterator[Runs]:
    """The same runs, ``most`` at a time, for observations of their own."""
    for at in range(0, len(runs), most):
        yield runs[at : at + most]


def source_named(prefix: str, name: str, suffix: str = "") -> str:
    """A source of these three; the name is cut, and told apart by a digest, where all of it is longer than a source may be."""
    room = NAME_CHARS_MAX - len(prefix) - len(suffix)
    if len(name) > room:
        digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGEST_CHARS]
        name = f"{name[: room - _DIGEST_CHARS - 1]}~{digest}"
    return prefix + name + suffix


class RejectReason(StrEnum):
    """Why an observation was rejected whole: the ``reason`` of ``gapstream_observations_rejected_total``."""

    MALFORMED = "malformed"
    WRONG_TOPIC = "wrong_topic"
    WRONG_PARTITION = "wrong_partition"
    BEYOND_END = "beyond_end"
    OLDER_INCARNATION = "older_incarnation"
    TOO_LARGE = "too_large"
    TOO_MANY_SINKS = "too_many_sinks"
    UNSUPPORTED_VERSION = "unsupported_version"


class Rejected(Exception):
    """An observation that changes nothing: counted by reason and logged with its position, never fatal."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        """One short clause for people; says what to mend."""


class _Bitmap(msgspec.Struct):
    base: int
    roaring: bytes


class _Wire(msgspec.Struct):
    """The shape of an observation; what the types can't say is checked after."""

    v: int
    sink: str
    topic: str
    partition: int
    runs: list[tuple[int, int]] | None = None
    bitmap: _Bitmap | None = None
    claim: int | None = None
    status: Status = Status.RECEIVED
    reason: str | None = None
    source: str | None = None
    sequence: int | None = None
    topic_id: str | None = None
    at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    by: str | None = None
    undo: bool = False
    snapshot: tuple[int, int] | None = None
    rows: int | None = None
    doubled: list[list[tuple[int, int]] | _Bitmap] | None = None


class _Address(msgspec.Struct):
    topic: str
    partition: int


class _Version(msgspec.Struct):
    v: int


_Shape = TypeVar("_Shape", bound=msgspec.Struct)

_WIRE = msgspec.json.Decoder(_Wire)
_ADDRESS = msgspec.json.Decoder(_Address)
_VERSION_ONLY = msgspec.json.Decoder(_Version)
_ENCODER = msgspec.json.Encoder()


def parse(value: bytes | None, topic: str, partition: int) -> Observation:
    """The observation in ``value``, which stands where partition ``partition`` of ``topic`` is spoken of.

    Unknown fields are ignored; of a doubled key the last one counts. Raises ``Rejected`` and nothing else.
    """
    wire = _decode(_WIRE, value)
    if wire.v != VERSION:
        raise _version(wire.v)
    if wire.topic != topic:
        raise Rejected(RejectReason.WRONG_TOPIC, f"it speaks of topic {_short(wire.topic)}, but stands with {_short(topic)}")
    if wire.partition != partition:
        raise Rejected(RejectReason.WRONG_PARTITION, f"it speaks of partition {_short(wire.partition)}, but stands with {partition}")
    observation = _observation(wire)
    _check(observation)
    return observation


def address(value: bytes) -> tuple[str, int]:
    """The topic and partition that ``value`` says it speaks of, for a line that stands nowhere; raises ``Rejected``."""
    found = _decode(_ADDRESS, value)
    return found.topic, found.partition


def encode(observation: Observation, topic: str, partition: int) -> bytes:
    """The JSON of ``observation``: fields in the contract's order, none that is null, the same bytes for the same input.

    ``parse`` gives it back. ``ValueError`` for what ``parse`` would reject; an observation above the limits is to be split.
    """
    try:
        _check(observation)
    except Rejected as rejected:
        raise ValueError(f"this observation can't be written: {rejected.detail}") from rejected
    fields: dict[str, Any] = {"v": VERSION, "sink": observation.sink, "topic": topic, "partition": partition}
    fields |= _encode_runs(observation)
    fields |= {"claim": observation.claim, "status": observation.status, "reason": observation.reason}
    fields |= {"source": observation.source, "sequence": observation.sequence}
    if observation.topic_id is not None:
        fields["topic_id"] = topic_id_text(observation.topic_id)
    snapshot = observation.snapshot
    if snapshot is not None:
        fields["at"] = _time_text(snapshot.at_ms)
    fields |= {"by": observation.by, "undo": observation.undo or None}
    if snapshot is not None:
        levels = [_encode_level(runs) for runs in snapshot.doubled]
        fields |= {"snapshot": (snapshot.first, snapshot.stop - 1), "rows": snapshot.rows, "doubled": levels or None}
    value = _ENCODER.encode({name: field for name, field in fields.items() if field is not None})
    if len(value) > VALUE_BYTES_MAX:
        raise ValueError(f"this observation can't be written: it has {len(value)} bytes, split it")
    return value


# --- from JSON ---


def _decode(decoder: msgspec.json.Decoder[_Shape], value: bytes | None) -> _Shape:
    if value is None:
        raise _malformed("it has no value")
    if len(value) > VALUE_BYTES_MAX:
        raise Rejected(RejectReason.TOO_LARGE, f"it has {len(value)} bytes, more than {VALUE_BYTES_MAX}")
    try:
        return decoder.decode(value)
    except (ValueError, RecursionError) as error:
        # Another version may have another shape: say that rather than what is wrong with the shape.
        version = _version_of(value)
        if version not in (None, VERSION):
            raise _version(version) from error
        shown = "".join(character if character.isprintable() else "?" for character in str(error)[:_DETAIL_CHARS_MAX])
        raise _malformed(shown) from error


def _version_of(value: bytes) -> int | None:
    try:
        return _VERSION_ONLY.decode(value).v
    except (ValueError, RecursionError):
        return None


def _observation(wire: _Wire) -> Observation:
    if wire.runs is None and wire.bitmap is None and wire.claim is None:
        raise _malformed("it has neither runs nor bitmap nor claim")
    return Observation(
        sink=wire.sink,
        runs=_runs(wire),
        status=wire.status,
        claim=wire.claim,
        reason=wire.reason,
        source=wire.source,
        sequence=wire.sequence,
        topic_id=None if wire.topic_id is None else _topic_id(wire.topic_id),
        by=wire.by,
        undo=wire.undo,
        snapshot=_snapshot(wire),
    )


def _runs(wire: _Wire) -> Runs:
    runs = _runs_of_json(wire.runs or [])
    if wire.bitmap is None:
        return runs
    more = _runs_of_bitmap(wire.bitmap)
    if not runs or not more:
        return runs or more
    one, two = OffsetSet(runs), OffsetSet(more)
    if not one.isdisjoint(two):
        raise _malformed("runs and bitmap overlap")
    one.update(two)
    return tuple(one.runs())


def _runs_of_json(closed: list[tuple[int, int]]) -> Runs:
    """Half-open, touching ones joined."""
    if len(closed) > RUNS_MAX:
        raise _too_many_runs(len(closed))
    runs: list[Run] = []
    begin = end = -1
    for first, last in closed:
        if not max(end, 0) <= first <= last < MAX_OFFSET:
            raise _malformed(f"run [{_short(first)}, {_short(last)}] is out of order or out of bounds")
        if first != end:
            if end >= 0:
                runs.append((begin, end))
            begin = first
        end = last + 1
    if end >= 0:
        runs.append((begin, end))
    return tuple(runs)


def _runs_of_bitmap(wire: _Bitmap) -> Runs:
    try:
        bitmap = decode_bitmap(wire.roaring)
    except ValueError as error:
        raise _malformed(f"bitmap.roaring is no portable Roaring bitmap ({error})") from error
    if not 0 <= wire.base < MAX_OFFSET or (bitmap and wire.base + bitmap.max() >= MAX_OFFSET):
        raise _malformed("the bitmap is out of bounds")
    # Counted before they are made: 1 MiB of bitmap can hold millions.
    count = len(bitmap - bitmap.shift(1))
    if count > RUNS_MAX:
        raise _too_many_runs(count)
    return tuple(bitmap_runs(bitmap, wire.base))


def _topic_id(text: str) -> bytes:
    try:
        return topic_id_bytes(text)
    except ValueError as error:
        raise _malformed(str(error)) from error


def _snapshot(wire: _Wire) -> Snapshot | None:
    if wire.snapshot is None:
        if wire.doubled is not None:
            raise _malformed("doubled needs a snapshot")
        return None
    if wire.rows is None or wire.at is None:
        raise _malformed("a snapshot needs rows and at")
    if wire.runs is None and wire.bitmap is None:
        raise _malformed("a snapshot needs runs or bitmap, even if they are empty")
    first, last = wire.snapshot
    levels = tuple(_runs_of_bitmap(level) if isinstance(level, _Bitmap) else _runs_of_json(level) for level in wire.doubled or ())
    return Snapshot(first, last + 1, wire.rows, (wire.at - _EPOCH) // _MILLISECOND, levels)


# --- to JSON ---


def _encode_runs(observation: Observation) -> dict[str, Any]:
    runs = observation.runs
    if not runs and observation.claim is not None and observation.snapshot is None:
        return {}
    level = _encode_level(runs)
    return {"bitmap" if isinstance(level, dict) else "runs": level}


def _encode_level(runs: Runs) -> list[Run] | dict[str, Any]:
    """Closed runs, or a bitmap where they are many."""
    if len(runs) <= _RUNS_IN_JSON_MAX or runs[-1][1] - runs[0][0] > 2**32:
        return [(first, stop - 1) for first, stop in runs]
    base = runs[0][0]
    bitmap = BitMap()
    for first, stop in runs:
        bitmap.add_range(first - base, stop - base)
    bitmap.run_optimize()
    return {"base": base, "roaring": bitmap.serialize()}


def _time_text(at_ms: int) -> str:
    return (_EPOCH + at_ms * _MILLISECOND).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- both ways: what the types can't say ---


def _check(observation: Observation) -> None:
    """Raises ``Rejected`` unless every field makes sense by itself and with the others."""
    _check_name("sink", observation.sink)
    if observation.sink == BUILT_IN_SINK:
        raise _malformed("sink log is built in, nobody reports for it")
    if any(unicodedata.category(character) == "Cc" for character in observation.sink):
        raise _malformed("sink has control characters")
    if observation.topic_id is not None and len(observation.topic_id) != TOPIC_ID_BYTES:
        raise _malformed(f"topic_id has {len(observation.topic_id)} bytes, not {TOPIC_ID_BYTES}")
    _check_runs(observation.runs)
    if observation.claim is not None and not 0 <= observation.claim <= MAX_OFFSET:
        raise _malformed("claim is no offset")
    if (observation.source is None) != (observation.sequence is None):
        raise _malformed("source and sequence need each other")
    if observation.source is not None:
        _check_name("source", observation.source)
    if observation.sequence is not None and not 0 <= observation.sequence <= MAX_OFFSET:
        raise _malformed("sequence is not in 0 to 2**63 - 1")
    _check_status(observation)
    if observation.snapshot is not None:
        _check_snapshot(observation, observation.snapshot)


def _check_name(field: str, text: str) -> None:
    if not 0 < len(text) <= NAME_CHARS_MAX:
        raise _malformed(f"{field} has {len(text)} characters, not 1 to {NAME_CHARS_MAX}")


def _check_runs(runs: Runs) -> None:
    if len(runs) > RUNS_MAX:
        raise _too_many_runs(len(runs))
    previous = -1
    for first, stop in runs:
        if not previous < first < stop <= MAX_OFFSET:
            raise _malformed(f"run [{_short(first)}, {_short(stop)}) is empty, out of order, not joined or out of bounds")
        previous = stop


def _check_status(observation: Observation) -> None:
    status = observation.status
    if observation.reason is not None and len(observation.reason) > REASON_CHARS_MAX:
        raise _malformed(f"reason has more than {REASON_CHARS_MAX} characters")
    if observation.by is not None:
        _check_name("by", observation.by)
    if status in (Status.QUARANTINED, Status.ACKNOWLEDGED) and not (observation.reason or "").strip():
        raise _malformed(f"status {status} needs a reason")
    if status is Status.ACKNOWLEDGED and observation.by is None:
        raise _malformed("status acknowledged needs by")
    if observation.undo and status is not Status.ACKNOWLEDGED:
        raise _malformed("only an acknowledgement can be undone")


def _check_snapshot(observation: Observation, snapshot: Snapshot) -> None:
    if observation.status is not Status.RECEIVED:
        raise _malformed("a snapshot tells what was received, no other status")
    if not 0 <= snapshot.first < snapshot.stop <= MAX_OFFSET:
        raise _malformed("the snapshot's range is out of bounds")
    if not 0 <= snapshot.at_ms <= _AT_MS_MAX:
        raise _malformed("at is not in the years 1970 to 9999")
    runs = observation.runs
    if runs and not (snapshot.first <= runs[0][0] and runs[-1][1] <= snapshot.stop):
        raise _malformed("the snapshot has offsets outside of its range")
    _check_doubled(runs, snapshot.doubled)
    levels = (runs, *snapshot.doubled)
    if not sum(stop - first for level in levels for first, stop in level) <= snapshot.rows <= MAX_OFFSET:
        raise _malformed("the snapshot has fewer rows than offsets, or than it says are doubled")


def _check_doubled(runs: Runs, levels: tuple[Runs, ...]) -> None:
    if len(levels) > DOUBLED_MAX:
        raise _malformed(f"doubled has {len(levels)} levels, more than {DOUBLED_MAX}")
    if (count := sum(map(len, levels))) > RUNS_MAX:
        raise _too_many_runs(count)
    below = OffsetSet(runs) if levels else None
    for level in levels:
        _check_runs(level)
        here = OffsetSet(level)
        if not here or (below is not None and here - below):
            raise _malformed("a level of doubled is empty, or has what the one before it has not")
        below = here


def _malformed(detail: str) -> Rejected:
    return Rejected(RejectReason.MALFORMED, detail)


def _too_many_runs(count: int) -> Rejected:
    return Rejected(RejectReason.TOO_LARGE, f"it has {count} runs, more than {RUNS_MAX}")


def _version(version: int | None) -> Rejected:
    return Rejected(RejectReason.UNSUPPORTED_VERSION, f"its version is {_short(version)}, this program reads {VERSION}")


def _short(value: object) -> str:
    """As in Python, cut: whatever somebody wrote ends up in a log line."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer of more than 64 bits"
    text = repr(value[:_DETAIL_CHARS_MAX] if isinstance(value, str) else value)
    return text if len(text) <= _DETAIL_CHARS_MAX else text[:_DETAIL_CHARS_MAX] + "..."
