"""The pipeline that is watched: a producer of records, and an application that errs by a seed.

It is the consumer ``billing`` of some topics, and loads another one into a table, where there is a ClickHouse.

Run as ``python -m stream_app.demo.pipeline SETTINGS`` (a JSON object, :class:`Settings`). Told on stdin: ``go``, ``stop``; the
end of stdin ends it. Says on stdout: ``{"ready":true}``, ``{"injected":FAULT,"at":SECONDS}`` for each fault when it is done,
``{"produced":n,"consumed":n}`` twice a second, ``{"stopped":true}``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from stream_app import Sidecar
from stream_app.demo import warehouse
from stream_app.demo.broker import CALL_SECONDS, SILENT
from stream_app.demo.faults import Kind
from stream_app.demo.injector import Injected, Injector, Removed, Report, Step
from stream_app.demo.lines import Outlet, listen
from stream_app.demo.plan import RATE, Plan, Schedule

SINK = "billing"
TURN_S = 0.05
"""A turn of the loop: what is due is produced, what came is consumed."""
TOLD_EVERY_S = 0.5
BATCH = 1_000
FLUSH_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command hands to the process."""

    bootstrap: str
    app_id: str
    topics: dict[str, int]
    """Watched topic -> number of partitions."""
    seed: int
    seconds: float | None
    clickhouse: int | None = None
    """Port of the ClickHouse into which :data:`stream_app.demo.warehouse.TOPIC` is loaded."""

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    def plan(self) -> Plan:
        """What will go wrong."""
        partitions = tuple((topic, number) for topic in sorted(self.topics) for number in range(self.topics[topic]))
        return Plan(self.seed, partitions, Schedule(self.seconds))


class Orders:
    """The producer: each partition gets ``RATE`` records a second, so the offset of a record is decided by time."""

    def __init__(self, settings: Settings) -> None:
        self._producer = Producer({"bootstrap.servers": settings.bootstrap, "enable.idempotence": True, "log_level": SILENT})
        self._plan = settings.plan()
        self._written = 0
        self.delivered = 0

    def produce(self, now_s: float) -> None:
        """Write what is due ``now_s`` seconds after the begin."""
        due = int(now_s * RATE) + 1
        for number in range(self._written, due):
            for topic, partition in self._plan.partitions:
                value = self._value(topic, partition, number)
                self._producer.produce(topic, value, partition=partition, on_delivery=self._told)
        self._written = max(due, self._written)
        self._producer.poll(0)

    def _value(self, topic: str, partition: int, number: int) -> str | None:
        """Of the record at this offset. What a table puts aside are tombstones."""
        fault = self._plan.at(number) if topic == warehouse.TOPIC else None
        here = fault is not None and (fault.topic, fault.partition) == (topic, partition) and fault.first <= number < fault.stop
        if here and fault is not None and fault.kind is Kind.QUARANTINED:
            return None
        return json.dumps({"order": number, "cents": number * 37 % 10_000})

    def _told(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            raise KafkaException(error)
        self.delivered += 1

    def close(self) -> None:
        """Wait for what is on its way."""
        self._producer.flush(FLUSH_S)


class Application:
    """The application. As a consumer it says itself what it has received (``explicit``), or the sidecar could not be fooled."""

    def __init__(self, settings: Settings, outlet: Outlet) -> None:
        kafka = {"bootstrap.servers": settings.bootstrap}
        self._outlet = outlet
        self._injector = Injector(settings.plan())
        self._sidecar = Sidecar(kafka, sink=SINK, app_id=settings.app_id, explicit=True)
        self._loader = None if settings.clickhouse is None else warehouse.Loader(settings.clickhouse)
        # Partitions are assigned by hand: a rebalance on a machine that is out of breath would deliver records twice, and
        # nobody would have planned those duplicates.
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": SINK,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "log_level": SILENT,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for topic, number in settings.plan().partitions])
        self.consumed = 0

    def connect(self) -> None:
        """Wait until the broker answers."""
        self._consumer.list_topics(timeout=CALL_SECONDS)

    def turn(self, begun_at: float) -> None:
        """Take what came within ``TURN_S``, and do what was held back until now."""
        for message in self._consumer.consume(BATCH, TURN_S):
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            error = message.error()
            if error is not None:
                if error.retriable():
                    continue
                raise KafkaException(error)
            assert topic is not None
            assert partition is not None
            assert offset is not None
            self.consumed += 1
            self._do(self._injector.deliver(topic, partition, offset, time.monotonic() - begun_at))
        self._do(self._injector.due(time.monotonic() - begun_at))
        if self._loader is not None:
            self._loader.turn(time.monotonic() - begun_at)

    def _do(self, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case Injected(fault):
                    self._outlet.say(injected=fault.as_json(), at=time.time())
                case Removed(topic, partition, first, stop):
                    assert self._loader is not None
                    self._loader.delete(topic, partition, first, stop)
                case Report(topic, partition, first, stop, quarantined) if topic == warehouse.TOPIC:
                    assert self._loader is not None
                    self._loader.insert(topic, partition, range(first, stop), quarantined=quarantined)
                case Report(topic, partition, first, stop, quarantined=True):
                    for offset in range(first, stop):
                        self._sidecar.quarantined(topic, partition, offset, reason="its amount is not a number")
                case Report(topic, partition, first, stop):
                    self._sidecar.received(topic, partition, first, stop - 1)

    def close(self) -> None:
        """Report everything; what was held back is lost now."""
        self._do(self._injector.end())
        if self._loader is not None:
            self._loader.flush()
        self._consumer.close()
        self._sidecar.close(FLUSH_S)


def run(settings: Settings) -> None:
    """Until it is told to stop."""
    outlet, go, stop = Outlet(), threading.Event(), threading.Event()

    def end() -> None:
        stop.set()
        go.set()

    def told(line: str) -> None:
        if line == "go":
            go.set()
        else:
            end()

    listen(told, end)
    orders, application = Orders(settings), Application(settings, outlet)
    application.connect()
    outlet.say(ready=True)
    go.wait()
    begun_at = told_at = time.monotonic()
    while not stop.is_set():
        orders.produce(time.monotonic() - begun_at)
        application.turn(begun_at)
        if time.monotonic() - told_at >= TOLD_EVERY_S:
            told_at = time.monotonic()
            outlet.say(produced=orders.delivered, consumed=application.consumed)
    application.close()
    orders.close()
    outlet.say(produced=orders.delivered, consumed=application.consumed, stopped=True)


if __name__ == "__main__":
    run(Settings(**json.loads(sys.argv[1])))
