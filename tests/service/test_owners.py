"""All owned partitions together: fenced before they begin, released before others are fenced, asked for again after a loss."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog
from faust.types import TP

from stream_app.core.model import LogRead
from stream_app.kafka.driver import Bundle
from stream_app.kafka.names import TopicNames
from stream_app.kafka.reader import LogReader
from stream_app.kafka.writer import WriterLost
from stream_app.service import owners as owners_module
from stream_app.service.context import TopicRules
from stream_app.service.owners import OwnedPartitions
from tests.support.fakes import Bench, Clock, bundle, log_read, until

TOPICS = ("orders", "sales")
NAMES = {topic: TopicNames.of("gap", topic) for topic in TOPICS}
RULES = {topic: TopicRules({}, {}, 0) for topic in TOPICS}


@dataclass
class Owner:
    """Stands in for one partition's owner."""

    world: World
    topic: str
    partition: int
    writer: str
    trouble: str | None = "state is being recovered"
    flushed_read: int | None = None
    flushed_observed: int | None = None
    clean_end_read_ms: int | None = None
    rows: list[Any] = field(default_factory=list)
    folded: list[Any] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        return self.topic, self.partition

    async def fence(self) -> None:
        self.world.fencing += 1
        self.world.fencing_most = max(self.world.fencing, self.world.fencing_most)
        await asyncio.sleep(0)
        self.world.fencing -= 1
        self.world.journal.append(("fence", *self.key))
        if self.key in self.world.refused:
            raise WriterLost("the broker says no")

    def begin(self) -> None:
        self.world.journal.append(("begin", *self.key))

    async def release(self) -> tuple[int, int] | None:
        await asyncio.sleep(0)
        self.world.journal.append(("release", *self.key))
        return self.world.flushed.get(self.key)

    def fold_log(self, read: LogRead) -> None:
        self.folded.append(read)

    async def fold_observations(self, given: Bundle) -> None:
        self.folded.append(given)


@dataclass
class World:
    """What happened, in order."""

    journal: list[Any] = field(default_factory=list)
    refused: set[tuple[str, int]] = field(default_factory=set)
    flushed: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """What an owner's last flush holds, where there was one."""
    fencing: int = 0
    fencing_most: int = 0
    stores: list[str] = field(default_factory=list)
    ready: dict[tuple[str, int], LogRead] = field(default_factory=dict)

    def make(self, context: Any, names: TopicNames, partition: int, rules: TopicRules, writer: str, store: str) -> Owner:
        assert rules is RULES[names.watched]
        self.stores.append(store)
        return Owner(self, names.watched, partition, writer)

    def take(self) -> dict[tuple[str, int], LogRead]:
        return self.ready

    async def wait(self, *, troubles: bool) -> None:
        self.journal.append("wait, whatever troubles there are" if not troubles else "wait")

    def drop(self, topic: str, partition: int) -> None:
        self.journal.append(("drop", topic, partition))

    async def rejoin(self) -> None:
        self.journal.append("rejoin")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(owners_module, "PartitionOwner", made.make)
    monkeypatch.setattr(owners_module, "FencedWriter", lambda connection, name: f"{name} at {connection['bootstrap_servers']}")
    return made


@pytest.fixture
def owned(world: World) -> OwnedPartitions:
    made = OwnedPartitions(cast(LogReader, world), NAMES, RULES, {"bootstrap_servers": "broker:1"}, Clock())
    bench = Bench()
    context = bench.make().context
    made.wire(context, lambda topic: f"store of {topic}", world.drop, world.rejoin)
    return made


def owner(owned: OwnedPartitions, topic: str, partition: int) -> Owner:
    found = owned.owner(topic, partition)
    assert found is not None
    return cast(Owner, found)


def test_kinds_of_topics(owned: OwnedPartitions) -> None:
    kinds = {topic: owned.kind(topic) for topic in ("orders", "gap.observations.orders", "gap-orders-changelog", "gap.alerts", "x")}
    assert kinds == {
        "orders": "log", "gap.observations.orders": "observations", "gap-orders-changelog": "other", "gap.alerts": "other", "x": "other",
    }  # fmt: skip


async def test_fencing_makes_a_writer_and_an_owner_for_each_partition(owned: OwnedPartitions, world: World) -> None:
    await owned.fence({("orders", 1), ("sales", 0), ("orders", 0)})
    assert [(one.topic, one.partition) for one in owned.owners()] == [("orders", 0), ("orders", 1), ("sales", 0)]
    assert owner(owned, "orders", 1).writer == "gap-orders-1 at broker:1"
    assert world.stores == ["store of orders", "store of orders", "store of sales"]
    assert sorted(world.journal) == [("fence", "orders", 0), ("fence", "orders", 1), ("fence", "sales", 0)]
    assert not owned.assigned
    owned.begin({("orders", 0), ("orders", 1), ("sales", 0), ("sales", 9)})
    assert owned.assigned
    assert sorted(world.journal[3:]) == [("begin", "orders", 0), ("begin", "orders", 1), ("begin", "sales", 0)]


def test_what_hinders_recovery_is_said_once_a_minute(owned: OwnedPartitions) -> None:
    with structlog.testing.capture_logs() as lines:
        owned.hindered("silent for 40 s")
        owned.hindered("silent for 80 s")
    assert [(line["log_level"], line["event"], line["reason"]) for line in lines] == [
        ("warning", "state can't be recovered now", "silent for 40 s")
    ]


async def test_what_was_owned_before_is_released_before_anything_is_fenced(owned: OwnedPartitions, world: World) -> None:
    """A fresh owner for every partition at every assignment: the former one's memory may be of another generation."""
    await owned.fence({("orders", 0), ("orders", 1)})
    before = owned.owner("orders", 1)
    world.journal.clear()
    await owned.fence({("orders", 1)})
    assert sorted(world.journal[:2]) == [("release", "orders", 0), ("release", "orders", 1)]
    assert world.journal[2:] == [("fence", "orders", 1)]
    assert owned.owner("orders", 1) is not before
    assert owned.owner("orders", 0) is None


async def test_not_too_many_writers_start_at_once(owned: OwnedPartitions, world: World) -> None:
    await owned.fence({("orders", number) for number in range(100)})
    assert world.fencing_most == owners_module.FENCES_AT_ONCE
    assert len(owned.owners()) == 100


async def test_a_partition_that_cant_be_fenced_leaves_the_others(
    owned: OwnedPartitions, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners_module, "REJOIN_FIRST_SECONDS", 0.0)
    world.refused = {("orders", 0)}
    await owned.fence({("orders", 0), ("orders", 1)})
    assert owner(owned, "orders", 0).trouble == "the broker says no"
    assert owner(owned, "orders", 1).trouble == "state is being recovered"
    await until(lambda: "rejoin" in world.journal, "a new assignment is asked for")
    assert not [what for what in world.journal if what[0] == "drop"], "nothing was written: the local copy is good"


async def test_release_takes_the_named_only(owned: OwnedPartitions, world: World) -> None:
    await owned.fence({("orders", 0), ("orders", 1)})
    assert await owned.release({("orders", 1), ("sales", 7)}) == {}
    assert [(one.topic, one.partition) for one in owned.owners()] == [("orders", 0)]
    assert world.journal[-1] == ("release", "orders", 1)


async def test_release_tells_what_was_flushed(owned: OwnedPartitions, world: World) -> None:
    await owned.fence({("orders", 0), ("orders", 1)})
    world.flushed = {("orders", 1): (70, 3)}
    found = await owned.release({("orders", 0), ("orders", 1)})
    assert found == {TP("orders", 1): 70, TP(NAMES["orders"].observations, 1): 3}


async def test_deliveries_go_to_their_owner_or_to_nobody(owned: OwnedPartitions) -> None:
    await owned.fence({("orders", 0), ("sales", 0)})
    read, heard = log_read(0, 5), bundle(0)
    owned.fold_log("orders", 0, read)
    owned.fold_log("orders", 5, read)
    await owned.fold_observations("gap.observations.sales", 0, heard)
    await owned.fold_observations("gap.observations.sales", 5, heard)
    assert (owner(owned, "orders", 0).folded, owner(owned, "sales", 0).folded) == ([read], [heard])


async def test_the_reader_is_asked(owned: OwnedPartitions, world: World) -> None:
    world.ready = {("orders", 0): log_read(0, 5)}
    assert owned.reads() == world.ready
    await owned.wait_reads()
    assert world.journal == ["wait, whatever troubles there are"]


async def test_positions_are_those_flushed(owned: OwnedPartitions) -> None:
    await owned.fence({("orders", 0), ("sales", 2)})
    assert owned.positions() == {}
    one = owner(owned, "orders", 0)
    one.flushed_read, one.flushed_observed = 0, 7
    assert owned.positions() == {TP("orders", 0): 0, TP("gap.observations.orders", 0): 7}


async def test_what_is_told_of_rows_and_ends(owned: OwnedPartitions) -> None:
    await owned.fence({("orders", 0), ("orders", 1), ("sales", 0)})
    bench = Bench()
    await bench.begun()
    row = bench.owners[0].rows[0]
    first, second = owner(owned, "orders", 0), owner(owned, "orders", 1)
    first.rows, first.clean_end_read_ms = [row], 5
    second.clean_end_read_ms = 0
    assert owned.rows() == [row]
    assert owned.checked() == {"orders/0": 5, "orders/1": 0}
    assert owned.flushed() == {"orders/0": row.updated_at_ms}
    await bench.close()


def test_ready_topics_are_complete_groups_and_changes_are_told(owned: OwnedPartitions) -> None:
    assert owned.set_ready({"orders"})
    assert asyncio.run(owned.ready_topics()) == {"orders", "gap.observations.orders", "gap-orders-changelog"}
    assert not owned.set_ready({"orders"})
    assert owned.set_ready({"orders", "sales"})
    assert owned.set_ready(set())
    assert asyncio.run(owned.ready_topics()) == set()


# --- after a loss -------------------------------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited before each question for a new assignment; no time passes."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        asked.append(seconds)
        await sleep(0)

    monkeypatch.setattr("stream_app.service.owners.asyncio.sleep", note)
    return asked


async def settled(owned: OwnedPartitions) -> None:
    assert owned._rejoining is not None
    await owned._rejoining


async def test_a_lost_flush_drops_the_copy_and_asks_for_a_new_assignment(owned: OwnedPartitions, world: World, waits: list[float]) -> None:
    with structlog.testing.capture_logs() as lines:
        owned.lost("orders", 3)
        await settled(owned)
    assert world.journal == [("drop", "orders", 3), "rejoin"]
    assert waits == [1.0]
    assert [line["event"] for line in lines] == ["asking the group for a new assignment"]


async def test_several_losses_at_once_ask_once(owned: OwnedPartitions, world: World, waits: list[float]) -> None:
    for partition in range(5):
        owned.lost("orders", partition)
    await settled(owned)
    assert [what for what in world.journal if what == "rejoin"] == ["rejoin"]
    assert len([what for what in world.journal if what[0] == "drop"]) == 5


async def test_losses_one_after_the_other_are_asked_about_more_and_more_slowly(
    owned: OwnedPartitions, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question stops the whole group: a writer that is refused for good must not do that all the time."""
    for _ in range(8):
        owned.lost("orders", 0)
        await settled(owned)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    monkeypatch.setattr(owners_module, "CALM_SECONDS", -1.0)
    owned.lost("orders", 0)
    await settled(owned)
    assert waits[-1] == 1.0


async def test_stop_asks_for_nothing_any_more_and_releases_all(owned: OwnedPartitions, world: World) -> None:
    await owned.stop()
    await owned.fence({("orders", 0)})
    owned.lost("orders", 0)
    await owned.stop()
    assert owned._rejoining is not None
    await asyncio.wait([owned._rejoining])
    assert "rejoin" not in world.journal
    assert world.journal[-1] == ("release", "orders", 0)
    assert owned.owners() == []
