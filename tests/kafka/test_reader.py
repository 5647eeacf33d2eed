"""The log reader against brokers that answer as told: reading, back-pressure, damage, and questions beside it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from stream_app.core.model import Absent, LogEnds
from stream_app.kafka import lane
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError, UnreachableError, UnsupportedError
from stream_app.kafka.protocol import Api, Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.trouble import TroubleKind
from tests.support.fake_broker import FETCH, LIST_OFFSETS, METADATA, FakeCluster, FakeLog
from tests.support.log_bytes import ABORT, TRANSACTIONAL, batch, batches, flip, legacy, marker
from tests.support.log_owner import reading, wanted

pytestmark = pytest.mark.usefixtures("impatient")

ID = b"orders".ljust(16, b".")
COMMITTED, UNCOMMITTED = Isolation.READ_COMMITTED, Isolation.READ_UNCOMMITTED


# ------------------------------------------------------------------------------------------------- plain reading


async def test_a_log_is_read_from_its_start_to_its_end(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(7, 100, epoch=3), start=7, epoch=3))
    async with reading(cluster) as owner:
        owner.assign("orders")
        got = await owner.read_to(100)
    assert (got.position, got.next, got.records, got.topic_id) == (7, 100, ((7, 100),), ID)
    assert (got.log_start, got.high_watermark, got.last_stable, got.leader_epoch) == (7, 100, 100, 3)
    assert (got.absent, got.holes, got.unreadable, got.unread) == ({}, (), (), ())
    assert got.size == sum(map(len, batches(7, 100)))
    assert owner.troubles == []


async def test_reading_begins_at_the_given_position(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 100)))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 33)
        assert (await owner.read_to(100)).records == ((33, 100),)


@pytest.mark.parametrize("version", range(5, 17))
async def test_every_version_of_fetch(cluster: FakeCluster, version: int) -> None:
    cluster.offered[FETCH] = (0, version)
    cluster.add("orders", FakeLog(batches(0, 50)), FakeLog(batches(5, 20), start=5))
    async with reading(cluster) as owner:
        owner.assign("orders", 0)
        owner.assign("orders", 1)
        assert (await owner.read_to(50)).records == ((0, 50),)
        assert (await owner.read_to(20, partition=1)).records == ((5, 20),)
    assert {one.version for one in cluster.requests(FETCH)} == {version}


@pytest.mark.parametrize("version", range(4, 13))
async def test_every_version_of_metadata(cluster: FakeCluster, version: int) -> None:
    cluster.offered[METADATA] = (0, version)
    if version < 10:
        cluster.offered[FETCH] = (0, 12)
    cluster.add("orders", FakeLog(batches(0, 50)))
    async with reading(cluster) as owner:
        owner.assign("orders", 0)
        got = await owner.read_to(50)
    assert got.topic_id == (ID if version >= 10 else bytes(16))


async def test_an_old_first_request_is_understood(cluster: FakeCluster) -> None:
    cluster.offered[Api.API_VERSIONS] = (0, 2)
    cluster.add("orders", FakeLog(batches(0, 50)))
    async with reading(cluster) as owner:
        owner.assign("orders")
        await owner.read_to(50)


@pytest.mark.parametrize("size", [1, 7, 61, 1000])
async def test_answers_may_come_in_pieces(cluster: FakeCluster, size: int) -> None:
    cluster.send_in_pieces_of = size
    cluster.add("orders", FakeLog(batches(0, 200)))
    async with reading(cluster, max_bytes=4_000) as owner:
        owner.assign("orders")
        assert (await owner.read_to(200)).records == ((0, 200),)


async def test_what_is_written_meanwhile_is_read(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 10))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=4_000) as owner:
        owner.assign("orders")
        await owner.read_to(10)
        for first in range(10, 100, 10):
            log.batches += batches(first, first + 10)
            cluster.changed()
            assert (await owner.read_to(first + 10)).records == ((0, first + 10),)


async def test_an_end_is_told_again_when_it_changes_and_every_second(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 10))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=20) as owner:
        owner.assign("orders")
        await owner.read_to(10)
        begun = asyncio.get_running_loop().time()
        await owner.until(lambda: len(owner.reads["orders", 0]) == 3)
        assert asyncio.get_running_loop().time() - begun >= 1.0
        log.start = 4
        await owner.until(lambda: owner.reads["orders", 0][-1].log_start == 4)
        assert asyncio.get_running_loop().time() - begun < 3.0
        assert all((one.position, one.next, one.size) == (10, 10, 0) for one in owner.reads["orders", 0][1:])


async def test_an_end_that_lags_behind_the_position_is_not_an_end_that_was_read(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "STUCK_AFTER_S", 60.0)
    log = FakeLog(batches(0, 30))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(30)
        # A new leader answers so until its high watermark has caught up; the real one has the records all the time.
        cluster.tamper = lambda asked, answer: answer.replace((30).to_bytes(8, "big"), (20).to_bytes(8, "big"))
        seen, asked = len(owner.reads["orders", 0]), len(cluster.requests(FETCH))
        await cluster.until_asked(FETCH, asked + 20)
        cluster.tamper = lambda asked, answer: answer
        log.start = 1
        await owner.until(lambda: owner.reads["orders", 0][-1].log_start == 1)
    assert all(one.high_watermark == 30 for one in owner.reads["orders", 0][seen:])
    assert owner.troubles == []


async def test_large_answers_are_read_ahead(cluster: FakeCluster) -> None:
    value = b"v" * 1000
    logs = [FakeLog(batches(0, 2000, value=value)) for _ in range(3)]
    cluster.add("orders", *logs)
    async with reading(cluster, max_bytes=1 << 20, partition_max_bytes=100_000) as owner:
        for partition in range(3):
            owner.assign("orders", partition)
        for partition in range(3):
            assert (await owner.read_to(2000, partition=partition)).records == ((0, 2000),)
    fetched = [pair for pair in wanted(cluster.requests(FETCH)) if pair[1] < 2000]
    assert len(fetched) == len(set(fetched)), "something was fetched twice"


async def test_a_guess_that_was_wrong_is_dropped(cluster: FakeCluster) -> None:
    """A broker that sends more than its stable end allows: what was asked for ahead begins too high."""
    log = FakeLog(batches(0, 400, value=b"v" * 1000), stable=200)
    cluster.add("orders", log)
    cluster.damage = lambda asked, _: b"".join(one for one in log.batches if int.from_bytes(one[:8], "big") >= wanted([asked])[0][1])
    async with reading(cluster, max_wait_ms=2000) as owner:
        owner.assign("orders", 0, 0)
        assert (await owner.read_to(200)).records == ((0, 200),)
        await cluster.until_asked(FETCH, 2)
        assert wanted(cluster.requests(FETCH))[1] == (0, 400), "nothing was guessed"
        log.stable = None
        log.batches += batches(400, 420)
        cluster.changed()
        assert (await owner.read_to(420)).records == ((0, 420),)


async def test_one_answer_serves_partitions_in_turn(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "RETRY_S", (60.0, 60.0))  # nobody is held back because others filled the answer
    cluster.add("orders", *(FakeLog(batches(0, 500, value=b"v" * 100)) for _ in range(8)))
    async with reading(cluster, max_bytes=12_000, partition_max_bytes=10_000) as owner:
        for partition in range(8):
            owner.assign("orders", partition)
        for partition in range(8):
            await owner.read_to(500, partition=partition)
    assert owner.troubles == []
    first_of_each = [wanted([one])[0][0] for one in cluster.requests(FETCH)]
    assert len(set(first_of_each[:8])) >= 4, "those who were served go to the end of the queue"


async def test_two_isolation_levels_on_one_broker(cluster: FakeCluster) -> None:
    open_transaction = batch(5, 9, attributes=TRANSACTIONAL, producer=4)
    cluster.add("orders", FakeLog([*batches(0, 5), open_transaction], stable=5), FakeLog([*batches(0, 5), open_transaction], stable=5))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, isolation=COMMITTED)
        owner.assign("orders", 1, isolation=UNCOMMITTED)
        committed, uncommitted = await owner.read_to(5), await owner.read_to(10, partition=1)
    assert (committed.records, committed.high_watermark, committed.last_stable) == (((0, 5),), 10, 5)
    assert (uncommitted.records, uncommitted.high_watermark, uncommitted.last_stable) == (((0, 10),), 10, 10)


async def test_nothing_above_the_stable_end_is_told_even_if_the_broker_sends_it(cluster: FakeCluster) -> None:
    """Brokers did: Redpanda, off by one (Jepsen 2022)."""
    log = FakeLog(batches(0, 30), stable=20)
    cluster.add("orders", log)
    cluster.damage = lambda asked, records: b"".join(log.batches[2:]) if wanted([asked]) == [(0, 20)] else b"".join(log.batches)
    async with reading(cluster) as owner:
        owner.assign("orders")
        assert (await owner.read_to(20)).records == ((0, 20),)
        log.stable = None
        cluster.changed()
        assert (await owner.read_to(30)).records == ((0, 30),)


async def test_absent_offsets_are_told_by_cause(cluster: FakeCluster) -> None:
    log = FakeLog(
        [batch(0, 4, attributes=TRANSACTIONAL, producer=4), marker(5, 4, ABORT), batch(6, 9, keep=[7]), *legacy_messages(12, 14)],
        aborted=[(4, 0)],
    )
    cluster.add("orders", log)
    async with reading(cluster) as owner:
        owner.assign("orders")
        got = await owner.read_to(14)
    assert got.absent == {Absent.ABORTED: ((0, 5),), Absent.TRANSACTION_MARKER: ((5, 6),)}
    assert (got.records, got.holes) == (((7, 8), (12, 14)), ((6, 7), (8, 12)))


def legacy_messages(first: int, stop: int) -> list[bytes]:
    return [legacy(1, [offset]) for offset in range(first, stop)]


# ------------------------------------------------------------------------------------ back-pressure, repositioning


async def test_what_is_not_taken_is_not_fetched_beyond_one_answer(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 1000)), FakeLog(batches(0, 1000)))
    async with reading(cluster, max_bytes=1000, partition_max_bytes=500, max_wait_ms=10) as owner:
        owner.assign("orders", 0)
        owner.assign("orders", 1)
        await owner.reader.wait()
        # Only the partition that was taken goes on; the other one stands still, but does not hold it up.
        while owner.reads.get(("orders", 1)) is None or owner.reads["orders", 1][-1].next < 1000:
            await owner.reader.wait()
            for key, one in owner.reader.take().items():
                if key[1] == 0:
                    owner.reader.unassign("orders", 0)
                owner.reads.setdefault(key, []).append(one)
        assert [one.next for one in owner.reads["orders", 0]] != [1000]


async def test_an_owner_that_never_takes_stops_the_fetching(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 100_000, 1000)))
    async with reading(cluster, max_bytes=20_000, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.reader.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await cluster.until_asked(FETCH, 4)
        assert (await owner.read_to(100_000)).records == ((0, 100_000),)


async def test_assigning_again_repositions_and_drops_what_was_ready(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 100)))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        await owner.reader.wait()
        owner.assign("orders", 0, 50)
        assert owner.reader.take() == {}
        assert (await owner.read_to(100)).position == 50
        rng = random.Random(7)
        positions = rng.sample(range(100), 50)
        for position in positions:
            owner.assign("orders", 0, position)
            for _ in range(rng.randrange(20)):
                await asyncio.sleep(0)
        assert (await owner.read_to(100)).position == positions[-1]


async def test_unassigning_ends_it(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 100)))
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.reader.wait()
        owner.reader.unassign("orders", 0)
        owner.reader.unassign("orders", 0)
        owner.reader.unassign("never assigned", 3)
        assert owner.reader.take() == {}
        asked = len(cluster.requests(FETCH))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await owner.reader.wait()
        assert len(cluster.requests(FETCH)) <= asked + 1


async def test_start_and_stop(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 100)))
    made = LogReader(KafkaSettings((cluster.address(),)), client_id="test")
    with pytest.raises(RuntimeError, match="call start"):
        made.assign("orders", 0, 0, isolation=COMMITTED, check_crcs=True)
    await made.start()
    made.assign("orders", 0, 0, isolation=COMMITTED, check_crcs=True)
    await made.wait()
    made.take()
    waiting = asyncio.create_task(made.wait())
    await asyncio.sleep(0)
    await made.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        await waiting
    await made.stop()
    await made.start()
    made.assign("orders", 0, 50, isolation=COMMITTED, check_crcs=True)
    await made.wait()
    assert made.take()["orders", 0].records == ((50, 100),)
    await made.stop()


def test_a_wait_longer_than_the_patience_with_a_broker() -> None:
    with pytest.raises(ValueError, match="below the request timeout"):
        LogReader(KafkaSettings((("h", 1),), request_timeout_ms=500), client_id="test", max_wait_ms=500)


async def test_a_defect_is_raised_to_the_owner_not_swallowed(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.add("orders", FakeLog(batches(0, 100)))
    monkeypatch.setattr("stream_app.kafka.assigned.BatchParser", None)
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        with pytest.raises(TypeError):
            await owner.reader.wait()
        for method in (owner.reader.take, owner.reader.troubles):
            with pytest.raises(TypeError):
                method()


# ----------------------------------------------------------------------------------------------- damage and limits


async def test_a_batch_damaged_on_its_way_is_read_again_over_a_fresh_connection(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 50)))
    cluster.damage = lambda asked, records: flip(records, 300) if asked.connection <= 2 else records
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        got = await owner.read_to(50)
    assert (got.records, got.unreadable) == (((0, 50),), ())
    assert [one.kind for one in owner.troubles] == [TroubleKind.DAMAGED]
    assert len({one.connection for one in cluster.requests(FETCH)}) == 2


async def test_a_batch_damaged_in_the_log_is_unreadable_and_reading_goes_on(cluster: FakeCluster) -> None:
    log = batches(0, 50)
    log[2], log[3] = flip(log[2], -1), flip(log[3], 50)
    cluster.add("orders", FakeLog(log))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        got = await owner.read_to(50)
    assert (got.records, got.unreadable) == (((0, 20), (40, 50)), ((20, 40),))


async def test_crcs_can_be_left_unchecked(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([flip(one, -1) for one in batches(0, 50)]))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0, check_crcs=False)
        assert (await owner.read_to(50)).records == ((0, 50),)


async def test_damage_in_a_large_answer_spoils_no_guess(cluster: FakeCluster) -> None:
    log = batches(0, 2000, value=b"v" * 1000)
    log[37] = flip(log[37], 5000)
    cluster.add("orders", FakeLog(log), FakeLog(batches(0, 2000, value=b"v" * 1000)))
    async with reading(cluster, max_bytes=300_000) as owner:
        owner.assign("orders", 0, 0)
        owner.assign("orders", 1, 0)
        assert (await owner.read_to(2000)).unreadable == ((370, 380),)
        assert (await owner.read_to(2000, partition=1)).records == ((0, 2000),)


async def test_a_batch_whose_length_is_damaged_holds_reading_up_and_says_so(cluster: FakeCluster) -> None:
    log = batches(0, 30)
    log[1] = log[1][:8] + (-7).to_bytes(4, "big", signed=True) + log[1][12:]
    cluster.add("orders", FakeLog(log))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        stuck = await owner.trouble(TroubleKind.STUCK)
        assert "repair the broker's log" in stuck.message
        assert owner.reads["orders", 0][-1].next == 10
    assert len(cluster.requests(FETCH)) < 60, "asked in a hot loop"


@pytest.mark.parametrize("size", [1, 30, 61, 150])
async def test_t38_a_partial_batch_is_asked_for_again_with_a_larger_size(cluster: FakeCluster, size: int) -> None:
    cluster.partial_batches = True
    cluster.add("orders", FakeLog(batches(0, 40)))
    async with reading(cluster, max_bytes=size, partition_max_bytes=size) as owner:
        owner.assign("orders", 0, 0)
        assert (await owner.read_to(40)).records == ((0, 40),)
    assert owner.troubles == []


async def test_batches_larger_than_a_fetch(cluster: FakeCluster) -> None:
    cluster.add("orders", *(FakeLog(batches(0, 30, value=b"v" * 50_000)) for _ in range(3)))
    async with reading(cluster, max_bytes=10_000, partition_max_bytes=10_000) as owner:
        for partition in range(3):
            owner.assign("orders", partition, 0)
        for partition in range(3):
            assert (await owner.read_to(30, partition=partition)).records == ((0, 30),)
    assert owner.troubles == []


async def test_t62_a_broker_that_gives_nothing_below_its_own_end_is_stuck_not_a_gap(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 20))
    cluster.add("orders", log, FakeLog(batches(0, 20)))
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        owner.assign("orders", 1, 0)
        await owner.read_to(20)
        log.silent, log.end = True, 25
        stuck = await owner.trouble(TroubleKind.STUCK)
        assert (stuck.topic, stuck.partition, stuck.position) == ("orders", 0, 20)
        assert owner.reads["orders", 0][-1].next == 20
        log.silent = False
        log.batches += batches(20, 25)
        cluster.changed()
        assert (await owner.read_to(25)).records == ((0, 25),)


# ------------------------------------------------------------------------------------------------------ questions


async def test_ends_and_metadata(two_nodes: FakeCluster) -> None:
    log = FakeLog(batches(3, 50), start=3, stable=40, leader=1, epoch=2)
    two_nodes.add("orders", log)
    async with reading(two_nodes) as owner:
        assert await owner.reader.ends("orders", 0) == LogEnds(3, 50, 40)
        log.leader, log.epoch, log.start = 0, 3, 5
        assert await owner.reader.ends("orders", 0) == LogEnds(5, 50, 40)
        info = await owner.reader.metadata(["orders", "nothing"])
        assert (info.topics["orders"].partitions, info.topics["orders"].topic_id, info.topics["orders"].exists) == (1, ID, True)
        assert not info.topics["nothing"].exists
        assert info.topics["nothing"].leaders == {}
        assert set((await owner.reader.metadata(None)).topics) == {"orders"}
        assert info.cluster_id == "fake"


async def test_questions_of_one_moment_travel_together(cluster: FakeCluster) -> None:
    names = [f"topic-{number}" for number in range(20)]
    for name in names:
        cluster.add(name, FakeLog(batches(0, 10)))
    async with reading(cluster) as owner:
        for name in names:
            owner.assign(name, 0, 0)
        for name in names:
            await owner.read_to(10, name)
    assert len(cluster.requests(METADATA)) == 1


async def test_many_questions_at_once(cluster: FakeCluster) -> None:
    cluster.add("orders", *(FakeLog(batches(0, 10 * index + 10)) for index in range(40)))
    async with reading(cluster) as owner:
        ends = await asyncio.gather(*(owner.reader.ends("orders", index) for index in range(40)))
    assert [one.high_watermark for one in ends] == list(range(10, 401, 10))
    assert len({one.connection for one in cluster.asked}) == 1


async def test_ends_that_can_not_be_told_in_time(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 50), leader=-1))
    async with reading(cluster, timeout_ms=200) as owner:
        with pytest.raises(BrokerError, match="LEADER_NOT_AVAILABLE"):
            await owner.reader.ends("orders", 0)
        with pytest.raises(BrokerError, match="UNKNOWN_TOPIC_OR_PARTITION"):
            await owner.reader.ends("orders", 7)
        cluster.topics["orders"].logs[0].leader = 0
        cluster.offered[LIST_OFFSETS] = (0, 1)
    async with reading(cluster, timeout_ms=200) as owner:
        with pytest.raises(UnsupportedError):
            await owner.reader.ends("orders", 0)
    cluster.stop_node(0)
    async with reading(cluster, timeout_ms=200) as owner:
        with pytest.raises(UnreachableError):
            await owner.reader.ends("orders", 0)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"bootstrap_servers": ()}, "host:port"),
        ({"security_protocol": "TLS"}, "PLAINTEXT, SSL"),
        ({"security_protocol": "SASL_SSL"}, "TLS context"),
    ],
)
def test_settings_that_can_not_work(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        KafkaSettings(**{"bootstrap_servers": (("h", 1),), **wrong})


def test_settings_do_not_show_the_password() -> None:
    assert "hunter2" not in repr(KafkaSettings((("h", 1),), sasl_plain_password="hunter2"))
