"""A node as clients see it: real frames, scripted answers. For the tests of the client side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastpaxos_core.block import BlockView
from fastpaxos_core.results import encode_results
from fastpaxos_core.wire import (
    Frame,
    FrameSplitter,
    FrameType,
    FrameWriter,
    Query,
    ReplyStatus,
    parse_mapping,
    parse_query,
    parse_submit,
)

CLUSTER_ID = bytes(range(16))
OTHER_CLUSTER_ID = bytes(range(100, 116))
INCARNATION = 0xFEED
HEAD_BYTES_MAX = 1 << 21
BODY_BYTES_MAX = 1 << 24


class Submitted(NamedTuple):
    """One SUBMIT frame."""

    request_id: int
    data: bytes
    block: BlockView

    @property
    def commands(self) -> list[bytes]:
        return self.block.commands()


class NodeEnd:
    """The node's end of one connection: reads a client's bytes, makes a node's frames."""

    def __init__(self, node_id: int = 1, cluster_id: bytes = CLUSTER_ID) -> None:
        self.node_id = node_id
        self.cluster_id = cluster_id
        self.writer = FrameWriter(node_id, INCARNATION, 1, cluster_id)
        self.splitter = FrameSplitter(HEAD_BYTES_MAX, BODY_BYTES_MAX)

    def hello(self, leader_id: int = 0, leader_address: str = "", **fields: Any) -> bytes:
        mapping = {
            "protocol_min": 1,
            "protocol_max": 1,
            "kind": "node",
            "features": 0,
            "group_id": 0,
            "node_id": self.node_id,
            "boot": 1,
            "incarnation": INCARNATION,
            "durability": "memory",
            "founding": b"",
            "cluster_id": self.cluster_id,
            "leader_id": leader_id,
            "leader_address": leader_address,
            "members": {},
            "limits": {},
        }
        return self.writer.hello({**mapping, **fields})

    def ok(self, submitted: Submitted, results: list[Any] | None = None, slot_begin: int = 1) -> bytes:
        """The block was applied; by default each command's result is the command itself."""
        block = submitted.block
        blob = encode_results(submitted.commands if results is None else results)
        return b"".join(
            self.writer.reply(
                block.session_id,
                block.first_sequence,
                submitted.request_id,
                block.command_count,
                ReplyStatus.OK,
                0,
                slot_begin,
                blob,
            )
        )

    def refuse(self, submitted: Submitted, status: int, leader_hint: int = 0) -> bytes:
        block = submitted.block
        return b"".join(
            self.writer.reply(block.session_id, block.first_sequence, submitted.request_id, 0, status, leader_hint, 0)
        )


class Received:
    """What a client sent, sorted by kind."""

    def __init__(self, frames: list[Frame]) -> None:
        self.hellos = [parse_mapping(frame) for frame in frames if frame.type == FrameType.HELLO]
        self.controls = [parse_mapping(frame) for frame in frames if frame.type == FrameType.CONTROL]
        self.queries: list[Query] = [parse_query(frame) for frame in frames if frame.type == FrameType.QUERY]
        self.submits = [
            Submitted(parse_submit(frame)[0], frame.body, BlockView(frame.body))
            for frame in frames
            if frame.type == FrameType.SUBMIT
        ]


class FakeNode(asyncio.Protocol):
    """A node on a real loopback socket that leads and applies at once, unless told otherwise.

    `on_submit(node, connection, submitted)` and `on_query(...)` replace the default answers: the echo of each command.
    `sessions` counts the blocks applied per session; blocks that were applied before are answered again.
    """

    def __init__(self, node_id: int = 1, cluster_id: bytes = CLUSTER_ID) -> None:
        self.node_id = node_id
        self.cluster_id = cluster_id
        self.leader_id = node_id
        self.address = ""
        self.hello_fields: dict[str, Any] = {}
        self.connections: list[FakeConnection] = []
        self.accepted = 0
        self.submits: list[Submitted] = []
        self.controls: list[Mapping[str, Any]] = []
        self.open_nonces: list[bytes] = []
        self.applied: dict[tuple[int, int], list[bytes]] = {}
        self.next_slot = 1
        self.on_connect: Callable[[FakeConnection], bool] | None = None
        self.on_submit: Callable[[FakeConnection, Submitted], None] | None = None
        self.on_query: Callable[[FakeConnection, Query], None] | None = None
        self.on_control: Callable[[FakeConnection, Mapping[str, Any]], bool] | None = None
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeNode:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: FakeConnection(self), "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop_connections()
        await self._server.wait_closed()

    def drop_connections(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that a client does makes `condition` true; the test's own timeout bounds it."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def noticed(self) -> None:
        self._changed.set()

    def applied_commands(self) -> list[bytes]:
        return [command for commands in self.applied.values() for command in commands]

    def apply(self, submitted: Submitted) -> int:
        """Apply once per (session, sequence); return the first slot."""
        block = submitted.block
        self.applied.setdefault((block.session_id, block.first_sequence), submitted.commands)
        slot, self.next_slot = self.next_slot, self.next_slot + block.command_count
        return slot


class FakeConnection(asyncio.Protocol):
    """One client's connection to a FakeNode."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.end = NodeEnd(node.node_id, node.cluster_id)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.node.accepted += 1
        self.node.connections.append(self)
        self.node.noticed()

    def connection_lost(self, error: Exception | None) -> None:
        self.node.connections.remove(self)
        self.node.noticed()

    def data_received(self, data: bytes) -> None:
        for frame in self.end.splitter.feed(data):
            received = Received([frame])
            for _ in received.hellos:
                if self.node.on_connect is None or self.node.on_connect(self):
                    self.send(self.end.hello(self.node.leader_id, **self.node.hello_fields))
            for message in received.controls:
                self._take_control(message)
            for query in received.queries:
                if self.node.on_query is not None:
                    self.node.on_query(self, query)
                else:
                    self.send(self.end.writer.query_reply(query.query_id, ReplyStatus.OK, 0, 1, query.request))
            for submitted in received.submits:
                self.node.submits.append(submitted)
                if self.node.on_submit is not None:
                    self.node.on_submit(self, submitted)
                else:
                    self.send(self.end.ok(submitted, slot_begin=self.node.apply(submitted)))
        self.node.noticed()

    def _take_control(self, message: Mapping[str, Any]) -> None:
        self.node.controls.append(message)
        if self.node.on_control is not None and self.node.on_control(self, message):
            return
        request_id = message["request_id"]
        if message["op"] == "open_session":
            nonces = self.node.open_nonces
            if message["nonce"] not in nonces:
                nonces.append(message["nonce"])
            session_id = 1000 + nonces.index(message["nonce"])
            answer = {"op": "session_opened", "session_id": session_id, "status": 0, "request_id": request_id}
        elif message["op"] == "close_session":
            session_id = message["session_id"]
            answer = {"op": "session_closed", "session_id": session_id, "status": 0, "request_id": request_id}
        elif message["op"] == "status":
            answer = {"op": "status", "request_id": request_id, "node_id": self.node.node_id, "role": "leader"}
        else:
            answer = {"op": "error", "request_id": request_id, "status": 8, "message": "unknown"}
        self.send(self.end.writer.control(answer))

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)
