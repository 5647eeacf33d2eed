"""The table of the demo, in the embedded ClickHouse: what the pipeline inserts and deletes, and how the worker is told of it.

Statements go over plain HTTP on loopback and past any proxy: the pipeline shares no code with what checks the table.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from stream_app.errors import Unavailable

TOPIC = "clicks"
"""The topic that is loaded into the table, and into nothing else."""
SINK = "warehouse"
TABLE, QUARANTINE = "clicks", "clicks_quarantine"
BLOCK_S = 0.5
"""Rows are inserted together so often."""
CALL_SECONDS = 10.0

_COLUMNS = "`__topic` LowCardinality(String), `__partition` Int32, `__offset` Int64, `__timestamp` DateTime64(3, 'UTC')"
_KEY = "MergeTree ORDER BY (`__topic`, `__partition`, `__offset`)"


def is_installed() -> bool:
    """Whether the embedded ClickHouse and what asks it are there: the extra ``demo``."""
    return all(importlib.util.find_spec(name) is not None for name in ("chdb", "clickhouse_connect"))


def sink(port: int) -> dict[str, Any]:
    """As it stands in the configuration. It is asked as often as that is allowed, or nobody would wait for the verdicts."""
    return {
        "type": "clickhouse",
        "url": f"http://127.0.0.1:{port}",
        "table": TABLE,
        "quarantine": {"table": QUARANTINE},
        "every": "1s",
        "grace": "1s",
        "sweep": "1s",
        "from": "earliest",
    }


def create(port: int) -> None:
    """Both tables. Raises Unavailable."""
    for table in (TABLE, QUARANTINE):
        run(port, f"CREATE TABLE `{table}` ({_COLUMNS}) ENGINE = {_KEY}")


def run(port: int, sql: str, rows: bytes = b"") -> None:
    """One statement; ``rows``: the data of an INSERT. Raises Unavailable."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS)
    try:
        connection.request("POST", f"/?query={quote(sql)}", rows)
        response = connection.getresponse()
        said = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"the embedded ClickHouse does not answer ({error}); run the demo again") from error
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise Unavailable(f"the embedded ClickHouse refused a statement ({said}); run the demo again")


@dataclass(slots=True)
class Loader:
    """Loads records into the table, a block at a time."""

    port: int
    _blocks: dict[str, list[tuple[str, int, int, float]]] = field(default_factory=lambda: {QUARANTINE: [], TABLE: []})
    """The quarantine first: what is put aside must not look lost in between."""
    _inserted_at: float = 0.0

    def insert(self, topic: str, partition: int, offsets: Iterable[int], *, quarantined: bool) -> None:
        """A row for each, with the next block."""
        now = time.time()
        self._blocks[QUARANTINE if quarantined else TABLE] += [(topic, partition, offset, now) for offset in offsets]

    def delete(self, topic: str, partition: int, first: int, stop: int) -> None:
        """At once."""
        self.flush()
        where = f"`__topic` = '{topic}' AND `__partition` = {partition} AND `__offset` >= {first} AND `__offset` < {stop}"
        run(self.port, f"DELETE FROM `{TABLE}` WHERE {where}")  # noqa: S608  # all of it is ours

    def turn(self, now_s: float) -> None:
        """Insert the block when it is time."""
        if now_s - self._inserted_at >= BLOCK_S:
            self._inserted_at = now_s
            self.flush()

    def flush(self) -> None:
        """Insert what there is."""
        for table, rows in self._blocks.items():
            if rows:
                names = "`__topic`, `__partition`, `__offset`, `__timestamp`"
                run(self.port, f"INSERT INTO `{table}` ({names}) FORMAT JSONCompactEachRow", "\n".join(map(json.dumps, rows)).encode())
                rows.clear()
