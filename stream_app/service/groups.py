"""Asks for the commits of consumer groups, and has the owners of partitions write down what they say.

Every second or so one question a group, for all partitions owned here that it is to have read. What is written is decided by
comparing the answer with the ledger, not with what was said before: what did not get there is said again, and a worker that takes
over goes on from what it reads in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from stream_app.core.ledger import Ledger
from stream_app.core.model import MAX_OFFSET
from stream_app.core.sink import SinkState
from stream_app.kafka.failures import KafkaError
from stream_app.service.owner import PartitionOwner
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.group import Known, Starts, source_of, statements

log = structlog.get_logger("gapstream.groups")

GROUP_CHECK = "group"
"""The name of this check of a sink."""
EVERY_SECONDS = 1.0
"""A group is asked for this often: commits themselves come every few seconds by default (auto.commit.interval.ms)."""
TICK_SECONDS = 0.1
BACKOFF_SECONDS = 30.0
"""The longest pause after failures."""
LAST_SEQUENCE = MAX_OFFSET - 2
"""Of a source: two statements may follow it."""
SAID_SECONDS = 30.0
"""What was handed to an owner and is not in the ledger after so long was rejected: it is said again if it still holds."""

Partition = tuple[str, int]
Key = tuple[str, int, str]


class Asking(Protocol):
    """What is asked of Kafka; see :class:`stream_app.kafka.groups.Groups`. Each call may raise KafkaError."""

    async def committed(self, group: str, partitions: Collection[Partition]) -> dict[Partition, int | KafkaError | None]:
        """The group's commit of each partition."""

    async def log_starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Where these logs start now."""

    async def close(self) -> None:
        """Give connections up."""


@dataclass(slots=True)
class Watch:
    """What is remembered of one sink in one partition, while this worker owns it."""

    sink: SinkState
    start: int = 0
    """A start of the log after which the group was seen not to be beyond what the ledger knows."""
    committed: bool = False
    """Whether the group was seen to have a commit here."""
    said: int = -1
    """Sequence of what was handed to the owner last."""
    said_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """One sink of one partition as of a question."""

    owner: PartitionOwner
    ledger: Ledger
    sink: SinkState
    watch: Watch
    start: int
    """Of the log, as it was known before the question."""

    @property
    def name(self) -> str:
        """The sink's."""
        return self.sink.policy.name

    @property
    def partition(self) -> Partition:
        """Topic and number."""
        return self.owner.topic, self.owner.partition

    @property
    def group(self) -> str:
        """The group whose commits are its claims."""
        assert self.sink.policy.group is not None
        return self.sink.policy.group

    @property
    def current(self) -> bool:
        """Whether the partition is owned still, and the sink is the one that was asked about."""
        return self.owner.ledger is self.ledger and self.ledger.sinks.get(self.name) is self.sink

    @property
    def passed(self) -> int | None:
        """What lies below needs not be told."""
        return self.sink.floor if self.sink.horizon is None else self.sink.horizon

    @property
    def sequence(self) -> int:
        """The last one of this group that was folded."""
        return self.sink.sources.sequences.get(source_of(self.group), -1)

    @property
    def claim(self) -> int | None:
        """The group's commit as the ledger knows it."""
        return self.sink.sources.claims.get(source_of(self.group))

    def note(self, failure: str | None) -> None:
        """The check answered, or why it did not."""
        if self.current:
            self.owner.note_check(self.name, GROUP_CHECK, failure)


class GroupWatcher:
    """One loop for all groups of this worker; a question to each of them runs by itself."""

    def __init__(
        self, asking: Asking, owners: Callable[[], Iterable[PartitionOwner]], groups: Collection[str], telemetry: Telemetry
    ) -> None:
        """``owners``: of the partitions owned now. ``groups``: all that stand in the configuration."""
        self._asking, self._owners, self._groups, self._telemetry = asking, owners, groups, telemetry
        self._watches: dict[Key, Watch] = {}
        self._rounds: dict[str, asyncio.Task[None]] = {}
        self._due: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch in the background until stopped; without groups there is nothing to do."""
        if self._groups:
            self._task = asyncio.create_task(self._run(), name="groups")

    async def stop(self) -> None:
        """End at once."""
        tasks = [task for task in (self._task, *self._rounds.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._asking.close()

    async def _run(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            due = [group for group in self._groups if group not in self._rounds and now >= self._due.get(group, 0.0)]
            targets = self._targets() if due else {}
            for group in due:
                self._due[group] = now + EVERY_SECONDS
                if group in targets:
                    self._rounds[group] = task = asyncio.create_task(self._round(group, targets[group]), name=f"group {group}")
                    task.add_done_callback(partial(self._ended, group))
            await asyncio.sleep(TICK_SECONDS)

    def _ended(self, group: str, task: asyncio.Task[None]) -> None:
        del self._rounds[group]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a group is asked again after a defect", group=group, error=f"{type(error).__name__}: {error}", exc_info=error)
            self._back_off(group)

    def _targets(self) -> dict[str, list[Target]]:
        """By group; of ledgers that have heard all that was written before this worker owned them."""
        found: dict[str, list[Target]] = {}
        watches: dict[Key, Watch] = {}
        for owner in self._owners():
            ledger = owner.ledger
            for sink in ledger.judged() if ledger is not None else ():
                group = sink.policy.group
                if ledger is None or group is None:
                    continue
                key = (owner.topic, owner.partition, sink.policy.name)
                watch = self._watches.get(key)
                watches[key] = watch = watch if watch is not None and watch.sink is sink else Watch(sink)
                if ledger.heard_ms is not None:
                    found.setdefault(group, []).append(Target(owner, ledger, sink, watch, ledger.log.start))
        self._watches = watches
        return found

    async def _round(self, group: str, targets: list[Target]) -> None:
        """Ask once, and have written what is new."""
        try:
            commits = await self._asking.committed(group, {target.partition for target in targets})
        except KafkaError as exc:
            self._failed(group, targets, exc)
            return
        moved = [(target, commit) for target in targets if (commit := self._judge(target, commits[target.partition])) is not None]
        inferred = [target for target, commit in moved if target.sink.policy.inferred and _passes(target, commit)]
        try:
            starts = await self._asking.log_starts({target.partition for target in inferred}) if inferred else {}
        except KafkaError as exc:
            self._failed(group, targets, exc)
            return
        self._failures.pop(group, None)
        now = asyncio.get_running_loop().time()
        for target, commit in moved:
            if target.current:
                start = starts.get(target.partition)
                self._say(target, commit, None if start is None else Starts(target.watch.start, start), now)

    def _judge(self, target: Target, commit: int | KafkaError | None) -> int | None:
        """The commit, if it is news for the ledger; what keeps the check from an answer is noted."""
        if not target.current:
            return None
        group, end = target.group, target.ledger.log.end
        if isinstance(commit, KafkaError):
            target.note(str(commit))
            return None
        if commit is None:
            target.note(_why_none(target))
            if _came_never(target):
                target.watch.start = target.start
            return None
        target.watch.committed = True
        if commit > end:
            target.note(f"group {group} committed {commit}, beyond the log's end {end}")
            return None
        target.note(None)
        if not _passes(target, commit):
            target.watch.start = target.start
        waits = target.watch.said > target.sequence and asyncio.get_running_loop().time() - target.watch.said_at < SAID_SECONDS
        return None if commit == target.claim or waits else commit

    def _say(self, target: Target, commit: int, starts: Starts | None, now: float) -> None:
        if target.sequence > LAST_SEQUENCE:
            target.note(f"somebody else reports as {source_of(target.group)}, and left no number for what the group commits")
            return
        known = Known(target.sequence, target.passed, target.ledger.log.topic_id)
        said = statements(target.name, target.group, known, commit, starts)
        target.owner.say(said)
        target.watch.said, target.watch.said_at = said[-1].sequence or 0, now

    def _failed(self, group: str, targets: Iterable[Target], failure: KafkaError) -> None:
        self._telemetry.trouble(f"commits of group {group} can't be asked now", reason=str(failure))
        for target in targets:
            target.note(str(failure))
        self._back_off(group)

    def _back_off(self, group: str) -> None:
        failures = self._failures[group] = self._failures.get(group, 0) + 1
        pause = min(EVERY_SECONDS * 2 ** min(failures, 10), BACKOFF_SECONDS)
        self._due[group] = asyncio.get_running_loop().time() + pause


def _passes(target: Target, commit: int) -> bool:
    """Whether the commit is beyond what the ledger knows; not where that is nothing."""
    return target.passed is not None and commit > target.passed


def _came_never(target: Target) -> bool:
    """Whether the group, which has no commit here, never had one that anybody saw: one that is gone may have passed anything before."""
    return not target.watch.committed and target.sink.horizon is None


def _why_none(target: Target) -> str | None:
    """Why it matters that the group has no commit here; None: it may never have been here."""
    if target.claim is not None:
        return f"group {target.group} has no commit for this partition any more; it was {target.claim}"
    if not target.sink.policy.inferred and target.sink.heard:
        return f"group {target.group} has committed nothing in this partition, though records of it are reported"
    return None
