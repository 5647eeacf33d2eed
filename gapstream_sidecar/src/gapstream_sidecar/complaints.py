"""Logging that can't flood: inside somebody else's program a fault is said once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LOGGER = logging.getLogger("gapstream_sidecar")
CLIENT_LOGGER = logging.getLogger("gapstream_sidecar.librdkafka")
INTERVAL_S = 60.0
"""Between two lines of one kind."""


class Complaints:
    """Says each kind of fault at once, and then at most once a minute with the number of those not said."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def say(self, kind: str, text: str, *, error: BaseException | None = None) -> None:
        """Log ``text`` as a warning, unless this kind was said within the last minute.

        ``error``: its traceback goes with it.
        """
        now = self._clock()
        said = self._said.get(kind)
        if said is not None and now - said < INTERVAL_S:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            return
        self._said[kind] = now
        unsaid = self._unsaid.pop(kind, 0)
        more = f" ({unsaid} more like this since it was last said)" if unsaid else ""
        LOGGER.warning("%s%s", text, more, exc_info=error)


class OncePerMinute(logging.Filter):
    """Lets one record a minute through: librdkafka repeats itself every second while brokers are away."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is logged."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + INTERVAL_S
        return True


if not any(isinstance(one, OncePerMinute) for one in CLIENT_LOGGER.filters):
    CLIENT_LOGGER.addFilter(OncePerMinute())
