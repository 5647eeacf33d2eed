"""Asking a table: what is written of its answers, by whom, and what failing answers lead to."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile
from typing import Any

import pytest
import structlog

from stream_app.core.model import CHUNK, DOUBLED_MAX, LogEnds, Look, Row
from stream_app.core.offsets import OffsetSet
from stream_app.core.policy import Policy
from stream_app.kafka.trouble import Trouble, TroubleKind
from stream_app.kafka.writer import OutRecord
from stream_app.service import owner as owner_module
from stream_app.service import tables as tables_module
from stream_app.service.owner import PartitionOwner
from stream_app.service.tables import Rules, TableWatcher
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.clickhouse import Check, Facts, Held, Layout, Retention, Span, Unknown
from stream_app.sinks.clickhouse import snapshots as snapshots_module
from stream_app.sinks.clickhouse.layout import joined
from tests.core.naive import runs_of
from tests.support.fakes import NAMES, Bench, bundle, log_read, until

GRACE = 1_000
SINK = "warehouse"
OTHER_ID = bytes(15) + b"\x07"
BROKEN = "ClickHouse at c:8123 can't be reached or did not answer (it did not answer in time): see url, and whether it is up"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_SECONDS", "RETRY_SECONDS", "PACE_SECONDS"):
        monkeypatch.setattr(owner_module, name, 0.005)
    for name in ("TICK_SECONDS", "BACKOFF_SECONDS", "FORMER_SECONDS"):
        monkeypatch.setattr(tables_module, name, 0.001)


@dataclass
class Table:
    """Holds what it is told to, and counts what it was asked."""

    layout: Layout = field(default_factory=lambda: Layout("default", "orders", "__offset", "__topic", "__partition"))
    rows: dict[int, Counter[int]] = field(default_factory=dict)
    aside: dict[int, set[int]] = field(default_factory=dict)
    facts: Facts | Unknown = field(default_factory=lambda: Facts("MergeTree", Retention(), final=False))
    failure: str | None = None
    defect: Exception | None = None
    gate: asyncio.Event | None = None
    """While set and not open, no question is answered."""
    asked: list[list[Span]] = field(default_factory=list)
    answered: int = 0
    at_once: int = 0
    most_at_once: int = 0
    edges_asked: int = 0
    closed: bool = False

    def put(self, *offsets: Iterable[int], partition: int = 0) -> None:
        """One row more of each."""
        for some in offsets:
            self.rows.setdefault(partition, Counter()).update(some)

    def delete(self, offsets: Iterable[int], partition: int = 0) -> None:
        """All rows of these."""
        for offset in offsets:
            del self.rows[partition][offset]

    async def inspect(self) -> Facts | Unknown:
        return self.facts

    async def check(self, spans: Iterable[Span]) -> Check | Unknown:
        self.asked.append(list(spans))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        failure = self.failure
        found = tuple(map(self._held, joined(self.asked[-1])))
        if self.gate is not None:
            await self.gate.wait()
        self.at_once -= 1
        self.answered += 1
        if self.defect is not None:
            raise self.defect
        return Check(0, found, 7) if failure is None else Unknown(failure)

    def _held(self, span: Span) -> Held:
        stop = 1 << 62 if span.stop is None else span.stop
        rows = {o: count for o, count in self.rows.get(span.partition, Counter()).items() if span.first <= o < stop}
        levels = [OffsetSet(runs_of(o for o, count in rows.items() if count >= least)) for least in range(2, 2 + DOUBLED_MAX)]
        aside = {o for o in self.aside.get(span.partition, ()) if span.first <= o < stop}
        return Held(span, OffsetSet(runs_of(rows)), {}, tuple(takewhile(bool, levels)), OffsetSet(runs_of(aside)))

    async def edges(self, partitions: Iterable[int]) -> Mapping[int, tuple[int, int]] | Unknown:
        self.edges_asked += 1
        held = {number: self.rows[number] for number in partitions if self.rows.get(number)}
        return {number: (min(rows), max(rows) + 1) for number, rows in held.items()}

    async def close(self) -> None:
        self.closed = True


class Always(dict[str, int | None]):
    """The same offset at any time."""

    def __init__(self, offset: int | None) -> None:
        self.offset = offset
        self.asked: list[str] = []

    def __missing__(self, time: str) -> int | None:
        self.asked.append(time)
        return self.offset


def policy(**rules: Any) -> Policy:
    return Policy(SINK, **{"grace_ms": GRACE, "stall_after_ms": None, "checks": ("table", "former"), **rules})


@dataclass
class World:
    """A worker, the table that it asks, and the observations topic between the two."""

    benches: list[Bench] = field(default_factory=lambda: [Bench()])
    """One for each partition."""
    table: Table = field(default_factory=Table)
    rules: Rules = field(default_factory=lambda: Rules("orders", SINK, every_s=0.001, sweep_s=1e9, verify_ms=7 * 86_400_000))
    watcher: TableWatcher = field(init=False)

    def __post_init__(self) -> None:
        self.times = self.bench.port.times = Always(0)
        for bench in self.benches:
            bench.policies, bench.floors = {SINK: policy()}, {SINK: "earliest"}
            bench.unknown_after_ms = 60_000
        self.watcher = self.make("table:me")

    def make(self, source: str) -> TableWatcher:
        """Another worker."""
        telemetry = Telemetry(self.bench.counters)
        return TableWatcher(self.rules, self.table, self.bench.port, self.owners, telemetry, self.bench.clock, source)

    @property
    def bench(self) -> Bench:
        return self.benches[0]

    def owners(self) -> list[PartitionOwner]:
        return [owner for bench in self.benches for owner in bench.owners if owner.ledger]

    async def begin(self, records: int = 100, *, start: bool = True) -> None:
        """The partitions are owned, their logs read, their observations heard; then the table is asked."""
        for partition, bench in enumerate(self.benches):
            owner = await bench.begun(partition)
            assert owner.ledger is not None
            if owner.ledger.log.read < records:
                owner.fold_log(log_read(owner.ledger.log.read, records))
        await self.hear()
        if start:
            self.watcher.start()

    def written(self, partition: int = 0) -> list[dict[str, Any]]:
        """Every observation that was written so far, by whichever owner."""
        writes = [write for writer in self.benches[partition].writers for write in writer.to(NAMES.observations)]
        return [json.loads(record.value or b"") for write in writes for record in write]

    async def hear(self) -> None:
        """The owners read what was written since, to the end."""
        for partition, bench in enumerate(self.benches):
            ledger = bench.owners[-1].ledger
            if ledger is not None:
                fresh = self.written(partition)[ledger.observed_to :]
                await bench.owners[-1].fold_observations(bundle(ledger.observed_to, *fresh, heard_ms=self.bench.clock.now_ms))

    async def check(self) -> None:
        """The table is asked, and everything that is said of the answer is heard."""
        wanted = self.table.answered + 3  # the first may have been asked before

        async def turn() -> bool:
            await self.hear()
            return self.table.answered >= wanted

        deadline = asyncio.get_running_loop().time() + 5
        while not await turn():
            assert asyncio.get_running_loop().time() < deadline, "no question was answered"
            await asyncio.sleep(0.001)
        await self.hear()

    async def checks(self, count: int = 3, ms: int = GRACE) -> None:
        """So many of them, with time between."""
        for _ in range(count):
            await self.check()
            self.bench.clock.now_ms += ms
        await self.check()

    def row(self, partition: int = 0) -> Row:
        return next(row for row in self.benches[partition].owners[-1].rows if row.sink == SINK)

    def told(self, partition: int = 0) -> list[tuple[str, Any]]:
        return [(one["type"], one["ranges"] or one["reason"]) for writer in self.benches[partition].writers for one in writer.events()]

    async def until_told(self, count: int, partition: int = 0) -> list[tuple[str, Any]]:
        await until(lambda: len(self.told(partition)) >= count, f"{count} events")
        return self.told(partition)

    async def until_row(self, reached: Callable[[Row], bool], partition: int = 0) -> Row:
        await until(lambda: self.benches[partition].owners[-1].rows and reached(self.row(partition)), "the row")
        return self.row(partition)

    def failing(self) -> dict[str, str]:
        """What the ledger was told of the check."""
        ledger = self.bench.owners[-1].ledger
        assert ledger is not None
        return {name: why for name, (_, why) in ledger.sinks[SINK].checks.failing.items()}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.watcher.stop()
    assert made.table.closed
    assert made.table.most_at_once <= 1, "no question before the last one was answered"
    for bench in made.benches:
        assert bench.rejected == {}
        await bench.close()


# --- what the table has, and has not ------------------------------------------------------------------------------------


async def test_t53_rows_that_never_came_are_missing_and_then_they_come(world: World) -> None:
    world.table.put(range(50), range(53, 100))
    await world.begin()
    await world.checks(1, ms=GRACE - 100)  # no two checks have the same time, though the clock stands still
    assert world.told() == []
    await world.checks(1, ms=100)
    assert await world.until_told(1) == [("gap.opened", [[50, 52]])]
    world.table.put([51])
    await world.check()
    assert (await world.until_told(2))[1:] == [("gap.filled", [[51, 51]])]
    row = await world.until_row(lambda row: row.missing == 2)
    assert (row.records, row.rows, row.observed, row.duplicates) == (100, 98, 98, 0)


async def test_rows_that_were_there_have_vanished_and_are_restored(world: World) -> None:
    world.table.put(range(100))
    await world.begin()
    await world.checks(2)
    world.table.delete(range(10, 13))
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=1)
    await world.watcher.stop()
    world.watcher = world.make("table:me")
    world.watcher.start()
    await world.checks(2)
    assert await world.until_told(1) == [("gap.opened", [[10, 12]])]
    assert [event["cause"] for event in world.bench.writer.events()] == ["vanished"]
    world.table.put(range(10, 13))
    await world.check()
    assert (await world.until_told(2))[1:] == [("gap.filled", [[10, 12]])]


async def test_doubled_rows_are_told_once(world: World) -> None:
    world.table.put(range(100), range(20, 23), [21])
    await world.begin()
    await world.checks(3)
    assert await world.until_told(2) == [("duplicate.detected", [[20, 22]]), ("duplicate.detected", [[21, 21]])], "once for each row more"
    world.table.put([5, 21])
    assert (await world.until_row(lambda row: row.duplicates == 4)).rows == 104
    await world.checks(3)
    assert len(world.told()) == 2, "judged already: the sweep looks at it"


async def test_rows_put_aside_are_explained(world: World) -> None:
    world.table.put(range(50), range(53, 100))
    world.table.aside = {0: {50, 51}}
    await world.begin()
    await world.checks(3)
    told = await world.until_told(2)
    assert sorted(told) == [("gap.explained", [[50, 51]]), ("gap.opened", [[52, 52]])]
    assert (await world.until_row(lambda row: row.missing == 1)).explained == {"quarantined": 2}


async def test_what_the_ledger_knows_is_not_said_again(world: World) -> None:
    world.table.put(range(60))
    await world.begin()
    await world.checks(3)
    before = len(world.written())
    await world.checks(5)
    assert len(world.written()) == before
    world.table.put(range(60, 61))
    await world.check()
    said = world.written()[before:]
    assert [(one["runs"], one["snapshot"]) for one in said] == [([[60, 60]], [60, 60])] * len(said)


async def test_an_empty_table_is_heard_of_and_falls_behind(world: World) -> None:
    await world.begin()
    await world.checks(2)
    row = await world.until_row(lambda row: row.heard)
    assert (row.horizon_offset, row.missing, row.rows) == (None, 0, 0)
    assert len(world.written()) == 1


async def test_one_question_is_for_all_partitions() -> None:
    world = World([Bench(), Bench()])
    world.table.put(range(99), partition=0)
    world.table.put(range(5), range(6, 100), partition=1)
    await world.begin()
    await world.checks(2)
    assert await world.until_told(1, partition=1) == [("gap.opened", [[5, 5]])]
    assert world.told(0) == []
    assert all({span.partition for span in asked} == {0, 1} for asked in world.table.asked)
    await world.watcher.stop()
    for bench in world.benches:
        await bench.close()


async def test_a_groups_commits_are_claims() -> None:
    world = World()
    world.bench.policies = {SINK: policy(group="ingest", checks=("group", "table"))}
    world.table.put(range(40))
    await world.begin()
    await world.check()
    claim = {"v": 1, "sink": SINK, "topic": "orders", "partition": 0, "claim": 45, "source": "group:ingest", "sequence": 0}
    world.bench.writer.writes.append([OutRecord(NAMES.observations, b"", json.dumps(claim).encode(), 0)])
    await world.checks(2)
    assert await world.until_told(1) == [("gap.opened", [[40, 44]])]
    await world.watcher.stop()
    await world.bench.close()


async def test_a_table_that_lost_its_end_by_far(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing near what is judged, much above it: not lag but a loss."""
    monkeypatch.setattr(snapshots_module, "AHEAD_CHUNKS", 1)
    end = 3 * CHUNK
    world.table.put(range(end - 5, end))
    await world.begin(end)
    for _ in range(4):
        await world.checks(1)
    opened = await world.until_told(2)
    assert {kind for kind, _ in opened} == {"gap.opened"}
    row = await world.until_row(lambda row: row.missing == end - 5)
    assert row.horizon_offset == end
    assert world.table.edges_asked > 0


# --- no answer ----------------------------------------------------------------------------------------------------------


async def test_t60_a_failing_table_is_unknown_after_its_time_and_known_again(world: World) -> None:
    world.table.put(range(100))
    await world.begin()
    await world.checks(2)
    written = len(world.written())
    world.table.failure = BROKEN
    world.table.delete(range(100))
    await world.checks(1, ms=59_000)
    assert world.failing() == {"table": BROKEN}
    assert world.told() == []
    await world.checks(2)
    assert await world.until_told(1) == [("sink.unknown", BROKEN)]
    assert (await world.until_row(lambda row: row.unknown is not None)).unknown == BROKEN
    assert len(world.written()) == written, "nothing is concluded from no answer"
    world.table.failure = None
    world.table.put(range(100))
    await world.check()
    assert (await world.until_told(2))[1][0] == "sink.known"
    assert (await world.until_row(lambda row: row.unknown is None)).missing == 0
    counted = world.bench.counters.table_checks_total
    assert counted[SINK, "unknown"] > 3
    assert counted[SINK, "ok"] > 3
    assert world.bench.counters.table_rows_read_total[SINK] == 7 * counted[SINK, "ok"]


async def test_a_slow_table_is_not_asked_twice_at_once(world: World) -> None:
    world.table.put(range(100))
    world.table.gate = asyncio.Event()
    await world.begin()
    await until(lambda: world.table.asked, "a question")
    await asyncio.sleep(0.05)  # fifty times as long as `every`
    assert len(world.table.asked) == 1
    world.table.gate.set()
    await world.checks(2)
    assert (await world.until_row(lambda row: row.horizon_offset == 100)).missing == 0


async def test_a_table_that_is_silent_for_long_is_unknown_while_it_is_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow by 30 s: what it says at last counts, and until then nobody knows."""
    monkeypatch.setattr(tables_module, "LATE_SECONDS", 0.02)
    world.table.put(range(100))
    await world.begin()
    await world.checks(2)
    world.table.gate = asyncio.Event()
    asked = len(world.table.asked)
    await until(lambda: len(world.table.asked) > asked and world.failing(), "a question that is late")
    begun = "2023-11-14T22:13:22.000Z"  # two checks later than the clock began
    reason = f"ClickHouse has not answered yet what default.orders was asked at {begun}: see its load and its log"
    assert world.failing() == {"table": reason}
    world.bench.clock.now_ms += world.bench.unknown_after_ms - 1
    await asyncio.sleep(0.05)
    assert world.told() == []
    world.bench.clock.now_ms += 1
    assert await world.until_told(1) == [("sink.unknown", reason)]
    assert (await world.until_row(lambda row: row.unknown is not None)).missing == 0
    world.table.gate.set()
    assert (await world.until_told(2))[1][0] == "sink.known"
    assert world.bench.counters.table_checks_total.get((SINK, "unknown")) is None


async def test_the_snapshot_is_of_when_the_question_began(world: World) -> None:
    world.table.put(range(100))
    world.table.gate = asyncio.Event()
    await world.begin()
    await until(lambda: world.table.asked, "a question")
    begun = world.bench.clock.now_ms
    world.bench.clock.now_ms += 20_000
    world.table.gate.set()
    await world.check()
    assert world.written()[0]["at"] == "2023-11-14T22:13:20.000Z"
    assert begun == 1_700_000_000_000


@pytest.mark.parametrize(("every_s", "pauses"), [(1, [1, 2, 4, 8, 16, 32, 60, 60]), (10, [10, 20, 40, 60, 60]), (300, [300, 300])])
def test_pauses_grow_up_to_a_minute(monkeypatch: pytest.MonkeyPatch, every_s: float, pauses: list[float]) -> None:
    monkeypatch.undo()
    world = World(rules=Rules("orders", SINK, every_s, sweep_s=900, verify_ms=1))
    assert [world.watcher._fail([], "x") for _ in pauses] == pauses


async def test_a_table_that_can_not_prove_what_it_holds_is_not_asked(world: World) -> None:
    world.table.facts = Unknown("default.orders keeps no offsets", "CREATE TABLE ...")
    await world.begin()
    await until(world.failing, "the failure")
    hint = "gapstream verify --topic orders --sink warehouse prints the statement to add"
    assert world.failing() == {"table": f"default.orders keeps no offsets; {hint}"}
    assert world.table.asked == []
    world.table.facts = Facts("MergeTree", Retention(), final=False)
    await world.check()
    assert world.failing() == {}


async def test_rows_of_another_log_prove_nothing(world: World) -> None:
    world.table.put(range(120))
    await world.begin()
    await world.check()
    assert list(world.failing()) == ["table"]
    assert "has offset 119 of partition 0, whose log ends at 100" in world.failing()["table"]
    assert world.written() == []
    world.bench.port.ends_now = LogEnds(0, 120, 120)  # the reader was behind, the broker knows it
    await world.check()
    assert world.failing() == {}
    assert world.written()[0]["runs"] == [[0, 119]]


async def test_a_sweep_is_no_answer_for_rows_of_another_log(world: World) -> None:
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=7 * 86_400_000)
    world.watcher = world.make("table:me")
    world.table.put(range(100))
    await world.begin()
    await world.checks(2)
    world.table.put([119])
    world.table.delete([50])
    await world.checks(4)
    assert "has offset 119 of partition 0, whose log ends at 100" in world.failing()["table"]
    assert world.told() == [], "nothing is concluded from it"


async def test_a_table_without_partitions_holds_one() -> None:
    world = World([Bench(), Bench()])
    world.table.layout = Layout("default", "orders", "__offset", "__topic")
    await world.begin()
    await until(world.failing, "the failure")
    assert "has no column for the partition" in world.failing()["table"]
    assert world.table.asked == []
    await world.watcher.stop()
    for bench in world.benches:
        await bench.close()


async def test_a_defect_is_a_failure_and_it_goes_on(world: World) -> None:
    world.table.defect = ZeroDivisionError("division by zero")
    with structlog.testing.capture_logs() as lines:
        await world.begin()
        await until(world.failing, "the failure")
    assert world.failing() == {"table": "a defect (ZeroDivisionError: division by zero)"}
    assert "a table is asked again after a defect" in {line["event"] for line in lines}
    world.table.defect = None
    await world.check()
    assert world.failing() == {}


async def test_kafka_that_is_away_is_said_to_be(world: World) -> None:
    world.table.facts = Facts("MergeTree", Retention(86_400_000), final=False)
    world.bench.port.failing["offset_at"] = 5
    await world.begin()
    await until(world.failing, "the failure")
    assert world.failing() == {"table": "what its rows are compared with can't be asked from Kafka: offset_at does not answer"}
    await world.check()
    assert world.failing() == {}


# --- who owns it --------------------------------------------------------------------------------------------------------


async def test_a_partition_that_left_meanwhile_is_not_spoken_of(world: World) -> None:
    world.table.put(range(100))
    world.table.gate = asyncio.Event()
    await world.begin()
    await until(lambda: world.table.asked, "a question")
    await world.bench.owners[-1].release()
    world.table.gate.set()
    await until(lambda: world.table.answered, "the answer")
    await asyncio.sleep(0)
    assert world.written() == []


async def test_an_answer_of_before_the_log_was_truncated_is_of_another_log(world: World) -> None:
    world.table.put(range(100))
    world.table.gate = asyncio.Event()
    await world.begin()
    await until(lambda: world.table.asked, "a question")
    ledger = world.bench.owners[-1].ledger
    assert ledger is not None
    ledger.truncate(60, world.bench.clock())
    world.table.delete(range(60, 100))
    world.table.gate.set()
    await world.check()
    assert {str(one["runs"]) for one in world.written()} == {"[[0, 59]]"}


async def test_whoever_takes_over_goes_on(world: World) -> None:
    """Its clock is behind, and grace starts anew with it."""
    world.table.put(range(50), range(53, 100))
    await world.begin()
    await world.check()
    await world.watcher.stop()
    await world.bench.owners[-1].release()
    world.bench.clock.now_ms -= 3_600_000
    world.watcher = world.make("table:other")
    await world.begin()
    await world.checks(1, ms=GRACE - 100)
    assert world.told() == []
    await world.checks(2)
    assert await world.until_told(1) == [("gap.opened", [[50, 52]])]
    sources = [one["source"] for one in world.written()]
    assert sources[0] == "table:me"
    assert sources[-1] == "table:other"
    times = [one["at"] for one in world.written() if one.get("at")]
    assert times == sorted(times)


async def remade(world: World, records: int) -> None:
    """The topic is deleted and made anew, and its log read."""
    owner = world.bench.owners[-1]
    world.bench.port.facts_now = replace(world.bench.port.facts_now, topic_id=OTHER_ID)
    world.bench.port.ends_now = LogEnds(0, records, records)
    owner.halted(Trouble(TroubleKind.RECREATED, "orders", 0, "the topic was created anew", topic_id=OTHER_ID))
    await until(lambda: owner.ledger is not None and owner.ledger.log.topic_id == OTHER_ID, "the new topic")
    owner.fold_log(log_read(0, records, topic_id=OTHER_ID))


async def test_rows_of_a_former_topic_of_the_same_name_prove_nothing(world: World) -> None:
    world.table.put(range(100))
    await world.begin()
    await world.checks(1)
    await remade(world, 120)
    row = await world.until_row(lambda row: row.unknown is not None and "offsets 0 to 99" in row.unknown)
    assert row.unknown is not None
    assert row.unknown.startswith("orders was deleted and made anew, and default.orders has rows of its partition 0 (offsets 0 to 99)")
    before = len(world.written())
    world.bench.clock.now_ms += 10 * GRACE
    asked = world.table.edges_asked
    await until(lambda: world.table.edges_asked > asked + 3, "questions")
    assert len(world.written()) == before, "something was compared across the two"
    assert [kind for kind, _ in world.told()] == ["log.recreated", "sink.unknown"]
    world.table.rows.clear()
    await until(lambda: not world.failing(), "the empty table")
    world.table.put(range(20), range(23, 120))
    await world.checks(4)
    told = await world.until_told(4)
    assert told[2:] == [("sink.known", None), ("gap.opened", [[20, 22]])], "of a snapshot nothing is unobserved"
    assert (await world.until_row(lambda row: row.missing == 3)).observed == 117


async def test_whoever_takes_over_knows_of_the_former_topic(world: World) -> None:
    world.table.put(range(100))
    await world.begin()
    await world.checks(1)
    await remade(world, 120)
    await world.until_row(lambda row: row.unknown is not None)
    await world.watcher.stop()
    await world.bench.owners[-1].release()
    world.watcher = world.make("table:other")
    before = len(world.written())
    await world.begin(120)
    asked = world.table.edges_asked
    await until(lambda: world.table.edges_asked > asked + 3, "questions")
    assert len(world.written()) == before
    assert "offsets 0 to 99" in world.failing()["former"]


# --- TTL and sweeps -----------------------------------------------------------------------------------------------------


async def test_t61_what_the_ttl_took_is_not_missing_and_has_not_vanished(world: World) -> None:
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=7 * 86_400_000)
    world.watcher = world.make("table:me")
    world.table.facts = Facts("MergeTree", Retention(10 * 86_400_000), final=False)
    world.table.put(range(30, 50), range(53, 100))
    world.times.offset = 30
    await world.begin()
    await world.checks(3)
    assert await world.until_told(2) == [("gap.explained", [[0, 29]]), ("gap.opened", [[50, 52]])]
    row = await world.until_row(lambda row: row.missing == 3)
    assert row.explained == {"unobserved": 30}
    assert world.times.asked[0] == f"@{1_700_000_000_000 - 9 * 86_400_000}", "a tenth early"
    world.times.offset = 60
    world.table.delete(range(30, 50))
    world.table.delete(range(53, 60))
    await world.checks(4)
    assert len(world.told()) == 2
    world.table.put([51])
    await world.check()
    assert (await world.until_told(3))[2:] == [("gap.filled", [[51, 51]])], "inserted again, whatever the TTL says"


async def test_t61_what_the_ttl_took_among_young_records_is_not_missing_and_has_not_vanished(world: World) -> None:
    """Offsets 40 to 44 and 70 to 79 are old, whatever stands before them."""
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=7 * 86_400_000)
    world.watcher = world.make("table:me")
    world.table.facts = Facts("MergeTree", Retention(10 * 86_400_000), final=False)
    world.table.put(range(39), range(45, 70), range(75, 99))
    world.bench.port.looking = lambda runs: Look(runs[-1][1], 0, older=tuple((OffsetSet(runs) & OffsetSet([(40, 45), (70, 80)])).runs()))
    await world.begin()
    await world.checks(3)
    assert sorted(await world.until_told(2)) == [("gap.explained", [[40, 44], [70, 74]]), ("gap.opened", [[39, 39]])]
    row = await world.until_row(lambda row: row.missing == 1)
    assert row.explained == {"unobserved": 10}
    world.table.delete(range(60, 65))
    world.table.delete(range(75, 80))
    await world.checks(4)
    assert (await world.until_told(3))[2:] == [("gap.opened", [[60, 64]])], "the others were removed by the TTL"
    assert (len(world.told()), world.row().explained, world.row().missing) == (3, {"unobserved": 10}, 6)


async def test_a_table_with_a_ttl_begins_at_its_first_row(world: World) -> None:
    world.bench.floors = {SINK: "first"}
    world.table.facts = Facts("MergeTree", Retention(10 * 86_400_000), final=False)
    world.times.offset = 55
    world.table.put([50], range(58, 100))
    await world.begin()
    await world.checks(3)
    assert sorted(await world.until_told(2)) == [("gap.explained", [[51, 54]]), ("gap.opened", [[55, 57]])]
    assert (await world.until_row(lambda row: row.missing == 3)).explained == {"unobserved": 4}
    ledger = world.bench.owners[-1].ledger
    assert ledger is not None
    assert ledger.sinks[SINK].floor == 50


async def test_a_ttl_that_changes_is_noticed_before_anything_is_told_and_not_forgotten(world: World) -> None:
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=7 * 86_400_000)
    world.watcher = world.make("table:me")
    old: list[tuple[int, int]] = []
    world.bench.port.looking = lambda runs: Look(runs[-1][1], 0, older=tuple((OffsetSet(runs) & OffsetSet(old)).runs()))
    world.table.put(range(100))
    await world.begin()
    await world.checks(3)
    world.table.facts = Facts("MergeTree", Retention(10 * 86_400_000), final=False)
    old.append((20, 30))
    world.table.delete(range(20, 30))
    await world.checks(4)
    assert world.told() == [], "the TTL is new, and took them"
    for _ in range(2):
        world.table.facts = Facts("MergeTree", Retention(), final=False)
        await world.checks(3)
        await world.watcher.stop()
        world.watcher = world.make("table:other")
        world.watcher.start()
    world.table.delete([40])
    await world.checks(4)
    assert await world.until_told(1) == [("gap.opened", [[40, 40]])], "there is no TTL any more, but there was"


async def test_a_ttl_of_which_nothing_can_be_said_is_taken_to_leave_a_day(world: World) -> None:
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=7 * 86_400_000)
    world.watcher = world.make("table:me")
    world.table.facts = Facts("MergeTree", Retention(unreadable="ts + toIntervalDay(days)"), final=False)
    world.table.put(range(30, 100))
    world.times.offset = 30
    await world.begin()
    await world.checks(3)
    assert await world.until_told(1) == [("gap.explained", [[0, 29]])]
    assert world.times.asked[0] == f"@{1_700_000_000_000 - 9 * 86_400_000 // 10}"
    world.table.delete(range(30, 40))
    await world.checks(4)
    assert len(world.told()) == 1, "it may have been the TTL"


async def test_a_sweep_looks_no_further_back_than_it_is_told_to(world: World) -> None:
    world.rules = Rules("orders", SINK, every_s=0.001, sweep_s=0.0, verify_ms=86_400_000)
    world.watcher = world.make("table:me")
    world.table.put(range(100))
    world.times.offset = 40
    await world.begin()
    await world.checks(2)
    world.table.asked.clear()
    world.table.delete(range(35, 45))
    await world.checks(3)
    assert (await world.until_told(1))[0] == ("gap.opened", [[40, 44]]), "then all of a chunk is asked for"
    assert Span(0, 40, 100) in [span for asked in world.table.asked for span in asked]
    assert f"@{world.bench.clock.now_ms - 86_400_000}" in world.times.asked


async def test_a_sweep_waits_its_time(world: World) -> None:
    world.table.put(range(100))
    await world.begin()
    await world.checks(2)
    world.table.asked.clear()
    world.table.delete(range(5))
    await world.checks(3)
    assert {span.first for asked in world.table.asked for span in asked} == {100}
    assert world.told() == []


async def test_a_long_sweep_is_taken_in_parts_between_the_checks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "CHUNKS_MAX", 1)
    end = 2 * CHUNK + 9
    world.table.put(range(end))
    await world.begin(end)
    await world.checks(2)
    await world.watcher.stop()
    world.watcher = world.make("table:me")  # whoever begins sweeps
    world.table.asked.clear()
    world.watcher.start()
    await world.checks(2)
    swept = [number for number, asked in enumerate(world.table.asked) if asked[0].first < end]
    assert [world.table.asked[number] for number in swept] == [[Span(0, 0, CHUNK)], [Span(0, CHUNK, 2 * CHUNK)], [Span(0, 2 * CHUNK, end)]]
    assert all(other - one > 1 for one, other in pairwise(swept)), "others between"
