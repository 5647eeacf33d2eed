"""``gapstream gaps``: the list of what is missing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from stream_app.cli.client import REASONS, Filters, WorkerClient, with_filters
from stream_app.cli.main import with_json, with_worker_url
from stream_app.cli.output import Column, print_json, print_table
from stream_app.cli.status import NOTHING, replayable

_CAUSE = 6
_COLUMNS: Sequence[Column | str] = (
    "TOPIC", Column("PARTITION", "right"), "SINK", Column("FIRST", "right"), Column("LAST", "right"), Column("RECORDS", "right"), "CAUSE",
    "OPENED", "RECORDS FROM", "UNTIL", "REPLAYABLE FOR",
)  # fmt: skip


@click.command(
    epilog="""\b
Example:
  gapstream gaps --topic orders --sink warehouse
  gapstream gaps --cause not_received --json
  gapstream gaps --topic orders --partition 3 --all"""
)
@with_filters
@click.option("--all", "explained_too", is_flag=True, help="With explained ones.")
@with_json
@with_worker_url
def command(url: str, token: str | None, filters: Filters, explained_too: bool, as_json: bool) -> None:
    """List open gaps, by topic, partition, sink and offset; the whole list, however long. Sinks in no configuration have none."""
    client = WorkerClient(url, token)
    found = list(client.gaps(filters, explained_too=explained_too))
    if as_json:
        print_json({"gaps": found, "next": None})
        return
    now_ms = time.time_ns() // 1_000_000
    print_table(
        _COLUMNS,
        [_row(gap, now_ms) for gap in found],
        style_of=lambda row: None if row[_CAUSE] in REASONS else "red",
        empty="" if found else _why_none(client, filters, explained_too),
    )


def _why_none(client: WorkerClient, filters: Filters, explained_too: bool) -> str:
    sink = filters.sink
    if sink is not None:
        lines = client.listed(client.get("/api/status"), "status")
        standing = [line.get("configured") for line in lines if line.get("sink") == sink and filters.topic in (None, line.get("topic"))]
        if standing and not any(standing):
            return f"sink {sink} stands in no configuration, so its gaps are not listed; gapstream partitions --sink {sink} has its numbers"
    return "no such gaps" if filters or explained_too else "no open gaps; gapstream status says what is unknown"


def _row(gap: Mapping[str, Any], now_ms: int) -> list[object]:
    replay = replayable(gap.get("expires_at"), now_ms) if gap.get("cause") == "not_received" else NOTHING
    opened = NOTHING if gap.get("cause") in REASONS else gap.get("opened_at")
    names = ("topic", "partition", "sink", "first_offset", "last_offset", "count", "cause")
    return [*(gap.get(name) for name in names), opened, gap.get("first_timestamp"), gap.get("last_timestamp"), replay]
