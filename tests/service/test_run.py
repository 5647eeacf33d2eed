"""The state folder is nobody else's, the port is free, and a stop ends in time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from stream_app.config import load
from stream_app.kafka.topics import Found, Topics, TopicsUnavailable
from stream_app.service import run as run_module
from stream_app.service.app import GapstreamApp
from stream_app.service.run import PortInUseError, StateFolderError, check_port, find_patterns, run, state_folder

ROOT = Path(__file__).resolve().parents[2]

# --- the state folder ---------------------------------------------------------------------------------------------------


def make_tables(folder: Path) -> Path:
    """What RocksDB leaves."""
    tables = folder / "v1" / "tables" / "orders-0.db"
    tables.mkdir(parents=True)
    (tables / "CURRENT").write_text("state")
    return tables


def test_a_new_folder_is_claimed_and_marked_clean_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    with state_folder(folder, "gap"):
        assert (folder / "app_id").read_text() == "gap\n"
        assert not (folder / "clean").exists()
    assert time.time() - json.loads((folder / "clean").read_text())["at"] < 10


def test_a_clean_copy_is_kept(tmp_path: Path) -> None:
    with state_folder(tmp_path, "gap"):
        tables = make_tables(tmp_path)
    with state_folder(tmp_path, "gap"):
        assert tables.exists()
        assert not (tmp_path / "clean").exists(), "if this run crashes, the copy is not clean"


def test_what_a_crash_left_behind_is_dropped(tmp_path: Path) -> None:
    tables = tmp_path / "v1" / "tables" / "orders-0.db"

    def crash() -> None:
        with state_folder(tmp_path, "gap"):
            assert make_tables(tmp_path) == tables
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert not (tmp_path / "clean").exists()
    assert tables.exists()
    with state_folder(tmp_path, "gap"):
        assert not tables.exists()
        assert (tmp_path / "app_id").exists()


@pytest.mark.parametrize(
    "mark",
    ["", "{}", "[]", '{"at": "yesterday"}', '{"at": null}', '{"at": %(old)f}', '{"at": %(future)f}', "\x00"],
)
def test_an_old_or_damaged_mark_is_no_mark(tmp_path: Path, mark: str) -> None:
    with state_folder(tmp_path, "gap"):
        tables = make_tables(tmp_path)
    now = time.time()
    (tmp_path / "clean").write_text(mark.replace("%(old)f", str(now - 13 * 3600)).replace("%(future)f", str(now + 3600)))
    with state_folder(tmp_path, "gap"):
        assert not tables.exists()


def test_another_applications_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with state_folder(tmp_path, "other"):
        tables = make_tables(tmp_path)
    with pytest.raises(StateFolderError) as refused, state_folder(tmp_path, "gap"):
        pass
    assert str(refused.value) == f"app.state_dir: {tmp_path} holds the state of app id 'other', not of 'gap'; name another folder"
    assert tables.exists()
    assert (tmp_path / "clean").exists()
    with state_folder(tmp_path, "other"):
        assert tables.exists()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with state_folder(tmp_path, "gap"):
        tables = make_tables(tmp_path)
        with pytest.raises(StateFolderError) as refused, state_folder(tmp_path, "gap"):
            pass
        assert tables.exists()
    assert str(refused.value) == f"app.state_dir: {tmp_path} is in use by another worker; give each worker a folder of its own"
    with state_folder(tmp_path, "gap"):
        assert tables.exists(), "the refused one left the mark alone"


def test_a_folder_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StateFolderError, match=r"can't be used \(.*\); name a folder that can be written"),
        state_folder(tmp_path / "file" / "x", "gap"),
    ):
        pass
    with pytest.raises(StateFolderError, match=r"can't be used \(File exists\)"), state_folder(tmp_path / "file", "gap"):
        pass


def test_only_tables_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("somebody's")
    make_tables(tmp_path)
    with state_folder(tmp_path, "gap"):
        pass
    assert (tmp_path / "notes.txt").read_text() == "somebody's"
    assert not (tmp_path / "v1").exists()
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) & 0o077 in (0o044, 0o000, 0o040)


# --- the port -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_told(taken: int) -> None:
    with pytest.raises(
        PortInUseError, match=rf"^http.port: 127.0.0.1:{taken} can't be used \(Address already in use\); name another port$"
    ):
        check_port("127.0.0.1", taken)


def test_a_free_port_is_left_free(taken: int) -> None:
    check_port("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


# --- patterns -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Any]:
    def make(topic: str) -> Any:
        file = tmp_path / "gapstream.yaml"
        file.write_text(f'kafka: {{bootstrap.servers: "127.0.0.1:1"}}\ntopics: {{"{topic}": {{}}}}\n')
        return load(str(file), {}, ())

    return make


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Statuses with which the process was told to end in any case; signal handlers are put back."""
    statuses: list[int] = []
    monkeypatch.setattr(run_module, "leave_in_time", statuses.append)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield statuses
    for number, handler in handlers.items():
        signal.signal(number, handler)


async def test_names_need_no_brokers(config: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Topics, "find", None)
    assert await find_patterns(config("orders")) == []


async def test_patterns_wait_for_brokers(config: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    answers: list[Any] = [TopicsUnavailable("no"), TopicsUnavailable("no"), Found("c", {"orders-1": 3, "x": 1})]

    async def find(self: Topics) -> Found:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(Found, answer)

    monkeypatch.setattr(Topics, "find", find)
    monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
    with structlog.testing.capture_logs() as lines:
        assert await find_patterns(config("/orders-.*/")) == ["orders-1", "x"]
    assert [line["event"] for line in lines] == ["waiting for Kafka, to resolve patterns of topics"]
    assert left == []


async def test_a_signal_ends_the_wait_for_brokers(config: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, left: list[int]) -> None:
    async def find(self: Topics) -> Found:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        raise TopicsUnavailable("no")

    monkeypatch.setattr(Topics, "find", find)
    monkeypatch.setattr(run_module, "RETRY_SECONDS", 3_600.0)
    assert await find_patterns(config("/orders-.*/")) is None
    assert left == [0]


# --- start and stop -----------------------------------------------------------------------------------------------------


class App:
    """An application whose start and stop do what a test says."""

    def __init__(self) -> None:
        self.loop: Any = None
        self._crashed = asyncio.Event()
        self.crash_reason: BaseException | None = None
        self.backend = SimpleNamespace(draining=False)
        self.journal: list[str] = []
        self.starting: Callable[[], Awaitable[None]] = asyncio.Event().wait  # type: ignore[assignment]  # waits for ever
        self.stopping: Callable[[], Awaitable[None]] | None = None

    def finalize(self) -> None:
        self.journal.append("finalize")

    def worker_init_post_autodiscover(self) -> None:
        self.journal.append("init")

    async def start(self) -> None:
        self.journal.append("start")
        await self.starting()

    async def stop(self) -> None:
        assert self.backend.draining, "readiness says it before anything is stopped"
        self.journal.append("stop")
        if self.stopping is not None:
            await self.stopping()

    def crash(self, reason: BaseException) -> None:
        self.crash_reason = reason
        self._crashed.set()


async def running(app: App, then: Callable[[], Any]) -> int:
    """The exit status of a run in which ``then`` happens once the application starts."""

    async def starting() -> None:
        then()
        await asyncio.Event().wait()

    app.starting = starting
    return await run(cast(GapstreamApp, app))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_cleanly(left: list[int], number: signal.Signals) -> None:
    app = App()
    assert await running(app, lambda: os.kill(os.getpid(), number)) == 0
    assert app.journal == ["finalize", "init", "start", "stop"]
    assert app.loop is asyncio.get_running_loop()
    assert left == [0], "the time that is left runs from the signal on"


async def test_a_second_signal_changes_nothing(left: list[int]) -> None:
    app = App()

    async def stopping() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.01)

    app.stopping = stopping
    assert await running(app, lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert left == [0]


async def test_a_crash_is_told_and_ends_it_with_1(left: list[int]) -> None:
    app = App()
    with structlog.testing.capture_logs() as lines:
        assert await running(app, lambda: app.crash(ZeroDivisionError("a defect"))) == 1
    assert app.journal[-1] == "stop"
    assert left == [1]
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["error"] == "ZeroDivisionError: a defect"


async def test_a_start_that_fails_ends_it_with_1(left: list[int]) -> None:
    app = App()

    async def starting() -> None:
        raise RuntimeError("no")

    app.starting = starting
    assert await run(cast(GapstreamApp, app)) == 1
    assert app.journal[-1] == "stop"


async def test_a_crash_after_a_signal_is_no_crash(left: list[int]) -> None:
    app = App()

    async def stopping() -> None:
        app.crash(RuntimeError("a service that was stopped in the middle"))

    app.stopping = stopping
    assert await running(app, lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0


async def test_a_stop_that_hangs_is_not_waited_for(left: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "STOP_SECONDS", 0.02)
    app = App()
    app.stopping = asyncio.Event().wait  # type: ignore[assignment]  # waits for ever
    with structlog.testing.capture_logs() as lines:
        assert await running(app, lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert [line["event"] for line in lines] == ["stopping"], "it did not stop"


async def test_a_stop_that_fails_is_told(left: list[int]) -> None:
    app = App()

    async def stopping() -> None:
        raise RuntimeError("no broker")

    app.stopping = stopping
    with structlog.testing.capture_logs() as lines:
        assert await running(app, lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
    assert [line["error"] for line in lines if line["log_level"] == "error"] == ["RuntimeError: no broker"]


def test_the_process_ends_in_time_whatever_hangs() -> None:
    code = "import time; from stream_app.service import run; run.LEAVE_SECONDS = 0.05; run.leave_in_time(7); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 7, done.stderr
    assert "not everything ended in time; state is safe in the changelog" in done.stdout + done.stderr
