from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from confluent_kafka import KafkaError, KafkaException

import stream_app
from stream_app.cli.main import COMMANDS, cli, with_config, with_worker_url
from stream_app.errors import ConfigError, CouldNotTell, Fault, Unavailable, UsageError
from stream_app.kafka.failures import UnreachableError
from tests.cli.kit import Command, Ran

ROOT = Path(__file__).parents[2]
Run = Callable[[Callable[..., Any]], Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, gapstream: Command) -> Run:
    """Runs a function as if it were a command of gapstream."""

    def run(function: Callable[..., Any]) -> Ran:
        command = function if isinstance(function, click.Command) else click.command(function)
        monkeypatch.setitem(sys.modules, "stream_app.cli.config_cmd", SimpleNamespace(command=command))
        return gapstream("config")

    return run


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (UsageError("say which topic"), 2, "say which topic\n"),
        (ConfigError([Fault("a.b", "is wrong"), Fault("c", "too")]), 2, "a.b: is wrong\nc: too\n"),
        (Unavailable("nobody answers"), 3, "nobody answers\n"),
        (CouldNotTell("unknown"), 3, "unknown\n"),
        (UnreachableError("broker:1 did not answer"), 3, "broker:1 did not answer\n"),
        (
            KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN, "2/2 brokers are down")),
            3,
            "Kafka can't be reached (2/2 brokers are down): see bootstrap.servers, security.protocol and whether the brokers are up\n",
        ),
        (click.UsageError("which one?"), 2, "which one?; see gapstream config --help\n"),
        (click.ClickException("odd"), 1, "odd\n"),
        (SystemExit(7), 7, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("a reason"), 1, "a reason\n"),
    ],
)
def test_expected_errors_are_a_sentence_and_an_exit_code(error: BaseException, code: int, err: str, run: Run) -> None:
    assert run(raising(error)) == Ran(code, "", err)


def test_ctrl_c(run: Run) -> None:
    assert run(raising(KeyboardInterrupt())).code == 130


def test_a_defect_keeps_its_traceback(run: Run) -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (4, 4), ("text", 0)])
def test_what_a_command_returns_is_the_exit_code(result: object, code: int, run: Run) -> None:
    assert run(lambda: result).code == code


@pytest.mark.parametrize(
    ("argv", "err"),
    [
        (["confi"], "No such command 'confi', is config meant?; see gapstream --help\n"),
        (["xyzzy"], "No such command 'xyzzy'; see gapstream --help\n"),
        (["--xyzzy"], "No such option: --xyzzy; see gapstream --help\n"),
        (["config", "--xyzzy"], "No such option: --xyzzy; see gapstream config --help\n"),
        (["config", "x"], "Got unexpected extra argument (x); see gapstream config --help\n"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(argv: list[str], err: str, gapstream: Command) -> None:
    assert gapstream(*argv) == Ran(2, "", err)


def test_without_arguments_the_help_is_shown(gapstream: Command) -> None:
    ran = gapstream()
    assert ran.code == 2
    assert ran.err.startswith("Usage: gapstream [OPTIONS] COMMAND [ARGS]...")


def test_the_version_is_that_of_the_distribution(gapstream: Command) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert gapstream("--version") == Ran(0, f"gapstream {version}\n", "")
    assert stream_app.__version__ == version


def test_help_lists_every_command_and_imports_none() -> None:
    code = "import sys; from stream_app.cli import main; main(['--help']); print([m for m in sys.modules if m.startswith('stream_app.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    shown, _, modules = done.stdout.rpartition("\n[")
    for name in COMMANDS:
        assert f"\n  {name} " in shown
    assert not any(f"'{module}'" in modules for module, _ in COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_an_example_and_the_shared_options(name: str, gapstream: Command) -> None:
    ran = gapstream(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: gapstream {name} " in ran.out
    assert f"Example:\n    gapstream {name}" in ran.out
    assert isinstance(import_module(COMMANDS[name][0]).command, click.Command)


def python(*argv: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "stream_app", *argv], stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)


def test_whoever_stops_reading_hears_no_complaint() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with python("config", "--schema", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_python_m_stream_app_is_the_command() -> None:
    with python("--version", stdout=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, f"gapstream {stream_app.__version__}\n", "")


# --- options that commands share --------------------------------------------------------------------------------------------


def asked(run: Run) -> tuple[str, str | None]:
    """Where a command would ask, and with which token."""
    found: list[tuple[str, str | None]] = []

    @click.command
    @with_worker_url
    def command(url: str, token: str | None) -> None:
        found.append((url, token))

    assert run(command).code == 0
    return found[0]


@pytest.mark.parametrize(
    ("http", "url"),
    [
        (None, "http://127.0.0.1:6066"),
        ("{}", "http://127.0.0.1:6066"),
        ("{port: 7000}", "http://127.0.0.1:7000"),
        ("{host: 0.0.0.0, tokens: [{name: a, token: x}]}", "http://127.0.0.1:6066"),
        ("{host: '::', tokens: [{name: a, token: x}]}", "http://[::1]:6066"),
        ("{host: '::1'}", "http://[::1]:6066"),
        ("{host: worker-1, tokens: [{name: a, token: '${NOWHERE}'}]}", "http://worker-1:6066"),
        ("{tls: {cert: /nowhere/c, key: /nowhere/k}}", "https://127.0.0.1:6066"),
    ],
)
def test_without_a_url_the_configured_worker_is_meant(http: str | None, url: str, run: Run, tmp_path: Path) -> None:
    if http is not None:
        (tmp_path / "gapstream.yaml").write_text(f"kafka: {{sasl.password: '${{NOWHERE}}'}}\nhttp: {http}\n")
    assert asked(run) == (url, None)


def test_the_environment_names_a_worker_and_a_token(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPSTREAM_URL", "https://worker:1/")
    monkeypatch.setenv("GAPSTREAM_TOKEN", "t")
    assert asked(run) == ("https://worker:1", "t")


def test_a_command_gets_the_configuration(run: Run, tmp_path: Path) -> None:
    (tmp_path / "gapstream.yaml").write_text("kafka: {bootstrap.servers: b, sasl.password: x}\napp: {id: mine}")
    found: list[Any] = []

    @click.command
    @click.option("--extra", default="e")
    @with_config
    def command(config: Any, extra: str) -> None:
        found.append((config.app.id, extra))

    ran = run(command)
    assert (ran.code, found) == (0, [("mine", "e")])
    assert ran.err == "warning: kafka.sasl.password: is not used with security.protocol PLAINTEXT\n"


# --- the package ------------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, stream_app; print(stream_app.__version__, [m for m in ('click', 'faust', 'pydantic', 'aiokafka') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"{stream_app.__version__} []\n"


def test_names_that_are_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"Sidecar", "app", "__version__"} <= set(dir(stream_app))
    with pytest.raises(AttributeError, match="module 'stream_app' has no attribute 'nothing'"):
        _ = stream_app.nothing
    monkeypatch.setitem(sys.modules, "gapstream_sidecar", SimpleNamespace(Sidecar="it"))
    assert stream_app.__getattr__("Sidecar") == "it"
    monkeypatch.delitem(vars(stream_app), "Sidecar")


def test_a_sidecar_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gapstream_sidecar", None)
    with pytest.raises(ImportError, match="gapstream-sidecar, which is not installed: pip install gapstream-sidecar"):
        stream_app.__getattr__("Sidecar")


@pytest.mark.parametrize(("name", "code", "lines"), [("faust", 2, 1), ("other", 1, None)])
def test_faust_is_told_of_faults_in_lines(name: str, code: int, lines: int | None) -> None:
    script = f"import sys; sys.argv = [{name!r}]; import stream_app; stream_app.app"
    environ = {**os.environ, "GAPSTREAM_CONFIG": "/nowhere.yaml"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, env=environ)
    assert done.returncode == code
    assert "/nowhere.yaml: no such file" in done.stderr
    assert ("Traceback" in done.stderr) is (lines is None)


def test_the_group_is_what_main_runs() -> None:
    assert cli.name == "cli"
    assert list(cli.list_commands(click.Context(cli))) == list(COMMANDS)
