"""An embedded ClickHouse: chdb, which is the engine as a library, behind as much of ClickHouse's HTTP interface as its clients use.

Run as ``python -m stream_app.demo.engine --port P --path DIR``: answers on 127.0.0.1, keeps its data in DIR, says on stdout
``{"ready":true,"port":P}``, and ends on SIGTERM or SIGINT. A process of its own, because chdb is one engine per process and
its memory is not the caller's.

What it is: statements as body, ``query`` parameter or form; settings, ``database`` and ``param_`` values as parameters; INSERT
with data in any format, compressed or not; ClickHouse's error codes with the HTTP status that the server gives them; the
summary of rows in a header. What it is not: it has no users (any password is right), no Keeper (so no Replicated tables), no
clusters, no Kafka engine, no sessions, and it does not compress its answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cramjam
from aiohttp import web

from stream_app.demo.lines import Outlet
from stream_app.errors import UsageError

HOST = "127.0.0.1"
THREADS = 8
"""Statements that run at a time; each has a connection to the engine of its own, so that settings stay apart."""
BODY_MAX = 1 << 30
APPEND_BYTES = 1 << 20
"""The data of an INSERT is handed to the engine in pieces of this size."""
RESERVED = {
    *("query", "database", "user", "password", "default_format", "query_id", "quota_key", "role", "compress", "decompress", "buffer_size"),
    *("session_id", "session_timeout", "session_check", "wait_end_of_query", "client_protocol_version"),
}
"""Parameters of the HTTP interface itself. All others are settings, but for those that begin with ``param_``."""
CODECS: Mapping[str, Callable[[bytes], Any]] = {
    "gzip": cramjam.gzip.decompress,
    "br": cramjam.brotli.decompress,
    "zstd": cramjam.zstd.decompress,
    "lz4": cramjam.lz4.decompress,
}
"""``Content-Encoding`` of what clients send."""

_INSERT = re.compile(rb"\A(\s*INSERT\s+INTO\s.*?)\sFORMAT\s+(\w+)[ \t]*(?:\r?\n)?", re.IGNORECASE | re.DOTALL)
"""Whatever follows is data."""
_CODE = re.compile(r"Code: (\d+)\. ")

# src/Server/HTTP/exceptionCodeToHTTPStatus.cpp of ClickHouse; every other code is 500.
_STATUS = (
    *(dict.fromkeys(codes, status) for codes, status in (
        ((194,), 401),
        ((192, 193, 497, 512, 516), 403),
        ((6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 675, 676), 400),
        ((46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511), 404),
        ((159,), 408),
        ((229,), 413),
        ((48,), 501),
        ((76, 209, 439), 503),
    )),
)  # fmt: skip
STATUS: Mapping[int, int] = {code: status for part in _STATUS for code, status in part.items()}
"""HTTP status by ClickHouse's error code."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One request."""

    sql: bytes
    """With the data of an INSERT behind it."""
    database: str | None
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    """What stands in the text as ``{name:Type}``."""
    format: str
    """Of the answer, where the text names none."""
    read_only: bool
    """A GET changes nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of it."""

    body: bytes
    summary: Mapping[str, int]


class Refused(Exception):
    """ClickHouse's error; ``str()`` begins with ``Code: N.``"""

    @property
    def code(self) -> int:
        """ClickHouse's number; 1002 (UNKNOWN_EXCEPTION) where there is none."""
        found = _CODE.search(str(self))
        return int(found[1]) if found else 1002


class Engine:
    """chdb on a folder; its methods block, and may be called from any thread."""

    def __init__(self, path: str) -> None:
        """Raises UsageError where chdb is not installed."""
        try:
            import chdb
        except ImportError as error:
            msg = "the embedded ClickHouse is not installed: pip install 'gapstream[demo]'"
            raise UsageError(msg) from error
        self._connect: Callable[[], Any] = lambda: chdb.connect(path)
        self._kept = self._connect()  # the engine stops with its last connection
        self.version, self.timezone = self._run(self._kept, "SELECT version(), timezone()", "TabSeparated").bytes().decode().split()

    def close(self) -> None:
        """Stop the engine."""
        self._kept.close()

    def execute(self, statement: Statement) -> Answer:
        """Run one statement on a connection of its own.

        Raises:
            Refused: ClickHouse did not do it.
        """
        connection = self._connect()
        try:
            if statement.database:
                self._run(connection, f"USE `{statement.database.replace('`', '``')}`")
            for name, value in statement.settings.items():
                self._run(connection, f"SET `{name.replace('`', '``')}` = '{_escape(value)}'")
            if statement.read_only:
                self._run(connection, "SET readonly = 2")
            insert = _INSERT.match(statement.sql)
            if insert is not None and insert.end() < len(statement.sql):
                return self._insert(connection, insert[1].decode(), insert[2].decode(), memoryview(statement.sql)[insert.end() :])
            return self._query(connection, statement)
        finally:
            connection.close()

    def _query(self, connection: Any, statement: Statement) -> Answer:
        begun = time.perf_counter_ns()
        result = self._run(connection, statement.sql.decode(), statement.format, dict(statement.parameters))
        summary = {
            "read_rows": result.storage_rows_read(),
            "read_bytes": result.storage_bytes_read(),
            "written_rows": result.rows_written(),
            "written_bytes": result.bytes_written(),
            "result_rows": result.rows_read(),
            "result_bytes": result.bytes_read(),
            "elapsed_ns": time.perf_counter_ns() - begun,
        }
        return Answer(bytes(result.bytes()), summary)

    @staticmethod
    def _insert(connection: Any, sql: str, form: str, data: memoryview) -> Answer:
        begun = time.perf_counter_ns()
        try:
            with connection.send_insert(sql, form) as insert:
                for at in range(0, len(data), APPEND_BYTES):
                    insert.append(data[at : at + APPEND_BYTES])
                done = insert.finish()
        except RuntimeError as error:
            raise Refused(_from_code_on(str(error))) from error
        took = time.perf_counter_ns() - begun
        rows, size = done.rows_written, done.bytes_written
        return Answer(b"", {"read_rows": rows, "read_bytes": len(data), "written_rows": rows, "written_bytes": size, "elapsed_ns": took})

    @staticmethod
    def _run(connection: Any, sql: str, form: str = "TabSeparated", parameters: Mapping[str, str] | None = None) -> Any:
        from chdb import ChdbError

        try:
            return connection.query(sql, form, params=parameters or {})
        except (ChdbError, RuntimeError) as error:
            raise Refused(_from_code_on(str(error))) from error


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _from_code_on(message: str) -> str:
    """Without the words that chdb puts in front."""
    found = _CODE.search(message)
    return message[found.start() :] if found else message


# --- HTTP -------------------------------------------------------------------------------------------------------------------


class Door:
    """ClickHouse's HTTP interface on an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pool = ThreadPoolExecutor(THREADS, "engine")

    def application(self) -> web.Application:
        """The routes: ``/`` and ``/ping``."""
        app = web.Application(client_max_size=BODY_MAX)
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/", self._root)
        return app

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _root(self, request: web.Request) -> web.Response:
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        headers = {
            "X-ClickHouse-Server-Display-Name": "embedded",
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Timezone": self._engine.timezone,
        }
        try:
            statement = await _read(request)
            if not statement.sql.strip():
                return web.Response(text="Ok.\n")
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, self._engine.execute, statement)
        except Refused as refused:
            text = str(refused)
            text = text if "(version " in text else f"{text} (version {self._engine.version})"
            headers["X-ClickHouse-Exception-Code"] = str(refused.code)
            return web.Response(status=STATUS.get(refused.code, 500), text=text + "\n", headers=headers)
        headers["X-ClickHouse-Summary"] = json.dumps({name: str(value) for name, value in answer.summary.items()}, separators=(",", ":"))
        headers["X-ClickHouse-Format"] = statement.format
        return web.Response(body=answer.body, content_type="application/octet-stream", headers=headers)


async def _read(request: web.Request) -> Statement:
    """The statement of a request.

    Raises:
        Refused: its body can't be read.
    """
    given = dict(request.query)
    body = b""
    if request.content_type == "multipart/form-data":  # of no other type is the body a form: curl calls all it sends urlencoded
        given |= {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
    else:
        body = _decompress(await request.read(), request.headers.get("Content-Encoding", "identity"))
    parts = [part for part in (given.get("query", "").encode(), body) if part]
    return Statement(
        sql=b"\n".join(parts),
        database=given.get("database") or request.headers.get("X-ClickHouse-Database"),
        settings={name: value for name, value in given.items() if name not in RESERVED and not name.startswith("param_")},
        parameters={name.removeprefix("param_"): value for name, value in given.items() if name.startswith("param_")},
        format=given.get("default_format") or request.headers.get("X-ClickHouse-Format") or "TabSeparated",
        read_only=request.method == "GET",
    )


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding == "identity":
        return body
    decompress = CODECS.get(encoding)
    if decompress is None:
        raise Refused(f"Code: 48. DB::Exception: Unknown compression method {encoding}. (NOT_IMPLEMENTED)")
    try:
        return bytes(decompress(body))
    except cramjam.DecompressionError as error:
        raise Refused(f"Code: 271. DB::Exception: {encoding}: {error}. (CANNOT_DECOMPRESS)") from error


async def serve(port: int, path: str) -> None:
    """Answer until a signal says to end."""
    stop = asyncio.Event()
    engine = Engine(path)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(Door(engine).application(), access_log=None, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    Outlet().say(ready=True, port=runner.addresses[0][1])
    await stop.wait()
    await runner.cleanup()
    engine.close()


def main() -> int:
    """Until a signal says to end."""
    parser = argparse.ArgumentParser(prog="python -m stream_app.demo.engine", description="An embedded ClickHouse on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8123, help="0: any free port")
    parser.add_argument("--path", required=True, metavar="DIR", help="where its data are kept")
    given = parser.parse_args()
    try:
        asyncio.run(serve(given.port, given.path))
    except (UsageError, OSError) as error:  # nothing to run, or the port is taken
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
