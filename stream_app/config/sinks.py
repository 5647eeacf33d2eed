"""Sinks and webhooks as the file describes them.

Each type of sink has two models: its keys, which may all stand in ``defaults`` and then need not be there, and the sink
itself, where some of them must.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, model_validator

from stream_app.config.values import (
    Floor,
    GroupName,
    Headers,
    Name,
    NameOrPattern,
    Properties,
    Secret,
    Secrets,
    SecretStrOrEmpty,
    SecretUrl,
    Section,
    Settings,
    TemplatedName,
    Text,
    Url,
)
from stream_app.durations import Duration
from stream_app.kafka.properties import mask_properties

Tombstones = Literal["optional", "required"]
KafkaProperties = Annotated[Properties, PlainSerializer(mask_properties, return_type=dict[str, str])]

KAFKA_ENGINE_COLUMNS = {"topic": "_topic", "partition": "_partition", "offset": "_offset", "timestamp": "_timestamp"}
"""Virtual columns of ClickHouse's Kafka engine, under which a materialized view usually keeps them."""
CONNECT_HEADERS = {
    "topic": "__connect.errors.topic",
    "partition": "__connect.errors.partition",
    "offset": "__connect.errors.offset",
}
"""Kafka Connect's dead-letter headers (KIP-298)."""


class SinkKeys(Section):
    """What every type of sink has."""

    grace: Duration = 2_000
    """How long after the horizon passed a record it may still arrive."""
    from_: Floor = Field("first", alias="from")
    """First offset that the sink answers for; applies to partitions seen for the first time."""
    stall_after: Duration | None = 60_000
    """A horizon that rests for so long while there are records above it is told; null: never."""


class ConsumerKeys(SinkKeys):
    """A consumer application that reports what it received."""

    tombstones: Tombstones = "required"
    """``optional``: a record with a null value that did not arrive is explained."""
    group: GroupName | None = None
    """The application's consumer group: its commits are claims, so that a record is late once the group committed past it."""


class ConsumerSink(ConsumerKeys):
    """``type: consumer``."""

    type: Literal["consumer"]


class Columns(Section):
    """Columns that hold where a row came from; null where there is none."""

    preset: Literal["kafka_engine"] | None = None
    """Other names to begin with: ``_topic``, ``_partition``, ``_offset``, ``_timestamp``."""
    topic: Text | None = "__topic"
    partition: Text | None = "__partition"
    offset: Text = "__offset"
    timestamp: Text | None = "__timestamp"

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("preset") == "kafka_engine":
            return KAFKA_ENGINE_COLUMNS | value
        return value


class QuarantineTable(Section):
    """A table with the same columns; its rows explain."""

    table: Text


class ClickHouseKeys(SinkKeys):
    """A ClickHouse table that is asked what it holds."""

    url: Url | None = None
    """HTTP interface of a server, of ClickHouse Cloud, or of Tinybird."""
    username: Text = "default"
    password: SecretStrOrEmpty = SecretStr("")
    database: Text = "default"
    table: Text | None = None
    columns: Columns = Columns()
    where: Text | None = None
    """Extra condition for the rows that belong to the topic."""
    settings: Settings = Field(default_factory=dict)
    """ClickHouse settings sent with every query."""
    ca: Text | None = None
    """File with the certificates to trust; null: those of the system."""
    rows_per_record: Literal["one", "many"] = "one"
    duplicates: Literal["physical", "final", "ignore"] = "physical"
    verify: Duration = 7 * 86_400_000
    """How far back settled rows are checked again."""
    sweep: Duration = 900_000
    """How often they are."""
    tombstones: Tombstones = "optional"
    """``required``: a record with a null value that did not arrive is missing."""
    quarantine: QuarantineTable | None = None
    group: GroupName | None = None
    """The ingesting consumer group; its commits are claims."""
    every: Duration = Field(10_000, ge=1_000)
    grace: Duration = 30_000


class ClickHouseSink(ClickHouseKeys):
    """``type: clickhouse``."""

    type: Literal["clickhouse"]
    url: Url
    table: Text


class SourceHeaders(Section):
    """Record headers that hold where a copied record came from: decimal text, or 8 bytes big-endian."""

    topic: Text = "source.topic"
    partition: Text = "source.partition"
    offset: Text = "source.offset"


def _connect_headers(value: Any) -> Any:
    return CONNECT_HEADERS if value == "connect" else value


class QuarantineTopic(Section):
    """A dead-letter topic; its records explain."""

    topic: TemplatedName
    headers: Annotated[SourceHeaders, BeforeValidator(_connect_headers, json_schema_input_type=SourceHeaders | Literal["connect"])] = (
        SourceHeaders(**CONNECT_HEADERS)
    )
    """``connect``: Kafka Connect's dead-letter headers."""


class TopicKeys(SinkKeys):
    """Another topic, whose records carry their source coordinates in headers."""

    topic: TemplatedName | None = None
    kafka: KafkaProperties = Field(default_factory=dict)
    """Properties of another cluster; empty: the same one."""
    headers: SourceHeaders = SourceHeaders()
    quarantine: QuarantineTopic | None = None
    tombstones: Tombstones = "required"
    group: GroupName | None = None
    """The copying consumer group; its commits are claims."""


class TopicSink(TopicKeys):
    """``type: topic``."""

    type: Literal["topic"]
    topic: TemplatedName


class GroupKeys(SinkKeys):
    """A consumer group in which nothing is installed: its commits are claims."""

    group: GroupName | None = None


class GroupSink(GroupKeys):
    """``type: group``."""

    type: Literal["group"]
    group: GroupName


Sink = ConsumerSink | ClickHouseSink | TopicSink | GroupSink


class Defaults(Section):
    """Per type of sink, what stands under each sink's own keys."""

    consumer: ConsumerKeys = ConsumerKeys()
    clickhouse: ClickHouseKeys = ClickHouseKeys()
    topic: TopicKeys = TopicKeys()
    group: GroupKeys = GroupKeys()


class Match(Section):
    """Which events a webhook gets; what is null does not choose."""

    topic: NameOrPattern | None = None
    sink: NameOrPattern | None = None
    cause: NameOrPattern | None = None
    type: NameOrPattern | None = None
    """Of the event, as ``gap.opened``."""


class Hook(Section):
    """What every webhook has."""

    name: Name | None = None
    """Null: its type."""
    group_by: tuple[Literal["topic", "partition", "sink", "cause"], ...] = ("topic", "sink")
    """Events alike in these are one incident."""
    after: Duration = 0
    """What heals within it is not told."""
    min_severity: Literal["critical", "warning", "info"] = "critical"
    match: Match = Match()
    headers: Headers = Field(default_factory=dict)


class PagerDutyHook(Hook):
    """``type: pagerduty``: Events API v2."""

    type: Literal["pagerduty"]
    routing_key: Secret


class AlertmanagerHook(Hook):
    """``type: alertmanager``: Prometheus Alertmanager, API v2."""

    type: Literal["alertmanager"]
    url: Url


class SlackHook(Hook):
    """``type: slack``: an incoming webhook, whose address is the secret."""

    type: Literal["slack"]
    url: SecretUrl


class DatadogHook(Hook):
    """``type: datadog``: Events API."""

    type: Literal["datadog"]
    site: Text = "datadoghq.com"
    api_key: Secret


class StandardHook(Hook):
    """``type: webhook``: Standard Webhooks, signed with one secret or, while it changes, several."""

    type: Literal["webhook"]
    url: Url
    secret: Secrets = Field(min_length=1)


Webhook = PagerDutyHook | AlertmanagerHook | SlackHook | DatadogHook | StandardHook
