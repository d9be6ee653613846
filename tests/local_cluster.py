"""Nodes of one cluster in this process, over loopback TCP and real directories. For integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpaxos import Client, HashChain, Node, NodeConfig, StateMachine

PATIENCE_S = 30.0


async def until(condition: Callable[[], object]) -> None:
    """Look every few milliseconds whether `condition` holds; for states that no event announces."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class LocalCluster:
    """Up to nine nodes that can be started, stopped and started again.

    `settings` go to every NodeConfig; `machine` makes the state machine of a node.
    """

    def __init__(
        self, path: Path, size: int = 3, *, machine: Callable[[], StateMachine] = HashChain, **settings: Any
    ) -> None:
        self.path = path
        self.addresses = {number: f"127.0.0.1:{port}" for number, port in enumerate(free_ports(size), 1)}
        self.nodes: dict[int, Node] = {}
        self._machine = machine
        self._settings = settings

    def config(self, node_id: int, **settings: Any) -> NodeConfig:
        data_dir = self.path / str(node_id)
        values = {"node_id": node_id, "cluster": self.addresses, "data_dir": data_dir, **self._settings}
        return NodeConfig(**{**values, **settings})

    async def start(self, node_id: int, **settings: Any) -> Node:
        node = Node(self.config(node_id, **settings), self._machine())
        await node.start()
        self.nodes[node_id] = node
        return node

    async def stop(self, node_id: int) -> None:
        await self.nodes.pop(node_id).aclose()

    async def __aenter__(self) -> LocalCluster:
        for node_id in self.addresses:
            await self.start(node_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes.values():
            await node.aclose()

    def client(self, **options: Any) -> Client:
        return Client(self.addresses, **{"timeout": PATIENCE_S, **options})

    def leader(self) -> Node | None:
        """The node that leads and is ready, if there is one."""
        ready = [node for node in self.nodes.values() if node.status()["is_ready"]]
        return ready[0] if ready else None

    async def wait_for_leader(self) -> Node:
        await until(self.leader)
        leader = self.leader()
        assert leader is not None
        return leader

    async def settle(self) -> list[dict[str, Any]]:
        """Wait until all running nodes have applied the same log to its end, and return their statuses."""
        await until(lambda: len({str(self._position(node)) for node in self.nodes.values()}) == 1)
        return [node.status() for node in self.nodes.values()]

    @staticmethod
    def _position(node: Node) -> tuple[int, int, object]:
        status = node.status()
        unapplied = status["last_slot"] != status["applied_index"]
        return status["applied_index"], status["commit_index"], object() if unapplied else None

    def followers(self) -> list[Node]:
        leader = self.leader()
        return [node for node in self.nodes.values() if node is not leader]


@contextlib.asynccontextmanager
async def closing(node: Node) -> Any:
    """Close `node` at the end, whatever it died of."""
    try:
        yield node
    finally:
        await node.aclose()
