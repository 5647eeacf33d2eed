"""What groups committed, asked of brokers that answer as told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError, KafkaError, MalformedError, RefusedError, UnreachableError
from stream_app.kafka.groups import Groups
from stream_app.kafka.protocol import SUPPORTED, Api
from tests.support.fake_broker import FIND_COORDINATOR, LIST_OFFSETS, OFFSET_FETCH, Asked, FakeCluster, FakeGroup, FakeLog

ASKED = [("orders", 0), ("orders", 1), ("sales", 0)]


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(2) as made:
        made.add("orders", FakeLog(), FakeLog(start=7, leader=1))
        made.add("sales", FakeLog(start=3))
        made.groups["loader"] = FakeGroup({("orders", 0): 10, ("sales", 0): 0})
        yield made


@pytest.fixture
async def groups(cluster: FakeCluster) -> AsyncIterator[Groups]:
    made = Groups(KafkaSettings(bootstrap_servers=(cluster.address(),), client_id="me"))
    yield made
    await made.close()


async def test_commits_and_none_are_told_apart(groups: Groups, cluster: FakeCluster) -> None:
    assert await groups.committed("loader", ASKED) == {("orders", 0): 10, ("orders", 1): None, ("sales", 0): 0}
    assert await groups.committed("nobody", ASKED) == dict.fromkeys(ASKED)
    assert await groups.committed("loader", ASKED[:1]) == {("orders", 0): 10}
    assert len(cluster.requests(FIND_COORDINATOR)) == 2, "once for each group"
    assert len(cluster.requests(OFFSET_FETCH)) == 3, "once for all partitions"


@pytest.mark.parametrize("version", [SUPPORTED[Api.OFFSET_FETCH][0], 5, 6])
async def test_older_brokers(cluster: FakeCluster, version: int) -> None:
    groups = Groups(
        KafkaSettings(bootstrap_servers=(cluster.address(),), client_id="me"), caps={Api.OFFSET_FETCH: version, Api.FIND_COORDINATOR: 1}
    )
    assert (await groups.committed("loader", ASKED))[("orders", 0)] == 10
    await groups.close()


async def test_a_coordinator_that_moves_is_followed(groups: Groups, cluster: FakeCluster) -> None:
    await groups.committed("loader", ASKED)
    cluster.groups["loader"].coordinator = 1
    assert (await groups.committed("loader", ASKED))[("orders", 0)] == 10
    assert [one.node for one in cluster.requests(OFFSET_FETCH)] == [0, 0, 1]


async def test_a_coordinator_that_goes_away_is_looked_for_again(groups: Groups, cluster: FakeCluster) -> None:
    cluster.groups["loader"].coordinator = 1
    await groups.committed("loader", ASKED)
    cluster.stop_node(1)
    cluster.drop_connections()
    cluster.groups["loader"].coordinator = 0
    assert (await groups.committed("loader", ASKED))[("orders", 0)] == 10


async def test_a_coordinator_that_nobody_can_reach(groups: Groups, cluster: FakeCluster) -> None:
    cluster.groups["loader"].coordinator = 1
    await groups.committed("loader", ASKED)
    cluster.stop_node(1)
    cluster.drop_connections()
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await groups.committed("loader", ASKED)


async def test_a_coordinator_that_moves_on_and_on_is_given_up(groups: Groups, cluster: FakeCluster) -> None:
    cluster.groups["loader"].faults = [16, 16, 16]
    with pytest.raises(BrokerError, match="NOT_COORDINATOR when asked to tell the commits of group loader"):
        await groups.committed("loader", ASKED)
    assert len(cluster.requests(OFFSET_FETCH)) == 2


@pytest.mark.parametrize(("code", "name"), [(14, "COORDINATOR_LOAD_IN_PROGRESS"), (15, "COORDINATOR_NOT_AVAILABLE")])
async def test_no_coordinator_yet(groups: Groups, cluster: FakeCluster, code: int, name: str) -> None:
    cluster.groups["loader"].no_coordinator = code
    with pytest.raises(BrokerError, match=name):
        await groups.committed("loader", ASKED)
    cluster.groups["loader"].no_coordinator = 0
    assert (await groups.committed("loader", ASKED))[("orders", 0)] == 10


async def test_commits_that_may_not_be_seen(groups: Groups, cluster: FakeCluster) -> None:
    cluster.groups["loader"].faults = [30]
    with pytest.raises(RefusedError, match="grant this principal DESCRIBE on it"):
        await groups.committed("loader", ASKED)
    cluster.groups["loader"].refused = {("sales", 0): 29}
    found = await groups.committed("loader", ASKED)
    assert found[("orders", 0)] == 10
    assert isinstance(found[("sales", 0)], RefusedError)


async def test_an_answer_that_leaves_something_out_is_malformed(groups: Groups, cluster: FakeCluster) -> None:
    def short(asked: Asked, answer: bytes) -> bytes:
        return answer if asked.api != OFFSET_FETCH else answer[:5] + bytes(4) + b"\x01" + bytes(2) + b"\0"

    cluster.tamper = short
    with pytest.raises(MalformedError, match="lacks orders/0"):
        await groups.committed("loader", ASKED)


async def test_no_broker_at_all() -> None:
    groups = Groups(KafkaSettings(bootstrap_servers=(("127.0.0.1", 1),), client_id="me"))
    with pytest.raises(KafkaError, match="can't be reached"):
        await groups.committed("loader", ASKED)
    await groups.close()


# --- where logs start ---


async def test_starts_are_asked_of_each_leader_at_once(groups: Groups, cluster: FakeCluster) -> None:
    assert await groups.log_starts(ASKED) == {("orders", 0): 0, ("orders", 1): 7, ("sales", 0): 3}
    assert sorted(one.node for one in cluster.requests(LIST_OFFSETS)) == [0, 1]


async def test_a_start_that_is_not_told_is_an_error(groups: Groups, cluster: FakeCluster) -> None:
    cluster.topics["orders"].logs[1].leader = -1
    with pytest.raises(BrokerError, match="name the leader of orders/1"):
        await groups.log_starts(ASKED)
    with pytest.raises(BrokerError, match="name the leader of gone/0"):
        await groups.log_starts([("gone", 0)])
