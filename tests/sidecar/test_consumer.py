"""Wrapped confluent-kafka consumers: what counts as received, what a commit waits for, and what travels with it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from gapstream_sidecar.deliveries import Deliveries
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import FakeConsumer, FakeGroup, FakeMessage, carried, drain

ORDERS_0 = TopicPartition("orders", 0)


# -------------------------------------------------------------------------------------------------- what is received


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_commit_of_a_message_covers_it_and_what_came_before(bench: Bench, asynchronous: bool) -> None:
    consumer, inside = bench.wrapped()
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
    consumer, inside = bench.wrapped()
    inside.deliver("orders", 0, *range(10))
    inside.deliver("orders", 1, *range(5))
    inside.deliver("events", 0, 7)
    assert len(consumer.consume(100, 1.0)) == 16
    consumer.commit(offsets=[TopicPartition("orders", 0, 6), TopicPartition("orders", 1, 99), TopicPartition("events", 0)])
    said = {(one["topic"], one["partition"]): one["runs"] for one in bench.producer.said()}
    assert said == {("orders", 0): [[0, 5]], ("orders", 1): [[0, 4]]}  # events/0 names no offset


@pytest.mark.usefixtures("patient")
def test_commit_of_nothing_means_the_positions(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
    inside.deliver("orders", 0, *range(3))
    inside.deliver("orders", 1, *range(5))
    consumer.consume(100)
    consumer.commit()
    assert {one["partition"]: one["runs"] for one in bench.producer.said()} == {0: [[0, 2]], 1: [[0, 4]]}
    consumer.commit()
    assert len(bench.producer.records) == 2


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("auto_commit", [True, False])
@pytest.mark.parametrize("by_message", [True, False])
def test_storing_offsets_asks_for_what_they_cover(bench: Bench, auto_commit: bool, by_message: bool) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=auto_commit, auto_store=False)
    inside.deliver("orders", 0, *range(10))
    messages = drain(consumer)
    assert sidecar.flush()
    assert bench.producer.records == []
    if by_message:
        consumer.store_offsets(messages[4])
    else:
        consumer.store_offsets(offsets=[TopicPartition("orders", 0, 5), TopicPartition("orders", 1, 9), TopicPartition("orders", 2)])
    assert sidecar.flush()
    assert bench.runs() == [[[0, 4]]]
    consumer.commit()
    assert inside.group.committed["orders", 0][0] == 5
    assert bench.runs() == [[[0, 4]]]


@pytest.mark.usefixtures("patient")
def test_commit_of_nothing_covers_what_was_stored_alone_where_offsets_must_be_stored(bench: Bench) -> None:
    consumer, inside = bench.wrapped(auto_store=False)
    inside.deliver("orders", 0, 1)
    drain(consumer)
    consumer.commit()
    assert bench.producer.records == []
    consumer.commit(offsets=[TopicPartition("orders", 0, 2)])
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
def test_a_store_that_the_client_refuses_is_none(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    inside.deliver("orders", 0, 1)
    (message,) = drain(consumer)
    with pytest.raises(KafkaException):  # enable.auto.offset.store is on
        consumer.store_offsets(message=message)
    assert sidecar.flush()
    assert bench.producer.records == []


@pytest.mark.usefixtures("patient")
def test_a_refused_commit_has_been_asked_for(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
    inside.deliver("orders", 0, 1)
    (message,) = drain(consumer)
    inside.commit_error = KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
    with pytest.raises(KafkaException):
        consumer.commit(message=message)
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
def test_a_call_that_is_no_commit_reports_nothing(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
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
    consumer, inside = bench.wrapped()
    inside.deliver("orders", 0, 0, 1, 2, 10, 11)
    consumer.commit(message=drain(consumer)[-1])
    consumer.seek(TopicPartition("orders", 0, 1))
    inside.deliver("orders", 0, 1, 2)
    consumer.commit(message=drain(consumer)[-1])
    assert [(one["sequence"], one["runs"]) for one in bench.producer.said()] == [(1, [[0, 2], [10, 11]]), (2, [[1, 2]])]


@pytest.mark.usefixtures("patient")
def test_explicit_reports_received_alone_and_commits_flush_it(bench: Bench) -> None:
    sidecar = bench.sidecar(explicit=True)
    consumer, inside = bench.wrapped(sidecar, auto_store=False)
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
def test_explicit_follows_no_auto_commit(bench: Bench) -> None:
    sidecar = bench.sidecar(explicit=True)
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.deliver("orders", 0, 1, 2)
    drain(consumer)
    consumer.close()
    assert sidecar.flush()
    assert bench.producer.records == []


@pytest.mark.usefixtures("patient")
def test_two_consumers_share_a_sidecar(bench: Bench) -> None:
    sidecar = bench.sidecar()
    (one, inside_one), (two, inside_two) = bench.wrapped(sidecar), bench.wrapped(sidecar)
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
    consumer, inside = bench.wrapped(bench.sidecar(observe_before_commit=30))
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
    consumer, inside = bench.wrapped(sidecar)
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
    consumer, inside = bench.wrapped(sidecar)
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
    consumer, inside = bench.wrapped(sidecar)
    bench.producer.missing.add(("gapstream.observations.orders", 0))
    inside.deliver("orders", 0, 1)
    consumer.commit(message=drain(consumer)[0])
    for offset in range(3):  # a fourth would not be waited for: it could be spared less
        inside.deliver("orders", 1, offset)
        consumer.commit(message=drain(consumer)[0])
        assert bench.journal[-2:] == ["acknowledged", "commit"]
    assert carried(inside.group) == []  # nobody watches the other one


def test_without_patience_a_commit_does_not_wait(bench: Bench) -> None:
    consumer, inside = bench.wrapped(bench.sidecar(observe_before_commit=0))
    bench.producer.hold()
    inside.deliver("orders", 0, 1)
    drain(consumer)
    consumer.commit()
    assert bench.journal == ["produce", "commit"]


# ----------------------------------------------------------------------------------------- what travels with a commit


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("how", ["message", "offsets", "positions", "store"])
def test_what_does_not_get_its_turn_travels_with_the_commit(bench: Bench, how: str) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_store=how != "store")

    def ask(message: Any) -> None:
        where = TopicPartition("orders", 0, message.offset() + 1)
        if how == "message":
            consumer.commit(message=message, asynchronous=False)
        elif how == "offsets":
            consumer.commit(offsets=[where])
        elif how == "positions":
            consumer.commit()
        else:
            consumer.store_offsets(message)
            consumer.commit()

    for offset in range(3):
        inside.deliver("orders", 0, offset)
        ask(drain(consumer)[-1])
    if how == "store":  # a store does not wait, so the first one travels too
        bench.producer.await_records(1)
    assert bench.runs()[:1] == [[[0, 0]]]
    assert inside.group.committed["orders", 0][0] == 3
    row = [sidecar.source, 2, "received", None, [1, 0]]  # up to the committed offset
    assert carried(inside.group)[-1] == row
    assert sidecar.flush()
    assert [(one["sequence"], one["runs"]) for one in bench.producer.said()] == [(1, [[0, 0]]), (2, [[1, 2]])]
    inside.deliver("orders", 0, 3)
    ask(drain(consumer)[-1])
    assert [row[1] for row in carried(inside.group)] == [3]


@pytest.mark.usefixtures("patient")
def test_what_is_not_acknowledged_in_time_travels_with_the_commit(bench: Bench) -> None:
    sidecar = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.wrapped(sidecar)
    bench.producer.hold()
    inside.deliver("orders", 0, 5, 6, 9)
    consumer.commit(message=drain(consumer)[-1])
    inside.deliver("orders", 0, 10, 20)
    drain(consumer)
    consumer.commit(offsets=[TopicPartition("orders", 0, 30), TopicPartition("orders", 7, 1)])
    assert inside.commits[-1][1]["offsets"][1].metadata is None
    assert inside.group.committed["orders", 0][0] == 30
    assert carried(inside.group) == [
        [sidecar.source, 1, "received", None, [5, 2, 2, 1]],
        [sidecar.source, 2, "received", None, [10, 1, 9, 1]],
    ]


@pytest.mark.usefixtures("patient", "spent")
def test_an_applications_own_metadata_stay_and_its_commit_waits(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
    for offset in range(3):
        inside.deliver("orders", 0, offset)
        drain(consumer)
        consumer.commit(offsets=[TopicPartition("orders", 0, offset + 1, "theirs")])
    assert inside.group.committed["orders", 0] == (3, "theirs")
    assert bench.runs() == [[[0, 0]], [[1, 1]], [[2, 2]]]


@pytest.mark.usefixtures("patient", "spent")
def test_brokers_that_take_no_metadata_get_none(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    consumer, inside = bench.wrapped()
    inside.group.metadata_max = 20
    for offset in range(4):
        inside.deliver("orders", 0, offset)
        consumer.commit(message=drain(consumer)[-1])
    assert inside.group.committed["orders", 0] == (4, None)
    assert "offset.metadata.max.bytes" in caplog.text
    assert bench.runs() == [[[0, 0]], [[1, 1]], [[2, 2]], [[3, 3]]]  # from then on a commit waits for its observation again


@pytest.mark.usefixtures("patient", "spent")
def test_positions_that_fell_are_not_committed_in_the_clients_place(bench: Bench) -> None:
    """Without arguments the client commits only what is above the last commit; with metadata it must be no other way."""
    consumer, inside = bench.wrapped()
    inside.deliver("orders", 0, *range(10))
    drain(consumer)
    consumer.commit()
    consumer.seek(ORDERS_0)
    inside.deliver("orders", 0, 0, 1)
    drain(consumer)
    consumer.commit()
    assert inside.commits[-1] == ((), {})
    assert bench.runs() == [[[0, 9]], [[0, 1]]]  # nothing can travel, so it does not wait for its turn


def test_without_brokers_commits_stay_quick_and_memory_bounded(bench: Bench) -> None:
    """As in an hour of transactions while the brokers of observations are away: a hole before every record."""
    sidecar = bench.sidecar(observe_before_commit=0.01, max_backlog_bytes=4 << 20)
    consumer, inside = bench.wrapped(sidecar)
    bench.producer.hold()
    slowest = 0.0
    for first in range(0, 1_600_000, 80_000):
        inside.deliver("orders", 0, *range(first, first + 80_000, 2))
        consumer.consume(40_000)
        began = time.monotonic()
        consumer.commit(asynchronous=True)
        slowest = max(slowest, time.monotonic() - began)
        assert sidecar.stats.backlog_bytes <= 4 << 20
        assert len(inside.group.committed["orders", 0][1] or "") < 4_096
    assert slowest < 2.0  # taking 40,000 runs, most of it
    assert sidecar.stats.dropped > 0
    bench.producer.release()
    assert sidecar.flush(30)
    told: dict[str, set[int]] = {"received": set(), "unobserved": set()}
    for one in bench.producer.said():
        told[one["status"]].update(offset for first, last in one["runs"] for offset in range(first, last + 1))
    assert told["received"] | told["unobserved"] >= set(range(0, 1_600_000, 2))
    assert told["received"] <= set(range(0, 1_600_000, 2))


# ------------------------------------------------------------------------------------------------- whose it was before


@pytest.mark.usefixtures("patient", "spent")
def test_the_next_owner_reports_what_the_last_one_could_not(bench: Bench) -> None:
    group = FakeGroup()
    first = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.wrapped(first, group=group)
    lost = bench.producer
    lost.hold()
    inside.deliver("orders", 0, 0, 1)
    consumer.commit(message=drain(consumer)[-1])
    inside.deliver("orders", 0, 2)
    consumer.commit(message=drain(consumer)[-1])
    second = bench.sidecar()
    other, its = bench.wrapped(second, group=group)
    other.assign([ORDERS_0])
    assert its.reads == 0  # nobody has committed anything yet
    its.deliver("orders", 0, 3)
    other.commit(message=drain(other)[-1])
    said = [(one["source"], one["sequence"], one["runs"]) for one in bench.producer.said()]
    assert said == [(first.source, 1, [[0, 1]]), (first.source, 2, [[2, 2]]), (second.source, 3, [[3, 3]])]
    assert its.reads == 1
    lost.release()
    assert first.flush()
    assert [(one["sequence"], one["runs"]) for one in lost.said()] == [(1, [[0, 1]]), (2, [[2, 2]])]  # repeats, word for word


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("how", ["poll", "consume"])
@pytest.mark.parametrize("incremental", [True, False])
def test_who_assigns_by_hand_need_not_commit_to_report_what_the_last_owner_could_not(bench: Bench, how: str, incremental: bool) -> None:
    group = FakeGroup()
    first = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.wrapped(first, group=group)
    bench.producer.hold()
    inside.deliver("orders", 0, 0, 1)
    consumer.commit(message=drain(consumer)[-1])
    second = bench.sidecar()
    other, its = bench.wrapped(second, group=group)
    (other.incremental_assign if incremental else other.assign)([ORDERS_0])
    assert its.reads == 0, "an assignment needs no brokers"
    for _ in range(3):  # nothing is there to be handed out
        assert not (other.poll(0) if how == "poll" else other.consume(1, 0))
    assert its.reads == 1
    assert second.flush()
    assert [(one["source"], one["sequence"], one["runs"]) for one in bench.producer.said()] == [(first.source, 1, [[0, 1]])]


def test_polls_ask_a_group_that_does_not_answer_no_longer_than_an_assignment_is_new(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question may take a second, and nobody can be kept from his records for that as long as brokers are away."""
    monkeypatch.setattr("gapstream_sidecar.consumer.INHERIT_AGAIN_S", 0.0)
    monkeypatch.setattr("gapstream_sidecar.consumer.INHERIT_WITHIN_S", 0.3)
    consumer, inside = bench.wrapped()
    inside.read_error = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    consumer.assign([ORDERS_0])
    consumer.poll(0)
    consumer.poll(0)
    assert inside.reads == 2
    deadline = time.monotonic() + 10
    while (reads := inside.reads) and consumer.poll(0) is None and inside.reads > reads:
        assert time.monotonic() < deadline
    inside.deliver("orders", 0, 0)
    inside.read_error = None
    consumer.commit(message=drain(consumer)[0])
    assert inside.reads == reads + 1, "by hand nobody else comes to own it, so a commit asks still"


@pytest.mark.usefixtures("patient", "spent")
def test_what_was_inherited_travels_on_until_it_is_acknowledged(bench: Bench) -> None:
    group = FakeGroup()
    sidecars = [bench.sidecar(observe_before_commit=0) for _ in range(3)]
    for producer in bench.producers[:2]:
        producer.hold()
    for number, sidecar in enumerate(sidecars):
        consumer, inside = bench.wrapped(sidecar, group=group)
        consumer.assign([ORDERS_0])
        inside.deliver("orders", 0, number)
        consumer.commit(message=drain(consumer)[-1])
    assert sidecars[2].flush()
    said = [(one["source"], one["runs"]) for one in bench.producer.said()]
    assert said == [(sidecar.source, [[number, number]]) for number, sidecar in enumerate(sidecars)]


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("by_hand", [True, False])
def test_committed_offsets_are_read_once_an_assignment(bench: Bench, by_hand: bool) -> None:
    consumer, inside = bench.wrapped()
    consumer.subscribe(["orders"], on_assign=lambda given, partitions: given.assign(partitions) if by_hand else None)
    for turn in range(1, 3):
        inside.callbacks["on_assign"](inside, [ORDERS_0])
        assert inside.reads == turn
        inside.deliver("orders", 0, turn * 10, turn * 10 + 1)
        for message in drain(consumer):
            consumer.commit(message=message)
        assert inside.reads == turn
        inside.callbacks["on_revoke"](inside, [ORDERS_0])


def test_a_group_that_can_not_be_asked_is_asked_again_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapstream_sidecar.consumer.INHERIT_AGAIN_S", 0.0)
    consumer, inside = bench.wrapped()
    consumer.subscribe(["orders"])
    inside.read_error = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    inside.callbacks["on_assign"](inside, [ORDERS_0])
    inside.deliver("orders", 0, 0, 1, 2)
    messages = consumer.consume(3)
    consumer.commit(message=messages[0])
    assert inside.reads == 3
    inside.read_error = None
    consumer.commit(message=messages[1])
    consumer.commit(message=messages[2])
    consumer.consume(3)
    assert inside.reads == 4
    assert len(inside.commits) == 3


def test_what_others_carry_by_now_is_theirs_to_say(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped after an assignment may wake up when somebody else has committed."""
    monkeypatch.setattr("gapstream_sidecar.follower.INHERIT_WITHIN_S", -1.0)
    consumer, inside = bench.wrapped()
    consumer.subscribe(["orders"])
    inside.callbacks["on_assign"](inside, [ORDERS_0])
    inside.deliver("orders", 0, 0, 1)
    consumer.commit(message=drain(consumer)[0])
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    consumer.commit(offsets=[TopicPartition("orders", 0, 2)])
    assert inside.reads == 0


# --------------------------------------------------------------------------------- what positions alone tell of a batch


def test_dense_batches_are_known_by_their_positions(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    consumer.assign([TopicPartition("orders", partition) for partition in range(4)])  # nothing comes of the last one
    for first in range(0, 3_000, 1_000):
        for partition in range(3):
            inside.deliver("orders", partition, *range(first, first + 1_000))
        assert len(consumer.consume(3_000)) == 3_000
    assert inside.asked_for_positions == 2  # in the first batch it was not known where the consumer stood
    consumer.commit()
    assert sidecar.flush()
    assert sorted((one["partition"], one["runs"]) for one in bench.producer.said()) == [(number, [[0, 2_999]]) for number in range(3)]


@pytest.mark.parametrize("skips", [1, 40])
def test_a_batch_with_a_hole_is_looked_at_record_by_record(bench: Bench, skips: int) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    consumer.assign([ORDERS_0])
    expected = []
    for first in range(0, 1_000 * (skips + 1), 1_000):
        offsets = [offset for offset in range(first, first + 1_000) if offset % 1_000 != 500 or first == 0]
        inside.deliver("orders", 0, *offsets)
        consumer.consume(1_000)
        expected += offsets
    consumer.commit()
    assert sidecar.flush()
    told = [offset for runs in bench.runs() for low, high in runs for offset in range(low, high + 1)]
    assert told == expected
    assert inside.asked_for_positions <= 5  # skips everywhere: it is no longer asked for


@pytest.mark.parametrize("heard", [True, False])
def test_a_hole_and_a_first_record_in_one_batch_are_told_apart(bench: Bench, heard: bool) -> None:
    """Their sum is that of a batch without either. ``heard``: or the assignment was made before the consumer was wrapped."""
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    if heard:
        consumer.assign([ORDERS_0, TopicPartition("orders", 1)])
    inside.deliver("orders", 0, *range(100))
    consumer.consume(100)
    inside.deliver("orders", 0, *range(100, 150), *range(151, 200))
    inside.deliver("orders", 1, 7)
    consumer.consume(100)
    consumer.commit()
    assert sidecar.flush()
    assert sorted((one["partition"], one["runs"]) for one in bench.producer.said()) == [(0, [[0, 149], [151, 199]]), (1, [[7, 7]])]


def test_records_of_two_topics_in_one_batch(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    for topics in (["orders"], ["orders", "events"], ["events"]):
        consumer.assign([TopicPartition(topic, 0) for topic in topics])
        for topic in topics:
            inside.deliver(topic, 0, *range(40), *range(41, 60))
            inside.deliver(topic, 0, *range(60, 80))
        consumer.consume(1_000)
        consumer.commit()
        assert sidecar.flush()
        inside.forget_positions()
    told = [(one["topic"], one["runs"]) for one in bench.producer.said()]
    assert sorted(told) == sorted(2 * [("orders", [[0, 39], [41, 79]]), ("events", [[0, 39], [41, 79]])])


def test_events_among_records_are_not_delivered(bench: Bench) -> None:
    """A record that can't be read is an event at its offset, and the position moves past it."""
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    consumer.assign([ORDERS_0])
    inside.deliver("orders", 0, *range(100))
    consumer.consume(100)
    inside.deliver("orders", 0, *range(100, 150))
    inside.queue.append(FakeMessage("orders", 0, 150, KafkaError(KafkaError._BAD_MSG)))
    inside.deliver("orders", 0, *range(151, 200))
    consumer.consume(100)
    consumer.commit()
    assert sidecar.flush()
    assert bench.runs() == [[[0, 149], [151, 199]]]


# ------------------------------------------------------------------------------------------------------- rebalances


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["on_revoke", "on_lost"])
def test_what_was_taken_away_counts_only_where_it_is_named(bench: Bench, how: str) -> None:
    consumer, inside = bench.wrapped()
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, 1, 2, 3)
    inside.deliver("orders", 1, 1)
    messages = drain(consumer)
    inside.callbacks[how](inside, [ORDERS_0])
    consumer.commit()
    assert [(one["partition"], one["runs"]) for one in bench.producer.said()] == [(1, [[1, 1]])]
    consumer.commit(message=messages[1])  # processed is processed, whoever owns it now
    assert [(one["partition"], one["runs"]) for one in bench.producer.said()[1:]] == [(0, [[1, 2]])]
    inside.group.committed["orders", 0] = (50, None)
    inside.callbacks["on_assign"](inside, [ORDERS_0])
    inside.deliver("orders", 0, 50)
    consumer.commit(message=drain(consumer)[0])  # 3 was somebody else's meanwhile
    assert [(one["partition"], one["runs"]) for one in bench.producer.said()[2:]] == [(0, [[50, 50]])]


@pytest.mark.usefixtures("patient")
def test_what_came_back_uncommitted_is_still_ones_own(bench: Bench) -> None:
    """The same instance is handed it again; until then a commit that was under way may cover it."""
    consumer, inside = bench.wrapped()
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, *range(10))
    messages = drain(consumer)
    consumer.commit(message=messages[4])
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    inside.callbacks["on_assign"](inside, [ORDERS_0])
    consumer.commit(message=messages[7])
    inside.deliver("orders", 0, *range(5, 10))
    consumer.commit(message=drain(consumer)[-1])
    assert bench.runs() == [[[0, 4]], [[5, 7]], [[5, 9]]]


@pytest.mark.usefixtures("patient", "spent")
def test_a_revocation_sends_what_there_is(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
    consumer.subscribe(["orders"])
    for offset in range(3):
        inside.deliver("orders", 0, offset)
        consumer.commit(message=drain(consumer)[0])
    assert bench.runs() == [[[0, 0]]]
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    assert bench.runs() == [[[0, 0]], [[1, 2]]]


@pytest.mark.usefixtures("patient")
def test_callbacks_are_given_a_consumer_that_commits(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
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
def test_a_callback_that_raises_is_heard_and_the_partition_given_up(bench: Bench) -> None:
    consumer, inside = bench.wrapped()

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
    consumer, inside = bench.wrapped()
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
    consumer, inside = bench.wrapped()
    add = Deliveries.add

    def interrupted(deliveries: Deliveries, *run: Any) -> None:
        """Python runs signal handlers between any two instructions of the main thread: here, with the lock held."""
        add(deliveries, *run)
        consumer.commit()

    monkeypatch.setattr(Deliveries, "add", interrupted)
    inside.deliver("orders", 0, 1)
    drain(consumer)
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
def test_close_closes_the_consumer_and_gives_up(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
    with consumer as same:
        assert same is consumer
        inside.deliver("orders", 0, 1)
        drain(consumer)
    assert inside.closed
    consumer.commit()
    assert bench.producer.records == []


# ----------------------------------------------------------------------------------------------------- what it is like


def test_everything_else_is_the_consumers_own(bench: Bench) -> None:
    consumer, inside = bench.wrapped()
    inside.deliver("orders", 0, 76)
    drain(consumer)
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


def test_a_fault_inside_does_not_reach_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    for name in ("add", "ask", "assigned", "unassigned", "sought"):
        monkeypatch.setattr(f"gapstream_sidecar.deliveries.Deliveries.{name}", broken)
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, 1, 2)
    assert consumer.poll().offset() == 1
    assert [one.offset() for one in consumer.consume(5)] == [2]
    assert consumer.commit(offsets=[TopicPartition("orders", 0, 1)], asynchronous=False) == [TopicPartition("orders", 0, 1)]
    inside.callbacks["on_assign"](inside, [ORDERS_0])
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    consumer.assign([ORDERS_0])
    consumer.seek(ORDERS_0)
    consumer.unassign()
    consumer.close()
    assert inside.closed
    assert sidecar.stats.failed == 9
