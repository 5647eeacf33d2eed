"""What can go wrong for the one who runs a command, split by who must act.

::

    GapstreamError            one sentence that says what to do, and the exit code of the command
     +-- UsageError      2    the caller: an argument can't be right, whatever the world looks like
     +-- ConfigError     2    the caller: the configuration; carries every fault, one line each
     +-- Unavailable     3    whoever runs Kafka, the worker or a sink: it can't be reached, or refuses
     +-- CouldNotTell    3    nobody yet: it was asked, and the answer is "unknown"

A gap is a result, never an error; a defect of the program is an ``AssertionError`` or whatever Python raises, and keeps
its traceback. Errors of Kafka's clients become ``Unavailable`` at the command line
(:func:`stream_app.kafka.clients.is_kafka_error`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


class GapstreamError(Exception):
    """Something that was to be expected; ``str()`` is for people."""

    exit_code: ClassVar[int]
    """Of the command that it ends."""


class UsageError(GapstreamError):
    """The arguments can't be right."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in the configuration."""

    path: str
    """Where: keys from the top, joined by dots, as ``topics.orders.sinks.warehouse.every``; empty: the file as a whole."""
    message: str
    """What is wrong and what is allowed, in one line."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(GapstreamError):
    """The configuration can't be used; ``str()`` has one line per fault."""

    exit_code = 2

    def __init__(self, faults: Iterable[Fault]) -> None:
        """At least one fault."""
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class Unavailable(GapstreamError):
    """Something that must be asked can't be: no connection, no answer in time, or a refusal."""

    exit_code = 3


class CouldNotTell(GapstreamError):
    """It was asked, and what came back does not decide the question."""

    exit_code = 3
