"""The cluster that `bench` loads, the load processes, and the count that tells whether everything is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import msgpack

from fastpaxos.cli.cluster_process import ClusterProcess, check_room, child_environment
from fastpaxos.cli.load import LoadPlan, LoadResult
from fastpaxos.cli.options import print_json, progress
from fastpaxos.cli.status import Statuses, wait_for
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError
from fastpaxos.runtime import run as run_loop

__all__ = [
    "START_TIMEOUT_S",
    "SETTLE_TIMEOUT_S",
    "check_block",
    "cluster_to_load",
    "run_load_processes",
    "run_plan",
    "run_processes",
    "settled_count",
    "split_plan",
]

START_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 60.0
BLOCK_BYTES_MAX = 1024 * 1024


def check_block(batch: int, payload_bytes: int) -> None:
    """Raise UsageError unless a block of `batch` commands fits into the largest that a replica takes by default."""
    if batch * (payload_bytes + 4) > BLOCK_BYTES_MAX - 4096:
        raise click.UsageError(
            f"a block of {batch} x {payload_bytes} bytes exceeds {BLOCK_BYTES_MAX} bytes; lower --batch"
        )


@contextlib.contextmanager
def cluster_to_load(
    folder: Path, connect: dict[int, str] | None, replicas: int, durability: str, needed_bytes: int
) -> Iterator[tuple[dict[int, str], ClusterProcess | None]]:
    """Start a cluster of our own in `folder`, or use the one at `connect`."""
    if connect is not None:
        yield connect, None
        return
    check_room(folder, needed_bytes)
    progress(f"starting {replicas} replicas in {folder}")
    with ClusterProcess(folder, replicas, "hashchain", durability) as processes:
        yield processes.cluster, processes
        processes.check_running()


async def settled_count(cluster: dict[int, str], what: str, timeout: float, *, leader: bool) -> tuple[int, Statuses]:
    """Wait for a leader or for equal replicas; return how many commands the hash chain has and the statuses."""
    async with Client(cluster) as client:
        statuses = await wait_for(client, cluster, what, timeout, leader=leader)
        _index, count, _digest = msgpack.unpackb(await client.query(b"", timeout=timeout))
    return count, statuses


def split_plan(plan: LoadPlan, processes: int) -> list[LoadPlan]:
    """Share the sessions of a plan among load processes, as evenly as they go."""
    shares = [plan.clients // processes + (number < plan.clients % processes) for number in range(processes)]
    return [
        replace(plan, clients=share, seed=seed, rate=plan.rate * share / plan.clients)
        for seed, share in enumerate(shares, 1)
    ]


def run_load_processes(plans: list[LoadPlan]) -> list[LoadResult]:
    """Run every plan in a process of its own, all at once."""
    return [LoadResult(**result) for result in run_processes("load", [asdict(plan) for plan in plans])]


def run_processes(name: str, plans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run the hidden command `bench NAME` with every plan, all at once, and collect what they print."""
    command = [sys.executable, "-P", "-m", "fastpaxos", "bench", name]
    running: list[subprocess.Popen[str]] = []
    try:
        for plan in plans:
            process = subprocess.Popen(
                [*command, json.dumps(plan)],
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            running.append(process)
        results = []
        for process in running:
            assert process.stdout is not None
            # Not communicate(): that would close its standard input, and with it the process.
            output = process.stdout.read()
            process.wait()
            if process.returncode != 0:
                raise FastPaxosError(f"load process {process.pid} ended with code {process.returncode}")
            results.append(json.loads(output))
    finally:
        for process in running:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    return results


def run_plan(plan_json: str, work: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> int:
    """Do the work of one load process: a plan in, its result as JSON on stdout. Returns the exit code."""
    fields = json.loads(plan_json)
    fields["cluster"] = {int(node_id): address for node_id, address in fields["cluster"].items()}

    async def run() -> int:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), end_with_parent)
        print_json(await work(fields))
        return 0

    return run_loop(run())


def end_with_parent() -> None:
    """End this load process when its standard input ends: there is nobody left to report to."""
    if not os.read(sys.stdin.fileno(), 4096):
        os._exit(1)
