"""The states of an offset for one sink, and what moves it, as data.

:data:`TABLE` is the whole table: a pair that is not in it is a defect and raises. The sets in :mod:`stream_app.core.sink`
are its fast form; a test puts one offset into each state, applies each input to the sets, and compares with this table.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an offset stands for one sink."""

    IN_FLIGHT = "in flight"
    """Ahead of the horizon, or below it with ``grace`` or the second look still to come."""
    RECEIVED = "received"
    NOT_RECEIVED = "open not_received"
    EXPIRED = "open expired"
    VANISHED = "open vanished"
    UNREADABLE = "open unreadable"
    TOMBSTONE = "explained tombstone"
    QUARANTINED = "explained quarantined"
    COMPACTED = "explained compacted"
    ACKNOWLEDGED = "explained acknowledged"
    UNOBSERVED = "explained unobserved"
    ABSENT = "absent"
    UNREAD = "unread"
    FORGOTTEN = "forgotten"
    """Not a place to be: what truncation leaves."""
    TRUNCATED = "explained truncated"
    """Told, then forgotten."""


class Input(StrEnum):
    """What can happen to an offset."""

    OBSERVED = "observed"
    QUARANTINED = "observed as quarantined"
    UNOBSERVED = "as unobserved"
    VANISHED = "two agreeing snapshots lack it"
    SETTLED = "horizon + grace + second look: still there"
    SETTLED_BELOW_START = "horizon + grace + second look: below the log start"
    SETTLED_TOMBSTONE = "horizon + grace + second look: a tolerated tombstone"
    SETTLED_COMPACTED = "horizon + grace + second look: compacted"
    SETTLED_UNREADABLE = "horizon + grace + second look: unreadable"
    LOG_START_PASSED = "log start passes it"
    TRUNCATED = "log truncated below it"
    ACKNOWLEDGED = "ack"
    UNDONE = "ack undone"


class Effect(StrEnum):
    """What is said when an offset moves, beside the new state."""

    NOTHING = "nothing"
    DUPLICATE = "duplicate"
    COUNTED = "counted"
    OPENED = "gap.opened"
    FILLED = "gap.filled"
    EXPLAINED = "gap.explained"
    ACKNOWLEDGED = "gap.acknowledged"
    EXPIRED = "gap.expired"


S, N, E = State, Input, Effect
Move = tuple[State, Effect]


def _table() -> dict[tuple[State, Input], Move]:
    table: dict[tuple[State, Input], Move] = {
        (S.IN_FLIGHT, N.OBSERVED): (S.RECEIVED, E.NOTHING),
        (S.IN_FLIGHT, N.QUARANTINED): (S.QUARANTINED, E.EXPLAINED),
        (S.IN_FLIGHT, N.UNOBSERVED): (S.UNOBSERVED, E.EXPLAINED),
        (S.IN_FLIGHT, N.SETTLED): (S.NOT_RECEIVED, E.OPENED),
        (S.IN_FLIGHT, N.SETTLED_BELOW_START): (S.EXPIRED, E.OPENED),
        (S.IN_FLIGHT, N.SETTLED_TOMBSTONE): (S.TOMBSTONE, E.NOTHING),
        (S.IN_FLIGHT, N.SETTLED_COMPACTED): (S.COMPACTED, E.NOTHING),
        (S.IN_FLIGHT, N.SETTLED_UNREADABLE): (S.UNREADABLE, E.OPENED),
        (S.IN_FLIGHT, N.TRUNCATED): (S.FORGOTTEN, E.NOTHING),
        (S.RECEIVED, N.OBSERVED): (S.RECEIVED, E.DUPLICATE),
        (S.RECEIVED, N.QUARANTINED): (S.RECEIVED, E.COUNTED),
        (S.RECEIVED, N.VANISHED): (S.VANISHED, E.OPENED),
        (S.RECEIVED, N.TRUNCATED): (S.FORGOTTEN, E.NOTHING),
        (S.NOT_RECEIVED, N.OBSERVED): (S.RECEIVED, E.FILLED),
        (S.NOT_RECEIVED, N.QUARANTINED): (S.QUARANTINED, E.EXPLAINED),
        (S.NOT_RECEIVED, N.UNOBSERVED): (S.UNOBSERVED, E.EXPLAINED),
        (S.NOT_RECEIVED, N.LOG_START_PASSED): (S.EXPIRED, E.EXPIRED),
        (S.NOT_RECEIVED, N.TRUNCATED): (S.TRUNCATED, E.EXPLAINED),
        (S.NOT_RECEIVED, N.ACKNOWLEDGED): (S.ACKNOWLEDGED, E.ACKNOWLEDGED),
        (S.ACKNOWLEDGED, N.UNDONE): (S.NOT_RECEIVED, E.OPENED),
        (S.ABSENT, N.OBSERVED): (S.ABSENT, E.COUNTED),
        (S.ABSENT, N.QUARANTINED): (S.ABSENT, E.COUNTED),
        (S.ABSENT, N.TRUNCATED): (S.FORGOTTEN, E.NOTHING),
        (S.UNREAD, N.OBSERVED): (S.RECEIVED, E.NOTHING),
        (S.UNREAD, N.QUARANTINED): (S.QUARANTINED, E.EXPLAINED),
        (S.UNREAD, N.TRUNCATED): (S.FORGOTTEN, E.NOTHING),
        (S.UNREAD, N.ACKNOWLEDGED): (S.ACKNOWLEDGED, E.ACKNOWLEDGED),
    }
    for lost in (S.EXPIRED, S.VANISHED, S.UNREADABLE):
        table[lost, N.OBSERVED] = (S.RECEIVED, E.FILLED)
        table[lost, N.QUARANTINED] = (S.QUARANTINED, E.EXPLAINED)
        table[lost, N.TRUNCATED] = (S.TRUNCATED, E.EXPLAINED)
        table[lost, N.ACKNOWLEDGED] = (S.ACKNOWLEDGED, E.ACKNOWLEDGED)
    for explained in (S.TOMBSTONE, S.QUARANTINED, S.COMPACTED, S.ACKNOWLEDGED, S.UNOBSERVED):
        table[explained, N.OBSERVED] = (S.RECEIVED, E.NOTHING)
        table[explained, N.TRUNCATED] = (S.FORGOTTEN, E.NOTHING)
    for state in PLACES:
        for what in Input:
            table.setdefault((state, what), (state, E.NOTHING))
    return table


PLACES: tuple[State, ...] = tuple(s for s in State if s not in (S.FORGOTTEN, S.TRUNCATED))
"""The states that an offset can be found in."""
TABLE: dict[tuple[State, Input], Move] = _table()


def move(state: State, what: Input) -> Move:
    """Next state and what is said. Raises KeyError for a pair that is not in the table (a defect)."""
    return TABLE[state, what]


def as_markdown() -> str:
    """Draw the table for the docs; a test compares the page with it."""
    head = "| state | " + " | ".join(Input) + " |\n|" + "---|" * (len(Input) + 1)
    rows = []
    for state in PLACES:
        cells = []
        for what in Input:
            after, said = TABLE[state, what]
            cell = "stays" if after is state else str(after)
            cells.append(cell if said is E.NOTHING else f"{cell} ({said})")
        rows.append(f"| {state} | " + " | ".join(cells) + " |")
    return "\n".join([head, *rows]) + "\n"
