"""The log reader: which offsets of the watched partitions hold records, read off the headers of record batches.

One :class:`~stream_app.kafka.lane.Lane` per broker fetches; what the lanes can't settle (who leads, where a log starts,
whether it was re-created or truncated) is settled here, partition by partition, and lanes go on. Nothing is ever skipped
silently: every offset from the first position on is in exactly one :class:`~stream_app.core.model.LogRead`, or the owner
is told a :class:`~stream_app.kafka.trouble.Trouble` and decides where to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stream_app.core.model import Epochs, LogEnds, LogRead, other_topic
from stream_app.kafka.assigned import Assigned, Key
from stream_app.kafka.cluster import MOVED, Cluster, refusal, topic_of
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.evidence import Ours, Theirs, Verdict, judge
from stream_app.kafka.failures import BrokerError, KafkaError, RefusedError, UnreachableError, UnsupportedError
from stream_app.kafka.lane import Lane, Limits
from stream_app.kafka.protocol import EARLIEST, FETCH_DIVERGING, Api, ClusterInfo, ErrorCode, Isolation, Leader, TopicInfo
from stream_app.kafka.trouble import HALTS, Trouble, TroubleKind
from stream_app.kafka.wire import NO_UUID

PATIENCE_S = 2.0
"""A failure that lasts so long is told: leadership moves in less."""
REPEAT_S = 10.0
"""What lasts is told again so often."""
IDS_S = 5.0
"""How often topic ids are looked at where brokers fetch by name."""
RETRY_S = (0.1, 2.0)
"""Second and longest pause between attempts; the first attempt is made at once."""
HOPELESS_S = 5.0
"""Pause where settings or a broker must change first."""


@dataclass(slots=True)
class _Standing:
    """What speaks for and against a leader that has not got the position; outlives an ``assign`` of the same incarnation."""

    read_under: int = -1
    """Newest leader epoch under which anything was read, or an end was seen."""
    refusals: int = 0
    """Of the position, in a row."""


class LogReader:
    """Reads the watched partitions it is assigned. For one event loop; methods that are not coroutines return at once.

    A partition goes on being fetched while its last :class:`LogRead` waits to be taken, but no further than one answer.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        client_id: str,
        max_bytes: int = 16 << 20,
        partition_max_bytes: int | None = None,
        max_wait_ms: int = 500,
        caps: Mapping[Api, int] | None = None,
    ) -> None:
        """``max_bytes`` of one answer, of which a partition gets at most ``partition_max_bytes`` (None: an equal share, at least 1 MiB).

        ``max_wait_ms``: how long a broker waits at the end of the logs before it answers with nothing. ``caps`` lowers the
        protocol versions used, per API: how old brokers are tried without having one.
        """
        if max_wait_ms >= kafka.request_timeout_ms:
            msg = f"max_wait_ms {max_wait_ms} must be below the request timeout of {kafka.request_timeout_ms} ms"
            raise ValueError(msg)
        self._cluster = Cluster(kafka.with_client_id(client_id), caps=caps)
        self._limits = Limits(max_bytes, partition_max_bytes, max_wait_ms)
        self._parts: dict[Key, Assigned] = {}
        self._standings: dict[Key, _Standing] = {}
        self._lanes: dict[tuple[int, Isolation], Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: dict[Key, Assigned] = {}
        self._troubles: list[Trouble] = []
        self._news = asyncio.Event()
        self._crash: BaseException | None = None
        self._running = False

    async def start(self) -> None:
        """Allows ``assign``. Nothing is asked yet; brokers that are down are a Trouble of the partitions assigned."""
        if not self._running:
            self._running = True
            self._spawn(self._watch_ids())

    async def stop(self) -> None:
        """Stops fetching and closes every connection. What was not taken is gone."""
        self._running = False
        for known in (self._parts, self._standings, self._ready, self._lanes):
            known.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cluster.close()
        self._news.set()

    # ------------------------------------------------------------------------------------------------ assignment

    def assign(
        self,
        topic: str,
        partition: int,
        position: int | None,
        *,
        isolation: Isolation,
        check_crcs: bool,
        topic_id: bytes | None = None,
        leader_epoch: int = -1,
        epochs: Epochs = (),
    ) -> None:
        """Reads ``topic``/``partition`` from ``position`` on (None: from the log's start); anything in flight or untaken for it is dropped.

        ``topic_id``: the incarnation meant; None or 16 zero bytes: whatever it is now. ``leader_epoch``: epoch of the last
        batch before ``position`` (:attr:`LogRead.leader_epoch`), so that a log truncated meanwhile is noticed; -1: unknown.
        ``epochs``: those known below ``position``, so that it is also known from where on.
        """
        if not self._running:
            msg = "the log reader is not running; call start() first"
            raise RuntimeError(msg)
        before, standing = self._parts.get((topic, partition)), self._standings.get((topic, partition))
        self.unassign(topic, partition)
        part = Assigned(
            topic,
            partition,
            position,
            isolation=isolation,
            check_crcs=check_crcs,
            topic_id=None if topic_id == NO_UUID else topic_id,
            epoch=leader_epoch,
            epochs=epochs,
        )
        self._parts[part.key] = part
        if before is not None and standing is not None and before.topic_id == part.topic_id:
            self._standings[part.key] = _Standing(standing.read_under)
        self._spawn(self._locate(part))

    def unassign(self, topic: str, partition: int) -> None:
        """Stops reading it; harmless where it was not assigned."""
        part = self._parts.pop((topic, partition), None)
        self._standings.pop((topic, partition), None)
        # What halted the last assignment is met again by the next one, and must not be mended twice.
        self._troubles = [one for one in self._troubles if one.kind not in HALTS or (one.topic, one.partition) != (topic, partition)]
        if part is not None:
            self._ready.pop(part.key, None)
            for lane in self._lanes.values():
                lane.remove(part)

    # ---------------------------------------------------------------------------------------------------- results

    def take(self) -> dict[Key, LogRead]:
        """What is ready: one answer per (topic, partition), each following the last one taken. Taking it lets the next fetch go out.

        Raises:
            Exception: the reader is broken by a defect of its own; the first one.
        """
        self._check()
        taken: dict[Key, LogRead] = {}
        for key, part in self._ready.items():
            if part.ready is not None:
                taken[key], part.ready = part.ready, None
        self._ready.clear()
        if taken:
            for lane in self._lanes.values():
                lane.wake()
        return taken

    def troubles(self) -> list[Trouble]:
        """What happened since the last call that the owner should know."""
        self._check()
        told, self._troubles = self._troubles, []
        return told

    async def wait(self, *, troubles: bool = True) -> None:
        """Returns when ``take`` or, if they are waited for, ``troubles`` would give something.

        Raises:
            RuntimeError: the reader was stopped.
            Exception: as :meth:`take`.
        """
        while True:
            self._check()
            if self._ready or (troubles and self._troubles):
                return
            if not self._running:
                msg = "the log reader was stopped; nothing will become ready"
                raise RuntimeError(msg)
            self._news.clear()
            await self._news.wait()

    def _check(self) -> None:
        if self._crash is not None:
            raise self._crash

    # -------------------------------------------------------------------------------------------------- questions

    async def ends(self, topic: str, partition: int) -> LogEnds:
        """The ends of a log, asked afresh from its leader.

        Raises:
            KafkaError: they were not told within the request timeout.
        """
        part = self._parts.get((topic, partition))
        return await self._cluster.settled_ends(topic, partition, part.leader if part is not None else None)

    async def metadata(self, topics: Iterable[str] | None) -> ClusterInfo:
        """What a broker says now of ``topics`` (None: of all) and of the cluster. Creates none.

        Each of ``topics`` is in the answer's ``topics``; of one that does not exist ``exists`` is False.

        Raises:
            KafkaError: no broker answered.
        """
        names = None if topics is None else list(topics)
        info = await self._cluster.metadata(names)
        return info if names is None else replace(info, topics={name: topic_of(info, name) for name in names})

    # ------------------------------------------------------------------------------------- what the lanes tell us

    def is_ready(self, part: Assigned) -> None:
        """A lane: something can be taken."""
        self._ready[part.key] = part
        assert part.leader is not None
        standing = self._standings.setdefault(part.key, _Standing())
        standing.read_under = max(standing.read_under, part.leader.epoch)
        self._news.set()

    def is_lost(self, part: Assigned, failure: KafkaError) -> None:
        """A lane: ``part`` must be located anew."""
        if self._parts.get(part.key) is part:
            if part.question is None:
                self._note(part, failure)
            else:
                part.failures += 1  # what it means is told when the question is answered
            self._spawn(self._locate(part))

    def tell(self, kind: TroubleKind, part: Assigned, message: str) -> None:
        """A fact for the owner, repeated every 10 s at most."""
        now = asyncio.get_running_loop().time()
        if now - part.told.get(kind, -REPEAT_S) >= REPEAT_S:
            part.told[kind] = now
            self._report(Trouble(kind, part.topic, part.partition, message, position=part.position))

    def _report(self, trouble: Trouble) -> None:
        self._troubles.append(trouble)
        self._news.set()

    def _note(self, part: Assigned, failure: KafkaError) -> None:
        """Counts a failure, which lengthens the pause, and tells it where it lasts or can't pass by itself."""
        now = asyncio.get_running_loop().time()
        part.failures += 1
        part.failing_since = now if part.failing_since is None else part.failing_since
        kind = _kind_of(failure)
        if kind in (TroubleKind.REFUSED, TroubleKind.UNSUPPORTED) or now - part.failing_since >= PATIENCE_S:
            self.tell(kind, part, str(failure))

    # ---------------------------------------------------------------------------------------------------- locating

    async def _locate(self, part: Assigned) -> None:
        """Finds out who leads ``part`` and answers its question, then hands it to the lane; asks until that succeeds."""
        failure: KafkaError | None = None
        while self._parts.get(part.key) is part:
            await asyncio.sleep(_pause(part.failures, failure))
            if self._parts.get(part.key) is not part:
                return
            try:
                trouble = await self._settle(part)
            except KafkaError as error:
                failure = error
                self._note(part, failure)
                continue
            if self._parts.get(part.key) is not part:
                return
            if trouble is not None:
                self._report(trouble)
                assert trouble.kind in HALTS
                return
            self._lane_of(part).add(part)
            return

    def _lane_of(self, part: Assigned) -> Lane:
        assert part.leader is not None
        key = (part.leader.node, part.isolation)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(part.leader.node, part.isolation, self._cluster, self._limits, self)
            self._spawn(lane.run())
        return lane

    async def _settle(self, part: Assigned) -> Trouble | None:
        """Brings ``part`` to where its leader can be asked for records; a Trouble where only the owner can.

        Raises:
            KafkaError: not now.
        """
        info = await self._cluster.metadata([part.topic])
        topic = topic_of(info, part.topic)
        if topic.exists and topic.topic_id != NO_UUID:
            if part.topic_id in (None, NO_UUID):
                part.topic_id = topic.topic_id
            elif topic.topic_id != part.topic_id:
                return await self._other_id(part, topic)
        elif part.topic_id is None and topic.exists:
            part.topic_id = NO_UUID
        leader = topic.leaders.get(part.partition) if topic.exists else None
        if leader is None:
            raise refusal(topic.error or ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"find {part.topic}/{part.partition}")
        if leader.node < 0:
            message = f"{part.topic}/{part.partition} has no leader; start the brokers that hold it"
            raise BrokerError(ErrorCode.LEADER_NOT_AVAILABLE, message)
        part.leader = leader
        if part.position is None:
            part.position = await self._cluster.offset(part.topic, part.partition, leader, EARLIEST, part.isolation)
        question, part.question = part.question, None
        if question is not None:
            return await self._look_into(part, leader, *self._refused(part))
        if await self._must_compare(part, leader):
            return await self._look_into(part, leader, 0.0, 0)
        return None

    async def _other_id(self, part: Assigned, topic: TopicInfo) -> Trouble | None:
        """Metadata names another id: believed when it says so again later and the leader no longer knows ours."""
        assert part.topic_id is not None
        leader = next((one for one in topic.leaders.values() if one.node >= 0), None)
        seen_before, part.suspected_id = part.suspected_id == topic.topic_id, topic.topic_id
        if not seen_before or leader is None:
            raise _changed_id(part)
        if await self._cluster.knows_id(leader, part.topic, part.topic_id, part.partition):
            raise _changed_id(part)
        message = f"{part.topic} was deleted and created anew; what was read belongs to the old one"
        return Trouble(TroubleKind.RECREATED, part.topic, part.partition, message, position=part.position, topic_id=topic.topic_id)

    async def _watch_ids(self) -> None:
        """Brokers that fetch by name only can't say that a topic was made anew: then metadata is looked at now and then.

        What was read in between belongs to the new one. Kafka before 2.8 has no ids at all: there nothing can tell.
        """
        while True:
            await asyncio.sleep(IDS_S)
            parts = [part for lane in self._lanes.values() if lane.by_name for part in lane.parts]
            if not parts:
                continue
            try:
                info = await self._cluster.metadata({part.topic for part in parts})
            except KafkaError:
                continue  # whoever fetches meets the same failure, and tells it
            for part in parts:
                topic = topic_of(info, part.topic)
                assert part.topic_id is not None
                if topic.exists and other_topic(part.topic_id, topic.topic_id):
                    self._lane_of(part).remove(part)
                    self.is_lost(part, _changed_id(part))

    # ------------------------------------------------------------------------------- positions that a leader has not got

    async def _must_compare(self, part: Assigned, leader: Leader) -> bool:
        """Whether a new leader's log has to be compared with ours before it is read (KIP-320): from Fetch v12 on it does so itself."""
        if part.epoch < 0 or leader.epoch <= self._ours(part).newest:
            return False
        return (await self._cluster.connection(leader.node)).version(Api.FETCH) < FETCH_DIVERGING

    def _refused(self, part: Assigned) -> tuple[float, int]:
        """Counts a refusal of the position; since how many seconds, and how often in a row."""
        now = asyncio.get_running_loop().time()
        standing = self._standings.setdefault(part.key, _Standing())
        if part.doubted_at is None:
            part.doubted_at, standing.refusals = now, 0
        standing.refusals += 1
        return now - part.doubted_at, standing.refusals

    async def _look_into(self, part: Assigned, leader: Leader, refused_s: float, refusals: int) -> Trouble | None:
        """Why the leader has not got our position; see :mod:`stream_app.kafka.evidence`. What is believed was told twice."""
        verdict, theirs = await self._judge(part, leader, self._cluster, refused_s, refusals)
        if verdict in (Verdict.TRIMMED, Verdict.TRUNCATED, Verdict.LOST):
            fresh = self._cluster.anew()
            try:
                leader = await fresh.leader(part.topic, part.partition)
                verdict, theirs = await self._judge(part, leader, fresh, refused_s, refusals)
            finally:
                await fresh.close()
        if self._parts.get(part.key) is not part:
            return None
        if verdict is Verdict.TRIMMED:
            part.skip_to_start(theirs.ends, asyncio.get_running_loop().time())
            self.is_ready(part)
        elif verdict in (Verdict.TRUNCATED, Verdict.LOST):
            return _loss(part, theirs)
        elif verdict is Verdict.HERE and theirs.epoch_end is None:
            part.epoch = -1  # the leader knows nothing of our epoch: nothing can be compared
        elif refused_s >= PATIENCE_S:
            self.tell(TroubleKind.SUSPECT, part, _contradiction(part, theirs, refusals))
        return None

    async def _judge(self, part: Assigned, leader: Leader, cluster: Cluster, refused_s: float, refusals: int) -> tuple[Verdict, Theirs]:
        ends = await cluster.ends(part.topic, part.partition, leader)
        told: tuple[int, int] | None = None
        if part.epoch >= 0:
            with contextlib.suppress(UnsupportedError):  # before Kafka 2.1: then nothing can be compared
                told = await cluster.epoch_end(part.topic, part.partition, leader, part.epoch)
        theirs = Theirs(leader.epoch, ends, None if told is None or told[0] < 0 else told)
        return judge(self._ours(part), theirs, refused_s, refusals), theirs

    def _ours(self, part: Assigned) -> Ours:
        assert part.position is not None
        standing = self._standings.get(part.key)
        return Ours(part.position, part.epoch, -1 if standing is None else standing.read_under)

    # ------------------------------------------------------------------------------------------------------- tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = self._crash or error
            self._news.set()


def _pause(failures: int, failure: KafkaError | None) -> float:
    """Seconds before the next attempt; ``failure``: why the last one in this row failed."""
    if isinstance(failure, RefusedError | UnsupportedError):
        return HOPELESS_S
    first_s, longest_s = RETRY_S
    return 0.0 if failures <= 1 else float(min(first_s * 2 ** min(failures - 2, 8), longest_s))


def _loss(part: Assigned, theirs: Theirs) -> Trouble:
    where = f"{part.topic}/{part.partition}"
    assert part.position is not None
    if theirs.epoch_end is None:
        end = theirs.ends.high_watermark
        message = f"{where} ends at offset {end}, but offsets up to {part.position} were read; records were lost"
        return Trouble(TroubleKind.OUT_OF_RANGE, part.topic, part.partition, message, position=part.position, end_offset=end)
    epoch, end = theirs.epoch_end
    end = part.agreed_end(epoch, end)
    message = f"{where} was truncated to offset {end} after offsets up to {part.position} were read; records were lost or replaced"
    return Trouble(TroubleKind.TRUNCATED, part.topic, part.partition, message, position=part.position, end_offset=end, leader_epoch=epoch)


def _contradiction(part: Assigned, theirs: Theirs, refusals: int) -> str:
    end = theirs.ends.high_watermark if theirs.epoch_end is None else min(theirs.epoch_end[1], theirs.ends.high_watermark)
    return (
        f"{part.topic}/{part.partition} was read up to offset {part.position}, but its leader says that it ends at {end}; no newer leader "
        f"explains that, so nothing is given up and it is asked again ({refusals} times so far); see the broker's log and its disks"
    )


def _changed_id(part: Assigned) -> BrokerError:
    return BrokerError(ErrorCode.UNKNOWN_TOPIC_ID, f"{part.topic} has another id than expected; wait until the brokers agree")


def _kind_of(failure: KafkaError) -> TroubleKind:
    if isinstance(failure, RefusedError):
        return TroubleKind.REFUSED
    if isinstance(failure, UnsupportedError):
        return TroubleKind.UNSUPPORTED
    if isinstance(failure, UnreachableError):
        return TroubleKind.UNREACHABLE
    if isinstance(failure, BrokerError):
        if failure.code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION:
            return TroubleKind.UNKNOWN_TOPIC
        if failure.code in MOVED:
            return TroubleKind.NO_LEADER
        if failure.code == ErrorCode.CORRUPT_MESSAGE:
            return TroubleKind.DAMAGED
    return TroubleKind.UNEXPECTED


__all__ = ["ClusterInfo", "Isolation", "KafkaSettings", "LogReader", "TopicInfo", "Trouble", "TroubleKind"]
