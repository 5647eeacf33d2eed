"""``gapstream verify`` with a real Kafka and the real engine of ClickHouse."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stream_app.verify import run
from tests.cli.kit import Command, Ran, cells
from tests.support.clickhouse_kit import ClickHouse
from tests.support.faulty_proxy import FaultyProxy
from tests.support.kafka_kit import KafkaKit
from tests.support.tables import TINYBIRD, fill, make

HOUR_MS = 3_600_000
COLUMNS = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3)"
CHECK = b"groupBitmapState"


@dataclass
class Bench:
    """A topic, a table, and the command on both."""

    gapstream: Command
    kit: KafkaKit
    clickhouse: ClickHouse
    folder: Path

    def produce(self, topic: str, n: int, partition: int = 0, *, hours_ago: float = 1, **more: Any) -> None:
        self.kit.produce(topic, partition, n, timestamp_ms=self.ago(hours_ago), **more)

    @staticmethod
    def ago(hours: float) -> int:
        return int(time.time() * 1000 - hours * HOUR_MS)

    def table(self, more: str = "ENGINE = MergeTree ORDER BY (__topic, __partition, __offset)", name: str = "orders") -> None:
        self.clickhouse.run(f"CREATE TABLE {name} ({COLUMNS}) {more}")

    def put(self, topic: str, offsets: Any, partition: int = 0, table: str = "orders", *, hours_ago: float = 1) -> None:
        rows = [(topic, partition, offset, self.ago(hours_ago) / 1000) for offset in offsets]
        self.clickhouse.insert(table, TINYBIRD, rows)

    def verify(self, topic: str, *more: str, url: str | None = None) -> Ran:
        named = ("--clickhouse", url or self.clickhouse.url, "--table", f"{self.clickhouse.database}.orders")
        return self.gapstream("verify", "--topic", topic, *named, "-X", f"kafka.bootstrap.servers={self.kit.bootstrap}", *more)

    def verify_sink(self, topic: str, *more: str, **keys: Any) -> Ran:
        sink = {"type": "clickhouse", "url": self.clickhouse.url, "database": self.clickhouse.database, "table": "orders", **keys}
        topics = {topic: {"sinks": {"warehouse": sink}}}
        file = self.folder / "gapstream.yaml"
        file.write_text(json.dumps({"kafka": {"bootstrap.servers": self.kit.bootstrap}, "topics": topics}))  # YAML takes JSON
        return self.gapstream("verify", "--topic", topic, "--sink", "warehouse", "-c", str(file), *more)


@pytest.fixture
def bench(gapstream: Command, kit: KafkaKit, clickhouse: ClickHouse, tmp_path: Path) -> Bench:
    return Bench(gapstream, kit, clickhouse, tmp_path)


@pytest.fixture
def proxy(clickhouse: ClickHouse) -> Iterator[FaultyProxy]:
    with FaultyProxy(clickhouse.url) as proxy:
        yield proxy


def answer(ran: Ran, code: int) -> Any:
    assert ran.code == code, ran.err
    return json.loads(ran.out)


def offsets(rows: list[dict[str, Any]], partition: int) -> set[int]:
    return {
        offset for row in rows if row["partition"] == partition for offset in range(row["first_offset"], row["last_offset"] + 1)
    }  # fmt: skip


# --- what is found --------------------------------------------------------------------------------------------------------------


def test_exactly_what_was_lost_and_doubled(bench: Bench) -> None:
    topics = [bench.kit.make_topic(3), bench.kit.make_topic(3)]
    made = make(random.Random(random.randrange(1 << 30)), dict.fromkeys(topics, 3), 3_000)
    fill(bench.clickhouse, made, quarantine="aside", engine="MergeTree ORDER BY (__topic, __partition, __offset)")
    for (topic, partition), end in made.ends.items():
        bench.produce(topic, end, partition)
    for topic in topics:
        found = answer(bench.verify_sink(topic, "--json", quarantine={"table": "aside"}), 1)
        assert (found["result"], found["sink"], found["table"]) == ("different", "warehouse", f"{bench.clickhouse.database}.orders")
        for row in found["partitions"]:
            partition = row["partition"]
            counts, aside = made.counts(topic, partition), made.quarantined(topic, partition)
            first = min(counts)  # from: first
            lost = {offset for offset in range(first, made.ends[topic, partition]) if offset not in counts}
            assert offsets(found["missing"], partition) == lost - aside
            assert offsets(found["duplicates"], partition) == {offset for offset, count in counts.items() if count > 1}
            assert row["explained"] == ({"quarantined": len(lost & aside)} if lost & aside else {})
            expected = {
                "first_offset": first,
                "last_offset": made.ends[topic, partition] - 1,
                "records": made.ends[topic, partition] - first,
                "rows": counts.total(),
                "missing": len(lost - aside),
                "duplicates": counts.total() - len(counts),
                "unexpected": 0,
            }
            assert {name: row[name] for name in expected} == expected


def test_what_is_no_record_is_not_missing(bench: Bench) -> None:
    topic = bench.kit.make_topic()
    bench.produce(topic, 30)  # 0-29
    committed = bench.kit.transact(topic, n=10)  # 30-39, marker 40
    aborted = bench.kit.transact(topic, n=5, commit=False)  # 41-45, marker 46
    bench.produce(topic, 3, value=None)  # 47-49
    bench.produce(topic, 10)  # 50-59
    bench.kit.delete_records(topic, 0, 12)
    bench.table()
    bench.put(topic, [*range(12, 30), *committed, *range(50, 60)])
    found = answer(bench.verify(topic, "--json", "--settle", "0s"), 0)
    (row,) = found["partitions"]
    assert (found["result"], row["first_offset"], row["last_offset"], row["records"], row["rows"]) == ("equal", 12, 59, 41, 38)
    assert (row["absent"], row["explained"]) == ({"transaction_marker": 2, "aborted": 5}, {"tombstone": 3})
    required = answer(bench.verify_sink(topic, "--json", "--settle", "0s", tombstones="required"), 1)
    assert [(gap["first_offset"], gap["last_offset"], gap["cause"]) for gap in required["missing"]] == [(47, 49, "not_received")]
    bench.put(topic, [aborted[0], 46])
    ran = bench.verify(topic, "--settle", "0s")
    assert ran.code == 0
    assert "2 rows are of transaction markers or aborted records" in ran.err


def test_the_end_of_the_table_may_be_missing_too(bench: Bench) -> None:
    topic = bench.kit.make_topic(2)
    bench.produce(topic, 100)
    bench.produce(topic, 40, 1)
    bench.table()
    bench.put(topic, [*range(5, 50), *range(52, 90)])
    ran = bench.verify(topic)
    assert ran.code == 1
    lines = [cells(line) for line in ran.out.splitlines()]
    assert ["0", "0", "99", "100", "83", "17", "0"] in lines
    assert [line[:5] for line in lines if "not_received" in line] == [
        ["0", "0", "4", "5", "not_received"],
        ["0", "50", "51", "2", "not_received"],
        ["0", "90", "99", "10", "not_received"],
        ["1", "0", "39", "40", "not_received"],
    ]
    assert lines[-1] == [f"different: of 140 records of {topic}, {bench.clickhouse.database}.orders lacks 57 and has 0 rows too many"]
    assert "partition 0: 10 of the missing records lie above the table's last offset: it may only be behind" in ran.err
    assert "partition 1: 40 of the missing records lie above" in ran.err
    # A configured sink answers from the first offset that it has, unless somebody asks for more.
    floor = answer(bench.verify_sink(topic, "--json"), 1)
    assert [(gap["partition"], gap["first_offset"]) for gap in floor["missing"]] == [(0, 50), (0, 90), (1, 0)]
    assert floor["notes"][0] == "partition 0 is judged from offset 5 on, where the table begins; --from says otherwise"
    whole = answer(bench.verify_sink(topic, "--json", "--partition", "0", "--from", "0", "--until", "60"), 1)
    assert [(gap["first_offset"], gap["last_offset"]) for gap in whole["missing"]] == [(0, 4), (50, 51)]


def test_a_part_by_time(bench: Bench) -> None:
    topic = bench.kit.make_topic(2)
    for partition in range(2):
        for hours in (6, 4, 2):
            bench.produce(topic, 10, partition, hours_ago=hours)
    bench.table()
    bench.put(topic, range(10, 20))
    bench.put(topic, range(11, 20), partition=1)
    found = answer(bench.verify(topic, "--json", "--from", "-5h", "--until", "-3h"), 1)
    assert [(row["first_offset"], row["last_offset"], row["rows"]) for row in found["partitions"]] == [(10, 19, 10), (10, 19, 9)]
    (gap,) = found["missing"]
    assert (gap["partition"], gap["first_offset"], gap["last_offset"]) == (1, 10, 10)
    assert gap["first_timestamp"] is not None
    turned = bench.verify(topic, "--from", "-3h", "--until", "-5h")
    assert (turned.code, "--from is not below --until" in turned.err) == (2, True)
    nothing = bench.verify(topic, "--from", "-1m")
    assert (nothing.code, nothing.out.splitlines()[-1]) == (0, f"there is no record of {topic} in that part: nothing was compared")


def test_where_nothing_is_left_to_be_compared_nothing_is_known(bench: Bench) -> None:
    topic = bench.kit.make_topic(1)
    bench.table()
    assert bench.verify(topic).code == 0, "an empty topic lacks nothing"
    bench.produce(topic, 100)
    bench.put(topic, range(100))
    beyond = answer(bench.verify(topic, "--json", "--partition", "0", "--from", "1000"), 3)
    assert beyond["result"] == "unknown"
    assert "partition 0 holds offsets 0 to 99" in beyond["reason"]
    bench.kit.delete_records(topic, 0, 60)
    below = answer(bench.verify(topic, "--json", "--partition", "0", "--from", "5", "--until", "20"), 3)
    assert "partition 0 holds offsets 60 to 99" in below["reason"]
    assert bench.verify(topic, "--partition", "0", "--until", "20").code == 3
    assert bench.verify(topic).code == 0
    bench.kit.delete_records(topic, 0, 100)
    gone = bench.verify(topic)
    assert (gone.code, "partition 0 holds nothing any more" in gone.err) == (3, True)


def test_a_table_without_an_index_is_read_whole_and_that_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ROWS_MANY", 20)
    topic = bench.kit.make_topic()
    bench.produce(topic, 20)
    bench.table("ENGINE = MergeTree ORDER BY tuple()")
    bench.put(topic, range(20))
    (note,) = answer(bench.verify(topic, "--json"), 0)["notes"]
    assert "rows of the table were read, because it is not ordered by topic, partition and offset" in note
    bench.clickhouse.run("DROP TABLE orders SYNC")
    bench.table()
    bench.put(topic, range(20))
    assert answer(bench.verify(topic, "--json"), 0)["notes"] == []


def test_duplicates_as_final_shows_them(bench: Bench) -> None:
    topic = bench.kit.make_topic()
    bench.produce(topic, 20)
    bench.table("ENGINE = ReplacingMergeTree ORDER BY (__topic, __partition, __offset)")
    bench.clickhouse.run("SYSTEM STOP MERGES orders")
    bench.put(topic, range(20))
    bench.put(topic, [3, 4])
    assert offsets(answer(bench.verify(topic, "--json"), 1)["duplicates"], 0) == {3, 4}
    assert answer(bench.verify(topic, "--json", "-X", "defaults.clickhouse.duplicates=final"), 0)["duplicates"] == []


def test_what_the_ttl_removed_is_not_missing(bench: Bench) -> None:
    topic = bench.kit.make_topic(config={"retention.ms": "-1"})
    bench.produce(topic, 50, hours_ago=72)
    bench.produce(topic, 50)
    bench.table("ENGINE = MergeTree ORDER BY (__partition, __offset) TTL toDateTime(__timestamp) + INTERVAL 1 DAY")
    bench.put(topic, [*range(50, 60), *range(62, 100)])
    found = answer(bench.verify(topic, "--json"), 1)
    assert offsets(found["missing"], 0) == {60, 61}
    assert found["notes"] == ["partition 0 is judged from offset 50 on: the table's TTL may have removed what is older"]
    bench.clickhouse.run("ALTER TABLE orders MODIFY TTL toStartOfDay(toDateTime(__timestamp)) + INTERVAL 1 MONTH")
    unclear = answer(bench.verify(topic, "--json"), 3)
    assert (unclear["result"], unclear["missing"]) == ("unknown", None)
    assert "does not say which of them it may have removed: give --from" in unclear["reason"]
    since = answer(bench.verify(topic, "--json", "--from", "-24h"), 1)
    assert offsets(since["missing"], 0) == {60, 61}


# --- time ---------------------------------------------------------------------------------------------------------------------


def test_what_the_ttl_removed_among_young_records_is_not_missing(bench: Bench) -> None:
    """Each record is judged by its own time, whatever the times of its neighbours are."""
    topic, rng = bench.kit.make_topic(1), random.Random(random.randrange(1 << 30))
    old = {offset for offset in range(40) if rng.random() < 0.4} | {10, 30}
    lost = set(range(8, 16)) | set(range(28, 33)) | {rng.randrange(40)}
    for offset in range(40):
        bench.produce(topic, 1, hours_ago=50 if offset in old else 1)
    bench.table("ENGINE = MergeTree ORDER BY (__partition, __offset) TTL toDateTime(__timestamp) + INTERVAL 1 DAY")
    bench.put(topic, sorted(set(range(40)) - old - lost))
    found = answer(bench.verify(topic, "--json"), 1)
    assert offsets(found["missing"], 0) == lost - old
    assert found["partitions"][0]["missing"] == len(lost - old)
    first = min(set(range(40)) - old)
    said = f"partition 0: {len([one for one in old if one > first])} records without a row are older than the table's TTL"
    assert any(note.startswith(said) for note in found["notes"])
    bench.put(topic, sorted(lost - old))
    assert answer(bench.verify(topic, "--json"), 0)["result"] == "equal"


def test_what_the_ttl_may_have_removed_whole_is_unknown(bench: Bench) -> None:
    topic = bench.kit.make_topic(1)
    bench.table("ENGINE = MergeTree ORDER BY (__topic, __partition, __offset) TTL toDateTime(__timestamp) + INTERVAL 30 MINUTE")
    bench.produce(topic, 110, hours_ago=2)
    ran = bench.verify(topic)
    assert (ran.code, "the table's TTL may have removed what is older" in ran.err) == (3, True)


def test_what_arrives_while_it_is_looked_for_is_not_missing(bench: Bench, proxy: FaultyProxy) -> None:
    topic = bench.kit.make_topic()
    bench.produce(topic, 100)
    bench.table()
    bench.put(topic, [*range(10), *range(20, 100)])
    late = iter([range(10, 15), range(15, 18)])

    def insert(statement: bytes) -> None:
        if CHECK in statement and b"EXPLAIN" not in statement and (rows := next(late, None)):
            bench.put(topic, rows)

    proxy.then(insert)
    found = answer(bench.verify(topic, "--json", url=proxy.url), 1)
    # The first question was answered before the first of these came, the second (rows above the end) before the next.
    assert offsets(found["missing"], 0) == {18, 19}
    assert (found["partitions"][0]["rows"], found["partitions"][0]["duplicates"]) == (98, 0)


def test_young_records_are_given_the_time_to_settle(bench: Bench, proxy: FaultyProxy) -> None:
    topic = bench.kit.make_topic()
    bench.table()
    bench.put(topic, range(9))
    bench.produce(topic, 10, hours_ago=0)
    produced_at = time.time()
    asked: list[float] = []
    proxy.then(lambda statement: asked.append(time.time()) if CHECK in statement else None)
    found = answer(bench.verify(topic, "--json", "--settle", "2500ms", url=proxy.url), 1)
    assert offsets(found["missing"], 0) == {9}
    assert asked[0] < produced_at + 2.4 < asked[-1]


# --- could not tell -------------------------------------------------------------------------------------------------------------


def test_a_failing_table_is_unknown(bench: Bench, proxy: FaultyProxy) -> None:
    topic = bench.kit.make_topic()
    bench.produce(topic, 10)
    bench.table()
    bench.put(topic, range(10))
    answered = threading.Event()

    def fail_from_now_on(statement: bytes) -> None:
        if CHECK in statement and b"EXPLAIN" not in statement:
            answered.set()
            proxy.fail(500, 241, "Memory limit exceeded")

    proxy.then(fail_from_now_on)
    found = answer(bench.verify(topic, "--json", url=proxy.url), 3)
    assert answered.is_set()
    assert (found["result"], found["partitions"], found["missing"], found["duplicates"]) == ("unknown", None, None, None)
    assert "Memory limit exceeded" in found["reason"]
    proxy.mend()
    assert bench.verify(topic, url=proxy.url).code == 0


def test_rows_of_another_log_prove_nothing(bench: Bench) -> None:
    topic = bench.kit.make_topic()
    bench.produce(topic, 50)
    bench.table()
    bench.put(topic, range(200))
    ran = bench.verify(topic)
    assert (ran.code, ran.out) == (3, "")
    assert f"{bench.clickhouse.database}.orders has offset 199 of partition 0, but the log ends at 50" in ran.err


def test_a_table_that_keeps_no_offsets_gets_the_statement(bench: Bench) -> None:
    topic = bench.kit.make_topic()
    bench.clickhouse.run("CREATE TABLE orders (id UInt64) ENGINE = MergeTree ORDER BY id")
    ran = bench.verify(topic)
    assert ran.code == 3
    assert "keeps no offsets" in ran.err
    assert ran.out.startswith(f"CREATE TABLE `{bench.clickhouse.database}`.`orders_offsets`")
    found = answer(bench.verify(topic, "--json"), 3)
    assert found["statement"] == ran.out.rstrip()


def test_a_topic_that_is_not_there(bench: Bench) -> None:
    ran = bench.verify("no-such-topic")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err == "Kafka has no topic no-such-topic, or hides it from this user: see --topic and bootstrap.servers\n"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--from", "5"), "has 2 partitions: with offsets say which by --partition, or give times"),
        (("--partition", "2"), "has no partition 2: its partitions are 0 to 1"),
    ],
)
def test_parts_that_there_are_not(bench: Bench, more: tuple[str, ...], complaint: str) -> None:
    bench.table()
    ran = bench.verify(bench.kit.make_topic(2), *more)
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ((), "say what to compare with: --sink NAME, or --clickhouse URL and --table DB.TABLE"),
        (("--clickhouse", "http://c"), "say what to compare with"),
        (("--sink", "s", "--table", "t"), "exclude each other"),
        (("--sink", "s"), "orders has no sink s in the configuration"),
        (("--clickhouse", "http://c", "--table", "t", "--from", "yesterday"), "or an offset; see gapstream verify --help"),
        (("--clickhouse", "http://c", "--table", "t", "--settle", "soon"), "is not a duration"),
        (("--clickhouse", "http://c", "--table", "t", "--partition", "-1"), "--partition"),
    ],
)
def test_usage(gapstream: Command, argv: tuple[str, ...], complaint: str) -> None:
    ran = gapstream("verify", "--topic", "orders", "-X", "kafka.bootstrap.servers=127.0.0.1:1", *argv)
    assert (ran.code, ran.out) == (2, "")
    assert complaint in ran.err


def test_a_kafka_that_is_away(gapstream: Command, clickhouse: ClickHouse) -> None:
    ran = gapstream(
        *("verify", "--topic", "orders", "--clickhouse", clickhouse.url, "--table", "orders"), "-X", "kafka.bootstrap.servers=127.0.0.1:1"
    )
    assert (ran.code, ran.out) == (3, "")
    assert "127.0.0.1:1 can't be reached" in ran.err
