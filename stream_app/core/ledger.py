"""The ledger of one partition: what the log holds, what each sink received, and therefore what is missing.

Runs and observations go in, events and changed sets come out; see docs/DESIGN.md, "The ledger". Nothing here waits, reads a
clock or knows Kafka. The owner calls, in this order and as often as it likes: :meth:`fold_log`, :meth:`observe`,
:meth:`heard_to_end`; then :meth:`candidates`, a look at them, :meth:`settle`; then :meth:`evaluate` and a flush.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stream_app.core import complete, stall
from stream_app.core.codec import topic_id_text
from stream_app.core.events import Event, EventType
from stream_app.core.log import LogState
from stream_app.core.model import (
    CHUNK,
    NO_TOPIC_ID,
    Absent,
    Cause,
    Drop,
    LogEnds,
    LogRead,
    Look,
    Observation,
    ObservationRead,
    Reason,
    Run,
    Runs,
    Status,
    other_topic,
)
from stream_app.core.moved import Moved
from stream_app.core.offsets import OffsetSet
from stream_app.core.policy import Policy
from stream_app.core.sink import SinkState
from stream_app.core.snapshots import FORMER_CHECK
from stream_app.core.sources import described
from stream_app.core.telling import Telling

LOG_SINK = "log"
"""The built-in sink: what the log itself lacks."""
UNCONFIGURED_MAX = 32
"""Sinks kept per partition that report but stand in no configuration."""
LOOK_SPAN_MAX = 32 * CHUNK
"""Offsets judged in one step: bounds what one second look has to read."""
LOOK_RUNS_MAX = 1_000
AHEAD_MS = 86_400_000
"""A snapshot's time may be ahead of the broker's so far: clocks differ, but not by more than a day."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a second look is needed for before ``[settled, stop)`` of a sink is judged."""

    sink: str
    stop: int
    passed_ms: int
    """When the horizon passed the first of them, by the worker's clock."""
    runs: Runs
    epoch: int
    """Of the ledger when they were found."""


@dataclass(slots=True)
class Ledger:
    """All that is known of one partition; owned by one worker at a time."""

    topic: str
    partition: int
    birth: str
    """Names this state: a state that had to begin anew has another one, and its events begin at 1."""
    log: LogState
    policies: dict[str, Policy]
    sinks: dict[str, SinkState] = field(default_factory=dict)
    observed_to: int = 0
    """Next offset of the observations partition to fold."""
    observations_id: bytes = NO_TOPIC_ID
    """Topic id of the observations topic."""
    broker_ms: int | None = None
    """Broker's time of the last observation folded; never backward."""
    heard_ms: int | None = None
    """Worker's time up to which the observations were read to their end; of this owner, not kept."""
    lateness_ms: int = 0
    """How late a record's time may be and still count for ``complete through``."""
    retention_ms: int | None = None
    """The watched topic's retention.ms, for ``expires_at``; None: unknown or unlimited."""
    read_committed: bool = True
    """Whether records count by the last stable offset; under read_uncommitted nobody tells where it is."""
    unnamed_to: int = 0
    """Observations below this offset of theirs are taken only if they name the topic id: the topic was re-created about then."""
    reborn: bool = False
    """Whether the topic was re-created since it was first seen."""
    mirrored: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)
    """By partition of a topic of copies that is this partition's to read: where it is read on, the sequence of the next report, and
    the topic's id."""
    partitions: int = 0
    """How many partitions the topic had when this one was first seen; 0: not known."""
    epoch: int = 0
    """How often the log was truncated or re-created, or a sink dropped, since this worker took over: a look from before says nothing
    of what is there."""
    unknown_after_ms: int = 300_000
    """Checks of a sink that fail for so long make it unknown."""
    forget_after_ms: int | None = None
    """A sink that stands in no configuration and is silent for so long is forgotten; None: never."""
    gone: set[str] = field(default_factory=set)
    """Sinks that were forgotten, until somebody takes them out."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Sinks that were forgotten after events of theirs were told -> the last sequence: whoever comes back goes on from there."""

    telling: Telling = field(init=False)

    def __post_init__(self) -> None:
        self.telling = Telling(self.topic, self.partition)
        for sink in self.sinks.values():
            sink.find_gaps(self.log)
        self.configure(self.policies, 0)

    @classmethod
    def create(
        cls, topic: str, partition: int, birth: str, *, topic_id: bytes, log_start: int, log_end: int, policies: Mapping[str, Policy]
    ) -> Ledger:
        """State of a partition seen for the first time; reading begins at the log's start."""
        log = LogState(topic_id, origin=log_start, seen_end=log_end, start=log_start, read=log_start, end=log_end, last_stable=log_end)
        return cls(topic, partition, birth, log, dict(policies))

    def expanded(self, now_ms: int) -> None:
        """This partition was added to a topic that is watched already."""
        self.telling.tell(
            EventType.LOG_EXPANDED, self.sinks[LOG_SINK], self.log, now_ms, reason=f"partition {self.partition} was added to the topic"
        )

    def configure(self, policies: Mapping[str, Policy], now_ms: int) -> None:
        """Apply the configuration: new sinks begin, known ones change their rules, those that left it are kept apart."""
        self.policies = dict(policies)
        for name, policy in (*self.policies.items(), (LOG_SINK, Policy(LOG_SINK))):
            if name in self.sinks:
                self._returns(self.sinks[name], policy, now_ms)
            else:
                self._add_sink(policy)
        for name, sink in self.sinks.items():
            if name not in self.policies and name != LOG_SINK and sink.policy.configured:
                self._leaves(sink, now_ms)

    def _returns(self, sink: SinkState, policy: Policy, now_ms: int) -> None:
        told, sink.policy, sink.silent_ms = sink.policy.configured, policy, None
        if not told:
            sink.openings.clear()
            for cause in Cause:
                self._open(sink, cause, sink.open[cause].copy(), now_ms)

    def _leaves(self, sink: SinkState, now_ms: int) -> None:
        """Nobody is alerted of it any more: close for subscribers what is open; it stays open here, in case it comes back."""
        told = {"reason": "the sink left the configuration", "open_count": 0, "open_gaps": 0}
        for cause in Cause:
            self.telling.tell_of(sink.open[cause], EventType.GAP_EXPLAINED, sink, self.log, now_ms, cause=cause, **told)
        self.telling.tell(EventType.SINK_REMOVED, sink, self.log, now_ms, **told)
        sink.policy = Policy.unconfigured(sink.policy.name)
        sink.silent_ms = now_ms

    def _add_sink(self, policy: Policy) -> SinkState:
        sink = SinkState(policy, sequence=self.dropped.pop(policy.name, 0))
        if policy.floor is not None:
            sink.floor = max(policy.floor, self.log.origin, self.log.start)  # what was gone before it came is not its loss
        # A set of its own: a copy would take over from the log's set what was stored of it already, and never be stored itself.
        sink.unread = OffsetSet(self.log.unread.runs(max(sink.floor or 0, self.log.origin)))
        self.sinks[policy.name] = sink
        return sink

    def judged(self) -> Iterable[SinkState]:
        """Every sink but the log itself."""
        return (sink for name, sink in self.sinks.items() if name != LOG_SINK)

    def begin(self, now_ms: int) -> None:
        """A worker takes over: what was timed by another worker's clock starts anew."""
        self.heard_ms = None
        for sink in self.judged():
            sink.moved_ms = now_ms if sink.stands_at is not None and not sink.stalled else None
            for sample in sink.samples:
                sample.worker_ms = now_ms
            if sink.policy.configured:
                sink.snapshots.goes_on(sink.policy.checks)
            elif sink.silent_ms is None:
                sink.silent_ms = now_ms

    # --- inputs -------------------------------------------------------------------------------------------------------

    def fold_log(self, read: LogRead, now_ms: int) -> bool:
        """Take one answer of the log reader; False: it does not follow what was read, have the reader go back."""
        log = self.log
        if not log.takes(read):
            return False
        before = log.read
        idle = [sink for sink in self.judged() if stall.is_idle(log, sink, before)]
        absent, holes = self._explain_holes(read)
        log.note_absent(Absent.COMPACTED, absent)
        log.advance(read, now_ms)
        if holes:
            self._open_holes(holes, now_ms)
        if read.unread:
            self._note_unread(read.unread, now_ms)
        self.telling.tell_of(OffsetSet(read.unreadable), EventType.LOG_UNREADABLE, self.sinks[LOG_SINK], self.log, now_ms)
        for sink in idle:
            sink.moved_ms = now_ms
        for sink in self.judged():
            if log.read > before:
                sink.log_read_to(log, before)
            self._expire(sink, now_ms)
        self._forget()
        return True

    def accuses(self, read: LogRead) -> Runs:
        """Holes of an answer that would be told as the log's: whoever asks looks at them once more before it is folded."""
        return self._explain_holes(read)[1] if self.log.takes(read) else ()

    def _explain_holes(self, read: LogRead) -> tuple[Runs, Runs]:
        """Holes are compaction's, but for those written after first sight where cleanup.policy never was ``compact``."""
        if self.log.ever_compacted is not False:
            return read.holes, ()
        edge = self.log.seen_end
        compacted = tuple((first, min(stop, edge)) for first, stop in read.holes if first < edge)
        unexplained = tuple((max(first, edge), stop) for first, stop in read.holes if stop > edge)
        return compacted, unexplained

    def _open_holes(self, holes: Runs, now_ms: int) -> None:
        offsets = OffsetSet(holes)
        self.log.holes.update(offsets)
        sink = self.sinks[LOG_SINK]
        sink.add_open(Cause.LOG_HOLE, offsets, self.log)
        self._open(sink, Cause.LOG_HOLE, offsets, now_ms)

    def _note_unread(self, unread: Runs, now_ms: int) -> None:
        offsets = OffsetSet(unread)
        for sink in self.judged():
            sink.note_unread(offsets, self.log)
        self.telling.tell_of(offsets, EventType.LOG_UNREAD, self.sinks[LOG_SINK], self.log, now_ms)

    def _expire(self, sink: SinkState, now_ms: int) -> None:
        gone = sink.expire_below(self.log)
        self.telling.tell_of(gone, EventType.GAP_EXPIRED, sink, self.log, now_ms, cause=Cause.EXPIRED)

    def _forget(self) -> None:
        """Below the log's start, and below what any sink has to judge still, absent offsets need not be told apart."""
        edge = self.log.start
        for sink in self.judged():
            judged_to = next((offset for offset in (sink.settled, sink.floor, sink.lowest) if offset is not None), edge)
            edge = min(edge, judged_to)
        if edge > self.log.forgotten:
            gaps = OffsetSet(run for sink in self.sinks.values() for run in sink.gaps_ever(self.log))
            self.log.forget_below(edge, gaps, [sink.floor for sink in self.judged() if sink.floor is not None])

    def of_another(self, read: ObservationRead, observation: Observation) -> bool:
        """Whether it speaks of another topic of the same name, or may do so."""
        if observation.topic_id is None:
            return read.offset < self.unnamed_to
        return other_topic(self.log.topic_id, observation.topic_id)

    def ahead_of_time(self, read: ObservationRead, observation: Observation) -> bool:
        """Whether it is a snapshot that was taken long after it was written: believed, it would make every later one an old one."""
        snapshot = observation.snapshot
        return snapshot is not None and read.timestamp_ms >= 0 and snapshot.at_ms > read.timestamp_ms + AHEAD_MS

    def beyond_end(self, observation: Observation) -> bool:
        """Whether it speaks of offsets at or above the known high watermark, or claims more; ask for the end afresh then."""
        stop = observation.runs[-1][1] if observation.runs else 0
        return max(stop, observation.claim or 0) > self.log.end

    def end_is(self, high_watermark: int) -> None:
        """The high watermark, asked afresh."""
        self.log.end = max(self.log.end, high_watermark)

    def follows(self, read: ObservationRead) -> bool:
        """The fence of the observations: only what follows the head changes anything."""
        return read.position == self.observed_to <= read.offset

    def observe(self, read: ObservationRead, observation: Observation | Drop | None, now_ms: int) -> bool:
        """Fold one record of the observations topic (None: it was rejected); False: it does not follow, seek back."""
        if not self.follows(read):
            return False
        self.observed_to = read.offset + 1
        self.broker_ms = max(read.timestamp_ms, self.broker_ms or 0)
        if observation is None:
            return True
        if isinstance(observation, Drop):
            self.forget(observation.sink)
            return True
        sink = self.sinks.get(observation.sink) or self._add_sink(Policy.unconfigured(observation.sink))
        # A worker's clock that was set back must not make a new horizon older than what was heard: grace would be over at once.
        moved = sink.observe(observation, self.log, self.broker_ms, max(now_ms, self.heard_ms or 0))
        if not sink.policy.configured:
            sink.silent_ms = now_ms
        self._tell_moved(sink, observation, moved, now_ms)
        if moved.vanished:
            self.vanish(sink.policy.name, moved.vanished, now_ms)
        return True

    def forget(self, name: str) -> bool:
        """Forget a sink that stands in no configuration, with all that it said; False: there is none, or it stands in one.

        Whatever was open of it was closed for subscribers when it left, so nothing is told.
        """
        sink = self.sinks.get(name)
        if sink is None or sink.policy.configured or name == LOG_SINK:
            return False
        del self.sinks[name]
        self.mirrored = {key: at for key, at in self.mirrored.items() if not key.startswith(f"{name}/topic:")}
        self.epoch += 1
        self.gone.add(name)
        if sink.sequence:
            self.dropped[name] = sink.sequence
        return True

    def has_room_for(self, name: str) -> bool:
        """Whether a sink of this name may report: configured, known, or one of few that are neither."""
        return name in self.sinks or sum(not sink.policy.configured for sink in self.judged()) < UNCONFIGURED_MAX

    def _tell_moved(self, sink: SinkState, observation: Observation, moved: Moved, now_ms: int) -> None:
        for cause, offsets in moved.filled.items():
            self.telling.tell_of(offsets, EventType.GAP_FILLED, sink, self.log, now_ms, cause=cause)
        acknowledged = observation.status is Status.ACKNOWLEDGED
        kind = EventType.GAP_ACKNOWLEDGED if acknowledged else EventType.GAP_EXPLAINED
        reason = observation.reason if acknowledged else str(observation.status)
        for cause, offsets in moved.explained.items():
            self.telling.tell_of(offsets, kind, sink, self.log, now_ms, cause=cause, reason=reason, by=observation.by)
        self.telling.tell_of(moved.accepted, kind, sink, self.log, now_ms, reason=reason, by=observation.by)
        for cause, offsets in moved.reopened.items():
            self._open(sink, cause, offsets, now_ms, reason="acknowledgement undone", by=observation.by)
        if moved.reopened:
            self._expire(sink, now_ms)
        if moved.claimed is not None and moved.claimed.went_back and observation.source is not None:
            who = described(observation.source)
            reason = f"{who} went back from {moved.claimed.before} to {moved.claimed.now}"
            self.telling.tell(EventType.SINK_REWOUND, sink, self.log, now_ms, reason=reason)

    def doubt(self, log_end: int) -> None:
        """Reports were lost before they were read: of what lacks below the log's end, as it is now, nobody knows whether it arrived."""
        self.end_is(log_end)
        for sink in self.judged():
            sink.doubted_to = max(sink.doubted_to, self.log.end)

    def heard_in_topic(self, names: Collection[str], now_ms: int) -> None:
        """These sinks are heard of in some partition of the topic; what this one's ledger can't know by itself."""
        for name in names:
            sink = self.sinks.get(name)
            if sink is not None and name != LOG_SINK:
                stall.await_here(self.log, sink, now_ms)

    def note_check(self, name: str, check: str, failure: str | None, now_ms: int) -> None:
        """What was asked of a sink beside its observations answered (None), or why it did not; nothing if there is no such sink."""
        sink = self.sinks.get(name)
        if sink is not None:
            sink.checks.note(check, failure, now_ms)

    def heard_to_end(self, at_ms: int) -> None:
        """The observations were read to their end as it was at this time (worker's clock)."""
        self.heard_ms = max(at_ms, self.heard_ms or 0)

    # --- verdicts -----------------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidates]:
        """Settle what needs no look; return what does, one step per sink, bounded."""
        found = []
        for sink in self.judged():
            horizon = sink.passed(self.broker_ms, self.heard_ms)
            if horizon is None:
                continue
            sink.fix_floor(self.log)
            due = self._due(sink, min(horizon, self.log.read))
            if due is not None:
                found.append(due)
        return found

    def has_due(self) -> bool:
        """Whether some sink's horizon has passed its grace beyond what is judged: time for :meth:`candidates`."""
        for sink in self.judged():
            horizon = sink.passed(self.broker_ms, self.heard_ms)
            if horizon is not None and min(horizon, self.log.read) > (sink.settled if sink.settled is not None else -1):
                return True
        return False

    def _due(self, sink: SinkState, stop: int) -> Candidates | None:
        settled = sink.settled
        assert settled is not None
        if stop <= settled:
            return None
        first = sink.first_unaccounted(settled, stop, self.log)
        if first is None:
            sink.settle(stop, None, self.log)
            return None
        sink.settle(first, None, self.log)
        stop = min(stop, first + LOOK_SPAN_MAX)
        runs: list[Run] = []
        for a, b in sink.unaccounted(first, stop, self.log).runs():
            if len(runs) == LOOK_RUNS_MAX:
                stop = a
                break
            runs.append((a, b))
        # The samples left are those above the first candidate: the earliest of them is the one that passed it.
        return Candidates(sink.policy.name, stop, sink.samples[0].worker_ms, tuple(runs), self.epoch)

    def settle(self, due: Candidates, look: Look, now_ms: int) -> None:
        """Judge what was looked at, as far as the look got; nothing if the log lost its end or became another one meanwhile."""
        sink = self.sinks.get(due.sink)
        stop = min(due.stop, look.upto)
        if due.epoch != self.epoch or sink is None or sink.settled is None or stop <= sink.settled:
            return
        opened = sink.settle(stop, look, self.log)
        if opened:
            self._tell_checks(sink, now_ms)
        for cause, offsets in opened.items():
            sink.remember_times(offsets, look.timestamps | look.beside)
            self._open(sink, cause, offsets, now_ms, passed_ms=due.passed_ms, timestamps=look.timestamps)

    def _open(self, sink: SinkState, cause: Cause, offsets: OffsetSet, now_ms: int, **facts: Any) -> None:
        self.telling.opened(cause, offsets, sink, self.log, now_ms, retention_ms=self.retention_ms, **facts)

    def vanish(self, name: str, offsets: OffsetSet, now_ms: int) -> None:
        """Two agreeing snapshots of a sink lack these offsets."""
        sink = self.sinks[name]
        gone = sink.vanish(offsets, self.log)
        if gone:
            self._tell_checks(sink, now_ms)
            self._open(sink, Cause.VANISHED, gone, now_ms)

    def _tell_checks(self, sink: SinkState, now_ms: int) -> None:
        """Before gaps are told, too: whoever subscribes must not hear of gaps of a sink that is still unknown to him."""
        self.telling.checks(sink, self.log, self.unknown_after_ms, now_ms)

    # --- the log lost its end, or is another one -----------------------------------------------------------------------

    def truncate(self, offset: int, now_ms: int, *, reason: str | None = None) -> None:
        """The log lost everything from ``offset`` on: tell it, forget it, read it again."""
        self.epoch += 1
        lost = OffsetSet([(offset, max(self.log.read, offset))])
        for sink in self.sinks.values():
            self._close_truncated(sink, sink.truncate(offset), now_ms, reason or "the log was truncated")
        self.telling.tell_of(lost, EventType.LOG_TRUNCATED, self.sinks[LOG_SINK], self.log, now_ms, reason=reason)
        self.log.truncate(offset)

    def _close_truncated(self, sink: SinkState, closed: Mapping[Cause, OffsetSet], now_ms: int, reason: str) -> None:
        for cause, offsets in closed.items():
            self.telling.tell_of(
                offsets, EventType.GAP_EXPLAINED, sink, self.log, now_ms, cause=cause, reason=f"{Reason.TRUNCATED}: {reason}"
            )

    def recreate(
        self, topic_id: bytes, ends: LogEnds, now_ms: int, *, observations_end: int, compacted: bool | None, partitions: int
    ) -> None:
        """The topic is another one of the same name: close what was open, begin anew; nothing is compared across the two.

        ``observations_end``: of the observations partition now. What was written below it may speak of either topic: unless it
        names the id it is not taken, so that what it may have said of the new one is in doubt.
        ``compacted``, ``partitions``: as :attr:`LogState.ever_compacted` and :attr:`partitions`, of the new one.
        """
        log_start, log_end = ends.log_start, ends.high_watermark
        self.epoch += 1
        self.partitions, self.reborn, self.mirrored = partitions, True, {}
        for sink in self.sinks.values():
            self._close_truncated(sink, sink.truncate(0), now_ms, "the topic was re-created")
        self.telling.tell(
            EventType.LOG_RECREATED, self.sinks[LOG_SINK], self.log, now_ms, reason=f"its id is {topic_id_text(topic_id)} now"
        )
        told = {name: (sink.sequence, sink.stalled, sink.checks, sink.silent_ms) for name, sink in self.sinks.items()}
        blocks = self.log.minutes.blocks() | self.log.minutes.told
        self.log = LogState(topic_id, origin=log_start, seen_end=log_end, start=log_start, read=log_start, end=log_end, last_stable=log_end)
        self.log.ever_compacted = compacted
        self.log.minutes.told = blocks
        self.sinks = {}
        # Whoever received the old one answers for all of the new one.
        self.configure({name: replace(policy, floor=0) for name, policy in self.policies.items()}, now_ms)
        for name, (sequence, stalled, checks, silent_ms) in told.items():
            sink = self.sinks.get(name) or self._add_sink(Policy.unconfigured(name))
            sink.sequence, sink.stalled, sink.checks, sink.silent_ms = sequence, stalled, checks, silent_ms
            if FORMER_CHECK in sink.policy.checks:
                reason = f"{self.topic} was deleted and made anew: what {name} holds may be of the former one"
                sink.checks.fail_at_once(FORMER_CHECK, reason)
        self.unnamed_to = observations_end
        self.doubt(log_end)

    # --- telling ------------------------------------------------------------------------------------------------------

    def evaluate(self, now_ms: int) -> None:
        """What comes by time rather than at once: early explanations, duplicates, stalls, checks that fail; sinks are forgotten."""
        for sink in list(self.judged()):
            silent_ms, after = sink.silent_ms, self.forget_after_ms
            if silent_ms is not None and after is not None and now_ms - silent_ms >= after:
                self.forget(sink.policy.name)
                continue
            self.telling.explained_early(sink, self.log, now_ms)
            self.telling.duplicates(sink, self.log, now_ms)
            self.telling.stall(sink, self.log, self.heard_ms, now_ms)
            self._tell_checks(sink, now_ms)
        for sink in self.sinks.values():
            sink.tidy(self.log)
            sink.doubled.keep(self.log.minutes)
            sink.complete_ms = complete.through(self.log, sink, self.lateness_ms, is_log=sink.policy.name == LOG_SINK)

    def complete_bound(self, sink: SinkState) -> tuple[int | None, bool]:
        """(record time up to which nothing of this sink is unresolved, None: to the end; whether it is known at all)."""
        return complete.bound(self.log, sink, self.lateness_ms, is_log=sink.policy.name == LOG_SINK)

    def lag(self, sink: SinkState) -> int | None:
        """Records at or above the horizon; None while there is no horizon."""
        return stall.lag(self.log, sink)

    def gaps_of(self, sink: SinkState, cause: Cause) -> list[tuple[int, int, int]]:
        """Open gaps of one cause as (first, stop, records): maximal runs, offsets without a record inside don't split."""
        return [(first, stop, sink.open[cause].count_within(first, stop)) for first, stop in sink.gaps[cause]]

    @property
    def events(self) -> list[Event]:
        """Told but not flushed yet."""
        return self.telling.events

    def take_events(self) -> list[Event]:
        """The events to be written with this flush, in order; told once."""
        events, self.telling.events = self.telling.events, []
        return events
