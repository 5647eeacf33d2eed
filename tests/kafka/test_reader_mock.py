"""The log reader and the second look against librdkafka's mock cluster, which the demo runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from stream_app.core.model import Absent
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.probe import look
from stream_app.kafka.protocol import Isolation
from tests.support.log_owner import owning

TOPIC = "orders"
PARTITIONS = 4
"""What the mock cluster gives every topic."""


@pytest.fixture
def mock() -> Iterator[tuple[Producer, KafkaSettings]]:
    producer = Producer({"bootstrap.servers": "unused:1", "test.mock.num.brokers": 2, "transactional.id": "t", "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    yield producer, KafkaSettings(tuple((one.host, one.port) for one in brokers))
    producer.close()


async def test_transactions_on_the_mock_cluster(mock: tuple[Producer, KafkaSettings]) -> None:
    producer, settings = mock
    producer.init_transactions(10)
    for _ in range(3):
        producer.begin_transaction()
        for partition in range(PARTITIONS):
            for number in range(50):
                producer.produce(TOPIC, b"value" if number != 7 else None, partition=partition)
        producer.commit_transaction(10)
    async with owning(settings) as owner:
        for partition in range(PARTITIONS):
            owner.assign(TOPIC, partition, None, check_crcs=False)  # its control batches have none
        for partition in range(PARTITIONS):
            stop = (await owner.reader.ends(TOPIC, partition)).last_stable
            got = await owner.read_to(stop, TOPIC, partition)
            assert got.position == 0
            assert sum(stop - first for first, stop in got.records) == 150
            assert set(got.absent) <= {Absent.TRANSACTION_MARKER}
            assert (got.holes, got.unreadable) == ((), ())
        assert owner.troubles == []
        found = await look(settings, TOPIC, 1, bytes(16), Isolation.READ_COMMITTED, ((5, 9),))
    assert (found.upto, found.tombstones, found.holes) == (9, ((7, 8),), ())
