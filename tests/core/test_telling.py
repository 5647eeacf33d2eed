"""What is told, how it is numbered, and what is held back."""

from __future__ import annotations

from stream_app.core.events import SPAN_MAX, EventType
from stream_app.core.log import LogState
from stream_app.core.model import Cause
from stream_app.core.offsets import OffsetSet
from stream_app.core.policy import Policy
from stream_app.core.sink import SinkState
from stream_app.core.telling import DUPLICATES_EVERY_MS, Telling

NOW = 1_700_000_000_000
WIDE = 10 * SPAN_MAX


def log_of(end: int = WIDE) -> LogState:
    return LogState(bytes(16), origin=0, seen_end=0, start=0, read=end, end=end, last_stable=end)


def test_events_of_a_sink_are_numbered_without_a_hole_and_carry_what_is_open() -> None:
    telling, log = Telling("orders", 3), log_of()
    sinks = [SinkState(Policy("a")), SinkState(Policy("b"), sequence=41)]
    for sink in sinks:
        sink.add_open(Cause.NOT_RECEIVED, OffsetSet([(5, 7), (9, 10)]), log)
        telling.tell(EventType.SINK_STALLED, sink, log, NOW)
        telling.tell(EventType.SINK_RESUMED, sink, log, NOW)
    assert [(event.sink, event.sequence) for event in telling.events] == [("a", 1), ("a", 2), ("b", 42), ("b", 43)]
    assert {(event.topic, event.partition, event.open_count, event.open_gaps) for event in telling.events} == {("orders", 3, 3, 2)}


def test_nothing_is_told_of_a_sink_in_no_configuration_and_no_number_is_spent() -> None:
    telling, sink = Telling("orders", 0), SinkState(Policy.unconfigured("c"))
    telling.opened(Cause.NOT_RECEIVED, OffsetSet([(1, 2)]), sink, log_of(), NOW, retention_ms=None)
    assert (telling.events, sink.sequence) == ([], 0)
    assert [(one.first, one.stop) for one in sink.openings] == [(1, 2)], "listings need it all the same"


def test_what_is_too_wide_for_one_event_is_told_in_pieces_and_nothing_of_nothing() -> None:
    telling, sink = Telling("orders", 0), SinkState(Policy("a"))
    telling.tell_of(OffsetSet(), EventType.LOG_UNREAD, sink, log_of(), NOW)
    assert telling.events == []
    wide = OffsetSet([(0, 1), (SPAN_MAX + 5, SPAN_MAX + 6), (WIDE - 1, WIDE)])
    telling.tell_of(wide, EventType.LOG_UNREAD, sink, log_of(), NOW)
    assert [list(event.ranges.runs()) for event in telling.events] == [[run] for run in wide.runs()]


def test_only_what_is_still_in_the_log_expires() -> None:
    telling, sink, log = Telling("orders", 0), SinkState(Policy("a")), log_of()
    times = {4: NOW - 100, 6: NOW - 90}
    for cause in (Cause.NOT_RECEIVED, Cause.VANISHED):
        telling.opened(cause, OffsetSet([(4, 7)]), sink, log, NOW, retention_ms=1_000, passed_ms=NOW - 5, timestamps=times)
    lost, vanished = telling.events
    assert (lost.first_timestamp_ms, lost.last_timestamp_ms, lost.passed_at_ms) == (NOW - 100, NOW - 90, NOW - 5)
    assert (lost.expires_at_ms, vanished.expires_at_ms) == (NOW + 900, None)


def test_duplicates_are_told_once_a_second_at_most_and_none_is_lost() -> None:
    telling, sink, log = Telling("orders", 0), SinkState(Policy("a")), log_of()
    for at, offset in ((0, 1), (1, 2), (DUPLICATES_EVERY_MS - 1, 3), (DUPLICATES_EVERY_MS, 4)):
        sink.untold_duplicates[0].add(offset, offset + 1)
        telling.duplicates(sink, log, NOW + at)
    assert [list(event.ranges.runs()) for event in telling.events] == [[(1, 2)], [(2, 5)]]


def test_what_is_doubled_twice_is_told_twice() -> None:
    telling, sink, log = Telling("orders", 0), SinkState(Policy("a")), log_of()
    sink.untold_duplicates[0].add(1, 4)
    sink.untold_duplicates[1].add(2, 3)
    telling.duplicates(sink, log, NOW)
    telling.duplicates(sink, log, NOW + DUPLICATES_EVERY_MS)
    assert [list(event.ranges.runs()) for event in telling.events] == [[(1, 4)], [(2, 3)]]
