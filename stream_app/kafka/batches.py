"""Record batches to runs of offsets: what a log holds, read off the headers.

The header of a v2 batch is 61 bytes (``DefaultRecordBatch.java``) and says which offsets the batch covers. Where it holds
as many records as offsets, which a broker makes sure of when it appends (``LogValidator.java``), no record is decoded. The
exceptions are batches that the cleaner thinned out, control batches, aborted transactions, the formats before v2, and damage.

Pure: bytes in, runs out. What was told so far stays valid when a later batch is damaged or cut off.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crc32c import crc32c

from stream_app.core.model import Run, Runs
from stream_app.kafka.columns import Stretch, hop, stretches
from stream_app.kafka.minutes import NEVER, MinuteRuns
from stream_app.kafka.records import (
    CODEC_MASK,
    CONTROL,
    CRC_FROM,
    HAS_DELETE_HORIZON,
    HEADER_SIZE,
    LOG_APPEND_TIME,
    OVERHEAD,
    TRANSACTIONAL,
    Detail,
    Record,
    SurplusError,
    UndecodableError,
    decode_batch,
    decode_details,
    decode_legacy,
    decode_legacy_details,
)

_HEADER = struct.Struct(">qiiBIhiqq14xi")
"""Base offset, length, partition leader epoch, magic, CRC, attributes, last offset delta, base and max timestamp, (producer id
and epoch and base sequence are skipped,) record count."""
_PRODUCER_ID = struct.Struct(">q")
_PRODUCER_ID_AT = 43
_BASE_AND_LENGTH = struct.Struct(">qi")
_MAGIC_AT = 16
_LEGACY_ATTRIBUTES_AT = 17
_LEGACY_MIN = 14
"""Length of the shortest message of format v0: CRC, magic, attributes, and two lengths."""
_CONTROL_KEY = struct.Struct(">hh")
ABORT, COMMIT = 0, 1
"""Types of the control records that end a transaction (``ControlRecordType.java``)."""
MANY = 1024
"""So many batches are looked at by columns; fewer are read faster one by one."""


class Batch(NamedTuple):
    """The fields of a v2 header, and where the batch lies."""

    at: int
    stop: int
    """Where the batch begins and ends in the answer."""
    base: int
    epoch: int
    magic: int
    """The format's version."""
    crc: int
    attributes: int
    delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    records: int
    """How many it claims to hold."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A batch that can't be used."""

    base: int
    why: str


def _header_at(view: memoryview, at: int) -> Batch:
    """The v2 batch whose header, whole, is at ``at``."""
    base, length, epoch, magic, crc, attributes, delta, base_time, max_time, count = _HEADER.unpack_from(view, at)
    (producer,) = _PRODUCER_ID.unpack_from(view, at + _PRODUCER_ID_AT)
    return Batch(at, at + OVERHEAD + length, base, epoch, magic, crc, attributes, delta, base_time, max_time, producer, count)


def add_run(runs: list[Run], first: int, stop: int) -> None:
    """Appends ``[first, stop)``, which lies at or above the end of the last run, joining them where they touch."""
    if first >= stop:
        return
    if runs and runs[-1][1] == first:
        runs[-1] = (runs[-1][0], stop)
    else:
        runs.append((first, stop))


def join_runs(left: Runs, right: Runs) -> Runs:
    """Both, where all of ``right`` lies above ``left``."""
    if left and right and left[-1][1] == right[0][0]:
        return (*left[:-1], (left[-1][0], right[0][1]), *right[1:])
    return left + right


class AbortedTransactions:
    """Which batches of an answer belong to aborted transactions, as Java decides it (``CompletedFetch.java``).

    The list in the answer is relative to the fetch: an abort marker may come without an entry and an entry without a marker.
    """

    def __init__(self, aborted: Iterable[tuple[int, int]]) -> None:
        """``aborted``: producer id and first offset of each, as the answer has them."""
        self._ahead = sorted(((first, producer) for producer, first in aborted), reverse=True)
        self._active: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._ahead or self._active)

    def touches(self, upto: int) -> bool:
        """Whether any batch that ends below offset ``upto``, of those not asked about yet, may be aborted."""
        return bool(self._active or (self._ahead and self._ahead[-1][0] < upto))

    def covers(self, view: memoryview, batch: Batch) -> bool:
        """Whether the records of ``batch`` are aborted; call it for each transactional or control batch, in offset order."""
        while self._ahead and self._ahead[-1][0] <= batch.base + batch.delta:
            self._active.add(self._ahead.pop()[1])
        if batch.producer_id not in self._active:
            return False
        if batch.attributes & CONTROL:
            # Its own ABORT ends it; a COMMIT seen on the way belongs to an earlier transaction.
            if control_type(view, batch) == ABORT:
                self._active.discard(batch.producer_id)
            return False
        return bool(batch.attributes & TRANSACTIONAL)

    def pass_marker(self, batch: Batch) -> None:
        """A control batch that can't be read ends what its producer has open: what it writes next is another transaction's."""
        while self._ahead and self._ahead[-1][0] <= batch.base:
            self._active.add(self._ahead.pop()[1])
        self._active.discard(batch.producer_id)


def control_type(view: memoryview, batch: Batch) -> int | None:
    """Type of a control batch; None for one that the cleaner emptied (KAFKA-7467)."""
    if batch.records < 1:
        return None
    # Length, attributes, time and offset deltas, key length: as control batches are written by the broker, each varint but
    # the time delta fits one byte; the key is a version and a type.
    at = batch.at + HEADER_SIZE + 2
    while at < batch.stop and view[at] & 0x80:
        at += 1
    at += 3
    if at + 4 > batch.stop:
        return None
    return int(_CONTROL_KEY.unpack_from(view, at)[1])


class BatchParser:
    """Reads the batches of one partition's part of an answer, a slice at a time; results are its attributes.

    ``records``, ``markers``, ``aborted``, ``holes`` and ``unreadable`` are disjoint, and together cover exactly
    ``[position, next)``. Nothing at or above ``bound`` is told. After the last :meth:`step`:

    * ``epoch`` is the leader epoch of the last batch, -1 where there is none; ``epochs`` each epoch and where it begins. Epochs
      never fall and never exceed the leader's: what a header says beyond that counts for nothing, ``odd_epoch`` is the first;
    * ``damage`` is a batch that can't be used: ``next`` is where it begins (or the position, if higher);
    * ``needed`` is the size in bytes of the batch at ``next`` where the answer holds only a part of it, else 0.
    """

    def __init__(
        self,
        view: memoryview,
        start: int,
        end: int,
        *,
        position: int,
        bound: int,
        aborted: Sequence[tuple[int, int]] = (),
        check_crcs: bool = True,
        condemned: int | None = None,
        minutes: MinuteRuns | None = None,
    ) -> None:
        """Looks at ``view[start:end]``, fetched from offset ``position``.

        ``bound``: high watermark, or last stable offset under read_committed. ``aborted``: as the answer has it.
        ``condemned``: base offset of a batch that was damaged before; damaged again it is unreadable, and reading goes on.
        ``minutes``: where the records' times are noted; None: somewhere.
        """
        self.next = position
        self.records: list[Run] = []
        self.markers: list[Run] = []
        self.aborted: list[Run] = []
        self.holes: list[Run] = []
        self.unreadable: list[Run] = []
        self.epoch = -1
        self.epochs: list[tuple[int, int]] = []
        self.odd_epoch: tuple[int, int] | None = None
        """Base offset and leader epoch of a batch whose epoch can't be right: it lies outside the CRC."""
        self.damage: Damage | None = None
        self.needed = 0
        self._view, self._at, self._end = view, start, end
        self._first = position  # where the run of records under way began
        self._bound = bound
        self._check = check_crcs
        self._condemned = condemned
        self._aborting = AbortedTransactions(aborted)
        # A transactional batch needs a second thought only where something was aborted.
        self._odd_bits = CONTROL | HAS_DELETE_HORIZON | (TRANSACTIONAL if self._aborting else 0)
        self.minutes = MinuteRuns() if minutes is None else minutes
        self._starts: list[int] = []
        self._stretches: Iterator[Stretch] = iter(())
        self._stretch: Stretch | None = None
        self._done = False
        self._epoch_low, self._epoch_high = -1, NEVER

    def expect_epochs(self, low: int, high: int) -> None:
        """``low``: epoch of the record before the position, ``high``: the leader's; -1 where unknown."""
        self._epoch_low, self._epoch_high = low, high if high >= 0 else NEVER

    @property
    def min_timestamp(self) -> int | None:
        """Lowest record time in ms, as the headers tell it; None: no record, or none has a time."""
        return self.minutes.min_timestamp

    @property
    def max_timestamp(self) -> int | None:
        """Highest record time in ms, likewise."""
        return self.minutes.max_timestamp

    def step(self, budget: int) -> bool:
        """Reads on for about ``budget`` batches (a record that must be decoded counts as one); True: all is read."""
        while budget > 0 and not self._done:
            part = self._next_stretch(budget)
            budget -= self._one_by_one(budget) if part is None else self._read(part)
        return self._done

    def _next_stretch(self, budget: int) -> Stretch | None:
        """The stretch of batches to go on with; None: too few are left to look at by columns, or are wanted."""
        if self._stretch is None or self._at >= self._stretch.stop:
            self._stretch = next(self._stretches, None)
        if self._stretch is None and budget >= MANY:
            self._starts = hop(self._view, self._at, self._end, budget)
            if len(self._starts) > MANY:
                self._stretches = stretches(self._view, self._starts, bound=self._bound, check_crcs=self._check)
                self._stretch = next(self._stretches, None)
        return self._stretch

    def _read(self, part: Stretch) -> int:
        """Reads on in a stretch, to its end where that can be done at once; returns what it cost."""
        left, minutes = part.batches, self.minutes
        if self._at != part.at:
            left = bisect_left(self._starts, part.stop) - bisect_left(self._starts, self._at)
        if not part.plain or (part.transactional and self._aborting.touches(part.upto)):
            return self._one_by_one(left)
        continues = self.epoch == part.epoch and _BASE_AND_LENGTH.unpack_from(self._view, self._at)[0] == self.next
        if not (continues and minutes.edge_low <= part.low and part.high < minutes.edge_high):
            # After the first one, which begins a minute, an epoch or comes after a hole, the rest goes on from there.
            return self._one_by_one(1 if self._at == part.at else left)
        self._at, self.next = part.stop, part.upto
        minutes.low, minutes.high = min(minutes.low, part.low), max(minutes.high, part.high)
        return left

    def _one_by_one(self, budget: int) -> int:
        """Reads on for about ``budget`` batches; returns what they cost."""
        view, at, end, bound, check, odd = self._view, self._at, self._end, self._bound, self._check, self._odd_bits
        following, last_epoch, minutes, given = self.next, self.epoch, self.minutes, budget
        low, high, edge_low, edge_high = minutes.low, minutes.high, minutes.edge_low, minutes.edge_high
        unpack = _HEADER.unpack_from
        headers_end = end - HEADER_SIZE
        while budget > 0:
            budget -= 1
            if at <= headers_end:
                base, length, epoch, magic, crc, attributes, delta, base_time, max_time, count = unpack(view, at)
                if (
                    base == following
                    and count == delta + 1
                    and not attributes & odd
                    and magic == 2
                    and count > 0
                    and length > 48
                    and (stop := at + OVERHEAD + length) <= end
                    and (upto := base + count) <= bound
                    and (not check or crc32c(view[at + CRC_FROM : stop]) == crc)
                ):
                    # The plain case, and the only one on most topics: every line here is paid for millions of times.
                    if epoch != last_epoch:
                        last_epoch = self._turned(epoch, last_epoch, base)
                    if attributes & LOG_APPEND_TIME:
                        base_time = max_time
                    if edge_low <= base_time and max_time < edge_high:
                        at, following = stop, upto
                        if base_time < low:
                            low = base_time
                        if max_time > high:
                            high = max_time
                        continue
                    minutes.low, minutes.high = low, high
                    budget -= self._note_times(_header_at(view, at), base, upto)
                    low, high, edge_low, edge_high = minutes.low, minutes.high, minutes.edge_low, minutes.edge_high
                    at, following = stop, upto
                    continue
            self._at, self.next, self.epoch, minutes.low, minutes.high = at, following, last_epoch, low, high
            budget -= self._odd(_header_at(view, at)) if at <= headers_end else self._tail(at)
            at, following, last_epoch = self._at, self.next, self.epoch
            low, high, edge_low, edge_high = minutes.low, minutes.high, minutes.edge_low, minutes.edge_high
            if self._done:
                break
        self._at, self.next, self.epoch, minutes.low, minutes.high = at, following, last_epoch, low, high
        if self._done or at >= end:
            self._done = True
            add_run(self.records, self._first, following)
            self._first = following
        return given - budget

    # ------------------------------------------------------------------------------------- what is not plain

    def _odd(self, batch: Batch) -> int:
        """Reads one batch that is not plain; returns what it cost beyond one."""
        if batch.base >= self._bound:
            self._done = True
            return 0
        if batch.stop - batch.at < _shortest(batch.magic):
            return self._damaged(batch, f"a length of {batch.stop - batch.at} bytes is too short")
        if batch.stop > self._end:
            return self._cut_off(batch.stop - batch.at)
        if batch.magic < 2:
            return self._legacy(batch)
        if batch.magic > 2:
            return self._damaged(batch, f"format v{batch.magic} is unknown")
        if self._check and crc32c(self._view[batch.at + CRC_FROM : batch.stop]) != batch.crc:
            return self._damaged(batch, "the CRC is wrong")
        if not 0 <= batch.records <= batch.delta + 1:
            return self._damaged(batch, f"it claims {batch.records} records in {batch.delta + 1} offsets")
        return self._batch(batch)

    def _batch(self, batch: Batch) -> int:
        in_transaction = batch.attributes & (TRANSACTIONAL | CONTROL) != 0
        aborted = in_transaction and bool(self._aborting) and self._aborting.covers(self._view, batch)
        first, stop = max(batch.base, self.next), min(batch.base + batch.delta + 1, self._bound)
        if first >= stop:  # all of it below the position
            self._at = batch.stop
            return 0
        if batch.attributes & CONTROL:
            self._cover(first, stop, self.markers)
        elif not batch.records:
            self._cover(first, stop, self.holes)
        elif batch.records <= batch.delta or (batch.attributes & HAS_DELETE_HORIZON and batch.records > 1):
            # Thinned out; or its base timestamp is no record's time and the lowest one must be looked up.
            return self._decoded(batch, first, stop, aborted)
        elif aborted:
            self._cover(first, stop, self.aborted)
        else:
            self._cover(first, stop, None)
            self._advance(batch)
            return self._note_times(batch, first, stop)
        self._advance(batch)
        return 0

    def _note_times(self, batch: Batch, first: int, stop: int) -> int:
        """Note the times of a batch's records of ``[first, stop)``; returns how many had to be decoded for that."""
        minutes, high = self.minutes, batch.max_timestamp
        low = high if batch.attributes & (LOG_APPEND_TIME | HAS_DELETE_HORIZON) else batch.base_timestamp
        records: list[Record] = []
        if minutes.spans(low, high) and minutes.allowance.spend(batch.records):
            try:
                records = decode_batch(
                    self._view[batch.at : batch.stop], batch.records, batch.base, batch.attributes, batch.base_timestamp, high
                )
            except UndecodableError:  # whoever consumes it stumbles over it; its header is as good as that of others
                records = []
        if records:
            minutes.note_records(record for record in sorted(records) if first <= record[0] < stop)
        else:
            minutes.note(first, low, high)
        return len(records)

    def _decoded(self, batch: Batch, first: int, stop: int, aborted: bool) -> int:
        try:
            records = decode_batch(
                self._view[batch.at : batch.stop], batch.records, batch.base, batch.attributes, batch.base_timestamp, batch.max_timestamp
            )
        except UndecodableError as why:
            return self._damaged(batch, str(why), why.records if isinstance(why, SurplusError) else None)
        self._cover_records(records, first, stop, self.aborted if aborted else None)
        self._advance(batch)
        return batch.records

    def _legacy(self, message: Batch) -> int:
        # The offset in the header of a compressed message is that of its last record; where the first one is, only the
        # message tells. Damaged, it takes everything since the last batch with it.
        last = message.base
        compressed = self._view[message.at + _LEGACY_ATTRIBUTES_AT] & CODEC_MASK
        lowest = min(self.next, last) if compressed else last
        message = message._replace(base=lowest, delta=last - lowest, epoch=-1)
        try:
            records = decode_legacy(self._view[message.at : message.stop], message.magic, check_crc=self._check)
        except UndecodableError as why:
            return self._damaged(message, str(why))
        stop = min(last + 1, self._bound)
        if self.next < stop:
            self._cover_records(records, self.next, stop, None)
        self._advance(message)
        return len(records)

    def _cover(self, first: int, stop: int, into: list[Run] | None) -> None:
        """``[first, stop)`` goes to ``into`` (None: records), what lies between it and the last batch to ``holes``."""
        if into is None and first == self.next:
            self.next = stop
            return
        add_run(self.records, self._first, self.next)
        add_run(self.holes, self.next, first)
        if into is None:
            self._first = first
        else:
            add_run(into, first, stop)
            self._first = stop
        self.next = stop

    def _cover_records(self, records: list[Record], first: int, stop: int, into: list[Run] | None) -> None:
        for offset, time, _ in sorted(records):
            if self.next <= offset < stop:
                self._cover(offset, offset + 1, into)
                if into is None:
                    self.minutes.note(offset, time, time)
        if self.next < stop:
            self._cover(max(first, self.next), stop, self.holes)

    def _advance(self, batch: Batch) -> None:
        if batch.epoch != self.epoch:
            self.epoch = self._turned(batch.epoch, self.epoch, batch.base)
        self._at = batch.stop

    def _turned(self, epoch: int, last: int, base: int) -> int:
        """The epoch that counts from the batch at ``base`` on, whose header says ``epoch`` after ``last``."""
        if epoch >= 0 and not max(last, self._epoch_low) <= epoch <= self._epoch_high:
            # Believed, it would make the leader think that our logs differ, or make us look for records that it never had.
            self.odd_epoch = self.odd_epoch or (base, epoch)
            return last
        self._epoch_low = epoch  # formats before v2 have none: after them nothing is known
        self.epochs.append((epoch, base))
        return epoch

    # ---------------------------------------------------------------------------------------- ends and damage

    def _tail(self, at: int) -> int:
        """Fewer bytes are left than a v2 header has: nothing, a short message of an old format, or the start of a batch."""
        left = self._end - at
        if left <= 0:
            self._done = True
            return 0
        if left < OVERHEAD:
            return self._cut_off(HEADER_SIZE)
        base, length = _BASE_AND_LENGTH.unpack_from(self._view, at)
        if left <= _MAGIC_AT:  # of which format it is, and so how short it may be, is not told yet
            return self._cut_off(max(OVERHEAD + length, HEADER_SIZE))
        magic = self._view[at + _MAGIC_AT]
        batch = Batch(at, at + OVERHEAD + length, base, -1, magic, 0, 0, 0, -1, -1, -1, 1)
        return self._odd(batch)

    def _cut_off(self, size: int) -> int:
        self._done = True
        self.needed = size
        return 0

    def _damaged(self, batch: Batch, why: str, counted: list[Record] | None = None) -> int:
        """``counted``: the records that the header counts, where those are known; the other offsets of the batch have none."""
        whole = _shortest(batch.magic) <= batch.stop - batch.at <= self._end - batch.at
        if batch.base != self._condemned or not whole:
            self.damage = Damage(batch.base, why)
            self._done = True
            return 0
        first, stop = max(batch.base, self.next), min(self._damaged_stop(batch), self._bound)
        if counted is not None:
            self._cover_records(counted, first, stop, self.unreadable)
        elif first < stop:
            self._cover(first, stop, self.unreadable)
        # The epoch lies outside the CRC, so it may well be right. Keeping the old one where a new one began would make the
        # leader believe that our logs differ.
        if max(self.epoch, self._epoch_low) <= batch.epoch <= self._epoch_high:
            self.epoch = batch.epoch
        if batch.attributes & CONTROL:
            self._aborting.pass_marker(batch)
        self._at = batch.stop
        return 0

    def _damaged_stop(self, batch: Batch) -> int:
        """One past the last offset of a damaged batch, whose header may be damaged too; the next batch's offset bounds it."""
        follows = self._bound
        if self._end - batch.stop >= OVERHEAD:
            offset: int = _BASE_AND_LENGTH.unpack_from(self._view, batch.stop)[0]
            if batch.base < offset < follows:
                follows = offset
        if batch.delta >= 0 and batch.base + batch.delta < follows:
            return batch.base + batch.delta + 1
        return follows


def _shortest(magic: int) -> int:
    """Bytes of the shortest batch or message of a format."""
    return HEADER_SIZE if magic >= 2 else OVERHEAD + _LEGACY_MIN


def whole_batches(view: memoryview, start: int, end: int) -> Iterator[Batch]:
    """The batches and old messages that lie whole in ``view[start:end]``, unchecked; what follows nonsense is left out.

    Of formats v0 and v1 only ``at``, ``stop``, ``base`` (the last offset, if compressed) and ``magic`` are filled in.
    """
    at = start
    while end - at > _MAGIC_AT:
        base, length = _BASE_AND_LENGTH.unpack_from(view, at)
        stop, magic = at + OVERHEAD + length, view[at + _MAGIC_AT]
        if stop > end or stop - at < _shortest(magic):
            return
        if magic < 2:
            yield Batch(at, stop, base, -1, magic, 0, 0, 0, -1, -1, -1, 0)
        else:
            yield _header_at(view, at)
        at = stop


def records_of(view: memoryview, batch: Batch) -> list[Record]:
    """The records of a whole batch, whose CRC is checked first.

    Raises:
        UndecodableError: a wrong CRC, or a body that is not what its header says.
    """
    if batch.magic < 2:
        return decode_legacy(view[batch.at : batch.stop], batch.magic, check_crc=True)
    return decode_batch(_checked(view, batch), batch.records, batch.base, batch.attributes, batch.base_timestamp, batch.max_timestamp)


def details_of(view: memoryview, batch: Batch) -> list[Detail]:
    """As :func:`records_of`, for people; a batch that the cleaner emptied holds none.

    Raises:
        UndecodableError: likewise.
    """
    if batch.magic < 2:
        return decode_legacy_details(view[batch.at : batch.stop], batch.magic, check_crc=True)
    whole = _checked(view, batch)
    return decode_details(whole, batch.records, batch.base, batch.attributes, batch.base_timestamp, batch.max_timestamp)


def _checked(view: memoryview, batch: Batch) -> memoryview:
    if batch.magic > 2:
        raise UndecodableError(f"format v{batch.magic} is unknown")
    if crc32c(view[batch.at + CRC_FROM : batch.stop]) != batch.crc:
        raise UndecodableError("the CRC is wrong")
    if not 0 <= batch.records <= batch.delta + 1:
        raise UndecodableError(f"it claims {batch.records} records in {batch.delta + 1} offsets")
    return view[batch.at : batch.stop]


def last_batch(view: memoryview, start: int, end: int, min_bytes: int = 0) -> tuple[int, int] | None:
    """Where the last whole batch of an answer ends (one past its last offset) and its epoch, hopping from length to length.

    A guess at what parsing will say, good enough to ask for what follows. None: nothing that this short look understands,
    or a first batch of less than ``min_bytes``, where so many hops would cost more than they gain.
    """
    at, last, unpack = start, -1, _BASE_AND_LENGTH.unpack_from
    if end - at >= HEADER_SIZE and unpack(view, at)[1] < min_bytes:
        return None
    while end - at >= HEADER_SIZE:
        length = unpack(view, at)[1]
        stop = at + OVERHEAD + length
        if stop > end or length < HEADER_SIZE - OVERHEAD:
            break
        last, at = at, stop
    if last < 0:
        return None
    base, _, epoch, magic, _, _, delta, _, _, _ = _HEADER.unpack_from(view, last)
    return (base + delta + 1, epoch) if magic == 2 else None
