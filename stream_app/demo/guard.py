"""Ends what the demo started when the demo is gone, however it went: its pipe to this process closes then.

Run as ``python -I -S guard.py FOLDER``; imports nothing but the standard library, so that it is there at once. Lines of
stdin: ``+PID`` a process was started, ``-PID`` it has ended. At the end of stdin those that are left are killed, and FOLDER
is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys


def main(folder: str) -> int:
    """Until stdin ends."""
    running: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        (running.add if line.startswith("+") else running.discard)(pid)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):  # it went by itself
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
