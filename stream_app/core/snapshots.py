"""What a sink says by snapshots, each of all that it has in a range: when to trust what they lack, and what they doubled.

A sink that ever made a snapshot is judged by the clock of its snapshots alone (``at``: when the question began). What lies below
a horizon is judged when a snapshot that covers it began ``grace`` after the horizon stood there, so that two that agree lie
behind each verdict; and what was there is ``vanished`` when it lacks in one snapshot, in another one at least ``grace`` later, and
was in none between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream_app.core.log import LogState
from stream_app.core.model import DOUBLED_MAX, Observation, Snapshot
from stream_app.core.offsets import END, OffsetSet
from stream_app.core.samples import Sample

if TYPE_CHECKING:
    from stream_app.core.sink import SinkState

TABLE_PREFIX = "table:"
"""Begins the source of what a worker finds in a table; the worker's name follows."""
TABLE_CHECK = "table"
"""The name of this check of a sink."""
FORMER_CHECK = "former"
"""Of a sink that makes snapshots: whether what it has may be of a former topic of the same name. Fails from the re-creation on."""


@dataclass(slots=True)
class Snapshots:
    """What is remembered of the snapshots of one sink in one partition."""

    last_ms: int | None = None
    """``at`` of the newest one; None: it never made one."""
    maker: str | None = None
    """Source of the newest one: another one has another clock."""
    agreed_to: int = 0
    """Below it everything may be judged: snapshots that are far enough apart have covered it."""
    older: OffsetSet = field(default_factory=OffsetSet)
    """Suspects: received, and lacking since; of an offset that joined later than another one the later time counts for both."""
    older_ms: int = 0
    """Not before this all of ``older`` were lacking in a snapshot, and in every one since that covers them."""
    newer: OffsetSet = field(default_factory=OffsetSet)
    """Suspects found while those in ``older`` wait for their time, so that these are not held up."""
    newer_ms: int = 0
    doubled: list[OffsetSet] = field(default_factory=lambda: [OffsetSet() for _ in range(DOUBLED_MAX)])
    """Offsets that ever had two rows, three, ...; where the log is not read yet, judged when it is."""
    absent: OffsetSet = field(default_factory=OffsetSet)
    """Offsets without a record that ever had a row."""
    kept_from_ms: int | None = None
    """Rows of older records may have gone by a TTL that the table has or had; None: it never had one."""
    covered: OffsetSet = field(default_factory=OffsetSet)
    """What the pieces of the newest one have covered so far; of this owner, not kept."""
    ahead_ms: int = 0
    """How far this worker's clock is put forward, so that it is not behind a former worker's; of this owner, not kept."""

    # --- clocks ---

    def begin(self, now_ms: int) -> int:
        """``at`` of a snapshot that a worker begins now: by its clock, and above that of the newest one, whoever made that."""
        if self.last_ms is not None:
            self.ahead_ms = max(self.ahead_ms, self.last_ms + 1 - now_ms)
        return now_ms + self.ahead_ms

    def at_of(self, observation: Observation, now_ms: int) -> int:
        """By the clock of the snapshots, not before this observation was true; 0 while there is none."""
        if observation.snapshot is not None:
            return observation.snapshot.at_ms
        return 0 if self.last_ms is None else max(now_ms + self.ahead_ms, self.last_ms)

    def is_old(self, snapshot: Snapshot) -> bool:
        """Whether a newer one was taken already."""
        return self.last_ms is not None and snapshot.at_ms < self.last_ms

    def take(self, snapshot: Snapshot, maker: str | None, samples: Iterable[Sample], grace_ms: int) -> None:
        """A snapshot that is not old, or one more piece of the newest."""
        at_ms = snapshot.at_ms
        if self.last_ms is None or maker != self.maker:  # what was timed by another clock starts anew
            for sample in samples:
                sample.at_ms = at_ms
            self.older_ms = self.newer_ms = at_ms
        if at_ms != self.last_ms:
            self.covered = OffsetSet()
            if self.last_ms is not None:
                self._age(self.last_ms, grace_ms)
        self.last_ms, self.maker = at_ms, maker
        self.covered.add(snapshot.first, snapshot.stop)

    def _age(self, before_ms: int, grace_ms: int) -> None:
        """Let the newer suspects follow where the older ones are gone, or had their chance in the snapshots up to here."""
        if self.newer and (not self.older or self.older_ms + 2 * grace_ms <= before_ms):
            self.older.update(self.newer)
            self.older_ms = self.newer_ms
            self.newer = _emptied(self.newer)

    # --- verdicts ---

    def agree(self, start: int, samples: Iterable[Sample], grace_ms: int) -> None:
        """Note how far what lies from ``start`` on may be judged: below a horizon of long enough ago, as far as it is covered."""
        assert self.last_ms is not None
        horizon = max((sample.horizon for sample in samples if sample.at_ms + grace_ms <= self.last_ms), default=0)
        if horizon > max(start, self.agreed_to):
            uncovered = self.covered.missing_in(start, horizon).first()
            reached = horizon if uncovered is None else uncovered
            if reached > start:
                self.agreed_to = max(self.agreed_to, reached)

    def take_back(self, horizon: int) -> None:
        """The sink is not as far as it seemed to be: what lies below its horizon is due anew."""
        if self.agreed_to > horizon:
            self.agreed_to = 0

    def suspect(self, lacking: OffsetSet, present: OffsetSet, grace_ms: int) -> OffsetSet:
        """``lacking`` was received and is not in the newest snapshot, ``present`` is; returns what vanished."""
        assert self.last_ms is not None
        gone = OffsetSet()
        for since_ms, some in ((self.older_ms, self.older), (self.newer_ms, self.newer)):
            if some:
                some.difference_update(present)
                if since_ms + grace_ms <= self.last_ms:
                    gone.update(some & lacking)
                    some.difference_update(lacking)
        new = lacking - gone
        for some in (self.older, self.newer):
            new.difference_update(some)
        if new:
            self.newer.update(new)
            self.newer_ms = self.last_ms
        return gone

    # --- doubled rows, and rows that nothing explains ---

    def note_doubled(self, snapshot: Snapshot, judged: OffsetSet) -> Iterator[OffsetSet]:
        """What of ``judged`` is doubled, once for each row more, that was not known to be."""
        for known, runs in zip(self.doubled, snapshot.doubled, strict=False):
            new = (OffsetSet(runs) & judged) - known
            if new:
                known.update(new)
                yield new

    def doubled_between(self, first: int, stop: int) -> Iterator[OffsetSet]:
        """What of ``[first, stop)`` is known to be doubled, once for each row more."""
        for known in self.doubled:
            if known and (known.last() or 0) >= first:
                yield known.within(first, stop)

    def note_absent(self, offsets: OffsetSet) -> int:
        """Rows of offsets that hold no record; how many of them were not known."""
        new = offsets - self.absent
        self.absent.update(new)
        return new.count

    # --- forgetting ---

    def _sets(self) -> tuple[OffsetSet, ...]:
        return (self.older, self.newer, *self.doubled, self.absent)

    def forget_below(self, offset: int) -> None:
        """Nothing below is judged."""
        for offsets in self._sets():
            first = offsets.first()
            if first is not None and first < offset:
                offsets.remove(0, offset)

    def truncate(self, offset: int) -> None:
        """The log lost everything from ``offset`` on."""
        for offsets in (*self._sets(), self.covered):
            offsets.remove(offset, END)
        self.agreed_to = min(self.agreed_to, offset)

    def goes_on(self, checks: Collection[str]) -> None:
        """A worker takes over whose configuration has these checks of the sink: a table that is none any more makes no snapshots.

        It is judged by other clocks then. What was doubled was told, whatever the sink is now.
        """
        if self.maker is not None and self.maker.startswith(TABLE_PREFIX) and TABLE_CHECK not in checks:
            self.last_ms = self.maker = None
            self.agreed_to = self.older_ms = self.newer_ms = 0
            for offsets in (self.older, self.newer):
                offsets.remove(0, END)


def _emptied(offsets: OffsetSet) -> OffsetSet:
    """The same set, empty: what was stored of it is deleted by its marks."""
    offsets.remove(0, END)
    return offsets


def is_news(sink: SinkState, said: Observation, log: LogState) -> bool:
    """Whether the ledger does not know all that a snapshot states, or waits for one; what is no snapshot is news."""
    known, snapshot = sink.snapshots, said.snapshot
    if snapshot is None or known.last_ms is None or sink.samples or known.older or known.newer:
        return True
    offsets = OffsetSet(said.runs)
    offsets.remove(0, sink.floor or 0)
    if sink.received_within(snapshot.first, snapshot.stop, log) - offsets:
        return True
    if not all(offsets.isdisjoint(some) for some in (*sink.open.values(), *sink.explained.values(), sink.unread)):
        return True
    lowest, settled = judged_from(log, sink.settled), sink.settled or 0
    new = offsets.within(settled, END) - sink.received
    strange = offsets.within(lowest, log.read) - log.without_absent(offsets.within(lowest, log.read))
    if new - strange or strange - known.absent:
        return True
    return any(OffsetSet(runs) - told for runs, told in zip(snapshot.doubled, known.doubled, strict=False))


def judged_from(log: LogState, settled: int | None) -> int:
    """Below it rows mean nothing any more: it is judged, and the log does not tell records apart there."""
    return 0 if settled is None else min(log.start, settled)
