from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pyroaring import BitMap

from stream_app.core.codec import encode_runs
from stream_app.core.model import CHUNK, Run
from stream_app.core.offsets import END, FULL_RUNS, OffsetSet, bitmap_runs, drop, take

BORDERS = (0, CHUNK, 2 * CHUNK, 2**32, 2**40, END - CHUNK)


def runs_of(offsets: Iterable[int]) -> list[Run]:
    """Maximal runs, the slow and obvious way."""
    out: list[Run] = []
    for offset in sorted(offsets):
        if out and out[-1][1] == offset:
            out[-1] = (out[-1][0], offset + 1)
        else:
            out.append((offset, offset + 1))
    return out


def assert_is(actual: OffsetSet, expected: set[int]) -> None:
    assert list(actual.runs()) == runs_of(expected)
    assert reloaded(actual.dump()) == actual
    assert actual.count == len(actual) == len(expected)
    assert bool(actual) == bool(expected)
    assert actual.first() == min(expected, default=None)
    assert actual.last() == max(expected, default=None)


def reloaded(stored: dict[int, bytes], seed: int = 0) -> OffsetSet:
    items = list(stored.items())
    random.Random(seed).shuffle(items)
    out = OffsetSet()
    for key, value in items:
        out.load(key, value)
    return out


def applied(stored: dict[int, bytes], changes: dict[int, bytes | None]) -> dict[int, bytes]:
    merged = {**stored, **changes}
    return {key: value for key, value in merged.items() if value is not None}


# --- named examples: one per overlap relation, inside one chunk, in whole chunks, and across borders ---

RELATIONS_ADD = [
    ("apart before", (0, 5), [(0, 5), (10, 20), (30, 40)]),
    ("touches the start", (5, 10), [(5, 20), (30, 40)]),
    ("overlaps the start", (5, 15), [(5, 20), (30, 40)]),
    ("equal", (10, 20), [(10, 20), (30, 40)]),
    ("inside", (12, 18), [(10, 20), (30, 40)]),
    ("covers", (5, 25), [(5, 25), (30, 40)]),
    ("overlaps the end", (15, 25), [(10, 25), (30, 40)]),
    ("touches the end", (20, 25), [(10, 25), (30, 40)]),
    ("fills the hole", (20, 30), [(10, 40)]),
    ("bridges", (15, 35), [(10, 40)]),
    ("between", (22, 28), [(10, 20), (22, 28), (30, 40)]),
    ("covers all", (0, 50), [(0, 50)]),
    ("apart behind", (45, 50), [(10, 20), (30, 40), (45, 50)]),
    ("empty", (25, 25), [(10, 20), (30, 40)]),
]
RELATIONS_REMOVE = [
    ("apart before", (0, 5), [(10, 20), (30, 40)]),
    ("touches the start", (5, 10), [(10, 20), (30, 40)]),
    ("overlaps the start", (5, 15), [(15, 20), (30, 40)]),
    ("equal", (10, 20), [(30, 40)]),
    ("inside", (12, 18), [(10, 12), (18, 20), (30, 40)]),
    ("covers", (5, 25), [(30, 40)]),
    ("overlaps the end", (15, 25), [(10, 15), (30, 40)]),
    ("the hole", (20, 30), [(10, 20), (30, 40)]),
    ("across the hole", (15, 35), [(10, 15), (35, 40)]),
    ("covers all", (0, 50), []),
    ("empty", (15, 15), [(10, 20), (30, 40)]),
]
SCALES: list[Callable[[int], int]] = [
    lambda point: point,
    lambda point: point * CHUNK,
    lambda point: point * CHUNK // 10,
    lambda point: 2**40 + point * (CHUNK // 10 + 1),
    lambda point: CHUNK - 25 + point,
]
SCALE_NAMES = ["in a chunk", "whole chunks", "tenths of chunks", "odd", "across a border"]


@pytest.mark.parametrize("scale", SCALES, ids=SCALE_NAMES)
@pytest.mark.parametrize(("added", "expected"), [row[1:] for row in RELATIONS_ADD], ids=[row[0] for row in RELATIONS_ADD])
def test_add(scale: Callable[[int], int], added: Run, expected: list[Run]) -> None:
    offsets = OffsetSet([(scale(10), scale(20)), (scale(30), scale(40))])
    offsets.add(scale(added[0]), scale(added[1]))
    assert list(offsets.runs()) == [(scale(first), scale(stop)) for first, stop in expected]


@pytest.mark.parametrize("scale", SCALES, ids=SCALE_NAMES)
@pytest.mark.parametrize(("removed", "expected"), [row[1:] for row in RELATIONS_REMOVE], ids=[row[0] for row in RELATIONS_REMOVE])
def test_remove(scale: Callable[[int], int], removed: Run, expected: list[Run]) -> None:
    offsets = OffsetSet([(scale(10), scale(20)), (scale(30), scale(40))])
    offsets.remove(scale(removed[0]), scale(removed[1]))
    assert list(offsets.runs()) == [(scale(first), scale(stop)) for first, stop in expected]


@pytest.mark.parametrize("scale", SCALES, ids=SCALE_NAMES)
def test_operators(scale: Callable[[int], int]) -> None:
    one = OffsetSet([(scale(10), scale(20)), (scale(30), scale(40))])
    two = OffsetSet([(scale(15), scale(35)), (scale(50), scale(55))])
    points = [(10, 40), (50, 55)], [(15, 20), (30, 35)], [(10, 15), (35, 40)], [(20, 30), (50, 55)]
    for actual, expected in zip((one | two, one & two, one - two, two - one), points, strict=True):
        assert list(actual.runs()) == [(scale(first), scale(stop)) for first, stop in expected]
    assert not one.isdisjoint(two)
    assert one.isdisjoint(two - one)
    assert (one - one) == OffsetSet()


@pytest.mark.parametrize("scale", SCALES, ids=SCALE_NAMES)
@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ((0, 5), [], [(0, 5)]),
        ((5, 10), [], [(5, 10)]),
        ((5, 15), [(10, 15)], [(5, 10)]),
        ((10, 20), [(10, 20)], []),
        ((12, 18), [(12, 18)], []),
        ((15, 15), [], []),
        ((5, 25), [(10, 20)], [(5, 10), (20, 25)]),
        ((15, 25), [(15, 20)], [(20, 25)]),
        ((20, 30), [], [(20, 30)]),
        ((15, 35), [(15, 20), (30, 35)], [(20, 30)]),
        ((0, 50), [(10, 20), (30, 40)], [(0, 10), (20, 30), (40, 50)]),
    ],
)
def test_windows(scale: Callable[[int], int], window: Run, inside: list[Run], outside: list[Run]) -> None:
    offsets = OffsetSet([(scale(10), scale(20)), (scale(30), scale(40))])
    first, stop = map(scale, window)
    expected = [(scale(start), scale(end)) for start, end in inside]
    assert list(offsets.runs(first, stop)) == expected
    assert offsets.within(first, stop) == OffsetSet(expected)
    assert offsets.count_within(first, stop) == sum(end - start for start, end in expected)
    assert list(offsets.missing_in(first, stop).runs()) == [(scale(start), scale(end)) for start, end in outside]


def test_constructor_takes_any_order_and_overlap() -> None:
    assert list(OffsetSet([(7, 9), (0, 3), (2, 5), (9, 12)]).runs()) == [(0, 5), (7, 12)]


def test_highest_offset() -> None:
    offsets = OffsetSet([(END - 1, END)])
    assert END - 1 in offsets
    assert END not in offsets
    assert -1 not in offsets
    assert (offsets.first(), offsets.last()) == (END - 1, END - 1)
    assert reloaded(offsets.dump()) == offsets


def test_whole_range_counts_what_len_cannot() -> None:
    offsets = OffsetSet([(0, END)])
    assert offsets
    assert offsets.count == END
    with pytest.raises(OverflowError):
        len(offsets)
    assert list(offsets.runs()) == [(0, END)]
    assert reloaded(offsets.dump()) == offsets


@pytest.mark.parametrize(("first", "stop"), [(-1, 5), (5, 4), (0, END + 1), (-5, -1)])
def test_what_is_no_range_is_refused(first: int, stop: int) -> None:
    offsets = OffsetSet([(0, 10)])
    calls = (offsets.add, offsets.remove, offsets.runs, offsets.within, offsets.count_within, offsets.missing_in)
    for call in calls:
        with pytest.raises(ValueError, match="not a range"):
            call(first, stop)
    with pytest.raises(ValueError, match="not a range"):
        OffsetSet([(first, stop)])
    assert list(offsets.runs()) == [(0, 10)]


def test_is_not_equal_to_other_things_and_has_no_hash() -> None:
    assert OffsetSet() != set()
    with pytest.raises(TypeError):
        hash(OffsetSet())


def test_repr_is_short() -> None:
    assert repr(OffsetSet([(0, 3)])) == "OffsetSet([0, 3); count=3)"
    many = OffsetSet((offset, offset + 1) for offset in range(0, 1000, 2))
    assert repr(many) == "OffsetSet([0, 1), [2, 3), [4, 5), [6, 7), [8, 9), ...; count=500)"


def test_copy_and_results_share_nothing() -> None:
    one, two = OffsetSet([(5, 9), (CHUNK, 3 * CHUNK)]), OffsetSet([(CHUNK - 5, CHUNK - 1)])
    long = OffsetSet([(0, 4 * CHUNK)])
    results = [one.copy(), one | two, two | one, one - two, one & one, one & long, long & one, one.within(0, END), OffsetSet()]
    results[-1].update(one)
    before = [list(result.runs()) for result in results]
    one.add(0, 10)
    one.remove(2 * CHUNK, END)
    two.remove(0, END)
    assert [list(result.runs()) for result in results] == before


def test_operations_with_itself() -> None:
    offsets = OffsetSet([(5, 9), (CHUNK, 3 * CHUNK)])
    offsets.update(offsets)
    assert list(offsets.runs()) == [(5, 9), (CHUNK, 3 * CHUNK)]
    offsets.difference_update(offsets)
    assert not offsets


# --- size ---


def test_long_runs_cost_nothing() -> None:
    long = OffsetSet([(0, 10**12)])
    empty = OffsetSet().size_bytes()
    # One run of full chunks and one partial chunk at the end.
    assert long.size_bytes() < empty + 500
    assert {key: len(value) for key, value in long.dump().items()} == {FULL_RUNS: 7, 10**12 // CHUNK: 16}
    assert long - long == OffsetSet()
    assert (long - OffsetSet([(10, 10**12 - 10)])).count == 20
    assert (long & long) == long
    assert (long | OffsetSet([(10**12, 2 * 10**12)])).size_bytes() < empty + 500
    assert long.missing_in(0, 10**12 + 7).count == 7
    assert long.within(17, 10**12 - 17).size_bytes() < empty + 1000
    assert long.count_within(17, 10**12 - 17) == 10**12 - 34
    assert not long.isdisjoint(OffsetSet([(5 * 10**11, 5 * 10**11 + 1)]))


def test_size_grows_with_exceptions_only() -> None:
    offsets = OffsetSet([(0, 10**12)])
    before = offsets.size_bytes()
    for index in range(100):
        offsets.remove(index * 10**9, index * 10**9 + 1)
    assert offsets.count == 10**12 - 100
    # A hole costs a run of full chunks and a partial chunk of at most 8 KiB.
    assert offsets.size_bytes() - before < 100 * 8_700
    assert all(len(value) < 250 for key, value in offsets.take_changes().items() if key != FULL_RUNS and value is not None)


def test_what_was_written_one_by_one_is_kept_as_runs_once_taken() -> None:
    offsets = OffsetSet()
    offsets.add_many(range(0, 10_000, 2))
    offsets.add_many(range(1, 10_000, 2))
    before = offsets.size_bytes()
    (value,) = offsets.take_changes().values()
    assert value is not None
    assert len(value) < 20
    assert offsets.size_bytes() < before - 8_000


def test_closing_holes_gives_the_space_back() -> None:
    offsets = OffsetSet([(0, 10**9)])
    before = offsets.size_bytes()
    for step in (offsets.remove, offsets.add):
        for index in range(50):
            step(index * 10**7, index * 10**7 + 3)
    assert offsets == OffsetSet([(0, 10**9)])
    assert offsets.size_bytes() == before


# --- bulk and bitmaps ---


@pytest.mark.parametrize("make", [list, tuple, lambda x: array("Q", x), lambda x: array("q", x)])
def test_add_many(make: Callable[[list[int]], array[int]]) -> None:
    values = [5, 4, 3, CHUNK, 2**40 + 1, 5, 2**32 - 1, 2**32, END - 1, *range(CHUNK * 7, CHUNK * 8), *range(CHUNK * 9, CHUNK * 10, 2)]
    offsets = OffsetSet([(0, 4)])
    offsets.add_many(make(values))
    offsets.add_many(make([]))
    assert_is(offsets, {0, 1, 2, 3, *values})


@pytest.mark.parametrize("values", [[1, -1], [END], [2**64], [1.5], ["1"], array("q", [-5]), array("Q", [END])])
def test_add_many_refuses_what_is_no_offset(values: list[int]) -> None:
    offsets = OffsetSet()
    with pytest.raises(ValueError, match="offset"):
        offsets.add_many(values)
    assert not offsets
    assert not offsets.dirty


@pytest.mark.parametrize("base", [0, 1, CHUNK - 1, CHUNK, 2**40 + 12_345, END - 2**32])
def test_bitmap_there_and_back(base: int) -> None:
    bitmap = BitMap([0, 1, 2, 65_535, 65_536, 65_538, 2**32 - 1])
    bitmap.add_range(10 * CHUNK + 7, 15 * CHUNK + 9)
    bitmap.update(range(20 * CHUNK, 22 * CHUNK, 2))
    offsets = OffsetSet.from_bitmap(base, bitmap)
    assert [run for value in bitmap_runs(bitmap) for run in [(base + value[0], base + value[1])]] == list(offsets.runs())
    assert offsets.count == len(bitmap)
    assert offsets.to_bitmap() == (base, bitmap)


def test_bitmap_edges() -> None:
    assert OffsetSet.from_bitmap(5, BitMap()) == OffsetSet()
    assert OffsetSet().to_bitmap() == (0, BitMap())
    assert OffsetSet([(7, 7 + 2**32)]).to_bitmap() == (7, BitMap(range(2**32)))
    with pytest.raises(ValueError, match="wider"):
        OffsetSet([(7, 8 + 2**32)]).to_bitmap()
    for base in (-1, END - 1):
        with pytest.raises(ValueError, match="not a range"):
            OffsetSet.from_bitmap(base, BitMap([0, 1]))


def test_bitmap_of_many_partial_chunks() -> None:
    values = [chunk * CHUNK + chunk % CHUNK for chunk in range(3000)]
    offsets = OffsetSet()
    offsets.add_many(values)
    assert offsets.to_bitmap() == (0, BitMap(values))


@settings(max_examples=100)
@given(st.integers(0, 2**41), st.lists(st.integers(0, 300) | st.integers(CHUNK - 9, CHUNK + 9) | st.integers(0, 2**32 - 1), max_size=60))
def test_bitmap_differential(base: int, values: list[int]) -> None:
    bitmap = BitMap(values)
    assert list(bitmap_runs(bitmap, base)) == runs_of({base + value for value in values})
    assert_is(OffsetSet.from_bitmap(base, bitmap), {base + value for value in values})


# --- persistence ---


def test_marks_name_what_changed() -> None:
    offsets = OffsetSet([(0, 3 * CHUNK), (4 * CHUNK, 4 * CHUNK + 5)])
    stored = applied({}, offsets.take_changes())
    assert stored == offsets.dump()
    assert set(stored) == {FULL_RUNS, 4}
    assert offsets.take_changes() == {}

    offsets.add(10, 20)
    offsets.remove(4 * CHUNK + 5, 4 * CHUNK + 9)
    assert offsets.take_changes() == {}
    offsets.remove(CHUNK + 5, CHUNK + 6)
    assert offsets.dirty is True
    assert set(offsets.take_changes()) == {FULL_RUNS, 1}
    offsets.add(CHUNK + 5, CHUNK + 6)
    assert offsets.take_changes() == {FULL_RUNS: offsets.dump()[FULL_RUNS], 1: None}
    offsets.remove(0, END)
    assert offsets.take_changes() == {FULL_RUNS: None, 4: None}


def test_results_are_new_sets_and_wholly_marked() -> None:
    one = OffsetSet([(0, 3 * CHUNK + 5)])
    two = OffsetSet([(CHUNK, CHUNK + 5), (9 * CHUNK, 9 * CHUNK + 5)])
    one.take_changes()
    two.take_changes()
    for result in (one | two, two | one, one & two, one - two, one.within(5, CHUNK), one.missing_in(5, 5 * CHUNK)):
        assert result.take_changes() == result.dump()
    one.add(5 * CHUNK, 6 * CHUNK)
    assert one.copy().take_changes() == one.take_changes()


def test_load_refuses_other_formats_and_damage() -> None:
    dumped = OffsetSet([(0, CHUNK), (3 * CHUNK, 3 * CHUNK + 9)]).dump()
    full, partial = dumped[FULL_RUNS], dumped[3]
    cases: list[tuple[int, bytes, str]] = [
        (FULL_RUNS, b"\x02" + full[1:], "format 2, but this version reads format 1"),
        (3, b"\x07" + partial[1:], "format 7, but this version reads format 1"),
        (3, b"", "format none"),
        (3, partial[:1], "bitmap"),
        (3, partial[:-1], "bitmap"),
        (FULL_RUNS, full[:-1], "cut short"),
        (FULL_RUNS, full + b"\x00", "follow"),
        (FULL_RUNS, b"\x01" + encode_runs([(0, 2**47 + 1)]), "out of bounds"),
        (-2, partial, "not a key"),
        (2**47, partial, "not a key"),
        (3, b"\x01" + BitMap().serialize(), "empty, full or not"),
        (3, b"\x01" + BitMap(range(CHUNK)).serialize(), "empty, full or not"),
        (3, b"\x01" + BitMap([5, CHUNK]).serialize(), "empty, full or not"),
    ]
    for key, value, message in cases:
        offsets = OffsetSet()
        with pytest.raises(ValueError, match=message):
            offsets.load(key, value)
        assert not offsets
    for order in ([(FULL_RUNS, full), (FULL_RUNS, full)], [(3, partial), (3, partial)], [(FULL_RUNS, full), (0, partial)]):
        for steps in (order, order[::-1]):
            offsets = OffsetSet()
            offsets.load(*steps[0])
            with pytest.raises(ValueError, match="loaded"):
                offsets.load(*steps[1])


# --- properties ---


@st.composite
def ranges(draw: st.DrawFn) -> Run:
    first = min(END, max(0, draw(st.sampled_from(BORDERS)) + draw(st.integers(-5, 5))))
    length = draw(st.sampled_from((0, 0, 0, CHUNK, 2 * CHUNK))) + draw(st.integers(-5, 9))
    return first, min(END, first + max(0, length))


def points() -> st.SearchStrategy[int]:
    return st.tuples(st.sampled_from(BORDERS), st.integers(-9, 9)).map(lambda pair: max(0, sum(pair)))


@settings(max_examples=30, deadline=None)
@given(st.lists(ranges(), max_size=4), st.integers(0, 2**32), st.integers(1, 4))
def test_any_cut_and_order_gives_the_same_set(runs: list[Run], seed: int, pieces: int) -> None:
    rng = random.Random(seed)
    whole = OffsetSet(runs)
    cut: list[Run] = []
    for first, stop in runs:
        inner = sorted(rng.randint(first, stop) for _ in range(pieces))
        cut += zip([first, *inner], [*inner, stop], strict=True)
    rng.shuffle(cut)
    assert OffsetSet(cut) == whole
    parts = OffsetSet()
    for run in cut:
        parts.update(OffsetSet([run]))
    assert parts == whole
    one_by_one = OffsetSet()
    members = [offset for run in cut for offset in range(*run)]
    rng.shuffle(members)
    one_by_one.add_many(members)
    assert one_by_one == whole
    assert reloaded(one_by_one.dump()) == reloaded(whole.dump()) == whole


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(CHUNK - 12, CHUNK + 12), max_size=30), st.booleans(), ranges())
def test_windows_differential(offsets: list[int], complement: bool, window: Run) -> None:
    plain, members = set(offsets), OffsetSet()
    members.add_many(offsets)
    if complement:
        plain = set(range(3 * CHUNK)) - plain
        members = OffsetSet([(0, 3 * CHUNK)]) - members
    wanted = set(range(*window))
    assert_is(members.within(*window), plain & wanted)
    assert_is(members.missing_in(*window), wanted - plain)
    assert list(members.runs(*window)) == runs_of(plain & wanted)
    assert members.count_within(*window) == len(plain & wanted)


def test_record_by_record_is_the_same_as_one_batch() -> None:
    runs = [(CHUNK - 300, CHUNK + 200), (CHUNK + 250, CHUNK + 251), (2 * CHUNK - 10, 2 * CHUNK + 10)]
    members = [offset for run in runs for offset in range(*run)]
    random.Random(7).shuffle(members)
    single = OffsetSet()
    for offset in members:
        single.add(offset, offset + 1)
    assert single == OffsetSet(runs)
    for offset in members:
        single.remove(offset, offset + 1)
    assert single == OffsetSet()


class AgainstPlainSets(RuleBasedStateMachine):
    """Two sets and what was stored of the first, beside plain sets of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = OffsetSet(), OffsetSet()
        self.plain_one, self.plain_two = set[int](), set[int]()
        self.stored: dict[int, bytes] = {}

    @rule(run=ranges())
    def add(self, run: Run) -> None:
        self.one.add(*run)
        self.plain_one |= set(range(*run))

    @rule(run=ranges())
    def remove(self, run: Run) -> None:
        self.one.remove(*run)
        self.plain_one -= set(range(*run))

    @rule(offsets=st.lists(points(), max_size=20))
    def add_many(self, offsets: list[int]) -> None:
        self.one.add_many(offsets)
        self.plain_one |= set(offsets)

    @rule()
    def swap(self) -> None:
        self.one, self.two, self.plain_one, self.plain_two = self.two, self.one, self.plain_two, self.plain_one
        # What is stored belongs to the first set.
        self.stored = self.one.dump()
        self.one.take_changes()

    @rule()
    def update(self) -> None:
        self.one.update(self.two)
        self.plain_one |= self.plain_two

    @rule()
    def difference_update(self) -> None:
        self.one.difference_update(self.two)
        self.plain_one -= self.plain_two

    @rule()
    def operators(self) -> None:
        assert_is(self.one | self.two, self.plain_one | self.plain_two)
        assert_is(self.one & self.two, self.plain_one & self.plain_two)
        assert_is(self.one - self.two, self.plain_one - self.plain_two)
        assert self.one.isdisjoint(self.two) == self.plain_one.isdisjoint(self.plain_two)
        assert (self.one == self.two) == (self.plain_one == self.plain_two)

    @rule(run=ranges())
    def windows(self, run: Run) -> None:
        window = set(range(*run))
        assert_is(self.one.within(*run), self.plain_one & window)
        assert_is(self.one.missing_in(*run), window - self.plain_one)
        assert list(self.one.runs(*run)) == runs_of(self.plain_one & window)
        assert self.one.count_within(*run) == len(self.plain_one & window)

    @rule(offset=points())
    def contains(self, offset: int) -> None:
        assert (offset in self.one) == (offset in self.plain_one)

    @rule()
    def flush(self) -> None:
        self.stored = applied(self.stored, self.one.take_changes())
        assert self.stored == self.one.dump()
        assert not self.one.dirty

    @rule(seed=st.integers(0, 9))
    def crash_and_recover(self, seed: int) -> None:
        self.flush()
        recovered = reloaded(self.stored, seed)
        assert recovered == self.one
        assert not recovered.dirty
        self.one = recovered

    @invariant()
    def same(self) -> None:
        assert_is(self.one, self.plain_one)


TestAgainstPlainSets = AgainstPlainSets.TestCase
TestAgainstPlainSets.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@given(st.sets(st.integers(0, 3 * CHUNK), max_size=40), st.sets(st.integers(0, 3 * CHUNK), max_size=40))
def test_take_and_drop(source: set[int], other: set[int]) -> None:
    offsets, known = OffsetSet(runs_of(source)), OffsetSet(runs_of(other))
    assert_is(take(offsets, known), source & other)
    assert_is(offsets, source - other)
    again = OffsetSet(runs_of(source))
    drop(again, known)
    assert_is(again, source - other)
    assert_is(known, other)
