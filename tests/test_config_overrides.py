from __future__ import annotations

import logging
from pathlib import Path

import pytest

from stream_app.config import Config, load
from stream_app.config.shape import find_dotted, find_loose, shape_of

FILE = """\
kafka: {bootstrap.servers: "file:1"}
app: {id: file}
topics:
  orders.eu-1:
    sinks:
      billing-eu: {type: consumer}
  orders.eu:
    lateness: 1s
http: {port: 1, tokens: [{name: a, token: x}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gapstream.yaml"
    path.write_text(FILE)
    return path


def test_a_flag_counts_before_the_environment_before_the_file_before_the_default(file: Path) -> None:
    environ = {"GAPSTREAM__APP__ID": "env", "GAPSTREAM__HTTP__PORT": "2"}
    config = load(file, environ, ["http.port=3"])
    assert (config.http.port, config.app.id, config.kafka["bootstrap.servers"], config.app.standby_replicas) == (3, "env", "file:1", 1)


@pytest.mark.parametrize(
    ("name", "value", "path", "expected"),
    [
        ("HTTP__PORT", "6067", "http.port", 6067),
        ("http__port", "6067", "http.port", 6067),
        ("HTTP__SHOW_KEYS", "true", "http.show_keys", True),
        ("HTTP__SHOW_KEYS", "0", "http.show_keys", False),
        ("APP__SESSION_TIMEOUT", "12s", "app.session_timeout", "12s"),
        ("APP__INSTANCE", "me", "app.instance", "me"),
        ("APP__INSTANCE", "null", "app.instance", None),
        ("APP__TOPICS__ALERTS__PARTITIONS", "3", "app.topics.alerts.partitions", 3),
        ("EXCLUDE", "[tmp, /x.*/]", "exclude", ["tmp", "/x.*/"]),
        ("EXCLUDE", "[no]", "exclude", ["no"]),
        ("METRICS__LABELS__TEAM", "blue", "metrics.labels.team", "blue"),
        ("METRICS__LABELS", "{team: blue}", "metrics.labels.team", "blue"),
        ("HTTP__TOKENS__0__SCOPE", "write", "http.tokens.0.scope", "write"),
        ("DEFAULTS__CONSUMER__GRACE", "9s", "defaults.consumer.grace", "9s"),
    ],
)
def test_variables(name: str, value: str, path: str, expected: object, file: Path) -> None:
    found: object = load(file, {f"GAPSTREAM__{name}": value}).masked()
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]  # type: ignore[index]  # a tree of dicts and lists
    assert found == expected


def test_below_kafka_an_underscore_is_a_dot(file: Path) -> None:
    environ = {
        "GAPSTREAM__KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "GAPSTREAM__KAFKA__SASL_MECHANISM": "PLAIN",
        "GAPSTREAM__KAFKA__SASL_USERNAME": "me",
        "GAPSTREAM__KAFKA__SASL_PASSWORD": "0123${NOWHERE}",
    }
    assert load(file, environ).kafka == {
        "bootstrap.servers": "file:1",
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": "0123${NOWHERE}",
    }


def test_topics_and_sinks_are_those_of_the_file(file: Path) -> None:
    config = load(file, {"GAPSTREAM__TOPICS__ORDERS_EU_1__SINKS__BILLING_EU__GRACE": "7s", "GAPSTREAM__TOPICS__ORDERS_EU__LATENESS": "2s"})
    assert config.topics["orders.eu-1"].sinks["billing-eu"].grace == 7_000
    assert config.topics["orders.eu"].lateness == 2_000


def test_a_variable_replaces_a_secret_that_is_not_set(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("kafka: {bootstrap.servers: '${NOWHERE}'}")
    assert load(path, {"GAPSTREAM__KAFKA__BOOTSTRAP_SERVERS": "b:1"}).kafka["bootstrap.servers"] == "b:1"


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("GAPSTREAM__HTTP__PROT", ": is GAPSTREAM__HTTP__PORT meant?"),
        ("GAPSTREAM__HTPT__PORT", ": is GAPSTREAM__HTTP__PORT meant?"),
        ("GAPSTREAM__HTTP__XYZZY", ""),
        ("GAPSTREAM__TOPICS__NOBODY__LATENESS", ""),
        ("GAPSTREAM__HTTP__TOKENS__7__NAME", ""),
        ("GAPSTREAM__HTTP__PORT__X", ""),
        ("GAPSTREAM__", ""),
    ],
)
def test_a_variable_that_means_nothing_is_a_warning(name: str, guess: str, file: Path) -> None:
    lines: list[str] = []
    config = load(file, {name: "5"}, (), lines.append)
    assert lines == [f"the environment variable {name} means no setting and is ignored{guess}"]
    assert config == load(file, {})


def test_two_topics_of_one_loose_name_are_not_guessed_between(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("kafka: {bootstrap.servers: b}\ntopics: {a.b: {}, a-b: {}}")
    lines: list[str] = []
    load(path, {"GAPSTREAM__TOPICS__A_B__LATENESS": "5s"}, (), lines.append)
    assert len(lines) == 1


def test_other_variables_are_nobodys_business(file: Path) -> None:
    lines: list[str] = []
    load(file, {"GAPSTREAM_URL": "x", "GAPSTREAM": "x", "HTTP__PORT": "x"}, (), lines.append)
    assert lines == []


def test_warnings_are_logged_where_nobody_takes_them(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gapstream.config"):
        load(file, {"GAPSTREAM__X": "1"})
    assert caplog.messages == ["the environment variable GAPSTREAM__X means no setting and is ignored"]


# --- flags ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "path", "expected"),
    [
        ("kafka.client.id=me", ("kafka", "client.id"), "me"),
        ("kafka.client.id=a=b", ("kafka", "client.id"), "a=b"),
        ("http.port=5", ("http", "port"), 5),
        ("topics.orders.eu.lateness=9s", ("topics", "orders.eu", "lateness"), "9s"),
        ("topics.orders.eu-1.sinks.billing-eu.grace=9s", ("topics", "orders.eu-1", "sinks", "billing-eu", "grace"), "9s"),
        ("topics.new.topic.lateness=9s", ("topics", "new.topic", "lateness"), "9s"),
        ("topics.new.topic={lateness: 9s}", ("topics", "new.topic", "lateness"), "9s"),
        ("topics.new.sinks.b.type=consumer", ("topics", "new", "sinks", "b", "grace"), "2s"),
        ("metrics.labels.team=blue", ("metrics", "labels", "team"), "blue"),
        ("app.instance=null", ("app", "instance"), None),
        ("app.instance=${ME}", ("app", "instance"), "it-is-me"),
        ("http.tokens.0.scope=write", ("http", "tokens", "0", "scope"), "write"),
        ("http.tokens=[]", ("http", "tokens"), []),
    ],
)
def test_flags(flag: str, path: tuple[str, ...], expected: object, file: Path) -> None:
    found: object = load(file, {"ME": "it-is-me"}, [flag]).masked()
    for key in path:
        found = found[int(key)] if isinstance(found, list) else found[key]  # type: ignore[index]  # a tree of dicts and lists
    assert found == expected


def test_a_later_flag_counts_before_an_earlier_one(file: Path) -> None:
    assert load(file, {}, ["http.port=5", "http.port=6"]).http.port == 6
    config = load(file, {}, ["app.topics.alerts.partitions=5", "app.topics={alerts: {retention: 1d}}"])
    assert (config.app.topics.alerts.partitions, config.app.topics.alerts.retention) == (6, 86_400_000)


def test_a_flag_goes_below_what_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("kafka: {bootstrap.servers: b}\nhttp: {tls: null}\ntopics:\n")
    config = load(path, {}, ["topics.orders.lateness=1s"])
    assert config.topics["orders"].lateness == 1_000


# --- paths ------------------------------------------------------------------------------------------------------------------

ROOT = shape_of(Config)
VALUES = {"topics": {"a": {}, "a.b": {}, "a.b.c": {"sinks": {"x.y": {}}}}, "http": {"tokens": [{}]}}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("topics.a.lateness", ("topics", "a", "lateness")),
        ("topics.a.b.lateness", ("topics", "a.b", "lateness")),
        ("topics.a.b.c.sinks.x.y.grace", ("topics", "a.b.c", "sinks", "x.y", "grace")),
        ("topics.a.b.c.sinks.new.grace", ("topics", "a.b.c", "sinks", "new", "grace")),
        ("topics.d.e", ("topics", "d.e")),
        ("topics", ("topics",)),
        ("topics.a.lateness.x", None),
        ("http.tokens.0.name", ("http", "tokens", "0", "name")),
        ("http.tokens.1.name", None),
        ("http.tls.cert", ("http", "tls", "cert")),
        ("kafka.a.b.c", ("kafka", "a.b.c")),
        ("topics.a.b.latenes", None),
        ("nothing", None),
    ],
)
def test_dotted_paths(text: str, path: tuple[str, ...] | None) -> None:
    assert find_dotted(ROOT, VALUES, text) == path


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["TOPICS", "A_B_C", "SINKS", "X_Y", "EVERY"], ("topics", "a.b.c", "sinks", "x.y", "every")),
        (["TOPICS", "NEW"], None),
        (["KAFKA", "A_B"], ("kafka", "a.b")),
        (["HTTP", "TLS", "CERT"], ("http", "tls", "cert")),
        (["HTTP", "TOKENS", "0", "NAME"], ("http", "tokens", "0", "name")),
        (["HTTP", "TOKENS", "1", "NAME"], None),
        (["HTTP", "PORT", "X"], None),
    ],
)
def test_loose_paths(words: list[str], path: tuple[str, ...] | None) -> None:
    assert find_loose(ROOT, VALUES, words) == path
