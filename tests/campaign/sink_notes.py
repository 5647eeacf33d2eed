"""What an instance of a consumer did, written down before it is done: the ground truth of ``scripts/campaign sinks``.

Nothing here knows the sidecar. One line of JSON is one note; it is handed to the system before the act, so a SIGKILL loses none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.campaign.verdicts import runs

Commits = dict[int, int]
"""Partition -> one past the last offset that is processed."""


class Notes:
    """A file of notes, appended to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, note: str, **fields: Any) -> None:
        """One note; it survives this process from here on."""
        os.write(self._file, (json.dumps({"note": note, "at": time.monotonic_ns(), **fields}) + "\n").encode())


class Book:
    """What one instance was handed and has not asked to commit, by the words of the contract: delivered, then asked for.

    ``automatic``: the client commits by itself, so coming back for more asks for all that was handed out before; a rebalance
    takes nothing back then.
    """

    def __init__(self, notes: Notes, *, automatic: bool) -> None:
        self.notes = notes
        self._automatic = automatic
        self.handed: dict[int, set[int]] = {}
        self._given_up: dict[int, set[int]] = {}
        """Handed out before the partition was given up, and not again: whether a later commit means it is a matter of words."""
        self.stop: Commits = {}
        """Where a commit without arguments stands, of the partitions that are owned."""
        self.rebalances = 0
        self._number = 0
        self._under_way: set[int] = set()

    # ------------------------------------------------------------------------------------------------- deliveries

    def took(self, partition: int, offsets: list[int], *, late: bool = False) -> None:
        """These were handed out. ``late``: a rebalance happened meanwhile, so they may be of the time before it."""
        self.notes.write("handed", partition=partition, runs=list(runs(sorted(offsets))))
        kept, other = (self._given_up, self.handed) if late and not self._automatic else (self.handed, self._given_up)
        kept.setdefault(partition, set()).update(offsets)
        other.get(partition, set()).difference_update(offsets)
        self.stop[partition] = offsets[-1] + 1

    def assigned(self, partitions: Iterable[int]) -> None:
        """They came."""
        self.rebalances += 1
        self.notes.write("assigned", partitions=sorted(partitions))

    def revoked(self, partitions: Iterable[int]) -> None:
        """They went."""
        self.rebalances += 1
        gone = sorted(partitions)
        self.notes.write("revoked", partitions=gone)
        for partition in gone:
            self.stop.pop(partition, None)
            if not self._automatic:
                self._given_up.setdefault(partition, set()).update(self.handed.pop(partition, set()))

    # ------------------------------------------------------------------------------------------------------- asking

    def pending(self, partitions: Iterable[int] | None = None) -> Commits:
        """One past the highest that was handed out and not asked for."""
        places = self.handed if partitions is None else partitions
        return {place: max(self.handed[place]) + 1 for place in places if self.handed.get(place)}

    def ask(self, commits: Mapping[int, int]) -> int:
        """The application is about to ask for these; the number of the request, for ``answered``."""
        asked, doubtful = {}, {}
        for partition, offset in commits.items():
            asked[partition] = _take(self.handed.get(partition, set()), offset)
            doubtful[partition] = _take(self._given_up.get(partition, set()), offset)
        self._number += 1
        self._under_way.add(self._number)
        self.notes.write("asked", number=self._number, runs=asked, doubtful={p: r for p, r in doubtful.items() if r})
        return self._number

    def came_back(self) -> None:
        """Under auto-commit, before the next poll."""
        if self._automatic and any(self.handed.values()):
            self.answered(self.ask(self.pending()), ())

    def answered(self, number: int, certain: Iterable[int], *, doubt: bool = False) -> None:
        """The call came back. ``certain``: partitions of which all that was asked for up to it is now safe from a crash.

        ``doubt``: it is not known whether the call came before or after a rebalance.
        """
        self._under_way.discard(number)
        if doubt:
            self.notes.write("doubt", number=number)
        elif certain:
            self.notes.write("certain", upto=number, partitions=sorted(certain))

    @property
    def settled(self) -> int:
        """The last request before which none is under way: what a flush that begins now makes certain."""
        return min(self._under_way) - 1 if self._under_way else self._number

    def flushed(self, upto: int) -> None:
        """Every report about requests up to this one is acknowledged."""
        self.notes.write("certain", upto=upto, partitions=None)


def _take(held: set[int], offset: int) -> list[tuple[int, int]]:
    taken = {one for one in held if one < offset}
    held -= taken
    return list(runs(sorted(taken)))
