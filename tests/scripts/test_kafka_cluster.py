"""A real Kafka that scripts/lib/kafka_cluster.py runs, and what its tools say about it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kafka_process
import pytest
from kafka_cluster import AttachedCluster, KafkaCluster, server_properties
from kafka_jars import KafkaError
from kafka_wire import NotReadyError, brokers_known_to

from tests.support.kafka_kit import KafkaKit

LIB = Path(__file__).resolve().parents[2] / "scripts" / "lib"


def test_what_is_written_is_read_back(kit: KafkaKit) -> None:
    topic = kit.make_topic(2)
    assert kit.produce(
        topic, 1, 3, value=lambda number: b"%d" % number, key=b"k", headers=[("h", b"1")], timestamp_ms=1_700_000_000_000
    ) == [0, 1, 2]
    found = kit.read(topic, 1)
    assert [(one.offset(), one.key(), one.value(), one.headers()) for one in found] == [
        (number, b"k", b"%d" % number, [("h", b"1")]) for number in range(3)
    ]
    assert {one.timestamp()[1] for one in found} == {1_700_000_000_000}
    assert kit.offsets(topic, 0) == (0, 0)


def test_aborted_records_and_markers_are_not_read_as_committed(kit: KafkaKit) -> None:
    topic = kit.make_topic()
    assert kit.transact(topic, 0, 2) == [0, 1]
    assert kit.transact(topic, 0, 2, commit=False) == [3, 4]
    assert kit.transact(topic, 0, 1) == [6]
    assert [one.offset() for one in kit.read(topic)] == [0, 1, 6]
    assert [one.offset() for one in kit.read(topic, isolation="read_uncommitted")] == [0, 1, 3, 4, 6]
    assert kit.offsets(topic, isolation="read_committed") == (0, 8)


def test_an_open_transaction_holds_the_stable_end_back(kit: KafkaKit) -> None:
    topic = kit.make_topic()
    producer = kit.transactional_producer()
    producer.begin_transaction()
    producer.produce(topic, b"value", partition=0)
    assert producer.flush(10.0) == 0
    assert kit.offsets(topic, isolation="read_committed") == (0, 0)
    assert kit.offsets(topic) == (0, 1)
    producer.commit_transaction(10.0)
    kit.await_end(topic, 0, 2)
    assert kit.offsets(topic, isolation="read_committed") == (0, 2)


def test_a_topic_is_cut_configured_and_grows(kit: KafkaKit) -> None:
    topic = kit.make_topic(1, {"cleanup.policy": "delete"})
    kit.produce(topic, 0, 10)
    assert kit.delete_records(topic, 0, 4) == 4
    assert kit.offsets(topic) == (4, 10)
    assert [one.offset() for one in kit.read(topic)] == list(range(4, 10))
    kit.add_partitions(topic, 3)
    assert kit.produce(topic, 2) == [0]
    kit.set_topic_config(topic, {"retention.ms": "1"})
    kit.delete_topics(topic)
    kit.make_topic(name=topic)
    assert kit.offsets(topic) == (0, 0)


def test_retention_is_looked_at_within_seconds_where_it_is_asked_for(kit: KafkaKit) -> None:
    topic, kept = kit.make_topic(1, {"retention.ms": "1"}), kit.make_topic()
    for one in (topic, kept):
        kit.produce(one, 0, 5, timestamp_ms=1_700_000_000_000)
    deadline = time.monotonic() + 20.0
    while kit.offsets(topic) != (5, 5):
        assert time.monotonic() < deadline, "retention removed nothing"
        kit.admin.poll(0.05)
    assert kit.offsets(kept) == (0, 5)


def test_kafkas_own_tools_read_the_segments(kafka: KafkaCluster, kit: KafkaKit) -> None:
    topic = kit.make_topic()
    kit.produce(topic, 0, 3, conf={"compression.type": "lz4"})
    segment = next((kafka.log_dir(0) / f"{topic}-0").glob("*.log"))
    output = kafka.tool("kafka.tools.DumpLogSegments", "--files", str(segment))
    assert "lastOffset: 2" in output
    with pytest.raises(KafkaError, match="DumpLogSegments ended with 1: "):
        kafka.tool("kafka.tools.DumpLogSegments", "--no-such-option")


def test_every_broker_knows_the_others(kafka: KafkaCluster) -> None:
    for address in kafka.bootstrap.split(","):
        host, port = address.split(":")
        assert brokers_known_to(host, int(port), timeout=5.0) == set(range(kafka.brokers))


def test_nobody_listening_is_not_ready() -> None:
    with pytest.raises(NotReadyError):
        brokers_known_to("127.0.0.1", 1, timeout=1.0)


def test_a_cluster_of_somebody_else_is_left_alone(kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with AttachedCluster(kafka.bootstrap) as attached:
        assert attached.bootstrap == kafka.bootstrap
        with pytest.raises(KafkaError, match="not this program's to start"):
            attached.start()
        with pytest.raises(KafkaError, match="not this program's to stop"):
            attached.kill_broker(0)
        with pytest.raises(KafkaError, match="out of reach"):
            attached.log_dir(0)
    assert KafkaKit(kafka.bootstrap).admin.list_topics(timeout=10.0).brokers


def test_a_broker_of_a_cluster_that_does_not_run(tmp_path: Path) -> None:
    cluster = KafkaCluster(1, directory=tmp_path)
    with pytest.raises(KafkaError, match="does not run: start it first"):
        _ = cluster.bootstrap
    with pytest.raises(KafkaError, match="exists: name a folder that does not"):
        cluster.start()
    cluster.stop()
    assert tmp_path.exists(), "a folder that was there before is not ours to remove"


@pytest.mark.parametrize(("brokers", "replicas", "in_sync"), [(1, "1", "1"), (2, "2", "1"), (3, "3", "2"), (5, "3", "2")])
def test_internal_topics_fit_the_number_of_brokers(brokers: int, replicas: str, in_sync: str, tmp_path: Path) -> None:
    ports = list(range(brokers))
    properties = server_properties(0, ports, ports, tmp_path)
    names = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
    assert {properties[f"{name}.replication.factor"] for name in names} == {replicas}
    assert properties["default.replication.factor"] == replicas
    assert properties["min.insync.replicas"] == properties["transaction.state.log.min.isr"] == in_sync


def stand_in(directory: Path) -> subprocess.Popen[bytes]:
    """A process whose command line is that of a broker in ``directory``, and that does nothing."""
    code = "import signal, sys; print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code, f"{directory}/broker-0/server.properties"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_destroy_ends_the_processes_of_one_folder_only(tmp_path: Path) -> None:
    mine, other = tmp_path / "one", tmp_path / "one-more"
    mine.mkdir()
    (mine / "data").write_text("x")
    with stand_in(mine) as victim, stand_in(other) as bystander:
        kafka_process.destroy(mine)
        assert victim.wait(10.0) == -signal.SIGKILL
        assert bystander.poll() is None
        bystander.kill()
    assert not mine.exists()
    kafka_process.destroy(mine)


def test_the_guard_acts_when_its_owner_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    directory.mkdir()
    code = (
        f"import sys, pathlib, signal; sys.path.insert(0, {str(LIB)!r}); import kafka_process\n"
        f"guard = kafka_process.start_guard(pathlib.Path({str(directory)!r}))\n"
        "print(flush=True); signal.pause()\n"
    )
    with stand_in(directory) as broker:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
            assert owner.stdout is not None
            owner.stdout.readline()
            assert broker.poll() is None
            owner.kill()
        assert broker.wait(20.0) == -signal.SIGKILL
    deadline = time.monotonic() + 10.0
    while directory.exists():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_the_files_of_a_cluster_that_scripts_kafka_runs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    directory = kafka_process.named_cluster("mine")
    directory.mkdir(parents=True)
    directory.with_name("mine.lock").touch()
    kafka_process.write_facts(directory, "127.0.0.1:1", 1)
    with stand_in(directory) as broker:
        assert AttachedCluster("127.0.0.1:1").log_dir() == directory / "broker-0" / "data"
        with pytest.raises(KafkaError, match="out of reach"):
            AttachedCluster("127.0.0.1:2").log_dir()
        broker.kill()


def test_facts_of_a_cluster_whose_brokers_are_gone_are_no_facts(tmp_path: Path) -> None:
    assert kafka_process.read_facts(tmp_path) is None
    kafka_process.write_facts(tmp_path, "127.0.0.1:1", 1)
    assert kafka_process.read_facts(tmp_path) is None
    with stand_in(tmp_path) as broker:
        assert kafka_process.read_facts(tmp_path) == ("127.0.0.1:1", 1)
        broker.kill()
