"""Whether a table's engine lets it prove what it holds, and how long it keeps its rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stream_app.sinks.clickhouse.layout import Layout, Retention

KEEPING = ("MergeTree", "Memory", "Log", "TinyLog", "StripeLog")
"""Engines that keep every row, until somebody deletes it."""
MERGING = ("ReplacingMergeTree", "AggregatingMergeTree", "CoalescingMergeTree")
"""Engines that make one row of those with the same sorting key, at some time: harmless where the key holds the offset."""
REMOVING = ("SummingMergeTree", "CollapsingMergeTree", "VersionedCollapsingMergeTree", "GraphiteMergeTree")
"""Engines that remove rows altogether: sums of zero, pairs of opposite sign, roll-ups."""
CONSUMING = ("Kafka", "RabbitMQ", "NATS", "S3Queue", "AzureQueue", "FileLog")
"""Engines from which a SELECT takes rows away."""
LOOKING = ("View", "MaterializedView", "Distributed", "Merge", "Buffer")
"""Engines that show the rows of others."""
FINAL = (*MERGING, *REMOVING)
"""Engines of which FINAL hides rows."""

APART = "keep the offsets in a table of their own"

_DAY_MS = 86_400_000
_UNITS_MS = {
    "second": 1_000,
    "minute": 60_000,
    "hour": 3_600_000,
    "day": _DAY_MS,
    "week": 7 * _DAY_MS,
    "month": 28 * _DAY_MS,
    "quarter": 89 * _DAY_MS,
    "year": 365 * _DAY_MS,
}
"""The shortest that each can be."""
_COLUMN = r"(?:`(?P<quoted>(?:[^`\\]|\\.)+)`|(?P<plain>\w+))"
_AGE = re.compile(
    rf"(?P<cast>toDateTime64|toDateTime|toDate32|toDate)?\(?{_COLUMN}(?:, [^()]*)?\)? \+ toInterval(?P<unit>\w+)\((?P<count>\d+)\)"
)
_ACTION = re.compile(r"\s+(?:DELETE|WHERE|GROUP BY|SET|TO DISK|TO VOLUME|RECOMPRESS)\b")
_MOVES = re.compile(r"\s(?:TO DISK|TO VOLUME|RECOMPRESS)\s")


@dataclass(frozen=True, slots=True)
class Table:
    """A row of ``system.tables``."""

    database: str
    name: str
    engine: str
    engine_full: str
    sorting_key: str

    @property
    def family(self) -> str:
        """The engine without the words that say how it is replicated."""
        return re.sub(r"^(?:Replicated|Shared)(?=\w*MergeTree$)", "", self.engine)


def complaint(table: Table, layout: Layout) -> str | None:
    """Why this table can't prove which offsets it received; None: it can."""
    family, where = table.family, f"{table.database}.{table.name}"
    if family in KEEPING or family in LOOKING:
        return None
    if family in CONSUMING:
        return f"{where} is a table of the {table.engine} engine, from which a query takes records away: name the table that its rows go to"
    if family in MERGING:
        coordinates = {column for column in (layout.topic, layout.partition, layout.offset) if column}
        if coordinates <= key_columns(table.sorting_key):
            return None
        return f"{where} makes one row of those with the same ({table.sorting_key}), so a row may go that was there: {APART}"
    if family in REMOVING:
        return f"{where} is a {table.engine}, which removes rows when it merges them: {APART}"
    return f"{where} is of engine {table.engine}, of which it is not known that it keeps every row: {APART}"


def distributed_over(table: Table) -> tuple[str, str] | None:
    """Database and name of the table on the shards of a Distributed one; None: it is none, or says so in another way."""
    found = re.match(r"Distributed\((?:'[^']*'|\w+), (?:'(?P<d>[^']*)'|(?P<d2>\w+)), (?:'(?P<t>[^']*)'|(?P<t2>\w+))", table.engine_full)
    if table.engine != "Distributed" or found is None:
        return None
    return found["d"] or found["d2"], found["t"] or found["t2"]


def key_columns(sorting_key: str) -> set[str]:
    """The columns that stand in a sorting key as they are, not inside an expression."""
    return {part[1:-1].replace("\\`", "`") if part.startswith("`") else part for part in split_top(sorting_key)}


def retention(tables: Sequence[Table], timestamp: str | None) -> Retention:
    """What the TTLs of these tables leave, the strictest of them; ``timestamp`` is the column of the record's time.

    A TTL that counts from another column is taken to count from a time near the record's.
    """
    strictest = Retention()
    for table in tables:
        for rule in _deleting_rules(table.engine_full):
            one = _keeps(rule, timestamp)
            if one.unreadable is not None:
                return one
            assert one.keeps_ms is not None
            if strictest.keeps_ms is None or one.keeps_ms < strictest.keeps_ms:
                strictest = one
    return strictest


def _keeps(rule: str, timestamp: str | None) -> Retention:
    found = _AGE.fullmatch(rule)
    unit = _UNITS_MS.get(found["unit"].lower()) if found is not None else None
    if found is None or unit is None:
        return Retention(unreadable=rule)
    keeps_ms = int(found["count"]) * unit
    if found["cast"] in ("toDate", "toDate32"):
        keeps_ms = max(keeps_ms - _DAY_MS, 0)  # counted from the midnight before
    column = found["plain"] or found["quoted"].replace("\\`", "`")
    return Retention(keeps_ms, None if column == timestamp else column)


def _deleting_rules(engine_full: str) -> Iterator[str]:
    """The expressions of the rules that delete rows, or make fewer of them."""
    clause = re.search(r" TTL (?P<rules>.*?)(?: SETTINGS .*)?$", engine_full, re.DOTALL)
    if clause is None:
        return
    for rule in split_top(clause["rules"]):
        if _MOVES.search(f"{rule} "):
            continue
        yield _ACTION.split(rule, maxsplit=1)[0].strip()


def split_top(text: str) -> list[str]:
    """The parts between the commas that stand outside of brackets and quotes."""
    parts, depth, begin, quote, escaped = [], 0, 0, "", False
    for at, char in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "'`\"":
            quote = char
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [part for part in (*parts, text[begin:].strip()) if part]
