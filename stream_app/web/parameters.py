"""Parameters of a question, as they stand in its query."""

from __future__ import annotations

from collections.abc import Mapping

Query = Mapping[str, str]
_YES, _NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})


class BadRequest(Exception):
    """A parameter is wrong; the message says what would be right."""


def text(query: Query, name: str) -> str | None:
    """A parameter's value; an empty one counts as not given."""
    return query.get(name) or None


def flag(query: Query, name: str, *, bare: bool = False) -> bool:
    """A yes or no, no where it isn't given; ``bare``: the name alone means yes."""
    value = query.get(name)
    if value is None:
        return False
    if value == "":
        return bare
    if value.lower() in _YES | _NO:
        return value.lower() in _YES
    raise BadRequest(f"{name}={value} is neither 1 nor 0")


def number(query: Query, name: str, lowest: int, highest: int) -> int | None:
    """A whole number within bounds; None where it isn't given."""
    value = text(query, name)
    if value is None:
        return None
    # isdecimal with isascii: int() alone takes "1_000", "+1" and digits of other scripts.
    if value.isascii() and value.isdecimal() and len(value) <= 19 and lowest <= int(value) <= highest:
        return int(value)
    raise BadRequest(f"{name}={value} is not a whole number from {lowest} to {highest}")
