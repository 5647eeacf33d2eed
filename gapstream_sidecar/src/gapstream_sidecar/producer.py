"""A transactional confluent-kafka producer whose offsets are followed.

What a transaction makes received is reported when it is committed: an aborted one has processed nothing. Its observation
travels in the metadata of the offsets, inside the transaction, so that the next owner reports it if this process can't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from gapstream_sidecar import lifetime
from gapstream_sidecar.carried import UNOBSERVED, Carried
from gapstream_sidecar.consumer import ConsumerFollower, with_metadata
from gapstream_sidecar.deliveries import Asked, Key
from gapstream_sidecar.standin import StandIn


@dataclass(slots=True)
class _Pending:
    """What the offsets of one consumer would make received."""

    follower: ConsumerFollower
    asked: list[Asked] = field(default_factory=list)
    parked: dict[Key, list[Carried]] = field(default_factory=dict)
    """By the partition whose offset it travels with."""


class Transaction:
    """What the transaction under way would make received, and how a producer's own methods are stood in for.

    ``followers``: the wrapped consumers of the sidecar, as of now.
    """

    def __init__(
        self, producer: Any, followers: Callable[[], Iterable[ConsumerFollower]], fault: Callable[[str, BaseException], None]
    ) -> None:
        self.producer = producer
        self._followers = followers
        self._fault = fault
        self._pending: dict[int, _Pending] = {}
        lifetime.forks(self)

    def after_fork_in_child(self) -> None:
        """The transaction is the parent's to commit."""
        self._pending = {}

    def send_offsets_to_transaction(self, offsets: Any, *args: Any) -> Any:
        """As ``Producer.send_offsets_to_transaction``; what the offsets cover is received once the transaction is committed."""
        parts = offsets
        try:
            if isinstance(offsets, list):
                parts = self._ask(offsets)
        except Exception as error:
            self._fault("observing offsets of a transaction", error)
        return self._call(self.producer.send_offsets_to_transaction, parts, *args)

    def commit_transaction(self, *args: Any) -> Any:
        """As ``Producer.commit_transaction``; if that fails, nothing is decided yet, unless it fails for good."""
        answer = self._call(self.producer.commit_transaction, *args)
        self._end(_report)
        return answer

    def abort_transaction(self, *args: Any) -> Any:
        """As ``Producer.abort_transaction``; what the offsets covered was not asked for."""
        answer = self._call(self.producer.abort_transaction, *args)
        self._end(_restore)
        return answer

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        """Call the producer's own method.

        After a fatal error nothing can be done with a producer; brokers or its successor abort the transaction.
        """
        try:
            return method(*args)
        except KafkaException as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, KafkaError) and cause.fatal():
                self._end(_restore)
            raise

    def _ask(self, offsets: list[TopicPartition]) -> list[TopicPartition]:
        commits = {(one.topic, one.partition): one.offset for one in offsets if one.offset >= 0}
        texts: dict[Key, str] = {}
        followers = list(self._followers())
        owned = {key for follower in followers for key in follower.owned}
        for follower in followers:
            theirs = owned - follower.owned  # what this one was handed of them and did not commit, their owner is handed again
            mine = {key: offset for key, offset in commits.items() if key not in theirs}
            follower.read_committed(follower.deliveries.known(mine))
            with follower.lock:
                texts |= self._ask_one(follower, mine)
        return [one if one.metadata else with_metadata(one, texts) for one in offsets]

    def _ask_one(self, follower: ConsumerFollower, commits: dict[Key, int]) -> dict[Key, str]:
        pending = self._pending.setdefault(id(follower), _Pending(follower))
        for one in follower.deliveries.ask(commits):
            pending.asked.append(one)
            rows = pending.parked.setdefault(one.key, [])
            if one.uncertain:
                rows.append(Carried(one.key, "", 0, UNOBSERVED, None, one.uncertain))
            if one.received:
                rows.append(follower.reporter.park(one.key, one.received))
            rows += [follower.reporter.park(source, runs, via=one.key) for source, runs in one.sources()]
        found = {key: follower.reporter.carry(key, commits[key], rows) for key, rows in pending.parked.items() if key in commits}
        return {key: text for key, text in found.items() if text is not None}

    def _end(self, how: Callable[[_Pending], None]) -> None:
        pending, self._pending = self._pending, {}
        try:
            for one in pending.values():
                how(one)
        except Exception as error:
            self._fault("ending a transaction", error)


def _report(pending: _Pending) -> None:
    reporter = pending.follower.reporter
    for key, rows in pending.parked.items():
        for row in rows:
            if row.status == UNOBSERVED:
                reporter.add_lost(row.key, row.runs)
            else:
                reporter.unpark(row, key)


def _restore(pending: _Pending) -> None:
    with pending.follower.lock:
        pending.follower.deliveries.restore(pending.asked)


_FOLLOWED = ("abort_transaction", "commit_transaction", "send_offsets_to_transaction")
_PASSED = ("flush", "poll", "produce")
"""Called for every record: bound here, so that they cost nothing."""


class WrappedProducer(StandIn):
    """Stands in for a ``confluent_kafka.Producer``."""

    __slots__ = (*_FOLLOWED, *_PASSED)
    _what = "producer"

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction.producer, (transaction, _FOLLOWED), (transaction.producer, _PASSED))

    def __len__(self) -> int:
        return len(self._client)

    def __bool__(self) -> bool:  # with a length it would be false while nothing is queued
        return True

    def __enter__(self) -> WrappedProducer:
        self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._client.__exit__(*error)
