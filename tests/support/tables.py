"""Random topics and what a faulty pipeline made of them in a ClickHouse table: the table, and the truth beside it.

Nothing of the program is used here: rows are inserted and deleted by plain statements, and what must be found is counted
record by record.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.clickhouse_kit import ClickHouse

TINYBIRD = ("__topic", "__partition", "__offset", "__timestamp")
KAFKA_ENGINE = ("_topic", "_partition", "_offset", "_timestamp")
START_MS = 1_700_000_000_000

Key = tuple[str, int]
"""Topic and partition."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is inserted."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    mark: str
    """What became of it, for conditions: ``kept`` or ``hidden``."""


@dataclass(slots=True)
class Made:
    """What was done, in blocks of rows, and what must be found at the end."""

    blocks: list[list[Row]] = field(default_factory=list)
    put_aside: list[Row] = field(default_factory=list)
    """Rows of the quarantine table."""
    deleted: list[tuple[str, int, int]] = field(default_factory=list)
    """Topic, partition, offset: deleted after all of it was inserted."""
    ends: dict[Key, int] = field(default_factory=dict)
    """One past the last record."""
    times: dict[Key, list[int]] = field(default_factory=dict)
    """Time of each record, by offset."""

    def counts(self, topic: str, partition: int, mark: str | None = None) -> Counter[int]:
        """Rows per offset; of those with this mark, if one is given."""
        gone = {offset for one, number, offset in self.deleted if (one, number) == (topic, partition)}
        rows = (row for block in self.blocks for row in block if (row.topic, row.partition) == (topic, partition))
        return Counter(row.offset for row in rows if row.offset not in gone and mark in (None, row.mark))

    def quarantined(self, topic: str, partition: int) -> set[int]:
        """Offsets with a row in the quarantine table."""
        return {row.offset for row in self.put_aside if (row.topic, row.partition) == (topic, partition)}


def make(
    rng: random.Random,
    shape: Mapping[str, int],
    records: int,
    *,
    lost: float = 0.01,
    doubled: float = 0.005,
    late: float = 0.01,
    deleted: float = 0.002,
    quarantined: float = 0.003,
    hidden: float = 0.0,
    first: int = 0,
    start_ms: int = START_MS,
) -> Made:
    """About ``records`` for each partition of ``shape`` (topic -> number of partitions), from ``start_ms`` on, and what became of them.

    Records are lost one by one and in runs, doubled up to five times, late by some blocks, deleted afterwards, put aside.
    """
    made = Made()
    blocks: dict[int, list[Row]] = {}
    for topic, partitions in shape.items():
        for partition in range(partitions):
            count = rng.randrange(records // 2, records + 1)
            made.ends[topic, partition] = first + count
            step_ms = rng.randrange(1, 20)
            made.times[topic, partition] = [start_ms + number * step_ms for number in range(count)]
            cut = set(_runs(rng, count, lost))
            for number in range(count):
                row = Row(topic, partition, first + number, start_ms + number * step_ms, "hidden" if rng.random() < hidden else "kept")
                if number in cut:
                    if rng.random() < quarantined / lost:
                        made.put_aside.append(row)
                    continue
                block = number * 8 // count + (rng.randrange(1, 6) if rng.random() < late else 0)
                copies = rng.randrange(2, 6) if rng.random() < doubled else 1
                for _ in range(copies):
                    blocks.setdefault(block, []).append(row)
                    block += rng.randrange(2)  # a copy may come in the same block, or in one of its own
                if rng.random() < deleted:
                    made.deleted.append((topic, partition, row.offset))
    for number in sorted(blocks):
        rng.shuffle(blocks[number])
        made.blocks.append(blocks[number])
    return made


def _runs(rng: random.Random, count: int, share: float) -> Iterator[int]:
    """Numbers below ``count``: single ones, and a run now and then."""
    for number in range(count):
        if rng.random() < share / 2:
            yield number
        elif rng.random() < share / 60:
            yield from range(number, min(count, number + rng.randrange(2, 60)))


def fill(
    server: ClickHouse,
    made: Made,
    table: str = "orders",
    *,
    names: Sequence[str] = TINYBIRD,
    quarantine: str | None = None,
    engine: str = "MergeTree ORDER BY tuple()",
    types: Sequence[str] = ("LowCardinality(String)", "Int32", "Int64", "DateTime64(3, 'UTC')"),
) -> None:
    """Create the table (and its quarantine table) and do what was done."""
    columns = ", ".join(f"`{name}` {kind}" for name, kind in zip(names, types, strict=True))
    for one in (table, quarantine):
        if one is not None:
            server.run(f"CREATE TABLE {one} ({columns}, mark String) ENGINE = {engine}")
    every = (*names, "mark")
    for block in made.blocks:
        server.insert(table, every, (_values(row) for row in block))
    if quarantine is not None and made.put_aside:
        server.insert(quarantine, every, (_values(row) for row in made.put_aside))
    if made.deleted:
        quote = "''"  # ClickHouse takes it doubled
        gone = ", ".join(f"('{topic.replace(quote[0], quote)}', {partition}, {offset})" for topic, partition, offset in made.deleted)
        server.run(f"DELETE FROM {table} WHERE (toString(`{names[0]}`), `{names[1]}`, `{names[2]}`) IN ({gone})")


def _values(row: Row) -> tuple[object, ...]:
    return row.topic, row.partition, row.offset, f"{row.time_ms // 1000}.{row.time_ms % 1000:03}", row.mark
