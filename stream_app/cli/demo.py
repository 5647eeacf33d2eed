"""``gapstream demo``: see it work with nothing installed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from stream_app.demo.plan import SECONDS_MIN

if TYPE_CHECKING:
    from stream_app.demo.run import View
    from stream_app.demo.state import Outcome

JSON_SECONDS = 30
SEED_MAX = 2**63 - 1


@click.command(
    epilog="""\b
Example:
  gapstream demo
  gapstream demo --seconds 30 --json --seed 7

Exit codes: 0 everything injected was detected and nothing else, 1 not (the reason is on stderr), 2 usage."""
)
@click.option(
    "--seconds",
    type=click.IntRange(SECONDS_MIN, 86_400),
    metavar="N",
    help=f"End N seconds after everything runs. Default: {JSON_SECONDS} with --json, else never.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end: what was injected, what was detected.")
@click.option("--seed", type=click.IntRange(0, SEED_MAX), metavar="S", help="Repeat the faults of an earlier run. Default: a random one.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), metavar="P", help="Port of the worker's HTTP API on 127.0.0.1. Default: a free one."
)
def command(seconds: int | None, as_json: bool, seed: int | None, port: int | None) -> int:
    """See it work with nothing installed.

    Starts an embedded Kafka broker, an embedded ClickHouse, a producer, an application that loses, delays, repeats, quarantines
    and deletes records by chance, and a worker; a detector that knows nothing of these faults finds them in the alerts topic.
    """
    from stream_app.demo.run import choose, run

    options = choose(JSON_SECONDS if seconds is None and as_json else seconds, seed, port)
    if not options.clickhouse:
        click.echo("gapstream demo: there is no table without ClickHouse; pip install 'gapstream[demo]' adds one", err=True)
    with contextlib.ExitStack() as stack:
        view = _view(as_json, stack)
        outcome = run(options, view)
    _print(outcome, as_json)
    return 0 if outcome.failure is None else 1


def _view(as_json: bool, stack: contextlib.ExitStack) -> View:
    from stream_app.demo import screen

    if as_json:
        return screen.Quiet()
    return stack.enter_context(screen.Screen()) if screen.is_terminal() else screen.Lines()


def _print(outcome: Outcome, as_json: bool) -> None:
    from stream_app.cli.output import print_json_line

    if as_json:
        print_json_line(outcome.as_json())
    else:
        state = outcome.state
        done, told = sum(state.done.values()), sum(state.told.values())
        click.echo(f"{state.produced} records, {done} faults injected, {told} of them detected; repeat them with --seed {state.seed}")
    if outcome.failure is not None:
        click.echo(f"gapstream demo: {outcome.failure}", err=True)
