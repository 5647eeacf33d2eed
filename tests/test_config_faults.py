"""Every fault, word for word: the lines are what people act on."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_app.config import ConfigError, load

BASE = """\
kafka: {bootstrap.servers: "broker:9092"}
topics:
  orders:
    sinks:
      billing: {type: consumer}
"""


def faults(text: str, environ: dict[str, str] | None = None, flags: tuple[str, ...] = (), folder: Path | None = None) -> list[str]:
    assert folder is not None
    file = folder / "gapstream.yaml"
    file.write_text(text)
    try:
        load(file, environ or {}, flags, lambda line: None)
    except ConfigError as error:
        return str(error).splitlines()
    return []


ONE_FAULT = {
    # keys and types
    "http: {prot: 1}": "http.prot: is no setting here, is port meant?; allowed: host, port, tls, tokens, show_keys",
    "htpt: {}": "htpt: is no setting here, is http meant?; allowed: kafka, app, defaults, exclude, topics, alerts, http, metrics",
    "http: {port: abc}": "http.port: must be a whole number",
    "http: {port: 1.5}": "http.port: must be a whole number",
    "http: {port: true}": "http.port: must be a whole number",
    "http: {port: null}": "http.port: can't be null: give it a value, or leave it out for its default",
    "http: {tls: 5}": "http.tls: must hold keys, as in {key: value}",
    "http: {tokens: [null]}": "http.tokens.0.name: is required",
    "exclude: [[a]]": "exclude.0: must be text",
    "metrics: {labels: {a: 5}}": "metrics.labels.a: must be text: put it in quotes",
    "http: {port: 70000}": "http.port: must be at most 65535",
    "http: {show_keys: perhaps}": "http.show_keys: must be true or false",
    "http: {host: 5}": "http.host: must be text: put it in quotes",
    "http: [1]": "http: must hold keys, as in {key: value}",
    "exclude: tmp": "exclude: must be a list, as in [a, b]",
    "metrics: {granularity: worker}": "metrics.granularity: must be partition, topic",
    # durations
    "app: {unknown_after: 5}": "app.unknown_after: 5 is not a duration: write a whole number and ms, s, m, h or d, as in 15m",
    "app: {unknown_after: 5 min}": "app.unknown_after: '5 min' is not a duration: write a whole number and ms, s, m, h or d, as in 15m",
    "app: {forget_after: 36501d}": "app.forget_after: '36501d' is too long: 36500d at most",
    "app: {session_timeout: 5999ms}": "app.session_timeout: must be at least 6s",
    "app: {session_timeout: 31m}": "app.session_timeout: must be at most 30m",
    "app: {topics: {replication_factor: 0}}": "app.topics.replication_factor: must be -1, which is the broker's default, or 1 and more",
    "app: {topics: {alerts: {partitions: 0}}}": "app.topics.alerts.partitions: must be at least 1",
    "app: {topics: {alerts: {retention: 1s}}}": "app.topics.alerts.retention: must be at least 1m",
    # names
    "app: {id: a/b}": "app.id: 'a/b' is not a name: letters, digits, dot, underscore and hyphen, 249 at most",
    "app: {id: ..}": "app.id: '..' is not a name: letters, digits, dot, underscore and hyphen, 249 at most",
    f"app: {{id: {'a' * 235}}}": "app.id: is too long to begin the names of topics: 234 characters at most",
    "app: {instance: my host}": "app.instance: 'my host' is not a name: letters, digits, dot, underscore and hyphen, 249 at most",
    "exclude: [/a(/]": "exclude.0: '/a(/' is not a regular expression: missing ), unterminated subpattern at position 1",
    "exclude: [orders]": "topics.orders: stands in exclude too: take it out of one of them",
    "exclude: [/ord.*/]": "topics.orders: stands in exclude too: take it out of one of them",
    # http
    "http: {host: 0.0.0.0}": "http.host: 0.0.0.0 can be reached by others: name at least one token in http.tokens, or write 127.0.0.1",
    "http: {port: 0}": "http.port: 0 (any free port) needs app.instance, because the port is a part of its default",
    "http: {tls: {cert: /nowhere/c.pem}}": "http.tls.key: is required",
    "http: {tokens: [{name: a}]}": "http.tokens.0.token: is required, or token_sha256 instead; not both",
    f"http: {{tokens: [{{name: a, token: t, token_sha256: '{'0' * 64}'}}]}}": (
        "http.tokens.0.token: is required, or token_sha256 instead; not both"
    ),
    "http: {tokens: [{name: a, token_sha256: abc}]}": "http.tokens.0.token_sha256: must be the token's SHA-256, 64 hexadecimal digits",
    "http: {tokens: [{name: a, token: ''}]}": "http.tokens.0.token: is empty",
    "http: {tokens: [{name: a, token: x}, {name: a, token: y}]}": (
        "http.tokens.1.name: a is the name of http.tokens.0 too: give this one another"
    ),
    "http: {tokens: [{name: a, token: x}, {name: b, token: x}]}": "http.tokens.1.token: is that of http.tokens.0 too: give each its own",
    "http: {tokens: [{name: a, token: x, scope: admin}]}": "http.tokens.0.scope: must be read, observe, write",
    "metrics: {require_token: true}": "metrics.require_token: is true, but there are no http.tokens: name one",
    "metrics: {labels: {sink: x}}": "metrics.labels.sink: the label sink is one of the program's own: choose another",
    "metrics: {labels: {a-b: x}}": (
        "metrics.labels.a-b: 'a-b' is not a label: letters, digits and underscores, not beginning with a digit or two underscores"
    ),
    # webhooks
    "alerts: {webhooks: [{type: mail}]}": "alerts.webhooks.0.type: 'mail' is none of pagerduty, alertmanager, slack, datadog, webhook",
    "alerts: {webhooks: [{url: x}]}": "alerts.webhooks.0.type: is required: pagerduty, alertmanager, slack, datadog, webhook",
    "alerts: {webhooks: [{type: pagerduty}]}": "alerts.webhooks.0.routing_key: is required",
    "alerts: {webhooks: [{type: slack, url: hooks}]}": "alerts.webhooks.0.url: must be an address such as https://host:port",
    "alerts: {webhooks: [{type: webhook, url: 'https://h', secret: []}]}": "alerts.webhooks.0.secret: is empty",
    "alerts: {webhooks: [{type: slack, url: 'https://h/1'}, {type: slack, url: 'https://h/2'}]}": (
        "alerts.webhooks.1.name: slack is the name of alerts.webhooks.0 too: give this one another"
    ),
    "alerts: {webhooks: [{type: slack, url: 'https://h', match: {topic: '/(/'}}]}": (
        "alerts.webhooks.0.match.topic: '/(/' is not a regular expression: missing ), unterminated subpattern at position 0"
    ),
    # defaults
    "defaults: {consumer: {grace: 2}}": (
        "defaults.consumer.grace: 2 is not a duration: write a whole number and ms, s, m, h or d, as in 15m"
    ),
    "defaults: {consumer: {grase: 2s}}": (
        "defaults.consumer.grase: is no setting here, is grace meant?; allowed: grace, from, stall_after, tombstones, group"
    ),
    "defaults: {kafka: {}}": "defaults.kafka: is no setting here; allowed: consumer, clickhouse, topic, group",
}


@pytest.mark.parametrize(("text", "line"), ONE_FAULT.items())
def test_one_fault_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    assert faults(BASE + text, folder=tmp_path) == [line]


OWN = "is a topic of Kafka or of the program itself, which can't be watched: take it out"
NO_NAME = "is not a name: letters, digits, dot, underscore and hyphen, 249 at most"
TOPIC_FAULTS = {
    "orders: {lateness: soon}": ("topics.orders.lateness: 'soon' is not a duration: write a whole number and ms, s, m, h or d, as in 15m"),
    "orders: {isolation: serializable}": "topics.orders.isolation: must be read_committed, read_uncommitted",
    "a b: {}": "topics.a b: 'a b' is not a name: letters, digits, dot, underscore and hyphen, 249 at most",
    "/a: {}": "topics./a: '/a' is not a pattern: write it as /regular expression/",
    "/a(/: {}": "topics./a(/: '/a(/' is not a regular expression: missing ), unterminated subpattern at position 1",
    "__consumer_offsets: {}": f"topics.__consumer_offsets: {OWN}",
    "gapstream.alerts: {}": f"topics.gapstream.alerts: {OWN}",
    "gapstream.observations.x: {}": (f"topics.gapstream.observations.x: {OWN}"),
    f"{'x' * 249}: {{}}": f"topics.{'x' * 249}: its observations topic would have a name 23 characters too long: shorten app.id",
    "orders: {replay_to: [a b]}": f"topics.orders.replay_to.0: 'a b' {NO_NAME}",
    "orders: {sinks: {log: {type: consumer}}}": (
        "topics.orders.sinks.log: the name log is taken by the sink that every topic has: choose another"
    ),
    "orders: {sinks: {a/b: {type: consumer}}}": (
        "topics.orders.sinks.a/b: 'a/b' is not a name: letters, digits, dot, underscore and hyphen, 249 at most"
    ),
    "orders: {sinks: {b: {}}}": "topics.orders.sinks.b.type: is required: consumer, clickhouse, topic, group",
    "orders: {sinks: {b: {type: table}}}": "topics.orders.sinks.b.type: 'table' is none of consumer, clickhouse, topic, group",
    "orders: {sinks: {b: consumer}}": "topics.orders.sinks.b: must hold keys, as in {key: value}",
    "orders: {sinks: {b: {type: consumer, from: yesterday}}}": (
        "topics.orders.sinks.b.from: 'yesterday' is none of first, earliest, latest or a time such as 2026-11-23T10:00:00Z, now, -2h,"
        " @milliseconds"
    ),
    "orders: {sinks: {b: {type: consumer, every: 10s}}}": (
        "topics.orders.sinks.b.every: is no setting here; allowed: grace, from, stall_after, tombstones, group, type"
    ),
    "orders: {sinks: {b: {type: clickhouse, url: 'https://c', table: t, every: 10}}}": (
        "topics.orders.sinks.b.every: 10 is not a duration: write a whole number and ms, s, m, h or d, as in 15m"
    ),
    "orders: {sinks: {b: {type: clickhouse, url: 'https://c', table: t, every: 1ms}}}": "topics.orders.sinks.b.every: must be at least 1s",
    "orders: {sinks: {b: {type: clickhouse, url: 'c:8443', table: t}}}": (
        "topics.orders.sinks.b.url: must be an address such as https://host:port"
    ),
    "orders: {sinks: {b: {type: clickhouse, url: 'https://c', table: t, columns: {offset: null}}}}": (
        "topics.orders.sinks.b.columns.offset: can't be null: give it a value, or leave it out for its default"
    ),
    "orders: {sinks: {b: {type: clickhouse, url: 'https://c', table: t, ca: /nowhere/ca.pem}}}": (
        "topics.orders.sinks.b.ca: /nowhere/ca.pem can't be read"
    ),
    "orders: {sinks: {b: {type: clickhouse, url: 'https://c', table: t, settings: {max_threads: 2, limit: 5}}}}": (
        "topics.orders.sinks.b.settings.limit: is always 0 here, so that an answer is whole or none: take it out"
    ),
    "orders: {sinks: {b: {type: clickhouse, url: 'https://c', table: t, password: 123}}}": (
        "topics.orders.sinks.b.password: must be text: put it in quotes"
    ),
    "orders: {sinks: {b: {type: topic, topic: orders}}}": "topics.orders.sinks.b.topic: is the watched topic itself: name the copy",
    "orders: {sinks: {b: {type: topic, topic: '{topic}'}}}": "topics.orders.sinks.b.topic: is the watched topic itself: name the copy",
    "orders: {sinks: {b: {type: topic, topic: c, kafka: {client.id: x}}}}": (
        "topics.orders.sinks.b.kafka.bootstrap.servers: is required: host:port of one broker or more"
    ),
    "orders: {sinks: {b: {type: group}}}": "topics.orders.sinks.b.group: is required",
}


@pytest.mark.parametrize(("text", "line"), TOPIC_FAULTS.items())
def test_one_fault_of_a_topic_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    assert faults(f"kafka: {{bootstrap.servers: b}}\ntopics:\n  {text}\n", folder=tmp_path) == [line]


KAFKA_FAULTS = {
    "": "kafka.bootstrap.servers: is required: host:port of one broker or more",
    "bootstrap.servers:": "kafka.bootstrap.servers: is empty",
    "bootstrap.servers: 'kafka://broker:9092'": "kafka.bootstrap.servers: 'kafka://broker:9092' is not host:port",
    "bootstrap.servers: b, group.id: x": "kafka.group.id: the group is named by app.id",
    "bootstrap.servers: b, linger.ms: 5": "kafka.linger.ms: is no property that every client of the program honours",
    "bootstrap.servers: b, client.idd: x": (
        "kafka.client.idd: is no property that every client of the program honours: is client.id meant?"
    ),
}


@pytest.mark.parametrize(("text", "line"), KAFKA_FAULTS.items())
def test_faults_of_kafka(text: str, line: str, tmp_path: Path) -> None:
    assert faults(f"kafka: {{{text}}}\n", folder=tmp_path) == [line]


def table(name: str, more: str = "", null: bool = False) -> str:
    return f"{{type: clickhouse, url: 'https://c', table: {name}{', columns: {topic: null}' if null else ''}{more}}}"


@pytest.mark.parametrize(
    ("orders", "payments", "lines"),
    [
        (table("t"), table("t"), []),
        (table("t", null=True), table("u", null=True), []),
        (table("t", null=True), table("t", ", database: other", null=True), []),
        (table("'{topic}'", null=True), table("'{topic}'", null=True), []),
        (
            table("t", null=True),
            table("t"),
            ["topics.orders.sinks.w.columns.topic: is null, but the table default.t is shared with payments"],
        ),
        (
            table("payments", null=True),
            table("'{topic}'", null=True),
            [
                "topics.orders.sinks.w.columns.topic: is null, but the table default.payments is shared with payments",
                "topics.payments.sinks.w.columns.topic: is null, but the table default.payments is shared with orders",
            ],
        ),
    ],
)
def test_a_table_that_two_topics_share_needs_a_column_for_the_topic(orders: str, payments: str, lines: list[str], tmp_path: Path) -> None:
    text = f"kafka: {{bootstrap.servers: b}}\ntopics:\n  orders: {{sinks: {{w: {orders}}}}}\n  payments: {{sinks: {{w: {payments}}}}}\n"
    assert faults(text, folder=tmp_path) == [line + ": name the topic's column" for line in lines]


def test_a_pattern_shares_a_table_with_whatever_else_matches(tmp_path: Path) -> None:
    text = f"kafka: {{bootstrap.servers: b}}\ntopics:\n  /o.*/: {{sinks: {{w: {table('t', null=True)}}}}}\n"
    assert faults(text, folder=tmp_path) == [
        "topics./o.*/.sinks.w.columns.topic: is null, but the table default.t is shared with whatever else matches: name the topic's column"
    ]


def test_tls_files_are_tried(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("not PEM")
    text = f"{BASE}http: {{tls: {{cert: {tmp_path}/c.pem, key: {tmp_path}/c.pem}}}}"
    (line,) = faults(text, folder=tmp_path)
    assert line.startswith("http.tls: cert and key can't be used together (")
    assert line.endswith("): both must be PEM, the key without a password")
    assert faults(f"{BASE}http: {{tls: {{cert: /nowhere/c, key: /nowhere/k}}}}", folder=tmp_path) == [
        "http.tls.cert: /nowhere/c can't be read",
        "http.tls.key: /nowhere/k can't be read",
    ]


def test_every_fault_is_told_at_once_and_each_once(tmp_path: Path) -> None:
    text = """\
kafka: {bootstrap.servers: "b:9092", sasl.password: "${NOWHERE}", acks: all}
app: {session_timeout: 1s, id: a b}
defaults: {clickhouse: {every: 10, columns: {offset: 5}}}
topics:
  orders:
    lateness: x
    sinks:
      one: {type: clickhouse, url: "https://c", table: t}
      two: {type: clickhouse, grace: 1, tabel: t}
      log: {type: consumer}
http: {host: 0.0.0.0, port: abc}
metrics: {require_token: true, granularity: none}
"""
    assert faults(text, folder=tmp_path) == [
        "kafka.sasl.password: the environment variable NOWHERE is not set",
        "app.id: 'a b' is not a name: letters, digits, dot, underscore and hyphen, 249 at most",
        "app.session_timeout: must be at least 6s",
        "defaults.clickhouse.columns.offset: must be text: put it in quotes",
        "defaults.clickhouse.every: 10 is not a duration: write a whole number and ms, s, m, h or d, as in 15m",
        "topics.orders.lateness: 'x' is not a duration: write a whole number and ms, s, m, h or d, as in 15m",
        "topics.orders.sinks.two.grace: 1 is not a duration: write a whole number and ms, s, m, h or d, as in 15m",
        "topics.orders.sinks.two.url: is required",
        "topics.orders.sinks.two.table: is required",
        "topics.orders.sinks.two.tabel: is no setting here, is table meant?; allowed: grace, from, stall_after, url, username, password,"
        " database, table, columns, where, settings, ca, rows_per_record, duplicates, verify, sweep, tombstones, quarantine, group, every,"
        " type",
        "topics.orders.sinks.log: the name log is taken by the sink that every topic has: choose another",
        "http.port: must be a whole number",
        "metrics.granularity: must be partition, topic",
        "kafka.acks: is no property that every client of the program honours",
        "http.host: 0.0.0.0 can be reached by others: name at least one token in http.tokens, or write 127.0.0.1",
        "metrics.require_token: is true, but there are no http.tokens: name one",
    ]


def test_a_fault_does_not_bring_others_that_only_follow_from_it(tmp_path: Path) -> None:
    text = f"{BASE}http: {{host: 0.0.0.0, tokens: [{{name: a b, token: x}}]}}\nmetrics: {{require_token: true}}"
    assert faults(text, folder=tmp_path) == [
        "http.tokens.0.name: 'a b' is not a name: letters, digits, dot, underscore and hyphen, 249 at most"
    ]
    text = BASE.replace("{type: consumer}", "{type: clickhouse, url: '${URL}', table: '${TABLE}${TABLE}'}")
    assert faults(text, folder=tmp_path) == [
        "topics.orders.sinks.billing.url: the environment variable URL is not set",
        "topics.orders.sinks.billing.table: the environment variable TABLE is not set",
    ]


def test_no_fault_shows_a_secret(tmp_path: Path) -> None:
    text = f"{BASE}alerts: {{webhooks: [{{type: slack, url: hunter2}}, {{type: datadog, api_key: {{hunter2: hunter2}}}}]}}"
    lines = faults(text, folder=tmp_path)
    assert len(lines) == 2
    assert not any("hunter2" in line for line in lines)


def test_where_a_value_came_from_is_told(tmp_path: Path) -> None:
    assert faults(BASE, {"GAPSTREAM__HTTP__PORT": "abc"}, ("app.topics.alerts.partitions=0", "kafka.acks=1"), tmp_path) == [
        "app.topics.alerts.partitions: must be at least 1 (from -X app.topics.alerts.partitions)",
        "http.port: must be a whole number (from environment variable GAPSTREAM__HTTP__PORT)",
        "kafka.acks: is no property that every client of the program honours (from -X kafka.acks)",
    ]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("http.port", "-X http.port: write it as -X http.port=6067, a path and its value"),
        ("=5", "-X =5: write it as -X http.port=6067, a path and its value"),
        ("http.prot=5", "-X http.prot: there is no such setting"),
        ("sasl.password=x", "-X sasl.password: there is no such setting: is -X kafka.sasl.password meant?"),
        ("http={", "http: -X http, line 1: is not YAML: while parsing a flow node, expected the node content, but found '<stream end>'"),
    ],
)
def test_faults_of_flags(flag: str, line: str, tmp_path: Path) -> None:
    assert faults(BASE, {}, (flag,), tmp_path) == [line]
