"""The asyncio client: a shell around `fastpaxos.session.Session`.

One connection to the leader at a time, one flush per turn of the event loop, one sweep for all deadlines. All methods
belong to the event loop on which the client was opened; for threads there is `fastpaxos.BlockingClient`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from operator import methodcaller
from random import Random, SystemRandom
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self

from fastpaxos.answers import Completion, Results, ResultsWithErrors
from fastpaxos.client_connection import ClientConnection, call_node, open_tcp
from fastpaxos.command_queue import ClientLimits, as_bytes, as_commands, cut_commands
from fastpaxos.config import checked_cluster, parse_address, parse_cluster
from fastpaxos.errors import Busy, Closed, ConfigError, FastPaxosError, NoLeader, TooLarge
from fastpaxos.leader_choice import LeaderChoice
from fastpaxos.session import ConnectionState, Session
from fastpaxos_core.pending_block import answer_waiters
from fastpaxos_core.wire import Frame

__all__ = ["Client", "Cluster", "Connect", "timeout_to_ns"]

logger = logging.getLogger(__name__)

Cluster = Mapping[int, str] | Iterable[str] | str
Connect = Callable[[str, Callable[[], ClientConnection]], Awaitable[tuple[Any, Any]]]

NS_PER_S = 1_000_000_000
TICK_S = 0.010
TIMEOUT_MAX_S = 86_400.0
CLOSE_TIMEOUT_S = 1.0


class Client:
    """Runs commands on a cluster, exactly once each, and reads its state.

        async with fastpaxos.Client({1: "127.0.0.1:7001", 2: "127.0.0.1:7002", 3: "127.0.0.1:7003"}) as client:
            result = await client.execute(b"add 1")

    Args:
        cluster: {node id: "host:port"}, or "1=host:port,2=host:port", or addresses without ids. One reachable address
            is enough to find the leader.
        timeout: seconds after which a call without a timeout of its own fails.
        inflight_bytes_max: bytes that may be queued or unanswered; each single command is charged 64 bytes more.
        block_bytes_max, command_bytes_max, commands_per_block_max: limits of one block and one command. The nodes' own
            limits count where they are lower.
        blocks_in_flight_max: blocks that may be unanswered at a time.
        connect_timeout: seconds for one attempt to connect.
        silence_timeout: seconds after which a node that owes an answer is left for another one.
        connect: `async (address, protocol_factory) -> (transport, protocol)`; makes a connection. Default is TCP.
        random: source of the session's nonce and of jitter; by default the system's.

    Errors are those of `fastpaxos.errors`: `NotApplied` and its subclasses are safe to retry, after `OutcomeUnknown`
    the command may have been applied, `CommandError` is what the state machine raised. Cancelling a call drops the
    interest in its result; a command that was sent already may be applied nevertheless.

    Raises:
        ConfigError: an address or a number does not fit.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        timeout: float = 5.0,
        inflight_bytes_max: int = 8 << 20,
        block_bytes_max: int = 1 << 20,
        command_bytes_max: int = (1 << 20) - 4096,
        commands_per_block_max: int = 16_384,
        blocks_in_flight_max: int = 32,
        connect_timeout: float = 1.0,
        silence_timeout: float = 1.0,
        connect: Connect | None = None,
        random: Random | None = None,
    ) -> None:
        random = random if random is not None else SystemRandom()
        for name, value in (
            ("inflight_bytes_max", inflight_bytes_max),
            ("block_bytes_max", block_bytes_max),
            ("command_bytes_max", command_bytes_max),
            ("commands_per_block_max", commands_per_block_max),
            ("blocks_in_flight_max", blocks_in_flight_max),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
                raise ConfigError(f"{name} must be a whole number in 1..{(1 << 31) - 1}, not {value!r}")
        if block_bytes_max > inflight_bytes_max:
            raise ConfigError(f"block_bytes_max {block_bytes_max} exceeds inflight_bytes_max {inflight_bytes_max}")
        self.timeout_ns = timeout_to_ns(timeout, "timeout")
        self._connect_timeout = timeout_to_ns(connect_timeout, "connect_timeout") / NS_PER_S
        self._connect = connect if connect is not None else open_tcp
        self._session = Session(
            _leader_choice(cluster, random),
            random=random,
            limits=ClientLimits(block_bytes_max, command_bytes_max, commands_per_block_max, inflight_bytes_max),
            blocks_in_flight_max=blocks_in_flight_max,
            silence_timeout_ms=timeout_to_ns(silence_timeout, "silence_timeout") // 1_000_000,
            is_abandoned=methodcaller("done"),
        )
        self._queue = self._session.queue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: ClientConnection | None = None
        self._connector: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flush_scheduled = False
        self._is_closed = False
        self._changed = asyncio.Event()
        self._room_waiters: deque[tuple[asyncio.Future[None], int, int]] = deque()

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise Closed("a client is opened only once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._connector = self._loop.create_task(self._keep_connected(), name="fastpaxos-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client: wait up to one second for what is unanswered and for the session's close in the log.

        What has no answer by then fails with `Closed` if it was never sent, else with `ConnectionLost`. Never raises
        because of the cluster's state; closing twice does nothing.
        """
        if self._loop is None or self._is_closed:
            self._is_closed = True
            self._session.close()
            return
        self._is_closed = True
        self._session.close()
        self._fail_room_waiters()
        try:
            self._schedule_flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._close_session()
        finally:
            await self._shut_down()

    async def _close_session(self) -> None:
        session = self._session
        while not session.is_session_closed:
            if session.is_idle and session.state not in (ConnectionState.READY, ConnectionState.OPENING):
                return  # nobody waits, and there is no leader to tell: the cluster drops the session by age
            self._changed.clear()
            await self._changed.wait()

    async def _shut_down(self) -> None:
        self._session.abandon("the client was closed")
        self._settle()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection, connector = self._connection, self._connector
        self._connection = self._connector = None
        ending: list[asyncio.Future[None]] = []
        if connection is not None:
            connection.close()
            ending.append(connection.lost)
        if connector is not None:
            connector.cancel()
            ending.append(connector)
        try:
            if ending:
                await asyncio.wait(ending, timeout=CLOSE_TIMEOUT_S)
        finally:
            if connection is not None:
                connection.abort()

    # --- commands -----------------------------------------------------------------------------------------------------

    async def execute(self, command: bytes, timeout: float | None = None) -> bytes:
        """Replicate one command and return its result. Waits for room when too much is unanswered.

        Args:
            command: at most `command_bytes_max` bytes.
            timeout: seconds; None means the client's.
        """
        deadline_ns = monotonic_ns() + (self.timeout_ns if timeout is None else timeout_to_ns(timeout))
        if not self._room_waiters:
            try:
                future = self._submit(command, deadline_ns)
            except Busy:
                pass
            else:
                return await future
        await self._wait_for_room(len(command), deadline_ns)
        return await self._submit(command, deadline_ns)

    def submit(self, command: bytes, timeout: float | None = None) -> asyncio.Future[bytes]:
        """Hand over one command and return the future of its result. Commands of one turn of the loop share blocks.

        Raises:
            Busy: too much is queued or unanswered; await `ready_to_submit()`.
            TooLarge, Closed.
        """
        return self._submit(command, monotonic_ns() + (self.timeout_ns if timeout is None else timeout_to_ns(timeout)))

    def _submit(self, command: bytes, deadline_ns: int) -> asyncio.Future[bytes]:
        loop = self._loop
        if loop is None:
            raise _not_open()
        if type(command) is not bytes:
            command = as_bytes(command)
        future: asyncio.Future[bytes] = loop.create_future()
        self.submit_for(future, command, deadline_ns)
        return future

    def submit_for(self, waiter: Any, command: bytes, deadline_ns: int) -> None:
        """Like `submit`, for a future that the caller brings: an object with `done`, `set_result`, `set_exception`.

        `command` is a bytes object, `deadline_ns` a time of the monotonic clock.
        """
        block = self._queue.open
        if block is None or not block.add(command, waiter, deadline_ns):
            self._session.submit(command, waiter, deadline_ns)
        if not self._flush_scheduled:
            self._schedule_flush()

    def check_command_bytes(self, size: int) -> None:
        """Raise TooLarge if a command of `size` bytes does not fit."""
        self._session.check_command_bytes(size)

    def check_room(self, size: int) -> None:
        """Raise Busy if `size` more bytes cannot be submitted now."""
        self._session.check_room(size)

    @property
    def room_bytes(self) -> int:
        """Bytes that may be submitted now; not above 0 when too much is queued or unanswered."""
        return self._session.room_bytes

    async def ready_to_submit(self, command_bytes: int = 0, timeout: float | None = None) -> None:
        """Wait until a command of `command_bytes` can be submitted. Raises Busy when `timeout` passes before."""
        if self._room_waiters or not self._session.has_room(command_bytes):
            deadline_ns = monotonic_ns() + (self.timeout_ns if timeout is None else timeout_to_ns(timeout))
            await self._wait_for_room(command_bytes, deadline_ns)

    async def execute_many(
        self, commands: Iterable[bytes], timeout: float | None = None, return_exceptions: bool = False
    ) -> Results:
        """Replicate many commands in order, in as few blocks as the limits allow, and return their results in order.

        It is not atomic across blocks: when it raises, some commands may have been applied, whatever the error says
        about the one that failed, and blocks that were not sent yet are dropped. With `return_exceptions` each failed
        command has its exception among the results instead.
        """
        deadline_ns = monotonic_ns() + (self.timeout_ns if timeout is None else timeout_to_ns(timeout))
        session = self._session
        results: list[Sequence[Any]] = []
        if type(commands) is list and 0 < len(commands) <= session.limits.commands_per_block_max:
            count = len(commands)
            future = self._try_submit_list(commands, deadline_ns)
            if future is not None:
                await _collect(future, count, results, return_exceptions)
                return Results(results)
        whole, longest = as_commands(commands)
        if not whole:
            return Results([])
        await self._wait_for_limits(deadline_ns)
        session.check_command_bytes(longest)
        blocks: deque[tuple[asyncio.Future[Any], int]] = deque()
        try:
            for part, part_bytes in cut_commands(whole, session.limits):
                while blocks and not session.has_room(part_bytes):
                    await _collect(*blocks.popleft(), results, return_exceptions)
                while self._room_waiters or not session.has_room(part_bytes):
                    await self._wait_for_room(part_bytes, deadline_ns)
                blocks.append((self._submit_part(part, deadline_ns), len(part)))
            while blocks:
                await _collect(*blocks.popleft(), results, return_exceptions)
        finally:
            for future, _ in blocks:
                future.cancel()
        return Results(results)

    def _try_submit_list(self, commands: list[bytes], deadline_ns: int) -> asyncio.Future[Any] | None:
        """Submit the whole list as one block, packed before anybody can change it; None if it is not that simple."""
        if not self._session.limits_known or self._room_waiters:
            return None
        try:
            return self._submit_part(commands, deadline_ns)
        except (Busy, TooLarge, TypeError):
            return None

    def _submit_part(self, commands: list[bytes], deadline_ns: int) -> asyncio.Future[Any]:
        if self._loop is None:
            raise _not_open()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._session.submit_list(commands, future, deadline_ns)
        self._schedule_flush()
        return future

    # --- reads --------------------------------------------------------------------------------------------------------

    async def query(self, request: bytes, timeout: float | None = None) -> bytes:
        """Ask the state machine a linearizable read and return its answer. Waits for room like `execute`."""
        deadline_ns = monotonic_ns() + (self.timeout_ns if timeout is None else timeout_to_ns(timeout))
        if self._room_waiters or not self._session.has_room(len(request)):
            await self._wait_for_room(len(request), deadline_ns)
        if self._loop is None:
            raise _not_open()
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._session.query(as_bytes(request), future, deadline_ns)
        self._schedule_flush()
        return await future

    async def status(self, node: int | str, timeout: float | None = None) -> dict[str, Any]:
        """Ask one node, by id or "host:port", what it knows about itself. Opens a short connection of its own.

        Raises NoLeader never; ConnectionError, TimeoutError when the node cannot be reached, ConfigError when it is
        unknown or of another cluster.
        """
        timeout_ns = self.timeout_ns if timeout is None else timeout_to_ns(timeout)
        address = self._session.choice.members.get(node, "") if isinstance(node, int) else str(parse_address(node))
        if not address:
            raise ConfigError(f"node {node} is unknown; known are {sorted(self._session.choice.members)}")
        async with asyncio.timeout(timeout_ns / NS_PER_S):
            return await call_node(self._connect, address, {"op": "status"}, self._session.cluster_id)

    @property
    def session_id(self) -> int:
        """Id of the open session, 0 while there is none."""
        return self._session.session_id

    @property
    def leader_id(self) -> int:
        """Node that was last known to lead, 0 if none."""
        return self._session.choice.leader_id

    @property
    def cluster_id(self) -> bytes:
        """The cluster's 16-byte id, b"" before the first contact."""
        return self._session.cluster_id

    # --- what ClientConnection reports --------------------------------------------------------------------------------

    def connection_made(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._session.connected(monotonic_ns())
        self._flush()

    def frames_received(self, connection: ClientConnection, frames: list[Frame]) -> None:
        if connection is not self._connection:
            return
        session = self._session
        now_ns = monotonic_ns()
        for frame in frames:
            session.receive(frame, now_ns)
        if not connection.is_bound and session.cluster_id:
            connection.bind(session.cluster_id)
        self._settle()
        # The callers that were just answered run before the flush, so what they submit next goes with it.
        self._schedule_flush()

    def connection_lost(self, connection: ClientConnection, error: Exception | None) -> None:
        if connection is self._connection:
            self._connection = None
            self._session.disconnected(error, monotonic_ns())
            self._settle()

    # --- driving the session ------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        session = self._session
        try:
            while True:
                wait_ns = session.wait_ns(monotonic_ns())
                if wait_ns:
                    await asyncio.sleep(wait_ns / NS_PER_S)
                    continue
                await self._connect_once()
        except Exception:
            logger.exception("the client's connection task failed")
            session.abandon("the client failed")
            self._settle()
            self._fail_room_waiters()

    async def _connect_once(self) -> None:
        """Connect to where the session wants to go, and stay until that connection ends."""
        session = self._session
        assert self._loop is not None
        connection = ClientConnection(self, self._loop)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._connect(session.address, lambda: connection)
        except (OSError, TimeoutError, UnicodeError, FastPaxosError) as error:
            problem = error if str(error) else TimeoutError(f"no connection within {self._connect_timeout} s")
            if connection is self._connection:
                self.connection_lost(connection, problem)
            else:
                session.connect_failed(problem, monotonic_ns())
                self._settle()
            connection.abort()
            return
        except asyncio.CancelledError:
            connection.abort()
            raise
        # Bounded by the session's own patience: it leaves a node that is silent while it owes an answer.
        await connection.lost

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and self._loop is not None:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        connection = self._connection
        session = self._session
        if connection is not None:
            buffers = session.flush(monotonic_ns())
            if buffers:
                connection.send(buffers)
        self._settle()

    def _tick(self) -> None:
        self._timer = None
        now_ns = monotonic_ns()
        self._session.tick(now_ns)
        if self._room_waiters:
            self._sweep_room(now_ns)
        self._flush()

    def _settle(self) -> None:
        """Hand out answers, leave a connection that the session has left, keep the clock running while it matters."""
        session = self._session
        completions = session.take_completions()
        if completions:
            _resolve(completions)
        if self._connection is not None and not session.is_connected:
            connection, self._connection = self._connection, None
            connection.abort()
        if self._room_waiters:
            self._wake_room()
        self._changed.set()
        if self._timer is None and self._loop is not None and (session.needs_ticks or self._room_waiters):
            self._timer = self._loop.call_later(TICK_S, self._tick)

    # --- back-pressure ------------------------------------------------------------------------------------------------

    async def _wait_for_room(self, size: int, deadline_ns: int) -> None:
        """Return when `size` bytes may be submitted. Callers get room in the order in which they came."""
        while True:
            if self._loop is None:
                raise _not_open()
            if self._is_closed:
                raise Closed("the client is closed and takes no more work; open a new one")
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room_waiters.append((waiter, size, deadline_ns))
            self._settle()
            await waiter
            if self._session.has_room(size):
                return

    def _wake_room(self) -> None:
        waiters = self._room_waiters
        room_bytes = self._session.room_bytes
        is_empty = not self._session.pending_bytes
        while waiters:
            waiter, size, _ = waiters[0]
            if not waiter.done():
                if size > room_bytes and not is_empty:
                    return
                is_empty = False
                room_bytes -= size
                waiter.set_result(None)
            waiters.popleft()

    def _sweep_room(self, now_ns: int) -> None:
        late = [entry for entry in self._room_waiters if entry[2] <= now_ns]
        if late:
            self._room_waiters = deque(entry for entry in self._room_waiters if entry[2] > now_ns)
        for waiter, size, _ in late:
            if not waiter.done():
                waiter.set_exception(
                    Busy(
                        f"no room for {size} bytes before the deadline: {self._session.pending_bytes} are queued or "
                        f"unanswered; {self._session.choice.describe_errors()}"
                    )
                )

    def _fail_room_waiters(self) -> None:
        waiters, self._room_waiters = self._room_waiters, deque()
        for waiter, _, _ in waiters:
            if not waiter.done():
                waiter.set_exception(Closed("the client was closed before there was room for the call"))

    async def _wait_for_limits(self, deadline_ns: int) -> None:
        """Return when a node has told its limits. Raises NoLeader, ConfigError, Closed."""
        session = self._session
        if session.limits_known:
            return
        if self._loop is None:
            raise _not_open()
        left_s = max(0.0, (deadline_ns - monotonic_ns()) / NS_PER_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                while not (session.limits_known or session.unusable or self._is_closed):
                    self._changed.clear()
                    await self._changed.wait()
        if session.limits_known:
            return
        if self._is_closed:
            raise Closed("the client was closed before it had reached a node")
        if session.unusable:
            raise ConfigError(session.unusable)
        raise NoLeader(
            f"no node could be reached before the deadline, nothing was sent; {session.choice.describe_errors()}"
        )


def _resolve(completions: list[Completion]) -> None:
    for waiters, results, has_errors in completions:
        if has_errors:
            for waiter, result in zip(waiters, results, strict=True):
                if waiter is not None and not waiter.done():
                    if isinstance(result, Exception):
                        waiter.set_exception(result)
                    else:
                        waiter.set_result(result)
        else:
            answer_waiters(waiters, results)


async def _collect(
    future: asyncio.Future[Sequence[Any]], count: int, parts: list[Sequence[Any]], return_exceptions: bool
) -> None:
    """Append the results of one block to `parts`."""
    try:
        values = await future
    except FastPaxosError as error:
        if not return_exceptions:
            raise
        parts.append([error] * count)
        return
    if not return_exceptions and isinstance(values, ResultsWithErrors):
        raise next(value for value in values if isinstance(value, Exception))
    parts.append(values)


def timeout_to_ns(seconds: float, name: str = "timeout") -> int:
    """Seconds as nanoseconds. Raises ValueError for what is no sensible timeout."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= TIMEOUT_MAX_S:
        raise ValueError(f"{name} must be a number of seconds above 0 and at most {TIMEOUT_MAX_S:.0f}, not {seconds!r}")
    return math.ceil(seconds * NS_PER_S)


def _not_open() -> Closed:
    return Closed("the client is not open; use it as `async with Client(...) as client`")


def _leader_choice(cluster: Cluster, random: Random) -> LeaderChoice:
    if isinstance(cluster, Mapping):
        return LeaderChoice(checked_cluster(cluster), random=random)
    parts = cluster.split(",") if isinstance(cluster, str) else [*cluster]
    parts = [part.strip() for part in parts if part.strip()]
    if not parts:
        raise ConfigError("the cluster names no address; give for example 1=127.0.0.1:7001,2=127.0.0.1:7002")
    if any("=" in part for part in parts):
        return LeaderChoice(parse_cluster(",".join(parts)), random=random)
    return LeaderChoice({}, [str(parse_address(part)) for part in parts], random=random)
