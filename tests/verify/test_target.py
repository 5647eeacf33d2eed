from __future__ import annotations

from typing import Any

import pytest

from stream_app.config import Config, load
from stream_app.errors import UsageError
from stream_app.sinks.clickhouse import ClickHouseTable, Layout, Unknown
from stream_app.verify.target import Chosen, Named, of_named, of_sink
from tests.support.clickhouse_kit import ClickHouse

FILE = """\
kafka: {bootstrap.servers: "broker:9092"}
defaults:
  clickhouse: {username: reader, password: "p'w", duplicates: final, where: shown, settings: {max_threads: 2}, tombstones: required}
topics:
  "/o.*/":
    sinks:
      billing: {type: consumer}
      warehouse:
        type: clickhouse
        url: https://c:8443
        database: db
        table: "{topic}_rows"
        columns: {preset: kafka_engine, timestamp: null}
        quarantine: {table: "{topic}_aside"}
        from: earliest
        duplicates: ignore
"""


@pytest.fixture
def config(tmp_path: Any) -> Config:
    (tmp_path / "gapstream.yaml").write_text(FILE)
    return load(tmp_path / "gapstream.yaml", {}, (), lambda line: None)


async def layout(chosen: Chosen, partitions: int = 1) -> Layout:
    table = await chosen.target(partitions)
    assert isinstance(table, ClickHouseTable)
    return table.layout


async def test_a_configured_sink(config: Config) -> None:
    chosen = of_sink(config, "orders", "warehouse")
    assert await layout(chosen) == Layout(
        "db", "orders_rows", "_offset", "_topic", "_partition", None, where="shown", quarantine="orders_aside", duplicates="ignore"
    )
    assert (chosen.name, chosen.floor, chosen.tombstones_optional) == ("db.orders_rows", "earliest", False)
    assert (chosen.client.url, chosen.client.username, chosen.client.password) == ("https://c:8443", "reader", "p'w")
    assert chosen.client.settings == {"max_threads": "2"}


@pytest.mark.parametrize(
    ("topic", "sink", "complaint"),
    [
        ("orders", "warehose", "has no sink warehose in the configuration: it has billing, warehouse"),
        ("payments", "warehouse", "it has none"),
        ("orders", "billing", "is a sink of type consumer"),
    ],
)
def test_a_sink_that_is_none(config: Config, topic: str, sink: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        of_sink(config, topic, sink)


@pytest.mark.parametrize(
    ("url", "columns", "complaint"),
    [
        ("localhost:8123", None, "--clickhouse must be an address"),
        ("http://c", "offset", "'offset' is no ROLE=NAME"),
        ("http://c", "ofset=x", "the roles are topic, partition, offset, timestamp"),
        ("http://c", "offset=", "is no ROLE=NAME"),
        ("http://c", "offset=null", "nothing can be compared"),
    ],
)
def test_what_can_not_be_meant(url: str, columns: str | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Named.of(url, "orders", columns)


def test_how_a_table_is_named() -> None:
    assert Named.of("http://c", "orders", None) == Named("http://c", "default", "orders", {})
    assert Named.of("http://c", "db.or.ders", "offset=o, topic=null") == Named("http://c", "db", "or.ders", {"offset": "o", "topic": None})


@pytest.mark.parametrize(
    ("columns", "given", "partitions", "expected"),
    [
        (
            "__topic String, __partition Int32, __offset Int64, __timestamp DateTime",
            None,
            4,
            ("__offset", "__topic", "__partition", "__timestamp"),
        ),
        ("_topic String, _partition Int32, _offset Int64, t DateTime", "timestamp=t", 4, ("_offset", "_topic", "_partition", "t")),
        ("__topic String, __partition Int32, __offset Int64", "topic=null", 4, ("__offset", None, "__partition", None)),
        ("p Int32, o Int64", "offset=o,partition=p", 4, ("o", None, "p", None)),
        ("kafka_offset Int64, id Int64", None, 1, ("kafka_offset", None, None, None)),
        ("kafka_offset Int64, id Int64", None, 4, ("kafka_offset", None, None, None)),
        ("id Int64", None, 4, ("__offset", None, None, None)),
    ],
)
async def test_columns_are_found_where_they_are_not_given(
    config: Config, clickhouse: ClickHouse, columns: str, given: str | None, partitions: int, expected: tuple[str | None, ...]
) -> None:
    clickhouse.run(f"CREATE TABLE orders ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    plain = config.model_copy(update={"defaults": Config().defaults})
    chosen = of_named(plain, "orders", Named.of(clickhouse.url, f"{clickhouse.database}.orders", given))
    found = await layout(chosen, partitions)
    assert (found.offset, found.topic, found.partition, found.timestamp) == expected
    await chosen.client.close()


async def test_defaults_stand_for_what_is_not_said(config: Config, clickhouse: ClickHouse) -> None:
    clickhouse.run("CREATE TABLE orders (__partition Int32, __offset Int64) ENGINE = MergeTree ORDER BY tuple()")
    chosen = of_named(config, "orders", Named.of(clickhouse.url, f"{clickhouse.database}.orders", None))
    found = await layout(chosen)
    assert (found.duplicates, found.where, chosen.tombstones_optional, chosen.floor) == ("final", "shown", False, "earliest")
    await chosen.client.close()


async def test_a_server_that_is_away_is_unknown(config: Config) -> None:
    chosen = of_named(config, "orders", Named.of("http://127.0.0.1:1", "orders", None))
    found = await chosen.target(1)
    assert isinstance(found, Unknown)
    assert "can't be reached" in found.reason
