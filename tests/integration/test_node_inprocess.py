"""`fastpaxos.Node`: whole clusters in this process, over loopback TCP and real directories."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastpaxos
from fastpaxos import Client, Closed, CommandError, ConfigError, HashChain, Node, NodeConfig, StateMachine
from local_cluster import LocalCluster, closing, free_ports, until


class Register(StateMachine):
    """Keeps the last command. Command b"raise ..." fails, b"full ..." is a disk that is full."""

    def __init__(self) -> None:
        self.value = b""
        self.applied = 0

    def apply(self, command: bytes, context: fastpaxos.ApplyContext) -> bytes:
        if command.startswith(b"raise"):
            raise ValueError(command.decode())
        if command.startswith(b"full"):
            raise OSError(errno.ENOSPC, "no space left")
        self.value = command
        self.applied += 1
        return b"%d" % self.applied

    def query(self, request: bytes, context: fastpaxos.QueryContext) -> bytes:
        if request == b"raise":
            raise KeyError("nothing there")
        return self.value

    def digest(self) -> str:
        return f"{self.applied}:{self.value.decode()}"


async def test_three_nodes_found_elect_replicate_and_agree(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        results = await client.execute_many([b"command %d" % number for number in range(5000)])
        assert [int.from_bytes(result, "little") for result in results] == list(range(1, 5001))
        assert int.from_bytes(await client.execute(b"one more"), "little") == 5001
        statuses = await cluster.settle()
        assert len({status["digest"] for status in statuses}) == 1
        assert len({status["cluster_id"] for status in statuses}) == 1
        assert sorted(status["role"] for status in statuses) == ["follower", "follower", "leader"]
        assert all(status["voting"] for status in statuses)
        leader = cluster.leader()
        assert leader is not None
        assert {status["leader_id"] for status in statuses} == {leader.config.node_id}
        told = await client.status(leader.config.node_id)
        assert told["id"] == leader.config.node_id
        assert told["commit_index"] >= 5001
        assert {peer["node_id"]: peer["connected"] for peer in told["peers"]} == {
            node_id: True for node_id in cluster.nodes if node_id != leader.config.node_id
        }


async def test_a_cluster_of_one_works_alone(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, 1, machine=Register) as cluster, cluster.client() as client:
        assert await client.execute(b"alone") == b"1"
        assert await client.query(b"") == b"alone"
    async with LocalCluster(tmp_path, 1, machine=Register) as cluster, cluster.client() as client:
        assert await client.query(b"") == b"alone"
        assert cluster.nodes[1].status()["boot"] == 2


@pytest.mark.parametrize("durability", ["fsync", "write"])
async def test_everything_is_there_after_all_nodes_were_stopped(tmp_path: Path, durability: str) -> None:
    cluster = LocalCluster(tmp_path, durability=durability)
    async with cluster, cluster.client() as client:
        await client.execute_many([bytes(100)] * 3000)
        before = await cluster.settle()
        cluster_id = client.cluster_id
    async with cluster, cluster.client() as client:
        assert int.from_bytes(await client.execute(b"next"), "little") == 3001
        after = await cluster.settle()
    assert len({status["digest"] for status in after}) == 1
    assert {status["cluster_id"] for status in after} == {cluster_id}
    assert [status["incarnation"] for status in after] == [status["incarnation"] for status in before]
    assert [status["boot"] for status in after] == [2, 2, 2]
    assert {status["durability"] for status in after} == {durability}
    assert min(status["ballot"] for status in after) > max(status["ballot"] for status in before)


async def test_the_next_leader_takes_over_and_the_old_one_catches_up(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute_many([b"a"] * 100)
        old = (await cluster.wait_for_leader()).config.node_id
        session_id = client.session_id
        running = asyncio.gather(*(client.execute(b"%d" % number) for number in range(500)))
        await cluster.stop(old)
        results = await running
        assert sorted(int.from_bytes(result, "little") for result in results) == list(range(101, 601))
        assert client.session_id == session_id
        leader = await cluster.wait_for_leader()
        assert leader.config.node_id != old
        await client.execute_many([bytes(1000)] * 20_000)
        await cluster.start(old)
        statuses = await cluster.settle()
        assert len({status["digest"] for status in statuses}) == 1
        assert cluster.leader() is leader, "who comes back disturbs nobody"


async def test_a_node_that_lags_by_more_than_memory_is_served_from_the_journal(tmp_path: Path) -> None:
    small = LocalCluster(tmp_path, log_memory_bytes=1 << 20, window_slots=4096, commands_per_block_max=1024)
    async with small as cluster, cluster.client() as client:
        await cluster.wait_for_leader()
        late = cluster.followers()[0].config.node_id
        await cluster.stop(late)
        await client.execute_many([os.urandom(1000) for _ in range(12_000)])
        await cluster.start(late)
        statuses = await cluster.settle()
        assert len({status["digest"] for status in statuses}) == 1


async def test_queries_are_answered_after_what_was_acknowledged(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, machine=Register) as cluster, cluster.client() as one, cluster.client() as two:
        for number in range(50):
            await one.execute(b"%d" % number)
            assert await two.query(b"") == b"%d" % number
        with pytest.raises(CommandError, match="KeyError") as caught:
            await two.query(b"raise")
        assert not caught.value.may_have_applied


async def test_an_error_of_the_state_machine_is_a_result_and_the_log_moves_on(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, machine=Register) as cluster, cluster.client() as client:
        with pytest.raises(CommandError, match="raise this") as caught:
            await client.execute(b"raise this")
        assert (caught.value.type_name, caught.value.message) == ("ValueError", "raise this")
        assert await client.execute(b"and on") == b"1"
        assert {status["digest"] for status in await cluster.settle()} == {"1:and on"}


async def test_a_process_error_of_the_state_machine_stops_the_node(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, 1, machine=Register) as cluster, cluster.client(timeout=0.5) as client:
        node = cluster.nodes[1]
        with pytest.raises(fastpaxos.OutcomeUnknown):
            await client.execute(b"full disk")
        with pytest.raises(OSError, match="no space left"):
            await node.wait_closed()
        assert isinstance(node.error, OSError)


@pytest.mark.parametrize("inline", [True, False])
async def test_a_failing_sync_stops_the_node_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"good")
        leader = await cluster.wait_for_leader()
        storage = leader._storage
        assert storage is not None
        problem = OSError(errno.EIO, "syncing failed")

        def fail_inline(write: Any) -> None:
            raise problem

        def fail(write: Any, done: Callable[[OSError], None]) -> None:
            asyncio.get_running_loop().call_soon(done, problem)

        monkeypatch.setattr(storage, "write_inline", fail_inline)
        monkeypatch.setattr(storage, "write", fail)
        storage.recent_sync_ns = 0 if inline else 10**9
        assert int.from_bytes(await client.execute(b"more"), "little") == 2
        with pytest.raises(OSError, match="syncing failed"):
            await leader.wait_closed()
        cluster.nodes.pop(leader.config.node_id)
        statuses = await cluster.settle()
        assert len({status["digest"] for status in statuses}) == 1
    with pytest.raises(OSError, match="syncing failed"):
        await leader.wait_closed()


async def test_the_error_that_stopped_a_node_leaves_its_async_with(tmp_path: Path) -> None:
    async def fill_the_disk(name: str, error: Exception | None = None) -> None:
        (port,) = free_ports(1)
        config = NodeConfig(node_id=1, cluster={1: f"127.0.0.1:{port}"}, data_dir=tmp_path / name)
        async with Node(config, Register()) as node:
            async with node.client(timeout=0.5) as client:
                with pytest.raises(fastpaxos.OutcomeUnknown):
                    await client.execute(b"full")
            if error is not None:
                raise error

    with pytest.raises(OSError, match="no space left"):
        await fill_the_disk("1")
    with pytest.raises(KeyError):  # what the body raised comes first
        await fill_the_disk("2", KeyError())


async def test_a_member_whose_disk_was_lost_is_refused_and_stops(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
        await client.execute(b"before")
        await cluster.settle()
        for lost in (3, 1):  # the one that dials, and the one that is dialled
            await cluster.stop(lost)
            kept = tmp_path / f"kept {lost}"
            shutil.move(tmp_path / str(lost), kept)
            node = Node(cluster.config(lost), HashChain())
            async with closing(node):
                await node.start()
                with pytest.raises(ConfigError, match=r"incarnation .*must not vote again under its old id"):
                    await node.wait_closed()
            assert node.status()["role"] == "unfounded"
            shutil.rmtree(tmp_path / str(lost))
            shutil.move(kept, tmp_path / str(lost))
            await cluster.start(lost)
        await client.execute(b"after")
        assert len({status["digest"] for status in await cluster.settle()}) == 1


async def test_members_with_different_durability_do_not_meet(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, 2)
    async with closing(await cluster.start(1)) as one, closing(await cluster.start(2, durability="write")) as two:
        await until(lambda: 1 in two.status()["refusals"])
        assert "durability fsync, node 2 with write" in two.status()["refusals"][1]
        assert {one.status()["role"], two.status()["role"]} == {"unfounded"}


async def test_clients_that_come_before_founding_wait_for_it(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    async with closing(await cluster.start(2)) as node, cluster.client() as client:
        execution = asyncio.ensure_future(client.execute(b"early"))
        await until(lambda: node.status()["connections"] == 1)
        told = await client.status(2)
        assert (told["role"], told["cluster_id"]) == ("unfounded", b"")
        async with closing(await cluster.start(1)), closing(await cluster.start(3)):
            assert int.from_bytes(await execution, "little") == 1


async def test_a_journal_that_is_gone_is_corruption_and_no_fresh_start(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    async with cluster, cluster.client() as client:
        await client.execute(b"x")
        await cluster.settle()
    for path in (tmp_path / "3").glob("journal-*"):
        path.unlink()
    with pytest.raises(fastpaxos.CorruptionError, match=r"journal segment \w+, which existed"):
        await cluster.start(3)


async def test_a_directory_or_port_in_use_is_named_and_everything_is_released(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, 1)
    async with closing(await cluster.start(1)):
        with pytest.raises(ConfigError, match=r"data_dir .* is in use by process \d+"):
            await cluster.start(1)
        (port,) = free_ports(1)
        other = NodeConfig(
            node_id=1, cluster={1: f"127.0.0.1:{port}"}, data_dir=tmp_path / "x", listen=cluster.addresses[1]
        )
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"cannot listen on {cluster.addresses[1]}: the port is in use"):
                await Node(other, HashChain()).start()
    async with closing(await cluster.start(1)):
        pass
    with pytest.raises(ConfigError, match="belongs to node 1, not to node 2"):
        await Node(NodeConfig(node_id=2, cluster={2: "127.0.0.1:9"}, data_dir=tmp_path / "1"), HashChain()).start()


async def test_a_client_of_this_process_needs_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_tcp(address: str, protocol_factory: object) -> Any:
        raise ConnectionRefusedError("no TCP in this test")

    async with LocalCluster(tmp_path) as cluster:
        leader = await cluster.wait_for_leader()
        monkeypatch.setattr("fastpaxos.node.open_tcp", no_tcp)
        async with leader.client(timeout=30) as client:
            results = await client.execute_many([b"local"] * 3000)
            assert int.from_bytes(results[-1], "little") == 3000
            assert leader.status()["connections"] == 1
            assert (await client.query(b""))[:1] == b"\x93"
        await until(lambda: leader.status()["connections"] == 0)
        monkeypatch.undo()
        follower = cluster.followers()[0]
        async with follower.client(timeout=30) as client:
            assert int.from_bytes(await client.execute(b"over TCP"), "little") == 3001


async def test_hundreds_of_idle_clients_do_not_disturb(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path) as cluster:
        leader = await cluster.wait_for_leader()
        clients = [cluster.client() for _ in range(200)]
        for client in clients:
            await client.__aenter__()
        try:
            await until(lambda: leader.status()["connections"] >= 200)
            assert int.from_bytes(await clients[77].execute(b"one of many"), "little") == 1
            answers = await asyncio.gather(*(client.execute(b"all") for client in clients))
            assert sorted(int.from_bytes(answer, "little") for answer in answers) == list(range(2, 202))
        finally:
            await asyncio.gather(*(client.aclose() for client in clients))


class Slow(Register):
    """Each command takes 2 ms."""

    def apply(self, command: bytes, context: fastpaxos.ApplyContext) -> bytes:
        import time

        end = time.monotonic_ns() + 2_000_000
        while time.monotonic_ns() < end:
            pass
        return super().apply(command, context)


async def test_slow_commands_are_applied_in_slices_and_cost_no_leadership(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, 3, machine=Slow) as cluster, cluster.client() as client:
        leader = await cluster.wait_for_leader()
        ballot = leader.status()["ballot"]
        executing = asyncio.ensure_future(client.execute_many([b"slow %d" % number for number in range(500)]))
        await until(lambda: leader.status()["digest"] == "")
        assert (await client.status(leader.config.node_id))["role"] == "leader"
        assert (await executing)[-1] == b"500"
        statuses = await cluster.settle()
        assert {status["digest"] for status in statuses} == {"500:slow 499"}
        assert {status["ballot"] for status in statuses} == {ballot}


async def test_closing_with_unanswered_commands_and_closing_twice(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    async with cluster.client(timeout=1.0) as client:
        for node_id in (1, 2, 3):
            await cluster.start(node_id)
        await client.execute(b"x")
        executions = [client.submit(b"y") for _ in range(50)]
        nodes = list(cluster.nodes.values())
        await asyncio.gather(*(node.aclose() for node in nodes), nodes[0].aclose())
        for node in nodes:
            await node.aclose()
            await node.wait_closed()
            assert node.error is None
            with pytest.raises(Closed):
                await node.start()
        outcomes = await asyncio.gather(*executions, return_exceptions=True)
        assert all(isinstance(outcome, bytes | fastpaxos.ClientError) for outcome in outcomes)


async def test_a_node_that_was_never_started(tmp_path: Path) -> None:
    node = Node(LocalCluster(tmp_path, 1).config(1), HashChain())
    await node.aclose()
    with pytest.raises(Closed):
        await node.wait_closed()
    assert node.status()["role"] == "unfounded"
    assert node.address is None
    with pytest.raises(TypeError, match=r"must be a fastpaxos\.StateMachine, not dict"):
        Node(node.config, {})  # type: ignore[arg-type]


async def test_it_runs_on_uvloop_too(tmp_path: Path) -> None:
    def run() -> bytes:
        from fastpaxos.runtime import run as run_fast

        async def work() -> bytes:
            async with LocalCluster(tmp_path) as cluster, cluster.client() as client:
                await client.execute_many([b"x"] * 100)
                leader = await cluster.wait_for_leader()
                async with leader.client() as local:
                    result: bytes = await local.execute(b"last")
                    return result

        return run_fast(work())

    assert int.from_bytes(await asyncio.to_thread(run), "little") == 101


async def test_oversized_and_foreign_blocks_are_refused(tmp_path: Path) -> None:
    async with LocalCluster(tmp_path, 1) as cluster, Client(cluster.addresses, timeout=30) as client:
        await client.execute(b"first")
        with pytest.raises(fastpaxos.TooLarge):
            await client.execute(bytes(2 << 20))
        assert int.from_bytes(await client.execute(bytes((1 << 20) - 5000)), "little") == 2
