"""Reads the headers of copies in another topic, on this or another cluster: some of its partitions, from given positions.

One consumer of confluent-kafka per topic and worker, without a group: positions are kept with the state of whoever asks. It
reads ahead, no further than :data:`AHEAD_MAX` records a partition.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_app.kafka.clients import describe_kafka_error
from stream_app.sinks.copies import Source, SourceHeaders, source_of

AHEAD_MAX = 50_000
"""Records read ahead of a partition: about 10 MB of what their headers tell."""
BATCH = 5_000
POLL_SECONDS = 0.25
CALL_SECONDS = 5.0
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


@dataclass(slots=True)
class Copies:
    """What one partition holds from a position on."""

    position: int
    """Offset of the first record that may be in it."""
    next: int
    sources: list[Source | None] = field(default_factory=list)
    lost: bool = False
    """Records from the position asked for were removed before they were read."""


class CopyReader:
    """See the module. All methods but the consumer's own run on one event loop."""

    def __init__(self, where: CopyTopic) -> None:
        """Nothing is asked before :meth:`start`."""
        self.where = where
        self.trouble: str | None = None
        """Why nothing can be read now."""
        self.partitions: int | None = None
        """How many the topic has; None: not known yet."""
        self._held: dict[int, Copies] = {}
        self._paused: set[int] = set()
        self._wanted: dict[int, int] = {}
        self._changed = False
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

    def take(self, partition: int, position: int | None, *, at_end: bool = False) -> Copies | None:
        """What was read from ``position`` on (None: its beginning, or its end with ``at_end``); None: nothing yet, it is read from there.

        Whoever asks with another position than the last answer's ``next`` is answered from there.
        """
        held = self._held.get(partition)
        if held is not None and position in (held.position, None):
            if held.next == held.position and not held.lost:
                return None
            self._held[partition] = Copies(held.next, held.next)
            return held
        wanted = position if position is not None else OFFSET_END if at_end else OFFSET_BEGINNING
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
        while True:
            try:
                await self._read()
            except KafkaException as exc:
                self.trouble = f"topic {self.where.topic}: {describe_kafka_error(exc)}"
            except Exception:  # a defect of ours: the sink would seem to stand still without a word
                log.exception("a topic of copies is read anew after a defect", topic=self.where.topic)
            await asyncio.sleep(RETRY_SECONDS)

    async def _read(self) -> None:
        conf = {
            "fetch.queue.backoff.ms": 10,
            **self.where.conf,
            "group.id": f"{self.where.topic}.copies",  # demanded by librdkafka; no group is joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 16_384,
        }
        consumer = Consumer(conf, logger=_log)
        try:
            self._held.clear()
            self._changed = True
            while True:
                if self._changed:
                    await self._assign(consumer)
                self._pace(consumer)
                for message in await asyncio.to_thread(consumer.consume, BATCH, POLL_SECONDS):
                    self._take_in(message)
        finally:
            await asyncio.shield(asyncio.to_thread(consumer.close))

    async def _assign(self, consumer: Consumer) -> None:
        """What was assigned before and is still held goes on where it stands."""
        self._changed = False
        wanted = dict(self._wanted)
        self.partitions, ends = await asyncio.to_thread(_ends, consumer, self.where.topic, set(wanted))
        starts = []
        for partition, (low, high) in ends.items():
            if partition not in self._held:
                self._held[partition] = _begin(wanted[partition], low, high)
            starts.append(TopicPartition(self.where.topic, partition, self._held[partition].next))
        consumer.assign(starts)
        self._paused.clear()
        self.trouble = None

    def _take_in(self, message: Message) -> None:
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is not None:
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                held = None if partition is None else self._held.pop(partition, None)
                if partition is not None and held is not None:  # removed while it was read: begin where there is something, and say so
                    self._wanted[partition] = held.next
                self._changed = True
                return
            raise KafkaException(error)
        assert partition is not None
        assert offset is not None
        held = self._held.get(partition)
        if held is None or offset < held.next:
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


def _ends(consumer: Consumer, topic: str, partitions: set[int]) -> tuple[int, dict[int, tuple[int, int]]]:
    """How many partitions the topic has, and where those asked for begin and end. Blocks."""
    found = consumer.list_topics(topic, timeout=CALL_SECONDS).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    there = [partition for partition in sorted(partitions) if partition in found.partitions]
    ends = {partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CALL_SECONDS) for partition in there}
    return len(found.partitions), ends


def _begin(wanted: int, low: int, high: int) -> Copies:
    """Nothing read yet, from where it can be read; lost, if that is not where it was asked for."""
    if wanted == OFFSET_END:
        return Copies(high, high)
    if wanted == OFFSET_BEGINNING or low <= wanted <= high:
        return Copies(max(wanted, low), max(wanted, low))
    return Copies(wanted, low, lost=True)
