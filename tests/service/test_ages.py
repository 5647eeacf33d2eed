"""Which records are too old to be judged by the rows of a table with a TTL, beside a rule that goes record by record."""

from __future__ import annotations

import random

from stream_app.core.model import Look, Runs
from stream_app.core.offsets import END, OffsetSet
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
        return next((offset for offset, time in enumerate(self.times) if time >= time_ms), len(self.times))

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


async def made(log: Log, keeps_ms: int | None = HOUR_MS, every_s: float = 0.0) -> Ages:
    ages = Ages()
    await ages.renew(keeps_ms, every_s, NOW_MS, log.offset_at)
    return ages


async def test_each_record_is_judged_by_its_own_time() -> None:
    rng = random.Random(random.randrange(1 << 30))
    times = [NOW_MS - rng.randrange(2 * HOUR_MS) for _ in range(200)]
    log = Log(times)
    ages = await made(log)
    lacking = OffsetSet(runs_of(rng.sample(range(200), 150)))
    assert ages.matter
    assert await ages.sort(lacking, OffsetSet(), log.look) == END
    old = {offset for offset, time in enumerate(times) if time < NOW_MS - HOUR_MS + HOUR_MS // 10}
    assert ages.since == await log.offset_at(NOW_MS - HOUR_MS + HOUR_MS // 10)
    assert expand(ages.aged) == {offset for offset in expand(lacking) & old if offset >= ages.since}


async def test_what_was_looked_at_is_not_looked_at_again_before_it_is_due() -> None:
    log = Log([NOW_MS, NOW_MS - 2 * HOUR_MS, NOW_MS])
    ages = await made(log, every_s=300)
    everything = OffsetSet([(0, 3)])
    for _ in range(2):
        assert await ages.sort(everything, OffsetSet(), log.look) == END
        await ages.renew(HOUR_MS, 300, NOW_MS, log.offset_at)
    assert log.asked == [((0, 3),)]
    await ages.renew(HOUR_MS, 0.0, NOW_MS, log.offset_at)
    assert await ages.sort(everything, OffsetSet(), log.look) == END
    assert log.asked[1:] == [((0, 1), (2, 3))], "what is old stays so"
    assert expand(ages.aged) == {1}


async def test_what_is_in_kafka_no_more_is_judged_only_if_it_never_came() -> None:
    log = Log([NOW_MS] * 9)
    log.log_start, log.holes = 2, {4, 5}
    ages = await made(log)
    assert await ages.sort(OffsetSet([(0, 8)]), OffsetSet([(0, 5)]), log.look) == END
    assert expand(ages.aged) == {0, 1, 4}


async def test_how_far_a_look_got_is_told() -> None:
    log = Log([NOW_MS] * 9)
    log.upto = 5
    ages = await made(log)
    assert await ages.sort(OffsetSet([(1, 3), (4, 8)]), OffsetSet(), log.look) == 5
    log.upto = 9
    assert await ages.sort(OffsetSet([(1, 3), (4, 8)]), OffsetSet(), log.look) == END
    assert log.asked[-1] == ((5, 8),)


async def test_without_a_ttl_nothing_is_looked_at() -> None:
    log = Log([0] * 5)
    ages = await made(log)
    assert ages.since == 5
    await ages.renew(None, 0.0, NOW_MS, log.offset_at)
    assert not ages.matter
    assert await ages.sort(OffsetSet([(0, 5)]), OffsetSet(), log.look) == END
    assert (log.asked, ages.since, ages.aged.count) == ([], 0, 0)
