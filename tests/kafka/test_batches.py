"""Runs of offsets read off hand-made batches: every reason why an offset may hold no record, and every kind of damage."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core.model import Run
from stream_app.kafka.batches import BatchParser, add_run, join_runs, last_batch, records_of, whole_batches
from stream_app.kafka.records import UndecodableError
from tests.support.log_bytes import (
    ABORT,
    COMMIT,
    CONTROL,
    GZIP,
    HORIZON,
    LOG_APPEND_TIME,
    LZ4,
    NONE,
    SNAPPY,
    T0,
    TRANSACTIONAL,
    ZSTD,
    batch,
    compress,
    emptied,
    flip,
    legacy,
    marker,
    raw_batch,
    record,
    varint,
)

FAR = 1 << 62
DATA = TRANSACTIONAL
LONG_VALUE = varint(7) + b"\0" + varint(0) + varint(0) + varint(-1) + varint(9) + b"v" + varint(0)
"""A record of 7 bytes, whose value says that it has 9."""
CODECS = [NONE, GZIP, SNAPPY, LZ4, ZSTD]


def parse(
    data: bytes,
    *,
    position: int = 0,
    bound: int = FAR,
    aborted: Iterable[tuple[int, int]] = (),
    check_crcs: bool = True,
    condemned: int | None = None,
    budget: int = 1_000_000,
) -> BatchParser:
    parser = BatchParser(
        memoryview(data),
        0,
        len(data),
        position=position,
        bound=bound,
        aborted=list(aborted),
        check_crcs=check_crcs,
        condemned=condemned,
    )
    while not parser.step(budget):
        pass
    assert_covers(parser, position)
    return parser


def all_runs(parser: BatchParser) -> Iterator[Run]:
    for runs in (parser.records, parser.markers, parser.aborted, parser.holes, parser.unreadable):
        assert runs == sorted(runs)
        assert all(left[1] < right[0] for left, right in pairwise(runs)), "runs touch"
        yield from runs


def assert_covers(parser: BatchParser, position: int) -> None:
    """Disjoint, and together exactly [position, next)."""
    at = position
    for first, stop in sorted(all_runs(parser)):
        assert first == at < stop
        at = stop
    assert at == parser.next


# ------------------------------------------------------------------------------------------------- plain batches


def test_full_batches_become_one_run() -> None:
    got = parse(batch(0, 9) + batch(10, 10) + batch(11, 99, epoch=4))
    assert (got.records, got.next, got.epoch) == ([(0, 100)], 100, 4)
    assert (got.min_timestamp, got.max_timestamp) == (T0, T0 + 99)
    assert (got.markers, got.aborted, got.holes, got.unreadable, got.damage, got.needed) == ([], [], [], [], None, 0)


def test_epochs_are_told_with_their_beginnings() -> None:
    log = batch(0, 9, epoch=1) + batch(10, 19, epoch=1) + emptied(20, 22, epoch=3) + batch(23, 29, epoch=3) + batch(30, 39, epoch=4)
    got = parse(log)
    assert (got.epochs, got.epoch) == ([(1, 0), (3, 20), (4, 30)], 4)


def test_t38_nothing_is_nothing() -> None:
    got = parse(b"", position=17)
    assert (got.next, got.records, got.epoch, got.min_timestamp, got.max_timestamp) == (17, [], -1, None, None)


def test_a_batch_that_begins_below_the_position_counts_from_the_position() -> None:
    assert parse(batch(0, 9) + batch(10, 19), position=4).records == [(4, 20)]
    assert parse(batch(0, 9, keep=[1, 5, 8]), position=4).records == [(5, 6), (8, 9)]
    assert parse(batch(0, 3) + batch(4, 6), position=4).records == [(4, 7)]


@pytest.mark.parametrize(("bound", "records"), [(0, []), (10, [(0, 10)]), (13, [(0, 13)]), (20, [(0, 20)])])
def test_nothing_at_or_above_the_bound_is_told(bound: int, records: list[Run]) -> None:
    got = parse(batch(0, 9) + batch(10, 19) + batch(20, 29), bound=bound)
    assert (got.records, got.next) == (records, bound)


def test_a_hole_before_a_batch_above_the_bound_is_not_told() -> None:
    got = parse(batch(0, 9) + batch(50, 59), bound=20)
    assert (got.records, got.holes, got.next) == ([(0, 10)], [], 10)


def test_append_time_is_the_time_of_every_record() -> None:
    got = parse(raw_batch(0, record(0), count=1, delta=0, attributes=LOG_APPEND_TIME, base_time=5, max_time=T0))
    assert (got.min_timestamp, got.max_timestamp) == (T0, T0)


def test_records_without_a_time_have_none() -> None:
    got = parse(raw_batch(0, record(0), count=1, delta=0, base_time=-1, max_time=-1))
    assert (got.records, got.min_timestamp, got.max_timestamp) == ([(0, 1)], None, None)


# ---------------------------------------------------------------------------------------------------- compaction


def test_T43_a_hole_of_a_billion_offsets_costs_nothing() -> None:  # noqa: N802  # the id of a scenario
    tracemalloc.start()
    try:
        got = parse(batch(0, 9) + batch(1_000_000_000, 1_000_000_009))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got.holes == [(10, 1_000_000_000)]
    assert peak < 100_000


def test_a_batch_that_claims_a_billion_offsets_costs_nothing() -> None:
    tracemalloc.start()
    try:
        thinned = raw_batch(0, record(0) + record(1_999_999_999), count=2, delta=1_999_999_999)
        got = parse(thinned + emptied(2_000_000_000, 3_000_000_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got.records == [(0, 1), (1_999_999_999, 2_000_000_000)]
    assert got.holes == [(1, 1_999_999_999), (2_000_000_000, 3_000_000_001)]
    assert peak < 100_000


@pytest.mark.parametrize("codec", CODECS)
def test_a_thinned_batch_is_decoded_for_its_offsets(codec: int) -> None:
    got = parse(batch(100, 1099, keep=[100, 101, 500, 1099], codec=codec), position=100)
    assert got.records == [(100, 102), (500, 501), (1099, 1100)]
    assert got.holes == [(102, 500), (501, 1099)]
    assert (got.min_timestamp, got.max_timestamp) == (T0 + 100, T0 + 1099)


@pytest.mark.parametrize("codec", CODECS)
def test_a_full_batch_is_not_decompressed(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("stream_app.kafka.batches.decode_batch", decode)
    assert parse(batch(0, 99, codec=codec) + batch(100, 199, codec=codec)).records == [(0, 200)]


def test_the_first_and_last_offsets_of_a_batch_may_be_gone() -> None:
    got = parse(batch(0, 9, keep=[4, 5]))
    assert (got.records, got.holes, got.next) == ([(4, 6)], [(0, 4), (6, 10)], 10)


def test_an_emptied_batch_is_a_hole() -> None:
    got = parse(batch(0, 4) + emptied(5, 9, epoch=3) + batch(10, 14, epoch=3))
    assert (got.records, got.holes, got.epoch) == ([(0, 5), (10, 15)], [(5, 10)], 3)


def test_holes_touch_across_batches() -> None:
    got = parse(batch(0, 4, keep=[0]) + emptied(7, 9) + batch(12, 14, keep=[14]))
    assert got.holes == [(1, 14)]


def test_strange_headers_do_not_make_a_record_unreadable() -> None:
    got = parse(batch(0, 9, keep=[3, 7], headers=[(b"\xff\xfe", b"not UTF-8")]))
    assert (got.records, got.unreadable, got.damage) == ([(3, 4), (7, 8)], [], None)


def test_the_delete_horizon_is_not_a_record_time() -> None:
    for data in (batch(0, 9, attributes=HORIZON), batch(0, 9, keep=[0, 9], attributes=HORIZON)):
        got = parse(data)
        assert (got.min_timestamp, got.max_timestamp) == (T0, T0 + 9)
    single = parse(batch(5, 5, attributes=HORIZON), position=5)
    assert (single.records, single.min_timestamp, single.max_timestamp) == ([(5, 6)], T0 + 5, T0 + 5)


# -------------------------------------------------------------------------------------------------- transactions


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 6, 99])
def test_t37_every_type_of_control_batch_is_a_marker(kind: int) -> None:
    for aborted in ([], [(9, 0)]):
        got = parse(batch(0, 4) + marker(5, 9, kind) + batch(6, 9), aborted=aborted)
        assert (got.records, got.markers) == ([(0, 5), (6, 10)], [(5, 6)])


def test_markers_touch() -> None:
    assert parse(marker(0, 1) + marker(1, 2, ABORT) + batch(2, 2)).markers == [(0, 2)]


def test_an_emptied_control_batch_is_a_marker_and_ends_no_abort() -> None:
    hollow = emptied(2, 2, attributes=TRANSACTIONAL | CONTROL, producer=7)
    got = parse(batch(0, 1, attributes=DATA, producer=7) + hollow + batch(3, 4, attributes=DATA, producer=7), aborted=[(7, 0)])
    assert (got.aborted, got.markers, got.records) == ([(0, 2), (3, 5)], [(2, 3)], [])


def test_aborted_records_are_records_to_those_who_read_uncommitted() -> None:
    log = batch(0, 4, attributes=DATA, producer=7) + marker(5, 7, ABORT)
    assert parse(log).records == [(0, 5)]
    assert parse(log, aborted=[(7, 0)]).aborted == [(0, 5)]


def test_one_producer_commits_aborts_commits() -> None:
    log = b"".join(
        [
            *(batch(0, 1, attributes=DATA, producer=7), marker(2, 7, COMMIT)),
            *(batch(3, 4, attributes=DATA, producer=7), marker(5, 7, ABORT)),
            *(batch(6, 7, attributes=DATA, producer=7), marker(8, 7, COMMIT)),
        ]
    )
    got = parse(log, aborted=[(7, 3)])
    assert (got.records, got.aborted, got.markers) == ([(0, 2), (6, 8)], [(3, 5)], [(2, 3), (5, 6), (8, 9)])


def test_a_commit_marker_seen_first_does_not_end_a_later_abort() -> None:
    log = marker(0, 7, COMMIT) + batch(1, 2, attributes=DATA, producer=7) + marker(3, 7, ABORT)
    assert parse(log, aborted=[(7, 1)]).aborted == [(1, 3)]


def test_two_producers_interleaved() -> None:
    log = b"".join(
        [
            *(batch(0, 0, attributes=DATA, producer=7), batch(1, 1, attributes=DATA, producer=8)),
            *(batch(2, 2, attributes=DATA, producer=7), marker(3, 7, ABORT), batch(4, 4, attributes=DATA, producer=8)),
            marker(5, 8, COMMIT),
        ]
    )
    got = parse(log, aborted=[(7, 0)])
    assert (got.aborted, got.records) == ([(0, 1), (2, 3)], [(1, 2), (4, 5)])


def test_the_same_producer_aborts_twice_and_the_list_is_not_sorted() -> None:
    log = b"".join(
        [
            *(batch(0, 0, attributes=DATA, producer=7), marker(1, 7, ABORT)),
            *(batch(2, 2, attributes=DATA, producer=7), marker(3, 7, ABORT)),
        ]
    )
    got = parse(log, aborted=[(7, 2), (7, 0)])
    assert (got.aborted, got.markers) == ([(0, 1), (2, 3)], [(1, 2), (3, 4)])


def test_an_abort_marker_without_an_entry_in_the_list() -> None:
    got = parse(marker(5, 7, ABORT) + batch(6, 7, attributes=DATA, producer=7), position=5, aborted=[(8, 100)])
    assert (got.markers, got.records, got.aborted) == ([(5, 6)], [(6, 8)], [])


def test_an_entry_without_a_marker() -> None:
    got = parse(batch(3, 4, attributes=DATA, producer=7), position=3, aborted=[(7, 0)])
    assert got.aborted == [(3, 5)]


def test_an_abort_that_begins_inside_a_batch_counts_from_its_last_offset_as_in_java() -> None:
    got = parse(batch(0, 9, attributes=DATA, producer=7), aborted=[(7, 5)])
    assert got.aborted == [(0, 10)]


def test_records_outside_transactions_are_never_aborted() -> None:
    got = parse(batch(0, 4, producer=7) + batch(5, 9), aborted=[(7, 0), (-1, 0)])
    assert got.records == [(0, 10)]


def test_an_aborted_batch_that_the_cleaner_thinned_out() -> None:
    got = parse(batch(0, 9, keep=[2, 8], attributes=DATA, producer=7), aborted=[(7, 0)])
    assert (got.aborted, got.holes, got.records) == ([(2, 3), (8, 9)], [(0, 2), (3, 8), (9, 10)], [])
    assert got.min_timestamp is None


@pytest.mark.parametrize("body", [b"", b"\x02\0", b"\x80" * 5, record(0)])
def test_a_marker_without_a_readable_type_ends_no_abort(body: bytes) -> None:
    strange = raw_batch(1, body, count=1, delta=0, attributes=TRANSACTIONAL | CONTROL, producer=7)
    got = parse(batch(0, 0, attributes=DATA, producer=7) + strange + batch(2, 2, attributes=DATA, producer=7), aborted=[(7, 0)])
    assert (got.aborted, got.markers, got.damage) == ([(0, 1), (2, 3)], [(1, 2)], None)


def test_a_marker_whose_time_delta_is_long() -> None:
    body = record(0, 1 << 40, key=b"\0\0\0\0", value=b"\0\0\0\0\0\0")
    late = raw_batch(1, body, count=1, delta=0, attributes=TRANSACTIONAL | CONTROL, producer=7)
    got = parse(batch(0, 0, attributes=DATA, producer=7) + late + batch(2, 2, attributes=DATA, producer=7), aborted=[(7, 0)])
    assert (got.aborted, got.records) == ([(0, 1)], [(2, 3)])


# -------------------------------------------------------------------------------------------------- old formats


@pytest.mark.parametrize(("magic", "codec"), [(0, NONE), (0, GZIP), (0, SNAPPY), (1, NONE), (1, GZIP), (1, SNAPPY), (1, LZ4)])
def test_t36_old_formats_with_holes(magic: int, codec: int) -> None:
    log = legacy(magic, [3, 4, 7], codec=codec) + legacy(magic, [9, 10]) + batch(12, 14, epoch=2)
    got = parse(log, position=3)
    assert (got.records, got.holes, got.epoch) == ([(3, 5), (7, 8), (9, 11), (12, 15)], [(5, 7), (8, 9), (11, 12)], 2)
    assert got.min_timestamp == (T0 + 3 if magic else T0 + 12)
    assert parse(log, position=4).records == [(4, 5), (7, 8), (9, 11), (12, 15)]
    assert parse(log, position=3, bound=5).records == ([(3, 5)] if codec == NONE else [])


@pytest.mark.parametrize("magic", [0, 1])
def test_t36_an_old_message_shorter_than_a_new_header(magic: int) -> None:
    short = legacy(magic, [0])
    assert len(short) < 61
    assert parse(short).records == [(0, 1)]
    assert parse(short[:-1]).next == 0
    assert parse(short[:-1]).needed == len(short)


@pytest.mark.parametrize("codec", [NONE, GZIP])
def test_t36_a_damaged_old_message(codec: int) -> None:
    log = legacy(1, [0]) + flip(legacy(1, [1, 2, 3] if codec else [3], codec=codec), -3) + legacy(1, [4])
    first = parse(log)
    assert first.damage is not None
    again = parse(log, condemned=first.damage.base, position=first.next)
    assert again.unreadable == ([(1, 4)] if codec else [(3, 4)])
    assert again.records == [(4, 5)]


# --------------------------------------------------------------------------------------- cut off, and damaged


def test_t38_a_partial_batch_is_left_for_the_next_answer() -> None:
    log, third = batch(0, 9) + batch(10, 19), batch(20, 29)
    for length in range(len(third)):
        got = parse(log + third[:length])
        assert (got.records, got.next, got.damage) == ([(0, 20)], 20, None)
    assert parse(log + third[:40]).needed == len(third)


@pytest.mark.parametrize("length", [1, 11, 12, 16, 17, 60, 61, 80])
def test_t38_a_partial_batch_alone_skips_nothing_and_tells_its_size(length: int) -> None:
    alone = batch(0, 9)
    got = parse(alone[:length])
    assert (got.next, got.records, got.damage) == (0, [], None)
    assert got.needed == (len(alone) if length >= 12 else 61)


@pytest.mark.parametrize("length", range(1, 40))
def test_an_old_message_that_is_cut_off_is_not_damaged(length: int) -> None:
    """It may be shorter than a header of the present format; of which one it is, its 17th byte says."""
    log, alone = legacy(1, [0]) + legacy(1, [1]), legacy(1, [2])
    got = parse(log + alone[:length])
    assert (got.records, got.next, got.damage) == ([(0, 2)], 2, None)
    assert got.needed >= len(alone)


def test_an_abort_marker_that_can_not_be_read_ends_its_transaction() -> None:
    """What its producer commits behind it must not be taken for aborted: the list of the answer is relative to the fetch."""
    committed, aborted = (batch(first, last, attributes=TRANSACTIONAL, producer=7) for first, last in ((11, 20), (22, 30)))
    log = flip(marker(10, 7, ABORT), -1) + committed + marker(21, 7, COMMIT) + aborted + marker(31, 7, ABORT)
    for first in (0, 10):
        got = parse(log, position=10, bound=32, aborted=[(7, first), (7, 22)], condemned=10)
        assert (got.unreadable, got.records, got.aborted) == ([(10, 11)], [(11, 21)], [(22, 31)])


@pytest.mark.parametrize("at", [17, 21, 23, 27, 35, 43, 57, 61, 70, -1])
def test_a_wrong_crc_is_read_once_more_and_then_unreadable(at: int) -> None:
    log = batch(0, 9, epoch=1) + flip(batch(10, 19, epoch=2), at) + batch(20, 29, epoch=2)
    first = parse(log)
    assert (first.records, first.next, first.epoch) == ([(0, 10)], 10, 1)
    assert first.damage is not None
    assert (first.damage.base, first.damage.why) == (10, "the CRC is wrong")
    again = parse(log, position=10, condemned=10)
    assert (again.unreadable, again.records, again.damage, again.epoch) == ([(10, 20)], [(20, 30)], None, 2)


def test_t62_epochs_in_headers_that_fall_or_exceed_the_leaders_count_for_nothing() -> None:
    log = batch(0, 9, epoch=5) + batch(10, 19, epoch=3) + batch(20, 29, epoch=9) + batch(30, 39, epoch=6) + emptied(40, 44, epoch=2)
    parser = BatchParser(memoryview(log), 0, len(log), position=0, bound=FAR)
    parser.expect_epochs(4, 6)
    assert parser.step(1_000)
    assert (parser.records, parser.epochs, parser.epoch, parser.odd_epoch) == ([(0, 40)], [(5, 0), (6, 30)], 6, (10, 3))
    parser = BatchParser(memoryview(log), 0, len(log), position=0, bound=FAR)
    parser.expect_epochs(6, 6)
    assert parser.step(1_000)
    assert (parser.epoch, parser.epochs, parser.odd_epoch) == (6, [(6, 30)], (0, 5))


def test_the_epoch_of_a_damaged_batch_counts_but_never_falls() -> None:
    for epoch, known in ((2, 2), (0, 1)):
        got = parse(batch(0, 9, epoch=1) + flip(batch(10, 19, epoch=epoch), -1), condemned=10)
        assert (got.unreadable, got.epoch) == ([(10, 20)], known)


def test_a_damaged_batch_that_was_right_the_second_time_is_read() -> None:
    assert parse(batch(10, 19) + batch(20, 29), position=10, condemned=10).records == [(10, 30)]


def test_crcs_are_not_looked_at_where_they_are_switched_off() -> None:
    assert parse(batch(0, 9) + flip(batch(10, 19), -1), check_crcs=False).records == [(0, 20)]


def test_a_position_inside_a_damaged_batch() -> None:
    log = flip(batch(10, 19), -1) + batch(20, 29)
    got = parse(log, position=14, condemned=10)
    assert (got.unreadable, got.records) == ([(14, 20)], [(20, 30)])


@pytest.mark.parametrize("delta", [-5, 1_000_000])
def test_a_damaged_count_of_offsets_does_not_reach_into_the_next_batch(delta: int) -> None:
    nonsense = flip(raw_batch(0, record(0), count=1, delta=delta), -1)
    assert parse(nonsense + batch(10, 19), condemned=0).unreadable == [(0, 10)]
    assert parse(nonsense, condemned=0, bound=25).unreadable == [(0, 25)]


def test_the_last_batch_keeps_its_own_range_when_damaged() -> None:
    assert parse(flip(batch(0, 9), -1), condemned=0, bound=25).unreadable == [(0, 10)]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(raw_batch(5, record(0), count=2, delta=2), id="fewer records than claimed"),
        pytest.param(raw_batch(5, record(0) * 3, count=2, delta=2), id="more bytes than records"),
        pytest.param(raw_batch(5, record(0) * 4, count=4, delta=2), id="more records than offsets"),
        pytest.param(raw_batch(5, b"", count=-1, delta=2), id="a negative count"),
        pytest.param(raw_batch(5, b"\xff" * 30, count=2, delta=2), id="endless numbers"),
        pytest.param(raw_batch(5, b"\x09" + record(0), count=2, delta=2, attributes=GZIP), id="not gzip"),
        pytest.param(raw_batch(5, record(0), count=2, delta=2, attributes=7), id="unknown codec"),
        pytest.param(raw_batch(5, record(0, value=b"x" * 50)[:-20] + b"", count=2, delta=2), id="a value behind the end"),
        pytest.param(raw_batch(5, LONG_VALUE + record(1), count=2, delta=2), id="a value behind its record"),
        pytest.param(raw_batch(5, record(0), count=1, delta=2, magic=3), id="unknown format"),
    ],
)
def test_what_no_consumer_can_decode_is_unreadable(broken: bytes) -> None:
    (header,) = whole_batches(memoryview(broken), 0, len(broken))
    with pytest.raises(UndecodableError):
        records_of(memoryview(broken), header)
    log = batch(0, 4) + broken + batch(8, 9)
    first = parse(log)
    assert (first.records, first.damage and first.damage.base) == ([(0, 5)], 5)
    again = parse(log, position=5, condemned=5)
    assert (again.unreadable, again.records) == ([(5, 8)], [(8, 10)])


@pytest.mark.parametrize("codec", CODECS)
def test_t27_a_batch_that_counts_fewer_records_than_offsets(codec: int) -> None:
    """Of a topic that never was compacted it lacks them: which ones, its records tell."""
    got = parse(batch(0, 9) + batch(10, 19, keep=[10, 11, 13, 14, 15, 16, 18, 19], codec=codec) + batch(20, 29))
    assert (got.holes, got.records, got.damage) == ([(12, 13), (17, 18)], [(0, 12), (13, 17), (18, 30)], None)


@pytest.mark.parametrize("codec", CODECS)
def test_t27_a_batch_that_counts_fewer_records_than_it_holds(codec: int) -> None:
    """The count is under the CRC: so many are missing. Java's consumer refuses the others."""
    body = compress(codec, b"".join(map(record, range(10))))
    log = batch(0, 9) + raw_batch(10, body, count=7, delta=9, attributes=codec) + batch(20, 29)
    first = parse(log)
    assert (first.next, first.damage and first.damage.why) == (10, "its body goes on behind the 7 records that its header counts")
    again = parse(log, position=10, condemned=10)
    assert (again.unreadable, again.holes, again.records, again.damage) == ([(10, 17)], [(17, 20)], [(20, 30)], None)
    assert parse(log, position=15, condemned=10).unreadable == [(15, 17)]
    assert parse(log, position=10, condemned=10, bound=18).holes == [(17, 18)]


@pytest.mark.parametrize("length", [-1, 0, 13, 48])
def test_a_length_that_is_too_short_can_not_be_skipped(length: int) -> None:
    nonsense = batch(5, 9)[:8] + length.to_bytes(4, "big", signed=True) + batch(5, 9)[12:]
    for condemned in (None, 5):
        got = parse(batch(0, 4) + nonsense, condemned=condemned)
        assert (got.records, got.next) == ([(0, 5)], 5)
        assert got.damage is not None
        assert "too short" in got.damage.why


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans(), st.one_of(st.none(), st.integers(0, 1 << 40)))
def test_no_bytes_raise_or_are_told_twice(data: bytes, check_crcs: bool, condemned: int | None) -> None:
    parse(data, check_crcs=check_crcs, condemned=condemned, bound=1 << 40)


@settings(max_examples=300)
@given(st.data())
def test_a_flipped_bit_never_turns_a_record_into_something_else(data: st.DataObject) -> None:
    log = batch(0, 9) + batch(10, 14, keep=[11, 14], codec=ZSTD) + marker(15, 7) + batch(16, 29)
    truth = parse(log)
    at = data.draw(st.integers(0, len(log) - 1))
    got = parse(flip(log, at), bound=30)
    # The offset, the length, the epoch and the version lie outside the CRC: what they say can't be checked.
    starts = [one.at for one in whole_batches(memoryview(log), 0, len(log))]
    if not any(start <= at < start + 17 for start in starts):
        assert got.damage is not None
        assert got.next <= 30
        for name in ("records", "markers", "holes"):
            told = {offset for first, stop in getattr(got, name) for offset in range(first, stop)}
            true = {offset for first, stop in getattr(truth, name) for offset in range(first, stop)}
            assert told == {offset for offset in true if offset < got.next}


# ------------------------------------------------------------------------------------- however it is cut: the same


def long_log(seed: int) -> tuple[bytes, list[tuple[int, int]], int]:
    """A log with everything in it, its aborted transactions, and its end."""
    rng = random.Random(seed)
    parts: list[bytes] = []
    aborted: list[tuple[int, int]] = []
    at = 0
    while len(parts) < 40:
        last = at + rng.randrange(6)
        choice = rng.randrange(8)
        if choice == 0:
            at = last + 1
            continue
        if choice == 1:
            parts.append(emptied(at, last))
        elif choice == 2:
            parts.append(batch(at, last, keep=[offset for offset in range(at, last + 1) if rng.random() < 0.5], codec=rng.choice(CODECS)))
        elif choice in (3, 4):
            producer = rng.randrange(3)
            parts += [batch(at, last, attributes=DATA, producer=producer), marker(last + 1, producer, ABORT if choice == 3 else COMMIT)]
            if choice == 3:
                aborted.append((producer, at))
            last += 1
        elif choice == 5:
            parts.append(legacy(1, list(range(at, last + 1)), codec=rng.choice([NONE, GZIP])))
        else:
            parts.append(batch(at, last, codec=rng.choice(CODECS), epoch=at))
        at = last + 1
    return b"".join(parts), aborted, at


def outcome(parsers: list[BatchParser]) -> tuple[object, ...]:
    runs: list[list[Run]] = []
    for name in ("records", "markers", "aborted", "holes", "unreadable"):
        joined: list[Run] = []
        for parser in parsers:
            for first, stop in getattr(parser, name):
                add_run(joined, first, stop)
        runs.append(joined)
    lows = [one.min_timestamp for one in parsers if one.min_timestamp is not None]
    highs = [one.max_timestamp for one in parsers if one.max_timestamp is not None]
    return (*runs, min(lows, default=None), max(highs, default=None), parsers[-1].next)


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.data())
def test_an_answer_cut_at_any_byte_gives_the_same(seed: int, data: st.DataObject) -> None:
    log, aborted, end = long_log(seed)
    whole = parse(log, aborted=aborted, bound=end)
    cut = data.draw(st.integers(0, len(log)))
    first = parse(log[:cut], aborted=aborted, bound=end)
    # The broker answers the next fetch from the batch on that holds the position, with the transactions that matter there.
    start = next((one.at for one in whole_batches(memoryview(log), 0, len(log)) if one.base + max(one.delta, 0) >= first.next), len(log))
    still = [(producer, offset) for producer, offset in aborted if not _ended(log, producer, offset, first.next)]
    second = parse(log[start:], position=first.next, aborted=still, bound=end)
    assert outcome([first, second]) == outcome([whole])


def _ended(log: bytes, producer: int, first_offset: int, before: int) -> bool:
    """Whether that transaction's abort marker lies below ``before``."""
    view = memoryview(log)
    markers = (one for one in whole_batches(view, 0, len(log)) if one.attributes & CONTROL and one.producer_id == producer)
    return next(one.base for one in markers if one.base > first_offset) < before


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 50))
def test_slices_do_not_matter(seed: int, budget: int) -> None:
    log, aborted, end = long_log(seed)
    whole = parse(log, aborted=aborted, bound=end)
    assert outcome([parse(log, aborted=aborted, bound=end, budget=budget)]) == outcome([whole])


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_records_of_agrees_with_the_parser(seed: int) -> None:
    log, _, _ = long_log(seed)
    view = memoryview(log)
    decoded = {offset for one in whole_batches(view, 0, len(log)) if not one.attributes & CONTROL for offset, _, _ in records_of(view, one)}
    assert decoded == {offset for first, stop in parse(log).records for offset in range(first, stop)}


def test_slices_are_short_where_records_are_decoded() -> None:
    log = b"".join(batch(first, first + 99, keep=range(first, first + 99)) for first in range(0, 1000, 100))
    parser = BatchParser(memoryview(log), 0, len(log), position=0, bound=FAR)
    assert not parser.step(150)
    assert parser.next < 400


# -------------------------------------------------------------------------------------------------- small things


def test_the_look_ahead_finds_the_last_whole_batch() -> None:
    log = batch(0, 9, epoch=1) + batch(10, 19, epoch=2)
    view = memoryview(log + batch(20, 29)[:30])
    assert last_batch(view, 0, len(view)) == (20, 2)
    assert last_batch(view, 0, len(view), 10_000) is None
    assert last_batch(memoryview(log), 0, 20) is None
    old = memoryview(legacy(1, list(range(5))))
    assert last_batch(old, 0, len(old)) is None


def test_runs_are_joined_where_they_touch() -> None:
    runs: list[Run] = []
    for first, stop in ((0, 2), (2, 2), (2, 5), (7, 8)):
        add_run(runs, first, stop)
    assert runs == [(0, 5), (7, 8)]
    assert join_runs(((0, 2), (4, 6)), ((6, 9), (11, 12))) == ((0, 2), (4, 9), (11, 12))
    assert join_runs((), ((1, 2),)) == ((1, 2),)
    assert join_runs(((1, 2),), ()) == ((1, 2),)
    assert join_runs(((1, 2),), ((3, 4),)) == ((1, 2), (3, 4))
