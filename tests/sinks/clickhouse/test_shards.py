"""Rows of which a part stands on a server that is not there."""

from __future__ import annotations

from stream_app.sinks.clickhouse import ClickHouseTable, Layout, Span, Unknown
from stream_app.sinks.clickhouse.client import ClickHouseClient
from tests.support.clickhouse_kit import ClickHouse
from tests.support.table_case import COLUMNS, KEY, TYPES, block


async def test_t56_a_shard_that_is_down_is_no_answer_though_the_settings_would_leave_it_out(
    clickhouse: ClickHouse, client: ClickHouseClient
) -> None:
    clickhouse.run(f"CREATE TABLE orders ({TYPES}) ENGINE = MergeTree {KEY}")
    clickhouse.insert("orders", COLUMNS, block("orders", range(100)))
    shards = f"remote('localhost,127.0.0.1:1', {clickhouse.database}, orders)"
    clickhouse.run(f"CREATE VIEW everywhere AS SELECT * FROM {shards}", skip_unavailable_shards="1")
    assert clickhouse.rows("SELECT toInt64(count()) FROM everywhere", skip_unavailable_shards="1") == [(100,)], "half of it"
    table = ClickHouseTable(client, Layout(clickhouse.database, "everywhere", "__offset", "__topic", "__partition"), "orders")
    for found in (await table.check([Span(0, 0, None)]), await table.edges([0])):
        assert isinstance(found, Unknown)
        assert "could not ask all of its shards" in found.reason
