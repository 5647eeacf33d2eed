"""The guide's queries against what the worker answers, on a real Kafka and the engine itself: the same rows, column by column."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.clickhouse_kit import ClickHouse
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, Worker, eventually

GUIDE = Path(__file__).resolve().parents[1] / "data" / "guide"
COLUMNS = ("__topic", "__partition", "__offset", "__timestamp")
TYPES = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3, 'UTC')"
SINK: dict[str, Any] = {"type": "clickhouse", "every": "1s", "grace": "1s", "from": "earliest", "stall_after": None}
MINUTE_MS = 60_000
ASIDE = {"missing_offsets_alert": {"alert_time"}}
PIPES = ("missing_offsets", "offset_gaps", "missing_offsets_alert", "find_gaps", "offset_stats")
TABLES = ("random", "cancelled", "old", "transactional", "nulls")
"""A table, a topic and a sink each."""

Row = tuple[str, int, int, float]


@dataclass
class World:
    kit: KafkaKit
    server: ClickHouse
    topics: dict[str, str]
    rig: Rig
    worker: Worker

    def insert(self, table: str, rows: Iterable[Row]) -> None:
        self.server.insert(table, COLUMNS, rows)

    def ask(self, pipe: str, table: str, **query: str) -> list[dict[str, Any]]:
        return list(self.whole(pipe, table, **query)["data"])

    def whole(self, pipe: str, table: str, **query: str) -> Any:
        return self.worker.get(f"/v0/pipes/{pipe}.json?{self.question(table, query)}")

    def question(self, table: str, query: dict[str, str]) -> str:
        return "&".join(f"{name}={value}" for name, value in ({"topic": self.topics[table]} | query).items())

    def sql(self, pipe: str, table: str, now_ms: int, *, distinct: bool = True) -> str:
        """The guide's query with a window that begins at a whole minute; ``distinct``: rows beyond one of an offset hide nothing."""
        text = (GUIDE / f"{pipe}.sql").read_text().replace("your_kafka_data_source", table)
        for length, minutes in (("1 hour", 60), ("15 minute", 15)):
            start_ms = (now_ms // MINUTE_MS - minutes) * MINUTE_MS
            text = text.replace(f"> now() - INTERVAL {length}", f">= fromUnixTimestamp64Milli({start_ms}, 'UTC')")
        assert "now() - " not in text
        return text.replace("- count()", "- uniqExact(__offset)") if distinct else text

    def until_judged(self, table: str, ends: dict[int, tuple[int, int]]) -> None:
        """Each partition is read to its end, and the table checked to there: (end, missing) of each."""

        def judged() -> bool:
            rows = self.worker.get(f"/api/partitions?topic={self.topics[table]}&sink={table}")["partitions"]
            return {row["partition"]: (row["horizon_offset"], row["missing"]) for row in rows} == ends

        eventually(judged, f"{table} judged to {ends}")


@pytest.fixture(scope="module")
def world(shared_kit: KafkaKit, make_rig: Callable[..., Rig], clickhouse_url: str) -> Iterator[World]:
    server = ClickHouse(clickhouse_url)
    topics = {table: shared_kit.make_topic(3 if table == "random" else 1, {"retention.ms": "-1"}) for table in TABLES}
    for table in TABLES:
        server.run(f"CREATE TABLE {table} ({TYPES}) ENGINE = MergeTree ORDER BY tuple()")
    config = {
        topic: {"sinks": {table: {**SINK, "url": clickhouse_url, "database": server.database, "table": table}}}
        for table, topic in topics.items()
    }
    rig = make_rig(config)
    yield World(shared_kit, server, topics, rig, rig.worker().start().ready())
    rig.close()
    server.close()


# --- random tables ------------------------------------------------------------------------------------------------------


def minutes_of(times: Sequence[int]) -> Iterator[range]:
    """The offsets of each minute."""
    by_minute = defaultdict(list)
    for offset, ms in enumerate(times):
        by_minute[ms // MINUTE_MS].append(offset)
    for offsets in by_minute.values():
        yield range(offsets[0], offsets[-1] + 1)


def lost_of(rng: random.Random, times: Sequence[int]) -> set[int]:
    """Single records and runs, none at a minute's edge."""
    lost = set()
    for offsets in minutes_of(times):
        for offset in offsets[1:-1]:
            if rng.random() < 0.04:
                lost |= set(range(offset, min(offset + rng.choice([1, 1, 2, 9]), offsets[-1])))
    return lost


def batches_of(rng: random.Random, times: Sequence[int]) -> Iterator[list[tuple[None, bytes, int]]]:
    """Batches of all sizes, so that some span minutes."""
    at = 0
    while at < len(times):
        size = rng.choice([1, 3, 40, 150])
        yield [(None, b"value", ms) for ms in times[at : at + size]]
        at += size


@dataclass
class Filled:
    """What is in the table ``random``."""

    rows: dict[int, list[Row]]


@pytest.fixture(scope="module")
def filled(world: World) -> Filled:
    """Three partitions of 50 minutes that lose records; the second one has a few rows twice, too."""
    rng = random.Random(random.randrange(1 << 30))
    topic, start_ms = world.topics["random"], time.time_ns() // 1_000_000 - 50 * MINUTE_MS
    rows: dict[int, list[Row]] = {}
    ends = {}
    for partition in range(3):
        count = rng.randrange(1_500, 3_000)
        times = sorted(start_ms + rng.randrange(49 * MINUTE_MS) for _ in range(count))
        world.kit.write_batches(topic, batches_of(rng, times), partition)
        lost = lost_of(rng, times)
        rows[partition] = [(topic, partition, offset, ms / 1000) for offset, ms in enumerate(times) if offset not in lost]
        if partition == 1:
            rows[partition] += rng.choices(rows[partition], k=20)
        ends[partition] = count, len(lost)
        world.insert("random", rows[partition])
    world.until_judged("random", ends)
    return Filled(rows)


def same(world: World, pipe: str, *, distinct: bool, partitions: Iterable[int] = (0, 1, 2)) -> bool:
    """Whether the worker's rows are those of the guide's query, and not by finding nothing; columns that are our own left out."""
    before_ms = time.time_ns() // 1_000_000
    answer = world.whole(pipe, "random")
    if time.time_ns() // 1_000_000 // MINUTE_MS != before_ms // MINUTE_MS:
        return False  # another window
    lines = world.server.run(world.sql(pipe, "random", before_ms, distinct=distinct) + "\nFORMAT JSONEachRow").splitlines()
    expected = [row for row in map(json.loads, lines) if row["__partition"] in partitions]
    aside = ASIDE.get(pipe, set())
    names = [name for name in expected[0] if name not in aside]
    assert [column["name"] for column in answer["meta"]][: len(names) + len(aside)] == list(expected[0])
    got = [{name: row[name] for name in names} for row in answer["data"] if row["__partition"] in partitions]
    wanted = [{name: row[name] for name in names} for row in expected]
    if pipe in ("missing_offsets", "missing_offsets_alert"):  # the guide's has no order, or none among equals
        got, wanted = (sorted(some, key=lambda row: row["__partition"]) for some in (got, wanted))
    assert got == wanted
    return True


@pytest.mark.parametrize("pipe", PIPES)
def test_a_pipe_finds_what_the_guides_query_finds(world: World, filled: Filled, pipe: str) -> None:
    eventually(lambda: same(world, pipe, distinct=False, partitions=(0, 2)), pipe)
    eventually(lambda: same(world, pipe, distinct=True), pipe)


def test_the_types_are_those_of_the_guides_columns(world: World, filled: Filled) -> None:
    for pipe in PIPES:
        described = json.loads(world.server.run(f"DESCRIBE ({world.sql(pipe, 'random', 0)}) FORMAT JSON"))["data"]
        ours = {column["name"]: column["type"] for column in world.whole(pipe, "random")["meta"]}
        for column in described:
            assert bare(ours[column["name"]]) == bare(column["type"]), (pipe, column["name"])


def bare(kind: str) -> str:
    """Without what does not change how a value is printed."""
    for name in ("Nullable(", "LowCardinality("):
        kind = kind.removeprefix(name).removesuffix(")") if kind.startswith(name) else kind
    return kind.replace(", 'UTC')", ")").removesuffix("('UTC')")


def test_ranges_are_the_runs_of_offsets_that_are_stored(world: World, filled: Filled) -> None:
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in world.ask("offsets", "random"):
        found[row["__partition"]].append(row)
    for partition, rows in filled.rows.items():
        times = {offset: ms for _, _, offset, ms in rows}
        stored = sorted(times)
        edges = [0, *(at for at, (one, other) in enumerate(pairwise(stored), 1) if other - one > 1), len(stored)]
        ranges = [(stored[first], stored[stop - 1]) for first, stop in pairwise(edges)]
        assert [(row["first_offset"], row["last_offset"]) for row in found[partition]] == ranges
        assert [(row["first_timestamp"], row["last_timestamp"]) for row in found[partition]] == [
            (printed(times[first]), printed(times[last])) for first, last in ranges
        ]


def printed(seconds: float) -> str:
    ms = round(seconds * 1000)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03}"


def test_the_formats_are_clickhouses(world: World, filled: Filled) -> None:
    def check() -> bool:
        now_ms = time.time_ns() // 1_000_000
        question = world.question("random", {"limit": "7"})
        got = {ending: world.worker.text(f"/v0/pipes/offset_stats.{ending}?{question}") for ending in ("csv", "ndjson")}
        if time.time_ns() // 1_000_000 // MINUTE_MS != now_ms // MINUTE_MS:
            return False
        sql = world.sql("offset_stats", "random", now_ms) + " LIMIT 7 FORMAT "
        expected = world.server.run(sql + "CSVWithNames").decode()
        assert [line.split(",")[:8] for line in got["csv"].splitlines()] == [line.split(",") for line in expected.splitlines()]
        plain = world.server.run(sql + "JSONEachRow").decode().splitlines()
        assert [list(json.loads(line).items())[:8] for line in got["ndjson"].splitlines()] == [
            [*json.loads(line).items()] for line in plain
        ]
        return True

    eventually(check, "the same texts")
    quoted = world.ask("offset_stats", "random", output_format_json_quote_64bit_integers="1")[0]
    assert {name for name, value in quoted.items() if isinstance(value, int)} == {"__partition"}
    assert isinstance(quoted["max_offset"], str)


# --- where the guide's queries are wrong ---------------------------------------------------------------------------------


def test_a_doubled_row_does_not_hide_a_lost_one(world: World) -> None:
    topic, now_ms = world.topics["cancelled"], time.time_ns() // 1_000_000
    world.kit.produce(topic, 0, 100, timestamp_ms=now_ms - 3 * MINUTE_MS)
    rows = [(topic, 0, offset, (now_ms - 3 * MINUTE_MS) / 1000) for offset in (*range(40), *range(41, 100), 60)]
    world.insert("cancelled", rows)
    world.until_judged("cancelled", {0: (100, 1)})
    assert world.server.rows(world.sql("missing_offsets", "cancelled", now_ms, distinct=False)) == []
    (row,) = eventually(lambda: world.ask("missing_offsets", "cancelled"), "a row")
    assert (row["missing_messages"], row["duplicate_messages"], row["message_count"], row["open_missing_messages"]) == (1, 1, 100, 1)
    (gap,) = world.ask("offset_gaps", "cancelled")
    assert (gap["expected_offset"], gap["actual_offset"], gap["gap_size"]) == (40, 41, 1)


def test_an_alert_does_not_vanish_with_its_window(world: World) -> None:
    topic, old_ms = world.topics["old"], time.time_ns() // 1_000_000 - 40 * MINUTE_MS
    world.kit.produce(topic, 0, 50, timestamp_ms=old_ms)
    world.insert("old", [(topic, 0, offset, old_ms / 1000) for offset in range(50) if offset not in (7, 8)])
    world.until_judged("old", {0: (50, 2)})
    (row,) = eventually(lambda: world.ask("missing_offsets_alert", "old"), "an alert")
    assert (row["missing_messages"], row["open_missing_messages"], row["min_offset"], row["max_offset"]) == (2, 2, 0, 49)
    assert world.ask("missing_offsets_alert", "old", open="0") == []
    assert world.ask("find_gaps", "old") == []
    (gap,) = world.ask("find_gaps", "old", open="1")
    assert (gap["missing_offset_start"], gap["missing_offset_end"], gap["detected_at"]) == (7, 8, printed(old_ms / 1000))
    assert len(world.ask("find_gaps", "old", minutes="60")) == 1
    world.insert("old", [(topic, 0, offset, old_ms / 1000) for offset in (7, 8)])
    eventually(lambda: world.ask("missing_offsets_alert", "old") == [], "the alert is gone")


def test_markers_and_aborted_records_are_not_missing(world: World) -> None:
    topic, now_ms = world.topics["transactional"], time.time_ns() // 1_000_000
    committed = [*world.kit.transact(topic, 0, 10), *world.kit.produce(topic, 0, 5)]
    world.kit.transact(topic, 0, 10, commit=False)
    committed += world.kit.produce(topic, 0, 5)
    world.insert("transactional", [(topic, 0, offset, now_ms / 1000) for offset in committed if offset != 13])
    world.until_judged("transactional", {0: (committed[-1] + 1, 1)})
    (row,) = eventually(lambda: world.ask("missing_offsets", "transactional"), "a row")
    assert (row["missing_messages"], row["message_count"], row["max_offset"]) == (1, 19, committed[-1])
    assert world.server.rows(world.sql("missing_offsets", "transactional", now_ms))[0][5] == 13, "2 markers, 10 aborted, 1 lost"


def test_tolerated_tombstones_are_explained(world: World) -> None:
    topic, now_ms = world.topics["nulls"], time.time_ns() // 1_000_000
    world.kit.produce(topic, 0, 30, key=b"k", value=lambda number: None if number in (4, 5) else b"{}")
    world.insert("nulls", [(topic, 0, offset, now_ms / 1000) for offset in range(30) if offset not in (4, 5, 6, 20)])
    world.until_judged("nulls", {0: (30, 2)})
    (row,) = eventually(lambda: world.ask("missing_offsets", "nulls"), "a row")
    assert (row["missing_messages"], row["explained_messages"], row["message_count"]) == (2, 2, 26)
    first, second = world.ask("offset_gaps", "nulls")
    assert (first["expected_offset"], first["actual_offset"], first["gap_size"], first["explained_messages"]) == (6, 7, 1, 2)
    assert (second["expected_offset"], second["explained_messages"]) == (20, 0)


def test_a_worker_that_is_killed_and_its_successor_say_the_same(world: World, filled: Filled) -> None:
    def answers(worker: Worker) -> dict[str, Any]:
        question = f"topic={world.topics['random']}&minutes=1440"
        return {pipe: worker.get(f"/v0/pipes/{pipe}.json?{question}&open=0")["data"] for pipe in (*PIPES[:2], *PIPES[3:], "offsets")}

    before = answers(world.worker)
    assert before["offset_stats"]
    world.worker.kill()
    successor = world.rig.worker().start().ready()
    name = f"worker-{successor.number}"
    eventually(
        lambda: {row["worker"] for row in successor.get(f"/api/partitions?topic={world.topics['random']}")["partitions"]} == {name},
        "the successor speaks",
    )
    world.worker = successor
    assert answers(successor) == before
