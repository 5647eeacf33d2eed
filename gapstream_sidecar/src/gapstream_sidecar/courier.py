"""Hands observations to a producer, again where that failed, and to another one where it failed for good."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from gapstream_sidecar.client import NOT_WATCHED, ProducerLike
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.outbox import Outbox
from gapstream_sidecar.outgoing import Outgoing

RETRY_S = 1.0
"""Between two attempts for one partition; librdkafka's own retries come before."""
RENEW_S = 5.0
"""After a fatal error of the producer, before a new one takes over."""
Name = tuple[Key, Key | None]
"""Of what is told of a partition, and by which one's headers."""


class Courier:
    """What is in the client's hands. Not thread-safe: the reporter calls it with its lock held.

    ``too_large``: called where an observation was refused for its size and is smaller now. ``answered``: called with the state,
    the generation and the error, if any, by the client's ``poll``; the reporter takes its lock and comes back with it.
    """

    def __init__(
        self,
        outbox: Outbox,
        topic_prefix: str,
        complaints: Complaints,
        clock: Callable[[], float],
        *,
        too_large: Callable[[Outgoing], None],
        answered: Callable[[Outgoing, int, KafkaError | None, Any], None],
    ) -> None:
        self._outbox = outbox
        self._topic_prefix = topic_prefix
        self._complaints = complaints
        self._clock = clock
        self._too_large = too_large
        self._answered = answered
        self.producer: ProducerLike | None = None
        self.failed: dict[Name, Outgoing] = {}
        """Partitions whose observation in flight waits for another attempt."""
        self.handed_over = 0
        """Observations that the client has not answered for."""
        self.failures = 0
        self.generation = 0
        """Of the producer: what is answered for an earlier one changes nothing."""
        self.renew_at = float("-inf")
        """Before that no producer is made."""
        self.retired: list[ProducerLike] = []

    def hand_over(self, state: Outgoing) -> None:
        """Give the client what is in flight."""
        flight, producer = state.in_flight, self.producer
        if flight is None:
            return
        if producer is None:
            state.retry_at = self.renew_at
            self.failed[state.name] = state
            return
        topic, number = state.key
        told = partial(self._answered, state, self.generation)
        try:
            producer.produce(self._topic_prefix + topic, flight.payload, partition=number, on_delivery=told)
        except BufferError as error:
            self._retry(state, error)
        except KafkaException as error:
            self.refusal(state, error.args[0])
        else:
            self.handed_over += 1
            self.failed.pop(state.name, None)

    def refusal(self, state: Outgoing, error: KafkaError) -> None:
        """The observation did not get into the topic (or it is not known): sent again, with the same number."""
        if error.code() == KafkaError._FATAL or error.fatal():
            self.failures += 1
            self._complaints.say("producer", f"gapstream sidecar: its producer failed for good and is replaced: {error}")
            self._renew()
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE and self._outbox.too_large(state):
            self.failures += 1
            self.failed.pop(state.name, None)
            self._too_large(state)
        else:
            state.unknown = error.code() in NOT_WATCHED
            self._retry(state, error)

    def _retry(self, state: Outgoing, error: KafkaError | BufferError) -> None:
        self.failures += 1
        where = f"{self._topic_prefix}{state.key[0]}, partition {state.key[1]}"
        self._complaints.say("produce", f"gapstream sidecar: an observation can't be written to {where}, held back: {error}")
        state.retry_at = self._clock() + RETRY_S
        self.failed[state.name] = state

    def _renew(self) -> None:
        """Retire the producer: what it held goes to the next one. A repeat is harmless, numbers are unchanged."""
        if self.producer is not None:
            self.retired.append(self.producer)
        self.producer = None
        self.generation += 1
        self.handed_over = 0
        self.renew_at = self._clock() + RENEW_S
        for state in self._outbox.all():
            if state.in_flight is not None:
                state.retry_at = self.renew_at
                self.failed[state.name] = state

    def end(self) -> None:
        """Drop what the client holds."""
        if self.producer is not None:
            self.producer.purge()  # or the client would wait for the brokers
        self.producer = None
        self.retired.clear()

    def leave_to_parent(self) -> None:
        """In a forked child: the parent's producers can't be used and can't even be freed."""
        for producer in (self.producer, *self.retired):
            if producer is not None:
                # Freeing it would join threads that exist in the parent only, and hang. One reference too many, for ever.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(producer))
