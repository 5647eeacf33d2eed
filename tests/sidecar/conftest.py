from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gapstream_sidecar import Sidecar
from gapstream_sidecar.deliveries import Key
from gapstream_sidecar.leases import Session
from tests.sidecar.fakes import FakeAioConsumer, FakeConsumer, FakeProducer

FAR = 2**50


@dataclass
class Bench:
    """A sidecar on a producer that does what it is told, and what happened, in order."""

    journal: list[str] = field(default_factory=list)
    producers: list[FakeProducer] = field(default_factory=list)
    sidecars: list[Sidecar] = field(default_factory=list)
    owners: dict[Key, list[Session]] = field(default_factory=dict)
    """What former owners have said last, under auto-commit."""
    tails_read: list[Key] = field(default_factory=list)
    log_ends: dict[Key, int | None] = field(default_factory=dict)
    """What is answered to whoever asks where logs end; far away, where nothing stands here."""
    ends_asked: list[list[Key]] = field(default_factory=list)
    ends_answered: bool = True
    """Or nothing is answered, not even that it is not known."""

    def make_producer(self, settings: dict[str, Any]) -> FakeProducer:
        assert settings["acks"] == "all"
        self.producers.append(FakeProducer(self.journal))
        return self.producers[-1]

    def sidecar(self, **options: Any) -> Sidecar:
        self.sidecars.append(Sidecar({"bootstrap.servers": "nowhere:1"}, **{"sink": "billing", **options}))
        return self.sidecars[-1]

    def consumer(self, **options: Any) -> FakeConsumer:
        return FakeConsumer(self.journal, **options)

    def wrapped(self, sidecar: Sidecar | None = None, *, auto_commit: bool = False, **options: Any) -> tuple[Any, FakeConsumer]:
        """A wrapped consumer, and the consumer inside."""
        inside = self.consumer(**options)
        conf = {"group.id": "g", "enable.auto.commit": auto_commit, "enable.auto.offset.store": options.get("auto_store", True)}
        return (sidecar or self.sidecar()).wrap(inside, conf), inside

    def aio(self, sidecar: Sidecar | None = None, **options: Any) -> tuple[Any, FakeAioConsumer]:
        """The same of aiokafka's kind; it owns the partitions 0 and 1."""
        inside = FakeAioConsumer(**options)
        inside.assign(0, 1)
        return (sidecar or self.sidecar()).wrap(inside), inside

    @property
    def producer(self) -> FakeProducer:
        return self.producers[-1]

    def runs(self) -> list[list[list[int]]]:
        """The runs of the observations acknowledged, in their order."""
        return [one["runs"] for one in self.producer.said() if one["runs"]]

    def make_tail(self, *_: object) -> Bench:
        return self

    def find(self, keys: list[Key], own: str, found: Callable[[Key, list[Session]], None]) -> None:
        """As a tail reader, at once."""
        assert own == self.sidecars[-1].source
        self.tails_read += keys
        for key in keys:
            found(key, self.owners.get(key, []))


@dataclass
class Ends:
    """Answers at once, as the bench says."""

    bench: Bench

    def find(self, keys: list[Key], found: Callable[[dict[Key, int | None]], None]) -> None:
        self.bench.ends_asked.append(keys)
        if self.bench.ends_answered:
            found({key: self.bench.log_ends.get(key, FAR) for key in keys})


@contextmanager
def opened_bench() -> Iterator[Bench]:
    """What the fixture gives, for each example that is tried."""
    one = Bench()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapstream_sidecar.sidecar.Producer", one.make_producer)
        patch.setattr("gapstream_sidecar.sidecar.TailReader", one.make_tail)
        patch.setattr("gapstream_sidecar.sidecar.EndsReader", lambda *_: Ends(one))
        yield one
        for producer in one.producers:
            producer.release()
        for sidecar in one.sidecars:
            sidecar.close(timeout=1.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with opened_bench() as one:
        yield one


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent because time has passed: a commit, a flush or the end must ask for it."""
    monkeypatch.setattr("gapstream_sidecar.reporter.LINGER_S", 3_600.0)
    monkeypatch.setattr("gapstream_sidecar.reporter.SKIPPED_LINGER_S", 3_600.0)


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One observation a partition may go at once; the next ones have to wait for their turn, which does not come."""
    monkeypatch.setattr("gapstream_sidecar.pace.BURST", 1)
    monkeypatch.setattr("gapstream_sidecar.pace.IN_ORDER_S", 3_600.0)
    monkeypatch.setattr("gapstream_sidecar.pace.SKIPPED_S", 3_600.0)
