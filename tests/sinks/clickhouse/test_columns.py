from __future__ import annotations

import pytest

from stream_app.sinks.clickhouse.audit import source_of
from stream_app.sinks.clickhouse.columns import bare_type, find, fits
from stream_app.sinks.clickhouse.layout import Layout

TINYBIRD = {
    "__topic": "LowCardinality(String)",
    "__partition": "Int16",
    "__offset": "Int64",
    "__timestamp": "DateTime",
    "__value": "String",
}
KAFKA_ENGINE = {"_topic": "LowCardinality(String)", "_partition": "UInt64", "_offset": "UInt64", "_timestamp": "Nullable(DateTime)"}


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (TINYBIRD, ("__topic", "__partition", "__offset", "__timestamp")),
        (KAFKA_ENGINE, ("_topic", "_partition", "_offset", "_timestamp")),
        (KAFKA_ENGINE | TINYBIRD, ("__topic", "__partition", "__offset", "__timestamp")),
        ({"kafka_offset": "Int64", "kafka_partition": "Int32", "topic": "String"}, (None, "kafka_partition", "kafka_offset", None)),
        (
            {"topic": "String", "partition": "Int32", "offset": "Nullable(Int64)", "timestamp": "String"},
            ("topic", "partition", "offset", None),
        ),
        (
            {"kafkaTopic": "String", "kafkaPartition": "Int32", "kafkaOffset": "Int64"},
            ("kafkaTopic", "kafkaPartition", "kafkaOffset", None),
        ),
    ],
)
def test_columns_are_found_by_their_usual_names(columns: dict[str, str], names: tuple[str | None, ...]) -> None:
    assert find(columns, one_partition=False) == dict(zip(("topic", "partition", "offset", "timestamp"), names, strict=True))


def test_offsets_alone_say_enough_of_one_partition_only() -> None:
    assert find({"offset": "Int64", "id": "UInt64"}, one_partition=False) is None
    assert find({"offset": "Int64", "id": "UInt64"}, one_partition=True) == {
        "topic": None,
        "partition": None,
        "offset": "offset",
        "timestamp": None,
    }
    assert find({"offset": "String", "id": "UInt64"}, one_partition=True) is None


def test_types_are_looked_at_without_their_wrappers() -> None:
    assert bare_type("LowCardinality(Nullable(String))") == "String"
    assert bare_type("SimpleAggregateFunction(max, Nullable(UInt64))") == "UInt64"
    assert bare_type("Nullable(DateTime64(3, 'UTC'))") == "DateTime64(3, 'UTC')"
    assert fits("topic", "Enum8('orders' = 1)")
    assert fits("timestamp", "Nullable(DateTime64(3, 'UTC'))")
    assert not fits("offset", "Float64")
    assert not fits("offset", "Int128")


@pytest.mark.parametrize(
    ("views", "source"),
    [
        ([], None),
        ([("CREATE MATERIALIZED VIEW db.v TO db.orders (`id` UInt64) AS SELECT id FROM db.queue", "SELECT id FROM db.queue")], "db.queue"),
        ([("CREATE MATERIALIZED VIEW db.v TO db.orders AS ...", "SELECT id FROM db.`odd.queue` WHERE x")], "db.`odd.queue`"),
        ([("CREATE MATERIALIZED VIEW db.v TO db.orders_old AS ...", "SELECT id FROM db.queue")], None),
        ([(f"CREATE MATERIALIZED VIEW db.v{n} TO db.orders AS ...", f"SELECT id FROM db.queue{n}") for n in range(2)], None),
    ],
)
def test_where_the_rows_come_from(views: list[tuple[str, str]], source: str | None) -> None:
    assert source_of(views, Layout("db", "orders", "__offset")) == source
