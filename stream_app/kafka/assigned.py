"""One partition that the log reader was told to read: where it stands, and what it has read that was not taken yet."""

from __future__ import annotations

import time
from enum import Enum

from stream_app.core.log import join_epochs
from stream_app.core.model import Absent, Epochs, LogEnds, LogRead, Runs, Timed
from stream_app.kafka.batches import BatchParser, join_runs
from stream_app.kafka.minutes import KEPT_MS, Allowance, MinuteRuns, join_minutes
from stream_app.kafka.protocol import Isolation, Leader, Section
from stream_app.kafka.trouble import TroubleKind

Key = tuple[str, int]
"""Topic and partition."""

TELL_ENDS_S = 1.0
"""An end that does not move is told again so often: the owner knows by it that the end was read."""


class Question(Enum):
    """What a leader answered instead of records, to be looked into before anybody is told."""

    DIVERGED = 1
    """Its log differs from what was read."""
    OUT_OF_RANGE = 2
    """It has not got the position: below its start, or above its end."""


class Assigned:
    """What one ``assign`` began; the next ``assign`` of the partition makes a new one, so what is in flight for this one is stale."""

    def __init__(
        self,
        topic: str,
        partition: int,
        position: int | None,
        *,
        isolation: Isolation,
        check_crcs: bool,
        topic_id: bytes | None,
        epoch: int,
        epochs: Epochs = (),
    ) -> None:
        """``epoch``: leader epoch of the record before ``position``, -1 where unknown; ``epochs``: those known below it."""
        self.topic, self.partition = topic, partition
        self.key: Key = (topic, partition)
        self.isolation = isolation
        self.check_crcs = check_crcs
        self.position = position
        self.epoch = epoch
        self.topic_id = topic_id
        self.leader: Leader | None = None
        self.ready: LogRead | None = None
        self.question: Question | None = None
        self.suspected_id: bytes | None = None
        self.doubted_at: float | None = None
        self.condemned: int | None = None
        self.want_bytes = 0
        self.not_before = 0.0
        self.failures = 0
        self.failing_since: float | None = None
        self.stalled_since: float | None = None
        self.stalls = 0
        self.told: dict[TroubleKind, float] = {}
        self._epochs = epochs
        self._allowance = Allowance()
        self._ends: tuple[int, int, int] | None = None
        self._ends_told_at = 0.0

    def bound(self, high_watermark: int, last_stable: int) -> int:
        """First offset that must not be told yet."""
        return min(high_watermark, last_stable) if self.isolation is Isolation.READ_COMMITTED else high_watermark

    def agreed_end(self, epoch: int, end: int) -> int:
        """Where our log and the leader's part, when ``epoch`` is its largest one not above ours and ends at ``end``.

        The same step a follower takes (KIP-101): what we read in later epochs is not in the leader's log.
        """
        assert self.position is not None
        later = (first for known, first in self._epochs if known > epoch)
        return min(end, self.position, *later)

    def parser(self, view: memoryview, section: Section) -> BatchParser:
        """Reads the answer's part for this partition."""
        assert self.position is not None
        now_ms = time.time_ns() // 1_000_000
        return BatchParser(
            view,
            section.start,
            section.end,
            position=self.position,
            bound=self.bound(section.high_watermark, section.last_stable),
            aborted=section.aborted,
            check_crcs=self.check_crcs,
            condemned=self.condemned,
            minutes=MinuteRuns(now_ms - KEPT_MS, self._allowance, now_ms + KEPT_MS),
        )

    def succeeded(self) -> None:
        """An answer without an error came: past failures no longer count."""
        self.failures = 0
        self.failing_since = self.suspected_id = self.doubted_at = None

    def accept(self, parser: BatchParser, section: Section, now: float) -> bool:
        """Takes over what ``parser`` read; whether there is something to tell."""
        assert self.position is not None
        assert self.topic_id is not None
        stable = section.last_stable if self.isolation is Isolation.READ_COMMITTED else section.high_watermark
        ends = (section.log_start, section.high_watermark, stable)
        moved = parser.next > self.position
        # An end below the position lags (a new leader's may, for a moment) or is wrong: it was not read.
        at_end = self.position == self.bound(section.high_watermark, section.last_stable)
        if not moved and not (at_end and (ends != self._ends or now - self._ends_told_at >= TELL_ENDS_S)):
            return False
        self._allowance.earn(parser.next - self.position)
        absent: dict[Absent, Runs] = {}
        if parser.markers:
            absent[Absent.TRANSACTION_MARKER] = tuple(parser.markers)
        if parser.aborted:
            absent[Absent.ABORTED] = tuple(parser.aborted)
        read = LogRead(
            position=self.position,
            next=parser.next,
            topic_id=self.topic_id,
            records=tuple(parser.records),
            absent=absent,
            holes=tuple(parser.holes),
            unreadable=tuple(parser.unreadable),
            log_start=section.log_start,
            high_watermark=section.high_watermark,
            last_stable=stable,
            leader_epoch=parser.epoch,
            epochs=tuple(parser.epochs),
            min_timestamp_ms=parser.min_timestamp,
            max_timestamp_ms=parser.max_timestamp,
            minutes=parser.minutes.take(),
            size=section.end - section.start,
        )
        self._ends, self._ends_told_at = ends, now
        self._epochs = join_epochs(self._epochs, read.epochs)
        self._tell(read, parser.epoch if parser.epoch >= 0 else self.epoch)
        return True

    def skip_to_start(self, ends: LogEnds, now: float) -> None:
        """Retention was faster: ``[position, log start)`` is unread, reading goes on behind it."""
        assert self.position is not None
        assert self.topic_id is not None
        stable = ends.last_stable if self.isolation is Isolation.READ_COMMITTED else ends.high_watermark
        read = LogRead(
            position=self.position,
            next=ends.log_start,
            topic_id=self.topic_id,
            unread=((self.position, ends.log_start),),
            log_start=ends.log_start,
            high_watermark=ends.high_watermark,
            last_stable=stable,
            minutes=(Timed(self.position, None),),
        )
        self._ends, self._ends_told_at = (ends.log_start, ends.high_watermark, stable), now
        self._tell(read, -1)  # whoever wrote the record before the start is gone with it

    def _tell(self, read: LogRead, epoch: int) -> None:
        self.position, self.epoch = read.next, epoch
        self.ready = read if self.ready is None else join_reads(self.ready, read)


def join_reads(left: LogRead, right: LogRead) -> LogRead:
    """Two contiguous answers as one."""
    assert left.next == right.position
    absent = {cause: join_runs(left.absent.get(cause, ()), right.absent.get(cause, ())) for cause in (*left.absent, *right.absent)}
    lows = [one.min_timestamp_ms for one in (left, right) if one.min_timestamp_ms is not None]
    highs = [one.max_timestamp_ms for one in (left, right) if one.max_timestamp_ms is not None]
    return LogRead(
        position=left.position,
        next=right.next,
        topic_id=right.topic_id,
        records=join_runs(left.records, right.records),
        absent=absent,
        holes=join_runs(left.holes, right.holes),
        unreadable=join_runs(left.unreadable, right.unreadable),
        unread=join_runs(left.unread, right.unread),
        log_start=right.log_start,
        high_watermark=right.high_watermark,
        last_stable=right.last_stable,
        leader_epoch=right.leader_epoch if right.leader_epoch >= 0 else left.leader_epoch,
        epochs=join_epochs(left.epochs, right.epochs),
        min_timestamp_ms=min(lows, default=None),
        max_timestamp_ms=max(highs, default=None),
        minutes=join_minutes(left.minutes, right.minutes),
        size=left.size + right.size,
    )
