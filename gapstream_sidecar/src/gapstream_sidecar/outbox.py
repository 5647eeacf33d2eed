"""What is to be reported, by partition, within a bound. Pure: no Kafka, no lock, no thread; time is an argument.

Each source has at most one observation of a partition in flight, so what is sent again after a failure is always the last
sequence number: the reader's rule "at or below the last one is a repeat" then never swallows anything. Meanwhile later
offsets gather into few runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gapstream_sidecar.carried import CARRIED_RUNS_MAX, UNOBSERVED, Carried
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import NOWHERE, UNWATCHED, LogEnd, split
from gapstream_sidecar.outgoing import RECEIVED, InFlight, Layer, Outgoing
from gapstream_sidecar.runs import RUN_BYTES, RunList

RUNS_PER_RECORD = 4_096
"""At most 43 bytes a run in JSON: 180 kB, far below the 1 MB that brokers take by default (message.max.bytes)."""
LOST_RUNS = 1_024
"""Runs that remember what was dropped in one partition; beyond, the smallest holes are closed until half are left."""
REASON_CHARACTERS = 256


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
    replayed: dict[Key, dict[Key, Outgoing]] = field(default_factory=dict)
    """Partition -> what headers of its records tell, by the partition that they tell of."""
    log_ends: dict[Key, LogEnd] = field(default_factory=dict)

    def of(self, key: Key, via: Key | None = None) -> Outgoing:
        """The partition's, as it is told by headers of another one's records (or its own), or by itself; made if need be."""
        told = self.partitions if via is None else self.replayed.setdefault(via, {})
        found = told.get(key)
        if found is None:
            source = self.source if via is None else f"{self.source}.{list(self.replayed).index(via) + 1}"
            log_end = self.log_ends.setdefault(key, LogEnd())
            # No more than an eighth of the memory for one observation and its text.
            found = told[key] = Outgoing(key, via, source, log_end, min(RUNS_PER_RECORD, self.max_bytes // 512))
        return found

    def all(self) -> list[Outgoing]:
        """Of all partitions and all that tell of them."""
        return [*self.partitions.values(), *(one for told in self.replayed.values() for one in told.values())]

    def carried_by(self, key: Key) -> list[Outgoing]:
        """What travels with the partition's commits."""
        own = self.partitions.get(key)
        return [*(() if own is None else (own,)), *self.replayed.get(key, {}).values()]

    def about(self, key: Key) -> list[Outgoing]:
        """What is told of the partition."""
        return [one for one in (self.partitions.get(key), *(told.get(key) for told in self.replayed.values())) if one is not None]

    @property
    def empty(self) -> bool:
        """Whether everything is acknowledged."""
        return all(one.idle for one in self.all())

    # ---------------------------------------------------------------------------------------------------- putting

    def add(
        self, key: Key, runs: Iterable[tuple[int, int]], status: str = RECEIVED, reason: str | None = None, *, via: Key | None = None
    ) -> Outgoing:
        """Queue half-open runs; an offset that is queued already with this status and reason is queued once more.

        ``via``: the partition whose replayed records tell it.
        """
        state = self.of(key, via)
        label = (status, None if reason is None else reason[:REASON_CHARACTERS])
        tail = state.tails.get(label)
        before = tail.size if tail is not None else 0
        held = len(tail.runs) if tail is not None else 0
        for first, stop in runs:
            self._pass(state, first, stop)
            if tail is None or len(tail.runs) >= state.run_limit or tail.runs.overlaps(first, stop):
                if tail is not None:
                    self._grew(state, tail.size - before)
                tail = state.tails[label] = self._append(state, *label)
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
            layer = self._append(state, RECEIVED, None)
            state.tails[layer.label] = layer
            self._grew(state, layer.size)
        return state

    def add_carried(self, row: Carried, about: Key) -> Outgoing:
        """Queue what another owner said and could not send; it travelled with a commit of ``about``."""
        via = about if row.replayed else None
        if not row.source:
            return self.add(row.key, row.runs, row.status, row.reason, via=via)
        state = self.of(row.key, via)
        layer = self._append(state, row.status, row.reason, row.runs, (row.source, row.number))
        state.version += 1
        state.pace.skipped = True
        self._grew(state, layer.size)
        if self.size > self.max_bytes:
            self._drop()
        return state

    def park(self, key: Key, runs: RunList, *, via: Key | None = None) -> Carried:
        """What a transaction would make received: an observation with a number of its own, that is not queued yet."""
        state = self.of(key, via)
        state.tails.clear()
        state.number += 1
        return Carried(key, state.source, state.number, RECEIVED, None, runs, state.replayed)

    def unpark(self, row: Carried, about: Key) -> Outgoing:
        """The transaction is committed, and with it an offset in ``about``: queue it under its number, unless a later one was sent.

        What waits before it has travelled with the same commit, so it may as well go under the later number.
        """
        via = about if row.replayed else None
        state = self.of(row.key, via)
        if row.number <= state.launched or any(layer.number == row.number for layer in state.queue):
            return self.add(row.key, row.runs, via=via)
        at = sum(layer.number < row.number for layer in state.queue)
        before = state.queue[at - 1] if at else None
        state.serial += 1
        # What is checked already takes nothing that is not: it may even be what lies beyond the log's end.
        if before is not None and not (state.replayed and before.checked) and _joins(before, row.runs, state.run_limit):
            self._grew(state, -before.size)
            before.number = row.number
        else:
            before = Layer(RECEIVED, None, state.serial, row.number, checked=not state.replayed)
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
        """What is queued and travels with the partition's commits takes no more offsets: later ones get a number of their own."""
        for state in self.carried_by(key):
            state.tails.clear()

    @staticmethod
    def _append(
        state: Outgoing,
        status: str,
        reason: str | None,
        runs: RunList | None = None,
        origin: tuple[str, int] | None = None,
    ) -> Layer:
        state.serial += 1
        state.number += 1
        layer = Layer(status, reason, state.serial, state.number, runs, origin, checked=not state.replayed)
        state.queue.append(layer)
        return layer

    def _grew(self, state: Outgoing, by: int) -> None:
        state.queued_bytes += by
        self.size += by

    # ---------------------------------------------------------------------------------------------------- doubting

    def doubts(self, state: Outgoing, now: float) -> bool:
        """Whether what is to go next is told by headers, and may lie beyond the log's end for all that is known here."""
        log_end = state.log_end
        if state.replayed and log_end.is_nowhere(now):
            self.give_up_doubted(state)
        if not state.replayed or not state.is_waiting():
            return False
        untold = log_end.is_untold(now)
        if untold:
            self._keep_lost_apart(state)
        if state.loses_next:
            return not untold and not log_end.covers(state.lost.bounds[-1], now)
        layer = state.queue[0]
        if not layer.checked and (untold or log_end.covers(layer.runs.bounds[-1], now)):
            self._believe(state, layer)
        return not layer.checked

    def check(self, key: Key, answer: int | None, now: float) -> int:
        """What headers tell of the partition lies below its log's end, as it was asked for, or is said apart from the rest.

        Where nobody watches, and nobody did for a while, it is dropped: it would be held back for ever. Without an answer what is
        to go next is believed, for a while. The number of offsets dropped.
        """
        log_end = self.log_ends.setdefault(key, LogEnd())
        log_end.answered(answer, now)
        if answer in (NOWHERE, UNWATCHED):
            return sum(map(self.give_up_doubted, self.about(key))) if log_end.is_nowhere(now) else 0
        for state in self.about(key):
            if state.replayed and answer is not None:
                self._keep_lost_apart(state)
            for layer in state.doubted[: 1 if answer is None else None]:
                self._believe(state, layer)
        return 0

    def _keep_apart(self, state: Outgoing, layer: Layer) -> None:
        below, beyond = split(layer.runs, state.log_end.end)
        if not below or not beyond:
            return
        before = layer.size
        layer.runs = below
        apart = self._append(state, layer.status, layer.reason, beyond)
        apart.checked = True
        state.version += 1
        self._grew(state, layer.size + apart.size - before)

    def _keep_lost_apart(self, state: Outgoing) -> None:
        below, beyond = split(state.lost, state.log_end.end)
        if beyond:
            self.size += RUN_BYTES * (len(below) - len(state.lost))
            state.lost = below
            apart = self._append(state, UNOBSERVED, None, beyond)
            apart.checked = True
            state.version += 1
            self._grew(state, apart.size)

    def _believe(self, state: Outgoing, layer: Layer) -> None:
        """It may go; what lies beyond the end that is known, be it an old one, goes apart."""
        layer.checked = True
        self._close(state, layer)
        self._keep_apart(state, layer)

    # --------------------------------------------------------------------------------------------------- giving up

    def give_up_doubted(self, state: Outgoing) -> int:
        """Nobody is to be told what headers tell of this partition; the number of offsets."""
        dropped = self.dropped
        given_up = self._forget_lost(state) if state.replayed else 0
        for layer in state.doubted:
            state.queue.remove(layer)
            self._give_up(state, layer)
        return given_up + self.dropped - dropped

    def give_up(self, state: Outgoing) -> int:
        """Nobody is to be told anything of this partition; the number of offsets."""
        dropped = self.dropped
        if state.in_flight is not None:
            self.dropped += state.in_flight.layer.runs.count()
            self._landed(state)
        while state.queue:
            self._give_up(state, state.queue.popleft())
        return self.dropped - dropped + self._forget_lost(state)

    def _forget_lost(self, state: Outgoing) -> int:
        """The number of offsets, which are counted as dropped already."""
        lost, state.lost = state.lost, RunList()
        self.size -= RUN_BYTES * len(lost)
        state.version += 1
        return lost.count()

    def _give_up(self, state: Outgoing, layer: Layer) -> None:
        self._close(state, layer)
        self._grew(state, -layer.size)
        self.dropped += layer.runs.count()
        state.version += 1

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
        payload = _encode(self.sink, state, layer, at)
        state.in_flight = InFlight(layer, payload, 0 if state.ahead is None else state.ahead[1])
        self.size += state.in_flight.size
        self.in_flight_bytes += state.in_flight.size
        return state.in_flight

    def _next_layer(self, state: Outgoing) -> Layer:
        if state.loses_next:
            self._coarsen(state, state.run_limit)
            runs = state.lost
            self._forget_lost(state)
            return Layer(UNOBSERVED, None, state.lost_serial, state.lost_number, runs)
        layer = state.queue.popleft()
        self._close(state, layer)
        self._grew(state, -layer.size)
        limit = max(state.run_limit, CARRIED_RUNS_MAX)
        if len(layer.runs) > limit:
            self._cut(state, layer, limit)
        return layer

    def _cut(self, state: Outgoing, layer: Layer, limit: int) -> None:
        """What is beyond the limit goes last: what is queued in between may have travelled, and keeps its number."""
        rest = layer.runs
        layer.runs = rest.take_runs(limit)
        state.number += 1
        state.queue.append(Layer(layer.status, layer.reason, layer.serial, state.number, rest, checked=layer.checked))
        self._grew(state, state.queue[-1].size)

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
        """The broker won't take a record of that size: the runs go back, smaller records follow, the first under the same number.

        What may have travelled whole must not go in parts, of which a kill would leave the others to nobody: it becomes
        unobserved, coarse enough. False if there is nothing to split.
        """
        flight = state.in_flight
        if flight is None or len(flight.layer.runs) < 2:
            return False
        self._landed(state)
        state.run_limit = len(flight.layer.runs) // 2
        was_lost = flight.layer.number == state.lost_number and flight.layer.status == UNOBSERVED
        if was_lost or state.run_limit < CARRIED_RUNS_MAX:
            self._lose(state, flight.layer)
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
            yield Carried(state.key, "", 0, UNOBSERVED, None, state.lost, state.replayed)
        for layer in state.queue:
            if layer.runs:
                yield self._row(state, layer)

    def _row(self, state: Outgoing, layer: Layer) -> Carried:
        source, number = layer.origin or (state.source, layer.number)
        return Carried(state.key, source, number, layer.status, layer.reason, layer.runs, state.replayed)

    # --------------------------------------------------------------------------------------------------- dropping

    def _drop(self) -> None:
        """Come a little below the bound, so that this is not done for every record; the oldest of the largest goes first.

        A sixty-fourth: of 16 MiB that is four full layers, about 10 ms for the caller that meets it.
        """
        target = self.max_bytes - self.max_bytes // 64
        while self.size > target:
            state = max(self.all(), key=lambda one: one.queued_bytes)
            if not state.queue:
                break
            enough = state.queued_bytes // 2
            while state.queue and state.queued_bytes > enough and self.size > target:
                layer = state.queue.popleft()
                self._close(state, layer)
                self._grew(state, -layer.size)
                self._lose(state, layer)
        for state in sorted(self.all(), key=lambda one: -len(one.lost)):
            if self.size <= target:
                break
            self._coarsen(state, 1)

    def _lose(self, state: Outgoing, layer: Layer) -> None:
        """It is told as unobserved, if it was not to be told so anyway; what headers tell is checked then, as a whole."""
        before = len(state.lost)
        state.lost_serial, state.lost_number = max(layer.serial, state.lost_serial), max(layer.number, state.lost_number)
        state.version += 1
        if layer.status != UNOBSERVED:
            self.dropped += layer.runs.count()
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
        for state in self.all():
            left += sum(layer.runs.count() for layer in state.queue) + state.lost.count()
            if state.in_flight is not None:
                left += state.in_flight.layer.runs.count()
        return left


def _joins(layer: Layer, runs: RunList, limit: int) -> bool:
    """Whether one observation of ours can say both."""
    ours = layer.origin is None and layer.label == (RECEIVED, None)
    return ours and len(layer.runs) + len(runs) <= limit and not any(layer.runs.overlaps(*run) for run in runs)


def _encode(sink: str, state: Outgoing, layer: Layer, at: str) -> bytes:
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
    who, number = layer.origin or (state.source, layer.number)
    said |= {"source": who, "sequence": number, "at": at}
    if state.ahead is not None:
        waiting = [*state.lost.bounds[:1], *(one.runs.bounds[0] for one in state.queue if one.runs)]
        told = max(state.ahead[0], min([state.told, *waiting]))
        said["ahead"] = [told, max(told, state.ahead[1])]
    return json.dumps(said, separators=(",", ":")).encode()
