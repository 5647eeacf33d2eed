"""What DumpLogSegments of Kafka 4.1.1 printed once is understood; what it never printed is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from kafka_cluster import KafkaCluster

from tests.support.dump_log import Dumper, DumpError, parse
from tests.support.kafka_kit import KafkaKit

SAMPLE = (Path(__file__).parent / "dump_log.txt").read_text()
FIRST, SECOND, EMPTY = (f"/data/{name}.log" for name in ("prices-0/" + "0" * 20, "prices-0/" + "0" * 18 + "10", "prices-1/" + "0" * 20))


def test_every_batch_of_the_sample_is_read() -> None:
    files = parse(SAMPLE)
    assert list(files) == [FIRST, SECOND, EMPTY]
    assert files[EMPTY] == []
    thinned, tombstone, half, commit, emptied, abort = files[FIRST]
    assert (thinned.base, thinned.last, thinned.count, thinned.offsets, thinned.codec) == (0, 2, 1, (2,), "zstd")
    assert (thinned.producer, thinned.producer_epoch, thinned.transactional, thinned.control) == (-1, -1, False, False)
    assert (tombstone.delete_horizon_ms, tombstone.tombstones, tombstone.position, tombstone.size) == (1795544881590, 1, 86, 70)
    assert (half.producer, half.transactional, half.control, half.offsets, half.marker) == (1, True, False, (5,), None)
    assert [(one.control, one.marker, list(one.offsets)) for one in (commit, abort)] == [(True, "COMMIT", [6]), (True, "ABORT", [9])]
    assert (emptied.count, emptied.offsets, emptied.delete_horizon_ms) == (0, (), None)
    (whole,) = files[SECOND]
    assert (whole.offsets, whole.leader_epoch, whole.tombstones) == (range(10, 12), 1, 1)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("| offset: 2 ", "| offset of: 2 ", "0 records follow"),
        ("| offset: 2 CreateTime", "| offset: two CreateTime", "belongs to no batch"),
        ("baseOffset: 10 ", "firstOffset: 10 ", "not known here"),
        ("isTransactional: true isControl: false", "isControl: false", "another form"),
        ("count: 2 ", "count: 3 ", "2 records follow"),
        ("isvalid: true", "isvalid: false", "1 records follow"),
        ("magic: 2", "magic: 1", "1 records follow"),
        ("Log starting offset: 10", "Found 17 invalid bytes at the end of 00000000000000000010.log", "not known here"),
        ("baseOffset: 0 ", "| offset: 0 CreateTime: 1 keySize: 1 valueSize: 1 \nbaseOffset: 0 ", "belongs to no batch"),
    ],
)
def test_what_is_not_understood_is_refused(old: str, new: str, complaint: str) -> None:
    assert old in SAMPLE
    with pytest.raises(DumpError, match=complaint):
        parse(SAMPLE.replace(old, new, 1))


def test_the_tool_reads_the_files_of_a_broker_that_runs(kafka: KafkaCluster, kit: KafkaKit, make_topic: Callable[..., str]) -> None:
    topic = make_topic(2)
    dumper = Dumper(kafka)
    places = [(topic, 0), (topic, 1)]
    assert dumper.read(places) == {place: [] for place in places}
    kit.produce(topic, 0, 5, conf={"compression.type": "gzip"})
    kit.transact(topic, 0, 2, commit=False)
    found = dumper.read(places)
    records, aborted, marker = found[topic, 0]
    assert (records.offsets, records.codec, records.transactional) == (range(5), "gzip", False)
    assert (list(aborted.offsets), aborted.transactional, marker.marker, marker.producer) == ([5, 6], True, "ABORT", aborted.producer)
    assert found[topic, 1] == []
    assert dumper.read(places) == found, "files that have not changed are known"
