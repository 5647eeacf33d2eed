"""Which records are too old to be judged by the rows of a table with a TTL, beside a rule that goes record by record."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from stream_app.core.minutes import MINUTE_MS
from stream_app.core.model import Look, Run, Runs
from stream_app.core.offsets import END, OffsetSet
from stream_app.service import ages as ages_module
from stream_app.service.ages import Ages
from tests.core.naive import runs_of
from tests.core.strategies import expand

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000


class Log:
    """Records with times that jump; ``upto``: how far a look gets."""

    def __init__(self, times: list[int]) -> None:
        self.times, self.upto, self.log_start = times, len(times), 0
        self.holes: set[int] = set()
        self.asked: list[Runs] = []

    async def offset_at(self, time_ms: int) -> int:
        return next((offset for offset, time in enumerate(self.times) if time >= time_ms and offset >= self.log_start), len(self.times))

    async def look(self, runs: Runs, older_than_ms: int) -> Look:
        self.asked.append(runs)
        offsets = {offset for first, stop in runs for offset in range(first, stop)}
        there = {offset for offset in offsets if offset >= self.log_start} - self.holes
        return Look(
            min(self.upto, runs[-1][1]),
            self.log_start,
            holes=runs_of(offsets & self.holes),
            older=runs_of(offset for offset in there if self.times[offset] < older_than_ms),
        )

    def minutes(self, runs: Iterable[Run]) -> Iterator[tuple[int, int, int]]:
        """As far as they are remembered: of even offsets."""
        for first, stop in runs:
            yield from ((self.times[offset] // MINUTE_MS, offset, offset + 1) for offset in range(first, stop) if offset % 2 == 0)

    async def renew(self, ages: Ages, keeps_ms: int | None = HOUR_MS, every_s: float = 0.0, former_ms: int | None = None) -> Ages:
        await ages.renew(keeps_ms, former_ms, every_s, NOW_MS, self.log_start, self.offset_at)
        return ages

    async def sort(self, ages: Ages, others: OffsetSet, received: OffsetSet | None = None) -> int:
        return await ages.sort(received or OffsetSet(), others, self.look, self.minutes)


async def test_each_record_is_judged_by_its_own_time() -> None:
    rng = random.Random(random.randrange(1 << 30))
    times = [NOW_MS - rng.randrange(2 * HOUR_MS) for _ in range(200)]
    log = Log(times)
    ages = await log.renew(Ages())
    lacking = OffsetSet(runs_of(rng.sample(range(200), 150)))
    assert await log.sort(ages, lacking) == END
    old = {offset for offset, time in enumerate(times) if time < NOW_MS - HOUR_MS + HOUR_MS // 10}
    assert (ages.start, ages.since) == (0, await log.offset_at(NOW_MS - HOUR_MS + HOUR_MS // 10))
    assert expand(ages.aged) == {offset for offset in expand(lacking) & old if offset >= ages.since}


async def test_what_was_looked_at_is_not_looked_at_again_before_it_is_due() -> None:
    log = Log([NOW_MS, NOW_MS - 2 * HOUR_MS, NOW_MS])
    ages = await log.renew(Ages(), every_s=300)
    everything = OffsetSet([(0, 3)])
    for _ in range(2):
        assert await log.sort(ages, everything) == END
        await log.renew(ages, every_s=300)
    assert log.asked == [((0, 3),)]
    await log.renew(ages, every_s=0.0)
    assert await log.sort(ages, everything) == END
    assert log.asked[1:] == [((0, 1), (2, 3))], "what is old stays so"
    assert expand(ages.aged) == {1}


async def test_another_ttl_counts_at_once_and_what_a_former_one_took_stays_away() -> None:
    log = Log([NOW_MS, *(NOW_MS - hours * HOUR_MS for hours in (1, 3, 5)), NOW_MS])
    ages, everything = await log.renew(Ages(), keeps_ms=4 * HOUR_MS, every_s=300), OffsetSet([(0, 5)])
    await log.sort(ages, everything)
    assert expand(ages.aged) == {3}
    await log.renew(ages, keeps_ms=2 * HOUR_MS, every_s=300)
    await log.sort(ages, everything)
    assert expand(ages.aged) == {2, 3}
    former_ms = ages.kept_from_ms
    for keeps_ms in (9 * HOUR_MS, None):
        taken_over = await log.renew(Ages(), keeps_ms=keeps_ms, former_ms=former_ms)
        await log.sort(taken_over, everything)
        assert (taken_over.kept_from_ms, expand(taken_over.aged)) == (former_ms, {2, 3})


async def test_of_what_is_in_kafka_no_more_nobody_knows_the_age_but_for_what_is_remembered() -> None:
    log = Log([NOW_MS] * 20)
    log.log_start, log.holes = 12, {14, 15, 16}
    ages = await log.renew(Ages())
    assert (ages.start, ages.since) == (12, 12), "what is below the log's start is not old for that"
    assert await log.sort(ages, OffsetSet([(6, 15)]), OffsetSet([(0, 6), (15, 18)])) == END
    assert expand(ages.aged) == {0, 1, 2, 3, 4, 5, 7, 9, 11, 15, 16}
    log.times[8] = NOW_MS - 2 * HOUR_MS
    await log.renew(ages)
    assert await log.sort(ages, OffsetSet([(6, 15)])) == END
    assert 8 in ages.aged


async def test_how_far_a_look_got_is_told() -> None:
    log = Log([NOW_MS] * 9)
    log.upto = 5
    ages, lacking = await log.renew(Ages(), every_s=300), OffsetSet([(1, 3), (4, 8)])
    assert await log.sort(ages, lacking) == 5
    log.upto = 9
    assert await log.sort(ages, lacking) == END
    assert log.asked[-1] == ((5, 8),)


async def test_looks_end_in_time_and_go_on_with_the_next_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ages_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(ages_module, "LOOK_RUNS_MAX", 2)
    log = Log([NOW_MS] * 9)
    ages, lacking = await log.renew(Ages(), every_s=300), OffsetSet([(1, 2), (3, 4), (5, 6), (7, 8)])
    assert [await log.sort(ages, lacking) for _ in range(2)] == [5, END]
    assert log.asked == [((1, 2), (3, 4)), ((5, 6), (7, 8))]


async def test_where_there_never_was_a_ttl_nothing_is_looked_at() -> None:
    log = Log([0] * 5)
    ages = await log.renew(Ages(), keeps_ms=None)
    assert await log.sort(ages, OffsetSet([(0, 5)])) == END
    assert (log.asked, ages.kept_from_ms, ages.since, ages.aged.count) == ([], None, 0, 0)
