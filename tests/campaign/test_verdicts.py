"""The judge of the campaign: each difference that it is there for is found, and what is lawful is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_app.core.ledger import Ledger
from stream_app.core.model import Absent, LogRead
from tests.campaign.oracles import as_it_found_them, disagree, with_received, with_written
from tests.campaign.verdicts import ABORTED, Span, compare, gaps_of, read_files, read_ledger, runs, show, where
from tests.support.dump_log import DumpedBatch, DumpError, parse

SAMPLE = [batch for batches in parse((Path(__file__).parent / "dump_log.txt").read_text()).values() for batch in batches]


def batch(base: int, last: int, producer: int = -1, marker: str | None = None, count: int | None = None) -> DumpedBatch:
    held = last - base + 1 if count is None else count
    return DumpedBatch(
        base, last, held, producer, 0, 0, producer >= 0, marker is not None, None, 0, 100, "none", tuple(range(base, base + held)),
        marker=None if marker == "bare" else marker,
    )  # fmt: skip


def test_files_say_what_each_offset_holds() -> None:
    files = read_files(SAMPLE)
    assert show(files.kinds) == "CCRRCRMCCMOO"
    assert show(files.of("read_uncommitted")) == "CCRRCRMCCMRR"
    assert files.end == 12


def test_a_transaction_is_decided_by_the_next_marker_of_its_producer() -> None:
    files = read_files([batch(0, 1, 1), batch(2, 2, 2), batch(3, 3, 1, "COMMIT"), batch(4, 4, 1), batch(5, 5, 1, "ABORT"), batch(6, 6, 2)])
    assert show(files.kinds) == "RROMAMO"
    assert show(files.of("read_uncommitted")) == "RRRMRMR"
    assert show(read_files([batch(0, 1, 1, count=0), batch(2, 2, 1, "bare", 0)]).kinds) == "CCB"
    with pytest.raises(DumpError, match="no marker any more"):
        read_files([batch(0, 1, 1), batch(2, 2, 1, "bare", 0)])


def test_a_ledger_says_one_thing_of_each_offset() -> None:
    ledger = Ledger.create("orders", 0, "1", topic_id=bytes(16), log_start=2, log_end=9, policies={})
    read = LogRead(
        2, 9, bytes(16), records=((4, 6),), absent={Absent.TRANSACTION_MARKER: ((6, 7),), Absent.ABORTED: ((7, 8),)}, holes=((8, 9),),
        unread=((2, 4),), log_start=4, high_watermark=9, last_stable=9,
    )  # fmt: skip
    assert ledger.fold_log(read, 1)
    assert show(read_ledger(ledger)) == "..UURRMAC"
    ledger.log.unread.add(4, 5)
    ledger.log.absent[Absent.ABORTED].add(4, 5)
    with pytest.raises(AssertionError, match="is said to be U and is RRA too"):
        read_ledger(ledger)


@pytest.mark.parametrize(
    ("said", "before", "after", "compacts", "differs", "loose"),
    [
        (b"RRMA", b"", b"RRMA", False, False, 0),
        (b"RRMR", b"", b"RRMA", False, True, 0),
        (b"RRRA", b"", b"RRMA", True, True, 0),
        (b"CR", b"", b"RR", True, True, 0),
        (b"CR", b"", b"CR", False, True, 0),
        (b"CRMA", b"", b"CCCC", True, False, 4),
        (b"HR", b"", b"CR", True, True, 1),
        (b"RCMC", b"RRMA", b"CCCC", True, False, 0),
        (b"A", b"R", b"C", True, True, 0),
        (b"R", b"C", b"C", True, True, 0),
        (b"MC", b"", b"BB", True, False, 0),
        (b"R", b"", b"B", True, True, 0),
        (b"R", b"", b"O", True, True, 0),
        (b"RA", b"OO", b"CC", True, False, 2),
        (b"MC", b"BB", b"CC", True, False, 0),
        (b"UR", b"", b"RR", False, True, 0),
        (b"RR", b"", b"R", False, True, 0),
    ],
)
def test_verdicts_are_compared(said: bytes, before: bytes, after: bytes, compacts: bool, differs: bool, loose: int) -> None:
    found = compare(said, before, after, Span(0, len(said), compacts))
    assert (bool(found.differences), found.loose) == (differs, loose)


@pytest.mark.parametrize(
    ("said", "removed", "differs"),
    [
        (b"RRUUUURR", (2, 2, 6), False),
        (b"RRRUUURR", (2, 2, 6), True),
        (b"RRRUUURR", (2, 3, 6), False),
        (b"RRRRRRRR", (2, 2, 6), True),
        (b"RRUUUUUR", (2, 2, 6), True),
        (b"RRUURURR", (2, 2, 6), True),
        (b"RRUUUURR", (2, 2, 2), True),
        (b"RRRRRRRR", (2, 2, 1), False),
        (b"RRRRRRRR", (2, 4, 3), False),
        (b"RRAUUURR", (2, 3, 6), True),
    ],
)
def test_what_was_removed_unread_is_unread_and_nothing_else(said: bytes, removed: tuple[int, int, int], differs: bool) -> None:
    assert bool(compare(said, b"", b"R" * 8, Span(2, 8, False, removed)).differences) == differs


def test_what_was_read_before_its_file_was_removed_is_judged_by_what_the_file_held() -> None:
    for said, differs in ((b"RMUUR", False), (b"RRUUR", True)):
        found = compare(said, b"RMR", b"CCCRR", Span(0, 5, False, (0, 3, 4)))
        assert bool(found.differences) == differs


def test_oracles_are_compared_with_each_other() -> None:
    assert disagree([1, 3, 9], b"CRCRM", 0, 5, False) == []
    assert disagree([1, 3], b"CRCRR", 0, 5, True) != []
    assert disagree([1, 2, 3], b"CRCRM", 0, 5, False) != []
    assert disagree([1, 2, 3], b"CRCRM", 0, 5, True) == []
    assert disagree([1, 3, 4], b"CRCRM", 0, 5, True) != []


def test_what_consumers_got_before_compaction_took_it_is_known() -> None:
    got = {"read_committed": [1], "read_uncommitted": [1, 2, 4]}
    assert show(with_received(b"CCCRC", "read_committed", got, 4)) == "CRARC"
    assert show(with_received(b"CCCRC", "read_uncommitted", got, 4)) == "CRRRC"


def test_what_was_written_since_the_files_were_read_is_known() -> None:
    written = {0: ord("A"), 1: ord("R"), 3: ord("R"), 4: ord("A"), 9: ord("R")}
    assert show(with_written(b"RO", "read_committed", written, 6)) == "RR?RA?"
    assert show(with_written(b"RR", "read_uncommitted", written, 6)) == "RR?RR?"


def test_what_compaction_took_after_the_product_read_it_and_before_the_files_were_read() -> None:
    """An idle producer's transaction times out: the product reads on, the cleaner goes on, and then the files are read."""
    read_before, said, gone = 4, b"RRARRR", b"RRCCRC"
    was = with_written(as_it_found_them(gone, 2, read_before), "read_committed", {2: ABORTED}, len(gone))
    assert show(was) == "RRA?RC"
    found = compare(said, was, gone, Span(2, len(said), compacts=True))
    assert found.differences == ["said R, files C then C: 1 offsets, [(5, 5)]"], "it stood below that when the files were read"
    assert found.loose == 1
    assert show(as_it_found_them(gone, 2, 99)) == "RR??R?"
    assert compare(b"RC?"[:2], b"RR", b"CC", Span(0, 2, True)).differences == []
    found = compare(b"RRCR", b"AR??", b"CCCC", Span(0, 4, True))
    assert (len(found.differences), found.loose) == (1, 2)


def test_gaps_are_as_a_user_sees_them() -> None:
    assert gaps_of(b"RRMARRRU" + b"R", {"not_received": {1, 4, 6, 8}, "expired": {0}}) == [
        (0, 0, 1, "expired"), (1, 4, 2, "not_received"), (6, 6, 1, "not_received"), (8, 8, 1, "not_received"),
    ]  # fmt: skip
    assert list(runs([1, 2, 4])) == [(1, 2), (4, 4)]
    assert list(where(b"RARA", ord("A"), 2)) == [3]
