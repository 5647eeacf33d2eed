"""The only writer of one partition's state: a transactional producer that fences whoever wrote before (KIP-98)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, KafkaError

TRANSACTION_TIMEOUT_MS = 20_000
"""A worker that dies inside a flush holds up readers of the alerts and status topics for so long at most; a successor ends
the transaction at once."""
START_SECONDS = 30.0
STOP_SECONDS = 3.0
_LOST = (KafkaError, IllegalOperation, OSError, ValueError, AssertionError)
"""How aiokafka fails: fenced between two sends it calls the second an IllegalOperation, which is no KafkaError; fenced before
the commit, the step is an assertion. TimeoutError is an OSError."""


class WriterLost(Exception):
    """This writer can't write any more: fenced, or the outcome of a transaction is unknown. Forget the state, take it anew."""


@dataclass(frozen=True, slots=True)
class OutRecord:
    """One record to be written; ``partition`` None: by the key's hash."""

    topic: str
    key: bytes
    value: bytes | None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class FencedWriter:
    """Writes each flush as one transaction. Not for use by two flushes at once."""

    def __init__(self, connection: Mapping[str, Any], transactional_id: str) -> None:
        """``connection``: aiokafka's connection settings."""
        self._producer = AIOKafkaProducer(
            **connection,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            linger_ms=0,
            acks="all",
            max_request_size=4 << 20,
        )

    async def start(self) -> None:
        """Fence the former writer; its open transaction, if any, is aborted before this returns. Raises WriterLost."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._producer.start()
                await self._producer.begin_transaction()  # waits for the producer id, which is what fences
                await self._producer.abort_transaction()
        except _LOST as exc:
            raise WriterLost(f"no transactional producer could be started: {str(exc) or type(exc).__name__}") from exc

    async def write(self, records: Sequence[OutRecord], offset_of: str) -> int | None:
        """Write all or nothing; the last offset written to topic ``offset_of``. Raises WriterLost when that is not certain."""
        try:
            async with asyncio.timeout(TRANSACTION_TIMEOUT_MS / 1000):
                return await self._write(records, offset_of)
        except _LOST as exc:
            raise WriterLost(f"{type(exc).__name__}: {exc}") from exc

    async def _write(self, records: Sequence[OutRecord], offset_of: str) -> int | None:
        await self._producer.begin_transaction()
        self._note_transaction()
        sent = []
        for record in records:
            future = await self._producer.send(
                record.topic, value=record.value, key=record.key, partition=record.partition, headers=list(record.headers)
            )
            future.add_done_callback(_noted)
            sent.append((record.topic, future))
        last = None
        for topic, future in sent:
            metadata = await future
            if topic == offset_of:
                last = max(metadata.offset, last if last is not None else -1)
        await self._producer.commit_transaction()
        return last

    async def stop(self) -> None:
        """Give the connection up; what was not committed is aborted by the successor or by time."""
        with contextlib.suppress(KafkaError, TimeoutError):  # a fenced producer can't end its transaction: that is its successor's
            async with asyncio.timeout(STOP_SECONDS):
                await self._producer.stop()
        self._note_transaction()

    def _note_transaction(self) -> None:
        """aiokafka fails this future whether or not a commit waits for it, may replace it then, and has no public name for it."""
        waiter = self._producer._txn_manager.wait_for_transaction_end()
        if waiter is not None:
            waiter.add_done_callback(_noted)


def _noted(future: asyncio.Future[Any]) -> None:
    """Take note of a failure, so that asyncio does not report it once more: the first one that is awaited tells it."""
    if not future.cancelled():
        future.exception()
