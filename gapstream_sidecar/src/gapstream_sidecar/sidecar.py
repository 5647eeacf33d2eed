"""The sidecar itself: what an application makes, wraps its consumers with, and closes."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar, cast
from weakref import WeakSet

from confluent_kafka import KafkaException, Producer

from gapstream_sidecar.aio import AioFollower, WrappedAioConsumer
from gapstream_sidecar.client import client_settings
from gapstream_sidecar.clientconf import known
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.consumer import ConsumerFollower, WrappedConsumer
from gapstream_sidecar.ends import EndsReader
from gapstream_sidecar.errors import ConfigurationError, UnsupportedError
from gapstream_sidecar.faustapp import NEEDED, Attachment
from gapstream_sidecar.follower import Terms
from gapstream_sidecar.outgoing import QUARANTINED
from gapstream_sidecar.producer import Transaction, WrappedProducer
from gapstream_sidecar.reporter import Reporter
from gapstream_sidecar.settings import connection_settings, producer_settings
from gapstream_sidecar.stats import Stats
from gapstream_sidecar.tail import TailReader

C = TypeVar("C")

_LAST_OFFSET = 2**63 - 2
"""One past the last must still be a signed 64-bit integer, as Kafka's offsets are."""
_UNKNOWN = object()
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
"""What gapstream's file takes for a name: Kafka's rule for topics."""
_TAKEN = "log"
"""The sink that every topic has."""
_LEAST_BACKLOG = 64 << 10
_OF_CONSUMERS = ("poll", "consume", "commit", "subscribe", "assign", "store_offsets")
_OF_AIO_CONSUMERS = ("getone", "getmany", "commit", "seek_to_committed", "stop")
_OF_PRODUCERS = ("produce", "poll", "send_offsets_to_transaction", "commit_transaction", "abort_transaction")


class Sidecar:
    """Reports to gapstream what this process receives, without ever getting into its way.

    ``conf``: librdkafka's properties, at least ``bootstrap.servers``; a consumer's whole configuration will do.
    ``sink``: name of the sink as it stands in gapstream's file.
    ``app_id``: gapstream's ``app.id``; reports about ``orders`` go to the topic ``<app_id>.observations.orders``.
    ``explicit``: only ``received`` counts; what wrapped consumers deliver and commit does not.
    ``observe_before_commit``: seconds that a commit waits at most for its report to be acknowledged.
    ``max_backlog_bytes``: memory for reports that can't be delivered; the same again for deliveries not yet committed.

    Raises ConfigurationError when it can't work like that. After that nothing of it raises for reasons outside the
    caller's code: faults are counted in ``stats`` and logged once a minute (logger ``gapstream_sidecar``).
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        sink: str,
        app_id: str = "gapstream",
        explicit: bool = False,
        observe_before_commit: float = 0.2,
        max_backlog_bytes: int = 16 << 20,
    ) -> None:
        _check(conf, sink, app_id, observe_before_commit, max_backlog_bytes)
        self._explicit = explicit
        self._observe_before_commit = observe_before_commit
        self._max_backlog_bytes = max_backlog_bytes
        self._complaints = Complaints()
        self._followers: WeakSet[ConsumerFollower] = WeakSet()
        self._in_transactions = False
        self._tail = TailReader(connection_settings(conf), f"{app_id}.observations.", sink, self._complaints)
        try:
            self._reporter = Reporter(
                _producer_maker(conf, max_backlog_bytes, self._complaints),
                EndsReader(connection_settings(conf), f"{app_id}.observations.", self._complaints),
                sink=sink,
                app_id=app_id,
                max_backlog_bytes=max_backlog_bytes,
                complaints=self._complaints,
            )
        except (KafkaException, TypeError, ValueError) as error:
            raise ConfigurationError(f"librdkafka refuses the sidecar's configuration: {error}") from error

    # ------------------------------------------------------------------------------------------------- consumers

    def wrap(self, client: C, conf: Mapping[str, Any] | None = None) -> C:
        """A stand-in for a consumer of confluent-kafka or aiokafka, whose deliveries and commits tell what was received.

        Use it in place of the consumer, from before ``subscribe`` on. A ``confluent_kafka.Producer`` that commits a consumer's
        offsets in its transactions is wrapped too. ``conf``: the consumer's configuration; needed only where the consumer
        can't be asked for it.

        Raises UnsupportedError for other clients, ConfigurationError where it can't be known how the consumer commits.
        """
        kind = type(client)
        if issubclass(kind, (WrappedConsumer, WrappedAioConsumer, WrappedProducer)):
            raise UnsupportedError("This client is wrapped already: every delivery would be reported twice.")
        if all(inspect.iscoroutinefunction(getattr(kind, name, None)) for name in _OF_AIO_CONSUMERS):
            return cast("C", self._wrap_aio(client, conf))
        if not inspect.iscoroutinefunction(getattr(kind, "poll", None)):
            if all(callable(getattr(kind, name, None)) for name in _OF_CONSUMERS):
                return cast("C", self._wrap_consumer(client, conf))
            if all(callable(getattr(kind, name, None)) for name in _OF_PRODUCERS):
                return cast("C", self._wrap_producer(client))
        raise UnsupportedError(
            f"{kind.__module__}.{kind.__qualname__} is not supported by gapstream-sidecar: wrap a confluent_kafka.Consumer or an "
            "aiokafka.AIOKafkaConsumer, or make the sidecar with explicit=True and call received()."
        )

    def _wrap_consumer(self, consumer: Any, conf: Mapping[str, Any] | None) -> WrappedConsumer:
        told = known(consumer, conf)
        if told is None:
            kind = type(consumer)
            raise ConfigurationError(
                f"It can't be seen how this {kind.__module__}.{kind.__qualname__} commits: hand its configuration to wrap() as well, "
                "sidecar.wrap(consumer, conf)."
            )
        terms = self._terms(automatic=told.auto_commit and told.auto_store)
        follower = ConsumerFollower(
            consumer, self._reporter, self._complaints, terms, auto_store=told.auto_store, in_group=bool(told.group)
        )
        follower.in_transactions = self._in_transactions
        self._followers.add(follower)
        return follower.front

    def _wrap_aio(self, consumer: Any, conf: Mapping[str, Any] | None) -> WrappedAioConsumer:
        told = {name: getattr(consumer, f"_{name}", (conf or {}).get(name, _UNKNOWN)) for name in ("group_id", "enable_auto_commit")}
        if _UNKNOWN in told.values():
            kind = type(consumer)
            raise ConfigurationError(
                f"It can't be seen how this {kind.__module__}.{kind.__qualname__} commits: hand its group_id and enable_auto_commit to "
                "wrap() as well, sidecar.wrap(consumer, conf)."
            )
        group = told["group_id"] is not None
        terms = self._terms(automatic=bool(told["enable_auto_commit"]) or not group)
        return AioFollower(consumer, self._reporter, self._complaints, terms, in_group=group).front

    def _wrap_producer(self, producer: Any) -> WrappedProducer:
        self._in_transactions = True
        for follower in self._followers:
            follower.in_transactions = True
        return WrappedProducer(Transaction(producer, lambda: () if self._explicit else list(self._followers), self._reporter.fault))

    def attach(self, app: Any) -> None:
        """Report the events that a Faust application acknowledges; call it before the application starts.

        Raises UnsupportedError for what is no Faust application.
        """
        kind = type(app)
        if not all(hasattr(app, name) for name in NEEDED):
            raise UnsupportedError(f"{kind.__module__}.{kind.__qualname__} is no Faust application: hand a faust.App to attach().")
        Attachment(app, self._reporter, self._complaints, self._terms(automatic=False))

    def _terms(self, *, automatic: bool) -> Terms:
        return Terms(self._explicit, self._observe_before_commit, self._max_backlog_bytes, automatic, self._tail)

    # -------------------------------------------------------------------------------------------------- by hand

    def received(self, topic: str, partition: int, first: int, last: int | None = None) -> None:
        """Report that the sink has received the offsets ``first`` to ``last`` (inclusive; default: ``first`` alone).

        Saying so twice is a duplicate. Returns at once; the report leaves within 100 ms. Raises ValueError or TypeError
        for what can't be offsets.
        """
        key, run = _coordinates(topic, partition, first, first if last is None else last)
        try:
            self._reporter.add(key, [run])
        except Exception as error:
            self._reporter.fault("reporting", error)

    def quarantined(self, topic: str, partition: int, offset: int, reason: str = "tombstone") -> None:
        """Report that the sink was handed this offset and put it aside, for this reason: it is explained, not missing.

        Raises ValueError or TypeError for what can't be an offset.
        """
        key, run = _coordinates(topic, partition, offset, offset)
        if not isinstance(reason, str):
            raise TypeError(f"a reason is text, not {type(reason).__name__}")
        try:
            self._reporter.add(key, [run], QUARANTINED, reason)
        except Exception as error:
            self._reporter.fault("reporting", error)

    # -------------------------------------------------------------------------------------------------- the end

    def flush(self, timeout: float = 5.0) -> bool:
        """Send what was reported and wait, ``timeout`` seconds at most; whether all of it is acknowledged."""
        try:
            return self._reporter.flush(timeout)
        except Exception as error:
            self._reporter.fault("flushing", error)
            return False

    def close(self, timeout: float = 5.0) -> None:
        """Flush and end; close the consumers before. What can't be delivered within ``timeout`` seconds is lost, and logged.

        May be called again. What is reported afterwards is dropped and counted.
        """
        try:
            self._reporter.close(timeout)
        except Exception as error:
            self._reporter.fault("closing", error)

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def stats(self) -> Stats:
        """Counters as of now."""
        return self._reporter.stats()

    @property
    def source(self) -> str:
        """Identity that observations of this process carry: new for every sidecar and in every forked child."""
        return self._reporter.source


def _producer_maker(conf: Mapping[str, Any], max_backlog_bytes: int, complaints: Complaints) -> Callable[[], Any]:
    settings = producer_settings(conf, max_backlog_bytes)
    return lambda: Producer(client_settings(settings, complaints))


def _check(conf: Mapping[str, Any], sink: object, app_id: object, observe_before_commit: float, max_backlog_bytes: int) -> None:
    if not conf.get("bootstrap.servers") and not conf.get("metadata.broker.list"):
        raise ConfigurationError("conf needs bootstrap.servers: the brokers that gapstream uses.")
    for name, value in (("sink", sink), ("app_id", app_id)):
        if not isinstance(value, str) or not _NAME.fullmatch(value) or value in (".", ".."):
            raise ConfigurationError(
                f"{name} must be a name as it stands in gapstream's file (letters, digits, dot, underscore and hyphen, 249 at most), "
                f"not {value!r}."
            )
    if sink == _TAKEN:
        raise ConfigurationError(f"sink {_TAKEN} is taken by the log itself: gapstream's file has no sink of that name.")
    if observe_before_commit < 0:
        raise ConfigurationError("observe_before_commit must not be negative: it is the longest wait of a commit, in seconds.")
    if max_backlog_bytes < _LEAST_BACKLOG:
        raise ConfigurationError(f"max_backlog_bytes must be at least {_LEAST_BACKLOG}: less does not hold one large report.")


def _coordinates(topic: object, partition: int, first: int, last: int) -> tuple[tuple[str, int], tuple[int, int]]:
    """Key and half-open run."""
    if not isinstance(topic, str) or not topic:
        raise ValueError("topic must be a topic's name.")
    number, low, high = operator.index(partition), operator.index(first), operator.index(last)
    if not 0 <= number < 2**31:
        raise ValueError(f"partition must be from 0 to 2147483647, not {number}.")
    if not 0 <= low <= high <= _LAST_OFFSET:
        raise ValueError(f"offsets must rise from 0 on, not [{low}, {high}].")
    return (topic, number), (low, high + 1)
