"""What happens during a demonstration: the load, the kill of the leader, its restart, and the wait for all to agree."""

from __future__ import annotations

import asyncio
import shutil
import time
from array import array
from dataclasses import dataclass, field
from typing import Protocol

from fastpaxos.cli.cluster_process import ClusterProcess
from fastpaxos.cli.ledger import Ledger, identity_commands
from fastpaxos.cli.status import Statuses, leader_of, read_statuses, wait_for
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError, NotApplied, OutcomeUnknown

__all__ = ["FREE_BYTES_MIN", "DemoRun", "View", "run_demo"]

MIB = 1024 * 1024
FREE_BYTES_MIN = 512 * MIB
BLOCKS_IN_FLIGHT = 4
BLOCK_COMMANDS_MAX = 250
BLOCK_BYTES_MAX = 128 * 1024
COMMAND_TIMEOUT_S = 30.0
START_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 60.0
KILL_AT, RESTART_AT = 0.4, 0.7
WATCH_INTERVAL_S = 0.25
REFUSED_PAUSE_S = 0.05


class View(Protocol):
    """Shows a person how it goes."""

    def say(self, event: str) -> None:
        """Show what happens now."""

    def refresh(self) -> None:
        """Show the figures of this moment."""


@dataclass(slots=True)
class DemoRun:
    """One run: its parts, and what was seen so far. Shared by the load, the killer and the view."""

    processes: ClusterProcess
    ledger: Ledger
    payload_bytes: int
    seconds: float
    kill_leader: bool
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    leader_kills: int = 0
    statuses: Statuses = field(default_factory=list)
    is_loading: bool = False
    began_ns: int = 0
    ended_ns: int = 0

    @property
    def load_seconds(self) -> float:
        """How long the load ran, or has been running; never 0."""
        if self.began_ns == 0:
            return 1e-9
        return max(((self.ended_ns or time.perf_counter_ns()) - self.began_ns) / 1e9, 1e-9)

    @property
    def block_commands(self) -> int:
        """Commands in each call of `execute_many`."""
        return max(1, min(BLOCK_COMMANDS_MAX, BLOCK_BYTES_MAX // self.payload_bytes))

    def load_setup(self) -> dict[str, object]:
        """The load, for the report."""
        return {
            "sessions": self.ledger.sessions,
            "pipeline": BLOCKS_IN_FLIGHT,
            "batch": self.block_commands,
        }


async def run_demo(run: DemoRun, view: View) -> Statuses:
    """Drive the whole run; return the statuses of all replicas when they had applied the same slots."""
    cluster = run.processes.cluster
    async with Client(cluster) as monitor:
        view.say("waiting for a leader")
        run.statuses = await wait_for(monitor, cluster, "the election of a leader", START_TIMEOUT_S, leader=True)
        view.say("under load")
        run.is_loading = True
        run.began_ns = time.perf_counter_ns()
        try:
            async with asyncio.TaskGroup() as tasks:
                for session in range(run.ledger.sessions):
                    tasks.create_task(run_session(run, session))
                watcher = tasks.create_task(watch(run, monitor, view))
                await run_script(run, monitor, view)
                run.is_loading = False
                watcher.cancel()
        except ExceptionGroup as group:
            raise first_error(group) from group
        run.ended_ns = time.perf_counter_ns()
        view.say("waiting until all replicas have applied the same slots")
        run.statuses = await wait_for(monitor, cluster, "catching up", SETTLE_TIMEOUT_S, leader=False)
        view.refresh()
        return run.statuses


def first_error(error: Exception) -> Exception:
    """Return the first failure of nested groups: it says what went wrong, the others are its consequences."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def run_script(run: DemoRun, monitor: Client, view: View) -> None:
    """Let the time pass, with the death of the leader in the middle and its return later."""
    begin = asyncio.get_running_loop().time()

    async def wait_until(share: float) -> None:
        await asyncio.sleep(begin + share * run.seconds - asyncio.get_running_loop().time())

    if run.kill_leader:
        await wait_until(KILL_AT)
        cluster = run.processes.cluster
        statuses = await wait_for(monitor, cluster, "finding the leader", START_TIMEOUT_S, leader=True)
        victim = leader_of(statuses)
        if victim is None:
            raise FastPaxosError("there is no leader to kill")
        await asyncio.to_thread(run.processes.kill, victim)
        run.leader_kills += 1
        view.say(f"killed the leader, replica {victim}, with SIGKILL")
        await wait_until(RESTART_AT)
        run.processes.start(victim)
        view.say(f"restarted replica {victim} from its disk")
    await wait_until(1.0)


async def run_session(run: DemoRun, session: int) -> None:
    """Keep some blocks of one session in flight until the load ends; then wait for their answers."""
    async with Client(run.processes.cluster) as client, asyncio.TaskGroup() as tasks:
        for _ in range(BLOCKS_IN_FLIGHT):
            tasks.create_task(run_worker(run, session, client))


async def run_worker(run: DemoRun, session: int, client: Client) -> None:
    """Send one block after the other, and write every answer into the ledger."""
    ledger = run.ledger
    while run.is_loading:
        begin, end = ledger.issue(session, run.block_commands)
        commands = identity_commands(ledger.run, session, begin, end, run.payload_bytes)
        sent_ns = time.perf_counter_ns()
        try:
            await client.execute_many(commands, timeout=COMMAND_TIMEOUT_S)
        except OutcomeUnknown:
            ledger.give_up(begin, end)
            continue
        except NotApplied:
            ledger.give_up(begin, end)
            await asyncio.sleep(REFUSED_PAUSE_S)
            continue
        now_ns = time.perf_counter_ns()
        ledger.acknowledge(session, begin, end, now_ns)
        run.latencies_ns.append(now_ns - sent_ns)


async def watch(run: DemoRun, monitor: Client, view: View) -> None:
    """Keep the statuses fresh, see that no replica died on its own, and stop before the disk is full."""
    cluster = run.processes.cluster
    while True:
        run.statuses = await read_statuses(monitor, cluster, WATCH_INTERVAL_S)
        run.processes.check_running()
        free = shutil.disk_usage(run.processes.folder).free
        if free < FREE_BYTES_MIN // 2:
            raise FastPaxosError(f"stopped: only {free // MIB} MiB are left on the disk of {run.processes.folder}")
        view.refresh()
        await asyncio.sleep(WATCH_INTERVAL_S)
