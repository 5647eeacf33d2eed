"""How fast the log reader reads the headers of a topic, alone: no Faust, no ledger.

    python scripts/bench/reader.py --bootstrap 127.0.0.1:9092 --records 20000000

Fills a topic of its own (or reads --topic), then reads it from start to end and prints records per second. The first
reading warms the page cache and is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from stream_app.core.model import Absent
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.reader import LogReader

RECORD_OVERHEAD = 8
"""Bytes of a v2 record without key and headers around a value of about 100 bytes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One reading of the whole topic."""

    records: int
    offsets: int
    size: int
    seconds: float
    answers: int
    longest_block_ms: float


def fill(
    bootstrap: str, topic: str, partitions: int, records: int, size: int, shape: str, codec: str, values: Sequence[bytes] = ()
) -> None:
    """Writes ``records`` records of ``size`` bytes; ``single``: one a batch; ``transactions``: that, and a marker per 100.

    ``values`` are written in turn; without any, one letter is repeated.
    """
    single = shape != "batches"
    conf: dict[str, str | int] = {
        "bootstrap.servers": bootstrap,
        "compression.type": codec,
        "batch.size": 16_384,
        "batch.num.messages": 1 if single else 10_000,
        "linger.ms": 0 if single else 50,
        "queue.buffering.max.messages": 1_000_000,
        "acks": "all" if shape == "transactions" else 1,
    }
    if shape == "transactions":
        conf["transactional.id"] = topic
    producer = Producer(conf)
    values = values or [b"v" * max(1, size - RECORD_OVERHEAD)]
    if shape == "transactions":
        producer.init_transactions(30)
    per_transaction = 99 * partitions
    for number in range(records):
        if shape == "transactions" and number % per_transaction == 0:
            if number:
                producer.commit_transaction(60)
            producer.begin_transaction()
        while True:
            try:
                # Runs of one partition fill batches.
                producer.produce(
                    topic, values[number % len(values)], partition=number // 1000 % partitions if not single else number % partitions
                )
                break
            except BufferError:
                producer.poll(0.05)
        if number % 10_000 == 0:
            producer.poll(0)
    if shape == "transactions":
        producer.commit_transaction(60)
    producer.flush(120)


async def read(kafka: KafkaSettings, topic: str, *, isolation: Isolation, check_crcs: bool, max_bytes: int) -> Measured:
    """Reads ``topic`` from start to the end that it has now."""
    reader = LogReader(kafka, client_id="gapstream-bench", max_bytes=max_bytes)
    await reader.start()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    try:
        partitions = (await reader.metadata([topic])).topics[topic].partitions
        stops = {index: (await reader.ends(topic, index)).last_stable for index in range(partitions)}
        begun = time.perf_counter()
        for index in range(partitions):
            reader.assign(topic, index, None, isolation=isolation, check_crcs=check_crcs)
        watching = asyncio.create_task(watch())
        behind = {index for index, stop in stops.items() if stop}
        records = offsets = size = answers = 0
        while behind:
            await reader.wait()
            for trouble in reader.troubles():
                print(trouble.message, file=sys.stderr)
            for (_, index), one in reader.take().items():
                answers += 1
                size += one.size
                offsets += one.next - one.position
                records += sum(stop - first for first, stop in one.records)
                if one.next >= stops[index]:
                    behind.discard(index)
        seconds = time.perf_counter() - begun
        watching.cancel()
        return Measured(records, offsets, size, seconds, answers, longest * 1000)
    finally:
        await reader.stop()


def main() -> None:
    """Parses the command line, fills, reads, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", required=True, help="host:port,host:port")
    parser.add_argument("--topic", help="an existing topic; default: one is made, filled and deleted")
    parser.add_argument("--keep", action="store_true", help="do not delete the topic that was made")
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--size", type=int, default=111, help="bytes of a record")
    parser.add_argument("--shape", choices=["batches", "single", "transactions"], default="batches")
    parser.add_argument("--codec", default="none", help="none, gzip, snappy, lz4 or zstd")
    parser.add_argument("--isolation", type=Isolation, choices=list(Isolation), default=Isolation.READ_COMMITTED)
    parser.add_argument("--no-crcs", action="store_true", help="do not check CRCs")
    parser.add_argument("--max-bytes", type=int, default=16 << 20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    topic = options.topic or f"bench-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": options.bootstrap})
    if not options.topic:
        for future in admin.create_topics([NewTopic(topic, options.partitions, 1)]).values():
            future.result(30)
        begun = time.perf_counter()
        fill(options.bootstrap, topic, options.partitions, options.records, options.size, options.shape, options.codec)
        print(f"filled {topic} in {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    servers = tuple((host, int(port)) for host, _, port in (one.rpartition(":") for one in options.bootstrap.split(",")))
    kafka = KafkaSettings(servers)
    try:
        for run in range(options.runs + 1):
            got = asyncio.run(read(kafka, topic, isolation=options.isolation, check_crcs=not options.no_crcs, max_bytes=options.max_bytes))
            if run:
                report(got, as_json=options.json)
    finally:
        if not options.topic and not options.keep:
            for future in admin.delete_topics([topic]).values():
                future.result(30)


def report(got: Measured, *, as_json: bool) -> None:
    """One line per reading."""
    rate, volume = got.records / got.seconds, got.size / got.seconds
    if as_json:
        print(json.dumps({"records_per_s": round(rate), "bytes_per_s": round(volume), "records": got.records, "seconds": got.seconds}))
        return
    markers = got.offsets - got.records
    print(
        f"{rate / 1e6:.2f} M records/s, {volume / 1e9:.2f} GB/s: {got.records:,} records ({markers:,} offsets {Absent.TRANSACTION_MARKER} "
        f"or other) in {got.seconds:.2f} s, {got.answers} answers, longest block {got.longest_block_ms:.1f} ms"
    )


if __name__ == "__main__":
    main()
