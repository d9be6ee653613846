"""Load processes of `bench`, and the count that tells whether a cluster applied what they were answered."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import msgpack

from fastpaxos.cli.cluster_process import child_environment
from fastpaxos.cli.load import LoadPlan, LoadResult
from fastpaxos.cli.status import Statuses, wait_for
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError

__all__ = ["run_load_processes", "settled_count"]


async def settled_count(cluster: dict[int, str], what: str, timeout: float, *, leader: bool) -> tuple[int, Statuses]:
    """Wait for a leader or for equal replicas; return how many commands the hash chain has and the statuses."""
    async with Client(cluster) as client:
        statuses = await wait_for(client, cluster, what, timeout, leader=leader)
        _index, count, _digest = msgpack.unpackb(await client.query(b"", timeout=timeout))
    return count, statuses


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
