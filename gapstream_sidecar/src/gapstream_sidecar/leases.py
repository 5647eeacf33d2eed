"""What a client that commits by itself may have committed without a report. Pure.

Where the application asks for commits, what is not reported yet travels with them. A client that commits by itself takes
nothing along, and commits when it likes. So its observations say beforehand how far it may be handed out records:
``"ahead":[told, upto]``, everything handed out below ``told`` is reported, and nothing at or above ``upto`` is handed out
before a later observation says so. If the process dies, what it was handed out of ``[told, upto)`` and the client has
committed is known to nobody. The next owner finds the last such statements, and reports that much as unobserved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

LEAST = 10_000
"""Records that may be handed out without asking again: a few milliseconds at full speed, a small loss to be silent about."""
_FIELD = b'"ahead":['


@dataclass(slots=True)
class Session:
    """One owner's statements about a partition."""

    source: str
    began: int
    """Where it was handed out records first."""
    told: int
    upto: int


def sessions(values: Iterable[bytes | None], sink: str, own: str) -> list[Session]:
    """The owners whose statements stand in these observations, in their order; without ``own`` source.

    One that came back after another stands in it once more; what it says of offsets below the other's first is only late.
    """
    found: list[Session] = []
    places: dict[str, int] = {}
    for value in values:
        if value is None or _FIELD not in value:
            continue
        try:
            said = json.loads(value)
            source, (told, upto) = str(said["source"]), map(int, said["ahead"])
        except (ValueError, KeyError, TypeError):
            continue  # somebody else's way to say something else
        if said.get("sink") != sink:
            continue
        place = places.get(source, -1)
        if place < 0 or (place + 1 < len(found) and told >= found[place + 1].began):
            places[source] = len(found)
            found.append(Session(source, told, told, upto))
        else:
            one = found[place]
            one.told, one.upto = max(one.told, told), upto
    for one, after in pairwise(found):
        if after.source == own:
            one.upto = min(one.upto, after.began)
    return [one for one in found if one.source != own]


def unknown(owners: list[Session], begins: int) -> list[tuple[int, int]]:
    """What nobody can tell of the owners before one that is handed out records from ``begins`` on: half-open runs."""
    found = []
    for place, one in enumerate(owners, 1):
        stop = min(one.upto, owners[place].began if place < len(owners) else begins)
        if one.told < stop:
            found.append((one.told, stop))
    return found


class Lease:
    """How far one partition may be handed out, as its owner sees it."""

    __slots__ = ("_last", "_stride", "_wanted", "began", "upto")

    def __init__(self, began: int) -> None:
        self.began = began
        """The first offset that was handed out."""
        self.upto = began
        """How far it may be handed out."""
        self._wanted = began
        self._last = began
        self._stride = LEAST

    def outrun(self, stop: int) -> None:
        """It was handed out up to ``stop``, which is further: the next statement reaches as far again, twice."""
        self._stride = max(self._stride, 2 * (stop - self._last))
        self._last = stop
        self.upto = self._wanted = stop + self._stride

    def renew(self, stop: int, known: int) -> bool:
        """It was handed out up to ``stop``, and may be up to ``known``: whether it is time to say more, before it is outrun."""
        self.upto = max(self.upto, known)
        if self._wanted > self.upto or stop + self._stride // 2 < self.upto:
            return False
        self._wanted = stop + self._stride
        return True

    @property
    def ahead(self) -> tuple[int, int]:
        """As it is said."""
        return self.began, self._wanted
