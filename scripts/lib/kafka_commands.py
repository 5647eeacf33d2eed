"""What ``scripts/kafka`` does: clusters with a name, which outlive the command that started them."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from kafka_cluster import KafkaCluster
from kafka_jars import KAFKA_VERSION, KafkaError, locked
from kafka_process import destroy, named_cluster, read_facts

_EXAMPLE = """\
example:
  scripts/kafka start              one broker; fetches Kafka the first time
  eval "$(scripts/kafka env)"      sets GAPSTREAM_KAFKA=127.0.0.1:port
  scripts/kafka stop               ends it and removes its data
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit status: 0 done, 1 not done (one sentence on stderr), 2 wrong usage."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # so that a start that is told to end cleans up as for Ctrl-C
    command: Callable[[argparse.Namespace], None] = options.run
    try:
        command(options)
    except KafkaError as error:
        print(f"scripts/kafka: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/kafka: interrupted; nothing was left behind.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    description = f"Starts and stops a real Kafka {KAFKA_VERSION} on this machine: loopback, free ports, data that stop throws away."
    parser = argparse.ArgumentParser(
        prog="scripts/kafka", description=description, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="start | stop | env")
    for name, run, text in (
        ("start", _start, "start a cluster and wait until it serves clients"),
        ("stop", _stop, "end a cluster, also a crashed one, and remove its data"),
        ("env", _env, "print shell lines that point gapstream at the cluster"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", type=_name, default="default", help="which cluster, where several run (default: %(default)s)")
        command.set_defaults(run=run)
        if name == "start":
            command.add_argument("--brokers", type=_count, default=1, help="how many nodes (default: %(default)s)")
    return parser


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits, - and _")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 9")
    return int(text)


def _start(options: argparse.Namespace) -> None:
    directory = named_cluster(options.name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock(directory)):
        facts = read_facts(directory)
        if facts is not None:
            bootstrap, brokers = facts
            if brokers != options.brokers:
                raise KafkaError(f"Kafka {options.name!r} runs with {brokers} broker(s): stop it first with: {_command('stop', options)}")
            print(f"Kafka {KAFKA_VERSION} runs already at {bootstrap}; {_hint(options)}")
            return
        destroy(directory)  # what a crash left there
        cluster = KafkaCluster(options.brokers, directory=directory, guarded=False)
        cluster.start()
        size = "1 broker" if options.brokers == 1 else f"{options.brokers} brokers"
        print(f"Kafka {KAFKA_VERSION} with {size} is ready at {cluster.bootstrap} (log: {cluster.log_file(0)}); {_hint(options)}")


def _stop(options: argparse.Namespace) -> None:
    directory = named_cluster(options.name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock(directory)):
        existed = directory.exists()
        destroy(directory)
    print(f"Kafka {options.name!r} is stopped and its data is removed." if existed else f"No Kafka {options.name!r} was running.")


def _env(options: argparse.Namespace) -> None:
    facts = read_facts(named_cluster(options.name))
    if facts is None:
        raise KafkaError(f"No Kafka {options.name!r} is running: start it with: {_command('start', options)}")
    print(f"export GAPSTREAM_KAFKA={facts[0]}")


def _hint(options: argparse.Namespace) -> str:
    return f'for this shell: eval "$({_command("env", options)})"'


def _command(verb: str, options: argparse.Namespace) -> str:
    return f"scripts/kafka {verb}" + ("" if options.name == "default" else f" --name {options.name}")


def _lock(directory: Path) -> Path:
    return directory.with_name(directory.name + ".lock")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
