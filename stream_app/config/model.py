"""The sections of ``gapstream.yaml``; every default stands here.

Durations are integer milliseconds, secrets are ``SecretStr``, lists are tuples. ``from`` is ``from_``. Nothing changes
after loading. How a file becomes a :class:`Config` is told in :mod:`stream_app.config.loading`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, SecretStr

from stream_app.config.sinks import Defaults, KafkaProperties, Sink, Webhook
from stream_app.config.values import (
    Isolation,
    Name,
    NameOrPattern,
    Secret,
    Section,
    Whole,
    compile_pattern,
    is_pattern,
    legal_name,
    matches,
    read_name,
    read_name_or_pattern,
)
from stream_app.core.ledger import LOG_SINK
from stream_app.durations import Duration
from stream_app.kafka.names import alerts_topic, status_topic

SESSION_TIMEOUT_MIN_MS = 6_000
"""group.min.session.timeout.ms as brokers have it by default."""
SESSION_TIMEOUT_MAX_MS = 1_800_000
"""group.max.session.timeout.ms, likewise."""
OWN_LABELS = ("topic", "partition", "sink", "cause", "type", "name", "outcome", "reason", "version", "le")
"""Labels that the program's own series have."""
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


def _read_topic_key(text: str) -> str:
    if text.startswith("/") and not is_pattern(text):
        msg = f"{text!r} is not a pattern: write it as /regular expression/"
        raise ValueError(msg)
    return read_name_or_pattern(text)


def _read_sink_name(text: str) -> str:
    if text == LOG_SINK:
        msg = f"the name {LOG_SINK} is taken by the sink that every topic has: choose another"
        raise ValueError(msg)
    return read_name(text)


def _read_label(text: str) -> str:
    if not _LABEL.fullmatch(text) or text.startswith("__"):
        msg = f"{text!r} is not a label: letters, digits and underscores, not beginning with a digit or two underscores"
        raise ValueError(msg)
    if text in OWN_LABELS:
        msg = f"the label {text} is one of the program's own: choose another"
        raise ValueError(msg)
    return text


def _read_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        msg = "must be the token's SHA-256, 64 hexadecimal digits"
        raise ValueError(msg)
    return text.lower()


def _read_replicas(count: int) -> int:
    if count != -1 and not 1 <= count <= 32_767:
        msg = "must be -1, which is the broker's default, or 1 and more"
        raise ValueError(msg)
    return count


Replicas = Annotated[Whole, AfterValidator(_read_replicas)]
TopicKey = Annotated[str, AfterValidator(_read_topic_key)]
SinkName = Annotated[str, AfterValidator(_read_sink_name)]
LabelName = Annotated[str, AfterValidator(_read_label)]
Digest = Annotated[str, AfterValidator(_read_digest)]


class AlertsTopic(Section):
    """The topic that events are written to."""

    partitions: Whole = Field(6, ge=1, le=10_000)
    """Fixed when the topic is created."""
    retention: Duration = Field(30 * 86_400_000, ge=60_000)


class ObservationsTopics(Section):
    """The topics that observations are written to."""

    retention: Duration = Field(7 * 86_400_000, ge=60_000)


class InternalTopics(Section):
    """How the topics of the program are made."""

    create: bool = True
    """False: they are created by somebody else; what is missing is said."""
    replication_factor: Replicas = -1
    """-1: the broker's default."""
    alerts: AlertsTopic = AlertsTopic()
    observations: ObservationsTopics = ObservationsTopics()


class App(Section):
    """The worker."""

    id: Name = "gapstream"
    """Names the consumer group and all topics of the program."""
    instance: Name | None = None
    """Static membership (KIP-345); null: host name and http.port."""
    session_timeout: Duration = Field(10_000, ge=SESSION_TIMEOUT_MIN_MS, le=SESSION_TIMEOUT_MAX_MS)
    """A worker that is silent for so long loses its partitions; a restart within it keeps them."""
    state_dir: str = Field("./gapstream-data", min_length=1)
    standby_replicas: Whole = Field(1, ge=0, le=32)
    unknown_after: Duration = Field(300_000, ge=1_000)
    """Checks or reports that fail for so long make a sink unknown."""
    forget_after: Duration = 7 * 86_400_000
    """Sinks that left the file are kept for so long."""
    topics: InternalTopics = InternalTopics()


class Topic(Section):
    """A watched topic."""

    isolation: Isolation = "read_committed"
    lateness: Duration = 0
    """How late a record's timestamp may be and still count for ``complete through``."""
    check_crcs: bool = True
    replay_to: tuple[Name, ...] = ()
    """Topics that replay may write to over HTTP."""
    sinks: dict[SinkName, Annotated[Sink, Field(discriminator="type")]] = Field(default_factory=dict)


class Alerts(Section):
    """What is told, and to whom beside the alerts topic."""

    duplicates: bool = True
    webhooks: tuple[Annotated[Webhook, Field(discriminator="type")], ...] = ()


class Tls(Section):
    """Files in PEM."""

    cert: str = Field(min_length=1)
    key: str = Field(min_length=1)


class Token(Section):
    """Somebody who may ask; exactly one of ``token`` and ``token_sha256``."""

    name: Name
    token: Secret | None = None
    token_sha256: Digest | None = None
    """SHA-256 of the token, 64 hexadecimal digits: then the file needs no secret."""
    scope: Literal["read", "observe", "write"] = "read"
    topics: tuple[Name, ...] = ()
    """Empty: all."""
    sinks: tuple[Name, ...] = ()
    """Empty: all."""


class Http(Section):
    """Where a worker answers."""

    host: str = Field("127.0.0.1", min_length=1)
    port: Whole = Field(6066, ge=0, le=65_535)
    """0: any free port; then app.instance must be given."""
    tls: Tls | None = None
    tokens: tuple[Token, ...] = ()
    show_keys: bool = False
    """Record keys in answers for scope read."""


class Metrics(Section):
    """The answer of ``/metrics``."""

    granularity: Literal["partition", "topic"] = "partition"
    labels: dict[LabelName, str] = Field(default_factory=dict)
    """Added to every series."""
    require_token: bool = False


class Config(Section):
    """The whole file, with all defaults filled in."""

    kafka: KafkaProperties = Field(default_factory=dict)
    """librdkafka's names; :mod:`stream_app.kafka.clients` translates them for each client."""
    app: App = App()
    defaults: Defaults = Defaults()
    exclude: tuple[NameOrPattern, ...] = ()
    topics: dict[TopicKey, Topic] = Field(default_factory=dict)
    """Name or ``/pattern/`` to what is said of it; sinks hold what ``defaults`` gave them."""
    alerts: Alerts = Alerts()
    http: Http = Http()
    metrics: Metrics = Metrics()

    @property
    def instance(self) -> str:
        """``app.instance``, or ``<host name>-<http.port>``: names this worker among those of the same ``app.id``."""
        if self.app.instance is not None:
            return self.app.instance
        return re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{self.http.port}")

    def patterns(self) -> Mapping[str, re.Pattern[str]]:
        """Keys of ``topics`` that are patterns, compiled, in the file's order; a topic is meant when the whole name matches."""
        return {key: compile_pattern(key) for key in self.topics if is_pattern(key)}

    def names(self) -> tuple[str, ...]:
        """Keys of ``topics`` that are names, in the file's order."""
        return tuple(key for key in self.topics if not is_pattern(key))

    def is_internal(self, topic: str) -> bool:
        """Whether the topic belongs to the program itself, or to Kafka: those are never watched."""
        own = self.app.id
        if topic in (alerts_topic(own), status_topic(own)) or topic.startswith(f"{own}.observations."):
            return True
        faust = topic.startswith(f"{own}-") and (topic.endswith("-changelog") or topic.startswith(f"{own}-__"))
        return faust or topic.startswith("__")

    def is_excluded(self, topic: str) -> bool:
        """Whether an entry of ``exclude`` means it."""
        return any(matches(entry, topic) for entry in self.exclude)

    def topic(self, name: str) -> Topic | None:
        """What is said of one topic, with ``{topic}`` filled in; None: it is not watched.

        Its own key counts before the patterns, of which the first that matches counts.
        """
        if name in self.topics:
            return _fill(self.topics[name], name)
        if not legal_name(name) or self.is_excluded(name) or self.is_internal(name):
            return None
        found = next((key for key, pattern in self.patterns().items() if pattern.fullmatch(name)), None)
        return None if found is None else _fill(self.topics[found], name)

    def watched(self, existing: Iterable[str]) -> dict[str, Topic]:
        """Every topic to watch: those that the file names, and those of ``existing`` that its patterns mean."""
        found = {}
        for name in sorted({*self.names(), *existing}):
            topic = self.topic(name)
            if topic is not None:
                found[name] = topic
        return found

    def topic_sinks(self, topic: str) -> dict[str, Sink]:
        """Sinks of one topic by name, with ``{topic}`` filled in; empty where none are configured or it is not watched."""
        found = self.topic(topic)
        return {} if found is None else dict(found.sinks)

    def masked(self) -> dict[str, Any]:
        """The effective configuration as the file would have it, durations as text, every secret as ``***``."""
        return self.model_dump(mode="json", by_alias=True)


def _fill(topic: Topic, name: str) -> Topic:
    """The topic's sinks with ``{topic}`` replaced in every text but secrets."""
    return topic.model_copy(update={"sinks": {key: _fill_text(sink, name) for key, sink in topic.sinks.items()}})


def _fill_text(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{topic}", name)
    if isinstance(value, SecretStr):
        return value
    if isinstance(value, BaseModel):
        return value.model_copy(update={key: _fill_text(item, name) for key, item in value})
    if isinstance(value, dict):
        return {key: _fill_text(item, name) for key, item in value.items()}
    return value
