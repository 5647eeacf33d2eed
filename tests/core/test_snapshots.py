"""Sinks that say by snapshots what they have: what is concluded from what these lack, and when."""

from __future__ import annotations

import pytest

from stream_app.core import report
from stream_app.core.model import Cause, Observation, Run, Runs, Snapshot, Status
from stream_app.core.samples import Sample, keep
from stream_app.core.snapshots import TABLE_CHECK, Snapshots
from tests.core.strategies import BASE, GRACE, Rig, expand, policy

TABLE = "table:me"


class Table(Rig):
    """A sink ``s`` that is asked for all it has."""

    sequence = 0

    def check(
        self,
        *runs: Run,
        of: Run | None = None,
        at: int | None = None,
        doubled: tuple[Runs, ...] = (),
        maker: str | None = TABLE,
        claim: int | None = None,
    ) -> None:
        """One snapshot, of everything that was read."""
        first, stop = of or (0, self.ledger.log.read)
        snapshot = Snapshot(first, stop, 0, self.now if at is None else at, doubled)
        self.sequence += 1
        sequence = None if maker is None else self.sequence
        self.observe(*runs, source=maker, sequence=sequence, snapshot=snapshot, claim=claim)

    def missing(self, cause: Cause = Cause.NOT_RECEIVED) -> set[int]:
        """What is open, when all that is due was judged."""
        self.judge()
        return expand(self.sink().open[cause])

    def pass_grace(self, *, part: float = 1.0) -> None:
        """Time passes."""
        self.wait(round(GRACE * part))


@pytest.fixture
def table() -> Table:
    """Twenty records."""
    rig = Table()
    rig.read("record", 20)
    return rig


# --- what was never there -----------------------------------------------------------------------------------------------


def test_two_snapshots_that_agree_lie_behind_a_verdict(table: Table) -> None:
    table.check((0, 5), (7, 20))
    table.pass_grace(part=100)
    assert table.missing() == set(), "the table may be slow, and nobody has looked since"
    table.check((0, 5), (7, 20))
    assert table.missing() == {5, 6}
    assert table.types() == ["gap.opened"]


def test_snapshots_close_together_prove_nothing(table: Table) -> None:
    table.check((0, 5), (7, 20))
    for _ in range(3):
        table.pass_grace(part=0.3)
        table.check((0, 5), (7, 20))
    assert table.missing() == set()
    table.pass_grace(part=0.1)
    table.check((0, 5), (7, 20))
    assert table.missing() == {5, 6}


def test_what_comes_before_grace_is_over_was_late(table: Table) -> None:
    table.check((0, 5), (7, 20))
    table.pass_grace()
    table.check((0, 20))
    assert table.missing() == set()
    assert (table.sink().settled, table.types()) == (20, [])


def test_what_lies_above_the_last_row_is_lag(table: Table) -> None:
    for _ in range(3):
        table.check((0, 15))
        table.pass_grace()
    assert table.missing() == set()
    assert table.ledger.lag(table.sink()) == 5


def test_a_snapshot_that_does_not_cover_it_all_judges_as_far_as_it_does(table: Table) -> None:
    table.check((0, 5), (7, 12), (14, 20))
    table.pass_grace()
    table.check((0, 5), of=(0, 6))
    table.check((14, 20), of=(13, 20))
    assert table.missing() == {5}
    table.check((7, 12), of=(6, 13))
    assert table.missing() == {5, 6, 12, 13}, "three pieces of one check"


def test_pieces_of_two_checks_are_none_of_one(table: Table) -> None:
    table.check((0, 5), (7, 20))
    table.pass_grace()
    table.check((0, 5), of=(0, 6))
    table.pass_grace(part=0.1)
    table.check((7, 20), of=(7, 20))
    assert (table.missing(), table.sink().settled) == ({5}, 6)


def test_a_snapshot_that_comes_late_from_a_former_owner_changes_nothing(table: Table) -> None:
    begun = table.now
    table.check((0, 20))
    table.pass_grace()
    table.check((0, 20))
    table.check((0, 3), at=begun, claim=9)
    table.pass_grace()
    table.check((0, 3), at=begun + 1)
    assert (table.missing(), table.sink().claim) == (set(), None)
    table.check((0, 20))
    assert table.missing(Cause.VANISHED) == set()


def test_another_makers_clock_is_not_compared_with_the_former_ones(table: Table) -> None:
    table.check((0, 5), (7, 20))
    table.pass_grace(part=0.1)
    table.check((0, 5), (7, 20), maker="table:other", at=table.now + 50 * GRACE)
    assert table.missing() == set(), "its clock is ahead"
    table.pass_grace()
    table.check((0, 5), (7, 20), maker="table:other", at=table.now + 50 * GRACE)
    assert table.missing() == {5, 6}


def test_a_claim_is_judged_by_snapshots_too() -> None:
    table = Table({"s": policy(group="g")})
    table.read("record", 20)
    table.check((0, 5))
    table.observe(claim=10, source="group:g", sequence=0)
    table.pass_grace(part=0.9)
    table.check((0, 5), (6, 12))
    table.pass_grace(part=0.2)
    assert table.missing() == set()
    table.check((0, 5), (6, 12), of=(0, 12))
    assert table.missing() == {5}
    assert table.sink().settled == 10


def test_a_lower_claim_takes_back_what_was_due(table: Table) -> None:
    table.check((0, 5), (7, 20))
    table.pass_grace()
    table.check((0, 5), (7, 20))
    table.observe(claim=6, source="group:g", sequence=0)
    assert table.missing() == set()
    table.pass_grace()
    table.check((0, 5), (7, 20))
    assert table.missing() == {5}


def test_reports_of_a_sink_that_makes_snapshots_do_not_hurry_it(table: Table) -> None:
    table.check((0, 5))
    table.observe((7, 20))
    table.pass_grace(part=10)
    assert table.missing() == set()
    table.check((0, 5), (7, 20))
    assert table.missing() == {5, 6}


def test_a_table_that_is_none_any_more_is_judged_by_other_clocks() -> None:
    table = Table({"s": policy(checks=(TABLE_CHECK,))})
    table.read("record", 20)
    table.check((0, 5), (7, 20), doubled=(((2, 3),),))
    table.ledger.begin(table.now)
    table.pass_grace()
    assert table.missing() == set()
    table.ledger.configure({"s": policy()}, table.now)
    table.ledger.begin(table.now)
    table.pass_grace()
    assert table.missing() == {5, 6}
    table.check((0, 20), doubled=(((2, 3),),), maker="table:again")
    assert table.sink().duplicates == 1, "told already"


def test_snapshots_that_others_make_go_on_whoever_owns_the_partition(table: Table) -> None:
    table.check((0, 5), (7, 20), maker="theirs")
    table.ledger.begin(table.now)
    table.pass_grace()
    assert table.missing() == set()
    table.check((0, 5), (7, 20), maker="theirs")
    assert table.missing() == {5, 6}


def test_the_lowest_row_is_the_floor() -> None:
    table = Table({"s": policy(floor=None)})
    table.read("record", 20)
    for _ in range(2):
        table.check((4, 8), (9, 20))
        table.pass_grace()
    assert (table.missing(), table.sink().floor) == ({8}, 4)


def test_an_empty_table_is_heard_of(table: Table) -> None:
    table.check()
    assert (table.sink().heard, table.sink().horizon, table.sink().lowest) == (True, None, None)


def test_rows_that_arrive_after_all_fill_the_gap(table: Table) -> None:
    for _ in range(2):
        table.check((0, 5), (7, 20))
        table.pass_grace()
    assert table.missing() == {5, 6}
    table.check((5, 6), of=(0, 20))
    assert table.missing() == {6}
    assert table.types() == ["gap.opened", "gap.filled"]


# --- what was there -----------------------------------------------------------------------------------------------------


def settled(table: Table) -> Table:
    """All of it is judged as received."""
    for _ in range(2):
        table.check((0, 20))
        table.pass_grace()
    assert table.missing() == set()
    assert table.sink().settled == 20
    return table


def test_what_two_snapshots_lack_has_vanished(table: Table) -> None:
    settled(table).check((0, 3), (6, 20))
    table.pass_grace()
    table.check((0, 3), (6, 20))
    assert table.missing(Cause.VANISHED) == {3, 4, 5}
    assert table.types() == ["gap.opened"]
    table.check((0, 4), (6, 20))
    assert table.missing(Cause.VANISHED) == {4, 5}
    assert table.types() == ["gap.filled"]


def test_also_before_it_was_judged(table: Table) -> None:
    table.check((0, 20))
    table.check((0, 3), (6, 20), at=table.now + 1)
    table.pass_grace()
    table.check((0, 3), (6, 20), at=table.now + 1)
    assert table.missing(Cause.VANISHED) == {3, 4, 5}
    assert table.missing() == set()


def test_what_was_seen_between_did_not_vanish(table: Table) -> None:
    """A replica that lags answers now and then."""
    settled(table)
    for _ in range(6):
        table.check((0, 12))
        table.pass_grace(part=0.5)
        table.check((0, 20))
        table.pass_grace(part=0.5)
    assert table.missing(Cause.VANISHED) == set()


def test_a_snapshot_of_something_else_says_nothing_of_it(table: Table) -> None:
    settled(table).check((0, 3), (6, 20))
    table.pass_grace()
    table.check((10, 20), of=(10, 20))
    assert table.missing(Cause.VANISHED) == set()
    table.check((0, 3), of=(0, 10))
    assert table.missing(Cause.VANISHED) == {3, 4, 5, *range(6, 10)} - set(range(6, 10))


def test_what_vanishes_bit_by_bit_is_told_in_time(table: Table) -> None:
    """One more is lacking at each check; each is told within three graces and a check."""
    settled(table)
    since: dict[int, int] = {}
    step = GRACE // 4
    for gone in range(20):
        since[gone] = table.now
        table.check((gone + 1, 20))
        opened = table.missing(Cause.VANISHED)
        assert all(table.now - since[offset] >= GRACE for offset in opened)
        assert all(table.now - since[offset] < 3 * GRACE + 2 * step for offset in since if offset not in opened)
        table.wait(step)


def test_suspects_that_nobody_asks_for_again_hold_up_no_others(table: Table) -> None:
    settled(table).check((0, 1), of=(0, 10))
    for gone in range(20, 10, -1):  # one more at each check, so that none of the newer ones ever is old enough by itself
        table.pass_grace(part=0.5)
        table.check((10, gone), of=(10, 20))
    assert table.missing(Cause.VANISHED) >= {18, 19}


def test_a_sweep_of_something_else_does_not_make_suspects_younger(table: Table) -> None:
    settled(table).check((0, 19))
    table.pass_grace(part=0.9)
    table.check((0, 18))
    table.pass_grace(part=0.1)
    table.check((0, 5), of=(0, 5))
    table.pass_grace(part=0.1)
    table.check((0, 18))
    assert table.missing(Cause.VANISHED) == {19}


def test_what_another_maker_lacked_is_lacking_since_now(table: Table) -> None:
    settled(table).check((0, 3), (6, 20))
    table.check((0, 3), (6, 20), maker="table:other", at=table.now + 9 * GRACE)
    assert table.missing(Cause.VANISHED) == set()
    table.check((0, 3), (6, 20), maker="table:other", at=table.now + 10 * GRACE)
    assert table.missing(Cause.VANISHED) == {3, 4, 5}


def test_what_retention_took_is_not_judged(table: Table) -> None:
    settled(table).check((0, 3), (6, 20))
    table.read("record", 1, start=5)
    table.pass_grace()
    table.check((0, 3), (6, 21))
    assert table.missing(Cause.VANISHED) == {5}


def test_rows_put_aside_are_explained() -> None:
    table = Table()
    table.read("record", 10)
    for _ in range(2):
        table.check((0, 5), (7, 10))
        table.observe((5, 6), status=Status.QUARANTINED, reason="bad")
        table.pass_grace()
    assert table.missing() == {6}
    assert table.types() == ["gap.opened", "gap.explained"]


# --- doubled rows -------------------------------------------------------------------------------------------------------


def test_once_more_is_no_duplicate(table: Table) -> None:
    for _ in range(3):
        table.check((0, 20))
        table.pass_grace()
    assert (table.sink().observed, table.sink().duplicates, table.types()) == (20, 0, [])


def duplicates(table: Table) -> set[int]:
    """What is told of them now."""
    return {offset for event in table.flush() if event.type == "duplicate.detected" for offset in expand(event.ranges)}


@pytest.mark.parametrize("maker", [TABLE, None])
def test_rows_beyond_one_are_counted_and_told_once(table: Table, maker: str | None) -> None:
    for _ in range(3):
        table.check((0, 20), doubled=(((3, 6),), ((4, 5),)), maker=maker)
        table.pass_grace()
    assert (table.sink().duplicates, duplicates(table)) == (4, {3, 4, 5})
    table.pass_grace()
    table.check((0, 20), doubled=(((3, 7),), ((4, 6),), ((4, 5),)), maker=maker)
    assert (table.sink().duplicates, duplicates(table)) == (7, {4, 5, 6})
    table.pass_grace()
    table.check((0, 20), maker=maker)
    table.check((0, 20), doubled=(((3, 7),),), maker=maker, at=table.now + 1)
    assert (table.sink().duplicates, duplicates(table)) == (7, set()), "merged away, and back: it was told"


def test_a_doubled_row_of_a_record_that_is_not_read_yet_waits_for_the_log() -> None:
    table = Table()
    table.read("record", 5, ahead=10)
    table.check((0, 9), of=(0, 9), doubled=(((4, 9),), ((7, 9),)))
    assert (table.sink().duplicates, duplicates(table)) == (1, {4})
    table.wait(1_000)
    table.read(["record", "transaction_marker", "record", "aborted"])
    assert (table.sink().duplicates, duplicates(table)) == (4, {5, 7})
    table.check((0, 9), doubled=(((4, 9),), ((7, 9),)), of=(0, 9))
    assert (table.sink().duplicates, table.sink().absent_observed) == (4, 2)


def test_rows_of_what_holds_no_record_are_counted_once() -> None:
    table = Table()
    table.read(["record", "aborted", "record"])
    for _ in range(3):
        table.check((0, 3), doubled=(((1, 2),),))
    assert (table.sink().absent_observed, table.sink().duplicates, table.sink().observed) == (1, 0, 2)


def test_what_is_judged_and_gone_from_the_log_is_forgotten(table: Table) -> None:
    table.check((0, 20), doubled=(((3, 4), (15, 16)),))
    settled(table)
    table.read("record", 1, start=10)
    table.check((10, 21), of=(10, 21))
    assert expand(table.sink().snapshots.doubled[0]) == {15}


def test_a_row_shows_how_many_rows_were_found(table: Table) -> None:
    assert [row.rows for row in report.rows(table.ledger, table.now)] == [None, None]
    table.check((0, 18), doubled=(((3, 5),),))
    assert [row.rows for row in report.rows(table.ledger, table.now)] == [None, 20]


# --- clocks -------------------------------------------------------------------------------------------------------------


def test_a_worker_whose_clock_is_behind_puts_it_forward() -> None:
    known = Snapshots(last_ms=1_000)
    assert [known.begin(now) for now in (400, 500, 700)] == [1_001, 1_101, 1_301]
    assert Snapshots(last_ms=1_000).begin(5_000) == 5_000
    assert Snapshots().begin(7) == 7


def test_a_claim_is_not_older_than_by_that_clock() -> None:
    known = Snapshots(last_ms=1_000)
    known.begin(400)
    claim = Observation("s", (), claim=5)
    assert known.at_of(claim, 900) == 1_501
    assert Snapshots(last_ms=1_000).at_of(claim, 400) == 1_000
    assert Snapshots().at_of(claim, 400) == 0


def test_a_higher_horizon_is_not_older_than_a_lower_one() -> None:
    samples: list[Sample] = []
    for at, horizon in ((50, 1), (40, 2), (60, 3)):
        keep(samples, Sample(BASE + at, BASE + at, horizon, at), GRACE)
        keep(samples, Sample(BASE + 10 * at + GRACE, BASE, horizon, at), GRACE)
    assert [sample.at_ms for sample in samples] == sorted(sample.at_ms for sample in samples)
    assert samples[0].at_ms == 50
