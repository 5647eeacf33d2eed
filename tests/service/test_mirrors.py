from __future__ import annotations

import json
from typing import Any, cast

import pytest
import structlog

from stream_app.core.ledger import Ledger
from stream_app.core.model import LogEnds, Observation, ObservationRead, Status
from stream_app.core.policy import Policy
from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.copies import Copies, CopyReader, CopyTopic, Ends, Wanted
from stream_app.kafka.writer import OutRecord
from stream_app.service import owner as owner_module
from stream_app.service.context import Context, TopicFacts, Unavailable
from stream_app.service.metrics import Counters
from stream_app.service.mirrors import COPIES_CHECK, LETTERS_CHECK, Mirror, Mirrors
from stream_app.service.status import copied_key
from stream_app.service.telemetry import Telemetry
from stream_app.sinks.copies import Source, SourceHeaders
from tests.support.fakes import NAMES, OBSERVATIONS_ID, START_MS, TOPIC_ID, Bench, Clock, ScriptedPort, bundle, log_read, until
from tests.support.fakes import said as observed

COPY_ID, OTHER_ID = bytes(range(32, 48)), bytes(range(48, 64))


class Reader:
    """Partitions of a topic of copies, each with what it gives next."""

    def __init__(self, partitions: int | None) -> None:
        self.where = CopyTopic("copy", SourceHeaders("t", "p", "o"), {}, KafkaSettings((("b", 1),)))
        self.partitions = partitions
        self.given: dict[int, Copies] = {}
        self.asked: list[tuple[int, int | None, bool]] = []
        self.left: list[int] = []
        self.trouble: str | None = None
        self.ends: Ends | None = None

    def take(self, partition: int, position: int | None, topic_id: bytes | None, *, at_end: bool = False) -> Copies | None:
        assert topic_id == (None if position is None else COPY_ID)
        self.asked.append((partition, position, at_end))
        return self.given.pop(partition, None)

    def leave(self, partition: int) -> None:
        self.left.append(partition)

    def ends_at(self, at_ms: int, *stops: int, topic_id: bytes = COPY_ID) -> None:
        self.ends = Ends(at_ms, topic_id, dict(enumerate(stops)))


def ledger(partitions: int = 2, **rules: Any) -> Ledger:
    policies = {"s": Policy("s", mirrored=True, **rules)} if rules else {}
    made = Ledger.create("orders", 0, "1", topic_id=TOPIC_ID, log_start=0, log_end=0, policies=policies)
    made.partitions = partitions
    return made


def mirror(reader: Reader, status: Status = Status.RECEIVED, sink: str = "s") -> Mirror:
    return Mirror(sink, status, None if status is Status.RECEIVED else "bad", cast(CopyReader, reader))


def mirrors(port: ScriptedPort, *several: Mirror, partition: int = 0) -> Mirrors:
    telemetry = Telemetry(Counters())
    context = Context("gap", "worker-1", "cluster", port, telemetry, Clock(), {"orders": several}, lambda *who: None)
    return Mirrors(context, NAMES, partition)


def facts(partitions: int, observed: int) -> TopicFacts:
    return TopicFacts(TOPIC_ID, OBSERVATIONS_ID, partitions, observed, False, None)


def copied(position: int, *offsets: int, partition: int = 0, lost: bool = False) -> Copies:
    sources: list[Source | None] = [Source("orders", partition, offset) for offset in offsets]
    return Copies(Wanted(position, COPY_ID), position + len(offsets), COPY_ID, sources, lost)


def said(out: list[OutRecord]) -> list[tuple[int | None, str, int, Any]]:
    values = [(record.partition, json.loads(record.value or b"")) for record in out]
    return [(partition, value["status"], value["sequence"], value["runs"]) for partition, value in values]


async def test_each_partition_of_the_copies_has_one_reader() -> None:
    reader = Reader(5)
    for partition, expected in ((0, [0, 2, 4]), (1, [1, 3]), (2, [])):
        reader.asked.clear()
        one = mirrors(ScriptedPort(), mirror(reader), partition=partition)
        await one.collect(ledger(), [])
        assert [number for number, *_ in reader.asked] == expected
        reader.left.clear()
        one.leave(ledger())
        assert reader.left == expected
    reader.partitions = None
    await mirrors(ScriptedPort(), mirror(reader)).collect(ledger(), [])


async def test_what_was_copied_is_said_and_read_on_from_there() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    port = ScriptedPort(facts_now=facts(2, 2))
    reader.given[0] = copied(10, 3, 4, 4, 9, partition=1)
    await mirrors(port, mirror(reader)).collect(state, out)
    assert said(out) == [(1, "received", 0, [[3, 4], [9, 9]]), (1, "received", 1, [[4, 4]])]
    assert {record.topic for record in out} == {NAMES.observations}
    reader.given[0] = copied(14, 5)
    await mirrors(port, mirror(reader)).collect(state, out)
    assert said(out)[2:] == [(0, "received", 2, [[5, 5]])]
    assert reader.asked == [(0, None, False), (0, 14, False)]


async def test_sinks_that_share_a_topic_are_read_apart() -> None:
    one, other, state, out = Reader(1), Reader(1), ledger(), list[OutRecord]()
    one.given[0], other.given[0] = copied(0, 1), copied(0, 2)
    both = [mirror(one), mirror(other, Status.QUARANTINED, "t")]
    await mirrors(ScriptedPort(), *both).collect(state, out)
    assert said(out) == [(0, "received", 0, [[1, 1]]), (0, "quarantined", 0, [[2, 2]])]
    assert len(state.mirrored) == 2


async def test_nothing_is_noted_of_what_could_not_be_said() -> None:
    reader, state, out = Reader(2), ledger(partitions=1), list[OutRecord]()
    reader.given = {0: copied(0, 1), 1: copied(0, 2)}
    port = ScriptedPort(failing={"facts": 1})
    with pytest.raises(Unavailable):
        await mirrors(port, mirror(reader)).collect(state, out)
    assert (out, state.mirrored) == ([], {})
    await mirrors(port, mirror(reader)).collect(state, out)
    assert len(out) == 1
    assert state.mirrored == {"s/topic:copy/1": (1, 1, COPY_ID)}


async def test_copies_of_added_partitions_wait_for_their_observations_and_of_none_are_passed_over() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    reader.given[0] = copied(0, 1, partition=2)
    await mirrors(ScriptedPort(facts_now=facts(3, 2)), mirror(reader)).collect(state, out)
    assert (out, state.mirrored) == ([], {})
    reader.given[0] = copied(0, 1, partition=9)
    await mirrors(ScriptedPort(facts_now=facts(3, 3)), mirror(reader)).collect(state, out)
    assert out == []
    assert state.mirrored["s/topic:copy/0"][0] == 1


async def test_copies_that_were_removed_unread_may_have_been_of_anything() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    reader.given[0] = copied(7, 30, lost=True)
    port = ScriptedPort(facts_now=facts(2, 2), ends_now=LogEnds(0, 40, 40))
    await mirrors(port, mirror(reader)).collect(state, out)
    assert said(out) == [(0, "received", 0, [[30, 30]]), (0, "unobserved", 1, [[0, 39]]), (1, "unobserved", 2, [[0, 39]])]


async def test_a_copy_of_what_is_not_in_the_log_is_said_apart_from_the_others() -> None:
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    port = ScriptedPort(facts_now=facts(2, 2), ends_now=LogEnds(0, 10, 8))
    reader.given[0] = copied(0, 8, 9, 10, 2**40)
    with structlog.testing.capture_logs() as told:
        await mirrors(port, mirror(reader)).collect(state, out)
    assert said(out) == [(0, "received", 0, [[8, 9]]), (0, "received", 1, [[10, 10], [2**40, 2**40]])]
    assert state.mirrored["s/topic:copy/0"] == (4, 2, COPY_ID)
    assert told == []


async def test_copies_that_say_nothing_are_told() -> None:
    reader, port = Reader(1), ScriptedPort(facts_now=facts(2, 2), ends_now=LogEnds(0, 10, 10))
    reader.given[0] = copied(0, 1, 2, partition=7)
    reader.given[0].sources.append(None)
    with structlog.testing.capture_logs() as told:
        await mirrors(port, mirror(reader)).collect(ledger(), [])
    assert [(one["event"], one["records"]) for one in told] == [
        ("copies are of partitions that are not there", 2),
        ("records of a topic of copies tell no source", 1),
    ]


async def test_of_a_topic_that_was_made_anew_only_later_copies_are_read() -> None:
    reader, state = Reader(1), ledger()
    state.reborn = True
    await mirrors(ScriptedPort(), mirror(reader)).collect(state, [])
    assert reader.asked == [(0, None, True)]


# --- how far all of them were read ----------------------------------------------------------------------------------------


def said_copied(*positions: int) -> dict[str, int]:
    return {copied_key(f"s/topic:copy/{number}", COPY_ID): position for number, position in enumerate(positions)}


def waiting(read: int = 10) -> Ledger:
    """Every second record was copied, as far as is known."""
    state = ledger(checks=(COPIES_CHECK, LETTERS_CHECK))
    state.fold_log(log_read(0, read), START_MS)
    state.observe(ObservationRead(0, 0, START_MS, b""), Observation("s", ((0, 1), (9, 10))), START_MS)
    state.heard_to_end(START_MS + 60_000)
    return state


async def test_nothing_is_missing_before_the_copies_were_read_by_all_workers_and_what_they_wrote_was_heard() -> None:
    reader, state = Reader(2), waiting()
    port = ScriptedPort(ends_now=LogEnds(0, 3, 2))
    one = mirrors(port, mirror(reader))
    await one.follow(state)
    assert not state.has_due(), "nobody knows where the copies end"
    reader.ends_at(START_MS + 1_999, 5, 7)
    port.copies = said_copied(5, 6)
    await one.follow(state)
    assert not state.has_due(), "another worker has not read its partition that far"
    assert port.asked("ends") == []
    port.copies = said_copied(5, 7)
    await one.follow(state)
    assert not state.has_due(), "what it wrote can't be heard yet"
    reader.ends_at(START_MS + 2_000, 6, 7)
    port.ends_now, state.heard_ms = LogEnds(0, 4, 3), START_MS
    await one.follow(state)
    assert state.sinks["s"].copied_ms is None, "it is not heard yet"
    state.heard_to_end(START_MS + 60_000)
    await one.follow(state)
    assert not state.has_due(), "grace was not over when the copies were looked at"
    port.copies, port.ends_now = said_copied(6, 7), LogEnds(0, 4, 4)
    await one.follow(state)
    await one.follow(state)
    assert [step.runs for step in state.candidates()] == [((1, 9),)]


async def test_where_nothing_waits_nobody_asks() -> None:
    reader, state = Reader(1), waiting(read=1)
    reader.ends_at(START_MS + 9_000, 5)
    port = ScriptedPort(copies=said_copied(5))
    state.sinks["s"].settled = 1
    await mirrors(port, mirror(reader)).follow(state)
    assert port.asked("ends") == []


async def test_dead_letters_that_cant_be_read_hold_verdicts_back_as_well() -> None:
    copies, letters, state = Reader(1), Reader(1), waiting()
    port = ScriptedPort(copies=said_copied(5))
    one = mirrors(port, mirror(copies), mirror(letters, Status.QUARANTINED))
    copies.ends_at(START_MS + 9_000, 5)
    letters.trouble = "topic copy: no such topic"
    await one.follow(state)
    assert not state.has_due()
    failing = {name: why for name, (_, why) in state.sinks["s"].checks.failing.items()}
    assert failing == {LETTERS_CHECK: "topic copy: no such topic"}
    letters.trouble = None
    letters.ends_at(START_MS + 9_000, 5)
    await one.follow(state)
    await one.follow(state)
    assert state.has_due()
    assert not state.sinks["s"].checks.failing


async def test_ends_that_one_keeps_behind_are_the_reason() -> None:
    reader, state = Reader(2), waiting()
    port = ScriptedPort(copies=said_copied(5, 3))
    one = mirrors(port, mirror(reader))
    reader.ends_at(START_MS + 9_000, 5, 7)
    await one.follow(state)
    assert state.sinks["s"].checks.failing[COPIES_CHECK][1] == "partition 1 of topic copy is read to 3 of 7"
    reader.ends_at(START_MS + 10_000, 0, topic_id=OTHER_ID)
    await one.follow(state)
    why = "partition 0 of topic copy is read to nothing of 0"
    assert state.sinks["s"].checks.failing[COPIES_CHECK][1] == why, "the old ends are none of the topic that was made anew"
    port.copies = {copied_key("s/topic:copy/0", OTHER_ID): 0}
    await one.follow(state)
    assert not state.sinks["s"].checks.failing


async def test_a_commit_makes_nothing_missing_before_the_copies_were_read() -> None:
    reader, state = Reader(1), ledger(group="copier", floor=0)
    state.fold_log(log_read(0, 10), START_MS)
    state.observe(ObservationRead(0, 0, START_MS, b""), Observation("s", (), claim=10, source="group:copier", sequence=0), START_MS)
    state.heard_to_end(START_MS + 60_000)
    one = mirrors(ScriptedPort(copies=said_copied(5)), mirror(reader))
    await one.follow(state)
    assert not state.has_due()
    reader.ends_at(START_MS + 9_000, 5)
    await one.follow(state)
    assert [step.runs for step in state.candidates()] == [((0, 10),)], "committed and in no partition: certain"


async def test_trouble_is_one_line_and_lasting_trouble_is_told_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_SECONDS", "RETRY_SECONDS", "PACE_SECONDS"):
        monkeypatch.setattr(owner_module, name, 0.01)
    reader = Reader(1)
    reader.trouble = "topic copy: no such topic"
    policy = Policy("s", mirrored=True, stall_after_ms=1_000, checks=(COPIES_CHECK,))
    bench = Bench(policies={"s": policy}, floors={"s": "first"}, unknown_after_ms=60_000, mirrors={"orders": [mirror(reader)]})
    bench.port.ends_now = LogEnds(0, 10, 10)
    with structlog.testing.capture_logs() as lines:
        owner = await bench.begun()
        owner.fold_log(log_read(0, 10))
        await owner.fold_observations(bundle(0, observed("s", runs=[[0, 0], [4, 4]])))
        bench.clock.now_ms += 60_000
        await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
        await until(lambda: bench.writer.events(), "the event")
    assert [(line["topic"], line["reason"]) for line in lines if "copies" in line["event"]] == [("copy", "topic copy: no such topic")]
    await until(lambda: [row.unknown for row in owner.rows if row.sink == "s"] == ["topic copy: no such topic"], "the row")
    reader.trouble = None
    reader.ends_at(bench.clock.now_ms, 3)
    bench.port.copies, bench.port.ends_now = said_copied(3), LogEnds(0, 1, 10)
    await until(lambda: len(bench.writer.events()) > 1, "it is known again")
    assert bench.writer.events()[1]["type"] == "sink.known", "neither a gap nor a stall before it could be read"
    bench.clock.now_ms += 1
    await owner.fold_observations(bundle(1, heard_ms=bench.clock.now_ms))
    await until(lambda: any(event["type"] == "gap.opened" for event in bench.writer.events()), "the gap")
    told = [(event["type"], event["reason"] or event["ranges"]) for event in bench.writer.events()]
    assert told[:2] == [("sink.unknown", "topic copy: no such topic"), ("sink.known", None)]
    assert ("gap.opened", [[1, 3]]) in told[2:]
    await bench.close()


async def test_offsets_far_apart_and_a_long_name_are_said_all_the_same() -> None:
    """Whatever stands in the headers, and however long a name Kafka allows: the partition must not be given up for it."""
    reader, state, out = Reader(1), ledger(), list[OutRecord]()
    reader.where = CopyTopic("c" * 249, SourceHeaders("t", "p", "o"), {}, KafkaSettings((("b", 1),)))
    port = ScriptedPort(facts_now=facts(1, 1), ends_now=LogEnds(0, 10, 10))
    reader.given[0] = copied(0, 3, *(2**62 + 2**38 * number for number in range(25_000)))
    await mirrors(port, mirror(reader)).collect(state, out)
    assert said(out)[0][3] == [[3, 3]]
    assert [len(runs) for _, _, _, runs in said(out)] == [1, 10_000, 10_000, 5_000]
    (source,) = {json.loads(record.value or b"")["source"] for record in out}
    assert source.startswith("topic:ccc")
    assert source.endswith("/0")
    assert len(source) == 200
    assert [*state.mirrored.values()] == [(25_001, 4, COPY_ID)]
