"""Counters, and log lines that don't flood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from stream_app.core.events import Event, EventType
from stream_app.core.policy import Policy
from stream_app.service import telemetry as telemetry_module
from stream_app.service.metrics import Counters
from stream_app.service.telemetry import Telemetry


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock: one number that a test may change."""
    clock = [1_000.0]
    monkeypatch.setattr("stream_app.service.telemetry.time.monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(Counters())


def test_the_same_trouble_is_said_once_a_minute(telemetry: Telemetry, now: list[float], lines: list[Any]) -> None:
    for _ in range(100):
        telemetry.trouble("waiting for Kafka", reason="refused")
    assert [line["event"] for line in lines] == ["waiting for Kafka"]
    assert lines[0]["reason"] == "refused"
    assert lines[0]["log_level"] == "warning"
    now[0] += 59.9
    telemetry.trouble("waiting for Kafka", reason="another")
    assert len(lines) == 1
    now[0] += 0.2
    telemetry.trouble("waiting for Kafka", reason="another")
    assert len(lines) == 2


def test_other_troubles_and_other_partitions_are_said_too(telemetry: Telemetry, now: list[float], lines: list[Any]) -> None:
    telemetry.trouble("reading a log", topic="orders", partition=0, reason="x")
    telemetry.trouble("reading a log", topic="orders", partition=1, reason="x")
    telemetry.trouble("something else", topic="orders", partition=1, reason="x")
    telemetry.trouble("reading a log", topic="orders", partition=1, reason="y")
    assert len(lines) == 3


def test_each_sink_has_its_own_trouble(telemetry: Telemetry, now: list[float], lines: list[Any]) -> None:
    for sink in ("a", "b", "a"):
        telemetry.trouble("a table can't be asked now", topic="orders", sink=sink, reason="x")
    assert [line["sink"] for line in lines] == ["a", "b"]


def test_brokers_that_are_away_are_one_line_for_all_partitions_of_a_topic(telemetry: Telemetry, now: list[float], lines: list[Any]) -> None:
    for partition in range(100):
        telemetry.unavailable("orders", partition, "no broker answers")
    assert [(line["event"], line["topic"], line["partition"]) for line in lines] == [("waiting for Kafka", "orders", 0)]


def test_what_was_said_is_not_remembered_without_bound(
    telemetry: Telemetry, now: list[float], lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_module, "SAID_MAX", 10)
    for partition in range(25):
        telemetry.trouble("reading a log", topic="orders", partition=partition)
    assert len(lines) == 25
    assert len(telemetry._said) <= 10


def test_rejections_are_counted_each_and_said_once(telemetry: Telemetry, now: list[float], lines: list[Any]) -> None:
    for offset in range(5):
        telemetry.rejected("gap.observations.orders", 0, offset, "malformed", "it is no JSON")
    telemetry.rejected("gap.observations.orders", 0, 9, "beyond_end", "it is above")
    assert telemetry.counters.observations_rejected_total == {"malformed": 5, "beyond_end": 1}
    assert [(line["reason"], line["offset"], line["detail"]) for line in lines] == [
        ("malformed", 0, "it is no JSON"), ("beyond_end", 9, "it is above"),
    ]  # fmt: skip


def test_counts_of_observations(telemetry: Telemetry) -> None:
    telemetry.accepted()
    telemetry.accepted()
    telemetry.lost_observations(7)
    telemetry.lost_observations(2)
    assert telemetry.counters.observations_total == 2
    assert telemetry.counters.observations_rejected_total == {"removed_unread": 9}


def test_sizes_are_summed_by_topic_and_go_with_their_partitions(telemetry: Telemetry) -> None:
    telemetry.flushed("orders", 0, 0.02, 100)
    telemetry.flushed("orders", 1, 0.02, 50)
    telemetry.flushed("orders", 0, 0.02, 120)
    telemetry.flushed("sales", 0, 0.02, 7)
    assert telemetry.counters.state_bytes == {"orders": 170, "sales": 7}
    assert sum(telemetry.counters.flush_seconds.counts) == 4
    telemetry.forgotten("orders", 0)
    assert telemetry.counters.state_bytes == {"orders": 50, "sales": 7}
    telemetry.forgotten("orders", 1)
    telemetry.forgotten("orders", 1)
    assert telemetry.counters.state_bytes == {"sales": 7}


def test_events_are_counted_and_their_delay_taken_off_grace(telemetry: Telemetry) -> None:
    opened = Event(EventType.GAP_OPENED, "orders", 0, "billing", 1, detected_at_ms=10_000, passed_at_ms=5_000)
    policies = {"billing": Policy("billing", grace_ms=2_000)}
    telemetry.told(opened, policies)
    telemetry.told(replace(opened, passed_at_ms=9_500), policies)  # judged before its grace by another clock: never below 0
    telemetry.told(replace(opened, type=EventType.GAP_FILLED, passed_at_ms=None), policies)
    telemetry.told(replace(opened, sink="unknown"), policies)
    assert telemetry.counters.alerts_total == {"gap.opened": 3, "gap.filled": 1}
    assert list(telemetry.counters.detection_delays) == [("orders", "billing")]
    delays = telemetry.counters.detection_delay_seconds("orders", "billing")
    assert (sum(delays.counts), delays.sum) == (2, 3.0)
