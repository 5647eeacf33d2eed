"""Answers ``explain``: asks Kafka, takes what the status topic says, and has the two put together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.examination import Evidence, examine
from stream_app.kafka.failures import KafkaError
from stream_app.kafka.topics import TopicConfig
from stream_app.service.port import Reading
from stream_app.service.verdicts import Account, explain
from stream_app.service.view import LOG, Allow, StatusView

OFFSETS_MAX = 10_000
"""Offsets in one question: a run each at the worst, about 10 MB of JSON."""
AT_ONCE = 2
"""Questions that are answered at the same time, each over connections of its own; others wait for their turn."""
TIMEOUT_SECONDS = 10.0
"""Waiting included."""


class NotThere(ValueError):
    """The topic, the partition or the sink is none that anybody here knows; the message says which."""


class CannotAsk(Exception):
    """Kafka can't be asked now; the message says what failed."""


class Explainer:
    """Asks over fresh connections: the log reader is a suspect too."""

    def __init__(
        self,
        settings: KafkaSettings,
        readings: Mapping[str, Reading],
        describe: Callable[[str], Awaitable[TopicConfig]],
        view: StatusView,
        clock_ms: Callable[[], int],
    ) -> None:
        """``readings``: how each watched topic is read; ``describe``: settings of a topic, asked afresh."""
        self._settings, self._readings, self._describe, self._view, self._clock_ms = settings, readings, describe, view, clock_ms
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def explain(
        self, topic: str, partition: int, first: int, stop: int, *, sink: str | None, allow: Allow | None, show_keys: bool
    ) -> dict[str, Any]:
        """The answer of ``/api/explain`` for ``[first, stop)``, at most :data:`OFFSETS_MAX` offsets.

        Without ``sink`` it tells of all configured and reporting sinks that ``allow`` lets see, and not of the log as a sink: its
        part is the verdict.

        Raises:
            NotThere: nobody knows the topic, the partition or the sink.
            CannotAsk: Kafka could not be asked.
        """
        self._check(topic, partition, sink)
        evidence, config = await self._ask(topic, partition, first, stop)
        accounts = [
            Account(judged.sink, judged.row, gaps, judged.reason if judged.state == "unknown" else None)
            for judged, gaps in self._view.of_partition(topic, partition, self._clock_ms())
        ]
        log = next((one for one in accounts if one.sink == LOG), Account(LOG))
        wanted = [one for one in accounts if _is_wanted(one.sink, sink) and (allow is None or allow(topic, one.sink))]
        # A large answer takes a while to be put together.
        runs = await asyncio.to_thread(explain, evidence, config.policy, log, wanted, show_keys=show_keys)
        return {"runs": runs}

    def _check(self, topic: str, partition: int, sink: str | None) -> None:
        if topic not in self._readings:
            raise NotThere(f"topic {topic} is not watched; gapstream status lists those that are")
        count = self._view.partition_count(topic, self._clock_ms())
        if count is None:
            raise CannotAsk(f"no worker has seen topic {topic} yet: does it exist?")
        if partition >= count:
            raise NotThere(f"{topic} has {count} partitions, numbered from 0: there is no partition {partition}")
        if sink is not None and sink not in self._view.sinks(topic):
            raise NotThere(f"nobody knows a sink {sink} of {topic}; gapstream status lists those that are known")

    async def _ask(self, topic: str, partition: int, first: int, stop: int) -> tuple[Evidence, TopicConfig]:
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise CannotAsk(f"{AT_ONCE} questions like this are being answered and none was done in time; ask again") from None
        try:
            left = deadline - asyncio.get_running_loop().time()
            isolation = self._readings[topic].isolation
            asking = examine(self._settings, topic, partition, isolation, first, stop, timeout=left)
            return await asyncio.gather(asking, self._describe(topic))
        except KafkaError as error:
            raise CannotAsk(str(error)) from error
        finally:
            self._turns.release()


def _is_wanted(sink: str, asked: str | None) -> bool:
    return sink != LOG if asked is None else sink == asked
