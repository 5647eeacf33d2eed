"""Sinks that leave the configuration, are forgotten, and come back."""

from __future__ import annotations

from stream_app.core.model import Cause, Drop, ObservationRead
from stream_app.core.state import StateCodec
from tests.core.strategies import BASE, SKEW, Rig, everything_there, plain, policy

DAY = 86_400_000


def order(rig: Rig, name: str) -> None:
    """An order to forget a sink, on the observations topic."""
    offset = rig.ledger.observed_to
    assert rig.ledger.observe(ObservationRead(offset, offset, rig.now + SKEW, b""), Drop(name, "me"), rig.now)


def left(rig: Rig) -> Rig:
    """``s`` had a gap, which was told, and left the configuration."""
    rig.read("record", 10)
    rig.observe((0, 4), (6, 10))
    rig.verdict()
    assert rig.types() == ["gap.opened"]
    rig.ledger.configure({}, rig.now)
    assert rig.types() == ["gap.explained", "sink.removed"]
    return rig


def test_one_that_left_is_forgotten_after_its_time() -> None:
    rig = left(Rig())
    rig.ledger.forget_after_ms = 7 * DAY
    rig.wait(7 * DAY - 1)
    assert rig.types() == []
    assert "s" in rig.ledger.sinks
    rig.wait(1)
    assert rig.types() == []
    assert "s" not in rig.ledger.sinks


def test_one_that_still_reports_is_kept() -> None:
    rig = left(Rig())
    rig.ledger.forget_after_ms = 7 * DAY
    rig.wait(6 * DAY)
    rig.observe((9, 10))
    rig.wait(6 * DAY)
    rig.flush()
    assert "s" in rig.ledger.sinks


def test_a_stranger_that_falls_silent_is_forgotten_too() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.ledger.forget_after_ms = DAY
    rig.observe((0, 10), sink="stranger")
    rig.wait(DAY)
    rig.flush()
    assert set(rig.ledger.sinks) == {"s", "log"}
    assert rig.ledger.dropped == {}, "nothing was ever told of it"


def test_without_a_time_nobody_is_forgotten() -> None:
    rig = left(Rig())
    rig.wait(1_000 * DAY)
    rig.flush()
    assert "s" in rig.ledger.sinks


def test_an_order_forgets_one_that_left_at_once_and_its_events_go_on_when_it_comes_back() -> None:
    rig = left(Rig())
    order(rig, "s")
    assert rig.types() == []
    assert "s" not in rig.ledger.sinks
    rig.ledger.configure({"s": policy(floor=None)}, rig.now)
    rig.observe((0, 2), (3, 10))
    rig.verdict()
    (event,) = rig.flush()  # whose fold insists that sequences go on
    assert (event.type, event.sequence) == ("gap.opened", 4)
    assert list(rig.sink().open[Cause.NOT_RECEIVED].runs()) == [(2, 3)], "what lacked before is forgotten"


def test_an_order_leaves_alone_what_stands_in_the_configuration_and_the_log() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 10))
    before = plain(rig.ledger.sinks)
    for name in ("s", "log", "nobody"):
        order(rig, name)
    assert plain(rig.ledger.sinks) == before


def test_a_look_from_before_an_order_says_nothing_of_the_sink_that_has_its_name_since() -> None:
    rig = left(Rig())
    rig.read("record", 10)
    rig.observe((10, 14), (16, 20))
    rig.wait()
    (due,) = rig.ledger.candidates()
    order(rig, "s")
    rig.observe((0, 3), (4, 20))
    rig.wait()
    (fresh,) = rig.ledger.candidates()
    rig.ledger.settle(due, everything_there(due), rig.now)
    assert not rig.sink().missing(), "nobody has looked at 3 yet"
    rig.ledger.settle(fresh, everything_there(fresh), rig.now)
    assert list(rig.sink().missing().runs()) == [(3, 4)]


def test_how_far_its_copies_were_read_goes_with_it() -> None:
    rig = left(Rig())
    rig.ledger.mirrored = {"s/topic:copy/0": (17, 4, bytes(16)), "other/topic:copy/0": (3, 1, bytes(16))}
    order(rig, "s")
    assert set(rig.ledger.mirrored) == {"other/topic:copy/0"}


def test_one_that_comes_back_before_its_time_has_what_it_had() -> None:
    rig = left(Rig())
    rig.ledger.forget_after_ms = DAY
    rig.wait(DAY - 1)
    rig.ledger.configure({"s": policy()}, rig.now)
    assert rig.types() == ["gap.opened"]
    rig.wait(DAY)
    assert rig.types() == []


def test_the_time_goes_on_when_another_worker_takes_over() -> None:
    rig = left(Rig())
    codec = StateCodec(0)
    stored = {key: value for key, value in codec.changes(rig.ledger, force=True) if value is not None}
    rig.wait(DAY)
    loaded = StateCodec(0).load("t", stored.items(), {}, rig.now)
    assert loaded is not None
    loaded.forget_after_ms = DAY
    loaded.begin(rig.now)
    loaded.evaluate(rig.now)
    assert "s" not in loaded.sinks


def test_the_state_of_one_that_is_forgotten_is_deleted_even_if_another_has_its_name_since() -> None:
    rig = left(Rig())
    codec, stored = StateCodec(0), dict[bytes, bytes]()

    def flush() -> None:
        for key, value in codec.changes(rig.ledger):
            if value is None:
                del stored[key]
            else:
                stored[key] = value
        loaded = StateCodec(0).load("t", stored.items(), {}, BASE)
        assert loaded is not None
        assert plain(loaded) == plain(rig.ledger)

    flush()
    order(rig, "s")
    rig.observe((8, 9))
    flush()
    order(rig, "s")
    flush()
