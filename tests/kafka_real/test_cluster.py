"""The clusters of scripts/lib/kafka_cluster.py under the faults that other tests inject with it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import kafka_cluster
import pytest
from kafka_cluster import KafkaCluster
from kafka_jars import KafkaError
from kafka_wire import NotReadyError, brokers_known_to

from tests.support.kafka_kit import KafkaKit


def port_of(cluster: KafkaCluster, broker: int) -> int:
    return int(cluster.bootstrap.split(",")[broker].rpartition(":")[2])


def leader_of(kit: KafkaKit, topic: str) -> int:
    return int(kit.admin.list_topics(topic, timeout=10.0).topics[topic].partitions[0].leader)


@contextlib.contextmanager
def started_again(cluster: KafkaCluster, broker: int) -> Iterator[None]:
    try:
        yield
    finally:
        cluster.start_broker(broker)


def test_what_was_acknowledged_outlives_a_killed_leader(kafka3: KafkaCluster, kit3: KafkaKit) -> None:
    topic = kit3.make_topic()
    assert kit3.produce(topic, 0, 5) == [0, 1, 2, 3, 4]
    leader = leader_of(kit3, topic)
    kafka3.kill_broker(leader)
    with started_again(kafka3, leader):
        with pytest.raises(KafkaError, match=f"Broker {leader} does not run"):
            kafka3.kill_broker(leader)
        assert kit3.produce(topic, 0, 2) == [5, 6]
        assert leader_of(kit3, topic) != leader
    assert [one.offset() for one in kit3.read(topic)] == list(range(7))
    with pytest.raises(KafkaError, match=f"Broker {leader} runs already"):
        kafka3.start_broker(leader)


def test_a_stopped_leader_hands_over(kafka3: KafkaCluster, kit3: KafkaKit) -> None:
    topic = kit3.make_topic()
    leader = leader_of(kit3, topic)
    kafka3.stop_broker(leader)
    with started_again(kafka3, leader):
        assert (kafka3.log_dir(leader) / ".kafka_cleanshutdown").exists()
        assert kit3.produce(topic, 0, 1) == [0]


def test_a_paused_broker_is_silent_until_it_is_resumed(kafka3: KafkaCluster) -> None:
    assert 0 in brokers_known_to("127.0.0.1", port_of(kafka3, 0), timeout=10.0)
    kafka3.pause_broker(0)
    try:
        with pytest.raises(NotReadyError):
            brokers_known_to("127.0.0.1", port_of(kafka3, 0), timeout=0.3)
    finally:
        kafka3.resume_broker(0)
    assert 0 in brokers_known_to("127.0.0.1", port_of(kafka3, 0), timeout=10.0)


def test_a_port_that_was_taken_in_between_costs_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports = kafka_cluster._free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answers = [[taken.getsockname()[1], *free_ports(1)], free_ports(2)]
        monkeypatch.setattr(kafka_cluster, "_free_ports", lambda _count: answers.pop(0))
        with KafkaCluster(1) as cluster:
            directory = cluster.directory
            assert answers == []
            assert port_of(cluster, 0) != taken.getsockname()[1]
    assert not directory.exists()


def test_a_broker_that_refuses_its_properties_leaves_only_its_log(tmp_path: Path) -> None:
    directory, logs = tmp_path / "cluster", tmp_path / "logs"
    cluster = KafkaCluster(1, directory=directory, logs=logs, properties={"offsets.topic.num.partitions": "0"})
    with pytest.raises(KafkaError, match="Value must be at least 1"):
        cluster.start()
    assert not directory.exists()
