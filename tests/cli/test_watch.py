from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from stream_app.core import events
from stream_app.core.offsets import OffsetSet
from tests.cli.kit import Command
from tests.support.kafka_kit import KafkaKit

SOURCE = "gapstream://cluster/app/1"
HOUR_MS = 3_600_000


def event(sequence: int, kind: str = "gap.opened", sink: str = "billing", **more: Any) -> bytes:
    known: dict[str, Any] = {"cause": "not_received", "ranges": OffsetSet([(10, 13), (15, 17)]), "open_count": 5, "open_gaps": 1}
    made = events.Event(events.EventType(kind), "orders", 3, sink, sequence, detected_at_ms=1_763_892_000_000, **known | more)
    return events.as_json(made, SOURCE)


class Alerts:
    def __init__(self, kit: KafkaKit, folder: Path) -> None:
        app_id = f"app-{uuid.uuid4().hex[:8]}"
        self.topic = kit.make_topic(2, name=f"{app_id}.alerts")
        self._kit = kit
        file = folder / "watch.yaml"
        file.write_text(f"kafka: {{bootstrap.servers: '{kit.bootstrap}'}}\napp: {{id: {app_id}}}\n")
        self.args = ["-c", str(file)]

    def write(self, *values: bytes, hours_ago: int = 1) -> None:
        stamp = time.time_ns() // 1_000_000 - hours_ago * HOUR_MS
        self._kit.produce(self.topic, 0, len(values), value=lambda number: values[number], timestamp_ms=stamp)


@pytest.fixture
def alerts(kit: KafkaKit, tmp_path: Path) -> Alerts:
    return Alerts(kit, tmp_path)


def test_one_line_per_event(gapstream: Command, alerts: Alerts) -> None:
    one = OffsetSet([(20, 21)])
    stalled = event(3, "sink.stalled", cause=None, ranges=OffsetSet(), open_count=None, open_gaps=None)
    acknowledged = event(2, "gap.acknowledged", ranges=one, reason="lost\nfor good", by="ann", open_count=4)
    alerts.write(event(1), acknowledged, stalled)
    ran = gapstream("watch", "--no-follow", *alerts.args)
    assert (ran.code, ran.err) == (0, "")
    when = "2025-11-23T10:00:00.000Z"
    assert ran.out.splitlines() == [
        f"{when}  critical  gap.opened        orders/3/billing  10-16  5 records  not_received  (open: 5 in 1 gap)",
        rf"{when}  info      gap.acknowledged  orders/3/billing  20  1 record  not_received  lost\nfor good  by ann  (open: 4 in 1 gap)",
        f"{when}  warning   sink.stalled      orders/3/billing",
    ]


def test_json_is_one_event_a_line(gapstream: Command, alerts: Alerts) -> None:
    written = [event(1), event(2, "gap.filled"), event(1, sink="é")]
    alerts.write(*written)
    ran = gapstream("watch", "--no-follow", "--json", *alerts.args)
    assert [json.loads(line) for line in ran.out.splitlines()] == [json.loads(value) for value in written]


@pytest.mark.parametrize(
    ("start", "sequences"),
    [
        ([], [1, 2]),
        (["--from", "-90m"], [2]),
        (["--from", "@0"], [1, 2]),
        (["--from", "now"], []),
        (["--from", "2000-01-01T00:00:00Z"], [1, 2]),
    ],
)
def test_from_a_time(gapstream: Command, alerts: Alerts, start: list[str], sequences: list[int]) -> None:
    alerts.write(event(1), hours_ago=2)
    alerts.write(event(2), hours_ago=1)
    ran = gapstream("watch", "--no-follow", "--json", *start, *alerts.args)
    assert [json.loads(line)["sequence"] for line in ran.out.splitlines()] == sequences
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("filters", "sequences"),
    [
        (["--sink", "billing"], [1, 2]),
        (["--sink", "billing", "--cause", "vanished"], [2]),
        (["--topic", "orders", "--partition", "3"], [1, 2, 1]),
        (["--topic", "payments"], []),
        (["--partition", "0"], []),
    ],
)
def test_filters(gapstream: Command, alerts: Alerts, filters: list[str], sequences: list[int]) -> None:
    alerts.write(event(1), event(2, cause="vanished"), event(1, sink="warehouse"))
    ran = gapstream("watch", "--no-follow", "--json", *filters, *alerts.args)
    assert [json.loads(line)["sequence"] for line in ran.out.splitlines()] == sequences


def test_repeats_are_silent_and_what_is_missing_or_nonsense_is_said(gapstream: Command, alerts: Alerts) -> None:
    alerts.write(event(3), event(3), b"nonsense", event(5), event(8))
    ran = gapstream("watch", "--no-follow", "--json", *alerts.args)
    assert [json.loads(line)["sequence"] for line in ran.out.splitlines()] == [3, 5, 8]
    lines = ran.err.splitlines()
    assert lines[0].startswith("warning: events 1 to 2 are not in the topic, of orders/3/billing: ")
    assert lines[1].startswith(f"warning: {alerts.topic} partition 0 offset 2: it is no alert event")
    assert lines[2].startswith("warning: event 4 is not in the topic, of orders/3/billing: ")
    assert lines[3].startswith("warning: events 6 to 7 are not in the topic, of orders/3/billing: ")
    assert (ran.code, len(lines)) == (0, 4)


def test_following_tells_what_comes_later_at_once_and_ends_by_a_signal(alerts: Alerts) -> None:
    alerts.write(event(1), hours_ago=0)
    command = [sys.executable, "-m", "stream_app", "watch", "--from", "-1h", "--json", *alerts.args]
    folder = Path(__file__).parents[2]
    # A run that was put into the background by a shell ignores SIGINT, and so would its children: a terminal's don't.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, preexec_fn=_heed_interrupts
    ) as watch:
        try:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["sequence"] == 1
            alerts.write(event(2), hours_ago=0)
            assert json.loads(watch.stdout.readline())["sequence"] == 2
            watch.send_signal(signal.SIGINT)
            assert watch.wait(20) == 130
            assert watch.stderr is not None
            assert "Traceback" not in watch.stderr.read()
        finally:
            watch.kill()


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_no_topic_and_no_brokers_could_not_tell(gapstream: Command, kit: KafkaKit, tmp_path: Path) -> None:
    file = tmp_path / "watch.yaml"
    file.write_text(f"kafka: {{bootstrap.servers: '{kit.bootstrap}'}}\napp: {{id: nobody-{uuid.uuid4().hex}}}\n")
    ran = gapstream("watch", "--no-follow", "-c", str(file))
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert "does not exist: see app.id" in ran.err


@pytest.mark.parametrize("wrong", [["--from", "yesterday"], ["--from", "2025-11-23"], ["--cause", "bad"], ["--partition", "-1"]])
def test_usage(gapstream: Command, wrong: list[str]) -> None:
    ran = gapstream("watch", *wrong)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)


def test_no_configuration(gapstream: Command) -> None:
    assert gapstream("watch").code == 2
