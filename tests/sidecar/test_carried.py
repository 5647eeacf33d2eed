"""What travels in a commit's metadata: there and back, and what others may have written there."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapstream_sidecar import carried
from gapstream_sidecar.carried import METADATA_BYTES, WHOLE_BYTES, Carried, decode
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.runs import RunList

KEY: Key = ("orders", 3)


def encode(sink: str, said: list[Carried], key: Key, offset: int) -> str:
    text, untold = carried.encode(sink, said, key, offset)
    assert untold == []
    assert len(text) <= WHOLE_BYTES
    return text


def row(*runs: tuple[int, int], number: int = 1, key: Key = KEY, status: str = "received", reason: str | None = None) -> Carried:
    return Carried(key, "host-1", number, status, reason, RunList(runs), replayed=key != KEY)


def test_the_text_stays_the_same_while_what_it_says_ends_with_the_committed_offset() -> None:
    text = encode("billing", [row((5, 9), (12, 20))], KEY, 20)
    assert json.loads(text) == {"gapstream": 1, "sink": "billing", "said": [["host-1", 1, "received", None, [5, 4, 3, 0]]]}
    assert text == encode("billing", [row((5, 9), (12, 25))], KEY, 25)
    assert decode(text, "billing", KEY, 33) == [row((5, 9), (12, 33))]


@pytest.mark.parametrize("beyond", ["\0", "\0\0", "\x15\x02", '"}', "]]"])
def test_what_confluent_kafka_adds_to_a_text_does_no_harm(beyond: str) -> None:
    """It commits the C string's end, too, and reads beyond the end of what others committed."""
    assert decode(encode("billing", [row((5, 9))], KEY, 20) + beyond, "billing", KEY, 20) == [row((5, 9))]


def test_only_the_last_row_goes_on_with_the_commits() -> None:
    text = encode("billing", [row((5, 9)), row((5, 9), number=2)], KEY, 9)
    assert [list(one.runs) for one in decode(text, "billing", KEY, 12)] == [[(5, 9)], [(5, 12)]]


offsets = st.integers(0, 2**62)
bounds = st.sets(offsets, min_size=2, max_size=20).map(sorted).map(lambda found: found[: len(found) // 2 * 2])
rows = st.builds(
    lambda found, number, key, status, reason, replayed: Carried(
        key, f"host-{number}", number, status, reason, RunList(zip(found[::2], found[1::2], strict=True)), replayed or key != KEY
    ),
    bounds,
    st.integers(1, 2**40),
    st.sampled_from([KEY, ("orders", 4), ("é", 3)]),
    st.sampled_from(["received", "quarantined"]),
    st.none() | st.text(max_size=20),
    st.booleans(),
)


@given(st.lists(rows, max_size=4), offsets)
def test_what_was_written_is_read(said: list[Carried], offset: int) -> None:
    assert decode(encode("billing", said, KEY, offset), "billing", KEY, offset) == said


@given(st.lists(rows, max_size=3), st.integers(0, 40))
def test_what_ends_with_the_committed_offset_is_read(said: list[Carried], place: int) -> None:
    ends = [one.runs.bounds[-1] for one in said] or [7]
    offset = ends[place % len(ends)]
    assert decode(encode("billing", said, KEY, offset), "billing", KEY, offset) == said


def test_what_finds_no_room_is_told_by_its_span_as_unobserved() -> None:
    many = [row(*((at, at + 1) for at in range(first, first + 400, 2)), number=first) for first in range(0, 4_000, 400)]
    others = [row((number, number + 2), key=("orders", number)) for number in range(10, 60)]
    text = encode("billing", [*many, *others], KEY, 9_999)
    assert METADATA_BYTES - 600 < len(text) < 4_096
    read = decode(text, "billing", KEY, 9_999)
    exact = [one for one in read if one.status == "received"]
    spans = [one for one in read if one.status == "unobserved"]
    assert exact == many[: len(exact)]
    assert len(exact) >= 3
    assert spans[0] == Carried(KEY, "", 0, "unobserved", None, RunList([(len(exact) * 400, 3_999)]))
    assert {one.key: list(one.runs) for one in spans[1:]} == {one.key: list(one.runs) for one in others}


def test_what_headers_told_is_known_by_its_partition_and_has_a_span_of_its_own() -> None:
    """A wrong header in it would have what nobody doubts rejected."""
    told = Carried(KEY, "host-1", 2, "received", None, RunList([(7, 8), (2**40, 2**40 + 1)]), replayed=True)
    text = encode("billing", [row((5, 9)), told], KEY, 9)
    assert [len(one) for one in json.loads(text)["said"]] == [5, 7]
    assert decode(text, "billing", KEY, 9) == [row((5, 9)), told]
    many = row(*((at, at + 1) for at in range(0, 4_000, 2)))
    spans = decode(encode("billing", [many, told], KEY, 9), "billing", KEY, 9)
    assert [(list(one.runs), one.replayed) for one in spans] == [([(0, 3_999)], False), ([(7, 8), (2**40, 2**40 + 1)], True)]


def test_a_wrong_header_stays_apart_from_right_ones_that_find_no_room() -> None:
    """Put together with them it would excuse all that lies between."""
    told = row(*((at, at + 1) for at in (*range(100, 6_100, 2), 2**40, 2**62)), key=("retry", 0))
    (span,) = decode(encode("billing", [told], KEY, 9), "billing", KEY, 9)
    *right, one, another = span.runs
    assert (right[0][0], right[-1][1]) == (100, 6_099)
    assert (one, another) == ((2**40, 2**40 + 1), (2**62, 2**62 + 1))


full = row(*((at, at + 1) for at in range(0, 1_460, 2)))
"""Takes the room of what is exact."""


@given(st.sets(st.tuples(st.sampled_from(["events", "e" * 60, "\U0001f600" * 20]), st.integers(0, 2_000)), max_size=200), st.data())
@settings(max_examples=30, deadline=None)
def test_no_partition_is_passed_over_in_silence(keys: set[Key], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 2**62))
    listed = [row((first + at, first + at + 2), key=key) for at, key in enumerate(keys)]
    text, untold = carried.encode("billing", [full, *listed], KEY, 9)
    assert len(text) <= WHOLE_BYTES
    told = {one.key: one for one in decode(text, "billing", KEY, 9) if one.replayed}
    assert {key for key in keys if key[0] not in untold} == told.keys()
    for one in listed:
        if one.key in told:
            assert (told[one.key].status, told[one.key].source) == ("unobserved", "")
            assert all(told[one.key].runs.overlaps(at, at + 1) for at in (one.runs.bounds[0], one.runs.bounds[-1] - 1))
    assert not untold or len(keys) > 100


def unobserved(one: Carried) -> Carried:
    return Carried(one.key, "", 0, "unobserved", None, one.runs, one.replayed)


def test_partitions_of_one_topic_are_told_together_before_they_are_not_told() -> None:
    many = [row((at, at + 1), key=("events", at)) for at in range(0, 4_000, 2)]
    some = many[:150]
    assert decode(encode("billing", [full, *some[:8]], KEY, 9), "billing", KEY, 9) == [full, *map(unobserved, some[:8])]
    assert decode(encode("billing", [full, *some[:40]], KEY, 9), "billing", KEY, 9) == [full, *map(unobserved, some[:40])]
    together = decode(encode("billing", [full, *some], KEY, 9), "billing", KEY, 9)[1:]
    assert [(one.key, list(one.runs)) for one in together] == [(one.key, [(0, 299)]) for one in some]
    text, untold = carried.encode("billing", [full, *many], KEY, 9)
    assert untold == ["events"]
    assert [one.key for one in decode(text, "billing", KEY, 9)] == [KEY]


@pytest.mark.parametrize("text", [None, "", "mine", "{}", '{"offset":3}', encode("shipping", [row((1, 2))], KEY, 9)])
def test_what_somebody_else_wrote_is_left_alone(text: str | None) -> None:
    assert decode(text, "billing", KEY, 9) == []


def test_a_version_to_come_is_left_alone() -> None:
    assert decode('{"gapstream":2,"new":"shape"}', "billing", KEY, 9) == []


@pytest.mark.parametrize(
    "said",
    [
        "7",
        "[7]",
        '[["host"]]',
        '[["host",1,"received",null,[]]]',
        '[["host",1,"received",null,[5]]]',
        '[["host",1,"received",null,[5,0]]]',
        '[["host",1,"received",null,[5,2,-9,1]]]',
        '[["host",1,"received",null,["x",1]]]',
        '[["host",1,"received",null,[1e999,1]]]',
        '[["host",1,"received",null,[99999999999999999999,1]]]',
        '[[7,1,"received",null,[5,1]]]',
        '[["host",1,"received",null,[5,1],"orders","x"]]',
        '[],"rest":7',
        '[],"rest":{"orders":1}',
        '[],"rest":[["orders",7]]',
        '[],"rest":[["orders",[[[0,1],5]]]]',
        '[],"rest":[["orders",[[[0,1],5,0]]]]',
        '[],"rest":[["orders",[[[0,99999999],5,1]]]]',
        '[],"rest":[["orders",[[0,5,1]]]]',
        '[],"rest":[[7,[[[0,1],5,1]]]]',
    ],
)
def test_what_can_not_be_read_is_a_value_error(said: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any text will do, it is logged
        decode(f'{{"gapstream":1,"sink":"billing","said":{said}}}', "billing", KEY, 3)
    with pytest.raises(ValueError):  # noqa: PT011 - the same
        decode('{"gapstream":1,"sink":"billing"', "billing", KEY, 3)


@given(st.text(max_size=200))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        read = decode('{"gapstream":' + text, "billing", KEY, 3)
    except ValueError:
        return
    assert all(low < high for one in read for low, high in pairwise(one.runs.bounds))
