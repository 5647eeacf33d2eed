"""What ``explain`` asks of whom, and what becomes of it when somebody can't be asked; brokers answer as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from stream_app.core.codec import topic_id_text
from stream_app.core.model import Gap, GapsRecord, Row, StatusRecord, WorkerRecord
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.protocol import Isolation
from stream_app.kafka.topics import TopicConfig
from stream_app.service import explain as explain_module
from stream_app.service.explain import CannotAsk, Explainer, NotThere
from stream_app.service.port import Reading
from stream_app.service.view import StatusView
from tests.support.fake_broker import FETCH, FakeCluster, FakeLog
from tests.support.log_bytes import TRANSACTIONAL, batch, marker

ID = b"orders".ljust(16, b".")
NOW = 1_700_000_000_000


@dataclass
class World:
    """A worker that knows two topics of one cluster; ``sales`` does not exist yet."""

    cluster: FakeCluster
    log: FakeLog
    view: StatusView
    explainer: Explainer
    config: TopicConfig
    described: list[str]
    now_ms: int = NOW

    def beat(self, partitions: int | None = 1) -> None:
        topics = {} if partitions is None else {"orders": partitions}
        beat = WorkerRecord(worker="w1", at_ms=NOW, session_timeout_ms=10_000, topics=topics)
        self.view.apply(b"worker/w1", msgspec.json.encode(beat))

    def say(self, *rows: Row, gaps: dict[str, list[Gap]] | None = None) -> None:
        for sink, listed in (gaps or {}).items():
            page = GapsRecord(topic="orders", partition=0, sink=sink, block=0, gaps=listed)
            self.view.apply(f"gaps/orders/0/{sink}/0".encode(), msgspec.json.encode(page))
        record = StatusRecord(topic="orders", partition=0, worker="w1", rows=list(rows))
        self.view.apply(b"partition/orders/0", msgspec.json.encode(record))

    async def ask(self, first: int, stop: int, **options: Any) -> list[dict[str, Any]]:
        given: dict[str, Any] = {"sink": None, "allow": None, "show_keys": True}
        answer = await self.explainer.explain("orders", options.pop("partition", 0), first, stop, **{**given, **options})
        assert list(answer) == ["runs"]
        runs: list[dict[str, Any]] = answer["runs"]
        return runs


@pytest.fixture
async def world() -> AsyncIterator[World]:
    log = FakeLog([batch(0, 4), batch(5, 6, attributes=TRANSACTIONAL, producer=4), marker(7, 4)], start=1)
    view = StatusView({"orders": {"billing": "consumer", "audit": "consumer"}, "sales": {}}, 300)
    async with FakeCluster() as cluster:
        cluster.add("orders", log)

        async def describe(topic: str) -> TopicConfig:
            made.described.append(topic)
            return made.config

        readings = {topic: Reading(Isolation.READ_COMMITTED, True) for topic in ("orders", "sales")}
        settings = KafkaSettings((cluster.address(),), request_timeout_ms=1_000)
        explainer = Explainer(settings, readings, describe, view, lambda: made.now_ms)
        made = World(cluster, log, view, explainer, TopicConfig(False, None, "delete"), [])
        view.loaded = True
        made.beat()
        made.say(
            row("billing", missing=1, gaps=1),
            row("log"),
            row("stranger"),
            gaps={"billing": [Gap(first=2, stop=3, count=1, cause="not_received")]},
        )
        yield made


def row(sink: str, **said: Any) -> Row:
    known: dict[str, Any] = {
        "missing": 0,
        "gaps": 0,
        "end_read_ms": NOW,
        "pages": 1,
        "floor_offset": 0,
        "horizon_offset": 8,
        "log_read_offset": 8,
    }
    known |= {"settled_offset": 8, "log_start_offset": 1, "updated_at_ms": NOW, "incarnation": topic_id_text(ID), "ever_compacted": False}
    return Row(topic="orders", partition=0, sink=sink, configured=sink != "stranger", heard=True, **{**known, **said})


async def test_kafka_and_the_status_topic_are_put_together(world: World) -> None:
    runs = await world.ask(0, 9)
    assert [(run["first_offset"], run["verdict"], run["sinks"]["billing"], run["sinks"]["stranger"]) for run in runs] == [
        (0, "expired", "received", "received"),
        (1, "record", "received", "received"),
        (2, "record", "open not_received", "received"),
        (3, "record", "received", "received"),
        (5, "record", "received", "received"),
        (7, "transaction_marker", "absent", "absent"),
        (8, "ahead", "ahead", "ahead"),
    ]
    assert {run["sinks"]["audit"] for run in runs} == {"unknown"}
    assert runs[0]["evidence"]["unknown"] == {"audit": "never heard of"}
    assert [set(run["sinks"]) for run in runs] == [{"audit", "billing", "stranger"}] * 7
    assert {run["evidence"]["cleanup_policy"] for run in runs} == {"delete"}
    assert world.described == ["orders"]


async def test_one_sink_alone(world: World) -> None:
    assert [run["sinks"] for run in await world.ask(1, 4, sink="billing")] == [
        {"billing": "received"},
        {"billing": "open not_received"},
        {"billing": "received"},
    ]
    assert [run["sinks"] for run in await world.ask(1, 5, sink="log")] == [{"log": "received"}]


async def test_only_what_the_asker_may_see(world: World) -> None:
    (run,) = await world.ask(2, 3, allow=lambda topic, sink: (topic, sink) == ("orders", "billing"))
    assert (run["sinks"], run["evidence"]["unknown"]) == ({"billing": "open not_received"}, None)
    assert run["evidence"]["log_read_offset"] == 8, "what the log is, is the topic's"


@pytest.mark.parametrize("show", [False, True])
async def test_keys_are_shown_to_whom_they_may_be(world: World, show: bool) -> None:
    (run,) = await world.ask(3, 4, show_keys=show)
    assert [(one["key"], one["key_encoding"]) for one in run["records"]] == [("k", "utf-8") if show else (None, "hidden")]


async def test_what_nobody_knows(world: World) -> None:
    with pytest.raises(NotThere, match="topic other is not watched"):
        await world.explainer.explain("other", 0, 0, 1, sink=None, allow=None, show_keys=True)
    with pytest.raises(NotThere, match="orders has 1 partitions, numbered from 0: there is no partition 1"):
        await world.ask(0, 1, partition=1)
    with pytest.raises(NotThere, match="nobody knows a sink nothing of orders"):
        await world.ask(0, 1, sink="nothing")
    assert world.cluster.asked == [], "nothing is asked for it"


async def test_a_topic_that_does_not_exist_yet(world: World) -> None:
    with pytest.raises(CannotAsk, match="no worker has seen topic sales yet"):
        await world.explainer.explain("sales", 0, 0, 1, sink=None, allow=None, show_keys=True)


async def test_a_worker_that_is_gone(world: World) -> None:
    world.now_ms = NOW + 60_000
    world.say(row("billing", missing=1, settled_offset=3, horizon_offset=6), row("log"))
    runs = await world.ask(1, 8, sink="billing")
    assert [run["sinks"]["billing"] for run in runs] == ["received", "open not_received", "unknown", "unknown", "absent"]
    assert runs[0]["evidence"]["unknown"] == {"billing": "worker w1 is gone, last heard of at 2023-11-14T22:13:20.000Z"}


async def test_brokers_that_are_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "TIMEOUT_SECONDS", 0.3)
    world.cluster.stop_node(0)
    with pytest.raises(CannotAsk, match="can't be reached"):
        await world.ask(0, 1)


async def test_so_many_at_once_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "TIMEOUT_SECONDS", 1.0)
    world.cluster.hangs = True
    asking = [asyncio.create_task(world.ask(2, 3)) for _ in range(explain_module.AT_ONCE)]
    await world.cluster.until_asked(FETCH, explain_module.AT_ONCE)
    monkeypatch.setattr(explain_module, "TIMEOUT_SECONDS", 0.1)
    with pytest.raises(CannotAsk, match="2 questions like this are being answered"):
        await world.ask(2, 3)
    assert len(world.cluster.requests(FETCH)) == explain_module.AT_ONCE
    world.cluster.hangs = False
    world.cluster.changed()
    for answered in await asyncio.gather(*asking):
        assert [run["verdict"] for run in answered] == ["record"]
    monkeypatch.setattr(explain_module, "TIMEOUT_SECONDS", 10.0)
    assert len(await world.ask(2, 3)) == 1, "each gave its turn back"


async def test_what_was_asked_and_failed_gives_its_turn_back(world: World) -> None:
    for _ in range(2 * explain_module.AT_ONCE):
        world.log.faults = [29]
        with pytest.raises(CannotAsk, match="grant"):
            await world.ask(2, 3)
    assert len(await world.ask(2, 3)) == 1


async def test_another_incarnation(world: World) -> None:
    world.cluster.topics["orders"].topic_id = b"a new topic".ljust(16, b".")
    runs = await world.ask(2, 3, sink="billing")
    assert runs[0]["sinks"] == {"billing": "unknown"}
    assert "created anew" in runs[0]["evidence"]["unknown"]["billing"]
