"""``gapstream doctor`` with a real Kafka and the real engine of ClickHouse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import NewTopic

from tests.cli.kit import Command, Ran
from tests.support.clickhouse_kit import ClickHouse
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import free_port

COLUMNS = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3)"
Doctor = Callable[..., Ran]


@pytest.fixture
def doctor(gapstream: Command, kit: KafkaKit, tmp_path: Path) -> Doctor:
    def run(topics: dict[str, Any], *more: str, app: dict[str, Any] | None = None, bootstrap: str | None = None) -> Ran:
        file = tmp_path / "gapstream.yaml"
        written = {"kafka": {"bootstrap.servers": bootstrap or kit.bootstrap}, "app": {"id": "doc", **(app or {})}, "topics": topics}
        file.write_text(json.dumps({**written, "http": {"port": free_port()}}))  # YAML takes JSON
        return run_in(str(file), *more)

    def run_in(file: str, *more: str) -> Ran:
        return gapstream("doctor", "-c", file, *more)

    return run


def sinks(clickhouse: ClickHouse, **keys: Any) -> dict[str, Any]:
    sink = {"type": "clickhouse", "url": clickhouse.url, "database": clickhouse.database, "table": "orders", **keys}
    return {"sinks": {"warehouse": sink, "billing": {"type": "consumer"}}}


def test_all_is_well(doctor: Doctor, kit: KafkaKit, clickhouse: ClickHouse) -> None:
    topic = kit.make_topic(2)
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree ORDER BY (__topic, __partition, __offset)")
    ran = doctor({topic: sinks(clickhouse)})
    assert (ran.code, ran.err) == (0, ""), ran.out
    lines = ran.out.splitlines()
    assert lines[-1] == "all is well"
    assert {line.split()[0] for line in lines[:-2]} == {"ok"}
    assert f"ok       topics.{topic}: 2 partitions, cleanup.policy delete, records are kept for ever" in lines
    assert f"ok       doc.observations.{topic}: it is not there yet: a worker creates it" in lines
    assert any(line.startswith(f"ok       topics.{topic}.sinks.warehouse: ClickHouse ") for line in lines)
    found = doctor({topic: sinks(clickhouse)}, "--json").json()
    assert found["ok"] is True
    assert {one["level"] for one in found["findings"]} == {"ok"}


def test_what_is_wrong_comes_with_how_to_mend_it(doctor: Doctor, kit: KafkaKit, clickhouse: ClickHouse) -> None:
    topic = kit.make_topic(2)
    observations = f"doc.observations.{topic}"
    kit.admin.create_topics([NewTopic(observations, 2, 1, config={"message.timestamp.type": "CreateTime"})])[observations].result(30)
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree ORDER BY __timestamp")
    clickhouse.run(f"INSERT INTO orders SELECT '{topic}', 0, number, now64(3) FROM numbers(100000)")
    ran = doctor({topic: sinks(clickhouse), "nowhere": {}})
    kit.delete_topics(observations)
    assert (ran.code, ran.err) == (1, "")
    lines = ran.out.splitlines()
    assert "error    topics.nowhere: Kafka has no topic nowhere, or hides it" in lines
    at = lines.index(f"error    {observations}: message.timestamp.type is CreateTime, and must be LogAppendTime")
    assert lines[at + 1] == "         set it"
    assert lines[at + 2].endswith(f"--entity-name {observations} --add-config message.timestamp.type=LogAppendTime")
    assert any(line.startswith("warning  ") and "no index helps to find offsets" in line for line in lines)
    assert f"           ALTER TABLE `{clickhouse.database}`.`orders` MATERIALIZE INDEX gapstream_offset;" in lines
    above = f"{clickhouse.database}.orders has offset 99999 of partition 0, whose log ends at 0"
    assert f"error    topics.{topic}.sinks.warehouse: {above}" in lines
    assert lines[-1] == "3 errors, 1 warning"


def test_kafka_that_is_away_could_not_be_asked_and_the_rest_is_told(doctor: Doctor, clickhouse: ClickHouse) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree ORDER BY (__topic, __partition, __offset)")
    ran = doctor({"orders": sinks(clickhouse)}, "--json", bootstrap="127.0.0.1:1")
    assert ran.code == 3
    found = json.loads(ran.out)
    assert found["ok"] is None
    (one,) = [one for one in found["findings"] if one["level"] == "unknown"]
    assert (one["about"], "can't be reached" in one["message"]) == ("kafka.bootstrap.servers", True)
    assert {one["about"] for one in found["findings"]} >= {"app.state_dir", "http.port", "topics.orders.sinks.warehouse"}


def test_sinks_in_another_cluster(doctor: Doctor, kit: KafkaKit) -> None:
    topic, copy = kit.make_topic(1), kit.make_topic(1)
    elsewhere = {"type": "topic", "topic": copy, "quarantine": {"topic": "nowhere"}, "kafka": {"bootstrap.servers": kit.bootstrap}}
    away = {"type": "topic", "topic": copy, "kafka": {"bootstrap.servers": "127.0.0.1:1"}}
    ran = doctor({topic: {"sinks": {"elsewhere": elsewhere, "away": away}}})
    assert ran.code == 1
    about = f"topics.{topic}.sinks"
    assert f"ok       {about}.elsewhere: {copy} is there" in ran.out.splitlines()
    assert f"error    {about}.elsewhere: Kafka has no topic nowhere, or hides it" in ran.out.splitlines()
    assert any(line.startswith(f"unknown  {about}.away.kafka: Kafka can't be reached") for line in ran.out.splitlines()), ran.out


def test_faults_of_the_configuration_are_told_instead(doctor: Doctor) -> None:
    ran = doctor({"orders": {"sinks": {"a": {"type": "consumer", "grace": 7}}}})
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("topics.orders.sinks.a.grace: ")
