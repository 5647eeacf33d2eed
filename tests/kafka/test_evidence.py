"""What a refused position means: the whole table."""

from __future__ import annotations

import itertools

import pytest

from stream_app.core.model import LogEnds
from stream_app.kafka.evidence import BELIEVE_S, BELIEVE_WITHOUT_EPOCHS_S, REFUSALS_MIN, Ours, Theirs, Verdict, judge

MANY, LONG = 1_000, 1e9
FULL, SHORT, TRIMMED = LogEnds(0, 60, 60), LogEnds(0, 30, 30), LogEnds(55, 60, 60)
GOES_ON, PARTS, PARTS_OLDER = (3, 60), (3, 30), (1, 90)
"""What the leader says of epoch 3."""


def verdict(
    *,
    epoch: int = 3,
    read_under: int = 4,
    leader: int = 5,
    ends: LogEnds = SHORT,
    told: tuple[int, int] | None = PARTS,
    seconds: float = 0.0,
    refusals: int = 1,
) -> Verdict:
    return judge(Ours(50, epoch, read_under), Theirs(leader, ends, told), seconds, refusals)


@pytest.mark.parametrize("told", [PARTS, PARTS_OLDER])
def test_a_newer_leader_whose_epochs_part_from_ours_is_believed_at_once(told: tuple[int, int]) -> None:
    assert verdict(told=told) is Verdict.TRUNCATED
    assert verdict(told=told, ends=FULL) is Verdict.TRUNCATED
    assert verdict(told=told, read_under=-1, leader=4) is Verdict.TRUNCATED


@pytest.mark.parametrize("ends", [FULL, SHORT])
@pytest.mark.parametrize("told", [PARTS, PARTS_OLDER, (3, 49), (3, 0), (0, 0), None])
@pytest.mark.parametrize(("epoch", "read_under"), [(3, 5), (5, -1), (5, 5), (3, 7)])
def test_a_leader_that_is_not_newer_is_never_believed(ends: LogEnds, told: tuple[int, int] | None, epoch: int, read_under: int) -> None:
    """An end falls within a leader epoch in broken brokers only: zeros, and ends off by one."""
    found = verdict(epoch=epoch, read_under=read_under, leader=5, ends=ends, told=told, seconds=LONG, refusals=MANY)
    assert found is (Verdict.HERE if told is None and ends is FULL else Verdict.DOUBTFUL)


def test_nor_is_it_where_the_epoch_of_our_last_record_is_unknown() -> None:
    assert verdict(epoch=-1, read_under=5, told=None, seconds=LONG, refusals=MANY) is Verdict.DOUBTFUL


@pytest.mark.parametrize("ends", [FULL, SHORT])
def test_a_leader_whose_epoch_reaches_our_position_has_it(ends: LogEnds) -> None:
    """Whatever the high watermark is: a new leader's lags for a moment."""
    assert verdict(told=GOES_ON, ends=ends, seconds=LONG, refusals=MANY) is Verdict.HERE
    assert verdict(told=(3, 50), ends=ends, seconds=LONG, refusals=MANY) is Verdict.HERE


def test_a_leader_that_knows_no_epochs_is_believed_later() -> None:
    assert verdict(told=None, ends=FULL) is Verdict.HERE
    for seconds, refusals in ((0.0, 1), (BELIEVE_S, REFUSALS_MIN - 1), (BELIEVE_S - 0.1, MANY)):
        assert verdict(told=None, seconds=seconds, refusals=refusals) is Verdict.DOUBTFUL
    assert verdict(told=None, seconds=BELIEVE_S, refusals=REFUSALS_MIN) is Verdict.LOST


@pytest.mark.parametrize(("leader", "epoch", "read_under"), [(-1, -1, -1), (-1, 3, -1), (5, -1, -1)])
@pytest.mark.parametrize(("told", "believed"), [(None, Verdict.LOST), (PARTS, Verdict.TRUNCATED)])
def test_where_no_epochs_can_be_compared_only_time_helps(
    leader: int, epoch: int, read_under: int, told: tuple[int, int] | None, believed: Verdict
) -> None:
    def after(seconds: float, refusals: int) -> Verdict:
        return verdict(epoch=epoch, read_under=read_under, leader=leader, told=told, seconds=seconds, refusals=refusals)

    assert after(BELIEVE_WITHOUT_EPOCHS_S - 0.1, MANY) is Verdict.DOUBTFUL
    assert after(LONG, REFUSALS_MIN - 1) is Verdict.DOUBTFUL
    assert after(BELIEVE_WITHOUT_EPOCHS_S, REFUSALS_MIN) is believed


def test_what_lies_below_the_start_was_trimmed_whatever_the_epochs_say() -> None:
    for told, leader in itertools.product((None, PARTS, GOES_ON), (-1, 4, 5)):
        assert verdict(ends=TRIMMED, told=told, leader=leader) is Verdict.TRIMMED


def test_a_start_above_the_end_is_nonsense() -> None:
    assert verdict(ends=LogEnds(55, 30, 30), leader=4, seconds=LONG, refusals=MANY) is Verdict.DOUBTFUL
