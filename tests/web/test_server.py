from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

import faust
import pytest
import structlog
from aiohttp.test_utils import TestClient, TestServer
from faust.web.drivers.aiohttp import Web
from structlog.testing import capture_logs

from stream_app.web.api import Api
from stream_app.web.auth import Scope
from stream_app.web.pipes import paths as pipes
from stream_app.web.server import install, ssl_context
from tests.web.kit import Client, Http, ServeApp, Token, Worker

TOKENS = [
    Token("reader", "r", "read"),
    Token("observer", "o", "observe"),
    Token("writer", "w", "write"),
    Token("part", "p", topics=["orders"]),
]
OPEN = ["/livez", "/healthz", "/readyz", "/metrics"]
CLOSED = ["/api/status", "/api/partitions", "/api/gaps"]
ASKED = ["/api/explain"]
"""Closed, and an error without parameters."""
CHANGING = ["/api/sinks/drop", "/api/observations"]


async def error_of(client: Client, path: str, status: int, method: str = "GET", **headers: str) -> str:
    """The one sentence of an error answer."""
    response = await client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    body = await response.json()
    assert (response.status, list(body)) == (status, ["error"])
    return str(body["error"])


class TestTokens:
    @pytest.fixture
    async def client(self, serve: ServeApp, worker: Worker) -> Client:
        return await serve(worker, Http(host="0.0.0.0", tokens=TOKENS))  # noqa: S104 - what a user would write

    @pytest.mark.parametrize("path", OPEN)
    async def test_open_paths(self, client: Client, path: str) -> None:
        assert (await client.get(path)).status == 200
        assert (await client.get(path, headers={"Authorization": "Bearer wrong", "Host": "any.example"})).status == 200

    @pytest.mark.parametrize("path", CLOSED)
    async def test_closed_paths(self, client: Client, path: str) -> None:
        response = await client.get(path)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="gapstream"'
        assert await response.json() == {"error": "a token is needed: send Authorization: Bearer TOKEN"}
        assert await error_of(client, path, 401, Authorization="Bearer wrong") == "this token is not known"
        await error_of(client, f"{path}?token=r", 401)
        for token in "row":
            assert (await client.get(path, headers={"Authorization": f"bearer {token}"})).status == 200

    async def test_metrics_with_require_token(self, serve: ServeApp, worker: Worker) -> None:
        client = await serve(worker, Http(tokens=TOKENS), metrics_need_token=True)
        await error_of(client, "/metrics", 401)
        assert (await client.get("/metrics", headers={"Authorization": "Bearer r"})).status == 200
        assert "limited" in await error_of(client, "/metrics", 403, Authorization="Bearer p")

    async def test_the_order_is_401_403_400(self, client: Client) -> None:
        both = "/api/gaps?nonsense=1&topic=payments"
        await error_of(client, both, 401)
        assert await error_of(client, both, 403, Authorization="Bearer p") == "this token is not for that topic"
        assert "nonsense" in await error_of(client, both, 400, Authorization="Bearer r")
        await error_of(client, "/api/gaps", 403, Authorization="Bearer r", Origin="http://evil.example")

    async def test_too_small_a_scope(self, serve: ServeApp, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Api.__init__

        def raised(self: Api, *args: object, **options: object) -> None:
            original(self, *args, **options)  # type: ignore[arg-type]  # handed through
            for endpoint in self.endpoints:
                object.__setattr__(endpoint, "scope", endpoint.scope and Scope.OBSERVE)

        monkeypatch.setattr(Api, "__init__", raised)
        client = await serve(worker, Http(tokens=TOKENS))
        assert await error_of(client, "/api/gaps?x=1", 403, Authorization="Bearer r") == "this token has scope read; observe is needed"
        for token in "ow":
            assert (await client.get("/api/gaps", headers={"Authorization": f"Bearer {token}"})).status == 200


class TestLoopback:
    @pytest.mark.parametrize("path", [*OPEN, *CLOSED])
    async def test_a_foreign_host_is_refused(self, serve: ServeApp, worker: Worker, path: str) -> None:
        client = await serve(worker)
        assert "localhost" in await error_of(client, path, 403, Host="evil.example:6066")
        for host in ("localhost:6066", "127.0.0.1", "[::1]:6066"):
            assert (await client.get(path, headers={"Host": host})).status == 200

    async def test_a_foreign_origin_is_refused(self, serve: ServeApp, worker: Worker) -> None:
        client = await serve(worker)
        assert "Origin" in await error_of(client, "/api/status", 403, Host="localhost:6066", Origin="http://evil.example")
        assert (await client.get("/api/status", headers={"Host": "localhost:6066", "Origin": "http://localhost:6066"})).status == 200

    async def test_no_host_at_all(self, serve: ServeApp, worker: Worker) -> None:
        client = await serve(worker)
        assert (await raw(client, b"GET /livez HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200")


async def raw(client: Client, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("path", ["/", "/nothing", "/api", "/api/status/", "/router/", "/API/status", "/livez/x", "/%ff"])
async def test_what_is_not_ours_is_not_found(serve: ServeApp, worker: Worker, path: str) -> None:
    client = await serve(worker)
    assert (await error_of(client, path, 404)).startswith("there is nothing at /")
    await error_of(client, path, 404, "POST")


async def test_bytes_that_are_no_text_are_answered(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    for target in (b"/\xff", b"/api/gaps?\xff=1", b"/api/gaps?cause=\xff", b"/api/gaps?cause=%ff", b"/api/gaps?%ed%a0%80=1"):
        answer = await raw(client, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer[9:10] == b"4", answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_told_what_is_allowed(serve: ServeApp, worker: Worker, method: str) -> None:
    client = await serve(worker)
    response = await client.request(method, "/api/status")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert await response.json() == {"error": "/api/status takes GET, HEAD"}
    await error_of(client, "/router/", 404, method)


@pytest.mark.parametrize("path", [*OPEN, *CLOSED])
async def test_head_answers_as_get_without_a_body(serve: ServeApp, worker: Worker, path: str) -> None:
    client = await serve(worker)
    got, headed = await client.get(path), await client.head(path)
    assert (headed.status, await headed.read()) == (200, b"")
    assert headed.headers["Content-Length"] == str(len(await got.read()))
    assert headed.headers["Content-Type"] == got.headers["Content-Type"]


async def test_every_answer_carries_the_headers(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    for path in (*OPEN, *CLOSED, "/nothing", "/api/gaps?x=1"):
        headers = (await client.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Server"] == "gapstream"


async def test_a_body_beyond_use_is_refused(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    assert (await client.request("GET", "/api/status", data=b"{}")).status == 200
    response = await client.request("GET", "/api/status", data=b"x" * 70_000)
    assert (response.status, list(await response.json())) == (413, ["error"])


async def test_a_defect_is_logged_and_tells_nothing(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    worker.text = RuntimeError("secret detail")
    structlog.reset_defaults()
    with capture_logs() as logs:
        message = await error_of(client, "/metrics", 500)
    assert "secret" not in message
    assert [(one["event"], one["path"]) for one in logs] == [("a request could not be answered", "/metrics")]


async def test_on_fausts_own_web_server(worker: Worker) -> None:
    app = faust.App("web-test", broker="kafka://127.0.0.1:1", store="memory://")
    server = app.web
    assert isinstance(server, Web)
    install(server.web_app, Api(worker, Http()))
    assert server.cors is not None, "Faust's server sets it up at its start"
    server.init_server()
    client = TestClient(TestServer(server.web_app))
    await client.start_server()
    try:
        paths = {resource.canonical for resource in server.web_app.router.resources()}
        assert "/router/" in {path.rstrip("/") + "/" for path in paths}, "Faust has routes of its own to be hidden"
        for path in paths - {*OPEN, *CLOSED, *ASKED, *CHANGING, *pipes()}:
            await error_of(client, path, 404)
        for path in (*OPEN, *CLOSED, *pipes()):
            assert (await client.get(path)).status == 200
        for path in ASKED:
            assert (await client.get(path)).status == 400
    finally:
        await client.close()


@dataclass
class Tls:
    cert: Path
    key: Path


async def test_tls(tmp_path: Path) -> None:
    tls = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert ssl_context(None) is None
    with pytest.raises(ValueError, match=r"http\.tls: .*cert\.pem"):
        ssl_context(tls)
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    await asyncio.to_thread(subprocess.run, [*make, "-keyout", str(tls.key), "-out", str(tls.cert)], check=True, capture_output=True)
    assert ssl_context(tls) is not None
    tls.key.write_text("nonsense")
    with pytest.raises(ValueError, match="can't be used"):
        ssl_context(tls)
