"""The ledger against a naive model of one partition: whatever happens, in whatever order, both say the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from stream_app.core import report
from stream_app.core.events import Event, as_json
from stream_app.core.ledger import LOG_SINK, Candidates, Ledger
from stream_app.core.model import CHUNK, Cause, Look, Observation, ObservationRead, Status
from stream_app.core.offsets import OffsetSet
from stream_app.core.sink import Policy, SinkState
from stream_app.core.state import StateCodec
from stream_app.core.states import State
from tests.core.naive import EXPLAINED, OPEN, NaivePartition, NaiveSink, Saw, Told, runs_of
from tests.core.strategies import BASE, SKEW, TOPIC_ID, Fold, expand, kinds, log_read, plain, policy, runs_within, states_of

TICK = 500
"""Times of the inputs are multiples of it, so that none falls together with another's end of grace by chance of a bucket."""
CHANGED = [*["record"] * 6, "transaction_marker", "aborted", "hole", "unreadable", "unread"]
NAMES = ["fixed", "first", "stranger"]
POLICIES = {"fixed": policy("fixed", floor=3, tombstones_optional=True), "first": policy("first", floor=None)}
FOUND = ["there", "there", "hole", "tombstone", "unreadable"]


class Partition(RuleBasedStateMachine):
    """Both sides of the comparison, and the subscriber that folds what is told."""

    @initialize(origin=st.sampled_from([0, 7, CHUNK - 40]), gap=st.sampled_from([0, 20]), compacted=st.sampled_from([None, True, False]))
    def begin(self, origin: int, gap: int, compacted: bool | None) -> None:
        self.now, self.observed = BASE, 0
        self.policies: dict[str, Policy] = {
            name: replace(each, floor=origin + each.floor if each.floor is not None else None) for name, each in POLICIES.items()
        }
        self.ledger = Ledger.create(
            "t", 0, "b", topic_id=TOPIC_ID, log_start=origin, log_end=origin + gap, policies=self.policies
        )
        self.naive = NaivePartition(dict(self.policies), origin, origin + gap)
        self.ledger.log.ever_compacted = self.naive.ever_compacted = compacted
        self.codec, self.stored = StateCodec(0), dict[bytes, bytes]()
        self.asked: list[Candidates] = []
        self.fold = Fold()
        self.complete: dict[str, int] = {}
        self.last: dict[str, Event] = {}

    # --- inputs ---

    @rule(each=kinds(of=CHANGED), start=st.sampled_from([0, 0, 0, 10, 40, 1000]), ahead=st.integers(0, 30), opened=st.integers(0, 10))
    def read(self, each: list[str], start: int, ahead: int, opened: int) -> None:
        stop = self.naive.read + len(each)
        log_start = min(self.naive.origin + start, stop)
        last_stable = max(stop + ahead - opened, stop)
        facts: dict[str, Any] = {"start": log_start, "ahead": ahead, "last_stable": last_stable, "topic_id": self.ledger.log.topic_id}
        said = log_read(self.naive.read, each, now_ms=self.now, **facts)
        assert self.ledger.fold_log(said, self.now)
        self.naive.read_log(each, log_start, stop + ahead, last_stable, self.now)
        assert not said.next > said.position or not self.ledger.fold_log(said, self.now)
        self.forget()

    def forget(self) -> None:
        """What the ledger forgot it was allowed to forget."""
        log, naive = self.ledger.log, self.naive
        known = {o for offsets in (*log.absent.values(), log.holes) for o in expand(offsets)}
        gone = {o for o in naive.kinds if naive.is_absent(o)} - known
        assert log.forgotten <= log.start
        assert all(o < log.forgotten for o in gone)
        for name, sink in naive.sinks.items():
            said = [edge for edge in (sink.settled, sink.floor, sink.lowest) if edge is not None]
            assert not said or log.forgotten <= max(said[0], naive.forgotten_below)
            assert not [o for first, stop, *_ in naive.gaps(name) for o in range(first, stop) if o in gone]
        naive.forgotten |= gone
        naive.forgotten_below = log.forgotten

    @precondition(lambda self: self.naive.end > self.naive.origin)
    @rule(data=st.data(), name=st.sampled_from([*NAMES, *NAMES[:2]]), source=st.sampled_from([None, "a"]), claims=st.integers(0, 9))
    def receive(self, data: st.DataObject, name: str, source: str | None, claims: int) -> None:
        self.observe(data, name, "received", source, claims)

    @precondition(lambda self: self.naive.end > self.naive.origin)
    @rule(
        data=st.data(),
        name=st.sampled_from([*NAMES, *NAMES[:2]]),
        status=st.sampled_from(["received", "quarantined", "unobserved", "acknowledged", "acknowledged", "acknowledged"]),
        source=st.sampled_from([None, "a", "b"]),
        claims=st.integers(0, 9),
    )
    def observe(self, data: st.DataObject, name: str, status: str, source: str | None, claims: int) -> None:
        runs = data.draw(runs_within(max(self.naive.origin - 5, 0), self.naive.end))
        claim = data.draw(st.integers(0, self.naive.end)) if claims == 0 else None
        if claims == 1 and status == "received":
            runs, claim = (), max(expand(runs)) + 1
        if status == "acknowledged":
            runs, claim = ((self.naive.origin, self.naive.end),) if claims > 4 else runs, None
        undo = status == "acknowledged" and claims % 2 == 1
        sequence = None if source is None else (source, data.draw(st.integers(0, 12)))
        said = Observation(
            name,
            runs,
            Status(status),
            claim,
            "because" if status != "received" else None,
            source=sequence[0] if sequence else None,
            sequence=sequence[1] if sequence else None,
            undo=undo,
        )
        assert not self.ledger.beyond_end(said)
        position = self.ledger.observed_to
        taken = ObservationRead(position, position + 2, self.now + SKEW, b"")
        assert self.ledger.observe(taken, said, self.now)
        assert not self.ledger.observe(taken, said, self.now)
        self.naive.observe(name, status, expand(runs), claim, sequence, undo, self.now + SKEW, self.now)

    @precondition(lambda self: self.naive.sinks and self.naive.read > self.naive.origin)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.naive.sinks)))
        runs = data.draw(runs_within(self.naive.origin, self.naive.read))
        gone = [o for o in expand(runs) if not self.naive.is_absent(o)]
        self.ledger.vanish(name, self.offsets(gone), self.now)
        self.naive.vanish(name, gone)

    def offsets(self, offsets: list[int]) -> OffsetSet:
        return OffsetSet(runs_of(offsets))

    # --- time and verdicts ---

    @rule(ticks=st.sampled_from([1, 2, 4, 5]), heard=st.booleans())
    def wait(self, ticks: int, heard: bool) -> None:
        self.now += ticks * TICK
        if heard:
            self.ledger.heard_to_end(self.now)
            self.naive.heard_ms = self.now

    @rule()
    def ask(self) -> None:
        """What needs a look: a step per sink, of all that lacks and nothing else."""
        steps = {step.sink: step for step in self.ledger.candidates()}
        for name in list(self.naive.sinks):
            wanted = self.naive.due(name)
            step = steps.pop(name, None)
            if wanted is None:
                assert step is None
                continue
            stop, lacking = wanted
            assert step is not None
            assert step.stop <= stop
            assert step.runs == runs_of(o for o in lacking if o < step.stop)
            self.asked.append(step)
        assert not steps

    @rule(data=st.data(), partly=st.booleans(), start=st.sampled_from([0, 0, 20]))
    def verdict(self, data: st.DataObject, partly: bool, start: int) -> None:
        """Grace passes, and what is due is looked at."""
        self.wait(5, heard=True)
        self.ask()
        while self.asked:
            self.answer(data, partly, start)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), partly=st.booleans(), start=st.sampled_from([0, 0, 20]))
    def answer(self, data: st.DataObject, partly: bool, start: int) -> None:
        """A look comes back, perhaps late, perhaps twice."""
        step = data.draw(st.sampled_from(self.asked))
        if data.draw(st.booleans()):
            self.asked.remove(step)
        offsets = sorted(expand(step.runs))
        found = dict(zip(offsets, data.draw(st.lists(st.sampled_from(FOUND), min_size=len(offsets), max_size=len(offsets))), strict=True))
        upto = data.draw(st.integers(step.runs[0][0], step.stop)) if partly else step.stop + 5
        saw = Saw(upto, self.naive.origin + start, {o: what for o, what in found.items() if o < upto and o >= self.naive.origin + start})
        named = {what: runs_of(o for o, each in saw.found.items() if each == what) for what in FOUND}
        times = {o: BASE for o, what in saw.found.items() if what == "there"}
        look = Look(upto, saw.log_start, named["hole"], named["unreadable"], named["tombstone"], times)
        self.ledger.settle(step, look, self.now)
        self.naive.judge(step.sink, step.stop, step.epoch, offsets, saw)

    @rule()
    def evaluate(self) -> None:
        self.ledger.evaluate(self.now)
        self.naive.evaluate(self.now)
        for name in self.naive.sinks:
            through = self.ledger.sinks[name].complete_ms
            assert (through or 0) >= self.complete.get(name, 0)
            if through is not None:
                self.complete[name] = through
                assert not self.naive.overdue(name, through), f"{name} is complete through {through - BASE}"

    # --- what changes under it ---

    @precondition(lambda self: self.naive.read > self.naive.origin)
    @rule(data=st.data(), what=st.sampled_from(["truncate", "configure", "truncate", "configure", "recreate"]), really=st.integers(0, 2))
    def disturb(self, data: st.DataObject, what: str, really: int) -> None:
        if really:
            self.evaluate()
        elif what == "truncate":
            self.truncate(data.draw(st.integers(0, 40)))
        elif what == "recreate":
            self.recreate(data.draw(st.sampled_from([0, 0, 5])), data.draw(st.integers(0, 9)))
        else:
            self.configure(data.draw(st.sampled_from(NAMES)), data.draw(st.booleans()))

    def truncate(self, back: int) -> None:
        offset = max(self.naive.read - back, 0)
        self.ledger.truncate(offset, self.now)
        self.naive.truncate(offset)

    def recreate(self, start: int, behind: int) -> None:
        self.ledger.recreate((self.naive.epoch + 1).to_bytes(16, "big"), start, start + behind, self.now)
        self.ledger.configure(self.naive.policies, self.now)
        self.naive.recreate(start, start + behind)
        self.complete = {}

    def configure(self, name: str, kept: bool) -> None:
        known = {**self.policies, "stranger": policy("stranger", floor=None)}
        policies = {each: known[each] for each in known if (kept if each == name else each in self.naive.policies)}
        self.ledger.configure(policies, self.now)
        self.naive.configure(policies)

    @rule(force=st.booleans(), reload=st.booleans())
    def flush(self, force: bool, reload: bool) -> None:
        """What changed is written; perhaps another worker takes over from what is written."""
        for key, value in self.codec.changes(self.ledger, force=force or reload):
            if value is None:
                del self.stored[key]
            else:
                self.stored[key] = value
        if not reload:
            return
        self.codec = StateCodec(0)
        loaded = self.codec.load("t", self.stored.items(), self.naive.policies, self.now)
        assert loaded is not None
        assert plain(loaded) == {**plain(self.ledger), "policies": plain(self.naive.policies)}
        loaded.events, loaded.epoch = self.ledger.events, self.ledger.epoch
        self.ledger = loaded
        self.ledger.begin(self.now)
        self.naive.begin(self.now)

    # --- both say the same ---

    @invariant()
    def tells_the_same(self) -> None:
        events, told = self.ledger.take_events(), Counter(self.naive.told)
        self.naive.told = []
        assert Counter(map(as_told, events)) == told
        for event in events:
            self.fold.take(as_json(event, "gapstream://test"))
            self.last[event.sink] = event
        for name in [LOG_SINK, *self.naive.sinks]:
            gaps = self.naive.gaps(name)
            open_count = sum(count for _, _, count, _ in gaps)
            configured = name == LOG_SINK or self.naive.sinks[name].policy.configured
            assert sum(map(len, self.fold.causes(f"t/0/{name}").values())) == (open_count if configured else 0)
            if any(event.sink == name for event in events):
                assert (self.last[name].open_count, self.last[name].open_gaps) == ((open_count, len(gaps)) if configured else (0, 0))

    @invariant()
    def holds_the_same(self) -> None:
        assert set(self.ledger.sinks) == {LOG_SINK, *self.naive.sinks}
        log, naive = self.ledger.log, self.naive
        assert (log.origin, log.start, log.read, log.end, log.bound) == (naive.origin, naive.start, naive.read, naive.end, naive.bound)
        counted = {kind: naive.counts.get(kind, 0) for kind in ("transaction_marker", "aborted", "compacted")}
        assert {cause: count for cause, count in log.absent_counts.items() if count} == {kind: n for kind, n in counted.items() if n}
        assert log.records == sum(naive.counts.get(kind, 0) for kind in ("record", "unreadable"))
        assert expand(self.ledger.sinks[LOG_SINK].open[Cause.LOG_HOLE]) == set(naive.holes())
        rows = {row.sink: row for row in report.rows(self.ledger, self.now)}
        for name, sink in naive.sinks.items():
            self.same_sink(self.ledger.sinks[name], sink)
            missing = sum(count for _, _, count, _ in naive.gaps(name))
            assert rows[name].missing == (missing if sink.heard else None)
            assert rows[name].gaps == (len(naive.gaps(name)) if sink.heard else None)
            assert rows[name].observed == (sink.observed if sink.heard else None)
            self.same_gaps(self.ledger.sinks[name], name)

    def same_sink(self, real: SinkState, sink: NaiveSink) -> None:
        assert (real.floor, real.settled, real.horizon, real.heard) == (sink.floor, sink.settled, sink.horizon, sink.heard)
        assert (real.observed, real.duplicates, real.absent_observed) == (sink.observed, sink.duplicates, sink.absent_observed)
        assert expand(real.untold_duplicates) == sink.untold_duplicates
        lowest = self.naive.forgotten_below if sink.floor is None else sink.floor
        expected = {offset: state for offset, state in sink.states.items() if offset >= lowest}
        for offset in range(max(self.naive.origin, lowest), self.naive.read):
            if self.naive.is_absent(offset):
                expected[offset] = State.ABSENT
            elif offset in self.naive.forgotten:
                expected[offset] = State.RECEIVED
            else:
                expected.setdefault(offset, State.IN_FLIGHT)
        assert states_of(self.ledger, real) == expected
        by_reason = {reason: len([o for o in sink.states.values() if o is state]) for state, reason in EXPLAINED.items()}
        assert {reason: offsets.count for reason, offsets in real.explained.items()} == by_reason

    def same_gaps(self, real: SinkState, name: str) -> None:
        listed = report.gaps(self.ledger, real)
        assert sorted((gap.first, gap.stop, gap.count, gap.cause) for gap in listed) == self.naive.gaps(name)
        if real.policy.configured:
            assert all(gap.opened_at_ms is not None and gap.sequence is not None for gap in listed)


def as_told(event: Event) -> Told:
    """As the model tells it."""
    return str(event.type), event.sink, None if event.cause is None else str(event.cause), frozenset(expand(event.ranges))


def test_the_model_knows_every_cause_and_reason() -> None:
    assert {*OPEN.values(), "log_hole"} == set(map(str, Cause))


def test_ledger_equals_the_naive_model() -> None:
    run_state_machine_as_test(Partition, settings=settings(max_examples=120, stateful_step_count=40))
