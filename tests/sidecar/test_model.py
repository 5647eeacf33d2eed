"""Consumers that commit by hand, in any order of calls: what is told is what a naive account of the same calls says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sidecar.client import Client, Key
from tests.sidecar.conftest import Bench, opened_bench
from tests.sidecar.fakes import FakeGroup, FakeTransactions, received

KEYS: list[Key] = [("orders", 0), ("orders", 1), ("events", 0)]
K0, K1 = KEYS[:2]
CONF = {"group.id": "g", "enable.auto.commit": False}
places = st.integers(0, 2)
logs = st.lists(st.sampled_from(["r" * 40, "r" * 17, "r", "r", ".", "m", "e", "rr"]), max_size=14).map("".join)
calls = st.one_of(
    st.tuples(st.just("poll"), st.lists(places, max_size=1)),
    *2 * [st.tuples(st.just("consume"), st.integers(1, 200), st.lists(places, max_size=60))],
    st.tuples(st.just("seek"), places, st.integers(0, 150)),
    st.tuples(st.just("commit")),
    st.tuples(st.just("commit_message"), st.integers(0, 1_000)),
    st.tuples(st.just("commit_offsets"), st.dictionaries(places, st.integers(-2, 20), min_size=1)),
    st.tuples(st.just("rebalance"), st.sampled_from(["assign", "revoke"]), st.sets(places, min_size=1)),
    st.tuples(st.just("others"), places, st.integers(1, 30)),
    st.tuples(st.just("assign"), st.dictionaries(places, st.integers(-1, 120))),
    st.tuples(st.just("pause"), places, st.booleans()),
)


class Account:
    """What was handed out and not yet asked for, and how often each was asked for."""

    def __init__(self) -> None:
        self.open: dict[Key, set[int]] = {key: set() for key in KEYS}
        self.asked = Counter[tuple[Key, int]]()
        self.given_up: set[Key] = set()

    def ask(self, key: Key, stop: int) -> None:
        covered = {offset for offset in self.open[key] if offset < stop}
        self.open[key] -= covered
        self.asked.update((key, offset) for offset in covered)


class Play:
    """One consumer and its account; each method is a call of the application's."""

    def __init__(self, bench: Bench, made: tuple[str, ...], *, auto_store: bool, by_hand: bool, commits: bool) -> None:
        self.group, self.account = FakeGroup(), Account()
        self.inside = Client(dict(zip(KEYS, made, strict=True)), self.group, auto_store=auto_store)
        self.inside.changed = self._changed
        self.sidecar = bench.sidecar()
        self.consumer: Any = self.sidecar.wrap(self.inside, CONF | {"enable.auto.offset.store": auto_store})
        self.auto_store, self.by_hand, self.commits = auto_store, by_hand, commits
        self.messages: list[Any] = []
        self._noted = 0
        if by_hand:
            self.consumer.assign([TopicPartition(*key, 0) for key in KEYS])
        else:
            self.consumer.subscribe(["orders", "events"], on_revoke=self._revoked)
            self.inside.rebalances.append(("assign", KEYS))

    def _changed(self, kind: str, keys: list[Key]) -> None:
        """What others may have been handed meanwhile is theirs."""
        if kind == "revoke":
            self.account.given_up.update(keys)
            return
        for key in self.account.given_up.intersection(keys):
            self.account.given_up.discard(key)
            committed = self.group.committed.get(key, (0, None))[0]
            self.account.open[key] = {offset for offset in self.account.open[key] if offset >= committed}

    def _revoked(self, *_: object) -> None:
        if self.commits:
            self.commit()

    def _took(self, messages: list[Any]) -> None:
        for key, offset in self.inside.handed[self._noted :]:
            self.account.open[key].add(offset)
        self._noted = len(self.inside.handed)
        self.messages += [one for one in messages if one is not None and one.error() is None]

    def poll(self, turns: list[int]) -> None:
        self.inside.turns = list(turns)
        self._took([self.consumer.poll(0)])

    def consume(self, number: int, turns: list[int]) -> None:
        self.inside.turns = list(turns)
        self._took(self.consumer.consume(number, 0))

    def seek(self, place: int, offset: int) -> None:
        if KEYS[place] in self.inside.assigned:
            self.consumer.seek(TopicPartition(*KEYS[place], offset))

    def commit(self) -> None:
        if self.auto_store:
            for key, (offset, _) in self.inside.stored.items():
                self.account.ask(key, offset)
        self.consumer.commit(asynchronous=False)

    def commit_message(self, which: int) -> None:
        mine = [one for one in self.messages if (one.topic(), one.partition()) in self.inside.assigned]
        if mine:
            message = mine[which % len(mine)]
            self.account.ask((message.topic(), message.partition()), message.offset() + 1)
            self._hand_over(message=message)

    def commit_offsets(self, back: dict[int, int]) -> None:
        """So many below where the consumer stands."""
        parts = {KEYS[place]: max(0, self.inside.at.get(KEYS[place], 5) - by) for place, by in back.items()}
        named = {key: offset for key, offset in parts.items() if key in self.inside.assigned}
        if named:
            for key, offset in named.items():
                self.account.ask(key, offset)
            self._hand_over(offsets=[TopicPartition(*key, offset) for key, offset in named.items()])

    def _hand_over(self, **what: Any) -> None:
        if self.auto_store:
            self.consumer.commit(**what, asynchronous=False)
        else:
            self.consumer.store_offsets(**what)

    def rebalance(self, kind: str, which: set[int]) -> None:
        if not self.by_hand:
            self.inside.rebalances.append((kind, [KEYS[place] for place in sorted(which)]))

    def others(self, place: int, further: int) -> None:
        """Whoever owns the partition now commits."""
        key = KEYS[place]
        if key not in self.inside.assigned:
            self.group.committed[key] = (self.group.committed.get(key, (0, None))[0] + further, None)

    def assign(self, where: dict[int, int]) -> None:
        if self.by_hand:
            before, after = set(self.inside.assigned), {KEYS[place] for place in where}
            self.consumer.assign([TopicPartition(*KEYS[place], offset) for place, offset in where.items()])
            self._changed("revoke", list(before - after))
            self._changed("assign", list(after - before))

    def pause(self, place: int, on: bool) -> None:
        if KEYS[place] in self.inside.assigned:
            (self.consumer.pause if on else self.consumer.resume)([TopicPartition(*KEYS[place])])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(calls, max_size=25), st.tuples(logs, logs, logs), st.booleans(), st.booleans(), st.booleans())
def test_any_order_of_calls(played: list[Any], made: tuple[str, ...], auto_store: bool, by_hand: bool, commits: bool) -> None:
    with opened_bench() as bench:
        play = Play(bench, made, auto_store=auto_store, by_hand=by_hand, commits=commits)
        for name, *arguments in played:
            getattr(play, name)(*arguments)
        play.commit()
        assert play.sidecar.flush()
        assert received(bench.producers) == play.account.asked
        assert play.sidecar.stats.failed == 0


# ------------------------------------------------------------------------------------------------------- named cases


def wrapped(bench: Bench, log: str = "r" * 20, **options: Any) -> tuple[Any, Client]:
    """A consumer that owns two partitions with that log."""
    inside = Client({K0: log, K1: log}, FakeGroup())
    consumer: Any = bench.sidecar(**options).wrap(inside, CONF)
    consumer.subscribe(["orders"])
    inside.rebalances.append(("assign", [K0, K1]))
    return consumer, inside


def once(*told: tuple[Key, range]) -> Counter[tuple[Key, int]]:
    return Counter((key, offset) for key, offsets in told for offset in offsets)


def test_assigned_again_by_hand_the_client_commits_nothing_of_before(bench: Bench) -> None:
    inside = Client({K0: "r" * 10, K1: "r" * 10}, FakeGroup())
    consumer: Any = bench.sidecar(observe_before_commit=0.01).wrap(inside, CONF)
    consumer.assign([TopicPartition(*K0, 0), TopicPartition(*K1, 0)])
    consumer.consume(20, 0)
    bench.producer.hold()  # so that something travels, and the sidecar commits in the client's place
    consumer.assign([TopicPartition(*K0, 0), TopicPartition(*K1, 5)])
    consumer.poll(0)
    consumer.commit(asynchronous=False)
    bench.producer.release()
    assert {key: committed[0] for key, committed in inside.group.committed.items()} == {K0: 1}
    assert bench.sidecars[-1].flush()
    assert received(bench.producers) == once((K0, range(1)))


def test_a_partition_that_goes_during_consume_makes_up_for_no_hole(bench: Bench) -> None:
    """librdkafka runs the callback while the batch holds records already, and may hand those of the partition that went out."""
    consumer, inside = wrapped(bench, "r" * 30 + "." + "r" * 30)
    inside.turns = [0] * 20 + [1]
    consumer.consume(21, 0)
    consume = inside.consume

    def with_rebalance(number: int, timeout: float) -> list[Any]:
        inside.turns = [1] + [0] * (number - 1)
        taken = consume(number, timeout)
        inside.rebalances.append(("revoke", [K1]))
        inside.serve()
        return taken

    consumer._follower._consume = with_rebalance
    assert len(consumer.consume(40, 0)) == 40
    consumer.commit()
    consumer.commit(offsets=[TopicPartition(*K1, 2)])
    assert bench.sidecars[-1].flush()
    assert received(bench.producers) == once((K0, range(30)), (K0, range(31, 60)), (K1, range(2)))


def test_what_is_asked_for_before_it_is_known_where_a_partition_began_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, inside = wrapped(bench)
    consumer.pause([TopicPartition(*K1)])
    inside.turns = [0] * 10
    consumer.consume(10, 0)

    def silent(*_: object) -> list[TopicPartition]:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(inside, "committed", silent)  # brokers that are slow at this moment
    inside.rebalances += [("revoke", [K0]), ("assign", [K0])]
    inside.serve()
    consumer.commit(offsets=[TopicPartition(*K0, 10)], asynchronous=False)
    assert bench.sidecars[-1].flush()
    told = [(one["status"], one["runs"]) for one in bench.producer.said() if one["partition"] == 0]
    assert told == [("unobserved", [[0, 9]])]


@pytest.mark.parametrize("aborted", [True, False])
def test_two_workers_with_transactions_between_which_a_partition_moves(bench: Bench, aborted: bool) -> None:
    sidecar, group = bench.sidecar(), FakeGroup()
    clients = [Client({K0: "r" * 10}, group) for _ in range(2)]
    consumers: list[Any] = [sidecar.wrap(one, CONF) for one in clients]
    producers: list[Any] = [sidecar.wrap(FakeTransactions(group)) for _ in range(2)]
    for one in consumers:
        one.subscribe(["orders"])
    for worker, (consumer, producer) in enumerate(zip(consumers, producers, strict=True)):
        clients[worker].rebalances.append(("assign", [K0]))
        assert len(consumer.consume(10, 0)) == 10
        producer.begin_transaction()
        if worker or aborted:
            producer.send_offsets_to_transaction(consumer.position([TopicPartition(*K0)]), consumer.consumer_group_metadata())
        if worker:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
        clients[worker].rebalances.append(("revoke", [K0]))
        consumer.poll(0)
    assert sidecar.flush()
    assert received(bench.producers) == once((K0, range(10)))


@pytest.mark.parametrize("fails", ["send_offsets_to_transaction", "commit_transaction", "abort_transaction"])
def test_a_batch_once_more_through_another_producer(bench: Bench, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, inside = wrapped(bench)
    sidecar, lost = bench.sidecars[-1], FakeTransactions(inside.group)

    def fenced(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL, "fenced", True))

    monkeypatch.setattr(lost, fails, fenced)
    consumer.consume(40, 0)
    where = consumer.position([TopicPartition(*K0), TopicPartition(*K1)])

    def process(producer: Any, last: str) -> None:
        producer.begin_transaction()
        producer.send_offsets_to_transaction(where, consumer.consumer_group_metadata())
        getattr(producer, last)()

    with pytest.raises(KafkaException, match="fenced"):
        process(sidecar.wrap(lost), fails)
    process(sidecar.wrap(FakeTransactions(inside.group)), "commit_transaction")
    assert sidecar.flush()
    assert received(bench.producers) == once((K0, range(20)), (K1, range(20)))
