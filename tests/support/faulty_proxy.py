"""Stands between a client and a ClickHouse, and lets requests fail in the ways that networks and servers do."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FaultyProxy:
    """Passes everything on until told otherwise; ``url`` is what to ask instead. A ``with`` closes it."""

    def __init__(self, url: str) -> None:
        self.asked: list[tuple[str, bytes]] = []
        """Path with parameters, and body, of every request since the last ``clear``."""
        self._upstream = urlsplit(url).netloc
        self._error: tuple[int, int, str] | None = None
        self._forbidden: tuple[bytes, tuple[int, int, str]] | None = None
        self._cut_after: float | None = None
        self._shortened_to: float | None = None
        self._hold: threading.Event | None = None
        self._then: Callable[[bytes], None] | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.handle(self, body)

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # whoever asked was killed meanwhile
                    super().handle()

            do_GET = do_POST  # noqa: N815 - the name that http.server calls

            def log_message(self, format: str, *args: object) -> None:
                """Tests are quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty proxy")
        self._thread.start()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- faults, from the next request on ---------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Pass everything on again; what is held goes on."""
        self._error = self._forbidden = self._cut_after = self._shortened_to = self._then = None
        if self._hold is not None:
            self._hold.set()
            self._hold = None

    def fail(self, status: int, code: int, message: str) -> None:
        """Answer with ClickHouse's error ``code``."""
        self._error = (status, code, message)

    def forbid(self, part: bytes, status: int, code: int, message: str) -> None:
        """Answer statements that have ``part`` with ClickHouse's error ``code``, and pass others on."""
        self._forbidden = part, (status, code, message)

    def cut(self, share: float) -> None:
        """Close the connection after this share of the body, of which the whole was announced."""
        self._cut_after = share

    def shorten(self, share: float) -> None:
        """Send only this share of the body, and announce no more."""
        self._shortened_to = share

    def hold(self) -> None:
        """Ask, but give no answer until ``mend``."""
        self._hold = threading.Event()

    def then(self, act: Callable[[bytes], None]) -> None:
        """Have the statement handed to ``act`` when the server has answered it, before the answer is passed on."""
        self._then = act

    # --- one request ------------------------------------------------------------------------------------------------------------

    def handle(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Ask the server, and answer as told."""
        self.asked.append((request.path, body))
        error = self._forbidden[1] if self._forbidden is not None and self._forbidden[0] in body else self._error
        if error is not None:
            status, code, message = error
            text = f"Code: {code}. DB::Exception: {message} (version 0.0.0.0)\n".encode()
            _send(request, status, {"X-ClickHouse-Exception-Code": str(code)}, text, len(text))
            return
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        connection.request(request.command, request.path, body, {name: value for name, value in request.headers.items() if name != "Host"})
        answer = connection.getresponse()
        found = answer.read()
        headers = {name: value for name, value in answer.getheaders() if name.startswith("X-") or name == "Content-Type"}
        status = answer.status
        connection.close()
        if self._then is not None:
            self._then(body)
        if self._hold is not None:
            self._hold.wait(60)
        if self._shortened_to is not None:
            found = found[: int(len(found) * self._shortened_to)]
        sent = len(found) if self._cut_after is None else int(len(found) * self._cut_after)
        _send(request, status, headers, found[:sent], len(found))
        if sent < len(found):
            request.close_connection = True


def _send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, length: int) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(length))
    request.end_headers()
    request.wfile.write(body)
