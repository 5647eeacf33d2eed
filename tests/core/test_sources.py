from __future__ import annotations

from stream_app.core.model import Observation
from stream_app.core.sink import SinkState
from stream_app.core.sources import SOURCES_MAX, Claimed, Sources, described
from tests.core.strategies import Rig, policy

GROUP = "group:loader"


def claim(sources: Sources, offset: int | None, sequence: int = 0, source: str | None = GROUP) -> Claimed | None:
    said = Observation("s", (), claim=offset, source=source, sequence=sequence)
    return sources.note_claim(said)


def claimed(rig: Rig, *offsets: int, source: str = GROUP) -> None:
    """One claim after the other, each with the next sequence."""
    for offset in offsets:
        rig.observe(claim=offset, source=source, sequence=rig.sink().sources.sequences.get(source, 0) + 1)


def rewinds(rig: Rig) -> list[str | None]:
    return [event.reason for event in rig.flush() if event.type == "sink.rewound"]


# --- who went back ---


def test_a_claim_is_compared_with_the_last_one_of_its_source() -> None:
    sources = Sources()
    assert claim(sources, 100) == Claimed(None, 100)
    assert claim(sources, 50, source="host-1") == Claimed(None, 50)
    moved = claim(sources, 60)
    assert moved == Claimed(100, 60)
    assert moved.went_back
    assert moved.moved
    again = claim(sources, 60)
    assert again is not None
    assert not again.moved
    assert not again.went_back


def test_what_makes_no_claim_or_has_no_source_is_not_compared() -> None:
    sources = Sources()
    assert claim(sources, None) is None
    assert claim(sources, 7, source=None) is None
    assert sources.claims == {}


def test_a_source_is_behind_until_it_claims_as_much_as_before() -> None:
    sources = Sources()
    for offset, said in [
        (100, None),
        (50, "group loader went back from 100 and is at 50"),
        (80, "group loader went back from 100 and is at 80"),
        (70, "group loader went back from 100 and is at 70"),
        (100, None),
    ]:
        claim(sources, offset)
        assert sources.why_behind() == said


def test_a_source_is_named_in_words() -> None:
    assert described("group:a:b") == "group a:b"
    assert described("host-1") == "source host-1"


def test_whoever_is_forgotten_is_not_behind() -> None:
    state = SinkState(policy())
    for number, offset in enumerate((9, 5)):
        state.sources.is_repeat(Observation("s", (), claim=offset, source=GROUP, sequence=number))
        claim(state.sources, offset)
    for number in range(SOURCES_MAX):
        state.sources.is_repeat(Observation("s", (), claim=1, source=f"source {number}", sequence=0))
    assert (state.sources.behind, state.sources.claims) == (None, {})


def test_going_on_from_where_the_log_was_cut_is_no_going_back() -> None:
    rig = Rig()
    rig.read("record", 100)
    claimed(rig, 100, 90)
    rig.ledger.truncate(50, rig.now)
    rig.read("record", 30)
    claimed(rig, 60)
    assert rewinds(rig) == ["group loader went back from 100 to 90"]
    assert rig.sink().sources.why_behind() is None


# --- what is told of it ---


def test_each_time_it_goes_back_is_told_once_and_the_horizon_stays() -> None:
    rig = Rig()
    rig.read("record", 100)
    claimed(rig, 80, 30, 30, 40, 20)
    assert rewinds(rig) == ["group loader went back from 80 to 30", "group loader went back from 40 to 20"]
    assert rewinds(rig) == []
    assert rig.sink().horizon == 80


def test_a_repeat_does_not_go_back() -> None:
    rig = Rig()
    rig.read("record", 100)
    rig.observe(claim=80, source=GROUP, sequence=7)
    rig.observe(claim=30, source=GROUP, sequence=6)
    assert rewinds(rig) == []


def test_sources_that_take_turns_do_not_go_back() -> None:
    rig = Rig()
    rig.read("record", 100)
    claimed(rig, 50, source="host-1")
    claimed(rig, 20, 60, source="host-2")
    claimed(rig, 55, source="host-1")
    assert rewinds(rig) == []


def test_of_a_sink_in_no_configuration_nothing_is_told() -> None:
    rig = Rig()
    rig.read("record", 10)
    for number, offset in enumerate((9, 5)):
        rig.observe(sink="stranger", claim=offset, source=GROUP, sequence=number)
    assert rig.flush() == []


def test_a_floor_that_is_not_fixed_yet_does_not_go_back_with_a_claim() -> None:
    """Whoever goes back reads again what it had; what lies between is not missing until then."""
    rig = Rig({"s": policy(floor=None)})
    rig.read("record", 100)
    claimed(rig, 80, 30, 50)
    rig.verdict()
    assert rig.sink().floor == 80
    assert rig.types() == ["sink.rewound"]


# --- claims of a group ---


def test_a_sink_with_a_group_has_no_horizon_but_its_claims() -> None:
    rig = Rig({"s": policy(group="loader")})
    rig.read("record", 100)
    rig.observe((0, 5), (7, 50), source="host-1", sequence=1)
    assert rig.verdict() == []
    assert (rig.sink().horizon, rig.ledger.lag(rig.sink())) == (None, None)
    claimed(rig, 10)
    rig.verdict()
    assert rig.types() == ["gap.opened"]
    assert list(rig.sink().missing().runs()) == [(5, 7)]
    assert rig.sink().settled == 10
