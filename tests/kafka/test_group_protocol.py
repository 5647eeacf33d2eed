"""Requests about consumer groups, version by version, against Kafka's own descriptions of its messages."""

from __future__ import annotations

from typing import Any

import pytest

from stream_app.kafka.group_protocol import (
    decode_find_coordinator,
    decode_offset_fetch,
    decode_offsets_of,
    encode_find_coordinator,
    encode_offset_fetch,
    encode_offsets_of,
)
from stream_app.kafka.protocol import EARLIEST, SUPPORTED, Api, Isolation, open_answer
from stream_app.kafka.wire import Cursor
from tests.support.kafka_messages import Message


def versions(api: Api) -> list[int]:
    low, high = SUPPORTED[api]
    return list(range(low, high + 1))


def answer(api: Api, name: str, version: int, value: Any) -> Cursor:
    message = Message(name + "Response")
    header = b"\0\0\0\x2a" + (b"\0" if message.is_flexible(version) else b"")
    return open_answer(api, version, memoryview(header + message.encode(version, value)))[1]


@pytest.mark.parametrize("version", versions(Api.FIND_COORDINATOR))
def test_find_coordinator(version: int) -> None:
    asked = Message("FindCoordinatorRequest").decode(version, encode_find_coordinator(version, "loader"))
    assert asked == {"Key": "loader", "KeyType": 0}
    told = {"ErrorMessage": None, "NodeId": 3, "Host": "broker-3", "Port": 9092}
    assert decode_find_coordinator(answer(Api.FIND_COORDINATOR, "FindCoordinator", version, told)) == (0, ("broker-3", 9092))
    told = {"ErrorCode": 15, "ErrorMessage": "none", "NodeId": -1, "Host": "", "Port": -1}
    assert decode_find_coordinator(answer(Api.FIND_COORDINATOR, "FindCoordinator", version, told)) == (15, ("", -1))


@pytest.mark.parametrize("version", versions(Api.OFFSET_FETCH))
def test_offset_fetch(version: int) -> None:
    raw = encode_offset_fetch(version, "loader", {"orders": [0, 3], "sales": [1]})
    asked = Message("OffsetFetchRequest").decode(version, raw)
    topics = [{"Name": "orders", "PartitionIndexes": [0, 3]}, {"Name": "sales", "PartitionIndexes": [1]}]
    assert asked == {"GroupId": "loader", "Topics": topics} | ({"RequireStable": False} if version >= 7 else {})
    partitions = [
        {"PartitionIndex": 0, "CommittedOffset": 2**40, "Metadata": "what a client left there"},
        {"PartitionIndex": 3, "CommittedOffset": -1, "Metadata": None, "ErrorCode": 29},
    ]
    told = {"Topics": [{"Name": "orders", "Partitions": partitions}, {"Name": "sales", "Partitions": []}]}
    found = decode_offset_fetch(answer(Api.OFFSET_FETCH, "OffsetFetch", version, told), version)
    assert found == (0, {("orders", 0): (0, 2**40), ("orders", 3): (29, -1)})
    assert decode_offset_fetch(answer(Api.OFFSET_FETCH, "OffsetFetch", version, {"ErrorCode": 16}), version) == (16, {})


@pytest.mark.parametrize("version", versions(Api.LIST_OFFSETS))
def test_starts_of_several_logs(version: int) -> None:
    raw = encode_offsets_of(version, {"orders": {0: 5, 3: -1}, "sales": {1: 2}}, EARLIEST, Isolation.READ_UNCOMMITTED)
    asked = Message("ListOffsetsRequest").decode(version, raw)
    assert (asked["ReplicaId"], asked["IsolationLevel"]) == (-1, 0)
    epochs = {
        (topic["Name"], one["PartitionIndex"]): one.get("CurrentLeaderEpoch") for topic in asked["Topics"] for one in topic["Partitions"]
    }
    assert epochs == ({("orders", 0): 5, ("orders", 3): -1, ("sales", 1): 2} if version >= 4 else dict.fromkeys(epochs))
    assert {one["Timestamp"] for topic in asked["Topics"] for one in topic["Partitions"]} == {-2}
    partitions = [{"PartitionIndex": 0, "Offset": 2**40}, {"PartitionIndex": 3, "ErrorCode": 6, "Offset": -1}]
    told = {"Topics": [{"Name": "orders", "Partitions": partitions}, {"Name": "sales", "Partitions": [{"PartitionIndex": 1, "Offset": 7}]}]}
    found = decode_offsets_of(answer(Api.LIST_OFFSETS, "ListOffsets", version, told), version)
    assert found == {("orders", 0): (0, 2**40), ("orders", 3): (6, -1), ("sales", 1): (0, 7)}
