"""An aiokafka consumer that remembers what it handed out, and reports it when the application asks for a commit.

aiokafka is never imported: what is needed of it comes with the consumer. Its rebalances are seen by its assignment, which is
another object after each of them; a listener of the application's own stays as it is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.follower import Follower, Terms
from gapstream_sidecar.messages import Origin, origin_of
from gapstream_sidecar.reporter import Reporter
from gapstream_sidecar.standin import StandIn

CALL_S = 1.0
"""The longest wait for an answer that concerns nobody but the sidecar."""
_OFFSET = attrgetter("offset")
_TOO_LARGE = "OffsetMetadataTooLargeError"


class AioFollower(Follower):
    """The methods that stand in front of a consumer's own; all of them run in its event loop."""

    def __init__(self, consumer: Any, reporter: Reporter, complaints: Complaints, terms: Terms, *, in_group: bool) -> None:
        super().__init__(reporter, complaints, terms)
        self.consumer = consumer
        self.front = WrappedAioConsumer(self)
        self._automatic = terms.automatic and not terms.explicit
        self._leasing = self._automatic and in_group
        self._reads_committed = in_group and not terms.automatic
        self._assignment: object = None
        self._rides = True

    # ------------------------------------------------------------------------------------------------- deliveries

    async def getone(self, *partitions: Any) -> Any:
        """As ``AIOKafkaConsumer.getone``; the record counts as delivered."""
        await self._come_back()
        record = await self.consumer.getone(*partitions)
        await self._noted([[record]])
        return record

    async def next_record(self) -> Any:
        """As ``async for`` has it."""
        await self._come_back()
        record = await self.consumer.__anext__()
        await self._noted([[record]])
        return record

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        """As ``AIOKafkaConsumer.getmany``; the records count as delivered."""
        await self._come_back()
        found = await self.consumer.getmany(*partitions, **options)
        await self._noted([records for records in found.values() if records])
        return found

    async def _come_back(self) -> None:
        try:
            self.come_back()
            await self.look()
        except Exception as error:
            self.reporter.fault("following deliveries", error)

    async def _noted(self, found: list[list[Any]]) -> None:
        """Records are about to be handed out; each list is of one partition, in its order."""
        if self.terms.explicit or not found:
            return
        try:
            await self._look_ahead(found)
        except asyncio.CancelledError:
            self._give_back(found)
            raise
        try:
            for records in found:
                self._note(records)
        except Exception as error:
            self.reporter.fault("following deliveries", error)

    async def _look_ahead(self, found: list[list[Any]]) -> None:
        try:
            await self.look()
            if self._leasing:
                handed_out = {_key(some[0]): (some[0].offset, some[-1].offset + 1) for some in found}
                keys = self.outrun(handed_out)
                if keys:
                    await self._settle(keys, keys)
                    self.take_over(keys)
        except Exception as error:
            self.reporter.fault("following deliveries", error)

    def _give_back(self, found: list[list[Any]]) -> None:
        """The application gave its call up: the next one must be handed these, which the client takes for handed out."""
        for records in found:
            first = records[0]
            for one in self.consumer.assignment():
                if _key(one) == _key(first):
                    self.consumer.seek(one, first.offset)

    def _note(self, records: list[Any]) -> None:
        first, last = records[0], records[-1]
        topic, partition, stop = first.topic, first.partition, last.offset + 1
        with self.lock:
            if stop - first.offset == len(records):
                self.deliveries.add(topic, partition, first.offset, stop)
            else:
                for begin, end in _runs(records):
                    self.deliveries.add(topic, partition, begin, end)
            for record in records:  # any(map(attrgetter("headers"), records)) takes twice as long
                if record.headers:
                    self.note_replays(_origins(records))
                    break

    # ------------------------------------------------------------------------------------------------ assignments

    async def look(self) -> None:
        """Whether the assignment is another one, and what its partitions' last owners left to be said."""
        assignment = self._see()
        if self._reads_committed:
            await self._read_committed(assignment)

    def _see(self) -> Any:
        """The assignment; if it is another one, what follows from that."""
        assignment = self.consumer.assignment()
        if assignment is not self._assignment:
            self._assignment = assignment
            keys = [(one.topic, one.partition) for one in assignment]
            if self._automatic:
                self.harvest()
                self.say_no_more()
            with self.lock:
                gone = self.owned
                self.unassigned()
                self.assigned(keys)
            if gone:
                self.reporter.hurry(gone, gone)
        return assignment

    async def _read_committed(self, assignment: Iterable[Any]) -> None:
        """Read what the last owners' commits carried, before they are overwritten."""
        strangers = set(self.strangers((one.topic, one.partition) for one in assignment))
        if not strangers:
            return
        parts = [one for one in assignment if (one.topic, one.partition) in strangers]
        try:
            found = await asyncio.wait_for(self.consumer._coordinator.fetch_committed_offsets(parts), CALL_S)
        except (TimeoutError, AttributeError) as error:
            self.complaints.say("inherit", f"gapstream sidecar: can't read what the last owner's commits carried: {error!r}")
            return
        for one in parts:
            offset, metadata = (found[one].offset, found[one].metadata) if one in found else (-1, None)
            self.inherit((one.topic, one.partition), offset, metadata)

    def seek(self, partition: Any, offset: int) -> None:
        """As ``AIOKafkaConsumer.seek``: a commit without arguments means this offset from then on."""
        self.consumer.seek(partition, offset)
        self._moved(partition, offset)

    def _moved(self, partition: Any, offset: int) -> None:
        try:
            self._see()  # first, or it would be forgotten with the next look
            self.deliveries.moved_to(_key(partition), offset)
        except Exception as error:
            self.reporter.fault("following an assignment", error)

    async def seek_to_beginning(self, *partitions: Any) -> Any:
        """As ``AIOKafkaConsumer.seek_to_beginning``."""
        return await self._sought(await self.consumer.seek_to_beginning(*partitions), partitions)

    async def seek_to_end(self, *partitions: Any) -> Any:
        """As ``AIOKafkaConsumer.seek_to_end``."""
        return await self._sought(await self.consumer.seek_to_end(*partitions), partitions)

    async def seek_to_committed(self, *partitions: Any) -> Any:
        """As ``AIOKafkaConsumer.seek_to_committed``."""
        return await self._sought(await self.consumer.seek_to_committed(*partitions), partitions)

    async def _sought(self, answer: Any, partitions: Collection[Any]) -> Any:
        for one in partitions or self.consumer.assignment():
            stands = await self._position(one)
            if stands is not None:
                self._moved(one, stands)
        return answer

    async def _position(self, partition: Any, *, patience: float = CALL_S) -> int | None:
        """Where the consumer stands; None where it is on its way."""
        try:
            async with asyncio.timeout(patience):  # wait_for makes a task of what is nearly always known at once
                return int(await self.consumer.position(partition))
        except Exception as error:  # of aiokafka: the partition is no longer assigned, or a broker does not answer
            if not patience and isinstance(error, TimeoutError):
                return None
            self.complaints.say("position", f"gapstream sidecar: a position is not to be had: {error!r}")
            return None

    # ---------------------------------------------------------------------------------------------------- commits

    async def commit(self, offsets: Mapping[Any, Any] | None = None) -> Any:
        """As ``AIOKafkaConsumer.commit``, after what it covers was reported: that may take ``observe_before_commit``."""
        carrying: Mapping[Any, Any] | None = None
        try:
            carrying = await self.observe(offsets)
        except Exception as error:
            self.reporter.fault("observing a commit", error)
        try:
            return await self.consumer.commit(offsets if carrying is None else carrying)
        except Exception as error:
            self.reporter.close_tails(_offsets(carrying or offsets or {}))
            if carrying is None or type(error).__name__ != _TOO_LARGE:
                raise
        self._rides = False
        self.complaints.say("metadata", "gapstream sidecar: the brokers take no metadata of 4 kB with a commit (offset.metadata.max.bytes)")
        return await self.consumer.commit(offsets)

    async def observe(self, offsets: Mapping[Any, Any] | None) -> Mapping[Any, Any] | None:
        """Report what a commit covers; the offsets to commit in its place, where something has to travel with them."""
        try:
            await self.look()
        except Exception as error:  # what is asked for is told all the same
            self.reporter.fault("following an assignment", error)
        commits = _offsets(offsets) if offsets is not None else self._positions()
        idle = await self._idle(commits) if offsets is None and not self.terms.explicit else {}
        theirs = {_key(one) for one, offset in (offsets or {}).items() if not isinstance(offset, int) and offset[1]}
        if not self.terms.explicit:
            self.ask(commits)
        keys = None if offsets is None and self.terms.explicit else list(commits)
        forced = theirs if self._rides and keys is not None else None  # where nothing can travel it does not wait for its turn
        waited = await self._settle(keys, forced)
        texts = self.riders({key: at for key, at in commits.items() if key not in theirs}) if self._rides else {}
        if offsets is not None:
            return {one: _carrying(offset, texts.get(_key(one))) for one, offset in offsets.items()} if texts else None
        return await self._all_positions(commits, idle, texts) if texts or waited else None

    def _positions(self) -> dict[Key, int]:
        with self.lock:
            return {} if self.terms.explicit else self.deliveries.positions()

    async def _idle(self, commits: Mapping[Key, int]) -> dict[Any, int]:
        """Partitions of which nothing was handed out: aiokafka commits where it stands in them, too."""
        found = {}
        for one in self.consumer.assignment():
            stands = await self._position(one, patience=0) if _key(one) not in commits else None
            if stands is not None:
                found[one] = stands
        return found

    async def _all_positions(
        self, commits: Mapping[Key, int], idle: Mapping[Any, int], texts: Mapping[Key, str]
    ) -> Mapping[Any, Any] | None:
        """What ``commit()`` without arguments meant when it was called: the application may have been handed more meanwhile."""
        found: dict[Any, Any] = {}
        for one in self.consumer.assignment():
            stop = commits.get(_key(one))
            if stop is None:
                if one in idle:
                    found[one] = idle[one]
                continue
            stands = await self._position(one) if self.deliveries.stop(_key(one)) == stop else None
            found[one] = _carrying(max(stop, stands or 0), texts.get(_key(one)))
        return found or None

    async def _settle(self, keys: Collection[Key] | None, forced: Collection[Key] | None) -> bool:
        """Have it sent and acknowledged; whether that took waiting."""
        awaited = self.reporter.hurry(keys, forced)
        if awaited:
            await asyncio.to_thread(self.reporter.wait, awaited, self.terms.observe_before_commit)
            return True
        return False

    # ---------------------------------------------------------------------------------------------------- the end

    async def stop(self) -> None:
        """As ``AIOKafkaConsumer.stop``.

        With auto-commit the client commits everything that it has handed out: that is received, unless an exception is on
        its way out, which says that something was not processed.
        """
        if self._automatic and sys.exc_info()[1] is None:
            await self._come_back()
        try:
            await self.consumer.stop()
        finally:
            try:
                self._end()
            except Exception as error:
                self.reporter.fault("following an assignment", error)

    def _end(self) -> None:
        if self._automatic:
            self.harvest()
            self.say_no_more()
        self.reporter.hurry(None, None)
        self.unassigned()


_FOLLOWED = ("commit", "getmany", "getone", "seek", "seek_to_beginning", "seek_to_committed", "seek_to_end", "stop")


class WrappedAioConsumer(StandIn):
    """Stands in for an ``aiokafka.AIOKafkaConsumer``: what the follower does not define is the consumer's own."""

    __slots__ = ("_follower", *_FOLLOWED)
    _follower: AioFollower
    _what = "consumer"

    def __init__(self, follower: AioFollower) -> None:
        super().__init__(follower.consumer, (follower, _FOLLOWED))
        object.__setattr__(self, "_follower", follower)

    def __aiter__(self) -> WrappedAioConsumer:
        self._follower.consumer.__aiter__()
        return self

    async def __anext__(self) -> Any:
        return await self._follower.next_record()

    async def __aenter__(self) -> WrappedAioConsumer:
        await self._follower.consumer.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._follower.stop()


def _key(partition: Any) -> Key:
    return partition.topic, partition.partition


def _offsets(offsets: Mapping[Any, Any]) -> dict[Key, int]:
    """Partition -> one past the last offset that the application calls processed."""
    return {_key(one): offset if isinstance(offset, int) else offset[0] for one, offset in offsets.items()}


def _carrying(offset: Any, text: str | None) -> Any:
    """The same offset, with what has to travel with it.

    It ends in a zero as what confluent-kafka commits: that takes metadata for a C string, whoever wrote it.
    """
    if text is None:
        return offset
    return (offset if isinstance(offset, int) else offset[0], f"{text}\0")


def _runs(records: Iterable[Any]) -> Iterable[tuple[int, int]]:
    """Offsets that follow each other, half-open."""
    first = stop = -1
    for offset in map(_OFFSET, records):
        if offset != stop:
            if stop > first:
                yield first, stop
            first = offset
        stop = offset + 1
    yield first, stop


def _origins(records: Iterable[Any]) -> Iterable[Origin]:
    for one in records:
        origin = origin_of(one.headers) if one.headers else None
        if origin is not None:
            yield Origin((one.topic, one.partition), one.offset, *origin)
