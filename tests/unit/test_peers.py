"""The systems of `bench compare`, without them: what their clients send and accept, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fastpaxos.cli.cluster_process import child_environment
from fastpaxos.cli.latency import LatencyHistogram
from fastpaxos.cli.peers import etcd, lane, pysyncobj, pysyncobj_node, redis, replicas
from fastpaxos.cli.peers.floor import block_bytes_per_command
from fastpaxos.cli.peers.lane import LaneLoad, SerialLane, run_lanes
from fastpaxos.cli.peers.peer import DisturbedError, PeerError, PeerPlan, payloads
from fastpaxos.cli.peers.pysyncobj_node import NodeFailure, NodeLoad, NodeResult, NodeSettings
from fastpaxos.cli.peers.server import server, wait_until
from fastpaxos_core.block import build_block
from process_helpers import wait_for_end

PLAN = PeerPlan(payload_bytes=16, clients=4, seconds=0.2, warmup_s=0.1)


# Lanes


class FakeServer(asyncio.Protocol):
    """Answers each request of four bytes. The empty answer closes the connection."""

    def __init__(self, answer: Callable[[bytes], bytes], received: list[bytes]) -> None:
        self._answer = answer
        self._received = received
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= 4:
            request, self._rest = self._rest[:4], self._rest[4:]
            self._received.append(request)
            reply = self._answer(request)
            if not reply:
                self._transport.close()
                return
            self._transport.write(reply)


@contextlib.asynccontextmanager
async def fake_server(answer: Callable[[bytes], bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Gives the port of a server and what it receives."""
    received: list[bytes] = []
    listener = await asyncio.get_running_loop().create_server(lambda: FakeServer(answer, received), "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1], received


def quick_load(seconds: float = 0.2, warmup_s: float = 0.1) -> LaneLoad:
    return LaneLoad([b"req0", b"req1", b"req2"], 1, seconds, warmup_s)


def ok_lane_of(load: LaneLoad) -> Callable[[int], SerialLane]:
    return lambda first: SerialLane(load, first, redis.OkAnswers(1))


async def test_a_lane_has_one_request_in_flight_and_all_are_answered() -> None:
    load = quick_load()
    async with fake_server(lambda _request: redis.OK) as (port, received):
        await run_lanes(port, 2, load, ok_lane_of(load))
    assert load.answered == len(received) > 0
    assert set(received) == set(load.requests)
    assert 0 < load.measured <= load.answered
    assert abs(load.histogram().samples - load.measured) <= 2 * 2
    assert load.commands_per_second == load.measured / 0.2


def test_only_the_measured_time_counts() -> None:
    load = LaneLoad([b"x"], 10, 2.0, 1.0)
    load.measure_from_ns, load.end_ns = 1000, 3000
    for begin, end in ((500, 999), (999, 1001), (1001, 3000), (2999, 3001)):
        load.count(begin, end)
    assert (load.answered, load.measured, load.commands_per_second) == (4, 2, 10.0)
    assert load.samples_ns == [1999, 2]


async def test_an_error_answer_ends_the_load() -> None:
    async with fake_server(lambda _request: b"-ERR\r\n") as (port, _):
        load = quick_load()
        with pytest.raises(PeerError, match="-ERR"):
            await run_lanes(port, 2, load, ok_lane_of(load))


async def test_a_closed_connection_ends_the_load() -> None:
    async with fake_server(lambda _request: b"") as (port, _):
        load = quick_load()
        with pytest.raises(PeerError, match="closed a connection"):
            await run_lanes(port, 2, load, ok_lane_of(load))


async def test_an_answer_that_does_not_come_ends_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "ANSWER_TIMEOUT_S", 0.05)
    async with fake_server(lambda _request: redis.OK[:1]) as (port, _):
        load = quick_load(0.01, 0.01)
        with pytest.raises(TimeoutError):
            await run_lanes(port, 1, load, ok_lane_of(load))


# Servers

SLEEPER = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.close(); import time; time.sleep(600)"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_server_is_gone_after_the_block_however_it_ends(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), server(SLEEPER, tmp_path / "log") as process:  # noqa: PT012
        wait_until(lambda: (tmp_path / "log").read_text() == "up\n", process, tmp_path / "log")
        raise error
    assert process.returncode == -signal.SIGKILL


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('the port is taken')"]
    with server(failing, tmp_path / "log") as process, pytest.raises(PeerError, match="code 1: the port is taken"):
        wait_until(lambda: False, process, tmp_path / "log")


def test_a_server_ends_with_the_program_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fastpaxos.cli.peers.server import server, wait_until
log = Path({str(tmp_path / "log")!r})
with server({SLEEPER!r}, log) as process:
    wait_until(lambda: log.read_text() == "up\\n", process, log)
    print(process.pid, flush=True)
    sys.stdin.read()
"""
    started = subprocess.Popen(
        [sys.executable, "-c", program], env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        started.kill()
    wait_for_end(pid)


# redis-server


@pytest.mark.parametrize("seed", range(10))
def test_answers_are_counted_wherever_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    answers = redis.OkAnswers(7)
    for _ in range(5):
        stream = redis.OK * 7
        while stream:
            size = chance.randint(1, len(stream))
            complete = answers.take(stream[:size])
            stream = stream[size:]
            assert complete == (not stream)


def test_what_is_no_ok_is_refused() -> None:
    answers = redis.OkAnswers(2)
    assert not answers.take(b"+OK\r\n+O")
    with pytest.raises(PeerError, match="MISCONF"):
        answers.take(b"-MISCONF\r\n")


def test_the_requests_of_redis_walk_over_the_keys() -> None:
    single = redis.make_requests(3, 1)
    assert len(set(single)) == redis.KEYS
    assert single[5] == b"*3\r\n$3\r\nSET\r\n$7\r\nkey0005\r\n$3\r\n%b\r\n" % payloads(8, 3)[5]
    pipelines = redis.make_requests(3, 4)
    assert len(pipelines) == redis.REQUESTS
    assert pipelines[1] == b"".join(single[4:8])


def test_pipelines_and_transactions_of_large_commands_are_short() -> None:
    assert [redis.commands_per_request(size) for size in (0, 16, 1 << 16, 1 << 20)] == [256, 256, 16, 1]
    assert [etcd.puts_per_request(size) for size in (0, 16, 1 << 16, 1 << 20)] == [128, 128, 15, 1]


def test_redis_must_have_executed_what_it_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    running = redis.RunningRedis(0, PLAN, 256)
    running._acknowledged = 12
    statistics = "$99\r\n# Commandstats\r\ncmdstat_setex:calls=5,usec=1\r\ncmdstat_set:calls=%d,usec=9\r\n"
    monkeypatch.setattr(redis, "ask", lambda *_arguments: statistics % 12)
    running.check()
    monkeypatch.setattr(redis, "ask", lambda *_arguments: statistics % 11)
    with pytest.raises(PeerError, match="12 commands acknowledged, 11 executed"):
        running.check()


# etcd


def fields_of(message: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of the length-delimited fields of a message."""
    found = []
    while message:
        assert message[0] & 7 == 2
        number, length, shift, offset = message[0] >> 3, 0, 0, 1
        while True:
            length |= (message[offset] & 0x7F) << shift
            shift, offset = shift + 7, offset + 1
            if message[offset - 1] < 0x80:
                break
        found.append((number, message[offset : offset + length]))
        message = message[offset + length :]
    return found


@pytest.mark.parametrize("payload_bytes", [0, 5, 127, 128, 70_000])
def test_the_messages_of_etcd(payload_bytes: int) -> None:
    values = payloads(8, payload_bytes)
    puts = [fields_of(message) for message in etcd.make_requests(payload_bytes, 1)]
    assert puts == [[(1, b"key%04d" % number), (2, values[number % 8])] for number in range(etcd.KEYS)]
    transactions = [fields_of(message) for message in etcd.make_requests(payload_bytes, 128)]
    assert len(transactions) == etcd.REQUESTS
    for number, operations in enumerate(transactions):
        assert {operation for operation, _ in operations} == {2}
        inner = [fields_of(operation) for _, operation in operations]
        assert [kind for ((kind, _),) in inner] == [2] * 128
        # etcd refuses a transaction that writes a key twice.
        assert [fields_of(put) for ((_, put),) in inner] == [
            puts[(number * 128 + offset) % etcd.KEYS] for offset in range(128)
        ]


def test_etcd_must_have_applied_what_it_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "revision", lambda _port: 7)
    running = etcd.RunningEtcd(0, PLAN, transactions=False)
    running._acknowledged = 2
    monkeypatch.setattr(etcd, "revision", lambda _port: 9)
    running.check()
    monkeypatch.setattr(etcd, "revision", lambda _port: 8)
    with pytest.raises(PeerError, match="2 requests acknowledged, 1 applied"):
        running.check()


# PySyncObj


class FakeChain:
    """Answers what was called in the next turn, with an error from the `fails_at`-th on, or never after `silent_at`."""

    def __init__(self, fails_at: int = 1 << 60, silent_at: int = 1 << 60) -> None:
        self.called: list[Callable[[int, int], None]] = []
        self.count = 0
        self._fails_at = fails_at
        self._silent_at = silent_at

    def add(self, command: bytes, callback: Callable[[int, int], None]) -> None:
        assert len(command) == 16
        self.called.append(callback)

    def turn(self) -> None:
        if self.count >= self._silent_at:
            return
        called, self.called = self.called, []
        for callback in called:
            self.count += 1
            callback(self.count, 5 if self.count >= self._fails_at else 0)


@pytest.mark.parametrize("window", [1, 50])
def test_a_window_of_calls_is_kept_full_and_all_are_answered(window: int) -> None:
    chain = FakeChain()
    result = pysyncobj_node.run_load(chain, chain.turn, NodeLoad(window, 16, 0.05, 0.02))
    assert (result.errors, result.unanswered, result.acknowledged) == (0, 0, chain.count)
    assert 0 < result.measured < result.acknowledged
    samples = LatencyHistogram.from_sparse(result.latency).samples
    assert (abs(samples - result.measured) <= 1) if window == 1 else (samples == 0)


def test_calls_stop_at_the_first_error() -> None:
    chain = FakeChain(fails_at=101)
    result = pysyncobj_node.run_load(chain, chain.turn, NodeLoad(10, 16, 60.0, 0.0))
    assert (result.acknowledged, result.errors, result.unanswered) == (100, 10, 0)


def test_calls_that_are_never_answered_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pysyncobj_node, "LAST_ANSWERS_S", 0.01)
    chain = FakeChain(silent_at=100)
    result = pysyncobj_node.run_load(chain, chain.turn, NodeLoad(10, 16, 0.01, 0.0))
    assert (result.acknowledged, result.errors, result.unanswered) == (100, 0, 10)


class FakePipe:
    """A node that answers at once: whether it leads, its state, its load."""

    def __init__(self, leads: bool, states: list[tuple[int, int]], result: NodeResult | None = None) -> None:
        self._leads = leads
        self._states = states
        self._result = result
        self._answer: Any = None

    def send(self, request: Any) -> None:
        if request == "leader":
            self._answer = self._leads
        elif request == "state":
            self._answer = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        else:
            self._answer = self._result

    def poll(self, timeout_s: float) -> bool:
        return True

    def recv(self) -> Any:
        if self._answer is None:
            raise EOFError
        return self._answer


def run_fake(result: NodeResult | None, *others: tuple[int, int]) -> NodeResult:
    leader = FakePipe(True, [(0, 0), (10, 77)], result)
    pipes: Any = [FakePipe(False, [(0, 0), state]) for state in others] + [leader]
    return pysyncobj.NodeCluster(pipes).run(NodeLoad(1, 16, 0.1, 0.0))


def test_the_nodes_may_be_late_but_must_agree_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pysyncobj, "SETTLE_TIMEOUT_S", 0.1)
    result = NodeResult(acknowledged=10)
    assert run_fake(result, (10, 77), (10, 77)) is result
    for wrong in ((9, 77), (10, 78)):
        with pytest.raises(PeerError, match="10 commands acknowledged"):
            run_fake(result, (10, 77), wrong)
    with pytest.raises(PeerError, match="11 commands acknowledged"):
        run_fake(NodeResult(acknowledged=11), (10, 77))
    with pytest.raises(PeerError, match="a PySyncObj node failed: KeyError: 'x'"):
        run_fake(cast(Any, NodeFailure("KeyError: 'x'")), (10, 77))
    with pytest.raises(PeerError, match="ended on its own"):
        run_fake(None, (10, 77))


@pytest.mark.parametrize("result", [NodeResult(unanswered=3), NodeResult(errors=3)])
def test_a_lost_leader_disturbs_a_turn(result: NodeResult) -> None:
    with pytest.raises(DisturbedError, match="3"):
        run_fake(result, (10, 77))


def test_the_best_settings_are_those_of_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastest, quickest = pysyncobj.BATCHES[1], pysyncobj.ALONE[2]

    def try_loads(_nodes: int, settings: NodeSettings, loads: list[NodeLoad]) -> list[tuple[NodeLoad, NodeResult]]:
        histogram = LatencyHistogram()
        histogram.record([1000 if settings is quickest else 2000])
        speed = 20_000 if settings is fastest else 10_000
        return [
            (load, NodeResult(measured=speed + (load.window == 4000), latency=histogram.to_sparse())) for load in loads
        ]

    monkeypatch.setattr(pysyncobj, "try_loads", try_loads)
    peer = pysyncobj.PySyncObj("best", "fastpaxos", best=True)
    peer.tune(tmp_path, PLAN)
    assert "throughput: autoTick=False, " in peer.settings()
    assert "appendEntriesPeriod=0.001; latency: appendEntriesUseBatch=False, " in peer.settings()
    assert "the leader never waits; called" in peer.settings()
    assert "4000 commands in flight" in peer.load(PLAN)
    monkeypatch.setattr(pysyncobj, "try_loads", lambda *_arguments: [])
    with pytest.raises(PeerError, match="every trial"):
        peer.tune(tmp_path, PLAN)


def test_large_commands_get_a_small_window_and_large_messages() -> None:
    windows = [pysyncobj.fit(4000, PeerPlan(size, 1, 1.0, 1.0)) for size in (1, 16, 1 << 16, 1 << 22)]
    assert windows == [4000, 4000, 32, 1]
    settings = pysyncobj.with_room(pysyncobj.BATCHES[1], PeerPlan(1 << 16, 1, 1.0, 1.0))
    assert settings.options == pysyncobj.BATCHES[1].options | {"appendEntriesBatchSizeBytes": 1 << 20}
    assert pysyncobj.with_room(pysyncobj.BATCHES[1], PLAN) is pysyncobj.BATCHES[1]


class FakeNodePipe:
    """Requests of a parent that then goes away."""

    def __init__(self, *requests: Any) -> None:
        self._requests = list(requests)
        self.sent: list[Any] = []

    def poll(self, _timeout_s: float) -> bool:
        return True

    def recv(self) -> Any:
        if not self._requests:
            raise EOFError
        return self._requests.pop(0)

    def send(self, answer: Any) -> None:
        self.sent.append(answer)


def test_a_node_answers_until_its_parent_is_gone_and_tells_what_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = types.SimpleNamespace(count=3, digest=9, isReady=lambda: True, _isLeader=lambda: True, hasQuorum=True)
    monkeypatch.setattr(pysyncobj_node, "make_chain", lambda *_arguments: chain)
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    monkeypatch.setattr(pysyncobj_node.logging, "disable", lambda *_arguments: None)
    pipe: Any = FakeNodePipe("leader", "state")
    pysyncobj_node.run_node(["a", "b"], NodeSettings(), pipe)
    assert pipe.sent == [True, (3, 9)]
    del chain.count
    pipe = FakeNodePipe("state", "state")
    pysyncobj_node.run_node(["a", "b"], NodeSettings(), pipe)
    assert pipe.sent == [NodeFailure("AttributeError: 'types.SimpleNamespace' object has no attribute 'count'")]


def test_the_default_settings_stay(tmp_path: Path) -> None:
    peer = pysyncobj.PySyncObj("default", "fastpaxos", best=False)
    peer.tune(tmp_path, PLAN)
    assert peer.settings().startswith("throughput: default settings; latency: default settings; ")


# fastpaxos and its floor


@pytest.mark.parametrize("payload_bytes", [0, 16, 1000, 1 << 16, 1_000_000])
def test_a_command_counts_at_the_floor_what_it_takes_in_a_block(payload_bytes: int) -> None:
    count = replicas.commands_per_block(payload_bytes)
    block = build_block([bytes(payload_bytes)] * count, 1, 1)
    assert len(block) <= 1 << 20
    assert block_bytes_per_command(payload_bytes) == len(block) / count
    assert payload_bytes < block_bytes_per_command(payload_bytes) < payload_bytes + 100


def test_replicas_must_hold_what_was_acknowledged_once_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, Any] = {"count": 5, "digests": "aaa"}

    async def settled_count(*_arguments: Any, **_options: Any) -> tuple[int, list[dict[str, str]]]:
        return held["count"], [{"digest": digest} for digest in held["digests"]]

    monkeypatch.setattr(replicas, "settled_count", settled_count)
    running = replicas.RunningFastPaxos({}, PLAN, blocks=True)
    running._acknowledged = 3
    held["count"] = 8
    running.check()
    held["digests"] = "aab"
    with pytest.raises(PeerError, match="different digests"):
        running.check()
    held["count"] = 9
    with pytest.raises(PeerError, match="3 commands acknowledged, 4 applied"):
        running.check()
