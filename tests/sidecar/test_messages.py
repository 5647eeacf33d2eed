"""Runs and replays out of messages, against a loop that looks at each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message
from hypothesis import given
from hypothesis import strategies as st

from gapstream_sidecar.messages import Origin, Run, are_plain, origin_of, records, replays, runs
from tests.sidecar.fakes import FakeMessage

EOF = KafkaError(KafkaError._PARTITION_EOF)
stretches = st.lists(
    st.tuples(st.sampled_from(["orders", "events"]), st.integers(0, 2), st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=30
)
"""Topic, partition, offsets that are skipped, records that follow."""


def handed_out(plan: list[tuple[str, int, int, int]]) -> list[tuple[str, int, int]]:
    """Topic, partition, offset: a client hands a partition's records out in their order."""
    stands: dict[tuple[str, int], int] = {}
    found = []
    for topic, partition, skipped, count in plan:
        first = stands.get((topic, partition), 0) + skipped
        found += [(topic, partition, first + at) for at in range(count)]
        stands[topic, partition] = first + count
    return found


def offsets_of(found: list[Run]) -> list[tuple[str, int, int]]:
    return [(one.topic, one.partition, offset) for one in found for offset in range(one.first, one.stop)]


@given(stretches, st.sampled_from([None, "orders", "events"]))
def test_runs_hold_the_records_in_their_order(plan: list[tuple[str, int, int, int]], only: str | None) -> None:
    where = handed_out([one for one in plan if only in (None, one[0])] or [("orders", 0, 5, 1)])
    found = runs([FakeMessage(*place) for place in where], only)
    assert offsets_of(found) == where
    assert all(not (one[:2] == after[:2] and one.stop == after.first) for one, after in pairwise(found))


@pytest.mark.parametrize("back", [1, 15, 16, 17, 40])
def test_a_log_that_loses_its_end_within_a_batch(back: int) -> None:
    offsets = [*range(100, 150), *range(150 - back, 200)]
    found = runs([FakeMessage("orders", 0, offset) for offset in offsets])
    assert found == [("orders", 0, 100, 150), ("orders", 0, 150 - back, 200)]


def test_another_topic_than_was_thought_is_found_out() -> None:
    assert runs([FakeMessage("events", 0, 1), FakeMessage("orders", 0, 2)], "orders") == [("events", 0, 1, 2), ("orders", 0, 2, 3)]


def test_messages_of_the_client_itself_will_do() -> None:
    made: list[Any] = [Message(topic="orders", partition=1, offset=offset, value=b"x") for offset in (4, 5, 7)]
    assert records(made) is made
    assert runs(made) == [("orders", 1, 4, 6), ("orders", 1, 7, 8)]
    assert replays(made) == []


def test_events_are_no_records() -> None:
    messages = [FakeMessage("orders", 0, 1), FakeMessage("orders", 0, 2, EOF), FakeMessage("orders", 0, None, EOF)]
    assert records(messages) == messages[:1]
    assert list(records(messages[1:])) == []


@pytest.mark.parametrize("odd", [FakeMessage("orders", 0, 2, EOF), FakeMessage("orders", 0, 2, headers=[("trace", b"1")])])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_event_or_header_is_enough_to_look_closer(odd: FakeMessage, at: int) -> None:
    messages = [FakeMessage("orders", 0, 1), FakeMessage("orders", 0, 3)]
    assert are_plain(messages)
    messages.insert(at, odd)
    assert not are_plain(messages)


def test_replays_name_where_they_were_delivered_and_where_they_come_from() -> None:
    source = [("trace", b"1"), ("source.topic", b"orders"), ("source.partition", b"3"), ("source.offset", b"12")]
    messages = [
        FakeMessage("retry", 0, 1),
        FakeMessage("retry", 0, 2, headers=source),
        FakeMessage("retry", 0, 3, headers=[("trace", b"2")]),
    ]
    assert replays(messages) == [Origin(("retry", 0), 2, ("orders", 3), 12)]


@pytest.mark.parametrize(
    ("topic", "partition", "offset", "origin"),
    [
        (b"orders", b"3", b"12", (("orders", 3), 12)),
        ("orders", "3", "12", (("orders", 3), 12)),
        (b"orders", (3).to_bytes(8, "big"), (2**40).to_bytes(8, "big"), (("orders", 3), 2**40)),
        (b"orders", b"3", b"12345678", (("orders", 3), 12_345_678)),  # eight digits are text
        (b"orders", b"3", b"9223372036854775807", None),
        (b"orders", b"3", b"-1", None),
        (b"orders", b"3", b"", None),
        (b"orders", b"3", None, None),
        (b"orders", b"3", "\u0663", None),
        (b"orders", b"3", b"1" * 30, None),
        (b"orders", b"3", (-5).to_bytes(8, "big", signed=True), None),
        (b"orders", b"4294967296", b"1", None),
        (b"\xff", b"3", b"1", None),
        (b"", b"3", b"1", None),
        (None, b"3", b"1", None),
    ],
)
def test_headers_say_it_in_one_of_two_ways_or_not_at_all(topic: Any, partition: Any, offset: Any, origin: Any) -> None:
    headers = [("source.topic", topic), ("source.partition", partition), ("source.offset", offset)]
    assert origin_of(headers) == origin
    assert origin_of(headers[:2]) is None
    assert origin_of([("source.offset", b"99"), *headers]) == origin  # the last one counts
