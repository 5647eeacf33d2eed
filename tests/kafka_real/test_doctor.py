"""``gapstream doctor`` on a cluster with ACLs: what lacks is named, and what it prints is what mends it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kafka_cluster
import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from kafka_cluster import KafkaCluster

from tests.support.rig import free_port

USER, PASSWORD = "watcher", "secret"
MODULE = "org.apache.kafka.common.security.plain.PlainLoginModule"
OBSERVATIONS = "doc.observations.orders"


@dataclass
class Guarded:
    """A cluster that lets one user do what is granted."""

    admin: AdminClient
    bootstrap: str
    folder: Path

    def grant(self, kind: ResourceType, name: str, *operations: AclOperation) -> None:
        some = [
            AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", one, AclPermissionType.ALLOW) for one in operations
        ]
        for future in self.admin.create_acls(some).values():
            future.result(30)

    def doctor(self, **app: Any) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        """The exit status, and what was found by what it is about."""
        file = self.folder / "gapstream.yaml"
        kafka = {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": USER,
            "sasl.password": PASSWORD,
        }
        given = {"kafka": kafka, "app": {"id": "doc", "state_dir": str(self.folder / "state"), **app}, "http": {"port": free_port()}}
        file.write_text(json.dumps({**given, "topics": {"orders": {}}}))  # YAML takes JSON
        ran = subprocess.run(
            [sys.executable, "-m", "stream_app", "doctor", "-c", str(file), "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert ran.stderr == ""
        found: dict[str, list[dict[str, Any]]] = {}
        for one in json.loads(ran.stdout)["findings"]:
            found.setdefault(one["about"], []).append(one)
        return ran.returncode, found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    (port,) = kafka_cluster._free_ports(1)
    given = kafka_cluster.server_properties

    def with_listener(node: int, *rest: object) -> dict[str, str]:
        made = given(node, *rest)  # type: ignore[arg-type]  # handed on as they came
        made["listener.security.protocol.map"] += ",CLEAR:SASL_PLAINTEXT"
        return made | {name: f"{made[name]},CLEAR://127.0.0.1:{port}" for name in ("listeners", "advertised.listeners")}

    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.clear.plain.sasl.jaas.config": f'{MODULE} required user_{USER}="{PASSWORD}";',
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka_cluster, "server_properties", with_listener)
        cluster = KafkaCluster(1, properties=properties)
        cluster.start()
    with cluster:
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
        admin.create_topics([NewTopic("orders", 2, 1)])["orders"].result(30)
        yield Guarded(admin, f"127.0.0.1:{port}", tmp_path_factory.mktemp("guarded"))


def test_rights_are_told_one_by_one_until_nothing_lacks(guarded: Guarded) -> None:
    code, found = guarded.doctor()
    assert code == 1
    (hidden,) = found["topics.orders"]
    assert (hidden["level"], hidden["message"]) == ("error", "Kafka has no topic orders, or hides it")

    guarded.grant(ResourceType.TOPIC, "orders", AclOperation.DESCRIBE)
    code, found = guarded.doctor()
    assert code == 1
    lacks, settings = found["topics.orders"]
    assert (lacks["level"], lacks["message"]) == ("error", "this principal lacks Read for topic orders")
    assert "--operation Read --topic orders" in shlex.join(shlex.split(lacks["statement"]))
    assert (settings["level"], settings["mend"]) == ("warning", "grant it")
    (observations,) = found[OBSERVATIONS]
    assert observations["message"] == "it is not there, and whether this principal may create it is not said"

    guarded.grant(ResourceType.BROKER, "kafka-cluster", AclOperation.DESCRIBE)
    (observations,) = guarded.doctor()[1][OBSERVATIONS]
    assert (observations["level"], observations["message"]) == ("error", "it is not there, and this principal may create no topics")

    guarded.grant(ResourceType.TOPIC, "orders", AclOperation.READ, AclOperation.DESCRIBE_CONFIGS)
    guarded.grant(ResourceType.BROKER, "kafka-cluster", AclOperation.CREATE)
    guarded.grant(ResourceType.GROUP, "doc", AclOperation.READ)
    code, found = guarded.doctor()
    assert found.pop("kafka.security.protocol")[0]["message"] == "the password is sent in the clear"
    assert (code, {one["level"] for some in found.values() for one in some}) == (0, {"ok"}), found
    assert found[OBSERVATIONS][0]["message"] == "it is not there yet: a worker creates it"

    config = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
    guarded.admin.create_topics([NewTopic(OBSERVATIONS, 2, 1, config=config)])[OBSERVATIONS].result(30)
    guarded.grant(ResourceType.TOPIC, OBSERVATIONS, AclOperation.READ, AclOperation.DESCRIBE_CONFIGS)
    code, found = guarded.doctor()
    (one,) = found[OBSERVATIONS]
    assert (code, one["level"], one["message"]) == (1, "error", f"this principal lacks Write for topic {OBSERVATIONS}")
    guarded.grant(ResourceType.TOPIC, OBSERVATIONS, AclOperation.WRITE)
    assert guarded.doctor()[0] == 0


def test_a_login_that_is_refused_could_not_be_asked(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PASSWORD", "wrong")
    code, found = guarded.doctor()
    assert code == 3
    (one,) = found["kafka.bootstrap.servers"]
    assert one["level"] == "unknown"
    assert "refused the PLAIN login" in one["message"]
