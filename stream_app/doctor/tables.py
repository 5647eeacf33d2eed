"""A ClickHouse sink: is its server there, may the user read the table, can it prove what it holds, is asking it cheap."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping

from stream_app.config.sinks import ClickHouseSink
from stream_app.config.tables import client_of, layout_of_sink
from stream_app.doctor.finding import Finding, error, ok, unknown, warning
from stream_app.durations import format_duration
from stream_app.sinks.clickhouse import ClickHouseTable, Facts, Layout, Span, Unknown
from stream_app.sinks.clickhouse.client import Refused
from stream_app.sinks.clickhouse.layout import Index
from stream_app.sinks.clickhouse.statements import check as check_statement
from stream_app.sinks.clickhouse.statements import name as quoted

QUERY_S = 30.0
"""A question of this command may run for so long."""
RECENT = 100_000
"""Offsets at the end of each log that a check is taken to ask for: what arrives within some tens of seconds."""
NO_PRIVILEGE = 497
"""ClickHouse's code ACCESS_DENIED (not enough privileges)."""
INDEX = "gapstream_offset"
_GRANT = re.compile(r"grant (SELECT(?:\([^)]*\))?) ON ([\w`]+\.[\w`*]+)")

Ends = Mapping[int, int]
"""One past the last offset of each partition; empty: Kafka did not tell."""
EndsNow = Callable[[], Awaitable[Ends]]
"""Asks once more."""


async def examine_table(about: str, topic: str, sink: ClickHouseSink, ends: Ends, ends_now: EndsNow) -> list[Finding]:
    """Everything that can be told of it, in the order in which it has to be mended; what hangs on what is wrong is not asked."""
    client, layout = client_of(sink, sink.url, QUERY_S), layout_of_sink(sink)
    table = ClickHouseTable(client, layout, topic)
    try:
        return await _examine(about, sink, table, ends, ends_now)
    finally:
        await client.close()


async def _examine(about: str, sink: ClickHouseSink, table: ClickHouseTable, ends: Ends, ends_now: EndsNow) -> list[Finding]:
    client, layout = table.client, table.layout
    try:
        ((version, user),) = (await client.query("SELECT version(), currentUser()")).rows
    except Refused as refused:
        return [_refusal(about, refused, layout, client.username)]
    found = [ok(about, f"ClickHouse {version.decode()} answers {user.decode()}")]
    facts = await table.inspect()
    if isinstance(facts, Unknown) and "can't be reached" in facts.reason:
        return [*found, unknown(about, facts.reason)]
    if isinstance(facts, Unknown):
        statement = facts.statement or (_grant(layout, user.decode()) if "hides it" in facts.reason else None)
        return [*found, error(about, facts.reason, "run the statement and name its table" if facts.statement else None, statement)]
    found.append(ok(about, f"{layout.name} is a {facts.engine} and can prove what it holds"))
    asked = _recent(layout, ends)
    try:  # the very question of a worker, of a place where nothing stands: it reads next to nothing, and needs every right and column
        await client.query(check_statement(layout, table.topic, [Span(span.partition, 0, 1) for span in asked]))
    except Refused as refused:
        return [*found, _refusal(about, refused, layout, user.decode())]
    found.append(ok(about, f"{user.decode()} may ask it what a worker asks"))
    if layout.partition is None and len(ends) > 1:
        found.append(
            error(about, f"{layout.name} does not say of which partition a row is, and the topic has {len(ends)}", "name columns.partition")
        )
    found += _judge_retention(about, sink, facts)
    index = await table.index(asked)
    found.append(unknown(about, index.reason) if isinstance(index, Unknown) else _judge_index(about, layout, index))
    if ends:
        found += await _look_above(about, table, ends, ends_now)
    return found


def _recent(layout: Layout, ends: Ends) -> list[Span]:
    spans = [Span(number, max(end - RECENT, 0), None) for number, end in sorted(ends.items())] or [Span(0, 0, None)]
    return spans[:1] if layout.partition is None else spans


def _refusal(about: str, refused: Refused, layout: Layout, user: str) -> Finding:
    """The server's own words; where a right lacks, the statement that grants it."""
    words, _, mend = str(refused).rpartition(": ")
    if refused.code is None:
        return unknown(about, words, mend)
    if refused.code != NO_PRIVILEGE:
        return error(about, words, mend)
    lacks = _GRANT.search(str(refused))
    statement = _grant(layout, user) if lacks is None else f"GRANT {lacks[1]} ON {lacks[2]} TO {quoted(user)};"
    return error(about, words, mend, statement)


def _grant(layout: Layout, user: str) -> str:
    """The least that a check needs, unless ``where`` has more columns."""
    columns = ", ".join(quoted(one) for one in (layout.topic, layout.partition, layout.offset) if one is not None)
    tables = [layout.table] if layout.quarantine is None else [layout.table, layout.quarantine]
    return "\n".join(f"GRANT SELECT({columns}) ON {quoted(layout.database)}.{quoted(one)} TO {quoted(user)};" for one in tables)


def _judge_retention(about: str, sink: ClickHouseSink, facts: Facts) -> Iterator[Finding]:
    kept = facts.retention
    if kept.unreadable is not None:
        message = (
            f"of the table's TTL ({kept.unreadable}) nothing can be said: it is taken to leave rows alone for a day, and nothing is swept"
        )
        yield warning(about, message, "give the TTL an age that does not change, as __timestamp + INTERVAL 30 DAY")
    elif kept.keeps_ms is None:
        yield ok(about, "no TTL removes rows")
    elif kept.keeps_ms <= 2 * (sink.grace + sink.every):
        message = f"its TTL keeps rows for {format_duration(kept.keeps_ms)}, and two checks with grace between take longer"
        yield error(about, f"{message}: nothing can be judged", "raise the TTL, or lower grace and every")
    elif kept.keeps_ms < sink.verify:
        message = f"its TTL keeps rows for {format_duration(kept.keeps_ms)}, less than verify, {format_duration(sink.verify)}"
        yield warning(about, f"{message}: sweeps go no further back than the TTL", "lower verify to say so, or raise the TTL")
    else:
        yield ok(about, f"its TTL keeps rows for {format_duration(kept.keeps_ms)}")


def _judge_index(about: str, layout: Layout, index: Index) -> Finding:
    if index.used is None:
        return ok(about, f"{layout.name} is empty, or its engine does not tell how it is read")
    read = f"{index.granules_read} of {index.granules} granules" if index.granules else "all rows"
    if index.used:
        return ok(about, f"a check uses an index: it reads {read}")
    table = f"{quoted(layout.database)}.{quoted(layout.table)}"
    statement = (
        f"ALTER TABLE {table} ADD INDEX {INDEX} {quoted(layout.offset)} TYPE minmax GRANULARITY 1;\n"
        f"ALTER TABLE {table} MATERIALIZE INDEX {INDEX};"
    )
    return warning(
        about,
        f"a check reads {read}: no index helps to find offsets in {layout.name}",
        "order the table by topic, partition and offset, or add an index, which helps where rows stand about as they came",
        statement,
    )


async def _look_above(about: str, table: ClickHouseTable, ends: Ends, ends_now: EndsNow) -> list[Finding]:
    """Rows of another topic of the same name: a worker could judge nothing. What was written meanwhile is none: ends are asked again."""
    found = await table.check(Span(number, end, None) for number, end in ends.items() if table.layout.partition is not None or number == 0)
    if isinstance(found, Unknown):
        return [unknown(about, found.reason)]
    above = [(held.span.partition, last) for held in found.held if (last := held.present.last()) is not None]
    fresh = await ends_now() if above else {}
    for partition, last in above:
        if partition not in fresh:
            message = f"{table.layout.name} has offset {last} of partition {partition}, and where its log ends now is not to be had"
            return [unknown(about, message)]
        if last >= fresh[partition]:
            message = f"{table.layout.name} has offset {last} of partition {partition}, whose log ends at {fresh[partition]}"
            return [
                error(about, message, "leave rows of another topic, or of a former one of the same name, out: see columns.topic and where")
            ]
    return []
