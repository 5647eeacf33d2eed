"""``gapstream partitions``: one row per topic, partition and sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from stream_app.cli.client import WorkerClient, with_filters
from stream_app.cli.main import with_json, with_worker_url
from stream_app.cli.output import Column, print_json, print_table
from stream_app.cli.status import STYLES

_STATE = 3
_COLUMNS: Sequence[Column | str] = (
    "TOPIC", Column("PARTITION", "right"), "SINK", "STATE", Column("LOG START", "right"), Column("READ", "right"), Column("END", "right"),
    Column("HORIZON", "right"), Column("MISSING", "right"), Column("LAG", "right"), Column("DUPLICATES", "right"), "COMPLETE THROUGH", "WORKER",
    "WHY",
)  # fmt: skip


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
def command(
    url: str,
    token: str | None,
    topic: str | None,
    partition: int | None,
    sink: str | None,
    cause: str | None,
    explained_too: bool,
    as_json: bool,
) -> None:
    """List topics, partitions and sinks, one row each. With --cause: those rows that have a gap of that cause."""
    client = WorkerClient(url, token)
    rows = client.listed(client.get("/api/partitions", {"topic": topic, "sink": sink}), "partitions")
    if partition is not None:
        rows = [row for row in rows if row["partition"] == partition]
    if cause is not None:
        asked = {"topic": topic, "partition": partition, "sink": sink, "cause": cause, "all": 1 if explained_too else None}
        having = {_key(gap) for page in client.gaps(asked) for gap in page}
        rows = [row for row in rows if _key(row) in having]
    if as_json:
        print_json({"partitions": rows})
        return
    print_table(_COLUMNS, [_row(row) for row in rows], style_of=lambda row: STYLES.get(str(row[_STATE])), empty="no such rows")


def _key(one: Mapping[str, Any]) -> tuple[str, int, str]:
    return one["topic"], one["partition"], one["sink"]


def _row(row: Mapping[str, Any]) -> list[object]:
    names = (
        "topic", "partition", "sink", "state", "log_start_offset", "log_read_offset", "log_end_offset", "horizon_offset", "missing", "lag",
        "duplicates", "complete_through", "worker",
    )  # fmt: skip
    return [*(row[name] for name in names), row["reason"] or ""]
