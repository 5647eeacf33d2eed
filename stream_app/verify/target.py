"""Which table is meant, and how it is laid out: a configured sink, or one that is named on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stream_app.config import ClickHouseSink, Config
from stream_app.config.sinks import ClickHouseKeys
from stream_app.config.tables import client_of, layout_of, layout_of_sink
from stream_app.config.values import read_url
from stream_app.errors import UsageError
from stream_app.sinks.clickhouse import ClickHouseTable, Layout, Unknown
from stream_app.sinks.clickhouse.client import ClickHouseClient, Refused
from stream_app.sinks.clickhouse.columns import ROLES, find
from stream_app.sinks.clickhouse.table import column_types
from stream_app.verify.run import Target

DEFAULT_OFFSET = "__offset"
"""Said where no column was found: the table's inspection tells that it is not there."""
QUERY_S = 600.0
"""A query of a verification may run for so long: nobody waits for the next one."""


@dataclass(frozen=True, slots=True)
class Named:
    """A table that stands in no file: ``--clickhouse URL --table DB.T --columns ...``."""

    url: str
    database: str
    table: str
    columns: Mapping[str, str | None]
    """By role, as far as they are given; None: there is none."""

    @classmethod
    def of(cls, url: str, table: str, columns: str | None) -> Named:
        """From the command line.

        Raises:
            UsageError: the address or the columns can't be read.
        """
        try:
            read_url(url)
        except ValueError as error:
            raise UsageError(f"--clickhouse {error}, as in http://localhost:8123") from error
        database, dot, name = table.partition(".")
        if not dot:
            database, name = "default", table
        return cls(url, database, name, _columns(columns))


def _columns(text: str | None) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for part in (text or "").split(",") if text else ():
        role, sign, name = (piece.strip() for piece in part.partition("="))
        if not sign or role not in ROLES or not name:
            raise UsageError(f"--columns {part.strip()!r} is no ROLE=NAME: the roles are {', '.join(ROLES)}; null where there is none")
        found[role] = None if name == "null" else name
    if found.get("offset", "") is None:
        raise UsageError("--columns offset=null: without offsets nothing can be compared")
    return found


@dataclass(frozen=True, slots=True)
class Chosen:
    """A table, and what its keys say of a comparison."""

    client: ClickHouseClient
    target: Target
    name: str
    """For people."""
    tombstones_optional: bool
    floor: str
    """``first``, ``earliest``, ``latest`` or a TIME, as a sink's key ``from``."""


def of_sink(config: Config, topic: str, name: str) -> Chosen:
    """A configured sink.

    Raises:
        UsageError: there is none of that name, or it is no table.
    """
    sinks = config.topic_sinks(topic)
    sink = sinks.get(name)
    if sink is None:
        known = ", ".join(sorted(sinks)) or "none"
        raise UsageError(f"{topic} has no sink {name} in the configuration: it has {known}; or name a table with --clickhouse and --table")
    if not isinstance(sink, ClickHouseSink):
        raise UsageError(
            f"{name} is a sink of type {sink.type}: verify compares with tables of ClickHouse; gapstream status tells of the others"
        )
    client, layout = client_of(sink, sink.url, QUERY_S), layout_of_sink(sink)

    async def target(_partitions: int) -> ClickHouseTable:
        return ClickHouseTable(client, layout, topic)

    return Chosen(client, target, layout.name, sink.tombstones == "optional", sink.from_)


def of_named(config: Config, topic: str, named: Named) -> Chosen:
    """A table named on the spot; what was not said of it stands in ``defaults.clickhouse``."""
    keys = config.defaults.clickhouse
    client = client_of(keys, named.url, QUERY_S)

    async def target(partitions: int) -> ClickHouseTable | Unknown:
        layout = await _find_layout(client, named, keys, one_partition=partitions == 1)
        return layout if isinstance(layout, Unknown) else ClickHouseTable(client, layout, topic)

    return Chosen(client, target, f"{named.database}.{named.table}", keys.tombstones == "optional", "earliest")


async def _find_layout(client: ClickHouseClient, named: Named, keys: ClickHouseKeys, *, one_partition: bool) -> Layout | Unknown:
    """The columns that are not given are found by their usual names."""
    try:
        known = await column_types(client, named.database, named.table)
    except Refused as refused:
        return Unknown(str(refused))
    found = find(known, one_partition=one_partition) or find(known, one_partition=True) or {}
    columns = {role: named.columns[role] if role in named.columns else found.get(role) for role in ROLES}
    layout = layout_of(keys, named.database, named.table, columns["offset"] or DEFAULT_OFFSET)
    return replace(layout, topic=columns["topic"], partition=columns["partition"], timestamp=columns["timestamp"])
