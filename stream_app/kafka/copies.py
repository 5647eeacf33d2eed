"""Reads the headers of copies in another topic, on this or another cluster: some of its partitions, from given positions.

One consumer of confluent-kafka per topic and worker, without a group: positions are kept with the state of whoever asks. It
reads ahead, no further than :data:`AHEAD_MAX` records a partition. What it read is handed on once the cluster, asked afterwards,
has named the topic's id: positions in a topic that was made anew are none in the old one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_app.kafka.clients import describe_kafka_error
from stream_app.kafka.cluster import Cluster, refusal, topic_of
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError
from stream_app.kafka.failures import KafkaError as Failure
from stream_app.kafka.protocol import EARLIEST, LATEST, ErrorCode, Isolation
from stream_app.kafka.wire import NO_UUID
from stream_app.sinks.copies import Source, SourceHeaders, source_of

AHEAD_MAX = 50_000
"""Records read ahead of a partition: about 10 MB of what their headers tell."""
BATCH = 5_000
POLL_SECONDS = 0.25
LOOK_SECONDS = 1.0
"""The topic's id, partitions and ends are asked for this often."""
RETRY_SECONDS = 2.0

log = structlog.get_logger("gapstream.copies")
_log = logging.getLogger("gapstream.kafka.client")
_log.addHandler(logging.NullHandler())  # else librdkafka writes its lines to stderr


@dataclass(frozen=True, slots=True)
class CopyTopic:
    """A topic of copies, and how to read it."""

    topic: str
    headers: SourceHeaders
    conf: Mapping[str, Any]
    """confluent-kafka's settings of its cluster."""
    settings: KafkaSettings
    """The same for questions of our own."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where every partition of the topic ended when it was asked."""

    at_ms: int
    """Worker's time before the question."""
    topic_id: bytes
    stops: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Wanted:
    """From where a partition is wanted."""

    position: int | None
    """None: its beginning, or its end with ``at_end``."""
    topic_id: bytes | None
    """Of the topic that the position is in."""
    at_end: bool = False


@dataclass(slots=True)
class Copies:
    """What one partition holds from a position on."""

    asked: Wanted
    next: int
    """One past what was read."""
    topic_id: bytes
    sources: list[Source | None] = field(default_factory=list)
    lost: bool = False
    """Records from the position asked for were removed before they were read, with their topic or without, or are passed over."""

    @property
    def news(self) -> bool:
        """Whether whoever asked has something to note."""
        return self.lost or self.asked != Wanted(self.next, self.topic_id)


class CopyReader:
    """See the module. All methods but the consumer's own run on one event loop."""

    def __init__(self, where: CopyTopic, clock_ms: Callable[[], int]) -> None:
        """Nothing is asked before :meth:`start`."""
        self.where, self._clock_ms = where, clock_ms
        self.trouble: str | None = None
        """Why nothing can be read now; None again once something, or an end, was read."""
        self.partitions: int | None = None
        """How many the topic has; None: not known yet."""
        self.ends: Ends | None = None
        """As they were asked last; None while they can't be."""
        self._topic_id = NO_UUID
        self._held: dict[int, Copies] = {}
        self._paused: set[int] = set()
        self._wanted: dict[int, Wanted] = {}
        self._changed = False
        self._proven = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read in the background until :meth:`stop`."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"copies {self.where.topic}")

    async def stop(self) -> None:
        """Give the consumer up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def take(self, partition: int, position: int | None, topic_id: bytes | None = None, *, at_end: bool = False) -> Copies | None:
        """What was read from ``position`` of ``topic_id`` on (None: its beginning, or its end with ``at_end``).

        None: nothing yet, it is read from there. Whoever asks with another position than the last answer's ``next`` is answered
        from there. Of a topic that has another id now everything is read, and what was not read of the old one is ``lost``.
        """
        wanted = Wanted(None, None, at_end) if position is None else Wanted(position, topic_id)
        held = self._held.get(partition)
        if held is not None and held.asked == wanted:
            if not held.news:
                return None
            self._wanted[partition] = Wanted(held.next, held.topic_id)
            self._held[partition] = Copies(self._wanted[partition], held.next, held.topic_id)
            return held
        if self._wanted.get(partition) != wanted or held is not None:
            self._held.pop(partition, None)
            self._wanted[partition] = wanted
            self._changed = True
        return None

    def leave(self, partition: int) -> None:
        """Nobody asks for it any more."""
        if self._wanted.pop(partition, None) is not None:
            self._held.pop(partition, None)
            self._changed = True

    async def _run(self) -> None:
        cluster = Cluster(self.where.settings)
        try:
            while True:
                try:
                    await self._read(cluster)
                except (KafkaException, Failure) as exc:
                    self.trouble, self.ends = f"topic {self.where.topic}: {describe_kafka_error(exc)}", None
                    await asyncio.sleep(RETRY_SECONDS)
                except Exception as exc:  # a defect of ours: the sink would seem to stand still without a word
                    log.exception("a topic of copies is read anew after a defect", topic=self.where.topic)
                    self.trouble, self.ends = f"topic {self.where.topic}: a defect ({type(exc).__name__}: {exc})", None
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            await cluster.close()

    async def _read(self, cluster: Cluster) -> None:
        """Until the topic is another one, or can't be read."""
        conf = {
            "fetch.queue.backoff.ms": 10,
            **self.where.conf,
            "group.id": f"{self.where.topic}.copies",  # demanded by librdkafka; no group is joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 16_384,
        }
        self._held.clear()
        self._changed, self._proven, looked = True, False, -math.inf
        self._topic_id, _ = await self._identify(cluster)
        consumer = Consumer(conf, logger=_log)
        try:
            while True:
                if asyncio.get_running_loop().time() - looked >= LOOK_SECONDS:
                    looked = asyncio.get_running_loop().time()
                    if not await self._look(cluster):
                        return
                if self._changed:
                    await self._assign(consumer, cluster)
                self._pace(consumer)
                found = await asyncio.to_thread(consumer.consume, BATCH, POLL_SECONDS)
                if found and (await self._identify(cluster))[0] != self._topic_id:
                    return  # nobody can tell which of the two it is of: it is read again
                for message in found:
                    self._take_in(message)
        finally:
            await asyncio.shield(asyncio.to_thread(consumer.close))

    async def _identify(self, cluster: Cluster) -> tuple[bytes, list[int]]:
        """The topic's id and its partitions, asked afresh."""
        topic = self.where.topic
        found = topic_of(await cluster.metadata([topic]), topic)
        if found.error == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION:
            raise BrokerError(found.error, "there is no such topic, or this principal may not describe it")
        if not found.exists:
            raise refusal(found.error, f"read topic {topic}")
        return found.topic_id, sorted(found.leaders)

    async def _look(self, cluster: Cluster) -> bool:
        """Ask for the topic's partitions and ends; False: it is another topic now."""
        at_ms = self._clock_ms()
        topic_id, partitions = await self._identify(cluster)
        if topic_id != self._topic_id:
            return False
        self.ends = Ends(at_ms, topic_id, await self._offsets(cluster, partitions, LATEST))
        self._changed = self._changed or self.partitions != len(partitions)
        self.partitions = len(partitions)
        self._trust()
        return True

    async def _offsets(self, cluster: Cluster, partitions: Iterable[int], timestamp: int) -> dict[int, int]:
        asked = [(self.where.topic, partition) for partition in partitions]
        found = await cluster.offsets_of(asked, timestamp, Isolation.READ_COMMITTED) if asked else {}
        return {partition: offset for (_, partition), offset in found.items()}

    def _trust(self) -> None:
        """That questions are answered does not show yet that the topic may be read."""
        if self._proven or not self._wanted:
            self.trouble = None

    async def _assign(self, consumer: Consumer, cluster: Cluster) -> None:
        """What was assigned before and is still held goes on where it stands."""
        self._changed = False
        assert self.ends is not None
        wanted = {partition: one for partition, one in self._wanted.items() if partition in self.ends.stops}
        fresh = [partition for partition in wanted if partition not in self._held]
        lows = await self._offsets(cluster, fresh, EARLIEST)
        highs = await self._offsets(cluster, fresh, LATEST)
        for partition in fresh:
            self._held[partition] = _begin(wanted[partition], self._topic_id, lows[partition], highs[partition])
        consumer.assign([TopicPartition(self.where.topic, partition, self._held[partition].next) for partition in wanted])
        self._paused.clear()

    def _take_in(self, message: Message) -> None:
        error, partition, offset = message.error(), message.partition(), message.offset()
        held = None if partition is None else self._held.get(partition)
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.code() not in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise KafkaException(error)
            if partition is not None and held is not None:  # removed while it was read: begin where there is something, and say so
                del self._held[partition]
            self._changed = True
            return
        self._proven = True
        self._trust()
        assert offset is not None
        if held is None or offset < held.next:
            return
        if error is not None:
            held.next = offset  # what lies between is of aborted transactions, or a marker
            return
        headers = message.headers()
        held.sources.append(source_of(list(headers.items()) if isinstance(headers, dict) else headers, self.where.headers))
        held.next = offset + 1

    def _pace(self, consumer: Consumer) -> None:
        """Stop reading ahead where nobody takes, go on where somebody did."""
        full = {partition for partition, held in self._held.items() if len(held.sources) >= AHEAD_MAX}
        for change, apply in ((full - self._paused, consumer.pause), (self._paused - full, consumer.resume)):
            if change:
                apply([TopicPartition(self.where.topic, partition) for partition in change])
        self._paused = full


def _begin(wanted: Wanted, topic_id: bytes, low: int, high: int) -> Copies:
    """Nothing read yet, from where it can be read; lost, if that is not where it was asked for."""
    if wanted.position is None and wanted.at_end:  # what is passed over may be of the topic as it is now, too
        return Copies(wanted, high, topic_id, lost=high > 0)
    if wanted.position is None:
        return Copies(wanted, low, topic_id)
    if wanted.topic_id == topic_id and low <= wanted.position <= high:
        return Copies(wanted, wanted.position, topic_id)
    if wanted.topic_id == topic_id != NO_UUID and wanted.position > high:
        return Copies(wanted, high, topic_id, lost=True)  # the log lost its end: what is left was read before
    return Copies(wanted, low, topic_id, lost=True)
