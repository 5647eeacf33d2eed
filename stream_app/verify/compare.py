"""What is in the log and not in the table, and why; what is in the table twice. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stream_app.core.model import Absent, Cause, Look, Reason
from stream_app.core.offsets import END, OffsetSet
from stream_app.sinks.clickhouse import Held
from stream_app.verify.part import Part


@dataclass(frozen=True, slots=True)
class Gap:
    """A maximal run of missing records of one cause; offsets without a record don't split it."""

    first: int
    stop: int
    count: int
    cause: Cause
    first_timestamp_ms: int | None = None
    last_timestamp_ms: int | None = None


@dataclass(slots=True)
class Difference:
    """One partition: what was compared and what differs."""

    part: Part
    rows: int = 0
    present: OffsetSet = field(default_factory=OffsetSet)
    doubled: OffsetSet = field(default_factory=OffsetSet)
    """Offsets with more than one row."""
    surplus: int = 0
    """Rows beyond one per offset; 0 where duplicates are not judged."""
    quarantined: OffsetSet = field(default_factory=OffsetSet)
    lacking: OffsetSet = field(default_factory=OffsetSet)
    """Records without a row, not explained so far."""
    missing: dict[Cause, OffsetSet] = field(default_factory=dict)
    explained: dict[Reason, OffsetSet] = field(default_factory=dict)
    too_old: OffsetSet = field(default_factory=OffsetSet)
    """Records without a row that the table's TTL may have removed, those without a time among them."""
    timestamps: dict[int, int] = field(default_factory=dict)
    """Times of some records that are missing."""

    @classmethod
    def of(cls, part: Part, held: Iterable[Held]) -> Difference:
        """``held``: what the table has of ``[part.first, part.stop)``."""
        found = cls(part)
        for one in held:
            found.present.update(one.present)
            found.quarantined.update(one.quarantined)
            found.doubled.update(one.doubled)
            found.rows += one.rows
        found.surplus = found.rows - found.present.count
        found.lacking = _expected(part) - found.present
        explained = found.lacking & found.quarantined
        if explained:
            found.explained[Reason.QUARANTINED] = explained
            found.lacking.difference_update(explained)
        return found

    def arrived(self, held: Iterable[Held]) -> None:
        """What the table has of what is missing, asked again later."""
        for one in held:
            for some in self.missing.values():
                now = some & one.present
                aside = (some & one.quarantined) - now
                self.present.update(now)
                self.rows += now.count
                some.difference_update(now)
                if aside:
                    self.explained.setdefault(Reason.QUARANTINED, OffsetSet()).update(aside)
                    some.difference_update(aside)

    def looked(self, look: Look, first: int, *, compacted: bool | None, tombstones_optional: bool) -> None:
        """Sort out what lacks within ``[first, look.upto)`` by what a second look found there.

        ``compacted``: the topic's policy, None where it is unknown. What the look says is older may have gone by the table's TTL.
        """
        left = self.lacking.within(first, look.upto)
        self.lacking.difference_update(left)
        self.timestamps |= look.timestamps
        old = left & OffsetSet(look.older)
        self.too_old.update(old)
        left.difference_update(old)
        expired = left.within(0, min(look.log_start, END))
        holes = left & OffsetSet(look.holes)
        tombstones = left & OffsetSet(look.tombstones)
        damaged = left & (OffsetSet(look.unreadable) | self.part.unreadable)
        for cause, some in (
            (Cause.EXPIRED, expired),
            (Cause.EXPIRED if compacted is False else Reason.COMPACTED, holes),
            (Reason.TOMBSTONE, tombstones if tombstones_optional else OffsetSet()),
            (Cause.UNREADABLE, damaged),
            (Cause.NOT_RECEIVED, left.copy()),
        ):
            mine = some & left
            left.difference_update(mine)
            if mine and isinstance(cause, Reason):
                self.explained.setdefault(cause, OffsetSet()).update(mine)
            elif mine and isinstance(cause, Cause):
                self.missing.setdefault(cause, OffsetSet()).update(mine)

    # --- what came of it --------------------------------------------------------------------------------------------------------

    @property
    def missing_count(self) -> int:
        """Missing records, whatever the cause."""
        return sum(some.count for some in self.missing.values())

    @property
    def unexpected(self) -> OffsetSet:
        """Rows of offsets that no consumer receives: markers and aborted records."""
        found = OffsetSet()
        for absent in self.part.absent.values():
            found.update(absent & self.present)
        return found

    @property
    def above_last(self) -> int:
        """How many of the missing records lie above the last offset that the table has: it may just be behind."""
        last = self.present.last()
        above = self.part.first if last is None else last + 1
        return sum(some.count_within(above, END) for some in self.missing.values())

    def gaps(self) -> list[Gap]:
        """All of them, ascending."""
        found = [gap for cause, some in self.missing.items() for gap in _gaps(cause, some, _expected(self.part), self.timestamps)]
        return sorted(found, key=lambda gap: gap.first)

    def absent_counts(self) -> Mapping[Absent, int]:
        """Offsets without a record, by cause, but for holes."""
        return {cause: some.count for cause, some in self.part.absent.items() if some}


def _expected(part: Part) -> OffsetSet:
    """What the table should have: records, those that nobody can read among them."""
    return part.records | part.unreadable


def _gaps(cause: Cause, missing: OffsetSet, records: OffsetSet, timestamps: Mapping[int, int]) -> list[Gap]:
    gaps: list[Gap] = []
    for first, stop in missing.runs():
        count = stop - first
        if gaps and not records.count_within(gaps[-1].stop, first):
            before = gaps.pop()
            first, count = before.first, before.count + count
        gaps.append(Gap(first, stop, count, cause, timestamps.get(first), timestamps.get(stop - 1)))
    return gaps


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole answer. Where ``reason`` is given nothing is known: neither equal nor different."""

    differences: tuple[Difference, ...] = ()
    reason: str | None = None
    statement: str | None = None
    """SQL that would let the question be answered, where some would."""
    notes: tuple[str, ...] = ()
    """What was not judged, and why; what is odd beside."""

    @property
    def equal(self) -> bool | None:
        """None: could not tell."""
        if self.reason is not None:
            return None
        return not any(one.missing_count or one.surplus for one in self.differences)
