"""`fastpaxos bench failover`: how long clients wait when the leader is killed."""

from __future__ import annotations

import asyncio
import statistics
import time
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import msgpack

from fastpaxos.cli.cluster_process import ClusterProcess, check_room, interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.measure import describe_machine
from fastpaxos.cli.options import json_option, print_json, progress
from fastpaxos.cli.status import leader_of, wait_for
from fastpaxos.client import Client
from fastpaxos.config import DURABILITY_MODES
from fastpaxos.errors import FastPaxosError, NotApplied
from fastpaxos.runtime import run as run_loop

__all__ = ["failover", "longest_gap_ms"]

TIMEOUT_S = 30.0
SETTLE_S = 0.5
REFUSED_PAUSE_S = 0.005
SECONDS_PER_KILL = 4.0
COMMAND = bytes(16)


@dataclass(slots=True)
class Clients:
    """Callers that send one command after the other, and what they were answered."""

    answered_ns: array[int] = field(default_factory=lambda: array("q"))
    unknown: int = 0
    is_answered: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False

    async def call(self, client: Client) -> None:
        """One caller, until it is over."""
        while not self.is_over:
            try:
                await client.execute(COMMAND, timeout=TIMEOUT_S)
            except NotApplied:
                await asyncio.sleep(REFUSED_PAUSE_S)
            except FastPaxosError:
                self.unknown += 1
            else:
                self.answered_ns.append(time.perf_counter_ns())
                self.is_answered.set()


@click.command()
@click.option("--kills", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Leaders to kill.")
@click.option("--hang", is_flag=True, help="SIGSTOP instead: nobody hears that the leader is gone.")
@click.option("--clients", type=click.IntRange(1, 256), default=4, show_default=True, help="Sessions.")
@click.option("--callers", type=click.IntRange(1, 256), default=4, show_default=True, help="Calls each has open.")
@click.option("--replicas", type=click.IntRange(3, 9), default=3, show_default=True)
@click.option("--durability", type=click.Choice(DURABILITY_MODES), default="fsync", show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep data and logs in this new folder.")
@json_option
def failover(
    kills: int,
    hang: bool,
    clients: int,
    callers: int,
    replicas: int,
    durability: str,
    keep: Path | None,
    as_json: bool,
) -> int:
    """Kill the leader (SIGKILL) again and again under load, and time how long nobody is answered.

    A gap is the longest time between two answers from the kill until all replicas run again; the dead replica is
    brought back before the next kill. The exit code is 1 if anything acknowledged is missing, or if the
    replicas differ in the end.
    """
    with interruptible(), work_folder(keep) as folder:
        check_room(folder, journal_bytes_max(replicas, kills * SECONDS_PER_KILL, len(COMMAND)) // 8)
        with ClusterProcess(folder, replicas, "hashchain", durability) as processes:
            report = run_loop(measure_failover(processes, kills, clients, callers, hang=hang))
    report["setup"] = describe_machine() | {
        "kills": kills,
        "signal": "SIGSTOP" if hang else "SIGKILL",
        "clients": clients,
        "callers": callers,
        "replicas": replicas,
        "durability": durability,
    }
    if as_json:
        print_json(report)
    else:
        print_failover(report)
    return 0 if report["verdict"] else 1


async def measure_failover(
    processes: ClusterProcess, kills: int, clients: int, callers: int, *, hang: bool
) -> dict[str, Any]:
    """Kill and restart; return the gaps and whether everything acknowledged is there."""
    cluster = processes.cluster
    load = Clients()
    gaps: list[float] = []
    async with Client(cluster) as monitor:
        await wait_for(monitor, cluster, "the election of a leader", TIMEOUT_S, leader=True)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(run_session(load, cluster, callers))
            for number in range(1, kills + 1):
                await asyncio.sleep(SETTLE_S)
                gaps.append(await one_kill(processes, monitor, load, hang=hang))
                progress(f"kill {number} of {kills}: {gaps[-1]:,.0f} ms")
            load.is_over = True
        statuses = await wait_for(monitor, cluster, "catching up", TIMEOUT_S, leader=False)
        _index, applied, _digest = msgpack.unpackb(await monitor.query(b"", timeout=TIMEOUT_S))
    acknowledged = len(load.answered_ns)
    is_whole = acknowledged <= applied <= acknowledged + load.unknown
    digests_equal = len({entry["digest"] for entry in statuses}) == 1
    return {
        "gap_ms": {
            "p50": round(statistics.median(gaps), 1),
            "min": round(min(gaps), 1),
            "max": round(max(gaps), 1),
            "all": [round(gap, 1) for gap in gaps],
        },
        "acknowledged": acknowledged,
        "unknown": load.unknown,
        "applied": applied,
        "digests_equal": digests_equal,
        "verdict": is_whole and digests_equal,
    }


async def run_session(load: Clients, cluster: dict[int, str], callers: int) -> None:
    """One session with its callers, until the load is over."""
    async with Client(cluster) as client, asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(load.call(client))


async def one_kill(processes: ClusterProcess, monitor: Client, load: Clients, *, hang: bool) -> float:
    """Kill or hang the leader, wait for answers, bring it back; return the gap in milliseconds."""
    cluster = processes.cluster
    victim = leader_of(await wait_for(monitor, cluster, "finding the leader", TIMEOUT_S, leader=True))
    if victim is None:
        raise FastPaxosError("there is no leader to kill")
    killed_ns = time.perf_counter_ns()
    if hang:
        processes.pause(victim)
    else:
        await asyncio.to_thread(processes.kill, victim)
    # What was on its way still arrives: answers count as new ones when somebody else can have given them.
    others = {node_id: address for node_id, address in cluster.items() if node_id != victim}
    await wait_for(monitor, others, "a new leader", TIMEOUT_S, leader=True)
    load.is_answered.clear()
    await asyncio.wait_for(load.is_answered.wait(), TIMEOUT_S)
    if hang:
        processes.resume(victim)
    else:
        processes.start(victim)
    await wait_for(monitor, cluster, "the restart of the dead leader", TIMEOUT_S, leader=True)
    await all_reachable(monitor, cluster)
    return longest_gap_ms(load.answered_ns, killed_ns)


async def all_reachable(monitor: Client, cluster: dict[int, str]) -> None:
    """Wait until every replica answers."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        statuses = await wait_for(monitor, cluster, "an answer of every replica", TIMEOUT_S, leader=True)
        if all(entry["reachable"] for entry in statuses):
            return
        if time.monotonic() > deadline:
            raise FastPaxosError(f"a replica does not come back within {TIMEOUT_S:g} s")
        await asyncio.sleep(REFUSED_PAUSE_S)


def longest_gap_ms(answered_ns: array[int], since_ns: int) -> float:
    """Return the longest time between two answers, of which the second came after `since_ns`; 0 without any."""
    first = max(0, bisect_right(answered_ns, since_ns) - 1)
    return max((after - before for before, after in pairwise(answered_ns[first:])), default=0) / 1e6


def print_failover(report: dict[str, Any]) -> None:
    """Print the report for people."""
    gaps = report["gap_ms"]
    for name in ("min", "p50", "max"):
        click.echo(f"{gaps[name]:>14,.1f} ms  without an answer, {name} of {len(gaps['all'])} kills")
    click.echo(
        f"{report['acknowledged']:>14,} acknowledged, {report['applied']:,} applied, {report['unknown']:,} unknown"
    )
    click.echo(f"{report['digests_equal']!s:>14} all replicas equal")
