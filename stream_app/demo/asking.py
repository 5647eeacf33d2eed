"""Asks the worker over HTTP, on loopback and past any proxy."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from typing import Any

ASK_SECONDS = 2.0


def ask(port: int, path: str) -> tuple[int, Any]:
    """Status and JSON of an answer (None where it is no JSON); status 0: the worker does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, None


class StatusWatch:
    """Asks for ``/api/status`` once a second in a thread of its own, so that a slow answer does not hold up the screen."""

    def __init__(self, port: int, answered: Callable[[list[dict[str, Any]]], None]) -> None:
        self._port, self._answered = port, answered
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="status", daemon=True).start()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            status, found = ask(self._port, "/api/status")
            self._answered(found["status"] if status == http.HTTPStatus.OK and isinstance(found, dict) else [])

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
