"""Five mends to aiokafka 0.14 that have no seam to hang them on; applied when this module is imported.

All are small and named here, so that a newer aiokafka is checked against them before the dependency's range is widened.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiokafka.client
from aiokafka import errors
from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import Sender
from aiokafka.protocol.metadata import MetadataRequest

log = logging.getLogger("gapstream.kafka")

_contains_abort_marker = PartitionRecords._contains_abort_marker
_failure = MessageBatch.failure
_find_coordinator = Sender._find_coordinator
_proc_fetch_request = Fetcher._proc_fetch_request


def contains_abort_marker(self: Any, batch: Any) -> bool:
    """An emptied control batch is no abort marker, as in Java (KAFKA-7467); aiokafka raises, and stalls under read_committed.

    Compaction leaves such batches behind on transactional, compacted topics: every changelog of ours, and the status topic.
    """
    try:
        return bool(_contains_abort_marker(self, batch))
    except errors.KafkaError as exc:
        if "did not contain any records" in str(exc):
            return False
        raise


class QuietMetadataRequest(MetadataRequest):  # type: ignore[misc]  # aiokafka ships no types
    """Asks for topics without creating them: a watched topic that is away must not come back with another partition count."""

    def __init__(self, topics: list[str] | None = None) -> None:
        """``topics``: names, or None for all."""
        super().__init__(topics, allow_auto_topic_creation=False)


def failure(self: Any, exception: BaseException) -> None:
    """A batch that fails tells it by its records' futures; its own waiter for room in the buffer has nobody who waits.

    asyncio would report that one as forgotten, with a traceback, each time that a producer is fenced.
    """
    _failure(self, exception)
    if not self._drain_waiter.cancelled():
        self._drain_waiter.exception()


async def find_coordinator(self: Any, kind: Any, key: str) -> int:
    """A connection that breaks while the coordinator is asked for is no more than one that can't be made: it is asked for again.

    aiokafka ends the producer for good then, with a traceback. How long a transaction may take is bounded by who writes it.
    """
    while True:
        try:
            node: int = await _find_coordinator(self, kind, key)
        except errors.KafkaError as exc:
            if not isinstance(exc.__cause__, errors.KafkaConnectionError):
                raise
            await self.client.force_metadata_update()
            await asyncio.sleep(self._retry_backoff)
        else:
            return node


async def proc_fetch_request(self: Any, assignment: Any, node_id: int, request: Any) -> bool:
    """A fetch that is cancelled in its pause after a failure ends as one that is cancelled before it: with nothing.

    aiokafka's consumer would not close while brokers are away, and end Faust's thread with a traceback.
    """
    try:
        return bool(await _proc_fetch_request(self, assignment, node_id, request))
    except asyncio.CancelledError:
        return False


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For the loops that aiokafka works in: an error of Kafka that nobody waited for is told where somebody did.

    What else asyncio reports is a defect, with its traceback.
    """
    error = context.get("exception")
    if isinstance(error, errors.KafkaError):
        log.debug("a Kafka error that nobody waited for: %s: %s", type(error).__name__, error)
    else:
        loop.default_exception_handler(context)


PartitionRecords._contains_abort_marker = contains_abort_marker
MessageBatch.failure = failure
Sender._find_coordinator = find_coordinator
Fetcher._proc_fetch_request = proc_fetch_request
aiokafka.client.MetadataRequest = QuietMetadataRequest
