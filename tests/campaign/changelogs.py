"""The state that an application keeps in its changelogs, as a new owner would read it now."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_app.core.ledger import Ledger
from stream_app.core.policy import Policy
from stream_app.core.state import StateCodec
from tests.support.dump_log import Where
from tests.support.kafka_kit import KafkaKit

PATIENCE_S = 120.0


class Changelogs:
    """Follows the changelogs of some partitions; they exist."""

    def __init__(self, kit: KafkaKit, app_id: str, places: Iterable[Where], sink: str) -> None:
        """``sink``: the one that is configured for all of them."""
        self._kit, self._sink = kit, sink
        self._names = {place: (f"{app_id}-{place[0]}-changelog", place[1]) for place in places}
        self._places = {name: place for place, name in self._names.items()}
        self._state: dict[Where, dict[bytes, bytes]] = {place: {} for place in self._names}
        self._at = dict.fromkeys(self._names, 0)
        conf: dict[str, Any] = {"bootstrap.servers": kit.bootstrap, "group.id": "changelogs", "enable.auto.commit": False, "log_level": 2}
        conf |= {"isolation.level": "read_committed", "enable.partition.eof": True, "auto.offset.reset": "earliest"}
        self._consumer = Consumer({**conf, "fetch.wait.max.ms": 50, "fetch.queue.backoff.ms": 10})
        self._consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in self._places])

    def close(self) -> None:
        """End reading."""
        self._consumer.close()

    def ledgers(self) -> dict[Where, Ledger]:
        """What was flushed up to now; a partition of which nothing was is left out."""
        self._catch_up()
        policies = {self._sink: Policy(self._sink)}
        found = {place: StateCodec(place[1]).load(place[0], state.items(), policies, 0) for place, state in self._state.items()}
        return {place: ledger for place, ledger in found.items() if ledger is not None}

    def _catch_up(self) -> None:
        ends = {place: self._kit.offsets(*name, isolation="read_committed")[1] for place, name in self._names.items()}
        deadline = time.monotonic() + PATIENCE_S
        while any(self._at[place] < end for place, end in ends.items()):
            assert time.monotonic() < deadline, f"the changelogs end at {ends} and are read to {self._at}"
            for message in self._consumer.consume(1_000, 0.2):
                self._take(message)

    def _take(self, message: Message) -> None:
        topic, partition, offset, error = message.topic(), message.partition(), message.offset(), message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        assert topic is not None
        assert partition is not None
        assert offset is not None
        place = self._places[topic, partition]
        if error is not None:  # the end, markers included
            self._at[place] = max(self._at[place], offset)
            return
        self._at[place] = offset + 1
        key, value = message.key(), message.value()
        assert isinstance(key, bytes)
        if value is None:
            self._state[place].pop(key, None)
        else:
            self._state[place][key] = value
