"""A topic that is deleted and made anew, again and again, with other numbers of partitions and records."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.campaign import spine
from tests.campaign.log_faults import events
from tests.campaign.scenario import Ground, Outcome
from tests.support.kafka_kit import KafkaKit
from tests.support.observer import Observer
from tests.support.rig import Rig, Worker, eventually, listed

SINK = "billing"
TURNS = 30
FIRST, MOST = 3, 5
"""Partitions of the first topic, and at most."""
PATIENCE_S = 120.0
AWAY_S = (0.0, 0.0, 0.5, 2.0, 4.0, 6.0, 9.0)
"""How long the topic does not exist: before anybody looks, while a commit is under way, until the worker has given it up."""
AFTER = 10
"""Records written to each partition once the worker knows the new topic; the sink lacks the fifth of them."""
_SINKS = {"sinks": {SINK: {"type": "consumer", "grace": "200ms"}}}


@dataclass
class _Turns:
    """The topic, the workers that watch it, and what was done."""

    ground: Ground
    kit: KafkaKit
    rig: Rig
    topic: str
    workers: list[Worker]
    made: Counter[int] = field(default_factory=Counter)
    """By partition: how many topics had it, after the first one."""
    held: dict[int, set[int]] = field(default_factory=dict)
    """By partition of the present topic: what the sink lacks."""

    def one(self, number: int) -> None:
        """Make it anew, wait until it is read, and lose a record of each partition."""
        rng = self.ground.rng
        records = [rng.randrange(60) for _ in range(rng.randint(1, MOST))]
        away, down = rng.choice(AWAY_S), rng.choice([None, None, None, *self.workers])
        self.ground.say(f"T20: turn {number}: away for {away} s, then {records}; {f'worker {down.number} down' if down else 'all up'}")
        if down is not None:
            assert down.stop() == 0
        self.kit.delete_topics(self.topic)
        time.sleep(away)
        self.kit.make_topic(len(records), name=self.topic)
        for partition, count in enumerate(records):
            if count:
                self.kit.produce(self.topic, partition, count)
        if down is not None:
            down.start().ready(PATIENCE_S)
        eventually(lambda: self._ends() == dict(enumerate(records)), f"turn {number} is read", PATIENCE_S)
        self.made.update(range(len(records)))
        observer = Observer(self.ground.bootstrap, self.rig.app_id, SINK)  # one that does not know the old topic's partitions
        for partition, count in enumerate(records):
            self.kit.produce(self.topic, partition, AFTER)
            observer.received(self.topic, partition, [0, count + 3], [count + 5, count + AFTER - 1])
        self.held = {partition: {count + 4} for partition, count in enumerate(records)}
        eventually(lambda: self._missing() == self.held, f"turn {number}: what is missing", PATIENCE_S)

    def _ends(self) -> dict[int, int | None]:
        """Records of the partitions that somebody reads to their end."""
        rows = self.workers[0].get(f"/api/partitions?topic={self.topic}&sink=log")["partitions"]
        return {row["partition"]: row["records"] for row in rows if row["state"] == "ok" and row["records"] == row["log_end_offset"]}

    def _missing(self) -> dict[int, set[int]]:
        """Of the partitions that there are: of those that are no more, nobody closes what was open."""
        found = listed(self.workers[0].get(f"/api/gaps?topic={self.topic}&sink={SINK}"))
        return {partition: offsets for (_, partition, _), offsets in found.items() if partition in self.held}


def made_anew(ground: Ground) -> Outcome:
    """Two workers, one of which is stopped now and then; each new log is told once in each partition, and nothing is mixed."""
    kit = KafkaKit(ground.bootstrap)
    topic, beside = kit.make_topic(FIRST), kit.make_topic(2)
    rig = Rig(ground.folder / "app", ground.bootstrap, {topic: _SINKS, beside: _SINKS}, "t20")
    try:
        workers = [rig.worker().start() for _ in range(2)]
        for worker in workers:
            worker.ready(PATIENCE_S)
        turns = _Turns(ground, kit, rig, topic, workers)
        turns.made.update(dict.fromkeys(range(FIRST, MOST), -1))  # seen for the first time they are not anew
        number = ground.scaled(TURNS, 3)
        for turn in range(1, number + 1):
            turns.one(turn)
        kit.produce(beside, 0, 5)
        eventually(lambda: _records(workers[0], beside) == 5, "the topic beside is read all the time", PATIENCE_S)
        alerts = spine.folded(rig)
        told = Counter(one["partition"] for one in events(rig) if one["type"] == "log.recreated" and one["topic"] == topic)
    finally:
        rig.close()
        kit.close()
    known = {partition: times for partition, times in turns.made.items() if times > 0}
    opened = {key[1]: set(gaps) for key, gaps in alerts.open.items() if gaps and key[0] == topic and key[1] in turns.held}
    wanted = f"told anew {_sorted(known)}, open {_sorted(turns.held)}, faults []"
    return Outcome(wanted, f"told anew {_sorted(told)}, open {_sorted(opened)}, faults {alerts.faults}", number)


def _records(worker: Worker, topic: str) -> int:
    return sum(row["records"] or 0 for row in worker.get(f"/api/partitions?topic={topic}&sink=log")["partitions"])


def _sorted(found: dict[int, Any]) -> dict[int, Any]:
    return dict(sorted(found.items()))
