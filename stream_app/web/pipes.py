"""``/v0/pipes/NAME`` with ``.json``, ``.csv`` or ``.ndjson``: the shape that Tinybird's clients know, values as ClickHouse prints them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from stream_app.core.minutes import KEPT_MINUTES
from stream_app.service.pipes import COUNT, OFFSET, PIPES, SECOND, STRING, TIME, Asked, Found, Pipe
from stream_app.service.view import Allow, StatusView
from stream_app.web.parameters import Query, flag, number, text
from stream_app.web.times import rfc3339

QUOTE_64 = "output_format_json_quote_64bit_integers"
"""ClickHouse's setting: 64-bit integers as strings, for clients whose numbers are doubles."""
PARAMETERS = frozenset({"minutes", "topic", "sink", "limit", "open", QUOTE_64})
LIMIT_MAX = 100_000
READ_AT_ONCE = 5_000
"""Minutes and gaps that are looked at before others on the loop have their turn: about 20 ms."""
FORMATS: Mapping[str, str] = {"json": "application/json", "csv": "text/csv", "ndjson": "application/x-ndjson"}
"""By ending of the path: the content type."""
_NULL = "\\N"
"""As ClickHouse writes it in CSV."""


def paths() -> dict[str, tuple[Pipe, str]]:
    """Every path: its pipe and its format."""
    return {f"/v0/pipes/{name}.{ending}": (pipe, ending) for name, pipe in PIPES.items() for ending in FORMATS}


async def answer_pipe(pipe: Pipe, ending: str, query: Query, view: StatusView, now_ms: int, allow: Allow | None) -> web.Response:
    """One answer. Raises BadRequest."""
    begun = time.perf_counter()
    minutes, limit = number(query, "minutes", 1, KEPT_MINUTES), number(query, "limit", 1, LIMIT_MAX)
    asked = Asked(
        minutes=pipe.minutes if minutes is None else minutes,
        open=flag(query, "open") if text(query, "open") is not None else pipe.open,
        topic=text(query, "topic"),
        sink=text(query, "sink"),
        allow=allow,
    )
    quoted = flag(query, QUOTE_64)
    found, read = Found(), 0
    for _ in pipe.steps(view, asked, now_ms, found):
        if found.rows_read - read >= READ_AT_ONCE:
            read = found.rows_read
            await asyncio.sleep(0)
    rows = found.rows[: LIMIT_MAX if limit is None else limit]
    match ending:
        case "csv":
            body = _csv(pipe, rows)
        case "ndjson":
            body = b"".join(msgspec.json.encode(row) + b"\n" for row in _objects(pipe, rows, quoted))
        case _:
            body = msgspec.json.encode(_whole(pipe, rows, quoted, found, time.perf_counter() - begun))
    return web.Response(body=body, content_type=FORMATS[ending], charset="utf-8")


def _whole(pipe: Pipe, rows: Sequence[Sequence[Any]], quoted: bool, found: Found, elapsed: float) -> dict[str, Any]:
    return {
        "meta": [{"name": name, "type": kind} for name, kind in pipe.columns],
        "data": _objects(pipe, rows, quoted),
        "rows": len(rows),
        "rows_before_limit_at_least": len(found.rows),
        "statistics": {"elapsed": elapsed, "rows_read": found.rows_read, "bytes_read": found.bytes_read},
    }


def _objects(pipe: Pipe, rows: Sequence[Sequence[Any]], quoted: bool) -> list[dict[str, Any]]:
    kinds = [(name, _bare(kind)) for name, kind in pipe.columns]
    return [{name: _value(value, kind, quoted) for (name, kind), value in zip(kinds, row, strict=True)} for row in rows]


def _csv(pipe: Pipe, rows: Sequence[Sequence[Any]]) -> bytes:
    """As ClickHouse's CSVWithNames: what is no number is quoted, but for NULL."""
    kinds = [_bare(kind) for _, kind in pipe.columns]
    lines = [[_quoted(name) for name, _ in pipe.columns]]
    lines += [[_csv_value(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in rows]
    return "".join(",".join(line) + "\n" for line in lines).encode()


def _csv_value(value: Any, kind: str) -> str:
    written = _value(value, kind, False)
    if written is None:
        return _NULL
    return _quoted(written) if kind in (STRING, TIME, SECOND) else str(written)


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def _bare(kind: str) -> str:
    return kind.removeprefix("Nullable(").removesuffix(")") if kind.startswith("Nullable(") else kind


def _value(value: Any, kind: str, quoted: bool) -> Any:
    if value is None:
        return None
    if kind in (TIME, SECOND):
        when = rfc3339(value)  # None: a producer may stamp what nobody can write
        return when if when is None else when[: 23 if kind == TIME else 19].replace("T", " ")
    return str(value) if quoted and kind in (OFFSET, COUNT) else value
