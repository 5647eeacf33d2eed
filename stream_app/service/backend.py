"""What the HTTP answers of this worker are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faust

from stream_app.service.explain import Explainer
from stream_app.service.metrics import Metrics
from stream_app.service.orders import Orders
from stream_app.service.owners import OwnedPartitions
from stream_app.service.view import Allow, StatusView
from stream_app.web.api import Readiness
from stream_app.web.observations import Observing


class Backend:
    """Implements :class:`stream_app.web.api.Backend`."""

    def __init__(
        self,
        app: faust.App,
        owners: OwnedPartitions,
        view: StatusView,
        metrics: Metrics,
        clock: Callable[[], int],
        trouble: Callable[[], str | None],
        explainer: Explainer,
        orders: Orders,
        observing: Observing,
    ) -> None:
        """``trouble``: why the cluster can't be used now."""
        self.view, self.observing = view, observing
        self._explainer, self._orders = explainer, orders
        self.draining = False
        self._app, self._owners, self._metrics, self._clock, self._trouble = app, owners, metrics, clock, trouble

    def ready(self) -> Readiness:
        """Assignment received (it may be empty), state recovered, cluster reachable, not draining."""
        reasons = []
        trouble = self._trouble()
        if self.draining:
            reasons.append("the worker is stopping")
        if trouble is not None:
            reasons.append(trouble)
        elif not (self._owners.assigned or self._app.unassigned) or self._app.rebalancing:
            reasons.append(self._owners.waiting or "waiting for an assignment of partitions")
        elif not self.view.loaded:
            reasons.append("the status topic is being read")
        reasons += [f"{owner.topic}/{owner.partition}: {owner.trouble}" for owner in self._owners.owners() if owner.trouble is not None]
        return Readiness(not reasons, reasons)

    def metrics(self) -> bytes:
        """Text of /metrics."""
        return self._metrics.text()

    async def explain(
        self, topic: str, partition: int, first: int, stop: int, *, sink: str | None, allow: Allow | None, show_keys: bool
    ) -> dict[str, Any]:
        """Asks Kafka."""
        return await self._explainer.explain(topic, partition, first, stop, sink=sink, allow=allow, show_keys=show_keys)

    def clock_ms(self) -> int:
        """Now."""
        return self._clock()

    async def drop_sink(self, topic: str, sink: str, by: str) -> int:
        """Through the observations topic: the owners of the partitions may be other workers."""
        return await self._orders.drop(topic, sink, by)
