"""Orders for the owners of all partitions of a topic, whichever workers they are: records on its observations topic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stream_app.core.model import Drop
from stream_app.kafka.names import TopicNames
from stream_app.sinks.order import encode_drop
from stream_app.web.api import Unavailable

log = structlog.get_logger("gapstream.orders")

WRITE_SECONDS = 5.0
"""Whoever gives the order waits so long: shorter than commands do."""


class Orders:
    """Orders are rare: each has a producer of its own, so that nothing is kept open for them."""

    def __init__(self, connection: Mapping[str, Any], names: Mapping[str, TopicNames], partitions: Callable[[], Mapping[str, int]]) -> None:
        """``connection``: aiokafka's. ``partitions``: of the watched topics that exist."""
        self._connection, self._names, self._partitions = dict(connection), names, partitions

    async def drop(self, topic: str, sink: str, by: str) -> int:
        """Have a sink forgotten; how many partitions were told. May be repeated.

        Raises:
            Unavailable: not all of them could be told.
        """
        partitions = self._partitions().get(topic, 0)
        if not partitions:
            raise Unavailable(f"topic {topic} does not exist now: try again when it does")
        producer = AIOKafkaProducer(**self._connection, acks="all", enable_idempotence=True)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await producer.start()
                for partition in range(partitions):
                    value = encode_drop(Drop(sink, by), topic, partition)
                    await producer.send_and_wait(self._names[topic].observations, value, key=sink.encode(), partition=partition)
        except (KafkaError, OSError) as error:  # TimeoutError is an OSError
            reason = str(error) or type(error).__name__
            raise Unavailable(f"not all partitions of {topic} could be told to drop {sink} ({reason}): try again") from error
        finally:
            with contextlib.suppress(KafkaError):  # what was acknowledged is written
                await producer.stop()
        log.info("a sink is to be dropped", topic=topic, sink=sink, by=by)
        return partitions
