"""Sends what the outbox holds: one lock, one background thread, one producer; survives brokers that go and processes that fork."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime

from confluent_kafka import KafkaError

from gapstream_sidecar import lifetime
from gapstream_sidecar.carried import UNOBSERVED, Carried, encode
from gapstream_sidecar.client import EndsLike, ProducerLike
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.courier import Courier, Name
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import NOWHERE, UNWATCHED
from gapstream_sidecar.ends import Found
from gapstream_sidecar.outbox import Outbox
from gapstream_sidecar.outgoing import RECEIVED, Outgoing
from gapstream_sidecar.runs import RunList
from gapstream_sidecar.stats import Stats

LINGER_S = 0.1
"""How long offsets wait for company when nobody is in a hurry."""
SKIPPED_LINGER_S = 0.02
"""The same where something was skipped or repeated: somebody waits for the news."""
SUSPENDED_S = 3.0
"""A thread that turns once a second was not turning for that long: the process was stopped, and others may own its partitions."""
ENDS_S = 10.0
"""Logs' ends are not waited for longer than that; whoever asks gives up before."""
AT_ONCE_S = 0.5
"""Acknowledgements come within that where all is well; what has none at the end is asked about then."""
_SLICE_S = 0.05
"""The longest wait inside the client while something is in flight: new offsets can't wake it."""
_IDLE_S = 1.0
"""The longest rest while nothing is in flight: the client's own events (token refresh, errors) are served then."""
_CROWDED_S = 0.01
"""The shortest wait while the payloads in flight leave no room for more."""
Awaited = list[tuple[Outgoing, int]]
"""Partitions and the serial up to which an acknowledgement is awaited."""


class Reporter:
    """Thread-safe front of an ``Outbox``; every method is bounded in time, none raises for reasons outside the process.

    ``make_producer``: called with no arguments for each producer that is needed (the first one, one after a fork, one
    after a fatal error).
    """

    def __init__(
        self,
        make_producer: Callable[[], ProducerLike],
        ends: EndsLike,
        *,
        sink: str,
        app_id: str,
        max_backlog_bytes: int,
        complaints: Complaints,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_producer = make_producer
        self._ends = ends
        self.sink = sink
        self._topic_prefix = f"{app_id}.observations."
        self._max_bytes = max_backlog_bytes
        self._complaints = complaints
        self._clock = clock
        self._begin()
        self._courier.producer = make_producer()
        lifetime.forks(self)

    def _begin(self) -> None:
        """The state of a sidecar that has reported nothing: in a new process everything is new, the lock too."""
        self._changed = threading.Condition()
        self._outbox = Outbox(self.sink, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}", self._max_bytes)
        self._courier = Courier(
            self._outbox, self._topic_prefix, self._complaints, self._clock, too_large=self._was_too_large, answered=self._on_delivery
        )
        self._waiting: dict[Name, Outgoing] = {}
        """Partitions with something queued."""
        self._texts: dict[Key, tuple[int, str]] = {}
        """Version and text of what travels with commits of what simply follows."""
        self._calls: dict[Callable[[], None], float] = {}
        """Calls that were asked for, and when they are due."""
        self._to_ask: list[Key] = []
        """Partitions whose log's end is to be asked for."""
        self._asking_until = float("-inf")
        self._thread: threading.Thread | None = None
        self._turned_at = float("inf")
        """When the thread last took its turn."""
        self._closing = self._closed = False
        self._sent = self._acknowledged = self._failures = self._dropped_late = 0

    # ------------------------------------------------------------------------------------------- what callers use

    @property
    def source(self) -> str:
        """Identity of this sidecar in this process."""
        return self._outbox.source

    def stats(self) -> Stats:
        """Counters as of now."""
        with self._changed:
            outbox = self._outbox
            failed = self._failures + self._courier.failures
            return Stats(self._sent, self._acknowledged, failed, outbox.dropped + self._dropped_late, outbox.size)

    def fault(self, kind: str, error: BaseException) -> None:
        """Count and log a fault of our own that the host must not see."""
        self._failures += 1
        self._complaints.say(kind, f"gapstream sidecar: {kind} failed; the application goes on, its reports may lack offsets", error=error)

    def add(
        self, key: Key, runs: Iterable[tuple[int, int]], status: str = RECEIVED, reason: str | None = None, *, via: Key | None = None
    ) -> None:
        """Report half-open runs of offsets: soon, in the partition's turn. ``via``: headers of that one's records tell them."""
        with self._changed:
            if self._refused(runs):
                return
            self._notice_suspension()
            self._queued(self._outbox.add(key, runs, status, reason, via=via))

    def add_lost(self, key: Key, runs: Iterable[tuple[int, int]]) -> None:
        """Report that it is not known what happened in these half-open runs."""
        self.add(key, runs, UNOBSERVED)

    def inherit(self, rows: Iterable[Carried], about: Key) -> None:
        """Report what another owner said and may not have sent; of our own rows everything is here already.

        ``about``: the partition whose commit they travelled with.
        """
        with self._changed:
            for row in rows:
                if not (row.source.startswith(self._outbox.source) or self._refused(row.runs)):
                    self._queued(self._outbox.add_carried(row, about))

    def settle(self, keys: Iterable[Key] | None, timeout: float, forced: Collection[Key] | None = ()) -> bool:
        """Send what travels with the commits of these partitions (None: of all), as far as it is its turn, and wait for it.

        ``forced``: partitions whose turn it always is (None: all). For the others nobody waits while commits follow each other
        closely: what is not acknowledged travels with them, and a wait for each partition once a second would add up.
        Returns whether everything is acknowledged. A partition whose last acknowledgement did not come in time is not
        waited for until one comes: a topic that does not exist yet must not slow down every commit.
        """
        with self._changed:
            states, awaited = self._hurry(keys, forced)
            self.wait(awaited, timeout)
            return all(state.idle for state in states)

    def hurry(self, keys: Iterable[Key] | None, forced: Collection[Key] | None = ()) -> Awaited:
        """The first half of ``settle``: what there is to wait for."""
        with self._changed:
            return self._hurry(keys, forced)[1]

    def wait(self, awaited: Awaited, timeout: float) -> None:
        """The second half of ``settle``: wait for these acknowledgements, and give up waiting where they don't come in time."""
        with self._changed:
            self._await(awaited, timeout)
            for state, _ in awaited:  # only those that were not acknowledged are left in it
                state.slow = True

    def carry(self, key: Key, offset: int, parked: Collection[Carried] = ()) -> str | None:
        """What has to travel with a commit of ``offset``: of this partition, what its records' headers tell, and ``parked``.

        None: nothing.
        """
        with self._changed:
            outbox = self._outbox
            states = [one for one in outbox.carried_by(key) if not one.idle and not one.unknown]
            if not states and not parked:
                self._texts.pop(key, None)
                return None
            plain = len(states) == 1 and states[0].via is None and not parked and states[0].ends_at(offset)
            if plain:
                version, text = self._texts.get(key, (-1, ""))
                if version == states[0].version:
                    return text
            text, untold = encode(self.sink, (*(row for one in states for row in outbox.rows(one)), *parked), key, offset)
            if untold:
                self._complaints.say(
                    "room",
                    f"gapstream sidecar: a commit of {key} has no room for what headers of replayed records tell of {', '.join(untold)}: "
                    "if this process is killed now, records that were replayed stay missing",
                )
            if plain:
                self._texts[key] = (states[0].version, text)
            return text

    def park(self, key: Key, runs: RunList, *, via: Key | None = None) -> Carried:
        """What a transaction would make received, under a number of its own; ``unpark`` it when the transaction is committed."""
        with self._changed:
            return self._outbox.park(key, runs, via=via)

    def unpark(self, row: Carried, about: Key) -> None:
        """Report it."""
        with self._changed:
            if not self._refused(row.runs):
                self._queued(self._outbox.unpark(row, about))

    def announce(self, key: Key, ahead: tuple[int, int]) -> None:
        """Say with the partition's next observation how far it may be handed out; see ``leases``."""
        with self._changed:
            if not self._closed:
                self._queued(self._outbox.announce(key, ahead))

    def leased(self, key: Key) -> int | None:
        """How far it may be handed out by what is acknowledged; None where nobody watches."""
        with self._changed:
            state = self._outbox.of(key)
            return None if state.unknown else state.leased

    def hold(self, keys: Iterable[Key], seconds: float) -> None:
        """Send nothing more about these partitions for so long, or until the hold is over."""
        with self._changed:
            for key in keys:
                self._outbox.of(key).held_until = self._clock() + seconds

    def release(self, key: Key) -> None:
        """The hold is over."""
        with self._changed:
            self._outbox.of(key).held_until = float("-inf")
            self._changed.notify_all()

    def close_tails(self, keys: Iterable[Key]) -> None:
        """The commits of these failed, so others may own the partitions: what comes now is another observation."""
        with self._changed:
            for key in keys:
                self._outbox.close_tails(key)

    def call_soon(self, call: Callable[[], None], seconds: float) -> None:
        """Have the thread call ``call`` in so many seconds, unless it will do so already."""
        with self._changed:
            if call not in self._calls and not self._closed:
                self._calls[call] = self._clock() + seconds
                self._ensure_running()
                self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Send everything now and wait; whether everything reported before the call is acknowledged."""
        for call in list(self._calls):
            call()
        with self._changed:
            for state in list(self._courier.failed.values()):
                state.retry_at = self._clock()
            self._hurry(None, None)
            states = [(state, state.serial) for state in self._outbox.all() if not state.idle]
            return self._await(states, timeout)

    def close(self, timeout: float) -> None:
        """Flush, then end the thread and the producer. May be called again.

        What nobody watches is not waited for. Where that can't be known, it is.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
        at_once = min(AT_ONCE_S, timeout / 4)
        flushed = self.flush(at_once)
        if not flushed and timeout > 0:
            with self._changed:
                left = list(dict.fromkeys(state.key for state in self._outbox.all() if not state.idle))
            self._find_ends(left, self._give_up_unwatched)
            flushed = self.flush(timeout / 2 - at_once) or self._flush_held(timeout / 2)
        with self._changed:
            self._closed = True
            if not flushed:
                self._dropped_late += self._outbox.unacknowledged()
                self._complaints.say(
                    "close",
                    f"gapstream sidecar closed with {self._outbox.unacknowledged()} offsets unreported after {timeout:g} s: "
                    "if watched, they will be told as missing unless a commit has taken them along or somebody is handed them again",
                )
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)
        self._courier.end()
        lifetime.has_ended(self)

    def _give_up_unwatched(self, ends: dict[Key, int | None]) -> None:
        """Nobody is told what is left of unwatched topics, nor what headers tell of partitions that are not there."""
        with self._changed:
            for key, end in ends.items() if not self._closed else ():
                states, given_up = self._outbox.about(key), 0
                if end == UNWATCHED:
                    given_up = sum(map(self._outbox.give_up, states))
                elif end == NOWHERE:
                    given_up = sum(map(self._outbox.give_up_doubted, states))
                if given_up:
                    self._complaints.say(
                        "unwatched",
                        f"gapstream sidecar closed with {given_up} offsets of {key} unreported, which nobody watches: "
                        f"{self._topic_prefix}{key[0]} has no partition {key[1]}, or is not there",
                    )
                for state in states:
                    if state.idle:
                        self._courier.failed.pop(state.name, None)
            self._changed.notify_all()

    def _flush_held(self, timeout: float) -> bool:
        """What is held for the sake of order goes now, or never."""
        with self._changed:
            for state in self._outbox.all():
                state.held_until = float("-inf")
                state.log_end.answered(None, self._clock())
        return self.flush(timeout)

    # ---------------------------------------------------------------------------------------- inside, lock is held

    def _refused(self, runs: Iterable[tuple[int, int]]) -> bool:
        if self._closed:
            self._dropped_late += sum(stop - first for first, stop in runs)
            self._complaints.say("closed", "gapstream sidecar: offsets were reported after close(); close it after the consumer")
        return self._closed

    def _notice_suspension(self) -> None:
        """A process that was stopped may have lost its partitions, and another may have reported what its commits carried."""
        if self._clock() - self._turned_at > SUSPENDED_S:
            self._turned_at = self._clock()
            for state in self._waiting.values():
                state.tails.clear()

    def _queued(self, state: Outgoing) -> None:
        if state.is_waiting() and state.name not in self._waiting:
            state.since = self._clock()
            self._waiting[state.name] = state
            self._changed.notify_all()
        self._ensure_running()

    def _ensure_running(self) -> None:
        if self._closed:
            return
        if self._courier.producer is None and self._clock() >= self._courier.renew_at:
            self._courier.producer = self._make_producer()
        if self._thread is None:
            self._turned_at = self._clock()
            lifetime.ends(self)
            self._thread = threading.Thread(target=self._run, name="gapstream-sidecar", daemon=True)
            self._thread.start()

    def _due(self, state: Outgoing) -> float:
        """When the partition's queue is sent by itself."""
        linger = SKIPPED_LINGER_S if state.pace.skipped else LINGER_S
        return max(state.since + linger, state.pace.allowed_at(), state.kept_until)

    def _hurry(self, keys: Iterable[Key] | None, forced: Collection[Key] | None) -> tuple[list[Outgoing], Awaited]:
        """Send what is queued without linger where it is the partition's turn: what is not settled, and what to wait for."""
        found = self._outbox.all() if keys is None else [state for key in keys for state in self._outbox.carried_by(key)]
        states = [state for state in found if not state.idle]
        awaited: Awaited = []
        if not states or self._closed:
            return states, awaited
        self._ensure_running()
        now = self._clock()
        sent = self._sent
        for state in states:
            must = forced is None or state.carrier in forced
            if not (must or state.pace.allowed_at() <= now):
                continue
            waits = must or state.pace.rested(now)
            state.urgent = state.serial
            self._send(state)
            if waits and not state.slow and state.kept_until <= now:
                awaited.append((state, state.serial))
        if self._sent != sent:  # or the thread would come for nothing, and take the interpreter from the application
            self._changed.notify_all()
        return states, awaited

    def _await(self, awaited: Awaited, timeout: float) -> bool:
        """Wait until each partition is settled up to its serial, dropping those from the list that are."""

        def done() -> bool:
            while awaited and awaited[-1][0].settled(awaited[-1][1]):
                awaited.pop()
            return not awaited or self._closed

        if timeout > 0:
            self._changed.wait_for(done, timeout)
        awaited[:] = [(state, serial) for state, serial in awaited if not state.settled(serial)]
        return not awaited

    def _send(self, state: Outgoing) -> None:
        """Put the partition's next observation in flight, if it may be."""
        now = self._clock()
        if state.in_flight is not None or not state.is_waiting() or state.held_until > now or not self._outbox.may_send():
            return
        if self._outbox.doubts(state, now) and self._asks_end(state, now):
            return
        if not state.is_waiting():  # it was dropped
            return
        self._outbox.launch(state, datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), now)
        state.since = now
        if not state.is_waiting():
            self._waiting.pop(state.name, None)
        self._sent += 1
        self._courier.hand_over(state)

    def _asks_end(self, state: Outgoing, now: float) -> bool:
        """Have the log's end asked for, from the thread: nobody's commit or poll does that. Whether an answer is waited for."""
        log_end = state.log_end
        if log_end.awaited_until > now:
            return True
        if log_end.asked_until > float("-inf"):  # no answer, not even that there is none
            self._outbox.check(state.key, None, now)
            return self._outbox.doubts(state, now)
        log_end.asked_until = now + ENDS_S
        self._to_ask.append(state.key)
        self.call_soon(self._ask_ends, 0.0)
        return True

    def _ask_ends(self) -> None:
        with self._changed:
            now = self._clock()
            if self._asking_until > now or not self._to_ask:
                return
            keys, self._to_ask, self._asking_until = self._to_ask, [], now + ENDS_S
        self._find_ends(keys, self._found_ends)

    def _find_ends(self, keys: list[Key], found: Found) -> None:
        try:
            self._ends.find(keys, found)
        except RuntimeError:  # no thread can be started any more: the interpreter ends
            found(dict.fromkeys(keys))

    def _found_ends(self, ends: dict[Key, int | None]) -> None:
        with self._changed:
            self._asking_until = float("-inf")
            now = self._clock()
            for key, end in ends.items():
                if end is None:
                    self._complaints.say(
                        "unchecked",
                        f"gapstream sidecar: it is not known where the log of {key} ends: headers of replayed records are believed",
                    )
                if self._outbox.check(key, end, now):
                    self._complaints.say(
                        "nowhere", f"gapstream sidecar: records say they are replays from {key}, which nobody watches: that is not reported"
                    )
            if self._to_ask:
                self.call_soon(self._ask_ends, 0.0)
            self._changed.notify_all()

    def _was_too_large(self, state: Outgoing) -> None:
        self._waiting[state.name] = state
        self._send(state)

    # -------------------------------------------------------------------------------------------------- the thread

    def _on_delivery(self, state: Outgoing, generation: int, error: KafkaError | None, _message: object) -> None:
        """The client's answer; called from ``poll``, so by the thread alone."""
        with self._changed:
            if generation != self._courier.generation or self._closed or state.in_flight is None:
                return
            self._courier.handed_over -= 1
            if error is not None:
                self._courier.refusal(state, error)
                return
            self._acknowledged += 1
            self._outbox.acknowledged(state)
            if state.is_waiting() and state.next_serial <= state.urgent:
                self._send(state)
            self._changed.notify_all()

    def _run(self) -> None:
        me = self._thread
        while True:
            try:
                if not self._turn(me):
                    return
            except Exception as error:
                self.fault("sending", error)
                with self._changed:
                    self._changed.wait(_IDLE_S)

    def _turn(self, me: threading.Thread | None) -> bool:
        """Send what is due, then wait for news; whether to go on."""
        self._call_due()
        with self._changed:
            if self._closed or self._thread is not me:
                return False
            self._notice_suspension()
            now = self._turned_at = self._clock()
            self._send_due(now)
            producer, retired = self._courier.producer, self._courier.retired[:]
            self._courier.retired.clear()
            pause = self._pause(now)
            if not self._courier.handed_over and pause > 0:
                self._changed.wait(pause)
                pause = 0.0
        for one in retired:
            one.purge()
        del retired
        if producer is not None:
            producer.poll(min(pause, _SLICE_S))
        return True

    def _call_due(self) -> None:
        with self._changed:
            now = self._clock()
            due = [call for call, at in self._calls.items() if at <= now]
            for call in due:
                del self._calls[call]
        for call in due:
            call()

    def _send_due(self, now: float) -> None:
        for state in [one for one in self._courier.failed.values() if one.retry_at <= now]:
            self._ensure_running()
            self._courier.hand_over(state)
        for state in [one for one in self._waiting.values() if one.is_waiting() and (self._is_urgent(one, now) or self._due(one) <= now)]:
            self._send(state)
        for name in [one.name for one in self._waiting.values() if not one.is_waiting()]:  # what it waited with was dropped
            del self._waiting[name]

    def _is_urgent(self, state: Outgoing, now: float) -> bool:
        return state.next_serial <= state.urgent and state.kept_until <= now

    def _pause(self, now: float) -> float:
        """Seconds until something is due."""
        dues = [one.retry_at for one in self._courier.failed.values()]
        dues += [self._due(one) for one in self._waiting.values() if one.in_flight is None]
        dues += self._calls.values()
        pause = min(dues, default=now + _IDLE_S) - now
        return min(max(pause, _CROWDED_S), _IDLE_S)

    # ------------------------------------------------------------------------------------------------------- forks

    def after_fork_in_child(self) -> None:
        """The parent's thread is not here, and its producer is of no use: begin anew, on first use."""
        self._courier.leave_to_parent()
        closed = self._closed
        self._begin()
        self._closed = self._closing = closed
