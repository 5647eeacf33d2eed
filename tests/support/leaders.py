"""Who leads a partition of a real cluster, and how another one comes to lead it, cleanly and at a moment that the test chooses."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import NewTopic

from tests.support.kafka_kit import KafkaKit
from tests.support.kafka_messages import Message

_REASSIGN = 45
_PATIENCE_S = 30.0


def leader_of(kit: KafkaKit, topic: str, partition: int = 0) -> int:
    """Node that leads; -1: nobody."""
    return int(kit.admin.list_topics(topic, timeout=10.0).topics[topic].partitions[partition].leader)


def await_leader(kit: KafkaKit, topic: str, node: int, partition: int = 0) -> None:
    """Return when ``node`` leads and answers."""
    deadline = time.monotonic() + _PATIENCE_S
    while leader_of(kit, topic, partition) != node:
        assert time.monotonic() < deadline, f"{node} did not come to lead {topic}/{partition}"
        time.sleep(0.05)
    kit.await_partitions(topic, partition + 1)


def await_in_sync(kit: KafkaKit, topic: str, replicas: int) -> None:
    """Return when so many replicas of partition 0 are in sync."""
    deadline = time.monotonic() + _PATIENCE_S
    while len(kit.admin.list_topics(topic, timeout=10.0).topics[topic].partitions[0].isrs) < replicas:
        assert time.monotonic() < deadline, f"{topic}/0 did not get {replicas} replicas in sync"
        time.sleep(0.05)


def make_placed(kit: KafkaKit, topic: str, replicas: list[int], **config: str) -> None:
    """A topic of one partition whose replicas are those nodes; the first one leads."""
    made = kit.admin.create_topics([NewTopic(topic, 1, config=config, replica_assignment=[replicas])])
    made[topic].result(_PATIENCE_S)
    kit.await_partitions(topic, 1)


def move_leader(kit: KafkaKit, topic: str, partition: int, replicas: list[int]) -> None:
    """A clean move to the first of ``replicas``, which are those that the partition has: no record is copied or lost."""
    wanted = {"PartitionIndex": partition, "Replicas": replicas}
    answer = _ask(kit.bootstrap, "AlterPartitionReassignments", _REASSIGN, 0, {"Topics": [{"Name": topic, "Partitions": [wanted]}]})
    codes = [one["ErrorCode"] for named in answer["Responses"] for one in named["Partitions"]]
    assert (answer["ErrorCode"], codes) == (0, [0]), answer
    elected = kit.admin.elect_leaders(ElectionType.PREFERRED, [TopicPartition(topic, partition)]).result(_PATIENCE_S)
    assert all(error is None for error in elected.values()), elected


def _ask(bootstrap: str, name: str, api: int, version: int, body: dict[str, Any]) -> dict[str, Any]:
    """One request of a flexible version to the first broker, which forwards it to the controller."""
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    request = struct.pack(">hhih", api, version, 1, -1) + b"\0" + Message(name + "Request").encode(version, body)
    with socket.create_connection((host, int(port)), _PATIENCE_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answer:
            (size,) = struct.unpack(">i", answer.read(4))
            return Message(name + "Response").decode(version, answer.read(size)[5:])
