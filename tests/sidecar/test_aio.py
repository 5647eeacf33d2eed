"""Wrapped aiokafka consumers: what counts as received, what a commit waits for, and what travels with it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from gapstream_sidecar import ConfigurationError, UnsupportedError
from gapstream_sidecar.leases import Session
from tests.sidecar.conftest import Bench
from tests.sidecar.fakes import FakeAioConsumer, FakeGroup, Part

P0, P1 = Part("orders", 0), Part("orders", 1)
SOURCE = (("source.topic", b"orders"), ("source.partition", b"1"), ("source.offset", b"15012"))


def carried(group: FakeGroup, partition: Part = P0) -> list[Any]:
    """Rows of the metadata of the last commit."""
    metadata = group.committed[partition][1]
    return list(json.loads(metadata.rstrip("\0"))["said"]) if metadata else []


async def leave_behind(bench: Bench, group: FakeGroup) -> str:
    """An owner's commit carries its first two offsets, of which it can tell nothing; returns its source."""
    first = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.aio(first, group=group)
    bench.producer.hold()
    inside.deliver(0, 0, 1)
    await consumer.getmany()
    await consumer.commit()
    return first.source


# -------------------------------------------------------------------------------------------------- what is received


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["getone", "getmany", "iteration"])
async def test_what_was_handed_out_is_received_when_a_commit_covers_it(bench: Bench, how: str) -> None:
    consumer, inside = bench.aio()
    inside.deliver(0, 0, 1, 2, 5)
    inside.deliver(1, 7)
    if how == "iteration":
        assert [record.offset async for record in consumer] == [0, 1, 2, 5, 7]
    elif how == "getone":
        assert [(await consumer.getone()).offset for _ in range(5)] == [0, 1, 2, 5, 7]
    else:
        assert len(await consumer.getmany(timeout_ms=5, max_records=10)) == 2
    await consumer.commit({P0: 2})
    assert bench.runs() == [[[0, 1]]]
    await consumer.commit({P0: (9, ""), P1: 8})
    assert sorted(bench.runs()[1:]) == [[[2, 2], [5, 5]], [[7, 7]]]
    assert inside.commits == [{P0: 2}, {P0: (9, ""), P1: 8}]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("known", [True, False])
async def test_commit_of_nothing_commits_where_it_stands_in_idle_partitions_too(bench: Bench, known: bool) -> None:
    """Else what comes during a restart is skipped: aiokafka begins at the end where nothing was committed."""
    consumer, inside = bench.aio()
    if known:
        inside.at[P1] = 70
    inside.deliver(0, 5)
    await consumer.getone()
    await consumer.commit()
    assert inside.commits == [{P0: 6, P1: 70} if known else {P0: 6}]


@pytest.mark.usefixtures("patient")
async def test_a_seek_after_a_rebalance_that_was_not_noticed_yet(bench: Bench) -> None:
    consumer, inside = bench.aio()
    inside.deliver(0, 0)
    await consumer.getone()
    inside.assign(0, 1)
    consumer.seek(P0, 1)
    await consumer.commit()
    assert bench.runs() == [[[0, 0]]]


async def test_what_goes_is_told_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar)
    await consumer.getmany()
    hurried: list[Any] = []
    monkeypatch.setattr(sidecar._reporter, "hurry", lambda keys, *_: hurried.append(sorted(keys)))
    inside.assign(0)
    await consumer.getmany()
    assert hurried == [[("orders", 0), ("orders", 1)]]


@pytest.mark.usefixtures("patient")
async def test_commit_of_nothing_means_the_positions(bench: Bench) -> None:
    consumer, inside = bench.aio()
    inside.deliver(0, 0, 1, 2)
    await consumer.getmany()
    await consumer.commit()
    assert bench.runs() == [[[0, 2]]]
    assert inside.commits == [{P0: 3}]  # it waited, and what is handed out meanwhile is not meant
    await consumer.commit()
    assert inside.commits == [{P0: 3}, None]


@pytest.mark.usefixtures("patient")
async def test_seeking_moves_what_a_commit_of_nothing_means(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar)

    async def covered() -> list[list[int]]:
        await consumer.commit()
        assert sidecar.flush()
        return bench.runs()[-1] if bench.runs() else []

    inside.deliver(0, *range(10))
    await consumer.getmany()
    await consumer.seek_to_beginning()
    assert await covered() == []
    consumer.seek(P0, 3)
    assert await covered() == [[0, 2]]
    inside.group.committed[P0] = (5, "")
    await consumer.seek_to_committed(P0)
    assert await covered() == [[3, 4]]
    assert await consumer.seek_to_end()
    assert await covered() == [[5, 9]]


@pytest.mark.usefixtures("patient")
async def test_a_refused_commit_has_been_asked_for(bench: Bench) -> None:
    consumer, inside = bench.aio()
    inside.deliver(0, 1)
    await consumer.getone()
    inside.commit_error = LookupError("rebalanced")
    with pytest.raises(LookupError):
        await consumer.commit()
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient")
async def test_explicit_reports_received_alone_and_commits_flush_it(bench: Bench) -> None:
    sidecar = bench.sidecar(explicit=True)
    consumer, inside = bench.aio(sidecar)
    inside.deliver(0, *range(10))
    await consumer.getmany()
    sidecar.received("orders", 0, 3)
    await consumer.commit()
    assert bench.runs() == [[[3, 3]]]
    assert inside.commits == [None]


@pytest.mark.usefixtures("patient")
async def test_a_replayed_record_is_reported_under_its_source_too(bench: Bench) -> None:
    consumer, inside = bench.aio()
    inside.deliver(0, 4)
    inside.deliver(0, 5, headers=SOURCE)
    await consumer.getmany()
    await consumer.commit()
    said = {one["partition"]: one["runs"] for one in bench.producer.said()}
    assert said == {0: [[4, 5]], 1: [[15012, 15012]]}


# ----------------------------------------------------------------------------------------------------- auto-commit


@pytest.mark.usefixtures("patient")
async def test_with_auto_commit_a_record_is_received_when_the_application_comes_back(bench: Bench) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar, auto_commit=True)
    inside.deliver(0, 0, 1, 2)
    await consumer.getmany()
    assert [(one["runs"], one["ahead"]) for one in bench.producer.said()] == [([], [0, 10_003])]
    assert sidecar.flush()
    assert bench.runs() == []
    await consumer.getmany()
    assert sidecar.flush()
    assert bench.runs() == [[[0, 2]]]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("fails", [True, False])
async def test_with_auto_commit_stopping_covers_everything_unless_an_exception_is_on_its_way(bench: Bench, fails: bool) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar, auto_commit=True)
    inside.deliver(0, 0, 1)
    try:
        async with consumer as same:
            assert same is consumer
            await consumer.getmany()
            if fails:
                raise LookupError("poison")
    except LookupError:
        assert fails
    assert inside.stopped
    assert sidecar.flush()
    assert bench.runs() == ([] if fails else [[[0, 1]]])
    assert bench.producer.said()[-1]["ahead"] == ([0, 0] if fails else [2, 2])


@pytest.mark.usefixtures("patient")
async def test_with_auto_commit_what_was_under_work_in_a_rebalance_is_received_afterwards(bench: Bench) -> None:
    """The client commits it in the middle of the work; the next owner begins behind it."""
    bench.owners[P0] = [Session("gone", 0, 90, 10_090)]
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar, auto_commit=True)
    inside.deliver(0, 100, 101)
    await consumer.getmany()
    inside.assign(1)
    inside.deliver(1, 7)
    await consumer.getmany()
    await consumer.getmany()
    assert sidecar.flush()
    said = [(one["partition"], one["status"], one["runs"]) for one in bench.producer.said() if one["runs"]]
    assert sorted(said) == [(0, "received", [[100, 101]]), (0, "unobserved", [[90, 99]]), (1, "received", [[7, 7]])]
    assert bench.tails_read == [P0, P1]


# ------------------------------------------------------------------------------------------------- the order of things


@pytest.mark.usefixtures("patient")
async def test_the_observation_is_acknowledged_before_the_commit_and_the_loop_goes_on(bench: Bench) -> None:
    consumer, inside = bench.aio(bench.sidecar(observe_before_commit=30))
    inside.deliver(0, 1)
    await consumer.getone()
    bench.producer.hold()
    committing = asyncio.create_task(consumer.commit())
    await asyncio.to_thread(bench.producer.await_records, 1)
    inside.deliver(0, 2)
    await consumer.getone()  # handed out while the commit waits: not meant by it
    assert not committing.done()
    assert inside.commits == []
    bench.producer.release()
    await committing
    assert inside.commits == [{P0: 2}]
    assert bench.runs() == [[[1, 1]]]


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("named", [True, False])
async def test_what_does_not_get_its_turn_travels_with_the_commit(bench: Bench, named: bool) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar)
    for offset in range(3):
        inside.deliver(0, offset)
        await consumer.getone()
        await consumer.commit({P0: offset + 1} if named else None)
    assert bench.runs() == [[[0, 0]]]
    assert inside.group.committed[P0][0] == 3
    assert carried(inside.group) == [[sidecar.source, 2, "received", None, [1, 0]]]


@pytest.mark.usefixtures("patient", "spent")
async def test_an_applications_own_metadata_stay_and_its_commit_waits(bench: Bench) -> None:
    consumer, inside = bench.aio()
    for offset in range(3):
        inside.deliver(0, offset)
        await consumer.getone()
        await consumer.commit({P0: (offset + 1, "theirs")})
    assert inside.group.committed[P0] == (3, "theirs")
    assert bench.runs() == [[[0, 0]], [[1, 1]], [[2, 2]]]


@pytest.mark.usefixtures("patient", "spent")
async def test_brokers_that_take_no_metadata_get_none(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    consumer, inside = bench.aio()
    inside.group.metadata_max = 20
    for offset in range(4):
        inside.deliver(0, offset)
        await consumer.getone()
        await consumer.commit()
    assert inside.group.committed[P0] == (4, "")
    assert "offset.metadata.max.bytes" in caplog.text
    assert bench.runs() == [[[0, 0]], [[1, 1]], [[2, 2]], [[3, 3]]]


@pytest.mark.usefixtures("patient", "spent")
async def test_the_next_owner_reports_what_the_last_one_could_not(bench: Bench) -> None:
    group = FakeGroup()
    source = await leave_behind(bench, group)
    second = bench.sidecar()
    other, its = bench.aio(second, group=group)
    its.deliver(0, 2)
    await other.getmany()
    await other.commit()
    said = [(one["source"], one["sequence"], one["runs"]) for one in bench.producer.said()]
    assert said == [(source, 1, [[0, 1]]), (second.source, 2, [[2, 2]])]
    assert its.reads == 1
    its.assign(0)
    its.deliver(0, 3)
    await other.getmany()
    assert its.reads == 2


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("explicit", [True, False])
async def test_what_the_last_owner_could_not_say_waits_for_no_commit(bench: Bench, explicit: bool) -> None:
    group = FakeGroup()
    source = await leave_behind(bench, group)
    second = bench.sidecar(explicit=explicit)
    other, its = bench.aio(second, group=group)
    for _ in range(3):  # nothing is there to be handed out
        assert not await other.getmany()
    assert its.reads == 1
    assert second.flush()
    assert [(one["source"], one["sequence"], one["runs"]) for one in bench.producer.said()] == [(source, 1, [[0, 1]])]


@pytest.mark.usefixtures("patient")
async def test_what_others_were_handed_meanwhile_is_theirs(bench: Bench) -> None:
    consumer, inside = bench.aio()
    inside.deliver(0, *range(10))
    await consumer.getmany()
    await consumer.commit({P0: 5})
    inside.assign(1)
    await consumer.commit({P0: 7})  # processed is processed, whoever owns it now
    inside.group.committed[P0] = (9, "")
    inside.assign(0)
    inside.deliver(0, 9, 10)
    await consumer.getmany()
    await consumer.commit()
    assert bench.runs() == [[[0, 4]], [[5, 6]], [[9, 10]]]


async def test_a_coordinator_that_can_not_be_asked_does_no_harm(bench: Bench) -> None:
    consumer, inside = bench.aio()
    inside._coordinator = None  # type: ignore[assignment]  # as in a release that keeps it elsewhere
    inside.deliver(0, 1)
    await consumer.getone()
    await consumer.commit()
    assert bench.runs() == [[[1, 1]]]


# ----------------------------------------------------------------------------------------------------- what it is like


async def test_everything_else_is_the_consumers_own(bench: Bench) -> None:
    consumer, inside = bench.aio()
    assert consumer.assignment() == {P0, P1}
    consumer.extra = 1
    assert vars(inside)["extra"] == 1
    assert "fetch_committed_offsets" in dir(consumer)
    assert repr(inside) in repr(consumer)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = consumer.nonsense
    with pytest.raises(UnsupportedError, match="wrapped already"):
        bench.sidecar().wrap(consumer)
    await consumer.stop()
    assert inside.stopped
    assert isinstance(consumer, FakeAioConsumer)


async def test_a_real_consumer_is_wrapped_without_brokers(bench: Bench) -> None:
    consumer = bench.sidecar().wrap(AIOKafkaConsumer("orders", group_id="g"))
    assert isinstance(consumer, AIOKafkaConsumer)
    assert consumer.subscription() == {"orders"}
    await consumer.stop()


async def test_nothing_is_guessed(bench: Bench) -> None:
    consumer: Any = FakeAioConsumer()
    del consumer._enable_auto_commit
    with pytest.raises(ConfigurationError, match=r"FakeAioConsumer commits: hand its group_id and enable_auto_commit to wrap\(\) as well"):
        bench.sidecar().wrap(consumer)
    assert bench.sidecar().wrap(consumer, {"enable_auto_commit": False})


async def test_a_fault_inside_does_not_reach_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.aio(sidecar)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    for name in ("add", "ask", "assigned", "unassigned"):
        monkeypatch.setattr(f"gapstream_sidecar.deliveries.Deliveries.{name}", broken)
    inside.deliver(0, 1)
    assert (await consumer.getone()).offset == 1
    await consumer.commit({P0: 2})
    assert inside.commits == [{P0: 2}]
    await consumer.stop()
    assert inside.stopped
    assert sidecar.stats.failed == 4
