"""The Faust transport without a broker: what is handed on, what is stale, what is stamped, and in which order things happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiokafka
import pytest
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaTimeoutError
from aiokafka.structs import TopicPartition
from faust.tables.recovery import RebalanceAgain
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as faust_aiokafka
from faust.types import TP, Message

from stream_app.config import load
from stream_app.core.model import LogRead
from stream_app.kafka import driver
from stream_app.kafka.driver import Bundle, Consumer, Fetched, Partition, RebalanceListener, Thread
from stream_app.kafka.store import NO_OP_KEY
from stream_app.service.app import GapstreamApp, create_app
from tests.support.fakes import log_read

LOG, OBSERVATIONS, CHANGELOG = TP("orders", 0), TP("gap.observations.orders", 0), TP("gap-orders-changelog", 0)
CONFIG = """
kafka: {bootstrap.servers: "127.0.0.1:1", client.id: tests}
app: {id: gap, instance: one, session_timeout: 12s, state_dir: %s}
topics: {orders: {sinks: {billing: {type: consumer}}}}
"""


@dataclass
class Owners:
    """Writes down what the driver asks for."""

    journal: list[Any] = field(default_factory=list)
    ready: set[str] = field(default_factory=set)
    answers: list[dict[Partition, LogRead]] = field(default_factory=list)
    flushed: dict[TP, int] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    now_ms: int = 1_000

    def kind(self, topic: str) -> str:
        return {LOG.topic: "log", OBSERVATIONS.topic: "observations"}.get(topic, "other")

    async def fence(self, partitions: set[Partition]) -> None:
        self.journal.append(("fence", partitions))

    def begin(self, partitions: set[Partition]) -> None:
        self.journal.append(("begin", partitions))

    async def release(self, partitions: set[Partition]) -> dict[TP, int]:
        self.journal.append(("release", partitions))
        return self.flushed

    def reads(self) -> dict[Partition, LogRead]:
        return self.answers.pop(0) if self.answers else {}

    async def wait_reads(self) -> None:
        await self.news.wait()

    def positions(self) -> dict[TP, int]:
        return self.flushed

    async def ready_topics(self) -> set[str]:
        return self.ready

    def clock_ms(self) -> int:
        return self.now_ms

    def hindered(self, reason: str) -> None:
        self.journal.append(("hindered", reason))


@dataclass
class State:
    """What aiokafka keeps of one assigned partition."""

    position: int = 0
    lso: int | None = 0
    paused: bool = False
    has_valid_position: bool = True
    timestamp: int | None = None


@dataclass
class Aiokafka:
    """The parts of aiokafka's consumer that the thread looks into."""

    states: dict[TP, State] = field(default_factory=dict)
    buffered: dict[TP, Any] = field(default_factory=dict)
    active: bool = True
    journal: list[Any] = field(default_factory=list)
    found: dict[TP, list[ConsumerRecord]] = field(default_factory=dict)
    answered: set[TP] = field(default_factory=set)
    """Partitions that the next fetch's answer holds."""
    _max_poll_records: int = 100

    def __post_init__(self) -> None:
        self._fetcher = SimpleNamespace(_records=self.buffered, _proc_fetch_request=self.process)
        self._coordinator = SimpleNamespace(request_rejoin=lambda: self.journal.append("rejoin"), generation=7)

    @property
    def _subscription(self) -> Any:
        tps = set(self.states)
        assignment = SimpleNamespace(active=self.active, tps=tps, state_value=self.state_value)
        return SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))

    def state_value(self, tp: TopicPartition) -> State | None:
        return self.states.get(TP(tp.topic, tp.partition))

    async def process(self, assignment: Any, node_id: int, request: Any) -> bool:
        for tp in self.answered:
            self.states[tp].timestamp = 99
        return bool(self.answered)

    async def start(self) -> None:
        self.journal.append("start")

    def pause(self, *tps: TopicPartition) -> None:
        self.journal.append(("pause", {TP(tp.topic, tp.partition) for tp in tps}))

    def resume(self, *tps: TopicPartition) -> None:
        self.journal.append(("resume", {TP(tp.topic, tp.partition) for tp in tps}))

    def seek(self, tp: TopicPartition, position: int) -> None:
        self.journal.append(("seek", position))


@dataclass
class Bench:
    """The application's consumer with its thread, both without Kafka."""

    app: GapstreamApp
    consumer: Consumer
    thread: Thread
    owners: Owners
    kafka: Aiokafka

    async def fetch(self, *tps: TP) -> Fetched:
        """One turn of the thread, in this loop."""
        return await self.thread._fetch(set(tps), 0.0)

    def take(self, fetched: Fetched, *tps: TP, paused: Iterable[TP] = ()) -> dict[TP, list[Any]]:
        """What of it is handed on; ``paused``: by Faust, while it was fetched."""
        found: dict[TP, list[Any]] = {}
        self.consumer.resume_partitions(set(tps))
        self.consumer.pause_partitions(set(paused))
        self.consumer._turn_of = set(tps)
        self.consumer._take_turn(fetched, found)
        return found

    async def answer(self, *tps: TP) -> None:
        """A fetch of everything that is assigned, whose answer holds these partitions."""
        self.kafka.answered = set(tps)
        request = SimpleNamespace(topics=[(tp.topic, [(tp.partition, 0)]) for tp in self.kafka.states])
        subscription = self.kafka._subscription.subscription
        await self.kafka._fetcher._proc_fetch_request(subscription.assignment, 0, request)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    file = tmp_path / "gapstream.yaml"
    file.write_text(CONFIG % (tmp_path / "state"))
    app = create_app(load(str(file), {}, ()))
    app.loop = asyncio.get_running_loop()
    app.finalize()
    owners, kafka = Owners(), Aiokafka()
    monkeypatch.setattr(app, "owners", owners)
    consumer = app.consumer
    assert isinstance(consumer, Consumer)
    thread = consumer._thread
    monkeypatch.setattr(thread, "_consumer", kafka)

    async def here(method: Any, *args: Any) -> Any:
        return await method(*args)

    async def fetch_records(consumer: Any, active: set[TP], **options: Any) -> Mapping[TP, list[ConsumerRecord]]:
        return {tp: records for tp, records in kafka.found.items() if tp in active}

    monkeypatch.setattr(thread, "call_thread", here)
    monkeypatch.setattr(thread, "_fetch_records", fetch_records)
    monkeypatch.setattr(faust_aiokafka.AIOKafkaConsumerThread, "on_start", here_nothing)
    consumer.resume_flow()
    await thread.on_start()
    yield Bench(app, consumer, thread, owners, kafka)
    thread.thread_loop.close()  # made for a thread that never ran


async def here_nothing(*args: Any) -> None:
    """In place of a method of Faust that needs Kafka."""


def record(tp: TP, offset: int, key: bytes = b"k", value: bytes | None = b"v") -> ConsumerRecord:
    return ConsumerRecord(tp.topic, tp.partition, offset, 5, 1, key, value, None, len(key), len(value or b""), ())


# --- aiokafka -----------------------------------------------------------------------------------------------------------


async def test_aiokafka_is_made_for_committed_reads_and_static_membership(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(aiokafka, "AIOKafkaConsumer", lambda **options: given.update(options))
    bench.thread._create_worker_consumer(bench.consumer.transport)
    assert given["bootstrap_servers"] == ["127.0.0.1:1"]
    assert (given["group_id"], given["group_instance_id"]) == ("gap", "one")
    assert (given["isolation_level"], given["enable_auto_commit"], given["check_crcs"]) == ("read_committed", False, True)
    assert (given["session_timeout_ms"], given["heartbeat_interval_ms"]) == (12_000, 3_000)
    assert given["partition_assignment_strategy"] == [bench.app.assignor]


async def test_what_aiokafka_must_not_fetch_is_paused_before_anything_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fausts(self: Any, assigned: Iterable[TopicPartition]) -> None:
        bench.kafka.journal.append("faust")

    monkeypatch.setattr(faust_aiokafka.ConsumerRebalanceListener, "on_partitions_assigned", fausts)
    before = bench.thread.epoch(CHANGELOG)
    await RebalanceListener(bench.thread).on_partitions_assigned([TopicPartition(*tp) for tp in (LOG, OBSERVATIONS, CHANGELOG)])
    assert bench.kafka.journal == [("pause", {LOG, OBSERVATIONS}), "faust"]
    assert bench.thread.epoch(CHANGELOG) == before + 1, "what was fetched before is stale"


async def test_rejoin_asks_the_coordinator(bench: Bench) -> None:
    await bench.consumer.rejoin()
    assert bench.kafka.journal == ["rejoin"]


async def test_the_group_is_asked_to_hand_out_what_it_left_out_but_not_too_often(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = [100.0], {("c", 1)}
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    monkeypatch.setattr(bench.thread, "amiss", lambda changelogs: left if "c" in changelogs else set())
    await bench.consumer.take_in({"c": 2})
    assert bench.kafka.journal == [], "what is not subscribed to is handed to nobody by right"
    bench.consumer._subscribed = {"c"}
    for seconds, asked in ((0, 1), (14, 1), (1, 2), (29, 2), (1, 3)):
        now[0] += seconds
        await bench.consumer.take_in({"c": 2, "d": 9})
        assert bench.kafka.journal == ["rejoin"] * asked
    left.clear()
    await bench.consumer.take_in({"c": 2})
    left.add(("c", 1))
    await bench.consumer.take_in({"c": 2})
    assert bench.kafka.journal == ["rejoin"] * 4, "once it was whole, the next lack is seen to at once"


# --- read to the end ----------------------------------------------------------------------------------------------------


async def test_the_end_is_heard_as_of_when_the_fetch_was_sent(bench: Bench) -> None:
    state = bench.kafka.states[OBSERVATIONS] = State(position=10, lso=10)
    assert (await bench.fetch(OBSERVATIONS)).heard == {}, "nothing was asked yet"
    bench.owners.now_ms = 5_000
    await bench.answer(OBSERVATIONS)
    bench.owners.now_ms = 6_000
    assert (await bench.fetch(OBSERVATIONS)).heard == {OBSERVATIONS: 5_000}
    await bench.answer()
    assert (await bench.fetch(OBSERVATIONS)).heard == {OBSERVATIONS: 5_000}, "an answer without the partition says nothing of it"
    assert state.timestamp == 99, "aiokafka's own note is put back"


@pytest.mark.parametrize(
    "state",
    [
        State(position=9, lso=10),
        State(position=10, lso=None),
        State(position=10, lso=10, paused=True),
        State(position=10, lso=10, has_valid_position=False),
    ],
)
async def test_what_is_not_read_to_its_end_is_not_heard(bench: Bench, state: State) -> None:
    bench.kafka.states[OBSERVATIONS] = state
    await bench.answer(OBSERVATIONS)
    assert (await bench.fetch(OBSERVATIONS)).heard == {}


async def test_records_that_wait_in_aiokafka_are_not_the_end(bench: Bench) -> None:
    bench.kafka.states[OBSERVATIONS] = State(position=10, lso=10)
    await bench.answer(OBSERVATIONS)
    bench.kafka.buffered[OBSERVATIONS] = object()
    assert (await bench.fetch(OBSERVATIONS)).heard == {}


async def test_nothing_is_heard_while_the_flow_is_off_or_the_assignment_gone(bench: Bench) -> None:
    bench.kafka.states[OBSERVATIONS] = State(position=10, lso=10)
    await bench.answer(OBSERVATIONS)
    bench.consumer.stop_flow()
    assert (await bench.fetch(OBSERVATIONS)).heard == {}
    bench.consumer.resume_flow()
    bench.kafka.active = False
    assert (await bench.fetch(OBSERVATIONS)).heard == {}


@pytest.mark.parametrize("how", ["seek", "assignment"])
async def test_a_seek_and_an_assignment_make_unheard(bench: Bench, how: str) -> None:
    bench.kafka.states[OBSERVATIONS] = State(position=10, lso=10)
    await bench.answer(OBSERVATIONS)
    if how == "seek":
        await bench.consumer.seek_input(OBSERVATIONS, 10)
    else:
        bench.thread.begin_assignment({TopicPartition(*OBSERVATIONS)})
    assert (await bench.fetch(OBSERVATIONS)).heard == {}


# --- recovery's end -----------------------------------------------------------------------------------------------------


async def test_a_no_op_stands_in_for_markers_at_the_end(bench: Bench) -> None:
    state = bench.kafka.states[CHANGELOG] = State(position=12)
    bench.kafka.found = {CHANGELOG: [record(CHANGELOG, 8), record(CHANGELOG, 9)]}
    (records,) = (await bench.fetch(CHANGELOG)).records.values()
    assert [(one.offset, one.key) for one in records] == [(8, b"k"), (9, b"k"), (11, NO_OP_KEY)]
    bench.kafka.found = {}
    assert (await bench.fetch(CHANGELOG)).records == {}, "once for each end"
    state.position = 15
    (records,) = (await bench.fetch(CHANGELOG)).records.values()
    assert [(one.offset, one.key, one.value) for one in records] == [(14, NO_OP_KEY, b"")]


async def test_no_no_op_where_a_record_stands_last(bench: Bench) -> None:
    bench.kafka.states[CHANGELOG] = State(position=10)
    bench.kafka.found = {CHANGELOG: [record(CHANGELOG, 9)]}
    assert [one.offset for one in (await bench.fetch(CHANGELOG)).records[CHANGELOG]] == [9]


@pytest.mark.parametrize("hindrance", ["buffered", "position", "observations"])
async def test_no_no_op_where_more_is_to_come(bench: Bench, hindrance: str) -> None:
    tp = OBSERVATIONS if hindrance == "observations" else CHANGELOG
    bench.kafka.states[tp] = State(position=12, lso=20, has_valid_position=hindrance != "position")
    if hindrance == "buffered":
        bench.kafka.buffered[tp] = object()
    assert (await bench.fetch(tp)).records == {}


async def test_after_a_seek_the_end_is_told_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery begins anew with each assignment, and waits for the end each time."""
    monkeypatch.setattr(faust_aiokafka.AIOKafkaConsumerThread, "_seek_wait", here_nothing)
    bench.kafka.states[CHANGELOG] = State(position=12)
    first = await bench.fetch(CHANGELOG)
    assert len(first.records[CHANGELOG]) == 1
    await bench.thread._seek_wait(bench.kafka, {CHANGELOG: 3})
    again = await bench.fetch(CHANGELOG)
    assert len(again.records[CHANGELOG]) == 1
    assert bench.take(first, CHANGELOG) == {}, "what was fetched before the seek is stale"
    assert list(bench.take(again, CHANGELOG)) == [CHANGELOG]


async def test_what_comes_of_a_recovered_changelog_is_dropped(bench: Bench) -> None:
    """It was paused while the fetch was under way: what it brings was written here, after the recovery."""
    bench.kafka.states = {CHANGELOG: State(position=3)}
    bench.kafka.found = {CHANGELOG: [record(CHANGELOG, offset) for offset in range(3)]}
    fetched = await bench.fetch(CHANGELOG)
    assert bench.take(fetched, CHANGELOG, paused=[CHANGELOG]) == {}
    assert list(bench.take(fetched, CHANGELOG)) == [CHANGELOG]


# --- stamps -------------------------------------------------------------------------------------------------------------


async def test_an_input_is_paused_sought_stamped_and_only_then_resumed(bench: Bench) -> None:
    await bench.consumer.seek_input(OBSERVATIONS, 30)
    assert bench.kafka.journal == [("pause", {OBSERVATIONS}), ("seek", 30), ("resume", {OBSERVATIONS})]


async def test_the_stamp_is_there_when_the_first_records_are(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[TP, list[Any]]] = []

    async def resume(tp: TP) -> None:
        bench.kafka.states[OBSERVATIONS] = State(position=32, lso=40)
        bench.kafka.found = {OBSERVATIONS: [record(OBSERVATIONS, 30), record(OBSERVATIONS, 31)]}
        taken.append(bench.take(await bench.fetch(OBSERVATIONS), OBSERVATIONS))

    monkeypatch.setattr(bench.thread, "resume_input", resume)
    await bench.consumer.seek_input(OBSERVATIONS, 30)
    ((found,),) = (one[OBSERVATIONS] for one in taken)
    assert (found.position, found.next) == (30, 32)


async def test_each_delivery_is_stamped_with_the_position_that_it_follows(bench: Bench) -> None:
    await bench.consumer.seek_input(OBSERVATIONS, 30)
    bench.kafka.states[OBSERVATIONS] = State(position=35, lso=40)
    bench.kafka.found = {OBSERVATIONS: [record(OBSERVATIONS, 31), record(OBSERVATIONS, 34)]}
    (first,) = bench.take(await bench.fetch(OBSERVATIONS), OBSERVATIONS)[OBSERVATIONS]
    assert isinstance(first, Bundle)
    assert (first.position, [one.offset for one in first.records], first.next, first.heard_ms) == (30, [31, 34], 35, None)
    bench.kafka.found = {OBSERVATIONS: [record(OBSERVATIONS, 35)]}
    bench.kafka.states[OBSERVATIONS] = State(position=36, lso=36)
    await bench.answer(OBSERVATIONS)
    (second,) = bench.take(await bench.fetch(OBSERVATIONS), OBSERVATIONS)[OBSERVATIONS]
    assert (second.position, second.next, second.heard_ms) == (35, 36, 1_000)
    bench.kafka.found = {}
    (third,) = bench.take(await bench.fetch(OBSERVATIONS), OBSERVATIONS)[OBSERVATIONS]
    assert (third.position, third.records, third.next, third.heard_ms) == (36, (), 36, 1_000), "the end alone is worth telling"


async def test_what_was_fetched_before_a_seek_is_stale(bench: Bench) -> None:
    await bench.consumer.seek_input(OBSERVATIONS, 30)
    bench.kafka.states[OBSERVATIONS] = State(position=40, lso=50)
    bench.kafka.found = {OBSERVATIONS: [record(OBSERVATIONS, 39)]}
    fetched = await bench.fetch(OBSERVATIONS)
    await bench.consumer.seek_input(OBSERVATIONS, 30)
    assert bench.take(fetched, OBSERVATIONS) == {}


async def test_what_was_never_sought_is_not_handed_on(bench: Bench) -> None:
    bench.kafka.states[OBSERVATIONS] = State(position=40, lso=50)
    bench.kafka.found = {OBSERVATIONS: [record(OBSERVATIONS, 39)]}
    assert bench.take(await bench.fetch(OBSERVATIONS), OBSERVATIONS) == {}


# --- rebalances ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fausts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The journal of the owners, with Faust's own steps in it."""

    def noting(name: str) -> Any:
        async def step(self: Any, *args: Any) -> None:
            bench.owners.journal.append(name)

        return step

    for name in ("on_partitions_assigned", "on_partitions_revoked"):
        monkeypatch.setattr(faust_consumer.Consumer, name, noting(name))
    monkeypatch.setattr(faust_aiokafka.Consumer, "on_stop", noting("on_stop"))
    monkeypatch.setattr(bench.consumer, "assignment", lambda: {LOG, OBSERVATIONS, CHANGELOG})
    return bench.owners.journal


async def test_the_former_writer_is_fenced_before_faust_reads_the_changelog(bench: Bench, fausts: list[Any]) -> None:
    await bench.consumer.seek_input(OBSERVATIONS, 30)
    await bench.consumer.on_partitions_assigned({LOG, OBSERVATIONS, CHANGELOG}, 8)
    assert fausts == [("fence", {("orders", 0)}), "on_partitions_assigned"]
    assert bench.consumer._stamps == {}


async def test_the_flow_is_stopped_before_owners_flush_for_the_last_time(bench: Bench, fausts: list[Any]) -> None:
    await bench.consumer.on_partitions_revoked({LOG, OBSERVATIONS, CHANGELOG})
    assert fausts == ["on_partitions_revoked", ("release", {("orders", 0)})]


async def test_what_owners_flushed_for_the_last_time_is_committed(bench: Bench, fausts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def commit(offsets: Mapping[TP, int]) -> bool:
        fausts.append(("commit", dict(offsets)))
        return True

    monkeypatch.setattr(bench.consumer, "_commit", commit)
    bench.owners.ready = {LOG.topic, OBSERVATIONS.topic}
    bench.owners.flushed = {LOG: 20, OBSERVATIONS: 5, TP("deleted", 0): 3}
    await bench.consumer.on_partitions_revoked({LOG, OBSERVATIONS, CHANGELOG})
    await bench.consumer.on_stop()
    last = [("release", {("orders", 0)}), ("commit", {LOG: 20, OBSERVATIONS: 5})]
    assert fausts == ["on_partitions_revoked", *last, *last, "on_stop"]


async def test_a_stop_flushes_before_the_membership_is_given_up(bench: Bench, fausts: list[Any]) -> None:
    await bench.consumer.on_stop()
    assert fausts == [("release", {("orders", 0)}), "on_stop"]
    assert not bench.consumer.flow_active


async def test_ownership_begins_when_recovery_is_complete(bench: Bench, fausts: list[Any]) -> None:
    await bench.consumer.perform_seek()
    assert fausts == [("begin", {("orders", 0)})]


# --- subscriptions ------------------------------------------------------------------------------------------------------


async def test_only_what_exists_is_subscribed_and_only_when_that_changes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    subscribed: list[set[str]] = []

    async def subscribe(self: Any, topics: Iterable[str]) -> None:
        subscribed.append(set(topics))

    monkeypatch.setattr(faust_consumer.ThreadDelegateConsumer, "subscribe", subscribe)
    await bench.consumer.subscribe(["a", "b", "c"])
    assert subscribed == [], "an empty subscription would leave the group"
    bench.owners.ready = {"a", "b", "elsewhere"}
    await bench.consumer.resubscribe()
    await bench.consumer.resubscribe()
    assert subscribed == [{"a", "b"}]
    bench.owners.ready |= {"c"}
    await bench.consumer.resubscribe()
    assert subscribed == [{"a", "b"}, {"a", "b", "c"}]


# --- handing on ---------------------------------------------------------------------------------------------------------


async def handed_on(bench: Bench) -> list[tuple[TP, Message]]:
    return [one async for one in bench.consumer.getmany(0.05)]


@pytest.fixture
def assigned(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.consumer, "_get_active_partitions", lambda: {LOG, OBSERVATIONS, CHANGELOG})


@pytest.mark.usefixtures("assigned")
async def test_one_message_for_each_answer_of_the_reader(bench: Bench) -> None:
    read = log_read(0, 50_000)
    bench.owners.answers = [{("orders", 0): read}]
    ((tp, message),) = await handed_on(bench)
    handed: Any = message.value
    assert (tp, message.tp, handed, message.offset) == (LOG, LOG, read, 50_000)
    assert message.generation_id == bench.app.consumer_generation_id


@pytest.mark.usefixtures("assigned")
async def test_changelogs_come_as_records_and_observations_as_bundles(bench: Bench) -> None:
    await bench.consumer.seek_input(OBSERVATIONS, 0)
    bench.kafka.states = {OBSERVATIONS: State(position=2, lso=9), CHANGELOG: State(position=1)}
    bench.kafka.found = {OBSERVATIONS: [record(OBSERVATIONS, 0), record(OBSERVATIONS, 1)], CHANGELOG: [record(CHANGELOG, 0)]}
    found = await handed_on(bench)
    assert {tp: type(message.value).__name__ for tp, message in found} == {OBSERVATIONS: "Bundle", CHANGELOG: "bytes"}


@pytest.mark.usefixtures("assigned")
async def test_news_of_the_log_do_not_wait_for_aiokafka(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[TP]] = []
    never = asyncio.Event()

    async def fetch(active: set[TP], seconds: float) -> Fetched:
        asked.append(active)
        await never.wait()
        return Fetched()

    monkeypatch.setattr(bench.thread, "fetch", fetch)
    for number in range(3):
        bench.owners.answers = [{}, {("orders", 0): log_read(number, number + 1)}]
        bench.owners.news.set()
        assert [message.offset for _, message in await handed_on(bench)] == [number + 1]
    assert asked == [{OBSERVATIONS, CHANGELOG}], "one turn at a time, never for watched logs"
    assert bench.consumer._turn is not None
    bench.consumer._turn.cancel()


@pytest.mark.usefixtures("assigned")
@pytest.mark.parametrize("change", ["flow", "generation"])
async def test_what_is_left_when_the_flow_stops_is_dropped(bench: Bench, change: str) -> None:
    bench.kafka.states = {CHANGELOG: State(position=3)}
    bench.kafka.found = {CHANGELOG: [record(CHANGELOG, offset) for offset in range(3)]}
    found = []
    async for _, message in bench.consumer.getmany(0.05):
        found.append(message.offset)
        if change == "flow":
            bench.consumer.stop_flow()
        else:
            bench.app.consumer_generation_id += 1
    assert found == [0]


# --- acknowledgements and commits ---------------------------------------------------------------------------------------


async def test_a_message_is_acknowledged_once(bench: Bench) -> None:
    message = bench.consumer._to_message(LOG, log_read(0, 10))
    bench.consumer._unacked_messages.add(message)
    assert bench.consumer.ack(message)
    assert not bench.consumer.ack(message)
    assert not bench.consumer._unacked_messages


async def test_commits_are_what_was_flushed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[dict[TP, int]] = []
    answers = [True, False, True]

    async def commit(offsets: Mapping[TP, int]) -> bool:
        committed.append(dict(offsets))
        return answers.pop(0)

    monkeypatch.setattr(bench.consumer, "_commit", commit)
    monkeypatch.setattr(bench.consumer, "assignment", lambda: {LOG, OBSERVATIONS, TP("deleted", 0)})
    bench.owners.ready = {LOG.topic, OBSERVATIONS.topic}
    assert not await bench.consumer.force_commit(), "nothing was flushed"
    bench.owners.flushed = {LOG: 0, OBSERVATIONS: 5, TP("orders", 7): 9, TP("deleted", 0): 3}
    assert await bench.consumer.force_commit()
    assert not await bench.consumer.force_commit(), "nothing new"
    bench.owners.flushed = {LOG: 20, OBSERVATIONS: 5}
    assert not await bench.consumer.force_commit({"gap.observations.orders"}), "not asked for"
    assert not await bench.consumer.force_commit(), "refused"
    assert await bench.consumer.force_commit({LOG})
    assert committed == [{LOG: 0, OBSERVATIONS: 5}, {LOG: 20}, {LOG: 20}]
    bench.owners.journal.clear()
    await bench.consumer.on_partitions_assigned(set())
    assert bench.consumer._committed == {}, "a new assignment commits anew"


async def test_what_did_not_move_is_committed_again_now_and_then(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker forgets the commits of a deleted topic; the one made anew may end at the same offset."""
    committed: list[dict[TP, int]] = []

    async def commit(offsets: Mapping[TP, int]) -> bool:
        committed.append(dict(offsets))
        return True

    monkeypatch.setattr(bench.consumer, "_commit", commit)
    monkeypatch.setattr(bench.consumer, "assignment", lambda: {LOG})
    bench.owners.ready = {LOG.topic}
    now = [1000.0]
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bench.owners.flushed = {LOG: 20}
    for seconds, made in ((0.0, 1), (driver.COMMIT_AGAIN_SECONDS - 1, 1), (1.0, 2), (1.0, 2)):
        now[0] += seconds
        await bench.consumer.force_commit()
        assert committed == [{LOG: 20}] * made


async def test_a_commit_that_never_succeeds_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka's goes on until a deleted topic is there again."""

    async def commit(self: Any, offsets: Mapping[TP, int]) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(faust_aiokafka.AIOKafkaConsumerThread, "_commit", commit)
    monkeypatch.setattr(driver, "COMMIT_SECONDS", 0.05)
    assert not await bench.thread._commit({LOG: 20})


async def test_nothing_is_committed_between_a_subscription_and_its_assignment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions are handed over while a topic that came late is subscribed to: aiokafka refuses all commits then."""
    asked: list[Mapping[TP, int]] = []

    async def commit(self: Any, offsets: Mapping[TP, int]) -> bool:
        asked.append(offsets)
        return True

    monkeypatch.setattr(faust_aiokafka.AIOKafkaConsumerThread, "_commit", commit)
    subscribed_anew = SimpleNamespace(subscription=SimpleNamespace(assignment=None))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(type(bench.kafka), "_subscription", subscribed_anew)
        assert not await bench.thread._commit({LOG: 20})
    assert await bench.thread._commit({LOG: 20})
    assert asked == [{LOG: 20}]


@pytest.mark.parametrize("assignment", [None, SimpleNamespace(tps={LOG})])
async def test_recovery_begins_anew_where_what_it_seeks_is_not_assigned_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, assignment: Any
) -> None:
    sought: list[Mapping[TP, int]] = []

    async def seek(self: Any, consumer: Any, partitions: Mapping[TP, int]) -> None:
        sought.append(partitions)

    monkeypatch.setattr(faust_aiokafka.AIOKafkaConsumerThread, "_seek_wait", seek)
    consumer = SimpleNamespace(_subscription=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment)))
    with pytest.raises(RebalanceAgain):
        await bench.thread._seek_wait(consumer, {TP("t-changelog", 0): 5, LOG: 0})
    consumer._subscription.subscription.assignment = SimpleNamespace(tps={TP("t-changelog", 0), LOG})
    await bench.thread._seek_wait(consumer, {TP("t-changelog", 0): 5, LOG: 0})
    assert sought == [{TP("t-changelog", 0): 5, LOG: 0}]


@pytest.mark.parametrize("question", ["highwaters", "earliest_offsets"])
async def test_recovery_waits_for_brokers_that_do_not_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch, question: str) -> None:
    """Faust would end the worker, or go on without an answer after its request timeout, and so with an old state."""
    answers: list[Any] = [KafkaTimeoutError("silent for 40 s"), KafkaTimeoutError("silent for 80 s"), {CHANGELOG: 7}]

    async def ask(*partitions: TP) -> Mapping[TP, int]:
        assert partitions == (CHANGELOG,)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(Mapping[TP, int], answer)

    monkeypatch.setattr(driver, "ASK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(bench.thread, question, ask)
    assert await getattr(bench.consumer, question)(CHANGELOG) == {CHANGELOG: 7}
    assert bench.owners.journal == [("hindered", f"KafkaTimeoutError: silent for {seconds} s") for seconds in (40, 80)]
    assert bench.app.conf.broker_request_timeout > 365 * 86_400


async def test_topics_are_not_made_by_faust(bench: Bench) -> None:
    await bench.consumer.create_topic("orders", 1, 1)
    producer = cast(driver.Producer, bench.app.producer)
    await producer.create_topic("orders", 1, 1)
    assert bench.kafka.journal == []
    settings = {**producer._settings_default(), **producer._settings_auth()}
    assert settings == {**bench.app.kafka_connection, "acks": "all", "linger_ms": 0}
