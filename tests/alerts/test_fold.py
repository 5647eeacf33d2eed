from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.alerts import AlertEvent, Conflict, EventError, Fold, Hole
from stream_app.alerts.event import Key
from stream_app.alerts.fold import REMEMBERED

KEY = ("orders", 0, "billing")
A, B, C = (f"gapstream://cluster/gapstream/{birth}" for birth in "abc")


def event(sequence: int, kind: str = "gap.opened", *ranges: tuple[int, int], source: str = A, key: Key = KEY, **more: Any) -> AlertEvent:
    topic, partition, sink = key
    if kind == "gap.opened":
        more = {"cause": "not_received"} | more
    return AlertEvent(
        source=source, id=f"{topic}/{partition}/{sink}/{sequence}", sequence=sequence, type=kind, severity="info",
        topic=topic, partition=partition, sink=sink, ranges=list(ranges) or None, **more,
    )  # fmt: skip


def folded(*events: AlertEvent, from_start: bool = True) -> Fold:
    fold = Fold(from_start=from_start)
    for one in events:
        fold.apply(one)
    return fold


def test_opened_is_open_in_closed_ranges_by_cause() -> None:
    first = event(1, "gap.opened", (10, 14), (20, 20))
    fold = folded(first, event(2, "gap.opened", (15, 15)), event(3, "gap.opened", (5, 5), cause="vanished"))
    assert fold.open_gaps() == {KEY: {"not_received": [(10, 15), (20, 20)], "vanished": [(5, 5)]}}


@pytest.mark.parametrize("kind", ["gap.filled", "gap.explained", "gap.acknowledged"])
def test_every_exit_takes_away_whatever_the_cause(kind: str) -> None:
    opened = (event(1, "gap.opened", (10, 14)), event(2, "gap.opened", (15, 19), cause="expired"))
    assert folded(*opened, event(3, kind, (12, 17))).open_gaps() == {KEY: {"expired": [(18, 19)], "not_received": [(10, 11)]}}
    assert folded(*opened, event(3, kind, (0, 99))).open_gaps() == {}


def test_expired_moves_to_its_cause() -> None:
    fold = folded(event(1, "gap.opened", (10, 19)), event(2, "gap.expired", (10, 12), cause="expired"))
    assert fold.open_gaps() == {KEY: {"expired": [(10, 12)], "not_received": [(13, 19)]}}


def test_what_never_was_open_can_be_explained() -> None:
    assert folded(event(1, "gap.explained", (1, 5)), event(2, "gap.opened", (3, 3))).open_gaps() == {KEY: {"not_received": [(3, 3)]}}


def test_an_undone_acknowledgement_opens_again() -> None:
    lost, accepted = event(1, "gap.opened", (1, 2), cause="expired"), event(2, "gap.acknowledged", (1, 2))
    fold = folded(lost, accepted, event(3, "gap.opened", (1, 1), cause="expired"))
    assert fold.open_gaps() == {KEY: {"expired": [(1, 1)]}}


@pytest.mark.parametrize("kind", ["duplicate.detected", "sink.stalled", "log.truncated", "something.new"])
def test_other_types_open_and_close_nothing(kind: str) -> None:
    fold = folded(event(1, "gap.opened", (1, 9)), event(2, kind, (3, 4)), event(3, kind))
    assert fold.open_gaps() == {KEY: {"not_received": [(1, 9)]}}
    assert fold.holes == []


def test_keys_are_apart() -> None:
    keys = [("orders", 0, "billing"), ("orders", 0, "log"), ("orders", 1, "billing"), ("payments", 0, "billing")]
    fold = folded(*(event(1, "gap.opened", (n, n), key=key) for n, key in enumerate(keys)))
    assert fold.open_gaps() == {key: {"not_received": [(n, n)]} for n, key in enumerate(keys)}


class TestRepeats:
    def test_they_change_nothing(self) -> None:
        first, second = event(1, "gap.opened", (1, 9)), event(2, "gap.filled", (1, 5))
        fold = Fold()
        assert [fold.apply(one) for one in (first, second, first, second, first)] == [True, True, False, False, False]
        assert fold.open_gaps() == {KEY: {"not_received": [(6, 9)]}}
        assert (fold.holes, fold.conflicts) == ([], [])

    def test_two_contents_under_one_id_are_noticed_and_the_first_counts(self) -> None:
        fold = folded(event(1, "gap.opened", (1, 9)), event(1, "gap.opened", (1, 10)))
        assert fold.conflicts == [Conflict(A, "orders/0/billing/1")]
        assert fold.open_gaps() == {KEY: {"not_received": [(1, 9)]}}

    def test_one_id_in_two_births_is_no_conflict(self) -> None:
        assert folded(event(1, "gap.opened", (1, 9)), event(1, "gap.opened", (1, 10), source=B)).conflicts == []

    def test_contents_are_remembered_for_so_many_events(self) -> None:
        fold = folded(*(event(n, "sink.stalled") for n in range(1, REMEMBERED + 2)))
        fold.apply(event(1, "sink.resumed"))
        assert fold.conflicts == []
        fold.apply(event(2, "sink.resumed"))
        assert [one.id for one in fold.conflicts] == ["orders/0/billing/2"]


class TestHoles:
    def test_between_events(self) -> None:
        fold = folded(event(1, "sink.stalled"), event(4, "sink.resumed"), event(5, "sink.stalled"), event(7, "sink.resumed"))
        assert fold.holes == [Hole(A, KEY, 2, 3), Hole(A, KEY, 6, 6)]

    def test_before_the_first(self) -> None:
        assert folded(event(3, "sink.stalled")).holes == [Hole(A, KEY, 1, 2)]
        assert folded(event(3, "sink.stalled"), event(5, "sink.stalled"), from_start=False).holes == [Hole(A, KEY, 4, 4)]

    def test_a_new_birth_begins_at_one(self) -> None:
        assert folded(event(5, "sink.stalled", source=B), from_start=False).holes == []
        fold = folded(*(event(n, "sink.stalled") for n in (1, 2)), event(1, "sink.stalled", source=B), event(3, "sink.stalled", source=B))
        assert fold.holes == [Hole(B, KEY, 2, 2)]


class TestBirths:
    def test_a_new_birth_starts_empty(self) -> None:
        fold = folded(event(1, "gap.opened", (1, 9)), event(1, "sink.stalled", source=B))
        assert fold.open_gaps() == {}

    def test_what_comes_late_from_the_old_birth_is_dropped(self) -> None:
        fold = folded(event(1, "gap.opened", (1, 9)), event(1, "gap.opened", (5, 5), source=B))
        assert fold.apply(event(1, "gap.opened", (1, 9))) is False
        assert fold.apply(event(2, "gap.opened", (20, 29))) is False
        assert fold.open_gaps() == {KEY: {"not_received": [(5, 5)]}}
        assert fold.apply(event(2, "gap.opened", (6, 6), source=B)) is True

    def test_a_key_that_is_silent_since_its_partition_was_born_anew_has_nothing_open(self) -> None:
        other, elsewhere = ("orders", 0, "warehouse"), ("orders", 1, "billing")
        events = [event(1, "gap.opened", (1, 9), key=key) for key in (KEY, other, elsewhere)]
        fold = folded(*events, event(1, "sink.stalled", source=B))
        assert fold.open_gaps() == {elsewhere: {"not_received": [(1, 9)]}}

    def test_keys_may_come_one_after_the_other_from_their_own_partitions(self) -> None:
        other = ("orders", 0, "warehouse")
        one = [event(1, "gap.opened", (1, 9)), event(1, "gap.opened", (2, 2), source=C)]
        two = [event(1, "gap.opened", (n, n), source=source, key=other) for n, source in enumerate((A, B, C))]
        expected = {KEY: {"not_received": [(2, 2)]}, other: {"not_received": [(2, 2)]}}
        assert folded(*one, *two).open_gaps() == folded(*two, *one).open_gaps() == expected


@pytest.mark.parametrize(("kind", "more"), [("gap.opened", {}), ("gap.filled", {}), ("gap.expired", {"cause": "expired"})])
def test_a_gap_without_offsets_is_an_error_and_changes_nothing(kind: str, more: dict[str, Any]) -> None:
    fold = folded(event(1, "gap.opened", (1, 9)))
    with pytest.raises(EventError, match="without offsets"):
        fold.apply(event(2, kind, **more))
    assert fold.apply(event(2, "gap.filled", (1, 1))) is True
    assert fold.holes == []


def test_an_opening_without_a_cause_is_an_error() -> None:
    with pytest.raises(EventError, match="without a cause"):
        Fold().apply(msgspec.structs.replace(event(1, "gap.opened", (1, 9)), cause=None))


KINDS = st.sampled_from(["gap.opened", "gap.filled", "gap.explained", "gap.acknowledged", "gap.expired", "sink.stalled"])
STEP = st.tuples(KINDS, st.integers(0, 40), st.integers(0, 8), st.sampled_from(["not_received", "vanished"]), st.integers(0, 2))


@given(st.lists(STEP, max_size=30))
def test_against_a_plain_dictionary_with_repeats(steps: list[tuple[str, int, int, str, int]]) -> None:
    """Offsets are opened only where they are not, as the ledger does; every event may come up to three times, late."""
    plain: dict[int, str] = {}
    events: list[AlertEvent] = []
    for kind, first, length, cause, _ in steps:
        wanted = set(range(first, first + length + 1))
        if kind == "gap.opened":
            wanted -= plain.keys()
            plain |= dict.fromkeys(wanted, cause)
        elif kind == "gap.expired":
            wanted &= plain.keys()
            plain |= dict.fromkeys(wanted, "expired")
            cause = "expired"
        elif kind != "sink.stalled":
            plain = {offset: had for offset, had in plain.items() if offset not in wanted}
        if wanted:
            events.append(event(len(events) + 1, kind, *((offset, offset) for offset in sorted(wanted)), cause=cause))
    fold = Fold()
    for number, one in enumerate(events):
        fold.apply(one)
        for repeat in range(steps[number % len(steps)][4]):
            assert fold.apply(events[max(0, number - 3 * repeat)]) is False
    found = {
        offset: cause
        for causes in fold.open_gaps().values()
        for cause, ranges in causes.items()
        for first, last in ranges
        for offset in range(first, last + 1)
    }
    assert found == plain
    assert (fold.holes, fold.conflicts) == ([], [])
