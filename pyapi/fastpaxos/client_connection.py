"""A client's connection to one node: bytes in, frames out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

from fastpaxos.client_handshake import check_node_hello, client_hello, refusal_error
from fastpaxos.config import parse_address
from fastpaxos.errors import ConfigError, FastPaxosError, FrameError
from fastpaxos.handshake import check_hello
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, FrameWriter, parse_mapping

__all__ = ["ClientConnection", "ConnectionOwner", "call_node", "open_tcp"]

# What a node may send: answers to queries stand in heads, results of whole blocks in bodies.
HEAD_BYTES_MAX = 8 << 20
BODY_BYTES_MAX = 64 << 20


class ConnectionOwner(Protocol):
    """Whom a connection reports to."""

    def connection_made(self, connection: ClientConnection) -> None: ...

    def frames_received(self, connection: ClientConnection, frames: list[Frame]) -> None: ...

    def connection_lost(self, connection: ClientConnection, error: Exception | None) -> None: ...


class ClientConnection(asyncio.BufferedProtocol):
    """The protocol object of one connection.

    Attributes:
        lost: done when the connection has ended.
        is_bound: frames of another cluster are refused from now on.
    """

    __slots__ = ("_owner", "_splitter", "_transport", "is_bound", "lost")

    def __init__(self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._splitter = FrameSplitter(HEAD_BYTES_MAX, BODY_BYTES_MAX)
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = loop.create_future()
        self.is_bound = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.lost.done():
            transport.abort()  # type: ignore[attr-defined]
            return
        self._owner.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._splitter.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        try:
            frames = self._splitter.buffer_updated(nbytes)
        except FrameError as error:
            self._owner.connection_lost(self, error)
            self.abort()
            return
        if frames:
            self._owner.frames_received(self, frames)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        self._owner.connection_lost(self, error)

    def bind(self, cluster_id: bytes) -> None:
        """Take frames of this cluster only."""
        self._splitter.expected_cluster = cluster_id
        self.is_bound = True

    def send(self, buffers: list[bytes]) -> None:
        """Write whole frames. How much may wait here is bounded by the session's limit for unanswered bytes."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(buffers) == 1:
            transport.write(buffers[0])
        else:
            transport.writelines(buffers)

    def close(self) -> None:
        """Send what is queued, then close."""
        if self._transport is not None:
            self._transport.close()
        elif not self.lost.done():
            self.lost.set_result(None)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
        elif not self.lost.done():
            self.lost.set_result(None)


async def open_tcp(address: str, protocol_factory: Callable[[], ClientConnection]) -> tuple[Any, Any]:
    """Connect to "host:port" over TCP. Names are resolved each time, in the loop's executor."""
    host, port = parse_address(address)
    transport, protocol = await asyncio.get_running_loop().create_connection(protocol_factory, host, port)
    tcp = transport.get_extra_info("socket")
    if tcp is not None:
        with contextlib.suppress(OSError):
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return transport, protocol


class _NodeCall:
    """Asks one node one thing over a connection of its own."""

    def __init__(self, request: Mapping[str, Any], address: str, cluster_id: bytes) -> None:
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._request = {**request, "request_id": 1}
        self._address = address
        self._cluster_id = cluster_id
        self._writer = FrameWriter(0, 1, 0)
        self._is_greeted = False

    def connection_made(self, connection: ClientConnection) -> None:
        connection.send([self._writer.hello(client_hello(1, self._cluster_id))])

    def frames_received(self, connection: ClientConnection, frames: list[Frame]) -> None:
        try:
            for frame in frames:
                self._take(connection, frame)
        except (ConfigError, FrameError) as error:
            self._fail(error)

    def connection_lost(self, connection: ClientConnection, error: Exception | None) -> None:
        self._fail(error or ConnectionError(f"{self._address} closed the connection before it answered"))

    def _take(self, connection: ClientConnection, frame: Frame) -> None:
        if frame.type == FrameType.HELLO and not self._is_greeted:
            hello = check_hello(parse_mapping(frame))
            check_node_hello(hello, self._address, self._cluster_id)
            self._is_greeted = True
            self._writer.cluster_id = hello.cluster_id
            connection.send([self._writer.control(self._request)])
        elif frame.type == FrameType.CONTROL:
            message = parse_mapping(frame)
            operation = message.pop("op", None)
            if operation == "refused":
                raise refusal_error(message, self._address)
            if not self._is_greeted or message.pop("request_id", None) != 1 or self.answer.done():
                return
            if operation == "error":
                raise FrameError(f"{self._address} does not answer {self._request['op']!r}: {message.get('message')}")
            self.answer.set_result(message)
        else:
            raise FrameError(f"{self._address} sent {frame!r}, which is no answer")

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def call_node(
    connect: Callable[[str, Callable[[], ClientConnection]], Awaitable[tuple[Any, Any]]],
    address: str,
    request: Mapping[str, Any],
    cluster_id: bytes = b"",
) -> dict[str, Any]:
    """Send one control request to one node and return its answer; `cluster_id` b"" accepts any cluster.

    The caller bounds the time. Raises OSError when the node cannot be reached or hangs up, ConfigError when it is of
    another cluster or protocol, FrameError when it answers something else.
    """
    call = _NodeCall(request, address, cluster_id)
    connection = ClientConnection(call, asyncio.get_running_loop())
    try:
        await connect(address, lambda: connection)
        return await call.answer
    finally:
        if call.answer.done() and not call.answer.cancelled():
            call.answer.exception()
        connection.abort()
        with contextlib.suppress(FastPaxosError):
            await asyncio.wait([connection.lost], timeout=1.0)
