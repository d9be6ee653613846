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
from random import Random
from typing import Any, Protocol, cast

from fastpaxos.config import Address, NodeConfig, parse_address
from fastpaxos.handshake import (
    NO_CLUSTER,
    HandshakeRefusedError,
    Hello,
    Identity,
    check_hello,
    check_peer,
    check_protocol,
)
from fastpaxos_core.errors import ConfigError, FrameError
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, FrameWriter, parse_mapping

__all__ = ["Connection", "Transport", "TransportHandler"]

logger = logging.getLogger(__name__)

HELLO_HEAD_BYTES_MAX = 64 * 1024
FRAME_HEADER_BYTES = 64
LENGTHS_END = 20  # where a frame header has told both of its lengths
RECEIVE_BYTES = 256 * 1024
BACKLOG = 1024
# Accepted connections that have not said hello yet; beyond it new ones are dropped unheard.
STRANGERS_MAX = 256
REDIAL_DELAY_MIN_S = 0.010
REDIAL_DELAY_MAX_S = 1.0
CLOSE_PATIENCE_S = 1.0
# Sweeps without a byte from a peer after which it is asked, and after which it is given up.
SILENT_SWEEPS_PING = 2
SILENT_SWEEPS_MAX = 6
WARNINGS_PER_PERIOD = 10
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


class Connection(asyncio.BufferedProtocol):
    """One TCP connection, from the first byte to the last.

    Ownership: has its splitter; lends the transport's one receive buffer to the loop until the connection is known to
    be a peer's, because thousands of idle clients must not hold a buffer each.
    """

    __slots__ = (
        "_early",
        "_early_fed",
        "_frame_identity",
        "_hello_splitter",
        "_is_held",
        "_on_frame",
        "_owner",
        "_splitter",
        "closed",
        "deadline_ns",
        "dialed_peer",
        "heard",
        "hello",
        "inflight",
        "inflight_bytes",
        "is_paused",
        "kind",
        "lost",
        "peer",
        "remote",
        "silent_sweeps",
        "tcp",
    )  # fmt: skip

    def __init__(self, owner: Transport, dialed_peer: int = 0) -> None:
        self._owner = owner
        self.dialed_peer = dialed_peer
        self._early: bytearray | None = bytearray()
        self._early_fed = 0
        self._hello_splitter: FrameSplitter | None = FrameSplitter(HELLO_HEAD_BYTES_MAX, 0)
        self._splitter: FrameSplitter | None = None
        self._frame_identity = (0, 0, 0, NO_CLUSTER)
        self._on_frame: Callable[[Frame], None] | None = None
        self.tcp: asyncio.Transport | None = None
        self.kind = ""
        """ "" before the hello, then "client" or "peer"."""
        self.peer = 0
        self.hello: Hello | None = None
        self.remote = "?"
        self.deadline_ns = 0
        self.heard = False
        self.silent_sweeps = 0
        self.is_paused = False
        self.closed = False
        self.inflight: dict[bytes, int] = {}
        self.inflight_bytes = 0
        self._is_held = False
        self.lost: asyncio.Future[None] | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.tcp = cast("asyncio.Transport", transport)
        self.remote = _remote_name(transport)
        self.lost = self._owner.loop.create_future()
        self._owner.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.kind == "peer" and self._splitter is not None:
            return self._splitter.get_buffer(sizehint)
        return self._owner.receive_view

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = True
        splitter = self._splitter
        try:
            if splitter is None:
                self._take_early(self._owner.receive_view[:nbytes])
            elif self.kind == "peer":
                self._dispatch(splitter.buffer_updated(nbytes))
            else:
                self._dispatch(splitter.feed(self._owner.receive_view[:nbytes]))
        except FrameError as error:
            self._owner.drop(self, f"{error}")
        except HandshakeRefusedError as refusal:
            self._owner.refuse(self, refusal)
        except BaseException as error:
            self._owner.handler.failed(error)
            if not isinstance(error, Exception):
                raise

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.is_paused = True
        if self.kind != "peer":
            # A client that does not read its answers may not ask for more.
            self._set_reading()

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.kind != "peer":
            self._set_reading()

    def pause(self) -> None:
        """Take nothing from this client until `resume`: the node has enough to do."""
        self._is_held = True
        self._set_reading()

    def resume(self) -> None:
        self._is_held = False
        self._set_reading()

    def _set_reading(self) -> None:
        tcp = self.tcp
        if tcp is None or tcp.is_closing():
            return
        wanted = not (self.is_paused or self._is_held)
        if wanted != tcp.is_reading():
            (tcp.resume_reading if wanted else tcp.pause_reading)()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._owner.closed(self, error)
        if self.lost is not None and not self.lost.done():
            self.lost.set_result(None)

    # the node's side

    def send(self, buffers: list[bytes]) -> None:
        """Queue whole frames. Does nothing on a closed connection; drops a peer that does not read."""
        tcp = self.tcp
        if self.closed or tcp is None or tcp.is_closing():
            return
        if len(buffers) == 1:
            tcp.write(buffers[0])
        else:
            tcp.writelines(buffers)
        if self.is_paused and self.kind == "peer":
            waiting_bytes = tcp.get_write_buffer_size()
            if waiting_bytes > self._owner.peer_queue_bytes_max:
                self._owner.drop(self, f"it does not read: {waiting_bytes} bytes wait to be sent")

    def close(self) -> None:
        """Send what is queued, then close."""
        if self.tcp is not None and not self.closed:
            self.tcp.close()

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        if self.tcp is not None and not self.closed:
            self.tcp.abort()

    # hello

    def _take_early(self, data: memoryview) -> None:
        """Before the hello: judge it with small limits, and leave what stands behind it to the real splitter."""
        early, splitter = self._early, self._hello_splitter
        if early is None or splitter is None:
            return  # refused, and closing
        early += data
        frames: list[Frame] = []
        if self._early_fed < LENGTHS_END:
            frames = splitter.feed(bytes(early[self._early_fed : LENGTHS_END]))
            self._early_fed = min(len(early), LENGTHS_END)
        if self._early_fed < LENGTHS_END:
            return
        frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(early[12:16], "little")
        frames += splitter.feed(bytes(early[self._early_fed : frame_bytes]))
        self._early_fed = min(len(early), frame_bytes)
        if not frames:
            return
        rest = bytes(early[frame_bytes:])
        self._early = self._hello_splitter = None
        self._take_hello(frames[0])
        if rest and self._splitter is not None:
            self._dispatch(self._splitter.feed(rest))

    def _take_hello(self, frame: Frame) -> None:
        if frame.type == FrameType.CONTROL and self.dialed_peer:
            message = parse_mapping(frame)
            if message.get("op") == "refused":
                self._owner.was_refused(self, message)
                return
        if frame.type != FrameType.HELLO:
            raise FrameError(f"the first frame is {frame!r}, not a hello")
        hello = check_hello(parse_mapping(frame))
        named = (frame.sender, frame.incarnation, frame.boot)
        if named != (hello.node_id, hello.incarnation, hello.boot):
            raise FrameError(f"the hello of node {hello.node_id} came in a frame of another sender: {frame!r}")
        self.hello = hello
        self._frame_identity = (*named, hello.cluster_id or NO_CLUSTER)
        self._owner.greeted(self, hello, self.dialed_peer)

    def begin_frames(self, kind: str, splitter: FrameSplitter, on_frame: Callable[[Frame], None]) -> None:
        """The hello was accepted: from now on frames go to `on_frame`."""
        self.kind = kind
        self._splitter = splitter
        self._on_frame = on_frame

    def _dispatch(self, frames: list[Frame]) -> None:
        on_frame = self._on_frame
        sender, incarnation, boot, cluster_id = self._frame_identity
        is_peer = self.kind == "peer"
        for frame in frames:
            if self.closed or on_frame is None:
                return
            if (
                frame.incarnation != incarnation
                or frame.boot != boot
                or frame.sender != sender
                or (is_peer and frame.cluster_id != cluster_id)
            ):
                raise FrameError(
                    f"a frame of another sender than the hello: {frame!r}, incarnation {frame.incarnation}, cluster "
                    f"{frame.cluster_id.hex()}; expected node {sender}, incarnation {incarnation}, boot {boot}, "
                    f"cluster {cluster_id.hex()}"
                )
            on_frame(frame)


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
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.receive_view = memoryview(bytearray(RECEIVE_BYTES))
        self.peers: dict[int, Connection] = {}
        self.clients: set[Connection] = set()
        self.address: Address | None = None
        self.refusals: dict[int, str] = {}
        """{peer: message} of the last refusal, until a connection stands. A node that cannot start shows them."""
        self._strangers: set[Connection] = set()
        self._boots: dict[tuple[int, int], int] = {}
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
        try:
            self._server = await self.loop.create_server(
                lambda: Connection(self), address.host, address.port, reuse_address=True, backlog=BACKLOG
            )
        except (OSError, UnicodeError) as error:
            raise ConfigError(_listen_problem(self.config.node_id, address, error)) from error
        bound = self._server.sockets[0].getsockname()
        self.address = Address(address.host, bound[1])
        logger.info("node %d listens on %s", self.config.node_id, self.address)

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
        if self._closing or (not connection.dialed_peer and len(self._strangers) >= STRANGERS_MAX):
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
            if len(self.clients) >= self.config.connections_max:
                raise HandshakeRefusedError(
                    "connections",
                    f"node {own.node_id} already serves {len(self.clients)} clients, its connections_max",
                )
            self._strangers.discard(connection)
            self.clients.add(connection)
            self._begin(connection, "client", lambda frame: self.handler.client_frame(connection, frame))
            connection.send([self.writer.hello(self.handler.client_hello())])
            return
        check_peer(own, hello, self.config.cluster, dialed_peer)
        key = (hello.node_id, hello.incarnation)
        if hello.boot < self._boots.get(key, 0):
            raise HandshakeRefusedError(
                "boot",
                f"node {hello.node_id} says it is at boot {hello.boot}, but boot {self._boots[key]} of it was here "
                f"already; two processes may share one data directory's copy",
            )
        self._boots[key] = hello.boot
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
        self._begin(connection, "peer", lambda frame: self._peer_frame(connection, peer, frame))
        if answer:
            connection.send([self.writer.hello(self.handler.identity.hello("peer"))])
        logger.debug("node %d: connected with node %d, boot %d", self.config.node_id, peer, hello.boot)
        self.handler.peer_connected(connection, hello)

    def _begin(self, connection: Connection, kind: str, on_frame: Callable[[Frame], None]) -> None:
        splitter = FrameSplitter(
            self.config.frame_head_bytes_max,
            self.config.frame_body_bytes_max,
            self.handler.identity.cluster_id or None,
        )
        connection.begin_frames(kind, splitter, on_frame)

    def _peer_frame(self, connection: Connection, peer: int, frame: Frame) -> None:
        if self.peers.get(peer) is not connection:
            return  # a frame of a connection that was replaced while its bytes were being read
        if frame.type <= FrameType.LEARN:
            self.handler.peer_frame(peer, frame)
        elif frame.type == FrameType.CONTROL:
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
        message = {"op": "refused", "reason": refusal.reason, "message": str(refusal)}
        connection.send([self.writer.control(message)])
        connection.close()

    def was_refused(self, connection: Connection, message: Mapping[str, Any]) -> None:
        """The other side does not want this node."""
        peer, text = connection.dialed_peer or connection.peer, str(message.get("message"))[:1000]
        if self.refusals.get(peer) != text:
            logger.warning("node %d was refused by node %d: %s", self.config.node_id, peer, text)
        self.refusals[peer] = text
        connection.close()
        self.handler.peer_refused(peer, str(message.get("reason")), text)

    def drop(self, connection: Connection, why: str) -> None:
        """Break a connection that misbehaves."""
        name = f"node {connection.peer}" if connection.peer else connection.kind or "stranger"
        text = "node %d drops the connection of %s at %s: %s"
        self._log.warning(self._clock_ns(), text, self.config.node_id, name, connection.remote, why)
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
            self.handler.failed(problem)


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


def _remote_name(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    return str(Address(*name[:2])) if isinstance(name, tuple) and len(name) >= 2 else "?"


def _listen_problem(node_id: int, address: Address, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return f"node {node_id} cannot listen on {address}: the port is in use; stop the other process or change it"
    if number == errno.EADDRNOTAVAIL:
        return f"node {node_id} cannot listen on {address}: no interface here has this address; set listen"
    return f"node {node_id} cannot listen on {address}: {error}"
