"""``gapstream.yaml``: its models, and how it is read.

::

    config = load("gapstream.yaml")                 # or ConfigError with every fault
    for topic, settings in config.watched(existing_topics).items():
        settings.sinks, settings.isolation, ...
"""

from __future__ import annotations

from stream_app.config.checks import unsupported
from stream_app.config.loading import load, load_http
from stream_app.config.model import Config, Topic
from stream_app.config.schema import json_schema
from stream_app.config.sinks import ClickHouseSink, ConsumerSink, GroupSink, Sink, TopicSink, Webhook
from stream_app.errors import ConfigError, Fault

__all__ = [
    "ClickHouseSink",
    "Config",
    "ConfigError",
    "ConsumerSink",
    "Fault",
    "GroupSink",
    "Sink",
    "Topic",
    "TopicSink",
    "Webhook",
    "json_schema",
    "load",
    "load_http",
    "unsupported",
]
