"""A thousand observations that nobody should write, in a random order, and good ones between them."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, Message, Producer
from pyroaring import BitMap

from tests.support.kafka_kit import KafkaKit
from tests.support.observer import FLUSH_S, Observer
from tests.support.rig import Rig, Worker, eventually, listed

RECORDS = 600
HOSTILE = 1_000
GOOD_EVERY = 5
GROWTH_MIB = 150
"""What the worker may keep. It decodes 60 MB at a time; the allocator gives back most of that, not all."""
ANSWER_S = 5.0
"""For /livez while it digests them: tens of milliseconds in fact; room for a machine under load."""

Bad = tuple[str, bytes | None]
"""The reason for which it must be rejected, and the value."""


class Hostile:
    """Draws them; every kind is certain to be rejected, and for which reason."""

    def __init__(self, rng: random.Random, topic: str) -> None:
        self.rng, self.topic = rng, topic
        self.kinds: list[Callable[[], Bad]] = [
            self.wrong_type,
            self.no_offset,
            self.beyond_end,
            self.no_bitmap,
            self.wide_bitmap,
            self.many_runs,
            self.disorder,
            self.elsewhere,
            self.old,
            self.no_json,
            self.no_sense,
        ]

    def draw(self, count: int) -> list[Bad]:
        """So many, of all kinds equally, and one list of ten million runs; shuffled."""
        found = [self.kinds[number % len(self.kinds)]() for number in range(count - 1)]
        found.append(("too_large", self._with(runs=...)[:-1] + b',"runs":[' + b"[0,0]," * 9_999_999 + b"[0,0]]}"))
        self.rng.shuffle(found)
        return found

    def _with(self, **fields: Any) -> bytes:
        """A good one (offset 0, which is missing for good), spoiled; ``...`` leaves a field out."""
        good = {"v": 1, "sink": "billing", "topic": self.topic, "partition": 0, "runs": [[0, 0]]}
        return json.dumps({name: value for name, value in (good | fields).items() if value is not ...}).encode()

    def _malformed(self, **fields: Any) -> Bad:
        return "malformed", self._with(**fields)

    def wrong_type(self) -> Bad:
        """A field that is something else."""
        field = self.rng.choice(("v", "sink", "topic", "partition", "runs", "bitmap", "claim", "status", "source", "sequence", "topic_id"))
        wrong: list[Any] = [True, 1.5, {"a": []}, [[[]]]]
        if field not in ("v", "partition"):  # there another number is another version or partition
            wrong.append(10**400)
        return self._malformed(**{field: self.rng.choice(wrong)})

    def no_offset(self) -> Bad:
        """Below zero, at 2^63, and far beyond."""
        offset = self.rng.choice((-1, -(2**63), -(2**64), 2**63, 2**64, 10**30, -self.rng.randrange(1, 10**9)))
        return self.rng.choice(
            (self._malformed(runs=[[offset, offset]]), self._malformed(claim=offset), self._malformed(runs=[[0, offset]]))
        )

    def beyond_end(self) -> Bad:
        """An offset, but none that the log has."""
        offset = self.rng.choice((RECORDS, RECORDS + 1, 2**62, self.rng.randrange(RECORDS, 2**40)))
        kind = self.rng.choice(({"runs": [[0, offset]]}, {"runs": [[offset, offset]]}, {"runs": ..., "claim": offset + 1}))
        return "beyond_end", self._with(**kind)

    def no_bitmap(self) -> Bad:
        """Base64 of something else, or no base64."""
        good = BitMap(self.rng.sample(range(RECORDS), 50)).serialize()
        broken = self.rng.choice((good[: self.rng.randrange(len(good))], b"\xff" * self.rng.randrange(1, 500), b"\x3a\x30" + b"\xff" * 20))
        text = self.rng.choice((base64.b64encode(broken).decode(), "no base64 %" * 5, "A" * 5))
        return self._malformed(runs=..., bitmap={"base": 0, "roaring": text})

    def wide_bitmap(self) -> Bad:
        """A good bitmap where there can't be one, or where the log ends."""
        base, reason = self.rng.choice(((-1, "malformed"), (2**63 - 1, "malformed"), (2**64, "malformed"), (RECORDS, "beyond_end")))
        roaring = base64.b64encode(BitMap([0, 1, 5]).serialize()).decode()
        return reason, self._with(runs=..., bitmap={"base": base, "roaring": roaring})

    def many_runs(self) -> Bad:
        """More than are taken at once: as text, and four times as many in a bitmap of 100 kB."""
        if self.rng.random() < 0.8:
            return "too_large", self._with(runs=..., bitmap={"base": 0, "roaring": _alternating()})
        return "too_large", self._with(runs=[[0, 0]] * 100_001)

    def disorder(self) -> Bad:
        """Runs that fall, touch twice, or end before they begin."""
        first = self.rng.randrange(1, RECORDS // 2)
        return self._malformed(
            runs=self.rng.choice(([[first, first - 1]], [[first, first], [first, first]], [[first, first], [0, 0]], [[0]]))
        )

    def elsewhere(self) -> Bad:
        """Of another topic or partition than it stands in."""
        topic = self.rng.choice(("other", "", "x" * 10_000, "log", "../" * 50))
        return self.rng.choice(
            (("wrong_topic", self._with(topic=topic)), ("wrong_partition", self._with(partition=1 + self.rng.randrange(10))))
        )

    def old(self) -> Bad:
        """Of a topic that had this name before."""
        return "older_incarnation", self._with(topic_id=base64.urlsafe_b64encode(self.rng.randbytes(16)).decode()[:22])

    def no_json(self) -> Bad:
        """Bytes."""
        size = self.rng.randrange(1, 5_000)
        return "malformed", self.rng.choice((None, b"", b"[" * size, b"\x00" + self.rng.randbytes(size), self._with()[: -1 - size % 50]))

    def no_sense(self) -> Bad:
        """The right types and no meaning."""
        fields: list[dict[str, Any]] = [
            {"runs": ...},
            {"sink": "log"},
            {"sink": ""},
            {"sink": "x" * 201},
            {"status": "lost"},
            {"status": "quarantined"},
            {"source": "a"},
            {"sequence": 1},
            {"snapshot": [0, 5]},
        ]
        return self.rng.choice(
            (self._malformed(**self.rng.choice(fields)), ("unsupported_version", self._with(v=self.rng.choice((0, 2, -1)))))
        )


def _alternating() -> str:
    return base64.b64encode(BitMap(range(0, 400_000 * 2, 2)).serialize()).decode()


def rejected(worker: Worker) -> dict[str, int]:
    """By reason, as the metrics have it."""
    with urllib.request.urlopen(f"{worker.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = re.findall(r'^gapstream_observations_rejected_total\{reason="(.*)"\} (\S+)$', text, re.MULTILINE)
    return {reason: int(float(value)) for reason, value in found}


def resident_mib(worker: Worker) -> float:
    """What the process holds."""
    assert worker.process is not None
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(worker.process.pid)], capture_output=True, text=True, check=True)
    return int(told.stdout) / 1024


def answers(worker: Worker) -> float:
    """Seconds that /livez takes."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"{worker.url}/livez", timeout=30) as answer:
        assert answer.status == 200
    return time.perf_counter() - began


def test_a_thousand_hostile_observations_change_nothing_but_counters(make_rig: Callable[..., Rig], shared_kit: KafkaKit) -> None:
    topic = shared_kit.make_topic(1)
    rig = make_rig({topic: {"sinks": {"billing": {"type": "consumer", "grace": "200ms", "from": "earliest"}}}})
    worker = rig.worker().start()
    shared_kit.produce(topic, 0, RECORDS)
    rng = random.Random(seed := random.getrandbits(32))
    bad = Hostile(rng, topic).draw(HOSTILE)
    worker.ready()
    observer = Observer(rig.bootstrap, rig.app_id)
    observer.received(topic, 0, [1, 1])
    wanted = {1} | {2 + 3 * number for number in range(HOSTILE // GOOD_EVERY - 1)}
    eventually(lambda: worker.get(f"/api/partitions?topic={topic}&sink=billing")["partitions"][0]["observed"] == 1, "the first one")
    before, slowest = resident_mib(worker), 0.0
    writer = Producer({"bootstrap.servers": rig.bootstrap, "compression.type": "gzip", "message.max.bytes": 10**9, "linger.ms": 0})
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    for number, (_, value) in enumerate(bad):
        writer.produce(f"{rig.app_id}.observations.{topic}", value, partition=0, on_delivery=delivered)
        if number % GOOD_EVERY == 0:
            assert writer.flush(FLUSH_S) == 0
            offset = 2 + 3 * (number // GOOD_EVERY)
            if offset in wanted:
                observer.received(topic, 0, [offset, offset])
            slowest = max(slowest, answers(worker))
    assert writer.flush(FLUSH_S) == 0
    assert refused == [], "Kafka itself takes them"
    expected = Counter(reason for reason, _ in bad)
    assert expected.total() == HOSTILE
    eventually(lambda: _equal(rejected(worker), expected), f"seed {seed}: each is counted by its reason")
    missing = set(range(max(wanted))) - wanted
    gaps = {(topic, 0, "billing"): missing}

    def applied() -> bool:
        slow = answers(worker)
        assert slow < ANSWER_S
        return _equal(listed(worker.get(f"/api/gaps?topic={topic}&limit=1000")), gaps)

    eventually(applied, f"seed {seed}: the good ones between them are applied, and nothing else")
    row = worker.get(f"/api/partitions?topic={topic}&sink=billing")["partitions"][0]
    assert (row["observed"], row["duplicates"], row["explained"], row["horizon_offset"]) == (len(wanted), 0, {}, max(wanted) + 1)
    sinks = {one["sink"] for one in worker.get(f"/api/partitions?topic={topic}")["partitions"]}
    assert sinks == {"log", "billing"}, "no sink comes to be by a rejected observation"
    assert slowest < ANSWER_S
    assert resident_mib(worker) - before < GROWTH_MIB
    assert "Traceback" not in worker.log.read_text()


def _equal(found: object, wanted: object) -> bool:
    """ValueError that says what was found, for ``eventually``."""
    if found != wanted:
        raise ValueError(found)
    return True
