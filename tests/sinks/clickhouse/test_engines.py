from __future__ import annotations

import pytest

from stream_app.sinks.clickhouse.engines import Table, complaint, distributed_over, key_columns, retention, split_top
from stream_app.sinks.clickhouse.layout import Layout, Retention

LAYOUT = Layout("db", "orders", "__offset", "__topic", "__partition", "__timestamp")
DAY_MS = 86_400_000


def table(engine: str, full: str = "", key: str = "") -> Table:
    return Table("db", "orders", engine, full or engine, key)


KEY = "__topic, __partition, __offset"


@pytest.mark.parametrize(
    ("engine", "key", "proves"),
    [
        ("MergeTree", "id", True),
        ("ReplicatedMergeTree", "id", True),
        ("SharedMergeTree", "id", True),
        ("Memory", "", True),
        ("ReplacingMergeTree", KEY, True),
        ("SharedReplacingMergeTree", f"id, {KEY}", True),
        ("ReplacingMergeTree", "__partition, __offset", False),
        ("ReplicatedReplacingMergeTree", "id", False),
        ("ReplacingMergeTree", "__topic, __partition, intDiv(__offset, 100)", False),
        ("AggregatingMergeTree", KEY, True),
        ("ReplicatedAggregatingMergeTree", "__topic, __partition", False),
        ("CoalescingMergeTree", "id", False),
        ("SummingMergeTree", KEY, False),
        ("ReplicatedCollapsingMergeTree", KEY, False),
        ("VersionedCollapsingMergeTree", KEY, False),
        ("Kafka", "", False),
        ("S3Queue", "", False),
        ("Null", "", False),
        ("PostgreSQL", "", False),
        ("EmbeddedRocksDB", KEY, False),
    ],
)
def test_which_tables_prove_what_they_hold(engine: str, key: str, proves: bool) -> None:
    assert (complaint(table(engine, key=key), LAYOUT) is None) is proves


def test_the_key_needs_only_the_columns_that_there_are() -> None:
    alone = Layout("db", "orders", "__offset", None, "__partition")
    assert complaint(table("ReplacingMergeTree", key="`__partition`, `__offset`"), alone) is None


def test_a_table_that_takes_records_away_is_named_as_one() -> None:
    assert "takes records away" in (complaint(table("Kafka"), LAYOUT) or "")


def test_columns_of_a_key() -> None:
    assert key_columns("a, `odd, \\` name`, tuple(b, c), cityHash64(d)") == {"a", "odd, ` name", "tuple(b, c)", "cityHash64(d)"}
    assert split_top("f('a, b', (c, d)), e") == ["f('a, b', (c, d))", "e"]
    assert split_top("'it\\'s, so', x") == ["'it\\'s, so'", "x"]


@pytest.mark.parametrize(
    ("full", "over"),
    [
        ("Distributed('main', 'db', 'orders_local', rand())", ("db", "orders_local")),
        ("Distributed(main, db, orders_local)", ("db", "orders_local")),
        ("Distributed('main', currentDatabase(), 'x')", None),
    ],
)
def test_what_a_distributed_table_is_over(full: str, over: tuple[str, str] | None) -> None:
    assert distributed_over(table("Distributed", full)) == over


@pytest.mark.parametrize(
    ("ttl", "expected"),
    [
        ("", Retention()),
        ("toDateTime(__timestamp) + toIntervalDay(7)", Retention(7 * DAY_MS)),
        ("__timestamp + toIntervalHour(36)", Retention(36 * 3_600_000)),
        ("`__timestamp` + toIntervalWeek(2)", Retention(14 * DAY_MS)),
        ("toDateTime64(__timestamp, 3) + toIntervalMinute(90)", Retention(5_400_000)),
        ("toDate(__timestamp) + toIntervalMonth(1)", Retention(27 * DAY_MS)),
        ("toDateTime(__timestamp) + toIntervalYear(1) DELETE", Retention(365 * DAY_MS)),
        ("__timestamp + toIntervalDay(30), __timestamp + toIntervalDay(3) WHERE id > 5", Retention(3 * DAY_MS)),
        ("__timestamp + toIntervalDay(30) GROUP BY id SET x = max(x)", Retention(30 * DAY_MS)),
        ("__timestamp + toIntervalDay(1) TO VOLUME 'cold', __timestamp + toIntervalDay(2) RECOMPRESS CODEC(ZSTD(17))", Retention()),
        ("__timestamp + toIntervalDay(1) TO DISK 'cold', __timestamp + toIntervalDay(90)", Retention(90 * DAY_MS)),
        ("inserted_at + toIntervalDay(30)", Retention(30 * DAY_MS, "inserted_at")),
        ("toDate(inserted_at) + toIntervalDay(30), __timestamp + toIntervalDay(40)", Retention(29 * DAY_MS, "inserted_at")),
        ("expires_at", Retention(unreadable="expires_at")),
        ("toStartOfMonth(__timestamp) + toIntervalMonth(2)", Retention(unreadable="toStartOfMonth(__timestamp) + toIntervalMonth(2)")),
        ("__timestamp + toIntervalDay(days)", Retention(unreadable="__timestamp + toIntervalDay(days)")),
    ],
)
def test_how_long_rows_are_kept(ttl: str, expected: Retention) -> None:
    full = "MergeTree ORDER BY id" + (f" TTL {ttl}" if ttl else "") + " SETTINGS index_granularity = 8192"
    assert retention([table("MergeTree", full)], "__timestamp") == expected


def test_the_strictest_of_several_tables_counts() -> None:
    fulls = [f"MergeTree ORDER BY id TTL __timestamp + toIntervalDay({days})" for days in (9, 4, 6)]
    assert retention([table("View"), *(table("MergeTree", full) for full in fulls)], "__timestamp") == Retention(4 * DAY_MS)
