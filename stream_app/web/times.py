"""Times as JSON and people write them; inside, a time is an integer of milliseconds since the epoch."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_FIRST_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MS
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MS
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,12})(ms|s|m|h|d)", re.ASCII)
_AT_MS = re.compile(r"@(\d{1,16})", re.ASCII)
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)


def rfc3339(ms: int | None) -> str | None:
    """``2026-11-23T10:00:00.000Z`` for milliseconds since the epoch; None for None.

    A time outside the years 1 to 9999 is None too: a producer may stamp a record with any 64-bit number, and RFC 3339
    has no way to write those.
    """
    if ms is None or not _FIRST_MS <= ms <= _LAST_MS:
        return None
    return (_EPOCH + ms * _MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_duration(text: str) -> int:
    """Milliseconds of ``500ms``, ``2s``, ``15m``, ``24h`` or ``7d``.

    Raises:
        ValueError: the text is none of these; the message says what was expected.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a duration: write a whole number and ms, s, m, h or d, as in 15m")
    return int(found[1]) * _UNITS_MS[found[2]]


def parse_time(text: str, now_ms: int) -> int:
    """Milliseconds since the epoch of a TIME: RFC 3339, ``now``, ``-2h`` (so long before ``now_ms``) or ``@milliseconds``.

    Raises:
        ValueError: the text is none of these; the message says what was expected.
    """
    if text == "now":
        return now_ms
    if text.startswith("-"):
        return now_ms - parse_duration(text[1:])
    if found := _AT_MS.fullmatch(text):
        return int(found[1])
    # fromisoformat alone would take much that RFC 3339 does not, a time without a zone among them.
    if _RFC3339.fullmatch(text):
        try:
            return (datetime.fromisoformat(text.upper()) - _EPOCH) // _MS
        except ValueError as error:
            raise ValueError(f"{text!r} is not a time: {error}") from error
    raise ValueError(f"{text!r} is not a time: write 2026-11-23T10:00:00Z, now, -2h or @milliseconds")


def ago(ms: int | None, now_ms: int) -> str:
    """How long before ``now_ms``, for people: ``12s ago``, ``in 3h``; ``unknown`` for None."""
    if ms is None:
        return "unknown"
    return f"{span(now_ms - ms)} ago" if now_ms >= ms else f"in {span(ms - now_ms)}"


def span(ms: int) -> str:
    """A length of time for people, in its two largest units: ``3d 4h``, ``5m 2s``, ``800ms``."""
    if ms < 1_000:
        return f"{ms}ms"
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        count, ms = divmod(ms, _UNITS_MS[unit])
        if count or parts:
            parts.append(f"{count}{unit}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0"))
