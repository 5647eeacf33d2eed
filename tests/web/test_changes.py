"""Dropping a sink over HTTP: who may, what for, and what comes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stream_app.core.model import StatusRecord
from stream_app.web.api import Unavailable
from tests.web.kit import Client, Http, ServeApp, Token, Worker, make_row

TOKENS = [
    Token("reader", "r"),
    Token("reporter", "o", scope="observe"),
    Token("writer", "w", scope="write"),
    Token("narrow", "n", scope="write", topics=["payments"], sinks=["old"]),
]
OLD = {"topic": "orders", "sink": "old"}


@pytest.fixture
def worker(worker: Worker) -> Worker:
    """With a sink that stands in no configuration."""
    for topic in ("orders", "payments"):
        rows = [make_row(topic, 0, "billing"), make_row(topic, 0, "log"), make_row(topic, 0, "old")]
        rows[-1].configured = False
        record = StatusRecord(topic=topic, partition=0, worker="w1", rows=rows)
        worker.view.apply(f"partition/{topic}/0".encode(), msgspec.json.encode(record))
    return worker


async def drop(client: Client, body: Any, token: str | None = None, **headers: str) -> tuple[int, Any]:
    sent = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {}), **headers}
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = await client.post("/api/sinks/drop", data=data, headers=sent)
    return response.status, await response.json()


async def test_a_sink_that_left_is_dropped(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    assert await drop(client, OLD) == (200, {**OLD, "partitions": 3})
    assert worker.dropped == [("orders", "old", "local")]


async def test_a_configured_sink_and_one_that_nobody_knows_are_refused(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    status, body = await drop(client, {"topic": "orders", "sink": "billing"})
    assert (status, "restart the workers first" in body["error"]) == (409, True)
    assert (await drop(client, {"topic": "orders", "sink": "log"}))[0] == 409
    assert await drop(client, {"topic": "orders", "sink": "gone\r\nx"}) == (404, {"error": r"no sink gone\r\nx of topic orders is known"})
    assert (await drop(client, {"topic": "nothing", "sink": "old"}))[0] == 404
    assert worker.dropped == []


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("x", 401), ("r", 403), ("o", 403), ("n", 403), ("w", 200)])
async def test_who_may(serve: ServeApp, worker: Worker, token: str | None, status: int) -> None:
    client = await serve(worker, Http(tokens=TOKENS))
    assert (await drop(client, OLD, token))[0] == status
    assert worker.dropped == ([("orders", "old", "writer")] if status == 200 else [])


async def test_a_narrow_token_may_for_what_it_sees(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker, Http(tokens=TOKENS))
    assert (await drop(client, {"topic": "payments", "sink": "old"}, "n"))[0] == 200
    assert (await drop(client, {"topic": "payments", "sink": "other"}, "n"))[0] == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"\xff"', 400),
        ({}, 400),
        ({"topic": "orders"}, 400),
        ({"topic": "orders", "sink": 7}, 400),
        ({**OLD, "more": 1}, 400),
        (b"[" * 60_000, 400),
        (b" " * 70_000, 413),
    ],
)
async def test_bodies_that_say_something_else(serve: ServeApp, worker: Worker, body: Any, status: int) -> None:
    found, answer = await drop(await serve(worker), body)
    assert (found, list(answer)) == (status, ["error"])
    assert worker.dropped == []


async def test_what_a_page_of_another_site_can_send_is_refused(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    assert (await drop(client, OLD, **{"Content-Type": "text/plain"}))[0] == 415
    assert (await drop(client, OLD, Origin="http://elsewhere"))[0] == 403
    assert (await client.get("/api/sinks/drop")).status == 405
    assert worker.dropped == []


async def test_kafka_that_cant_be_told(serve: ServeApp, worker: Worker) -> None:
    worker.drop_failure = Unavailable("not all partitions could be told")
    assert await drop(await serve(worker), OLD) == (503, {"error": "not all partitions could be told"})


async def test_before_the_status_topic_is_read(serve: ServeApp, worker: Worker) -> None:
    worker.view.loaded = False
    assert (await drop(await serve(worker), OLD))[0] == 503
