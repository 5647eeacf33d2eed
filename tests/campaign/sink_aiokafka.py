"""An instance on aiokafka."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError

from tests.campaign.sink_instance import BATCH_MAX, SESSION_MS, Instance, die, processing
from tests.campaign.sink_notes import Commits

ASSIGNORS = {"range": RangePartitionAssignor, "roundrobin": RoundRobinPartitionAssignor, "sticky": StickyPartitionAssignor}


class Mortal(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is not typed
    """The client itself, which is called when the sidecar has observed: a process can die on either side of that."""

    instance: AioInstance

    async def commit(self, offsets: Any = None) -> None:
        """As AIOKafkaConsumer.commit."""
        self.instance.at("observed")
        await super().commit(offsets)
        self.instance.at("committed")


class AioInstance(Instance, ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """Rebalances happen beside the loop, at any await: a request during which one began is in doubt."""

    consumer: AIOKafkaConsumer

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._gone = False

    async def run(self) -> None:
        """Until it is over."""
        mortal = Mortal(
            bootstrap_servers=self.options.bootstrap,
            group_id=self.options.group,
            group_instance_id=self.options.member,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=500,
            rebalance_timeout_ms=10_000,
            enable_auto_commit=self.automatic,
            auto_commit_interval_ms=200,
            partition_assignment_strategy=[ASSIGNORS[self.options.assignor]],
        )
        mortal.instance = self
        self.consumer = self.sidecar.wrap(mortal)
        self.consumer.subscribe([self.options.topic], listener=self)
        await self.consumer.start()
        idle = 0
        while not self.stopping and not (idle and self.done(await self._committed())):
            self.book.came_back()
            self.at("back")
            before = self.book.rebalances
            found = await self.consumer.getmany(timeout_ms=300, max_records=self.rng.randrange(1, BATCH_MAX))
            idle = 0 if found else idle + 1
            for place, records in found.items():
                self.book.took(place.partition, [one.offset for one in records], late=before != self.book.rebalances)
            self.at("handed")
            await asyncio.sleep(processing(self.rng))
            self.batches += bool(found)
            self.at("processed")
            await self._ask()
            await self._err()
        await self._leave()

    async def _leave(self) -> None:
        pending = self.book.pending()
        if not self.automatic and pending and not self._gone and self.draw(0.5):
            await self._commit(pending, pending)
        self.book.came_back()
        self._gone = True
        await self.consumer.stop()
        self.end()

    # ---------------------------------------------------------------------------------------------------- asking

    async def _ask(self) -> None:
        pending = self.book.pending()
        if pending and not self.automatic and (not self.faulty or self.draw(0.7)):
            kind = self.rng.choice(("offsets", "positions")) if self.faulty else "positions"
            self.fault(f"commit {kind}")
            if kind == "positions":
                await self._commit(dict(self.book.stop), None)
            else:
                commits = self.some(pending)
                await self._commit(commits, commits)
        if self.draw(0.35):
            upto = self.book.settled
            if await asyncio.to_thread(self.sidecar.flush, 2):
                self.book.flushed(upto)

    async def _commit(self, asked: Commits, offsets: Commits | None) -> None:
        if not asked:
            return
        before = self.book.rebalances
        number = self.book.ask(asked)
        self.at("asked")
        certain: Commits = {}
        try:
            await self.consumer.commit(None if offsets is None else {self._place(p): offset for p, offset in offsets.items()})
            certain = asked
        except KafkaError as error:
            self.notes.write("refused", text=repr(error))
        self.book.answered(number, certain, doubt=before != self.book.rebalances)
        self.at("confirmed")

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self.options.topic, partition)

    async def _committed(self) -> Commits:
        if self.until is None:
            return {}
        return {partition: await self.consumer.committed(self._place(partition)) or 0 for partition in self.until}

    # --------------------------------------------------------------------------------------------------- mistakes

    async def _err(self) -> None:
        kind = self.mistake()
        owned = sorted(self.book.stop)
        if kind is None or not owned:
            return
        partition = self.rng.choice(owned)
        stop = self.book.stop[partition]
        if self._place(partition) not in self.consumer.assignment():
            return
        target = self.target(kind, stop, self.consumer.highwater(self._place(partition)) or 0)
        if target is None:
            return
        self.fault(kind, partition=partition, stands=stop, to=target)
        if kind != "ahead":
            self.consumer.seek(self._place(partition), target)
            self.book.stop[partition] = target  # what a commit without arguments means from here on
            return
        await self._commit({partition: target}, {partition: target})
        self._gone = self.stopping = True
        if self.draw(0.5):
            self.notes.write("death", point="ahead")
            die()

    # ------------------------------------------------------------------------------------------------- rebalances

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Of ConsumerRebalanceListener."""
        self.book.assigned(one.partition for one in assigned)
        for partition in self.to_latest(sorted(one.partition for one in assigned)):
            await self.consumer.seek_to_end(self._place(partition))

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Of ConsumerRebalanceListener."""
        partitions = sorted(one.partition for one in revoked)
        pending = self.book.pending(partitions)
        if partitions:
            self.book.rebalances += 1
        if not self.automatic and pending and not self._gone and self.draw(0.5):
            await self._commit(pending, pending)
        self.book.revoked(partitions)
