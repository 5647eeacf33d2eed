"""From alert events to faults, by somebody who does not know what was planned."""

from __future__ import annotations

from typing import Any

from stream_app.alerts import AlertEvent
from stream_app.demo.faults import Fault, Kind
from stream_app.demo.sightings import Sightings


class Alerts:
    """Events of one worker, numbered as the ledger numbers them."""

    def __init__(self) -> None:
        self._sequences: dict[int, int] = {}

    def event(self, kind: str, *ranges: tuple[int, int], partition: int = 0, **more: Any) -> AlertEvent:
        sequence = self._sequences[partition] = self._sequences.get(partition, 0) + 1
        return AlertEvent(
            source="gapstream://c/demo/1",
            id=f"orders/{partition}/billing/{sequence}",
            sequence=sequence,
            type=kind,
            severity="info",
            topic="orders",
            partition=partition,
            sink="billing",
            ranges=list(ranges) or None,
            **more,
        )


def test_each_kind_is_known_by_its_events() -> None:
    alerts, sightings = Alerts(), Sightings()
    assert sightings.note(alerts.event("gap.opened", (5, 9), (20, 20), cause="not_received")) == [
        Fault(Kind.LOST, "orders", 0, 5, 10),
        Fault(Kind.LOST, "orders", 0, 20, 21),
    ]
    assert sightings.note(alerts.event("gap.filled", (20, 20), cause="not_received")) == [Fault(Kind.LATE, "orders", 0, 20, 21)]
    sightings.note(alerts.event("duplicate.detected", (30, 31), partition=2))
    sightings.note(alerts.event("gap.explained", (40, 40), reason="quarantined"))
    assert sightings.note(alerts.event("sink.stalled")) == []
    assert sightings.faults() == [
        Fault(Kind.LOST, "orders", 0, 5, 10),
        Fault(Kind.LATE, "orders", 0, 20, 21),
        Fault(Kind.QUARANTINED, "orders", 0, 40, 41),
        Fault(Kind.DUPLICATE, "orders", 2, 30, 32),
    ]
    assert sightings.trouble is None


def test_what_a_table_had_has_vanished_until_it_is_restored() -> None:
    alerts, sightings = Alerts(), Sightings()
    vanished = Fault(Kind.VANISHED, "orders", 0, 5, 10)
    assert sightings.note(alerts.event("gap.opened", (5, 9), cause="vanished")) == [vanished]
    sightings.note(alerts.event("gap.opened", (10, 11), cause="not_received"))
    assert sightings.faults() == [vanished, Fault(Kind.LOST, "orders", 0, 10, 12)]
    sightings.note(alerts.event("gap.filled", (5, 8), cause="vanished"))
    assert Fault(Kind.VANISHED, "orders", 0, 9, 10) in sightings.faults()


def test_one_fault_told_in_several_events_is_one_fault() -> None:
    alerts, sightings = Alerts(), Sightings()
    for offset in (7, 5, 6):
        sightings.note(alerts.event("gap.explained", (offset, offset), reason="quarantined"))
    sightings.note(alerts.event("gap.opened", (10, 11), cause="not_received"))
    sightings.note(alerts.event("gap.opened", (12, 13), cause="not_received"))
    assert sightings.faults() == [Fault(Kind.QUARANTINED, "orders", 0, 5, 8), Fault(Kind.LOST, "orders", 0, 10, 14)]


def test_a_gap_that_was_explained_or_truncated_is_no_longer_lost() -> None:
    alerts, sightings = Alerts(), Sightings()
    sightings.note(alerts.event("gap.opened", (5, 9), cause="not_received"))
    sightings.note(alerts.event("gap.explained", (5, 6), cause="not_received", reason="quarantined"))
    sightings.note(alerts.event("gap.explained", (7, 9), cause="not_received", reason="truncated: the log was truncated"))
    assert sightings.faults() == [Fault(Kind.QUARANTINED, "orders", 0, 5, 7)]


def test_a_gap_that_expired_stays_lost() -> None:
    alerts, sightings = Alerts(), Sightings()
    sightings.note(alerts.event("gap.opened", (5, 9), cause="not_received"))
    sightings.note(alerts.event("gap.expired", (5, 9), cause="expired"))
    assert sightings.faults() == [Fault(Kind.LOST, "orders", 0, 5, 10)]


def test_a_repeated_event_changes_nothing_and_a_hole_is_said() -> None:
    alerts, sightings = Alerts(), Sightings()
    first, _, third = (alerts.event("duplicate.detected", (n, n)) for n in (1, 5, 9))
    assert sightings.note(first)
    assert sightings.note(first) == []
    assert sightings.trouble is None
    sightings.note(third)
    assert sightings.trouble is not None
    assert "not whole" in sightings.trouble
