"""The loads of `bench`. Closed: every session keeps a fixed number of calls in flight, and never more. Open: commands
come when their time has come, however many are unanswered, and their latency counts from that time.

It runs in processes of its own (`fastpaxos bench load`, hidden), which hand their result back as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.client import Client
from fastpaxos.errors import FastPaxosError
from fastpaxos_core.block import pack_commands

__all__ = ["LoadPlan", "LoadResult", "run_load"]

COMMAND_LISTS = 4
ERROR_TEXTS_MAX = 3
TIMEOUT_S = 30.0
REFUSED_PAUSE_S = 0.01
SAMPLES_HELD_MAX = 10_000
GAPS_DRAWN = 4_096
BURST_MAX = 1_000
TURN_BATCHES = 64
ROOM_PAUSE_NS = 1_000_000
NS_PER_S = 1_000_000_000
DEADLINE_NS = int(TIMEOUT_S) * NS_PER_S
COMMAND_CHARGE_BYTES = 68
INFLIGHT_BYTES, INFLIGHT_BYTES_MAX = 8 << 20, (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`clients` sessions, each with `pipeline` calls of `batch` commands of `payload_bytes` in flight.

    A batch of one is `Client.execute`, a larger one `Client.execute_many`. With a `rate` (batches per second, over all
    sessions) the load is open: batches arrive by chance ("poisson") or evenly ("uniform"). Nothing is measured in the
    first `warmup_s`; then `seconds` are.
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
    `per_second` those that were answered in each whole second of it, which began at `begin_ns` of the monotonic clock.
    `late_ns_max` is how long after its time a batch was handed over at worst."""

    acknowledged: int = 0
    measured: int = 0
    per_second: list[int] = field(default_factory=list)
    begin_ns: int = 0
    late_ns_max: int = 0
    errors: int = 0
    error_texts: list[str] = field(default_factory=list)
    latency: list[list[int]] = field(default_factory=list)

    def to_map(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return asdict(self)


class AnsweredCommands:
    """Counts commands by the time of their answer: before the measured time, in each second of it, after it.

    Whoever counts does `if now >= answered.until_ns: answered.turn(now)` and `answered.commands += n`: a call per
    command would be seen in what is measured.
    """

    def __init__(self, begin_ns: int, seconds: float) -> None:
        self.whole_seconds = int(seconds)
        self.end_ns = begin_ns + int(seconds * NS_PER_S)
        self.commands = 0
        self.until_ns = begin_ns
        self._ends = [begin_ns + second * NS_PER_S for second in range(1, self.whole_seconds + 1)]
        self._ends += [self.end_ns, 1 << 63]
        self._counts: list[int] = []

    def turn(self, now: int) -> None:
        """Close the counts of all times that ended by `now`."""
        while now >= self.until_ns:
            self._counts.append(self.commands)
            self.commands = 0
            self.until_ns = self._ends[len(self._counts) - 1]

    def store(self, result: LoadResult) -> None:
        """Fill in the counts; nothing is counted afterwards."""
        self.turn(self.end_ns)
        in_time = self._counts[1:]
        result.acknowledged += sum(self._counts) + self.commands
        result.measured = sum(in_time)
        result.per_second = in_time[: self.whole_seconds]


class Load:
    """The sessions of one load process and what they measure."""

    def __init__(self, plan: LoadPlan) -> None:
        self.plan = plan
        self.result = LoadResult()
        self.histogram = LatencyHistogram()
        self.answered = AnsweredCommands(0, 0.0)
        self._samples: list[int] = []
        self._unanswered = 0
        self._none_unanswered = asyncio.Event()
        # The same few lists are sent again and again: making commands is not what is measured.
        chance = random.Random(plan.seed)
        self._lists = [[chance.randbytes(plan.payload_bytes) for _ in range(plan.batch)] for _ in range(COMMAND_LISTS)]

    async def run(self) -> LoadResult:
        """Open all sessions, let them work, close them."""
        plan = self.plan
        wanted = 2 * plan.pipeline * plan.batch * (plan.payload_bytes + COMMAND_CHARGE_BYTES)
        options: dict[str, Any] = {"inflight_bytes_max": min(max(INFLIGHT_BYTES, wanted), INFLIGHT_BYTES_MAX)}
        if plan.batch > 1 and not plan.rate:
            options["blocks_in_flight_max"] = plan.pipeline
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client(plan.cluster, timeout=TIMEOUT_S, **options))
                for _ in range(plan.clients)
            ]
            # Opening a session costs a round of consensus; it is not part of the measured time.
            await asyncio.gather(*(client.execute_many(self._lists[0]) for client in clients))
            self.result.acknowledged += plan.clients * plan.batch
            await self._measure(clients, time.monotonic_ns() + int(plan.warmup_s * NS_PER_S))
        self._record()
        self.result.latency = self.histogram.to_sparse()
        return self.result

    async def _measure(self, clients: list[Client], measure_from: int) -> None:
        plan = self.plan
        self.result.begin_ns = measure_from
        self.answered = AnsweredCommands(measure_from, plan.seconds)
        if plan.rate:
            await self._arrive(clients)
        else:
            workers = [
                self._work(client, number, measure_from) for client in clients for number in range(plan.pipeline)
            ]
            await asyncio.gather(*workers)
        self.answered.store(self.result)

    # --- closed -------------------------------------------------------------------------------------------------------

    async def _work(self, client: Client, number: int, measure_from: int) -> None:
        answered, plan, samples = self.answered, self.plan, self._samples
        send, messages = self._sender(client)
        clock, end, batch = time.monotonic_ns, answered.end_ns, plan.batch
        begin = clock()
        while begin < end:
            number += 1
            try:
                await send(messages[number % COMMAND_LISTS])
            except FastPaxosError as error:
                self._fail(error)
                # A refusal that comes at once must not become a busy loop.
                await asyncio.sleep(REFUSED_PAUSE_S)
                begin = clock()
                continue
            now = clock()
            if now >= answered.until_ns:
                answered.turn(now)
            answered.commands += batch
            if begin >= measure_from:
                samples.append(now - begin)
                if len(samples) >= SAMPLES_HELD_MAX:
                    self._record()
            begin = now

    def _sender(self, client: Client) -> tuple[Callable[[Any], Awaitable[Any]], list[Any]]:
        """How this session sends, and what. Single commands go as users send them, with nothing in between."""
        if self.plan.batch == 1:
            return client.execute, [commands[0] for commands in self._lists]
        return client.execute_many, self._lists

    # --- open ---------------------------------------------------------------------------------------------------------

    async def _arrive(self, clients: list[Client]) -> None:
        """A batch is handed over when its time has come; all must be answered in the end.

        Batches that a client has no room for wait in order, and their time runs. The loop gets its turn after every
        `BURST_MAX` batches, however late they are: answers must not wait for the load.
        """
        clock, end, plan = time.monotonic_ns, self.answered.end_ns, self.plan
        block_bytes = len(pack_commands(self._lists[0])[0]) + COMMAND_CHARGE_BYTES
        due_times = self._due_times(clock())
        due = next(due_times)
        waiting: deque[int] = deque()
        number = 0
        while due < end or waiting:
            now = clock()
            if due <= now and due < end:
                self.result.late_ns_max = max(self.result.late_ns_max, now - due)
            while due <= now and due < end and len(waiting) < BURST_MAX:
                waiting.append(due)
                due = next(due_times)
            while waiting and (room_bytes := (client := clients[number % plan.clients]).room_bytes) >= block_bytes:
                # A few to each client in turn, so that its room is asked for rarely.
                for _ in range(min(len(waiting), TURN_BATCHES, room_bytes // block_bytes)):
                    self._hand_over(client, number, waiting.popleft())
                number += 1
            pause_ns = ROOM_PAUSE_NS if waiting or due >= end else due - clock()
            await asyncio.sleep(max(0, pause_ns) / NS_PER_S)
        while self._unanswered:
            self._none_unanswered.clear()
            await self._none_unanswered.wait()

    def _due_times(self, begin: int) -> Iterator[int]:
        """When each batch is due, drawn from the seed many at a time."""
        chance = np.random.default_rng(self.plan.seed)
        mean_ns = NS_PER_S / self.plan.rate
        due = float(begin)
        while True:
            gaps = (
                chance.exponential(mean_ns, GAPS_DRAWN) if self.plan.arrivals == "poisson" else [mean_ns] * GAPS_DRAWN
            )
            times = due + np.cumsum(gaps)
            due = float(times[-1])
            yield from map(int, times.tolist())

    def _hand_over(self, client: Client, number: int, due: int) -> None:
        commands = self._lists[number % COMMAND_LISTS]
        self._unanswered += 1
        if self.plan.batch == 1:
            # Neither task nor future for each: one process must keep up with a fast cluster.
            client.submit_for(_Arrival(self, due), commands[0], due + DEADLINE_NS)
        else:
            future = asyncio.ensure_future(client.execute_many(commands))
            future.add_done_callback(partial(self._take_future, due))

    def _take_future(self, due: int, future: asyncio.Future[Any]) -> None:
        error = future.exception()
        if isinstance(error, Exception):
            self.take_failure(error)
        else:
            self.take_answer(due)

    def take_failure(self, error: Exception) -> None:
        """A batch failed."""
        self._settle_one()
        if not isinstance(error, FastPaxosError):
            raise error
        self._fail(error)

    def _settle_one(self) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self._none_unanswered.set()

    def take_answer(self, due: int) -> None:
        """A batch that was due then is answered now."""
        self._settle_one()
        now = time.monotonic_ns()
        answered = self.answered
        if now >= answered.until_ns:
            answered.turn(now)
        answered.commands += self.plan.batch
        if due >= self.result.begin_ns:
            self._samples.append(now - due)
            if len(self._samples) >= SAMPLES_HELD_MAX:
                self._record()

    # --- both ---------------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self.result.errors += self.plan.batch
        if len(self.result.error_texts) < ERROR_TEXTS_MAX:
            self.result.error_texts.append(f"{type(error).__name__}: {error}")

    def _record(self) -> None:
        self.histogram.record(self._samples)
        self._samples.clear()


class _Arrival:
    """Waits for one command of an open load."""

    __slots__ = ("due", "load")

    def __init__(self, load: Load, due: int) -> None:
        self.load = load
        self.due = due

    def done(self) -> bool:
        return False

    def set_result(self, result: bytes) -> None:
        self.load.take_answer(self.due)

    def set_exception(self, error: Exception) -> None:
        self.load.take_failure(error)


async def run_load(plan: LoadPlan) -> LoadResult:
    """Run a load from this process."""
    return await Load(plan).run()
