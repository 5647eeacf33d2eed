from __future__ import annotations

import time

import msgspec
import pytest

from stream_app.cli import client
from stream_app.core.model import Gap, GapsRecord, StatusRecord
from stream_app.service.view import StatusView
from tests.cli.kit import Command, Served, cells
from tests.web.kit import NOW, make_row


def test_json_is_the_whole_list(gapstream: Command, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = served.worker.view.gaps(NOW, all=True)
    assert whole["next"] is None
    assert len(whole["gaps"]) == 12
    for page in (1, 5, 12, 100):
        monkeypatch.setattr(client, "PAGE_GAPS", page)
        assert gapstream("gaps", "--all", "--json", *served.args()).json() == whole


@pytest.mark.parametrize(
    ("filters", "gaps"),
    [
        (["--topic", "orders"], 3),
        (["--topic", "orders", "--sink", "log"], 1),
        (["--partition", "0"], 6),
        (["--partition", "7"], 0),
        (["--cause", "expired"], 0),
        (["--cause", "tombstone", "--all"], 6),
    ],
)
def test_filters(gapstream: Command, served: Served, filters: list[str], gaps: int) -> None:
    assert len(gapstream("gaps", "--json", *filters, *served.args()).json()["gaps"]) == gaps


def test_the_table(gapstream: Command, served: Served) -> None:
    now_ms = time.time_ns() // 1_000_000
    gap = Gap(
        first=5, stop=9, count=3, cause="not_received", opened_at_ms=NOW, first_timestamp_ms=NOW - 2_000, last_timestamp_ms=NOW - 1_000,
        expires_at_ms=now_ms + 90_000, sequence=1,
    )  # fmt: skip
    explained = Gap(first=20, stop=21, count=1, cause="tombstone", open=False)
    page = GapsRecord(topic="orders", partition=0, sink="billing", block=0, gaps=[gap, explained])
    served.worker.view.apply(b"gaps/orders/0/billing/0", msgspec.json.encode(page))
    ran = gapstream("gaps", "--topic", "orders", "--sink", "billing", "--all", *served.args())
    lines = [cells(line) for line in ran.out.splitlines()]
    assert lines == [
        ["TOPIC", "PARTITION", "SINK", "FIRST", "LAST", "RECORDS", "CAUSE", "OPENED", "RECORDS FROM", "UNTIL", "REPLAYABLE FOR"],
        ["orders", "0", "billing", "5", "8", "3", "not_received", "2023-11-14T22:13:20.000Z", "2023-11-14T22:13:18.000Z",
         "2023-11-14T22:13:19.000Z", lines[1][10]],
        ["orders", "0", "billing", "20", "20", "1", "tombstone", "-", "unknown", "unknown", "-"],
    ]  # fmt: skip
    assert lines[1][10] in ("1m 30s", "1m 29s", "1m 28s")


def test_nothing_is_open(gapstream: Command, served: Served) -> None:
    assert gapstream("gaps", "--cause", "vanished", *served.args()).out == "no such gaps\n"
    served.worker.view = StatusView({}, 300)
    served.worker.view.loaded = True
    assert gapstream("gaps", *served.args()).out == "no open gaps; gapstream status says what is unknown\n"


def test_gaps_of_a_sink_in_no_file_are_not_listed(gapstream: Command, served: Served) -> None:
    """In JSON neither: there it is the answer of the worker."""
    rows = [make_row("orders", 0, sink, missing=3, gaps=1) for sink in ("billing", "log", "warehouse")]
    rows[0].configured = False
    served.worker.view.apply(b"partition/orders/0", msgspec.json.encode(StatusRecord(topic="orders", partition=0, worker="w1", rows=rows)))
    orders = ["--topic", "orders", *served.args()]
    assert {gap["sink"] for gap in gapstream("gaps", "--json", *orders).json()["gaps"]} == {"log", "warehouse"}
    assert gapstream("gaps", "--json", "--sink", "billing", *orders).json() == {"gaps": [], "next": None}
    assert gapstream("gaps", "--sink", "billing", *orders).out == (
        "sink billing stands in no configuration, so its gaps are not listed; gapstream partitions --sink billing has its numbers\n"
    )
    assert gapstream("gaps", "--sink", "nobody", *orders).out == "no such gaps\n"
    assert gapstream("gaps", "--sink", "warehouse", "--cause", "expired", *orders).out == "no such gaps\n"
    assert "payments" in gapstream("gaps", "--sink", "billing", *served.args()).out, "it stands in that topic's"
    assert gapstream("gaps", "--sink", "billing", "--cause", "expired", *served.args()).out == "no such gaps\n"


def test_a_reason_needs_all(gapstream: Command, served: Served) -> None:
    ran = gapstream("gaps", "--cause", "tombstone", *served.args())
    assert (ran.code, ran.out) == (2, "")
    assert "ask with all=1" in ran.err


@pytest.mark.parametrize("wrong", [["--cause", "bad"], ["--partition", "-1"], ["--partition", "x"], ["--nonsense"], ["extra"]])
def test_usage(gapstream: Command, served: Served, wrong: list[str]) -> None:
    ran = gapstream("gaps", *wrong, *served.args())
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
