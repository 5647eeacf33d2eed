"""Writes observations that came over HTTP to the observations topics, and says of each whether Kafka has it.

One idempotent producer, made when it is first needed, which never gives up what it was handed (``message.timeout.ms`` 0): were
one observation dropped and a later one of its source written, the dropped one would count as a repeat when it is sent again,
and its offsets would be missing for ever. So what is written of one partition is always a beginning of what was handed over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from gapstream_sidecar.settings import producer_settings
from stream_app.kafka.clients import describe_kafka_error
from stream_app.kafka.names import TopicNames
from stream_app.kafka.topics import Found, TopicsUnavailable
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.observation import VALUE_BYTES_MAX
from stream_app.web.api import Unavailable
from stream_app.web.observations import Failure, Line

log = structlog.get_logger("gapstream.observing")

WAIT_SECONDS = 5.0
"""A request waits so long for acknowledgements: longer than a leader's move takes, shorter than clients and SIGTERM wait."""
STOP_SECONDS = 1.0
"""What is under way has so long to be acknowledged when the worker stops: of its ten seconds."""
POLL_SECONDS = 0.5
"""The longest the thread stays inside the client: what ends it can't wake it there."""
BACKLOG_BYTES_MAX = 64 * 1024 * 1024
"""Handed over and not acknowledged: with brokers away, some eight requests of the largest size."""
BACKLOG_LINES_MAX = 90_000
"""The client's queue takes 100,000 records (``queue.buffering.max.messages`` in ``producer_settings``)."""
LOOK_SECONDS = 1.0
"""Partitions are asked for once in this time at most, whoever speaks of unknown ones."""
_RECORD_BYTES = 1024
"""Beside the value: headers of record, batch and request."""

Deliver = Callable[[KafkaError | None, Any], None]


class ProducerLike(Protocol):
    """The part of ``confluent_kafka.Producer`` that is used."""

    def produce(self, topic: str, value: bytes, *, partition: int, on_delivery: Deliver) -> None:
        """Queue a record. Raises BufferError, KafkaException."""

    def poll(self, timeout: float) -> int:
        """Wait for events and run their callbacks."""

    def purge(self) -> None:
        """Drop what is queued and in flight."""

    def __len__(self) -> int:
        """Records and events that are waiting."""


class _Batch:
    """The lines of one request. ``answered`` belongs to the producer's thread, ``handed`` to the loop: no lock is needed."""

    def __init__(self, size: int, size_bytes: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.bytes = size_bytes
        self.errors: list[KafkaError | None] = [None] * size
        self.acknowledged = bytearray(size)
        self.answered = 0
        self.handed: int | None = None
        """How many were handed over; None while that goes on."""

    def on_delivery(self, index: int) -> Deliver:
        def told(error: KafkaError | None, _message: Any) -> None:
            self.errors[index] = error
            self.acknowledged[index] = error is None
            self.answered += 1
            if self.answered == self.handed:
                self.loop.call_soon_threadsafe(self.finish)

        return told

    def hand_over(self, number: int) -> None:
        """All that will be handed over was; an answer that came meanwhile may have been the last."""
        self.handed = number
        if self.answered == number:
            self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class ObservationsWriter:
    """Implements :class:`stream_app.web.observations.Observing`."""

    def __init__(
        self,
        conf: Mapping[str, Any],
        names: Mapping[str, TopicNames],
        known: Callable[[], tuple[Mapping[str, int], str | None]],
        find: Callable[[], Awaitable[Found]],
        telemetry: Telemetry,
        *,
        make_producer: Callable[[dict[str, Any]], ProducerLike] = Producer,
    ) -> None:
        """``conf``: confluent-kafka's. ``known``: partitions of the topics that can be observed, and why the cluster can't be used now."""
        self._conf, self._names, self._known, self._find, self._telemetry = conf, names, known, find, telemetry
        self._make_producer = make_producer
        self._producer: ProducerLike | None = None
        self._thread: threading.Thread | None = None
        self._batches: set[_Batch] = set()
        self._look: asyncio.Task[Found] | None = None
        self._looked_at = 0.0
        self._trouble: str | None = None
        self._closing = self._closed = False

    # --- which partitions there are -----------------------------------------------------------------------------------

    def partitions(self) -> Mapping[str, int]:
        """As the worker last found them, less than ten seconds ago unless the cluster is away."""
        known, trouble = self._known()
        if not known and trouble is not None:
            raise Unavailable(f"not ready: {trouble}")
        return {topic: known.get(topic, 0) for topic in self._names}

    async def partitions_now(self) -> Mapping[str, int]:
        """Asked afresh, by one question for all who ask within a second."""
        now = asyncio.get_running_loop().time()
        if self._look is None or (self._look.done() and now - self._looked_at >= LOOK_SECONDS):
            self._look, self._looked_at = asyncio.ensure_future(self._find()), now
        try:
            found = await asyncio.shield(self._look)
        except TopicsUnavailable as error:
            raise Unavailable(f"not ready: {error}") from error
        return {topic: found.partitions.get(topic, 0) for topic in self._names}

    # --- writing ------------------------------------------------------------------------------------------------------

    async def write(self, lines: Sequence[Line]) -> Sequence[Failure | None]:
        """See :class:`stream_app.web.observations.Observing`."""
        size_bytes = sum(len(line.value) for line in lines)
        if self._closing:
            raise Unavailable("the worker is stopping: send them to another one")
        if not self._has_room(len(lines), size_bytes):
            raise Unavailable("Kafka has not acknowledged earlier observations, and nothing was taken of these: send them again later")
        try:
            producer = self._ready_producer()
        except KafkaException as error:
            raise Unavailable(f"nothing can be written to Kafka: {describe_kafka_error(error)}") from error
        batch = _Batch(len(lines), size_bytes)
        self._batches.add(batch)
        batch.done.add_done_callback(lambda _: self._batches.discard(batch))
        refusals = self._hand_over(producer, batch, lines)
        await asyncio.wait({batch.done}, timeout=WAIT_SECONDS)
        if any(batch.acknowledged):
            self._trouble = None
        return [refusals.get(index) or self._failure(batch, index) for index in range(len(lines))]

    def _has_room(self, lines: int, size_bytes: int) -> bool:
        waiting_lines = sum(len(batch.errors) - batch.answered for batch in self._batches)
        waiting_bytes = sum(batch.bytes for batch in self._batches)
        return waiting_lines + lines <= BACKLOG_LINES_MAX and waiting_bytes + size_bytes <= BACKLOG_BYTES_MAX

    def _hand_over(self, producer: ProducerLike, batch: _Batch, lines: Sequence[Line]) -> dict[int, Failure]:
        """Queue all lines, or those before the first that can't be: index of those that were not queued, and why."""
        for index, line in enumerate(lines):
            topic = self._names[line.topic].observations
            try:
                producer.produce(topic, line.value, partition=line.partition, on_delivery=batch.on_delivery(index))
            except (BufferError, KafkaException) as error:
                if isinstance(error, KafkaException):
                    self._note(error.args[0])
                batch.hand_over(index)
                failure = Failure(str(error) if isinstance(error, BufferError) else describe_kafka_error(error))
                return dict.fromkeys(range(index, len(lines)), failure)
        batch.hand_over(len(lines))
        return {}

    def _failure(self, batch: _Batch, index: int) -> Failure | None:
        if batch.acknowledged[index]:
            return None
        error = batch.errors[index]
        if error is None:
            why = "" if self._trouble is None else f": {self._trouble}"
            self._telemetry.trouble("observations that came over HTTP are not acknowledged", reason=self._trouble or "no answer")
            return Failure(f"Kafka did not acknowledge it within {WAIT_SECONDS:g} s{why}")
        self._note(error)
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return Failure("Kafka takes no record of that size: split it, and give the parts new sequences", refused=True)
        reason = describe_kafka_error(KafkaException(error))
        self._telemetry.trouble("observations that came over HTTP are refused", reason=reason)
        return Failure(reason)

    def _note(self, error: KafkaError) -> None:
        """A producer that failed for good is replaced by the next request."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._producer = None

    def _ready_producer(self) -> ProducerLike:
        if self._producer is None:
            producer = self._producer = self._make_producer(self._settings())
            self._thread = threading.Thread(target=self._serve, args=(producer,), name="observing", daemon=True)
            self._thread.start()
        return self._producer

    def _settings(self) -> dict[str, Any]:
        return {
            **producer_settings(self._conf, 2 * BACKLOG_BYTES_MAX),
            "linger.ms": 5,  # a body's lines share batches
            "message.max.bytes": VALUE_BYTES_MAX + _RECORD_BYTES,  # the broker judges what is left of it when it is compressed
            "error_cb": self._heard_trouble,
        }

    def _heard_trouble(self, error: KafkaError) -> None:
        self._trouble = error.str()

    def _serve(self, producer: ProducerLike) -> None:
        """The producer's thread: runs delivery callbacks until the worker stops, or until a replaced producer has nothing left."""
        while not self._closed and (producer is self._producer or len(producer)):
            producer.poll(POLL_SECONDS)
        producer.purge()  # or the client would wait for the brokers when it goes
        producer.poll(0)

    async def close(self) -> None:
        """Give what is under way a moment, then end: whoever still waits is told that it is not known."""
        self._closing = True
        if self._batches:
            await asyncio.wait({batch.done for batch in self._batches}, timeout=STOP_SECONDS)
        self._closed = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 2 * POLL_SECONDS)
        self._producer = None
