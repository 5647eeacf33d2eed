"""Sinks that stand still, as their partition's ledger can know it."""

from __future__ import annotations

from typing import Any

import pytest

from stream_app.core import report
from stream_app.core.model import Row
from stream_app.core.policy import Policy
from tests.core.strategies import OTHER_ID, Rig, policy

AFTER = 60_000


def rig_of(*policies: Policy) -> Rig:
    return Rig({one.name: one for one in policies or (policy(stall_after_ms=AFTER),)})


def told(rig: Rig) -> list[tuple[str, str | None]]:
    return [(str(event.type), event.reason) for event in rig.flush()]


def row_of(rig: Rig, name: str = "s") -> Row:
    return next(row for row in report.rows(rig.ledger, rig.now) if row.sink == name)


def taken_over(rig: Rig) -> None:
    """Another worker goes on with the same state."""
    rig.ledger.begin(rig.now)


# --- a sink with a horizon ---


def test_a_horizon_that_rests_with_records_ahead_is_told_once() -> None:
    rig = rig_of()
    rig.read("record", 10)
    rig.observe((0, 7))
    rig.wait(AFTER - 1)
    assert told(rig) == []
    rig.wait(1)
    assert told(rig) == [("sink.stalled", "3 records ahead and the horizon has not moved")]
    rig.wait(AFTER)
    assert told(rig) == []
    rig.observe((7, 8))
    assert told(rig) == [("sink.resumed", None)]


def test_copies_that_nobody_could_read_do_not_stand_still() -> None:
    rig = rig_of(policy(stall_after_ms=AFTER, mirrored=True))
    rig.read("record", 10)
    rig.observe((0, 7))
    moved = rig.now
    rig.wait(2 * AFTER)
    assert told(rig) == []
    rig.sink().copied_ms = moved + AFTER - 1
    rig.wait(1)
    assert told(rig) == []
    rig.sink().copied_ms = moved + AFTER
    rig.wait(1)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]


def test_nothing_ahead_is_no_stall_and_time_counts_from_the_first_record_ahead() -> None:
    rig = rig_of()
    rig.read("record", 10)
    rig.observe((0, 10))
    rig.wait(AFTER)
    assert told(rig) == []
    rig.read(["transaction_marker", "record"])
    rig.wait(AFTER - 1)
    assert told(rig) == []
    rig.wait(1)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]


def test_a_source_that_goes_back_and_reads_again_moves() -> None:
    rig = rig_of()
    rig.read("record", 100)
    for sequence, claim in enumerate((80, 10, 20, 30)):
        rig.observe(claim=claim, source="group:g", sequence=sequence)
        rig.wait(AFTER - 1)
        assert [kind for kind, _ in told(rig)] in ([], ["sink.rewound"])
    rig.wait(1)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]


def test_a_take_over_resumes_nothing_by_itself() -> None:
    rig = rig_of()
    rig.read("record", 10)
    rig.observe((0, 7))
    rig.wait(AFTER)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]
    taken_over(rig)
    rig.wait(1)
    assert told(rig) == []
    assert row_of(rig).stalled
    rig.observe((7, 8))
    assert told(rig) == [("sink.resumed", None)]


def test_a_take_over_begins_the_time_of_one_that_is_not_stalled_anew() -> None:
    rig = rig_of()
    rig.read("record", 10)
    rig.observe((0, 7))
    rig.wait(AFTER - 1)
    taken_over(rig)
    rig.wait(AFTER - 1)
    assert told(rig) == []
    rig.wait(1)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]


# --- a sink that never touched this partition ---


def test_one_that_nobody_heard_of_is_not_stalled() -> None:
    rig = rig_of()
    rig.read("record", 10)
    rig.wait(10 * AFTER)
    assert told(rig) == []


def test_one_that_is_heard_of_elsewhere_is_awaited_from_its_floor() -> None:
    rig = rig_of(policy(floor=4, stall_after_ms=AFTER))
    rig.read("record", 10)
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.wait(AFTER)
    assert told(rig) == [("sink.stalled", "heard of in other partitions, and 6 records from offset 4 on wait here")]
    row = row_of(rig)
    assert (row.stalled, row.heard, row.horizon_offset, row.lag, row.missing) == (True, False, None, None, None)
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.observe((4, 10))
    assert told(rig) == [("sink.resumed", None)]


def test_without_a_floor_it_is_awaited_from_the_logs_end_of_then() -> None:
    """It may have received what is older before anybody reported."""
    rig = rig_of(policy(floor=None, stall_after_ms=AFTER))
    rig.read("record", 10)
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.wait(AFTER)
    assert told(rig) == []
    rig.read("record", 3)
    rig.wait(AFTER - 1)
    assert told(rig) == []
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.wait(1)
    assert told(rig) == [("sink.stalled", "heard of in other partitions, and 3 records from offset 10 on wait here")]


def test_a_take_over_keeps_from_where_it_is_awaited() -> None:
    rig = rig_of(policy(floor=None, stall_after_ms=AFTER))
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.read("record", 3)
    rig.wait(AFTER)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]
    taken_over(rig)
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.wait(1)
    assert told(rig) == []


@pytest.mark.parametrize("rules", [{"stall_after_ms": None}, {"configured": False, "stall_after_ms": AFTER}])
def test_who_is_not_watched_for_it_is_not_awaited(rules: dict[str, Any]) -> None:
    rig = Rig({})
    rig.read("record", 3)
    rig.observe(sink="s", claim=0)
    rig.sink().policy = policy(**rules)
    rig.ledger.heard_in_topic({"s", "nobody", "log"}, rig.now)
    rig.wait(AFTER)
    assert told(rig) == []


def test_a_group_that_committed_nothing_here_is_awaited_though_reports_came() -> None:
    rig = rig_of(policy(floor=None, stall_after_ms=AFTER, group="g"))
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.read("record", 5)
    rig.observe((0, 5))
    rig.wait(AFTER)
    assert [kind for kind, _ in told(rig)] == ["sink.stalled"]
    assert row_of(rig).reason == "group g has committed nothing in this partition yet"


def test_a_log_that_is_cut_or_made_anew_takes_along_from_where_it_is_awaited() -> None:
    rig = rig_of(policy(floor=None, stall_after_ms=AFTER))
    rig.read("record", 10)
    rig.ledger.heard_in_topic({"s"}, rig.now)
    rig.ledger.truncate(6, rig.now)
    assert rig.sink().awaited == 6
    rig.recreate(OTHER_ID)
    assert rig.sink().awaited is None
