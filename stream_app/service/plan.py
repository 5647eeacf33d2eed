"""What the configuration says, in the service's terms; the only place of the service that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_app.config import ClickHouseSink, Config, GroupSink, Sink
from stream_app.config.model import Topic
from stream_app.config.sinks import SourceHeaders as ConfiguredHeaders
from stream_app.config.sinks import TopicSink
from stream_app.config.tables import client_of, layout_of_sink
from stream_app.core.model import Status
from stream_app.core.policy import Policy
from stream_app.core.snapshots import FORMER_CHECK, TABLE_CHECK
from stream_app.kafka.clients import KafkaClients
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.copies import CopyTopic
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.topics import InternalTopics
from stream_app.service.context import TopicRules
from stream_app.service.groups import GROUP_CHECK
from stream_app.service.mirrors import COPIES_CHECK, LETTERS_CHECK
from stream_app.service.port import Reading
from stream_app.service.tables import Rules as TableRules
from stream_app.sinks.clickhouse import Layout
from stream_app.sinks.clickhouse.client import QUERY_S, ClickHouseClient
from stream_app.sinks.copies import SourceHeaders


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """A topic that is a sink, or the dead letters of one."""

    sink: str
    status: Status
    reason: str | None
    where: CopyTopic


@dataclass(frozen=True, slots=True)
class TablePlan:
    """A table that is a sink."""

    rules: TableRules
    layout: Layout
    client: ClickHouseClient


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One watched topic."""

    reading: Reading
    rules: TopicRules
    sink_types: Mapping[str, str]
    copies: tuple[CopyPlan, ...] = ()
    tables: tuple[TablePlan, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the service needs to know."""

    app_id: str
    instance: str
    session_timeout_s: float
    state_dir: Path
    standby_replicas: int
    unknown_after_s: float
    internal: InternalTopics
    topics: Mapping[str, TopicPlan]
    aiokafka: Mapping[str, Any]
    confluent: Mapping[str, Any]
    reader: KafkaSettings

    @property
    def groups(self) -> frozenset[str]:
        """Consumer groups whose commits are claims of some sink."""
        policies = [policy for topic in self.topics.values() for policy in topic.rules.policies.values()]
        return frozenset(policy.group for policy in policies if policy.group is not None)


def plan(config: Config, existing: Iterable[str] = ()) -> Plan:
    """``existing``: topics of the cluster, for patterns; needed only where there are some."""
    clients = KafkaClients(config.kafka)
    return Plan(
        app_id=config.app.id,
        instance=config.instance,
        session_timeout_s=config.app.session_timeout / 1000,
        state_dir=Path(config.app.state_dir),
        standby_replicas=config.app.standby_replicas,
        unknown_after_s=config.app.unknown_after / 1000,
        internal=InternalTopics(
            create=config.app.topics.create,
            replication_factor=config.app.topics.replication_factor,
            alerts_partitions=config.app.topics.alerts.partitions,
            alerts_retention_ms=config.app.topics.alerts.retention,
            observations_retention_ms=config.app.topics.observations.retention,
        ),
        topics={name: _topic(name, topic, config, clients) for name, topic in config.watched(existing).items()},
        aiokafka=clients.aiokafka(),
        confluent=clients.confluent(),
        reader=clients.reader(),
    )


def _policy(name: str, sink: Sink, tell_duplicates: bool) -> Policy:
    return Policy(
        name,
        grace_ms=sink.grace,
        tombstones_optional=getattr(sink, "tombstones", "required") == "optional",
        stall_after_ms=sink.stall_after,
        tell_duplicates=tell_duplicates,
        group=sink.group,
        inferred=isinstance(sink, GroupSink),
        mirrored=isinstance(sink, TopicSink),
        checks=_checks(sink),
    )


def _checks(sink: Sink) -> tuple[str, ...]:
    found: tuple[str, ...] = () if sink.group is None else (GROUP_CHECK,)
    if isinstance(sink, TopicSink):
        found += (COPIES_CHECK,) if sink.quarantine is None else (COPIES_CHECK, LETTERS_CHECK)
    return found if not isinstance(sink, ClickHouseSink) else (*found, TABLE_CHECK, FORMER_CHECK)


def _topic(watched: str, topic: Topic, config: Config, clients: KafkaClients) -> TopicPlan:
    policies = {name: _policy(name, sink, config.alerts.duplicates) for name, sink in topic.sinks.items()}
    floors = {name: sink.from_ for name, sink in topic.sinks.items()}
    isolation = Isolation.READ_COMMITTED if topic.isolation == "read_committed" else Isolation.READ_UNCOMMITTED
    return TopicPlan(
        Reading(isolation, topic.check_crcs),
        TopicRules(
            policies,
            floors,
            topic.lateness,
            read_committed=isolation is Isolation.READ_COMMITTED,
            unknown_after_ms=config.app.unknown_after,
            forget_after_ms=config.app.forget_after,
        ),
        {name: sink.type for name, sink in topic.sinks.items()},
        tuple(copy for name, sink in topic.sinks.items() if isinstance(sink, TopicSink) for copy in _copies(name, sink, clients)),
        tuple(_table(watched, name, sink) for name, sink in topic.sinks.items() if isinstance(sink, ClickHouseSink)),
    )


def _table(topic: str, name: str, sink: ClickHouseSink) -> TablePlan:
    rules = TableRules(topic, name, sink.every / 1000, sink.sweep / 1000, sink.verify)
    return TablePlan(rules, layout_of_sink(sink), client_of(sink, sink.url, QUERY_S))


def _copies(name: str, sink: TopicSink, clients: KafkaClients) -> Iterator[CopyPlan]:
    """The sink's topic, and where it sets aside what it could not take; both on the same cluster."""
    own = KafkaClients(sink.kafka) if sink.kafka else clients
    conf, settings = own.confluent(), own.reader()
    yield CopyPlan(name, Status.RECEIVED, None, CopyTopic(sink.topic, _headers(sink.headers), conf, settings))
    if sink.quarantine is not None:
        where = CopyTopic(sink.quarantine.topic, _headers(sink.quarantine.headers), conf, settings)
        yield CopyPlan(name, Status.QUARANTINED, f"in {sink.quarantine.topic}", where)


def _headers(names: ConfiguredHeaders) -> SourceHeaders:
    return SourceHeaders(names.topic, names.partition, names.offset)
