"""What one sink said about one partition: sets of offsets by state, and the moves between them.

Below ``settled`` every offset of ``[floor, settled)`` is in exactly one state; "received" is not stored there: it is what is
left. At and above ``settled`` the received offsets are stored, and what is in none of the sets is in flight.
The moves are those of :mod:`stream_app.core.states`, as operations on sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from stream_app.core.checks import Checks
from stream_app.core.gaps import Gaps
from stream_app.core.log import LogState
from stream_app.core.minutes import MinuteCounts
from stream_app.core.model import CHUNK, Cause, Look, Observation, Reason, Run, Snapshot, Status
from stream_app.core.moved import Moved
from stream_app.core.offsets import END, OffsetSet, drop, take
from stream_app.core.openings import OPENINGS_MAX, Opening, coarser
from stream_app.core.policy import Policy
from stream_app.core.samples import Sample, keep, passed_by_time
from stream_app.core.snapshots import Snapshots, judged_from
from stream_app.core.sources import Claimed, Sources
from stream_app.core.touched import EVERYTHING, Touched

STAMPS_MAX = 10_000
"""Record times remembered for the ends of gaps and beside them; beyond, a gap's times are unknown."""
AGAIN_MAX = 8
"""How many times an offset can be observed ahead of the log reader with each time counted as a duplicate, or told as one at once."""
EXPLAINED = (Reason.TOMBSTONE, Reason.QUARANTINED, Reason.COMPACTED, Reason.ACKNOWLEDGED, Reason.UNOBSERVED)


@dataclass(slots=True)
class SinkState:
    """Sets and counters of one (partition, sink)."""

    policy: Policy
    heard: bool = False
    floor: int | None = None
    settled: int | None = None
    """None until the first verdict; then the end of what is judged."""
    lowest: int | None = None
    """Lowest offset observed or claimed so far: the floor, if it is not fixed by the configuration."""
    highest: int | None = None
    """One past the highest offset observed."""
    claim: int | None = None
    samples: list[Sample] = field(default_factory=list)
    received: OffsetSet = field(default_factory=OffsetSet)
    again: list[OffsetSet] = field(default_factory=lambda: [OffsetSet() for _ in range(AGAIN_MAX)])
    """At or above ``log.read``: what was observed twice, three times, ...; judged when the log is read that far."""
    again_told: OffsetSet = field(default_factory=OffsetSet)
    """Of these, what is told when it turns out to be a duplicate."""
    open: dict[Cause, OffsetSet] = field(default_factory=lambda: {cause: OffsetSet() for cause in Cause})
    explained: dict[Reason, OffsetSet] = field(default_factory=lambda: {reason: OffsetSet() for reason in EXPLAINED})
    acknowledged: dict[Cause, OffsetSet] = field(default_factory=lambda: {cause: OffsetSet() for cause in Cause})
    """What ``explained[acknowledged]`` was before, for an undo."""
    unread: OffsetSet = field(default_factory=OffsetSet)
    untold: dict[Reason, OffsetSet] = field(default_factory=lambda: {Reason.QUARANTINED: OffsetSet(), Reason.UNOBSERVED: OffsetSet()})
    """Explained before they were open, not told yet (told once the log is read that far)."""
    untold_duplicates: list[OffsetSet] = field(default_factory=lambda: [OffsetSet() for _ in range(AGAIN_MAX)])
    """Not told yet: what is to be told once, what twice, ..., each within the one before it."""
    sources: Sources = field(default_factory=Sources)
    snapshots: Snapshots = field(default_factory=Snapshots)
    sequence: int = 0
    observed: int = 0
    duplicates: int = 0
    absent_observed: int = 0
    doubled: MinuteCounts = field(default_factory=MinuteCounts)
    """Duplicates by minute of the record's time."""
    openings: list[Opening] = field(default_factory=list)
    stamps: dict[int, int] = field(default_factory=dict)
    doubted_to: int = 0
    """Reports of records below it may have been lost: what lacks there is unobserved, not missing."""
    moved_ms: int | None = None
    """When it last moved or had nothing ahead of it, by this worker's clock; None: not since this worker owns it. Not kept."""
    awaited: int | None = None
    """Without a horizon: from this offset on the sink is awaited here, since it is heard of in other partitions."""
    stalled: bool = False
    checks: Checks = field(default_factory=Checks)
    copied_ms: int | None = None
    """Of a mirrored sink: what was copied before this time, by this worker's clock, was read and is folded. Not kept."""
    silent_ms: int | None = None
    """Of a sink that stands in no configuration: when it left or was last heard of, by the worker's clock of then."""
    complete_ms: int | None = None
    told_duplicates_ms: int | None = None
    gaps: dict[Cause, Gaps] = field(default_factory=lambda: {cause: Gaps() for cause in Cause})
    """Of each open set; not kept."""
    touched: Touched = field(default_factory=lambda: Touched(EVERYTHING))
    """Where records were received, opened, explained or doubled since somebody took it; not kept."""
    untidy: bool = True
    """Whether an open set changed since :meth:`tidy`."""

    @property
    def horizon(self) -> int | None:
        """Below it the sink claims to be done: its highest claim, or one past the highest offset observed."""
        return self.claim if self.claim is not None or self.policy.group is not None else self.highest

    @property
    def stands_at(self) -> int | None:
        """From here on records wait for the sink; None: nobody can tell from where."""
        return self.awaited if self.horizon is None else self.horizon

    # --- observations -------------------------------------------------------------------------------------------------

    def observe(self, observation: Observation, log: LogState, broker_ms: int, now_ms: int) -> Moved:
        """Take one observation that is not beyond the log's end.

        Of a sink that was never heard of before, what the log has forgotten is passed over: nobody can tell any more which
        offsets there hold records.
        """
        moved, snapshot = Moved(), observation.snapshot
        if self.sources.is_repeat(observation) or (snapshot is not None and self.snapshots.is_old(snapshot)):
            moved.repeat = True
            return moved
        offsets = OffsetSet(observation.runs)
        offsets.remove(0, max(log.origin, log.forgotten if self.floor is None else self.floor))
        match observation.status:
            case Status.RECEIVED if snapshot is not None:
                self._compare(snapshot, observation.source, offsets, log, moved)
            case Status.RECEIVED:
                alertable = observation.source is not None and observation.sequence is not None
                self._receive(offsets, log, moved, alertable)
            case Status.QUARANTINED:
                self._explain(Reason.QUARANTINED, offsets, log, moved, tuple(Cause))
            case Status.UNOBSERVED:
                self._explain(Reason.UNOBSERVED, offsets, log, moved, (Cause.NOT_RECEIVED,))
            case Status.ACKNOWLEDGED:  # somebody's decision, not the sink's word: it is not heard of by it
                self._acknowledge(offsets, log, moved, observation.undo)
                return moved
        self.heard = True
        moved.claimed = self.sources.note_claim(observation)
        if moved.claimed is not None and moved.claimed.moved:
            self.moved_ms = now_ms
        self._note_lowest(observation, moved.claimed, log)
        self._raise_horizon(observation, broker_ms, now_ms)
        if snapshot is not None:
            self._agree(log)
        return moved

    def _receive(self, offsets: OffsetSet, log: LogState, moved: Moved, alertable: bool) -> None:
        known = offsets.within(0, log.read)
        count = known.count
        records = log.without_absent(known)
        self.absent_observed += count - records.count
        self._count_duplicates(self._receive_records(records, moved), log, alertable)
        self._note_again(self._receive_ahead(offsets.within(log.read, END)), alertable)

    def _compare(self, snapshot: Snapshot, maker: str | None, offsets: OffsetSet, log: LogState, moved: Moved) -> None:
        """Take all that the sink has of a range: once more is no duplicate, and what it had and has not is a suspect."""
        known, grace, lowest = self.snapshots, self.policy.grace_ms, judged_from(log, self.settled)
        known.take(snapshot, maker, self.samples, grace)
        known.forget_below(lowest)
        lacking = self.received_within(snapshot.first, snapshot.stop, log) - offsets
        moved.vanished = known.suspect(lacking, offsets, grace)
        there = offsets.within(0, log.read)
        records = log.without_absent(there.copy())
        self.absent_observed += known.note_absent((there - records).within(lowest, END))
        self._receive_records(records, moved)
        self._receive_ahead(offsets.within(log.read, END))
        for doubled in known.note_doubled(snapshot, offsets.within(lowest, END)):
            self._count_duplicates(log.without_absent(doubled.within(0, log.read)), log, alertable=True)

    def _receive_records(self, records: OffsetSet, moved: Moved) -> OffsetSet:
        """Returns what was received before; changes its argument."""
        count = records.count
        self._take_from(self.unread, records)
        for reason in EXPLAINED:
            taken = self._take_from(self.explained[reason], records)
            for was in self._beside(reason):
                drop(was, taken)
        for cause in Cause:
            filled = self._take_open(cause, records)
            if filled:
                moved.filled[cause] = filled
                self._store_received(filled)
                records.difference_update(filled)
        new = records.within(self.settled or 0, END) - self.received
        self.received.update(new)
        self.touched.note_set(new)
        records.difference_update(new)
        self.observed += count - records.count
        return records

    def _beside(self, reason: Reason) -> tuple[OffsetSet, ...]:
        """What is noted of explained offsets and goes with them."""
        if reason is Reason.ACKNOWLEDGED:
            return tuple(self.acknowledged.values())
        return (self.untold[reason],) if reason in self.untold else ()

    def _take_from(self, source: OffsetSet, records: OffsetSet) -> OffsetSet:
        """Explained or unread offsets that arrive after all become received, silently."""
        taken = take(source, records)
        if taken:
            self.touched.note_set(taken)
            self._store_received(taken)
            records.difference_update(taken)
        return taken

    def _store_received(self, offsets: OffsetSet) -> None:
        """Received is stored at and above ``settled`` only; below, it is what is left."""
        self.received.update(offsets.within(self.settled or 0, END))

    def _receive_ahead(self, offsets: OffsetSet) -> OffsetSet:
        """Above ``log.read`` it is not known yet which offsets are records. Returns what was received before."""
        for reason in EXPLAINED:
            taken = take(self.explained[reason], offsets)
            for was in self._beside(reason):
                drop(was, taken)
        before = offsets & self.received
        self.received.update(offsets)
        return before

    def _note_again(self, offsets: OffsetSet, alertable: bool) -> None:
        """Remember how often each of these, which are above ``log.read``, was observed."""
        if alertable:
            self.again_told.update(offsets)
        _once_more(self.again, offsets)

    def _count_duplicates(self, records: OffsetSet, log: LogState, alertable: bool) -> None:
        self.duplicates += records.count
        self._note_doubled(records, log)
        if alertable and self.policy.tell_duplicates:
            _once_more(self.untold_duplicates, records)

    def _note_doubled(self, records: OffsetSet, log: LogState) -> None:
        self.touched.note_set(records)
        for minute, first, stop in log.minutes.parts(records.runs(), log.read):
            self.doubled.add(minute, stop - first)

    def _explain(self, reason: Reason, offsets: OffsetSet, log: LogState, moved: Moved, causes: tuple[Cause, ...]) -> None:
        rest = offsets.copy()
        for cause in causes:
            taken = self._take_open(cause, rest)
            if taken:
                moved.explained[cause] = taken
                self._note_explained(reason, taken)
                rest.difference_update(taken)
        if reason is Reason.QUARANTINED:
            taken = take(self.unread, rest)
            self._note_explained(reason, taken)
            self.untold[reason].update(taken)
            rest.difference_update(taken)
        count = rest.count
        log.without_absent(rest)
        if reason is Reason.QUARANTINED:
            self.absent_observed += count - rest.count
        rest.remove(0, self.settled or 0)
        for other in (*self.open.values(), *self.explained.values(), self.unread, self.received):
            drop(rest, other)
        self._note_explained(reason, rest)
        self.untold[reason].update(rest)

    def _note_explained(self, reason: Reason, offsets: OffsetSet) -> None:
        if offsets:
            self.explained[reason].update(offsets)
            self.touched.note_set(offsets)

    def _acknowledge(self, offsets: OffsetSet, log: LogState, moved: Moved, undo: bool) -> None:
        accepted = self.explained[Reason.ACKNOWLEDGED]
        if undo:
            for cause, was in self.acknowledged.items():
                back = take(was, offsets)
                if back:
                    accepted.difference_update(back)
                    self.add_open(cause, back, log)
                    moved.reopened[cause] = back
            self.unread.update(take(accepted, offsets))  # what was accepted without a cause was unread
            return
        for cause in Cause:
            taken = self._take_open(cause, offsets)
            if taken:
                self.acknowledged[cause].update(taken)
                self._note_explained(Reason.ACKNOWLEDGED, taken)
                moved.explained[cause] = taken
        moved.accepted = take(self.unread, offsets)
        self._note_explained(Reason.ACKNOWLEDGED, moved.accepted)

    def add_open(self, cause: Cause, offsets: OffsetSet, log: LogState) -> None:
        """Open these; the only way into an open set."""
        if offsets:
            self.open[cause].update(offsets)
            self.touched.note_set(offsets)
            self.gaps[cause].opened(offsets, log)
            self.untidy = True

    def _take_open(self, cause: Cause, wanted: OffsetSet) -> OffsetSet:
        """Take out what is open of ``wanted``; the only way out of an open set."""
        taken = take(self.open[cause], wanted)
        if taken:
            self.touched.note_set(taken)
            self.gaps[cause].closed(taken, self.open[cause])
            self.untidy = True
        return taken

    def find_gaps(self, log: LogState) -> None:
        """Make what is not kept of the open sets, after they were loaded."""
        for cause, offsets in self.open.items():
            self.gaps[cause] = Gaps()
            self.gaps[cause].opened(offsets, log)

    def gaps_ever(self, log: LogState) -> Iterator[Run]:
        """The gaps that are open, as they are when every acknowledgement is undone."""
        for cause, gaps in self.gaps.items():
            accepted = self.acknowledged[cause]
            if cause is Cause.EXPIRED:  # what was not received is opened as expired below the log's start
                accepted = accepted | self.acknowledged[Cause.NOT_RECEIVED]
            if accepted:
                gaps = Gaps()
                gaps.opened(self.open[cause] | accepted, log)
            yield from gaps

    # --- the horizon --------------------------------------------------------------------------------------------------

    def _note_lowest(self, observation: Observation, claimed: Claimed | None, log: LogState) -> None:
        # The first claim of a source counts: whoever goes back later, and forward again, answers for no more than before.
        claim = None if claimed is not None and claimed.before is not None else observation.claim
        said = [self.lowest, observation.runs[0][0] if observation.runs else None, claim]
        lowest = min((offset for offset in said if offset is not None), default=None)
        self.lowest = lowest if lowest is None else max(lowest, log.origin, log.forgotten)

    def _raise_horizon(self, observation: Observation, broker_ms: int, now_ms: int) -> None:
        before, unclaimed = self.horizon, self.claim is None
        if observation.runs:
            self.highest = max(observation.runs[-1][1], self.highest or 0)
        if observation.claim is not None:
            self.claim = max(observation.claim, self.claim or 0)
        after = self.horizon
        if after is None:
            return
        if unclaimed and self.claim is not None:
            # What was only observed counted as the horizon until now; a claim is the sink's own word and may be lower.
            self.samples = [sample for sample in self.samples if sample.horizon <= after]
            self.snapshots.take_back(after)
        if before is None or after > before:
            self.moved_ms = now_ms
        known = (self.settled, self.samples[-1].horizon if self.samples else None)
        if all(horizon is None or after > horizon for horizon in known):
            keep(self.samples, Sample(broker_ms, now_ms, after, self.snapshots.at_of(observation, now_ms)), self.policy.grace_ms)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def passed(self, broker_ms: int | None, heard_ms: int | None) -> int | None:
        """The highest horizon whose ``grace`` is over, by the clock of the sink's snapshots where it makes some.

        ``broker_ms``, ``heard_ms``: as :func:`stream_app.core.samples.passed_by_time` has them.
        """
        if self.snapshots.last_ms is None:
            samples, grace = self.samples, self.policy.grace_ms
            if self.policy.mirrored:  # and all that was copied by then is folded
                copied_ms = self.copied_ms
                samples = [] if copied_ms is None else [sample for sample in samples if sample.worker_ms + grace <= copied_ms]
            return passed_by_time(samples, grace, broker_ms, heard_ms)
        agreed = self.snapshots.agreed_to
        return agreed if self.settled is not None and agreed > self.settled else None

    def _agree(self, log: LogState) -> None:
        """A snapshot was taken: what it makes due is judged from the floor on that holds now."""
        start = self._lowest_answered(log) if self.settled is None else self.settled
        self.snapshots.agree(start, self.samples, self.policy.grace_ms)
        if self.snapshots.agreed_to and self.settled is None:
            self.fix_floor(log)

    def _lowest_answered(self, log: LogState) -> int:
        lowest = self.lowest if self.lowest is not None else log.read
        floor = next(offset for offset in (self.floor, self.policy.floor, lowest) if offset is not None)
        return max(floor, log.origin, log.forgotten) if self.floor is None else floor

    def fix_floor(self, log: LogState) -> None:
        """At the first verdict: the floor of the configuration, or the lowest offset observed or claimed.

        Never below what the log has forgotten: there nobody can tell any more which offsets hold records.
        """
        if self.floor is None:
            self.floor = self._lowest_answered(log)
            self.touched.note(*EVERYTHING[0])
            rest = (*self.explained.values(), *self.acknowledged.values(), *self.untold.values(), *self.again)
            for offsets in (self.received, self.unread, self.again_told, *rest):
                offsets.remove(0, self.floor)
            self.snapshots.forget_below(self.floor)
        if self.settled is None:
            self.settled = self.floor

    def unaccounted(self, first: int, stop: int, log: LogState) -> OffsetSet:
        """Records of ``[first, stop)``, ``first`` not below ``settled``, that are in no set of this sink."""
        if first >= stop:
            return OffsetSet()
        lacking = self.received.missing_in(first, stop)
        for known in (*self.explained.values(), *self.open.values(), self.unread):
            drop(lacking, known)
        return log.without_absent(lacking)

    def first_unaccounted(self, first: int, stop: int, log: LogState) -> int | None:
        """The lowest offset of :meth:`unaccounted`; looks no further than needed, however far behind the sink is."""
        width = CHUNK
        while first < stop:
            edge = min(stop, first + width)
            found = self.unaccounted(first, edge, log).first()
            if found is not None:
                return found
            first, width = edge, 2 * width
        return None

    def settle(self, stop: int, look: Look | None, log: LogState) -> dict[Cause, OffsetSet]:
        """Judge ``[settled, stop)``; what did not arrive goes where the look found it. Returns what is newly open."""
        assert self.settled is not None
        opened: dict[Cause, OffsetSet] = {}
        if look is not None:
            opened = self._judge(self.unaccounted(self.settled, stop, log), look, log)
        self.settled = stop
        self.received.remove(0, stop)
        self.samples = [sample for sample in self.samples if sample.horizon > stop]
        return opened

    def _judge(self, lacking: OffsetSet, look: Look, log: LogState) -> dict[Cause, OffsetSet]:
        opened: dict[Cause, OffsetSet] = {}

        def take(offsets: OffsetSet) -> OffsetSet:
            taken = offsets & lacking
            lacking.difference_update(taken)
            return taken

        if log.ever_compacted is not False:
            self._note_explained(Reason.COMPACTED, take(OffsetSet(look.holes)))
        if self.policy.tombstones_optional:
            self._note_explained(Reason.TOMBSTONE, take(OffsetSet(look.tombstones)))
        # Reports may be lost; a snapshot says all that there is.
        doubted = take(OffsetSet([(0, self.doubted_to if self.snapshots.last_ms is None else 0)]))
        self._note_explained(Reason.UNOBSERVED, doubted)
        self.untold[Reason.UNOBSERVED].update(doubted)
        opened[Cause.EXPIRED] = take(OffsetSet([(0, max(look.log_start, log.start))]) | OffsetSet(look.holes))
        opened[Cause.UNREADABLE] = take(OffsetSet(look.unreadable) | log.unreadable)
        opened[Cause.NOT_RECEIVED] = lacking
        for cause, offsets in opened.items():
            self.add_open(cause, offsets, log)
        return {cause: offsets for cause, offsets in opened.items() if offsets}

    def vanish(self, offsets: OffsetSet, log: LogState) -> OffsetSet:
        """Two agreeing snapshots lack these: what was received is open as ``vanished``. Returns what is newly open.

        Only what the log still holds is judged: below its start nobody can tell any more which offsets hold records.
        """
        first, last = offsets.first(), offsets.last()
        if first is None or last is None:
            return OffsetSet()
        gone = offsets & self.received_within(first, last + 1, log)
        self.received.difference_update(gone)
        self.add_open(Cause.VANISHED, gone, log)
        return gone

    def received_within(self, first: int, stop: int, log: LogState) -> OffsetSet:
        """Records of ``[first, stop)`` that were received, as far as the log was read and tells records apart."""
        found = self.received.within(first, max(first, min(stop, log.read)))
        if self.settled is not None:
            low, high = max(first, self.floor or 0, log.origin, log.start), min(stop, self.settled)
            below = OffsetSet([(low, high)] if low < high else ())
            for known in (*self.explained.values(), *self.open.values(), self.unread):
                drop(below, known)
            found.update(below)
        return log.without_absent(found)

    # --- the log moves ------------------------------------------------------------------------------------------------

    def expire_below(self, log: LogState) -> OffsetSet:
        """The log start passed: what was still in Kafka no longer is."""
        waiting = self.open[Cause.NOT_RECEIVED]
        first = waiting.first()
        if first is None or first >= log.start:
            return OffsetSet()
        gone = self._take_open(Cause.NOT_RECEIVED, waiting.within(0, log.start))
        self.add_open(Cause.EXPIRED, gone, log)
        return gone

    def note_unread(self, unread: OffsetSet, log: LogState) -> None:
        """Retention removed these before the reader got to them; what was said of them ahead of it stands."""
        lost = unread.within(max(self.floor or 0, log.origin), END)
        for said in (self.received, *self.explained.values()):
            drop(lost, said)
        self.unread.update(lost)

    def log_read_to(self, log: LogState, before: int) -> None:
        """The log was read on from ``before``: which of the offsets observed ahead of it are records is known now."""
        self.touched.note(before, log.read)
        for offsets in (self.received, *self.explained.values()):
            if (offsets.last() or 0) < before:
                continue
            ahead = offsets.within(before, log.read)
            records = log.without_absent(ahead.copy())
            offsets.difference_update(ahead - records)
            if offsets is self.received:
                self.observed += records.count
                if self.snapshots.last_ms is not None:
                    self.snapshots.note_absent(ahead - records)
            if offsets is not self.explained[Reason.UNOBSERVED]:
                self.absent_observed += ahead.count - records.count
        for level in self.again:
            twice = level.within(0, log.read)
            if not twice:
                continue
            level.remove(0, log.read)
            count = twice.count
            log.without_absent(twice)
            self.absent_observed += count - twice.count
            self.duplicates += twice.count
            self._note_doubled(twice, log)
            if self.policy.tell_duplicates:
                _once_more(self.untold_duplicates, twice & self.again_told)
        self.again_told.remove(0, log.read)
        for twice in self.snapshots.doubled_between(before, log.read):
            self._count_duplicates(log.without_absent(twice), log, alertable=True)

    def truncate(self, offset: int) -> dict[Cause, OffsetSet]:
        """The log lost everything from ``offset`` on: forget it. Returns what was open there."""
        closed = {}
        for cause in Cause:
            lost = self._take_open(cause, self.open[cause].within(offset, END))
            if lost:
                closed[cause] = lost
        rest = (*self.explained.values(), *self.acknowledged.values(), *self.untold.values(), *self.again, *self.untold_duplicates)
        for offsets in (self.received, self.unread, self.again_told, *rest):
            offsets.remove(offset, END)
        self.highest = min(self.highest, offset) if self.highest is not None else None
        self.claim = min(self.claim, offset) if self.claim is not None else None
        self.settled = min(self.settled, offset) if self.settled is not None else None
        self.floor = min(self.floor, offset) if self.floor is not None else None
        self.lowest = min(self.lowest, offset) if self.lowest is not None else None
        self.awaited = min(self.awaited, offset) if self.awaited is not None else None
        self.sources.truncate(offset)
        self.snapshots.truncate(offset)
        self.doubted_to = min(self.doubted_to, offset)
        self.samples = [replace(sample, horizon=min(sample.horizon, offset)) for sample in self.samples]
        return closed

    # --- what listings need -------------------------------------------------------------------------------------------

    def missing(self) -> OffsetSet:
        """Everything open, of any cause."""
        everything = OffsetSet()
        for gap in self.open.values():
            everything.update(gap)
        return everything

    def remember(self, opening: Opening) -> None:
        """Keep what listings need of a ``gap.opened``; beyond :data:`OPENINGS_MAX` neighbours are joined, coarser, never wrong."""
        self.openings.append(opening)
        if len(self.openings) > OPENINGS_MAX:
            self.openings = coarser(self.openings)

    def remember_times(self, offsets: OffsetSet, timestamps: Mapping[int, int]) -> None:
        """Keep the record times of the gaps' ends and of what lies beside them, as far as they are known."""
        for first, stop in offsets.runs():
            for offset in (first - 1, first, stop - 1, stop):
                if offset in timestamps and len(self.stamps) < STAMPS_MAX:
                    self.stamps[offset] = timestamps[offset]

    def tidy(self, log: LogState) -> None:
        """Drop openings and record times of which nothing is open any more; cut the others to what is."""
        if not self.untidy:
            return
        self.untidy = False
        everything = self.missing()
        self.openings = [o for o in self.openings if self._cut(o, everything, log)]
        lacking = everything | self.explained[Reason.ACKNOWLEDGED]
        beside = (-1, 0, 1)  # a gap's neighbours are remembered with its ends
        self.stamps = {at: ms for at, ms in self.stamps.items() if any(at + step in lacking for step in beside)}

    def _cut(self, opening: Opening, everything: OffsetSet, log: LogState) -> bool:
        """Let an opening begin at what is still open of it, so that what was filled holds nothing back; False: nothing is."""
        first = next((first for first, _ in everything.runs(opening.first, opening.stop)), None)
        if first is None:
            return False
        if first > opening.first:
            opening.first = first
            times = (opening.lowest_ms, log.timeline.lowest_from(first))
            opening.lowest_ms = max((ms for ms in times if ms is not None), default=None)
        return True


def _once_more(levels: list[OffsetSet], offsets: OffsetSet) -> None:
    """Note these once more, each in the first level that it is not in."""
    for level in levels:
        if not offsets:
            return
        carry = offsets & level
        level.update(offsets)
        offsets = carry
