"""What is told of a ClickHouse sink, by the engine itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stream_app.config import ClickHouseSink
from stream_app.doctor.finding import Finding, exit_code
from stream_app.doctor.tables import examine_table
from tests.support.clickhouse_kit import ClickHouse
from tests.support.faulty_proxy import FaultyProxy

ABOUT = "topics.orders.sinks.warehouse"
TYPES = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3, 'UTC')"
KEY = "MergeTree ORDER BY (__topic, __partition, __offset)"
ROWS = 1_000_000


@pytest.fixture
def proxy(clickhouse: ClickHouse) -> Iterator[FaultyProxy]:
    with FaultyProxy(clickhouse.url) as made:
        yield made


def create(server: ClickHouse, engine: str = KEY, types: str = TYPES, table: str = "orders") -> None:
    server.run(f"CREATE TABLE {table} ({types}) ENGINE = {engine}")


def fill(server: ClickHouse, rows: int = ROWS) -> None:
    """Offsets of one partition as they come: rising with the time."""
    server.run(f"INSERT INTO orders SELECT 'orders', 0, number, toDateTime64(1700000000 + number / 1000, 3, 'UTC') FROM numbers({rows})")


async def examine(
    server: ClickHouse, ends: dict[int, int] | None = None, url: str | None = None, now: dict[int, int] | None = None, **keys: Any
) -> list[Finding]:
    """``ends``: of the logs; ``now``: when they are asked once more."""
    given = {"type": "clickhouse", "url": url or server.url, "database": server.database, "table": "orders", **keys}
    before = {0: ROWS} if ends is None else ends

    async def ends_now() -> dict[int, int]:
        return before if now is None else now

    return await examine_table(ABOUT, "orders", ClickHouseSink.model_validate(given), before, ends_now)


def faults(found: list[Finding]) -> list[Finding]:
    assert {one.about for one in found} == {ABOUT}
    return [one for one in found if one.level != "ok"]


async def test_all_is_well(clickhouse: ClickHouse) -> None:
    create(clickhouse)
    fill(clickhouse)
    found = await examine(clickhouse)
    assert exit_code(found) == 0
    assert faults(found) == []
    said = "\n".join(one.message for one in found)
    assert "answers default" in said
    assert "is a MergeTree and can prove what it holds" in said
    assert "default may ask it what a worker asks" in said
    assert "no TTL removes rows" in said
    assert "a check uses an index: it reads 14 of 123 granules" in said


async def test_an_empty_table_is_well(clickhouse: ClickHouse) -> None:
    create(clickhouse)
    assert faults(await examine(clickhouse, {})) == []


@pytest.mark.parametrize(
    ("status", "code", "message", "level"),
    [
        (403, 516, "Authentication failed", "error"),
        (404, 81, "Database t does not exist", "error"),
        (500, 159, "Timeout exceeded", "error"),
    ],
)
async def test_a_server_that_refuses(clickhouse: ClickHouse, proxy: FaultyProxy, status: int, code: int, message: str, level: str) -> None:
    proxy.fail(status, code, message)
    (one,) = await examine(clickhouse, url=proxy.url)
    assert (one.level, message in one.message) == (level, True)
    assert one.mend


async def test_a_server_that_is_away_could_not_be_asked(clickhouse: ClickHouse) -> None:
    found = await examine(clickhouse, url="http://127.0.0.1:1")
    assert [(one.level, one.mend) for one in found] == [("unknown", "see url, and whether it is up")]
    assert exit_code(found) == 3


async def test_a_right_that_lacks_is_printed_as_the_statement_that_grants_it(clickhouse: ClickHouse, proxy: FaultyProxy) -> None:
    create(clickhouse)
    lacks = "SELECT(__partition, __offset) ON shop.orders"
    words = f"reader: Not enough privileges. To execute this query, it's necessary to have the grant {lacks}"
    proxy.forbid(b"groupBitmapState", 403, 497, words)
    *_, one = await examine(clickhouse, url=proxy.url)
    assert one.level == "error"
    assert one.statement == "GRANT SELECT(__partition, __offset) ON shop.orders TO `default`;"


async def test_a_table_that_is_hidden_or_not_there(clickhouse: ClickHouse) -> None:
    *_, one = await examine(clickhouse, quarantine={"table": "bad"})
    name = f"{clickhouse.database}.orders"
    assert (one.level, one.message[:33]) == ("error", f"ClickHouse has no table {name}"[:33])
    columns = "`__topic`, `__partition`, `__offset`"
    assert one.statement == "\n".join(
        f"GRANT SELECT({columns}) ON `{clickhouse.database}`.`{table}` TO `default`;" for table in ("orders", "bad")
    )


async def test_a_quarantine_table_that_is_not_there(clickhouse: ClickHouse) -> None:
    create(clickhouse)
    (one,) = faults(await examine(clickhouse, quarantine={"table": "bad"}))
    assert one.level == "error"
    assert "bad" in one.message
    assert one.mend == "see database and table"


async def test_a_column_that_is_not_there_or_of_a_type_that_holds_none(clickhouse: ClickHouse) -> None:
    create(clickhouse)
    (one,) = faults(await examine(clickhouse, columns={"partition": "shard"}))
    assert "orders has no column shard" in one.message
    (one,) = faults(await examine(clickhouse, columns={"offset": "__timestamp"}))
    assert "is of type DateTime64" in one.message
    (one,) = faults(await examine(clickhouse, where="nothing = 1"))
    assert "ClickHouse does not know a column" in one.message


async def test_a_table_that_can_prove_nothing_comes_with_the_statement_for_one_that_can(clickhouse: ClickHouse) -> None:
    create(clickhouse, "ReplacingMergeTree ORDER BY __timestamp")
    (one,) = faults(await examine(clickhouse))
    assert one.level == "error"
    assert "keep the offsets in a table of their own" in one.message
    assert "CREATE MATERIALIZED VIEW" in str(one.statement)


async def test_partitions_that_are_not_told_apart(clickhouse: ClickHouse) -> None:
    create(clickhouse)
    found = await examine(clickhouse, {0: 5, 1: 5}, columns={"partition": None})
    assert [one.mend for one in faults(found)] == ["name columns.partition"]


async def test_the_statement_that_is_printed_for_a_table_without_an_index_helps(clickhouse: ClickHouse) -> None:
    create(clickhouse, "MergeTree ORDER BY __timestamp", TYPES + ", message String")
    clickhouse.run(f"INSERT INTO orders SELECT 'orders', 0, number, toDateTime64(1700000000 + number, 3, 'UTC'), '' FROM numbers({ROWS})")
    (one,) = faults(await examine(clickhouse))
    assert (one.level, exit_code([one])) == ("warning", 0)
    assert "no index helps" in one.message
    for statement in str(one.statement).split(";\n"):
        clickhouse.run(statement.rstrip(";"), mutations_sync="2")
    found = await examine(clickhouse)
    assert faults(found) == []
    assert "a check uses an index: it reads 14 of 123 granules" in {one.message for one in found}


@pytest.mark.parametrize(
    ("ttl", "keys", "level", "words"),
    [
        ("toDateTime(__timestamp) + INTERVAL 30 DAY", {}, None, "its TTL keeps rows for 30d"),
        ("toDateTime(__timestamp) + INTERVAL 2 DAY", {}, "warning", "less than verify, 7d: sweeps go no further back"),
        ("toDateTime(__timestamp) + INTERVAL 1 MINUTE", {}, "error", "nothing can be judged"),
        ("if(__partition = 0, toDateTime(__timestamp), toDateTime('2100-01-01 00:00:00'))", {}, "warning", "nothing can be said"),
    ],
)
async def test_ttl(clickhouse: ClickHouse, ttl: str, keys: dict[str, Any], level: str | None, words: str) -> None:
    create(clickhouse, f"{KEY} TTL {ttl}")
    found = await examine(clickhouse, **keys)
    assert [one.level for one in faults(found)] == ([] if level is None else [level])
    assert [one.message for one in found if words in one.message], found


async def test_rows_of_another_topic_of_the_same_name(clickhouse: ClickHouse) -> None:
    create(clickhouse)
    fill(clickhouse)
    (one,) = faults(await examine(clickhouse, {0: 1_000}))
    assert (one.level, one.message) == (
        "error",
        f"{clickhouse.database}.orders has offset {ROWS - 1} of partition 0, whose log ends at 1000",
    )


@pytest.mark.parametrize("key", [KEY, "MergeTree ORDER BY tuple()"])
async def test_a_single_row_above_the_end_counts_but_not_one_that_was_written_meanwhile(clickhouse: ClickHouse, key: str) -> None:
    create(clickhouse, key)
    fill(clickhouse)
    said = f"{clickhouse.database}.orders has offset {ROWS - 1} of partition 0"
    assert f"{said}, whose log ends at {ROWS - 1}" in {one.message for one in await examine(clickhouse, {0: ROWS - 1})}
    assert not [one for one in await examine(clickhouse, {0: ROWS - 1}, now={0: ROWS}) if said in one.message]
    (one,) = [one for one in await examine(clickhouse, {0: ROWS - 1}, now={}) if said in one.message]
    assert one.level == "unknown"
