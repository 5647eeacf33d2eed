"""Reads a topic once as an application would, with or without the sidecar, and commits every batch.

Prints ``{"records": ..., "seconds": ..., "cpu": ..., "start": ..., "p99_us": ...}``: records after the first commit, and seconds
from there to the last one; processor time of the whole process; seconds from the assignment, before anything is fetched, to the first
commit; the 99th percentile of a single call, with ``--calls``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
import uuid
from array import array
from collections.abc import Callable
from typing import Any

import aiokafka
import confluent_kafka
from confluent_kafka import TopicPartition

from gapstream_sidecar import Sidecar
from scripts.bench.consume import TUNED

APP = "bench"
BATCH = 10_000
POLLS_PER_COMMIT = 1_000
PATIENCE_S = 5.0


class Watch:
    """Tells the start, with its first connections, from the reading."""

    def __init__(self) -> None:
        self.assigned_at = time.perf_counter()
        self.started_at: float | None = None
        self.records = 0
        """Still to come when the start was over."""

    def read(self, left: int) -> None:
        """A batch was read and its commit was asked for; ``left``: records still to come."""
        if self.started_at is None:
            self.started_at, self.records = time.perf_counter(), left

    def told(self) -> dict[str, float]:
        """What it says at the end."""
        assert self.started_at is not None
        return {
            "records": self.records,
            "seconds": time.perf_counter() - self.started_at,
            "start": self.started_at - self.assigned_at,
        }


def main() -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--records", type=int, required=True, help="how many there are, markers not counted")
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--client", choices=["consume", "poll", "getmany"], required=True)
    parser.add_argument("--sidecar", action="store_true")
    parser.add_argument("--auto-commit", action="store_true", help="leave committing to the client")
    parser.add_argument("--calls", action="store_true", help="time each call of poll")
    options = parser.parse_args()
    sidecar = Sidecar({"bootstrap.servers": options.bootstrap}, sink="billing", app_id=APP) if options.sidecar else None
    wrap: Callable[[Any], Any] = sidecar.wrap if sidecar is not None else lambda client: client
    calls = array("d")
    gc.disable()  # messages are no part of cycles; looking for some is a quarter of the processor time of such a loop
    began_cpu = time.process_time()
    answer = asyncio.run(getmany(options, wrap)) if options.client == "getmany" else read(options, wrap, calls)
    answer["cpu"] = time.process_time() - began_cpu
    if calls:
        answer["p99_us"] = sorted(calls)[len(calls) * 99 // 100] * 1e6
    if sidecar is not None:
        sidecar.close()
    print(json.dumps(answer))


def group() -> str:
    """One that has committed nothing: commits below what a group has committed are another matter, and no application's loop."""
    return f"bench-{uuid.uuid4().hex[:8]}"


def read(options: argparse.Namespace, wrap: Callable[[Any], Any], calls: array[float]) -> dict[str, float]:
    """A loop of confluent-kafka's."""
    conf = {**TUNED, "enable.auto.commit": options.auto_commit, "enable.auto.offset.store": True}
    consumer = wrap(confluent_kafka.Consumer({"bootstrap.servers": options.bootstrap, "group.id": group(), **conf}))
    watch = Watch()
    consumer.assign([TopicPartition(options.topic, partition, 0) for partition in range(options.partitions)])
    loop = consume if options.client == "consume" else timed_poll if options.calls else poll
    loop(consumer, options.records, not options.auto_commit, watch, calls)
    return watch.told()


def consume(consumer: Any, wanted: int, commits: bool, watch: Watch, _calls: array[float]) -> None:
    """Batches as large as they come; each partition's offset is kept, as the least that an application does."""
    offsets: dict[int | None, int | None] = {}
    while wanted > 0:
        batch = consumer.consume(BATCH, PATIENCE_S)
        for message in batch:
            offsets[message.partition()] = message.offset()
        wanted -= len(batch)
        if commits:
            consumer.commit(asynchronous=True)
        watch.read(wanted)


def poll(consumer: Any, wanted: int, commits: bool, watch: Watch, _calls: array[float]) -> None:
    """One record at a time."""
    offsets: dict[int | None, int | None] = {}
    for number in range(wanted):
        message = consumer.poll(PATIENCE_S)
        offsets[message.partition()] = message.offset()
        if number % POLLS_PER_COMMIT == 0:
            if commits:
                consumer.commit(asynchronous=True)
            watch.read(wanted - number - 1)


def timed_poll(consumer: Any, wanted: int, commits: bool, watch: Watch, calls: array[float]) -> None:
    """The same with a look at the clock around each call."""
    for number in range(wanted):
        began = time.perf_counter()
        consumer.poll(PATIENCE_S)
        calls.append(time.perf_counter() - began)
        if number % POLLS_PER_COMMIT == 0:
            if commits:
                consumer.commit(asynchronous=True)
            watch.read(wanted - number - 1)


async def getmany(options: argparse.Namespace, wrap: Callable[[Any], Any]) -> dict[str, float]:
    """A loop of aiokafka's."""
    conf: dict[str, Any] = {"enable_auto_commit": options.auto_commit, "auto_offset_reset": "earliest", "check_crcs": False}
    conf |= {"max_partition_fetch_bytes": 16 << 20, "isolation_level": "read_committed"}
    consumer = wrap(aiokafka.AIOKafkaConsumer(bootstrap_servers=options.bootstrap, group_id=group(), **conf))
    await consumer.start()
    wanted = options.records
    offsets: dict[int, int] = {}
    watch = Watch()
    parts = [aiokafka.TopicPartition(options.topic, partition) for partition in range(options.partitions)]
    consumer.assign(parts)
    for one in parts:
        consumer.seek(one, 0)
    while wanted > 0:
        for part, records in (await consumer.getmany(timeout_ms=1_000, max_records=BATCH)).items():
            wanted -= len(records)
            offsets[part.partition] = records[-1].offset
        if not options.auto_commit:
            await consumer.commit()
        watch.read(wanted)
    told = watch.told()
    await consumer.stop()
    return told


if __name__ == "__main__":
    main()
