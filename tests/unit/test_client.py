"""The asyncio client against a scripted node on a real loopback socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fake_node import OTHER_CLUSTER_ID, FakeConnection, FakeNode, Submitted
from fastpaxos.client import Client
from fastpaxos.client_connection import ClientConnection
from fastpaxos.errors import (
    Busy,
    Closed,
    CommandError,
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    NoLeader,
    TooLarge,
)
from fastpaxos_core.results import CommandFailure
from fastpaxos_core.wire import ReplyStatus


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with FakeNode() as fake:
        yield fake


def client_of(*nodes: FakeNode, **options: Any) -> Client:
    return Client({node.node_id: node.address for node in nodes}, random=random.Random(1), **options)


def ignore(connection: FakeConnection, submitted: Submitted) -> None:
    """A node that never answers blocks."""


# --- commands ---------------------------------------------------------------------------------------------------------


async def test_execute_returns_the_result(node: FakeNode) -> None:
    async with client_of(node) as client:
        assert await client.execute(b"add 1") == b"add 1"
        assert (client.session_id, client.leader_id, len(client.cluster_id)) == (1000, 1, 16)
    assert node.applied_commands() == [b"add 1"]


async def test_commands_of_one_turn_travel_in_one_block_in_order(node: FakeNode) -> None:
    async with client_of(node) as client:
        await client.execute(b"first")
        commands = [f"{number}".encode() for number in range(100)]
        futures = [client.submit(command) for command in commands]
        assert await asyncio.gather(*futures) == commands
    assert [submitted.block.command_count for submitted in node.submits] == [1, 100]
    assert node.applied_commands() == [b"first", *commands]


async def test_many_tasks_share_blocks(node: FakeNode) -> None:
    async def worker(number: int) -> list[bytes]:
        return [await client.execute(b"%d/%d" % (number, turn)) for turn in range(5)]

    async with client_of(node) as client:
        results = await asyncio.gather(*(worker(number) for number in range(50)))
    assert results == [[b"%d/%d" % (number, turn) for turn in range(5)] for number in range(50)]
    assert len(node.applied_commands()) == 250
    assert len(node.submits) <= 50, "each round of 50 tasks takes a few blocks, not 50"


async def test_commands_may_be_any_bytes_like_but_nothing_else(node: FakeNode) -> None:
    async with client_of(node) as client:
        data = bytearray(b"mutable")
        future = client.submit(data)
        data[:] = b"changed"
        assert await future == b"mutable"
        assert await client.execute(memoryview(b"view")) == b"view"
        with pytest.raises(TypeError, match="must be bytes, not str"):
            client.submit("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be bytes, not str"):
            await client.execute_many([b"fine", "text"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="a list of commands, not bytes"):
            await client.execute_many(b"text")  # type: ignore[arg-type]


async def test_a_command_that_raises_raises_only_at_its_caller(node: FakeNode) -> None:
    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        results = [CommandFailure("ValueError", "odd") if c == b"bad" else c for c in submitted.commands]
        connection.send(connection.end.ok(submitted, results))

    node.on_submit = answer
    async with client_of(node) as client:
        good, bad = client.submit(b"good"), client.submit(b"bad")
        assert await good == b"good"
        with pytest.raises(CommandError, match="the state machine raised ValueError: odd"):
            await bad
        with pytest.raises(CommandError, match="odd"):
            await client.execute_many([b"x", b"bad", b"y"])
        first, error, last = await client.execute_many([b"x", b"bad", b"y"], return_exceptions=True)
        assert (first, last) == (b"x", b"y")
        assert isinstance(error, CommandError)


async def test_execute_many_uses_as_few_blocks_as_the_limits_allow(node: FakeNode) -> None:
    node.hello_fields = {"limits": {"commands_per_block_max": 1_000, "block_bytes_max": 20_000}}
    commands = [b"%06d" % number for number in range(2_500)]
    async with client_of(node) as client:
        assert await client.execute_many(commands) == commands
        assert [submitted.block.command_count for submitted in node.submits] == [1_000, 1_000, 500]
        node.submits.clear()
        mixed = [b"x" * size for size in (15_000, 4_000, 900, 100, 19_000)]
        assert await client.execute_many(mixed) == mixed
        assert [submitted.block.command_count for submitted in node.submits] == [3, 2]
        assert all(len(submitted.data) <= 20_000 for submitted in node.submits)
        assert await client.execute_many([]) == []
        assert await client.execute_many(iter([b"from", b"an iterator"])) == [b"from", b"an iterator"]


async def test_execute_many_stays_inside_the_limit_for_unanswered_bytes(node: FakeNode) -> None:
    waiting: list[tuple[FakeConnection, Submitted]] = []
    most = 0

    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        nonlocal most
        waiting.append((connection, submitted))
        most = max(most, sum(len(entry.data) for _, entry in waiting))
        if len(waiting) >= 2:
            for each, entry in waiting:
                each.send(each.end.ok(entry))
            waiting.clear()

    node.on_submit = answer
    commands = [b"%08d" % number for number in range(10_000)]
    async with client_of(node, inflight_bytes_max=3_000, block_bytes_max=1_000) as client:
        assert await client.execute_many(commands) == commands
    assert 2 <= most <= 3_000


async def test_query(node: FakeNode) -> None:
    async with client_of(node) as client:
        assert await client.query(b"get") == b"get"
        assert await asyncio.gather(*(client.query(b"%d" % number) for number in range(10))) == [
            b"%d" % number for number in range(10)
        ]


async def test_status_asks_one_node(node: FakeNode) -> None:
    async with FakeNode(2) as other, client_of(node, other) as client:
        assert await client.status(2) == {"node_id": 2, "role": "leader"}
        assert await client.status(node.address) == {"node_id": 1, "role": "leader"}
        with pytest.raises(ConfigError, match="node 3 is unknown"):
            await client.status(3)
        await client.execute(b"learn the cluster")
        other.cluster_id = OTHER_CLUSTER_ID
        with pytest.raises(ConfigError, match=OTHER_CLUSTER_ID.hex()):
            await client.status(2)
        other.on_connect = lambda connection: connection.transport.abort() is not None
        with pytest.raises(OSError, match=r"."):
            await client.status(2)
        other.on_connect = lambda connection: False
        with pytest.raises(TimeoutError):
            await client.status(2, timeout=0.05)


# --- reconnecting -----------------------------------------------------------------------------------------------------


async def test_a_lost_connection_sends_unanswered_blocks_again_byte_identical(node: FakeNode) -> None:
    seen: list[bytes] = []

    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        seen.append(submitted.data)
        if len(seen) == 1:
            connection.transport.abort()
        else:
            connection.send(connection.end.ok(submitted, slot_begin=node.apply(submitted)))

    node.on_submit = answer
    async with client_of(node) as client:
        assert await client.execute(b"once") == b"once"
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert node.accepted == 2
    assert len(node.open_nonces) == 1


async def test_a_redirect_leads_to_the_leader(node: FakeNode) -> None:
    async with FakeNode(2) as leader:
        node.leader_id = 2
        async with client_of(node, leader) as client:
            assert await client.execute(b"a") == b"a"
            assert client.leader_id == 2
        assert node.submits == []
        assert leader.applied_commands() == [b"a"]


async def test_the_next_address_is_tried_when_one_is_dead(node: FakeNode) -> None:
    async with FakeNode(2) as dead:
        address = dead.address
    async with Client({1: address, 2: node.address}) as client:
        assert await client.execute(b"a") == b"a"


async def test_not_ready_and_out_of_order_recover(node: FakeNode) -> None:
    refusals = [ReplyStatus.NOT_READY, ReplyStatus.BUSY, ReplyStatus.OUT_OF_ORDER, ReplyStatus.INVALID_SEQUENCE]

    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        if refusals:
            connection.send(connection.end.refuse(submitted, refusals.pop(0)))
        else:
            connection.send(connection.end.ok(submitted, slot_begin=node.apply(submitted)))

    node.on_submit = answer
    async with client_of(node) as client:
        assert await client.execute(b"a") == b"a"
    assert len({submitted.data for submitted in node.submits}) == 1


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10, b"\0" * 200, bytes(range(256))])
async def test_garbage_from_a_server_is_survived(node: FakeNode, garbage: bytes) -> None:
    def greet(connection: FakeConnection) -> bool:
        if node.accepted < 3:
            connection.send(garbage)
            return False
        return True

    node.on_connect = greet
    async with client_of(node) as client:
        assert await client.execute(b"a") == b"a"
    assert node.accepted == 3


async def test_garbage_is_named_in_the_error(node: FakeNode) -> None:
    node.on_connect = lambda connection: connection.send(b"\0" * 200) is not None
    async with client_of(node) as client:
        with pytest.raises(NoLeader, match="does not speak this protocol"):
            await client.execute(b"a", timeout=0.1)


async def test_a_frame_of_another_cluster_ends_the_connection(node: FakeNode) -> None:
    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        if len(node.submits) == 1:
            connection.end.writer.cluster_id = OTHER_CLUSTER_ID
        connection.send(connection.end.ok(submitted))

    node.on_submit = answer
    async with client_of(node) as client:
        assert await client.execute(b"a") == b"a"
    assert len(node.submits) == 2


async def test_a_connection_that_was_left_is_not_listened_to(node: FakeNode) -> None:
    node.on_submit = ignore
    async with client_of(node) as client:
        future = client.submit(b"a", timeout=0.1)
        await node.until(lambda: bool(node.submits))
        left = ClientConnection(client, asyncio.get_running_loop())
        late = node.connections[0].end.ok(node.submits[0])
        left.get_buffer(len(late))[: len(late)] = late
        left.buffer_updated(len(late))
        left.connection_lost(None)
        assert not future.done()
        with pytest.raises(DeadlineExceeded):
            await future
    assert node.accepted == 1


async def test_a_silent_node_is_left_for_another(node: FakeNode) -> None:
    node.on_connect = lambda connection: False
    async with FakeNode(2) as other, client_of(node, other, silence_timeout=0.05) as client:
        assert await client.execute(b"a") == b"a"


async def test_an_expired_session_is_replaced(node: FakeNode) -> None:
    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        if submitted.block.session_id == 1000:
            connection.send(connection.end.refuse(submitted, ReplyStatus.SESSION_UNKNOWN))
        else:
            connection.send(connection.end.ok(submitted, slot_begin=node.apply(submitted)))

    node.on_submit = answer
    async with client_of(node) as client:
        with pytest.raises(Exception, match="session expired") as caught:
            await client.execute(b"a")
        assert caught.type.__name__ == "SessionExpired"
        assert await client.execute(b"b") == b"b"
        assert client.session_id == 1001


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_no_leader_before_the_deadline() -> None:
    async with FakeNode(1) as node:
        address = node.address
    async with Client({1: address}) as client:
        with pytest.raises(NoLeader, match=address):
            await client.execute(b"a", timeout=0.1)
        with pytest.raises(NoLeader, match=address):
            await client.execute_many([b"a"], timeout=0.1)
        with pytest.raises(NoLeader, match=address):
            await client.query(b"a", timeout=0.1)


async def test_deadline_after_sending(node: FakeNode) -> None:
    node.on_submit = ignore
    async with client_of(node) as client:
        with pytest.raises(DeadlineExceeded, match="may have been applied"):
            await client.execute(b"a", timeout=0.1)
        with pytest.raises(DeadlineExceeded):
            await client.execute_many([b"b", b"c"], timeout=0.1)
        first, second = await client.execute_many([b"d", b"e"], timeout=0.1, return_exceptions=True)
        assert isinstance(first, DeadlineExceeded)
        assert isinstance(second, DeadlineExceeded)


async def test_cancelling_drops_interest_and_nothing_else(node: FakeNode) -> None:
    node.on_submit = ignore
    async with client_of(node) as client:
        task = asyncio.create_task(client.execute(b"sent"))
        await node.until(lambda: bool(node.submits))
        cancelled = client.submit(b"never sent")
        cancelled.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        node.on_submit = None
        node.drop_connections()
        assert await client.execute(b"after") == b"after"
    assert node.applied_commands() == [b"sent", b"after"], "what was sent is sent again, nothing else is"


async def test_cancelled_execute_many_drops_what_was_not_sent(node: FakeNode) -> None:
    node.on_submit = ignore
    async with client_of(node, blocks_in_flight_max=1, commands_per_block_max=2) as client:
        task = asyncio.create_task(client.execute_many([b"1", b"2", b"3", b"4"]))
        await node.until(lambda: bool(node.submits))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        node.on_submit = None
        node.drop_connections()
        await client.execute(b"after")
    assert node.applied_commands() == [b"1", b"2", b"after"]


async def test_too_large_is_told_at_once(node: FakeNode) -> None:
    async with client_of(node, command_bytes_max=100) as client:
        with pytest.raises(TooLarge, match="101 bytes, at most 100"):
            client.submit(b"x" * 101)
        with pytest.raises(TooLarge, match="101 bytes, at most 100"):
            await client.execute_many([b"fine", b"x" * 101])
        with pytest.raises(TooLarge):
            await client.query(b"x" * 101)
    assert node.submits == []


async def test_back_pressure(node: FakeNode) -> None:
    held: list[tuple[FakeConnection, Submitted]] = []
    node.on_submit = lambda connection, submitted: held.append((connection, submitted))
    async with client_of(node, inflight_bytes_max=1_000, block_bytes_max=1_000, command_bytes_max=900) as client:
        first = client.submit(b"x" * 800)
        with pytest.raises(Busy, match="inflight_bytes_max 1000"):
            client.submit(b"y" * 200)
        with pytest.raises(Busy, match="no room for 200 bytes"):
            await client.ready_to_submit(200, timeout=0.05)
        with pytest.raises(Busy, match="no room for 300 bytes"):
            await client.execute(b"z" * 300, timeout=0.05)
        waiting = [asyncio.create_task(client.execute(b"%d" % number * 300)) for number in range(3)]
        ready = asyncio.create_task(client.ready_to_submit(50))
        await node.until(lambda: bool(held))
        assert not ready.done()
        node.on_submit = None
        held[0][0].send(held[0][0].end.ok(held[0][1]))
        assert await first == b"x" * 800
        assert await asyncio.gather(*waiting) == [b"%d" % number * 300 for number in range(3)]
        await ready
        await client.ready_to_submit()


async def test_a_cancelled_wait_for_room_does_not_block_the_next(node: FakeNode) -> None:
    node.on_submit = ignore
    async with client_of(node, inflight_bytes_max=1_000, block_bytes_max=1_000, command_bytes_max=900) as client:
        first = client.submit(b"x" * 800)
        large = asyncio.create_task(client.execute(b"y" * 900))
        small = asyncio.create_task(client.execute(b"z"))
        await node.until(lambda: bool(node.submits))
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        node.on_submit = None
        node.drop_connections()
        assert await small == b"z"
        assert await first == b"x" * 800


async def test_a_caller_that_is_cancelled_as_it_gets_room_leaves_it_to_the_next(node: FakeNode) -> None:
    held: list[tuple[FakeConnection, Submitted]] = []
    node.on_submit = lambda connection, submitted: held.append((connection, submitted))
    async with client_of(node, inflight_bytes_max=1_000, block_bytes_max=1_000, command_bytes_max=900) as client:
        first = client.submit(b"x" * 800)
        waiting = [asyncio.create_task(client.execute(letter * 900)) for letter in (b"y", b"z")]
        await node.until(lambda: bool(held))
        node.on_submit = None
        held[0][0].send(held[0][0].end.ok(held[0][1]))
        await first
        waiting[0].cancel()
        assert await waiting[1] == b"z" * 900
    assert waiting[0].cancelled()
    assert node.applied_commands() == [b"z" * 900]


async def test_execute_many_stops_at_the_first_failure(node: FakeNode) -> None:
    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        connection.send(connection.end.ok(submitted, [CommandFailure("ValueError", "odd")]))

    node.on_submit = answer
    async with client_of(node, inflight_bytes_max=1_000, block_bytes_max=1_000, command_bytes_max=900) as client:
        with pytest.raises(CommandError, match="odd"):
            await client.execute_many([b"x" * 900] * 5)
    assert len(node.submits) == 1


async def test_another_cluster_is_a_configuration_error(node: FakeNode) -> None:
    async with client_of(node) as client:
        await client.execute(b"a")
        node.cluster_id = OTHER_CLUSTER_ID
        node.drop_connections()
        await node.until(lambda: node.accepted == 2)
        with pytest.raises(ConfigError, match=OTHER_CLUSTER_ID.hex()):
            await client.execute(b"b")
    assert node.applied_commands() == [b"a"]


async def test_a_refused_hello_is_a_configuration_error(node: FakeNode) -> None:
    def refuse(connection: FakeConnection) -> bool:
        message = {"op": "refused", "reason": "protocol", "message": "too old"}
        connection.send(connection.end.writer.control(message))
        connection.transport.close()
        return False

    node.on_connect = refuse
    async with client_of(node) as client:
        with pytest.raises(ConfigError, match="too old"):
            await client.execute(b"a")
        with pytest.raises(ConfigError, match="too old"):
            await client.execute_many([b"a"])


# --- life -------------------------------------------------------------------------------------------------------------


async def test_leaving_closes_the_session_through_the_log(node: FakeNode) -> None:
    async with client_of(node) as client:
        await client.execute(b"a")
    assert [message["op"] for message in node.controls] == ["open_session", "close_session"]
    await node.until(lambda: not node.connections)


async def test_leaving_waits_for_what_is_unanswered(node: FakeNode) -> None:
    async with client_of(node) as client:
        future = client.submit(b"a")
    assert future.result() == b"a"


async def test_leaving_with_unanswered_work_tells_what_was_sent(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastpaxos.client.CLOSE_TIMEOUT_S", 0.05)
    node.on_submit = ignore
    async with client_of(node, blocks_in_flight_max=1) as client:
        sent = client.submit(b"sent")
        await node.until(lambda: bool(node.submits))
        queued = client.submit(b"queued")
        room = asyncio.create_task(client.execute(b"too late"))
    assert isinstance(sent.exception(), ConnectionLost)
    assert isinstance(queued.exception(), Closed)
    with pytest.raises((Closed, ConnectionLost)):
        await room


async def test_leaving_ends_the_wait_for_room_at_once(node: FakeNode) -> None:
    held: list[tuple[FakeConnection, Submitted]] = []
    node.on_submit = lambda connection, submitted: held.append((connection, submitted))
    async with client_of(node, inflight_bytes_max=1_000, block_bytes_max=1_000, command_bytes_max=900) as client:
        sent = client.submit(b"x" * 900)
        waiting = asyncio.create_task(client.execute(b"y" * 900))
        await node.until(lambda: bool(held))
        closing = asyncio.create_task(client.aclose())
        with pytest.raises(Closed):
            await waiting
        assert not closing.done(), "it waits for what was sent"
        held[0][0].send(held[0][0].end.ok(held[0][1]))
        assert await sent == b"x" * 900
        await closing


async def test_leaving_an_unreachable_cluster_is_quick() -> None:
    async with FakeNode(1) as node:
        address = node.address
    async with asyncio.timeout(0.5):
        async with Client({1: address}):
            pass


async def test_a_client_that_is_not_open_says_so(node: FakeNode) -> None:
    client = client_of(node)
    for call in (client.execute(b"a"), client.execute_many([b"a"]), client.query(b"a")):
        with pytest.raises(Closed, match="not open"):
            await call
    with pytest.raises(Closed, match="not open"):
        client.submit(b"a")
    async with client:
        await client.execute(b"a")
        with pytest.raises(Closed, match="opened only once"):
            await client.__aenter__()
    await client.aclose()
    for closed_call in (client.execute(b"a"), client.execute_many([b"a"]), client.query(b"a")):
        with pytest.raises(Closed):
            await closed_call
    with pytest.raises(Closed):
        client.submit(b"a")


async def test_no_task_and_no_timer_is_left_behind(node: FakeNode) -> None:
    before = asyncio.all_tasks()
    async with client_of(node) as client:
        await client.execute(b"a")
        assert len(asyncio.all_tasks() - before) == 1
    assert asyncio.all_tasks() == before
    assert client._timer is None


async def test_an_idle_client_has_no_timer(node: FakeNode) -> None:
    async with client_of(node) as client:
        await client.execute(b"a")
        await client.query(b"a")
        assert client._timer is not None, "it ran while answers were due"
        client._timer.cancel()
        client._tick()
        assert client._timer is None


async def test_connections_can_be_made_by_the_caller(node: FakeNode) -> None:
    asked: list[str] = []

    async def connect(address: str, factory: Any) -> tuple[Any, Any]:
        asked.append(address)
        host, port = node.address.split(":")
        return await asyncio.get_running_loop().create_connection(factory, host, int(port))

    async with Client({1: "in-process:1"}, connect=connect) as client:
        assert await client.execute(b"a") == b"a"
    assert asked == ["in-process:1"]


@pytest.mark.parametrize("form", ["mapping", "text", "list", "seeds"])
async def test_forms_of_the_cluster(node: FakeNode, form: str) -> None:
    cluster: Any = {
        "mapping": {1: node.address},
        "text": f"1={node.address}",
        "list": [f"1={node.address}"],
        "seeds": node.address,
    }[form]
    async with Client(cluster) as client:
        assert await client.execute(b"a") == b"a"


@pytest.mark.parametrize("cluster", [{}, "", [], "nonsense", {0: "a:1"}, ["1=a:1", "b:2"], {1: "a:1", 2: "a:1"}])
def test_senseless_clusters(cluster: Any) -> None:
    with pytest.raises(ConfigError):
        Client(cluster)


@pytest.mark.parametrize(
    "options",
    [{"inflight_bytes_max": 0}, {"block_bytes_max": 9 << 20}, {"blocks_in_flight_max": "4"}, {"command_bytes_max": -1}],
)
def test_senseless_limits(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Client({1: "a:1"}, **options)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
def test_senseless_timeouts(timeout: Any) -> None:
    with pytest.raises(ValueError, match="must be a number of seconds"):
        Client({1: "a:1"}, timeout=timeout)
