"""The loads of `bench`. Closed: every session keeps a fixed number of blocks in flight, and never more. Open: blocks
come when their time has come, however many are unanswered, and their latency counts from that time.

It runs in processes of its own (`fastpaxos bench load`, hidden), which hand their result back as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
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
REFUSED_PAUSE_S = 0.01
SAMPLES_HELD_MAX = 10_000
COMMAND_CHARGE_BYTES = 68
INFLIGHT_BYTES, INFLIGHT_BYTES_MAX = 8 << 20, (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`clients` sessions, each with `pipeline` blocks of `batch` commands of `payload_bytes` in flight.

    With a `rate` (blocks per second, over all sessions) the load is open: blocks arrive by chance ("poisson") or evenly
    ("uniform"). Nothing is measured in the first `warmup_s`; then `seconds` are.
    """

    cluster: dict[int, str]
    clients: int
    pipeline: int
    batch: int
    payload_bytes: int
    seconds: float
    warmup_s: float
    seed: int = 1
    rate: float = 0.0
    arrivals: str = "poisson"


@dataclass(slots=True)
class LoadResult:
    """What one load process saw. `acknowledged` counts all its commands, `measured` those of the measured time;
    `late_ns_max` is how long after its time a block was handed over at worst."""

    acknowledged: int = 0
    measured: int = 0
    late_ns_max: int = 0
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
        plan = self.plan
        wanted = 2 * plan.pipeline * plan.batch * (plan.payload_bytes + COMMAND_CHARGE_BYTES)
        inflight_bytes_max = min(max(INFLIGHT_BYTES, wanted), INFLIGHT_BYTES_MAX)
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    Client(plan.cluster, blocks_in_flight_max=plan.pipeline, inflight_bytes_max=inflight_bytes_max)
                )
                for _ in range(plan.clients)
            ]
            # Opening a session costs a round of consensus; it is not part of the measured time.
            await asyncio.gather(*(client.execute_many(self._lists[0], timeout=TIMEOUT_S) for client in clients))
            self.result.acknowledged += plan.clients * plan.batch
            measure_from = time.perf_counter_ns() + int(plan.warmup_s * 1e9)
            end = measure_from + int(plan.seconds * 1e9)
            if plan.rate:
                await self._arrive(clients, measure_from, end)
            else:
                workers = [
                    self._work(client, number, measure_from, end)
                    for client in clients
                    for number in range(plan.pipeline)
                ]
                await asyncio.gather(*workers)
        self.histogram.record(self._samples)
        self.result.latency = self.histogram.to_sparse()
        return self.result

    async def _arrive(self, clients: list[Client], measure_from: int, end: int) -> None:
        """The open load: a block is handed over when its time has come; all must be answered in the end."""
        clock, plan = time.perf_counter_ns, self.plan
        chance = random.Random(plan.seed)
        mean_ns = 1e9 / plan.rate
        due = float(clock())
        running: set[asyncio.Task[None]] = set()
        number = 0
        while due < end:
            now = clock()
            while due <= now and due < end:
                self.result.late_ns_max = max(self.result.late_ns_max, now - int(due))
                task = asyncio.create_task(self._one(clients[number % len(clients)], number, int(due), measure_from))
                running.add(task)
                task.add_done_callback(running.discard)
                number += 1
                due += chance.expovariate(1.0) * mean_ns if plan.arrivals == "poisson" else mean_ns
            await asyncio.sleep(max(0.0, (due - clock()) / 1e9))
        await asyncio.gather(*running)

    async def _one(self, client: Client, number: int, due: int, measure_from: int) -> None:
        try:
            await self._send(client, number)
        except FastPaxosError as error:
            self._fail(error)
            return
        if due >= measure_from:
            self.result.measured += self.plan.batch
            self._sample(time.perf_counter_ns() - due)

    async def _send(self, client: Client, number: int) -> None:
        """One block; a single command goes as users send it, and shares blocks with what else this session sends."""
        commands = self._lists[number % COMMAND_LISTS]
        if self.plan.batch == 1:
            await client.execute(commands[0], timeout=TIMEOUT_S)
        else:
            await client.execute_many(commands, timeout=TIMEOUT_S)
        self.result.acknowledged += self.plan.batch

    def _fail(self, error: Exception) -> None:
        self.result.errors += self.plan.batch
        if len(self.result.error_texts) < ERROR_TEXTS_MAX:
            self.result.error_texts.append(f"{type(error).__name__}: {error}")

    async def _work(self, client: Client, number: int, measure_from: int, end: int) -> None:
        result, plan = self.result, self.plan
        clock = time.perf_counter_ns
        begin = clock()
        while begin < end:
            number += 1
            try:
                await self._send(client, number)
            except FastPaxosError as error:
                self._fail(error)
                # A refusal that comes at once must not become a busy loop.
                await asyncio.sleep(REFUSED_PAUSE_S)
                begin = clock()
                continue
            now = clock()
            if measure_from <= now <= end:
                result.measured += plan.batch
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
