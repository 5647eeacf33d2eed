"""``POST /api/observations``: what is taken, what is not, and what is said of each line."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import Any

import pytest
import structlog
from aiohttp import web
from structlog.testing import capture_logs

from stream_app.web import observations
from stream_app.web.api import Api, Unavailable
from stream_app.web.auth import LOCAL
from stream_app.web.observations import BODY_BYTES_MAX, LINES_MAX, Failure, judge, split
from stream_app.web.server import install
from tests.support.fakes import until
from tests.web.kit import Client, Http, ServeApp, Token, Worker

PATH = "/api/observations"
NDJSON = {"Content-Type": "application/x-ndjson"}
TOKENS = [
    Token("reader", "r", "read"),
    Token("observer", "o", "observe"),
    Token("writer", "w", "write"),
    Token("one topic", "t", "observe", topics=["orders"]),
    Token("one sink", "s", "observe", sinks=["billing"]),
]
ACK: dict[str, Any] = {"status": "acknowledged", "reason": "lost for good", "by": "ann"}


def line(first: int = 0, *, topic: str = "orders", partition: int = 0, sink: str = "billing", **more: Any) -> bytes:
    known = {"v": 1, "sink": sink, "topic": topic, "partition": partition, "runs": [[first, first + 9]]}
    return json.dumps(known | more).encode()


async def post(client: Client, body: Any, token: str | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    more = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    response = await client.post(PATH, data=data, headers=NDJSON | more | {name.replace("_", "-"): one for name, one in headers.items()})
    return response.status, await response.json()


@pytest.fixture
async def client(serve: ServeApp, worker: Worker) -> Client:
    return await serve(worker)


# --- verdicts -----------------------------------------------------------------------------------------------------------


async def test_all_lines_are_accepted_as_they_came(client: Client, worker: Worker) -> None:
    sent = [line(0, source="a", sequence=1), line(10, partition=1, unheard_of=[1, 2]), line(0, topic="payments", claim=7)]
    assert await post(client, b"\n".join(sent)) == (200, {"accepted": 3, "rejected": []})
    assert [(one.topic, one.partition, one.value) for one in worker.observing.written] == [
        ("orders", 0, sent[0]),
        ("orders", 1, sent[1]),
        ("payments", 0, sent[2]),
    ]


async def test_lines_are_judged_one_by_one(client: Client, worker: Worker) -> None:
    bad = [b"nonsense", line(topic="sales"), line(partition=2), line(partition=-1), line(v=2), line(runs=[[9, 1]]), line(sink="log")]
    body = b"\n".join([line(0), *bad, line(1)])
    status, answer = await post(client, body)
    assert (status, answer["accepted"], sorted(answer)) == (207, 2, ["accepted", "rejected"])
    assert [(one["line"], one["error"].split(":")[0]) for one in answer["rejected"]] == [
        (2, "malformed"),
        (3, "topic sales is not watched"),
        (4, "topic orders has the partitions 0 to 1, not 2"),
        (5, "partition is below 0"),
        (6, "unsupported_version"),
        (7, "malformed"),
        (8, "malformed"),
    ]
    assert [one.number for one in worker.observing.written] == [1, 9]


async def test_none_is_accepted(client: Client, worker: Worker) -> None:
    status, answer = await post(client, b"\n\n[]\n")
    assert (status, answer["accepted"], [one["line"] for one in answer["rejected"]]) == (400, 0, [3])
    assert answer["error"].startswith("no line was accepted; line 3: malformed: ")
    for empty in (b"", b"\n \r\n"):
        assert await post(client, empty) == (400, {"accepted": 0, "rejected": [], "error": "the body holds no line"})
    assert worker.observing.written == []


async def test_blank_lines_and_windows_line_ends_count_as_lines(client: Client, worker: Worker) -> None:
    assert (await post(client, b"\r\n" + line(0) + b"\r\n\r\n  " + line(1) + b"\r\n"))[0] == 200
    assert [(one.number, one.value) for one in worker.observing.written] == [(2, line(0)), (4, line(1))]


async def test_an_acknowledgement_that_did_not_come(client: Client, worker: Worker) -> None:
    worker.observing.failures = {2: Failure("no answer"), 4: Failure("no answer")}
    response = await client.post(PATH, data=b"\n".join([line(), line(), b"{}", line()]), headers=NDJSON)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    answer = await response.json()
    assert (answer["accepted"], [one["line"] for one in answer["rejected"]]) == (1, [3])
    assert answer["unknown"] == [{"line": 2, "error": "no answer"}, {"line": 4, "error": "no answer"}]
    assert answer["error"].startswith("2 of 4 lines are not known to be written (no answer): send again, unchanged")


async def test_what_kafka_never_takes_is_rejected(client: Client, worker: Worker) -> None:
    worker.observing.failures = {1: Failure("too large", refused=True)}
    assert await post(client, line() + b"\n" + line()) == (207, {"accepted": 1, "rejected": [{"line": 1, "error": "too large"}]})
    assert (await post(client, line()))[0] == 400


async def test_nothing_could_be_handed_over(client: Client, worker: Worker) -> None:
    worker.observing.refusal = Unavailable("Kafka is away")
    assert await post(client, line()) == (503, {"error": "Kafka is away"})


async def test_a_new_partition_is_no_reason_to_reject(client: Client, worker: Worker) -> None:
    worker.observing.now = {"orders": 3, "payments": 1, "late": 1}
    worker.observing.known |= {"late": 0, "missing": 0}
    body = b"\n".join([line(partition=2), line(partition=3), line(topic="late"), line(topic="missing"), line()])
    status, answer = await post(client, body)
    assert (status, answer["accepted"]) == (503, 1)
    assert answer["unknown"] == [
        {"line": 1, "error": "partition 2 of orders is new and can be observed in a few seconds"},
        {"line": 3, "error": "partition 0 of late is new and can be observed in a few seconds"},
    ]
    assert answer["rejected"] == [
        {"line": 2, "error": "topic orders has the partitions 0 to 2, not 3"},
        {"line": 4, "error": "topic missing does not exist"},
    ]
    worker.observing.now = Unavailable("the cluster can't be asked")
    assert await post(client, body) == (503, {"error": "the cluster can't be asked"})


# --- who may ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded(serve: ServeApp, worker: Worker) -> Client:
    return await serve(worker, Http(host="0.0.0.0", tokens=TOKENS))  # noqa: S104 - what a user would write


async def test_scopes(guarded: Client) -> None:
    assert (await post(guarded, line()))[0] == 401
    assert await post(guarded, line(), "r") == (403, {"error": "this token has scope read; observe is needed"})
    for token in "ow":
        assert (await post(guarded, line(), token))[0] == 200


async def test_an_acknowledgement_needs_scope_write(guarded: Client, worker: Worker) -> None:
    status, answer = await post(guarded, line(**ACK) + b"\n" + line(), "o")
    assert (status, answer["rejected"]) == (207, [{"line": 1, "error": "status acknowledged needs a token of scope write"}])
    assert (await post(guarded, line(**ACK), "w"))[0] == 200
    for word in ("quarantined", "unobserved", "received"):
        assert (await post(guarded, line(status=word, reason="its own word"), "o"))[0] == 200


async def test_a_token_of_some_topics_or_sinks(guarded: Client, worker: Worker) -> None:
    body = b"\n".join([line(), line(topic="payments"), line(topic="unheard"), line(sink="other")])
    refused = {
        "accepted": 2,
        "rejected": [{"line": n, "error": f"this token is not for topic {t}"} for n, t in ((2, "payments"), (3, "unheard"))],
    }
    assert await post(guarded, body, "t") == (207, refused)
    status, answer = await post(guarded, body, "s")
    assert (status, answer["accepted"]) == (207, 2)
    assert answer["rejected"] == [
        {"line": 3, "error": "topic unheard is not watched"},
        {"line": 4, "error": "this token is not for sink other"},
    ]


async def test_a_foreign_origin_or_host(client: Client, worker: Worker) -> None:
    assert (await post(client, line(), Host="localhost:6066", Origin="http://evil.example"))[0] == 403
    assert (await post(client, line(), Host="evil.example"))[0] == 403
    assert worker.observing.written == []
    assert (await post(client, line(), Host="localhost:6066", Origin="http://localhost:6066"))[0] == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/octet-stream"]
)
async def test_other_types_are_refused(client: Client, worker: Worker, kind: str) -> None:
    status, answer = await post(client, line(), Content_Type=kind)
    assert (status, answer) == (415, {"error": "a change needs Content-Type: application/x-ndjson or application/json"})
    assert worker.observing.written == []


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/x-ndjson", "application/ndjson"])
async def test_json_and_ndjson_are_taken(client: Client, kind: str) -> None:
    assert await post(client, line() + b"\n" + line(), Content_Type=kind) == (200, {"accepted": 2, "rejected": []})


async def test_one_object_over_several_lines(client: Client, worker: Worker) -> None:
    pretty = json.dumps(json.loads(line(3)), indent=2).encode() + b"\n"
    assert (await post(client, pretty, Content_Type="application/json"))[0] == 200
    assert worker.observing.written[0].value == pretty.strip()
    assert (await post(client, pretty))[0] == 400, "in NDJSON a line is a line"


async def test_parameters_and_methods(client: Client) -> None:
    assert (await client.post(f"{PATH}?sink=billing", data=line(), headers=NDJSON)).status == 400
    response = await client.get(PATH)
    assert (response.status, response.headers["Allow"]) == (405, "POST")


# --- limits -------------------------------------------------------------------------------------------------------------


async def test_a_body_too_large(client: Client, worker: Worker) -> None:
    async def chunked() -> Any:
        for _ in range(BODY_BYTES_MAX // 65_536 + 1):
            yield b" " * 65_536

    assert (await post(client, b" " * (BODY_BYTES_MAX + 1)))[0] == 413
    assert await post(client, chunked()) == (413, {"error": f"the body may have {BODY_BYTES_MAX} bytes"})
    packed = gzip.compress(b" " * (BODY_BYTES_MAX + 1))
    assert (await post(client, packed, Content_Encoding="gzip"))[0] == 413, "what counts is what it is unpacked"
    assert (await post(client, line() + b" " * (BODY_BYTES_MAX - len(line()))))[0] == 200


async def test_too_many_lines(client: Client, worker: Worker) -> None:
    status, answer = await post(client, b"{}\n" * (LINES_MAX + 1))
    assert (status, answer) == (413, {"error": f"the body may have {LINES_MAX} lines, not {LINES_MAX + 1}"})
    status, answer = await post(client, b"{}\n" * LINES_MAX)
    assert (status, len(answer["rejected"])) == (400, LINES_MAX)


async def test_too_many_at_once(client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes while others are under way is sent away; whoever comes after is not."""
    body = line()
    monkeypatch.setattr(observations, "HELD_BYTES_MAX", 2 * len(body))
    gate = worker.observing.gate = asyncio.Event()
    under_way = [asyncio.create_task(post(client, body)) for _ in range(2)]
    await until(lambda: len(worker.observing.written) == 2)
    assert await post(client, body) == (429, {"error": "too many observations are under way: send them again in a moment"})
    monkeypatch.setattr(observations, "REQUESTS_MAX", 2)
    response = await client.post(PATH, data=b"", headers=NDJSON)
    assert (response.status, response.headers["Retry-After"]) == (429, "1")
    gate.set()
    assert [await one for one in under_way] == [(200, {"accepted": 1, "rejected": []})] * 2
    assert (await post(client, body))[0] == 200


async def test_a_body_that_does_not_come(client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations, "BODY_SECONDS", 0.05)
    stays = asyncio.Event()

    async def slow() -> Any:
        yield line()
        await stays.wait()

    status, answer = await post(client, slow())
    stays.set()
    assert (status, answer) == (408, {"error": "the body was not there after 0.05 s"})
    monkeypatch.undo()
    assert (await post(client, line()))[0] == 200


async def test_a_body_that_breaks_off_is_no_defect(worker: Worker) -> None:
    app = web.Application()
    install(app, Api(worker, Http()))
    runner = web.AppRunner(app)  # as Faust runs it; the one for tests cancels handlers when the connection goes
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    structlog.reset_defaults()
    try:
        with capture_logs() as logs:
            reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
            writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 100"), "it is being read from here on"
            writer.write(line())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            await until(lambda: not [task for task in asyncio.all_tasks() if "RequestHandler" in repr(task.get_coro())])
    finally:
        await runner.cleanup()
    assert (logs, worker.observing.written) == ([], [])


async def test_a_body_that_is_not_packed_as_it_says(client: Client) -> None:
    status, answer = await post(client, gzip.compress(line())[:-4] + b"nonsense", Content_Encoding="gzip")
    assert (status, answer["error"].split(":")[0]) == (400, "the body broke off")


# --- the parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (b"", []),
        (b"a", [(1, b"a")]),
        (b"a\n", [(1, b"a")]),
        (b"\n\na\n \n\tb \r\n", [(3, b"a"), (5, b"b")]),
        (b'{"a":1}\n{"b":2}', [(1, b'{"a":1}'), (2, b'{"b":2}')]),
    ],
)
def test_split(body: bytes, lines: list[tuple[int, bytes]]) -> None:
    assert split(body, whole=False) == split(body, whole=True) == lines


def test_a_long_name_is_not_repeated() -> None:
    judged = judge([(1, line(topic="x" * 10_000))], LOCAL, {})
    assert judged.rejected == [(1, f"topic {'x' * 249} is not watched")]


def test_depth_is_no_way_to_crash_it() -> None:
    assert split(b"\n" + b"[" * 100_000, whole=True)[0][0] == 2
    assert judge([(1, b'{"v":' * 50_000)], LOCAL, {}).rejected[0][0] == 1
