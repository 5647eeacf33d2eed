"""What the configuration says, in the service's terms."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_app.config import Config, load
from stream_app.core.model import Status
from stream_app.core.policy import Policy
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.topics import InternalTopics
from stream_app.service.plan import plan
from stream_app.service.port import Reading
from stream_app.service.tables import Rules
from stream_app.sinks.clickhouse import Layout
from stream_app.sinks.copies import SourceHeaders

LoadConfig = Callable[..., Config]


@pytest.fixture
def load_config(tmp_path: Path) -> LoadConfig:
    def make(**sections: Any) -> Config:
        file = tmp_path / "gapstream.yaml"
        file.write_text(yaml.safe_dump({"kafka": {"bootstrap.servers": "a:1,b:2"}, **sections}))
        return load(str(file), {}, ())

    return make


def test_defaults_are_those_of_the_contract(load_config: LoadConfig) -> None:
    made = plan(load_config(topics={"orders": {"sinks": {"billing": {"type": "consumer"}}}}))
    assert (made.app_id, made.session_timeout_s, made.standby_replicas, made.unknown_after_s) == ("gapstream", 10.0, 1, 300.0)
    assert made.state_dir == Path("gapstream-data")
    assert made.instance.startswith(socket.gethostname()[:5])
    assert made.instance.endswith("-6066")
    assert made.internal == InternalTopics(True, -1, 6, 30 * 86_400_000, 7 * 86_400_000)
    orders = made.topics["orders"]
    assert orders.reading == Reading(Isolation.READ_COMMITTED, check_crcs=True)
    assert (orders.sink_types, orders.rules.floors, orders.rules.lateness_ms) == ({"billing": "consumer"}, {"billing": "first"}, 0)
    assert orders.rules.policies == {"billing": Policy("billing", grace_ms=2_000, stall_after_ms=60_000)}


def test_everything_given_arrives(load_config: LoadConfig) -> None:
    internal = {
        "create": False,
        "replication_factor": 3,
        "alerts": {"partitions": 2, "retention": "1d"},
        "observations": {"retention": "2d"},
    }
    app = {
        "id": "gap", "instance": "one", "session_timeout": "12s", "state_dir": "/var/gap", "standby_replicas": 2, "unknown_after": "1m",
        "topics": internal,
    }  # fmt: skip
    sinks = {
        "billing": {"type": "consumer", "grace": "7s", "from": "latest", "stall_after": "90s", "tombstones": "optional"},
        "audit": {"type": "consumer", "from": "2026-01-01T00:00:00Z"},
    }
    topics = {"orders": {"isolation": "read_uncommitted", "check_crcs": False, "lateness": "3s", "sinks": sinks}, "plain": {}}
    made = plan(load_config(app=app, topics=topics, alerts={"duplicates": False}))
    assert (made.app_id, made.instance, made.session_timeout_s, made.standby_replicas) == ("gap", "one", 12.0, 2)
    assert (made.state_dir, made.unknown_after_s) == (Path("/var/gap"), 60.0)
    assert made.internal == InternalTopics(False, 3, 2, 86_400_000, 2 * 86_400_000)
    orders = made.topics["orders"]
    assert orders.reading == Reading(Isolation.READ_UNCOMMITTED, check_crcs=False)
    assert orders.rules.lateness_ms == 3_000
    assert orders.rules.floors == {"billing": "latest", "audit": "2026-01-01T00:00:00Z"}
    assert orders.rules.policies["billing"] == Policy(
        "billing", grace_ms=7_000, tombstones_optional=True, stall_after_ms=90_000, tell_duplicates=False
    )
    assert orders.rules.policies["audit"].tombstones_optional is False
    assert made.topics["plain"].rules.policies == {}


def test_groups(load_config: LoadConfig) -> None:
    sinks = {"legacy": {"type": "group", "group": "loader"}, "billing": {"type": "consumer", "group": "billing/{topic}: v2"}}
    made = plan(load_config(topics={"/orders-.*/": {"sinks": sinks}}, app={"unknown_after": "1m", "forget_after": "2d"}), ["orders-eu"])
    rules = made.topics["orders-eu"].rules
    assert rules.policies == {
        "legacy": Policy("legacy", group="loader", inferred=True, checks=("group",)),
        "billing": Policy("billing", group="billing/orders-eu: v2", checks=("group",)),
    }
    assert (rules.unknown_after_ms, rules.forget_after_ms) == (60_000, 2 * 86_400_000)
    assert made.groups == {"loader", "billing/orders-eu: v2"}


def test_tables(load_config: LoadConfig) -> None:
    sink = {
        "type": "clickhouse", "url": "https://me:pw@ch:8443/x", "password": "secret", "database": "dwh", "table": "raw_{topic}",
        "every": "20s", "sweep": "1h", "verify": "1d", "group": "ch-{topic}", "quarantine": {"table": "bad_{topic}"},
        "where": "kind = '{topic}'",
        "columns": {"preset": "kafka_engine", "timestamp": None}, "duplicates": "final", "settings": {"max_threads": "2"},
    }  # fmt: skip
    made = plan(load_config(topics={"orders": {"sinks": {"warehouse": sink, "billing": {"type": "consumer"}}}}))
    assert made.topics["orders"].rules.policies["warehouse"] == Policy(
        "warehouse", grace_ms=30_000, tombstones_optional=True, group="ch-orders", checks=("group", "table", "former")
    )
    (table,) = made.topics["orders"].tables
    assert table.rules == Rules("orders", "warehouse", every_s=20, sweep_s=3_600, verify_ms=86_400_000)
    assert table.layout == Layout(
        "dwh", "raw_orders", "_offset", "_topic", "_partition", None, "kind = 'orders'", "bad_orders", duplicates="final"
    )
    assert (table.client.url, table.client.password, table.client.query_s) == ("https://me:pw@ch:8443/x", "secret", 60)
    assert table.client.settings == {"max_threads": "2"}


def test_copies(load_config: LoadConfig) -> None:
    sinks = {
        "near": {"type": "topic", "topic": "{topic}-copy", "quarantine": {"topic": "dlq"}, "group": "copier"},
        "far": {"type": "topic", "topic": "copy", "kafka": {"bootstrap.servers": "far:9"}, "headers": {"topic": "t"}},
    }
    made = plan(load_config(topics={"orders": {"sinks": sinks}}))
    far, near, letters = made.topics["orders"].copies
    assert [(one.sink, one.status, one.reason, one.where.topic) for one in (near, letters, far)] == [
        ("near", Status.RECEIVED, None, "orders-copy"),
        ("near", Status.QUARANTINED, "in dlq", "dlq"),
        ("far", Status.RECEIVED, None, "copy"),
    ]
    assert letters.where.headers == SourceHeaders(*(f"__connect.errors.{name}" for name in ("topic", "partition", "offset")))
    assert far.where.headers == SourceHeaders("t", "source.partition", "source.offset")
    assert far.where.settings.bootstrap_servers == (("far", 9),)
    assert far.where.conf["bootstrap.servers"] == "far:9"
    assert near.where.settings == letters.where.settings == made.reader
    assert made.topics["orders"].rules.policies == {
        "near": Policy("near", group="copier", mirrored=True, checks=("group", "copies", "dead letters")),
        "far": Policy("far", mirrored=True, checks=("copies",)),
    }


def test_patterns_mean_topics_that_exist(load_config: LoadConfig) -> None:
    config = load_config(topics={"/orders-.*/": {"sinks": {"billing": {"type": "consumer"}}}, "named": {}}, exclude=["orders-x"])
    existing = ["orders-1", "orders-x", "payments", "gapstream.observations.orders-1", "gapstream-orders-1-changelog"]
    assert sorted(plan(config, existing).topics) == ["named", "orders-1"]
    assert sorted(plan(config).topics) == ["named"]


def test_all_clients_reach_the_same_cluster(load_config: LoadConfig) -> None:
    made = plan(load_config(topics={"orders": {}}))
    assert made.reader.bootstrap_servers == (("a", 1), ("b", 2))
    assert made.confluent["bootstrap.servers"] == "a:1,b:2"
    assert made.aiokafka["bootstrap_servers"] in ("a:1,b:2", ["a:1", "b:2"])
