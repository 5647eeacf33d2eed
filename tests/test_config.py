from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from stream_app.config import ClickHouseSink, Config, ConfigError, ConsumerSink, GroupSink, TopicSink, load, load_http, unsupported
from stream_app.config.sinks import SourceHeaders, StandardHook
from stream_app.durations import format_duration, read_duration

KAFKA = 'kafka: {bootstrap.servers: "broker:9092"}\n'


def read(text: str, folder: Path, environ: dict[str, str] | None = None) -> Config:
    file = folder / "gapstream.yaml"
    file.write_text(KAFKA + text)
    return load(file, environ or {}, (), refuse_warnings)


def refuse_warnings(line: str) -> None:
    raise AssertionError(line)


def test_the_smallest_file(tmp_path: Path) -> None:
    config = read("topics: {orders: {sinks: {billing: {type: consumer}}}}", tmp_path)
    sink = config.topic_sinks("orders")["billing"]
    assert isinstance(sink, ConsumerSink)
    assert (sink.grace, sink.from_, sink.stall_after, sink.tombstones) == (2_000, "first", 60_000, "required")
    assert config.topics["orders"].isolation == "read_committed"
    assert config.app.session_timeout == 10_000
    assert (config.http.host, config.http.port) == ("127.0.0.1", 6066)


@pytest.mark.parametrize("text", ["topics: {orders: {sinks: {}}}", "topics: {orders: {}}", "topics:\n  orders:\n"])
def test_a_topic_without_sinks_is_watched_alone(text: str, tmp_path: Path) -> None:
    config = read(text, tmp_path)
    assert config.names() == ("orders",)
    assert config.topic_sinks("orders") == {}


def test_empty_sections_hold_the_defaults(tmp_path: Path) -> None:
    assert read("app:\nhttp:\nalerts:\nmetrics:\ndefaults:\nexclude: []\n", tmp_path) == Config(kafka={"bootstrap.servers": "broker:9092"})


def test_nothing_changes_after_loading(tmp_path: Path) -> None:
    config = read("", tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        config.app.id = "other"  # type: ignore[misc]  # that it is refused is the point


def test_defaults_stand_under_each_sinks_own_keys(tmp_path: Path) -> None:
    config = read(
        """
defaults:
  consumer: {grace: 9s}
  clickhouse:
    url: https://c:8443
    password: pw
    grace: 1m
    columns: {offset: pos, topic: null}
topics:
  orders:
    sinks:
      a: {type: consumer}
      b: {type: consumer, grace: 1s}
      w: {type: clickhouse, table: t, every: 5s, columns: {partition: part}}
""",
        tmp_path,
    )
    sinks = config.topic_sinks("orders")
    warehouse = sinks["w"]
    assert isinstance(warehouse, ClickHouseSink)
    assert (sinks["a"].grace, sinks["b"].grace) == (9_000, 1_000)
    assert (warehouse.url, warehouse.grace, warehouse.every) == ("https://c:8443", 60_000, 5_000)
    assert warehouse.password.get_secret_value() == "pw"
    assert warehouse.columns.model_dump() == {
        "preset": None,
        "topic": None,
        "partition": "part",
        "offset": "pos",
        "timestamp": "__timestamp",
    }


def test_shorthands(tmp_path: Path) -> None:
    config = read(
        """
topics:
  orders:
    sinks:
      w: {type: clickhouse, url: "https://c", table: t, columns: {preset: kafka_engine, timestamp: ts}, settings: {max_threads: 2, x: true}}
      c: {type: topic, topic: copy, quarantine: {topic: dlq, headers: connect}}
alerts:
  webhooks: [{type: webhook, url: "https://h", secret: one}, {type: webhook, name: b, url: "https://h", secret: [one, two]}]
""",
        tmp_path,
    )
    table, copy = config.topic_sinks("orders")["w"], config.topic_sinks("orders")["c"]
    assert isinstance(table, ClickHouseSink)
    assert isinstance(copy, TopicSink)
    assert (table.columns.topic, table.columns.offset, table.columns.timestamp) == ("_topic", "_offset", "ts")
    assert table.settings == {"max_threads": "2", "x": "true"}
    assert copy.headers == SourceHeaders(topic="source.topic", partition="source.partition", offset="source.offset")
    assert copy.quarantine is not None
    assert copy.quarantine.headers.offset == "__connect.errors.offset"
    one, two = config.alerts.webhooks
    assert isinstance(one, StandardHook)
    assert isinstance(two, StandardHook)
    assert one.secret == (SecretStr("one"),)
    assert two.secret == (SecretStr("one"), SecretStr("two"))


# --- which topics -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path: Path) -> Config:
    return read(
        """
exclude: [orders-test, /.*-tmp/]
topics:
  orders-eu: {lateness: 1s, sinks: {a: {type: consumer}}}
  /orders-.*/: {lateness: 2s, sinks: {copy: {type: topic, topic: "{topic}-copy"}, g: {type: group, group: "load-{topic}"}}}
  /.*/: {lateness: 3s, sinks: {w: {type: clickhouse, url: "https://c", table: "t_{topic}", where: "x = '{topic}' AND y = {y}"}}}
""",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("topic", "lateness"),
    [
        ("orders-eu", 1_000),
        ("orders-us", 2_000),
        ("my-orders-us", 3_000),
        ("orders-test", None),
        ("orders-tmp", None),
        ("gapstream.alerts", None),
        ("gapstream.status", None),
        ("gapstream.observations.orders-eu", None),
        ("gapstream-orders-eu-changelog", None),
        ("gapstream-__assignor-__leader", None),
        ("__consumer_offsets", None),
        ("a/b", None),
    ],
)
def test_a_name_counts_before_patterns_and_the_first_pattern_before_the_others(several: Config, topic: str, lateness: int | None) -> None:
    found = several.topic(topic)
    assert (None if found is None else found.lateness) == lateness


def test_watched_topics_are_those_named_and_those_found(several: Config) -> None:
    existing = ["__consumer_offsets", "orders-us", "orders-test", "gapstream.alerts"]
    assert list(several.watched(existing)) == ["orders-eu", "orders-us"]
    assert list(several.patterns()) == ["/orders-.*/", "/.*/"]
    assert several.names() == ("orders-eu",)


def test_topic_is_filled_in(several: Config) -> None:
    sinks = several.topic_sinks("orders-us")
    assert isinstance(sinks["copy"], TopicSink)
    assert isinstance(sinks["g"], GroupSink)
    assert sinks["copy"].topic == "orders-us-copy"
    assert sinks["g"].group == "load-orders-us"
    table = several.topic_sinks("x")["w"]
    assert isinstance(table, ClickHouseSink)
    assert (table.table, table.where) == ("t_x", "x = 'x' AND y = {y}")
    assert several.topic_sinks("nobody-tmp") == {}


def test_topic_is_not_filled_into_secrets(tmp_path: Path) -> None:
    sinks = "{w: {type: clickhouse, url: 'https://c', table: t, password: 'p{topic}'}}"
    sink = read(f"topics: {{orders: {{sinks: {sinks}}}}}", tmp_path).topic_sinks("orders")["w"]
    assert isinstance(sink, ClickHouseSink)
    assert sink.password.get_secret_value() == "p{topic}"


# --- what is shown ----------------------------------------------------------------------------------------------------------

SECRETS = """
app: {id: shown}
defaults: {clickhouse: {password: hunter2}}
topics:
  orders:
    sinks:
      w:
        {type: clickhouse, url: "https://me:hunter2@c:1/?u=shown&password=hunter2", table: t, settings: {s3_secret_key: hunter2, a: shown}}
      c: {type: topic, topic: copy, kafka: {bootstrap.servers: "b:1", security.protocol: SASL_PLAINTEXT, sasl.mechanism: PLAIN,
         sasl.username: shown, sasl.password: hunter2}}
alerts:
  webhooks:
    - {type: pagerduty, routing_key: hunter2, headers: {Authorization: hunter2}}
    - {type: alertmanager, url: "https://hunter2:x@a/"}
    - {type: slack, url: "https://hooks/hunter2"}
    - {type: datadog, api_key: hunter2}
    - {type: webhook, url: "https://h", secret: [hunter2, hunter2]}
http: {tokens: [{name: shown, token: hunter2}]}
"""


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    config = read(SECRETS, tmp_path)
    config = config.model_copy(update={"kafka": {**config.kafka, "sasl.password": "hunter2", "ssl.key.password": "hunter2"}})
    for shown in (json.dumps(config.masked()), repr(config), str(config)):
        assert "hunter2" not in shown
        assert "shown" in shown
    masked = config.masked()
    assert masked["kafka"] == {"bootstrap.servers": "broker:9092", "sasl.password": "***", "ssl.key.password": "***"}
    warehouse = masked["topics"]["orders"]["sinks"]["w"]
    assert warehouse["url"] == "https://***@c:1/?u=shown&password=***"
    assert warehouse["settings"] == {"s3_secret_key": "***", "a": "shown"}
    assert masked["alerts"]["webhooks"][4]["secret"] == ["***", "***"]


def test_what_is_shown_reads_back(tmp_path: Path) -> None:
    text = """
app: {session_timeout: 7s, state_dir: /tmp/x}
exclude: [/a.*/]
topics:
  orders:
    lateness: 1500ms
    sinks: {b: {type: consumer, from: "2026-11-23T10:00:00Z", stall_after: null}, g: {type: group, group: g}}
metrics: {granularity: topic, labels: {team: blue}}
"""
    config = read(text, tmp_path)
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(config.masked()))
    assert load(file, {}) == config


def test_the_instance_is_host_name_and_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "host one")
    assert read("", tmp_path).instance == "host-one-6066"
    assert read("app: {instance: me}", tmp_path).instance == "me"


# --- what does not run ------------------------------------------------------------------------------------------------------


def test_what_this_version_does_not_run(tmp_path: Path) -> None:
    lines = [str(fault) for fault in unsupported(read(SECRETS, tmp_path))]
    assert lines[0] == "alerts.webhooks.0: this version does not run webhooks: take this one (pagerduty) out of the file"
    assert len(lines) == 5
    sinks = (
        "b: {type: consumer}, w: {type: clickhouse, url: 'http://c:1', table: t}, c: {type: topic, topic: copy}, g: {type: group, group: g}"
    )
    assert unsupported(read(f"topics: {{orders: {{sinks: {{{sinks}}}}}}}", tmp_path)) == []
    (nothing,) = unsupported(read("", tmp_path))
    assert str(nothing) == "topics: names nothing to watch: add a topic, as in topics: {orders: {sinks: {}}}"


def test_a_table_needs_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_app.config.checks.find_spec", lambda name: None if name == "clickhouse_connect" else name)
    text = "topics: {orders: {sinks: {b: {type: consumer}, w: {type: clickhouse, url: 'http://c:1', table: t}}}}"
    (fault,) = unsupported(read(text, tmp_path))
    assert str(fault) == (
        "topics.orders.sinks.w.type: needs ClickHouse's client, which is not installed: pip install 'gapstream[clickhouse]'"
    )


# --- files ------------------------------------------------------------------------------------------------------------------


def failure(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return str(caught.value).splitlines()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (line,) = failure(tmp_path / "no.yaml")
    smallest = re.search(r"the smallest one is (\{.*\});", line)
    assert line.startswith(f"{tmp_path}/no.yaml: no such file: ")
    assert smallest is not None
    (tmp_path / "made.yaml").write_text(smallest[1])
    assert load(tmp_path / "made.yaml", {}).names() == ("orders",)


def test_files_that_can_not_be_used(tmp_path: Path) -> None:
    assert failure(tmp_path) == [f"{tmp_path}: can't be read (Is a directory): name another file with -c or GAPSTREAM_CONFIG"]
    file = tmp_path / "g.yaml"
    file.write_bytes(b"app: {id: \xff}")
    assert failure(file) == [f"{file}: is not text in UTF-8 (byte 10): save it as such"]
    file.write_text("- a\n")
    assert failure(file) == [f"{file}: must hold keys such as kafka: and topics:"]
    file.write_text("app:\n\tid: x\n")
    assert failure(file) == [
        "g.yaml, line 2: is not YAML: while scanning for the next token, found character '\\t' that cannot start any token"
    ]
    file.write_text("")
    assert failure(file) == ["kafka.bootstrap.servers: is required: host:port of one broker or more"]


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("named", "gapstream", "flag"):
        (tmp_path / f"{name}.yaml").write_text(f"{KAFKA}app: {{id: {name}}}")
    environ = {"GAPSTREAM_CONFIG": str(tmp_path / "named.yaml")}
    assert load("flag.yaml", environ).app.id == "flag"
    assert load(None, environ).app.id == "named"
    assert load(None, {}).app.id == "gapstream"


def test_no_file_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = failure(None)
    assert lines[0].startswith("there is no gapstream.yaml here and none is named with -c or GAPSTREAM_CONFIG: the smallest one is {kafka")
    assert lines[1:] == ["kafka.bootstrap.servers: is required: host:port of one broker or more"]
    assert load(None, {"GAPSTREAM__KAFKA__BOOTSTRAP_SERVERS": "b:1"}).kafka == {"bootstrap.servers": "b:1"}


def test_where_a_worker_answers_can_be_told_without_the_secrets(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text("kafka: {sasl.password: '${NOWHERE}'}\nhttp: {host: 0.0.0.0, port: 7000, tokens: [{name: a, token: '${NOWHERE}'}]}")
    assert (load_http(file, {}).host, load_http(file, {}).port) == ("0.0.0.0", 7000)  # noqa: S104  # nothing listens here
    assert load_http(file, {}, ["http.port=7001"]).port == 7001
    with pytest.raises(ConfigError, match=r"^http\.port: must be a whole number"):
        load_http(file, {}, ["http.port=x"])


def test_properties_that_nothing_looks_at_are_told(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text("kafka: {bootstrap.servers: b, sasl.password: x}")
    lines: list[str] = []
    load(file, {}, (), lines.append)
    assert lines == ["kafka.sasl.password: is not used with security.protocol PLAINTEXT"]


# --- durations --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms", "shown"),
    [
        ("500ms", 500, "500ms"),
        ("2s", 2_000, "2s"),
        ("15m", 900_000, "15m"),
        ("24h", 86_400_000, "1d"),
        ("7d", 604_800_000, "7d"),
        ("90s", 90_000, "90s"),
        ("0d", 0, "0s"),
        (" 1h ", 3_600_000, "1h"),
    ],
)
def test_durations_read_and_show(text: str, ms: int, shown: str) -> None:
    assert read_duration(text) == ms
    assert format_duration(ms) == shown
    assert read_duration(shown) == ms


@pytest.mark.parametrize("value", ["", "5", "-5s", "1.5s", "s", "5 s", "5w", 5, 5.0, None, True, ["5s"]])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration: write a whole number and ms, s, m, h or d, as in 15m"):
        read_duration(value)
