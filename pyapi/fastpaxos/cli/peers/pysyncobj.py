"""PySyncObj from PyPI, three nodes: in its default settings, and in the best that short trials find. It never syncs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastpaxos.cli.cluster_process import free_ports
from fastpaxos.cli.latency import LatencyHistogram, Percentiles
from fastpaxos.cli.peers.peer import DisturbedError, PeerError, PeerPlan
from fastpaxos.cli.peers.pysyncobj_node import NodeFailure, NodeLoad, NodeResult, NodeSettings, run_node

__all__ = ["PySyncObj"]

REQUIREMENT = "pysyncobj>=0.3.14"
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 30.0
PAUSE_S = 0.02
TRIAL_S, TRIAL_WARMUP_S = 1.0, 0.5
DEFAULT_WINDOW = 4000
WINDOWS = (1000, 4000, 16000)
IN_FLIGHT_BYTES_MAX = 2 << 20
DEFAULTS = NodeSettings()
# A compaction during a run would only slow it down, and these runs end before memory does. A leader that is busy must
# not lose its office for it.
CALM = {
    "logCompactionMinEntries": 10**9,
    "logCompactionMinTime": 10**6,
    "raftMinTimeout": 2.0,
    "raftMaxTimeout": 3.0,
}
# Throughput: the caller's loop is the node's loop, and entries are sent in batches at short intervals, not each 0.1 s.
OWN_LOOP = {"autoTick": False} | CALM
BATCHES = (DEFAULTS, *(NodeSettings(OWN_LOOP | {"appendEntriesPeriod": period_s}) for period_s in (0.001, 0.005)))
# Latency: each command is sent at once; by PySyncObj's own thread, by the caller's loop, or by one that never waits.
AT_ONCE = {"appendEntriesUseBatch": False}
ALONE = (
    NodeSettings(AT_ONCE | CALM),
    NodeSettings(AT_ONCE | OWN_LOOP),
    NodeSettings(AT_ONCE | OWN_LOOP, busy=True),
)


# Entries of this size are sent in parts that PySyncObj 0.3.17 does not always put together again; larger messages help.
PARTS_FROM_BYTES = 1 << 15


class PySyncObj:
    """A cluster for each load; `best` chooses settings for throughput and for latency in trials."""

    durability = "memory"
    nodes = 3

    def __init__(self, name: str, reference: str, *, best: bool) -> None:
        self.name = name
        self.reference = reference
        self._best = best
        self._throughput = self._latency = DEFAULTS
        self._window = DEFAULT_WINDOW

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("pysyncobj") else f"pip install '{REQUIREMENT}'"

    def version(self) -> str:
        return importlib.metadata.version("pysyncobj")

    def settings(self) -> str:
        where = "called in the leader's own process; nothing is written to a disk"
        return f"throughput: {describe(self._throughput)}; latency: {describe(self._latency)}; {where}"

    def load(self, plan: PeerPlan) -> str:
        return f"no connection, {fit(self._window, plan)} commands in flight"

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        if not self._best:
            return
        windows = sorted({fit(window, plan) for window in WINDOWS})
        loads = [NodeLoad(window, plan.payload_bytes, TRIAL_S, TRIAL_WARMUP_S) for window in windows]
        batches = [with_room(settings, plan) for settings in BATCHES]
        speeds = {
            (number, load.window): result.measured
            for number, settings in enumerate(batches)
            for load, result in try_loads(self.nodes, settings, loads)
        }
        if not speeds:
            raise PeerError("PySyncObj left commands unanswered in every trial of its throughput")
        number, self._window = max(speeds, key=lambda key: speeds[key])
        self._throughput = batches[number]
        ways = [with_room(settings, plan) for settings in ALONE]
        alone = [NodeLoad(1, plan.payload_bytes, TRIAL_S, TRIAL_WARMUP_S)]
        medians = {
            number: LatencyHistogram.from_sparse(result.latency).percentile_ns(50)
            for number, settings in enumerate(ways)
            for _, result in try_loads(self.nodes, settings, alone)
        }
        if not medians:
            raise PeerError("PySyncObj left commands unanswered in every trial of its latency")
        self._latency = ways[min(medians, key=lambda key: medians[key])]

    @contextlib.contextmanager
    def running(self, folder: Path, plan: PeerPlan) -> Iterator[RunningPySyncObj]:
        yield RunningPySyncObj(self._throughput, self._latency, fit(self._window, plan), plan, self.nodes)


class RunningPySyncObj:
    """Starts and stops a cluster for each figure: they may need different settings."""

    def __init__(
        self, throughput: NodeSettings, latency: NodeSettings, window: int, plan: PeerPlan, nodes: int
    ) -> None:
        self._throughput = throughput
        self._latency = latency
        self._window = window
        self._plan = plan
        self._nodes = nodes

    def throughput(self) -> float:
        plan = self._plan
        with node_cluster(self._nodes, self._throughput) as cluster:
            result = cluster.run(NodeLoad(self._window, plan.payload_bytes, plan.seconds, plan.warmup_s))
        return result.measured / plan.seconds

    def latency(self) -> Percentiles:
        plan = self._plan
        with node_cluster(self._nodes, self._latency) as cluster:
            result = cluster.run(NodeLoad(1, plan.payload_bytes, plan.seconds / 2, plan.warmup_s / 2))
        return LatencyHistogram.from_sparse(result.latency).percentiles_us()


def fit(window: int, plan: PeerPlan) -> int:
    """A window that memory has room for: each command in it is held several times in each node."""
    return max(1, min(window, IN_FLIGHT_BYTES_MAX // max(1, plan.payload_bytes)))


def with_room(settings: NodeSettings, plan: PeerPlan) -> NodeSettings:
    """The settings with messages in which many commands of this size have room."""
    if plan.payload_bytes < PARTS_FROM_BYTES:
        return settings
    room = {"appendEntriesBatchSizeBytes": 16 * plan.payload_bytes}
    return replace(settings, options=settings.options | room)


def try_loads(nodes: int, settings: NodeSettings, loads: list[NodeLoad]) -> list[tuple[NodeLoad, NodeResult]]:
    """Run loads one after the other; what comes after one that the cluster does not stand is left out."""
    done: list[tuple[NodeLoad, NodeResult]] = []
    with contextlib.suppress(PeerError), node_cluster(nodes, settings) as cluster:
        for load in loads:
            done.append((load, cluster.run(load)))  # noqa: PERF401 - what came before an error counts
    return done


class NodeCluster:
    """Nodes with a leader, by their pipes."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes
        self._leader = self._find_leader()

    def run(self, load: NodeLoad) -> NodeResult:
        """Load the leader. Raises DisturbedError if a command fails or is never answered, and PeerError if the nodes do
        not hold what was acknowledged."""
        before, _ = ask(self._leader, "state")
        result: NodeResult = ask(self._leader, load, load.warmup_s + load.seconds + ANSWER_TIMEOUT_S)
        if result.errors or result.unanswered:
            raise DisturbedError(
                f"{result.errors} commands failed, {result.unanswered} never answered, as when the leader changes"
            )
        wanted = before + result.acknowledged
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            states = [ask(pipe, "state") for pipe in self._pipes]
            if len(set(states)) == 1 and states[0][0] == wanted:
                return result
            if time.monotonic() > deadline:
                raise PeerError(f"{wanted} commands acknowledged, the nodes have (count, digest) {states}")
            time.sleep(PAUSE_S)

    def _find_leader(self) -> Connection:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            for pipe in self._pipes:
                if ask(pipe, "leader"):
                    return pipe
            if time.monotonic() > deadline:
                raise PeerError(f"PySyncObj has no leader after {START_TIMEOUT_S:g} s")
            time.sleep(PAUSE_S)


@contextlib.contextmanager
def node_cluster(nodes: int, settings: NodeSettings) -> Iterator[NodeCluster]:
    """Run a cluster in processes of its own until the end of the block."""
    context = multiprocessing.get_context("spawn")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(nodes)]
    with contextlib.ExitStack() as stack:
        pipes = []
        for own in addresses:
            pipe, theirs = context.Pipe()
            stack.enter_context(pipe)
            others = [address for address in addresses if address != own]
            process = context.Process(target=run_node, args=([own, *others], settings, theirs), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            theirs.close()
            pipes.append(pipe)
        yield NodeCluster(pipes)


def ask(pipe: Connection, request: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
    """Send a request to a node and return its answer. Raises PeerError if it is gone or takes too long."""
    try:
        pipe.send(request)
        if not pipe.poll(timeout_s):
            raise PeerError(f"a PySyncObj node does not answer within {timeout_s:g} s")
        answer = pipe.recv()
    except (EOFError, ConnectionError) as error:
        raise PeerError("a PySyncObj node ended on its own") from error
    if isinstance(answer, NodeFailure):
        raise PeerError(f"a PySyncObj node failed: {answer.text}")
    return answer


def describe(settings: NodeSettings) -> str:
    """Settings as a person would write them."""
    named = ", ".join(f"{name}={value}" for name, value in settings.options.items()) or "default settings"
    return f"{named}, the leader never waits" if settings.busy else named
