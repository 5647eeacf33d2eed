"""What the tests of the log reader share: brokers that answer as told, and a reader without patience."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from stream_app.kafka import evidence, lane, reader
from tests.support.fake_broker import FakeCluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster() as made:
        yield made


@pytest.fixture
async def two_nodes() -> AsyncIterator[FakeCluster]:
    async with FakeCluster(2) as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits that only politeness asks for, a tenth as long."""
    monkeypatch.setattr(reader, "PATIENCE_S", 0.2)
    monkeypatch.setattr(evidence, "BELIEVE_S", 0.2)
    monkeypatch.setattr(evidence, "BELIEVE_WITHOUT_EPOCHS_S", 0.4)
    monkeypatch.setattr(reader, "RETRY_S", (0.02, 0.1))
    monkeypatch.setattr(reader, "HOPELESS_S", 0.1)
    monkeypatch.setattr(reader, "IDS_S", 0.2)
    monkeypatch.setattr(lane, "STUCK_AFTER_S", 0.3)
    monkeypatch.setattr(lane, "RETRY_S", (0.01, 0.05))
