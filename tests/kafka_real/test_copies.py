"""A topic as a sink: copies with their source in headers, dead letters, restarts, and copies that were removed unread."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, Worker, eventually, listed

PARTITIONS, RECORDS = 3, 100
Headers = list[tuple[str, str | bytes | None]]


def rows(worker: Worker, topic: str) -> dict[int, dict[str, Any]]:
    return {row["partition"]: row for row in worker.get(f"/api/partitions?topic={topic}&sink=copy")["partitions"]}


def events(rig: Rig) -> list[dict[str, Any]]:
    return [json.loads(message.value() or b"") for message in rig.read(f"{rig.app_id}.alerts")]


def opened(rig: Rig) -> set[int]:
    """All offsets that ever were told as missing."""
    told = [event["ranges"] for event in events(rig) if event["type"] == "gap.opened"]
    return {offset for ranges in told for first, last in ranges for offset in range(first, last + 1)}


def checked(rig: Rig) -> list[dict[str, Any]]:
    return [event for event in events(rig) if event["sink"] == "copy" and event["type"] in ("sink.unknown", "sink.known")]


class Copier:
    """Copies what it is told to, as an application or Kafka Connect would."""

    def __init__(self, bootstrap: str, topic: str, into: str) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "log_level": 2})
        self.topic, self.into = topic, into

    def headers(self, partition: int, offset: int, *, big_endian: bool = False) -> Headers:
        numbers = [struct.pack(">q", number) if big_endian else str(number).encode() for number in (partition, offset)]
        return [("source.topic", self.topic), ("source.partition", numbers[0]), ("source.offset", numbers[1])]

    def copy(self, partition: int, offsets: list[int], *, big_endian: bool = False) -> None:
        for offset in offsets:
            headers = self.headers(partition, offset, big_endian=big_endian)
            self._producer.produce(self.into, b"copy", partition=offset % 2, headers=headers)
        assert self._producer.flush(20) == 0

    def dead_letter(self, into: str, partition: int, offset: int) -> None:
        names = ("topic", "partition", "offset")
        values = (self.topic, str(partition), str(offset))
        headers: Headers = [(f"__connect.errors.{name}", value.encode()) for name, value in zip(names, values, strict=True)]
        self._producer.produce(into, b"bad", headers=headers)
        assert self._producer.flush(20) == 0


@pytest.fixture(scope="module")
def mirrored(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> tuple[Rig, Copier, str]:
    topic, into, letters = shared_kit.make_topic(PARTITIONS), shared_kit.make_topic(2), shared_kit.make_topic(1)
    for partition in range(PARTITIONS):
        shared_kit.produce(topic, partition, RECORDS)
    sink = {"type": "topic", "topic": into, "quarantine": {"topic": letters, "headers": "connect"}, "grace": "500ms", "from": "earliest"}
    remote, away = shared_kit.make_topic(1), {"type": "topic", "topic": "orders", "kafka": {"bootstrap.servers": "127.0.0.1:1"}}
    shared_kit.produce(remote, 0, 5)
    rig = make_rig(
        {topic: {"sinks": {"copy": sink}}, remote: {"sinks": {"remote": away}}}, app={"standby_replicas": 0, "unknown_after": "3s"}
    )
    rig.worker().start().ready()
    return rig, Copier(rig.bootstrap, topic, into), letters


def test_a_topic_as_a_sink(mirrored: tuple[Rig, Copier, str], shared_kit: KafkaKit) -> None:
    rig, copier, letters = mirrored
    what_was_not_copied_is_missing_and_what_was_set_aside_is_explained(rig, copier, letters)
    restarts_repeat_nothing_and_leave_nothing_out(rig, copier, shared_kit)
    copies_removed_unread_make_unobserved_never_missing(rig, copier, shared_kit)
    a_topic_made_anew_is_read_from_its_beginning(rig, copier, shared_kit)


def what_was_not_copied_is_missing_and_what_was_set_aside_is_explained(rig: Rig, copier: Copier, letters: str) -> None:
    """Beside headers that can't be right: of what is not written yet, or never will be, and of a partition that is not there."""
    worker = rig.workers[0]
    for partition in range(PARTITIONS):
        skipped, wrong = {5, 6, 50 + partition}, [RECORDS, RECORDS + 1, 10**9, 10**9 + 1]
        good = [offset for offset in range(RECORDS) if offset not in skipped]
        copier.copy(partition, [*good[:20], *wrong, *good[20:]], big_endian=partition == 2)
        copier.dead_letter(letters, partition, 50 + partition)
    copier.copy(PARTITIONS + 4, [0, 1])
    copier.copy(1, [10, 11])
    wanted = {(copier.topic, partition, "copy"): {5, 6} for partition in range(PARTITIONS)}
    eventually(lambda: listed(worker.get(f"/api/gaps?topic={copier.topic}")) == wanted, "what was skipped, no more")
    eventually(lambda: all(row["explained"] == {"quarantined": 1} for row in rows(worker, copier.topic).values()), "the dead letters")
    assert {partition: row["duplicates"] for partition, row in rows(worker, copier.topic).items()} == {0: 0, 1: 2, 2: 0}
    assert 'gapstream_observations_rejected_total{reason="beyond_end"}' in worker.text("/metrics")
    assert "copies are of partitions that are not there" in worker.log.read_text()


def restarts_repeat_nothing_and_leave_nothing_out(rig: Rig, copier: Copier, shared_kit: KafkaKit) -> None:
    worker = rig.workers[0]
    for turn in range(2):
        for partition in range(PARTITIONS):
            shared_kit.produce(copier.topic, partition, 20)
            first = RECORDS + 20 * turn
            copier.copy(partition, [offset for offset in range(first, first + 20) if offset != first + 3])
        worker.kill()
        worker.start()
    second = rig.worker().start()
    copier.copy(0, [5])
    worker.ready()
    second.ready()
    lost = {RECORDS + 3, RECORDS + 23}
    wanted = {(copier.topic, partition, "copy"): {6, *lost} | ({5} if partition else set()) for partition in range(PARTITIONS)}
    eventually(lambda: listed(worker.get(f"/api/gaps?topic={copier.topic}")) == wanted, "what was skipped, no more", 90)
    assert {partition: row["duplicates"] for partition, row in rows(worker, copier.topic).items()} == {0: 0, 1: 2, 2: 0}
    said = [json.loads(message.value() or b"") for message in rig.read(f"{rig.app_id}.observations.{copier.topic}")]
    sequences = [(one["partition"], one["source"], one["sequence"]) for one in said]
    assert len(sequences) == len(set(sequences))
    assert opened(rig) == {5, 6, *lost}

    second.kill()  # for the session timeout nobody reads its partitions of the copies
    for partition in range(PARTITIONS):
        shared_kit.produce(copier.topic, partition, 10)
        copier.copy(partition, list(range(RECORDS + 40, RECORDS + 50)))

    def accounted() -> set[int]:  # one is quarantined
        return {row["observed"] + row["missing"] + 1 for row in rows(worker, copier.topic).values()}

    eventually(lambda: accounted() == {RECORDS + 50}, "all is read in the end")
    assert opened(rig) == {5, 6, *lost}


def copies_removed_unread_make_unobserved_never_missing(rig: Rig, copier: Copier, shared_kit: KafkaKit) -> None:
    worker = rig.workers[0]
    before = listed(worker.get(f"/api/gaps?topic={copier.topic}"))
    assert worker.stop() == 0
    first = RECORDS + 50
    for partition in range(PARTITIONS):
        shared_kit.produce(copier.topic, partition, 30)
        copier.copy(partition, list(range(first, first + 20)))
    for number in (0, 1):
        shared_kit.delete_records(copier.into, number, shared_kit.offsets(copier.into, number)[1])
    worker.start().ready()
    for partition in range(PARTITIONS):
        copier.copy(partition, list(range(first + 25, first + 30)))
    eventually(lambda: all(row["horizon_offset"] == first + 30 for row in rows(worker, copier.topic).values()), "the last copies", 90)
    eventually(
        lambda: all((row["explained"].get("unobserved") or 0) >= 20 for row in rows(worker, copier.topic).values()), "what is not known"
    )
    assert listed(worker.get(f"/api/gaps?topic={copier.topic}")).keys() <= before.keys()


def a_topic_made_anew_is_read_from_its_beginning(rig: Rig, copier: Copier, shared_kit: KafkaKit) -> None:
    worker, first = rig.workers[0], RECORDS + 80
    eventually(lambda: all(row["state"] != "unknown" for row in rows(worker, copier.topic).values()), "all is well")
    told_before = Counter(event["type"] for event in checked(rig))
    shared_kit.delete_topics(copier.into)
    eventually(lambda: all(row["state"] == "unknown" for row in rows(worker, copier.topic).values()), "it can't be read")
    reason = f"topic {copier.into}: there is no such topic, or this principal may not describe it"
    assert {row["reason"] for row in rows(worker, copier.topic).values()} == {reason}
    before = {partition: row["duplicates"] for partition, row in rows(worker, copier.topic).items()}
    shared_kit.make_topic(2, name=copier.into)
    eventually(lambda: all(row["state"] != "unknown" for row in rows(worker, copier.topic).values()), "it is read again")
    for partition in range(PARTITIONS):
        shared_kit.produce(copier.topic, partition, 20)
        copier.copy(partition, [offset for offset in range(first, first + 20) if offset != first + 11])
    copier.copy(0, [first])
    wanted = {(copier.topic, partition, "copy"): {first + 11} for partition in range(PARTITIONS)}
    eventually(lambda: listed(worker.get(f"/api/gaps?topic={copier.topic}")) == wanted, "what was not copied into the new one")
    assert {partition: row["duplicates"] for partition, row in rows(worker, copier.topic).items()} == before | {0: before[0] + 1}
    told = Counter(event["type"] for event in checked(rig)) - told_before
    assert told == {"sink.unknown": PARTITIONS, "sink.known": PARTITIONS}
    lines = [line for line in worker.log.read_text().splitlines() if "a topic of copies can't be read now" in line and copier.into in line]
    assert 1 <= len(lines) <= 2, "once a minute"

    shared_kit.add_partitions(copier.into, 3)
    producer = shared_kit.transactional_producer()
    producer.begin_transaction()
    shared_kit.produce(copier.topic, 0, 10)
    for offset in range(first + 20, first + 30):
        if offset != first + 24:
            producer.produce(copier.into, b"copy", partition=2, headers=copier.headers(0, offset))
    producer.commit_transaction(20)
    wanted[copier.topic, 0, "copy"].add(first + 24)
    eventually(lambda: listed(worker.get(f"/api/gaps?topic={copier.topic}")) == wanted, "what is not in the added partition either")


def test_a_topic_of_copies_on_another_cluster_that_is_away_is_waited_for(mirrored: tuple[Rig, Copier, str]) -> None:
    worker = mirrored[0].workers[0].ready()

    def row() -> Any:
        return next(row for row in worker.get("/api/partitions?sink=remote")["partitions"])

    eventually(lambda: row()["log_read_offset"] == 5, "the log is read")
    eventually(lambda: "can't be reached" in (row()["reason"] or ""), "it is said why")
    assert (row()["state"], row()["missing"], row()["lag"]) == ("unknown", None, None)
