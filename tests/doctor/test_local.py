from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stream_app.config import Config
from stream_app.config.model import App, Http
from stream_app.doctor.finding import Finding
from stream_app.doctor.local import local
from stream_app.service.run import state_folder
from tests.support.rig import free_port


def config(folder: Path, port: int) -> Config:
    return Config(app=App(id="gap", state_dir=str(folder)), http=Http(port=port))


def found(folder: Path, port: int | None = None) -> dict[str, Finding]:
    return {one.about: one for one in local(config(folder, free_port() if port is None else port))}


def test_a_folder_that_a_worker_will_make(tmp_path: Path) -> None:
    one = found(tmp_path / "a" / "b")["app.state_dir"]
    assert (one.level, one.message) == ("ok", f"{tmp_path / 'a' / 'b'} is not there yet, and can be made")
    assert list(tmp_path.iterdir()) == [], "nothing is changed by asking"


def test_a_folder_of_this_application(tmp_path: Path) -> None:
    with state_folder(tmp_path, "gap"):
        assert found(tmp_path)["app.state_dir"].message == f"{tmp_path} is in use: a worker runs here"
    assert found(tmp_path)["app.state_dir"].message == f"{tmp_path} can be used"


def test_a_folder_of_another_application(tmp_path: Path) -> None:
    (tmp_path / "app_id").write_text("other\n")
    one = found(tmp_path)["app.state_dir"]
    assert (one.level, one.message) == ("error", f"{tmp_path} holds the state of app id 'other', not of 'gap'")


def test_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert found(file)["app.state_dir"].level == "error"


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_app.doctor.local.os.access", lambda *_: False)  # root may write everywhere
    assert "can't be written" in found(tmp_path)["app.state_dir"].message
    assert found(tmp_path / "new")["app.state_dir"].level == "error"


def test_the_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = found(tmp_path, port)["http.port"]
        assert (one.level, one.mend) == ("error", "name another port, or end what uses it")
        with state_folder(tmp_path, "gap"):
            assert found(tmp_path, port)["http.port"].level == "ok", "the worker that runs here has it"
    assert found(tmp_path, port)["http.port"].message == f"127.0.0.1:{port} is free"
