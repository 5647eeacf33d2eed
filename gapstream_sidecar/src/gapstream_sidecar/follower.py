"""What the followers of all clients share: what was handed out, what is asked for, and what has to travel with a commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gapstream_sidecar import lifetime
from gapstream_sidecar.carried import decode
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Asked, Deliveries, Key
from gapstream_sidecar.leases import Lease, Session, unknown
from gapstream_sidecar.messages import Origin
from gapstream_sidecar.reporter import Reporter
from gapstream_sidecar.tail import PATIENCE_S, TailReader

INHERIT_WITHIN_S = 5.0
"""So long after an assignment nobody else can own the partition: shorter than any usual session timeout. What is read later
may be what another owner carries at that time, and goes on saying himself."""
HARVEST_S = 0.05
"""What a client commits by itself is reported so long after the application came back for more."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a consumer is followed.

    ``explicit``: deliveries are not followed, commits only send what was reported by hand.
    ``observe_before_commit``: seconds that a commit may wait for its observation.
    ``automatic``: the client commits what it handed out by itself, so what it handed out is received when the application
    comes back.
    ``tail``: finds what former owners said last; None where nothing is committed.
    """

    explicit: bool
    observe_before_commit: float
    max_bytes: int
    automatic: bool = False
    tail: TailReader | None = None


class Follower:
    """Deliveries of one consumer and the reporter that is told of them. Thread-safe; the reporter's lock is taken inside."""

    def __init__(self, reporter: Reporter, complaints: Complaints, terms: Terms) -> None:
        self.reporter = reporter
        self.complaints = complaints
        self.terms = terms
        self._begin()
        lifetime.forks(self)

    def _begin(self) -> None:
        """Nothing was handed out yet."""
        self.lock = threading.RLock()  # a signal handler may commit or close in the middle of a poll
        self.deliveries = Deliveries(self.terms.max_bytes, ripening=self.terms.automatic)
        self._harvesting = False
        """The thread will come for what is ripe."""
        self._leases: dict[Key, Lease] = {}
        self._opened: set[Key] = set()
        """Partitions of which nothing was acknowledged yet since they came."""
        self.owned: frozenset[Key] = frozenset()
        """The assigned partitions, as far as it was heard of them; another object after each change."""
        self._strangers: dict[Key, float] = {}
        """Partitions of which it was not read yet what the last owner's commit carried, and until when it may be read."""

    def after_fork_in_child(self) -> None:
        """The consumer is the parent's, as is what it was handed; another thread may have held the lock."""
        self._begin()

    # ------------------------------------------------------------------------------------------------- deliveries

    def note_replays(self, origins: Iterable[Origin]) -> None:
        """Of what was delivered just now, these are replays."""
        for origin in origins:
            if not self.deliveries.replayed(*origin.key, origin.offset, origin.source, origin.source_offset):
                self.complaints.say(
                    "replays", "gapstream sidecar: too many replayed records wait for their commit; the oldest are not told"
                )

    # --------------------------------------------------------------------------------------------------- what is asked

    def ask(self, commits: Mapping[Key, int], *, named: bool = True) -> None:
        """The application asks for these offsets, by their numbers or not: what they cover is received."""
        with self.lock:
            self._keep_apart()
            self._tell(self.deliveries.ask(commits, named=named))

    def _keep_apart(self) -> None:
        if self.deliveries.ripens_again():
            self._tell(self.deliveries.take_ripe())

    def _tell(self, asked: Iterable[Asked]) -> None:
        for one in asked:
            if one.uncertain:
                self.reporter.add_lost(one.key, one.uncertain)
            if one.received:
                self.reporter.add(one.key, one.received)
            for source, runs in one.sources():
                self.reporter.add(source, runs, via=one.key)

    def riders(self, commits: Mapping[Key, int]) -> dict[Key, str]:
        """What has to travel with these commits."""
        found = {}
        for key, offset in commits.items():
            text = self.reporter.carry(key, offset)
            if text is not None:
                found[key] = text
        return found

    # ------------------------------------------------------------------------------------------------ what comes back

    def outruns(self, key: Key, offset: int) -> bool:
        """Whether a record is further than it was said before."""
        lease = self._leases.get(key)
        return lease is None or offset >= lease.upto

    def outrun(self, handed_out: Mapping[Key, tuple[int, int]]) -> list[Key]:
        """Partitions that were handed out further than was said before: it is said now, and has to be acknowledged.

        ``handed_out``: first offset and stop by partition.
        """
        found: list[Key] = []
        with self.lock:
            for key, (first, stop) in handed_out.items():
                lease = self._leases.get(key)
                if lease is None:
                    lease = self._leases[key] = Lease(first)
                    self._opened.add(key)
                if stop > lease.upto:
                    if not found:
                        self._tell(self.deliveries.take_ripe())
                    lease.outrun(stop)
                    self.reporter.announce(key, lease.ahead)
                    found.append(key)
        return found

    def take_over(self, keys: Iterable[Key]) -> None:
        """These were said to be handed out: where that was for the first time, find out what former owners left unsaid."""
        with self.lock:
            opened = [key for key in keys if key in self._opened and self.reporter.leased(key)]
            self._opened.difference_update(keys)
            if opened and self.terms.tail is not None:
                self.reporter.hold(opened, PATIENCE_S + 1.0)
                self.terms.tail.find(opened, self.reporter.source, self._found)

    def _found(self, key: Key, owners: list[Session]) -> None:
        with self.lock:
            lease = self._leases.get(key)
            lost = unknown(owners, lease.began) if lease is not None else []
        if lost:
            self.reporter.add_lost(key, lost)
        self.reporter.release(key)

    def say_no_more(self, keys: Iterable[Key] | None = None) -> None:
        """Everything that was handed out of these partitions (None: of all) is reported; it will not be handed out further."""
        with self.lock:
            for key in list(self._leases if keys is None else keys):
                lease = self._leases.pop(key, None)
                if lease is not None:
                    self.reporter.announce(key, (lease.began, lease.began))

    def come_back(self) -> None:
        """The application asks for more: what a client commits by itself is received."""
        if self.terms.automatic and not self.terms.explicit:
            with self.lock:
                self._keep_apart()
                if self.deliveries.ripen() and not self._harvesting:
                    self._harvesting = True
                    self.reporter.call_soon(self.harvest, HARVEST_S)

    def harvest(self) -> None:
        """Report what is ripe."""
        try:
            with self.lock:
                self._harvesting = False
                self._tell(self.deliveries.take_ripe())
                for key, lease in self._leases.items():
                    if lease.renew(self.deliveries.stop(key), self.reporter.leased(key) or 0):
                        self.reporter.announce(key, lease.ahead)
        except Exception as error:
            self.reporter.fault("reporting deliveries", error)

    # ------------------------------------------------------------------------------------------------- assignments

    def assigned(self, keys: list[Key], *, by_hand: bool = False, all_others_end: bool = False) -> None:
        """Partitions came: by a rebalance, or by hand, as also from the callback of a rebalance that was told already."""
        until = float("inf") if by_hand else time.monotonic() + INHERIT_WITHIN_S
        self.reporter.close_tails(keys)  # whoever owned them since may be saying already what our commits carried
        with self.lock:
            self.deliveries.assigned(keys, all_others_end=all_others_end)
            self._strangers |= {key: until for key in keys if not (by_hand and key in self.owned)}
            self.owned = frozenset(keys) if all_others_end else self.owned.union(keys)

    def unassigned(self, keys: list[Key] | None = None) -> None:
        """Partitions (None: all) went. A commit that still names them counts until they come back."""
        with self.lock:
            self.deliveries.unassigned(keys)
            gone = self.owned if keys is None else frozenset(keys)
            for key in gone:
                self._strangers.pop(key, None)
            self.owned = self.owned - gone

    def strangers(self, keys: Iterable[Key]) -> list[Key]:
        """If it was not read yet of one of them what the last owner's commit carried: all of which it was not, for one reading."""
        if not self._strangers:
            return []
        now = time.monotonic()
        with self.lock:
            late = [key for key, until in self._strangers.items() if until < now]
            for key in late:
                del self._strangers[key]
            if late:
                self.complaints.say(
                    "inherit", f"gapstream sidecar: it was not to be read in time what the last owner's commits carried of {late}"
                )
            return list(self._strangers) if any(key in self._strangers for key in keys) else []

    def inherit(self, key: Key, offset: int, metadata: str | None) -> None:
        """The group's committed offset and its metadata: what the last owner said and may not have sent is reported."""
        with self.lock:
            self._strangers.pop(key, None)
            self.deliveries.committed(key, max(offset, 0))
            if offset < 0:
                return
            try:
                rows = decode(metadata, self.reporter.sink, key, offset)
            except ValueError as error:
                self.complaints.say("metadata", f"gapstream sidecar: metadata of a commit of {key} can't be read: {error}")
                return
            self.reporter.inherit(rows, key)
