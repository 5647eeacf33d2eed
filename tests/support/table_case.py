"""A topic with a ClickHouse table as its sink, seen through a worker."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.support.clickhouse_kit import ClickHouse
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Alerts, Worker, eventually, listed

COLUMNS = ("__topic", "__partition", "__offset", "__timestamp")
TYPES = "__topic LowCardinality(String), __partition Int32, __offset Int64, __timestamp DateTime64(3, 'UTC')"
KEY = "ORDER BY (__topic, __partition, __offset)"
SINK: dict[str, Any] = {"type": "clickhouse", "every": "1s", "grace": "1s", "sweep": "1s", "from": "earliest", "stall_after": None}


def block(topic: str, offsets: Iterable[int], partition: int = 0) -> list[tuple[object, ...]]:
    """Rows as an ingesting pipeline writes them."""
    return [(topic, partition, offset, "2026-11-24 10:00:00.000") for offset in offsets]


@dataclass
class Case:
    """One topic with one table, seen through the worker."""

    kit: KafkaKit
    worker: Worker
    server: ClickHouse
    topic: str
    table: str
    """And the sink, unless another one is said."""

    def insert(self, *offsets: Iterable[int], partition: int = 0, table: str | None = None, **settings: str) -> None:
        """Each as a block of its own."""
        for some in offsets:
            self.server.insert(table or self.table, COLUMNS, block(self.topic, some, partition), **settings)

    def delete(self, first: int, last: int) -> None:
        self.server.run(f"DELETE FROM {self.table} WHERE __offset BETWEEN {first} AND {last}")

    def row(self, sink: str | None = None, partition: int = 0) -> dict[str, Any]:
        rows = self.worker.get(f"/api/partitions?topic={self.topic}&sink={sink or self.table}")["partitions"]
        return next((row for row in rows if row["partition"] == partition), {})

    def gaps(self, sink: str | None = None, **query: str) -> set[int]:
        """Offsets of what is missing in partition 0."""
        asked = "".join(f"&{name}={value}" for name, value in query.items())
        found = listed(self.worker.get(f"/api/gaps?topic={self.topic}&sink={sink or self.table}{asked}"))
        return set().union(*(offsets for (_, partition, _), offsets in found.items() if partition == 0))

    def until_gaps(self, *offsets: int, sink: str | None = None, **query: str) -> None:
        eventually(lambda: self.gaps(sink, **query) == set(offsets), f"gaps {offsets}")

    def until_horizon(self, offset: int, sink: str | None = None) -> None:
        eventually(lambda: self.row(sink).get("horizon_offset") == offset, f"horizon {offset}")

    def metric(self, name: str, **labels: str) -> float | None:
        """A series of the sink, as ``/metrics`` has it now; None: it is not there."""
        wanted = {f'{label}="{value}"' for label, value in {"sink": self.table, **labels}.items()}
        for line in self.worker.text("/metrics").splitlines():
            series, _, value = line.rpartition(" ")
            if series.startswith(f"{name}{{") and wanted <= set(series[len(name) + 1 : -1].split(",")):
                return float(value)
        return None

    def log_lines(self, words: str) -> list[str]:
        """Lines of the worker's log that have them."""
        return [line for line in self.worker.log.read_text().splitlines() if words in line]

    def checks(self, count: int = 4, sink: str | None = None) -> None:
        """The table was asked so often since; with a grace of one of them, everything that had to be said was."""
        before = self.checked(sink)
        eventually(lambda: self.checked(sink) >= before + count, "questions")

    def checked(self, sink: str | None = None) -> float:
        """How often it answered."""
        series = f'gapstream_clickhouse_checks_total{{outcome="ok",sink="{sink or self.table}"}}'
        return next(float(line.rpartition(" ")[2]) for line in self.worker.text("/metrics").splitlines() if line.startswith(series))

    def until_unknown(self, reason: str) -> None:
        eventually(lambda: reason in (self.row().get("reason") or "") and self.row()["state"] == "unknown", reason)

    def events(self, sink: str | None = None) -> list[dict[str, Any]]:
        """A sink's on the alerts topic, where all of them must be in order and without holes."""
        alerts, found = Alerts(), []
        for message in self.worker.rig.read(f"{self.worker.rig.app_id}.alerts"):
            alerts.take(message)
            found.append(json.loads(message.value() or b""))
        assert alerts.faults == []
        return [event for event in found if (event["topic"], event["sink"]) == (self.topic, sink or self.table)]

    def told(self, sink: str | None = None) -> list[tuple[str, str | None, Any]]:
        return [(event["type"], event["cause"], event["ranges"]) for event in self.events(sink)]
