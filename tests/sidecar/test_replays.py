"""Wrapped consumers that are handed replayed records: what headers tell is reported, checked, taken along and inherited."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import permutations

import pytest
from confluent_kafka import TopicPartition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gapstream_sidecar import Sidecar
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.doubts import NOWHERE, UNWATCHED
from tests.sidecar.conftest import Bench, opened_bench
from tests.sidecar.fakes import FakeGroup, FakeMessage, carried, drain, received

SOURCE = [("source.topic", b"orders"), ("source.partition", b"3"), ("source.offset", b"15012")]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("batches", [True, False])
def test_a_replayed_record_is_reported_under_its_source_too(bench: Bench, batches: bool) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    inside.queue.extend([FakeMessage("retry", 0, 4), FakeMessage("retry", 0, 5, headers=SOURCE), FakeMessage("retry", 0, 6)])
    messages = consumer.consume(10) if batches else drain(consumer)
    consumer.commit(message=messages[0])
    assert [one["topic"] for one in bench.producer.said()] == ["retry"]
    consumer.commit(message=messages[1])
    assert sidecar.flush()
    said = {(one["topic"], one["partition"]): one["runs"] for one in bench.producer.said()[1:]}
    assert said == {("retry", 0): [[5, 5]], ("orders", 3): [[15012, 15012]]}
    consumer.commit(message=messages[2])
    assert [one["topic"] for one in bench.producer.said()[3:]] == ["retry"]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("batches", [True, False])
def test_two_replays_of_one_record_are_received_twice(bench: Bench, batches: bool) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    inside.queue.extend(FakeMessage("retry", 0, at, headers=source(offset)) for at, offset in enumerate([7, 8, 7, 8, 8]))
    assert len(consumer.consume(10) if batches else drain(consumer)) == 5
    consumer.commit()
    assert sidecar.flush()
    assert [one["runs"] for one in bench.producer.said() if one["topic"] == "orders"] == [[[7, 8]], [[7, 8]], [[8, 8]]]


def source(offset: int, partition: int = 3) -> list[tuple[str, bytes]]:
    return [("source.topic", b"orders"), ("source.partition", str(partition).encode()), ("source.offset", str(offset).encode())]


def test_a_header_beyond_the_logs_end_takes_no_other_along(bench: Bench) -> None:
    """What is not in the log is rejected with all that is said beside it, so it is said apart, and last."""
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    bench.log_ends["orders", 3] = 100
    offsets = [7, 99, 100, 2**40, 8]
    inside.queue.extend(FakeMessage("retry", 0, at, headers=source(offset)) for at, offset in enumerate(offsets))
    consumer.consume(10)
    consumer.commit()
    assert sidecar.flush()
    told = [(one["runs"], one["sequence"]) for one in bench.producer.said() if one["topic"] == "orders"]
    assert told == [([[7, 8], [99, 99]], 1), ([[100, 100], [2**40, 2**40]], 2)]
    inside.queue.append(FakeMessage("retry", 0, 5, headers=source(98)))
    consumer.consume(10)
    consumer.commit()
    assert sidecar.flush()
    assert bench.ends_asked == [[("orders", 3)]], "what lies below an end that is known needs no question"


def test_where_the_end_cant_be_asked_headers_are_believed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    bench.log_ends |= {("orders", 3): None, ("orders", 4): None}
    inside.queue.extend(FakeMessage("retry", 0, 5 + one, headers=source(7, 3 + one)) for one in range(2))
    consumer.consume(10)
    consumer.commit()
    assert sidecar.flush()
    assert sorted(one["partition"] for one in bench.producer.said() if one["topic"] == "orders") == [3, 4]
    assert "where the log of ('orders', 3) ends: headers of replayed records are believed" in caplog.text


def test_what_is_no_replay_does_not_wait_for_the_end_of_its_log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapstream_sidecar.reporter.ENDS_S", 3_600.0)
    bench.ends_answered = False
    sidecar = bench.sidecar(observe_before_commit=30.0)
    consumer, inside = bench.wrapped(sidecar)
    inside.queue.extend([FakeMessage("retry", 0, 5, headers=source(7)), FakeMessage("orders", 3, 8)])
    replay, plain = consumer.consume(10)
    consumer.commit(message=replay)
    asked_at = time.monotonic()
    sidecar.received("orders", 3, 9)
    bench.producer.await_records(2)
    consumer.commit(message=plain)
    assert time.monotonic() - asked_at < 10
    assert [(one["topic"], one["runs"]) for one in bench.producer.said()] == [
        ("retry", [[5, 5]]),
        ("orders", [[9, 9]]),
        ("orders", [[8, 8]]),
    ], "and the commit waited for it"


def test_that_an_end_is_not_known_is_remembered(bench: Bench) -> None:
    """Asked for each observation it would be refused as often, each time by a connection of its own."""
    sidecar = bench.sidecar()
    consumer, inside = bench.wrapped(sidecar)
    bench.log_ends["orders", 3] = None
    for at in range(4):
        inside.queue.append(FakeMessage("retry", 0, at, headers=source(7 + at)))
        consumer.consume(1)
        consumer.commit()
        assert sidecar.flush()
    assert [one["runs"] for one in bench.producer.said() if one["topic"] == "orders"] == [[[7 + at, 7 + at]] for at in range(4)]
    assert len(bench.ends_asked) == 1


def test_a_replay_of_what_nobody_watches_is_dropped(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be held back for ever, and every end of the sidecar would wait for it."""
    monkeypatch.setattr("gapstream_sidecar.doubts.NOWHERE_S", 0.0)
    sidecar = bench.sidecar(observe_before_commit=0)
    bench.log_ends["orders", 3] = NOWHERE
    bench.producer.missing.add(("gapstream.observations.orders", 3))
    consumer, inside = bench.wrapped(sidecar)
    inside.queue.append(FakeMessage("retry", 0, 5, headers=source(7)))
    consumer.consume(10)
    consumer.commit()
    assert sidecar.flush(5)
    assert (sidecar.stats.dropped, sidecar.stats.backlog_bytes) == (1, 0)
    assert "replays from ('orders', 3), which nobody watches" in caplog.text
    sidecar.received("orders", 3, 8)
    assert not sidecar.flush(0.1), "what is no replay waits for whoever will watch it"


@pytest.mark.parametrize("end", [NOWHERE, UNWATCHED])
def test_a_replay_of_what_nobody_watches_does_not_hold_up_the_end(bench: Bench, end: int) -> None:
    sidecar = bench.sidecar(observe_before_commit=0)
    bench.log_ends["orders", 3] = end
    consumer, inside = bench.wrapped(sidecar)
    inside.queue.append(FakeMessage("retry", 0, 5, headers=source(7)))
    consumer.consume(10)
    consumer.commit()
    began = time.monotonic()
    sidecar.close(timeout=4)
    assert time.monotonic() - began < 2
    assert (sidecar.stats.dropped, bench.runs()) == (1, [[[5, 5]]])


def test_a_topic_that_is_not_there_yet_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gapstream_sidecar.doubts.ASK_AGAIN_S", 0.05)
    sidecar = bench.sidecar()
    bench.log_ends["orders", 3] = NOWHERE
    consumer, inside = bench.wrapped(sidecar)
    inside.queue.append(FakeMessage("retry", 0, 5, headers=source(7)))
    consumer.consume(10)
    began = time.monotonic()
    consumer.commit()
    assert time.monotonic() - began < 0.15, "a commit does not wait for that"
    assert not sidecar.flush(0.3)
    bench.log_ends["orders", 3] = 100
    assert sidecar.flush(5)
    assert [one["runs"] for one in bench.producer.said() if one["topic"] == "orders"] == [[[7, 7]]]
    assert sidecar.stats.dropped == 0
    assert 2 <= len(bench.ends_asked) <= 12


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("end", [100, None])
@pytest.mark.parametrize("topic", ["retry", "orders"])
def test_what_headers_told_a_killed_owner_is_checked_by_the_next_one(bench: Bench, topic: str, end: int | None) -> None:
    """Taken over unchecked it would be rejected whole: also where a partition holds replays of its own records."""
    group = FakeGroup()
    first = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.wrapped(first, group=group)
    bench.producer.hold()
    bench.log_ends["orders", 3] = None
    inside.queue.extend(FakeMessage(topic, 3, at, headers=source(offset)) for at, offset in enumerate([7, 2**40]))
    consumer.commit(message=consumer.consume(2)[1])
    told, own = [7, 1, 2**40 - 8, 1], [first.source, 1, "received", None, [0, 2]]
    assert carried(group, topic, 3) == [own, [f"{first.source}.1", 1, "received", None, told, "orders", 3]]
    bench.log_ends["orders", 3] = end
    second = bench.sidecar()
    take_over(bench, group, second, (topic, 3))
    said = [(one["source"], one["sequence"], one["runs"]) for one in bench.producer.said()]
    expected = [(first.source, 1, [[0, 1]]), (f"{first.source}.1", 1, [[7, 7]]), (f"{second.source}.1", 2, [[2**40, 2**40]])]
    if end is None:  # what can't be checked is believed, not lost
        expected = [expected[0], (f"{first.source}.1", 1, [[7, 7], [2**40, 2**40]])]
    assert said == expected


@pytest.mark.usefixtures("patient", "spent")
def test_one_wrong_header_does_not_have_the_right_ones_missing_where_metadata_had_no_room(bench: Bench) -> None:
    """What cannot be told one by one any more is unobserved, as far as the log reaches."""
    group = FakeGroup()
    consumer, inside = bench.wrapped(bench.sidecar(observe_before_commit=0), group=group)
    bench.producer.hold()
    bench.log_ends["orders", 3] = None
    right = range(10, 2_010, 2)
    inside.queue.extend(FakeMessage("retry", 0, at, headers=source(offset)) for at, offset in enumerate([*right, 2**40]))
    consumer.commit(message=consumer.consume(2_000)[-1])
    bench.log_ends["orders", 3] = 3_000
    take_over(bench, group, bench.sidecar(), ("retry", 0))
    told = [one for one in bench.producer.said() if one["topic"] == "orders" and one["runs"][-1][1] < 3_000]
    unobserved = {at for one in told if one["status"] == "unobserved" for first, last in one["runs"] for at in range(first, last + 1)}
    assert unobserved >= set(right)
    assert min(unobserved) == 10


def take_over(bench: Bench, group: FakeGroup, by: Sidecar, *keys: Key) -> None:
    """Partitions of somebody who was killed are assigned, in this order."""
    consumer, inside = bench.wrapped(by, group=group)
    consumer.subscribe([topic for topic, _ in keys])
    inside.callbacks["on_assign"](inside, [TopicPartition(*key) for key in keys])
    assert by.flush()
    assert by.flush(), "what lies beyond an end was put apart by the first"


@pytest.mark.usefixtures("patient", "spent")
@pytest.mark.parametrize("keys", list(permutations([("orders", 3), ("retry", 0), ("retry", 1)])))
def test_whatever_order_a_killed_owners_commits_are_found_in_all_of_it_is_told(bench: Bench, keys: tuple[Key, ...]) -> None:
    """No two of them carry one number with different offsets, of which gapstream would take the first."""
    group = FakeGroup()
    first = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.wrapped(first, group=group)
    bench.producer.hold()
    told = Counter[int]()
    for at, replayed in enumerate([6, 7, 8, 6]):
        inside.queue += [FakeMessage("orders", 3, 100 + at), FakeMessage("retry", at % 2, at, headers=source(replayed))]
        for message in consumer.consume(2):
            consumer.commit(message=message)
        told.update((replayed, 100 + at))
    for some in (keys[:1], keys[1:]):  # by two others, one after the other
        take_over(bench, group, bench.sidecar(), *some)
    found = received(bench.producers[1:])
    assert Counter({offset: times for (key, offset), times in found.items() if key == ("orders", 3)}) == told


@pytest.mark.usefixtures("patient", "spent")
def test_the_source_of_a_replay_travels_with_the_commit_of_where_it_was_delivered(bench: Bench) -> None:
    sidecar = bench.sidecar(observe_before_commit=0)
    consumer, inside = bench.wrapped(sidecar)
    bench.producer.hold()
    inside.queue.append(FakeMessage("retry", 0, 5, headers=SOURCE))
    consumer.commit(message=drain(consumer)[0])
    assert carried(inside.group, "retry") == [
        [sidecar.source, 1, "received", None, [5, 1]],
        [f"{sidecar.source}.1", 1, "received", None, [15012, 1], "orders", 3],
    ]


@dataclass
class Step:
    """A record is handed out and committed, while acknowledgements come or do not."""

    where: Key
    replayed: int | None
    acknowledged: bool


KEYS: list[Key] = [("orders", 3), ("retry", 0), ("retry", 1)]
scripts = st.lists(st.builds(Step, st.sampled_from(KEYS), st.none() | st.integers(0, 5), st.booleans()), max_size=15)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("turn", ["spent", "always"])
@given(scripts, scripts, st.permutations(KEYS), st.integers(1, 3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kills_lose_and_double_nothing(
    turn: str, request: pytest.FixtureRequest, before: list[Step], between: list[Step], keys: list[Key], cut: int
) -> None:
    """An owner is killed, two others share what it had, both are killed too, and a last one takes all: none of them sends any more."""
    if turn == "spent":
        request.getfixturevalue("spent")
    with opened_bench() as bench:
        group, wanted, at, owners = FakeGroup(), Counter[tuple[Key, int]](), Counter[Key](), list[Owner]()
        for owned, script in (([keys], before), ([keys[:cut], keys[cut:]], between), ([keys], [])):
            owners = [Owner(bench, group, some) for some in owned if some]
            for step in script:
                owner = next(one for one in owners if step.where in one.keys)
                offset = 100 + at[step.where]
                at[step.where] += 1
                wanted[step.where, offset] += 1
                if step.replayed is not None:
                    wanted[("orders", 3), step.replayed] += 1
                owner.take(step, offset)
        owners[0].producer.release()
        assert owners[0].sidecar.flush()
        assert owners[0].sidecar.flush()
        assert received(bench.producers) == wanted


class Owner:
    """A process of the application."""

    def __init__(self, bench: Bench, group: FakeGroup, keys: list[Key]) -> None:
        self.keys = keys
        self.sidecar = bench.sidecar(observe_before_commit=0)
        self.producer = bench.producer
        self.consumer, self.inside = bench.wrapped(self.sidecar, group=group)
        self.consumer.subscribe(["orders", "retry"])
        self.producer.hold()
        self.inside.callbacks["on_assign"](self.inside, [TopicPartition(*key) for key in keys])

    def take(self, step: Step, offset: int) -> None:
        self.inside.queue.append(FakeMessage(*step.where, offset, headers=None if step.replayed is None else source(step.replayed)))
        self.consumer.commit(message=self.consumer.consume(1)[0])
        if step.acknowledged:
            self.producer.release()
            self.sidecar.flush(0.02)
            self.producer.hold()


@pytest.mark.usefixtures("patient", "spent")
def test_what_finds_no_room_in_metadata_at_all_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    consumer, inside = bench.wrapped(bench.sidecar(observe_before_commit=0))
    bench.producer.hold()
    for at in range(200):
        headers = [("source.topic", f"{at:03}{'x' * 60}".encode()), *SOURCE[1:]]
        inside.queue.append(FakeMessage("retry", 0, at, headers=headers))
    consumer.commit(message=consumer.consume(200)[-1])
    assert "has no room for what headers of replayed records tell of" in caplog.text
    assert f"199{'x' * 60}" in caplog.text
    assert "000xx" not in caplog.text
