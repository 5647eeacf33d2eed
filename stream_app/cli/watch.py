"""``gapstream watch``: the alert stream, read from Kafka itself, so that it needs no worker."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from stream_app.cli.client import Filters, with_filters
from stream_app.cli.main import warn, with_config, with_json
from stream_app.cli.output import print_json_line, print_line, text
from stream_app.web.times import parse_time

if TYPE_CHECKING:
    from stream_app.alerts import AlertEvent, Fold
    from stream_app.config import Config

STYLES = {"critical": "red", "warning": "yellow"}


class _Time(click.ParamType):
    """A TIME argument; becomes milliseconds since the epoch."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_time(str(value), time.time_ns() // 1_000_000)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    epilog="""\b
Example:
  gapstream watch -c gapstream.yaml
  gapstream watch --from -2h --topic orders
  gapstream watch --from 2026-11-23T10:00:00Z --no-follow --json"""
)
@click.option(
    "--from", "from_ms", type=_Time(), help="Begin here: RFC 3339, now, -2h or @milliseconds; else now, with --no-follow the oldest event."
)
@click.option("--follow/--no-follow", default=True, help="Wait for more at the end, or stop there.")
@with_filters
@with_json
@with_config
def command(config: Config, from_ms: int | None, follow: bool, filters: Filters, as_json: bool) -> None:
    """Print the alert events as they are told, one line each; Ctrl-C ends it."""
    from stream_app.alerts import Fold, subscribe
    from stream_app.kafka.clients import KafkaClients

    if from_ms is None and follow:
        from_ms = time.time_ns() // 1_000_000
    fold = Fold(from_start=from_ms is None)
    events = subscribe(
        KafkaClients(config.kafka).confluent(),
        config.app.id,
        from_time_ms=from_ms,
        follow=follow,
        fold=fold,
        on_malformed=warn,
        on_trouble=_say_once(),
    )
    told = 0
    for event in events:
        told = _tell_faults(fold, told)
        if filters.mean(event):
            _print(event, as_json)


def _say_once() -> Callable[[str], None]:
    """Warns of the same trouble once, until there is another."""
    last: list[str] = []

    def say(trouble: str) -> None:
        if last != [trouble]:
            last[:] = [trouble]
            warn(f"{trouble}; trying again")

    return say


def _tell_faults(fold: Fold, told: int) -> int:
    """Warn of holes that were not told yet; how many are told now."""
    for hole in fold.holes[told:]:
        topic, partition, sink = hole.key
        which = f"event {hole.first} is" if hole.first == hole.last else f"events {hole.first} to {hole.last} are"
        warn(f"{which} not in the topic, of {topic}/{partition}/{sink}: retention took what was there, or nothing ever was")
    return len(fold.holes)


def _print(event: AlertEvent, as_json: bool) -> None:
    if as_json:
        print_json_line(json.loads(event.to_json()))
        return
    print_line(_line(event), STYLES.get(event.severity))
    sys.stdout.flush()  # into a pipe too, an event is seen when it is told


def _line(event: AlertEvent) -> str:
    """When, how bad, what, where; then what of the rest there is."""
    parts = [text(event.detected_at), event.severity.ljust(8), event.type.ljust(16), f"{event.topic}/{event.partition}/{event.sink}"]
    if event.first_offset is not None and event.last_offset is not None:
        parts.append(str(event.first_offset) if event.first_offset == event.last_offset else f"{event.first_offset}-{event.last_offset}")
    if event.count is not None:
        parts.append(f"{event.count} record{'s' if event.count != 1 else ''}")
    parts += [part for part in (event.cause, event.reason, event.by and f"by {event.by}") if part]
    if event.open is not None:
        parts.append(f"(open: {event.open.count} in {event.open.gaps} gap{'s' if event.open.gaps != 1 else ''})")
    return text("  ".join(parts))
