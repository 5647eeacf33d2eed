"""Instances of one group take a partition from each other, die and freeze: what is told is compared with what was asked for.

Each instance has a sidecar, a consumer and a producer of its own; the group and the topic of observations are shared. What is
told is judged as gapstream does: an observation at or below the last sequence of its source is a repeat.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from gapstream_sidecar import Sidecar
from tests.sidecar.fakes import FakeConsumer, FakeGroup, FakeProducer

KEY = ("orders", 0)
PART = TopicPartition(*KEY)
REFUSED = KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))


class Killed(Exception):
    """The process ends here."""


class Topic:
    """Observations in the order in which the broker has them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.said: list[dict[str, Any]] = []

    def add(self, value: bytes) -> None:
        with self.lock:
            self.said.append(json.loads(value))

    def judged(self) -> tuple[Counter[int], set[int]]:
        """How often each offset was received, and what is unobserved."""
        last: dict[str, int] = {}
        received, unobserved = Counter[int](), set[int]()
        for one in self.said:
            if one["sequence"] <= last.get(one["source"], 0):
                continue
            last[one["source"]] = one["sequence"]
            offsets = [offset for first, stop in one["runs"] for offset in range(first, stop + 1)]
            if one["status"] == "received":
                received.update(offsets)
            else:
                unobserved.update(offsets)
        return received, unobserved


class Link(FakeProducer):
    """A producer whose acknowledged records are in the shared topic."""

    def __init__(self, topic: Topic) -> None:
        super().__init__([])
        self.topic = topic
        self.dead = False

    def poll(self, timeout: float) -> int:
        return 0 if self.dead else super().poll(timeout)

    def land(self, record: tuple[str, int, bytes]) -> None:
        self.topic.add(record[2])


@dataclass
class Instance:
    """A process of the application."""

    sidecar: Sidecar
    consumer: Any
    inside: FakeConsumer
    link: Link
    position: int
    stop: int = 0
    """One past the last record that it was handed."""
    waiting: set[int] = field(default_factory=set)
    """What it was handed and has not asked for."""


class Handover(RuleBasedStateMachine):
    """The application reads a log that has no end; what an instance was not handed, it has skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.topic, self.group = Topic(), FakeGroup()
        self.asked = Counter[int]()
        self.owed = set[int]()
        """Asked for, and told or committed for sure."""
        self.zombies: list[Instance] = []
        self.all: list[Instance] = []
        self.calm = True
        self.owner = self.start()

    def start(self) -> Instance:
        link = Link(self.topic)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gapstream_sidecar.sidecar.Producer", lambda _: link)
            sidecar = Sidecar({"bootstrap.servers": "nowhere:1"}, sink="billing", observe_before_commit=0.01)
        inside = FakeConsumer([], group=self.group)
        consumer: Any = sidecar.wrap(inside, {"group.id": "g", "enable.auto.commit": False})
        consumer.subscribe(["orders"])
        inside.callbacks["on_assign"](inside, [PART])
        made = Instance(sidecar, consumer, inside, link, self.group.committed.get(KEY, (0, None))[0])
        self.all.append(made)
        return made

    def hand_out(self, to: Instance, count: int, skip: int) -> None:
        first = to.position + skip
        to.inside.deliver(*KEY, *range(first, first + count))
        assert len(to.consumer.consume(count)) == count
        to.position = to.stop = first + count
        to.waiting.update(range(first, first + count))

    def ask(self, by: Instance, how: str, back: int) -> None:
        offset = by.stop if how == "none" else max(1, by.position - back)
        covered = {one for one in by.waiting if one < offset}
        self.asked.update(covered)
        by.waiting -= covered
        accepted = by is self.owner
        made = how != "none" or offset > self.group.committed.get(KEY, (0, None))[0]
        by.inside.commit_error = None if accepted else REFUSED
        try:
            if how == "none":
                by.consumer.commit()
            else:
                by.consumer.commit(offsets=[TopicPartition(*KEY, offset)], asynchronous=how == "async")
        except KafkaException:
            assert not accepted
        if accepted and made:
            self.owed |= covered

    @rule(
        count=st.integers(0, 5),
        skip=st.sampled_from([0, 0, 0, 1, 3]),
        how=st.sampled_from(["not", "sync", "sync", "async", "none"]),
        back=st.sampled_from([0, 0, 1, 2]),
    )
    def works(self, count: int, skip: int, how: str, back: int) -> None:
        if count:
            self.hand_out(self.owner, count, skip)
        if how != "not":
            self.ask(self.owner, how, back)

    @rule(by=st.integers(1, 6))
    def goes_back(self, by: int) -> None:
        self.owner.position = max(0, self.owner.position - by)
        self.owner.consumer.seek(TopicPartition(*KEY, self.owner.position))

    @rule(held=st.booleans())
    def has_a_link_or_not(self, held: bool) -> None:
        (self.owner.link.hold if held else self.owner.link.release)()

    @rule(how=st.sampled_from(["handed over", "killed", "killed before the commit", "frozen"]))
    def is_gone(self, how: str) -> None:
        old, self.calm = self.owner, self.calm and how == "handed over"
        if how == "handed over":
            old.inside.callbacks["on_revoke"](old.inside, [PART])
        elif how == "frozen":
            old.link.hold()
        else:
            if how != "killed" and old.waiting:
                old.inside.commit_error = Killed()
                self.asked.update(old.waiting)
                with pytest.raises(Killed):
                    old.consumer.commit()
            old.link.dead = True
        if not old.link.dead:
            self.zombies.append(old)
        self.owner = self.start()

    @precondition(lambda self: self.zombies)
    @rule(count=st.integers(0, 2), how=st.sampled_from(["sync", "async"]))
    def a_former_owner_goes_on(self, count: int, how: str) -> None:
        zombie = self.zombies[-1]
        self.calm = False
        if count:
            self.hand_out(zombie, count, 0)
        self.ask(zombie, how, 0)

    @precondition(lambda self: self.zombies)
    @rule()
    def a_former_owner_is_owner_again(self) -> None:
        old, new = self.owner, self.zombies.pop()
        old.inside.callbacks["on_revoke"](old.inside, [PART])
        self.zombies.append(old)
        new.inside.callbacks["on_lost"](new.inside, [PART])
        new.inside.callbacks["on_assign"](new.inside, [PART])
        new.position = self.group.committed.get(KEY, (0, None))[0]
        new.waiting = {offset for offset in new.waiting if offset >= new.position}  # the others somebody else was handed
        new.stop = 0
        new.inside.forget_positions()
        self.owner = new

    @precondition(lambda self: self.zombies)
    @rule()
    def a_former_owner_has_its_link_back(self) -> None:
        self.zombies[0].link.release()

    def teardown(self) -> None:
        try:
            self.works(3, 0, "sync", 0)
            for one in self.all:
                if not one.link.dead:
                    one.link.release()
                    assert one.sidecar.flush(10)
            self.judge()
        finally:
            for one in self.all:
                one.sidecar.close(0)

    def judge(self) -> None:
        received, unobserved = self.topic.judged()
        assert unobserved == set()
        assert {offset for offset in received if not self.asked[offset]} == set()
        assert {offset for offset in self.owed if not received[offset]} == set()
        assert {offset for offset, times in received.items() if times > self.asked[offset]} == set()
        if self.calm:
            assert received == +self.asked


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("turn", ["spent", "always"])
def test_no_false_gap_and_no_false_duplicate(turn: str, request: pytest.FixtureRequest) -> None:
    if turn == "spent":
        request.getfixturevalue("spent")
    found = settings(max_examples=150, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(Handover, settings=found)
