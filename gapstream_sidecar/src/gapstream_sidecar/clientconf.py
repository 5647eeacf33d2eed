"""How a confluent-kafka consumer is configured, where only the consumer is handed over.

Such a consumer does not tell its configuration in Python, but the C library inside does: ``rd_kafka_conf`` and
``rd_kafka_conf_get`` are public functions of librdkafka. Its handle is the first field of the consumer's C object
(``Handle`` in confluent_kafka.h, the same from 1.6 to 2.16); that it is the handle is proved by asking the library for the
object that belongs to it: the answer must be the consumer. Where any of this does not hold, nothing is guessed: ``conf`` has
to be handed over.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from confluent_kafka import cimpl, version

_KNOWN_MAJOR = "2."
_VALUE_BYTES = 512
_DEFAULTS = {"enable.auto.commit": "true", "enable.auto.offset.store": "true", "group.id": ""}
"""librdkafka's, of CONFIGURATION.md. ``auto.commit.enable`` is another property, which consumers of groups don't heed."""


@dataclass(frozen=True, slots=True)
class ClientConf:
    """The part of a consumer's configuration that says how it commits."""

    auto_commit: bool
    auto_store: bool
    group: str


def known(consumer: object, conf: Mapping[str, Any] | None) -> ClientConf | None:
    """The consumer's configuration: its own word, else ``conf``; None where neither is to be had."""
    told = _told(consumer) or (_values(conf) if conf is not None else None)
    if told is None:
        return None
    return ClientConf(is_true(told["enable.auto.commit"]), is_true(told["enable.auto.offset.store"]), told["group.id"])


def is_true(value: object) -> bool:
    """How librdkafka reads a boolean property."""
    return str(value).strip().lower() not in {"false", "f", "0"}


def _values(conf: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(conf.get(name, default)) for name, default in _DEFAULTS.items()}


def _told(consumer: object) -> dict[str, str] | None:
    """What librdkafka says; None where it can't be asked."""
    library = _library()
    if library is None or not issubclass(type(consumer), cimpl.Consumer):  # by its type: a stand-in has no handle
        return None
    handle = ctypes.c_void_p.from_address(id(consumer) + object.__basicsize__).value
    if not handle or library.rd_kafka_opaque(handle) != id(consumer):
        return None
    conf = library.rd_kafka_conf(handle)
    values = {name: _value(library, conf, name) for name in _DEFAULTS}
    return None if None in values.values() else {name: value or "" for name, value in values.items()}


def _value(library: Any, conf: int, name: str) -> str | None:
    size = ctypes.c_size_t(_VALUE_BYTES)
    value = ctypes.create_string_buffer(_VALUE_BYTES)
    if library.rd_kafka_conf_get(conf, name.encode(), value, ctypes.byref(size)) != 0:
        return _DEFAULTS[name] if name == "group.id" else None  # RD_KAFKA_CONF_INVALID: it is not set
    return value.value.decode(errors="replace")


@cache
def _library() -> Any:
    """librdkafka as confluent-kafka's own module has loaded it; None where it is not known how it looks inside."""
    release: Any = version()  # text, or text and number before 2.10
    if sys.implementation.name != "cpython" or not (release if isinstance(release, str) else release[0]).startswith(_KNOWN_MAJOR):
        return None
    try:
        library = ctypes.CDLL(cimpl.__file__)
        library.rd_kafka_opaque.restype = library.rd_kafka_conf.restype = ctypes.c_void_p
        library.rd_kafka_opaque.argtypes = library.rd_kafka_conf.argtypes = [ctypes.c_void_p]
        library.rd_kafka_conf_get.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_size_t),
        ]
    except (OSError, AttributeError):  # linked in with its names hidden
        return None
    return library
