"""``gapstream explain`` on a partition that holds one of everything, asked of running workers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import TopicCollection

from tests.kafka_real.conftest import MakeRig
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

CONFIG = {
    "cleanup.policy": "compact,delete",  # compact alone lets nobody delete records
    "segment.ms": "200",
    "min.cleanable.dirty.ratio": "0.01",
    "retention.ms": "-1",
}
SINKS = {"sinks": {"billing": {"type": "consumer", "grace": "200ms", "from": "earliest"}, "audit": {"type": "consumer"}}}

WHOLE = [
    (0, 2, "expired", "received or absent"),
    (3, 4, "compacted", "absent"),
    (5, 5, "record", "received"),
    (6, 6, "record", "received"),
    (7, 11, "record", "received"),
    (12, 12, "record", "open not_received"),
    (13, 14, "record", "received"),
    (15, 15, "transaction_marker", "absent"),
    (16, 17, "aborted", "absent"),
    (18, 18, "transaction_marker", "absent"),
    (19, 19, "record", "explained quarantined"),
    (20, 20, "record", "received"),
    (21, 21, "open", "ahead"),
    (22, 22, "open", "ahead"),
    (23, 24, "ahead", "ahead"),
]


@dataclass
class Scene:
    topic: str
    rig: Rig
    workers: list[Worker]

    @property
    def worker(self) -> Worker:
        return self.workers[0]


def write(kit: KafkaKit) -> str:
    """A topic with offsets 0 to 20: compacted, plain, committed, aborted, plain."""
    topic = kit.make_topic(config=CONFIG)
    kit.produce(topic, 0, 6, key=b"again", conf={"linger.ms": 5000})
    time.sleep(0.3)  # the broker's own clock: a record that comes so late closes the segment before it
    kit.produce(topic, 0, 1, key=b"\xffnext")
    eventually(lambda: [one.offset() for one in kit.read(topic)] == [5, 6], "the cleaner has been there")
    kit.set_topic_config(topic, {"min.compaction.lag.ms": "3600000", "segment.ms": "3600000"})
    kit.produce(topic, 0, 5, key=b"plain", conf={"compression.type": "lz4", "linger.ms": 5000})
    kit.transact(topic, 0, 3, key=b"committed")
    kit.transact(topic, 0, 2, key=b"aborted", commit=False)
    kit.produce(topic, 0, 2, key=b"plain", value=lambda number: None if number else b"value", conf={"linger.ms": 5000})
    assert kit.offsets(topic) == (0, 21)
    return topic


@pytest.fixture(scope="module")
def scene(shared_kit: KafkaKit, make_rig: MakeRig) -> Iterator[Scene]:
    topic = write(shared_kit)
    rig = make_rig({topic: SINKS})
    workers = [rig.worker().start() for _ in range(2)]
    for worker in workers:
        worker.ready()
    first = workers[0]
    eventually(lambda: row(first, topic, "log")["log_read_offset"] == 21, "the log is read")
    observer = Observer(rig.bootstrap, rig.app_id)
    observer.say(topic, 0, [[19, 19]], status="quarantined", reason="bad")
    observer.received(topic, 0, [5, 11], [13, 14], [20, 20])
    eventually(lambda: listed(first.get("/api/gaps")) == {(topic, 0, "billing"): {12}}, "the gap")
    shared_kit.delete_records(topic, 0, 3)
    open_one = shared_kit.transactional_producer()
    open_one.begin_transaction()
    open_one.produce(topic, b"v", b"open", partition=0)
    open_one.flush(10)
    shared_kit.produce(topic, 0, 1, key=b"behind")
    eventually(lambda: [row(worker, topic, "log")["log_start_offset"] for worker in workers] == [3, 3], "the log start is known")
    yield Scene(topic, rig, workers)
    open_one.abort_transaction(10)
    open_one.close()


def row(worker: Worker, topic: str, sink: str) -> Any:
    (found,) = worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]
    return found


def runs_of(worker: Worker, topic: str, first: int, last: int, sink: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = worker.get(f"/api/explain?topic={topic}&partition=0&first={first}&last={last}&sink={sink}")["runs"]
    return found


def test_everything_at_once(scene: Scene, shared_kit: KafkaKit) -> None:
    ran = scene.worker.cli("explain", scene.topic, "0", "0-24", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    runs = json.loads(ran.stdout)["runs"]
    assert [(run["first_offset"], run["last_offset"], run["verdict"], run["sinks"]["billing"]) for run in runs] == WHOLE
    assert {run["sinks"]["audit"] for run in runs} == {"unknown", "absent"}
    assert {run["evidence"]["unknown"]["audit"] for run in runs} == {"never heard of"}
    evidence = {run["first_offset"]: run["evidence"] for run in runs}
    described = shared_kit.admin.describe_topics(TopicCollection([scene.topic]))[scene.topic].result(10)
    topic_id = str(described.topic_id).translate(str.maketrans("+/", "-_"))  # as Kafka's own tools print it
    for one in evidence.values():
        assert one["topic_id"] == topic_id
        assert (one["log_start_offset"], one["last_stable_offset"], one["high_watermark"], one["log_read_offset"]) == (3, 21, 23, 21)
        assert (one["cleanup_policy"], one["isolation"]) == ("compact,delete", "read_committed")
    names = ("batch_base_offset", "batch_last_offset", "record_count", "compression", "transactional", "control", "marker", "base_sequence")
    assert {first: tuple(one[name] for name in names) for first, one in evidence.items()} == {
        0: (None,) * 8,
        3: (0, 5, 1, "none", False, False, None, None),
        5: (0, 5, 1, "none", False, False, None, None),
        6: (6, 6, 1, "none", False, False, None, None),
        7: (7, 11, 5, "lz4", False, False, None, None),
        12: (12, 14, 3, "none", True, False, None, 0),
        13: (12, 14, 3, "none", True, False, None, 0),
        15: (15, 15, 1, "none", True, True, "commit", None),
        16: (16, 17, 2, "none", True, False, None, 0),
        18: (18, 18, 1, "none", True, True, "abort", None),
        19: (19, 20, 2, "none", False, False, None, None),
        20: (19, 20, 2, "none", False, False, None, None),
        21: (21, 21, 1, "none", True, False, None, 0),
        22: (22, 22, 1, "none", False, False, None, None),
        23: (None,) * 8,
    }
    producers = {first: one["producer_id"] for first, one in evidence.items()}
    assert producers[12] == producers[13] == producers[15] != producers[16] == producers[18]
    assert {producers[first] for first in (0, 3, 5, 7, 19, 22, 23)} == {None}
    assert len({producers[first] for first in (12, 16, 21)} - {None}) == 3, "the producer that holds the last stable offset is named"
    assert {one["leader_epoch"] for first, one in evidence.items() if first not in (0, 23)} == {0}


def test_the_records_are_those_that_a_consumer_receives(scene: Scene, shared_kit: KafkaKit) -> None:
    told = [record for run in runs_of(scene.worker, scene.topic, 0, 24) for record in run["records"]]
    read = shared_kit.read(scene.topic)
    assert [record["offset"] for record in told] == [one.offset() for one in read] == [5, *range(6, 15), 19, 20]
    for record, one in zip(told, read, strict=True):
        key, value = one.key(), one.value()
        assert key is not None
        shown = (key.decode(), "utf-8") if record["offset"] != 6 else (base64.b64encode(key).decode(), "base64")
        assert (record["key"], record["key_encoding"], record["tombstone"]) == (*shown, value is None)
        assert record["size"] == len(key) + len(value or b"")
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(one.timestamp()[1] // 1000))
        assert record["timestamp"] == f"{seconds}.{one.timestamp()[1] % 1000:03d}Z"


def test_each_offset_alone_is_told_the_same_by_every_worker(scene: Scene) -> None:
    """From wherever it is fetched: the list of aborted transactions is relative to the fetch."""
    whole = {
        offset: run for run in runs_of(scene.worker, scene.topic, 0, 24) for offset in range(run["first_offset"], run["last_offset"] + 1)
    }
    for offset in range(25):
        for worker in scene.workers:
            (alone,) = runs_of(worker, scene.topic, offset, offset)
            assert (alone["first_offset"], alone["last_offset"]) == (offset, offset)
            assert [alone[name] for name in ("verdict", "evidence", "sinks")] == [
                whole[offset][name] for name in ("verdict", "evidence", "sinks")
            ]
            assert alone["records"] == [record for record in whole[offset]["records"] if record["offset"] == offset]


def test_one_sink_alone_and_the_log_as_a_sink(scene: Scene) -> None:
    ran = scene.worker.cli("explain", scene.topic, "0", "12", "--sink", "billing")
    assert ran.returncode == 0
    assert "open not_received" in ran.stdout
    assert "audit" not in ran.stdout
    unknown = scene.worker.cli("explain", scene.topic, "0", "12", "--sink", "audit", "--json")
    assert (unknown.returncode, json.loads(unknown.stdout)["runs"][0]["sinks"]) == (3, {"audit": "unknown"})
    log = {run["first_offset"]: run["sinks"] for run in runs_of(scene.worker, scene.topic, 3, 23, "log")}
    assert {offset: log[offset] for offset in (3, 5, 12, 15, 16, 19, 21, 23)} == {
        3: {"log": "absent"},
        5: {"log": "received"},
        12: {"log": "received"},
        15: {"log": "absent"},
        16: {"log": "absent"},
        19: {"log": "received"},
        21: {"log": "ahead"},
        23: {"log": "ahead"},
    }


@pytest.mark.parametrize(
    ("topic", "partition", "more", "words"),
    [
        ("nobody-watches", "0", [], "is not watched"),
        (None, "7", [], "there is no partition 7"),
        (None, "0", ["--sink", "nothing"], "nobody knows a sink nothing"),
    ],
)
def test_what_is_not_there(scene: Scene, topic: str | None, partition: str, more: list[str], words: str) -> None:
    ran = scene.worker.cli("explain", topic or scene.topic, partition, "5", *more)
    assert (ran.returncode, ran.stdout, words in ran.stderr) == (2, "", True), ran.stderr
