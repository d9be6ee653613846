"""fastpaxos as a row of the comparison: replicas in processes of their own, loaded from one more process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fastpaxos.cli.cluster_process import ClusterProcess
from fastpaxos.cli.latency import LatencyHistogram, Percentiles
from fastpaxos.cli.load import LoadPlan, LoadResult
from fastpaxos.cli.load_processes import SETTLE_TIMEOUT_S, START_TIMEOUT_S, run_load_processes, settled_count
from fastpaxos.cli.peers.peer import PeerError, PeerPlan
from fastpaxos.runtime import run as run_loop
from fastpaxos_core import build_info

__all__ = ["FastPaxos", "commands_per_block"]

SESSIONS = 4
BLOCKS_IN_FLIGHT = 8
COMMANDS_PER_BLOCK = 1000
BLOCK_BYTES_MAX = 1 << 16  # larger ones make it slower
LENGTH_BYTES = 4


class FastPaxos:
    """Three replicas of the hash chain; `blocks` sends commands as `execute_many` does, else one by one."""

    nodes = 3

    def __init__(self, name: str, reference: str, durability: str, *, blocks: bool) -> None:
        self.name = name
        self.reference = reference
        self.durability = durability
        self._blocks = blocks

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return str(build_info()["version"])

    def settings(self) -> str:
        return f"default settings, hash chain; {'blocks of commands' if self._blocks else 'single commands'}"

    def load(self, plan: PeerPlan) -> str:
        if not self._blocks:
            return f"{plan.clients} connections, 1 command in flight each"
        block = commands_per_block(plan.payload_bytes)
        return f"{SESSIONS} connections, {BLOCKS_IN_FLIGHT} blocks of {block} commands in flight each"

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        """Nothing to choose."""

    @contextlib.contextmanager
    def running(self, folder: Path, plan: PeerPlan) -> Iterator[RunningFastPaxos]:
        with ClusterProcess(folder, self.nodes, "hashchain", self.durability) as processes:
            running = RunningFastPaxos(processes.cluster, plan, blocks=self._blocks)
            yield running
            running.check()
            processes.check_running()


class RunningFastPaxos:
    """A cluster that has elected its leader."""

    def __init__(self, cluster: dict[int, str], plan: PeerPlan, *, blocks: bool) -> None:
        self._cluster = cluster
        self._plan = plan
        self._blocks = blocks
        self._acknowledged = 0
        self._count, _ = run_loop(settled_count(cluster, "the election of a leader", START_TIMEOUT_S, leader=True))

    def throughput(self) -> float:
        plan = self._plan
        clients, pipeline, batch = plan.clients, 1, 1
        if self._blocks:
            clients, pipeline, batch = SESSIONS, BLOCKS_IN_FLIGHT, commands_per_block(plan.payload_bytes)
        load = LoadPlan(self._cluster, clients, pipeline, batch, plan.payload_bytes, plan.seconds, plan.warmup_s)
        return self._run(load).measured / plan.seconds

    def latency(self) -> Percentiles:
        plan = self._plan
        load = LoadPlan(self._cluster, 1, 1, 1, plan.payload_bytes, plan.seconds / 2, plan.warmup_s / 2)
        return LatencyHistogram.from_sparse(self._run(load).latency).percentiles_us()

    def check(self) -> None:
        """Raises PeerError unless all replicas hold what was acknowledged, once, and are equal."""
        count, statuses = run_loop(settled_count(self._cluster, "catching up", SETTLE_TIMEOUT_S, leader=False))
        applied = count - self._count
        if applied != self._acknowledged:
            raise PeerError(f"{self._acknowledged} commands acknowledged, {applied} applied")
        if len({status["digest"] for status in statuses}) != 1:
            raise PeerError("the replicas have different digests")

    def _run(self, load: LoadPlan) -> LoadResult:
        (result,) = run_load_processes([load])
        if result.errors:
            raise PeerError(f"{result.errors} commands failed: {'; '.join(result.error_texts)}")
        self._acknowledged += result.acknowledged
        return result


def commands_per_block(payload_bytes: int) -> int:
    """As many commands as pay off in one block."""
    return max(1, min(COMMANDS_PER_BLOCK, BLOCK_BYTES_MAX // (payload_bytes + LENGTH_BYTES)))
