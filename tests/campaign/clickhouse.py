"""Random tables under fire: rows lost, doubled, late, deleted, restored and replayed, the server failing, workers killed.

The ground truth is kept row by row beside the table (:mod:`tests.campaign.clickhouse_truth`). After each stage everything that is
said of missing, vanished and doubled rows is compared with it, in the state and in the fold of the alerts topic.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kafka_cluster import KafkaCluster

from tests.campaign.clickhouse_truth import Expected, Loaded
from tests.support.clickhouse_kit import ClickHouse, EngineProcess
from tests.support.faulty_proxy import FaultyProxy
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Alerts, Rig, Worker
from tests.support.tables import Row, make

SINKS: dict[str, dict[str, Any]] = {
    "warehouse": {"table": "shared", "quarantine": {"table": "shared_aside"}},
    "visible": {"table": "shared", "where": "mark = 'kept' -- what is hidden is missing here"},
    "copy": {"table": "own", "quarantine": {"table": "own_aside"}},
}
"""By name, each of a table: two topics stand in ``shared``, and one of them in ``own`` too."""
TOPICS = {"orders": ("warehouse", "copy"), "payments": ("warehouse", "visible")}
PLACE = tuple[str, int, str]
"""Topic, partition, sink."""
Say = Callable[[str], None]


class Campaign:
    """One run."""

    def __init__(self, options: argparse.Namespace, kit: KafkaKit, server: ClickHouse, proxy: FaultyProxy, folder: Path, say: Say) -> None:
        """Topics and tables are made; nothing is in them."""
        self.rng = random.Random(options.seed)
        self.options, self.kit, self.server, self.proxy, self.say = options, kit, server, proxy, say
        shape = {"orders": options.partitions, "payments": 2}
        shared = make(self.rng, shape, options.records, hidden=0.01)
        own = make(self.rng, {"orders": options.partitions}, options.records)
        self.tables = {"shared": Loaded(server, "shared", shared), "own": Loaded(server, "own", own)}
        self.ends = {key: max(end, own.ends.get(key, 0)) for key, end in shared.ends.items()}
        for topic, partitions in shape.items():
            kit.make_topic(partitions, name=topic)
        rules = {"every": "1s", "grace": "2s", "sweep": "2s", "from": "earliest", "stall_after": None}
        place = {"type": "clickhouse", "url": proxy.url, "database": server.database}
        config = {topic: {"sinks": {name: {**place, **rules, **SINKS[name]} for name in names}} for topic, names in TOPICS.items()}
        self.rig = Rig(folder, kit.bootstrap, config, f"gap-{options.seed}")
        self.worker: Worker = self.rig.worker()
        self.differences: list[str] = []
        self.made = dict.fromkeys(("killed", "refused", "broken off", "held"), 0)

    # --- stages -------------------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """All stages; the differences, none: all is as it was done."""
        self.worker.start().ready()
        for (topic, partition), end in self.ends.items():
            self.kit.produce(topic, partition, end)
        self.say(f"{sum(self.ends.values()):,} records in {len(self.ends)} partitions; rows are inserted while they are counted")
        self._load()
        self._judge("after the load")
        for table in self.tables.values():
            table.delete(table.made.deleted)
            table.delete(self._some(table, table.present(), 40))
        self._judge("after rows were deleted")
        for table in self.tables.values():
            table.insert(self._rows(table, self._some(table, table.lost(), 60)))
            table.insert(self._rows(table, self._some(table, table.vanished(), 30)))
        self._judge("after late and deleted rows came")
        for table in self.tables.values():
            some = self._rows(table, self._some(table, table.present(), 50))
            table.insert(some)
            table.insert(some[:20])
        self._judge("after chunks that were settled were replayed")
        self._kill()
        self._judge("after the worker was killed once more")
        return self.differences

    def _load(self) -> None:
        blocks = [(table, block) for table in self.tables.values() for block in table.made.blocks]
        for table in self.tables.values():
            table.put_aside()
        faults: list[Callable[[], None]] = [self._kill, self._refuse, self._break_off, self._hold]
        self.rng.shuffle(faults)
        for number, (table, block) in enumerate(blocks):
            table.insert(block)
            time.sleep(self.rng.uniform(0.2, 3))
            if number % 3 == 2 and faults:
                faults.pop()()
        self.proxy.mend()
        assert not faults, "there were too few blocks for all faults"

    def _kill(self) -> None:
        self.worker.kill()
        self.worker.start().ready()
        self.made["killed"] += 1

    def _refuse(self) -> None:
        self.proxy.fail(500, 241, "Memory limit exceeded")
        self._until_failed("refused")

    def _break_off(self) -> None:
        self.proxy.cut(self.rng.random() * 0.9)
        self._until_failed("broken off")

    def _until_failed(self, what: str) -> None:
        before = self._failed()
        self._eventually(lambda: self._failed() > before, f"a question was {what}")
        self.proxy.mend()
        self.made[what] += 1

    def _hold(self) -> None:
        self.proxy.hold()
        time.sleep(5)
        self.proxy.mend()
        self.made["held"] += 1

    def _failed(self) -> float:
        lines = [line for line in self.worker.text("/metrics").splitlines() if line.startswith("gapstream_clickhouse_checks_total")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if 'outcome="ok"' not in line)

    def _some(self, table: Loaded, places: list[tuple[str, int, int]], most: int) -> list[tuple[str, int, int]]:
        """A few of them by chance; never the last of a partition, below which all else lies."""
        tops = {key: table.top(*key) for key in table.rows}
        inner = [place for place in places if place[2] < tops[place[:2]] - 1]
        return sorted(self.rng.sample(inner, min(len(inner), self.rng.randrange(most // 2, most))))

    def _rows(self, table: Loaded, places: list[tuple[str, int, int]]) -> list[Row]:
        return [Row(*place, 1_700_000_000_000, table.marks.get(place, "kept")) for place in places]

    # --- comparing ----------------------------------------------------------------------------------------------------

    def expected(self) -> Iterator[tuple[PLACE, Expected]]:
        """What must be said of each sink and partition."""
        for topic, names in TOPICS.items():
            for name in names:
                table = self.tables[SINKS[name]["table"]]
                for partition in range(max(number for one, number in self.ends if one == topic) + 1):
                    aside = "quarantine" in SINKS[name]
                    yield (topic, partition, name), table.expected((topic, partition), "kept" if name == "visible" else None, aside=aside)

    def _judge(self, stage: str) -> None:
        wanted = dict(self.expected())

        def agree() -> bool:
            rows = self._partitions()
            return all(
                (rows[at]["missing"], rows[at]["duplicates"], rows[at]["horizon_offset"]) == (one.missing, one.duplicates, one.horizon)
                and rows[at]["state"] in ("ok", "gaps")
                for at, one in wanted.items()
            )

        try:
            self._eventually(agree, "the counts")
        except AssertionError:
            self._differ(stage, "the counts are not those expected")
        time.sleep(5)  # nothing more may be said
        found = self._gaps()
        folded, rows = self._folded(stage), self._partitions()
        for at, one in wanted.items():
            row = rows[at]
            counts = (row["missing"], row["duplicates"], row["horizon_offset"])
            self._compare(stage, f"{at}: missing, duplicates, horizon", counts, (one.missing, one.duplicates, one.horizon))
            for cause, offsets in (("not_received", one.not_received), ("vanished", one.vanished)):
                self._compare_sets(stage, f"{at}: {cause} in /api/gaps", found.get((at, cause), set()), offsets)
                told = {offset for offset, why in folded.open.get(at, {}).items() if why == cause}
                self._compare_sets(stage, f"{at}: {cause} on the alerts topic", told, offsets)
            self._compare_sets(stage, f"{at}: doubled on the alerts topic", set(folded.duplicates.get(at, ())), one.doubled)
        missing, vanished, doubled = (
            sum(map(len, some)) for some in zip(*((one.not_received, one.vanished, one.doubled) for one in wanted.values()), strict=True)
        )
        self.say(f"{stage}: {missing} missing, {vanished} vanished, {doubled} doubled; {len(self.differences)} differences so far")

    def _partitions(self) -> dict[PLACE, dict[str, Any]]:
        rows = self.worker.get("/api/partitions")["partitions"]
        return {(row["topic"], row["partition"], row["sink"]): row for row in rows}

    def _gaps(self) -> dict[tuple[PLACE, str], set[int]]:
        """Offsets of what is listed, by cause; all pages."""
        found: dict[tuple[PLACE, str], set[int]] = {}
        cursor: dict[str, str] = {}
        while True:
            answer = self.worker.get(f"/api/gaps?{urlencode({'limit': 10_000, **cursor})}")
            for gap in answer["gaps"]:
                at = (gap["topic"], gap["partition"], gap["sink"])
                found.setdefault((at, gap["cause"]), set()).update(range(gap["first_offset"], gap["last_offset"] + 1))
            if answer["next"] is None:
                return found
            cursor = {"cursor": answer["next"]}

    def _folded(self, stage: str) -> Alerts:
        alerts = Alerts()
        for message in self.rig.read(f"{self.rig.app_id}.alerts"):
            alerts.take(message)
        self.differences += [f"{stage}: {fault}" for fault in alerts.faults]
        self._compare(stage, "events that stand there twice", alerts.repeats, 0)
        return alerts

    def _compare(self, stage: str, what: str, found: object, expected: object) -> None:
        if found != expected:
            self._differ(stage, f"{what}: {found}, expected {expected}")

    def _compare_sets(self, stage: str, what: str, found: set[int], expected: set[int]) -> None:
        lacks, more = sorted(expected - found), sorted(found - expected)
        if lacks or more:
            self._differ(stage, f"{what}: {len(lacks)} not found {lacks[:5]}, {len(more)} too many {more[:5]}")

    def _differ(self, stage: str, text: str) -> None:
        self.differences.append(f"{stage}: {text}")

    def _eventually(self, check: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.options.patience
        while time.monotonic() < deadline:
            try:
                if check():
                    return
            except (OSError, KeyError):  # not there yet, or not any more
                pass
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {self.options.patience:g} s")


def campaign(options: argparse.Namespace, folder: Path, say: Say) -> list[str]:
    """One run; the differences."""
    with ExitStack() as stack:
        cluster = stack.enter_context(KafkaCluster())
        url = options.url or stack.enter_context(EngineProcess(folder / "engine")).url
        proxy = stack.enter_context(FaultyProxy(url))
        kit = KafkaKit(cluster.bootstrap)
        stack.callback(kit.close)
        server = ClickHouse(url)
        stack.callback(server.close)
        one = Campaign(options, kit, server, proxy, folder, say)
        stack.callback(one.rig.close)
        differences = one.run()
        never = [what for what, count in one.made.items() if not count]
        say("done: " + ", ".join(f"{count} {what}" for what, count in one.made.items()))
        if differences:
            say(f"the worker's last words:\n{one.worker.tail(4_000)}")
        return differences + [f"never happened: {what}" for what in never]


def main(arguments: list[str]) -> int:
    """`scripts/campaign clickhouse`."""
    parser = argparse.ArgumentParser(prog="campaign clickhouse", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--records", type=int, default=90_000, help="of a partition at most; half of it at least")
    parser.add_argument("--partitions", type=int, default=3, help="of the larger topic")
    parser.add_argument("--patience", type=float, default=120, help="seconds until everything must be found, after each stage")
    parser.add_argument("--url", help="of a ClickHouse; default: the embedded one")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gapstream-clickhouse-"))
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)

    say(f"seed {options.seed}; files in {folder}")
    try:
        differences = campaign(options, folder, say)
    except AssertionError as error:  # something did not happen that had to
        differences = [str(error)]
    print(f"seed {options.seed}: " + ("as expected" if not differences else f"{len(differences)} differences"))
    for difference in differences[:50]:
        print(f"  {difference}")
    if not differences and options.folder is None:
        shutil.rmtree(folder)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
