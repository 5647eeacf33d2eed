"""Which columns of a table hold where its rows came from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stream_app.sinks.clickhouse.layout import Layout

ROLES = ("topic", "partition", "offset", "timestamp")
FAMILIES: tuple[Mapping[str, str], ...] = (
    *({role: prefix + role for role in ROLES} for prefix in ("__", "_", "kafka_", "_kafka_", "__kafka_", "source_", "")),
    {role: f"kafka{role.capitalize()}" for role in ROLES},
)
"""Names under which they usually stand, the likeliest first: those of Tinybird; of the Kafka engine, whose virtual columns
a materialized view keeps; those that people give in Kafka Connect's InsertField."""

_INTEGERS = re.compile(r"U?Int(?:8|16|32|64)")
_TEXTS = re.compile(r"String|FixedString\(\d+\)|Enum(?:8|16)?\(.*\)")
_TIMES = re.compile(r"DateTime(?:64)?(?:\(.*\))?|Date(?:32)?|U?Int64")
_TYPES = {"topic": _TEXTS, "partition": _INTEGERS, "offset": _INTEGERS, "timestamp": _TIMES}


def bare_type(declared: str) -> str:
    """A type without ``Nullable``, ``LowCardinality`` and the like around it."""
    for wrapper in ("LowCardinality(", "Nullable("):
        if declared.startswith(wrapper) and declared.endswith(")"):
            return bare_type(declared[len(wrapper) : -1])
    if declared.startswith("SimpleAggregateFunction("):
        return bare_type(declared[:-1].partition(",")[2].strip())
    return declared


def fits(role: str, declared: str) -> bool:
    """Whether a column of this type can hold a topic, partition, offset or timestamp."""
    return _TYPES[role].fullmatch(bare_type(declared)) is not None


def find(columns: Mapping[str, str], *, one_partition: bool) -> dict[str, str | None] | None:
    """The columns by role, of a table's columns by name with their types; None: the table keeps no offsets.

    All are of one family. Without a column for partitions the topic must have one partition only.
    """
    for family in FAMILIES:
        found = {role: name if name in columns and fits(role, columns[name]) else None for role, name in family.items()}
        if found["offset"] is not None and (found["partition"] is not None or one_partition):
            return found
    return None


def complaint(layout: Layout, columns: Mapping[str, str]) -> str | None:
    """Why these columns can't be as the layout has them; None: they can."""
    for role in ROLES:
        name = getattr(layout, role)
        if name is None or (role == "timestamp" and name not in columns):
            continue  # all that hangs on the timestamp is whether a TTL counts from it
        if name not in columns:
            return f"{layout.name} has no column {name}: name the one that holds each row's {role}, or null where there is none"
        if not fits(role, columns[name]):
            return f"{layout.name}.{name} is of type {columns[name]}, which holds no {role}: name another column"
    return None
