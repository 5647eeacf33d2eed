"""A confluent-kafka consumer that remembers what it handed out, and reports it when the application asks for a commit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.follower import INHERIT_WITHIN_S, Follower, Terms
from gapstream_sidecar.messages import Origin, Run, are_plain, origin_of, records, replays, runs
from gapstream_sidecar.reporter import Reporter
from gapstream_sidecar.standin import StandIn

Callback = Callable[[Any, list[TopicPartition]], Any]

INHERIT_S = 1.0
"""The longest wait for the committed offsets of partitions that were just assigned."""
INHERIT_AGAIN_S = 1.0
"""Before they are asked for again, where that failed."""
_FEW = 16
"""Messages per partition below which looking at each costs less than asking where the consumer stands."""
_MISSES = 3
"""After so many batches in a row in which something was skipped, positions are asked for ..."""
_TRY_EVERY = 32
"""... every so many batches only: transactional topics skip in all of them."""


class ConsumerFollower(Follower):
    """The methods that stand in front of a consumer's own.

    Apart from ``WrappedConsumer``, because a class with ``__getattr__`` pays for it at every attribute (Python 3.11:
    about 150 ns each), and ``poll`` is called for every record.

    ``auto_store``: positions are stored by themselves, so ``commit()`` without arguments means them.
    ``in_group``: there is a group whose committed offsets can be read.
    """

    def __init__(
        self, consumer: Any, reporter: Reporter, complaints: Complaints, terms: Terms, *, auto_store: bool, in_group: bool
    ) -> None:
        super().__init__(reporter, complaints, terms)
        self.consumer = consumer
        self.front = WrappedConsumer(self)
        """What the application holds, and what its callbacks are given."""
        self.in_transactions = False
        """A producer that was wrapped too tells of the offsets that it commits."""
        self._poll = consumer.poll
        self._consume = consumer.consume
        self._explicit = terms.explicit
        self._automatic = terms.automatic and not terms.explicit
        self._auto_store = auto_store
        self._leasing = self._automatic and in_group
        self._reads_committed = in_group and not terms.automatic
        self._attends = self._automatic
        """There is something to do before the next poll: one look at this is all that a poll costs otherwise."""
        self._attends_until = float("-inf")
        self._inherit_at = float("-inf")
        self._rides = True
        self._misses = 0
        self._hears = False
        """All assignments come through here: ``owned`` is everything that can be handed out."""
        self._parts_of: frozenset[Key] = frozenset()
        self._parts: list[TopicPartition] = []
        self._only_topic: str | None = None
        """The topic of all of them."""

    # ------------------------------------------------------------------------------------------------- deliveries

    def poll(self, *args: Any, **kwargs: Any) -> Message | None:
        """As ``Consumer.poll``; the message counts as delivered."""
        if self._attends:
            self._attend()
        message: Message | None = self._poll(*args, **kwargs)
        if message is not None and not self._explicit:
            try:
                self._note(message)
            except Exception as error:
                self.reporter.fault("following a delivery", error)
        return message

    def consume(self, *args: Any, **kwargs: Any) -> list[Message]:
        """As ``Consumer.consume``; the messages count as delivered."""
        if self._attends:
            self._attend()
        owned = self.owned
        messages: list[Message] = self._consume(*args, **kwargs)
        if messages and not self._explicit:
            try:
                self._note_all(messages, steady=self._hears and owned is self.owned)
            except Exception as error:
                self.reporter.fault("following deliveries", error)
        return messages

    def _attend(self) -> None:
        try:
            self.come_back()
            if not self._automatic:  # after an assignment, which may have been made by hand and come with no callback
                self._attends = time.monotonic() < self._attends_until
                self.read_committed(self.owned)
                self._attends = self._attends and bool(self._strangers)
        except Exception as error:
            self.reporter.fault("following deliveries", error)

    def _note(self, message: Message) -> None:
        if message.error() is not None:
            return
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None:
            return
        headers: Any = message.headers()
        with self.lock:
            if not self.deliveries.follows(topic, partition, offset):
                self.deliveries.add(topic, partition, offset, offset + 1)
            origin = origin_of(headers) if headers else None
            if origin is not None:
                self.deliveries.replayed(topic, partition, offset, *origin)
        if self._leasing and self.outruns((topic, partition), offset):
            self._lease({(topic, partition): (offset, offset + 1)})

    def _note_all(self, messages: list[Message], *, steady: bool) -> None:
        """``steady``: all of them are of partitions that are assigned now.

        After a change of the assignment inside the call the client may hand out what it had taken of a partition that went.
        """
        noted, origins = (messages, []) if are_plain(messages) else _sorted_out(messages)
        if not noted:
            return
        with self.lock:
            parts = self._assigned() if steady else []
            if self._nothing_skipped(parts, len(noted)):
                handed_out = {one.key: (one.stop, one.stop) for one in self.deliveries.followed} if self._leasing else {}
            else:
                found = runs(noted, self._only_topic if steady else None)
                for run in found:
                    self.deliveries.add(*run)
                handed_out = _spans(found) if self._leasing else {}
            if origins:
                self.note_replays(origins)
        if handed_out:
            self._lease(handed_out)

    def _lease(self, handed_out: Mapping[Key, tuple[int, int]]) -> None:
        """Under auto-commit: what is handed out must have been said before the client can commit it."""
        keys = self.outrun(handed_out)
        if keys:
            self.reporter.settle(keys, self.terms.observe_before_commit, keys)
            self.take_over(keys)

    def _nothing_skipped(self, parts: list[TopicPartition], count: int) -> bool:
        """Whether the positions in these alone say what was delivered; then it is noted."""
        if not (parts and self.deliveries.followed) or count < _FEW * len(parts):
            return False
        if self._misses >= _MISSES and self._misses % _TRY_EVERY:
            self._misses += 1
            return False
        found = self.consumer.position(parts)
        if self.deliveries.moved({(one.topic, one.partition): one.offset for one in found}, count):
            self._misses = 0
            return True
        self._misses += 1
        return False

    def _assigned(self) -> list[TopicPartition]:
        """``owned``, as the client has it."""
        if self.owned is not self._parts_of:
            self._parts_of = self.owned
            self._parts = [TopicPartition(*key) for key in self.owned]
            topics = {topic for topic, _ in self.owned}
            self._only_topic = topics.pop() if len(topics) == 1 else None
        return self._parts

    def seek(self, partition: TopicPartition) -> None:
        """As ``Consumer.seek``."""
        self.consumer.seek(partition)
        self._follow(lambda: self.deliveries.sought((partition.topic, partition.partition)))

    # ---------------------------------------------------------------------------------------------------- commits

    def commit(self, *args: Any, **kwargs: Any) -> list[TopicPartition] | None:
        """As ``Consumer.commit``, after what it covers was reported: that may take ``observe_before_commit``."""
        message = args[0] if args else kwargs.get("message")
        offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
        carrying: list[TopicPartition] | None = None
        try:
            if message is None or offsets is None:  # both: the consumer refuses that
                carrying = self._observe(message, offsets)
        except Exception as error:
            self.reporter.fault("observing a commit", error)
        if carrying is None:
            answer: list[TopicPartition] | None = self._hand_on(args, kwargs, message, offsets)
            return answer
        named = (*args[2:4], kwargs.get("async"), kwargs.get("asynchronous"))
        asynchronous = next((one for one in named if one is not None), True)
        return self._carry(carrying, bool(asynchronous), args, kwargs)

    def _observe(self, message: Message | None, offsets: list[TopicPartition] | None) -> list[TopicPartition] | None:
        """Report what a commit covers; the offsets to commit in its place, where something has to travel with them."""
        commits = self._asked(message, offsets)
        with self.lock:
            rising = set(self.deliveries.rising(commits))
        self.read_committed(commits)
        if not self._explicit:
            self.ask(commits, named=message is not None or offsets is not None)
        keys = self._scope(message, offsets, commits)
        theirs = {(one.topic, one.partition) for one in offsets or () if one.metadata}
        if message is None and offsets is None:
            theirs |= commits.keys() - rising  # the client commits no position below the last commit, so nothing can travel
        forced = theirs if self._rides and keys is not None else None  # where nothing can travel it does not wait for its turn
        if self.reporter.settle(keys, self.terms.observe_before_commit, forced) or not self._rides:
            return None
        texts = self.riders({key: offset for key, offset in commits.items() if key not in theirs})
        if not texts:
            return None
        if message is not None:
            return [with_metadata(_of_message(message), texts)]
        if offsets is not None:
            return [with_metadata(one, texts) for one in offsets]
        if not self._auto_store:
            return None  # what was stored has its metadata
        return [with_metadata(one, texts) for one in self._positions(rising, commits)] or None

    def _scope(self, message: Message | None, offsets: object, commits: Iterable[Key]) -> list[Key] | None:
        """The partitions whose observations go first; None: all that there are."""
        if message is not None or offsets is not None:
            return list(commits)
        if self._explicit:
            return None
        with self.lock:
            return self.deliveries.keys()

    def _asked(self, message: Message | None, offsets: Iterable[TopicPartition] | None) -> dict[Key, int]:
        """Partition -> one past the last offset that the application calls processed."""
        if message is not None:
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            if message.error() is not None or topic is None or partition is None or offset is None:
                return {}
            return {(topic, partition): offset + 1}
        if offsets is None:
            with self.lock:
                return self.deliveries.positions() if self._auto_store else {}
        commits: dict[Key, int] = {}
        for one in offsets:
            if one.offset >= 0:  # negative: "none", "stored" and the like
                key = (one.topic, one.partition)
                commits[key] = max(one.offset, commits.get(key, 0))
        return commits

    def _positions(self, rising: Iterable[Key], commits: Mapping[Key, int]) -> list[TopicPartition]:
        """What ``commit()`` without arguments commits: what rises above what was committed before, past markers behind it."""
        parts = [TopicPartition(*key) for key in rising]
        found = []
        for one in self.consumer.position(parts):
            stop = commits[one.topic, one.partition]
            with self.lock:
                stands = self.deliveries.is_sure((one.topic, one.partition))
            found.append(TopicPartition(one.topic, one.partition, max(stop, one.offset) if stands else stop))
        return found

    def _hand_on(self, args: Any, kwargs: Any, message: Message | None, offsets: Iterable[TopicPartition] | None) -> Any:
        try:
            return self.consumer.commit(*args, **kwargs)
        except KafkaException:
            self.reporter.close_tails(self._asked(message, offsets))
            raise

    def _carry(self, parts: list[TopicPartition], asynchronous: bool, args: Any, kwargs: Any) -> list[TopicPartition] | None:
        """Commit with metadata; brokers that take none of that size get the application's own words."""
        try:
            answer: list[TopicPartition] | None = self.consumer.commit(offsets=parts, asynchronous=asynchronous)
        except KafkaException as error:
            self.reporter.close_tails((one.topic, one.partition) for one in parts)
            if error.args[0].code() != KafkaError.OFFSET_METADATA_TOO_LARGE:
                raise
            answer = None
        else:
            if answer is None or not any(_is_too_large(one) for one in answer):
                return answer
        self._rides = False
        self.complaints.say("metadata", "gapstream sidecar: the brokers take no metadata of 4 kB with a commit (offset.metadata.max.bytes)")
        return self.consumer.commit(*args, **kwargs)  # type: ignore[no-any-return]  # the consumer is anything with these methods

    def store_offsets(self, *args: Any, **kwargs: Any) -> None:
        """As ``Consumer.store_offsets``: the application asks for what it covers."""
        message = args[0] if args else kwargs.get("message")
        offsets = args[1] if len(args) > 1 else kwargs.get("offsets")
        parts: list[TopicPartition] | None = None
        try:
            if not (self._auto_store or self._explicit) and (message is None) != (offsets is None):
                parts = self._store(message, offsets)
        except Exception as error:
            self.reporter.fault("observing a store of offsets", error)
        if parts is None:
            self.consumer.store_offsets(*args, **kwargs)
        else:
            self.consumer.store_offsets(offsets=parts)

    def _store(self, message: Message | None, offsets: list[TopicPartition] | None) -> list[TopicPartition] | None:
        commits = self._asked(message, offsets)
        self.read_committed(commits)
        self.ask(commits)
        theirs = {(one.topic, one.partition) for one in offsets or () if one.metadata}
        texts = self.riders({key: offset for key, offset in commits.items() if key not in theirs}) if self._rides else {}
        if not texts:
            return None
        return [with_metadata(one, texts) for one in ([_of_message(message)] if message is not None else offsets or ())]

    def read_committed(self, keys: Iterable[Key]) -> None:
        """Read what the last owner's commits carried, before they are overwritten."""
        strangers = self.strangers(keys) if self._reads_committed else []
        if not strangers or time.monotonic() < self._inherit_at:
            return
        try:
            found = self.consumer.committed([TopicPartition(*key) for key in strangers], INHERIT_S)
        except Exception as error:  # metadata of others may be no text; whatever it is, what is asked for is told all the same
            self._inherit_at = time.monotonic() + INHERIT_AGAIN_S
            self.complaints.say("inherit", f"gapstream sidecar: can't read what the last owner's commits carried: {error}")
            return
        for one in found:
            if one.error is None:
                self.inherit((one.topic, one.partition), one.offset, one.metadata)

    def consumer_group_metadata(self) -> Any:
        """As ``Consumer.consumer_group_metadata``; warns where the producer that it is for was not wrapped too."""
        if not (self._explicit or self.in_transactions):
            self.complaints.say(
                "transaction",
                "gapstream sidecar: offsets that a transaction commits are reported only if its producer is wrapped too: "
                "producer = sidecar.wrap(producer)",
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
        on_lost = on_revoke if on_lost is None else on_lost
        self._hears = True
        self.consumer.subscribe(
            topics, on_assign=self._beginning(on_assign), on_revoke=self._ending(on_revoke), on_lost=self._ending(on_lost)
        )

    def assigned(self, keys: list[Key], *, by_hand: bool = False, all_others_end: bool = False) -> None:
        """As ``Follower.assigned``; the next polls ask for what is not known yet, as long as that is of use."""
        super().assigned(keys, by_hand=by_hand, all_others_end=all_others_end)
        self._hears = True
        if self._reads_committed:
            self._attends, self._attends_until = True, time.monotonic() + INHERIT_WITHIN_S

    def _beginning(self, callback: Callback | None) -> Callback:
        def began(_: Any, partitions: list[TopicPartition]) -> None:
            self._follow(lambda: self._take_over(_keys(partitions)))
            if callback is not None:
                callback(self.front, partitions)

        return began

    def _take_over(self, keys: list[Key]) -> None:
        self.assigned(keys)
        self.read_committed(keys)

    def _ending(self, callback: Callback | None) -> Callback:
        """The application's callback, which may still commit; what it does not commit is the next owner's."""

        def ended(_: Any, partitions: list[TopicPartition]) -> None:
            try:
                if callback is not None:
                    callback(self.front, partitions)
            finally:
                self._follow(lambda: self._give_up(_keys(partitions)))

        return ended

    def _give_up(self, keys: list[Key]) -> None:
        """Send what there is to say, so that the next owner has less to say."""
        if self._automatic:
            self.harvest()
            self.say_no_more(keys)
        self.unassigned(keys)
        self.reporter.settle(keys, self.terms.observe_before_commit, keys)

    def assign(self, partitions: list[TopicPartition]) -> None:
        """As ``Consumer.assign``."""
        self.consumer.assign(partitions)
        self._follow(lambda: self.assigned(_keys(partitions), by_hand=True, all_others_end=True))

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """As ``Consumer.incremental_assign``."""
        self.consumer.incremental_assign(partitions)
        self._follow(lambda: self.assigned(_keys(partitions), by_hand=True))

    def unassign(self) -> None:
        """As ``Consumer.unassign``."""
        self.consumer.unassign()
        self._follow(self.unassigned)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        """As ``Consumer.incremental_unassign``."""
        self.consumer.incremental_unassign(partitions)
        self._follow(lambda: self.unassigned(_keys(partitions)))

    def close(self) -> None:
        """As ``Consumer.close``: ``on_revoke`` may still commit.

        With auto-commit the client commits everything that it has handed out: that is received, unless an exception is on
        its way out, which says that something was not processed.
        """
        if self._automatic and sys.exc_info()[1] is None:
            self._attend()
        try:
            self.consumer.close()
        finally:
            self._follow(self._end)

    def _end(self) -> None:
        if self._automatic:
            self.harvest()
            self.say_no_more()
            self.reporter.hurry(None, None)
        self.unassigned()

    def _follow(self, change: Callable[[], None]) -> None:
        try:
            change()
        except Exception as error:
            self.reporter.fault("following an assignment", error)


_FOLLOWED = (
    "assign",
    "close",
    "commit",
    "consume",
    "consumer_group_metadata",
    "incremental_assign",
    "incremental_unassign",
    "poll",
    "seek",
    "store_offsets",
    "subscribe",
    "unassign",
)


class WrappedConsumer(StandIn):
    """Stands in for a ``confluent_kafka.Consumer``: what the follower does not define is the consumer's own."""

    __slots__ = ("_follower", *_FOLLOWED)
    _follower: ConsumerFollower
    _what = "consumer"

    def __init__(self, follower: ConsumerFollower) -> None:
        super().__init__(follower.consumer, (follower, _FOLLOWED))
        object.__setattr__(self, "_follower", follower)

    def __enter__(self) -> WrappedConsumer:
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.close()


def _sorted_out(messages: Sequence[Any]) -> tuple[Sequence[Any], list[Origin]]:
    """The records among them, and which of these are replays."""
    noted = records(messages)
    return noted, replays(noted) if noted else []


def _keys(partitions: Iterable[TopicPartition]) -> list[Key]:
    return [(one.topic, one.partition) for one in partitions]


def _of_message(message: Message) -> TopicPartition:
    """What committing a message commits."""
    topic, partition, offset, epoch = message.topic(), message.partition(), message.offset(), message.leader_epoch()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    if epoch is None:
        return TopicPartition(topic, partition, offset + 1)
    return TopicPartition(topic, partition, offset + 1, leader_epoch=epoch)


def with_metadata(part: TopicPartition, texts: Mapping[Key, str]) -> TopicPartition:
    """The same offset, with what has to travel with it."""
    text = texts.get((part.topic, part.partition))
    if text is None:
        return part
    if part.leader_epoch is None:
        return TopicPartition(part.topic, part.partition, part.offset, text)
    return TopicPartition(part.topic, part.partition, part.offset, text, part.leader_epoch)


def _spans(found: Iterable[Run]) -> dict[Key, tuple[int, int]]:
    """First offset and stop of each partition."""
    spans: dict[Key, tuple[int, int]] = {}
    for topic, partition, first, stop in found:
        low, high = spans.get((topic, partition), (first, stop))
        spans[topic, partition] = (min(low, first), max(high, stop))
    return spans


def _is_too_large(part: TopicPartition) -> bool:
    return part.error is not None and part.error.code() == KafkaError.OFFSET_METADATA_TOO_LARGE
