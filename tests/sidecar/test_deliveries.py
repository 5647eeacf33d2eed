"""What a consumer was handed and asks to commit, against a plain set of integers."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gapstream_sidecar.deliveries import REPLAYS_MAX, Asked, Deliveries, Key, Replay
from gapstream_sidecar.runs import RunList

KEY: Key = ("orders", 3)


def deliver(deliveries: Deliveries, *numbers: int, key: Key = KEY) -> None:
    for number in numbers:
        deliveries.add(*key, number, number + 1)


def covered(answer: list[Asked]) -> dict[Key, list[tuple[int, int]]]:
    assert not any(one.uncertain or one.replays for one in answer)
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


def test_a_partition_that_was_given_up_counts_only_where_it_is_named() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2)
    deliveries.unassigned()
    assert deliveries.positions() == {}
    assert covered(deliveries.ask({KEY: 2})) == {KEY: [(1, 2)]}
    deliveries.assigned([KEY])
    (answer,) = deliveries.ask({KEY: 9})  # before it is known where it began again: others may have been handed it meanwhile
    assert not answer.received
    assert list(answer.uncertain) == [(2, 3)]


def test_an_assignment_that_keeps_a_partition_keeps_its_deliveries() -> None:
    deliveries = Deliveries()
    other = ("orders", 4)
    deliver(deliveries, 1)
    deliver(deliveries, 7, key=other)
    deliveries.assigned([KEY], all_others_end=True)
    assert deliveries.positions() == {}  # the client forgets what it stored: until the next record it commits nothing
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


def test_positions_that_moved_by_as_many_as_were_handed_out_tell_it_all() -> None:
    deliveries, other = Deliveries(), ("orders", 4)
    deliver(deliveries, 10)
    deliver(deliveries, 70, key=other)
    assert [one.key for one in deliveries.followed] == [KEY, other]
    assert deliveries.moved({KEY: 15, other: 71}, 4)
    assert not deliveries.moved({KEY: 20, other: 74}, 7)  # 5 and 3: something was skipped
    assert not deliveries.moved({KEY: 14, other: 72}, 0)  # backward and forward
    assert covered(deliveries.ask(deliveries.positions())) == {KEY: [(10, 15)], other: [(70, 71)]}


@pytest.mark.parametrize("moved", [False, True])
def test_a_first_record_of_a_partition_makes_up_for_no_hole_of_another(moved: bool) -> None:
    deliveries, other = Deliveries(), ("orders", 4)
    deliver(deliveries, 10)
    if moved:
        deliver(deliveries, 69, key=other)
        deliveries.sought(other)
    assert deliveries.moved({KEY: 15, other: -1001}, 4)
    assert not deliveries.moved({KEY: 20, other: 71}, 5)  # 16 to 19, and 70 of the other one


def test_where_the_consumer_stands_is_not_known_after_it_was_moved() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 10)
    followed = deliveries.followed
    assert deliveries.followed is followed
    deliveries.sought(KEY)
    assert list(deliveries.followed) == []
    deliver(deliveries, 3)
    assert deliveries.is_sure(KEY)
    deliveries.unassigned()
    assert list(deliveries.followed) == []


def test_what_was_asked_for_before_is_known() -> None:
    deliveries = Deliveries()
    deliver(deliveries, *range(10))
    deliveries.ask({KEY: 5})
    assert deliveries.rising({KEY: 5}) == [KEY]
    assert deliveries.rising({KEY: 4, ("orders", 9): 1}) == []
    deliveries.committed(KEY, 8)
    assert deliveries.rising({KEY: 7}) == []


def test_an_aborted_transaction_has_asked_for_nothing() -> None:
    deliveries = Deliveries()
    deliver(deliveries, 1, 2, 5)
    deliveries.replayed(*KEY, 2, ("orders", 9), 100)
    deliveries.restore(deliveries.ask({KEY: 3}))
    (again,) = deliveries.ask({KEY: 9})
    assert list(again.received) == [(1, 3), (5, 6)]
    assert again.sources() == [(("orders", 9), RunList([(100, 101)]))]


def test_replays_gather_into_runs_and_go_with_their_commit() -> None:
    deliveries, source = Deliveries(), ("orders", 9)
    deliver(deliveries, *range(6))
    for offset in (1, 2, 3, 5):
        assert deliveries.replayed(*KEY, offset, source, 100 + offset)
    (first,) = deliveries.ask({KEY: 3})
    assert first.replays == [Replay(1, 3, source, 100)]
    (rest,) = deliveries.ask({KEY: 9})
    assert rest.sources() == [(source, RunList([(103, 104), (105, 106)]))]
    deliver(deliveries, 1)
    (again,) = deliveries.ask({KEY: 9})
    assert again.replays == []


replayed_runs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(1, 5)), max_size=30)


@given(replayed_runs)
def test_every_replay_is_in_a_set_of_its_partition(found: list[tuple[int, int, int]]) -> None:
    begins = [10 * place for place in range(len(found))]  # each was handed out for itself
    replays = [Replay(at, at + length, ("orders", number), first - at) for at, (number, first, length) in zip(begins, found, strict=True)]
    asked = Asked(KEY, RunList(), RunList(), replays)
    wanted, told = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for number, first, length in found:
        wanted.update((number, offset) for offset in range(first, first + length))
    for (_, number), one in asked.sources():
        told.update((number, offset) for first, stop in one for offset in range(first, stop))
    assert told == wanted
    most = {number: max((times for (where, _), times in wanted.items() if where == number), default=0) for number in (0, 1)}
    assert len(asked.sources()) == sum(most.values()), "no more sets than are needed"


@pytest.mark.parametrize("how", ["sought back", "given up and returned", "aborted"])
def test_a_replay_that_is_handed_out_twice_before_it_is_asked_for_counts_once(how: str) -> None:
    deliveries, source = Deliveries(), ("orders", 9)
    for _ in range(3):
        deliver(deliveries, 4, 5)
        for offset in (4, 5):
            assert deliveries.replayed(*KEY, offset, source, 100 + offset)
        if how == "given up and returned":
            deliveries.unassigned([KEY])
            deliveries.assigned([KEY])
            deliveries.committed(KEY, 4)
        elif how == "aborted":
            deliveries.restore(deliveries.ask({KEY: 6}))
        else:
            deliveries.sought(KEY)
    (asked,) = deliveries.ask({KEY: 6})
    assert (list(asked.received), asked.sources()) == ([(4, 6)], [(source, RunList([(104, 106)]))])


def test_replays_are_bounded() -> None:
    deliveries = Deliveries()
    deliver(deliveries, *range(0, 3 * REPLAYS_MAX, 2))
    kept = [deliveries.replayed(*KEY, offset, ("orders", 9), 1) for offset in range(0, 3 * REPLAYS_MAX, 2)]
    assert kept.count(False) == 1
    (answer,) = deliveries.ask({KEY: 4 * REPLAYS_MAX})
    assert len(answer.replays) <= REPLAYS_MAX


def test_what_has_to_ripen_can_not_be_taken_before() -> None:
    deliveries, source = Deliveries(ripening=True), ("orders", 9)
    deliver(deliveries, 1, 2, 3)
    deliveries.replayed(*KEY, 3, source, 30)
    assert deliveries.take_ripe() == []
    assert covered(deliveries.ask({KEY: 3})) == {KEY: [(1, 3)]}  # unless it is asked for by name
    assert deliveries.ripen()
    assert not deliveries.ripen()
    deliver(deliveries, 0)
    (ripe,) = deliveries.take_ripe()
    assert (list(ripe.received), ripe.sources()) == ([(3, 4)], [(source, RunList([(30, 31)]))])
    deliveries.unassigned()
    deliveries.assigned([KEY])
    deliveries.ripen()
    assert covered(deliveries.take_ripe()) == {KEY: [(0, 1)]}  # handed out before, and committed by the client


partitions = st.integers(0, 2).map(lambda number: ("orders", number))
places = st.tuples(partitions, st.integers(0, 22))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("consume"), st.lists(places, max_size=12)),
        st.tuples(st.just("poll"), st.builds(lambda at, count: [(at[0], at[1] + one) for one in range(count)], places, st.integers(1, 4))),
        st.tuples(st.sampled_from(["commit", "come", "go"]), st.lists(places, min_size=1, max_size=1)),
    ),
    max_size=40,
)


COMES_AND_GOES: list[tuple[str, list[tuple[Key, int]]]] = [
    (step, [(KEY, 5)]) for step in ("consume", "go", "come", "go", "poll", "come", "commit", "poll", "commit")
]


@given(steps)
@example(COMES_AND_GOES)
@settings(max_examples=300)
def test_against_plain_sets(script: list[tuple[str, list[tuple[Key, int]]]]) -> None:
    deliveries, gone, returned = Deliveries(), set[Key](), set[Key]()
    plain, doubted = defaultdict[Key, set[int]](set), defaultdict[Key, set[int]](set)
    for step, where in script:
        if step in ("consume", "poll"):
            for key, offset in where:
                if step == "consume" or not deliveries.follows(*key, offset):
                    deliver(deliveries, offset, key=key)
                if key in returned:
                    returned.remove(key)
                    plain[key], doubted[key] = set(), set()
                plain[key].add(offset)
            continue
        key, offset = where[0]
        if step == "go":
            deliveries.unassigned([key])
            gone |= {key} & plain.keys()
        elif step == "come":
            deliveries.assigned([key])
            returned |= {key} & gone
            gone.discard(key)
        else:
            if key in returned:
                returned.remove(key)
                doubted[key] |= set(range(min(plain[key]), max(plain[key]) + 1)) if plain[key] else set()
                plain[key] = set()
            received = {one for one in plain.get(key, ()) if one < offset}
            uncertain = {one for one in doubted.get(key, ()) if one < offset}
            answer = deliveries.ask({key: offset})
            assert [(one.key, list(one.received), list(one.uncertain)) for one in answer] == (
                [(key, as_runs(received), as_runs(uncertain))] if received or uncertain else []
            )
            if key in plain:
                plain[key] -= received
                doubted[key] -= uncertain
    assert set(deliveries.keys()) >= {key for key, offsets in plain.items() if offsets} - gone


def as_runs(offsets: set[int]) -> list[tuple[int, int]]:
    return list(RunList((one, one + 1) for one in offsets))
