"""This machine: the state folder and the port."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stream_app.config import Config
from stream_app.doctor.finding import Finding, error, ok
from stream_app.service.run import PortInUseError, check_port

STATE = "app.state_dir"
PORT = "http.port"


def local(config: Config) -> Iterator[Finding]:
    """Whether a worker could start here, or does run."""
    folder = Path(config.app.state_dir)
    fault = _fault(folder, config.app.id)
    runs = fault is None and _is_locked(folder / "lock")
    if fault is not None:
        yield fault
    elif runs:
        yield ok(STATE, f"{folder} is in use: a worker runs here")
    elif folder.exists():
        yield ok(STATE, f"{folder} can be used")
    else:
        yield ok(STATE, f"{folder} is not there yet, and can be made")
    yield _port(config, runs=runs)


def _fault(path: Path, app_id: str) -> Finding | None:
    """Why no worker could keep its state there; None: one could."""
    if not path.exists():
        parent = next(one for one in path.absolute().parents if one.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return None
        return error(STATE, f"{path} is not there and can't be made: {parent} can't be written", "name a folder that can be written")
    if not path.is_dir():
        return error(STATE, f"{path} is no folder", "name a folder")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return error(STATE, f"{path} can't be written", "name a folder that can be written, or give this user the right to")
    owner = path / "app_id"
    found = owner.read_text().strip() if owner.exists() else app_id
    if found != app_id:
        return error(STATE, f"{path} holds the state of app id {found!r}, not of {app_id!r}", "name another folder")
    return None


def _is_locked(lock: Path) -> bool:
    """Whether a worker holds it."""
    if not lock.exists():
        return False
    handle = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _port(config: Config, *, runs: bool) -> Finding:
    where = f"{config.http.host}:{config.http.port}"
    try:
        check_port(config.http.host, config.http.port)
    except PortInUseError as exc:
        if runs:
            return ok(PORT, f"{where} is in use, as is the state folder: by the worker that runs here")
        return error(PORT, str(exc).partition(": ")[2].partition(";")[0], "name another port, or end what uses it")
    return ok(PORT, f"{where} is free")
