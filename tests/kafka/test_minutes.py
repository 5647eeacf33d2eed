"""Record times to runs by minute: hand-made batches against decoding every record of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.core.minutes import MINUTE_MS
from stream_app.core.model import Timed
from stream_app.kafka import minutes as minutes_module
from stream_app.kafka.batches import BatchParser, whole_batches
from stream_app.kafka.minutes import DECODED_MAX, LAST_MS, RUNS_MAX, SAVED, Allowance, MinuteRuns, join_minutes
from tests.support.log_bytes import ABORT, COMMIT, CONTROL, GZIP, LOG_APPEND_TIME, TRANSACTIONAL, compress, marker, raw_batch, record

START = 28_333_333 * MINUTE_MS
FAR = 1 << 40


def timed_batch(first: int, times: Sequence[int], *, codec: int = 0, attributes: int = 0, producer: int = -1) -> bytes:
    """One record for each of ``times``; the header has the first and the highest, as producers write it."""
    body = b"".join(record(number, ms - times[0]) for number, ms in enumerate(times))
    known = {"count": len(times), "delta": len(times) - 1, "base_time": times[0], "max_time": max(times), "producer": producer}
    return raw_batch(first, compress(codec, body), attributes=attributes | codec, **known)


def parse(
    log: bytes,
    *,
    position: int = 0,
    since: int = 0,
    until: int = LAST_MS,
    allowance: Allowance | None = None,
    budget: int = 10_000,
    aborted: Sequence[tuple[int, int]] = (),
) -> BatchParser:
    known = {"position": position, "bound": FAR, "aborted": aborted, "minutes": MinuteRuns(since, allowance, until)}
    parser = BatchParser(memoryview(log), 0, len(log), **known)  # type: ignore[arg-type]  # of several types
    while not parser.step(budget):
        pass
    return parser


def told(timed: Iterable[Timed]) -> list[tuple[int, int | None, int, int]]:
    """First offset, minute, lowest and highest time, of those with a minute, from :data:`START` on."""
    minute = START // MINUTE_MS
    return [(one.first, one.minute - minute, one.low_ms - START, one.high_ms - START) for one in timed if one.minute is not None]


def test_batches_of_one_minute_are_one_run() -> None:
    log = timed_batch(0, [START + 5, START + 7]) + timed_batch(2, [START + 6]) + timed_batch(3, [START + MINUTE_MS, START + MINUTE_MS + 9])
    assert told(parse(log).minutes.take()) == [(0, 0, 5, 7), (3, 1, 60_000, 60_009)]


@pytest.mark.parametrize("codec", [0, GZIP])
def test_a_batch_that_spans_minutes_is_decoded(codec: int) -> None:
    times = [START + 59_000, START + 59_999, START + 60_000, START + 3 * 60_000]
    log = timed_batch(0, [START]) + timed_batch(1, times, codec=codec) + timed_batch(5, [START + 3 * 60_000 + 1])
    assert told(parse(log).minutes.take()) == [(0, 0, 0, 59_999), (3, 1, 60_000, 60_000), (4, 3, 180_000, 180_001)]


def test_of_a_batch_that_begins_below_the_position_the_rest_counts() -> None:
    log = timed_batch(0, [START, START + 1, START + 60_000, START + 60_001])
    assert told(parse(log, position=3).minutes.take()) == [(3, 1, 60_001, 60_001)]


def test_append_time_is_never_decoded() -> None:
    allowance = Allowance()
    log = timed_batch(0, [START, START + 60_000], attributes=LOG_APPEND_TIME)
    assert told(parse(log, allowance=allowance).minutes.take()) == [(0, 1, 60_000, 60_000)]
    assert allowance.left == DECODED_MAX


def test_times_that_jump_back_have_runs_of_their_own() -> None:
    log = b"".join(timed_batch(number, [START + ms]) for number, ms in enumerate((0, 60_000, 59_999, 60_001)))
    assert [one[:2] for one in told(parse(log).minutes.take())] == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_records_without_a_time_and_of_long_ago_are_of_no_minute() -> None:
    log = timed_batch(0, [START]) + timed_batch(1, [-1]) + timed_batch(2, [-1]) + timed_batch(3, [77]) + timed_batch(4, [START + 60_000])
    got = parse(log, since=START)
    assert got.minutes.take() == (
        Timed(0, START // MINUTE_MS, START, START),
        Timed(1, None),
        Timed(4, START // MINUTE_MS + 1, START + 60_000, START + 60_000),
    )
    assert (got.min_timestamp, got.max_timestamp) == (77, START + 60_000)


@pytest.mark.parametrize("factor", [1_000, 1_000_000])
def test_times_in_another_unit_are_of_no_minute(factor: int) -> None:
    """Microseconds or nanoseconds for milliseconds: what nobody can write down must not get into the state or the answers."""
    far = START * factor
    log = timed_batch(0, [START]) + timed_batch(1, [far, far + 60_000]) + timed_batch(3, [far + 60_001]) + timed_batch(4, [77])
    log += timed_batch(5, [far]) + timed_batch(6, [START + 5])
    allowance = Allowance()
    got = parse(log, since=START, allowance=allowance)
    assert got.minutes.take() == (
        Timed(0, START // MINUTE_MS, START, START),
        Timed(1, None),
        Timed(6, START // MINUTE_MS, START + 5, START + 5),
    )
    assert allowance.left == DECODED_MAX
    assert (got.min_timestamp, got.max_timestamp) == (77, far + 60_001)


def test_times_far_ahead_are_of_no_minute_by_whole_minutes() -> None:
    log = timed_batch(0, [START + 59_999, START + 60_000]) + timed_batch(2, [START + 60_001]) + timed_batch(3, [START + 59_000])
    wanted = [(0, 0, 59_999, 59_999), (3, 0, 59_000, 59_000)]
    for until in (START + 60_000, START + 119_999):
        assert told(parse(log, until=until).minutes.take()) == wanted


def test_long_ago_costs_no_decoding() -> None:
    allowance = Allowance()
    log = b"".join(timed_batch(2 * number, [START + number * 60_000, START + number * 60_000 + 60_000]) for number in range(20))
    assert parse(log, since=START + 90 * 60_000, allowance=allowance).minutes.take() == (Timed(0, None),)
    assert allowance.left == DECODED_MAX


def test_aborted_records_and_markers_have_no_times() -> None:
    log = timed_batch(0, [START]) + timed_batch(1, [START + 60_000], attributes=TRANSACTIONAL, producer=5) + marker(2, 5, ABORT)
    log += timed_batch(3, [START + 9], attributes=TRANSACTIONAL, producer=5) + marker(4, 5, COMMIT)
    assert told(parse(log, aborted=[(5, 1)]).minutes.take()) == [(0, 0, 0, 9)]
    assert TRANSACTIONAL & CONTROL == 0


def test_what_can_not_be_decoded_counts_by_its_header() -> None:
    log = raw_batch(0, b"nonsense", count=2, delta=1, base_time=START, max_time=START + 60_000)
    got = parse(log)
    assert (told(got.minutes.take()), got.damage, got.records) == ([(0, 1, 0, 60_000)], None, [(0, 2)])


# --- bounds ---


def test_decoding_is_bounded_and_what_is_read_pays_for_it() -> None:
    allowance = Allowance()
    allowance.left = 3
    spanning = timed_batch(0, [START, START + 1, START + 60_000])
    assert len(parse(spanning, allowance=allowance).minutes.take()) == 2
    assert told(parse(spanning, allowance=allowance).minutes.take()) == [(0, 1, 0, 60_000)], "by its last record's"
    allowance.earn(3 * SAVED)
    assert len(parse(spanning, allowance=allowance).minutes.take()) == 2
    allowance.earn(1 << 60)
    assert allowance.left == DECODED_MAX


def test_the_runs_of_an_answer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes_module, "RUNS_MAX", 4)
    log = b"".join(timed_batch(number, [START + number % 2 * 60_000 + number]) for number in range(50))
    got = parse(log)
    runs = got.minutes.take()
    assert [one.first for one in runs] == [0, 1, 2, 3, 4]
    assert runs[-1].high_ms == START + 60_049
    assert (got.min_timestamp, got.max_timestamp) == (START, START + 60_049)
    assert RUNS_MAX > 4


# --- any log ---


def any_log(seed: int) -> tuple[bytes, dict[int, int]]:
    """Batches of all sizes whose times rise within the batch and jump between batches; the time of each record."""
    dice, log, times, at = random.Random(seed), b"", dict[int, int](), 0
    now = START
    for _ in range(30):
        now += dice.choice([0, 5, 20_000, 70_000, -30_000])
        each = sorted(now + dice.randrange(dice.choice([10, 100_000])) for _ in range(dice.randrange(1, 9)))
        log += timed_batch(at, each, codec=dice.choice([0, GZIP]))
        times |= dict(enumerate(each, at))
        at += len(each)
    return log, times


def spread(timed: Sequence[Timed], stop: int) -> dict[int, int | None]:
    """The minute of each offset."""
    edges = [*(one.first for one in timed[1:]), stop]
    return {offset: one.minute for one, edge in zip(timed, edges, strict=True) for offset in range(one.first, edge)}


@settings(max_examples=150)
@given(st.integers(0, 10_000), st.integers(1, 40), st.data())
def test_any_log_gives_what_decoding_all_of_it_gives(seed: int, budget: int, data: st.DataObject) -> None:
    log, times = any_log(seed)
    whole = parse(log, budget=budget).minutes.take()
    assert spread(whole, len(times)) == {offset: ms // MINUTE_MS for offset, ms in times.items()}
    for one, stop in zip(whole, [*(one.first for one in whole[1:]), len(times)], strict=True):
        inside = [times[offset] for offset in range(one.first, stop)]
        assert (one.low_ms, one.high_ms) == (min(inside), max(inside))
    cut = data.draw(st.integers(0, len(log)))
    first = parse(log[:cut])
    start = next((one.at for one in whole_batches(memoryview(log), 0, len(log)) if one.base + one.delta >= first.next), len(log))
    second = parse(log[start:], position=first.next)
    assert join_minutes(first.minutes.take(), second.minutes.take()) == whole


def test_joining_with_nothing() -> None:
    some = (Timed(0, 5, 300_000, 300_001),)
    assert join_minutes((), some) == join_minutes(some, ()) == some
    assert join_minutes(some, (Timed(9, None),)) == (*some, Timed(9, None))
