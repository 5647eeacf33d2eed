"""What the commits of a consumer group say of a sink, as observations. Pure.

A commit says that the group is done with everything below it. For a sink that reports what it received, that is a claim and no
more. Of a group that reports nothing, what it passes counts as received, but for what retention took first: a record below the
log's start while the group had not passed it yet, or had committed nothing so far, was never received by it; of one that both
passed between two looks, nobody knows which came first, so it is ``unobserved``.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_app.core.model import Observation, Status
from stream_app.core.sources import GROUP_PREFIX
from stream_app.sinks.observation import source_named

UNOBSERVED = "the log's start and the group's commit passed it between two looks"


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows, all that was written before being folded."""

    sequence: int
    """The last one of this group; -1: none."""
    passed: int | None
    """What lies below was told before, or is none of the sink's: its horizon, else its floor; None: it has neither."""
    topic_id: bytes


@dataclass(frozen=True, slots=True)
class Starts:
    """Where the log started, at two moments."""

    before: int
    """At a moment after which the group was seen not to be beyond ``passed``, or to have no commit yet; 0: none is known."""
    now: int
    """At a moment after its commit was seen."""


def source_of(group: str) -> str:
    """The source of its observations: its name, cut and told apart by a digest where it is longer than a source may be."""
    return source_named(GROUP_PREFIX, group)


def statements(sink: str, group: str, known: Known, commit: int, starts: Starts | None) -> list[Observation]:
    """What to write when the group's commit is another one than the ledger knows; ``starts`` None: the sink itself reports."""
    source, sequence, said = source_of(group), known.sequence, []
    received: tuple[tuple[int, int], ...] = ()
    if starts is not None and known.passed is not None and known.passed < commit:
        lost_to = min(max(known.passed, starts.before), commit)
        unsure_to = min(max(lost_to, starts.now), commit)
        if lost_to < unsure_to:
            sequence += 1
            said.append(
                Observation(
                    sink,
                    ((lost_to, unsure_to),),
                    Status.UNOBSERVED,
                    reason=UNOBSERVED,
                    source=source,
                    sequence=sequence,
                    topic_id=known.topic_id,
                )
            )
        received = ((unsure_to, commit),) if unsure_to < commit else ()
    said.append(Observation(sink, received, claim=commit, source=source, sequence=sequence + 1, topic_id=known.topic_id))
    return said
