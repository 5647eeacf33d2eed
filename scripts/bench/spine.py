"""How fast a worker takes a topic into its ledger, beside the two obvious ways to count a topic's records in Python.

Three contenders, one after the other over the same topic, in every run in another order:

  worker   a real worker that watches the topic, CRCs checked: until the log's end stands in the heads of its changelog
           for another read_committed consumer
  consume  a tuned loop of confluent-kafka's consume(10000) that keeps each partition's offset
  agent    a Faust agent that counts record by record in a table (a fixed time, not the whole topic)

Ends with 1 if the worker is less than 3 times as fast as consume or less than 200 times as fast as agent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from kafka_cluster import KafkaCluster

from scripts.bench.ground import LARGE, SMALL, CannotTellError, Topic, concluded, filled, own_cluster, parser, run_module, say
from scripts.bench.ground import worker as real_worker
from scripts.bench.heads import Heads, SeenHead
from scripts.bench.machine import others_percent, watched

LEAST = {"consume": 3.0, "agent": 200.0}
"""What the worker's rate is at least, in multiples of the other's."""
PATIENCE_S = 600.0
BUSY_PERCENT = 10
"""Of all processors, used by others: above it the figures say little."""
ATTEMPTS = 3


@dataclass(slots=True)
class Rates:
    """Records per second by contender, run by run, of one topic."""

    topic: Topic
    of: dict[str, list[float]] = field(default_factory=dict)
    others: dict[str, list[int | None]] = field(default_factory=dict)
    """Percent of the machine that others used meanwhile; None: unknown."""

    def ratios(self, other: str) -> list[float]:
        """The worker's rate over the other's, pair by pair."""
        return [ours / theirs for ours, theirs in zip(self.of["worker"], self.of[other], strict=True)]


def by_worker(cluster: KafkaCluster, topic: Topic) -> float:
    """Records per second of a worker, a fresh app id for each attempt. Raises CannotTellError."""
    for _ in range(ATTEMPTS):
        rate = _by_one_worker(cluster, topic)
        if rate is not None:
            return rate
    raise CannotTellError(f"{ATTEMPTS} times a first head came after the first records: it is not known when reading began.")


def _by_one_worker(cluster: KafkaCluster, topic: Topic) -> float | None:
    """From the first head of all, written before the first request for data is sent, to the last partition's end, seen here.

    None: some partition's first head does not say that nothing was read, so reading may have begun before it.
    """
    with real_worker(cluster.bootstrap, {topic.name: {"sinks": {}}}) as (rig, process):
        first: dict[int, SeenHead] = {}
        read: dict[int, int] = {}
        with Heads(cluster.bootstrap, f"{rig.app_id}-{topic.name}-changelog", len(topic.stops)) as heads:
            for head in heads.follow(PATIENCE_S):
                if head is None:
                    if process.process is not None and process.process.poll() is not None:
                        raise CannotTellError(f"the worker ended: {process.tail()}")
                    continue
                first.setdefault(head.partition, head)
                read[head.partition] = head.read
                if read == topic.stops:
                    if any(one.read for one in first.values()):
                        return None
                    return topic.records / (head.seen_s - min(one.written_s for one in first.values()))
    raise CannotTellError("the heads ended before the log did.")


def by_consume(cluster: KafkaCluster, topic: Topic) -> float:
    """Records per second of the tuned loop."""
    done = run_module("consume", "--bootstrap", cluster.bootstrap, "--topic", topic.name, timeout=PATIENCE_S)
    if done["records"] != topic.records:
        raise CannotTellError(f"consume read {done['records']:,} records of {topic.records:,}.")
    return float(done["records"] / done["seconds"])


def by_agent(cluster: KafkaCluster, topic: Topic, seconds: float) -> float:
    """Records per second of the Faust agent."""
    arguments = ("--bootstrap", cluster.bootstrap, "--topic", topic.name, "--partitions", str(len(topic.stops)), "--seconds", str(seconds))
    done = run_module("agent", *arguments, timeout=PATIENCE_S)
    return float(done["records"] / done["seconds"])


def measure(cluster: KafkaCluster, topics: Sequence[Topic], runs: int, agent_seconds: float) -> list[Rates]:
    """All contenders over all topics, ``runs`` times."""
    contenders: list[tuple[str, Callable[[Topic], float]]] = [
        ("worker", lambda topic: by_worker(cluster, topic)),
        ("consume", lambda topic: by_consume(cluster, topic)),
        ("agent", lambda topic: by_agent(cluster, topic, agent_seconds)),
    ]
    for topic in topics:
        by_consume(cluster, topic)  # Java compiles what serves a fetch, and the page cache holds the topic
    measured = [Rates(topic, {name: [] for name, _ in contenders}, {name: [] for name, _ in contenders}) for topic in topics]
    for run in range(runs):
        for rates in measured:
            for name, contender in contenders[run % 3 :] + contenders[: run % 3]:
                rate, others = watched(partial(contender, rates.topic))
                rates.of[name].append(rate)
                rates.others[name].append(others)
                say(
                    f"run {run + 1}, {rates.topic.shape.name}, {name}: {rate:,.0f} records/s; others used {_percent(others)} of the machine"
                )
    return measured


def report(measured: Sequence[Rates]) -> bool:
    """Print the tables; whether the worker is as much faster as it has to be."""
    kept = True
    for rates in measured:
        print(f"\nbatches of {rates.topic.shape.name}: {rates.topic}")
        print(f"  {'':8} {'records/s, median':>18}  {'others used':>11}  worker is so many times as fast: median (run by run)")
        for name, values in rates.of.items():
            line = f"  {name:8} {median(values):18,.0f}  {_percent(_most(rates.others[name])):>11}"
            if name in LEAST:
                ratios = rates.ratios(name)
                enough = median(ratios) >= LEAST[name]
                kept = kept and enough
                verdict = "" if enough else f"  <- less than {LEAST[name]:g}"
                line += f"  {median(ratios):.1f} ({', '.join(f'{ratio:.1f}' for ratio in ratios)}){verdict}"
            print(line)
    worst = _most([share for rates in measured for shares in rates.others.values() for share in shares])
    if worst is None or worst > BUSY_PERCENT:
        print(f"\nothers used {_percent(worst)} of the machine at worst: these figures are not those of a machine of its own")
    return kept


def _most(shares: Sequence[int | None]) -> int | None:
    """The highest share; None where one is unknown."""
    known = [share for share in shares if share is not None]
    return max(known) if len(known) == len(shares) else None


def _percent(share: int | None) -> str:
    return "an unknown part" if share is None else f"{share} %"


def benchmark(records: int, runs: int, agent_seconds: float) -> bool:
    """Fill, measure, report; whether the worker is fast enough."""
    others = others_percent(2.0)
    if others is not None and others > BUSY_PERCENT:
        say(f"others use {others} % of the machine: what is measured now says little; end them and run it again")
    with own_cluster() as cluster:
        topics = [filled(cluster, shape, records) for shape in (SMALL, LARGE)]
        return report(measure(cluster, topics, runs, agent_seconds))


def main(arguments: Sequence[str]) -> int:
    """Parse and run; the exit status."""
    options = parser("spine", __doc__, 30_000_000, "one run, and the agent for 8 s only")
    options.add_argument("--runs", type=int, default=5, help="how many; the medians count (default: %(default)s)")
    options.add_argument("--agent-seconds", type=float, default=20.0, help="how long the Faust agent counts (default: %(default)s)")
    given = options.parse_args(arguments)
    runs, seconds = (1, 8.0) if given.quick else (given.runs, given.agent_seconds)
    return concluded("spine", lambda: benchmark(given.records, runs, seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
