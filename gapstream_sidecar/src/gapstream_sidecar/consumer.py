"""A confluent-kafka consumer that remembers what it handed out, and reports it when the application commits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaException, Message, TopicPartition

from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Deliveries, Key
from gapstream_sidecar.errors import UnsupportedError
from gapstream_sidecar.reporter import Reporter

Callback = Callable[[Any, list[TopicPartition]], Any]

SILENCE_S = 60.0
"""Deliveries for that long without any commit: the application is told that nothing was reported."""


class Follower:
    """The methods that stand in front of a consumer's own, and what they remember.

    Apart from ``WrappedConsumer``, because a class with ``__getattr__`` pays for it at every attribute (Python 3.11:
    about 150 ns each), and ``poll`` is called for every record.

    ``reporter``: takes what was received. ``explicit``: deliveries are not followed, commits only flush.
    ``observe_before_commit``: seconds that a commit may wait for its observation. ``manual``: the configuration is
    known to have auto-commit off.
    """

    def __init__(
        self,
        consumer: Any,
        reporter: Reporter,
        complaints: Complaints,
        *,
        explicit: bool,
        observe_before_commit: float,
        max_bytes: int,
        manual: bool,
    ) -> None:
        self.consumer = consumer
        self.front = WrappedConsumer(self)
        """What the application holds, and what its callbacks are given."""
        self._poll = consumer.poll
        self._consume = consumer.consume
        self._reporter = reporter
        self._complaints = complaints
        self._explicit = explicit
        self._wait_s = observe_before_commit
        self._deliveries = Deliveries(max_bytes)
        self._lock = threading.RLock()  # a signal handler may commit or close in the middle of a poll
        self._auto_store = _stores_by_itself(consumer)
        self._watch = not (explicit or manual)
        self._silent_since: float | None = None

    # ------------------------------------------------------------------------------------------------- deliveries

    def poll(self, *args: Any, **kwargs: Any) -> Message | None:
        """As ``Consumer.poll``; the message counts as delivered."""
        message: Message | None = self._poll(*args, **kwargs)
        if message is not None and not self._explicit:
            try:
                with self._lock:
                    self._deliveries.message(message)
                if self._watch:
                    self._notice_silence()
            except Exception as error:
                self._reporter.fault("following a delivery", error)
        return message

    def consume(self, *args: Any, **kwargs: Any) -> list[Message]:
        """As ``Consumer.consume``; the messages count as delivered."""
        messages: list[Message] = self._consume(*args, **kwargs)
        if messages and not self._explicit:
            try:
                with self._lock:
                    self._deliveries.batch(messages)
                if self._watch:
                    self._notice_silence()
            except Exception as error:
                self._reporter.fault("following deliveries", error)
        return messages

    def _notice_silence(self) -> None:
        """Say once that nothing is reported where nothing is committed: that may be auto-commit, which can't be seen from here."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > SILENCE_S:
            self._watch = False
            self._complaints.say(
                "silence",
                f"gapstream sidecar: records were delivered for {SILENCE_S:g} s and no commit was asked for, so nothing is reported; "
                "set enable.auto.commit to false and commit, or use explicit=True and received()",
            )

    # ---------------------------------------------------------------------------------------------------- commits

    def commit(self, *args: Any, **kwargs: Any) -> list[TopicPartition] | None:
        """As ``Consumer.commit``, after what it covers was reported: that may take ``observe_before_commit``."""
        try:
            self._observe(args, kwargs)
        except Exception as error:
            self._reporter.fault("observing a commit", error)
        answer: list[TopicPartition] | None = self.consumer.commit(*args, **kwargs)
        return answer

    def _observe(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._watch = False
        message = args[0] if args else kwargs.get("message")
        offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
        if message is not None and offsets is not None:
            return  # the consumer refuses that
        if message is None and offsets is None and self._explicit:
            self._reporter.settle(None, self._wait_s)
            return
        with self._lock:
            commits = self._asked(message, offsets)
            asked = self._deliveries.ask(commits)
        for key, received, uncertain in asked:
            if received:
                self._reporter.add(key, received)
            if uncertain:
                self._reporter.add_lost(key, uncertain)
        self._reporter.settle(commits, self._wait_s)

    def _asked(self, message: Message | None, offsets: Iterable[TopicPartition] | None) -> dict[Key, int]:
        """Partition -> one past the last offset that the application calls processed."""
        if message is not None:
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            if message.error() is not None or topic is None or partition is None or offset is None:
                return {}
            return {(topic, partition): offset + 1}
        if offsets is None:
            return self._deliveries.positions() if self._auto_store else {}
        commits: dict[Key, int] = {}
        for one in offsets:
            if one.offset >= 0:  # negative: "none", "stored" and the like
                key = (one.topic, one.partition)
                commits[key] = max(one.offset, commits.get(key, 0))
        return commits

    def store_offsets(self, *args: Any, **kwargs: Any) -> None:
        """Refused: this version follows commits only.

        Raises UnsupportedError, unless the sidecar is explicit.
        """
        if not self._explicit:
            raise UnsupportedError(
                "store_offsets() is not supported in this version of gapstream-sidecar: use commit(), "
                "or make the sidecar with explicit=True and call received()."
            )
        self.consumer.store_offsets(*args, **kwargs)

    def consumer_group_metadata(self) -> Any:
        """As ``Consumer.consumer_group_metadata``; warns, since offsets committed in a transaction are not followed yet."""
        if not self._explicit:
            self._complaints.say(
                "transaction",
                "gapstream sidecar: offsets that are committed in a transaction are not supported in this version and not reported; "
                "use explicit=True and received()",
            )
        return self.consumer.consumer_group_metadata()

    # ------------------------------------------------------------------------------------------------ assignments

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callback | None = None,
        on_revoke: Callback | None = None,
        on_lost: Callback | None = None,
    ) -> None:
        """As ``Consumer.subscribe``; the callbacks are given this consumer, so that they commit through it."""
        callbacks: dict[str, Callback] = {}
        if on_assign is not None:
            callbacks["on_assign"] = self._handed_on(on_assign)
        callbacks["on_revoke"] = self._forgetting(on_revoke)
        callbacks["on_lost"] = self._forgetting(on_revoke if on_lost is None else on_lost)
        self.consumer.subscribe(topics, **callbacks)

    def _handed_on(self, callback: Callback) -> Callback:
        return lambda _, partitions: callback(self.front, partitions)

    def _forgetting(self, callback: Callback | None) -> Callback:
        """The application's callback, which may still commit; what it does not commit is the next owner's."""

        def ended(_: Any, partitions: list[TopicPartition]) -> None:
            try:
                if callback is not None:
                    callback(self.front, partitions)
            finally:
                self._follow(lambda deliveries: deliveries.forget(_keys(partitions)))

        return ended

    def assign(self, partitions: list[TopicPartition]) -> None:
        """As ``Consumer.assign``."""
        self.consumer.assign(partitions)
        self._follow(lambda deliveries: deliveries.assigned(_keys(partitions), all_others_end=True))

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """As ``Consumer.incremental_assign``."""
        self.consumer.incremental_assign(partitions)
        self._follow(lambda deliveries: deliveries.assigned(_keys(partitions), all_others_end=False))

    def unassign(self) -> None:
        """As ``Consumer.unassign``."""
        self.consumer.unassign()
        self._follow(lambda deliveries: deliveries.unassigned())

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        """As ``Consumer.incremental_unassign``."""
        self.consumer.incremental_unassign(partitions)
        self._follow(lambda deliveries: deliveries.unassigned(_keys(partitions)))

    def close(self) -> None:
        """As ``Consumer.close``: ``on_revoke`` may still commit; then what was not committed is forgotten."""
        try:
            self.consumer.close()
        finally:
            self._follow(lambda deliveries: deliveries.forget())

    def _follow(self, change: Callable[[Deliveries], None]) -> None:
        try:
            with self._lock:
                change(self._deliveries)
        except Exception as error:
            self._reporter.fault("following an assignment", error)


_FOLLOWED = (
    "assign",
    "close",
    "commit",
    "consume",
    "consumer_group_metadata",
    "incremental_assign",
    "incremental_unassign",
    "poll",
    "store_offsets",
    "subscribe",
    "unassign",
)


class WrappedConsumer:
    """Stands in for a ``confluent_kafka.Consumer``: what the follower does not define is the consumer's own."""

    __slots__ = ("__weakref__", "_follower", *_FOLLOWED)

    def __init__(self, follower: Follower) -> None:
        object.__setattr__(self, "_follower", follower)
        for name in _FOLLOWED:
            object.__setattr__(self, name, getattr(follower, name))

    _follower: Follower

    def __getattr__(self, name: str) -> Any:
        return getattr(self._follower.consumer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._follower.consumer, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._follower.consumer, name)

    def __dir__(self) -> list[str]:
        return dir(self._follower.consumer)

    def __repr__(self) -> str:
        return f"<gapstream sidecar around {self._follower.consumer!r}>"

    def __enter__(self) -> WrappedConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.close()

    @property
    def __class__(self) -> type:  # isinstance(x, confluent_kafka.Consumer) holds, as it did before wrapping
        return type(self._follower.consumer)

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("the class of a wrapped consumer can't be changed")


def _keys(partitions: Iterable[TopicPartition]) -> list[Key]:
    return [(one.topic, one.partition) for one in partitions]


def _stores_by_itself(consumer: Any) -> bool:
    """Whether ``enable.auto.offset.store`` is on, so that ``commit()`` without arguments means the positions.

    librdkafka takes stored offsets, even none, only where it is off (``rd_kafka_offsets_store``).
    """
    try:
        consumer.store_offsets(offsets=[])
    except KafkaException:
        return True
    return False
