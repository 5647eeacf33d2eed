"""What is in a table and what ever was, kept row by row while it is done; shares no code with the program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.support.clickhouse_kit import ClickHouse
from tests.support.tables import TINYBIRD, Key, Made, Row

TYPES = ("LowCardinality(String)", "Int32", "Int64", "DateTime64(3, 'UTC')", "String")
COLUMNS = (*TINYBIRD, "mark")
ROWS_MAX = 50_000
"""Of one INSERT."""

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Of one sink and partition."""

    not_received: set[int]
    vanished: set[int]
    doubled: set[int]
    duplicates: int
    """Rows beyond one of each offset, as many as there ever were at a time."""
    horizon: int | None

    @property
    def missing(self) -> int:
        """Of either cause."""
        return len(self.not_received) + len(self.vanished)


@dataclass(slots=True)
class Loaded:
    """One table, and its quarantine table."""

    server: ClickHouse
    name: str
    made: Made
    """What is to be done to it."""
    rows: dict[Key, Counter[int]] = field(default_factory=dict)
    most: dict[Key, Counter[int]] = field(default_factory=dict)
    """How many rows there ever were at a time, by offset: what was there at all is in it."""
    aside: dict[Key, set[int]] = field(default_factory=dict)
    marks: dict[Place, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = ", ".join(f"`{name}` {kind}" for name, kind in zip(COLUMNS, TYPES, strict=True))
        key = ", ".join(f"`{name}`" for name in TINYBIRD[:3])
        for table in (self.name, f"{self.name}_aside"):
            self.server.run(f"CREATE TABLE {table} ({columns}) ENGINE = MergeTree ORDER BY ({key})")
        for key_ in self.made.ends:
            self.rows[key_], self.most[key_], self.aside[key_] = Counter(), Counter(), set()

    # --- doing --------------------------------------------------------------------------------------------------------

    def insert(self, rows: list[Row]) -> None:
        """In as few blocks as that takes."""
        self._insert(self.name, rows)
        for row in rows:
            at = (row.topic, row.partition)
            self.rows[at][row.offset] += 1
            self.most[at][row.offset] = max(self.most[at][row.offset], self.rows[at][row.offset])
            self.marks[row.topic, row.partition, row.offset] = row.mark

    def put_aside(self) -> None:
        """All rows of the quarantine table."""
        self._insert(f"{self.name}_aside", self.made.put_aside)
        for row in self.made.put_aside:
            self.aside[row.topic, row.partition].add(row.offset)

    def _insert(self, table: str, rows: list[Row]) -> None:
        for at in range(0, len(rows), ROWS_MAX):
            values = ((row.topic, row.partition, row.offset, row.time_ms / 1000, row.mark) for row in rows[at : at + ROWS_MAX])
            self.server.insert(table, COLUMNS, values)

    def delete(self, places: Iterable[Place]) -> None:
        """All rows of these."""
        gone = [place for place in places if self.rows[place[:2]][place[2]]]
        if not gone:
            return
        wanted = ", ".join(f"('{topic}', {partition}, {offset})" for topic, partition, offset in gone)
        self.server.run(f"DELETE FROM {self.name} WHERE (toString(`{TINYBIRD[0]}`), `{TINYBIRD[1]}`, `{TINYBIRD[2]}`) IN ({wanted})")
        for topic, partition, offset in gone:
            del self.rows[topic, partition][offset]

    # --- knowing ------------------------------------------------------------------------------------------------------

    def top(self, topic: str, partition: int) -> int:
        """The highest offset that ever was there."""
        return max(self.most[topic, partition])

    def present(self) -> list[Place]:
        """Everything that is there."""
        return [(*key, offset) for key, counts in self.rows.items() for offset in sorted(counts)]

    def vanished(self) -> list[Place]:
        """What was there and is not."""
        return [(*key, offset) for key, counts in self.most.items() for offset in sorted(set(counts) - set(self.rows[key]))]

    def lost(self) -> list[Place]:
        """What never was there, below what was, and was not put aside."""
        found: list[Place] = []
        for key, counts in self.most.items():
            found += [(*key, offset) for offset in range(max(counts)) if offset not in counts and offset not in self.aside[key]]
        return found

    def expected(self, key: Key, mark: str | None, *, aside: bool) -> Expected:
        """For a sink that sees rows of this mark (None: all), and the quarantine table or not."""

        def seen(offset: int) -> bool:
            return mark is None or self.marks[*key, offset] == mark

        most = {offset: count for offset, count in self.most[key].items() if seen(offset)}
        now = {offset for offset in self.rows[key] if seen(offset)}
        explained = self.aside[key] if aside else set()
        horizon = max([*most, *explained], default=-1) + 1
        return Expected(
            not_received=set(range(horizon)) - set(most) - explained,
            vanished=set(most) - now,
            doubled={offset for offset, count in most.items() if count > 1},
            duplicates=sum(count - 1 for count in most.values()),
            horizon=horizon,
        )
