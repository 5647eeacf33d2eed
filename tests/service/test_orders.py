"""Orders to the owners of all partitions; aiokafka's producer is scripted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from stream_app.core.model import Drop
from stream_app.service import orders as orders_module
from stream_app.service.orders import Orders
from stream_app.sinks.order import parse_drop
from stream_app.web.api import Unavailable
from tests.support.fakes import NAMES


@dataclass
class Broker:
    """What producers did; ``failures``: by partition, None for the start."""

    failures: dict[int | None, Exception] = field(default_factory=dict)
    written: list[tuple[str, int, bytes]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    stopped: int = 0

    def __call__(self, **settings: Any) -> Broker:
        self.settings = settings
        return self

    async def start(self) -> None:
        if None in self.failures:
            raise self.failures[None]

    async def send_and_wait(self, topic: str, value: bytes, *, key: bytes, partition: int) -> None:
        if partition in self.failures:
            raise self.failures[partition]
        self.written.append((topic, partition, value))

    async def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(orders_module, "AIOKafkaProducer", made)
    return made


@pytest.fixture
def orders() -> Orders:
    return Orders({"client_id": "me"}, {"orders": NAMES}, lambda: {"orders": 3})


async def test_every_partition_is_told(broker: Broker, orders: Orders) -> None:
    assert await orders.drop("orders", "old", "alice") == 3
    assert [(topic, partition) for topic, partition, _ in broker.written] == [(NAMES.observations, number) for number in range(3)]
    assert {parse_drop(value, "orders", partition) for _, partition, value in broker.written} == {Drop("old", "alice")}
    assert (broker.settings["client_id"], broker.settings["acks"], broker.stopped) == ("me", "all", 1)


FAILURES = [{None: KafkaConnectionError("nobody answers")}, {2: KafkaTimeoutError("no answer")}, {0: OSError("no")}]


@pytest.mark.parametrize("failures", FAILURES)
async def test_whoever_could_not_be_told_is_to_be_told_again(broker: Broker, orders: Orders, failures: dict[int | None, Exception]) -> None:
    broker.failures = failures
    with pytest.raises(Unavailable, match=r"^not all partitions of orders could be told to drop old \(.*\): try again$"):
        await orders.drop("orders", "old", "alice")
    assert broker.stopped == 1


async def test_a_topic_that_is_away(broker: Broker, orders: Orders) -> None:
    with pytest.raises(Unavailable, match="topic payments does not exist now"):
        await orders.drop("payments", "old", "alice")
