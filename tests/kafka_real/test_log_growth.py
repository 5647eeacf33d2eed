"""A watched topic grows, and an observations topic is lost: while a worker runs, and while none does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

SINKS = {"sinks": {"billing": {"type": "consumer", "grace": "200ms", "from": "latest"}}}


def told(rig: Rig, topic: str, kind: str) -> list[tuple[int, str, int, Any]]:
    """Partition, sink, sequence and ranges of the events of one type, in the order of partitions."""
    events = [json.loads(message.value() or b"") for message in rig.read(f"{rig.app_id}.alerts")]
    return sorted((e["partition"], e["sink"], e["sequence"], e["ranges"]) for e in events if e["topic"] == topic and e["type"] == kind)


def read(worker: Worker, topic: str) -> dict[int, int]:
    """Records read, by partition."""
    rows = worker.get(f"/api/partitions?topic={topic}&sink=log")["partitions"]
    return {row["partition"]: row["records"] for row in rows if row["worker"] is not None and row["state"] != "unknown"}


def row(worker: Worker, topic: str) -> dict[str, Any]:
    return dict(worker.get(f"/api/partitions?topic={topic}&sink=billing")["partitions"][0])


@pytest.fixture(scope="module")
def grown(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> tuple[Rig, str, str]:
    """One topic that grows while it is watched, one while nobody watches, one whose observations are deleted."""
    topic, forgotten = shared_kit.make_topic(3), shared_kit.make_topic(1)
    for partition in range(3):
        shared_kit.produce(topic, partition, 10)
    shared_kit.produce(forgotten, 0, 20)
    rig = make_rig({topic: SINKS, forgotten: {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}})
    worker = rig.worker().start().ready()
    eventually(lambda: read(worker, topic) == {0: 10, 1: 10, 2: 10}, "all three are read")
    shared_kit.add_partitions(topic, 5)
    for partition in range(5):
        shared_kit.produce(topic, partition, 7)
    eventually(lambda: read(worker, topic) == {0: 17, 1: 17, 2: 17, 3: 7, 4: 7}, "those that were added too")
    assert worker.stop() == 0
    shared_kit.add_partitions(topic, 6)
    shared_kit.produce(topic, 5, 4)
    worker.start().ready()
    eventually(lambda: read(worker, topic) == {0: 17, 1: 17, 2: 17, 3: 7, 4: 7, 5: 4}, "what was added while nobody worked")
    return rig, topic, forgotten


def test_T19_added_partitions_are_told_once_and_answered_for_from_their_start(grown: tuple[Rig, str, str]) -> None:  # noqa: N802  # its id in cases
    rig, topic, _ = grown
    worker = rig.workers[0]
    assert told(rig, topic, "log.expanded") == [(partition, "log", 1, None) for partition in (3, 4, 5)]
    observer = Observer(rig.bootstrap, rig.app_id)
    observer.received(topic, 0, [10, 16])
    observer.received(topic, 3, [2, 6])
    observer.received(topic, 5, [0, 0], [3, 3])
    wanted = {(topic, 3, "billing"): {0, 1}, (topic, 5, "billing"): {1, 2}}
    eventually(lambda: listed(worker.get(f"/api/gaps?topic={topic}")) == wanted, "what the sink lacks of the added ones, nothing else")


def test_what_was_reported_on_a_deleted_observations_topic_is_unobserved(grown: tuple[Rig, str, str], shared_kit: KafkaKit) -> None:
    rig, _, topic = grown
    worker = rig.workers[0]
    observer = Observer(rig.bootstrap, rig.app_id)
    observer.received(topic, 0, [0, 9])
    eventually(lambda: row(worker, topic)["horizon_offset"] == 10, "the first report")
    observations = f"{rig.app_id}.observations.{topic}"
    shared_kit.delete_topics(observations)
    eventually(lambda: observations in shared_kit.admin.list_topics(timeout=10).topics, "the worker makes it again")
    shared_kit.produce(topic, 0, 10)

    def heard() -> bool:
        """A report that was written before the worker noticed is read again from the beginning, so it may be repeated."""
        observer.received(topic, 0, [12, 12], [25, 25])
        return bool(row(worker, topic)["horizon_offset"] == 26)

    eventually(heard, "the new topic is heard")

    def verdicts() -> tuple[int, set[int]]:
        """Offsets that are unobserved, those that are missing; the two come one after the other."""
        missing = listed(worker.get(f"/api/gaps?topic={topic}")).get((topic, 0, "billing"), set())
        return row(worker, topic)["explained"].get("unobserved", 0), missing

    eventually(lambda: (found := verdicts())[0] + len(found[1]) == 14, "a verdict on all that lacks")
    unobserved, missing = verdicts()
    assert missing <= set(range(20, 25)), "of what was there when the reports were lost nothing is missing"
    assert unobserved + len(missing) == 14
    assert told(rig, topic, "gap.explained")[0][3][0][0] == 10
