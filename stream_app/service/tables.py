"""Asks ClickHouse tables what they hold of the partitions owned here, and has their owners write down what that says.

One question a check and sink, for all of its partitions; the next check begins when what the last one said was folded. What is
written is decided by comparing the answer with the ledger: what it knows already is not said again. An answer that is not whole is
none: nothing is concluded from it, and the next question follows after a longer and longer pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import structlog

from stream_app.core.ledger import Ledger
from stream_app.core.model import Look, Observation, Reason, Runs
from stream_app.core.offsets import OffsetSet
from stream_app.core.sink import SinkState
from stream_app.core.snapshots import FORMER_CHECK, TABLE_CHECK, is_news
from stream_app.service.ages import UNREADABLE_TTL_KEEPS_MS, Ages
from stream_app.service.context import Port, Unavailable
from stream_app.service.owner import PartitionOwner
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.clickhouse import Check, Facts, Held, Layout, Span, Unknown
from stream_app.sinks.clickhouse.layout import portions
from stream_app.sinks.clickhouse.snapshots import Beyond, Standing, beyond, observations, reach, spans, stated, sweep_spans
from stream_app.sinks.clickhouse.statements import SPANS_MAX
from stream_app.sinks.clickhouse.table import CHUNKS_MAX
from stream_app.web.times import rfc3339

log = structlog.get_logger("gapstream.tables")

Answered = TypeVar("Answered")

TICK_SECONDS = 0.2
"""It is looked this often whether there is something to be asked."""
BACKOFF_SECONDS = 60.0
"""Pauses after failures begin at ``every`` and double up to this, or stay at a longer ``every``: one connection a minute hurts nobody,
and a server that is back is asked soon."""
INSPECT_SECONDS = 300.0
"""Whether the table can prove what it holds is asked again after so long, and after every failure."""
FORMER_SECONDS = 10.0
"""After a topic was made anew, whether the table still has rows of its name is asked this often, as long as it has."""
SAID_SECONDS = 30.0
"""What was handed to an owner and is not in the ledger after so long was rejected: the table is asked again all the same."""
LATE_SECONDS = 1.0
"""A question that takes longer than this, and than ``every``, is late: it counts as failing since it was asked."""


class Asking(Protocol):
    """One table; see :class:`stream_app.sinks.clickhouse.ClickHouseTable`."""

    layout: Layout

    async def inspect(self) -> Facts | Unknown:
        """Whether it can prove what it holds."""

    async def check(self, spans: Iterable[Span]) -> Check | Unknown:
        """What it holds of these."""

    async def edges(self, partitions: Iterable[int]) -> Mapping[int, tuple[int, int]] | Unknown:
        """First offset and one past the last of each partition."""

    async def close(self) -> None:
        """Give connections up."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a table is asked, from the configuration."""

    topic: str
    sink: str
    every_s: float
    sweep_s: float
    verify_ms: int


class _Failed(Exception):
    """The check proves nothing; the message is the reason."""


@dataclass(slots=True)
class Watch:
    """What is remembered of one partition, while this worker owns it."""

    owner: PartitionOwner
    ledger: Ledger
    sink: SinkState
    said: int = -1
    """Sequence of what was handed to the owner last."""
    said_at: float = 0.0
    ages: Ages = field(default_factory=Ages)
    """Of records whose rows the table's TTL may have taken."""
    epoch: int = 0
    """Of the ledger when the table was asked last."""
    at_ms: int = 0
    """When that was, by the clock of the sink's snapshots."""
    former_at: float = 0.0
    """When it was asked last whether the table has rows that may be of a former topic."""

    @property
    def partition(self) -> int:
        """Its number."""
        return self.owner.partition

    @property
    def current(self) -> bool:
        """Whether the partition is owned still, and the sink is the one that was asked about."""
        return self.owner.ledger is self.ledger and self.ledger.sinks.get(self.sink.policy.name) is self.sink

    def answered(self, source: str, now: float) -> bool:
        """Whether the ledger knows what was said last."""
        return self.said <= self.sink.sources.sequences.get(source, -1) or now - self.said_at > SAID_SECONDS

    def standing(self, source: str, end: int | None = None) -> Standing:
        """What a check depends on, as of now; ``end``: of the log, where it was asked afresh."""
        sink, held = self.sink, self.ledger.log
        start = max(held.origin, held.forgotten, held.start) if sink.floor is None else sink.floor
        settled = start if sink.settled is None else sink.settled
        again = OffsetSet()
        for some in (*sink.open.values(), sink.snapshots.older, sink.snapshots.newer):
            again.update(some.within(0, settled))
        return Standing(
            self.partition,
            held.topic_id,
            settled,
            max(settled, sink.horizon or 0, sink.highest or 0),
            again,
            judged_from=self.ages.start,
            since=self.ages.since,
            lowest=sink.lowest if sink.floor is None else 0,
            received=sink.received,
            put_aside=sink.explained[Reason.QUARANTINED],
            heard=sink.heard,
            at_ms=self.at_ms,
            end=held.end if end is None else end,
            source=source,
            sequence=max(self.said, sink.sources.sequences.get(source, -1)) + 1,
        )

    @property
    def answered_of_this_log(self) -> bool:
        """Whether what was asked last says something of this log: it was not truncated or made anew since."""
        return self.current and self.epoch == self.ledger.epoch

    def lacking(self, held: Iterable[Held], standing: Standing) -> tuple[OffsetSet, OffsetSet]:
        """Records that an answer should hold and does not: those that were received before, and those that never were."""
        log, received, others = self.ledger.log, OffsetSet(), OffsetSet()
        for one in held:
            first, stop = stated(one, standing)
            received.update(self.sink.received_within(first, stop, log) - one.present)
            others.update(self.sink.unaccounted(max(first, standing.settled), stop, log) - one.present - one.quarantined)
        return received, others

    @property
    def doubtful(self) -> bool:
        """Whether rows may be of a former topic of the same name."""
        return self.sink.checks.stands_open(FORMER_CHECK)

    def note(self, failure: str | None, check: str = TABLE_CHECK) -> None:
        """The check answered, or why it did not."""
        if self.current:
            self.owner.note_check(self.sink.policy.name, check, failure)

    def note_late(self, reason: str, since_ms: int) -> None:
        """The check that was begun then has not answered yet."""
        if self.current:
            self.sink.checks.late(TABLE_CHECK, reason, since_ms)


@dataclass(slots=True)
class TableWatcher:
    """The loop of one table."""

    rules: Rules
    table: Asking
    port: Port
    owners: Callable[[], Iterable[PartitionOwner]]
    """Of the partitions owned now."""
    telemetry: Telemetry
    clock_ms: Callable[[], int]
    source: str
    """Of what is said: one for each run of a worker."""
    _watches: dict[int, Watch] = field(default_factory=dict)
    _facts: Facts | None = None
    _inspected_at: float = 0.0
    _failures: int = 0
    _swept_at: float | None = None
    _sweep: Iterator[list[Span]] | None = None
    """What is left of a sweep."""
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch in the background until stopped."""
        self._task = asyncio.create_task(self._run(), name=f"table of {self.rules.topic}/{self.rules.sink}")

    async def stop(self) -> None:
        """End at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.table.close()

    async def _run(self) -> None:
        loop, due = asyncio.get_running_loop(), 0.0
        while True:
            watches = self.owned_now()
            now = loop.time()
            if watches and now >= due and all(watch.answered(self.source, now) for watch in watches):
                due = now + await self.ask(watches)
            await asyncio.sleep(TICK_SECONDS)

    def owned_now(self) -> list[Watch]:
        """Partitions whose ledgers have heard all that was written before this worker owned them."""
        known, self._watches = self._watches, {}
        for owner in self.owners():
            ledger = owner.ledger
            if owner.topic != self.rules.topic or ledger is None or ledger.heard_ms is None:
                continue
            sink = ledger.sinks.get(self.rules.sink)
            if sink is not None and sink.policy.configured:
                watch = known.get(owner.partition)
                same = watch is not None and watch.ledger is ledger and watch.sink is sink
                self._watches[owner.partition] = watch if watch is not None and same else Watch(owner, ledger, sink)
        return list(self._watches.values())

    async def ask(self, watches: Sequence[Watch]) -> float:
        """Ask once; how many seconds after its beginning the next question is due."""
        try:
            facts = await self._inspect(watches)
            for watch in watches:
                await self._note_ttl(watch, facts)
            await self._look_for_former(watches)
            watches = [watch for watch in watches if not watch.doubtful]
            others = await self._check(watches, self._spans(watches))
            await self._go_on_sweeping([watch for watch in watches if watch.partition not in others], facts)
        except _Failed as failure:
            return self._fail(watches, str(failure))
        except Unavailable as failure:
            return self._fail(watches, f"what its rows are compared with can't be asked from Kafka: {failure}")
        except Exception as error:  # a defect of ours: the sink must not look as if somebody still asked it
            log.exception("a table is asked again after a defect", topic=self.rules.topic, sink=self.rules.sink)
            return self._fail(watches, f"a defect ({type(error).__name__}: {error})")
        self._failures = 0
        return self.rules.every_s

    async def _answer(self, watches: Iterable[Watch], question: Awaitable[Answered | Unknown]) -> Answered:
        """What the table says.

        Raises:
            _Failed: nothing that proves anything.
        """
        late_s = max(self.rules.every_s, LATE_SECONDS)
        late = asyncio.get_running_loop().call_later(late_s, self._is_late, watches, self.clock_ms())
        try:
            answer = await question
        finally:
            late.cancel()
        if isinstance(answer, Unknown):
            hint = f"gapstream verify --topic {self.rules.topic} --sink {self.rules.sink} prints the statement to add"
            raise _Failed(answer.reason if answer.statement is None else f"{answer.reason}; {hint}")
        return answer

    def _is_late(self, watches: Iterable[Watch], since_ms: int) -> None:
        """Nobody knows how things stand while the server is silent, and it may be so for long before the question is given up."""
        reason = f"ClickHouse has not answered yet what {self.table.layout.name} was asked at {rfc3339(since_ms)}: see its load and its log"
        self.telemetry.trouble("a table is slow to answer", topic=self.rules.topic, sink=self.rules.sink, reason=reason)
        for watch in watches:
            watch.note_late(reason, since_ms)

    def _fail(self, watches: Iterable[Watch], reason: str) -> float:
        self.telemetry.trouble("a table can't be asked now", topic=self.rules.topic, sink=self.rules.sink, reason=reason)
        self.telemetry.counters.table_failed(self.rules.sink)
        self._facts, self._sweep = None, None
        for watch in watches:
            watch.note(reason)
        self._failures += 1
        pause: float = self.rules.every_s * 2 ** min(self._failures - 1, 10)
        return max(self.rules.every_s, min(pause, BACKOFF_SECONDS))

    # --- before the question ------------------------------------------------------------------------------------------

    async def _inspect(self, watches: Sequence[Watch]) -> Facts:
        now, layout = asyncio.get_running_loop().time(), self.table.layout
        if layout.partition is None and any(watch.partition or watch.ledger.partitions > 1 for watch in watches):
            raise _Failed(f"{layout.name} has no column for the partition, but the topic has several: name one in columns.partition")
        if self._facts is not None and now - self._inspected_at < INSPECT_SECONDS:
            return self._facts
        self._facts = await self._answer(watches, self.table.inspect())
        self._inspected_at = now
        return self._facts

    async def _note_ttl(self, watch: Watch, facts: Facts) -> None:
        """How far the table's TTL has come, until that is asked again."""
        keeps_ms = facts.retention.keeps_ms if facts.retention.unreadable is None else UNREADABLE_TTL_KEEPS_MS
        if watch.ages.epoch != watch.ledger.epoch:
            watch.ages = Ages(watch.ledger.epoch)
        known, start = watch.sink.snapshots, watch.ledger.log.start

        def offset_at(time_ms: int) -> Awaitable[int]:
            return self._offset_at(watch, time_ms)

        await watch.ages.renew(keeps_ms, known.kept_from_ms, self.rules.sweep_s, self.clock_ms(), start, offset_at)
        known.kept_from_ms = watch.ages.kept_from_ms

    async def _offset_at(self, watch: Watch, time_ms: int) -> int:
        """First offset whose record is not older; the log's end where there is none."""
        found = await self.port.offset_at(self.rules.topic, watch.partition, f"@{max(time_ms, 0)}")
        return watch.ledger.log.end if found is None else found

    async def _look_for_former(self, watches: Sequence[Watch]) -> None:
        """Of a topic that was made anew nothing is compared before the table was seen without rows of it: they don't say of which one."""
        now = asyncio.get_running_loop().time()
        asked = {watch.partition: watch for watch in watches if watch.doubtful and now - watch.former_at >= FORMER_SECONDS}
        if not asked:
            return
        edges = await self._answer(watches, self.table.edges(asked))
        for number, watch in asked.items():
            watch.former_at = now
            reason = None if number not in edges else self._of_former(number, *edges[number])
            watch.note(reason, FORMER_CHECK)
            if reason is not None:
                said = "a table may hold rows of a former topic"
                self.telemetry.trouble(said, topic=self.rules.topic, sink=self.rules.sink, reason=reason)

    def _of_former(self, partition: int, first: int, stop: int) -> str:
        topic, sink = self.rules.topic, self.rules.sink
        return (
            f"{topic} was deleted and made anew, and {self.table.layout.name} has rows of its partition {partition} (offsets {first} to"
            f" {stop - 1}), which don't say of which of the two: delete them and load those of the new one again; or, if all of them"
            f" are of the new one, take the sink out of the configuration, run gapstream sink drop {topic} {sink}, and bring it back"
        )

    def _spans(self, watches: Iterable[Watch]) -> list[Span]:
        return spans(self._standings(watches))

    def _standings(self, watches: Iterable[Watch]) -> list[Standing]:
        return [watch.standing(self.source) for watch in watches if watch.current]

    # --- the question and what follows from its answer ----------------------------------------------------------------

    async def _check(self, watches: Sequence[Watch], asked: Sequence[Span]) -> Collection[int]:
        """Ask, and have said what follows; returns the partitions of which nothing does: the table has rows of another log there."""
        wanted = {span.partition for span in asked}
        watches = [watch for watch in watches if watch.partition in wanted and watch.current]
        asked = [span for span in asked if span.partition in {watch.partition for watch in watches}]
        if not asked:
            return ()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for watch in watches:
            watch.at_ms, watch.epoch = watch.sink.snapshots.begin(self.clock_ms()), watch.ledger.epoch
        check = await self._answer(watches, self.table.check(asked))
        held = [*check.held, *await self._far_ahead(watches, check.held)]
        ends = await self._ends(watches, held)
        self.telemetry.counters.table_checked(self.rules.sink, loop.time() - begun, check.rows_read)
        others = {one.partition: one for one in beyond(held, ends)}
        for watch in watches:
            other = others.get(watch.partition)
            if other is None:
                await self._say(watch, [one for one in held if one.span.partition == watch.partition], ends[watch.partition], begun)
            if watch.answered_of_this_log:
                watch.note(None if other is None else self._of_another_log(other))
        return others.keys()

    async def _far_ahead(self, watches: Sequence[Watch], held: Iterable[Held]) -> list[Held]:
        """The last offset of partitions of which the table has nothing near what is judged: it may have lost all of that."""
        there = {one.span.partition for one in held if one.present or one.quarantined}
        lost = [
            watch.partition
            for watch, one in ((watch, watch.standing(self.source)) for watch in watches if watch.partition not in there)
            if one.horizon == one.settled and watch.ledger.log.end > reach(one)
        ]
        if not lost:
            return []
        edges = await self._answer(watches, self.table.edges(lost))
        return [
            Held(Span(number, stop - 1, stop), OffsetSet([(stop - 1, stop)]), {}, (), OffsetSet())
            for number, (_, stop) in edges.items()
            if stop > reach(self._watches[number].standing(self.source))
        ]

    async def _ends(self, watches: Iterable[Watch], held: Iterable[Held]) -> dict[int, int]:
        """Where the logs end; asked afresh where the table has more than is known of."""
        ends = {watch.partition: watch.ledger.log.end for watch in watches}
        for one in beyond(held, ends):
            ends[one.partition] = max(ends[one.partition], (await self.port.ends(self.rules.topic, one.partition)).high_watermark)
        return ends

    def _of_another_log(self, other: Beyond) -> str:
        return (
            f"{self.table.layout.name} has offset {other.last} of partition {other.partition}, whose log ends at {other.end}: its rows are"
            f" of another topic, or of one of the same name that was deleted; see columns.topic and where"
        )

    async def _say(self, watch: Watch, held: Sequence[Held], end: int, asked_at: float) -> None:
        """Have the owner write what an answer says that is not known; ``end``: of the log."""
        if not watch.answered_of_this_log or watch.ages.epoch != watch.epoch:
            return
        standing = watch.standing(self.source, end)
        received, others = watch.lacking(held, standing)
        if received or others:
            if self._inspected_at < asked_at:
                self._facts = None  # the TTL may be another one since the table was inspected last
            await self._note_ttl(watch, await self._inspect(list(self._watches.values())))
            log = watch.ledger.log
            sorted_to = await watch.ages.sort(
                received, others, lambda runs, time_ms: self._look(watch, runs, time_ms), lambda runs: log.minutes.parts(runs, log.read)
            )
            standing = replace(watch.standing(self.source, end), aged=watch.ages.aged & (received | others), end=min(end, sorted_to))
        if not watch.answered_of_this_log:
            return
        said: list[Observation] = [one for _, one in observations(held, {watch.partition: standing}, self.rules.sink)]
        if any(is_news(watch.sink, one, watch.ledger.log) for one in said):
            watch.owner.say(said)
            watch.said, watch.said_at = said[-1].sequence or 0, asyncio.get_running_loop().time()

    async def _look(self, watch: Watch, runs: Runs, older_than_ms: int) -> Look:
        return await self.port.look(self.rules.topic, watch.partition, watch.ledger.log.topic_id, runs, older_than_ms)

    # --- what was judged long ago -------------------------------------------------------------------------------------

    async def _go_on_sweeping(self, watches: Sequence[Watch], facts: Facts) -> None:
        """Ask for the next part of what is judged, so that a sweep of a large table does not hold up the checks of what is new."""
        now = asyncio.get_running_loop().time()
        if self._sweep is None and (self._swept_at is None or now - self._swept_at >= self.rules.sweep_s):
            self._swept_at = now
            self._sweep = portions(await self._sweep_spans(watches, facts), CHUNKS_MAX, SPANS_MAX)
        part = None if self._sweep is None else next(self._sweep, None)
        if part is None:
            self._sweep = None
        else:
            await self._check(watches, part)

    async def _sweep_spans(self, watches: Iterable[Watch], facts: Facts) -> list[Span]:
        """Nothing of it where nobody knows which rows the table's TTL removes."""
        if facts.retention.unreadable is not None:
            return []
        since: dict[int, int] = {}
        for watch in watches:
            verified = await self._offset_at(watch, self.clock_ms() - self.rules.verify_ms)
            since[watch.partition] = max(watch.ledger.log.start, watch.ages.since, verified, watch.sink.floor or 0)
        return sweep_spans((one for one in self._standings(watches) if one.partition in since), since)
