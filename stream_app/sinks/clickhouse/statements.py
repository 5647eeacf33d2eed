"""The SQL of a check. Every name is quoted; the only text that goes in as it is, is the configuration's own ``where``.

Rows of an answer are ``(kind, partition, chunk, rows, bitmap)``: of the table, of the quarantine table, and the sentinel,
which is sorted last. An answer that lost its end, to a limit or to a broken connection, has no sentinel.

Aliases begin with ``gapstream_``: ClickHouse takes an alias for the column of the same name, in WHERE too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from stream_app.core.model import CHUNK, DOUBLED_MAX
from stream_app.sinks.clickhouse.layout import Layout, Span

ROWS, QUARANTINED, SENTINEL = 0, 1, 2
"""Kinds of rows of an answer."""
SPANS_MAX = 1_000
"""Spans of one statement: two comparisons each stay far below max_ast_elements (50,000) and max_query_size (256 KiB)."""

_SENTINEL = f"SELECT toUInt8({SENTINEL}), toInt64(0), toInt64(0), toUInt64(0), ''"
_ORDER = "ORDER BY gapstream_kind, gapstream_partition, gapstream_chunk"


def name(identifier: str) -> str:
    """An identifier as ClickHouse takes it, whatever is in it."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def check(layout: Layout, topic: str, spans: Sequence[Span]) -> str:
    """What the table, and its quarantine table, hold of ``spans``: number of rows and bitmap per partition and chunk.

    The bitmap holds the low 16 bits of the offsets; see :func:`stream_app.sinks.clickhouse.answers.decode_state`.
    """
    parts = [_bitmaps(layout, layout.table, ROWS, topic, spans)]
    if layout.quarantine is not None:
        parts.append(_bitmaps(layout, layout.quarantine, QUARANTINED, topic, spans))
    return _ended(parts)


def doubles(layout: Layout, topic: str, spans: Sequence[Span], *, final: bool) -> str:
    """Which offsets of ``spans`` have more than one row, and how many: the number is that of rows beyond one each.

    A value of the bitmap is the low 16 bits of an offset and, above them, a number: 0 for its second row, 1 for its third, and so
    on up to :data:`DOUBLED_MAX` of them. ``final``: of the rows that ``SELECT ... FINAL`` shows.
    """
    offset, partition = _number(layout.offset), _partition(layout, spans)
    rows = (
        f"SELECT {partition} AS gapstream_partition, {offset} AS gapstream_offset, count() AS gapstream_rows\n"
        f"FROM {_table(layout, layout.table)}{' FINAL' if final else ''}\n"
        f"WHERE {_conditions(layout, topic, spans)}\n"
        "GROUP BY gapstream_partition, gapstream_offset HAVING gapstream_rows > 1"
    )
    more = (
        "SELECT gapstream_partition, gapstream_offset, gapstream_rows,\n"
        f"arrayJoin(range(toUInt32(least(gapstream_rows - 1, {DOUBLED_MAX})))) AS gapstream_level\nFROM (\n{rows}\n)"
    )
    value = f"gapstream_level * {CHUNK} + bitAnd(gapstream_offset, {CHUNK - 1})"
    outer = (
        f"SELECT toUInt8({ROWS}) AS gapstream_kind, gapstream_partition, intDiv(gapstream_offset, {CHUNK}) AS gapstream_chunk,\n"
        f"toUInt64(sumIf(gapstream_rows - 1, gapstream_level = 0)) AS gapstream_count,\n"
        f"CAST(groupBitmapState(toUInt32({value})) AS String) AS gapstream_bits\n"
        f"FROM (\n{more}\n)\nGROUP BY gapstream_partition, gapstream_chunk"
    )
    return _ended([outer])


def lowest(layout: Layout, topic: str, partitions: Iterable[int]) -> str:
    """First and last offset and the number of rows of each partition, ``(partition, first, last, rows)``, and a sentinel with -1.

    Reads the column of all rows, unless the table is ordered by it.
    """
    spans = [Span(partition, 0, None) for partition in sorted(partitions)]
    one = _number(layout.offset)
    return (
        "SELECT * FROM (\n"
        f"SELECT {_partition(layout, spans)} AS gapstream_partition, min({one}) AS gapstream_first, max({one}) AS gapstream_last,\n"
        f"toUInt64(count()) AS gapstream_count\nFROM {_table(layout, layout.table)}\n"
        f"WHERE {_conditions(layout, topic, spans)}\nGROUP BY gapstream_partition\n"
        "UNION ALL SELECT toInt64(-1), toInt64(0), toInt64(0), toUInt64(0)\n)\nORDER BY gapstream_partition DESC"
    )


def everything(layout: Layout) -> str:
    """All offsets of the table: not to be run, but to be explained."""
    return f"SELECT {name(layout.offset)} FROM {_table(layout, layout.table)}"


def explain(statement: str) -> str:
    """How the server would run it, as one JSON document."""
    return f"EXPLAIN json = 1, indexes = 1\n{statement}"


# --- parts ------------------------------------------------------------------------------------------------------------------


def _ended(parts: Sequence[str]) -> str:
    body = "\nUNION ALL\n".join([*parts, _SENTINEL])
    return f"SELECT * FROM (\n{body}\n)\n{_ORDER}"


def _bitmaps(layout: Layout, table: str, kind: int, topic: str, spans: Sequence[Span]) -> str:
    one = _number(layout.offset)
    return (
        f"SELECT toUInt8({kind}) AS gapstream_kind, {_partition(layout, spans)} AS gapstream_partition, "
        f"intDiv({one}, {CHUNK}) AS gapstream_chunk,\n"
        f"toUInt64(count()) AS gapstream_count, {_state(one)} AS gapstream_bits\n"
        f"FROM {_table(layout, table)}\n"
        f"WHERE {_conditions(layout, topic, spans)}\n"
        "GROUP BY gapstream_partition, gapstream_chunk"
    )


def _state(offset: str) -> str:
    return f"CAST(groupBitmapState(toUInt32(bitAnd({offset}, {CHUNK - 1}))) AS String)"


def _table(layout: Layout, table: str) -> str:
    return f"{name(layout.database)}.{name(table)}"


def _partition(layout: Layout, spans: Sequence[Span]) -> str:
    if layout.partition is None:
        partitions = {span.partition for span in spans}
        assert len(partitions) == 1, "a table without a column for partitions holds one"
        return f"toInt64({partitions.pop()})"
    return _number(layout.partition)


def _conditions(layout: Layout, topic: str, spans: Sequence[Span]) -> str:
    assert 0 < len(spans) <= SPANS_MAX
    conditions = [] if layout.topic is None else [f"{name(layout.topic)} = {text(topic)}"]
    conditions.append(
        "(" + "\n OR ".join(_one(layout, partition, list(some)) for partition, some in groupby(spans, attrgetter("partition"))) + ")"
    )
    if layout.where is not None:
        conditions.append(f"(\n{layout.where}\n)")  # on lines of its own: it may end in a comment
    return "\n AND ".join(conditions)


def _number(column: str) -> str:
    """The column as a number. Conditions leave no NULL over, and a bitmap of what may be NULL is kept in another form."""
    return f"toInt64(assumeNotNull({name(column)}))"


def _one(layout: Layout, partition: int, spans: Sequence[Span]) -> str:
    ranges = " OR ".join(_range(name(layout.offset), span) for span in spans)
    if layout.partition is None:
        return f"({ranges})"
    return f"({name(layout.partition)} = {partition} AND ({ranges}))"


def _range(offset: str, span: Span) -> str:
    if span.stop is None:
        return f"{offset} >= {span.first}"
    return f"({offset} >= {span.first} AND {offset} < {span.stop})"
