"""What one partition of a watched topic holds: one incarnation of its log.

Only what has no record is stored: every offset of ``[origin, read)`` is a record unless it is absent, a hole or unread. So a
dense log costs the same whatever its length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from stream_app.core.minutes import Minutes
from stream_app.core.model import CHUNK, Absent, Epochs, LogRead, Runs, Timed
from stream_app.core.offsets import END, OffsetSet

TIMELINE_MAX = 128
"""Segments of (first offset, lowest record time) kept for ``complete through``; thinned when there are more. They are about 2 kB of
the head that each flush writes."""
_COARSER = 1.25
"""A thinned segment reaches back from the log's end at most so much farther than the one after it: a sink that is ten minutes behind
is shown at most two and a half farther behind. 1.25**96 is 2e9: as many offsets are told apart so."""

EPOCHS_MAX = 64
"""Leader epochs remembered, about 800 bytes of the head: a log that is truncated loses records of its last few leaders."""
FALLEN_MS = 60_000
"""A high watermark that fell, and stayed there for so long, is believed."""
ENDS_SEEN_MAX = 256
"""High watermarks remembered while a transaction is open: of one that hangs for a day, one in some minutes."""


@dataclass(slots=True)
class Timeline:
    """Lowest record time from an offset on, coarser for older offsets; always a lower bound."""

    starts: list[int] = field(default_factory=list)
    lowest: list[int] = field(default_factory=list)

    def add(self, first: int, lowest_ms: int) -> None:
        """Records from ``first`` on are not older than ``lowest_ms``; ``first`` never goes back."""
        self.starts.append(first)
        self.lowest.append(lowest_ms)
        if len(self.starts) > TIMELINE_MAX:
            self._thin()

    def _thin(self) -> None:
        coarser = _COARSER
        while len(self.starts) > TIMELINE_MAX * 3 // 4:
            self._join(coarser)
            coarser *= _COARSER

    def _join(self, coarser: float) -> None:
        """Join neighbours, from the end of the log on, as long as the joined one is short against its distance from the end."""
        end, edge = self.starts[-1], self.starts[-1]
        starts, lowest = self.starts[-1:], self.lowest[-1:]
        for first, ms in zip(self.starts[-2::-1], self.lowest[-2::-1], strict=True):
            if end - first <= coarser * (end - edge):
                starts[-1], lowest[-1] = first, min(lowest[-1], ms)
            else:
                edge = starts[-1]
                starts.append(first)
                lowest.append(ms)
        self.starts, self.lowest = starts[::-1], lowest[::-1]

    def lowest_from(self, offset: int) -> int | None:
        """A time that no record at or above ``offset`` undercuts; None where nothing is known, or not any more."""
        at = bisect_right(self.starts, offset) - 1
        return min(self.lowest[at:]) if at >= 0 else None

    def forget_below(self, offset: int) -> None:
        """Drop what ends at or below ``offset``."""
        at = bisect_right(self.starts, offset) - 1
        if at > 0:
            del self.starts[:at]
            del self.lowest[:at]

    def forget_from(self, offset: int) -> None:
        """Drop what begins at or above ``offset``."""
        at = bisect_right(self.starts, offset - 1)
        del self.starts[at:]
        del self.lowest[at:]


@dataclass(slots=True)
class LogState:
    """One incarnation of a log: its ends, what is absent, how far it was read."""

    topic_id: bytes
    origin: int
    """Log start when it was first seen; nothing below it is ever judged."""
    seen_end: int
    """High watermark when it was first seen: holes below it may come from a compaction before our time."""
    start: int
    read: int
    """Next offset to read; everything below is a record, absent or unread."""
    end: int
    """High watermark, as last told."""
    last_stable: int
    leader_epoch: int = -1
    epochs: Epochs = ()
    """Of what was read: where our log parts from another one's is found by them (KIP-101, KIP-320)."""
    open_since_ms: int | None = None
    """Since when, by the worker's clock, an open transaction has held the last stable offset where it is."""
    end_read_ms: int | None = None
    """When the log was last read to its end, by the worker's clock."""
    stable_ms: int | None = None
    """Latest time, by the worker's clock, at which the log reached no further than the last stable offset does now. Not kept."""
    ends_seen: list[tuple[int, int]] = field(default_factory=list)
    """High watermarks above the last stable offset, rising, and when each was told last. Not kept."""
    ever_compacted: bool | None = None
    """Whether cleanup.policy was ``compact`` at any time since first sight; None: could not be asked."""
    records: int = 0
    """Records read since first sight."""
    absent_counts: dict[Absent, int] = field(default_factory=dict)
    absent: dict[Absent, OffsetSet] = field(default_factory=lambda: {cause: OffsetSet() for cause in Absent})
    holes: OffsetSet = field(default_factory=OffsetSet)
    """Offsets that the log lacks and nothing explains: neither records nor absent; open gaps of the sink ``log``."""
    unreadable: OffsetSet = field(default_factory=OffsetSet)
    """Records (as the batch headers say) of batches that no consumer can read."""
    unread: OffsetSet = field(default_factory=OffsetSet)
    unread_held_ms: int | None = None
    """Latest record time known before the first unread offset: complete through stays at or below it. None: not known."""
    latest_ms: int | None = None
    """Latest record time seen."""
    timeline: Timeline = field(default_factory=Timeline)
    minutes: Minutes = field(default_factory=Minutes)
    forgotten: int = 0
    """Below it absent offsets are not told apart from records any more, but for those inside of open gaps."""

    @property
    def undecided(self) -> bool:
        """Whether the log holds more than is decided: a transaction is open."""
        return self.last_stable < self.end or bool(self.ends_seen)

    @property
    def bound(self) -> int:
        """The log's end for a reader of this isolation: last stable offset (or high watermark)."""
        return min(self.last_stable, self.end)

    def takes(self, read: LogRead) -> bool:
        """The fence: only what follows what was read, of the same incarnation, changes anything."""
        return read.position == self.read and read.topic_id == self.topic_id

    def advance(self, read: LogRead, now_ms: int) -> None:
        """Take one answer of the reader (the caller asked :meth:`takes`); holes come as absent or not at all."""
        for cause, runs in read.absent.items():
            self.note_absent(cause, runs)
        self.records += sum(stop - first for runs in (read.records, read.unreadable) for first, stop in runs)
        for first, stop in read.unreadable:
            self.unreadable.add(first, stop)
        if read.unread:
            if not self.unread:
                self.unread_held_ms = self.latest_ms
            for first, stop in read.unread:
                self.unread.add(first, stop)
        if read.min_timestamp_ms is not None:
            self.timeline.add(read.position, read.min_timestamp_ms)
        if read.max_timestamp_ms is not None:
            self.latest_ms = max(read.max_timestamp_ms, self.latest_ms or read.max_timestamp_ms)
        self.minutes.add(_timed(read))
        self.minutes.forget(now_ms)
        self.read = read.next
        self.start = max(self.start, read.log_start)
        self._note_ends(read, now_ms)
        if read.leader_epoch >= 0:
            self.leader_epoch = read.leader_epoch
        self.epochs = join_epochs(self.epochs, read.epochs)
        if self.read >= self.bound:
            self.end_read_ms = now_ms

    def _note_ends(self, read: LogRead, now_ms: int) -> None:
        held = read.last_stable < read.high_watermark
        if not held or read.last_stable != self.last_stable or self.open_since_ms is None:
            self.open_since_ms = now_ms if held else None
        self.end, self.last_stable = read.high_watermark, read.last_stable
        self._note_stable(now_ms)

    def _note_stable(self, now_ms: int) -> None:
        """All that was in the log when it reached no further than the last stable offset is decided; what came since may be open.

        A high watermark that falls is a new leader's, who learns of it a moment later (KIP-207): it does not end a transaction.
        """
        seen = self.ends_seen
        if seen and seen[-1][0] > self.end and now_ms - seen[-1][1] < FALLEN_MS:
            return
        while seen and seen[-1][0] >= self.end:
            seen.pop()
        seen.append((self.end, now_ms))
        decided = bisect_right(seen, self.last_stable, key=lambda one: one[0])
        if decided:
            self.stable_ms = seen[decided - 1][1]
            del seen[:decided]
        if len(seen) > ENDS_SEEN_MAX:
            del seen[::2]  # as if it had been asked less often

    def note_policy(self, compacted: bool | None) -> None:
        """cleanup.policy as it is now; None: could not be asked. What was compacted once may have holes for ever."""
        if compacted is not None:
            self.ever_compacted = compacted or bool(self.ever_compacted)

    def note_absent(self, cause: Absent, runs: Runs) -> None:
        """Offsets that hold no record, for a lawful reason."""
        if not runs:
            return
        add_runs(self.absent[cause], runs)
        self.absent_counts[cause] = self.absent_counts.get(cause, 0) + sum(stop - first for first, stop in runs)

    def without_absent(self, offsets: OffsetSet) -> OffsetSet:
        """The same set without the offsets that hold no record; changes and returns its argument."""
        if not offsets:
            return offsets
        for absent in (*self.absent.values(), self.holes):
            if absent:
                offsets.difference_update(absent)
        return offsets

    def absent_within(self, first: int, stop: int) -> int:
        """How many offsets of ``[first, stop)`` hold no record."""
        return sum(absent.count_within(first, stop) for absent in (*self.absent.values(), self.holes) if absent)

    def only_absent(self, first: int, stop: int) -> bool:
        """Whether no offset of ``[first, stop)`` holds a record; true of an empty range."""
        if first >= stop:
            return True
        # Most neighbours are told apart by their first offset; counting is for the few that are not.
        if not any(first in absent for absent in (*self.absent.values(), self.holes)):
            return False
        return self.absent_within(first, stop) == stop - first

    def has_record(self, first: int, stop: int) -> bool:
        """Whether ``[first, stop)`` holds a record that was read; looks no further than to the first one."""
        first, stop, width = max(first, self.origin), min(stop, self.read), CHUNK
        while first < stop:
            edge = min(stop, first + width)
            if self.records_within(first, edge):
                return True
            first, width = edge, 2 * width
        return False

    def records_within(self, first: int, stop: int) -> int:
        """How many records ``[first, stop)`` holds, as far as it was read."""
        first, stop = max(first, self.origin), min(stop, self.read)
        if first >= stop:
            return 0
        return stop - first - self.absent_within(first, stop) - self.unread.count_within(first, stop)

    def forget_below(self, offset: int, keep: OffsetSet, floors: Iterable[int] = ()) -> None:
        """Drop what is known of absent offsets below, but for those in ``keep``; the counters stay.

        ``floors``: from where on the sinks answer, so that what lies below can still be counted for each.
        """
        self.minutes.freeze(offset, self.read, floors, lambda first, stop: self.without_absent(OffsetSet([(first, stop)])))
        for absent in (*self.absent.values(), self.holes):
            kept = absent.within(0, offset) & keep
            absent.remove(0, offset)
            absent.update(kept)
        self.unreadable.remove(0, offset)
        self.timeline.forget_below(offset)
        self.forgotten = offset

    def truncate(self, offset: int) -> None:
        """The log lost everything from ``offset`` on. What is written there from now on is new; what was counted stays counted."""
        for offsets in (*self.absent.values(), self.holes, self.unreadable, self.unread):
            offsets.remove(offset, END)
        self.timeline.forget_from(offset)
        self.minutes.truncate(offset, self.read)
        self.epochs = tuple((epoch, first) for epoch, first in self.epochs if first < offset)
        self.leader_epoch = self.epochs[-1][0] if self.epochs else -1
        self.open_since_ms = None
        self.origin, self.forgotten = min(self.origin, offset), min(self.forgotten, offset)
        self.seen_end, self.start = min(self.seen_end, offset), min(self.start, offset)
        self.read, self.end = min(self.read, offset), min(self.end, offset)
        self.last_stable = min(self.last_stable, offset)
        self.ends_seen.clear()


def join_epochs(known: Epochs, new: Epochs) -> Epochs:
    """Both, where ``new`` was read after ``known``; of too many the oldest are joined.

    A joined one begins where the older of the two began: what seems to part from another log too early is read once more, and
    nothing is kept that may be of another log.
    """
    joined = list(known)
    for epoch, first in new:
        if epoch >= 0 and (not joined or epoch > joined[-1][0]):
            joined.append((epoch, first))
    while len(joined) > EPOCHS_MAX:
        joined[:2] = [(joined[1][0], joined[0][1])]
    return tuple(joined)


def _timed(read: LogRead) -> list[Timed]:
    """By minute what an answer covers; what retention removed unread has no time."""
    timed = list(read.minutes)
    if not timed and read.records:
        timed.append(Timed(read.records[0][0], None))
    for first, stop in read.unread:
        timed = [one for one in timed if one.first < first] + [Timed(first, None)] + [one for one in timed if one.first >= stop]
    return timed


def add_runs(target: OffsetSet, runs: Runs) -> None:
    """Add runs, single offsets in bulk: a topic of small transactions has a marker after every few records."""
    singles = [first for first, stop in runs if stop - first == 1]
    if len(singles) > 16:
        target.add_many(singles)
        runs = tuple(run for run in runs if run[1] - run[0] > 1)
    for first, stop in runs:
        target.add(first, stop)
