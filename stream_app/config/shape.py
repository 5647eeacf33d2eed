"""What may stand at a path of the configuration, told from the models: for names in the environment, flags, and faults."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from stream_app.config.reading import Keys

_NONE = type(None)
_OTHER = re.compile(r"[^a-z0-9]")


@dataclass(frozen=True, slots=True)
class Shape:
    """One place in the configuration."""

    kind: Literal["section", "mapping", "list", "plain"]
    """``section``: known keys; ``mapping``: names of the user's; ``list``; ``plain``: text, a number, a flag."""
    fields: Mapping[str, Any] | None = None
    """Of a section: key to annotation. Of a union of sections: the keys of all."""
    item: Any = None
    """Of a mapping or list: annotation of what it holds."""
    nullable: bool = False
    tags: Mapping[str, Shape] | None = None
    """Of a union of sections: ``type`` to its own shape."""

    @property
    def holds_more(self) -> bool:
        """Whether paths go on below it."""
        return self.kind != "plain"

    def child(self, key: str) -> Shape | None:
        """The shape below a key; None: there is nothing of that name."""
        if self.kind == "section":
            assert self.fields is not None
            return shape_of(self.fields[key]) if key in self.fields else None
        return shape_of(self.item) if self.holds_more else None


def shape_of(annotation: Any) -> Shape:
    """The shape that an annotation of the models describes."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return shape_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _shape_of_union(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        return Shape("section", fields=fields)
    if origin is dict:
        return Shape("mapping", item=get_args(annotation)[1])
    if origin is tuple:
        return Shape("list", item=get_args(annotation)[0])
    return Shape("plain")


def _shape_of_union(parts: tuple[Any, ...]) -> Shape:
    nullable = _NONE in parts
    shapes = [shape_of(part) for part in parts if part is not _NONE]
    if len(shapes) == 1:
        one = shapes[0]
        return Shape(one.kind, one.fields, one.item, nullable=nullable, tags=one.tags)
    if any(shape.kind != "section" for shape in shapes):
        return Shape("plain", nullable=nullable)
    tags: dict[str, Shape] = {}
    every: dict[str, Any] = {}
    for shape in shapes:
        assert shape.fields is not None
        (tag,) = get_args(shape.fields["type"])
        tags[tag] = shape
        every |= {key: annotation for key, annotation in shape.fields.items() if key not in every}
    return Shape("section", fields=every, nullable=nullable, tags=tags)


def loose(key: str) -> str:
    """How a key is written in an environment variable, in lower case: everything but letters and digits is ``_``."""
    return _OTHER.sub("_", key.lower())


def find_loose(root: Shape, values: Any, words: Sequence[str]) -> Keys | None:
    """The path that ``GAPSTREAM__A__B`` means, ``words`` being what stood between the double underscores.

    Names of the user's (topics, sinks) are those that ``values`` has; under ``kafka`` an underscore is a dot. None: nothing,
    or more than one thing, has that name.
    """
    path: Keys = ()
    shape: Shape | None = root
    for word in words:
        if shape is None:
            return None
        key = _find_key(shape, path, values, word.lower())
        if key is None:
            return None
        path = (*path, key)
        shape = shape.child(key)
        values = _below(values, key)
    return None if shape is None else path


def _find_key(shape: Shape, path: Keys, values: Any, word: str) -> str | None:
    if shape.kind == "section":
        return word if word in (shape.fields or {}) else None
    if shape.kind == "mapping" and not shape_of(shape.item).holds_more:
        return word.replace("_", ".") if path and path[-1] == "kafka" else word
    if shape.kind == "mapping" and isinstance(values, dict):
        found = [key for key in values if loose(key) == loose(word)]
        return found[0] if len(found) == 1 else None
    if shape.kind == "list" and isinstance(values, list):
        return word if word.isdecimal() and int(word) < len(values) else None
    return None


def _below(values: Any, key: str) -> Any:
    if isinstance(values, dict):
        return values.get(key)
    if isinstance(values, list) and key.isdecimal() and int(key) < len(values):
        return values[int(key)]
    return None


def find_dotted(root: Shape, values: Any, text: str) -> Keys | None:
    """The path that ``a.b.c`` means, where names of the user's may have dots themselves; None: there is no such path.

    Of the names that ``values`` has the longest counts. Where it has none that fits, a new one is meant, which ends before the
    first word that is a key of what it names.
    """
    return _find_dotted(root, values, tuple(text.split(".")))


def _find_dotted(shape: Shape | None, values: Any, words: tuple[str, ...]) -> Keys | None:
    if shape is None:
        return None
    if not words:
        return ()
    for length in _lengths(shape, values, words):
        key = ".".join(words[:length])
        rest = _find_dotted(shape.child(key), _below(values, key), words[length:])
        if rest is not None:
            return (key, *rest)
    return None


def _lengths(shape: Shape, values: Any, words: tuple[str, ...]) -> list[int]:
    """How many words the next key may take, the best guess first."""
    if shape.kind == "plain":
        return []
    if shape.kind == "section":
        return [1]
    if shape.kind == "list":
        return [1] if isinstance(values, list) and words[0].isdecimal() and int(words[0]) < len(values) else []
    every = range(1, len(words) + 1)
    item = shape_of(shape.item)
    if not item.holds_more:
        return [len(words)]
    known = [n for n in reversed(every) if isinstance(values, dict) and ".".join(words[:n]) in values]
    return known or [n for n in every if n == len(words) or item.child(words[n]) is not None]
