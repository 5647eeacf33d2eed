"""What an owner of partitions works with: facts of the broker, rules of the configuration, and its ways to Kafka."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stream_app.core.model import Epochs, LogEnds, Look, Runs
from stream_app.core.policy import Policy
from stream_app.core.state import Changes
from stream_app.kafka.topics import TopicConfig
from stream_app.service.telemetry import Telemetry

if TYPE_CHECKING:
    from stream_app.service.mirrors import Mirror


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the broker says of a watched topic now."""

    topic_id: bytes
    observations_id: bytes
    partitions: int
    observed_partitions: int
    """Of the observations topic, which grows after the watched one."""
    compacted: bool | None
    """cleanup.policy holds ``compact``; None: could not be asked."""
    retention_ms: int | None


@dataclass(frozen=True, slots=True)
class TopicRules:
    """The configuration of one watched topic, as its owners need it."""

    policies: Mapping[str, Policy]
    """By sink; the floor is filled in for each partition."""
    floors: Mapping[str, str]
    """By sink: ``first``, ``earliest``, ``latest`` or a TIME."""
    lateness_ms: int
    read_committed: bool = True
    """Whether records count by the last stable offset."""
    unknown_after_ms: int = 300_000
    """Checks of a sink that fail for so long make it unknown."""
    forget_after_ms: int | None = None
    """Sinks that left the configuration are kept for so long."""


class Port(Protocol):
    """What an owner needs from Kafka. Every call may raise :class:`Unavailable`; the owner tries again."""

    async def facts(self, topic: str) -> TopicFacts:
        """Ids and settings of a watched topic."""

    async def policy(self, topic: str, *, fresh: bool = False) -> TopicConfig:
        """cleanup.policy and retention, not older than half a minute; ``fresh``: asked now."""

    async def first_partitions(self, topic: str, topic_id: bytes) -> int | None:
        """How many partitions this incarnation had when it was first seen; None: nobody has seen it yet."""

    def heard_sinks(self, topic: str, topic_id: bytes) -> frozenset[str]:
        """Sinks that are heard of in some partition of this incarnation, as far as the workers have said."""

    def copied(self, topic: str, topic_id: bytes) -> Mapping[str, int]:
        """How far the workers have read and written down the copies of this incarnation; see ``StatusRecord.copied``."""

    async def ends(self, topic: str, partition: int) -> LogEnds:
        """A log's ends, asked afresh."""

    async def offset_at(self, topic: str, partition: int, time: str) -> int | None:
        """First offset whose record is not older than a TIME; None: there is none yet."""

    async def look(self, topic: str, partition: int, topic_id: bytes, runs: Runs, older_than_ms: int | None = None) -> Look:
        """A second look at candidates, on a fresh connection; with a time, which of them are older."""

    def read_from(self, topic: str, partition: int, position: int, topic_id: bytes, leader_epoch: int, epochs: Epochs) -> None:
        """Have the log reader (re)start at a position; what was read below it is of these leader epochs."""

    def stop_reading(self, topic: str, partition: int) -> None:
        """No more of this log."""

    async def hear_from(self, topic: str, partition: int, offset: int | None) -> int:
        """Position the observations (None: beginning); where they begin now."""


class Unavailable(Exception):
    """Kafka can't be asked now; the message says what failed."""


class Store(Protocol):
    """The local copy of the changelog."""

    def items_of(self, partition: int) -> Any:
        """Keys and values of one partition."""

    def put(self, partition: int, changes: Changes, changelog_offset: int) -> None:
        """Mirror a commit."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all owners of one worker share."""

    app_id: str
    instance: str
    cluster_id: str
    port: Port
    telemetry: Telemetry
    clock_ms: Callable[[], int]
    mirrors: Mapping[str, Sequence[Mirror]]
    """By watched topic: the topics that are sinks of it, and their dead letters."""
    on_lost: Callable[[str, int], None]
    """Called once when a partition's flush was lost: have the group assign anew."""
