"""Settings from outside the file: ``GAPSTREAM__HTTP__PORT=6067`` in the environment, ``-X http.port=6067`` as a flag."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stream_app.config.reading import Finding, Keys, Verbatim, parse
from stream_app.config.shape import Shape, find_dotted, find_loose

PREFIX = "GAPSTREAM__"


@dataclass(slots=True)
class Overlaid:
    """The file's values with what came from outside put over them."""

    values: Any
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origins: dict[Keys, str] = field(default_factory=dict)
    """Path to where its value came from, for those that are not the file's."""


def overlay(root: Shape, values: Any, environ: Mapping[str, str], flags: Iterable[str]) -> Overlaid:
    """Put the environment over the file's values, and the flags over both."""
    done = Overlaid(values if values is not None else {})
    if not isinstance(done.values, dict):
        return done
    for name in sorted(environ):
        if name.startswith(PREFIX):
            _take_variable(done, root, name, environ[name])
    for flag in flags:
        _take_flag(done, root, flag)
    return done


def _take_variable(done: Overlaid, root: Shape, name: str, text: str) -> None:
    path = find_loose(root, done.values, name.removeprefix(PREFIX).split("__"))
    if not path:
        done.warnings.append(f"the environment variable {name} means no setting and is ignored{_guess(root, name)}")
        return
    _set(done, root, path, text, f"environment variable {name}", verbatim=True)


def _guess(root: Shape, name: str) -> str:
    words = name.removeprefix(PREFIX).lower().split("__")
    shape: Shape | None = root
    for index, word in enumerate(words):
        if shape is None or shape.kind != "section":
            return ""
        if word not in (shape.fields or {}):
            near = difflib.get_close_matches(word, shape.fields or {}, n=1)
            return f": is {PREFIX}{'__'.join([*words[:index], *near, *words[index + 1 :]]).upper()} meant?" if near else ""
        shape = shape.child(word)
    return ""


def _take_flag(done: Overlaid, root: Shape, flag: str) -> None:
    name, equals, text = flag.partition("=")
    if not equals or not name:
        done.findings.append(Finding((), f"-X {flag}: write it as -X http.port=6067, a path and its value"))
        return
    path = find_dotted(root, done.values, name)
    if path is None:
        hint = f": is -X kafka.{name} meant?" if name.split(".")[0] not in (root.fields or {}) else ""
        done.findings.append(Finding((), f"-X {name}: there is no such setting{hint}"))
        return
    _set(done, root, path, text, f"-X {name}", verbatim=False)


def _set(done: Overlaid, root: Shape, path: Keys, text: str, origin: str, *, verbatim: bool) -> None:
    shape: Shape | None = root
    for key in path:
        assert shape is not None
        shape = shape.child(key)
    assert shape is not None
    value: Any = Verbatim(text) if verbatim else text
    if shape.holds_more:
        source = parse(text, origin, path)
        done.findings += source.findings
        value = _verbatim(source.values) if verbatim else source.values
    elif shape.nullable and text == "null":
        value = None
    _put(done.values, path, value)
    done.origins = {known: where for known, where in done.origins.items() if known[: len(path)] != path}
    done.origins[path] = origin


def _verbatim(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _verbatim(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_verbatim(item) for item in value]
    return Verbatim(value) if isinstance(value, str) else value


def _put(values: Any, path: Keys, value: Any) -> None:
    """Set it, making the mappings on the way; what stands in the way and is no mapping gives way."""
    for key in path[:-1]:
        below = values[int(key)] if isinstance(values, list) else values.get(key)
        if not isinstance(below, dict | list):
            below = {}
            if isinstance(values, list):
                values[int(key)] = below
            else:
                values[key] = below
        values = below
    if isinstance(values, list):
        values[int(path[-1])] = value
    else:
        values[path[-1]] = value


def origin_of(origins: Mapping[Keys, str], path: Keys) -> str | None:
    """Where the value at a path, or one around it, came from; None: the file."""
    return next((origin for keys, origin in origins.items() if path[: len(keys)] == keys), None)
