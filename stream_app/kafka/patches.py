"""Two mends to aiokafka 0.14 that have no seam to hang them on; applied when this module is imported.

Both are small and named here, so that a newer aiokafka is checked against them before the dependency's range is widened.
"""

from __future__ import annotations

from typing import Any

import aiokafka.client
from aiokafka import errors
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.protocol.metadata import MetadataRequest

_contains_abort_marker = PartitionRecords._contains_abort_marker


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


PartitionRecords._contains_abort_marker = contains_abort_marker
aiokafka.client.MetadataRequest = QuietMetadataRequest
