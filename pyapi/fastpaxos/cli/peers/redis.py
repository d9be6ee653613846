"""redis-server, one node: its append-only file is synced before each answer (`appendfsync always`)."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from fastpaxos.cli.cluster_process import free_ports
from fastpaxos.cli.latency import Percentiles
from fastpaxos.cli.peers.lane import LaneLoad, SerialLane, run_lanes
from fastpaxos.cli.peers.peer import PeerError, PeerPlan, payloads
from fastpaxos.cli.peers.server import first_line, server, wait_until
from fastpaxos.runtime import run as run_loop

__all__ = ["Redis"]

KEYS = 1000
PIPELINE = 256
REQUEST_BYTES_MAX = 1 << 20
REQUESTS = 8
TIMEOUT_S = 10.0
OK = b"+OK\r\n"


class Redis:
    """SET by a raw client: `pipelined` sends many commands at once, else each waits for its answer."""

    durability = "fsync"
    nodes = 1

    def __init__(self, name: str, reference: str, *, pipelined: bool) -> None:
        self.name = name
        self.reference = reference
        self._pipelined = pipelined

    def missing(self) -> str | None:
        return None if shutil.which("redis-server") else "apt-get install redis-server"

    def version(self) -> str:
        fields = first_line(["redis-server", "--version"]).split()
        return next(field[2:] for field in fields if field.startswith("v="))

    def settings(self) -> str:
        return "appendonly yes, appendfsync always, save off, no rewrite of the file; SET by a raw RESP client"

    def load(self, plan: PeerPlan) -> str:
        depth = commands_per_request(plan.payload_bytes) if self._pipelined else 1
        return f"{plan.clients} connections, {depth} commands in flight each"

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        """Nothing to choose."""

    @contextlib.contextmanager
    def running(self, folder: Path, plan: PeerPlan) -> Iterator[RunningRedis]:
        (port,) = free_ports(1)
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        command += ["--auto-aof-rewrite-percentage", "0", "--daemonize", "no"]
        log = folder / "redis.log"
        with server(command, log) as process:
            wait_until(lambda: ask(port, "PING") == "+PONG", process, log)
            if "always" not in ask(port, "CONFIG", "GET", "appendfsync"):
                raise PeerError("redis-server does not sync each write")
            depth = commands_per_request(plan.payload_bytes) if self._pipelined else 1
            running = RunningRedis(port, plan, depth)
            yield running
            running.check()


class RunningRedis:
    """A server on `port`."""

    def __init__(self, port: int, plan: PeerPlan, depth: int) -> None:
        self._port = port
        self._plan = plan
        self._depth = depth
        self._acknowledged = 0

    def throughput(self) -> float:
        load = LaneLoad(
            make_requests(self._plan.payload_bytes, self._depth), self._depth, self._plan.seconds, self._plan.warmup_s
        )
        self._run(load, self._plan.clients)
        return load.commands_per_second

    def latency(self) -> Percentiles:
        load = LaneLoad(make_requests(self._plan.payload_bytes, 1), 1, self._plan.seconds / 2, self._plan.warmup_s / 2)
        self._run(load, 1)
        return load.histogram().percentiles_us()

    def check(self) -> None:
        """Raises PeerError unless the server executed what it acknowledged."""
        executed = calls_of_set(ask(self._port, "INFO", "commandstats"))
        if executed != self._acknowledged:
            raise PeerError(f"{self._acknowledged} commands acknowledged, {executed} executed")

    def _run(self, load: LaneLoad, lanes: int) -> None:
        run_loop(run_lanes(self._port, lanes, load, lambda first: SerialLane(load, first, OkAnswers(load.commands))))
        self._acknowledged += load.answered * load.commands


class OkAnswers:
    """The answer of a pipeline of SETs."""

    def __init__(self, commands: int) -> None:
        self._expected = OK * commands
        self._received = 0

    def take(self, data: bytes) -> bool:
        if data != self._expected[self._received : self._received + len(data)]:
            raise PeerError(f"redis-server answered {data[:200]!r}")
        self._received += len(data)
        if self._received < len(self._expected):
            return False
        self._received = 0
        return True


def commands_per_request(payload_bytes: int) -> int:
    """How many commands a pipeline has: fewer of large ones."""
    return max(1, min(PIPELINE, REQUEST_BYTES_MAX // max(1, payload_bytes)))


def encode(*arguments: bytes) -> bytes:
    """One command in the protocol's form."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def make_requests(payload_bytes: int, depth: int) -> list[bytes]:
    """Requests of `depth` SETs each, which walk over the keys."""
    count = REQUESTS if depth > 1 else KEYS
    values = payloads(REQUESTS, payload_bytes)
    sets = [encode(b"SET", b"key%04d" % (number % KEYS), values[number % REQUESTS]) for number in range(count * depth)]
    return [b"".join(sets[begin : begin + depth]) for begin in range(0, len(sets), depth)]


def ask(port: int, *arguments: str) -> str:
    """Send one command and return its answer, as it came. Raises PeerError for an error, OSError without a server."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(encode(*(argument.encode() for argument in arguments)) + encode(b"QUIT"))
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    answer = received.removesuffix(OK).decode().strip()
    if answer.startswith("-"):
        raise PeerError(f"redis-server answered {answer} to {' '.join(arguments)}")
    return answer


def calls_of_set(statistics: str) -> int:
    """How many SETs `INFO commandstats` tells of."""
    for line in statistics.splitlines():
        if line.startswith("cmdstat_set:calls="):
            return int(line.removeprefix("cmdstat_set:calls=").split(",")[0])
    return 0
