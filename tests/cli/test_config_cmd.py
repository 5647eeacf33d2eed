from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stream_app.config import json_schema, load
from tests.cli.kit import Command

FILE = """\
kafka:
  {bootstrap.servers: "b:9092", security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN, sasl.username: me, sasl.password: hunter2}
topics: {orders: {sinks: {billing: {type: consumer, grace: 5s}, w: {type: clickhouse, url: "https://c", table: t, password: hunter2}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gapstream.yaml"
    path.write_text(FILE)
    return path


def test_the_effective_configuration_is_yaml_with_secrets_masked(gapstream: Command, file: Path) -> None:
    ran = gapstream("config", "-X", "http.port=6067")
    assert (ran.code, ran.err) == (0, "")
    assert "hunter2" not in ran.out
    shown = yaml.safe_load(ran.out)
    assert shown == load(file, {}, ["http.port=6067"]).masked()
    assert shown["kafka"]["sasl.password"] == "***"
    assert shown["topics"]["orders"]["sinks"]["w"]["password"] == "***"
    assert (shown["http"]["port"], shown["topics"]["orders"]["sinks"]["billing"]["grace"]) == (6067, "5s")


def test_as_json(gapstream: Command, file: Path) -> None:
    assert gapstream("config", "--json", "-c", str(file)).json() == load(file, {}).masked()


def test_the_schema_needs_no_configuration(gapstream: Command) -> None:
    assert gapstream("config", "--schema").json() == json_schema()


def test_the_environment_counts(gapstream: Command, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPSTREAM__APP__ID", "from-env")
    monkeypatch.setenv("GAPSTREAM__HTTP__PROT", "1")
    ran = gapstream("config", "--json")
    assert json.loads(ran.out)["app"]["id"] == "from-env"
    assert ran.err == (
        "warning: the environment variable GAPSTREAM__HTTP__PROT means no setting and is ignored: is GAPSTREAM__HTTP__PORT meant?\n"
    )


def test_gapstream_config_names_the_file(gapstream: Command, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPSTREAM_CONFIG", str(file.rename(file.with_name("other.yaml"))))
    assert gapstream("config", "--json").json()["topics"]["orders"]["sinks"]["billing"]["type"] == "consumer"


def test_faults_are_lines_on_stderr_and_exit_2(gapstream: Command, file: Path) -> None:
    ran = gapstream("config", "-X", "http.port=x", "-X", "app.id=a b", "-X", "nothing=1")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "-X nothing: there is no such setting: is -X kafka.nothing meant?",
        "app.id: 'a b' is not a name: letters, digits, dot, underscore and hyphen, 249 at most (from -X app.id)",
        "http.port: must be a whole number (from -X http.port)",
    ]


def test_a_file_that_is_not_there(gapstream: Command) -> None:
    ran = gapstream("config", "-c", "nowhere.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("nowhere.yaml: no such file: the smallest one is {kafka: ")
    assert ran.err.count("\n") == 1


def test_a_folder_is_no_file(gapstream: Command, tmp_path: Path) -> None:
    ran = gapstream("config", "-c", str(tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("is a directory; see gapstream config --help\n")
