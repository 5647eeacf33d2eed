"""What is asked over HTTP and how it is answered: one handler per request of contract section 8.

Handlers of questions read memory only, so none of them waits for Kafka, but for ``explain``; those of changes do, with a bound.
Who may ask is decided before, in ``web.server``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from stream_app.core.model import MAX_OFFSET, Cause, Reason
from stream_app.service.explain import OFFSETS_MAX, CannotAsk, NotThere
from stream_app.service.pipes import Pipe
from stream_app.service.view import GAPS_LIMIT, GAPS_LIMIT_MAX, Allow, BadCursor, StatusView
from stream_app.web.auth import Asker, Scope, TokenConfig
from stream_app.web.changes import BODY_MAX, DropSink, read_change
from stream_app.web.observations import BODY_BYTES_MAX, RETRY_AFTER_SECONDS, Intake, Observing
from stream_app.web.parameters import BadRequest, Query, flag, number, text
from stream_app.web.pipes import PARAMETERS, answer_pipe, paths

T = TypeVar("T")

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format (prometheus.io, exposition formats)."""
PARTITION_MAX = 2**31 - 1
_OPEN_CAUSES = frozenset(map(str, Cause))
_CAUSES = _OPEN_CAUSES | frozenset(map(str, Reason))


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a worker can be relied on: it has an assignment, its state is recovered, it is not draining."""

    ok: bool
    reasons: Sequence[str] = ()
    """Why not, one clause each."""


class Backend(Protocol):
    """What the answers are made of. Every call is made on the loop of the web server and must not block."""

    @property
    def view(self) -> StatusView:
        """The cluster as of the last record read from the status topic."""

    def ready(self) -> Readiness:
        """Asked by every ``/readyz``."""

    def metrics(self) -> bytes:
        """The text of ``/metrics``."""

    def clock_ms(self) -> int:
        """Now."""

    async def explain(
        self, topic: str, partition: int, first: int, stop: int, *, sink: str | None, allow: Allow | None, show_keys: bool
    ) -> dict[str, Any]:
        """The answer of ``/api/explain`` for offsets ``[first, stop)``; waits for Kafka.

        Raises:
            NotThere: nobody knows the topic, the partition or the sink.
            CannotAsk: Kafka can't be asked now.
        """

    async def drop_sink(self, topic: str, sink: str, by: str) -> int:
        """Have a sink forgotten by all who own partitions of the topic; how many partitions were told. Raises Unavailable."""

    @property
    def observing(self) -> Observing:
        """Where observations go."""


class HttpConfig(Protocol):
    """The section ``http`` of the configuration, as far as it is used here."""

    @property
    def host(self) -> str:
        """Address that is listened on."""

    @property
    def tokens(self) -> Sequence[TokenConfig]:
        """Empty: anybody on this machine may ask and change."""

    @property
    def show_keys(self) -> bool:
        """Whether scope read sees record keys."""


class Unavailable(Exception):
    """The answer is not known yet; the message says why."""


Handler = Callable[[web.Request, Asker, Query], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    scope: Scope | None
    """Least scope that may ask; None: open to all who reach the port."""
    parameters: frozenset[str] = frozenset()
    """Names that the query may hold."""
    lenient: bool = False
    """Parameters of other names are ignored, and a token may stand in the query: as Tinybird's clients send it."""
    all_topics: bool = False
    """The answer can't be cut down to some topics or sinks."""
    body_max: int = 0
    """Bytes that the request's body may have."""


class Api:
    """The answers of one worker."""

    def __init__(self, backend: Backend, http: HttpConfig, *, metrics_need_token: bool = False) -> None:
        """``metrics_need_token``: ``metrics.require_token`` of the configuration."""
        self.backend = backend
        self.http = http
        self._intake = Intake(backend.observing)
        read = Scope.READ
        rows = frozenset({"topic", "sink"})
        self.endpoints: tuple[Endpoint, ...] = (
            Endpoint("GET", "/livez", self.livez, None),
            Endpoint("GET", "/healthz", self.livez, None),
            Endpoint("GET", "/readyz", self.readyz, None, frozenset({"verbose"})),
            Endpoint("GET", "/metrics", self.metrics, read if metrics_need_token else None, all_topics=True),
            Endpoint("GET", "/api/status", self.status, read),
            Endpoint("GET", "/api/partitions", self.partitions, read, rows),
            Endpoint("GET", "/api/gaps", self.gaps, read, rows | {"partition", "cause", "all", "limit", "cursor"}),
            Endpoint("GET", "/api/explain", self.explain, read, rows | {"partition", "first", "last"}),
            Endpoint("POST", "/api/sinks/drop", self.drop_sink, Scope.WRITE, body_max=BODY_MAX),
            Endpoint("POST", "/api/observations", self.observations, Scope.OBSERVE, body_max=BODY_BYTES_MAX),
            *(Endpoint("GET", path, self._pipe(pipe, ending), read, PARAMETERS, lenient=True) for path, (pipe, ending) in paths().items()),
        )

    async def livez(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Whether the event loop turns; says nothing of Kafka."""
        return answer({"live": True})

    async def readyz(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Whether this worker can be relied on, with the reason why not; ``?verbose``: all of them."""
        ready = self.backend.ready()
        body: dict[str, Any] = {"ready": ready.ok}
        if not ready.ok:
            body["error"] = f"not ready: {next(iter(ready.reasons), 'no reason is known')}"
        if flag(query, "verbose", bare=True):
            body["reasons"] = list(ready.reasons)
        return answer(body, 200 if ready.ok else 503)

    async def metrics(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Prometheus text."""
        return web.Response(body=self.backend.metrics(), headers={"Content-Type": METRICS_TYPE})

    async def status(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """One line per topic and sink."""
        return answer(self._view().status(self.backend.clock_ms(), allow=_allow(asker)))

    async def partitions(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """One row per topic, partition and sink."""
        rows = self._view().partitions(self.backend.clock_ms(), text(query, "topic"), text(query, "sink"), allow=_allow(asker))
        return answer(rows)

    async def gaps(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Open gaps; with ``all`` explained ones too."""
        explained_too, cause = flag(query, "all"), text(query, "cause")
        if cause is not None and cause not in _CAUSES:
            raise BadRequest(f"cause={cause} is not known; known are {', '.join(sorted(_CAUSES))}")
        if cause is not None and cause not in _OPEN_CAUSES and not explained_too:
            raise BadRequest(f"cause={cause} is one of explained gaps: ask with all=1")
        limit = number(query, "limit", 1, GAPS_LIMIT_MAX)
        partition = number(query, "partition", 0, PARTITION_MAX)
        try:
            found = self._view().gaps(
                self.backend.clock_ms(),
                topic=text(query, "topic"),
                partition=partition,
                sink=text(query, "sink"),
                cause=cause,
                all=explained_too,
                limit=GAPS_LIMIT if limit is None else limit,
                cursor=text(query, "cursor"),
                allow=_allow(asker),
            )
        except BadCursor as error:
            raise BadRequest(f"{error}: leave cursor out to begin anew") from error
        return answer(found)

    async def explain(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Why offsets are what they are: verdict, evidence and states per run."""
        topic = _needed("topic", text(query, "topic"))
        partition = _needed("partition", number(query, "partition", 0, PARTITION_MAX))
        first = _needed("first", number(query, "first", 0, MAX_OFFSET - 1))
        last = number(query, "last", 0, MAX_OFFSET - 1)
        stop = first + 1 if last is None else last + 1
        if stop <= first:
            raise BadRequest(f"last={last} is below first={first}")
        if stop - first > OFFSETS_MAX:
            raise BadRequest(f"first={first} to last={last} are {stop - first:,} offsets: ask for {OFFSETS_MAX:,} at most")
        self._view()
        show_keys = self.http.show_keys or asker.scope >= Scope.WRITE
        try:
            found = await self.backend.explain(
                topic, partition, first, stop, sink=text(query, "sink"), allow=_allow(asker), show_keys=show_keys
            )
        except NotThere as error:
            raise BadRequest(str(error)) from error
        except CannotAsk as error:
            raise Unavailable(str(error)) from error
        return answer(found)

    def _pipe(self, pipe: Pipe, ending: str) -> Handler:
        """One of the guide's queries, in one format."""

        async def handle(request: web.Request, asker: Asker, query: Query) -> web.Response:
            return await answer_pipe(pipe, ending, query, self._view(), self.backend.clock_ms(), _allow(asker))

        return handle

    async def drop_sink(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Forget a sink that stands in no configuration."""
        wanted = await read_change(request, DropSink)
        if not asker.may_see(wanted.topic, wanted.sink):
            raise web.HTTPForbidden(reason="this token is not for that topic and sink")
        match self._view().stands_in_configuration(wanted.topic, wanted.sink):
            case None:
                raise web.HTTPNotFound(reason=f"no sink {wanted.sink} of topic {wanted.topic} is known".encode("unicode_escape").decode())
            case True:
                message = f"sink {wanted.sink} stands in a worker's configuration: take it out and restart the workers first"
                raise web.HTTPConflict(reason=message)
        partitions = await self.backend.drop_sink(wanted.topic, wanted.sink, asker.name)
        return answer({"topic": wanted.topic, "sink": wanted.sink, "partitions": partitions})

    async def observations(self, request: web.Request, asker: Asker, query: Query) -> web.Response:
        """Take observations, and say of each line whether Kafka has it."""
        status, body = await self._intake.take(request, asker)
        response = answer(body, status)
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return response

    def _view(self) -> StatusView:
        if not self.backend.view.loaded:
            raise Unavailable("not ready: the status topic is not read to its end yet")
        return self.backend.view


def _needed(name: str, value: T | None) -> T:
    if value is None:
        raise BadRequest(f"parameter {name} is needed")
    return value


def _allow(asker: Asker) -> Allow | None:
    return asker.may_see if asker.limited else None


def answer(body: Mapping[str, Any], status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
