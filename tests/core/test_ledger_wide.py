"""A log with a hole of a billion offsets: what it costs is what is said of it, not its width."""
# ruff: noqa: N802  # a test carries the id of the scenario that it plays

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from stream_app.core import report
from stream_app.core.events import SPAN_MAX, EventType
from stream_app.core.state import StateCodec
from tests.core.strategies import Rig, log_read, policy

WIDTH = 10**9
BYTES_MAX = 4 << 20
"""Of all that is made on the way; a billion offsets would be hundreds of times as much, one by one or as a plain bitmap."""


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    """Nothing of the test takes more than a little memory; what is slow meets the test's timeout."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES_MAX


def across(rig: Rig, kind: str) -> None:
    """Ten records, then a billion offsets of a kind, then ten records; the sink received them but for the last but one."""
    rig.read("record", 10)
    facts: dict[str, Any] = {
        kind: ((10, WIDTH + 10),),
        "records": ((WIDTH + 10, WIDTH + 20),),
        "log_start": WIDTH + 10 if kind == "unread" else 0,
    }
    assert rig.ledger.fold_log(log_read(10, (), now_ms=rig.now, stop=WIDTH + 20, **facts), rig.now)
    rig.observe((0, 10), (WIDTH + 10, WIDTH + 18), (WIDTH + 19, WIDTH + 20))
    asked = rig.verdict()
    assert [one.runs for one in asked] == [((WIDTH + 18, WIDTH + 19),)]


def written(rig: Rig) -> int:
    """Bytes of the state."""
    return sum(len(key) + len(value or b"") for key, value in StateCodec(0).changes(rig.ledger))


def test_T43_a_compacted_hole_of_a_billion_offsets() -> None:
    rig = Rig({"s": policy(floor=0)}, ever_compacted=True)
    across(rig, "holes")
    assert [(event.type, list(event.ranges.runs())) for event in rig.flush()] == [(EventType.GAP_OPENED, [(WIDTH + 18, WIDTH + 19)])]
    said = {row.sink: row for row in report.rows(rig.ledger, rig.now)}
    assert (said["s"].records, said["s"].observed, said["s"].missing, said["s"].absent) == (20, 19, 1, {"compacted": WIDTH})
    assert written(rig) < 5_000


@pytest.mark.parametrize(("kind", "told"), [("holes", EventType.GAP_OPENED), ("unread", EventType.LOG_UNREAD)])
def test_T43_a_billion_offsets_that_are_told(kind: str, told: EventType) -> None:
    """An event spans two million at most, so that there are some hundred; each says one range."""
    rig = Rig({"s": policy(floor=0)}, ever_compacted=False)
    across(rig, kind)
    events = [event for event in rig.ledger.take_events() if event.sink == "log"]
    assert {event.type for event in events} == {told}
    assert len(events) == -(-WIDTH // SPAN_MAX)
    assert sum(event.ranges.count for event in events) == WIDTH
    assert {len(list(event.ranges.runs())) for event in events} == {1}
    assert written(rig) < 20_000
