"""Command line of the fuzzer: `run`, and `replay` of what it found.

    make fuzz FUZZ="run --executions 1e8 --target all --seed 1 --json"
    make fuzz FUZZ="replay --target block --chance 7 build/fuzz/findings/block-1-44-7.bin"

Each target runs in a process of its own. When that dies (a sanitizer's report, a signal) or stands still, the input
that it was working on is the finding.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack  # noqa: F401 - loaded before the flags change, like numpy
import numpy as np  # noqa: F401

# Modules of an instrumented core share one count of edges: they must see each other's symbols (coverage.h).
_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
import fastpaxos_core  # noqa: E402
import fastpaxos_core.journal_recovery  # noqa: E402
import fastpaxos_core.replica  # noqa: E402
import fastpaxos_core.sessions  # noqa: E402

sys.setdlopenflags(_flags)

from fuzz import campaign, targets  # noqa: E402
from fuzz.formats import SEGMENT_BYTES  # noqa: E402

HANG_SECONDS = 120
POLL_SECONDS = 0.2
BOX_BYTES = campaign.BOX.size + 8 * SEGMENT_BYTES


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fuzz one target or all")
    run.add_argument(
        "--executions", type=lambda text: int(float(text)), default=1_000_000, help="together, 1e8 is fine"
    )
    run.add_argument("--target", default="all", help=f"all, or some of {', '.join(targets.all_targets())}")
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--blind", action="store_true", help="do not keep inputs that reach new code")
    run.add_argument("--json", action="store_true", help="print the whole report as JSON")
    run.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for inputs of findings")
    run.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    again = commands.add_parser("replay", help="give one kept input to its target again")
    again.add_argument("--target", required=True)
    again.add_argument("--chance", type=int, default=0)
    again.add_argument("file", type=Path)
    return parser.parse_args()


def target_of(name: str) -> targets.Target:
    """A target by its name; "planted" is there to see that a run can fail."""
    return {**targets.all_targets(), "planted": targets.PlantedTarget()}[name]


def work(arguments: argparse.Namespace) -> int:
    """What the process of one target does: fuzz, and leave the report as JSON."""
    with (arguments.out / f"{arguments.target}.box").open("r+b") as file, mmap.mmap(file.fileno(), BOX_BYTES) as box:
        target = target_of(arguments.target)
        run = campaign.Campaign(target, arguments.seed, not arguments.blind, box).run(arguments.executions)
        for finding in run.findings:
            keep(arguments.out, finding, arguments.blind)
    (arguments.out / f"{arguments.target}.json").write_text(json.dumps(run.report()))
    return 0


def keep(out: Path, finding: campaign.Finding, blind: bool) -> None:
    """Write the input of a finding into a file of its own, and print how to replay it."""
    folder = out / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / finding.file_name).write_bytes(finding.data)
    print(
        f"finding: target {finding.target}, seed {finding.seed}, iteration {finding.iteration}: {finding.problem}\n"
        f'  replay: make fuzz FUZZ="replay --target {finding.target} --chance {finding.chance} '
        f'{folder / finding.file_name}"\n'
        f'  again:  make fuzz FUZZ="run --target {finding.target} --seed {finding.seed} '
        f'--executions {finding.iteration + 1}{" --blind" * blind}"',
        file=sys.stderr,
        flush=True,
    )


def supervise(arguments: argparse.Namespace, name: str, executions: int) -> dict[str, Any]:
    """Run one target in a process of its own and return its report."""
    box = arguments.out / f"{name}.box"
    box.write_bytes(bytes(BOX_BYTES))
    command = [sys.executable, "-m", "fuzz", "run", "--worker", "--target", name, "--executions", str(executions)]
    command += ["--seed", str(arguments.seed), "--out", str(arguments.out), *["--blind"] * arguments.blind]
    allocator = "pymalloc" if target_of(name).is_exact else "malloc"
    process = subprocess.Popen(command, env={**os.environ, "PYTHONMALLOC": allocator})
    last, since = b"", time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        with box.open("rb") as file:
            now = file.read(campaign.BOX.size)
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > HANG_SECONDS:
            process.kill()
    if process.returncode == 0:
        report: dict[str, Any] = json.loads((arguments.out / f"{name}.json").read_text())
        return report
    content = box.read_bytes()
    iteration, chance, size = campaign.BOX.unpack_from(content)
    data = content[campaign.BOX.size : campaign.BOX.size + size]
    problem = f"the process ended with {process.returncode} while it decoded this"
    finding = campaign.Finding(name, arguments.seed, iteration, chance, data, problem)
    keep(arguments.out, finding, arguments.blind)
    return {"target": name, "executions": iteration, "findings": [finding.as_dict()]}


def run(arguments: argparse.Namespace) -> int:
    """Fuzz the chosen targets, one after the other; 0 when nothing was found."""
    names = list(targets.all_targets()) if arguments.target == "all" else arguments.target.split(",")
    share = {name: target_of(name).share for name in names}
    arguments.out.mkdir(parents=True, exist_ok=True)
    shares = sum(share.values())
    reports = []
    for name in names:
        reports.append(supervise(arguments, name, -(-arguments.executions * share[name] // shares)))
        if not arguments.json:
            print(summary(reports[-1]), flush=True)
    findings = [finding for report in reports for finding in report["findings"]]
    total = {
        "build": fastpaxos_core.build_info()["profile"],
        "seed": arguments.seed,
        "executions": sum(report["executions"] for report in reports),
        "cpu_seconds": round(sum(report.get("cpu_seconds", 0) for report in reports), 1),
        "decoded": sum(report.get("decoded", 0) for report in reports),
        "behind_checksum": sum(report.get("behind_checksum", 0) for report in reports),
        "findings": len(findings),
        "targets": reports,
    }
    if arguments.json:
        print(json.dumps(total, indent=1))
    else:
        print(f"{total['executions']} executions, {total['cpu_seconds']} s of processor time, {len(findings)} findings")
    return 1 if findings else 0


def summary(report: dict[str, Any]) -> str:
    """One line about one target."""
    executions = max(report["executions"], 1)
    return (
        f"{report['target']:9} {report['executions']:>11} executions, "
        f"{report.get('executions_per_cpu_second', 0):>7} per second of processor time, "
        f"{100 * report.get('decoded', 0) // executions:>3}% decoded, "
        f"{100 * report.get('behind_checksum', 0) // executions:>3}% behind the checksum, "
        f"{report.get('edges', 0)} edges, corpus {report.get('corpus', 0)}, {len(report['findings'])} findings"
    )


def main() -> int:
    arguments = parse_arguments()
    if arguments.command == "replay":
        problem = campaign.replay(target_of(arguments.target), arguments.file.read_bytes(), arguments.chance)
        print(problem or "no finding")
        return 1 if problem else 0
    return work(arguments) if arguments.worker else run(arguments)


if __name__ == "__main__":
    sys.exit(main())
