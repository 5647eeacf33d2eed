"""What an owner looks at once more before it accuses the log or a sink, and what it then says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from stream_app.core.model import NO_TOPIC_ID, Cause, LogEnds, Look, Runs
from stream_app.service import holes as holes_module
from stream_app.service import owner as owner_module
from stream_app.service.context import TopicFacts
from stream_app.service.owner import PartitionOwner
from tests.support.fakes import OBSERVATIONS_ID, TOPIC_ID, Bench, all_there, bundle, log_read, said, until

OTHER_ID = bytes(15) + b"\x07"
HOLED: dict[str, Any] = {"records": ((0, 4), (6, 10)), "holes": ((4, 6),)}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_SECONDS", "RETRY_SECONDS", "PACE_SECONDS"):
        monkeypatch.setattr(owner_module, name, 0.01)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


def events(bench: Bench) -> list[tuple[str, str, Any]]:
    return [(event["type"], event["sink"], event["ranges"]) for event in bench.writer.events()]


def no_batch(runs: Runs) -> Look:
    """A look that finds nothing at all."""
    return Look(runs[-1][1], 0, holes=runs)


async def suspicious(bench: Bench, **facts: Any) -> PartitionOwner:
    """Ten offsets of a topic that never was compacted, two of them in no batch."""
    owner = await bench.begun()
    bench.port.journal.clear()
    owner.fold_log(log_read(0, 10, **HOLED, **facts))
    return owner


# --- holes --------------------------------------------------------------------------------------------------------------


async def test_a_hole_is_told_when_a_look_of_its_own_finds_it_too(bench: Bench) -> None:
    bench.port.looking = no_batch
    owner = await suspicious(bench)
    await until(lambda: events(bench))
    assert events(bench) == [("gap.opened", "log", [[4, 5]])]
    assert bench.port.asked("look") == [("orders", 0, TOPIC_ID, ((4, 6),))]
    assert bench.port.asked("read_from") == [(10, TOPIC_ID, 0, ((0, 0),))], "what came meanwhile is read again"
    assert owner.ledger is not None
    assert owner.ledger.log.records == 8


async def test_a_hole_that_only_the_reader_saw_is_read_again(bench: Bench) -> None:
    bench.port.looking = all_there
    owner = await suspicious(bench)
    await until(lambda: bench.port.asked("read_from"))
    assert bench.port.asked("read_from") == [(0, TOPIC_ID, -1, ())]
    owner.fold_log(log_read(0, 10))
    await until(lambda: owner.flushed_read == 10)
    assert events(bench) == []
    assert owner.ledger is not None
    assert owner.ledger.log.records == 10


async def test_nothing_is_folded_while_a_hole_is_looked_at(bench: Bench) -> None:
    bench.port.looking = no_batch
    bench.port.failing = {"look": 3}
    owner = await suspicious(bench)
    owner.fold_log(log_read(10, 20))
    await until(lambda: events(bench))
    assert owner.ledger is not None
    assert owner.ledger.log.read == 10
    assert len(bench.port.asked("look")) == 4


async def test_a_topic_that_is_compacted_since_a_moment_ago_is_not_accused(bench: Bench) -> None:
    bench.port.looking = no_batch
    owner = await bench.begun()
    bench.port.facts_now = replace(bench.port.facts_now, compacted=True)
    assert owner.ledger is not None
    owner.ledger.log.ever_compacted = False  # as asked half a minute ago
    owner.fold_log(log_read(0, 10, **HOLED))
    await until(lambda: owner.flushed_read == 10)
    assert events(bench) == []
    assert owner.ledger.log.absent_counts == {"compacted": 2}


async def test_nobody_is_accused_while_the_policy_can_not_be_asked(bench: Bench) -> None:
    """The topic is compacted since a moment ago, and whoever could tell it does not answer just then."""
    bench.port.looking = no_batch
    owner = await bench.begun()
    bench.port.facts_now = replace(bench.port.facts_now, compacted=None)
    owner.fold_log(log_read(0, 10, **HOLED))
    await until(lambda: len(bench.port.asked("policy")) > 3)
    assert owner.ledger is not None
    assert (events(bench), owner.ledger.log.read) == ([], 0)
    bench.port.facts_now = replace(bench.port.facts_now, compacted=True)
    await until(lambda: owner.flushed_read == 10)
    assert (events(bench), owner.ledger.log.absent_counts) == ([], {"compacted": 2})


async def test_a_sinks_candidates_wait_for_the_policy_too(bench: Bench) -> None:
    """What compaction takes would be told as expired."""
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    bench.port.facts_now = replace(bench.port.facts_now, compacted=None)
    bench.port.looking = no_batch
    await owner.fold_observations(bundle(0, said(runs=[[0, 4], [6, 9]])))
    bench.clock.now_ms += 5_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: len(bench.port.asked("policy")) > 3)
    assert events(bench) == []
    bench.port.facts_now = replace(bench.port.facts_now, compacted=False)
    await until(lambda: events(bench))
    assert [event["cause"] for event in bench.writer.events()] == ["expired"]


async def test_a_policy_that_can_not_be_asked_for_long_is_unknown(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right to ask was taken away: reading goes on, and nobody is accused of holes."""
    monkeypatch.setattr(holes_module, "POLICY_SECONDS", 0.05)
    bench.port.looking = no_batch
    owner = await bench.begun()
    bench.port.facts_now = replace(bench.port.facts_now, compacted=None)
    owner.fold_log(log_read(0, 10, **HOLED))
    await until(lambda: owner.flushed_read == 10)
    assert owner.ledger is not None
    assert (events(bench), owner.ledger.log.absent_counts, owner.ledger.log.ever_compacted) == ([], {"compacted": 2}, None)


async def test_what_the_logs_start_passed_meanwhile_is_unread(bench: Bench) -> None:
    bench.port.looking = lambda runs: Look(runs[-1][1], 5, holes=((5, 6),))
    await suspicious(bench)
    await until(lambda: len(events(bench)) == 2)
    assert sorted(events(bench)) == [("gap.opened", "log", [[5, 5]]), ("log.unread", "log", [[4, 4]])]


async def test_a_look_is_repeated_until_it_got_everywhere(bench: Bench) -> None:
    bench.port.looking = lambda runs: Look(runs[0][0] + 1, 0, holes=((runs[0][0], runs[0][0] + 1),))
    await suspicious(bench)
    await until(lambda: events(bench))
    assert events(bench) == [("gap.opened", "log", [[4, 5]])]
    assert [runs for *_, runs in bench.port.asked("look")] == [((4, 6),), ((5, 6),)]


async def test_a_look_that_gets_nowhere_accuses_nobody(bench: Bench) -> None:
    bench.port.looking = lambda runs: Look(runs[0][0], 0)
    owner = await suspicious(bench)
    await until(lambda: len(bench.port.asked("look")) > 3)
    assert owner.ledger is not None
    assert (owner.ledger.log.read, events(bench)) == (0, [])


async def test_candidates_that_are_gone_are_compacted_if_the_topic_is_since_a_moment_ago(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 10, 10)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))

    def compacted_now(runs: Runs) -> Look:
        bench.port.facts_now = replace(bench.port.facts_now, compacted=True)
        return no_batch(runs)

    bench.port.looking = compacted_now
    await owner.fold_observations(bundle(0, said(runs=[[0, 3], [5, 9]])))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: any(row.explained for row in owner.rows))
    assert [row.explained for row in owner.rows if row.sink == "billing"] == [{"compacted": 1}]
    assert events(bench) == []


# --- partitions that were added -----------------------------------------------------------------------------------------


async def test_an_added_partition_is_told_once_and_every_sink_answers_from_its_start(bench: Bench) -> None:
    bench.port.seen_first = 3
    bench.floors = {"billing": "latest"}
    bench.port.ends_now = LogEnds(2, 50, 50)
    owner = await bench.begun(partition=3)
    await until(lambda: events(bench))
    assert [(event["type"], event["sink"], event["partition"], event["sequence"]) for event in bench.writer.events()] == [
        ("log.expanded", "log", 3, 1)
    ]
    assert owner.ledger is not None
    assert (owner.ledger.sinks["billing"].floor, owner.ledger.partitions) == (2, 3)
    await owner.release()
    await bench.begun(partition=3)
    assert events(bench) == []


@pytest.mark.parametrize(("seen_first", "partition"), [(None, 3), (4, 3)])
async def test_a_partition_of_the_first_sight_is_not_called_added(bench: Bench, seen_first: int | None, partition: int) -> None:
    bench.port.seen_first = seen_first
    bench.port.facts_now = replace(bench.port.facts_now, partitions=4)
    bench.floors = {"billing": "latest"}
    bench.port.ends_now = LogEnds(2, 50, 50)
    owner = await bench.begun(partition)
    assert owner.ledger is not None
    assert (events(bench), owner.ledger.sinks["billing"].floor, owner.ledger.partitions) == ([], 50, 4)


# --- observations that nobody read --------------------------------------------------------------------------------------


async def reported_then_lost(bench: Bench) -> PartitionOwner:
    """20 records, of which the first ten were reported and judged."""
    bench.port.ends_now = LogEnds(0, 20, 20)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 20))
    await owner.fold_observations(bundle(0, said(runs=[[0, 9]], source="s", sequence=1)))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: owner.flushed_observed == 1)
    return owner


async def judged(bench: Bench, owner: PartitionOwner, position: int) -> dict[str, int]:
    """What is explained of billing when it went on to report offset 25 of 30."""
    bench.port.ends_now = LogEnds(0, 30, 30)
    owner.fold_log(log_read(20, 30))
    await owner.fold_observations(bundle(position, said(runs=[[15, 15], [25, 25]], source="s", sequence=9)))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(position + 1, heard_ms=bench.clock.now_ms))
    await until(lambda: any(row.missing for row in owner.rows))
    return next(row.explained for row in owner.rows if row.sink == "billing")


async def test_what_lacks_after_observations_were_removed_unread_is_unobserved(bench: Bench) -> None:
    await (await reported_then_lost(bench)).release()
    bench.port.observations_begin = 8
    owner = await bench.begun()
    assert await judged(bench, owner, 8) == {"unobserved": 9}
    assert sorted(events(bench)) == [("gap.explained", "billing", [[10, 14], [16, 19]]), ("gap.opened", "billing", [[20, 24]])]


async def test_an_observations_topic_made_anew_while_it_is_heard(bench: Bench) -> None:
    owner = await reported_then_lost(bench)
    owner.observations_are(OBSERVATIONS_ID)
    bench.port.facts_now = replace(bench.port.facts_now, observations_id=OTHER_ID)
    bench.port.journal.clear()
    owner.observations_are(OTHER_ID)
    await until(lambda: bench.port.asked("hear_from"))
    assert bench.port.asked("hear_from") == [(None,)]
    assert await judged(bench, owner, 0) == {"unobserved": 9}


async def test_observations_about_the_time_of_a_re_creation_must_name_the_topic(bench: Bench) -> None:
    await (await reported_then_lost(bench)).release()
    bench.port.facts_now = replace(bench.port.facts_now, topic_id=OTHER_ID)
    bench.port.ends_now = LogEnds(0, 3, 3)  # of the observations too
    owner = await bench.begun()
    owner.fold_log(log_read(0, 3, topic_id=OTHER_ID))
    named: dict[str, Any] = {"topic_id": "AAAAAAAAAAAAAAAAAAAABw"}
    await owner.fold_observations(bundle(1, said(runs=[[0, 0]]), said(runs=[[1, 1]], **named), said(runs=[[2, 2]])))
    assert bench.rejected == {"older_incarnation": 1}
    assert owner.ledger is not None
    assert list(owner.ledger.sinks["billing"].received.runs()) == [(1, 3)]


# --- settings -----------------------------------------------------------------------------------------------------------


async def test_settings_that_change_are_noticed(bench: Bench) -> None:
    owner = await bench.begun()
    assert owner.ledger is not None
    bench.port.facts_now = replace(bench.port.facts_now, compacted=True, retention_ms=5_000)
    await until(lambda: owner.ledger is not None and owner.ledger.retention_ms == 5_000)
    assert owner.ledger.log.ever_compacted is True


async def test_an_unknown_first_sight_is_asked_again(bench: Bench) -> None:
    bench.port.failing = {"first_partitions": 2}
    owner = await bench.begun()
    assert owner.ledger is not None
    assert len(bench.port.asked("first_partitions")) == 3


# --- ids that brokers begin to tell -------------------------------------------------------------------------------------


def nameless(**changed: Any) -> TopicFacts:
    """Of brokers before 2.8."""
    return replace(TopicFacts(NO_TOPIC_ID, NO_TOPIC_ID, 1, 1, False, None), **changed)


async def received_all(bench: Bench) -> PartitionOwner:
    """Ten records, all received but one, while brokers told no ids."""
    bench.port.facts_now, bench.port.ends_now = nameless(), LogEnds(0, 10, 10)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10, topic_id=NO_TOPIC_ID))
    await owner.fold_observations(bundle(0, said(runs=[[0, 4], [6, 9]])))
    bench.clock.now_ms += 5_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: events(bench))
    assert events(bench) == [("gap.opened", "billing", [[5, 5]])]
    return owner


async def test_an_id_that_is_told_since_an_upgrade_is_the_same_topics(bench: Bench) -> None:
    """The state goes on under the id; whoever takes over next finds all of it there."""
    owner = await received_all(bench)
    assert owner.ledger is not None
    before = owner.ledger.sinks
    await owner.release()
    bench.port.facts_now = nameless(topic_id=TOPIC_ID, observations_id=OBSERVATIONS_ID)
    for _ in range(2):
        owner = await bench.begun()
        await until(lambda: bench.owners[-1].flushed_read == 10)
        assert owner.ledger is not None
        assert (owner.ledger.log.topic_id, owner.ledger.observations_id) == (TOPIC_ID, OBSERVATIONS_ID)
        for name, sink in owner.ledger.sinks.items():
            assert (sink.received, sink.open, sink.observed) == (before[name].received, before[name].open, before[name].observed)
        assert owner.ledger.sinks["billing"].open[Cause.NOT_RECEIVED].count == owner.ledger.observed_to == 1
        assert events(bench) == []
        assert all(TOPIC_ID in key for key in bench.store.kept), "nothing is left under no id"
        await owner.release()


async def test_an_id_that_is_told_while_the_log_is_read_is_the_same_topics(bench: Bench) -> None:
    owner = await received_all(bench)
    owner.fold_log(log_read(10, 20))
    await until(lambda: owner.flushed_read == 20)
    assert len(events(bench)) == 1
    assert all(TOPIC_ID in key for key in bench.store.kept)


async def test_ids_that_are_told_no_more_change_nothing(bench: Bench) -> None:
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    await owner.release()
    bench.port.facts_now = nameless()
    owner = await bench.begun()
    await until(lambda: owner.flushed_read == 10)
    assert events(bench) == []
    assert owner.ledger is not None
    assert (owner.ledger.log.topic_id, owner.ledger.observations_id) == (TOPIC_ID, OBSERVATIONS_ID)


async def test_another_id_is_believed_when_it_is_told_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that lags names that of a topic that is gone."""
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    await owner.release()
    facts, answers = bench.port.facts, [OTHER_ID, TOPIC_ID]

    async def lagging(topic: str) -> TopicFacts:
        found = await facts(topic)
        return replace(found, topic_id=answers.pop(0)) if answers else found

    monkeypatch.setattr(bench.port, "facts", lagging)
    owner = await bench.begun()
    assert answers == []
    assert owner.ledger is not None
    assert (owner.ledger.log.topic_id, owner.ledger.log.read) == (TOPIC_ID, 10)


async def test_a_snapshot_from_the_future_is_rejected(bench: Bench) -> None:
    """Believed, it would make every later one an old one, and nothing would be told of the sink any more."""
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    far = said(runs=[[0, 4]], snapshot=[0, 9], rows=5, at="9999-12-31T00:00:00Z", source="table:x", sequence=1)
    near = said(runs=[[0, 4]], snapshot=[0, 9], rows=5, at="2023-11-15T20:00:00Z", source="table:x", sequence=2)
    await owner.fold_observations(bundle(0, far, near))
    assert bench.rejected == {"malformed": 1}
    assert owner.ledger is not None
    assert owner.ledger.sinks["billing"].snapshots.last_ms == 1_700_078_400_000
