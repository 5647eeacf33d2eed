"""A second look at offsets that seem to be missing, before anybody is told: over a fresh connection, and by other code.

The log reader is a suspect too. Nothing of its buffers, its parser's joining of runs or its connection is used here: the
candidates' batches are fetched once more, their CRCs are checked whatever the topic says, and their records are decoded.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping
from itertools import zip_longest
from types import TracebackType

from stream_app.core.model import Look, Run, Runs
from stream_app.kafka.batches import Batch, add_run, records_of, whole_batches
from stream_app.kafka.cluster import MOVED, Cluster, fetch, refusal
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.failures import BrokerError, KafkaError, UnreachableError
from stream_app.kafka.protocol import EARLIEST, Api, ErrorCode, Isolation, Leader, Section, Want
from stream_app.kafka.records import CONTROL, SurplusError, UndecodableError

MAX_BYTES = 64 << 20
"""Bytes of one look: about half a second of decoding."""
TIMEOUT_S = 30.0
FETCH_BYTES = (1 << 12, 4 << 20)
"""Smallest and largest fetch; a larger batch comes whole anyway (KIP-74), so that for a single record little but its batch comes."""
BYTES_PER_OFFSET = 1024
"""How much of the log is fetched for a run, by its length."""
RETRY_S = 0.1


async def look(
    kafka: KafkaSettings,
    topic: str,
    partition: int,
    topic_id: bytes,
    isolation: Isolation,
    runs: Runs,
    *,
    older_than_ms: int | None = None,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT_S,  # noqa: ASYNC109 - the caller's bound for the whole look, part of the result's meaning
) -> Look:
    """One look over connections of its own; see :meth:`Prober.look`."""
    async with Prober(kafka) as prober:
        return await prober.look(
            topic, partition, topic_id, isolation, runs, older_than_ms=older_than_ms, max_bytes=max_bytes, timeout=timeout
        )


class Prober:
    """Looks at several partitions in turn over connections that are fresh when it is made; ``async with`` closes them."""

    def __init__(self, kafka: KafkaSettings, *, caps: Mapping[Api, int] | None = None) -> None:
        """``caps`` lowers the protocol versions used, per API."""
        self._cluster = Cluster(kafka, caps=caps)

    async def __aenter__(self) -> Prober:
        """Nothing is asked yet."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes the connections."""
        await self._cluster.close()

    async def look(
        self,
        topic: str,
        partition: int,
        topic_id: bytes,
        isolation: Isolation,
        runs: Runs,
        *,
        older_than_ms: int | None = None,
        max_bytes: int = MAX_BYTES,
        timeout: float = TIMEOUT_S,  # noqa: ASYNC109 - as above
    ) -> Look:
        """What is at ``runs`` (ascending, disjoint) and beside them now; a ``topic_id`` of 16 zero bytes means whatever it is now.

        With ``older_than_ms`` it is told which of the records are older than that.

        ``holes`` are offsets in no batch though a later one is there, or in a batch that does not hold them any more.
        Transaction markers and aborted records lie in a batch, so they are in none of the answer's fields; they are never
        candidates, because the log reader tells them as absent. Wrong CRCs are ``unreadable`` when wrong on two fresh
        connections.

        Work ends after ``max_bytes`` fetched or ``timeout`` seconds, where a consumer of this isolation level can't read yet,
        and where the broker gives nothing below its own end; ``upto`` says how far it got.

        Raises:
            KafkaError: nothing was found out: brokers out of reach, or another ``topic_id`` by now (a BrokerError with
                UNKNOWN_TOPIC_ID).
        """
        if not runs:
            _, leader = await self._cluster.identify(topic, partition, topic_id)
            return Look(0, await self._cluster.offset(topic, partition, leader, EARLIEST, isolation))
        looking = _Looking(self._cluster, topic, partition, isolation, runs, max_bytes, older_than_ms)
        failure: KafkaError = UnreachableError(f"{topic}/{partition} was not looked at within {timeout:g} s; see whether its leader is up")
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        return await looking.run(*await self._cluster.identify(topic, partition, topic_id))
                    except UnreachableError as error:
                        failure = error
                    except BrokerError as error:
                        if error.code not in MOVED or error.code == ErrorCode.UNKNOWN_TOPIC_ID:
                            raise
                        failure = error
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            if looking.at <= runs[0][0]:
                raise failure from None
            return looking.found()


class _Looking:
    """One look under way: goes on where it was when a leader is lost."""

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        partition: int,
        isolation: Isolation,
        runs: Runs,
        max_bytes: int,
        older_than_ms: int | None,
    ) -> None:
        self._cluster = cluster
        self._topic, self._partition = topic, partition
        self._isolation = isolation
        self._asked = _Runs(runs)
        self._read = _Runs(_wider(runs))
        """What is read: the runs, and the offsets beside them."""
        self._beside = {offset for first, stop in runs for offset in (first - 1, stop)}
        self._bytes_left = max_bytes
        self.at = self._read.runs[0][0]
        """Everything that is to be read below it was looked at."""
        self._log_start = 0
        self._holes: list[Run] = []
        self._unreadable: list[Run] = []
        self._tombstones: list[Run] = []
        self._older: list[Run] = []
        self._older_than_ms = -1 if older_than_ms is None else older_than_ms
        self._part = (0, False)
        """Number of the part of a run that is looked at, and whether it is older."""
        self._edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        """Index of a run and number of the part -> its first, last and earliest record, with their times."""
        self._beside_times: dict[int, int] = {}
        self._condemned: int | None = None
        self._empty_at: int | None = None

    def found(self) -> Look:
        """What is known so far."""
        first, last = self._asked.runs[0][0], self._asked.runs[-1][1]
        times = {offset: time for edges in self._edges.values() for offset, time in edges if time >= 0}
        # The log may have moved on meanwhile: what it removed is expired, whatever it was before.
        start = self._log_start
        return Look(
            upto=min(max(self.at, first), last),
            log_start=start,
            holes=_from(start, self._holes),
            unreadable=_from(start, self._unreadable),
            tombstones=_from(start, self._tombstones),
            older=_from(start, self._older),
            timestamps={offset: time for offset, time in times.items() if offset >= start},
            beside={offset: time for offset, time in self._beside_times.items() if offset >= start},
        )

    async def run(self, topic_id: bytes, leader: Leader) -> Look:
        """Looks until all is looked at, or a bound is reached.

        Raises:
            KafkaError: the leader could not be asked, or no longer leads.
        """
        connection = await self._cluster.connection(leader.node)
        while self.at < self._read.runs[-1][1] and self._bytes_left > 0:
            self._skip_between_runs()
            want = Want(self._topic, topic_id, self._partition, self.at, leader.epoch, -1, self._fetch_bytes())
            frame, sections = await fetch(connection, [want], isolation=self._isolation, max_wait_ms=0, max_bytes=want.max_bytes)
            try:
                section = next((one for one in sections if one.partition == self._partition), None)
                if section is None:
                    raise UnreachableError(f"broker {leader.node} left {self._topic}/{self._partition} out; it is asked again")
                if section.error == ErrorCode.OFFSET_OUT_OF_RANGE:
                    if not await self._moved_start(leader):
                        break
                    continue
                if section.error:
                    raise refusal(section.error, f"fetch {self._topic}/{self._partition}")
                self._log_start = max(self._log_start, section.log_start)
                bound = section.high_watermark
                if self._isolation is Isolation.READ_COMMITTED:
                    bound = min(bound, section.last_stable)
                if self.at >= bound:
                    break
                before = self.at
                fresh = not await self._take(frame.view, section, bound)
            finally:
                frame.release()
            if fresh:
                self._cluster.renew(leader.node)
                connection = await self._cluster.connection(leader.node)
            elif self.at == before:
                # Twice nothing below its own end: the broker can't read its log now. What the log lacks is known by the batch
                # that follows, not by silence.
                if self._empty_at == self.at:
                    break
                self._empty_at = self.at
                await asyncio.sleep(RETRY_S)
        return self.found()

    def _skip_between_runs(self) -> None:
        runs = self._read.runs
        index = bisect_right(self._read.firsts, self.at) - 1
        if index + 1 < len(runs) and self.at >= runs[index][1]:
            self.at = runs[index + 1][0]

    def _fetch_bytes(self) -> int:
        smallest, largest = FETCH_BYTES
        first, stop = self._read.runs[max(0, bisect_right(self._read.firsts, self.at) - 1)]
        return min(max(smallest, (stop - max(first, self.at)) * BYTES_PER_OFFSET), largest)

    async def _moved_start(self, leader: Leader) -> bool:
        """Where the log starts now, asked afresh; False: the position lies above the end instead."""
        start = await self._cluster.offset(self._topic, self._partition, leader, EARLIEST, Isolation.READ_UNCOMMITTED)
        self._log_start = max(self._log_start, start)
        if start <= self.at:
            return False
        self.at = min(start, self._read.runs[-1][1])  # below it everything is expired
        return True

    # ------------------------------------------------------------------------------------------------- batches

    async def _take(self, view: memoryview, section: Section, bound: int) -> bool:
        """Looks at the batches of one answer; False: one is damaged and must be fetched over a fresh connection first."""
        self._bytes_left -= section.end - section.start
        decoded = 0
        batches = [*whole_batches(view, section.start, section.end)]
        for batch, following in zip_longest(batches, batches[1:]):
            if batch.base >= bound or self.at >= self._read.runs[-1][1]:
                break
            last = _last_of(batch, following)
            if last < self.at:
                continue
            if batch.magic >= 2:
                self._pass_over(batch.base)
            if not self._read.parts(self.at, last + 1):
                self._advance(last + 1)
                continue
            try:
                records = records_of(view, batch)
            except UndecodableError as why:
                if self._condemned != batch.base:
                    self._condemned = batch.base
                    return False
                self._damaged(last + 1, {one[0] for one in why.records} if isinstance(why, SurplusError) else None)
                continue
            self._sort_out(batch, records, last + 1)
            decoded += len(records)
            if decoded > 2000:
                decoded = 0
                await asyncio.sleep(0)
        return True

    def _sort_out(self, batch: Batch, records: list[tuple[int, int, bool]], stop: int) -> None:
        by_offset = {offset: (time, null) for offset, time, null in records if offset >= self.at}
        if batch.attributes & CONTROL:
            self._advance(stop)
            return
        for offset in self._beside & by_offset.keys():
            if by_offset[offset][0] >= 0:
                self._beside_times[offset] = by_offset[offset][0]
        for index, first, end in self._asked.parts(self.at, stop):
            for offset in range(first, end):
                record = by_offset.get(offset)
                if record is None:
                    add_run(self._holes, offset, offset + 1)
                    continue
                time, null = record
                if null:
                    add_run(self._tombstones, offset, offset + 1)
                older = time < self._older_than_ms
                if older:
                    add_run(self._older, offset, offset + 1)
                if older is not self._part[1]:
                    self._part = (self._part[0] + 1, older)
                edges = self._edges.setdefault((index, self._part[0]), [(offset, time)] * 3)
                edges[1] = (offset, time)
                if 0 <= time < edges[2][1]:
                    edges[2] = (offset, time)
        self._advance(stop)

    def _damaged(self, stop: int, counted: set[int] | None) -> None:
        """A batch that can't be read ends at ``stop``; ``counted``: its records, where those are known."""
        for _, first, end in self._asked.parts(self.at, stop):
            if counted is None:
                add_run(self._unreadable, first, end)
                continue
            for offset in range(first, end):
                add_run(self._unreadable if offset in counted else self._holes, offset, offset + 1)
        self._advance(stop)

    def _pass_over(self, stop: int) -> None:
        """There is no batch in ``[at, stop)``."""
        for _, first, end in self._asked.parts(self.at, stop):
            add_run(self._holes, first, end)
        self._advance(stop)

    def _advance(self, stop: int) -> None:
        self.at = max(self.at, stop)


def _last_of(batch: Batch, following: Batch | None) -> int:
    """The last offset of a batch, which may be damaged: the one that follows begins behind it."""
    last = batch.base if batch.magic < 2 else batch.base + max(batch.delta, 0)
    return last if following is None or following.base <= batch.base else min(last, following.base - 1)


class _Runs:
    """Ascending, disjoint runs, to be cut by others."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.firsts = [first for first, _ in runs]

    def parts(self, first: int, stop: int) -> list[tuple[int, int, int]]:
        """The parts of the runs in ``[first, stop)``, each with the run's index."""
        found = []
        index = max(0, bisect_right(self.firsts, first) - 1)
        while index < len(self.runs) and self.runs[index][0] < stop:
            low, high = max(first, self.runs[index][0]), min(stop, self.runs[index][1])
            if low < high:
                found.append((index, low, high))
            index += 1
        return found


def _wider(runs: Runs) -> Runs:
    """With the offsets beside each run."""
    wider: list[Run] = []
    for first, stop in runs:
        first, stop = max(first - 1, 0), stop + 1
        if wider and first <= wider[-1][1]:
            wider[-1] = (wider[-1][0], stop)
        else:
            wider.append((first, stop))
    return tuple(wider)


def _from(start: int, runs: list[Run]) -> Runs:
    """The parts of ``runs`` at and above ``start``."""
    return tuple((max(first, start), stop) for first, stop in runs if stop > start)
