"""What stands in a partition's segment files: batch headers, read by code that shares nothing with the product's."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kafka_cluster import KafkaCluster

_HEADER = struct.Struct(">qiiBIhiqqqhii")
_CONTROL, _DELETE_HORIZON = 0x20, 0x40
_LENGTH_FROM = 12


class Header(NamedTuple):
    """Of one batch of format v2."""

    base: int
    stop: int
    """One past its last offset, which compaction leaves as it was."""
    records: int
    control: bool
    delete_horizon: bool

    @property
    def thinned(self) -> bool:
        """Whether records are gone, but not all."""
        return 0 < self.records < self.stop - self.base


def headers(cluster: KafkaCluster, topic: str, partition: int = 0) -> list[Header]:
    """All batches, ascending."""
    found: list[Header] = []
    for file in _segments(cluster, topic, partition):
        data, at = file.read_bytes(), 0
        while len(data) - at >= _HEADER.size:
            base, length, _, magic, _, attributes, delta, *_, records = _HEADER.unpack_from(data, at)
            if magic != 2:
                break  # preallocated or half written
            found.append(Header(base, base + delta + 1, records, bool(attributes & _CONTROL), bool(attributes & _DELETE_HORIZON)))
            at += _LENGTH_FROM + length
    return found


def gaps_between(found: list[Header]) -> list[tuple[int, int]]:
    """Offsets that no batch covers, half-open, between the first and the last batch."""
    return [(one.stop, next_.base) for one, next_ in pairwise(found) if one.stop < next_.base]


def is_cleaned(cluster: KafkaCluster, topic: str, partition: int = 0) -> bool:
    """Whether the cleaner went through all but the active segment: then it leaves the log alone until more is written."""
    active = int(_segments(cluster, topic, partition)[-1].stem)
    checkpoint = cluster.log_dir() / "cleaner-offset-checkpoint"
    lines = checkpoint.read_text().split("\n") if checkpoint.exists() else []
    return active > 0 and f"{topic} {partition} {active}" in lines


def _segments(cluster: KafkaCluster, topic: str, partition: int) -> list[Path]:
    return sorted((cluster.log_dir() / f"{topic}-{partition}").glob("*.log"))
