"""What consumer groups have committed, asked from outside: without being a member, and without changing anything.

Requests of our own rather than an administration client: librdkafka's ListConsumerGroupOffsets, up to 2.16 at least, ends the
whole process where a coordinator answers that it is none (librdkafka#5040), which every move of a coordinator can bring about.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from stream_app.kafka.cluster import Cluster, refusal
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError, KafkaError, MalformedError, RefusedError, UnreachableError
from stream_app.kafka.group_protocol import (
    Partition,
    decode_find_coordinator,
    decode_offset_fetch,
    encode_find_coordinator,
    encode_offset_fetch,
)
from stream_app.kafka.protocol import EARLIEST, Api, ErrorCode, Isolation

_ELSEWHERE = frozenset({ErrorCode.COORDINATOR_NOT_AVAILABLE, ErrorCode.NOT_COORDINATOR})
"""The group is another broker's: find out whose."""


class Groups:
    """Connections to coordinators, and who coordinates what."""

    def __init__(self, settings: KafkaSettings, *, caps: Mapping[Api, int] | None = None) -> None:
        """``caps``: as :class:`Cluster` has them."""
        self._cluster = Cluster(settings, caps=caps)
        self._coordinators: dict[str, tuple[str, int]] = {}

    async def close(self) -> None:
        """Closes every connection."""
        await self._cluster.close()

    async def committed(self, group: str, partitions: Collection[Partition]) -> dict[Partition, int | KafkaError | None]:
        """The group's commit of each partition; None: it has none there; an error: why that partition's is not told.

        A group that does not exist has no commits.

        Raises:
            KafkaError: nothing was told.
        """
        try:
            return await self._committed(group, partitions)
        except KafkaError as error:
            known = self._coordinators.pop(group, None)
            moved = isinstance(error, UnreachableError) or (isinstance(error, BrokerError) and error.code in _ELSEWHERE)
            if known is None or not moved:
                raise
        return await self._committed(group, partitions)

    async def _committed(self, group: str, partitions: Collection[Partition]) -> dict[Partition, int | KafkaError | None]:
        connection = await self._cluster.connected(await self._coordinator(group))
        version = connection.version(Api.OFFSET_FETCH)
        body = encode_offset_fetch(version, group, _by_topic(partitions))
        code, told = decode_offset_fetch(await connection.call(Api.OFFSET_FETCH, version, body), version)
        if code != ErrorCode.NONE:
            raise _refusal(code, group)
        found: dict[Partition, int | KafkaError | None] = {}
        for partition in partitions:
            if partition not in told:
                raise MalformedError(f"an answer about group {group} lacks {partition[0]}/{partition[1]}; is this a Kafka broker?")
            code, offset = told[partition]
            if code != ErrorCode.NONE:
                found[partition] = _refusal(code, group)
            else:
                found[partition] = offset if offset >= 0 else None
        return found

    async def _coordinator(self, group: str) -> tuple[str, int]:
        known = self._coordinators.get(group)
        if known is not None:
            return known
        connection = await self._cluster.anybody()
        version = connection.version(Api.FIND_COORDINATOR)
        answer = await connection.call(Api.FIND_COORDINATOR, version, encode_find_coordinator(version, group))
        code, address = decode_find_coordinator(answer)
        if code != ErrorCode.NONE:
            raise _refusal(code, group)
        self._coordinators[group] = address
        return address

    async def log_starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Where these logs start now, asked from their leaders.

        Raises:
            KafkaError: not told of all of them.
        """
        return await self._cluster.offsets_of(partitions, EARLIEST, Isolation.READ_UNCOMMITTED)


def _by_topic(partitions: Iterable[Partition]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for topic, number in partitions:
        found.setdefault(topic, []).append(number)
    return found


def _refusal(code: int, group: str) -> KafkaError:
    if code == ErrorCode.GROUP_AUTHORIZATION_FAILED:
        return RefusedError(f"Kafka does not let us see the commits of group {group}; grant this principal DESCRIBE on it")
    return refusal(code, f"tell the commits of group {group}")
