"""How much of the machine others use, so that a figure taken on a busy machine can be told from one that counts.

Read from Linux' /proc (proc_stat(5), proc_pid_stat(5)); elsewhere the answer is None: unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_PROC = Path("/proc")
_IDLE = (3, 4)
"""Of the times in /proc/stat: idle and waiting for disks."""
_TIMES = 8
"""The ones behind them, of guests, are counted in those before already."""
Result = TypeVar("Result")


def others_percent(seconds: float) -> int | None:
    """Share of all processors that is used by other processes than this one and its children, over the next ``seconds``."""
    return watched(lambda: time.sleep(seconds))[1]


def watched(work: Callable[[], Result]) -> tuple[Result, int | None]:
    """What ``work`` gives, and the share of all processors that others used meanwhile, in percent."""
    before = _look()
    result = work()
    after = _look()
    if before is None or after is None:
        return result, None
    total, busy, own = (new - old for new, old in zip(after, before, strict=True))
    return result, round(100 * max(0, busy - own) / max(1, total))


def _look() -> tuple[int, int, int] | None:
    """Ticks since the start of the machine: all, not idle, and of this process with its children."""
    if not (_PROC / "stat").exists():
        return None
    times = [int(word) for word in (_PROC / "stat").read_text().splitlines()[0].split()[1 : 1 + _TIMES]]
    own = 0
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            own += _ticks_if_own(entry)
    return sum(times), sum(times) - sum(times[place] for place in _IDLE), own


def _ticks_if_own(process: Path) -> int:
    """User and system time, with that of children that ended, if it is this process or a child of it; else 0."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0  # it ended meanwhile
    is_own = process.name == str(os.getpid()) or fields[1] == str(os.getpid())
    return sum(int(field) for field in fields[11:15]) if is_own else 0
