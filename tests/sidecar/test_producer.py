"""Offsets that a transaction commits: received when it is committed, and not before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from gapstream_sidecar import Sidecar
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import FakeConsumer, FakeGroup, FakeMessage, FakeTransactions, received

SOURCE = [("source.topic", b"orders"), ("source.partition", b"3"), ("source.offset", b"15012")]


class Pipe:
    """A consumer and a producer of one sidecar, as a consume-transform-produce loop has them."""

    def __init__(self, bench: Bench, group: FakeGroup | None = None, **options: Any) -> None:
        self.sidecar: Sidecar = bench.sidecar(**options)
        self.group = group or FakeGroup()
        self.consumer: Any
        self.inside: FakeConsumer
        self.consumer, self.inside = bench.wrapped(self.sidecar, group=self.group)
        self.consumer.assign([TopicPartition("orders", 0)])
        self.transactions = FakeTransactions(self.group)
        self.producer: Any = self.sidecar.wrap(self.transactions)
        self.kafka = bench.producer

    def take(self, *offsets: int) -> None:
        """Begin a transaction, process records and hand over their offsets."""
        self.inside.deliver("orders", 0, *offsets)
        while self.consumer.poll() is not None:
            pass
        self.producer.begin_transaction()
        self.send()

    def send(self) -> None:
        where = self.consumer.position([TopicPartition("orders", 0)])
        self.producer.send_offsets_to_transaction(where, self.consumer.consumer_group_metadata(), 5.0)

    def said(self) -> list[tuple[int, list[list[int]]]]:
        assert self.sidecar.flush()
        return [(one["sequence"], one["runs"]) for one in self.kafka.said()]

    def rows(self) -> list[Any]:
        metadata = self.group.committed["orders", 0][1]
        return [row[1:] for row in json.loads(metadata)["said"]] if metadata else []


@pytest.mark.usefixtures("patient")
def test_a_committed_transaction_makes_received(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.take(0, 1, 5)
    assert pipe.said() == []
    pipe.producer.commit_transaction(5.0)
    assert pipe.said() == [(1, [[0, 1], [5, 5]])]
    assert pipe.group.committed["orders", 0][0] == 6


@pytest.mark.usefixtures("patient")
def test_an_aborted_one_does_not_and_the_next_time_is_the_first(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.take(0, 1)
    pipe.producer.abort_transaction()
    assert pipe.said() == []
    pipe.consumer.seek(TopicPartition("orders", 0, 0))
    pipe.take(0, 1, 2)
    pipe.producer.commit_transaction()
    assert [runs for _, runs in pipe.said()] == [[[0, 2]]]


@pytest.mark.usefixtures("patient")
def test_a_commit_that_failed_may_be_tried_again(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.take(0)
    pipe.transactions.commit_error = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    with pytest.raises(KafkaException):
        pipe.producer.commit_transaction()
    assert pipe.said() == []
    pipe.transactions.commit_error = None
    pipe.producer.commit_transaction()
    assert pipe.said() == [(1, [[0, 0]])]


@pytest.mark.usefixtures("patient")
def test_the_observation_travels_inside_the_transaction(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.take(0, 1)
    pipe.producer.commit_transaction()
    assert pipe.rows() == [[1, "received", None, [0, 0]]]
    pipe.take(2)
    pipe.send()  # tried again, or sent twice: the same is said
    pipe.producer.commit_transaction()
    assert pipe.rows() == [[1, "received", None, [0, 2]], [2, "received", None, [2, 0]]]
    assert pipe.said() == [(2, [[0, 2]])]


@pytest.mark.usefixtures("patient")
def test_the_next_owner_reports_what_a_killed_one_committed(bench: Bench) -> None:
    first = Pipe(bench)
    first.take(0, 1)
    first.producer.commit_transaction()
    first.take(2)  # killed here: this transaction is aborted, and what it read is read again
    second = Pipe(bench, first.group)
    second.take(2, 3)
    second.producer.commit_transaction()
    assert second.said() == [(1, [[0, 1]]), (2, [[2, 3]])]
    assert [one["source"] for one in second.kafka.said()] == [first.sidecar.source, second.sidecar.source]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("killed", [True, False])
def test_what_is_no_longer_known_of_a_transaction_is_unobserved(bench: Bench, killed: bool) -> None:
    """Too many holes for the memory's bound: also where the process is killed right after the commit."""
    first = Pipe(bench, max_backlog_bytes=256 << 10)
    offsets = range(0, 60_000, 2)
    first.take(*offsets)
    first.producer.commit_transaction()
    if not killed:
        assert first.sidecar.flush()
    second = Pipe(bench, first.group)
    second.take(60_000)
    second.producer.commit_transaction()
    assert second.sidecar.flush()
    told = [one for pipe in (first, second) for one in pipe.kafka.said()]
    covered = {status: set[int]() for status in ("received", "unobserved")}
    for one in told:
        covered[one["status"]].update(offset for low, high in one["runs"] for offset in range(low, high + 1))
    assert covered["unobserved"] & {0, 2, 4} == {0, 2, 4}
    assert covered["received"] <= {*offsets, 60_000}
    assert {*offsets, 60_000} <= covered["received"] | covered["unobserved"]


@pytest.mark.usefixtures("patient")
def test_a_replay_is_reported_under_its_source_too(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.inside.queue.append(FakeMessage("orders", 0, 9, headers=SOURCE))
    pipe.take()
    pipe.producer.commit_transaction()
    assert pipe.rows() == [[1, "received", None, [9, 1]], [1, "received", None, [15012, 1], "orders", 3]]
    assert pipe.sidecar.flush()
    assert sorted((one["partition"], one["runs"]) for one in pipe.kafka.said()) == [(0, [[9, 9]]), (3, [[15012, 15012]])]


@pytest.mark.usefixtures("patient")
def test_two_replays_of_one_record_are_received_twice(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.inside.queue.extend(FakeMessage("orders", 0, at, headers=SOURCE) for at in (9, 10))
    pipe.take()
    pipe.producer.commit_transaction()
    assert [row[:4] for row in pipe.rows()[1:]] == [[number, "received", None, [15012, 1]] for number in (1, 2)]
    assert pipe.sidecar.flush()
    assert [one["runs"] for one in pipe.kafka.said() if one["partition"] == 3] == 2 * [[[15012, 15012]]]


@pytest.mark.usefixtures("patient")
def test_a_header_beyond_the_logs_end_takes_no_other_along(bench: Bench) -> None:
    pipe = Pipe(bench)
    bench.log_ends["orders", 3] = 15_013
    beyond = [*SOURCE[:2], ("source.offset", b"15013")]
    for at, headers in ((9, SOURCE), (10, beyond)):
        pipe.inside.queue.append(FakeMessage("orders", 0, at, headers=headers))
        pipe.take()
    pipe.producer.commit_transaction()
    assert pipe.sidecar.flush()
    assert pipe.sidecar.flush(), "what lies beyond the end was put apart by the first"
    assert sorted((one["partition"], one["runs"]) for one in pipe.kafka.said()) == [
        (0, [[9, 10]]),
        (3, [[15012, 15012]]),
        (3, [[15013, 15013]]),
    ]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("sent", [True, False])
def test_what_several_transactions_replayed_is_told_once_also_after_a_kill(bench: Bench, sent: bool) -> None:
    """They share an observation, and travel as one for each."""
    first = Pipe(bench)
    for at in range(8):
        first.inside.queue.append(FakeMessage("orders", 0, at, headers=[*SOURCE[:2], ("source.offset", str(50 + at // 2).encode())]))
        first.take()
        first.producer.commit_transaction()
    if sent:
        assert first.sidecar.flush()
        assert len([one for one in first.kafka.said() if one["partition"] == 3]) < 8
    else:
        first.kafka.hold()
    second = Pipe(bench, first.group)
    second.take(8)
    second.producer.commit_transaction()
    assert second.sidecar.flush()
    told = received([first.kafka, second.kafka])
    assert told == {**{(("orders", 0), at): 1 for at in range(9)}, **{(("orders", 3), 50 + at): 2 for at in range(4)}}


@pytest.mark.usefixtures("patient")
def test_an_applications_own_metadata_stay(bench: Bench) -> None:
    pipe = Pipe(bench)
    pipe.inside.deliver("orders", 0, 0)
    pipe.consumer.poll()
    pipe.producer.send_offsets_to_transaction([TopicPartition("orders", 0, 1, "theirs"), TopicPartition("events", 0, 4)], b"")
    pipe.producer.commit_transaction()
    assert pipe.group.committed == {("orders", 0): (1, "theirs"), ("events", 0): (4, None)}
    assert pipe.said() == [(1, [[0, 0]])]


def test_explicit_follows_no_transaction(bench: Bench) -> None:
    sidecar = bench.sidecar(explicit=True)
    consumer, inside = bench.wrapped(sidecar)
    transactions = FakeTransactions(inside.group)
    producer: Any = sidecar.wrap(transactions)
    inside.deliver("orders", 0, 0)
    consumer.poll()
    producer.send_offsets_to_transaction([TopicPartition("orders", 0, 1)], consumer.consumer_group_metadata())
    producer.commit_transaction()
    assert sidecar.flush()
    assert bench.producer.records == []


def test_a_producer_that_is_not_wrapped_is_missed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = bench.sidecar()
    consumer, _ = bench.wrapped(sidecar)
    consumer.consumer_group_metadata()
    assert "sidecar.wrap(producer)" in caplog.text
    caplog.clear()
    other = bench.sidecar()
    consumer, _ = bench.wrapped(other)
    assert other.wrap(FakeTransactions(FakeGroup()))
    consumer.consumer_group_metadata()
    assert caplog.records == []


def test_a_fault_inside_does_not_reach_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(bench)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gapstream_sidecar.deliveries.Deliveries.ask", broken)
    pipe.take(0)
    pipe.producer.commit_transaction()
    assert pipe.group.committed["orders", 0] == (1, None)
    assert pipe.sidecar.stats.failed == 1


def test_everything_else_is_the_producers_own(bench: Bench) -> None:
    pipe = Pipe(bench)
    assert pipe.producer.produce("orders", value=b"x") == "orders b'x'"
    assert bool(pipe.producer)
    assert len(pipe.producer) == 0
    pipe.producer.note = 3
    assert vars(pipe.transactions)["note"] == 3
    assert "produce" in dir(pipe.producer)
    assert repr(pipe.transactions) in repr(pipe.producer)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pipe.producer.nonsense
    assert isinstance(pipe.producer, FakeTransactions)
    real = Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    with pipe.sidecar.wrap(real) as same:
        same.purge()
        assert same.flush(0) == 0
