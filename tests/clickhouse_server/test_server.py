"""What the embedded engine has not: the Kafka engine, replicas, clusters. Each test needs servers of its own and is not run without.

==========================  ================================================================================================
``CLICKHOUSE_URL``          HTTP interface of a server whose user may create databases
``CLICKHOUSE_KILL``         a shell command that kills that server with SIGKILL, starts it again and waits until it answers
``CLICKHOUSE_KAFKA``        address of the tests' Kafka as that server sees it; where it is not set, as the tests see it
``CLICKHOUSE_REPLICA_URL``  another server with the same Keeper and another macro ``replica``
``CLICKHOUSE_CLUSTER``      name of a cluster of that server with two shards, of which the second is down
==========================  ================================================================================================
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stream_app.sinks.clickhouse import ClickHouseTable, Layout, Span, Unknown
from stream_app.sinks.clickhouse.client import ClickHouseClient
from tests.support.clickhouse_kit import ClickHouse
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, eventually
from tests.support.table_case import COLUMNS, KEY, SINK, TYPES, Case, block

KILLS = 50
RECORDS = 200_000


@pytest.fixture
def server() -> Iterator[ClickHouse]:
    made = ClickHouse(os.environ["CLICKHOUSE_URL"].rstrip("/"))
    yield made
    made.close()


@pytest.mark.timeout(1800)
def test_t52_a_server_with_the_kafka_engine_that_is_killed(server: ClickHouse, kit: KafkaKit) -> None:
    """Whatever fifty crashes made of the table, verify tells it exactly: the truth is what plain SQL counts."""
    topic, group = kit.make_topic(1), server.database
    kafka = os.environ.get("CLICKHOUSE_KAFKA") or kit.bootstrap
    server.run(f"CREATE TABLE orders ({TYPES}) ENGINE = MergeTree {KEY}")
    settings = f"kafka_broker_list = '{kafka}', kafka_topic_list = '{topic}', kafka_group_name = '{group}', kafka_format = 'RawBLOB'"
    server.run(f"CREATE TABLE queue (body String) ENGINE = Kafka SETTINGS {settings}, kafka_max_block_size = 1000")
    columns = "_topic AS __topic, _partition AS __partition, _offset AS __offset, toDateTime64(_timestamp_ms, 3, 'UTC') AS __timestamp"
    server.run(f"CREATE MATERIALIZED VIEW moves TO orders AS SELECT {columns} FROM queue")
    for _ in range(KILLS):
        kit.produce(topic, 0, RECORDS // KILLS)
        subprocess.run(os.environ["CLICKHOUSE_KILL"], shell=True, check=True, timeout=60)  # noqa: S602 - the tester's own command
    eventually(lambda: kit.committed(group, topic) == RECORDS, "the group at the log's end", 600)
    rows = Counter[int](dict(server.rows("SELECT __offset, toInt64(count()) FROM orders GROUP BY __offset")))
    named = ("--clickhouse", server.url, "--table", f"{server.database}.orders", "-X", f"kafka.bootstrap.servers={kit.bootstrap}")
    command = [sys.executable, "-m", "stream_app", "verify", "--topic", topic, "--settle", "1s", "--json", *named]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = json.loads(ran.stdout)
    assert offsets(found["missing"]) == set(range(RECORDS)) - set(rows)
    assert offsets(found["duplicates"]) == {offset for offset, count in rows.items() if count > 1}
    assert found["partitions"][0]["duplicates"] == rows.total() - len(rows)


def offsets(rows: list[dict[str, Any]]) -> set[int]:
    return {offset for row in rows for offset in range(row["first_offset"], row["last_offset"] + 1)}


def test_t55_a_replica_whose_fetches_are_stopped(server: ClickHouse, kit: KafkaKit, make_rig: Callable[..., Rig]) -> None:
    """What it has not fetched yet is lag, not a loss."""
    other = ClickHouse(os.environ["CLICKHOUSE_REPLICA_URL"].rstrip("/"))
    path = f"/clickhouse/tables/{random.randrange(10**9)}"
    for one in (server, other):
        one.run(f"CREATE TABLE orders ({TYPES}) ENGINE = ReplicatedMergeTree('{path}', '{{replica}}') {KEY}")
    topic = kit.make_topic(1)
    kit.produce(topic, 0, 100)
    sink = {**SINK, "url": other.url, "database": other.database, "table": "orders"}
    rig = make_rig({topic: {"sinks": {"orders": sink}}})
    case = Case(kit, rig.worker().start().ready(), other, topic, "orders")
    server.insert("orders", COLUMNS, block(topic, range(60)))
    case.until_horizon(60)
    other.run("SYSTEM STOP FETCHES orders")
    server.insert("orders", COLUMNS, block(topic, range(60, 100)))
    case.checks()
    assert (case.row()["missing"], case.row()["lag"]) == (0, 40)
    other.run("SYSTEM START FETCHES orders")
    case.until_horizon(100)
    case.checks()
    assert case.told() == []
    other.close()


async def test_t56_a_shard_that_is_down(server: ClickHouse) -> None:
    """Though the user's profile would leave it out."""
    server.run(f"CREATE TABLE orders ({TYPES}) ENGINE = MergeTree {KEY}")
    server.insert("orders", COLUMNS, block("orders", range(100)))
    cluster = os.environ["CLICKHOUSE_CLUSTER"]
    server.run(f"CREATE TABLE everywhere AS orders ENGINE = Distributed('{cluster}', '{server.database}', 'orders')")
    assert server.rows("SELECT toInt64(count()) FROM everywhere", skip_unavailable_shards="1") == [(100,)]
    table = ClickHouseTable(
        ClickHouseClient(server.url), Layout(server.database, "everywhere", "__offset", "__topic", "__partition"), "orders"
    )
    found = await table.check([Span(0, 0, None)])
    assert isinstance(found, Unknown)
    assert "could not ask all of its shards" in found.reason
