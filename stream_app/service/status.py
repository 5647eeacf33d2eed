"""The status topic: what owners write of their partitions, signs of life, and the reader from which any worker answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from stream_app.core import report
from stream_app.core.ledger import Ledger
from stream_app.core.model import Gap, GapsRecord, MinuteRow, MinutesRecord, Row, StatusRecord, WorkerRecord
from stream_app.core.summary import Summaries
from stream_app.kafka.names import status_topic
from stream_app.kafka.writer import OutRecord
from stream_app.service.telemetry import Telemetry
from stream_app.service.view import StatusView

log = structlog.get_logger("gapstream.status")

PAGE_GAPS = 500
"""Gaps in one record: about 100 kB, so that a change rewrites little."""
EXPLAINED_MAX = 10_000
"""Explained runs listed per sink and partition, the latest; their number stands in the row whole."""
LIFE_SECONDS = 1.0
RETRY_SECONDS = 2.0


class StatusPages:
    """The records of one partition on the status topic; gives those that differ from what was written last."""

    def __init__(self, topic: str, partition: int, app_id: str, worker: str) -> None:
        """``worker``: this instance's name."""
        self._topic, self._partition, self._worker = topic, partition, worker
        self._status = status_topic(app_id)
        self._written: dict[tuple[str, int], int] = {}
        self._seen: dict[str, tuple[object, ...]] = {}
        self._awaited: dict[str, tuple[int | None, int | None]] = {}
        """Sinks with a gap that has nothing received behind it -> how far they were then."""
        self._pages: dict[str, int] = {}
        self._summaries = Summaries()

    def records(self, ledger: Ledger, rows: list[Row]) -> list[OutRecord]:
        """To be written with a flush."""
        out = []
        for gone in self._pages.keys() - {row.sink for row in rows}:
            out += self._list(gone, [])
            del self._pages[gone], self._seen[gone]
        for row in rows:
            sink = ledger.sinks[row.sink]
            sets = (*sink.open.values(), *sink.explained.values())
            seen = (sink.sequence, ledger.log.start, *(offsets.count for offsets in sets))
            reached = (sink.settled, sink.horizon)
            if self._seen.get(row.sink) != seen or self._awaited.get(row.sink, reached) != reached:
                self._seen[row.sink] = seen
                listed = report.gaps(ledger, sink) + report.explained_gaps(ledger, sink)[-EXPLAINED_MAX:]
                report.note_neighbours(ledger, sink, listed)
                self._awaited.pop(row.sink, None)
                if any(gap.next_offset is None for gap in listed):
                    self._awaited[row.sink] = reached
                out += self._list(row.sink, listed)
            row.pages = self._pages.get(row.sink, 0)
        for name, block, minutes in self._summaries.changed(ledger):
            out.append(self._block(name, block, minutes))
        record = StatusRecord(topic=self._topic, partition=self._partition, worker=self._worker, rows=rows, copied=copied_of(ledger))
        out.append(OutRecord(self._status, f"partition/{self._topic}/{self._partition}".encode(), msgspec.json.encode(record)))
        return out

    def _list(self, sink: str, listed: list[Gap]) -> list[OutRecord]:
        out = []
        pages = -(-len(listed) // PAGE_GAPS)
        for page in range(pages):
            gaps = listed[page * PAGE_GAPS : (page + 1) * PAGE_GAPS]
            value = msgspec.json.encode(GapsRecord(topic=self._topic, partition=self._partition, sink=sink, block=page, gaps=gaps))
            if self._written.get((sink, page)) != hash(value):
                self._written[sink, page] = hash(value)
                out.append(self._page(sink, page, value))
        for page in range(pages, self._pages.get(sink, 0)):
            self._written.pop((sink, page), None)
            out.append(self._page(sink, page, None))
        self._pages[sink] = pages
        return out

    def _block(self, sink: str, block: int, minutes: list[MinuteRow]) -> OutRecord:
        record = MinutesRecord(topic=self._topic, partition=self._partition, sink=sink, block=block, minutes=minutes)
        value = msgspec.json.encode(record) if minutes else None
        key = f"minutes/{self._topic}/{self._partition}/{sink}/{block}".encode()
        return OutRecord(self._status, key, value)

    def _page(self, sink: str, page: int, value: bytes | None) -> OutRecord:
        return OutRecord(self._status, f"gaps/{self._topic}/{self._partition}/{sink}/{page}".encode(), value)


def copied_of(ledger: Ledger) -> dict[str, int]:
    """What stands in a status record of how far copies were read."""
    return {copied_key(key, topic_id): position for key, (position, _, topic_id) in ledger.mirrored.items()}


def copied_key(key: str, topic_id: bytes) -> str:
    """Of one partition of one incarnation of a topic of copies."""
    return f"{key}@{topic_id.hex()}"


class StatusReader:
    """Reads the whole status topic into a view; without a group, from its beginning."""

    def __init__(self, connection: Mapping[str, Any], app_id: str, view: StatusView, telemetry: Telemetry) -> None:
        """``connection``: aiokafka's settings."""
        self._connection, self._topic, self._view, self._telemetry = dict(connection), status_topic(app_id), view, telemetry
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read in the background until stopped."""
        self._task = asyncio.create_task(self._run(), name="status reader")

    async def stop(self) -> None:
        """End at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            consumer = AIOKafkaConsumer(
                **self._connection, isolation_level="read_committed", auto_offset_reset="earliest", fetch_max_wait_ms=250
            )
            try:
                await consumer.start()
                await self._read(consumer)
            except (KafkaError, OSError) as exc:
                self._telemetry.trouble("the status topic can't be read now", reason=str(exc))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # a defect of ours: answers would grow stale without a word
                log.exception("the status topic is read anew after a defect")
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                with contextlib.suppress(KafkaError):  # it is given up either way
                    await consumer.stop()

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        partitions = await self._partitions(consumer)
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        self._view.restart()
        ends = await consumer.end_offsets(partitions)
        while True:
            for found in (await consumer.getmany(timeout_ms=500)).values():
                for record in found:
                    self._view.apply(record.key, record.value)
            if not self._view.loaded:
                self._view.loaded = all([await consumer.position(tp) >= ends[tp] for tp in partitions])

    async def _partitions(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        while True:
            known = await consumer._client._wait_on_metadata(self._topic)
            if known:
                return [TopicPartition(self._topic, partition) for partition in sorted(known)]
            await asyncio.sleep(RETRY_SECONDS)


class Life:
    """Signs of life of this worker on the status topic, every second."""

    def __init__(self, connection: Mapping[str, Any], app_id: str, record: Callable[[bool], WorkerRecord], telemetry: Telemetry) -> None:
        """``record(stopped)``: what to say now."""
        self._connection, self._topic, self._record, self._telemetry = dict(connection), status_topic(app_id), record, telemetry
        self._producer: AIOKafkaProducer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="signs of life")

    async def stop(self) -> None:
        """Say that this worker stopped, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._producer is not None:
            with contextlib.suppress(KafkaError, TimeoutError):  # its rows turn unknown by themselves after the session timeout
                async with asyncio.timeout(2):
                    await self._say(self._producer, stopped=True)
                    await self._producer.stop()

    async def _run(self) -> None:
        while True:
            producer = self._producer = AIOKafkaProducer(**self._connection, acks="all", linger_ms=0, request_timeout_ms=5000)
            try:
                await producer.start()
                while True:
                    await self._say(producer, stopped=False)
                    await asyncio.sleep(LIFE_SECONDS)
            except (KafkaError, OSError) as exc:
                self._telemetry.trouble("signs of life can't be written now", reason=str(exc))
            except Exception:  # a defect of ours: rows would turn unknown without a word
                log.exception("signs of life begin anew after a defect")
            await asyncio.sleep(RETRY_SECONDS)
            with contextlib.suppress(KafkaError):  # it is given up either way
                await producer.stop()

    async def _say(self, producer: AIOKafkaProducer, *, stopped: bool) -> None:
        record = self._record(stopped)
        await producer.send_and_wait(self._topic, key=f"worker/{record.worker}".encode(), value=msgspec.json.encode(record))
