"""A worker whose table does not answer, or not as it must: it is unknown and why, nothing is told of gaps, and it goes on by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clickhouse_kit import ClickHouse, EngineProcess
from tests.support.faulty_proxy import FaultyProxy
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, eventually, free_port
from tests.support.table_case import KEY, SINK, TYPES, Case

UNKNOWN_AFTER_S = 3
RECORDS = 100
LINES = ("a table can't be asked now", "a table is slow to answer")
"""Of the log."""


@pytest.fixture(scope="module")
def proxy(clickhouse_url: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(clickhouse_url) as made:
        yield made


@pytest.fixture(scope="module")
def server(clickhouse_url: str) -> Iterator[ClickHouse]:
    made = ClickHouse(clickhouse_url)
    yield made
    made.close()


@pytest.fixture
def case(
    request: pytest.FixtureRequest, shared_kit: KafkaKit, make_rig: Callable[..., Rig], server: ClickHouse, proxy: FaultyProxy
) -> Iterator[Case]:
    """A topic of 100 records, a table behind ``proxy`` that has the first 60 of them but one, and a worker that knows so."""
    table = f"orders_{len(server.rows('SHOW TABLES'))}"
    server.run(f"CREATE TABLE {table} ({TYPES}) ENGINE = MergeTree {KEY}")
    topic = shared_kit.make_topic(1)
    shared_kit.produce(topic, 0, RECORDS)
    sink = {**SINK, "url": proxy.url, "database": server.database, "table": table}
    rig = make_rig({topic: {"sinks": {table: sink}}}, app={"unknown_after": f"{UNKNOWN_AFTER_S}s"})
    made = Case(shared_kit, rig.worker().start().ready(), server, topic, table)
    made.insert(range(30), range(31, 60))
    made.until_horizon(60)
    made.until_gaps(30)
    yield made
    proxy.mend()
    rig.close()


def count(case: Case, name: str) -> float:
    """A series without labels."""
    return next(float(line.split()[1]) for line in case.worker.text("/metrics").splitlines() if line.startswith(f"{name} "))


def goes_on(case: Case, reason: str, mend: Callable[[], object]) -> None:
    """It is unknown for this reason until it is mended, and tells nothing but that; then it knows what happened meanwhile."""
    before = case.told()
    case.until_unknown(reason)
    row = case.row()
    assert (row["missing"], row["horizon_offset"], row["rows"]) == (1, 60, 59), "counts keep their last value"
    assert case.metric("gapstream_sink_unknown") == 1
    lines = [case.log_lines(words) for words in LINES]
    assert sum(map(len, lines)) >= 1
    assert max(map(len, lines)) == 1, "one a minute, whatever the reason is by then"
    case.insert(range(60, RECORDS))
    mend()
    eventually(lambda: case.row()["state"] == "gaps", "it is known again")
    case.until_horizon(RECORDS)
    case.checks()
    assert case.metric("gapstream_sink_unknown") == 0
    assert case.gaps() == {30}
    assert [kind for kind, *_ in case.told()[len(before) :]] == ["sink.unknown", "sink.known"]


@pytest.mark.parametrize(
    ("status", "code", "message", "reason"),
    [
        (500, 241, "Memory limit exceeded", "ClickHouse gave the query up (Memory limit exceeded)"),
        (403, 516, "Authentication failed", "ClickHouse refused the login of default (Authentication failed)"),
        (403, 497, "Not enough privileges", "ClickHouse does not let default read this (Not enough privileges)"),
        (503, 279, "All connection tries failed", "could not ask all of its shards"),
    ],
)
def test_errors(case: Case, proxy: FaultyProxy, status: int, code: int, message: str, reason: str) -> None:
    proxy.fail(status, code, message)
    goes_on(case, reason, proxy.mend)
    assert (case.metric("gapstream_clickhouse_checks_total", outcome="unknown") or 0) >= 1


def test_half_an_answer(case: Case, proxy: FaultyProxy) -> None:
    proxy.cut(0.5)
    goes_on(case, "the connection broke off", proxy.mend)


def test_half_an_answer_that_seems_whole(case: Case, proxy: FaultyProxy) -> None:
    proxy.shorten(0.5)
    goes_on(case, "its answer is not whole", proxy.mend)


def test_an_answer_that_takes_longer_than_a_sink_may_be_unknown(case: Case, proxy: FaultyProxy) -> None:
    """As a server that is slow by 30 s: while it is silent nobody knows, and what it says at last counts."""
    proxy.hold()
    goes_on(case, f"ClickHouse has not answered yet what {case.server.database}.{case.table} was asked at", proxy.mend)
    assert case.metric("gapstream_clickhouse_checks_total", outcome="unknown") is None, "no question failed"


def test_a_column_that_is_not_there(case: Case) -> None:
    other, old = f"{case.table}_other", f"{case.table}_old"
    case.server.run(f"CREATE TABLE {old} ({TYPES.replace('__offset', '__position')}) ENGINE = MergeTree ORDER BY __position")
    case.server.run(f"RENAME TABLE {case.table} TO {other}, {old} TO {case.table}")

    def mend() -> None:
        case.server.run(f"RENAME TABLE {case.table} TO {old}, {other} TO {case.table}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case, "insert", lambda *some: Case.insert(case, *some, table=other))
        goes_on(case, f"{case.server.database}.{case.table} keeps no offsets", mend)


def test_a_table_that_is_not_there(case: Case) -> None:
    away = f"{case.table}_away"
    case.server.run(f"RENAME TABLE {case.table} TO {away}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case, "insert", lambda *some: Case.insert(case, *some, table=away))
        goes_on(case, f"no table {case.server.database}.{case.table}", lambda: case.server.run(f"RENAME TABLE {away} TO {case.table}"))


def test_a_server_that_is_stopped_and_started(
    shared_kit: KafkaKit, make_rig: Callable[..., Rig], tmp_path: Path, clickhouse_url: str
) -> None:
    topic, port = shared_kit.make_topic(1), free_port()
    shared_kit.produce(topic, 0, RECORDS)
    sink = {**SINK, "url": f"http://127.0.0.1:{port}", "table": "orders"}
    rig = make_rig({topic: {"sinks": {"orders": sink}}}, app={"unknown_after": f"{UNKNOWN_AFTER_S}s"})
    with EngineProcess(tmp_path, port) as engine:
        server = ClickHouse(engine.url)
        case = Case(shared_kit, rig.worker().start().ready(), server, topic, "orders")
        server.run(f"CREATE TABLE default.orders ({TYPES}) ENGINE = MergeTree {KEY}")
        case.insert(range(30), range(31, 60), table="default.orders")
        case.until_gaps(30)
        engine.stop()
        case.until_unknown(f"127.0.0.1:{port} can't be reached")
        assert (case.row()["missing"], case.row()["rows"]) == (1, 59)
    with EngineProcess(tmp_path, port) as engine:
        eventually(lambda: case.row()["state"] == "gaps", "it is known again")
        case.insert(range(60, RECORDS), table="default.orders")
        case.until_horizon(RECORDS)
        case.checks()
        assert case.gaps() == {30}
        assert [kind for kind, *_ in case.told()] == ["gap.opened", "sink.unknown", "sink.known"]
    rig.close()


def test_an_older_snapshot_of_a_former_owner_changes_nothing(case: Case) -> None:
    """It was asked before the newest one, saw less, and is written after it: by somebody who did not know yet that the partition left."""
    case.insert(range(60, RECORDS))
    case.until_horizon(RECORDS)
    case.checks()
    before, told = case.row(), case.told()
    late = {
        "v": 1, "sink": case.table, "topic": case.topic, "partition": 0, "source": "table:former", "sequence": 0, "runs": [[0, 9]],
        "snapshot": [0, RECORDS - 1], "rows": 10, "at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    observations = f"{case.worker.rig.app_id}.observations.{case.topic}"
    accepted = count(case, "gapstream_observations_total")
    case.kit.produce(observations, 0, 3, value=lambda number: json.dumps({**late, "sequence": number}).encode())
    eventually(lambda: count(case, "gapstream_observations_total") >= accepted + 3, "observations that are heard")
    case.checks()
    after = case.row()
    assert {name: after[name] for name in ("missing", "observed", "rows", "duplicates", "horizon_offset", "state")} == {
        name: before[name] for name in ("missing", "observed", "rows", "duplicates", "horizon_offset", "state")
    }
    assert case.told() == told
