"""Transactions in the log, as a worker tells them: markers, aborted records, and what is open."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, eventually
from tests.support.scene import SINKS, Scene

MILLION = 1_000_000
NAMES = ("plain", "single", "nine", "committed", "uncommitted", "three", "two_ids", "from_marker", "from_middle", "hung", "open")
TOPICS = SimpleNamespace(**{name: f"{name.replace('_', '-')}-{uuid.uuid4().hex[:8]}" for name in (*NAMES, "copy")})


def write_plain(kit: KafkaKit) -> None:
    conf = {"linger.ms": 20, "batch.size": 1_000_000, "queue.buffering.max.messages": MILLION, "queue.buffering.max.kbytes": 1 << 20}
    producer = Producer({"bootstrap.servers": kit.bootstrap, **conf})
    for number in range(MILLION):
        producer.produce(TOPICS.plain, b"0123456789", partition=0)
        if number % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    producer.close()


def write_three(kit: KafkaKit, topic: str) -> None:
    """Commit, abort, commit, by one producer id."""
    producer = kit.transactional_producer()
    for size, commit in ((4, True), (3, False), (5, True)):
        producer.begin_transaction()
        for _ in range(size):
            producer.produce(topic, b"value", partition=0)
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
    producer.close()


def write_two_ids(kit: KafkaKit) -> None:
    """Two producer ids take turns; the one that wrote first aborts, in between the other's records."""
    aborts, commits = kit.transactional_producer(), kit.transactional_producer()
    for producer in (aborts, commits):
        producer.begin_transaction()
    for _ in range(3):
        for producer in (aborts, commits):
            producer.produce(TOPICS.two_ids, b"value", partition=0)
            producer.flush(30)
    aborts.abort_transaction(30)
    kit.await_end(TOPICS.two_ids, 0, 7)
    commits.produce(TOPICS.two_ids, b"value", partition=0)
    commits.commit_transaction(30)
    for producer in (aborts, commits):
        producer.close()


HANGS = """
import sys, time
from confluent_kafka import Producer
conf = {"bootstrap.servers": sys.argv[1], "transactional.id": sys.argv[2], "transaction.timeout.ms": 1500}
producer = Producer(conf)
producer.init_transactions(30)
producer.begin_transaction()
for _ in range(4):
    producer.produce(sys.argv[2], b"value", partition=0)
producer.flush(30)
print("written", flush=True)
time.sleep(600)
"""


def write_hung(kit: KafkaKit) -> None:
    """A producer that is killed in its transaction; the coordinator ends it when its timeout is over."""
    kit.produce(TOPICS.hung, 0, 2)
    process = subprocess.Popen([sys.executable, "-c", HANGS, kit.bootstrap, TOPICS.hung], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"written\n"
        process.kill()
        process.wait()
    kit.produce(TOPICS.hung, 0, 3)


def write_begun(kit: KafkaKit, topic: str, before: int) -> None:
    """An aborted transaction, of which the log has lost its beginning, and a committed one."""
    kit.transact(topic, 0, 5, commit=False)
    kit.transact(topic, 0, 3)
    kit.delete_records(topic, 0, before)


@pytest.fixture(scope="module", autouse=True)
def scene(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Scene:
    names = vars(TOPICS)
    for topic in names.values():
        shared_kit.make_topic(1, name=topic)
    settings = {topic: SINKS | ({"isolation": "read_uncommitted"} if topic == TOPICS.uncommitted else {}) for topic in names.values()}
    rig = make_rig(settings)
    made = Scene(shared_kit, rig, rig.worker())
    with ThreadPoolExecutor(9) as writing:
        first = [
            writing.submit(write_begun, shared_kit, TOPICS.from_marker, 5),
            writing.submit(write_begun, shared_kit, TOPICS.from_middle, 2),
            writing.submit(write_three, shared_kit, TOPICS.three),
            writing.submit(write_two_ids, shared_kit),
        ]
        shared_kit.produce(TOPICS.open, 0, 10)
        for write in first:  # must be there when the worker sees these topics first
            write.result()
        made.worker.start()
        writes = [
            writing.submit(write_plain, shared_kit),
            writing.submit(write_hung, shared_kit),
            writing.submit(shared_kit.transactions, [TOPICS.single], 2_000, 1, producers=8),
            writing.submit(shared_kit.transactions, [TOPICS.nine], 200, 9, producers=2),
            writing.submit(shared_kit.transactions, [TOPICS.committed, TOPICS.uncommitted], 30, 5, abort_every=3),
        ]
        for write in writes:
            write.result()
    made.worker.ready()
    return made


def test_T01_a_million_plain_records(scene: Scene) -> None:
    lost = 654_321
    scene.await_row(TOPICS.plain, {"log_read_offset": MILLION})
    scene.observer.received(TOPICS.plain, 0, [0, lost - 1], [lost + 1, MILLION - 1])
    wanted = {"records": MILLION, "observed": MILLION - 1, "missing": 1, "duplicates": 0, "absent": {}, "lag": 0}
    scene.await_row(TOPICS.plain, wanted)
    assert scene.missing(TOPICS.plain) == {lost}
    assert scene.await_commit(TOPICS.plain) == MILLION


def test_T02_a_marker_after_every_record(scene: Scene) -> None:
    """Twenty thousand of them are left to the campaign."""
    delivered = scene.kit.delivered(TOPICS.single)
    scene.judge(TOPICS.single, {delivered[7], delivered[1_234]}, absent={"transaction_marker": 2_000}, log_read_offset=4_000)
    assert scene.await_commit(TOPICS.single) == 4_000


def test_T03_a_marker_after_nine_records(scene: Scene) -> None:
    delivered = scene.kit.delivered(TOPICS.nine)
    scene.judge(TOPICS.nine, delivered[100:120], absent={"transaction_marker": 200}, log_read_offset=2_000)
    assert scene.await_commit(TOPICS.nine) == 2_000


def test_T04_every_third_transaction_aborted(scene: Scene) -> None:
    """Aborted records are absent for those who read what is committed, and records for those who read all."""
    delivered = scene.kit.delivered(TOPICS.committed)
    assert len(delivered) == 100
    scene.judge(TOPICS.committed, {delivered[9], delivered[10]}, absent={"transaction_marker": 30, "aborted": 50})
    scene.judge(TOPICS.uncommitted, {12}, isolation="read_uncommitted", absent={"transaction_marker": 30}, records=150)
    assert scene.await_commit(TOPICS.committed) == 180
    assert scene.await_commit(TOPICS.uncommitted, isolation="read_uncommitted") == 180


def test_T05_one_producer_id_commits_aborts_commits(scene: Scene) -> None:
    """Exactly the second one is absent: what is missing before and after it is one gap of two records."""
    scene.judge(TOPICS.three, {3, 9}, absent={"transaction_marker": 3, "aborted": 3}, records=9, log_read_offset=15)
    gaps = [(one["first_offset"], one["last_offset"], one["count"]) for one in scene.worker.get(f"/api/gaps?topic={TOPICS.three}")["gaps"]]
    assert gaps == [(3, 9, 2)]


def test_T06_two_producer_ids_of_which_one_aborts(scene: Scene) -> None:
    delivered = scene.kit.delivered(TOPICS.two_ids)
    assert delivered == [1, 3, 5, 7]
    scene.judge(TOPICS.two_ids, {3, 5}, absent={"transaction_marker": 2, "aborted": 3}, log_read_offset=9)


@pytest.mark.parametrize(("topic", "first", "aborted"), [(TOPICS.from_marker, 5, 0), (TOPICS.from_middle, 2, 3)], ids=["marker", "middle"])
def test_T08_a_log_that_begins_inside_an_aborted_transaction(scene: Scene, topic: str, first: int, aborted: int) -> None:
    """At its marker, and among its records: the list of aborted transactions is relative to the fetch."""
    absent = {"transaction_marker": 2} | ({"aborted": aborted} if aborted else {})
    scene.judge(topic, {7}, absent=absent, records=3, log_start_offset=first, log_read_offset=10)


def test_T09_an_open_transaction(scene: Scene) -> None:
    """What lies above its first record is not judged, whatever a sink says, before it ends."""
    topic, kit = TOPICS.open, scene.kit
    producer = kit.transactional_producer(timeout_ms=600_000)
    producer.begin_transaction()
    for _ in range(3):
        producer.produce(topic, b"value", partition=0)
    producer.flush(30)
    kit.produce(topic, 0, 5)
    kit.transact(topic, 0, 2)
    scene.observer.received(topic, 0, [0, 9], [13, 16], [18, 19])
    held = {"horizon_offset": 20, "missing": 0, "log_read_offset": 10, "log_end_offset": 10, "records": 10}
    passed = scene.await_row(topic, held)["updated_at"]

    def second_later() -> dict[str, Any] | None:
        scene.observer.received(topic, 0, [19, 19])  # so that there is something to be judged anew
        row = scene.row(topic)
        return row if datetime.fromisoformat(row["updated_at"]) - datetime.fromisoformat(passed) > timedelta(seconds=1) else None

    later = eventually(second_later, "grace is over, and whatever was to be found has been")
    assert {key: later[key] for key in held} == held
    began = min(message.timestamp()[1] for message in kit.read(topic, 0, isolation="read_uncommitted") if message.offset() == 10)
    through = datetime.fromisoformat(scene.row(topic, sink="log")["complete_through"]).timestamp() * 1000
    assert through < began + 500, "what it wrote would be late when it commits"
    producer.commit_transaction(30)
    producer.close()
    scene.await_row(topic, {"missing": 4, "log_read_offset": 22, "records": 20, "absent": {"transaction_marker": 2}})
    scene.await_missing(topic, {10, 11, 12, 17})
    scene.observer.received(topic, 0, [10, 12], [17, 17])
    scene.await_row(topic, {"missing": 0, "state": "ok"})
    assert scene.await_commit(topic) == 22


def test_T10_a_hung_transaction_is_aborted_by_the_coordinator(scene: Scene) -> None:
    scene.await_row(TOPICS.hung, {"absent": {"transaction_marker": 1, "aborted": 4}, "records": 5}, sink="log")
    scene.judge(TOPICS.hung, {1, 7}, log_read_offset=10)
    assert scene.await_commit(TOPICS.hung) == 10


def test_T49_a_copy_has_offsets_and_state_of_its_own(scene: Scene) -> None:
    """As a mirroring tool makes it: neither markers nor aborted records, dense offsets. On one cluster here."""
    scene.await_row(TOPICS.three, {"log_read_offset": 15}, sink="log")
    copied = scene.kit.produce(TOPICS.copy, 0, len(scene.kit.read(TOPICS.three)))
    assert copied == list(range(9))
    scene.judge(TOPICS.copy, {4}, absent={}, log_read_offset=9)
    assert {row["topic"] for row in scene.worker.get(f"/api/partitions?topic={TOPICS.copy}")["partitions"]} == {TOPICS.copy}
    assert {one["topic"] for one in scene.told(TOPICS.copy)} == {TOPICS.copy}
    assert scene.missing(TOPICS.copy) == {4}
    assert 4 not in scene.missing(TOPICS.three) or scene.missing(TOPICS.three) == set(range(3, 10))
