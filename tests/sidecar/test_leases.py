"""What owners say beforehand, and what nobody can tell of those that are gone."""

from __future__ import annotations

import json

import pytest

from gapstream_sidecar.leases import LEAST, Lease, Session, sessions, unknown


def said(source: str, told: int, upto: int, sink: str = "billing") -> bytes:
    return json.dumps({"sink": sink, "runs": [], "source": source, "ahead": [told, upto]}, separators=(",", ":")).encode()


def test_the_last_statement_of_each_owner_counts() -> None:
    values = [
        said("one", 10, 100),
        said("one", 40, 140),
        said("shop", 999, 9_999, sink="shipping"),
        None,
        b'{"sink":"billing","source":"two","runs":[[1,2]]}',
        b'"ahead":[ not json',
        b'{"sink":"billing","source":"three","ahead":[1]}',
        b'{"sink":"billing","source":"three","ahead":["x",{}]}',
        said("own", 60, 160),
        said("two", 50, 150),
        said("one", 30, 120),  # went back: what it has told, it has told
    ]
    assert sessions(values, "billing", "own") == [Session("one", 10, 40, 60), Session("two", 50, 50, 150)]  # 60: one's own began


def test_an_owner_that_comes_back_is_another_one() -> None:
    values = [said("one", 0, 10_000), said("one", 100, 100), said("two", 100, 10_100), said("two", 200, 200), said("one", 200, 10_200)]
    owners = sessions(values, "billing", "own")
    assert owners == [Session("one", 0, 100, 100), Session("two", 100, 200, 200), Session("one", 200, 200, 10_200)]
    assert unknown(owners, 310) == [(200, 310)]


def test_a_late_statement_is_no_return() -> None:
    values = [said("one", 0, 10_000), said("two", 100, 10_100), said("one", 80, 10_080), said("two", 180, 10_180)]
    owners = sessions(values, "billing", "own")
    assert owners == [Session("one", 0, 80, 10_080), Session("two", 100, 180, 10_180)]
    assert unknown(owners, 200) == [(80, 100), (180, 200)]


@pytest.mark.parametrize(
    ("owners", "begins", "runs"),
    [
        ([], 100, []),
        ([Session("a", 0, 90, 190)], 100, [(90, 100)]),
        ([Session("a", 0, 90, 95)], 100, [(90, 95)]),
        ([Session("a", 0, 90, 90)], 100, []),  # it has said that there is no more
        ([Session("a", 0, 90, 190)], 90, []),
        ([Session("a", 0, 90, 190)], 20, []),  # it begins anew
        ([Session("a", 0, 90, 190), Session("b", 95, 95, 195)], 100, [(90, 95), (95, 100)]),
        ([Session("a", 0, 90, 190), Session("b", 95, 120, 220)], 130, [(90, 95), (120, 130)]),
    ],
)
def test_what_nobody_can_tell_lies_between_what_was_told_and_where_the_next_begins(
    owners: list[Session], begins: int, runs: list[tuple[int, int]]
) -> None:
    assert unknown(owners, begins) == runs


def test_a_lease_grows_with_the_speed() -> None:
    lease = Lease(100)
    lease.outrun(101)
    assert lease.ahead == (100, 101 + LEAST)
    lease.outrun(50_101)
    assert lease.ahead == (100, 150_101)
    assert not lease.renew(60_000, 150_101)
    assert lease.renew(110_000, 150_101)
    assert lease.ahead == (100, 210_000)
    assert not lease.renew(140_000, 150_101)  # that is said, and not acknowledged yet
    assert lease.upto == 150_101
    assert not lease.renew(140_000, 210_000)
    assert lease.upto == 210_000
