"""The log's truth: ``--seed N --minutes M`` mixes everything under fire; without ``--minutes`` the long scenarios, one after another."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from kafka_cluster import KafkaCluster

from tests.campaign.log_mix import REQUIRED, LogCampaign


def mixed(seed: int, minutes: float, folder: Path) -> int:
    """One run of the mix; exit status."""
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)

    say(f"seed {seed}, {minutes:g} minutes; files in {folder}")
    with KafkaCluster(logs=folder) as cluster:
        campaign = LogCampaign(seed, minutes, cluster, folder, say)
        try:
            differences = campaign.run()
        except AssertionError as exc:  # something did not happen that had to
            differences = [str(exc)]
        finally:
            campaign.close()
    made = campaign.made + campaign.archive.seen
    print(f"\nseed {seed}: what was mixed, and how often it really happened")
    for name in sorted({*made, *REQUIRED}):
        print(f"  {made[name]:>9,}  {name}")
    never = [f"never happened: {name}" for name in REQUIRED if not made[name]] if not differences else []
    compared = campaign.live.compared + campaign.late.compared
    print(f"seed {seed}: {compared:,} verdicts compared; differences: {len(differences)}")
    for difference in [*differences[:50], *never]:
        print(f"  {difference}")
    return 1 if differences or never else 0


def main(arguments: list[str]) -> int:
    """`scripts/campaign log`."""
    parser = argparse.ArgumentParser(prog="campaign log", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gapstream-log-"))
    status = mixed(options.seed, options.minutes, folder)
    if status == 0 and options.folder is None:
        shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
