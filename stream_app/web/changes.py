"""Requests that change something: what stands in their bodies."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

BODY_MAX = 64 * 1024
"""Bytes; a change names a topic, a sink, some offsets and a reason."""
JSON = "application/json"


class DropSink(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /api/sinks/drop``."""

    topic: str
    sink: str


_Change = TypeVar("_Change", bound=msgspec.Struct)


async def read_change(request: web.Request, kind: type[_Change]) -> _Change:
    """The body of a request that changes something.

    Raises:
        web.HTTPException: 415 without JSON's content type, which a page of another site can't send unasked; 413 for a body that is
            too large; 400 for one that says something else than it should.
    """
    if request.content_type != JSON:
        raise web.HTTPUnsupportedMediaType(reason=f"a change needs Content-Type: {JSON}")
    body = await request.read()
    if len(body) > BODY_MAX:
        raise web.HTTPRequestEntityTooLarge(BODY_MAX, len(body), reason=f"the body may have {BODY_MAX} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(reason=f"the body is not what is needed: {' '.join(str(error).split())}") from error
