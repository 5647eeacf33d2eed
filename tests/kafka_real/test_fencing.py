"""Two workers and one of them frozen, dead, or restarted: every partition has one writer, and nothing is told twice."""

from __future__ import annotations

import random
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stream_app.kafka.writer import FencedWriter, OutRecord, WriterLost
from tests.campaign import spine
from tests.campaign.verdicts import runs
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

SINKS = {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}
PARTITIONS = 4
SESSION_S = 6.0
SIGN_S = 2.0
"""A sign of life each second, and half a second until it is read, on a machine that has other things to do."""


class Pair:
    """Two workers that share a topic."""

    def __init__(self, kit: KafkaKit, make_rig: Callable[..., Rig], partitions: int = PARTITIONS, **app: Any) -> None:
        self.kit = kit
        self.partitions = range(partitions)
        self.topic = kit.make_topic(partitions)
        self.rig = make_rig({self.topic: SINKS}, app=app)
        self.workers = [self.rig.worker().start(), self.rig.worker().start()]
        self.lost: dict[int, set[int]] = {partition: set() for partition in self.partitions}
        self.written = dict.fromkeys(self.partitions, 0)

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
            return len(owners) == len(self.partitions) and {name for name, _ in owners.values()} == {"worker-1", "worker-2"}

        eventually(shared, "both workers own partitions")
        return self

    def owned_by(self, worker: Worker, asked: Worker) -> set[int]:
        return {partition for partition, (name, _) in self.owners(asked).items() if name == f"worker-{worker.number}"}

    def await_taken_over(self, heir: Worker, partitions: set[int]) -> None:
        """Until the heir reads them; whoever is gone for longer than the session must not look alive meanwhile."""
        name, begun = f"worker-{heir.number}", time.monotonic()

        def taken() -> bool:
            asked = time.monotonic() - begun
            rows = heir.get(f"/api/partitions?topic={self.topic}&sink=log")["partitions"]
            left = [row for row in rows if row["partition"] in partitions and row["worker"] != name]
            for row in left:
                known = row["state"] != "unknown"
                assert not (known and asked > SESSION_S + SIGN_S), f"{row} {asked:.1f} s after the last sign of life"
                assert known or "is gone, last heard of at" in row["reason"] or "has stopped and no other" in row["reason"]
            return not left

        eventually(taken, "the other worker takes over", 4 * SESSION_S)

    def records(self, asked: Worker) -> dict[int, int | None]:
        rows = asked.get(f"/api/partitions?topic={self.topic}&sink=billing")["partitions"]
        return {row["partition"]: row["records"] for row in rows}

    def judge(self, asked: Worker) -> None:
        """Everything that is said is as it was done."""
        wanted = {(self.topic, partition, "billing"): offsets for partition, offsets in self.lost.items() if offsets}
        eventually(lambda: listed({"gaps": all_gaps(asked)}) == wanted, "every loss found, nothing more")
        assert self.records(asked) == self.written
        rows = asked.get(f"/api/partitions?topic={self.topic}&sink=billing")["partitions"]
        assert {row["partition"]: row["duplicates"] for row in rows} == dict.fromkeys(self.partitions, 0)
        alerts = spine.folded(self.rig)
        assert (alerts.faults, alerts.repeats, alerts.duplicates) == ([], 0, {})
        assert {key: set(gaps) for key, gaps in alerts.open.items() if gaps} == wanted


def all_gaps(asked: Worker) -> list[dict[str, Any]]:
    """The whole list, page by page: a fast machine loses more records than one answer holds."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answer = asked.get(f"/api/gaps?limit=10000{cursor}")
        found += answer["gaps"]
        if answer["next"] is None:
            return found
        cursor = f"&cursor={answer['next']}"


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
            for partition in pair.partitions:
                offsets = pair.kit.produce(pair.topic, partition, 100)
                lost = {offset for offset in offsets[:-1] if rng.random() < 0.05}
                pair.written[partition] += len(offsets)
                observer.say(pair.topic, partition, runs([offset for offset in offsets if offset not in lost]))
                pair.lost[partition] |= lost
            observer.flush()


@pytest.fixture(scope="module")
def pairs(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> dict[str, Pair]:
    """All that the module needs, started at once."""
    return {
        "alone": Pair(shared_kit, make_rig, standby_replicas=0),
        "standby": Pair(shared_kit, make_rig, standby_replicas=1),
        "patient": Pair(shared_kit, make_rig, session_timeout="45s"),
        "idle": Pair(shared_kit, make_rig, partitions=1),
    }


def freeze(pair: Pair) -> None:
    first, second = pair.share().workers
    with Load(pair):
        eventually(lambda: listed(second.get("/api/gaps")), "losses are being found")
        taken = pair.owned_by(first, second)
        first.signal(signal.SIGSTOP)
        try:
            pair.await_taken_over(second, taken)
            before = pair.records(second)
            eventually(lambda: all(pair.records(second)[one] != before[one] for one in taken), "the partitions taken over are read on")
        finally:
            first.signal(signal.SIGCONT)
        pair.share()
        before = pair.records(second)
        eventually(lambda: all(pair.records(second)[one] != before[one] for one in pair.partitions), "all are read on")
    for worker in pair.workers:
        pair.judge(worker)
        assert "Traceback" not in worker.log.read_text()
    pair.rig.close()


def test_a_frozen_worker_is_replaced_and_wakes_up_harmless(pairs: dict[str, Pair]) -> None:
    """With standbys and without, side by side."""
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(freeze, pairs[name]) for name in ("alone", "standby")]:
            done.result()


def test_a_restart_within_the_session_keeps_the_partitions(pairs: dict[str, Pair]) -> None:
    pair = pairs["patient"].share()
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


def test_more_workers_than_partitions(pairs: dict[str, Pair]) -> None:
    """An assignment may be empty: such a worker is ready, answers for the others, and takes over from who dies."""
    pair = pairs["idle"]
    for worker in pair.workers:
        worker.ready()
    eventually(lambda: pair.owners(pair.workers[0]), "somebody reads it")
    (busy,), (idle,) = (
        [worker for worker in pair.workers if (pair.owned_by(worker, pair.workers[0]) == {0}) is owns] for owns in (True, False)
    )
    with Load(pair):
        eventually(lambda: listed(idle.get("/api/gaps")), "losses, as the idle one tells them")
        busy.kill()
        pair.await_taken_over(idle, {0})
        before = pair.records(idle)[0]
        eventually(lambda: pair.records(idle)[0] != before, "it reads on")
    pair.judge(idle)
    pair.rig.close()


# --- the writer itself --------------------------------------------------------------------------------------------------


def records(topic: str, *keys: bytes) -> list[OutRecord]:
    return [OutRecord(topic, key, b"value", 0) for key in keys]


async def test_whoever_starts_fences_whoever_wrote_before(shared_kit: KafkaKit) -> None:
    topic, other = shared_kit.make_topic(1), shared_kit.make_topic(1)
    connection, name = {"bootstrap_servers": shared_kit.bootstrap}, f"writer-{uuid.uuid4().hex[:8]}"
    first, second = FencedWriter(connection, name), FencedWriter(connection, name)
    try:
        await first.start()
        assert await first.write([*records(topic, b"a", b"b"), *records(other, b"x")], topic) == 1
        assert await first.write(records(topic, b"c"), topic) == 3, "a marker stands between"
        assert await first.write(records(other, b"y"), topic) is None
        await second.start()
        with pytest.raises(WriterLost):
            await first.write(records(topic, b"stale"), topic)
        last = await second.write(records(topic, b"d"), topic)
        assert last is not None
        assert last > 3
        with pytest.raises(WriterLost):
            await first.write(records(topic, b"stale"), topic)
    finally:
        await first.stop()
        await second.stop()
    assert [message.key() for message in shared_kit.read(topic)] == [b"a", b"b", b"c", b"d"]
    assert [message.key() for message in shared_kit.read(other)] == [b"x", b"y"]


async def test_a_write_that_fails_half_way_leaves_nothing(shared_kit: KafkaKit) -> None:
    topic, name = shared_kit.make_topic(1), f"writer-{uuid.uuid4().hex[:8]}"
    writer, heir = (FencedWriter({"bootstrap_servers": shared_kit.bootstrap}, name) for _ in range(2))
    try:
        await writer.start()
        with pytest.raises(WriterLost, match="MessageSizeTooLarge"):
            await writer.write([*records(topic, b"half"), OutRecord(topic, b"large", bytes(5 << 20), 0)], topic)
        await heir.start()
        assert await heir.write(records(topic, b"whole"), topic) is not None
    finally:
        await writer.stop()
        await heir.stop()
    assert [message.key() for message in shared_kit.read(topic)] == [b"whole"]


async def test_a_writer_that_is_fenced_between_two_sends_is_lost(shared_kit: KafkaKit) -> None:
    """The second record is for a topic that the client must ask for first: by then it knows that it was replaced."""
    topic = shared_kit.make_topic(1)
    connection, name = {"bootstrap_servers": shared_kit.bootstrap}, f"writer-{uuid.uuid4().hex[:8]}"
    first, second = FencedWriter(connection, name), FencedWriter(connection, name)
    try:
        await first.start()
        assert await first.write(records(topic, b"a"), topic) == 0
        await second.start()
        unheard_of = [record for _ in range(5) for record in records(shared_kit.make_topic(1), b"stale")]
        with pytest.raises(WriterLost):
            await first.write([*records(topic, b"stale"), *unheard_of], topic)
    finally:
        await first.stop()
        await second.stop()
