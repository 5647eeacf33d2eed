"""Which tests need servers that nobody can start here, and whether they are given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

FOLDER = "tests/clickhouse_server"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "test_t52_a_server_with_the_kafka_engine_that_is_killed": ("CLICKHOUSE_URL", "CLICKHOUSE_KILL"),
    "test_t55_a_replica_whose_fetches_are_stopped": ("CLICKHOUSE_URL", "CLICKHOUSE_REPLICA_URL"),
    "test_t56_a_shard_that_is_down": ("CLICKHOUSE_URL", "CLICKHOUSE_CLUSTER"),
}
"""Tests of ``FOLDER`` and the variables of the environment that they need; its module says what stands in them."""


def lacking(test: str) -> tuple[str, ...]:
    """Variables that a test needs and that are not set; of any other test: none."""
    return tuple(name for name in NEEDS.get(test, ()) if not os.environ.get(name))


def not_run() -> Iterator[str]:
    """A line for each test that is not run."""
    for test in NEEDS:
        if names := lacking(test):
            yield f"not run: {FOLDER}: {test}: needs {' and '.join(names)}"
