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
import numpy as np

from fastpaxos.cli.cluster_process import ClusterProcess, check_room, interruptible, journal_bytes_max, work_folder
from fastpaxos.cli.measure import describe_machine
from fastpaxos.cli.options import json_option, progress
from fastpaxos.cli.report import html_option, show_report
from fastpaxos.cli.status import leader_of, wait_for
from fastpaxos.client import Client
from fastpaxos.config import DURABILITY_MODES
from fastpaxos.errors import FastPaxosError, NotApplied
from fastpaxos.runtime import run as run_loop

__all__ = ["Kill", "failover", "longest_gap_ms", "timeline"]

TIMEOUT_S = 30.0
SETTLE_S = 0.5
REFUSED_PAUSE_S = 0.005
SECONDS_PER_KILL = 4.0
COMMAND = bytes(16)
MS = 1_000_000
BUCKET_MS, BEFORE_MS, AFTER_MS = 50, 500, 3_000  # of a timeline around a kill


@dataclass(slots=True)
class Kill:
    """One failure of a leader: when it was killed, when it was started again, and the gap between answers."""

    killed_ns: int
    back_ns: int
    gap_ms: float


@dataclass(slots=True)
class Clients:
    """Callers that send one command after the other, when each was answered, and how long that took."""

    answered_ns: array[int] = field(default_factory=lambda: array("q"))
    latency_ns: array[int] = field(default_factory=lambda: array("q"))
    unknown: int = 0
    is_answered: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False

    async def call(self, client: Client) -> None:
        """One caller, until it is over."""
        while not self.is_over:
            begin = time.perf_counter_ns()
            try:
                await client.execute(COMMAND, timeout=TIMEOUT_S)
            except NotApplied:
                await asyncio.sleep(REFUSED_PAUSE_S)
            except FastPaxosError:
                self.unknown += 1
            else:
                now = time.perf_counter_ns()
                self.answered_ns.append(now)
                self.latency_ns.append(now - begin)
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
@html_option
def failover(
    kills: int,
    hang: bool,
    clients: int,
    callers: int,
    replicas: int,
    durability: str,
    keep: Path | None,
    as_json: bool,
    html: Path | None,
) -> int:
    """Kill the leader (SIGKILL) again and again under load, and time how long nobody is answered.

    A gap is the longest time between two answers from the kill until all replicas run again; the dead replica is
    brought back before the next kill. The exit code is 1 if anything acknowledged is missing, or if the
    replicas differ in the end.
    """
    with interruptible(), work_folder(keep) as folder:
        room = journal_bytes_max(replicas, kills * SECONDS_PER_KILL, len(COMMAND), batch=1, restarts=kills)
        check_room(folder, room)
        setup = describe_machine(folder)
        with ClusterProcess(folder, replicas, "hashchain", durability) as processes:
            report = run_loop(measure_failover(processes, kills, clients, callers, hang=hang))
    report["setup"] = setup | {
        "kills": kills,
        "signal": "SIGSTOP" if hang else "SIGKILL",
        "clients": clients,
        "callers": callers,
        "replicas": replicas,
        "durability": durability,
        "payload_bytes": len(COMMAND),
        "batch": 1,
        "load_generator": "the process of this command, apart from the replicas",
    }
    show_report(report, as_json=as_json, html=html, print_text=print_failover)
    return 0 if report["verdict"] else 1


async def measure_failover(
    processes: ClusterProcess, kills: int, clients: int, callers: int, *, hang: bool
) -> dict[str, Any]:
    """Kill and restart; return the gaps and whether everything acknowledged is there."""
    cluster = processes.cluster
    load = Clients()
    kills_done: list[Kill] = []
    async with Client(cluster) as monitor:
        await wait_for(monitor, cluster, "the election of a leader", TIMEOUT_S, leader=True)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(run_session(load, cluster, callers))
            for number in range(1, kills + 1):
                await asyncio.sleep(SETTLE_S)
                kills_done.append(await one_kill(processes, monitor, load, hang=hang))
                progress(f"kill {number} of {kills}: {kills_done[-1].gap_ms:,.0f} ms")
            await asyncio.sleep(SETTLE_S)
            load.is_over = True
            over_ns = time.perf_counter_ns()
        statuses = await wait_for(monitor, cluster, "catching up", TIMEOUT_S, leader=False)
        _index, applied, _digest = msgpack.unpackb(await monitor.query(b"", timeout=TIMEOUT_S))
    acknowledged = len(load.answered_ns)
    is_whole = acknowledged <= applied <= acknowledged + load.unknown
    digests_equal = len({entry["digest"] for entry in statuses}) == 1
    gaps = [kill.gap_ms for kill in kills_done]
    ends_ns = [*(kill.killed_ns for kill in kills_done[1:]), over_ns]
    return {
        "benchmark": "failover",
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
        "timelines": [timeline(load, kill, end_ns) for kill, end_ns in zip(kills_done, ends_ns, strict=True)],
    }


async def run_session(load: Clients, cluster: dict[int, str], callers: int) -> None:
    """One session with its callers, until the load is over."""
    async with Client(cluster) as client, asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(load.call(client))


async def one_kill(processes: ClusterProcess, monitor: Client, load: Clients, *, hang: bool) -> Kill:
    """Kill or hang the leader, wait for answers, bring it back."""
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
    back_ns = time.perf_counter_ns()
    if hang:
        processes.resume(victim)
    else:
        processes.start(victim)
    await wait_for(monitor, cluster, "the restart of the dead leader", TIMEOUT_S, leader=True)
    await all_reachable(monitor, cluster)
    return Kill(killed_ns, back_ns, longest_gap_ms(load.answered_ns, killed_ns))


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


def timeline(load: Clients, kill: Kill, end_ns: int) -> dict[str, Any]:
    """What was answered around a kill, in buckets of BUCKET_MS, from BEFORE_MS before it to AFTER_MS after it, but not
    beyond `end_ns`. Times are milliseconds since the kill; `latency_us_max` is 0 where nothing was answered."""
    begin_ns = kill.killed_ns - BEFORE_MS * MS
    end_ns = min(end_ns, kill.killed_ns + AFTER_MS * MS)
    buckets = max(0, (end_ns - begin_ns) // (BUCKET_MS * MS))
    places = (np.array(load.answered_ns, dtype=np.int64) - begin_ns) // (BUCKET_MS * MS)
    is_inside = (places >= 0) & (places < buckets)
    worst_ns = np.zeros(buckets, dtype=np.int64)
    np.maximum.at(worst_ns, places[is_inside], np.array(load.latency_ns, dtype=np.int64)[is_inside])
    return {
        "begin_ms": -BEFORE_MS,
        "bucket_ms": BUCKET_MS,
        "gap_ms": round(kill.gap_ms, 1),
        "back_ms": round((kill.back_ns - kill.killed_ns) / MS, 1),
        "answered": np.bincount(places[is_inside], minlength=buckets).tolist(),
        "latency_us_max": [round(worst / 1000, 1) for worst in worst_ns.tolist()],
    }


def print_failover(report: dict[str, Any]) -> None:
    """Print the report for people."""
    gaps = report["gap_ms"]
    for name in ("min", "p50", "max"):
        click.echo(f"{gaps[name]:>14,.1f} ms  without an answer, {name} of {len(gaps['all'])} kills")
    click.echo(
        f"{report['acknowledged']:>14,} acknowledged, {report['applied']:,} applied, {report['unknown']:,} unknown"
    )
    click.echo(f"{report['digests_equal']!s:>14} all replicas equal")
