"""The command as somebody calls it: the real worker, pipeline and detector on the embedded broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 30.0


class Demo:
    """One running ``gapstream demo``; its temporary files are in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        # Settings of the person who runs the tests must not reach the demo's worker: this one would end it.
        environment = os.environ | {"TMPDIR": str(self.temporary), "GAPSTREAM__HTTP__PORT": "no port"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stream_app", "demo", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def worker(self) -> int:
        """Process id of the worker."""
        return int(eventually(lambda: next((pid for pid, command in self.processes() if "-m stream_app worker -c" in command), None)))

    def processes(self) -> list[tuple[int, str]]:
        """Process ids and command lines of all that works for this demo."""
        listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        return [(int(pid), args) for pid, parent, args in rows if int(parent) == self.process.pid or str(self.temporary) in args]

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit status, stdout, stderr."""
        out, err = self.process.communicate(timeout=100)
        return self.process.returncode, out, err

    def traces(self) -> object:
        """What is left of it: processes and files."""
        return [*self.processes(), *self.temporary.iterdir()]


def eventually(found: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """The first truthy value of ``found``."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, value
        time.sleep(0.05)
    return value


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str) -> Demo:
            demo = Demo(tmp_path, *arguments)
            stack.callback(demo.process.wait)
            stack.callback(demo.process.kill)
            return demo

        yield begin


def test_all_that_was_injected_is_detected_and_nothing_else(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "22", "--json", "--seed", "5")
    status, out, err = demo.end()
    assert err == ""
    (line,) = out.splitlines()
    found = json.loads(line)
    assert list(found) == ["ok", "seed", "injected", "detected"]
    assert found["injected"] == found["detected"]
    assert found["injected"] == sorted(
        found["injected"], key=lambda fault: (fault["topic"], fault["partition"], fault["first_offset"], fault["kind"])
    )
    counts = Counter(fault["kind"] for fault in found["injected"])
    assert set(counts) == {"lost", "late", "duplicate", "quarantined", "vanished"}
    assert (found["ok"], found["seed"], status) == (True, 5, 0)
    assert demo.traces() == []


def test_without_its_worker_it_fails_at_once_and_says_why(start: Callable[..., Demo]) -> None:
    demo = start("--seconds", "22", "--json", "--seed", "5")
    os.kill(demo.worker(), signal.SIGKILL)
    status, out, err = demo.end()
    assert status == 1
    assert json.loads(out) == {"ok": False, "seed": 5, "injected": [], "detected": []}
    assert err == "gapstream demo: the worker was killed by SIGKILL; without it nothing can be compared, so run the demo again\n"
    assert demo.traces() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whatever_ends_it_nothing_is_left_behind(start: Callable[..., Demo], number: signal.Signals) -> None:
    demo = start("--seconds", "20")
    demo.worker()
    demo.process.send_signal(number)
    status, out, err = demo.end()
    assert status == (-9 if number is signal.SIGKILL else 1)
    assert "Traceback" not in out + err
    assert eventually(lambda: demo.traces() == [], 12)


def test_a_port_that_is_taken_is_refused_before_anything_starts(start: Callable[..., Demo]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = start("--port", str(port)).end()
    assert (status, out) == (2, "")
    assert err == f"port {port} can't be used (Address already in use): name another one, or leave --port out\n"
