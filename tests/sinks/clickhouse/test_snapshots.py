from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from stream_app.core.model import CHUNK, Observation, Status
from stream_app.core.offsets import OffsetSet
from stream_app.sinks.clickhouse import Check, ClickHouseTable, Facts, Held, Span
from stream_app.sinks.clickhouse import snapshots as module
from stream_app.sinks.clickhouse.client import ClickHouseClient
from stream_app.sinks.clickhouse.snapshots import AHEAD_CHUNKS, Beyond, Standing, beyond, observations, spans, sweep_spans
from stream_app.sinks.observation import encode, parse
from tests.sinks.clickhouse.kit import layout, offsets
from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import fill, make

ID = b"i" * 16
FAR = 1 << 40


def standing(
    partition: int = 0, settled: int = 0, horizon: int | None = None, gaps: Iterable[tuple[int, int]] = (), **known: Any
) -> Standing:
    given = {"end": FAR, "at_ms": 5, "source": "table:me", "sequence": 7, **known}
    return Standing(partition, ID, settled, settled if horizon is None else horizon, OffsetSet(gaps), **given)


def held(
    span: Span,
    runs: Iterable[tuple[int, int]],
    surplus: dict[int, int] | None = None,
    aside: Iterable[tuple[int, int]] = (),
    doubled: Iterable[Iterable[tuple[int, int]]] = (),
) -> Held:
    return Held(span, OffsetSet(runs), surplus or {}, tuple(map(OffsetSet, doubled)), OffsetSet(aside))


def told(found: Held | Iterable[Held], *standings: Standing) -> list[tuple[int, Observation]]:
    """Numbered one after the other, each fit to be written."""
    before = {one.partition: one.sequence for one in standings}
    held = (found,) if isinstance(found, Held) else found
    said = list(observations(held, {one.partition: one for one in standings}, "warehouse"))
    for partition, first in before.items():
        mine = [one for number, one in said if number == partition]
        assert [(one.source, one.sequence) for one in mine] == [("table:me", first + n) for n in range(len(mine))]
        assert all(parse(encode(one, "orders", partition), "orders", partition) == one for one in mine)
    return said


def ranges(found: list[tuple[int, Observation]]) -> list[tuple[int, int, int]]:
    return [(one.snapshot.first, one.snapshot.stop, one.snapshot.rows) for _, one in found if one.snapshot is not None]


def test_a_check_asks_for_what_is_not_settled_and_for_chunks_with_gaps() -> None:
    ahead = AHEAD_CHUNKS * CHUNK
    assert spans([standing(1, settled=70_000)]) == [Span(1, 70_000, CHUNK + ahead)]
    gaps = [(5, 6), (3 * CHUNK + 1, 3 * CHUNK + 9)]
    assert spans([standing(0, settled=10 * CHUNK + 5, gaps=gaps)]) == [
        Span(0, 0, CHUNK),
        Span(0, 3 * CHUNK, 4 * CHUNK),
        Span(0, 10 * CHUNK + 5, 10 * CHUNK + ahead),
    ]
    assert spans([standing(0, settled=900, gaps=[(5, 6)])]) == [Span(0, 0, ahead)]


def test_a_sweep_asks_for_what_is_settled() -> None:
    standings = [standing(0, settled=500), standing(1, settled=20)]
    assert sweep_spans(standings, {0: 100, 1: 30}) == [Span(0, 100, 500)]


def test_of_what_the_ttl_may_have_taken_only_gaps_are_asked_for() -> None:
    gaps = [(5, 6), (2 * CHUNK + 9, 2 * CHUNK + 12), (4 * CHUNK + 7, 4 * CHUNK + 8)]
    assert spans([standing(settled=9 * CHUNK, gaps=gaps, since=4 * CHUNK + 3)]) == [
        Span(0, 5, 6),
        Span(0, 2 * CHUNK + 9, 2 * CHUNK + 12),
        Span(0, 4 * CHUNK + 3, 5 * CHUNK),
        Span(0, 9 * CHUNK, (9 + AHEAD_CHUNKS) * CHUNK),
    ]


# --- what is said -------------------------------------------------------------------------------------------------------


def test_a_snapshot_ends_where_the_table_does_or_did() -> None:
    span = Span(0, 100, AHEAD_CHUNKS * CHUNK)
    one = standing(settled=100, horizon=100)
    assert ranges(told(held(span, [(100, 150), (160, 170)]), one)) == [(100, 170, 60)]
    assert ranges(told(held(span, [(100, 120)]), standing(settled=100, horizon=170))) == [(100, 170, 20)]
    assert told(held(span, []), one) == []
    below = Span(0, 0, CHUNK)
    assert ranges(told(held(below, [(3, 4)]), standing(settled=9 * CHUNK, horizon=9 * CHUNK))) == [(0, CHUNK, 1)]


def test_that_a_table_was_asked_is_told_even_if_it_has_nothing() -> None:
    one = standing(settled=100, heard=False)
    assert ranges(told(held(Span(0, 100, CHUNK), []), one)) == [(100, 101, 0)]
    assert told(held(Span(0, 100, CHUNK), []), standing(settled=100, heard=False, end=100)) == []


def test_offsets_that_the_log_has_not_are_found_out() -> None:
    span = Span(0, 10, 9 * CHUNK)
    assert beyond([held(span, [(10, 50), (60, 61)])], {0: 55}) == [Beyond(0, 60, 55)]
    assert beyond([held(span, [(10, 50)], aside=[(70, 71)]), held(Span(0, 9 * CHUNK, None), [])], {0: 55}) == [Beyond(0, 70, 55)]
    assert beyond([held(span, [(10, 55)])], {0: 55}) == []


def test_a_last_record_that_was_put_aside_is_told() -> None:
    said = told(held(Span(0, 0, 9 * CHUNK), [(0, 5)], aside=[(5, 7)]), standing())
    assert [(one.runs, one.snapshot and one.snapshot.stop) for _, one in said] == [(((5, 7),), None), (((0, 5),), 7)]


def test_quarantined_rows_explain() -> None:
    found = held(Span(2, 0, 9 * CHUNK), [(0, 5), (8, 10)], {0: 3}, aside=[(5, 8)])
    (partition, second), (_, first) = told(found, standing(2, put_aside=OffsetSet([(7, 8)])))
    assert (partition, first.sink, first.topic_id, first.runs, first.status) == (2, "warehouse", ID, ((0, 5), (8, 10)), Status.RECEIVED)
    assert first.snapshot is not None
    assert (first.snapshot.rows, first.snapshot.at_ms) == (10, 5)
    assert (second.runs, second.status, second.snapshot) == (((5, 7),), Status.QUARANTINED, None), "but for what is known"


def test_doubled_rows_are_named() -> None:
    found = held(Span(0, 0, 9 * CHUNK), [(0, 10)], {0: 3}, doubled=[[(3, 5)], [(4, 5)]])
    ((_, one),) = told(found, standing())
    assert one.snapshot is not None
    assert (one.snapshot.rows, one.snapshot.doubled) == (13, (((3, 5),), ((4, 5),)))
    late = held(Span(0, 0, 9 * CHUNK), [(0, 10)], {0: 1}, doubled=[[(3, 5)], [(4, 5)]])
    assert ranges(told(late, standing())) == [(0, 10, 13)], "more was doubled between both questions"


def test_what_is_back_is_told_of_what_the_ttl_may_have_taken_and_nothing_else() -> None:
    one = standing(settled=300, horizon=300, gaps=[(5, 9), (20, 22)], since=100)
    found = held(Span(0, 5, 9 * CHUNK), [(0, 8), (50, 60), (150, 310)])
    said = told(found, one)
    assert [(each.runs, each.snapshot and (each.snapshot.first, each.snapshot.stop)) for _, each in said] == [
        (((5, 8),), (5, 8)),
        (((150, 310),), (100, 310)),
    ]


def test_what_the_ttl_may_have_taken_before_it_was_judged_is_unobserved() -> None:
    one = standing(settled=10, horizon=10, since=50, received=OffsetSet([(12, 15), (40, 41)]))
    (_, lost), (_, rest) = told(held(Span(0, 10, 9 * CHUNK), [(14, 20), (60, 90)], {0: 4}, doubled=[[(15, 16)]]), one)
    assert (lost.status, lost.runs) == (Status.UNOBSERVED, ((10, 12), (20, 40), (41, 50)))
    assert rest.snapshot is not None
    assert (rest.runs, rest.snapshot.first, rest.snapshot.stop) == (((12, 20), (40, 41), (60, 90)), 10, 90)
    assert rest.snapshot.doubled == (((15, 16),),)


@pytest.mark.parametrize(
    ("lowest", "unsure"), [(0, ((10, 60), (61, 64))), (None, ((61, 64),)), (58, ((58, 60), (61, 64))), (90, ((61, 64),))]
)
def test_what_is_unsure_does_not_let_a_sink_begin_lower(lowest: int | None, unsure: tuple[tuple[int, int], ...]) -> None:
    one = standing(settled=10, horizon=10, since=64, lowest=lowest)
    (_, lost), (_, rest) = told(held(Span(0, 10, 9 * CHUNK), [(60, 61), (64, 90)]), one)
    assert (lost.status, lost.runs) == (Status.UNOBSERVED, unsure)
    assert rest.snapshot is not None
    assert (rest.runs, rest.snapshot.first, rest.snapshot.stop) == (((60, 61), (64, 90)), 10, 90)
    (_, aside), (_, lost), _ = told(held(Span(0, 10, 9 * CHUNK), [(62, 90)], aside=[(60, 61)]), standing(settled=10, since=64, lowest=None))
    assert (aside.status, lost.runs) == (Status.QUARANTINED, ((61, 62),))


def test_an_empty_table_that_is_heard_of_first_has_nothing_unsure() -> None:
    ((_, one),) = told(held(Span(0, 100, CHUNK), []), standing(settled=100, heard=False, since=300))
    assert one.snapshot is not None
    assert (one.status, one.snapshot.first, one.snapshot.stop) == (Status.RECEIVED, 100, 101)


def test_below_the_logs_start_only_what_is_known_to_be_old_is_unsure() -> None:
    one = standing(settled=10, horizon=10, judged_from=40, since=50, aged=OffsetSet([(20, 22)]))
    (_, lost), _ = told(held(Span(0, 10, 9 * CHUNK), [(60, 90)]), one)
    assert lost.runs == ((20, 22), (40, 50))


def test_old_records_among_young_ones_are_left_alone_too() -> None:
    """What was received stays so, above what is judged and below; of the rest nobody knows."""
    one = standing(settled=20, horizon=20, since=5, aged=OffsetSet([(8, 10), (30, 40)]), received=OffsetSet([(32, 34)]))
    (_, lost), (_, rest) = told(held(Span(0, 0, 9 * CHUNK), [(6, 8), (15, 31), (50, 60)]), one)
    assert (lost.status, lost.runs) == (Status.UNOBSERVED, ((31, 32), (34, 40)))
    assert rest.snapshot is not None
    assert (rest.runs, rest.snapshot.first, rest.snapshot.stop) == (((6, 10), (15, 31), (32, 34), (50, 60)), 5, 60)


@pytest.mark.parametrize("chunks_max", [3, 65_535])
def test_large_answers_are_told_in_pieces_that_can_be_written(chunks_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNKS_MAX", chunks_max)
    rng = random.Random(random.randrange(1 << 30))
    steps = rng.sample([2, 2, 3, 3, 400], 5)
    runs: list[tuple[int, int]] = []
    for number in range(6):  # some chunks of single offsets, some dense, one empty
        at = number * CHUNK + 7
        if number != 3:
            step = steps.pop()
            runs += [(offset, offset + 1) for offset in range(at, (number + 1) * CHUNK, step)]
    everything = OffsetSet(runs)
    twice = OffsetSet(run for run in runs if rng.random() < 0.7)
    levels = (twice, *(twice.within(0, (6 - level) * CHUNK) for level in range(1, 5)))
    rows = everything.count + sum(level.count for level in levels)
    found = told(
        Held(Span(0, 7, 6 * CHUNK), everything, {0: CHUNK * 9}, levels, OffsetSet()), standing(settled=6 * CHUNK, horizon=6 * CHUNK)
    )
    at = 7
    seen: list[OffsetSet] = [OffsetSet() for _ in levels]
    for _, one in found:
        assert one.snapshot is not None
        assert one.snapshot.first == at
        at = one.snapshot.stop
        for level, some in zip(seen, one.snapshot.doubled, strict=False):
            level.update(OffsetSet(some))
    assert at == 6 * CHUNK
    assert tuple(seen) == levels
    assert OffsetSet(run for _, one in found for run in one.runs) == everything
    assert sum(rows for _, _, rows in ranges(found)) > rows
    assert len(found) > 6


async def test_from_a_table_to_observations(clickhouse: ClickHouse, client: ClickHouseClient) -> None:
    made = make(random.Random(random.randrange(1 << 30)), {"orders": 2}, 3_000, first=CHUNK - 1_000)
    fill(clickhouse, made, quarantine="aside")
    table = ClickHouseTable(client, layout(clickhouse, quarantine="aside"), "orders")
    assert isinstance(await table.inspect(), Facts)
    standings = [
        standing(number, settled=CHUNK - 500, end=made.ends["orders", number], gaps=[(CHUNK - 900, CHUNK - 880)]) for number in range(2)
    ]
    check = await table.check(spans(standings))
    assert isinstance(check, Check)
    found = told(check.held, *standings)
    for number in range(2):
        counts = made.counts("orders", number)
        mine = [one for partition, one in found if partition == number]
        received = OffsetSet(run for one in mine if one.status is Status.RECEIVED for run in one.runs)
        assert offsets(received) == set(counts)
        assert sum(one.snapshot.rows for one in mine if one.snapshot is not None) == counts.total()
        more = [OffsetSet(run) for one in mine if one.snapshot is not None for run in one.snapshot.doubled]
        assert sum(level.count for level in more) == counts.total() - len(counts), "nobody made more than five"
        aside = OffsetSet(run for one in mine if one.status is Status.QUARANTINED for run in one.runs)
        assert offsets(aside) == made.quarantined("orders", number)
