"""Log lines of a worker: ours as they are, those of the libraries below only where they matter, none of them in floods."""

from __future__ import annotations

import logging
import sys
import time

import structlog

REPEAT_SECONDS = 60.0
"""The same message of a library is passed on once in this time: brokers that are away are one line a minute, not a hundred."""
NOISY = ("aiokafka", "faust", "mode", "librdkafka", "asyncio", "stream_app")
"""``stream_app``: Mode names the loggers of our services after their modules, and reports every start and stop."""
ORDINARY = ("NotLeaderForPartitionError", "LeaderNotAvailableError", "CoordinatorNotAvailableError", "it is rebalancing")
"""Leadership moves, groups rebalance: libraries retry by themselves and still call it an error. At ``debug`` it is shown."""


class OncePerMinute(logging.Filter):
    """Lets a library's message (by its template) pass once per minute, and not at all what is ordinary."""

    def __init__(self) -> None:
        """One for all the libraries' loggers."""
        super().__init__()
        self._passed: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it may pass now."""
        if any(word in record.getMessage() for word in ORDINARY):
            return False
        what = (record.name, str(record.msg)[:60])
        now = time.monotonic()
        if now - self._passed.get(what, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        self._passed[what] = now
        return True


def configure(level: str, as_json: bool) -> None:
    """Log to stderr; ``level`` is for our own lines, libraries log warnings and errors (everything at ``debug``)."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    text = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=30)
    renderer = structlog.processors.JSONRenderer() if as_json else text
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=number, force=True)
    if number > logging.DEBUG:
        handler.addFilter(_LibrariesOnly(OncePerMinute()))
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _LibrariesOnly(logging.Filter):
    def __init__(self, inner: logging.Filter) -> None:
        super().__init__()
        self._inner = inner

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.startswith("gapstream") or bool(self._inner.filter(record))
