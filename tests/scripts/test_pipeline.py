"""deploy/pipeline.py against a real Kafka and a stand-in for ClickHouse's HTTP interface."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kafka_cluster import KafkaCluster

from deploy import pipeline
from tests.support.kafka_kit import KafkaKit

PATIENCE_S = 40.0


class ClickHouse(http.server.ThreadingHTTPServer):
    """Keeps the rows of every insert it accepted; refuses the first one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Insert)
        self.rows: list[dict[str, Any]] = []
        self.refusals = 1
        self.changed = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def await_rows(self, enough: Callable[[list[dict[str, Any]]], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: enough(self.rows), PATIENCE_S), f"{len(self.rows)} rows are not enough"


class _Insert(http.server.BaseHTTPRequestHandler):
    server: ClickHouse

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert "INSERT+INTO+orders+FORMAT+JSONEachRow" in self.path
        with self.server.changed:
            refused, self.server.refusals = self.server.refusals > 0, 0
            if not refused:
                self.server.rows += [json.loads(line) for line in body.splitlines()]
                self.server.changed.notify_all()
        self.send_response(500 if refused else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def clickhouse() -> Iterator[ClickHouse]:
    with ClickHouse() as server, ThreadPoolExecutor(1) as pool:
        serving = pool.submit(server.serve_forever, 0.05)
        yield server
        server.shutdown()
        serving.result(10.0)


@pytest.fixture
def topic(kafka: KafkaCluster, kit: KafkaKit, clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> str:
    name = kit.make_topic(2)
    kit.make_topic(2, {"message.timestamp.type": "LogAppendTime"}, name=f"gapstream.observations.{name}")
    monkeypatch.setattr(pipeline, "TOPIC", name)
    monkeypatch.setattr(pipeline, "_RETRY_S", 0.05)
    for key, value in {
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "RECORDS_PER_SECOND": "400",
        "LOSE_ONE_IN": "10",
        "CLICKHOUSE_URL": clickhouse.url,
        "CLICKHOUSE_USER": "somebody",
        "CLICKHOUSE_PASSWORD": "secret",
    }.items():
        monkeypatch.setenv(key, value)
    return name


def reported(kit: KafkaKit, topic: str, partition: int) -> set[int]:
    """Offsets that the sidecar's observations cover."""
    found: set[int] = set()
    for record in kit.read(f"gapstream.observations.{topic}", partition):
        observation = json.loads(record.value() or b"")
        assert (observation["sink"], observation["topic"], observation["partition"]) == ("loader", topic, partition)
        for first, last in observation.get("runs", ()):
            found |= set(range(first, last + 1))
    return found


def test_rows_are_the_records_but_for_the_lost_ones_and_all_are_reported(kit: KafkaKit, topic: str, clickhouse: ClickHouse) -> None:
    stop_producing, stop_consuming = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        producing, consuming = pool.submit(pipeline.produce, stop_producing), pool.submit(pipeline.consume, stop_consuming)
        try:
            clickhouse.await_rows(lambda rows: len(rows) >= 200)
            stop_producing.set()
            producing.result(PATIENCE_S)
            written = {(partition, record.offset()): record for partition in (0, 1) for record in kit.read(topic, partition)}
            kept = {place for place, record in written.items() if not pipeline._is_lost(record, 10)}
            clickhouse.await_rows(lambda rows: {(row["__partition"], row["__offset"]) for row in rows} >= kept)
        finally:
            stop_producing.set()
            stop_consuming.set()
        consuming.result(PATIENCE_S)
    assert {(row["__partition"], row["__offset"]) for row in clickhouse.rows} == kept
    assert len(clickhouse.rows) == len(kept), "an insert that was refused is repeated whole, not doubled"
    assert 0 < len(kept) < len(written)
    for row in clickhouse.rows:
        record = written[row["__partition"], row["__offset"]]
        milliseconds = record.timestamp()[1]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds // 1000))
        assert row == {
            "__topic": topic,
            "__partition": record.partition(),
            "__offset": record.offset(),
            "__timestamp": f"{stamp}.{milliseconds % 1000:03d}",
            **json.loads(record.value() or b""),
        }
    ends = {partition: kit.offsets(topic, partition)[1] for partition in (0, 1)}
    assert {partition: reported(kit, topic, partition) for partition in ends} == {
        partition: set(range(end)) for partition, end in ends.items()
    }


def test_stop_ends_an_insert_that_does_not_succeed(topic: str, clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKHOUSE_URL", "http://127.0.0.1:1")
    stop = threading.Event()
    stop.set()
    assert pipeline._insert([{"a": 1}], stop) is False
    assert pipeline._insert([], stop) is True


@pytest.mark.parametrize("arguments", [[], ["both"], ["produce", "consume"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(arguments) == 2
    assert capsys.readouterr().err == "usage: pipeline.py produce|consume\n"
