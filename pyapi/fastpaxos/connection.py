"""One connection of a node, to a peer or a client, from the first byte to the last.

Before the hello it takes bytes with small limits and trusts nothing; after it, frames of one sender only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from fastpaxos.config import Address
from fastpaxos.handshake import NO_CLUSTER, HandshakeRefusedError, Hello, check_hello, check_sender
from fastpaxos_core.errors import FrameError
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, parse_mapping

__all__ = ["Connection", "ConnectionOwner"]

HELLO_HEAD_BYTES_MAX = 64 * 1024
FRAME_HEADER_BYTES = 64
LENGTHS_END = 20  # where a frame header has told both of its lengths


class ConnectionOwner(Protocol):
    """Whom a connection reports to: `transport.Transport`."""

    loop: asyncio.AbstractEventLoop
    receive_view: memoryview
    """The receive buffer that all connections but those of peers share."""
    peer_queue_bytes_max: int

    def opened(self, connection: Connection) -> None: ...

    def greeted(self, connection: Connection, hello: Hello, dialed_peer: int) -> None:
        """A well-formed hello came. Raises HandshakeRefusedError."""
        ...

    def refuse(self, connection: Connection, refusal: HandshakeRefusedError) -> None: ...

    def was_refused(self, connection: Connection, message: Mapping[str, Any]) -> None: ...

    def drop(self, connection: Connection, why: str) -> None: ...

    def closed(self, connection: Connection, error: Exception | None) -> None: ...

    def failed(self, error: BaseException) -> None:
        """Something that no connection is to blame for."""
        ...


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

    def __init__(self, owner: ConnectionOwner, dialed_peer: int = 0) -> None:
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
        return self._owner.receive_view if self._splitter is None else self._splitter.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = True
        splitter = self._splitter
        try:
            if splitter is None:
                self._take_early(self._owner.receive_view[:nbytes])
            else:
                self._dispatch(splitter.buffer_updated(nbytes))
        except FrameError as error:
            self._owner.drop(self, f"{error}")
        except HandshakeRefusedError as refusal:
            self._owner.refuse(self, refusal)
        except BaseException as error:
            self._owner.failed(error)
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
            check_sender(frame, sender, incarnation, boot, cluster_id if is_peer else None)
            on_frame(frame)


def _remote_name(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    return str(Address(*name[:2])) if isinstance(name, tuple) and len(name) >= 2 else "?"
