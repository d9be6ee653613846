"""Measures the targets P1 to P12 and prints them as a table: python -m bench.targets --only P1,P3 --json FILE"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.targets.commands import Commands
from bench.targets.figures import Line, markdown_table
from bench.targets.rows import ROWS, Run, measure_row
from bench.targets.settings import Settings
from fastpaxos.cli.cluster_process import interruptible
from fastpaxos.cli.measure import describe_machine

INTERRUPTED = 130


def row_names(value: str) -> list[str]:
    """P1,P3 as the names of rows, in the order of the table."""
    wanted = {part.strip().upper() for part in value.split(",")}
    if unknown := wanted - ROWS.keys():
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is no row; rows are {', '.join(ROWS)}")
    return [name for name in ROWS if name in wanted]


def tell(text: str) -> None:
    """Say what happens now."""
    print(text, file=sys.stderr, flush=True)


def make_report(lines: list[Line], setup: dict[str, object]) -> dict[str, Any]:
    """All lines, and whether every one of them is met."""
    return {
        "benchmark": "targets",
        "rows": [line.to_map() for line in lines],
        "setup": setup,
        "verdict": all(line.is_met for line in lines),
    }


def main(arguments: list[str] | None = None, commands: Commands | None = None) -> int:
    """Measure, print and write; return 0 if all rows are met, 1 if not, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.targets", description=__doc__)
    parser.add_argument("--only", type=row_names, default=list(ROWS), metavar="P1,P3", help="only these rows")
    parser.add_argument("--rounds", type=int, default=5, help="paired runs of each row, 5 by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of each run, 3 by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after each row")
    options = parser.parse_args(arguments)
    commands = commands or Commands(tell)
    run = Run(commands, Settings(commands, tell), options.rounds, options.seconds, tell)
    setup = describe_machine() | {"rounds": options.rounds, "seconds": options.seconds}
    lines: list[Line] = []
    code = None
    began = time.monotonic()
    try:
        with interruptible():
            for name in options.only:
                tell(f"{name} ({time.monotonic() - began:.0f} s so far)")
                found = measure_row(run, name)
                lines += found
                for line in found:
                    tell(f"  {line.name}: {line.verdict}")
                if options.json:
                    options.json.write_text(json.dumps(make_report(lines, setup), indent=1) + "\n")
    except KeyboardInterrupt:
        tell("interrupted: these rows were complete")
        code = INTERRUPTED
    print(markdown_table(lines))
    return code if code is not None else int(not make_report(lines, setup)["verdict"])


if __name__ == "__main__":
    raise SystemExit(main())
