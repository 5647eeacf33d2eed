"""The processes of the demo: started, listened to, ended; all of what they say arrives in one queue."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from stream_app.demo import guard

STOP_SECONDS = 5.0
"""A worker takes up to 10 s to end cleanly; the state of this one is thrown away, so it is not waited for so long."""
OWN_VARIABLES = "GAPSTREAM"
"""The caller's settings are for the caller's workers: the demo's must not see them."""


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a process."""

    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process is gone."""

    name: str
    status: int
    """As of subprocess: negative where a signal did it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A signal reached the command itself."""

    number: int


Message = Said | Ended | Asked


class Crew:
    """Everything that must not outlive the command: its processes and its folder. Also a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gapstream-demo-"))
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._environment = _environment()
        self._guard_lock = threading.Lock()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(self.folder)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- starting -----------------------------------------------------------------------------------------------------

    def start(self, name: str, arguments: Sequence[str], *, speaks: bool, listens: bool = False) -> int:
        """Start ``python ARGUMENTS``; its process id. ``speaks``: it says lines of JSON; else its output goes to its log.

        ``listens``: to lines on stdin, whose end ends it; else a signal does.
        """
        with self._log(name).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
                stdout=subprocess.PIPE if speaks else log,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the command, which then ends the others in order
            )
        self._tell_guard(f"+{process.pid}")
        self._processes[name] = process
        threading.Thread(target=self._follow, args=(name, process), name=name, daemon=True).start()
        return process.pid

    def _follow(self, name: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            self._messages.put(Said(name, json.loads(line)))
        status = process.wait()
        self._tell_guard(f"-{process.pid}")
        self._messages.put(Ended(name, status))

    def _tell_guard(self, line: str) -> None:
        assert self._guard.stdin is not None
        with self._guard_lock, contextlib.suppress(BrokenPipeError, ValueError):  # the guard is gone, or the command ends
            self._guard.stdin.write(line + "\n")
            self._guard.stdin.flush()

    # --- listening ----------------------------------------------------------------------------------------------------

    def tell(self, name: str, line: str) -> None:
        """Write a line to the stdin of a process; if it is gone, a message says so already."""
        stdin = self._processes[name].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(line + "\n")
            stdin.flush()

    def messages(self, timeout_s: float) -> Iterator[Message]:
        """The next message and all that are there with it; none if none comes in time."""
        with contextlib.suppress(Empty):
            yield self._messages.get(timeout=max(timeout_s, 0.0))
            while True:
                yield self._messages.get_nowait()

    def runs(self, name: str) -> bool:
        """Whether the process is there now."""
        return self._processes[name].poll() is None

    def last_words(self, name: str) -> str:
        """The last line that the process wrote to its log; empty: nothing."""
        lines = self._log(name).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Have SIGINT, SIGTERM and SIGHUP arrive as messages."""

        def asked(number: int, _frame: object) -> None:
            self._messages.put(Asked(number))  # SimpleQueue's put may be called from a signal handler

        before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- ending -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes, each in its own way, at the latest after ``STOP_SECONDS`` by force; remove the folder."""
        for process in self._processes.values():
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            else:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        self._guard.wait()


def _environment() -> dict[str, str]:
    """The caller's, without what configures a worker; modules are found wherever the processes run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    root = str(Path(__file__).resolve().parents[2])
    if root == os.getcwd():  # found because the command was started there
        paths.append(root)
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment
