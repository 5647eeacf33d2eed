"""Where a process forks, and where it ends.

In a forked child no thread of the parent is there, and none of its clients can be used, ours as little as the application's.
So everything begins anew: what was to be reported, and what consumers were handed, is the parent's to report.

At the end of the process what is left is sent, within a bound. multiprocessing ends its children without the interpreter's own
end, so there it is one of its finalizers that does the same.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Protocol
from weakref import WeakSet

EXIT_S = 2.0
"""What the end of the process may be delayed by, all sidecars together."""


class Ends(Protocol):
    """What has something to send at the end."""

    def close(self, timeout: float) -> None:
        """Send it, within ``timeout`` seconds."""

    def fault(self, kind: str, error: BaseException) -> None:
        """Take note that this failed."""


class Forks(Protocol):
    """What begins anew in a forked child."""

    def after_fork_in_child(self) -> None:
        """Called in the child, before anything else runs there."""


_ending: set[Ends] = set()
_forking: WeakSet[Forks] = WeakSet()
_finalized_in = 0
"""Process of multiprocessing's that has a finalizer of ours."""


def forks(one: Forks) -> None:
    """Have it begin anew in forked children, as long as it is there."""
    _forking.add(one)


def ends(one: Ends) -> None:
    """Have it closed where the process ends."""
    global _finalized_in
    _ending.add(one)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None and _finalized_in != os.getpid():
        _finalized_in = os.getpid()
        sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=0)


def has_ended(one: Ends) -> None:
    """It was closed."""
    _ending.discard(one)


def _close_all() -> None:
    deadline = time.monotonic() + EXIT_S
    for one in list(_ending):
        try:
            one.close(max(0.0, deadline - time.monotonic()))
        except Exception as error:
            one.fault("closing", error)


def _after_fork_in_child() -> None:
    _ending.clear()  # nothing was reported here yet
    for one in list(_forking):
        one.after_fork_in_child()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork_in_child)
