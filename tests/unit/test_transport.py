"""fastpaxos.transport over loopback sockets: who may talk, and what breaks a connection."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from random import Random
from typing import Any

import pytest

from fastpaxos.config import NodeConfig
from fastpaxos.connection import Connection
from fastpaxos.handshake import Identity
from fastpaxos.transport import Transport
from fastpaxos_core.errors import ConfigError, FrameError
from fastpaxos_core.wire import Frame, FrameType, FrameWriter, parse_mapping
from transport_helpers import (
    CLIENT,
    CLIENT_WRITER,
    CLUSTER_ID,
    INCARNATIONS,
    MIB,
    Clock,
    Handler,
    Stranger,
    TransportNode,
    client_of,
    hello_bytes,
    identity,
    until,
    writer_of,
)

StartNode = Callable[..., Awaitable[TransportNode]]


@pytest.fixture
async def start_node() -> AsyncIterator[StartNode]:
    nodes: list[TransportNode] = []

    async def start(
        node_id: int, *, ports: Mapping[int, int] | None = None, own: Identity | None = None, **settings: Any
    ) -> TransportNode:
        cluster = {member: f"127.0.0.1:{(ports or {}).get(member, member)}" for member in (1, 2, 3)}
        config = NodeConfig(node_id=node_id, cluster=cluster, data_dir="unused", listen="127.0.0.1:0", **settings)
        handler, clock = Handler(own or identity(node_id)), Clock()
        node = TransportNode(Transport(config, handler, random=Random(node_id), clock_ns=clock), handler, clock, [])
        await node.transport.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        await node.transport.close()
        for task in node.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert node.handler.errors == []


# Peers


async def test_the_higher_id_dials_and_frames_go_both_ways(start_node: StartNode) -> None:
    one = await start_node(1)
    two = await start_node(2, ports={1: one.port})
    assert one.transport.peers_to_dial() == []
    assert two.transport.peers_to_dial() == [1]
    two.dial(1)
    at_one, hello_of_two = await one.handler.event("connected")
    at_two, hello_of_one = await two.handler.event("connected")
    assert (hello_of_two.node_id, hello_of_one.node_id) == (2, 1)
    body = bytes(range(256)) * 8192
    at_one.send([writer_of(identity(1)).encode(FrameType.ACCEPT, 7, b"head", body)])
    at_two.send([writer_of(identity(2)).encode(FrameType.ACCEPTED, 7, b"a"), two.transport.writer.control({"op": "x"})])
    peer, frame = await two.handler.event("frame")
    assert (peer, frame.type, frame.ballot, frame.head, frame.body) == (1, FrameType.ACCEPT, 7, b"head", body)
    peer, frame = await one.handler.event("frame")
    assert (peer, frame.head) == (2, b"a")
    assert await one.handler.event("control") == (2, {"op": "x"})


async def test_it_dials_again_until_somebody_answers_and_after_every_break(start_node: StartNode) -> None:
    holder = await start_node(1)
    port = holder.port
    await holder.transport.close()
    two = await start_node(2, ports={1: port})
    two.dial(1)
    config = dataclasses.replace(holder.transport.config, listen=f"127.0.0.1:{port}")
    handler = Handler(identity(1))
    again = Transport(config, handler, random=Random(1), clock_ns=Clock())
    await again.start()
    connection, _ = await handler.event("connected")
    await two.handler.event("connected")
    connection.abort()
    assert await two.handler.event("disconnected") == 1
    await handler.event("connected")
    await two.handler.event("connected")
    await again.close()


async def test_a_newer_connection_of_a_peer_replaces_the_older_one(start_node: StartNode) -> None:
    one = await start_node(1)
    older = await Stranger.connect(one)
    await older.send(hello_bytes(identity(2)))
    await older.frame()
    first, _ = await one.handler.event("connected")
    newer = await Stranger.connect(one)
    await newer.send(hello_bytes(identity(2, boot=2)))
    await newer.frame()
    second, hello = await one.handler.event("connected")
    assert hello.boot == 2
    assert one.transport.peers == {2: second}
    await older.closed()
    assert first.closed
    assert one.handler.count("disconnected") == 0, "the peer was connected all the time"
    stale = await Stranger.connect(one)
    await stale.send(hello_bytes(identity(2, boot=1)))
    message = parse_mapping(await stale.frame())
    assert message["reason"] == "boot"
    assert "boot 1, but boot 2" in message["message"]
    copy = await Stranger.connect(one)
    await copy.send(hello_bytes(identity(2, boot=2, run=999)))
    message = parse_mapping(await copy.frame())
    assert message["reason"] == "boot"
    assert "boot 2, but another process at boot 2" in message["message"]
    await copy.closed()
    await stale.closed()
    assert one.transport.peers == {2: second}
    await newer.close()
    assert await one.handler.event("disconnected") == 2


REFUSALS = [
    ("protocol", identity(2), {"protocol_min": 2, "protocol_max": 3}, "speaks protocol 1..1, the other side 2..3"),
    ("group", identity(2), {"group_id": 5}, "serves group 0, not group 5"),
    ("cluster", identity(2, cluster_id=b"x" * 16), {}, f"cluster {CLUSTER_ID.hex()}, the other side to"),
    ("node_id", identity(9), {}, "node 9 is no member; node 1 knows 1, 2, 3"),
    ("node_id", identity(1), {}, "two processes claim to be node 1"),
    ("durability", identity(2, durability="memory"), {}, "durability fsync, node 2 with memory"),
    ("founding", identity(2, founding=b"other"), {}, "different founding records"),
    ("incarnation", identity(2, incarnation=999), {}, "founded with incarnation 202 but now has 999"),
    ("incarnation", identity(2, incarnation=999, founding=b"", cluster_id=b""), {}, "must not vote again"),
    ("kind", identity(2), {"kind": "node"}, "expected a peer, not a node"),
]


@pytest.mark.parametrize(
    ("reason", "own", "changes", "text"), REFUSALS, ids=[case[0] + str(n) for n, case in enumerate(REFUSALS)]
)
async def test_a_wrong_peer_is_refused_with_reason_and_values(
    start_node: StartNode,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    own: Identity,
    changes: dict[str, Any],
    text: str,
) -> None:
    one = await start_node(1)
    stranger = await Stranger.connect(one)
    await stranger.send(hello_bytes(own, **changes))
    message = parse_mapping(await stranger.frame())
    await stranger.closed()
    assert (message["op"], message["reason"]) == ("refused", reason)
    assert text in message["message"]
    assert text in caplog.text
    assert one.transport.peers == {}
    assert one.handler.count("connected") == 0


async def test_the_dialler_checks_too_and_logs_a_refusal_once(
    start_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    one = await start_node(1)
    two = await start_node(2, ports={1: one.port}, own=identity(2, durability="write"))
    two.dial(1)
    await until(lambda: caplog.text.count("node 1 refused") >= 3)
    assert caplog.text.count("node 2 was refused by node 1: node 1 runs with durability fsync") == 1
    assert "durability fsync, node 2 with write" in two.transport.refusals[1]
    assert (await two.handler.event("refused"))[:2] == (1, "durability")

    three = await start_node(3, ports={2: one.port})
    three.dial(2)
    await until(lambda: "expected node 2 but found node 1; check the addresses" in caplog.text)
    assert three.handler.count("connected") == 0


async def test_unfounded_nodes_may_meet_founded_ones_but_not_with_another_durability(start_node: StartNode) -> None:
    one = await start_node(1)
    unfounded = Identity(node_id=2, boot=1, incarnation=INCARNATIONS[2], durability="fsync")
    stranger = await Stranger.connect(one)
    await stranger.send(hello_bytes(unfounded))
    assert (await stranger.frame()).type == FrameType.HELLO
    _, hello = await one.handler.event("connected")
    assert hello.founding == b""
    await stranger.send(writer_of(unfounded).control({"op": "founding"}))
    assert (await one.handler.event("control"))[1] == {"op": "founding"}
    await stranger.send(writer_of(unfounded).encode(FrameType.ACCEPT, 1, b""))
    await stranger.closed()
    assert one.handler.count("frame") == 0, "a frame that names no cluster is for hello and control only"


async def test_founding_starts_all_connections_anew(start_node: StartNode) -> None:
    bare = {"cluster_id": b"", "founding": b"", "incarnations": {}}
    one = await start_node(1, own=identity(1, **bare))
    two = await start_node(2, ports={1: one.port}, own=identity(2, **bare))
    two.dial(1)
    await one.handler.event("connected")
    await two.handler.event("connected")
    for node in (one, two):
        node.handler.identity = identity(node.transport.config.node_id)
        node.transport.identity_changed()
    for node in (one, two):
        await node.handler.event("disconnected")
        _, hello = await node.handler.event("connected")
        if not hello.cluster_id:  # the other side had not changed yet
            _, hello = await node.handler.event("connected")
        assert hello.cluster_id == CLUSTER_ID


@pytest.mark.parametrize(
    "wrong",
    [{"node_id": 3}, {"incarnation": 1}, {"boot": 2}, {"cluster_id": b"y" * 16}, {"cluster_id": b""}],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_a_frame_of_another_sender_breaks_the_connection(start_node: StartNode, wrong: dict[str, Any]) -> None:
    one = await start_node(1)
    stranger = await Stranger.connect(one)
    own = identity(2)
    await stranger.send(hello_bytes(own))
    await stranger.frame()
    await stranger.send(writer_of(own).encode(FrameType.HEARTBEAT, 1, b"good"))
    assert (await one.handler.event("frame"))[1].head == b"good"
    await stranger.send(writer_of(dataclasses.replace(own, **wrong)).encode(FrameType.HEARTBEAT, 1, b"bad"))
    await stranger.closed()
    assert await one.handler.event("disconnected") == 2
    assert one.handler.count("frame") == 0


async def test_a_frame_error_of_the_core_drops_the_peer_and_other_errors_stop_the_node(start_node: StartNode) -> None:
    one = await start_node(1)

    def reject(peer: int, frame: Frame) -> None:
        raise FrameError("bad head") if frame.head == b"bad" else ZeroDivisionError("bug")

    one.handler.on_peer_frame = reject
    own = identity(2)
    for head in (b"bad", b"bug"):
        stranger = await Stranger.connect(one)
        await stranger.send(hello_bytes(own))
        await stranger.frame()
        await stranger.send(writer_of(own).encode(FrameType.PROMISE, 1, head))
        if head == b"bad":
            await stranger.closed()
            assert one.handler.errors == []
        else:
            assert isinstance(await one.handler.event("failed"), ZeroDivisionError)
            one.handler.errors.clear()
            await stranger.close()


async def test_a_peer_that_does_not_read_is_dropped_at_its_limit(
    start_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    one = await start_node(1, peer_queue_bytes_max=16 * MIB)
    stranger = await Stranger.connect(one)
    await stranger.send(hello_bytes(identity(2)))
    connection, _ = await one.handler.event("connected")
    frame = writer_of(identity(1)).encode(FrameType.ACCEPT, 1, b"", bytes(MIB))
    for _ in range(200):
        connection.send([frame])
        assert connection.tcp.get_write_buffer_size() <= 17 * MIB + 1000
    assert await one.handler.event("disconnected") == 2
    assert "it does not read" in caplog.text
    connection.send([frame])
    await stranger.close()


def has_answered(connection: Connection) -> bool:
    return connection.heard or connection.silent_sweeps < 2


async def test_a_silent_peer_is_asked_and_then_dropped(start_node: StartNode) -> None:
    one = await start_node(1)
    two = await start_node(2, ports={1: one.port})
    two.dial(1)
    await one.handler.event("connected")
    stranger = await Stranger.connect(one)
    await stranger.send(hello_bytes(identity(3)))
    assert (await stranger.frame()).type == FrameType.HELLO
    await one.handler.event("connected")
    pings = 0
    while 3 in one.transport.peers:
        one.clock.now_ns += 10**9
        one.transport.sweep(one.clock.now_ns)
        if pings < 3 and one.transport.peers[3].silent_sweeps >= 2:
            assert parse_mapping(await stranger.frame()) == {"op": "ping"}
            pings += 1
        # Let the member that answers do so.
        await until(partial(has_answered, one.transport.peers[2]))
        await asyncio.sleep(0)
    assert await one.handler.event("disconnected") == 3
    assert list(one.transport.peers) == [2]
    await stranger.closed()


# Strangers and clients


def frame_of(head_bytes: int = 0, body_bytes: int = 0, **fields: int) -> bytes:
    """The first 64 bytes of a hello frame with lengths and fields of choice; its checksum is wrong."""
    header = bytearray(FrameWriter(0, 1, 0).hello({})[:64])
    header[12:16] = head_bytes.to_bytes(4, "little")
    header[16:20] = body_bytes.to_bytes(4, "little")
    header[4] = fields.get("version", header[4])
    header[5] = fields.get("type", header[5])
    return bytes(header)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak this protocol"),
        (bytes(1000), "does not speak this protocol"),
        (frame_of(head_bytes=65537), "65537 head bytes, limit is 65536"),
        (frame_of(head_bytes=2**32 - 1), "4294967295 head bytes"),
        (frame_of(body_bytes=1), "1 body bytes, limit is 0"),
        (frame_of(version=9), "version 9"),
        (frame_of(type=63), "type 63 is unknown"),
        (frame_of(head_bytes=10) + bytes(10), "CRC"),
        (CLIENT_WRITER.control({"op": "status"}), "not a hello"),
        (CLIENT_WRITER.encode(FrameType.HELLO, 0, b"\xc1"), "no msgpack map"),
        (hello_bytes(CLIENT, "client", node_id=-1), "node_id=-1"),
        (hello_bytes(CLIENT, "client", durability=b"x"), "durability=b'x'"),
        (hello_bytes(CLIENT, "client", cluster_id=b"x"), "cluster id of 1 bytes"),
        (hello_bytes(CLIENT, "stranger"), "kind 'stranger'"),
        (hello_bytes(CLIENT, "client", node_id=2), "another sender"),
    ],
)
async def test_garbage_before_the_hello_breaks_the_connection(
    start_node: StartNode, caplog: pytest.LogCaptureFixture, data: bytes, text: str
) -> None:
    one = await start_node(1)
    stranger = await Stranger.connect(one)
    await stranger.send(data)
    await stranger.closed()
    assert text in caplog.text
    assert one.handler.queues == {}
    client = await client_of(one)
    await client.close()


async def test_a_hello_in_single_bytes_with_frames_right_behind_it(start_node: StartNode) -> None:
    one = await start_node(1)
    behind = CLIENT_WRITER.control({"op": "status", "request_id": 1}) + b"".join(CLIENT_WRITER.submit(b"b" * 5000, 2))
    data = hello_bytes(CLIENT, "client") + behind
    whole = await Stranger.connect(one)
    await whole.send(data)
    assert (await one.handler.event("client_frame"))[1].type == FrameType.CONTROL
    assert (await one.handler.event("client_frame"))[1].body == b"b" * 5000
    slow = await Stranger.connect(one)
    for position in range(len(data)):
        await slow.send(data[position : position + 1])
    assert (await one.handler.event("client_frame"))[1].type == FrameType.CONTROL
    assert (await one.handler.event("client_frame"))[1].body == b"b" * 5000
    for client in (whole, slow):
        assert parse_mapping(await client.frame())["kind"] == "node"
        await client.close()


async def test_random_bytes_behind_the_hello_never_get_through(start_node: StartNode) -> None:
    one = await start_node(1)
    chance = Random(5)
    for _ in range(30):
        client = await client_of(one)
        good = b"".join(CLIENT_WRITER.submit(b"block", 1))
        bad = bytearray(good)
        bad[chance.randrange(64 + 16)] ^= 1 << chance.randrange(8)
        await client.send(bytes(bad) + chance.randbytes(200))
        await client.closed()
        await one.handler.event("client_disconnected")
    assert one.handler.count("client_frame") == 0


async def test_who_does_not_say_hello_in_time_is_dropped(
    start_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    one = await start_node(1, handshake_timeout_ms=700)
    silent = await Stranger.connect(one)
    slow = await Stranger.connect(one)
    await slow.send(hello_bytes(CLIENT, "client")[:30])
    client = await client_of(one)
    one.clock.now_ns = 699 * 1_000_000
    one.transport.sweep(one.clock.now_ns)
    assert "no hello" not in caplog.text
    one.clock.now_ns = 700 * 1_000_000
    one.transport.sweep(one.clock.now_ns)
    await silent.closed()
    await slow.closed()
    assert caplog.text.count("no hello within 700 ms") == 2
    await client.send(CLIENT_WRITER.control({"op": "status"}))
    await one.handler.event("client_frame")
    await client.close()


async def test_clients_above_the_limit_are_refused_with_a_message(start_node: StartNode) -> None:
    one = await start_node(1, connections_max=3)
    clients = [await client_of(one) for _ in range(3)]
    refused = await Stranger.connect(one)
    await refused.send(hello_bytes(CLIENT, "client"))
    message = parse_mapping(await refused.frame())
    assert message["reason"] == "connections"
    assert "already serves 3 clients" in message["message"]
    await refused.closed()
    await clients.pop().close()
    await one.handler.event("client_disconnected")
    clients.append(await client_of(one))
    for client in clients:
        await client.close()


async def test_clients_leave_the_files_that_the_journal_needs(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastpaxos.transport.raise_open_files", lambda wanted: 258)
    one = await start_node(1)
    assert "node 1 serves at most 2 clients instead of 2048: this process may open only 258 files" in caplog.text
    clients = [await client_of(one) for _ in range(2)]
    refused = await Stranger.connect(one)
    await refused.send(hello_bytes(CLIENT, "client"))
    assert parse_mapping(await refused.frame())["reason"] == "connections"
    await refused.closed()
    strangers = [await Stranger.connect(one) for _ in range(70)]
    # Those that are too many are closed unheard; the others may still say who they are.
    for stranger in strangers[64:]:
        await stranger.closed()
    for client in [*clients, *strangers[:64]]:
        await client.close()


async def test_hundreds_of_idle_clients_share_one_receive_buffer(start_node: StartNode) -> None:
    one = await start_node(1)
    clients = [await client_of(one) for _ in range(300)]
    assert len(one.transport.clients) == 300
    assert all(connection.get_buffer(-1).obj is one.transport.receive_view.obj for connection in one.transport.clients)
    await clients[150].send(b"".join(CLIENT_WRITER.submit(b"x" * (MIB + 17), 5)))
    assert (await one.handler.event("client_frame"))[1].body == b"x" * (MIB + 17)
    for client in clients:
        client.writer.close()
    for _ in clients:
        await one.handler.event("client_disconnected")


async def test_a_client_that_does_not_read_may_not_send_either(start_node: StartNode) -> None:
    one = await start_node(1)
    client = await client_of(one)
    await client.send(CLIENT_WRITER.control({"op": "hi"}))
    connection, _ = await one.handler.event("client_frame")
    answer = one.transport.writer.reply(1, 1, 1, 1, 0, 0, 1, bytes(MIB))
    while not connection.is_paused:
        connection.send(answer)
    assert not connection.tcp.is_reading()
    await client.send(CLIENT_WRITER.control({"op": "more"}))
    frames = 0
    while connection.is_paused:
        await client.frame()
        frames += 1
    assert connection.tcp.is_reading()
    assert parse_mapping((await one.handler.event("client_frame"))[1]) == {"op": "more"}
    assert frames > 0
    await client.close()


async def test_a_port_in_use_and_a_foreign_address_are_named(start_node: StartNode) -> None:
    one = await start_node(1)
    with pytest.raises(ConfigError, match=f"node 2 cannot listen on 127.0.0.1:{one.port}: the port is in use"):
        await _start_on(f"127.0.0.1:{one.port}")
    with pytest.raises(ConfigError, match=r"node 2 cannot listen on 192\.0\.2\.1:0: no interface here"):
        await _start_on("192.0.2.1:0")


async def _start_on(listen: str) -> None:
    cluster = {1: "127.0.0.1:1", 2: "127.0.0.1:2"}
    config = NodeConfig(node_id=2, cluster=cluster, data_dir="unused", listen=listen)
    await Transport(config, Handler(identity(2)), random=Random(0), clock_ns=Clock()).start()


async def test_closing_sends_what_is_queued(start_node: StartNode) -> None:
    one = await start_node(1)
    client = await client_of(one)
    await client.send(CLIENT_WRITER.control({"op": "hi"}))
    connection, _ = await one.handler.event("client_frame")
    connection.send([one.transport.writer.control({"op": "goodbye"})])
    await one.transport.close()
    assert parse_mapping(await client.frame()) == {"op": "goodbye"}
    await client.closed()
    with pytest.raises(OSError, match="Connect call failed"):
        await Stranger.connect(one)


async def test_warnings_about_strangers_are_limited(start_node: StartNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    one = await start_node(1)
    for _ in range(15):
        stranger = await Stranger.connect(one)
        await stranger.send(b"garbage")
        await stranger.closed()
    assert caplog.text.count("does not speak this protocol") == 10
    one.clock.now_ns += 10**10
    stranger = await Stranger.connect(one)
    await stranger.send(b"garbage")
    await stranger.closed()
    assert "5 more connection problems were not logged" in caplog.text
