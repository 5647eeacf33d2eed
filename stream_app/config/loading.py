"""How ``gapstream.yaml``, the environment and flags become a :class:`~stream_app.config.model.Config`.

1. The file is read; doubled names are faults.
2. ``GAPSTREAM__`` variables are put over it, and flags over both.
3. ``${NAME}`` and ``${file:/path}`` are filled in.
4. ``defaults`` are put under each sink's own keys, mappings key by key.
5. The models check each value. What is wrong is noted and taken out, and the rest is checked again, until it holds.
6. What follows from several values is checked (:mod:`stream_app.config.checks`), but for what depends on a value taken out.

So one run tells every fault, and each once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stream_app.config.checks import cross_faults, kafka_warnings
from stream_app.config.faults import below, explain, locate
from stream_app.config.model import Config, Http
from stream_app.config.overrides import origin_of, overlay
from stream_app.config.reading import Keys, dotted, parse, substitute
from stream_app.config.shape import Shape, shape_of
from stream_app.errors import ConfigError, Fault

CONFIG_VARIABLE = "GAPSTREAM_CONFIG"
DEFAULT_FILE = Path("gapstream.yaml")
SMALLEST = '{kafka: {bootstrap.servers: "broker:9092"}, topics: {orders: {sinks: {billing: {type: consumer}}}}}'
"""A file that works, in one line."""
_MAKE_ONE = f"the smallest one is {SMALLEST}; docs/reference-config.yaml has every setting"

log = logging.getLogger("gapstream.config")


@dataclass(slots=True)
class Settled:
    """What became of the configuration: usable where ``faults`` is empty."""

    config: Config
    """With everything that was wrong left out."""
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load(
    path: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    warn: Callable[[str], None] | None = None,
) -> Config:
    """The effective configuration.

    ``path``: the file; None: what ``GAPSTREAM_CONFIG`` names, else ``./gapstream.yaml`` where it is, else no file. ``environ``:
    None is ``os.environ``. ``overrides``: ``path=value``, as after ``-X``. ``warn`` takes lines about what is no fault but
    probably a mistake; None: they are logged.

    Raises:
        ConfigError: with every fault.
    """
    settled = settle(path, environ, overrides)
    for line in settled.warnings:
        (warn or log.warning)(line)
    if settled.faults:
        raise ConfigError(settled.faults)
    return settled.config


def load_http(path: str | Path | None = None, environ: Mapping[str, str] | None = None, overrides: Iterable[str] = ()) -> Http:
    """The section ``http`` alone, for those who only ask a worker and may lack the secrets of the rest.

    Raises:
        ConfigError: the file can't be read, or the section has faults.
    """
    settled = settle(path, environ, overrides)
    faults = [fault for fault in settled.faults if not fault.path or fault.path.split(".")[0] in ("http", "-X http")]
    if faults:
        raise ConfigError(faults)
    return settled.config.http


def settle(path: str | Path | None = None, environ: Mapping[str, str] | None = None, overrides: Iterable[str] = ()) -> Settled:
    """As :func:`load`, with faults and warnings as values."""
    environ = os.environ if environ is None else environ
    root = shape_of(Config)
    file = _choose_file(path, environ)
    values, faults = _read_file(file)
    if file is not None and values is None and faults:
        return Settled(Config(), faults)
    over = overlay(root, values, environ, overrides)
    filled = substitute(over.values, environ)
    work = _Work(root, filled.values, over.origins, taken={tuple(f.path.split(".")) for f in faults})
    for fault in (*faults, *over.faults, *filled.faults):
        work.note(fault)
    work.merge_defaults()
    config = work.validate()
    for fault in cross_faults(config):
        work.note_cross(fault)
    if work.faults and file is None:
        work.faults.insert(0, Fault("", f"there is no {DEFAULT_FILE} here and none is named with -c or {CONFIG_VARIABLE}: {_MAKE_ONE}"))
    return Settled(config, work.faults, over.warnings + kafka_warnings(config))


def _choose_file(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return Path(path)
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def _read_file(file: Path | None) -> tuple[Any, list[Fault]]:
    """Values and faults; None and a fault: nothing can be said of what the file means."""
    if file is None:
        return {}, []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None, [Fault("", f"{file}: no such file: {_MAKE_ONE}")]
    except OSError as error:
        return None, [Fault("", f"{file}: can't be read ({error.strerror}): name another file with -c or {CONFIG_VARIABLE}")]
    except UnicodeDecodeError as error:
        return None, [Fault("", f"{file}: is not text in UTF-8 (byte {error.start}): save it as such")]
    source = parse(text, file.name)
    if source.values is None and not source.faults:
        return {}, []
    if source.values is not None and not isinstance(source.values, dict):
        return None, [*source.faults, Fault("", f"{file}: must hold keys such as kafka: and topics:")]
    return source.values, source.faults


@dataclass(slots=True)
class _Work:
    """Values on their way to a Config; what is wrong is noted and taken out."""

    root: Shape
    values: Any
    origins: Mapping[Keys, str]
    taken: set[Keys]
    """Paths whose values are lost: nothing further is said of them."""
    written: dict[Keys, Any] = field(default_factory=dict)
    """Path of a sink to its own keys, before defaults."""
    faults: list[Fault] = field(default_factory=list)

    def note(self, fault: Fault) -> None:
        """A fault of one value: tell it, take the value out."""
        origin = origin_of(self.origins, fault.path)
        named = origin is None or origin in fault.message
        self.faults.append(fault if named else Fault(fault.path, f"{fault.message} (from {origin})", fault.about))
        if fault.path and not fault.path.startswith("-X"):
            self.take_out(self.keys_of(fault.path))

    def keys_of(self, path: str) -> Keys:
        """Keys of a dotted path whose names may have dots themselves; only as far as there are values."""
        values, words, keys = self.values, path.split("."), []
        while words:
            length = next((n for n in range(len(words), 0, -1) if isinstance(values, dict) and ".".join(words[:n]) in values), 1)
            keys.append(".".join(words[:length]))
            values, words = below(values, keys[-1]), words[length:]
        return tuple(keys)

    def take_out(self, path: Keys) -> None:
        """Remove a value; of a list the whole list, so that its items keep their numbers; of what is not there, what it is missing in."""
        self.taken.add(path)
        holders = [self.values]
        for key in path[:-1]:
            holders.append(below(holders[-1], key))
        for depth in range(len(path), 0, -1):
            holder, key = holders[depth - 1], path[depth - 1]
            if isinstance(holder, dict) and key in holder:
                del holder[key]
                self.taken.add(path[:depth])
                return
        self.values = {}

    def is_taken(self, path: Keys) -> bool:
        """Whether the value there was taken out, or what held it."""
        return any(path[: len(gone)] == gone for gone in self.taken)

    def merge_defaults(self) -> None:
        """Put ``defaults`` under each sink's own keys."""
        defaults = below(self.values, "defaults")
        topics = below(self.values, "topics")
        if not isinstance(topics, dict):
            return
        for topic, settings in topics.items():
            sinks = below(settings, "sinks")
            for name, sink in sinks.items() if isinstance(sinks, dict) else ():
                under = below(defaults, str(below(sink, "type")))
                if isinstance(under, dict) and isinstance(sink, dict):
                    self.written["topics", topic, "sinks", name] = sink
                    sinks[name] = _merged(under, sink)

    def validate(self) -> Config:
        """Check values until the rest holds. Ends, because each round takes something out."""
        while True:
            try:
                return Config.model_validate(self.values)
            except ValidationError as error:
                self._take_round(error)

    def _take_round(self, error: ValidationError) -> None:
        found: dict[Keys, Fault] = {}
        places = []
        for detail in error.errors(include_url=False):
            place = locate(detail, self.root)
            places.append(place)
            if not self.is_taken(place):
                said = self.said_in(place)
                found.setdefault(said, Fault(dotted(said), explain(detail, place, self.root, self.values)))
        for place in places:
            self.take_out(place)
        for said, fault in found.items():
            if said not in {tuple(old.path.split(".")) for old in self.faults}:
                self.note(fault)

    def said_in(self, place: Keys) -> Keys:
        """Where the value at a path was written: in ``defaults``, where the sink itself does not have it."""
        sink, rest = place[:4], place[4:]
        if not rest or sink not in self.written:
            return place
        own = self.written[sink]
        source = ("defaults", str(own.get("type")), *rest)
        return source if not _has(own, rest) and _has(self.values, source) else place

    def note_cross(self, fault: Fault) -> None:
        """A fault of several values; said only where all of them still stand."""
        if self.is_taken(self.keys_of(fault.path)):
            return
        for path in fault.about:
            keys = self.keys_of(path)
            if self.is_taken(keys) or any(gone[: len(keys)] == keys for gone in self.taken):
                return
        origin = origin_of(self.origins, fault.path)
        self.faults.append(fault if origin is None else Fault(fault.path, f"{fault.message} (from {origin})"))


def _has(values: Any, path: Keys) -> bool:
    for key in path[:-1]:
        values = below(values, key)
    return isinstance(values, dict) and bool(path) and path[-1] in values


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` counts; mappings on both sides are merged likewise."""
    found = dict(under)
    for key, value in over.items():
        below_it = found.get(key)
        found[key] = _merged(below_it, value) if isinstance(value, dict) and isinstance(below_it, dict) else value
    return found
