"""The comparison, beside one that goes offset by offset."""

from __future__ import annotations

import random

import pytest

from stream_app.core.model import Absent, Cause, LogRead, Look, Reason, Run
from stream_app.core.offsets import OffsetSet
from stream_app.sinks.clickhouse import Held, Span
from stream_app.verify.compare import Difference, Verdict
from stream_app.verify.part import Part


def runs(offsets: set[int] | list[int]) -> tuple[Run, ...]:
    return tuple(OffsetSet((offset, offset + 1) for offset in offsets).runs())


def part(records: set[int], stop: int, **more: set[int]) -> Part:
    """Of ``[0, stop)``: what is neither a record nor named is a transaction marker."""
    made = Part.empty(0, 0, stop)
    named = records.union(*more.values())
    markers = set(range(stop)) - named
    made.take(
        LogRead(
            0,
            stop,
            b"i" * 16,
            runs(records),
            absent={Absent.TRANSACTION_MARKER: runs(markers), Absent.ABORTED: runs(more.get("aborted", set()))},
            holes=runs(more.get("holes", set())),
            unreadable=runs(more.get("unreadable", set())),
        )
    )
    return made


def held(stop: int, present: set[int], rows: int | None = None, doubled: tuple[int, ...] = (), quarantined: tuple[int, ...] = ()) -> Held:
    sets = (OffsetSet((offset, offset + 1) for offset in some) for some in (present, doubled, quarantined))
    have, twice, aside = sets
    return Held(Span(0, 0, stop), have, {} if rows is None else {0: rows - len(present)}, (twice,) if twice else (), aside)


def look(one: Difference, *, compacted: bool | None = None, optional: bool = True, **found: object) -> None:
    first = one.lacking.first()
    assert first is not None
    answer = Look(**{"upto": one.part.stop, "log_start": 0, **found})  # type: ignore[arg-type]  # names to values of several types
    one.looked(answer, first, compacted=compacted, tombstones_optional=optional)


@pytest.mark.parametrize("_round", range(30))
def test_every_record_is_in_one_place(_round: int) -> None:
    rng = random.Random(random.randrange(1 << 30))
    stop = rng.randrange(1, 400)
    kinds = [rng.choices(["record", "marker", "aborted", "hole", "unreadable"], [90, 5, 5, 3, 3])[0] for _ in range(stop)]
    of = {kind: {offset for offset in range(stop) if kinds[offset] == kind} for kind in set(kinds)}
    log = part(
        of.get("record", set()),
        stop,
        aborted=of.get("aborted", set()),
        holes=of.get("hole", set()),
        unreadable=of.get("unreadable", set()),
    )
    rows = {offset: rng.choice([0, 1, 1, 1, 1, 2, 3]) for offset in range(stop)}
    aside = {offset for offset in range(stop) if rng.random() < 0.05}
    present = {offset for offset, count in rows.items() if count}
    one = Difference.of(
        log,
        [held(stop, present, sum(rows.values()), tuple(offset for offset, count in rows.items() if count > 1), tuple(aside))],
    )
    start = rng.randrange(20)
    nulls = {offset for offset in range(stop) if rng.random() < 0.1}
    gone = {offset for offset in range(start, stop) if rng.random() < 0.05}
    compacted, optional = rng.choice([True, False, None]), rng.random() < 0.5
    if one.lacking:
        look(one, compacted=compacted, optional=optional, log_start=start, holes=runs(gone), tombstones=runs(nulls - gone))

    expected: dict[object, set[int]] = {}
    for offset in range(stop):
        if kinds[offset] not in ("record", "unreadable") or rows[offset]:
            continue
        if offset in aside:
            place: object = Reason.QUARANTINED
        elif offset < start:
            place = Cause.EXPIRED
        elif offset in gone:
            place = Cause.EXPIRED if compacted is False else Reason.COMPACTED
        elif offset in nulls and optional:
            place = Reason.TOMBSTONE
        else:
            place = Cause.UNREADABLE if kinds[offset] == "unreadable" else Cause.NOT_RECEIVED
        expected.setdefault(place, set()).add(offset)
    found: dict[object, OffsetSet] = {place: some for sets in (one.missing, one.explained) for place, some in sets.items()}
    assert {place: {o for first, end in some.runs() for o in range(first, end)} for place, some in found.items() if some} == expected
    assert not one.lacking
    assert one.surplus == sum(max(count - 1, 0) for count in rows.values())
    assert one.unexpected.count == sum(1 for offset in range(stop) if rows[offset] and kinds[offset] in ("marker", "aborted"))
    missing = sum(len(some) for place, some in expected.items() if isinstance(place, Cause))
    assert one.missing_count == missing == sum(gap.count for gap in one.gaps())
    assert Verdict((one,)).equal is (missing == 0 and one.surplus == 0)


def test_offsets_without_a_record_do_not_split_a_gap() -> None:
    one = Difference.of(part({0, 1, 2, 4, 5, 7, 9}, 10), [held(10, {0, 7})])
    look(one, timestamps={1: 100, 5: 500, 9: 900})
    assert [(gap.first, gap.stop, gap.count, gap.first_timestamp_ms, gap.last_timestamp_ms) for gap in one.gaps()] == [
        (1, 6, 4, 100, 500),
        (9, 10, 1, 900, 900),
    ]


def test_another_cause_splits_a_gap() -> None:
    one = Difference.of(part(set(range(9)), 9), [held(9, {0, 8})])
    look(one, log_start=3)
    assert [(gap.first, gap.stop, gap.cause) for gap in one.gaps()] == [(1, 3, Cause.EXPIRED), (3, 8, Cause.NOT_RECEIVED)]


def test_a_look_that_stopped_early_leaves_the_rest_to_the_next() -> None:
    one = Difference.of(part(set(range(100)), 100), [held(100, set())])
    look(one, upto=40)
    assert (one.missing_count, one.lacking.first()) == (40, 40)
    look(one)
    assert (one.missing_count, one.lacking.count) == (100, 0)


def test_what_arrived_meanwhile_is_not_missing() -> None:
    one = Difference.of(part(set(range(10)), 10), [held(10, {0, 1})])
    look(one)
    one.arrived([held(10, {2, 3, 4}, quarantined=(4, 5, 6))])
    assert [(gap.first, gap.stop) for gap in one.gaps()] == [(7, 10)]
    assert one.explained[Reason.QUARANTINED] == OffsetSet([(5, 7)])
    assert (one.rows, one.surplus) == (5, 0)


def test_what_the_ttl_may_have_removed_is_not_judged() -> None:
    one = Difference.of(part(set(range(10)), 10), [held(10, {4})])
    look(one, older=((0, 2), (6, 8)), timestamps={0: 10, 1: 40, 2: 1_000, 3: 1_000, 5: 1_000, 6: 20, 8: 2_000, 9: 2_100})
    assert one.too_old == OffsetSet([(0, 2), (6, 8)])
    gaps = [(gap.first, gap.stop, gap.first_timestamp_ms, gap.last_timestamp_ms) for gap in one.gaps()]
    assert gaps == [(2, 4, 1_000, 1_000), (5, 6, 1_000, 1_000), (8, 10, 2_000, 2_100)], "each record for itself"


def test_missing_records_above_the_last_row_are_counted_apart() -> None:
    one = Difference.of(part(set(range(10)), 10), [held(10, {2, 6})])
    look(one)
    assert (one.missing_count, one.above_last) == (8, 3)
    nothing = Difference.of(part(set(range(10)), 10), [held(10, set())])
    look(nothing)
    assert (nothing.missing_count, nothing.above_last) == (10, 10)


def test_a_table_that_has_each_record_once_is_equal() -> None:
    one = Difference.of(part({0, 1}, 3), [held(3, {0, 1})])
    assert Verdict((one,)).equal is True


def test_without_an_answer_there_is_no_verdict() -> None:
    assert Verdict(reason="it is away").equal is None
