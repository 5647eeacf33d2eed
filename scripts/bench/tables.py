"""Rows that an engine reads for an hour of checks of a table, beside the guide's alert query on the same table.

The hour is virtual: 10 s' worth of rows are inserted, the worker's own code asks the table what it has to ask then, what follows
from the answer is judged, and the clock is put 10 s forward. Kafka is not needed: the log's runs are handed to the ledgers.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.bench.ground import ROOT, CannotTellError, concluded, say
from stream_app.core.policy import Policy
from stream_app.service.owner import PartitionOwner
from stream_app.service.tables import Rules, TableWatcher
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.clickhouse import Check, ClickHouseTable, Facts, Layout, Span, Unknown
from stream_app.sinks.clickhouse.client import ClickHouseClient
from tests.support.clickhouse_kit import ClickHouse, EngineProcess
from tests.support.fakes import NAMES, START_MS, Bench, Clock, bundle, log_read

TOPIC, SINK, TABLE = "orders", "warehouse", "your_kafka_data_source"
STEP_S, HOUR_S = 10, 3_600
RATE = 1_000
"""Rows that arrive in a second, in all partitions together."""
GRACE_MS = 30_000
SHARES = {1: 0.05, 6: 0.15}
"""Number of partitions -> how much of what the guide's query reads the checks may read at most."""
GROWN = 0.10
"""How much the checks' reading may differ for a table that is larger."""
GUIDE = ROOT / "tests/data/guide/missing_offsets_alert.sql"
BLOCK = 20_000_000
"""Standing rows of one INSERT: half a gigabyte of memory."""
MERGED_S = 120.0
"""Merges are waited for so long."""
TYPES = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3, 'UTC')"
COLUMNS = {"topic": "__topic", "partition": "__partition", "offset": "__offset", "timestamp": "__timestamp"}


@dataclass
class Counting(ClickHouseTable):
    """The worker's table, with what each question made the engine read."""

    checks: list[int] = field(default_factory=list)
    """Rows read by the checks of what is not judged yet."""
    sweeps: list[int] = field(default_factory=list)
    """By the questions for what was judged long ago."""
    settled: Mapping[int, int] = field(default_factory=dict)
    """By partition; a sweep asks for nothing above."""

    async def check(self, spans: Iterable[Span]) -> Check | Unknown:
        """As the worker's."""
        asked = list(spans)
        found = await super().check(asked)
        if isinstance(found, Unknown):
            raise CannotTellError(f"the table did not answer: {found.reason}")
        swept = all(span.stop is not None and span.stop <= self.settled.get(span.partition, 0) for span in asked)
        (self.sweeps if swept else self.checks).append(found.rows_read)
        return found

    async def inspect(self) -> Facts | Unknown:
        """As the worker's; a table that proves nothing can't be measured."""
        found = await super().inspect()
        if isinstance(found, Unknown):
            raise CannotTellError(found.reason)
        return found


@dataclass
class Hour:
    """What was read."""

    partitions: int
    rows: int
    """That stood there at the beginning."""
    checks: int = 0
    asked: int = 0
    """How many checks."""
    first: int = 0
    """By the checks that judged what stood there; not in ``checks``."""
    sweep: int = 0
    """By one sweep of what stood there; not in ``checks``."""
    guide: int | None = None
    """By the guide's query, once a minute; None: it was not asked."""
    parts: int = 0
    """Of the table, at the end."""


class Scene:
    """A table in an engine, the ledgers of its partitions, and the worker's code between the two."""

    def __init__(self, server: ClickHouse, partitions: int, rows: int) -> None:
        self.server, self.partitions, self.stands = server, partitions, rows
        self.clock = Clock(START_MS)
        self.ends = dict.fromkeys(range(partitions), 0)
        self.heard = dict.fromkeys(range(partitions), 0)
        self.benches = [Bench(clock=self.clock) for _ in range(partitions)]
        layout = Layout(server.database, TABLE, **COLUMNS)
        self.table = Counting(ClickHouseClient(server.url), layout, TOPIC)
        self.watcher = self.new_watcher()

    def new_watcher(self) -> TableWatcher:
        """The worker's code that asks; it sweeps when it begins, and then not before this is over."""
        rules = Rules(TOPIC, SINK, STEP_S, sweep_s=10 * HOUR_S, verify_ms=7 * 86_400_000)
        port, telemetry = self.benches[0].port, Telemetry(self.benches[0].counters)
        port.times = _Always()
        return TableWatcher(rules, self.table, port, self.owners, telemetry, self.clock, "table:bench")

    def owners(self) -> list[PartitionOwner]:
        """Of all partitions."""
        return [bench.owners[-1] for bench in self.benches if bench.owners]

    async def begin(self) -> None:
        """Rows stand, and every partition is owned."""
        self.server.run(f"CREATE TABLE {TABLE} ({TYPES}) ENGINE = MergeTree ORDER BY (__partition, __offset)")
        begun = time.monotonic()
        for first in range(0, self.stands, BLOCK):
            self._insert(first, min(BLOCK, self.stands - first))
        self.server.run(f"OPTIMIZE TABLE {TABLE} FINAL")  # one part, as merges leave them in the end
        say(f"{self.stands:,} rows stand after {time.monotonic() - begun:.0f} s, in {self.parts()} parts")
        for partition, bench in enumerate(self.benches):
            bench.policies = {SINK: Policy(SINK, grace_ms=GRACE_MS, stall_after_ms=None, checks=("table",))}
            bench.floors = {SINK: "earliest"}
            await bench.begun(partition)
        self._read_logs()
        await self._hear()

    async def close(self) -> None:
        """Release everything."""
        await self.watcher.stop()
        for bench in self.benches:
            await bench.close()

    def parts(self) -> int:
        """Of the table now."""
        ((count,),) = self.server.rows(f"SELECT toInt64(count()) FROM system.parts WHERE database = '{self.server.database}' AND active")
        return int(count)

    def _wait_for_merges(self) -> None:
        """Those that began with an insert end long before the next one, when ten seconds are no virtual ones."""
        deadline = time.monotonic() + MERGED_S
        while self.server.rows("SELECT toInt64(count()) FROM system.merges") != [(0,)] and time.monotonic() < deadline:
            time.sleep(0.01)

    def _insert(self, first: int, count: int) -> None:
        """The records ``first`` to ``first + count`` of the topic, which are spread over its partitions in turn."""
        at_ms = START_MS - (self.stands - first) * 1_000 // RATE
        self.server.run(
            f"INSERT INTO {TABLE} SELECT '{TOPIC}', number % {self.partitions}, intDiv(number, {self.partitions}),"
            f" fromUnixTimestamp64Milli(toInt64({at_ms} + intDiv((number - {first}) * 1000, {RATE})), 'UTC')"
            f" FROM numbers({first}, {count})",
            min_insert_block_size_rows=str(BLOCK),
            min_insert_block_size_bytes="0",
            max_insert_threads="1",
        )
        last = first + count
        self.ends = {number: -(-(last - number) // self.partitions) for number in range(self.partitions)}

    def _read_logs(self) -> None:
        for number, owner in enumerate(self.owners()):
            assert owner.ledger is not None
            owner.fold_log(log_read(owner.ledger.log.read, self.ends[number]))

    async def _hear(self) -> None:
        """Every owner folds what was written for it."""
        for number, bench in enumerate(self.benches):
            writes = [write for write in bench.writer.to(NAMES.observations) if write]
            said = [record.value for write in writes[self.heard[number] :] for record in write]
            self.heard[number] = len(writes)
            owner = bench.owners[-1]
            assert owner.ledger is not None
            await owner.fold_observations(bundle(owner.ledger.observed_to, *said, heard_ms=self.clock.now_ms, at_ms=self.clock.now_ms))

    async def check(self) -> None:
        """One turn of the worker's: a question, and all that follows from its answer."""
        self.table.settled = {number: self._settled(number) for number in range(self.partitions)}
        watches = self.watcher.owned_now()
        await self.watcher.ask(watches)
        loop = asyncio.get_running_loop()

        async def judged() -> bool:
            await self._hear()
            return all(watch.answered(self.watcher.source, loop.time()) and not watch.ledger.has_due() for watch in watches)

        deadline = loop.time() + 20
        while not await judged():
            if loop.time() > deadline:
                raise CannotTellError("what the table answered was not judged within 20 s.")
            await asyncio.sleep(0.001)

    def _settled(self, number: int) -> int:
        ledger = self.owners()[number].ledger
        assert ledger is not None
        return ledger.sinks[SINK].settled or 0

    async def arrive(self) -> None:
        """10 s pass."""
        self._insert(sum(self.ends.values()), STEP_S * RATE)
        self._wait_for_merges()
        self.clock.now_ms += STEP_S * 1_000
        self._read_logs()

    async def guide(self) -> int:
        """What the guide's query reads now, by the scene's clock."""
        sql = GUIDE.read_text().replace("now()", f"fromUnixTimestamp64Milli(toInt64({self.clock.now_ms}), 'UTC')")
        return (await self.table.client.query(sql.replace(TABLE, f"{self.server.database}.{TABLE}"))).rows_read


class _Always(dict[str, int | None]):
    """Whatever time is asked for: the log's first offset is not older."""

    def __missing__(self, _: str) -> int:
        return 0


async def measure(server: ClickHouse, partitions: int, rows: int, *, guide: bool) -> Hour:
    """One hour; the guide's query is asked once a minute."""
    scene = Scene(server, partitions, rows)
    found = Hour(partitions, rows, guide=0 if guide else None)
    await scene.begin()
    try:
        while any(scene._settled(number) < -(-rows // partitions) - 1 for number in range(partitions)):
            scene.clock.now_ms += STEP_S * 1_000
            await scene.check()
            if len(scene.table.checks) > 50 + rows / 1_000_000:
                raise CannotTellError("the rows that stand were not judged.")
        found.first = sum(scene.table.checks)
        scene.watcher = scene.new_watcher()
        await scene.check()
        found.sweep = sum(scene.table.sweeps)
        scene.table.checks.clear()
        for step in range(HOUR_S // STEP_S):
            await scene.arrive()
            await scene.check()
            if found.guide is not None and step % (60 // STEP_S) == 0:
                found.guide += await scene.guide()
        found.checks, found.asked = sum(scene.table.checks), len(scene.table.checks)
        found.parts = scene.parts()
        behind = [number for number, end in scene.ends.items() if scene._settled(number) < end - 60 * RATE]
        if behind or found.asked != HOUR_S // STEP_S:
            raise CannotTellError(f"partitions {behind} were not judged as the rows came, in {found.asked} checks: nothing was measured.")
    finally:
        await scene.close()
    return found


def measured(engine: str, partitions: int, rows: int, *, guide: bool) -> Hour:
    """One hour on a table of its own."""
    server = ClickHouse(engine)
    say(f"{partitions} partitions, {rows:,} rows ...")
    begun = time.monotonic()
    try:
        found = asyncio.run(measure(server, partitions, rows, guide=guide))
    finally:
        server.close()
    say(f"{found}, in {time.monotonic() - begun:.0f} s")
    return found


def report(partitions: int, small: Hour, large: Hour | None) -> bool:
    """Print one number of partitions; whether the bounds are kept."""
    assert small.guide
    share = small.checks / small.guide
    kept = share <= SHARES[partitions]
    print(f"{partitions} partitions, {small.rows:,} rows stand, {RATE:,} rows/s arrive, {small.asked} checks in an hour")
    print(f"  checks        {small.checks:15,} rows, {small.checks // small.asked:,} each")
    print(f"  guide's query {small.guide:15,} rows, {small.guide // 60:,} each, once a minute")
    print(f"  share         {share:15.2%}, bound {SHARES[partitions]:.0%}" + ("" if kept else "  <- too much"))
    print(f"  a sweep       {small.sweep:15,} rows, beside the checks; the first checks of all {small.first:,}")
    print(f"  parts         {small.parts:15,} at the end")
    if large is not None:
        grown = large.checks / small.checks - 1
        within = abs(grown) <= GROWN
        kept = kept and within
        print(f"  {large.rows:,} rows stand: {large.checks:,} rows, {grown:+.1%}, bound {GROWN:.0%}" + ("" if within else "  <- too much"))
    return kept


def benchmark(rows: int, times: int, partitions: Sequence[int]) -> bool:
    """Measure and report; whether all bounds are kept."""
    kept = True
    for number in partitions:
        with tempfile.TemporaryDirectory(prefix="gapstream-bench-") as folder, EngineProcess(Path(folder)) as engine:
            small = measured(engine.url, number, rows, guide=True)
            large = measured(engine.url, number, rows * times, guide=False) if times > 1 else None
        kept = report(number, small, large) and kept
    return kept


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    made = argparse.ArgumentParser(
        prog="scripts/bench/run tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", type=int, default=20_000_000, help="rows that stand at the beginning (default: %(default)s)")
    made.add_argument(
        "--times", type=int, default=10, help="the other table is so many times as large; 1: there is none (default: %(default)s)"
    )
    made.add_argument("--partitions", type=int, choices=SHARES, action="append", help="of the topic; may be repeated (default: 1 and 6)")
    made.add_argument("--quick", action="store_true", help="2 million rows, and four times as many")
    given = made.parse_args(arguments)
    rows, times = (2_000_000, 4) if given.quick else (given.rows, given.times)
    return concluded("tables", lambda: benchmark(rows, times, given.partitions or list(SHARES)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
