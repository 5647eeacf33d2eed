"""The processes and the folder of a cluster, found by the folder's path alone.

A broker is recognised by the path of its properties file in its command line: no process id is kept on disk, and no
foreign process can be hit by one that was given out anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from kafka_jars import KafkaError

PROPERTIES = "server.properties"
_FACTS = "cluster.json"
_KILL_S = 10.0
"""How long a process may take to go after SIGKILL; one that is stuck in the kernel takes longer."""


def named_cluster(name: str) -> Path:
    """Folder of the cluster that ``scripts/kafka start --name NAME`` runs."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return (state / "gapstream" / "kafka" / name).resolve()


def broker_directory(directory: Path, broker: int) -> Path:
    """Where the properties and the data of one broker are."""
    return directory / f"broker-{broker}"


def write_facts(directory: Path, bootstrap: str, brokers: int) -> None:
    """Note that the cluster in ``directory`` is complete and how to reach it."""
    (directory / _FACTS).write_text(json.dumps({"bootstrap": bootstrap, "brokers": brokers}))


def read_facts(directory: Path) -> tuple[str, int] | None:
    """Bootstrap address and number of brokers of the cluster in ``directory``; None if none runs there completely."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        facts = json.loads((directory / _FACTS).read_text())
        if len(_processes_of(directory)) == facts["brokers"]:
            return str(facts["bootstrap"]), int(facts["brokers"])
    return None


def destroy(directory: Path) -> None:
    """Kill every process of the cluster in ``directory`` and remove the folder; needs nothing but the path.

    Safe to repeat, and safe from two processes at once.
    """
    deadline = time.monotonic() + _KILL_S
    while (running := _processes_of(directory)) and time.monotonic() < deadline:
        for process in running:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the kill
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    if running:
        raise KafkaError(f"Kafka's processes {running} do not end although they were killed: look at them with ps.")
    try:
        while directory.exists():
            with contextlib.suppress(FileNotFoundError):  # another process removes it too
                shutil.rmtree(directory)
    except OSError as error:
        raise KafkaError(f"Kafka's folder {directory} could not be removed, remove it yourself: {error}") from error


def guard(directory: Path) -> None:
    """Wait until whoever holds the other end of stdin is gone, then destroy the cluster in ``directory``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what ends the owner often reaches its children too
    sys.stdin.buffer.read()
    destroy(directory)


def start_guard(directory: Path) -> subprocess.Popen[bytes]:
    """A process that calls ``guard``; closing its stdin, or the end of this process, sets it off."""
    code = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import kafka_process; kafka_process.guard(pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-I", "-S", "-c", code, str(Path(__file__).resolve().parent), str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _processes_of(directory: Path) -> list[int]:
    """Ids of the live processes that were started with a properties file inside ``directory``."""
    prefix = f"{directory}/broker-"
    command_lines = _linux_command_lines() if Path("/proc/self/cmdline").exists() else _posix_command_lines()
    return [
        process
        for process, arguments in command_lines
        if any(argument.startswith(prefix) and argument.endswith("/" + PROPERTIES) for argument in arguments)
    ]


def _linux_command_lines() -> Iterable[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")


def _posix_command_lines() -> Iterable[tuple[int, list[str]]]:
    done = subprocess.run(["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        process, _, command = line.strip().partition(" ")
        # ps joins the arguments with blanks. The properties file comes last, and its path begins at the last " /".
        yield int(process), [command[command.rfind(" /") + 1 :]]
