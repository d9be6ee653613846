"""The worker of a campaign: runs simulated seeds under the mutants that are on, until one of them fails.

    FASTPAXOS_MUTANT=17 python -m fastpaxos.testing.mutants.probe --seed 1 --count 1000

Prints one line of JSON. An exception of any kind is a kill, and so is a run that does not end: the campaign runs the
same seed without a mutant as well, where nothing may fail.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from fastpaxos.testing import SimCluster
from fastpaxos.testing.swarm import draw_options

from .catalogue import find
from .source import ENVIRONMENT_NAME

__all__ = ["EVENTS_MAX", "Hang", "run_seed"]

EVENTS_MAX = 2_000_000
"""More events than any seed needs: a run beyond it does not end."""


class Hang(Exception):  # noqa: N818 - it says what happened
    """The simulated cluster goes round in circles."""


def run_seed(seed: int, options: dict[str, Any], events_max: int = EVENTS_MAX) -> int:
    """Run one seed with these settings; return how many events it had. Raises whatever a checker or the code finds."""
    cluster = SimCluster(seed, draw_options(seed, **options))
    schedule, at = cluster.schedule, cluster.schedule.at

    def bounded(time_ns: int, action: Callable[[], None]) -> None:
        if schedule.events_run > events_max:
            raise Hang(f"more than {events_max} events in {schedule.now_ns // 1_000_000} ms of virtual time")
        at(time_ns, action)

    schedule.at = bounded  # type: ignore[method-assign]
    cluster.run()
    return schedule.events_run


def probe(seed: int, count: int, options: dict[str, object]) -> dict[str, Any]:
    """Run up to `count` seeds; stop at the first that fails, and say how."""
    started = time.monotonic()
    events = 0
    outcome: dict[str, Any] = {"killed": False, "seeds": count}
    for current in range(seed, seed + count):
        try:
            events += run_seed(current, options)
        except Exception as error:
            outcome = {
                "killed": True,
                "seeds": current - seed + 1,
                "seed": current,
                "checker": str(getattr(error, "checker", "")) or type(error).__name__,
                "error": f"{type(error).__name__}: {error}"[:500],
                "where": "".join(traceback.format_tb(error.__traceback__)[-1:])[:500],
            }
            break
    return {**outcome, "events": events, "seconds": round(time.monotonic() - started, 3)}


def options_of(name: str) -> dict[str, Any]:
    """The settings of the mutant or pair of this name, "17" or "2,16"; none for ""."""
    return dict(find(tuple(map(int, name.split(",")))).options) if name else {}


def confirm(names: list[str]) -> list[str]:
    """Run each "mutant:seed" with the settings of the mutant; return what each failed with, "" where it did not."""
    errors = []
    for name in names:
        mutant, _, seed = name.partition(":")
        errors.append(probe(int(seed), 1, options_of(mutant)).get("error", ""))
    return errors


def main() -> int:
    """Parse the arguments and print the outcome."""
    parser = argparse.ArgumentParser(prog="python -m fastpaxos.testing.mutants.probe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--confirm", default="", help="instead: run these (mutant:seed ...) and list their errors")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if chosen.confirm:
        print(json.dumps(confirm(chosen.confirm.split())))
    else:
        options = options_of(os.environ.get(ENVIRONMENT_NAME, ""))
        print(json.dumps(probe(chosen.seed, chosen.count, options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
