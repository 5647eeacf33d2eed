"""All partitions that this worker owns: the driver's and the agents' way to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from faust.types import TP

from stream_app.core.model import LogRead, Row
from stream_app.kafka.driver import Bundle, Partition
from stream_app.kafka.names import TopicNames
from stream_app.kafka.reader import LogReader
from stream_app.kafka.writer import FencedWriter, WriterLost
from stream_app.service.context import Context, TopicRules
from stream_app.service.owner import PartitionOwner

log = structlog.get_logger("gapstream.owners")

REJOIN_FIRST_SECONDS = 1.0
REJOIN_LAST_SECONDS = 30.0
CALM_SECONDS = 60.0
"""Without a lost flush for so long, the next one is answered at once again."""
FENCES_AT_ONCE = 20
"""Transactional producers started at the same time: each has connections of its own."""


class OwnedPartitions:
    """Implements :class:`stream_app.kafka.driver.Owners`."""

    def __init__(
        self,
        reader: LogReader,
        names: Mapping[str, TopicNames],
        rules: Mapping[str, TopicRules],
        connection: Mapping[str, Any],
        clock_ms: Callable[[], int],
    ) -> None:
        """``names``, ``rules``: by watched topic."""
        self._reader, self._names, self._rules, self._connection = reader, names, rules, connection
        self.clock_ms = clock_ms
        self._kinds = {name.watched: "log" for name in names.values()} | {name.observations: "observations" for name in names.values()}
        self._by_observations = {name.observations: name.watched for name in names.values()}
        self._owned: dict[Partition, PartitionOwner] = {}
        self._context: Context | None = None
        self._rejoin: Callable[[], Awaitable[None]] | None = None
        self._drop: Callable[[str, int], None] | None = None
        self._store_of: Callable[[str], Any] | None = None
        self._ready: set[str] = set()
        self._rejoining: asyncio.Task[None] | None = None
        self._lost_at: float | None = None
        self._wait_seconds = REJOIN_FIRST_SECONDS
        self.assigned = False
        """Whether an assignment was received since the start."""
        self.waiting: str | None = None
        """What an assignment waits for, where that is known."""

    def wire(
        self,
        context: Context,
        store_of: Callable[[str], Any],
        drop: Callable[[str, int], None],
        rejoin: Callable[[], Awaitable[None]],
    ) -> None:
        """What exists only once the application does. ``drop``: forget the local copy of a partition's state."""
        self._context, self._store_of, self._drop, self._rejoin = context, store_of, drop, rejoin

    # --- the driver's calls -------------------------------------------------------------------------------------------

    def kind(self, topic: str) -> str:
        """``log``, ``observations`` or ``other``."""
        return self._kinds.get(topic, "other")

    async def fence(self, partitions: set[Partition]) -> None:
        """Fresh writers for all of them, before their changelogs are read."""
        await self.release(set(self._owned))
        assert self._context is not None
        assert self._store_of is not None
        for topic, partition in sorted(partitions):
            names = self._names[topic]
            writer = FencedWriter(self._connection, f"{self._context.app_id}-{topic}-{partition}")
            owner = PartitionOwner(self._context, names, partition, self._rules[topic], writer, self._store_of(topic))
            self._owned[topic, partition] = owner
        gate = asyncio.Semaphore(FENCES_AT_ONCE)

        async def fence(owner: PartitionOwner) -> None:
            async with gate:
                try:
                    await owner.fence()
                except WriterLost as exc:
                    owner.trouble = str(exc)
                    log.warning("a partition can't be taken over now", topic=owner.topic, partition=owner.partition, reason=str(exc))
                    self._ask_for_assignment()

        await asyncio.gather(*map(fence, self._owned.values()))

    def begin(self, partitions: set[Partition]) -> None:
        """Recovery is complete."""
        self.assigned = True
        for key in partitions:
            owner = self._owned.get(key)
            if owner is not None:
                owner.begin()

    async def release(self, partitions: set[Partition]) -> dict[TP, int]:
        """Flush and forget; what was flushed, by input."""
        leaving = {key: owner for key, owner in self._owned.items() if key in partitions}
        self._owned = {key: owner for key, owner in self._owned.items() if key not in partitions}
        released = await asyncio.gather(*(owner.release() for owner in leaving.values()))
        found: dict[TP, int] = {}
        for (topic, partition), flushed in zip(leaving, released, strict=True):
            if flushed is not None:
                found[TP(topic, partition)], found[TP(self._names[topic].observations, partition)] = flushed
        return found

    def reads(self) -> dict[Partition, LogRead]:
        """Answers of the log reader that are ready."""
        return self._reader.take()

    async def wait_reads(self) -> None:
        """Until there are some."""
        await self._reader.wait(troubles=False)

    def positions(self) -> dict[TP, int]:
        """What was flushed, by input."""
        found = {}
        for (topic, partition), owner in self._owned.items():
            if owner.flushed_read is not None:
                found[TP(topic, partition)] = owner.flushed_read
            if owner.flushed_observed is not None:
                found[TP(self._names[topic].observations, partition)] = owner.flushed_observed
        return found

    def hindered(self, reason: str) -> None:
        """State can't be recovered now; it is tried again."""
        assert self._context is not None
        self._context.telemetry.trouble("state can't be recovered now", reason=reason)

    async def ready_topics(self) -> set[str]:
        """Topics that can be subscribed to: complete groups only."""
        return set(self._ready)

    # --- the agents' and the service's calls --------------------------------------------------------------------------

    def set_ready(self, topics: set[str]) -> bool:
        """Watched topics that exist with all that belongs to them; whether that changed."""
        ready = {topic for name in topics for topic in _group(self._names[name])}
        changed = ready != self._ready
        self._ready = ready
        return changed

    def note_observations(self, topic_ids: Mapping[str, bytes]) -> None:
        """Ids of observations topics, as the cluster names them now."""
        for (topic, _), owner in self._owned.items():
            topic_id = topic_ids.get(self._names[topic].observations)
            if topic_id is not None:
                owner.observations_are(topic_id)

    def fold_log(self, topic: str, partition: int, read: LogRead) -> None:
        """From the agent of a watched topic."""
        owner = self._owned.get((topic, partition))
        if owner is not None:
            owner.fold_log(read)

    async def fold_observations(self, observations: str, partition: int, bundle: Bundle) -> None:
        """From the agent of an observations topic."""
        owner = self._owned.get((self._by_observations[observations], partition))
        if owner is not None:
            await owner.fold_observations(bundle)

    def owners(self) -> list[PartitionOwner]:
        """All of them, by topic and partition."""
        return [self._owned[key] for key in sorted(self._owned)]

    def owner(self, topic: str, partition: int) -> PartitionOwner | None:
        """One of them."""
        return self._owned.get((topic, partition))

    def rows(self) -> list[Row]:
        """Rows of what this worker owns, as of the last flushes."""
        return [row for owner in self.owners() for row in owner.rows]

    def checked(self) -> dict[str, int]:
        """``topic/partition`` -> when the log's end was last read with nothing left to flush."""
        return {f"{o.topic}/{o.partition}": o.clean_end_read_ms for o in self._owned.values() if o.clean_end_read_ms is not None}

    def flushed(self) -> dict[str, int]:
        """``topic/partition`` -> time of the rows flushed last."""
        return {f"{o.topic}/{o.partition}": o.rows[0].updated_at_ms for o in self._owned.values() if o.rows}

    def lost(self, topic: str, partition: int) -> None:
        """A flush was lost: drop the local copy, have the group assign anew (not too often)."""
        assert self._drop is not None
        self._drop(topic, partition)
        self._ask_for_assignment()

    def _ask_for_assignment(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._lost_at is None or now - self._lost_at > CALM_SECONDS:
            self._wait_seconds = REJOIN_FIRST_SECONDS
        self._lost_at = now
        if self._rejoining is None or self._rejoining.done():
            self._rejoining = asyncio.create_task(self._rejoin_later(self._wait_seconds), name="rejoin")
            self._wait_seconds = min(self._wait_seconds * 2, REJOIN_LAST_SECONDS)

    async def _rejoin_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        assert self._rejoin is not None
        log.info("asking the group for a new assignment")
        await self._rejoin()

    async def stop(self) -> None:
        """End what runs beside the owners."""
        if self._rejoining is not None:
            self._rejoining.cancel()
        await self.release(set(self._owned))


def _group(names: TopicNames) -> tuple[str, str, str]:
    return names.watched, names.observations, names.changelog
