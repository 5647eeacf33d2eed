"""Lines into observations: nothing lost, nothing doubled, and never two a second where lines come in order."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.cli import reports
from stream_app.cli.reports import INTERVAL_S, LINE_BYTES_MAX, RUNS_MAX, BadLine, Lines, Report, Reports, coordinates, json_fields, plain


def made(*, numbered: bool = False) -> Reports:
    return Reports("billing", "me", numbered=numbered)


def gather(told: Reports, *offsets: int, now: float = 0.0, partition: int = 3) -> None:
    for offset in offsets:
        told.gather(told.of("orders", partition), offset, offset + 1, now)


def said(taken: list[Report]) -> list[dict[str, Any]]:
    return [json.loads(report.value) for report in taken]


def taken(told: Reports, now: float | None) -> list[Report]:
    return list(told.take(now))


# --- plain lines --------------------------------------------------------------------------------------------------------


def test_what_is_gathered_becomes_one_observation() -> None:
    told = made()
    gather(told, 5, 6, 7, 10)
    (report,) = taken(told, 0.0)
    assert (report.topic, report.partition, report.lines, report.line) == ("orders", 3, 4, None)
    assert json.loads(report.value) == {
        "v": 1,
        "sink": "billing",
        "topic": "orders",
        "partition": 3,
        "runs": [[5, 7], [10, 10]],
        "status": "received",
        "source": "me",
        "sequence": 0,
    }


def test_the_first_line_leaves_at_once_and_the_next_ones_a_second_later() -> None:
    told = made()
    gather(told, 1, now=10.0)
    assert told.next_due == 10.0
    assert len(taken(told, 10.0)) == 1
    assert told.next_due is None
    gather(told, 2, now=10.1)
    gather(told, 3, now=10.9)
    assert told.next_due == 10.0 + INTERVAL_S
    assert taken(told, 10.9) == []
    assert [one["runs"] for one in said(taken(told, 11.0))] == [[[2, 3]]]
    gather(told, 4, now=20.0)
    assert len(taken(told, 20.0)) == 1, "whoever was silent for a second does not wait"


@given(st.lists(st.integers(0, 400), max_size=60))
def test_lines_in_order_are_one_observation_a_second_and_none_waits_longer(gaps: list[int]) -> None:
    told, now = made(), 0.0
    came: dict[int, float] = {}
    sent: list[float] = []
    for offset, gap in enumerate(gaps):
        until = now + gap / 1024  # so that sums are exact
        while told.next_due is not None and told.next_due <= until:  # the loop wakes when something is due
            now = max(now, told.next_due)
            for one in said(taken(told, now)):
                sent.append(now)
                assert all(now - came[observed] <= INTERVAL_S for first, last in one["runs"] for observed in range(first, last + 1))
        now = until
        came[offset] = now
        gather(told, offset, now=now)
    assert all(later - earlier >= INTERVAL_S for earlier, later in itertools.pairwise(sent))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(1, 4), st.booleans()), max_size=80))
def test_every_line_counts_as_often_as_it_was_said(lines: list[tuple[int, int, int, bool]]) -> None:
    told, now, wanted, found = made(), 0.0, Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    sequences: dict[int, list[int]] = {0: [], 1: []}
    reports: list[Report] = []
    for partition, first, count, send in lines:
        told.gather(told.of("orders", partition), first, first + count, now)
        wanted.update((partition, offset) for offset in range(first, first + count))
        if send:
            now += 1.0
            reports += taken(told, now)
    reports += taken(told, None)
    assert (told.size, told.lines, told.next_due, sum(report.lines for report in reports)) == (0, 0, None, len(lines))
    for one in said(reports):
        sequences[one["partition"]].append(one["sequence"])
        found.update((one["partition"], offset) for first, last in one["runs"] for offset in range(first, last + 1))
    assert found == wanted
    assert all(numbers == list(range(len(numbers))) for numbers in sequences.values())


def test_a_repeat_is_told_once_more_and_repeats_share_observations() -> None:
    told = made()
    gather(told, 1, 1, 2, 2, 3, 3, 4)
    assert [one["runs"] for one in said(taken(told, 0.0))] == [[[1, 4]], [[1, 3]]]


def test_many_runs_become_several_observations() -> None:
    told = made()
    gather(told, *range(0, 2 * RUNS_MAX + 2, 2))
    first, second = said(taken(told, 0.0))
    assert (len(first["runs"]), len(second["runs"]), second["sequence"]) == (RUNS_MAX, 1, 1)


def test_size_follows_the_runs() -> None:
    told = made()
    gather(told, 1)
    one_run = told.size
    gather(told, *range(2, 1_000))
    assert told.size == one_run, "lines in order cost nothing"
    gather(told, *range(2_000, 4_000, 2))
    assert told.size >= one_run + 16 * 999


# --- lines of JSON ------------------------------------------------------------------------------------------------------


def add(told: Reports, *, line: int = 1, now: float = 0.0, **fields: Any) -> bool:
    known = {"v": 1, "sink": "billing", "topic": "orders", "partition": 3, "runs": [[1, 2]], **fields}
    told.check(known, told.of("orders", 3))
    return told.add(known, line, told.of("orders", 3), now)


def test_a_line_of_json_is_an_observation_and_leaves_at_once_in_its_place() -> None:
    told = made()
    gather(told, 1)
    taken(told, 0.0)
    gather(told, 5, 6, now=0.1)
    assert add(told, claim=9, runs=None, line=7, now=0.2, unheard_of=[1])
    gather(told, 9, now=0.2)
    assert told.next_due == 0.2
    reports = taken(told, 0.2)
    assert [(one.get("runs"), one.get("claim"), one["sequence"], one["source"]) for one in said(reports)] == [
        ([[5, 6]], None, 1, "me"),
        (None, 9, 2, "me"),
        ([[9, 9]], None, 3, "me"),
    ]
    assert said(reports)[1]["unheard_of"] == [1]
    assert [report.line for report in reports] == [None, 7, None]


def test_sequences_of_a_named_source_are_kept_and_what_does_not_rise_is_said() -> None:
    told = made(numbered=True)
    assert [add(told, source="nightly", sequence=number) for number in (0, 5, 5, 3, 6)] == [True, True, False, False, True]
    assert [one["sequence"] for one in said(taken(told, 0.0))] == [0, 5, 5, 3, 6]


def test_what_is_no_observation_changes_nothing() -> None:
    told = made()
    with pytest.raises(BadLine, match=r"malformed: run \[5, 1\] is out of order"):
        add(told, runs=[[5, 1]])
    assert (told.size, told.lines, told.next_due) == (0, 0, None)
    assert add(told)
    assert said(taken(told, 0.0))[0]["sequence"] == 0


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"{", "no JSON of an observation"),
        (b'{"v":1}', "malformed"),
        (b'{"topic":1,"partition":0}', "malformed"),
        (b'{"topic":"t","partition":"0"}', "malformed"),
        (b'{"topic":"t","partition":0,"sink":"other"}', "its sink is 'other', not 'billing' as --sink says"),
        (b'{"topic":"t","partition":0,"source":"other","sequence":1}', "its source is 'other', not 'nightly' as --source says"),
        (b'{"topic":"t","partition":0}', "it has no sequence"),
        (b'{"topic":"t","partition":0,"sequence":null}', "it has no sequence"),
        (b'{"topic":"t","partition":0,"sequence":1e999}', "no JSON of an observation"),
        (b'{"a":' * 50_000, "no JSON of an observation"),
    ],
)
def test_lines_of_json_that_are_wrong(line: bytes, wrong: str) -> None:
    with pytest.raises(BadLine) as error:
        json_fields(line, "billing", "nightly")
    assert wrong in str(error.value)


def test_sink_and_source_are_filled_in() -> None:
    fields = json_fields(b'{"topic":"t","partition":0,"sequence":1,"source":null}', "billing", "nightly")
    assert fields == {"topic": "t", "partition": 0, "sequence": 1, "sink": "billing", "source": "nightly"}
    assert json_fields(b'{"topic":"t","partition":0,"source":"x"}', "billing", None)["source"] == "x"


# --- text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"orders 3 5", ("orders", 3, 5, 6)),
        (b"  orders\t3  5 9\r", ("orders", 3, 5, 10)),
        (b"orders 03 9223372036854775806", ("orders", 3, 2**63 - 2, 2**63 - 1)),
    ],
)
def test_plain_lines(line: bytes, found: tuple[str, int, int, int]) -> None:
    one = plain(line)
    assert (*coordinates(one), one.first, one.stop) == found


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"orders 3", "it has 2 fields"),
        (b"orders 3 1 2 3", "it has 5 fields"),
        (b"orders 3 -1", "'-1' is no offset"),
        (b"orders 3 1_0", "'1_0' is no offset"),
        (b"orders 3 9223372036854775807", "is no offset"),
        (b"orders 3 00000000000000000001", "is no offset"),
        (b"orders 3 5 4", "the last offset 4 is below the first, 5"),
        (b"orders +3 5", "'+3' is no partition"),
        (b"orders 12345678901 5", "is no partition"),
        (b"\xff 3 5", "is no topic's name"),
    ],
)
def test_plain_lines_that_are_wrong(line: bytes, wrong: str) -> None:
    with pytest.raises(BadLine) as error:
        coordinates(plain(line))
    assert wrong in str(error.value)


@given(st.lists(st.sampled_from([b"", b"a", b"bc", b"def"]), max_size=12), st.lists(st.integers(1, 7), max_size=20), st.booleans())
def test_lines_are_the_same_however_they_come(pieces: list[bytes], cuts: list[int], ended: bool) -> None:
    stream = b"\n".join(pieces) + (b"\n" if ended else b"")
    lines, rest = Lines(), stream
    found: list[tuple[int, bytes | None]] = []
    for cut in cuts:
        found += lines.feed(rest[:cut])
        rest = rest[cut:]
    found += [*lines.feed(rest), *lines.end()]
    wanted = stream.split(b"\n")
    assert found == list(enumerate(wanted if wanted[-1] else wanted[:-1], 1))


@pytest.mark.parametrize("piece", [1_000, LINE_BYTES_MAX + 1])
def test_a_line_without_end_is_not_kept(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "LINE_BYTES_MAX", 5_000)
    lines = Lines()
    found: list[tuple[int, bytes | None]] = []
    stream = b"a\n" + b"x" * 20_000 + b"\n" + b"y" * 5_000 + b"\n" + b"z" * 5_001
    for begin in range(0, len(stream), piece):
        found += lines.feed(stream[begin : begin + piece])
        assert len(lines._rest) <= 5_000
    assert [*found, *lines.end()] == [(1, b"a"), (2, None), (3, b"y" * 5_000), (4, None)]
