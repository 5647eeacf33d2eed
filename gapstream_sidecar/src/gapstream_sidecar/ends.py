"""Asks where logs end, and whether they are watched: what a replayed record's headers tell lies below that, or they are wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from gapstream_sidecar.client import aside_settings
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import NOWHERE, UNWATCHED

PATIENCE_S = 5.0
"""For all partitions that are asked for at once."""

Found = Callable[[dict[Key, int | None]], None]
"""High watermark of each partition, ``NOWHERE`` or ``UNWATCHED``; None where it could not be asked."""


class EndsReader:
    """Asks on a thread and with a client of its own, both gone afterwards: replays are rare."""

    def __init__(self, conf: Mapping[str, Any], topic_prefix: str, complaints: Complaints) -> None:
        """``conf``: connection settings. ``topic_prefix``: of the topics of observations."""
        self._conf = aside_settings(conf)  # under read_committed the last stable offset would be told
        self._topic_prefix = topic_prefix
        self._complaints = complaints

    def find(self, keys: list[Key], found: Found) -> None:
        """Call ``found`` once, with all of them; returns at once."""
        threading.Thread(target=self._find, args=(keys, found), name="gapstream-sidecar-ends", daemon=True).start()

    def _find(self, keys: list[Key], found: Found) -> None:
        ends: dict[Key, int | None] = dict.fromkeys(keys)
        try:
            self._ask(ends)
        except Exception as error:
            self._tell(error)
        found(ends)

    def _ask(self, ends: dict[Key, int | None]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        consumer = Consumer(self._conf)
        try:
            watched: dict[str, frozenset[int]] = {}
            for topic, partition in ends:
                try:
                    ends[topic, partition] = self._end(consumer, topic, partition, watched, deadline)
                except KafkaException as error:
                    self._tell(error)
        finally:
            consumer.close()

    def _end(self, consumer: Consumer, topic: str, partition: int, watched: dict[str, frozenset[int]], deadline: float) -> int | None:
        if topic not in watched:
            watched[topic] = self._watched(consumer, topic, _left(deadline))
        if partition not in watched[topic]:
            return NOWHERE if watched[topic] else UNWATCHED
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_left(deadline))
        return end if end >= 0 else None

    def _tell(self, error: Exception) -> None:
        self._complaints.say("ends", f"gapstream sidecar: can't ask who is watched and where logs end: {error}")

    def _watched(self, consumer: Consumer, topic: str, timeout: float) -> frozenset[int]:
        name = self._topic_prefix + topic
        try:
            found = consumer.list_topics(name, timeout=timeout).topics[name]
        except KafkaException as error:  # a name that no topic can have
            if error.args[0].code() in (KafkaError.TOPIC_EXCEPTION, KafkaError._INVALID_ARG):
                return frozenset()
            raise
        if found.error is not None and found.error.code() not in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION):
            raise KafkaException(found.error)
        return frozenset(found.partitions)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
