"""Wrapped consumers that commit by themselves: what counts as received when, and what is said beforehand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from gapstream_sidecar.leases import Session
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import FakeMessage

ORDERS_0 = TopicPartition("orders", 0)
SOURCE = [("source.topic", b"orders"), ("source.partition", b"3"), ("source.offset", b"15012")]


def drain(consumer: Any) -> list[Any]:
    messages = []
    while (message := consumer.poll(0)) is not None:
        messages.append(message)
    return messages


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("batches", [True, False])
def test_with_auto_commit_a_record_is_received_when_the_application_comes_back(bench: Bench, batches: bool) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.deliver("orders", 0, 0, 1, 2)
    for _ in range(1 if batches else 3):
        assert consumer.consume(10) if batches else consumer.poll()
    assert sidecar.flush()
    assert bench.runs() == ([] if batches else [[[0, 1]]])
    assert consumer.poll() is None
    assert sidecar.flush()
    assert bench.runs()[-1] == ([[0, 2]] if batches else [[2, 2]])


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_what_is_handed_out_again_at_once_is_received_again(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    for first in (0, 2):  # the application comes back twice before anything is reported
        inside.deliver("orders", 0, *range(first, 5))
        assert consumer.consume(10)
        consumer.consume(10)
    assert sidecar.flush()
    assert [runs for runs in bench.runs() if runs] == [[[0, 4]], [[2, 4]]]


def test_with_auto_commit_reports_leave_by_themselves(bench: Bench) -> None:
    consumer, inside = bench.wrapped(auto_commit=True)
    inside.deliver("orders", 0, *range(5))
    drain(consumer)
    bench.producer.await_records(2)
    assert [json.loads(value)["runs"] for _, _, value in bench.producer.records] == [[], [[0, 4]]]


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_an_explicit_commit_counts_at_once(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.deliver("orders", 0, *range(4))
    messages = [consumer.poll() for _ in range(4)]
    consumer.commit(message=messages[-1])
    assert bench.runs() == [[[0, 3]]]
    consumer.poll()
    assert sidecar.flush()
    assert bench.runs() == [[[0, 3]]]


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_closing_covers_everything(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.deliver("orders", 0, 0, 1)
    with consumer:
        consumer.consume(10)
    assert sidecar.flush()
    assert bench.runs() == [[[0, 1]]]


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_an_exception_on_its_way_out_covers_nothing(bench: Bench) -> None:
    """The client commits the records although they were not processed: the classical loss."""
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.deliver("orders", 0, 0, 1)

    def fail() -> None:
        with consumer:
            consumer.poll()
            consumer.poll()
            raise LookupError("poison")

    with pytest.raises(LookupError):
        fail()
    assert sidecar.flush()
    assert bench.runs() == [[[0, 0]]]


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_what_was_handed_out_before_a_revocation_is_received(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, 0, 1)
    consumer.consume(10)
    consumer.consume(10)
    inside.callbacks["on_revoke"](inside, [ORDERS_0])
    assert bench.runs() == [[[0, 1]]]


def ahead(bench: Bench) -> list[Any]:
    return [(one["ahead"], one["runs"]) for one in bench.producer.said()]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("batches", [True, False])
def test_with_auto_commit_it_is_said_beforehand_how_far_records_may_be_handed_out(bench: Bench, batches: bool) -> None:
    sidecar = bench.sidecar(observe_before_commit=30)
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)

    def take(*offsets: int) -> None:
        inside.deliver("orders", 0, *offsets)
        for _ in range(1 if batches else len(offsets)):
            consumer.consume(len(offsets)) if batches else consumer.poll()

    take(100)
    assert ahead(bench) == [([100, 10_101], [])]  # before the application has it
    take(101, 102)
    assert len(ahead(bench)) == 1
    take(20_000)
    assert ahead(bench)[1:] == [([103, 59_801], [[100, 102]])]
    consumer.poll()
    assert sidecar.flush()
    assert ahead(bench)[-1][0] == [20_001, 59_801]


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_more_is_said_before_it_is_outrun(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    for first in range(0, 9_000, 3_000):
        inside.deliver("orders", 0, *range(first, first + 3_000))
        consumer.consume(3_000)
        assert sidecar.flush()
    consumer.poll()
    assert sidecar.flush()
    assert [one for one, _ in ahead(bench)] == [[0, 13_000], [3_000, 13_000], [6_000, 19_000], [9_000, 19_000]]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["close", "on_revoke", "on_lost"])
def test_with_auto_commit_the_end_is_said_too(bench: Bench, how: str) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    consumer.subscribe(["orders"])
    inside.deliver("orders", 0, 5, 6)
    consumer.consume(10)
    consumer.poll()
    if how == "close":
        consumer.close()
    else:
        inside.callbacks[how](inside, [ORDERS_0])
    assert sidecar.flush()
    assert ahead(bench)[-1] == ([7, 7], [[5, 6]])
    if how != "close":
        inside.callbacks["on_assign"](inside, [ORDERS_0])
        inside.deliver("orders", 0, 9)
        consumer.poll()
        assert ahead(bench)[-1] == ([9, 10_010], [])
    assert bench.tails_read == [("orders", 0)] * (1 if how == "close" else 2)


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_what_a_killed_owner_left_unsaid_is_unobserved(bench: Bench) -> None:
    bench.owners["orders", 0] = [Session("gone", 0, 90, 10_090)]
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.deliver("orders", 0, 100, 101)
    inside.deliver("orders", 1, 7)
    consumer.consume(10)
    consumer.poll()
    assert sidecar.flush()
    said = [(one["partition"], one["status"], one["runs"]) for one in bench.producer.said() if one["runs"]]
    assert sorted(said) == [(0, "received", [[100, 101]]), (0, "unobserved", [[90, 99]]), (1, "received", [[7, 7]])]


def test_without_a_group_nothing_is_committed_so_nothing_is_said_beforehand(bench: Bench) -> None:
    sidecar = bench.sidecar()
    inside = bench.consumer()
    consumer: Any = sidecar.wrap(inside, {})
    inside.deliver("orders", 0, 1)
    consumer.poll()
    consumer.poll()
    assert sidecar.flush()
    assert [(one["runs"], "ahead" in one) for one in bench.producer.said()] == [([[1, 1]], False)]
    assert bench.tails_read == []


@pytest.mark.usefixtures("patient")
def test_with_auto_commit_a_replay_is_reported_when_the_application_comes_back(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar, auto_commit=True)
    inside.queue.append(FakeMessage("retry", 0, 5, headers=SOURCE))
    consumer.poll()
    assert sidecar.flush()
    assert bench.runs() == []
    consumer.poll()
    assert sidecar.flush()
    assert sorted((one["topic"], one["runs"]) for one in bench.producer.said()[1:]) == [("orders", [[15012, 15012]]), ("retry", [[5, 5]])]
