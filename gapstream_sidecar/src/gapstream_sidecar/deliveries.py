"""What one consumer was handed and has not yet asked to commit. Pure: no Kafka, no lock, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from gapstream_sidecar.runs import RUN_BYTES, RunList

Key = tuple[str, int]
"""Topic and partition."""

_LOOK_EVERY = 4_096
"""New runs between two looks at the memory: 64 KiB, small beside any useful bound."""


class Record(Protocol):
    """The part of ``confluent_kafka.Message`` that is looked at."""

    def error(self) -> object | None:
        """None for a record; else this is an event, not a record."""

    def topic(self) -> str | None:
        """Topic's name."""

    def partition(self) -> int | None:
        """Partition's number."""

    def offset(self) -> int | None:
        """Record's offset."""


class Asked(NamedTuple):
    """What a commit covers for the first time since it was delivered, in one partition."""

    key: Key
    received: RunList
    """Delivered, exactly."""
    uncertain: RunList
    """Ranges in which deliveries were, which ones is no longer known: the memory's bound was reached."""


class _Partition:
    __slots__ = ("active", "delivered", "position", "uncertain")

    def __init__(self) -> None:
        self.delivered = RunList()
        self.uncertain = RunList()
        self.position = 0
        """One past the last record handed out: what ``commit()`` without arguments stands for."""
        self.active = True
        """False once unassigned by hand: a commit that names the partition still counts, until it is assigned again."""


class Deliveries:
    """Offsets delivered and not yet asked for, by partition, exact within ``max_bytes``.

    Beyond that (an application that never commits, on a log full of holes) the lower half of the largest partition
    becomes one range that is known to be uncertain.
    """

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self._max_bytes = max_bytes
        self._partitions: dict[Key, _Partition] = {}
        self._new_runs = 0

    # ------------------------------------------------------------------------------------------------- deliveries

    def message(self, message: Record) -> None:
        """One message of ``poll``; events that are no records change nothing."""
        if message.error() is not None:
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None:
            return
        state = self._partitions.get((topic, partition))
        if state is not None:
            bounds = state.delivered.bounds
            if bounds and bounds[-1] == offset:
                state.position = bounds[-1] = offset + 1
                return
        self._add(topic, partition, offset, offset + 1)

    def batch(self, messages: Sequence[Record]) -> None:
        """The messages of one ``consume``, in their order; exact: offsets between them that were not delivered stay out."""
        topic: str | None = None
        partition: int | None = -1
        first = stop = -1
        for message in messages:
            if message.error() is not None:
                continue
            offset = message.offset()
            if offset == stop and message.partition() == partition and message.topic() == topic:
                stop += 1
                continue
            if topic is not None and partition is not None:
                self._add(topic, partition, first, stop)
            topic, partition = message.topic(), message.partition()
            if offset is None:
                topic = None
                continue
            first, stop = offset, offset + 1
        if topic is not None and partition is not None:
            self._add(topic, partition, first, stop)

    def _add(self, topic: str, partition: int, first: int, stop: int) -> None:
        state = self._partitions.get((topic, partition))
        if state is None:
            state = self._partitions[topic, partition] = _Partition()
        runs = len(state.delivered)
        state.delivered.add(first, stop)
        state.position = stop
        if len(state.delivered) > runs:
            self._new_runs += 1
            if self._new_runs >= _LOOK_EVERY:
                self._new_runs = 0
                self._keep_within_bound()

    def _keep_within_bound(self) -> None:
        total = sum(len(state.delivered) for state in self._partitions.values())
        most = self._max_bytes // RUN_BYTES
        while total > most:
            largest = max(self._partitions.values(), key=lambda state: len(state.delivered))
            half = largest.delivered.take_runs(max(1, len(largest.delivered) // 2))
            total -= len(half)
            largest.uncertain.add(half.bounds[0], half.bounds[-1])

    @property
    def runs(self) -> int:
        """Runs held at present, of all partitions."""
        return sum(len(state.delivered) for state in self._partitions.values())

    @property
    def pending(self) -> bool:
        """Whether anything was delivered and not asked for."""
        return any(state.delivered or state.uncertain for state in self._partitions.values())

    # ------------------------------------------------------------------------------------------------ assignments

    def assigned(self, keys: Iterable[Key], *, all_others_end: bool) -> None:
        """Partitions were assigned by hand: those that had been given up begin anew.

        ``all_others_end``: the assignment is replaced, not added to.
        """
        given = set(keys)
        for key in [key for key, state in self._partitions.items() if key in given and not state.active]:
            del self._partitions[key]
        if all_others_end:
            self.unassigned(key for key in self._partitions if key not in given)

    def unassigned(self, keys: Iterable[Key] | None = None) -> None:
        """Partitions (None: all) were given up by hand: ``commit()`` no longer covers them, a commit that names them does."""
        for key in list(self._partitions if keys is None else keys):
            state = self._partitions.get(key)
            if state is not None:
                state.active = False

    def forget(self, keys: Iterable[Key] | None = None) -> None:
        """Partitions (None: all) went to somebody else, who will be handed what was not committed."""
        for key in list(self._partitions if keys is None else keys):
            self._partitions.pop(key, None)

    # ---------------------------------------------------------------------------------------------------- commits

    def positions(self) -> dict[Key, int]:
        """What ``commit()`` without arguments stands for: one past the last record of each assigned partition."""
        return {key: state.position for key, state in self._partitions.items() if state.active}

    def ask(self, commits: Mapping[Key, int]) -> list[Asked]:
        """The application asks to commit these offsets (one past the last processed): what that covers for the first time."""
        answer = []
        for key, offset in commits.items():
            state = self._partitions.get(key)
            if state is None:
                continue
            received, uncertain = state.delivered.take_below(offset), state.uncertain.take_below(offset)
            if received or uncertain:
                answer.append(Asked(key, received, uncertain))
        return answer
