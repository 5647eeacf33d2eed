"""The entry: which commands there are, the options they share, and what becomes of errors.

A command is a click command named ``command`` in its module. It raises an error of :mod:`stream_app.errors`, or any error of a
Kafka client, and :func:`main` makes one sentence and an exit code of it; it returns its exit code, or None for 0.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

from stream_app.errors import GapstreamError
from stream_app.version import __version__

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("stream_app.cli.demo", "See it work: embedded broker, faulty pipeline, worker."),
    "worker": ("stream_app.cli.worker", "Run one worker: read the watched topics, fold observations, tell gaps."),
    "status": ("stream_app.cli.status", "Complete through when, and what is missing, per topic and sink."),
    "gaps": ("stream_app.cli.gaps", "List open gaps."),
    "partitions": ("stream_app.cli.partitions", "List topics, partitions and sinks, one row each."),
    "explain": ("stream_app.cli.explain", "Say why offsets are what they are: verdict, evidence, states, records."),
    "watch": ("stream_app.cli.watch", "Follow the alerts, one line per event."),
    "verify": ("stream_app.cli.verify", "Compare a topic with a ClickHouse table, once, without a worker."),
    "sink": ("stream_app.cli.sink", "Forget a sink that left the configuration."),
    "observe": ("stream_app.cli.observe", "Report what a sink has received, as lines on standard input."),
    "doctor": ("stream_app.cli.doctor", "Say what is wrong with configuration, Kafka and tables, and how to mend it."),
    "config": ("stream_app.cli.config_cmd", "Print the effective configuration, secrets masked."),
}
"""Name to module and one line of help, so that ``gapstream --help`` imports none of them."""
DEFAULT_URL = "http://127.0.0.1:6066"
EXIT_USAGE = 2
EXIT_COULD_NOT_TELL = 3
EXIT_INTERRUPTED = 130
"""128 and SIGINT, as shells count."""
EXIT_BROKEN_PIPE = 141
"""128 and SIGPIPE: whoever read the output went away."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None: there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Guesses what was meant where there is no such command."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and near:
            ctx.fail(f"No such command {args[0]!r}, is {near[0]} meant?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Example:
  gapstream demo
  gapstream worker -c gapstream.yaml
  gapstream status --url http://127.0.0.1:6066

Exit codes: 0 fine, 1 a difference was found, 2 usage or configuration, 3 could not tell.""",
)
@click.version_option(__version__, prog_name="gapstream", message="%(prog)s %(version)s")
def cli() -> None:
    """Find every Kafka record that a sink did not receive, offset by offset."""


# --- options that commands share --------------------------------------------------------------------------------------------


def config_options(function: F) -> F:
    """Give a command ``-c`` and ``-X``; its arguments are ``config_path: str | None`` and ``overrides: tuple[str, ...]``."""
    overrides = click.option(
        "-X", "overrides", multiple=True, metavar="PATH=VALUE", help="A setting by its path, as in -X kafka.client.id=me; may be repeated."
    )
    path = click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(dir_okay=False),
        envvar="GAPSTREAM_CONFIG",
        metavar="FILE",
        help="Configuration file; else GAPSTREAM_CONFIG, else ./gapstream.yaml where it is.",
    )
    return path(overrides(function))


def with_config(function: F) -> Callable[..., Any]:
    """Give a command ``-c`` and ``-X``, and the loaded :class:`~stream_app.config.Config` as its argument ``config``.

    What is probably a mistake is said on stderr; faults raise ConfigError.
    """

    @config_options
    @functools.wraps(function)
    def wrapper(*args: Any, config_path: str | None, overrides: Sequence[str], **kwargs: Any) -> Any:
        from stream_app.config import load

        return function(*args, config=load(config_path, os.environ, overrides, warn), **kwargs)

    return wrapper


def with_worker_url(function: F) -> Callable[..., Any]:
    """Give a command ``--url``, ``--token``, ``-c`` and ``-X``; its arguments are ``url: str`` and ``token: str | None``.

    Without ``--url`` the worker of the configuration on this machine is meant, where a configuration is found.
    """

    @click.option(
        "--url", envvar="GAPSTREAM_URL", metavar="URL", help=f"A worker; else GAPSTREAM_URL, else as configured, else {DEFAULT_URL}."
    )
    @click.option("--token", envvar="GAPSTREAM_TOKEN", metavar="TOKEN", help="Sent to the worker; else GAPSTREAM_TOKEN.")
    @config_options
    @functools.wraps(function)
    def wrapper(*args: Any, url: str | None, config_path: str | None, overrides: Sequence[str], **kwargs: Any) -> Any:
        return function(*args, url=(url or local_url(config_path, overrides)).rstrip("/"), **kwargs)

    return wrapper


def with_json(function: F) -> F:
    """Give a command ``--json``; its argument is ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, as the worker's HTTP answers have it.")(function)


def local_url(path: str | None, overrides: Sequence[str]) -> str:
    """Where the worker of a configuration answers, asked from the same machine.

    Raises:
        ConfigError: the section ``http`` has faults.
    """
    from stream_app.config import load_http

    http = load_http(path, os.environ, overrides)
    host = http.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass  # a name
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return f"{'http' if http.tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{http.port}"


# --- errors -----------------------------------------------------------------------------------------------------------------


def warn(line: str) -> None:
    """Say what is probably a mistake, and go on."""
    click.echo(f"warning: {line}", err=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None: of this process); the exit code."""
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        return _leave_quietly()
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=None if argv is None else list(argv), prog_name="gapstream", standalone_mode=False)
    except click.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        return _say(_sentence(error), error.exit_code)
    except GapstreamError as error:
        return _say(str(error), error.exit_code)
    except SystemExit as error:
        return _exit_code(error)
    except Exception as error:
        from stream_app.kafka.clients import describe_kafka_error, is_kafka_error

        if not is_kafka_error(error):
            raise
        return _say(describe_kafka_error(error), EXIT_COULD_NOT_TELL)
    return result if isinstance(result, int) else 0


def _exit_code(error: SystemExit) -> int:
    if isinstance(error.__context__, BrokenPipeError):  # click made an exit of it
        return _leave_quietly()
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else _say(str(error.code), 1)


def _say(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code


def _sentence(error: click.ClickException) -> str:
    """Click's message as one sentence that says where the usage is told."""
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError) or not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    return f"{message.rstrip('.')}; see {error.ctx.command_path} --help"


def _leave_quietly() -> int:
    """Nobody reads: keep the interpreter from complaining when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_BROKEN_PIPE
