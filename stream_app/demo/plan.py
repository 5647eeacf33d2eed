"""Which faults a seed means: a pure function of the seed, so that a run can be repeated to the offset.

Every partition gets :data:`RATE` records a second, so an offset is also a time. The offsets are cut into slots of
:data:`SLOT` records, the same for all partitions, and each slot holds at most one fault, in one partition, never in the
slot's last record. So faults never overlap or touch, and a record that goes well stands behind each of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from stream_app.demo import warehouse
from stream_app.demo.faults import Fault, Kind

RATE = 20
"""Records a second in each partition: three topics of four partitions make 240, which a small machine carries beside the rest."""
SLOT = 12
"""Records, 0.6 s: more than one fault a second, and slow enough to watch."""
LENGTH_MAX = 5
"""Records that one fault takes at most, but for a lost block."""
BLOCK = 10
"""Records that a table loses at once, as when a whole block is not inserted."""
QUIET_SLOTS = 2
"""Without faults at the beginning: everybody reports something first."""
SECONDS_MIN = 20
"""Below that there is no room for one fault of each kind and for their verdicts."""
JUDGED_S = 6.0
"""From a fault to its event at the latest. Normally 1 s of grace, the next flush within 1 s, and some 0.1 s of work."""
TABLE_JUDGED_S = 9.0
"""Likewise in a table, which is asked once a second: for what lacks lately twice, and every second time for what was judged."""
LATE_AFTER_S = (5.0, 8.0)
"""How long a late range is held back, in the shortest run and from 30 s on: its gap must have been told by then."""
DUPLICATE_AFTER_S = 1.0
"""When a range is reported again."""
VANISHED_AFTER_S = 5.0
"""When rows are deleted: they must have been seen by then."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When which faults may happen in a run of so many seconds (None: it goes on until it is stopped)."""

    seconds: float | None

    @property
    def late_after_s(self) -> float:
        """How long a late range is held back."""
        low, high = LATE_AFTER_S
        return low if self.seconds is None else min(max(low, self.seconds * high / 30), high)

    def wait_s(self, kind: Kind) -> float:
        """How long after its records a fault of this kind is done."""
        return {Kind.LATE: self.late_after_s, Kind.DUPLICATE: DUPLICATE_AFTER_S, Kind.VANISHED: VANISHED_AFTER_S}.get(kind, 0.0)

    def last_s(self, kind: Kind, topic: str) -> float:
        """Seconds from the begin at which a fault of this kind can still be injected and judged before the end."""
        if self.seconds is None:
            return float("inf")
        return self.seconds - (TABLE_JUDGED_S if topic == warehouse.TOPIC else JUDGED_S) - self.wait_s(kind)


def kinds_of(topic: str) -> tuple[Kind, ...]:
    """What can go wrong with the records of a topic. A table is asked too seldom for a gap that is soon filled to be told for sure."""
    left_out = Kind.LATE if topic == warehouse.TOPIC else Kind.VANISHED
    return tuple(kind for kind in Kind if kind is not left_out)


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of one seed."""

    seed: int
    partitions: tuple[tuple[str, int], ...]
    """Topic and partition; all have the same rate."""
    schedule: Schedule
    _slots: dict[int, Fault | None] = field(default_factory=dict, repr=False, compare=False)
    """The newest ones, for those who ask record by record."""

    def at(self, offset: int) -> Fault | None:
        """The fault of the slot that this offset lies in; it need not cover the offset."""
        slot = offset // SLOT
        if slot not in self._slots:
            if len(self._slots) >= 1_000:
                del self._slots[next(iter(self._slots))]
            self._slots[slot] = self.slot(slot)
        return self._slots[slot]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What can go wrong in this run."""
        possible = {kind for topic, _ in self.partitions for kind in kinds_of(topic)}
        return tuple(kind for kind in Kind if kind in possible)

    def slot(self, number: int) -> Fault | None:
        """The fault of one slot; None: it has none."""
        end_s = (number + 1) * SLOT / RATE
        places = {kind: self._places(kind, end_s) for kind in self.kinds}
        allowed = [kind for kind, at in places.items() if at]
        if number < QUIET_SLOTS or not allowed:
            return None
        kind = self._kind(number)
        chance = random.Random(f"{self.seed}/slot/{number}")
        if kind not in allowed:
            kind = chance.choice(allowed)
        topic, partition = chance.choice(places[kind])
        length = chance.randint(1, LENGTH_MAX)
        if topic == warehouse.TOPIC and kind is Kind.LOST and chance.random() < 0.5:
            length = BLOCK
        first = number * SLOT + chance.randint(0, SLOT - 1 - length)
        return Fault(kind, topic, partition, first, first + length)

    def _places(self, kind: Kind, end_s: float) -> list[tuple[str, int]]:
        """Partitions where a fault of this kind, all of whose records are there by then, can be judged before the end."""
        return [at for at in self.partitions if kind in kinds_of(at[0]) and end_s <= self.schedule.last_s(kind, at[0])]

    def _kind(self, number: int) -> Kind:
        """Kinds are dealt like cards: each comes once in as many slots as there are kinds."""
        kinds = list(self.kinds)
        deal, place = divmod(number - QUIET_SLOTS, len(kinds))
        random.Random(f"{self.seed}/deal/{deal}").shuffle(kinds)
        return kinds[place]
