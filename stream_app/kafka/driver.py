"""The Faust transport: group membership, observations and changelogs through aiokafka, watched logs through our own reader.

What is ours here, and why (line numbers and measurements: docs/DESIGN.md, "The driver"):

- Watched partitions are assigned by the group but never fetched by aiokafka; their events are runs from the log reader.
- Positions come from the ledgers' heads; commits are made from what was flushed, for other people's lag tools only.
- Each delivery of observations is stamped with the position it follows. Faust drops deliveries when its flow is suspended or
  the generation changes, and counts them as read; the ledger sees it by the stamp and has the input sought back.
- Recovery ends on transaction markers: where the position passed the end of a changelog without a record, a no-op stands in.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import aiokafka
from aiokafka import ConsumerRecord
from aiokafka.errors import ConsumerStoppedError, KafkaError
from aiokafka.structs import TopicPartition
from faust.tables.recovery import RebalanceAgain
from faust.transport.consumer import ack_lock, notify
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP, ConsumerMessage, Message
from mode import Service

from stream_app.kafka import patches  # importing it applies the mends, too
from stream_app.kafka.assignor import GroupedAssignor
from stream_app.kafka.store import NO_OP_KEY

FETCH_WAIT_MS = 250
"""Long poll of aiokafka's fetches: how old the knowledge "read to the end" is on an idle partition, at most, beside the network."""
GETMANY_SECONDS = 0.25
"""Longest wait of one turn of the fetcher."""
SWITCH_SECONDS = 0.0005
"""The consumer's thread waits so long for the interpreter each time that something comes while the main loop is busy, and a fetch is
about ten such waits. With Python's 5 ms an observation was up to 0.1 s old before anybody saw it."""
COMMIT_SECONDS = 2.0
"""One commit at most. aiokafka tries again for as long as an error may pass: that of a deleted topic, until it is made anew, whose
log has nothing to do with the offset. Meanwhile no other topic's commit would be made."""
COMMIT_AGAIN_SECONDS = 60.0
"""What did not move is committed again so often: the broker forgets the commits of a topic that was deleted, and one made anew may
be as long."""

ASK_AGAIN_SECONDS = 1.0
"""Recovery asks brokers that did not answer again so soon."""

TAKE_IN_FIRST_SECONDS = 15.0
TAKE_IN_LAST_SECONDS = 600.0
"""Pauses between requests for an assignment of what there is: each stops the work of all for a moment."""

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Observation records of one partition as fetched at once, with the position that they follow."""

    position: int
    records: tuple[ConsumerRecord, ...]
    next: int
    """Position after them."""
    heard_ms: int | None
    """With these, the observations are read to their end as it was at this time (worker's clock); None: not to the end."""


@dataclass(slots=True)
class Fetched:
    """What one turn in aiokafka's thread gave."""

    records: dict[TP, list[ConsumerRecord]] = field(default_factory=dict)
    heard: dict[TP, int] = field(default_factory=dict)
    epochs: dict[TP, int] = field(default_factory=dict)
    """How often each partition had been assigned or sought when these records were taken."""


class Owners(Protocol):
    """Who owns partitions in this process; the driver's only way to the rest of the program. All calls are on the main loop."""

    def kind(self, topic: str) -> str:
        """``log``, ``observations`` or ``other``."""

    async def fence(self, partitions: set[Partition]) -> None:
        """Become the only writer of these watched partitions, before their changelogs are read."""

    def begin(self, partitions: set[Partition]) -> None:
        """State is recovered: load it, seek the inputs, work."""

    async def release(self, partitions: set[Partition]) -> dict[TP, int]:
        """Flush and forget; what was flushed, by input: to be committed."""

    def reads(self) -> dict[Partition, Any]:
        """Answers of the log reader that are ready."""

    async def wait_reads(self) -> None:
        """Until there are some."""

    def positions(self) -> dict[TP, int]:
        """What was flushed, by input: to be committed."""

    async def ready_topics(self) -> set[str]:
        """Topics that exist and can be subscribed to."""

    def clock_ms(self) -> int:
        """The worker's clock."""

    def hindered(self, reason: str) -> None:
        """State can't be recovered now; it is tried again."""


class RebalanceListener(faust_aiokafka.ConsumerRebalanceListener):
    """Pauses what aiokafka must not fetch before its fetcher sees the assignment."""

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Runs in aiokafka's loop, before any fetch for the new assignment."""
        tps = set(assigned)
        thread = cast(Thread, self._thread)
        owners = thread.owners
        consumer = thread._ensure_consumer()
        consumer.pause(*(tp for tp in tps if owners.kind(tp.topic) in ("log", "observations")))
        thread.begin_assignment(tps)
        await super().on_partitions_assigned(tps)


class Thread(faust_aiokafka.AIOKafkaConsumerThread):
    """aiokafka's consumer in a thread and loop of its own, as Faust has it."""

    def __post_init__(self) -> None:
        """Called by Faust at the end of its constructor."""
        super().__post_init__()
        self._sent_ms: dict[TopicPartition, int] = {}
        self._told: dict[TP, int] = {}
        self._epochs: dict[TP, int] = {}

    @property
    def owners(self) -> Owners:
        """Set by the application."""
        return cast(Owners, self.app.owners)  # type: ignore[attr-defined]  # our App has it

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = self.app.assignor
        return aiokafka.AIOKafkaConsumer(
            **transport.connection,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            check_crcs=True,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            isolation_level="read_committed",
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )

    async def on_start(self) -> None:
        """Start aiokafka; from now on note when each fetch was sent."""
        asyncio.get_running_loop().set_exception_handler(patches.on_loop_error)
        sys.setswitchinterval(SWITCH_SECONDS)
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        process = fetcher._proc_fetch_request

        async def noting(assignment: Any, node_id: int, request: Any) -> bool:
            sent = self.owners.clock_ms()
            states = {}
            for topic, partitions in request.topics:
                for partition, *_ in partitions:
                    tp = TopicPartition(topic, partition)
                    state = assignment.state_value(tp)
                    if state is not None:
                        states[tp] = (state, state.timestamp)
                        state.timestamp = None
            found = await process(assignment, node_id, request)
            for tp, (state, before) in states.items():
                if state.timestamp is None:
                    state.timestamp = before
                else:
                    self._sent_ms[tp] = sent
            return bool(found)

        fetcher._proc_fetch_request = noting

    def begin_assignment(self, tps: set[TopicPartition]) -> None:
        """A new assignment: nothing noted of the last one holds, and what was fetched before is stale."""
        self._sent_ms.clear()
        self._told.clear()
        for tp in tps:
            self._sought(TP(tp.topic, tp.partition))

    def _sought(self, tp: TP) -> int:
        self._epochs[tp] = self._epochs.get(tp, 0) + 1
        return self._epochs[tp]

    def epoch(self, tp: TP) -> int:
        """How often the partition was assigned or sought; what was fetched in an earlier epoch is stale. From any thread."""
        return self._epochs.get(tp, 0)

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:
        for tp in partitions:
            self._sought(TP(tp.topic, tp.partition))
            self._told.pop(TP(tp.topic, tp.partition), None)
        assignment = _assignment(consumer)
        if assignment is None or not partitions.keys() <= assignment.tps:
            raise RebalanceAgain  # subscribed anew, and not assigned yet: recovery begins anew then, and must not end the worker now
        await super()._seek_wait(consumer, partitions)

    async def fetch(self, active: set[TP], seconds: float) -> Fetched:
        """One turn: records of ``active``, and what was read to its end."""
        return cast(Fetched, await self.call_thread(self._fetch, active, seconds))

    async def _fetch(self, active: set[TP], seconds: float) -> Fetched:
        consumer = self._ensure_consumer()
        records = await self._fetch_records(consumer, active, timeout=seconds, max_records=consumer._max_poll_records)
        fetched = Fetched(dict(records), epochs=dict(self._epochs))  # nothing awaited since the records were taken
        if not self.consumer.flow_active:
            return fetched
        assignment = _assignment(consumer)
        if assignment is None or not assignment.active:
            return fetched
        for tp in active:
            if tp not in assignment.tps:
                continue
            if self.owners.kind(tp.topic) == "observations":
                self._note_heard(consumer, assignment, tp, fetched)
            else:
                self._stand_in(consumer, assignment, tp, fetched)
        return fetched

    def _note_heard(self, consumer: Any, assignment: Any, tp: TP, fetched: Fetched) -> None:
        state = assignment.state_value(tp)
        sent = self._sent_ms.get(TopicPartition(tp.topic, tp.partition))
        if sent is None or tp in consumer._fetcher._records or not state.has_valid_position or state.paused:
            return
        if state.lso is not None and state.position >= state.lso:
            fetched.heard[tp] = sent

    def _stand_in(self, consumer: Any, assignment: Any, tp: TP, fetched: Fetched) -> None:
        """Put a no-op where the position passed markers only; Faust's recovery counts to the last offset."""
        found = fetched.records.get(tp)
        if found:
            self._told[tp] = found[-1].offset
        state = assignment.state_value(tp)
        if tp in consumer._fetcher._records or not state.has_valid_position:
            return
        last = state.position - 1
        if last > self._told.get(tp, -1):
            self._told[tp] = last
            no_op = ConsumerRecord(tp.topic, tp.partition, last, 0, 0, NO_OP_KEY, b"", None, len(NO_OP_KEY), 0, ())
            fetched.records.setdefault(tp, []).append(no_op)

    async def seek_paused(self, tp: TP, position: int) -> int:
        """Pause and seek; the epoch of what is fetched from there."""
        return cast(int, await self.call_thread(self._seek_paused, tp, position))

    async def _seek_paused(self, tp: TP, position: int) -> int:
        consumer = self._ensure_consumer()
        part = TopicPartition(tp.topic, tp.partition)
        consumer.pause(part)
        self._sent_ms.pop(part, None)
        consumer.seek(part, position)
        return self._sought(tp)

    async def resume_input(self, tp: TP) -> None:
        """Let it be fetched."""
        await self.call_thread(self._resume_input, tp)

    async def _resume_input(self, tp: TP) -> None:
        self._ensure_consumer().resume(TopicPartition(tp.topic, tp.partition))

    def amiss(self, changelogs: Mapping[str, int]) -> set[Partition]:
        """Partitions of these changelogs that the present generation hands to nobody, or that are no more. From any thread."""
        return cast(GroupedAssignor, self._assignor).amiss(changelogs)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if _assignment(self._ensure_consumer()) is None:
            return False  # subscribed anew, and not assigned yet: aiokafka would take a commit for a defect, and Faust would crash
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                return await super()._commit(offsets)
        except TimeoutError:
            return False

    async def rejoin(self) -> None:
        """Ask the group for a new assignment."""
        await self.call_thread(self._rejoin)

    async def _rejoin(self) -> None:
        coordinator = self._ensure_consumer()._coordinator
        coordinator.request_rejoin()


def _assignment(consumer: Any) -> Any:
    """What aiokafka's consumer is assigned; None: nothing, or it is subscribed anew and not assigned yet."""
    subscription = consumer._subscription.subscription
    return None if subscription is None else subscription.assignment


class Consumer(faust_aiokafka.Consumer):
    """Faust's consumer; see the module."""

    RebalanceListener = RebalanceListener
    _thread: Thread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As Faust calls it."""
        super().__init__(*args, **kwargs)
        self._turn: asyncio.Task[Fetched] | None = None
        self._turn_of: set[TP] = set()
        self._stamps: dict[TP, tuple[int, int]] = {}
        """By observations partition: epoch of its last seek, and the position that the next delivery follows."""
        self._committed: dict[TP, int] = {}
        self._committed_from = 0.0
        """When the first of these commits was made."""
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._asked_again = (0.0, TAKE_IN_FIRST_SECONDS)
        """When the group may be asked once more to hand out what it left out, and the pause after that."""

    @property
    def owners(self) -> Owners:
        """Set by the application."""
        return self._thread.owners

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

    async def create_topic(self, *args: Any, **kwargs: Any) -> None:
        """Internal topics are created by :mod:`stream_app.kafka.topics`, with our settings, before they are needed."""

    # --- subscription and assignment -----------------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to those that exist; the others follow by :meth:`resubscribe` when they do."""
        self._wanted = set(topics)
        await self.resubscribe()

    async def resubscribe(self) -> None:
        """Look again which of the wanted topics can be subscribed to."""
        ready = self._wanted & await self.owners.ready_topics()
        if ready and ready != self._subscribed:
            self._subscribed = ready
            await super().subscribe(ready)

    async def rejoin(self) -> None:
        """Give up and take partitions anew: the way back after a lost flush."""
        await self._thread.rejoin()

    async def take_in(self, changelogs: Mapping[str, int]) -> None:
        """Have the group assign anew where partitions of these changelogs are handed to nobody, or are no more; not too often."""
        known = {topic: count for topic, count in changelogs.items() if topic in self._subscribed}
        now = asyncio.get_running_loop().time()
        if not known or not self._thread.amiss(known):
            self._asked_again = (0.0, TAKE_IN_FIRST_SECONDS)
        elif now >= self._asked_again[0]:
            pause = self._asked_again[1]
            self._asked_again = (now + pause, min(2 * pause, TAKE_IN_LAST_SECONDS))
            await self.rejoin()

    def _watched(self, tps: Iterable[TP]) -> set[Partition]:
        return {(tp.topic, tp.partition) for tp in tps if self.owners.kind(tp.topic) == "log"}

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Fence first, then let Faust recover the tables."""
        self._stamps.clear()
        self._committed.clear()
        await self.owners.fence(self._watched(assigned))
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Stop the flow, flush, commit, forget."""
        await super().on_partitions_revoked(revoked)
        await self._commit_last(await self.owners.release(self._watched(revoked)))

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Ends of changelogs, asked until they are told: recovery would end the worker on a broker that is silent for long."""
        return await self._until_told(super().highwaters, partitions)

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Starts of changelogs; as :meth:`highwaters`."""
        return await self._until_told(super().earliest_offsets, partitions)

    async def _until_told(self, ask: Callable[..., Awaitable[Mapping[TP, int]]], partitions: Iterable[TP]) -> Mapping[TP, int]:
        """Asks until brokers answer; recovery cancels it when there is another assignment."""
        while True:
            try:
                return await ask(*partitions)
            except KafkaError as exc:
                self.owners.hindered(str(exc))
                await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def perform_seek(self) -> None:
        """Recovery is complete: whoever owns partitions loads them and seeks its inputs."""
        self.owners.begin(self._watched(self.assignment()))

    async def seek_input(self, tp: TP, position: int) -> None:
        """Position an observations partition, inside its log: beyond either end aiokafka would reset without a word.

        It is resumed only after the stamp is set: records fetched from the new position can't be taken for stale ones.
        """
        self._stamps[tp] = (await self._thread.seek_paused(tp, position), position)
        await self._thread.resume_input(tp)

    async def on_stop(self) -> None:
        """Flush what is owned, and commit, before the membership is given up."""
        self.stop_flow()
        if self._turn is not None:
            self._turn.cancel()
        await self._commit_last(await self.owners.release(self._watched(self.assignment() if self._thread._consumer else ())))
        await super().on_stop()

    async def _commit_last(self, positions: dict[TP, int]) -> None:
        """Whoever looks at the group's lag after a stop would see it as of the last commit, seconds ago, for ever."""
        ready = await self.owners.ready_topics()
        due = {tp: offset for tp, offset in positions.items() if tp.topic in ready}
        if due:
            await self._commit(due)

    # --- fetching -----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Any]]:  # noqa: ASYNC109  # Faust's signature
        active = active_partitions or set()
        logs = {tp for tp in active if self.owners.kind(tp.topic) == "log"}
        found = self._take_reads(logs)
        if self._turn is None and active - logs:
            self._turn_of = active - logs
            self._turn = asyncio.ensure_future(self._thread.fetch(active - logs, GETMANY_SECONDS))
        if not found:
            await self._wait_for_something(logs, timeout)
            found = self._take_reads(logs)
        turn = self._turn
        if turn is not None and turn.done():
            self._turn = None
            self._take_turn(turn.result(), found)
        return found

    async def _wait_for_something(self, logs: set[TP], seconds: float) -> None:
        waits: list[asyncio.Future[Any]] = [self._turn] if self._turn is not None else []
        reading = asyncio.ensure_future(self.owners.wait_reads()) if logs else None
        if reading is not None:
            waits.append(reading)
        try:
            if waits:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(min(seconds, GETMANY_SECONDS))
        finally:
            if reading is not None:
                reading.cancel()

    def _take_reads(self, logs: set[TP]) -> dict[TP, list[Any]]:
        if not logs:
            return {}
        return {TP(topic, partition): [read] for (topic, partition), read in self.owners.reads().items()}

    def _take_turn(self, fetched: Fetched, found: dict[TP, list[Any]]) -> None:
        """Hand on what is not stale: what was fetched before a seek or an assignment is fetched again from where that led.

        A changelog that was paused meanwhile is recovered: what comes of it now was written by its owner here, who has it in the
        store already. Faust would keep it for its next recovery, and put the old over the new then.
        """
        active = self._get_active_partitions()
        for tp in self._turn_of:
            records = fetched.records.get(tp, [])
            if self.owners.kind(tp.topic) != "observations":
                if records and tp in active and fetched.epochs.get(tp, 0) == self._thread.epoch(tp):
                    found[tp] = list(records)
                continue
            epoch, position = self._stamps.get(tp, (-1, 0))
            heard = fetched.heard.get(tp)
            if fetched.epochs.get(tp) == epoch and (records or heard is not None):
                after = records[-1].offset + 1 if records else position
                self._stamps[tp] = (epoch, after)
                found[tp] = [Bundle(position, tuple(records), after, heard)]

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:  # noqa: ASYNC109  # Faust's signature
        """As Faust's, without its seek to committed offsets and its bookkeeping of single offsets."""
        records, _ = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if not records or self.should_stop:
            return
        for tp, found in records.items():
            for record in found:
                if not self.flow_active or self.app.consumer_generation_id != generation:
                    return
                yield tp, self._to_message(tp, record)

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if isinstance(record, ConsumerRecord):
            return super()._to_message(tp, record)
        now = time.time()
        return ConsumerMessage(
            tp.topic, tp.partition, record.next, now, 0, [], None, record, None, 0, 0, tp, generation_id=self.app.consumer_generation_id
        )

    async def _drain_messages(self, fetcher: Service) -> None:  # type: ignore[override]  # Faust's ServiceT is narrower
        stopped, fetcher_stopped = self._stopped.is_set, fetcher._stopped.is_set
        try:
            while not (stopped() or fetcher_stopped()):
                await self.sleep(0)
                async for _, message in self.getmany(timeout=1.0):
                    await self.wait_first(self.callback(message), self.suspend_flow.wait())
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.transport.app.should_stop:
                raise

    # --- commits ------------------------------------------------------------------------------------------------------

    def ack(self, message: Message) -> bool:
        """An event is processed. What is committed comes from the flushed heads, not from here."""
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            self._unacked_messages.discard(message)
            notify(self._waiting_for_ack)
            return True

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what was flushed since the last commit, now and then also what did not move."""
        now = time.monotonic()
        if now - self._committed_from >= COMMIT_AGAIN_SECONDS:
            self._committed.clear()
            self._committed_from = now
        assignment = self.assignment() if self._thread._consumer else set()
        ready = await self.owners.ready_topics()  # without those that were deleted a while ago
        due = {
            tp: offset
            for tp, offset in self.owners.positions().items()
            if tp in assignment
            and tp.topic in ready
            and self._committed.get(tp) != offset
            and (topics is None or tp in topics or tp.topic in topics)
        }
        if not due or not await self._commit(due):
            return False
        self._committed.update(due)
        return True

    async def verify_all_partitions_active(self) -> None:
        """Faust's check for stalled streams counts single offsets, which there are none of; readiness tells it here."""


class Producer(faust_aiokafka.Producer):
    """Faust's producer: unused by us but for what Faust itself sends."""

    def _settings_default(self) -> Mapping[str, Any]:
        connection = cast(Transport, self.transport).connection
        return {**connection, "acks": "all", "linger_ms": 0}

    def _settings_auth(self) -> Mapping[str, Any]:
        return {}

    async def create_topic(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`Consumer.create_topic`."""


class Transport(faust_aiokafka.Transport):
    """The transport that the application names."""

    Consumer = Consumer
    Producer = Producer

    @property
    def connection(self) -> dict[str, Any]:
        """aiokafka's connection settings, from the configuration."""
        return dict(self.app.kafka_connection)  # type: ignore[attr-defined]  # our App has it
