"""`gapstream worker` refuses what can't run, with exit code 2 and one line for each fault, before anything is started."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_app.service import app as app_module
from stream_app.service import run as run_module
from stream_app.service.app import GapstreamApp
from tests.cli.kit import Command, Ran
from tests.support.rig import free_port

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """How logging would be configured; it is the process's, and other tests' too."""
    given: list[tuple[str, bool]] = []
    monkeypatch.setattr("stream_app.service.logs.configure", lambda level, as_json: given.append((level, as_json)))
    return given


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file that would run, changed by sections."""

    def make(**sections: Any) -> Path:
        app = {"instance": "one", "state_dir": str(tmp_path / "state"), **sections.pop("app", {})}
        topics = {"orders": {"sinks": {"billing": {"type": "consumer"}}}}
        given = {"kafka": {"bootstrap.servers": "127.0.0.1:1"}, "app": app, "topics": topics, "http": {"port": free_port()}}
        file = tmp_path / "gapstream.yaml"
        file.write_text(yaml.safe_dump({**given, **sections}))
        return file

    return make


@pytest.fixture
def worker(gapstream: Command, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ran]:
    """Runs the command with changed sections; nothing may be made of them."""

    def started(*args: Any) -> GapstreamApp:
        raise AssertionError("the application was made")

    monkeypatch.setattr(app_module, "create_app", started)

    def run(*, variables: dict[str, str] | None = None, arguments: tuple[str, ...] = (), **sections: Any) -> Ran:
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        return gapstream("worker", "-c", str(write(**sections)), *arguments)

    return run


def refused(ran: Ran) -> list[str]:
    """The lines on stderr of a run that was refused."""
    assert (ran.code, ran.out) == (2, "")
    assert "Traceback" not in ran.err
    return ran.err.splitlines()


def test_unknown_keys(worker: Callable[..., Ran], tmp_path: Path) -> None:
    sinks = {"billing": {"type": "consumer", "gracee": "2s"}}
    lines = refused(worker(topics={"orders": {"sinks": sinks, "isolaton": "read_committed"}}, htttp={}))
    assert sorted(line.split(": ")[0] for line in lines) == ["htttp", "topics.orders.isolaton", "topics.orders.sinks.billing.gracee"]
    assert not (tmp_path / "state").exists()


def test_an_unset_variable_is_named(worker: Callable[..., Ran]) -> None:
    (line,) = refused(worker(kafka={"bootstrap.servers": "a:1", "client.id": "${NO_SUCH_VARIABLE}"}))
    assert line.startswith("kafka.client.id: ")
    assert "NO_SUCH_VARIABLE" in line


def test_a_kafka_property_that_nobody_honours(worker: Callable[..., Ran]) -> None:
    (line,) = refused(worker(kafka={"bootstrap.servers": "a:1", "no.such.property": "1"}))
    assert line.startswith("kafka.no.such.property: ")


@pytest.mark.parametrize(
    ("sink", "path"),
    [
        ({"type": "clickhouse", "url": "ch:8123", "table": "orders"}, "topics.orders.sinks.x.url"),
        ({"type": "carrier_pigeon"}, "topics.orders.sinks.x.type"),
    ],
)
def test_sinks_that_can_not_run(worker: Callable[..., Ran], tmp_path: Path, sink: dict[str, str], path: str) -> None:
    (line,) = refused(worker(topics={"orders": {"sinks": {"x": sink}}}))
    assert line.startswith(f"{path}: ")
    assert not (tmp_path / "state").exists()


def test_webhooks_and_an_empty_file(worker: Callable[..., Ran]) -> None:
    lines = refused(worker(topics={}, alerts={"webhooks": [{"type": "slack", "url": "https://slack/x"}]}))
    assert [line.split(": ")[0] for line in lines] == ["alerts.webhooks.0", "topics"]


def test_no_file(gapstream: Command) -> None:
    (line, *_) = refused(gapstream("worker"))
    assert "gapstream.yaml" in line


def test_a_file_that_does_not_exist(gapstream: Command) -> None:
    (line,) = refused(gapstream("worker", "-c", "nowhere.yaml"))
    assert "nowhere.yaml" in line


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use(worker: Callable[..., Ran], taken: int, tmp_path: Path) -> None:
    (line,) = refused(worker(http={"port": taken}))
    assert line == f"http.port: 127.0.0.1:{taken} can't be used (Address already in use); name another port"
    assert not (tmp_path / "state").exists()


def test_a_port_from_the_environment(worker: Callable[..., Ran], taken: int) -> None:
    (line,) = refused(worker(variables={"GAPSTREAM__HTTP__PORT": str(taken)}))
    assert line.startswith(f"http.port: 127.0.0.1:{taken} ")


def test_a_state_folder_of_another_application(worker: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "app_id").write_text("other\n")
    (line,) = refused(worker(app={"id": "gap"}))
    assert line == f"app.state_dir: {tmp_path / 'state'} holds the state of app id 'other', not of 'gap'; name another folder"


def test_a_state_folder_in_use(worker: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (line,) = refused(worker())
    assert line == f"app.state_dir: {tmp_path / 'state'} is in use by another worker; give each worker a folder of its own"


def test_an_address_that_others_reach_needs_a_token(worker: Callable[..., Ran]) -> None:
    (line,) = refused(worker(http={"host": "192.0.2.1", "port": free_port()}))
    assert line.startswith("http.host: 192.0.2.1 can be reached by others: ")


@pytest.mark.parametrize("argument", ["--log-level=loud", "--log-format=xml", "--no-such-option"])
def test_unknown_arguments(gapstream: Command, write: Write, argument: str) -> None:
    (line,) = refused(gapstream("worker", "-c", str(write()), argument))
    assert "see gapstream worker --help" in line


def test_help_has_an_example(gapstream: Command) -> None:
    ran = gapstream("worker", "--help")
    assert ran.code == 0
    assert "gapstream worker -c gapstream.yaml" in ran.out


def test_what_runs_is_run_with_its_folder_locked(
    gapstream: Command, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged: list[tuple[str, bool]]
) -> None:
    seen: list[Any] = []

    async def run(app: GapstreamApp) -> int:
        seen.append((app.plan.app_id, (tmp_path / "state" / "app_id").read_text(), (tmp_path / "state" / "clean").exists()))
        return 0

    monkeypatch.setattr(run_module, "run", run)
    file = write(app={"id": "gap"})
    assert gapstream("worker", "-c", str(file), "--log-level", "error", "--log-format", "json").code == 0
    assert logged == [("error", True)]
    assert seen == [("gap", "gap\n", False)]
    assert (tmp_path / "state" / "clean").exists()


def test_the_exit_status_is_the_runs(gapstream: Command, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(app: GapstreamApp) -> int:
        return 1

    monkeypatch.setattr(run_module, "run", run)
    assert gapstream("worker", "-c", str(write())).code == 1


def test_two_workers_that_share_a_folder_by_mistake(write: Write, tmp_path: Path) -> None:
    """As processes: the second is refused while the first runs, and taken once it has ended."""
    file = write()
    command = [sys.executable, "-m", "stream_app", "worker", "-c", str(file)]
    env = {**os.environ, "GAPSTREAM__HTTP__PORT": str(free_port())}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert first.stderr is not None
            assert "waiting for Kafka" in first.stderr.readline()
            done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.splitlines() == [
                f"app.state_dir: {tmp_path / 'state'} is in use by another worker; give each worker a folder of its own"
            ]
        finally:
            first.send_signal(signal.SIGTERM)
        first.stderr.read()
        assert first.wait(15) == 0
