"""Lines of text into observations, for ``gapstream observe``: no Kafka, no clock, no file.

Plain lines of a partition gather into runs until they are due; a line of JSON is an observation already and waits for nothing.
Sequences are given in the order in which observations leave, so that none can pass for a repeat of a later one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gapstream_sidecar.runs import RUN_BYTES, RunList
from stream_app.core.model import MAX_OFFSET, Observation
from stream_app.sinks.observation import VALUE_BYTES_MAX, Rejected, address, encode, parse

INTERVAL_S = 1.0
"""Between two observations of one partition whose lines come in order; so none of its lines waits longer."""
LINE_BYTES_MAX = VALUE_BYTES_MAX
"""No observation may be longer; what is, is not kept until its end."""
RUNS_MAX = 1_000
"""In one observation: at most 43 bytes each in JSON, far below the megabyte that brokers take."""
ITEM_BYTES = 512
"""Memory of an observation beside its runs or its text, the client's own included."""
_SEARCHED = 8
"""Of the observations that are being gathered for one partition, those that a repeated offset may join."""
_DIGITS_MAX = 19
"""Of 2**63 - 1."""
_PARTITION_DIGITS_MAX = 10


class BadLine(Exception):
    """A line that can't be taken; the message says why."""


class Report(NamedTuple):
    """One observation that is due."""

    topic: str
    """The watched one."""
    partition: int
    value: bytes
    lines: int
    """How many lines it is made of."""
    line: int | None
    """The number of that line where it is one of JSON."""

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return len(self.value) + ITEM_BYTES


class _Gathered:
    """Runs of plain lines; each offset once."""

    __slots__ = ("lines", "runs")

    def __init__(self) -> None:
        self.runs = RunList()
        self.lines = 0


class Partition:
    """What is to be said about one partition."""

    __slots__ = ("due", "end", "gathered", "number", "ready", "sent_at", "sequence", "topic")

    def __init__(self, topic: str, number: int) -> None:
        self.topic, self.number = topic, number
        self.end = 0
        """Its log reaches so far at least. Nothing above may be put: it would be rejected, with all that is said beside it."""
        self.gathered: list[_Gathered] = []
        self.ready: deque[Report] = deque()
        self.sequence = -1
        """The highest so far: given here, or found in a line of JSON."""
        self.sent_at = float("-inf")
        self.due: float | None = None
        """When something leaves; None: nothing waits."""


class Reports:
    """All partitions' observations. ``numbered``: lines bring sequences of their own, for a source that has a name."""

    def __init__(self, sink: str, source: str, *, numbered: bool) -> None:
        self.sink, self.source, self.numbered = sink, source, numbered
        self.size = 0
        """Bytes of memory, about, of what has not left."""
        self.lines = 0
        """Lines that have not left."""
        self.next_due: float | None = None
        """At this time or later something leaves; None: nothing waits."""
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._waiting: dict[Partition, None] = {}

    def of(self, topic: str, number: int) -> Partition:
        """The partition's, made if need be."""
        found = self._partitions.get((topic, number))
        if found is None:
            found = self._partitions[topic, number] = Partition(topic, number)
        return found

    # --- putting ------------------------------------------------------------------------------------------------------

    def gather(self, partition: Partition, first: int, stop: int, now: float) -> None:
        """A plain line: the offsets ``[first, stop)``, which leave ``INTERVAL_S`` after the last ones at the latest."""
        for gathered in partition.gathered[-_SEARCHED:]:
            if len(gathered.runs) < RUNS_MAX and not gathered.runs.overlaps(first, stop):
                break
        else:
            gathered = _Gathered()
            partition.gathered.append(gathered)
            self.size += ITEM_BYTES
        before = len(gathered.runs)
        gathered.runs.add(first, stop)
        gathered.lines += 1
        self.size += RUN_BYTES * (len(gathered.runs) - before)
        self.lines += 1
        if partition.due is None:
            self._wait(partition, max(now, partition.sent_at + INTERVAL_S))

    def check(self, fields: dict[str, Any], partition: Partition) -> Observation:
        """What a line of JSON says. Raises BadLine when it is no observation."""
        if not self.numbered:
            fields |= {"source": self.source, "sequence": MAX_OFFSET}  # until it is added; none is longer
        try:
            return parse(msgspec.json.encode(fields), partition.topic, partition.number)
        except Rejected as error:
            raise BadLine(str(error)) from error

    def add(self, fields: dict[str, Any], line: int, partition: Partition, now: float) -> bool:
        """A line of JSON that was checked, after what was gathered before it; whether its sequence is above those before it."""
        if not self.numbered:
            fields |= {"source": self.source, "sequence": partition.sequence + len(partition.gathered) + 1}
        value = msgspec.json.encode(fields)
        self._close(partition)
        sequence: int = fields["sequence"]
        rising = sequence > partition.sequence
        partition.sequence = max(partition.sequence, sequence)
        self._ready(partition, Report(partition.topic, partition.number, value, 1, line))
        self.lines += 1
        self._wait(partition, now)
        return rising

    def _wait(self, partition: Partition, due: float) -> None:
        partition.due = due
        self._waiting[partition] = None
        self.next_due = due if self.next_due is None else min(self.next_due, due)

    def _close(self, partition: Partition) -> None:
        """What was gathered becomes observations."""
        for gathered in partition.gathered:
            partition.sequence += 1
            said = Observation(self.sink, runs=tuple(gathered.runs), source=self.source, sequence=partition.sequence)
            value = encode(said, partition.topic, partition.number)
            self._ready(partition, Report(partition.topic, partition.number, value, gathered.lines, None))
            self.size -= ITEM_BYTES + RUN_BYTES * len(gathered.runs)
        partition.gathered.clear()

    def _ready(self, partition: Partition, report: Report) -> None:
        partition.ready.append(report)
        self.size += report.size

    # --- taking -------------------------------------------------------------------------------------------------------

    def take(self, now: float | None) -> Iterator[Report]:
        """Observations that are due, in order for each partition; None: all of them. Consume it to its end."""
        if now is not None and (self.next_due is None or now < self.next_due):
            return
        for partition in list(self._waiting):
            if now is not None and partition.due is not None and partition.due > now:
                continue
            self._close(partition)
            if now is not None:
                partition.sent_at = now
            partition.due = None
            del self._waiting[partition]
            while partition.ready:
                report = partition.ready.popleft()
                self.size -= report.size
                self.lines -= report.lines
                yield report
        self.next_due = min((partition.due for partition in self._waiting if partition.due is not None), default=None)


# --- lines ------------------------------------------------------------------------------------------------------------------


class Lines:
    """Cuts a stream of bytes into numbered lines."""

    def __init__(self) -> None:
        self.number = 0
        """Of the last line."""
        self._rest = bytearray()
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Lines that end in ``data``, without their ends; None for one that is longer than ``LINE_BYTES_MAX``."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            yield self._line(piece)
        self._keep(rest)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """What came after the last line's end is a line too, at the end of the stream."""
        if self._rest or self._too_long:
            yield self._line(b"")

    def _keep(self, piece: bytes) -> None:
        if self._too_long or len(self._rest) + len(piece) > LINE_BYTES_MAX:
            self._too_long = True
            self._rest.clear()
        else:
            self._rest += piece

    def _line(self, piece: bytes) -> tuple[int, bytes | None]:
        self.number += 1
        if not self._rest and not self._too_long and len(piece) <= LINE_BYTES_MAX:  # nearly always
            return self.number, piece
        self._keep(piece)
        line = None if self._too_long else bytes(self._rest)
        self._rest.clear()
        self._too_long = False
        return self.number, line


class Said(NamedTuple):
    """What a line says, until it is known whether its log reaches so far."""

    line: int
    """Its number."""
    partition: Partition
    first: int
    stop: int
    """Offsets of a plain line; of one of JSON the lowest and one past the highest."""
    claim: int
    """0: none."""
    fields: dict[str, Any] | None
    """None: it is a plain line."""

    @property
    def is_above(self) -> bool:
        """Whether it speaks of more than the log is known to have."""
        return max(self.stop, self.claim) > self.partition.end

    def why_above(self) -> str:
        """What is wrong with one that is, and how to mend it."""
        topic, number, end = self.partition.topic, self.partition.number, self.partition.end
        ends = f"{topic}/{number} ends at {end}: "
        if self.stop <= end:
            return f"{ends}its claim {self.claim} is above"
        last = self.stop - 1
        if self.fields is not None:
            return f"{ends}its offset {last} was not written yet, and nothing of the line is taken: leave out what is above"
        if self.first == last:
            return f"{ends}offset {last} was not written yet"
        if self.first >= end:
            return f"{ends}offsets {self.first} to {last} were not written yet"
        missing = f"offset {last} was" if end == last else f"offsets {end} to {last} were"
        return f"{ends}{missing} not written yet, and nothing of the line is taken: write {topic} {number} {self.first} {end - 1} instead"


class Plain(NamedTuple):
    """``topic partition offset [last]``."""

    topic: bytes
    partition: bytes
    first: int
    stop: int


def plain(line: bytes) -> Plain:
    """Raises BadLine."""
    parts = line.split()
    if len(parts) not in (3, 4):
        raise BadLine(f"it has {len(parts)} fields, not topic partition offset [last]")
    first = _offset(parts[2])
    last = first if len(parts) == 3 else _offset(parts[3])
    if last < first:
        raise BadLine(f"the last offset {last} is below the first, {first}")
    return Plain(parts[0], parts[1], first, last + 1)


def _offset(text: bytes) -> int:
    if text.isdigit() and len(text) <= _DIGITS_MAX and (offset := int(text)) < MAX_OFFSET:
        return offset
    raise BadLine(f"{_shown(text)} is no offset")


def coordinates(line: Plain) -> tuple[str, int]:
    """Topic and partition. Raises BadLine."""
    if not line.partition.isdigit() or len(line.partition) > _PARTITION_DIGITS_MAX:
        raise BadLine(f"{_shown(line.partition)} is no partition")
    try:
        return line.topic.decode(), int(line.partition)
    except UnicodeDecodeError as error:
        raise BadLine(f"{_shown(line.topic)} is no topic's name") from error


def json_fields(line: bytes, sink: str, source: str | None) -> dict[str, Any]:
    """The object in a line, with the sink, and with the source where that has a name. Raises BadLine."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        address(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"it is no JSON of an observation ({error})") from error
    except Rejected as error:
        raise BadLine(str(error)) from error
    _set(fields, "sink", sink)
    if source is not None:
        _set(fields, "source", source)
        if fields.get("sequence") is None:
            raise BadLine("it has no sequence, and --source needs one in every line")
    return fields


def _set(fields: dict[str, Any], name: str, wanted: str) -> None:
    if fields.get(name) is None:
        fields[name] = wanted
    elif fields[name] != wanted:
        raise BadLine(f"its {name} is {str(fields[name])[:100]!r}, not {wanted!r} as --{name} says")


def _shown(text: bytes) -> str:
    return repr(text[:100].decode("utf-8", "replace"))
