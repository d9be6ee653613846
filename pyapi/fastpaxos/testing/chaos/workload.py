"""The clients of a chaos run: what they ask for, how fast, and with how much patience.

    plain       real clients with patience, each used by two workers
    loyal       the same, and it stays with a silent node for as long as a call may last
    hasty       deadlines far too short, and calls that are cancelled
    batches     `execute_many`
    fleeting    a new client, and so a new session, for every few calls
    blocking    a BlockingClient in a thread of its own

They write unique values to few and to many keys, move chains of compare-and-set on, count, and read. Keys are left
after some hundred operations and new ones taken, so that the operations on one key stay few enough to be searched.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from time import monotonic_ns

import msgpack

from fastpaxos.blocking import BlockingClient
from fastpaxos.client import Client
from fastpaxos.errors import ClientError
from fastpaxos.kv import encode_compare_and_set, encode_get, encode_increment, encode_put
from fastpaxos.testing.chaos.calls import Call

__all__ = ["Recorder", "Workload"]

PATIENCE_S = 4.0
HASTY_S = (0.01, 0.6)
BATCH_COMMANDS = (2, 12)
FLEETING_CALLS = (2, 12)
HOT_KEYS, HOT_KEY_CALLS = 3, 400
COLD_KEYS, COLD_KEY_CALLS = 120, 6_000
TEXT_KEY = b"text"
"""It holds no number: to increment it is an error of the machine."""
COUNTER_PREFIX = b"count "
VALUE_BYTES_MAX = 2_000


class Recorder:
    """All calls of one round, in the order in which they began. Threads may share it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A number that no other call has."""
        return next(self._numbers)

    def begin(self, client: str, request: bytes, *, is_query: bool) -> Call:
        """Note that a call begins now."""
        call = Call(client, request, is_query, monotonic_ns())
        self.calls.append(call)
        return call


class Requests:
    """Draws what one worker asks for next."""

    def __init__(self, recorder: Recorder, random: Random) -> None:
        self._recorder = recorder
        self._random = random
        self._seen: dict[bytes, bytes | None] = {}
        """What this worker last saw in a key of a chain."""

    def _key(self, number: int) -> bytes:
        random = self._random
        if random.random() < 0.5:
            return b"hot %d %d" % (number // HOT_KEY_CALLS, random.randrange(HOT_KEYS))
        return b"cold %d %d" % (number // COLD_KEY_CALLS, random.randrange(COLD_KEYS))

    def command(self) -> bytes:
        """A command whose bytes are unique in the round."""
        random, number = self._random, self._recorder.number()
        draw = random.random()
        value = b"%d" % number
        if draw < 0.12:
            key = b"%s%d" % (COUNTER_PREFIX, random.randrange(HOT_KEYS)) if draw < 0.11 else TEXT_KEY
            # The increments all differ, so that no two commands are the same.
            return encode_increment(key, number)
        if draw < 0.5:
            key = b"chain %d %d" % (number // HOT_KEY_CALLS, random.randrange(HOT_KEYS))
            return encode_compare_and_set(key, self._seen.get(key), value)
        if draw < 0.6:
            value += b" " + b"x" * random.randrange(VALUE_BYTES_MAX)
        return encode_put(self._key(number), value)

    def query(self) -> bytes:
        """A read of a key that is in use now."""
        number = self._recorder.number()
        draw = self._random.random()
        if draw < 0.15:
            return encode_get(b"%s%d" % (COUNTER_PREFIX, self._random.randrange(HOT_KEYS)))
        if draw < 0.5:
            return encode_get(b"chain %d %d" % (number // HOT_KEY_CALLS, self._random.randrange(HOT_KEYS)))
        return encode_get(self._key(number))

    def learn(self, call: Call) -> None:
        """Look at an answer: a chain goes on from what it says."""
        if call.result is None:
            return
        _, key, *_ = msgpack.unpackb(call.request)
        if key.startswith(b"chain"):
            entry = msgpack.unpackb(call.result)[-1]
            if len(self._seen) > HOT_KEYS:
                self._seen.clear()
            self._seen[key] = None if entry is None else entry[0]


class Workload:
    """Clients that call until they are stopped. Everything they do goes into `recorder`.

    Args:
        cluster: {node id: "host:port"}, as clients must be told it.
        rate: calls per second that all of them together begin, while the cluster answers.
        seed: what they ask for comes from it.
    """

    def __init__(self, cluster: Mapping[int, str], recorder: Recorder, rate: float, seed: str) -> None:
        self.recorder = recorder
        self.problems: list[str] = []
        """What went wrong in a way that no client may: an error that is no ClientError."""
        self._cluster = dict(cluster)
        self._seed = seed
        self._stop = threading.Event()
        self._blocking_client: BlockingClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        plans: list[tuple[str, Callable[[str, Random], Awaitable[None]]]] = [
            *(("plain", self._plain) for _ in range(2)),
            ("loyal", self._loyal),
            *(("hasty", self._hasty) for _ in range(2)),
            ("batches", self._batches),
            ("fleeting", self._fleeting),
            ("blocking", self._blocking),
        ]
        self._plans = plans
        self._gap_s = (len(plans) + 3) / rate  # a plain client has two workers

    def start(self) -> None:
        """Let every client begin."""
        for number, (name, plan) in enumerate(self._plans):
            who = f"{name}-{number}"
            self._tasks.append(asyncio.create_task(self._guarded(plan, who), name=who))

    async def stop(self) -> None:
        """Let every client end its last call and close."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def cancel(self) -> None:
        """End at once."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _guarded(self, plan: Callable[[str, Random], Awaitable[None]], who: str) -> None:
        try:
            await plan(who, Random(f"{self._seed} {who}"))
        except Exception as error:
            self.problems.append(f"client {who} ended with {type(error).__name__}: {error}")

    # --- the kinds of clients -----------------------------------------------------------------------------------------

    async def _plain(self, who: str, random: Random) -> None:
        await self._work_twice(Client(self._cluster, timeout=PATIENCE_S, random=random), who, random)

    async def _loyal(self, who: str, random: Random) -> None:
        # Its requests are still in the sockets of a paused leader when that wakes up as a deposed one.
        client = Client(self._cluster, timeout=PATIENCE_S, silence_timeout=PATIENCE_S, random=random)
        await self._work_twice(client, who, random)

    async def _work_twice(self, client: Client, who: str, random: Random) -> None:
        async with client:
            await asyncio.gather(*(self._work(client, f"{who}{letter}", random) for letter in "ab"))

    async def _work(self, client: Client, who: str, random: Random) -> None:
        requests = Requests(self.recorder, random)
        async for _ in self._turns(random):
            await self._call(client, who, requests, random)

    async def _hasty(self, who: str, random: Random) -> None:
        requests = Requests(self.recorder, random)
        async with Client(self._cluster, random=random) as client:
            async for _ in self._turns(random):
                patience_s = random.uniform(*HASTY_S)
                if random.random() < 0.5:
                    await self._call(client, who, requests, random, timeout=patience_s)
                else:
                    await self._call_and_cancel(client, who, requests, random, patience_s)

    async def _batches(self, who: str, random: Random) -> None:
        requests = Requests(self.recorder, random)
        async with Client(self._cluster, timeout=PATIENCE_S, random=random) as client:
            async for _ in self._turns(random, weight=sum(BATCH_COMMANDS) / 2):
                commands = [requests.command() for _ in range(random.randint(*BATCH_COMMANDS))]
                calls = [self.recorder.begin(who, command, is_query=False) for command in commands]
                try:
                    results = await client.execute_many(commands, return_exceptions=True)
                except ClientError as error:
                    # It speaks for one command only: the others may have been sent.
                    for call in calls:
                        call.give_up(f"execute_many: {type(error).__name__}: {error}")
                    continue
                now_ns = monotonic_ns()
                for call, result in zip(calls, results, strict=True):
                    if isinstance(result, ClientError):
                        call.fail(result, now_ns)
                    else:
                        call.answer(result, now_ns)

    async def _fleeting(self, who: str, random: Random) -> None:
        requests = Requests(self.recorder, random)
        while not self._stop.is_set():
            calls = random.randint(*FLEETING_CALLS)
            async with Client(self._cluster, timeout=PATIENCE_S / 2, random=random) as client:
                async for turn in self._turns(random):
                    await self._call(client, who, requests, random)
                    if turn >= calls:
                        break

    async def _blocking(self, who: str, random: Random) -> None:
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self._work_blocking(who, random)
            except BaseException as error:
                failure.append(error)

        # A thread of its own and not the loop's pool: the pool's threads are needed to wait for processes.
        thread = threading.Thread(target=work, name=f"chaos-{who}", daemon=True)
        thread.start()
        try:
            while thread.is_alive():  # noqa: ASYNC110 - a thread cannot set an event of the loop once that is closed
                await asyncio.sleep(0.05)
        finally:
            self._stop.set()
            if thread.is_alive() and self._blocking_client is not None:
                self._blocking_client.close()
        if failure:
            raise failure[0]

    def _work_blocking(self, who: str, random: Random) -> None:
        requests = Requests(self.recorder, random)
        with BlockingClient(self._cluster, timeout=PATIENCE_S) as client:
            self._blocking_client = client
            due = time.monotonic()
            while not self._stop.is_set():
                is_query = random.random() < 0.4
                request = requests.query() if is_query else requests.command()
                call = self.recorder.begin(who, request, is_query=is_query)
                try:
                    call.answer(client.query(request) if is_query else client.execute(request), monotonic_ns())
                except ClientError as error:
                    call.fail(error, monotonic_ns())
                requests.learn(call)
                due = max(due + random.uniform(0.0, 2.0) * self._gap_s, time.monotonic())
                self._stop.wait(due - time.monotonic())

    # --- one call -----------------------------------------------------------------------------------------------------

    async def _turns(self, random: Random, weight: float = 1.0):  # type: ignore[no-untyped-def]
        """Give turn after turn at this worker's share of the rate, until the load is stopped."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        for turn in itertools.count(1):
            # What an outage has delayed is not made up for: the load never bursts.
            due = max(due + random.uniform(0.0, 2.0) * self._gap_s * weight, loop.time())
            await asyncio.sleep(due - loop.time())
            if self._stop.is_set():
                return
            yield turn

    async def _call(
        self, client: Client, who: str, requests: Requests, random: Random, timeout: float | None = None
    ) -> None:
        is_query = random.random() < 0.4
        request = requests.query() if is_query else requests.command()
        call = self.recorder.begin(who, request, is_query=is_query)
        try:
            result = await (client.query if is_query else client.execute)(request, timeout=timeout)
        except ClientError as error:
            call.fail(error, monotonic_ns())
        else:
            call.answer(result, monotonic_ns())
        requests.learn(call)

    async def _call_and_cancel(
        self, client: Client, who: str, requests: Requests, random: Random, patience_s: float
    ) -> None:
        """The caller loses patience and drops the call; what was sent may take effect nevertheless."""
        request = requests.command()
        call = self.recorder.begin(who, request, is_query=False)
        try:
            async with asyncio.timeout(patience_s):
                call.answer(await client.execute(request), monotonic_ns())
        except TimeoutError:
            call.give_up("cancelled by its caller")
        except ClientError as error:
            call.fail(error, monotonic_ns())
