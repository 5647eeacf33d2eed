from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.web.kit import Serve, ServeApp, Worker


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def serve() -> AsyncIterator[ServeApp]:
    starter = Serve()
    yield starter
    for client in starter.started:
        await client.close()
