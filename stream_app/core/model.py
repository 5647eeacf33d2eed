"""The words that the rooms exchange: what the log said, what a sink said, what a look found, what a row shows.

Ranges are half-open ``(first, stop)`` everywhere inside the program, as Kafka's own high watermark and committed
offset are; the step to closed ranges is made once, where JSON is written. Times are integer milliseconds since the
epoch (``*_ms``). ``None`` means unknown, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgspec

Run = tuple[int, int]
"""Half-open range of offsets: first offset, one past the last."""
Runs = tuple[Run, ...]
"""Ascending, disjoint, non-touching runs."""
Epochs = tuple[tuple[int, int], ...]
"""Leader epochs, ascending, each with the first offset known to be of it (KIP-101)."""

CHUNK = 65_536
"""Offsets per chunk: the span of one Roaring container (https://roaringbitmap.org, format specification)."""
MAX_OFFSET = 2**63 - 1
"""Kafka's offsets are signed 64-bit integers."""
NO_TOPIC_ID = bytes(16)
"""What stands for a topic's id where brokers tell none: Kafka before 2.8, and some that speak its protocol."""
DOUBLED_MAX = 8
"""Rows beyond the first that a snapshot can name of one offset: of an offset with more than nine rows, nine are counted."""


class Absent(StrEnum):
    """Why an offset inside the log has no record."""

    TRANSACTION_MARKER = "transaction_marker"
    ABORTED = "aborted"
    COMPACTED = "compacted"


class Cause(StrEnum):
    """Why a gap is open."""

    NOT_RECEIVED = "not_received"
    EXPIRED = "expired"
    VANISHED = "vanished"
    UNREADABLE = "unreadable"
    LOG_HOLE = "log_hole"


class Reason(StrEnum):
    """Why a record that did not arrive is not counted as missing."""

    TOMBSTONE = "tombstone"
    QUARANTINED = "quarantined"
    COMPACTED = "compacted"
    ACKNOWLEDGED = "acknowledged"
    UNOBSERVED = "unobserved"
    TRUNCATED = "truncated"


class Status(StrEnum):
    """What an observation says of its offsets."""

    RECEIVED = "received"
    QUARANTINED = "quarantined"
    UNOBSERVED = "unobserved"
    ACKNOWLEDGED = "acknowledged"


class Timed(NamedTuple):
    """Records of a log whose times lie in one minute, from ``first`` up to where the next one begins."""

    first: int
    """Offset of the first of these records. What holds no record, or none with a time of its own, belongs to the records before it."""
    minute: int | None
    """Minutes since the epoch; None: the records have no time, or one too old to be counted by."""
    low_ms: int = 0
    high_ms: int = 0
    """Lowest and highest record time; of no minute: not kept."""


@dataclass(frozen=True, slots=True)
class LogRead:
    """One answer of the log reader for one partition; says something about each offset of ``[position, next)``.

    ``records``, the runs in ``absent``, ``holes``, ``unreadable`` and ``unread`` are disjoint and together cover
    exactly ``[position, next)``.
    """

    position: int
    """The offset this answer follows: the ledger takes it only if its own ``log.read`` is equal."""
    next: int
    """First offset not covered."""
    topic_id: bytes
    """16 bytes (KIP-516); 16 zero bytes where the broker gives none."""
    records: Runs = ()
    absent: dict[Absent, Runs] = field(default_factory=dict)
    """``transaction_marker`` and ``aborted`` only: what a hole is, the ledger decides by the topic's policy."""
    holes: Runs = ()
    """Offsets in no batch, or in a batch that holds fewer records than its range: compacted, or a hole in the log."""
    unreadable: Runs = ()
    """Offsets of batches whose CRC is wrong, twice, on two connections."""
    unread: Runs = ()
    """Offsets that retention or delete-records removed before the reader got to them."""
    log_start: int = 0
    """Log start offset as of this answer."""
    high_watermark: int = 0
    last_stable: int = 0
    """Last stable offset; equal to the high watermark under read_uncommitted."""
    leader_epoch: int = -1
    """Partition leader epoch of the last batch covered; -1 where there is none."""
    epochs: Epochs = ()
    """The leader epochs of the batches covered."""
    min_timestamp_ms: int | None = None
    """Lowest record time of the records covered, as batch headers tell it; None without records."""
    max_timestamp_ms: int | None = None
    minutes: tuple[Timed, ...] = ()
    """The records covered by minute of their time, ascending; empty where nothing is known of it, or without records."""
    size: int = 0
    """Bytes read for this answer."""


@dataclass(frozen=True, slots=True)
class LogEnds:
    """The ends of a log, asked afresh."""

    log_start: int
    high_watermark: int
    last_stable: int


@dataclass(frozen=True, slots=True)
class Look:
    """What a second look at ``runs`` found in Kafka, on a fresh connection.

    Every offset of ``runs`` below ``upto`` is expired, a hole, unreadable, or still there as a record.
    """

    upto: int
    """The look got this far: offsets at or above it were not looked at (bounded work)."""
    log_start: int
    """Offsets below it are expired."""
    holes: Runs = ()
    """In no batch any more, at or above the log start."""
    unreadable: Runs = ()
    tombstones: Runs = ()
    """Records with a null value."""
    timestamps: dict[int, int] = field(default_factory=dict)
    """Offset to record time (ms) for the first, the last and the earliest record of each run that is still there; where a time was
    asked for, of each part of it that is older or not."""
    beside: dict[int, int] = field(default_factory=dict)
    """The same for the offsets just before and just behind each run, where they hold a record that was read."""
    older: Runs = ()
    """Records of before the time that was asked for, and those without a time; none where no time was."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An observation that states all that a sink has in ``[first, stop)``."""

    first: int
    stop: int
    rows: int
    at_ms: int
    """Start of the query."""
    doubled: tuple[Runs, ...] = ()
    """Offsets with at least two rows, three, ..., each level within the one before it; at most :data:`DOUBLED_MAX` of them."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One accepted observation; see contract, section 4. Carries what was said, not when the broker got it."""

    sink: str
    runs: Runs
    status: Status = Status.RECEIVED
    claim: int | None = None
    reason: str | None = None
    source: str | None = None
    sequence: int | None = None
    topic_id: bytes | None = None
    by: str | None = None
    undo: bool = False
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """An order on the observations topic: forget a sink that stands in no configuration, and all that it said."""

    sink: str
    by: str


@dataclass(frozen=True, slots=True)
class ObservationRead:
    """One record of the observations topic as the driver hands it on."""

    position: int
    """The position this record follows: one past the record before, or where the input was last sought to."""
    offset: int
    timestamp_ms: int
    """The broker's time (LogAppendTime)."""
    value: bytes | None


class Listed(msgspec.Struct, array_like=True):
    """The lowest runs of a set, as many as there is room for."""

    runs: list[Run] = []
    to: int | None = None
    """Nothing is told of the set at or above it; None: all of it is listed."""


class Row(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One row of ``partitions``: a (topic, partition, sink) as of the last flush. Names as in contract section 8."""

    topic: str
    partition: int
    sink: str
    configured: bool
    heard: bool
    """Whether anything was ever reported for this sink in this partition (the sink ``log``: always)."""
    stalled: bool = False
    catching_up: bool = False
    reason: str | None = None
    """Why the row's state is not ok, where the owner knows."""
    log_start_offset: int | None = None
    log_read_offset: int | None = None
    log_end_offset: int | None = None
    floor_offset: int | None = None
    horizon_offset: int | None = None
    records: int | None = None
    observed: int | None = None
    rows: int | None = None
    """Of a sink that is asked for all it has: rows found, each counted once, those that are gone again included."""
    missing: int | None = None
    missing_by_cause: dict[str, int] = msgspec.field(default_factory=dict)
    gaps: int | None = None
    duplicates: int | None = None
    lag: int | None = None
    absent: dict[str, int] = msgspec.field(default_factory=dict)
    explained: dict[str, int] = msgspec.field(default_factory=dict)
    sequence: int = 0
    complete_bound_ms: int | None = None
    """Complete through this time at most; None: nothing holds it back but the time when the log's end was last read."""
    complete_known: bool = False
    """False: complete through is unknown (nothing heard, or the log was never read to its end)."""
    lateness_ms: int = 0
    end_read_ms: int | None = None
    """When the log's end was last read, as of the flush; the worker's heartbeat carries later ones."""
    oldest_gap_opened_at_ms: int | None = None
    expires_at_ms: int | None = None
    checked_at_ms: int | None = None
    settled_offset: int | None = None
    """All below it is judged; None: nothing is yet. Of the log: how far it was read."""
    received: Listed = msgspec.field(default_factory=Listed)
    """Received at and above ``settled_offset``; below it, received is what is neither absent nor unread and in no gap."""
    unread: Listed = msgspec.field(default_factory=Listed)
    compacted: Listed = msgspec.field(default_factory=Listed)
    """Of the log: the holes that were taken for compaction's."""
    ever_compacted: bool | None = None
    """Of the log: whether cleanup.policy was ``compact`` at any time since first sight; None: unknown."""
    pages: int = 0
    """Records of gaps that stand on the status topic for this row; those of higher numbers are left over from an earlier owner."""
    updated_at_ms: int
    incarnation: str
    """Topic id, base64 as Kafka's tools print it."""
    unknown: str | None = None
    """Why nothing can be said of the sink here, where its checks have failed for long enough."""
    topic_partitions: int = 0
    """How many partitions the topic had when this one was first seen; 0: not known."""
    last_stable_offset: int | None = None
    """None under read_uncommitted: it is not told then."""
    open_since_ms: int | None = None
    """Since when an open transaction has held the last stable offset where it is; None: none does, or it is not known."""


class Gap(msgspec.Struct, kw_only=True):
    """An open (or, where ``state`` says so, explained) gap as ``gaps`` lists it; half-open offsets."""

    first: int
    stop: int
    count: int
    cause: str
    """A cause of open gaps, or the reason of an explained one."""
    open: bool = True
    opened_at_ms: int | None = None
    first_timestamp_ms: int | None = None
    last_timestamp_ms: int | None = None
    expires_at_ms: int | None = None
    sequence: int | None = None
    """Sequence of the event that opened it."""
    minute: int | None = None
    """Of the first record's time, in minutes since the epoch; None: not known, or more than a day ago."""
    before_timestamp_ms: int | None = None
    """Time of the record at the offset before ``first``, where it is known."""
    next_offset: int | None = None
    """The first record behind it that the sink has; None: there is none, or it is not known yet."""
    next_timestamp_ms: int | None = None


class StatusRecord(msgspec.Struct, kw_only=True, tag_field="kind", tag="partition"):
    """Status topic, key ``partition/<topic>/<partition>``: rows of every sink, written in the flush's transaction."""

    v: int = 1
    topic: str
    partition: int
    worker: str
    rows: list[Row]
    copied: dict[str, int] = msgspec.field(default_factory=dict)
    """How far partitions of topics of copies were read and written down: ``<sink>/topic:<topic>/<partition>@<topic id>`` -> offset."""


class GapsRecord(msgspec.Struct, kw_only=True, tag_field="kind", tag="gaps"):
    """Status topic, key ``gaps/<topic>/<partition>/<sink>/<block>``: a page of the list; a tombstone empties it.

    Pages are counted from 0; the row says how many there are.
    """

    v: int = 1
    topic: str
    partition: int
    sink: str
    block: int
    gaps: list[Gap]


class MinuteRow(msgspec.Struct, array_like=True):
    """What a sink has, and lacks, of the records of one minute of record time in one partition."""

    minute: int
    """Minutes since the epoch."""
    received: int
    """Records received, each counted once."""
    duplicates: int
    first: int | None
    last: int | None
    """Lowest and highest offset received; None: nothing was."""
    missing: int
    """Records that the sink lacks and should have: open, or accepted as lost."""
    open: int
    explained: int
    """Records that it lacks for any other reason."""
    low_ms: int
    high_ms: int
    """Lowest and highest time of the minute's records, received or not."""


class MinutesRecord(msgspec.Struct, kw_only=True, tag_field="kind", tag="minutes"):
    """Status topic, key ``minutes/<topic>/<partition>/<sink>/<block>``: ten minutes of record time; a tombstone: nothing there."""

    v: int = 1
    topic: str
    partition: int
    sink: str
    block: int
    """Minutes since the epoch, divided by ten."""
    minutes: list[MinuteRow]


class WorkerRecord(msgspec.Struct, kw_only=True, tag_field="kind", tag="worker"):
    """Status topic, key ``worker/<instance>``: a sign of life every second, not transactional."""

    v: int = 1
    worker: str
    at_ms: int
    session_timeout_ms: int
    stopped: bool = False
    checked: dict[str, int] = msgspec.field(default_factory=dict)
    """``<topic>/<partition>`` -> when the log's end was last read with nothing left to flush (ms), for partitions this worker owns."""
    flushed: dict[str, int] = msgspec.field(default_factory=dict)
    """``<topic>/<partition>`` -> ``updated_at_ms`` of the rows that it flushed last: what ``checked`` speaks of."""
    topics: dict[str, int] = msgspec.field(default_factory=dict)
    """Watched topics that exist -> their number of partitions."""


def other_topic(known: bytes, told: bytes) -> bool:
    """Whether these are ids of two topics. Where brokers told none, or tell none any more, nothing speaks for another one."""
    return NO_TOPIC_ID not in (known, told) and known != told
