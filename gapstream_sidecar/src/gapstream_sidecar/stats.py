"""What a sidecar tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the sidecar was made (in a forked child: since the fork)."""

    sent: int = 0
    """Observations handed to the client; trying one again is not counted."""
    acknowledged: int = 0
    """Observations that are in the topic."""
    failed: int = 0
    """Attempts that ended with an error, and faults inside the sidecar."""
    dropped: int = 0
    """Offsets whose report was given up: told as unobserved later, or not at all where the sidecar was closed first or
    replayed records told them of a partition that nobody watches."""
    backlog_bytes: int = 0
    """Memory of what is not yet acknowledged, about."""
