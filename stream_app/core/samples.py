"""The history of a sink's horizon: where it stood when, so that what lies below it is judged when ``grace`` is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SAMPLES_MAX = 32
"""(time, horizon) samples kept. They fall into buckets of grace/16, told apart by either clock, so that up to 34 fall into one
grace; where there are more, every second one goes and what it said waits for the next."""


@dataclass(slots=True)
class Sample:
    """The horizon as it stood at a time, by the broker's clock and by the worker's."""

    broker_ms: int
    worker_ms: int
    horizon: int
    at_ms: int = 0
    """By the clock of the sink's snapshots, not before it stood there; says something only of a sink that makes some."""


def keep(samples: list[Sample], sample: Sample, grace_ms: int) -> None:
    """Keep the horizon's history, in buckets; a merged sample takes the later time, so a verdict is late, never early."""
    width = max(grace_ms // 16, 1)
    buckets = [(s.broker_ms // width, s.worker_ms // width) for s in (*samples[-1:], sample)]
    sample.at_ms = max(sample.at_ms, samples[-1].at_ms) if samples else sample.at_ms
    if len(buckets) == 2 and buckets[0] == buckets[1]:
        samples[-1] = sample
        return
    samples.append(sample)
    if len(samples) > SAMPLES_MAX:
        # Neither the oldest goes, or under a steady stream none would ever grow as old as grace, nor the highest.
        del samples[1:-1:2]


def passed_by_time(samples: Iterable[Sample], grace_ms: int, broker_ms: int | None, heard_ms: int | None) -> int | None:
    """The highest horizon of which ``grace`` is over.

    ``broker_ms``: broker's time of the last observation read; ``heard_ms``: worker's time up to which the observations were read
    to their end. Each is compared with its own clock only, so clocks that differ do no harm, and a worker that was frozen
    judges nothing before it has read what it missed.
    """
    found = None
    for sample in samples:
        by_broker = broker_ms is not None and sample.broker_ms + grace_ms <= broker_ms
        by_worker = heard_ms is not None and sample.worker_ms + grace_ms <= heard_ms
        if by_broker or by_worker:
            found = sample.horizon
    return found
