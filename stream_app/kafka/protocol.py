"""The requests of Kafka's protocol that reading a log needs: how they are written, how their answers are read.

Those about consumer groups are in :mod:`stream_app.kafka.group_protocol`.

Field by field after the message descriptions that ship with Kafka (``FetchRequest.json`` and its neighbours in
kafka-clients 4.1). No input or output here: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from stream_app.kafka.failures import MalformedError, UnsupportedError
from stream_app.kafka.wire import NO_UUID, Cursor, Writer


class Api(IntEnum):
    """API keys."""

    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    API_VERSIONS = 18
    OFFSET_FOR_LEADER_EPOCH = 23


class ErrorCode(IntEnum):
    """The error codes that decide something here (https://kafka.apache.org/protocol, "Error Codes")."""

    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    LEADER_NOT_AVAILABLE = 5
    NOT_LEADER_OR_FOLLOWER = 6
    REQUEST_TIMED_OUT = 7
    REPLICA_NOT_AVAILABLE = 9
    COORDINATOR_LOAD_IN_PROGRESS = 14
    COORDINATOR_NOT_AVAILABLE = 15
    NOT_COORDINATOR = 16
    TOPIC_AUTHORIZATION_FAILED = 29
    GROUP_AUTHORIZATION_FAILED = 30
    CLUSTER_AUTHORIZATION_FAILED = 31
    UNSUPPORTED_VERSION = 35
    KAFKA_STORAGE_ERROR = 56
    FENCED_LEADER_EPOCH = 74
    UNKNOWN_LEADER_EPOCH = 75
    OFFSET_NOT_AVAILABLE = 78
    UNKNOWN_TOPIC_ID = 100
    INCONSISTENT_TOPIC_ID = 103


def error_name(code: int) -> str:
    """The code's name where we know it, the number else."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"error code {code}"


class Isolation(StrEnum):
    """Which records a consumer can receive (KIP-98)."""

    READ_UNCOMMITTED = "read_uncommitted"
    READ_COMMITTED = "read_committed"

    @property
    def level(self) -> int:
        """The protocol's number."""
        return 1 if self is Isolation.READ_COMMITTED else 0


EARLIEST = -2
"""ListOffsets: the log start offset."""
LATEST = -1
"""ListOffsets: the high watermark, or the last stable offset under read_committed."""

SUPPORTED: Mapping[Api, tuple[int, int]] = {
    Api.FETCH: (5, 16),  # v5 tells the log start; v12 epochs that diverge; v13 topic ids
    Api.LIST_OFFSETS: (2, 7),  # v2 has isolation levels
    Api.METADATA: (4, 12),  # v4 can ask without creating the topic
    Api.OFFSET_FETCH: (2, 7),  # v2 has an error code for the whole answer; from v8 on several groups
    Api.FIND_COORDINATOR: (1, 3),  # v1 tells why there is none; from v4 on several keys
    Api.API_VERSIONS: (0, 3),
    Api.OFFSET_FOR_LEADER_EPOCH: (2, 4),
}
FETCH_DIVERGING = 12
"""First version of Fetch whose answer says where the leader's log parts from ours (KIP-595)."""
FETCH_BY_ID = 13
"""First version of Fetch that names topics by id (KIP-516)."""
_FLEXIBLE = {
    Api.FETCH: 12,
    Api.LIST_OFFSETS: 6,
    Api.METADATA: 9,
    Api.OFFSET_FETCH: 6,
    Api.FIND_COORDINATOR: 3,
    Api.API_VERSIONS: 3,
    Api.OFFSET_FOR_LEADER_EPOCH: 4,
}
_SINCE = {
    Api.FETCH: "1.0",
    Api.LIST_OFFSETS: "0.11",
    Api.METADATA: "0.11",
    Api.OFFSET_FETCH: "0.10.2",
    Api.FIND_COORDINATOR: "0.11",
    Api.API_VERSIONS: "0.10",
    Api.OFFSET_FOR_LEADER_EPOCH: "2.1",
}


def is_flexible(api: Api, version: int) -> bool:
    """Whether this version of the message has compact lengths and tagged fields (KIP-482)."""
    return version >= _FLEXIBLE[api]


def choose_version(api: Api, offered: Mapping[int, tuple[int, int]], cap: int | None = None) -> int:
    """The newest version that both sides speak; ``cap`` lowers ours.

    Raises:
        UnsupportedError: there is none.
    """
    low, high = SUPPORTED[api]
    theirs = offered.get(api)
    if theirs is not None:
        version = min(high, theirs[1], high if cap is None else cap)
        if version >= max(low, theirs[0]):
            return version
    msg = f"the broker speaks no version of {api.name} that this program knows; Kafka {_SINCE[api]} or newer is needed"
    raise UnsupportedError(msg)


def encode_request(api: Api, version: int, correlation: int, client_id: str, body: bytes) -> bytes:
    """A whole request: size, header, body."""
    head = Writer(flexible=False)
    head.int16(api)
    head.int16(version)
    head.int32(correlation)
    head.string(client_id)
    tags = b"\0" if is_flexible(api, version) else b""
    size = len(head.written()) + len(tags) + len(body)
    return size.to_bytes(4, "big") + head.written() + tags + body


def open_answer(api: Api, version: int, view: memoryview) -> tuple[int, Cursor]:
    """Correlation id of an answer, and a cursor on its body. ``view`` is the answer without its size."""
    flexible = is_flexible(api, version)
    cursor = Cursor(view, flexible=flexible)
    correlation = cursor.int32()
    if flexible and api is not Api.API_VERSIONS:  # that one keeps the old header, so that anybody can read it (KIP-511)
        cursor.end()
    return correlation, cursor


# ---------------------------------------------------------------------------------------------------- ApiVersions


def encode_api_versions(version: int, software: str, software_version: str) -> bytes:
    """ApiVersions v0 to v3."""
    out = Writer(flexible=version >= 3)
    if version >= 3:
        out.string(software)
        out.string(software_version)
        out.tags()
    return out.written()


def decode_api_versions(cursor: Cursor, version: int) -> tuple[int, dict[int, tuple[int, int]]]:
    """Error code, and API key -> lowest and highest version. With UNSUPPORTED_VERSION the rest is not read: it is of v0."""
    code = cursor.int16()
    offered: dict[int, tuple[int, int]] = {}
    if code == ErrorCode.UNSUPPORTED_VERSION:
        return code, offered
    for _ in cursor.array():
        key, low, high = cursor.int16(), cursor.int16(), cursor.int16()
        cursor.end()
        offered[key] = (low, high)
    return code, offered


# ------------------------------------------------------------------------------------------------------- Metadata


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a partition."""

    node: int
    """-1: nobody."""
    epoch: int
    """-1: the broker does not tell."""


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """One topic as a broker described it."""

    name: str
    error: int
    topic_id: bytes
    """16 zero bytes: the broker does not tell, or there is no such topic."""
    leaders: dict[int, Leader] = field(default_factory=dict)
    """Partition -> leader; partitions that the broker does not list are not there."""

    @property
    def exists(self) -> bool:
        """Whether the broker knows this topic and lets us see it."""
        return self.error in (ErrorCode.NONE, ErrorCode.LEADER_NOT_AVAILABLE)

    @property
    def partitions(self) -> int:
        """How many partitions it has."""
        return len(self.leaders)


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """One answer to Metadata."""

    cluster_id: str | None
    brokers: dict[int, tuple[str, int]]
    topics: dict[str, TopicInfo]


def encode_metadata(version: int, topics: Iterable[str] | None) -> bytes:
    """Metadata v4 to v12; None asks for every topic. Never creates one."""
    out = Writer(flexible=is_flexible(Api.METADATA, version))
    names = None if topics is None else list(topics)
    out.array(None if names is None else len(names))
    for name in names or ():
        if version >= 10:
            out.uuid(NO_UUID)
        out.string(name)
        out.tags()
    out.int8(0)  # allow_auto_topic_creation
    if 8 <= version <= 10:
        out.int8(0)
    if version >= 8:
        out.int8(0)
    out.tags()
    return out.written()


def decode_metadata(cursor: Cursor, version: int) -> ClusterInfo:
    """Metadata v4 to v12."""
    cursor.int32()  # throttle time: the broker holds the connection by itself
    brokers: dict[int, tuple[str, int]] = {}
    for _ in cursor.array():
        node, host, port = cursor.int32(), cursor.string(), cursor.int32()
        cursor.string()
        cursor.end()
        brokers[node] = (host or "", port)
    cluster_id = cursor.string()
    cursor.int32()
    topics: dict[str, TopicInfo] = {}
    for _ in cursor.array():
        topic = _decode_topic(cursor, version)
        topics[topic.name] = topic
    return ClusterInfo(cluster_id, brokers, topics)


def _decode_topic(cursor: Cursor, version: int) -> TopicInfo:
    error, name = cursor.int16(), cursor.string() or ""
    topic_id = cursor.uuid() if version >= 10 else NO_UUID
    cursor.int8()
    leaders: dict[int, Leader] = {}
    for _ in cursor.array():
        cursor.int16()
        index, node = cursor.int32(), cursor.int32()
        epoch = cursor.int32() if version >= 7 else -1
        for _ in range(3 if version >= 5 else 2):  # replicas, in-sync replicas, offline replicas
            cursor.skip(4 * len(cursor.array()))
        cursor.end()
        leaders[index] = Leader(node, epoch)
    if version >= 8:
        cursor.int32()
    cursor.end()
    return TopicInfo(name, error, topic_id, leaders)


# ---------------------------------------------------------------------------------------------------- ListOffsets


def encode_list_offsets(version: int, topic: str, partition: int, leader_epoch: int, timestamp: int, isolation: Isolation) -> bytes:
    """ListOffsets v2 to v7 for one partition (a partition may stand in a request once only)."""
    out = Writer(flexible=is_flexible(Api.LIST_OFFSETS, version))
    out.int32(-1)
    out.int8(isolation.level)
    out.array(1)
    out.string(topic)
    out.array(1)
    out.int32(partition)
    if version >= 4:
        out.int32(leader_epoch)
    out.int64(timestamp)
    out.tags()
    out.tags()
    out.tags()
    return out.written()


def decode_list_offsets(cursor: Cursor, version: int) -> tuple[int, int]:
    """Error code and offset of the one partition that was asked for."""
    cursor.int32()
    for _ in cursor.array():
        cursor.string()
        for _ in cursor.array():
            cursor.int32()
            error = cursor.int16()
            cursor.int64()
            return error, cursor.int64()
    msg = "an answer to ListOffsets lacks the partition that was asked for; is this a Kafka broker?"
    raise MalformedError(msg)


# ------------------------------------------------------------------------------------------- OffsetForLeaderEpoch


def encode_epoch_end(version: int, topic: str, partition: int, leader_epoch: int, epoch: int) -> bytes:
    """OffsetForLeaderEpoch v2 to v4 for one partition, as a consumer."""
    out = Writer(flexible=is_flexible(Api.OFFSET_FOR_LEADER_EPOCH, version))
    if version >= 3:
        out.int32(-1)
    out.array(1)
    out.string(topic)
    out.array(1)
    out.int32(partition)
    out.int32(leader_epoch)
    out.int32(epoch)
    out.tags()
    out.tags()
    out.tags()
    return out.written()


def decode_epoch_end(cursor: Cursor, version: int) -> tuple[int, int, int]:
    """Error code; the largest epoch not above the one asked for, and its end offset (-1 and -1: unknown)."""
    cursor.int32()
    for _ in cursor.array():
        cursor.string()
        for _ in cursor.array():
            error = cursor.int16()
            cursor.int32()
            return error, cursor.int32(), cursor.int64()
    msg = "an answer to OffsetForLeaderEpoch lacks the partition that was asked for; is this a Kafka broker?"
    raise MalformedError(msg)


# ---------------------------------------------------------------------------------------------------------- Fetch


@dataclass(frozen=True, slots=True)
class Want:
    """One partition in a Fetch."""

    topic: str
    topic_id: bytes
    partition: int
    offset: int
    leader_epoch: int
    """The leader's epoch as we know it: an older or newer leader answers with an error instead of data (KIP-320)."""
    fetched_epoch: int
    """Epoch of the record before ``offset``, -1 where unknown: a log that differs below answers with ``diverging`` (v12)."""
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Section:
    """What an answer to Fetch says of one partition; the records stay where they are, in ``[start, end)`` of the answer."""

    topic: str
    topic_id: bytes
    partition: int
    error: int
    high_watermark: int
    last_stable: int
    log_start: int
    aborted: Sequence[tuple[int, int]]
    """Producer id and first offset of each aborted transaction that touches the records; empty under read_uncommitted."""
    start: int
    end: int
    diverging: tuple[int, int] | None = None
    """Largest epoch not above ours and its end offset, where our log and the leader's differ (KIP-595)."""


def encode_fetch(version: int, wants: Sequence[Want], *, isolation: Isolation, max_wait_ms: int, max_bytes: int) -> bytes:
    """Fetch v5 to v16: a full fetch without a session (KIP-227). Partitions are served in the order of ``wants``."""
    out = Writer(flexible=is_flexible(Api.FETCH, version))
    if version < 15:
        out.int32(-1)
    out.int32(max_wait_ms)
    out.int32(1)  # min_bytes: answer as soon as there is anything
    out.int32(max_bytes)
    out.int8(isolation.level)
    if version >= 7:
        out.int32(0)
        out.int32(-1)
    topics: dict[tuple[str, bytes], list[Want]] = {}
    for want in wants:
        topics.setdefault((want.topic, want.topic_id), []).append(want)
    out.array(len(topics))
    for (topic, topic_id), partitions in topics.items():
        if version >= FETCH_BY_ID:
            out.uuid(topic_id)
        else:
            out.string(topic)
        out.array(len(partitions))
        for want in partitions:
            out.int32(want.partition)
            if version >= 9:
                out.int32(want.leader_epoch)
            out.int64(want.offset)
            if version >= 12:
                out.int32(want.fetched_epoch)
            out.int64(-1)
            out.int32(want.max_bytes)
            out.tags()
        out.tags()
    if version >= 7:
        out.array(0)
    if version >= 11:
        out.string("")
    out.tags()
    return out.written()


def decode_fetch(cursor: Cursor, version: int) -> tuple[int, list[Section]]:
    """Fetch v5 to v16: error code of the whole answer, and its partitions."""
    cursor.int32()
    error = 0
    if version >= 7:
        error = cursor.int16()
        cursor.int32()
    sections: list[Section] = []
    for _ in cursor.array():
        topic, topic_id = "", NO_UUID
        if version >= FETCH_BY_ID:
            topic_id = cursor.uuid()
        else:
            topic = cursor.string() or ""
        sections.extend(_decode_section(cursor, version, topic, topic_id) for _ in cursor.array())
        cursor.end()
    cursor.end()
    return error, sections


def _decode_section(cursor: Cursor, version: int, topic: str, topic_id: bytes) -> Section:
    partition, error = cursor.int32(), cursor.int16()
    high_watermark, last_stable, log_start = cursor.int64(), cursor.int64(), cursor.int64()
    aborted = []
    for _ in cursor.array():
        aborted.append((cursor.int64(), cursor.int64()))
        cursor.end()
    if version >= 11:
        cursor.int32()
    start, end = cursor.records()
    diverging = None
    for tag, content in cursor.tags():
        if tag == 0:
            diverging = (content.int32(), content.int64())
    return Section(topic, topic_id, partition, error, high_watermark, last_stable, log_start, aborted, start, end, diverging)
