"""Reads a topic once as an application would, with or without the sidecar, and commits every batch.

Prints ``{"records": ..., "seconds": ..., "cpu": ..., "p99_us": ...}``: from the assignment, before anything is fetched, to the
last record; processor time of the whole process; the 99th percentile of a single call, with ``--calls``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
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
    if options.client == "getmany":
        seconds = asyncio.run(getmany(options, wrap))
    else:
        seconds = read(options, wrap, calls)
    answer = {"records": options.records, "seconds": seconds, "cpu": time.process_time() - began_cpu}
    if calls:
        answer["p99_us"] = sorted(calls)[len(calls) * 99 // 100] * 1e6
    if sidecar is not None:
        sidecar.close()
    print(json.dumps(answer))


def read(options: argparse.Namespace, wrap: Callable[[Any], Any], calls: array[float]) -> float:
    """Seconds of a loop of confluent-kafka's."""
    conf = {**TUNED, "enable.auto.commit": options.auto_commit, "enable.auto.offset.store": True}
    consumer = wrap(confluent_kafka.Consumer({"bootstrap.servers": options.bootstrap, "group.id": "bench", **conf}))
    began = time.perf_counter()
    consumer.assign([TopicPartition(options.topic, partition, 0) for partition in range(options.partitions)])
    loop = consume if options.client == "consume" else timed_poll if options.calls else poll
    loop(consumer, options.records, not options.auto_commit, calls)
    return time.perf_counter() - began


def consume(consumer: Any, wanted: int, commits: bool, _calls: array[float]) -> None:
    """Batches as large as they come; each partition's offset is kept, as the least that an application does."""
    offsets: dict[int | None, int | None] = {}
    while wanted > 0:
        batch = consumer.consume(BATCH, PATIENCE_S)
        for message in batch:
            offsets[message.partition()] = message.offset()
        wanted -= len(batch)
        if commits:
            consumer.commit(asynchronous=True)


def poll(consumer: Any, wanted: int, commits: bool, _calls: array[float]) -> None:
    """One record at a time."""
    offsets: dict[int | None, int | None] = {}
    for number in range(wanted):
        message = consumer.poll(PATIENCE_S)
        offsets[message.partition()] = message.offset()
        if commits and number % POLLS_PER_COMMIT == 0:
            consumer.commit(asynchronous=True)


def timed_poll(consumer: Any, wanted: int, commits: bool, calls: array[float]) -> None:
    """The same with a look at the clock around each call."""
    for number in range(wanted):
        began = time.perf_counter()
        consumer.poll(PATIENCE_S)
        calls.append(time.perf_counter() - began)
        if commits and number % POLLS_PER_COMMIT == 0:
            consumer.commit(asynchronous=True)


async def getmany(options: argparse.Namespace, wrap: Callable[[Any], Any]) -> float:
    """Seconds of a loop of aiokafka's."""
    conf: dict[str, Any] = {"enable_auto_commit": options.auto_commit, "auto_offset_reset": "earliest", "check_crcs": False}
    conf |= {"max_partition_fetch_bytes": 16 << 20, "isolation_level": "read_committed"}
    consumer = wrap(aiokafka.AIOKafkaConsumer(bootstrap_servers=options.bootstrap, group_id="bench-aio", **conf))
    await consumer.start()
    wanted = options.records
    offsets: dict[int, int] = {}
    began = time.perf_counter()
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
    seconds = time.perf_counter() - began
    await consumer.stop()
    return seconds


if __name__ == "__main__":
    main()
