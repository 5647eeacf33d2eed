"""Producers of every kind on the same partitions, by a seed: plain, idempotent, transactional, and those that never end their transaction.

A seed repeats what is written by whom and in which order, not what the broker makes of it: that is read from its files.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.campaign.verdicts import ABORTED, RECORD
from tests.support.dump_log import Where

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
PATIENCE_S = 120.0
"""For whatever a producer waits for: a broker that was killed is back long before."""
LARGE_BATCH = 4_000
LARGE_VALUE = 30_000
HUNG_S = (3.0, 12.0)
"""Timeouts of transactions that are left open: some end within a round, some hide the log's end from a comparison."""
SOON_BACK = {"reconnect.backoff.max.ms": 500}
"""A broker that was away is found again at once, so that more is written around its crash."""
KEYS = 25
"""Of compacted topics: few, so that compaction leaves little."""
TRANSACTIONAL = 5
"""One for each codec."""
_ROOT = Path(__file__).resolve().parents[2]

Step = Callable[[], None]
Noted = Callable[[KafkaError | None, Message], None]
Delivered = tuple[str, int, int]
"""Topic, partition and offset of a record that the broker acknowledged."""


@dataclass(frozen=True)
class Topic:
    """One watched topic of the campaign."""

    name: str
    isolation: str
    """Under which the product reads it."""
    config: dict[str, str]
    partitions: int = 2

    @property
    def compacts(self) -> bool:
        """Whether compaction ever takes records."""
        return "compact" in self.config.get("cleanup.policy", "delete")

    @property
    def deletes(self) -> bool:
        """Whether delete-records is allowed."""
        return "delete" in self.config.get("cleanup.policy", "delete")

    @property
    def places(self) -> list[tuple[str, int]]:
        """Its partitions."""
        return [(self.name, partition) for partition in range(self.partitions)]


@dataclass
class Transactional:
    """A transactional producer and whether its transaction is open."""

    name: str
    codec: str
    producer: Producer
    open: bool = False
    delivered: list[Delivered] = field(default_factory=list)
    """Of its present transaction."""


@dataclass
class Mix:
    """All producers; ``steps`` are drawn from ``rng``."""

    bootstrap: str
    topics: Sequence[Topic]
    rng: random.Random
    run: str
    """Makes transactional ids of different runs differ."""
    made: Counter[str] = field(default_factory=Counter)
    """What was really done, by its name."""
    _delivered: list[Delivered] = field(default_factory=list)
    _decided: list[tuple[list[Delivered], int]] = field(default_factory=list)
    """Of transactions that have ended, with what became of their records; reports of delivery may still come."""
    _written: dict[Where, dict[int, int]] = field(default_factory=dict)
    _plain: dict[tuple[str, bool], Producer] = field(default_factory=dict)
    _transactional: list[Transactional] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._payload = random.Random(0).randbytes(LARGE_VALUE)  # does not compress: sizes are what they seem
        for number in range(TRANSACTIONAL):
            codec = CODECS[number % len(CODECS)]
            name = f"{self.run}-txn-{number}"
            self._transactional.append(Transactional(name, codec, self._make_transactional(name, codec)))

    def close(self) -> None:
        """End the processes that hold transactions open; what is not flushed is lost."""
        for process in self._processes:
            process.kill()
            process.wait()

    # --- what a round is made of --------------------------------------------------------------------------------------

    def every_kind(self) -> list[Step]:
        """One of each: every codec with every kind of producer, small and large batches, commit and abort, in an order of the seed."""
        steps: list[Step] = []
        for codec in CODECS:
            for idempotent in (False, True):
                for large in (False, True):
                    steps.append(self._writing(codec, idempotent, large))
        for one in self._transactional:
            for commit in (True, False):
                steps.append(self._whole_transaction(one, commit))
        self.rng.shuffle(steps)
        return steps

    def any_kind(self) -> Step:
        """The next one by the seed: mostly small things, so that producers interleave on each partition."""
        roll = self.rng.random()
        if roll < 0.30:
            return self._writing(self.rng.choice(CODECS), self.rng.random() < 0.5, self.rng.random() < 0.04)
        one = self.rng.choice(self._transactional)
        if roll < 0.65:
            return self._piece(one)
        if roll < 0.85:
            return self._end(one, self.rng.random() < 0.6)
        return self._whole_transaction(one, self.rng.random() < 0.5, pieces=1)

    def leave_open(self, kill: bool) -> None:
        """A transaction that only its timeout ends; of a process that is killed at once, or goes on doing nothing."""
        places = self._some_places()
        timeout_ms = int(self.rng.uniform(*HUNG_S) * 1000)
        name = f"{self.run}-open-{len(self._processes)}"
        counts = [f"{topic}:{partition}:{self.rng.randrange(1, 40)}" for topic, partition in places]
        command = [sys.executable, "-m", "tests.campaign.left_open", self.bootstrap, name, str(timeout_ms), self.rng.choice(CODECS)]
        process = subprocess.Popen([*command, *counts], cwd=_ROOT, stdout=subprocess.PIPE)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n", f"{name} could not write its records"
        if kill:
            process.kill()
            process.wait()
        self.made["transactions left open by a killed producer" if kill else "transactions left open by an idle producer"] += 1

    def finish(self) -> None:
        """End the transactions that are not left open on purpose, and deliver everything."""
        for one in self._transactional:
            if one.open:
                self._end(one, self.rng.random() < 0.5)()
        for producer in self._plain.values():
            left = producer.flush(PATIENCE_S)
            assert left == 0, f"{left} records were not delivered within {PATIENCE_S:g} s"

    def written(self) -> dict[Where, dict[int, int]]:
        """What is known of compacted partitions by those who wrote them: the kind of each acknowledged record whose transaction has ended.

        Of records that were written twice, by a retry, one is known only.
        """
        for delivered, kind in [(self._delivered, RECORD), *self._decided]:
            for topic, partition, offset in delivered:
                self._written.setdefault((topic, partition), {})[offset] = kind
            delivered.clear()
        return self._written

    def write_batch(self, place: tuple[str, int]) -> None:
        """One batch of some size."""
        producer = self._producer(self.rng.choice(CODECS), False)
        self._records(producer, place, self.rng.randrange(20, 200), self.rng.random(), self._delivered)
        assert producer.flush(PATIENCE_S) == 0

    def write_one_each(self) -> None:
        """A record in every partition: one that makes the log roll, once the active segment is old enough."""
        producer = self._producer("none", False)
        for topic in self.topics:
            for name, partition in topic.places:
                producer.produce(name, b"roll", f"roll-{self.rng.randrange(10**6)}".encode(), partition)
        assert producer.flush(PATIENCE_S) == 0

    # --- steps --------------------------------------------------------------------------------------------------------

    def _writing(self, codec: str, idempotent: bool, large: bool) -> Step:
        place, number, flush = self._some_places()[0], self._number(large), self.rng.random() < 0.7
        seed = self.rng.random()

        def step() -> None:
            producer = self._producer(codec, idempotent)
            try:
                self._records(producer, place, number, seed, self._delivered)
            except KafkaException:
                if not idempotent:
                    raise
                # A broker's crash can leave an idempotent producer of librdkafka with sequences that it can't mend: a new one takes over.
                del self._plain[codec, idempotent]
                self.made["idempotent producers that broke"] += 1
                return
            if flush:
                producer.flush(2.0)
            self.made[f"{'idempotent' if idempotent else 'plain'} writes"] += 1

        return step

    def _number(self, large: bool) -> int:
        return self.rng.randrange(LARGE_BATCH // 2, LARGE_BATCH) if large else self.rng.randrange(1, 12)

    def _whole_transaction(self, one: Transactional, commit: bool, pieces: int = 2) -> Step:
        steps = [*(self._piece(one, large=pieces > 1 and number == 0) for number in range(pieces)), self._end(one, commit)]

        def step() -> None:
            for part in steps:
                part()

        return step

    def _piece(self, one: Transactional, large: bool = False) -> Step:
        """Some records of a transaction, which begins with them if need be; flushed, so that others write between."""
        parts = [(place, self._number(large), self.rng.random()) for place in self._some_places()]

        def step() -> None:
            def write() -> None:
                if not one.open:
                    one.producer.begin_transaction()
                    one.open, one.delivered = True, []
                for place, number, seed in parts:
                    self._records(one.producer, place, number, seed, one.delivered)
                one.producer.flush(5.0)

            self._guarded(one, write)

        return step

    def _end(self, one: Transactional, commit: bool) -> Step:
        def step() -> None:
            if not one.open:
                return
            if self._guarded(one, lambda: self._patiently(one.producer.commit_transaction if commit else one.producer.abort_transaction)):
                self.made["transactions committed" if commit else "transactions aborted"] += 1
                self._decided.append((one.delivered, RECORD if commit else ABORTED))
            one.open = False

        return step

    def _guarded(self, one: Transactional, call: Step) -> bool:
        """Whether it succeeded. If not, the transaction is aborted, or the producer replaced, as its error asks for."""
        try:
            call()
        except KafkaException as exc:
            error: KafkaError = exc.args[0]
            self.made["transactions that failed"] += 1
            one.open = False
            if error.txn_requires_abort():
                with contextlib.suppress(KafkaException):  # replaced below, which aborts it too
                    self._patiently(one.producer.abort_transaction)
                    return False
            one.producer = self._make_transactional(one.name, one.codec)
            return False
        return True

    def _patiently(self, call: Callable[[float], Any]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                call(10.0)
                return
            except KafkaException as exc:
                if not exc.args[0].retriable() or time.monotonic() > deadline:
                    raise

    def _records(self, producer: Producer, place: Where, number: int, seed: float, delivered: list[Delivered]) -> None:
        """Records of mixed sizes; on compacted topics with few keys and some tombstones, and ``delivered`` where they ended up."""

        def noted(error: KafkaError | None, message: Message) -> None:
            offset = message.offset()
            if error is None and offset is not None and offset >= 0:
                delivered.append((*place, offset))

        rng = random.Random(seed)
        compacts = next(one for one in self.topics if one.name == place[0]).compacts
        for _ in range(number):
            key = f"k{rng.randrange(KEYS)}".encode() if compacts or rng.random() < 0.3 else None
            at = rng.randrange(LARGE_VALUE - 200)
            value: bytes | None = self._payload[at : at + rng.randrange(200)]
            if rng.random() < (0.15 if compacts else 0.02):
                value = None
            elif number < 12 and rng.random() < 0.02:
                value = self._payload
            self._produce(producer, place, value, key, noted if compacts else None)

    def _produce(self, producer: Producer, place: Where, value: bytes | None, key: bytes | None, noted: Noted | None) -> None:
        topic, partition = place
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                producer.produce(topic, value, key, partition, on_delivery=noted)
                producer.poll(0)
                return
            except BufferError:  # the broker is down, or slower than we are
                assert time.monotonic() < deadline, f"no record was taken for {PATIENCE_S:g} s"
                producer.poll(0.2)

    def _some_places(self) -> list[tuple[str, int]]:
        places = [place for topic in self.topics for place in topic.places]
        return self.rng.sample(places, self.rng.randrange(1, 4))

    # --- producers ----------------------------------------------------------------------------------------------------

    def _conf(self, codec: str) -> dict[str, Any]:
        batching = {"compression.type": codec, "linger.ms": 20, "batch.num.messages": 3_000}
        return {"bootstrap.servers": self.bootstrap, "log_level": 2, **SOON_BACK, **batching}

    def _producer(self, codec: str, idempotent: bool) -> Producer:
        key = (codec, idempotent)
        if key not in self._plain:
            self._plain[key] = Producer({**self._conf(codec), "enable.idempotence": idempotent})
        return self._plain[key]

    def _make_transactional(self, name: str, codec: str) -> Producer:
        producer = Producer({**self._conf(codec), "transactional.id": name, "transaction.timeout.ms": 120_000})
        self._patiently(producer.init_transactions)
        return producer
