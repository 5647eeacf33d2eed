"""How much state a dense, complete topic leaves: every key with its latest value in the changelog of the ledger.

A worker reads the topic, a sink reports that it received every record, and all of it is judged. Ends with 1 if keys and
values together are not below 100 kB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import msgspec
from kafka_cluster import KafkaCluster

from gapstream_sidecar import Sidecar
from scripts.bench.ground import SMALL, CannotTellError, Topic, concluded, filled, own_cluster, parser, say, worker
from stream_app.core.state import Head, SinkHead
from tests.support.rig import Rig, Worker

MOST_BYTES = 100_000
SINK = "billing"
REPORT = 10_000
"""Offsets in one report: what a consumer gets from a poll or two."""
PATIENCE_S = 300.0
JUDGED_S = 30.0
"""Grace, and the flush behind it, take 2 s."""
_KIND_AT = 21
"""Behind partition, format version and topic id: :mod:`stream_app.core.state`."""


def measure(cluster: KafkaCluster, topic: Topic) -> dict[bytes, bytes]:
    """Key -> latest value once every offset of ``topic`` is read, received and judged. Raises CannotTellError."""
    sinks = {SINK: {"type": "consumer", "from": "earliest", "grace": "1s"}}
    with worker(cluster.bootstrap, {topic.name: {"sinks": sinks}}) as (rig, process):
        process.ready()
        sidecar = Sidecar({"bootstrap.servers": cluster.bootstrap}, sink=SINK, app_id=rig.app_id, explicit=True)
        for partition, stop in topic.stops.items():
            for first in range(0, stop, REPORT):
                sidecar.received(topic.name, partition, first, min(first + REPORT, stop) - 1)
        sidecar.close()
        await_complete(process, topic)
        deadline = time.monotonic() + JUDGED_S
        while (fault := unlike(stored := latest(rig, f"{rig.app_id}-{topic.name}-changelog"), topic)) is not None:
            if time.monotonic() > deadline:
                raise CannotTellError(fault)
            time.sleep(0.5)
        return stored


def await_complete(process: Worker, topic: Topic) -> None:
    """Return when the worker's answer shows that all was read and received, and nothing is missing."""
    deadline = time.monotonic() + PATIENCE_S
    rows: list[dict[str, object]] = []
    wanted = {partition: (stop, stop, 0, 0) for partition, stop in topic.stops.items()}
    while time.monotonic() < deadline:
        rows = process.get(f"/api/partitions?topic={topic.name}&sink={SINK}")["partitions"]
        if {row["partition"]: (row["log_read_offset"], row["observed"], row["missing"], row["lag"]) for row in rows} == wanted:
            return
        time.sleep(0.5)
    raise CannotTellError(f"the topic was not complete within {PATIENCE_S:.0f} s; the worker says {rows}")


def latest(rig: Rig, changelog: str) -> dict[bytes, bytes]:
    """What compaction would leave: each key's latest value, without deleted keys."""
    stored: dict[bytes, bytes] = {}
    for message in rig.read(changelog):
        key, value = message.key(), message.value()
        assert isinstance(key, bytes)
        if value is None:
            stored.pop(key, None)
        else:
            assert isinstance(value, bytes)
            stored[key] = value
    return stored


def unlike(stored: Mapping[bytes, bytes], topic: Topic) -> str | None:
    """How the state differs from that of a log read, received and judged to its end; None: not at all."""
    read: dict[int, int] = {}
    judged: dict[int, int | None] = {}
    for key, value in stored.items():
        partition, kind = int.from_bytes(key[:4], "big"), key[_KIND_AT : _KIND_AT + 1]
        if kind == b"h":
            read[partition] = msgspec.msgpack.decode(value, type=Head).read
        elif kind == b"s" and key.endswith(SINK.encode()):
            judged[partition] = msgspec.msgpack.decode(value, type=SinkHead).settled
    if read == topic.stops == judged:
        return None
    return f"the log ends at {dict(topic.stops)}; the state says read to {read}, judged to {judged}."


def report(stored: Mapping[bytes, bytes], topic: Topic) -> bool:
    """Print sizes by kind of key; whether they are small enough."""
    kinds = {"h": "heads", "s": "sinks", "g": "open gaps", "l": "sets of the log", "t": "sets of the sinks", "c": "clocks", "m": "minutes"}
    total = sum(len(key) + len(value) for key, value in stored.items())
    print(f"{topic}; sink {SINK} received all")
    for kind, name in kinds.items():
        sizes = [len(key) + len(value) for key, value in stored.items() if key[_KIND_AT] == ord(kind)]
        print(f"  {name:18} {len(sizes):5} keys {sum(sizes):9,} bytes")
    print(f"  {'all':18} {len(stored):5} keys {total:9,} bytes" + ("" if total < MOST_BYTES else f"  <- not below {MOST_BYTES:,}"))
    return total < MOST_BYTES


def benchmark(records: int) -> bool:
    """Fill, measure, report; whether the state is small enough."""
    with own_cluster() as cluster:
        topic = filled(cluster, SMALL, records)
        say("reading and reporting ...")
        return report(measure(cluster, topic), topic)


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    given = parser("state", __doc__, 10_000_000, "2 million records").parse_args(arguments)
    return concluded("state", lambda: benchmark(2_000_000 if given.quick else given.records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
