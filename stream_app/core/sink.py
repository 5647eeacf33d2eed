"""What one sink said about one partition: sets of offsets by state, and the moves between them.

Below ``settled`` every offset of ``[floor, settled)`` is in exactly one state; "received" is not stored there: it is what is
left. At and above ``settled`` the received offsets are stored, and what is in none of the sets is in flight.
The moves are those of :mod:`stream_app.core.states`, as operations on sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stream_app.core.log import LogState
from stream_app.core.model import Cause, Look, Observation, Reason, Status
from stream_app.core.offsets import OffsetSet

SAMPLES_MAX = 32
"""(time, horizon) samples kept; they fall into buckets of grace/16, so 17 cover one grace."""
SOURCES_MAX = 1_024
"""Sources whose last sequence is remembered per sink and partition; the one silent longest is forgotten first."""
STAMPS_MAX = 10_000
"""Record times remembered for the ends of open gaps; beyond, a gap's times are unknown."""
AGAIN_MAX = 8
"""How many times an offset can be observed ahead of the log reader with each time counted as a duplicate."""
EXPLAINED = (Reason.TOMBSTONE, Reason.QUARANTINED, Reason.COMPACTED, Reason.ACKNOWLEDGED, Reason.UNOBSERVED)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a sink is judged; from its configuration."""

    name: str
    configured: bool = True
    grace_ms: int = 2_000
    floor: int | None = None
    """First offset that the sink answers for; None: the lowest observed before the first verdict."""
    tombstones_optional: bool = False
    stall_after_ms: int | None = 60_000
    tell_duplicates: bool = True


@dataclass(slots=True)
class Sample:
    """The horizon as it stood at a time, by the broker's clock and by the worker's."""

    broker_ms: int
    worker_ms: int
    horizon: int


@dataclass(slots=True)
class Opening:
    """One ``gap.opened`` of which something is still open: what listings need and the sets do not hold."""

    sequence: int
    cause: Cause
    first: int
    stop: int
    opened_at_ms: int
    lowest_ms: int | None
    """Lowest record time in it; None: unknown."""


@dataclass(slots=True)
class Moved:
    """What one observation moved: record offsets by what is to be said of them."""

    received: int = 0
    """Records received for the first time."""
    absent: int = 0
    """Offsets without a record that were observed all the same."""
    repeat: bool = False
    filled: dict[Cause, OffsetSet] = field(default_factory=dict)
    explained: dict[Cause, OffsetSet] = field(default_factory=dict)
    """Left an open set for the reason of the observation."""
    reopened: dict[Cause, OffsetSet] = field(default_factory=dict)
    duplicates: int = 0


@dataclass(slots=True)
class SinkState:
    """Sets and counters of one (partition, sink)."""

    policy: Policy
    heard: bool = False
    floor: int | None = None
    settled: int | None = None
    """None until the first verdict; then the end of what is judged."""
    highest: int | None = None
    """One past the highest offset observed."""
    claim: int | None = None
    samples: list[Sample] = field(default_factory=list)
    received: OffsetSet = field(default_factory=OffsetSet)
    again: list[OffsetSet] = field(default_factory=lambda: [OffsetSet() for _ in range(AGAIN_MAX)])
    """At or above ``log.read``: what was observed twice, three times, ...; judged when the log is read that far."""
    open: dict[Cause, OffsetSet] = field(default_factory=lambda: {cause: OffsetSet() for cause in Cause})
    explained: dict[Reason, OffsetSet] = field(default_factory=lambda: {reason: OffsetSet() for reason in EXPLAINED})
    acknowledged: dict[Cause, OffsetSet] = field(default_factory=lambda: {cause: OffsetSet() for cause in Cause})
    """What ``explained[acknowledged]`` was before, for an undo."""
    unread: OffsetSet = field(default_factory=OffsetSet)
    untold: dict[Reason, OffsetSet] = field(default_factory=lambda: {Reason.QUARANTINED: OffsetSet(), Reason.UNOBSERVED: OffsetSet()})
    """Explained before they were open, not told yet (told once the log is read that far)."""
    untold_duplicates: OffsetSet = field(default_factory=OffsetSet)
    sources: dict[str, int] = field(default_factory=dict)
    sequence: int = 0
    observed: int = 0
    duplicates: int = 0
    absent_observed: int = 0
    openings: list[Opening] = field(default_factory=list)
    stamps: dict[int, int] = field(default_factory=dict)
    moved_ms: int | None = None
    """When the horizon last rose, by the clock that judges."""
    stalled: bool = False
    complete_ms: int | None = None
    told_duplicates_ms: int | None = None

    @property
    def horizon(self) -> int | None:
        """Below it the sink claims to be done: its highest claim, or one past the highest offset observed."""
        return self.claim if self.claim is not None else self.highest

    # --- observations -------------------------------------------------------------------------------------------------

    def is_repeat(self, observation: Observation) -> bool:
        """At or below the last sequence of its source; notes the sequence."""
        if observation.source is None or observation.sequence is None:
            return False
        last = self.sources.pop(observation.source, None)
        repeat = last is not None and observation.sequence <= last
        self.sources[observation.source] = last if repeat and last is not None else observation.sequence
        while len(self.sources) > SOURCES_MAX:
            del self.sources[next(iter(self.sources))]
        return repeat

    def observe(self, observation: Observation, log: LogState, broker_ms: int, now_ms: int) -> Moved:
        """Take one observation that is not beyond the log's end."""
        moved = Moved()
        if self.is_repeat(observation):
            moved.repeat = True
            return moved
        self.heard = True
        offsets = OffsetSet(observation.runs)
        lowest = max(log.origin, self.floor or 0)
        offsets.remove(0, lowest)
        match observation.status:
            case Status.RECEIVED:
                alertable = observation.source is not None
                self._receive(offsets, log, moved, alertable)
            case Status.QUARANTINED:
                self._explain(Reason.QUARANTINED, offsets, log, moved, tuple(Cause))
            case Status.UNOBSERVED:
                self._explain(Reason.UNOBSERVED, offsets, log, moved, (Cause.NOT_RECEIVED,))
            case Status.ACKNOWLEDGED:
                self._acknowledge(offsets, moved, observation.undo)
                return moved
        self._raise_horizon(observation, broker_ms, now_ms)
        return moved

    def _receive(self, offsets: OffsetSet, log: LogState, moved: Moved, alertable: bool) -> None:
        unknown = offsets.within(log.read, 2**63)
        known = offsets.within(0, log.read)
        count = known.count
        records = log.without_absent(known)
        moved.absent = count - records.count
        self.absent_observed += moved.absent
        self._receive_records(records, moved, alertable)
        self._receive_ahead(unknown, moved)

    def _receive_records(self, records: OffsetSet, moved: Moved, alertable: bool) -> None:
        fresh = self._take_from(self.unread, records)
        for reason in EXPLAINED:
            fresh += self._take_from(self.explained[reason], records)
        for was in self.acknowledged.values():
            _drop(was, records)
        for cause, gap in self.open.items():
            filled = _take(gap, records)
            if filled:
                moved.filled[cause] = filled
                fresh += filled.count
                records.difference_update(filled)
        edge = self.settled if self.settled is not None else 0
        ahead = records.within(edge, 2**63)
        new = ahead - self.received
        self.received.update(new)
        fresh += new.count
        records.difference_update(new)
        self.observed += fresh
        moved.received += fresh
        if records:
            self._count_duplicates(records, alertable)
            moved.duplicates += records.count

    def _take_from(self, explained: OffsetSet, records: OffsetSet) -> int:
        """Explained or unread offsets that arrive after all become received, silently."""
        taken = _take(explained, records)
        if not taken:
            return 0
        edge = self.settled if self.settled is not None else 0
        self.received.update(taken.within(edge, 2**63))
        records.difference_update(taken)
        return taken.count

    def _receive_ahead(self, offsets: OffsetSet, moved: Moved) -> None:
        """Above ``log.read`` it is not known yet which offsets are records: count how often each was observed."""
        for reason in EXPLAINED:
            taken = _take(self.explained[reason], offsets)
            if taken and reason in self.untold:
                self.untold[reason].difference_update(taken)
        before = self.received.count
        for seen in (self.received, *self.again):
            carry = offsets & seen
            seen.update(offsets)
            offsets = carry
            if not offsets:
                break
        moved.received += self.received.count - before
        self.observed += self.received.count - before

    def _count_duplicates(self, records: OffsetSet, alertable: bool) -> None:
        self.duplicates += records.count
        if alertable and self.policy.tell_duplicates:
            self.untold_duplicates.update(records)

    def _explain(self, reason: Reason, offsets: OffsetSet, log: LogState, moved: Moved, causes: tuple[Cause, ...]) -> None:
        rest = offsets.copy()
        for cause in causes:
            taken = _take(self.open[cause], rest)
            if taken:
                moved.explained[cause] = taken
                self._note_explained(reason, taken)
                rest.difference_update(taken)
        if reason is Reason.QUARANTINED:
            taken = _take(self.unread, rest)
            self._note_explained(reason, taken)
            self.untold[reason].update(taken)
            rest.difference_update(taken)
        edge = self.settled if self.settled is not None else 0
        rest.remove(0, edge)
        for other in (*self.open.values(), *self.explained.values(), self.unread, self.received):
            _drop(rest, other)
        log.without_absent(rest)
        self._note_explained(reason, rest)
        self.untold[reason].update(rest)

    def _note_explained(self, reason: Reason, offsets: OffsetSet) -> None:
        if offsets:
            self.explained[reason].update(offsets)

    def _acknowledge(self, offsets: OffsetSet, moved: Moved, undo: bool) -> None:
        if undo:
            for cause, was in self.acknowledged.items():
                back = _take(was, offsets)
                if back:
                    self.explained[Reason.ACKNOWLEDGED].difference_update(back)
                    self.open[cause].update(back)
                    moved.reopened[cause] = back
            return
        for cause, gap in self.open.items():
            taken = _take(gap, offsets)
            if taken:
                self.acknowledged[cause].update(taken)
                self._note_explained(Reason.ACKNOWLEDGED, taken)
                moved.explained[cause] = taken
        self._note_explained(Reason.ACKNOWLEDGED, _take(self.unread, offsets))

    def _raise_horizon(self, observation: Observation, broker_ms: int, now_ms: int) -> None:
        before = self.horizon
        if observation.runs:
            stop = observation.runs[-1][1]
            self.highest = max(stop, self.highest or 0)
        if observation.claim is not None:
            self.claim = max(observation.claim, self.claim or 0)
        after = self.horizon
        if after is None or (before is not None and after <= before and self.samples):
            return
        if before is None or after > before:
            self.moved_ms = now_ms
        if self.settled is not None and after <= self.settled:
            return
        self._sample(Sample(broker_ms, now_ms, after))

    def _sample(self, sample: Sample) -> None:
        """Keep the horizon's history, in buckets; a merged sample takes the later time, so a verdict is late, never early."""
        width = max(self.policy.grace_ms // 16, 1)
        buckets = [(s.broker_ms // width, s.worker_ms // width) for s in (*self.samples[-1:], sample)]
        if len(buckets) == 2 and buckets[0] == buckets[1]:
            self.samples[-1] = sample
            return
        self.samples.append(sample)
        if len(self.samples) > SAMPLES_MAX:
            del self.samples[0]

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def passed(self, broker_ms: int | None, heard_ms: int | None) -> Sample | None:
        """The highest sample whose ``grace`` is over.

        ``broker_ms``: broker's time of the last observation read; ``heard_ms``: worker's time up to which the observations
        were read to their end. Each is compared with its own clock only, so clocks that differ do no harm, and a worker that
        was frozen judges nothing before it has read what it missed.
        """
        grace = self.policy.grace_ms
        found = None
        for sample in self.samples:
            by_broker = broker_ms is not None and sample.broker_ms + grace <= broker_ms
            by_worker = heard_ms is not None and sample.worker_ms + grace <= heard_ms
            if by_broker or by_worker:
                found = sample
        return found

    def fix_floor(self, log: LogState) -> None:
        """At the first verdict: the floor of the configuration, or the lowest offset observed or claimed."""
        if self.floor is None:
            said = [self.received.first(), self.claim, *(explained.first() for explained in self.explained.values())]
            lowest = min((offset for offset in said if offset is not None), default=log.read)
            floor = self.policy.floor if self.policy.floor is not None else lowest
            self.floor = max(floor, log.origin)
            for offsets in (self.received, *self.explained.values(), *self.again):
                offsets.remove(0, self.floor)
        if self.settled is None:
            self.settled = self.floor

    def candidates(self, stop: int, log: LogState) -> OffsetSet:
        """Records of ``[settled, stop)`` that did not arrive and that nothing explains."""
        assert self.settled is not None
        return self.unaccounted(self.settled, stop, log)

    def unaccounted(self, first: int, stop: int, log: LogState) -> OffsetSet:
        """Records of ``[first, stop)``, ``first`` not below ``settled``, that are in no set of this sink."""
        if first >= stop:
            return OffsetSet()
        lacking = self.received.missing_in(first, stop)
        for known in (*self.explained.values(), *self.open.values(), self.unread):
            _drop(lacking, known)
        return log.without_absent(lacking)

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

        opened[Cause.EXPIRED] = take(OffsetSet([(0, max(look.log_start, log.start))]))
        holes = take(OffsetSet(look.holes))
        if log.ever_compacted is False:
            opened[Cause.EXPIRED].update(holes)
        else:
            self._note_explained(Reason.COMPACTED, holes)
        if self.policy.tombstones_optional:
            self._note_explained(Reason.TOMBSTONE, take(OffsetSet(look.tombstones)))
        opened[Cause.UNREADABLE] = take(OffsetSet(look.unreadable) | log.unreadable)
        opened[Cause.NOT_RECEIVED] = lacking
        for cause, offsets in opened.items():
            self.open[cause].update(offsets)
        return {cause: offsets for cause, offsets in opened.items() if offsets}

    def vanish(self, offsets: OffsetSet, log: LogState) -> OffsetSet:
        """Two agreeing snapshots lack these: what was received is open as ``vanished``. Returns what is newly open."""
        gone = offsets.within(self.floor or log.origin, self.settled or 0)
        for known in (*self.explained.values(), *self.open.values(), self.unread):
            _drop(gone, known)
        ahead = offsets & self.received
        self.received.difference_update(ahead)
        gone = log.without_absent(gone | ahead)
        self.open[Cause.VANISHED].update(gone)
        return gone

    # --- the log moves ------------------------------------------------------------------------------------------------

    def expire_below(self, start: int) -> OffsetSet:
        """The log start passed: what was still in Kafka no longer is."""
        gone = self.open[Cause.NOT_RECEIVED].within(0, start)
        if gone:
            self.open[Cause.NOT_RECEIVED].difference_update(gone)
            self.open[Cause.EXPIRED].update(gone)
        return gone

    def log_read_to(self, log: LogState, before: int) -> None:
        """The log was read on from ``before``: which of the offsets observed ahead of it are records is known now."""
        for offsets in (self.received, *self.explained.values()):
            if offsets and (offsets.last() or 0) >= before:
                part = offsets.within(before, log.read)
                absent = part - log.without_absent(part.copy())
                if absent:
                    offsets.difference_update(absent)
                    self.absent_observed += absent.count
                    self.observed -= absent.count
        for level in self.again:
            twice = log.without_absent(level.within(0, log.read))
            level.remove(0, log.read)
            if twice:
                self._count_duplicates(twice, alertable=True)

    def truncate(self, offset: int) -> dict[Cause, OffsetSet]:
        """The log lost everything from ``offset`` on: forget it. Returns what was open there."""
        closed = {}
        for cause, gap in self.open.items():
            lost = gap.within(offset, 2**63)
            if lost:
                closed[cause] = lost
                gap.difference_update(lost)
        rest = (*self.explained.values(), *self.acknowledged.values(), *self.untold.values(), *self.again)
        for offsets in (self.received, self.unread, self.untold_duplicates, *rest):
            offsets.remove(offset, 2**63)
        self.highest = min(self.highest, offset) if self.highest is not None else None
        self.claim = min(self.claim, offset) if self.claim is not None else None
        self.settled = min(self.settled, offset) if self.settled is not None else None
        self.floor = min(self.floor, offset) if self.floor is not None else None
        self.samples = [Sample(s.broker_ms, s.worker_ms, min(s.horizon, offset)) for s in self.samples]
        return closed

    # --- what listings need -------------------------------------------------------------------------------------------

    def missing(self) -> OffsetSet:
        """Everything open, of any cause."""
        everything = OffsetSet()
        for gap in self.open.values():
            everything.update(gap)
        return everything

    def tidy(self) -> None:
        """Drop openings and record times of which nothing is open any more."""
        everything = self.missing()
        self.openings = [o for o in self.openings if everything.count_within(o.first, o.stop)]
        self.stamps = {offset: ms for offset, ms in self.stamps.items() if offset in everything}


def _take(source: OffsetSet, wanted: OffsetSet) -> OffsetSet:
    """Move the common offsets out of ``source``."""
    if not source or not wanted:
        return OffsetSet()
    taken = source & wanted
    if taken:
        source.difference_update(taken)
    return taken


def _drop(target: OffsetSet, known: OffsetSet) -> None:
    if known and target:
        target.difference_update(known)
