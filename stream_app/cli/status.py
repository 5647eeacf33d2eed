"""``gapstream status``: the answer in a few lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from stream_app.cli.client import WorkerClient
from stream_app.cli.main import with_json, with_worker_url
from stream_app.cli.output import UNKNOWN, Column, print_json, print_line, print_table, text
from stream_app.web.times import ago, parse_time, span

NOTHING = "-"
STYLES = {"unknown": "yellow", "gaps": "red", "catching_up": "cyan", "stalled": "yellow"}
_STATE = 2
_COLUMNS: Sequence[Column | str] = (
    "TOPIC", "SINK", "STATE", "COMPLETE THROUGH", Column("MISSING", "right"), "IN PARTITIONS", "SINCE", "REPLAYABLE FOR",
    Column("LAG", "right"), "WHY",
)  # fmt: skip


@click.command(
    epilog="""\b
Example:
  gapstream status
  gapstream status --url http://worker-1:6066 --token "$TOKEN" --json"""
)
@with_json
@with_worker_url
def command(url: str, token: str | None, as_json: bool) -> None:
    """Complete through when, how much is missing where and since when, what is unknown and why: per topic and sink."""
    client = WorkerClient(url, token)
    answer = client.get("/api/status")
    if as_json:
        print_json(answer)
        return
    lines = client.listed(answer, "status")
    now_ms = time.time_ns() // 1_000_000
    print_table(
        _COLUMNS,
        [_row(line, now_ms) for line in lines],
        style_of=lambda row: STYLES.get(str(row[_STATE])),
        empty="no topic is watched: see topics in the configuration",
    )
    if lines:
        print_line("")
        print_line(*_sum_up(lines))


def _row(line: Mapping[str, Any], now_ms: int) -> list[object]:
    missing, complete = line.get("missing"), line.get("complete_through")
    where, partitions = text(line.get("partitions_with_gaps")), text(line.get("partitions"))
    since, left = (text(line.get("oldest_gap_opened_at")), replayable(line.get("expires_at"), now_ms)) if missing else (NOTHING, NOTHING)
    return [
        line.get("topic"),
        line.get("sink") if line.get("configured") else f"{line.get('sink')} (in no file)",
        line.get("state"),
        complete and f"{complete} ({ago(parse_time(complete, now_ms), now_ms)})",
        missing,
        f"{where} of {partitions}",
        UNKNOWN if missing is None else since,
        UNKNOWN if missing is None else left,
        line.get("lag"),
        line.get("reason") or "",
    ]


def replayable(expires_at: str | None, now_ms: int) -> str:
    """How long a missing record can still be read from Kafka."""
    if expires_at is None:
        return UNKNOWN
    left_ms = parse_time(expires_at, now_ms) - now_ms
    return span(left_ms) if left_ms > 0 else "past"


def _sum_up(lines: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """One sentence over everything, and its style; nobody is alerted of sinks that stand in no file, so they don't count."""
    lines = [line for line in lines if line.get("configured")]
    missing = sum(line.get("missing") or 0 for line in lines)
    partitions = sum(line.get("partitions_with_gaps") or 0 for line in lines)
    sinks = sum(bool(line.get("missing")) for line in lines)
    unknown = sum(line.get("state") == "unknown" for line in lines)
    known = " known to be" if unknown else ""
    said = f"1 record is{known} missing" if missing == 1 else f"{missing or ('no' if unknown else 0)} records are{known} missing"
    if missing:
        said += f", in {partitions} partition{'s' if partitions != 1 else ''} of {sinks} of {len(lines)} sinks"
    if unknown:
        said += f"; {unknown} of {len(lines)} sinks {'are' if unknown != 1 else 'is'} unknown"
    return f"{said}.", "bold red" if missing else "bold yellow" if unknown else "bold green"
