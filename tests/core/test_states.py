from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stream_app.core.ledger import Candidates
from stream_app.core.model import Look, Status
from stream_app.core.offsets import OffsetSet
from stream_app.core.states import PLACES, TABLE, Effect, Input, Move, State, as_markdown, move
from tests.core.strategies import Rig, everything_there, expand, policy, state_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "states.md"
X = 10
"""The offset that everything happens to; the log holds 0 to 19 and the sink answers for all of them."""

# --- the contract, section 1: its rows and columns as they stand there ---

COLUMNS = (
    *(Input.OBSERVED, Input.QUARANTINED, Input.UNOBSERVED, Input.VANISHED),
    *(Input.SETTLED, Input.LOG_START_PASSED, Input.TRUNCATED, Input.ACKNOWLEDGED),
)
LOST = ("filled", "explained quarantined", "stays", "stays", "-", "stays", "explained truncated", "explained acknowledged")
DONE = ("received, silently", "stays", "stays", "stays", "-", "stays", "forgotten", "-")
CONTRACT = {
    State.IN_FLIGHT: (
        *("received", "explained quarantined", "explained unobserved", "-"),
        *("open not_received", "stays", "forgotten", "-"),  # the log start: open expired once the horizon passed it
    ),
    State.RECEIVED: ("duplicate", "counted", "stays", "open vanished", "-", "stays", "forgotten", "-"),
    State.NOT_RECEIVED: (
        *("filled", "explained quarantined", "explained unobserved", "stays"),
        *("-", "open expired", "explained truncated", "explained acknowledged"),
    ),
    State.EXPIRED: LOST,
    State.VANISHED: LOST,
    State.UNREADABLE: LOST,
    State.TOMBSTONE: DONE,
    State.QUARANTINED: DONE,
    State.COMPACTED: DONE,
    State.ACKNOWLEDGED: DONE,
    State.UNOBSERVED: DONE,
    State.ABSENT: ("counted", "counted", "stays", "-", "-", "stays", "forgotten", "-"),
    State.UNREAD: ("received, silently", "explained quarantined", "stays", "-", "-", "-", "forgotten", "explained acknowledged"),
}
LOOK_FINDS = {
    Input.SETTLED_BELOW_START: (State.EXPIRED, Effect.OPENED),
    Input.SETTLED_TOMBSTONE: (State.TOMBSTONE, Effect.NOTHING),
    Input.SETTLED_COMPACTED: (State.COMPACTED, Effect.NOTHING),
    Input.SETTLED_UNREADABLE: (State.UNREADABLE, Effect.OPENED),
}
"""Ahead, in flight: "or explained by what the look found"."""


def meant(state: State, cell: str) -> Move:
    """What a cell of the contract says of the next state, and what is told."""
    stays = {"stays": Effect.NOTHING, "-": Effect.NOTHING, "duplicate": Effect.DUPLICATE, "counted": Effect.COUNTED}
    if cell in stays:
        return state, stays[cell]
    return {
        "received": (State.RECEIVED, Effect.NOTHING),
        "received, silently": (State.RECEIVED, Effect.NOTHING),
        "filled": (State.RECEIVED, Effect.FILLED),
        "open not_received": (State.NOT_RECEIVED, Effect.OPENED),
        "open vanished": (State.VANISHED, Effect.OPENED),
        "open expired": (State.EXPIRED, Effect.EXPIRED),
        "explained quarantined": (State.QUARANTINED, Effect.EXPLAINED),
        "explained unobserved": (State.UNOBSERVED, Effect.EXPLAINED),
        "explained acknowledged": (State.ACKNOWLEDGED, Effect.ACKNOWLEDGED),
        "explained truncated": (State.TRUNCATED, Effect.EXPLAINED),
        "forgotten": (State.FORGOTTEN, Effect.NOTHING),
    }[cell]


def test_the_table_is_the_contracts() -> None:
    wanted = {(state, what): meant(state, cell) for state, cells in CONTRACT.items() for what, cell in zip(COLUMNS, cells, strict=True)}
    for state in CONTRACT:
        for what, found in LOOK_FINDS.items():
            wanted[state, what] = found if state is State.IN_FLIGHT else (state, Effect.NOTHING)
        wanted[state, Input.UNDONE] = (state, Effect.NOTHING)
    wanted[State.ACKNOWLEDGED, Input.UNDONE] = (State.NOT_RECEIVED, Effect.OPENED)  # "open again with its cause"
    assert wanted == TABLE


def test_every_pair_has_a_move_and_no_other_has() -> None:
    assert set(TABLE) == {(state, what) for state in PLACES for what in Input}
    with pytest.raises(KeyError):
        move(State.FORGOTTEN, Input.OBSERVED)
    assert move(State.RECEIVED, Input.OBSERVED) == (State.RECEIVED, Effect.DUPLICATE)


def test_the_docs_show_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith("\n" + as_markdown())


# --- the ledger moves offsets as the table says ---


def looks(what: Input) -> Callable[[Candidates], Look]:
    """A look that finds of X what the input says, and the others still there."""

    def look(due: Candidates) -> Look:
        found = everything_there(due)
        only = ((X, X + 1),) if X in expand(due.runs) else ()
        return Look(
            found.upto,
            log_start=X + 1 if what is Input.SETTLED_BELOW_START else 0,
            holes=only if what is Input.SETTLED_COMPACTED else (),
            unreadable=only if what is Input.SETTLED_UNREADABLE else (),
            tombstones=only if what is Input.SETTLED_TOMBSTONE else (),
        )

    return look


def do(rig: Rig, what: Input) -> None:
    """Let one thing happen to X."""
    match what:
        case Input.OBSERVED:
            rig.observe((X, X + 1), source="a", sequence=rig.ledger.observed_to)
        case Input.QUARANTINED:
            rig.observe((X, X + 1), status=Status.QUARANTINED, reason="tombstone")
        case Input.UNOBSERVED:
            rig.observe((X, X + 1), status=Status.UNOBSERVED)
        case Input.ACKNOWLEDGED | Input.UNDONE:
            rig.observe((X, X + 1), status=Status.ACKNOWLEDGED, reason="known", by="me", undo=what is Input.UNDONE)
        case Input.VANISHED:
            rig.ledger.vanish("s", OffsetSet([(X, X + 1)]), rig.now)
        case Input.LOG_START_PASSED:
            rig.read([], start=X + 1)
        case Input.TRUNCATED:
            rig.ledger.truncate(5, rig.now)
        case _:
            rig.verdict(looks(what))


def ready(kind: str = "record") -> Rig:
    """A log of records with one kind at X; the sink received everything else."""
    rig = Rig({"s": policy(tombstones_optional=True)}, ever_compacted=True)
    rig.read([*["record"] * X, kind, *["record"] * 9])
    rig.observe((0, X), (X + 1, 20))
    return rig


WAYS: dict[State, dict[str, list[Input]]] = {
    State.IN_FLIGHT: {"read": []},
    State.RECEIVED: {"at once": [Input.OBSERVED], "and judged": [Input.OBSERVED, Input.SETTLED], "late": [Input.SETTLED, Input.OBSERVED]},
    State.NOT_RECEIVED: {"judged": [Input.SETTLED]},
    State.EXPIRED: {"by the look": [Input.SETTLED_BELOW_START], "while open": [Input.SETTLED, Input.LOG_START_PASSED]},
    State.VANISHED: {
        "judged": [Input.OBSERVED, Input.SETTLED, Input.VANISHED],
        "not judged": [Input.OBSERVED, Input.VANISHED],
    },
    State.UNREADABLE: {"by the look": [Input.SETTLED_UNREADABLE]},
    State.TOMBSTONE: {"by the look": [Input.SETTLED_TOMBSTONE]},
    State.QUARANTINED: {
        "early": [Input.QUARANTINED],
        "while open": [Input.SETTLED, Input.QUARANTINED],
        "expired": [Input.SETTLED_BELOW_START, Input.QUARANTINED],
    },
    State.COMPACTED: {"by the look": [Input.SETTLED_COMPACTED]},
    State.ACKNOWLEDGED: {"not received": [Input.SETTLED, Input.ACKNOWLEDGED]},
    State.UNOBSERVED: {"early": [Input.UNOBSERVED], "while open": [Input.SETTLED, Input.UNOBSERVED]},
    State.ABSENT: {"transaction_marker": [], "aborted": [], "hole": []},
    State.UNREAD: {"unread": []},
}
EVENTS = {
    Effect.OPENED: ["gap.opened"],
    Effect.FILLED: ["gap.filled"],
    Effect.EXPLAINED: ["gap.explained"],
    Effect.ACKNOWLEDGED: ["gap.acknowledged"],
    Effect.EXPIRED: ["gap.expired"],
    Effect.DUPLICATE: ["duplicate.detected"],
}


@pytest.mark.parametrize("what", Input, ids=str)
@pytest.mark.parametrize(("state", "way"), [(state, way) for state, ways in WAYS.items() for way in ways])
def test_each_input_moves_each_state_as_the_table_says(state: State, way: str, what: Input) -> None:
    rig = ready(way if state in (State.ABSENT, State.UNREAD) else "record")
    for step in WAYS[state][way]:
        do(rig, step)
    rig.flush()
    assert state_of(rig.ledger, "s", X) is state
    counted = rig.sink().absent_observed

    do(rig, what)

    after, effect = TABLE[state, what]
    events = [event for event in rig.flush() if event.sink == "s" and X in event.ranges]
    assert state_of(rig.ledger, "s", X) is (State.FORGOTTEN if after is State.TRUNCATED else after)
    assert [str(event.type) for event in events] == EVENTS.get(effect, [])
    assert rig.sink().duplicates == (effect is Effect.DUPLICATE)
    assert rig.sink().absent_observed - counted == (effect is Effect.COUNTED and state is State.ABSENT)
    if after is State.TRUNCATED:
        assert (events[0].reason or "").startswith("truncated")


def test_every_state_is_reached_in_the_test_above() -> None:
    assert set(WAYS) == set(PLACES)


@pytest.mark.parametrize("state", [State.EXPIRED, State.VANISHED, State.UNREADABLE, State.NOT_RECEIVED, State.UNREAD])
def test_an_undone_acknowledgement_gives_back_what_it_took(state: State) -> None:
    for way, steps in WAYS[state].items():
        rig = ready("unread" if state is State.UNREAD else "record")
        for step in [*steps, Input.ACKNOWLEDGED]:
            do(rig, step)
        rig.flush()
        assert state_of(rig.ledger, "s", X) is State.ACKNOWLEDGED, way

        do(rig, Input.UNDONE)

        assert state_of(rig.ledger, "s", X) is state, way
        assert rig.types() == ([] if state is State.UNREAD else ["gap.opened"]), way


def test_an_acknowledgement_undone_after_retention_came_is_open_as_expired() -> None:
    rig = ready()
    for step in (Input.SETTLED, Input.ACKNOWLEDGED, Input.LOG_START_PASSED):
        do(rig, step)
    rig.flush()

    do(rig, Input.UNDONE)

    assert state_of(rig.ledger, "s", X) is State.EXPIRED
    assert rig.types() == ["gap.opened", "gap.expired"]


def test_what_was_acknowledged_and_came_after_all_is_not_opened_by_an_undo() -> None:
    rig = ready()
    for step in (Input.SETTLED, Input.ACKNOWLEDGED, Input.OBSERVED, Input.UNDONE):
        do(rig, step)
    assert state_of(rig.ledger, "s", X) is State.RECEIVED
    assert rig.types() == ["gap.opened", "gap.acknowledged"]
