"""`fastpaxos bench closed` and `bench open`: throughput and latency of a real cluster under load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.bench_options import Bench, bench_options
from fastpaxos.cli.cluster_process import (
    interruptible,
    journal_bytes_max,
    work_folder,
)
from fastpaxos.cli.compare import compare
from fastpaxos.cli.failover import failover
from fastpaxos.cli.floor import floor
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.load import LoadPlan, LoadResult, run_load
from fastpaxos.cli.load_processes import (
    SETTLE_TIMEOUT_S,
    START_TIMEOUT_S,
    check_block,
    cluster_to_load,
    run_load_processes,
    run_plan,
    settled_count,
    split_plan,
)
from fastpaxos.cli.measure import describe_machine, fdatasync_us, loopback_us
from fastpaxos.cli.options import phase
from fastpaxos.cli.payloads import payloads
from fastpaxos.cli.recovery import recovery
from fastpaxos.cli.report import report_command, show_report
from fastpaxos.cli.resident_memory import ResidentMemory
from fastpaxos.cli.sweep import sweep
from fastpaxos.cli.ycsb import ycsb, ycsb_load
from fastpaxos.runtime import run as run_loop

__all__ = ["bench"]

MIB = 1024 * 1024


@click.group()
def bench() -> None:
    """Measure a cluster."""


bench.add_command(floor)
bench.add_command(compare)
bench.add_command(failover)
bench.add_command(payloads)
bench.add_command(recovery)
bench.add_command(sweep)
bench.add_command(report_command)
bench.add_command(ycsb)
bench.add_command(ycsb_load)


@bench.command()
@click.option("--clients", type=click.IntRange(1, 4096), default=4, show_default=True, help="Sessions.")
@click.option(
    "--pipeline", type=click.IntRange(1, 4096), default=8, show_default=True, help="Calls each has in flight."
)
@click.option("--batch", type=click.IntRange(1, 16384), default=1000, show_default=True, help="Commands per call.")
@bench_options
def closed(common: Bench, pipeline: int, batch: int) -> int:
    """Keep CLIENTS x PIPELINE calls of BATCH commands in flight and measure what comes back.

    With a BATCH of 1, each call is `Client.execute`, and the commands of one session share blocks. With more, it is
    `Client.execute_many`. Replicas and load run in processes of their own. The latency is that of a call. The exit code
    is 1 if a command failed, or if the replicas did not apply exactly what was acknowledged.
    """
    plan = LoadPlan({}, common.clients, pipeline, batch, common.payload, common.seconds, common.warmup)
    call = "execute" if batch == 1 else "execute_many"
    described = {"load": "closed", "pipeline": pipeline, "batch": batch, "call": call}
    return measure(common, plan, described)


@bench.command("open")
@click.option("--clients", type=click.IntRange(1, 4096), default=4, show_default=True, help="Sessions.")
@click.option("--rate", type=click.FloatRange(min=1.0), required=True, help="Commands per second, over all sessions.")
@click.option("--arrivals", type=click.Choice(["poisson", "uniform"]), default="poisson", show_default=True)
@click.option(
    "--batch", type=click.IntRange(1, 16384), default=1, show_default=True, help="Commands that come at once."
)
@bench_options
def open_load(common: Bench, rate: float, arrivals: str, batch: int) -> int:
    """Send RATE commands per second, however many are unanswered, and measure from the time when each was due.

    A cluster that hangs for a while cannot hide it: what was due meanwhile counts from then, not from when it could be
    sent. `late_ms_max` says how late the load itself was at worst.
    """
    plan = LoadPlan(
        {},
        common.clients,
        1,
        batch,
        common.payload,
        common.seconds,
        common.warmup,
        rate=rate / batch,
        arrivals=arrivals,
    )
    return measure(common, plan, {"load": "open", "rate": rate, "arrivals": arrivals, "batch": batch})


def measure(common: Bench, plan: LoadPlan, described: dict[str, object]) -> int:
    """Run a load on a cluster and report; return the exit code."""
    check_block(plan.batch, common.payload)
    seconds = common.seconds
    with interruptible(), work_folder(common.keep) as folder:
        setup = (
            describe_machine(folder)
            | described
            | {
                "clients": common.clients,
                "payload_bytes": common.payload,
                "seconds": seconds,
                "warmup_seconds": common.warmup,
                "load_generator": "processes of its own",
                "load_processes": common.load_processes,
                "loopback_us": loopback_us(),
                "fdatasync_us": fdatasync_us(folder),
            }
        )
        rate = plan.rate * plan.batch or None
        length = seconds + common.warmup
        needed_bytes = journal_bytes_max(common.replicas, length, common.payload, plan.batch, rate=rate)
        with cluster_to_load(folder, common.connect, common.replicas, common.durability, needed_bytes) as (
            cluster,
            processes,
        ):
            before = run_loop(settled_count(cluster, "the election of a leader", START_TIMEOUT_S, leader=True))
            plans = split_plan(replace(plan, cluster=cluster), common.load_processes)
            pids = {node_id: processes.pid(node_id) for node_id in cluster} if processes else {}
            with phase("measuring", length), ResidentMemory(pids) as memory:
                results = run_load_processes(plans)
            begin_ns = min(result.begin_ns for result in results)
            after = run_loop(settled_count(cluster, "catching up", SETTLE_TIMEOUT_S, leader=False))
            report = make_report(results, seconds, setup, applied=after[0] - before[0])
            durability = after[1][0].get("durability", common.durability)
            report["setup"] |= {"replicas": len(cluster), "durability": durability}
            report["replicas"] = [
                {
                    "id": entry["id"],
                    "role": entry["role"],
                    "applied_index": entry["applied_index"],
                    "digest": entry["digest"],
                    "log_memory_bytes": entry.get("log_memory_bytes"),
                }
                | memory.describe(entry["id"], begin_ns, seconds)
                for entry in after[1]
            ]
        report["digests_equal"] = len({entry["digest"] for entry in report["replicas"]}) == 1
    return show({"benchmark": str(described["load"])} | report, common.as_json, common.html)


@bench.command(hidden=True)
@click.argument("plan_json")
def load(plan_json: str) -> int:
    """Run one load process of `bench closed`; the result is JSON on stdout."""

    async def work(fields: dict[str, Any]) -> dict[str, Any]:
        return (await run_load(LoadPlan(**fields))).to_map()

    return run_plan(plan_json, work)


def make_report(results: list[LoadResult], seconds: float, setup: dict[str, object], applied: int) -> dict[str, Any]:
    """Join the results of all load processes."""
    histogram = LatencyHistogram()
    for result in results:
        histogram.merge(LatencyHistogram.from_sparse(result.latency))
    return {
        "commands_per_second": round(sum(result.measured for result in results) / seconds),
        "per_second": [sum(counts) for counts in zip(*(result.per_second for result in results), strict=True)],
        "latency_us": histogram.percentiles_us(),
        "histogram": histogram.to_hdr(),
        "blocks_measured": histogram.samples,
        "late_ms_max": round(max(result.late_ns_max for result in results) / 1e6, 3),
        "acknowledged": sum(result.acknowledged for result in results),
        "applied": applied,
        "errors": sum(result.errors for result in results),
        "error_texts": [text for result in results for text in result.error_texts],
        "setup": setup,
    }


def show(report: dict[str, Any], as_json: bool, html: Path | None = None) -> int:
    """Print the report; return the exit code."""
    # A command whose answer was lost may be applied: with errors there may be more, never fewer.
    applied_as_acknowledged = (
        report["applied"] == report["acknowledged"]
        if report["errors"] == 0
        else report["applied"] >= report["acknowledged"]
    )
    report["verdict"] = bool(applied_as_acknowledged and report["errors"] == 0 and report["digests_equal"])
    show_report(report, as_json=as_json, html=html, print_text=print_report)
    return 0 if report["verdict"] else 1


def print_report(report: dict[str, Any]) -> None:
    """Print the report for people."""
    latency, setup = report["latency_us"], report["setup"]
    click.echo(f"{report['commands_per_second']:>14,} commands/s")
    for name in ("p50", "p99", "p999", "max"):
        click.echo(f"{latency[name]:>14,.1f} us  block latency {name}")
    click.echo(
        f"{report['acknowledged']:>14,} acknowledged, {report['applied']:,} applied, {report['errors']:,} errors"
    )
    for text in report["error_texts"]:
        click.echo(f"               {text}")
    memory = [entry["resident_bytes_max"] for entry in report["replicas"] if entry["resident_bytes_max"]]
    if memory:
        click.echo(f"{max(memory) / MIB:>14,.0f} MiB  largest resident memory of a replica")
    click.echo("setup:")
    for name, value in setup.items():
        click.echo(f"  {name}: {value}")
