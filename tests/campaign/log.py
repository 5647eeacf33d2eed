"""The log's truth: ``--seed N --minutes M`` mixes everything under fire; without ``--minutes`` the long scenarios, one after another."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kafka_cluster import KafkaCluster

from tests.campaign.log_long import SCENARIOS
from tests.campaign.log_mix import REQUIRED, LogCampaign
from tests.campaign.scenario import START_S, run_all, table


def mixed(seed: int, minutes: float, folder: Path) -> int:
    """One run of the mix; exit status."""
    say = _progress()
    say(f"seed {seed}, {minutes:g} minutes; files in {folder}")
    cluster = KafkaCluster(logs=folder)
    cluster.start(START_S)
    with cluster:
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


def long(seed: int, ids: list[str], folder: Path, shorten: float) -> int:
    """The scenarios of these ids, or all; exit status."""
    unknown = set(ids) - {scenario.id for scenario in SCENARIOS}
    if unknown:
        print(f"no scenario {', '.join(sorted(unknown))}: there are {', '.join(scenario.id for scenario in SCENARIOS)}", file=sys.stderr)
        return 2
    say = _progress()
    say(f"seed {seed}; files in {folder}")
    found = run_all([one for one in SCENARIOS if not ids or one.id in ids], seed, folder, shorten, say)
    print()
    for line in table(found):
        print(line)
    differ = [scenario.id for scenario, outcome in found if not outcome.good]
    print(f"seed {seed}: {len(found)} scenarios, " + (f"differing: {', '.join(differ)}" if differ else "all as expected"))
    return 1 if differ else 0


def _progress() -> Callable[[str], None]:
    """Prints a line with the time since now."""
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)

    return say


def main(arguments: list[str]) -> int:
    """`scripts/campaign log`."""
    parser = argparse.ArgumentParser(prog="campaign log", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--scenarios", nargs="*", metavar="ID", help="run these, all without an ID; the default without --minutes")
    parser.add_argument("--shorten", type=float, default=1.0, help="factor for the scenarios' times and counts, to try them out")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="gapstream-log-"))
    if options.minutes is not None and options.scenarios is None:
        status = mixed(options.seed, options.minutes, folder)
    else:
        status = long(options.seed, options.scenarios or [], folder, options.shorten)
    if status != 1 and options.folder is None:
        shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
