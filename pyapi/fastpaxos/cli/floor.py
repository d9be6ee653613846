"""`fastpaxos bench floor`: what the same hops and the same disk give with no consensus at all."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fastpaxos.cli.cluster_process import check_room, interruptible, work_folder
from fastpaxos.cli.floor_node import FILE_BYTES, FloorPlan, run_client, run_follower, run_leader
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.measure import describe_machine, fdatasync_us, loopback_us
from fastpaxos.cli.options import json_option, phase, progress
from fastpaxos.cli.report import html_option, show_report
from fastpaxos.config import DURABILITY_MODES

__all__ = ["floor", "measure_floor"]

FRAME_BYTES = (16 << 10, 64 << 10, 256 << 10, 1 << 20)
WINDOWS = (4, 16, 64)
IN_FLIGHT_MAX = 32 << 20
TRIAL_S, TRIAL_WARMUP_S = 0.5, 0.3
LATENCY_PAYLOAD_BYTES = 56  # of the block that one command of 16 bytes makes
SYNCS = {"fsync": ("inline", "thread"), "write": ("none",), "memory": ("off",)}


@click.command()
@click.option("--replicas", type=click.IntRange(1, 9), default=3, show_default=True)
@click.option(
    "--payload-bytes-per-frame", "payload", type=click.IntRange(1, 16 << 20), help="Only this frame size, not the best."
)
@click.option("--window", type=click.IntRange(1, 4096), help="Only so many frames in flight, not the best number.")
@click.option("--durability", type=click.Choice(DURABILITY_MODES), default="fsync", show_default=True)
@click.option("--sync", type=click.Choice(SYNCS["fsync"]), help="Only this way of syncing (durability fsync).")
@click.option("--seconds", type=click.FloatRange(0.1, 600.0), default=4.0, show_default=True, help="Measured time.")
@json_option
@html_option
def floor(
    replicas: int,
    payload: int | None,
    window: int | None,
    durability: str,
    sync: str | None,
    seconds: float,
    as_json: bool,
    html: Path | None,
) -> int:
    """Move and sync bytes over the hops of a cluster, without consensus: the bound that a cluster is measured against.

    Throughput is that of the best frame size, window and way of syncing (short trials choose them); latency is that of
    one frame at a time, with the better way of syncing; it has 56 bytes, as the block of a single command of 16.
    """
    if sync is not None and durability != "fsync":
        raise click.UsageError(f"--sync is for durability fsync; {durability} never syncs")
    with interruptible(), work_folder(None) as folder:
        ways = 1 if sync is not None else len(SYNCS[durability])
        check_room(folder, ways * replicas * FILE_BYTES)
        report = measure_floor(folder, replicas, durability, seconds, payload, window, sync)
    show_report(report, as_json=as_json, html=html, print_text=print_floor)
    return 0


def measure_floor(
    folder: Path,
    replicas: int,
    durability: str,
    seconds: float,
    payload: int | None = None,
    window: int | None = None,
    sync: str | None = None,
) -> dict[str, Any]:
    """Find the best setting in short trials, and measure it and the latency of one frame at a time."""
    syncs = SYNCS[durability] if sync is None else (sync,)
    sizes = FRAME_BYTES if payload is None else (payload,)
    windows = WINDOWS if window is None else (window,)
    plans = [
        FloorPlan(size, count, TRIAL_S, TRIAL_WARMUP_S)
        for size in sizes
        for count in windows
        if size * count <= IN_FLIGHT_MAX or len(sizes) == len(windows) == 1
    ]
    speeds: dict[tuple[str, FloorPlan], float] = {}
    latencies: dict[str, LatencyHistogram] = {}
    with contextlib.ExitStack() as stack:
        leaders = {way: stack.enter_context(floor_cluster(folder, replicas, way)) for way in syncs}
        trials = [(way, plan) for way in syncs for plan in plans]
        with phase(f"{len(trials)} trials", len(trials) * (TRIAL_S + TRIAL_WARMUP_S)):
            for way, plan in trials:
                # Nothing is to be chosen from a single one.
                frames = run_client(plan, leaders[way])[0] if len(trials) > 1 else 0
                speeds[way, plan] = bytes_per_second(plan, frames)
        for way, leader in leaders.items():
            alone = FloorPlan(LATENCY_PAYLOAD_BYTES, 1, seconds / 2, TRIAL_WARMUP_S)
            with phase(f"one frame at a time, sync {way}", alone.seconds + alone.warmup_s):
                latencies[way] = run_client(alone, leader)[1]
        best, trial = max(speeds, key=lambda key: speeds[key])
        progress(f"throughput: frames of {trial.payload_bytes} bytes, {trial.window} in flight, sync {best}")
        plan = replace(trial, seconds=seconds, warmup_s=1.0)
        with phase("throughput", plan.seconds + plan.warmup_s):
            frames, histogram = run_client(plan, leaders[best])
    quick = min(latencies, key=lambda way: latencies[way].percentile_ns(50.0))
    return {
        "benchmark": "floor",
        "bytes_per_second": round(bytes_per_second(plan, frames)),
        "frames_per_second": round(frames / plan.seconds, 1),
        "payload_bytes_per_frame": plan.payload_bytes,
        "window": plan.window,
        "sync": best,
        "frame_latency_us": histogram.percentiles_us(),
        "frame_histogram": histogram.to_hdr(),
        "latency_us": latencies[quick].percentiles_us(),
        "histogram": latencies[quick].to_hdr(),
        "latency_sync": quick,
        "setup": describe_machine(folder)
        | {
            "replicas": replicas,
            "durability": durability,
            "payload_bytes": plan.payload_bytes,
            "load_generator": "a process of its own",
            "seconds": seconds,
            "loopback_us": loopback_us(),
            "fdatasync_us": fdatasync_us(folder),
        },
    }


def bytes_per_second(plan: FloorPlan, frames: int) -> float:
    """Payload bytes that were answered per second."""
    return frames * plan.payload_bytes / plan.seconds


@contextlib.contextmanager
def floor_cluster(folder: Path, replicas: int, sync: str) -> Iterator[tuple[str, int]]:
    """Run a leader and followers in processes of their own; gives the address for one client after the other."""
    context = multiprocessing.get_context("spawn")
    with (
        socket.create_server(("127.0.0.1", 0), backlog=replicas) as followers,
        socket.create_server(("127.0.0.1", 0)) as clients,
    ):
        leader = (replicas, folder / f"{sync}-leader", sync, followers, clients)
        processes = [context.Process(target=run_leader, args=leader, daemon=True)]
        for number in range(1, replicas):
            follower = (folder / f"{sync}-follower-{number}", sync, followers.getsockname())
            processes.append(context.Process(target=run_follower, args=follower, daemon=True))
        try:
            for process in processes:
                process.start()
            yield clients.getsockname()
        finally:
            for process in reversed(processes):
                process.kill()
                process.join()


def print_floor(report: dict[str, Any]) -> None:
    """Print the report for people."""
    click.echo(
        f"{report['bytes_per_second'] / 1e6:>14,.1f} MB/s in frames of {report['payload_bytes_per_frame']:,} bytes, "
        f"{report['window']} in flight, sync {report['sync']}"
    )
    for name in ("p50", "p99", "p999", "max"):
        click.echo(f"{report['latency_us'][name]:>14,.1f} us  one frame at a time {name}")
    click.echo("setup:")
    for name, value in report["setup"].items():
        click.echo(f"  {name}: {value}")
