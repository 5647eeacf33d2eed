from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from stream_app.alerts import AlertEvent, EventError, decode
from stream_app.core import events
from stream_app.core.model import MAX_OFFSET
from stream_app.core.offsets import OffsetSet

SOURCE = "gapstream://cluster/gapstream/1"


def written(**changes: Any) -> bytes:
    """As a worker writes it."""
    known: dict[str, Any] = {
        "type": events.EventType.GAP_OPENED, "topic": "orders", "partition": 3, "sink": "warehouse", "sequence": 17, "detected_at_ms": 0,
    }  # fmt: skip
    return events.as_json(events.Event(**known | changes), SOURCE)


def test_every_field_that_a_worker_writes_is_read() -> None:
    value = written(
        cause="not_received", ranges=OffsetSet([(15_012, 15_015), (15_017, 15_020)]), open_count=6, open_gaps=1,
        horizon=15_400, log_start=0, log_end=20_000, first_timestamp_ms=1, last_timestamp_ms=2, expires_at_ms=3, passed_at_ms=4,
        reason="r", by="b",
    )  # fmt: skip
    event = decode(value)
    assert json.loads(event.to_json()) == json.loads(value)
    assert list(json.loads(event.to_json())) == list(json.loads(value)), "and written again in the same order"
    assert event.key == ("orders", 3, "warehouse")
    assert list(event.offsets().runs()) == [(15_012, 15_015), (15_017, 15_020)]


def test_what_does_not_apply_is_none() -> None:
    event = decode(written(type=events.EventType.SINK_STALLED))
    assert (event.ranges, event.bitmap, event.open, event.cause) == (None, None, None, None)
    assert event.offsets().count == 0


def test_many_ranges_travel_as_a_bitmap() -> None:
    offsets = OffsetSet((first, first + 1) for first in range(1_000_000, 1_004_000, 2))
    event = decode(written(ranges=offsets, cause="vanished"))
    assert event.ranges is None
    assert event.offsets() == offsets
    assert json.loads(event.to_json()) == json.loads(written(ranges=offsets, cause="vanished"))


def test_fields_of_a_later_program_are_left_out() -> None:
    value = json.loads(written())
    assert decode(json.dumps(value | {"colour": "red"}).encode()) == decode(written())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"v": 2}, "install a later one"),
        ({"sequence": 0}, "below 1"),
        ({"sequence": "1"}, "no alert event"),
        ({"topic": None}, "no alert event"),
        ({"bitmap": {"base": 0, "roaring": "!"}}, "no alert event"),
    ],
)
def test_what_is_no_event(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(EventError, match=error):
        decode(json.dumps(json.loads(written()) | changes).encode())


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json(value: bytes | None) -> None:
    with pytest.raises(EventError):
        decode(value)


@pytest.mark.parametrize("ranges", [[(5, 4)], [(-1, 4)], [(0, MAX_OFFSET + 1)]])
def test_ranges_that_are_none(ranges: list[tuple[int, int]]) -> None:
    event = msgspec.structs.replace(decode(written()), ranges=ranges)
    with pytest.raises(EventError, match="no range of offsets"):
        event.offsets()


def test_a_damaged_bitmap() -> None:
    value = json.loads(written()) | {"bitmap": {"base": 0, "roaring": "AAAA"}}
    event = msgspec.convert(value, AlertEvent)
    with pytest.raises(EventError, match="bitmap can't be read"):
        event.offsets()
