"""Many small batches read by columns: the same as one by one, whatever lies among them."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core.minutes import MINUTE_MS
from stream_app.kafka.batches import MANY, BatchParser
from stream_app.kafka.columns import hop, stretches
from stream_app.kafka.crcs import LARGEST
from stream_app.kafka.minutes import MinuteRuns
from tests.support.log_bytes import (
    ABORT,
    COMMIT,
    HORIZON,
    LOG_APPEND_TIME,
    T0,
    TRANSACTIONAL,
    batch,
    emptied,
    flip,
    legacy,
    marker,
    raw_batch,
    record,
)

FAR = 1 << 62
SLICE = 4096


def small(first: int, records: int = 1, *, time: int = T0, size: int = 5, **options: int) -> bytes:
    """A plain batch, made quickly."""
    body = b"".join(record(delta, value=b"v" * size) for delta in range(records))
    return raw_batch(first, body, count=records, delta=records - 1, base_time=time, max_time=time, **options)


class Parsed:
    """Everything that a parser tells."""

    def __init__(self, log: bytes, *, budget: int, **options: object) -> None:
        noted = MinuteRuns()
        known: dict[str, object] = {"position": 0, "bound": FAR, **options}
        epochs = known.pop("epochs", (-1, -1))
        parser = BatchParser(memoryview(log), 0, len(log), minutes=noted, **known)  # type: ignore[arg-type]  # of several types
        parser.expect_epochs(*epochs)  # type: ignore[misc]  # two ints
        self.steps = 0
        while not parser.step(budget):
            self.steps += 1
        names = ("next", "records", "markers", "aborted", "holes", "unreadable", "epoch", "epochs", "odd_epoch", "damage", "needed")
        self.told = {name: getattr(parser, name) for name in names}
        self.told |= {"low": parser.min_timestamp, "high": parser.max_timestamp, "minutes": noted.take()}


def assert_same(log: bytes, **options: object) -> dict[str, object]:
    """As one by one; returns what both tell."""
    expected = Parsed(log, budget=1, **options).told
    for budget in (SLICE, MANY, 10**9):
        assert Parsed(log, budget=budget, **options).told == expected
    return expected


def plain(stop: int, first: int = 0, **options: int) -> list[bytes]:
    return [small(at, **options) for at in range(first, stop)]


def test_plain_batches_are_one_stretch() -> None:
    log = memoryview(b"".join(plain(2000)))
    (only,) = stretches(log, hop(log, 0, len(log), SLICE), bound=FAR, check_crcs=True)
    assert (only.at, only.stop, only.batches, only.first, only.upto, only.plain) == (0, len(log), 2000, 0, 2000, True)
    assert (only.low, only.high, only.epoch, only.transactional) == (T0, T0, 0, False)


def test_all_of_them_are_read() -> None:
    told = assert_same(b"".join(plain(3000)))
    assert (told["records"], told["next"], told["low"], told["high"]) == ([(0, 3000)], 3000, T0, T0)


def test_large_batches_are_left_to_be_read_one_by_one() -> None:
    log = memoryview(b"".join(plain(4, size=2 * LARGEST)))
    assert hop(log, 0, len(log), SLICE) == []


def test_a_marker_for_each_hundred() -> None:
    log = [marker(at, 7) if at % 100 == 99 else small(at, attributes=TRANSACTIONAL, producer=7) for at in range(3000)]
    told = assert_same(b"".join(log))
    assert told["markers"] == [(at, at + 1) for at in range(99, 3000, 100)]


ODD: dict[str, Callable[[int], bytes]] = {
    "a marker": lambda at: marker(at, 7),
    "emptied": lambda at: emptied(at, at),
    "thinned out": lambda at: batch(at, at, keep=[]) + b"",
    "a delete horizon": lambda at: batch(at, at, attributes=HORIZON),
    "a wrong CRC": lambda at: flip(small(at), -1),
    "an unknown format": lambda at: small(at, magic=3),
    "an old format": lambda at: legacy(1, [at]),
    "a large batch": lambda at: small(at, size=3 * LARGEST),
    "a new epoch": lambda at: small(at, epoch=3),
    "another minute": lambda at: small(at, time=T0 + MINUTE_MS),
    "the time of its append": lambda at: raw_batch(
        at, record(0), count=1, delta=0, attributes=LOG_APPEND_TIME, base_time=5, max_time=T0 + 2 * MINUTE_MS
    ),
    "the time of its append, soon after that of its making": lambda at: raw_batch(
        at, record(0), count=1, delta=0, attributes=LOG_APPEND_TIME, base_time=T0 - 1000, max_time=T0
    ),
    "a delete horizon close by": lambda at: raw_batch(
        at, record(0, 1000), count=1, delta=0, attributes=HORIZON, base_time=T0 - 1000, max_time=T0
    ),
    "no time": lambda at: small(at, time=-1),
    "a claim of too many records": lambda at: raw_batch(at, record(0), count=2, delta=0),
    "a claim of none": lambda at: raw_batch(at, record(0), count=-1, delta=0),
    "a claim of less than none, in as many offsets": lambda at: raw_batch(at, record(0), count=-4, delta=-5),
    "a claim of none, in as many offsets": lambda at: raw_batch(at, b"", count=0, delta=-1, base_time=T0 - 1000),
    "a short length": lambda at: small(at)[:8] + bytes([0, 0, 0, 5]) + small(at)[12:],
    "no length": lambda at: small(at)[:8] + bytes(4),
    "a negative length": lambda at: small(at)[:8] + b"\xff\xff\xff\xf0" + small(at)[12:],
    "a length that leads far away": lambda at: small(at)[:8] + b"\x7f\xff\xff\xff" + small(at)[12:],
    "a hole": lambda at: b"",
}


@pytest.mark.parametrize("what", ODD)
def test_one_odd_batch_among_many(what: str) -> None:
    for at in (0, 1, 1500, 2999):
        log = [*plain(at), ODD[what](at), *plain(3000, at + 1)]
        assert_same(b"".join(log))
        assert_same(b"".join(log), condemned=at)
        assert_same(b"".join(log), check_crcs=False)


def test_a_wrong_crc_among_many_is_found() -> None:
    log = b"".join([*plain(1500), flip(small(1500), -1), *plain(3000, 1501)])
    told = assert_same(log)
    assert (told["next"], str(told["damage"])) == (1500, "Damage(base=1500, why='the CRC is wrong')")
    assert assert_same(log, condemned=1500)["unreadable"] == [(1500, 1501)]


@pytest.mark.parametrize("bound", [0, 1, 1700, 2999, 3000])
def test_nothing_at_or_above_the_bound_is_told(bound: int) -> None:
    assert assert_same(b"".join(plain(3000)), bound=bound)["next"] == bound


def test_a_position_within_the_log_and_within_a_batch() -> None:
    log = b"".join(small(at, 10) for at in range(0, 20_000, 10))
    assert assert_same(log, position=25)["records"] == [(25, 20_000)]


def test_a_batch_that_is_cut_off_is_asked_for() -> None:
    whole = b"".join(plain(3000))
    last = len(small(0))
    for cut in (1, last - 61, last - 12, last - 1):
        told = assert_same(whole[:-cut])
        assert told["next"] == 2999


def test_an_epoch_that_cant_be_is_told() -> None:
    log = b"".join([*plain(1000, epoch=2), *plain(3000, 1000, epoch=9)])
    told = assert_same(log, epochs=(2, 5))
    assert (told["odd_epoch"], told["epoch"]) == ((1000, 9), 2)


def test_an_aborted_transaction_among_plain_ones() -> None:
    log = [
        small(at, attributes=TRANSACTIONAL, producer=at % 3)
        if at % 100 < 97
        else marker(at, at % 100 - 97, ABORT if at == 1499 else COMMIT)
        for at in range(3000)
    ]
    # Producer 2 aborts what it wrote since its marker at 1399.
    told = assert_same(b"".join(log), aborted=[(2, 1400)])
    assert told["aborted"] == [(at, at + 1) for at in range(1400, 1497) if at % 3 == 2]


def test_an_aborted_transaction_that_begins_with_the_last_batch_of_a_stretch() -> None:
    log = [small(at, attributes=TRANSACTIONAL, producer=1 if at < 1499 else 2) for at in range(1500)]
    log += [marker(1500, 2, ABORT), marker(1501, 1), *plain(3000, 1502)]
    assert assert_same(b"".join(log), aborted=[(2, 1499)])["aborted"] == [(1499, 1500)]


def test_a_slice_that_decodes_much_ends_early_and_the_next_one_goes_on() -> None:
    log = b"".join(
        batch(at, at + 9, keep=range(at, at + 9)) if at % 3000 < 1500 else b"".join(plain(at + 10, at)) for at in range(0, 12_000, 10)
    )
    assert_same(log)
    assert Parsed(log, budget=MANY).steps > 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.data())
def test_whatever_lies_among_them(seed: int, data: st.DataObject) -> None:
    rng, numbers = random.Random(seed), count()
    rate = data.draw(st.sampled_from([0.0, 0.001, 0.02, 0.3]))
    parts, aborted, at, epoch, time = [], [], 0, 0, T0
    gentle = [name for name in ODD if "length" not in name and "wrong" not in name and "claim" not in name and "format" not in name]
    while next(numbers) < 1500:
        if rng.random() < rate:
            choice = rng.randrange(6)
            if choice == 0:
                at += rng.randrange(3)
            elif choice == 1:
                epoch += 1
            elif choice == 2:
                time += rng.randrange(-MINUTE_MS, 2 * MINUTE_MS)
            elif choice == 3:
                producer = rng.randrange(3)
                parts += [small(at, 2, attributes=TRANSACTIONAL, producer=producer), marker(at + 2, producer, ABORT, epoch=epoch)]
                aborted.append((producer, at))
                at += 3
            else:
                parts.append(ODD[rng.choice(gentle)](at))
                at += 1
        many = rng.choice([1, 1, 1, 2, 5])
        parts.append(small(at, many, time=time + rng.randrange(50), epoch=epoch, size=rng.randrange(200), producer=rng.randrange(-1, 2)))
        at += many
    log = b"".join(parts)
    if data.draw(st.booleans()):
        where = rng.randrange(len(log))
        log = flip(log, where)
    options: dict[str, object] = {
        "aborted": aborted,
        "bound": data.draw(st.sampled_from([FAR, at, at // 2])),
        "position": rng.randrange(20),
    }
    if data.draw(st.booleans()):
        options["condemned"] = rng.randrange(at)
    told = assert_same(log, **options)
    damage = told["damage"]
    if damage is not None:
        assert_same(log, **{**options, "condemned": damage.base})  # type: ignore[attr-defined]  # an object to the dict
