"""From the text of a file to plain values: YAML with doubled names refused, ``${NAME}`` and ``${file:/path}`` filled in.

Scalars follow YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), not PyYAML's 1.1: ``no``, ``on`` and
``12:30`` are text, and so is a time. Below the keys in ``LITERAL`` every scalar is text as it is written: a password such as
``0123`` keeps its zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stream_app.errors import Fault

Keys = tuple[str, ...]
"""Keys from the top; list items by their number."""
LITERAL = ("kafka",)
DEPTH_MAX = 64
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NULLS = {"", "~", "null", "Null", "NULL"}
_FLAGS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_PLACE = re.compile(r"\$\$\{|\$\{(?P<what>[^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MERGE = "tag:yaml.org,2002:merge"
_STANDARD = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, before it is a line for people: its path still as keys, which may have dots themselves."""

    keys: Keys
    message: str
    about: tuple[Keys, ...] = ()
    """Further paths that it follows from."""

    def fault(self) -> Fault:
        """As it is told."""
        return Fault(dotted(self.keys), self.message)


class Verbatim(str):
    """Text in which ``${...}`` means itself: the value of an environment variable."""

    __slots__ = ()


def dotted(path: Keys) -> str:
    """A path as faults show it."""
    return ".".join(path)


@dataclass(slots=True)
class Source:
    """What was read, and what was wrong with it."""

    values: Any
    findings: list[Finding] = field(default_factory=list)


def parse(text: str, name: str, at: Keys = ()) -> Source:
    """YAML to dicts, lists, text, numbers, booleans and None; ``name`` stands in complaints about the text as a whole.

    ``at``: the path that the values belong to, where they are a part of the configuration.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        return Source(None, [Finding(at, f"{name}{_mark(error)}: {_problem(error)}")])
    reader = _Reader(name)
    values = None if node is None else reader.value(node, at, ())
    return Source(values, reader.findings)


def _mark(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _problem(error: Exception) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    return " ".join(f"is not YAML: {f'{context}, ' if context else ''}{problem}".split())


@dataclass(slots=True)
class _Reader:
    """Turns nodes into values; collects what is wrong."""

    name: str
    findings: list[Finding] = field(default_factory=list)

    def value(self, node: yaml.Node, path: Keys, above: tuple[int, ...]) -> Any:
        if id(node) in above or len(above) > DEPTH_MAX:
            self._complain(node, path, "holds itself, or is nested too deeply")
            return None
        if not node.tag.startswith(_STANDARD):
            self._complain(node, path, f"the tag {node.tag} is not known here: write the value without it")
            return None
        inner = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, inner)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(index)), inner) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node, literal=any(key in LITERAL for key in path[:-1]))

    def _mapping(self, node: yaml.MappingNode, path: Keys, above: tuple[int, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged = self._merged(value_node, path, above) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(key_node, path, "a key must be text")
                continue
            key = key_node.value
            line = key_node.start_mark.line + 1
            if key in lines:
                self._complain(key_node, (*path, key), f"stands twice, first in line {lines[key]}: take one away")
                continue
            lines[key] = line
            own[key] = self.value(value_node, (*path, key), above)
        return merged | own

    def _merged(self, node: yaml.Node, path: Keys, above: tuple[int, ...]) -> dict[str, Any]:
        """``<<``: of several mappings the first that has a key counts."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for one in nodes:
            if isinstance(one, yaml.MappingNode):
                value = self.value(one, path, above)
                found = (value if isinstance(value, dict) else {}) | found
            else:
                self._complain(one, path, "<< takes a mapping, or a list of them")
        return found

    def _complain(self, node: yaml.Node, path: Keys, message: str) -> None:
        self.findings.append(Finding(path, f"{message} ({self.name}, line {node.start_mark.line + 1})"))


def _scalar(node: yaml.ScalarNode, *, literal: bool) -> Any:
    text: str = node.value
    if node.style is not None:  # quoted, or a block
        return text
    if text in _NULLS:
        return None
    if literal:
        return text
    if text in _FLAGS:
        return _FLAGS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


# --- ${NAME} and ${file:/path} ---------------------------------------------------------------------------------------------


def substitute(values: Any, environ: Mapping[str, str]) -> Source:
    """``${NAME}`` and ``${file:/path}`` in every text (not in keys) filled in, once; ``$${`` is ``${``.

    What can't be filled in is a fault and becomes None.
    """
    findings: dict[Finding, None] = {}

    def walk(value: Any, path: Keys) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, str(index))) for index, item in enumerate(value)]
        if isinstance(value, str) and not isinstance(value, Verbatim) and "${" in value:
            return fill(value, path)
        return value

    def fill(text: str, path: Keys) -> str | None:
        complaints: list[str] = []

        def put(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            found = _look_up(match["what"], environ, complaints)
            return "" if found is None else found

        filled = _PLACE.sub(put, text)
        findings.update({Finding(path, complaint): None for complaint in complaints})
        return None if complaints else filled

    return Source(walk(values, ()), list(findings))


def _look_up(what: str | None, environ: Mapping[str, str], complaints: list[str]) -> str | None:
    if what is not None and what.startswith("file:"):
        path = what.removeprefix("file:")
        try:
            return Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            complaints.append(f"the file {path} can't be read: {reason}")
            return None
    if what is None or not _NAME.fullmatch(what):
        complaints.append("${ is followed by no name and }: write ${KAFKA_PASSWORD} or ${file:/run/secrets/kafka}, or $${ for the text ${")
        return None
    if what not in environ:
        complaints.append(f"the environment variable {what} is not set")
        return None
    return environ[what]
