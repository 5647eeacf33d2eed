"""Long scenarios: what one is made of, the ground it stands on, and the table of how they went."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kafka_cluster import KafkaCluster

START_S = 180.0
"""For brokers to come up, on a machine that does other things too."""


@dataclass(frozen=True)
class Outcome:
    """How a scenario went; it went well where ``found`` is ``expected`` and the fault was made."""

    expected: str
    found: str
    made: int
    """How often the fault, or whatever the scenario is about, was really made; 0 is a failure."""
    details: list[str] = field(default_factory=list)
    """For people; shown where it did not go well."""

    @property
    def good(self) -> bool:
        """Whether it went well."""
        return self.expected == self.found and self.made > 0


@dataclass
class Ground:
    """What a scenario may use; brokers may be stopped, killed and paused, and run again when the scenario ends."""

    cluster: KafkaCluster
    """Of one broker, on this machine."""
    folder: Path
    """Of this scenario alone."""
    rng: random.Random
    """By the seed and the scenario's id: the same whichever others run."""
    say: Callable[[str], None]
    """A line of progress."""
    start_three: Callable[[], KafkaCluster]
    shorten: float = 1.0
    """Factor for times and counts, for trying a scenario out; 1: as long as it is meant."""

    @property
    def bootstrap(self) -> str:
        """Of the broker."""
        return self.cluster.bootstrap

    @property
    def three(self) -> KafkaCluster:
        """A cluster of three brokers, started when the first scenario asks for it."""
        return self.start_three()

    def scaled(self, number: float, least: float) -> int:
        """A time or a count, shortened, but not below ``least``."""
        return round(max(number * self.shorten, least))


@dataclass(frozen=True)
class Scenario:
    """One of the list; ``run`` cleans up behind itself."""

    id: str
    title: str
    run: Callable[[Ground], Outcome]


def run_all(
    scenarios: Iterable[Scenario], seed: int, folder: Path, shorten: float, say: Callable[[str], None]
) -> list[tuple[Scenario, Outcome]]:
    """One after another on one cluster; a scenario that breaks off has failed, and the others run all the same."""
    found = []
    three: list[KafkaCluster] = []

    def start_three() -> KafkaCluster:
        if not three:
            cluster = KafkaCluster(3, logs=folder / "kafka3")
            cluster.start(START_S)
            three.append(cluster)
        return three[0]

    try:
        one = KafkaCluster(logs=folder / "kafka")
        one.start(START_S)
        with one:
            for scenario in scenarios:
                say(f"{scenario.id}: {scenario.title}")
                place = folder / scenario.id
                place.mkdir(parents=True)
                ground = Ground(one, place, random.Random(f"{seed} {scenario.id}"), say, start_three, shorten)
                try:
                    outcome = scenario.run(ground)
                except Exception as exc:  # whatever went wrong is this scenario's outcome
                    outcome = Outcome("an end", f"broke off: {type(exc).__name__}", 0, traceback.format_exc().splitlines()[-25:])
                say(f"{scenario.id}: {'good' if outcome.good else 'NOT as expected'}")
                found.append((scenario, outcome))
    finally:
        for cluster in three:
            cluster.stop()
    return found


def table(found: Iterable[tuple[Scenario, Outcome]]) -> list[str]:
    """Lines: id, how often the fault was made, how it went; expected and found below each other, so that they are easy to compare."""
    lines = []
    for scenario, outcome in found:
        lines.append(f"{scenario.id:<8} made {outcome.made:>7,}  {'as expected' if outcome.good else 'DIFFERS'}: {scenario.title}")
        lines += [f"         expected  {outcome.expected}", f"         found     {outcome.found}"]
        if not outcome.good:
            lines += [f"           {detail}" for detail in outcome.details]
    return lines
