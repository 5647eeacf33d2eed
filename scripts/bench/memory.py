"""Whether a worker's resident memory grows with the records that it has read.

One worker reads one long topic from start to end; its memory is sampled beside the offsets in its heads. A line through the
samples behind the first third (buffers, caches and the first flushes are there by then) must not rise by more than 1 MB per
10 million records, else it ends with 1.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kafka_cluster import KafkaCluster

from scripts.bench.ground import SMALL, CannotTellError, Topic, concluded, filled, own_cluster, parser, say
from scripts.bench.ground import worker as real_worker
from scripts.bench.heads import Heads

MOST_MB = 1.0
PER_RECORDS = 10_000_000
EVERY_S = 0.1
FEWEST = 10
"""Samples that a line needs."""
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment."""

    records: int
    mb: float


def resident_mb(process: int) -> float:
    """Resident set of a process, in MB (10**6 bytes)."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True).stdout
    return int(told) * 1024 / 1e6


def measure(cluster: KafkaCluster, topic: Topic) -> list[Sample]:
    """Samples from the first head to the log's end. Raises CannotTellError."""
    samples: list[Sample] = []
    with real_worker(cluster.bootstrap, {topic.name: {"sinks": {}}}) as (rig, process):
        assert process.process is not None
        read: dict[int, int] = {}
        due = 0.0
        with Heads(cluster.bootstrap, f"{rig.app_id}-{topic.name}-changelog", len(topic.stops)) as heads:
            for head in heads.follow(PATIENCE_S):
                if process.process.poll() is not None:
                    raise CannotTellError(f"the worker ended: {process.tail()}")
                if head is not None:
                    read[head.partition] = head.read
                now = time.monotonic()
                if read and now >= due:
                    due = now + EVERY_S
                    samples.append(Sample(sum(read.values()), resident_mb(process.process.pid)))
                if read == topic.stops:
                    samples.append(Sample(topic.records, resident_mb(process.process.pid)))
                    return samples
    raise CannotTellError("the heads ended before the log did.")


def slope(samples: Sequence[Sample]) -> float:
    """MB per 10 million records, of the straight line through ``samples`` (least squares)."""
    if len(samples) < FEWEST or len({sample.records for sample in samples}) < 2:
        raise CannotTellError(f"{len(samples)} samples are too few: read more --records.")
    line = statistics.linear_regression([sample.records for sample in samples], [sample.mb for sample in samples])
    return line.slope * PER_RECORDS


def report(samples: Sequence[Sample], topic: Topic) -> bool:
    """Print memory along the log; whether it grows too much."""
    print(f"{topic}")
    print(f"  {'records read':>14} {'resident MB, median':>20} {'highest':>9}")
    tenth = topic.records / 10
    for step in range(10):
        part = [sample.mb for sample in samples if step * tenth <= sample.records < (step + 1) * tenth]
        if part:
            print(f"  {round((step + 1) * tenth):14,} {statistics.median(part):20.1f} {max(part):9.1f}")
    print(f"  {'at the end':>14} {samples[-1].mb:20.1f}")
    grows = slope([sample for sample in samples if sample.records >= topic.records / 3])
    enough = grows <= MOST_MB
    print(f"  {grows:+.2f} MB per 10 million records behind the first third" + ("" if enough else f"  <- more than {MOST_MB:g}"))
    return enough


def benchmark(records: int) -> bool:
    """Fill, measure, report; whether memory stays."""
    with own_cluster() as cluster:
        topic = filled(cluster, SMALL, records)
        say("reading ...")
        return report(measure(cluster, topic), topic)


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    given = parser("memory", __doc__, 60_000_000, "30 million records").parse_args(arguments)
    return concluded("memory", lambda: benchmark(30_000_000 if given.quick else given.records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
