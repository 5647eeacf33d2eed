"""Topics as sinks: what their records say of the watched topic, as observations of the flush that keeps how far they were read.

Each partition of a topic of copies is read by the owner of one watched partition, so that its position stands in one ledger and
is written in the transaction that writes what was read: a restart repeats nothing and leaves nothing out.

A watched partition's copies may lie in any of them, and another worker may be slow to read its own, or gone. So each owner asks how
far all of them reach, waits until the owners have said that they read so far, and until it has read what they wrote: only then it
knows what had been copied when it asked (:meth:`Mirrors.follow`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stream_app.core import copied
from stream_app.core.ledger import Ledger
from stream_app.core.model import Observation, Status
from stream_app.kafka.copies import Copies, CopyReader, Ends
from stream_app.kafka.names import TopicNames
from stream_app.kafka.writer import OutRecord
from stream_app.service.context import Context, Port, TopicFacts
from stream_app.service.status import copied_key
from stream_app.sinks.copies import Gathered, observations
from stream_app.sinks.observation import encode, source_named

COPIES_CHECK, LETTERS_CHECK = "copies", "dead letters"
"""Names of these checks of a sink."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A topic whose records say what a sink received, or that it set records aside."""

    sink: str
    status: Status
    reason: str | None
    reader: CopyReader

    @property
    def check(self) -> str:
        """What its reading is as a check of the sink."""
        return COPIES_CHECK if self.status is Status.RECEIVED else LETTERS_CHECK

    def source(self, number: int) -> str:
        """Who reports what one of its partitions says."""
        return source_named("topic:", self.reader.where.topic, f"/{number}")

    def key(self, number: int) -> str:
        """Under which the ledger keeps how far a partition was read."""
        return f"{self.sink}/{self.source(number)}"


@dataclass(slots=True)
class Followed:
    """How far all workers together have read one mirror."""

    awaited: Ends | None = None
    """To be reached."""
    at_ms: int | None = None
    """What was copied before this time was read and written down."""


@dataclass(slots=True)
class Unheard:
    """What was copied before a time is written down, but whether this owner has read all of that is not known yet."""

    at_ms: int
    observations_id: bytes
    stop: int | None = None
    """All of it stands below this offset of the observations; None: not asked yet."""
    stable_ms: int | None = None
    """From then on whoever reads them to their end reads that far: no transaction below it is open any more."""


class Mirrors:
    """Those of one watched partition, for its owner."""

    def __init__(self, context: Context, names: TopicNames, partition: int) -> None:
        """Nothing is asked yet."""
        self._context, self._names, self._partition = context, names, partition
        self._mirrors = tuple(context.mirrors.get(names.watched, ()))
        self._followed = [Followed() for _ in self._mirrors]
        self._unheard: dict[str, Unheard] = {}

    def _numbers(self, ledger: Ledger, mirror: Mirror) -> range:
        """The copies' partitions that this owner reads: as many owners as there were partitions at first sight."""
        if not 0 <= self._partition < ledger.partitions:
            return range(0)
        return range(self._partition, mirror.reader.partitions or 0, ledger.partitions)

    def leave(self, ledger: Ledger) -> None:
        """This worker does not own the watched partition any more."""
        for mirror in self._mirrors:
            for number in self._numbers(ledger, mirror):
                mirror.reader.leave(number)

    async def collect(self, ledger: Ledger, out: list[OutRecord]) -> None:
        """Appends what the copies that are this partition's to read say now, and notes in the ledger how far they were read.

        Raises:
            Unavailable: Kafka can't be asked now; what was appended was noted, and nothing else.
        """
        facts: TopicFacts | None = None
        port, names = self._context.port, self._names
        for mirror in self._mirrors:
            for number in self._numbers(ledger, mirror):
                source, key = mirror.source(number), mirror.key(number)
                position, sequence, topic_id = ledger.mirrored.get(key, (None, 0, None))
                copies = mirror.reader.take(number, position, topic_id, at_end=ledger.reborn)
                if copies is None:
                    continue
                facts = facts or await port.facts(names.watched)
                gathered = await self._gather(mirror, copies, facts)
                said = observations(gathered, mirror.sink, mirror.status, mirror.reason, source, sequence)
                if copies.lost:
                    said += await _unobserved(port, names.watched, facts, mirror, source, sequence + len(said))
                if any(facts.observed_partitions <= where < facts.partitions for where, _ in said):
                    continue  # the topic grows: its observations follow, and then it is read again from here
                out += [_record(names, where, one) for where, one in said if where < facts.partitions]
                ledger.mirrored[key] = (copies.next, sequence + len(said), copies.topic_id)

    async def _gather(self, mirror: Mirror, copies: Copies, facts: TopicFacts) -> Gathered:
        """What the copies say, apart from what can't be so: a header that is wrong must not take others along when it is rejected.

        A copy is of a record that could be read, so its source lies below the high watermark that is asked for afterwards.
        """
        topic, gathered = self._names.watched, Gathered()
        gathered.add(copies.sources, topic)
        for partition in [one for one in gathered.offsets if one < facts.partitions]:
            gathered.set_apart(partition, (await self._context.port.ends(topic, partition)).high_watermark)
        nowhere = sum(level.count for one, levels in gathered.offsets.items() if one >= facts.partitions for level in levels)
        self._note_useless(mirror, nowhere, gathered.unknown)
        return gathered

    def _note_useless(self, mirror: Mirror, nowhere: int, unknown: int) -> None:
        """Copies that say nothing of the watched topic that could be used; those of other topics are none of its business."""
        trouble, topic = self._context.telemetry.trouble, mirror.reader.where.topic
        if nowhere:
            trouble("copies are of partitions that are not there", topic=topic, sink=mirror.sink, records=nowhere)
        if unknown:
            trouble("records of a topic of copies tell no source", topic=topic, sink=mirror.sink, records=unknown)

    async def follow(self, ledger: Ledger) -> None:
        """Notes in the ledger up to when its copies are known, and what keeps them from being read.

        Raises:
            Unavailable: Kafka can't be asked now.
        """
        positions = self._context.port.copied(self._names.watched, ledger.log.topic_id) if self._mirrors else {}
        known: dict[str, list[int | None]] = {}
        for mirror, followed in zip(self._mirrors, self._followed, strict=True):
            self._note(ledger, mirror, mirror.reader.trouble or _advance(mirror, followed, positions))
            known.setdefault(mirror.sink, []).append(followed.at_ms)
        for sink, times in known.items():
            await self._hear(ledger, sink, times)

    async def _hear(self, ledger: Ledger, name: str, times: Sequence[int | None]) -> None:
        """Go on to a time up to which the copies are written down, once what was written of the last one is heard."""
        sink, unheard = ledger.sinks.get(name), self._unheard.get(name)
        if sink is None:
            return
        if unheard is None or unheard.observations_id != ledger.observations_id:
            at_ms = min((-1 if one is None else one for one in times), default=-1)
            if not copied.awaits(ledger.log, sink, at_ms):
                return
            unheard = self._unheard[name] = Unheard(at_ms, ledger.observations_id)
        if unheard.stable_ms is None:
            ends = await self._context.port.ends(self._names.observations, self._partition)
            unheard.stop = ends.high_watermark if unheard.stop is None else unheard.stop
            if ends.last_stable < unheard.stop:
                return
            unheard.stable_ms = self._context.clock_ms()
        if ledger.heard_ms is not None and ledger.heard_ms > unheard.stable_ms:
            sink.copied_ms = max(unheard.at_ms, sink.copied_ms or 0)
            del self._unheard[name]

    def _note(self, ledger: Ledger, mirror: Mirror, failure: str | None) -> None:
        ledger.note_check(mirror.sink, mirror.check, failure, self._context.clock_ms())
        if mirror.reader.trouble is not None:
            topic = mirror.reader.where.topic
            self._context.telemetry.trouble("a topic of copies can't be read now", topic=topic, reason=mirror.reader.trouble)


def _advance(mirror: Mirror, followed: Followed, positions: Mapping[str, int]) -> str | None:
    """Go on to the next ends where the last ones were reached; else what is still to be read of them."""
    now = mirror.reader.ends
    if followed.awaited is None or (now is not None and now.topic_id != followed.awaited.topic_id):
        followed.awaited = now
    if followed.awaited is None:
        return f"topic {mirror.reader.where.topic} was not read yet"
    for number, stop in followed.awaited.stops.items():
        position = positions.get(copied_key(mirror.key(number), followed.awaited.topic_id))
        if position is None or position < stop:
            read = "read to nothing" if position is None else f"read to {position}"
            return f"partition {number} of topic {mirror.reader.where.topic} is {read} of {stop}"
    followed.at_ms, followed.awaited = followed.awaited.at_ms, None
    return None


async def _unobserved(
    port: Port, topic: str, facts: TopicFacts, mirror: Mirror, source: str, sequence: int
) -> list[tuple[int, Observation]]:
    """Copies were removed before they were read: they may have been of anything that the log holds now."""
    found = []
    for partition in range(facts.partitions):
        end = (await port.ends(topic, partition)).high_watermark
        if end:
            said = Observation(mirror.sink, ((0, end),), Status.UNOBSERVED, source=source, sequence=sequence)
            found.append((partition, said))
            sequence += 1
    return found


def _record(names: TopicNames, partition: int, said: Observation) -> OutRecord:
    return OutRecord(names.observations, said.sink.encode(), encode(said, names.watched, partition), partition)
