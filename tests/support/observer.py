"""A sink without an application: writes observations straight onto the observations topic, and remembers what it said."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

FLUSH_S = 30.0
Closed = Sequence[int]
"""First and last offset."""


class Observer:
    """Reports for one sink of one application; each report has a source and the next sequence, unless it says otherwise."""

    def __init__(self, bootstrap: str, app_id: str, sink: str = "billing") -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2, "enable.idempotence": True, "log_level": 2})
        self._app_id, self._sink = app_id, sink
        self.source = f"observer-{uuid.uuid4().hex[:8]}"
        self._sequence = 0
        self._failed: list[KafkaError] = []

    def say(self, topic: str, partition: int, runs: Iterable[Closed] = (), **fields: Any) -> None:
        """One observation, not flushed; ``runs`` are closed."""
        self._sequence += 1
        value: dict[str, Any] = {"v": 1, "sink": self._sink, "topic": topic, "partition": partition, "source": self.source}
        value |= {"sequence": self._sequence, "runs": [list(run) for run in runs]}
        self.write(topic, partition, json.dumps({name: one for name, one in {**value, **fields}.items() if one is not None}).encode())

    def write(self, topic: str, partition: int, value: bytes | None) -> None:
        """Any bytes where an observation should be, not flushed."""
        self._producer.produce(f"{self._app_id}.observations.{topic}", value, partition=partition, on_delivery=self._delivered)
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(error)

    def flush(self) -> None:
        """Return when all of it was acknowledged; AssertionError if not."""
        left = self._producer.flush(FLUSH_S)
        assert (left, self._failed) == (0, []), f"{left} observations were not acknowledged, {self._failed} refused"

    def received(self, topic: str, partition: int, *runs: Closed, **fields: Any) -> None:
        """Say it and flush."""
        self.say(topic, partition, runs, **fields)
        self.flush()
