from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from stream_app.cli import main
from stream_app.web.api import Api
from stream_app.web.server import install
from tests.cli.kit import Command, Ran, Served
from tests.web.kit import Http, Token, Worker


@pytest.fixture
def gapstream(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command line in this process, in an empty folder and without settings from outside."""
    for name in ("GAPSTREAM_URL", "GAPSTREAM_TOKEN", "GAPSTREAM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Ran:
        code = main(argv)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@dataclass
class _Thread:
    """A web server with a loop of its own, since commands block."""

    app: web.Application

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.runner = web.AppRunner(self.app)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    async def _start(self) -> int:
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port: int = self.runner.addresses[0][1]
        return port

    def start(self) -> int:
        return asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    """A worker that answers from hand-made records; token ``all`` sees everything, ``part`` one topic, ``write`` may change."""
    worker = Worker()
    app = web.Application()
    tokens = [Token("all", "all"), Token("part", "part", topics=["payments"]), Token("write", "write", "write")]
    install(app, Api(worker, Http(tokens=tokens)))
    thread = _Thread(app)
    try:
        yield Served(worker, f"http://127.0.0.1:{thread.start()}")
    finally:
        thread.stop()


@pytest.fixture
def odd_server() -> Iterator[str]:
    """Something that is no worker: answers with what the path says."""

    async def answer(request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind == "redirect":
            return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
        texts = {"html": "<html>", "list": "[]", "empty": "{}", "strings": '{"status":["a"]}', "broken": '{"error":"a defect"}'}
        return web.Response(text=texts[kind], status=500 if kind == "broken" else 200)

    app = web.Application()
    app.router.add_get("/{kind}/{rest:.*}", answer)
    thread = _Thread(app)
    try:
        yield f"http://127.0.0.1:{thread.start()}"
    finally:
        thread.stop()
