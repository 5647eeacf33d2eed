"""What is to be reported, by partition, within a bound. Pure: no Kafka, no lock, no thread; time is an argument.

Each partition has at most one observation in flight, so what is sent again after a failure is always the last sequence
number: the reader's rule "at or below the last one is a repeat" then never swallows anything. Meanwhile later offsets
gather into few runs. A layer's number is its sequence from the day it begins, because it may travel under that number in a
commit's metadata before it is sent.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gapstream_sidecar.carried import Carried
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.ends import NOWHERE
from gapstream_sidecar.pace import Pace
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
END_FRESH_S = 10.0
"""A log's end is asked for again after so long: topics are made anew, and logs lose their ends."""
NOWHERE_S = 15.0
"""So long it must be answered that nobody watches a partition before that is believed: its topic may be on its way to be made."""
ASK_AGAIN_S = 2.0
"""Until then it is asked for again so often, and not before that."""

Label = tuple[str, str | None, bool]
"""Status, reason, and whether it is told by headers of replayed records."""


class Layer:
    """Offsets that one observation will hold: each offset once, so that a second receipt needs another layer."""

    __slots__ = ("checked", "number", "origin", "reason", "replayed", "runs", "serial", "status")

    def __init__(
        self,
        status: str,
        reason: str | None,
        serial: int,
        number: int,
        runs: RunList | None = None,
        origin: tuple[str, int] | None = None,
        *,
        replayed: bool = False,
    ) -> None:
        self.status = status
        self.reason = reason
        self.serial = serial
        """Rises with every layer of the partition: the order of sending."""
        self.number = number
        """Its sequence, if it is ours."""
        self.runs = RunList() if runs is None else runs
        self.origin = origin
        """Source and sequence of another owner who said it first."""
        self.replayed = replayed
        """What headers of replayed records tell, which may be wrong: gapstream rejects the whole of what isn't in the log."""
        self.checked = not replayed

    @property
    def label(self) -> Label:
        """Offsets with the same one may share an observation."""
        return self.status, self.reason, self.replayed

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return LAYER_BYTES + RUN_BYTES * len(self.runs) + 4 * len(self.reason or "")


class InFlight:
    """The one observation of a partition that is not yet acknowledged."""

    __slots__ = ("layer", "leased", "payload")

    def __init__(self, layer: Layer, payload: bytes, leased: int) -> None:
        self.layer = layer
        self.payload = payload
        self.leased = leased

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return self.layer.size + len(self.payload)


class Outgoing:
    """Everything to be reported about one partition."""

    __slots__ = (
        "ahead",
        "ask_at",
        "asked_until",
        "edge",
        "end",
        "end_until",
        "held_until",
        "in_flight",
        "key",
        "launched",
        "leased",
        "lost",
        "lost_number",
        "lost_serial",
        "nowhere_since",
        "number",
        "pace",
        "queue",
        "queued_bytes",
        "retry_at",
        "run_limit",
        "serial",
        "since",
        "slow",
        "tails",
        "told",
        "unknown",
        "urgent",
        "version",
    )

    def __init__(self, key: Key, run_limit: int) -> None:
        self.key = key
        self.queue: deque[Layer] = deque()
        self.tails: dict[Label, Layer] = {}
        """The queued layers that still take offsets."""
        self.queued_bytes = 0
        self.lost = RunList()
        """Dropped for want of memory, to be reported as unobserved in the place of the newest of the layers it was."""
        self.lost_serial = self.lost_number = 0
        self.in_flight: InFlight | None = None
        self.serial = 0
        """Of the newest layer."""
        self.number = 0
        """The last one that was given to a layer."""
        self.launched = 0
        """The last one that was sent."""
        self.urgent = -1
        """Layers up to this serial don't wait for their turn."""
        self.pace = Pace()
        self.edge: int | None = None
        """One past the offset that was told last; what follows it was not skipped to."""
        self.since = 0.0
        """When there was something to send, by the reporter's clock."""
        self.held_until = float("-inf")
        """Nothing is sent before that."""
        self.end, self.end_until = 0, float("-inf")
        """The log's end as it was found, and until when that is believed."""
        self.asked_until = float("-inf")
        """It is being asked for; until then the answer is waited for."""
        self.ask_at = float("-inf")
        """It is not asked for before that."""
        self.nowhere_since: float | None = None
        """Since when every answer is that nobody watches the partition."""
        self.retry_at = 0.0
        """When an observation that failed is tried again."""
        self.run_limit = run_limit
        self.slow = False
        """An acknowledgement did not come in time, and none has come since: commits don't wait for this partition."""
        self.unknown = False
        """The brokers don't know the topic of observations, or this partition of it: nobody watches."""
        self.ahead: tuple[int, int] | None = None
        """Of a consumer that commits by itself: where it was handed out records first, and how far it may be."""
        self.told = 0
        """One past the highest offset that was sent."""
        self.leased = 0
        """How far the last acknowledged observation lets it go."""
        self.version = 0
        """Changes when what is not acknowledged changes in any other way than by one more offset at its end."""

    def is_waiting(self) -> bool:
        """Whether there is something that is not in flight."""
        return bool(self.queue or self.lost)

    @property
    def kept_until(self) -> float:
        """Nothing is sent before that: it is held, or its log's end is being asked for, or will be then."""
        return max(self.held_until, self.asked_until, self.ask_at)

    def is_nowhere(self, now: float) -> bool:
        """Whether it is believed that nobody watches the partition."""
        return self.nowhere_since is not None and now - self.nowhere_since >= NOWHERE_S

    @property
    def idle(self) -> bool:
        """Whether everything is acknowledged."""
        return self.in_flight is None and not self.queue and not self.lost

    @property
    def next_serial(self) -> int:
        """Of what is sent next; there must be something waiting."""
        return self.lost_serial if self.lost else self.queue[0].serial

    def settled(self, serial: int) -> bool:
        """Whether everything up to the layer ``serial`` is acknowledged."""
        if self.in_flight is not None:
            oldest = self.in_flight.layer.serial
        elif self.lost:
            oldest = self.lost_serial
        elif self.queue:
            oldest = self.queue[0].serial
        else:
            return True
        return oldest > serial

    def ends_at(self, offset: int | None) -> bool:
        """Whether the newest layer ends with a run up to ``offset``: as far as a commit of ``offset`` says by itself."""
        return bool(self.queue) and self.queue[-1].runs.bounds[-1:] == array("q", [offset or 0])


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
            # No more than an eighth of the memory for one observation and its text.
            found = self.partitions[key] = Outgoing(key, min(RUNS_PER_RECORD, self.max_bytes // 512))
        return found

    @property
    def empty(self) -> bool:
        """Whether everything is acknowledged."""
        return all(one.idle for one in self.partitions.values())

    # ---------------------------------------------------------------------------------------------------- putting

    def add(
        self, key: Key, runs: Iterable[tuple[int, int]], status: str = RECEIVED, reason: str | None = None, *, replayed: bool = False
    ) -> Outgoing:
        """Queue half-open runs; an offset that is queued already with this status and reason is queued once more.

        ``replayed``: it is what headers of replayed records tell.
        """
        state = self.of(key)
        label = (status, None if reason is None else reason[:REASON_CHARACTERS], replayed)
        tail = state.tails.get(label)
        before = tail.size if tail is not None else 0
        held = len(tail.runs) if tail is not None else 0
        for first, stop in runs:
            self._pass(state, first, stop)
            if tail is None or len(tail.runs) >= state.run_limit or tail.runs.overlaps(first, stop):
                if tail is not None:
                    self._grew(state, tail.size - before)
                state.serial += 1
                state.number += 1
                tail = Layer(*label[:2], state.serial, state.number, replayed=replayed)
                state.queue.append(tail)
                state.tails[label] = tail
                before = held = 0
            tail.runs.add(first, stop)
        if tail is not None:
            self._grew(state, tail.size - before)
            if len(tail.runs) != held or not state.ends_at(state.edge):
                state.version += 1
        if self.size > self.max_bytes:
            self._drop()
        return state

    def _pass(self, state: Outgoing, first: int, stop: int) -> None:
        if state.edge not in (None, first):
            state.pace.skipped = True
        state.edge = stop

    def announce(self, key: Key, ahead: tuple[int, int]) -> Outgoing:
        """Say how far the partition may be handed out, with the next observation: if there is none, with an empty one."""
        state = self.of(key)
        if state.ahead is None or state.ahead[0] != ahead[0]:
            state.told = 0
        state.ahead = ahead
        if not state.is_waiting():
            state.serial += 1
            state.number += 1
            state.queue.append(Layer(RECEIVED, None, state.serial, state.number))
            state.tails[state.queue[-1].label] = state.queue[-1]
            self._grew(state, state.queue[-1].size)
        return state

    def add_carried(self, row: Carried) -> Outgoing:
        """Queue what another owner said and could not send."""
        if not row.source:
            return self.add(row.key, row.runs, row.status, row.reason, replayed=row.replayed)
        state = self.of(row.key)
        state.serial += 1
        state.number += 1
        layer = Layer(row.status, row.reason, state.serial, state.number, row.runs, (row.source, row.number), replayed=row.replayed)
        state.queue.append(layer)
        state.version += 1
        state.pace.skipped = True
        self._grew(state, layer.size)
        if self.size > self.max_bytes:
            self._drop()
        return state

    def park(self, key: Key, runs: RunList, *, replayed: bool = False) -> Carried:
        """What a transaction would make received: an observation with a number of its own, that is not queued yet."""
        state = self.of(key)
        state.tails.clear()
        state.number += 1
        return Carried(key, self.source, state.number, RECEIVED, None, runs, replayed)

    def unpark(self, row: Carried) -> Outgoing:
        """The transaction is committed: queue it under its number, unless a later one was sent.

        What waits before it has travelled with the same commit, so it may as well go under the later number.
        """
        state = self.of(row.key)
        if row.number <= state.launched or any(layer.number == row.number for layer in state.queue):
            return self.add(row.key, row.runs, replayed=row.replayed)
        at = sum(layer.number < row.number for layer in state.queue)
        before = state.queue[at - 1] if at else None
        state.serial += 1
        if before is not None and not row.replayed and _joins(before, row.runs, state.run_limit):
            self._grew(state, -before.size)
            before.number = row.number
        else:
            before = Layer(RECEIVED, None, state.serial, row.number, replayed=row.replayed)
            state.queue.insert(at, before)
        for run in row.runs:
            self._pass(state, *run)
            before.runs.add(*run)
        state.version += 1
        self._grew(state, before.size)
        if self.size > self.max_bytes:
            self._drop()
        return state

    def close_tails(self, key: Key) -> None:
        """What is queued takes no more offsets: later ones get a number of their own."""
        state = self.partitions.get(key)
        if state is not None:
            state.tails.clear()

    def _grew(self, state: Outgoing, by: int) -> None:
        state.queued_bytes += by
        self.size += by

    # ---------------------------------------------------------------------------------------------------- doubting

    def doubts(self, state: Outgoing, now: float) -> bool:
        """Whether what is to go next is told by headers, and may lie beyond the log's end for all that is known here."""
        layer = state.queue[0] if state.queue and not state.lost else None
        if layer is None or layer.checked:
            return False
        if state.is_nowhere(now) and now < state.end_until:
            self.check(state, NOWHERE, now)
            return self.doubts(state, now)
        if layer.runs.bounds[-1] <= state.end and now < state.end_until:
            layer.checked = True
            self._close(state, layer)
        return not layer.checked

    def check(self, state: Outgoing, end: int | None, now: float) -> int:
        """What headers tell lies below the log's end, as it was asked for (None: it can't be), or is said apart from the rest.

        Where that is ``NOWHERE``, and was for a while, it is dropped: it would be held back for ever. The number of offsets dropped.
        """
        dropped = self.dropped
        if end == NOWHERE:
            state.nowhere_since = now if state.nowhere_since is None else state.nowhere_since
            if not state.is_nowhere(now):
                state.ask_at = now + ASK_AGAIN_S
                return 0
            if state.end_until <= now:  # asked just now; else it is remembered
                state.end_until = now + END_FRESH_S
        elif end is not None:
            state.end, state.end_until, state.nowhere_since = end, now + END_FRESH_S, None
        for layer in [one for one in state.queue if not one.checked]:
            layer.checked = True
            self._close(state, layer)
            if end == NOWHERE:
                state.queue.remove(layer)
                state.version += 1
                self._grew(state, -layer.size)
                self.dropped += layer.runs.count()
                continue
            bounds = layer.runs.bounds
            if end is None or bounds[-1] <= end or bounds[0] >= end:
                continue
            if layer.status == UNOBSERVED:  # a span: cut, it would excuse what nobody doubts
                continue
            before = layer.size
            below, beyond = layer.runs.take_below(end), layer.runs
            layer.runs = below
            state.serial += 1
            state.number += 1
            apart = Layer(layer.status, layer.reason, state.serial, state.number, beyond, replayed=True)
            apart.checked = True
            state.queue.append(apart)
            state.version += 1
            self._grew(state, layer.size + apart.size - before)
        return self.dropped - dropped

    # ----------------------------------------------------------------------------------------------------- taking

    def may_send(self) -> bool:
        """Whether the payloads in flight leave room for one more: they may take a quarter of the bound."""
        return self.in_flight_bytes == 0 or self.in_flight_bytes < self.max_bytes // 4

    def launch(self, state: Outgoing, at: str, now: float = 0.0) -> InFlight:
        """Make the partition's next observation and have it in flight; there must be something waiting and nothing in flight.

        ``at``: time of the report, RFC 3339. ``now``: the same by the reporter's clock.
        """
        layer = self._next_layer(state)
        state.launched = layer.number
        state.version += 1
        state.pace.sent(now, more=state.is_waiting())
        state.told = max(state.told, *layer.runs.bounds[-1:], 0)
        payload = _encode(self.sink, self.source, state, layer, at)
        state.in_flight = InFlight(layer, payload, 0 if state.ahead is None else state.ahead[1])
        self.size += state.in_flight.size
        self.in_flight_bytes += state.in_flight.size
        return state.in_flight

    def _next_layer(self, state: Outgoing) -> Layer:
        if state.lost:  # older than all else, and the horizon should not run ahead of it
            self._coarsen(state, state.run_limit)
            runs, state.lost = state.lost, RunList()
            self.size -= RUN_BYTES * len(runs)
            return Layer(UNOBSERVED, None, state.lost_serial, state.lost_number, runs)
        layer = state.queue[0]
        if len(layer.runs) > state.run_limit:
            runs = layer.runs.take_runs(state.run_limit)
            part = Layer(layer.status, layer.reason, layer.serial, layer.number, runs, layer.origin, replayed=layer.replayed)
            self._grew(state, -RUN_BYTES * len(part.runs))
            part.checked = layer.checked
            layer.origin = None  # what its owner said under that number is over with the first part
            self._close(state, layer)
            for later in state.queue:
                later.number += 1
            state.number += 1
            return part
        state.queue.popleft()
        self._close(state, layer)
        self._grew(state, -layer.size)
        return layer

    def _close(self, state: Outgoing, layer: Layer) -> None:
        """Have the layer take no more offsets."""
        if state.tails.get(layer.label) is layer:
            del state.tails[layer.label]

    def acknowledged(self, state: Outgoing) -> None:
        """The observation in flight is in the topic."""
        if state.in_flight is not None:
            state.leased = state.in_flight.leased
        self._landed(state)
        state.slow = state.unknown = False

    def too_large(self, state: Outgoing) -> bool:
        """The broker won't take a record of that size: the runs go back, smaller records follow under the same number.

        False if there is nothing to split.
        """
        flight = state.in_flight
        if flight is None or len(flight.layer.runs) < 2:
            return False
        self._landed(state)
        state.run_limit = len(flight.layer.runs) // 2
        if flight.layer.number == state.lost_number and flight.layer.status == UNOBSERVED:
            self._lose(state, flight.layer, count=False)
        else:
            state.queue.appendleft(flight.layer)
            self._grew(state, flight.layer.size)
        return True

    def _landed(self, state: Outgoing) -> None:
        flight, state.in_flight = state.in_flight, None
        state.version += 1
        if flight is not None:
            self.size -= flight.size
            self.in_flight_bytes -= flight.size

    def rows(self, state: Outgoing) -> Iterator[Carried]:
        """What is not acknowledged, the oldest first, as it travels in a commit's metadata."""
        if state.in_flight is not None and state.in_flight.layer.runs:
            yield self._row(state, state.in_flight.layer)
        if state.lost:
            yield Carried(state.key, "", 0, UNOBSERVED, None, state.lost)
        for layer in state.queue:
            if layer.runs:
                yield self._row(state, layer)

    def _row(self, state: Outgoing, layer: Layer) -> Carried:
        source, number = layer.origin or (self.source, layer.number)
        return Carried(state.key, source, number, layer.status, layer.reason, layer.runs, layer.replayed)

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
                self._lose(state, layer)
        for state in self._largest_lost():
            if self.size <= target:
                break
            self._coarsen(state, 1)

    def _largest_lost(self) -> Iterator[Outgoing]:
        return iter(sorted(self.partitions.values(), key=lambda one: -len(one.lost)))

    def _lose(self, state: Outgoing, layer: Layer, *, count: bool = True) -> None:
        before = len(state.lost)
        state.lost_serial, state.lost_number = layer.serial, layer.number
        state.version += 1
        if count:
            self.dropped += layer.runs.count()
        if not layer.checked:  # a wrong header would have the rest of what is lost rejected; the gap stays open
            return
        for first, stop in layer.runs:
            state.lost.add(first, stop)
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


def _joins(layer: Layer, runs: RunList, limit: int) -> bool:
    """Whether one observation of ours can say both."""
    ours = layer.origin is None and layer.label == (RECEIVED, None, False)
    return ours and len(layer.runs) + len(runs) <= limit and not any(layer.runs.overlaps(*run) for run in runs)


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
    who, number = layer.origin or (source, layer.number)
    said |= {"source": who, "sequence": number, "at": at}
    if state.ahead is not None:
        told = max(state.ahead[0], state.told)
        said["ahead"] = [told, max(told, state.ahead[1])]
    return json.dumps(said, separators=(",", ":")).encode()
