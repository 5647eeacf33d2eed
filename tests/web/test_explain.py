"""``GET /api/explain``: what may be asked by whom, and what becomes of it."""

from __future__ import annotations

import pytest

from stream_app.service.explain import CannotAsk, NotThere
from stream_app.service.view import StatusView
from tests.web.kit import Http, ServeApp, Token, Worker

ONE = "/api/explain?topic=orders&partition=3&first=7"


async def test_the_answer_is_the_backends(serve: ServeApp, worker: Worker) -> None:
    worker.explained = {"runs": [{"first_offset": 7}]}
    client = await serve(worker)
    response = await client.get(ONE)
    assert (response.status, await response.json()) == (200, worker.explained)
    await client.get(f"{ONE}&last=9&sink=billing")
    await client.get(f"{ONE}&last=7&sink=")
    await client.get(f"{ONE}&last=10006")
    assert worker.questions == [
        ("orders", 3, 7, 8, None, True, True),
        ("orders", 3, 7, 10, "billing", True, True),
        ("orders", 3, 7, 8, None, True, True),
        ("orders", 3, 7, 10_007, None, True, True),
    ]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("", "parameter topic is needed"),
        ("topic=orders&first=1", "parameter partition is needed"),
        ("topic=orders&partition=3", "parameter first is needed"),
        ("topic=orders&partition=3&first=", "parameter first is needed"),
        ("topic=orders&partition=x&first=1", "partition=x is not a whole number from 0 to 2147483647"),
        ("topic=orders&partition=3&first=-1", "first=-1 is not a whole number from 0 to 9223372036854775806"),
        ("topic=orders&partition=3&first=1&last=9223372036854775807", None),
        ("topic=orders&partition=3&first=9&last=8", "last=8 is below first=9"),
        ("topic=orders&partition=3&first=1&last=10001", "first=1 to last=10001 are 10,001 offsets: ask for 10,000 at most"),
        ("topic=orders&partition=3&first=1&until=3", None),
    ],
)
async def test_bad_questions(serve: ServeApp, worker: Worker, query: str, error: str | None) -> None:
    response = await (await serve(worker)).get(f"/api/explain?{query}")
    body = await response.json()
    assert (response.status, list(body)) == (400, ["error"])
    assert error in (None, body["error"])
    assert worker.questions == []


async def test_what_is_not_there_is_a_bad_question(serve: ServeApp, worker: Worker) -> None:
    worker.explained = NotThere("orders has 3 partitions")
    response = await (await serve(worker)).get(ONE)
    assert (response.status, await response.json()) == (400, {"error": "orders has 3 partitions"})


async def test_kafka_that_can_not_be_asked(serve: ServeApp, worker: Worker) -> None:
    worker.explained = CannotAsk("no broker can be reached")
    response = await (await serve(worker)).get(ONE)
    assert (response.status, await response.json()) == (503, {"error": "no broker can be reached"})


async def test_before_the_status_topic_is_read_nothing_is_claimed(serve: ServeApp, worker: Worker) -> None:
    worker.view = StatusView({}, 300)
    response = await (await serve(worker)).get(ONE)
    assert (response.status, worker.questions) == (503, [])


async def test_who_may_ask_and_who_sees_keys(serve: ServeApp, worker: Worker) -> None:
    tokens = [
        Token("reader", "r"),
        Token("observer", "o", "observe"),
        Token("writer", "w", "write"),
        Token("part", "p", topics=["orders"], sinks=["billing"]),
    ]
    client = await serve(worker, Http(tokens=tokens))
    assert (await client.get(ONE)).status == 401
    assert (await client.get(f"{ONE}&token=r")).status == 401
    for token in "rowp":
        assert (await client.get(ONE, headers={"Authorization": f"Bearer {token}"})).status == 200
    assert [question[-2:] for question in worker.questions] == [(True, False), (True, False), (True, True), (False, False)]
    part = {"Authorization": "Bearer p"}
    for query in ("topic=payments&partition=0&first=0", "topic=orders&partition=0&first=0&sink=audit", "topic=payments"):
        assert (await client.get(f"/api/explain?{query}", headers=part)).status == 403
    assert (await client.get(f"{ONE}&sink=billing", headers=part)).status == 200
    assert len(worker.questions) == 5


async def test_keys_for_scope_read(serve: ServeApp, worker: Worker) -> None:
    client = await serve(worker, Http(tokens=[Token("reader", "r")], show_keys=True))
    assert (await client.get(ONE, headers={"Authorization": "Bearer r"})).status == 200
    assert worker.questions[0][-1] is True


async def test_a_foreign_host_is_refused(serve: ServeApp, worker: Worker) -> None:
    response = await (await serve(worker)).get(ONE, headers={"Host": "evil.example"})
    assert (response.status, worker.questions) == (403, [])
