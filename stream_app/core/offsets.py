"""Exact sets of offsets, small where a log is dense: long runs and few exceptions."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

from pyroaring import BitMap

from stream_app.core.codec import decode_bitmap, decode_runs, encode_runs
from stream_app.core.model import CHUNK, Run
from stream_app.core.runlist import RunList

END = 2**63
"""One past the highest offset."""
FULL_RUNS = -1
"""The persistence key of the runs of full chunks."""

_BITS = 16
_LOW = CHUNK - 1
_VERSION = 1
_BITMAP_SPAN = 2**32
"""Roaring holds unsigned 32-bit integers."""
_RUN_BYTES = 2 * (8 + 32)
"""Memory of one run: two list slots, two integers (CPython, 64 bit)."""
_PARTIAL_BYTES = 250
"""Memory of one partial chunk beside its container: dict and list slots, integer, bitmap objects (CPython, measured)."""


def bitmap_runs(bitmap: BitMap, base: int = 0) -> Iterator[Run]:
    """The maximal runs of a bitmap, ascending and half-open, each offset moved up by ``base``."""
    if not bitmap:
        return iter(())
    low, high = bitmap.min(), bitmap.max()
    if high - low + 1 == len(bitmap):
        return iter(((base + low, base + high + 1),))
    starts = bitmap - bitmap.shift(1)
    ends = bitmap - bitmap.shift(-1)
    stop = base + 1
    return ((base + first, stop + last) for first, last in zip(starts.to_array(), ends.to_array(), strict=True))


def _check_range(first: int, stop: int) -> None:
    if not 0 <= first <= stop <= END:
        raise ValueError(f"[{first}, {stop}) is not a range of offsets")


def _change(first: int, stop: int, whole: Callable[[int, int], None], part: Callable[[int, int, int], None]) -> None:
    """Has ``whole`` change the chunks that lie in ``[first, stop)``, and ``part`` the rest of it: at most a chunk at either end."""
    _check_range(first, stop)
    low, high = first >> _BITS, stop >> _BITS
    if low == high:
        if first < stop:
            part(low, first & _LOW, stop & _LOW)
        return
    if first & _LOW:
        part(low, first & _LOW, CHUNK)
        low += 1
    if low < high:
        whole(low, high)
    if stop & _LOW:
        part(high, 0, stop & _LOW)


class OffsetSet:
    """A mutable, exact set of offsets (0 to 2**63 - 1).

    Invariant: a chunk of 65,536 offsets that is wholly in the set has its number in ``_full``, a list of runs. A chunk
    that is in the set in part is in ``_partial`` as a bitmap of low 16 bits, never empty and never full, and its number
    stands in ``_keys``, ascending. So equal sets have equal parts. ``_count`` is the number of offsets.

    A run of any length costs two integers; an operation costs O(log n) in the number of runs and partial chunks it does
    not touch (beside a memory move of the lists).

    Changes are marked by persistence key: applying ``take_changes`` to what was stored before makes it equal to ``dump``.
    What a new set holds is marked, whether given or computed; ``copy`` copies the marks; ``load`` marks nothing.

    ``bool`` tells whether the set has offsets, ``count`` how many; ``len`` is the same but can't exceed ``sys.maxsize``.
    """

    __hash__ = None  # type: ignore[assignment]  # mutable; typeshed declares __hash__ as a method
    __slots__ = ("_changed", "_count", "_full", "_keys", "_partial")

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        """A set of the offsets in ``runs``: half-open, in any order, overlapping or not."""
        self._full = RunList()
        self._keys: list[int] = []
        self._partial: dict[int, BitMap] = {}
        self._count = 0
        self._changed: set[int] = set()
        for first, stop in runs:
            self.add(first, stop)

    @classmethod
    def from_bitmap(cls, base: int, bitmap: BitMap) -> OffsetSet:
        """The offsets ``base + value`` for each value of ``bitmap``; ``ValueError`` if one is no offset."""
        out = cls()
        if bitmap:
            _check_range(base, base + bitmap.max() + 1)
            out._add_bitmap(base, bitmap)
        return out

    def copy(self) -> OffsetSet:
        """An independent copy, marks included."""
        out = OffsetSet()
        out._full = self._full.copy()
        out._keys = self._keys.copy()
        out._partial = {chunk: bitmap.copy() for chunk, bitmap in self._partial.items()}
        out._count = self._count
        out._changed = self._changed.copy()
        return out

    # --- asking ---

    @property
    def count(self) -> int:
        """Number of offsets."""
        return self._count

    def __len__(self) -> int:
        """Number of offsets; ``OverflowError`` above ``sys.maxsize``, where ``count`` still answers."""
        return self._count

    def __bool__(self) -> bool:
        """Whether the set has offsets."""
        return self._count > 0

    def __contains__(self, offset: int) -> bool:
        """Whether ``offset`` is in the set."""
        chunk = offset >> _BITS
        bitmap = self._partial.get(chunk)
        return chunk in self._full if bitmap is None else offset & _LOW in bitmap

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same offsets; marks don't count."""
        if not isinstance(other, OffsetSet):
            return NotImplemented
        return self._count == other._count and self._full == other._full and self._partial == other._partial

    def __repr__(self) -> str:
        """The first runs, and how many offsets in all."""
        shown: list[str] = []
        for first, stop in self.runs():
            if len(shown) == 5:
                shown.append("...")
                break
            shown.append(f"[{first}, {stop})")
        return f"OffsetSet({', '.join(shown)}; count={self._count})"

    def first(self) -> int | None:
        """The lowest offset, None if the set is empty."""
        starts = self._full.starts
        if self._keys and (not starts or self._keys[0] < starts[0]):
            chunk = self._keys[0]
            return (chunk << _BITS) + self._partial[chunk].min()
        return starts[0] << _BITS if starts else None

    def last(self) -> int | None:
        """The highest offset, None if the set is empty."""
        stops = self._full.stops
        if self._keys and (not stops or self._keys[-1] >= stops[-1]):
            chunk = self._keys[-1]
            return (chunk << _BITS) + self._partial[chunk].max()
        return (stops[-1] << _BITS) - 1 if stops else None

    def runs(self, first: int = 0, stop: int = END) -> Iterator[Run]:
        """The maximal runs within ``[first, stop)``, ascending; the set must not change meanwhile."""
        _check_range(first, stop)
        return self._joined(first, stop)

    def count_within(self, first: int, stop: int) -> int:
        """Number of offsets in ``[first, stop)``."""
        _check_range(first, stop)
        total = 0
        for start, end, bitmap in self._pieces(first, stop):
            low, high = max(first, start << _BITS), min(stop, end << _BITS)
            if bitmap is None:
                total += high - low
            elif high - low == CHUNK:
                total += len(bitmap)
            else:
                total += bitmap.range_cardinality(low - (start << _BITS), high - (start << _BITS))
        return total

    def within(self, first: int, stop: int) -> OffsetSet:
        """A new set: the offsets in ``[first, stop)``."""
        _check_range(first, stop)
        out = OffsetSet()
        for start, end, bitmap in self._pieces(first, stop):
            if bitmap is None:
                out._fill(start, end)
            else:
                out._insert(start, bitmap.copy())
        # Only the outermost chunks can reach beyond the range.
        out.remove(0, first)
        out.remove(stop, END)
        return out._all_marked()

    def missing_in(self, first: int, stop: int) -> OffsetSet:
        """A new set: the offsets of ``[first, stop)`` that are not in this one."""
        out = OffsetSet(((first, stop),))
        out.difference_update(self)
        return out._all_marked()

    def isdisjoint(self, other: OffsetSet) -> bool:
        """Whether the sets have no offset in common."""
        if next(self._full.common(other._full), None) is not None:
            return False
        for one, two in ((self, other), (other, self)):
            for chunk in one._keys_from(two):
                bitmap = two._partial.get(chunk)
                if chunk in two._full if bitmap is None else bitmap.intersect(one._partial[chunk]):
                    return False
        return True

    def to_bitmap(self) -> tuple[int, BitMap]:
        """The set as a base, which is its first offset (0 if empty), and a bitmap of distances from it.

        ``ValueError`` when first and last are 2**32 or more apart.
        """
        base, last = self.first(), self.last()
        if base is None or last is None:
            return 0, BitMap()
        if last - base >= _BITMAP_SPAN:
            raise ValueError(f"[{base}, {last + 1}) is wider than a bitmap of 32 bits")
        parts = [bitmap.shift((chunk << _BITS) - base) for chunk, bitmap in self._partial.items()]
        # Pairwise: a union walks all containers of its left side, so one after the other would be quadratic.
        while len(parts) > 1:
            parts = [BitMap.union(*parts[index : index + 2]) for index in range(0, len(parts), 2)]
        out = parts[0] if parts else BitMap()
        for start, stop in self._full:
            out.add_range((start << _BITS) - base, (stop << _BITS) - base)
        return base, out

    def size_bytes(self) -> int:
        """Memory held, roughly."""
        bitmaps = sum(sys.getsizeof(bitmap) for bitmap in self._partial.values())
        return sys.getsizeof(self) + len(self._full) * _RUN_BYTES + len(self._keys) * _PARTIAL_BYTES + bitmaps

    # --- changing ---

    def add(self, first: int, stop: int) -> None:
        """Adds ``[first, stop)``; ``ValueError`` unless 0 <= first <= stop <= 2**63."""
        _change(first, stop, self._fill, self._add_part)

    def remove(self, first: int, stop: int) -> None:
        """Removes ``[first, stop)``; ``ValueError`` unless 0 <= first <= stop <= 2**63."""
        _change(first, stop, self._clear, self._remove_part)

    def add_many(self, offsets: Sequence[int] | array[int]) -> None:
        """Adds single offsets, in any order; ``ValueError`` if one is no offset, and nothing is added then."""
        try:
            values = array("Q", offsets)
        except (OverflowError, TypeError) as error:
            raise ValueError(f"not a sequence of offsets: {error}") from error
        if not values:
            return
        if max(values) >= END:
            raise ValueError(f"{max(values)} is not an offset")
        high_half = 1 if sys.byteorder == "little" else 0
        halves = array("I", values.tobytes())
        high, low = halves[high_half::2], halves[1 - high_half :: 2]
        blocks = set(high)
        if len(blocks) == 1:
            self._add_bitmap(high[0] * _BITMAP_SPAN, BitMap(low))
            return
        ordered = sorted(values)
        for block in sorted(blocks):
            base = block * _BITMAP_SPAN
            members = ordered[bisect_left(ordered, base) : bisect_left(ordered, base + _BITMAP_SPAN)]
            self._add_bitmap(base, BitMap([offset - base for offset in members]))

    def update(self, other: OffsetSet) -> None:
        """Adds the offsets of ``other``."""
        for start, stop in other._full:
            self._fill(start, stop)
        for chunk, bitmap in other._partial.items():
            self._unite(chunk, bitmap)

    def difference_update(self, other: OffsetSet) -> None:
        """Removes the offsets of ``other``."""
        if other is self:
            self.remove(0, END)
            return
        low, high = self._span()
        for start, stop in other._full.within(low, high):
            self._clear(start, stop)
        for chunk in other._keys_within(low, high):
            mine, theirs = self._partial.get(chunk), other._partial[chunk]
            if mine is not None:
                before = len(mine)
                mine -= theirs
                self._settle(chunk, mine, before)
            elif chunk in self._full:
                self._clear(chunk, chunk + 1)
                self._insert(chunk, theirs.flip(0, CHUNK))

    def __or__(self, other: OffsetSet) -> OffsetSet:
        """A new set: the offsets in either."""
        larger, smaller = (self, other) if len(self._keys) >= len(other._keys) else (other, self)
        out = larger.copy()
        out.update(smaller)
        return out._all_marked()

    def __sub__(self, other: OffsetSet) -> OffsetSet:
        """A new set: the offsets in this one and not in ``other``."""
        out = self.copy()
        out.difference_update(other)
        return out._all_marked()

    def __and__(self, other: OffsetSet) -> OffsetSet:
        """A new set: the offsets in both."""
        out = OffsetSet()
        for start, stop in self._full.common(other._full):
            out._fill(start, stop)
        for chunk in self._keys_from(other):
            theirs = other._partial.get(chunk)
            if theirs is not None:
                out._insert(chunk, self._partial[chunk] & theirs)
            elif chunk in other._full:
                out._insert(chunk, self._partial[chunk].copy())
        for chunk in other._keys_from(self):
            if chunk in self._full:
                out._insert(chunk, other._partial[chunk].copy())
        return out._all_marked()

    # --- persistence ---

    @property
    def dirty(self) -> bool:
        """Whether there are changes since the last ``take_changes``."""
        return bool(self._changed)

    def take_changes(self) -> dict[int, bytes | None]:
        """What changed since the last call, by key (``FULL_RUNS`` or a chunk's number); None: to be deleted."""
        changes = {key: self._value(key) for key in sorted(self._changed)}
        self._changed.clear()
        return changes

    def touch(self) -> None:
        """Count all of it as changed: it is to be written under other keys."""
        self._all_marked()

    def dump(self) -> dict[int, bytes]:
        """All of the set by the keys of ``take_changes``; the marks stay."""
        values = ((key, self._value(key)) for key in (FULL_RUNS, *self._keys))
        return {key: value for key, value in values if value is not None}

    def load(self, key: int, value: bytes) -> None:
        """Takes one entry of ``dump`` into a set that was new and is loaded in any order; marks nothing.

        ``ValueError`` for another format version, for damaged bytes, and for what the set already holds otherwise.
        """
        if not value or value[0] != _VERSION:
            raise ValueError(f"offsets of format {value[0] if value else 'none'}, but this version reads format {_VERSION}")
        marks = self._changed.copy()
        if key == FULL_RUNS:
            self._load_full(decode_runs(memoryview(value)[1:]))
        elif 0 <= key < END >> _BITS:
            self._load_partial(key, decode_bitmap(value[1:]))
        else:
            raise ValueError(f"{key} is not a key of offsets")
        self._changed = marks

    def _value(self, key: int) -> bytes | None:
        if key == FULL_RUNS:
            if not self._full:
                return None
            return bytes((_VERSION,)) + encode_runs(self._full)
        bitmap = self._partial.get(key)
        if bitmap is None:
            return None
        bitmap.run_optimize()
        return bytes((_VERSION,)) + bitmap.serialize()

    def _load_full(self, runs: Iterable[Run]) -> None:
        if self._full:
            raise ValueError("runs of full chunks were loaded already")
        for start, stop in runs:
            if stop > END >> _BITS or self._keys_within(start, stop):
                raise ValueError(f"full chunks [{start}, {stop}) are out of bounds or loaded as partial ones")
            self._fill(start, stop)

    def _load_partial(self, chunk: int, bitmap: BitMap) -> None:
        if not 0 < len(bitmap) < CHUNK or bitmap.max() > _LOW:
            raise ValueError(f"chunk {chunk} is empty, full or not of 16 bits")
        if chunk in self._partial or chunk in self._full:
            raise ValueError(f"chunk {chunk} was loaded already")
        self._insert(chunk, bitmap)

    def _all_marked(self) -> OffsetSet:
        self._changed = set(self._keys)
        if self._full:
            self._changed.add(FULL_RUNS)
        return self

    # --- full chunks ---

    def _fill(self, low: int, high: int) -> None:
        """Makes the chunks ``[low, high)`` full; at least one."""
        self._drop(low, high)
        new = self._full.add(low, high)
        if new:
            self._count += new << _BITS
            self._changed.add(FULL_RUNS)

    def _clear(self, low: int, high: int) -> None:
        """Empties the chunks ``[low, high)``; at least one."""
        self._drop(low, high)
        gone = self._full.remove(low, high)
        if gone:
            self._count -= gone << _BITS
            self._changed.add(FULL_RUNS)

    # --- partial chunks ---

    def _add_part(self, chunk: int, low: int, high: int) -> None:
        bitmap = self._partial.get(chunk)
        if bitmap is None:
            if chunk not in self._full:
                bitmap = BitMap()
                bitmap.add_range(low, high)
                self._insert(chunk, bitmap)
            return
        before = len(bitmap)
        bitmap.add_range(low, high)
        self._settle(chunk, bitmap, before)

    def _remove_part(self, chunk: int, low: int, high: int) -> None:
        bitmap = self._partial.get(chunk)
        if bitmap is None:
            if chunk in self._full:
                self._clear(chunk, chunk + 1)
                self._add_part(chunk, 0, low)
                self._add_part(chunk, high, CHUNK)
            return
        before = len(bitmap)
        bitmap.remove_range(low, high)
        self._settle(chunk, bitmap, before)

    def _unite(self, chunk: int, bitmap: BitMap) -> None:
        mine = self._partial.get(chunk)
        if mine is None:
            if chunk not in self._full:
                self._insert(chunk, bitmap.copy())
            return
        before = len(mine)
        mine |= bitmap
        self._settle(chunk, mine, before)

    def _add_bitmap(self, base: int, bitmap: BitMap) -> None:
        """Adds ``base + value`` for each value; all of them are offsets."""
        low, high = bitmap.min(), bitmap.max()
        chunks = min(len(bitmap), (high - low >> _BITS) + 1)
        if len(bitmap - bitmap.shift(1)) <= 2 * chunks:
            for first, stop in bitmap_runs(bitmap, base):
                self.add(first, stop)
            return
        while True:
            chunk = base + low >> _BITS
            start, stop = (chunk << _BITS) - base, (chunk + 1 << _BITS) - base
            window = BitMap()
            window.add_range(max(0, start), min(stop, _BITMAP_SPAN))
            self._unite(chunk, (bitmap & window).shift(-start))
            if stop > high:
                return
            low = bitmap.next_set_bit(stop)

    def _insert(self, chunk: int, bitmap: BitMap) -> None:
        """Takes ``bitmap`` for a chunk that was empty."""
        size = len(bitmap)
        if size == CHUNK:
            self._fill(chunk, chunk + 1)
        elif size:
            if not self._keys or chunk > self._keys[-1]:
                self._keys.append(chunk)
            else:
                self._keys.insert(bisect_left(self._keys, chunk), chunk)
            self._partial[chunk] = bitmap
            self._count += size
            self._changed.add(chunk)

    def _settle(self, chunk: int, bitmap: BitMap, before: int) -> None:
        """Restores the invariant after a partial chunk of ``before`` offsets only grew or only shrank."""
        after = len(bitmap)
        if after == before:
            return
        self._count += after - before
        self._changed.add(chunk)
        if after == CHUNK:
            self._fill(chunk, chunk + 1)
        elif after == 0:
            self._drop(chunk, chunk + 1)

    def _drop(self, low: int, high: int) -> None:
        """Forgets the partial chunks in ``[low, high)``."""
        begin, end = bisect_left(self._keys, low), bisect_left(self._keys, high)
        for chunk in self._keys[begin:end]:
            self._count -= len(self._partial.pop(chunk))
            self._changed.add(chunk)
        del self._keys[begin:end]

    def _keys_within(self, low: int, high: int) -> list[int]:
        return self._keys[bisect_left(self._keys, low) : bisect_left(self._keys, high)]

    def _keys_from(self, other: OffsetSet) -> list[int]:
        """Own partial chunks that ``other`` could hold too."""
        return self._keys_within(*other._span())

    # --- both ---

    def _span(self) -> Run:
        """Chunks from the first that holds an offset to one past the last."""
        first, last = self.first(), self.last()
        return (0, 0) if first is None or last is None else (first >> _BITS, (last >> _BITS) + 1)

    def _pieces(self, first: int, stop: int) -> Iterator[tuple[int, int, BitMap | None]]:
        """Runs of full chunks (bitmap None) and partial chunks that reach into ``[first, stop)``, ascending."""
        low, high = first >> _BITS, stop + _LOW >> _BITS
        keys = self._keys_within(low, high)
        position = 0
        for start, end in self._full.within(low, high):
            while position < len(keys) and keys[position] < start:
                yield keys[position], keys[position] + 1, self._partial[keys[position]]
                position += 1
            yield start, end, None
        for chunk in keys[position:]:
            yield chunk, chunk + 1, self._partial[chunk]

    def _joined(self, first: int, stop: int) -> Iterator[Run]:
        begin = end = -1
        for start_chunk, stop_chunk, bitmap in self._pieces(first, stop):
            base, limit = start_chunk << _BITS, stop_chunk << _BITS
            if bitmap is None:
                found: Iterable[Run] = ((max(base, first), min(limit, stop)),)
            elif base >= first and limit <= stop:
                found = bitmap_runs(bitmap, base)
            else:
                window = BitMap()
                window.add_range(max(0, first - base), min(CHUNK, stop - base))
                found = bitmap_runs(bitmap & window, base)
            for low, high in found:
                if low != end:
                    if begin < end:
                        yield begin, end
                    begin = low
                end = high
        if begin < end:
            yield begin, end


def take(source: OffsetSet, wanted: OffsetSet) -> OffsetSet:
    """Move the common offsets out of ``source``; what is returned shares nothing with either."""
    if not source or not wanted:
        return OffsetSet()
    taken = source & wanted
    if taken:
        source.difference_update(taken)
    return taken


def drop(target: OffsetSet, known: OffsetSet) -> None:
    """Remove from ``target`` what is known; looks at neither where one of them is empty."""
    if known and target:
        target.difference_update(known)
