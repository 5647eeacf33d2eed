"""What each source of a sink's observations said last: repeats are known by it, and claims that went back."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream_app.core.model import Observation

SOURCES_MAX = 256
"""Sources remembered per sink and partition; the one silent longest is forgotten first. A source is one run of a program: 256 of
36 letters are 12 kB of the value that each flush writes."""
GROUP_PREFIX = "group:"
"""Begins the source of what the commits of a consumer group say; its name follows."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """How a source's claim moved with one observation."""

    before: int | None
    now: int

    @property
    def moved(self) -> bool:
        """Whether it is another one than before."""
        return self.before != self.now

    @property
    def went_back(self) -> bool:
        """Whether it is lower than before."""
        return self.before is not None and self.now < self.before


@dataclass(slots=True)
class Sources:
    """Last sequence and last claim per source, the one silent longest first."""

    sequences: dict[str, int] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)
    """Of those sources that claimed; a group's is its commit."""
    behind: tuple[str, int] | None = None
    """The source that went back last, and from which claim; None: whichever did has claimed that much again."""

    def is_repeat(self, observation: Observation) -> bool:
        """At or below the last sequence of its source; notes the sequence."""
        source, sequence = observation.source, observation.sequence
        if source is None or sequence is None:
            return False
        last = self.sequences.pop(source, None)
        repeat = last is not None and sequence <= last
        self.sequences[source] = last if repeat and last is not None else sequence
        while len(self.sequences) > SOURCES_MAX:
            self._forget(next(iter(self.sequences)))
        return repeat

    def note_claim(self, observation: Observation) -> Claimed | None:
        """Note the claim of an observation that is no repeat; None: it makes none, or does not say who claims."""
        source, claim = observation.source, observation.claim
        if source is None or claim is None:
            return None
        claimed = Claimed(self.claims.get(source), claim)
        self.claims[source] = claim
        if claimed.went_back and claimed.before is not None:
            if self.behind is None or self.behind[0] != source:
                self.behind = (source, claimed.before)
        elif self.behind is not None and self.behind[0] == source and claim >= self.behind[1]:
            self.behind = None
        return claimed

    def why_behind(self) -> str | None:
        """In words, who went back from where, and where it is; None: nobody is behind."""
        if self.behind is None:
            return None
        source, before = self.behind
        return f"{described(source)} went back from {before} and is at {self.claims[source]}"

    def truncate(self, offset: int) -> None:
        """The log lost everything from ``offset`` on: whoever claimed more goes on from there, and that is no going back."""
        self.claims = {source: min(claim, offset) for source, claim in self.claims.items()}
        if self.behind is not None and self.claims[self.behind[0]] >= min(self.behind[1], offset):
            self.behind = None

    def _forget(self, source: str) -> None:
        del self.sequences[source]
        self.claims.pop(source, None)
        if self.behind is not None and self.behind[0] == source:
            self.behind = None


def described(source: str) -> str:
    """A source in words: ``group billing`` or ``source host-1``."""
    name = source.removeprefix(GROUP_PREFIX)
    return f"group {name}" if name != source else f"source {source}"
