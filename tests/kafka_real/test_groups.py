"""Consumer groups on real brokers: commits forward, over what retention took, back, and while the worker was away."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Alerts, Rig, Worker, eventually, listed

GRACE = {"grace": "200ms"}


@dataclass
class Watched:
    """A topic with 100 records in each partition, and the group that reads it."""

    kit: KafkaKit
    worker: Worker
    topic: str
    group: str

    def commit(self, partition: int, offset: int) -> None:
        """As an application without members, or kafka-consumer-groups, does it."""
        client = Consumer({"bootstrap.servers": self.kit.bootstrap, "group.id": self.group, "log_level": 2})
        try:
            client.commit(offsets=[TopicPartition(self.topic, partition, offset)], asynchronous=False)
        finally:
            client.close()

    def row(self, sink: str, partition: int = 0) -> dict[str, Any]:
        rows = self.worker.get(f"/api/partitions?topic={self.topic}&sink={sink}")["partitions"]
        return next((row for row in rows if row["partition"] == partition), {})

    def reaches(self, sink: str, horizon: int, partition: int = 0) -> dict[str, Any]:
        """Wait until the sink's horizon is there; the row."""
        eventually(lambda: self.row(sink, partition).get("horizon_offset") == horizon, f"{sink} at {horizon}")
        return self.row(sink, partition)

    def gaps(self, sink: str) -> set[tuple[int, int]]:
        """Partition and offset of all that is missing."""
        found = listed(self.worker.get(f"/api/gaps?topic={self.topic}&sink={sink}"))
        return {(partition, offset) for (_, partition, _), offsets in found.items() for offset in offsets}

    def events(self, sink: str, *types: str) -> list[dict[str, Any]]:
        """A sink's on the alerts topic, where all of them must be in order and without holes."""
        alerts, found = Alerts(), []
        for message in self.worker.rig.read(f"{self.worker.rig.app_id}.alerts"):
            alerts.take(message)
            found.append(json.loads(message.value() or b""))
        assert alerts.faults == []
        return [event for event in found if (event["topic"], event["sink"]) == (self.topic, sink) and event["type"] in types]


@pytest.fixture(scope="module")
def worker(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Worker:
    loaded, billed, fresh, beacon = (shared_kit.make_topic(partitions) for partitions in (3, 1, 2, 1))
    for topic, partition in ((loaded, 0), (loaded, 1), (loaded, 2), (billed, 0), (fresh, 0), (fresh, 1), (beacon, 0)):
        shared_kit.produce(topic, partition, 100)
    loader = f"loader {loaded}"
    sinks = {
        "legacy": {"type": "group", "group": loader, "stall_after": "1h", **GRACE},  # whichever test comes first
        "strict": {"type": "group", "group": loader, "from": "earliest", "stall_after": "1s", **GRACE},
    }
    billing = {"billing": {"type": "consumer", "group": f"group-{billed}", **GRACE}}
    late = {"type": "group", "group": f"late {fresh}", **GRACE}
    newcomers = {"newcomer": {**late, "from": "earliest"}, "someday": late}
    topics = {loaded: sinks, billed: billing, fresh: newcomers, beacon: {"beacon": late}}
    rig = make_rig({topic: {"sinks": of_it} for topic, of_it in topics.items()}, app={"unknown_after": "4s"})
    made = rig.worker().start()
    loading = Watched(shared_kit, made, loaded, loader)
    loading.commit(0, 10)
    loading.commit(1, 0)
    return made.ready()


@pytest.fixture
def loaded(worker: Worker, shared_kit: KafkaKit) -> Watched:
    topic = next(line["topic"] for line in worker.get("/api/status")["status"] if line["sink"] == "legacy")
    return Watched(shared_kit, worker, topic, f"loader {topic}")


@pytest.fixture
def billed(worker: Worker, shared_kit: KafkaKit) -> Watched:
    topic = next(line["topic"] for line in worker.get("/api/status")["status"] if line["sink"] == "billing")
    return Watched(shared_kit, worker, topic, f"group-{topic}")


def test_a_group_that_nobody_can_touch(loaded: Watched) -> None:
    row = loaded.reaches("legacy", 10)
    assert (row["observed"], row["state"], row["lag"]) == (0, "ok", 90)
    assert loaded.reaches("strict", 10)["observed"] == 10, "it answers from the log's start"
    assert loaded.reaches("legacy", 0, 1)["lag"] == 100, "a commit of 0 is one"

    loaded.commit(0, 40)
    row = loaded.reaches("legacy", 40)
    assert (row["observed"], row["missing"], row["duplicates"], row["lag"]) == (30, 0, 0, 60)
    assert "alone" in row["reason"]

    eventually(lambda: loaded.row("strict", 2).get("state") == "stalled", "the partition that it never touches")
    row = loaded.row("strict", 2)
    assert (row["horizon_offset"], row["lag"], row["missing"], row["reason"]) == (None, None, None, "never heard of in this partition")
    assert 2 in {event["partition"] for event in loaded.events("strict", "sink.stalled")}

    loaded.kit.delete_records(loaded.topic, 0, 60)
    eventually(lambda: loaded.row("legacy")["log_start_offset"] == 60, "the log's start is known")
    loaded.commit(1, 5)
    loaded.reaches("legacy", 5, 1)  # one question asks for both partitions: the other's commit was seen to be 40 still
    loaded.commit(0, 80)
    loaded.reaches("legacy", 80)
    taken = {(0, offset) for offset in range(40, 60)}
    eventually(lambda: loaded.gaps("legacy") == taken, "exactly what retention took first")
    assert loaded.row("legacy")["observed"] == 50
    opened = [(event["cause"], event["ranges"], event["severity"]) for event in loaded.events("legacy", "gap.opened")]
    assert opened == [("expired", [[40, 59]], "critical")]

    assert loaded.worker.stop() == 0
    loaded.commit(0, 90)
    loaded.worker.start().ready()
    row = loaded.reaches("legacy", 90)
    assert (row["observed"], row["duplicates"]) == (60, 0), "the move while nobody looked counts once"

    loaded.commit(0, 70)
    behind = f"group {loaded.group} went back from 90 and is at 70"
    eventually(lambda: loaded.row("legacy")["reason"] == behind, "it is behind")
    assert loaded.row("legacy")["horizon_offset"] == 90
    rewinds = [(event["severity"], event["reason"]) for event in loaded.events("legacy", "sink.rewound")]
    assert rewinds == [("warning", f"group {loaded.group} went back from 90 to 70")]
    assert loaded.gaps("legacy") == taken


def test_what_retention_took_before_the_first_commit(worker: Worker, shared_kit: KafkaKit) -> None:
    lines = {line["sink"]: line["topic"] for line in worker.get("/api/status")["status"]}
    fresh, beacon = (Watched(shared_kit, worker, lines[sink], f"late {lines['newcomer']}") for sink in ("newcomer", "beacon"))

    def first_commit(partition: int, start: int, commit: int) -> None:
        eventually(lambda: fresh.row("newcomer", partition).get("log_read_offset") == 100, "the records are read before they go")
        shared_kit.delete_records(fresh.topic, partition, start)
        eventually(lambda: fresh.row("newcomer", partition)["log_start_offset"] == start, "the log's start is known")
        beacon.commit(0, commit)
        beacon.reaches("beacon", commit)  # one question asks for both topics: here the group was seen to have no commit
        assert fresh.row("newcomer", partition)["horizon_offset"] is None
        fresh.commit(partition, commit)
        fresh.reaches("newcomer", commit, partition)
        taken = {(partition, offset) for offset in range(start)}
        eventually(lambda: {at for at in fresh.gaps("newcomer") if at[0] == partition} == taken, "exactly what retention took first")
        row = fresh.row("newcomer", partition)
        assert (row["observed"], row["missing"], row["explained"], row["floor_offset"]) == (commit - start, start, {}, 0)
        row = fresh.reaches("someday", commit, partition)  # its floor is the first commit: all that was taken is before its time
        assert (row["floor_offset"], row["observed"], row["missing"], row["explained"]) == (commit, 0, 0, {})

    first_commit(0, 60, 80)  # it is heard of nowhere in the topic yet
    first_commit(1, 30, 100)
    told = sorted((event["partition"], event["cause"], event["ranges"]) for event in fresh.events("newcomer", "gap.opened"))
    assert told == [(0, "expired", [[0, 59]]), (1, "expired", [[0, 29]])]
    assert fresh.events("newcomer", "gap.explained") == []


def test_a_sink_that_reports_is_late_by_its_commits(billed: Watched) -> None:
    billed.commit(0, 0)
    billed.reaches("billing", 0)
    Observer(billed.kit.bootstrap, billed.worker.rig.app_id).received(billed.topic, 0, [0, 4], [7, 19])
    eventually(lambda: billed.row("billing")["observed"] == 18, "the report")
    billed.commit(0, 5)
    billed.reaches("billing", 5)
    assert billed.gaps("billing") == set(), "what it has not committed past is not late"
    billed.commit(0, 12)
    eventually(lambda: billed.gaps("billing") == {(0, 5), (0, 6)}, "what it committed and did not report")

    billed.kit.admin.delete_consumer_groups([billed.group])[billed.group].result(30)
    eventually(lambda: billed.row("billing")["state"] == "unknown", "commits that are gone make it unknown")
    row = billed.row("billing")
    assert row["reason"] == f"group {billed.group} has no commit for this partition any more; it was 12"
    assert (row["horizon_offset"], row["missing"]) == (12, 2), "counts keep their last value"
    billed.commit(0, 20)
    billed.reaches("billing", 20)
    eventually(lambda: billed.row("billing")["state"] == "gaps", "it is known again")
    told = [event["type"] for event in billed.events("billing", "sink.unknown", "sink.known", "sink.rewound")]
    assert told == ["sink.unknown", "sink.known"]


def test_a_sink_in_no_configuration_is_dropped(loaded: Watched) -> None:
    observer = Observer(loaded.kit.bootstrap, loaded.worker.rig.app_id, "stranger")
    for partition in range(3):
        observer.say(loaded.topic, partition, [[60, 69]])
    observer.flush()
    eventually(lambda: all(loaded.row("stranger", partition).get("observed") for partition in range(3)), "it is listed")
    assert loaded.worker.cli("sink", "drop", loaded.topic, "legacy").returncode == 2
    ran = loaded.worker.cli("sink", "drop", loaded.topic, "stranger")
    assert (ran.returncode, ran.stderr) == (0, "")
    eventually(lambda: not any(loaded.row("stranger", partition) for partition in range(3)), "it is gone")
