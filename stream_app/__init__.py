"""Finds every Kafka record that a sink did not receive, offset by offset.

Importing the package imports nothing heavy. Two names are made when they are asked for:

- ``app``: the Faust application of the configuration that ``GAPSTREAM_CONFIG`` names, for ``faust -A stream_app worker``;
- ``Sidecar``: :class:`gapstream_sidecar.Sidecar`, what reports for a consumer of yours.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from stream_app.version import __version__

__all__ = ["__version__"]


def _make_app() -> Any:
    settings = import_module("stream_app.config")
    try:
        config = settings.load(None)
        faults = settings.unsupported(config)
        if faults:
            raise settings.ConfigError(faults)
    except settings.ConfigError as error:
        if "faust" not in Path(sys.argv[0]).parts[-2:]:
            raise
        sys.stderr.write(f"{error}\n")  # Faust's command would show a traceback
        raise SystemExit(error.exit_code) from error
    return import_module("stream_app.service.app").create_app(config)


def _find_sidecar() -> Any:
    try:
        return import_module("gapstream_sidecar").Sidecar
    except ModuleNotFoundError as error:
        if error.name != "gapstream_sidecar":
            raise
        msg = "stream_app.Sidecar is part of the distribution gapstream-sidecar, which is not installed: pip install gapstream-sidecar"
        raise ImportError(msg, name="gapstream_sidecar") from error


_LAZY = {"app": _make_app, "Sidecar": _find_sidecar}


def __getattr__(name: str) -> Any:
    """PEP 562: made once, then an ordinary name of the module."""
    make = _LAZY.get(name)
    if make is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = make()
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
