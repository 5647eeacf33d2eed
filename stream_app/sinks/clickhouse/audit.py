"""The small table that keeps the offsets of a table which does not, or which loses rows when it merges."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stream_app.sinks.clickhouse.columns import ROLES
from stream_app.sinks.clickhouse.layout import Layout
from stream_app.sinks.clickhouse.statements import name

KAFKA_TABLE = "your_kafka_table"
"""Stands where the table of the Kafka engine is not known."""
_IDENTIFIER = r"(?:`(?:[^`\\]|\\.)+`|\w+)"
_FROM = re.compile(rf"\bFROM\s+((?:{_IDENTIFIER}\.)?{_IDENTIFIER})")


def of_kafka_table(layout: Layout, source: str | None) -> str:
    """Statements for a table fed by the Kafka engine; ``source``: its table as SQL has it, None where it is not known.

    The view filters nothing: a record that another view leaves out did arrive all the same.
    """
    selected = ", ".join(
        f"{column} AS __{role}" for role, column in zip(ROLES, ("_topic", "_partition", "_offset", "_timestamp_ms"), strict=True)
    )
    return _statements(layout, selected, source or f"{name(layout.database)}.{KAFKA_TABLE}")


def of_rows(layout: Layout) -> str:
    """Statements for a table whose rows have their offsets when they are inserted, and lose them when they are merged."""
    columns = {role: getattr(layout, role) for role in ROLES}
    selected = ", ".join(f"{name(column)} AS __{role}" for role, column in columns.items() if column is not None)
    return _statements(layout, selected, f"{name(layout.database)}.{name(layout.table)}")


def _statements(layout: Layout, selected: str, source: str) -> str:
    audit = f"{name(layout.database)}.{name(layout.table + '_offsets')}"
    view = f"{name(layout.database)}.{name(layout.table + '_offsets_mv')}"
    return (
        f"CREATE TABLE {audit}\n(\n"
        "    __topic LowCardinality(String),\n    __partition Int32,\n    __offset Int64,\n    __timestamp Nullable(DateTime64(3, 'UTC'))\n"
        ")\nENGINE = MergeTree\nORDER BY (__topic, __partition, __offset);\n"
        f"CREATE MATERIALIZED VIEW {view} TO {audit} AS\nSELECT {selected}\nFROM {source};"
    )


def source_of(views: Iterable[tuple[str, str]], layout: Layout) -> str | None:
    """Where a materialized view takes the table's rows from: the only one of ``views`` that writes into it.

    ``views``: ``create_table_query`` and ``as_select`` of each view; the answer is as SQL has it. None: none, or several.
    """
    table = rf"`?{re.escape(layout.table)}`?"
    target = re.compile(rf"\bTO (?:`?{re.escape(layout.database)}`?\.)?{table}[\s(]")
    found = {match[1] for query, select in views if target.search(query) and (match := _FROM.search(select))}
    return found.pop() if len(found) == 1 else None
