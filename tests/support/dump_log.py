"""What lies in a partition's files, as Kafka's own ``kafka.tools.DumpLogSegments`` prints them: an oracle that shares no code with us."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kafka_cluster import KafkaCluster
from kafka_jars import KafkaError

TOOL = "kafka.tools.DumpLogSegments"
PATIENCE_S = 180.0
_FILES_AT_ONCE = 400
"""Of about 100 letters each: an argument may have 128 KiB on Linux."""
_RETRY_S = 0.2

Where = tuple[str, int]
"""Topic and partition."""
_Identity = tuple[str, int, int, int]
"""Of a segment file whose content is known: name, inode, size, time of its last change. A cleaned segment is another inode."""

_BATCH = re.compile(
    r"baseOffset: (?P<base>\d+) lastOffset: (?P<last>\d+) count: (?P<count>\d+) "
    r"baseSequence: -?\d+ lastSequence: -?\d+ producerId: (?P<producer>-?\d+) producerEpoch: (?P<producer_epoch>-?\d+) "
    r"partitionLeaderEpoch: (?P<leader_epoch>-?\d+) isTransactional: (?P<transactional>true|false) isControl: (?P<control>true|false) "
    r"deleteHorizonMs: OptionalLong(?:\.empty|\[(?P<horizon>\d+)\]) position: (?P<position>\d+) \w+: -?\d+ size: (?P<size>\d+) "
    r"magic: (?P<magic>\d+) compresscodec: (?P<codec>\w+) crc: \d+ isvalid: (?P<valid>true|false)"
)
_RECORD = re.compile(r"\| offset: (\d+) \w+: -?\d+ keySize: -?\d+ valueSize: (-?\d+) ")
_MARKER = re.compile(r"endTxnMarker: (\w+)")


class DumpError(Exception):
    """The tool printed what can't be read here, or what no log of Kafka can hold."""


@dataclass(frozen=True, slots=True)
class DumpedBatch:
    """One record batch of the current format; offsets as the file has them, ``last`` included."""

    base: int
    last: int
    count: int
    """Records that it still holds."""
    producer: int
    """Producer id; -1 without one."""
    producer_epoch: int
    leader_epoch: int
    transactional: bool
    control: bool
    delete_horizon_ms: int | None
    position: int
    """In its file."""
    size: int
    codec: str
    offsets: Sequence[int]
    """Of the records that it still holds."""
    marker: str | None = None
    """``COMMIT`` or ``ABORT``; None where it is no control batch, or lost its record to compaction."""
    tombstones: int = 0


@dataclass
class _Reading:
    """A batch line, and the record lines that follow it."""

    line: re.Match[str]
    offsets: list[int] = field(default_factory=list)
    marker: str | None = None
    tombstones: int = 0

    def batch(self) -> DumpedBatch:
        """All of it; DumpError if header and records differ."""
        one, number = self.line, {name: int(self.line[name]) for name in ("base", "last", "count", "magic")}
        if one["valid"] != "true" or number["magic"] != 2 or len(self.offsets) != number["count"]:
            raise DumpError(f"{len(self.offsets)} records follow the batch: {one[0]}")
        whole = range(number["base"], number["last"] + 1)
        return DumpedBatch(
            base=number["base"],
            last=number["last"],
            count=number["count"],
            producer=int(one["producer"]),
            producer_epoch=int(one["producer_epoch"]),
            leader_epoch=int(one["leader_epoch"]),
            transactional=one["transactional"] == "true",
            control=one["control"] == "true",
            delete_horizon_ms=None if one["horizon"] is None else int(one["horizon"]),
            position=int(one["position"]),
            size=int(one["size"]),
            codec=one["codec"],
            offsets=whole if len(self.offsets) == len(whole) else tuple(self.offsets),
            marker=self.marker,
            tombstones=self.tombstones,
        )


def parse(text: str) -> dict[str, list[DumpedBatch]]:
    """Batches by the path of their file, from output of ``--deep-iteration``."""
    files: dict[str, list[DumpedBatch]] = {}
    batches: list[DumpedBatch] = []
    reading: _Reading | None = None
    for line in text.splitlines():
        if line.startswith("| offset: "):
            found = _RECORD.match(line)
            if reading is None or found is None:
                raise DumpError(f"a record that belongs to no batch: {line[:300]}")
            reading.offsets.append(int(found[1]))
            reading.tombstones += found[2] == "-1"
            marker = _MARKER.search(line, found.end()) if reading.line["control"] == "true" else None
            reading.marker = marker[1] if marker else reading.marker
            continue
        if reading is not None:
            batches.append(reading.batch())
            reading = None
        if line.startswith("baseOffset: "):
            header = _BATCH.match(line)
            if header is None:
                raise DumpError(f"a batch of another form than expected: {line[:400]}")
            reading = _Reading(header)
        elif line.startswith("Dumping "):
            batches = files[line.removeprefix("Dumping ")] = []
        elif line.strip() and not line.startswith(("Log starting offset: ", "Snapshot end offset: ")):
            raise DumpError(f"a line that is not known here: {line[:300]}")
    if reading is not None:
        batches.append(reading.batch())
    return files


class Dumper:
    """Reads partitions of one broker; remembers segments that have not changed since."""

    def __init__(self, cluster: KafkaCluster, broker: int = 0) -> None:
        """``cluster``: runs on this machine; the broker may run or not."""
        self._cluster, self._broker = cluster, broker
        self._known: dict[Where, dict[_Identity, list[DumpedBatch]]] = {}

    def read(self, partitions: Iterable[Where]) -> dict[Where, list[DumpedBatch]]:
        """All batches in the files of each partition, ascending, those below the log start offset included.

        All files are those of one moment: where something was written or cleaned meanwhile, it is read again, so nobody may
        write all the time. Raises DumpError, or KafkaError of the tool.
        """
        wanted = list(partitions)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            before = {where: self._segments(where) for where in wanted}
            trouble: Exception | None = None
            try:
                self._learn(before)
            except (KafkaError, DumpError) as exc:
                trouble = exc  # of a file that changed under the tool, or of the log itself: the files tell below
            if before == {where: self._segments(where) for where in wanted}:
                if trouble is not None:
                    raise trouble
                return {where: list(self._joined(where, segments)) for where, segments in before.items()}
            if time.monotonic() > deadline:
                raise DumpError(f"the files of {wanted} did not keep still for {PATIENCE_S:g} s") from trouble
            time.sleep(_RETRY_S)

    def _segments(self, where: Where) -> dict[Path, _Identity]:
        """Segment files by path, ascending; waits while the cleaner puts new files in the place of old ones."""
        folder = self._cluster.log_dir(self._broker) / f"{where[0]}-{where[1]}"
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            names = sorted(path.name for path in folder.iterdir())
            if not any(name.endswith(".swap") for name in names):
                try:
                    return {folder / name: _identity(folder / name) for name in names if name.endswith(".log")}
                except FileNotFoundError:
                    pass  # removed since the folder was listed
            time.sleep(_RETRY_S)
        raise DumpError(f"the cleaner left files half swapped in {folder}")

    def _learn(self, partitions: dict[Where, dict[Path, _Identity]]) -> None:
        unknown = [
            path
            for where, segments in partitions.items()
            for path, identity in segments.items()
            if identity not in self._known.get(where, {})
        ]
        found: dict[str, list[DumpedBatch]] = {}
        for at in range(0, len(unknown), _FILES_AT_ONCE):
            files = ",".join(map(str, unknown[at : at + _FILES_AT_ONCE]))
            found |= parse(self._cluster.tool(TOOL, "--deep-iteration", "--files", files, timeout=PATIENCE_S))
        if set(found) != set(map(str, unknown)):
            raise DumpError(f"{TOOL} told of {sorted(found)} when asked for {sorted(map(str, unknown))}")
        for where, segments in partitions.items():
            known = self._known.get(where, {})
            self._known[where] = {
                identity: known[identity] if identity in known else found[str(path)] for path, identity in segments.items()
            }

    def _joined(self, where: Where, segments: dict[Path, _Identity]) -> Iterator[DumpedBatch]:
        following = 0
        for identity in segments.values():
            for batch in self._known[where][identity]:
                if batch.base < following or not all(batch.base <= offset <= batch.last for offset in batch.offsets):
                    raise DumpError(f"{where}: {batch} does not follow what ends before {following}")
                following = batch.last + 1
                yield batch


def _identity(path: Path) -> _Identity:
    stat = path.stat()
    return path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns
