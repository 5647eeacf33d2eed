"""Durations of the configuration: text such as ``500ms`` outside, integer milliseconds inside."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from stream_app.web.times import parse_duration

_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
DURATION_MAX_MS = 36_500 * 86_400_000
"""A hundred years: sums with a time in milliseconds stay far inside 64 bits."""


def read_duration(value: Any) -> int:
    """Milliseconds of a duration as the file has it.

    Raises:
        ValueError: not a duration, or longer than a hundred years.
    """
    if not isinstance(value, str):
        msg = f"{value!r} is not a duration: write a whole number and ms, s, m, h or d, as in 15m"
        raise ValueError(msg)  # pydantic takes ValueError for a value that is not allowed
    ms = parse_duration(value.strip())
    if ms > DURATION_MAX_MS:
        msg = f"{value!r} is too long: 36500d at most"
        raise ValueError(msg)
    return ms


def format_duration(ms: int) -> str:
    """The shortest text that :func:`read_duration` reads back as ``ms``: ``7d``, ``1500ms``, ``0s``."""
    if ms == 0:
        return "0s"
    for unit, size in _UNITS:
        if ms % size == 0:
            return f"{ms // size}{unit}"
    raise AssertionError(ms)


Duration = Annotated[
    int,
    BeforeValidator(read_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*\d{1,12}(ms|s|m|h|d)\s*$|\$\{", "examples": ["500ms", "15m", "7d"]}, mode="validation"
    ),
]
"""A field that reads a duration and holds integer milliseconds; its default is written in milliseconds."""
