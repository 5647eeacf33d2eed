from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.core.model import Status
from stream_app.sinks.copies import TIMES_MAX, Gathered, Source, SourceHeaders, observations, source_of
from stream_app.sinks.observation import VALUE_BYTES_MAX, encode

NAMES = SourceHeaders("t", "p", "o")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("t", b"orders"), ("p", b"3"), ("o", b"17")], Source("orders", 3, 17)),
        ([("t", "orders"), ("p", "3"), ("o", "17")], Source("orders", 3, 17)),
        ([("t", b"orders"), ("p", (3).to_bytes(8, "big")), ("o", (2**40).to_bytes(8, "big"))], Source("orders", 3, 2**40)),
        ([("t", b"orders"), ("p", b"3"), ("o", b"12345678")], Source("orders", 3, 12345678)),
        ([("o", b"1"), ("t", b"orders"), ("p", b"3"), ("x", None), ("o", b"2")], Source("orders", 3, 2)),
        ([("t", b"\xff"), ("p", b"3"), ("o", b"17")], Source("\ufffd", 3, 17)),
        ([("t", b"orders"), ("p", b"3")], None),
        ([("t", b"orders"), ("p", b"3"), ("o", None)], None),
        ([("t", b"orders"), ("p", b"3"), ("o", b"")], None),
        ([("t", b"orders"), ("p", b"3"), ("o", b"-1")], None),
        ([("t", b"orders"), ("p", b"3"), ("o", (-1).to_bytes(8, "big", signed=True))], None),
        ([("t", b"orders"), ("p", b"3"), ("o", b"9" * 30)], None),
        ([("t", b"orders"), ("p", b"3"), ("o", b"0x11")], None),
        ([("t", b"orders"), ("p", b"99999999999"), ("o", b"1")], None),
        ([], None),
        (None, None),
    ],
)
def test_sources(headers: list[tuple[str, bytes | str | None]] | None, expected: Source | None) -> None:
    assert source_of(headers, NAMES) == expected


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=60))
def test_every_copy_is_said_as_often_as_it_is_there(copies: list[tuple[int, int]]) -> None:
    gathered = Gathered()
    gathered.add([Source("orders", *copy) for copy in copies], "orders")
    said = observations(gathered, "copy", Status.RECEIVED, None, "topic:c/0", 100)
    counted = Counter((partition, offset) for partition, one in said for first, stop in one.runs for offset in range(first, stop))
    assert counted == Counter(copies)
    assert [one.sequence for _, one in said] == list(range(100, 100 + len(said)))


def test_what_is_of_no_use_is_counted() -> None:
    gathered = Gathered()
    gathered.add([None, Source("payments", 0, 1), Source("orders", 0, 1), None], "orders")
    assert (gathered.unknown, gathered.others, list(gathered.offsets)) == (2, 1, [0])


def test_what_lies_beyond_the_logs_end_is_said_apart() -> None:
    gathered = Gathered()
    gathered.add([Source("orders", 0, offset) for offset in (7, 8, 8, 10, 10, 99)], "orders")
    gathered.add([Source("orders", 1, 200)], "orders")
    gathered.set_apart(0, 10)
    said = observations(gathered, "copy", Status.RECEIVED, None, "topic:c/0", 0)
    assert [(partition, one.runs) for partition, one in said] == [
        (0, ((7, 9),)),
        (0, ((8, 9),)),
        (0, ((10, 11), (99, 100))),
        (0, ((10, 11),)),
        (1, ((200, 201),)),
    ]


def test_what_one_observation_can_not_hold_is_said_in_several() -> None:
    """An id or a time in the offset's header, far apart from each other: each run is written out in full."""
    offsets = [(2**62 // 25_000) * number for number in range(25_000)]
    gathered = Gathered()
    gathered.add([Source("orders", 0, offset) for offset in offsets], "orders")
    said = observations(gathered, "copy", Status.RECEIVED, None, "topic:c/0", 7)
    assert [one.sequence for _, one in said] == [7, 8, 9]
    assert [first for _, one in said for first, _ in one.runs] == offsets
    assert all(len(encode(one, "orders", 0)) < VALUE_BYTES_MAX for _, one in said)


def test_copies_of_one_record_without_end_are_told_up_to_a_number() -> None:
    """A header that is always the same: neither minutes of work nor an observation for each."""
    gathered = Gathered()
    gathered.add([Source("orders", 0, 0)] * 50_000, "orders")
    said = observations(gathered, "copy", Status.RECEIVED, None, "topic:c/0", 0)
    assert [one.runs for _, one in said] == [((0, 1),)] * TIMES_MAX
