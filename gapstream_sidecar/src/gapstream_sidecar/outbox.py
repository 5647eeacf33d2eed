"""What is to be reported, by partition, within a bound. Pure: no Kafka, no lock, no thread, no clock.

Each partition has at most one observation in flight, so what is sent again after a failure is always the last sequence
number: the reader's rule "at or below the last one is a repeat" then never swallows anything. Meanwhile later offsets
gather into few runs.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.runs import RUN_BYTES, RunList

RECEIVED = "received"
QUARANTINED = "quarantined"
UNOBSERVED = "unobserved"

RUNS_PER_RECORD = 4_096
"""At most 43 bytes a run in JSON: 180 kB, far below the 1 MB that brokers take by default (message.max.bytes)."""
LAYER_BYTES = 256
"""Memory of a layer beside its runs: object, array, deque slot, dictionary entry (measured: 230)."""
LOST_RUNS = 1_024
"""Runs that remember what was dropped in one partition; beyond, the smallest holes are closed until half are left."""
REASON_CHARACTERS = 256


class Layer:
    """Offsets that one observation will hold: each offset once, so that a second receipt needs another layer."""

    __slots__ = ("reason", "runs", "serial", "status")

    def __init__(self, status: str, reason: str | None, serial: int, runs: RunList | None = None) -> None:
        self.status = status
        self.reason = reason
        self.serial = serial
        """Rises by one with every layer of the partition; 0 for what was dropped and is older than all."""
        self.runs = RunList() if runs is None else runs

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return LAYER_BYTES + RUN_BYTES * len(self.runs) + 4 * len(self.reason or "")


class InFlight:
    """The one observation of a partition that is not yet acknowledged."""

    __slots__ = ("layer", "payload", "sequence")

    def __init__(self, layer: Layer, sequence: int, payload: bytes) -> None:
        self.layer = layer
        self.sequence = sequence
        self.payload = payload

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return self.layer.size + len(self.payload)


class Outgoing:
    """Everything to be reported about one partition."""

    __slots__ = (
        "due",
        "in_flight",
        "key",
        "lost",
        "queue",
        "queued_bytes",
        "retry_at",
        "run_limit",
        "sequence",
        "serial",
        "slow",
        "tails",
        "urgent",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.queue: deque[Layer] = deque()
        self.tails: dict[tuple[str, str | None], Layer] = {}
        """Status and reason -> the queued layer that still takes offsets."""
        self.queued_bytes = 0
        self.lost = RunList()
        """Dropped for want of memory, to be reported as unobserved."""
        self.in_flight: InFlight | None = None
        self.sequence = 0
        self.serial = 0
        """Of the newest layer."""
        self.urgent = -1
        """Layers up to this serial don't wait for company."""
        self.due = 0.0
        """When the queue is sent at the latest; the reporter's clock."""
        self.retry_at = 0.0
        """When an observation that failed is tried again."""
        self.run_limit = RUNS_PER_RECORD
        self.slow = False
        """An acknowledgement did not come in time, and none has come since: commits don't wait for this partition."""

    def is_waiting(self) -> bool:
        """Whether there is something that is not in flight."""
        return bool(self.queue or self.lost)

    def settled(self, serial: int) -> bool:
        """Whether everything up to the layer ``serial`` is acknowledged."""
        if self.in_flight is not None:
            oldest = self.in_flight.layer.serial
        elif self.lost:
            oldest = 0
        elif self.queue:
            oldest = self.queue[0].serial
        else:
            return True
        return oldest > serial


@dataclass(slots=True)
class Outbox:
    """All partitions' outgoing observations.

    ``size`` (bytes, about) stays below ``max_bytes``: what is dropped for that is counted in ``dropped`` (offsets) and
    reported as unobserved as soon as something can be reported.
    """

    sink: str
    source: str
    max_bytes: int
    size: int = 0
    dropped: int = 0
    in_flight_bytes: int = 0
    partitions: dict[Key, Outgoing] = field(default_factory=dict)

    def of(self, key: Key) -> Outgoing:
        """The partition's, made if need be."""
        found = self.partitions.get(key)
        if found is None:
            found = self.partitions[key] = Outgoing(key)
        return found

    @property
    def empty(self) -> bool:
        """Whether everything is acknowledged."""
        return all(one.in_flight is None and not one.is_waiting() for one in self.partitions.values())

    # ---------------------------------------------------------------------------------------------------- putting

    def add(self, key: Key, runs: Iterable[tuple[int, int]], status: str = RECEIVED, reason: str | None = None) -> Outgoing:
        """Queue half-open runs; an offset that is queued already with this status and reason is queued once more."""
        state = self.of(key)
        label = (status, None if reason is None else reason[:REASON_CHARACTERS])
        tail = state.tails.get(label)
        before = tail.size if tail is not None else 0
        for first, stop in runs:
            if tail is None or len(tail.runs) >= RUNS_PER_RECORD or tail.runs.overlaps(first, stop):
                if tail is not None:
                    self._grew(state, tail.size - before)
                state.serial += 1
                tail = Layer(*label, state.serial)
                state.queue.append(tail)
                state.tails[label] = tail
                before = 0
            tail.runs.add(first, stop)
        if tail is not None:
            self._grew(state, tail.size - before)
        if self.size > self.max_bytes:
            self._drop()
        return state

    def add_lost(self, key: Key, runs: Iterable[tuple[int, int]]) -> Outgoing:
        """Queue runs of which it is not known what happened there."""
        state = self.of(key)
        self._lose(state, runs)
        if self.size > self.max_bytes:
            self._drop()
        return state

    def _grew(self, state: Outgoing, by: int) -> None:
        state.queued_bytes += by
        self.size += by

    # ----------------------------------------------------------------------------------------------------- taking

    def may_send(self) -> bool:
        """Whether the payloads in flight leave room for one more: they may take a quarter of the bound."""
        return self.in_flight_bytes == 0 or self.in_flight_bytes < self.max_bytes // 4

    def launch(self, state: Outgoing, at: str) -> InFlight:
        """Make the partition's next observation and have it in flight; there must be something waiting and nothing in flight.

        ``at``: time of the report, RFC 3339.
        """
        layer = self._next_layer(state)
        state.sequence += 1
        payload = _encode(self.sink, self.source, state, layer, at)
        state.in_flight = InFlight(layer, state.sequence, payload)
        self.size += state.in_flight.size
        self.in_flight_bytes += state.in_flight.size
        return state.in_flight

    def _next_layer(self, state: Outgoing) -> Layer:
        if state.lost:  # older than all else, and the horizon should not run ahead of it
            runs = state.lost.take_runs(state.run_limit)
            self.size -= RUN_BYTES * len(runs)
            return Layer(UNOBSERVED, None, 0, runs)
        layer = state.queue[0]
        if len(layer.runs) > state.run_limit:
            part = layer.runs.take_runs(state.run_limit)
            self._grew(state, -RUN_BYTES * len(part))
            self._close(state, layer)
            return Layer(layer.status, layer.reason, layer.serial, part)
        state.queue.popleft()
        self._close(state, layer)
        self._grew(state, -layer.size)
        return layer

    def _close(self, state: Outgoing, layer: Layer) -> None:
        """Have the layer take no more offsets."""
        if state.tails.get((layer.status, layer.reason)) is layer:
            del state.tails[layer.status, layer.reason]

    def acknowledged(self, state: Outgoing) -> None:
        """The observation in flight is in the topic."""
        self._landed(state)
        state.slow = False

    def too_large(self, state: Outgoing) -> bool:
        """The broker won't take a record of that size: the runs go back, smaller records follow under the same number.

        False if there is nothing to split.
        """
        flight = state.in_flight
        if flight is None or len(flight.layer.runs) < 2:
            return False
        self._landed(state)
        state.sequence -= 1  # it was refused, so the number is free
        state.run_limit = len(flight.layer.runs) // 2
        if flight.layer.serial == 0:
            self._lose(state, flight.layer.runs, count=False)
        else:
            state.queue.appendleft(flight.layer)
            self._grew(state, flight.layer.size)
        return True

    def _landed(self, state: Outgoing) -> None:
        flight, state.in_flight = state.in_flight, None
        if flight is not None:
            self.size -= flight.size
            self.in_flight_bytes -= flight.size

    # --------------------------------------------------------------------------------------------------- dropping

    def _drop(self) -> None:
        """Come a little below the bound, so that this is not done for every record; the oldest of the largest goes first.

        A sixty-fourth: of 16 MiB that is four full layers, about 10 ms for the caller that meets it.
        """
        target = self.max_bytes - self.max_bytes // 64
        while self.size > target:
            state = max(self.partitions.values(), key=lambda one: one.queued_bytes)
            if not state.queue:
                break
            enough = state.queued_bytes // 2
            while state.queue and state.queued_bytes > enough and self.size > target:
                layer = state.queue.popleft()
                self._close(state, layer)
                self._grew(state, -layer.size)
                self._lose(state, layer.runs)
        for state in self._largest_lost():
            if self.size <= target:
                break
            self._coarsen(state, 1)

    def _largest_lost(self) -> Iterator[Outgoing]:
        return iter(sorted(self.partitions.values(), key=lambda one: -len(one.lost)))

    def _lose(self, state: Outgoing, runs: Iterable[tuple[int, int]], *, count: bool = True) -> None:
        before = len(state.lost)
        for first, stop in runs:
            state.lost.add(first, stop)
            if count:
                self.dropped += stop - first
        self.size += RUN_BYTES * (len(state.lost) - before)
        if len(state.lost) > LOST_RUNS:
            self._coarsen(state, LOST_RUNS // 2)

    def _coarsen(self, state: Outgoing, most: int) -> None:
        before = len(state.lost)
        state.lost.coarsen(most)
        self.size -= RUN_BYTES * (before - len(state.lost))

    def unacknowledged(self) -> int:
        """Number of offsets that nobody has confirmed yet."""
        left = 0
        for state in self.partitions.values():
            left += sum(layer.runs.count() for layer in state.queue) + state.lost.count()
            if state.in_flight is not None:
                left += state.in_flight.layer.runs.count()
        return left


def _encode(sink: str, source: str, state: Outgoing, layer: Layer, at: str) -> bytes:
    """The observation's JSON: the only place where ranges become closed."""
    topic, partition = state.key
    said: dict[str, object] = {
        "v": 1,
        "sink": sink,
        "topic": topic,
        "partition": partition,
        "runs": [[first, stop - 1] for first, stop in layer.runs],
        "status": layer.status,
    }
    if layer.reason is not None:
        said["reason"] = layer.reason
    said |= {"source": source, "sequence": state.sequence, "at": at}
    return json.dumps(said, separators=(",", ":")).encode()
