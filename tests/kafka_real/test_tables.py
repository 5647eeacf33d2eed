"""ClickHouse tables as sinks, on a real Kafka and the engine itself: what they lack, have twice, lost, and when they are silent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.clickhouse_kit import ClickHouse, EngineProcess
from tests.support.faulty_proxy import FaultyProxy
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, Worker, eventually, free_port
from tests.support.table_case import COLUMNS, KEY, SINK, TYPES, Case

DAY_MS = 86_400_000

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {"plain": {}},
    "replacing": {"replacing": {}, "visible": {"table": "replacing", "duplicates": "final"}},
    "filtered": {"raw": {}, "good": {"quarantine": {"table": "bad"}}},
    "deduplicating": {"deduplicating": {}},
    "transactional": {"transactional": {}},
    "expiring": {"expiring": {}},
    "jumping": {"jumping": {}},
    "proxied": {"proxied": {}},
}
"""By case, which has a topic: its sinks, each of a table that has the sink's name unless it is said."""
EXPIRING = f"MergeTree {KEY} TTL toDateTime(__timestamp) + INTERVAL 10 DAY SETTINGS merge_with_ttl_timeout = 0"
ENGINES = {
    "replacing": f"ReplacingMergeTree {KEY}",
    "deduplicating": f"MergeTree {KEY} SETTINGS non_replicated_deduplication_window = 100",
    "expiring": EXPIRING,
    "jumping": EXPIRING,
}


@dataclass
class World:
    """One worker for all cases."""

    kit: KafkaKit
    server: ClickHouse
    proxy: FaultyProxy
    topics: dict[str, str]
    worker: Worker

    def case(self, name: str) -> Case:
        return Case(self.kit, self.worker, self.server, self.topics[name], name)


@pytest.fixture(scope="module")
def world(shared_kit: KafkaKit, make_rig: Callable[..., Rig], clickhouse_url: str) -> Iterator[World]:
    server = ClickHouse(clickhouse_url)
    topics = {case: shared_kit.make_topic(2 if case == "plain" else 1, {"retention.ms": "-1"}) for case in CASES}
    for case, topic in topics.items():
        if case not in ("filtered", "transactional", "expiring", "jumping"):
            shared_kit.produce(topic, 0, 100)
        for table in CASES[case].keys() - {"visible"}:
            server.run(f"CREATE TABLE {table} ({TYPES}) ENGINE = {ENGINES.get(case, f'MergeTree {KEY}')}")
    server.run(f"CREATE TABLE bad ({TYPES}) ENGINE = MergeTree {KEY}")
    with FaultyProxy(clickhouse_url) as proxy:
        urls = {"proxied": proxy.url}
        config = {
            topic: {
                "sinks": {
                    sink: {
                        **SINK,
                        "url": urls.get(case, clickhouse_url),
                        "database": server.database,
                        "table": sink,
                        **keys,
                    }
                    for sink, keys in CASES[case].items()
                }
            }
            for case, topic in topics.items()
        }
        rig = make_rig(config, app={"unknown_after": "4s"})
        yield World(shared_kit, server, proxy, topics, rig.worker().start().ready())
        rig.close()
    server.close()


# --- what is missing ----------------------------------------------------------------------------------------------------


def test_t53_rows_that_are_missing_doubled_deleted_and_restored(world: World) -> None:
    case = world.case("plain")
    case.insert(range(40), range(43, 60))
    world.kit.produce(case.topic, 1, 5)
    case.insert(range(5), partition=1)
    case.until_gaps(40, 41, 42)
    case.insert(range(60, 99), [41], range(10, 12), [10])
    case.until_horizon(99)
    case.until_gaps(40, 42)
    eventually(lambda: case.row()["duplicates"] == 3, "rows beyond one per offset")
    case.delete(20, 22)
    case.until_gaps(20, 21, 22, cause="vanished")
    case.insert([21])
    case.until_gaps(20, 22, cause="vanished")
    case.until_gaps(20, 22, 40, 42)
    row = case.row()
    assert (row["missing"], row["lag"], row["records"], row["rows"], row["observed"]) == (4, 1, 100, 98 + 3, 98), (
        "97 offsets, one of them twice anew"
    )
    assert (case.row(partition=1)["state"], case.row(partition=1)["rows"]) == ("ok", 5)
    case.checks()
    told = case.told()
    doubled = [event for event in told if event[0] == "duplicate.detected"]
    assert doubled == [("duplicate.detected", None, [[10, 11]]), ("duplicate.detected", None, [[10, 10]])], "once for each row more"
    assert [event for event in told if event not in doubled] == [
        ("gap.opened", "not_received", [[40, 42]]),
        ("gap.filled", "not_received", [[41, 41]]),
        ("gap.opened", "vanished", [[20, 22]]),
        ("gap.filled", "vanished", [[21, 21]]),
    ]


def test_t54_copies_that_a_merge_will_remove(world: World) -> None:
    case = world.case("replacing")
    world.server.run("SYSTEM STOP MERGES replacing")
    case.insert(range(50), range(30, 40), range(50, 100))
    eventually(lambda: case.row()["duplicates"] == 10, "physical copies")
    case.until_horizon(100, "visible")
    world.server.run("SYSTEM START MERGES replacing")
    world.server.run("OPTIMIZE TABLE replacing FINAL")
    case.checks()
    assert (case.row()["duplicates"], case.row()["missing"]) == (10, 0), "ever told"
    assert (case.row("visible")["duplicates"], case.row("visible")["state"]) == (0, "ok")
    assert case.told() == [("duplicate.detected", None, [[30, 39]])]
    assert case.told("visible") == []


def test_t57_what_a_view_leaves_out_is_told_apart_by_a_table_of_offsets(world: World) -> None:
    """Records 20 to 22 are no JSON and put aside, 30 is a tombstone, 40 is left out by a condition, 50 was lost on the way."""
    case = world.case("filtered")
    world.kit.produce(case.topic, 0, 100, key=b"k", value=lambda number: None if number == 30 else b"{}")
    arrived = [offset for offset in range(100) if offset not in (30, 50)]
    case.insert(arrived, table="raw")
    case.insert([offset for offset in arrived if offset not in (20, 21, 22, 40)], table="good")
    case.insert([20, 21, 22], table="bad")
    case.until_gaps(50, sink="raw")
    case.until_gaps(40, 50, sink="good")
    assert case.row("raw")["explained"] == {"tombstone": 1}
    eventually(lambda: case.row("good")["explained"] == {"quarantined": 3, "tombstone": 1}, "what is explained")
    case.checks(sink="good")
    assert sorted(case.told("good")) == [
        ("gap.explained", None, [[20, 22]]),
        ("gap.opened", "not_received", [[40, 40], [50, 50]]),
    ]


def test_t58_a_repair_that_deduplication_swallows_leaves_the_gap_open(world: World) -> None:
    case = world.case("deduplicating")
    case.insert(range(50), range(50, 60), range(60, 100))
    case.until_horizon(100)
    case.checks()
    case.delete(50, 59)
    case.until_gaps(*range(50, 60))
    case.insert(range(50, 60))
    case.checks()
    assert case.gaps() == set(range(50, 60)), "ClickHouse knows the block and drops it"
    case.insert(range(50, 60), insert_deduplication_token="repair")
    case.until_gaps()
    assert [kind for kind, *_ in case.told()] == ["gap.opened", "gap.filled"]


def test_t59_aborted_records_and_markers_are_not_missing(world: World) -> None:
    case = world.case("transactional")
    committed = [*world.kit.transact(case.topic, 0, 10), *world.kit.produce(case.topic, 0, 5)]
    aborted = world.kit.transact(case.topic, 0, 10, commit=False)
    committed += world.kit.produce(case.topic, 0, 5)
    case.insert(committed, aborted[:3], aborted[:3])
    case.until_horizon(committed[-1] + 1)
    case.checks()
    row = case.row()
    assert (row["state"], row["missing"], row["duplicates"], row["observed"]) == ("ok", 0, 0, 20)
    assert row["absent"] == {"transaction_marker": 2, "aborted": 10}
    assert case.told() == []


def test_t61_what_a_ttl_removed_was_not_lost(world: World) -> None:
    case = world.case("expiring")
    now_ms = time.time_ns() // 1_000_000
    world.kit.produce(case.topic, 0, 50, timestamp_ms=now_ms - 30 * DAY_MS)
    world.kit.produce(case.topic, 0, 50, timestamp_ms=now_ms)
    rows = [(case.topic, 0, offset, (now_ms - (30 * DAY_MS if offset < 50 else 0)) / 1000) for offset in range(100) if offset != 70]
    world.server.run("CREATE TABLE merged AS expiring")  # elsewhere: nobody must see a row between its insert and the merge that takes it
    world.server.insert("merged", COLUMNS, rows)
    world.server.run("OPTIMIZE TABLE merged FINAL")
    world.server.run("ALTER TABLE expiring ATTACH PARTITION tuple() FROM merged")
    assert world.server.rows("SELECT count() FROM expiring WHERE __offset < 50") == [(0,)]
    case.until_gaps(70)
    case.checks()
    row = case.row()
    assert (row["missing"], row["explained"], row["horizon_offset"]) == (1, {"unobserved": 50}, 100)
    assert {cause for kind, cause, _ in case.told() if kind == "gap.opened"} == {"not_received"}


def test_t61_what_a_ttl_removed_among_young_records_was_not_lost(world: World) -> None:
    """A record in three is a month old. Of the old ones some rows are seen before the TTL takes them, of the others none."""
    case, rng, now_ms = world.case("jumping"), random.Random(random.randrange(1 << 30)), time.time_ns() // 1_000_000
    old = {offset for offset in range(90) if offset % 3 == 1}
    times = [now_ms - 30 * DAY_MS * (offset in old) for offset in range(90)]
    for offset in range(90):
        world.kit.produce(case.topic, 0, 1, timestamp_ms=times[offset])
    lost, seen = {4, *rng.sample(range(10, 80), 12)}, set(rng.sample(sorted(old), 15))
    there = sorted(offset for offset in range(90) if offset not in lost and (offset not in old or offset in seen))
    world.server.run("SYSTEM STOP MERGES jumping")
    world.server.insert("jumping", COLUMNS, [(case.topic, 0, offset, times[offset] / 1000) for offset in there])
    case.until_gaps(*(lost - old))
    case.until_horizon(90)
    case.checks()
    unobserved = len(old - set(there))
    assert (case.row()["missing"], case.row()["explained"]) == (len(lost - old), {"unobserved": unobserved})
    world.server.run("SYSTEM START MERGES jumping")
    world.server.run("OPTIMIZE TABLE jumping FINAL")
    assert world.server.rows(f"SELECT count() FROM jumping WHERE __offset IN ({', '.join(map(str, old))})") == [(0,)]
    deleted = rng.choice([offset for offset in there if offset not in old])
    case.delete(deleted, deleted)
    case.until_gaps(deleted, cause="vanished")
    case.checks()
    world.server.run("ALTER TABLE jumping REMOVE TTL")
    case.checks()
    assert case.gaps() == {deleted, *(lost - old)}
    assert case.row()["explained"] == {"unobserved": unobserved}


# --- no answer ----------------------------------------------------------------------------------------------------------


def test_t60_a_server_that_fails_is_unknown_and_nothing_is_lost_by_it(world: World) -> None:
    case = world.case("proxied")
    case.insert(range(60))
    case.until_horizon(60)
    faults: list[tuple[Callable[[], None], str]] = [
        (lambda: world.proxy.fail(500, 241, "Memory limit exceeded"), "Memory limit exceeded"),
        (lambda: world.proxy.cut(0.5), "can't be reached or did not answer"),
    ]
    for fault, reason in faults:
        fault()
        case.until_unknown(reason)
        assert (case.row()["missing"], case.row()["horizon_offset"]) == (0, 60), "counts keep their last value"
        world.proxy.mend()
        eventually(lambda: case.row()["state"] == "ok", "it is known again")
    world.proxy.hold()
    case.insert(range(60, 100))
    time.sleep(3)  # slower than `every` and `grace` together
    world.proxy.mend()
    case.until_horizon(100)
    case.checks()
    assert (case.row()["missing"], case.row()["state"]) == (0, "ok")
    assert [kind for kind, *_ in case.told()] == ["sink.unknown", "sink.known"] * 2


def test_t60_a_server_that_is_not_there_is_unknown_and_caught_up_with(world: World, make_rig: Callable[..., Rig], tmp_path: Path) -> None:
    topic, port = world.kit.make_topic(1), free_port()
    world.kit.produce(topic, 0, 100)
    sink = {**SINK, "url": f"http://127.0.0.1:{port}", "table": "away"}
    rig = make_rig({topic: {"sinks": {"away": sink}}}, app={"unknown_after": "4s"})
    worker = rig.worker().start().ready()
    Case(world.kit, worker, world.server, topic, "away").until_unknown(f"127.0.0.1:{port} can't be reached")
    with EngineProcess(tmp_path, port) as engine:
        server = ClickHouse(engine.url)
        away = Case(world.kit, worker, server, topic, "away")
        server.run(f"CREATE TABLE default.away ({TYPES}) ENGINE = MergeTree {KEY}")
        away.insert(range(30), range(31, 100), table="default.away")
        away.until_horizon(100)
        away.until_gaps(30)
        assert [kind for kind, *_ in away.told()] == ["sink.unknown", "sink.known", "gap.opened"]
    rig.close()


def of_its_own(world: World, make_rig: Callable[..., Rig], table: str) -> tuple[Rig, Case]:
    """A topic of 100 records, a table, and a worker that watches nothing else."""
    topic = world.kit.make_topic(1)
    world.kit.produce(topic, 0, 100)
    world.server.run(f"CREATE TABLE {table} ({TYPES}) ENGINE = MergeTree {KEY}")
    sink = {**SINK, "url": world.server.url, "database": world.server.database, "table": table}
    rig = make_rig({topic: {"sinks": {table: sink}}})
    return rig, Case(world.kit, rig.worker().start().ready(), world.server, topic, table)


def test_rows_of_a_topic_that_was_deleted_are_not_those_of_its_namesake(world: World, make_rig: Callable[..., Rig]) -> None:
    rig, case = of_its_own(world, make_rig, "remade")
    topic = case.topic
    case.insert(range(100))
    case.until_horizon(100)
    world.kit.delete_topics(topic)
    world.kit.make_topic(1, name=topic)
    world.kit.produce(topic, 0, 150)
    case.until_unknown("has rows of its partition 0 (offsets 0 to 99)")
    case.insert(range(100, 150))  # the others lie where the old ones do
    time.sleep(3)  # several checks
    assert (case.row()["state"], case.row()["observed"], case.row()["missing"]) == ("unknown", None, None)
    world.server.run("TRUNCATE TABLE remade")
    eventually(lambda: "made anew" not in (case.row()["reason"] or ""), "the table is seen empty")
    case.insert(range(20), range(23, 150))
    case.until_gaps(20, 21, 22)
    assert [kind for kind, *_ in case.told()] == ["sink.unknown", "sink.known", "gap.opened"]
    rig.close()


def test_a_worker_that_is_killed_tells_nothing_twice(world: World, make_rig: Callable[..., Rig]) -> None:
    """Another application of its own: the table is asked by whoever owns the partition."""
    rig, case = of_its_own(world, make_rig, "taken")
    first = case.worker
    case.insert(range(20), range(22, 60), range(5))
    case.until_gaps(20, 21)
    eventually(lambda: case.row()["duplicates"] == 5, "duplicates")
    first.kill()
    case.insert(range(60, 99))
    case.worker = rig.worker().start().ready()
    case.until_horizon(99)
    case.delete(50, 50)
    case.until_gaps(20, 21, 50)
    case.checks()
    assert sorted(case.told()) == [
        ("duplicate.detected", None, [[0, 4]]),
        ("gap.opened", "not_received", [[20, 21]]),
        ("gap.opened", "vanished", [[50, 50]]),
    ]
    rig.close()
