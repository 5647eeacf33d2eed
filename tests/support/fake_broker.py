"""Brokers that answer as told: what a real one does only by accident, and never when a test asks for it.

They speak Kafka's protocol by Kafka's own message descriptions. Not imitated: sessions, quotas, followers, compaction,
transactions (a log's markers and its list of aborted transactions are given by hand), long polls that several partitions wait for.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.support.kafka_messages import Message

FETCH, LIST_OFFSETS, METADATA, OFFSET_FETCH, FIND_COORDINATOR, API_VERSIONS, EPOCH_END = 1, 2, 3, 9, 10, 18, 23
_NAMES = {
    FETCH: "Fetch",
    LIST_OFFSETS: "ListOffsets",
    METADATA: "Metadata",
    OFFSET_FETCH: "OffsetFetch",
    FIND_COORDINATOR: "FindCoordinator",
    API_VERSIONS: "ApiVersions",
    EPOCH_END: "OffsetForLeaderEpoch",
}
KAFKA_4_1 = {
    FETCH: (4, 18),
    LIST_OFFSETS: (1, 11),
    METADATA: (0, 13),
    OFFSET_FETCH: (1, 10),
    FIND_COORDINATOR: (0, 6),
    API_VERSIONS: (0, 4),
    EPOCH_END: (2, 4),
}

_OUT_OF_RANGE, _UNKNOWN_TOPIC, _NOT_LEADER, _NOT_COORDINATOR, _FENCED, _UNKNOWN_EPOCH, _UNKNOWN_ID = 1, 3, 6, 16, 74, 75, 100


@dataclass
class FakeLog:
    """One partition. ``batches`` are in offset order; the end follows from them unless it is set."""

    batches: list[bytes] = field(default_factory=list)
    start: int = 0
    end: int | None = None
    """High watermark."""
    stable: int | None = None
    """Last stable offset; default: the end."""
    aborted: list[tuple[int, int]] = field(default_factory=list)
    leader: int = 0
    epoch: int = 0
    epoch_ends: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Answers to OffsetForLeaderEpoch that differ from (asked epoch, end)."""
    faults: list[int] = field(default_factory=list)
    """Error codes that the next fetches get instead of records."""
    follower_end: int | None = None
    """Nodes that don't lead serve fetches too, as followers do (KIP-392), and hold the log up to here; None: they refuse."""
    named: list[int] = field(default_factory=list)
    """Nodes that the next answers to Metadata name as the leader: brokers whose view is old."""
    silent: bool = False
    """Give no records, without an error."""

    @property
    def high_watermark(self) -> int:
        """As Fetch and ListOffsets tell it."""
        return self.end if self.end is not None else max((_last(one) + 1 for one in self.batches), default=self.start)

    @property
    def last_stable(self) -> int:
        """Likewise."""
        return self.high_watermark if self.stable is None else self.stable


@dataclass
class FakeTopic:
    """One topic."""

    topic_id: bytes
    logs: dict[int, FakeLog]


@dataclass
class FakeGroup:
    """What a consumer group committed."""

    commits: dict[tuple[str, int], int] = field(default_factory=dict)
    coordinator: int = 0
    faults: list[int] = field(default_factory=list)
    """Error codes that the next questions about its commits get."""
    refused: dict[tuple[str, int], int] = field(default_factory=dict)
    """Error codes of single partitions."""
    no_coordinator: int = 0
    """Error code instead of a coordinator."""


@dataclass(frozen=True)
class Asked:
    """One request that came in."""

    node: int
    connection: int
    """Number of the connection, counted over all nodes."""
    api: int
    version: int
    body: dict[str, Any]


class FakeCluster:
    """``async with`` starts and stops it; change its attributes at will while it runs, then call :meth:`changed`."""

    def __init__(self, nodes: int = 1) -> None:
        self.topics: dict[str, FakeTopic] = {}
        self.groups: dict[str, FakeGroup] = {}
        self.offered: dict[int, tuple[int, int]] = dict(KAFKA_4_1)
        self.asked: list[Asked] = []
        self.send_in_pieces_of: int | None = None
        self.damage: Callable[[Asked, bytes], bytes] = lambda _, records: records
        """What is done to the records of an answer on their way."""
        self.tamper: Callable[[Asked, bytes], bytes | None] = lambda _, answer: answer
        """What is done to a whole answer (without its size); None: the connection is closed instead."""
        self.partial_batches = False
        """Cut an answer at the size asked for, as brokers did before Fetch v3, and end it inside a batch."""
        self.hangs = False
        """Take fetches and answer none until this is False and :meth:`changed` is called."""
        self.before_epochs: Callable[[], None] = lambda: None
        """Called before OffsetForLeaderEpoch is answered."""
        self.served = asyncio.Event()
        """Set with every request."""
        self._nodes = nodes
        self._servers: list[asyncio.Server] = []
        self._addresses: list[tuple[str, int]] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._connections = 0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> FakeCluster:
        """Listens on a free port of loopback per node."""
        for node in range(self._nodes):
            server = await asyncio.start_server(partial(self._serve, node), "127.0.0.1", 0)
            self._servers.append(server)
            self._addresses.append(("127.0.0.1", int(server.sockets[0].getsockname()[1])))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes everything."""
        self.served.set()
        for server in self._servers:
            server.close()
        self.drop_connections()
        self.hangs = False
        self.changed()
        if self._serving:
            await asyncio.wait(self._serving)
        for server in self._servers:
            await server.wait_closed()

    # --------------------------------------------------------------------------------------------------- control

    def add(self, topic: str, *logs: FakeLog, topic_id: bytes | None = None) -> FakeTopic:
        """Makes a topic with these partitions."""
        made = FakeTopic(topic_id or topic.encode().ljust(16, b".")[:16], dict(enumerate(logs)))
        self.topics[topic] = made
        return made

    def address(self, node: int = 0) -> tuple[str, int]:
        """Host and port."""
        return self._addresses[node]

    def changed(self) -> None:
        """Wakes the fetches that wait at the end of a log."""
        self._changed.set()
        self._changed = asyncio.Event()

    def drop_connections(self) -> None:
        """Closes all that are open."""
        for writer in [*self._writers]:
            writer.transport.abort()

    def stop_node(self, node: int) -> None:
        """Listens no more; its connections are dropped by :meth:`drop_connections`."""
        self._servers[node].close()

    def requests(self, api: int) -> list[Asked]:
        """Those that came in."""
        return [one for one in self.asked if one.api == api]

    async def until_asked(self, api: int, times: int) -> None:
        """Returns when so many have come in."""
        while len(self.requests(api)) < times:
            self.served.clear()
            await self.served.wait()

    # ---------------------------------------------------------------------------------------------------- serving

    async def _serve(self, node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                answer = await self._answer(node, number, await reader.readexactly(size))
                if answer is None:
                    return
                await self._send(writer, len(answer).to_bytes(4, "big") + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._serving.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = self.send_in_pieces_of or len(data)
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
            if self.send_in_pieces_of:
                await asyncio.sleep(0)

    async def _answer(self, node: int, number: int, request: bytes) -> bytes | None:
        api, version, correlation, size = struct.unpack_from(">hhih", request)
        low, high = self.offered.get(api, (0, -1))
        if api == API_VERSIONS and not low <= version <= high:
            return struct.pack(">i", correlation) + Message("ApiVersionsResponse").encode(0, {"ErrorCode": 35})
        if not low <= version <= high:
            return None
        message = Message(_NAMES[api] + "Request")
        flexible = message.is_flexible(version)
        body = message.decode(version, request[10 + size + flexible :])
        asked = Asked(node, number, api, version, body)
        self.asked.append(asked)
        self.served.set()
        answers = {
            FETCH: self._fetch,
            LIST_OFFSETS: self._offsets,
            METADATA: self._metadata,
            OFFSET_FETCH: self._commits,
            FIND_COORDINATOR: self._coordinator,
            EPOCH_END: self._epochs,
        }
        value = await answers.get(api, self._versions)(asked)
        tags = b"\0" if flexible and api != API_VERSIONS else b""
        answer = struct.pack(">i", correlation) + tags + Message(_NAMES[api] + "Response").encode(version, value)
        return self.tamper(asked, answer)

    async def _versions(self, _: Asked) -> dict[str, Any]:
        return {"ApiKeys": [{"ApiKey": api, "MinVersion": low, "MaxVersion": high} for api, (low, high) in self.offered.items()]}

    async def _metadata(self, asked: Asked) -> dict[str, Any]:
        names = self.topics if asked.body["Topics"] is None else [one["Name"] for one in asked.body["Topics"]]
        return {
            "Brokers": [{"NodeId": node, "Host": self.address(node)[0], "Port": self.address(node)[1]} for node in self._alive()],
            "ClusterId": "fake",
            "Topics": [self._topic(asked.version, name) for name in names],
        }

    def _alive(self) -> Iterable[int]:
        return (node for node, server in enumerate(self._servers) if server.is_serving())

    def _topic(self, version: int, name: str) -> dict[str, Any]:
        topic = self.topics.get(name)
        if topic is None:
            return {"Name": name, "ErrorCode": _UNKNOWN_TOPIC}
        partitions = [
            {"PartitionIndex": index, "LeaderId": log.named.pop(0) if log.named else log.leader, "ReplicaNodes": [0], "IsrNodes": [0]}
            | ({"LeaderEpoch": log.epoch} if version >= 7 else {})
            for index, log in topic.logs.items()
        ]
        return {"Name": name, "Partitions": partitions} | ({"TopicId": topic.topic_id} if version >= 10 else {})

    async def _offsets(self, asked: Asked) -> dict[str, Any]:
        topics = []
        for topic in asked.body["Topics"]:
            told = [self._offset(asked, topic["Name"], wanted) for wanted in topic["Partitions"]]
            topics.append({"Name": topic["Name"], "Partitions": told})
        return {"Topics": topics}

    def _offset(self, asked: Asked, topic: str, wanted: dict[str, Any]) -> dict[str, Any]:
        log = self.topics[topic].logs[wanted["PartitionIndex"]]
        error = self._refused(asked, log, wanted.get("CurrentLeaderEpoch", -1))
        end = log.last_stable if asked.body["IsolationLevel"] else log.high_watermark
        offset = -1 if error else log.start if wanted["Timestamp"] == -2 else end
        return {"PartitionIndex": wanted["PartitionIndex"], "ErrorCode": error, "Offset": offset}

    async def _coordinator(self, asked: Asked) -> dict[str, Any]:
        group = self.groups.get(asked.body["Key"], FakeGroup())
        if group.no_coordinator:
            return {"ErrorCode": group.no_coordinator, "NodeId": -1, "Host": "", "Port": -1}
        host, port = self.address(group.coordinator)
        return {"NodeId": group.coordinator, "Host": host, "Port": port}

    async def _commits(self, asked: Asked) -> dict[str, Any]:
        group = self.groups.get(asked.body["GroupId"], FakeGroup())
        error = group.faults.pop(0) if group.faults else 0 if group.coordinator == asked.node else _NOT_COORDINATOR
        if error:
            return {"ErrorCode": error}
        topics = []
        for topic in asked.body["Topics"]:
            told = [
                {"PartitionIndex": number, "Metadata": "", "ErrorCode": group.refused.get((topic["Name"], number), 0)}
                | {"CommittedOffset": group.commits.get((topic["Name"], number), -1)}
                for number in topic["PartitionIndexes"]
            ]
            topics.append({"Name": topic["Name"], "Partitions": told})
        return {"Topics": topics}

    async def _epochs(self, asked: Asked) -> dict[str, Any]:
        self.before_epochs()
        (topic,) = asked.body["Topics"]
        (wanted,) = topic["Partitions"]
        log = self.topics[topic["Topic"]].logs[wanted["Partition"]]
        error = self._refused(asked, log, wanted["CurrentLeaderEpoch"])
        epoch, end = log.epoch_ends.get(wanted["LeaderEpoch"], (wanted["LeaderEpoch"], log.high_watermark))
        told = {"Partition": wanted["Partition"], "ErrorCode": error, "LeaderEpoch": epoch, "EndOffset": end}
        return {"Topics": [{"Topic": topic["Topic"], "Partitions": [told]}]}

    def _refused(self, asked: Asked, log: FakeLog, epoch: int) -> int:
        if log.leader != asked.node:
            return _NOT_LEADER
        if epoch >= 0 and epoch != log.epoch:
            return _FENCED if epoch < log.epoch else _UNKNOWN_EPOCH
        return 0

    # ------------------------------------------------------------------------------------------------------ fetch

    async def _fetch(self, asked: Asked) -> dict[str, Any]:
        while self.hangs:
            await self._changed.wait()
        answer, filled = self._fetch_now(asked)
        if not filled:
            changed = self._changed
            try:
                async with asyncio.timeout(asked.body["MaxWaitMs"] / 1000):
                    await changed.wait()
            except TimeoutError:
                return answer
            answer, _ = self._fetch_now(asked)
        return answer

    def _fetch_now(self, asked: Asked) -> tuple[dict[str, Any], bool]:
        left = asked.body["MaxBytes"]
        responses, filled, first = [], False, True
        for topic in asked.body["Topics"]:
            sections = []
            for wanted in topic["Partitions"]:
                section = self._section(asked, topic, wanted, left, first)
                size = len(section["Records"] or b"")
                filled = filled or size > 0 or bool(section.get("ErrorCode")) or "DivergingEpoch" in section
                first = first and size == 0
                left = max(0, left - size)
                sections.append(section)
            responses.append({key: topic[key] for key in ("Topic", "TopicId") if key in topic} | {"Partitions": sections})
        return {"Responses": responses}, filled

    def _section(self, asked: Asked, topic: dict[str, Any], wanted: dict[str, Any], left: int, first: bool) -> dict[str, Any]:
        empty = {"PartitionIndex": wanted["Partition"], "HighWatermark": -1, "LastStableOffset": -1, "LogStartOffset": -1, "Records": b""}
        if "TopicId" in topic:
            found = next((one for one in self.topics.values() if one.topic_id == topic["TopicId"]), None)
            missing = _UNKNOWN_ID
        else:
            found, missing = self.topics.get(topic["Topic"]), _UNKNOWN_TOPIC
        log = found.logs.get(wanted["Partition"]) if found is not None else None
        if log is None:
            return empty | {"ErrorCode": missing}
        offset, fetched = wanted["FetchOffset"], wanted.get("LastFetchedEpoch", -1)
        follows = log.leader != asked.node and log.follower_end is not None
        error = 0 if follows else self._refused(asked, log, wanted.get("CurrentLeaderEpoch", -1))
        error = error or (log.faults.pop(0) if log.faults else 0)
        high_watermark = log.high_watermark if log.follower_end is None or not follows else log.follower_end
        epoch, end = log.epoch_ends.get(fetched, (fetched, high_watermark))
        diverges = fetched >= 0 and epoch >= 0 and (epoch < fetched or end < offset)
        # In Kafka's order (Partition.scala, readRecords): the start, then epochs, then the end.
        if not error and (offset < log.start or (fetched >= 0 > epoch) or (offset > high_watermark and not diverges)):
            error = _OUT_OF_RANGE
        if error:
            return empty | {"ErrorCode": error}
        ends = {
            "HighWatermark": high_watermark,
            "LastStableOffset": min(log.last_stable, high_watermark) if follows else log.last_stable,
            "LogStartOffset": log.start,
        }
        if diverges:
            return empty | ends | {"DivergingEpoch": {"Epoch": epoch, "EndOffset": end}}
        committed = asked.body["IsolationLevel"] == 1
        bound = ends["LastStableOffset"] if committed else high_watermark
        records = b"" if log.silent else self._records(log, offset, bound, min(left, wanted["PartitionMaxBytes"]), first)
        aborted = [{"ProducerId": producer, "FirstOffset": at} for producer, at in log.aborted] if committed else None
        return empty | ends | {"AbortedTransactions": aborted, "Records": self.damage(asked, records)}

    def _records(self, log: FakeLog, offset: int, bound: int, size: int, first: bool) -> bytes:
        out = b""
        for one in log.batches:
            if _last(one) < offset or _base(one) >= bound:
                continue
            if not self.partial_batches and len(out) + len(one) > size and (out or not first):
                break
            out += one
        return out[:size] if self.partial_batches else out


def _base(batch: bytes) -> int:
    return int(struct.unpack_from(">q", batch)[0])


def _last(batch: bytes) -> int:
    base, magic = struct.unpack_from(">q8xb", batch)
    return int(base + max(struct.unpack_from(">i", batch, 23)[0], 0)) if magic == 2 else int(base)
