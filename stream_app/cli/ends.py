"""Where the logs end of which lines speak: a line about what was not written yet would be rejected with all that is sent beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition

    from stream_app.cli.reports import Partition

ASK_SECONDS = 5.0
"""One request at most; then leaders are looked for anew."""
AGAIN_SECONDS = 0.5
"""Before those that did not answer are asked again."""
LOOK_SECONDS = 0.05
"""The longest wait between two looks at what else is due."""
NO_ANSWER = "Kafka did not answer: see bootstrap.servers and whether the brokers are up"


class AdminLike(Protocol):
    """The part of ``confluent_kafka.admin.AdminClient`` that is used."""

    def list_offsets(
        self, wanted: dict[TopicPartition, Any], /, *, isolation_level: Any, request_timeout: float
    ) -> Mapping[TopicPartition, Future[Any]]:
        """Ask for all of them; each future has an ``offset``, or raises KafkaException. Raises KafkaException."""


class Ends:
    """Asks for high watermarks, of many logs in one request."""

    def __init__(self, settings: Callable[[], dict[str, Any]], make_admin: Callable[[dict[str, Any]], AdminLike] | None = None) -> None:
        """``settings``: of the client, asked for with the first question. ``make_admin``: confluent-kafka's, unless another is given."""
        self._settings, self._make_admin = settings, make_admin
        self._admin: AdminLike | None = None

    def find(self, partitions: Iterable[Partition], go_on: Callable[[], bool]) -> dict[Partition, str]:
        """Set ``end`` of each; for those that don't tell it, why.

        These are asked again as long as ``go_on``, which is called several times a second while an answer is awaited; not those
        that are refused.
        """
        unknown = dict.fromkeys(partitions, NO_ANSWER)
        refused: dict[Partition, str] = {}
        while unknown:
            self._ask(unknown, refused, go_on)
            if not unknown or not _rest(go_on):
                break
            # A client keeps to the leaders that it knows, though they may have moved: a new one has to look for them.
            self._admin = None
        return unknown | refused

    def _ask(self, unknown: dict[Partition, str], refused: dict[Partition, str], go_on: Callable[[], bool]) -> None:
        """Take out of ``unknown`` those that answer, and those that are refused."""
        from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
        from confluent_kafka.admin import OffsetSpec

        from stream_app.kafka.clients import describe_kafka_error, listed_offset

        by_name = {(one.topic, one.number): one for one in unknown}
        wanted = {TopicPartition(topic, number): OffsetSpec.latest() for topic, number in by_name}
        try:
            asked = self._client().list_offsets(wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=ASK_SECONDS)
        except KafkaException as error:
            unknown.update(dict.fromkeys(unknown, describe_kafka_error(error)))
            return
        _wait(asked.values(), go_on)
        for where, future in asked.items():
            partition = by_name[where.topic, where.partition]
            if not future.done():
                continue
            try:
                end = listed_offset(future)
                if end is not None:
                    partition.end = max(partition.end, end)
                    del unknown[partition]
            except KafkaException as error:
                unknown[partition] = describe_kafka_error(error)
                if _is_refusal(error):
                    refused[partition] = unknown.pop(partition)

    def _client(self) -> AdminLike:
        """Kept while it is asked: its questions end with it."""
        from confluent_kafka.admin import AdminClient

        if self._admin is None:
            self._admin = (self._make_admin or AdminClient)(self._settings())
        return self._admin


def _wait(futures: Iterable[Future[Any]], go_on: Callable[[], bool]) -> None:
    left = set(futures)
    while left := wait(left, LOOK_SECONDS).not_done:
        if not go_on():
            return


def _rest(go_on: Callable[[], bool]) -> bool:
    """Whether to go on after a while."""
    until = time.monotonic() + AGAIN_SECONDS
    while going := go_on():
        left = until - time.monotonic()
        if left <= 0:
            break
        time.sleep(min(left, LOOK_SECONDS))
    return going


def _is_refusal(error: Exception) -> bool:
    """Whether it is about rights, which don't come by waiting."""
    from confluent_kafka import KafkaError

    return error.args[0].code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
