"""Asking groups: what is written of the answers, by whom, and what failing answers lead to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from stream_app.core.model import MAX_OFFSET, Row
from stream_app.core.policy import Policy
from stream_app.kafka.failures import KafkaError, UnreachableError
from stream_app.service import groups as groups_module
from stream_app.service import owner as owner_module
from stream_app.service.groups import GroupWatcher, Partition
from stream_app.service.owner import PartitionOwner
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.group import source_of
from tests.support.fakes import NAMES, Bench, MemoryStore, bundle, log_read, until

SOURCE = "group:loader"
HERE: Partition = ("orders", 0)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_SECONDS", "RETRY_SECONDS", "PACE_SECONDS"):
        monkeypatch.setattr(owner_module, name, 0.01)
    for name in ("EVERY_SECONDS", "TICK_SECONDS"):
        monkeypatch.setattr(groups_module, name, 0.002)


def policy(name: str = "legacy", **rules: Any) -> Policy:
    known: dict[str, Any] = {"grace_ms": 1_000, "stall_after_ms": None, "group": "loader", "inferred": True, "checks": ("group",)}
    return Policy(name, **known | rules)


@dataclass
class Brokers:
    """Answers as told, and counts what was asked."""

    commits: dict[Partition, int | KafkaError | None] = field(default_factory=dict)
    starts: dict[Partition, int] = field(default_factory=dict)
    failure: KafkaError | None = None
    start_failure: KafkaError | None = None
    gate: asyncio.Event | None = None
    """Starts are told when it is set."""
    asked: list[tuple[str, frozenset[Partition]]] = field(default_factory=list)
    closed: bool = False

    async def committed(self, group: str, partitions: Collection[Partition]) -> dict[Partition, int | KafkaError | None]:
        self.asked.append((group, frozenset(partitions)))
        if self.failure is not None:
            raise self.failure
        return {partition: self.commits.get(partition) for partition in partitions}

    async def log_starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        if self.start_failure is not None:
            raise self.start_failure
        if self.gate is not None:
            await self.gate.wait()
        return {partition: self.starts.get(partition, 0) for partition in partitions}

    async def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """One worker, what it asks, and the observations topic between the two."""

    bench: Bench = field(default_factory=Bench)
    brokers: Brokers = field(default_factory=Brokers)
    heard: int = 0
    """Records of the observations topic that were read back."""

    def __post_init__(self) -> None:
        self.bench.policies, self.bench.floors = {"legacy": policy()}, {"legacy": "first"}

        def owners() -> list[PartitionOwner]:
            return [one for one in self.bench.owners if one.ledger]

        self.watcher = GroupWatcher(self.brokers, owners, ("loader", "second"), Telemetry(self.bench.counters))

    @property
    def owner(self) -> PartitionOwner:
        return self.bench.owners[-1]

    async def begin(self, records: int = 100) -> PartitionOwner:
        """A worker that owns the partition, has read its log and heard its observations."""
        owner = await self.bench.begun()
        assert owner.ledger is not None
        if owner.ledger.log.read < records:
            owner.fold_log(log_read(owner.ledger.log.read, records))
        await self.hear()
        return owner

    def written(self) -> list[dict[str, Any]]:
        """Every observation that was written so far, by whichever owner."""
        writes = [write for writer in self.bench.writers for write in writer.to(NAMES.observations)]
        return [json.loads(record.value or b"") for write in writes for record in write]

    async def hear(self) -> None:
        """The owner reads what was written since, to the end."""
        assert self.owner.ledger is not None
        fresh = self.written()[self.owner.ledger.observed_to :]
        await self.owner.fold_observations(bundle(self.owner.ledger.observed_to, *fresh, heard_ms=self.bench.clock.now_ms))

    async def rounds(self, count: int = 3) -> None:
        """So many questions more are asked and answered."""
        before = len(self.brokers.asked)
        await until(lambda: len(self.brokers.asked) >= before + count + 1, "questions")

    async def commit(self, offset: int, start: int | None = None) -> list[tuple[str, Any, int | None]]:
        """The group commits; what is written of it, read back by the owner."""
        if start is not None:
            self.brokers.starts[HERE] = start
        before = len(self.written())
        self.brokers.commits[HERE] = offset
        await until(lambda: len(self.written()) > before, f"what is said of {offset}")
        await self.hear()
        await self.rounds()
        return [(one.get("status", ""), one.get("runs"), one.get("claim")) for one in self.written()[before:]]

    async def settle(self) -> None:
        """Grace passes."""
        self.bench.clock.now_ms += 2_000
        await self.hear()

    def row(self, sink: str = "legacy") -> Row:
        return next(row for row in self.owner.rows if row.sink == sink)

    def told(self) -> list[tuple[str, Any]]:
        return [(one["type"], one["ranges"] or one["reason"]) for writer in self.bench.writers for one in writer.events()]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.watcher.start()
    yield made
    await made.watcher.stop()
    assert made.brokers.closed
    await made.bench.close()


# --- a group that nobody can touch ---


async def test_a_group_that_goes_forward(world: World) -> None:
    await world.begin()
    assert await world.commit(10) == [("received", None, 10)]
    assert await world.commit(40) == [("received", [[10, 39]], 40)]
    await world.settle()
    await until(lambda: (world.row().lag, world.row().floor_offset) == (60, 10), "the row")
    row = world.row()
    assert (row.horizon_offset, row.observed, row.missing, row.duplicates) == (40, 30, 0, 0)
    assert row.reason == "by the commits of group loader alone: what it sought past counts as received"
    assert world.told() == []
    first, second = world.written()
    assert [one["sequence"] for one in (first, second)] == [0, 1]
    assert first["source"] == SOURCE
    assert first["topic_id"] == "AAECAwQFBgcICQoLDA0ODw"


async def test_nothing_is_written_while_nothing_changes(world: World) -> None:
    await world.begin()
    await world.commit(10)
    await world.rounds(10)
    assert len(world.written()) == 1


async def test_what_retention_took_first_is_expired(world: World) -> None:
    owner = await world.begin()
    await world.commit(10)
    owner.fold_log(log_read(100, 110, log_start=50))
    await world.rounds()
    assert await world.commit(80, start=50) == [("received", [[50, 79]], 80)]
    await world.settle()
    await until(lambda: world.told(), "the event")
    assert world.told() == [("gap.opened", [[10, 49]])]
    assert [one["cause"] for one in world.bench.writer.events()] == ["expired"]


async def test_what_was_gone_before_anybody_could_see_which_came_first_is_unobserved(world: World) -> None:
    owner = await world.begin()
    await world.commit(10)
    world.brokers.starts[HERE], world.brokers.commits[HERE] = 50, 80
    owner.fold_log(log_read(100, 110, log_start=50))  # both are news of the same moment
    await until(lambda: len(world.written()) == 3, "what is said")
    assert [(one["status"], one["runs"]) for one in world.written()[1:]] == [("unobserved", [[10, 49]]), ("received", [[50, 79]])]
    await world.hear()
    await world.settle()
    await until(lambda: world.row().explained, "the row")
    assert (world.row().explained, world.row().missing) == ({"unobserved": 40}, 0)
    assert world.told() == [("gap.explained", [[10, 49]])]


async def test_a_group_that_goes_back_is_told_once_and_shown_until_it_is_where_it_was(world: World) -> None:
    await world.begin()
    await world.commit(60)
    assert await world.commit(20) == [("received", None, 20)]
    await until(lambda: world.told(), "the event")
    assert world.told() == [("sink.rewound", "group loader went back from 60 to 20")]
    assert await world.commit(50) == [("received", None, 50)]
    await until(lambda: world.row().reason == "group loader went back from 60 and is at 50", "the row")
    assert world.row().horizon_offset == 60
    assert await world.commit(70) == [("received", [[60, 69]], 70)]
    await world.settle()
    await until(lambda: "alone" in (world.row().reason or ""), "the row")
    assert (world.row().duplicates, world.row().missing) == (0, 0)
    assert len(world.told()) == 1


async def test_with_a_floor_that_was_configured_what_lies_above_it_is_passed_from_the_first_commit_on(world: World) -> None:
    world.bench.floors = {"legacy": "earliest"}
    await world.begin()
    assert await world.commit(40) == [("received", [[0, 39]], 40)]


async def test_what_retention_took_before_the_first_commit_is_expired(world: World) -> None:
    """The group was seen to have no commit when the log began there already."""
    world.bench.floors = {"legacy": "earliest"}
    owner = await world.begin()
    await world.rounds()
    owner.fold_log(log_read(100, 110, log_start=50))
    await world.rounds()
    assert await world.commit(80, start=60) == [("unobserved", [[50, 59]], None), ("received", [[60, 79]], 80)]
    await world.settle()
    await until(lambda: len(world.told()) == 2, "the events")
    assert sorted(world.told()) == [("gap.explained", [[50, 59]]), ("gap.opened", [[0, 49]])]
    assert [one["cause"] for one in world.bench.writer.events() if one["type"] == "gap.opened"] == ["expired"]


async def test_of_what_was_gone_before_the_first_look_nobody_knows_whether_the_group_had_it(world: World) -> None:
    world.bench.floors = {"legacy": "earliest"}
    owner = await world.begin()
    world.brokers.starts[HERE], world.brokers.commits[HERE] = 50, 80
    owner.fold_log(log_read(100, 110, log_start=50))
    await until(lambda: len(world.written()) == 2, "what is said")
    assert [(one["status"], one["runs"]) for one in world.written()] == [("unobserved", [[0, 49]]), ("received", [[50, 79]])]


async def test_a_group_whose_first_commit_is_gone_again_may_have_had_what_was_taken(world: World) -> None:
    """The commit was seen, though it could not be told yet: no commit any more is not none so far."""
    world.bench.floors = {"legacy": "earliest"}
    owner = await world.begin()
    world.brokers.start_failure = UnreachableError("not told")
    world.brokers.commits[HERE] = 40
    await world.rounds()
    world.brokers.commits[HERE] = None
    owner.fold_log(log_read(100, 110, log_start=50))
    await world.rounds()
    world.brokers.start_failure = None
    assert await world.commit(80, start=50) == [("unobserved", [[0, 49]], None), ("received", [[50, 79]], 80)]


async def test_what_was_taken_while_a_commit_that_was_known_is_gone_is_unobserved(world: World) -> None:
    """It may have gone on before its commit was deleted."""
    owner = await world.begin()
    await world.commit(10)
    world.brokers.commits[HERE] = None
    owner.fold_log(log_read(100, 110, log_start=50))
    await world.rounds()
    assert await world.commit(80, start=50) == [("unobserved", [[10, 49]], None), ("received", [[50, 79]], 80)]


async def test_a_first_commit_says_nothing_of_what_lies_below_where_the_floor_is_the_first_that_is_seen(world: World) -> None:
    """Having had no commit does not tell from where on it was going to read."""
    owner = await world.begin()
    await world.rounds()
    owner.fold_log(log_read(100, 110, log_start=50))
    await world.rounds()
    assert await world.commit(80, start=50) == [("received", None, 80)]
    await world.settle()
    await until(lambda: world.row().floor_offset == 80, "the row")
    assert (world.row().missing, world.row().explained, world.told()) == (0, {}, [])


async def test_a_commit_beyond_the_end_waits_for_the_log(world: World) -> None:
    owner = await world.begin()
    world.brokers.commits[HERE] = 105
    await world.rounds()
    assert world.written() == []
    owner.fold_log(log_read(100, 110))
    await until(lambda: world.written(), "what is said")
    assert world.written()[0]["claim"] == 105


async def test_a_log_made_anew_begins_anew(world: World) -> None:
    owner = await world.begin()
    await world.commit(40)
    ledger = owner.ledger
    assert ledger is not None
    ledger.recreate(bytes(16), world.bench.port.ends_now, 0, observations_end=0, compacted=False, partitions=1)
    ledger.log.end = 200
    world.brokers.commits[HERE] = None
    await world.rounds()
    assert ledger.sinks["legacy"].checks.failing == {}, "a group that was not in the new one yet"
    world.brokers.commits[HERE] = 30
    await until(lambda: len(world.written()) == 2, "what is said")
    assert world.written()[1]["topic_id"] == "A" * 22
    assert world.written()[1]["runs"] == [[0, 29]]


async def test_an_answer_about_a_log_that_is_another_one_since_is_not_used(world: World) -> None:
    owner = await world.begin()
    await world.commit(10)
    world.brokers.gate = asyncio.Event()
    world.brokers.commits[HERE] = 80
    await world.rounds(0)
    ledger = owner.ledger
    assert ledger is not None
    ledger.recreate(bytes(16), world.bench.port.ends_now, 0, observations_end=0, compacted=False, partitions=1)
    world.brokers.commits[HERE] = None
    world.brokers.gate.set()
    await world.rounds()
    assert len(world.written()) == 1


# --- a sink that reports itself ---


async def test_commits_of_a_sink_that_reports_are_claims(world: World) -> None:
    world.bench.policies, world.bench.floors = {"billing": policy("billing", inferred=False)}, {"billing": "first"}
    owner = await world.begin()
    await world.commit(0)
    reported = [{"v": 1, "sink": "billing", "topic": "orders", "partition": 0, "runs": [[0, 4], [7, 19]]}]
    assert owner.ledger is not None
    await owner.fold_observations(bundle(1, *reported))
    world.bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(2, heard_ms=world.bench.clock.now_ms))
    await world.rounds()
    assert world.told() == [], "the group has not committed past what lacks"
    world.brokers.commits[HERE] = 10
    await until(lambda: len(world.written()) == 2, "the claim")
    assert world.written()[1].get("runs") is None
    await owner.fold_observations(bundle(2, world.written()[1], heard_ms=world.bench.clock.now_ms))
    world.bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(3, heard_ms=world.bench.clock.now_ms))
    await until(lambda: world.told(), "the gap")
    assert world.told() == [("gap.opened", [[5, 6]])]


async def test_reports_of_a_group_that_never_commits_are_not_ok(world: World) -> None:
    world.bench.policies, world.bench.floors = {"billing": policy("billing", inferred=False)}, {"billing": "first"}
    owner = await world.begin()
    await owner.fold_observations(bundle(0, {"v": 1, "sink": "billing", "topic": "orders", "partition": 0, "runs": [[0, 4]]}))
    await until(lambda: owner.ledger is not None and owner.ledger.sinks["billing"].checks.failing, "the check fails")
    assert owner.ledger is not None
    ((_, why),) = owner.ledger.sinks["billing"].checks.failing.values()
    assert why == "group loader has committed nothing in this partition, though records of it are reported"


# --- who asks, and when ---


async def test_one_question_a_group_for_all_that_is_owned(world: World) -> None:
    world.bench.policies = {"legacy": policy(), "other": policy("other"), "more": policy("more", group="second")}
    world.bench.floors = dict.fromkeys(world.bench.policies, "first")
    for partition in (0, 1):
        world.bench.store = MemoryStore()
        owner = await world.bench.begun(partition)
        await owner.fold_observations(bundle(0, heard_ms=world.bench.clock.now_ms))
    both = frozenset({("orders", 0), ("orders", 1)})
    wanted = {("loader", both), ("second", both)}
    await until(lambda: wanted <= set(world.brokers.asked), "questions about both")
    world.brokers.asked.clear()
    await world.rounds()
    assert set(world.brokers.asked) <= wanted


async def test_without_groups_nothing_runs() -> None:
    watcher = GroupWatcher(Brokers(), list, (), Telemetry(Bench().counters))
    watcher.start()
    assert watcher._task is None
    await watcher.stop()


async def test_nobody_is_asked_before_the_observations_were_heard(world: World) -> None:
    """What the former owner wrote last is not known before."""
    owner = await world.bench.begun()
    owner.fold_log(log_read(0, 100))
    world.brokers.commits[HERE] = 10
    await until(lambda: owner.flushed_read == 100)
    assert world.brokers.asked == []
    await world.hear()
    await until(lambda: world.written(), "the first claim")


async def test_a_worker_that_takes_over_goes_on_from_the_ledger(world: World) -> None:
    await world.begin()
    await world.commit(10)
    await world.commit(20)
    await world.owner.release()
    await world.begin()
    await world.rounds()
    assert len(world.written()) == 2
    assert await world.commit(30) == [("received", [[20, 29]], 30)]
    assert world.written()[-1]["sequence"] == 2
    assert await world.commit(25) == [("received", None, 25)]
    await until(lambda: ("sink.rewound", "group loader went back from 30 to 25") in world.told(), "the event")


async def test_a_move_during_a_change_of_owners_is_told_by_the_next_one(world: World) -> None:
    await world.begin()
    await world.commit(30)
    await world.owner.release()
    world.brokers.commits[HERE] = 12
    await world.begin()
    await until(lambda: len(world.written()) == 2, "the claim")
    await world.hear()
    await until(lambda: world.told(), "the event")
    assert world.told() == [("sink.rewound", "group loader went back from 30 to 12")]


async def test_what_is_on_its_way_is_not_said_twice_and_what_got_lost_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.begin()
    world.brokers.commits[HERE] = 10
    await until(lambda: world.written(), "the claim")
    await world.rounds(10)
    assert len(world.written()) == 1
    monkeypatch.setattr(groups_module, "SAID_SECONDS", 0.0)
    await until(lambda: len(world.written()) > 1, "the claim, once more")
    assert {json.dumps(one) for one in world.written()} == {json.dumps(world.written()[0])}, "a repeat, should the first arrive after all"


async def test_a_release_leaves_nothing_behind(world: World) -> None:
    owner = await world.begin()
    world.brokers.commits[HERE] = 10
    await until(lambda: world.written(), "the claim")
    await owner.release()
    owner.say([])
    owner.note_check("legacy", "group", "away")
    before = len(world.brokers.asked)
    await until(lambda: not world.watcher._rounds, "what was asked is answered")
    assert len(world.brokers.asked) <= before + 1


# --- answers that fail ---


async def test_a_group_that_cant_be_asked_makes_its_sink_unknown_and_is_asked_less_often(world: World) -> None:
    world.bench.unknown_after_ms = 60_000
    await world.begin()
    await world.commit(10)
    with structlog.testing.capture_logs() as lines:
        world.brokers.failure = UnreachableError("b1:9092 can't be reached")
        await world.rounds(2)
        world.bench.clock.now_ms += 60_000
        await until(lambda: world.told(), "the event")
        await until(lambda: world.watcher._failures["loader"] > 5, "failures")
        assert world.watcher._due["loader"] - asyncio.get_running_loop().time() > 10 * groups_module.EVERY_SECONDS
    assert world.told() == [("sink.unknown", "b1:9092 can't be reached")]
    await until(lambda: world.row().unknown == "b1:9092 can't be reached", "the row")
    assert [line["reason"] for line in lines if "group loader" in line["event"]] == ["b1:9092 can't be reached"]
    world.brokers.failure = None
    await until(lambda: len(world.told()) == 2, "the event")
    assert world.told()[1] == ("sink.known", None)
    await until(lambda: world.row().unknown is None, "the row")


async def test_commits_that_expired_are_unknown_not_a_rewind(world: World) -> None:
    world.bench.unknown_after_ms = 60_000
    await world.begin()
    await world.commit(10)
    world.brokers.commits[HERE] = None
    await world.rounds()
    world.bench.clock.now_ms += 60_000
    await until(lambda: world.told(), "the event")
    assert world.told() == [("sink.unknown", "group loader has no commit for this partition any more; it was 10")]
    assert world.row().horizon_offset == 10
    assert await world.commit(30) == [("received", [[10, 29]], 30)]
    await until(lambda: len(world.told()) == 2, "the event")
    assert world.told()[1] == ("sink.known", None)


async def test_no_commit_at_all_says_nothing(world: World) -> None:
    await world.begin()
    await world.rounds()
    row = world.row()
    assert (world.written(), world.told()) == ([], [])
    assert (row.heard, row.horizon_offset, row.lag, row.missing, row.unknown) == (False, None, None, None, None)


async def test_one_partition_that_is_refused_fails_alone(world: World) -> None:
    await world.begin()
    world.brokers.commits[HERE] = UnreachableError("not told")
    await until(lambda: world.owner.ledger is not None and world.owner.ledger.sinks["legacy"].checks.failing, "the check fails")


async def test_a_start_that_is_not_told_holds_the_statement_back(world: World) -> None:
    await world.begin()
    await world.commit(10)
    world.brokers.start_failure = UnreachableError("not told")
    world.brokers.commits[HERE] = 20
    await until(lambda: world.owner.ledger is not None and world.owner.ledger.sinks["legacy"].checks.failing, "the check fails")
    assert len(world.written()) == 1
    world.brokers.start_failure = None
    await until(lambda: len(world.written()) == 2, "what is said")


async def test_a_defect_is_logged_and_the_group_asked_again(world: World) -> None:
    await world.begin()
    with structlog.testing.capture_logs() as lines:
        world.brokers.commits = {HERE: "nonsense"}  # type: ignore[dict-item]  # what no broker answers
        await until(lambda: any(line["event"] == "a group is asked again after a defect" for line in lines), "the log line")
    world.brokers.commits = {}
    assert await world.commit(10) == [("received", None, 10)]


async def test_a_number_that_leaves_no_room_makes_the_sink_unknown(world: World) -> None:
    """Somebody else reported as the group, with the last number that there is."""
    await world.begin()
    assert await world.commit(10) == [("received", None, 10)]
    ledger = world.owner.ledger
    assert ledger is not None
    ledger.sinks["legacy"].sources.sequences[source_of("loader")] = MAX_OFFSET
    world.brokers.commits = {HERE: 60}
    await until(lambda: ledger.sinks["legacy"].checks.failing, "the check fails")
    ((_, reason),) = ledger.sinks["legacy"].checks.failing.values()
    assert "somebody else reports as group:loader" in reason
    assert len(world.written()) == 1
