"""Clusters of real processes under load, for tests that kill, stop and separate them.

    async with running(tmp_path) as scenario:
        ...                         # what happens to the cluster
        await scenario.progress()   # every session of the load gets new answers again

Leaving `running` without an error ends the load, waits until all replicas have applied the same slots, stops them,
and judges every answer of the run by what stands in their journals.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from time import monotonic_ns
from typing import Any

from fastpaxos import Client
from fastpaxos.cli.status import Statuses, describe, is_settled, leader_of, read_statuses
from fastpaxos.client_connection import ClientConnection, open_tcp
from fastpaxos.testing import LogModel
from fastpaxos.testing.chaos.processes import FaultCluster
from fastpaxos.testing.fault_proxy import FaultNetwork
from integration.history_check import CallHistory, ReadCall, WriteCall, check_replicas_agree, read_log

PATIENCE_S = 15.0
SCENARIO_TIMEOUT_S = 50.0
# A call is given more time than any test waits, so that no call of the load may fail.
CALL_TIMEOUT_S = 60.0
STATUS_TIMEOUT_S = 0.5
POLL_INTERVAL_S = 0.01
BLOCK_COMMANDS = 16
PROGRESS_CALLS = 10
PAUSE_S = 0.002
# More than two election timeouts: whoever wants to campaign because of a silence has tried.
SILENCE_MS = 1_000


class Worker:
    """One task of the load: the same kind of call again and again."""

    def __init__(
        self, name: str, client: Client, call: Callable[[Client, str], Awaitable[WriteCall | ReadCall]]
    ) -> None:
        self.name = name
        self.invoked_ns: list[int] = []
        """When each call began that has an answer; ascending."""
        self._client = client
        self._call = call

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            call = await self._call(self._client, self.name)
            if call.error is not None:
                raise call.error
            self.invoked_ns.append(call.invoked_ns)
            # A full load would only take the processors away from replicas that are starting.
            await asyncio.sleep(PAUSE_S)


class Load:
    """Sessions that write and read at once, each call soon after the answer to the one before.

    One session writes single commands, one writes blocks, one has four calls in flight, and one only reads. No call
    may fail: a client outlives every fault that leaves, or brings back, a majority.
    """

    def __init__(self, clients: list[Client], history: CallHistory) -> None:
        single, blocks, pipelined, reading = clients
        self.workers = [
            Worker("single", single, history.write),
            Worker("blocks", blocks, lambda client, who: history.write(client, who, BLOCK_COMMANDS)),
            *(Worker(f"pipelined-{number}", pipelined, history.write) for number in range(4)),
            Worker("reading", reading, history.read),
            Worker("reads between writes", single, history.read),
        ]
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(worker.run(self._stop), name=worker.name) for worker in self.workers]

    def check(self) -> None:
        """Raise what ended a worker, if something did."""
        for task in self._tasks:
            if task.done() and not self._stop.is_set():
                task.result()

    def waiting_since(self, mark_ns: int) -> list[str]:
        """The workers that have too few answers to calls that began after `mark_ns`."""
        return [
            worker.name
            for worker in self.workers
            if len(worker.invoked_ns) - bisect_left(worker.invoked_ns, mark_ns) < PROGRESS_CALLS
        ]

    async def stop(self) -> None:
        """Let every worker end its last call."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class PinnedClient:
    """A client that reaches one replica only, until it is released; its calls may take as long as they like."""

    def __init__(self, scenario: Scenario, node_id: int) -> None:
        self._history = scenario.history
        self._address: str | None = scenario.cluster.cluster[node_id]
        self._tasks: list[asyncio.Task[WriteCall | ReadCall]] = []
        self.client = Client(
            scenario.cluster.cluster, timeout=CALL_TIMEOUT_S, silence_timeout=CALL_TIMEOUT_S, connect=self._connect
        )

    async def _connect(self, address: str, factory: Callable[[], ClientConnection]) -> tuple[Any, Any]:
        if self._address not in (None, address):
            raise ConnectionRefusedError(f"this client goes to {self._address} only")
        return await open_tcp(address, factory)

    def release(self) -> None:
        """From now on the client may go to any replica."""
        self._address = None

    def ask(self) -> None:
        """Send a write and a read, and do not wait for the answers."""
        self._tasks += [
            asyncio.create_task(self._history.write(self.client, "pinned")),
            asyncio.create_task(self._history.read(self.client, "pinned")),
        ]

    def check_unanswered(self) -> None:
        """Nobody may have answered anything: the one replica that was asked had no quorum."""
        answered = [task.result() for task in self._tasks if task.done()]
        assert not answered, f"a replica without a quorum answered {answered}"

    async def answers(self) -> list[WriteCall | ReadCall]:
        """Wait for all answers, none of which may be an error: the session's order and place survive the move."""
        calls = await asyncio.gather(*self._tasks)
        assert not [call.error for call in calls if call.error is not None]
        return calls


class Scenario:
    """One cluster, its load and its history. Made by `running`."""

    def __init__(self, cluster: FaultCluster, monitor: Client, load: Load, history: CallHistory) -> None:
        self.cluster = cluster
        self.history = history
        self.load = load
        self.steps = ["the cluster starts"]
        """What the test did so far, for its failure."""
        self._monitor = monitor

    @property
    def members(self) -> list[int]:
        """All node ids."""
        return list(self.cluster.cluster)

    @property
    def network(self) -> FaultNetwork:
        """The proxies between the replicas."""
        assert self.cluster.network is not None, "this scenario has no proxies"
        return self.cluster.network

    def step(self, text: str) -> None:
        """Note what the test does now."""
        self.steps.append(text)

    def others(self, *node_ids: int) -> list[int]:
        """All members but these."""
        return [member for member in self.members if member not in node_ids]

    async def statuses(self, node_ids: Iterable[int] | None = None) -> Statuses:
        """Ask replicas, by default all, what they know."""
        asked = self.cluster.cluster
        if node_ids is not None:
            asked = {node_id: asked[node_id] for node_id in node_ids}
        return await read_statuses(self._monitor, asked, STATUS_TIMEOUT_S)

    async def until(
        self, condition: Callable[[Statuses], bool], what: str, node_ids: Iterable[int] | None = None
    ) -> Statuses:
        """Poll the statuses of replicas until `condition` holds for them. Fails when a replica or the load died."""
        seen: Statuses = []
        node_ids = list(node_ids) if node_ids is not None else self.members
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    seen = await self.statuses(node_ids)
                    self.check_alive()
                    if condition(seen):
                        return seen
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError:
            last = "; ".join(map(describe, seen))
            raise AssertionError(f"{what} did not happen within {PATIENCE_S:g} s; last seen: {last}") from None

    def check_alive(self) -> None:
        """Raise if a replica ended that nobody killed, or a call of the load failed."""
        self.cluster.check_running()
        self.load.check()

    async def leader(self, node_ids: Iterable[int] | None = None) -> int:
        """Wait until one of the replicas, by default any, leads and is ready; return its id."""
        statuses = await self.until(lambda seen: leader_of(seen) is not None, "the election of a leader", node_ids)
        leader = leader_of(statuses)
        assert leader is not None
        return leader

    async def progress(self) -> None:
        """Wait until every worker of the load has answers to some calls that began after now."""
        mark_ns = monotonic_ns()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self.load.waiting_since(mark_ns):
                    self.check_alive()
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError:
            waiting = self.load.waiting_since(mark_ns)
            last = "; ".join(map(describe, await self.statuses()))
            raise AssertionError(f"no new answers within {PATIENCE_S:g} s for {waiting}; last seen: {last}") from None

    async def silence(self, listener: int, speaker: int, least_ms: int = SILENCE_MS) -> Statuses:
        """Wait until `listener` has not heard `speaker` for so long that it must have drawn its conclusions.

        Returns the status of the listener.
        """

        def is_silent(seen: Statuses) -> bool:
            silent = {peer["node_id"]: peer.get("silent_ms", 0) for peer in seen[0].get("peers") or ()}
            return bool(silent.get(speaker, 0) >= least_ms)

        return await self.until(is_silent, f"the silence of replica {speaker} at replica {listener}", [listener])

    async def caught_up(self) -> None:
        """Wait until every replica has applied what any of them has committed by now."""
        target = max(entry["commit_index"] or 0 for entry in await self.statuses())
        await self.until(
            lambda seen: all((entry["applied_index"] or 0) >= target for entry in seen),
            f"catching up to slot {target}",
        )

    @contextlib.asynccontextmanager
    async def pinned(self, node_id: int) -> AsyncIterator[PinnedClient]:
        """A client with a connection and an open session at replica `node_id`, which must lead."""
        pinned = PinnedClient(self, node_id)
        async with pinned.client:
            first = await self.history.write(pinned.client, "pinned")
            assert first.error is None
            yield pinned

    async def settle(self) -> Statuses:
        """End the load and wait until all replicas have applied the same slots and have the same digest."""
        await self.load.stop()
        statuses = await self.until(is_settled, "the agreement of all replicas")
        assert len({entry["digest"] for entry in statuses}) == 1, statuses
        return statuses

    async def verify(self) -> LogModel:
        """Settle, stop all replicas, and judge the history by their journals; return the log."""
        statuses = await self.settle()
        codes = await asyncio.to_thread(self.cluster.stop)
        assert set(codes.values()) == {0}, f"exit codes {codes}"
        logs = {entry["id"]: read_log(self.cluster.data_dir(entry["id"]), entry["applied_index"]) for entry in statuses}
        log = check_replicas_agree(logs, {entry["id"]: entry["digest"] for entry in statuses})
        self.history.check(log)
        return log


@contextlib.asynccontextmanager
async def running(folder: Path, replicas: int = 3, *, proxies: bool = False) -> AsyncIterator[Scenario]:
    """A cluster under load in `folder`; with `proxies`, its members reach each other through a FaultNetwork only."""
    cluster = FaultCluster(folder, replicas)
    history = CallHistory()
    steps: list[str] = []
    try:
        async with asyncio.timeout(SCENARIO_TIMEOUT_S), contextlib.AsyncExitStack() as stack:
            if proxies:
                cluster.network = await stack.enter_async_context(FaultNetwork(cluster.cluster))
            stack.enter_context(cluster)
            clients = [Client(cluster.cluster, timeout=CALL_TIMEOUT_S) for _ in range(5)]
            for client in clients:
                await stack.enter_async_context(client)
            load = Load(clients[1:], history)
            stack.push_async_callback(load.cancel)
            scenario = Scenario(cluster, clients[0], load, history)
            steps = scenario.steps
            load.start()
            await scenario.progress()
            yield scenario
            scenario.step("the load ends and the journals are read")
            await scenario.verify()
    except Exception as error:
        error.add_note("\n".join(["steps of the test:", *steps, cluster.logs()]))
        raise
