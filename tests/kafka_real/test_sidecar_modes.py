"""Each way of committing on a real Kafka, and what the next owner finds where a process was killed."""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from tests.sidecar.watched import PATIENCE_S, Watched, consume, leave_behind, run
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import eventually


@pytest.fixture
def watch(kit: KafkaKit) -> Iterator[Callable[..., Watched]]:
    with ExitStack() as opened:

        def make(partitions: int = 1) -> Watched:
            made = Watched(kit, partitions)
            opened.enter_context(made.opened)
            return made

        yield make


def test_auto_commit_as_it_comes(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    """Nothing is configured about commits: each record is received once, whoever was handed it."""
    watched = watch()
    kit.produce(watched.topic, n=300)
    group = uuid.uuid4().hex
    for turn in range(3):
        sidecar = watched.sidecar()
        consumer = sidecar.wrap(Consumer({"bootstrap.servers": kit.bootstrap, "group.id": group, "auto.offset.reset": "earliest"}))
        consumer.subscribe([watched.topic])
        if turn % 2:
            consume(consumer, 100)
        else:
            assert all(consumer.poll(PATIENCE_S) is not None for _ in range(100))
        consumer.close()
        assert sidecar.flush(PATIENCE_S)
    assert watched.receipts() == Counter(range(300))
    assert watched.receipts(status="unobserved") == Counter()


def test_stored_offsets_are_received_before_they_are_committed(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    sidecar = watched.sidecar()
    options = {"enable.auto.commit": True, "enable.auto.offset.store": False, "auto.commit.interval.ms": 50}
    consumer = watched.consumer(sidecar, **options)
    kit.produce(watched.topic, n=20)
    consumer.subscribe([watched.topic])
    messages = consume(consumer, 20)
    consumer.store_offsets(message=messages[9])
    consumer.store_offsets(offsets=[TopicPartition(watched.topic, 0, 15)])
    assert sidecar.flush(PATIENCE_S)
    assert watched.receipts() == Counter(range(15))
    where = [TopicPartition(watched.topic, 0)]
    eventually(lambda: consumer.poll(0) or consumer.committed(where, 10)[0].offset == 15, "the client's own commit")


def test_an_offset_reset_inside_the_client_skips(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar, **{"queued.min.messages": 1, "fetch.message.max.bytes": 100})
    kit.produce(watched.topic, n=10, value=b"x" * 200)
    consumer.subscribe([watched.topic])
    consume(consumer, 5)
    consumer.pause(consumer.assignment())
    kit.produce(watched.topic, n=90)
    kit.delete_records(watched.topic, 0, 60)
    consumer.seek(TopicPartition(watched.topic, 0, 30))  # no longer there: the client resets to the earliest
    consumer.resume(consumer.assignment())
    found = consume(consumer, 40)
    assert found[0].offset() == 60
    consumer.commit(asynchronous=False)
    assert sidecar.flush(PATIENCE_S)
    assert watched.receipts() == Counter([*range(5), *range(60, 100)])


def test_committed_metadata_are_the_last_word_of_a_killed_process(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    kit.produce(watched.topic, n=100)
    group = uuid.uuid4().hex
    script = """
        import gapstream_sidecar.pace
        gapstream_sidecar.pace.BURST = 1
        gapstream_sidecar.pace.IN_ORDER_S = gapstream_sidecar.pace.SKIPPED_S = 3_600.0
        import os, signal
        from confluent_kafka import Consumer
        from gapstream_sidecar import Sidecar
        sidecar = Sidecar({"bootstrap.servers": sys.argv[1]}, "billing", observe_before_commit=10)
        conf = {"bootstrap.servers": sys.argv[1], "group.id": sys.argv[3], "session.timeout.ms": 6_000}
        conf |= {"enable.auto.commit": False, "auto.offset.reset": "earliest"}
        consumer = sidecar.wrap(Consumer(conf))
        consumer.subscribe([sys.argv[2]])
        done = 0
        while done < 60:
            message = consumer.poll(1.0)
            if message is None:
                continue
            done += 1
            if message.offset() % 10 != 5:
                consumer.commit(message=message, asynchronous=False)
            else:  # passes over the next one
                consumer.seek(type(consumer.assignment()[0])(sys.argv[2], 0, message.offset() + 2))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    run(script, kit.bootstrap, watched.topic, group, status=-signal.SIGKILL)
    before = watched.receipts()
    assert len(before) == 1
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar, group)
    consumer.subscribe([watched.topic])
    rest = consume(consumer, 35)
    consumer.commit(asynchronous=False)
    assert sidecar.flush(PATIENCE_S)
    assert rest[0].offset() == 65
    skipped = {offset for offset in range(65) if offset % 10 == 6}
    assert watched.receipts() == Counter(offset for offset in range(100) if offset not in skipped)
    assert watched.receipts(status="unobserved") == Counter()


def test_who_assigns_by_hand_reports_what_a_killed_owner_could_not(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    """As soon as he polls: he may have nothing to commit for long."""
    watched, group = watch(), uuid.uuid4().hex
    kit.produce(watched.topic, n=5)
    leave_behind(watched, group)
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar, group)
    consumer.assign([TopicPartition(watched.topic, 0, OFFSET_END)])
    deadline = time.monotonic() + PATIENCE_S
    while not watched.said():
        assert time.monotonic() < deadline
        assert consumer.poll(0.1) is None
    assert watched.receipts() == Counter(range(5))


def test_what_auto_commit_took_with_it_is_unobserved(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    """Killed between the client's commit and the report: what was handed out there is known to nobody."""
    watched = watch()
    kit.produce(watched.topic, n=1_000)
    group = uuid.uuid4().hex
    script = """
        import gapstream_sidecar.reporter
        gapstream_sidecar.reporter.LINGER_S = gapstream_sidecar.reporter.SKIPPED_LINGER_S = 3_600.0
        import os, signal, time
        from confluent_kafka import Consumer, TopicPartition
        from gapstream_sidecar import Sidecar
        sidecar = Sidecar({"bootstrap.servers": sys.argv[1]}, "billing", observe_before_commit=10)
        conf = {"bootstrap.servers": sys.argv[1], "group.id": sys.argv[3], "session.timeout.ms": 6_000}
        conf |= {"auto.commit.interval.ms": 20, "auto.offset.reset": "earliest"}
        consumer = sidecar.wrap(Consumer(conf))
        consumer.subscribe([sys.argv[2]])
        done = 0
        while done < 300:
            done += len(consumer.consume(100, 1.0))
        sidecar.flush()
        while done < 600:
            done += len(consumer.consume(100, 1.0))
        where = [TopicPartition(sys.argv[2], 0)]
        while consumer.committed(where, 10)[0].offset < 600:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    run(script, kit.bootstrap, watched.topic, group, status=-signal.SIGKILL)
    told = watched.receipts()
    assert 0 < len(told) < 600
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar, group, **{"enable.auto.commit": True})
    consumer.subscribe([watched.topic])
    assert consume(consumer, 400)[0].offset() == 600
    consumer.poll(0)
    assert sidecar.flush(PATIENCE_S)
    assert watched.receipts() == told + Counter(range(600, 1_000))
    assert watched.receipts(status="unobserved") == Counter(range(len(told), 600))


class Pipe:
    """A consume-transform-produce loop."""

    def __init__(self, watched: Watched, group: str) -> None:
        self.sidecar = watched.sidecar()
        self.consumer = watched.consumer(self.sidecar, group)
        self.consumer.subscribe([watched.topic])
        conf = {"bootstrap.servers": watched.kit.bootstrap, "transactional.id": f"pipe-{group}", "log_level": 2}
        self.producer = self.sidecar.wrap(Producer(conf))
        self.producer.init_transactions(PATIENCE_S)

    def take(self, number: int) -> list[Any]:
        """The records of a transaction that is not committed yet."""
        self.producer.begin_transaction()
        messages = consume(self.consumer, number)
        where = self.consumer.position(self.consumer.assignment())
        self.producer.send_offsets_to_transaction(where, self.consumer.consumer_group_metadata(), PATIENCE_S)
        return messages


def test_transactions_make_received_what_they_commit(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    kit.produce(watched.topic, n=100)
    pipe = Pipe(watched, uuid.uuid4().hex)
    assert [one.offset() for one in pipe.take(10)] == list(range(10))
    pipe.producer.commit_transaction(PATIENCE_S)
    pipe.take(10)
    pipe.producer.abort_transaction(PATIENCE_S)
    pipe.consumer.seek(TopicPartition(watched.topic, 0, 10))
    assert [one.offset() for one in pipe.take(90)] == list(range(10, 100))
    pipe.producer.commit_transaction(PATIENCE_S)
    assert pipe.sidecar.flush(PATIENCE_S)
    assert watched.receipts() == Counter(range(100))


def test_a_transaction_carries_its_observation(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    """The first process never reports; what its committed transactions did is reported by the second, and nothing else."""
    watched = watch()
    kit.produce(watched.topic, n=60)
    group = uuid.uuid4().hex
    first = Pipe(watched, group)
    first.sidecar.received(watched.topic, 0, 10**6)  # keeps it busy: gapstream rejects it, the log has no such offset
    reporter: Any = first.sidecar
    reporter._reporter.hold([(watched.topic, 0)], 3_600.0)
    for commit in (True, True, False):
        first.take(20)
        if commit:
            first.producer.commit_transaction(PATIENCE_S)
    first.consumer.close()
    assert watched.said() == []
    second = Pipe(watched, group)  # its producer ends the open transaction
    assert [one.offset() for one in second.take(20)] == list(range(40, 60))
    second.producer.commit_transaction(PATIENCE_S)
    assert second.sidecar.flush(PATIENCE_S)
    assert {offset: times for offset, times in watched.receipts().items() if offset < 60} == Counter(range(60))
    assert {one["source"] for one in watched.said()} == {first.sidecar.source, second.sidecar.source}


def test_a_replayed_record_is_received_where_it_came_from(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched, retry = watch(2), watch()
    headers = [("source.topic", watched.topic.encode()), ("source.partition", b"1"), ("source.offset", b"7")]
    kit.produce(retry.topic, n=2)
    kit.produce(retry.topic, n=1, headers=headers)
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar)
    consumer.subscribe([retry.topic])
    consume(consumer, 3)
    consumer.commit(asynchronous=False)
    assert sidecar.flush(PATIENCE_S)
    assert (watched.receipts(1), retry.receipts()) == (Counter([7]), Counter(range(3)))


def test_headers_that_cant_be_right_take_no_others_along(
    watch: Callable[..., Watched], kit: KafkaKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is not written yet, and of a partition and a topic that are not there: they neither harm nor hold up."""
    monkeypatch.setattr("gapstream_sidecar.doubts.NOWHERE_S", 0.0)
    watched, retry = watch(2), watch()
    kit.produce(watched.topic, 1, n=20)
    sources = [(watched.topic, 1, 7), (watched.topic, 1, 20), (watched.topic, 9, 3), ("nowhere", 0, 1), (watched.topic, 1, 2**60)]
    for topic, partition, offset in [*sources, (watched.topic, 1, 19)]:
        values = (topic, str(partition), str(offset))
        headers = [(f"source.{name}", value.encode()) for name, value in zip(("topic", "partition", "offset"), values, strict=True)]
        kit.produce(retry.topic, n=1, headers=headers)
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar)
    consumer.subscribe([retry.topic])
    consume(consumer, len(sources) + 1)
    consumer.commit(asynchronous=False)
    assert sidecar.flush(PATIENCE_S)
    assert watched.runs(1) == [[[7, 7], [19, 19]], [[20, 20], [2**60, 2**60]]]
    assert retry.receipts() == Counter(range(len(sources) + 1))
    assert (sidecar.stats.dropped, sidecar.stats.backlog_bytes) == (2, 0)


def test_commits_in_a_hurry_report_once_a_second(watch: Callable[..., Watched], kit: KafkaKit) -> None:
    watched = watch()
    kit.produce(watched.topic, n=300)
    sidecar = watched.sidecar()
    consumer = watched.consumer(sidecar)
    consumer.subscribe([watched.topic])
    began = time.monotonic()
    for message in consume(consumer, 300):
        consumer.commit(message=message)
    seconds = time.monotonic() - began
    assert sidecar.flush(PATIENCE_S)
    assert watched.receipts() == Counter(range(300))
    assert len(watched.said()) <= 5 + seconds + 2
