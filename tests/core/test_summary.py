"""What is told by minute, piece by piece, against counting every offset: the lives are those of the ledger's own comparison."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest

from stream_app.core.minutes import BLOCK, KEPT_MINUTES, MINUTE_MS
from stream_app.core.model import MinuteRow, Status, Timed
from stream_app.core.offsets import OffsetSet
from stream_app.core.states import State
from stream_app.core.summary import BLOCKS_AT_ONCE, Summaries
from stream_app.core.touched import EVERYTHING
from tests.core.naive import ABSENT, EXPLAINED, OPEN, NaiveSink
from tests.core.strategies import BASE, GRACE, Rig, policy
from tests.core.test_ledger_model import WEIGHTS, Both, Dice, Rolled

NOW = BASE // MINUTE_MS
FIELDS = ("received", "duplicates", "first", "last", "missing", "open", "explained")


class ByMinute(Both):
    """A partition whose records have times that jump, and what was told of it by minute."""

    def __init__(self, dice: Dice) -> None:
        super().__init__(dice)
        self.minutes: dict[int, int | None] = {}
        """By offset, absent ones included."""
        self.told: dict[tuple[str, int], list[MinuteRow]] = {}
        self.summaries = Summaries()
        self.truncated = False

    def timed(self, dice: Dice, kinds: Sequence[str]) -> tuple[Timed, ...]:
        first = self.naive.read
        current, found, cut = self.minutes.get(first - 1), list[Timed](), False
        for offset, kind in enumerate(kinds, first):
            if kind == "unread":
                current, cut = None, True
            elif kind == "record":
                minute = dice.one_of([current, current, NOW, NOW - 1, NOW - 10, NOW - 25, None])
                if minute != current or cut or not found:
                    low = 0 if minute is None else minute * MINUTE_MS
                    found.append(Timed(offset, minute, low, low))
                current, cut = minute, False
            self.minutes[offset] = current
        return tuple(found)

    def truncate(self, dice: Dice) -> None:
        super().truncate(dice)
        self.minutes = {offset: minute for offset, minute in self.minutes.items() if offset < self.naive.read}
        self.truncated = True

    def recreate(self, dice: Dice) -> None:
        super().recreate(dice)
        self.minutes, self.truncated = {}, False

    def flush(self, dice: Dice) -> None:
        before = self.ledger
        super().flush(dice)
        if self.ledger is not before:
            self.summaries = Summaries()

    def compare(self) -> None:
        super().compare()
        for _ in range(4):  # more blocks than are told at once
            for name, block, rows in self.summaries.changed(self.ledger):
                self.told[name, block] = rows
        for (name, block), rows in self.told.items():
            assert {row.minute // BLOCK for row in rows} <= {block}
            if name not in self.naive.sinks:
                assert rows == []
        for name, sink in self.naive.sinks.items():
            told = {row.minute: row for (one, _), rows in self.told.items() if one == name for row in rows}
            self.same(name, told, self.counted(sink))

    def same(self, name: str, told: dict[int, MinuteRow], counted: dict[int, Counter[str]]) -> None:
        frozen = {run.minute for run in self.ledger.log.minutes.runs if run.held is not None}
        for minute in told.keys() | counted.keys():
            row, wanted = told.get(minute), counted.get(minute, Counter())
            for field in FIELDS:
                got = (getattr(row, field) if row else None) or 0
                where = f"{field} of {name} in minute {minute - NOW}"
                if field == "duplicates" and self.truncated:
                    assert got >= wanted[field], where
                elif field == "first" and minute in frozen:
                    assert got <= wanted[field], where
                elif field == "last" and minute in frozen:
                    assert got >= wanted[field], where
                else:
                    assert got == wanted[field], where

    def counted(self, sink: NaiveSink) -> dict[int, Counter[str]]:
        """Offset by offset."""
        naive, found = self.naive, defaultdict[int, Counter[str]](Counter)
        lowest = naive.forgotten_below if sink.floor is None else sink.floor
        for offset, minute in self.minutes.items():
            if minute is None or offset < lowest or naive.kinds[offset] in ABSENT:
                continue
            state, one = sink.states.get(offset), found[minute]
            if state is State.RECEIVED:
                one["first"] = min(one["first"] if one["received"] else offset, offset)
                one["last"] = max(one["last"], offset)
                one["received"] += 1
            one["open"] += state in OPEN
            one["missing"] += state in OPEN or state is State.ACKNOWLEDGED
            one["explained"] += state in EXPLAINED and state is not State.ACKNOWLEDGED
        for offset, times in sink.doubled.items():
            minute = self.minutes.get(offset)
            if minute is not None:
                found[minute]["duplicates"] += times
        return {minute: one for minute, one in found.items() if any(one.values())}


@pytest.mark.parametrize("seed", range(8))
def test_what_is_told_by_minute_is_what_a_count_of_every_offset_gives(seed: int, request: pytest.FixtureRequest) -> None:
    drawn = int(request.config.getoption("--hypothesis-seed")) + seed
    print(f"seed {drawn}")  # pytest shows it where the test fails
    dice = Rolled(random.Random(drawn))
    both = ByMinute(dice)
    for _ in range(120):
        step = Both.recreate if dice.number(0, 199) == 0 else dice.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        getattr(both, step.__name__)(dice)
        both.compare()


# --- named cases ----------------------------------------------------------------------------------------------------------


def read(rig: Rig, kinds: Sequence[str], minute: int, *, start: int = 0) -> None:
    """Read on; every record is of this minute."""
    at = rig.ledger.log.read + next(number for number, kind in enumerate(kinds) if kind == "record")
    rig.read(kinds, minutes=(Timed(at, minute, minute * MINUTE_MS + 5, minute * MINUTE_MS + 900),), start=start)


def told(rig: Rig, summaries: Summaries, name: str = "s") -> dict[int, MinuteRow]:
    """The minutes of what is told now."""
    return {row.minute: row for sink, _, rows in summaries.changed(rig.ledger) if sink == name for row in rows}


def taken_over(rig: Rig) -> Summaries:
    """What another worker, to whom all is new, tells by."""
    for sink in rig.ledger.judged():
        sink.touched.note(*EVERYTHING[0])
    return Summaries()


def test_of_a_minute_that_the_log_has_forgotten_the_numbers_stay_true() -> None:
    """Markers lie between the records, retention passes them all, and then something still changes."""
    rig, summaries = Rig(), Summaries()
    read(rig, ["record", "transaction_marker"] * 20, NOW)
    rig.observe((0, 10), (14, 40))
    rig.verdict()
    before = told(rig, summaries)[NOW]
    assert (before.received, before.first, before.last, before.missing, before.open) == (18, 0, 38, 2, 2)
    read(rig, ["record", "transaction_marker"] * 5, NOW, start=30)
    assert rig.ledger.log.forgotten == 30
    rig.observe((40, 50))
    rig.verdict()
    for row in (told(rig, summaries)[NOW], told(rig, taken_over(rig))[NOW]):
        assert (row.received, row.first, row.last, row.missing, row.open) == (23, 0, 48, 2, 2)
    rig.observe((12, 13), status=Status.ACKNOWLEDGED, reason="known", by="me")
    rig.observe((10, 11))
    row = told(rig, summaries)[NOW]
    assert (row.received, row.missing, row.open, row.explained) == (24, 1, 0, 0)


def test_a_floor_inside_of_a_forgotten_minute_counts() -> None:
    rig, summaries = Rig({"s": policy(), "late": policy("late", floor=20)}), Summaries()
    read(rig, ["record", "transaction_marker"] * 20, NOW)
    for name in ("s", "late"):
        rig.observe((0, 40), sink=name)
    rig.verdict()
    read(rig, ["record"], NOW, start=36)
    assert rig.ledger.log.forgotten == 36
    assert {name: row.received for name, _, (row,) in summaries.changed(rig.ledger)} == {"s": 20, "late": 10}
    assert {name: row.received for name, _, (row,) in taken_over(rig).changed(rig.ledger)} == {"s": 20, "late": 10}


def test_few_blocks_are_told_at_once_and_the_newest_first() -> None:
    rig, summaries = Rig(), Summaries()
    for ago in range(300, -1, -10):
        read(rig, ["record"], NOW - ago)
    rig.observe((0, 31))
    blocks = []
    while found := list(summaries.changed(rig.ledger)):
        assert len(found) <= BLOCKS_AT_ONCE
        blocks += [block for _, block, _ in found]
    assert blocks[:BLOCKS_AT_ONCE] == sorted(blocks)[-BLOCKS_AT_ONCE:]
    assert sorted(blocks) == [(NOW - ago) // BLOCK for ago in range(300, -1, -10)]
    rig.observe((7, 8), status=Status.QUARANTINED)
    assert list(summaries.changed(rig.ledger)) == [], "it was received: nothing changed"


def test_a_block_of_more_than_a_day_ago_is_told_to_be_gone() -> None:
    rig, summaries = Rig(), Summaries()
    read(rig, ["record"] * 3, NOW)
    rig.observe((0, 3))
    assert told(rig, summaries)[NOW].received == 3
    rig.now += (KEPT_MINUTES + 20) * MINUTE_MS
    rig.read([])
    assert list(summaries.changed(rig.ledger)) == [("s", NOW // BLOCK, [])]
    assert list(summaries.changed(rig.ledger)) == []


def test_duplicates_are_counted_in_the_minute_of_their_record() -> None:
    rig, summaries = Rig(), Summaries()
    read(rig, ["record"] * 5, NOW - 1)
    rig.ledger.end_is(10)
    for _ in range(2):
        rig.observe((3, 8))
    read(rig, ["record"] * 5, NOW)
    rig.observe((4, 6))
    rows = told(rig, summaries)
    assert {minute - NOW: (row.received, row.duplicates) for minute, row in rows.items()} == {-1: (2, 3), 0: (3, 4)}
    assert rig.sink().duplicates == 7


def test_times_are_the_logs() -> None:
    rig, summaries = Rig(), Summaries()
    read(rig, ["record"] * 2, NOW)
    rig.observe((0, 1))
    (row,) = told(rig, summaries).values()
    assert (row.low_ms, row.high_ms) == (NOW * MINUTE_MS + 5, NOW * MINUTE_MS + 900)


def test_what_vanished_is_missing_in_its_minute() -> None:
    rig, summaries = Rig(), Summaries()
    read(rig, ["record"] * 10, NOW)
    rig.observe((0, 10))
    rig.wait(GRACE)
    rig.judge()
    told(rig, summaries)
    rig.ledger.vanish("s", OffsetSet([(9, 10)]), rig.now)
    row = told(rig, summaries)[NOW]
    assert (row.received, row.last, row.missing) == (9, 8, 1)


def test_records_of_no_minute_are_told_in_none() -> None:
    rig, summaries = Rig(), Summaries()
    rig.read("record", 5)
    rig.observe((0, 5))
    assert told(rig, summaries) == {}
