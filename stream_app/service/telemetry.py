"""What the service tells about itself: counters for the metrics, and log lines that don't flood."""

from __future__ import annotations

import time
from collections.abc import Mapping

import structlog

from stream_app.core.events import Event
from stream_app.core.policy import Policy
from stream_app.service.metrics import Counters

log = structlog.get_logger("gapstream")

SAY_AGAIN_SECONDS = 60.0
"""The same trouble is logged once in this time."""
SAID_MAX = 10_000


class Telemetry:
    """Counts, and says each trouble once a minute."""

    def __init__(self, counters: Counters) -> None:
        """``counters``: what /metrics reads."""
        self.counters = counters
        self._said: dict[tuple[object, ...], float] = {}
        self._sizes: dict[tuple[str, int], int] = {}

    def _may_say(self, *what: object) -> bool:
        now = time.monotonic()
        if now - self._said.get(what, -SAY_AGAIN_SECONDS) < SAY_AGAIN_SECONDS:
            return False
        if len(self._said) >= SAID_MAX:
            self._said.clear()
        self._said[what] = now
        return True

    def unavailable(self, topic: str, partition: int, reason: str) -> None:
        """Kafka could not be asked something; it is tried again."""
        if self._may_say("unavailable", topic):  # brokers that are away are the same news for every partition
            log.warning("waiting for Kafka", topic=topic, partition=partition, reason=reason)

    def trouble(self, what: str, **facts: object) -> None:
        """Anything else that is tried again."""
        if self._may_say(what, *sorted((name, str(value)) for name, value in facts.items() if name in ("topic", "partition", "sink"))):
            log.warning(what, **facts)

    def rejected(self, topic: str, partition: int, offset: int, reason: str, detail: str) -> None:
        """An observation was rejected whole."""
        counted = self.counters.observations_rejected_total
        counted[reason] = counted.get(reason, 0) + 1
        if self._may_say("rejected", topic, partition, reason):
            log.warning("observation rejected", topic=topic, partition=partition, offset=offset, reason=reason, detail=detail)

    def accepted(self) -> None:
        """An observation was folded."""
        self.counters.observations_total += 1

    def lost_observations(self, count: int) -> None:
        """Observations that were removed before they were read."""
        counted = self.counters.observations_rejected_total
        counted["removed_unread"] = counted.get("removed_unread", 0) + count

    def flushed(self, topic: str, partition: int, seconds: float, size: int) -> None:
        """A flush was committed; ``size``: bytes of the partition's state."""
        self.counters.flush_seconds.observe(seconds)
        self._sizes[topic, partition] = size
        self._sum_sizes(topic)

    def forgotten(self, topic: str, partition: int) -> None:
        """The partition is no longer owned."""
        self._sizes.pop((topic, partition), None)
        self._sum_sizes(topic)

    def _sum_sizes(self, topic: str) -> None:
        sizes = [size for (name, _), size in self._sizes.items() if name == topic]
        if sizes:
            self.counters.state_bytes[topic] = sum(sizes)
        else:
            self.counters.state_bytes.pop(topic, None)

    def told(self, event: Event, policies: Mapping[str, Policy]) -> None:
        """An event was committed."""
        counted = self.counters.alerts_total
        counted[str(event.type)] = counted.get(str(event.type), 0) + 1
        policy = policies.get(event.sink)
        if event.passed_at_ms is not None and policy is not None:
            delay = max(event.detected_at_ms - event.passed_at_ms - policy.grace_ms, 0) / 1000
            self.counters.detection_delay_seconds(event.topic, event.sink).observe(delay)
