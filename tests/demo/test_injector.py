"""The application that errs says exactly what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.demo import warehouse
from stream_app.demo.faults import Fault, Kind
from stream_app.demo.injector import Injected, Injector, Removed, Report, Step
from stream_app.demo.plan import RATE, Plan, Schedule

PARTITIONS = (("orders", 0), ("orders", 1), ("payments", 0), (warehouse.TOPIC, 0))


@dataclass
class Played:
    """What an application did with records that came one by one."""

    received: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    quarantined: set[tuple[str, int, int]] = field(default_factory=set)
    removed: set[tuple[str, int, int]] = field(default_factory=set)
    injected: list[tuple[Fault, float]] = field(default_factory=list)

    def take(self, steps: list[Step], now_s: float) -> None:
        for step in steps:
            match step:
                case Injected(fault):
                    self.injected.append((fault, now_s))
                case Removed(topic, partition, first, stop):
                    gone = {(topic, partition, offset) for offset in range(first, stop)}
                    assert all(now_s - self.received[at][0] > 4 for at in gone), "seen in the table before"
                    self.removed |= gone
                case Report(topic, partition, first, stop, quarantined):
                    for offset in range(first, stop):
                        if quarantined:
                            self.quarantined.add((topic, partition, offset))
                        else:
                            self.received.setdefault((topic, partition, offset), []).append(now_s)


def play(plan: Plan, seconds: float, slowness: float = 1.0) -> Played:
    """Deliver ``seconds`` seconds of records; ``slowness`` 2: each comes at twice its time."""
    injector, played = Injector(plan), Played()
    for offset in range(int(seconds * RATE)):
        now_s = offset / RATE * slowness
        for topic, partition in plan.partitions:
            played.take(injector.deliver(topic, partition, offset, now_s), now_s)
        played.take(injector.due(now_s), now_s)
    played.take(injector.end(), seconds * slowness)
    return played


def planned(plan: Plan, seconds: float) -> list[Fault]:
    slots = (plan.slot(number) for number in range(int(seconds * RATE)))
    return [fault for fault in slots if fault is not None]


def check_reports(plan: Plan, played: Played, seconds: float) -> None:
    """Every record was reported as the list of what was injected says, and all others once."""
    kinds = {(f.topic, f.partition, offset): f.kind for f, _ in played.injected for offset in range(f.first, f.stop)}
    times = {None: 1, Kind.LOST: 0, Kind.LATE: 1, Kind.DUPLICATE: 2, Kind.QUARANTINED: 0, Kind.VANISHED: 1}
    for topic, partition in plan.partitions:
        for offset in range(int(seconds * RATE)):
            at = (topic, partition, offset)
            assert len(played.received.get(at, ())) == times[kinds.get(at)]
            assert (at in played.quarantined) == (kinds.get(at) is Kind.QUARANTINED)
            assert (at in played.removed) == (kinds.get(at) is Kind.VANISHED)


@settings(max_examples=10)
@given(st.integers(0, 1_000_000))
def test_everything_planned_is_done_in_time(seed: int) -> None:
    plan = Plan(seed, PARTITIONS, Schedule(30))
    played = play(plan, 30)
    assert sorted((fault for fault, _ in played.injected), key=lambda fault: fault.order) == sorted(
        planned(plan, 30), key=lambda fault: fault.order
    )
    check_reports(plan, played, 30)
    for fault, at_s in played.injected:
        if fault.kind is Kind.LATE:
            assert at_s > (fault.stop - 1) / RATE + plan.schedule.late_after_s - 0.01
        assert at_s <= 30 - 6 + 0.2


@settings(max_examples=10)
@given(st.integers(0, 1_000_000), st.floats(1.1, 4.0))
def test_what_comes_too_late_to_be_judged_is_left_out(seed: int, slowness: float) -> None:
    plan = Plan(seed, PARTITIONS, Schedule(30))
    played = play(plan, 30, slowness)
    done = {fault for fault, _ in played.injected}
    assert done < set(planned(plan, 30))
    assert all(at_s <= 30 - 6 + 3 for _, at_s in played.injected)
    check_reports(plan, played, 30)


def test_an_early_end_makes_late_ranges_lost_and_cuts_what_was_begun() -> None:
    plan = Plan(4, (("orders", 0),), Schedule(None))
    seconds = 20.0
    whole = play(plan, seconds)
    late = [fault for fault in planned(plan, seconds) if fault.kind is Kind.LATE and fault.stop <= seconds * RATE]
    held_back = [fault for fault in late if fault.stop / RATE + plan.schedule.late_after_s > seconds + 0.1]
    assert held_back
    lost = {(fault.first, fault.stop) for fault, _ in whole.injected if fault.kind is Kind.LOST}
    assert {(fault.first, fault.stop) for fault in held_back} <= lost
    check_reports(plan, whole, seconds)

    cut = next(fault for fault in planned(plan, seconds) if fault.kind is Kind.LOST and fault.stop - fault.first > 1)
    part = play(plan, (cut.stop - 1) / RATE)
    assert Fault(Kind.LOST, cut.topic, cut.partition, cut.first, cut.stop - 1) in [fault for fault, _ in part.injected]
