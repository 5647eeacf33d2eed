"""Wrapped consumers: what counts as received, what a commit waits for, and what passes straight through."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

import gapstream_sidecar
from gapstream_sidecar import Sidecar, UnsupportedError
from gapstream_sidecar.deliveries import Deliveries
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import FakeConsumer, FakeMessage

ORDERS_0 = TopicPartition("orders", 0)


def wrapped(bench: Bench, sidecar: Sidecar | None = None, **options: Any) -> tuple[Any, FakeConsumer]:
    """A wrapped consumer, and the consumer inside."""
    inside = bench.consumer(**options)
    consumer: Any = (sidecar or bench.sidecar()).wrap(inside)
    return consumer, inside


def drain(consumer: Any) -> list[Any]:
    messages = []
    while (message := consumer.poll(0)) is not None:
        messages.append(message)
    return messages


# -------------------------------------------------------------------------------------------------- what is received


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_commit_of_a_message_covers_it_and_what_came_before(bench: Bench, asynchronous: bool) -> None:
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, *range(10))
    messages = drain(consumer)
    answer = consumer.commit(message=messages[4], asynchronous=asynchronous)
    assert bench.runs() == [[[0, 4]]]
    assert inside.commits == [((), {"message": messages[4], "asynchronous": asynchronous})]
    assert (answer is None) == asynchronous
    consumer.commit(messages[9])  # by position
    assert bench.runs() == [[[0, 4]], [[5, 9]]]


@pytest.mark.usefixtures("patient")
def test_commit_of_offsets_covers_each_partition(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, *range(10))
    inside.deliver("orders", 1, *range(5))
    inside.deliver("events", 0, 7)
    assert len(consumer.consume(100, 1.0)) == 16
    consumer.commit(offsets=[TopicPartition("orders", 0, 6), TopicPartition("orders", 1, 99), TopicPartition("events", 0)])
    said = {(one["topic"], one["partition"]): one["runs"] for one in bench.producer.said()}
    assert said == {("orders", 0): [[0, 5]], ("orders", 1): [[0, 4]]}  # events/0 names no offset


@pytest.mark.usefixtures("patient")
def test_commit_of_nothing_means_the_positions(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, *range(3))
    inside.deliver("orders", 1, *range(5))
    consumer.consume(100)
    consumer.commit()
    assert {one["partition"]: one["runs"] for one in bench.producer.said()} == {0: [[0, 2]], 1: [[0, 4]]}
    consumer.commit()
    assert len(bench.producer.records) == 2


@pytest.mark.usefixtures("patient")
def test_commit_of_nothing_covers_nothing_where_offsets_must_be_stored(bench: Bench) -> None:
    consumer, inside = wrapped(bench, auto_store=False)
    inside.deliver("orders", 0, 1)
    drain(consumer)
    consumer.commit()
    assert bench.producer.records == []
    consumer.commit(offsets=[TopicPartition("orders", 0, 2)])
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
def test_a_refused_commit_has_been_asked_for(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, 1)
    (message,) = drain(consumer)
    inside.commit_error = KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
    with pytest.raises(KafkaException):
        consumer.commit(message=message)
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
def test_a_call_that_is_no_commit_reports_nothing(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, 1)
    (message,) = drain(consumer)
    event: Any = FakeMessage("orders", 0, 1, KafkaError(KafkaError._PARTITION_EOF))
    consumer.commit(message=message, offsets=[TopicPartition("orders", 0, 2)])
    consumer.commit(message=event)
    consumer.commit(offsets=[])
    assert len(inside.commits) == 3
    assert bench.producer.records == []


@pytest.mark.usefixtures("patient")
def test_skipped_records_are_not_received_and_repeated_ones_are_twice(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, 0, 1, 2, 10, 11)
    consumer.commit(message=drain(consumer)[-1])
    inside.deliver("orders", 0, 1, 2)
    consumer.commit(message=drain(consumer)[-1])
    assert [(one["sequence"], one["runs"]) for one in bench.producer.said()] == [(1, [[0, 2], [10, 11]]), (2, [[1, 2]])]


@pytest.mark.usefixtures("patient")
def test_explicit_reports_received_alone_and_commits_flush_it(bench: Bench) -> None:
    sidecar = bench.sidecar(explicit=True)
    consumer, inside = wrapped(bench, sidecar, auto_store=False)
    inside.deliver("orders", 0, *range(10))
    drain(consumer)
    sidecar.received("orders", 0, 3)
    sidecar.received("orders", 1, 3)
    consumer.commit(offsets=[TopicPartition("orders", 0, 10)])
    assert bench.runs() == [[[3, 3]]]
    consumer.commit()
    assert bench.runs() == [[[3, 3]], [[3, 3]]]
    consumer.store_offsets(offsets=[ORDERS_0])
    assert inside.stored[-1] == {"offsets": [ORDERS_0]}


@pytest.mark.usefixtures("patient")
def test_two_consumers_share_a_sidecar(bench: Bench) -> None:
    sidecar = bench.sidecar()
    (one, inside_one), (two, inside_two) = wrapped(bench, sidecar), wrapped(bench, sidecar)
    inside_one.deliver("orders", 0, 1)
    inside_two.deliver("orders", 0, 2)
    (first,), (second,) = drain(one), drain(two)
    one.commit(message=second)  # not delivered to this one, and covers 1
    assert bench.runs() == [[[1, 1]]]
    two.commit(message=second)
    one.commit(message=first)
    assert bench.runs() == [[[1, 1]], [[2, 2]]]


# ------------------------------------------------------------------------------------------------- the order of things


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_observation_is_acknowledged_before_the_commit(bench: Bench, asynchronous: bool) -> None:
    consumer, inside = wrapped(bench, bench.sidecar(observe_before_commit=30))
    inside.deliver("orders", 0, 1)
    inside.deliver("orders", 1, 1)
    drain(consumer)
    bench.producer.hold()
    committing = threading.Thread(target=lambda: consumer.commit(asynchronous=asynchronous))
    committing.start()
    bench.producer.await_records(2)
    assert bench.journal == ["produce", "produce"]
    bench.producer.release()
    committing.join(10)
    assert bench.journal == ["produce", "produce", "acknowledged", "acknowledged", "commit"]


@pytest.mark.usefixtures("patient")
def test_a_commit_waits_for_its_own_observation_behind_another(bench: Bench) -> None:
    sidecar = bench.sidecar(observe_before_commit=30)
    consumer, inside = wrapped(bench, sidecar)
    bench.producer.hold()
    sidecar.received("orders", 0, 100)
    assert not sidecar.flush(timeout=0)  # the first is in flight
    inside.deliver("orders", 0, 1)
    drain(consumer)
    committing = threading.Thread(target=consumer.commit)
    committing.start()
    bench.producer.release()
    committing.join(10)
    assert bench.journal == ["produce", "acknowledged", "produce", "acknowledged", "commit"]


@pytest.mark.usefixtures("patient")
def test_a_commit_waits_no_longer_than_its_bound_and_then_not_again(bench: Bench) -> None:
    sidecar = bench.sidecar(observe_before_commit=0.2)
    consumer, inside = wrapped(bench, sidecar)
    bench.producer.hold()

    def seconds_of_commit(offset: int) -> float:
        inside.deliver("orders", 0, offset)
        (message,) = drain(consumer)
        began = time.monotonic()
        consumer.commit(message=message)
        return time.monotonic() - began

    assert 0.2 <= seconds_of_commit(1) < 1.5
    assert max(seconds_of_commit(offset) for offset in range(2, 12)) < 0.2
    assert len(inside.commits) == 11
    bench.producer.release()
    assert sidecar.flush()
    assert bench.runs() == [[[1, 1]], [[2, 11]]]
    bench.producer.hold()
    assert seconds_of_commit(12) >= 0.2  # acknowledgements come again, so waiting makes sense again


@pytest.mark.usefixtures("patient")
def test_a_partition_that_fails_does_not_slow_down_the_commits_of_others(bench: Bench) -> None:
    sidecar = bench.sidecar(observe_before_commit=0.2)
    consumer, inside = wrapped(bench, sidecar)
    bench.producer.missing.add(("gapstream.observations.orders", 0))
    inside.deliver("orders", 0, 1)
    consumer.commit(message=drain(consumer)[0])
    for offset in range(5):
        inside.deliver("orders", 1, offset)
        consumer.commit(message=drain(consumer)[0])
        assert bench.journal[-2:] == ["acknowledged", "commit"]


def test_without_patience_a_commit_does_not_wait(bench: Bench) -> None:
    consumer, inside = wrapped(bench, bench.sidecar(observe_before_commit=0))
    bench.producer.hold()
    inside.deliver("orders", 0, 1)
    drain(consumer)
    consumer.commit()
    assert bench.journal == ["produce", "commit"]


# ------------------------------------------------------------------------------------------------------- rebalances


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["on_revoke", "on_lost"])
def test_what_is_taken_away_is_forgotten(bench: Bench, how: str) -> None:
    consumer, inside = wrapped(bench)
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, 1, 2)
    inside.deliver("orders", 1, 1)
    drain(consumer)
    inside.callbacks[how](inside, [ORDERS_0])
    consumer.commit()
    consumer.commit(offsets=[TopicPartition("orders", 0, 3)])
    assert [(one["partition"], one["runs"]) for one in bench.producer.said()] == [(1, [[1, 1]])]


@pytest.mark.usefixtures("patient")
def test_callbacks_are_given_a_consumer_that_commits(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    calls: list[tuple[str, Any, Any]] = []

    def on_assign(given: Any, partitions: Any) -> None:
        calls.append(("assign", given, partitions))

    def on_revoke(given: Any, partitions: Any) -> None:
        calls.append(("revoke", given, partitions))
        given.commit(offsets=[TopicPartition("orders", 0, 2)], asynchronous=False)

    consumer.subscribe(["orders"], on_assign, on_revoke=on_revoke)
    inside.callbacks["on_assign"](inside, [ORDERS_0])
    inside.deliver("orders", 0, 0, 1, 2)
    drain(consumer)
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    assert [name for name, _, _ in calls] == ["assign", "revoke"]
    assert all(given is consumer and partitions == [ORDERS_0] for _, given, partitions in calls)
    assert bench.runs() == [[[0, 1]]]
    inside.callbacks["on_lost"](inside, [ORDERS_0])  # no on_lost given: on_revoke is told, as the consumer does
    assert [name for name, _, _ in calls] == ["assign", "revoke", "revoke"]


@pytest.mark.usefixtures("patient")
def test_a_callback_that_raises_is_heard_and_the_partition_forgotten(bench: Bench) -> None:
    consumer, inside = wrapped(bench)

    def on_lost(_: Any, __: Any) -> None:
        raise LookupError("mine")

    consumer.subscribe(["orders"], on_lost=on_lost)
    inside.deliver("orders", 0, 1)
    drain(consumer)
    with pytest.raises(LookupError, match="mine"):
        inside.callbacks["on_lost"](inside, [ORDERS_0])
    consumer.commit()
    assert bench.producer.records == []


@pytest.mark.usefixtures("patient")
def test_assignments_by_hand(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    consumer.assign([ORDERS_0])
    inside.deliver("orders", 0, 1)
    drain(consumer)
    consumer.incremental_assign([TopicPartition("orders", 1)])
    inside.deliver("orders", 1, 5)
    drain(consumer)
    consumer.incremental_unassign([TopicPartition("orders", 1)])
    consumer.commit()
    assert [(one["partition"], one["runs"]) for one in bench.producer.said()] == [(0, [[1, 1]])]
    consumer.unassign()
    consumer.assign([TopicPartition("orders", 1)])
    consumer.commit(offsets=[TopicPartition("orders", 1, 6)])
    assert len(bench.producer.said()) == 1
    assert [one for one in bench.journal if "assign" in one] == [
        "assign", "incremental_assign", "incremental_unassign", "unassign", "assign",
    ]  # fmt: skip


@pytest.mark.usefixtures("patient")
def test_a_signal_handler_may_commit_in_the_middle_of_a_poll(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, inside = wrapped(bench)
    message = Deliveries.message

    def interrupted(deliveries: Deliveries, one: Any) -> None:
        """Python runs signal handlers between any two instructions of the main thread: here, with the lock held."""
        message(deliveries, one)
        consumer.commit()

    monkeypatch.setattr(Deliveries, "message", interrupted)
    inside.deliver("orders", 0, 1)
    drain(consumer)
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
def test_close_closes_the_consumer_and_forgets(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    with consumer as same:
        assert same is consumer
        inside.deliver("orders", 0, 1)
        drain(consumer)
    assert inside.closed
    consumer.commit()
    assert bench.producer.records == []


# ------------------------------------------------------------------------------------------- what passes, what doesn't


def test_everything_else_is_the_consumers_own(bench: Bench) -> None:
    consumer, inside = wrapped(bench)
    assert consumer.position([ORDERS_0])[0].offset == 77
    assert consumer.note == "mine"
    consumer.note = "yours"
    assert inside.note == "yours"
    consumer.extra = 1
    del consumer.extra
    assert not hasattr(inside, "extra")
    assert "position" in dir(consumer)
    assert repr(inside) in repr(consumer)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = consumer.nonsense
    assert isinstance(consumer, FakeConsumer)


def test_a_real_consumer_can_be_wrapped_without_brokers(bench: Bench) -> None:
    conf = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "enable.auto.commit": False, "log_level": 0}
    consumer = bench.sidecar().wrap(Consumer(conf), conf)
    assert isinstance(consumer, Consumer)
    consumer.subscribe(["orders"], on_revoke=lambda *_: None)
    assert consumer.poll(0) is None
    assert consumer.consume(5, 0) == []
    assert consumer.assignment() == []
    assert consumer.memberid() is None
    with pytest.raises(KafkaException):
        consumer.commit(asynchronous=False)
    consumer.unsubscribe()
    consumer.close()
    with pytest.raises(RuntimeError):
        consumer.poll(0)


class AIOConsumer(FakeConsumer):
    async def poll(self, *_: Any) -> Any: ...


@pytest.mark.parametrize("other", [AIOConsumer([]), object(), None])
def test_other_clients_are_refused_in_one_sentence(bench: Bench, other: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{type(other).__qualname__} is not supported in this version"):
        bench.sidecar().wrap(other)


async def test_aiokafka_is_refused_in_one_sentence(bench: Bench) -> None:
    consumer = AIOKafkaConsumer("orders")
    try:
        with pytest.raises(UnsupportedError, match="AIOKafkaConsumer is not supported in this version"):
            bench.sidecar().wrap(consumer)
    finally:
        await consumer.stop()


def test_a_consumer_is_wrapped_once(bench: Bench) -> None:
    consumer, _ = wrapped(bench)
    with pytest.raises(UnsupportedError, match="wrapped already"):
        bench.sidecar().wrap(consumer)


@pytest.mark.parametrize("conf", [{}, {"enable.auto.commit": True}, {"enable.auto.commit": "true"}, {"auto.commit.enable": "t"}])
def test_auto_commit_is_refused_where_it_shows(bench: Bench, conf: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"enable\.auto\.commit to false"):
        bench.sidecar().wrap(bench.consumer(), conf)
    assert bench.sidecar(explicit=True).wrap(bench.consumer(), conf)


@pytest.mark.parametrize("value", [False, "false", "0", 0, "F"])
def test_manual_commits_are_taken(bench: Bench, value: object) -> None:
    assert bench.sidecar().wrap(bench.consumer(), {"enable.auto.commit": value})


def test_storing_offsets_is_refused(bench: Bench) -> None:
    consumer, inside = wrapped(bench, auto_store=False)
    inside.stored.clear()
    with pytest.raises(UnsupportedError, match=r"store_offsets\(\) is not supported"):
        consumer.store_offsets(offsets=[ORDERS_0])
    assert inside.stored == []


def test_silence_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("gapstream_sidecar.consumer.SILENCE_S", -1.0)
    consumer, inside = wrapped(bench)
    inside.deliver("orders", 0, *range(5))
    drain(consumer)
    assert [record.message for record in caplog.records if "no commit was asked for" in record.message] != []
    caplog.clear()
    committing, inside = wrapped(bench)
    inside.deliver("orders", 0, 1)
    committing.consume(1)
    committing.commit()
    inside.deliver("orders", 0, 2)
    committing.consume(1)
    assert caplog.records == []


def test_a_fault_inside_does_not_reach_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = bench.sidecar()
    consumer, inside = wrapped(bench, sidecar)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    for name in ("message", "batch", "ask", "forget", "assigned", "unassigned"):
        monkeypatch.setattr(f"gapstream_sidecar.deliveries.Deliveries.{name}", broken)
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, 1, 2)
    assert consumer.poll().offset() == 1
    assert [one.offset() for one in consumer.consume(5)] == [2]
    assert consumer.commit(offsets=[TopicPartition("orders", 0, 1)], asynchronous=False) == [TopicPartition("orders", 0, 1)]
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    consumer.assign([ORDERS_0])
    consumer.unassign()
    consumer.close()
    assert inside.closed
    assert sidecar.stats.failed == 7


def test_the_package_says_what_it_exports() -> None:
    assert all(hasattr(gapstream_sidecar, name) for name in gapstream_sidecar.__all__)
