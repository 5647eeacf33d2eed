from __future__ import annotations

import msgspec
import pytest

from stream_app.core.model import GapsRecord, MinuteRow, MinutesRecord
from stream_app.service.told_minutes import ToldMinutes

KEY = ("orders", 3, "a/b")


def row(minute: int) -> MinuteRow:
    return MinuteRow(minute, 1, 0, 5, 5, 0, 0, 0, 0, 0)


def record(block: int, *minutes: int) -> MinutesRecord:
    return MinutesRecord(topic="orders", partition=3, sink="a/b", block=block, minutes=[row(minute) for minute in minutes])


def take(told: ToldMinutes, block: int, *minutes: int) -> None:
    one = record(block, *minutes)
    told.apply(f"orders/3/a/b/{block}", one, msgspec.json.encode(one))


def test_blocks_replace_one_another_and_are_read_from_a_minute_on() -> None:
    told = ToldMinutes()
    take(told, 11, 110, 111)
    take(told, 10, 100, 105)
    take(told, 11, 110, 119)
    rows, size = told.of(KEY, 105)
    assert [one.minute for one in rows] == [105, 110, 119]
    assert size > 0
    assert told.of(KEY, 111) == ([row(119)], len(msgspec.json.encode(record(11, 110, 119))))
    assert told.of(KEY, 120) == ([], 0)
    assert told.of(("orders", 3, "other"), 0) == ([], 0)


def test_a_tombstone_empties_a_block() -> None:
    told = ToldMinutes()
    take(told, 10, 100)
    told.apply("orders/3/a/b/10", None, None)
    told.apply("orders/3/a/b/10", None, None)
    assert told.of(KEY, 0) == ([], 0)
    take(told, 10, 100)
    told.clear()
    assert told.of(KEY, 0) == ([], 0)


@pytest.mark.parametrize("rest", ["orders/3/a/b/9", "orders/4/a/b/10", "orders/3/b/10", "orders/x/a/b/10", "orders/3/a/b/x", "orders"])
def test_what_does_not_match_its_key_is_refused(rest: str) -> None:
    told, one = ToldMinutes(), record(10, 100)
    with pytest.raises(ValueError, match=r"match|invalid literal|unpack"):
        told.apply(rest, one, msgspec.json.encode(one))


def test_a_record_of_another_kind_is_refused() -> None:
    other = GapsRecord(topic="orders", partition=3, sink="a/b", block=10, gaps=[])
    with pytest.raises(ValueError, match="match"):
        ToldMinutes().apply("orders/3/a/b/10", other, msgspec.json.encode(other))
