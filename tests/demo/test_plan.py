"""What a seed means: every fault can be told from every other, and can be judged before the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.demo import warehouse
from stream_app.demo.faults import Fault, Kind
from stream_app.demo.plan import BLOCK, RATE, SECONDS_MIN, SLOT, Plan, Schedule

WITHOUT_TABLE = tuple((topic, number) for topic in ("orders", "payments") for number in range(4))
PARTITIONS = (*WITHOUT_TABLE, *((warehouse.TOPIC, number) for number in range(4)))

seeds = st.integers(0, 2**63 - 1)
lengths = st.integers(SECONDS_MIN, 300)


def plan(seed: int, seconds: float | None, partitions: tuple[tuple[str, int], ...] = PARTITIONS) -> Plan:
    return Plan(seed, partitions, Schedule(seconds))


def faults(plan: Plan, seconds: float) -> Iterator[Fault]:
    for number in range(int(seconds * RATE / SLOT) + 1):
        fault = plan.slot(number)
        if fault is not None:
            yield fault


@settings(max_examples=20)
@given(seeds, lengths)
def test_faults_of_a_partition_neither_overlap_nor_touch(seed: int, seconds: int) -> None:
    taken: dict[tuple[str, int], int] = {}
    for fault in faults(plan(seed, seconds), seconds):
        assert fault.first < fault.stop
        assert fault.first > taken.get((fault.topic, fault.partition), -1)
        taken[fault.topic, fault.partition] = fault.stop


@settings(max_examples=20)
@given(seeds, lengths)
def test_each_kind_is_there(seed: int, seconds: int) -> None:
    counts = Counter(fault.kind for fault in faults(plan(seed, seconds), seconds))
    at_least = 3 if seconds >= 30 else 1
    assert all(counts[kind] >= at_least for kind in Kind), counts


@settings(max_examples=20)
@given(seeds, lengths)
def test_without_a_table_nothing_vanishes_and_the_rest_is_there(seed: int, seconds: int) -> None:
    made = plan(seed, seconds, WITHOUT_TABLE)
    assert set(made.kinds) == set(Kind) - {Kind.VANISHED}
    assert {fault.kind for fault in faults(made, seconds)} == set(made.kinds)


def test_a_table_loses_whole_blocks_and_nothing_of_it_is_late() -> None:
    of_table = [fault for fault in faults(plan(1, None), 300) if fault.topic == warehouse.TOPIC]
    assert {fault.stop - fault.first for fault in of_table if fault.kind is Kind.LOST} > {BLOCK, 1}
    assert {fault.kind for fault in of_table} == set(Kind) - {Kind.LATE}


@settings(max_examples=20)
@given(seeds, lengths)
def test_nothing_is_planned_that_could_not_be_judged(seed: int, seconds: int) -> None:
    made = plan(seed, seconds)
    for fault in faults(made, seconds * 2):
        assert fault.stop / RATE <= made.schedule.last_s(fault.kind, fault.topic)
        done_s = fault.stop / RATE + made.schedule.wait_s(fault.kind)
        assert done_s + (9 if fault.topic == warehouse.TOPIC else 6) <= seconds


@settings(max_examples=20)
@given(seeds, lengths)
def test_the_same_seed_means_the_same_faults(seed: int, seconds: int) -> None:
    assert list(faults(plan(seed, seconds), seconds)) == list(faults(plan(seed, seconds), seconds))
    assert list(faults(plan(seed, seconds), seconds)) != list(faults(plan(seed + 1, seconds), seconds))


@settings(max_examples=20)
@given(seeds, st.lists(st.integers(0, 40_000), max_size=100))
def test_a_fault_is_the_same_from_whichever_offset_it_is_asked(seed: int, offsets: list[int]) -> None:
    made = plan(seed, None)
    for offset in offsets:
        assert made.at(offset) == plan(seed, None).slot(offset // SLOT)


def test_a_run_without_end_goes_on_with_every_kind() -> None:
    far = [plan(1, None).slot(number) for number in range(1_000_002, 1_000_012)]
    assert Counter(fault.kind for fault in far if fault is not None) == dict.fromkeys(Kind, 2)
