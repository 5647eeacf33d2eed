"""The Faust agents: one on each watched topic, one on its observations. They only hand on; the owners do the work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import faust
from faust.serializers.schemas import Schema
from faust.types import EventT, Message

from stream_app.core.model import LogRead
from stream_app.kafka.driver import Bundle
from stream_app.kafka.names import TopicNames
from stream_app.service.owners import OwnedPartitions


class AsDelivered(Schema):  # type: ignore[type-arg]  # Faust's generic has no use here
    """Events carry what the driver made, not bytes to be decoded."""

    def compile(self, app: Any, **kwargs: Any) -> Any:
        """The decoder: hands the value on."""

        async def decode(message: Message, *, propagate: bool = False) -> EventT[Any]:
            event: EventT[Any] = app.create_event(message.key, message.value, message.headers, message)
            return event

        return decode


def add_agents(app: faust.App, names: TopicNames, owners: OwnedPartitions) -> None:
    """Register both agents of one watched topic."""
    logs = app.topic(names.watched, schema=AsDelivered(), key_type=bytes, value_type=bytes, allow_empty=True)
    observations = app.topic(names.observations, schema=AsDelivered(), key_type=bytes, value_type=bytes, allow_empty=True)

    async def read_log(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            read = event.value
            assert isinstance(read, LogRead)
            owners.fold_log(event.message.topic, event.message.partition, read)
            yield

    async def hear(stream: Any) -> AsyncIterator[None]:
        async for event in stream.events():
            bundle = event.value
            assert isinstance(bundle, Bundle)
            await owners.fold_observations(event.message.topic, event.message.partition, bundle)
            yield

    app.agent(logs, name=f"log:{names.watched}")(read_log)
    app.agent(observations, name=f"observations:{names.watched}")(hear)
