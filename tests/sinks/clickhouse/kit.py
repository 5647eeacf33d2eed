from __future__ import annotations

from typing import Any

from stream_app.core.offsets import OffsetSet
from stream_app.sinks.clickhouse import Layout
from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import TINYBIRD


def layout(server: ClickHouse, names: tuple[str, ...] = TINYBIRD, **changed: Any) -> Layout:
    """Of the table ``orders``, with these columns."""
    topic, partition, offset, timestamp = names
    known = {
        "database": server.database,
        "table": "orders",
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
    }
    return Layout(**{**known, **changed})


def offsets(found: OffsetSet) -> set[int]:
    return {offset for first, stop in found.runs() for offset in range(first, stop)}
