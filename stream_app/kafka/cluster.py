"""A cluster as the log reader sees it: who leads what, and the small questions beside Fetch.

Metadata, ListOffsets and OffsetForLeaderEpoch go over connections of their own: Kafka serves a connection one request at
a time, and a Fetch may wait at the end of a log for half a second.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterable, Mapping

from stream_app.core.model import LogEnds, other_topic
from stream_app.kafka.connection import Connection, Frame, KafkaSettings, open_connection
from stream_app.kafka.failures import BrokerError, KafkaError, MalformedError, RefusedError, UnreachableError, UnsupportedError
from stream_app.kafka.group_protocol import decode_offsets_of, encode_offsets_of
from stream_app.kafka.protocol import (
    EARLIEST,
    FETCH_BY_ID,
    LATEST,
    Api,
    ClusterInfo,
    ErrorCode,
    Isolation,
    Leader,
    Section,
    TopicInfo,
    Want,
    decode_epoch_end,
    decode_fetch,
    decode_list_offsets,
    decode_metadata,
    encode_epoch_end,
    encode_fetch,
    encode_list_offsets,
    encode_metadata,
    error_name,
    open_answer,
)
from stream_app.kafka.wire import NO_UUID

MOVED = frozenset(
    {
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.LEADER_NOT_AVAILABLE,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.REPLICA_NOT_AVAILABLE,
        ErrorCode.KAFKA_STORAGE_ERROR,
        ErrorCode.FENCED_LEADER_EPOCH,
        ErrorCode.UNKNOWN_LEADER_EPOCH,
        ErrorCode.OFFSET_NOT_AVAILABLE,
        ErrorCode.UNKNOWN_TOPIC_ID,
        ErrorCode.INCONSISTENT_TOPIC_ID,
    }
)
"""What a broker answers while leadership moves: ask for metadata again and go on."""


_BEYOND = 1 << 62


def refusal(code: int, what: str) -> KafkaError:
    """The error for an answer's error code; ``what`` was asked."""
    if code in (ErrorCode.TOPIC_AUTHORIZATION_FAILED, ErrorCode.CLUSTER_AUTHORIZATION_FAILED):
        return RefusedError(f"Kafka does not let us {what}; grant this principal READ and DESCRIBE")
    return BrokerError(code, f"Kafka answered {error_name(code)} when asked to {what}; see the broker's log if it lasts")


class Cluster:
    """Metadata, and connections by node."""

    def __init__(self, settings: KafkaSettings, *, caps: Mapping[Api, int] | None = None) -> None:
        """``caps`` lowers the protocol versions used, per API: how old brokers are tried without having one."""
        self.settings = settings
        self.brokers: dict[int, tuple[str, int]] = {}
        self._caps = dict(caps or {})
        self._control: dict[tuple[str, int], Connection] = {}
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}
        self._next_topics: set[str] = set()
        self._next_answer: asyncio.Task[ClusterInfo] | None = None
        self._asking: set[asyncio.Task[ClusterInfo]] = set()

    def anew(self) -> Cluster:
        """The same brokers over connections of its own."""
        other = Cluster(self.settings, caps=self._caps)
        other.brokers = dict(self.brokers)  # the bootstrap servers may be away by now
        return other

    async def close(self) -> None:
        """Closes every connection that is kept here."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        for connection in self._control.values():
            connection.close()
        self._control.clear()

    # ---------------------------------------------------------------------------------------------- connections

    async def open(self, node: int) -> Connection:
        """A fresh connection to a broker; the caller's.

        Raises:
            KafkaError: see :func:`open_connection`; :class:`UnreachableError` for a node that metadata does not list.
        """
        return await open_connection(self.settings, *self._address(node), caps=self._caps)

    def _address(self, node: int) -> tuple[str, int]:
        address = self.brokers.get(node)
        if address is None:
            raise UnreachableError(f"broker {node} is not in the cluster's metadata now; wait until it is back")
        return address

    async def connection(self, node: int) -> Connection:
        """The connection to a broker for small questions; stays this object's.

        Raises:
            KafkaError: as :meth:`open`.
        """
        return await self.connected(self._address(node))

    async def anybody(self) -> Connection:
        """A connection for small questions to some broker.

        Raises:
            KafkaError: none can be reached; the last one's reason.
        """
        failure: KafkaError = UnreachableError("no broker is known; name bootstrap servers")
        for address in self._addresses():
            try:
                return await self.connected(address)
            except KafkaError as error:
                failure = error
        raise failure

    def renew(self, node: int) -> None:
        """Closes that connection, so that the next question goes over a fresh one."""
        connection = self._control.pop(self._address(node), None)
        if connection is not None:
            connection.close()

    async def connected(self, address: tuple[str, int]) -> Connection:
        """The connection to ``address`` for small questions, opened where there is none.

        Raises:
            KafkaError: see :func:`open_connection`.
        """
        async with self._locks.setdefault(address, asyncio.Lock()):
            connection = self._control.get(address)
            if connection is None or connection.closed:
                connection = self._control[address] = await open_connection(self.settings, *address, caps=self._caps)
            return connection

    # ------------------------------------------------------------------------------------------------- metadata

    async def metadata(self, topics: Iterable[str] | None) -> ClusterInfo:
        """Asks afresh about ``topics`` (None: all), never creating one; questions of one moment travel together.

        Raises:
            KafkaError: no broker answered; the last one's reason.
        """
        if topics is None:
            return await self._ask_metadata(None)
        self._next_topics.update(topics)
        if self._next_answer is None:
            self._next_answer = task = asyncio.ensure_future(self._ask_soon())
            self._asking.add(task)
            task.add_done_callback(self._answered)
        return await asyncio.shield(self._next_answer)

    async def _ask_soon(self) -> ClusterInfo:
        await asyncio.sleep(0)  # whoever asks in the same turn of the loop travels along
        topics, self._next_topics, self._next_answer = sorted(self._next_topics), set(), None
        return await self._ask_metadata(topics)

    def _answered(self, task: asyncio.Task[ClusterInfo]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have been cancelled meanwhile

    async def _ask_metadata(self, topics: list[str] | None) -> ClusterInfo:
        failure: KafkaError = UnreachableError("no broker is known; name bootstrap servers")
        for address in self._addresses():
            try:
                connection = await self.connected(address)
                version = connection.version(Api.METADATA)
                info = decode_metadata(await connection.call(Api.METADATA, version, encode_metadata(version, topics)), version)
            except KafkaError as error:
                failure = error
            else:
                if info.brokers:
                    self._learn(info)
                    return info
                failure = UnreachableError(f"{connection.host}:{connection.port} knows no broker yet; wait until the cluster is up")
        raise failure

    def _addresses(self) -> list[tuple[str, int]]:
        """Whom to ask: the connected ones first, among them at random, so that one broker's stale view is not asked for ever."""
        addresses = list({*self.brokers.values(), *self.settings.bootstrap_servers})
        random.shuffle(addresses)
        return sorted(addresses, key=lambda address: (one := self._control.get(address)) is None or one.closed)

    def _learn(self, info: ClusterInfo) -> None:
        self.brokers = dict(info.brokers)
        for address in [*self._control]:
            if address not in self.brokers.values() and address not in self.settings.bootstrap_servers:
                self._control.pop(address).close()

    # --------------------------------------------------------------------------------------- questions to a leader

    async def offset(self, topic: str, partition: int, leader: Leader, timestamp: int, isolation: Isolation) -> int:
        """ListOffsets: where the log starts (``EARLIEST``) or ends (``LATEST``).

        Raises:
            KafkaError: not told; :class:`BrokerError` with a code of ``MOVED`` where another broker leads.
        """
        connection = await self.connection(leader.node)
        version = connection.version(Api.LIST_OFFSETS)
        body = encode_list_offsets(version, topic, partition, leader.epoch, timestamp, isolation)
        error, offset = decode_list_offsets(await connection.call(Api.LIST_OFFSETS, version, body), version)
        if error != ErrorCode.NONE:
            raise refusal(error, f"tell the offsets of {topic}/{partition}")
        if offset < 0:
            raise MalformedError(f"Kafka named offset {offset} as an end of {topic}/{partition}; see the broker's log")
        return offset

    async def offsets_of(self, partitions: Collection[tuple[str, int]], timestamp: int, isolation: Isolation) -> dict[tuple[str, int], int]:
        """Where these logs start (``EARLIEST``) or end (``LATEST``) now, one question to each of their leaders.

        Raises:
            KafkaError: not told of all of them.
        """
        info = await self.metadata(sorted({topic for topic, _ in partitions}))
        what = "starts" if timestamp == EARLIEST else "ends"
        by_leader: dict[int, dict[str, dict[int, int]]] = {}
        for topic, number in partitions:
            known = topic_of(info, topic)
            leader = known.leaders.get(number)
            if leader is None or leader.node < 0:
                raise refusal(known.error or ErrorCode.LEADER_NOT_AVAILABLE, f"name the leader of {topic}/{number}")
            by_leader.setdefault(leader.node, {}).setdefault(topic, {})[number] = leader.epoch
        found: dict[tuple[str, int], int] = {}
        for node, wanted in by_leader.items():
            connection = await self.connection(node)
            version = connection.version(Api.LIST_OFFSETS)
            answer = await connection.call(Api.LIST_OFFSETS, version, encode_offsets_of(version, wanted, timestamp, isolation))
            for (topic, number), (code, offset) in decode_offsets_of(answer, version).items():
                if code != ErrorCode.NONE:
                    raise refusal(code, f"tell where {topic}/{number} {what}")
                found[topic, number] = offset
        if lacking := sorted(set(partitions) - set(found)):
            topic, number = lacking[0]
            raise MalformedError(f"an answer about where logs {what[:-1]} lacks {topic}/{number}; is this a Kafka broker?")
        return found

    async def ends(self, topic: str, partition: int, leader: Leader) -> LogEnds:
        """All three ends, asked afresh: first the start, then the stable end, then the end, so that they are in order.

        Raises:
            KafkaError: as :meth:`offset`.
        """
        start = await self.offset(topic, partition, leader, EARLIEST, Isolation.READ_UNCOMMITTED)
        stable = await self.offset(topic, partition, leader, LATEST, Isolation.READ_COMMITTED)
        end = await self.offset(topic, partition, leader, LATEST, Isolation.READ_UNCOMMITTED)
        return LogEnds(start, end, min(stable, end))

    async def settled_ends(self, topic: str, partition: int, leader: Leader | None) -> LogEnds:
        """:meth:`ends`, from ``leader`` if that is still right, else from whoever leads; asks again while leadership moves.

        Raises:
            KafkaError: not told within the request timeout; the last reason. Refusals at once.
        """
        failure: KafkaError = UnreachableError(f"the ends of {topic}/{partition} were not told in time; see whether its leader is up")
        delay_s = 0.05
        try:
            async with asyncio.timeout(self.settings.request_timeout_ms / 1000):
                while True:
                    try:
                        return await self.ends(topic, partition, leader or await self.leader(topic, partition))
                    except (RefusedError, UnsupportedError):
                        raise
                    except KafkaError as error:
                        failure, leader = error, None
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, 1.0)
        except TimeoutError:
            raise failure from None

    async def leader(self, topic: str, partition: int) -> Leader:
        """Who leads, asked afresh.

        Raises:
            KafkaError: not told, no such topic or partition, or nobody leads.
        """
        info = topic_of(await self.metadata([topic]), topic)
        leader = info.leaders.get(partition)
        if info.exists and leader is not None and leader.node >= 0:
            return leader
        code = info.error if not info.exists else ErrorCode.LEADER_NOT_AVAILABLE if leader else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        raise refusal(code, f"name the leader of {topic}/{partition}")

    async def identify(self, topic: str, partition: int, topic_id: bytes) -> tuple[bytes, Leader]:
        """The topic's id and who leads, asked afresh; a ``topic_id`` of 16 zero bytes means whatever it is now.

        Raises:
            KafkaError: as :meth:`leader`; a BrokerError with UNKNOWN_TOPIC_ID where the topic has another id by now.
        """
        info = topic_of(await self.metadata([topic]), topic)
        if info.exists and other_topic(topic_id, info.topic_id):
            raise BrokerError(ErrorCode.UNKNOWN_TOPIC_ID, f"{topic} was deleted and created anew; its new incarnation can't be compared")
        leader = info.leaders.get(partition)
        if leader is None or leader.node < 0:
            raise refusal(info.error or ErrorCode.LEADER_NOT_AVAILABLE, f"name the leader of {topic}/{partition}")
        return info.topic_id, leader

    async def epoch_end(self, topic: str, partition: int, leader: Leader, epoch: int) -> tuple[int, int]:
        """OffsetForLeaderEpoch: the largest epoch not above ``epoch`` and where it ends; -1 and -1: the leader can't tell.

        Raises:
            KafkaError: as :meth:`offset`.
        """
        connection = await self.connection(leader.node)
        version = connection.version(Api.OFFSET_FOR_LEADER_EPOCH)
        body = encode_epoch_end(version, topic, partition, leader.epoch, epoch)
        error, found, end = decode_epoch_end(await connection.call(Api.OFFSET_FOR_LEADER_EPOCH, version, body), version)
        if error != ErrorCode.NONE:
            raise refusal(error, f"tell the epochs of {topic}/{partition}")
        return found, end

    async def knows_id(self, leader: Leader, topic: str, topic_id: bytes, partition: int) -> bool | None:
        """Whether the broker still has a topic of this id; None where it speaks no topic ids and can't tell.

        Raises:
            KafkaError: it could not be asked.
        """
        connection = await self.connection(leader.node)
        if connection.version(Api.FETCH) < FETCH_BY_ID:
            return None
        want = Want(topic, topic_id, partition, _BEYOND, -1, -1, 1)  # no log is that long: nothing is read
        frame, sections = await fetch(connection, [want], isolation=Isolation.READ_UNCOMMITTED, max_wait_ms=0, max_bytes=1)
        frame.release()
        return not any(one.error in (ErrorCode.UNKNOWN_TOPIC_ID, ErrorCode.INCONSISTENT_TOPIC_ID) for one in sections)


async def fetch(
    connection: Connection, wants: list[Want], *, isolation: Isolation, max_wait_ms: int, max_bytes: int
) -> tuple[Frame, list[Section]]:
    """One Fetch and its answer, whose frame the caller releases.

    Raises:
        KafkaError: no answer, or one with an error code of its own.
    """
    version = connection.version(Api.FETCH)
    body = encode_fetch(version, wants, isolation=isolation, max_wait_ms=max_wait_ms, max_bytes=max_bytes)
    frame = await connection.send(Api.FETCH, version, body)
    try:
        return frame, read_fetch(frame, version)
    except BaseException:
        frame.release()
        raise


def read_fetch(frame: Frame, version: int) -> list[Section]:
    """The partitions of an answer to Fetch.

    Raises:
        KafkaError: an error code for the whole answer, or bytes that make no sense.
    """
    error, sections = decode_fetch(open_answer(Api.FETCH, version, frame.view)[1], version)
    if error != ErrorCode.NONE:
        raise refusal(error, "fetch")
    return sections


def topic_of(info: ClusterInfo, topic: str) -> TopicInfo:
    """What the answer says of ``topic``; a topic that it leaves out does not exist."""
    return info.topics.get(topic) or TopicInfo(topic, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, NO_UUID)
