"""The account that is kept of a table, compared with the table itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.campaign.clickhouse_truth import Expected, Loaded
from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import Made, Row, make


@pytest.fixture
def loaded(clickhouse: ClickHouse) -> Loaded:
    made = Made(ends={("orders", 0): 10})
    return Loaded(clickhouse, "orders", made)


def rows(*offsets: int, mark: str = "kept") -> list[Row]:
    return [Row("orders", 0, offset, 1_700_000_000_000, mark) for offset in offsets]


def test_what_is_gone_was_there_and_what_is_back_is_no_duplicate(loaded: Loaded) -> None:
    loaded.insert(rows(0, 1, 1, 3, 5))
    loaded.delete([("orders", 0, 1), ("orders", 0, 3), ("orders", 0, 4)])
    assert loaded.expected(("orders", 0), None, aside=True) == Expected({2, 4}, {1, 3}, {1}, 1, 6)
    assert (loaded.lost(), loaded.vanished()) == ([("orders", 0, 2), ("orders", 0, 4)], [("orders", 0, 1), ("orders", 0, 3)])
    loaded.insert(rows(1))
    assert loaded.expected(("orders", 0), None, aside=True) == Expected({2, 4}, {3}, {1}, 1, 6)


def test_a_sink_sees_what_its_condition_shows(loaded: Loaded) -> None:
    loaded.insert(rows(0, 2))
    loaded.insert(rows(1, 3, mark="hidden"))
    loaded.made.put_aside.extend(rows(5))
    loaded.put_aside()
    assert loaded.expected(("orders", 0), "kept", aside=False) == Expected({1}, set(), set(), 0, 3)
    assert loaded.expected(("orders", 0), None, aside=True) == Expected({4}, set(), set(), 0, 6)


def test_the_account_is_what_is_in_the_table(clickhouse: ClickHouse) -> None:
    rng = random.Random(random.randrange(1 << 30))
    made = make(rng, {"orders": 2}, 500)
    table = Loaded(clickhouse, "orders", made)
    for block in made.blocks:
        table.insert(block)
    table.delete(made.deleted)
    found = {key: Counter[int]() for key in made.ends}
    for topic, partition, offset, count in clickhouse.rows(
        "SELECT toString(__topic), __partition, __offset, count() FROM orders GROUP BY ALL"
    ):
        found[topic, partition][offset] = count
    assert found == table.rows
