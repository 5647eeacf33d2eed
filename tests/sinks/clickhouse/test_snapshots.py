from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from stream_app.core.model import CHUNK, Observation, Status
from stream_app.core.offsets import OffsetSet
from stream_app.sinks.clickhouse import Check, ClickHouseTable, Facts, Held, Span
from stream_app.sinks.clickhouse import snapshots as module
from stream_app.sinks.clickhouse.client import ClickHouseClient
from stream_app.sinks.clickhouse.snapshots import AHEAD_CHUNKS, Beyond, Standing, observations, spans, sweep_spans
from stream_app.sinks.observation import encode, parse
from tests.sinks.clickhouse.kit import layout, offsets
from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import fill, make

ID = b"i" * 16


def standing(
    partition: int = 0, settled: int = 0, horizon: int | None = None, end: int = 1 << 40, gaps: Iterable[tuple[int, int]] = ()
) -> Standing:
    return Standing(partition, ID, settled, settled if horizon is None else horizon, OffsetSet(gaps), end)


def held(span: Span, runs: Iterable[tuple[int, int]], surplus: dict[int, int] | None = None, aside: Iterable[tuple[int, int]] = ()) -> Held:
    return Held(span, OffsetSet(runs), surplus or {}, OffsetSet(), OffsetSet(aside))


def told(check: Check, *standings: Standing) -> list[tuple[int, Observation]]:
    found = list(observations(check, {one.partition: one for one in standings}, "warehouse"))
    assert not any(isinstance(one, Beyond) for one in found)
    return [one for one in found if not isinstance(one, Beyond)]


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


def test_a_snapshot_ends_where_the_table_does_or_did() -> None:
    span = Span(0, 100, AHEAD_CHUNKS * CHUNK)
    one = standing(settled=100, horizon=100)
    assert ranges(told(Check(5, (held(span, [(100, 150), (160, 170)]),), 0), one)) == [(100, 170, 60)]
    assert ranges(told(Check(5, (held(span, [(100, 120)]),), 0), standing(settled=100, horizon=170))) == [(100, 170, 20)]
    assert told(Check(5, (held(span, []),), 0), one) == []
    below = Span(0, 0, CHUNK)
    assert ranges(told(Check(5, (held(below, [(3, 4)]),), 0), standing(settled=9 * CHUNK, horizon=9 * CHUNK))) == [(0, CHUNK, 1)]


def test_nothing_is_observed_above_the_end_of_the_log() -> None:
    check = Check(5, (held(Span(0, 10, 9 * CHUNK), [(10, 50), (60, 61)], {0: 2}),), 0)
    found = list(observations(check, {0: standing(settled=10, end=55)}, "warehouse"))
    assert found[0] == Beyond(0, 60, 55)
    (_, one), = [each for each in found if not isinstance(each, Beyond)]  # fmt: skip
    assert (one.runs, one.snapshot and one.snapshot.stop) == (((10, 50),), 55)


def test_a_last_record_that_was_put_aside_is_told() -> None:
    check = Check(7, (held(Span(0, 0, 9 * CHUNK), [(0, 5)], aside=[(5, 7)]),), 0)
    assert [one.runs for _, one in told(check, standing())] == [((0, 5),), ((5, 7),)]


def test_quarantined_rows_explain() -> None:
    check = Check(7, (held(Span(2, 0, 9 * CHUNK), [(0, 5), (8, 10)], {0: 3}, aside=[(5, 7)]),), 0)
    (partition, first), (_, second) = told(check, standing(2))
    assert (partition, first.sink, first.topic_id, first.runs, first.status) == (2, "warehouse", ID, ((0, 5), (8, 10)), Status.RECEIVED)
    assert first.snapshot is not None
    assert (first.snapshot.rows, first.snapshot.at_ms) == (10, 7)
    assert (second.runs, second.status, second.snapshot) == (((5, 7),), Status.QUARANTINED, None)


@pytest.mark.parametrize("chunks_max", [3, 65_535])
def test_large_answers_are_told_in_pieces_that_can_be_written(chunks_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNKS_MAX", chunks_max)
    rng = random.Random(random.randrange(1 << 30))
    runs: list[tuple[int, int]] = []
    for number in range(6):  # some chunks of single offsets, some dense, one empty
        at = number * CHUNK + 7
        if number != 3:
            step = rng.choice([2, 3, 400])
            runs += [(offset, offset + 1) for offset in range(at, (number + 1) * CHUNK, step)]
    everything = OffsetSet(runs)
    surplus = {0: 4, 5: 9}
    check = Check(5, (Held(Span(0, 7, 6 * CHUNK), everything, surplus, OffsetSet(), OffsetSet()),), 0)
    found = told(check, standing(settled=6 * CHUNK, horizon=6 * CHUNK))
    at = 7
    for _, one in found:
        assert one.snapshot is not None
        assert one.snapshot.first == at
        at = one.snapshot.stop
        assert parse(encode(one, "orders", 0), "orders", 0) == one
    assert at == 6 * CHUNK
    assert OffsetSet(run for _, one in found for run in one.runs) == everything
    assert sum(rows for _, _, rows in ranges(found)) == everything.count + 13


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
    found = told(check, *standings)
    for number in range(2):
        counts = made.counts("orders", number)
        mine = [one for partition, one in found if partition == number]
        received = OffsetSet(run for one in mine if one.status is Status.RECEIVED for run in one.runs)
        assert offsets(received) == set(counts)
        assert sum(one.snapshot.rows for one in mine if one.snapshot is not None) == counts.total()
        aside = OffsetSet(run for one in mine if one.status is Status.QUARANTINED for run in one.runs)
        assert offsets(aside) == made.quarantined("orders", number)
