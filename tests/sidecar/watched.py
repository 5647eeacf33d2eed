"""A watched topic of a real Kafka, its observations topic, and the programs that tests run with a sidecar in them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Consumer, TopicPartition

import gapstream_sidecar
from gapstream_sidecar import Sidecar
from stream_app.sinks.observation import parse
from tests.support.kafka_kit import KafkaKit

APP = "gapstream"
PATIENCE_S = 30.0
SOURCES = Path(gapstream_sidecar.__file__).parent.parent


class Watched:
    """A topic and its observations topic, and what makes clients of both."""

    def __init__(self, kit: KafkaKit, partitions: int, observations: bool = True) -> None:
        self.kit = kit
        self.partitions = partitions
        self.topic = kit.make_topic(partitions)
        self.opened = ExitStack()
        if observations:
            self.make_observations()

    @property
    def observations(self) -> str:
        return f"{APP}.observations.{self.topic}"

    def make_observations(self) -> None:
        config = {"message.timestamp.type": "LogAppendTime"}
        self.kit.make_topic(self.partitions, config, name=self.observations)

    def sidecar(self, **options: Any) -> Sidecar:
        options = {"sink": "billing", "app_id": APP, "observe_before_commit": 10, **options}
        sidecar = Sidecar({"bootstrap.servers": self.kit.bootstrap}, **options)
        self.opened.callback(sidecar.close)
        return sidecar

    def conf(self, group: str | None = None, /, **options: Any) -> dict[str, Any]:
        """Of a consumer."""
        return {
            "bootstrap.servers": self.kit.bootstrap, "group.id": group or uuid.uuid4().hex, "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20, "log_level": 2, **options,
        }  # fmt: skip

    def consumer(self, sidecar: Sidecar, group: str | None = None, /, **options: Any) -> Consumer:
        consumer = sidecar.wrap(Consumer(self.conf(group, **options)))
        self.opened.callback(consumer.close)
        return consumer

    def said(self, partition: int = 0) -> list[dict[str, Any]]:
        """The observations of one partition, in order; each of them is one that gapstream takes."""
        found = []
        for message in self.kit.read(self.observations, partition):
            value = message.value()
            assert value is not None
            parse(value, self.topic, partition)
            found.append(msgspec.json.decode(value))
        return found

    def runs(self, partition: int = 0) -> list[list[list[int]]]:
        return [one["runs"] for one in self.said(partition) if one["runs"]]

    def receipts(self, partition: int = 0, status: str = "received") -> Counter[int]:
        """Offset -> how many observations cover it that are no repeats."""
        found, last = Counter[int](), dict[str, int]()
        for one in self.said(partition):
            if one["sequence"] <= last.get(one["source"], 0):
                continue
            last[one["source"]] = one["sequence"]
            if one["status"] == status:
                found.update(offset for first, stop in one["runs"] for offset in range(first, stop + 1))
        return found


def consume(consumer: Any, number: int) -> list[Any]:
    """The next messages."""
    found: list[Any] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < number:
        assert time.monotonic() < deadline, f"{len(found)} of {number} records within {PATIENCE_S:g} s"
        found += [one for one in consumer.consume(number - len(found), 0.2) if one.error() is None]
    return found


def leave_behind(watched: Watched, group: str) -> None:
    """As a killed process does: a commit of 5 in partition 0 that carries all below it, of which nothing was told."""
    consumer = Consumer(watched.conf(group))
    said = {"gapstream": 1, "sink": "billing", "said": [["gone", 1, "received", None, [0, 0]]]}
    consumer.commit(offsets=[TopicPartition(watched.topic, 0, 5, json.dumps(said, separators=(",", ":")))], asynchronous=False)
    consumer.close()


def run(script: str, *arguments: str, timeout: float = 60, status: int = 0) -> list[str]:
    """What a program with a sidecar in it prints; it must end by itself, with this exit status."""
    program = f"import sys\nsys.path.insert(0, {str(SOURCES)!r})\n{textwrap.dedent(script)}"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == status, done.stderr
    return done.stdout.split()
