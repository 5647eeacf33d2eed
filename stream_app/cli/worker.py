"""`gapstream worker`: run until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import click

from stream_app.cli.main import with_config
from stream_app.config import Config
from stream_app.errors import ConfigError, Fault


@click.command(
    epilog="""\b
Example:
  gapstream worker -c gapstream.yaml
  GAPSTREAM_CONFIG=gapstream.yaml GAPSTREAM__HTTP__PORT=6067 gapstream worker --log-format json
"""
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@with_config
def command(config: Config, log_level: str, log_format: str) -> None:
    """Run one worker: read the watched topics, fold observations, tell gaps.

    Several workers with the same app.id share the partitions; give each an instance, a port and a state folder of its own.
    SIGTERM and Ctrl-C end it cleanly within 10 s.
    """
    from stream_app.service.logs import configure
    from stream_app.service.run import PortInUseError, StateFolderError, check_port, find_patterns, run, state_folder

    _refuse_what_does_not_run_yet(config)
    configure(log_level, log_format == "json")
    with contextlib.ExitStack() as stack:
        try:
            check_port(config.http.host, config.http.port)
            stack.enter_context(state_folder(Path(config.app.state_dir), config.app.id))
        except (PortInUseError, StateFolderError) as exc:
            path, _, message = str(exc).partition(": ")
            raise ConfigError([Fault(path, message)]) from exc
        from stream_app.service.app import create_app

        async def main() -> int:
            existing = await find_patterns(config)
            return 0 if existing is None else await run(create_app(config, existing))

        status = asyncio.run(main())
    raise SystemExit(status)


def _refuse_what_does_not_run_yet(config: Config) -> None:
    from stream_app.config import unsupported

    faults = unsupported(config)
    if faults:
        raise ConfigError(faults)
