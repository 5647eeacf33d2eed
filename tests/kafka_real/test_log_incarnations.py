"""A watched topic that is deleted and made anew, and one that grows, while a worker runs and while none does."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from confluent_kafka import Consumer, Producer

from gapstream_sidecar import Sidecar
from tests.campaign import spine
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, eventually
from tests.support.scene import SINK, SINKS, Scene, event_ranges, runs

OLD, SHORTER, LONGER = 100, 60, 300
"""Records of the old log, and of new ones. One as long as the old one is the hardest to tell from it."""
RUNNING = {"shorter": SHORTER, "longer": LONGER, "equal": OLD}
AWAY = {f"away_{name}": records for name, records in RUNNING.items()}
TOPICS = SimpleNamespace(**{name: f"{name.replace('_', '-')}-{uuid.uuid4().hex[:8]}" for name in (*RUNNING, *AWAY, "growing")})
PARTITIONS = {"longer": (2, 2), "away_longer": (2, 2), "shorter": (3, 1), "away_shorter": (2, 1)}
"""Of the old topic and of the new one, where not one each."""
UNKNOWN = {3, 4, 17}
"""Lacking of what was there when the worker came to know the new log: what was said of that may have been said of the old one."""


def make(kit: KafkaKit, name: str, records: int, *, anew: bool = True) -> None:
    """So many records in each partition."""
    topic, partitions = vars(TOPICS)[name], PARTITIONS.get(name, (1, 1))[anew]
    kit.make_topic(partitions, name=topic)
    for partition in range(partitions):
        kit.produce(topic, partition, records)


@pytest.fixture(scope="module", autouse=True)
def scene(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Scene:
    for name in (*RUNNING, *AWAY):
        make(shared_kit, name, OLD, anew=False)
    shared_kit.make_topic(3, name=TOPICS.growing)
    rig = make_rig(dict.fromkeys(vars(TOPICS).values(), SINKS))
    made = Scene(shared_kit, rig, rig.worker().start().ready())
    for name in (*RUNNING, *AWAY):
        made.observer.received(vars(TOPICS)[name], 0, [0, 39], [50, 89])
    for name in (*RUNNING, *AWAY):
        made.await_row(vars(TOPICS)[name], {"missing": 10, "observed": 80})
    return made


def parts(name: str) -> range:
    return range(PARTITIONS.get(name, (1, 1))[1])


def report_anew(scene: Scene, names: dict[str, int]) -> None:
    """Once the worker knows the new logs more is written, and the sink says that it received all of it but for a few."""
    for name, records in names.items():
        fresh = {"records": records, "log_read_offset": records, "log_start_offset": 0}
        nothing = {"missing": None, "observed": None, "horizon_offset": None, "duplicates": None}
        scene.await_row(vars(TOPICS)[name], fresh | nothing)
        for partition in parts(name):
            assert scene.kit.produce(vars(TOPICS)[name], partition, 20) == list(range(records, records + 20))
        received = set(range(records + 20)) - UNKNOWN - lost_of(records)
        scene.observer.received(vars(TOPICS)[name], 0, *runs(received))


def lost_of(records: int) -> set[int]:
    return {records + 5, records + 6}


def judge_anew(scene: Scene, name: str, records: int) -> None:
    """It was told once that the log is another one, after the old gap was closed, and nothing of the old one counts for the new one."""
    topic = vars(TOPICS)[name]
    explained = {"unobserved": len(UNKNOWN)}
    wanted = {"records": records + 20, "missing": 2, "observed": records + 15, "explained": explained, "duplicates": 0}
    scene.await_row(topic, wanted)
    scene.await_missing(topic, lost_of(records))
    told = scene.told(topic)
    closed, anew = (some := [one for one in told if (one["partition"], one["sink"]) == (0, SINK)])[:2], some[2:]
    assert event_ranges(closed) == [(kind, SINK, "not_received", [[40, 49]]) for kind in ("gap.opened", "gap.explained")]
    assert closed[1]["reason"] == "truncated: the topic was re-created"
    assert sorted(event_ranges(anew), key=str) == [
        ("gap.explained", SINK, None, [list(run) for run in runs(UNKNOWN)]),
        ("gap.opened", SINK, "not_received", [list(run) for run in runs(lost_of(records))]),
    ]
    recreated = [(one["partition"], one["type"]) for one in told if one["sink"] == "log"]
    assert sorted(recreated) == [(partition, "log.recreated") for partition in parts(name)]
    for partition in parts(name):
        assert scene.await_commit(topic, partition) == records + 20, "the commit on the old log is not used"


class Pipeline:
    """Writes to all partitions that there are, and consumes them with a sidecar, until it is told to stop."""

    def __init__(self, scene: Scene, topic: str) -> None:
        self.scene, self.topic = scene, topic
        self.written: dict[int, int] = {}
        self._stop = threading.Event()
        self._quick = {"bootstrap.servers": scene.rig.bootstrap, "topic.metadata.refresh.interval.ms": 500, "log_level": 2}
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._consume)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Until all that was written is consumed and reported."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        producer = Producer({**self._quick, "linger.ms": 5})
        while not self._stop.wait(0.005):
            for partition in range(len(producer.list_topics(self.topic, timeout=10).topics[self.topic].partitions)):
                producer.produce(self.topic, b"value", partition=partition)
                self.written[partition] = self.written.get(partition, 0) + 1
            producer.poll(0)
        assert producer.flush(30) == 0
        producer.close()

    def _consume(self) -> None:
        conf = {**self._quick, "group.id": f"{self.topic}-app", "auto.offset.reset": "earliest", "enable.auto.commit": False}
        with Sidecar({"bootstrap.servers": self.scene.rig.bootstrap}, sink=SINK, app_id=self.scene.rig.app_id) as sidecar:
            consumer, seen = sidecar.wrap(Consumer(conf)), 0
            consumer.subscribe([self.topic])
            while not self._stop.is_set() or self._threads[0].is_alive() or seen < sum(self.written.values()):
                found = consumer.consume(500, timeout=0.1)
                assert not [one.error() for one in found if one.error()]
                seen += len(found)
                if found:
                    consumer.commit(asynchronous=False)
            consumer.close()
            assert sidecar.flush(30)


@dataclass
class Changes:
    """What was seen while all of it happened."""

    written: dict[int, int]
    """Records of each partition of the topic that grew."""
    orders: set[bool]
    """Whether the observations had no more partitions than the changelog, each time that somebody looked."""


@pytest.fixture(scope="module")
def changed(scene: Scene) -> Changes:
    """All at once while the worker runs: two topics are made anew, one is away for a while, and one grows under load."""
    kit, app, topic = scene.kit, scene.rig.app_id, TOPICS.growing
    orders: set[bool] = set()

    def grown() -> bool:
        topics = kit.admin.list_topics(timeout=10).topics
        changelog, observations = (len(topics[name].partitions) for name in (f"{app}-{topic}-changelog", f"{app}.observations.{topic}"))
        orders.add(observations <= changelog)
        return (changelog, observations) == (6, 6) and all(scene.row(topic, partition)["horizon_offset"] for partition in range(6))

    for name in RUNNING:
        kit.produce(vars(TOPICS)[name], 0, 1)  # so that something is to be flushed and committed when it goes
    pipeline = Pipeline(scene, topic)
    pipeline.start()
    try:
        eventually(lambda: all(scene.row(topic, partition)["horizon_offset"] for partition in range(3)), "the load is on its way")
        kit.add_partitions(topic, 6)
        kit.delete_topics(*(vars(TOPICS)[name] for name in RUNNING))
        for name in ("shorter", "equal"):
            make(kit, name, RUNNING[name])
        eventually(grown, "the added partitions are read and heard of")
        eventually(lambda: scene.row(TOPICS.longer)["state"] == "unknown", "the worker says that it does not know")
        make(kit, "longer", LONGER)
        report_anew(scene, RUNNING)
    finally:
        pipeline.stop()
    return Changes(pipeline.written, orders)


@pytest.fixture(scope="module")
def restarted(scene: Scene) -> Scene:
    """Topics were made anew while no worker ran; what the sink said of the old ones meanwhile was not read before."""
    assert scene.worker.stop() == 0
    for name, records in AWAY.items():
        topic = vars(TOPICS)[name]
        assert scene.kit.committed(scene.rig.app_id, topic) == OLD
        scene.observer.received(topic, 0, [40, 44], [90, 99])
        scene.kit.delete_topics(topic)
        make(scene.kit, name, records)
    scene.worker.start().ready()
    report_anew(scene, AWAY)
    return scene


@pytest.mark.usefixtures("changed")
@pytest.mark.parametrize("name", ["shorter", "equal"])
def test_T20_T22_a_topic_made_anew_at_once(scene: Scene, name: str) -> None:
    judge_anew(scene, name, RUNNING[name])


@pytest.mark.usefixtures("changed")
def test_T21_T22_a_topic_that_was_away_for_a_while(scene: Scene) -> None:
    """The worker gave its partitions up meanwhile; the new log is longer than the old position, so that no offset is out of range."""
    judge_anew(scene, "longer", LONGER)


@pytest.mark.parametrize("name", AWAY)
def test_T20_T21_T22_a_topic_made_anew_while_no_worker_ran(restarted: Scene, name: str) -> None:
    judge_anew(restarted, name, AWAY[name])


def test_T19_partitions_are_added_under_load(scene: Scene, changed: Changes) -> None:
    """Nothing is torn or falsely missing meanwhile, and nothing of the added ones is left out."""
    topic = TOPICS.growing
    for partition, records in changed.written.items():
        whole = {"records": records, "observed": records, "missing": 0, "duplicates": 0, "floor_offset": 0, "explained": {}}
        scene.await_row(topic, whole, partition)
    assert changed.written.keys() == set(range(6))
    assert changed.orders == {True}, "the changelog grows first, the observations last"
    alerts = spine.folded(scene.rig)
    assert (alerts.faults, alerts.repeats) == ([], 0)
    assert [one for one in scene.told(topic) if one["sink"] == SINK] == []
