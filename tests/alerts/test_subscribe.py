"""Against librdkafka's mock cluster, which takes transactions and reads them back under read_committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from stream_app.alerts import EventError, Fold, Hole, subscribe
from stream_app.alerts import subscribe as subscribe_function
from stream_app.core import events
from stream_app.core.offsets import OffsetSet
from stream_app.errors import Unavailable

SOURCE = "gapstream://cluster/app/1"


def make(sequence: int, kind: str = "gap.opened", sink: str = "billing", first: int = 0, stop: int = 10) -> events.Event:
    cause = "not_received" if kind == "gap.opened" else None
    return events.Event(
        events.EventType(kind), "orders", 0, sink, sequence, detected_at_ms=0, cause=cause, ranges=OffsetSet([(first, stop)])
    )


class Alerts:
    """Writes to the alerts topic of one application, as workers do."""

    def __init__(self, cluster: Producer, app_id: str) -> None:
        self.app_id = app_id
        self.topic = f"{app_id}.alerts"
        brokers = cluster.list_topics(timeout=10).brokers
        self.conf = {"bootstrap.servers": ",".join(f"{one.host}:{one.port}" for one in brokers.values())}
        self.producer = Producer(self.conf | {"transactional.id": app_id})
        self.producer.init_transactions(10)

    def write(self, *told: events.Event, partition: int = 0, commit: bool = True, **options: Any) -> None:
        self.write_raw(*(events.as_json(event, SOURCE) for event in told), partition=partition, commit=commit, **options)

    def write_raw(self, *values: bytes | None, partition: int = 0, commit: bool = True, **options: Any) -> None:
        self.producer.begin_transaction()
        for value in values:
            self.producer.produce(self.topic, value, partition=partition, **options)
        if commit:
            self.producer.commit_transaction(10)
        else:
            self.producer.flush(10)
            self.producer.abort_transaction(10)

    def read(self, **options: Any) -> list[tuple[str, int]]:
        return [(event.sink, event.sequence) for event in subscribe(self.conf, self.app_id, follow=False, **options)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Producer]:
    """Lives as long as this producer does."""
    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    yield producer
    producer.flush(1)


@pytest.fixture
def alerts(cluster: Producer, request: pytest.FixtureRequest) -> Alerts:
    return Alerts(cluster, f"app-{abs(hash(request.node.name))}")


def test_the_package_hands_out_the_function() -> None:
    assert callable(subscribe_function)


def test_committed_events_up_to_the_end(alerts: Alerts) -> None:
    alerts.write(make(1), make(2, "gap.filled", stop=4))
    alerts.write(make(3, "gap.filled"), commit=False)
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
    alerts.write(make(1), timestamp=1_000_000)
    alerts.write(make(2), make(3), timestamp=2_000_000)
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
    alerts.write(make(1), timestamp=1_000_000)
    reading = subscribe(alerts.conf, alerts.app_id, from_time_ms=2_000_000)
    alerts.write(make(2), timestamp=3_000_000)
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
    alerts.write(make(1), commit=False)
    assert alerts.read() == []


def test_no_topic(alerts: Alerts) -> None:
    with pytest.raises(Unavailable, match=r"topic nobody\.alerts does not exist: see app\.id"):
        next(subscribe(alerts.conf, "nobody"))


def test_no_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_app.alerts.subscribe.ASK_SECONDS", 0.5, raising=False)
    with pytest.raises(Unavailable, match="Kafka can't be asked"):
        next(subscribe({"bootstrap.servers": "127.0.0.1:1"}, "app"))


def test_a_property_that_is_none() -> None:
    with pytest.raises(Unavailable, match="No such configuration property"):
        next(subscribe({"nonsense": "1"}, "app"))
