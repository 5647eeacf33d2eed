"""``gapstream explain``: why an offset is what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from stream_app.cli.client import WorkerClient
from stream_app.cli.main import EXIT_COULD_NOT_TELL, with_json, with_worker_url
from stream_app.cli.output import UNKNOWN, Column, print_json, print_line, print_table, text
from stream_app.cli.status import NOTHING

TIMEOUT_SECONDS = 30.0
"""The worker asks Kafka, for a third of that at most."""
_OFFSETS = re.compile(r"(\d{1,19})(?:-(\d{1,19}))?", re.ASCII)
_VERDICT = 2
_STYLES = {"log_hole": "red", "unreadable": "red", "unread": "red", "unknown": "yellow", "open": "cyan", "ahead": "cyan"}
_RECORD_COLUMNS: Sequence[Column | str] = (Column("OFFSET", "right"), "TIME", Column("SIZE", "right"), "TOMBSTONE", "KEY")


class Offsets(click.ParamType):
    """``A`` or ``A-B``, both meant."""

    name = "offsets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """First and last."""
        if isinstance(value, tuple):
            return value
        found = _OFFSETS.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no offset and no range: write 15012 or 15012-15019", param, ctx)
        first = int(found[1])
        last = int(found[2] or found[1])
        if last < first:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return first, last


@click.command(
    epilog="""\b
Example:
  gapstream explain orders 3 15012
  gapstream explain orders 3 15012-15019 --sink warehouse --json

Exit codes: 0 told, 2 usage, 3 Kafka or the worker could not tell all of it."""
)
@click.argument("topic")
@click.argument("partition", type=click.IntRange(0, 2**31 - 1))
@click.argument("offsets", type=Offsets(), metavar="A[-B]")
@click.option("--sink", metavar="S", help="Only this sink; log is the log itself.")
@with_json
@with_worker_url
def command(url: str, token: str | None, topic: str, partition: int, offsets: tuple[int, int], sink: str | None, as_json: bool) -> int:
    """Say why offsets A to B (at most 10,000) of a partition are what they are, as Kafka shows them now and as the worker knows them.

    One line per run of offsets with the same verdict, evidence and states; then the records, as far as they can be listed.
    """
    first, last = offsets
    client = WorkerClient(url, token, timeout_s=TIMEOUT_SECONDS)
    asked: dict[str, str | int | None] = {"topic": topic, "partition": partition, "first": first, "last": last, "sink": sink}
    answer = client.get("/api/explain", asked)
    runs = client.listed(answer, "runs")
    if as_json:
        print_json(answer)
    else:
        _print(runs)
    return EXIT_COULD_NOT_TELL if _is_unknown(runs, sink) else 0


def _is_unknown(runs: Sequence[Mapping[str, Any]], sink: str | None) -> bool:
    """Whether some verdict is unknown, or some state of the sink that was asked for."""
    states = [] if sink is None else [run.get("sinks", {}).get(sink) for run in runs]
    return any(run.get("verdict") == UNKNOWN for run in runs) or UNKNOWN in states


def _print(runs: Sequence[Mapping[str, Any]]) -> None:
    sinks = sorted({name for run in runs for name in run.get("sinks", {})})
    columns = [Column("FIRST", "right"), Column("LAST", "right"), "VERDICT", *sinks, "BATCH", "PRODUCER", "WHY"]
    print_table(columns, [_row(run, sinks) for run in runs], style_of=lambda row: _STYLES.get(str(row[_VERDICT])))
    records = [record for run in runs for record in run.get("records", ())]
    if records:
        print_line("")
        print_table(_RECORD_COLUMNS, [_record(record) for record in records])
    if runs:
        print_line("")
        for line in _log(runs[0].get("evidence", {})):
            print_line(line)


def _row(run: Mapping[str, Any], sinks: Sequence[str]) -> list[object]:
    evidence, states = run.get("evidence", {}), run.get("sinks", {})
    told = [run.get("first_offset"), run.get("last_offset"), run.get("verdict"), *(states.get(sink) for sink in sinks)]
    return [*told, _batch(evidence), _producer(evidence), _why(evidence)]


def _batch(evidence: Mapping[str, Any]) -> str:
    if evidence.get("batch_base_offset") is None:
        return NOTHING
    holds = f"{evidence['batch_base_offset']}-{evidence.get('batch_last_offset')}, holds {text(evidence.get('record_count'))}"
    return f"{holds}, {evidence.get('compression')}, leader epoch {text(evidence.get('leader_epoch'))}"


def _producer(evidence: Mapping[str, Any]) -> str:
    if evidence.get("producer_id") is None:
        return NOTHING
    sequence = evidence.get("base_sequence")
    said = f"{evidence['producer_id']}, epoch {text(evidence.get('producer_epoch'))}"
    said += "" if sequence is None else f", sequence {sequence}"
    return said + (", transactional" if evidence.get("transactional") else "")


def _why(evidence: Mapping[str, Any]) -> str:
    was, marker = evidence.get("was"), evidence.get("marker")
    said = [marker and f"marker: {marker}", was and f"it was a {was}", evidence.get("reason"), evidence.get("truncated")]
    return "; ".join(one for one in said if one)


def _record(record: Mapping[str, Any]) -> list[object]:
    key, how = record.get("key"), record.get("key_encoding")
    shown = {"utf-8": key, "base64": f"{key} (base64)", "hidden": "(hidden: see http.show_keys)"}.get(str(how), NOTHING)
    return [record.get("offset"), record.get("timestamp"), record.get("size"), record.get("tombstone"), shown]


def _log(evidence: Mapping[str, Any]) -> list[str]:
    """What holds of the log as a whole."""
    start, stable, end, read = (
        text(evidence.get(name)) for name in ("log_start_offset", "last_stable_offset", "high_watermark", "log_read_offset")
    )
    lines = [
        f"log: starts at {start}, last stable offset {stable}, next to be written {end}, next to be read by gapstream {read}",
        f"topic: cleanup.policy {text(evidence.get('cleanup_policy'))}, id {text(evidence.get('topic_id'))}, {evidence.get('isolation')}",
    ]
    return lines + [f"{sink} is unknown in part: {why}" for sink, why in (evidence.get("unknown") or {}).items()]
