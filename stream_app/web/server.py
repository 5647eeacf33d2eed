"""The door: routes on Faust's web server, and the checks that stand in front of every one of them.

Order of the checks: a path that is ours (404), a method that it knows (405), a Host that is this machine where no tokens are
configured (403), a token (401), its scope, topics and sinks, the Origin (403), the body's type (415) and size (413), the
parameters (400).
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Protocol

import structlog
from aiohttp import web

from stream_app.web.api import Api, Endpoint, Unavailable, answer
from stream_app.web.auth import LOCAL, NOBODY, Asker, Tokens, bearer, host_is_local, same_origin
from stream_app.web.parameters import BadRequest, Query

log = structlog.get_logger("gapstream.web")

BODY_MAX_WITHOUT_USE = 64 * 1024
"""Bytes of a body that nobody reads: some clients send an empty JSON object with a GET."""
BODY_TYPES = frozenset({"application/json", "application/x-ndjson", "application/ndjson", "application/jsonl"})
"""Of what changes something. A page of a foreign site can't send these without asking first (Fetch: CORS-safelisted types)."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Server": "gapstream",
}
"""Set on every answer that does not set its own."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TlsConfig(Protocol):
    """The section ``http.tls``."""

    @property
    def cert(self) -> object:
        """Path of the certificate chain, PEM."""

    @property
    def key(self) -> object:
        """Path of the private key, PEM."""


class Refused(Exception):
    """A request that is answered with an error; the message is a sentence for the one who asked."""

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


def install(web_app: web.Application, api: Api) -> None:
    """Put the API's routes and the checks on an aiohttp application that has not started.

    Any other route of the application (Faust brings some of its own) is answered with 404 from then on.
    """
    door = _Door(api)
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in api.endpoints:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    for path, methods in by_path.items():
        # One route for all methods: which of them the path knows is for the door to say, in JSON.
        door.paths[web_app.router.add_route("*", path, _never_called)] = methods

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        return await door.answer(request)

    web_app.middlewares.insert(0, check)


async def _never_called(request: web.Request) -> web.StreamResponse:
    raise AssertionError("the middleware answers every request")


def ssl_context(tls: TlsConfig | None) -> ssl.SSLContext | None:
    """The context for ``http.tls``; None where TLS is not configured.

    Raises:
        ValueError: a file can't be read or the two do not belong together; the message names the setting.
    """
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(str(tls.cert), str(tls.key))
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"http.tls: {tls.cert} and {tls.key} can't be used: {error}") from error
    return context


class _Door:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._tokens = Tokens(api.http.tokens)
        self.paths: dict[web.AbstractRoute, dict[str, Endpoint]] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """What is sent back: the handler's answer, or an error in JSON."""
        try:
            response = await self._ask(request)
        except Refused as refused:
            response = answer({"error": str(refused)}, refused.status)
            response.headers.update(refused.headers)
        except BadRequest as error:
            response = answer({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except Unavailable as error:
            response = answer({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        except web.HTTPException as error:  # aiohttp's own, as for a body beyond its limit
            response = answer({"error": error.reason}, error.status)
        except Exception:
            log.exception("a request could not be answered", method=request.method, path=request.path)
            response = answer({"error": "a defect in gapstream: see the worker's log"}, HTTPStatus.INTERNAL_SERVER_ERROR)
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        methods = self.paths.get(request.match_info.route)
        if methods is None:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is nothing at {request.path}")
        endpoint = methods.get("GET" if request.method == "HEAD" else request.method)
        if endpoint is None:
            allowed = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} takes {allowed}", {"Allow": allowed})
        asker = self._who(request, endpoint)
        self._may(request, endpoint, asker)
        if endpoint.method not in ("GET", "HEAD") and request.content_type.lower() not in BODY_TYPES:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a change needs Content-Type: application/x-ndjson or application/json")
        if (request.content_length or 0) > max(endpoint.body_max, BODY_MAX_WITHOUT_USE):
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {endpoint.body_max} bytes")
        return await endpoint.handler(request, asker, _query(request, endpoint))

    def _who(self, request: web.Request, endpoint: Endpoint) -> Asker:
        if not self._tokens:
            if not host_is_local(request.headers.get("Host"), self._api.http.host):
                message = "this Host is not served without tokens: use localhost, or configure http.tokens"
                raise Refused(HTTPStatus.FORBIDDEN, message)
            return LOCAL
        token = bearer(request.headers.get("Authorization"))
        if token is None and endpoint.lenient:
            token = request.query.get("token") or None
        asker = None if token is None else self._tokens.find(token)
        if asker is not None:
            return asker
        if endpoint.scope is None:
            return NOBODY
        message = "a token is needed: send Authorization: Bearer TOKEN" if token is None else "this token is not known"
        raise Refused(HTTPStatus.UNAUTHORIZED, message, {"WWW-Authenticate": 'Bearer realm="gapstream"'})

    @staticmethod
    def _may(request: web.Request, endpoint: Endpoint, asker: Asker) -> None:
        if endpoint.scope is not None:
            if asker.scope < endpoint.scope:
                message = f"this token has scope {asker.scope.name.lower()}; {endpoint.scope.name.lower()} is needed"
                raise Refused(HTTPStatus.FORBIDDEN, message)
            if endpoint.all_topics and asker.limited:
                raise Refused(HTTPStatus.FORBIDDEN, "this token is limited to some topics or sinks; the answer tells of all")
            for name, may in (("topic", asker.may_see_topic), ("sink", asker.may_see_sink)):
                if any(value and not may(value) for value in request.query.getall(name, [])):
                    raise Refused(HTTPStatus.FORBIDDEN, f"this token is not for that {name}")
        if not same_origin(request.headers.get("Origin"), request.headers.get("Host")):
            raise Refused(HTTPStatus.FORBIDDEN, "the Origin is not the address that was asked")


def _query(request: web.Request, endpoint: Endpoint) -> Query:
    known = endpoint.parameters
    for name in request.query:
        if endpoint.lenient and name not in known:
            continue
        if name not in known:
            raise BadRequest(f"parameter {name} is not known; known are: {', '.join(sorted(known)) or 'none'}")
        if len(request.query.getall(name)) > 1:
            raise BadRequest(f"parameter {name} is given twice")
    return {name: value for name, value in request.query.items() if name in known}
