"""Leaders that move and brokers that fail while a worker watches: nothing is lost, so nothing may be alerted."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from kafka_cluster import KafkaCluster

from tests.campaign.log_faults import Load, fail_brokers, load, move_leaders

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def under_load(kafka3: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Records are given up soon, so that some are when a broker is killed."""
    with load(kafka3, tmp_path_factory.mktemp("moves"), give_up_s=4.0) as one:
        yield one


def test_t30_clean_moves_of_leaders(under_load: Load) -> None:
    expected, found, made, details = move_leaders(under_load, random.Random(30), 50, 0.02)
    assert (found, made) == (expected, 50), details


def test_t32_brokers_killed_and_frozen(under_load: Load, kafka3: KafkaCluster) -> None:
    expected, found, made, details = fail_brokers(under_load, kafka3, random.Random(32), 0.0, 3.0)
    assert (found, made) == (expected, 2), details
