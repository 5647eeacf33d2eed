"""Reports that were lost before they were read: what lacks then is unobserved, never missing."""

from __future__ import annotations

from stream_app.core.events import EventType
from stream_app.core.model import Look, Observation, ObservationRead, Reason
from tests.core.strategies import OTHER_ID, TOPIC_ID, Rig, expand, policy


def test_what_lacks_where_reports_were_lost_is_unobserved_and_told_as_that() -> None:
    rig = Rig()
    rig.read("record", 10, ahead=3)
    rig.observe((0, 2), (4, 5))
    rig.ledger.doubt(12)
    rig.read("record", 5)
    rig.observe((11, 12), (14, 15))
    rig.verdict()
    (explained, opened) = sorted(rig.flush(), key=lambda event: event.type)
    assert (explained.type, explained.reason, expand(explained.ranges)) == (
        EventType.GAP_EXPLAINED,
        "unobserved",
        {2, 3, *range(5, 11), 12},
    )
    assert (opened.type, opened.cause, expand(opened.ranges)) == (EventType.GAP_OPENED, "not_received", {13})


def test_a_report_that_comes_after_all_counts() -> None:
    rig = Rig()
    rig.read("record", 10)
    rig.observe((0, 1), (9, 10))
    rig.ledger.doubt(10)
    rig.verdict()
    rig.flush()
    rig.observe((3, 6))
    assert rig.types() == []
    assert (rig.sink().observed, expand(rig.sink().explained[Reason.UNOBSERVED])) == (5, {1, 2, 6, 7, 8})


def test_tombstones_and_what_was_compacted_need_no_report() -> None:
    rig = Rig({"s": policy(tombstones_optional=True)}, ever_compacted=True)
    rig.read("record", 6)
    rig.observe((0, 1), (5, 6))
    rig.ledger.doubt(6)
    rig.verdict(lambda due: Look(due.stop, 0, holes=((1, 2),), tombstones=((2, 3),), unreadable=((3, 4),)))
    assert {reason: expand(offsets) for reason, offsets in rig.sink().explained.items() if offsets} == {
        Reason.COMPACTED: {1}, Reason.TOMBSTONE: {2}, Reason.UNOBSERVED: {3, 4},
    }  # fmt: skip


def test_reports_of_about_a_re_creation_must_name_the_topic() -> None:
    rig = Rig()
    rig.recreate(OTHER_ID, observations_end=2)
    said = [Observation("s", ((0, 1),), topic_id=topic_id) for topic_id in (None, OTHER_ID, TOPIC_ID)]
    for offset, expected in ((1, [True, False, True]), (2, [False, False, True])):
        read = ObservationRead(offset, offset, 0, b"")
        assert [rig.ledger.of_another(read, each) for each in said] == expected
