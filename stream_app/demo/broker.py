"""The embedded broker: librdkafka's mock cluster, in this process and ended with it.

What it is (src/rdkafka_mock.h of librdkafka): one broker on loopback that speaks Kafka's protocol, transactions and consumer
groups included, and keeps records in memory. What it is not: it makes no topics by request (a topic is made, with four
partitions, when a client that may create topics asks for it), it keeps only the newest 5 MB of a partition, it knows no
topic settings, and it does not fence. So the worker runs with ``app.topics.create: false`` here, and alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import KafkaException, Producer

from stream_app.errors import Unavailable

CALL_SECONDS = 10.0
SILENT = 0
"""librdkafka's log level for nothing: it would tell on stderr that the cluster is a mock."""


class EmbeddedBroker:
    """Runs from its making to :meth:`close`, on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        """Raises Unavailable if it does not start."""
        self._client: Producer | None = Producer({"bootstrap.servers": "127.0.0.1", "test.mock.num.brokers": 1, "log_level": SILENT})
        self.bootstrap = self._find()

    def _find(self) -> str:
        assert self._client is not None
        try:
            brokers = self._client.list_topics(timeout=CALL_SECONDS).brokers
        except KafkaException as error:
            raise Unavailable(f"the embedded broker did not start ({error}): is 127.0.0.1 usable here?") from error
        broker = next(iter(brokers.values()))
        return f"{broker.host}:{broker.port}"

    def make(self, topics: Iterable[str]) -> dict[str, int]:
        """Topic -> number of its partitions; those that are not there yet are made by being asked for."""
        assert self._client is not None
        made = {}
        for topic in topics:
            try:
                found = self._client.list_topics(topic, timeout=CALL_SECONDS).topics[topic]
            except KafkaException as error:
                raise Unavailable(f"the embedded broker did not make the topic {topic} ({error}); run the demo again") from error
            if found.error is not None:
                raise Unavailable(f"the embedded broker did not make the topic {topic} ({found.error}); run the demo again")
            made[topic] = len(found.partitions)
        return made

    def close(self) -> None:
        """End it; clients see their connections break."""
        self._client = None
