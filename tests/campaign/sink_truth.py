"""What the notes of all instances of one sink amount to, and what of it may differ because a process died in between.

A request is certain when its instance noted that it was safe from a crash, or that it ended; else, and where a rebalance was under
way, it counts or it does not. Nothing here is shared with the product.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.verdicts import runs

Note = dict[str, Any]
BATCH_MAX = 400
"""The most that one call hands out: as much may have been handed out and not been noted when a process died."""


@dataclass
class Partition:
    """The truth of one partition."""

    certain: Counter[int] = field(default_factory=Counter)
    """Offset -> how often it was asked for, for certain."""
    doubtful: Counter[int] = field(default_factory=Counter)
    """Offset -> how often more it may have been."""
    unknown: set[int] = field(default_factory=set)
    """What a client that commits by itself may have taken along: the next owner may say that nobody knows."""


def read_notes(path: Path) -> list[Note]:
    """All notes of one instance; one that is not whole yet is left out."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def amount(instances: Iterable[list[Note]], partitions: int, *, automatic: bool) -> dict[int, Partition]:
    """The truth of each partition."""
    told = list(instances)
    truth = {partition: Partition() for partition in range(partitions)}
    for notes in told:
        for number, partition, offsets, certain in requests(notes):
            del number
            (truth[partition].certain if certain else truth[partition].doubtful).update(offsets)
    if automatic:
        for notes in told:
            for partition, one in truth.items():
                for end in _ends(notes, partition):
                    one.unknown.update(_unknown(notes, partition, end, told))
    return truth


def requests(notes: list[Note]) -> Iterator[tuple[int, int, list[int], bool]]:
    """(number, partition, offsets, whether they count for certain) of each request of one instance."""
    safe: dict[int, int] = {}
    """Partition -> the highest request that is certain; -1: of all partitions."""
    doubts = {one["number"] for one in notes if one["note"] == "doubt"}
    for one in notes:
        if one["note"] == "certain":
            for partition in [-1] if one["partitions"] is None else one["partitions"]:
                safe[partition] = max(one["upto"], safe.get(partition, 0))
    ended = _ended(notes)
    for one in notes:
        if one["note"] != "asked":
            continue
        number = one["number"]
        for name, asked in one["runs"].items():
            upto = max(safe.get(-1, 0), safe.get(int(name), 0))
            yield number, int(name), _offsets(asked), number not in doubts and (ended or number <= upto)
        for name, asked in one["doubtful"].items():
            yield number, int(name), _offsets(asked), False


def _ends(notes: list[Note], partition: int) -> list[int]:
    """When this instance ceased to own the partition: it died, or a rebalance took it."""
    owned = any(one["note"] == "assigned" and partition in one["partitions"] for one in notes)
    return [one["at"] for one in notes if one["note"] == "revoked" and partition in one["partitions"]] + [notes[-1]["at"]] if owned else []


def _unknown(notes: list[Note], partition: int, end: int, told: list[list[Note]]) -> range:
    """What nobody can tell of the client of one that owned the partition until then: from what is certain to where it was owned next.

    One that is well says in the end that there is no more; the next one may ask before that.
    """
    begins = sorted(found for other in told if (found := _begins(other, partition, end)) is not None)
    if not begins:
        return range(0)
    stop = max(first for _, first in begins[:3])  # the next ones may have died before they could say where they began
    before = [one for one in notes if one["at"] <= end]
    handed = [offset for one in before if one["note"] == "handed" and one["partition"] == partition for offset in _offsets(one["runs"])]
    if not handed:
        return range(max(0, begins[0][1] - BATCH_MAX), stop)
    low, certain_to = max(handed) + 1, handed[0]
    until = max([one["number"] for one in before if one["note"] == "asked"], default=0)
    for number, place, offsets, certain in requests(notes):
        if place != partition or number > until or not offsets:
            continue
        certain_to = offsets[-1] + 1 if certain else certain_to
        low = low if certain else min(low, offsets[0])
    return range(min(low, certain_to, *_not_asked(before, partition), low), stop)


def _begins(notes: list[Note], partition: int, since: int) -> tuple[int, int] | None:
    """When one was handed something of the partition first after that, and what."""
    handed = (one for one in notes if one["note"] == "handed" and one["partition"] == partition and one["at"] > since)
    first = next(handed, None)
    return None if first is None else (first["at"], first["runs"][0][0])


def _not_asked(notes: list[Note], partition: int) -> set[int]:
    left: set[int] = set()
    for one in notes:
        if one["note"] == "handed" and one["partition"] == partition:
            left.update(_offsets(one["runs"]))
        elif one["note"] == "asked":
            left.difference_update(_offsets(one["runs"].get(str(partition), [])))
    return left


def _ended(notes: list[Note]) -> bool:
    return bool(notes) and notes[-1]["note"] == "end"


def _offsets(closed: Iterable[list[int]]) -> list[int]:
    return [offset for first, last in closed for offset in range(first, last + 1)]


@dataclass
class Said:
    """What the observations of a sink say of one partition, repeats left out."""

    received: Counter[int] = field(default_factory=Counter)
    unobserved: set[int] = field(default_factory=set)

    @property
    def duplicates(self) -> Counter[int]:
        """Offset -> how often once more."""
        return Counter({offset: times - 1 for offset, times in self.received.items() if times > 1})

    def missing(self, end: int) -> set[int]:
        """Below ``end``: neither received nor said to be unknown."""
        return set(range(end)) - self.received.keys() - self.unobserved

    def unknown(self) -> set[int]:
        """Said to be unknown, and not received."""
        return self.unobserved - self.received.keys()


@dataclass
class Outcome:
    """How the truth of a sink compares with what was said."""

    records: int = 0
    missing: int = 0
    duplicates: int = 0
    unknown: int = 0
    loose: int = 0
    """Offsets of which the truth leaves more than one outcome open."""
    differences: list[str] = field(default_factory=list)


def compare(truth: dict[int, Partition], said: dict[int, Said], ends: dict[int, int]) -> Outcome:
    """Every offset: told at least as often as it was asked for certainly, at most as often as it may have been."""
    found = Outcome()
    for partition, one in truth.items():
        told, end = said.get(partition, Said()), ends[partition]
        wrong: dict[str, list[int]] = {}
        for offset in range(end):
            least, times = one.certain[offset], told.received[offset]
            most = least + one.doubtful[offset]
            found.loose += most > least or (most == 0 and offset in one.unknown)
            if not least <= times <= most:
                wrong.setdefault(f"asked for {least} to {most} times, told {times} times", []).append(offset)
            elif not times and offset in told.unobserved and offset not in one.unknown:
                wrong.setdefault("told as unobserved, and known", []).append(offset)
        beyond = [offset for offset in told.received if offset >= end]
        if beyond:
            wrong["told beyond the end"] = beyond
        found.records += end
        found.missing += len(told.missing(end))
        found.duplicates += told.duplicates.total()
        found.unknown += len(told.unknown())
        found.differences += [
            f"partition {partition}: {what}: {len(offsets)} offsets, {list(runs(sorted(offsets)))[:5]}" for what, offsets in wrong.items()
        ]
    return found
