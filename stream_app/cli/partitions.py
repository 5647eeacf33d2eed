"""``gapstream partitions``: one row per topic, partition and sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from stream_app.cli.client import Filters, WorkerClient, with_filters
from stream_app.cli.main import with_json, with_worker_url
from stream_app.cli.output import Column, print_json, print_table
from stream_app.cli.status import STYLES

_STATE = 3
_COLUMNS: Sequence[tuple[Column | str, str]] = (
    ("TOPIC", "topic"),
    (Column("PARTITION", "right"), "partition"),
    ("SINK", "sink"),
    ("STATE", "state"),
    (Column("LOG START", "right"), "log_start_offset"),
    (Column("READ", "right"), "log_read_offset"),
    (Column("END", "right"), "log_end_offset"),
    (Column("HORIZON", "right"), "horizon_offset"),
    (Column("RECORDS", "right"), "records"),
    (Column("ROWS", "right"), "rows"),
    (Column("MISSING", "right"), "missing"),
    (Column("LAG", "right"), "lag"),
    (Column("DUPLICATES", "right"), "duplicates"),
    ("COMPLETE THROUGH", "complete_through"),
    ("WORKER", "worker"),
)
"""What stands in a column, and its name in the answer."""


@click.command(
    epilog="""\b
Example:
  gapstream partitions --topic orders
  gapstream partitions --cause expired --json"""
)
@with_filters
@click.option("--all", "explained_too", is_flag=True, help="With --cause: rows where something is explained that way, too.")
@with_json
@with_worker_url
def command(url: str, token: str | None, filters: Filters, explained_too: bool, as_json: bool) -> None:
    """List topics, partitions and sinks, one row each. With --cause: those rows of which gapstream gaps lists one of that cause."""
    client = WorkerClient(url, token)
    rows = client.listed(client.get("/api/partitions", {"topic": filters.topic, "sink": filters.sink}), "partitions")
    if filters.partition is not None:
        rows = [row for row in rows if row.get("partition") == filters.partition]
    if filters.cause is not None:
        having = {_key(gap) for gap in client.gaps(filters, explained_too=explained_too)}
        rows = [row for row in rows if _key(row) in having]
    if as_json:
        print_json({"partitions": rows})
        return
    columns = [*(column for column, _ in _COLUMNS), "WHY"]
    print_table(columns, [_row(row) for row in rows], style_of=lambda row: STYLES.get(str(row[_STATE])), empty="no such rows")


def _key(one: Mapping[str, Any]) -> tuple[object, object, object]:
    return one.get("topic"), one.get("partition"), one.get("sink")


def _row(row: Mapping[str, Any]) -> list[object]:
    shown = {**row, "rows": "-" if row.get("rows") is None else row["rows"]}  # most sinks have none
    return [*(shown.get(name) for _, name in _COLUMNS), row.get("reason") or ""]
