"""What can go wrong on purpose: the words that the pipeline, the detector and the screen exchange."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """Kinds of faults."""

    LOST = "lost"
    """Received but never reported: a gap that stays open."""
    LATE = "late"
    """Reported after its gap was told: opened, then filled."""
    DUPLICATE = "duplicate"
    """Reported twice."""
    QUARANTINED = "quarantined"
    """Put aside by the application, and said so: explained, not missing."""
    VANISHED = "vanished"
    """Loaded into the table, and deleted there later: a gap that stays open."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; its offsets are half-open ``[first, stop)``."""

    kind: Kind
    topic: str
    partition: int
    first: int
    stop: int

    @property
    def order(self) -> tuple[str, int, int, str]:
        """Key of the order in which lists stand: topic, partition, first offset, kind."""
        return self.topic, self.partition, self.first, self.kind

    def as_json(self) -> dict[str, Any]:
        """As it is printed, with a closed range."""
        return {
            "kind": str(self.kind),
            "topic": self.topic,
            "partition": self.partition,
            "first_offset": self.first,
            "last_offset": self.stop - 1,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Fault:
        """The way back."""
        return cls(Kind(value["kind"]), value["topic"], value["partition"], value["first_offset"], value["last_offset"] + 1)


def listed(faults: Iterable[Fault]) -> list[dict[str, Any]]:
    """Sorted, as JSON has them."""
    return [fault.as_json() for fault in sorted(faults, key=lambda fault: fault.order)]
