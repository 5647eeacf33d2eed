"""Two workers and one of them frozen, dead, or restarted: every partition has one writer, and nothing is told twice."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.campaign import spine
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

SINKS = {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}
PARTITIONS = 4
SESSION_S = 6.0


class Pair:
    """Two workers that share a topic."""

    def __init__(self, kit: KafkaKit, make_rig: Callable[..., Rig], standbys: int) -> None:
        self.kit = kit
        self.topic = kit.make_topic(PARTITIONS)
        self.rig = make_rig({self.topic: SINKS}, app={"standby_replicas": standbys})
        self.workers = [self.rig.worker().start(), self.rig.worker().start()]
        self.lost: dict[int, set[int]] = {partition: set() for partition in range(PARTITIONS)}
        self.written = dict.fromkeys(range(PARTITIONS), 0)

    def owners(self, asked: Worker) -> dict[int, tuple[str, str]]:
        """Partition -> who reads it, and its state, as one worker says."""
        rows = asked.get(f"/api/partitions?topic={self.topic}&sink=log")["partitions"]
        return {row["partition"]: (row["worker"], row["state"]) for row in rows if row["worker"] is not None}

    def share(self) -> Pair:
        """Wait until each worker reads some partitions, and all are read."""
        for worker in self.workers:
            worker.ready()

        def shared() -> bool:
            owners = self.owners(self.workers[0])
            return len(owners) == PARTITIONS and {name for name, _ in owners.values()} == {"worker-1", "worker-2"}

        eventually(shared, "both workers own partitions")
        return self

    def owned_by(self, worker: Worker, asked: Worker) -> set[int]:
        return {partition for partition, (name, _) in self.owners(asked).items() if name == f"worker-{worker.number}"}

    def records(self, asked: Worker) -> dict[int, int | None]:
        rows = asked.get(f"/api/partitions?topic={self.topic}&sink=billing")["partitions"]
        return {row["partition"]: row["records"] for row in rows}

    def judge(self, asked: Worker) -> None:
        """Everything that is said is as it was done."""
        wanted = {(self.topic, partition, "billing"): offsets for partition, offsets in self.lost.items() if offsets}
        eventually(lambda: listed(asked.get("/api/gaps?limit=10000")) == wanted, "every loss found, nothing more")
        assert self.records(asked) == self.written
        rows = asked.get(f"/api/partitions?topic={self.topic}&sink=billing")["partitions"]
        assert {row["partition"]: row["duplicates"] for row in rows} == dict.fromkeys(range(PARTITIONS), 0)
        alerts = spine.folded(self.rig)
        assert (alerts.faults, alerts.repeats, alerts.duplicates) == ([], 0, {})
        assert {key: set(gaps) for key, gaps in alerts.open.items() if gaps} == wanted


class Load:
    """Records, reports and losses without a pause, from a thread of its own."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pair, rng = self._pair, random.Random(7)
        observer = Observer(pair.rig.bootstrap, pair.rig.app_id)
        while not self._stop.is_set():
            for partition in range(PARTITIONS):
                offsets = pair.kit.produce(pair.topic, partition, 100)
                lost = {offset for offset in offsets[:-1] if rng.random() < 0.05}
                pair.written[partition] += len(offsets)
                observer.say(pair.topic, partition, spine.runs([offset for offset in offsets if offset not in lost]))
                pair.lost[partition] |= lost
            observer.flush()


@pytest.fixture(scope="module")
def pairs(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Iterator[dict[int, Pair]]:
    """By number of standbys; both are started at once."""
    made = {standbys: Pair(shared_kit, make_rig, standbys) for standbys in (0, 1)}
    yield made
    for pair in made.values():
        pair.rig.close()


@pytest.mark.parametrize("standbys", [0, 1])
def test_a_frozen_worker_is_replaced_and_wakes_up_harmless(pairs: dict[int, Pair], standbys: int) -> None:
    pair = pairs[standbys].share()
    first, second = pair.workers
    with Load(pair):
        eventually(lambda: listed(second.get("/api/gaps")), "losses are being found")
        taken = pair.owned_by(first, second)
        first.signal(signal.SIGSTOP)
        try:
            eventually(
                lambda: {state for partition, (_, state) in pair.owners(second).items() if partition in taken} == {"unknown"},
                "rows of a worker that says nothing are unknown",
                2 * SESSION_S,
            )
            reason = second.get(f"/api/partitions?topic={pair.topic}&sink=billing")["partitions"][min(taken)]["reason"]
            assert reason.startswith("worker worker-1 is gone, last heard of at ")
            eventually(lambda: pair.owned_by(second, second) == set(range(PARTITIONS)), "the other worker takes over", 3 * SESSION_S)
            before = pair.records(second)
            eventually(lambda: all(pair.records(second)[one] != before[one] for one in taken), "the partitions taken over are read on")
        finally:
            first.signal(signal.SIGCONT)
        pair.share()
        before = pair.records(second)
        eventually(lambda: all(pair.records(second)[one] != before[one] for one in range(PARTITIONS)), "all are read on")
    for worker in pair.workers:
        pair.judge(worker)
        assert "Traceback" not in worker.log.read_text()


def test_a_restart_within_the_session_keeps_the_partitions(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> None:
    pair = Pair(shared_kit, make_rig, 0).share()
    first, second = pair.workers
    shares = pair.owned_by(first, first), pair.owned_by(second, first)
    with Load(pair):
        assert second.stop() == 0
        rows = first.get(f"/api/partitions?topic={pair.topic}&sink=log")["partitions"]
        away = {row["partition"]: row["reason"] for row in rows if row["state"] == "unknown"}
        assert away == dict.fromkeys(shares[1], "worker worker-2 has stopped and no other has taken over yet")
        seen = set()
        second.start()

        def back() -> bool:
            seen.update(pair.owned_by(first, first))
            return {state for _, state in pair.owners(first).values()} <= {"ok", "gaps", "catching_up"}

        eventually(back, "the restarted worker reads again")
    assert seen == shares[0], "no partition went to the other worker meanwhile"
    assert pair.owned_by(second, first) == shares[1]
    pair.judge(first)
    pair.rig.close()
