"""What the tests of the ledger share: ways to feed it, to look into it, and to draw inputs for it."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from pyroaring import BitMap

from stream_app.core.events import Event, as_json
from stream_app.core.gaps import Gaps
from stream_app.core.ledger import Candidates, Ledger
from stream_app.core.model import Absent, Cause, LogEnds, LogRead, Look, Observation, ObservationRead, Reason, Run, Status
from stream_app.core.offsets import OffsetSet
from stream_app.core.policy import Policy
from stream_app.core.sink import SinkState
from stream_app.core.states import State
from tests.core.naive import runs_of

TOPIC_ID = bytes(range(16))
OTHER_ID = bytes(range(1, 17))
GRACE = 2_000
SKEW = 37_777
"""The broker's clock is ahead of the worker's by so much."""
BASE = 1_700_000_000_000

OPEN_STATES = {
    Cause.NOT_RECEIVED: State.NOT_RECEIVED,
    Cause.EXPIRED: State.EXPIRED,
    Cause.VANISHED: State.VANISHED,
    Cause.UNREADABLE: State.UNREADABLE,
}
EXPLAINED_STATES = {
    Reason.TOMBSTONE: State.TOMBSTONE,
    Reason.QUARANTINED: State.QUARANTINED,
    Reason.COMPACTED: State.COMPACTED,
    Reason.ACKNOWLEDGED: State.ACKNOWLEDGED,
    Reason.UNOBSERVED: State.UNOBSERVED,
}


def expand(offsets: OffsetSet | Iterable[Run]) -> set[int]:
    """The offsets, one by one."""
    runs = offsets.runs() if isinstance(offsets, OffsetSet) else offsets
    return {offset for first, stop in runs for offset in range(first, stop)}


# --- looking into a ledger ---


def states_of(ledger: Ledger, sink: SinkState) -> dict[int, State]:
    """The state of every offset from the floor to what was read or said; an offset in two states fails."""
    log, found = ledger.log, dict[int, State]()
    first = max(log.origin, log.forgotten if sink.floor is None else sink.floor)

    def put(state: State, offsets: Iterable[int]) -> None:
        for offset in offsets:
            if offset < first and sink.floor is None:
                continue
            assert offset not in found, f"{offset} is {found[offset]} and {state}"
            assert offset >= first, f"{offset} is {state} below the floor {first}"
            found[offset] = state

    for cause, state in OPEN_STATES.items():
        put(state, expand(sink.open[cause]))
    for reason, state in EXPLAINED_STATES.items():
        put(state, expand(sink.explained[reason]))
    put(State.UNREAD, expand(sink.unread))
    absent = expand(OffsetSet(run for offsets in (*log.absent.values(), log.holes) for run in offsets.runs()))
    put(State.ABSENT, (offset for offset in absent if offset >= first))
    put(State.RECEIVED, expand(sink.received))
    assert all(offset >= (sink.settled or 0) for offset in expand(sink.received))
    assert expand(sink.explained[Reason.ACKNOWLEDGED]) >= set().union(*map(expand, sink.acknowledged.values()))
    for offset in range(first, log.read):
        if offset not in found:
            found[offset] = State.RECEIVED if offset < (sink.settled or 0) else State.IN_FLIGHT
    return found


def state_of(ledger: Ledger, name: str, offset: int) -> State:
    """The state of one offset; forgotten where the log or the sink does not reach it."""
    return states_of(ledger, ledger.sinks[name]).get(offset, State.FORGOTTEN)


VOLATILE = {
    "events", "epoch", "heard_ms", "moved_ms", "told_duplicates_ms", "lateness_ms", "retention_ms", "unknown_after_ms", "forget_after_ms",
    "failing", "passed", "untidy", "touched", "gone", "covered", "ahead_ms", "ends_seen", "stable_ms",
}  # fmt: skip
"""Fields of this owner: not kept, or set anew by whoever takes over."""


def plain(thing: Any) -> Any:
    """Everything that is to outlive an owner, field by field, as plain values that can be compared."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = (each.name for each in dataclasses.fields(thing) if each.name not in VOLATILE)
        return {name: plain(getattr(thing, name)) for name in fields}
    if isinstance(thing, OffsetSet | Gaps):
        return list(thing.runs() if isinstance(thing, OffsetSet) else thing)
    if isinstance(thing, Mapping):
        return {str(key): plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [plain(each) for each in thing]
    return thing


# --- the fold of contract section 5 ---


@dataclass
class Fold:
    """What a subscriber knows: per key the open offsets by cause. Takes events as JSON, as they stand on the alerts topic."""

    last: dict[str, int] = field(default_factory=dict)
    open: dict[str, dict[str, set[int]]] = field(default_factory=dict)

    def take(self, value: bytes) -> None:
        """One event."""
        event = json.loads(value)
        key = event["id"].rsplit("/", 1)[0]
        assert event["sequence"] == self.last.get(key, 0) + 1, f"{event['id']} follows {self.last.get(key, 0)}"
        self.last[key] = event["sequence"]
        held, offsets = self.open.setdefault(key, {}), offsets_in(event)
        if event["type"] in ("gap.filled", "gap.explained", "gap.acknowledged", "gap.expired"):
            for cause in held:
                held[cause] -= offsets
        if event["type"] in ("gap.opened", "gap.expired"):
            held.setdefault(event["cause"], set()).update(offsets)

    def causes(self, key: str) -> dict[str, set[int]]:
        """Open offsets by cause, only causes that have some."""
        return {cause: offsets for cause, offsets in self.open.get(key, {}).items() if offsets}


def offsets_in(event: dict[str, Any]) -> set[int]:
    """The offsets of an event's JSON, from its ranges or its bitmap."""
    if event["bitmap"] is not None:
        base, values = event["bitmap"]["base"], BitMap.deserialize(base64.b64decode(event["bitmap"]["roaring"]))
        return {base + value for value in values}
    return {offset for first, last in event["ranges"] or () for offset in range(first, last + 1)}


# --- feeding a ledger ---


def policy(name: str = "s", **rules: Any) -> Policy:
    """A sink with a floor of 0 and the tests' grace."""
    return Policy(name, **{"grace_ms": GRACE, "floor": 0, "stall_after_ms": None, **rules})


def log_read(
    position: int, kinds: Sequence[str], *, now_ms: int = BASE, start: int = 0, ahead: int = 0, stop: int | None = None, **facts: Any
) -> LogRead:
    """An answer of the reader with one kind per offset: ``record``, a cause of absent offsets, ``hole``, ``unreadable``, ``unread``.

    Where there are too many for that: ``stop`` and the fields of the answer.
    """
    by_kind: dict[str, list[int]] = {}
    for offset, kind in enumerate(kinds, position):
        by_kind.setdefault(kind, []).append(offset)
    stop = position + len(kinds) if stop is None else stop
    timed = "record" in by_kind or "unreadable" in by_kind
    known: dict[str, Any] = {
        "topic_id": TOPIC_ID,
        "records": runs_of(by_kind.get("record", ())),
        "absent": {cause: runs_of(by_kind[cause]) for cause in Absent if cause in by_kind},
        "holes": runs_of(by_kind.get("hole", ())),
        "unreadable": runs_of(by_kind.get("unreadable", ())),
        "unread": runs_of(by_kind.get("unread", ())),
        "log_start": start,
        "high_watermark": stop + ahead,
        "last_stable": stop + ahead,
        "min_timestamp_ms": now_ms if timed else None,
        "max_timestamp_ms": now_ms if timed else None,
    }
    return LogRead(position, stop, **{**known, **facts})


def everything_there(due: Candidates) -> Look:
    """A look that finds every candidate still in the log."""
    return Look(due.stop, 0, timestamps={offset: BASE for first, stop in due.runs for offset in (first, stop - 1)})


@dataclass
class Rig:
    """One partition, its clocks, and the alert stream that its flushes make."""

    policies: dict[str, Policy] = field(default_factory=lambda: {"s": policy()})
    origin: int = 0
    ever_compacted: bool | None = False
    now: int = BASE
    ledger: Ledger = field(init=False)
    fold: Fold = field(default_factory=Fold)
    told: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger.create("t", 0, "birth", topic_id=TOPIC_ID, log_start=self.origin, log_end=self.origin, policies=self.policies)
        self.ledger.log.ever_compacted = self.ever_compacted

    def sink(self, name: str = "s") -> SinkState:
        return self.ledger.sinks[name]

    def read(self, kinds: str | Sequence[str], count: int = 1, **facts: Any) -> bool:
        """Read on: one kind ``count`` times, or a kind per offset."""
        each = [kinds] * count if isinstance(kinds, str) else kinds
        facts.setdefault("topic_id", self.ledger.log.topic_id)
        return self.ledger.fold_log(log_read(self.ledger.log.read, each, now_ms=self.now, **facts), self.now)

    def observe(self, *runs: Run, sink: str = "s", status: Status = Status.RECEIVED, **said: Any) -> None:
        """One observation, now."""
        offset = self.ledger.observed_to
        read = ObservationRead(offset, offset, self.now + SKEW, b"")
        assert self.ledger.observe(read, Observation(sink, runs, status, **said), self.now)

    def recreate(self, topic_id: bytes, start: int = 0, end: int = 0, **facts: Any) -> None:
        """The topic is another one."""
        known: dict[str, Any] = {"observations_end": 0, "compacted": self.ever_compacted, "partitions": 1, **facts}
        self.ledger.recreate(topic_id, LogEnds(start, end, end), self.now, **known)

    def wait(self, ms: int = GRACE, heard: bool = True) -> None:
        """Time passes; with ``heard`` the observations are read to their end after it."""
        self.now += ms
        if heard:
            self.ledger.heard_to_end(self.now)

    def judge(self, look: Callable[[Candidates], Look] = everything_there) -> list[Candidates]:
        """Look at all that is due, and settle it; what was looked at."""
        asked = []
        while due := self.ledger.candidates():
            for step in due:
                asked.append(step)
                self.ledger.settle(step, look(step), self.now)
        return asked

    def verdict(self, look: Callable[[Candidates], Look] = everything_there) -> list[Candidates]:
        """Grace passes, then all that is due is judged."""
        self.wait()
        return self.judge(look)

    def flush(self) -> list[Event]:
        """What is told now; the fold takes it, and equals what is open."""
        self.ledger.evaluate(self.now)
        events = self.ledger.take_events()
        for event in events:
            self.fold.take(as_json(event, "gapstream://test"))
        self.told += events
        for name, sink in self.ledger.sinks.items():
            if sink.policy.configured:
                held = {str(cause): expand(offsets) for cause, offsets in sink.open.items() if offsets}
                assert self.fold.causes(f"t/0/{name}") == held
        return events

    def types(self) -> list[str]:
        """Types of what a flush tells."""
        return [str(event.type) for event in self.flush()]


# --- drawing inputs ---

KINDS = ("record", "record", "record", "transaction_marker", "aborted", "hole")


def kinds(max_size: int = 40, *, of: Sequence[str] = KINDS, min_size: int = 0) -> st.SearchStrategy[list[str]]:
    """Kinds of consecutive offsets, in stretches, as logs have them."""
    stretch = st.tuples(st.sampled_from(of), st.integers(1, 8))
    flat = st.lists(stretch, max_size=max_size // 3, min_size=min(min_size, 1))
    return flat.map(lambda stretches: [kind for kind, count in stretches for _ in range(count)][:max_size])


def runs_within(first: int, stop: int, most: int = 4) -> st.SearchStrategy[tuple[Run, ...]]:
    """Ascending, disjoint, non-touching runs within ``[first, stop)``; at least one offset."""
    points = st.lists(st.integers(first, stop - 1), min_size=1, max_size=most)
    sizes = st.lists(st.integers(1, 12), min_size=most, max_size=most)

    def runs(drawn: tuple[list[int], list[int]]) -> tuple[Run, ...]:
        return runs_of({o for at, size in zip(*drawn, strict=False) for o in range(at, min(at + size, stop))})

    return st.tuples(points, sizes).map(runs)


def cut(length: int, edges: Collection[int]) -> Iterator[Run]:
    """``[0, length)`` in pieces that end at the edges."""
    before = 0
    for edge in sorted({*(edge for edge in edges if 0 < edge < length), length}):
        yield before, edge
        before = edge
