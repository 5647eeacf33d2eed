"""Runs the application in this process until a signal, with a state folder that is nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from stream_app.config import Config
from stream_app.kafka.patches import on_loop_error
from stream_app.kafka.topics import Topics, TopicsUnavailable
from stream_app.service.app import RETRY_SECONDS, GapstreamApp
from stream_app.service.metrics import Counters
from stream_app.service.plan import plan as make_plan
from stream_app.service.telemetry import Telemetry

log = structlog.get_logger("gapstream")

STOP_SECONDS = 7.5
"""Services have so long to stop: orchestrators kill after ten."""
LEAVE_SECONDS = 9.0
"""After that the process ends whatever still hangs: threads of libraries wait for brokers that are away."""
CLEAN_HOURS = 12
"""A copy of the state that was away for longer is read from the changelog again: deletions there are kept for seven days only."""


class StateFolderError(Exception):
    """The state folder can't be used; the message is a sentence for people."""


class PortInUseError(Exception):
    """The port of the web server is taken."""


@contextlib.contextmanager
def state_folder(path: Path, app_id: str) -> Iterator[None]:
    """Lock the folder, refuse another application's, drop what a crash left behind; mark it clean at the end.

    RocksDB in it is a cache of the changelog: only what a clean stop left is trusted.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as exc:
        raise StateFolderError(f"app.state_dir: {path} can't be used ({exc.strerror}); name a folder that can be written") from exc
    try:
        _lock(lock, path)
        _claim(path, app_id)
        clean = path / "clean"
        if not _is_fresh(clean):
            for tables in path.glob("v*"):
                shutil.rmtree(tables)
        clean.unlink(missing_ok=True)
        yield
        clean.write_text(json.dumps({"at": time.time()}))
    finally:
        os.close(lock)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise StateFolderError(f"app.state_dir: {path} is in use by another worker; give each worker a folder of its own") from exc


def _claim(path: Path, app_id: str) -> None:
    owner = path / "app_id"
    if owner.exists():
        found = owner.read_text().strip()
        if found != app_id:
            raise StateFolderError(f"app.state_dir: {path} holds the state of app id {found!r}, not of {app_id!r}; name another folder")
    else:
        owner.write_text(app_id + "\n")


def _is_fresh(clean: Path) -> bool:
    try:
        at = float(json.loads(clean.read_text())["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return 0 <= time.time() - at < CLEAN_HOURS * 3600


def check_port(host: str, port: int) -> None:
    """Raises PortInUseError before anything is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise PortInUseError(f"http.port: {host}:{port} can't be used ({exc.strerror}); name another port") from exc


def leave_in_time(status: int) -> None:
    """End the process after :data:`LEAVE_SECONDS` at the latest. The state folder is not clean then; the changelog is."""

    def leave() -> None:
        log.warning("not everything ended in time; state is safe in the changelog")
        logging.shutdown()
        os._exit(status)

    timer = threading.Timer(LEAVE_SECONDS, leave)
    timer.daemon = True
    timer.start()


def _until_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT, which also start the time that is left."""
    asked = asyncio.Event()

    def ask() -> None:
        if not asked.is_set():
            leave_in_time(0)
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    return asked


async def find_patterns(config: Config) -> list[str] | None:
    """Topics of the cluster, where the configuration has patterns to be resolved; waits for brokers to answer.

    None: a signal asked to stop meanwhile.
    """
    if not config.patterns():
        return []
    plan = make_plan(config)
    topics = Topics(plan.confluent, plan.app_id, plan.internal)
    telemetry = Telemetry(Counters())
    asked = _until_signal()
    while not asked.is_set():
        try:
            return list((await topics.find()).partitions)
        except TopicsUnavailable as exc:
            telemetry.trouble("waiting for Kafka, to resolve patterns of topics", reason=str(exc))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await asked.wait()
    return None


async def run(app: GapstreamApp) -> int:
    """Start, wait for SIGTERM or SIGINT (or a crash), stop; the exit status."""
    asked = _until_signal()
    app.loop = asyncio.get_running_loop()
    app.loop.set_exception_handler(on_loop_error)
    app.finalize()
    app.worker_init_post_autodiscover()
    starting = asyncio.create_task(app.start(), name="start")
    waits = [asyncio.create_task(asked.wait()), asyncio.create_task(app._crashed.wait())]
    await asyncio.wait([starting, *waits], return_when=asyncio.FIRST_COMPLETED)
    failed = starting.done() and starting.exception() is not None
    if not failed:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    reason = starting.exception() if failed else app.crash_reason
    for wait in waits:
        wait.cancel()
    crashed = reason is not None and not asked.is_set()
    if crashed:
        log.error("the worker stops on a defect or a broken dependency", error=f"{type(reason).__name__}: {reason}", exc_info=reason)
        leave_in_time(1)
    await _stop(app, starting)
    return int(crashed)


async def _stop(app: GapstreamApp, starting: asyncio.Task[None]) -> None:
    log.info("stopping")
    app.backend.draining = True
    stopping = asyncio.create_task(app.stop(), name="stop")
    await asyncio.wait([stopping], timeout=STOP_SECONDS)
    if stopping.done() and (failure := stopping.exception()) is not None:
        log.error("not everything ended cleanly", error=f"{type(failure).__name__}: {failure}", exc_info=failure)
    starting.cancel()
    await asyncio.wait([starting], timeout=1)
    if stopping.done():
        log.info("stopped")
