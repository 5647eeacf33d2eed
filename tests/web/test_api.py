from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from stream_app.service.view import StatusView
from stream_app.web.api import Readiness
from tests.web.kit import NOW, Http, ServeApp, Token, Worker


async def test_livez_says_nothing_of_kafka(serve: ServeApp, worker: Worker) -> None:
    worker.readiness = Readiness(False, ["no broker answers"])
    client = await serve(worker)
    for path in ("/livez", "/healthz"):
        response = await client.get(path)
        assert (response.status, await response.json()) == (200, {"live": True})


async def test_readyz_tells_why_not(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    response = await client.get("/readyz")
    assert (response.status, await response.json()) == (200, {"ready": True})
    response = await client.get("/readyz?verbose")
    assert await response.json() == {"ready": True, "reasons": []}
    worker.readiness = Readiness(False, ["no broker answers", "no assignment yet"])
    response = await client.get("/readyz")
    assert (response.status, await response.json()) == (503, {"ready": False, "error": "not ready: no broker answers"})
    response = await client.get("/readyz?verbose=1")
    assert (await response.json())["reasons"] == ["no broker answers", "no assignment yet"]
    assert (await client.get("/readyz?verbose=maybe")).status == 400


async def test_metrics_are_the_backends_text(serve: ServeApp, worker: Worker) -> None:
    response = await (await serve(worker)).get("/metrics")
    assert (response.status, await response.read()) == (200, b"gapstream_build_info 1.0\n")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_status_is_the_views_answer(serve: ServeApp, worker: Worker) -> None:
    response = await (await serve(worker)).get("/api/status")
    assert response.content_type == "application/json"
    assert await response.json() == worker.view.status(NOW)


async def test_times_move_with_the_clock(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    worker.now_ms = NOW + 10_001
    assert {line["state"] for line in (await (await client.get("/api/status")).json())["status"]} == {"unknown"}


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({}, 6),
        ({"topic": "orders"}, 3),
        ({"sink": "log"}, 2),
        ({"topic": "orders", "sink": "log"}, 1),
        ({"topic": "nothing"}, 0),
        ({"topic": "", "sink": ""}, 6),
    ],
)
async def test_partitions_are_filtered(serve: ServeApp, worker: Worker, query: dict[str, str], rows: int) -> None:
    response = await (await serve(worker)).get(f"/api/partitions?{urlencode(query)}")
    assert response.status == 200
    assert len((await response.json())["partitions"]) == rows


@pytest.mark.parametrize(
    ("query", "gaps"),
    [
        ("", 6),
        ("all=1", 12),
        ("all=true&cause=tombstone", 6),
        ("all=0", 6),
        ("cause=expired", 0),
        ("topic=orders&partition=0&sink=billing&cause=not_received", 1),
        ("partition=1", 0),
        ("partition=", 6),
        ("limit=4", 4),
    ],
)
async def test_gaps_are_filtered(serve: ServeApp, worker: Worker, query: str, gaps: int) -> None:
    response = await (await serve(worker)).get(f"/api/gaps?{query}")
    assert response.status == 200
    assert len((await response.json())["gaps"]) == gaps


async def test_a_cursor_leads_to_the_next_page(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker)
    first = await (await client.get("/api/gaps?limit=4")).json()
    second = await (await client.get("/api/gaps", params={"limit": 4, "cursor": first["next"]})).json()
    assert second["next"] is None
    assert first["gaps"] + second["gaps"] == worker.view.gaps(NOW)["gaps"]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("partition=x", "partition=x is not a whole number from 0 to 2147483647"),
        ("partition=-1", "partition=-1 is not a whole number from 0 to 2147483647"),
        ("partition=1_0", "partition=1_0 is not a whole number from 0 to 2147483647"),
        ("partition=2147483648", "partition=2147483648 is not a whole number from 0 to 2147483647"),
        ("limit=0", "limit=0 is not a whole number from 1 to 10000"),
        ("limit=10001", "limit=10001 is not a whole number from 1 to 10000"),
        ("limit=" + "9" * 5000, None),
        ("all=2", "all=2 is neither 1 nor 0"),
        ("cause=tombstone", "cause=tombstone is one of explained gaps: ask with all=1"),
        ("cause=bad", None),
        ("cursor=zzz", "the cursor is none that this server gave out: leave cursor out to begin anew"),
        ("from=1", "parameter from is not known; known are: all, cause, cursor, limit, partition, sink, topic"),
        ("topic=a&topic=b", "parameter topic is given twice"),
        ("token=x", None),
    ],
)
async def test_bad_questions(serve: ServeApp, worker: Worker, query: str, error: str | None) -> None:
    response = await (await serve(worker)).get(f"/api/gaps?{query}")
    body: dict[str, Any] = await response.json()
    assert (response.status, list(body)) == (400, ["error"])
    assert error in (None, body["error"])


async def test_status_takes_no_parameters(serve: ServeApp, worker: Worker) -> None:
    response = await (await serve(worker)).get("/api/status?topic=orders")
    assert (response.status, await response.json()) == (400, {"error": "parameter topic is not known; known are: none"})


async def test_before_the_status_topic_is_read_nothing_is_claimed(serve: ServeApp, worker: Worker) -> None:
    worker.view = StatusView({}, 300)
    client = await serve(worker)
    for path in ("/api/status", "/api/partitions", "/api/gaps"):
        response = await client.get(path)
        assert (response.status, await response.json()) == (503, {"error": "not ready: the status topic is not read to its end yet"})


async def test_a_limited_token_sees_its_part(serve: ServeApp, worker: Worker) -> None:
    http = Http(tokens=[Token("a", "secret", topics=["orders"], sinks=["billing", "log"])])
    client = await serve(worker, http)
    headers = {"Authorization": "Bearer secret"}
    for path, name in (("/api/status", "status"), ("/api/partitions", "partitions"), ("/api/gaps", "gaps")):
        response = await client.get(path, headers=headers)
        found = (await response.json())[name]
        assert [(one["topic"], one["sink"]) for one in found] == [("orders", "billing"), ("orders", "log")]
    for query in ("topic=payments", "sink=warehouse", "topic=orders&sink=warehouse", "topic=orders&topic=payments"):
        response = await client.get(f"/api/gaps?{query}", headers=headers)
        assert response.status == 403
    assert (await client.get("/api/gaps?topic=orders&sink=log", headers=headers)).status == 200
