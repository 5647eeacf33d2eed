"""The commands in scripts/, as somebody types them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=110, env=env, cwd=cwd)


def kafka(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "scripts/kafka", *arguments, env=env)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment with a state folder of its own, so that a Kafka of the person at the machine is left alone."""
    changed = {name: value for name, value in os.environ.items() if name not in {"JAVA_HOME", "GAPSTREAM_KAFKA"}}
    return changed | {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def bare(env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same with nothing on PATH and nothing in the cache."""
    (tmp_path / "bin").mkdir()
    return env | {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def put_on_path(env: dict[str, str], name: str, script: str) -> None:
    command = Path(env["PATH"]) / name
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("scripts/kafka: ")
    return done.stderr


def test_kafka_without_java_says_what_to_install(bare: dict[str, str]) -> None:
    put_on_path(bare, "mvn", "exit 1")
    assert "Kafka needs Java and there is none on PATH: install Java 17" in one_sentence(kafka("start", env=bare))


def test_kafka_with_a_java_home_that_holds_none(bare: dict[str, str]) -> None:
    put_on_path(bare, "mvn", "exit 1")
    assert "none in JAVA_HOME=/nowhere" in one_sentence(kafka("start", env=bare | {"JAVA_HOME": "/nowhere"}))


def test_kafka_with_an_old_java(bare: dict[str, str]) -> None:
    put_on_path(bare, "mvn", "exit 1")
    put_on_path(bare, "java", "echo 'java version \"1.8.0_392\"' >&2")
    assert "is Java 8, too old for Kafka 4.1.1: install Java 17" in one_sentence(kafka("start", env=bare))


def test_kafka_without_maven_says_what_to_install(bare: dict[str, str]) -> None:
    assert "no mvn on PATH: install it" in one_sentence(kafka("start", env=bare))


def test_kafka_when_maven_fails_keeps_nothing(bare: dict[str, str], tmp_path: Path) -> None:
    put_on_path(bare, "java", "echo 'openjdk version \"21.0.1\"' >&2")
    put_on_path(bare, "mvn", "echo '[ERROR] no route to host'; exit 1")
    assert "Maven could not fetch Kafka 4.1.1, mend the cause and try again: no route to host" in one_sentence(kafka("start", env=bare))
    assert [path.name for path in (tmp_path / "cache/gapstream").iterdir()] == ["kafka-4.1.1.lock"]


def test_kafka_that_does_not_run(env: dict[str, str]) -> None:
    assert "No Kafka 'x' is running: start it with: scripts/kafka start --name x" in one_sentence(kafka("env", "--name", "x", env=env))
    stopped = kafka("stop", env=env)
    assert (stopped.returncode, stopped.stdout) == (0, "No Kafka 'default' was running.\n")


@pytest.mark.parametrize("arguments", [(), ("start", "--brokers", "0"), ("start", "--name", "../x"), ("begin",)])
def test_kafka_refuses_wrong_usage(arguments: tuple[str, ...], env: dict[str, str]) -> None:
    done = kafka(*arguments, env=env)
    assert done.returncode == 2
    assert "usage: scripts/kafka" in done.stderr


def test_a_named_kafka_from_start_to_stop(env: dict[str, str], tmp_path: Path) -> None:
    try:
        started = kafka("start", "--name", "mine", env=env)
        assert started.returncode == 0, started.stderr
        assert "with 1 broker is ready at 127.0.0.1:" in started.stdout
        again = kafka("start", "--name", "mine", env=env)
        assert "runs already at 127.0.0.1:" in again.stdout
        other_size = kafka("start", "--name", "mine", "--brokers", "3", env=env)
        assert "runs with 1 broker(s): stop it first" in one_sentence(other_size)
        lines = kafka("env", "--name", "mine", env=env).stdout
        shell = run("sh", "-c", f"{lines} echo $GAPSTREAM_KAFKA", env=env)
        assert shell.stdout.strip() in started.stdout
    finally:
        stopped = kafka("stop", "--name", "mine", env=env)
    assert stopped.stdout == "Kafka 'mine' is stopped and its data is removed.\n"
    assert [path.name for path in (tmp_path / "state/gapstream/kafka").iterdir()] == ["mine.lock"]


def test_setup_again_is_quick_and_silent_from_anywhere(tmp_path: Path) -> None:
    first = run(ROOT / "scripts/setup", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    begin = time.monotonic()
    second = run(ROOT / "scripts/setup", cwd=tmp_path)
    assert time.monotonic() - begin < 3.0
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (ROOT / ".venv/bin/gapstream").exists()


def test_setup_with_an_old_python_says_so(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = run(ROOT / "scripts/setup", env=os.environ | {"PYTHON": str(old)})
    assert done.returncode == 1
    assert done.stderr == f"scripts/setup: PYTHON={old} is not a Python of 3.11 or newer: point it at one, or unset it.\n"


def test_setup_without_any_new_python_says_so(tmp_path: Path) -> None:
    for name in ("dirname", "readlink", "bash"):
        found = run("sh", "-c", f"command -v {shlex.quote(name)}").stdout.strip()
        (tmp_path / name).symlink_to(found)
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"PATH": str(tmp_path)}
    done = run(tmp_path / "bash", ROOT / "scripts/setup", env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("scripts/setup: Python 3.11 or newer is needed and none is on PATH (Python 3.9.2): ")
    assert done.stderr.count("\n") == 1
