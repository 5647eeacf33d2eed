"""What the benchmarks stand on: a Kafka of their own, topics of known batches, workers, options."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from kafka_cluster import FULL_JVM, KafkaCluster
from kafka_jars import KafkaError

from tests.support.rig import Rig, Worker

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
VALUE_BYTES = 100
"""With what a v2 record has around its value, and its share of the batch header: 110 bytes."""
FILL_RECORDS_PER_S = 50_000
"""A tenth of what a slow machine writes: slower than that, and the filling is given up."""
CALL_S = 30.0
_HEADER = struct.Struct(">qiib")
_COUNT = struct.Struct(">i")
_COUNT_AT = 57
_LENGTH_AT = 12
"""Length counts from behind itself. Kafka, DefaultRecordBatch: base offset, length, leader epoch, magic, ..., record count."""


class CannotTellError(Exception):
    """A measurement that did not measure what it says; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a topic's batches are made."""

    name: str
    batch_bytes: int


SMALL = Shape("16 kB", 16_384)
"""The producer's default batch.size."""
LARGE = Shape("1 MB", 1_000_000)
"""Nearly the broker's default message.max.bytes (1,048,588)."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A filled topic."""

    name: str
    shape: Shape
    stops: Mapping[int, int]
    """Partition -> end offset; every log begins at 0."""
    batches: int
    size: int
    """Bytes on disk."""

    @property
    def records(self) -> int:
        """In all partitions; the topic is dense."""
        return sum(self.stops.values())

    def __str__(self) -> str:
        """As the tables head it."""
        return (
            f"{self.records:,} records, {self.size / self.records:.1f} bytes each, in {self.batches:,} batches"
            f" of {self.size / self.batches / 1e3:.1f} kB on average, {len(self.stops)} partitions"
        )


@contextlib.contextmanager
def own_cluster() -> Iterator[KafkaCluster]:
    """One broker with both of Java's compilers; gone afterwards."""
    with KafkaCluster(1, jvm=FULL_JVM) as cluster:
        yield cluster


def filled(cluster: KafkaCluster, shape: Shape, records: int) -> Topic:
    """A new topic of ``records`` records with random printable values, written by Kafka's own ProducerPerformance.

    Raises CannotTellError if the topic or its batches did not become what was asked for.
    """
    name = f"bench-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(CALL_S)
    properties = {
        "bootstrap.servers": cluster.bootstrap,
        "acks": "1",
        "compression.type": "none",
        "batch.size": shape.batch_bytes,
        # A batch leaves because it is full: long lingering, and all partitions filled in step. The default partitioner
        # leaves one partition's batch half full and goes on with another, and when memory is short those are sent too.
        "linger.ms": 10_000,
        "partitioner.class": "org.apache.kafka.clients.producer.RoundRobinPartitioner",
        "max.request.size": 4 * LARGE.batch_bytes,
        "buffer.memory": 128 << 20,
    }
    say(f"filling {name} with {records:,} records in batches of {shape.name} ...")
    began = time.monotonic()
    cluster.tool(
        "org.apache.kafka.tools.ProducerPerformance",
        *("--topic", name, "--num-records", str(records), "--record-size", str(VALUE_BYTES), "--throughput", "-1"),
        *("--producer-props", *(f"{key}={value}" for key, value in properties.items())),
        timeout=60 + records / FILL_RECORDS_PER_S,
    )
    topic = described(cluster, name, shape)
    say(f"filled in {time.monotonic() - began:.0f} s: {topic}")
    if topic.records != records:
        raise CannotTellError(f"{name} holds {topic.records:,} records, not {records:,}: the producer lost some, try again.")
    if not 0.8 * shape.batch_bytes <= topic.size / topic.batches <= 1.1 * shape.batch_bytes:
        raise CannotTellError(
            f"the batches of {name} have {topic.size / topic.batches:,.0f} bytes, not about {shape.batch_bytes:,}: try again."
        )
    return topic


def described(cluster: KafkaCluster, name: str, shape: Shape) -> Topic:
    """What a topic holds: its ends from the broker, its batches from the segments on the broker's disk."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    wanted = {TopicPartition(name, partition): OffsetSpec.latest() for partition in range(PARTITIONS)}
    stops = {where.partition: int(found.result(CALL_S).offset) for where, found in admin.list_offsets(wanted).items()}
    batches = size = records = 0
    for segment in sorted(cluster.log_dir().glob(f"{name}-*/*.log")):
        for length, count in _batches(segment):
            batches, size, records = batches + 1, size + length, records + count
    if records != sum(stops.values()):
        raise CannotTellError(
            f"the segments of {name} hold {records:,} records, its offsets end at {sum(stops.values()):,}: it is not dense."
        )
    return Topic(name, shape, stops, batches, size)


def _batches(segment: Path) -> Iterator[tuple[int, int]]:
    """Bytes and records of each batch of a segment; its own few lines, so that it can't err together with the log reader."""
    with segment.open("rb") as file:
        position, end = 0, os.fstat(file.fileno()).st_size
        while position < end:
            file.seek(position)
            head = file.read(_COUNT_AT + _COUNT.size)
            _, length, _, magic = _HEADER.unpack_from(head)
            if magic != 2:
                raise CannotTellError(f"{segment} has a batch of format {magic} at byte {position}: only format 2 is expected.")
            yield _LENGTH_AT + length, _COUNT.unpack_from(head, _COUNT_AT)[0]
            position += _LENGTH_AT + length


@contextlib.contextmanager
def worker(bootstrap: str, topics: Mapping[str, Any], **sections: Any) -> Iterator[tuple[Rig, Worker]]:
    """A real worker with an app id and a state folder of its own, started and not waited for; stopped afterwards."""
    with tempfile.TemporaryDirectory(prefix="gapstream-bench-") as folder:
        rig = Rig(Path(folder), bootstrap, topics, f"bench-{uuid.uuid4().hex[:8]}", **sections)
        try:
            process = rig.worker().start()
            yield rig, process
            process.stop()
        finally:
            rig.close()


def run_module(module: str, *arguments: str, timeout: float) -> Any:
    """The JSON that a module of this folder prints last, run as a process of its own.

    Raises CannotTellError when it fails or does not end in time.
    """
    command = [sys.executable, "-m", f"scripts.bench.{module}", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise CannotTellError(f"{module} did not end within {timeout:.0f} s.") from None
    if done.returncode != 0:
        raise CannotTellError(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def concluded(name: str, benchmark: Callable[[], bool]) -> int:
    """Run it; the exit status: 0 it is as it should be, 1 it is not, 3 it could not be told, with one sentence on stderr."""
    try:
        return 0 if benchmark() else 1
    except (KafkaError, KafkaException, CannotTellError, AssertionError, OSError, subprocess.SubprocessError) as error:
        # AssertionError: what the worker's rig says of a worker that does not become ready.
        print(f"scripts/bench/run {name}: {error}", file=sys.stderr)
        return 3


def parser(name: str, description: str | None, records: int, quick: str) -> argparse.ArgumentParser:
    """Options that the benchmarks share; ``quick``: what that option does."""
    made = argparse.ArgumentParser(
        prog=f"scripts/bench/run {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--records", type=int, default=records, help="records in a topic (default: %(default)s)")
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)
