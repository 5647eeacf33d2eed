"""Kafka as the owners need it: thin, and every failure is one :class:`Unavailable` that says what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from faust.types import TP

from stream_app.core.codec import topic_id_text
from stream_app.core.model import Epochs, LogEnds, Look, Row, Runs
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import KafkaError
from stream_app.kafka.names import TopicNames
from stream_app.kafka.probe import look
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.topics import TopicConfig, Topics, TopicsUnavailable
from stream_app.service.context import TopicFacts, Unavailable
from stream_app.web.times import parse_time

CONFIG_SECONDS = 30.0
"""Topic settings are asked again after so long."""
HEARD_MS = 1_000
"""It is looked for sinks that are heard of this often."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a watched topic's log is read."""

    isolation: Isolation
    check_crcs: bool


class KafkaPort:
    """Implements :class:`stream_app.service.context.Port`."""

    def __init__(
        self,
        settings: KafkaSettings,
        reader: LogReader,
        topics: Topics,
        names: Mapping[str, TopicNames],
        readings: Mapping[str, Reading],
        clock_ms: Callable[[], int],
        seek: Callable[[TP, int], Awaitable[None]],
        rows: Callable[[str], list[Row] | None],
        copied: Callable[[str, str], Mapping[str, int]],
    ) -> None:
        """``seek``: the driver's way to position the observations. ``rows``: what all workers flushed of a topic; None: not known yet.
        ``copied``: how far they read its copies, by topic and incarnation."""
        self._rows, self._copied = rows, copied
        self._settings, self._reader, self._topics, self._names, self._readings = settings, reader, topics, names, readings
        self._clock_ms, self._seek = clock_ms, seek
        self._configs: dict[str, tuple[int, asyncio.Future[TopicConfig] | None]] = {}
        self._heard: dict[str, tuple[int, bytes, frozenset[str]]] = {}

    async def facts(self, topic: str) -> TopicFacts:
        """Ids and settings of a watched topic."""
        observations = self._names[topic].observations
        try:
            info = await self._reader.metadata([topic, observations])
        except KafkaError as exc:
            raise Unavailable(str(exc)) from exc
        found = {name: info.topics.get(name) for name in (topic, observations)}
        for name, one in found.items():
            if one is None or one.error:
                raise Unavailable(f"topic {name} does not exist now; waiting for it")
        config = await self.policy(topic, fresh=True)
        watched, observed = found[topic], found[observations]
        assert watched is not None
        assert observed is not None
        return TopicFacts(
            watched.topic_id, observed.topic_id, watched.partitions, observed.partitions, config.compacted, config.retention_ms
        )

    async def policy(self, topic: str, *, fresh: bool = False) -> TopicConfig:
        """Asked once for all partitions that want to know at the same time, and again after a while."""
        now = self._clock_ms()
        asked, answer = self._configs.get(topic, (0, None))
        if answer is None or now - asked > (0 if fresh and answer.done() else CONFIG_SECONDS * 1000):
            answer = asyncio.ensure_future(self._topics.describe(topic))
            self._configs[topic] = (now, answer)
        return await asyncio.shield(answer)

    async def first_partitions(self, topic: str, topic_id: bytes) -> int | None:
        """How many partitions this incarnation had when it was first seen, by the rows of those that were seen then."""
        rows = self._rows(topic)
        if rows is None:
            raise Unavailable("the status topic is not read to its end yet")
        incarnation = topic_id_text(topic_id)
        return min((row.topic_partitions for row in rows if row.incarnation == incarnation and row.topic_partitions), default=None)

    def heard_sinks(self, topic: str, topic_id: bytes) -> frozenset[str]:
        """By the rows of all partitions, looked at once a second for all of them."""
        now = self._clock_ms()
        at, known_id, heard = self._heard.get(topic, (now - HEARD_MS, topic_id, frozenset()))
        if now - at >= HEARD_MS or known_id != topic_id:
            incarnation = topic_id_text(topic_id)
            heard = frozenset(row.sink for row in self._rows(topic) or () if row.heard and row.incarnation == incarnation)
            self._heard[topic] = (now, topic_id, heard)
        return heard

    def copied(self, topic: str, topic_id: bytes) -> Mapping[str, int]:
        """As the status topic has it."""
        return self._copied(topic, topic_id_text(topic_id))

    async def ends(self, topic: str, partition: int) -> LogEnds:
        """The log's ends, asked afresh."""
        try:
            return await self._reader.ends(topic, partition)
        except KafkaError as exc:
            raise Unavailable(str(exc)) from exc

    async def offset_at(self, topic: str, partition: int, time: str) -> int | None:
        """First offset whose record is not older than a TIME."""
        try:
            return await self._topics.offset_at(topic, partition, parse_time(time, self._clock_ms()))
        except TopicsUnavailable as exc:
            raise Unavailable(str(exc)) from exc

    async def look(self, topic: str, partition: int, topic_id: bytes, runs: Runs, older_than_ms: int | None = None) -> Look:
        """A second look at candidates, on a fresh connection."""
        isolation = self._readings[topic].isolation
        try:
            return await look(self._settings, topic, partition, topic_id, isolation, runs, older_than_ms=older_than_ms)
        except KafkaError as exc:
            raise Unavailable(str(exc)) from exc

    def read_from(self, topic: str, partition: int, position: int, topic_id: bytes, leader_epoch: int, epochs: Epochs) -> None:
        """(Re)position the log reader."""
        reading = self._readings[topic]
        self._reader.assign(
            topic,
            partition,
            position,
            isolation=reading.isolation,
            check_crcs=reading.check_crcs,
            topic_id=topic_id,
            leader_epoch=leader_epoch,
            epochs=epochs,
        )

    def stop_reading(self, topic: str, partition: int) -> None:
        """No more of this log."""
        self._reader.unassign(topic, partition)

    async def hear_from(self, topic: str, partition: int, offset: int | None) -> int:
        """Position the observations.

        Where they begin and end is asked through the log reader: a question of aiokafka's waits on its connection behind a fetch
        that waits for news, a quarter of a second each, and a worker has many partitions.
        """
        ends = await self.ends(topic, partition)
        position = ends.log_start if offset is None else max(min(offset, ends.high_watermark), ends.log_start)
        try:
            await self._seek(TP(topic, partition), position)
        except Exception as exc:  # aiokafka's errors have no common base but Exception (IllegalStateError, KafkaError, TimeoutError)
            raise Unavailable(f"observations of {topic}/{partition} can't be read: {str(exc) or type(exc).__name__}") from exc
        return position
