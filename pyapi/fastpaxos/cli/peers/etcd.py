"""etcd, three nodes: puts through the JSON gateway of the leader, over raw HTTP/1.1 connections that stay open."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastpaxos.cli.cluster_process import free_ports
from fastpaxos.cli.latency import Percentiles
from fastpaxos.cli.peers.lane import LaneLoad, run_lanes
from fastpaxos.cli.peers.peer import PeerError, PeerPlan, payloads
from fastpaxos.cli.peers.server import first_line, server, wait_until
from fastpaxos.runtime import run as run_loop

__all__ = ["Etcd"]

KEYS = 1000
PUTS_PER_TRANSACTION = 128  # what etcd allows without further options
REQUEST_BYTES_MAX = 1 << 20
REQUESTS = 8
TIMEOUT_S = 10.0
HEAD_END = b"\r\n\r\n"
LENGTH = b"\r\nContent-Length: "
CHUNKED = b"\r\nTransfer-Encoding: chunked"
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Etcd:
    """Puts: `transactions` of many, or one by one."""

    durability = "fsync"
    nodes = 3

    def __init__(self, name: str, reference: str, *, transactions: bool) -> None:
        self.name = name
        self.reference = reference
        self._transactions = transactions

    def missing(self) -> str | None:
        return None if shutil.which("etcd") else "apt-get install etcd-server"

    def version(self) -> str:
        return first_line(["etcd", "--version"]).removeprefix("etcd Version: ")

    def settings(self) -> str:
        what = "transactions of several puts" if self._transactions else "puts"
        return f"default settings; {what} by a raw HTTP/1.1 client of the leader's JSON gateway"

    def load(self, plan: PeerPlan) -> str:
        puts = puts_per_request(plan.payload_bytes) if self._transactions else 1
        return f"{plan.clients} connections, 1 request of {puts} in flight each"

    def tune(self, folder: Path, plan: PeerPlan) -> None:
        """Nothing to choose."""

    @contextlib.contextmanager
    def running(self, folder: Path, plan: PeerPlan) -> Iterator[RunningEtcd]:
        ports = free_ports(2 * self.nodes)
        client_ports, peer_ports = ports[: self.nodes], ports[self.nodes :]
        members = ",".join(f"node{port}=http://127.0.0.1:{port}" for port in peer_ports)
        # Variables of this shell must not become settings, but for the one that unlocks some processors.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
        }
        with contextlib.ExitStack() as stack:
            started = []
            for client_port, peer_port in zip(client_ports, peer_ports, strict=True):
                log = folder / f"etcd-{peer_port}.log"
                command = member_command(folder, client_port, peer_port, members)
                started.append((client_port, stack.enter_context(server(command, log, environment)), log))
            for client_port, process, log in started:
                wait_until(lambda port=client_port: has_leader(port), process, log)  # type: ignore[misc]
            leader = next(port for port in client_ports if is_leader(port))
            puts = puts_per_request(plan.payload_bytes) if self._transactions else 1
            running = RunningEtcd(leader, plan, puts)
            yield running
            running.check()


class RunningEtcd:
    """A cluster whose leader listens on `port`."""

    def __init__(self, port: int, plan: PeerPlan, puts: int) -> None:
        self._port = port
        self._plan = plan
        self._puts = puts
        self._acknowledged = 0
        self._revision = revision(port)

    def throughput(self) -> float:
        requests = make_requests(self._plan.payload_bytes, self._puts)
        load = LaneLoad(requests, self._puts, self._plan.seconds, self._plan.warmup_s)
        self._run(load, self._plan.clients)
        return load.commands_per_second

    def latency(self) -> Percentiles:
        requests = make_requests(self._plan.payload_bytes, 1)
        load = LaneLoad(requests, 1, self._plan.seconds / 2, self._plan.warmup_s / 2)
        self._run(load, 1)
        return load.histogram().percentiles_us()

    def check(self) -> None:
        """Raises PeerError unless the store has one revision for each request that was acknowledged."""
        applied = revision(self._port) - self._revision
        if applied != self._acknowledged:
            raise PeerError(f"{self._acknowledged} requests acknowledged, {applied} applied")

    def _run(self, load: LaneLoad, lanes: int) -> None:
        run_loop(run_lanes(self._port, lanes, load, HttpAnswer))
        self._acknowledged += load.answered


class HttpAnswer:
    """The answer of one request: a head that says success, and a body, whose length it tells or which has an end."""

    def __init__(self) -> None:
        self._received = b""

    def take(self, data: bytes) -> bool:
        received = self._received = self._received + data
        head_bytes = received.find(HEAD_END)
        if head_bytes < 0:
            return False
        if not received.startswith(b"HTTP/1.1 200 "):
            raise PeerError(f"etcd answered {received[:300]!r}")
        if not self._is_complete(received, head_bytes):
            return False
        self._received = b""
        return True

    @staticmethod
    def _is_complete(received: bytes, head_bytes: int) -> bool:
        begin = received.find(LENGTH, 0, head_bytes)
        if begin >= 0:
            begin += len(LENGTH)
            length = int(received[begin : received.find(b"\r\n", begin)])
            return len(received) >= head_bytes + len(HEAD_END) + length
        if received.find(CHUNKED, 0, head_bytes) < 0:
            raise PeerError(f"etcd's answer has no length: {received[:300]!r}")
        # JSON holds no line end of its own, so that this is the last chunk.
        return received.endswith(LAST_CHUNK)


def member_command(folder: Path, client_port: int, peer_port: int, members: str) -> list[str]:
    """The command of one node."""
    client_url, peer_url = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        *("etcd", "--name", f"node{peer_port}", "--data-dir", str(folder / f"node{peer_port}")),
        *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", members, "--initial-cluster-state", "new"),
        *("--logger", "zap", "--log-level", "warn"),
    ]


def puts_per_request(payload_bytes: int) -> int:
    """How many puts a transaction has: fewer of large ones."""
    return max(1, min(PUTS_PER_TRANSACTION, REQUEST_BYTES_MAX // (payload_bytes + 64)))


def make_requests(payload_bytes: int, puts: int) -> list[bytes]:
    """Requests of `puts` puts each, which walk over the keys; a transaction writes each key once."""
    values = [base64.b64encode(value).decode() for value in payloads(REQUESTS, payload_bytes)]
    keys = [base64.b64encode(b"key%04d" % number).decode() for number in range(KEYS)]
    entries = [{"key": key, "value": values[number % REQUESTS]} for number, key in enumerate(keys)]
    if puts == 1:
        return [http_request("/v3/kv/put", entry) for entry in entries]
    return [
        http_request(
            "/v3/kv/txn",
            {"success": [{"requestPut": entries[(first + number) % KEYS]} for number in range(puts)]},
        )
        for first in range(0, REQUESTS * puts, puts)
    ]


def http_request(path: str, body: dict[str, Any]) -> bytes:
    """A request on a connection that stays open."""
    content = json.dumps(body, separators=(",", ":")).encode()
    return b"POST %b HTTP/1.1\r\nHost: etcd\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(content), content)


def ask(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one request, not counted, and return its answer. Raises OSError without a server, PeerError for an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        text = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no answer: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise PeerError(f"etcd answered {response.status} to {path}: {text[:300]!r}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def has_leader(port: int) -> bool:
    """Whether this node knows a leader. Fields that are zero are left out of answers."""
    return int(ask(port, "/v3/maintenance/status", {}).get("leader", 0)) != 0


def is_leader(port: int) -> bool:
    """Whether this node is the leader."""
    status = ask(port, "/v3/maintenance/status", {})
    return bool(status["leader"] == status["header"]["member_id"])


def revision(port: int) -> int:
    """The revision of the store, after everything that was acknowledged before."""
    return int(ask(port, "/v3/kv/range", {"key": base64.b64encode(b"key").decode()})["header"]["revision"])
