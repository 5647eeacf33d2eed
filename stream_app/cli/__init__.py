"""The command ``gapstream``: one file per command, imported when the command is called."""

from __future__ import annotations

from stream_app.cli.main import main

__all__ = ["main"]
