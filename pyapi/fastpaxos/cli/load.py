"""The closed load of `bench`: every session keeps a fixed number of blocks in flight, and never more.

It runs in processes of its own (`fastpaxos bench load`, hidden), which hand their result back as JSON.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError

__all__ = ["LoadPlan", "LoadResult", "run_load"]

COMMAND_LISTS = 4
ERROR_TEXTS_MAX = 3
TIMEOUT_S = 30.0
SAMPLES_HELD_MAX = 10_000


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`clients` sessions, each with `pipeline` blocks of `batch` commands of `payload_bytes` in flight.

    Nothing is measured in the first `warmup_s`; then `seconds` are.
    """

    cluster: dict[int, str]
    clients: int
    pipeline: int
    batch: int
    payload_bytes: int
    seconds: float
    warmup_s: float
    seed: int = 1


@dataclass(slots=True)
class LoadResult:
    """What one load process saw. `acknowledged` counts all its commands, `measured` those of the measured time."""

    acknowledged: int = 0
    measured: int = 0
    errors: int = 0
    error_texts: list[str] = field(default_factory=list)
    latency: list[list[int]] = field(default_factory=list)

    def to_map(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return asdict(self)


class Load:
    """The sessions of one load process and what they measure."""

    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan
        self.result = LoadResult()
        self.histogram = LatencyHistogram()
        self._samples: list[int] = []
        # The same few lists are sent again and again: making commands is not what is measured.
        chance = random.Random(plan.seed)
        self._lists = [[chance.randbytes(plan.payload_bytes) for _ in range(plan.batch)] for _ in range(COMMAND_LISTS)]

    async def run(self) -> LoadResult:
        """Open all sessions, let them work, close them."""
        clients = [Client(self.plan.cluster) for _ in range(self.plan.clients)]
        try:
            # Opening a session costs a round of consensus; it is not part of the measured time.
            await asyncio.gather(*(client.execute_many(self._lists[0], timeout=TIMEOUT_S) for client in clients))
            self.result.acknowledged += len(clients) * self.plan.batch
            measure_from = time.perf_counter_ns() + int(self.plan.warmup_s * 1e9)
            end = measure_from + int(self.plan.seconds * 1e9)
            workers = [
                self._work(client, number, measure_from, end)
                for client in clients
                for number in range(self.plan.pipeline)
            ]
            await asyncio.gather(*workers)
        finally:
            await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
        self.histogram.record(self._samples)
        self.result.latency = self.histogram.to_sparse()
        return self.result

    async def _work(self, client: Client, number: int, measure_from: int, end: int) -> None:
        result, plan = self.result, self.plan
        clock = time.perf_counter_ns
        begin = clock()
        while begin < end:
            commands = self._lists[number % COMMAND_LISTS]
            number += 1
            try:
                answers = await client.execute_many(commands, timeout=TIMEOUT_S)
            except FastPaxosError as error:
                result.errors += plan.batch
                if len(result.error_texts) < ERROR_TEXTS_MAX:
                    result.error_texts.append(f"{type(error).__name__}: {error}")
                begin = clock()
                continue
            now = clock()
            result.acknowledged += len(answers)
            if measure_from <= now <= end:
                result.measured += len(answers)
            if begin >= measure_from:
                self._sample(now - begin)
            begin = now

    def _sample(self, latency_ns: int) -> None:
        self._samples.append(latency_ns)
        if len(self._samples) >= SAMPLES_HELD_MAX:
            self.histogram.record(self._samples)
            self._samples.clear()


async def run_load(plan: LoadPlan) -> LoadResult:
    """Run a load from this process."""
    return await Load(plan).run()
