"""Elections that lose records: a replica that lags becomes the leader, so offsets that were read are gone, or hold other records.

One such election on three brokers, seen by a worker that runs through it, by one that takes over afterwards, and by a reader.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kafka_cluster import KafkaCluster

from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.trouble import HALTS, Trouble, TroubleKind
from tests.support.kafka_kit import KafkaKit
from tests.support.leaders import await_leader, make_placed
from tests.support.log_owner import Following
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually

pytestmark = pytest.mark.timeout(240)

SAFE, LONG = 10, 30
"""Both replicas hold the offsets below the first; one of them alone, acknowledged by itself, those below the second."""
NEW = {"short": 15, "grown": 50}
"""Where the new leader's log ends when it is looked at: below what was read, or beyond it, so that no offset is out of range."""
LOST_BEFORE, LOST_AFTER = (5, 20, 21), 12
"""What the sink never says that it received: before the election, of which only the first outlives it, and after it."""
RUNNING, AWAY = "running", "away"
Gap = tuple[str, str, int, int]
"""Sink, cause, first and last offset."""
TOPICS = [f"{who}-{shape}" for who in (RUNNING, AWAY) for shape in NEW]


@dataclass
class After:
    """What is there when all of it is over."""

    rigs: dict[str, Rig]
    workers: dict[str, Worker]
    reader: Following
    """Runs through it all."""


def write(kit: KafkaKit, topic: str, until: int, what: str) -> None:
    """Records up to there, acknowledged by the leader alone."""
    first = kit.offsets(topic)[1]
    written = kit.produce(topic, 0, until - first, value=lambda number: f"{what} {first + number}".encode(), conf={"acks": "1"})
    assert written == list(range(first, until))


def row(worker: Worker, topic: str, sink: str) -> dict[str, Any]:
    rows = worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]
    return next((one for one in rows if one["worker"] is not None), {})


def await_read(worker: Worker, topic: str, stop: int) -> None:
    eventually(lambda: row(worker, topic, "log").get("log_read_offset") == stop, f"{topic} is read to {stop}")


def gaps(worker: Worker, topic: str) -> list[Gap]:
    found = worker.get(f"/api/gaps?topic={topic}")["gaps"]
    return sorted((gap["sink"], gap["cause"], gap["first_offset"], gap["last_offset"]) for gap in found)


def await_gaps(worker: Worker, topic: str, wanted: list[Gap]) -> None:
    eventually(lambda: gaps(worker, topic) == wanted, f"{topic} has the gaps {wanted}")


def billing(*offsets: int) -> list[Gap]:
    return [("billing", "not_received", offset, offset) for offset in offsets]


def report(rig: Rig, topic: str, first: int, stop: int, *lost: int) -> None:
    received = [[offset, offset] for offset in range(first, stop) if offset not in lost]
    Observer(rig.bootstrap, rig.app_id).received(topic, 0, *received)


@pytest.fixture(scope="module")
def after(kafka3: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[After]:
    """The whole course; brokers 0 and 1 have the replicas, 0 leads first."""
    kit = KafkaKit(kafka3.bootstrap)
    for topic in TOPICS:
        make_placed(kit, topic, [0, 1], **{"unclean.leader.election.enable": "true", "min.insync.replicas": "1"})
        kit.produce(topic, 0, SAFE, value=b"safe")
    sinks = {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}
    rigs = {
        who: Rig(tmp_path_factory.mktemp(who), kafka3.bootstrap, {f"{who}-{shape}": sinks for shape in NEW}, f"truncated-{who}")
        for who in (RUNNING, AWAY)
    }
    reader = Following(settings_for(kafka3), f"{RUNNING}-short")
    reader.start()
    down: set[int] = set()
    try:
        running, away = (rig.worker().start() for rig in rigs.values())
        running.ready()
        away.ready()
        kafka3.stop_broker(1)
        down.add(1)
        for topic in TOPICS:
            write(kit, topic, LONG, "old")
        for who, worker in ((RUNNING, running), (AWAY, away)):
            for shape in NEW:
                await_read(worker, f"{who}-{shape}", LONG)
                report(rigs[who], f"{who}-{shape}", 0, LONG, *LOST_BEFORE)
                await_gaps(worker, f"{who}-{shape}", [*billing(LOST_BEFORE[0]), ("billing", "not_received", *LOST_BEFORE[1:])])
        eventually(lambda: reader.read == LONG, "the reader has it too")
        away.kill()
        kafka3.stop_broker(0)
        down.add(0)
        running.signal(signal.SIGSTOP)  # it looks when all is written
        kafka3.start_broker(1)
        down.remove(1)
        for topic in TOPICS:
            await_leader(kit, topic, 1)
            assert kit.offsets(topic) == (0, SAFE)
            write(kit, topic, NEW[topic.rpartition("-")[2]], "new")
        running.signal(signal.SIGCONT)
        taking_over = rigs[AWAY].worker().start()
        kafka3.start_broker(0)
        down.remove(0)
        taking_over.ready()
        yield After(rigs, {RUNNING: running, AWAY: taking_over}, reader)
    finally:
        reader.finish()
        for rig in rigs.values():
            rig.close()
        for broker in down:
            kafka3.start_broker(broker)
        kit.close()
        kit.delete_topics(*TOPICS)


def settings_for(cluster: KafkaCluster) -> KafkaSettings:
    servers = [one.rpartition(":") for one in cluster.bootstrap.split(",")]
    return KafkaSettings(tuple((host, int(port)) for host, _, port in servers))


def events(rig: Rig, topic: str) -> list[dict[str, Any]]:
    found = (json.loads(message.value() or b"") for message in rig.read(f"{rig.app_id}.alerts"))
    return [one for one in found if one["topic"] == topic]


@pytest.mark.parametrize("who", [RUNNING, AWAY])
@pytest.mark.parametrize("shape", [pytest.param("short", id="t28-short"), pytest.param("grown", id="t29-grown")])
def test_t28_t29_an_election_that_lost_records_is_told_once(after: After, who: str, shape: str) -> None:
    topic, rig, worker = f"{who}-{shape}", after.rigs[who], after.workers[who]
    end = NEW[shape]
    await_read(worker, topic, end)
    await_gaps(worker, topic, billing(LOST_BEFORE[0]))  # what was open above is closed, what was open below is not
    told = events(rig, topic)
    cut = [one for one in told if one["type"] == "log.truncated"]
    assert [(one["sink"], one["ranges"], one["count"]) for one in cut] == [("log", [[SAFE, LONG - 1]], LONG - SAFE)]
    assert cut[0]["severity"] == "critical"
    of_sink = [(one["type"], one["ranges"]) for one in told if one["sink"] == "billing"]
    lost = [[LOST_BEFORE[0]] * 2, [LOST_BEFORE[1], LOST_BEFORE[2]]]
    assert of_sink[-1] == ("gap.explained", lost[1:])
    assert [ranges for kind, ranges in of_sink if kind == "gap.opened"] in ([lost], [lost[:1], lost[1:]])
    assert [one["reason"].partition(":")[0] for one in told if one["type"] == "gap.explained"] == ["truncated"]
    # The new records are judged as if nothing had ever been there: received for the first time, and lost for the first time.
    report(rig, topic, SAFE, end, LOST_AFTER)
    await_gaps(worker, topic, billing(LOST_BEFORE[0], LOST_AFTER))

    def counts() -> tuple[int, int, int]:
        now = row(worker, topic, "billing")
        return now["horizon_offset"], now["duplicates"], now["missing"]

    eventually(lambda: counts() == (end, 0, 2), f"received once, two are missing; found {counts()}")
    assert "Traceback" not in worker.log.read_text()


def test_t63_two_values_at_one_offset_read_by_two_workers(after: After, kafka3: KafkaCluster) -> None:
    """The first worker read the old records, the second one the new ones under the same offsets: the epochs tell it."""
    kit = KafkaKit(kafka3.bootstrap)
    topic = f"{AWAY}-grown"
    values = [message.value() for message in kit.read(topic, first=SAFE)]
    assert values == [f"new {offset}".encode() for offset in range(SAFE, NEW["grown"])]
    assert after.rigs[AWAY].workers[0].process is not after.workers[AWAY].process

    def of_log() -> list[dict[str, Any]]:
        return [one for one in events(after.rigs[AWAY], topic) if one["sink"] == "log"]

    eventually(of_log, "the second worker has met the new records")
    await_read(after.workers[AWAY], topic, NEW["grown"])
    told = of_log()
    assert [(one["type"], one["ranges"]) for one in told] == [("log.truncated", [[SAFE, LONG - 1]])]
    assert f"was truncated to offset {SAFE} after offsets up to {LONG} were read" in told[0]["reason"]


def test_t28_a_reader_that_runs_through_it_stops_there(after: After) -> None:
    def halts() -> list[Trouble]:
        return [one for one in after.reader.troubles if one.kind in HALTS]

    eventually(halts, "it has met the new leader")
    after.reader.finish()
    assert [(one.kind, one.position, one.end_offset) for one in halts()] == [(TroubleKind.TRUNCATED, LONG, SAFE)]
