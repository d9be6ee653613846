"""The client without asyncio: threads, interrupts, forks. The node runs on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from fake_node import FakeConnection, FakeNode, Submitted
from fastpaxos.blocking import BlockingClient, _CommandFuture
from fastpaxos.errors import Busy, Closed, CommandError, ConfigError, ConnectionLost, DeadlineExceeded, TooLarge
from fastpaxos_core.results import CommandFailure

Result = TypeVar("Result")


class ThreadedNode:
    """A FakeNode that serves while the test's thread blocks."""

    def __init__(self) -> None:
        self.node: FakeNode
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with FakeNode() as self.node:
            self._ready.set()
            await self._stop.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        asyncio.run_coroutine_threadsafe(self.node.until(condition), self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def server() -> Iterator[ThreadedNode]:
    threaded = ThreadedNode()
    yield threaded
    threaded.close()


def client_of(server: ThreadedNode, **options: Any) -> BlockingClient:
    return BlockingClient({1: server.node.address}, random=random.Random(1), **options)


def ignore(connection: FakeConnection, submitted: Submitted) -> None:
    """A node that never answers blocks."""


def test_calls(server: ThreadedNode) -> None:
    with client_of(server) as client:
        assert client.execute(b"a") == b"a"
        assert client.execute_many([b"b", b"c"]) == [b"b", b"c"]
        assert client.query(b"q") == b"q"
        assert client.status(1) == {"node_id": 1, "role": "leader"}
        assert client.submit(bytearray(b"d")).result(10) == b"d"
        client.ready_to_submit()
        assert (client.session_id, client.leader_id, len(client.cluster_id)) == (1000, 1, 16)
    assert server.node.applied_commands() == [b"a", b"b", b"c", b"d"]
    assert [message["op"] for message in server.node.controls if message["op"] != "status"] == [
        "open_session",
        "close_session",
    ]


def test_threads_share_one_session_and_its_blocks(server: ThreadedNode) -> None:
    def work(number: int) -> list[bytes]:
        return [client.execute(b"%d/%d" % (number, turn)) for turn in range(20)]

    with client_of(server) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert results == [[b"%d/%d" % (number, turn) for turn in range(20)] for number in range(8)]
    assert len(server.node.open_nonces) == 1
    assert len(server.node.applied_commands()) == 160


def test_one_thread_keeps_its_order(server: ThreadedNode) -> None:
    commands = [b"%d" % number for number in range(500)]
    with client_of(server) as client:
        futures = [client.submit(command) for command in commands]
        assert [future.result(10) for future in futures] == commands
    assert server.node.applied_commands() == commands


def test_errors_reach_the_calling_thread(server: ThreadedNode) -> None:
    def answer(connection: FakeConnection, submitted: Submitted) -> None:
        if submitted.commands != [b"silence"]:
            connection.send(connection.end.ok(submitted, [CommandFailure("ValueError", "odd")]))

    server.node.on_submit = answer
    with client_of(server, command_bytes_max=100) as client:
        with pytest.raises(CommandError, match="odd"):
            client.execute(b"bad")
        with pytest.raises(TooLarge, match="101 bytes"):
            client.submit(b"x" * 101)
        with pytest.raises(TypeError, match="must be bytes, not str"):
            client.submit("text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="number of seconds"):
            client.execute(b"a", timeout=-1)
        with pytest.raises(ValueError, match="number of seconds"):
            client.query(b"a", timeout=-1)
        with pytest.raises(DeadlineExceeded):
            client.execute(b"silence", timeout=0.1)


def test_senseless_settings_are_refused_before_a_thread_is_started() -> None:
    with pytest.raises(ConfigError):
        BlockingClient({})
    with pytest.raises(TypeError):
        BlockingClient({1: "a:1"}, no_such_option=1)


def test_back_pressure(server: ThreadedNode) -> None:
    held: list[tuple[FakeConnection, Submitted]] = []
    server.node.on_submit = lambda connection, submitted: held.append((connection, submitted))
    with client_of(server, inflight_bytes_max=1_000, block_bytes_max=1_000, command_bytes_max=900) as client:
        first = client.submit(b"x" * 800)
        server.until(lambda: bool(held))
        with pytest.raises(Busy):
            client.submit(b"y" * 300)
        with pytest.raises(Busy):
            client.ready_to_submit(300, timeout=0.05)
        with pytest.raises(Busy):
            client.execute(b"y" * 300, timeout=0.05)
        server.node.on_submit = None
        connection, submitted = held[0]
        server.loop.call_soon_threadsafe(connection.send, connection.end.ok(submitted))
        assert client.execute(b"y" * 300) == b"y" * 300, "it waited for room"
        assert first.result(10) == b"x" * 800


def test_the_handover_between_threads_is_bounded(server: ThreadedNode) -> None:
    with client_of(server, inflight_bytes_max=5_000, block_bytes_max=5_000, command_bytes_max=900) as client:
        blocked = threading.Event()
        assert client._loop is not None
        client._loop.call_soon_threadsafe(blocked.wait, 10)
        futures = [client.submit(b"x" * 100) for _ in range(20)]
        with pytest.raises(Busy, match="bytes wait to be taken over"):
            futures += [client.submit(b"x" * 100) for _ in range(20)]
        blocked.set()
        assert all(future.result(10) == b"x" * 100 for future in futures)


def test_cancelling_a_future(server: ThreadedNode) -> None:
    server.node.on_submit = ignore
    with client_of(server) as client:
        sent = client.submit(b"sent")
        server.until(lambda: bool(server.node.submits))
        assert sent.cancel()
        server.node.on_submit = None
        server.loop.call_soon_threadsafe(server.node.drop_connections)
        assert client.execute(b"after") == b"after"
    assert server.node.applied_commands() == [b"sent", b"after"]
    assert sent.cancelled()


def test_a_future_may_be_cancelled_while_it_is_being_answered() -> None:
    future = _CommandFuture()
    assert future.cancel()
    future.set_result(b"too late")
    assert future.cancelled()
    other = _CommandFuture()
    assert other.cancel()
    other.set_exception(Busy("too late"))
    assert other.cancelled()


def test_a_submission_that_races_with_the_end_is_refused(server: ThreadedNode) -> None:
    client = client_of(server)
    with client:
        client.execute(b"a")
    client._is_closed = False  # as a thread sees it that looked just before the close
    with pytest.raises(Closed):
        client.submit(b"b")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_the_client_usable(server: ThreadedNode) -> None:
    def interrupt(connection: FakeConnection, submitted: Submitted) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    server.node.on_submit = interrupt
    with client_of(server) as client:
        with pytest.raises(KeyboardInterrupt):
            client.execute(b"interrupted", timeout=30)
        server.node.on_submit = None
        server.loop.call_soon_threadsafe(server.node.drop_connections)
        assert client.execute(b"after") == b"after"


def calls_in_child(client: BlockingClient) -> int:
    """How many calls say that they do not work in a forked child."""
    told = 0
    for call in (client.execute, client.submit, client.query, lambda command: client.execute_many([command])):
        try:
            call(b"child")
        except Closed as error:
            told += "did not survive the fork" in str(error)
    client.close()
    return told


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_gets_a_clear_error(server: ThreadedNode) -> None:
    with client_of(server) as client:
        client.execute(b"before")
        child = os.fork()
        if not child:
            told = 0
            try:
                told = calls_in_child(client)
            finally:
                os._exit(told)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        assert client.execute(b"after") == b"after"
    assert server.node.applied_commands() == [b"before", b"after"]


def test_closing(server: ThreadedNode) -> None:
    client = client_of(server)
    with pytest.raises(Closed, match="not open"):
        client.execute(b"a")
    with client:
        client.execute(b"a")
        thread = client._thread
        with pytest.raises(Closed, match="opened only once"):
            client.__enter__()
    assert thread is not None
    assert not thread.is_alive()
    client.close()
    for call in (client.execute, client.submit, client.query):
        with pytest.raises(Closed, match="not open"):
            call(b"a")
    with pytest.raises(Closed):
        client.execute_many([b"a"])


def test_closing_answers_those_who_wait(server: ThreadedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpaxos.client.CLOSE_TIMEOUT_S", 0.05)
    server.node.on_submit = ignore
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with client_of(server) as client:
            waiting = pool.submit(client.execute, b"a", 30)
            server.until(lambda: bool(server.node.submits))
        with pytest.raises(ConnectionLost):
            waiting.result(10)


def test_blocking_calls_on_the_clients_own_thread_are_refused(server: ThreadedNode) -> None:
    problems: list[str] = []
    asked = threading.Event()

    def callback(future: concurrent.futures.Future[bytes]) -> None:
        for call in (client.execute, client.query):
            try:
                call(b"b")
            except RuntimeError as error:
                problems.append(str(error))
        asked.set()

    with client_of(server) as client:
        client.submit(b"a").add_done_callback(callback)
        assert asked.wait(10)
    assert server.node.applied_commands() == [b"a"]
    assert len(problems) == 2
    assert all("own thread" in problem for problem in problems)
