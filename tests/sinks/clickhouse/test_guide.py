"""The guide's queries on random tables: what they find is what a walk over the rows finds."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import Key, Made, Row, fill, make

GUIDE = Path(__file__).resolve().parents[2] / "data" / "guide"
TABLE = "your_kafka_data_source"
MINUTE_MS = 60_000


@pytest.fixture
def made(clickhouse: ClickHouse) -> Made:
    """Records of the last ten minutes, from an offset that is not 0 on."""
    start_ms = int(time.time() * 1000) - 8 * MINUTE_MS
    found = make(random.Random(random.randrange(1 << 30)), {"orders": 3, "payments": 2}, 2_000, first=900, start_ms=start_ms)
    fill(clickhouse, found, TABLE)
    return found


def ask(clickhouse: ClickHouse, name: str) -> list[tuple[Any, ...]]:
    return clickhouse.rows((GUIDE / f"{name}.sql").read_text())


def rows_of(made: Made) -> dict[Key, list[Row]]:
    """The rows that are in the table, by offset."""
    gone = set(made.deleted)
    found: dict[Key, list[Row]] = {}
    for block in made.blocks:
        for row in block:
            if (row.topic, row.partition, row.offset) not in gone:
                found.setdefault((row.topic, row.partition), []).append(row)
    return {key: sorted(found[key], key=lambda row: row.offset) for key in sorted(found)}


def gaps(made: Made) -> Iterator[tuple[Key, Row, Row]]:
    """The rows before and behind each gap."""
    for key, rows in rows_of(made).items():
        yield from ((key, one, other) for one, other in pairwise(rows) if other.offset - one.offset > 1)


def at(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{time_ms % 1000:03}"


def test_there_is_a_query_for_every_pipe() -> None:
    pipes = {"missing_offsets", "offset_gaps", "missing_offsets_alert", "find_gaps", "offset_stats", "offsets"}
    assert {file.stem for file in GUIDE.glob("*.sql")} == pipes


def test_offsets(clickhouse: ClickHouse, made: Made) -> None:
    rows = [(row.topic, row.partition, row.offset, at(row.time_ms)) for some in rows_of(made).values() for row in some]
    assert sorted(ask(clickhouse, "offsets")) == sorted(rows)


def test_missing_offsets(clickhouse: ClickHouse, made: Made) -> None:
    expected = [
        (*key, rows[0].offset, rows[-1].offset, len(rows), lacking)
        for key, rows in rows_of(made).items()
        if (lacking := rows[-1].offset - rows[0].offset + 1 - len(rows)) > 0
    ]
    assert sorted(ask(clickhouse, "missing_offsets")) == expected
    alerts = ask(clickhouse, "missing_offsets_alert")
    assert [row[2] for row in alerts] == sorted((row[5] for row in expected), reverse=True)
    times = {key: (at(min(row.time_ms for row in rows)), at(max(row.time_ms for row in rows))) for key, rows in rows_of(made).items()}
    assert sorted(row[:8] for row in alerts) == sorted(
        (topic, partition, lacking, low, high, count, *times[topic, partition]) for topic, partition, low, high, count, lacking in expected
    )


def test_gaps(clickhouse: ClickHouse, made: Made) -> None:
    found = list(gaps(made))
    assert ask(clickhouse, "offset_gaps") == [(*key, a.offset + 1, b.offset, b.offset - a.offset - 1) for key, a, b in found]
    assert ask(clickhouse, "find_gaps") == [
        (*key, a.offset + 1, b.offset - 1, b.offset - a.offset - 1, at(b.time_ms)) for key, a, b in found
    ]  # fmt: skip


def test_offset_stats(clickhouse: ClickHouse, made: Made) -> None:
    by_minute: dict[tuple[int, str, int], list[int]] = {}
    for key, rows in rows_of(made).items():
        for row in rows:
            by_minute.setdefault((-(row.time_ms // MINUTE_MS), *key), []).append(row.offset)
    expected = [
        (at(-minute * MINUTE_MS)[:-4], topic, partition, low, high, len(some), high - low + 1, high - low + 1 - len(some))
        for (minute, topic, partition), some in sorted(by_minute.items())
        for low, high in [(min(some), max(some))]
    ]
    assert ask(clickhouse, "offset_stats") == expected
