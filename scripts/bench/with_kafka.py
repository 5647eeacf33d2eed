"""Runs ``reader`` on a Kafka of its own, unless ``--bootstrap`` names one."""

from __future__ import annotations

import sys

from scripts.bench import reader
from scripts.bench.ground import own_cluster


def main(arguments: list[str]) -> None:
    """Hand the command line on, with an address where it has none."""
    sys.argv = ["scripts/bench/run reader", *arguments]
    if any(one in ("-h", "--help") or one.startswith("--bootstrap") for one in arguments):
        reader.main()
        return
    with own_cluster() as cluster:
        sys.argv += ["--bootstrap", cluster.bootstrap]
        reader.main()


if __name__ == "__main__":
    main(sys.argv[1:])
