"""The sidecar inside real consumers of a real Kafka; what it said is read back by a client of its own."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from kafka_cluster import KafkaCluster

from gapstream_sidecar import Sidecar
from tests.sidecar.watched import PATIENCE_S, Watched, consume, run
from tests.support.kafka_kit import KafkaKit


@pytest.fixture
def watch(kit: KafkaKit) -> Iterator[Callable[..., Watched]]:
    with ExitStack() as opened:

        def make(partitions: int = 1, observations: bool = True) -> Watched:
            made = Watched(kit, partitions, observations)
            opened.enter_context(made.opened)
            return made

        yield make


def test_commits_are_observed_before_they_are_made(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar)
    kit.produce(watched.topic, n=10)
    consumer.assign([TopicPartition(watched.topic, 0, 0)])
    messages = consume(consumer, 10)
    consumer.commit(message=messages[3], asynchronous=False)
    (said,) = watched.said()
    said.pop("at")
    assert said == {
        "v": 1, "sink": "billing", "topic": watched.topic, "partition": 0, "runs": [[0, 3]],
        "status": "received", "source": sidecar.source, "sequence": 1,
    }  # fmt: skip
    consumer.commit(offsets=[TopicPartition(watched.topic, 0, 7)])
    assert watched.runs()[1:] == [[[4, 6]]]
    consumer.commit()
    assert watched.runs()[2:] == [[[7, 9]]]
    consumer.commit(offsets=[TopicPartition(watched.topic, 0, 10)], asynchronous=False)
    assert len(watched.said()) == 3
    assert consumer.committed([TopicPartition(watched.topic, 0)], 10)[0].offset == 10
    assert [one["sequence"] for one in watched.said()] == [1, 2, 3]


def test_poll_and_consume_skip_and_repeat(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    consumer = watched.consumer(watched.sidecar())
    kit.produce(watched.topic, n=30)
    consumer.assign([TopicPartition(watched.topic, 0, 0)])
    first = [consumer.poll(PATIENCE_S) for _ in range(5)]
    assert [one.offset() for one in first if one is not None] == [0, 1, 2, 3, 4]
    consumer.seek(TopicPartition(watched.topic, 0, 20))
    assert consume(consumer, 5)[0].offset() == 20
    consumer.commit(asynchronous=False)
    assert watched.runs() == [[[0, 4], [20, 24]]]
    consumer.seek(TopicPartition(watched.topic, 0, 22))
    again = consume(consumer, 8)
    assert again[0].offset() == 22
    consumer.commit(message=again[-1], asynchronous=False)
    assert [(one["sequence"], one["runs"]) for one in watched.said()] == [(1, [[0, 4], [20, 24]]), (2, [[22, 29]])]


def test_markers_and_aborted_records_are_not_received(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    consumer = watched.consumer(watched.sidecar())
    kit.transact(watched.topic, n=3)  # 0-2, marker 3
    kit.transact(watched.topic, n=2, commit=False)  # 4-5, marker 6
    kit.transact(watched.topic, n=1)  # 7, marker 8
    consumer.assign([TopicPartition(watched.topic, 0, 0)])
    consume(consumer, 4)
    consumer.commit(offsets=[TopicPartition(watched.topic, 0, 9)], asynchronous=False)
    assert watched.runs() == [[[0, 2], [7, 7]]]


def test_two_instances_of_one_group_share_the_work(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch(4)
    for partition in range(4):
        kit.produce(watched.topic, partition, 50)
    group = uuid.uuid4().hex
    first, second = watched.sidecar(), watched.sidecar()
    assert first.source != second.source
    consumers = [watched.consumer(first, group), watched.consumer(second, group)]
    for one in consumers:
        one.subscribe([watched.topic])
    received = Counter[tuple[int | None, int | None]]()
    deadline = time.monotonic() + PATIENCE_S
    while len(received) < 200:
        assert time.monotonic() < deadline
        for one in consumers:
            messages = [message for message in one.consume(20, 0.05) if message.error() is None]
            received.update((message.partition(), message.offset()) for message in messages)
            if messages:
                one.commit(asynchronous=False)
    assert first.flush(PATIENCE_S)
    assert second.flush(PATIENCE_S)
    for partition in range(4):
        expected = {offset: number for (where, offset), number in received.items() if where == partition}
        assert watched.receipts(partition) == expected
        numbers: dict[str, list[int]] = {}
        for said in watched.said(partition):
            numbers.setdefault(said["source"], []).append(said["sequence"])
        assert all(one == list(range(1, len(one) + 1)) for one in numbers.values())


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_a_rebalance_forgets_what_was_not_committed(watch: Callable[..., Watched], kit: KafkaKit, strategy: str) -> None:
    watched = watch(2)
    for partition in range(2):
        kit.produce(watched.topic, partition, 10)
    group = uuid.uuid4().hex
    stay, come = watched.sidecar(), watched.sidecar()
    old = watched.consumer(stay, group, **{"partition.assignment.strategy": strategy})
    new = watched.consumer(come, group, **{"partition.assignment.strategy": strategy})
    revoked: set[int] = set()

    def on_revoke(given: Any, partitions: list[TopicPartition]) -> None:
        """Commits half of what was delivered, through the consumer that the callback is given."""
        if revoked:
            return  # the end of the test; the group may have moved on
        revoked.update(one.partition for one in partitions)
        given.commit(offsets=[TopicPartition(watched.topic, one.partition, 5) for one in partitions], asynchronous=False)

    old.subscribe([watched.topic], on_revoke=on_revoke)
    consume(old, 20)
    new.subscribe([watched.topic])
    moved: list[Any] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(moved) < 5:  # the rest of the partition that moved
        assert time.monotonic() < deadline
        old.poll(0.05)
        moved += [message for message in new.consume(20, 0.05) if message.error() is None]
    (partition,) = {message.partition() for message in moved}
    assert partition in revoked
    assert [message.offset() for message in moved] == [5, 6, 7, 8, 9]
    new.commit(asynchronous=False)
    assert stay.flush(PATIENCE_S)
    assert [(one["source"], one["runs"]) for one in watched.said(partition)] == [(stay.source, [[0, 4]]), (come.source, [[5, 9]])]


def test_a_redelivery_to_another_instance_is_told_again(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    """Processed and asked for, but the commit came to nothing: the next instance processes it too, a true duplicate."""
    watched = watch()
    kit.produce(watched.topic, n=10)
    group = uuid.uuid4().hex
    sidecars = [watched.sidecar(), watched.sidecar()]
    for one in sidecars:
        consumer = watched.consumer(one, group)
        consumer.subscribe([watched.topic])
        consume(consumer, 10)
        consumer.commit(asynchronous=False)
        consumer.commit(offsets=[TopicPartition(watched.topic, 0, 0)], asynchronous=False)  # stands for a commit that was lost
        consumer.close()
    assert [(one["source"], one["sequence"], one["runs"]) for one in watched.said()] == [
        (sidecars[0].source, 1, [[0, 9]]),
        (sidecars[1].source, 1, [[0, 9]]),
    ]


def test_a_topic_that_does_not_exist_yet(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch(2, observations=False)
    sidecar = watched.sidecar(observe_before_commit=0.2)
    consumer = watched.consumer(sidecar)
    kit.produce(watched.topic, n=20)
    consumer.assign([TopicPartition(watched.topic, 0, 0)])
    messages = consume(consumer, 20)
    began = time.monotonic()
    for message in messages:
        consumer.commit(message=message)
    assert time.monotonic() - began < 2  # one wait of 0.2 s, not twenty
    assert watched.observations not in kit.admin.list_topics(timeout=10).topics
    watched.make_observations()
    assert sidecar.flush(PATIENCE_S)
    assert watched.receipts(0) == Counter(range(20))
    assert len(watched.said()) == 2  # the first, and all that gathered behind it


def test_a_partition_that_does_not_exist_yet(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch(1)
    sidecar = watched.sidecar()
    sidecar.received(watched.topic, 0, 1)
    assert sidecar.flush(PATIENCE_S)
    sidecar.received(watched.topic, 2, 5)
    assert not sidecar.flush(0.5)
    kit.add_partitions(watched.observations, 3)
    sidecar.received(watched.topic, 2, 6)
    assert sidecar.flush(PATIENCE_S)
    assert watched.receipts(2) == Counter([5, 6])


def test_the_end_waits_for_no_topic_that_nobody_watches(
    watch: Callable[..., Watched], kit: KafkaKit, caplog: pytest.LogCaptureFixture
) -> None:
    watched, unwatched = watch(), watch(observations=False)
    headers = [("source.topic", unwatched.topic.encode()), ("source.partition", b"0"), ("source.offset", b"3")]
    kit.produce(watched.topic, n=5, headers=headers)
    kit.produce(unwatched.topic, n=5)
    sidecar = watched.sidecar(observe_before_commit=0.2)
    consumer = watched.consumer(sidecar)
    consumer.subscribe([watched.topic, unwatched.topic])
    consume(consumer, 10)
    consumer.commit(asynchronous=False)
    began = time.monotonic()
    sidecar.close(timeout=15)
    assert time.monotonic() - began < 5
    assert watched.receipts() == Counter(range(5))
    assert "will be told as missing" not in caplog.text
    assert f"offsets of ('{unwatched.topic}', 0) unreported, which nobody watches" in caplog.text


def test_a_broker_that_is_away(kit3: KafkaKit, kafka3: KafkaCluster) -> None:
    """Commits of the application's own consumer stay quick, and nothing is lost when the broker is back."""
    watched = Watched(kit3, 1)
    with watched.opened:
        sidecar = watched.sidecar(observe_before_commit=0.2)
        sidecar.received(watched.topic, 0, 0)
        assert sidecar.flush(PATIENCE_S)
        consumer = watched.consumer(sidecar)
        kit3.produce(watched.topic, n=50)
        consumer.assign([TopicPartition(watched.topic, 0, 0)])
        messages = consume(consumer, 50)
        waits = []
        try:
            for broker in range(3):
                kafka3.pause_broker(broker)
            for message in messages[:-1]:
                began = time.monotonic()
                consumer.commit(message=message, asynchronous=True)
                waits.append(time.monotonic() - began)
        finally:
            for broker in range(3):
                kafka3.resume_broker(broker)
        assert 0.2 <= max(waits) < 1.5
        assert sum(waits) < 3
        assert sidecar.flush(60)
        consumer.commit(message=messages[-1], asynchronous=False)
        assert watched.receipts(0) == Counter({0: 2, **dict.fromkeys(range(1, 50), 1)})
        said = watched.said()
        assert [one["sequence"] for one in said] == list(range(1, len(said) + 1))
        assert sidecar.stats.dropped == 0


def test_no_broker_at_all(caplog: pytest.LogCaptureFixture) -> None:
    sidecar = Sidecar({"bootstrap.servers": "127.0.0.1:1"}, sink="billing", max_backlog_bytes=256 << 10)
    began = time.monotonic()
    for offset in range(0, 200_000, 2):
        sidecar.received("orders", 0, offset)
    assert not sidecar.flush(0.5)
    assert sidecar.stats.backlog_bytes <= 256 << 10
    assert sidecar.stats.dropped > 0
    sidecar.close(timeout=0.5)
    assert time.monotonic() - began < 20
    assert sum("gapstream_sidecar" in record.name for record in caplog.records) < 10


def test_the_end_of_the_interpreter_flushes(watch: Callable[..., Watched]) -> None:
    watched = watch()
    script = """
        from gapstream_sidecar import Sidecar
        sidecar = Sidecar({"bootstrap.servers": sys.argv[1]}, "billing")
        sidecar.received(sys.argv[2], 0, 5, 9)
        """
    run(script, watched.kit.bootstrap, watched.topic)
    assert watched.runs() == [[[5, 9]]]


def test_the_end_of_the_interpreter_is_not_held_up_without_brokers() -> None:
    script = """
        import atexit, time
        began = 0.0
        atexit.register(lambda: print(time.monotonic() - began))  # runs after the sidecar's
        from gapstream_sidecar import Sidecar
        sidecar = Sidecar({"bootstrap.servers": "127.0.0.1:1"}, "billing")
        sidecar.received("orders", 0, 5, 9)
        began = time.monotonic()
        """
    (seconds,) = run(script)
    assert 1.5 < float(seconds) < 6


def test_a_forked_child_reports_for_itself(watch: Callable[..., Watched]) -> None:
    watched = watch()
    script = """
        import os
        from gapstream_sidecar import Sidecar
        sidecar = Sidecar({"bootstrap.servers": sys.argv[1]}, "billing")
        sidecar.received(sys.argv[2], 0, 0)
        assert sidecar.flush(30)
        sidecar.received(sys.argv[2], 0, 1)  # not sent yet: the parent's to send
        child = os.fork()
        sidecar.received(sys.argv[2], 0, 3 if child else 2)
        assert sidecar.flush(30)
        print(sidecar.source)
        if child:
            _, status = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(status))
        """
    sources = run(script, watched.kit.bootstrap, watched.topic)
    assert len(set(sources)) == 2
    by_source: dict[str, list[tuple[int, Any]]] = {}
    for one in watched.said():
        by_source.setdefault(one["source"], []).append((one["sequence"], one["runs"]))
    assert set(by_source) == set(sources)
    assert [(1, [[2, 2]])] in by_source.values()
    parent = [run for told in by_source.values() for _, runs in told for run in runs if [2, 2] not in runs]
    assert sorted(offset for first, last in parent for offset in range(first, last + 1)) == [0, 1, 3]
