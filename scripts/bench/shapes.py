"""How fast the log reader reads topics that are compressed, or that have one record a batch in transactions.

Bounds: lz4 at least 1.5 times the records/s of the same data uncompressed, where it compresses 2 to 2.5 times; one record a batch
and a marker per 100 records at least 800,000 records/s. Readings take turns; each figure is a median.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import string
import sys

from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cluster import KafkaCluster

from scripts.bench.reader import Measured, fill, read
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.protocol import Isolation

LZ4_TIMES = 1.5
SINGLE_PER_S = 800_000
COMPRESSES = (2.0, 2.5)
PARTITIONS = 4
SIZE = 111


def values(rng: random.Random) -> list[bytes]:
    """Records as applications write them: names that repeat around fields that don't."""
    letters = string.ascii_letters + string.digits
    made = []
    for _ in range(20_000):
        order, amount = "".join(rng.choices(letters, k=30)), rng.randrange(10**6)
        made.append(f'{{"order":"{order}","amount":{amount:06},"currency":"EUR","state":"shipped","at":"eu"}}'.encode())
    return made


def measure(bootstrap: str, topic: str) -> Measured:
    """One reading from start to end."""
    host, _, port = bootstrap.partition(":")
    kafka = KafkaSettings(((host, int(port)),))
    return asyncio.run(read(kafka, topic, isolation=Isolation.READ_COMMITTED, check_crcs=True, max_bytes=16 << 20))


def main() -> int:
    """Fills, reads in turn, judges."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run shapes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000_000, help="of the topics with large batches")
    parser.add_argument("--single", type=int, default=2_000_000, help="of the topic with one record a batch")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, three runs")
    options = parser.parse_args()
    if options.quick:
        options.records, options.single, options.runs = options.records // 10, options.single // 10, 3
    shapes = {"none": ("batches", "none", options.records), "lz4": ("batches", "lz4", options.records)}
    shapes["single"] = ("transactions", "none", options.single)
    found: dict[str, list[Measured]] = {name: [] for name in shapes}
    with KafkaCluster() as cluster:
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
        for future in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in shapes]).values():
            future.result(30)
        made = values(random.Random(1))
        for name, (shape, codec, records) in shapes.items():
            print(f"filling {name} with {records:,} records", file=sys.stderr)
            fill(cluster.bootstrap, name, PARTITIONS, records, SIZE, shape, codec, made)
            measure(cluster.bootstrap, name)  # warms the page cache
        for _ in range(options.runs):
            for name, several in found.items():
                several.append(measure(cluster.bootstrap, name))
    rates = {name: statistics.median(one.records / one.seconds for one in several) for name, several in found.items()}
    for name, several in found.items():
        print(f"{name:7} {rates[name] / 1e6:6.2f} M records/s, {several[0].size / several[0].records:.0f} bytes a record on disk")
    return judge(rates, found)


def judge(rates: dict[str, float], found: dict[str, list[Measured]]) -> int:
    """Exit status: 0 both bounds are kept, 1 not, 3 the data do not compress as they should."""
    compresses = found["none"][0].size / found["lz4"][0].size
    times = rates["lz4"] / rates["none"]
    markers = found["single"][0].offsets / found["single"][0].records - 1
    print(f"lz4 compresses {compresses:.2f} times and is read {times:.2f} times as fast (at least {LZ4_TIMES})")
    print(f"one record a batch, {markers:.3f} markers a record: {rates['single']:,.0f} records/s (at least {SINGLE_PER_S:,})")
    if not COMPRESSES[0] <= compresses <= COMPRESSES[1]:
        print(f"could not tell: the data should compress {COMPRESSES[0]} to {COMPRESSES[1]} times", file=sys.stderr)
        return 3
    return 0 if times >= LZ4_TIMES and rates["single"] >= SINGLE_PER_S else 1


if __name__ == "__main__":
    sys.exit(main())
