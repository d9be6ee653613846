"""Connections of session clients: reliable and in order while they last, as TCP is, and broken in all ways of TCP.

A node that was killed says so (its kernel does), one that lost its power says nothing: its client finds out by itself.
A client that leaves may have frames on their way that arrive long after it has gone elsewhere. Nodes may be out of
reach for a client for a while, in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastpaxos_core.wire import Frame

from .network import LinkOptions, SimNetwork, parse_frames
from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from .cluster import SimCluster
    from .session_client import SimSessionClient

__all__ = ["ClientConnections"]

_ACCEPT_MAX_NS = 2 * MILLISECOND_NS
_CONNECT_TIMEOUT_NS = 1_000 * MILLISECOND_NS
_NOTICE_MAX_NS = 20 * MILLISECOND_NS
_NOTICE_LATE_MAX_NS = 3_000 * MILLISECOND_NS
_LATE = 0.3


@dataclass(slots=True)
class _Connection:
    client: SimSessionClient
    node_id: int
    epoch: int
    is_dead: bool = False
    """Nothing passes any more, whoever knows it."""
    client_open: bool = True
    node_open: bool = True


class ClientConnections:
    """All connections of the session clients of one cluster, by epoch: the number of a connection, from 1."""

    def __init__(self, cluster: SimCluster, options: LinkOptions) -> None:
        self.network = SimNetwork(cluster.schedule, options, self._deliver)
        self._cluster = cluster
        self._open: dict[int, _Connection] = {}
        self._epoch = 0

    # Connecting

    def dial(self, client: SimSessionClient, node_id: int) -> int:
        """Begin to connect; the client is told later whether it could. Returns the epoch."""
        self._epoch += 1
        epoch = self._epoch
        delay_ns = self._cluster.random.randrange(1, _ACCEPT_MAX_NS)
        self._cluster.schedule.after(delay_ns, lambda: self._accept(client, node_id, epoch))
        return epoch

    def _accept(self, client: SimSessionClient, node_id: int, epoch: int) -> None:
        cluster = self._cluster
        node = cluster.nodes[node_id]
        if self.network.is_cut(client.address, node_id):
            delay_ns = cluster.random.randrange(1, _CONNECT_TIMEOUT_NS)
            error = TimeoutError(f"node {node_id} is out of reach")
            cluster.schedule.after(delay_ns, lambda: client.connect_failed(epoch, error))
        elif not node.running:
            client.connect_failed(epoch, ConnectionRefusedError(f"node {node_id} is down"))
        elif client.dialing == epoch:
            self._open[epoch] = _Connection(client, node_id, epoch)
            # A kernel accepts for a process that is paused; the process sees the connection when it runs again.
            node.input(lambda: node.transport.client_up(client.address, epoch))
            client.connected(epoch)

    # Frames

    def send_from_client(self, epoch: int, buffers: list[bytes]) -> None:
        """Carry whole frames to the node."""
        connection = self._open[epoch]
        for data, frame in parse_frames(buffers[0] if len(buffers) == 1 else b"".join(buffers)):
            self._send(connection, connection.client.address, connection.node_id, data, frame)

    def send_to_client(self, epoch: int, data: bytes, frame: Frame) -> None:
        """Carry one frame to the client."""
        connection = self._open.get(epoch)
        if connection is not None:
            self._send(connection, connection.node_id, connection.client.address, data, frame)

    def _send(self, connection: _Connection, source: int, target: int, data: bytes, frame: Frame) -> None:
        self._cluster.note_frame(source, target, data)
        if not connection.is_dead:
            self.network.send(source, target, connection.epoch, data, frame)

    def _deliver(self, source: int, target: int, epoch: int | None, frame: Frame | None) -> None:
        connection = self._open.get(epoch or 0)
        if connection is None or connection.is_dead or frame is None:
            return
        if target < 0:
            if connection.client_open:
                connection.client.receive(connection.epoch, frame)
        elif connection.node_open:
            node = self._cluster.nodes[target]
            node.input(lambda: node.transport.receive_from_client(source, connection.epoch, frame))

    # The end of a connection

    def left_by_client(self, epoch: int) -> None:
        """The client closed its end; the node notices later, and may get what is on its way."""
        connection = self._open[epoch]
        connection.client_open = False
        self._tell_node(connection, _NOTICE_MAX_NS)
        self._prune(connection)

    def left_by_node(self, epoch: int) -> None:
        """The node closed its end; the client notices later."""
        connection = self._open.get(epoch)
        if connection is not None and connection.node_open:
            connection.node_open = False
            self._tell_client(connection, _NOTICE_MAX_NS)
            self._prune(connection)

    def node_ended(self, node_id: int) -> None:
        """The process of a node is gone, perhaps with its machine."""
        for connection in [*self._open.values()]:
            if connection.node_id == node_id and connection.node_open:
                connection.node_open = False
                self._tell_client(connection, self._notice_max_ns())
                self._prune(connection)

    def break_some(self) -> None:
        """Break a random connection: frames on their way are lost, and each end notices when it does."""
        standing = [connection for connection in self._open.values() if not connection.is_dead]
        if standing:
            self._break(self._cluster.random.choice(standing))

    def cut(self, client: SimSessionClient, node_id: int) -> None:
        """Take a node out of a client's reach."""
        self.network.cut(client.address, node_id)
        for connection in [*self._open.values()]:
            if connection.client is client and connection.node_id == node_id and not connection.is_dead:
                self._break(connection)

    def heal(self) -> None:
        """All nodes are in reach again, and who still waits on a dead connection hears soon that it is gone."""
        self.network.heal()
        for connection in [*self._open.values()]:
            if connection.is_dead or not connection.node_open:
                self._tell_client(connection, _NOTICE_MAX_NS)
            if connection.is_dead or not connection.client_open:
                self._tell_node(connection, _NOTICE_MAX_NS)

    def _break(self, connection: _Connection) -> None:
        connection.is_dead = True
        self._tell_client(connection, self._notice_max_ns())
        self._tell_node(connection, self._notice_max_ns())

    def _notice_max_ns(self) -> int:
        if self._cluster.random.random() < _LATE:
            self._cluster.marks["client_half_open"] += 1
            return _NOTICE_LATE_MAX_NS
        return _NOTICE_MAX_NS

    def _tell_client(self, connection: _Connection, within_ns: int) -> None:
        def tell() -> None:
            if connection.client_open:
                connection.client_open = False
                connection.client.disconnected(connection.epoch)
                self._prune(connection)

        if connection.client_open:
            self._cluster.schedule.after(self._cluster.random.randrange(within_ns), tell)

    def _tell_node(self, connection: _Connection, within_ns: int) -> None:
        def tell() -> None:
            if connection.node_open:
                connection.node_open = False
                node = self._cluster.nodes[connection.node_id]
                node.input(lambda: node.transport.client_down(connection.client.address, connection.epoch))
                self._prune(connection)

        if connection.node_open:
            self._cluster.schedule.after(self._cluster.random.randrange(within_ns), tell)

    def _prune(self, connection: _Connection) -> None:
        if not connection.client_open and not connection.node_open:
            self._open.pop(connection.epoch, None)
