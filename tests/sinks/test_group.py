"""What commits say, against a history in which it is known which record the group committed past before retention took it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from stream_app.core.model import Observation, Status
from stream_app.sinks.group import Known, Starts, source_of, statements
from stream_app.sinks.observation import NAME_CHARS_MAX, encode, parse

ID = bytes(range(16))


def said(commit: int, starts: Starts | None, *, passed: int | None = 100, sequence: int = 6) -> list[tuple[str, object, int | None]]:
    found = statements("s", "loader", Known(sequence, passed, ID), commit, starts)
    for number, one in enumerate(found, sequence + 1):
        assert (one.sink, one.source, one.sequence, one.topic_id) == ("s", "group:loader", number, ID)
        assert parse(encode(one, "t", 0), "t", 0) == one
    return [(str(one.status), one.runs, one.claim) for one in found]


def test_what_a_commit_passes_is_received() -> None:
    assert said(150, Starts(0, 0)) == [("received", ((100, 150),), 150)]


def test_a_sink_that_reports_itself_is_told_claims_only() -> None:
    assert said(150, None) == [("received", (), 150)]


def test_where_nothing_is_known_yet_a_commit_is_a_claim_only() -> None:
    assert said(150, Starts(0, 0), passed=None) == [("received", (), 150)]


def test_a_commit_that_goes_back_is_a_claim_only() -> None:
    assert said(40, Starts(0, 0)) == [("received", (), 40)]


def test_what_was_gone_while_the_group_was_not_beyond_it_is_left_out() -> None:
    assert said(150, Starts(120, 120)) == [("received", ((120, 150),), 150)]


def test_what_both_passed_between_two_looks_is_unobserved() -> None:
    assert said(150, Starts(110, 130)) == [("unobserved", ((110, 130),), None), ("received", ((130, 150),), 150)]
    assert said(150, Starts(0, 130)) == [("unobserved", ((100, 130),), None), ("received", ((130, 150),), 150)]


def test_a_log_that_starts_beyond_the_commit() -> None:
    assert said(150, Starts(200, 200)) == [("received", (), 150)]
    assert said(150, Starts(0, 200)) == [("unobserved", ((100, 150),), None), ("received", (), 150)]


def test_a_start_that_one_answer_gives_too_low_changes_nothing() -> None:
    assert said(150, Starts(120, 0)) == [("received", ((120, 150),), 150)]


def test_names_of_groups_that_are_too_long_for_a_source_are_told_apart() -> None:
    assert source_of("a b/c:d") == "group:a b/c:d"
    one, other = source_of("g" * 300), source_of("g" * 299 + "h")
    assert len(one) == len(other) == NAME_CHARS_MAX
    assert one != other
    assert source_of("g" * 194) == "group:" + "g" * 194


@dataclass
class History:
    """A log, a group that reads it, retention that follows either, and somebody who looks now and then."""

    dice: random.Random
    start: int = 0
    end: int = 0
    commit: int = 0
    lost: set[int] = field(default_factory=set)
    """Gone while the group had not committed past them."""
    claim: int = 0
    before: int = 0
    told: dict[int, str] = field(default_factory=dict)
    seen: int = 0
    """The commit that was seen last."""

    def happen(self) -> None:
        what = self.dice.choice(["write", "commit", "commit", "retention", "reset"])
        if what == "write":
            self.end += self.dice.randint(1, 9)
        elif what == "commit":
            self.commit = min(max(self.commit, self.start) + self.dice.randint(0, 9), self.end)
        elif what == "reset" and self.commit == self.seen:  # forward, taken by retention and back between two looks can't be told
            self.commit = self.dice.choice([self.commit, self.start, self.commit // 2])
        elif what == "retention":
            start = min(self.start + self.dice.randint(0, 12), self.end)
            self.lost |= {offset for offset in range(self.start, start) if offset >= max(self.commit, self.claim)}
            self.start = start

    def look(self) -> None:
        """As the watcher does it: the start as it was known, the commit, then the start asked afresh."""
        before, commit = self.start, self.commit
        self.seen = commit
        if commit <= self.claim:
            self.before = before
        elif commit != self.claim:
            for _ in range(self.dice.choice([0, 0, 2])):
                self.happen()
            self.take(statements("s", "g", Known(0, self.claim, ID), commit, Starts(self.before, self.start)))

    def take(self, observations: list[Observation]) -> None:
        for one in observations:
            for first, stop in one.runs:
                for offset in range(first, stop):
                    assert offset not in self.told, "said twice"
                    self.told[offset] = str(one.status)
            if one.claim is not None:
                for offset in range(self.claim, one.claim):
                    self.told.setdefault(offset, "missing")
                self.claim = max(self.claim, one.claim)


@pytest.mark.parametrize("seed", range(30))
def test_nothing_lost_counts_as_received_and_nothing_received_as_lost(seed: int) -> None:
    history = History(random.Random(seed))
    for _ in range(400):
        for _ in range(history.dice.randint(0, 3)):
            history.happen()
        history.look()
    told = history.told
    assert set(told) == set(range(history.claim))
    assert set(told.values()) <= {"received", "missing", "unobserved"}
    missing = {offset for offset, status in told.items() if status == "missing"}
    received = {offset for offset, status in told.items() if status == str(Status.RECEIVED)}
    assert missing <= history.lost
    assert not received & history.lost


def test_histories_have_all_of_it() -> None:
    """The comparison proves nothing of what never happens in it."""
    found: set[str] = set()
    for seed in range(30):
        history = History(random.Random(seed))
        for _ in range(400):
            history.happen()
            history.look()
        found |= set(history.told.values())
    assert found == {"received", "missing", "unobserved"}
