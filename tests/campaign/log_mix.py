"""The log's truth under fire: all kinds of producers, compaction, removal, crashes; every offset compared with two oracles of Kafka.

In rounds, so that every answer has one right value: write while brokers and workers die, let the product read, compare, report
for a sink but for a few records, and only then let compaction and delete-records take what was read. A second application reads
it later, when all that has happened. What compaction takes while somebody reads is judged by what lies in the files before and after.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from kafka_cluster import KafkaCluster

from tests.campaign.mix import Mix, Topic
from tests.campaign.oracles import Archive
from tests.campaign.scenario import START_S
from tests.campaign.subject import Subject
from tests.campaign.verdicts import Files
from tests.support.dump_log import Dumper, Where
from tests.support.kafka_kit import KafkaKit

ROUNDS_MIN = 2
"""However short: a broker is killed in one, stopped in the other, and the late reader finds what the first left behind."""
WRITING_S = (4.0, 10.0)
AFTER_S = 4.0
"""Written on after broker and worker came back."""
HELD_MS = 10 * 365 * 86_400_000
"""min.compaction.lag.ms while nothing may be compacted yet."""
COMPACTED_S = 20.0
"""For the cleaner to pass all that it may; what it does not get to, the next round takes."""
_ROLLING = {"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.001", "delete.retention.ms": "200"}
REQUIRED = (
    *(f"batches of codec {codec}" for codec in ("none", "gzip", "snappy", "lz4", "zstd")),
    *("plain writes", "idempotent writes", "transactions committed", "transactions aborted"),
    *("transactions left open by a killed producer", "transactions left open by an idle producer"),
    *("COMMIT markers", "ABORT markers", "batches inside another producer's transaction"),
    *("transactions of one producer id within one fetch", "small batches", "large batches", "tombstones"),
    *("records taken by compaction", "batches thinned or emptied", "markers taken by compaction"),
    *("delete-records of what was read", "delete-records of what was not read", "delete-records inside a batch"),
    *(
        "brokers killed",
        "brokers stopped",
        "workers killed",
        "records held back",
        "offsets explained",
        "records reported late",
        "records unread",
    ),
)
"""What must have happened at least once, or the run has shown nothing."""


def topics(seed: int) -> list[Topic]:
    """Never compacted ones, where a hole is a defect; compacted ones whose compaction waits; and one that is compacted all the time."""
    held = {"cleanup.policy": "compact", "min.compaction.lag.ms": str(HELD_MS), **_ROLLING}
    return [
        Topic(f"orders-{seed}", "read_committed", {"segment.ms": "5000"}),
        Topic(f"events-{seed}", "read_uncommitted", {"segment.ms": "5000"}),
        Topic(f"prices-{seed}", "read_committed", {**held, "cleanup.policy": "compact,delete"}),
        Topic(f"stock-{seed}", "read_uncommitted", held),
        Topic(f"hot-{seed}", "read_committed", {"cleanup.policy": "compact", **_ROLLING}),
    ]


class BrokerFault(threading.Thread):
    """Takes the only broker away for a while, beside whatever goes on; ``ended`` raises what went wrong."""

    def __init__(self, cluster: KafkaCluster, kill: bool, after_s: float, away_s: float) -> None:
        super().__init__(name="broker fault")
        self._cluster, self._kill, self._after_s, self._away_s = cluster, kill, after_s, away_s
        self._failure: Exception | None = None

    def run(self) -> None:
        """All of it."""
        try:
            time.sleep(self._after_s)
            if self._kill:
                self._cluster.kill_broker(0)
            else:
                self._cluster.stop_broker(0, START_S)
            time.sleep(self._away_s)
            self._cluster.start_broker(0, START_S)
        except Exception as exc:  # told by ended(): a thread's own exceptions reach nobody
            self._failure = exc

    def ended(self) -> None:
        """Wait until the broker is back."""
        self.join()
        if self._failure is not None:
            raise self._failure


@dataclass
class LogCampaign:
    """One run on one broker."""

    seed: int
    minutes: float
    cluster: KafkaCluster
    folder: Path
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.topics = topics(self.seed)
        self.kit = KafkaKit(self.cluster.bootstrap)
        for topic in self.topics:
            self.kit.make_topic(topic.partitions, topic.config, name=topic.name)
        places = [place for topic in self.topics for place in topic.places]
        self.archive = Archive(Dumper(self.cluster), places)
        self.mix = Mix(self.cluster.bootstrap, self.topics, self.rng, f"run-{self.seed}")
        self.archive.written = self.mix.written
        self.live = self._subject("live")
        self.late = self._subject("late")
        self.made = self.mix.made

    def _subject(self, name: str) -> Subject:
        rng = random.Random(self.rng.random())
        return Subject(self.kit, self.folder / name, f"{name}-{self.seed}", self.topics, self.archive, rng)

    def close(self) -> None:
        """End what runs."""
        self.live.close()
        self.late.close()
        self.mix.close()

    def run(self) -> list[str]:
        """All rounds; the differences."""
        deadline = time.monotonic() + self.minutes * 60
        self.live.start()
        number = 0
        while number < ROUNDS_MIN or time.monotonic() < deadline:
            number += 1
            self._round(number)
            if self._different():
                return self._different()
        self._last()
        return self._different()

    def _different(self) -> list[str]:
        return [*self.live.differences, *self.late.differences]

    # --- a round ------------------------------------------------------------------------------------------------------

    def _round(self, number: int) -> None:
        self.say(f"round {number}: the worker is dead, records are written, and some removed before it comes back")
        self._while_dead()
        self._write(kill_broker=number % 2 == 1)
        self._quiet()
        self._judge(self.live)
        self._compact()
        if number % 2 == 0:
            self._read_late()

    def _last(self) -> None:
        """Every transaction has ended; compared once more, and what was told is folded."""
        self.say("at the end: transactions that were left open time out")
        self.live.await_read({place: self.kit.offsets(*place)[1] for place in self.archive.places})
        self._judge(self.live)
        self._read_late()
        for subject in (self.live, self.late):
            subject.check_alerts()
            subject.check_log()
            self.made["workers killed"] += subject.kills
            self.made["offsets explained"] += subject.explained
            self.made["records reported late"] += subject.reporter.late
            self.made["records held back"] += sum(map(len, subject.reporter.held.values()))
            self.made["records unread"] += sum(said.count(b"U") for said in subject.said.values())

    def _while_dead(self) -> None:
        self.live.kill()
        self.live.sleeps()
        places = [self.rng.choice(topic.places) for topic in self.topics if topic.deletes]
        for place in places:
            self.mix.write_batch(place)
        for _ in range(12):
            self.mix.any_kind()()
        self.mix.finish()
        files = self.archive.read()
        for place in places:
            self._remove(place, self._inside(files[place], len(self.live.said[place])))
            self.made["delete-records of what was not read"] += 1
        self.live.wakes()
        self.live.start()
        self.live.await_read({place: self.kit.offsets(*place)[0] for place in places})

    def _inside(self, files: Files, first: int) -> int:
        """An offset inside of one of the batches from ``first`` on, if there is one of more than one record."""
        batches = [batch for batch in files.batches if batch.base >= first and batch.count > 1]
        batch = self.rng.choice(batches)
        return self.rng.randrange(batch.base + 1, batch.last + 1)

    def _remove(self, place: Where, before: int) -> None:
        start = self._patiently(lambda: self.kit.delete_records(*place, before))
        files = self.archive.latest[place]
        self.made["delete-records inside a batch"] += any(batch.base < start <= batch.last for batch in files.batches)

    def _patiently(self, call: Callable[[], int]) -> int:
        """Again while the broker is away; for what does no harm when it is done twice."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                return call()
            except (KafkaException, TimeoutError):
                if time.monotonic() > deadline:
                    raise

    def _write(self, kill_broker: bool) -> None:
        """Everything at once: writers of all kinds, the broker goes and comes back, the worker is killed, what was read is removed."""
        seconds = self.rng.uniform(*WRITING_S)
        steps = self.mix.every_kind()
        special: list[Callable[[], None]] = [
            lambda: self.mix.leave_open(kill=True),
            lambda: self.mix.leave_open(kill=False),
            self._remove_read,
            self._remove_read,
            self._kill_live,
        ]
        for step in special:
            steps.insert(self.rng.randrange(len(steps)), step)
        fault = BrokerFault(self.cluster, kill_broker, self.rng.uniform(1.0, seconds / 2), self.rng.uniform(0.0, 3.0))
        fault.start()
        count = len(steps)
        try:
            for step in steps:
                step()
            count += self._write_on(seconds, fault.is_alive)
            self._kill_live()
        finally:
            fault.ended()
        count += self._write_on(AFTER_S)
        self.made["brokers killed" if kill_broker else "brokers stopped"] += 1
        self.say(f"wrote in {count} steps; the broker was {'killed' if kill_broker else 'stopped'}, the worker killed twice")

    def _write_on(self, seconds: float, while_true: Callable[[], bool] = lambda: False) -> int:
        """Write whatever the seed says, so long and while this holds; how many steps."""
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end or while_true():
            self.mix.any_kind()()
            count += 1
        return count

    def _kill_live(self) -> None:
        self.live.kill()
        if self.rng.random() < 0.5:  # others write meanwhile, so that it has something to catch up with
            for _ in range(self.rng.randrange(1, 8)):
                self.mix.any_kind()()
        self.live.start()

    def _remove_read(self) -> None:
        """Delete-records below what both oracles were asked about, while the worker reads what is new."""
        places = [place for topic in self.topics if topic.deletes for place in topic.places if len(self.live.said[place]) > 1]
        if places:
            place = self.rng.choice(places)
            before = self.rng.randrange(1, len(self.live.said[place]))
            held = sorted(self.live.reporter.held[place])
            if held and self.rng.random() < 0.5:  # the edge of what expires
                before = max(1, self.rng.choice(held) + self.rng.randrange(2))
            self._remove(place, before)
            self.made["delete-records of what was read"] += 1

    def _quiet(self) -> None:
        self.mix.finish()
        ends = {place: self.kit.offsets(*place)[1] for place in self.archive.places}
        self.say(f"quiet; the logs end at {sum(ends.values()):,} offsets in all")

    def _judge(self, subject: Subject) -> None:
        received = subject.compare()
        self.say(f"{subject.app_id}: {subject.compared:,} offsets compared, {subject.loose:,} of them loosely")
        subject.report(received)
        missing = sum(map(len, subject.reporter.held.values()))
        self.say(f"{subject.app_id}: {missing:,} records are missing as they should; differences: {len(subject.differences)}")

    def _compact(self) -> None:
        """Let the cleaner go through what was read, as far as it can, then stop it again before anything new is written."""
        held = [topic for topic in self.topics if "min.compaction.lag.ms" in topic.config]
        self.mix.write_one_each()  # rolls: what is in the active segment is never compacted
        self.live.await_read(self.live.ends())
        targets = {place: self._cleanable(place) for topic in held for place in topic.places}
        for topic in held:
            self.kit.set_topic_config(topic.name, {"min.compaction.lag.ms": "0"})
        deadline = time.monotonic() + COMPACTED_S
        while time.monotonic() < deadline and any(self._cleaned(place) < stop for place, stop in targets.items()):
            time.sleep(0.2)
        for topic in held:
            self.kit.set_topic_config(topic.name, {"min.compaction.lag.ms": str(HELD_MS)})
        self.archive.read()
        self.say(f"compacted: {self.archive.seen['records taken by compaction']:,} records taken so far")

    def _cleanable(self, place: Where) -> int:
        """Where the cleaner has to stop: at the active segment, or where a transaction is open."""
        folder = self.cluster.log_dir() / f"{place[0]}-{place[1]}"
        active = max(int(path.stem) for path in folder.glob("*.log"))
        return min(active, self.kit.offsets(*place, isolation="read_committed")[1])

    def _cleaned(self, place: Where) -> int:
        checkpoint = (self.cluster.log_dir() / "cleaner-offset-checkpoint").read_text().split("\n")[2:]
        known = {(topic, int(partition)): int(offset) for topic, partition, offset in (line.split() for line in checkpoint if line)}
        return known.get(place, 0)

    def _read_late(self) -> None:
        """The late reader gets what is left of it all since its last time; it is killed on the way, and at the end."""
        self.archive.read()
        self.late.wakes()
        self.late.start()
        time.sleep(self.rng.uniform(0.0, 4.0))
        self.late.kill()
        self.late.start()
        self._judge(self.late)
        self.late.kill()
        self.late.sleeps()
