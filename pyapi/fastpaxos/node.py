"""`Node`: one replica of a cluster on an asyncio loop, from opening its data directory to closing it.

    config = fastpaxos.NodeConfig(node_id=1, cluster=cluster, data_dir="data/1")
    async with fastpaxos.Node(config, Counter()) as node:
        await node.wait_closed()

The parts: `storage` (directory and journal), `founding_driver` (who are the members), `transport` (connections),
`switchboard` (what comes in), `driver` (the one loop that carries out what the core owes), `service` (clients).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Self, TypeVar

from fastpaxos.client import Client
from fastpaxos.client_connection import ClientConnection, open_tcp
from fastpaxos.config import Address, NodeConfig, parse_address
from fastpaxos.connection import Connection
from fastpaxos.driver import Driver
from fastpaxos.errors import Closed
from fastpaxos.founding_driver import FoundingDriver
from fastpaxos.handshake import Identity
from fastpaxos.local import connect_locally
from fastpaxos.service import ClientService
from fastpaxos.statemachine import StateMachine
from fastpaxos.status import node_status
from fastpaxos.storage import Storage
from fastpaxos.switchboard import Switchboard
from fastpaxos.transport import Transport
from fastpaxos_core.founding import Founding, FoundingRecord
from fastpaxos_core.replica import Replica
from fastpaxos_core.wire import FrameWriter

__all__ = ["Node"]

logger = logging.getLogger(__name__)

TICK_S = 0.010
NS_PER_MS = 1_000_000
READ_THREADS = 2

Result = TypeVar("Result")


class Node:
    """One replica. Use it as `async with Node(config, state_machine) as node`, on any asyncio loop.

    Entering returns when the directory is open, the journal is read and the port is open; founding and elections go on
    in the background, and clients wait for them. A node that fails (a failed sync, a broken invariant, an error of
    this process in the state machine) stops at once: its connections close, and `wait_closed` and the end of the
    `async with` raise what happened. It never goes on after that.

    Args:
        config: see `NodeConfig`.
        state_machine: a fresh one; the node replays the log into it and calls it on its event loop only.

    Raises:
        ConfigError: (on entering) the directory, the address or the settings do not fit.
        CorruptionError: (on entering) the directory's data cannot be trusted.
    """

    def __init__(self, config: NodeConfig, state_machine: StateMachine) -> None:
        if not isinstance(state_machine, StateMachine):
            raise TypeError(f"state_machine must be a fastpaxos.StateMachine, not {type(state_machine).__name__}")
        self.config = config
        self.state_machine = state_machine
        self._random: Random = SystemRandom()
        self._run_number = self._random.getrandbits(64)
        self._runner: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._storage: Storage | None = None
        self._identity = Identity(config.node_id, 0, 0, config.durability)
        self._transport: Transport | None = None
        self._replica: Replica | None = None
        self._driver: Driver | None = None
        self._service: ClientService | None = None
        self._tick_timer: asyncio.TimerHandle | None = None

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
        if error is None and self._error is not None:
            raise self._error

    async def start(self) -> None:
        """Open directory and port. Call it once; `async with` does."""
        if self._runner is not None:
            raise Closed("a node is started only once; make a new one")
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._stopping = loop.create_future()
        self._runner = loop.create_task(self._run(), name=f"fastpaxos-node-{self.config.node_id}")
        try:
            await asyncio.wait((self._runner, self._started), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if self._runner.done():
            self._runner.result()
            raise Closed(f"node {self.config.node_id} was closed while it started")

    async def aclose(self) -> None:
        """Stop cleanly: hand over leadership, finish what is being written, close everything. May be called twice.

        Raises nothing because of how the node ended; `wait_closed` does.
        """
        runner = self._runner
        if runner is None:
            return
        self._request_stop()
        while not runner.done():
            # The runner's own steps are bounded. If the caller is cancelled, the closing still comes to its end.
            await asyncio.wait((runner,))

    async def wait_closed(self) -> None:
        """Return when the node was closed; raise what stopped it if it stopped by itself."""
        if self._runner is None:
            raise Closed("the node was not started")
        await asyncio.wait((self._runner,))
        if self._error is not None:
            raise self._error

    def _request_stop(self) -> None:
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """Something happened after which this node must not go on."""
        if self._error is None:
            self._error = error
            logger.critical("node %d stops: %s: %s", self.config.node_id, type(error).__name__, error, exc_info=error)
            if self._transport is not None:
                self._transport.abort_all()
        if self._driver is not None:
            self._driver.stop()
        self._request_stop()

    # The runner: one task from start to end

    async def _run(self) -> None:
        config = self.config
        try:
            storage = await _in_thread(
                partial(
                    Storage.open,
                    config.data_dir,
                    node_id=config.node_id,
                    durability=config.durability,
                    segment_bytes=config.segment_bytes,
                ),
                undo=Storage.close,
            )
            self._storage = storage
            try:
                await self._serve(storage)
            finally:
                # On the loop, because it takes the writer's descriptor off it; waits for one write at most.
                storage.close(self._error is None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = self._error or error
            if self._started is not None and not self._started.done():
                raise  # `start` tells
        logger.info("node %d is closed", config.node_id)

    async def _serve(self, storage: Storage) -> None:
        config = self.config
        record = storage.founding
        self._set_identity(storage, record)
        founding = Founding(
            node_id=config.node_id,
            incarnation=storage.identity.incarnation,
            members=config.members,
            phase1_quorum=config.phase1_size,
            phase2_quorum=config.phase2_size,
            durability=config.durability,
            sessions_max=config.sessions_max,
            result_bytes_per_session_max=config.result_bytes_per_session_max,
            record=record,
        )
        service = ClientService(
            config, self.state_machine, status=self.status, changed=self._say_not_ready, clock_ns=time.monotonic_ns
        )
        self._service = service
        service.writer = self._make_writer()
        founding_driver = FoundingDriver(
            founding, make_control=lambda message: service.writer.control(message), random_bytes=os.urandom
        )
        switchboard = Switchboard(
            config,
            self._identity,
            service,
            founding_driver,
            fail=self._fail,
            clock_ns=time.monotonic_ns,
            wall_ns=time.time_ns,
        )
        transport = Transport(config, switchboard, random=self._random, clock_ns=time.monotonic_ns)
        switchboard.transport = transport
        read_executor = ThreadPoolExecutor(READ_THREADS, thread_name_prefix=f"fastpaxos-read-{config.node_id}")
        begin = partial(self._begin, storage, switchboard, service, transport, read_executor)
        try:
            if record is not None:
                # Peers meet this node when it can take part, not while it is still reading its journal.
                await begin(record)
            self._transport = transport
            await transport.start()
            self._schedule_tick(switchboard)
            assert self._started is not None
            self._started.set_result(None)
            await self._serve_until_stopped(transport, founding_driver, begin, is_founded=record is not None)
            if self._error is None:
                switchboard.resign()
        finally:
            if self._tick_timer is not None:
                self._tick_timer.cancel()
            if self._driver is not None:
                self._driver.stop()
            await transport.close()
            read_executor.shutdown(wait=False, cancel_futures=True)

    async def _serve_until_stopped(
        self, transport: Transport, founding_driver: FoundingDriver, begin: Any, *, is_founded: bool
    ) -> None:
        assert self._stopping is not None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._guard(transport.dial_forever(peer))) for peer in transport.peers_to_dial()]
            if not is_founded:
                tasks.append(group.create_task(self._guard(self._found(founding_driver, begin))))
            await asyncio.wait((self._stopping,))
            for task in tasks:
                task.cancel()

    async def _guard(self, work: Any) -> None:
        """A task of the node may not die unnoticed."""
        try:
            await work
        except Exception as error:
            self._fail(error)

    async def _found(self, founding_driver: FoundingDriver, begin: Any) -> None:
        """Wait until the members agree on the record, store it, and take part."""
        # Unbounded on purpose: a cluster is founded when its last member comes.
        record = await asyncio.wrap_future(founding_driver.decided)
        await begin(record)

    async def _begin(
        self,
        storage: Storage,
        switchboard: Switchboard,
        service: ClientService,
        transport: Transport,
        read_executor: ThreadPoolExecutor,
        record: FoundingRecord,
    ) -> None:
        """Everything durable is there or is made now: the record first, then the journal; then take part."""
        config = self.config
        await _in_thread(partial(storage.found, record))
        started_ns = time.monotonic_ns()
        journal, recovery = await _in_thread(storage.open_journal)
        storage.start(asyncio.get_running_loop(), self._fail)
        replica = Replica(
            node_id=config.node_id,
            boot=storage.identity.boot,
            incarnation=storage.identity.incarnation,
            cluster_id=record.cluster_id,
            members=config.members,
            journal=journal,
            recovery=recovery,
            phase1_quorum=record.phase1_quorum,
            phase2_quorum=record.phase2_quorum,
            window_slots=config.window_slots,
            ring_slots=config.ring_slots,
            window_bytes=config.window_bytes,
            log_memory_bytes=config.log_memory_bytes,
            block_bytes_max=config.block_bytes_max,
            commands_per_block_max=config.commands_per_block_max,
            sessions_max=record.sessions_max,
            result_bytes_per_session_max=record.result_bytes_per_session_max,
            heartbeat_interval_ns=config.heartbeat_interval_ms * NS_PER_MS,
            resend_timeout_ns=config.resend_timeout_ms * NS_PER_MS,
            fetch_timeout_ns=config.fetch_timeout_ms * NS_PER_MS,
        )
        logger.info(
            "node %d, boot %d: journal of %d bytes read in %d ms, committed up to slot %d%s",
            config.node_id,
            storage.identity.boot,
            storage.journal_bytes,
            (time.monotonic_ns() - started_ns) // NS_PER_MS,
            recovery.commit_index,
            f"; unreadable above that: {recovery.unknown}" if recovery.unknown else "",
        )
        if not replica.voting:
            logger.warning(
                "node %d: the end of the journal is corrupt, so promises may be lost: it follows and applies, and does "
                "not vote any more; replace it",
                config.node_id,
            )
        self._driver = Driver(
            replica,
            storage,
            self.state_machine,
            service,
            transport.peers,
            apply_slice_ms=config.apply_slice_ms,
            loop=asyncio.get_running_loop(),
            read_executor=read_executor,
            clock_ns=time.monotonic_ns,
            failed=self._fail,
        )
        self._replica = replica
        self._set_identity(storage, record)
        switchboard.identity = self._identity
        switchboard.founded(record)
        service.writer = self._make_writer()
        switchboard.begin(replica, self._driver, self._random)
        transport.identity_changed()

    def _set_identity(self, storage: Storage, record: FoundingRecord | None) -> None:
        identity = storage.identity
        self._identity = Identity(
            identity.node_id,
            identity.boot,
            identity.incarnation,
            identity.durability,
            record.cluster_id if record is not None else b"",
            record.digest if record is not None else b"",
            dict(record.members) if record is not None else {},
            self._run_number,
        )

    def _make_writer(self) -> FrameWriter:
        own = self._identity
        return FrameWriter(own.node_id, own.incarnation, own.boot, own.cluster_id)

    def _schedule_tick(self, switchboard: Switchboard) -> None:
        loop = asyncio.get_running_loop()

        def tick() -> None:
            if self._error is not None or (self._stopping is not None and self._stopping.done()):
                return
            self._tick_timer = loop.call_later(TICK_S, tick)
            try:
                switchboard.tick()
            except Exception as error:
                self._fail(error)

        self._tick_timer = loop.call_later(TICK_S, tick)

    def _say_not_ready(self) -> None:
        """Clients asked for something before founding: there is nothing to drive, but they must be answered."""
        if self._service is not None:
            asyncio.get_running_loop().call_soon(self._service.flush)

    # For users

    @property
    def address(self) -> Address | None:
        """Where this node listens, None while it does not."""
        return self._transport.address if self._transport is not None else None

    @property
    def error(self) -> BaseException | None:
        """What stopped this node, None while it runs or if it was closed."""
        return self._error

    def status(self) -> dict[str, Any]:
        """What this node knows about itself; the keys are in docs/operations.md."""
        return node_status(
            self.config,
            self._identity,
            self.state_machine,
            replica=self._replica,
            driver=self._driver,
            transport=self._transport,
            storage=self._storage,
            now_ns=time.monotonic_ns(),
        )

    def client(self, **options: Any) -> Client:
        """A client of this very process, to be used with `async with` on the node's loop; options as for `Client`.

        While this node leads, nothing goes over TCP; else the client follows the leader as any other client does.
        """
        return Client(dict(self.config.cluster), connect=self._connect_client, **options)

    async def _connect_client(self, address: str, protocol_factory: Callable[[], ClientConnection]) -> tuple[Any, Any]:
        """Connect a client in this process: back to back if it wants this node, else over TCP."""
        transport = self._transport
        is_own = parse_address(address) == parse_address(self.config.cluster[self.config.node_id])
        if not is_own or transport is None:
            return await open_tcp(address, protocol_factory)
        if transport.is_closing:
            raise ConnectionRefusedError(f"node {self.config.node_id} is closing")
        protocol = protocol_factory()
        return connect_locally(asyncio.get_running_loop(), protocol, Connection(transport)), protocol


async def _in_thread(work: Callable[[], Result], undo: Callable[[Result], object] | None = None) -> Result:
    """Run blocking work in a thread. If this is cancelled it waits for the work all the same, because two threads must
    not work on one directory, and takes back what it did with `undo`."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait((future,))
        if undo is not None and future.exception() is None:
            undo(future.result())
        raise
