"""Record times to runs by minute, while batches are read: what the headers tell, and a look inside where a batch spans minutes.

A batch's header has the time of its first record and the highest one. Where both lie in one minute, so do all of its records,
unless a producer set times that fall within a batch and across the minute's edge.
"""

from __future__ import annotations

from collections.abc import Iterable

from stream_app.core.minutes import KEPT_MINUTES, MINUTE_MS
from stream_app.core.model import Timed
from stream_app.kafka.records import Record

NEVER = 1 << 63
"""Above every time in milliseconds."""
KEPT_MS = (KEPT_MINUTES + 60) * MINUTE_MS
"""Records of more than so long ago are not told by minute: an hour more than is kept, for clocks that differ. Neither are those of so far
ahead: a producer may stamp any 64-bit number, and microseconds for milliseconds are a common mistake."""
LAST_MS = 253_402_300_800_000
"""The year 10000: nobody can write a later time."""
RUNS_MAX = 4_096
"""Runs of one answer; more only where times jump from record to record."""
DECODED_MAX = 100_000
"""Records that may be looked at without having been saved up for: 0.1 s of decoding."""
SAVED = 64
"""One record may be looked at for so many that were read: it costs ten times as much, so that reading is a sixth slower at most."""


class Allowance:
    """How many records of batches that span minutes may be decoded: as many as don't slow the reader down."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        """Enough for what happens once a minute."""
        self.left = DECODED_MAX

    def earn(self, records: int) -> None:
        """So many were read."""
        self.left = min(self.left + records // SAVED, DECODED_MAX)

    def spend(self, records: int) -> bool:
        """Whether so many may be decoded."""
        if records > self.left:
            return False
        self.left -= records
        return True


class MinuteRuns:
    """The runs of one answer.

    Records whose times lie in ``[edge_low, edge_high)`` are of the run under way and widen ``low`` and ``high``: whoever reads plain
    batches may do that in locals and hand them back before anything else is called.
    """

    __slots__ = (
        *("_first", "_highest", "_lowest", "_minute", "_runs", "_since_ms", "_until_ms"),
        *("allowance", "edge_high", "edge_low", "high", "low"),
    )

    def __init__(self, since_ms: int = 0, allowance: Allowance | None = None, until_ms: int = LAST_MS) -> None:
        """``since_ms``: records before it are of no minute; nor are those from the minute of ``until_ms`` on."""
        self.allowance = Allowance() if allowance is None else allowance
        self.low, self.high = NEVER, -1
        self.edge_low = NEVER
        self.edge_high = -1
        self._since_ms = max(since_ms, 0)
        self._until_ms = until_ms // MINUTE_MS * MINUTE_MS
        self._runs: list[Timed] = []
        self._first = -1
        self._minute: int | None = None
        self._lowest, self._highest = NEVER, -1  # of the runs that are ended

    def spans(self, low_ms: int, high_ms: int) -> bool:
        """Whether records from the one time to the other are of more than one minute, of which one is kept."""
        return high_ms >= self._since_ms and low_ms < self._until_ms and low_ms // MINUTE_MS != high_ms // MINUTE_MS

    def note(self, first: int, low_ms: int, high_ms: int) -> None:
        """Records from offset ``first`` on, behind all others, have times from the one to the other; they count by the latter."""
        if not (self.edge_low <= low_ms and high_ms < self.edge_high):
            minute = high_ms // MINUTE_MS if self._since_ms <= high_ms < self._until_ms else None
            if minute != self._minute or self._first < 0:
                self._turn(first, minute, ahead=high_ms >= self._until_ms)
        if 0 <= low_ms < self.low:
            self.low = low_ms
        self.high = max(self.high, high_ms)

    def note_records(self, records: Iterable[Record]) -> None:
        """Each by its own time."""
        for offset, time, _ in records:
            self.note(offset, time, time)

    def _turn(self, first: int, minute: int | None, *, ahead: bool) -> None:
        if len(self._runs) >= RUNS_MAX:
            self.edge_low, self.edge_high = -NEVER, NEVER  # what follows is counted with what was last
            return
        self._end()
        self._first, self._minute = first, minute
        self.low, self.high = NEVER, -1
        if minute is not None:
            self.edge_low, self.edge_high = minute * MINUTE_MS, (minute + 1) * MINUTE_MS
        elif ahead:
            self.edge_low, self.edge_high = self._until_ms, NEVER
        else:
            self.edge_low, self.edge_high = 0, self._since_ms  # what has no time at all must not become the lowest one

    def _end(self) -> None:
        if self._first < 0:
            return
        kept = self._minute is not None
        self._runs.append(Timed(self._first, self._minute, self.low if kept else 0, self.high if kept else 0))
        self._lowest, self._highest = min(self._lowest, self.low), max(self._highest, self.high)

    @property
    def min_timestamp(self) -> int | None:
        """Lowest record time in ms; None: no record, or none has a time."""
        lowest = min(self._lowest, self.low)
        return None if lowest == NEVER else lowest

    @property
    def max_timestamp(self) -> int | None:
        """Highest record time in ms, likewise."""
        highest = max(self._highest, self.high)
        return None if highest < 0 else highest

    def take(self) -> tuple[Timed, ...]:
        """All runs; nothing is to be noted behind them."""
        self._end()
        return tuple(self._runs)


def join_minutes(left: tuple[Timed, ...], right: tuple[Timed, ...]) -> tuple[Timed, ...]:
    """Both, where all of ``right`` was read behind ``left``."""
    if not left or not right or left[-1].minute != right[0].minute:
        return left + right
    last, first = left[-1], right[0]
    joined = last._replace(low_ms=min(last.low_ms, first.low_ms), high_ms=max(last.high_ms, first.high_ms))
    return (*left[:-1], joined, *right[1:])
