"""One partition's owner against scripted neighbours: what it takes, what it refuses, what one flush holds, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from stream_app.core.model import LogEnds, Look
from stream_app.core.policy import Policy
from stream_app.kafka.trouble import Trouble, TroubleKind
from stream_app.kafka.writer import WriterLost
from stream_app.service import owner as owner_module
from stream_app.service.context import TopicFacts
from stream_app.service.owner import PartitionOwner
from tests.support.fakes import (
    ALERTS,
    LOST,
    NAMES,
    OBSERVATIONS_ID,
    START_MS,
    STATUS,
    TOPIC_ID,
    Bench,
    all_there,
    bundle,
    log_read,
    said,
    until,
)

OTHER_ID = bytes(15) + b"\x07"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(owner_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(owner_module, "PACE_SECONDS", 0.0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.close()


async def told(bench: Bench, kind: str) -> dict[str, Any]:
    """The first event of one type that was flushed."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = [event for event in bench.writer.events() if event["type"] == kind]
        return bool(found)

    await until(look, f"an event {kind}")
    return found[0]


async def with_a_gap(bench: Bench) -> PartitionOwner:
    """100 records in the log, of which billing received all but 40 to 49; told and flushed."""
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    await owner.fold_observations(bundle(0, said(runs=[[0, 39], [50, 99]], source="s", sequence=1)))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await told(bench, "gap.opened")
    return owner


async def settled(bench: Bench) -> None:
    """Until several turns of the loop wrote nothing."""
    writes, asked = -1, 0
    while writes != bench.writer.begun:
        writes, asked = bench.writer.begun, bench.clock.asked
        await until(lambda: bench.clock.asked > asked + 5)  # noqa: B023 - awaited before the variable moves on


def stored_ranges(event: dict[str, Any]) -> list[list[int]]:
    return list(event["ranges"])


# --- begin --------------------------------------------------------------------------------------------------------------


async def test_a_partition_seen_first_begins_at_the_logs_start(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(30, 100, 90)
    owner = bench.make()
    assert owner.trouble == "state is being recovered"
    await owner.fence()
    assert bench.writer.started == 1
    owner.begin()
    await until(lambda: owner.flushed_read is not None)
    assert owner.trouble is None
    assert bench.port.asked("read_from") == [(30, TOPIC_ID, -1, ())]
    assert bench.port.asked("hear_from") == [(None,)]
    assert (owner.flushed_read, owner.flushed_observed) == (30, 0)
    ledger = owner.ledger
    assert ledger is not None
    assert ledger.birth == str(START_MS)
    assert ledger.log.topic_id == TOPIC_ID
    assert ledger.observations_id == OBSERVATIONS_ID
    assert (ledger.log.start, ledger.log.end) == (30, 100)


async def test_nothing_begins_before_the_former_writer_is_fenced(bench: Bench) -> None:
    owner = bench.make()
    bench.writer.start_failures.append(LOST)
    with pytest.raises(WriterLost):
        await owner.fence()
    owner.begin()
    await asyncio.sleep(0.02)  # several turns of a loop that would have begun
    assert bench.port.journal == []
    assert owner.trouble is not None


async def test_begin_twice_is_begin_once(bench: Bench) -> None:
    owner = await bench.begun()
    owner.begin()
    owner.begin()
    asked = bench.clock.asked
    await until(lambda: bench.clock.asked > asked + 3)
    assert len(bench.port.asked("facts")) == 1


async def test_the_next_owner_goes_on_from_the_head(bench: Bench) -> None:
    first = await with_a_gap(bench)
    ledger = first.ledger
    assert ledger is not None
    birth = ledger.birth
    await first.release()
    bench.clock.now_ms += 60_000
    bench.port.journal.clear()
    second = await bench.begun()
    assert second.ledger is not None
    assert second.ledger is not ledger
    assert second.ledger.birth == birth
    assert bench.port.asked("read_from") == [(100, TOPIC_ID, 0, ((0, 0),))]
    assert bench.port.asked("hear_from") == [(1,)]
    assert bench.writer.events() == []
    await second.fold_observations(bundle(1, said(runs=[[40, 44]], source="s", sequence=2)))
    event = await told(bench, "gap.filled")
    assert (event["sequence"], event["ranges"], event["open"]) == (2, [[40, 44]], {"count": 5, "gaps": 1})


async def test_whoever_takes_over_says_so_with_its_first_flush(bench: Bench) -> None:
    await (await with_a_gap(bench)).release()
    second = await bench.begun()
    (records,) = bench.writer.to(STATUS)[:1]
    (status,) = [json.loads(record.value or b"") for record in records if record.key == b"partition/orders/0"]
    assert status["worker"] == "worker-1"
    assert [(row["sink"], row["missing"]) for row in status["rows"]] == [("log", 0), ("billing", 10)]
    assert [row.sink for row in second.rows] == ["log", "billing"]


async def test_a_topic_created_anew_meanwhile_closes_what_was_open(bench: Bench) -> None:
    await (await with_a_gap(bench)).release()
    bench.port.facts_now = replace(bench.port.facts_now, topic_id=OTHER_ID)
    bench.port.ends_now = LogEnds(0, 7, 7)
    bench.port.journal.clear()
    owner = await bench.begun()
    await told(bench, "log.recreated")
    assert [(event["type"], event["sink"], event["ranges"]) for event in bench.writer.events()] == [
        ("gap.explained", "billing", [[40, 49]]), ("log.recreated", "log", None),
    ]  # fmt: skip
    assert bench.port.asked("read_from") == [(0, OTHER_ID, -1, ())]
    assert bench.port.asked("hear_from") == [(1,)]
    assert owner.ledger is not None
    assert owner.ledger.log.topic_id == OTHER_ID
    keys = {record.key for write in bench.writer.to(NAMES.changelog) for record in write if record.value is None}
    assert any(TOPIC_ID in key for key in keys), "keys of the former incarnation are deleted"
    assert not any(TOPIC_ID in key for key in bench.store.kept)


async def test_an_observations_topic_created_anew_is_read_from_its_beginning(bench: Bench) -> None:
    await (await with_a_gap(bench)).release()
    bench.port.facts_now = replace(bench.port.facts_now, observations_id=OTHER_ID)
    bench.port.journal.clear()
    owner = await bench.begun()
    assert bench.port.asked("hear_from") == [(None,)]
    assert owner.ledger is not None
    assert owner.ledger.observations_id == OTHER_ID
    assert bench.rejected == {}
    await owner.fold_observations(bundle(0, said(runs=[[40, 49]], source="s", sequence=2)))
    await told(bench, "gap.filled")


async def test_observations_removed_before_they_were_read_are_counted(bench: Bench) -> None:
    await (await with_a_gap(bench)).release()
    bench.port.observations_begin = 8
    owner = await bench.begun()
    assert bench.rejected == {"removed_unread": 7}
    assert owner.ledger is not None
    assert owner.ledger.observed_to == 8


async def test_what_was_removed_before_the_first_sight_is_nobodys_loss(bench: Bench) -> None:
    bench.port.observations_begin = 8
    owner = await bench.begun()
    assert bench.rejected == {}
    assert owner.flushed_observed == 8


@pytest.mark.parametrize(
    ("floor", "expected"), [("first", None), ("earliest", 20), ("latest", 100), ("2026-01-01T00:00:00Z", 55), ("2030-01-01T00:00:00Z", 100)]
)
async def test_floors(bench: Bench, floor: str, expected: int | None) -> None:
    bench.floors = {"billing": floor}
    bench.port.ends_now = LogEnds(20, 100, 100)
    bench.port.times = {"2026-01-01T00:00:00Z": 55, "2030-01-01T00:00:00Z": None}
    owner = await bench.begun()
    assert owner.ledger is not None
    assert owner.ledger.sinks["billing"].floor == expected


async def test_the_configuration_reaches_the_ledger(bench: Bench) -> None:
    bench.lateness_ms = 4_000
    bench.port.facts_now = TopicFacts(TOPIC_ID, OBSERVATIONS_ID, 1, 1, True, 86_400_000)
    owner = await bench.begun()
    assert owner.ledger is not None
    assert (owner.ledger.lateness_ms, owner.ledger.retention_ms, owner.ledger.log.ever_compacted) == (4_000, 86_400_000, True)


@pytest.mark.parametrize(("then", "expected"), [(False, True), (None, True), (True, True)])
async def test_ever_compacted_stays_true(bench: Bench, then: bool | None, expected: bool) -> None:
    bench.port.facts_now = replace(bench.port.facts_now, compacted=True)
    await (await bench.begun()).release()
    bench.port.facts_now = replace(bench.port.facts_now, compacted=then)
    owner = await bench.begun()
    assert owner.ledger is not None
    assert owner.ledger.log.ever_compacted is expected


@pytest.mark.parametrize("call", ["facts", "ends", "hear_from"])
async def test_begin_is_tried_again_while_kafka_does_not_answer(bench: Bench, call: str) -> None:
    bench.port.failing = {call: 2}
    owner = bench.make()
    await owner.fence()
    owner.begin()
    await until(lambda: owner.trouble == f"{call} does not answer", "the reason in readiness")
    await until(lambda: owner.flushed_read is not None, "a beginning after all")
    assert owner.trouble is None
    assert len(bench.port.asked(call)) == 3
    assert len(bench.port.asked("read_from")) == 1


async def test_state_that_cant_be_read_leaves_the_partition_alone(bench: Bench) -> None:
    bench.store.kept = {b"\x00\x00\x00\x00" + b"\x09" + bytes(17): b"of another version"}
    owner = bench.make()
    await owner.fence()
    owner.begin()
    await until(lambda: owner.trouble is not None and "can't be read" in owner.trouble)
    assert owner.trouble == "the state of orders/0 can't be read: it is of version 9, this program reads 1"
    assert bench.writer.writes == []
    assert bench.lost == []
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 1]])))
    assert owner.ledger is None


# --- fences -------------------------------------------------------------------------------------------------------------


async def test_a_log_read_that_does_not_follow_is_refused_and_sought_back_once(bench: Bench) -> None:
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    bench.port.journal.clear()
    for position in (20, 30, 40):
        owner.fold_log(log_read(position, position + 10))
    assert owner.ledger is not None
    assert owner.ledger.log.read == 10
    assert owner.ledger.log.records == 10
    assert bench.port.asked("read_from") == [(10, TOPIC_ID, 0, ((0, 0),))]
    owner.fold_log(log_read(10, 50))
    assert owner.ledger.log.read == 50
    owner.fold_log(log_read(60, 70))
    assert bench.port.asked("read_from") == [(10, TOPIC_ID, 0, ((0, 0),)), (50, TOPIC_ID, 0, ((0, 0),))]


async def test_a_log_read_from_before_is_refused_without_a_seek(bench: Bench) -> None:
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    bench.port.journal.clear()
    owner.fold_log(log_read(0, 10))
    assert owner.ledger is not None
    assert owner.ledger.log.records == 10
    assert bench.port.asked("read_from") == []


async def test_a_seek_that_led_nowhere_is_made_again_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = await bench.begun()
    bench.port.journal.clear()
    owner.fold_log(log_read(20, 30))
    monkeypatch.setattr(owner_module, "SEEK_AGAIN_SECONDS", -1.0)
    owner.fold_log(log_read(30, 40))
    assert len(bench.port.asked("read_from")) == 2


async def test_a_bundle_that_does_not_follow_is_refused_and_sought_back_once(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    await owner.fold_observations(bundle(0, said(runs=[[0, 9]])))
    bench.port.journal.clear()
    for position in (5, 6, 7):
        await owner.fold_observations(bundle(position, said(runs=[[50, 59]]), heard_ms=START_MS))
    ledger = owner.ledger
    assert ledger is not None
    assert ledger.observed_to == 1
    assert ledger.sinks["billing"].observed == 10
    assert ledger.heard_ms is None
    assert bench.port.asked("hear_from") == [(1,)]
    await owner.fold_observations(bundle(1, said(runs=[[10, 19]])))
    assert ledger.sinks["billing"].observed == 20


async def test_a_bundle_from_before_is_refused_and_the_input_looked_at_once(bench: Bench) -> None:
    """It may be stale, or from the beginning of a topic that was re-created: only asking tells."""
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    same = bundle(0, said(runs=[[0, 9]]))
    await owner.fold_observations(same)
    bench.port.journal.clear()
    await owner.fold_observations(same)
    assert owner.ledger is not None
    sink = owner.ledger.sinks["billing"]
    assert (sink.observed, sink.duplicates) == (10, 0)
    await owner.fold_observations(same)
    assert len(bench.port.asked("hear_from")) == 1


async def test_an_unavailable_seek_of_the_observations_is_no_crash(bench: Bench) -> None:
    owner = await bench.begun()
    bench.port.failing = {"hear_from": 1}
    await owner.fold_observations(bundle(5))
    assert owner.trouble is None
    assert owner.ledger is not None
    assert owner.ledger.observed_to == 0


async def test_what_comes_before_begin_or_after_release_changes_nothing(bench: Bench) -> None:
    owner = bench.make()
    await owner.fence()
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 1]])))
    assert bench.port.journal == []
    owner.begin()
    await until(lambda: owner.flushed_read is not None)
    await owner.release()
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 1]])))
    assert owner.ledger is None
    assert bench.counters.observations_total == 0


async def test_a_bundle_folded_while_the_partition_goes_is_taken_by_nobody(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 10, 10)
    owner = await bench.begun()
    bench.port.ask_gate = asyncio.Event()
    folding = asyncio.create_task(owner.fold_observations(bundle(0, said(runs=[[50, 59]]))))  # above the end: it is asked for
    await until(lambda: len(bench.port.asked("ends")) == 2)
    await owner.release()
    bench.port.ends_now = LogEnds(0, 100, 100)
    bench.port.ask_gate.set()
    await folding
    second = await bench.begun()
    assert second.flushed_observed == 0
    assert second.ledger is not None
    assert "billing" in second.ledger.sinks
    assert second.ledger.sinks["billing"].observed == 0


# --- rejected observations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "malformed"),
        (None, "malformed"),
        (b"[1]", "malformed"),
        (said(runs=[[5, 1]]), "malformed"),
        (said(runs=[[1, 2], [2, 3]]), "malformed"),
        (said(), "malformed"),
        (said("log", runs=[[0, 1]]), "malformed"),
        ({**said(runs=[[0, 1]]), "v": 2}, "unsupported_version"),
        (said(runs=[[0, 1]], topic="payments"), "wrong_topic"),
        (said(runs=[[0, 1]], partition=3), "wrong_partition"),
        (said(runs=[[95, 100]]), "beyond_end"),
        (said(claim=101), "beyond_end"),
        (said(runs=[[0, 1]], topic_id="AAAAAAAAAAAAAAAAAAAABw"), "older_incarnation"),
        (b"x" * (1024 * 1024 + 1), "too_large"),
    ],
)
async def test_each_reason_to_reject(bench: Bench, value: dict[str, Any] | bytes | None, reason: str) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    await owner.fold_observations(bundle(0, said(runs=[[0, 9]]), value, said(runs=[[10, 19]])))
    assert bench.rejected == {reason: 1}
    assert bench.counters.observations_total == 2
    ledger = owner.ledger
    assert ledger is not None
    assert ledger.observed_to == 3
    assert ledger.sinks["billing"].observed == 20
    await until(lambda: owner.flushed_observed == 3, "the rejected one passed for good")


async def test_no_more_than_32_unconfigured_sinks_are_kept(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    await owner.fold_observations(bundle(0, *(said(f"other-{number}", runs=[[0, 1]]) for number in range(40))))
    assert bench.rejected == {"too_many_sinks": 8}
    await owner.fold_observations(bundle(40, said(runs=[[0, 1]]), said("other-3", runs=[[2, 3]])))
    assert bench.rejected == {"too_many_sinks": 8}


async def test_the_logs_end_is_asked_afresh_once_per_bundle(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 10, 10)
    owner = await bench.begun()
    bench.port.journal.clear()
    bench.port.ends_now = LogEnds(0, 50, 50)
    await owner.fold_observations(bundle(0, said(runs=[[0, 9]]), said(runs=[[40, 49]]), said(runs=[[50, 50]]), said(claim=70)))
    assert len(bench.port.asked("ends")) == 1
    assert bench.rejected == {"beyond_end": 2}
    await owner.fold_observations(bundle(4, said(claim=60)))
    assert len(bench.port.asked("ends")) == 2
    await owner.fold_observations(bundle(5, said(claim=50)))
    assert len(bench.port.asked("ends")) == 2


async def test_an_end_that_cant_be_asked_rejects_nothing(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 10, 10)
    owner = await bench.begun()
    bench.port.journal.clear()
    bench.port.failing = {"ends": 1}
    bench.port.ends_now = LogEnds(0, 50, 50)
    await owner.fold_observations(bundle(0, said(runs=[[0, 9]]), said(runs=[[40, 49]]), heard_ms=START_MS))
    assert bench.rejected == {}
    ledger = owner.ledger
    assert ledger is not None
    assert (ledger.observed_to, ledger.heard_ms) == (1, None)
    await owner.fold_observations(bundle(2, heard_ms=START_MS))  # the input went on: it is sought back to the one not taken
    assert bench.port.asked("hear_from") == [(1,)]
    await owner.fold_observations(bundle(1, said(runs=[[40, 49]]), heard_ms=START_MS))
    assert (ledger.observed_to, ledger.heard_ms, bench.rejected) == (2, START_MS, {})


# --- verdicts -----------------------------------------------------------------------------------------------------------


async def test_a_gap_is_told_after_its_grace_and_a_look(bench: Bench) -> None:
    bench.port.looking = lambda runs: Look(100, 0, timestamps={40: START_MS + 40, 49: START_MS + 49})
    await with_a_gap(bench)
    event = await told(bench, "gap.opened")
    assert bench.port.asked("look") == [("orders", 0, TOPIC_ID, ((40, 50),))]
    assert (event["cause"], event["ranges"], event["count"]) == ("not_received", [[40, 49]], 10)
    assert event["first_timestamp"] == "2023-11-14T22:13:20.040Z"
    assert event["source"] == f"gapstream://cluster/gap/{START_MS}"


async def test_no_verdict_before_the_grace_has_passed(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    await owner.fold_observations(bundle(0, said(runs=[[0, 39], [50, 99]])))
    bench.clock.now_ms += 500
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    asked = bench.clock.asked
    await until(lambda: bench.clock.asked > asked + 5)
    assert bench.port.asked("look") == []
    bench.clock.now_ms += 1_500
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await told(bench, "gap.opened")


async def test_an_unavailable_look_is_tried_again(bench: Bench) -> None:
    bench.port.failing = {"look": 3}
    owner = await with_a_gap(bench)
    assert len(bench.port.asked("look")) == 4
    assert owner.trouble is None
    assert [event["type"] for event in bench.writer.events()] == ["gap.opened"]


async def test_while_a_look_is_unavailable_the_rest_is_flushed(bench: Bench) -> None:
    bench.port.failing = {"look": 10**9}
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    await owner.fold_observations(bundle(0, said(runs=[[0, 39], [50, 99]])))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: bench.port.asked("look") and owner.flushed_observed == 1)
    assert bench.writer.events() == []


async def test_a_look_that_gets_nowhere_does_not_hold_up_flushes_and_mends(bench: Bench) -> None:
    """The log's end lies below the candidates: it was cut, or its new leader does not know it yet."""
    bench.port.looking = lambda runs: Look(runs[0][0], 0)
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    owner.fold_log(log_read(0, 100))
    await owner.fold_observations(bundle(0, said(runs=[[0, 39], [50, 99]], source="s", sequence=1)))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: bench.port.asked("look"))
    await until(lambda: owner.flushed_observed == 1, "a flush beside the look")
    owner.halted(Trouble(TroubleKind.TRUNCATED, "orders", 0, "the log was cut", end_offset=30))
    await told(bench, "log.truncated")


async def test_a_look_that_gets_part_of_the_way_is_followed_by_another(bench: Bench) -> None:
    bench.port.looking = lambda runs: Look(min(runs[0][0] + 4, runs[-1][1]), 0)
    await with_a_gap(bench)
    await until(lambda: sum(event["count"] for event in bench.writer.events() if event["type"] == "gap.opened") == 10)
    assert [runs for _, _, _, runs in bench.port.asked("look")] == [((40, 50),), ((44, 50),), ((48, 50),)]


async def test_what_the_look_finds_gone_is_not_told_as_not_received(bench: Bench) -> None:
    bench.port.looking = lambda runs: Look(100, 45)
    await with_a_gap(bench)
    opened = {event["cause"]: event["ranges"] for event in bench.writer.events() if event["type"] == "gap.opened"}
    assert opened == {"not_received": [[45, 49]], "expired": [[40, 44]]}


async def test_a_defect_in_the_loop_is_not_silent(bench: Bench) -> None:
    """Whatever ends the loop, the partition must not look as if somebody still worked on it."""
    owner = await with_a_gap(bench)
    bench.port.looking = lambda runs: ZeroDivisionError("a defect")
    bench.port.ends_now = LogEnds(0, 200, 200)
    owner.fold_log(log_read(100, 200))
    await owner.fold_observations(bundle(1, said(claim=200, source="s", sequence=2)))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(2, heard_ms=bench.clock.now_ms))
    await until(lambda: owner.trouble is not None, "the trouble")
    assert owner.trouble == "stopped on a defect (ZeroDivisionError: a defect); waiting for a new assignment"
    assert (owner.ledger, owner.rows, owner.flushed_read) == (None, [], None)


# --- flushes ------------------------------------------------------------------------------------------------------------


async def test_one_write_holds_state_events_and_status(bench: Bench) -> None:
    await with_a_gap(bench)
    (write,) = [write for write in bench.writer.writes if any(record.topic == ALERTS for record in write)]
    by_topic = {topic: [record for record in write if record.topic == topic] for topic in (NAMES.changelog, ALERTS, STATUS)}
    assert len(write) == sum(map(len, by_topic.values()))
    assert {record.partition for record in by_topic[NAMES.changelog]} == {0}
    assert {record.partition for record in by_topic[ALERTS] + by_topic[STATUS]} == {None}
    (event,) = by_topic[ALERTS]
    assert event.key == b"orders/0/billing"
    assert (b"gapstream.gap.opened") in [value for name, value in event.headers if name == "ce_type"]
    keys = [record.key for record in by_topic[STATUS]]
    assert keys == [b"gaps/orders/0/billing/0", b"partition/orders/0"]
    rows = json.loads(by_topic[STATUS][-1].value or b"")["rows"]
    assert [(row["sink"], row["missing"], row["sequence"]) for row in rows] == [("log", 0, 0), ("billing", 10, 1)]
    assert all(bench.store.kept[record.key] == record.value for record in by_topic[NAMES.changelog] if record.value is not None)
    assert bench.store.offset == bench.writer.next_offset - 2


async def test_what_was_written_makes_the_same_ledger_elsewhere(bench: Bench) -> None:
    """The changelog alone is enough: another worker has no other copy."""
    await (await with_a_gap(bench)).release()
    replayed: dict[bytes, bytes] = {}
    for write in bench.writer.to(NAMES.changelog):
        for record in write:
            if record.value is None:
                replayed.pop(record.key, None)
            else:
                replayed[record.key] = record.value
    assert replayed == bench.store.kept


async def test_an_idle_partition_writes_nothing(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    await settled(bench)
    writes = bench.writer.begun
    for _ in range(20):
        bench.clock.now_ms += 1_000
        owner.fold_log(log_read(100, 100))
        await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
        asked = bench.clock.asked
        await until(lambda: bench.clock.asked > asked + 1)  # noqa: B023 - awaited before the variable moves on
    assert bench.writer.begun == writes
    assert owner.clean_end_read_ms == bench.clock.now_ms


async def test_the_clock_of_an_idle_partition_is_written_once_a_minute(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    await settled(bench)
    before = bench.writer.begun
    bench.clock.now_ms += 61_000
    owner.fold_log(log_read(100, 100))
    await until(lambda: bench.writer.begun > before, "the clock")
    changed = {record.key[21:22] for record in bench.writer.to(NAMES.changelog)[-1]}
    assert changed == {b"c"}


async def test_a_write_under_way_holds_what_was_known_when_it_began(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    bench.writer.gate = asyncio.Event()
    begun = bench.writer.begun
    owner.fold_log(log_read(0, 60))
    await until(lambda: bench.writer.begun > begun)
    owner.fold_log(log_read(60, 100))
    bench.writer.gate.set()
    await until(lambda: owner.flushed_read == 100, "what came meanwhile, with the next flush")
    assert bench.writer.begun == begun + 2


async def test_positions_move_only_with_a_flush(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    bench.writer.gate = asyncio.Event()
    owner.fold_log(log_read(0, 100))
    begun = bench.writer.begun
    await until(lambda: bench.writer.begun > begun)
    assert owner.flushed_read == 0
    bench.writer.gate.set()
    await until(lambda: owner.flushed_read == 100)


async def test_a_lost_flush_forgets_everything_and_says_so_once(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    kept, offset = dict(bench.store.kept), bench.store.offset
    bench.writer.failures.append(LOST)
    owner.fold_log(log_read(100, 120))
    await until(lambda: bench.lost)
    assert bench.lost == [("orders", 0)]
    assert owner.ledger is None
    assert (owner.rows, owner.flushed_read, owner.flushed_observed) == ([], None, None)
    assert owner.trouble == "lost to another worker or to the broker; waiting for a new assignment"
    assert bench.port.asked("stop_reading") == [("orders", 0)]
    assert (bench.store.kept, bench.store.offset) == (kept, offset)
    writes = bench.writer.begun
    await owner.release()
    assert bench.lost == [("orders", 0)]
    assert bench.writer.begun == writes, "nothing is flushed of what was forgotten"
    assert bench.writer.stopped == 1


async def test_after_a_lost_flush_the_events_of_it_are_told_by_the_next_owner(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    bench.writer.failures.append(LOST)
    await owner.fold_observations(bundle(1, said(runs=[[40, 49]], source="s", sequence=2)))
    await until(lambda: bench.lost)
    await owner.release()
    second = await bench.begun()
    assert second.ledger is not None
    assert second.ledger.observed_to == 1
    await second.fold_observations(bundle(1, said(runs=[[40, 49]], source="s", sequence=2)))
    event = await told(bench, "gap.filled")
    assert (event["sequence"], event["ranges"]) == (2, [[40, 49]])


# --- release ------------------------------------------------------------------------------------------------------------


async def test_release_flushes_what_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    monkeypatch.setattr(owner_module, "FLUSH_SECONDS", 3_600.0)
    asked = bench.clock.asked
    await until(lambda: bench.clock.asked > asked or bench.writer.begun)
    owner.fold_log(log_read(0, 100))
    assert await owner.release() == (100, 0)
    assert owner.ledger is None
    assert owner.trouble == "released"
    assert bench.writer.stopped == 1
    assert bench.port.asked("stop_reading") == [("orders", 0)]
    assert (await bench.begun()).flushed_read == 100


async def test_release_ends_a_flush_under_way_and_flushes_once_more(bench: Bench) -> None:
    bench.port.ends_now = LogEnds(0, 100, 100)
    owner = await bench.begun()
    bench.writer.gate = asyncio.Event()
    begun, done = bench.writer.begun, len(bench.writer.writes)
    owner.fold_log(log_read(0, 60))
    await until(lambda: bench.writer.begun == begun + 1)
    owner.fold_log(log_read(60, 100))
    releasing = asyncio.create_task(owner.release())
    await asyncio.sleep(0.01)
    assert not releasing.done()
    assert bench.writer.begun == begun + 1, "two writes of one partition at once"
    bench.writer.gate.set()
    await releasing
    assert len(bench.writer.writes) == done + 2
    assert (await bench.begun()).flushed_read == 100


async def test_release_of_a_fenced_owner_forgets_without_a_word_to_the_group(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    bench.writer.gate = asyncio.Event()
    bench.writer.failures.append(LOST)
    owner.fold_log(log_read(100, 120))
    begun = bench.writer.begun
    await until(lambda: bench.writer.begun > begun)
    releasing = asyncio.create_task(owner.release())
    await asyncio.sleep(0)
    bench.writer.gate.set()
    assert await releasing is None, "another one may have written more"
    assert owner.ledger is None
    assert bench.lost == [], "the partition is given up anyway"
    assert bench.writer.stopped == 1


async def test_release_before_begin_writes_nothing(bench: Bench) -> None:
    owner = bench.make()
    await owner.fence()
    await owner.release()
    assert bench.writer.begun == 0
    assert bench.writer.stopped == 1


async def test_release_while_begin_waits_for_kafka(bench: Bench) -> None:
    bench.port.failing = {"facts": 10**9}
    owner = bench.make()
    await owner.fence()
    owner.begin()
    await until(lambda: bench.port.asked("facts"))
    await owner.release()
    asked = len(bench.port.asked("facts"))
    await asyncio.sleep(0.03)  # several times as long as it waits between two attempts
    assert len(bench.port.asked("facts")) == asked
    assert bench.writer.begun == 0


# --- mends --------------------------------------------------------------------------------------------------------------


async def test_a_log_cut_short_is_told_and_read_again_from_there(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    bench.port.journal.clear()
    owner.halted(Trouble(TroubleKind.TRUNCATED, "orders", 0, "the log was cut", end_offset=45, leader_epoch=0))
    await told(bench, "log.truncated")
    events = [(event["type"], event["sink"], event["ranges"]) for event in bench.writer.events()[1:]]
    assert events == [("gap.explained", "billing", [[45, 49]]), ("log.truncated", "log", [[45, 99]])]
    assert bench.port.asked("read_from") == [(45, TOPIC_ID, 0, ((0, 0),))]
    assert owner.ledger is not None
    owner.fold_log(log_read(45, 60, leader_epoch=1))
    assert owner.ledger.log.read == 60


async def test_a_topic_created_anew_while_it_is_read(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    bench.port.facts_now = replace(bench.port.facts_now, topic_id=OTHER_ID)
    bench.port.ends_now = LogEnds(0, 5, 5)
    bench.port.journal.clear()
    owner.halted(Trouble(TroubleKind.RECREATED, "orders", 0, "the topic was created anew", topic_id=OTHER_ID))
    await told(bench, "log.recreated")
    assert bench.port.asked("read_from") == [(0, OTHER_ID, -1, ())]
    owner.fold_log(log_read(0, 5, topic_id=OTHER_ID))
    await until(lambda: owner.flushed_read == 5)


async def test_a_topic_that_is_the_same_after_all_is_read_on(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    bench.port.journal.clear()
    owner.halted(Trouble(TroubleKind.RECREATED, "orders", 0, "the topic was created anew", topic_id=OTHER_ID))
    await until(lambda: bench.port.asked("read_from"))
    assert bench.port.asked("read_from") == [(100, TOPIC_ID, 0, ((0, 0),))]
    assert [event["type"] for event in bench.writer.events()] == ["gap.opened"]


async def test_a_mend_that_kafka_does_not_answer_is_tried_again(bench: Bench) -> None:
    owner = await with_a_gap(bench)
    bench.port.facts_now = replace(bench.port.facts_now, topic_id=OTHER_ID)
    bench.port.failing = {"facts": 2}
    owner.halted(Trouble(TroubleKind.RECREATED, "orders", 0, "the topic was created anew", topic_id=OTHER_ID))
    await told(bench, "log.recreated")


# --- policies -----------------------------------------------------------------------------------------------------------


async def test_two_sinks_are_judged_apart(bench: Bench) -> None:
    bench.policies = {name: Policy(name, grace_ms=1_000, stall_after_ms=None) for name in ("billing", "audit")}
    bench.floors = dict.fromkeys(bench.policies, "earliest")
    bench.port.ends_now = LogEnds(0, 10, 10)
    bench.port.looking = all_there
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 4], [6, 9]]), said("audit", runs=[[0, 9]])))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(2, heard_ms=bench.clock.now_ms))
    event = await told(bench, "gap.opened")
    assert (event["sink"], stored_ranges(event)) == ("billing", [[5, 5]])
    await until(lambda: owner.rows and {row.sink: row.missing for row in owner.rows} == {"log": 0, "billing": 1, "audit": 0})
