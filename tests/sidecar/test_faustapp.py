"""An attached Faust application, as far as it shows without brokers: what is counted, once, and what is passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import faust
import pytest

from gapstream_sidecar import Sidecar, UnsupportedError
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import Committed, FakeAioConsumer, FakeGroup, Part

P0 = Part("orders", 0)
SOURCE = (("source.topic", b"orders"), ("source.partition", b"1"), ("source.offset", b"15012"))


class Signal:
    """As mode's: handlers are awaited."""

    def __init__(self) -> None:
        self.handlers: list[Callable[..., Any]] = []

    def connect(self, handler: Callable[..., Any]) -> None:
        self.handlers.append(handler)

    async def send(self, *arguments: Any) -> None:
        for handler in self.handlers:
            await handler("app", *arguments, signal=self)


class FaustConsumer:
    """As Faust's, with aiokafka's inside."""

    def __init__(self, inside: FakeAioConsumer) -> None:
        self._thread = SimpleNamespace(_consumer=inside, thread_loop=asyncio.get_running_loop())

    def ack(self, message: Any) -> bool:
        first = not message.acked
        message.acked = True
        return first


class FakeFaust:
    """The part of an application that is looked at; its consumer runs in the same loop."""

    def __init__(self, inside: FakeAioConsumer) -> None:
        self.on_partitions_assigned, self.on_partitions_revoked = Signal(), Signal()
        self.heard: list[Any] = []
        self.sensors = SimpleNamespace(on_message_out=lambda *told: self.heard.append(told))
        self.topics: Any = SimpleNamespace(acks_enabled_for=lambda topic: topic != "changelog")
        self.in_transaction = False
        self.consumer: Any = FaustConsumer(inside)

    def main(self) -> None:
        """As ``faust.App.main``."""

    def stream_is_done(self, message: Any) -> None:
        """As the compiled streams do it."""
        message.acked = True
        self.sensors.on_message_out(P0, message.offset, message)


def event(offset: int, topic: str = "orders", headers: Any = None) -> Any:
    return SimpleNamespace(topic=topic, partition=0, offset=offset, headers=headers, acked=False)


async def attached(sidecar: Sidecar, group: FakeGroup | None = None) -> tuple[FakeFaust, FakeAioConsumer]:
    inside = FakeAioConsumer(group=group)
    app = FakeFaust(inside)
    sidecar.attach(app)
    inside.assign(0)
    await app.on_partitions_assigned.send({P0})
    return app, inside


async def flushed(sidecar: Sidecar) -> bool:
    return await asyncio.to_thread(sidecar.flush)


@pytest.mark.usefixtures("patient")
async def test_each_event_is_counted_once_however_it_is_acknowledged(bench: Bench) -> None:
    sidecar = bench.sidecar()
    app, _ = await attached(sidecar)
    events = [event(offset) for offset in range(4)]
    app.stream_is_done(events[0])  # compiled streams tell sensors alone
    assert app.consumer.ack(events[1])  # by hand: sensors are not told
    app.consumer.ack(events[2])  # streams in Python do both
    app.stream_is_done(events[2])
    assert not app.consumer.ack(events[2])
    app.stream_is_done(event(9, topic="changelog"))
    assert await flushed(sidecar)
    assert bench.runs() == [[[0, 2]]]
    assert len(app.heard) == 3


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("headers", [SOURCE, dict(SOURCE)])
async def test_a_replayed_event_is_reported_under_its_source_too(bench: Bench, headers: Any) -> None:
    sidecar = bench.sidecar()
    app, _ = await attached(sidecar)
    app.stream_is_done(event(5, headers=headers))
    assert await flushed(sidecar)
    assert sorted((one["partition"], one["runs"]) for one in bench.producer.said()) == [(0, [[5, 5]]), (1, [[15012, 15012]])]


@pytest.mark.usefixtures("patient", "spent")
async def test_commits_take_along_what_is_not_reported_and_the_next_owner_reports_it(bench: Bench) -> None:
    group = FakeGroup()
    first = bench.sidecar()
    app, inside = await attached(first, group)
    for offset in range(3):
        app.stream_is_done(event(offset))
        await inside.commit({P0: Committed(offset + 1, "")})
    assert bench.runs() == [[[0, 0]]]
    assert group.committed[P0][0] == 3
    second = bench.sidecar()
    _, its = await attached(second, group)
    assert its.reads == 1
    assert await flushed(second)
    assert [(one["source"], one["sequence"], one["runs"]) for one in bench.producer.said()] == [(first.source, 2, [[1, 2]])]


@pytest.mark.usefixtures("patient", "spent")
async def test_a_revocation_sends_what_there_is_and_restarts_are_followed(bench: Bench) -> None:
    sidecar = bench.sidecar()
    app, inside = await attached(sidecar)
    for offset in range(2):
        app.stream_is_done(event(offset))
        await inside.commit({P0: Committed(offset + 1, "")})
    await app.on_partitions_revoked.send({P0})
    assert bench.runs() == [[[0, 0]], [[1, 1]]]
    other = FakeAioConsumer(group=inside.group)
    app.consumer._thread._consumer = other
    other.assign(0)
    await app.on_partitions_assigned.send({P0})
    app.stream_is_done(event(2))
    await other.commit({P0: Committed(3, "")})
    assert other.commits[-1][P0][1].startswith('{"gapstream":')


@pytest.mark.usefixtures("patient")
async def test_explicit_counts_no_acknowledgement(bench: Bench) -> None:
    sidecar = bench.sidecar(explicit=True)
    app, _ = await attached(sidecar)
    app.stream_is_done(event(0))
    app.consumer.ack(event(1))
    assert await flushed(sidecar)
    assert bench.producer.records == []


async def test_what_can_not_be_followed_is_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = bench.sidecar()
    app = FakeFaust(FakeAioConsumer())
    app.in_transaction = True
    sidecar.attach(app)
    await app.on_partitions_assigned.send(set())
    assert "with exactly_once an event counts when it is acknowledged" in caplog.text
    caplog.clear()
    other = FakeFaust(FakeAioConsumer())
    del other.consumer._thread
    bench.sidecar().attach(other)
    await other.on_partitions_assigned.send(set())
    assert "Faust's commits can't be followed" in caplog.text


async def test_a_fault_inside_does_not_reach_the_host(bench: Bench) -> None:
    sidecar = bench.sidecar()
    app, inside = await attached(sidecar)
    app.topics = None
    app.stream_is_done(event(0))
    assert app.consumer.ack(event(1))
    app.consumer = None
    await app.on_partitions_assigned.send({P0})
    await app.on_partitions_revoked.send([object()])
    assert sidecar.stats.failed == 4
    assert inside.commits == []


def test_only_applications_of_faust_are_attached(bench: Bench) -> None:
    with pytest.raises(UnsupportedError, match="object is no Faust application"):
        bench.sidecar().attach(object())
    app = faust.App("x", broker="kafka://127.0.0.1:1", web_enabled=False)
    bench.sidecar().attach(app)
