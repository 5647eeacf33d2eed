"""Sinks that come, go and stand still, as an owner sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import structlog

from stream_app.core.model import Absent, Drop, LogEnds, Observation, StatusRecord
from stream_app.core.policy import Policy
from stream_app.service import owner as owner_module
from stream_app.service.owner import PartitionOwner
from stream_app.sinks.order import encode_drop
from tests.support.fakes import NAMES, STATUS, Bench, bundle, log_read, said, until


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_SECONDS", "RETRY_SECONDS", "PACE_SECONDS"):
        monkeypatch.setattr(owner_module, name, 0.01)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    made.port.ends_now = LogEnds(0, 10, 10)
    yield made
    await made.close()


def told(bench: Bench) -> list[tuple[str, Any]]:
    return [(event["type"], event["ranges"]) for writer in bench.writers for event in writer.events()]


def sinks(owner: PartitionOwner) -> set[str]:
    return {row.sink for row in owner.rows}


async def left(bench: Bench) -> PartitionOwner:
    """``billing`` had a gap, then its configuration lost it."""
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 3], [6, 9]])))
    bench.clock.now_ms += 2_000
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: told(bench), "the gap")
    await owner.release()
    bench.policies, bench.floors = {}, {}
    owner = await bench.begun()
    await until(lambda: len(told(bench)) == 3, "its end")
    assert [kind for kind, _ in told(bench)] == ["gap.opened", "gap.explained", "sink.removed"]
    assert sinks(owner) == {"log", "billing"}
    return owner


# --- what is no record ---


async def test_a_sink_that_has_what_is_no_record_is_warned_of_once(bench: Bench) -> None:
    owner = await bench.begun()
    absent = {Absent.TRANSACTION_MARKER: ((5, 6),), Absent.ABORTED: ((6, 7),)}
    owner.fold_log(log_read(0, 10, records=((0, 5), (7, 10)), absent=absent))
    with structlog.testing.capture_logs() as lines:
        await owner.fold_observations(bundle(0, said(runs=[[0, 6]])))
        await until(lambda: any("what is no record" in line["event"] for line in lines), "the warning")
        await owner.fold_observations(bundle(1, said(runs=[[7, 9]]), said(runs=[[5, 5]])))
        await until(lambda: next(row for row in owner.rows if row.sink == "billing").observed == 8, "the row")
    (line,) = [line for line in lines if "what is no record" in line["event"]]
    assert (line["log_level"], line["sink"], line["offsets"]) == ("warning", "billing", 2)


# --- leaving ------------------------------------------------------------------------------------------------------------


async def test_a_sink_that_left_is_forgotten_in_time_and_leaves_no_page(bench: Bench) -> None:
    bench.forget_after_ms = 60_000
    owner = await left(bench)
    pages = {record.key: record.value for write in bench.writer.to(STATUS) for record in write if record.key.startswith(b"gaps/")}
    assert set(pages) == {b"gaps/orders/0/billing/0"}
    bench.clock.now_ms += 60_000
    await until(lambda: sinks(owner) == {"log"}, "the row goes")
    last = bench.writer.to(STATUS)[-1]
    assert {record.key for record in last if record.value is None} == {b"gaps/orders/0/billing/0"}
    assert [row.sink for row in msgspec.json.decode(last[-1].value or b"", type=StatusRecord).rows] == ["log"]
    assert not [key for key in bench.store.kept if b"billing" in key]
    assert len(told(bench)) == 3


async def test_an_order_drops_it_at_once(bench: Bench) -> None:
    owner = await left(bench)
    with structlog.testing.capture_logs() as lines:
        await owner.fold_observations(bundle(1, encode_drop(Drop("billing", "alice"), "orders", 0), said(runs=[[0, 9]])))
        await until(lambda: owner.flushed_observed == 3, "the flush")
    assert [(line["event"], line["by"]) for line in lines] == [("a sink is dropped", "alice")]
    assert bench.rejected == {}
    assert [(row.observed, row.missing) for row in owner.rows if row.sink == "billing"] == [(10, 0)], "what reports begins anew"


async def test_an_order_for_what_is_configured_or_of_another_partition_changes_nothing(bench: Bench) -> None:
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 9]]), encode_drop(Drop("billing", "alice"), "orders", 0)))
    await owner.fold_observations(bundle(2, encode_drop(Drop("billing", "alice"), "orders", 1)))
    await until(lambda: owner.flushed_observed == 3, "the flush")
    assert [row.observed for row in owner.rows if row.sink == "billing"] == [10]
    assert bench.rejected == {"malformed": 1}


# --- standing still -----------------------------------------------------------------------------------------------------


async def test_a_partition_that_a_living_sink_never_touches_is_stalled(bench: Bench) -> None:
    bench.policies = {"billing": Policy("billing", grace_ms=1_000, stall_after_ms=60_000)}
    bench.port.heard = frozenset({"billing"})
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    bench.clock.now_ms += 60_000
    await owner.fold_observations(bundle(0, heard_ms=bench.clock.now_ms))
    await until(lambda: owner.flushed_read == 10, "the flush")
    assert told(bench) == [], "who knows whether it received these before it reported for the first time"
    owner.fold_log(log_read(10, 12))
    bench.clock.now_ms += 60_000
    await owner.fold_observations(bundle(0, heard_ms=bench.clock.now_ms))
    await until(lambda: told(bench), "the stall")
    assert [(event["type"], event["reason"]) for event in bench.writer.events()] == [
        ("sink.stalled", "heard of in other partitions, and 2 records from offset 10 on wait here")
    ]
    await owner.release()
    owner = await bench.begun()
    await owner.fold_observations(bundle(0, heard_ms=bench.clock.now_ms))
    await until(lambda: owner.rows, "the rows")
    assert [row.stalled for row in owner.rows if row.sink == "billing"] == [True]
    await owner.fold_observations(bundle(0, said(runs=[[10, 11]])))
    await until(lambda: len(told(bench)) == 2, "it goes on")
    assert told(bench)[1][0] == "sink.resumed"


@pytest.mark.parametrize("claims", [True, False])
async def test_a_record_that_is_retried_for_long_is_missed_only_where_nothing_is_claimed(bench: Bench, claims: bool) -> None:
    """A parallel consumer: everything above the record that it tries again and again is received already."""
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    await owner.fold_observations(bundle(0, said(runs=[[0, 2], [4, 9]], claim=3 if claims else None)))
    for minute in range(1, 61):
        bench.clock.now_ms += 60_000
        retried = said(runs=[], claim=3) if claims else said(runs=[[9, 9]], source="parallel", sequence=minute)
        await owner.fold_observations(bundle(minute, retried, heard_ms=bench.clock.now_ms))
    await until(lambda: owner.flushed_observed == 61, "the flush")
    await until(lambda: claims or told(bench), "the verdict")
    assert [event for event in told(bench) if event[0] == "gap.opened"] == ([] if claims else [("gap.opened", [[3, 3]])])
    await owner.fold_observations(bundle(61, said(runs=[[3, 3]], claim=10 if claims else None), heard_ms=bench.clock.now_ms))
    await until(lambda: owner.flushed_observed == 62, "the flush")
    assert [(row.missing, row.observed, row.horizon_offset) for row in owner.rows if row.sink == "billing"] == [(0, 10, 10)]


async def test_one_that_nobody_heard_of_is_left_alone(bench: Bench) -> None:
    bench.policies = {"billing": Policy("billing", grace_ms=1_000, stall_after_ms=1)}
    owner = await bench.begun()
    owner.fold_log(log_read(0, 10))
    bench.clock.now_ms += 60_000
    await owner.fold_observations(bundle(0, heard_ms=bench.clock.now_ms))
    await until(lambda: owner.flushed_read == 10, "the flush")
    assert told(bench) == []


# --- what is said of a sink ---------------------------------------------------------------------------------------------


async def test_what_is_said_travels_with_the_flush_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = await bench.begun()
    monkeypatch.setattr(owner_module, "FLUSH_SECONDS", 60.0)
    owner.say([Observation("billing", ((0, 2),), claim=2, source="group:g", sequence=0)])
    await until(lambda: any(bench.writer.to(NAMES.observations)), "it is written")
    (record,) = [record for write in bench.writer.to(NAMES.observations) for record in write]
    assert (record.partition, record.key) == (0, b"billing")
    assert msgspec.json.decode(record.value or b"")["runs"] == [[0, 1]]


async def test_much_that_is_said_travels_with_several_flushes_in_its_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "SAID_BYTES", 250)
    owner = await bench.begun()
    owner.say([Observation("billing", ((offset, offset + 1),), source="table:me", sequence=offset) for offset in range(10)])

    def runs() -> list[list[Any]]:
        writes = [write for write in bench.writer.to(NAMES.observations) if write]
        return [[msgspec.json.decode(record.value or b"")["runs"] for record in write] for write in writes]

    await until(lambda: sum(map(len, runs())) == 10, "all of it is written")
    assert max(map(len, runs())) < 4
    assert [run for write in runs() for run in write] == [[[offset, offset]] for offset in range(10)]
