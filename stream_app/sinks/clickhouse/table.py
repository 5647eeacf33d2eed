"""One table of one topic: what can be concluded from it, and its answer to what is asked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stream_app.core.model import DOUBLED_MAX
from stream_app.sinks.clickhouse import audit, columns, engines, statements
from stream_app.sinks.clickhouse.answers import Chunks, Incomplete, crowded, held, read_chunks
from stream_app.sinks.clickhouse.client import ClickHouseClient, Refused
from stream_app.sinks.clickhouse.engines import Table
from stream_app.sinks.clickhouse.layout import Check, Facts, Held, Index, Layout, Span, Unknown, joined, portions

CHUNKS_MAX = 4_096
"""Chunks of one statement: at most 32 MiB of bitmaps (8 kB for a chunk whose offsets are there at random)."""

_TABLE = "SELECT database, name, engine, engine_full, sorting_key FROM system.tables"
_VIEWS = "SELECT create_table_query, as_select FROM system.tables WHERE engine = 'MaterializedView' AND database = "


@dataclass(slots=True)
class ClickHouseTable:
    """Asks the server; whatever goes wrong on the way is Unknown, never an empty answer."""

    client: ClickHouseClient
    layout: Layout
    topic: str
    _final: bool = field(default=False, init=False)

    async def inspect(self) -> Facts | Unknown:
        """Whether the table can prove what it holds; to be asked before the first check, and now and then."""
        try:
            return await self._inspect()
        except (Refused, Incomplete) as error:
            return Unknown(str(error))

    async def check(self, spans: Iterable[Span]) -> Check | Unknown:
        """What the table holds of ``spans`` now.

        Spans that meet in a chunk are answered as one, and long ones in several pieces; the pieces cover all that was asked.
        """
        at_ms = time.time_ns() // 1_000_000
        found: list[Held] = []
        rows_read = 0
        try:
            for portion in portions(spans, CHUNKS_MAX, statements.SPANS_MAX):
                answers, read = await self._check(portion)
                found += answers
                rows_read += read
        except (Refused, Incomplete) as error:
            return Unknown(str(error))
        return Check(at_ms, tuple(found), rows_read)

    async def close(self) -> None:
        """Gives the connections back."""
        await self.client.close()

    async def edges(self, partitions: Iterable[int]) -> Mapping[int, tuple[int, int]] | Unknown:
        """First offset and one past the last, of each partition of which there are rows."""
        try:
            rows = (await self.client.query(statements.lowest(self.layout, self.topic, partitions))).rows
        except Refused as error:
            return Unknown(str(error))
        if not rows or rows[-1][0] != -1:
            return Unknown("the answer is cut off: its last row is not there")
        return {partition: (first, last + 1) for partition, first, last, _ in rows[:-1]}

    async def index(self, spans: Iterable[Span]) -> Index | Unknown:
        """Whether a check of ``spans`` can use an index."""
        try:
            asked = joined(spans)[: statements.SPANS_MAX]
            plan = await self._plan(statements.check(replace(self.layout, quarantine=None), self.topic, asked))
        except (Refused, Incomplete) as error:
            return Unknown(str(error))
        return index_of(plan, {self.layout.topic, self.layout.partition, self.layout.offset} - {None})

    # --- checking ---------------------------------------------------------------------------------------------------------------

    async def _check(self, spans: Sequence[Span]) -> tuple[tuple[Held, ...], int]:
        layout = self.layout
        first = await self.client.query(statements.check(layout, self.topic, spans))
        table, quarantine = read_chunks(first.rows)
        doubles: Chunks = {}
        rows_read = first.rows_read
        suspects = crowded(table) if layout.judges_duplicates else []
        for some in portions(suspects, CHUNKS_MAX, statements.SPANS_MAX):
            final = self._final and layout.duplicates == "final"
            second = await self.client.query(statements.doubles(layout, self.topic, _within(some, spans), final=final))
            doubles = {**doubles, **read_chunks(second.rows, DOUBLED_MAX)[0]}
            rows_read += second.rows_read
        return held(layout, spans, table, quarantine, doubles), rows_read

    # --- inspecting -------------------------------------------------------------------------------------------------------------

    async def _inspect(self) -> Facts | Unknown:
        layout = self.layout
        own = await self._tables([(layout.database, layout.table)])
        known = await column_types(self.client, layout.database, layout.table)
        if not own or not known:
            return Unknown(f"ClickHouse has no table {layout.name}, or hides it from this user: see database, table and its grants")
        if layout.offset not in known and columns.find(known, one_partition=True) is None:
            return await self._no_offsets()
        wrong = columns.complaint(layout, known)
        if wrong is not None:
            return Unknown(wrong)
        tables = [*own, *await self._behind(own[0])]
        for table in tables:
            wrong = engines.complaint(table, layout)
            if wrong is not None:
                return Unknown(wrong, None if table.family in engines.CONSUMING else audit.of_rows(layout))
        self._final = any(table.family in engines.FINAL for table in tables)
        return Facts(own[0].engine, engines.retention(tables, layout.timestamp), self._final)

    async def _no_offsets(self) -> Unknown:
        layout = self.layout
        views = (await self.client.query(_VIEWS + statements.text(layout.database))).rows
        source = audit.source_of([(query.decode(), select.decode()) for query, select in views], layout)
        reason = f"{layout.name} keeps no offsets, so nobody can tell what it lacks: keep them beside the rows, or in a table of their own"
        return Unknown(reason, audit.of_kafka_table(layout, source))

    async def _tables(self, names: Iterable[tuple[str, str]]) -> list[Table]:
        wanted = " OR ".join(f"(database = {statements.text(database)} AND name = {statements.text(name)})" for database, name in names)
        rows = (await self.client.query(f"{_TABLE} WHERE {wanted}")).rows if wanted else []
        return [Table(*(value.decode() for value in row)) for row in rows]

    async def _behind(self, table: Table) -> list[Table]:
        """The tables whose rows this one shows.

        Raises:
            Incomplete: they can't be seen from here.
        """
        if table.family not in engines.LOOKING:
            return []
        plan = await self._plan(statements.everything(self.layout))
        read = {node["Description"] for node in nodes(plan) if node.get("Node Type") == "ReadFromMergeTree" and node.get("Description")}
        found = await self._by_full_name(read) if read else []
        target = engines.distributed_over(table)
        if target is not None:
            found += await self._tables([target])
            if not found:
                raise Incomplete(_unseen(self.layout.name, ".".join(target)))
        elif any("Remote" in str(node.get("Node Type")) for node in nodes(plan)):
            raise Incomplete(
                f"{self.layout.name} shows rows of other servers, whose engine can't be seen from here: name their table itself"
            )
        return found

    async def _by_full_name(self, names: Iterable[str]) -> list[Table]:
        wanted = ", ".join(statements.text(one) for one in sorted(names))
        rows = (await self.client.query(f"{_TABLE} WHERE concat(database, '.', name) IN ({wanted})")).rows
        return [Table(*(value.decode() for value in row)) for row in rows]

    async def _plan(self, statement: str) -> Any:
        rows = (await self.client.query(statements.explain(statement))).rows
        try:
            return json.loads(b"\n".join(row[0] for row in rows))
        except ValueError as error:
            raise Incomplete(f"ClickHouse does not tell how it reads {self.layout.name}: {error}") from error


def _unseen(shown: str, what: str) -> str:
    return f"{shown} shows {what} of other servers, and how those keep them can't be seen from here: ask a server that has the table"


def _within(pieces: Iterable[Span], spans: Sequence[Span]) -> list[Span]:
    """The parts of ``pieces`` that were asked for: a chunk at the edge of a span is asked for in part."""
    out = []
    for piece in pieces:
        for span in spans:
            stop = piece.stop if span.stop is None else span.stop if piece.stop is None else min(piece.stop, span.stop)
            first = max(piece.first, span.first)
            if span.partition == piece.partition and (stop is None or first < stop):
                out.append(Span(piece.partition, first, stop))
    return out


async def column_types(client: ClickHouseClient, database: str, table: str) -> dict[str, str]:
    """The columns of a table with their types; empty: there is no such table.

    Raises:
        Refused: the server gave no answer.
    """
    where = f"database = {statements.text(database)} AND table = {statements.text(table)}"
    rows = (await client.query(f"SELECT name, type FROM system.columns WHERE {where}")).rows
    return {name.decode(): kind.decode() for name, kind in rows}


def nodes(plan: Any) -> Iterator[Mapping[str, Any]]:
    """Every step of a plan."""
    if isinstance(plan, list):
        for one in plan:
            yield from nodes(one)
    elif isinstance(plan, dict):
        if "Node Type" in plan:
            yield plan
        for one in plan.values():
            yield from nodes(one)


def index_of(plan: Any, coordinates: Iterable[str | None]) -> Index:
    """What a plan says of the use of an index on these columns."""
    wanted = set(coordinates)
    used: bool | None = None
    read = total = 0
    for node in nodes(plan):
        if node.get("Node Type") != "ReadFromMergeTree":
            continue
        steps = node.get("Indexes") or [{}]  # without a key there are none
        helps = any(
            step.get("Condition", "true") != "true" and (wanted & set(step.get("Keys", ())) or step.get("Type") == "Skip") for step in steps
        )
        used = helps if used is None else used and helps
        total += steps[0].get("Initial Granules", 0)
        read += steps[-1].get("Selected Granules", 0)
    return Index(used, read, total)
