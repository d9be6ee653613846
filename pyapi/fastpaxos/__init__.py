"""fastpaxos: Multi-Paxos for Python programs, an embeddable, durable replicated log and state machine.

    class Counter(fastpaxos.StateMachine):
        def apply(self, command: bytes, context: fastpaxos.ApplyContext) -> bytes: ...
        def query(self, request: bytes, context: fastpaxos.QueryContext) -> bytes: ...

    async with fastpaxos.Node(fastpaxos.NodeConfig(node_id=1, cluster=cluster, data_dir="data/1"), Counter()):
        async with fastpaxos.Client(cluster) as client:
            result = await client.execute(b"add 1", timeout=1.0)

`Node` is one replica, `Client` and `BlockingClient` run commands and reads on the cluster, `StateMachine` is what you
write. `fastpaxos.errors` draws the tree of errors; `fastpaxos.kv` is a ready key-value machine.
"""

from __future__ import annotations

from fastpaxos.answers import Results
from fastpaxos.blocking import BlockingClient
from fastpaxos.client import Client
from fastpaxos.config import NodeConfig
from fastpaxos.errors import (
    Busy,
    ClientError,
    Closed,
    CommandError,
    ConfigError,
    ConnectionLost,
    CorruptionError,
    DeadlineExceeded,
    FastPaxosError,
    FrameError,
    InternalError,
    InvariantError,
    NoLeader,
    NotApplied,
    OutcomeUnknown,
    Rejected,
    ResultGone,
    SessionExpired,
    TooLarge,
)
from fastpaxos.hashchain import HashChain
from fastpaxos.kv import KeyValueClient, KeyValueMachine
from fastpaxos.node import Node
from fastpaxos.statemachine import ApplyContext, QueryContext, ResultBlob, StateMachine
from fastpaxos_core import CommandFailure, build_info

__all__ = [
    "ApplyContext",
    "BlockingClient",
    "Busy",
    "Client",
    "ClientError",
    "Closed",
    "CommandError",
    "CommandFailure",
    "ConfigError",
    "ConnectionLost",
    "CorruptionError",
    "DeadlineExceeded",
    "FastPaxosError",
    "FrameError",
    "HashChain",
    "InternalError",
    "InvariantError",
    "KeyValueClient",
    "KeyValueMachine",
    "NoLeader",
    "Node",
    "NodeConfig",
    "NotApplied",
    "OutcomeUnknown",
    "QueryContext",
    "Rejected",
    "ResultBlob",
    "ResultGone",
    "Results",
    "SessionExpired",
    "StateMachine",
    "TooLarge",
    "build_info",
]

__version__ = build_info()["version"]
