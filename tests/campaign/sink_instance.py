"""One instance of a consumer application with the sidecar around its client, which makes mistakes by a seed and dies where it is told to.

Run by ``scripts/campaign sinks``; what it does stands in its notes before it does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from gapstream_sidecar import Sidecar
from tests.campaign.sink_notes import Book, Commits, Notes

BATCH_MAX = 400
SESSION_MS = 3_000
SKIP_MAX, REPEAT_MAX, AHEAD_MAX = 60, 50, 40
_FAULT_SHARE = 0.04
"""Of each fault, per batch: a few dozen in a minute."""
_AHEAD_SHARE = 0.02
_LATEST_SHARE = 0.08
"""Per partition and assignment."""


def die() -> NoReturn:
    """As from outside: nothing is said, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody survives that")


class Instance:
    """What both clients' instances share: the book, the mistakes, the places to die."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rng = random.Random(options.seed)
        self.notes = Notes(options.notes)
        self.automatic = options.mode == "auto"
        self.book = Book(self.notes, automatic=self.automatic)
        self.sidecar = Sidecar({"bootstrap.servers": options.bootstrap}, sink=options.sink, app_id=options.app_id)
        self.until: dict[int, int] | None = None if options.until is None else {int(p): end for p, end in json.loads(options.until).items()}
        self.faulty = self.until is None
        self.batches = 0
        self.stopping = False
        self.reset: set[int] = set()
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def fault(self, kind: str, **fields: object) -> None:
        """A mistake that is about to be made."""
        self.notes.write("fault", kind=kind, **fields)

    def at(self, point: str) -> None:
        """Die here, if this is the place and the time."""
        if self.options.die == point and self.batches >= self.options.after:
            self.notes.write("death", point=point)
            die()

    def draw(self, share: float) -> bool:
        """Whether it happens this time."""
        return self.rng.random() < share

    def mistake(self) -> str | None:
        """What goes wrong after this batch."""
        if not self.faulty:
            return None
        due = self.options.die == "ahead" and self.batches >= self.options.after
        if not self.automatic and (due or self.draw(_AHEAD_SHARE)):
            return "ahead"
        return next((kind for kind in ("skip", "repeat") if self.draw(_FAULT_SHARE)), None)

    def to_latest(self, partitions: Iterable[int]) -> list[int]:
        """Those of them that begin at the log's end this time, whatever was committed."""
        chosen = [one for one in partitions if self.faulty and self.draw(_LATEST_SHARE)]
        for one in chosen:
            self.fault("latest", partition=one)
        return chosen

    def target(self, kind: str, stop: int, high: int) -> int | None:
        """Where a consumer that stands at ``stop`` goes by mistake; None where there is no room for it."""
        if kind == "repeat":
            back = stop - self.rng.randrange(1, REPEAT_MAX)
            return back if back >= 0 else None
        ahead = stop + self.rng.randrange(1, SKIP_MAX if kind == "skip" else AHEAD_MAX)
        return ahead if ahead < high else None

    def some(self, pending: Commits) -> Commits:
        """A commit by offsets: of some partitions, of some not all that is processed."""
        found = {}
        for partition, stop in pending.items():
            if self.draw(0.8):
                found[partition] = stop if self.draw(0.6) else self.rng.choice(sorted(self.book.handed[partition])) + 1
        return found

    def flush(self, seconds: float) -> bool:
        """What was asked for is certain from here on, if it works."""
        upto = self.book.settled
        if not self.sidecar.flush(seconds):
            return False
        self.book.flushed(upto)
        return True

    def done(self, committed: Commits) -> bool:
        """Whether the group has committed everything that there is."""
        return self.until is not None and all(committed.get(partition, -1) >= end for partition, end in self.until.items())

    def end(self) -> None:
        """The consumer is closed."""
        if self.flush(10):
            self.notes.write("end")
        self.sidecar.close()


def main(arguments: list[str]) -> int:
    """One instance, until SIGTERM, its own death, or everything is consumed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=("confluent", "aiokafka"), required=True)
    parser.add_argument("--mode", choices=("manual", "stored", "auto"), required=True)
    for name in ("bootstrap", "topic", "group", "sink", "app-id", "seed", "assignor"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--member", help="static membership")
    parser.add_argument("--die", help="where")
    parser.add_argument("--after", type=int, default=0, help="how many batches before")
    parser.add_argument("--until", help="JSON, partition -> end: no mistakes, and end when all below is committed")
    options = parser.parse_args(arguments)
    if options.library == "confluent":
        from tests.campaign.sink_confluent import ConfluentInstance

        ConfluentInstance(options).run()
    else:
        from tests.campaign.sink_aiokafka import AioInstance

        asyncio.run(AioInstance(options).run())
    return 0


def processing(rng: random.Random) -> float:
    """Seconds that a batch takes."""
    return rng.uniform(0.0, 0.08)


def deadline(seconds: float) -> float:
    """For loops that may take so long."""
    return time.monotonic() + seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
