"""Requests and answers, version by version, against Kafka's own descriptions of its messages."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.kafka.failures import MalformedError, UnsupportedError
from stream_app.kafka.protocol import (
    EARLIEST,
    SUPPORTED,
    Api,
    Isolation,
    Leader,
    Section,
    TopicInfo,
    Want,
    choose_version,
    decode_api_versions,
    decode_epoch_end,
    decode_fetch,
    decode_list_offsets,
    decode_metadata,
    encode_api_versions,
    encode_epoch_end,
    encode_fetch,
    encode_list_offsets,
    encode_metadata,
    encode_request,
    error_name,
    open_answer,
)
from stream_app.kafka.wire import NO_UUID, Cursor, Writer
from tests.support.kafka_messages import Message

ID = bytes(range(16))
OTHER_ID = bytes(range(16, 32))
NAMES = {
    Api.FETCH: "Fetch",
    Api.LIST_OFFSETS: "ListOffsets",
    Api.METADATA: "Metadata",
    Api.OFFSET_FETCH: "OffsetFetch",
    Api.FIND_COORDINATOR: "FindCoordinator",
    Api.API_VERSIONS: "ApiVersions",
    Api.OFFSET_FOR_LEADER_EPOCH: "OffsetForLeaderEpoch",
}


def versions(api: Api) -> list[int]:
    low, high = SUPPORTED[api]
    return list(range(low, high + 1))


def answer(api: Api, version: int, value: dict[str, Any]) -> Cursor:
    """The cursor on an answer's body, as a connection hands it out."""
    message = Message(NAMES[api] + "Response")
    header = b"\0\0\0\x2a" + (b"\0" if message.is_flexible(version) and api is not Api.API_VERSIONS else b"")
    correlation, cursor = open_answer(api, version, memoryview(header + message.encode(version, value)))
    assert correlation == 42
    return cursor


# -------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("api", list(Api))
def test_every_version_we_speak_is_flexible_where_kafka_says_so(api: Api) -> None:
    header = Message("RequestHeader")
    for version in versions(api):
        raw = encode_request(api, version, 7, "me", b"BODY")
        assert int.from_bytes(raw[:4], "big") == len(raw) - 4
        assert raw.endswith(b"BODY")
        flexible = Message(NAMES[api] + "Request").is_flexible(version)
        assert header.decode(2 if flexible else 1, raw[4:-4]) == {
            "RequestApiKey": api,
            "RequestApiVersion": version,
            "CorrelationId": 7,
            "ClientId": "me",
        }


def test_the_newest_common_version_is_chosen() -> None:
    assert choose_version(Api.FETCH, {1: (4, 18)}) == 16
    assert choose_version(Api.FETCH, {1: (0, 11)}) == 11
    assert choose_version(Api.FETCH, {1: (4, 18)}, 12) == 12


@pytest.mark.parametrize("offered", [{}, {1: (0, 4)}, {1: (17, 30)}])
def test_no_common_version_names_the_kafka_that_has_one(offered: dict[int, tuple[int, int]]) -> None:
    with pytest.raises(UnsupportedError, match=r"FETCH.*Kafka 1\.0 or newer is needed"):
        choose_version(Api.FETCH, offered)


def test_error_codes_have_names_where_we_know_them() -> None:
    assert error_name(1) == "OFFSET_OUT_OF_RANGE"
    assert error_name(999) == "error code 999"


# -------------------------------------------------------------------------------------------------- each message


@pytest.mark.parametrize("version", versions(Api.API_VERSIONS))
def test_api_versions(version: int) -> None:
    message = Message("ApiVersionsRequest")
    asked = message.decode(version, encode_api_versions(version, "gapstream", "1.2"))
    assert asked == ({"ClientSoftwareName": "gapstream", "ClientSoftwareVersion": "1.2"} if version >= 3 else {})
    value: dict[str, Any] = {
        "ApiKeys": [{"ApiKey": 1, "MinVersion": 4, "MaxVersion": 18}, {"ApiKey": 3, "MinVersion": 0, "MaxVersion": 13}]
    }
    if version >= 3:
        value["SupportedFeatures"] = [{"Name": "kraft.version", "MinVersion": 0, "MaxVersion": 1}]
    assert decode_api_versions(answer(Api.API_VERSIONS, version, value), version) == (0, {1: (4, 18), 3: (0, 13)})


def test_a_broker_that_knows_only_older_versions_of_the_first_request_answers_in_its_own() -> None:
    old = Message("ApiVersionsResponse").encode(0, {"ErrorCode": 35, "ApiKeys": [{"ApiKey": 18, "MinVersion": 0, "MaxVersion": 2}]})
    cursor = open_answer(Api.API_VERSIONS, 3, memoryview(b"\0\0\0\1" + old))[1]
    assert decode_api_versions(cursor, 3) == (35, {})


@pytest.mark.parametrize("version", versions(Api.METADATA))
def test_metadata_request(version: int) -> None:
    message = Message("MetadataRequest")
    asked = message.decode(version, encode_metadata(version, ["orders", "späße"]))
    assert [topic["Name"] for topic in asked["Topics"]] == ["orders", "späße"]
    assert asked["AllowAutoTopicCreation"] is False
    assert message.decode(version, encode_metadata(version, None))["Topics"] is None
    assert message.decode(version, encode_metadata(version, []))["Topics"] == []


@pytest.mark.parametrize("version", versions(Api.METADATA))
def test_metadata_answer(version: int) -> None:
    partition = {"PartitionIndex": 1, "LeaderId": 5, "ReplicaNodes": [5, 6], "IsrNodes": [5]}
    if version >= 5:
        partition["OfflineReplicas"] = [6]
    if version >= 7:
        partition["LeaderEpoch"] = 9
    orphan = {"PartitionIndex": 0, "ErrorCode": 5, "LeaderId": -1, "ReplicaNodes": [], "IsrNodes": []}
    topics: list[dict[str, Any]] = [{"Name": "orders", "Partitions": [partition, orphan]}, {"ErrorCode": 3, "Name": "gone"}]
    if version >= 10:
        topics[0]["TopicId"] = ID
    value = {
        "Brokers": [{"NodeId": 5, "Host": "b5", "Port": 9092, "Rack": "r"}, {"NodeId": 6, "Host": "b6", "Port": 9093}],
        "ClusterId": "c",
        "ControllerId": 5,
        "Topics": topics,
    }
    info = decode_metadata(answer(Api.METADATA, version, value), version)
    assert info.cluster_id == "c"
    assert info.brokers == {5: ("b5", 9092), 6: ("b6", 9093)}
    leaders = {1: Leader(5, 9 if version >= 7 else -1), 0: Leader(-1, -1)}
    assert info.topics["orders"] == TopicInfo("orders", 0, ID if version >= 10 else NO_UUID, leaders)
    assert (info.topics["orders"].exists, info.topics["orders"].partitions) == (True, 2)
    assert (info.topics["gone"].exists, info.topics["gone"].topic_id) == (False, NO_UUID)


@pytest.mark.parametrize("version", versions(Api.LIST_OFFSETS))
def test_list_offsets(version: int) -> None:
    body = encode_list_offsets(version, "orders", 3, 8, EARLIEST, Isolation.READ_COMMITTED)
    asked = Message("ListOffsetsRequest").decode(version, body)
    assert (asked["ReplicaId"], asked["IsolationLevel"]) == (-1, 1)
    partition = {"PartitionIndex": 3, "Timestamp": -2} | ({"CurrentLeaderEpoch": 8} if version >= 4 else {})
    assert asked["Topics"] == [{"Name": "orders", "Partitions": [partition]}]
    told = {"PartitionIndex": 3, "ErrorCode": 6, "Timestamp": -1, "Offset": 1 << 40}
    value = {"ThrottleTimeMs": 1, "Topics": [{"Name": "orders", "Partitions": [told]}]}
    assert decode_list_offsets(answer(Api.LIST_OFFSETS, version, value), version) == (6, 1 << 40)
    with pytest.raises(MalformedError, match="lacks the partition"):
        decode_list_offsets(answer(Api.LIST_OFFSETS, version, {}), version)


@pytest.mark.parametrize("version", versions(Api.OFFSET_FOR_LEADER_EPOCH))
def test_offset_for_leader_epoch(version: int) -> None:
    asked = Message("OffsetForLeaderEpochRequest").decode(version, encode_epoch_end(version, "orders", 3, 8, 6))
    assert asked["Topics"] == [{"Topic": "orders", "Partitions": [{"Partition": 3, "CurrentLeaderEpoch": 8, "LeaderEpoch": 6}]}]
    assert asked.get("ReplicaId", -1) == -1, "a consumer, not a debugger"
    told = {"Partition": 3, "ErrorCode": 0, "LeaderEpoch": 5, "EndOffset": 77}
    value = {"Topics": [{"Topic": "orders", "Partitions": [told]}]}
    assert decode_epoch_end(answer(Api.OFFSET_FOR_LEADER_EPOCH, version, value), version) == (0, 5, 77)
    with pytest.raises(MalformedError, match="lacks the partition"):
        decode_epoch_end(answer(Api.OFFSET_FOR_LEADER_EPOCH, version, {}), version)


@pytest.mark.parametrize("version", versions(Api.FETCH))
def test_fetch_request(version: int) -> None:
    wants = [
        Want("orders", ID, 1, 100, 7, 6, 1 << 20),
        Want("clicks", OTHER_ID, 0, 5, -1, -1, 10),
        Want("orders", ID, 0, 200, 7, -1, 1 << 20),
    ]
    body = encode_fetch(version, wants, isolation=Isolation.READ_COMMITTED, max_wait_ms=500, max_bytes=16 << 20)
    asked = Message("FetchRequest").decode(version, body)
    assert (asked["MaxWaitMs"], asked["MinBytes"], asked["MaxBytes"], asked["IsolationLevel"]) == (500, 1, 16 << 20, 1)
    assert asked.get("ReplicaId", -1) == -1
    assert (asked.get("SessionId", 0), asked.get("SessionEpoch", -1)) == (0, -1), "a full fetch without a session (KIP-227)"
    assert asked.get("ForgottenTopicsData", []) == []
    assert asked.get("RackId", "") == "", "never read from a follower"
    names = [topic.get("Topic") or topic["TopicId"] for topic in asked["Topics"]]
    assert names == ([ID, OTHER_ID] if version >= 13 else ["orders", "clicks"])
    first = {"Partition": 1, "FetchOffset": 100, "LogStartOffset": -1, "PartitionMaxBytes": 1 << 20}
    first |= {"CurrentLeaderEpoch": 7} if version >= 9 else {}
    first |= {"LastFetchedEpoch": 6} if version >= 12 else {}
    assert asked["Topics"][0]["Partitions"][0] == first
    assert [one["Partition"] for one in asked["Topics"][0]["Partitions"]] == [1, 0], "in the order asked for"


@pytest.mark.parametrize("version", versions(Api.FETCH))
def test_fetch_answer(version: int) -> None:
    first: dict[str, Any] = {
        "PartitionIndex": 1,
        "HighWatermark": 500,
        "LastStableOffset": 400,
        "LogStartOffset": 10,
        "AbortedTransactions": [{"ProducerId": 9, "FirstOffset": 120}, {"ProducerId": 8, "FirstOffset": 130}],
        "Records": b"BATCHES",
    }
    if version >= 11:
        first["PreferredReadReplica"] = 4
    second: dict[str, Any] = {
        "PartitionIndex": 0,
        "ErrorCode": 74,
        "HighWatermark": -1,
        "LastStableOffset": -1,
        "LogStartOffset": -1,
        "AbortedTransactions": None,
        "Records": None,
    }
    if version >= 12:
        second["DivergingEpoch"] = {"Epoch": 3, "EndOffset": 333}
        second["CurrentLeader"] = {"LeaderId": 2, "LeaderEpoch": 11}
    topic: dict[str, Any] = {"Partitions": [first, second]} | ({"TopicId": ID} if version >= 13 else {"Topic": "orders"})
    value: dict[str, Any] = {"ThrottleTimeMs": 3, "Responses": [topic]}
    if version >= 7:
        value["SessionId"] = 0
    if version >= 16:
        value["NodeEndpoints"] = [{"NodeId": 2, "Host": "h", "Port": 1, "Rack": None}]
    cursor = answer(Api.FETCH, version, value)
    error, sections = decode_fetch(cursor, version)
    assert error == 0
    start = sections[0].start
    name, topic_id = ("", ID) if version >= 13 else ("orders", NO_UUID)
    assert sections == [
        Section(name, topic_id, 1, 0, 500, 400, 10, [(9, 120), (8, 130)], start, start + 7),
        Section(name, topic_id, 0, 74, -1, -1, -1, [], sections[1].start, sections[1].start, (3, 333) if version >= 12 else None),
    ]
    assert bytes(cursor._view[start : start + 7]) == b"BATCHES"


@pytest.mark.parametrize("version", [7, 12, 16])
def test_an_error_for_the_whole_fetch(version: int) -> None:
    assert decode_fetch(answer(Api.FETCH, version, {"ErrorCode": 70}), version) == (70, [])


# --------------------------------------------------------------------------------------------------- bad answers


@pytest.mark.parametrize("version", [11, 16])
def test_an_answer_that_ends_early_is_malformed_wherever_it_ends(version: int) -> None:
    partition = {
        "PartitionIndex": 1,
        "HighWatermark": 5,
        "AbortedTransactions": [{"ProducerId": 9, "FirstOffset": 1}],
        "Records": b"x" * 200,
    }
    topic: dict[str, Any] = {"Partitions": [partition]} | ({"TopicId": ID} if version >= 13 else {"Topic": "orders"})
    whole = Message("FetchResponse").encode(version, {"Responses": [topic]})
    flexible = version >= 12
    assert decode_fetch(Cursor(memoryview(whole), flexible=flexible), version)[1][0].high_watermark == 5
    for length in range(len(whole)):
        with pytest.raises(MalformedError, match="is this a Kafka broker"):
            decode_fetch(Cursor(memoryview(whole[:length]), flexible=flexible), version)


@given(st.binary(max_size=200), st.sampled_from(versions(Api.METADATA)))
def test_nonsense_is_malformed_and_nothing_else(data: bytes, version: int) -> None:
    with contextlib.suppress(MalformedError):
        decode_metadata(Cursor(memoryview(data), flexible=version >= 9), version)


def test_a_length_without_an_end_is_malformed() -> None:
    with pytest.raises(MalformedError, match="too long"):
        Cursor(memoryview(b"\xff" * 20), flexible=True).uvarint()


@given(st.integers(0, 2**35 - 1))
def test_unsigned_varints(number: int) -> None:
    out = Writer(flexible=True)
    out.uvarint(number)
    assert Cursor(memoryview(out.written()), flexible=True).uvarint() == number


def test_a_topic_id_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        Writer(flexible=True).uuid(b"abc")
