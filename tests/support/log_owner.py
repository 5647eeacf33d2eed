"""What a log reader's owner does, for tests: takes what is ready and checks that nothing is left out or told twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stream_app.core.model import LogRead
from stream_app.kafka.assigned import join_reads
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader
from stream_app.kafka.trouble import Trouble, TroubleKind
from tests.support.fake_broker import Asked, FakeCluster


@dataclass
class Owner:
    """Takes what a reader gives and checks that it is contiguous."""

    reader: LogReader
    reads: dict[tuple[str, int], list[LogRead]] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    patience_s: float = 20.0

    def assign(self, topic: str, partition: int = 0, position: int | None = None, **options: Any) -> None:
        self.reads.pop((topic, partition), None)
        self.reader.assign(topic, partition, position, **{"isolation": Isolation.READ_COMMITTED, "check_crcs": True, **options})

    def take(self) -> None:
        self.troubles += self.reader.troubles()
        for key, one in self.reader.take().items():
            known = self.reads.setdefault(key, [])
            assert not known or known[-1].next == one.position
            assert_covers(one)
            known.append(one)

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(self.patience_s):
            while not reached():
                await self.reader.wait()
                self.take()

    async def read_to(self, stop: int, topic: str = "orders", partition: int = 0) -> LogRead:  # orders/0: what most tests make
        """All answers so far as one, once ``stop`` is reached."""
        key = (topic, partition)
        await self.until(lambda: bool(self.reads.get(key)) and self.reads[key][-1].next >= stop)
        whole = self.reads[key][0]
        for one in self.reads[key][1:]:
            whole = join_reads(whole, one)
        assert whole.next == stop
        return whole

    async def trouble(self, kind: TroubleKind) -> Trouble:
        """The first of this kind."""
        await self.until(lambda: any(one.kind is kind for one in self.troubles))
        return next(one for one in self.troubles if one.kind is kind)


def assert_covers(one: LogRead) -> None:
    """Disjoint runs that together are exactly [position, next)."""
    runs = [*one.records, *one.holes, *one.unreadable, *one.unread, *(run for runs in one.absent.values() for run in runs)]
    at = one.position
    for first, stop in sorted(runs):
        assert first == at < stop
        at = stop
    assert at == one.next


@asynccontextmanager
async def owning(settings: KafkaSettings, **options: Any) -> AsyncIterator[Owner]:
    """A reader that runs, and its owner."""
    made = LogReader(settings, client_id="test", **{"max_wait_ms": 100, **options})
    await made.start()
    try:
        yield Owner(made)
    finally:
        await made.stop()


@asynccontextmanager
async def reading(cluster: FakeCluster, *, timeout_ms: int = 5_000, **options: Any) -> AsyncIterator[Owner]:
    """The same on brokers that answer as told."""
    async with owning(KafkaSettings((cluster.address(),), request_timeout_ms=timeout_ms), **options) as owner:
        yield owner


def wanted(asked: Iterable[Asked]) -> list[tuple[int, int]]:
    """Partition and offset of everything that was fetched."""
    return [(one["Partition"], one["FetchOffset"]) for request in asked for topic in request.body["Topics"] for one in topic["Partitions"]]


class Following(threading.Thread):
    """A reader that follows one partition from its start while the test does something else; ends with ``finish``."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        super().__init__(daemon=True)
        self._settings, self._topic = settings, topic
        self._stopping = threading.Event()
        self.read = 0
        """Next offset to read."""
        self.troubles: list[Trouble] = []
        """What it was told so far."""

    def run(self) -> None:
        """In the thread."""
        asyncio.run(self._follow())

    async def _follow(self) -> None:
        async with owning(self._settings) as owner:
            owner.assign(self._topic, 0, 0)
            while not self._stopping.is_set():
                owner.take()
                self.read = owner.reads[self._topic, 0][-1].next if (self._topic, 0) in owner.reads else 0
                self.troubles = list(owner.troubles)
                await asyncio.sleep(0.02)

    def finish(self) -> None:
        """Stops it and waits for its end."""
        self._stopping.set()
        self.join()
