"""Connections of simulated nodes: what `fastpaxos.transport` is to a real one.

A connection belongs to one life of both of its ends. Frames travel through `SimNetwork`; who may connect is decided by
the code that real nodes use (`fastpaxos.handshake`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from fastpaxos.handshake import HandshakeRefusedError, Hello, check_hello, check_protocol, check_sender
from fastpaxos_core.errors import FrameError
from fastpaxos_core.messages import decode_message
from fastpaxos_core.wire import (
    Frame,
    FrameType,
    FrameWriter,
    parse_mapping,
    parse_query,
    parse_query_reply,
    parse_reply,
)

from .history import Violation
from .network import accepted, parse_frames

if TYPE_CHECKING:
    from .node import SimNode

__all__ = ["ClientLink", "PeerLink", "SimTransport"]


_CONTROL = int(FrameType.CONTROL)
_REPLY = int(FrameType.REPLY)
_QUERY = int(FrameType.QUERY)
_QUERY_REPLY = int(FrameType.QUERY_REPLY)
_TOLD = ("slot_begin", "slot_end", "commit_index", "promised_ballot", "applied_index", "durable_index", "read_round")


def _described(message: dict[str, Any]) -> str:
    """One message on one line, as a reader of a trace wants it."""
    ballot = message["ballot"]
    words = [message["message"], f"{ballot >> 16}.{ballot & 0xFFFF}"]
    words += [f"{name}={message[name]}" for name in _TOLD if message.get(name)]
    for entry in message.get("entries", ()):
        of_ballot = entry.get("ballot", ballot)
        origin = f" of {of_ballot >> 16}.{of_ballot & 0xFFFF}" if of_ballot != ballot else ""
        unknown = " unknown" if entry.get("flags", 0) & 2 else ""
        words.append(f"[{entry['slot_begin']},{entry['slot_end']}) {entry['value_crc']:08x}{origin}{unknown}")
    return " ".join(words)


class PeerLink:
    """A node's end of a connection to a peer."""

    def __init__(self, node: SimNode, peer: int, epoch: int, hello: Hello) -> None:
        self.node = node
        self.peer = peer
        self.epoch = epoch
        self.hello = hello
        self.closed = False

    def send(self, buffers: list[bytes]) -> None:
        """Send whole frames; each one may be the last thing that this process does."""
        node = self.node
        if self.closed or not node.running:
            return
        cluster = node.cluster
        for data, frame in parse_frames(buffers[0] if len(buffers) == 1 else b"".join(buffers)):
            node.effect()
            if frame.type != _CONTROL:
                message = decode_message(frame)
                replica = node.replica
                promised = replica.promised_ballot if replica is not None else 0
                cluster.checker.sent(node.node_id, node.boot, message, promised)
                if cluster.trace is not None:
                    cluster.note(f"node {node.node_id} -> {self.peer}  {_described(message)}")
            elif cluster.trace is not None:
                cluster.note(f"node {node.node_id} -> {self.peer}  {parse_mapping(frame)}")
            cluster.send(node.node_id, self.peer, self.epoch, data, frame)


class ClientLink:
    """A node's end of a connection to a client. `epoch` 0: a client that has no connections, and says no hello."""

    def __init__(self, node: SimNode, client: int, epoch: int) -> None:
        self.node = node
        self.client = client
        self.epoch = epoch
        self.closed = False
        self.inflight: dict[bytes, int] = {}
        self.inflight_bytes = 0
        self._hello: Hello | None = None
        self._is_held = False
        self._waiting: deque[Frame] = deque()
        self._asked: dict[int, int] = {}
        """Per query which slot had been acknowledged to anybody when it arrived."""

    def send(self, buffers: list[bytes]) -> None:
        """Send whole frames."""
        node = self.node
        if self.closed or not node.running:
            return
        for data, frame in parse_frames(b"".join(buffers)):
            node.effect()
            if frame.type == _REPLY:
                reply = parse_reply(frame)
                node.cluster.checker.acknowledged(reply)
                node.cluster.note_answer(reply)
            elif frame.type == _QUERY_REPLY:
                answer = parse_query_reply(frame)
                asked_at = self._asked.pop(answer.query_id, 0)
                node.cluster.checker.answered_read(node.node_id, answer, asked_at)
            node.cluster.send_to_client(node.node_id, self.client, self.epoch, data, frame)

    def pause(self) -> None:
        """Take nothing from this client until `resume`."""
        self._is_held = True

    def resume(self) -> None:
        """Take what has waited, until there is too much again."""
        self._is_held = False
        while self._waiting and not self._is_held and not self.closed:
            self.node.switchboard.client_frame(self, self._waiting.popleft())

    def receive(self, frame: Frame) -> None:
        """A frame of the client. Raises FrameError, HandshakeRefusedError."""
        if self.epoch:
            if self._hello is None:
                self._take_hello(frame)
                return
            hello = self._hello
            check_sender(frame, hello.node_id, hello.incarnation, hello.boot, None)
        if frame.type == _QUERY:
            self._asked[parse_query(frame).query_id] = self.node.cluster.checker.acknowledged_index
        if self._is_held:
            self.node.cluster.marks["client_held"] += 1
            self._waiting.append(frame)
        else:
            self.node.switchboard.client_frame(self, frame)

    def _take_hello(self, frame: Frame) -> None:
        """Accept the client and answer, as `fastpaxos.transport` does."""
        if frame.type != FrameType.HELLO:
            raise FrameError(f"the first frame is {frame!r}, not a hello")
        hello = check_hello(parse_mapping(frame))
        transport = self.node.transport
        check_protocol(hello, self.node.identity.cluster_id)
        self._hello = hello
        transport.strangers.remove(self)
        transport.clients.append(self)
        self.send([transport.writer.hello(self.node.switchboard.client_hello())])


class SimTransport:
    """The connections of one life of a node. The switchboard's view of the network."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.peers: dict[int, PeerLink] = {}
        self.clients: list[ClientLink] = []
        self.strangers: list[ClientLink] = []
        """Clients that have not said hello yet."""
        self.writer = FrameWriter(0, 0, 0)
        self.identity_changed()

    def sweep(self, _now_ns: int) -> None:
        """Deadlines of connections; the network has its own here."""

    def identity_changed(self) -> None:
        """The node was founded: all connections start anew."""
        own = self._node.identity
        self.writer = FrameWriter(own.node_id, own.incarnation, own.boot, own.cluster_id)
        for peer, link in list(self.peers.items()):
            self._node.cluster.drop_connection(self._node.node_id, peer)
            self._node.peer_down(peer, link.epoch)
        for client in [*self.clients, *self.strangers]:
            self._node.cluster.drop_client(self._node.node_id, client)

    def client_link(self, client: int, epoch: int) -> ClientLink | None:
        """The connection of a client, if it stands."""
        links = (*self.clients, *self.strangers) if epoch else self.clients
        return next((link for link in links if link.client == client and link.epoch == epoch), None)

    def client_up(self, client: int, epoch: int) -> None:
        """A client connects; on a connection (`epoch` above 0) it says hello first."""
        link = ClientLink(self._node, client, epoch)
        (self.strangers if epoch else self.clients).append(link)

    def client_down(self, client: int, epoch: int) -> None:
        """A client's connection is gone."""
        link = self.client_link(client, epoch)
        if link is None:
            return
        link.closed = True
        if link in self.strangers:
            self.strangers.remove(link)
        else:
            self.clients.remove(link)
            self._node.switchboard.client_disconnected(link)

    def receive_from_client(self, client: int, epoch: int, frame: Frame | None) -> None:
        """A frame of a client; None for one that the splitter refused."""
        link = self.client_link(client, epoch)
        if link is None:
            if epoch:
                return
            self.client_up(client, epoch)
            link = self.clients[-1]
        node = self._node
        name = f"node {node.node_id} refuses"
        try:
            link.receive(accepted(frame))
        except HandshakeRefusedError as refusal:
            raise Violation(f"{name} client {-client}: {refusal}", checker="frames") from refusal
        except FrameError as error:
            if epoch or not node.cluster.options.client_links.corrupt:
                raise Violation(f"{name} a frame of client {-client}: {error}", checker="frames") from error
            node.cluster.marks["frame_refused"] += 1
            node.cluster.drop_client(node.node_id, link)

    def abort_all(self) -> None:
        """The process is gone."""
        for link in self.peers.values():
            link.closed = True
        for client in [*self.clients, *self.strangers]:
            client.closed = True
        self.peers.clear()
        self.clients.clear()
        self.strangers.clear()
