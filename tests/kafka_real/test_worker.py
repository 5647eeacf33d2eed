"""Workers as processes: what they watch, what they survive, what they refuse, and how they end."""

from __future__ import annotations

import base64
import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from kafka_cluster import KafkaCluster
from pyroaring import BitMap

from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

SINKS = {"sinks": {"billing": {"type": "consumer", "grace": "200ms"}}}
READER, NARROW = "reader-" + "r" * 32, "narrow-" + "n" * 32


def ask(worker: Worker, path: str, token: str | None = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a route; an error is an answer too."""
    request = urllib.request.Request(worker.url + path, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def rows(worker: Worker, topic: str, sink: str = "log", token: str | None = None) -> dict[int, dict[str, Any]]:
    """By partition; those that somebody reads."""
    status, body = ask(worker, f"/api/partitions?topic={topic}&sink={sink}", token)
    assert status == 200, body
    return {row["partition"]: row for row in body["partitions"] if row["worker"] is not None}


def series(worker: Worker, name: str) -> dict[str, float]:
    """Samples of one metric: labels as text -> value."""
    with urllib.request.urlopen(f"{worker.url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {labels: float(value) for labels, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)}


def read_to(worker: Worker, topic: str, wanted: dict[int, int]) -> None:
    """Wait until exactly so many records of each partition are read."""
    eventually(lambda: {partition: row["records"] for partition, row in rows(worker, topic).items()} == wanted, f"{topic} read")


@dataclass
class Several:
    """One worker that watches topics of different shapes."""

    rig: Rig
    worker: Worker
    narrow: str
    wide: str
    late: str
    bad: str


@dataclass
class Early:
    """Workers that are started with the module, all at once, since each has to wait for something."""

    several: Several
    guarded: Worker
    loaded: Worker
    loaded_topic: str
    named: Worker
    pattern: Worker


@pytest.fixture(scope="module", autouse=True)
def early(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Early:
    narrow, wide, bad, loaded, seen, hidden = (shared_kit.make_topic(partitions) for partitions in (1, 4, 1, 2, 1, 1))
    late = f"late-{uuid.uuid4().hex[:8]}"
    for topic, partitions in ((narrow, 1), (wide, 4)):
        for partition in range(partitions):
            shared_kit.produce(topic, partition, 10 * (partition + 1))
    shared_kit.produce(bad, 0, 100)
    rig = make_rig(dict.fromkeys((narrow, wide, late, bad), SINKS))
    tokens = [
        {"name": "reader", "token": READER, "scope": "read"},
        {"name": "narrow", "token": NARROW, "scope": "read", "topics": [seen]},
    ]
    with_tokens = make_rig({seen: SINKS, hidden: SINKS}, http={"tokens": tokens}, metrics={"require_token": True})
    rigs = (
        rig,
        with_tokens,
        make_rig({loaded: SINKS}),
        *(make_rig({one: SINKS}, bootstrap="127.0.0.1:1") for one in ("orders", "/orders-.*/")),
    )
    first, guarded, under_load, named, pattern = (one.worker().start() for one in rigs)
    return Early(Several(rig, first, narrow, wide, late, bad), guarded, under_load, loaded, named, pattern)


@pytest.fixture(scope="module")
def several(early: Early) -> Several:
    early.several.worker.ready()
    return early.several


# --- what is watched ----------------------------------------------------------------------------------------------------


def test_topics_of_different_partition_counts_in_one_worker(several: Several) -> None:
    for topic, wanted in ((several.narrow, {0: 10}), (several.wide, {0: 10, 1: 20, 2: 30, 3: 40})):
        read_to(several.worker, topic, wanted)
    observer = Observer(several.rig.bootstrap, several.rig.app_id)
    observer.received(several.wide, 3, [0, 4], [7, 39])
    observer.received(several.narrow, 0, [0, 9])
    eventually(lambda: listed(several.worker.get(f"/api/gaps?topic={several.wide}")) == {(several.wide, 3, "billing"): {5, 6}}, "the gap")
    eventually(lambda: rows(several.worker, several.narrow, "billing")[0]["horizon_offset"] == 10, "the other topic's report")
    assert several.worker.get(f"/api/gaps?topic={several.narrow}")["gaps"] == []


def test_a_topic_that_did_not_exist_at_the_start_is_read(several: Several, shared_kit: KafkaKit) -> None:
    worker, late = several.worker, several.late
    status = {line["sink"]: line["state"] for line in worker.get("/api/status")["status"] if line["topic"] == late}
    assert status == {"billing": "unknown", "log": "unknown"}
    shared_kit.make_topic(3, name=late)
    shared_kit.produce(late, 2, 7)
    read_to(worker, late, {0: 0, 1: 0, 2: 7})


# --- bad observations ---------------------------------------------------------------------------------------------------


def test_bad_observations_are_counted_and_the_good_between_them_applied(several: Several) -> None:
    topic = several.bad
    eventually(lambda: rows(several.worker, topic)[0]["records"] == 100, "the log is read")
    observer = Observer(several.rig.bootstrap, several.rig.app_id)
    before = series(several.worker, "gapstream_observations_rejected_total")
    accepted = series(several.worker, "gapstream_observations_total")[""]
    good = {"v": 1, "sink": "billing", "topic": topic, "partition": 0}
    dense = base64.b64encode(BitMap(range(5)).serialize()).decode()
    bad: list[tuple[str, bytes | None]] = [
        ("malformed", None),
        ("malformed", b""),
        ("malformed", b"\xff\x00\xfe"),
        ("malformed", b"{"),
        ("malformed", b"[" * 100_000),
        ("malformed", json.dumps({**good, "runs": [[5, 1]]}).encode()),
        ("malformed", json.dumps({**good, "runs": [[0, 5], [5, 6]]}).encode()),
        ("malformed", json.dumps({**good, "runs": [[-1, 5]]}).encode()),
        ("malformed", json.dumps({**good, "runs": [[0.5, 1]]}).encode()),
        ("malformed", json.dumps({**good, "runs": "0-5"}).encode()),
        ("malformed", json.dumps({**good, "bitmap": {"base": 0, "roaring": dense[:-8]}}).encode()),
        ("malformed", json.dumps({**good, "bitmap": {"base": 2**63, "roaring": dense}}).encode()),
        ("malformed", json.dumps(good).encode()),
        ("malformed", json.dumps({**good, "claim": 10**30}).encode()),
        ("malformed", json.dumps({**good, "claim": 1, "status": "lost"}).encode()),
        ("malformed", json.dumps({**good, "sink": "log", "claim": 1}).encode()),
        ("malformed", json.dumps({**good, "sink": "", "claim": 1}).encode()),
        ("unsupported_version", json.dumps({**good, "v": 2, "claim": 1}).encode()),
        ("wrong_topic", json.dumps({**good, "topic": several.wide, "claim": 1}).encode()),
        ("wrong_partition", json.dumps({**good, "partition": 1, "claim": 1}).encode()),
        ("beyond_end", json.dumps({**good, "runs": [[99, 100]]}).encode()),
        ("beyond_end", json.dumps({**good, "claim": 101}).encode()),
        ("older_incarnation", json.dumps({**good, "claim": 1, "topic_id": "AAAAAAAAAAAAAAAAAAAABw"}).encode()),
    ]
    for number, (_, value) in enumerate(bad):
        observer.say(topic, 0, [[2 * number, 2 * number]])
        observer.write(topic, 0, value)
    observer.flush()
    wanted: dict[str, float] = {}
    for reason, _ in bad:
        label = f'reason="{reason}"'
        wanted[label] = wanted.get(label, before.get(label, 0.0)) + 1
    eventually(lambda: series(several.worker, "gapstream_observations_rejected_total") == before | wanted, "each is counted by its reason")
    eventually(lambda: series(several.worker, "gapstream_observations_total")[""] >= accepted + len(bad), "the good ones are counted")
    missing = {2 * number + 1 for number in range(len(bad) - 1)}
    eventually(lambda: listed(several.worker.get(f"/api/gaps?topic={topic}")) == {(topic, 0, "billing"): missing}, "the good ones count")
    log = several.worker.log.read_text()
    assert len(re.findall("observation rejected .*reason=malformed", log)) == 1, "one line a minute for a reason"
    assert "Traceback" not in log


# --- tokens -------------------------------------------------------------------------------------------------------------


def test_tokens(early: Early) -> None:
    guarded = early.guarded.ready()
    assert ask(guarded, "/livez")[0] == 200
    assert ask(guarded, "/api/status")[0] == 401
    assert ask(guarded, "/api/status", "nobody's")[0] == 401
    topics = {row["topic"] for row in ask(guarded, "/api/partitions", READER)[1]["partitions"]}
    assert len(topics) == 2
    assert {row["topic"] for row in ask(guarded, "/api/partitions", NARROW)[1]["partitions"]} < topics
    assert ask(guarded, "/metrics")[0] == 401
    assert ask(guarded, "/metrics", NARROW)[0] == 403, "the numbers of topics that it may not see"
    assert guarded.cli("status", "--token", READER).returncode == 0
    assert guarded.cli("status").returncode != 0


# --- brokers that are away ----------------------------------------------------------------------------------------------


def ended(worker: Worker) -> float:
    """SIGTERM was sent: seconds until the process is gone; its exit status must be 0."""
    begun = time.monotonic()
    assert worker.process is not None
    assert worker.process.wait(15) == 0, worker.tail()
    return time.monotonic() - begun


def test_brokers_away_at_the_start(early: Early) -> None:
    named, pattern = early.named, early.pattern
    eventually(lambda: ask(named, "/livez")[0] == 200, "it lives", 20)
    reason = "not ready: could not list the topics: Failed to get metadata: Local: Broker transport failure"
    eventually(lambda: ask(named, "/readyz") == (503, {"ready": False, "error": reason}), "it says why it is not ready", 20)
    eventually(lambda: "to resolve patterns" in pattern.tail(), "the other one waits too", 20)
    assert ask(named, "/livez")[0] == 200
    assert ask(named, "/api/status")[0] == 503
    for worker in (named, pattern):
        worker.signal(signal.SIGTERM)
    assert ended(named) < 10
    assert ended(pattern) < 10
    for worker in (named, pattern):
        lines = worker.log.read_text().splitlines()
        told = [datetime.fromisoformat(line.split()[0]) for line in lines if "waiting for Kafka" in line]
        assert told, "it says what it waits for"
        assert all((later - earlier).total_seconds() >= 59 for earlier, later in pairwise(told)), "a line a minute, no more"
        assert not [line for line in lines if "Traceback" in line or "[error" in line]


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[KafkaCluster]:
    """One broker that may be killed."""
    with KafkaCluster(1, properties={"auto.create.topics.enable": "true"}) as cluster:
        yield cluster


@pytest.mark.timeout(180)
def test_brokers_killed_and_back_while_workers_run(own_cluster: KafkaCluster, make_rig: Callable[..., Rig]) -> None:
    """Whoever is told to stop meanwhile ends in time; who stays recovers by itself, and nothing is lost or told twice."""
    kit = KafkaKit(own_cluster.bootstrap)
    topic = kit.make_topic(3)
    for partition in range(3):
        kit.produce(topic, partition, 100)
    rig = make_rig({topic: SINKS, "never-made": SINKS}, bootstrap=own_cluster.bootstrap)
    stays, leaves = (rig.worker().start() for _ in range(2))
    stays.ready()
    leaves.ready()
    eventually(lambda: {row["worker"] for row in rows(stays, topic).values()} == {"worker-1", "worker-2"}, "both own partitions")
    observer = Observer(own_cluster.bootstrap, rig.app_id)
    for partition in range(3):
        observer.received(topic, partition, [0, 19], [30, 59])
    wanted = {(topic, partition, "billing"): set(range(20, 30)) for partition in range(3)}
    eventually(lambda: listed(stays.get("/api/gaps")) == wanted, "the gaps")
    for partition in range(3):
        observer.say(topic, partition, [[20, 24]])  # in flight, or waiting in the client, while the broker dies
    own_cluster.kill_broker(0)
    leaves.signal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as waiting:
        left = waiting.submit(ended, leaves)
        eventually(lambda: ask(stays, "/readyz")[0] == 503, "it says that it is not ready", 30)
        assert left.result() < 10
    assert ask(stays, "/livez")[0] == 200
    own_cluster.start_broker(0)
    observer.flush()
    for partition in range(3):
        kit.produce(topic, partition, 100)
        observer.received(topic, partition, [60, 149], [160, 199])
    wanted = {(topic, partition, "billing"): {*range(25, 30), *range(150, 160)} for partition in range(3)}
    eventually(lambda: listed(stays.get("/api/gaps")) == wanted, "exactly what is missing, after it came back", 90)
    found = {p: (row["records"], row["duplicates"], row["worker"]) for p, row in rows(stays, topic, "billing").items()}
    assert found == dict.fromkeys(range(3), (200, 0, "worker-1"))
    stays.ready()
    log = stays.log.read_text()
    assert "Traceback" not in log
    repeated = {line: n for line, n in _templates(log).items() if n > 3}
    assert repeated == {}, "lines in floods"
    assert [name for name in kit.admin.list_topics(timeout=10).topics if "never-made" in name] == [], "watching made the topic"
    kit.close()
    assert stays.stop() == 0


def _templates(log: str) -> dict[str, int]:
    """How often each line stands in the log, times, numbers and names aside."""
    found: dict[str, int] = {}
    for line in log.splitlines():
        what = re.sub(r"\d+|\[[^\]]*\]", "#", line)[:100]
        found[what] = found.get(what, 0) + 1
    return found


# --- the end ------------------------------------------------------------------------------------------------------------


def test_sigterm_under_load_flushes_what_was_read(early: Early, shared_kit: KafkaKit) -> None:
    topic, worker = early.loaded_topic, early.loaded.ready()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            shared_kit.produce(topic, 0, 500)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        eventually(lambda: (rows(worker, topic)[0]["records"] or 0) > 2_000, "records are read")
        begun = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - begun < 10
    finally:
        stop.set()
        thread.join()
    assert json.loads((worker.rig.folder / "state-1" / "clean").read_text())["at"] > 0
    assert "stopped" in worker.tail()
    end = shared_kit.offsets(topic, 0)[1]
    worker.start().ready()
    read_to(worker, topic, {0: end, 1: 0})
