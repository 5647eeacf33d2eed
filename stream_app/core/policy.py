"""How a sink is judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one sink, from its configuration."""

    name: str
    configured: bool = True
    grace_ms: int = 2_000
    floor: int | None = None
    """First offset that the sink answers for; None: the lowest observed before the first verdict."""
    tombstones_optional: bool = False
    stall_after_ms: int | None = 60_000
    tell_duplicates: bool = True
    group: str | None = None
    """The consumer group whose commits are the sink's claims: then claims alone make its horizon, and records pass it when the
    group commits past them, not by time."""
    inferred: bool = False
    """What the sink received is known by the commits of its group alone."""
    mirrored: bool = False
    """What it received is read from topics of copies, whose partitions are read side by side by several workers: nothing is missing
    before all of them were read to an end of later than ``grace``."""
    checks: tuple[str, ...] = ()
    """Names of what is asked of the sink beside its observations: where one fails for long enough, the sink is unknown."""

    @classmethod
    def unconfigured(cls, name: str) -> Policy:
        """Of a sink that reports but stands in no configuration: nobody is told anything of it."""
        return cls(name, configured=False, stall_after_ms=None, tell_duplicates=False)
