"""The words of this room: how a table is laid out, what is asked of it, what it answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from stream_app.core.model import CHUNK, Runs
from stream_app.core.offsets import END, OffsetSet

Duplicates = Literal["physical", "final", "ignore"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a topic stand, and what makes a row one of them."""

    database: str
    table: str
    offset: str
    """Columns that hold where a row came from."""
    topic: str | None = None
    """None: the table holds one topic only."""
    partition: str | None = None
    """None: the topic has one partition only."""
    timestamp: str | None = None
    where: str | None = None
    """Extra condition, as SQL."""
    quarantine: str | None = None
    """Another table of the same database with the same columns."""
    duplicates: Duplicates = "physical"
    rows_per_record: Literal["one", "many"] = "one"

    @property
    def name(self) -> str:
        """For people: ``database.table``."""
        return f"{self.database}.{self.table}"

    @property
    def judges_duplicates(self) -> bool:
        """Whether rows beyond one per offset mean anything."""
        return self.duplicates != "ignore" and self.rows_per_record == "one"


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of one partition that are asked for."""

    partition: int
    first: int
    stop: int | None
    """None: however far the table goes."""

    @property
    def last_chunk(self) -> int:
        """Chunk of the last offset."""
        return ((END if self.stop is None else self.stop) - 1) // CHUNK


@dataclass(frozen=True, slots=True)
class Held:
    """What the table holds of one span. Sets are the receiver's."""

    span: Span
    present: OffsetSet
    """Offsets with at least one row."""
    surplus: Mapping[int, int]
    """Rows beyond one per offset, as ``duplicates`` counts them, by number of the chunk; empty where they are not judged."""
    levels: tuple[OffsetSet, ...]
    """Offsets with at least two rows, three, ..., up to :data:`DOUBLED_MAX` sets, none of them empty; none where duplicates are not
    judged. A merge between both questions can make them smaller than ``surplus`` lets expect."""
    quarantined: OffsetSet
    """Offsets with at least one row in the quarantine table."""

    @property
    def doubled(self) -> OffsetSet:
        """Offsets with more than one row."""
        return self.levels[0] if self.levels else OffsetSet()

    @property
    def rows(self) -> int:
        """Rows, as ``duplicates`` counts them; as many as offsets where duplicates are not judged."""
        return self.present.count + sum(self.surplus.values())


@dataclass(frozen=True, slots=True)
class Check:
    """One answered question."""

    at_ms: int
    """When it was asked: whatever was in the table then and stayed is in the answer."""
    held: tuple[Held, ...]
    """One for each span, in the order of partitions and offsets."""
    rows_read: int
    """By the server."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer, or none that proves anything. Never to be taken for "holds nothing"."""

    reason: str
    """One sentence that says what to do."""
    statement: str | None = None
    """SQL that would mend it, where some would."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long the table keeps its rows."""

    keeps_ms: int | None = None
    """Rows of records younger than this are still there; None: TTL removes none, or nothing can be said."""
    column: str | None = None
    """The column that the TTL counts from, where it is not the record's timestamp."""
    unreadable: str | None = None
    """A TTL of which nothing can be said, as the table has it."""

    def bound_ms(self, now_ms: int) -> int | None:
        """Rows of records older than this may have gone lawfully; None: of none."""
        return None if self.keeps_ms is None else now_ms - self.keeps_ms


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a table that can prove what it holds."""

    engine: str
    retention: Retention
    final: bool
    """Whether ``FINAL`` hides rows of it."""


@dataclass(frozen=True, slots=True)
class Index:
    """How the server would read the table for a check."""

    used: bool | None
    """Whether an index on the coordinates narrows the search; None: the table is empty, or its engine does not tell."""
    granules_read: int = 0
    granules: int = 0


def joined(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that meet in a chunk made one: so that every chunk of the answer belongs to one span.

    The offsets between two such spans are asked for too.
    """
    out: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.partition, one.first)):
        if span.stop is not None and span.stop <= span.first:
            continue
        last = out[-1] if out else None
        if last is not None and last.partition == span.partition and span.first // CHUNK <= last.last_chunk:
            stop = None if last.stop is None or span.stop is None else max(last.stop, span.stop)
            out[-1] = replace(last, stop=stop)
        else:
            out.append(span)
    return out


def portions(spans: Iterable[Span], chunks_max: int, spans_max: int) -> Iterator[list[Span]]:
    """The spans in portions of at most so many chunks and spans; one without an end counts as one chunk.

    Cuts are made between chunks, so joining the portions' answers gives the answer to the whole.
    """
    portion: list[Span] = []
    room = chunks_max
    for span in joined(spans):
        rest: Span | None = span
        while rest is not None:
            if room <= 0 or len(portion) == spans_max:
                yield portion
                portion, room = [], chunks_max
            piece, rest = rest, None
            if piece.stop is not None:
                cut = (piece.first // CHUNK + room) * CHUNK
                if cut < piece.stop:
                    piece, rest = replace(piece, stop=cut), replace(piece, first=cut)
            room -= 1 if piece.stop is None else piece.last_chunk - piece.first // CHUNK + 1
            portion.append(piece)
    if portion:
        yield portion


def spans_of(offsets: Mapping[int, OffsetSet]) -> list[Span]:
    """The chunks, whole, that hold any of these offsets (by partition), as spans."""
    return [
        Span(partition, first, stop) for partition, some in sorted(offsets.items()) for first, stop in chunk_runs(some)
    ]  # fmt: skip


def chunk_runs(offsets: OffsetSet) -> Runs:
    """Runs of whole chunks that hold any of the offsets."""
    runs: list[tuple[int, int]] = []
    for first, stop in offsets.runs():
        low, high = first // CHUNK * CHUNK, -(-stop // CHUNK) * CHUNK
        if runs and low <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(high, runs[-1][1]))
        else:
            runs.append((low, high))
    return tuple(runs)
