"""`fastpaxos bench recovery`: how long a replica takes to be back, against the size of its journal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.cluster_process import ClusterProcess, check_room, interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.journal import journal_directory
from fastpaxos.cli.load import LoadPlan
from fastpaxos.cli.load_processes import check_block, run_load_processes, settled_count
from fastpaxos.cli.measure import describe_machine
from fastpaxos.cli.options import json_option, phase, progress
from fastpaxos.cli.report import html_option, show_report
from fastpaxos.runtime import run as run_loop
from fastpaxos_core import journal_recovery

__all__ = ["recovery"]

TIMEOUT_S = 120.0


@click.command()
@click.option("--rounds", type=click.IntRange(1, 100), default=4, show_default=True, help="Restarts, each after more.")
@click.option("--seconds", type=click.FloatRange(0.1, 600.0), default=2.0, show_default=True, help="Load before each.")
@click.option("--batch", type=click.IntRange(1, 16384), default=1000, show_default=True, help="Commands per block.")
@click.option("--payload", type=click.IntRange(0, 65_536), default=16, show_default=True, help="Bytes per command.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep data and logs in this new folder.")
@json_option
@html_option
def recovery(
    rounds: int, seconds: float, batch: int, payload: int, keep: Path | None, as_json: bool, html: Path | None
) -> int:
    """Load one replica, kill it, and time its restart until it answers reads of all that it held; several times.

    The first restart, with an empty journal, is what a process takes to start; the others are counted without it. The
    exit code is 1 if a restarted replica lacks anything that was acknowledged.
    """
    check_block(batch, payload)
    with interruptible(), work_folder(keep) as folder:
        setup = describe_machine(folder) | {
            "replicas": 1,
            "durability": "fsync",
            "batch": batch,
            "payload_bytes": payload,
            "seconds": seconds,
            "load_generator": "a process of its own",
        }
        check_room(folder, journal_bytes_max(1, rounds * seconds, payload, batch, restarts=rounds + 1))
        with ClusterProcess(folder, 1, "hashchain", "fsync") as processes:
            report = measure_recovery(
                processes, LoadPlan(processes.cluster, 4, 8, batch, payload, seconds, 0.0), rounds
            )
    report["setup"] = setup
    show_report(report, as_json=as_json, html=html, print_text=print_recovery)
    return 0 if report["verdict"] else 1


def measure_recovery(processes: ClusterProcess, plan: LoadPlan, rounds: int) -> dict[str, Any]:
    """Restart with an empty journal, then after each round of load."""
    run_loop(settled_count(processes.cluster, "the first start", TIMEOUT_S, leader=True))
    empty_s, acknowledged, _ = restart(processes)
    steps: list[dict[str, Any]] = []
    is_whole = True
    for number in range(1, rounds + 1):
        with phase(f"load {number} of {rounds}", plan.seconds):
            acknowledged += sum(result.acknowledged for result in run_load_processes([plan]))
        taken_s, held, journal_bytes = restart(processes)
        is_whole = is_whole and held == acknowledged
        replay_s = taken_s - empty_s
        progress(f"restart {number} of {rounds}: {held:,} commands in {taken_s:.2f} s")
        steps.append(
            {
                "commands": held,
                "journal_bytes": journal_bytes,
                "seconds": round(taken_s, 3),
                "commands_per_second": round(held / replay_s) if replay_s > 0 else None,
                "bytes_per_second": round(journal_bytes / replay_s) if replay_s > 0 else None,
            }
        )
    return {"benchmark": "recovery", "empty_seconds": round(empty_s, 3), "restarts": steps, "verdict": is_whole}


def restart(processes: ClusterProcess) -> tuple[float, int, int]:
    """Kill and start replica 1; return the seconds until it answers, the commands that it has, the bytes written
    to its journal."""
    processes.kill(1)
    # Not the size of the files: segments are preallocated, and each restart begins a new one.
    size = journal_recovery.inspect(journal_directory(processes.data_dir(1))).journal_bytes
    begin = time.perf_counter()
    processes.start(1)
    count, _ = run_loop(settled_count(processes.cluster, "the restart", TIMEOUT_S, leader=True))
    return time.perf_counter() - begin, count, size


def print_recovery(report: dict[str, Any]) -> None:
    """Print the report for people."""
    click.echo(f"{report['empty_seconds']:>10.3f} s  with an empty journal")
    for step in report["restarts"]:
        rate = step["commands_per_second"]
        click.echo(
            f"{step['seconds']:>10.3f} s  {step['commands']:>12,} commands, {step['journal_bytes'] / 1e6:,.0f} MB: "
            + (f"{rate:,} commands/s" if rate is not None else "no longer than an empty journal")
        )
