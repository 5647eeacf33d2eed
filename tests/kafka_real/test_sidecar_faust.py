"""The sidecar attached to real Faust applications on a real Kafka."""

from __future__ import annotations

import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.sidecar.watched import PATIENCE_S, Watched, run
from tests.support.kafka_kit import KafkaKit

PROGRAM = """
    import asyncio, logging, os, signal, tempfile
    import faust
    from gapstream_sidecar import Sidecar

    logging.disable()
    bootstrap, topic, group, number, dies = sys.argv[1:]
    options = dict(store="memory://", web_enabled=False, autodiscover=False, topic_partitions=2, worker_redirect_stdouts=False)
    options |= dict(topic_replication_factor=1, broker_session_timeout=6.0, broker_heartbeat_interval=1.0, datadir=tempfile.mkdtemp())
    app = faust.App(group, broker=f"kafka://{bootstrap}", broker_commit_interval=0.1, **options)
    sidecar = Sidecar({"bootstrap.servers": bootstrap}, "billing", observe_before_commit=10)
    sidecar.attach(app)
    seen = 0

    async def process(stream):
        global seen
        async for event in stream.events():
            seen += 1
            if seen == 30:
                await asyncio.sleep(0.5)  # what is acknowledged so far is told
            if seen == int(number):
                if dies == "True":
                    await asyncio.sleep(0.5)  # its commits are made, the event in hand is not done
                    os.kill(os.getpid(), signal.SIGKILL)
                asyncio.get_running_loop().call_later(0.5, done.set)

    app.agent(app.topic(topic, value_type=bytes, value_serializer="raw"))(process)

    async def main():
        global done
        done = asyncio.Event()
        app.loop = asyncio.get_running_loop()
        app.finalize()
        app.worker_init_post_autodiscover()
        starting = asyncio.create_task(app.start())
        await done.wait()
        await asyncio.wait([asyncio.create_task(app.stop())], timeout=20)
        starting.cancel()
        sidecar.close(20)
        print(seen)
        sys.stdout.flush()
        os._exit(0)  # Faust leaves threads behind

    asyncio.run(main())
    """
ONCE = """
    import gapstream_sidecar.pace
    gapstream_sidecar.pace.BURST = 1
    gapstream_sidecar.pace.IN_ORDER_S = gapstream_sidecar.pace.SKIPPED_S = 3_600.0
    """


@pytest.fixture
def watched(kit: KafkaKit) -> Iterator[Watched]:
    with ExitStack() as opened:
        made = Watched(kit, 2)
        opened.enter_context(made.opened)
        yield made


def test_acknowledged_events_are_received(watched: Watched) -> None:
    source = [("source.topic", watched.topic.encode()), ("source.partition", b"1"), ("source.offset", b"50")]
    for partition in range(2):
        watched.kit.produce(watched.topic, partition, 100)
    watched.kit.transact(watched.topic, 0, 2, commit=False)  # Faust reads them, as it is configured
    watched.kit.produce(watched.topic, 0, 1, headers=source)
    group = f"faust-{uuid.uuid4().hex[:8]}"
    (seen,) = run(PROGRAM, watched.kit.bootstrap, watched.topic, group, "203", "False", timeout=90)
    assert int(seen) == 203
    assert watched.receipts(0) == Counter([*range(102), 103])
    assert watched.receipts(1) == Counter(range(100)) + Counter([50])


def test_a_killed_application_leaves_no_false_gap(watched: Watched) -> None:
    watched.kit.produce(watched.topic, 0, 100)
    group = f"faust-{uuid.uuid4().hex[:8]}"
    arguments = (watched.kit.bootstrap, watched.topic, group)
    run(ONCE + PROGRAM, *arguments, "61", "True", status=-signal.SIGKILL, timeout=90)
    told = watched.receipts()
    assert 0 < len(told) < 60
    (committed,) = Consumer(watched.conf(group)).committed([TopicPartition(watched.topic, 0)], PATIENCE_S)
    assert committed.offset == 60
    (seen,) = run(PROGRAM, *arguments, "40", "False", timeout=90)
    assert int(seen) == 40
    assert watched.receipts() == Counter(range(100))
