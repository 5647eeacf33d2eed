"""Reads the end of an observations topic: what owners before this one have said last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from gapstream_sidecar.client import aside_settings
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.leases import Session, sessions

STEPS = (500, 5_000, 50_000, 200_000)
"""So many records from the end are looked at, one step after the other until a statement is found: other sinks speak there too."""
PATIENCE_S = 10.0
"""For all of it."""

Found = Callable[[Key, list[Session]], None]


class TailReader:
    """Finds the last statements of a sink's owners, on a thread of its own."""

    def __init__(self, conf: Mapping[str, Any], topic_prefix: str, sink: str, complaints: Complaints) -> None:
        self._conf = {
            **aside_settings(conf),
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
        }
        self._topic_prefix = topic_prefix
        self._sink = sink
        self._complaints = complaints

    def find(self, keys: list[Key], own: str, found: Found) -> None:
        """Call ``found`` for each partition, with nothing where nothing can be read; returns at once."""
        threading.Thread(target=self._find, args=(keys, own, found), name="gapstream-sidecar-tail", daemon=True).start()

    def _find(self, keys: list[Key], own: str, found: Found) -> None:
        left = list(keys)
        deadline = time.monotonic() + PATIENCE_S
        try:
            consumer = Consumer(self._conf)
            try:
                while left:
                    key = left[0]
                    owners = self._owners(consumer, key, own, deadline)
                    left.pop(0)
                    found(key, owners)
            finally:
                consumer.close()
        except Exception as error:
            self._complaints.say(
                "tail",
                "gapstream sidecar: can't read the observations topic, so after a crash under auto-commit up to a second of records "
                f"may be told as missing: {error}",
            )
        for key in left:
            found(key, [])

    def _owners(self, consumer: Any, key: Key, own: str, deadline: float) -> list[Session]:
        topic = self._topic_prefix + key[0]
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, key[1]), timeout=_left(deadline))
        for step in STEPS:
            first = max(low, high - step)
            owners = sessions(self._read(consumer, TopicPartition(topic, key[1], first), high, deadline), self._sink, own)
            if owners or first == low:
                return owners
        return []

    def _read(self, consumer: Any, begin: TopicPartition, stop: int, deadline: float) -> list[bytes | None]:
        values: list[bytes | None] = []
        if begin.offset >= stop:
            return values
        consumer.assign([begin])
        while True:
            for message in consumer.consume(10_000, min(0.2, _left(deadline))):
                problem = message.error()
                if problem is not None and problem.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(problem)
                if problem is None and message.offset() < stop:
                    values.append(message.value())
                if problem is not None or message.offset() >= stop - 1:
                    consumer.unassign()
                    return values


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it takes longer than {PATIENCE_S:g} s")
    return left
