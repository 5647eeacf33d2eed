"""The mends to aiokafka do what they say, and are still needed."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import aiokafka.client
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, READ_UNCOMMITTED, Fetcher, PartitionRecords
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    ProducerFenced,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.protocol.metadata import MetadataRequest, MetadataRequest_v4, MetadataRequest_v5, MetadataRequestStruct
from aiokafka.record.memory_records import MemoryRecords

from stream_app.kafka import patches
from tests.support.log_bytes import ABORT, CONTROL, TRANSACTIONAL, batch, emptied, marker

PRODUCER = 7


def read(log: bytes, *, start: int = 0, aborted: Sequence[tuple[int, int]] = (), isolation: int = READ_COMMITTED) -> tuple[list[int], int]:
    """Offsets that aiokafka hands out of one answer, and where it would fetch next."""
    found = PartitionRecords(TopicPartition("orders", 0), MemoryRecords(log), list(aborted), start, None, None, True, isolation)
    return [record.offset for record in found], found.next_fetch_offset


EMPTIED = emptied(4, 4, attributes=TRANSACTIONAL | CONTROL, producer=PRODUCER)
COMMITTED = batch(0, 3, attributes=TRANSACTIONAL, producer=PRODUCER)
AFTER = batch(5, 6)


@pytest.mark.parametrize("isolation", [READ_COMMITTED, READ_UNCOMMITTED])
def test_an_emptied_control_batch_is_passed(isolation: int) -> None:
    assert read(COMMITTED + EMPTIED + AFTER, isolation=isolation) == ([0, 1, 2, 3, 5, 6], 7)


def test_an_emptied_control_batch_alone_moves_the_position() -> None:
    assert read(EMPTIED, start=4) == ([], 5)


def test_without_the_mend_aiokafka_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, aiokafka mends itself: take ours out."""
    monkeypatch.setattr(PartitionRecords, "_contains_abort_marker", patches._contains_abort_marker)
    with pytest.raises(KafkaError, match="did not contain any records"):
        read(COMMITTED + EMPTIED + AFTER)


def test_an_emptied_control_batch_ends_no_abort() -> None:
    """It may have been a commit marker as well as an abort marker: what is aborted says the broker's list."""
    first = batch(0, 3, attributes=TRANSACTIONAL, producer=PRODUCER)
    second = batch(5, 8, attributes=TRANSACTIONAL, producer=PRODUCER)
    log = first + EMPTIED + second + marker(9, PRODUCER, ABORT) + batch(10, 11)
    assert read(log, aborted=[(PRODUCER, 5)]) == ([0, 1, 2, 3, 10, 11], 12)


def test_aborts_and_commits_are_told_apart_as_before() -> None:
    log = batch(0, 3, attributes=TRANSACTIONAL, producer=PRODUCER) + marker(4, PRODUCER, ABORT)
    log += batch(5, 8, attributes=TRANSACTIONAL, producer=PRODUCER) + marker(9, PRODUCER)
    assert read(log, aborted=[(PRODUCER, 0)]) == ([5, 6, 7, 8], 10)
    assert read(log, aborted=[(PRODUCER, 0)], isolation=READ_UNCOMMITTED) == ([0, 1, 2, 3, 5, 6, 7, 8], 10)


def test_other_errors_stay_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, batch: object) -> bool:
        raise KafkaError("something else")

    monkeypatch.setattr(patches, "_contains_abort_marker", broken)
    with pytest.raises(KafkaError, match="something else"):
        read(COMMITTED + EMPTIED)


async def failed(reported: list[str]) -> list[BaseException | None]:
    """Exceptions of the records of a batch that failed; what asyncio reports as forgotten goes to ``reported``."""
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(str(context["message"])))
    made = MessageBatch(TopicPartition("orders", 0), BatchBuilder(16_384, 0), 10.0, 0.0)
    sent = [made.append(None, b"value", None, headers=[]) for _ in range(2)]
    made.failure(ProducerFenced())
    found = [one.exception() for one in sent if one is not None]
    del made, sent
    gc.collect()
    return found


async def test_a_failed_batch_is_told_once() -> None:
    reported: list[str] = []
    assert [type(error) for error in await failed(reported)] == [ProducerFenced, ProducerFenced]
    assert reported == []


async def test_without_the_mend_a_failed_batch_is_reported_as_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, aiokafka mends itself: take ours out."""
    monkeypatch.setattr(MessageBatch, "failure", patches._failure)
    reported: list[str] = []
    await failed(reported)
    assert reported == ["Future exception was never retrieved"]


@pytest.mark.parametrize("topics", [["orders"], [], None])
@pytest.mark.parametrize("version", [MetadataRequest_v4, MetadataRequest_v5])
def test_metadata_are_asked_without_making_topics(topics: list[str] | None, version: type[MetadataRequestStruct]) -> None:
    assert aiokafka.client.MetadataRequest is patches.QuietMetadataRequest
    quiet = patches.QuietMetadataRequest(topics).build(version).encode()
    loud = MetadataRequest(topics).build(version).encode()
    assert (quiet[-1], loud[-1]) == (0, 1), "the flag is the last byte"
    assert quiet[:-1] == loud[:-1]


async def test_an_error_of_kafka_that_nobody_waited_for_is_told_where_somebody_did(caplog: pytest.LogCaptureFixture) -> None:
    """A commit that was given up goes on for a moment, and may fail then; what else nobody waited for is a defect."""
    asyncio.get_running_loop().set_exception_handler(patches.on_loop_error)

    async def fail(error: Exception) -> None:
        raise error

    for error in (UnknownTopicOrPartitionError(), RuntimeError("a defect")):
        await asyncio.wait([asyncio.create_task(fail(error))])
        gc.collect()
    told = [record.message for record in caplog.records if record.levelno > logging.DEBUG]
    assert [one.splitlines()[0] for one in told] == ["Task exception was never retrieved"]
    assert "a defect" in told[0]


class Lookups:
    """Stands for a sender and its client: answers each lookup of a coordinator in turn."""

    def __init__(self, *answers: BaseException | int) -> None:
        self.answers = list(answers)
        self.updates = 0
        self.client = self
        self._txn_manager = object()
        self._coordinators: dict[int, int] = {}
        self._retry_backoff = 0.0

    async def coordinator_lookup(self, _kind: int, _key: str) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def force_metadata_update(self) -> None:
        self.updates += 1

    async def ready(self, _node: int, group: int) -> bool:
        return True


def test_a_coordinator_is_asked_for_again_when_the_connection_breaks() -> None:
    sender = Lookups(KafkaConnectionError("closed"), KafkaConnectionError("closed"), 3)
    assert asyncio.run(patches.find_coordinator(sender, 1, "app-orders-0")) == 3
    assert sender.updates == 2


def test_any_other_refusal_of_a_coordinator_ends_the_producer() -> None:
    with pytest.raises(KafkaError, match="ClusterAuthorizationFailed"):
        asyncio.run(patches.find_coordinator(Lookups(ClusterAuthorizationFailedError()), 1, "app-orders-0"))


def test_without_the_mend_a_broken_connection_ends_the_producer() -> None:
    """When this fails, aiokafka mends itself: take ours out."""
    with pytest.raises(KafkaError, match="closed"):
        asyncio.run(patches._find_coordinator(Lookups(KafkaConnectionError("closed"), 3), 1, "app-orders-0"))


async def cancelled_in_its_pause(process: Any) -> asyncio.Task[bool]:
    """A fetch from a broker that is away, which is cancelled while it waits before the next attempt, as by the consumer's close."""

    async def send(node: int, request: Any) -> Any:
        raise KafkaConnectionError("away")

    fetcher = SimpleNamespace(
        _client=SimpleNamespace(send=send), _retry_backoff=60.0, _invalidate_preferred_read_replica_for_node=lambda node, request: None
    )
    task: asyncio.Task[bool] = asyncio.ensure_future(process(fetcher, None, 0, None))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task


async def test_a_fetch_that_is_cancelled_in_its_pause_ends() -> None:
    assert (await cancelled_in_its_pause(Fetcher._proc_fetch_request)).result() is False


async def test_without_the_mend_it_cancels_the_close() -> None:
    """When this fails, aiokafka mends itself: take ours out."""
    assert (await cancelled_in_its_pause(patches._proc_fetch_request)).cancelled()
