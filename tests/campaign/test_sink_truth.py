from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.campaign.sink_notes import Book, Notes
from tests.campaign.sink_truth import Note, Said, amount, compare, read_notes


class Instance:
    """A book, and what can be read of it afterwards."""

    def __init__(self, path: Path, *, automatic: bool = False) -> None:
        self.path = path
        self.notes = Notes(path)
        self.book = Book(self.notes, automatic=automatic)

    def end(self) -> list[Note]:
        self.notes.write("end")
        return read_notes(self.path)

    def killed(self) -> list[Note]:
        return read_notes(self.path)


def counts(notes: list[Note], *others: list[Note]) -> tuple[dict[int, int], dict[int, int]]:
    truth = amount([notes, *others], 1, automatic=False)[0]
    return dict(truth.certain), dict(truth.doubtful)


def test_what_was_handed_out_and_asked_for_counts_once(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    one.book.took(0, [5, 6, 7, 9])
    one.book.took(0, [6, 7])
    one.book.answered(one.book.ask({0: 8}), ())
    assert counts(one.end()) == ({5: 1, 6: 1, 7: 1}, {})


def test_asked_for_again_counts_again(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    for offsets in ([0, 1, 2], [1, 2]):
        one.book.took(0, offsets)
        one.book.answered(one.book.ask(dict(one.book.stop)), ())
    assert counts(one.end()) == ({0: 1, 1: 2, 2: 2}, {})


def test_a_death_leaves_in_doubt_what_was_not_known_to_be_safe(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    for offset in range(4):
        one.book.took(0, [offset])
        number = one.book.ask({0: offset + 1})
        if offset < 3:
            one.book.answered(number, [0] if offset == 0 else ())
        if offset == 1:
            one.book.flushed(one.book.settled)
    one.book.took(0, [4])
    assert counts(one.killed()) == ({0: 1, 1: 1}, {2: 1, 3: 1})


def test_a_flush_says_nothing_of_what_is_under_way(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    one.book.took(0, [0])
    one.book.ask({0: 1})
    one.book.took(0, [1])
    one.book.answered(one.book.ask({0: 2}), ())
    one.book.flushed(one.book.settled)
    assert counts(one.killed()) == ({}, {0: 1, 1: 1})


def test_a_request_amid_a_rebalance_stays_in_doubt(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    one.book.took(0, [0])
    one.book.answered(one.book.ask({0: 1}), [0], doubt=True)
    assert counts(one.end()) == ({}, {0: 1})


def test_what_was_given_up_is_in_doubt_until_it_is_handed_out_again(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    one.book.took(0, [0, 1])
    one.book.revoked([0])
    assert (one.book.pending(), one.book.stop) == ({}, {})
    one.book.took(0, [1, 2])
    one.book.answered(one.book.ask({0: 3}), ())
    assert counts(one.end()) == ({1: 1, 2: 1}, {0: 1})


def test_under_auto_commit_coming_back_asks(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a", automatic=True)
    one.book.came_back()
    one.book.took(0, [0, 1])
    one.book.revoked([0])
    one.book.came_back()
    one.book.took(0, [2])
    assert counts(one.end()) == ({0: 1, 1: 1}, {})


def test_under_auto_commit_what_a_death_leaves_open_may_be_unknown(tmp_path: Path) -> None:
    one, after = Instance(tmp_path / "a", automatic=True), Instance(tmp_path / "b", automatic=True)
    one.book.assigned([0])
    one.book.took(0, [0, 1])
    one.book.came_back()
    one.book.flushed(one.book.settled)
    one.book.took(0, [3, 4])
    after.book.assigned([0])
    after.book.took(0, [6])
    truth = amount([one.killed(), after.end()], 1, automatic=True)[0]
    assert truth.unknown == {2, 3, 4, 5}
    assert amount([one.killed()], 1, automatic=True)[0].unknown == set()
    assert amount([one.killed(), after.end()], 1, automatic=False)[0].unknown == set()


def test_under_auto_commit_the_next_owner_may_ask_before_the_last_one_said_that_there_is_no_more(tmp_path: Path) -> None:
    one, after = Instance(tmp_path / "a", automatic=True), Instance(tmp_path / "b", automatic=True)
    one.book.assigned([0])
    one.book.took(0, [0, 1])
    one.book.came_back()
    one.book.revoked([0])
    after.book.took(0, [4])
    one.book.flushed(one.book.settled)
    assert amount([one.end(), after.end()], 1, automatic=True)[0].unknown == {2, 3}


def test_the_comparison_names_what_differs(tmp_path: Path) -> None:
    one = Instance(tmp_path / "a")
    one.book.took(0, [0, 1, 2, 4])
    one.book.answered(one.book.ask({0: 5}), ())
    truth, ends = amount([one.end()], 1, automatic=False), {0: 6}
    right = compare(truth, {0: Said(Counter([0, 1, 2, 4]))}, ends)
    assert (right.differences, right.missing, right.duplicates, right.loose) == ([], 2, 0, 0)
    lost = compare(truth, {0: Said(Counter([0, 1, 4]))}, ends)
    assert lost.differences == ["partition 0: asked for 1 to 1 times, told 0 times: 1 offsets, [(2, 2)]"]
    invented = compare(truth, {0: Said(Counter([0, 1, 1, 2, 3, 4, 6]))}, ends)
    assert invented.differences == [
        "partition 0: asked for 1 to 1 times, told 2 times: 1 offsets, [(1, 1)]",
        "partition 0: asked for 0 to 0 times, told 1 times: 1 offsets, [(3, 3)]",
        "partition 0: told beyond the end: 1 offsets, [(6, 6)]",
    ]
    excused = compare(truth, {0: Said(Counter([0, 1, 2, 4]), {3})}, ends)
    assert excused.differences == ["partition 0: told as unobserved, and known: 1 offsets, [(3, 3)]"]
