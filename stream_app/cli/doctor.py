"""``gapstream doctor``: what is wrong, and how to mend it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import click

from stream_app.cli.main import with_config, with_json
from stream_app.cli.output import print_json, print_line, text

if TYPE_CHECKING:
    from stream_app.config import Config
    from stream_app.doctor import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "unknown": "magenta"}
_WIDTH = max(map(len, _STYLES))
_INDENT = " " * (_WIDTH + 2)


@click.command(
    epilog="""\b
Example:
  gapstream doctor -c gapstream.yaml
  gapstream doctor --json

\b
Exit codes: 0 nothing is wrong (there may be warnings), 1 something is, 2 usage or configuration,
3 nothing is known to be wrong, but not everything could be asked."""
)
@with_json
@with_config
def command(config: Config, as_json: bool) -> int:
    """Look at this machine, Kafka and the ClickHouse tables: a line for each thing, and how to mend what is wrong.

    Needs no worker, and changes nothing.
    """
    from stream_app.doctor import examine, exit_code

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it warns of is a finding
    found = asyncio.run(examine(config, _ignore if as_json else _print))
    code = exit_code(found)
    if as_json:
        print_json({"ok": {0: True, 1: False}.get(code), "findings": [one.as_json() for one in found]})
    else:
        counts = {level: sum(one.level == level for one in found) for level in ("error", "warning", "unknown")}
        print_line("", None)
        print_line(", ".join(_counted(count, level) for level, count in counts.items() if count) or "all is well")
    return code


def _counted(count: int, level: str) -> str:
    return f"{count} {level}" if count == 1 or level == "unknown" else f"{count} {level}s"


def _ignore(_: Finding) -> None:
    """It is printed at the end."""


def _print(found: Finding) -> None:
    print_line(f"{found.level:{_WIDTH}}  {text(found.about)}: {text(found.message)}", _STYLES[found.level])
    if found.mend is not None:
        print_line(f"{_INDENT}{text(found.mend)}")
    for line in (found.statement or "").splitlines():
        print_line(f"{_INDENT}  {text(line)}")
