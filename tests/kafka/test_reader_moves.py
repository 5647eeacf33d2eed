"""The log reader while leaders move, brokers fail, and logs are trimmed, cut, or replaced by others of the same name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from stream_app.core.model import Run
from stream_app.kafka.batches import add_run, whole_batches
from stream_app.kafka.trouble import TroubleKind
from tests.support.fake_broker import EPOCH_END, FETCH, LIST_OFFSETS, METADATA, Asked, FakeCluster, FakeLog
from tests.support.log_bytes import batch, batches, flip
from tests.support.log_owner import reading

pytestmark = pytest.mark.usefixtures("impatient")

ID = b"orders".ljust(16, b".")
NEW_ID = b"orders, again".ljust(16, b".")


# -------------------------------------------------------------------------------------------- leaders that move


async def test_a_leader_that_moves_is_followed(two_nodes: FakeCluster) -> None:
    log = FakeLog(batches(0, 10))
    two_nodes.add("orders", log)
    async with reading(two_nodes, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        for turn in range(1, 8):
            log.leader, log.epoch = turn % 2, turn
            log.batches += batches(10 * turn, 10 * turn + 10, epoch=turn)
            assert (await owner.read_to(10 * turn + 10)).records == ((0, 10 * turn + 10),)
    assert owner.troubles == []
    assert {one.node for one in two_nodes.requests(FETCH)} == {0, 1}


@pytest.mark.parametrize("code", [3, 5, 6, 9, 56, 74, 75, 78, 100, 103])
async def test_errors_of_a_moving_leader_are_waited_out(cluster: FakeCluster, code: int) -> None:
    cluster.add("orders", FakeLog(batches(0, 30), faults=[code, code, code]))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        assert (await owner.read_to(30)).records == ((0, 30),)


async def test_the_leader_is_told_which_epochs_we_know(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([*batches(0, 10, epoch=2), *batches(10, 20, epoch=5)], epoch=6))
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(20)
        await owner.until(lambda: len(owner.reads["orders", 0]) > 1)
    asked = [topic["Partitions"][0] for one in cluster.requests(FETCH) for topic in one.body["Topics"]]
    assert {one["CurrentLeaderEpoch"] for one in asked} == {6}
    assert {(one["FetchOffset"], one["LastFetchedEpoch"]) for one in asked} == {(0, -1), (20, 5)}


async def test_a_broker_that_goes_away_and_comes_back(two_nodes: FakeCluster) -> None:
    log = FakeLog(batches(0, 10), leader=1)
    two_nodes.add("orders", log)
    async with reading(two_nodes, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(10)
        two_nodes.drop_connections()
        log.batches += batches(10, 20)
        await owner.read_to(20)
        two_nodes.stop_node(1)
        two_nodes.drop_connections()
        log.batches += batches(20, 30)
        away = await owner.trouble(TroubleKind.UNREACHABLE)
        assert "broker 1 is not in the cluster's metadata" in away.message
        log.leader, log.epoch = 0, 1
        assert (await owner.read_to(30)).records == ((0, 30),)


async def test_no_broker_at_all_is_told_and_waited_for() -> None:
    async with FakeCluster() as cluster:
        host, port = cluster.address()
        cluster.add("orders", FakeLog(batches(0, 10)))
        cluster.stop_node(0)
        async with reading(cluster) as owner:
            owner.assign("orders", 0, 0)
            away = await owner.trouble(TroubleKind.UNREACHABLE)
            assert f"{host}:{port} can't be reached" in away.message
            assert (away.topic, away.partition, away.position) == ("orders", 0, 0)


async def test_a_partition_without_a_leader_is_told_and_waited_for(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 10), leader=-1)
    cluster.add("orders", log)
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        assert "has no leader" in (await owner.trouble(TroubleKind.NO_LEADER)).message
        log.leader = 0
        await owner.read_to(10)


async def test_a_silent_broker_is_given_up(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 10)))
    cluster.hangs = True
    async with reading(cluster, timeout_ms=200) as owner:
        owner.assign("orders", 0, 0)
        assert "no answer from" in (await owner.trouble(TroubleKind.UNREACHABLE)).message
        cluster.hangs = False
        cluster.changed()
        await owner.read_to(10)


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda answer: None, id="closes the connection"),
        pytest.param(lambda answer: b"\0\0\0\0" + answer[4:], id="answers another request"),
        pytest.param(lambda answer: answer[:20], id="ends in the middle of a field"),
        pytest.param(lambda answer: b"", id="an answer without bytes"),
        pytest.param(lambda answer: answer[:9] + b"\x00\x46" + answer[11:], id="an error for the whole answer"),
    ],
)
async def test_answers_that_make_no_sense_are_asked_for_again(cluster: FakeCluster, tamper: Callable[[bytes], bytes | None]) -> None:
    cluster.add("orders", FakeLog(batches(0, 50)))
    times = 0

    def sometimes(asked: Asked, answer: bytes) -> bytes | None:
        nonlocal times
        if asked.api == FETCH and times < 3:
            times += 1
            return tamper(answer)
        return answer

    cluster.tamper = sometimes
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        assert (await owner.read_to(50)).records == ((0, 50),)
    assert times == 3


# --------------------------------------------------------------------------- logs that are trimmed, cut, replaced


async def test_what_retention_took_first_is_unread(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(40, 59), *batches(60, 100)], start=47))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 12)
        got = await owner.read_to(100)
    assert (got.unread, got.records, got.log_start) == (((12, 47),), ((47, 100),), 47)
    assert owner.troubles == []


async def test_retention_while_reading(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 10))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0, leader_epoch=0)
        await owner.read_to(10)
        log.batches, log.start = batches(30, 50), 33
        got = await owner.read_to(50)
    assert (got.records, got.unread) == (((0, 10), (33, 50)), ((10, 33),))


async def test_what_is_gone_is_not_compared(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(33, 50, epoch=1), start=33, epoch=1, epoch_ends={0: (0, 10)}))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 5, leader_epoch=0)
        assert (await owner.read_to(50)).unread == ((5, 33),)
    assert owner.troubles == []


async def test_everything_was_removed(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([], start=90, end=90))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 12)
        assert (await owner.read_to(90)).unread == ((12, 90),)


async def test_a_log_that_ends_below_the_position_is_a_trouble_not_a_reset(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 50))
    cluster.add("orders", log)
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 80)
        cut = await owner.trouble(TroubleKind.OUT_OF_RANGE)
        assert (cut.position, cut.end_offset, cut.topic, cut.partition) == (80, 50, "orders", 0)
        asked = len(cluster.requests(FETCH))
        assert asked >= 2, "believed at once"
        assert owner.reads == {}
        owner.assign("orders", 0, 50)
        await owner.read_to(50)


async def test_an_end_that_is_zero_for_a_moment_changes_nothing(cluster: FakeCluster) -> None:
    """Bufstream did (Jepsen 2024)."""
    log = FakeLog(batches(0, 50))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        kept, log.batches, log.end = log.batches, [], 0
        await cluster.until_asked(LIST_OFFSETS, len(cluster.requests(LIST_OFFSETS)) + 3)
        log.batches, log.end = [*kept, *batches(50, 60)], None
        assert (await owner.read_to(60)).records == ((0, 60),)
    assert owner.troubles == []


async def test_a_truncation_is_told_by_the_epoch_when_the_log_is_short(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 50, epoch=1), epoch=1)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        log.batches, log.epoch, log.epoch_ends = batches(0, 30, epoch=1), 2, {1: (1, 30)}
        cut = await owner.trouble(TroubleKind.TRUNCATED)
        assert (cut.position, cut.end_offset, cut.leader_epoch) == (50, 30, 1)


async def test_a_truncation_is_told_by_the_epoch_when_the_log_has_grown_again(cluster: FakeCluster) -> None:
    log = FakeLog([*batches(0, 30), *batches(30, 50, epoch=1)], epoch=1)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        log.batches = [*batches(0, 30, epoch=0), *batches(30, 90, epoch=2)]
        log.epoch, log.epoch_ends = 2, {1: (0, 30)}
        cut = await owner.trouble(TroubleKind.TRUNCATED)
        assert (cut.position, cut.end_offset, cut.leader_epoch) == (50, 30, 0)
        assert owner.reads["orders", 0][-1].next == 50
        owner.assign("orders", 0, 30, leader_epoch=0)
        assert (await owner.read_to(90)).records == ((30, 90),)


async def test_a_truncation_is_told_from_where_our_epochs_part(cluster: FakeCluster) -> None:
    """Two unclean elections: the leader's epoch 1 goes on where ours had ended."""
    log = FakeLog([*batches(0, 30, epoch=1), *batches(30, 50, epoch=2)], epoch=2)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        log.batches = [*batches(0, 40, epoch=1), *batches(40, 90, epoch=3)]
        log.epoch, log.epoch_ends = 3, {2: (1, 40)}
        cut = await owner.trouble(TroubleKind.TRUNCATED)
        assert (cut.position, cut.end_offset, cut.leader_epoch) == (50, 30, 1)


async def test_a_truncation_to_an_older_log_that_is_longer(cluster: FakeCluster) -> None:
    log = FakeLog([*batches(0, 30), *batches(30, 50, epoch=1)], epoch=1)
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        log.batches, log.epoch, log.epoch_ends = batches(0, 90), 2, {1: (0, 90)}
        cut = await owner.trouble(TroubleKind.TRUNCATED)
        assert (cut.position, cut.end_offset, cut.leader_epoch) == (50, 30, 0)


async def test_a_truncation_before_the_start_is_told_by_the_epoch_that_was_kept(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([*batches(0, 30, epoch=1), *batches(30, 90, epoch=4)], epoch=4, epoch_ends={3: (1, 30)}))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 50, topic_id=ID, leader_epoch=3)
        cut = await owner.trouble(TroubleKind.TRUNCATED)
    assert (cut.position, cut.end_offset, cut.leader_epoch) == (50, 30, 1)
    assert owner.reads == {}


async def test_an_epoch_that_the_leader_does_not_know_is_not_held_against_it(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 90, epoch=4), epoch=4, epoch_ends={3: (-1, -1)})
    log.faults = [1]
    cluster.add("orders", log)
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 50, leader_epoch=3)
        assert (await owner.read_to(90)).records == ((50, 90),)
    assert owner.troubles == []


async def test_divergence_that_the_leader_takes_back_changes_nothing(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 90, epoch=4), epoch=4, epoch_ends={3: (3, 10)})
    cluster.add("orders", log)
    cluster.before_epochs = lambda: log.epoch_ends.update({3: (3, 60)})
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 50, leader_epoch=3)
        assert (await owner.read_to(90)).records == ((50, 90),)
    assert len(cluster.requests(EPOCH_END)) == 1
    assert owner.troubles == []


async def test_one_stale_answer_is_not_believed_where_topics_are_fetched_by_name(cluster: FakeCluster) -> None:
    cluster.offered[FETCH] = (0, 12)
    cluster.add("orders", FakeLog(batches(0, 20)), topic_id=NEW_ID)
    views = [ID]

    def old_view(asked: Asked, answer: bytes) -> bytes:
        return answer.replace(NEW_ID, views.pop()) if asked.api == METADATA and views else answer

    cluster.tamper = old_view
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0, topic_id=NEW_ID)
        assert (await owner.read_to(20)).topic_id == NEW_ID
    assert owner.troubles == []


@pytest.mark.parametrize("version", [12, 16])
async def test_a_topic_made_anew_is_told_with_its_new_id(cluster: FakeCluster, version: int) -> None:
    cluster.offered[FETCH] = (0, version)
    log = FakeLog(batches(0, 50))
    cluster.add("orders", log)
    async with reading(cluster, max_wait_ms=10) as owner:
        owner.assign("orders", 0, 0)
        await owner.read_to(50)
        # Longer than the old one, so that no offset is out of range.
        cluster.add("orders", FakeLog(batches(0, 200)), topic_id=NEW_ID)
        anew = await owner.trouble(TroubleKind.RECREATED)
        assert anew.topic_id == NEW_ID
        if version >= 13:  # by name it is noticed a little later only
            assert anew.position == owner.reads["orders", 0][-1].next == 50
        owner.assign("orders", 0, None)
        got = await owner.read_to(200)
        assert (got.position, got.records, got.topic_id) == (0, ((0, 200),), NEW_ID)


async def test_a_topic_made_anew_before_the_start_is_told(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 200)), topic_id=NEW_ID)
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 50, topic_id=ID)
        assert (await owner.trouble(TroubleKind.RECREATED)).topic_id == NEW_ID
    assert owner.reads == {}


async def test_a_broker_with_an_old_view_of_the_id_is_not_believed(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 20)), topic_id=NEW_ID)
    views = [ID, ID, ID]

    def old_view(asked: Asked, answer: bytes) -> bytes:
        return answer.replace(NEW_ID, views.pop()) if asked.api == METADATA and views else answer

    cluster.tamper = old_view
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0, topic_id=NEW_ID)
        assert (await owner.read_to(20)).topic_id == NEW_ID
    assert owner.troubles == []
    assert views == []


async def test_a_topic_that_is_not_there_is_told_and_waited_for(cluster: FakeCluster) -> None:
    async with reading(cluster) as owner:
        owner.assign("orders", 0, None)
        assert (await owner.trouble(TroubleKind.UNKNOWN_TOPIC)).topic == "orders"
        cluster.add("orders", FakeLog(batches(0, 20)))
        await owner.read_to(20)
    assert not any(one.body["AllowAutoTopicCreation"] for one in cluster.requests(METADATA))


async def test_a_partition_that_is_not_there_is_told_and_waited_for(cluster: FakeCluster) -> None:
    topic = cluster.add("orders", FakeLog(batches(0, 20)))
    async with reading(cluster) as owner:
        owner.assign("orders", 1, None)
        assert (await owner.trouble(TroubleKind.UNKNOWN_TOPIC)).partition == 1
        topic.logs[1] = FakeLog(batches(0, 30))
        await owner.read_to(30, partition=1)


async def test_a_topic_we_may_not_read_is_told_and_waited_for(cluster: FakeCluster) -> None:
    log = FakeLog(batches(0, 20), faults=[29, 29])
    cluster.add("orders", log)
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        assert "grant this principal READ" in (await owner.trouble(TroubleKind.REFUSED)).message
        await owner.read_to(20)


async def test_a_broker_that_is_too_old_is_told(cluster: FakeCluster) -> None:
    cluster.offered[FETCH] = (0, 4)
    cluster.add("orders", FakeLog(batches(0, 20)))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        assert "Kafka 1.0 or newer is needed" in (await owner.trouble(TroubleKind.UNSUPPORTED)).message


async def test_an_unexpected_error_is_told_by_its_number_and_waited_out(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog(batches(0, 20), faults=[87] * 12))
    async with reading(cluster) as owner:
        owner.assign("orders", 0, 0)
        assert "error code 87" in (await owner.trouble(TroubleKind.UNEXPECTED)).message
        await owner.read_to(20)
    assert [one.kind for one in owner.troubles] == [TroubleKind.UNEXPECTED], "told over and over"


# --------------------------------------------------------------------------------------------- everything at once


@pytest.mark.parametrize("seed", range(5))
async def test_a_troubled_cluster_loses_and_invents_nothing(two_nodes: FakeCluster, seed: int) -> None:
    """Leaders that move, connections that break, damage on the way, errors: each offset is still told once, and rightly."""
    rng = random.Random(seed)
    logs = [FakeLog(start=0) for _ in range(4)]
    two_nodes.add("orders", *logs)

    damaged: set[bytes] = set()

    def damage(_: Asked, records: bytes) -> bytes:
        if not records or rng.random() > 0.05:
            return records
        one = rng.choice([*whole_batches(memoryview(records), 0, len(records))])
        if records[one.at : one.stop] in damaged:  # damaged twice is unreadable by right
            return records
        damaged.add(records[one.at : one.stop])
        return flip(records, rng.randrange(one.at + 17, one.stop))  # what lies before is not covered by the CRC

    two_nodes.damage = damage
    two_nodes.tamper = lambda asked, answer: None if rng.random() < 0.02 else answer
    truth: list[list[Run]] = [[] for _ in logs]
    async with reading(two_nodes, max_wait_ms=10, max_bytes=3000) as owner:
        for partition in range(4):
            owner.assign("orders", partition, 0)
        for turn in range(60):
            log, known = logs[turn % 4], truth[turn % 4]
            first = log.high_watermark
            for at in range(first, first + 50, 10):
                keep = [offset for offset in range(at, at + 10) if rng.random() < 0.8] or [at]
                log.batches.append(batch(at, at + 9, keep=keep, epoch=log.epoch))
                for offset in keep:
                    add_run(known, offset, offset + 1)
            if rng.random() < 0.3:
                log.leader, log.epoch = 1 - log.leader, log.epoch + 1
            if rng.random() < 0.2:
                log.faults.append(rng.choice([6, 75, 78, 87]))
            if rng.random() < 0.1:
                two_nodes.drop_connections()
            two_nodes.changed()
            await asyncio.sleep(0.005)
            owner.take()
        for partition, log in enumerate(logs):
            got = await owner.read_to(log.high_watermark, partition=partition)
            assert list(got.records) == truth[partition]
            assert got.unreadable == ()
