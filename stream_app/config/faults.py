"""From pydantic's errors to lines for people: the path as the file has it, what is wrong, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from stream_app.config.reading import Keys
from stream_app.config.shape import Shape
from stream_app.durations import format_duration, read_duration

_MAPPING = "must hold keys, as in {key: value}"
_PHRASES: Mapping[str, str] = {
    "missing": "is required",
    "string_type": "must be text: put it in quotes",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_from_float": "must be a whole number",
    "tuple_type": "must be a list, as in [a, b]",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "string_too_short": "is empty",
    "too_short": "is empty",
}


def locate(error: Mapping[str, Any], root: Shape) -> Keys:
    """The path of an error, without what pydantic adds: tags of unions, and ``[key]`` for a key itself."""
    path: Keys = ()
    shape: Shape | None = root
    for part in error["loc"]:
        word = str(part)
        if shape is not None and shape.tags is not None:
            shape = shape.tags.get(word)
        elif word != "[key]":
            path = (*path, word)
            shape = None if shape is None else shape.child(word)
    if error["type"].startswith("union_tag"):
        path = (*path, "type")
    return path


def explain(error: Mapping[str, Any], path: Keys, root: Shape, values: Any) -> str:
    """What is wrong and what is allowed, in one line."""
    kind, given = error["type"], error.get("ctx", {})
    if error["input"] is None and kind.endswith("_type"):
        return "can't be null: give it a value, or leave it out for its default"
    if kind == "extra_forbidden":
        return _unknown_key(path, root, values)
    if kind == "union_tag_not_found":
        return f"is required: {_alternatives(given['expected_tags'] if 'expected_tags' in given else _tags(path, root, values))}"
    if kind == "union_tag_invalid":
        return f"{given['tag']!r} is none of {_alternatives(given['expected_tags'])}"
    if kind == "literal_error":
        return f"must be {_alternatives(given['expected'])}"
    if kind in ("greater_than_equal", "less_than_equal"):
        word, bound = ("at least", given.get("ge")) if kind == "greater_than_equal" else ("at most", given.get("le"))
        return f"must be {word} {_bound(bound, path, values)}"
    if kind == "value_error":
        return str(given["error"])
    if kind == "string_type" and not isinstance(error["input"], int | float):
        return "must be text"
    return _PHRASES.get(kind) or _plain(error["msg"])


def _plain(message: str) -> str:
    return " ".join(message.split())


def _alternatives(expected: str) -> str:
    return expected.replace("'", "").replace(" or ", ", ")


def shape_at(path: Keys, root: Shape, values: Any) -> Shape | None:
    """The shape at a path; of a union the member that ``values`` choose by their ``type``."""
    shape: Shape | None = root
    for key in path:
        if shape is None:
            return None
        shape = _chosen(shape, values).child(key)
        values = below(values, key)
    return None if shape is None else _chosen(shape, values)


def _chosen(shape: Shape, values: Any) -> Shape:
    if shape.tags is None or not isinstance(values, dict):
        return shape
    return shape.tags.get(str(values.get("type")), shape)


def below(values: Any, key: str) -> Any:
    """The value below a key; None where there is none."""
    if isinstance(values, dict):
        return values.get(key)
    if isinstance(values, list) and key.isdecimal() and int(key) < len(values):
        return values[int(key)]
    return None


def _tags(path: Keys, root: Shape, values: Any) -> str:
    shape = shape_at(path[:-1], root, values)
    return ", ".join((shape.tags if shape is not None else None) or ())


def _unknown_key(path: Keys, root: Shape, values: Any) -> str:
    shape = shape_at(path[:-1], root, values)
    known = list((shape.fields if shape is not None else None) or ())
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"is no setting here{f', is {near[0]} meant?' if near else ''}; allowed: {', '.join(known)}"


def _bound(bound: Any, path: Keys, values: Any) -> str:
    """A bound in the words of the value: durations have units."""
    value = values
    for key in path:
        value = below(value, key)
    try:
        read_duration(value)
    except ValueError:
        return str(bound)
    return format_duration(int(bound))
