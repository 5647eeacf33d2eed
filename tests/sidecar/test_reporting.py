"""Sending: numbers, company, failures, limits and the end; on a producer that does what it is told."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from gapstream_sidecar import ConfigurationError, Sidecar
from gapstream_sidecar.complaints import Complaints, OncePerMinute
from gapstream_sidecar.doubts import NOWHERE, UNWATCHED
from gapstream_sidecar.settings import producer_settings
from tests.sidecar.conftest import Bench


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr("gapstream_sidecar.courier.RETRY_S", 0.0)
    monkeypatch.setattr("gapstream_sidecar.courier.RENEW_S", 0.0)


def test_what_was_received_is_written_as_the_contract_says(bench: Bench) -> None:
    sidecar = bench.sidecar(app_id="watch")
    sidecar.received("orders", 3, 100, 199)
    sidecar.received("orders", 3, 205)
    assert sidecar.flush()
    (record,) = bench.producer.acknowledged
    assert record[:2] == ("watch.observations.orders", 3)
    said = json.loads(record[2])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("at"))
    assert said == {
        "v": 1, "sink": "billing", "topic": "orders", "partition": 3, "runs": [[100, 199], [205, 205]],
        "status": "received", "source": sidecar.source, "sequence": 1,
    }  # fmt: skip


def test_quarantined_offsets_carry_their_reason(bench: Bench) -> None:
    sidecar = bench.sidecar()
    sidecar.quarantined("orders", 0, 7)
    sidecar.quarantined("orders", 0, 8)
    sidecar.quarantined("orders", 0, 9, reason="poison")
    assert sidecar.flush()
    assert [(one["status"], one["reason"], one["runs"]) for one in bench.producer.said()] == [
        ("quarantined", "tombstone", [[7, 8]]),
        ("quarantined", "poison", [[9, 9]]),
    ]


@pytest.mark.usefixtures("patient")
def test_reports_gather_until_somebody_asks(bench: Bench) -> None:
    sidecar = bench.sidecar()
    for offset in range(1_000):
        sidecar.received("orders", 0, offset)
    assert bench.producer.records == []
    assert sidecar.flush()
    assert bench.runs() == [[[0, 999]]]
    assert (sidecar.stats.sent, sidecar.stats.acknowledged, sidecar.stats.backlog_bytes) == (1, 1, 0)


def test_reports_leave_by_themselves(bench: Bench) -> None:
    sidecar = bench.sidecar()
    sidecar.received("orders", 0, 1)
    bench.producer.await_records(1)
    sidecar.received("orders", 0, 2)
    bench.producer.await_records(2)
    assert sidecar.flush()
    assert bench.runs() == [[[1, 1]], [[2, 2]]]


@pytest.mark.usefixtures("patient")
def test_numbers_rise_by_one_in_each_partition(bench: Bench) -> None:
    sidecar = bench.sidecar()
    for _ in range(3):
        sidecar.received("orders", 0, 5)  # again and again: true duplicates
    sidecar.received("orders", 1, 5)
    sidecar.received("events", 0, 5)
    assert sidecar.flush()
    numbers: dict[tuple[str, int], list[int]] = {}
    for one in bench.producer.said():
        numbers.setdefault((one["topic"], one["partition"]), []).append(one["sequence"])
    assert numbers == {("orders", 0): [1, 2, 3], ("orders", 1): [1], ("events", 0): [1]}


@pytest.mark.usefixtures("patient")
def test_one_observation_of_a_partition_is_in_flight_at_a_time(bench: Bench) -> None:
    sidecar = bench.sidecar()
    bench.producer.hold()
    sidecar.received("orders", 0, 1)
    assert not sidecar.flush(timeout=0)
    for offset in range(2, 50):
        sidecar.received("orders", 0, offset)
        assert not sidecar.flush(timeout=0)
    assert len(bench.producer.records) == 1
    bench.producer.release()
    assert sidecar.flush()
    assert bench.runs() == [[[1, 1]], [[2, 49]]]


@pytest.mark.usefixtures("patient", "hasty")
@pytest.mark.parametrize("code", [KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED])
def test_what_failed_is_sent_again_under_its_number(bench: Bench, code: int) -> None:
    sidecar = bench.sidecar()
    bench.producer.failures.extend([KafkaError(code), KafkaError(code)])
    sidecar.received("orders", 0, 1)
    assert sidecar.flush()
    sidecar.received("orders", 0, 2)
    assert sidecar.flush()
    sent = [json.loads(value) for _, _, value in bench.producer.records]
    assert [one["sequence"] for one in sent] == [1, 1, 1, 2]
    assert sent[0] == sent[1] == sent[2]
    assert bench.runs() == [[[1, 1]], [[2, 2]]]
    assert (sidecar.stats.sent, sidecar.stats.failed, sidecar.stats.acknowledged) == (2, 2, 2)


@pytest.mark.usefixtures("patient", "hasty")
@pytest.mark.parametrize("error", [BufferError("full"), KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))])
def test_what_the_client_does_not_take_is_held_back(bench: Bench, error: Exception) -> None:
    sidecar = bench.sidecar()
    bench.producer.refusals.append(error)
    sidecar.received("orders", 9, 1)
    assert sidecar.flush()
    assert bench.runs() == [[[1, 1]]]
    assert sidecar.stats.failed == 1


@pytest.mark.usefixtures("patient")
def test_a_partition_that_is_missing_does_not_hold_up_the_others(bench: Bench) -> None:
    sidecar = bench.sidecar()
    where = ("gapstream.observations.orders", 9)
    bench.producer.missing.add(where)
    sidecar.received("orders", 9, 1)
    assert not sidecar.flush(timeout=0)
    sidecar.received("orders", 9, 2)
    sidecar.received("orders", 9, 3)
    sidecar.received("orders", 0, 1)
    assert not sidecar.flush(timeout=0.2)
    assert [one["partition"] for one in bench.producer.said()] == [0]
    bench.producer.missing.remove(where)
    assert sidecar.flush()
    assert [(one["sequence"], one["runs"]) for one in bench.producer.said() if one["partition"] == 9] == [(1, [[1, 1]]), (2, [[2, 3]])]


@pytest.mark.usefixtures("patient", "hasty")
def test_a_record_that_is_too_large_is_split(bench: Bench) -> None:
    sidecar = bench.sidecar()
    bench.producer.failures.append(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    for offset in range(0, 8_000, 2):
        sidecar.received("orders", 0, offset)
    assert sidecar.flush()
    said = bench.producer.said()
    assert [(one["sequence"], len(one["runs"])) for one in said] == [(1, 2_000), (2, 2_000)]
    assert [run for one in said for run in one["runs"]] == [[offset, offset] for offset in range(0, 8_000, 2)]


@pytest.mark.usefixtures("patient", "hasty")
def test_a_producer_that_failed_for_good_is_replaced(bench: Bench) -> None:
    sidecar = bench.sidecar()
    first = bench.producer
    first.hold()
    sidecar.received("orders", 0, 1)
    assert not sidecar.flush(timeout=0)
    first.refusals.append(KafkaException(KafkaError(KafkaError._FATAL)))
    sidecar.received("orders", 1, 1)
    assert sidecar.flush()
    assert bench.producer is not first
    assert sorted((one["partition"], one["sequence"]) for one in bench.producer.said()) == [(0, 1), (1, 1)]
    first.release()  # late answers of the old one change nothing
    sidecar.received("orders", 0, 2)
    assert sidecar.flush()
    assert [one["sequence"] for one in bench.producer.said() if one["partition"] == 0] == [1, 2]


def test_without_brokers_the_backlog_is_bounded_and_the_rest_is_told_as_unobserved(bench: Bench) -> None:
    sidecar = bench.sidecar(max_backlog_bytes=64 << 10)
    bench.producer.hold()
    for offset in range(0, 40_000, 2):
        sidecar.received("orders", 0, offset)
    assert sidecar.stats.backlog_bytes <= 64 << 10
    assert sidecar.stats.dropped > 0
    bench.producer.release()
    assert sidecar.flush()
    said = bench.producer.said()
    told: dict[str, set[int]] = {"received": set(), "unobserved": set()}
    for one in said:
        told[one["status"]].update(offset for first, last in one["runs"] for offset in range(first, last + 1))
    assert told["received"] | told["unobserved"] >= set(range(0, 40_000, 2))
    assert told["received"] <= set(range(0, 40_000, 2))
    numbers = [one["sequence"] for one in said]
    assert numbers == sorted(set(numbers))
    assert sidecar.stats.backlog_bytes == 0


def test_many_threads_report_everything_once(bench: Bench) -> None:
    sidecar = bench.sidecar()

    def report(start: int) -> None:
        for offset in range(start, 4_000, 4):
            sidecar.received("orders", 0, offset)

    threads = [threading.Thread(target=report, args=(start,)) for start in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sidecar.flush()
    told = sorted(offset for runs in bench.runs() for a, b in runs for offset in range(a, b + 1))
    assert told == list(range(4_000))


def test_close_flushes_and_may_be_repeated(bench: Bench) -> None:
    with bench.sidecar() as sidecar:
        sidecar.received("orders", 0, 1)
    sidecar.close()
    assert bench.runs() == [[[1, 1]]]
    assert bench.producer.purged
    assert sidecar.flush()  # there is nothing left
    assert "gapstream-sidecar" not in {thread.name for thread in threading.enumerate()}


def test_what_is_reported_after_close_is_counted(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = bench.sidecar()
    sidecar.close()
    sidecar.received("orders", 0, 1, 5)
    assert sidecar.stats.dropped == 5
    assert "after close()" in caplog.text


def test_close_is_bounded_and_says_what_it_lost(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = bench.sidecar()
    bench.producer.hold()
    sidecar.received("orders", 0, 0, 9)
    began = time.monotonic()
    sidecar.close(timeout=0.1)
    assert time.monotonic() - began < 2
    assert sidecar.stats.dropped == 10
    assert "10 offsets unreported" in caplog.text


@pytest.mark.parametrize("end", [UNWATCHED, NOWHERE, None, 100])
def test_close_waits_for_no_topic_that_nobody_watches(bench: Bench, caplog: pytest.LogCaptureFixture, end: int | None) -> None:
    """And for all that may be watched, even where the topic of observations lacks or can't be asked for."""
    sidecar = bench.sidecar()
    bench.log_ends["events", 3] = end
    bench.producer.missing.add(("gapstream.observations.events", 3))
    sidecar.received("orders", 0, 1)
    sidecar.received("events", 3, 0, 9)
    began = time.monotonic()
    sidecar.close(timeout=3 if end == UNWATCHED else 1)
    seconds = time.monotonic() - began
    assert bench.runs() == [[[1, 1]]]
    assert (sidecar.stats.dropped, sidecar.stats.backlog_bytes) == (10, 0 if end == UNWATCHED else sidecar.stats.backlog_bytes)
    if end == UNWATCHED:
        assert seconds < 2
        assert "10 offsets of ('events', 3) unreported, which nobody watches" in caplog.text
        assert "missing" not in caplog.text
    else:
        assert seconds >= 1
        assert "10 offsets unreported after 1 s: if watched, they will be told as missing" in caplog.text


def test_close_waits_for_what_is_watched_beside_what_is_not(bench: Bench) -> None:
    sidecar = bench.sidecar()
    bench.log_ends["events", 3] = UNWATCHED
    bench.producer.missing |= {("gapstream.observations.events", 3), ("gapstream.observations.orders", 0)}
    sidecar.received("events", 3, 0, 9)
    sidecar.received("orders", 0, 1)
    later = threading.Timer(1.0, bench.producer.missing.remove, [("gapstream.observations.orders", 0)])
    later.start()
    began = time.monotonic()
    sidecar.close(timeout=20)
    assert time.monotonic() - began < 8
    later.join()
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("", 0, 1), ValueError),
        (("orders", -1, 1), ValueError),
        (("orders", 0, -1), ValueError),
        (("orders", 0, 5, 4), ValueError),
        (("orders", 0, 2**63 - 1), ValueError),
        (("orders", 0, "5"), TypeError),
        (("orders", 0.5, 5), TypeError),
    ],
)
def test_what_can_not_be_offsets_is_refused(bench: Bench, arguments: tuple[Any, ...], error: type[Exception]) -> None:
    sidecar = bench.sidecar()
    with pytest.raises(error):
        sidecar.received(*arguments)
    assert sidecar.flush()
    assert bench.producer.records == []


@pytest.mark.parametrize(
    ("conf", "options", "complaint"),
    [
        ({}, {"sink": "billing"}, "bootstrap.servers"),
        ({"bootstrap.servers": "a:1"}, {"sink": ""}, "sink"),
        ({"bootstrap.servers": "a:1"}, {"sink": "billing/eu"}, "sink must be a name"),
        ({"bootstrap.servers": "a:1"}, {"sink": "x" * 250}, "sink must be a name"),
        ({"bootstrap.servers": "a:1"}, {"sink": "log"}, "sink log is taken"),
        ({"bootstrap.servers": "a:1"}, {"sink": "billing", "app_id": ""}, "app_id"),
        ({"bootstrap.servers": "a:1"}, {"sink": "billing", "app_id": "."}, "app_id must be a name"),
        ({"bootstrap.servers": "a:1"}, {"sink": "billing", "app_id": "gap stream"}, "app_id must be a name"),
        ({"bootstrap.servers": "a:1"}, {"sink": "billing", "observe_before_commit": -1}, "observe_before_commit"),
        ({"bootstrap.servers": "a:1"}, {"sink": "billing", "max_backlog_bytes": 10}, "max_backlog_bytes"),
        ({"bootstrap.servers": "a:1", "bootstrap.sirvers": "a:1"}, {"sink": "billing"}, "bootstrap.sirvers"),
        ({"bootstrap.servers": "a:1", "security.protocol": "wax"}, {"sink": "billing"}, "security.protocol"),
    ],
)
def test_a_configuration_that_can_not_work_is_refused(conf: dict[str, Any], options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        Sidecar(conf, **options)


def test_a_whole_consumer_configuration_makes_a_safe_producer() -> None:
    conf = {
        "bootstrap.servers": "a:1", "security.protocol": "SASL_SSL", "sasl.password": "x", "group.id": "g", "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "fetch.min.bytes": 1, "acks": 0, "retries": 0, "error_cb": print, "on_commit": print,
    }  # fmt: skip
    made = producer_settings(conf, 16 << 20)
    assert (made["bootstrap.servers"], made["security.protocol"], made["sasl.password"]) == ("a:1", "SASL_SSL", "x")
    assert (made["acks"], made["enable.idempotence"], made["message.timeout.ms"]) == ("all", True, 0)
    assert made["allow.auto.create.topics"] is False
    assert made["queue.buffering.max.kbytes"] == 16 << 10
    assert not {"group.id", "enable.auto.commit", "auto.offset.reset", "fetch.min.bytes", "retries", "error_cb", "on_commit"} & set(made)


def test_a_fault_inside_does_not_reach_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = bench.sidecar()

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gapstream_sidecar.outbox.Outbox.add", broken)
    sidecar.received("orders", 0, 1)
    sidecar.quarantined("orders", 0, 1)
    assert sidecar.stats.failed == 2
    assert len(caplog.records) == 1  # said once a minute


def test_the_thread_outlives_a_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapstream_sidecar.reporter._IDLE_S", 0.01)
    sidecar = bench.sidecar()
    poll, broken = bench.producer.poll, threading.Event()

    def poll_once_broken(timeout: float) -> int:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("a bug")
        return poll(timeout)

    monkeypatch.setattr(bench.producer, "poll", poll_once_broken)
    sidecar.received("orders", 0, 1)
    assert sidecar.flush()
    assert broken.is_set()
    assert sidecar.stats.failed == 1


def test_a_kind_of_complaint_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    complaints = Complaints(lambda: now)
    for now in (0.0, 1.0, 59.0, 61.0):  # noqa: B007 - the clock reads it
        complaints.say("a", "first")
    complaints.say("b", "second")
    assert [record.getMessage() for record in caplog.records] == ["first", "first (2 more like this since it was last said)", "second"]


def test_the_client_library_says_one_line_a_minute() -> None:
    now = 0.0
    line = logging.makeLogRecord({})
    once = OncePerMinute(lambda: now)
    passed = []
    for now in (0.0, 30.0, 60.0, 61.0):  # noqa: B007 - the clock reads it
        passed.append(once.filter(line))
    assert passed == [True, False, True, False]
