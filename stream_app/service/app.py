"""The only place that wires: configuration in, a Faust application out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import faust
import structlog
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import TP, ServiceT
from faust.web.drivers.aiohttp import Web
from mode import Service

from stream_app.config import Config
from stream_app.core.model import WorkerRecord
from stream_app.core.snapshots import TABLE_PREFIX
from stream_app.kafka.assignor import GroupedAssignor
from stream_app.kafka.copies import CopyReader
from stream_app.kafka.driver import Consumer, Transport
from stream_app.kafka.failures import KafkaError
from stream_app.kafka.groups import Groups
from stream_app.kafka.names import TopicNames
from stream_app.kafka.reader import LogReader
from stream_app.kafka.store import StateTable
from stream_app.kafka.topics import Topics, TopicsUnavailable
from stream_app.kafka.trouble import HALTS, TroubleKind
from stream_app.service.agents import add_agents
from stream_app.service.backend import Backend
from stream_app.service.context import Context
from stream_app.service.explain import Explainer
from stream_app.service.groups import GroupWatcher
from stream_app.service.metrics import Counters, Metrics
from stream_app.service.mirrors import Mirror
from stream_app.service.observing import ObservationsWriter
from stream_app.service.orders import Orders
from stream_app.service.owners import OwnedPartitions
from stream_app.service.plan import Plan
from stream_app.service.plan import plan as make_plan
from stream_app.service.port import KafkaPort
from stream_app.service.status import Life, StatusReader
from stream_app.service.tables import TableWatcher
from stream_app.service.telemetry import Telemetry
from stream_app.service.view import StatusView
from stream_app.sinks.clickhouse import ClickHouseTable
from stream_app.web.api import Api
from stream_app.web.server import install, ssl_context

log = structlog.get_logger("gapstream")

OF_BROKERS = frozenset({TroubleKind.UNREACHABLE, TroubleKind.REFUSED, TroubleKind.UNSUPPORTED, TroubleKind.NO_LEADER})
"""Troubles that every partition of a broker has at once: one line for all of them."""
SOURCE_CHARS = 100
"""Of the worker's name in the source of what it finds: a source has room for 200."""
RECOVERY_STEP_SECONDS = 10 * 365 * 86_400.0
"""Faust's recovery goes on without an answer after this time: with old ends of changelogs, and so with an old state. Never, that is."""
RETRY_SECONDS = 2.0
TROUBLE_SECONDS = 0.5
WATCH_TOPICS_SECONDS = 5.0
"""How often it is looked for topics that do not exist yet, and for more partitions."""


def steady_clock() -> Any:
    """Milliseconds since the epoch that never jump: the wall clock once, the monotonic clock from there on."""
    wall, start = time.time_ns(), time.monotonic_ns()
    return lambda: (wall + time.monotonic_ns() - start) // 1_000_000


class Boot(BootStrategy):
    """The web server first, so that readiness can be asked while brokers are away; then Kafka, then all of Faust."""

    def server(self) -> Iterable[ServiceT]:
        """Services in the order of their start."""
        app = self.app
        assert isinstance(app, GapstreamApp)
        yield from self.sensors()
        yield from self.web_server()
        yield app.cluster
        yield from self.kafka_producer()
        yield from self.kafka_consumer()
        yield from self.agents()
        yield from self.kafka_conductor()
        yield from self.tables()


class GapstreamApp(faust.App):
    """The Faust application; the attributes beside Faust's are what our driver and assignor ask for."""

    BootStrategy = Boot
    topic_names: Mapping[str, TopicNames]
    owners: OwnedPartitions
    kafka_connection: Mapping[str, Any]
    cluster: ClusterService
    state_tables: Mapping[str, StateTable]
    view: StatusView
    telemetry: Telemetry
    plan: Plan
    backend: Backend
    observing: ObservationsWriter
    wire_owners: Callable[[str], None]
    """Called once the cluster's id is known."""

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Transport:
        return Transport(self.conf.broker_producer, self)


class ClusterService(Service):
    """Waits for brokers, sees to the internal topics, and keeps what runs beside Faust: log reader, status, signs of life."""

    def __init__(
        self, app: GapstreamApp, plan: Plan, topics: Topics, reader: LogReader, copies: Sequence[CopyReader], clock_ms: Any, **kwargs: Any
    ) -> None:
        """Started after the web server and before Faust's producer."""
        super().__init__(**kwargs)
        self._copies = copies
        self._app, self._plan, self._topics, self._reader, self._clock_ms = app, plan, topics, reader, clock_ms
        self.trouble: str | None = "starting"
        """Why the cluster is not usable now; None when it is."""
        self.partitions: dict[str, int] = {}
        """Watched topics that exist -> partitions."""
        self.cluster_id = "unknown"
        self._status = StatusReader(plan.aiokafka, plan.app_id, app.view, app.telemetry)
        self._life = Life(plan.aiokafka, plan.app_id, self.sign_of_life, app.telemetry)
        self.tables: list[TableWatcher] = []
        groups = Groups(plan.reader.with_client_id(plan.app_id))
        self._groups = GroupWatcher(groups, app.owners.owners, plan.groups, app.telemetry)

    async def on_start(self) -> None:
        """Until brokers answer and the internal topics exist."""
        while not self.should_stop:
            if await self._look() is not None:
                break
            await self.sleep(RETRY_SECONDS)
        if self.should_stop:
            return
        await self._reader.start()
        for copies in self._copies:
            copies.start()
        self._app.wire_owners(self.cluster_id)
        self._status.start()
        self._life.start()
        self._groups.start()
        for table in self.tables:
            table.start()

    async def _look(self) -> bool | None:
        """See to the topics; whether the set of usable ones changed, None if the cluster could not be asked."""
        app = self._app
        try:
            found = await self._topics.find()
            self.partitions = await self._topics.ensure(app.topic_names, found)
        except TopicsUnavailable as exc:
            self.trouble = str(exc)
            app.telemetry.trouble("waiting for Kafka", reason=str(exc))
            return None
        self.cluster_id = found.cluster_id
        missing = sorted(set(app.topic_names) - set(self.partitions))
        self.trouble = None
        app.owners.waiting = f"waiting for topics that do not exist yet: {', '.join(missing)}" if missing else None
        if missing:
            app.telemetry.trouble("waiting for topics that do not exist yet", topics=", ".join(missing))
        await self._look_at_observations()
        return app.owners.set_ready(set(self.partitions))

    async def _look_at_observations(self) -> None:
        """A topic that was deleted and made anew has another id, and its old positions say nothing."""
        app = self._app
        names = {app.topic_names[owner.topic].observations for owner in app.owners.owners()}
        if not names:
            return
        try:
            info = await self._reader.metadata(names)
        except KafkaError as exc:
            app.telemetry.trouble("the observations topics' ids can't be asked now", reason=str(exc))
            return
        app.owners.note_observations({name: topic.topic_id for name, topic in info.topics.items() if topic.exists})

    @Service.task
    async def _watch(self) -> None:
        """Topics appear and grow."""
        while not self.should_stop:
            await self.sleep(WATCH_TOPICS_SECONDS)
            if self.should_stop:
                return
            changed = await self._look()
            if changed is None:
                continue
            consumer = self._app.consumer
            assert isinstance(consumer, Consumer)
            if changed:
                await consumer.resubscribe()
            else:
                await consumer.take_in({self._app.topic_names[topic].changelog: count for topic, count in self.partitions.items()})

    @Service.task
    async def _handle_troubles(self) -> None:
        while not self.should_stop:
            await self.sleep(TROUBLE_SECONDS)
            for trouble in self._reader.troubles():
                owner = self._app.owners.owner(trouble.topic, trouble.partition)
                if trouble.kind in HALTS and owner is not None:
                    owner.halted(trouble)
                elif trouble.kind in OF_BROKERS:
                    self._app.telemetry.trouble(f"reading logs: {trouble.kind}", reason=trouble.message)
                else:
                    self._app.telemetry.trouble("reading a log", topic=trouble.topic, partition=trouble.partition, reason=trouble.message)

    def sign_of_life(self, stopped: bool) -> WorkerRecord:
        """What this worker says of itself every second."""
        plan = self._plan
        return WorkerRecord(
            worker=plan.instance,
            at_ms=self._clock_ms(),
            session_timeout_ms=round(plan.session_timeout_s * 1000),
            stopped=stopped,
            checked=self._app.owners.checked(),
            flushed=self._app.owners.flushed(),
            topics=dict(self.partitions),
        )

    async def on_stop(self) -> None:
        """After Faust's services: owners were released by the consumer."""
        await self._groups.stop()
        await asyncio.gather(*(table.stop() for table in self.tables))
        await self._app.observing.close()
        await self._app.owners.stop()
        await self._life.stop()
        await self._status.stop()
        await self._reader.stop()
        for copies in self._copies:
            await copies.stop()


def create_app(config: Config, existing: Iterable[str] = ()) -> GapstreamApp:
    """Wire everything; nothing is started. ``existing``: topics of the cluster, where the configuration has patterns."""
    plan = make_plan(config, existing)
    app = GapstreamApp(
        plan.app_id,
        broker="kafka://" + ";kafka://".join(f"{host}:{port}" for host, port in plan.reader.bootstrap_servers),
        store="rocksdb://",
        datadir=str(plan.state_dir),
        topic_allow_declare=False,
        topic_disable_leader=True,
        PartitionAssignor=GroupedAssignor,
        consumer_group_instance_id=plan.instance,
        consumer_metadata_max_age_ms=10_000,
        broker_request_timeout=RECOVERY_STEP_SECONDS,
        broker_session_timeout=plan.session_timeout_s,
        broker_heartbeat_interval=max(plan.session_timeout_s / 4, 1.0),
        broker_commit_interval=5.0,
        table_standby_replicas=plan.standby_replicas,
        stream_buffer_maxsize=4096,
        stream_wait_empty=False,
        recovery_consistency_check=False,
        web_bind=config.http.host,
        web_port=config.http.port,
        web_host=config.http.host,
        web_ssl_context=ssl_context(config.http.tls),
        canonical_url=f"http://{plan.instance}",
        autodiscover=False,
        worker_redirect_stdouts=False,
    )
    clock_ms = steady_clock()
    app.plan = plan
    app.kafka_connection = {**plan.aiokafka, "client_id": plan.app_id}
    app.topic_names = {topic: TopicNames.of(plan.app_id, topic) for topic in plan.topics}
    app.telemetry = Telemetry(Counters())
    app.view = StatusView({topic: one.sink_types for topic, one in plan.topics.items()}, plan.unknown_after_s)
    reader = LogReader(plan.reader, client_id=plan.app_id)
    topics = Topics(plan.confluent, plan.app_id, plan.internal)
    rules = {topic: one.rules for topic, one in plan.topics.items()}
    app.owners = OwnedPartitions(reader, app.topic_names, rules, app.kafka_connection, clock_ms)
    mirrors = {
        topic: [Mirror(copy.sink, copy.status, copy.reason, CopyReader(copy.where, clock_ms)) for copy in one.copies]
        for topic, one in plan.topics.items()
    }
    copies = [mirror.reader for each in mirrors.values() for mirror in each]
    app.cluster = ClusterService(app, plan, topics, reader, copies, clock_ms)
    app.state_tables = {topic: StateTable(app, topic) for topic in plan.topics}
    for table in app.state_tables.values():
        app.tables.add(table)
    for names in app.topic_names.values():
        add_agents(app, names, app.owners)
    port = _wire_owners(app, plan, reader, topics, mirrors, clock_ms)
    app.cluster.tables = _tables(app, plan, port, clock_ms)
    metrics = Metrics(
        app.owners.rows, app.telemetry.counters, app.view, clock_ms, granularity=config.metrics.granularity, labels=config.metrics.labels
    )
    readings = {topic: one.reading for topic, one in plan.topics.items()}
    explainer = Explainer(plan.reader, readings, topics.describe, app.view, clock_ms)
    orders = Orders(plan.aiokafka, app.topic_names, lambda: app.cluster.partitions)
    app.observing = ObservationsWriter(
        plan.confluent, app.topic_names, lambda: (app.cluster.partitions, app.cluster.trouble), topics.find, app.telemetry
    )
    app.backend = Backend(app, app.owners, app.view, metrics, clock_ms, lambda: app.cluster.trouble, explainer, orders, app.observing)
    assert isinstance(app.web, Web)
    install(app.web.web_app, Api(app.backend, config.http, metrics_need_token=config.metrics.require_token))
    return app


def _wire_owners(
    app: GapstreamApp, plan: Plan, reader: LogReader, topics: Topics, mirrors: Mapping[str, Sequence[Mirror]], clock_ms: Any
) -> KafkaPort:
    async def seek(tp: TP, position: int) -> None:
        assert isinstance(app.consumer, Consumer)
        await app.consumer.seek_input(tp, position)

    async def rejoin() -> None:
        assert isinstance(app.consumer, Consumer)
        await app.consumer.rejoin()

    def drop(topic: str, partition: int) -> None:
        app.state_tables[topic].store.drop(partition)
        assert isinstance(app.tables, TableManager)
        app.tables.recovery.revoke(TP(app.topic_names[topic].changelog, partition))

    readings = {topic: one.reading for topic, one in plan.topics.items()}
    port = KafkaPort(plan.reader, reader, topics, app.topic_names, readings, clock_ms, seek, app.view.rows_of, app.view.copied_of)

    def wire(cluster_id: str) -> None:
        context = Context(plan.app_id, plan.instance, cluster_id, port, app.telemetry, clock_ms, mirrors, app.owners.lost)
        app.owners.wire(context, lambda topic: app.state_tables[topic].store, drop, rejoin)

    app.wire_owners = wire
    return port


def _tables(app: GapstreamApp, plan: Plan, port: KafkaPort, clock_ms: Any) -> list[TableWatcher]:
    source = f"{TABLE_PREFIX}{plan.instance[:SOURCE_CHARS]}@{clock_ms()}"  # one run of a worker has one clock
    return [
        TableWatcher(
            one.rules,
            ClickHouseTable(one.client, one.layout, topic),
            port,
            app.owners.owners,
            app.telemetry,
            clock_ms,
            source,
        )
        for topic, planned in plan.topics.items()
        for one in planned.tables
    ]
