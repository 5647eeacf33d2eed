"""How fast a worker takes a topic into its ledger, beside the two obvious ways to count a topic's records in Python.

Three contenders, one after the other over the same topic, in every run in another order:

  worker   a real worker that watches the topic, CRCs checked: until the log's end stands in the heads of its changelog
           for another read_committed consumer
  consume  a tuned loop of confluent-kafka's consume(10000) that keeps each partition's offset
  agent    a Faust agent that counts record by record in a table (a fixed time, not the whole topic)

Ends with 1 if the worker is less than 3 times as fast as consume or less than 200 times as fast as agent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kafka_cluster import KafkaCluster, KafkaError

from scripts.bench.ground import LARGE, SMALL, CannotTellError, Topic, busy_percent, filled, median, own_cluster, parser, run_module, say
from scripts.bench.ground import worker as real_worker
from scripts.bench.heads import Heads

LEAST = {"consume": 3.0, "agent": 200.0}
"""What the worker's rate is at least, in multiples of the other's."""
PATIENCE_S = 600.0


@dataclass(slots=True)
class Rates:
    """Records per second by contender, run by run, of one topic."""

    topic: Topic
    of: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, other: str) -> list[float]:
        """The worker's rate over the other's, pair by pair."""
        return [ours / theirs for ours, theirs in zip(self.of["worker"], self.of[other], strict=True)]


def by_worker(cluster: KafkaCluster, topic: Topic) -> float:
    """Records per second of a worker with a fresh app id.

    The clock starts when the worker writes the first head of all, which it does as soon as its reader is told where to
    start and which must say that nothing was read; it ends when the last partition's end is visible. Raises CannotTellError.
    """
    with real_worker(cluster.bootstrap, {topic.name: {"sinks": {}}}) as (rig, process):
        changelog = f"{rig.app_id}-{topic.name}-changelog"
        read: dict[int, int] = {}
        begun: float | None = None
        with Heads(cluster.bootstrap, changelog, len(topic.stops)) as heads:
            for head in heads.follow(PATIENCE_S):
                if head is None:
                    if process.process is not None and process.process.poll() is not None:
                        raise CannotTellError(f"the worker ended: {process.tail()}")
                    continue
                if head.partition not in read and head.read == 0:
                    begun = min(head.written_s, begun or head.written_s)
                read[head.partition] = head.read
                if read == topic.stops:
                    if begun is None:
                        raise CannotTellError("no partition's first head came before its first record: it is not known when reading began.")
                    process.stop()
                    return topic.records / (head.seen_s - begun)
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
    measured = [Rates(topic, {name: [] for name, _ in contenders}) for topic in topics]
    for run in range(runs):
        for rates in measured:
            for name, contender in contenders[run % 3 :] + contenders[: run % 3]:
                busy = busy_percent()
                rate = contender(rates.topic)
                rates.of[name].append(rate)
                others = "" if busy is None else f"; the machine was {busy} % busy before it"
                say(f"run {run + 1}, {rates.topic.shape.name}, {name}: {rate:,.0f} records/s{others}")
    return measured


def report(measured: Sequence[Rates]) -> bool:
    """Print the tables; whether the worker is as much faster as it has to be."""
    kept = True
    for rates in measured:
        print(f"\nbatches of {rates.topic.shape.name}: {rates.topic}")
        print(f"  {'':8} {'records/s, median':>18}   worker is so many times as fast: median (run by run)")
        for name, values in rates.of.items():
            line = f"  {name:8} {median(values):18,.0f}"
            if name in LEAST:
                ratios = rates.ratios(name)
                enough = median(ratios) >= LEAST[name]
                kept = kept and enough
                verdict = "" if enough else f"  <- less than {LEAST[name]:g}"
                line += f"   {median(ratios):.1f} ({', '.join(f'{ratio:.1f}' for ratio in ratios)}){verdict}"
            print(line)
    return kept


def main(arguments: Sequence[str]) -> int:
    """Fill, measure, report; the exit status."""
    options = _options(arguments)
    records = min(options.records, 12_000_000) if options.quick else options.records
    runs, agent_seconds = (1, 8.0) if options.quick else (options.runs, options.agent_seconds)
    busy = busy_percent(2.0)
    if busy is not None and busy > 10:
        say(f"the machine is {busy} % busy with other things: what is measured now says little; end them and run it again")
    try:
        with own_cluster() as cluster:
            topics = [filled(cluster, shape, records) for shape in (SMALL, LARGE)]
            kept = report(measure(cluster, topics, runs, agent_seconds))
    except (KafkaError, CannotTellError) as error:
        print(f"scripts/bench/run spine: {error}", file=sys.stderr)
        return 3
    return 0 if kept else 1


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    options = parser("spine", __doc__, 30_000_000)
    options.add_argument("--runs", type=int, default=5, help="medians are of so many (default: %(default)s)")
    options.add_argument("--agent-seconds", type=float, default=20.0, help="how long the Faust agent counts (default: %(default)s)")
    return options.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
