"""Reads the alerts topic with a plain consumer: no group, nothing committed, each event once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_app.alerts.event import AlertEvent, EventError, decode
from stream_app.alerts.fold import Fold
from stream_app.errors import Unavailable
from stream_app.kafka.clients import describe_kafka_error
from stream_app.kafka.names import alerts_topic

SILENCE_SECONDS = 30.0
"""Reading up to the end is given up after so long without an answer."""
BATCH = 500
POLL_SECONDS = 0.5

_log = logging.getLogger("gapstream.kafka.client")
_log.addHandler(logging.NullHandler())  # else librdkafka writes its lines to the caller's stderr


def subscribe(
    kafka_conf: Mapping[str, Any],
    app_id: str,
    *,
    from_time_ms: int | None = None,
    follow: bool = True,
    fold: Fold | None = None,
    on_malformed: Callable[[str], None] | None = None,
    on_trouble: Callable[[str], None] | None = None,
    timeout_s: float = 10.0,
) -> Iterator[AlertEvent]:
    """The events of ``<app_id>.alerts``, repeats dropped; in order for each topic, partition and sink.

    Args:
        kafka_conf: librdkafka's properties for reaching the cluster.
        app_id: ``app.id`` of the workers.
        from_time_ms: begin with what was written at this time or later; None: with the oldest event.
        follow: wait for more at the end; else stop at what was the end when reading began.
        fold: folds every event before it is handed out, so that its ``open_gaps`` are as of the event in hand. Without
            one, ``subscribe`` makes its own to know repeats by.
        on_malformed: told of each record that is no alert event, which is then left out; None: such a record is an error.
        on_trouble: told what the client says of brokers that can't be reached, while it goes on trying.
        timeout_s: how long to wait for each answer about the topic, before reading begins.

    Raises:
        Unavailable: the cluster can't be asked, refuses, or has no such topic.
        EventError: a record is no alert event, and ``on_malformed`` was not given.
    """
    fold = Fold(from_start=from_time_ms is None) if fold is None else fold
    reading = _Reading(kafka_conf, alerts_topic(app_id), on_trouble)
    try:
        reading.begin(from_time_ms, timeout_s)
        for message in reading.messages(follow):
            try:
                event = decode(message.value())
                fresh = fold.apply(event)
            except EventError as error:
                where = f"{message.topic()} partition {message.partition()} offset {message.offset()}: {error}"
                if on_malformed is None:
                    raise EventError(where) from error
                on_malformed(where)
                continue
            if fresh:
                yield event
    except KafkaException as error:
        raise _unavailable(error) from error
    finally:
        reading.close()


def _unavailable(error: KafkaException) -> Unavailable:
    return Unavailable(describe_kafka_error(error))


class _Reading:
    def __init__(self, kafka_conf: Mapping[str, Any], topic: str, on_trouble: Callable[[str], None] | None) -> None:
        self._topic = topic
        self._on_trouble = on_trouble
        self._trouble: str | None = None
        self._ends: dict[int, int] = {}
        conf = {
            "fetch.queue.backoff.ms": 10,  # one second by default, which holds a full read back
            **kafka_conf,
            "group.id": f"{topic}.reader",  # demanded by librdkafka; partitions are assigned by hand, so no group is joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",  # where retention took what was to be read; the fold notices the hole
            "error_cb": self._heard_trouble,
        }
        try:
            self._consumer = Consumer(conf, logger=_log)
        except KafkaException as error:
            raise _unavailable(error) from error

    def _heard_trouble(self, error: KafkaError) -> None:
        self._trouble = error.str()
        if self._on_trouble is not None:
            self._on_trouble(self._trouble)

    def close(self) -> None:
        self._consumer.close()

    def begin(self, from_time_ms: int | None, timeout_s: float) -> None:
        """Assign all partitions, each where reading is to begin."""
        found = self._consumer.list_topics(self._topic, timeout=timeout_s).topics[self._topic]
        if found.error is not None or not found.partitions:
            code = None if found.error is None else found.error.code()
            if code in (None, KafkaError.UNKNOWN_TOPIC_OR_PART):
                raise Unavailable(f"topic {self._topic} does not exist: see app.id, or start a worker, which creates it")
            raise KafkaException(found.error)
        partitions = [TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in sorted(found.partitions)]
        for partition in partitions:
            self._ends[partition.partition] = self._consumer.get_watermark_offsets(partition, timeout=timeout_s)[1]
        if from_time_ms is not None:
            asked = [TopicPartition(self._topic, p.partition, max(from_time_ms, 0)) for p in partitions]
            partitions = self._consumer.offsets_for_times(asked, timeout=timeout_s)
            for partition in partitions:
                if partition.error is not None:
                    raise KafkaException(partition.error)
                if partition.offset < 0:  # nothing is that late; what comes after this moment is
                    partition.offset = self._ends[partition.partition]
        self._consumer.assign(partitions)

    def messages(self, follow: bool) -> Iterator[Message]:
        """Records as they come; without ``follow`` until every partition reached the end it had at the beginning."""
        waiting = set(self._ends)
        heard = time.monotonic()
        while follow or waiting:
            batch = self._consumer.consume(BATCH, POLL_SECONDS)
            if batch:
                heard = time.monotonic()
            elif not follow and time.monotonic() - heard > SILENCE_SECONDS:
                raise Unavailable(f"topic {self._topic} can't be read to its end: {self._trouble or 'the brokers are silent'}")
            for message in batch:
                error, partition, offset = message.error(), message.partition(), message.offset()
                assert partition is not None
                if error is None:
                    assert offset is not None
                    if offset + 1 >= self._ends[partition]:
                        waiting.discard(partition)
                    if follow or offset < self._ends[partition]:
                        yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    waiting.discard(partition)
                elif error.fatal() or not error.retriable():
                    raise KafkaException(error)
