"""What follows from several values together, and what a worker of this version can't run."""

from __future__ import annotations

import os
import ssl
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec

from stream_app.config.model import LOOPBACK_HOSTS, Config
from stream_app.config.reading import Finding, Keys
from stream_app.config.sinks import ClickHouseSink, Sink, TopicSink
from stream_app.config.values import NAME_MAX, is_pattern
from stream_app.errors import Fault
from stream_app.kafka.names import TopicNames
from stream_app.kafka.properties import check_properties, unused_properties
from stream_app.sinks.clickhouse.client import SETTINGS

_ID_MAX = NAME_MAX - len(TopicNames.of("", "").observations) - 1
"""Characters of ``app.id`` that leave room for the name of a topic."""


def cross_findings(config: Config) -> Iterator[Finding]:
    """Every fault that takes more than one value, or the world outside, to see."""
    yield from _kafka(config)
    yield from _app(config)
    yield from _topics(config)
    yield from _sinks(config)
    yield from _shared_tables(config)
    yield from _webhooks(config)
    yield from _tokens(config)
    yield from _http(config)


def kafka_warnings(config: Config) -> list[str]:
    """Properties that nothing looks at."""
    return [f"kafka.{name}: {message}" for name, message in unused_properties(config.kafka)]


def unsupported(config: Config) -> list[Fault]:
    """What a worker can't run here and now, one line each; it must not start with any of them, nor with nothing to watch."""
    faults = []
    for name, topic in config.topics.items():
        for sink_name, sink in topic.sinks.items():
            if isinstance(sink, ClickHouseSink) and find_spec("clickhouse_connect") is None:
                message = "needs ClickHouse's client, which is not installed: pip install 'gapstream[clickhouse]'"
                faults.append(Fault(f"topics.{name}.sinks.{sink_name}.type", message))
    for index, hook in enumerate(config.alerts.webhooks):
        message = f"this version does not run webhooks: take this one ({hook.name or hook.type}) out of the file"
        faults.append(Fault(f"alerts.webhooks.{index}", message))
    if not config.topics:
        faults.append(Fault("topics", "names nothing to watch: add a topic, as in topics: {orders: {sinks: {}}}"))
    return faults


def _kafka(config: Config) -> Iterator[Finding]:
    for name, message in check_properties(config.kafka):
        yield Finding(("kafka", name), message)
    for path, sink in _all_sinks(config):
        if isinstance(sink, TopicSink) and sink.kafka:
            for name, message in check_properties(sink.kafka):
                yield Finding((*path, "kafka", name), message)


def _all_sinks(config: Config) -> Iterator[tuple[Keys, Sink]]:
    for name, topic in config.topics.items():
        for sink_name, sink in topic.sinks.items():
            yield ("topics", name, "sinks", sink_name), sink


def _app(config: Config) -> Iterator[Finding]:
    if len(config.app.id) > _ID_MAX:
        yield Finding(("app", "id"), f"is too long to begin the names of topics: {_ID_MAX} characters at most")
    if config.http.port == 0 and config.app.instance is None:
        message = "0 (any free port) needs app.instance, because the port is a part of its default"
        yield Finding(("http", "port"), message, (("app", "instance"),))


def _topics(config: Config) -> Iterator[Finding]:
    for name in config.names():
        path = ("topics", name)
        if config.is_internal(name):
            yield Finding(path, "is a topic of Kafka or of the program itself, which can't be watched: take it out", (("app", "id"),))
        elif config.is_excluded(name):
            yield Finding(path, "stands in exclude too: take it out of one of them", (("exclude",),))
        length = len(TopicNames.of(config.app.id, name).observations)
        if length > NAME_MAX >= len(name) and len(config.app.id) <= _ID_MAX:
            message = f"its observations topic would have a name {length - NAME_MAX} characters too long: shorten app.id"
            yield Finding(path, message, (("app", "id"),))


def _sinks(config: Config) -> Iterator[Finding]:
    for path, sink in _all_sinks(config):
        topic = path[1]
        if isinstance(sink, TopicSink) and not sink.kafka and sink.topic in (topic, "{topic}"):
            yield Finding((*path, "topic"), "is the watched topic itself: name the copy")
        if isinstance(sink, ClickHouseSink) and sink.ca is not None and not os.access(sink.ca, os.R_OK):
            yield Finding((*path, "ca"), f"{sink.ca} can't be read")
        for name in sorted(sink.settings.keys() & SETTINGS.keys()) if isinstance(sink, ClickHouseSink) else ():
            message = f"is always {SETTINGS[name]} here, so that an answer is whole or none: take it out"
            yield Finding((*path, "settings", name), message)


def _shared_tables(config: Config) -> Iterator[Finding]:
    """A table that holds more than one topic needs a column that tells them apart."""
    users: dict[tuple[str, ...], list[tuple[Keys, ClickHouseSink]]] = defaultdict(list)
    for path, sink in _all_sinks(config):
        if isinstance(sink, ClickHouseSink):
            table = tuple(part.replace("{topic}", path[1]) for part in (sink.url, sink.database, sink.table))
            users[table].append((path, sink))
    for (_, database, name), sharing in users.items():
        for path, sink in sharing:
            others = sorted({other[1] for other, _ in sharing} - {path[1]})
            if is_pattern(path[1]) and "{topic}" not in f"{sink.url}{sink.database}{sink.table}":
                others.append("whatever else matches")
            if sink.columns.topic is None and others:
                message = f"is null, but the table {database}.{name} is shared with {', '.join(others)}: name the topic's column"
                yield Finding((*path, "columns", "topic"), message, tuple((*other, "table") for other, _ in sharing))


def _webhooks(config: Config) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, hook in enumerate(config.alerts.webhooks):
        name = hook.name or hook.type
        if name in seen:
            path = ("alerts", "webhooks", str(index), "name")
            yield Finding(path, f"{name} is the name of alerts.webhooks.{seen[name]} too: give this one another")
        seen.setdefault(name, index)


def _tokens(config: Config) -> Iterator[Finding]:
    names: dict[str, int] = {}
    secrets: dict[str, int] = {}
    for index, token in enumerate(config.http.tokens):
        path = ("http", "tokens", str(index))
        if token.name in names:
            yield Finding((*path, "name"), f"{token.name} is the name of http.tokens.{names[token.name]} too: give this one another")
        names.setdefault(token.name, index)
        if (token.token is None) == (token.token_sha256 is None):
            yield Finding((*path, "token"), "is required, or token_sha256 instead; not both", ((*path, "token_sha256"),))
        secret = token.token_sha256 if token.token is None else token.token.get_secret_value()
        if secret is not None and secret in secrets:
            yield Finding((*path, "token"), f"is that of http.tokens.{secrets[secret]} too: give each its own")
        if secret is not None:
            secrets.setdefault(secret, index)


def _http(config: Config) -> Iterator[Finding]:
    http = config.http
    if http.host not in LOOPBACK_HOSTS and not http.tokens:
        message = f"{http.host} can be reached by others: name at least one token in http.tokens, or write 127.0.0.1"
        yield Finding(("http", "host"), message, (("http", "tokens"),))
    if config.metrics.require_token and not http.tokens:
        yield Finding(("metrics", "require_token"), "is true, but there are no http.tokens: name one", (("http", "tokens"),))
    if http.tls is None:
        return
    unreadable = [(key, file) for key, file in (("cert", http.tls.cert), ("key", http.tls.key)) if not os.access(file, os.R_OK)]
    for key, file in unreadable:
        yield Finding(("http", "tls", key), f"{file} can't be read")
    if not unreadable:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(http.tls.cert, http.tls.key, "")
        except OSError as error:  # ssl.SSLError is one
            reason = getattr(error, "reason", None) or error.strerror
            yield Finding(("http", "tls"), f"cert and key can't be used together ({reason}): both must be PEM, the key without a password")
