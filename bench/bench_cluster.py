"""Three replicas with fsync: in this process, with the client beside the leader or over TCP, and in processes.

`extra_info` carries the latency percentiles of what was called and the operations per second.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from fastpaxos import Client, HashChain, Node, NodeConfig
from fastpaxos.cli.cluster_process import ClusterProcess
from fastpaxos.cli.latency import LatencyHistogram

REPLICAS = 3
ROUNDS = 30
LATENCY_SAMPLES = 300
READS_AT_ONCE = 100
START_TIMEOUT_S = 30
PAYLOAD = b"0123456789abcdef"


class ClusterLoop:
    """A cluster and a client on a loop that lives as long as the benchmark, so that starting them is not timed."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._owned = contextlib.AsyncExitStack()
        self._processes = contextlib.ExitStack()
        self.client: Client
        try:
            self(self._start(folder, kind))
        except BaseException:
            self.close()
            raise

    async def _start(self, folder: Path, kind: str) -> None:
        if kind == "processes":
            cluster = self._processes.enter_context(ClusterProcess(folder, REPLICAS, "hashchain", "fsync")).cluster
            client = Client(cluster)
        else:
            cluster = {index + 1: f"127.0.0.1:{port}" for index, port in enumerate(free_ports(REPLICAS))}
            nodes = [
                Node(NodeConfig(node_id=node_id, cluster=cluster, data_dir=folder / str(node_id)), HashChain())
                for node_id in cluster
            ]
            for node in nodes:
                self._owned.push_async_callback(node.aclose)
            await asyncio.gather(*(node.start() for node in nodes))
            client = Client(cluster)
            if kind == "in process":
                async with client:
                    await client.execute(b"first", timeout=START_TIMEOUT_S)
                client = next(node for node in nodes if node.status()["role"] == "leader").client()
        self.client = await self._owned.enter_async_context(client)
        await self.client.execute(b"ready", timeout=START_TIMEOUT_S)

    def __call__(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)

    def count(self) -> int:
        """How many commands were applied, by a linearizable read of the hash chain."""
        _, count, _ = msgpack.unpackb(self(self.client.query(b"")))
        return int(count)

    def close(self) -> None:
        self(self._owned.aclose())
        self._processes.close()
        self.loop.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(params=["in process", "in process, TCP", "processes"])
def cluster_loop(request: pytest.FixtureRequest, tmp_path: Path, benchmark: Any) -> Iterator[ClusterLoop]:
    benchmark.group = f"{benchmark.name.split('[')[0].removeprefix('bench_')}, cluster"
    benchmark.extra_info.update(replicas=REPLICAS, durability="fsync", cluster=request.param, load="this process")
    cluster = ClusterLoop(tmp_path, request.param)
    yield cluster
    cluster.close()
    # pytest keeps the folders of its last runs, and journals are large.
    shutil.rmtree(tmp_path)


class Timed:
    """Calls that are timed one by one, and reported together."""

    def __init__(self, benchmark: Any) -> None:
        self.benchmark = benchmark
        self.histogram = LatencyHistogram()

    async def call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await what `make` returns, and record how long that took."""
        begin_ns = time.perf_counter_ns()
        result = await make()
        self.histogram.record([time.perf_counter_ns() - begin_ns])
        return result

    def report(self, operations_per_round: int) -> None:
        self.benchmark.extra_info["calls"] = self.histogram.samples
        for name, value in self.histogram.percentiles_us().items():
            self.benchmark.extra_info[f"{name}_us"] = value
        median = self.benchmark.stats.stats.median
        self.benchmark.extra_info["operations_per_second"] = round(operations_per_round / median)


@pytest.mark.parametrize("count", [1, 64, 1024, 4096])
def bench_execute_many(benchmark: Any, cluster_loop: ClusterLoop, count: int) -> None:
    """One call of execute_many, from the first byte to the last result."""
    commands = [PAYLOAD] * count
    timed = Timed(benchmark)
    before = cluster_loop.count()
    results = benchmark.pedantic(
        lambda: cluster_loop(timed.call(lambda: cluster_loop.client.execute_many(commands))), rounds=ROUNDS
    )
    # The hash chain numbers what it applied: nothing is missing, nothing is there twice.
    assert int.from_bytes(results[-1], "little") == before + ROUNDS * count == cluster_loop.count()
    assert len(results) == count
    timed.report(count)


def bench_one_by_one(benchmark: Any, cluster_loop: ClusterLoop) -> None:
    """Commands one at a time: what a command takes when nothing else runs."""
    timed = Timed(benchmark)
    before = cluster_loop.count()

    async def one_by_one() -> None:
        for _ in range(LATENCY_SAMPLES):
            await timed.call(lambda: cluster_loop.client.execute(PAYLOAD))

    benchmark.pedantic(lambda: cluster_loop(one_by_one()), rounds=3)
    assert timed.histogram.samples == 3 * LATENCY_SAMPLES == cluster_loop.count() - before
    timed.report(LATENCY_SAMPLES)


def bench_linearizable_read(benchmark: Any, cluster_loop: ClusterLoop) -> None:
    """100 reads at once share a read round."""
    timed = Timed(benchmark)

    async def read_many() -> list[bytes]:
        reads = (timed.call(lambda: cluster_loop.client.query(b"")) for _ in range(READS_AT_ONCE))
        return list(await asyncio.gather(*reads))

    answers = benchmark.pedantic(lambda: cluster_loop(read_many()), rounds=ROUNDS)
    assert len(set(answers)) == 1
    assert timed.histogram.samples == ROUNDS * READS_AT_ONCE
    timed.report(READS_AT_ONCE)
