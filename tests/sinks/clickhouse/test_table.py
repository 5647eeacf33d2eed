"""One table: what it can prove, what counts as a duplicate, and that a failed question is never an empty answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from stream_app.sinks.clickhouse import Check, ClickHouseTable, Facts, Held, Index, Layout, Span, Unknown
from stream_app.sinks.clickhouse import client as connection
from stream_app.sinks.clickhouse.client import SETTINGS, ClickHouseClient
from tests.sinks.clickhouse.kit import layout, offsets
from tests.support.clickhouse_kit import ClickHouse
from tests.support.faulty_proxy import FaultyProxy
from tests.support.tables import START_MS, Made, Row, fill, make

COLUMNS = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3), id UInt64"
KEYED = "ORDER BY (__topic, __partition, __offset)"


def put(server: ClickHouse, rows: list[tuple[int, int]], table: str = "orders", topic: str = "orders") -> None:
    """Insert (offset, id) of partition 0 as one block."""
    columns = ("__topic", "__partition", "__offset", "__timestamp", "id")
    server.insert(table, columns, [(topic, 0, offset, "2026-11-24 10:00:00", number) for offset, number in rows])


async def held(table: ClickHouseTable, *spans: Span) -> Held:
    assert isinstance(await table.inspect(), Facts)
    found = await table.check(spans or [Span(0, 0, None)])
    assert isinstance(found, Check)
    (one,) = found.held
    return one


def unknown(found: object) -> Unknown:
    assert isinstance(found, Unknown)
    return found


# --- what counts ----------------------------------------------------------------------------------------------------------------


async def test_physical_duplicates_are_there_before_a_merge_and_gone_after(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = ReplacingMergeTree {KEYED}")
    clickhouse.run("SYSTEM STOP MERGES orders")
    for _ in range(2):
        put(clickhouse, [(offset, 1) for offset in range(10, 50)])
    physical = ClickHouseTable(client, layout(clickhouse), "orders")
    final = ClickHouseTable(client, layout(clickhouse, duplicates="final"), "orders")
    one = await held(physical)
    assert (offsets(one.present), one.rows, offsets(one.doubled)) == (set(range(10, 50)), 80, set(range(10, 50)))
    one = await held(final)
    assert (offsets(one.present), one.rows, one.doubled.count) == (set(range(10, 50)), 40, 0)
    clickhouse.run("SYSTEM START MERGES orders")
    clickhouse.run("OPTIMIZE TABLE orders FINAL")
    one = await held(physical)
    assert (one.present.count, one.rows, one.doubled.count) == (40, 40, 0)


async def test_how_often_a_row_is_there(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree {KEYED}")
    put(clickhouse, [(offset, copy) for offset in range(65_530, 65_545) for copy in range(offset - 65_529)])
    one = await held(ClickHouseTable(client, layout(clickhouse), "orders"))
    assert [offsets(level) for level in one.levels] == [set(range(65_531 + more, 65_545)) for more in range(8)]
    assert one.rows == sum(range(1, 16))


async def test_final_shows_what_no_merge_will_join(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = ReplacingMergeTree ORDER BY (__topic, __partition, __offset, id)")
    put(clickhouse, [(1, 1), (2, 1), (3, 1)])
    put(clickhouse, [(2, 1), (3, 2)])
    one = await held(ClickHouseTable(client, layout(clickhouse, duplicates="final"), "orders"))
    assert (one.rows, offsets(one.doubled)) == (4, {3})


async def test_final_on_an_engine_without_it_is_physical(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree {KEYED}")
    put(clickhouse, [(1, 1), (1, 2), (2, 1)])
    one = await held(ClickHouseTable(client, layout(clickhouse, duplicates="final"), "orders"))
    assert (one.rows, offsets(one.doubled)) == (3, {1})


@pytest.mark.parametrize("changed", [{"duplicates": "ignore"}, {"rows_per_record": "many"}])
async def test_where_rows_mean_nothing_offsets_are_counted(
    clickhouse: ClickHouse, client: ClickHouseClient, changed: dict[str, Any]
) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree {KEYED}")
    put(clickhouse, [(1, 1), (1, 2), (2, 1)])
    one = await held(ClickHouseTable(client, layout(clickhouse, **changed), "orders"))
    assert (offsets(one.present), one.rows, one.doubled.count) == ({1, 2}, 2, 0)


async def test_a_condition_chooses_the_rows(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    made = make(random.Random(random.randrange(1 << 30)), {"orders": 1}, 1000, hidden=0.3)
    fill(clickhouse, made)
    table = ClickHouseTable(client, layout(clickhouse, where="mark = 'kept' -- of these the sink answers"), "orders")
    one = await held(table)
    counts = made.counts("orders", 0, "kept")
    assert offsets(one.present) == set(counts)
    assert one.rows == counts.total()


async def test_one_topic_may_stand_in_several_tables_and_a_table_may_hold_one_alone(
    clickhouse: ClickHouse, client: ClickHouseClient
) -> None:
    clickhouse.run("CREATE TABLE even (kafka_offset UInt32) ENGINE = MergeTree ORDER BY kafka_offset")
    clickhouse.run("CREATE TABLE odd (kafka_offset UInt32) ENGINE = MergeTree ORDER BY kafka_offset")
    for table, start in (("even", 0), ("odd", 1)):
        clickhouse.insert(table, ["kafka_offset"], [(offset,) for offset in range(start, 100, 2)])
        alone = Layout(clickhouse.database, table, "kafka_offset")
        for partition in (0, 4):  # whichever the topic has
            one = await held(ClickHouseTable(client, alone, "orders"), Span(partition, 10, 90))
            assert (one.span, offsets(one.present)) == (Span(partition, 10, 90), set(range(10 + start, 90, 2)))


async def test_the_edges_are_those_of_each_partition(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    rows = [("orders", 1, 7), ("orders", 1, 90), ("orders", 3, 5), ("other", 2, 1)]
    made = Made([[Row(*row, START_MS, "kept") for row in rows]])
    fill(clickhouse, made)
    table = ClickHouseTable(client, layout(clickhouse), "orders")
    assert await table.edges(range(3)) == {1: (7, 91)}
    assert await table.edges([3]) == {3: (5, 6)}


# --- what can be proven ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ("ReplacingMergeTree ORDER BY id", r"makes one row of those with the same \(id\)"),
        ("ReplacingMergeTree ORDER BY (__topic, __partition, intDiv(__offset, 10))", "makes one row of those"),
        ("AggregatingMergeTree ORDER BY (__topic, __partition)", "makes one row of those"),
        ("SummingMergeTree ORDER BY (__topic, __partition, __offset)", "removes rows when it merges"),
        ("Null", "is of engine Null, of which it is not known"),
    ],
)
async def test_an_engine_that_loses_rows_proves_nothing(
    clickhouse: ClickHouse, client: ClickHouseClient, engine: str, complaint: str
) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = {engine}")
    clickhouse.run("CREATE VIEW shown AS SELECT * FROM orders")
    put(clickhouse, [(1, 1)])
    for table in ("orders", "shown") if "Merge" in engine else ("orders",):
        found = unknown(await ClickHouseTable(client, layout(clickhouse, table=table), "orders").inspect())
        assert re.search(complaint, found.reason)
        assert found.statement is not None
        assert f"FROM `{clickhouse.database}`.`{table}`" in found.statement


async def test_the_audit_table_proves_what_the_table_can_not(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = ReplacingMergeTree ORDER BY id")
    found = unknown(await ClickHouseTable(client, layout(clickhouse), "orders").inspect())
    for statement in (found.statement or "").split(";\n"):
        clickhouse.run(statement.rstrip(";"))
    put(clickhouse, [(1, 5), (2, 5), (3, 6)])
    put(clickhouse, [(9, 5)])
    clickhouse.run("OPTIMIZE TABLE orders FINAL")
    assert offsets((await held(ClickHouseTable(client, layout(clickhouse, table="orders_offsets"), "orders"))).present) == {1, 2, 3, 9}


async def test_a_table_without_offsets_gets_the_statement_to_add(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run("CREATE TABLE orders (id UInt64, offset_note String) ENGINE = MergeTree ORDER BY id")
    table = ClickHouseTable(client, layout(clickhouse), "orders")
    found = unknown(await table.inspect())
    assert "keeps no offsets" in found.reason
    assert found.statement is not None
    assert f"FROM `{clickhouse.database}`.your_kafka_table;" in found.statement
    virtual = "_topic String, _partition UInt64, _offset UInt64, _timestamp_ms Nullable(DateTime64(3))"
    clickhouse.run(f"CREATE TABLE queue (id UInt64, {virtual}) ENGINE = Null")
    clickhouse.run("CREATE MATERIALIZED VIEW feeding TO orders AS SELECT id, '' AS offset_note FROM queue WHERE id > 0")
    found = unknown(await table.inspect())
    for statement in (found.statement or "").split(";\n"):
        clickhouse.run(statement.rstrip(";"))
    clickhouse.insert(
        "queue", ["id", "_topic", "_partition", "_offset", "_timestamp_ms"], [(n % 2, "orders", 0, n, None) for n in range(5)]
    )
    assert (await held(ClickHouseTable(client, layout(clickhouse, table="orders_offsets"), "orders"))).present.count == 5


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"table": "nowhere"}, "has no table"),
        ({"partition": "partition"}, "has no column partition: name the one that holds each row's partition"),
        ({"offset": "id_text"}, "is of type String, which holds no offset"),
        ({"topic": "__offset"}, "is of type Int64, which holds no topic"),
    ],
)
async def test_wrong_names_are_told(clickhouse: ClickHouse, client: ClickHouseClient, changed: dict[str, Any], complaint: str) -> None:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}, id_text String) ENGINE = MergeTree {KEYED}")
    assert complaint in unknown(await ClickHouseTable(client, layout(clickhouse, **changed), "orders").inspect()).reason


async def test_views_show_what_is_behind_them(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    clickhouse.run(f"CREATE TABLE raw ({COLUMNS}) ENGINE = ReplacingMergeTree {KEYED} TTL toDateTime(__timestamp) + INTERVAL 3 DAY")
    clickhouse.run("CREATE VIEW orders AS SELECT * FROM raw")
    clickhouse.run(f"CREATE MATERIALIZED VIEW kept ENGINE = ReplacingMergeTree {KEYED} AS SELECT * FROM raw")
    put(clickhouse, [(4, 1)], table="raw")
    found = await ClickHouseTable(client, layout(clickhouse), "orders").inspect()
    assert isinstance(found, Facts)
    assert (found.engine, found.final, found.retention.keeps_ms) == ("View", True, 3 * 86_400_000)
    assert offsets((await held(ClickHouseTable(client, layout(clickhouse, table="kept"), "orders"))).present) == {4}


async def test_whether_an_index_helps(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    for table, order in (("orders", KEYED), ("slow", "ORDER BY id"), ("unordered", "ORDER BY tuple()"), ("empty", KEYED)):
        clickhouse.run(f"CREATE TABLE {table} ({COLUMNS}) ENGINE = MergeTree {order} SETTINGS index_granularity = 256")
    for table in ("orders", "slow", "unordered"):
        clickhouse.run(
            f"INSERT INTO {table} SELECT 'orders', number % 4, intDiv(number, 4), now(), cityHash64(number) FROM numbers(40_000)"
        )
    spans = [Span(0, 9_000, None), Span(2, 100, 200)]
    fast = await ClickHouseTable(client, layout(clickhouse), "orders").index(spans)
    slow = await ClickHouseTable(client, layout(clickhouse, table="slow"), "orders").index(spans)
    assert isinstance(fast, Index)
    assert (fast.used, fast.granules) == (True, 156)
    assert fast.granules_read < 20
    assert slow == Index(False, 156, 156)
    assert await ClickHouseTable(client, layout(clickhouse, table="unordered"), "orders").index(spans) == Index(False)
    assert await ClickHouseTable(client, layout(clickhouse, table="empty"), "orders").index(spans) == Index(None)
    checks = [await ClickHouseTable(client, layout(clickhouse, table=table), "orders").check(spans) for table in ("orders", "slow")]
    read = [one.rows_read for one in checks if isinstance(one, Check)]
    assert read[0] < 20 * 256
    assert read[1] >= 40_000


# --- failing ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(clickhouse: ClickHouse) -> Iterator[FaultyProxy]:
    clickhouse.run(f"CREATE TABLE orders ({COLUMNS}) ENGINE = MergeTree {KEYED}")
    put(clickhouse, [(offset, 1) for offset in range(100)] + [(5, 1)])
    with FaultyProxy(clickhouse.url) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: FaultyProxy, clickhouse: ClickHouse) -> ClickHouseTable:
    return ClickHouseTable(ClickHouseClient(proxy.url), layout(clickhouse), "orders")


async def test_a_failed_question_is_unknown_and_the_next_one_is_answered(proxy: FaultyProxy, behind: ClickHouseTable) -> None:
    assert (await held(behind)).rows == 101
    for status, code, message, expected in (
        (500, 241, "Memory limit exceeded (MEMORY_LIMIT_EXCEEDED)", "gave the query up (Memory limit exceeded (MEMORY_LIMIT_EXCEEDED))"),
        (503, 202, "Too many simultaneous queries", "is too busy"),
        (403, 516, "Authentication failed", "refused the login of default"),
        (403, 497, "Not enough privileges", "does not let default read this"),
        (404, 60, "Table does not exist", "has no such table"),
        (500, 279, "All connection tries failed", "could not ask all of its shards"),
        (500, 999, "Coordination error", "could not answer (Coordination error)"),
    ):
        proxy.fail(status, code, message)
        assert expected in unknown(await behind.check([Span(0, 0, None)])).reason
        assert expected in unknown(await behind.inspect()).reason
        assert expected in unknown(await behind.edges([0])).reason
        assert expected in unknown(await behind.index([Span(0, 0, None)])).reason
        proxy.mend()
    assert (await held(behind)).rows == 101


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
async def test_an_answer_that_breaks_off_is_unknown(proxy: FaultyProxy, behind: ClickHouseTable, share: float) -> None:
    await behind.inspect()
    proxy.cut(share)
    assert "did not answer (the connection broke off)" in unknown(await behind.check([Span(0, 0, None)])).reason
    proxy.mend()
    proxy.shorten(share)
    expected = "did not answer (its answer is not whole)" if share else "the answer is cut off: its last row is not there"
    assert expected in unknown(await behind.check([Span(0, 0, None)])).reason
    proxy.mend()
    assert (await held(behind)).present.count == 100


async def test_a_server_that_is_away_is_unknown(clickhouse: ClickHouse) -> None:
    away = ClickHouseTable(ClickHouseClient("http://127.0.0.1:1"), layout(clickhouse), "orders")
    assert "ClickHouse at 127.0.0.1:1 can't be reached" in unknown(await away.check([Span(0, 0, None)])).reason
    assert "127.0.0.1:1" in unknown(await away.inspect()).reason


async def test_a_server_that_hangs_is_unknown(proxy: FaultyProxy, clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 1)
    table = ClickHouseTable(ClickHouseClient(proxy.url, query_s=0.5), layout(clickhouse), "orders")
    assert isinstance(await table.inspect(), Facts)
    proxy.hold()
    assert "it did not answer in time" in unknown(await table.check([Span(0, 0, None)])).reason


async def test_a_slow_query_is_given_up(proxy: FaultyProxy, clickhouse: ClickHouse) -> None:
    slow = layout(clickhouse, where="sleepEachRow(0.02) = 0")
    table = ClickHouseTable(ClickHouseClient(proxy.url, query_s=0.3), slow, "orders")
    assert "gave the query up (Timeout exceeded" in unknown(await table.check([Span(0, 0, None)])).reason


async def test_every_query_asks_for_a_whole_answer(proxy: FaultyProxy, clickhouse: ClickHouse) -> None:
    own = {"max_threads": "1", "limit": "1", "skip_unavailable_shards": "1", "group_by_overflow_mode": "any"}
    table = ClickHouseTable(ClickHouseClient(proxy.url, settings=own), layout(clickhouse), "orders")
    proxy.asked.clear()
    found = await table.check([Span(0, 0, 50), Span(0, 70, None)])
    (path, _) = proxy.asked[-1]
    sent = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
    assert sent["max_threads"] == "1"
    assert {name: sent.get(name) for name in SETTINGS} == dict(SETTINGS)
    assert isinstance(found, Check)
    other = ClickHouseTable(
        ClickHouseClient(proxy.url, settings=own | {"max_rows_to_group_by": "3"}), layout(clickhouse, partition="__offset"), "orders"
    )
    assert "gave the query up" in unknown(await other.check([Span(offset, offset, offset + 1) for offset in range(20)])).reason


def test_a_server_that_is_silent_keeps_nobody_from_leaving() -> None:
    with contextlib.ExitStack() as open_still:
        server = open_still.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = ClickHouseClient(f"http://127.0.0.1:{server.getsockname()[1]}")

        async def ask() -> None:
            asking = asyncio.create_task(client.query("SELECT 1"))
            accepted, _ = await asyncio.to_thread(server.accept)
            open_still.enter_context(accepted)
            asking.cancel()
            await asyncio.wait([asking])

        begun = time.monotonic()
        asyncio.run(ask())
        assert time.monotonic() - begun < connection.QUERY_S / 2
