"""`fastpaxos bench sweep`: latency against throughput, at shares of the highest throughput."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from fastpaxos.cli.bench_options import Bench, bench_options
from fastpaxos.cli.cluster_process import interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.load import LoadPlan, LoadResult
from fastpaxos.cli.load_processes import (
    SETTLE_TIMEOUT_S,
    START_TIMEOUT_S,
    cluster_to_load,
    run_load_processes,
    settled_count,
    split_plan,
)
from fastpaxos.cli.measure import describe_machine, fdatasync_us, loopback_us
from fastpaxos.cli.options import parse_numbers, phase, progress
from fastpaxos.cli.report import show_report
from fastpaxos.runtime import run as run_loop

__all__ = ["sweep"]

SHARES = "10,20,30,40,50,60,70,80,90,100,110"


@click.command()
@click.option("--clients", type=click.IntRange(1, 4096), default=4, show_default=True, help="Sessions.")
@click.option("--callers", type=click.IntRange(1, 4096), default=250, show_default=True, help="To find the maximum.")
@click.option(
    "--shares",
    callback=parse_numbers("percentage", 1, 1000),
    default=SHARES,
    show_default=True,
    help="Percentages of the maximum.",
)
@bench_options
def sweep(common: Bench, callers: int, shares: list[int]) -> int:
    """Find the highest throughput of single commands, then send at shares of it and show the latency of each.

    The maximum is that of CLIENTS x CALLERS callers that wait for their answers; the shares are open loads, whose
    latency counts from when each command was due. The exit code is 1 if a command failed below the maximum, or if the
    replicas did not apply exactly what was acknowledged.
    """
    runs = len(shares) + 1
    with interruptible(), work_folder(common.keep) as folder:
        setup = describe_machine(folder) | {
            "clients": common.clients,
            "callers": callers,
            "batch": 1,
            "payload_bytes": common.payload,
            "seconds": common.seconds,
            "warmup_seconds": common.warmup,
            "load_generator": "processes of its own",
            "load_processes": common.load_processes,
            "replicas": common.replicas,
            "durability": common.durability,
            "loopback_us": loopback_us(),
            "fdatasync_us": fdatasync_us(folder),
        }
        length = common.seconds + common.warmup
        needed_bytes = journal_bytes_max(common.replicas, runs * length, common.payload, batch=1)
        with cluster_to_load(folder, common.connect, common.replicas, common.durability, needed_bytes) as (cluster, _):
            before = run_loop(settled_count(cluster, "the election of a leader", START_TIMEOUT_S, leader=True))
            plan = LoadPlan(cluster, common.clients, callers, 1, common.payload, common.seconds, common.warmup)
            with phase(f"maximum (1 of {runs})", length):
                results = run_load_processes(split_plan(plan, common.load_processes))
            maximum = sum(result.measured for result in results) / common.seconds
            progress(f"maximum: {maximum:,.0f} commands/s")
            rows = []
            for number, share in enumerate(shares, 2):
                rate = maximum * share / 100
                with phase(f"{share} % of the maximum ({number} of {runs})", length):
                    found = run_load_processes(split_plan(replace(plan, rate=rate), common.load_processes))
                rows.append(describe_row(share, rate, found, common.seconds))
                progress(f"{share}%: p50 {rows[-1]['latency_us']['p50']:,.0f} us")
                results += found
            after = run_loop(settled_count(cluster, "catching up", SETTLE_TIMEOUT_S, leader=False))
    acknowledged = sum(result.acknowledged for result in results)
    applied = after[0] - before[0]
    failed = any(row["errors"] for row in rows if row["share"] < 100)
    report = {
        "benchmark": "sweep",
        "maximum_commands_per_second": round(maximum),
        "rows": rows,
        "acknowledged": acknowledged,
        "applied": applied,
        "setup": setup,
        "verdict": applied >= acknowledged and not failed and (applied == acknowledged or any_errors(results)),
    }
    show_report(report, as_json=common.as_json, html=common.html, print_text=print_sweep)
    return 0 if report["verdict"] else 1


def any_errors(results: list[LoadResult]) -> bool:
    """Some command was not answered: it may be applied all the same."""
    return any(result.errors for result in results)


def describe_row(share: int, rate: float, results: list[LoadResult], seconds: float) -> dict[str, Any]:
    """One load of the sweep."""
    histogram = LatencyHistogram()
    for result in results:
        histogram.merge(LatencyHistogram.from_sparse(result.latency))
    return {
        "share": share,
        "offered_per_second": round(rate),
        "answered_per_second": round(sum(result.measured for result in results) / seconds),
        "latency_us": histogram.percentiles_us(),
        "histogram": histogram.to_hdr(),
        "late_ms_max": round(max(result.late_ns_max for result in results) / 1e6, 3),
        "errors": sum(result.errors for result in results),
    }


def print_sweep(report: dict[str, Any]) -> None:
    """Print the report for people."""
    click.echo(f"maximum {report['maximum_commands_per_second']:,} commands/s")
    columns = ("offered/s", "answered/s", "p50 us", "p99 us", "p99.9 us", "max us")
    click.echo(f"{'share':>6} " + " ".join(f"{name:>11}" for name in columns))
    for row in report["rows"]:
        latency = row["latency_us"]
        click.echo(
            f"{row['share']:>5}% {row['offered_per_second']:>11,} {row['answered_per_second']:>11,} "
            + " ".join(f"{latency[name]:>11,.0f}" for name in ("p50", "p99", "p999", "max"))
        )
    click.echo(f"{report['acknowledged']:,} acknowledged, {report['applied']:,} applied")
