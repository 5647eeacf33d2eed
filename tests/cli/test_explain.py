from __future__ import annotations

from typing import Any

import pytest

from stream_app.service.explain import CannotAsk, NotThere
from tests.cli.kit import Command, Served, cells

EVIDENCE: dict[str, Any] = {
    "batch_base_offset": 5,
    "batch_last_offset": 9,
    "record_count": 5,
    "leader_epoch": 3,
    "producer_id": 7,
    "producer_epoch": 1,
    "base_sequence": 20,
    "transactional": True,
    "control": False,
    "marker": None,
    "compression": "lz4",
    "isolation": "read_committed",
    "cleanup_policy": "delete",
    "topic_id": "AAEC",
    "log_start_offset": 2,
    "last_stable_offset": 40,
    "high_watermark": 50,
    "log_read_offset": 41,
    "reason": None,
    "was": None,
    "truncated": None,
    "unknown": {"audit": "never heard of"},
}
NO_BATCH = {"batch_base_offset": None, "batch_last_offset": None, "record_count": None, "leader_epoch": None, "producer_id": None}


def run(first: int, last: int, verdict: str = "record", *, sinks: dict[str, str] | None = None, **others: Any) -> dict[str, Any]:
    records = others.pop("records", [])
    states = {"audit": "unknown", "billing": "received"} if sinks is None else sinks
    evidence = EVIDENCE | others
    return {"first_offset": first, "last_offset": last, "verdict": verdict, "evidence": evidence, "sinks": states, "records": records}


def record(offset: int, **others: Any) -> dict[str, Any]:
    told = {"offset": offset, "timestamp": "2023-11-14T22:13:20.000Z", "key": "order-7", "key_encoding": "utf-8", "size": 12}
    return {**told, "tombstone": False, **others}


def test_json_is_the_answer_itself(gapstream: Command, served: Served) -> None:
    served.worker.explained = {"runs": [run(5, 9, records=[record(5)])]}
    assert gapstream("explain", "orders", "3", "5-9", "--json", *served.args()).json() == served.worker.explained
    gapstream("explain", "orders", "3", "5", "--sink", "billing", *served.args())
    assert served.worker.questions == [("orders", 3, 5, 10, None, True, False), ("orders", 3, 5, 6, "billing", True, False)]


def test_the_tables(gapstream: Command, served: Served) -> None:
    records = [
        record(5),
        record(6, key="/wA=", key_encoding="base64", timestamp=None),
        record(7, key=None, key_encoding=None, tombstone=True),
        record(8, key=None, key_encoding="hidden"),
    ]
    expired = run(10, 19, "expired", sinks={"audit": "unknown", "billing": "open expired"}, was="record", **NO_BATCH)
    marker = run(9, 9, "transaction_marker", sinks={"audit": "absent", "billing": "absent"}, marker="commit", base_sequence=None)
    served.worker.explained = {"runs": [run(5, 8, records=records, truncated="and so on"), marker, expired]}
    ran = gapstream("explain", "orders", "3", "5-19", *served.args())
    lines = [cells(line) for line in ran.out.splitlines()]
    assert (ran.code, ran.err) == (0, "")
    assert lines == [
        ["FIRST", "LAST", "VERDICT", "audit", "billing", "BATCH", "PRODUCER", "WHY"],
        [
            "5",
            "8",
            "record",
            "unknown",
            "received",
            "5-9, holds 5, lz4, leader epoch 3",
            "7, epoch 1, sequence 20, transactional",
            "and so on",
        ],
        [
            "9",
            "9",
            "transaction_marker",
            "absent",
            "absent",
            "5-9, holds 5, lz4, leader epoch 3",
            "7, epoch 1, transactional",
            "marker: commit",
        ],
        ["10", "19", "expired", "unknown", "open expired", "-", "-", "it was a record"],
        [],
        ["OFFSET", "TIME", "SIZE", "TOMBSTONE", "KEY"],
        ["5", "2023-11-14T22:13:20.000Z", "12", "no", "order-7"],
        ["6", "unknown", "12", "no", "/wA= (base64)"],
        ["7", "2023-11-14T22:13:20.000Z", "12", "yes", "-"],
        ["8", "2023-11-14T22:13:20.000Z", "12", "no", "(hidden: see http.show_keys)"],
        [],
        ["log: starts at 2, last stable offset 40, next to be written 50, next to be read by gapstream 41"],
        ["topic: cleanup.policy delete, id AAEC, read_committed"],
        ["audit is unknown in part: never heard of"],
    ]


@pytest.mark.parametrize(
    ("runs", "sink", "code"),
    [
        ([run(5, 9)], [], 0),
        ([run(5, 9), run(10, 11, "unknown", reason="32 MiB")], [], 3),
        ([run(5, 9)], ["--sink", "billing"], 0),
        ([run(5, 9, sinks={"audit": "unknown"})], ["--sink", "audit"], 3),
        ([run(5, 9, sinks={"audit": "received or absent"})], ["--sink", "audit"], 0),
    ],
)
def test_what_could_not_be_told_shows_in_the_exit_code(
    gapstream: Command, served: Served, runs: list[dict[str, Any]], sink: list[str], code: int
) -> None:
    served.worker.explained = {"runs": runs}
    for as_json in ([], ["--json"]):
        ran = gapstream("explain", "orders", "3", "5-11", *sink, *as_json, *served.args())
        assert (ran.code, ran.err) == (code, "")
        assert ran.out


def test_what_is_not_there_is_usage(gapstream: Command, served: Served) -> None:
    served.worker.explained = NotThere("orders has 3 partitions, numbered from 0: there is no partition 7")
    ran = gapstream("explain", "orders", "7", "5", *served.args())
    assert (ran.code, ran.out) == (2, "")
    assert "there is no partition 7" in ran.err


def test_kafka_that_can_not_be_asked(gapstream: Command, served: Served) -> None:
    served.worker.explained = CannotAsk("no broker can be reached")
    ran = gapstream("explain", "orders", "3", "5", *served.args())
    assert (ran.code, ran.out) == (3, "")
    assert "no broker can be reached" in ran.err


def test_too_many_offsets(gapstream: Command, served: Served) -> None:
    ran = gapstream("explain", "orders", "3", "0-10000", *served.args())
    assert (ran.code, "10,000 at most" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["orders"],
        ["orders", "3"],
        ["orders", "x", "5"],
        ["orders", "-1", "5"],
        ["orders", "3", "x"],
        ["orders", "3", "9-5"],
        ["orders", "3", "5-"],
        ["orders", "3", "5..9"],
        ["orders", "3", "5", "--all"],
    ],
)
def test_usage(gapstream: Command, served: Served, wrong: list[str]) -> None:
    ran = gapstream("explain", *served.args(), *wrong)
    assert (ran.code, ran.out, served.worker.questions) == (2, "", [])
    assert ran.err.count("\n") == 1
