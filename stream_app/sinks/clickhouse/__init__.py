"""A ClickHouse table as a sink: what it holds of a topic, exactly, offset by offset.

::

    table = ClickHouseTable(client, layout, "orders")
    facts = await table.inspect()                 # or Unknown: this table can't prove what it has
    found = await table.check([Span(3, settled, None)])
    for held in found.held:                       # or Unknown: not this time
        held.present, held.rows, held.doubled

Pure: :mod:`layout` (words), :mod:`statements`, :mod:`answers`, :mod:`engines`, :mod:`columns`. :mod:`client` speaks to the
server, :mod:`table` puts one question together.
"""

from __future__ import annotations

from stream_app.sinks.clickhouse.layout import Check, Facts, Held, Index, Layout, Retention, Span, Unknown
from stream_app.sinks.clickhouse.table import ClickHouseTable

__all__ = ["Check", "ClickHouseTable", "Facts", "Held", "Index", "Layout", "Retention", "Span", "Unknown"]
