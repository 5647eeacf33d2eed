"""The documents that show the configuration say what the models say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from stream_app.config import Config, json_schema, load
from stream_app.config.loading import Settled, settle
from stream_app.config.model import Alerts, App, Http, Metrics, Token, Topic
from stream_app.config.shape import Shape, shape_of
from stream_app.config.sinks import ClickHouseSink, ConsumerSink, Defaults, GroupSink, TopicSink, Webhook
from stream_app.kafka.properties import PROPERTIES

DOCS = Path(__file__).parent.parent / "docs"
REFERENCE = DOCS / "reference-config.yaml"
ENVIRON = {
    **dict.fromkeys(("KAFKA_PASSWORD", "CH_PASSWORD", "PD_KEY", "DD_KEY", "HOOK_SECRET", "DASHBOARD_TOKEN"), "x"),
    "SLACK_URL": "https://hooks",
}

CONTRACT = """
kafka:
  bootstrap.servers: broker:9092
  sasl.password: ${KAFKA_PASSWORD}
app:
  id: gapstream
  instance: null
  session_timeout: 10s
  state_dir: ./gapstream-data
  standby_replicas: 1
  unknown_after: 5m
  forget_after: 7d
  topics: {create: true, replication_factor: -1, alerts: {partitions: 6, retention: 30d}, observations: {retention: 7d}}
defaults:
  consumer: {grace: 2s}
  clickhouse: {every: 10s, grace: 30s}
exclude: []
topics:
  orders:
    isolation: read_committed
    lateness: 0s
    check_crcs: true
    replay_to: []
    sinks:
      warehouse:
        type: clickhouse
        url: https://clickhouse:8443
        username: default
        password: ${CH_PASSWORD}
        database: default
        table: orders
        columns: {topic: __topic, partition: __partition, offset: __offset, timestamp: __timestamp}
        where: null
        rows_per_record: one
        duplicates: physical
        verify: 7d
        sweep: 15m
        tombstones: optional
        quarantine: null
        group: null
        every: 10s
        grace: 30s
        from: first
        stall_after: 60s
      billing: {type: consumer}
      copy:
        type: topic
        topic: orders-copy
        kafka: {}
        headers: {topic: source.topic, partition: source.partition, offset: source.offset}
        quarantine: {topic: dlq-orders, headers: connect}
      legacy: {type: group, group: legacy-loader}
alerts:
  duplicates: true
  webhooks:
    - name: oncall
      type: pagerduty
      routing_key: ${PD_KEY}
      group_by: [topic, sink]
      after: 0s
      min_severity: critical
      match: {}
      headers: {}
http:
  host: 127.0.0.1
  port: 6066
  tls: null
  tokens: []
  show_keys: false
metrics: {granularity: partition, labels: {}, require_token: false}
"""
"""The shape that users rely on, with its defaults."""


def load_text(text: str, folder: Path) -> Settled:
    file = folder / "gapstream.yaml"
    file.write_text(text)
    return settle(file, ENVIRON)


def test_the_shape_that_users_rely_on_loads_and_its_values_are_the_defaults(tmp_path: Path) -> None:
    full = load_text(CONTRACT, tmp_path)
    short = load_text(
        """
kafka: {bootstrap.servers: "broker:9092", sasl.password: "${KAFKA_PASSWORD}"}
topics:
  orders:
    sinks:
      warehouse: {type: clickhouse, url: "https://clickhouse:8443", password: "${CH_PASSWORD}", table: orders}
      billing: {type: consumer}
      copy: {type: topic, topic: orders-copy, quarantine: {topic: dlq-orders}}
      legacy: {type: group, group: legacy-loader}
alerts: {webhooks: [{name: oncall, type: pagerduty, routing_key: "${PD_KEY}"}]}
""",
        tmp_path,
    )
    assert full.faults == short.faults == []
    assert full.warnings == ["kafka.sasl.password: is not used with security.protocol PLAINTEXT"]
    assert full.config == short.config


def test_the_reference_file_loads_and_holds_the_defaults() -> None:
    config = load(REFERENCE, ENVIRON)
    assert config.app == App()
    assert config.defaults == Defaults()
    assert config.exclude == ()
    assert config.metrics == Metrics()
    assert config.http == Http(tokens=(Token(name="dashboard", token="x"),))
    assert config.alerts.model_copy(update={"webhooks": ()}) == Alerts()
    assert config.topics["orders"].model_copy(update={"sinks": {}}) == Topic()
    assert config.topics["orders"].sinks == {
        "billing": ConsumerSink.model_validate({"type": "consumer"}),
        "warehouse": ClickHouseSink.model_validate(
            {"type": "clickhouse", "url": "https://clickhouse:8443", "table": "orders", "password": "x"}
        ),
        "copy": TopicSink.model_validate({"type": "topic", "topic": "orders-copy"}),
        "legacy": GroupSink.model_validate({"type": "group", "group": "legacy-loader"}),
    }
    for hook in config.alerts.webhooks:
        required = {name for name, field in type(hook).model_fields.items() if field.is_required()}
        assert hook == type(hook).model_validate({name: getattr(hook, name) for name in required})


def keys_of(shape: Shape, values: Any, path: str) -> set[str]:
    """Paths of the settings that the shape has and the values lack."""
    if shape.kind == "section" and isinstance(values, dict):
        chosen = shape.tags[values["type"]] if shape.tags else shape
        lacking = {f"{path}.{key}" for key in chosen.fields or {} if key not in values}
        return lacking.union(*(keys_of(shape_of(chosen.fields[key]), values[key], f"{path}.{key}") for key in values if chosen.fields))
    if shape.kind == "mapping" and isinstance(values, dict):
        return set().union(*(keys_of(shape_of(shape.item), item, f"{path}.{key}") for key, item in values.items()))
    if shape.kind == "list" and isinstance(values, list) and values:
        return keys_of(shape_of(shape.item), values[0], f"{path}.0")
    return set()


def test_the_reference_file_has_every_setting() -> None:
    lacking = keys_of(shape_of(Config), yaml.safe_load(REFERENCE.read_text()), "")
    # the keys of a sink stand at the sinks, not again in defaults
    assert {path for path in lacking if not path.startswith(".defaults.")} == set()


def test_the_reference_file_has_every_type_of_sink_and_webhook() -> None:
    config = load(REFERENCE, ENVIRON)
    sinks, hooks = shape_of(Topic).child("sinks"), shape_of(Webhook)
    assert sinks is not None
    assert {sink.type for sink in config.topics["orders"].sinks.values()} == set(shape_of(sinks.item).tags or ())
    assert {hook.type for hook in config.alerts.webhooks} == set(hooks.tags or ())


def test_the_reference_file_and_the_page_have_every_property_of_kafka() -> None:
    section = REFERENCE.read_text().split("\napp:")[0].split("\nkafka:")[1]
    assert set(re.findall(r"^  (?:# )?([a-z0-9.]+): ", section, re.MULTILINE)) == set(PROPERTIES)
    table = (DOCS / "configuration.md").read_text().split("## Kafka")[1]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == set(PROPERTIES)


def test_the_faults_that_the_page_shows_are_real(tmp_path: Path) -> None:
    text = """
kafka: {bootstrap.servers: b}
http: {host: 0.0.0.0}
topics: {orders: {sinks: {warehouse: {type: clickhouse, url: "https://c", table: t, every: "10"}}}}
"""
    shown = (DOCS / "configuration.md").read_text()
    faults = load_text(text, tmp_path).faults
    assert len(faults) == 2
    for fault in faults:
        assert f"\n{fault}\n" in shown


def test_the_smallest_file_of_the_page_loads(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(.*?)```", (DOCS / "configuration.md").read_text(), re.DOTALL)
    assert found is not None
    assert load_text(found[1], tmp_path).faults == []


# --- JSON Schema ------------------------------------------------------------------------------------------------------------


def test_the_schema_describes_every_setting() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == set(shape_of(Config).fields or ())
    assert set(schema["properties"]["kafka"]["properties"]) == set(PROPERTIES)
    assert schema["$defs"]["ClickHouseSink"]["required"] == ["type"]
    assert "from" in schema["$defs"]["ConsumerSink"]["properties"]
    assert schema["additionalProperties"] is False


def test_the_schema_takes_the_reference_file_and_refuses_what_is_unknown() -> None:
    schema = json_schema()
    values = yaml.safe_load(REFERENCE.read_text())
    assert list(violations(schema, values, schema)) == []
    values["http"]["port"] = "${PORT}"
    values["topics"]["orders"]["lateness"] = "${LATENESS}"
    values["app"] = None
    assert list(violations(schema, values, schema)) == []
    values["http"]["prot"] = 1
    values["topics"]["orders"]["lateness"] = "soon"
    values["topics"]["orders"]["sinks"]["billing"]["type"] = "mail"
    assert len(list(violations(schema, values, schema))) == 3


def violations(schema: dict[str, Any], value: Any, root: dict[str, Any], path: str = "") -> list[str]:
    """The part of JSON Schema that the schema uses; enough to see whether editors would complain."""
    if "$ref" in schema:
        return violations(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, path)
    for word in ("anyOf", "oneOf"):
        if word in schema and all(violations(one, value, root, path) for one in schema[word]):
            return [f"{path}: none of {word}"]
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{path}: const")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: enum")
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "number": (int, float),
        "null": type(None),
    }
    wanted = schema.get("type", list(kinds))
    if not any(isinstance(value, kinds[kind]) for kind in ([wanted] if isinstance(wanted, str) else wanted)):
        return [*found, f"{path}: type"]
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{path}: pattern")
    if isinstance(value, list):
        found += [line for item in value for line in violations(schema.get("items", {}), item, root, f"{path}[]")]
    if isinstance(value, dict):
        found += [f"{path}.{key}: required" for key in schema.get("required", ()) if key not in value]
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            if key not in known and rest is False:
                found.append(f"{path}.{key}: unknown")
            else:
                found += violations(known.get(key, rest if isinstance(rest, dict) else {}), item, root, f"{path}.{key}")
    return found
