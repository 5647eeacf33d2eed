"""One verification: read the log's headers, ask the table, look again in Kafka at what lacks, ask the table once more.

The log is read up to the end that it had at the beginning, and the table is asked after that: a record that is being
inserted meanwhile is never missing for that reason. What is missing then must be ``settle`` old and still missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from stream_app.core.model import LogEnds
from stream_app.core.offsets import OffsetSet
from stream_app.errors import CouldNotTell, UsageError
from stream_app.kafka.clients import KafkaClients
from stream_app.kafka.probe import Prober
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.topics import InternalTopics, Topics
from stream_app.sinks.clickhouse import ClickHouseTable, Facts, Held, Span, Unknown
from stream_app.sinks.clickhouse.layout import chunk_runs, portions
from stream_app.sinks.clickhouse.statements import SPANS_MAX
from stream_app.sinks.clickhouse.table import CHUNKS_MAX
from stream_app.verify.compare import Difference, Verdict
from stream_app.verify.part import Part, read_parts
from stream_app.web.times import span

PORTION_CHUNKS = 256
"""Chunks of one question to a table that answers by index: 16.8 million offsets, about two seconds."""
LOOKS_AT_ONCE = 4
"""Over connections of their own: single losses cost a request each, of which most is waiting."""
LOOK_RUNS = 100
"""Runs of one piece of what is looked at again."""
ROWS_MANY = 10_000_000
"""Rows read without an index that are worth a word: half a second."""
TTL_MARGIN_MS = 600_000
"""Records that come so near to the table's TTL are not judged: it goes on while they are being compared."""

Known = TypeVar("Known")
Target = Callable[[int], Awaitable[ClickHouseTable | Unknown]]
"""The table to be asked, for a topic with so many partitions."""
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, how much there is."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a part begins or ends: an offset, or the first record that is not older than a time."""

    offset: int | None = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How the log is read."""

    clients: KafkaClients
    isolation: Isolation
    check_crcs: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared with what."""

    topic: str
    partitions: tuple[int, ...] | None
    """None: all of them."""
    start: Edge | None
    """None: where the table begins (``floor_first``), or the log."""
    until: Edge | None
    """None: where the log ended at the beginning."""
    settle_ms: int
    tombstones_optional: bool
    floor_first: bool


@dataclass(slots=True)
class Verification:
    """One run; :func:`verify` makes it."""

    settings: Settings
    question: Question
    target: Target
    progress: Progress
    notes: list[str] = field(default_factory=list)
    table: ClickHouseTable = field(init=False)
    _begun_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    _kept_from_ms: int | None = None
    _told_of_index: bool = False

    async def run(self, reader: LogReader) -> Verdict:
        """The verdict.

        Raises:
            KafkaError, Unavailable: Kafka can't be asked.
            CouldNotTell: the log changed meanwhile in a way that leaves nothing to compare.
            UsageError: there is no such part.
        """
        try:
            return await self._run(reader)
        except _Undecided as undecided:
            return Verdict(reason=undecided.why.reason, statement=undecided.why.statement, notes=tuple(self.notes))

    async def _run(self, reader: LogReader) -> Verdict:
        count, numbers = await self._partitions(reader)
        self.table = _known(await self.target(count))
        ends = {number: await reader.ends(self.question.topic, number) for number in numbers}
        facts = _known(await self.table.inspect())
        if count > 1 and self.table.layout.partition is None:
            raise _Undecided(
                Unknown(f"{self.question.topic} has {count} partitions, and {self.table.layout.name} does not say whose a row is")
            )
        self._ttl(facts)
        parts = await self._parts(ends)
        await self._read(reader, parts)
        differences = await self._compare(parts)
        await self._refuse_another_log(reader, ends)
        await self._second_look(differences)
        await self._ask_again(differences)
        return self._verdict(facts, differences)

    # --- what is compared -------------------------------------------------------------------------------------------------------

    async def _partitions(self, reader: LogReader) -> tuple[int, tuple[int, ...]]:
        """How many there are, and which are compared."""
        topic = self.question.topic
        info = (await reader.metadata([topic])).topics[topic]
        if not info.exists:
            raise CouldNotTell(f"Kafka has no topic {topic}, or hides it from this user: see --topic and bootstrap.servers")
        have = range(info.partitions)
        wanted = self.question.partitions if self.question.partitions is not None else tuple(have)
        for number in wanted:
            if number not in have:
                raise UsageError(f"{topic} has no partition {number}: its partitions are 0 to {len(have) - 1}")
        edges = (self.question.start, self.question.until)
        if len(wanted) > 1 and any(edge is not None and edge.offset is not None for edge in edges):
            raise UsageError(f"{topic} has {len(wanted)} partitions: with offsets say which by --partition, or give times")
        if _is_reversed(*edges):
            raise UsageError("--from is not below --until, so that there is nothing between them: --until is exclusive")
        return len(have), wanted

    async def _parts(self, ends: Mapping[int, LogEnds]) -> dict[int, Part]:
        lowest: Mapping[int, tuple[int, int]] = {}
        if self.question.start is None and self.question.floor_first:
            lowest = _known(await self.table.edges(ends))
        topics = Topics(self.settings.clients.confluent(), "verify", InternalTopics(False, -1, 1, 0, 0))
        parts, gone = {}, []
        for number, end in ends.items():
            bound = end.last_stable if self.settings.isolation is Isolation.READ_COMMITTED else end.high_watermark
            first = await self._offset(topics, number, self.question.start, end.log_start, bound)
            stop = min(await self._offset(topics, number, self.question.until, bound, bound), bound)
            wanted = first < stop
            if number in lowest and lowest[number][0] > first:
                first = lowest[number][0]
                self._note(f"partition {number} is judged from offset {first} on, where the table begins; --from says otherwise")
            if first < end.log_start:
                self._note(f"partition {number} begins at offset {end.log_start}: what was before it is no longer in Kafka")
                first = end.log_start
            if self._kept_from_ms is not None:
                kept = await self._offset(topics, number, Edge(time_ms=self._kept_from_ms), bound, bound)
                if kept > first:
                    self._note(f"partition {number} is judged from offset {kept} on: the table's TTL may have removed what is older")
                    first = kept
            parts[number] = Part.empty(number, first, stop)
            if first >= stop and bound and (wanted or self._names_offsets or end.log_start >= bound):
                holds = f"holds offsets {end.log_start} to {bound - 1}" if end.log_start < bound else "holds nothing any more"
                gone.append(f"partition {number} {holds}")
        if gone and all(part.first >= part.stop for part in parts.values()):
            raise _Undecided(Unknown(f"nothing is left of that part to be compared: {'; '.join((*gone, *self.notes))}"))
        return parts

    @property
    def _names_offsets(self) -> bool:
        return any(edge is not None and edge.offset is not None for edge in (self.question.start, self.question.until))

    async def _offset(self, topics: Topics, partition: int, edge: Edge | None, default: int, bound: int) -> int:
        if edge is None:
            return default
        if edge.offset is not None:
            return edge.offset
        assert edge.time_ms is not None
        found = await topics.offset_at(self.question.topic, partition, max(edge.time_ms, 0))
        return bound if found is None else found

    def _ttl(self, facts: Facts) -> None:
        bound_ms = facts.retention.bound_ms(self._begun_ms)
        if bound_ms is None:
            return
        self._kept_from_ms = bound_ms + TTL_MARGIN_MS
        if facts.retention.column is not None:
            self._note(f"the table's TTL counts from {facts.retention.column}, which is taken to be near the record's time")

    def _note(self, line: str) -> None:
        self.notes.append(line)

    # --- reading and asking -----------------------------------------------------------------------------------------------------

    async def _read(self, reader: LogReader, parts: Mapping[int, Part]) -> None:
        total = sum(part.stop - part.first for part in parts.values())
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            self.progress("reading headers", done, total)

        await read_parts(reader, self.question.topic, parts, self.settings.isolation, check_crcs=self.settings.check_crcs, told=told)

    async def _compare(self, parts: Mapping[int, Part]) -> list[Difference]:
        spans = [Span(part.partition, part.first, part.stop) for part in parts.values() if part.first < part.stop]
        held = await self._ask(spans, "asking the table")
        return [Difference.of(part, [one for one in held if one.span.partition == number]) for number, part in parts.items()]

    async def _ask(self, spans: list[Span], what: str) -> list[Held]:
        """The table's answer, asked in portions where an index makes that cheap."""
        found: list[Held] = []
        if not spans:
            return found
        index = await self.table.index(spans)  # not every service explains: then as if there were none
        indexed = not isinstance(index, Unknown) and index.used is not False
        asked = list(portions(spans, PORTION_CHUNKS if indexed else CHUNKS_MAX, SPANS_MAX))
        rows_read = 0
        for number, portion in enumerate(asked):
            self.progress(what, number, len(asked))
            answer = _known(await self.table.check(portion))
            found += answer.held
            rows_read += answer.rows_read
        self.progress(what, len(asked), len(asked))
        if not indexed and rows_read >= ROWS_MANY and not self._told_of_index:
            self._told_of_index = True
            self._note(f"{rows_read} rows of the table were read, because it is not ordered by topic, partition and offset")
        return found

    async def _refuse_another_log(self, reader: LogReader, ends: Mapping[int, LogEnds]) -> None:
        """Rows above the log's end belong to another log: then nothing of this table says anything of this one."""
        answer = _known(await self.table.check(Span(number, end.high_watermark, None) for number, end in ends.items()))
        for held in answer.held:
            last = held.present.last()
            if last is None:
                continue
            end = (await reader.ends(self.question.topic, held.span.partition)).high_watermark  # it may have moved
            if last >= end:
                raise _Undecided(Unknown(_another_log(self.table.layout.name, held.span.partition, last, end)))

    # --- what lacks -------------------------------------------------------------------------------------------------------------

    async def _second_look(self, differences: Iterable[Difference]) -> None:
        """Look in Kafka, over fresh connections and by other code, at what the table lacks."""
        lacking = [one for one in differences if one.lacking]
        if not lacking:
            return
        total = sum(one.lacking.count for one in lacking)
        topics = Topics(self.settings.clients.confluent(), "verify", InternalTopics(False, -1, 1, 0, 0))
        compacted = (await topics.describe(self.question.topic)).compacted
        pieces = iter([(one, first, stop) for one in lacking for first, stop in _in_pieces(one.lacking)])

        async def look() -> None:
            async with Prober(self.settings.clients.reader()) as prober:
                for one, first, stop in pieces:
                    await self._look(prober, one, first, stop, compacted)
                    self.progress("looking again at what lacks", total - sum(other.lacking.count for other in lacking), total)

        tasks = [asyncio.create_task(look()) for _ in range(LOOKS_AT_ONCE)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _look(self, prober: Prober, one: Difference, first: int, stop: int, compacted: bool | None) -> None:
        """Sort out what lacks within ``[first, stop)``."""
        while lacking := one.lacking.within(first, stop):
            runs = tuple(lacking.runs())
            part, isolation = one.part, self.settings.isolation
            look = await prober.look(self.question.topic, part.partition, part.topic_id, isolation, runs, older_than_ms=self._kept_from_ms)
            if look.upto <= runs[0][0]:
                raise CouldNotTell(f"{self.question.topic}/{one.part.partition} could not be read again at {runs[0][0]}: run it again")
            one.looked(look, runs[0][0], compacted=compacted, tombstones_optional=self.question.tombstones_optional)

    async def _ask_again(self, differences: Iterable[Difference]) -> None:
        """Ask the table once more for what is missing, when the youngest of it is ``settle`` old."""
        missing = {one.part.partition: _union(one.missing.values()) for one in differences if one.missing_count}
        if not missing:
            return
        await self._settle(differences)
        by_partition = {one.part.partition: one for one in differences}
        spans = []
        for number, some in missing.items():
            part = by_partition[number].part
            for first, stop in chunk_runs(some):
                spans.append(Span(number, max(first, part.first), min(stop, part.stop)))
        held = await self._ask(spans, "asking the table again")
        for number, one in by_partition.items():
            one.arrived(found for found in held if found.span.partition == number)

    async def _settle(self, differences: Iterable[Difference]) -> None:
        """Wait until what is missing is ``settle`` old by its own time; no longer than ``settle`` after the log's end was read.

        A record without a time may have been written just before. One with a time of long ago that was written just before,
        as a backfill does, is taken to be as old as it says.
        """
        latest_ms = self._begun_ms + self.question.settle_ms
        due_ms = 0
        for one in differences:
            for gap in one.gaps():
                times = (gap.first_timestamp_ms, gap.last_timestamp_ms)
                due_ms = max(due_ms, *(latest_ms if time_ms is None else time_ms + self.question.settle_ms for time_ms in times))
        due_ms = min(due_ms, latest_ms)
        total = due_ms - time.time_ns() // 1_000_000
        while (left := due_ms - time.time_ns() // 1_000_000) > 0:
            self.progress(f"waiting until what is missing is {span(self.question.settle_ms)} old", total - left, total)
            await asyncio.sleep(min(left / 1000, 0.5))

    # --- verdict ----------------------------------------------------------------------------------------------------------------

    def _verdict(self, facts: Facts, differences: list[Difference]) -> Verdict:
        missing = any(one.missing_count for one in differences)
        if missing and facts.retention.unreadable is not None:
            reason = (
                f"{self.table.layout.name} lacks records, but its TTL ({facts.retention.unreadable}) does not say which of them it may "
                "have removed: give --from a time since when it removes nothing"
            )
            if self.question.start is None:
                return Verdict(tuple(differences), reason, notes=tuple(self.notes))
            self._note(f"the table's TTL ({facts.retention.unreadable}) is taken to remove nothing since --from")
        for one in differences:
            self._tell(one)
        return Verdict(tuple(differences), notes=tuple(self.notes))

    def _tell(self, one: Difference) -> None:
        where = f"partition {one.part.partition}"
        if one.above_last:
            self._note(f"{where}: {one.above_last} of the missing records lie above the table's last offset: it may only be behind")
        if one.unexpected:
            self._note(f"{where}: {one.unexpected.count} rows are of transaction markers or aborted records, which no consumer receives")
        if one.part.unread:
            self._note(f"{where}: {one.part.unread.count} offsets went by retention while the log was being read, and were not judged")
        if one.too_old:
            old = "are older than the table's TTL, or have no time"
            self._note(f"{where}: {one.too_old.count} records without a row {old}, and were not judged")
        if one.part.holes:
            self._note(f"{where}: {one.part.holes.count} offsets of the log hold nothing: compacted, or lost in Kafka itself")


def _is_reversed(start: Edge | None, until: Edge | None) -> bool:
    if start is None or until is None:
        return False
    pairs = ((start.offset, until.offset), (start.time_ms, until.time_ms))
    return any(first is not None and stop is not None and first >= stop for first, stop in pairs)


def _another_log(table: str, partition: int, last: int, end: int) -> str:
    return (
        f"{table} has offset {last} of partition {partition}, but the log ends at {end}: its rows are of another cluster, or of a topic "
        "that was deleted and created anew; leave them out with where"
    )


def _in_pieces(lacking: OffsetSet) -> list[tuple[int, int]]:
    """Parts of the log that hold all of it, each with so many runs at most."""
    runs = list(lacking.runs())
    return [(runs[at][0], runs[min(at + LOOK_RUNS, len(runs)) - 1][1]) for at in range(0, len(runs), LOOK_RUNS)]


def _union(sets: Iterable[OffsetSet]) -> OffsetSet:
    out = OffsetSet()
    for some in sets:
        out.update(some)
    return out


class _Undecided(Exception):
    """Nothing can be concluded."""

    def __init__(self, why: Unknown) -> None:
        super().__init__(why.reason)
        self.why = why


def _known(answer: Known | Unknown) -> Known:
    if isinstance(answer, Unknown):
        raise _Undecided(answer)
    return answer


async def verify(settings: Settings, question: Question, target: Target, progress: Progress) -> Verdict:
    """Compare once; see :meth:`Verification.run`."""
    reader = LogReader(settings.clients.reader(), client_id=settings.clients.client_id)
    await reader.start()
    try:
        return await Verification(settings, question, target, progress).run(reader)
    finally:
        await reader.stop()
