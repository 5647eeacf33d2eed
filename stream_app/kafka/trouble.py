"""What the log reader can't settle by itself, told to its owner as facts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TroubleKind(StrEnum):
    """What is the matter. Of the first three the reader stops reading the partition until it is assigned anew."""

    RECREATED = "recreated"
    """The topic has another id now: ``topic_id``. Confirmed by metadata and by the leader's refusal of the old id."""
    TRUNCATED = "truncated"
    """The leader's log differs from what was read, from ``end_offset`` on at the latest; ``leader_epoch`` ends there. Believed of a
    newer leader only, and confirmed over a fresh connection."""
    OUT_OF_RANGE = "out_of_range"
    """The position lies above the end, ``end_offset``, and no epoch tells why. Believed of a newer leader, or where brokers have no
    epochs; confirmed over time and over a fresh connection."""
    SUSPECT = "suspect"
    """An answer that contradicts what was read, and nothing lawful explains it; not believed, asked again."""
    UNKNOWN_TOPIC = "unknown_topic"
    """No such topic, or not this partition of it; watched for."""
    NO_LEADER = "no_leader"
    """Nobody leads the partition, or those who should say no; retried."""
    UNREACHABLE = "unreachable"
    """Brokers can't be reached; retried."""
    REFUSED = "refused"
    """TLS, SASL or an ACL says no; retried slowly."""
    UNSUPPORTED = "unsupported"
    """The broker is too old; retried slowly."""
    DAMAGED = "damaged"
    """Bytes that can't be used were received; read once more on a fresh connection before the range is told as unreadable."""
    STUCK = "stuck"
    """The broker gives nothing where its own end says that there is something; retried."""
    UNEXPECTED = "unexpected"
    """An error code that decides nothing here; retried."""


HALTS = frozenset({TroubleKind.RECREATED, TroubleKind.TRUNCATED, TroubleKind.OUT_OF_RANGE})
"""After these the partition waits for ``assign``."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One fact. What does not apply is None."""

    kind: TroubleKind
    topic: str
    partition: int
    message: str
    """One sentence that says what to do."""
    position: int | None = None
    """Next offset to be read, where it is known."""
    topic_id: bytes | None = None
    end_offset: int | None = None
    leader_epoch: int | None = None
