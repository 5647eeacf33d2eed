"""What Kafka itself says: its files, and consumers of both isolation levels; and whether the two agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tests.campaign.verdicts import ABORTED, BARE, HOLE, MARKER, OPEN, RECORD, UNSEEN, Files, Kinds, read_files, runs, where
from tests.support.dump_log import DumpedBatch, Dumper, Where

ISOLATIONS = ("read_committed", "read_uncommitted")
PATIENCE_S = 180.0
_POLL_S = 1.0
FETCH_BYTES = 1 << 20
"""What one partition gets in a fetch at least, by default of most consumers and of ours."""
SMALL, LARGE = 10, 1_000
"""Records of a batch that counts as small, or as large."""


@dataclass
class Received:
    """What an ordinary consumer got of one partition."""

    first: int
    """Where it began: below it was nothing left, or nothing new."""
    offsets: list[int] = field(default_factory=list)


def receive(bootstrap: str, isolation: str, starts: Mapping[Where, int], stops: Mapping[Where, int]) -> dict[Where, Received]:
    """The records that an ordinary consumer receives from ``starts`` on; at least to ``stops``, maybe more."""
    conf: dict[str, Any] = {"bootstrap.servers": bootstrap, "group.id": "oracle", "enable.auto.commit": False, "log_level": 2}
    conf |= {"isolation.level": isolation, "enable.partition.eof": True, "auto.offset.reset": "error"}
    conf |= {"fetch.wait.max.ms": 50, "fetch.queue.backoff.ms": 10, "check.crcs": True}
    found = {place: Received(start) for place, start in starts.items()}
    left = set(starts)
    consumer = Consumer(conf)
    try:
        consumer.assign([TopicPartition(topic, partition, starts[topic, partition]) for topic, partition in starts])
        idle = 0.0
        while left:
            messages = consumer.consume(10_000, _POLL_S)
            idle = 0.0 if messages else idle + _POLL_S
            assert idle < PATIENCE_S, f"{sorted(left)} were not read to their end under {isolation}"
            for message in messages:
                topic, partition, offset = message.topic(), message.partition(), message.offset()
                assert topic is not None
                assert partition is not None
                assert offset is not None
                error = message.error()
                if error is None:
                    found[topic, partition].offsets.append(offset)
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                elif offset >= stops[topic, partition]:
                    left.discard((topic, partition))
        return found
    finally:
        consumer.close()


def disagree(received: Iterable[int], kinds: Kinds, first: int, stop: int, compacts: bool) -> list[str]:
    """Where a consumer, which read first, and the files differ on ``[first, stop)``: a defect of this campaign, or of Kafka.

    ``kinds``: of the files, under the consumer's isolation level.
    """
    got = {offset for offset in received if first <= offset < stop}
    there = set(where(kinds, RECORD, first, stop))
    extra = sorted(got - there)
    if compacts:
        extra = [offset for offset in extra if kinds[offset] != HOLE]
    lost = sorted(there - got)
    found = [f"the consumer did not get {list(runs(lost))[:5]}, which the files hold"] if lost else []
    return found + ([f"the consumer got {list(runs(extra))[:5]}, which the files do not hold"] if extra else [])


def with_received(kinds: Kinds, isolation: str, received: Mapping[str, Sequence[int]], stop: int) -> Kinds:
    """The files, and beside them what consumers got just before compaction took it; all of it was there when the product read it.

    ``received``: by isolation level, read_committed first; ``stop``: how far that one has read.
    """
    known = bytearray(kinds)
    for level in (isolation, "read_uncommitted"):
        kind = RECORD if level == isolation else ABORTED  # what was there, decided, and no record under read_committed
        for offset in received[level]:
            if offset < stop and known[offset] == HOLE:
                known[offset] = kind
    return known


def as_it_found_them(kinds: Kinds, first: int, stop: int) -> Kinds:
    """The files as they were, without what was gone already on ``[first, stop)``: the product may have read that before.

    A transaction that times out while the two are compared lets both of them go on, and the cleaner too.
    """
    known = bytearray(kinds)
    known[first:stop] = known[first:stop].replace(bytes([HOLE]), bytes([UNSEEN]))
    return known


def with_written(kinds: Kinds, isolation: str, written: Mapping[int, int], stop: int) -> Kinds:
    """The files as they were, and beside them, below ``stop``, what those who wrote since know of it."""
    known = bytearray(kinds) + bytearray([UNSEEN]) * (stop - len(kinds))
    for offset, kind in written.items():
        if offset < stop and known[offset] in (UNSEEN, OPEN):
            known[offset] = kind if isolation == "read_committed" else RECORD
    return known


@dataclass
class Archive:
    """The files of all partitions, read now and then; counts what was seen in them for the first time."""

    dumper: Dumper
    places: list[Where]
    written: Callable[[], Mapping[Where, Mapping[int, int]]] = dict
    """What those who wrote know of some partitions: the kind by offset."""
    seen: Counter[str] = field(default_factory=Counter)
    """What the files show to have been mixed, by its name."""
    latest: dict[Where, Files] = field(default_factory=dict)
    _batches: dict[Where, set[int]] = field(default_factory=dict)

    def read(self) -> dict[Where, Files]:
        """As they are now; nobody may write all the time."""
        files = {place: read_files(batches) for place, batches in self.dumper.read(self.places).items()}
        for place, one in files.items():
            before = self.latest.get(place)
            if before is not None:
                self._note_taken(before, one)
            known = self._batches.setdefault(place, set())
            self._note_batches(one.batches, known)
            known.update(batch.base for batch in one.batches)
        self.latest = files
        return files

    def _note_taken(self, before: Files, now: Files) -> None:
        """What compaction took since; what lies below the first batch may have gone with its file."""
        first = now.batches[0].base if now.batches else 0
        for name, kind, gone in (("records", RECORD, (HOLE,)), ("markers", MARKER, (HOLE, BARE))):
            taken = sum(now.kinds[offset] in gone for offset in where(before.kinds, kind, first))
            self.seen[f"{name} taken by compaction"] += taken
        whole = {batch.base: batch.count for batch in before.batches}
        thinned = (batch.count < whole.get(batch.base, 0) for batch in now.batches)
        self.seen["batches thinned or emptied"] += sum(thinned)

    def _note_batches(self, batches: Iterable[DumpedBatch], known: set[int]) -> None:
        in_transaction: set[int] = set()
        last_end: dict[int, int] = {}
        size = 0
        for batch in batches:
            size += batch.size
            if batch.base not in known:
                self._note(batch, bool(in_transaction - {batch.producer}), size - last_end.get(batch.producer, -FETCH_BYTES))
            if batch.control:
                in_transaction.discard(batch.producer)
                last_end[batch.producer] = size
            elif batch.transactional:
                in_transaction.add(batch.producer)

    def _note(self, batch: DumpedBatch, beside: bool, since_end: int) -> None:
        """``since_end``: bytes since the last marker of the same producer id."""
        if batch.control:
            self.seen[f"{batch.marker} markers" if batch.marker else "emptied markers"] += 1
            self.seen["transactions of one producer id within one fetch"] += since_end < FETCH_BYTES
            return
        self.seen[f"batches of codec {batch.codec}"] += 1
        self.seen["small batches"] += batch.count <= SMALL
        self.seen["large batches"] += batch.count >= LARGE
        self.seen["tombstones"] += batch.tombstones
        self.seen["batches inside another producer's transaction"] += beside
