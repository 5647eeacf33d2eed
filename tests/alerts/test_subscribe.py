from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from stream_app.alerts import EventError, Fold, Hole, subscribe
from stream_app.core import events
from stream_app.core.offsets import OffsetSet
from stream_app.errors import Unavailable
from tests.support.kafka_kit import KafkaKit

SOURCE = "gapstream://cluster/app/1"


def make(sequence: int, kind: str = "gap.opened", sink: str = "billing", first: int = 0, stop: int = 10) -> events.Event:
    cause = "not_received" if kind == "gap.opened" else None
    return events.Event(
        events.EventType(kind), "orders", 0, sink, sequence, detected_at_ms=0, cause=cause, ranges=OffsetSet([(first, stop)])
    )


class Alerts:
    """The alerts topic of one application."""

    def __init__(self, kit: KafkaKit) -> None:
        self.app_id = f"app-{uuid.uuid4().hex[:8]}"
        self.topic = kit.make_topic(2, name=f"{self.app_id}.alerts")
        self.conf = {"bootstrap.servers": kit.bootstrap}
        self._kit = kit

    def write(self, *told: events.Event, partition: int = 0, timestamp_ms: int | None = None) -> None:
        self.write_raw(*(events.as_json(event, SOURCE) for event in told), partition=partition, timestamp_ms=timestamp_ms)

    def write_raw(self, *values: bytes | None, partition: int = 0, timestamp_ms: int | None = None) -> None:
        self._kit.produce(self.topic, partition, len(values), value=lambda number: values[number], timestamp_ms=timestamp_ms)

    def transact(self, *told: events.Event, commit: bool) -> None:
        self._kit.transact(self.topic, 0, len(told), value=lambda number: events.as_json(told[number], SOURCE), commit=commit)

    def read(self, **options: Any) -> list[tuple[str, int]]:
        return [(event.sink, event.sequence) for event in subscribe(self.conf, self.app_id, follow=False, **options)]


@pytest.fixture
def alerts(kit: KafkaKit) -> Alerts:
    return Alerts(kit)


def test_committed_events_up_to_the_end(alerts: Alerts) -> None:
    alerts.transact(make(1), make(2, "gap.filled", stop=4), commit=True)
    alerts.transact(make(3, "gap.filled"), commit=False)
    alerts.write(make(1, sink="warehouse"), partition=1)
    fold = Fold()
    assert sorted(alerts.read(fold=fold)) == [("billing", 1), ("billing", 2), ("warehouse", 1)]
    assert fold.open_gaps() == {
        ("orders", 0, "billing"): {"not_received": [(4, 9)]},
        ("orders", 0, "warehouse"): {"not_received": [(0, 9)]},
    }


def test_repeats_are_dropped_and_holes_noticed(alerts: Alerts) -> None:
    alerts.write(make(1), make(1), make(4))
    alerts.write(make(1), make(4), make(5))
    fold = Fold()
    assert alerts.read(fold=fold) == [("billing", 1), ("billing", 4), ("billing", 5)]
    assert fold.holes == [Hole(SOURCE, ("orders", 0, "billing"), 2, 3)]


def test_the_fold_is_as_of_the_event_in_hand(alerts: Alerts) -> None:
    alerts.write(make(1), make(2, "gap.filled"))
    fold = Fold()
    seen = [(event.sequence, bool(fold.open_gaps())) for event in subscribe(alerts.conf, alerts.app_id, follow=False, fold=fold)]
    assert seen == [(1, True), (2, False)]


def test_from_a_time(alerts: Alerts) -> None:
    alerts.write(make(1), timestamp_ms=1_000_000)
    alerts.write(make(2), make(3), timestamp_ms=2_000_000)
    assert alerts.read(from_time_ms=1_000_001) == [("billing", 2), ("billing", 3)]
    assert alerts.read(from_time_ms=-5) == [("billing", 1), ("billing", 2), ("billing", 3)]
    assert alerts.read(from_time_ms=round(time.time() * 1_000) + 60_000) == []


def test_following_goes_on_after_the_end(alerts: Alerts) -> None:
    alerts.write(make(1))
    reading = subscribe(alerts.conf, alerts.app_id)
    assert next(reading).sequence == 1
    alerts.write(make(2))
    assert next(reading).sequence == 2
    reading.close()  # type: ignore[attr-defined]  # a generator is an iterator that can be closed


def test_following_from_now_hears_what_comes_later(alerts: Alerts) -> None:
    alerts.write(make(1), timestamp_ms=1_000_000)
    reading = subscribe(alerts.conf, alerts.app_id, from_time_ms=2_000_000)
    alerts.write(make(2), timestamp_ms=3_000_000)
    assert next(reading).sequence == 2
    reading.close()  # type: ignore[attr-defined]  # as above


def test_what_is_no_event_is_an_error_that_says_where_or_is_told(alerts: Alerts) -> None:
    alerts.write_raw(b"nonsense", None)
    alerts.write(make(1))
    with pytest.raises(EventError, match=rf"{alerts.topic} partition 0 offset 0: it is no alert event"):
        alerts.read()
    told: list[str] = []
    assert alerts.read(on_malformed=told.append) == [("billing", 1)]
    assert [text.partition(": ")[0].rpartition(" ")[2] for text in told] == ["0", "1"]


def test_an_empty_topic(alerts: Alerts) -> None:
    assert alerts.read() == []
    alerts.transact(make(1), commit=False)
    assert alerts.read() == []


def test_no_topic(alerts: Alerts) -> None:
    with pytest.raises(Unavailable, match=r"topic nobody\.alerts does not exist: see app\.id"):
        next(subscribe(alerts.conf, "nobody"))


def test_no_brokers() -> None:
    told: list[str] = []
    with pytest.raises(Unavailable, match=r"Kafka can.t be reached .* see bootstrap\.servers"):
        next(subscribe({"bootstrap.servers": "127.0.0.1:1"}, "app", on_trouble=told.append, timeout_s=0.5))


def test_a_property_that_is_none() -> None:
    with pytest.raises(Unavailable, match="No such configuration property"):
        next(subscribe({"nonsense": "1"}, "app"))
