"""What the sidecar costs the application that it runs in, and how much it says.

The same loop reads the same topic with the sidecar and without, in turn and each time in the other order, in a process of its
own. Of each pair the ratio counts; the 95 % interval is that of their geometric mean (Student's t). Both commit every batch.

  consume   confluent-kafka's consume(10000), tuned: at most 3 % slower on a plain topic, 10 % on a transactional one
  getmany   aiokafka's getmany: at most 3 % slower
  poll      confluent-kafka's poll: stated; its 99th percentile rises by at most 1 ms
  said      bytes of the observations beside those of a topic that gets 100,000 records/s in 10 partitions: at most 0.1 %
  news      from the commit that skips a record to its gap.opened, at that rate and grace 0: half of them within 300 ms, 99 % within 1 s

Ends with 1 where a bound is broken, with 3 where the interval holds the bound: more --pairs, or a machine without others.
"""

from __future__ import annotations

import math
import statistics
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_cluster import KafkaCluster

from scripts.bench.ground import (
    CALL_S,
    PARTITIONS,
    SMALL,
    VALUE_BYTES,
    CannotTellError,
    concluded,
    filled,
    own_cluster,
    parser,
    run_module,
    say,
)
from scripts.bench.machine import watched
from scripts.bench.sidecar_loop import APP
from scripts.bench.sidecar_said import news_ms, share_said

PER_TRANSACTION = 100
"""Records of a transaction in each partition: one offset in 101 is a marker."""
MOST_SHARE = 0.001
MOST_NEWS_MS, MOST_LATE_NEWS_MS = 300.0, 1_000.0
MOST_P99_US = 1_000.0
PATIENCE_S = 300.0
FEWEST = 3
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09)
"""Student's t for 95 %, two-sided, by degrees of freedom from 1 on; 1.96 to 2.09 beyond."""
Interval = tuple[float, float, float]
"""Mean, low, high."""


@dataclass(frozen=True, slots=True)
class Case:
    """A loop over a topic, and how much slower the sidecar may make it."""

    name: str
    client: str
    topic: str
    records: int
    most: float | None
    """Share; None: it is only stated."""
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class Measured:
    """Pairs of one case."""

    case: Case
    bare: list[float] = field(default_factory=list)
    """Records per second."""
    with_sidecar: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Processor time with over without."""
    start: list[float] = field(default_factory=list)
    """Seconds that the first batch and its commit take longer with than without: connections are made then. No part of the rates."""
    others: list[int | None] = field(default_factory=list)

    def slower(self) -> Interval:
        """How much slower."""
        return interval([bare / ours for bare, ours in zip(self.bare, self.with_sidecar, strict=True)])


def interval(ratios: Sequence[float]) -> Interval:
    """By how much the ratios are above 1: their geometric mean, and where that is with 95 %."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, freedom = statistics.fmean(logs), len(logs) - 1
    half = (T_95[freedom - 1] if freedom <= len(T_95) else 2.09) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half)


def transactions(cluster: KafkaCluster, records: int) -> tuple[str, int]:
    """A new topic of committed transactions; its name and the number of its records."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(CALL_S)
    conf = {"bootstrap.servers": cluster.bootstrap, "transactional.id": name, "linger.ms": 5, "queue.buffering.max.messages": 500_000}
    producer = Producer(conf)
    producer.init_transactions(CALL_S)
    value = b"x" * VALUE_BYTES
    written = 0
    say(f"filling {name} with transactions of {PER_TRANSACTION} records a partition ...")
    while written < records:
        producer.begin_transaction()
        for partition in range(PARTITIONS):
            for _ in range(PER_TRANSACTION):
                producer.produce(name, value, partition=partition)
        producer.commit_transaction(CALL_S)
        written += PARTITIONS * PER_TRANSACTION
    return name, written


def make_observations(cluster: KafkaCluster, topic: str, partitions: int = PARTITIONS) -> None:
    """As gapstream makes them."""
    name = f"{APP}.observations.{topic}"
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    admin.create_topics([NewTopic(name, partitions, 1, config={"message.timestamp.type": "LogAppendTime"})])[name].result(CALL_S)


def once(cluster: KafkaCluster, case: Case, *, sidecar: bool, more: Sequence[str] = ()) -> dict[str, float]:
    """One reading."""
    arguments = ["--bootstrap", cluster.bootstrap, "--topic", case.topic, "--records", str(case.records), "--client", case.client]
    arguments += ["--partitions", str(PARTITIONS)]
    arguments += [*case.options, *more, *(["--sidecar"] if sidecar else [])]
    told: dict[str, float] = run_module("sidecar_loop", *arguments, timeout=PATIENCE_S)
    return told


def measure(cluster: KafkaCluster, cases: Sequence[Case], pairs: int) -> list[Measured]:
    """All cases, one pair of each after the other."""
    found = [Measured(case) for case in cases]
    for case in cases:
        once(cluster, case, sidecar=False)  # the broker's compiler and the page cache are warm then
    for pair in range(pairs):
        for one in found:
            told: dict[bool, dict[str, float]] = {}
            for sidecar in (False, True) if pair % 2 else (True, False):
                told[sidecar], others = watched(lambda case=one.case, with_it=sidecar: once(cluster, case, sidecar=with_it))  # type: ignore[misc]  # a lambda with defaults has no type that mypy can infer
                one.others.append(others)
            one.bare.append(told[False]["records"] / told[False]["seconds"])
            one.with_sidecar.append(told[True]["records"] / told[True]["seconds"])
            one.cpu.append(told[True]["cpu"] / told[False]["cpu"])
            one.start.append(told[True]["start"] - told[False]["start"])
            say(f"pair {pair + 1}, {one.case.name}: {one.bare[-1]:,.0f} records/s, with the sidecar {one.with_sidecar[-1]:,.0f}")
    return found


def report(found: Sequence[Measured]) -> list[bool | None]:
    """Print; for each bound whether it is kept, None: it can't be told."""
    verdicts: list[bool | None] = []
    print(
        f"\n{'':26} {'records/s':>11} {'slower by':>10}  {'95 % interval':>18}  {'bound':>6}"
        f"  {'processor time, 95 %':>24}  {'start':>8}  {'others used':>11}"
    )
    for one in found:
        mean, low, high = one.slower()
        cpu, low_cpu, high_cpu = interval(one.cpu)
        most = one.case.most
        kept = None if most is None else True if high <= most else False if low > most else None
        if most is not None:
            verdicts.append(kept)
        bound = "stated" if most is None else f"{most:.0%}"
        word = "" if most is None or kept else "  <- broken" if kept is False else "  <- can't be told"
        others = [share for share in one.others if share is not None]
        busy = f"{statistics.median(others):.0f} %" if others else "?"
        print(
            f"{one.case.name:26} {statistics.median(one.bare):11,.0f} {mean:10.1%}  {low:8.1%} to {high:6.1%}  {bound:>6}"
            f"  {cpu:+7.1%} {low_cpu:+7.1%} to {high_cpu:+6.1%}  {statistics.median(one.start) * 1e3:+5.0f} ms  {busy:>11}{word}"
        )
    return verdicts


def benchmark(records: int, pairs: int, seconds: float) -> bool:
    """Fill, measure, report; whether all bounds are kept."""
    with own_cluster() as cluster:
        plain = filled(cluster, SMALL, records)
        named, written = transactions(cluster, records)
        for topic in (plain.name, named):
            make_observations(cluster, topic)
        cases = [
            Case("consume, plain", "consume", plain.name, records, 0.03),
            Case("consume, transactional", "consume", named, written, 0.10),
            Case("consume, auto-commit", "consume", plain.name, records, None, ("--auto-commit",)),
            Case("getmany, plain", "getmany", plain.name, records, 0.03),
            Case("poll, plain", "poll", plain.name, records, None),
        ]
        verdicts = report(measure(cluster, cases, pairs))
        verdicts.append(said_p99(cluster, cases[-1], pairs))
        share = share_said(cluster, seconds)
        print(f"{'said':26} {share:.4%} of the watched topic's bytes; bound {MOST_SHARE:.1%}")
        verdicts += [share <= MOST_SHARE, news_in_time(*watched(lambda: news_ms(cluster, seconds)))]
    if False not in verdicts and None in verdicts:
        raise CannotTellError("an interval holds its bound: more --pairs, or a machine without others.")
    return all(verdicts)


def said_p99(cluster: KafkaCluster, case: Case, pairs: int) -> bool:
    """Print what a poll takes at the 99th percentile; whether it is little more with the sidecar."""
    told: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(min(pairs, FEWEST)):
        for sidecar in (False, True) if pair % 2 else (True, False):
            told[sidecar].append(once(cluster, case, sidecar=sidecar, more=("--calls",))["p99_us"])
    bare, ours = statistics.median(told[False]), statistics.median(told[True])
    print(f"{'poll, 99th percentile':26} {bare:.1f} us, with the sidecar {ours:.1f} us; bound +{MOST_P99_US:.0f} us")
    return ours - bare <= MOST_P99_US


def news_in_time(delays: Sequence[float], others: int | None) -> bool:
    """Print how long the news took; whether that is soon enough."""
    half, late = delays[len(delays) // 2], delays[len(delays) * 99 // 100]
    print(
        f"{'news':26} {half:.0f} ms from the commit to the event, half of them, {late:.0f} ms 99 % of {len(delays)}; "
        f"bounds {MOST_NEWS_MS:.0f} and {MOST_LATE_NEWS_MS:.0f} ms; others used {'?' if others is None else others} %"
    )
    return half <= MOST_NEWS_MS and late <= MOST_LATE_NEWS_MS


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    options = parser("sidecar", __doc__, 2_000_000, "three pairs of 500,000 records, and 10 s of each of the last two")
    options.add_argument("--pairs", type=int, default=20, help="how many; at least 3 (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=30.0, help="how long each of the last two runs (default: %(default)s)")
    given = options.parse_args(arguments)
    records, pairs, seconds = (500_000, FEWEST, 10.0) if given.quick else (given.records, max(FEWEST, given.pairs), given.seconds)
    return concluded("sidecar", lambda: benchmark(records, pairs, seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
