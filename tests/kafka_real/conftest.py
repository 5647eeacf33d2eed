from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka_cluster import KafkaCluster

from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig

MakeRig = Callable[..., Rig]


@pytest.fixture(scope="module")
def make_rig(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRig]:
    """``make_rig(topics, **sections)``: a configuration of an application of its own; its workers end with the module.

    ``bootstrap``: of another cluster.
    """
    made: list[Rig] = []

    def make(topics: dict[str, Any], *, bootstrap: str | None = None, **sections: Any) -> Rig:
        app_id = f"app-{uuid.uuid4().hex[:8]}"
        rig = Rig(tmp_path_factory.mktemp(app_id), bootstrap or kafka.bootstrap, topics, app_id, **sections)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()


@pytest.fixture(scope="module")
def shared_kit(kafka: KafkaCluster) -> Iterator[KafkaKit]:
    """Tools on ``kafka`` for what a whole module uses."""
    tools = KafkaKit(kafka.bootstrap)
    yield tools
    tools.close()
