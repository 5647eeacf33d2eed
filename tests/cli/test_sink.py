from __future__ import annotations

import msgspec
import pytest

from stream_app.core.model import StatusRecord
from tests.cli.kit import Command, Served
from tests.web.kit import make_row


@pytest.fixture
def dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """``old`` stands in no configuration; token ``all`` may write."""
    row = make_row("orders", 0, "old")
    row.configured = False
    record = StatusRecord(topic="orders", partition=0, worker="w1", rows=[row])
    served.worker.view.apply(b"partition/orders/0", msgspec.json.encode(record))
    return served


def test_drop(gapstream: Command, dropped: Served) -> None:
    ran = gapstream("sink", "drop", "orders", "old", *dropped.args("write"))
    assert (ran.code, ran.out, ran.err) == (0, "old is dropped from 3 partitions of orders, within a second.\n", "")
    assert dropped.worker.dropped == [("orders", "old", "write")]
    answer = gapstream("sink", "drop", "orders", "old", "--json", *dropped.args("write")).json()
    assert answer == {"topic": "orders", "sink": "old", "partitions": 3}


@pytest.mark.parametrize(
    ("sink", "who", "code", "said"),
    [
        ("billing", "write", 2, "stands in a worker's configuration"),
        ("nobody", "write", 2, "no sink nobody of topic orders is known"),
        ("old", "all", 3, "write is needed"),
        ("old", "nobody", 3, "this token is not known"),
    ],
)
def test_what_is_refused_is_one_sentence(gapstream: Command, dropped: Served, sink: str, who: str, code: int, said: str) -> None:
    ran = gapstream("sink", "drop", "orders", sink, *dropped.args(who))
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1)
    assert said in ran.err
    assert dropped.worker.dropped == []


def test_no_worker(gapstream: Command) -> None:
    ran = gapstream("sink", "drop", "orders", "old", "--url", "http://127.0.0.1:1")
    assert ran.code == 3
    assert "no worker can be reached" in ran.err


def test_help_of_the_command_itself(gapstream: Command) -> None:
    ran = gapstream("sink", "drop", "--help")
    assert "Example:\n    gapstream sink drop orders billing" in ran.out
    assert gapstream("sink", "drop", "orders").code == 2
