"""Asks a worker over HTTP, for the commands that show state."""

from __future__ import annotations

import functools
import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import click

from stream_app.core.model import Cause, Reason
from stream_app.errors import CouldNotTell, Unavailable, UsageError

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_SECONDS = 10.0
"""A worker answers from memory: what takes longer is not going to come."""
PAGE_GAPS = 5_000
"""Gaps asked for at once; the server allows 10,000."""


CAUSES = tuple(map(str, Cause))
REASONS = tuple(map(str, Reason))


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows, gaps or events are meant; None: all."""

    topic: str | None
    partition: int | None
    sink: str | None
    cause: str | None

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return any(value is not None for value in astuple(self))

    def mean(self, one: object) -> bool:
        """Whether something with these attributes is meant."""
        wanted = asdict(self)
        return all(value is None or getattr(one, name) == value for name, value in wanted.items())


def with_filters(function: F) -> Callable[..., Any]:
    """Give a command ``--topic``, ``--partition``, ``--sink`` and ``--cause``; its argument is ``filters: Filters``."""

    @click.option("--topic", metavar="T", help="Only this topic.")
    @click.option("--partition", metavar="P", type=click.IntRange(0, 2**31 - 1), help="Only this partition.")
    @click.option("--sink", metavar="S", help="Only this sink; log is the log itself.")
    @click.option("--cause", type=click.Choice([*CAUSES, *REASONS]), help="Only this cause, or this reason of an explanation.")
    @functools.wraps(function)
    def wrapper(*args: Any, topic: str | None, partition: int | None, sink: str | None, cause: str | None, **kwargs: Any) -> Any:
        return function(*args, filters=Filters(topic, partition, sink, cause), **kwargs)

    return wrapper


class WorkerClient:
    """One worker, asked by one thread at a time; each question is a connection of its own."""

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = TIMEOUT_SECONDS) -> None:
        """``url``: as in ``http://127.0.0.1:6066``; ``token`` is sent as a bearer token.

        Raises:
            UsageError: the URL can't be one of a worker.
        """
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError(f"--url {url}: {error}") from error
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment or parts.username:
            raise UsageError(f"--url {url} is not the address of a worker: write http://HOST:PORT or https://HOST:PORT")
        self._tls = parts.scheme == "https"
        self._base = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"} | ({} if not token else {"Authorization": f"Bearer {token}"})
        self._timeout_s = timeout_s
        self.url = url

    def get(self, path: str, parameters: Mapping[str, str | int | None] | None = None) -> dict[str, Any]:
        """The JSON answer to one question; parameters that are None are left out.

        Raises:
            Unavailable: the worker can't be reached, refuses, or is not ready.
            UsageError: it takes a parameter for wrong.
            CouldNotTell: what it answers is none of its answers.
        """
        given = {name: str(value) for name, value in (parameters or {}).items() if value is not None}
        return self._answer(path, *self._ask("GET", f"{self._base}{path}" + (f"?{urlencode(given)}" if given else "")))

    def post(self, path: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON answer to a change.

        Raises:
            GapstreamError: as :meth:`get`; UsageError too where there is nothing to be changed, or it may not be now.
        """
        return self._answer(path, *self._ask("POST", f"{self._base}{path}", json.dumps(change).encode()))

    def _answer(self, path: str, status: int, body: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise CouldNotTell(f"{self.url} answered {path} with status {status} and no JSON object: is it a worker of gapstream?")
        if status == 200:
            return answer
        reason = answer.get("error", "no reason was given")
        if status == 401:
            raise Unavailable(f"the worker at {self.url} refuses: {reason}; see --token or GAPSTREAM_TOKEN")
        if status == 403:
            raise Unavailable(f"the worker at {self.url} forbids it: {reason}")
        if status in (400, 404, 409):
            raise UsageError(f"the worker at {self.url} does not take that: {reason}")
        if status == 503:
            raise Unavailable(f"the worker at {self.url} can't answer yet: {reason}")
        raise CouldNotTell(f"the worker at {self.url} answered {path} with status {status}: {reason}")

    def _ask(self, method: str, target: str, change: bytes | None = None) -> tuple[int, bytes]:
        connection: http.client.HTTPConnection
        if self._tls:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            headers = self._headers if change is None else {**self._headers, "Content-Type": "application/json"}
            connection.request(method, target, change, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except ssl.SSLError as error:
            message = f"the worker at {self.url} can't be trusted: {error}; SSL_CERT_FILE can name the certificates to trust"
            raise Unavailable(message) from error
        except (OSError, http.client.HTTPException) as error:
            reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise Unavailable(f"no worker can be reached at {self.url}: {reason}; see --url or GAPSTREAM_URL") from error
        except ValueError as error:  # a header or a target that can't be sent
            raise UsageError(f"this can't be sent to {self.url}: {error}") from error
        finally:
            connection.close()

    def gaps(self, filters: Filters, *, explained_too: bool) -> Iterator[dict[str, Any]]:
        """The whole list of ``/api/gaps``, page after page."""
        cursor: str | None = None
        while True:
            asked = {**asdict(filters), "all": 1 if explained_too else None, "limit": PAGE_GAPS, "cursor": cursor}
            answer = self.get("/api/gaps", asked)
            yield from self.listed(answer, "gaps")
            cursor = answer.get("next")
            if cursor is None:
                return

    def listed(self, answer: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        """The list in an answer.

        Raises:
            CouldNotTell: it is not there.
        """
        found = answer.get(name)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise CouldNotTell(f"the worker at {self.url} answered without {name}: is it of the same version?")
        return found
