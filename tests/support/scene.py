"""One worker that watches the topics of a whole module, and what a user sees of them over HTTP and Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Closed, Observer
from tests.support.rig import Rig, Worker, eventually, listed

SINK = "billing"
SINKS = {"sinks": {SINK: {"type": "consumer", "grace": "200ms"}}}


@dataclass
class Scene:
    """A worker, and a sink that says what a test tells it to."""

    kit: KafkaKit
    rig: Rig
    worker: Worker
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        self.observer = Observer(self.rig.bootstrap, self.rig.app_id, SINK)

    def row(self, topic: str, partition: int = 0, sink: str = SINK) -> dict[str, Any]:
        """What the API says of one partition; KeyError while it says nothing."""
        found = self.worker.get(f"/api/partitions?topic={topic}&sink={sink}")["partitions"]
        return {row["partition"]: dict(row) for row in found}[partition]

    def await_row(self, topic: str, wanted: dict[str, Any], partition: int = 0, sink: str = SINK) -> dict[str, Any]:
        """The row, once it holds all that is wanted."""
        keys = wanted.keys()

        def check() -> dict[str, Any] | None:
            row = self.row(topic, partition, sink)
            seen.append({key: row[key] for key in keys})
            return row if seen[-1] == wanted else None

        seen: list[dict[str, Any]] = []
        try:
            return dict(eventually(check, f"{topic}/{partition}/{sink} with {wanted}"))
        except AssertionError as late:
            raise AssertionError(f"{late}; seen last: {seen[-1:]}") from late

    def missing(self, topic: str, partition: int = 0) -> set[int]:
        """Offsets listed as gaps of the sink."""
        return listed(self.worker.get(f"/api/gaps?topic={topic}&sink={SINK}")).get((topic, partition, SINK), set())

    def told(self, topic: str, *, kinds: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The events of a topic, those of each key in their order; ``kinds``: of these types only."""
        events = [json.loads(message.value() or b"") for message in self.rig.read(f"{self.rig.app_id}.alerts")]
        return [one for one in events if one["topic"] == topic and (kinds is None or one["type"] in kinds)]

    def await_commit(self, topic: str, partition: int = 0, *, isolation: str = "read_committed") -> int:
        """Until the group has committed the log's end; that end."""
        end = self.kit.offsets(topic, partition, isolation=isolation)[1]
        eventually(lambda: self.kit.committed(self.rig.app_id, topic, partition) == end, f"the group's commit of {topic} at {end}")
        return end

    def judge(self, topic: str, lost: Iterable[int], *, isolation: str = "read_committed", **wanted: Any) -> None:
        """The sink receives all that an ordinary consumer is delivered, but for ``lost``: exactly that is missing.

        ``wanted``: other fields of the row.
        """
        delivered, lost = set(self.kit.delivered(topic, isolation=isolation)), set(lost)
        assert lost < delivered
        assert min(delivered) < min(lost) <= max(lost) < max(delivered), "the sink's floor and horizon are what it received"
        self.observer.received(topic, 0, *runs(delivered - lost))
        self.await_row(topic, {"missing": len(lost), "horizon_offset": max(delivered) + 1, "records": len(delivered), **wanted})
        assert self.missing(topic) & delivered == lost, "absent offsets inside a gap don't split it"


def runs(offsets: Iterable[int]) -> list[Closed]:
    """Closed runs."""
    found: list[Closed] = []
    for offset in sorted(offsets):
        if found and found[-1][1] == offset - 1:
            found[-1] = [found[-1][0], offset]
        else:
            found.append([offset, offset])
    return found


def event_ranges(events: Iterable[dict[str, Any]]) -> list[tuple[str, str, str | None, list[list[int]] | None]]:
    """What is compared of events: type, sink, cause, ranges."""
    return [(one["type"], one["sink"], one["cause"], one["ranges"]) for one in events]
