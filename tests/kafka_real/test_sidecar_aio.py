"""The sidecar inside aiokafka's consumers of a real Kafka."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as ConfluentPartition

from gapstream_sidecar import Sidecar
from gapstream_sidecar.carried import decode
from tests.sidecar.watched import PATIENCE_S, Watched, leave_behind, run
from tests.support.kafka_kit import KafkaKit

Make = Callable[..., Awaitable[Any]]


@pytest.fixture
async def watched(kit: KafkaKit) -> AsyncIterator[Watched]:
    with ExitStack() as opened:
        made = Watched(kit, 2)
        opened.enter_context(made.opened)
        yield made


@pytest.fixture
async def make(watched: Watched) -> AsyncIterator[Make]:
    """``make(sidecar, group, listener, ...)``: a wrapped consumer, subscribed and started."""
    async with AsyncExitStack() as opened:

        async def made(sidecar: Any, group: str, listener: Any = None, **options: Any) -> Any:
            conf = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 20, "session_timeout_ms": 6_000}
            where = {"bootstrap_servers": watched.kit.bootstrap, "group_id": group, "heartbeat_interval_ms": 200}
            wrapped = sidecar.wrap(AIOKafkaConsumer(**where, **(conf | options)))
            wrapped.subscribe([watched.topic], listener=listener)
            if listener is not None:
                listener.consumer = wrapped
            await wrapped.start()
            opened.push_async_callback(wrapped.stop)
            return wrapped

        yield made


async def take(consumer: Any, number: int) -> list[Any]:
    """The next records."""
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < number:
            batches = await consumer.getmany(timeout_ms=100, max_records=number - len(found))
            found += [record for records in batches.values() for record in records]
    return found


async def flushed(sidecar: Any) -> bool:
    return await asyncio.to_thread(sidecar.flush, PATIENCE_S)


async def test_commits_by_offset_and_by_position(watched: Watched, make: Make) -> None:
    watched.kit.produce(watched.topic, n=30)
    sidecar = watched.sidecar()
    consumer = await make(sidecar, uuid.uuid4().hex)
    where = TopicPartition(watched.topic, 0)
    await take(consumer, 10)
    await consumer.commit({where: 4})
    assert watched.runs() == [[[0, 3]]]
    await consumer.commit({where: (6, "theirs")})
    assert watched.runs()[1:] == [[[4, 5]]]
    consumer.seek(where, 20)
    await take(consumer, 5)
    await consumer.commit()
    assert watched.runs()[2:] == [[[6, 9], [20, 24]]]
    seen = []
    async for record in consumer:
        seen.append(record.offset)
        if record.offset == 29:
            break
    await consumer.commit()
    assert await flushed(sidecar)
    assert seen == [25, 26, 27, 28, 29]
    assert watched.receipts() == Counter([*range(10), *range(20, 30)])
    assert await consumer.committed(where) == 30


async def test_auto_commit_and_handing_over(watched: Watched, make: Make) -> None:
    for partition in range(2):
        watched.kit.produce(watched.topic, partition, 100)
    group = uuid.uuid4().hex
    for _ in range(4):
        sidecar = watched.sidecar()
        consumer = await make(sidecar, group, enable_auto_commit=True)
        await take(consumer, 50)
        await consumer.stop()
        assert await flushed(sidecar)
    assert [watched.receipts(one) for one in range(2)] == [Counter(range(100))] * 2
    assert [watched.receipts(one, "unobserved") for one in range(2)] == [Counter()] * 2


class Committing(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """The application's own listener: it commits before its partitions go, as people do."""

    def __init__(self) -> None:
        self.consumer: Any = None
        self.revoked = 0

    async def on_partitions_revoked(self, revoked: Any) -> None:
        self.revoked += bool(revoked)
        if revoked:
            await self.consumer.commit()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        pass


async def test_a_rebalance_between_two_instances(watched: Watched, make: Make) -> None:
    for partition in range(2):
        watched.kit.produce(watched.topic, partition, 100)
    group = uuid.uuid4().hex
    sidecars = [watched.sidecar(), watched.sidecar()]
    listener = Committing()
    first = await make(sidecars[0], group, listener)
    asked = Counter[tuple[int, int]]()
    asked.update((one.partition, one.offset) for one in await take(first, 80))
    second = await make(sidecars[1], group)
    async with asyncio.timeout(PATIENCE_S):
        while len(asked) < 200:
            for consumer in (first, second):
                found = await consumer.getmany(timeout_ms=20, max_records=30)
                batch = [(one.partition, one.offset) for records in found.values() for one in records]
                asked.update(batch)
                if batch and consumer is second:
                    await consumer.commit()
    for consumer, sidecar in zip((first, second), sidecars, strict=True):
        if consumer.assignment():
            await consumer.commit()
        assert await flushed(sidecar)
    assert listener.revoked
    for partition in range(2):
        receipts = watched.receipts(partition)
        assert set(receipts) == set(range(100))
        assert all(times <= asked[partition, offset] for offset, times in receipts.items())


async def test_committed_metadata_are_the_last_word_of_a_killed_process(watched: Watched, make: Make) -> None:
    watched.kit.produce(watched.topic, n=100)
    group = uuid.uuid4().hex
    script = """
        import gapstream_sidecar.pace
        gapstream_sidecar.pace.BURST = 1
        gapstream_sidecar.pace.IN_ORDER_S = gapstream_sidecar.pace.SKIPPED_S = 3_600.0
        import asyncio, os, signal
        from aiokafka import AIOKafkaConsumer
        from gapstream_sidecar import Sidecar

        async def main():
            sidecar = Sidecar({"bootstrap.servers": sys.argv[1]}, "billing", observe_before_commit=10)
            conf = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "session_timeout_ms": 6_000}
            consumer = sidecar.wrap(AIOKafkaConsumer(sys.argv[2], bootstrap_servers=sys.argv[1], group_id=sys.argv[3], **conf))
            await consumer.start()
            done = 0
            async for record in consumer:
                done += 1
                await consumer.commit()
                if done == 60:
                    os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    await asyncio.to_thread(run, script, watched.kit.bootstrap, watched.topic, group, status=-signal.SIGKILL)
    assert watched.receipts() == Counter([0])
    sidecar = watched.sidecar()
    consumer = await make(sidecar, group)
    assert (await take(consumer, 40))[0].offset == 60
    await consumer.commit()
    assert await flushed(sidecar)
    assert watched.receipts() == Counter(range(100))


async def test_a_call_that_is_given_up_takes_no_record_along(watched: Watched, make: Make) -> None:
    """While what is handed out can't be announced, each first record of a call has to wait; whoever gives up is handed it again."""
    watched.kit.produce(watched.topic, n=20)
    sidecar = Sidecar({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, sink="billing")
    consumer = await make(sidecar, uuid.uuid4().hex, enable_auto_commit=True)
    found: list[int] = []
    given_up = 0
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < 20:
            try:
                found.append((await asyncio.wait_for(consumer.getone(), 0.1)).offset)
            except TimeoutError:
                given_up += 1
    await asyncio.to_thread(sidecar.close, 0)
    assert found == list(range(20))
    assert given_up


async def test_who_assigns_by_hand_reports_what_a_killed_owner_could_not(watched: Watched) -> None:
    group = uuid.uuid4().hex
    watched.kit.produce(watched.topic, n=5)
    leave_behind(watched, group)
    sidecar = watched.sidecar()
    conf = {"bootstrap_servers": watched.kit.bootstrap, "enable_auto_commit": False, "auto_offset_reset": "latest"}
    async with sidecar.wrap(AIOKafkaConsumer(group_id=group, **conf)) as consumer:
        consumer.assign([TopicPartition(watched.topic, 0)])
        assert not await consumer.getmany(timeout_ms=100)
        assert await flushed(sidecar)
        assert watched.receipts() == Counter(range(5))


async def test_confluent_kafka_reads_what_this_client_carried(watched: Watched, make: Make) -> None:
    """Whatever its length is: confluent-kafka takes metadata for a string that ends in a zero."""
    group = uuid.uuid4().hex
    watched.kit.produce(watched.topic, n=30)
    sidecar = Sidecar({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}, sink="billing", observe_before_commit=0.0)
    consumer = await make(sidecar, group)
    other = Consumer(watched.conf(group))
    for offset in range(0, 30, 2):
        consumer.seek(TopicPartition(watched.topic, 0), offset)
        (record,) = await take(consumer, 1)
        assert record.offset == offset
        await consumer.commit({TopicPartition(watched.topic, 0): offset + 1})
        (found,) = await asyncio.to_thread(other.committed, [ConfluentPartition(watched.topic, 0)], PATIENCE_S)
        rows = decode(found.metadata, "billing", (watched.topic, 0), found.offset)
        assert sorted(run for row in rows for run in row.runs) == [(one, one + 1) for one in range(0, offset + 1, 2)]
    other.close()
    await asyncio.to_thread(sidecar.close, 0)
