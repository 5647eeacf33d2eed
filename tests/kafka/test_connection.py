"""One connection: answers in turn, buffers that take turns, and nothing read that nobody has room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from stream_app.core.model import LogEnds
from stream_app.kafka.cluster import Cluster
from stream_app.kafka.connection import BUFFER_MIN, BUFFER_STEP, Connection, KafkaSettings, _rounded, open_connection
from stream_app.kafka.failures import MalformedError, UnreachableError
from stream_app.kafka.protocol import Api, Isolation, Leader, Want, decode_metadata, encode_fetch, encode_metadata
from tests.support.fake_broker import METADATA, Asked, FakeCluster, FakeLog
from tests.support.log_bytes import batch

ID = b"orders".ljust(16, b".")


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(2) as made:
        made.add("orders", FakeLog([batch(0, 9, value=b"v" * 50_000), batch(10, 19, value=b"w" * 90_000)]))
        yield made


@pytest.fixture
async def connection(cluster: FakeCluster) -> AsyncIterator[Connection]:
    made = await open_connection(settings(cluster), *cluster.address())
    yield made
    made.close()


def settings(cluster: FakeCluster) -> KafkaSettings:
    return KafkaSettings((cluster.address(0), cluster.address(1)), request_timeout_ms=2_000)


def fetch_from(offset: int) -> bytes:
    want = Want("orders", ID, 0, offset, -1, -1, 1)
    return encode_fetch(13, [want], isolation=Isolation.READ_COMMITTED, max_wait_ms=0, max_bytes=1)


async def test_answers_wait_in_the_socket_until_there_is_a_buffer(connection: Connection) -> None:
    answers = [connection.send(Api.FETCH, 13, fetch_from(offset)) for offset in (0, 10, 0, 10)]
    first, second = await answers[0], await answers[1]
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not answers[2].done(), "a third answer was read though two are held"
    kept = bytes(first.view), bytes(second.view)
    second.release()
    second.release()
    third = await answers[2]
    assert bytes(third.view[4:]) == kept[0][4:]
    assert bytes(first.view) == kept[0], "a buffer that was held was written to"
    first.release()
    fourth = await answers[3]
    assert bytes(fourth.view[4:]) == kept[1][4:]


async def test_buffers_are_used_again(connection: Connection) -> None:
    buffers = set()
    for offset in (10, 0) * 5:
        frame = await connection.send(Api.FETCH, 13, fetch_from(offset))
        buffers.add(id(frame.view.obj))
        frame.release()
    assert len(buffers) == 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4, BUFFER_MIN), (BUFFER_MIN + 1, 2 * BUFFER_MIN), (BUFFER_STEP, BUFFER_STEP), (BUFFER_STEP + 1, 2 * BUFFER_STEP)],
)
def test_buffers_grow_in_steps(size: int, expected: int) -> None:
    assert _rounded(size) == expected


async def test_an_answer_that_was_given_up_does_not_disturb_the_next_one(connection: Connection) -> None:
    version = connection.version(Api.METADATA)
    given_up = connection.send(Api.FETCH, 13, fetch_from(0))
    given_up.cancel()
    for _ in range(5):
        info = decode_metadata(await connection.call(Api.METADATA, version, encode_metadata(version, ["orders"])), version)
        assert list(info.topics) == ["orders"]


async def test_what_is_due_fails_when_the_connection_does(cluster: FakeCluster, connection: Connection) -> None:
    cluster.hangs = True
    due = [connection.send(Api.FETCH, 13, fetch_from(0)) for _ in range(3)]
    await cluster.until_asked(Api.FETCH, 1)
    cluster.drop_connections()
    for one in due:
        with pytest.raises(UnreachableError, match="was lost"):
            await one
    assert connection.closed
    with pytest.raises(UnreachableError, match="was lost"):
        connection.send(Api.FETCH, 13, fetch_from(0))


async def test_a_connection_that_is_not_connected() -> None:
    made = Connection("h", 1, client_id="test", timeout_s=1)
    with pytest.raises(UnreachableError, match="not connected to h:1"):
        made.send(Api.METADATA, 12, b"")
    assert repr(made) == "<Connection h:1>"


async def test_a_broker_that_is_not_kafka() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(http, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(MalformedError, match="is this a Kafka broker"):
            await open_connection(KafkaSettings(((host, port),)), host, port)


# --------------------------------------------------------------------------------------------------- the cluster


async def test_a_cluster_that_knows_no_broker_yet(cluster: FakeCluster) -> None:
    made = Cluster(settings(cluster))
    message = b"\0\0\0\0\x01"  # throttle time, no brokers: in place of everything after the header

    def nobody(asked: Asked, answer: bytes) -> bytes:
        return answer[:5] + message + b"\0\xff\xff\xff\xff\x01\0" if asked.api == METADATA else answer

    cluster.tamper = nobody
    with pytest.raises(UnreachableError, match="knows no broker yet"):
        await made.metadata(["orders"])
    cluster.tamper = lambda asked, answer: answer
    assert (await made.leader("orders", 0)) == Leader(0, 0)
    assert await made.ends("orders", 0, Leader(0, 0)) == LogEnds(0, 20, 20)
    await made.close()


async def test_brokers_that_left_are_forgotten(cluster: FakeCluster) -> None:
    made = Cluster(KafkaSettings((cluster.address(0),), request_timeout_ms=2_000))
    await made.metadata(["orders"])
    second = await made.connection(1)
    assert await made.connection(1) is second
    made.renew(1)
    assert second.closed
    second = await made.connection(1)
    cluster.stop_node(1)
    made.renew(0)
    cluster.changed()
    while 1 in made.brokers:
        await made.metadata(["orders"])
    assert second.closed
    with pytest.raises(UnreachableError, match="not in the cluster's metadata"):
        await made.connection(1)
    await made.close()


async def test_metadata_that_nobody_waits_for_any_more(cluster: FakeCluster) -> None:
    made = Cluster(settings(cluster))
    asking = asyncio.create_task(made.metadata(["orders"]))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await made.close()


async def test_an_end_that_makes_no_sense(cluster: FakeCluster) -> None:
    cluster.topics["orders"].logs[0].end = -5
    made = Cluster(settings(cluster))
    await made.metadata(["orders"])
    with pytest.raises(MalformedError, match="offset -5"):
        await made.ends("orders", 0, Leader(0, 0))
    await made.close()
