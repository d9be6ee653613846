"""Wrong addresses, strangers and garbage, at the level of whole nodes: named, dropped, and without any effect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

import fastpaxos
from fastpaxos import Client, ConfigError, HashChain, Node, NodeConfig
from fastpaxos.cli import main
from fastpaxos.cli.cluster_process import ClusterProcess
from fastpaxos.config import format_cluster, parse_address
from fastpaxos_core.block import build_block
from fastpaxos_core.wire import FrameType, ReplyStatus, parse_query_reply
from integration.bad_input_support import (
    RawClient,
    chain_digest,
    raw_client,
    resident_bytes,
    serve_to_the_end,
    settled_statuses,
)
from local_cluster import LocalCluster, closing, free_ports, until

FRAME_HEADER_BYTES = 64
MIB = 1 << 20


# --- ids and addresses ------------------------------------------------------------------------------------------------

THREE = "1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003"


@pytest.mark.parametrize(
    ("node_id", "cluster", "message"),
    [
        (4, THREE, f"node_id 4 is not in the cluster {{{THREE}}}"),
        (1, f"{THREE},2=127.0.0.1:7004", r"2"),
        (1, f"{THREE},4=127.0.0.1:7001", "nodes 1 and 4 have the same address 127.0.0.1:7001"),
        (1, f"{THREE},0=127.0.0.1:7004", "0"),
        (1, f"{THREE},70000=127.0.0.1:7004", "70000"),
        (1, f"{THREE},four=127.0.0.1:7004", "four"),
        (1, f"{THREE},4=127.0.0.1", "127.0.0.1"),
        (1, f"{THREE},4=127.0.0.1:0", "127.0.0.1:0"),
        (1, f"{THREE},4=127.0.0.1:65536", "127.0.0.1:65536"),
        (1, f"{THREE},4=:7004", ":7004"),
        (1, ",".join(f"{number}=127.0.0.1:{7000 + number}" for number in range(1, 11)), "10 members; at most 9"),
    ],
)
def test_serve_refuses_wrong_ids_and_addresses_before_it_touches_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], node_id: int, cluster: str, message: str
) -> None:
    data_dir = tmp_path / "data"
    code = main.run(["serve", "--id", str(node_id), "--cluster", cluster, "--data-dir", str(data_dir)])
    output = capsys.readouterr()
    assert code == 2
    assert message in output.err
    assert output.out == ""
    assert not data_dir.exists()


async def test_a_port_in_use_is_named_and_harms_nobody(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, 1) as cluster, cluster.client() as client:
        await client.execute(b"before")
        address = cluster.addresses[1]
        arguments = ("--id", 1, "--cluster", format_cluster(cluster.addresses), "--data-dir", tmp_path / "other")
        code, text = await serve_to_the_end(*arguments)
        assert code == 2
        assert text.endswith(
            f"error: node 1 cannot listen on {address}: the port is in use; stop the other process or change it\n"
        )
        assert int.from_bytes(await client.execute(b"after"), "little") == 2


async def test_swapped_addresses_are_named_on_both_sides(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"one")
        await cluster.settle()
        await cluster.stop(3)
        swapped = {**cluster.addresses, 1: cluster.addresses[2], 2: cluster.addresses[1]}
        async with closing(await cluster.start(3, cluster=swapped)) as confused:
            del cluster.nodes[3]
            await until(lambda: len(confused.status()["refusals"]) == 2)
            for expected, found in ((1, 2), (2, 1)):
                message = confused.status()["refusals"][found]
                at = f"at {swapped[expected]} node 3 expected node {expected} but found node {found}"
                assert f"{at}; check the addresses in the cluster" in message
            await client.execute(b"two")
            assert confused.status()["role"] == "follower"
        await cluster.start(3)
        assert {status["digest"] for status in await cluster.settle()} == {chain_digest([b"one", b"two"])}


async def test_a_node_that_is_no_member_is_refused(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"one")
        config = NodeConfig(node_id=4, cluster={**cluster.addresses, 4: f"127.0.0.1:{port}"}, data_dir=tmp_path / "4")
        async with closing(Node(config, HashChain())) as stranger:
            await stranger.start()
            await until(lambda: len(stranger.status()["refusals"]) == 3)
            for member in cluster.addresses:
                message = f"node 4 is no member; node {member} knows 1, 2, 3"
                assert message in stranger.status()["refusals"][member]
            assert stranger.status()["role"] == "unfounded"
        assert int.from_bytes(await client.execute(b"two"), "little") == 2


@pytest.mark.parametrize("starts_of_the_original", [1, 2])
async def test_a_copy_of_a_running_members_directory_is_refused(tmp_path: Path, starts_of_the_original: int) -> None:
    """Two processes with one identity would vote twice: whoever comes second must not take part."""
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"one")
        await cluster.settle()
        await cluster.stop(3)
        shutil.copytree(tmp_path / "3", tmp_path / "copy")
        for start in range(starts_of_the_original):
            if start:
                await cluster.stop(3)
            await cluster.start(3)
            await until(lambda: all(peer["connected"] for peer in cluster.nodes[3].status()["peers"]))
        (port,) = free_ports(1)
        config = cluster.config(3, data_dir=tmp_path / "copy", listen=f"127.0.0.1:{port}")
        async with closing(Node(config, HashChain())) as copy:
            await copy.start()
            last_slot = copy.status()["last_slot"]
            await until(lambda: len(copy.status()["refusals"]) == 2)
            for peer in (1, 2):
                assert "node 3" in copy.status()["refusals"][peer]
                assert "may run on a copy of that node's data directory" in copy.status()["refusals"][peer]
            await client.execute(b"two")
            assert copy.status()["last_slot"] == last_slot, "it takes no part"
        assert {status["digest"] for status in await cluster.settle()} == {chain_digest([b"one", b"two"])}


async def test_a_client_of_another_cluster_is_told_both_names(tmp_path: Path) -> None:
    one, two = LocalCluster(tmp_path / "one", 1), LocalCluster(tmp_path / "two", 1)
    two.addresses = one.addresses
    async with one.client() as client:
        async with one:
            await client.execute(b"first")
        async with two, two.client() as own:
            await own.execute(b"mine")
            ids = f"{own.cluster_id.hex()}, but this client talks to cluster {client.cluster_id.hex()}"
            ids_of_node = f"{own.cluster_id.hex()}, the other side to cluster {client.cluster_id.hex()}"
            with pytest.raises((ConfigError, fastpaxos.NoLeader)) as caught:
                await client.execute(b"lost?", timeout=2.0)
            assert f"belongs to cluster {ids}" in str(caught.value) or f"cluster {ids_of_node}" in str(caught.value)
            assert {status["digest"] for status in await two.settle()} == {chain_digest([b"mine"])}
            async with raw_client(one.addresses[1], client.cluster_id) as raw:
                await raw.send(raw.hello())
                refusal = await raw.control("refused")
                assert refusal["reason"] == "cluster"
                assert ids_of_node in refusal["message"]
                await raw.until_closed()
        async with one, one.client() as again:
            assert int.from_bytes(await again.execute(b"second"), "little") == 2


# --- garbage ----------------------------------------------------------------------------------------------------------


def header_with_lengths(raw: RawClient, head_bytes: int, body_bytes: int) -> bytes:
    """The header of a SUBMIT frame that announces these lengths, and nothing of what it announces."""
    frame = bytearray(b"".join(raw.frames.submit(build_block([b"x"], 1, 1), 1))[:FRAME_HEADER_BYTES])
    frame[12:16] = head_bytes.to_bytes(4, "little")
    frame[16:20] = body_bytes.to_bytes(4, "little")
    return bytes(frame)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


STRANGE = "frame starts with 0x{:08x}, expected 0x31585046"

# What is sent, and what the node says about it: from a stranger, and behind a good hello.
GARBAGE: dict[str, tuple[Callable[[RawClient], bytes], str, str]] = {
    "random bytes": (lambda raw: Random(1).randbytes(5000), STRANGE.format(0x2265B1F5), STRANGE.format(0x2265B1F5)),
    "another protocol": (lambda raw: b"GET / HTTP/1.1\r\n" * 9, STRANGE.format(0x20544547), STRANGE.format(0x20544547)),
    "zeros": (lambda raw: bytes(4096), STRANGE.format(0), STRANGE.format(0)),
    "a huge head": (
        lambda raw: header_with_lengths(raw, 0xFFFFFFFF, 10),
        "frame says 4294967295 head bytes, limit is 65536",
        "frame says 4294967295 head bytes, limit is 1048576",
    ),
    "a huge body": (
        lambda raw: header_with_lengths(raw, 16, 0xFFFFFFFF),
        "frame says 4294967295 body bytes, limit is 0",
        "frame says 4294967295 body bytes, limit is 8388608",
    ),
    "a body just too long": (
        lambda raw: header_with_lengths(raw, 16, 8 * MIB + 1),
        "frame says 8388609 body bytes, limit is 0",
        "frame says 8388609 body bytes, limit is 8388608",
    ),
    "a flipped bit": (
        lambda raw: flipped(raw.open_session(bytes(16)), 70),
        "frame header and head have CRC 0x",
        "frame header and head have CRC 0x",
    ),
    "a frame of replicas": (
        lambda raw: raw.frames.encode(FrameType.PREPARE, 1 << 16, bytes(16)),
        "the first frame is Frame(PREPARE",
        "a client sent Frame(PREPARE",
    ),
    "no map": (
        lambda raw: raw.frames.encode(FrameType.CONTROL, 0, b"\xc1\xc1"),
        "the first frame is Frame(CONTROL",
        "2 bytes are no msgpack map",
    ),
    "a bad nonce": (
        lambda raw: raw.open_session(b"short"),
        "the first frame is Frame(CONTROL",
        "open_session has nonce=b'short'; expected 16 bytes",
    ),
    "a bad request id": (
        lambda raw: raw.frames.control({"op": "status", "request_id": -1}),
        "the first frame is Frame(CONTROL",
        "request_id=-1; expected a whole number",
    ),
    "a short submit": (
        lambda raw: raw.frames.encode(FrameType.SUBMIT, 0, b"abc"),
        "the first frame is Frame(SUBMIT",
        "SUBMIT has a head of 3 bytes, it needs exactly 16",
    ),
    "an unknown read mode": (
        lambda raw: raw.frames.query(1, b"", read_mode=7),
        "the first frame is Frame(QUERY",
        "read mode 7",
    ),
    "a hello that is none": (
        lambda raw: raw.frames.hello({"kind": "client"}),
        "hello has protocol_min=None; expected a whole number",
        "a client sent Frame(HELLO",
    ),
}


async def test_garbage_is_named_and_costs_only_its_own_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fastpaxos")
    commands = [b"before"]
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"before")
        leader = await cluster.wait_for_leader()
        ballot = leader.status()["ballot"]
        address = cluster.addresses[leader.config.node_id]
        for name, (make, *expected) in GARBAGE.items():
            for greets, what in zip((False, True), expected, strict=True):
                async with raw_client(address) as raw:
                    if greets:
                        await raw.greet()
                    caplog.clear()
                    with contextlib.suppress(ConnectionError):
                        await raw.send(make(raw))
                    await raw.until_closed()
                    said = [entry.getMessage() for entry in caplog.records if f":{raw.port}: " in entry.getMessage()]
                    assert len(said) == 1, f"{name}: {said}"
                    assert what in said[0], f"{name}: {said[0]}"
            commands.append(name.encode())
            await client.execute(name.encode())
        statuses = await cluster.settle()
        assert {status["digest"] for status in statuses} == {chain_digest(commands)}
        assert {status["ballot"] for status in statuses} == {ballot}, "nobody was disturbed"
        await until(lambda: leader.status()["connections"] == 1)


async def test_malformed_frames_of_a_peer_break_its_connection_and_it_comes_back(tmp_path: Path) -> None:
    """From somebody who says hello as the member would; his frames are whole, but what they hold is not."""
    commands = [b"before"]
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"before")
        leader = await cluster.wait_for_leader()
        victim = cluster.followers()[0]
        identity = victim._identity
        for frame_type in (*range(FrameType.PREPARE, FrameType.LEARN + 1), FrameType.SUBMIT, FrameType.REPLY):
            for head in (b"", b"\xff" * 7, b"\xff" * 400):
                async with raw_client(cluster.addresses[leader.config.node_id], client.cluster_id) as raw:
                    raw.frames = victim._make_writer()
                    await raw.send(raw.frames.hello(identity.hello("peer")))
                    await raw.frame(FrameType.HELLO)
                    await raw.send(raw.frames.encode(frame_type, 0xFFFF_FFFF_0000 | identity.node_id, head, b"body"))
                    await raw.until_closed()
            commands.append(b"%d" % frame_type)
            await client.execute(b"%d" % frame_type)
        assert leader.error is None
        assert {status["digest"] for status in await cluster.settle()} == {chain_digest(commands)}


# --- pieces -----------------------------------------------------------------------------------------------------------


async def test_a_conversation_in_single_bytes_is_as_good_as_any(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster:
        leader = await cluster.wait_for_leader()
        async with raw_client(cluster.addresses[leader.config.node_id]) as raw:
            await raw.send_in_pieces(raw.hello() + raw.open_session(bytes(range(16))), 1)
            await raw.greeting()
            session_id = (await raw.control("session_opened"))["session_id"]
            block = build_block([b"first", b"second"], session_id, 1)
            await raw.send_in_pieces(b"".join(raw.frames.submit(block, 7)) + raw.frames.query(8, b""), 1)
            reply = await raw.reply()
            assert (reply.status, reply.request_id, reply.command_count) == (ReplyStatus.OK, 7, 2)
            answer = parse_query_reply(await raw.frame(FrameType.QUERY_REPLY))
            assert (answer.status, answer.query_id) == (ReplyStatus.OK, 8)
        assert {status["digest"] for status in await cluster.settle()} == {chain_digest([b"first", b"second"])}


async def test_a_conversation_that_breaks_off_anywhere_has_no_effect(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        leader = await cluster.wait_for_leader()
        address = cluster.addresses[leader.config.node_id]
        async with raw_client(address) as raw:
            session_id = await raw.begin_session(bytes(range(16)))
            whole = raw.hello() + b"".join(raw.frames.submit(build_block([b"never whole"], session_id, 1), 1))
        for length in range(0, len(whole), 7):
            async with raw_client(address) as raw:
                await raw.send(whole[:length])
                if length % 2:
                    raw.abort()
        await until(lambda: leader.status()["connections"] == 1 or not leader.status()["connections"])
        await client.execute(b"only this")
        assert {status["digest"] for status in await cluster.settle()} == {chain_digest([b"only this"])}


# --- crowds -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_files(soft: int) -> Iterator[None]:
    """Let this process, and those that it starts meanwhile, have `soft` files open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connect_and_say(address: str, data: bytes, held: contextlib.ExitStack) -> socket.socket:
    where = parse_address(address)
    connection = held.enter_context(socket.create_connection((where.host, where.port), timeout=10))
    connection.sendall(data)
    return connection


def first_bytes(connections: list[socket.socket]) -> list[bytes]:
    """What each connection gets first: b"" if the other side closes it."""
    received = []
    for connection in connections:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = connection.recv(64)
        received.append(data)
    return received


async def test_thousands_of_idle_connections_cost_little_and_stop_nothing(tmp_path: Path) -> None:
    idle = 2000
    settings = {
        "segment_bytes": MIB,
        "block_bytes_max": MIB // 4,
        "command_bytes_max": MIB // 8,
        "handshake_timeout_ms": 500,
    }
    with contextlib.ExitStack() as stack:
        # What most systems give a process that does not ask for more.
        with open_files(1024):
            cluster = stack.enter_context(ClusterProcess(tmp_path, 3, settings=settings))
        stack.enter_context(open_files(idle + 1024))
        held = stack.enter_context(contextlib.ExitStack())
        commands = [b"before"]
        async with Client(cluster.cluster, timeout=30) as client:
            await client.execute(b"before")
            leader = client.leader_id
            before = resident_bytes(cluster.pid(leader))
            hello = RawClient.hello_without_connection()
            greeted = [connect_and_say(cluster.cluster[leader], hello, held) for _ in range(idle)]
            assert all(await asyncio.to_thread(first_bytes, greeted))
            # New segments need new files, and must get them.
            payloads = [b"%d " % number + bytes(100_000) for number in range(30)]
            for payload in payloads:
                await client.execute(payload)
            commands += payloads
            assert (await client.status(leader))["connections"] == idle + 2
            cluster.check_running()
            grown = resident_bytes(cluster.pid(leader)) - before
            assert grown < 96 * MIB, f"{idle} idle connections and 3 MB of commands took {grown} bytes"
            # As many that never say who they are: those beyond the limit are dropped, the others soon.
            silent = [connect_and_say(cluster.cluster[leader], b"", held) for _ in range(300)]
            await client.execute(b"with strangers")
            commands.append(b"with strangers")
            assert not any(await asyncio.to_thread(first_bytes, silent))
            statuses = await settled_statuses(client, cluster)
        assert {status["digest"] for status in statuses} == {chain_digest(commands)}
