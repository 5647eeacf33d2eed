"""All of it, in turn: what is found first is what has to be mended first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from stream_app.config import ClickHouseSink, Config, unsupported
from stream_app.config.sinks import TopicSink
from stream_app.doctor.cluster import KAFKA, Cluster, ask, ask_elsewhere, ends_now, judge
from stream_app.doctor.finding import Finding, error, ok, unknown, warning
from stream_app.doctor.local import local
from stream_app.doctor.tables import examine_table
from stream_app.errors import Unavailable
from stream_app.kafka.clients import KafkaClients, describe_kafka_error, is_kafka_error

PROTOCOL = "kafka.security.protocol"
Tell = Callable[[Finding], None]


async def examine(config: Config, tell: Tell) -> list[Finding]:
    """Look at everything; ``tell`` hears each finding as soon as it is there, all of them are returned.

    Raises:
        ConfigError: the section ``kafka`` has faults.
    """
    found: list[Finding] = []

    def say(*some: Finding) -> None:
        for one in some:
            found.append(one)
            tell(one)

    faults = unsupported(config)
    say(*(error(fault.path, fault.message) for fault in faults))
    if not faults:
        say(ok("configuration", f"{len(config.topics)} {'entry' if len(config.topics) == 1 else 'entries'} in topics, no faults"))
    say(*local(config))
    cluster = await _ask(config, say)
    if cluster is not None:
        say(*judge(config, cluster))
    names = cluster.all_topics if cluster is not None else frozenset[str]()
    for topic, keys in config.watched(names).items():
        ends = {} if cluster is None else {number: end for (name, number), end in cluster.ends.items() if name == topic}
        for name, sink in keys.sinks.items():
            if isinstance(sink, TopicSink) and sink.kafka:
                say(*await ask_elsewhere(f"topics.{topic}.sinks.{name}", sink))
            if isinstance(sink, ClickHouseSink):
                say(*await examine_table(f"topics.{topic}.sinks.{name}", topic, sink, ends, partial(ends_now, config, topic, ends)))
    return found


async def _ask(config: Config, say: Callable[[Finding], None]) -> Cluster | None:
    """None: Kafka can't be asked, which was said."""
    clients = KafkaClients.checked(config.kafka)
    if clients.protocol == "SASL_PLAINTEXT" and clients.mechanism == "PLAIN":
        say(warning(PROTOCOL, "the password is sent in the clear", "use SASL_SSL where others can listen"))
    try:
        return await ask(config, clients)
    except Unavailable as exc:
        say(unknown(KAFKA, str(exc)))
    except Exception as exc:
        if not is_kafka_error(exc):
            raise
        say(unknown(KAFKA, describe_kafka_error(exc)))
    return None
