"""``gapstream sink``: what can be done to a sink."""

from __future__ import annotations

import click

from stream_app.cli.client import WorkerClient
from stream_app.cli.main import with_json, with_worker_url
from stream_app.cli.output import print_json, print_line, text


@click.group(
    epilog="""\b
Example:
  gapstream sink drop orders billing

Options of a command: see gapstream sink drop --help."""
)
def command() -> None:
    """Forget a sink that left the configuration."""


@command.command(
    epilog="""\b
Example:
  gapstream sink drop orders billing
  gapstream sink drop orders billing --url http://worker-1:6066 --token "$TOKEN" """
)
@click.argument("topic")
@click.argument("sink")
@with_json
@with_worker_url
def drop(topic: str, sink: str, url: str, token: str | None, as_json: bool) -> None:
    """Forget now what is known of SINK for TOPIC: its gaps, its counters, its place in the listings.

    A sink that left the configuration is kept for app.forget_after, in case it comes back; this does not wait. What stands in a
    worker's configuration is refused: take it out and restart the workers first. Needs a token of scope write.
    """
    answer = WorkerClient(url, token).post("/api/sinks/drop", {"topic": topic, "sink": sink})
    if as_json:
        print_json(answer)
    else:
        count = answer.get("partitions")
        print_line(f"{text(sink)} is dropped from {text(count)} partition{'' if count == 1 else 's'} of {text(topic)}, within a second.")
