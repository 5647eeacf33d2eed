"""A partition and its sinks as plain dicts of integers: slow, obvious, and written from the contract, not from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stream_app.core.model import DOUBLED_MAX, Observation, Run
from stream_app.core.policy import Policy
from stream_app.core.states import State
from tests.core.naive_snapshots import Horizon, NaiveSnapshots

OPEN = {
    State.NOT_RECEIVED: "not_received",
    State.EXPIRED: "expired",
    State.VANISHED: "vanished",
    State.UNREADABLE: "unreadable",
}
EXPLAINED = {
    State.TOMBSTONE: "tombstone",
    State.QUARANTINED: "quarantined",
    State.COMPACTED: "compacted",
    State.ACKNOWLEDGED: "acknowledged",
    State.UNOBSERVED: "unobserved",
}
ABSENT = ("transaction_marker", "aborted", "compacted", "log_hole")
AGAIN_MAX = 8

Told = tuple[str, str, str | None, frozenset[int]]
"""Type of event, sink, cause, offsets."""


def runs_of(offsets: Iterable[int]) -> tuple[Run, ...]:
    """Maximal runs of offsets."""
    out: list[Run] = []
    for offset in sorted(offsets):
        if out and out[-1][1] == offset:
            out[-1] = (out[-1][0], offset + 1)
        else:
            out.append((offset, offset + 1))
    return tuple(out)


@dataclass
class Saw:
    """What a look found, offset by offset."""

    upto: int
    log_start: int
    found: Mapping[int, str]
    """``hole``, ``tombstone`` or ``unreadable``; anything else is still there."""


@dataclass
class NaiveSink:
    """One sink. ``states`` holds every offset that was said or judged something of; the others are in flight or absent."""

    policy: Policy
    floor: int | None = None
    settled: int | None = None
    lowest: int | None = None
    highest: int | None = None
    claim: int | None = None
    heard: bool = False
    states: dict[int, State] = field(default_factory=dict)
    accepted: dict[int, State] = field(default_factory=dict)
    """What an acknowledged offset was."""
    again: dict[int, list[bool]] = field(default_factory=dict)
    """Ahead of the log's reader: further observations of an offset, and whether each is to be told if it is a duplicate."""
    untold: set[tuple[int, State]] = field(default_factory=set)
    untold_duplicates: Counter[int] = field(default_factory=Counter)
    told_duplicates_ms: int | None = None
    horizons: list[Horizon] = field(default_factory=list)
    """As it stood in the end of each moment in which it rose."""
    snapshots: NaiveSnapshots = field(default_factory=NaiveSnapshots)
    sequences: dict[str, int] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    behind: tuple[str, int] | None = None
    """Who went back last, and from where."""
    observed: int = 0
    duplicates: int = 0
    doubled: dict[int, int] = field(default_factory=dict)
    """The same by offset, but for what the log lost."""
    absent_observed: int = 0
    doubted_to: int = 0
    excused: set[int] = field(default_factory=set)
    """Was received or accepted once and is open again: complete through had passed it by right."""

    @property
    def horizon(self) -> int | None:
        return self.highest if self.claim is None and self.policy.group is None else self.claim

    def count_again(self, offset: int, times: int) -> None:
        self.duplicates += times
        self.doubled[offset] = self.doubled.get(offset, 0) + times

    def open(self, state: State) -> set[int]:
        return {offset for offset, held in self.states.items() if held is state}


@dataclass
class NaivePartition:
    """See the module."""

    policies: dict[str, Policy]
    origin: int
    end: int
    start: int = 0
    read: int = 0
    bound: int = 0
    seen_end: int = 0
    ever_compacted: bool | None = False
    kinds: dict[int, str] = field(default_factory=dict)
    """Kind of every offset that was read."""
    times: dict[int, int] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    """Absent offsets that the ledger does not know any more, given by the test that allowed it."""
    forgotten_below: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    sinks: dict[str, NaiveSink] = field(default_factory=dict)
    broker_ms: int | None = None
    heard_ms: int | None = None
    told: list[Told] = field(default_factory=list)
    epoch: int = 0

    def __post_init__(self) -> None:
        self.start = self.read = self.origin
        self.bound = self.seen_end = self.end
        for policy in self.policies.values():
            self._add(policy)

    # --- the log ---

    def read_log(self, kinds: Sequence[str], start: int, end: int, bound: int, now_ms: int) -> None:
        before, stop = self.read, self.read + len(kinds)
        for offset, kind in zip(range(before, stop), kinds, strict=True):
            if kind == "hole":
                kind = "log_hole" if self.ever_compacted is False and offset >= self.seen_end else "compacted"
            self.kinds[offset], self.times[offset] = kind, now_ms
            self.counts[kind] = self.counts.get(kind, 0) + 1
        self.read, self.start, self.end, self.bound = stop, max(self.start, start), end, min(bound, end)
        fresh = range(before, stop)
        self._tell("gap.opened", "log", "log_hole", [o for o in fresh if self.kinds[o] == "log_hole"])
        self._tell("log.unread", "log", None, [o for o in fresh if self.kinds[o] == "unread"])
        self._tell("log.unreadable", "log", None, [o for o in fresh if self.kinds[o] == "unreadable"])
        for name, sink in self.sinks.items():
            for offset in fresh:
                self._reached(sink, offset)
            self._expire(name, sink)

    def _reached(self, sink: NaiveSink, offset: int) -> None:
        said, again = sink.states.get(offset), sink.again.pop(offset, [])
        if self.kinds[offset] == "unread" and said is None and offset >= (sink.floor or 0):
            sink.states[offset] = State.UNREAD
        if self.kinds[offset] in ABSENT:
            sink.absent_observed += (said in (State.RECEIVED, State.QUARANTINED)) + len(again[:AGAIN_MAX])
            if said is State.RECEIVED and sink.snapshots.last_ms is not None:
                sink.snapshots.absent.add(offset)
            sink.states.pop(offset, None)
        elif said is State.RECEIVED:
            sink.observed += 1
            sink.count_again(offset, len(again[:AGAIN_MAX]))
            if any(again) and sink.policy.tell_duplicates:
                sink.untold_duplicates[offset] += len(again[:AGAIN_MAX])
        if self.kinds[offset] not in ABSENT:
            self._double(sink, offset, sink.snapshots.doubled.get(offset, 0))

    def _double(self, sink: NaiveSink, offset: int, more: int) -> None:
        sink.count_again(offset, more)
        if more and sink.policy.tell_duplicates:
            sink.untold_duplicates[offset] += more

    def _expire(self, name: str, sink: NaiveSink) -> None:
        gone = [o for o in sink.open(State.NOT_RECEIVED) if o < self.start]
        for offset in gone:
            sink.states[offset] = State.EXPIRED
        self._tell("gap.expired", name, "expired", gone)

    def is_absent(self, offset: int) -> bool:
        return self.kinds.get(offset) in ABSENT and offset not in self.forgotten

    def is_record(self, offset: int) -> bool:
        return self.kinds.get(offset) in ("record", "unreadable", "unread")

    # --- observations ---

    def observe(self, said: Observation, broker_ms: int, now_ms: int) -> None:
        name, status, claim = said.sink, str(said.status), said.claim
        offsets = [offset for first, stop in said.runs for offset in range(first, stop)]
        self.broker_ms, now_ms = max(broker_ms, self.broker_ms or 0), max(now_ms, self.heard_ms or 0)
        sink = self.sinks.get(name) or self._add(Policy.unconfigured(name))
        if said.source is not None and said.sequence is not None:
            if said.sequence <= sink.sequences.get(said.source, -1):
                return
            sink.sequences[said.source] = said.sequence
        if said.snapshot is not None and said.snapshot.at_ms < (sink.snapshots.last_ms or 0):
            return
        lowest = max(self.origin, self.forgotten_below if sink.floor is None else sink.floor)
        mine = [o for o in offsets if o >= lowest]
        moved: dict[tuple[str, str | None], list[int]] = {}
        vanished = set() if said.snapshot is None else self._begin_snapshot(sink, said, mine)
        for offset in () if said.snapshot is not None else mine:
            event = self._move(sink, status, offset, said.undo, said.sequence is not None)
            if event is not None:
                moved.setdefault(event, []).append(offset)
        for offset in mine if said.snapshot is not None else ():
            event = self._find(sink, offset, self._rows(said, offset))
            if event is not None:
                moved.setdefault(event, []).append(offset)
        for (kind, cause), gone in moved.items():
            self._tell(kind, name, cause, gone)
        if status == "acknowledged":
            self._expire(name, sink)
            return
        sink.heard = True
        known = said.source is not None and said.source in sink.claims
        if claim is not None and said.source is not None:
            self._claim(name, sink, said.source, sink.claims.get(said.source, 0), claim)
        spoken = [max(o, lowest) for o in (*([min(offsets)] if offsets else []), *([] if claim is None or known else [claim]))]
        sink.lowest = min([*spoken, *([] if sink.lowest is None else [sink.lowest])], default=None)
        self._horizon(sink, said, offsets, now_ms)
        if said.snapshot is not None:
            sink.snapshots.agree(self._floor(sink) if sink.settled is None else sink.settled, sink.horizons, sink.policy.grace_ms)
            if sink.snapshots.agreed_to:
                self._fix_floor(sink)
            self.vanish(name, vanished)

    def _begin_snapshot(self, sink: NaiveSink, said: Observation, mine: Collection[int]) -> set[int]:
        """What vanished by it."""
        snapshot, grace = said.snapshot, sink.policy.grace_ms
        assert snapshot is not None
        sink.horizons = sink.snapshots.begin(snapshot, said.source, sink.horizons, grace)
        sink.snapshots.keep(self._judged_from(sink))
        had = range(snapshot.first, min(snapshot.stop, self.read))
        lacking = {o for o in had if o not in mine and sink.states.get(o) is State.RECEIVED and self._in_reach(sink, o)}
        return sink.snapshots.vanished(lacking, set(mine), grace)

    def _judged_from(self, sink: NaiveSink) -> int:
        return 0 if sink.settled is None else min(self.start, sink.settled)

    def _rows(self, said: Observation, offset: int) -> int:
        """Rows that a snapshot has of an offset, as far as it can say."""
        assert said.snapshot is not None
        return 1 + sum(first <= offset < stop for runs in said.snapshot.doubled[:DOUBLED_MAX] for first, stop in runs)

    def _find(self, sink: NaiveSink, offset: int, rows: int) -> tuple[str, str | None] | None:
        """A snapshot has rows of an offset: once more than before is no duplicate, more rows are."""
        snapshots, state = sink.snapshots, sink.states.get(offset)
        absent = self.is_absent(offset)
        judged = offset >= self._judged_from(sink)
        if judged and rows > snapshots.doubled.get(offset, 0) + 1:
            more = rows - 1 - snapshots.doubled.get(offset, 0)
            snapshots.doubled[offset] = rows - 1
            if offset < self.read and not absent:
                self._double(sink, offset, more)
        if absent:
            sink.absent_observed += judged and offset not in snapshots.absent
            if judged:
                snapshots.absent.add(offset)
            return None
        if state is State.RECEIVED or offset in self.forgotten:
            return None
        return self._receive(sink, offset, state, offset >= self.read, alertable=False)

    def _claim(self, name: str, sink: NaiveSink, source: str, before: int, claim: int) -> None:
        sink.claims[source] = claim
        if claim < before:
            if sink.behind is None or sink.behind[0] != source:
                sink.behind = source, before
            if sink.policy.configured:
                self.told.append(("sink.rewound", name, None, frozenset()))
        elif sink.behind is not None and sink.behind[0] == source and claim >= sink.behind[1]:
            sink.behind = None

    def forget(self, name: str) -> None:
        if name in self.sinks and not self.sinks[name].policy.configured:
            del self.sinks[name]
            self.epoch += 1

    def _move(self, sink: NaiveSink, status: str, offset: int, undo: bool, alertable: bool) -> tuple[str, str | None] | None:
        """The row of the contract's table; the event that is told at once, by type and cause."""
        ahead, state = offset >= self.read, sink.states.get(offset)
        if self.is_absent(offset):
            sink.absent_observed += status in ("received", "quarantined")
            return None
        if offset in self.forgotten:  # nobody knows any more that it is absent
            state = State.RECEIVED
        if status == "acknowledged":
            return self._decide(sink, offset, state, undo)
        if status == "received":
            return self._receive(sink, offset, state, ahead, alertable)
        after = State.QUARANTINED if status == "quarantined" else State.UNOBSERVED
        if state is not None and state in (OPEN if status == "quarantined" else (State.NOT_RECEIVED,)):
            sink.states[offset] = after
            return "gap.explained", OPEN[state]
        if state is None or (state is State.UNREAD and status == "quarantined"):
            sink.states[offset] = after
            sink.untold.add((offset, after))
        return None

    def _decide(self, sink: NaiveSink, offset: int, state: State | None, undo: bool) -> tuple[str, str | None] | None:
        if undo and state is State.ACKNOWLEDGED:
            back = sink.states[offset] = sink.accepted.pop(offset)
            sink.excused.add(offset)
            return None if back is State.UNREAD else ("gap.opened", OPEN[back])
        if not undo and state is not None and (state in OPEN or state is State.UNREAD):
            sink.states[offset], sink.accepted[offset] = State.ACKNOWLEDGED, state
            return "gap.acknowledged", OPEN.get(state)
        return None

    def _receive(self, sink: NaiveSink, offset: int, state: State | None, ahead: bool, alertable: bool) -> tuple[str, str | None] | None:
        if state is State.RECEIVED:
            if ahead:
                sink.again.setdefault(offset, []).append(alertable)
                return None
            sink.count_again(offset, 1)
            if alertable and sink.policy.tell_duplicates:
                sink.untold_duplicates[offset] += 1
            return None
        sink.states[offset] = State.RECEIVED
        sink.accepted.pop(offset, None)
        sink.observed += not ahead
        return ("gap.filled", OPEN[state]) if state in OPEN else None

    def _horizon(self, sink: NaiveSink, said: Observation, offsets: Collection[int], now_ms: int) -> None:
        claim, last_ms = said.claim, sink.snapshots.last_ms
        at = 0 if last_ms is None else max(now_ms, last_ms)
        if said.snapshot is not None:
            at = said.snapshot.at_ms
        if offsets:
            sink.highest = max(max(offsets) + 1, sink.highest or 0)
        if claim is not None:
            if sink.claim is None:
                sink.horizons = [each for each in sink.horizons if each[2] <= claim]
                if sink.snapshots.agreed_to > claim:
                    sink.snapshots.agreed_to = 0
            sink.claim = max(claim, sink.claim or 0)
        if sink.horizon is not None and sink.horizon > max((known for _, _, known, _ in sink.horizons), default=-1):
            assert self.broker_ms is not None
            moment = (self.broker_ms, now_ms)
            at = max([at, *(each[3] for each in sink.horizons)])
            sink.horizons = [each for each in sink.horizons if each[:2] != moment] + [(*moment, sink.horizon, at)]

    def vanish(self, name: str, offsets: Iterable[int]) -> None:
        sink = self.sinks[name]
        gone = []
        for offset in offsets:
            if offset < self.read and self._in_reach(sink, offset) and sink.states.get(offset) is State.RECEIVED:
                sink.states[offset] = State.VANISHED
                sink.excused.add(offset)
                gone.append(offset)
        self._tell("gap.opened", name, "vanished", gone)

    def _in_reach(self, sink: NaiveSink, offset: int) -> bool:
        return offset >= (sink.settled or 0) or offset >= max(self.start, sink.floor or 0)

    # --- verdicts ---

    def due(self, name: str) -> tuple[int, list[int]] | None:
        """(how far the sink may be judged, what a look is needed for first); None where nothing is due."""
        sink = self.sinks[name]
        grace = sink.policy.grace_ms
        passed = [
            horizon
            for broker_ms, worker_ms, horizon, _ in sink.horizons
            if (self.broker_ms is not None and broker_ms + grace <= self.broker_ms)
            or (self.heard_ms is not None and worker_ms + grace <= self.heard_ms)
        ]
        if sink.snapshots.last_ms is not None:
            agreed = sink.snapshots.agreed_to
            passed = [agreed] if sink.settled is not None and agreed > sink.settled else []
        if not passed:
            return None
        self._fix_floor(sink)
        assert sink.settled is not None
        stop = min(max(passed), self.read)
        if stop <= sink.settled:
            return None
        lacking = self.in_flight(sink, stop)
        if not lacking:
            sink.settled = stop
            return None
        sink.settled = lacking[0]
        return stop, lacking

    def _floor(self, sink: NaiveSink) -> int:
        if sink.floor is not None:
            return sink.floor
        lowest = self.read if sink.lowest is None else sink.lowest
        return max(lowest if sink.policy.floor is None else sink.policy.floor, self.origin, self.forgotten_below)

    def _fix_floor(self, sink: NaiveSink) -> None:
        if sink.floor is None:
            sink.floor = self._floor(sink)
            for offset in [o for o in sink.states if o < sink.floor]:
                del sink.states[offset]
                sink.again.pop(offset, None)
            sink.snapshots.keep(sink.floor)
        if sink.settled is None:
            sink.settled = sink.floor

    def in_flight(self, sink: NaiveSink, stop: int) -> list[int]:
        first = sink.settled if sink.settled is not None else sink.floor
        assert first is not None
        return [o for o in range(first, stop) if self.is_record(o) and o not in sink.states]

    def judge(self, name: str, stop: int, epoch: int, asked: Collection[int], saw: Saw) -> None:
        sink = self.sinks.get(name)
        stop = min(stop, saw.upto)
        if epoch != self.epoch or sink is None or sink.settled is None or stop <= sink.settled:
            return
        opened: dict[State, list[int]] = {}
        for offset in self.in_flight(sink, stop):
            assert offset in asked, f"{offset} is judged and nobody looked at it"
            state = self._verdict(sink, offset, saw)
            sink.states[offset] = state
            if state in OPEN:
                opened.setdefault(state, []).append(offset)
            elif state is State.UNOBSERVED:
                sink.untold.add((offset, state))
        sink.settled = stop
        for state, offsets in opened.items():
            self._tell("gap.opened", name, OPEN[state], offsets)

    def _verdict(self, sink: NaiveSink, offset: int, saw: Saw) -> State:
        found = saw.found.get(offset)
        if found == "hole" and self.ever_compacted is not False:
            return State.COMPACTED
        if found == "tombstone" and sink.policy.tombstones_optional:
            return State.TOMBSTONE
        if offset < sink.doubted_to and sink.snapshots.last_ms is None:
            return State.UNOBSERVED
        if offset < max(saw.log_start, self.start) or found == "hole":
            return State.EXPIRED
        if found == "unreadable" or self.kinds[offset] == "unreadable":
            return State.UNREADABLE
        return State.NOT_RECEIVED

    def evaluate(self, now_ms: int) -> None:
        for name, sink in self.sinks.items():
            known = {(o, state) for o, state in sink.untold if o < self.read}
            sink.untold -= known
            for said in (State.QUARANTINED, State.UNOBSERVED):
                still = [o for o, state in known if state is said and sink.states.get(o) is state]
                self._tell("gap.explained", name, None, still)
            last = sink.told_duplicates_ms
            if sink.untold_duplicates and (last is None or not last <= now_ms < last + 1_000):
                for times in range(1, AGAIN_MAX + 1):
                    self._tell("duplicate.detected", name, None, [o for o, count in sink.untold_duplicates.items() if count >= times])
                sink.untold_duplicates, sink.told_duplicates_ms = Counter(), now_ms

    # --- the log loses its end, or is another one; the configuration changes ---

    def truncate(self, offset: int) -> None:
        self.epoch += 1
        for name, sink in self.sinks.items():
            self._close(name, sink, offset)
            for held in (sink.states, sink.accepted, sink.again):
                for o in [o for o in held if o >= offset]:
                    del held[o]
            sink.untold = {(o, state) for o, state in sink.untold if o < offset}
            sink.untold_duplicates = Counter({o: count for o, count in sink.untold_duplicates.items() if o < offset})
            sink.doubled = {o: count for o, count in sink.doubled.items() if o < offset}
            for name_of in ("floor", "settled", "lowest", "highest", "claim"):
                if getattr(sink, name_of) is not None:
                    setattr(sink, name_of, min(getattr(sink, name_of), offset))
            sink.doubted_to = min(sink.doubted_to, offset)
            sink.claims = {source: min(claim, offset) for source, claim in sink.claims.items()}
            if sink.behind is not None and sink.claims[sink.behind[0]] >= min(sink.behind[1], offset):
                sink.behind = None
            sink.horizons = [(broker_ms, worker_ms, min(horizon, offset), at) for broker_ms, worker_ms, horizon, at in sink.horizons]
            sink.snapshots.keep(stop=offset)
            sink.snapshots.covered &= set(range(offset))
            sink.snapshots.agreed_to = min(sink.snapshots.agreed_to, offset)
            sink.excused = {o for o in sink.excused if o < offset}
        self._tell("gap.explained", "log", "log_hole", self.holes(offset))
        self._tell("log.truncated", "log", None, range(offset, self.read))
        self.kinds = {o: kind for o, kind in self.kinds.items() if o < offset}
        self.forgotten = {o for o in self.forgotten if o < offset}
        for name_of in ("origin", "seen_end", "start", "read", "end", "bound", "forgotten_below"):
            setattr(self, name_of, min(getattr(self, name_of), offset))

    def _close(self, name: str, sink: NaiveSink, offset: int) -> None:
        for state, cause in OPEN.items():
            self._tell("gap.explained", name, cause, [o for o in sink.open(state) if o >= offset])

    def holes(self, first: int = 0) -> list[int]:
        """What the sink ``log`` lacks."""
        return [o for o, kind in self.kinds.items() if kind == "log_hole" and o >= first]

    def recreate(self, log_start: int, log_end: int) -> None:
        self.truncate_told(0)
        self.told.append(("log.recreated", "log", None, frozenset()))
        names = list(self.sinks)
        policies = {name: sink.policy for name, sink in self.sinks.items()}
        self.kinds, self.times, self.forgotten, self.counts, self.sinks = {}, {}, set(), {}, {}
        self.origin = self.start = self.read = log_start
        self.end = self.bound = self.seen_end = log_end
        self.forgotten_below = 0
        self.epoch += 1
        for name in names:
            sink = self._add(policies[name])
            sink.floor = log_start if policies[name].configured else None
        self.doubt(log_end)

    def doubt(self, log_end: int) -> None:
        """Reports were lost before they were read."""
        self.end = max(self.end, log_end)
        for sink in self.sinks.values():
            sink.doubted_to = max(sink.doubted_to, self.end)

    def truncate_told(self, offset: int) -> None:
        for name, sink in self.sinks.items():
            self._close(name, sink, offset)
        self._tell("gap.explained", "log", "log_hole", self.holes(offset))

    def configure(self, policies: dict[str, Policy]) -> None:
        self.policies = policies
        for name, policy in policies.items():
            sink = self.sinks.get(name)
            if sink is None:
                self._add(policy)
                continue
            was, sink.policy = sink.policy.configured, policy
            if not was:
                for state, cause in OPEN.items():
                    self._tell("gap.opened", name, cause, sink.open(state))
        for name, sink in self.sinks.items():
            if name not in policies and sink.policy.configured:
                self._close(name, sink, 0)
                self.told.append(("sink.removed", name, None, frozenset()))
                sink.policy = Policy.unconfigured(name)

    def begin(self, now_ms: int) -> None:
        self.heard_ms = None
        for sink in self.sinks.values():
            sink.told_duplicates_ms = None
            sink.horizons = [(broker_ms, now_ms, horizon, at) for broker_ms, _, horizon, at in sink.horizons]
            sink.snapshots.covered = set()

    def _add(self, policy: Policy) -> NaiveSink:
        sink = NaiveSink(policy)
        if policy.floor is not None:
            sink.floor = max(policy.floor, self.origin, self.start)
        for offset, kind in self.kinds.items():
            if kind == "unread" and offset >= (sink.floor or 0):
                sink.states[offset] = State.UNREAD
        self.sinks[policy.name] = sink
        return sink

    # --- telling and showing ---

    def _tell(self, kind: str, name: str, cause: str | None, offsets: Iterable[int]) -> None:
        told = frozenset(offsets)
        if told and (name == "log" or self.sinks[name].policy.configured):
            self.told.append((kind, name, cause, told))

    def gaps(self, name: str) -> list[tuple[int, int, int, str]]:
        """(first, stop, records, cause) of each open gap, ascending."""
        if name == "log":
            return sorted(self._joined(self.holes(), "log_hole"))
        sink = self.sinks[name]
        return sorted(gap for state, cause in OPEN.items() for gap in self._joined(sink.open(state), cause))

    def _joined(self, offsets: Collection[int], cause: str) -> Iterator[tuple[int, int, int, str]]:
        inside: list[int] = []
        for offset in sorted(offsets):
            if inside and not all(self.is_absent(o) for o in range(inside[-1] + 1, offset)):
                yield inside[0], inside[-1] + 1, len(inside), cause
                inside = []
            inside.append(offset)
        if inside:
            yield inside[0], inside[-1] + 1, len(inside), cause

    def overdue(self, name: str, through_ms: int) -> list[int]:
        """Records older than this that are neither received nor explained."""
        sink = self.sinks[name]
        resolved = (State.RECEIVED, *EXPLAINED)
        return [
            offset
            for offset in range(self.origin if sink.floor is None else sink.floor, self.read)
            if self.is_record(offset)
            and self.times[offset] < through_ms
            and sink.states.get(offset) not in resolved
            and offset not in sink.excused
        ]
