"""Processes that fork, and processes that end."""

from __future__ import annotations

import json

import pytest

from tests.sidecar.watched import run

BEGIN = """
        import json, multiprocessing, os, threading
        import gapstream_sidecar.reporter, gapstream_sidecar.sidecar
        from gapstream_sidecar import Sidecar
        from tests.sidecar.fakes import FakeConsumer, FakeProducer

        class Telling(FakeProducer):
            def land(self, record):
                said = json.loads(record[2])
                told = [os.getpid(), said["source"], said["sequence"], said["runs"]]
                os.write(1, (json.dumps(told, separators=(",", ":")) + "\\n").encode())

        gapstream_sidecar.sidecar.Producer = lambda settings: Telling([])
        gapstream_sidecar.reporter.LINGER_S = gapstream_sidecar.reporter.SKIPPED_LINGER_S = 3_600.0  # only the end sends
        sidecar = Sidecar({"bootstrap.servers": "nowhere:1"}, "billing")
"""


def told(script: str) -> list[tuple[int, str, int, list[list[int]]]]:
    """Process, source, number and runs of what was sent."""
    return [tuple(json.loads(line)) for line in run(BEGIN + script)]


def test_what_the_parent_was_handed_is_the_parents_to_report() -> None:
    said = told("""
        inside = FakeConsumer([])
        consumer = sidecar.wrap(inside, {"group.id": "g", "enable.auto.commit": False})
        inside.deliver("orders", 0, 1, 2, 3)
        messages = consumer.consume(3, 0)
        sidecar.received("events", 0, 8)
        locked, forked = threading.Event(), threading.Event()
        def hold():
            with consumer._follower.lock, sidecar._reporter._changed:
                locked.set()
                forked.wait()
        other = threading.Thread(target=hold)
        other.start()
        locked.wait()
        child = os.fork()
        forked.set()
        if child:
            other.join()
            _, status = os.waitpid(child, 0)
            assert status == 0
            consumer.commit(message=messages[-1])
        else:
            consumer.commit(message=messages[-1])  # a consumer does not work in a child; ours must neither hang nor report
            sidecar.received("orders", 0, 9)
        """)
    (child, source, number, runs), *parents = said
    assert (number, runs) == (1, [[9, 9]])
    assert sorted(one[3] for one in parents) == [[[1, 3]], [[8, 8]]]
    assert all(one[0] != child and one[1] != source for one in parents)


def test_a_transaction_under_way_is_the_parents_to_commit() -> None:
    said = told("""
        from confluent_kafka import TopicPartition
        from tests.sidecar.fakes import FakeGroup, FakeTransactions
        group = FakeGroup()
        inside = FakeConsumer([], group=group)
        consumer = sidecar.wrap(inside, {"group.id": "g", "enable.auto.commit": False})
        producer = sidecar.wrap(FakeTransactions(group))
        consumer.assign([TopicPartition("orders", 0)])
        inside.deliver("orders", 0, 1, 2, 3)
        consumer.consume(3, 0)
        producer.begin_transaction()
        producer.send_offsets_to_transaction(
            consumer.position([TopicPartition("orders", 0)]), consumer.consumer_group_metadata(), 5.0
        )
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            producer.commit_transaction(5.0)
        else:
            producer.commit_transaction(5.0)  # a producer does not work in a child; ours must not report for the parent
            sidecar.received("orders", 0, 9)
        """)
    assert [one[3] for one in said] == [[[9, 9]], [[1, 3]]]


def test_an_attached_application_forks_while_another_thread_acknowledges() -> None:
    said = told("""
        from types import SimpleNamespace
        signal = SimpleNamespace(connect=lambda handler: None)
        app = SimpleNamespace(
            on_partitions_assigned=signal, on_partitions_revoked=signal, main=None,
            sensors=SimpleNamespace(on_message_out=lambda *told: None),
            topics=SimpleNamespace(acks_enabled_for=lambda topic: True),
        )
        sidecar.attach(app)
        locked, forked = threading.Event(), threading.Event()
        class Slow(SimpleNamespace):
            def __setattr__(self, name, value):
                locked.set()
                forked.wait()
        def event(kind, offset):
            return kind(topic="orders", partition=0, offset=offset, headers=None)
        other = threading.Thread(target=app.sensors.on_message_out, args=(0, 7, event(Slow, 7)))
        other.start()
        locked.wait()
        child = os.fork()
        forked.set()
        if child:
            other.join()
            assert os.waitpid(child, 0)[1] == 0
        else:
            app.sensors.on_message_out(0, 9, event(SimpleNamespace, 9))
        """)
    assert [one[3] for one in said] == [[[9, 9]], [[7, 7]]]


@pytest.mark.parametrize("made_in", ["parent", "child"])
def test_a_process_of_multiprocessing_sends_at_its_end(made_in: str) -> None:
    said = told(f"""
        def work():
            mine = sidecar if {made_in == "parent"} else Sidecar({{"bootstrap.servers": "nowhere:1"}}, "billing")
            mine.received("orders", 0, os.getppid())
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0
        sidecar.received("orders", 0, 5)
        """)
    first, second = said
    assert (first[3], second[3]) == ([[second[0], second[0]]], [[5, 5]])
    assert first[1] != second[1]


def test_a_process_of_multiprocessing_is_not_held_up_without_brokers() -> None:
    (seconds,) = run("""
        import multiprocessing, time
        from gapstream_sidecar import Sidecar
        def work():
            Sidecar({"bootstrap.servers": "127.0.0.1:1"}, "billing").received("orders", 0, 5)
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        began = time.monotonic()
        child.join()
        assert child.exitcode == 0
        print(time.monotonic() - began)
        """)
    assert 1.5 < float(seconds) < 30
