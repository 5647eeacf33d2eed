from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stream_app.sinks.clickhouse.client import ClickHouseClient


@pytest.fixture
async def client(clickhouse_url: str) -> AsyncIterator[ClickHouseClient]:
    """Our client of the test server."""
    made = ClickHouseClient(clickhouse_url)
    yield made
    await made.close()
