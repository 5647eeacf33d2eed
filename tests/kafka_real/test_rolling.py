"""A rolling update: for a while workers run with different files, and sinks report all the time."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import yaml

from tests.campaign.spine import folded
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

PARTITIONS, RECORDS = 3, 3_000
STEP = 5
"""Offsets of one report; the last one is left out."""


class Reports:
    """Goes through each partition of a topic, some offsets at a time, and leaves one out each time."""

    def __init__(self, rig: Rig, topic: str, sink: str) -> None:
        self.topic, self.sink = topic, sink
        self._observer = Observer(rig.bootstrap, rig.app_id, sink)
        self._at = 0
        self.made = 0

    def go_on(self) -> None:
        """The next step of each partition, acknowledged."""
        for partition in range(PARTITIONS):
            self._observer.say(self.topic, partition, [[self._at, self._at + STEP - 2]])
        self._observer.flush()
        self._at += STEP
        self.made += 1
        assert self._at < RECORDS, "it took so long that there is nothing left to report"

    @property
    def missing(self) -> dict[tuple[str, int, str], set[int]]:
        """What has to be found: up to the last report."""
        return {(self.topic, p, self.sink): set(range(STEP - 1, self._at - 1, STEP)) for p in range(PARTITIONS)}

    @property
    def observed(self) -> int:
        """By partition."""
        return self.made * (STEP - 1)


def configure(rig: Rig, topics: dict[str, list[str]]) -> None:
    """Another file for the workers that start from now on."""
    file = yaml.safe_load(rig.config.read_text())
    sink = {"type": "consumer", "grace": "500ms", "from": "earliest"}
    file["topics"] = {topic: {"sinks": dict.fromkeys(sinks, sink)} for topic, sinks in topics.items()}
    rig.config.write_text(yaml.safe_dump(file))


def test_workers_with_different_files_lose_no_observation(make_rig: Callable[..., Rig], shared_kit: KafkaKit) -> None:
    old, new = shared_kit.make_topic(PARTITIONS), shared_kit.make_topic(PARTITIONS)
    for topic in (old, new):
        for partition in range(PARTITIONS):
            shared_kit.produce(topic, partition, RECORDS)
    rig = make_rig({})
    configure(rig, {old: ["billing"]})
    first, second = rig.worker().start(), rig.worker()
    reports = [Reports(rig, old, "billing"), Reports(rig, old, "audit")]

    def all_report_until(worker: Worker) -> None:
        def ready() -> bool:
            for one in reports:
                one.go_on()
            return status(worker) == "ready"

        eventually(ready, "it is ready")
        for one in reports * 3:
            one.go_on()

    first.ready()
    all_report_until(first)
    configure(rig, {old: ["billing", "audit"], new: ["billing"]})
    all_report_until(second.start())  # it has the new file, the first one has not
    reports.append(Reports(rig, new, "billing"))
    all_report_until(second)
    first.signal(signal.SIGTERM)
    all_report_until(second)
    assert first.process is not None
    assert first.process.wait(30) == 0
    all_report_until(first.start())
    for one in reports:
        judge(second, one)
    alerts = folded(rig)
    assert {key: set(gaps) for key, gaps in alerts.open.items() if gaps} == {
        key: gaps for one in reports for key, gaps in one.missing.items()
    }
    assert (alerts.faults, alerts.repeats, dict(alerts.duplicates)) == ([], 0, {})


def status(worker: Worker) -> str:
    """Of /readyz."""
    try:
        worker.get("/livez")
        return "ready" if worker.get("/readyz") else ""
    except OSError as error:
        return str(error)


def judge(worker: Worker, report: Reports) -> None:
    """Everything that was reported is there once, everything left out is missing."""
    query = f"topic={report.topic}&sink={report.sink}"

    def right() -> bool:
        rows: list[dict[str, Any]] = worker.get(f"/api/partitions?{query}")["partitions"]
        found = [(row["partition"], row["observed"], row["duplicates"], row["configured"]) for row in rows]
        gaps = listed(worker.get(f"/api/gaps?{query}&limit=5000"))
        if found != [(p, report.observed, 0, True) for p in range(PARTITIONS)] or gaps != report.missing:
            raise ValueError(f"{found}, reported {report.observed}; {sum(map(len, gaps.values()))} missing")
        return True

    eventually(right, f"{report.sink} of {report.topic}")
