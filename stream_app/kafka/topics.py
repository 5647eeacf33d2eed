"""The topics that the program needs beside the watched ones: created as configured, grown with what they belong to.

Blocking calls of confluent-kafka's AdminClient run in a thread. Order of growth: the changelog first, the observations last,
since the observations decide what is handed out (:mod:`stream_app.kafka.assignor`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

from stream_app.kafka.clients import listed_offset
from stream_app.kafka.names import TopicNames, alerts_topic, status_topic

CALL_SECONDS = 5.0
"""One call at most: a worker that is told to stop waits for the one under way, and has ten seconds."""
NO_SUCH_TIME = -1
"""What a broker answers where no record is as late as the time that was asked for."""
STATUS_PARTITIONS = 6
"""Rows are spread by key, so that one transaction left open holds up a part of them only."""
CHANGELOG_DELETE_RETENTION_MS = 7 * 86_400_000
"""A tombstone stays for so long: a copy of the state that was away for less can't miss a deletion."""
T = TypeVar("T")


class TopicsUnavailable(Exception):
    """The cluster could not be asked, or refused; the message is a sentence for people."""


@dataclass(frozen=True, slots=True)
class InternalTopics:
    """How internal topics are made; from the section ``app.topics``."""

    create: bool
    replication_factor: int
    alerts_partitions: int
    alerts_retention_ms: int
    observations_retention_ms: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the cluster has."""

    cluster_id: str
    partitions: Mapping[str, int]
    """Topic -> number of partitions."""


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """Settings of a watched topic that judgements depend on; None: could not be asked."""

    compacted: bool | None = None
    retention_ms: int | None = None
    policy: str | None = None
    """cleanup.policy, as it stands there."""


@dataclass(slots=True)
class Topics:
    """Creates, grows and describes topics."""

    conf: Mapping[str, Any]
    """confluent-kafka's settings."""
    app_id: str
    internal: InternalTopics
    _client: AdminClient | None = field(default=None, repr=False)

    async def _call(self, what: str, call: Callable[[AdminClient], T]) -> T:
        def run() -> T:
            if self._client is None:
                self._client = AdminClient(dict(self.conf))
            return call(self._client)

        try:
            return await asyncio.to_thread(run)
        except KafkaException as exc:
            error = exc.args[0] if exc.args else exc
            text = error.str() if isinstance(error, KafkaError) else str(error)
            raise TopicsUnavailable(f"could not {what}: {text}") from exc

    async def find(self) -> Found:
        """All topics and their partition counts. Raises TopicsUnavailable."""
        metadata = await self._call("list the topics", lambda client: client.list_topics(timeout=CALL_SECONDS))
        partitions = {name: len(topic.partitions) for name, topic in metadata.topics.items() if topic.error is None}
        return Found(metadata.cluster_id or "unknown", partitions)

    async def ensure(self, watched: Mapping[str, TopicNames], found: Found) -> dict[str, int]:
        """Create or grow what is missing for the watched topics that exist; watched topic -> partitions that can be handed out.

        Where ``app.topics.create`` is false, what is missing is named in TopicsUnavailable.
        """
        have = found.partitions
        wanted = {
            alerts_topic(self.app_id): (self.internal.alerts_partitions, self._alerts()),
            status_topic(self.app_id): (STATUS_PARTITIONS, self._status()),
        }
        existing = {topic: names for topic, names in watched.items() if topic in have}
        for topic, names in existing.items():
            wanted[names.changelog] = (have[topic], self._changelog())
        for topic, names in existing.items():
            wanted[names.observations] = (have[topic], self._observations())
        missing = {name: how for name, how in wanted.items() if name not in have}
        if missing:
            await self._create(missing)
        for topic, names in existing.items():
            for name in (names.changelog, names.observations):
                if name in have and have[name] < have[topic]:
                    await self._grow(name, have[topic])
        return {topic: have[topic] for topic in existing}

    async def _create(self, missing: Mapping[str, tuple[int, dict[str, str]]]) -> None:
        if not self.internal.create:
            names = ", ".join(sorted(missing))
            raise TopicsUnavailable(
                f"these topics are missing and app.topics.create is false: {names}; create them, then the worker goes on"
            )
        new = [
            NewTopic(name, num_partitions=partitions, replication_factor=self.internal.replication_factor, config=config)
            for name, (partitions, config) in missing.items()
        ]

        def create(client: AdminClient) -> None:
            for future in client.create_topics(new, operation_timeout=CALL_SECONDS, request_timeout=CALL_SECONDS).values():
                try:
                    future.result()
                except KafkaException as exc:
                    if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise

        await self._call("create the internal topics", create)

    async def _grow(self, name: str, partitions: int) -> None:
        if not self.internal.create:
            raise TopicsUnavailable(f"topic {name} has fewer partitions than the topic it belongs to; give it {partitions}")

        def grow(client: AdminClient) -> None:
            for future in client.create_partitions([NewPartitions(name, partitions)], request_timeout=CALL_SECONDS).values():
                future.result()

        await self._call(f"add partitions to {name}", grow)

    async def describe(self, topic: str) -> TopicConfig:
        """cleanup.policy and retention of a topic; unknown where the cluster does not say."""

        def ask(client: AdminClient) -> Mapping[str, str | None]:
            resource = ConfigResource(ResourceType.TOPIC, topic)
            (future,) = client.describe_configs([resource], request_timeout=CALL_SECONDS).values()
            return {name: entry.value for name, entry in future.result().items()}

        try:
            config = await self._call("describe the topic", ask)
        except TopicsUnavailable:
            return TopicConfig()
        policy, retention = config.get("cleanup.policy"), config.get("retention.ms")
        by_time = policy is not None and "delete" in policy and retention is not None and int(retention) >= 0
        return TopicConfig(
            compacted=None if policy is None else "compact" in policy,
            retention_ms=int(retention) if by_time and retention is not None else None,
            policy=policy,
        )

    async def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """First offset whose record is not older; None: there is none yet. Raises TopicsUnavailable."""
        wanted = TopicPartition(topic, partition)

        def ask(client: AdminClient) -> int | None:
            (future,) = client.list_offsets({wanted: OffsetSpec.for_timestamp(timestamp_ms)}, request_timeout=CALL_SECONDS).values()
            return listed_offset(future)

        offset = await self._call(f"find the time in {topic}", ask)
        if offset is None:
            raise TopicsUnavailable(f"could not find the time in {topic}: the leader of partition {partition} did not answer")
        return None if offset == NO_SUCH_TIME else offset

    def _alerts(self) -> dict[str, str]:
        return {"cleanup.policy": "delete", "retention.ms": str(self.internal.alerts_retention_ms)}

    def _observations(self) -> dict[str, str]:
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.internal.observations_retention_ms),
            "message.timestamp.type": "LogAppendTime",
        }

    @staticmethod
    def _status() -> dict[str, str]:
        return {"cleanup.policy": "compact", "segment.ms": "3600000", "min.cleanable.dirty.ratio": "0.1"}

    @staticmethod
    def _changelog() -> dict[str, str]:
        return {
            "cleanup.policy": "compact",
            "segment.ms": "3600000",
            "min.cleanable.dirty.ratio": "0.1",
            "delete.retention.ms": str(CHANGELOG_DELETE_RETENTION_MS),
        }
