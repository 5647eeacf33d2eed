"""A table as the file describes it, in the terms of those who ask it."""

from __future__ import annotations

from dataclasses import replace

from stream_app.config.sinks import ClickHouseKeys, ClickHouseSink
from stream_app.sinks.clickhouse import Layout
from stream_app.sinks.clickhouse.client import ClickHouseClient


def client_of(keys: ClickHouseKeys, url: str, query_s: float) -> ClickHouseClient:
    """A connection, not made yet; ``query_s``: how long a query may run where the keys' settings do not say."""
    return ClickHouseClient(url, keys.username, keys.password.get_secret_value(), keys.settings, keys.ca, query_s)


def layout_of(keys: ClickHouseKeys, database: str, table: str, offset: str) -> Layout:
    """What the keys say of a table whose offsets stand in this column; which other columns it has, they don't."""
    return Layout(
        database=database,
        table=table,
        offset=offset,
        where=keys.where,
        quarantine=None if keys.quarantine is None else keys.quarantine.table,
        duplicates=keys.duplicates,
        rows_per_record=keys.rows_per_record,
    )


def layout_of_sink(sink: ClickHouseSink) -> Layout:
    """Of a configured sink, with all its columns."""
    columns = sink.columns
    known = layout_of(sink, sink.database, sink.table, columns.offset)
    return replace(known, topic=columns.topic, partition=columns.partition, timestamp=columns.timestamp)
