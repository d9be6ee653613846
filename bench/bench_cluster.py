"""Three replicas with fsync in this process, over loopback TCP and real files, with one client."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpaxos import Client, HashChain, Node, NodeConfig

REPLICAS = 3
ROUNDS = 30
LATENCY_SAMPLES = 300


class ClusterLoop:
    """A loop that lives as long as the benchmark, so that starting it is not timed."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.machines = [HashChain() for _ in range(REPLICAS)]
        ports = free_ports(REPLICAS)
        self.cluster = {index + 1: f"127.0.0.1:{port}" for index, port in enumerate(ports)}
        self.nodes = [
            Node(NodeConfig(node_id=index + 1, cluster=self.cluster, data_dir=folder / str(index + 1)), machine)
            for index, machine in enumerate(self.machines)
        ]
        self.client = Client(self.cluster)
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        await asyncio.gather(*(node.start() for node in self.nodes))
        await self.client.__aenter__()
        await self.client.execute(b"first", timeout=30)

    async def _stop(self) -> None:
        await self.client.aclose()
        await asyncio.gather(*(node.aclose() for node in self.nodes))

    def __call__(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.loop.run_until_complete(self._stop())
        self.loop.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture
def cluster_loop(tmp_path: Path, benchmark: Any) -> Iterator[ClusterLoop]:
    benchmark.extra_info.update(replicas=REPLICAS, durability="fsync", load="in process", loop="asyncio")
    cluster = ClusterLoop(tmp_path)
    yield cluster
    cluster.close()


@pytest.mark.benchmark(group="cluster in process")
@pytest.mark.parametrize("count", [1, 100, 10_000])
def bench_execute_many(benchmark: Any, cluster_loop: ClusterLoop, count: int) -> None:
    """One call of execute_many, from the first byte to the last result."""
    commands = [b"0123456789abcdef"] * count
    first = int.from_bytes(cluster_loop(cluster_loop.client.execute(b"last")), "little")
    results = benchmark.pedantic(lambda: cluster_loop(cluster_loop.client.execute_many(commands)), rounds=ROUNDS)
    # The hash chain numbers what it applied: nothing is missing, nothing is there twice.
    assert int.from_bytes(results[-1], "little") == first + ROUNDS * count
    assert len(results) == count
    benchmark.extra_info["commands_per_second"] = round(count / benchmark.stats.stats.median)


@pytest.mark.benchmark(group="cluster in process")
def bench_latency(benchmark: Any, cluster_loop: ClusterLoop) -> None:
    """Commands one at a time: percentiles over all of them are in extra_info."""
    samples: list[int] = []

    async def one_by_one() -> None:
        for _ in range(LATENCY_SAMPLES):
            begin_ns = time.perf_counter_ns()
            await cluster_loop.client.execute(b"0123456789abcdef")
            samples.append(time.perf_counter_ns() - begin_ns)

    benchmark.pedantic(lambda: cluster_loop(one_by_one()), rounds=3)
    samples.sort()
    assert len(samples) == 3 * LATENCY_SAMPLES
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        benchmark.extra_info[f"{name}_us"] = samples[int(part * len(samples))] // 1000


@pytest.mark.benchmark(group="cluster in process")
def bench_linearizable_read(benchmark: Any, cluster_loop: ClusterLoop) -> None:
    """100 reads at once share a read round."""

    async def read_many() -> list[bytes]:
        return list(await asyncio.gather(*(cluster_loop.client.query(b"") for _ in range(100))))

    answers = benchmark.pedantic(lambda: cluster_loop(read_many()), rounds=ROUNDS)
    assert len(set(answers)) == 1
    benchmark.extra_info["reads_per_second"] = round(100 / benchmark.stats.stats.median)
