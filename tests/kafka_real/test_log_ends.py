"""Where a log begins and ends: retention, deleted records, a tail of aborted transactions; and records that are odd in themselves."""

# ruff: noqa: N802  # tests carry the ids of the scenarios that they play

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tests.campaign import spine
from tests.support.kafka_kit import KafkaKit
from tests.support.rig import Rig, eventually
from tests.support.scene import SINK, SINKS, Scene, event_ranges

NAMES = ("read", "away", "retained", "trimmed", "tail", "large", "shuffled", "stamped")
TOPICS = SimpleNamespace(**{name: f"{name}-{uuid.uuid4().hex[:8]}" for name in NAMES})
YEAR_2100_MS = 4_102_444_800_000
LARGE = 17 << 20
"""Bytes of a record that is larger than the reader's largest fetch."""
CONFIGS: dict[str, dict[str, str]] = {
    TOPICS.large: {"max.message.bytes": str(2 * LARGE)},
    TOPICS.shuffled: {"message.timestamp.after.max.ms": str(2**63 - 1)},
    TOPICS.stamped: {"message.timestamp.type": "LogAppendTime"},
}
ONE_BATCH = {"linger.ms": 200, "enable.idempotence": True}  # sent again they stay one


@pytest.fixture(scope="module", autouse=True)
def scene(shared_kit: KafkaKit, make_rig: Callable[..., Rig]) -> Scene:
    kit = shared_kit
    for topic in vars(TOPICS).values():
        kit.make_topic(1, CONFIGS.get(topic), name=topic)
    for topic in (TOPICS.read, TOPICS.away, TOPICS.retained, TOPICS.trimmed):
        kit.produce(topic, 0, 100, conf=ONE_BATCH)
    kit.delete_records(TOPICS.trimmed, 0, 50)
    kit.produce(TOPICS.tail, 0, 10)
    kit.transactions([TOPICS.tail], 3, 4, abort_every=1)
    earliest = {"sinks": {SINK: {**SINKS["sinks"][SINK], "from": "earliest"}}}
    rig = make_rig({topic: earliest if topic == TOPICS.trimmed else SINKS for topic in vars(TOPICS).values()})
    return Scene(kit, rig, rig.worker().start().ready())


@pytest.fixture(scope="module")
def restarted(scene: Scene) -> Scene:
    """The worker was away while logs lost their beginning, read and unread."""
    kit = scene.kit
    for topic, end in ((TOPICS.away, 100), (TOPICS.retained, 100), (TOPICS.tail, 25)):
        scene.await_row(topic, {"log_read_offset": end}, sink="log")
    scene.observer.received(TOPICS.away, 0, [0, 59])
    scene.await_row(TOPICS.away, {"observed": 60})
    assert scene.worker.stop() == 0
    assert kit.committed(scene.rig.app_id, TOPICS.tail) == 25
    kit.set_topic_config(TOPICS.retained, {"retention.ms": "100"})
    kit.produce(TOPICS.retained, 0, 50)
    kit.produce(TOPICS.away, 0, 100, conf=ONE_BATCH)
    kit.delete_records(TOPICS.away, 0, 150)
    kit.delete_records(TOPICS.tail, 0, 25)
    eventually(lambda: kit.offsets(TOPICS.retained) == (150, 150), "retention took all of it")
    kit.set_topic_config(TOPICS.retained, {"retention.ms": "-1"})
    kit.produce(TOPICS.retained, 0, 10)
    scene.worker.start().ready()
    return scene


def test_T07_a_tail_of_aborted_transactions(restarted: Scene) -> None:
    """The group's commit moves past it, and it is not read again: by now that would be told as unread."""
    wanted = {"state": "ok", "records": 10, "absent": {"transaction_marker": 3, "aborted": 12}, "log_start_offset": 25}
    restarted.await_row(TOPICS.tail, wanted | {"log_read_offset": 25}, sink="log")
    assert restarted.told(TOPICS.tail) == []
    assert restarted.await_commit(TOPICS.tail) == 25


def causes(scene: Scene, topic: str) -> dict[int, str]:
    """Open gaps of the sink, folded from the alerts topic by an oracle."""
    alerts = spine.folded(scene.rig)
    assert (alerts.faults, alerts.repeats) == ([], 0)
    return alerts.open.get((topic, 0, SINK), {})


def test_T16_records_deleted_inside_a_batch_that_was_read(scene: Scene) -> None:
    """What was received is nobody's loss; of the rest it is told exactly what can't be replayed any more."""
    topic = TOPICS.read
    scene.observer.received(topic, 0, [0, 29], [40, 69], [90, 94])
    scene.await_row(topic, {"missing": 30, "horizon_offset": 95})
    scene.kit.delete_records(topic, 0, 75)
    scene.await_row(topic, {"log_start_offset": 75, "missing": 30})
    wanted = dict.fromkeys((*range(30, 40), *range(70, 75)), "expired") | dict.fromkeys(range(75, 90), "not_received")
    eventually(lambda: causes(scene, topic) == wanted, "the part that is gone")
    scene.kit.delete_records(topic, 0, 97)
    scene.await_row(topic, {"log_start_offset": 97})
    scene.observer.received(topic, 0, [99, 99])
    scene.await_row(topic, {"missing": 34, "horizon_offset": 100, "records": 100, "observed": 66})
    wanted = dict.fromkeys((*range(30, 40), *range(70, 90), 95, 96), "expired") | dict.fromkeys((97, 98), "not_received")
    assert causes(scene, topic) == wanted
    assert {one["type"] for one in scene.told(topic)} == {"gap.opened", "gap.expired"}, "nothing was unread"


def test_T16_records_deleted_inside_a_batch_that_was_not_read(restarted: Scene) -> None:
    """The range that nobody looked at is told once; it is neither missing nor complete, until a sink says that it has it."""
    topic = TOPICS.away
    wanted: dict[str, Any] = {"log_start_offset": 150, "log_read_offset": 200, "records": 150}
    restarted.await_row(topic, wanted, sink="log")
    assert event_ranges(restarted.told(topic)) == [("log.unread", "log", None, [[100, 149]])]
    restarted.observer.received(topic, 0, [60, 119], [150, 199])
    row = restarted.await_row(topic, {"horizon_offset": 200, "observed": 170, "missing": 0})
    held = row["complete_through"]
    restarted.observer.received(topic, 0, [120, 149])
    restarted.await_row(topic, {"observed": 200, "missing": 0, "duplicates": 0})
    eventually(lambda: restarted.row(topic)["complete_through"] > held, "nothing holds it back any more")
    assert len(restarted.told(topic)) == 1


def test_T17_retention_while_nobody_read(restarted: Scene) -> None:
    """There is no setting of ours like a consumer's reset: a restart tells the same range, whatever a consumer would do."""
    restarted.await_row(TOPICS.retained, {"log_start_offset": 150, "log_read_offset": 160, "records": 110}, sink="log")
    assert event_ranges(restarted.told(TOPICS.retained)) == [("log.unread", "log", None, [[100, 149]])]


def test_T18_a_log_that_began_above_zero_when_it_was_first_seen(scene: Scene) -> None:
    """Nothing below is anybody's: also not for a sink that answers from the earliest record on."""
    scene.observer.received(TOPICS.trimmed, 0, [60, 99])
    scene.await_row(TOPICS.trimmed, {"floor_offset": 50, "log_start_offset": 50, "records": 50, "missing": 10, "horizon_offset": 100})
    assert scene.missing(TOPICS.trimmed) == set(range(50, 60))
    assert event_ranges(scene.told(TOPICS.trimmed)) == [("gap.opened", SINK, "not_received", [[50, 59]])]


def test_T33_a_record_larger_than_the_largest_fetch(scene: Scene) -> None:
    """It is read, and looked at once more, as any other."""
    conf = {"message.max.bytes": 2 * LARGE, "batch.size": 1_000_000}
    scene.kit.produce(TOPICS.large, 0, 3)
    scene.kit.produce(TOPICS.large, 0, 2, value=random.randbytes(LARGE), conf=conf)
    scene.kit.produce(TOPICS.large, 0, 3)
    scene.await_row(TOPICS.large, {"records": 8, "log_read_offset": 8, "absent": {}}, sink="log")
    scene.observer.received(TOPICS.large, 0, [0, 2], [4, 7])
    scene.await_row(TOPICS.large, {"missing": 1, "horizon_offset": 8})
    assert scene.missing(TOPICS.large) == {3}


def test_T34_timestamps_have_no_say(scene: Scene) -> None:
    """Shuffled, absent, far in the future or in another unit as producers set them, or set by the broker: missing is what is missing."""
    now = int(time.time() * 1000)
    odd = [-1] * 5 + [YEAR_2100_MS] * 5 + [now * 1_000] * 3 + [now * 1_000_000] * 3
    times = [now - 86_400_000 * day for day in range(32)] + odd
    random.Random(34).shuffle(times)
    for topic in (TOPICS.shuffled, TOPICS.stamped):
        scene.kit.write_batches(topic, [[(None, b"value", ms) for ms in times[first : first + 8]] for first in range(0, len(times), 8)])
    stored = [one.timestamp()[1] for one in scene.kit.read(TOPICS.shuffled)]
    assert stored == times, "they are in the log as they were meant"
    lost = {offset for offset, ms in enumerate(times) if ms in odd and 0 < offset < len(times) - 1} | {20}
    for topic in (TOPICS.shuffled, TOPICS.stamped):
        scene.judge(topic, lost, duplicates=0)
        opened = [one for one in scene.told(topic) if one["type"] == "gap.opened"]
        assert all(abs(parsed(one["detected_at"]) - now) < 3_600_000 for one in opened), "told at the time of telling"
        pipes = [
            scene.worker.get(f"/v0/pipes/{pipe}.json?topic={topic}&open=1")
            for pipe in ("find_gaps", "missing_offsets_alert", "offset_stats")
        ]
        assert all(pipe["rows"] for pipe in pipes), "they are answered whatever the times are"


def parsed(text: str) -> float:
    """Milliseconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp() * 1000
