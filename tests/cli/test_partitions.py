from __future__ import annotations

import msgspec
import pytest

from stream_app.core.model import StatusRecord
from tests.cli.kit import Command, Served, cells
from tests.web.kit import NOW, make_row


def test_json_is_the_answer_itself(gapstream: Command, served: Served) -> None:
    assert gapstream("partitions", "--json", *served.args()).json() == served.worker.view.partitions(NOW)


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        (["--topic", "orders"], 3),
        (["--sink", "log"], 2),
        (["--partition", "0"], 6),
        (["--partition", "1"], 0),
        (["--cause", "not_received"], 6),
        (["--cause", "not_received", "--topic", "orders", "--sink", "log", "--partition", "0"], 1),
        (["--cause", "expired"], 0),
        (["--cause", "tombstone", "--all"], 6),
    ],
)
def test_filters(gapstream: Command, served: Served, filters: list[str], rows: int) -> None:
    assert len(gapstream("partitions", "--json", *filters, *served.args()).json()["partitions"]) == rows


def test_by_cause_no_row_of_a_sink_in_no_file(gapstream: Command, served: Served) -> None:
    """Its gaps are not listed; without a cause its row is."""
    rows = [make_row("orders", 0, sink, missing=3, gaps=1) for sink in ("billing", "log", "warehouse")]
    rows[0].configured = False
    served.worker.view.apply(b"partition/orders/0", msgspec.json.encode(StatusRecord(topic="orders", partition=0, worker="w1", rows=rows)))
    orders = ["--topic", "orders", "--json", *served.args()]
    assert len(gapstream("partitions", *orders).json()["partitions"]) == 3
    assert [row["sink"] for row in gapstream("partitions", "--cause", "not_received", *orders).json()["partitions"]] == ["log", "warehouse"]


def test_the_table(gapstream: Command, served: Served) -> None:
    served.worker.now_ms = NOW + 20_000
    lines = [cells(line) for line in gapstream("partitions", "--topic", "orders", "--sink", "billing", *served.args()).out.splitlines()]
    assert lines == [
        ["TOPIC", "PARTITION", "SINK", "STATE", "LOG START", "READ", "END", "HORIZON", "RECORDS", "ROWS", "MISSING", "LAG", "DUPLICATES",
         "COMPLETE THROUGH", "WORKER", "WHY"],
        ["orders", "0", "billing", "unknown", "unknown", "unknown", "unknown", "unknown", "unknown", "-", "3", "0", "0",
         "2023-11-14T22:13:20.000Z", "w1", "worker w1 is gone, last heard of at 2023-11-14T22:13:20.000Z"],
    ]  # fmt: skip


def test_no_rows(gapstream: Command, served: Served) -> None:
    assert gapstream("partitions", "--topic", "nothing", *served.args()).out == "no such rows\n"
