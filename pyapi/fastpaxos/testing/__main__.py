"""Run simulated clusters: `python -m fastpaxos.testing --seed 7`, or a campaign with `--seed 1 --count 1000`.

Prints one line of JSON per run. A broken property prints the options of the run and the command that replays it, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections import Counter
from collections.abc import Sequence

from .cluster import SimCluster


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastpaxos.testing", description="Run simulated clusters.")
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--count", type=int, default=1, help="number of seeds (default 1)")
    parser.add_argument("--quiet", action="store_true", help="print only failures and the totals")
    chosen = parser.parse_args(arguments)
    logging.getLogger("fastpaxos").setLevel(logging.ERROR)
    failed: list[int] = []
    totals: Counter[str] = Counter()
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        cluster = SimCluster(seed)
        try:
            cluster.run()
        except Exception:
            failed.append(seed)
            traceback.print_exc()
            print(f"seed {seed}: {cluster.options}\nreplay: {cluster.replay_command()}", file=sys.stderr)
            continue
        report = cluster.report()
        totals.update({name: value for name, value in report.items() if name not in ("seed", "trace")})
        if not chosen.quiet:
            print(json.dumps(report))
    print(json.dumps({"seeds": chosen.count, "failed": failed, "totals": totals}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
