"""The outbox against a plain multiset: nothing is lost, nothing is invented, and the bound holds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gapstream_sidecar.carried import UNOBSERVED, Carried, decode, encode
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import END_FRESH_S, NOWHERE, NOWHERE_S
from gapstream_sidecar.outbox import RUNS_PER_RECORD, Outbox
from gapstream_sidecar.outgoing import LAYER_BYTES, QUARANTINED, RECEIVED, Outgoing
from gapstream_sidecar.runs import RunList

AT = "2026-11-23T10:00:00.000Z"
KEY: Key = ("orders", 3)
RETRY: Key = ("retry", 0)


def make(max_bytes: int = 16 << 20) -> Outbox:
    return Outbox("billing", "host-1", max_bytes)


def drain(outbox: Outbox) -> list[dict[str, Any]]:
    """Acknowledge everything; the observations in the order of sending."""
    told = []
    for state in outbox.all():
        while state.in_flight is not None or state.is_waiting():
            flight = state.in_flight or outbox.launch(state, AT)
            told.append(json.loads(flight.payload))
            outbox.acknowledged(state)
    return told


def offsets(told: list[dict[str, Any]], status: str = RECEIVED) -> Counter[int]:
    return Counter(offset for one in told if one["status"] == status for first, last in one["runs"] for offset in range(first, last + 1))


def test_an_observation_has_the_shape_of_the_contract() -> None:
    outbox = make()
    outbox.add(KEY, [(100, 200)])
    outbox.add(KEY, [(205, 206)])
    outbox.add(KEY, [(300, 301)], QUARANTINED, "tombstone")
    head = {"v": 1, "sink": "billing", "topic": "orders", "partition": 3}
    tail = {"source": "host-1", "at": AT}
    assert drain(outbox) == [
        {**head, "runs": [[100, 199], [205, 205]], "status": "received", "sequence": 1, **tail},
        {**head, "runs": [[300, 300]], "status": "quarantined", "reason": "tombstone", "sequence": 2, **tail},
    ]


def test_offsets_in_any_order_gather_into_one_observation() -> None:
    outbox = make()
    for first in (10, 0, 5, 8, 3):
        outbox.add(KEY, [(first, first + 1)])
    (told,) = drain(outbox)
    assert told["runs"] == [[0, 0], [3, 3], [5, 5], [8, 8], [10, 10]]


def test_a_second_receipt_is_an_observation_of_its_own() -> None:
    outbox = make()
    outbox.add(KEY, [(0, 5)])
    outbox.add(KEY, [(4, 9)])
    outbox.add(KEY, [(9, 12)])
    assert [one["runs"] for one in drain(outbox)] == [[[0, 4]], [[4, 11]]]


def test_what_is_in_flight_takes_no_more_offsets() -> None:
    outbox = make()
    state = outbox.add(KEY, [(0, 5)])
    outbox.launch(state, AT)
    outbox.add(KEY, [(5, 6)])
    assert [(one["sequence"], one["runs"]) for one in drain(outbox)] == [(1, [[0, 4]]), (2, [[5, 5]])]


def test_a_large_observation_is_cut() -> None:
    outbox = make()
    outbox.add(KEY, [(at, at + 1) for at in range(0, 4 * RUNS_PER_RECORD, 2)])
    told = drain(outbox)
    assert [len(one["runs"]) for one in told] == [RUNS_PER_RECORD, RUNS_PER_RECORD]
    assert offsets(told) == Counter(range(0, 4 * RUNS_PER_RECORD, 2))


def test_a_refused_size_is_halved_under_the_same_number() -> None:
    outbox = make()
    state = outbox.add(KEY, [(at, at + 1) for at in range(0, 6_000, 2)])
    first = json.loads(outbox.launch(state, AT).payload)
    assert outbox.too_large(state)
    again = json.loads(outbox.launch(state, AT).payload)
    assert (first["sequence"], again["sequence"]) == (1, 1)
    told = drain(outbox)
    assert [len(one["runs"]) for one in told] == [1_500, 1_500]
    assert [one["sequence"] for one in told] == [1, 2]
    assert offsets(told) == Counter(range(0, 6_000, 2))
    assert outbox.size == 0


def test_one_run_that_is_refused_can_not_be_halved() -> None:
    outbox = make()
    state = outbox.add(KEY, [(0, 5)])
    outbox.launch(state, AT)
    assert not outbox.too_large(state)
    assert state.in_flight is not None


def test_settled_follows_the_oldest_that_is_not_acknowledged() -> None:
    outbox = make()
    state = outbox.add(KEY, [(0, 5)])
    first = state.serial
    outbox.launch(state, AT)
    outbox.add(KEY, [(0, 5)])
    second = state.serial
    assert (state.settled(first), state.settled(second)) == (False, False)
    outbox.acknowledged(state)
    assert (state.settled(first), state.settled(second)) == (True, False)
    outbox.launch(state, AT)
    outbox.acknowledged(state)
    assert state.settled(second)


def test_beyond_the_bound_the_oldest_becomes_unobserved() -> None:
    outbox = make(64 << 10)
    for at in range(0, 40_000, 2):
        outbox.add(KEY, [(at, at + 1)])
        assert outbox.size <= 64 << 10
    state = outbox.of(KEY)
    assert outbox.dropped == offsets_of(state)
    told = drain(outbox)
    unobserved, received = offsets(told, "unobserved"), offsets(told)
    assert max(unobserved) < min(received)  # the newest are exact
    assert set(unobserved) | set(received) >= set(range(0, 40_000, 2))
    assert max(received.values()) == 1
    assert set(received) <= set(range(0, 40_000, 2))
    assert outbox.size == 0


def offsets_of(state: Outgoing) -> int:
    """How many of the even offsets were dropped: those below the oldest that is still queued."""
    return state.queue[0].runs.bounds[0] // 2


def test_what_is_dropped_in_many_partitions_stays_within_the_bound() -> None:
    outbox = make(64 << 10)
    for turn in range(40):
        for number in range(200):
            outbox.add(("orders", number), [(turn * 10, turn * 10 + 1)])
            outbox.add(("orders", number), [(turn * 10, turn * 10 + 1)])
            assert outbox.size <= (64 << 10) + 2 * LAYER_BYTES
    told = drain(outbox)
    for number in range(200):
        mine = [one for one in told if one["partition"] == number]
        assert set(offsets(mine)) | set(offsets(mine, "unobserved")) >= set(range(0, 400, 10))
        numbers = [one["sequence"] for one in mine]
        assert numbers == sorted(set(numbers))


def test_what_another_owner_said_goes_out_under_its_name() -> None:
    outbox = make()
    outbox.add(KEY, [(10, 11)])
    outbox.add_carried(Carried(KEY, "host-0", 7, RECEIVED, None, RunList([(5, 9)])), KEY)
    outbox.add_carried(Carried(KEY, "", 0, UNOBSERVED, None, RunList([(1, 3)])), KEY)
    outbox.add(KEY, [(11, 12)])
    said = [(one["source"], one["sequence"], one["status"], one["runs"]) for one in drain(outbox)]
    assert said == [
        ("host-1", 1, "received", [[10, 11]]),
        ("host-0", 7, "received", [[5, 8]]),
        ("host-1", 3, "unobserved", [[1, 2]]),
    ]


def test_what_is_not_acknowledged_is_told_in_the_order_of_sending() -> None:
    outbox = make()
    state = outbox.add(KEY, [(0, 5)])
    outbox.launch(state, AT)
    outbox.add(KEY, [(5, 6)])
    outbox.add(KEY, [(5, 6)])
    assert [(row.number, list(row.runs)) for row in outbox.rows(state)] == [(1, [(0, 5)]), (2, [(5, 6)]), (3, [(5, 6)])]


def test_a_text_need_not_be_made_anew_for_what_simply_follows() -> None:
    outbox = make()
    state = outbox.add(KEY, [(0, 5)])
    versions = [state.version]
    for run in [(5, 6), (6, 9), (20, 21), (21, 25), (12, 13), (13, 14)]:
        outbox.add(KEY, [run])
        versions.append(state.version)
    same = [after == before for before, after in pairwise(versions)]
    assert same == [True, True, False, True, False, False]


def test_what_a_transaction_made_received_goes_under_the_number_that_it_travelled_with() -> None:
    outbox = make()
    outbox.add(KEY, [(0, 2)])
    parked = [outbox.park(KEY, RunList([run])) for run in ((2, 4), (4, 6), (4, 6))]
    assert [one.number for one in parked] == [2, 3, 4]
    for one in parked:
        outbox.unpark(one, KEY)
    assert [(one["sequence"], one["runs"]) for one in drain(outbox)] == [(3, [[0, 5]]), (4, [[4, 5]])]


def test_a_number_that_was_passed_is_not_used_any_more() -> None:
    outbox = make()
    parked = outbox.park(KEY, RunList([(2, 4)]))
    state = outbox.add(KEY, [(9, 10)])
    outbox.launch(state, AT)
    outbox.unpark(parked, KEY)
    assert [(one["sequence"], one["runs"]) for one in drain(outbox)] == [(2, [[9, 9]]), (3, [[2, 3]])]


def repeats_left_out(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As gapstream judges: an observation at or below the last sequence of its source is a repeat."""
    last, kept = dict[str, int](), []
    for one in told:
        if one["sequence"] > last.get(one["source"], 0):
            last[one["source"]] = one["sequence"]
            kept.append(one)
    return kept


def successor(outbox: Outbox, rows: list[Carried]) -> list[dict[str, Any]]:
    """What the next owner tells, who finds these rows in the last commit."""
    after = Outbox("billing", "host-2", outbox.max_bytes)
    for one in rows:
        after.add_carried(one, KEY)
    return drain(after)


def sent(outbox: Outbox) -> dict[str, Any]:
    """The next observation, which is acknowledged."""
    state = outbox.of(KEY)
    flight = outbox.launch(state, AT)
    outbox.acknowledged(state)
    said: dict[str, Any] = json.loads(flight.payload)
    return said


def test_a_carried_row_that_is_too_long_here_is_told_whole_or_a_kill_in_the_middle_would_lose_the_rest() -> None:
    outbox = make(64 << 10)
    carried = Carried(KEY, "host-0", 7, RECEIVED, None, RunList((at, at + 1) for at in range(0, 1_400, 2)))
    outbox.add_carried(carried, KEY)
    told = [sent(outbox), *successor(outbox, [carried])]
    assert offsets(repeats_left_out(told)) == Counter(range(0, 1_400, 2))


def test_what_travelled_keeps_its_number_where_an_observation_before_it_is_cut() -> None:
    """Told under another one, it would be taken for a repeat where the next owner tells it."""
    outbox = make()
    outbox.add(KEY, [(at, at + 1) for at in range(0, 6_000, 2)])
    outbox.add(KEY, [(7_000, 7_001)], QUARANTINED, "tombstone")
    state = outbox.of(KEY)
    carried = list(outbox.rows(state))[1:]
    outbox.launch(state, AT)
    assert outbox.too_large(state)
    told = [sent(outbox), sent(outbox), *successor(outbox, carried)]
    assert offsets(repeats_left_out(told), QUARANTINED) == Counter([7_000])
    assert offsets(drain(outbox)) == Counter(range(3_000, 6_000, 2))


def test_what_may_have_travelled_whole_and_is_refused_for_its_size_becomes_unobserved() -> None:
    """In two halves it would be received twice, or half of it never, where the next owner tells it after a kill."""
    outbox = make()
    state = outbox.add(KEY, [(at, at + 1) for at in range(0, 1_000, 2)])
    outbox.launch(state, AT)
    assert outbox.too_large(state)
    told = drain(outbox)
    assert [(one["sequence"], one["status"], len(one["runs"])) for one in told] == [(1, UNOBSERVED, 250)]
    assert set(offsets(told, UNOBSERVED)) >= set(range(0, 1_000, 2))
    assert outbox.dropped == 500


def test_what_may_be_handed_out_is_not_told_as_reported_while_it_waits() -> None:
    outbox = make()
    outbox.announce(KEY, (0, 10_000))
    assert sent(outbox)["ahead"] == [0, 10_000]
    outbox.add(KEY, [(at, at + 1) for at in range(0, 6_000, 2)])
    outbox.add(KEY, [(6_000, 6_001)], QUARANTINED, "tombstone")
    state = outbox.of(KEY)
    outbox.launch(state, AT)
    assert outbox.too_large(state)
    assert [sent(outbox)["ahead"][0] for _ in range(3)] == [3_000, 3_000, 6_001]


@dataclass(frozen=True)
class Work:
    """Records are received, then observations are sent, of which some are refused for their size; then a commit, or not."""

    status: str
    gap: int
    count: int
    sent: list[bool]
    """Whether it is taken."""
    commits: bool


works = st.builds(
    Work,
    st.sampled_from([RECEIVED, QUARANTINED]),
    st.integers(-20, 5),
    st.sampled_from([1, 2, 10, 50]),
    st.lists(st.booleans(), max_size=3),
    st.booleans(),
)


@given(st.lists(works, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_kill_loses_nothing_and_doubles_nothing_however_it_was_cut(script: list[Work]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapstream_sidecar.carried.METADATA_BYTES", 150)
        patch.setattr("gapstream_sidecar.outbox.CARRIED_RUNS_MAX", (150 - 42) // 4)
        outbox, wanted, committed, edge = make(), Counter[int](), Counter[int](), 0
        state, told, rows = outbox.of(KEY), list[dict[str, Any]](), list[Carried]()
        for work in script:
            first = max(0, edge + work.gap)
            edge = first + 2 * work.count
            outbox.add(KEY, [(at, at + 1) for at in range(first, edge, 2)], work.status)
            wanted.update(range(first, edge, 2))
            if work.commits:
                committed = wanted.copy()
                rows = decode(encode("billing", outbox.rows(state), KEY, 10**6)[0], "billing", KEY, 10**6)
            for taken in work.sent if state.is_waiting() else ():
                if state.in_flight is None and state.is_waiting():
                    outbox.launch(state, AT)
                if taken and state.in_flight is not None:
                    told.append(json.loads(state.in_flight.payload))
                    outbox.acknowledged(state)
                elif not taken:
                    outbox.too_large(state)
        judged = repeats_left_out([*told, *successor(outbox, rows)])
        found = offsets(judged) + offsets(judged, QUARANTINED)
        assert found <= wanted, "no false duplicate"
        assert all(found[one] or one in offsets(judged, UNOBSERVED) for one in committed), "no false gap"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(0, 40), st.integers(1, 6)),
        st.tuples(st.just("launch"), st.integers(0, 2), st.just(0), st.just(0)),
        st.tuples(st.just("acknowledge"), st.integers(0, 2), st.just(0), st.just(0)),
        st.tuples(st.just("too large"), st.integers(0, 2), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@pytest.fixture
def nothing_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that everything may be cut."""
    monkeypatch.setattr("gapstream_sidecar.outbox.CARRIED_RUNS_MAX", 1)


@pytest.mark.usefixtures("nothing_travels")
@given(steps)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_receipt_is_told_exactly_once(script: list[tuple[str, int, int, int]]) -> None:
    outbox, wanted, told = make(), [Counter[int]() for _ in range(3)], list[dict[str, Any]]()
    for step, number, first, length in script:
        state = outbox.of(("orders", number))
        if step == "add":
            outbox.add(state.key, [(first, first + length)])
            wanted[number].update(range(first, first + length))
        elif step == "launch" and state.in_flight is None and state.is_waiting():
            outbox.launch(state, AT)
        elif step == "too large":
            outbox.too_large(state)
        elif step == "acknowledge" and state.in_flight is not None:
            told.append(json.loads(state.in_flight.payload))
            outbox.acknowledged(state)
    told += drain(outbox)
    for number in range(3):
        mine = [one for one in told if one["partition"] == number]
        assert offsets(mine) == wanted[number]
        assert [one["sequence"] for one in mine] == list(range(1, len(mine) + 1))
        for one in mine:
            assert [[low, high - 1] for low, high in RunList((a, b + 1) for a, b in one["runs"])] == one["runs"]
    assert (outbox.size, outbox.in_flight_bytes, outbox.unacknowledged()) == (0, 0, 0)
    assert outbox.empty


# ------------------------------------------------------------------------------------------------ what headers tell


def test_what_headers_tell_is_kept_apart_and_doubted_until_the_end_is_known() -> None:
    outbox = make()
    assert not outbox.doubts(outbox.add(KEY, [(5, 9)]), 0)
    state = outbox.add(KEY, [(9, 12), (90, 120)], via=RETRY)
    assert outbox.doubts(state, 0)
    outbox.check(KEY, 100, 0)
    assert not outbox.doubts(state, 0)
    told = drain(outbox)
    assert [(one["source"], one["sequence"], one["runs"]) for one in told] == [
        ("host-1", 1, [[5, 8]]),
        ("host-1.1", 1, [[9, 11], [90, 99]]),
        ("host-1.1", 2, [[100, 119]]),
    ]
    outbox.add(KEY, [(0, 100)], via=RETRY)
    assert not outbox.doubts(state, END_FRESH_S - 1)
    outbox.add(KEY, [(0, 101)], via=RETRY)
    drain(outbox)
    outbox.add(KEY, [(0, 100)], via=RETRY)
    assert outbox.doubts(state, END_FRESH_S), "logs may lose their ends"
    assert outbox.size > 0
    drain(outbox)
    assert (outbox.size, outbox.empty) == (0, True)


def test_a_span_that_a_wrong_header_made_is_believed_below_the_logs_end() -> None:
    """Whole it would be rejected, and the right ones in it missing."""
    outbox = make()
    outbox.add(KEY, [(5, 10**12)], UNOBSERVED, via=RETRY)
    outbox.check(KEY, 100, 0)
    assert [(one["status"], one["runs"]) for one in drain(outbox)] == [(UNOBSERVED, [[5, 99]]), (UNOBSERVED, [[100, 10**12 - 1]])]


def test_dropped_replays_become_unobserved_when_they_are_checked_and_not_beside_what_nobody_doubts() -> None:
    outbox = make(64 << 10)
    state = outbox.add(KEY, [(2**40, 2**40 + 1)], via=RETRY)
    for offset in range(0, 40_000, 2):
        outbox.add(KEY, [(offset, offset + 1)], via=RETRY)
        assert outbox.size <= 64 << 10
    outbox.add(KEY, [(50_000, 50_001)])
    assert outbox.dropped > 0
    assert outbox.doubts(state, 0)
    outbox.check(KEY, 60_000, 0)
    told = drain(outbox)
    beyond = [one for one in told if one["runs"][-1][1] >= 60_000]
    right = [one for one in told if one not in beyond]
    assert [(one["status"], one["runs"]) for one in beyond] == [(UNOBSERVED, [[2**40, 2**40]])]
    assert {*offsets(right), *offsets(right, UNOBSERVED)} >= set(range(0, 40_000, 2))
    assert (outbox.size, outbox.empty) == (0, True)


def test_what_was_dropped_unchecked_shrinks_and_is_told_even_so() -> None:
    """Not at all, the records that were replayed would stay missing."""
    outbox = make(64 << 10)
    for number in range(40):
        outbox.add(("orders", number), [(at, at + 1) for at in range(0, 1_000, 2)], via=RETRY)
        assert outbox.size <= 64 << 10
    for number in range(600):
        outbox.add(("events", number), [(1, 2)])
        outbox.add(("events", number), [(1, 2)])
    assert outbox.size <= (64 << 10) + 2 * LAYER_BYTES
    for number in range(40):
        assert outbox.doubts(outbox.of(("orders", number), RETRY), 0)
        outbox.check(("orders", number), 2_000, 0)
        assert not outbox.doubts(outbox.of(("orders", number), RETRY), 0)
    told = drain(outbox)
    for number in range(40):
        mine = [one for one in told if (one["topic"], one["partition"]) == ("orders", number)]
        assert {*offsets(mine), *offsets(mine, UNOBSERVED)} >= set(range(0, 1_000, 2))
    assert (outbox.size, outbox.empty) == (0, True)


def test_what_was_found_beyond_the_end_poisons_nothing_when_it_is_dropped() -> None:
    outbox = make(64 << 10)
    state = outbox.add(KEY, [(1, 2), (2**40, 2**40 + 1)], via=RETRY)
    outbox.check(KEY, 50_000, 0)
    for offset in range(4, 40_000, 2):
        outbox.add(KEY, [(offset, offset + 1)], via=RETRY)
    assert outbox.dropped > 0
    assert outbox.doubts(state, 0)
    outbox.check(KEY, 50_000, 0)
    assert not outbox.doubts(state, 0)
    told = drain(outbox)
    assert [one["runs"] for one in told if one["runs"][-1][1] >= 50_000] == [[[2**40, 2**40]]]
    assert {*offsets(told[:-1]), *offsets(told[:-1], UNOBSERVED)} >= {1, *range(4, 40_000, 2)}


@pytest.mark.parametrize("end", [0, 50_000])
def test_what_was_dropped_unchecked_goes_without_an_answer_too(end: int) -> None:
    outbox = make(64 << 10)
    outbox.check(KEY, end, 0)
    state = outbox.add(KEY, [(2**40, 2**40 + 1)], via=RETRY)
    for offset in range(0, 40_000, 2):
        outbox.add(KEY, [(offset, offset + 1)], via=RETRY)
    later = 2 * END_FRESH_S
    assert outbox.doubts(state, later)
    outbox.check(KEY, None, later)
    told = []
    while state.is_waiting():
        assert not outbox.doubts(state, later)
        told.append(json.loads(outbox.launch(state, AT).payload))
        outbox.acknowledged(state)
    assert offsets_below(told, 50_000) >= set(range(0, 40_000, 2))
    assert (outbox.size, outbox.empty) == (0, True)


def offsets_below(told: list[dict[str, Any]], end: int) -> set[int]:
    return {offset for one in told for first, last in one["runs"] for offset in range(first, min(last + 1, end))}


def test_dropped_replays_in_flight_are_known_as_told_by_headers() -> None:
    """They travel with commits in the partition itself, where its own records were replayed into it, and are checked by the next owner."""
    outbox = make(64 << 10)
    outbox.check(KEY, 50_000, 0)
    for offset in range(0, 40_000, 2):
        outbox.add(KEY, [(offset, offset + 1)], via=KEY)
    state = outbox.of(KEY, KEY)
    assert state.lost
    outbox.launch(state, AT)
    assert [row.status for row in outbox.rows(state)][:2] == [UNOBSERVED, RECEIVED]
    assert all(row.replayed for row in outbox.rows(state))


def test_without_an_answer_only_what_goes_next_is_believed() -> None:
    """The others are in time for an answer that comes later."""
    outbox = make()
    state = outbox.add(KEY, [(1, 3)], via=RETRY)
    outbox.add(KEY, [(1, 3), (200, 201)], via=RETRY)
    assert outbox.doubts(state, 0)
    outbox.check(KEY, None, 0)
    assert not outbox.doubts(state, 0)
    outbox.launch(state, AT)
    outbox.acknowledged(state)
    assert outbox.doubts(state, END_FRESH_S)
    outbox.check(KEY, 100, END_FRESH_S)
    assert [one["runs"] for one in drain(outbox)] == [[[1, 2]], [[200, 200]]]


def test_without_an_answer_what_lies_beyond_the_end_that_was_known_goes_apart() -> None:
    """It may be right, but takes nothing along if it is not."""
    outbox = make()
    outbox.check(KEY, 100, 0)
    state = outbox.add(KEY, [(1, 3), (200, 201)], via=RETRY)
    assert outbox.doubts(state, 2 * END_FRESH_S)
    outbox.check(KEY, None, 2 * END_FRESH_S)
    outbox.add(KEY, [(1, 3), (300, 301)], via=RETRY)
    for _ in range(4):
        assert not outbox.doubts(state, 2 * END_FRESH_S), "it is not asked for again at once"
        outbox.launch(state, AT)
        outbox.acknowledged(state)
    assert outbox.empty


def test_what_nobody_watches_is_given_up_whole() -> None:
    outbox = make(64 << 10)
    for offset in range(0, 10_000, 2):
        outbox.add(KEY, [(offset, offset + 1)])
    state = outbox.of(KEY)
    outbox.launch(state, AT)
    outbox.add(KEY, [(2, 3)], via=RETRY)
    told = outbox.unacknowledged()
    assert sum(map(outbox.give_up, outbox.about(KEY))) == told
    assert (outbox.size, outbox.in_flight_bytes, outbox.empty, outbox.unacknowledged()) == (0, 0, True, 0)


def test_replays_of_what_nobody_watches_are_given_up() -> None:
    outbox = make()
    outbox.add(KEY, [(5, 9)])
    outbox.add(KEY, [(1, 3)], via=RETRY)
    outbox.add(KEY, [(2, 3)], via=RETRY)
    assert outbox.check(KEY, NOWHERE, 0) == 0, "its topic may be on its way to be made"
    assert outbox.check(KEY, NOWHERE, NOWHERE_S) == outbox.dropped == 3
    assert [one["runs"] for one in drain(outbox)] == [[[5, 8]]]
    assert (outbox.size, outbox.empty) == (0, True)


def test_what_each_partitions_headers_tell_has_a_source_of_its_own_and_travels_with_its_commits() -> None:
    outbox = make()
    outbox.add(KEY, [(5, 9)])
    for number, runs in ((0, [(1, 2)]), (1, [(2, 3)]), (0, [(3, 4)])):
        outbox.add(KEY, runs, via=("retry", number))
    outbox.add(("events", 0), [(7, 8)], via=("retry", 1))
    assert [one.source for one in outbox.about(KEY)] == ["host-1", "host-1.1", "host-1.2"]
    assert [one.name for one in outbox.carried_by(("retry", 1))] == [(KEY, ("retry", 1)), (("events", 0), ("retry", 1))]
    assert [one.source for one in outbox.carried_by(("retry", 1))] == ["host-1.2", "host-1.2"]
    assert [one.name for one in outbox.carried_by(KEY)] == [(KEY, None)]
    told = {one["source"]: (one["sequence"], one["runs"]) for one in drain(outbox) if one["topic"] == KEY[0]}
    assert told == {"host-1": (1, [[5, 8]]), "host-1.1": (1, [[1, 1], [3, 3]]), "host-1.2": (1, [[2, 2]])}


def test_transactions_with_replays_share_an_observation() -> None:
    """One for each would be sent five a second, and they are committed faster."""
    outbox = make()
    parked = [outbox.park(KEY, RunList([(at, at + 1)]), via=RETRY) for at in (5, 3, 4, 900, 3)]
    for one in parked:
        outbox.unpark(one, RETRY)
    assert outbox.doubts(outbox.of(KEY, RETRY), 0)
    outbox.check(KEY, 100, 0)
    told = [(one["sequence"], one["runs"]) for one in drain(outbox)]
    assert told == [(4, [[3, 5]]), (5, [[3, 3]]), (6, [[900, 900]])]


def test_a_transactions_replays_join_nothing_that_is_checked_already() -> None:
    """Beside what lies beyond the log's end they would be rejected."""
    outbox = make()
    state = outbox.add(KEY, [(1, 2), (900, 901)], via=RETRY)
    outbox.check(KEY, 100, 0)
    parked = [outbox.park(KEY, RunList([(at, at + 1)]), via=RETRY) for at in (5, 901, 6)]
    for one in parked:
        outbox.unpark(one, RETRY)
    outbox.launch(state, AT)
    outbox.acknowledged(state)
    outbox.launch(state, AT)
    assert json.loads(state.in_flight.payload if state.in_flight else "")["runs"] == [[900, 900]]
    outbox.check(KEY, 100, 0)
    assert [(one["sequence"], one["runs"]) for one in drain(outbox)] == [(2, [[900, 900]]), (5, [[5, 6]]), (6, [[901, 901]])]


def test_what_a_transaction_made_received_is_not_told_under_a_lower_number_than_what_was_dropped() -> None:
    """It would be taken for a repeat."""
    outbox = make(64 << 10)
    state = outbox.of(KEY)
    parked = outbox.park(KEY, RunList([(100_000, 100_001)]))
    for offset in range(0, 20_000, 2):
        outbox.add(KEY, [(offset, offset + 1)])
    assert state.lost
    outbox.unpark(parked, KEY)
    told = drain(outbox)
    numbers = [one["sequence"] for one in told]
    assert numbers == sorted(set(numbers))
    assert offsets(told)[100_000] == 1


def test_a_refused_size_is_halved_before_what_was_dropped_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it, it would be taken for a repeat."""
    monkeypatch.setattr("gapstream_sidecar.outbox.CARRIED_RUNS_MAX", 10)
    outbox = make(64 << 10)
    state = outbox.add(KEY, [(at, at + 1) for at in range(0, 100, 2)])
    outbox.launch(state, AT)
    for offset in range(100, 20_000, 2):
        outbox.add(KEY, [(offset, offset + 1)])
    assert state.lost
    assert outbox.too_large(state)
    told = drain(outbox)
    numbers = [one["sequence"] for one in told]
    assert numbers == sorted(set(numbers))
    assert set(offsets(told)) | set(offsets(told, UNOBSERVED)) >= set(range(0, 20_000, 2))
    assert set(offsets(told)) >= set(range(0, 100, 2))


def test_what_another_was_queued_before_is_not_settled_with_it() -> None:
    outbox = make()
    parked = outbox.park(KEY, RunList([(0, 5)]))
    state = outbox.add(KEY, [(7, 9)])
    serial = state.serial
    outbox.unpark(parked, KEY)
    outbox.launch(state, AT)
    assert not state.settled(serial)
