"""The cluster that `bench` loads, the load processes, and the count that tells whether everything is there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import click
import msgpack

from fastpaxos.cli.cluster_process import ClusterProcess, check_room, child_environment
from fastpaxos.cli.load import LoadPlan, LoadResult
from fastpaxos.cli.options import progress
from fastpaxos.cli.status import Statuses, wait_for
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError

__all__ = [
    "START_TIMEOUT_S",
    "SETTLE_TIMEOUT_S",
    "check_block",
    "cluster_to_load",
    "run_load_processes",
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
    """Run every plan in a process of its own, all at once, and collect what they print."""
    command = [sys.executable, "-P", "-m", "fastpaxos", "bench", "load"]
    running: list[subprocess.Popen[str]] = []
    try:
        for plan in plans:
            process = subprocess.Popen(
                [*command, json.dumps(asdict(plan))],
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
            results.append(LoadResult(**json.loads(output)))
    finally:
        for process in running:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    return results
