"""One letter per offset: what Kafka's own files say of it, what the product says, and where the two may not differ.

Nothing here is shared with the product. Offsets are indices into a ``bytearray``, so that comparing a million of them is one ``==``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stream_app.core.ledger import Ledger
from stream_app.core.model import Absent
from tests.support.dump_log import DumpedBatch, DumpError

RECORD, MARKER, ABORTED, HOLE = b"RMAC"
"""``C``: in no batch, or in one that holds it no more: compacted, where compaction is allowed."""
OPEN, BARE = b"OB"
"""Of the files only: of a transaction without an end yet; of a control batch that lost its record to compaction."""
UNSEEN = b"?"[0]
"""Of an earlier look at the files only: written since."""
LOG_HOLE, UNREADABLE, UNREAD, BEFORE = b"HXU."
"""Of the product only: an unexplained hole; damaged; removed before it was read; below the first offset that it saw."""

Kinds = bytes | bytearray


@dataclass
class Files:
    """What the files of one partition hold, whatever a consumer may see of it."""

    kinds: bytearray
    """By offset, from 0 to the end of the last batch, as for a read_committed consumer."""
    batches: Sequence[DumpedBatch]

    @property
    def end(self) -> int:
        """One past the last batch."""
        return len(self.kinds)

    def of_offset(self, offset: int, isolation: str) -> int:
        """The kind of one offset as a consumer of this isolation level has to see it."""
        kind = self.kinds[offset]
        return RECORD if isolation != "read_committed" and kind in (ABORTED, OPEN) else kind

    def of(self, isolation: str) -> bytes:
        """The same as a consumer of this isolation level has to see it."""
        if isolation == "read_committed":
            return bytes(self.kinds)
        return bytes(self.kinds.replace(bytes([ABORTED]), bytes([RECORD])).replace(bytes([OPEN]), bytes([RECORD])))


def read_files(batches: Sequence[DumpedBatch]) -> Files:
    """Which offsets hold what: each transaction is decided by the next marker of its producer id."""
    kinds = bytearray([HOLE]) * (batches[-1].last + 1 if batches else 0)
    undecided: dict[int, list[DumpedBatch]] = {}
    for batch in batches:
        if batch.control:
            if batch.marker is None and batch.count == 0 and batch.base == batch.last:
                kinds[batch.base] = BARE
            elif batch.marker in ("COMMIT", "ABORT") and batch.count == 1:
                kinds[batch.base] = MARKER
            else:
                raise DumpError(f"no marker of a transaction: {batch}")
            _decide(kinds, undecided.pop(batch.producer, []), batch)
        else:
            if batch.transactional:
                undecided.setdefault(batch.producer, []).append(batch)
            _put(kinds, batch, OPEN if batch.transactional else RECORD)
    return Files(kinds, batches)


def _decide(kinds: bytearray, data: list[DumpedBatch], marker: DumpedBatch) -> None:
    if marker.marker is None and any(batch.count for batch in data):
        raise DumpError(f"a transaction has records and no marker any more: {data[0]}, {marker}")
    for batch in data:
        _put(kinds, batch, RECORD if marker.marker == "COMMIT" else ABORTED)


def _put(kinds: bytearray, batch: DumpedBatch, kind: int) -> None:
    if batch.count == batch.last - batch.base + 1:
        kinds[batch.base : batch.last + 1] = bytes([kind]) * batch.count
    else:
        for offset in batch.offsets:
            kinds[offset] = kind


def read_ledger(ledger: Ledger) -> bytearray:
    """What the product says of each offset below ``log.read``. AssertionError if it says two things of one offset."""
    log = ledger.log
    said = bytearray([BEFORE]) * log.origin + bytearray([RECORD]) * (log.read - log.origin)
    assert len(said) == log.read, f"it begins at {log.origin} and was read to {log.read}"
    sets = (
        (log.absent[Absent.TRANSACTION_MARKER], MARKER),
        (log.absent[Absent.ABORTED], ABORTED),
        (log.absent[Absent.COMPACTED], HOLE),
        (log.holes, LOG_HOLE),
        (log.unreadable, UNREADABLE),
        (log.unread, UNREAD),
    )
    for offsets, kind in sets:
        for first, stop in offsets.runs():
            if said[first:stop] != bytes([RECORD]) * (stop - first):
                raise AssertionError(f"[{first}, {stop}) is said to be {chr(kind)} and is {show(said[first:stop])} too")
            said[first:stop] = bytes([kind]) * (stop - first)
    return said


@dataclass
class Span:
    """Offsets of one partition to be compared, ``[first, stop)``, and what is known of them beside the files."""

    first: int
    stop: int
    compacts: bool
    """Whether compaction may have taken any of them."""
    removed: tuple[int, int, int] = (0, 0, 0)
    """Lowest and highest offset at which the product may have stood when it was stopped, and where the log began when it went on:
    what lies between was removed unread. Equal ones: nothing was."""


@dataclass
class Compared:
    """What one comparison found."""

    differences: list[str] = field(default_factory=list)
    offsets: int = 0
    loose: int = 0
    """Offsets that were gone before anybody could say what they held: any lawful verdict is taken."""


def compare(said: Kinds, before: Kinds, after: Kinds, span: Span) -> Compared:
    """``said``: by the product; ``before``: the files before it read the span, maybe shorter; ``after``: the files since.

    What is in the files still, was there when the product read it: there is one right answer. What compaction took may have
    been there, as ``before`` has it, or gone already.
    """
    found = Compared(offsets=span.stop - span.first)
    if len(said) < span.stop or len(after) < span.stop:
        found.differences.append(f"read to {len(said)}, files end at {len(after)}, compared is {span.first} to {span.stop}")
        return found
    wrong: dict[str, list[int]] = {}
    for first, stop in _without_unread(said, span, found):
        if said[first:stop] == after[first:stop] and HOLE not in after[first:stop]:
            continue
        for offset in range(first, stop):
            mine, now = said[offset], after[offset]
            then = before[offset] if offset < len(before) and before[offset] != UNSEEN else None
            allowed = _allowed(now, then, span.compacts or offset < span.removed[2])
            if allowed is None:
                found.loose += 1
                allowed = {RECORD, MARKER, ABORTED, HOLE}
            if mine not in allowed:
                was = "new" if then is None else chr(then)
                wrong.setdefault(f"said {chr(mine)}, files {was} then {chr(now)}", []).append(offset)
    found.differences += [f"{what}: {len(offsets)} offsets, {list(runs(offsets))[:5]}" for what, offsets in wrong.items()]
    return found


def _without_unread(said: Kinds, span: Span, found: Compared) -> list[tuple[int, int]]:
    """Check what is unread; the rest of the span."""
    lowest, highest, start = span.removed
    begin = said.find(UNREAD, span.first, span.stop)
    if begin < 0:
        begin = max(start, span.first)
    if start > lowest and not lowest <= begin <= min(highest, start):
        found.differences.append(f"unread should be {lowest} (at most {highest}) to {start}, it begins at {begin}")
        begin = lowest
    if said[begin:start].strip(bytes([UNREAD])):
        found.differences.append(f"not all of {begin} to {start} is unread: {show(said[begin:start])}")
    if UNREAD in said[max(start, span.first) : span.stop]:
        found.differences.append(f"unread from {said.find(UNREAD, max(start, span.first))} on; the log begins at {start}")
    return [(span.first, begin), (max(start, span.first), span.stop)] if start > lowest else [(span.first, span.stop)]


def _allowed(now: int, then: int | None, taken: bool) -> set[int] | None:
    """Verdicts that are right; None: any lawful one. ``taken``: whether compaction, or the removal of whole files, may have taken it."""
    if now == BARE:
        return {MARKER, HOLE} if taken else set()
    if now == OPEN:
        return set()
    if now != HOLE:
        return {now}
    if not taken:
        return set()
    if then is None or then == OPEN:
        return None
    return {HOLE, MARKER} if then == BARE else {HOLE, then}


def explanations(offset: int, kind: int, stable: int | None, compacts: bool) -> set[str]:
    """Verdicts of ``/api/explain`` that are right of an offset at or above the log's start, of this kind when the files were read before.

    ``stable``: the last stable offset as of the answer; None where it does not count.
    """
    if stable is not None and offset >= stable:
        return {"open"}
    right = {_EXPLAINED[kind]} if kind in _EXPLAINED else {"record", "aborted"}  # open then, and decided since
    return right | {"compacted"} if compacts else right


_EXPLAINED = {RECORD: "record", MARKER: "transaction_marker", BARE: "transaction_marker", ABORTED: "aborted", HOLE: "compacted"}


def runs(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Closed runs of ascending offsets."""
    first = last = None
    for offset in offsets:
        if last is not None and offset == last + 1:
            last = offset
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = offset
    if first is not None and last is not None:
        yield first, last


def where(kinds: Kinds, kind: int, first: int = 0, stop: int | None = None) -> Iterator[int]:
    """Offsets of one kind, ascending."""
    at = kinds.find(kind, first, len(kinds) if stop is None else stop)
    while at >= 0:
        yield at
        at = kinds.find(kind, at + 1, len(kinds) if stop is None else stop)


def show(kinds: Kinds) -> str:
    """A stretch of letters, shortened."""
    return kinds.decode() if len(kinds) <= 60 else f"{kinds[:40].decode()}...{kinds[-15:].decode()}"


def gaps_of(said: Kinds, missing: Mapping[str, set[int]]) -> list[tuple[int, int, int, str]]:
    """(first, last, records, cause) of each gap as a user should see it: what holds no record does not split it."""
    found = []
    for cause, offsets in missing.items():
        gap: list[int] = []
        for offset in sorted(offsets):
            if gap and said[gap[-1] + 1 : offset].strip(_ABSENT):
                found.append((gap[0], gap[-1], len(gap), cause))
                gap = []
            gap.append(offset)
        if gap:
            found.append((gap[0], gap[-1], len(gap), cause))
    return sorted(found)


_ABSENT = bytes([MARKER, ABORTED, HOLE, LOG_HOLE])
