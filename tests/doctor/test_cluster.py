"""What is wrong of what Kafka said; the asking itself is tried on a real one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka.admin import AclOperation

from stream_app.config import Config
from stream_app.doctor.cluster import Cluster, Seen, judge
from stream_app.doctor.finding import Finding, exit_code

ALL = frozenset({AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS})
APPENDED = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
OBSERVATIONS, CHANGELOG = "gap.observations.orders", "gap-orders-changelog"


def config(sinks: dict[str, Any] | None = None, **sections: Any) -> Config:
    return Config.model_validate(
        {"app": {"id": "gap", **sections.pop("app", {})}, "topics": {"orders": {"sinks": sinks or {}}}, **sections}
    )


def seen(partitions: int, allowed: Iterable[AclOperation] | None = ALL, **settings: str) -> Seen:
    named = {name.replace("_", "."): value for name, value in settings.items()}
    return Seen(partitions, None if allowed is None else frozenset(allowed), {"cleanup.policy": "delete", **named})


def cluster(**more: Seen | None) -> Cluster:
    """One in which all is well; ``more``: topics that differ; None: not there."""
    topics: dict[str, Seen] = {
        "orders": seen(3),
        "gap.alerts": seen(6),
        "gap.status": seen(6, cleanup_policy="compact"),
        CHANGELOG: seen(3, cleanup_policy="compact"),
        OBSERVATIONS: seen(3, message_timestamp_type="LogAppendTime"),
    }
    for name, one in more.items():
        if one is None:
            del topics[name]
        else:
            topics[name] = one
    return Cluster(topics, frozenset(topics), True, {"gap": frozenset({AclOperation.READ, AclOperation.DESCRIBE})}, {})


def faults(of: Config, with_: Cluster) -> list[Finding]:
    return [one for one in judge(of, with_) if one.level != "ok"]


def test_all_is_well() -> None:
    found = list(judge(config(), cluster()))
    assert exit_code(found) == 0
    assert {one.level for one in found} == {"ok"}
    assert {one.about for one in found} >= {"topics.orders", "gap.alerts", "gap.status", CHANGELOG, OBSERVATIONS, "app.id"}


def test_a_topic_that_is_not_there() -> None:
    (one,) = faults(config(), cluster(orders=None))
    assert (one.level, one.about, one.message) == ("error", "topics.orders", "Kafka has no topic orders, or hides it")
    assert "--operation Describe --topic orders" in str(one.statement)


def test_a_pattern_that_matches_nothing() -> None:
    of = Config.model_validate({"app": {"id": "gap"}, "topics": {"/shop-.*/": {}}})
    (one,) = [one for one in faults(of, cluster()) if one.about.startswith("topics.")]
    assert (one.level, one.about) == ("warning", "topics./shop-.*/")


def test_rights_that_lack_are_named_with_the_command_that_grants_them() -> None:
    some = cluster(orders=seen(3, {AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS}))
    (one,) = faults(config(), some)
    assert (one.level, one.message) == ("error", "this principal lacks Read for topic orders")
    assert one.statement == "kafka-acls.sh --bootstrap-server ... --add --allow-principal User:... --operation Read --topic orders"
    some = cluster()
    some.topics[OBSERVATIONS] = replace(some.topics[OBSERVATIONS], allowed=frozenset({AclOperation.READ}))
    (one,) = faults(config(), some)
    assert one.message == f"this principal lacks Write for topic {OBSERVATIONS}"


def test_rights_that_nobody_tells_are_unknown() -> None:
    (one,) = faults(config(), cluster(orders=seen(3, None)))
    assert (one.level, one.about) == ("unknown", "topics.orders")


def test_settings_that_may_not_be_read() -> None:
    (one,) = faults(config(), cluster(orders=Seen(3, frozenset({AclOperation.READ}), None)))
    assert (one.level, one.message) == ("warning", "the settings of orders may not be read: holes in its log can't be told from losses")


def test_records_that_go_before_they_are_judged() -> None:
    of = config({"billing": {"type": "consumer", "grace": "1h"}})
    (one,) = faults(of, cluster(orders=seen(3, retention_ms="3600000")))
    assert (one.level, one.mend) == ("error", "raise retention.ms of the topic, or lower grace")
    assert faults(of, cluster(orders=seen(3, retention_ms="-1"))) == []


@pytest.mark.parametrize(
    ("create", "may", "level"), [(True, True, "ok"), (True, False, "error"), (True, None, "unknown"), (False, True, "error")]
)
def test_internal_topics_that_are_not_there(create: bool, may: bool | None, level: str) -> None:
    some = cluster(**{OBSERVATIONS: None})
    some.may_create = may
    (one,) = [one for one in judge(config(app={"topics": {"create": create}}), some) if one.about == OBSERVATIONS]
    assert one.level == level
    if level != "ok":
        create_it = f"--create --topic {OBSERVATIONS} --partitions 3"
        assert f"{create_it} --config cleanup.policy=delete --config message.timestamp.type=LogAppendTime" in str(one.statement)


def test_internal_topics_with_too_few_or_too_many_partitions() -> None:
    few = cluster()
    few.topics[OBSERVATIONS] = replace(few.topics[OBSERVATIONS], partitions=2)
    (one,) = faults(config(), few)
    assert (one.level, one.message) == ("warning", "it has 2 partitions, the topic that it belongs to 3: a worker adds them")
    (one,) = faults(config(app={"topics": {"create": False}}), few)
    assert one.level == "error"
    assert str(one.statement).endswith(f"--alter --topic {OBSERVATIONS} --partitions 3")
    few.topics[OBSERVATIONS] = replace(few.topics[OBSERVATIONS], partitions=4)
    (one,) = faults(config(), few)
    assert "was that one deleted and created anew" in one.message


@pytest.mark.parametrize(
    ("topic", "settings", "wrong"),
    [
        (
            OBSERVATIONS,
            {**APPENDED, "message.timestamp.type": "CreateTime"},
            "message.timestamp.type is CreateTime, and must be LogAppendTime",
        ),
        (OBSERVATIONS, {**APPENDED, "cleanup.policy": "compact"}, "cleanup.policy is compact, and must be delete"),
        (CHANGELOG, {"cleanup.policy": "delete"}, "cleanup.policy is delete, and must be compact"),
        ("gap.status", {"cleanup.policy": "delete"}, "cleanup.policy is delete, and must be compact"),
        ("gap.alerts", {"cleanup.policy": "compact"}, "cleanup.policy is compact, and must be delete"),
    ],
)
def test_settings_of_internal_topics(topic: str, settings: dict[str, str], wrong: str) -> None:
    some = cluster()
    some.topics[topic] = replace(some.topics[topic], config=settings)
    (one,) = faults(config(), some)
    key, _, value = wrong.partition(" is ")
    assert (one.level, one.about, one.message) == ("error", topic, wrong)
    assert str(one.statement).endswith(f"--entity-name {topic} --add-config {key}={value.rpartition(' ')[2]}")


def test_topics_that_sinks_read() -> None:
    sink = {"type": "topic", "topic": "copy", "quarantine": {"topic": "dead"}}
    some = cluster(copy=seen(1, {AclOperation.DESCRIBE}))
    one, other = faults(config({"copy": sink}), some)
    assert (one.about, one.message) == ("topics.orders.sinks.copy", "this principal lacks Read for topic copy")
    assert other.message == "Kafka has no topic dead, or hides it"


def test_topics_that_may_be_replayed_to() -> None:
    of = Config.model_validate({"app": {"id": "gap"}, "topics": {"orders": {"replay_to": ["again"]}}})
    (one,) = faults(of, cluster(again=seen(1, {AclOperation.READ})))
    assert (one.about, one.message) == ("topics.orders.replay_to", "this principal lacks Write for topic again")


def test_groups() -> None:
    of = config({"legacy": {"type": "group", "group": "loader"}})
    some = cluster()
    some.groups = {"gap": frozenset({AclOperation.DESCRIBE}), "loader": "Kafka's ACLs forbid it (no)"}
    own, other = faults(of, some)
    assert (own.level, own.about, own.message) == ("error", "app.id", "this principal lacks Read for group gap")
    assert (other.level, other.about) == ("unknown", "topics.orders.sinks.legacy")


def test_groups_that_nobody_has_used() -> None:
    of = config({"legacy": {"type": "group", "group": "loader"}})
    some = cluster()
    some.groups = {"gap": None, "loader": None}
    (one,) = faults(of, some)
    assert (one.level, one.message) == ("warning", "there is no group loader: nobody has committed with it")
