from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from stream_app.core.model import MinuteRow, MinutesRecord
from stream_app.service.pipes import PIPES
from stream_app.service.view import StatusView
from stream_app.web import pipes as pipes_module
from stream_app.web.api import Api
from stream_app.web.pipes import FORMATS, LIMIT_MAX, paths
from tests.web.kit import NOW, Http, ServeApp, Token, Worker

TOKENS = [Token("reader", "r"), Token("part", "p", topics=["orders"], sinks=["billing"])]
MINUTE = NOW // 60_000


@pytest.fixture
def told(worker: Worker) -> Worker:
    """The two topics of the view with a minute for each sink: 2**53 offsets in, with one of three records missing."""
    for topic in ("orders", "payments"):
        for sink in ("billing", "warehouse"):
            row = MinuteRow(MINUTE - 1, 2, 0, 2**53 + 1, 2**53 + 3, 1, 1, 0, NOW - 60_001, NOW - 60_000)
            record = MinutesRecord(topic=topic, partition=0, sink=sink, block=row.minute // 10, minutes=[row])
            worker.view.apply(f"minutes/{topic}/0/{sink}/{record.block}".encode(), msgspec.json.encode(record))
    assert worker.view.malformed == 0
    return worker


async def test_json_is_in_the_known_shape(serve: ServeApp, told: Worker) -> None:
    response = await (await serve(told)).get("/v0/pipes/missing_offsets_alert.json?topic=orders&limit=1")
    assert (response.status, response.content_type) == (200, "application/json")
    body = await response.json()
    assert list(body) == ["meta", "data", "rows", "rows_before_limit_at_least", "statistics"]
    assert (body["rows"], body["rows_before_limit_at_least"], len(body["data"])) == (1, 2, 1)
    assert [column["name"] for column in body["meta"]] == list(body["data"][0])
    assert body["meta"][:3] == [
        {"name": "__topic", "type": "String"},
        {"name": "__partition", "type": "Int32"},
        {"name": "missing_messages", "type": "Int64"},
    ]
    assert body["data"][0] == {
        "__topic": "orders",
        "__partition": 0,
        "missing_messages": 1,
        "min_offset": 2**53 + 1,
        "max_offset": 2**53 + 3,
        "message_count": 2,
        "first_message_time": "2023-11-14 22:12:19.999",
        "last_message_time": "2023-11-14 22:12:20.000",
        "alert_time": "2023-11-14 22:13:20",
        "sink": "billing",
        "duplicate_messages": 0,
        "explained_messages": 0,
        "open_missing_messages": 1,
    }
    assert set(body["statistics"]) == {"elapsed", "rows_read", "bytes_read"}
    assert 0 <= body["statistics"]["elapsed"] < 5


async def test_large_numbers_are_strings_where_that_is_asked_for(serve: ServeApp, told: Worker) -> None:
    client = await serve(told)
    query = "topic=orders&sink=billing&output_format_json_quote_64bit_integers=1"
    (row,) = (await (await client.get(f"/v0/pipes/missing_offsets.json?{query}")).json())["data"]
    assert (row["min_offset"], row["message_count"], row["missing_messages"], row["__partition"]) == (str(2**53 + 1), "2", "1", 0)
    line = await (await client.get(f"/v0/pipes/missing_offsets.ndjson?{query}")).json(content_type=None)
    assert line == row


async def test_csv_has_a_header_and_quotes_as_clickhouse_does(serve: ServeApp, told: Worker) -> None:
    response = await (await serve(told)).get("/v0/pipes/offset_stats.csv?topic=orders&sink=billing")
    assert response.headers["Content-Type"] == "text/csv; charset=utf-8"
    header, line = (await response.text()).splitlines()
    assert header.split(",")[:3] == ['"minute"', '"__topic"', '"__partition"']
    assert line.split(",")[:5] == ['"2023-11-14 22:12:00"', '"orders"', "0", str(2**53 + 1), str(2**53 + 3)]
    assert await (await (await serve(told)).get("/v0/pipes/offset_stats.csv?topic=none")).text() == header + "\n"


async def test_what_is_not_known_is_null(serve: ServeApp, told: Worker) -> None:
    client = await serve(told)
    (row,) = (await (await client.get("/v0/pipes/find_gaps.json?topic=orders&sink=billing&open=1")).json())["data"]
    assert (row["missing_offset_start"], row["detected_at"]) == (5, None)
    text = await (await client.get("/v0/pipes/find_gaps.csv?topic=orders&sink=billing&open=1")).text()
    assert text.splitlines()[1] == r'"orders",0,5,8,3,\N,"billing",0,1,3', "the tombstone at 20 has nothing behind it either"


@pytest.mark.parametrize("ending", ["json", "csv", "ndjson"])
async def test_times_that_nobody_can_write_are_null(serve: ServeApp, told: Worker, ending: str) -> None:
    """A producer may stamp a record with any number of 64 bits."""
    row = MinuteRow(MINUTE - 2, 2, 0, 5, 6, 0, 0, 0, NOW, NOW * 1_000_000)
    record = MinutesRecord(topic="orders", partition=0, sink="billing", block=row.minute // 10, minutes=[row])
    told.view.apply(f"minutes/orders/0/billing/{record.block}".encode(), msgspec.json.encode(record))
    response = await (await serve(told)).get(f"/v0/pipes/missing_offsets_alert.{ending}?topic=orders&sink=billing&minutes=1440")
    text = await response.text()
    assert response.status == 200
    assert ("\\N" if ending == "csv" else '"last_message_time":null') in text, text


async def test_ndjson_is_a_row_a_line(serve: ServeApp, told: Worker) -> None:
    response = await (await serve(told)).get("/v0/pipes/missing_offsets.ndjson")
    assert response.content_type == "application/x-ndjson"
    lines = (await response.text()).splitlines()
    assert [(row["__topic"], row["sink"]) for row in map(json.loads, lines)] == [
        (topic, sink) for topic in ("orders", "payments") for sink in ("billing", "warehouse")
    ]


async def test_there_is_a_path_for_each_pipe_and_format(serve: ServeApp, told: Worker) -> None:
    client = await serve(told)
    assert len(paths()) == len(PIPES) * len(FORMATS) == 18
    for path in paths():
        assert (await client.get(path)).status == 200
        assert (await client.head(path)).status == 200
    assert set(paths()) <= {endpoint.path for endpoint in Api(told, Http()).endpoints}
    for path in ("/v0/pipes/missing_offsets", "/v0/pipes/other.json", "/v0/pipes/missing_offsets.xml"):
        assert (await client.get(path)).status == 404
    assert (await client.post("/v0/pipes/missing_offsets.json", json={})).status == 405


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("minutes=0", "minutes=0"),
        ("minutes=1441", "minutes=1441"),
        ("minutes=-5", "minutes"),
        ("minutes=15m", "minutes"),
        ("minutes=1.5", "minutes"),
        ("limit=0", "limit"),
        (f"limit={LIMIT_MAX + 1}", "limit"),
        ("open=maybe", "open"),
        ("output_format_json_quote_64bit_integers=2", "output_format"),
        ("topic=a&topic=b", "twice"),
    ],
)
async def test_bad_values_are_told(serve: ServeApp, told: Worker, query: str, named: str) -> None:
    response = await (await serve(told)).get(f"/v0/pipes/missing_offsets.json?{query}")
    assert (response.status, list(await response.json())) == (400, ["error"])
    assert named in (await response.json())["error"]


async def test_parameters_of_other_names_are_ignored(serve: ServeApp, told: Worker) -> None:
    response = await (await serve(told)).get("/v0/pipes/missing_offsets.json?q=SELECT&__tb__semver=1&q=2&minutes=60&open=0")
    assert (response.status, (await response.json())["rows"]) == (200, 4)


async def test_a_token_may_stand_in_the_query(serve: ServeApp, told: Worker) -> None:
    client = await serve(told, Http(tokens=TOKENS))
    path = "/v0/pipes/missing_offsets.json"

    async def ask(query: str = "", **headers: str) -> tuple[int, Any]:
        response = await client.get(f"{path}{query}", headers=headers)
        return response.status, (await response.json()).get("rows")

    assert await ask() == (401, None)
    assert await ask("?token=") == (401, None)
    assert await ask("?token=wrong&minutes=x") == (401, None)
    assert await ask("?token=r") == (200, 4)
    assert await ask(Authorization="Bearer r") == (200, 4)
    assert await ask("?token=r", Authorization="Bearer wrong") == (401, None), "the header counts"
    assert await ask("?token=p") == (200, 1), "what it may see"
    assert await ask("?token=p&topic=payments&minutes=x") == (403, None)
    assert await ask("?token=p&sink=warehouse") == (403, None)
    assert await ask("?token=p&minutes=x") == (400, None)
    assert await ask("?token=p&token=r") == (200, 1), "the first one counts"


async def test_a_large_answer_leaves_the_loop_to_others(serve: ServeApp, told: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes_module, "READ_AT_ONCE", 1)
    turns = 0

    async def count(seconds: float) -> None:
        nonlocal turns
        turns += seconds == 0

    client = await serve(told)
    monkeypatch.setattr(asyncio, "sleep", count)
    assert (await (await client.get("/v0/pipes/missing_offsets.json")).json())["rows"] == 4
    assert turns >= 4


async def test_before_the_status_topic_is_read_there_is_no_answer(serve: ServeApp, worker: Worker) -> None:
    worker.view = StatusView({}, 300)
    response = await (await serve(worker)).get("/v0/pipes/offsets.json")
    assert response.status == 503
