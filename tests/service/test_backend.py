"""Readiness: an assignment received, state recovered, the cluster reachable, not draining; each reason by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest

from stream_app.service.backend import Backend
from stream_app.service.explain import Explainer
from stream_app.service.metrics import Counters, Metrics
from stream_app.service.orders import Orders
from stream_app.service.owners import OwnedPartitions
from stream_app.service.view import StatusView
from tests.web.kit import Observed


class World:
    """Everything is well."""

    def __init__(self) -> None:
        self.owned = SimpleNamespace(assigned=True, waiting=None, owners=lambda: self.owners)
        self.owners: list[Any] = [SimpleNamespace(topic="orders", partition=3, trouble=None)]
        self.app = SimpleNamespace(rebalancing=False, unassigned=False)
        self.trouble: str | None = None
        self.view = StatusView({}, 300)
        self.view.loaded = True
        self.orders = SimpleNamespace()
        metrics = Metrics(list, Counters(), self.view, lambda: 7)
        self.explained: list[Any] = []
        self.backend = Backend(
            cast(faust.App, self.app),
            cast(OwnedPartitions, self.owned),
            self.view,
            metrics,
            lambda: 7,
            lambda: self.trouble,
            cast(Explainer, self),
            cast(Orders, self.orders),
            Observed(),
        )

    async def explain(self, *asked: Any, **options: Any) -> dict[str, Any]:
        self.explained.append((asked, options))
        return {"runs": []}

    def reasons(self) -> list[str]:
        ready = self.backend.ready()
        assert ready.ok is not bool(ready.reasons)
        return list(ready.reasons)


@pytest.fixture
def world() -> World:
    return World()


def test_ready(world: World) -> None:
    assert world.reasons() == []


async def test_a_sink_is_dropped_by_an_order(world: World) -> None:
    given: list[tuple[str, str, str]] = []

    async def drop(*order: str) -> int:
        given.append(cast(tuple[str, str, str], order))
        return 4

    world.orders.drop = drop
    assert await world.backend.drop_sink("orders", "old", "alice") == 4
    assert given == [("orders", "old", "alice")]


def test_draining(world: World) -> None:
    world.backend.draining = True
    assert world.reasons() == ["the worker is stopping"]


def test_no_cluster(world: World) -> None:
    world.trouble = "could not list the topics: refused"
    world.owned.assigned = False
    world.view.loaded = False
    assert world.reasons() == ["could not list the topics: refused"]


def test_no_assignment_yet(world: World) -> None:
    world.owned.assigned = False
    assert world.reasons() == ["waiting for an assignment of partitions"]
    world.owned.waiting = "waiting for topics that do not exist yet: orders"
    assert world.reasons() == ["waiting for topics that do not exist yet: orders"]


def test_an_empty_assignment_is_one(world: World) -> None:
    """More workers than partitions: Faust seeks nothing then, so nobody begins."""
    world.owned.assigned, world.app.unassigned, world.owners = False, True, []
    assert world.reasons() == []


@pytest.mark.parametrize("unassigned", [False, True])
def test_a_rebalance(world: World, unassigned: bool) -> None:
    world.app.rebalancing, world.app.unassigned = True, unassigned
    assert world.reasons() == ["waiting for an assignment of partitions"]


def test_topics_that_are_away_do_not_hold_up_the_others(world: World) -> None:
    world.owned.waiting = "waiting for topics that do not exist yet: sales"
    assert world.reasons() == []


def test_the_status_topic_is_being_read(world: World) -> None:
    world.view.loaded = False
    assert world.reasons() == ["the status topic is being read"]


def test_a_partition_in_trouble(world: World) -> None:
    world.owners.append(SimpleNamespace(topic="orders", partition=4, trouble="state is being recovered"))
    assert world.reasons() == ["orders/4: state is being recovered"]


async def test_the_rest_is_handed_on(world: World) -> None:
    assert world.backend.clock_ms() == 7
    assert b"gapstream_build_info" in world.backend.metrics()
    options: dict[str, Any] = {"sink": "billing", "allow": None, "show_keys": False}
    assert await world.backend.explain("orders", 3, 5, 9, **options) == {"runs": []}
    assert world.explained == [(("orders", 3, 5, 9), options)]
