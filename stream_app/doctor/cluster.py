"""Kafka: can it be reached, are the topics there and as they must be, may this principal do what a worker does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import ConsumerGroupState, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient, ConfigResource, OffsetSpec, ResourceType

from stream_app.config import Config
from stream_app.config.model import Topic
from stream_app.config.sinks import Sink, TopicSink
from stream_app.doctor.finding import Finding, error, ok, unknown, warning
from stream_app.durations import format_duration as duration
from stream_app.errors import Unavailable
from stream_app.kafka.clients import KafkaClients, describe_kafka_error, listed_offset
from stream_app.kafka.names import TopicNames, alerts_topic, status_topic
from stream_app.kafka.reader import LogReader

CALL_S = 10.0
"""One call at most; brokers that are away are known to be after it."""
READ, WRITE, CONFIGS = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE_CONFIGS
KAFKA = "kafka.bootstrap.servers"


@dataclass(frozen=True, slots=True)
class Seen:
    """A topic as the cluster shows it."""

    partitions: int
    allowed: frozenset[AclOperation] | None
    """What this principal may do; None: the cluster does not say."""
    config: Mapping[str, str | None] | None
    """None: it may not be read."""


@dataclass(slots=True)
class Cluster:
    """What one asking of Kafka gave."""

    topics: dict[str, Seen]
    all_topics: frozenset[str]
    """Every name that this principal sees."""
    may_create: bool | None
    groups: dict[str, frozenset[AclOperation] | str | None]
    """By consumer group: what is allowed, or why it could not be asked; None: there is no such group."""
    ends: dict[tuple[str, int], int]
    """One past the last offset of watched partitions."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An internal topic as it must be."""

    name: str
    partitions: int
    exact: bool
    """Whether it must have just as many."""
    config: Mapping[str, str]
    operations: tuple[AclOperation, ...]


async def ask(config: Config, clients: KafkaClients) -> Cluster:
    """Everything that is looked at.

    Raises:
        Unavailable: Kafka can't be reached, or refuses.
    """
    reader = LogReader(clients.reader(), client_id=clients.client_id)
    try:  # the reader's own connections: what one client of the program can't do, the others may
        async with asyncio.timeout(2 * CALL_S):
            await reader.start()
            await reader.metadata([])
    except TimeoutError:
        raise Unavailable("Kafka can't be reached (no answer in time): see bootstrap.servers and whether the brokers are up") from None
    finally:
        await reader.stop()
    try:
        return await asyncio.to_thread(_ask, config, AdminClient(clients.confluent()))
    except KafkaException as exc:
        raise Unavailable(describe_kafka_error(exc)) from exc


def _ask(config: Config, client: AdminClient) -> Cluster:
    everything = frozenset(client.list_topics(timeout=CALL_S).topics)
    watched = config.watched(everything)
    names = {alerts_topic(config.app.id), status_topic(config.app.id), *watched}
    for topic, keys in watched.items():
        own = TopicNames.of(config.app.id, topic)
        names |= {own.observations, own.changelog, *_beside(keys)}
    found = _describe(client, sorted(names & everything))
    groups = {config.app.id, *(group for keys in watched.values() for group in _groups(keys))}
    partitions = [TopicPartition(topic, number) for topic in watched if topic in found for number in range(found[topic].partitions)]
    known = _known_groups(client)
    rights = {name: _group(client, name) if known is None or name in known else None for name in sorted(groups)}
    return Cluster(found, everything, _may_create(client), rights, _ends(client, partitions))


def _describe(client: AdminClient, names: list[str]) -> dict[str, Seen]:
    if not names:
        return {}
    described = client.describe_topics(TopicCollection(names), include_authorized_operations=True, request_timeout=CALL_S)
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    configs = {resource.name: future for resource, future in client.describe_configs(asked, request_timeout=CALL_S).items()}
    found = {}
    for name, future in described.items():
        try:
            topic = future.result()
        except KafkaException:
            continue  # it went meanwhile, or it is hidden: as if it were not there
        allowed = None if topic.authorized_operations is None else frozenset(topic.authorized_operations)
        found[name] = Seen(len(topic.partitions), allowed, _config(configs[name]))
    return found


def _config(future: Any) -> Mapping[str, str | None] | None:
    try:
        return {name: entry.value for name, entry in future.result().items()}
    except KafkaException:
        return None


def _may_create(client: AdminClient) -> bool | None:
    try:
        cluster = client.describe_cluster(include_authorized_operations=True, request_timeout=CALL_S).result()
    except KafkaException:
        return None
    allowed = cluster.authorized_operations
    return None if allowed is None else AclOperation.CREATE in allowed


def _group(client: AdminClient, name: str) -> frozenset[AclOperation] | str | None:
    try:
        (future,) = client.describe_consumer_groups([name], include_authorized_operations=True, request_timeout=CALL_S).values()
        group = future.result()
    except KafkaException as exc:
        return describe_kafka_error(exc)
    return None if group.state is ConsumerGroupState.DEAD else frozenset(group.authorized_operations or ())


def _known_groups(client: AdminClient) -> frozenset[str] | None:
    """Those that this principal may see; None: it may not ask for them."""
    try:
        return frozenset(group.group_id for group in client.list_consumer_groups(request_timeout=CALL_S).result().valid)
    except KafkaException:
        return None


def _ends(client: AdminClient, partitions: list[TopicPartition]) -> dict[tuple[str, int], int]:
    """Of those that answer."""
    found = {}
    if partitions:
        asked = client.list_offsets({one: OffsetSpec.latest() for one in partitions}, request_timeout=CALL_S)
        for one, future in asked.items():
            try:
                end = listed_offset(future)
            except KafkaException:
                continue  # it has no leader now: nothing hangs on it but how exactly a table is looked at
            if end is not None:
                found[one.topic, one.partition] = end
    return found


async def ends_now(config: Config, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Where the logs of these end now; those that answer."""
    wanted = [TopicPartition(topic, number) for number in partitions]
    client = AdminClient(KafkaClients.checked(config.kafka).confluent())
    try:
        found = await asyncio.to_thread(_ends, client, wanted)
    except KafkaException:
        return {}
    return {number: end for (_, number), end in found.items()}


async def ask_elsewhere(about: str, sink: TopicSink) -> list[Finding]:
    """A sink whose topics stand in another cluster."""
    try:
        client = AdminClient(KafkaClients.checked(sink.kafka, f"{about}.kafka").confluent())
        topics = await asyncio.to_thread(_ask_elsewhere, client, list(_topics_of(sink)))
    except KafkaException as exc:
        return [unknown(f"{about}.kafka", describe_kafka_error(exc))]
    return [one for name in _topics_of(sink) for one in _judge_other(about, name, (READ,), topics)]


def _ask_elsewhere(client: AdminClient, names: list[str]) -> dict[str, Seen]:
    everything = client.list_topics(timeout=CALL_S).topics
    return _describe(client, [name for name in names if name in everything])


def _beside(keys: Topic) -> Iterator[str]:
    """Topics of this cluster that the sinks of a topic read, and those that may be replayed to."""
    yield from keys.replay_to
    for sink in keys.sinks.values():
        yield from _read_by(sink)


def _read_by(sink: Sink) -> Iterator[str]:
    """In this cluster."""
    if isinstance(sink, TopicSink) and not sink.kafka:
        yield from _topics_of(sink)


def _topics_of(sink: TopicSink) -> Iterator[str]:
    yield sink.topic
    if sink.quarantine is not None:
        yield sink.quarantine.topic


def _groups(keys: Topic) -> Iterator[str]:
    for sink in keys.sinks.values():
        if sink.group is not None:
            yield sink.group


# --- what follows from it -----------------------------------------------------------------------------------------------------


def judge(config: Config, cluster: Cluster) -> Iterator[Finding]:
    """What is wrong of that. Pure."""
    yield ok(KAFKA, f"Kafka answers, and shows {len(cluster.all_topics)} topic{'' if len(cluster.all_topics) == 1 else 's'}")
    for key, pattern in config.patterns().items():
        if not any(pattern.fullmatch(name) for name in cluster.all_topics if config.topic(name) is not None):
            yield warning(f"topics.{key}", "no topic matches the pattern", "see its spelling, and whether this principal may describe them")
    for topic, keys in config.watched(cluster.all_topics).items():
        yield from _judge_watched(topic, keys, cluster)
    for wanted in _internal(config, cluster):
        yield from _judge_internal(wanted, cluster, create=config.app.topics.create)
    yield from _judge_groups(config, cluster)


def _judge_watched(topic: str, keys: Topic, cluster: Cluster) -> Iterator[Finding]:
    about = f"topics.{topic}"
    seen = cluster.topics.get(topic)
    if seen is None:
        yield error(
            about,
            f"Kafka has no topic {topic}, or hides it",
            "create it, take it out, or let this principal describe it",
            _acl(topic, "Describe"),
        )
        return
    lacks = list(_lacks(about, topic, seen, (READ,)))
    yield from lacks
    if seen.config is None or (seen.allowed is not None and CONFIGS not in seen.allowed):
        yield warning(
            about,
            f"the settings of {topic} may not be read: holes in its log can't be told from losses",
            "grant it",
            _acl(topic, "DescribeConfigs"),
        )
    elif not lacks:
        retention = seen.config.get("retention.ms")
        kept = "for ever" if retention in (None, "-1") else f"for {duration(int(retention or 0))}"
        yield ok(about, f"{seen.partitions} partitions, cleanup.policy {seen.config.get('cleanup.policy')}, records are kept {kept}")
        yield from _judge_retention(about, keys, retention)
    for name in keys.replay_to:
        yield from _judge_other(f"{about}.replay_to", name, (WRITE,), cluster.topics)
    for sink_name, sink in keys.sinks.items():
        for name in _read_by(sink):
            yield from _judge_other(f"{about}.sinks.{sink_name}", name, (READ,), cluster.topics)


def _judge_retention(about: str, keys: Topic, retention: str | None) -> Iterator[Finding]:
    """Records have to be there when they are looked at a second time, and some time beyond to be replayed."""
    longest = max((sink.grace for sink in keys.sinks.values()), default=0)
    if retention not in (None, "-1") and int(retention or 0) <= longest:
        kept = f"records are kept for {duration(int(retention or 0))}, and a sink has {duration(longest)} of grace"
        yield error(about, f"{kept}: they go before they are judged", "raise retention.ms of the topic, or lower grace")


def _judge_other(about: str, name: str, operations: tuple[AclOperation, ...], topics: Mapping[str, Seen]) -> Iterator[Finding]:
    seen = topics.get(name)
    if seen is None:
        yield error(
            about,
            f"Kafka has no topic {name}, or hides it",
            "see its name, and whether this principal may describe it",
            _acl(name, "Describe"),
        )
        return
    lacks = list(_lacks(about, name, seen, operations))
    yield from lacks or [ok(about, f"{name} is there")]


def _internal(config: Config, cluster: Cluster) -> Iterator[Wanted]:
    app, both = config.app, (READ, WRITE)
    yield Wanted(alerts_topic(app.id), app.topics.alerts.partitions, False, {"cleanup.policy": "delete"}, both)
    yield Wanted(status_topic(app.id), 1, False, {"cleanup.policy": "compact"}, both)
    for topic in config.watched(cluster.all_topics):
        if topic in cluster.topics:
            names, partitions = TopicNames.of(app.id, topic), cluster.topics[topic].partitions
            appended = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
            yield Wanted(names.changelog, partitions, True, {"cleanup.policy": "compact"}, both)
            yield Wanted(names.observations, partitions, True, appended, both)


def _judge_internal(wanted: Wanted, cluster: Cluster, *, create: bool) -> Iterator[Finding]:
    name, seen = wanted.name, cluster.topics.get(wanted.name)
    if seen is None:
        yield _not_there(wanted, cluster, create=create)
        return
    wrong = [*_lacks(name, name, seen, wanted.operations)]
    if wanted.exact and seen.partitions < wanted.partitions:
        statement = f"kafka-topics.sh --bootstrap-server ... --alter --topic {name} --partitions {wanted.partitions}"
        message = f"it has {seen.partitions} partitions, the topic that it belongs to {wanted.partitions}"
        wrong.append(warning(name, f"{message}: a worker adds them") if create else error(name, message, "add partitions", statement))
    elif wanted.exact and seen.partitions > wanted.partitions:
        message = (
            f"it has {seen.partitions} partitions, the topic that it belongs to {wanted.partitions}: was that one deleted and created anew?"
        )
        wrong.append(error(name, message, "delete this topic while no worker runs: what is known of the former topic goes with it"))
    for key, value in wanted.config.items() if seen.config is not None else ():
        if (seen.config or {}).get(key) != value:
            statement = (
                f"kafka-configs.sh --bootstrap-server ... --alter --entity-type topics --entity-name {name} --add-config {key}={value}"
            )
            wrong.append(error(name, f"{key} is {(seen.config or {}).get(key)}, and must be {value}", "set it", statement))
    yield from wrong or [ok(name, f"{seen.partitions} partitions, settings as they must be")]


def _not_there(wanted: Wanted, cluster: Cluster, *, create: bool) -> Finding:
    settings = " ".join(f"--config {key}={value}" for key, value in wanted.config.items())
    statement = f"kafka-topics.sh --bootstrap-server ... --create --topic {wanted.name} --partitions {wanted.partitions} {settings}"
    if not create:
        return error(wanted.name, "it is not there, or hidden, and app.topics.create is false", "create it", statement)
    match cluster.may_create:
        case True:
            return ok(wanted.name, "it is not there yet: a worker creates it")
        case False:
            return error(wanted.name, "it is not there, and this principal may create no topics", "create it, or grant Create", statement)
        case None:
            return unknown(wanted.name, "it is not there, and whether this principal may create it is not said", "create it", statement)


def _judge_groups(config: Config, cluster: Cluster) -> Iterator[Finding]:
    sinks = {
        sink.group: f"topics.{topic}.sinks.{name}"
        for topic, keys in config.watched(cluster.all_topics).items()
        for name, sink in keys.sinks.items()
        if sink.group is not None
    }
    for name, allowed in cluster.groups.items():
        about = "app.id" if name == config.app.id else sinks.get(name, name)
        needed = AclOperation.READ if name == config.app.id else AclOperation.DESCRIBE
        words = str(needed.name).capitalize()
        grant = f"kafka-acls.sh --bootstrap-server ... --add --allow-principal User:... --operation {words} --group {name}"
        if allowed is None and name == config.app.id:
            yield ok(about, f"group {name} is not there yet: the first worker makes it")
        elif allowed is None:
            yield warning(about, f"there is no group {name}: nobody has committed with it", "see its name")
        elif isinstance(allowed, str):
            yield unknown(about, f"group {name} can't be asked for: {allowed}", "grant it, if that is why", grant)
        elif allowed and needed not in allowed:
            yield error(about, f"this principal lacks {words} for group {name}", "grant it", grant)
        else:
            yield ok(about, f"group {name} may be used")


def _lacks(about: str, topic: str, seen: Seen, operations: Iterable[AclOperation]) -> Iterator[Finding]:
    if seen.allowed is None:
        yield unknown(about, f"what this principal may do with {topic} is not said", "see the brokers' version and ACLs")
        return
    for one in operations:
        if one not in seen.allowed:
            words = str(one.name).capitalize()
            yield error(about, f"this principal lacks {words} for topic {topic}", "grant it", _acl(topic, words))


def _acl(topic: str, operation: str) -> str:
    return f"kafka-acls.sh --bootstrap-server ... --add --allow-principal User:... --operation {operation} --topic {topic}"
