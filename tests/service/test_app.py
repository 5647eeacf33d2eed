"""The composition root: what is made of a configuration, what starts first, and what the cluster's troubles lead to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import structlog
import yaml
from faust.tables.manager import TableManager
from faust.types import TP

from stream_app.config import load
from stream_app.core.model import WorkerRecord
from stream_app.kafka.assignor import GroupedAssignor
from stream_app.kafka.driver import Bundle, Consumer, Transport
from stream_app.kafka.names import TopicNames
from stream_app.kafka.store import StateStore
from stream_app.kafka.topics import Found, TopicsUnavailable
from stream_app.kafka.trouble import Trouble, TroubleKind
from stream_app.service import app as app_module
from stream_app.service import explain as explain_module
from stream_app.service.app import ClusterService, GapstreamApp, create_app, steady_clock
from stream_app.service.explain import CannotAsk, NotThere
from tests.support.fakes import bundle, log_read, until


def make_app(folder: Path, **sections: Any) -> GapstreamApp:
    app = {"id": "gap", "instance": "one", "session_timeout": "12s", "state_dir": str(folder / "state"), **sections.pop("app", {})}
    topics = {topic: {"sinks": {"billing": {"type": "consumer"}}} for topic in ("orders", "sales")}
    file = folder / "gapstream.yaml"
    given = {"kafka": {"bootstrap.servers": "127.0.0.1:1"}, "app": app, "topics": topics, "http": {"port": 7077}, **sections}
    file.write_text(yaml.safe_dump(given))
    return create_app(load(str(file), {}, ()))


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[GapstreamApp]:
    made = make_app(tmp_path)
    made.loop = asyncio.get_running_loop()
    made.finalize()
    yield made
    if made._consumer is not None:
        cast(Consumer, made.consumer)._thread.thread_loop.close()  # made for a thread that never ran


# --- wiring -------------------------------------------------------------------------------------------------------------


async def test_questions_about_offsets_are_answered_for_the_topics_of_the_file(app: GapstreamApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "TIMEOUT_SECONDS", 0.2)
    asked: dict[str, Any] = {"sink": None, "allow": None, "show_keys": False}
    with pytest.raises(NotThere, match="topic other is not watched"):
        await app.backend.explain("other", 0, 0, 1, **asked)
    with pytest.raises(CannotAsk, match="no worker has seen topic sales yet"):
        await app.backend.explain("sales", 0, 0, 1, **asked)
    count = WorkerRecord(worker="one", at_ms=app.backend.clock_ms(), session_timeout_ms=12_000, topics={"sales": 1})
    app.view.apply(b"worker/one", msgspec.json.encode(count))
    with pytest.raises(CannotAsk, match=r"127\.0\.0\.1:1"):
        await app.backend.explain("sales", 0, 0, 1, **asked)


async def test_faust_is_configured_from_the_file(app: GapstreamApp, tmp_path: Path) -> None:
    conf = app.conf
    assert (conf.id, conf.consumer_group_instance_id, conf.broker_session_timeout) == ("gap", "one", 12.0)
    assert (conf.table_standby_replicas, conf.web_port, conf.web_bind) == (1, 7077, "127.0.0.1")
    assert conf.topic_allow_declare is False, "Faust would make topics with its own settings"
    assert conf.recovery_consistency_check is False
    assert Path(conf.datadir) == tmp_path / "state"
    assert isinstance(app.transport, Transport)
    assert isinstance(app.producer_transport, Transport)
    assert isinstance(app.assignor, GroupedAssignor)
    assert isinstance(app.consumer, Consumer)


async def test_each_watched_topic_has_a_table_and_two_agents(app: GapstreamApp) -> None:
    names = [TopicNames.of("gap", topic) for topic in ("orders", "sales")]
    assert app.topic_names == {name.watched: name for name in names}
    assert {changelog for table in app.tables.values() for changelog in table.changelog_topic.topics} == {name.changelog for name in names}
    assert {type(table.store) for table in app.state_tables.values()} == {StateStore}
    listened = {topic for agent in app.agents.values() for topic in agent.channel.topics}
    assert listened == {name.watched for name in names} | {name.observations for name in names}


async def test_the_web_server_starts_before_anything_that_needs_kafka(app: GapstreamApp) -> None:
    order = [type(service).__name__ for service in app.boot_strategy.server()]
    assert (
        order.index("Web") < order.index("ClusterService") < order.index("Producer") < order.index("Consumer") < order.index("TableManager")
    )


async def test_a_dropped_copy_is_read_from_its_beginning_again(app: GapstreamApp) -> None:
    app.wire_owners("cluster")
    store = app.state_tables["orders"].store
    store.put(3, [(b"k", b"v")], 17)
    changelog = TP("gap-orders-changelog", 3)
    offsets = cast(TableManager, app.tables).recovery.active_offsets
    offsets[changelog] = 17
    rejoined = asyncio.Event()

    async def rejoin() -> None:
        rejoined.set()

    app.owners._rejoin = rejoin
    app.owners.lost("orders", 3)
    assert store.persisted_offset(changelog) is None
    assert changelog not in offsets, "Faust would go on from where it was"
    await app.owners.stop()
    await store.stop()


async def test_agents_hand_on_what_the_driver_made(app: GapstreamApp, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[Any] = []

    async def observe(topic: str, partition: int, given: Bundle) -> None:
        folded.append((topic, partition, given))

    monkeypatch.setattr(app.owners, "fold_log", lambda *given: folded.append(given))
    monkeypatch.setattr(app.owners, "fold_observations", observe)
    read, heard = log_read(0, 5), bundle(0)

    async def events(*given: Any) -> AsyncIterator[Any]:
        for topic, value in given:
            yield SimpleNamespace(value=value, message=SimpleNamespace(topic=topic, partition=3))

    for name, given in (("log:orders", ("orders", read)), ("observations:orders", ("gap.observations.orders", heard))):
        agent = next(agent for agent in app.agents.values() if agent.name.endswith(name))
        stream = SimpleNamespace(events=lambda given=given: events(given))
        assert [one async for one in agent.fun(stream)] == [None]
    assert folded == [("orders", 3, read), ("gap.observations.orders", 3, heard)]


def test_the_clock_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, monotonic = [1_000_000_000], [5_000_000]
    monkeypatch.setattr("stream_app.service.app.time.time_ns", lambda: wall[0])
    monkeypatch.setattr("stream_app.service.app.time.monotonic_ns", lambda: monotonic[0])
    clock = steady_clock()
    assert clock() == 1_000
    wall[0] = 0
    monotonic[0] += 250_000_000
    assert clock() == 1_250


# --- the cluster --------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """What the administrator answers, one after the other (the last for ever), and what the reader is in trouble with."""

    answers: list[Any] = field(default_factory=list)
    ready: dict[str, int] = field(default_factory=dict)
    troubled: list[Trouble] = field(default_factory=list)
    looks: int = 0

    async def find(self) -> Found:
        self.looks += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        self.ready = answer
        return Found("cluster-1", answer)

    async def ensure(self, watched: Any, found: Found) -> dict[str, int]:
        return {topic: count for topic, count in self.ready.items() if topic in watched}

    def troubles(self) -> list[Trouble]:
        found, self.troubled = self.troubled, []
        return found


@pytest.fixture
def cluster(app: GapstreamApp, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    service = app.cluster
    monkeypatch.setattr(service, "_topics", made)
    monkeypatch.setattr(service, "_reader", made)
    return made


async def test_both_topics_are_there(app: GapstreamApp, cluster: Cluster) -> None:
    cluster.answers = [{"orders": 3, "sales": 1}]
    assert await app.cluster._look() is True
    assert await app.cluster._look() is False
    assert (app.cluster.trouble, app.owners.waiting, app.cluster.cluster_id) == (None, None, "cluster-1")
    assert app.cluster.partitions == {"orders": 3, "sales": 1}
    assert await app.owners.ready_topics() == {
        name for names in app.topic_names.values() for name in (names.watched, names.observations, names.changelog)
    }


async def test_a_topic_that_is_away_is_told_and_watched_for(app: GapstreamApp, cluster: Cluster) -> None:
    cluster.answers = [{"orders": 3}, {"orders": 3, "sales": 1}]
    with structlog.testing.capture_logs() as lines:
        assert await app.cluster._look() is True
    assert app.owners.waiting == "waiting for topics that do not exist yet: sales"
    assert [line["topics"] for line in lines] == ["sales"]
    assert await app.cluster._look() is True
    assert app.owners.waiting is None


async def test_a_cluster_that_cant_be_asked_is_the_trouble_and_changes_nothing(app: GapstreamApp, cluster: Cluster) -> None:
    cluster.answers = [{"orders": 3, "sales": 1}, TopicsUnavailable("could not list the topics: refused"), {"orders": 3, "sales": 1}]
    assert await app.cluster._look() is True
    assert await app.cluster._look() is None
    assert app.cluster.trouble == "could not list the topics: refused"
    assert app.cluster.partitions == {"orders": 3, "sales": 1}
    assert len(await app.owners.ready_topics()) == 6, "what is read is read on"
    assert await app.cluster._look() is False
    assert app.cluster.trouble is None


async def test_a_topic_that_has_grown_is_told_to_others(app: GapstreamApp, cluster: Cluster) -> None:
    cluster.answers = [{"orders": 3, "sales": 1}, {"orders": 9, "sales": 1}]
    await app.cluster._look()
    await app.cluster._look()
    sign = app.cluster.sign_of_life(False)
    assert sign.topics == {"orders": 9, "sales": 1}
    assert (sign.worker, sign.session_timeout_ms, sign.stopped) == ("one", 12_000, False)
    assert app.cluster.sign_of_life(True).stopped


async def test_troubles_of_the_reader_go_to_their_owner_or_to_the_log(
    app: GapstreamApp, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    halted: list[Trouble] = []
    monkeypatch.setattr(app_module, "TROUBLE_SECONDS", 0.0)
    owners = {("orders", 0): SimpleNamespace(halted=halted.append)}
    monkeypatch.setattr(app.owners, "owner", lambda topic, partition: owners.get((topic, partition)))
    halts = [Trouble(kind, "orders", 0, "x") for kind in (TroubleKind.TRUNCATED, TroubleKind.RECREATED, TroubleKind.OUT_OF_RANGE)]
    away = [Trouble(TroubleKind.UNREACHABLE, "orders", number, "broker 1 can't be reached") for number in range(50)]
    others = [Trouble(TroubleKind.DAMAGED, "orders", number, "y") for number in range(2)]
    cluster.troubled = [*halts, *away, *others, Trouble(TroubleKind.TRUNCATED, "orders", 7, "nobody owns it")]
    with structlog.testing.capture_logs() as lines:
        handling: Any = ClusterService._handle_troubles
        task = asyncio.create_task(handling.fun(app.cluster))
        await until(lambda: not cluster.troubled)
        task.cancel()
        await asyncio.wait([task])
    assert halted == halts
    assert [(line["event"], line.get("partition")) for line in lines] == [
        ("reading logs: unreachable", None), ("reading a log", 0), ("reading a log", 1), ("reading a log", 7),
    ]  # fmt: skip
