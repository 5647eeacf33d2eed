"""What one consumer was handed and has not yet asked to commit. Pure: no Kafka, no lock, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from gapstream_sidecar.runs import RUN_BYTES, RunList

Key = tuple[str, int]
"""Topic and partition."""

_LOOK_EVERY = 4_096
"""New runs between two looks at the memory: 64 KiB, small beside any useful bound."""
REPLAYS_MAX = 10_000
"""Runs of replayed records that wait for their commit in one partition: about 1 MB. Beyond, the oldest are forgotten."""


class Replay(NamedTuple):
    """A run of replayed records: where they were delivered, and where they come from."""

    first: int
    stop: int
    source: Key
    shift: int
    """Added to an offset here, it is the offset there."""


class Asked(NamedTuple):
    """What a commit covers for the first time since it was delivered, in one partition."""

    key: Key
    received: RunList
    """Delivered, exactly."""
    uncertain: RunList
    """Ranges in which deliveries were, which ones is no longer known: the memory's bound was reached."""
    replays: list[Replay]
    """Which of the received ones are replays, and of what."""

    def sources(self) -> list[tuple[Key, RunList]]:
        """What the received ones are replays of. What was replayed twice is in two sets of its partition: it is received twice.

        One replay that was handed out twice is one: it is asked for once.
        """
        found: list[tuple[Key, RunList]] = []
        handed_out: dict[tuple[Key, int], RunList] = {}
        for replay in self.replays:
            handed_out.setdefault((replay.source, replay.shift), RunList()).add(replay.first, replay.stop)
        runs = sorted((source, first + shift, stop + shift) for (source, shift), some in handed_out.items() for first, stop in some)
        for source, told in groupby(runs, itemgetter(0)):
            ends: list[tuple[int, int]] = []  # a heap: where each set ends, and its place in what was found
            for _, first, stop in told:
                if ends and ends[0][0] <= first:
                    place = heappop(ends)[1]
                    found[place][1].add(first, stop)
                else:
                    place = len(found)
                    found.append((source, RunList([(first, stop)])))
                heappush(ends, (stop, place))
        return found


class _Partition:
    __slots__ = ("active", "asked", "delivered", "key", "replays", "returned", "stop", "sure", "uncertain")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.delivered = RunList()
        self.uncertain = RunList()
        self.replays: list[Replay] = []
        self.stop = 0
        """One past the last record handed out: what ``commit()`` without arguments stands for."""
        self.sure = False
        """Whether that is where the consumer stands: nobody has moved it since."""
        self.asked = 0
        """The offset asked for last: what the group has committed, if all went well."""
        self.active = True
        """False once the partition was given up: a commit that names it still counts."""
        self.returned = False
        """It was given up and assigned again, and what others were handed meanwhile is not known yet."""


class Deliveries:
    """Offsets delivered and not yet asked for, by partition, exact within ``max_bytes``.

    Beyond that (an application that never commits, on a log full of holes) the lower half of the largest partition
    becomes one range that is known to be uncertain.

    ``ripening``: what is handed out can't be taken before ``ripen`` is called, that is, before the application comes back.
    """

    def __init__(self, max_bytes: int = 16 << 20, *, ripening: bool = False) -> None:
        self._max_bytes = max_bytes
        self._ripening = ripening
        self._fresh: list[tuple[_Partition, int, int]] = []
        self._fresh_replays: list[tuple[_Partition, Replay]] = []
        self._partitions: dict[Key, _Partition] = {}
        self._followed: list[_Partition] | None = None
        self._last = _Partition(("", -1))
        self._new_runs = 0

    # ------------------------------------------------------------------------------------------------- deliveries

    def add(self, topic: str, partition: int, first: int, stop: int) -> None:
        """Records ``[first, stop)`` were handed out, one after the other."""
        state = self._partitions.get((topic, partition))
        if state is None:
            state = self._partitions[topic, partition] = _Partition((topic, partition))
        if state.returned:
            _begin_anew(state)
        if not state.sure:
            state.sure = True
            self._followed = None
        state.stop = stop
        self._last = state
        if self._ripening:
            self._fresh.append((state, first, stop))
        else:
            self._deliver(state, first, stop)

    def follows(self, topic: str, partition: int, offset: int) -> bool:
        """Whether the record is the next one of the partition that was handed out last; then it is added, cheaply."""
        state = self._last
        if offset != state.stop or partition != state.key[1] or topic != state.key[0] or not state.sure or state.returned:
            return False
        state.stop = offset + 1
        if self._ripening:
            self._fresh.append((state, offset, offset + 1))
            return True
        bounds = state.delivered.bounds
        if bounds and bounds[-1] == offset:
            bounds[-1] = offset + 1
        else:
            self._deliver(state, offset, offset + 1)
        return True

    def _deliver(self, state: _Partition, first: int, stop: int) -> None:
        delivered = state.delivered
        bounds = delivered.bounds
        if bounds and bounds[-1] == first:
            bounds[-1] = stop
            return
        runs = len(delivered)
        delivered.add(first, stop)
        if len(delivered) > runs:
            self._new_runs += 1
            if self._new_runs >= _LOOK_EVERY:
                self._new_runs = 0
                self._keep_within_bound()

    def replayed(self, topic: str, partition: int, offset: int, source: Key, source_offset: int) -> bool:
        """The record at ``offset``, which was handed out, is a replay of another; whether all of these could be kept."""
        state = self._partitions[topic, partition]
        replay = Replay(offset, offset + 1, source, source_offset - offset)
        if self._ripening:
            self._fresh_replays.append((state, replay))
            return True
        return self._replayed(state, replay)

    def _replayed(self, state: _Partition, replay: Replay) -> bool:
        if state.replays:
            last = state.replays[-1]
            if (last.stop, last.source, last.shift) == (replay.first, replay.source, replay.shift):
                state.replays[-1] = last._replace(stop=replay.stop)
                return True
        state.replays.append(replay)
        if len(state.replays) <= REPLAYS_MAX:
            return True
        del state.replays[: REPLAYS_MAX // 2]
        return False

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

    # ------------------------------------------------------------------------------------------ without the records

    @property
    def followed(self) -> Sequence[_Partition]:
        """Partitions of which it is known where the consumer stands; the same object as long as they are the same."""
        if self._followed is None:
            self._followed = [state for state in self._partitions.values() if state.sure and state.active]
        return self._followed

    def moved(self, positions: Mapping[Key, int], count: int) -> bool:
        """Whether ``count`` records that were handed out are just what lies between the known positions and these.

        ``positions``: where the consumer stands now in each assigned partition; negative: nowhere yet. If so, they are
        delivered. Each record of a partition moves its position by one or, where offsets were skipped, by more; so if the
        movements sum up to the number of records, none was skipped. That holds only where none of the records is of a
        partition whose position was not known before: such a record would make up for a skipped offset of another one.
        """
        moves = []
        for key, position in positions.items():
            state = self._partitions.get(key)
            if state is None or not state.sure:
                if position >= 0:
                    return False
                continue
            step = position - state.stop
            if step < 0:
                return False
            if step:
                moves.append((state, position))
                count -= step
        if count:
            return False
        for state, position in moves:
            self.add(*state.key, state.stop, position)
        return True

    def moved_to(self, key: Key, offset: int) -> None:
        """The consumer was moved, and ``commit()`` without arguments means that place now."""
        state = self._partitions.get(key)
        if state is not None:
            state.stop = offset

    def sought(self, key: Key) -> None:
        """The consumer was moved: where it stands is not known before it hands out the next record."""
        state = self._partitions.get(key)
        if state is not None:
            state.sure = False
            self._followed = None

    # ------------------------------------------------------------------------------------------------ assignments

    def assigned(self, keys: Iterable[Key], *, all_others_end: bool = False) -> None:
        """Partitions were assigned.

        Of those that had been given up, what is below the group's committed offset was others' meanwhile, and everything is
        where that offset does not get known (``committed``) before the next record is handed out or asked for.
        ``all_others_end``: the assignment is replaced, not added to.
        """
        given = set(keys)
        for key in given:
            self.sought(key)
            state = self._partitions.get(key)
            if state is None:
                continue
            state.stop = 0  # the client forgets what it stored, also where it had the partition
            if state.active:
                continue
            state.active = True
            state.asked = 0
            # Under auto-commit what the application still works on was committed for it: nobody else is handed it.
            state.returned = not self._ripening
        if all_others_end:
            self.unassigned(key for key in self._partitions if key not in given)

    def unassigned(self, keys: Iterable[Key] | None = None) -> None:
        """Partitions (None: all) were given up: ``commit()`` no longer covers them, a commit that names them does."""
        self._followed = None
        for key in list(self._partitions if keys is None else keys):
            state = self._partitions.get(key)
            if state is not None:
                state.active = False

    # ---------------------------------------------------------------------------------------------------- commits

    def committed(self, key: Key, offset: int) -> None:
        """The group's committed offset, as it was found: what was handed out before a return and lies below it is others'."""
        state = self._partitions.get(key)
        if state is None:
            state = self._partitions[key] = _Partition(key)
        state.asked = max(offset, state.asked)
        if state.returned:
            state.returned = False
            _drop_below(state, offset)

    def positions(self) -> dict[Key, int]:
        """What ``commit()`` without arguments stands for: one past the last record of each assigned partition."""
        return {key: state.stop for key, state in self._partitions.items() if state.active and state.stop}

    def keys(self) -> list[Key]:
        """The assigned partitions of which something was handed out."""
        return [key for key, state in self._partitions.items() if state.active]

    def stop(self, key: Key) -> int:
        """One past the last record handed out; 0 where there was none."""
        state = self._partitions.get(key)
        return 0 if state is None else state.stop

    def known(self, keys: Iterable[Key]) -> list[Key]:
        """Those of which it was heard here."""
        return [key for key in keys if key in self._partitions]

    def is_sure(self, key: Key) -> bool:
        """Whether nobody has moved the consumer since the last record."""
        state = self._partitions.get(key)
        return state is not None and state.sure

    def rising(self, commits: Mapping[Key, int]) -> list[Key]:
        """Those for which nothing higher was asked last: without arguments a client commits those alone."""
        states = ((self._partitions.get(key), offset) for key, offset in commits.items())
        return [state.key for state, offset in states if state is not None and offset >= state.asked]

    def ask(self, commits: Mapping[Key, int], *, named: bool = True) -> list[Asked]:
        """The application asks to commit these offsets (one past the last processed): what that covers for the first time.

        ``named``: by their numbers, so that even a lower one is committed.
        """
        for key, offset in commits.items():
            state = self._partitions.get(key)
            if state is not None:
                state.asked = offset if named else max(offset, state.asked)
        if self._fresh:
            self._ripen_below(commits)
        return self._take(commits)

    def _take(self, commits: Mapping[Key, int]) -> list[Asked]:
        answer = []
        for key, offset in commits.items():
            state = self._partitions.get(key)
            if state is None:
                continue
            if state.returned:
                _doubt(state)
            received, uncertain = state.delivered.take_below(offset), state.uncertain.take_below(offset)
            if received or uncertain:
                answer.append(Asked(key, received, uncertain, _take_replays(state, offset) if state.replays else []))
        return answer

    def _ripen_below(self, commits: Mapping[Key, int]) -> None:
        fresh, self._fresh = self._fresh, []
        for state, first, stop in fresh:
            cut = max(first, min(stop, commits.get(state.key, 0)))
            if first < cut:
                self._deliver(state, first, cut)
            if cut < stop:
                self._fresh.append((state, cut, stop))
        replays, self._fresh_replays = self._fresh_replays, []
        for state, replay in replays:
            if replay.first < commits.get(state.key, 0):
                self._replayed(state, replay)
            else:
                self._fresh_replays.append((state, replay))

    def restore(self, asked: Iterable[Asked]) -> None:
        """What was asked for is not asked for after all: the transaction was aborted."""
        for one in asked:
            state = self._partitions.get(one.key)
            if state is None:
                continue
            for first, stop in one.received:
                state.delivered.add(first, stop)
            for first, stop in one.uncertain:
                state.uncertain.add(first, stop)
            state.replays[:0] = one.replays
        self._keep_within_bound()

    # ----------------------------------------------------------------------------------------------------- ripening

    def ripen(self) -> bool:
        """The application came back: what it was handed can be taken now. Whether there is something to take."""
        for state, first, stop in self._fresh:
            self._deliver(state, first, stop)
        for state, replay in self._fresh_replays:
            self._replayed(state, replay)
        ripe = bool(self._fresh)
        self._fresh.clear()
        self._fresh_replays.clear()
        return ripe

    def ripens_again(self) -> bool:
        """Whether something may be ripe already and ripen once more: it has to be taken before, or twice would count as once."""
        return any(state.delivered and first < state.delivered.bounds[-1] for state, first, _ in self._fresh)

    def take_ripe(self) -> list[Asked]:
        """Everything that is ripe."""
        ends = {key: max([0, *state.delivered.bounds[-1:], *state.uncertain.bounds[-1:]]) for key, state in self._partitions.items()}
        return self._take({key: end for key, end in ends.items() if end})


def _begin_anew(state: _Partition) -> None:
    state.returned = False
    state.delivered, state.uncertain, state.replays = RunList(), RunList(), []


def _doubt(state: _Partition) -> None:
    """The partition was given up and came back, and is asked for before it is known where it began again."""
    state.returned = False
    if state.delivered:
        state.uncertain.add(state.delivered.bounds[0], state.delivered.bounds[-1])
    state.delivered, state.replays = RunList(), []


def _drop_below(state: _Partition, offset: int) -> None:
    state.delivered.take_below(offset)
    state.uncertain.take_below(offset)
    _take_replays(state, offset)


def _take_replays(state: _Partition, offset: int) -> list[Replay]:
    """Take out those below ``offset``."""
    taken = [replay._replace(stop=min(replay.stop, offset)) for replay in state.replays if replay.first < offset]
    state.replays = [replay._replace(first=max(replay.first, offset)) for replay in state.replays if replay.stop > offset]
    return taken
