"""The log's long scenarios: those of a minute or more."""

from __future__ import annotations

import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from kafka_cluster import KafkaCluster
from prometheus_client.parser import text_string_to_metric_families

from tests.campaign.log_anew import made_anew
from tests.campaign.log_faults import Found, clean_moves, kills_and_pauses, unclean_elections
from tests.campaign.mix import Mix, Topic
from tests.campaign.oracles import Archive
from tests.campaign.scenario import Ground, Outcome, Scenario
from tests.campaign.subject import Subject
from tests.support.dump_log import Dumper
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually

SINK = "billing"
PATIENCE_S = 240.0
OPEN_S = 300.0
COMMITS = 20_000
KILLS = 100
TAIL = 5
"""Aborted transactions behind the last committed one."""
_WRITERS = 4
_GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
_SINKS = {"sinks": {SINK: {"type": "consumer", "grace": "0s", "from": "earliest"}}}


def _row(worker: Worker, sink: str = "log") -> dict[str, Any]:
    """The row of the only partition."""
    (row,) = worker.get(f"/api/partitions?sink={sink}")["partitions"]
    return dict(row)


# --- T09 --------------------------------------------------------------------------------------------------------------


def open_transaction(ground: Ground) -> Outcome:
    """One producer leaves its transaction open, others write on."""
    seconds = ground.scaled(OPEN_S, 15)
    kit = KafkaKit(ground.bootstrap)
    topic = kit.make_topic()
    rig = Rig(ground.folder / "app", ground.bootstrap, {topic: _SINKS}, "t09")
    holder = kit.transactional_producer(timeout_ms=round((OPEN_S + 300) * 1000))
    try:
        worker = rig.worker().start().ready(PATIENCE_S)
        records = set(kit.produce(topic, 0, 100))
        holder.begin_transaction()
        held = _write(holder, topic, 3)
        first = held[0]
        observer = Observer(ground.bootstrap, rig.app_id, SINK)
        observer.received(topic, 0, [0, first - 1], claim=first)
        made, seen, held_for = _write_beside(ground, kit, worker, topic, first, seconds)
        records |= seen
        holder.commit_transaction(PATIENCE_S)
        records |= set(held)
        stop = kit.offsets(topic)[1]
        eventually(lambda: _row(worker)["log_read_offset"] == stop, "all is read after the commit", PATIENCE_S)
        row = _row(worker)
        observer.received(topic, 0, *([offset, offset] for offset in sorted(records) if offset >= first), claim=stop)
        eventually(lambda: _row(worker, SINK)["horizon_offset"] == stop, "the claim is taken", PATIENCE_S)
        time.sleep(2)  # a verdict that is wrong would be told within it
        gaps = len(worker.get("/api/gaps")["gaps"])
        risen = held_for == sorted(held_for) and held_for[-1] - held_for[0] > seconds / 2
        back = eventually(lambda: _held_s(worker) == 0.0, "the metric is 0 again", PATIENCE_S)
    finally:
        rig.close()
        holder.close()
    absent = {"transaction_marker": stop - len(records)}
    wanted = f"read to {first} for {seconds} s, 0 gaps, metric rises, then 0; {len(records)} records, absent {absent} in the end"
    metric = ("rises" if risen else f"is {held_for[-3:]}") + (", then 0" if back else "")
    found = f"read to {first} for {seconds} s, {gaps} gaps, metric {metric}; {row['records']} records, absent {row['absent']} in the end"
    return Outcome(wanted, found, made, [f"metric: {held_for}"])


def _write_beside(
    ground: Ground, kit: KafkaKit, worker: Worker, topic: str, first: int, seconds: float
) -> tuple[int, set[int], list[float]]:
    """Write every second by other producers; how often the product was right about the open end, what was written, the metric."""
    made, written, held_for = 0, set[int](), []
    other = kit.transactional_producer()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            written.update(kit.produce(topic, 0, 2))
            other.begin_transaction()
            written.update(_write(other, topic, 2))
            other.commit_transaction(PATIENCE_S)
            stable, high = kit.offsets(topic, isolation="read_committed")[1], kit.offsets(topic)[1]
            assert stable == first < high, "the transaction is open, and others have written"
            eventually(lambda: _row(worker)["log_read_offset"] == first, "it has read to the open transaction")
            row = _row(worker)
            assert (row["missing"], row["records"], worker.get("/api/gaps")["gaps"]) == (0, 100, []), row
            why = worker.get(f"/api/explain?topic={topic}&partition=0&first={first - 1}&last={high - 1}")["runs"]
            assert [(run["first_offset"], run["verdict"]) for run in why[:2]] == [(first - 1, "record"), (first, "open")], why
            assert {run["verdict"] for run in why[1:]} == {"open"}, why
            held_for.append(_held_s(worker))
            made += 1
            time.sleep(1)
        ground.say(f"T09: open for {seconds} s, {len(written)} records behind it, metric at {held_for[-1]} s")
    finally:
        other.close()
    return made, written, held_for


def _held_s(worker: Worker) -> float:
    """The metric; -1 where there is none."""
    with urllib.request.urlopen(f"{worker.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return next((sample.value for sample in samples if sample.name == "gapstream_log_open_transaction_seconds"), -1.0)


def _write(producer: Producer, topic: str, number: int) -> list[int]:
    """Records of a transaction that is open; their offsets."""
    offsets: list[int] = []

    def delivered(error: object, message: Any) -> None:
        assert error is None, error
        offsets.append(message.offset())

    for _ in range(number):
        producer.produce(topic, b"value", partition=0, on_delivery=delivered)
    assert producer.flush(PATIENCE_S) == 0
    return offsets


# --- T02, T03 ---------------------------------------------------------------------------------------------------------


def many_commits(ground: Ground, per_transaction: int) -> Outcome:
    """Very many small transactions, some aborted ones at the end; then everything is at rest."""
    commits = ground.scaled(COMMITS, 100)
    kit = KafkaKit(ground.bootstrap)
    topic = kit.make_topic()
    rig = Rig(ground.folder / "app", ground.bootstrap, {topic: _SINKS}, f"commits-{per_transaction}")
    try:
        worker = rig.worker().start().ready(PATIENCE_S)
        done = _commit(ground, kit, topic, commits, per_transaction)
        for _ in range(TAIL):
            kit.transact(topic, 0, per_transaction, commit=False)
        stop = kit.offsets(topic)[1]
        eventually(lambda: _row(worker)["log_read_offset"] == stop, "all is read", PATIENCE_S)
        got = [message.offset() for message in kit.read(topic)]
        row = _row(worker)
        lag = _lag(ground, rig.app_id, topic)
    finally:
        rig.close()
    absent = {"transaction_marker": done + TAIL, "aborted": TAIL * per_transaction}
    wanted = f"{len(got)} records, absent {absent}, 0 missing, lag 0"
    found = f"{row['records']} records, absent {row['absent']}, {row['missing']} missing, lag {lag}"
    details = [f"{commits} commits asked for, {done} done; the log ends at {stop}", str(row)]
    return Outcome(wanted, found, done if len(got) == done * per_transaction else 0, details)


def _commit(ground: Ground, kit: KafkaKit, topic: str, commits: int, per_transaction: int) -> int:
    """Commit so many transactions, by several producers at once; how many were."""
    done = [0] * _WRITERS

    def write(number: int) -> None:
        producer = kit.transactional_producer()
        try:
            for _ in range(commits // _WRITERS):
                producer.begin_transaction()
                for _ in range(per_transaction):
                    producer.produce(topic, b"value", partition=0)
                producer.commit_transaction(PATIENCE_S)
                done[number] += 1
        finally:
            producer.close()

    threads = [threading.Thread(target=write, args=(number,), name=f"writer {number}") for number in range(_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(20)
            ground.say(f"{sum(done):,} of {commits:,} transactions committed")
    return sum(done)


def _lag(ground: Ground, group: str, topic: str) -> str:
    """What kafka-consumer-groups shows as the group's lag on the topic, once it is 0; or what it shows in the end."""
    last = "nothing"

    def none() -> bool:
        nonlocal last
        shown = ground.cluster.tool(_GROUPS, "--bootstrap-server", ground.bootstrap, "--describe", "--group", group)
        found = re.search(rf"^{re.escape(group)}\s+{re.escape(topic)}\s+0\s+(\S+)\s+(\S+)\s+(\S+)", shown, re.MULTILINE)
        last = found[3] if found else shown
        return last == "0"

    try:
        eventually(none, "no lag", 60)
    except AssertionError:
        return last
    return last


# --- T39 --------------------------------------------------------------------------------------------------------------


def kills(ground: Ground) -> Outcome:
    """The worker is killed at random over and over, at every stage of its life, while records are written and reported."""
    wanted = ground.scaled(KILLS, 4)
    kit = KafkaKit(ground.bootstrap)
    topics = [Topic(f"t39-{name}", f"read_{name}", {}) for name in ("committed", "uncommitted")]
    for topic in topics:
        kit.make_topic(topic.partitions, topic.config, name=topic.name)
    archive = Archive(Dumper(ground.cluster), [place for topic in topics for place in topic.places])
    mix = Mix(ground.bootstrap, topics, ground.rng, "t39")
    subject = Subject(kit, ground.folder / "app", "t39", topics, archive, random.Random(ground.rng.random()))
    try:
        subject.start()
        while subject.kills < wanted:
            for _ in range(6):
                _kill_after(ground, mix, subject)
            mix.finish()
            received = subject.compare()
            subject.say(received)
            for _ in range(2):  # while it judges what was reported
                _kill_after(ground, None, subject)
            subject.check_gaps()
            missing = sum(map(len, subject.reporter.held.values()))
            ground.say(f"T39: killed {subject.kills} times; {subject.compared:,} offsets compared, {missing} missing as they should")
            if subject.differences:
                break
        subject.check_alerts()
        subject.check_log()
    finally:
        subject.close()
        mix.close()
    told = sum(subject.reporter.told.values())
    found = f"{len(subject.differences)} differences"
    details = [*subject.differences[:20], f"{told:,} offsets judged, {subject.reporter.late} records reported late"]
    return Outcome("0 differences", found, subject.kills, details)


def _kill_after(ground: Ground, mix: Mix | None, subject: Subject) -> None:
    """Kill it at a random moment: while it starts, recovers, reads, judges, flushes."""
    end = time.monotonic() + ground.rng.uniform(0.1, 5.0)
    while (left := end - time.monotonic()) > 0:
        if mix is not None:
            mix.any_kind()()
        time.sleep(min(left, 0.02))
    subject.kill()
    subject.start()


def on_three(run: Callable[[KafkaCluster, Path, random.Random], Found]) -> Callable[[Ground], Outcome]:
    """A scenario of three brokers."""
    return lambda ground: Outcome(*run(ground.three, ground.folder, ground.rng))


_TAIL = "a tail of aborted ones: no lag, nothing missing"
SCENARIOS: tuple[Scenario, ...] = (
    Scenario("T02", f"20,000 transactions of one record, {_TAIL}", lambda ground: many_commits(ground, 1)),
    Scenario(
        "T03",
        f"20,000 transactions of nine records, {_TAIL}",
        lambda ground: many_commits(ground, 9),
    ),
    Scenario("T20", "a topic made anew 30 times, with other partitions, short and long away, workers up and down", made_anew),
    Scenario("T09", "a transaction open for 5 minutes while others write: open, not missing", open_transaction),
    Scenario(
        "T28",
        "unclean elections, the worker running, frozen or killed: exactly what was lost",
        on_three(unclean_elections),
    ),
    Scenario("T30", "50 clean moves of leaders under load: no alert", on_three(clean_moves)),
    Scenario("T32", "four minutes of brokers killed and frozen: no alert", on_three(kills_and_pauses)),
    Scenario("T39", "kill -9 at 100 random moments, both isolation levels: no false gap, no repeat, each event once", kills),
)
