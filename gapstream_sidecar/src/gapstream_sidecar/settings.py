"""The producer's configuration, made from what the application gives to its own clients.

Names and defaults: librdkafka's CONFIGURATION.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONSUMER_ONLY = frozenset(
    {
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "check.crcs",
        "consume.callback.max.messages",
        "coordinator.query.interval.ms",
        "default.topic.config",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.partition.eof",
        "heartbeat.interval.ms",
        "isolation.level",
        "key.deserializer",
        "max.poll.interval.ms",
        "offset_commit_cb",
        "on_commit",
        "partition.assignment.strategy",
        "session.timeout.ms",
        "value.deserializer",
    }
)
_CONSUMER_PREFIXES = ("fetch.", "group.", "offset.store.", "queued.", "share.")
_OURS_TO_DECIDE = frozenset(
    {
        # Durability and order: an observation that is acknowledged must be there, once and in order. Aliases too.
        "acks",
        "request.required.acks",
        "delivery.timeout.ms",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.send.max.retries",
        "message.timeout.ms",
        "retries",
        "queuing.strategy",
        "transaction.timeout.ms",
        "transactional.id",
        # Speed and size.
        "compression.codec",
        "compression.level",
        "compression.type",
        "linger.ms",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        # Callbacks: the application's are about the application's client.
        "delivery.report.only.error",
        "dr_cb",
        "dr_msg_cb",
        "error_cb",
        "logger",
        "on_delivery",
        "statistics.interval.ms",
        "stats_cb",
        "throttle_cb",
        # Not needed: the value is bytes and the partition is given.
        "key.serializer",
        "partitioner",
        "partitioner_cb",
        "value.serializer",
    }
)


def connection_settings(conf: Mapping[str, Any]) -> dict[str, Any]:
    """What any client of ours takes from ``conf``: connection and security.

    A consumer's or a producer's configuration may be handed in whole: properties that are not for our clients are left out.
    """
    chosen = {
        name: value
        for name, value in conf.items()
        if name not in _CONSUMER_ONLY and name not in _OURS_TO_DECIDE and not name.startswith(_CONSUMER_PREFIXES)
    }
    chosen.setdefault("client.id", "gapstream-sidecar")
    chosen.setdefault("reconnect.backoff.max.ms", 2_000)  # librdkafka's 10 s would be added to every outage
    chosen.setdefault("log.connection.close", False)
    chosen["allow.auto.create.topics"] = False  # only gapstream knows how many partitions the topic must have
    return chosen


def producer_settings(conf: Mapping[str, Any], max_backlog_bytes: int) -> dict[str, Any]:
    """Configuration of the producer of observations: ``conf``'s connection and security, everything else ours."""
    chosen = connection_settings(conf)
    chosen.setdefault("topic.metadata.refresh.interval.ms", 10_000)  # its 5 min would be how long a topic's growth stays unseen
    chosen.update(
        {
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": 0,  # never give up: the sidecar holds one observation a partition in the client at a time
            "linger.ms": 0,  # the sidecar gathers; what it hands over is due
            "compression.type": "lz4",
            "queue.buffering.max.kbytes": max(1_024, max_backlog_bytes // 1_024),
            "queue.buffering.max.messages": 100_000,
        }
    )
    return chosen
