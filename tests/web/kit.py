from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from stream_app.core.model import Gap, GapsRecord, Row, StatusRecord, WorkerRecord
from stream_app.service.view import Allow, StatusView
from stream_app.web.api import Api, Readiness
from stream_app.web.observations import Failure, Line
from stream_app.web.server import install

NOW = 1_700_000_000_000

Client = TestClient[web.Request, web.Application]


@dataclass
class Token:
    name: str
    token: str | None = None
    scope: str = "read"
    token_sha256: str | None = None
    topics: Sequence[str] = ()
    sinks: Sequence[str] = ()


@dataclass
class Http:
    host: str = "127.0.0.1"
    tokens: Sequence[Token] = ()
    show_keys: bool = False


class Observed:
    """Takes observations of two topics; a test says what Kafka makes of them."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {"orders": 2, "payments": 1}
        self.now: dict[str, int] | Exception = self.known
        self.written: list[Line] = []
        self.failures: dict[int, Failure] = {}
        """Number of a line -> what comes of it."""
        self.refusal: Exception | None = None
        self.gate: asyncio.Event | None = None
        """Kafka answers when it is set."""

    def partitions(self) -> dict[str, int]:
        return self.known

    async def partitions_now(self) -> dict[str, int]:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    async def write(self, lines: Sequence[Line]) -> list[Failure | None]:
        if self.refusal is not None:
            raise self.refusal
        self.written += lines
        if self.gate is not None:
            await self.gate.wait()
        return [self.failures.get(line.number) for line in lines]


class Worker:
    """A backend whose every fact a test may set."""

    def __init__(self) -> None:
        self.view = filled_view()
        self.observing = Observed()
        self.readiness = Readiness(True)
        self.now_ms = NOW
        self.text: bytes | Exception = b"gapstream_build_info 1.0\n"
        self.explained: dict[str, Any] | Exception = {"runs": []}
        self.questions: list[tuple[Any, ...]] = []
        """What ``explain`` was asked: topic, partition, first, stop, sink, whether all sinks may be seen, whether keys may."""
        self.dropped: list[tuple[str, str, str]] = []
        self.drop_failure: Exception | None = None

    def ready(self) -> Readiness:
        return self.readiness

    def metrics(self) -> bytes:
        if isinstance(self.text, Exception):
            raise self.text
        return self.text

    async def explain(
        self, topic: str, partition: int, first: int, stop: int, *, sink: str | None, allow: Allow | None, show_keys: bool
    ) -> dict[str, Any]:
        self.questions.append((topic, partition, first, stop, sink, allow is None, show_keys))
        if isinstance(self.explained, Exception):
            raise self.explained
        return self.explained

    def clock_ms(self) -> int:
        return self.now_ms

    async def drop_sink(self, topic: str, sink: str, by: str) -> int:
        if self.drop_failure is not None:
            raise self.drop_failure
        self.dropped.append((topic, sink, by))
        return 3


def make_row(topic: str, partition: int, sink: str, **changes: Any) -> Row:
    known: dict[str, Any] = {"missing": 0, "gaps": 0, "duplicates": 0, "lag": 0, "complete_known": True, "end_read_ms": NOW, "pages": 1}
    return Row(
        topic=topic, partition=partition, sink=sink, configured=True, heard=True, updated_at_ms=NOW, incarnation="AAA", **known | changes
    )


def filled_view() -> StatusView:
    """Two topics of one partition, two sinks and the log in each; one gap of three records in each row."""
    topics = ("orders", "payments")
    view = StatusView({topic: {"billing": "consumer", "warehouse": "clickhouse"} for topic in topics}, 300)
    beat = WorkerRecord(worker="w1", at_ms=NOW, session_timeout_ms=10_000, topics=dict.fromkeys(topics, 1))
    view.apply(b"worker/w1", msgspec.json.encode(beat))
    for topic in topics:
        rows = [make_row(topic, 0, sink, missing=3, gaps=1) for sink in ("billing", "log", "warehouse")]
        record = StatusRecord(topic=topic, partition=0, worker="w1", rows=rows)
        view.apply(f"partition/{topic}/0".encode(), msgspec.json.encode(record))
        for row in rows:
            gaps = [Gap(first=5, stop=9, count=3, cause="not_received"), Gap(first=20, stop=21, count=1, cause="tombstone", open=False)]
            page = GapsRecord(topic=topic, partition=0, sink=row.sink, block=0, gaps=gaps)
            view.apply(f"gaps/{topic}/0/{row.sink}/0".encode(), msgspec.json.encode(page))
    view.loaded = True
    return view


@dataclass
class Serve:
    """Starts an application as a worker would; call it once."""

    started: list[Client] = field(default_factory=list)

    async def __call__(self, worker: Worker, http: Http | None = None, *, metrics_need_token: bool = False) -> Client:
        app = web.Application()
        install(app, Api(worker, http or Http(), metrics_need_token=metrics_need_token))
        app.router.add_get("/router/", foreign)
        client = TestClient(TestServer(app))
        await client.start_server()
        self.started.append(client)
        return client


async def foreign(request: web.Request) -> web.Response:
    """A route that is not ours, as Faust adds some."""
    return web.Response(text="internals")


ServeApp = Callable[..., Awaitable[Client]]
