from __future__ import annotations

from dataclasses import replace

import pytest

from stream_app.core import report
from stream_app.core.codec import topic_id_text
from stream_app.core.ledger import LOG_SINK
from stream_app.core.model import Gap, Listed, Look, Row, Status, Timed
from stream_app.core.offsets import OffsetSet
from tests.core.strategies import BASE, GRACE, OTHER_ID, TOPIC_ID, Rig, everything_there, policy


def row(rig: Rig, name: str = "s") -> Row:
    """A sink's row as of a flush."""
    rig.flush()
    return next(each for each in report.rows(rig.ledger, rig.now) if each.sink == name)


def listed(rig: Rig, name: str = "s") -> list[tuple[int, int, int, str]]:
    return [(gap.first, gap.stop, gap.count, gap.cause) for gap in report.gaps(rig.ledger, rig.sink(name))]


# --- rows ---


def test_there_is_a_row_for_the_log_and_one_for_each_sink() -> None:
    rig = Rig({name: policy(name) for name in ("b", "a")})
    rig.read("record")
    rig.observe((0, 1), sink="stranger")
    rows = report.rows(rig.ledger, rig.now)
    assert [(each.sink, each.configured) for each in rows] == [("log", True), ("a", True), ("b", True), ("stranger", False)]
    assert {(each.topic, each.partition, each.updated_at_ms) for each in rows} == {("t", 0, rig.now)}


def test_what_is_not_known_of_a_sink_is_null() -> None:
    rig = Rig({"s": policy(floor=None)})
    rig.read("record", 10)
    said = row(rig)
    assert (said.heard, said.reason) == (False, "never heard of in this partition")
    unknown = (said.floor_offset, said.horizon_offset, said.observed, said.missing, said.gaps, said.duplicates, said.lag)
    assert unknown == (None,) * 7
    assert (said.complete_bound_ms, said.complete_known, said.oldest_gap_opened_at_ms, said.expires_at_ms) == (None, False, None, None)
    assert (said.records, said.log_read_offset) == (10, 10)


def test_a_row_counts_records_and_nothing_else() -> None:
    rig = Rig({"s": policy(tombstones_optional=True)}, ever_compacted=True)
    rig.read([*["record"] * 10, "transaction_marker", "aborted", "aborted", "hole", *["record"] * 6], ahead=4, last_stable=22)
    rig.observe((0, 4), (12, 16), source="a", sequence=1)
    rig.observe((0, 2), source="a", sequence=2)
    rig.observe((4, 5), status=Status.QUARANTINED, reason="bad")
    rig.verdict(lambda due: Look(due.stop, 6, tombstones=((7, 8),)))
    said = row(rig)
    assert (said.log_start_offset, said.log_read_offset, said.log_end_offset) == (0, 20, 22), "up to the last stable offset"
    assert (said.floor_offset, said.horizon_offset, said.records) == (0, 16, 16)
    assert (said.observed, said.duplicates, said.lag) == (6, 2, 4 + 2)
    assert (said.missing, said.missing_by_cause, said.gaps) == (4, {"expired": 1, "not_received": 3}, 3)
    assert said.absent == {"transaction_marker": 1, "aborted": 2, "compacted": 1}
    assert said.explained == {"quarantined": 1, "tombstone": 1}
    assert said.sequence == rig.sink().sequence == 4
    assert (said.stalled, said.catching_up) == (False, True)
    assert said.oldest_gap_opened_at_ms == said.checked_at_ms == BASE + GRACE
    assert said.incarnation == "AAECAwQFBgcICQoLDA0ODw"


def test_a_row_lists_what_the_gaps_leave_open() -> None:
    rig = Rig({"s": policy()}, ever_compacted=True)
    rig.read(["record"] * 4 + ["hole"] + ["record"] * 5 + ["unread"] * 3 + ["record"] * 7)
    rig.observe((0, 3), (8, 9), (15, 16))
    rows = {row.sink: row for row in report.rows(rig.ledger, rig.now)}
    assert (rows["s"].settled_offset, rows["s"].received) == (None, Listed([(0, 3), (8, 9), (15, 16)]))
    assert (rows["s"].unread, rows["s"].compacted, rows["s"].ever_compacted) == (Listed([(10, 13)]), Listed(), None)
    log = rows[LOG_SINK]
    assert (log.settled_offset, log.received, log.unread, log.compacted) == (20, Listed(), Listed([(10, 13)]), Listed([(4, 5)]))
    assert log.ever_compacted is True
    rig.verdict()
    row = next(row for row in report.rows(rig.ledger, rig.now) if row.sink == "s")
    assert (row.settled_offset, row.received) == (16, Listed())
    many = 2 * report.LISTED_MAX
    rig.read("record", 4 * many)
    rig.observe(*((offset, offset + 1) for offset in range(20, 20 + 2 * many, 2)))
    row = next(row for row in report.rows(rig.ledger, rig.now) if row.sink == "s")
    assert row.received == Listed([(20 + 2 * n, 21 + 2 * n) for n in range(report.LISTED_MAX)], 20 + 2 * report.LISTED_MAX)


def test_the_end_that_events_tell_is_that_of_the_row() -> None:
    rig = Rig({"s": policy()})
    rig.read("record", 10, ahead=9, last_stable=12)
    rig.observe((0, 3), (5, 10))
    rig.verdict()
    assert [event.log_end for event in rig.flush()] == [12] == [row(rig).log_end_offset]


def test_the_row_of_the_log_tells_of_the_log() -> None:
    rig = Rig(ever_compacted=False)
    rig.read([*["record"] * 3, "hole", "aborted", "hole", "record", "unreadable"], ahead=2)
    said = row(rig, LOG_SINK)
    assert (said.heard, said.floor_offset, said.horizon_offset, said.records, said.observed) == (True, 0, 8, 5, 5)
    assert (said.missing, said.missing_by_cause, said.gaps, said.lag, said.duplicates) == (2, {"log_hole": 2}, 1, 2, 0)
    assert listed(rig, LOG_SINK) == [(3, 6, 2, "log_hole")]


def test_a_reader_that_is_behind_is_catching_up() -> None:
    rig = Rig()
    assert row(rig).catching_up
    rig.read("record", ahead=1)
    assert row(rig).catching_up
    rig.read("record")
    assert not row(rig).catching_up
    rig.read([], high_watermark=9, last_stable=2)
    assert not row(rig).catching_up


def test_a_row_names_its_incarnation() -> None:
    rig = Rig()
    assert row(rig).incarnation == topic_id_text(TOPIC_ID)
    rig.recreate(OTHER_ID)
    assert row(rig).incarnation == "AQIDBAUGBwgJCgsMDQ4PEA"


# --- gaps ---


def test_offsets_without_a_record_do_not_split_a_gap_and_are_not_counted() -> None:
    rig = Rig()
    rig.read(["record", "record", "aborted", "transaction_marker", "record", "record", "record", "aborted", "record"])
    rig.observe((5, 6), (8, 9))
    rig.verdict()
    assert listed(rig) == [(0, 5, 3, "not_received"), (6, 7, 1, "not_received")]
    assert row(rig).gaps == 2


def test_an_explained_offset_splits_a_gap() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.observe((4, 5), status=Status.UNOBSERVED)
    rig.verdict()
    assert listed(rig) == [(0, 4, 4, "not_received"), (5, 9, 4, "not_received")]


def test_two_causes_side_by_side_are_two_gaps() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.verdict(lambda due: Look(due.stop, 3, unreadable=((5, 7),)))
    assert listed(rig) == [(0, 3, 3, "expired"), (3, 5, 2, "not_received"), (5, 7, 2, "unreadable"), (7, 9, 2, "not_received")]
    rig.read([], start=5)
    assert listed(rig) == [(0, 5, 5, "expired"), (5, 7, 2, "unreadable"), (7, 9, 2, "not_received")]
    assert row(rig).gaps == 3


def test_a_gap_says_since_when_and_until_when_it_can_be_replayed() -> None:
    rig = Rig()
    rig.ledger.retention_ms = 7_000
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.verdict(lambda due: Look(due.stop, 2, timestamps={2: BASE + 5, 8: BASE + 9}))
    expired, waiting = report.gaps(rig.ledger, rig.sink())
    opened = BASE + GRACE
    assert expired == Gap(first=0, stop=2, count=2, cause="expired", opened_at_ms=opened, sequence=expired.sequence)
    assert waiting == Gap(
        first=2,
        stop=9,
        count=7,
        cause="not_received",
        opened_at_ms=opened,
        first_timestamp_ms=BASE + 5,
        last_timestamp_ms=BASE + 9,
        expires_at_ms=BASE + 7_005,
        sequence=waiting.sequence,
    )
    assert {expired.sequence, waiting.sequence} == {1, 2}
    assert row(rig).expires_at_ms == BASE + 7_005
    rig.observe((2, 4))
    (_, left) = report.gaps(rig.ledger, rig.sink())
    assert (left.first_timestamp_ms, left.last_timestamp_ms, left.expires_at_ms, left.opened_at_ms) == (None, BASE + 9, None, opened)
    assert row(rig).expires_at_ms == BASE + 7_000  # of the records known, none is older


def test_nothing_to_replay_never_expires() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((1, 10))
    rig.verdict()
    assert row(rig).expires_at_ms is None  # retention is not known
    rig.ledger.retention_ms = 7_000
    assert row(rig).expires_at_ms == BASE + 7_000
    rig.read([], start=1)
    assert row(rig).expires_at_ms is None


def test_a_gap_belongs_to_the_opening_of_its_cause_then_to_the_earliest() -> None:
    rig = Rig()
    rig.read("record", 30)
    rig.observe((5, 10), (12, 30))
    rig.verdict()
    first = rig.now
    rig.wait(1_000)
    rig.ledger.vanish("s", OffsetSet([(5, 10)]), rig.now)
    rig.wait(1_000)
    rig.ledger.vanish("s", OffsetSet([(20, 22)]), rig.now)
    gaps = report.gaps(rig.ledger, rig.sink())
    assert [(gap.first, gap.opened_at_ms, gap.sequence) for gap in gaps] == [
        (0, first, 1),
        (5, first + 1_000, 2),
        (10, first, 1),
        (20, first + 2_000, 3),
    ]
    rig.read([], start=11)
    assert [(gap.first, gap.cause, gap.opened_at_ms) for gap in report.gaps(rig.ledger, rig.sink())] == [
        (0, "expired", first),
        (5, "vanished", first + 1_000),
        (10, "expired", first),
        (11, "not_received", first),
        (20, "vanished", first + 2_000),
    ]


def test_a_gap_of_a_sink_that_nobody_is_told_of_has_no_event() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((9, 10), sink="stranger")
    rig.observe((0, 1), sink="stranger")
    rig.verdict()
    (gap,) = report.gaps(rig.ledger, rig.sink("stranger"))
    assert (gap.first, gap.stop, gap.sequence, gap.opened_at_ms) == (1, 9, None, rig.now)


def test_what_is_explained_is_listed_by_reason() -> None:
    rig = Rig(ever_compacted=True)
    rig.read("record", 10)
    rig.observe((9, 10))
    rig.observe((2, 4), status=Status.QUARANTINED, reason="bad")
    rig.observe((6, 7), status=Status.UNOBSERVED)
    rig.verdict(lambda due: Look(due.stop, 0, holes=((4, 5),)))
    rig.observe((0, 1), status=Status.ACKNOWLEDGED, reason="known", by="me")
    assert [(gap.first, gap.stop, gap.count, gap.cause, gap.open) for gap in report.explained_gaps(rig.ledger, rig.sink())] == [
        (0, 1, 1, "acknowledged", False),
        (2, 4, 2, "quarantined", False),
        (4, 5, 1, "compacted", False),
        (6, 7, 1, "unobserved", False),
    ]


# --- complete through ---


def test_the_bound_of_complete_through_is_null_when_only_the_end_of_the_log_holds_it() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 10))
    said = row(rig)
    assert (said.complete_bound_ms, said.complete_known, said.end_read_ms) == (None, True, BASE)


@pytest.mark.parametrize("lateness", [0, 40])
def test_the_bound_of_complete_through_stops_before_what_is_missing(lateness: int) -> None:
    rig = Rig()
    rig.ledger.lateness_ms = lateness
    for _ in range(3):
        rig.now += 100
        rig.read("record", 10)
    rig.observe((0, 12), (15, 30))
    rig.verdict()
    said = row(rig)
    assert (said.complete_bound_ms, said.complete_known, said.lateness_ms) == (BASE - 1 - lateness, True, lateness)
    assert said.missing == 3


def test_complete_through_of_a_gap_whose_times_the_look_found_is_exact() -> None:
    rig = Rig()
    for _ in range(3):
        rig.now += 100
        rig.read("record", 10)
    rig.observe((0, 12), (15, 30))
    rig.verdict(lambda due: Look(due.stop, 0, timestamps={12: BASE + 200, 14: BASE + 200}))
    assert row(rig).complete_bound_ms == BASE + 199


def test_complete_through_stops_before_what_is_missing_though_the_look_told_only_later_times() -> None:
    rig = Rig()
    for _ in range(3):
        rig.now += 100
        rig.read("record", 10)
    rig.observe((0, 2), (28, 30))
    rig.wait()
    (step,) = rig.ledger.candidates()
    rig.observe((2, 5))  # the run that was asked for begins later now, and its first time is not known
    rig.observe((7, 25))
    rig.ledger.settle(step, Look(step.stop, 0, unreadable=((5, 6),), timestamps={2: BASE + 100, 27: BASE + 300}), rig.now)
    assert row(rig).complete_bound_ms == BASE + 99
    assert {gap.first: gap.first_timestamp_ms for gap in report.gaps(rig.ledger, rig.sink())} == {5: None, 6: None, 25: None}
    rig.observe((5, 7))
    assert row(rig).complete_bound_ms == BASE + 299


def test_complete_through_never_falls_below_what_was_said() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 10))
    rig.wait(5_000)
    rig.read([])
    assert row(rig).complete_bound_ms is None
    assert rig.sink().complete_ms == BASE + 5_000
    rig.ledger.lateness_ms = 60_000  # another configuration
    rig.now -= 3_000  # a clock that was set back
    rig.read([])
    assert row(rig).complete_bound_ms is None
    assert rig.sink().complete_ms == BASE + 5_000
    rig.ledger.vanish("s", OffsetSet([(3, 4)]), rig.now)
    assert row(rig).complete_bound_ms == BASE + 5_000


def test_complete_through_never_falls_while_a_sink_falls_behind() -> None:
    rig = Rig()
    bounds = []
    for second in range(20):
        rig.now = BASE + 1_000 * second
        rig.read("record", 10)
        if second < 5 or second > 15:
            rig.observe((0, 10 * second + 10))
        rig.flush()
        bounds.append(rig.sink().complete_ms)
    seconds = [None if ms is None else (ms + 1 - BASE) // 1_000 for ms in bounds]
    assert seconds == [*range(5), *[5] * 11, *range(16, 20)]
    assert bounds == sorted(ms for ms in bounds if ms is not None)


# --- what lies beside a gap ---


def neighbours(rig: Rig, name: str = "s") -> dict[int, tuple[int | None, int | None, int | None, int | None]]:
    """By first offset: the minute, the time before, the next offset and its time."""
    sink = rig.sink(name)
    gaps = report.gaps(rig.ledger, sink) + report.explained_gaps(rig.ledger, sink)
    report.note_neighbours(rig.ledger, sink, gaps)
    return {gap.first: (gap.minute, gap.before_timestamp_ms, gap.next_offset, gap.next_timestamp_ms) for gap in gaps}


def test_a_gap_knows_its_minute_and_the_records_beside_it() -> None:
    rig, minute = Rig(), BASE // 60_000
    rig.read("record", 20, minutes=(Timed(0, minute - 1, 0, 0), Timed(10, minute, 0, 0)))
    rig.observe((0, 3), (5, 12), (13, 20))
    rig.verdict(lambda due: replace(everything_there(due), beside={2: BASE + 2, 5: BASE + 5, 11: BASE + 11, 13: BASE + 13}))
    rig.flush()
    assert neighbours(rig) == {3: (minute - 1, BASE + 2, 5, BASE + 5), 12: (minute, BASE + 11, 13, BASE + 13)}
    rig.observe((3, 4))
    rig.flush()
    assert neighbours(rig)[4] == (minute - 1, BASE, 5, BASE + 5), "it was looked at when it was missing"


def test_of_a_gap_without_a_minute_the_records_own_time_tells_it() -> None:
    rig = Rig()
    rig.read("record", 5)
    rig.observe((0, 2), (3, 5))
    rig.verdict()
    assert neighbours(rig)[2][0] == BASE // 60_000
    rig.ledger.vanish("s", OffsetSet([(0, 1)]), rig.now)
    assert neighbours(rig)[0][0] is None


def test_the_next_record_is_the_next_that_the_sink_has() -> None:
    """Behind a gap lie a marker, a tombstone, another gap, and only then something received; behind the last one nothing."""
    rig = Rig({"s": policy(tombstones_optional=True)})
    rig.read(["record"] * 3 + ["transaction_marker"] + ["record"] * 16)
    rig.observe((0, 2), (7, 10), (12, 14), claim=18)
    rig.verdict(lambda due: replace(everything_there(due), tombstones=((4, 5),), unreadable=((5, 7),)))
    assert {first: found[2] for first, found in neighbours(rig).items()} == {2: 7, 4: 7, 5: 7, 10: 12, 14: None}
    rig.observe((18, 20))
    assert neighbours(rig)[14][2] == 18, "received, though not judged yet"


def test_an_aborted_record_is_no_neighbour() -> None:
    rig = Rig()
    rig.read(["record", "aborted", "record", "record"])
    rig.observe((0, 1), (3, 4))
    rig.verdict(lambda due: replace(everything_there(due), beside={1: BASE, 3: BASE + 3}))
    assert neighbours(rig)[2][1:] == (None, 3, BASE + 3)


def test_what_was_acknowledged_keeps_its_neighbours_times() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 4), (6, 10))
    rig.verdict(lambda due: replace(everything_there(due), beside={3: BASE + 3, 6: BASE + 6}))
    rig.observe((4, 6), status=Status.ACKNOWLEDGED, reason="known", by="me")
    rig.flush()
    assert neighbours(rig)[4][1:] == (BASE + 3, 6, BASE + 6)
