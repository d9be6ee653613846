"""TCP between the members, and from clients to a node: connections from hello to close.

Every connection, in both directions, begins with a HELLO. Peers keep one connection per pair, dialled by the member
with the higher id; a newer connection of the same member replaces the older one. Frames behind the hello must name the
very sender, incarnation, boot and cluster that said it.

Loss shows only as a broken connection: what a peer did not get, the core sends again. So a connection is dropped
without regret when its peer falls silent, sends garbage, or does not read what it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any, Protocol

from fastpaxos.config import Address, NodeConfig, parse_address
from fastpaxos.connection import Connection
from fastpaxos.handshake import BootLedger, HandshakeRefusedError, Hello, Identity, check_peer, check_protocol
from fastpaxos.open_files import raise_open_files
from fastpaxos_core.errors import ConfigError, FrameError
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, FrameWriter, parse_mapping

__all__ = ["Transport", "TransportHandler"]

logger = logging.getLogger(__name__)

RECEIVE_BYTES = 256 * 1024
LAST_REPLICA_TYPE = int(FrameType.LEARN)
CONTROL = int(FrameType.CONTROL)
BACKLOG = 1024
STRANGERS_EXTRA = 64
# For journal, peers, strangers, and whatever else the process has open.
FILES_RESERVED = 256
REDIAL_DELAY_MIN_S = 0.010
REDIAL_DELAY_MAX_S = 1.0
CLOSE_PATIENCE_S = 1.0
# Sweeps without a byte from a peer after which it is asked, and after which it is given up.
SILENT_SWEEPS_PING = 2
SILENT_SWEEPS_MAX = 6
WARNINGS_PER_PERIOD = 10
# What others say may be long; it is cut before it is logged or kept.
TEXT_LENGTH_MAX = 500
WARNING_PERIOD_NS = 10_000_000_000


class TransportHandler(Protocol):
    """What a Transport tells its node. Nothing here may block; an exception other than FrameError stops the node."""

    @property
    def identity(self) -> Identity: ...

    def client_hello(self) -> dict[str, Any]:
        """The map that a client is greeted with."""
        ...

    def peer_connected(self, connection: Connection, hello: Hello) -> None: ...

    def peer_disconnected(self, peer: int) -> None: ...

    def peer_refused(self, peer: int, reason: str, message: str) -> None:
        """The member `peer` does not want this node, and says why."""
        ...

    def peer_frame(self, peer: int, frame: Frame) -> None: ...

    def peer_control(self, peer: int, message: Mapping[str, Any]) -> None: ...

    def client_frame(self, connection: Connection, frame: Frame) -> None: ...

    def client_disconnected(self, connection: Connection) -> None: ...

    def failed(self, error: BaseException) -> None: ...


class RateLimitedLog:
    """Keeps strangers from filling the log: at most ten lines per ten seconds, then one that counts the rest."""

    def __init__(self) -> None:
        self._period_begin_ns = 0
        self._count = 0

    def warning(self, now_ns: int, text: str, *values: object) -> None:
        if now_ns - self._period_begin_ns >= WARNING_PERIOD_NS:
            if self._count > WARNINGS_PER_PERIOD:
                logger.warning("%d more connection problems were not logged", self._count - WARNINGS_PER_PERIOD)
            self._period_begin_ns = now_ns
            self._count = 0
        self._count += 1
        logger.log(
            logging.WARNING if self._count <= WARNINGS_PER_PERIOD else logging.DEBUG, text, *values, stacklevel=2
        )


class Transport:
    """Listens, dials the members with lower ids, and keeps at most one connection per peer.

    `start()` opens the port; `dial_forever(peer)` are the tasks to run in the node's TaskGroup; `sweep(now_ns)` is to
    be called by the node's tick; `close()` ends everything. All on one event loop.
    """

    def __init__(
        self, config: NodeConfig, handler: TransportHandler, *, random: Random, clock_ns: Callable[[], int]
    ) -> None:
        self.config = config
        self.handler = handler
        self.peer_queue_bytes_max = config.peer_queue_bytes_max
        self.connections_max = config.connections_max
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        # One for all connections: what was received is taken before the next one reads.
        self._receive_buffer = bytearray(RECEIVE_BYTES)
        self.receive_view = memoryview(self._receive_buffer)
        self.peers: dict[int, Connection] = {}
        self.clients: set[Connection] = set()
        self.address: Address | None = None
        self.refusals: dict[int, str] = {}
        """{peer: message} of the last refusal, until a connection stands. A node that cannot start shows them."""
        self._strangers: set[Connection] = set()
        self._boots = BootLedger()
        self._random = random
        self._clock_ns = clock_ns
        self._log = RateLimitedLog()
        self._server: asyncio.Server | None = None
        self._closing = False
        self._sweep_interval_ns = max(500, config.election_timeout_ms) * 1_000_000
        self._next_sweep_ns = clock_ns() + self._sweep_interval_ns
        self.writer = FrameWriter(0, 0, 0)
        self.identity_changed()

    def identity_changed(self) -> None:
        """The node was founded: what is said from now on names the cluster, and all connections start anew."""
        own = self.handler.identity
        self.writer = FrameWriter(own.node_id, own.incarnation, own.boot, own.cluster_id)
        for connection in [*self.peers.values(), *self.clients, *self._strangers]:
            connection.close()

    # Listening and dialling

    async def start(self) -> None:
        """Open the port. Raises ConfigError naming the address if that is not possible."""
        address = self.config.listen_address
        self._make_room()
        try:
            self._server = await self.loop.create_server(
                lambda: Connection(self), address.host, address.port, reuse_address=True, backlog=BACKLOG
            )
        except (OSError, UnicodeError) as error:
            raise ConfigError(_listen_problem(self.config.node_id, address, error)) from error
        bound = self._server.sockets[0].getsockname()
        self.address = Address(address.host, bound[1])
        logger.info("node %d listens on %s", self.config.node_id, self.address)

    def _make_room(self) -> None:
        """Keep clients from taking the files that the journal needs."""
        wanted = self.config.connections_max + FILES_RESERVED
        available = raise_open_files(wanted)
        if available < wanted:
            self.connections_max = max(1, available - FILES_RESERVED)
            logger.warning(
                "node %d serves at most %d clients instead of %d: this process may open only %d files (ulimit -n)",
                self.config.node_id,
                self.connections_max,
                self.config.connections_max,
                available,
            )

    def peers_to_dial(self) -> list[int]:
        """The members with lower ids; those with higher ids dial this node."""
        return [peer for peer in self.config.members if peer < self.config.node_id]

    async def dial_forever(self, peer: int) -> None:
        """Keep a connection to `peer`: dial, wait until it breaks, wait a little, dial again."""
        delay_s = REDIAL_DELAY_MIN_S
        while not self._closing:
            connection = await self._dial_once(peer)
            if connection is not None and connection.lost is not None:
                # Bounded: a silent or unfinished connection is dropped by the sweep.
                await connection.lost
                if connection.kind == "peer":
                    delay_s = REDIAL_DELAY_MIN_S
            await asyncio.sleep(delay_s * (0.5 + self._random.random()))
            delay_s = min(2 * delay_s, REDIAL_DELAY_MAX_S)

    async def _dial_once(self, peer: int) -> Connection | None:
        # The name is resolved each time, because a member may come back at another address.
        address = parse_address(self.config.cluster[peer])
        try:
            async with asyncio.timeout(self.config.handshake_timeout_ms / 1000):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self, peer), address.host, address.port
                )
        except (OSError, TimeoutError, UnicodeError) as error:
            logger.debug("node %d cannot reach node %d at %s: %r", self.config.node_id, peer, address, error)
            return None
        connection.send([self.writer.hello(self.handler.identity.hello("peer"))])
        return connection

    async def close(self) -> None:
        """Close the port and every connection; what is queued gets a moment to leave."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        connections = [*self.peers.values(), *self.clients, *self._strangers]
        for connection in connections:
            connection.close()
        lost = [connection.lost for connection in connections if connection.lost is not None]
        if lost:
            await asyncio.wait(lost, timeout=CLOSE_PATIENCE_S)
        for connection in connections:
            connection.abort()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_PATIENCE_S):
                    await self._server.wait_closed()

    @property
    def is_closing(self) -> bool:
        """`close` was called."""
        return self._closing

    def abort_all(self) -> None:
        """Break every connection at once: nothing more may be said in this node's name."""
        for connection in [*self.peers.values(), *self.clients, *self._strangers]:
            connection.abort()

    def sweep(self, now_ns: int) -> None:
        """Drop strangers who do not say hello and peers that fell silent."""
        for connection in [each for each in self._strangers if now_ns >= each.deadline_ns]:
            self.drop(connection, f"no hello within {self.config.handshake_timeout_ms} ms")
        if now_ns < self._next_sweep_ns:
            return
        self._next_sweep_ns = now_ns + self._sweep_interval_ns
        for connection in list(self.peers.values()):
            connection.silent_sweeps = 0 if connection.heard else connection.silent_sweeps + 1
            connection.heard = False
            if connection.silent_sweeps >= SILENT_SWEEPS_MAX:
                silence_ms = SILENT_SWEEPS_MAX * self._sweep_interval_ns // 1_000_000
                self.drop(connection, f"it was silent for {silence_ms} ms")
            elif connection.silent_sweeps >= SILENT_SWEEPS_PING:
                connection.send([self.writer.control({"op": "ping"})])

    # What connections report

    def opened(self, connection: Connection) -> None:
        # A few more than may stay are let in, so that they can be told why not; the others are dropped unheard.
        is_full = len(self._strangers) + len(self.clients) >= self.connections_max + STRANGERS_EXTRA
        if self._closing or (is_full and not connection.dialed_peer):
            connection.abort()
            return
        connection.deadline_ns = self._clock_ns() + self.config.handshake_timeout_ms * 1_000_000
        self._strangers.add(connection)
        _set_socket_options(connection.tcp)

    def greeted(self, connection: Connection, hello: Hello, dialed_peer: int) -> None:
        """A well-formed hello came: accept it and answer, or raise HandshakeRefusedError."""
        own = self.handler.identity
        if hello.kind == "client" and not dialed_peer:
            check_protocol(hello, own.cluster_id)
            if len(self.clients) >= self.connections_max:
                raise HandshakeRefusedError(
                    "connections",
                    f"node {own.node_id} already serves {len(self.clients)} clients, its connections_max",
                )
            self._strangers.discard(connection)
            self.clients.add(connection)
            self._begin(connection, "client", partial(self.handler.client_frame, connection))
            connection.send([self.writer.hello(self.handler.client_hello())])
            return
        check_peer(own, hello, self.config.cluster, dialed_peer)
        self._boots.check(hello)
        self._accept_peer(connection, hello, answer=not dialed_peer)

    def _accept_peer(self, connection: Connection, hello: Hello, *, answer: bool) -> None:
        peer = hello.node_id
        self._strangers.discard(connection)
        connection.peer = peer
        self.refusals.pop(peer, None)
        replaced = self.peers.get(peer)
        self.peers[peer] = connection
        if replaced is not None:
            logger.info("node %d: a newer connection of node %d replaces the older one", self.config.node_id, peer)
            replaced.abort()
        self._begin(connection, "peer", partial(self._peer_frame, connection, peer))
        if answer:
            connection.send([self.writer.hello(self.handler.identity.hello("peer"))])
        logger.debug("node %d: connected with node %d, boot %d", self.config.node_id, peer, hello.boot)
        self.handler.peer_connected(connection, hello)

    def _begin(self, connection: Connection, kind: str, on_frame: Callable[[Frame], None]) -> None:
        splitter = FrameSplitter(
            self.config.frame_head_bytes_max,
            self.config.frame_body_bytes_max,
            self.handler.identity.cluster_id or None,
            self._receive_buffer,
        )
        connection.begin_frames(kind, splitter, on_frame)

    def _peer_frame(self, connection: Connection, peer: int, frame: Frame) -> None:
        if self.peers.get(peer) is not connection:
            return  # a frame of a connection that was replaced while its bytes were being read
        if frame.type <= LAST_REPLICA_TYPE:
            self.handler.peer_frame(peer, frame)
        elif frame.type == CONTROL:
            message = parse_mapping(frame)
            op = message.get("op")
            if op == "ping":
                connection.send([self.writer.control({"op": "pong"})])
            elif op == "refused":
                self.was_refused(connection, message)
            elif op != "pong":
                self.handler.peer_control(peer, message)
        else:
            raise FrameError(f"node {peer} sent {frame!r}, which is no frame between replicas")

    def refuse(self, connection: Connection, refusal: HandshakeRefusedError) -> None:
        """Tell the other side why, and close."""
        text = "node %d refused %s: %s"
        self._log.warning(self._clock_ns(), text, self.config.node_id, connection.remote, refusal)
        if connection.hello is not None and connection.hello.node_id in self.config.cluster:
            self.refusals[connection.hello.node_id] = str(refusal)
        message = {"op": "refused", "reason": refusal.reason, "message": str(refusal)[:TEXT_LENGTH_MAX]}
        connection.send([self.writer.control(message)])
        connection.close()

    def was_refused(self, connection: Connection, message: Mapping[str, Any]) -> None:
        """The other side does not want this node."""
        peer, text = connection.dialed_peer or connection.peer, str(message.get("message"))[:TEXT_LENGTH_MAX]
        if self.refusals.get(peer) != text:
            logger.warning("node %d was refused by node %d: %s", self.config.node_id, peer, text)
        self.refusals[peer] = text
        connection.close()
        self.handler.peer_refused(peer, str(message.get("reason")), text)

    def drop(self, connection: Connection, why: str) -> None:
        """Break a connection that misbehaves."""
        name = f"node {connection.peer}" if connection.peer else connection.kind or "stranger"
        text = "node %d drops the connection of %s at %s: %s"
        self._log.warning(self._clock_ns(), text, self.config.node_id, name, connection.remote, why[:TEXT_LENGTH_MAX])
        connection.abort()

    def closed(self, connection: Connection, error: Exception | None) -> None:
        self._strangers.discard(connection)
        try:
            if connection in self.clients:
                self.clients.discard(connection)
                self.handler.client_disconnected(connection)
            elif connection.peer and self.peers.get(connection.peer) is connection:
                del self.peers[connection.peer]
                if not self._closing:
                    logger.info("node %d lost node %d: %s", self.config.node_id, connection.peer, error or "closed")
                self.handler.peer_disconnected(connection.peer)
        except Exception as problem:
            self.failed(problem)

    def failed(self, error: BaseException) -> None:
        """Something that no connection is to blame for: the node must stop."""
        self.handler.failed(error)


def _set_socket_options(transport: asyncio.Transport | None) -> None:
    raw = transport.get_extra_info("socket") if transport is not None else None
    if raw is None:
        return
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client whose machine vanished must not hold its place for ever.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _listen_problem(node_id: int, address: Address, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"node {node_id} cannot listen on {address}: the port is in use; stop the other process or change it"
    if number == errno.EADDRNOTAVAIL:
        return f"node {node_id} cannot listen on {address}: no interface here has this address; set listen"
    return f"node {node_id} cannot listen on {address}: {error}"
