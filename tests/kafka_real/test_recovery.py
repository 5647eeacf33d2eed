"""State that is lost, old, or ends in markers: it is rebuilt from the changelog, soon, and says the same as before."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaProducer

from tests.campaign import spine
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

READY_S = 40.0
"""Usually five; whatever would hold a worker up lasts longer: the transaction of a dead one a minute, a marker for good."""


@dataclass
class Bench:
    """A topic of two partitions with one gap in each, told and flushed."""

    kit: KafkaKit
    rig: Rig
    topic: str
    worker: Worker
    observer: Observer

    @property
    def changelog(self) -> str:
        return f"{self.rig.app_id}-{self.topic}-changelog"

    def gaps(self) -> dict[tuple[str, int, str], set[int]]:
        return listed(self.worker.get("/api/gaps"))

    def row(self, partition: int = 0, sink: str = "billing") -> dict[str, Any]:
        found = self.worker.get(f"/api/partitions?topic={self.topic}&sink={sink}")["partitions"]
        return {row["partition"]: dict(row) for row in found}[partition]

    def restart(self) -> float:
        """Seconds until it is ready and its rows are known again."""
        begun = time.monotonic()
        self.worker.start().ready()
        eventually(lambda: self.row()["state"] != "unknown" and self.row(1)["state"] != "unknown", "the rows are known")
        return time.monotonic() - begun

    def next_gap(self) -> None:
        """Another ten records, of which the last but two is lost."""
        known = self.gaps()
        for partition in (0, 1):
            offsets = self.kit.produce(self.topic, partition, 10)
            self.observer.received(self.topic, partition, [offsets[0], offsets[6]], [offsets[8], offsets[9]])
            known[self.topic, partition, "billing"].add(offsets[7])
        eventually(lambda: self.gaps() == known, "the old gaps and the new ones")

    def judge(self, records: int) -> None:
        """The alerts topic says the same, each event once; nothing was counted twice."""
        alerts = spine.folded(self.rig)
        assert (alerts.faults, alerts.repeats, alerts.duplicates) == ([], 0, {})
        assert {key: set(gaps) for key, gaps in alerts.open.items() if gaps} == self.gaps()
        assert len({source for source, _ in alerts.ids}) <= 2, "one birth for each partition"
        for partition in (0, 1):
            row = self.row(partition)
            assert (row["records"], row["duplicates"], row["observed"]) == (records, 0, records - row["missing"])


TESTS = 6
"""Of this module: each has a bench of its own, and all of them are started at once."""


@pytest.fixture(scope="module")
def benches(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> list[Bench]:
    made = []
    for _ in range(TESTS):
        topic = shared_kit.make_topic(2)
        rig = make_rig({topic: {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}})
        for partition in (0, 1):
            shared_kit.produce(topic, partition, 100)
        made.append(Bench(shared_kit, rig, topic, rig.worker().start(), Observer(rig.bootstrap, rig.app_id)))
    for bench in made:
        bench.worker.ready()
        for partition in (0, 1):
            bench.observer.received(bench.topic, partition, [0, 39], [50, 99])
    return made


@pytest.fixture
def bench(benches: list[Bench]) -> Iterator[Bench]:
    taken = benches.pop()
    wanted = {(taken.topic, partition, "billing"): set(range(40, 50)) for partition in (0, 1)}
    eventually(lambda: taken.gaps() == wanted, "the first gaps")
    yield taken
    taken.rig.close()


def test_a_changelog_that_ends_in_a_marker_holds_nothing_up(bench: Bench) -> None:
    """Every flush ends in one; an aborted flush leaves records that nobody sees, and a marker after them."""
    assert bench.worker.stop() == 0
    first, stop = bench.kit.offsets(bench.changelog)
    last = bench.kit.read(bench.changelog)[-1].offset()
    assert last is not None
    assert first < stop == last + 2, "a marker stands last"
    bench.kit.transact(bench.changelog, 0, 5, commit=False, value=b"junk", key=b"junk")
    shutil.rmtree(bench.rig.folder / "state-1")
    assert bench.restart() < READY_S
    bench.next_gap()
    bench.judge(110)


def test_a_state_folder_that_is_gone_is_rebuilt(bench: Bench) -> None:
    bench.worker.kill()
    shutil.rmtree(bench.rig.folder / "state-1")
    assert bench.restart() < READY_S
    bench.next_gap()
    bench.judge(110)


def test_an_old_copy_of_a_state_folder_does_no_harm(bench: Bench) -> None:
    """A volume restored from a backup: first a copy taken in flight, then one that says that it is clean."""
    state, unclean, clean = (bench.rig.folder / name for name in ("state-1", "unclean", "clean"))
    shutil.copytree(state, unclean)
    assert bench.worker.stop() == 0
    shutil.copytree(state, clean)
    assert [(copy / "clean").exists() for copy in (unclean, clean)] == [False, True]
    bench.restart()
    bench.next_gap()
    for number, copy in enumerate((unclean, clean), 1):
        bench.worker.kill()
        shutil.rmtree(state)
        shutil.copytree(copy, state)
        assert bench.restart() < READY_S
        bench.next_gap()
        bench.judge(110 + 10 * number)


async def test_an_open_transaction_of_a_dead_worker_is_ended_by_its_successor(bench: Bench) -> None:
    """A worker that died inside a flush left its transaction open: it hides the changelog's and the alerts' end until it is ended."""
    bench.worker.kill()
    writer = f"{bench.rig.app_id}-{bench.topic}-0"
    dead = AIOKafkaProducer(bootstrap_servers=bench.rig.bootstrap, transactional_id=writer, transaction_timeout_ms=60_000)
    await dead.start()
    try:
        await dead.begin_transaction()
        for topic in (bench.changelog, f"{bench.rig.app_id}.alerts"):
            await dead.send_and_wait(topic, b"half a flush", key=b"half", partition=0)
        assert bench.restart() < READY_S
        bench.next_gap()
        bench.judge(110)
    finally:
        dead._closed = True  # fenced: it can't end its transaction any more
        await dead.client.close()
        dead._sender._sender_task.cancel()


def test_a_sink_that_stands_in_no_file_is_listed_apart(bench: Bench) -> None:
    stranger = Observer(bench.rig.bootstrap, bench.rig.app_id, "stranger")
    stranger.received(bench.topic, 0, [0, 9], [20, 99])
    row = eventually(lambda: bench.row(0, "stranger")["missing"] == 10 and bench.row(0, "stranger"), "its gap")
    assert (row["configured"], row["observed"], row["state"]) == (False, 90, "gaps")
    lines = {line["sink"]: line for line in bench.worker.get("/api/status")["status"]}
    assert (lines["stranger"]["configured"], lines["billing"]["configured"]) == (False, True)
    stranger.received(bench.topic, 0, [10, 14], [20, 24])
    late = {"missing": 5, "duplicates": 5}
    eventually(lambda: bench.row(0, "stranger").items() >= late.items(), "what it said late, and twice")
    assert {key[2] for key in spine.folded(bench.rig).open} == {key[2] for key in bench.gaps()} == {"billing"}, "nobody is alerted"
    assert bench.worker.stop() == 0
    assert bench.restart() < READY_S
    assert (bench.row(0, "stranger")["configured"], bench.row(0, "stranger")["missing"]) == (False, 5)


def test_gaps_of_a_sink_that_left_the_file_are_in_no_list(bench: Bench) -> None:
    config = yaml.safe_load(bench.rig.config.read_text())
    config["topics"][bench.topic]["sinks"] = {}
    bench.rig.config.write_text(yaml.safe_dump(config))
    assert bench.worker.stop() == 0
    assert bench.restart() < READY_S
    eventually(lambda: not any(bench.row(partition)["configured"] for partition in (0, 1)), "it left both partitions")
    alerts = spine.folded(bench.rig)
    assert ([gaps for gaps in alerts.open.values() if gaps], alerts.faults) == ([], [])
    assert bench.gaps() == {}
    ran = bench.worker.cli("gaps", "--sink", "billing")
    assert (ran.returncode, ran.stdout.split(",")[0]) == (0, "sink billing stands in no configuration")
    assert [bench.row(partition)["missing"] for partition in (0, 1)] == [10, 10], "its numbers stay"
    assert bench.worker.cli("status").stdout.splitlines()[-1] == "0 records are missing."
    assert 'sink="log"' in bench.worker.text("/metrics")
    assert 'sink="billing"' not in bench.worker.text("/metrics")
