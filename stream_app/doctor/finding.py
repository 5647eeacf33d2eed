"""One thing that was looked at, and how it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could, or not for long."""
    ERROR = "error"
    """It does not work."""
    UNKNOWN = "unknown"
    """It could not be asked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    level: Level
    about: str
    """Where: a path of the configuration, or the name of a topic."""
    message: str
    """What was found, in a sentence."""
    mend: str | None = None
    """What to do, in a sentence; None: nothing."""
    statement: str | None = None
    """A command or SQL that does it; None: there is none."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def ok(about: str, message: str) -> Finding:
    """It is as it should be."""
    return Finding(Level.OK, about, message)


def warning(about: str, message: str, mend: str | None = None, statement: str | None = None) -> Finding:
    """It works, but."""
    return Finding(Level.WARNING, about, message, mend, statement)


def error(about: str, message: str, mend: str | None = None, statement: str | None = None) -> Finding:
    """It does not work."""
    return Finding(Level.ERROR, about, message, mend, statement)


def unknown(about: str, message: str, mend: str | None = None, statement: str | None = None) -> Finding:
    """It could not be asked."""
    return Finding(Level.UNKNOWN, about, message, mend, statement)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing is wrong, 1: something is, 3: nothing is known to be, but not everything could be asked."""
    levels = {found.level for found in findings}
    return 1 if Level.ERROR in levels else 3 if Level.UNKNOWN in levels else 0
