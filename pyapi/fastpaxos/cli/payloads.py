"""`fastpaxos bench payloads`: throughput and latency by the size of a command."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import click

from fastpaxos.cli.cluster_process import check_room, interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.floor import measure_floor
from fastpaxos.cli.floor_node import FILE_BYTES
from fastpaxos.cli.latency import LatencyHistogram, Percentiles
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
from fastpaxos.cli.options import json_option, parse_numbers, progress
from fastpaxos.cli.report import html_option, show_report
from fastpaxos.config import DURABILITY_MODES
from fastpaxos.runtime import run as run_loop
from fastpaxos_core.block import build_block

__all__ = ["batch_candidates", "payloads"]

SIZES = "16,64,256,1024,4096,16384,65536"
PAYLOAD_BYTES_MAX = 1_000_000
BATCH_MAX = 16_384
# Blocks of about so many bytes are tried. The last is what fits into a block of the default limit of 1 MiB.
BLOCK_BYTES = (16 << 10, 64 << 10, 256 << 10, (1 << 20) - 4096)
LENGTH_BYTES = 4
TRIAL_S, TRIAL_WARMUP_S = 0.6, 0.3


@dataclass(slots=True)
class _Size:
    """What was found for one size of payload; the lists have one entry per round."""

    batch: int = 0
    acknowledged: int = 0
    applied: int = 0
    errors: int = 0
    error_texts: list[str] = field(default_factory=list)
    digests_equal: bool = True
    commands_per_second: list[float] = field(default_factory=list)
    latency_us: list[Percentiles] = field(default_factory=list)
    alone_latency_us: list[Percentiles] = field(default_factory=list)


@click.command()
@click.option(
    "--sizes",
    callback=parse_numbers("size", 1, PAYLOAD_BYTES_MAX),
    default=SIZES,
    show_default=True,
    help="Bytes per command.",
)
@click.option("--batch", type=click.IntRange(1, BATCH_MAX), help="Commands per block, not the best number.")
@click.option("--floor/--no-floor", "with_floor", default=True, show_default=True, help="Measure the floor beside it.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Medians of so many.")
@click.option("--clients", type=click.IntRange(1, 4096), default=4, show_default=True, help="Sessions.")
@click.option(
    "--pipeline", type=click.IntRange(1, 4096), default=8, show_default=True, help="Blocks each has in flight."
)
@click.option("--seconds", type=click.FloatRange(0.1, 600.0), default=2.0, show_default=True, help="Measured time.")
@click.option("--warmup", type=click.FloatRange(0.0, 60.0), default=0.5, show_default=True, help="Seconds before it.")
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option("--durability", type=click.Choice(DURABILITY_MODES), default="fsync", show_default=True)
@click.option("--load-processes", type=click.IntRange(1, 64), default=1, show_default=True)
@json_option
@html_option
def payloads(
    sizes: list[int],
    batch: int | None,
    with_floor: bool,
    rounds: int,
    clients: int,
    pipeline: int,
    seconds: float,
    warmup: float,
    replicas: int,
    durability: str,
    load_processes: int,
    as_json: bool,
    html: Path | None,
) -> int:
    """Measure throughput and latency for each size of command, beside the floor.

    In each round the floor comes first, then every size, on a new cluster each: one command at a time for
    SECONDS / 2, then CLIENTS x PIPELINE blocks in flight for SECONDS. In the first round short trials choose the
    commands per block that give a size its best throughput. The ratio is that of block bytes per second to the
    floor's of the same round. The exit code is 1 if a command failed, or if the replicas did not apply exactly what
    was acknowledged.
    """
    if load_processes > clients:
        raise click.UsageError(f"{load_processes} load processes need as many --clients, not {clients}")
    if batch is not None and batch not in batch_candidates(max(sizes), (batch,)):
        raise click.UsageError(
            f"a block of {batch} x {max(sizes)} bytes exceeds {BLOCK_BYTES[-1]} bytes; lower --batch"
        )
    plan = LoadPlan({}, clients, pipeline, 1, 0, seconds, warmup)
    found = {size: _Size(batch=batch or 0) for size in sizes}
    floors: list[dict[str, Any]] = []
    with interruptible(), work_folder(None) as folder:
        setup = describe_machine(folder) | {
            "clients": clients,
            "pipeline": pipeline,
            "rounds": rounds,
            "seconds": seconds,
            "warmup_seconds": warmup,
            "load_generator": "processes of its own",
            "load_processes": load_processes,
            "replicas": replicas,
            "durability": durability,
            "loopback_us": loopback_us(),
            "fdatasync_us": fdatasync_us(folder),
        }
        for number in range(1, rounds + 1):
            if with_floor:
                progress(f"round {number} of {rounds}: floor")
                floors.append(next_floor(folder / "floor", floors, replicas, durability, seconds))
            for size, known in found.items():
                progress(f"round {number} of {rounds}: {size:,} bytes")
                home = folder / f"payload-{size}"
                measure_size(home, replace(plan, payload_bytes=size), replicas, durability, load_processes, known)
    rows = [describe_size(size, known, floors) for size, known in found.items()]
    report = {
        "benchmark": "payloads",
        "rows": rows,
        "floor": describe_floors(floors),
        "verdict": all(row["verdict"] for row in rows),
        "setup": setup,
    }
    show_report(report, as_json=as_json, html=html, print_text=print_payloads)
    return 0 if report["verdict"] else 1


def batch_candidates(size: int, batches: Sequence[int] = ()) -> list[int]:
    """Return numbers of commands of `size` bytes per block to try, or those of `batches` that fit into a block."""
    wanted = batches or [max(1, target // (size + LENGTH_BYTES)) for target in BLOCK_BYTES]
    fitting = {min(batch, BATCH_MAX) for batch in wanted if batch * (size + LENGTH_BYTES) <= BLOCK_BYTES[-1]}
    return sorted(fitting)


def next_floor(
    folder: Path, before: Sequence[dict[str, Any]], replicas: int, durability: str, seconds: float
) -> dict[str, Any]:
    """Measure the floor: the first time with the best frame and window, then with those of the first time."""
    folder.mkdir()
    check_room(folder, 2 * replicas * FILE_BYTES)
    frame, window = (before[0]["payload_bytes_per_frame"], before[0]["window"]) if before else (None, None)
    found = measure_floor(folder, replicas, durability, seconds, frame, window)
    shutil.rmtree(folder)
    return found


def measure_size(
    folder: Path, plan: LoadPlan, replicas: int, durability: str, load_processes: int, known: _Size
) -> None:
    """Measure one size once, on a cluster of its own in `folder`, and add what is found to `known`."""
    candidates = [] if known.batch else batch_candidates(plan.payload_bytes)
    total_s = 1.5 * plan.seconds + 2 * plan.warmup_s + len(candidates) * (TRIAL_S + TRIAL_WARMUP_S)
    folder.mkdir()
    room = journal_bytes_max(replicas, total_s, plan.payload_bytes)
    results: list[LoadResult] = []

    def load(part: LoadPlan, processes: int) -> tuple[float, Percentiles]:
        found = run_load_processes(split_plan(replace(part, cluster=cluster), processes))
        results.extend(found)
        histogram = LatencyHistogram()
        for result in found:
            histogram.merge(LatencyHistogram.from_sparse(result.latency))
        return sum(result.measured for result in found) / part.seconds, histogram.percentiles_us()

    with cluster_to_load(folder, None, replicas, durability, room) as (cluster, _):
        before, _ = run_loop(settled_count(cluster, "the election of a leader", START_TIMEOUT_S, leader=True))
        known.alone_latency_us.append(load(replace(plan, clients=1, pipeline=1, seconds=plan.seconds / 2), 1)[1])
        speeds: dict[int, float] = {}
        for batch in candidates:
            trial = replace(plan, batch=batch, seconds=TRIAL_S, warmup_s=TRIAL_WARMUP_S)
            speeds[batch] = load(trial, load_processes)[0]
        known.batch = max(speeds, key=lambda batch: speeds[batch]) if speeds else known.batch
        speed, latency = load(replace(plan, batch=known.batch), load_processes)
        after, statuses = run_loop(settled_count(cluster, "catching up", SETTLE_TIMEOUT_S, leader=False))
    shutil.rmtree(folder)
    known.commands_per_second.append(speed)
    known.latency_us.append(latency)
    known.applied += after - before
    known.acknowledged += sum(result.acknowledged for result in results)
    known.errors += sum(result.errors for result in results)
    known.error_texts += [text for result in results for text in result.error_texts]
    known.digests_equal = known.digests_equal and len({entry["digest"] for entry in statuses}) == 1


def describe_size(size: int, known: _Size, floors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One size: medians of the rounds."""
    commands = median(known.commands_per_second)
    block_bytes = len(build_block([bytes(size)] * known.batch, 1, 1))
    blocks = [speed / known.batch for speed in known.commands_per_second]
    pairs = zip(blocks, floors, strict=True) if floors else ()
    ratios = [speed * block_bytes / found["bytes_per_second"] for speed, found in pairs]
    return {
        "payload_bytes": size,
        "batch": known.batch,
        "block_bytes": block_bytes,
        "commands_per_second": round(commands),
        "bytes_per_second": round(commands * size),
        "block_bytes_per_second": round(commands / known.batch * block_bytes),
        "ratio_to_floor": round(median(ratios), 3) if ratios else None,
        "latency_us": medians(known.latency_us),
        "alone_latency_us": medians(known.alone_latency_us),
        "rounds": {
            "commands_per_second": [round(speed) for speed in known.commands_per_second],
            "ratio_to_floor": [round(ratio, 3) for ratio in ratios],
        },
        "acknowledged": known.acknowledged,
        "applied": known.applied,
        "errors": known.errors,
        "error_texts": known.error_texts,
        "verdict": known.errors == 0 and known.applied == known.acknowledged and known.digests_equal,
    }


def describe_floors(floors: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The floor of all rounds, or None if it was not measured."""
    if not floors:
        return None
    speeds = [found["bytes_per_second"] for found in floors]
    return {
        "bytes_per_second": round(median(speeds)),
        "payload_bytes_per_frame": floors[0]["payload_bytes_per_frame"],
        "window": floors[0]["window"],
        "latency_us": medians([found["latency_us"] for found in floors]),
        "rounds": {"bytes_per_second": speeds},
    }


def medians(latencies: Sequence[Percentiles]) -> dict[str, float]:
    """The median of each percentile."""
    return {name: round(median(found[name] for found in latencies), 1) for name in ("p50", "p99", "p999", "max")}


def print_payloads(report: dict[str, Any]) -> None:
    """Print the report for people."""
    columns = ("batch", "commands/s", "MB/s", "/ floor", "block p50 us", "block p99 us", "alone p50 us", "alone p99 us")
    click.echo(f"{'bytes':>9} " + " ".join(f"{name:>12}" for name in columns))
    for row in report["rows"]:
        ratio = "" if row["ratio_to_floor"] is None else f"{row['ratio_to_floor']:.3f}"
        click.echo(
            f"{row['payload_bytes']:>9,} {row['batch']:>12,} {row['commands_per_second']:>12,} "
            f"{row['bytes_per_second'] / 1e6:>12,.1f} {ratio:>12} "
            + " ".join(
                f"{row[name][percentile]:>12,.0f}"
                for name in ("latency_us", "alone_latency_us")
                for percentile in ("p50", "p99")
            )
        )
        if not row["verdict"]:
            click.echo(f"{row['acknowledged']:,} acknowledged, {row['applied']:,} applied, {row['errors']:,} errors")
            for text in row["error_texts"]:
                click.echo(f"  {text}")
    if report["floor"] is not None:
        click.echo(
            f"floor: {report['floor']['bytes_per_second'] / 1e6:,.1f} MB/s in frames of "
            f"{report['floor']['payload_bytes_per_frame']:,} bytes, one frame of 64 bytes at a time "
            f"{report['floor']['latency_us']['p50']:,.0f} us"
        )
    click.echo("setup:")
    for name, value in report["setup"].items():
        click.echo(f"  {name}: {value}")
