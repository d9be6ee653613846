"""The worker of a mutation campaign: runs simulated seeds under the mutants that are on, until one of them fails.

    FASTPAXOS_MUTANT=17 python -m fastpaxos.testing.mutants.probe --seed 1 --count 1000

Prints one line of JSON. Any failure is a kill, a run without end included: the campaign runs the same seed without a
mutant as well, where nothing may fail.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from ..campaign import run_seed
from ..swarm import draw_options
from .catalogue import find
from .source import ENVIRONMENT_NAME

__all__ = ["confirm", "probe"]


def options_of(name: str) -> Mapping[str, Any]:
    """The settings of the mutant or pair of this name, "17" or "2,16"; none for ""."""
    return find(tuple(map(int, name.split(",")))).options if name else {}


def probe(first: int, count: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run up to `count` seeds with these settings; stop at the first that fails, and say how."""
    started = time.monotonic()
    events = 0
    outcome: dict[str, Any] = {"killed": False, "seeds": count}
    for seed in range(first, first + count):
        run = run_seed(seed, draw_options(seed, **options))
        events += run.report.get("events", 0)
        if run.failure is not None:
            outcome = {
                "killed": True,
                "seeds": seed - first + 1,
                "seed": seed,
                "checker": run.failure.checker,
                "error": run.failure.message[:500],
            }
            break
    return {**outcome, "events": events, "seconds": round(time.monotonic() - started, 3)}


def confirm(names: list[str]) -> list[str]:
    """Run each "mutant:seed" with the settings of the mutant; return what each failed with, "" where it did not."""
    errors = []
    for name in names:
        mutant, _, seed = name.partition(":")
        errors.append(str(probe(int(seed), 1, options_of(mutant)).get("error", "")))
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
        print(json.dumps(probe(chosen.seed, chosen.count, options_of(os.environ.get(ENVIRONMENT_NAME, "")))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
