"""Where a partition of copies is begun, and who is answered with what; reading itself is tried on a real Kafka."""

from __future__ import annotations

import pytest

from stream_app.kafka.connection import KafkaSettings
from stream_app.kafka.copies import Copies, CopyReader, CopyTopic, Wanted, _begin
from stream_app.kafka.wire import NO_UUID
from stream_app.sinks.copies import Source, SourceHeaders

ID, OTHER = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture
def reader() -> CopyReader:
    return CopyReader(CopyTopic("copy", SourceHeaders("t", "p", "o"), {}, KafkaSettings((("b", 1),))), lambda: 0)


@pytest.mark.parametrize(
    ("wanted", "topic_id", "begins", "lost"),
    [
        (Wanted(None, None), ID, 10, False),
        (Wanted(None, None, at_end=True), ID, 20, True),
        (Wanted(15, ID), ID, 15, False),
        (Wanted(10, ID), ID, 10, False),
        (Wanted(20, ID), ID, 20, False),
        (Wanted(9, ID), ID, 10, True),
        (Wanted(21, ID), ID, 20, True),
        (Wanted(15, OTHER), ID, 10, True),
        (Wanted(21, NO_UUID), NO_UUID, 10, True),
    ],
)
def test_where_reading_begins(wanted: Wanted, topic_id: bytes, begins: int, lost: bool) -> None:
    begun = _begin(wanted, topic_id, 10, 20)
    assert (begun.next, begun.lost, begun.topic_id) == (begins, lost, topic_id)


def test_a_beginning_is_an_answer_and_nothing_new_is_none(reader: CopyReader) -> None:
    assert reader.take(0, None) is None
    reader._held[0] = _begin(reader._wanted[0], ID, 10, 20)
    first = reader.take(0, None)
    assert first is not None
    assert (first.next, first.sources) == (10, []), "where it is read from is noted, or a restart would begin elsewhere"
    assert reader.take(0, 10, ID) is None
    reader._held[0].sources.append(Source("orders", 0, 7))
    reader._held[0].next = 11
    second = reader.take(0, 10, ID)
    assert second is not None
    assert second.next == 11
    assert reader.take(0, 11, ID) is None


@pytest.mark.parametrize(("position", "topic_id"), [(9, ID), (10, OTHER), (None, None)])
def test_who_asks_for_something_else_is_answered_from_there(reader: CopyReader, position: int | None, topic_id: bytes | None) -> None:
    reader.take(0, 10, ID)
    reader._held[0] = Copies(Wanted(10, ID), 12, ID, [None, None])
    reader._changed = False
    assert reader.take(0, position, topic_id) is None
    assert reader._wanted[0] == Wanted(position, topic_id)
    assert reader._changed
    assert 0 not in reader._held
