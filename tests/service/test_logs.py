"""What a worker writes to stderr: our own lines as they are, those of libraries where they matter, none in floods."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from stream_app.service import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's: put everything back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in logs.NOISY}
    for name in logs.NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, one in levels.items():
        logging.getLogger(name).setLevel(one)
    structlog.reset_defaults()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1_000.0]
    monkeypatch.setattr("stream_app.service.logs.time.monotonic", lambda: clock[0])
    return clock


def own(name: str = "gapstream.test") -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def test_our_lines_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", True)
    own().info("reading again", topic="orders", partition=3)
    own().debug("not at this level")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found.pop("timestamp").endswith("Z")
    assert found == {"event": "reading again", "level": "info", "logger": "gapstream.test", "topic": "orders", "partition": 3}


def test_our_lines_as_text_without_colours_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", False)
    own().warning("reading again", topic="orders")
    own().info("not at this level")
    (line,) = capsys.readouterr().err.splitlines()
    assert "[warning  ] reading again" in line
    assert "topic=orders" in line
    assert "\x1b" not in line


def test_our_lines_are_never_held_back(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    logs.configure("info", True)
    for _ in range(3):
        own().info("the same")
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("name", ["aiokafka.client", "faust.app", "mode.services", "stream_app.kafka.driver", "asyncio"])
def test_a_librarys_line_once_a_minute(capsys: pytest.CaptureFixture[str], now: list[float], name: str) -> None:
    logs.configure("info", True)
    library = logging.getLogger(name)
    library.info("every start and stop")
    for port in range(5):
        library.error("Unable connect to node with id %s", port)
    library.warning("something else")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == [
        "Unable connect to node with id 0", "something else",
    ]  # fmt: skip
    now[0] += 60.1
    library.error("Unable connect to node with id %s", 7)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["logger"] == name


def test_debug_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", True)
    library = logging.getLogger("aiokafka.client")
    for _ in range(3):
        library.debug("the same")
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_failure_comes_with_its_traceback_in_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", True)
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError:
        own().exception("it stopped")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["level"] == "error"
    assert "ZeroDivisionError: a defect" in found["exception"]
