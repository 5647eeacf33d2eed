from __future__ import annotations

import logging
import threading

import pytest

from gapstream_sidecar import ends
from gapstream_sidecar.complaints import Complaints
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import NOWHERE, UNWATCHED
from gapstream_sidecar.ends import EndsReader
from tests.support.kafka_kit import KafkaKit

PREFIX = "gapstream.observations."


def find(reader: EndsReader, *keys: Key) -> dict[Key, int | None]:
    told, answers = threading.Event(), list[dict[Key, int | None]]()

    def found(answer: dict[Key, int | None]) -> None:
        answers.append(answer)
        told.set()

    reader.find(list(keys), found)
    assert told.wait(20)
    return answers[0]


def test_ends_of_watched_partitions_are_high_watermarks(kit: KafkaKit) -> None:
    """An open transaction counts as well: what it wrote is in the log."""
    topic = kit.make_topic(2)
    kit.make_topic(2, name=PREFIX + topic)
    kit.produce(topic, 0, 5)
    producer = kit.transactional_producer()
    producer.begin_transaction()
    producer.produce(topic, b"open", partition=0)
    producer.flush()
    unwatched, name_of_none = kit.make_topic(1), "no topic's name"
    reader = EndsReader({"bootstrap.servers": kit.bootstrap}, PREFIX, Complaints())
    nowhere: list[Key] = [(unwatched, 0), ("nowhere", 0), (name_of_none, 0)]
    found = find(reader, (topic, 0), (topic, 1), (topic, 2), *nowhere)
    producer.abort_transaction()
    assert found == {(topic, 0): 6, (topic, 1): 0, (topic, 2): NOWHERE} | dict.fromkeys(nowhere, UNWATCHED)


def test_without_brokers_nothing_is_known(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ends, "PATIENCE_S", 0.3)
    caplog.set_level(logging.WARNING)
    assert find(EndsReader({"bootstrap.servers": "127.0.0.1:1"}, PREFIX, Complaints()), ("orders", 0)) == {("orders", 0): None}
    assert "can't ask who is watched and where logs end" in caplog.text
    assert "headers" not in caplog.text, "the end of a sidecar asks as well, where there may be none"
