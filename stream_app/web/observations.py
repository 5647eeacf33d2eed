"""``POST /api/observations``: lines of NDJSON in, one verdict for each of them out.

A line is accepted when Kafka acknowledged it. Otherwise it is rejected, which the same bytes would be again; or it is not known
to be written, and sending it again is the remedy. What the worker that owns the partition thinks of it, that the log does not
reach so far for instance, is not known here: it is counted and logged there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import msgspec
from aiohttp import web

from stream_app.core.model import Status
from stream_app.sinks.observation import Rejected, address, parse
from stream_app.web.auth import Asker, Scope

BODY_BYTES_MAX = 8 * 1024 * 1024
"""Of one request: a thousand times what a sidecar says in a second; and eight lines of the largest size (1 MiB)."""
LINES_MAX = 10_000
"""Of one request: about 100 ms of work, and an answer of some 2 MB should all be rejected."""
HELD_BYTES_MAX = 4 * BODY_BYTES_MAX
"""Of all requests under way: with the copies that are made of them, some 100 MB."""
REQUESTS_MAX = 256
"""Under way at once: each waits for Kafka for a few milliseconds, or for its few seconds where Kafka is away."""
BODY_SECONDS = 30.0
"""A body that is not there after so long holds up others no longer: 8 MiB need 2 Mbit/s."""
RETRY_AFTER_SECONDS = 1
TOPIC_CHARS_MAX = 249
"""Kafka's own limit of a topic's name: what is longer is not repeated in an answer."""


class Line(NamedTuple):
    """One observation that may be written."""

    number: int
    """Of the line in the body, from 1."""
    topic: str
    partition: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a line was not acknowledged."""

    error: str
    refused: bool = False
    """Kafka will not take it, however often it is sent; else it is not known to be written."""


class Observing(Protocol):
    """Where lines go. Every call is made on the loop of the web server."""

    def partitions(self) -> Mapping[str, int]:
        """Watched topics and how many partitions of each may be observed now; raises Unavailable while that is not known."""

    async def partitions_now(self) -> Mapping[str, int]:
        """The same, as the cluster has them at this moment: asked for where a line speaks of more. Raises Unavailable."""

    async def write(self, lines: Sequence[Line]) -> Sequence[Failure | None]:
        """Write the lines, in this order within each partition, and wait for acknowledgements, a few seconds at most.

        For each line None when it is acknowledged. Nothing is taken back: what is not acknowledged in time may still be
        written later, before anything that is handed over later. Raises Unavailable when nothing was handed over.
        """


@dataclass(slots=True)
class _Judged:
    """What became of the lines of one body before Kafka sees them."""

    lines: list[Line]
    rejected: list[tuple[int, str]]
    beyond: list[Line]
    """They speak of a topic or partition that is not known, or not yet."""


Answer = tuple[HTTPStatus, dict[str, Any]]


class Intake:
    """Takes bodies, a bounded number of bytes at once."""

    def __init__(self, observing: Observing) -> None:
        self._observing = observing
        self._held_bytes = self._requests = 0

    async def take(self, request: web.Request, asker: Asker) -> Answer:
        """Status and JSON of the answer."""
        if self._requests >= REQUESTS_MAX:
            return _too_many()
        body = bytearray()
        self._requests += 1
        try:
            refusal = await self._read(request, body)
            return await self._answer(bytes(body), request.content_type, asker) if refusal is None else refusal
        finally:
            self._requests -= 1
            self._held_bytes -= len(body)

    async def _read(self, request: web.Request, body: bytearray) -> Answer | None:
        """Read into ``body``, counted in ``_held_bytes`` as it grows; an answer where it can't be read whole."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.content.iter_any():
                    if len(body) + len(chunk) > BODY_BYTES_MAX:
                        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"the body may have {BODY_BYTES_MAX} bytes"}
                    if self._held_bytes + len(chunk) > HELD_BYTES_MAX:
                        return _too_many()
                    body += chunk
                    self._held_bytes += len(chunk)
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT, {"error": f"the body was not there after {BODY_SECONDS:g} s"}
        except (OSError, web.RequestPayloadError) as error:
            return HTTPStatus.BAD_REQUEST, {"error": f"the body broke off: {error}"}
        return None

    async def _answer(self, body: bytes, content_type: str, asker: Asker) -> Answer:
        lines = split(body, whole=content_type.endswith("/json"))
        if not lines:
            return HTTPStatus.BAD_REQUEST, {"accepted": 0, "rejected": [], "error": "the body holds no line"}
        if len(lines) > LINES_MAX:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"the body may have {LINES_MAX} lines, not {len(lines)}"}
        # In a thread: a body of bitmaps is seconds of work, and whoever asks for readiness does not wait for it.
        judged = await asyncio.to_thread(judge, lines, asker, self._observing.partitions())
        unknown = await self._look_beyond(judged) if judged.beyond else []
        failures = await self._observing.write(judged.lines) if judged.lines else []
        failed = [(line.number, failure) for line, failure in zip(judged.lines, failures, strict=True) if failure is not None]
        judged.rejected += [(number, failure.error) for number, failure in failed if failure.refused]
        unknown += [(number, failure.error) for number, failure in failed if not failure.refused]
        return _answer(len(lines), sorted(judged.rejected), sorted(unknown))

    async def _look_beyond(self, judged: _Judged) -> list[tuple[int, str]]:
        """Lines about what was not known a moment ago: rejected where it is not there at all, else to be sent again."""
        now = await self._observing.partitions_now()
        unknown: list[tuple[int, str]] = []
        for line in judged.beyond:
            there = now.get(line.topic, 0)
            if line.partition < there:
                unknown.append((line.number, f"partition {line.partition} of {line.topic} is new and can be observed in a few seconds"))
            elif there:
                judged.rejected.append((line.number, f"topic {line.topic} has the partitions 0 to {there - 1}, not {line.partition}"))
            else:
                judged.rejected.append((line.number, f"topic {line.topic} does not exist"))
        return unknown


def split(body: bytes, *, whole: bool) -> list[tuple[int, bytes]]:
    """Number and bytes of each line that is not blank. ``whole``: the body may be one object, written over several lines."""
    if whole and b"\n" in body.strip():
        with suppress(ValueError, RecursionError):  # several objects, or none: the lines say for themselves
            msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            return [(1, body.strip())]
    return [(number, line) for number, line in enumerate(map(bytes.strip, body.split(b"\n")), 1) if line]


def judge(lines: Sequence[tuple[int, bytes]], asker: Asker, partitions: Mapping[str, int]) -> _Judged:
    """Which lines may be written. ``partitions``: of the watched topics; 0 for one that does not exist yet."""
    judged = _Judged([], [], [])
    for number, value in lines:
        try:
            topic, partition = address(value)
            if not asker.may_see_topic(topic):
                raise _NotAllowed(f"this token is not for topic {topic[:TOPIC_CHARS_MAX]}")
            if topic not in partitions:
                raise _NotAllowed(f"topic {topic[:TOPIC_CHARS_MAX]} is not watched")
            observation = parse(value, topic, partition)
            if not asker.may_see_sink(observation.sink):
                raise _NotAllowed(f"this token is not for sink {observation.sink}")
            if observation.status is Status.ACKNOWLEDGED and asker.scope < Scope.WRITE:
                raise _NotAllowed("status acknowledged needs a token of scope write")
            if partition < 0:
                raise _NotAllowed("partition is below 0")
        except (Rejected, _NotAllowed) as error:
            judged.rejected.append((number, str(error)))
            continue
        line = Line(number, topic, partition, value)
        (judged.lines if partition < partitions[topic] else judged.beyond).append(line)
    return judged


class _NotAllowed(Exception):
    """A line that is an observation, but not one for this worker or of this token."""


def _answer(count: int, rejected: Sequence[tuple[int, str]], unknown: Sequence[tuple[int, str]]) -> Answer:
    body: dict[str, Any] = {"accepted": count - len(rejected) - len(unknown), "rejected": _listed(rejected)}
    if unknown:
        number, reason = unknown[0]
        which = f"line {number} is" if len(unknown) == 1 else f"{len(unknown)} of {count} lines are"
        body["unknown"] = _listed(unknown)
        body["error"] = f"{which} not known to be written ({reason}): send again, unchanged and in order, what unknown lists"
        return HTTPStatus.SERVICE_UNAVAILABLE, body
    if len(rejected) == count:
        number, reason = rejected[0]
        body["error"] = f"no line was accepted; line {number}: {reason}"
        return HTTPStatus.BAD_REQUEST, body
    return HTTPStatus.MULTI_STATUS if rejected else HTTPStatus.OK, body


def _listed(lines: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    return [{"line": number, "error": error} for number, error in lines]


def _too_many() -> Answer:
    return HTTPStatus.TOO_MANY_REQUESTS, {"error": "too many observations are under way: send them again in a moment"}
