from __future__ import annotations

import json
from typing import Any, cast

import pytest

from stream_app.core.ledger import Ledger
from stream_app.core.model import LogEnds, Status
from stream_app.kafka.copies import Copies, CopyReader, CopyTopic
from stream_app.kafka.writer import OutRecord
from stream_app.service.context import TopicFacts, Unavailable
from stream_app.service.mirrors import Mirror, collect, leave
from stream_app.sinks.copies import Source, SourceHeaders
from tests.support.fakes import NAMES, OBSERVATIONS_ID, TOPIC_ID, ScriptedPort


class Reader:
    """Partitions of a topic of copies, each with what it gives next."""

    def __init__(self, partitions: int | None) -> None:
        self.where = CopyTopic("copy", SourceHeaders("t", "p", "o"), {})
        self.partitions = partitions
        self.given: dict[int, Copies] = {}
        self.asked: list[tuple[int, int | None, bool]] = []
        self.left: list[int] = []

    def take(self, partition: int, position: int | None, *, at_end: bool = False) -> Copies | None:
        self.asked.append((partition, position, at_end))
        return self.given.pop(partition, None)

    def leave(self, partition: int) -> None:
        self.left.append(partition)


def ledger(partitions: int = 2) -> Ledger:
    made = Ledger.create("orders", 0, "1", topic_id=TOPIC_ID, log_start=0, log_end=0, policies={})
    made.partitions = partitions
    return made


def mirror(reader: Reader, status: Status = Status.RECEIVED) -> Mirror:
    return Mirror("s", status, None if status is Status.RECEIVED else "bad", cast(CopyReader, reader))


def facts(partitions: int, observed: int) -> TopicFacts:
    return TopicFacts(TOPIC_ID, OBSERVATIONS_ID, partitions, observed, False, None)


def copied(position: int, *offsets: int, partition: int = 0, **more: Any) -> Copies:
    return Copies(position, position + len(offsets), [Source("orders", partition, offset) for offset in offsets], **more)


def said(out: list[OutRecord]) -> list[tuple[int | None, str, int, Any]]:
    values = [(record.partition, json.loads(record.value or b"")) for record in out]
    return [(partition, value["status"], value["sequence"], value["runs"]) for partition, value in values]


async def test_each_partition_of_the_copies_has_one_reader() -> None:
    reader = Reader(5)
    for partition, expected in ((0, [0, 2, 4]), (1, [1, 3]), (2, [])):
        reader.asked.clear()
        await collect(ScriptedPort(), NAMES, partition, ledger(), [mirror(reader)], [])
        assert [number for number, *_ in reader.asked] == expected
        reader.left.clear()
        leave(partition, ledger(), [mirror(reader)])
        assert reader.left == expected
    reader.partitions = None
    await collect(ScriptedPort(), NAMES, 0, ledger(), [mirror(reader)], [])


async def test_what_was_copied_is_said_and_read_on_from_there() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    port = ScriptedPort(facts_now=facts(2, 2))
    reader.given[0] = copied(10, 3, 4, 4, 9, partition=1)
    await collect(port, NAMES, 0, state, [mirror(reader)], out)
    assert said(out) == [(1, "received", 0, [[3, 4], [9, 9]]), (1, "received", 1, [[4, 4]])]
    assert {record.topic for record in out} == {NAMES.observations}
    reader.given[0] = copied(14, 5)
    await collect(port, NAMES, 0, state, [mirror(reader)], out)
    assert said(out)[2:] == [(0, "received", 2, [[5, 5]])]
    assert reader.asked == [(0, None, False), (0, 14, False)]


async def test_sinks_that_share_a_topic_are_read_apart() -> None:
    one, other, state, out = Reader(1), Reader(1), ledger(), list[OutRecord]()
    one.given[0], other.given[0] = copied(0, 1), copied(0, 2)
    both = [mirror(one), Mirror("t", Status.QUARANTINED, "bad", cast(CopyReader, other))]
    await collect(ScriptedPort(), NAMES, 0, state, both, out)
    assert said(out) == [(0, "received", 0, [[1, 1]]), (0, "quarantined", 0, [[2, 2]])]
    assert len(state.mirrored) == 2


async def test_nothing_is_noted_of_what_could_not_be_said() -> None:
    reader, state, out = Reader(2), ledger(partitions=1), list[OutRecord]()
    reader.given = {0: copied(0, 1), 1: copied(0, 2)}
    port = ScriptedPort(failing={"facts": 1})
    with pytest.raises(Unavailable):
        await collect(port, NAMES, 0, state, [mirror(reader)], out)
    assert (out, state.mirrored) == ([], {})
    await collect(port, NAMES, 0, state, [mirror(reader)], out)
    assert len(out) == 1
    assert state.mirrored == {"s/topic:copy/1": (1, 1)}


async def test_copies_of_added_partitions_wait_for_their_observations_and_of_none_are_passed_over() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    reader.given[0] = copied(0, 1, partition=2)
    await collect(ScriptedPort(facts_now=facts(3, 2)), NAMES, 0, state, [mirror(reader)], out)
    assert (out, state.mirrored) == ([], {})
    reader.given[0] = copied(0, 1, partition=9)
    await collect(ScriptedPort(facts_now=facts(3, 3)), NAMES, 0, state, [mirror(reader)], out)
    assert out == []
    assert state.mirrored["s/topic:copy/0"][0] == 1


async def test_copies_that_were_removed_unread_may_have_been_of_anything() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    reader.given[0] = copied(7, 30, lost=True)
    port = ScriptedPort(facts_now=facts(2, 2), ends_now=LogEnds(0, 40, 40))
    await collect(port, NAMES, 0, state, [mirror(reader)], out)
    assert said(out) == [(0, "received", 0, [[30, 30]]), (0, "unobserved", 1, [[0, 39]]), (1, "unobserved", 2, [[0, 39]])]


async def test_of_a_topic_that_was_made_anew_only_later_copies_are_read() -> None:
    reader, state = Reader(1), ledger()
    state.reborn = True
    await collect(ScriptedPort(), NAMES, 0, state, [mirror(reader)], [])
    assert reader.asked == [(0, None, True)]
