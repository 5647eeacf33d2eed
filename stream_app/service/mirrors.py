"""Topics as sinks: what their records say of the watched topic, as observations of the flush that keeps how far they were read.

Each partition of a topic of copies is read by the owner of one watched partition, so that its position stands in one ledger and
is written in the transaction that writes what was read: a restart repeats nothing and leaves nothing out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stream_app.core.ledger import Ledger
from stream_app.core.model import Observation, Status
from stream_app.kafka.copies import Copies, CopyReader
from stream_app.kafka.names import TopicNames
from stream_app.kafka.writer import OutRecord
from stream_app.service.context import Port, TopicFacts
from stream_app.sinks.copies import Gathered, observations
from stream_app.sinks.observation import encode


@dataclass(frozen=True, slots=True)
class Mirror:
    """A topic whose records say what a sink received, or that it set records aside."""

    sink: str
    status: Status
    reason: str | None
    reader: CopyReader


def _numbers(partition: int, ledger: Ledger, mirror: Mirror) -> range:
    """The copies' partitions that the owner of a watched partition reads: as many owners as there were partitions at first sight."""
    if not 0 <= partition < ledger.partitions:
        return range(0)
    return range(partition, mirror.reader.partitions or 0, ledger.partitions)


def leave(partition: int, ledger: Ledger, mirrors: Sequence[Mirror]) -> None:
    """This worker does not own the watched partition any more."""
    for mirror in mirrors:
        for number in _numbers(partition, ledger, mirror):
            mirror.reader.leave(number)


async def collect(port: Port, names: TopicNames, partition: int, ledger: Ledger, mirrors: Sequence[Mirror], out: list[OutRecord]) -> None:
    """Appends what the copies that are this partition's to read say now, and notes in the ledger how far they were read.

    Raises:
        Unavailable: Kafka can't be asked now; what was appended was noted, and nothing else.
    """
    facts: TopicFacts | None = None
    for mirror in mirrors:
        for number in _numbers(partition, ledger, mirror):
            source = f"topic:{mirror.reader.where.topic}/{number}"
            key = f"{mirror.sink}/{source}"
            position, sequence = ledger.mirrored.get(key, (None, 0))
            copies = mirror.reader.take(number, position, at_end=ledger.reborn)
            if copies is None:
                continue
            facts = facts or await port.facts(names.watched)
            said = _said(names.watched, mirror, source, sequence, copies)
            if copies.lost:
                said += await _unobserved(port, names.watched, facts, mirror, source, sequence + len(said))
            if any(facts.observed_partitions <= where < facts.partitions for where, _ in said):
                continue  # the topic grows: its observations follow, and then it is read again from here
            out += [_record(names, where, one) for where, one in said if where < facts.partitions]
            ledger.mirrored[key] = (copies.next, sequence + len(said))


def _said(topic: str, mirror: Mirror, source: str, sequence: int, copies: Copies) -> list[tuple[int, Observation]]:
    gathered = Gathered()
    gathered.add(copies.sources, topic)
    return observations(gathered, mirror.sink, mirror.status, mirror.reason, source, sequence)


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
