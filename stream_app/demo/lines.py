"""Lines of JSON between the command and its processes: what a process says on stdout, and what it is told on stdin."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any


class Outlet:
    """Writes one object a line to stdout, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, **fields: Any) -> None:
        """One line. Where nobody listens any more the process ends: its command is gone."""
        line = json.dumps(fields, separators=(",", ":")) + "\n"
        with self._lock:
            try:
                sys.stdout.write(line)
                sys.stdout.flush()
            except BrokenPipeError:
                os._exit(1)


def listen(told: Callable[[str], None], closed: Callable[[], None]) -> None:
    """Have each line of stdin handed to ``told`` by a thread, and ``closed`` called at its end."""

    def read() -> None:
        for line in sys.stdin:
            told(line.strip())
        closed()

    threading.Thread(target=read, name="stdin", daemon=True).start()
