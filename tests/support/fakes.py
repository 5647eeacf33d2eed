"""Scripted stand-ins for what a partition's owner leans on: Kafka, the transactional writer, the local copy, the clock.

They do what a test tells them and write down what they were asked. What they don't imitate: time (the clock stands still
until it is moved), transactions across partitions, compaction, and the order in which a real broker would answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from aiokafka import ConsumerRecord

from stream_app.core.model import Epochs, LogEnds, LogRead, Look, Runs
from stream_app.core.policy import Policy
from stream_app.core.state import Changes
from stream_app.kafka.driver import Bundle
from stream_app.kafka.names import TopicNames
from stream_app.kafka.topics import TopicConfig
from stream_app.kafka.writer import FencedWriter, OutRecord, WriterLost
from stream_app.service.context import Context, TopicFacts, TopicRules, Unavailable
from stream_app.service.metrics import Counters
from stream_app.service.mirrors import Mirror
from stream_app.service.owner import PartitionOwner
from stream_app.service.telemetry import Telemetry

START_MS = 1_700_000_000_000
TOPIC_ID = bytes(range(16))
OBSERVATIONS_ID = bytes(range(16, 32))
APP = "gap"
NAMES = TopicNames.of(APP, "orders")
ALERTS = f"{APP}.alerts"
STATUS = f"{APP}.status"


async def until(reached: Callable[[], Any], what: str = "what was awaited", seconds: float = 5.0) -> Any:
    """The first truthy value of ``reached``, looked at after every turn of the loop; AssertionError that says ``what`` was awaited."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (found := reached()):
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come within {seconds:g} s"
        await asyncio.sleep(0.001)
    return found


@dataclass
class Clock:
    """A worker's clock that stands still."""

    now_ms: int = START_MS
    asked: int = 0

    def __call__(self) -> int:
        """Now."""
        self.asked += 1
        return self.now_ms


def all_there(runs: Runs) -> Look:
    """What a look says where nothing has happened in Kafka."""
    return Look(upto=runs[-1][1], log_start=0)


@dataclass
class ScriptedPort:
    """A cluster with one watched partition; ``failing`` says how often each call raises Unavailable before it answers."""

    facts_now: TopicFacts = field(default_factory=lambda: TopicFacts(TOPIC_ID, OBSERVATIONS_ID, 1, 1, False, None))
    ends_now: LogEnds = field(default_factory=lambda: LogEnds(0, 0, 0))
    times: dict[str, int | None] = field(default_factory=dict)
    observations_begin: int = 0
    seen_first: int | None = None
    """Partitions that the topic had at first sight."""
    heard: frozenset[str] = frozenset()
    """Sinks that are heard of in some partition."""
    copies: dict[str, int] = field(default_factory=dict)
    """How far copies were read."""
    looking: Callable[[Runs], Look | BaseException] = all_there
    failing: dict[str, int] = field(default_factory=dict)
    journal: list[tuple[Any, ...]] = field(default_factory=list)
    ask_gate: asyncio.Event | None = None
    """While set and not open, ``ends`` waits."""

    def _note(self, *what: Any) -> None:
        self.journal.append(what)
        left = self.failing.get(what[0], 0)
        if left:
            self.failing[what[0]] = left - 1
            raise Unavailable(f"{what[0]} does not answer")

    def asked(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of one method, in order."""
        return [what[1:] for what in self.journal if what[0] == name]

    async def facts(self, topic: str) -> TopicFacts:
        """As scripted."""
        self._note("facts", topic)
        return self.facts_now

    async def policy(self, topic: str, *, fresh: bool = False) -> TopicConfig:
        """As scripted; known to whoever does not ask afresh."""
        if fresh:
            self._note("policy", topic)
        return TopicConfig(self.facts_now.compacted, self.facts_now.retention_ms)

    async def first_partitions(self, topic: str, topic_id: bytes) -> int | None:
        """As scripted."""
        self._note("first_partitions", topic, topic_id)
        return self.seen_first

    def heard_sinks(self, topic: str, topic_id: bytes) -> frozenset[str]:
        """As scripted."""
        return self.heard

    def copied(self, topic: str, topic_id: bytes) -> dict[str, int]:
        """As scripted."""
        return self.copies

    async def ends(self, topic: str, partition: int) -> LogEnds:
        """As scripted."""
        self._note("ends", topic, partition)
        if self.ask_gate is not None:
            await self.ask_gate.wait()
        return self.ends_now

    async def offset_at(self, topic: str, partition: int, time: str) -> int | None:
        """As scripted."""
        self._note("offset_at", topic, partition, time)
        return self.times[time]

    async def look(self, topic: str, partition: int, topic_id: bytes, runs: Runs, older_than_ms: int | None = None) -> Look:
        """As scripted."""
        self._note("look", topic, partition, topic_id, runs, *(() if older_than_ms is None else (older_than_ms,)))
        await asyncio.sleep(0)
        found = self.looking(runs)
        if isinstance(found, BaseException):
            raise found
        return found

    def read_from(self, topic: str, partition: int, position: int, topic_id: bytes, leader_epoch: int, epochs: Epochs) -> None:
        """Noted."""
        self._note("read_from", position, topic_id, leader_epoch, epochs)

    def stop_reading(self, topic: str, partition: int) -> None:
        """Noted."""
        self._note("stop_reading", topic, partition)

    async def hear_from(self, topic: str, partition: int, offset: int | None) -> int:
        """The offset, or where the observations begin now if that is later."""
        self._note("hear_from", offset)
        return max(offset or 0, self.observations_begin)


@dataclass
class ScriptedWriter:
    """Takes each write whole or refuses it; ``gate`` closed holds a write up in the middle."""

    writes: list[list[OutRecord]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    """Raised by the next writes, in order."""
    start_failures: list[BaseException] = field(default_factory=list)
    gate: asyncio.Event | None = None
    next_offset: int = 0
    started: int = 0
    stopped: int = 0
    begun: int = 0
    """Writes that were begun, those that failed or are held up included."""

    async def start(self) -> None:
        """Fence."""
        self.started += 1
        if self.start_failures:
            raise self.start_failures.pop(0)

    async def write(self, records: Sequence[OutRecord], offset_of: str) -> int | None:
        """All or nothing; a marker takes an offset too."""
        self.begun += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.writes.append(list(records))
        count = sum(record.topic == offset_of for record in records)
        if not count:
            return None
        last = self.next_offset + count - 1
        self.next_offset = last + 2
        return last

    async def stop(self) -> None:
        """Counted."""
        self.stopped += 1

    def to(self, topic: str) -> list[list[OutRecord]]:
        """What each write wrote to one topic."""
        return [[record for record in write if record.topic == topic] for write in self.writes]

    def events(self) -> list[dict[str, Any]]:
        """Every event told so far."""
        return [json.loads(record.value or b"") for write in self.to(ALERTS) for record in write]


@dataclass
class MemoryStore:
    """A local copy of the changelog without RocksDB."""

    kept: dict[bytes, bytes] = field(default_factory=dict)
    offset: int | None = None

    def items_of(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values."""
        return iter(dict(self.kept).items())

    def put(self, partition: int, changes: Changes, changelog_offset: int) -> None:
        """Mirror a commit."""
        for key, value in changes:
            if value is None:
                self.kept.pop(key, None)
            else:
                self.kept[key] = value
        self.offset = changelog_offset


@dataclass
class Bench:
    """What several owners of one partition, one after the other, have in common."""

    port: ScriptedPort = field(default_factory=ScriptedPort)
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=Clock)
    counters: Counters = field(default_factory=Counters)
    lost: list[tuple[str, int]] = field(default_factory=list)
    policies: Mapping[str, Policy] = field(default_factory=lambda: {"billing": Policy("billing", grace_ms=1_000, stall_after_ms=None)})
    floors: Mapping[str, str] = field(default_factory=lambda: {"billing": "first"})
    lateness_ms: int = 0
    unknown_after_ms: int = 300_000
    forget_after_ms: int | None = None
    writers: list[ScriptedWriter] = field(default_factory=list)
    owners: list[PartitionOwner] = field(default_factory=list)
    mirrors: dict[str, list[Mirror]] = field(default_factory=dict)

    @property
    def writer(self) -> ScriptedWriter:
        """Of the latest owner."""
        return self.writers[-1]

    @property
    def rejected(self) -> dict[str, int]:
        """Observations rejected, by reason."""
        return self.counters.observations_rejected_total

    def make(self, partition: int = 0) -> PartitionOwner:
        """An owner, not fenced yet."""
        context = Context(
            APP, "worker-1", "cluster", self.port, Telemetry(self.counters), self.clock, self.mirrors, lambda *who: self.lost.append(who)
        )
        rules = TopicRules(
            self.policies,
            self.floors,
            self.lateness_ms,
            unknown_after_ms=self.unknown_after_ms,
            forget_after_ms=self.forget_after_ms,
        )
        self.writers.append(ScriptedWriter())
        owner = PartitionOwner(context, NAMES, partition, rules, cast(FencedWriter, self.writers[-1]), self.store)
        self.owners.append(owner)
        return owner

    async def begun(self, partition: int = 0) -> PartitionOwner:
        """An owner that works, its first flush made."""
        owner = self.make(partition)
        await owner.fence()
        owner.begin()
        await until(lambda: owner.flushed_read is not None, "the first flush")
        return owner

    async def close(self) -> None:
        """Release what still works."""
        for writer in self.writers:
            writer.failures.clear()
            if writer.gate is not None:
                writer.gate.set()
        for owner in self.owners:
            if owner.ledger is not None or owner._task is not None:
                await owner.release()


def log_read(position: int, stop: int, **facts: Any) -> LogRead:
    """Records from ``position`` to ``stop``, read to the log's end unless said otherwise."""
    time_ms = START_MS if stop > position else None
    given = {
        "topic_id": TOPIC_ID, "records": ((position, stop),) if stop > position else (), "high_watermark": stop, "last_stable": stop,
        "leader_epoch": 0, "epochs": ((facts.get("leader_epoch", 0), position),), "min_timestamp_ms": time_ms, "max_timestamp_ms": time_ms,
    }  # fmt: skip
    return LogRead(position, stop, **{**given, **facts})


def said(sink: str = "billing", *, partition: int = 0, topic: str = "orders", **fields: Any) -> dict[str, Any]:
    """An observation as JSON has it; ``runs`` closed."""
    return {"v": 1, "sink": sink, "topic": topic, "partition": partition, **fields}


def record_of(offset: int, value: Mapping[str, Any] | bytes | None, at_ms: int = START_MS, partition: int = 0) -> ConsumerRecord:
    """A record of the observations topic."""
    body = json.dumps(value).encode() if isinstance(value, Mapping) else value
    return ConsumerRecord(NAMES.observations, partition, offset, at_ms, 1, None, body, None, 0, len(body or b""), ())


def bundle(position: int, *values: Mapping[str, Any] | bytes | None, heard_ms: int | None = None, at_ms: int = START_MS) -> Bundle:
    """Observations at ``position``, ``position`` + 1, ..., as the driver hands them on."""
    records = tuple(record_of(position + number, value, at_ms) for number, value in enumerate(values))
    return Bundle(position, records, position + len(records), heard_ms)


LOST = WriterLost("ProducerFenced: there is a newer producer")
