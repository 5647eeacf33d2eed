"""How long ``gapstream verify`` takes for a topic and its table, what memory it needs, and whether it finds what was done to the table.

Records are lost and doubled at random (``--seed``). Then the table is repaired, and verified once more.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.ground import ROOT, SMALL, CannotTellError, Topic, concluded, filled, own_cluster, parser, say
from tests.support.clickhouse_kit import ClickHouse, EngineProcess

LOST, DOUBLED = 1_000, 500
MOST_S, MOST_MB = 15.0, 300
SETTLE_S = 30
"""What ``--settle`` is by default: records younger than that are given the time to arrive, which is not measured here."""
PATIENCE_S = 300.0
LOOK_S = 0.02
TABLE = "orders"
TYPES = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3, 'UTC')"
_KB = 1_024

Offsets = Mapping[int, Collection[int]]
"""By partition."""


@dataclass(frozen=True, slots=True)
class Run:
    """One verification."""

    status: int
    said: Any
    """Its JSON."""
    seconds: float
    mb: float
    """Most of its resident memory; the engine and the broker are others."""


def chosen(topic: Topic, rng: random.Random) -> tuple[Offsets, Offsets]:
    """Which records are lost and which are doubled; none is both."""
    records = [(partition, offset) for partition, stop in topic.stops.items() for offset in rng.sample(range(stop), min(stop, 2_000))]
    picked = rng.sample(records, LOST + DOUBLED)
    return _by_partition(picked[:LOST]), _by_partition(picked[LOST:])


def _by_partition(records: Collection[tuple[int, int]]) -> Offsets:
    return {partition: sorted(offset for number, offset in records if number == partition) for partition, _ in records}


def fill(server: ClickHouse, topic: Topic, lost: Offsets, doubled: Offsets) -> None:
    """The table as a pipeline left it that lost and doubled these."""
    server.run(f"CREATE TABLE {TABLE} ({TYPES}) ENGINE = MergeTree ORDER BY (__topic, __partition, __offset)")
    for partition, stop in topic.stops.items():
        gone = ", ".join(map(str, lost.get(partition, ()))) or "-1"
        server.run(
            f"INSERT INTO {TABLE} SELECT '{topic.name}', {partition}, number, now64(3) FROM numbers({stop}) WHERE number NOT IN ({gone})"
        )
    insert(server, topic, doubled)


def insert(server: ClickHouse, topic: Topic, offsets: Offsets) -> None:
    """One row of each."""
    for partition, some in offsets.items():
        server.run(f"INSERT INTO {TABLE} SELECT '{topic.name}', {partition}, arrayJoin({list(some)}), now64(3)")


def repair(server: ClickHouse, topic: Topic, lost: Offsets, doubled: Offsets) -> None:
    """Insert what is lost; of what is doubled, leave one row."""
    insert(server, topic, lost)
    pairs = ", ".join(f"({partition}, {offset})" for partition, some in doubled.items() for offset in some)
    server.run(f"DELETE FROM {TABLE} WHERE (__partition, __offset) IN ({pairs})")
    insert(server, topic, doubled)


def verify(bootstrap: str, engine: str, database: str, topic: str) -> Run:
    """``gapstream verify`` as installed, in a process of its own."""
    table = ("--clickhouse", engine, "--table", f"{database}.{TABLE}")
    command = [ROOT / ".venv/bin/gapstream", "verify", "-X", f"kafka.bootstrap.servers={bootstrap}", "--topic", topic, *table, "--json"]
    begun, most = time.monotonic(), 0.0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        while process.poll() is None:
            most = max(most, _resident_mb(process.pid))
            if time.monotonic() - begun > PATIENCE_S:
                process.kill()
                process.wait()
                raise CannotTellError(f"gapstream verify did not end within {PATIENCE_S:.0f} s.")
            time.sleep(LOOK_S)
        seconds = time.monotonic() - begun
        out.seek(0)
        err.seek(0)
        if process.returncode not in (0, 1):
            raise CannotTellError(f"gapstream verify ended with {process.returncode}: {err.read().decode().strip()}")
        return Run(process.returncode, json.load(out), seconds, most)


def _resident_mb(process: int) -> float:
    """The most that it ever had resident; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * _KB / 1e6 if found else 0.0


def told(rows: Sequence[Mapping[str, Any]]) -> Offsets:
    """The offsets that a list of ranges names."""
    found: dict[int, list[int]] = {}
    for row in rows:
        offsets = range(row["first_offset"], row["last_offset"] + 1)
        if len(offsets) != row["count"]:
            raise CannotTellError(f"a range of {len(offsets)} offsets is said to hold {row['count']}: the topic is not dense.")
        found.setdefault(row["partition"], []).extend(offsets)
    return {partition: sorted(offsets) for partition, offsets in found.items()}


def report(topic: Topic, run: Run, lost: Offsets, doubled: Offsets, repaired: Run) -> bool:
    """Print what was found and what it took; whether all of it is as it should be."""
    exact = told(run.said["missing"]) == lost and told(run.said["duplicates"]) == doubled
    checks = [
        (
            f"missing {sum(one['count'] for one in run.said['missing'])}, doubled {sum(one['count'] for one in run.said['duplicates'])}",
            exact,
        ),
        (f"exit status {run.status}, after the repair {repaired.status}", (run.status, repaired.status) == (1, 0)),
        (f"seconds {run.seconds:.1f}, after the repair {repaired.seconds:.1f}", run.seconds < MOST_S),
        (f"memory {run.mb:.0f} MB, after the repair {repaired.mb:.0f} MB", max(run.mb, repaired.mb) < MOST_MB),
    ]
    print(f"{topic}; {LOST:,} lost, {DOUBLED:,} doubled")
    for line, good in checks:
        print(f"  {line}" + ("" if good else "  <- not as it should be"))
    return all(good for _, good in checks)


def benchmark(records: int, seed: int) -> bool:
    """Fill, verify, repair, verify, report; whether all is as it should be."""
    with tempfile.TemporaryDirectory(prefix="gapstream-bench-") as folder, own_cluster() as cluster:
        topic = filled(cluster, SMALL, records)
        written = time.monotonic()
        lost, doubled = chosen(topic, random.Random(seed))
        with EngineProcess(Path(folder)) as engine:
            server = ClickHouse(engine.url)
            fill(server, topic, lost, doubled)
            time.sleep(max(0.0, SETTLE_S + 1 - (time.monotonic() - written)))
            say("verifying ...")
            run = verify(cluster.bootstrap, engine.url, server.database, topic.name)
            repair(server, topic, lost, doubled)
            say("verifying after the repair ...")
            repaired = verify(cluster.bootstrap, engine.url, server.database, topic.name)
        return report(topic, run, lost, doubled, repaired)


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    made = parser("verify", __doc__, 5_000_000, "1 million records")
    made.add_argument("--seed", type=int, default=1, help="which records are lost and doubled (default: %(default)s)")
    given = made.parse_args(arguments)
    return concluded("verify", lambda: benchmark(1_000_000 if given.quick else given.records, given.seed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
