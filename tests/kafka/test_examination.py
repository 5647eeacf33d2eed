"""What a log shows at some offsets: the pure reading of answers, and brokers that answer as told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stream_app.core.model import LogEnds
from stream_app.kafka import examination as examination_module
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.examination import BatchFacts, Evidence, Found, Piece, Reading, examine
from stream_app.kafka.failures import BrokerError, RefusedError, UnreachableError
from stream_app.kafka.protocol import Api, Isolation, Section
from stream_app.kafka.records import Detail
from tests.support.fake_broker import FETCH, LIST_OFFSETS, FakeCluster, FakeLog
from tests.support.log_bytes import (
    ABORT,
    CONTROL,
    GZIP,
    LOG_APPEND_TIME,
    LZ4,
    SNAPPY,
    T0,
    TRANSACTIONAL,
    ZSTD,
    batch,
    emptied,
    flip,
    legacy,
    marker,
    raw_batch,
    record,
)

ID = b"orders".ljust(16, b".")
COMMITTED, UNCOMMITTED = Isolation.READ_COMMITTED, Isolation.READ_UNCOMMITTED
R, M, A, H = Found.RECORD, Found.MARKER, Found.ABORTED, Found.HOLE


def read(log: list[bytes], first: int, stop: int, *, bound: int | None = None, decided: bool = True, **options: Any) -> Reading:
    """One answer that holds the whole log, taken twice where a batch of it is damaged."""
    data = b"".join(log)
    aborted = options.pop("aborted", [])
    section = Section("orders", ID, 0, 0, 0, 0, 0, aborted, 0, len(data))
    reading = Reading(first, stop, **options)
    for _ in range(5):
        if reading.take(memoryview(data), section, stop if bound is None else bound, decided):
            return reading
    raise AssertionError("a damaged batch is taken at its word the second time")


def shape(pieces: list[Piece] | tuple[Piece, ...]) -> list[tuple[int, int, Found]]:
    return [(one.first, one.stop, one.found) for one in pieces]


def facts(base: int, last: int, **others: Any) -> BatchFacts:
    """Of a plain batch without a producer."""
    plain: dict[str, Any] = {
        "leader_epoch": 0,
        "producer_id": None,
        "producer_epoch": None,
        "base_sequence": None,
        "transactional": False,
        "control": False,
        "marker": None,
        "compression": "none",
        "records": last - base + 1,
    }
    return BatchFacts(base, last, **{**plain, **others})


# --- answers ------------------------------------------------------------------------------------------------------------


def test_a_plain_batch_and_its_header() -> None:
    body = b"".join(record(delta, key=None if delta else b"first", value=b"v" * delta if delta else None) for delta in range(3))
    data = raw_batch(5, body, count=3, delta=2, epoch=7, producer=11, producer_epoch=3, sequence=40)
    reading = read([data], 5, 8)
    wanted = facts(5, 7, leader_epoch=7, producer_id=11, producer_epoch=3, base_sequence=40)
    assert reading.pieces == [Piece(5, 8, R, wanted)]
    assert reading.records == [Detail(5, T0, True, b"first", 5), Detail(6, T0, False, None, 1), Detail(7, T0, False, None, 2)]
    assert reading.listed_to is None


def test_only_what_was_asked_for_is_told() -> None:
    reading = read([batch(0, 9), batch(10, 19), batch(20, 29)], 7, 12)
    assert reading.pieces == [Piece(7, 10, R, facts(0, 9)), Piece(10, 12, R, facts(10, 19))]
    assert [one.offset for one in reading.records] == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(("codec", "name"), [(GZIP, "gzip"), (SNAPPY, "snappy"), (LZ4, "lz4"), (ZSTD, "zstd")])
def test_codecs(codec: int, name: str) -> None:
    reading = read([batch(0, 4, codec=codec, nulls=[2])], 1, 4)
    assert reading.pieces == [Piece(1, 4, R, facts(0, 4, compression=name))]
    assert [(one.offset, one.timestamp_ms, one.tombstone) for one in reading.records] == [
        (offset, T0 + offset, offset == 2) for offset in (1, 2, 3)
    ]


@pytest.mark.parametrize(("kind", "name"), [(0, "abort"), (1, "commit"), (2, "type 2"), (5, "type 5"), (99, "type 99")])
def test_markers_of_any_type(kind: int, name: str) -> None:
    reading = read([marker(4, 9, kind, epoch=2)], 4, 5)
    wanted = facts(4, 4, leader_epoch=2, producer_id=9, producer_epoch=0, transactional=True, control=True, marker=name)
    assert (reading.pieces, reading.records) == ([Piece(4, 5, M, wanted)], [])


def test_a_marker_that_the_cleaner_emptied() -> None:
    reading = read([emptied(4, 4, attributes=TRANSACTIONAL | CONTROL)], 4, 5)
    (piece,) = reading.pieces
    assert (piece.found, piece.batch and piece.batch.marker, piece.batch and piece.batch.records) == (M, None, 0)


def test_a_thinned_batch_interleaves_records_and_holes() -> None:
    log = [batch(0, 5, keep=[1, 4]), batch(10, 12)]
    assert shape(read(log, 0, 12).pieces) == [(0, 1, H), (1, 2, R), (2, 4, H), (4, 5, R), (5, 6, H), (6, 10, H), (10, 12, R)]
    inside, between = read(log, 5, 10).pieces
    assert inside.batch == facts(0, 5, records=2)
    assert between.batch is None, "there is no batch at all"


def test_an_emptied_batch_is_a_hole_with_a_header() -> None:
    (piece,) = read([emptied(0, 9)], 3, 6).pieces
    assert (piece.found, piece.batch) == (H, facts(0, 9, records=0, producer_id=7, producer_epoch=0))


def test_aborted_transactions_from_every_position() -> None:
    """One producer commits, aborts and commits; the other aborts in between: whatever the fetch begins at, the same."""
    log = [
        batch(0, 1, attributes=TRANSACTIONAL, producer=4),
        batch(2, 3, attributes=TRANSACTIONAL, producer=5),
        marker(4, 4),
        batch(5, 6, attributes=TRANSACTIONAL, producer=4),
        marker(7, 5, ABORT),
        marker(8, 4, ABORT),
        batch(9, 9, attributes=TRANSACTIONAL, producer=4),
        batch(10, 10),
        marker(11, 4),
    ]
    ends = {5: 7, 4: 8}
    whole = "RRAAMAAMMRRM"
    kinds = {"R": R, "A": A, "M": M}
    for first in range(12):
        # As brokers list them: transactions whose marker is not below the position.
        aborted = [(producer, start) for producer, start in ((5, 2), (4, 5)) if ends[producer] >= first]
        base = max(number for number, one in enumerate(log) if _base(one) <= first)
        reading = read(log[base:], first, 12, aborted=aborted)
        told = [piece.found for piece in reading.pieces for _ in range(piece.first, piece.stop)]
        assert told == [kinds[letter] for letter in whole[first:]], f"from {first}"


def _base(data: bytes) -> int:
    return int.from_bytes(data[:8], "big")


def test_a_list_without_markers_and_markers_without_a_list() -> None:
    log = [marker(3, 4, ABORT), batch(4, 5, attributes=TRANSACTIONAL, producer=4)]
    assert shape(read(log, 3, 6).pieces) == [(3, 4, M), (4, 6, R)]
    assert shape(read(log, 3, 6, aborted=[(77, 0)]).pieces) == [(3, 4, M), (4, 6, R)]


def test_a_thinned_aborted_batch() -> None:
    log = [batch(0, 3, keep=[0, 3], attributes=TRANSACTIONAL, producer=4), marker(4, 4, ABORT)]
    assert shape(read(log, 0, 5, aborted=[(4, 0)]).pieces) == [(0, 1, A), (1, 3, H), (3, 4, A), (4, 5, M)]


def test_what_is_not_decided_yet_is_told_with_its_batch() -> None:
    log = [batch(0, 3, attributes=TRANSACTIONAL, producer=4), marker(4, 5), batch(5, 6)]
    reading = read(log, 0, 7, decided=False)
    assert shape(reading.pieces) == [(0, 4, Found.UNDECIDED), (4, 5, Found.UNDECIDED), (5, 7, Found.UNDECIDED)]
    assert [piece.batch and piece.batch.producer_id for piece in reading.pieces] == [4, 5, None]
    assert reading.records == []


def test_nothing_at_or_above_the_bound_is_told() -> None:
    assert shape(read([batch(0, 3), batch(4, 7)], 0, 8, bound=4).pieces) == [(0, 4, R)]
    assert shape(read([batch(0, 3), batch(9, 9)], 0, 8, bound=6).pieces) == [(0, 4, R), (4, 6, H)], "what follows shows the hole"


def test_a_damaged_batch_is_unreadable_when_damaged_twice() -> None:
    log = [batch(0, 1), flip(batch(2, 5), -1), batch(6, 7)]
    reading = read(log, 0, 8)
    assert shape(reading.pieces) == [(0, 2, R), (2, 6, Found.UNREADABLE), (6, 8, R)]
    assert (reading.pieces[1].batch, reading.pieces[1].why) == (facts(2, 5), "the CRC is wrong")
    once = Reading(0, 8)
    data = b"".join(log)
    assert not once.take(memoryview(data), Section("orders", ID, 0, 0, 0, 0, 0, [], 0, len(data)), 8, True)
    assert (shape(once.pieces), once.at) == ([(0, 2, R)], 2)


def test_t27_a_batch_that_counts_fewer_records_than_it_holds() -> None:
    miscounted = raw_batch(2, b"".join(map(record, range(5))), count=3, delta=4)
    reading = read([batch(0, 1), miscounted, batch(7, 8)], 0, 9)
    assert shape(reading.pieces) == [(0, 2, R), (2, 5, Found.UNREADABLE), (5, 7, H), (7, 9, R)]
    assert reading.pieces[1].why == "its body goes on behind the 3 records that its header counts"
    assert shape(read([miscounted], 4, 6).pieces) == [(4, 5, Found.UNREADABLE), (5, 6, H)]


def test_a_damaged_header_takes_no_more_than_up_to_the_next_batch() -> None:
    longer = bytearray(batch(2, 5))
    longer[23:27] = (1000).to_bytes(4, "big")
    assert shape(read([batch(0, 1), bytes(longer), batch(6, 7)], 0, 8).pieces) == [(0, 2, R), (2, 6, Found.UNREADABLE), (6, 8, R)]


def test_bytes_that_are_no_batch_are_not_judged() -> None:
    broken = bytearray(batch(2, 5))
    broken[8:12] = (-5).to_bytes(4, "big", signed=True)
    reading = read([bytes(broken), batch(6, 7)], 2, 8)
    assert shape(reading.pieces) == [(2, 8, Found.UNSEEN)]
    assert reading.pieces[0].why == "what the broker sends there is no batch"


@pytest.mark.parametrize(("magic", "codec"), [(0, 0), (0, GZIP), (1, 0), (1, LZ4)])
def test_old_formats(magic: int, codec: int) -> None:
    reading = read([legacy(magic, [3, 4, 7], codec=codec), batch(9, 12)], 2, 10)
    told = [piece.found for piece in reading.pieces for _ in range(piece.first, piece.stop)]
    assert told == [H, R, R, H, H, R, H, R]
    assert [(one.offset, one.key, one.timestamp_ms) for one in reading.records[:2]] == [
        (offset, b"k", T0 + offset if magic else -1) for offset in (3, 4)
    ]
    piece = next(piece for piece in reading.pieces if piece.found is R)
    assert piece.batch == facts(
        3, 7 if codec else 3, leader_epoch=None, records=3 if codec else 1, compression=["none", "gzip", "", "lz4"][codec]
    )


def test_records_times_by_the_broker() -> None:
    body = b"".join(record(delta, delta) for delta in range(2))
    reading = read([raw_batch(0, body, count=2, delta=1, attributes=LOG_APPEND_TIME, base_time=T0, max_time=T0 + 77)], 0, 2)
    assert [one.timestamp_ms for one in reading.records] == [T0 + 77, T0 + 77]


def test_a_header_that_is_no_text_does_not_hide_the_record() -> None:
    reading = read([batch(0, 2, nulls=[1], headers=[(b"\xff\xfe", b"x")], codec=ZSTD)], 0, 3)
    assert reading.records == [Detail(offset, T0 + offset, offset == 1, b"k", 1 if offset == 1 else 6) for offset in range(3)]


def test_records_and_their_keys_are_bounded() -> None:
    reading = read([batch(0, 9), batch(10, 19)], 0, 20, records_max=12)
    assert ([one.offset for one in reading.records], reading.listed_to, reading.at) == (list(range(12)), 12, 20)
    body = b"".join(record(delta, key=b"k" * 100) for delta in range(10))
    keys = read([raw_batch(0, body, count=10, delta=9)], 0, 10, key_bytes_max=250)
    assert ([one.offset for one in keys.records], keys.listed_to) == ([0, 1], 2)
    one = read([raw_batch(0, body, count=10, delta=9)], 3, 4, key_bytes_max=5)
    assert ([one.offset for one in one.records], one.listed_to) == ([3], None), "one is always shown"


@pytest.mark.parametrize("seed", range(10))
def test_any_log_in_any_answers_is_told_the_same(seed: int) -> None:
    """Batch by batch or all at once, from any position: the same as the records that were put in."""
    rng = random.Random(seed)
    log: list[bytes] = []
    what: dict[int, Found] = {}
    at = 0
    while len(log) < 40:
        last = at + rng.randrange(6)
        kind = rng.randrange(4)
        if kind == 0:
            log.append(marker(at, 5))
            what[at], last = M, at
        elif kind == 1:
            log.append(emptied(at, last))
        else:
            keep = [offset for offset in range(at, last + 1) if rng.random() < 0.7] or [at]
            log.append(batch(at, last, keep=keep, codec=rng.choice([0, ZSTD])))
            what |= dict.fromkeys(keep, R)
        at = last + 1 + (rng.randrange(4) if rng.random() < 0.2 else 0)
    end = at
    log.append(batch(end, end))
    first, stop = sorted(rng.sample(range(end), 2))
    whole = read(log, first, stop, bound=end + 1)
    stepwise = Reading(first, stop)
    for one in log:
        assert stepwise.take(memoryview(one), Section("orders", ID, 0, 0, 0, 0, 0, [], 0, len(one)), end + 1, True)
    told = {offset: piece.found for piece in whole.pieces for offset in range(piece.first, piece.stop)}
    assert told == {offset: what.get(offset, H) for offset in range(first, stop)}
    assert (stepwise.pieces, stepwise.records) == (whole.pieces, whole.records)
    assert all(one.stop == other.first for one, other in zip(whole.pieces, whole.pieces[1:], strict=False))


# --- brokers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(2) as made:
        yield made


def settings(cluster: FakeCluster) -> KafkaSettings:
    return KafkaSettings((cluster.address(),), request_timeout_ms=2_000)


async def ask(cluster: FakeCluster, first: int, stop: int, *, isolation: Isolation = COMMITTED, **options: Any) -> Evidence:
    return await examine(settings(cluster), "orders", 0, isolation, first, stop, **{"timeout": 10.0, **options})


async def test_the_ends_of_the_log(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), batch(10, 19)], start=4))
    got = await ask(cluster, 0, 25)
    assert shape(got.pieces) == [(0, 4, Found.BELOW), (4, 10, R), (10, 20, R), (20, 25, Found.BEYOND)]
    assert (got.topic_id, got.isolation, got.ends) == (ID, COMMITTED, LogEnds(4, 20, 20))
    assert [one.offset for one in got.records] == list(range(4, 20))


@pytest.mark.parametrize(("first", "stop", "found"), [(0, 3, Found.BELOW), (20, 30, Found.BEYOND), (700, 701, Found.BEYOND)])
async def test_outside_of_the_log(cluster: FakeCluster, first: int, stop: int, found: Found) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), batch(10, 19)], start=4))
    got = await ask(cluster, first, stop)
    assert (shape(got.pieces), got.records) == ([(first, stop, found)], ())
    assert cluster.requests(FETCH) == []


async def test_an_open_transaction(cluster: FakeCluster) -> None:
    log = [batch(0, 4), batch(5, 7, attributes=TRANSACTIONAL, producer=4), batch(8, 9)]
    cluster.add("orders", FakeLog(log, stable=5))
    got = await ask(cluster, 3, 12)
    assert shape(got.pieces) == [(3, 5, R), (5, 8, Found.UNDECIDED), (8, 10, Found.UNDECIDED), (10, 12, Found.BEYOND)]
    assert got.pieces[1].batch == facts(5, 7, transactional=True, producer_id=4, producer_epoch=0)
    assert got.ends == LogEnds(0, 10, 5)
    got = await ask(cluster, 3, 12, isolation=UNCOMMITTED)
    assert [piece.found for piece in got.pieces] == [R, R, R, Found.BEYOND]


async def test_aborted_records_are_records_for_who_reads_uncommitted(cluster: FakeCluster) -> None:
    log = [batch(0, 4, attributes=TRANSACTIONAL, producer=4), marker(5, 4, ABORT)]
    cluster.add("orders", FakeLog(log, aborted=[(4, 0)]))
    assert shape((await ask(cluster, 2, 6)).pieces) == [(2, 5, A), (5, 6, M)]
    assert shape((await ask(cluster, 2, 6, isolation=UNCOMMITTED)).pieces) == [(2, 5, R), (5, 6, M)]


async def test_several_fetches(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination_module, "FETCH_BYTES", (1, 1))
    cluster.add("orders", FakeLog([batch(first, first + 9) for first in range(0, 100, 10)]))
    got = await ask(cluster, 5, 95)
    assert [(piece.first, piece.stop) for piece in got.pieces] == [(5, 10), *((n, n + 10) for n in range(10, 90, 10)), (90, 95)]
    assert len(cluster.requests(FETCH)) == 10


async def test_a_broker_that_gives_nothing_is_no_hole(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)], end=20))
    got = await ask(cluster, 8, 25)
    assert shape(got.pieces) == [(8, 10, R), (10, 20, Found.UNSEEN), (20, 25, Found.BEYOND)]
    assert got.pieces[1].why == "the broker gives nothing there, though its own end says that there is something"
    assert len(cluster.requests(FETCH)) == 3, "it is asked twice"


async def test_a_broker_that_gives_nothing_at_first(cluster: FakeCluster) -> None:
    log = FakeLog([batch(0, 9)], silent=True)
    cluster.add("orders", log)

    def speak(asked: object, records: bytes) -> bytes:
        log.silent = False
        return records

    cluster.damage = speak
    assert shape((await ask(cluster, 3, 6)).pieces) == [(3, 6, R)]


async def test_a_damaged_batch_is_fetched_over_a_fresh_connection(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9), flip(batch(10, 19), -1), batch(20, 29)]))
    got = await ask(cluster, 8, 22)
    assert shape(got.pieces) == [(8, 10, R), (10, 20, Found.UNREADABLE), (20, 22, R)]
    assert len({one.connection for one in cluster.requests(FETCH)}) == 2


async def test_damage_on_the_way_is_no_damage(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)]))
    cluster.damage = lambda asked, records: records if cluster.requests(FETCH)[0].connection != asked.connection else flip(records, 80)
    assert shape((await ask(cluster, 3, 6)).pieces) == [(3, 6, R)]


async def test_bytes_are_bounded_and_the_rest_says_so(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(first, first + 9, value=b"v" * 10_000) for first in range(0, 1000, 10)]))
    got = await ask(cluster, 0, 1005, max_bytes=1 << 20)
    last = got.pieces[-2]
    assert (last.found, last.stop) == (Found.UNSEEN, 1000)
    assert last.why == "1 MiB of the log were read before: ask for fewer offsets"
    assert 0 < last.first < 1000
    assert shape(got.pieces[-1:]) == [(1000, 1005, Found.BEYOND)]
    assert shape((await ask(cluster, last.first, 1000)).pieces[:1]) == [(last.first, last.first + 10, R)]


async def test_time_is_bounded_and_the_rest_says_so(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination_module, "FETCH_BYTES", (1, 1))
    cluster.add("orders", FakeLog([batch(0, 9), batch(10, 19)]))

    def hang_then(asked: Any, records: bytes) -> bytes:
        cluster.hangs = True
        return records

    cluster.damage = hang_then
    got = await ask(cluster, 3, 14, timeout=0.5)
    assert shape(got.pieces) == [(3, 10, R), (10, 14, Found.UNSEEN)]
    assert "not looked at within 0.5 s" in (got.pieces[-1].why or "")


async def test_a_log_start_that_moves_meanwhile(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination_module, "FETCH_BYTES", (1, 1))
    log = FakeLog([batch(0, 9), batch(10, 19), batch(20, 29)])
    cluster.add("orders", log)

    def trim(asked: object, records: bytes) -> bytes:
        log.start = 14
        return records

    cluster.damage = trim
    got = await ask(cluster, 5, 25)
    assert shape(got.pieces) == [(5, 14, Found.BELOW), (14, 20, R), (20, 25, R)]
    assert (got.ends.log_start, got.records[0].offset) == (14, 14)


async def test_a_leader_that_moves_is_followed(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)], leader=1, faults=[6, 75]))
    assert shape((await ask(cluster, 3, 6)).pieces) == [(3, 6, R)]


@pytest.mark.parametrize("version", [5, 11, 12, 13, 16])
async def test_old_brokers(cluster: FakeCluster, version: int) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)]))
    got = await ask(cluster, 3, 6, caps={Api.FETCH: version})
    assert (shape(got.pieces), cluster.requests(FETCH)[0].version) == ([(3, 6, R)], version)


async def test_whoever_can_not_be_asked(cluster: FakeCluster) -> None:
    log = FakeLog([batch(0, 9)], leader=-1)
    cluster.add("orders", log)
    with pytest.raises(BrokerError, match="LEADER_NOT_AVAILABLE"):
        await ask(cluster, 3, 4, timeout=0.3)
    log.leader, log.faults = 0, [29]
    with pytest.raises(RefusedError, match="grant"):
        await ask(cluster, 3, 4)
    cluster.topics.clear()
    with pytest.raises(BrokerError, match="UNKNOWN_TOPIC_OR_PARTITION"):
        await ask(cluster, 3, 4, timeout=0.3)
    cluster.stop_node(0)
    cluster.stop_node(1)
    with pytest.raises(UnreachableError):
        await ask(cluster, 3, 4, timeout=0.3)


async def test_nothing_stays_open(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)]))
    await ask(cluster, 3, 6)
    before = {one.connection for one in cluster.asked}
    await ask(cluster, 3, 6)
    assert not before & {one.connection for one in cluster.asked[len(cluster.asked) // 2 :]}, "each question is over fresh connections"
    assert len(cluster.requests(LIST_OFFSETS)) == 6


async def test_a_question_given_up_ends_with_its_work(cluster: FakeCluster) -> None:
    cluster.add("orders", FakeLog([batch(0, 9)]))
    cluster.hangs = True
    asking = asyncio.create_task(ask(cluster, 3, 6))
    await cluster.until_asked(FETCH, 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
