"""The log reader and answers that can't be true, or that only another leader could lawfully give (T62, T29, T31 on fake brokers).

Jepsen saw spurious zero offsets (Bufstream 0.1.0) and ends off by one (Redpanda 21.10): nothing may be given up for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stream_app.kafka.trouble import HALTS, TroubleKind
from tests.support.fake_broker import EPOCH_END, FETCH, LIST_OFFSETS, METADATA, Asked, FakeCluster, FakeLog
from tests.support.log_bytes import batch, batches
from tests.support.log_owner import Owner, reading, wanted

pytestmark = pytest.mark.usefixtures("impatient")

OUT_OF_RANGE, NOT_LEADER = 1, 6


def zeros(numbers: tuple[int, ...]) -> Callable[[Asked, bytes], bytes]:
    """Fetch answers in which these ends are 0."""

    def tamper(asked: Asked, answer: bytes) -> bytes:
        if asked.api != FETCH:
            return answer
        for number in numbers:
            answer = answer.replace(number.to_bytes(8, "big"), bytes(8))
        return answer

    return tamper


def nothing_changed(owner: Owner, position: int) -> None:
    """No halt, no offset told anew: the owner stands where it stood."""
    assert [one for one in owner.troubles if one.kind in HALTS] == []
    assert owner.reads["orders", 0][-1].next == position


# --------------------------------------------------------------------------------- T62: answers that can't be true


async def test_t62_zero_offsets_in_an_answer(cluster: FakeCluster) -> None:
    """End, stable end and start are 0 for a while: said, nothing read from it, and then reading goes on."""
    log = FakeLog(batches(33, 60), start=33)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 33)
        await owner.read_to(60)
        cluster.tamper = zeros((60, 33))
        told = await owner.trouble(TroubleKind.SUSPECT)
        assert (told.position, "was read up to offset 60, but its leader says that it ends at 0" in told.message) == (60, True)
        await cluster.until_asked(FETCH, len(cluster.requests(FETCH)) + 5)
        owner.take()
        nothing_changed(owner, 60)
        cluster.tamper = lambda asked, answer: answer
        log.batches += batches(60, 90)
        got = await owner.read_to(90)
    assert (got.records, got.log_start, got.unread) == (((33, 90),), 33, ())
    assert {one.kind for one in owner.troubles} == {TroubleKind.SUSPECT}
    assert len(cluster.requests(FETCH)) < 300, "asked in a hot loop"


@pytest.mark.parametrize("version", [11, 12, 16])
@pytest.mark.parametrize("end", [49, 0])
async def test_t62_an_end_that_falls_within_a_leader_epoch(cluster: FakeCluster, version: int, end: int) -> None:
    """By one as in Redpanda, or to zero: Fetch refuses the position (v11) or says that the logs differ (v12), ListOffsets agrees."""
    cluster.offered[FETCH] = (0, version)
    log = FakeLog(batches(0, 50, epoch=2), epoch=2)
    cluster.add("orders", log, FakeLog(batches(0, 10), epoch=2))
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        owner.assign("orders", 1, 0)
        await owner.read_to(50)
        log.end = end
        told = await owner.trouble(TroubleKind.SUSPECT)
        assert (told.position, told.end_offset, f"it ends at {end}; no newer leader" in told.message) == (50, None, True)
        await cluster.until_asked(LIST_OFFSETS, len(cluster.requests(LIST_OFFSETS)) + 9)
        owner.take()
        nothing_changed(owner, 50)
        cluster.topics["orders"].logs[1].batches += batches(10, 20)
        await owner.read_to(20, partition=1)
        log.end = None
        log.batches += batches(50, 70, epoch=2)
        cluster.changed()
        assert (await owner.read_to(70)).records == ((0, 70),)
    assert {one.kind for one in owner.troubles} == {TroubleKind.SUSPECT}


async def test_t62_what_was_known_of_the_leader_outlives_a_seek(cluster: FakeCluster) -> None:
    """Read under epoch 4, though the last record is of epoch 2: after a seek too the leader of epoch 4 is no newer one."""
    log = FakeLog(batches(0, 50, epoch=2), epoch=4)
    topic = cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0, topic_id=topic.topic_id)
        await owner.read_to(50)
        owner.assign("orders", 0, 50, topic_id=topic.topic_id, leader_epoch=2)
        log.end = 0
        await owner.trouble(TroubleKind.SUSPECT)
        assert [one for one in owner.troubles if one.kind in HALTS] == []


async def test_t62_a_log_start_of_zero_again(cluster: FakeCluster) -> None:
    log = FakeLog(batches(33, 60), start=33)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 33)
        await owner.read_to(60)
        log.start = 0
        await owner.until(lambda: owner.reads["orders", 0][-1].log_start == 0)
        log.batches += batches(60, 70)
        cluster.changed()
        got = await owner.read_to(70)
    assert (got.records, got.unread, owner.troubles) == (((33, 70),), (), [])


async def test_t62_a_log_start_above_the_position_for_a_moment(cluster: FakeCluster) -> None:
    """The broker that is asked again over a fresh connection takes it back: nothing is unread."""
    log = FakeLog(batches(0, 60))
    cluster.add("orders", log)
    fetched, log.start = 0, 40

    def back(asked: Asked, answer: bytes) -> bytes:
        nonlocal fetched
        fetched += asked.api == LIST_OFFSETS
        if fetched == 3:  # start, stable end and end were told once
            log.start = 0
        return answer

    cluster.tamper = back
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 20)
        got = await owner.read_to(60)
    assert (got.records, got.unread, owner.troubles) == (((20, 60),), (), [])


async def test_t62_leader_epochs_in_headers_that_fall(cluster: FakeCluster) -> None:
    """The epoch lies outside the CRC. Said, the highest one counts, and the broker is never asked about the odd one."""
    log = FakeLog([*batches(0, 30, epoch=5), *batches(30, 60, epoch=3)], epoch=5, epoch_ends={3: (3, 0)})
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10, max_bytes=300) as owner:
        owner.assign("orders", 0, 0)
        got = await owner.read_to(60)
        told = await owner.trouble(TroubleKind.SUSPECT)
        assert "the batch at offset 30 of orders/0 claims leader epoch 3" in told.message
        log.batches += batches(60, 70, epoch=5)
        cluster.changed()
        await owner.read_to(70)
    assert (got.records, got.leader_epoch) == (((0, 60),), 5)
    assert {one.kind for one in owner.troubles} == {TroubleKind.SUSPECT}
    asked = {part["LastFetchedEpoch"] for one in cluster.requests(FETCH) for topic in one.body["Topics"] for part in topic["Partitions"]}
    assert asked == {-1, 5}
    assert cluster.requests(EPOCH_END) == []


async def test_t62_a_leader_epoch_in_a_header_above_the_leaders(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([*batches(0, 30, epoch=5), batch(30, 39, epoch=1 << 20), *batches(40, 60, epoch=6)], epoch=6))
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        got = await owner.read_to(60)
        await owner.trouble(TroubleKind.SUSPECT)
    assert (got.records, got.leader_epoch) == (((0, 60),), 6)


async def test_t62_an_error_for_the_whole_answer(cluster: FakeCluster) -> None:
    """Told by its number while it lasts; both partitions go on where they were."""
    logs = [FakeLog(batches(0, 50)), FakeLog(batches(0, 30))]
    cluster.add("orders", *logs)
    async with reading(cluster, max_wait_ms=10) as owner:
        for partition in range(2):
            owner.assign("orders", partition, 0)
        await owner.read_to(50)
        await owner.read_to(30, partition=1)
        cluster.tamper = lambda asked, answer: answer[:9] + b"\x00\x46" + answer[11:] if asked.api == FETCH else answer
        told = await owner.trouble(TroubleKind.UNEXPECTED)
        assert "error code 70" in told.message
        nothing_changed(owner, 50)
        cluster.tamper = lambda asked, answer: answer
        for log in logs:
            log.batches += batches(log.high_watermark, log.high_watermark + 10)
        assert (await owner.read_to(60)).records == ((0, 60),)
        assert (await owner.read_to(40, partition=1)).records == ((0, 40),)


# --------------------------------------------------------------------------- T31: followers, and leaders that are none


@pytest.mark.parametrize("version", [11, 12, 16])
async def test_t31_a_follower_that_has_not_got_the_position(two_nodes: FakeCluster, version: int) -> None:
    """An old view of the cluster leads to a follower, which serves consumers since KIP-392 and lags: only the leader decides."""
    two_nodes.offered[FETCH] = (0, version)
    log = FakeLog(batches(0, 50), follower_end=20)
    two_nodes.add("orders", log)
    async with reading(two_nodes, max_wait_ms=10) as owner:
        log.named = [1]
        owner.assign("orders", 0, 40, leader_epoch=0)
        assert (await owner.read_to(50)).records == ((40, 50),)
        log.named = [1, 1, 1]
        two_nodes.drop_connections()
        await two_nodes.until_asked(FETCH, len(two_nodes.requests(FETCH)) + 3)
        log.batches += batches(50, 70)
        two_nodes.changed()
        assert (await owner.read_to(70)).records == ((40, 70),)
    assert {one.node for one in two_nodes.requests(FETCH)} == {0, 1}
    assert owner.troubles == []
    assert {one.body.get("RackId", "") for one in two_nodes.requests(FETCH)} == {""}, "asked to be sent to a follower"


async def test_t31_questions_that_a_follower_refuses(two_nodes: FakeCluster) -> None:
    log = FakeLog(batches(0, 50), follower_end=20)
    two_nodes.add("orders", log)
    async with reading(two_nodes, max_wait_ms=10) as owner:
        log.named = [1, 1, 1]
        owner.assign("orders", 0, None)  # where does it begin?
        assert (await owner.read_to(50)).records == ((0, 50),)
    assert [one.node for one in two_nodes.requests(LIST_OFFSETS)][-1] == 0
    assert owner.troubles == []


# -------------------------------------------------------------------- losses that are believed, and on which evidence


@pytest.mark.parametrize("version", [5, 9, 11])
async def test_t29_old_versions_compare_epochs_when_the_leader_changes(cluster: FakeCluster, version: int) -> None:
    """Before v12 a Fetch can't tell that the logs differ: grown beyond the position, the new log would be read as if it were the old."""
    cluster.offered[FETCH] = (0, version)
    log = FakeLog([*batches(0, 30), *batches(30, 50, epoch=1)], epoch=1)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        log.batches = [*batches(0, 30), *batches(30, 90, epoch=2)]
        log.epoch, log.epoch_ends = 2, {1: (0, 30)}
        cluster.drop_connections()
        cut = await owner.trouble(TroubleKind.TRUNCATED)
        assert (cut.position, cut.end_offset, cut.leader_epoch) == (50, 30, 0)
        assert owner.reads["orders", 0][-1].next == 50
        owner.assign("orders", 0, 30, leader_epoch=0)
        assert (await owner.read_to(90)).records == ((30, 90),)


async def test_old_versions_ask_once_per_leader(cluster: FakeCluster) -> None:
    cluster.offered[FETCH] = (0, 11)
    log = FakeLog(batches(0, 50))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        for epoch in (1, 2):
            log.epoch = epoch
            log.batches += batches(log.high_watermark, log.high_watermark + 10, epoch=epoch)
            cluster.drop_connections()
            await owner.read_to(log.high_watermark)
        cluster.drop_connections()
        log.batches += batches(70, 80, epoch=2)
        await owner.read_to(80)
    assert len(cluster.requests(EPOCH_END)) == 2
    assert owner.troubles == []


async def test_a_loss_is_confirmed_though_the_bootstrap_server_is_gone(two_nodes: FakeCluster) -> None:
    log = FakeLog(batches(0, 50), leader=1)
    two_nodes.add("orders", log)
    async with reading(two_nodes, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        two_nodes.stop_node(0)
        two_nodes.drop_connections()
        log.batches, log.epoch, log.epoch_ends = [*batches(0, 30), *batches(30, 90, epoch=2)], 2, {0: (0, 30)}
        cut = await owner.trouble(TroubleKind.TRUNCATED)
    assert (cut.position, cut.end_offset) == (50, 30)


async def test_a_lost_disk_of_a_leader_that_knows_no_epochs(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 50, epoch=1), epoch=1)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        log.batches, log.epoch, log.epoch_ends = [], 3, {1: (-1, -1)}
        cut = await owner.trouble(TroubleKind.OUT_OF_RANGE)
        assert (cut.position, cut.end_offset) == (50, 0)
        asked = cluster.requests(EPOCH_END)
        assert len({one.connection for one in asked}) >= 2, "not confirmed over a fresh connection"
        owner.assign("orders", 0, 0)
        log.batches = batches(0, 5, epoch=3)
        assert (await owner.read_to(5)).records == ((0, 5),)


async def test_brokers_without_epochs_are_believed_after_a_longer_time(cluster: FakeCluster) -> None:
    cluster.offered |= {METADATA: (0, 6), FETCH: (0, 8), EPOCH_END: (0, 1)}
    log = FakeLog(batches(0, 50))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        begun = asyncio.get_running_loop().time()
        log.batches = batches(0, 20)
        cut = await owner.trouble(TroubleKind.OUT_OF_RANGE)
        assert (cut.position, cut.end_offset) == (50, 20)
        assert asyncio.get_running_loop().time() - begun >= 0.4
    refused = [one for one in wanted(cluster.requests(FETCH)) if one == (0, 50)]
    assert len(refused) >= 3
    assert cluster.requests(EPOCH_END) == []


async def test_what_halted_an_assignment_is_not_told_of_the_next_one(cluster: FakeCluster) -> None:
    """The owner has it read again before it hears of the loss: it must not mend the log twice."""
    log = FakeLog(batches(0, 100, epoch=1), epoch=1)
    topic = cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0, topic_id=topic.topic_id)
        await owner.read_to(100)
        log.batches, log.epoch, log.epoch_ends = batches(0, 80, epoch=1) + batches(80, 90, epoch=2), 2, {1: (1, 80)}
        cluster.changed()
        async with asyncio.timeout(owner.patience_s):
            while not any(one.kind in HALTS for one in owner.reader._troubles):
                await owner.reader.wait()
                owner.reader.take()
                await asyncio.sleep(0)
        owner.assign("orders", 0, 100, topic_id=topic.topic_id, leader_epoch=1, epochs=((1, 0),))
        assert not owner.reader._troubles
        told = await owner.trouble(TroubleKind.TRUNCATED)
        assert (told.end_offset, owner.reader.troubles()) == (80, [])


async def test_a_broker_that_tells_no_last_stable_offset_is_told_of(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """-1 is the protocol's default. Nothing is read then, and it is not asked again as fast as it answers."""
    cluster.add("orders", FakeLog(batches(0, 100), end=100, stable=-1))
    records = cluster._records
    monkeypatch.setattr(cluster, "_records", lambda log, offset, bound, *sizes: records(log, offset, log.high_watermark, *sizes))
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        told = await owner.trouble(TroubleKind.STUCK)
        assert "tells no last stable offset of orders/0" in told.message
        assert ("orders", 0) not in owner.reads
