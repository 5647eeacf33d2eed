"""One owned partition: its ledger, its writer, and the loop that judges and flushes.

Life: :meth:`PartitionOwner.fence` (become the only writer), :meth:`begin` (load the state that Faust recovered, seek both
inputs), then folds from the agents and flushes from the loop, until :meth:`release` (flush, forget) or until a flush is lost
(forget at once; the manager asks the group for a new assignment, and everything is read back from the changelog).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import replace

import structlog

from stream_app.core import events, report
from stream_app.core.ledger import Candidates, Ledger
from stream_app.core.model import NO_TOPIC_ID, Drop, LogEnds, LogRead, Look, Observation, ObservationRead, Row, other_topic
from stream_app.core.policy import Policy
from stream_app.core.state import Changes, StateCodec, StateError, name_topic
from stream_app.kafka.driver import Bundle
from stream_app.kafka.names import TopicNames
from stream_app.kafka.trouble import Trouble, TroubleKind
from stream_app.kafka.writer import FencedWriter, OutRecord, WriterLost
from stream_app.service.context import Context, Store, TopicFacts, TopicRules, Unavailable
from stream_app.service.holes import FreshPolicy, seen_again
from stream_app.service.mirrors import Mirrors
from stream_app.service.status import StatusPages
from stream_app.sinks.observation import Rejected, RejectReason, encode, parse
from stream_app.sinks.order import parse_drop

log = structlog.get_logger("gapstream.owner")

FLUSH_SECONDS = 1.0
"""State is flushed about this often; events at once."""
PACE_SECONDS = 0.02
"""Pause after a flush that told events: bounds how often a busy partition commits."""
RETRY_SECONDS = 1.0
SAID_BYTES = 4 << 20
"""Of observations written with one flush, about: a transaction has to end in time."""
SEEK_AGAIN_SECONDS = 5.0
"""After an input was sought back, deliveries that do not follow are ignored so long before it is sought again."""
YIELD_EVERY = 200
"""Observations folded before the loop is given to others."""


class PartitionOwner:
    """See the module. All methods run on the main loop."""

    def __init__(self, context: Context, names: TopicNames, partition: int, rules: TopicRules, writer: FencedWriter, store: Store) -> None:
        """Made at assignment; nothing happens before :meth:`fence`."""
        self.context, self.names, self.partition, self.rules = context, names, partition, rules
        self.topic = names.watched
        self._mirrors = Mirrors(context, names, partition)
        self.trouble: str | None = "state is being recovered"
        """Why this partition is not worked on; None when it is."""
        self.flushed_read: int | None = None
        self.flushed_observed: int | None = None
        self.rows: list[Row] = []
        """As of the last flush."""
        self.clean_end_read_ms: int | None = None
        """When the log was last read to its end with nothing left to flush: until then the rows still hold."""
        self._writer, self._store = writer, store
        self._codec = StateCodec(partition)
        self._pages = StatusPages(names.watched, partition, context.app_id, context.instance)
        self._ledger: Ledger | None = None
        self._task: asyncio.Task[None] | None = None
        self._fenced = False
        self._halt: Trouble | None = None
        self._suspect: LogRead | None = None
        self._fresh_policy = FreshPolicy(context.port, names.watched, partition)
        self._observations_changed = False
        self._said: list[OutRecord] = []
        """To be written with the state that notes it."""
        self._to_say: list[OutRecord] = []
        """To be written in their order, some with this flush, the rest with the next ones."""
        self._flushing: asyncio.Task[None] | None = None
        self._warned_of: set[str] = set()
        """Sinks that reported offsets without a record."""
        self._wake = asyncio.Event()
        self._flushed_at = -math.inf
        self._log_sought: tuple[int, float] | None = None
        self._observations_sought: tuple[int, float] | None = None

    @property
    def ledger(self) -> Ledger | None:
        """The ledger while this worker owns it."""
        return self._ledger

    async def fence(self) -> None:
        """Become the only writer. Raises WriterLost when that can't be done now."""
        await self._writer.start()
        self._fenced = True

    def begin(self) -> None:
        """State is recovered: work from now on, if this is the only writer."""
        if self._task is None and self._fenced:
            self._task = asyncio.create_task(self._run(), name=f"owner {self.topic}/{self.partition}")

    async def release(self) -> tuple[int, int] | None:
        """Flush once more if that is possible, then forget everything; how far log and observations were flushed, None: not for sure."""
        task, self._task = self._task, None
        flushed = None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        try:
            if self._flushing is not None:
                await self._flushing
            if self._ledger is not None:
                await self._flush()
                flushed = self._ledger.log.read, self._ledger.observed_to
        except WriterLost as exc:
            log.warning("state was handed over without a last flush", topic=self.topic, partition=self.partition, reason=str(exc))
        finally:
            self._forget("released")
            await self._writer.stop()
        return flushed

    def _forget(self, trouble: str) -> None:
        if self._ledger is not None:
            self._mirrors.leave(self._ledger)
        self._ledger = None
        self._said.clear()
        self._to_say.clear()
        self.rows, self.clean_end_read_ms = [], None
        self.flushed_read = self.flushed_observed = None
        self.trouble = trouble
        self.context.telemetry.forgotten(self.topic, self.partition)
        self.context.port.stop_reading(self.topic, self.partition)

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Begin, then judge and flush until cancelled or lost."""
        try:
            await self._begin_until_done()
            while True:
                await self._wait()
                self._hear_of_sinks()
                try:
                    await self._note_policy()
                    await self._mend()
                    await self._hear_anew()
                    await self._look_at_holes()
                    await self._read_copies()
                    await self._settle()
                except Unavailable as exc:
                    self.context.telemetry.unavailable(self.topic, self.partition, str(exc))
                if self._due():
                    await self._flush_whole()
        except WriterLost as exc:
            log.warning("this worker no longer writes the partition", topic=self.topic, partition=self.partition, reason=str(exc))
            self._forget("lost to another worker or to the broker; waiting for a new assignment")
            self.context.on_lost(self.topic, self.partition)
        except StateError as exc:
            log.error(
                "stored state can't be read; the partition is left alone", topic=self.topic, partition=self.partition, reason=str(exc)
            )
            self._forget(str(exc))
        except Exception as exc:  # a defect of ours: the partition must not look as if somebody still worked on it
            log.exception("a defect; the partition's state is read back from the changelog", topic=self.topic, partition=self.partition)
            self._forget(f"stopped on a defect ({type(exc).__name__}: {exc}); waiting for a new assignment")
            self.context.on_lost(self.topic, self.partition)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    def _due(self) -> bool:
        assert self._ledger is not None
        self._ledger.evaluate(self.context.clock_ms())
        return (
            bool(self._ledger.events or self._said or self._to_say) or asyncio.get_running_loop().time() - self._flushed_at >= FLUSH_SECONDS
        )

    async def _begin_until_done(self) -> None:
        while True:
            try:
                await self._begin()
            except Unavailable as exc:
                self.trouble = str(exc)
                self.context.telemetry.unavailable(self.topic, self.partition, str(exc))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.trouble = None
                return

    async def _begin(self) -> None:
        """Load or create the ledger, then position both inputs by its head."""
        context, port = self.context, self.context.port
        facts = await port.facts(self.topic)
        ends = await port.ends(self.topic, self.partition)
        policies = await self._policies(ends)
        self._codec = StateCodec(self.partition)
        ledger = self._codec.load(self.topic, self._store.items_of(self.partition), policies, context.clock_ms())
        if ledger is None:
            ledger = await self._create(facts, ends, policies)
        elif other_topic(ledger.log.topic_id, facts.topic_id):
            await self._confirm_id(facts.topic_id)
            await self._recreate(ledger, facts, ends)
        else:
            self._learn_id(ledger, facts.topic_id)
        ledger.begin(context.clock_ms())
        ledger.lateness_ms, ledger.retention_ms = self.rules.lateness_ms, facts.retention_ms
        ledger.read_committed = self.rules.read_committed
        ledger.unknown_after_ms, ledger.forget_after_ms = self.rules.unknown_after_ms, self.rules.forget_after_ms
        ledger.log.note_policy(facts.compacted)
        self._note_observations(ledger, facts, ends)
        await self._hear(ledger)
        self._ledger = ledger
        self._read_on(ledger)
        self._wake.set()

    async def _create(self, facts: TopicFacts, ends: LogEnds, policies: dict[str, Policy]) -> Ledger:
        """State of a partition that was never seen; of one that was added to a topic, every sink answers from its start."""
        first = await self.context.port.first_partitions(self.topic, facts.topic_id)
        added = first is not None and first <= self.partition
        now = self.context.clock_ms()
        ledger = Ledger.create(
            self.topic,
            self.partition,
            str(now),
            topic_id=facts.topic_id,
            log_start=ends.log_start,
            log_end=ends.high_watermark,
            policies={name: replace(policy, floor=0) for name, policy in policies.items()} if added else policies,
        )
        ledger.observations_id = facts.observations_id
        ledger.partitions = first if first is not None and added else facts.partitions
        if added:
            ledger.expanded(now)
        return ledger

    async def _recreate(self, ledger: Ledger, facts: TopicFacts, ends: LogEnds) -> None:
        observations = await self.context.port.ends(self.names.observations, self.partition)
        ledger.recreate(
            facts.topic_id,
            ends,
            self.context.clock_ms(),
            observations_end=observations.high_watermark,
            compacted=facts.compacted,
            partitions=facts.partitions,
        )

    async def _confirm_id(self, topic_id: bytes) -> None:
        """A broker that lags may name the id of a topic that is gone: what follows from another id can't be taken back."""
        await asyncio.sleep(RETRY_SECONDS)
        if (await self.context.port.facts(self.topic)).topic_id != topic_id:
            raise Unavailable(f"brokers name different ids of topic {self.topic}; it is asked again")

    def _learn_id(self, ledger: Ledger, topic_id: bytes) -> None:
        """Brokers that told no ids tell them since an upgrade."""
        if ledger.log.topic_id == NO_TOPIC_ID != topic_id:
            log.info("brokers tell the topic's id now; it is the same topic", topic=self.topic, partition=self.partition)
            name_topic(ledger, topic_id)

    def _read_on(self, ledger: Ledger) -> None:
        """Have the reader go on from the head."""
        log = ledger.log
        self.context.port.read_from(self.topic, self.partition, log.read, log.topic_id, log.leader_epoch, log.epochs)

    async def _policies(self, ends: LogEnds) -> dict[str, Policy]:
        """With floors for this partition; they count for sinks that it has not known before."""
        found = {}
        for name, policy in self.rules.policies.items():
            match self.rules.floors[name]:
                case "first":
                    floor = None
                case "earliest":
                    floor = 0
                case "latest":
                    floor = ends.high_watermark
                case time:
                    at = await self.context.port.offset_at(self.topic, self.partition, time)
                    floor = ends.high_watermark if at is None else at
            found[name] = replace(policy, floor=floor)
        return found

    async def _hear(self, ledger: Ledger) -> None:
        wanted = ledger.observed_to
        position = await self.context.port.hear_from(self.names.observations, self.partition, wanted or None)
        if wanted and position > wanted:
            log.warning(
                "observations were removed before they were read; what they said is unknown",
                topic=self.topic,
                partition=self.partition,
                first=wanted,
                last=position - 1,
            )
            self.context.telemetry.lost_observations(position - wanted)
            ledger.doubt((await self.context.port.ends(self.topic, self.partition)).high_watermark)
        ledger.observed_to = position

    def halted(self, trouble: Trouble) -> None:
        """The log reader stopped at something that it can't settle; the loop sees to it."""
        self._halt = trouble
        self._wake.set()

    async def _mend(self) -> None:
        """The log lost its end, or is another one: change the ledger, then read on."""
        trouble, ledger = self._halt, self._ledger
        if trouble is None or ledger is None:
            return
        log.warning("the log is not what it was", topic=self.topic, partition=self.partition, reason=trouble.message)
        if trouble.kind is TroubleKind.RECREATED:
            facts = await self.context.port.facts(self.topic)
            ends = await self.context.port.ends(self.topic, self.partition)
            if other_topic(ledger.log.topic_id, facts.topic_id):
                await self._recreate(ledger, facts, ends)
        elif trouble.end_offset is not None:
            ledger.truncate(trouble.end_offset, self.context.clock_ms(), reason=trouble.message)
        self._halt = self._suspect = None
        self._read_on(ledger)

    async def _look_at_holes(self) -> None:
        """Before the log is accused: is what the reader did not see there really not there, and was the topic compacted meanwhile?"""
        read, ledger, port = self._suspect, self._ledger, self.context.port
        if read is None or ledger is None:
            return
        await self._fresh_policy.ask(ledger.log)
        holes = ledger.accuses(read)
        seen = read if not holes else await seen_again(port, self.topic, self.partition, read, holes)
        self._suspect = None
        if seen is None:
            log.warning("the log holds what the reader did not see; it is read again", topic=self.topic, partition=self.partition)
            self.context.telemetry.trouble("the log holds what the reader did not see", topic=self.topic, partition=self.partition)
        else:
            ledger.fold_log(seen, self.context.clock_ms())
        if self._halt is None:
            self._read_on(ledger)

    async def _hear_anew(self) -> None:
        """The observations topic is another one: hear it from its beginning."""
        ledger = self._ledger
        if not self._observations_changed or ledger is None:
            return
        ends = await self.context.port.ends(self.topic, self.partition)
        self._note_observations(ledger, await self.context.port.facts(self.topic), ends)
        await self._hear(ledger)
        self._observations_changed = False

    async def _read_copies(self) -> None:
        """What topics of copies said, to be written with the ledger that notes how far they were read."""
        if self._ledger is not None:
            await self._mirrors.collect(self._ledger, self._said)
            await self._mirrors.follow(self._ledger)

    def _hear_of_sinks(self) -> None:
        """What this partition can't know by itself: whether a sink that never touched it is alive in others."""
        ledger = self._ledger
        assert ledger is not None
        if any(sink.policy.configured and sink.stands_at is None for sink in ledger.judged()):
            ledger.heard_in_topic(self.context.port.heard_sinks(self.topic, ledger.log.topic_id), self.context.clock_ms())

    # --- what is said of sinks by those who ask them ------------------------------------------------------------------

    def say(self, observations: Iterable[Observation]) -> None:
        """Have observations of this partition written, in the transactions of the next flushes: only the partition's owner can."""
        if self._ledger is not None:
            for one in observations:
                value = encode(one, self.topic, self.partition)
                self._to_say.append(OutRecord(self.names.observations, one.sink.encode(), value, self.partition))
            self._wake.set()

    def note_check(self, sink: str, check: str, failure: str | None) -> None:
        """What was asked of a sink beside its observations answered (None), or why it did not."""
        if self._ledger is not None:
            self._ledger.note_check(sink, check, failure, self.context.clock_ms())

    # --- folding ------------------------------------------------------------------------------------------------------

    def fold_log(self, read: LogRead) -> None:
        """One answer of the log reader, from the agent."""
        ledger = self._ledger
        if ledger is None:
            return
        if self._suspect is not None:
            return  # it is looked at; then reading goes on from where it leads
        self._learn_id(ledger, read.topic_id)
        if ledger.accuses(read):
            self._suspect = read
            self._wake.set()
            return
        before, told = ledger.log.read, len(ledger.events)
        if ledger.fold_log(read, self.context.clock_ms()):
            self._log_sought = None
            if len(ledger.events) > told or before == read.position < read.next:
                self._wake_if_told(ledger)
        elif read.position > ledger.log.read and self._halt is None and self._may_seek(self._log_sought, ledger.log.read):
            self._log_sought = (ledger.log.read, asyncio.get_running_loop().time())
            log.info("reading the log again from the head", topic=self.topic, partition=self.partition, offset=ledger.log.read)
            self._read_on(ledger)

    def _may_seek(self, sought: tuple[int, float] | None, offset: int) -> bool:
        return sought is None or sought[0] != offset or asyncio.get_running_loop().time() - sought[1] > SEEK_AGAIN_SECONDS

    async def fold_observations(self, bundle: Bundle) -> None:
        """Observations of this partition, from the agent."""
        ledger = self._ledger
        if ledger is None:
            return
        if bundle.position != ledger.observed_to:
            await self._seek_observations(ledger, bundle)
            return
        self._observations_sought = None
        try:
            taken = await self._fold_records(ledger, bundle)
        except Unavailable as exc:  # what is left of the bundle is refused and read again
            self.context.telemetry.unavailable(self.topic, self.partition, str(exc))
            return
        if taken and bundle.heard_ms is not None:
            ledger.heard_to_end(bundle.heard_ms)
        self._wake_if_told(ledger)

    async def _fold_records(self, ledger: Ledger, bundle: Bundle) -> bool:
        """Whether all of them were taken by the ledger that is owned still."""
        position, asked = bundle.position, False
        for number, record in enumerate(bundle.records, 1):
            read = ObservationRead(position, record.offset, record.timestamp, record.value)
            observation, asked = await self._accept(ledger, read, asked)
            if self._ledger is not ledger or not ledger.observe(read, observation, self.context.clock_ms()):
                return False
            position = record.offset + 1
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
                if self._ledger is not ledger:
                    return False
        return ledger.observed_to == bundle.next

    async def _seek_observations(self, ledger: Ledger, bundle: Bundle) -> None:
        """Deliveries were dropped on the way, or the observations topic is not what it was: go to the head, or to a new beginning."""
        dropped = bundle.position > ledger.observed_to
        if not (dropped or bundle.records) or not self._may_seek(self._observations_sought, ledger.observed_to):
            return
        self._observations_sought = (ledger.observed_to, asyncio.get_running_loop().time())
        log.info("reading observations again from the head", topic=self.topic, partition=self.partition, offset=ledger.observed_to)
        try:
            if not dropped:
                ends = await self.context.port.ends(self.topic, self.partition)
                self._note_observations(ledger, await self.context.port.facts(self.topic), ends)
            await self._hear(ledger)
        except Unavailable as exc:
            self.context.telemetry.unavailable(self.topic, self.partition, str(exc))

    def _note_observations(self, ledger: Ledger, facts: TopicFacts, ends: LogEnds) -> None:
        """Of an observations topic that is another one now, nobody knows what was not read of the old one."""
        if other_topic(ledger.observations_id, facts.observations_id):
            log.warning("the observations topic was re-created; it is read from its beginning", topic=self.topic, partition=self.partition)
            ledger.observations_id, ledger.observed_to, ledger.unnamed_to = facts.observations_id, 0, 0
            ledger.doubt(ends.high_watermark)
        elif facts.observations_id != NO_TOPIC_ID:
            ledger.observations_id = facts.observations_id

    def observations_are(self, observations_id: bytes) -> None:
        """The observations topic's id, as the cluster names it now: another one than known is looked into."""
        if self._ledger is not None and other_topic(self._ledger.observations_id, observations_id):
            self._observations_changed = True
            self._wake.set()

    async def _accept(self, ledger: Ledger, read: ObservationRead, asked: bool) -> tuple[Observation | Drop | None, bool]:
        """The observation, None if it is rejected; and whether the log's end was asked for since this bundle came."""
        telemetry = self.context.telemetry
        try:
            if (drop := parse_drop(read.value, self.topic, self.partition)) is not None:
                log.info("a sink is dropped", topic=self.topic, partition=self.partition, sink=drop.sink, by=drop.by)
                return drop, asked
            observation = parse(read.value, self.topic, self.partition)
            if ledger.of_another(read, observation):
                raise Rejected(RejectReason.OLDER_INCARNATION, "it speaks of another topic of the same name, or does not say of which")
            if ledger.ahead_of_time(read, observation):
                raise Rejected(RejectReason.MALFORMED, "at is more than a day after it was written; see the reporter's clock")
            if not ledger.has_room_for(observation.sink):
                raise Rejected(RejectReason.TOO_MANY_SINKS, "too many sinks report that stand in no configuration")
            if ledger.beyond_end(observation) and not asked:
                ledger.end_is((await self.context.port.ends(self.topic, self.partition)).high_watermark)
                asked = True
            if ledger.beyond_end(observation):
                raise Rejected(RejectReason.BEYOND_END, f"it is at or above the log's end {ledger.log.end}")
        except Rejected as exc:
            telemetry.rejected(self.names.observations, self.partition, read.offset, str(exc.reason), exc.detail)
            return None, asked
        telemetry.accepted()
        return observation, asked

    def _wake_if_told(self, ledger: Ledger) -> None:
        """Events, and candidates whose time has come, are not left to the next second."""
        if ledger.events or ledger.has_due():
            self._wake.set()

    # --- verdicts and flushes -----------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Judge all that is due; each step after a second look."""
        ledger = self._ledger
        assert ledger is not None
        while due := ledger.candidates():
            advanced = False
            for step in due:
                look = await self._look(ledger, step)
                ledger.settle(step, look, self.context.clock_ms())
                advanced = advanced or look.upto > step.runs[0][0]
            if ledger.events or not advanced:  # looks that got nowhere: flush and mend before the next ones
                return

    async def _look(self, ledger: Ledger, step: Candidates) -> Look:
        look = await self.context.port.look(self.topic, self.partition, ledger.log.topic_id, step.runs)
        if look.holes and ledger.log.ever_compacted is False:  # retention took them, unless the topic is compacted since a moment ago
            await self._fresh_policy.ask(ledger.log)
        return look

    async def _note_policy(self) -> None:
        """A topic may be compacted, or keep its records for another time, from any moment on."""
        ledger = self._ledger
        assert ledger is not None
        config = await self.context.port.policy(self.topic)
        ledger.log.note_policy(config.compacted)
        if config.compacted is not None:
            ledger.retention_ms = config.retention_ms

    def _warn_of_absent(self, ledger: Ledger) -> None:
        """Whoever has rows of markers or of aborted records reads uncommitted, or something else than this log."""
        for name, sink in ledger.sinks.items():
            if sink.absent_observed and name not in self._warned_of:
                self._warned_of.add(name)
                log.warning(
                    "a sink has what is no record: transaction markers, aborted or compacted records; see its isolation level",
                    topic=self.topic,
                    partition=self.partition,
                    sink=name,
                    offsets=sink.absent_observed,
                )

    async def _flush_whole(self) -> None:
        """A flush that was begun is ended, even when the loop is cancelled: half of it can't be taken back."""
        self._flushing = asyncio.create_task(self._flush())
        try:
            await asyncio.shield(self._flushing)
        finally:
            if self._flushing.done():
                self._flushing = None

    async def _flush(self) -> None:
        """One transaction: changed state, the events that follow from it, what the API shows of it."""
        ledger, context = self._ledger, self.context
        assert ledger is not None
        started = asyncio.get_running_loop().time()
        self._flushed_at = started
        self._warn_of_absent(ledger)
        told = ledger.take_events()
        first = self.flushed_read is None  # whoever takes over says so, even if nothing else changed
        changes = self._codec.changes(ledger, force=bool(told) or first)
        positions, end_read_ms = (ledger.log.read, ledger.observed_to), ledger.log.end_read_ms
        said = self._said + self._next_to_say()
        if not changes and not told and not first and not said:
            self.clean_end_read_ms = end_read_ms
            return
        now = context.clock_ms()
        rows = report.rows(ledger, now)
        self._said = []
        records = self._state_records(changes) + self._event_records(ledger, told) + said + self._pages.records(ledger, rows)
        last = await self._writer.write(records, self.names.changelog)
        if last is not None:
            self._store.put(self.partition, changes, last)
        self.rows, self.clean_end_read_ms = rows, end_read_ms
        self.flushed_read, self.flushed_observed = positions
        context.telemetry.flushed(self.topic, self.partition, asyncio.get_running_loop().time() - started, self._codec.size_bytes())
        for event in told:
            context.telemetry.told(event, self.rules.policies)
        if told:
            await asyncio.sleep(PACE_SECONDS)

    def _next_to_say(self) -> list[OutRecord]:
        count = size = 0
        while count < len(self._to_say) and size < SAID_BYTES:
            size += len(self._to_say[count].value or b"")
            count += 1
        some, self._to_say = self._to_say[:count], self._to_say[count:]
        return some

    def _state_records(self, changes: Changes) -> list[OutRecord]:
        return [OutRecord(self.names.changelog, key, value, self.partition) for key, value in changes]

    def _event_records(self, ledger: Ledger, told: list[events.Event]) -> list[OutRecord]:
        source = f"gapstream://{self.context.cluster_id}/{self.context.app_id}/{ledger.birth}"
        topic = f"{self.context.app_id}.alerts"
        return [
            OutRecord(topic, event.key.encode(), events.as_json(event, source), headers=tuple(events.headers(event, source)))
            for event in told
        ]
