"""Fixtures that every room's tests may use: a real Kafka, tools for it, and seeds that can be repeated."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from hypothesis import settings
from kafka_cluster import AttachedCluster, KafkaCluster

from tests.support.clickhouse_kit import ClickHouse, EngineProcess
from tests.support.kafka_kit import KafkaKit
from tests.support.servers import lacking, not_run

settings.register_profile("gapstream", deadline=None, print_blob=True, derandomize=False)
settings.load_profile("gapstream")

_LOGS = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose hypothesis' seed here, so that it is known and can be repeated; ``--hypothesis-seed`` wins."""
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(secrets.randbits(32))
    if hasattr(config, "workerinput"):  # one of several processes: its logs are within those of the run
        config.stash[_LOGS] = Path(config.workerinput["gapstream_logs"]) / config.workerinput["workerid"]
    else:
        config.stash[_LOGS] = Path(tempfile.gettempdir()) / f"gapstream-test-logs-{os.getpid()}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a further process what it can't know."""
    node.workerinput["gapstream_logs"] = str(node.config.stash[_LOGS])


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say how to repeat the run, and where Kafka's log will be."""
    return [
        f"hypothesis: repeat with --hypothesis-seed={config.getoption('--hypothesis-seed')}",
        f"kafka's log: {config.stash[_LOGS]} (kept when something fails)",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs servers that are not there; which tests those are is said at the end of every run."""
    without = [item for item in items if lacking(item.name)]
    if without:
        items[:] = [item for item in items if item not in without]
        config.hook.pytest_deselected(items=without)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Say what was not run; after a failure how to repeat the run and where Kafka's log is; after success remove the log."""
    for line in not_run():
        terminalreporter.write_line(line)
    logs = config.stash[_LOGS]
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        if logs.exists():
            shutil.rmtree(logs)
        return
    seed = config.getoption("randomly_seed", None)
    order = "-p no:randomly" if seed is None else f"--randomly-seed={seed}"
    terminalreporter.write_line(f"repeat with: {order} --hypothesis-seed={config.getoption('--hypothesis-seed')}")
    if logs.exists():
        terminalreporter.write_line(f"kafka's log: {logs}")


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """A real Kafka with one broker, for the whole run; that of ``GAPSTREAM_KAFKA`` where it is set.

    Shared: make topics of your own, and never stop, kill or pause its broker.
    """
    given = os.environ.get("GAPSTREAM_KAFKA")
    with AttachedCluster(given) if given else KafkaCluster(1, logs=request.config.stash[_LOGS] / "kafka") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka3(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """A real Kafka with three brokers, started when the first test asks for it; brokers may be killed and paused.

    Every test leaves all three running: start and resume in a ``finally``.
    """
    with KafkaCluster(3, logs=request.config.stash[_LOGS] / "kafka3") as cluster:
        yield cluster


@pytest.fixture
def kit(kafka: KafkaCluster) -> Iterator[KafkaKit]:
    """Tools on ``kafka``; the topics made with it go with the test."""
    tools = KafkaKit(kafka.bootstrap)
    yield tools
    tools.close()


@pytest.fixture
def kit3(kafka3: KafkaCluster) -> Iterator[KafkaKit]:
    """Tools on ``kafka3``."""
    tools = KafkaKit(kafka3.bootstrap)
    yield tools
    tools.close()


@pytest.fixture
def admin(kit: KafkaKit) -> AdminClient:
    """confluent-kafka's administration client on ``kafka``."""
    return kit.admin


@pytest.fixture
def make_topic(kit: KafkaKit) -> Callable[..., str]:
    """``make_topic(partitions=1, config=None)``: name of a new topic on ``kafka``; see KafkaKit.make_topic."""
    return kit.make_topic


@pytest.fixture
def produce(kit: KafkaKit) -> Callable[..., list[int]]:
    """``produce(topic, partition=0, n=1, ...)``: offsets of the records written; see KafkaKit.produce."""
    return kit.produce


@pytest.fixture(scope="session")
def clickhouse_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A ClickHouse for the whole run: the embedded one, or that of ``CLICKHOUSE_URL`` where it is set."""
    given = os.environ.get("CLICKHOUSE_URL")
    if given:
        yield given.rstrip("/")
        return
    with EngineProcess(tmp_path_factory.mktemp("engine")) as engine:
        yield engine.url


@pytest.fixture
def clickhouse(clickhouse_url: str) -> Iterator[ClickHouse]:
    """That server with an empty database, which goes with the test."""
    server = ClickHouse(clickhouse_url)
    yield server
    server.close()
