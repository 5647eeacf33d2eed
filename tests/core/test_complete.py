from __future__ import annotations

from stream_app.core.ledger import LOG_SINK
from stream_app.core.model import Look, Status
from stream_app.core.offsets import OffsetSet
from tests.core.strategies import BASE, Rig, policy


def through(rig: Rig, name: str = "s") -> int | None:
    rig.flush()
    return rig.sink(name).complete_ms


def test_complete_through_is_unknown_until_everything_it_needs_is_known() -> None:
    rig = Rig({"s": policy(floor=None)})
    assert through(rig) is None
    rig.read("record", 5, ahead=5)
    assert through(rig) is None
    rig.observe((0, 10))
    assert through(rig) is None
    rig.now += 1
    rig.read("record", 5)
    assert through(rig) is None  # the floor is not fixed: what was said of it last may not be the lowest
    rig.verdict()
    assert through(rig) == BASE + 1


def test_complete_through_follows_what_is_in_flight_open_or_unread_and_never_falls() -> None:
    rig = Rig()
    rig.ledger.lateness_ms = 10
    for number in range(5):
        rig.now = BASE + 1_000 * number
        rig.read("record", 10)
    rig.observe((0, 15))
    assert through(rig) == BASE + 1_000 - 1 - 10  # 15 is of the second second
    rig.observe((15, 42), (45, 50))
    assert through(rig) == BASE + 4_000 - 1 - 10
    rig.verdict(lambda due: Look(due.stop, 0, timestamps={42: BASE + 4_000, 44: BASE + 4_000}))
    rig.read([])
    assert through(rig) == BASE + 4_000 - 1 - 10
    rig.observe((42, 45))
    rig.read([])
    assert through(rig) == rig.now - 10
    held = rig.now
    rig.wait(5_000)
    rig.read("unread", 5)
    rig.read("record", 1)
    assert through(rig) == held - 10
    rig.observe((50, 55), status=Status.ACKNOWLEDGED, reason="known", by="me")
    rig.observe((55, 56))
    assert through(rig) == rig.now - 10
    rig.ledger.vanish("s", OffsetSet([(0, 5)]), rig.now)
    assert through(rig) == rig.now - 10


def test_complete_through_waits_for_open_transactions_and_never_falls() -> None:
    """What they wrote is of a time that would have been said to be complete when they commit."""
    rig = Rig()
    rig.ledger.lateness_ms = 10
    rig.read("record", 5)
    rig.observe((0, 5))
    assert through(rig) == BASE - 10
    began = rig.now
    for _ in range(3):
        rig.wait(1_000)
        rig.read([], high_watermark=9, last_stable=5)
        assert through(rig) == through(rig, LOG_SINK) == began - 10
    rig.read("record", 4, ahead=0)
    rig.observe((5, 9))
    assert through(rig) == through(rig, LOG_SINK) == rig.now - 10


def test_complete_through_of_a_transaction_that_was_open_at_first_sight_stops_at_what_stands_before_it() -> None:
    rig = Rig()
    rig.read("record", 5, ahead=4, last_stable=5)
    rig.observe((0, 5))
    before = rig.now
    rig.wait(1_000)
    rig.read([], high_watermark=9, last_stable=5)
    assert through(rig) == through(rig, LOG_SINK) == before
    future = Rig()
    future.read("record", 5, ahead=4, last_stable=5, max_timestamp_ms=BASE + 10**9)
    future.observe((0, 5))
    future.wait(1_000)
    future.read([], high_watermark=9, last_stable=5)
    assert through(future, LOG_SINK) == BASE, "a record may say that it is of a time to come"
    empty = Rig({"s": policy(floor=None)})
    empty.read([], high_watermark=9, last_stable=0)
    assert through(empty) == through(empty, LOG_SINK) is None, "nobody can tell since when it is open"


def test_complete_through_of_an_expired_gap_of_unknown_time_stays_where_it_was() -> None:
    rig = Rig()
    rig.read("record", 5)
    rig.observe((0, 5))
    assert through(rig) == BASE
    rig.wait(10)
    rig.read("record", 5, min_timestamp_ms=None)
    rig.observe((6, 10))
    rig.ledger.log.timeline.forget_from(0)
    rig.verdict(lambda due: Look(due.stop, 8))
    rig.read([])
    assert through(rig) == BASE


def test_an_empty_log_is_complete_for_a_sink_that_was_never_heard_of_unless_it_was_not_read() -> None:
    rig = Rig({"s": policy(floor=None), "t": policy("t")})
    rig.read("transaction_marker", 3)
    assert through(rig) == through(rig, "t") == BASE
    rig.wait(1_000)
    rig.read("unread", 3)
    assert through(rig) == through(rig, "t") == BASE
