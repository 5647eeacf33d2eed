"""What a consumer was handed and asks to commit, against a plain set of integers."""

from __future__ import annotations

from confluent_kafka import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st

from gapstream_sidecar.deliveries import Asked, Deliveries, Key
from gapstream_sidecar.runs import RunList
from tests.sidecar.fakes import FakeMessage

KEY: Key = ("orders", 3)


def deliver(deliveries: Deliveries, *numbers: int, key: Key = KEY) -> None:
    for number in numbers:
        deliveries.message(FakeMessage(*key, number))


def covered(answer: list[Asked]) -> dict[Key, list[tuple[int, int]]]:
    assert not any(one.uncertain for one in answer)
    return {one.key: list(one.received) for one in answer}


def test_a_commit_covers_what_was_delivered_below_it_once() -> None:
    deliveries = Deliveries()
    deliver(deliveries, *range(100, 110))
    assert covered(deliveries.ask({KEY: 105})) == {KEY: [(100, 105)]}
    assert covered(deliveries.ask({KEY: 105})) == {}
    assert covered(deliveries.ask({KEY: 110})) == {KEY: [(105, 110)]}


def test_what_was_skipped_is_not_covered() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2, 10)
    assert covered(deliveries.ask({KEY: 500})) == {KEY: [(1, 3), (10, 11)]}


def test_what_is_delivered_again_and_asked_for_again_is_covered_again() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2, 3)
    assert covered(deliveries.ask({KEY: 4})) == {KEY: [(1, 4)]}
    deliver(deliveries, 2, 3)
    assert covered(deliveries.ask({KEY: 4})) == {KEY: [(2, 4)]}


def test_delivered_twice_and_asked_for_once_is_once() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2, 3, 1, 2)
    assert deliveries.positions() == {KEY: 3}
    assert covered(deliveries.ask(deliveries.positions())) == {KEY: [(1, 3)]}
    deliver(deliveries, 3)
    assert covered(deliveries.ask(deliveries.positions())) == {KEY: [(3, 4)]}


def test_events_are_no_deliveries() -> None:
    deliveries = Deliveries()
    events = [FakeMessage(*KEY, 1, KafkaError(KafkaError._PARTITION_EOF)), FakeMessage(*KEY, None)]
    for one in events:
        deliveries.message(one)
    deliveries.batch([FakeMessage(*KEY, 4), *events, FakeMessage(*KEY, 5)])
    assert covered(deliveries.ask({KEY: 9})) == {KEY: [(4, 6)]}


def test_a_revoked_partition_is_forgotten() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2)
    deliver(deliveries, 7, key=("orders", 4))
    deliveries.forget([KEY])
    assert covered(deliveries.ask({KEY: 9, ("orders", 4): 9})) == {("orders", 4): [(7, 8)]}


def test_a_partition_given_up_by_hand_counts_only_where_it_is_named() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2)
    deliveries.unassigned()
    assert deliveries.positions() == {}
    assert covered(deliveries.ask({KEY: 2})) == {KEY: [(1, 2)]}
    deliveries.assigned([KEY], all_others_end=False)
    assert covered(deliveries.ask({KEY: 9})) == {}


def test_an_assignment_that_keeps_a_partition_keeps_its_deliveries() -> None:
    deliveries = Deliveries()
    other = ("orders", 4)
    deliver(deliveries, 1)
    deliver(deliveries, 7, key=other)
    deliveries.assigned([KEY], all_others_end=True)
    assert deliveries.positions() == {KEY: 2}
    assert covered(deliveries.ask({KEY: 2, other: 8})) == {KEY: [(1, 2)], other: [(7, 8)]}


def test_beyond_the_bound_the_oldest_is_told_as_uncertain() -> None:
    deliveries = Deliveries(max_bytes=64 << 10)  # 4,096 runs
    deliver(deliveries, *range(0, 60_000, 2))
    assert deliveries.runs <= 4_096 + 4_096  # the bound, and what comes between two looks at it
    (answer,) = deliveries.ask({KEY: 60_000})
    assert 1 <= len(answer.uncertain) <= 60_000 // 4_096
    assert answer.uncertain.bounds[-1] <= answer.received.bounds[0]
    told = {offset for runs in (answer.uncertain, answer.received) for low, high in runs for offset in range(low, high)}
    assert told >= set(range(0, 60_000, 2))


partitions = st.integers(0, 2).map(lambda number: ("orders", number))
places = st.tuples(partitions, st.integers(0, 22))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("consume"), st.lists(places, max_size=12)),
        st.tuples(st.sampled_from(["poll", "commit", "revoke"]), st.lists(places, min_size=1, max_size=1)),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=300)
def test_against_plain_sets(script: list[tuple[str, list[tuple[Key, int]]]]) -> None:
    deliveries, plain = Deliveries(), dict[Key, set[int]]()
    for step, where in script:
        if step == "consume":
            deliveries.batch([FakeMessage(*key, offset) for key, offset in where])
        elif step == "poll":
            deliver(deliveries, where[0][1], key=where[0][0])
        if step in ("consume", "poll"):
            for key, offset in where:
                plain.setdefault(key, set()).add(offset)
            continue
        key, offset = where[0]
        if step == "revoke":
            deliveries.forget([key])
            plain.pop(key, None)
            continue
        expected = {one for one in plain.get(key, ()) if one < offset}
        plain[key] = plain.get(key, set()) - expected
        answer = covered(deliveries.ask({key: offset}))
        assert answer == ({key: list(RunList((one, one + 1) for one in expected))} if expected else {})
