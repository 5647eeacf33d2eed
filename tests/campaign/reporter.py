"""What reports for a sink that received what a consumer receives, but for a few records; and what must be missing therefore."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Message

from stream_app.core.ledger import Ledger
from stream_app.core.model import Cause, Reason
from tests.campaign.oracles import Received
from tests.campaign.verdicts import HOLE, RECORD, UNREAD, Kinds, runs, where
from tests.support.dump_log import Where
from tests.support.observer import Observer
from tests.support.rig import Rig

SINK = "billing"
_RUNS_AT_ONCE = 2_000
"""In one observation."""
_HELD_MAX = 4
"""Single records that a report leaves out, at most, beside one stretch of them."""
_STRETCH_MAX = 60
_LATE_SHARE = 3
"""One of so many that are missing is reported with the next report."""

Offsets = set[int]


class Reporter:
    """Reports for the sink of one application; knows for each partition what was left out."""

    def __init__(self, bootstrap: str, app_id: str, isolation: Mapping[Where, str], rng: random.Random) -> None:
        """``isolation``: of each partition."""
        self._observer = Observer(bootstrap, app_id, SINK)
        self._rng = rng
        self.app_id = app_id
        self.told: dict[Where, int] = dict.fromkeys(isolation, 0)
        """The sink's claim: everything below is judged."""
        self.held: dict[Where, Offsets] = {place: set() for place in isolation}
        """Left out on purpose, or removed before the reporter got to them: missing, unless compaction took them before the second look."""
        self.gone: dict[Where, Offsets] = {place: set() for place in isolation}
        """Records that compaction took before the reporter, or the second look, got to them: explained."""
        self.received: dict[Where, int] = dict.fromkeys(isolation, 0)
        self.late = 0
        """Records reported after they were missing."""

    def report(self, said: Mapping[Where, bytearray], received: Mapping[Where, Received]) -> dict[Where, list[str]]:
        """Report what a consumer ``received`` below the end of what was ``said``; what it received that is said to be no record.

        The claim goes to that end: what is not reported below it is missing, were it one marker taken for a record.
        """
        faults: dict[Where, list[str]] = {}
        for place, kinds in said.items():
            first, stop = self.told[place], len(kinds)
            got = {offset for offset in received[place].offsets if first <= offset < stop and kinds[offset] != UNREAD}
            records = set(where(kinds, RECORD, first, stop))
            if got - records:
                faults[place] = [f"a consumer received {list(runs(sorted(got - records)))[:5]}, said to be no records"]
            expired = {offset for offset in records if offset < received[place].first}
            held = self._hold_back(sorted(got & records)) | expired
            late = set(self._rng.sample(sorted(self.held[place]), len(self.held[place]) // _LATE_SHARE))
            self._say(place, sorted((got - held) | late), stop)
            self.received[place] += len(got & records - held) + len(late)
            self.late += len(late)
            self.gone[place] |= records - got - expired
            self.held[place] = (self.held[place] - late) | held
            self.told[place] = stop
        self._observer.flush()
        return faults

    def _hold_back(self, got: Sequence[int]) -> Offsets:
        if not got:
            return set()
        held = set(self._rng.sample(got, min(len(got), self._rng.randrange(_HELD_MAX + 1))))
        at = self._rng.randrange(len(got))
        return held | set(got[at : at + self._rng.randrange(_STRETCH_MAX)])

    def _say(self, place: Where, offsets: Sequence[int], claim: int) -> None:
        """In pieces, ascending: each claims only what it and those before it tell."""
        closed = list(runs(offsets))
        for at in range(0, len(closed), _RUNS_AT_ONCE):
            piece = closed[at : at + _RUNS_AT_ONCE]
            self._observer.say(*place, piece, claim=max(piece[-1][1] + 1, self.told[place]))
        self._observer.say(*place, claim=claim)

    # --- what must be missing -----------------------------------------------------------------------------------------

    def opened(self, ledger: Ledger) -> dict[str, Offsets]:
        """What the product's state has open, by cause."""
        found = {str(cause): _offsets(ledger.sinks[SINK].open[cause].runs()) for cause in Cause}
        return {cause: offsets for cause, offsets in found.items() if offsets}

    def check(self, place: Where, ledger: Ledger, kinds: Kinds) -> list[str]:
        """What is missing or explained otherwise than it must be; ``kinds``: of the files, read after all was judged."""
        sink, faults = ledger.sinks[SINK], []
        opened = self.opened(ledger)
        explained = {str(reason): _offsets(offsets.runs()) for reason, offsets in sink.explained.items() if offsets}
        compacted = explained.pop(str(Reason.COMPACTED), set())
        new = compacted & self.held[place]
        still_there = [offset for offset in new if kinds[offset] != HOLE]
        if still_there:
            faults.append(f"explained as compacted and in the files: {sorted(still_there)[:5]}")
        self.gone[place] |= new
        self.held[place] -= new
        log_start = ledger.log.start
        wanted = {
            str(Cause.EXPIRED): {offset for offset in self.held[place] if offset < log_start},
            str(Cause.NOT_RECEIVED): {offset for offset in self.held[place] if offset >= log_start},
        }
        wanted = {cause: offsets for cause, offsets in wanted.items() if offsets}
        faults += _differences("open", wanted, opened)
        faults += _differences("explained", {}, explained)
        faults += _differences("explained", {"compacted": self.gone[place]}, {"compacted": compacted})
        counted = (sink.observed, sink.duplicates, sink.absent_observed)
        if counted != (self.received[place], 0, 0):
            faults.append(f"observed, duplicates and absent observed are {counted}, not {(self.received[place], 0, 0)}")
        return faults

    def events(self, rig: Rig) -> Iterator[tuple[dict[str, Any], Message]]:
        """All of the application's alerts topic."""
        for message in rig.read(f"{self.app_id}.alerts"):
            value = message.value()
            assert value is not None
            yield json.loads(value), message


def _offsets(half_open: Iterator[tuple[int, int]]) -> Offsets:
    return {offset for first, stop in half_open for offset in range(first, stop)}


def _differences(what: str, wanted: Mapping[str, Offsets], found: Mapping[str, Offsets]) -> list[str]:
    faults = []
    for name in sorted(wanted.keys() | found.keys()):
        lacks, extra = wanted.get(name, set()) - found.get(name, set()), found.get(name, set()) - wanted.get(name, set())
        if lacks or extra:
            faults.append(f"{what} as {name}: lacks {list(runs(sorted(lacks)))[:5]}, has beside {list(runs(sorted(extra)))[:5]}")
    return faults
