"""The conversation by which a new cluster is founded, and a late member learns that it was (DESIGN: safety rule 5).

`fastpaxos_core.founding` decides; this carries what it needs between connections. The member with the lowest id makes
the record when it has heard all others; whoever has it sends it to every member that says hello without one:

    {"op": "founding", "record": the record's bytes}
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from fastpaxos.handshake import HandshakeRefusedError, Hello
from fastpaxos_core.errors import ConfigError, FrameError
from fastpaxos_core.founding import Founding, FoundingAnswer, FoundingRecord

__all__ = ["FoundingDriver"]

logger = logging.getLogger(__name__)


class FoundingConnection(Protocol):
    def send(self, buffers: list[bytes]) -> None: ...


class FoundingDriver:
    """Founding of one node.

    Args:
        founding: decides; holds the record if the directory has one.
        make_control: makes a CONTROL frame of a map.
        random_bytes: source of the cluster id.

    Attributes:
        decided: the record that this node must store before anything else; done at once if it is stored already.
    """

    def __init__(
        self,
        founding: Founding,
        *,
        make_control: Callable[[Mapping[str, Any]], bytes],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.founding = founding
        self.decided: Future[FoundingRecord] = Future()
        self._make_control = make_control
        self._random_bytes = random_bytes
        if founding.record is not None:
            self.decided.set_result(founding.record)
        else:
            self._propose()  # a cluster of one has nobody to wait for

    def connected(self, connection: FoundingConnection, hello: Hello) -> None:
        """A member said hello, and it or this node is not founded. Raises HandshakeRefusedError."""
        try:
            answer = self.founding.peer_hello(hello.node_id, hello.incarnation, hello.founding, hello.durability)
        except ConfigError as error:
            raise HandshakeRefusedError("founding", str(error)) from error
        if answer is FoundingAnswer.PROPOSE:
            self._propose()
        elif answer is FoundingAnswer.SEND_RECORD and self.founding.record is not None:
            logger.info("node %d sends the founding record to node %d", self.founding.node_id, hello.node_id)
            connection.send([self._make_control({"op": "founding", "record": self.founding.record.encode()})])
        elif self.founding.missing:
            missing = ", ".join(map(str, self.founding.missing))
            logger.info("node %d is not founded yet and waits for members %s", self.founding.node_id, missing)

    def disconnected(self, peer: int) -> None:
        """The connection of a member broke."""
        self.founding.peer_disconnected(peer)

    def control(self, peer: int, message: Mapping[str, Any]) -> None:
        """A member sent its record. Raises FrameError if it is none, ConfigError if this node must stop."""
        data = message.get("record")
        if not isinstance(data, bytes):
            raise FrameError(f"founding message of node {peer} has record={data!r}; expected bytes")
        if self.founding.record is not None:
            # Founded for good; a stray record must not stop this node, as it would stop one that is empty.
            if data != self.founding.record.encode():
                raise FrameError(f"node {peer} sent the founding record of another cluster")
            return
        record = self.founding.receive_record(peer, data)
        if record is not None and not self.decided.done():
            self.decided.set_result(record)

    def _propose(self) -> None:
        if not self.decided.done():
            record = self.founding.propose(self._random_bytes(16))
            if record is not None:
                logger.info("node %d founds cluster %s", self.founding.node_id, record.cluster_id.hex())
                self.decided.set_result(record)
