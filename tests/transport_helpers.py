"""Both sides of a socket for tests of the transport: a handler that records, and a stranger with a raw socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fastpaxos.connection import Connection
from fastpaxos.handshake import Hello, Identity
from fastpaxos.transport import Transport
from fastpaxos_core.wire import Frame, FrameSplitter, FrameType, FrameWriter

MIB = 1024 * 1024
CLUSTER_ID = bytes(range(16))
INCARNATIONS = {1: 101, 2: 202, 3: 303}
FOUNDED = {"cluster_id": CLUSTER_ID, "founding": b"record", "incarnations": INCARNATIONS}


def identity(node_id: int, **changes: Any) -> Identity:
    values = {
        "node_id": node_id,
        "boot": 1,
        "incarnation": INCARNATIONS.get(node_id, 9),
        "durability": "fsync",
        "run": 70 + node_id,
    }
    return Identity(**{**values, **FOUNDED, **changes})


class Handler:
    """Records what the transport tells its node; `event(name)` waits for the next of a kind."""

    def __init__(self, own: Identity) -> None:
        self.identity = own
        self.queues: dict[str, asyncio.Queue[Any]] = {}
        self.errors: list[BaseException] = []
        self.on_peer_frame: Callable[[int, Frame], None] | None = None

    def _put(self, name: str, value: Any) -> None:
        self.queues.setdefault(name, asyncio.Queue()).put_nowait(value)

    async def event(self, name: str) -> Any:
        async with asyncio.timeout(20):
            return await self.queues.setdefault(name, asyncio.Queue()).get()

    def count(self, name: str) -> int:
        return self.queues[name].qsize() if name in self.queues else 0

    def client_hello(self) -> dict[str, Any]:
        return self.identity.hello("node")

    def peer_connected(self, connection: Connection, hello: Hello) -> None:
        self._put("connected", (connection, hello))

    def peer_disconnected(self, peer: int) -> None:
        self._put("disconnected", peer)

    def peer_refused(self, peer: int, reason: str, message: str) -> None:
        self._put("refused", (peer, reason, message))

    def peer_frame(self, peer: int, frame: Frame) -> None:
        if self.on_peer_frame is not None:
            self.on_peer_frame(peer, frame)
        self._put("frame", (peer, frame))

    def peer_control(self, peer: int, message: Mapping[str, Any]) -> None:
        self._put("control", (peer, message))

    def client_frame(self, connection: Connection, frame: Frame) -> None:
        self._put("client_frame", (connection, frame))

    def client_disconnected(self, connection: Connection) -> None:
        self._put("client_disconnected", connection)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self._put("failed", error)


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@dataclasses.dataclass
class TransportNode:
    transport: Transport
    handler: Handler
    clock: Clock
    tasks: list[asyncio.Task[None]]

    @property
    def port(self) -> int:
        assert self.transport.address is not None
        return self.transport.address.port

    def dial(self, peer: int) -> None:
        self.tasks.append(asyncio.ensure_future(self.transport.dial_forever(peer)))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds; for what no event tells."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Stranger:
    """A raw socket on the other side of a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._splitter = FrameSplitter(MIB, 8 * MIB)
        self._frames: list[Frame] = []

    @classmethod
    async def connect(cls, node: TransportNode) -> Stranger:
        return cls(*await asyncio.open_connection("127.0.0.1", node.port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def frame(self) -> Frame:
        while not self._frames:
            async with asyncio.timeout(20):
                data = await self.reader.read(65536)
            assert data, "the connection was closed"
            self._frames += self._splitter.feed(data)
        return self._frames.pop(0)

    async def closed(self) -> None:
        """Wait until the node has closed the connection; what it still sends is dropped."""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def close(self) -> None:
        self.writer.close()
        await self.closed()


def writer_of(own: Identity) -> FrameWriter:
    return FrameWriter(own.node_id, own.incarnation, own.boot, own.cluster_id)


def hello_bytes(own: Identity, kind: str = "peer", **changes: Any) -> bytes:
    return writer_of(own).hello({**own.hello(kind), **changes})


CLIENT = Identity(node_id=0, boot=0, incarnation=77, durability="")
CLIENT_WRITER = FrameWriter(0, 77, 0, CLUSTER_ID)


async def client_of(node: TransportNode) -> Stranger:
    client = await Stranger.connect(node)
    await client.send(hello_bytes(CLIENT, "client"))
    assert (await client.frame()).type == FrameType.HELLO
    return client
