"""etcd, three nodes: puts by gRPC to the leader. The JSON gateway, which is slower, only tells the cluster's state."""

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
from fastpaxos.cli.peers.grpc import GrpcLane
from fastpaxos.cli.peers.lane import LaneLoad, run_lanes
from fastpaxos.cli.peers.peer import PeerError, PeerPlan, payloads
from fastpaxos.cli.peers.server import first_line, server, wait_until
from fastpaxos.runtime import run as run_loop

__all__ = ["Etcd"]

KEYS = 1000
PUTS_PER_TRANSACTION = 128  # what etcd allows without further options
TRANSACTION_CONNECTIONS, TRANSACTIONS_IN_FLIGHT = 4, 8
REQUEST_BYTES_MAX = 1 << 20
REQUESTS = 8
TIMEOUT_S = 10.0
PUT, TRANSACTION = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn"
# Field numbers of etcd's messages.
PUT_KEY, PUT_VALUE = 1, 2
TRANSACTION_SUCCESS = 2  # the operations, as there is nothing to compare
OPERATION_PUT = 2


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
        what = "transactions of many puts" if self._transactions else "puts"
        return f"default settings; {what} by a raw gRPC client of the leader"

    def load(self, plan: PeerPlan) -> str:
        if not self._transactions:
            return f"{plan.clients} connections, 1 command in flight each"
        puts = puts_per_request(plan.payload_bytes)
        return f"{TRANSACTION_CONNECTIONS} connections, {TRANSACTIONS_IN_FLIGHT} transactions of {puts} in flight each"

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
            running = RunningEtcd(leader, plan, transactions=self._transactions)
            yield running
            running.check()


class RunningEtcd:
    """A cluster whose leader listens on `port`."""

    def __init__(self, port: int, plan: PeerPlan, *, transactions: bool) -> None:
        self._port = port
        self._plan = plan
        self._transactions = transactions
        self._acknowledged = 0
        self._revision = revision(port)

    def throughput(self) -> float:
        plan = self._plan
        puts, lanes, depth, method = 1, plan.clients, 1, PUT
        if self._transactions:
            puts, method = puts_per_request(plan.payload_bytes), TRANSACTION
            lanes, depth = TRANSACTION_CONNECTIONS, TRANSACTIONS_IN_FLIGHT
        load = LaneLoad(make_requests(plan.payload_bytes, puts), puts, plan.seconds, plan.warmup_s)
        self._run(load, lanes, depth, method)
        return load.commands_per_second

    def latency(self) -> Percentiles:
        plan = self._plan
        load = LaneLoad(make_requests(plan.payload_bytes, 1), 1, plan.seconds / 2, plan.warmup_s / 2)
        self._run(load, 1, 1, PUT)
        return load.histogram().percentiles_us()

    def check(self) -> None:
        """Raises PeerError unless the store has one revision for each request that was acknowledged."""
        applied = revision(self._port) - self._revision
        if applied != self._acknowledged:
            raise PeerError(f"{self._acknowledged} requests acknowledged, {applied} applied")

    def _run(self, load: LaneLoad, lanes: int, depth: int, method: str) -> None:
        run_loop(run_lanes(self._port, lanes, load, lambda first: GrpcLane(load, first, method, depth)))
        self._acknowledged += load.answered


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
    """Messages of `puts` puts each, which walk over the keys; a transaction writes each key once."""
    values = payloads(REQUESTS, payload_bytes)
    entries = [
        field(PUT_KEY, b"key%04d" % number) + field(PUT_VALUE, values[number % REQUESTS]) for number in range(KEYS)
    ]
    if puts == 1:
        return entries
    operations = [field(TRANSACTION_SUCCESS, field(OPERATION_PUT, entry)) for entry in entries]
    return [
        b"".join(operations[(first + number) % KEYS] for number in range(puts))
        for first in range(0, REQUESTS * puts, puts)
    ]


def field(number: int, content: bytes) -> bytes:
    """A field of a message: bytes with their length before them."""
    length, encoded = len(content), bytearray((number << 3 | 2,))
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded) + content


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
