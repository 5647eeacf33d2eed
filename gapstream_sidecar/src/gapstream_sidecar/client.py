"""librdkafka's producer, as far as it is used: what is called, what its errors mean, and its words kept from the host's stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from confluent_kafka import KafkaError

from gapstream_sidecar.complaints import CLIENT_LOGGER, Complaints
from gapstream_sidecar.deliveries import Key

NOT_WATCHED = frozenset(
    {
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)
"""Errors that say: nobody watches this partition, or not yet."""


class ProducerLike(Protocol):
    """The part of ``confluent_kafka.Producer`` that is used."""

    def produce(self, topic: str, value: bytes, *, partition: int, on_delivery: Callable[[KafkaError | None, Any], None]) -> None:
        """Queue a record. Raises BufferError, KafkaException."""

    def poll(self, timeout: float) -> int:
        """Wait for events and run their callbacks."""

    def purge(self) -> None:
        """Drop what is queued and in flight."""


class EndsLike(Protocol):
    """The part of ``ends.EndsReader`` that is used."""

    def find(self, keys: list[Key], found: Callable[[dict[Key, int | None]], None]) -> None:
        """Call ``found`` once, from any thread."""


def aside_settings(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Of a consumer that stands aside: it joins no group, commits nothing, and sees what open transactions wrote."""
    return {
        **conf,
        "group.id": "gapstream-sidecar",  # demanded by librdkafka
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_uncommitted",
        "logger": CLIENT_LOGGER,
    }


def client_settings(settings: Mapping[str, Any], complaints: Complaints) -> dict[str, Any]:
    """``settings`` with the callbacks that keep librdkafka from writing to the host's stderr."""

    def on_error(error: KafkaError) -> None:
        complaints.say("client", f"gapstream sidecar: brokers can't be used, reports are held back: {error}")

    return {**settings, "error_cb": on_error, "logger": CLIENT_LOGGER}
