from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core import ledger as ledger_module
from stream_app.core import report
from stream_app.core.events import EventType
from stream_app.core.ledger import LOG_SINK, UNCONFIGURED_MAX
from stream_app.core.model import Absent, Cause, Look, Observation, ObservationRead, Run, Status
from stream_app.core.offsets import OffsetSet
from stream_app.core.states import State
from tests.core.naive import runs_of
from tests.core.strategies import (
    BASE,
    GRACE,
    OTHER_ID,
    SKEW,
    Rig,
    cut,
    everything_there,
    expand,
    kinds,
    log_read,
    plain,
    policy,
    runs_within,
    state_of,
    states_of,
)

LENGTH = 60
LATE = 10 * GRACE


def opened(rig: Rig) -> set[int]:
    """Offsets that a flush tells as opened, of any cause."""
    return set().union(*(expand(event.ranges) for event in rig.flush() if event.type is EventType.GAP_OPENED))


# --- received observations of a fixed floor commute ---


def outcome(rig: Rig) -> dict[str, Any]:
    """What must not depend on the order of the inputs."""
    rig.now = BASE + LATE
    rig.ledger.heard_to_end(rig.now)
    rig.judge()
    rig.flush()
    sink = rig.sink()
    return {
        "states": states_of(rig.ledger, sink),
        "horizon": (sink.horizon, sink.highest, sink.claim, sink.lowest, sink.settled),
        "counts": (sink.observed, sink.duplicates, sink.absent_observed),
        "duplicates told": set().union(*(expand(e.ranges) for e in rig.told if e.type is EventType.DUPLICATE_DETECTED)),
        "opened": set().union(*(expand(e.ranges) for e in rig.told if e.type is EventType.GAP_OPENED)),
        "filled": [e.type for e in rig.told if e.type is EventType.GAP_FILLED],
    }


@given(
    each=kinds(LENGTH, min_size=1),
    said=st.lists(st.tuples(runs_within(0, LENGTH), st.sampled_from([None, None, 0, 20, LENGTH])), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=120)
def test_received_observations_of_a_fixed_floor_commute(each: list[str], said: list[tuple[tuple[Run, ...], int | None]], seed: int) -> None:
    """Log first, observations first, mixed, shuffled, in one batch, record by record: the same sets and the same duplicates."""
    each += ["record"] * (LENGTH - len(each))
    dice = random.Random(seed)
    results = []
    for order in ("log first", "observations first", "mixed", "mixed"):
        rig = Rig()
        rig.ledger.end_is(LENGTH)
        reads: list[Any] = [each] if order != "mixed" else [each[a:b] for a, b in cut(LENGTH, dice.sample(range(LENGTH), 5))]
        heard: list[Any] = [(runs, claim) for runs, claim in said]
        if order == "mixed":
            heard = [([run], None) for runs, _ in said for run in runs] + [((), claim) for _, claim in said if claim is not None]
            heard = [part for runs, claim in heard for part in parts(runs, claim, dice)]
            dice.shuffle(heard)
        inputs = [*reads, *heard] if order == "log first" else [*heard, *reads]
        if order == "mixed":
            for read in reads:  # the answers of the log keep their order, the observations come anywhere
                inputs.remove(read)
            places = sorted(dice.randint(0, len(inputs)) for _ in reads)
            for shift, (place, read) in enumerate(zip(places, reads, strict=True)):
                inputs.insert(place + shift, read)
        for number, what in enumerate(inputs):
            if isinstance(what, list):
                assert rig.read(what, high_watermark=LENGTH, last_stable=LENGTH)
            else:
                rig.observe(*what[0], claim=what[1], source=f"{number}", sequence=1)
        results.append(outcome(rig))
    assert all(result == results[0] for result in results)


def parts(runs: list[Run], claim: int | None, dice: random.Random) -> list[tuple[list[Run], int | None]]:
    """One observation as one, or its offsets one by one."""
    if dice.random() < 0.5:
        return [(runs, claim)]
    singles: list[tuple[list[Run], int | None]] = [([(offset, offset + 1)], None) for first, stop in runs for offset in range(first, stop)]
    return [*singles, ([], claim)] if claim is not None else singles


@given(
    each=kinds(LENGTH, of=("record", "record", "aborted", "hole", "unreadable")),
    edges=st.sets(st.integers(0, LENGTH)),
    runs=runs_within(0, LENGTH),
)
@settings(max_examples=60)
def test_how_the_log_was_cut_into_answers_does_not_matter(each: list[str], edges: set[int], runs: tuple[Run, ...]) -> None:
    each += ["record"] * (LENGTH - len(each))
    results = []
    for answers in ([(0, LENGTH)], list(cut(LENGTH, edges))):
        rig = Rig(ever_compacted=False)
        rig.ledger.end_is(LENGTH)
        rig.observe(*runs)
        for first, stop in answers:
            assert rig.read(each[first:stop], high_watermark=LENGTH, last_stable=LENGTH)
        results.append((outcome(rig), rig.fold.causes(f"t/0/{LOG_SINK}"), plain(rig.ledger.log.absent), rig.ledger.log.records))
    assert results[0] == results[1]


# --- the fence: once is enough ---


@given(each=st.lists(kinds(20, min_size=1), min_size=1, max_size=5), seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_folding_twice_is_folding_once(each: list[list[str]], seed: int) -> None:
    dice = random.Random(seed)
    once, twice = Rig(), Rig()
    log_answers, records = [], []
    for answer in each:
        position = once.ledger.log.read
        log_answers.append(log_read(position, answer))
        end = position + len(answer)
        runs = runs_of({dice.randrange(end) for _ in range(5)})
        records.append((ObservationRead(once.ledger.observed_to, once.ledger.observed_to, BASE + SKEW, b""), Observation("s", runs)))
        for rig in (once, twice):
            assert rig.ledger.fold_log(log_answers[-1], rig.now)
            assert rig.ledger.observe(*records[-1], rig.now)
        for again in log_answers:
            assert not again.next > again.position or not twice.ledger.fold_log(again, twice.now)
        for read, observation in records:
            assert not twice.ledger.observe(read, observation, twice.now)
        assert plain(once.ledger) == plain(twice.ledger)
        assert once.ledger.events == twice.ledger.events


def test_what_does_not_follow_is_refused_and_changes_nothing() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 5))
    before = plain(rig.ledger)
    assert not rig.ledger.fold_log(log_read(11, ["record"]), rig.now)
    assert not rig.ledger.fold_log(log_read(10, ["record"], topic_id=OTHER_ID), rig.now)
    for position in (0, 2):
        late = ObservationRead(position, 9, BASE + 9_999_999, b"")
        assert not rig.ledger.follows(late)
        assert not rig.ledger.observe(late, Observation("s", ((5, 6),)), rig.now)
        assert not rig.ledger.observe(late, None, rig.now)
    assert plain(rig.ledger) == before


def test_what_was_rejected_moves_the_head_and_the_brokers_clock_only() -> None:
    rig = Rig()
    rig.read("record", 10)
    states = states_of(rig.ledger, rig.sink())
    assert rig.ledger.observe(ObservationRead(0, 41, BASE + 5, b"?"), None, rig.now)
    assert (rig.ledger.observed_to, rig.ledger.broker_ms) == (42, BASE + 5)
    assert rig.ledger.observe(ObservationRead(42, 42, BASE - 5, b"?"), None, rig.now)
    assert (rig.ledger.observed_to, rig.ledger.broker_ms) == (43, BASE + 5)
    assert (rig.sink().heard, states_of(rig.ledger, rig.sink())) == (False, states)


# --- grace ---


@given(
    steps=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 4), st.booleans(), st.booleans()), min_size=5, max_size=40),
    begun=st.integers(0, 40),
)
@settings(max_examples=80)
def test_nothing_is_opened_before_grace_and_everything_due_after_it(steps: list[tuple[int, int, bool, bool]], begun: int) -> None:
    """Either clock may tell that grace is over; a worker that takes over lets its own begin anew."""
    rig = Rig()
    rig.read("record", 200)
    passed: dict[int, tuple[int, int]] = {}
    told: set[int] = set()
    received: set[int] = set()
    heard: int | None = None
    horizon = 0
    for number, (ms, skipped, hears, judges) in enumerate(steps):
        rig.now += ms
        if number == begun:
            rig.ledger.begin(rig.now)
            heard = None
            passed = {offset: (broker_ms, rig.now) for offset, (broker_ms, _) in passed.items()}
        first = horizon + skipped
        rig.observe((first, first + 1))
        received.add(first)
        passed |= dict.fromkeys(range(horizon, first), (rig.now + SKEW, rig.now))
        horizon = first + 1
        if hears:
            rig.ledger.heard_to_end(rig.now)
            heard = rig.now
        if judges:
            rig.judge()
            told |= opened(rig)
        for offset in told:
            broker_ms, worker_ms = passed[offset]
            assert broker_ms + GRACE <= rig.now + SKEW or (heard is not None and worker_ms + GRACE <= heard)
        if judges and hears:  # late by two buckets of grace/16 at most, where samples fell into one
            overdue = [offset for offset, (_, ms) in passed.items() if ms + GRACE + GRACE // 8 <= rig.now]
            assert told.issuperset(overdue)
    rig.wait(GRACE - 1 - (GRACE // 16))
    rig.wait(GRACE // 16 + 1)
    rig.judge()
    told |= opened(rig)
    assert told == set(range(horizon)) - received


@pytest.mark.parametrize("clock", ["broker", "worker"])
def test_grace_is_over_to_the_millisecond_by_either_clock(clock: str) -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((5, 6))
    for ms, due in ((GRACE - 1, False), (1, True)):
        rig.wait(ms, heard=clock == "worker")
        if clock == "broker":
            rig.observe(status=Status.UNOBSERVED)
        assert rig.ledger.has_due() is due
        assert [step.runs for step in rig.ledger.candidates()] == ([((0, 5),)] if due else [])


def test_a_frozen_worker_judges_nothing_before_it_has_read_what_it_missed() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((5, 6))
    rig.wait(3_600_000, heard=False)
    assert not rig.ledger.has_due()
    assert rig.ledger.candidates() == []
    rig.flush()
    rig.ledger.observe(
        ObservationRead(rig.ledger.observed_to, rig.ledger.observed_to, BASE + SKEW + 10, b""), Observation("s", ((0, 5),)), rig.now
    )
    rig.ledger.heard_to_end(rig.now)
    assert rig.judge() == []
    assert rig.types() == []
    assert {state_of(rig.ledger, "s", offset) for offset in range(6)} == {State.RECEIVED}


def test_a_worker_that_takes_over_lets_grace_begin_anew() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((5, 6))
    rig.wait(GRACE, heard=False)
    rig.ledger.begin(rig.now)
    assert rig.ledger.heard_ms is None
    rig.ledger.heard_to_end(rig.now)
    assert rig.ledger.candidates() == []
    assert len(rig.verdict()) == 1


def test_a_verdict_waits_for_the_log_to_be_read() -> None:
    rig = Rig()
    rig.ledger.end_is(100)
    rig.observe((90, 91))
    rig.wait(LATE)
    assert rig.judge() == []
    rig.read("record", 50)
    assert [step.runs for step in rig.judge()] == [((0, 50),)]
    rig.read("record", 50)
    assert [step.runs for step in rig.judge()] == [((50, 90),)]


# --- what has no record ---


@given(each=kinds(50, of=("record", "transaction_marker", "aborted", "hole"), min_size=1))
def test_what_has_no_record_is_never_counted_as_one(each: list[str]) -> None:
    rig = Rig(ever_compacted=True)
    rig.read(each)
    rig.observe(claim=len(each))
    rig.verdict()
    records = {offset for offset, kind in enumerate(each) if kind == "record"}
    assert opened(rig) == records
    row = report.rows(rig.ledger, rig.now)[1]
    assert (row.records, row.missing, row.lag) == (len(records), len(records), 0)
    assert rig.ledger.lag(rig.sink()) == 0
    rig.observe((0, len(each)))
    rig.flush()
    assert (rig.sink().observed, rig.sink().duplicates) == (len(records), 0)
    assert rig.sink().absent_observed == len(each) - len(records)


@pytest.mark.parametrize(
    ("ever_compacted", "seen_end", "open_holes", "absent"),
    [(True, 0, set(), 4), (None, 0, set(), 4), (False, 0, {3, 4, 7, 8}, 0), (False, 8, {8}, 3), (False, 100, set(), 4)],
)
def test_a_hole_is_compactions_unless_it_can_not_be(ever_compacted: bool | None, seen_end: int, open_holes: set[int], absent: int) -> None:
    rig = Rig(ever_compacted=ever_compacted)
    rig.ledger.log.seen_end = seen_end
    rig.read([*["record"] * 3, "hole", "hole", "aborted", "record", "hole", "hole", "record"])
    assert rig.ledger.log.absent_counts.get(Absent.COMPACTED, 0) == absent
    assert expand(rig.sink(LOG_SINK).open[Cause.LOG_HOLE]) == open_holes
    assert [(e.sink, e.cause, expand(e.ranges)) for e in rig.flush()] == ([(LOG_SINK, Cause.LOG_HOLE, open_holes)] if open_holes else [])
    rig.observe((0, 3), (6, 7), (9, 10))
    assert rig.verdict() == []


# --- the second look ---


def test_a_look_finds_what_each_candidate_is() -> None:
    rig = Rig({"s": policy(tombstones_optional=True)}, ever_compacted=True)
    rig.read([*["record"] * 8, "unreadable", "record"])
    rig.observe((9, 10))
    rig.verdict(lambda due: Look(due.stop, 2, holes=((2, 3),), unreadable=((3, 4),), tombstones=((4, 5),), timestamps={5: 77, 7: 99}))
    states = states_of(rig.ledger, rig.sink())
    assert [states[offset] for offset in range(9)] == [
        *[State.EXPIRED] * 2,
        State.COMPACTED,
        State.UNREADABLE,
        State.TOMBSTONE,
        *[State.NOT_RECEIVED] * 3,
        State.UNREADABLE,
    ]
    told = {str(event.cause): event for event in rig.flush() if event.type is EventType.GAP_OPENED}
    assert {cause: expand(event.ranges) for cause, event in told.items()} == {
        "expired": {0, 1},
        "unreadable": {3, 8},
        "not_received": {5, 6, 7},
    }
    assert (told["not_received"].first_timestamp_ms, told["not_received"].last_timestamp_ms) == (77, 99)
    assert (told["expired"].first_timestamp_ms, told["expired"].expires_at_ms) == (None, None)


@pytest.mark.parametrize(("ever_compacted", "state"), [(True, State.COMPACTED), (None, State.COMPACTED), (False, State.EXPIRED)])
def test_what_is_gone_is_compacted_only_where_that_can_be(ever_compacted: bool | None, state: State) -> None:
    rig = Rig(ever_compacted=ever_compacted)
    rig.read("record", 5)
    rig.observe((1, 5))
    rig.verdict(lambda due: Look(due.stop, 0, holes=((0, 1),)))
    assert state_of(rig.ledger, "s", 0) is state


def test_a_tombstone_that_must_arrive_is_missing() -> None:
    rig = Rig()
    rig.read("record", 5)
    rig.observe((1, 5))
    rig.verdict(lambda due: Look(due.stop, 0, tombstones=((0, 1),)))
    assert state_of(rig.ledger, "s", 0) is State.NOT_RECEIVED


def test_until_the_look_answers_nothing_is_told_and_what_arrives_meanwhile_is_received() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.wait()
    (step,) = rig.ledger.candidates()
    assert rig.types() == []
    rig.observe((0, 6))
    rig.ledger.settle(step, everything_there(step), rig.now)
    assert opened(rig) == {6, 7, 8}
    rig.ledger.settle(step, everything_there(step), rig.now)
    assert rig.types() == []


def test_a_look_that_got_part_of_the_way_judges_that_part() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.wait()
    (step,) = rig.ledger.candidates()
    for upto, judged in ((0, set()), (4, {0, 1, 2, 3}), (4, set()), (100, {4, 5, 6, 7, 8})):
        rig.ledger.settle(step, Look(upto, 0), rig.now)
        assert opened(rig) == judged


@pytest.mark.parametrize("how", ["truncated", "re-created"])
def test_a_look_at_a_log_that_is_another_one_now_judges_nothing(how: str) -> None:
    rig = Rig()
    rig.read("record", 20)
    rig.observe((0, 5), (19, 20))
    rig.wait()
    (step,) = rig.ledger.candidates()
    if how == "truncated":
        rig.ledger.truncate(10, rig.now)
    else:
        rig.recreate(OTHER_ID)
    rig.read("record", 30)
    rig.observe((0, 5), (29, 30))
    rig.flush()
    rig.ledger.settle(step, everything_there(step), rig.now)
    assert rig.types() == []


def test_candidates_come_in_steps_of_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LOOK_RUNS_MAX", 3)
    monkeypatch.setattr(ledger_module, "LOOK_SPAN_MAX", 40)
    rig = Rig()
    rig.read("record", 300)
    lost = {*range(0, 20, 2), 60, 99, 150, 151, *range(200, 290)}
    rig.observe(*runs_of(set(range(300)) - lost))
    steps = rig.verdict()
    assert all(len(step.runs) <= 3 and step.runs[-1][1] <= step.stop <= step.runs[0][0] + 40 for step in steps)
    assert set().union(*(expand(step.runs) for step in steps)) == lost
    assert opened(rig) == lost


def test_a_dense_backlog_of_a_billion_records_is_judged_in_one_go() -> None:
    rig = Rig()
    billion = 1_000_000_000
    for stop in (400_000_000, billion):
        first = rig.ledger.log.read
        assert rig.ledger.fold_log(log_read(first, [], stop=stop, records=((first, stop),)), rig.now)
    rig.observe((0, 700_000_000), (700_000_001, billion))
    assert [step.runs for step in rig.verdict()] == [((700_000_000, 700_000_001),)]
    assert opened(rig) == {700_000_000}
    assert rig.sink().settled == billion


# --- late, twice, never: named lives of an offset ---


def test_what_vanished_before_it_was_judged_and_came_back_is_received() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 10))
    rig.ledger.vanish("s", OffsetSet([(4, 5)]), rig.now)
    rig.observe((4, 5))
    assert rig.types() == ["gap.opened", "gap.filled"]
    assert rig.verdict() == []
    assert rig.types() == []
    assert state_of(rig.ledger, "s", 4) is State.RECEIVED


def test_what_was_explained_before_retention_took_it_stays_explained() -> None:
    rig = Rig()
    rig.ledger.end_is(10)
    rig.observe((0, 2), status=Status.QUARANTINED, reason="bad")
    rig.observe((2, 4), status=Status.UNOBSERVED)
    rig.observe((4, 6))
    rig.read("unread", 10)
    assert [state_of(rig.ledger, "s", offset) for offset in (0, 2, 4, 6)] == [
        State.QUARANTINED,
        State.UNOBSERVED,
        State.RECEIVED,
        State.UNREAD,
    ]


def test_an_early_explanation_is_told_once_the_log_is_read_and_only_of_records() -> None:
    rig = Rig()
    rig.ledger.end_is(10)
    rig.observe((0, 6), status=Status.QUARANTINED, reason="bad")
    assert rig.flush() == []
    rig.read(["record", "aborted", "record"], ahead=7)
    (event,) = rig.flush()
    assert (event.type, event.cause, event.reason, expand(event.ranges)) == (EventType.GAP_EXPLAINED, None, "quarantined", {0, 2})
    rig.observe((3, 4))
    rig.read("record", 7)
    (event,) = rig.flush()
    assert expand(event.ranges) == {4, 5}
    assert rig.flush() == []


def test_a_gap_says_why_it_left_the_open_set() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.verdict()
    rig.flush()
    rig.observe((0, 1), status=Status.QUARANTINED, reason="tombstone")
    rig.observe((1, 2), status=Status.UNOBSERVED)
    rig.observe((2, 3), status=Status.ACKNOWLEDGED, reason="known loss", by="anna")
    rig.observe((2, 3), status=Status.ACKNOWLEDGED, undo=True, by="bert")
    told = [(str(e.type), str(e.cause), e.reason, e.by) for e in rig.flush()]
    assert told == [
        ("gap.explained", "not_received", "quarantined", None),
        ("gap.explained", "not_received", "unobserved", None),
        ("gap.acknowledged", "not_received", "known loss", "anna"),
        ("gap.opened", "not_received", "acknowledgement undone", "bert"),
    ]


def test_duplicates_are_told_at_most_once_a_second_and_never_lost() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 10), source="a", sequence=1)
    told: set[int] = set()
    for number in range(10):
        rig.observe((number, number + 1), source="a", sequence=2 + number)
        events = rig.flush()
        assert len(events) == (number in (0, 4, 8))
        told |= set().union(*(expand(event.ranges) for event in events))
        rig.wait(250)
    rig.wait(1_000)
    told |= set().union(*(expand(event.ranges) for event in rig.flush()))
    assert told == set(range(10))
    rig.now -= 3_600_000  # the worker's clock was set back: not silent for an hour
    rig.observe((3, 4), source="a", sequence=50)
    assert rig.types() == ["duplicate.detected"]


# --- sinks come and go ---


def test_a_sink_that_leaves_is_closed_for_subscribers_and_opened_again_when_it_returns() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.verdict()
    rig.flush()
    rig.ledger.configure({}, rig.now)
    assert rig.types() == ["gap.explained", "sink.removed"]
    assert rig.fold.causes("t/0/s") == {}
    rig.observe((0, 4))
    rig.ledger.evaluate(rig.now)
    assert rig.types() == []
    rig.ledger.configure({"s": policy()}, rig.now)
    (event,) = rig.flush()
    assert (event.type, expand(event.ranges)) == (EventType.GAP_OPENED, set(range(4, 9)))


def test_a_sink_that_comes_later_knows_what_was_never_read() -> None:
    rig = Rig({})
    rig.read([*["unread"] * 5, *["record"] * 5])
    rig.ledger.configure({"s": policy(floor=2)}, rig.now)
    assert expand(rig.sink().unread) == {2, 3, 4}
    assert rig.sink().unread.dirty  # or no flush would ever keep it
    rig.observe((9, 10))
    assert [step.runs for step in rig.verdict()] == [((5, 9),)]


def test_a_sink_that_comes_later_does_not_answer_for_what_was_gone_before() -> None:
    rig = Rig({})
    rig.read("record", 20)
    rig.read("record", 1, start=15)
    rig.ledger.configure({"s": policy(floor=0)}, rig.now)
    assert rig.sink().floor == 15
    rig.observe((20, 21))
    rig.verdict()
    assert opened(rig) == set(range(15, 20))


def test_a_floor_that_comes_with_a_later_configuration_is_not_below_what_was_forgotten() -> None:
    rig = Rig({})
    rig.ledger.observe(ObservationRead(0, 0, BASE, b""), Observation("s", ((0, 1),), Status.ACKNOWLEDGED), rig.now)
    rig.read([*["record", "aborted"] * 10])
    rig.read("record", start=15)
    rig.ledger.configure({"s": policy(floor=2)}, rig.now)
    rig.observe((20, 21))
    rig.verdict()
    assert rig.sink().floor == rig.ledger.log.forgotten == 15
    assert opened(rig) == {16, 18}


def test_few_sinks_may_report_that_stand_in_no_configuration() -> None:
    rig = Rig()
    rig.read("record", 10)
    for number in range(UNCONFIGURED_MAX):
        assert rig.ledger.has_room_for(f"stranger {number}")
        rig.observe((0, 5), (6, 10), sink=f"stranger {number}")
    assert not rig.ledger.has_room_for("one more")
    assert rig.ledger.has_room_for("stranger 3")
    assert rig.ledger.has_room_for("s")
    rig.verdict()
    assert rig.types() == []
    assert expand(rig.sink("stranger 3").open[Cause.NOT_RECEIVED]) == {5}
    assert not rig.sink("stranger 3").policy.configured


def test_beyond_the_end_is_what_the_log_can_not_hold_yet() -> None:
    rig = Rig()
    rig.read("record", 10)
    assert not rig.ledger.beyond_end(Observation("s", ((0, 10),), claim=10))
    assert rig.ledger.beyond_end(Observation("s", ((0, 11),)))
    assert rig.ledger.beyond_end(Observation("s", (), claim=11))
    rig.ledger.end_is(11)
    assert not rig.ledger.beyond_end(Observation("s", ((0, 11),), claim=11))
    rig.ledger.end_is(3)
    assert rig.ledger.log.end == 11


# --- stalls ---


def stalling() -> Rig:
    rig = Rig({"s": policy(stall_after_ms=60_000)})
    rig.read("record", 10)
    rig.observe((0, 10))
    return rig


def test_a_record_after_a_long_silence_is_no_stall() -> None:
    rig = stalling()
    for _ in range(10):
        rig.wait(600_000)
        rig.read([])
        assert rig.types() == []
    rig.read("record")
    rig.wait(59_999)
    assert rig.types() == []
    rig.wait(1)
    assert rig.types() == ["sink.stalled"]
    assert rig.types() == []
    rig.observe((10, 11))
    assert rig.types() == ["sink.resumed"]


def test_a_marker_behind_the_horizon_is_no_stall() -> None:
    rig = stalling()
    rig.read("transaction_marker")
    rig.wait(600_000)
    assert rig.types() == []
    rig.read([], high_watermark=15, last_stable=15)  # the log is ahead of our reader: what stands there nobody knows
    rig.wait(600_000)
    assert rig.types() == []


def test_a_frozen_worker_takes_no_sink_for_stalled() -> None:
    rig = stalling()
    rig.read("record")
    rig.wait(1_000)
    rig.wait(3_600_000, heard=False)
    assert rig.types() == []
    rig.ledger.begin(rig.now)
    rig.wait(1_000)
    assert rig.types() == []
    rig.wait(60_000)
    assert rig.types() == ["sink.stalled"]


def test_a_stall_ends_with_the_topic_it_was_in() -> None:
    rig = stalling()
    rig.read("record")
    rig.wait(60_000)
    assert rig.types() == ["sink.stalled"]
    rig.recreate(OTHER_ID)
    assert rig.types() == ["log.recreated", "sink.resumed"]


# --- the log moves ---


def test_retention_expires_what_is_open_and_says_so_once() -> None:
    rig = Rig()
    rig.ledger.retention_ms = 1_000_000
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.verdict()
    (event,) = rig.flush()
    assert event.expires_at_ms == BASE + 1_000_000
    rig.read([], start=4)
    (event,) = rig.flush()
    assert (event.type, event.cause, expand(event.ranges)) == (EventType.GAP_EXPIRED, Cause.EXPIRED, {0, 1, 2, 3})
    rig.read([], start=4)
    assert rig.types() == []


def test_what_is_forgotten_below_the_log_start_does_not_split_gaps() -> None:
    rig = Rig({"s": policy(), "t": policy("t")})
    rig.read(["record", "aborted", "record", "aborted", "record", "aborted", "record", "record"])
    for name in ("s", "t"):
        rig.observe((6, 8), sink=name)
    rig.verdict()
    rig.observe((0, 3), status=Status.ACKNOWLEDGED, reason="known", by="me", sink="t")
    rig.flush()
    gaps = rig.ledger.gaps_of(rig.sink(), Cause.NOT_RECEIVED)
    assert gaps == [(0, 5, 3)]
    rig.read("record", start=8)
    rig.flush()
    assert (rig.ledger.log.forgotten, expand(rig.ledger.log.absent[Absent.ABORTED])) == (8, {1, 3})
    assert rig.ledger.gaps_of(rig.sink(), Cause.EXPIRED) == gaps
    rig.sink().find_gaps(rig.ledger.log)
    assert rig.ledger.gaps_of(rig.sink(), Cause.EXPIRED) == gaps
    rig.observe((0, 3), status=Status.ACKNOWLEDGED, undo=True, sink="t")
    assert rig.ledger.gaps_of(rig.sink("t"), Cause.EXPIRED) == gaps


def test_what_is_forgotten_does_not_split_a_gap_that_an_undo_opens_again() -> None:
    rig = Rig()
    rig.read(["record", "aborted", "record", "aborted", "record", "aborted", "record", "record"])
    rig.observe((6, 8))
    rig.verdict()
    rig.observe((0, 3), status=Status.ACKNOWLEDGED, reason="known", by="me")
    rig.read("record", start=8)
    assert expand(rig.ledger.log.absent[Absent.ABORTED]) == {1, 3}
    rig.observe((0, 5), status=Status.ACKNOWLEDGED, undo=True)
    assert rig.ledger.gaps_of(rig.sink(), Cause.EXPIRED) == [(0, 5, 3)]


def test_nothing_is_forgotten_that_somebody_has_to_judge_still() -> None:
    policies = {"s": policy(), "first": policy("first", floor=None), "silent": policy("silent", floor=None)}
    rig = Rig(policies)
    rig.read([*["record", "aborted"] * 10])
    rig.observe((0, 20))
    rig.observe((4, 5), sink="first")
    rig.verdict()
    rig.read("record", start=18)
    assert rig.ledger.log.forgotten == 5  # "first" is judged to its horizon, and "silent" answers for nothing yet
    rig.observe((0, 19), sink="silent")
    assert rig.sink("silent").lowest == 5


def test_a_sink_with_a_floor_that_was_never_heard_of_finds_exact_losses_when_it_reports() -> None:
    rig = Rig()
    rig.read([*["record", "aborted"] * 10])
    rig.read("record", start=20)
    rig.observe((20, 21))
    rig.verdict()
    assert opened(rig) == set(range(0, 20, 2))


def test_unread_offsets_are_told_and_are_neither_missing_nor_complete() -> None:
    rig = Rig()
    rig.read("record", 5)
    rig.read("unread", 5)
    rig.read("record", 5)
    (event,) = rig.flush()
    assert (event.type, event.sink, expand(event.ranges)) == (EventType.LOG_UNREAD, LOG_SINK, {5, 6, 7, 8, 9})
    rig.observe((0, 5), (10, 15))
    assert rig.verdict() == []
    assert expand(rig.sink().unread) == {5, 6, 7, 8, 9}
    rig.observe((5, 7))
    rig.observe((7, 8), status=Status.ACKNOWLEDGED, reason="known", by="me")
    assert [(str(e.type), e.cause) for e in rig.flush()] == [("gap.acknowledged", None)]
    assert expand(rig.sink().unread) == {8, 9}


def test_events_about_wide_stretches_of_the_log_are_split() -> None:
    rig = Rig()
    wide = 3 * ledger_module.LOOK_SPAN_MAX
    assert rig.ledger.fold_log(log_read(0, [], stop=wide, unread=((0, wide),), high_watermark=wide), rig.now)
    assert [event.ranges.count for event in rig.flush()] == [ledger_module.LOOK_SPAN_MAX] * 3
    rig.ledger.truncate(0, rig.now)
    assert [str(event.type) for event in rig.flush()] == ["log.truncated"] * 3


def test_truncation_closes_what_was_open_then_reads_anew() -> None:
    rig = Rig()
    rig.read(["record"] * 10 + ["hole"] + ["record"] * 9)
    rig.observe((0, 5), (19, 20), claim=20)
    rig.verdict()
    rig.flush()
    rig.ledger.truncate(8, rig.now, reason="leader epoch 3 ended at 8")
    told = [(str(e.type), e.sink, e.ranges.first(), e.reason) for e in rig.flush()]
    assert told == [
        ("gap.explained", "s", 8, "truncated: leader epoch 3 ended at 8"),
        ("gap.explained", "log", 10, "truncated: leader epoch 3 ended at 8"),
        ("log.truncated", "log", 8, "leader epoch 3 ended at 8"),
    ]
    assert rig.fold.causes("t/0/s") == {"not_received": {5, 6, 7}}
    assert (rig.sink().horizon, rig.sink().settled) == (8, 8)
    rig.read("record", 4)
    rig.observe((11, 12), claim=12)
    rig.verdict()
    assert opened(rig) == {8, 9, 10}


def test_a_re_created_topic_begins_anew_and_its_events_go_on() -> None:
    rig = Rig({"s": policy(floor=7), "first": policy("first", floor=None)})
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.observe((2, 3), sink="stranger")
    rig.verdict()
    rig.flush()
    sequence = rig.sink().sequence
    rig.recreate(OTHER_ID, 3, 3)
    assert rig.types() == ["gap.explained", "log.recreated"]
    assert rig.sink().sequence == sequence + 1
    assert (rig.sink().floor, rig.sink("first").floor, rig.sink("stranger").floor) == (3, 3, None)
    assert rig.ledger.log.topic_id == OTHER_ID
    assert not rig.ledger.fold_log(log_read(10, ["record"]), rig.now)
    rig.read("record", 10)
    rig.observe((12, 13))
    rig.verdict()
    assert opened(rig) == set(range(3, 12))


def test_holes_above_the_first_end_of_a_topic_that_never_was_compacted_accuse() -> None:
    rig = Rig()
    rig.ledger.log.seen_end = 3
    said = log_read(0, ["record", "hole", "record", "hole", "hole", "record"])
    assert rig.ledger.accuses(said) == ((3, 5),)
    assert rig.ledger.accuses(log_read(1, ["hole"])) == ()
    for compacted in (True, None):
        rig.ledger.log.ever_compacted = compacted
        assert rig.ledger.accuses(said) == ()


def test_an_added_partition_is_told() -> None:
    rig = Rig()
    rig.ledger.expanded(rig.now)
    (event,) = rig.flush()
    assert (event.type, event.sink, event.sequence, event.ranges) == (EventType.LOG_EXPANDED, LOG_SINK, 1, OffsetSet())


# --- cost ---


@pytest.mark.timeout(30)
def test_ten_thousand_open_gaps_are_told_and_filled_one_by_one_without_counting_them_each_time() -> None:
    rig = Rig()
    count, step = 10_000, 50
    marks = tuple((step * i + 20, step * i + 21) for i in range(count))
    stop = count * step
    records = tuple(run for i in range(count) for run in ((step * i, step * i + 20), (step * i + 21, step * i + step)))
    assert rig.ledger.fold_log(log_read(0, [], stop=stop, records=records, absent={Absent.ABORTED: marks}), rig.now)
    rig.observe(*((step * i + 1, step * i + step) for i in range(count)))
    rig.verdict()
    assert rig.ledger.take_events()[-1].open_gaps == count
    for number in range(2_000):
        first = step * number * 5
        rig.observe((first, first + 1))
        (event,) = rig.ledger.take_events()
        assert (event.open_gaps, event.open_count) == (count - number - 1,) * 2
    assert len(report.gaps(rig.ledger, rig.sink())) == count - 2_000
