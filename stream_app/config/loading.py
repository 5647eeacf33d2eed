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

import copy
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stream_app.config.checks import cross_findings, kafka_warnings
from stream_app.config.faults import below, explain, locate
from stream_app.config.model import Config, Http
from stream_app.config.overrides import origin_of, overlay
from stream_app.config.reading import Finding, Keys, parse, substitute
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
    if settled.faults and _choose_file(path, os.environ if environ is None else environ) is None:
        message = f"there is no {DEFAULT_FILE} here and none is named with -c or {CONFIG_VARIABLE}: {_MAKE_ONE}"
        raise ConfigError([Fault("", message), *settled.faults])
    if settled.faults:
        raise ConfigError(settled.faults)
    return settled.config


def load_http(path: str | Path | None = None, environ: Mapping[str, str] | None = None, overrides: Iterable[str] = ()) -> Http:
    """The section ``http``, for those who only have to know where a worker answers and may lack secrets and key files.

    Raises:
        ConfigError: the file can't be read, or where to ask can't be told from it.
    """
    settled = settle(path, environ, overrides)
    faults = [fault for fault in settled.faults if fault.path in ("", "http", "http.host", "http.port")]
    if faults:
        raise ConfigError(faults)
    return settled.config.http


def settle(path: str | Path | None = None, environ: Mapping[str, str] | None = None, overrides: Iterable[str] = ()) -> Settled:
    """As :func:`load`, with faults and warnings as values."""
    environ = os.environ if environ is None else environ
    root = shape_of(Config)
    file = _choose_file(path, environ)
    values, findings = _read_file(file)
    if values is None:
        return Settled(Config(), [finding.fault() for finding in findings])
    over = overlay(root, values, environ, overrides)
    filled = substitute(over.values, environ)
    work = _Work(root, filled.values, over.origins)
    for finding in (*findings, *over.findings, *filled.findings):
        work.note(finding)
    work.merge_defaults()
    config = work.validate()
    for finding in cross_findings(config):
        work.note_cross(finding)
    faults = [finding.fault() for finding in work.findings]
    return Settled(config, faults, over.warnings + kafka_warnings(config))


def _choose_file(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    if path is not None:
        return Path(path)
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def _read_file(file: Path | None) -> tuple[Any, list[Finding]]:
    """Values and findings; None: nothing can be said of what the file means."""
    if file is None:
        return {}, []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None, [Finding((), f"{file}: no such file: {_MAKE_ONE}")]
    except OSError as error:
        return None, [Finding((), f"{file}: can't be read ({error.strerror}): name another file with -c or {CONFIG_VARIABLE}")]
    except UnicodeDecodeError as error:
        return None, [Finding((), f"{file}: is not text in UTF-8 (byte {error.start}): save it as such")]
    source = parse(text, file.name)
    if source.values is None and not source.findings:
        return {}, []
    if source.values is not None and not isinstance(source.values, dict):
        return None, [*source.findings, Finding((), f"{file}: must hold keys such as kafka: and topics:")]
    return source.values, source.findings


@dataclass(slots=True)
class _Work:
    """Values on their way to a Config; what is wrong is noted and taken out."""

    root: Shape
    values: Any
    origins: Mapping[Keys, str]
    taken: set[Keys] = field(default_factory=set)
    """Paths whose values are lost: nothing further is said of them."""
    written: dict[Keys, Any] = field(default_factory=dict)
    """Path of a sink to its own keys, before defaults."""
    findings: list[Finding] = field(default_factory=list)
    removed: int = 0
    """Values taken out."""

    def note(self, finding: Finding) -> None:
        """Something wrong with one value: tell it, take the value out."""
        self.tell(finding)
        if finding.keys and not self.is_taken(finding.keys):
            self.take_out(finding.keys)

    def tell(self, finding: Finding) -> None:
        """Keep it, with where the value came from if that is not the file."""
        origin = origin_of(self.origins, finding.keys)
        if origin is not None and origin not in finding.message:
            finding = replace(finding, message=f"{finding.message} (from {origin})")
        self.findings.append(finding)

    def take_out(self, path: Keys) -> None:
        """Remove a value. Of a list the whole list goes, so that the others keep their numbers; what a value is missing in goes too."""
        self.taken.add(path)
        if not path:
            self.values = {}
            self.removed += 1
            return
        holder = self.values
        for depth, key in enumerate(path[:-1]):
            if not _has(holder, key):  # gone already
                return
            inner = below(holder, key)
            if not isinstance(inner, dict | list):  # an empty section, in which something is missing
                self.take_out(path[: depth + 1])
                return
            holder = inner
        if isinstance(holder, dict) and path[-1] in holder:
            del holder[path[-1]]
            self.removed += 1
        else:
            self.take_out(path[:-1])

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
                before = self.removed
                self._take_round(error)
                assert self.removed > before, "a fault was found and nothing could be taken out for it"

    def _take_round(self, error: ValidationError) -> None:
        """Tell and take out what one round found; places are told before any is taken out."""
        found: dict[Keys, Finding] = {}
        places: dict[Keys, None] = {}
        for detail in error.errors(include_url=False):
            place = locate(detail, self.root)
            said = self.said_in(place)
            places |= {place: None, said: None}
            if not self.is_taken(place) and not self.is_taken(said):
                found.setdefault(said, Finding(said, explain(detail, place, self.root, self.values)))
        for place in places:
            self.take_out(place)
        for finding in found.values():
            self.tell(finding)

    def said_in(self, place: Keys) -> Keys:
        """Where the value at a path was written: in ``defaults``, where the sink itself does not have it."""
        sink, rest = place[:4], place[4:]
        if not rest or sink not in self.written:
            return place
        own = self.written[sink]
        source = ("defaults", str(own.get("type")), *rest)
        return source if not _reaches(own, rest) and _reaches(self.values, source) else place

    def note_cross(self, finding: Finding) -> None:
        """Something wrong with several values together; said only where all of them still stand."""
        lost_parts = any(gone[: len(keys)] == keys for keys in finding.about for gone in self.taken)
        if not lost_parts and not any(map(self.is_taken, (finding.keys, *finding.about))):
            self.tell(finding)


def _has(values: Any, key: str) -> bool:
    if isinstance(values, dict):
        return key in values
    return isinstance(values, list) and key.isdecimal() and int(key) < len(values)


def _reaches(values: Any, path: Keys) -> bool:
    for key in path[:-1]:
        values = below(values, key)
    return _has(values, path[-1])


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` counts; mappings on both sides are merged likewise."""
    found = copy.deepcopy(under)
    for key, value in over.items():
        beneath = found.get(key)
        if isinstance(value, dict) and isinstance(beneath, dict):
            found[key] = _merged(beneath, value)
        else:
            found[key] = copy.deepcopy(value)
    return found
