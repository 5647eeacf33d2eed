"""What a log holds at some offsets, batch by batch, asked afresh over connections of its own: what ``explain`` shows.

Bounded: so many bytes are fetched, so many records are listed. What was not looked at for that reason says so.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from stream_app.core.model import LogEnds
from stream_app.kafka.batches import ABORT, COMMIT, AbortedTransactions, Batch, control_type, details_of, whole_batches
from stream_app.kafka.cluster import MOVED, Cluster, fetch, refusal
from stream_app.kafka.connection import Connection, KafkaSettings
from stream_app.kafka.failures import BrokerError, KafkaError, UnreachableError
from stream_app.kafka.protocol import Api, ErrorCode, Isolation, Leader, Section, Want
from stream_app.kafka.records import CODEC_MASK, CONTROL, TRANSACTIONAL, Detail, SurplusError, UndecodableError
from stream_app.kafka.wire import NO_UUID

MAX_BYTES = 32 << 20
"""Bytes fetched for one question: a second or two of decoding."""
RECORDS_MAX = 1_000
"""Records listed."""
KEY_BYTES_MAX = 1 << 20
"""Bytes of keys listed; a key may be as large as a record."""
FETCH_BYTES = (1 << 16, 4 << 20)
"""Smallest and largest fetch; a batch that is larger comes whole anyway (KIP-74)."""
BYTES_PER_OFFSET = 1024
RETRY_S = 0.1

_PRODUCER = struct.Struct(">hi")
_PRODUCER_AT = 51
"""Producer epoch and base sequence within the header of a v2 batch (``DefaultRecordBatch.java``)."""
_LEGACY_ATTRIBUTES_AT = 17
_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_MARKERS = {ABORT: "abort", COMMIT: "commit"}


class Found(StrEnum):
    """What is at an offset."""

    RECORD = "record"
    MARKER = "marker"
    ABORTED = "aborted"
    HOLE = "hole"
    """In no batch, or in a batch that does not hold it any more."""
    UNREADABLE = "unreadable"
    UNDECIDED = "undecided"
    """At or above the last stable offset, for a reader of committed records."""
    BELOW = "below"
    """Below the log start."""
    BEYOND = "beyond"
    """At or beyond the high watermark."""
    UNSEEN = "unseen"
    """Not looked at."""


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """The header of a batch; None is what does not apply."""

    base: int
    last: int
    """Last offset that the batch covers."""
    leader_epoch: int | None
    producer_id: int | None
    producer_epoch: int | None
    base_sequence: int | None
    transactional: bool
    control: bool
    marker: str | None
    """``commit``, ``abort`` or ``type 5`` of a control batch; None of others, and where the cleaner emptied it."""
    compression: str
    records: int
    """How many it claims to hold."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring offsets of one batch, or of none, of which the same was found."""

    first: int
    stop: int
    found: Found
    batch: BatchFacts | None = None
    why: str | None = None
    """More about it, in a clause: of what is unreadable or was not looked at."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found at ``[first, stop)``; the pieces are ascending and cover exactly that."""

    topic_id: bytes
    isolation: Isolation
    ends: LogEnds
    pieces: tuple[Piece, ...]
    records: tuple[Detail, ...]
    """Of the pieces that are records, ascending."""
    listed_to: int | None
    """Records at or above it are there but not listed; None: all are."""


async def examine(
    kafka: KafkaSettings,
    topic: str,
    partition: int,
    isolation: Isolation,
    first: int,
    stop: int,
    *,
    timeout: float,  # noqa: ASYNC109 - the caller's bound for the whole question, part of the result's meaning
    caps: Mapping[Api, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Evidence:
    """What is at ``[first, stop)``, which is not empty, now.

    Work ends after ``max_bytes`` fetched or ``timeout`` seconds; the rest is ``UNSEEN`` then. ``caps`` lowers the protocol
    versions used, per API.

    Raises:
        KafkaError: nothing was found out; brokers out of reach, or no such topic or partition.
    """
    cluster = Cluster(kafka, caps=caps)
    examination = _Examination(cluster, topic, partition, isolation, first, stop, max_bytes)
    failure: KafkaError = UnreachableError(f"{topic}/{partition} was not looked at within {timeout:g} s; see whether its leader is up")
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await examination.run()
                except UnreachableError as error:
                    failure = error
                except BrokerError as error:
                    if error.code not in MOVED or error.code == ErrorCode.UNKNOWN_TOPIC_ID:
                        raise
                    failure = error
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        if examination.ends is None:
            raise failure from None
        return examination.evidence(f"it was not looked at within {timeout:g} s: {failure}")
    finally:
        await cluster.close()


class _Examination:
    """One question under way: goes on where it was when a leader is lost."""

    def __init__(self, cluster: Cluster, topic: str, partition: int, isolation: Isolation, first: int, stop: int, max_bytes: int) -> None:
        self._cluster, self._topic, self._partition, self._isolation = cluster, topic, partition, isolation
        self._first, self._stop = first, stop
        self._bytes, self._bytes_left = max_bytes, max_bytes
        self._topic_id = NO_UUID
        self._reading = Reading(first, stop)
        self._empty_at: int | None = None
        self.ends: LogEnds | None = None
        """As of the last answer; None: nothing is known yet."""

    async def run(self) -> Evidence:
        """Looks until all is looked at, or a bound is reached.

        Raises:
            KafkaError: the leader could not be asked, or no longer leads.
        """
        self._topic_id, leader = await self._cluster.identify(self._topic, self._partition, self._topic_id)
        await self._ask_ends(leader)
        await self._read(leader, self._isolation, decided=True)
        if self._isolation is Isolation.READ_COMMITTED:
            # A reader of committed records gets nothing from there on; which producer holds the end is worth knowing.
            await self._read(leader, Isolation.READ_UNCOMMITTED, decided=False)
        mebibytes = self._bytes / (1 << 20)
        return self.evidence(f"{mebibytes:g} MiB of the log were read before: ask for fewer offsets")

    async def _ask_ends(self, leader: Leader) -> None:
        told = await self._cluster.ends(self._topic, self._partition, leader)
        self._note(told.log_start, told.high_watermark, told.last_stable)

    async def _read(self, leader: Leader, isolation: Isolation, *, decided: bool) -> None:
        connection = await self._cluster.connection(leader.node)
        reading = self._reading
        while reading.at < min(self._stop, self._bound(decided)) and self._bytes_left > 0:
            want = Want(self._topic, self._topic_id, self._partition, reading.at, leader.epoch, -1, self._fetch_bytes())
            frame, sections = await fetch(connection, [want], isolation=isolation, max_wait_ms=0, max_bytes=want.max_bytes)
            try:
                section = next((one for one in sections if one.partition == self._partition), None)
                if section is None:
                    raise UnreachableError(f"broker {leader.node} left {self._topic}/{self._partition} out; it is asked again")
                if section.error == ErrorCode.OFFSET_OUT_OF_RANGE:
                    await self._ask_ends(leader)
                    await asyncio.sleep(RETRY_S)
                    continue
                if section.error:
                    raise refusal(section.error, f"fetch {self._topic}/{self._partition}")
                self._learn(section, isolation)
                self._bytes_left -= section.end - section.start
                before, bound = reading.at, self._bound(decided)
                whole = await _aside(partial(reading.take, frame.view, section, bound, decided))
            finally:
                frame.release()
            if not whole:
                connection = await self._renewed(leader)
            elif reading.at == before:
                # What the log lacks is known by the batch that follows, not by a broker's silence.
                if self._empty_at == before:
                    reading.leave_out(bound, "the broker gives nothing there, though its own end says that there is something")
                self._empty_at = before
                await asyncio.sleep(RETRY_S)

    def _bound(self, decided: bool) -> int:
        """Where this part of the look ends at the latest."""
        assert self.ends is not None
        committed = self._isolation is Isolation.READ_COMMITTED and decided
        return min(self.ends.last_stable, self.ends.high_watermark) if committed else self.ends.high_watermark

    def _learn(self, section: Section, isolation: Isolation) -> None:
        assert self.ends is not None
        stable = section.last_stable if isolation is Isolation.READ_COMMITTED else self.ends.last_stable
        self._note(section.log_start, section.high_watermark, stable)

    def _note(self, log_start: int, high_watermark: int, last_stable: int) -> None:
        start = max(log_start, self.ends.log_start if self.ends is not None else 0)  # it never goes back
        self.ends = LogEnds(start, high_watermark, last_stable)
        self._reading.pass_start(start)

    def _fetch_bytes(self) -> int:
        smallest, largest = FETCH_BYTES
        return min(max(smallest, (self._stop - self._reading.at) * BYTES_PER_OFFSET), largest)

    async def _renewed(self, leader: Leader) -> Connection:
        self._cluster.renew(leader.node)
        return await self._cluster.connection(leader.node)

    def evidence(self, why_unseen: str) -> Evidence:
        """What is known so far. What lies below the log start by now is that, whatever it was before."""
        ends, reading, first, stop = self.ends, self._reading, self._first, self._stop
        assert ends is not None
        start, beyond = min(max(ends.log_start, first), stop), max(min(ends.high_watermark, stop), first)
        pieces = [Piece(first, start, Found.BELOW)] if first < start else []
        pieces += [replace(one, first=max(one.first, start)) for one in reading.pieces if one.stop > start]
        at = pieces[-1].stop if pieces else first
        if at < beyond:
            pieces.append(Piece(at, beyond, Found.UNSEEN, why=why_unseen))
            at = beyond
        if at < stop:
            pieces.append(Piece(at, stop, Found.BEYOND))
        records = tuple(one for one in reading.records if one.offset >= start)
        return Evidence(self._topic_id, self._isolation, ends, tuple(pieces), records, reading.listed_to)


async def _aside(work: Callable[[], bool]) -> bool:
    """Decoding may take long: whoever else is served by this loop should not notice. Ends with the work, even if cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    finally:
        if not task.done():
            await asyncio.wait([task])


class Reading:
    """Answers to Fetch, one after the other, to pieces; pure."""

    def __init__(self, first: int, stop: int, *, records_max: int = RECORDS_MAX, key_bytes_max: int = KEY_BYTES_MAX) -> None:
        """Of ``[first, stop)``."""
        self.at = first
        """Everything below it was looked at."""
        self.pieces: list[Piece] = []
        self.records: list[Detail] = []
        self.listed_to: int | None = None
        self._stop = stop
        self._records_max, self._key_bytes_left = records_max, key_bytes_max
        self._condemned: int | None = None

    def pass_start(self, log_start: int) -> None:
        """Below the log start there is nothing to be looked at."""
        self.at = max(self.at, min(log_start, self._stop))

    def pass_over(self, stop: int) -> None:
        """There is no batch in ``[at, stop)``."""
        self._add(stop, Found.HOLE, None)

    def leave_out(self, stop: int, why: str) -> None:
        """Of ``[at, stop)`` nothing can be found out."""
        self._add(stop, Found.UNSEEN, None, why)

    def take(self, view: memoryview, section: Section, bound: int, decided: bool) -> bool:
        """Looks at the batches of one answer below ``bound``; False: one is damaged and must be fetched over a fresh connection first.

        ``decided``: whether a reader of this isolation level gets what is there.
        """
        batches = list(whole_batches(view, section.start, section.end))
        if not batches and section.end > section.start:
            return self._take_nonsense(bound)
        # The list of aborted transactions is relative to the answer, and covers whatever its batches hold of them.
        aborting = AbortedTransactions(section.aborted)
        follows = [*(one.base for one in batches[1:]), bound]
        for batch, following in zip(batches, follows, strict=False):
            if batch.base >= bound or self.at >= self._stop:
                if batch.magic >= 2:
                    self.pass_over(min(batch.base, bound))
                break
            in_transaction = batch.attributes & (TRANSACTIONAL | CONTROL) != 0
            aborted = in_transaction and aborting.covers(view, batch)
            last = batch.base if batch.magic < 2 else batch.base + max(batch.delta, 0)
            if last >= self.at and not self._take_batch(view, batch, last, max(following, batch.base + 1), aborted, decided):
                return False
        return True

    def _take_batch(self, view: memoryview, batch: Batch, last: int, follows: int, aborted: bool, decided: bool) -> bool:
        if batch.magic >= 2:
            self.pass_over(batch.base)
        try:
            details = details_of(view, batch) if batch.records or batch.magic < 2 else []
        except UndecodableError as why:
            if self._condemned != batch.base:
                self._condemned = batch.base
                return False
            # A damaged header may claim any length.
            facts, stop = _facts(view, batch, batch.base, last, batch.records), min(last + 1, follows)
            if not isinstance(why, SurplusError):
                self._add(stop, Found.UNREADABLE, facts, str(why))
                return True
            for offset, _, _ in why.records:
                if self.at <= offset < stop:
                    self._add(offset, Found.HOLE, facts)
                    self._add(offset + 1, Found.UNREADABLE, facts, str(why))
            self._add(stop, Found.HOLE, facts)
            return True
        details.sort(key=lambda one: one.offset)
        first = batch.base if batch.magic >= 2 else details[0].offset if details else batch.base
        facts = _facts(view, batch, first, last, batch.records if batch.magic >= 2 else len(details))
        self.pass_over(first)
        if not decided:
            self._add(last + 1, Found.UNDECIDED, facts)
        elif facts.control:
            self._add(last + 1, Found.MARKER, facts)
        else:
            self._add_records(details, last + 1, Found.ABORTED if aborted else Found.RECORD, facts)
        return True

    def _take_nonsense(self, bound: int) -> bool:
        """No batch can be told from the next: where this one ends is not known."""
        if self._condemned != self.at:
            self._condemned = self.at
            return False
        self.leave_out(bound, "what the broker sends there is no batch")
        return True

    def _add_records(self, details: Sequence[Detail], stop: int, found: Found, facts: BatchFacts) -> None:
        for one in details:
            if self.at <= one.offset < min(stop, self._stop):
                self._add(one.offset, Found.HOLE, facts)
                self._add(one.offset + 1, found, facts)
                if found is Found.RECORD:
                    self._list(one)
        self._add(stop, Found.HOLE, facts)

    def _list(self, record: Detail) -> None:
        if self.listed_to is not None:
            return
        if len(self.records) >= self._records_max or (self.records and len(record.key or b"") > self._key_bytes_left):
            self.listed_to = record.offset
            return
        self._key_bytes_left -= len(record.key or b"")
        self.records.append(record)

    def _add(self, stop: int, found: Found, facts: BatchFacts | None, why: str | None = None) -> None:
        """``[at, stop)`` is this; joined to the piece before it, if that is the same."""
        stop = min(stop, self._stop)
        if stop <= self.at:
            return
        last = self.pieces[-1] if self.pieces else None
        if last is not None and last.stop == self.at and (last.found, last.batch, last.why) == (found, facts, why):
            self.pieces[-1] = replace(last, stop=stop)
        else:
            self.pieces.append(Piece(self.at, stop, found, facts, why))
        self.at = stop


def _facts(view: memoryview, batch: Batch, first: int, last: int, records: int) -> BatchFacts:
    legacy = batch.magic < 2
    attributes = view[batch.at + _LEGACY_ATTRIBUTES_AT] if legacy else batch.attributes
    epoch, sequence = (-1, -1) if legacy else _PRODUCER.unpack_from(view, batch.at + _PRODUCER_AT)
    codec = attributes & CODEC_MASK
    control = not legacy and attributes & CONTROL != 0
    kind = control_type(view, batch) if control else None
    return BatchFacts(
        base=first,
        last=last,
        leader_epoch=_given(batch.epoch),
        producer_id=_given(batch.producer_id),
        producer_epoch=_given(epoch),
        base_sequence=_given(sequence),
        transactional=not legacy and attributes & TRANSACTIONAL != 0,
        control=control,
        marker=None if kind is None else _MARKERS.get(kind, f"type {kind}"),
        compression=_CODECS[codec] if codec < len(_CODECS) else f"codec {codec}",
        records=records,
    )


def _given(number: int) -> int | None:
    """None for -1, which Kafka writes where there is none."""
    return None if number < 0 else number
