"""The second look against brokers that answer as told."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from stream_app.core.model import Look, Run, Runs
from stream_app.kafka import probe
from stream_app.kafka.batches import add_run, records_of, whole_batches
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError, RefusedError, UnreachableError
from stream_app.kafka.probe import Prober, look
from stream_app.kafka.protocol import Api, Isolation
from stream_app.kafka.records import CONTROL
from tests.support.fake_broker import FETCH, FakeCluster, FakeLog
from tests.support.log_bytes import ABORT, GZIP, LZ4, T0, TRANSACTIONAL, ZSTD, batch, emptied, flip, legacy, marker, raw_batch, record

ID = b"orders".ljust(16, b".")
COMMITTED, UNCOMMITTED = Isolation.READ_COMMITTED, Isolation.READ_UNCOMMITTED


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(2) as made:
        yield made


def settings(cluster: FakeCluster) -> KafkaSettings:
    return KafkaSettings((cluster.address(),), request_timeout_ms=2_000)


async def look_at(cluster: FakeCluster, *runs: Run, isolation: Isolation = COMMITTED, topic_id: bytes = ID, **options: Any) -> Look:
    """What is at the runs; what lies beside them has tests of its own."""
    return replace(await look_beside(cluster, *runs, isolation=isolation, topic_id=topic_id, **options), beside={})


async def look_beside(cluster: FakeCluster, *runs: Run, isolation: Isolation = COMMITTED, topic_id: bytes = ID, **options: Any) -> Look:
    return await look(settings(cluster), "orders", 0, topic_id, isolation, runs, **{"timeout": 10, **options})


async def test_records_that_are_there_are_in_no_field(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), batch(10, 19, codec=ZSTD), batch(20, 29)]))
    assert await look_at(cluster, (3, 4)) == Look(4, 0, timestamps={3: T0 + 3})
    assert await look_at(cluster, (0, 30)) == Look(30, 0, timestamps={0: T0, 29: T0 + 29})
    assert await look_at(cluster, (5, 7), (9, 11), (25, 26)) == Look(
        26, 0, timestamps={offset: T0 + offset for offset in (5, 6, 9, 10, 25)}
    )


async def test_the_times_of_the_records_beside_a_run_are_told(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), marker(10, 5), batch(11, 19), batch(20, 29, keep=[20, 25, 29]), batch(30, 39)], stable=30))
    times = {offset: T0 + offset for offset in range(30)}
    for run, beside in {
        (0, 1): {1},
        (3, 5): {2, 5},
        (5, 10): {4},
        (11, 12): {12},
        (12, 20): {11, 20},
        (26, 29): {25, 29},
        (29, 30): set(),
    }.items():
        got = await look_beside(cluster, run)
        assert got.beside == {offset: times[offset] for offset in beside}, run
        assert (got.upto, got.unreadable) == (run[1], ())
        assert all(run[0] <= first < stop <= run[1] for first, stop in got.holes)
    got = await look_beside(cluster, (3, 5), (6, 7), (15, 16))
    assert got.beside == {offset: times[offset] for offset in (2, 5, 7, 14, 16)}


async def test_the_log_start_is_that_of_the_answer(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)], start=3))
    assert (await look_at(cluster, (5, 6))).log_start == 3


async def test_nothing_to_look_at_tells_where_the_log_starts(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(10, 19)], start=12))
    assert await look_at(cluster) == Look(0, 12)


async def test_holes_are_what_is_in_no_batch_or_gone_from_its_batch(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9, keep=[1, 4]), emptied(10, 19), batch(25, 29)]))
    got = await look_at(cluster, (0, 29))
    assert (got.upto, got.holes) == (29, ((0, 1), (2, 4), (5, 25)))
    assert got.timestamps == {1: T0 + 1, 28: T0 + 28}
    assert (await look_at(cluster, (3, 5), (22, 23))).holes == ((3, 4), (22, 23))


async def test_the_earliest_record_of_a_run_is_told_wherever_it_lies(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 4, time=T0 + 100), batch(5, 9, time=T0), batch(10, 14, time=T0 + 50)]))
    assert (await look_at(cluster, (1, 14))).timestamps == {1: T0 + 101, 5: T0 + 5, 13: T0 + 63}


@pytest.mark.parametrize("codec", [0, GZIP, LZ4, ZSTD])
async def test_tombstones(cluster: FakeCluster, codec: int) -> None:
    cluster.add("orders", FakeLog([batch(0, 9, nulls=[2, 3, 7], codec=codec), batch(10, 19, nulls=range(10, 20))]))
    got = await look_at(cluster, (2, 3), (5, 9), (15, 17))
    assert (got.tombstones, got.holes) == (((2, 3), (7, 8), (15, 17)), ())
    assert set(got.timestamps) == {2, 5, 8, 15, 16}


@pytest.mark.parametrize("isolation", [COMMITTED, UNCOMMITTED])
async def test_markers_and_aborted_records_are_in_no_field(cluster: FakeCluster, isolation: Isolation) -> None:
    log = [batch(0, 4, attributes=TRANSACTIONAL, producer=4), marker(5, 4, ABORT), batch(6, 9)]
    cluster.add("orders", FakeLog(log, aborted=[(4, 0)]))
    got = await look_at(cluster, (3, 8), isolation=isolation)
    assert (got.upto, got.holes, got.tombstones, got.unreadable) == (8, (), (), ())
    assert 5 not in got.timestamps


async def test_offsets_below_the_log_start_are_left_to_it(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(20, 29), batch(30, 39)], start=25))
    assert await look_at(cluster, (3, 4), (10, 27), (33, 34)) == Look(34, 25, timestamps={25: T0 + 25, 26: T0 + 26, 33: T0 + 33})
    assert await look_at(cluster, (3, 4), (10, 20)) == Look(20, 25)


async def test_a_log_start_that_moves_meanwhile(cluster: FakeCluster) -> None:
    log = FakeLog([batch(0, 9, keep=[5]), batch(10, 19), batch(20, 29, nulls=[24])])
    cluster.add("orders", log)

    def trim(asked: object, records: bytes) -> bytes:
        log.start = 22
        return records

    cluster.damage = trim
    got = await look_at(cluster, (0, 3), (12, 13), (20, 25), max_bytes=10_000_000)
    assert (got.upto, got.log_start) == (25, 0), "one answer told it all"
    cluster.partial_batches = False
    log.start, log.batches = 0, [batch(0, 9, keep=[5], value=b"v" * 200_000), batch(10, 19), batch(20, 29, nulls=[24])]
    got = await look_at(cluster, (0, 3), (12, 13), (20, 25))
    assert (got.upto, got.log_start) == (25, 22)
    assert (got.holes, got.tombstones, set(got.timestamps)) == ((), ((24, 25),), {22, 24})


async def test_a_batch_that_is_wrong_twice_is_unreadable(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), flip(batch(10, 19), -1), flip(batch(20, 29), 70), batch(30, 39)]))
    got = await look_at(cluster, (8, 12), (25, 27), (35, 36))
    assert (got.upto, got.unreadable, got.holes) == (36, ((10, 12), (25, 27)), ())
    assert set(got.timestamps) == {8, 9, 35}
    assert len({one.connection for one in cluster.requests(FETCH)}) == 3


async def test_a_batch_that_was_damaged_on_its_way_is_looked_at_again(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9, nulls=[4])]))
    first = cluster.requests(FETCH)
    cluster.damage = lambda asked, records: records if cluster.requests(FETCH)[0].connection != asked.connection else flip(records, 80)
    got = await look_at(cluster, (3, 6))
    assert (got.unreadable, got.tombstones, got.upto) == ((), ((4, 5),), 6)
    assert first == []


async def test_what_can_not_be_read_yet_is_not_looked_at(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), batch(10, 19)], stable=10))
    assert (await look_at(cluster, (8, 15))).upto == 10
    assert (await look_at(cluster, (8, 15), isolation=UNCOMMITTED)).upto == 15
    assert (await look_at(cluster, (8, 15), (18, 25), isolation=UNCOMMITTED)).upto == 20
    assert (await look_at(cluster, (30, 31), isolation=UNCOMMITTED)).upto == 30


async def test_which_records_are_older_is_told_each_for_itself(cluster: FakeCluster) -> None:
    """Times that rise in each batch and fall from one to the next; a record without a time is older than any."""
    times = {0: T0 + 100, 10: T0, 20: T0 + 85, 30: -100}
    cluster.add("orders", FakeLog([batch(first, first + 9, time=time) for first, time in times.items()]))
    got = await look_at(cluster, (5, 30), (32, 36), older_than_ms=T0 + 106)
    assert got.older == ((5, 6), (10, 21), (32, 36))
    assert got.timestamps == {5: T0 + 105, 6: T0 + 106, 9: T0 + 109, 10: T0 + 10, 20: T0 + 105, 21: T0 + 106, 29: T0 + 114}
    assert (await look_at(cluster, (5, 30))).older == ()


async def test_work_is_bounded(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(first, first + 9, value=b"v" * 10_000) for first in range(0, 1000, 10)]))
    got = await look_at(cluster, (0, 1000), max_bytes=1_000_000)
    assert 0 < got.upto < 1000
    assert sum(len(one) for one in cluster.topics["orders"].logs[0].batches) > 5_000_000
    rest = await look_at(cluster, (got.upto, 1000))
    assert rest.upto > got.upto


async def test_one_offset_costs_little(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(first, first + 9, value=b"v" * 1000) for first in range(0, 5000, 10)]))
    await look_at(cluster, (2345, 2346))
    assert len(cluster.requests(FETCH)) == 1
    assert cluster.requests(FETCH)[0].body["MaxBytes"] == 1 << 12
    assert len(cluster.asked) <= 5


async def test_a_batch_larger_than_the_fetch(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9, value=b"v" * 100_000, nulls=[9]), batch(10, 19)]))
    got = await look_at(cluster, (9, 11))
    assert (got.tombstones, set(got.timestamps)) == (((9, 10),), {9, 10})


async def test_t62_a_broker_that_gives_nothing_below_its_own_end_is_no_hole(cluster: FakeCluster) -> None:
    log = FakeLog([batch(0, 9)], end=20)
    cluster.add("orders", log)
    got = await look_at(cluster, (8, 15))
    assert (got.upto, got.holes) == (10, ())
    assert len(cluster.requests(FETCH)) == 3
    log.batches.append(batch(17, 19))
    got = await look_at(cluster, (8, 15))
    assert (got.upto, got.holes) == (15, ((10, 15),))


async def test_t27_a_batch_that_counts_fewer_records_than_it_holds(cluster: FakeCluster) -> None:
    """What the header counts can't be read by every consumer; what it does not count is no record."""
    cluster.add("orders", FakeLog([batch(0, 9), raw_batch(10, b"".join(map(record, range(5))), count=3, delta=4), batch(15, 19)]))
    got = await look_at(cluster, (8, 17))
    assert (got.upto, got.unreadable, got.holes) == (17, ((10, 13),), ((13, 15),))
    assert (await look_at(cluster, (12, 14))).holes == ((13, 14),)


@pytest.mark.parametrize(("magic", "codec"), [(0, 0), (0, GZIP), (1, 0), (1, LZ4)])
async def test_old_formats(cluster: FakeCluster, magic: int, codec: int) -> None:
    cluster.add("orders", FakeLog([legacy(magic, [3, 4, 7], codec=codec), batch(9, 12)], start=3))
    got = await look_at(cluster, (3, 11))
    assert (got.upto, got.holes) == (11, ((5, 7), (8, 9)))
    assert got.timestamps == ({3: T0 + 3, 10: T0 + 10} if magic else {10: T0 + 10})


@pytest.mark.parametrize("version", [5, 11, 12, 13, 16])
async def test_old_brokers(cluster: FakeCluster, version: int) -> None:
    cluster.add("orders", FakeLog([batch(0, 9, nulls=[4])]))
    async with Prober(settings(cluster), caps={Api.FETCH: version}) as prober:
        got = await prober.look("orders", 0, ID, COMMITTED, ((3, 6),))
    assert got.tombstones == ((4, 5),)
    assert cluster.requests(FETCH)[0].version == version


async def test_another_incarnation_is_not_looked_at(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)]))
    with pytest.raises(BrokerError, match="created anew") as raised:
        await look_at(cluster, (3, 4), topic_id=b"another topic's ")
    assert raised.value.code == 100
    assert (await look_at(cluster, (3, 4), topic_id=bytes(16))).upto == 4


async def test_a_leader_that_moves_is_followed(cluster: FakeCluster) -> None:
    log = FakeLog([batch(0, 9), batch(10, 19)], leader=1, faults=[6, 75])
    cluster.add("orders", log)
    assert (await look_at(cluster, (3, 14))).upto == 14


async def test_a_look_that_finds_nobody_says_so(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)], leader=-1))
    with pytest.raises(BrokerError, match="LEADER_NOT_AVAILABLE"):
        await look_at(cluster, (3, 4), timeout=0.3)
    cluster.topics["orders"].logs[0].leader = 0
    cluster.topics["orders"].logs[0].faults = [29]
    with pytest.raises(RefusedError, match="grant"):
        await look_at(cluster, (3, 4), timeout=0.3)
    cluster.stop_node(0)
    cluster.stop_node(1)
    with pytest.raises(UnreachableError):
        await look_at(cluster, (3, 4), timeout=0.3)


async def test_a_look_that_runs_out_of_time_tells_what_it_found(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "FETCH_BYTES", (1, 1))
    log = FakeLog([batch(0, 9, nulls=[4]), batch(10, 19)])
    cluster.add("orders", log)

    def hang_then(asked: Any, records: bytes) -> bytes:
        cluster.hangs = True
        return records

    cluster.damage = hang_then
    got = await look_at(cluster, (3, 14), timeout=0.5)
    assert (got.upto, got.tombstones) == (10, ((4, 5),))


async def test_several_partitions_in_turn_share_a_fresh_connection(cluster: FakeCluster) -> None:
    cluster.add("orders", *(FakeLog([batch(0, 9, nulls=[index])]) for index in range(5)))
    async with Prober(settings(cluster)) as prober:
        for index in range(5):
            got = await prober.look("orders", index, ID, COMMITTED, ((0, 10),))
            assert got.tombstones == ((index, index + 1),)
    used = {one.connection for one in cluster.asked}
    await look_at(cluster, (0, 10))
    assert len(used) == 1
    assert cluster.asked[-1].connection not in used


@pytest.mark.parametrize("seed", range(10))
async def test_any_log_and_any_runs_agree_with_reading_all_of_it(cluster: FakeCluster, seed: int) -> None:
    rng = random.Random(seed)
    batches: list[bytes] = []
    at = 0
    while len(batches) < 60:
        last = at + rng.randrange(8)
        keep = [offset for offset in range(at, last + 1) if rng.random() < 0.7]
        nulls = [offset for offset in keep if rng.random() < 0.3]
        choice = rng.randrange(6)
        if choice == 0:
            batches.append(marker(at, 5))
            last = at
        elif choice == 1:
            batches.append(emptied(at, last))
        elif choice > 2:
            batches.append(batch(at, last, keep=keep or [at], nulls=nulls, value=b"v" * rng.randrange(3000), codec=rng.choice([0, ZSTD])))
        at = last + 1
    batches.append(batch(at, at))
    runs: list[Run] = []
    for offset in range(at + 1):
        if rng.random() < 0.3:
            add_run(runs, offset, offset + 1)
    start = rng.randrange(at // 2)
    cluster.add("orders", FakeLog([one for one in batches if _last(one) >= start], start=start))
    assert await look_beside(cluster, *runs) == expected(batches, tuple(runs), start)


def _last(one: bytes) -> int:
    (header,) = whole_batches(memoryview(one), 0, len(one))
    return header.base + header.delta


def expected(batches: list[bytes], runs: Runs, start: int) -> Look:
    """The same by plain sets."""
    records: dict[int, tuple[int, bool]] = {}
    markers: set[int] = set()
    for one in batches:
        view = memoryview(one)
        for header in whole_batches(view, 0, len(one)):
            for offset, time, null in records_of(view, header):
                if header.attributes & CONTROL:
                    markers.add(offset)
                else:
                    records[offset] = (time, null)
    holes: list[Run] = []
    tombstones: list[Run] = []
    timestamps: dict[int, int] = {}
    for first, stop in runs:
        there = [offset for offset in range(max(first, start), stop) if offset in records]
        for offset in range(max(first, start), stop):
            if offset in records and records[offset][1]:
                add_run(tombstones, offset, offset + 1)
            if offset not in records and offset not in markers:
                add_run(holes, offset, offset + 1)
        timestamps |= {offset: records[offset][0] for offset in {*there[:1], *there[-1:]}}
    beside = {o: records[o][0] for first, stop in runs for o in (first - 1, stop) if o in records and o >= start}
    return Look(runs[-1][1], start, tuple(holes), (), tuple(tombstones), timestamps, beside)


async def test_a_batch_whose_header_claims_more_than_it_may_does_not_take_others_with_it(cluster: FakeCluster) -> None:
    """One flipped bit in the last offset: what lies behind the batch is read as if nothing were."""
    damaged = flip(batch(20, 29), 24)
    cluster.add("orders", FakeLog([batch(0, 9), batch(10, 19), damaged, batch(30, 39), batch(40, 49)], end=50))
    assert await look_at(cluster, (25, 26), (35, 45)) == Look(45, 0, unreadable=((25, 26),), timestamps={35: T0 + 35, 44: T0 + 44})
    assert await look_at(cluster, (35, 45)) == Look(45, 0, timestamps={35: T0 + 35, 44: T0 + 44})
