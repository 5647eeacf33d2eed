"""What a test does to a ClickHouse from outside: statements and rows over plain HTTP, by code that shares nothing with ours."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_PATIENCE_S = 120.0


class ClickHouseError(Exception):
    """The server refused; the message is its own."""


class ClickHouse:
    """A server; ``database`` is one of this object's own, so that tests don't meet."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = f"t_{uuid.uuid4().hex[:12]}"
        self.run(f"CREATE DATABASE {self.database}", database="default")

    def close(self) -> None:
        """Drop the database."""
        self.run(f"DROP DATABASE {self.database}", database="default")

    def run(self, sql: str, data: bytes = b"", *, database: str | None = None, **settings: str) -> bytes:
        """The answer of one statement, whatever its format; ``data`` are the rows of an INSERT."""
        statement = {"query": sql} if data else {}
        parameters = urllib.parse.urlencode({**statement, "database": database or self.database, **settings})
        request = urllib.request.Request(f"{self.url}/?{parameters}", data or sql.encode(), {"Content-Type": "application/octet-stream"})
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                body: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise ClickHouseError(error.read().decode()) from error
        return body

    def rows(self, sql: str, **settings: str) -> list[tuple[Any, ...]]:
        """The rows of a SELECT, in JSON's types."""
        found = self.run(f"{sql}\nFORMAT JSONCompactEachRow", b"", **{"output_format_json_quote_64bit_integers": "0"} | settings)
        return [tuple(json.loads(line)) for line in found.splitlines()]

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]], **settings: str) -> None:
        """One INSERT, so one block."""
        data = "\n".join(json.dumps(list(row)) for row in rows)
        names = ", ".join(f"`{column}`" for column in columns)
        self.run(f"INSERT INTO {table} ({names}) FORMAT JSONCompactEachRow", data.encode(), **settings)


class EngineProcess:
    """``python -m stream_app.demo.engine`` on this port, 0: a free one, from its making to the end of the ``with``."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "stream_app.demo.engine", "--port", str(port), "--path", str(folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.said = json.loads(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.said['port']}"

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=_PATIENCE_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        self._process.send_signal(number)
        return self._process.wait(_PATIENCE_S)
