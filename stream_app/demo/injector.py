"""The application that errs: what it does with each record that is delivered to it. Pure; time is an argument."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from stream_app.demo.faults import Fault, Kind
from stream_app.demo.plan import Plan

SLACK_S = 1.5
"""A fault whose record comes later than planned by more than this is left out: it might not be judged before the end."""


@dataclass(frozen=True, slots=True)
class Report:
    """The application tells the sidecar of ``[first, stop)``."""

    topic: str
    partition: int
    first: int
    stop: int
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """Somebody deletes what the table has of ``[first, stop)``."""

    topic: str
    partition: int
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault is complete: this is what was done."""

    fault: Fault


Step = Report | Removed | Injected


@dataclass(slots=True)
class Injector:
    """Follows a plan, and knows what it did and what it left out."""

    plan: Plan
    _left_out: set[Fault] = field(default_factory=set)
    _begun: dict[Fault, int] = field(default_factory=dict)
    """Faults whose records are coming in -> one past the last that came."""
    _waiting: list[tuple[float, tuple[str, int, int, str], Fault]] = field(default_factory=list)
    """Ranges to be reported (again) or deleted, by time."""

    def deliver(self, topic: str, partition: int, offset: int, now_s: float) -> list[Step]:
        """One record, in the order of its partition; ``now_s`` counts from the begin."""
        normal = [Report(topic, partition, offset, offset + 1)]
        fault = self.plan.at(offset)
        if fault is None or (fault.topic, fault.partition) != (topic, partition) or not fault.first <= offset < fault.stop:
            return list(normal)
        if offset == fault.first and now_s > self.plan.schedule.last_s(fault.kind, topic) + SLACK_S:
            self._left_out.add(fault)
        if fault in self._left_out:
            if offset == fault.stop - 1:
                self._left_out.discard(fault)
            return list(normal)
        self._begun[fault] = offset + 1
        steps: list[Step] = []
        if fault.kind in (Kind.DUPLICATE, Kind.VANISHED):
            steps += normal
        elif fault.kind is Kind.QUARANTINED:
            steps.append(Report(topic, partition, offset, offset + 1, quarantined=True))
        return steps + self._complete(fault, now_s) if offset == fault.stop - 1 else steps

    def _complete(self, fault: Fault, now_s: float) -> list[Step]:
        del self._begun[fault]
        wait_s = self.plan.schedule.wait_s(fault.kind)
        if wait_s:
            heapq.heappush(self._waiting, (now_s + wait_s, fault.order, fault))
            return []
        return [Injected(fault)]

    def due(self, now_s: float) -> list[Step]:
        """What was held back until now."""
        steps: list[Step] = []
        while self._waiting and self._waiting[0][0] <= now_s:
            fault = heapq.heappop(self._waiting)[2]
            what = Removed if fault.kind is Kind.VANISHED else Report
            steps += [what(fault.topic, fault.partition, fault.first, fault.stop), Injected(fault)]
        return steps

    def end(self) -> list[Step]:
        """The application stops: what was held back is lost, and what was begun is as long as it got."""
        done = [fault for _, _, fault in self._waiting]
        done += [Fault(fault.kind, fault.topic, fault.partition, fault.first, stop) for fault, stop in self._begun.items()]
        self._waiting.clear()
        self._begun.clear()
        what = {Kind.LATE: Kind.LOST, Kind.LOST: Kind.LOST, Kind.QUARANTINED: Kind.QUARANTINED}
        return [
            Injected(Fault(what[fault.kind], fault.topic, fault.partition, fault.first, fault.stop)) for fault in done if fault.kind in what
        ]
