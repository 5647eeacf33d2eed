"""The ledger as keys and values: what a flush writes to the changelog and a new owner reads back.

A key is: partition (4 bytes, big-endian; Faust's store maps a key to one partition), format version (1 byte), topic id (16
bytes: the incarnation), kind (1 byte), then for a sink its name, then for a set its number and the chunk, for what is kept by
minute the hour. So a flush writes only what changed, and nothing of one incarnation can be taken for another's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, TypeVar

import msgspec

from stream_app.core.checks import Checks
from stream_app.core.ledger import LOG_SINK, Ledger
from stream_app.core.log import LogState, Timeline
from stream_app.core.minutes import HOUR, MINUTE_MS, MinuteRun, Minutes
from stream_app.core.model import MAX_OFFSET, Absent, Cause, Reason
from stream_app.core.offsets import OffsetSet
from stream_app.core.openings import Opening
from stream_app.core.policy import Policy
from stream_app.core.samples import Sample
from stream_app.core.sink import EXPLAINED, SinkState
from stream_app.core.snapshots import Snapshots
from stream_app.core.sources import Sources

VERSION = 1
"""Of keys and values; a state of another version is refused, never guessed at."""
_PREFIX = struct.Struct(">IB16sB")
_CHUNK = struct.Struct(">BQ")
_HOUR = struct.Struct(">I")
"""Hours since the epoch and one; 0: of no minute."""
_HEAD, _SINK, _SINK_GAPS, _LOG_SET, _SINK_SET, _CLOCK, _MINUTES, _SINK_MINUTES = b"hsgltcmd"
_CLOCK_EVERY_MS = 60_000
"""An idle partition writes its clock this often; between, the signs of life on the status topic tell it."""

_KINDS = (_HEAD, _SINK, _SINK_GAPS, _LOG_SET, _SINK_SET, _CLOCK, _MINUTES, _SINK_MINUTES)

Changes = list[tuple[bytes, bytes | None]]


Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_OFFSET)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class StateError(ValueError):
    """Stored state that this version can't read."""


class Head(msgspec.Struct, array_like=True):
    """The head of a partition's state: what fences the inputs, and the log's numbers."""

    v: int
    birth: str
    observed_to: Offset
    observations_id: bytes
    broker_ms: int | None
    origin: Offset
    seen_end: Offset
    start: Offset
    read: Offset
    end: Offset
    last_stable: Offset
    leader_epoch: int
    ever_compacted: bool | None
    records: Count
    absent_counts: dict[Absent, Count]
    unread_held_ms: int | None
    latest_ms: int | None
    timeline_starts: list[Offset]
    timeline_lowest: list[int]
    forgotten: Offset
    epochs: tuple[tuple[Count, Offset], ...]
    open_since_ms: int | None
    partitions: Count
    unnamed_to: Offset
    reborn: bool
    mirrored: dict[str, tuple[Offset, Count, bytes]]
    dropped: dict[str, Count]


class SnapshotsHead(msgspec.Struct, array_like=True):
    """What a sink that makes snapshots has beside its sets."""

    last_ms: int | None
    maker: str | None
    agreed_to: Offset
    older_ms: int
    newer_ms: int
    sampled_ms: list[int]
    """By sample of the horizon: its time by the clock of the snapshots."""
    kept_from_ms: int | None = None


class SinkHead(msgspec.Struct, array_like=True):
    """All of one sink but its sets."""

    v: int
    configured: bool
    heard: bool
    floor: Offset | None
    settled: Offset | None
    lowest: Offset | None
    highest: Offset | None
    claim: Offset | None
    samples: list[tuple[int, int, Offset]]
    sources: dict[str, int]
    sequence: Count
    observed: Count
    duplicates: Count
    absent_observed: Count
    stalled: bool
    doubted_to: Offset
    claims: dict[str, Offset] = {}
    behind: tuple[str, Offset] | None = None
    awaited: Offset | None = None
    unknown: dict[str, str] = {}
    silent_ms: int | None = None
    snapshots: SnapshotsHead | None = None


class SinkGaps(msgspec.Struct, array_like=True):
    """What listings need of a sink's open gaps; apart from its head, since it is larger and changes less often."""

    v: int
    openings: list[tuple[Count, Cause, Offset, Offset, int, int | None]]
    stamps: list[tuple[Offset, int]]


class Clock(msgspec.Struct, array_like=True):
    """What moves with time alone: written with other changes, or once in a while."""

    v: int
    end_read_ms: int | None
    complete_ms: dict[str, int | None]


class LogMinutes(msgspec.Struct, array_like=True):
    """The runs of one hour of record time, by column: they are small numbers so."""

    v: int
    firsts: list[Offset]
    """The first one, then the distance from one to the next."""
    minutes: list[Annotated[int, msgspec.Meta(ge=0, lt=HOUR)]]
    """Of the hour."""
    lows: list[int]
    highs: list[int]
    """Times, from the beginning of the minute on (ms)."""
    held: dict[int, tuple[Count, Count]]
    """By number of the run, where the log has forgotten which offsets hold records: how many do, and how many at its end don't."""


class SinkMinutes(msgspec.Struct, array_like=True):
    """What one sink has of one hour of record time beside its sets."""

    v: int
    doubled: list[tuple[Count, Count]]
    """Minutes since the epoch, and duplicates."""


_Versioned = TypeVar("_Versioned", Head, SinkHead, SinkGaps, Clock, LogMinutes, SinkMinutes)


def _log_sets(log: LogState) -> list[OffsetSet]:
    """The log's sets, by their number in keys: never reorder."""
    causes = (Absent.TRANSACTION_MARKER, Absent.ABORTED, Absent.COMPACTED)
    return [*(log.absent[cause] for cause in causes), log.holes, log.unreadable, log.unread]


def _sink_sets(sink: SinkState) -> list[OffsetSet]:
    """A sink's sets, by their number in keys: never reorder."""
    causes = (Cause.NOT_RECEIVED, Cause.EXPIRED, Cause.VANISHED, Cause.UNREADABLE, Cause.LOG_HOLE)
    return [
        sink.received,
        *(sink.open[cause] for cause in causes),
        *(sink.explained[reason] for reason in EXPLAINED),
        *(sink.acknowledged[cause] for cause in causes),
        sink.unread,
        sink.untold[Reason.QUARANTINED],
        sink.untold[Reason.UNOBSERVED],
        sink.untold_duplicates[0],
        *sink.again,
        sink.again_told,
        sink.snapshots.older,
        sink.snapshots.newer,
        *sink.snapshots.doubled,
        sink.snapshots.absent,
        *sink.untold_duplicates[1:],
    ]


def name_topic(ledger: Ledger, topic_id: bytes) -> None:
    """Brokers tell an id of the topic that they did not tell before: it is the same topic, and its state is written anew under the id."""
    ledger.log.topic_id = topic_id
    ledger.log.minutes.touch()
    for offsets in _log_sets(ledger.log):
        offsets.touch()
    for sink in ledger.sinks.values():
        sink.doubled.touch()
        for offsets in _sink_sets(sink):
            offsets.touch()


class StateCodec:
    """Turns one partition's ledger into changed keys and back; remembers what is stored, so unchanged values are not sent."""

    def __init__(self, partition: int) -> None:
        """For one partition; make a new one at every take-over."""
        self.partition = partition
        self._stored: dict[bytes, int] = {}
        self._sinks: dict[str, SinkState] = {}
        """Whose keys are stored."""
        self._clock_ms = 0

    def changes(self, ledger: Ledger, force: bool = False) -> Changes:
        """Keys and values that differ from what was stored; None: the key is gone. Marks them as stored.

        What moves with time alone is left out when nothing else changed (unless ``force``, or it is a minute old).
        """
        out: Changes = []
        topic_id = ledger.log.topic_id
        for key in [key for key in self._stored if _PREFIX.unpack_from(key)[2] != topic_id]:
            del self._stored[key]
            out.append((key, None))
        self._drop_forgotten(out, ledger)
        self._put(out, self._key(topic_id, _HEAD), msgspec.msgpack.encode(_head(ledger)))
        self._put_sets(out, self._key(topic_id, _LOG_SET), _log_sets(ledger.log))
        for hour, runs in ledger.log.minutes.take_changes().items():
            value = msgspec.msgpack.encode(_log_minutes(hour, runs)) if runs else None
            self._put(out, self._key(topic_id, _MINUTES) + _HOUR.pack(hour + 1), value)
        for name, sink in ledger.sinks.items():
            self._put(out, self._key(topic_id, _SINK, name), msgspec.msgpack.encode(_sink_head(sink)))
            gaps = msgspec.msgpack.encode(_sink_gaps(sink)) if sink.openings or sink.stamps else None
            self._put(out, self._key(topic_id, _SINK_GAPS, name), gaps)
            self._put_sets(out, self._key(topic_id, _SINK_SET, name), _sink_sets(sink))
            for hour, counts in sink.doubled.take_changes().items():
                value = msgspec.msgpack.encode(SinkMinutes(VERSION, counts)) if counts else None
                self._put(out, self._key(topic_id, _SINK_MINUTES, name) + _HOUR.pack(hour + 1), value)
        read_ms = ledger.log.end_read_ms or 0
        if out or force or read_ms - self._clock_ms >= _CLOCK_EVERY_MS:
            self._clock_ms = read_ms
            clock = Clock(VERSION, ledger.log.end_read_ms, {name: sink.complete_ms for name, sink in ledger.sinks.items()})
            self._put(out, self._key(topic_id, _CLOCK), msgspec.msgpack.encode(clock))
        return out

    def _drop_forgotten(self, out: Changes, ledger: Ledger) -> None:
        """A sink that was forgotten leaves nothing behind, even if another one has its name since."""
        gone = {name for name, sink in self._sinks.items() if ledger.sinks.get(name) is not sink}
        self._sinks = dict(ledger.sinks)
        if not gone:
            return
        for key in [*self._stored]:
            if _PREFIX.unpack_from(key)[3] in (_SINK, _SINK_GAPS, _SINK_SET, _SINK_MINUTES) and _name(key[_PREFIX.size :])[0] in gone:
                del self._stored[key]
                out.append((key, None))

    def size_bytes(self) -> int:
        """Bytes of all keys and values stored now."""
        return sum(len(key) + (size & 0xFFFFFFFF) for key, size in self._stored.items())

    def _key(self, topic_id: bytes, kind: int, name: str | None = None) -> bytes:
        key = _PREFIX.pack(self.partition, VERSION, topic_id, kind)
        if name is not None:
            encoded = name.encode()
            key += struct.pack(">H", len(encoded)) + encoded
        return key

    def _put(self, out: Changes, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self._stored.pop(key, None) is not None:
                out.append((key, None))
            return
        mark = hash(value) << 32 | len(value)
        if self._stored.get(key) != mark:
            self._stored[key] = mark
            out.append((key, value))

    def _put_sets(self, out: Changes, prefix: bytes, sets: list[OffsetSet]) -> None:
        for number, offsets in enumerate(sets):
            if offsets.dirty:
                for chunk, value in offsets.take_changes().items():
                    self._put(out, prefix + _CHUNK.pack(number, chunk + 1), value)

    def load(self, topic: str, items: Iterable[tuple[bytes, bytes]], policies: Mapping[str, Policy], now_ms: int) -> Ledger | None:
        """The ledger that these keys and values make; None where there are none. Raises StateError for what it can't read."""
        stored = {bytes(key): bytes(value) for key, value in items}
        if not stored:
            return None
        self._stored = {key: hash(value) << 32 | len(value) for key, value in stored.items()}
        try:
            return self._load(topic, stored, policies, now_ms)
        except (ValueError, struct.error, msgspec.MsgspecError) as exc:
            raise StateError(f"the state of {topic}/{self.partition} can't be read: {exc}") from exc

    def _load(self, topic: str, stored: Mapping[bytes, bytes], policies: Mapping[str, Policy], now_ms: int) -> Ledger:
        parts: dict[int, list[tuple[bytes, bytes]]] = {kind: [] for kind in _KINDS}
        topic_ids = set()
        for key, value in stored.items():
            partition, version, topic_id, kind = _PREFIX.unpack_from(key)
            if version != VERSION:
                raise StateError(f"it is of version {version}, this program reads {VERSION}")
            if partition != self.partition or kind not in parts:
                raise StateError(f"key {key.hex()} has no place in it")
            topic_ids.add(topic_id)
            parts[kind].append((key[_PREFIX.size :], value))
        if len(topic_ids) != 1 or len(parts[_HEAD]) != 1:
            raise StateError(f"it has {len(parts[_HEAD])} heads and speaks of {len(topic_ids)} incarnations")
        head = _decode(parts[_HEAD][0][1], Head)
        log = _log(topic_ids.pop(), head)
        sinks = _load_sinks(parts)
        for rest, value in parts[_LOG_SET]:
            _load_set(_log_sets(log), rest, value)
        log.minutes = _load_minutes(parts[_MINUTES])
        for _, value in parts[_CLOCK]:
            clock = _decode(value, Clock)
            log.end_read_ms = clock.end_read_ms
            for name, ms in clock.complete_ms.items():
                _one(sinks, name).complete_ms = ms
        known = {name: sink.policy for name, sink in sinks.items() if name != LOG_SINK and sink.policy.configured}
        heard = (head.observed_to, head.observations_id, head.broker_ms)
        ledger = Ledger(topic, self.partition, head.birth, log, known, sinks, *heard)
        ledger.partitions, ledger.unnamed_to = head.partitions, head.unnamed_to
        ledger.reborn, ledger.mirrored = head.reborn, head.mirrored
        ledger.dropped = head.dropped
        self._sinks = dict(sinks)
        ledger.configure(policies, now_ms)
        return ledger


def _load_sinks(parts: Mapping[int, list[tuple[bytes, bytes]]]) -> dict[str, SinkState]:
    sinks: dict[str, SinkState] = {}
    for rest, value in parts[_SINK]:
        name, _ = _name(rest)
        sinks[name] = _sink(name, _decode(value, SinkHead))
    for rest, value in parts[_SINK_GAPS]:
        name, _ = _name(rest)
        sink, gaps = _one(sinks, name), _decode(value, SinkGaps)
        sink.openings, sink.stamps = [Opening(*opening) for opening in gaps.openings], dict(gaps.stamps)
    for rest, value in parts[_SINK_MINUTES]:
        name, _ = _name(rest)
        counts = _one(sinks, name).doubled.counts
        counts.update(_decode(value, SinkMinutes).doubled)
    for rest, value in parts[_SINK_SET]:
        name, rest = _name(rest)
        _load_set(_sink_sets(_one(sinks, name)), rest, value)
    return sinks


def _log_minutes(hour: int, runs: Sequence[MinuteRun]) -> LogMinutes:
    starts_ms = [0 if run.minute is None else run.minute * MINUTE_MS for run in runs]
    return LogMinutes(
        VERSION,
        [run.first - before for run, before in zip(runs, [0, *(run.first for run in runs)], strict=False)],
        [0 if run.minute is None else run.minute - hour * HOUR for run in runs],
        [run.low_ms - start_ms for run, start_ms in zip(runs, starts_ms, strict=True)],
        [run.high_ms - start_ms for run, start_ms in zip(runs, starts_ms, strict=True)],
        {number: (run.held, run.tail) for number, run in enumerate(runs) if run.held is not None},
    )


def _load_minutes(parts: Iterable[tuple[bytes, bytes]]) -> Minutes:
    minutes = Minutes([run for rest, value in parts for run in _minute_runs(rest, _decode(value, LogMinutes))])
    firsts = [run.first for run in minutes.runs]
    if any(one >= other for one, other in pairwise(firsts)) or (firsts and firsts[-1] > MAX_OFFSET):
        raise StateError("two minutes begin at one offset, or one beyond all offsets")
    return minutes


def _minute_runs(rest: bytes, stored: LogMinutes) -> Iterator[MinuteRun]:
    (hour,) = _HOUR.unpack(rest)
    first = 0
    for number, (step, of_hour, low, high) in enumerate(zip(stored.firsts, stored.minutes, stored.lows, stored.highs, strict=True)):
        minute = None if hour == 0 else (hour - 1) * HOUR + of_hour
        start_ms = 0 if minute is None else minute * MINUTE_MS
        held, tail = stored.held.get(number, (None, 0))
        first += step
        yield MinuteRun(first, minute, start_ms + low, start_ms + high, held, tail)


def _decode(value: bytes, kind: type[_Versioned]) -> _Versioned:
    decoded = msgspec.msgpack.decode(value, type=kind)
    if decoded.v != VERSION:
        raise StateError(f"it is of version {decoded.v}, this program reads {VERSION}")
    return decoded


def _one(sinks: Mapping[str, SinkState], name: str) -> SinkState:
    sink = sinks.get(name)
    if sink is None:
        raise StateError(f"it speaks of sink {name!r}, which has no head")
    return sink


def _name(rest: bytes) -> tuple[str, bytes]:
    (size,) = struct.unpack_from(">H", rest)
    if len(rest) < 2 + size:
        raise StateError("a sink's name is cut short")
    return rest[2 : 2 + size].decode(), rest[2 + size :]


def _load_set(sets: list[OffsetSet], rest: bytes, value: bytes) -> None:
    number, chunk = _CHUNK.unpack(rest)
    if number >= len(sets):
        raise StateError(f"it has a set {number} that this version does not know")
    sets[number].load(chunk - 1, value)


def _head(ledger: Ledger) -> Head:
    log = ledger.log
    return Head(
        VERSION,
        ledger.birth,
        ledger.observed_to,
        ledger.observations_id,
        ledger.broker_ms,
        log.origin,
        log.seen_end,
        log.start,
        log.read,
        log.end,
        log.last_stable,
        log.leader_epoch,
        log.ever_compacted,
        log.records,
        log.absent_counts,
        log.unread_held_ms,
        log.latest_ms,
        log.timeline.starts,
        log.timeline.lowest,
        log.forgotten,
        log.epochs,
        log.open_since_ms,
        ledger.partitions,
        ledger.unnamed_to,
        ledger.reborn,
        ledger.mirrored,
        ledger.dropped,
    )


def _log(topic_id: bytes, head: Head) -> LogState:
    if len(head.timeline_starts) != len(head.timeline_lowest):
        raise StateError("its timeline has ends without beginnings")
    return LogState(
        topic_id,
        head.origin,
        head.seen_end,
        head.start,
        head.read,
        head.end,
        head.last_stable,
        head.leader_epoch,
        ever_compacted=head.ever_compacted,
        records=head.records,
        absent_counts=head.absent_counts,
        unread_held_ms=head.unread_held_ms,
        latest_ms=head.latest_ms,
        timeline=Timeline(head.timeline_starts, head.timeline_lowest),
        forgotten=head.forgotten,
        epochs=head.epochs,
        open_since_ms=head.open_since_ms,
    )


def _sink_head(sink: SinkState) -> SinkHead:
    return SinkHead(
        VERSION,
        sink.policy.configured,
        sink.heard,
        sink.floor,
        sink.settled,
        sink.lowest,
        sink.highest,
        sink.claim,
        [(s.broker_ms, s.worker_ms, s.horizon) for s in sink.samples],
        sink.sources.sequences,
        sink.sequence,
        sink.observed,
        sink.duplicates,
        sink.absent_observed,
        sink.stalled,
        sink.doubted_to,
        sink.sources.claims,
        sink.sources.behind,
        sink.awaited,
        sink.checks.unknown,
        sink.silent_ms,
        _snapshots_head(sink),
    )


def _snapshots_head(sink: SinkState) -> SnapshotsHead | None:
    known = sink.snapshots
    if known.last_ms is None and not any(sample.at_ms for sample in sink.samples):
        return None
    times = [sample.at_ms for sample in sink.samples]
    return SnapshotsHead(known.last_ms, known.maker, known.agreed_to, known.older_ms, known.newer_ms, times, known.kept_from_ms)


def _sink_gaps(sink: SinkState) -> SinkGaps:
    openings = [(o.sequence, o.cause, o.first, o.stop, o.opened_at_ms, o.lowest_ms) for o in sink.openings]
    return SinkGaps(VERSION, openings, sorted(sink.stamps.items()))


def _sink(name: str, head: SinkHead) -> SinkState:
    sink = SinkState(
        Policy(name) if head.configured else Policy.unconfigured(name),
        heard=head.heard,
        floor=head.floor,
        settled=head.settled,
        lowest=head.lowest,
        highest=head.highest,
        claim=head.claim,
        samples=[Sample(*sample) for sample in head.samples],
        sources=Sources(head.sources, head.claims, head.behind),
        sequence=head.sequence,
        observed=head.observed,
        duplicates=head.duplicates,
        absent_observed=head.absent_observed,
        stalled=head.stalled,
        doubted_to=head.doubted_to,
        awaited=head.awaited,
        checks=Checks(head.unknown),
        silent_ms=head.silent_ms,
    )
    if head.snapshots is not None:
        _load_snapshots(sink, head.snapshots)
    return sink


def _load_snapshots(sink: SinkState, head: SnapshotsHead) -> None:
    if len(head.sampled_ms) != len(sink.samples):
        raise StateError(f"sink {sink.policy.name!r} has {len(sink.samples)} horizons and {len(head.sampled_ms)} times of them")
    for sample, at_ms in zip(sink.samples, head.sampled_ms, strict=True):
        sample.at_ms = at_ms
    sink.snapshots = Snapshots(head.last_ms, head.maker, head.agreed_to, older_ms=head.older_ms, newer_ms=head.newer_ms)
    sink.snapshots.kept_from_ms = head.kept_from_ms
