"""What is believed of a leader that has not got our position: a rule on evidence, since ends may lag, and brokers may be wrong.

Only a new leader's log may lawfully be shorter than what was read: within one leader epoch a log's end never goes back. So
a loss is believed where the epochs tell it (KIP-101, KIP-320) and the leader is a newer one than any under which we read.
An end that falls under the leader that gave us those records (Jepsen saw zeros and ends off by one) is a contradiction:
it is said, asked again for ever, and nothing is forgotten because of it. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stream_app.core.model import LogEnds

BELIEVE_S = 1.0
"""A newer leader that knows no epochs must have refused so long: its end may lag for a moment."""
BELIEVE_WITHOUT_EPOCHS_S = 30.0
"""The same where no epochs can be compared at all. Longer than a new leader needs to learn the high watermark from its
followers (replica.lag.time.max.ms, 30 s by default)."""
REFUSALS_MIN = 3
"""And so often: silence in between is no evidence."""


class Verdict(Enum):
    """What a refused position means."""

    HERE = 1
    """The leader has it: fetch again."""
    TRIMMED = 2
    """The log starts above it."""
    TRUNCATED = 3
    """The epochs say that the leader's log parts from what was read."""
    LOST = 4
    """The log ends below it, and no epoch says where the two part."""
    DOUBTFUL = 5
    """It contradicts what was read. Ask again."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What was read."""

    position: int
    epoch: int
    """Leader epoch of the record before ``position``; -1: unknown."""
    read_under: int
    """Newest leader epoch under which anything was read or an end was seen; -1: unknown."""

    @property
    def newest(self) -> int:
        """The leader is at least as new as this, or it is not the leader."""
        return max(self.epoch, self.read_under)


@dataclass(frozen=True, slots=True)
class Theirs:
    """What the leader says, asked afresh."""

    leader_epoch: int
    """-1: brokers of this version have none."""
    ends: LogEnds
    epoch_end: tuple[int, int] | None
    """Largest epoch not above ours, and where it ends; None: not known there, or ours is not."""


def judge(ours: Ours, theirs: Theirs, refused_s: float, refusals: int) -> Verdict:
    """``refusals`` of the position in a row, over ``refused_s`` seconds."""
    ends = theirs.ends
    if ours.position < ends.log_start <= ends.high_watermark:
        return Verdict.TRIMMED
    diverges = theirs.epoch_end is not None and (theirs.epoch_end[0] < ours.epoch or theirs.epoch_end[1] < ours.position)
    if not diverges and (theirs.epoch_end is not None or ours.position <= ends.high_watermark):
        return Verdict.HERE
    if theirs.leader_epoch < 0 or ours.newest < 0:
        patience_s = BELIEVE_WITHOUT_EPOCHS_S
    elif theirs.leader_epoch > ours.newest:
        patience_s = 0.0 if diverges else BELIEVE_S
    else:
        return Verdict.DOUBTFUL
    if patience_s and (refused_s < patience_s or refusals < REFUSALS_MIN):
        return Verdict.DOUBTFUL
    return Verdict.TRUNCATED if diverges else Verdict.LOST
