"""Where everything that comes into a node goes: frames, connections and the passing of time.

Before the node is founded it talks about founding only, and clients hear NOT_READY. `begin` hands it the replica.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

from fastpaxos.config import NodeConfig
from fastpaxos.connection import Connection
from fastpaxos.driver import Driver
from fastpaxos.election import ELECTION_OPS, Action, Decision, Election
from fastpaxos.founding_driver import FoundingDriver
from fastpaxos.handshake import Hello, Identity
from fastpaxos.service import ClientConnection, ClientService
from fastpaxos.transport import Transport
from fastpaxos_core.errors import ConfigError, FrameError
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.replica import Replica
from fastpaxos_core.wire import Frame

__all__ = ["Switchboard"]

logger = logging.getLogger(__name__)

NS_PER_MS = 1_000_000
# A journal write that takes longer than this many election timeouts is taken for a hung disk.
DISK_PATIENCE_TIMEOUTS = 3
# A candidate that lags by more lets another one lead.
LAG_SLOTS_MAX = 65_536


class Switchboard:
    """Routes what comes in to core, election, founding and client service. It is the transport's handler.

    `founding` is the conversation for as long as this node or some member is not founded; `fail` is called with
    whatever must stop the node.
    """

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        service: ClientService,
        founding: FoundingDriver,
        *,
        fail: Callable[[BaseException], None],
        clock_ns: Callable[[], int],
        wall_ns: Callable[[], int],
    ) -> None:
        self.config = config
        self.identity = identity
        self.service = service
        self.replica: Replica | None = None
        self.driver: Driver | None = None
        self.election: Election | None = None
        self.transport: Transport | None = None
        self._founding = founding
        self.client_frame = service.take
        self._fail = fail
        self._clock_ns = clock_ns
        self._wall_ns = wall_ns
        self._live_peers: set[int] = set()
        self._announced_leader = 0
        self._disk_patience_ns = DISK_PATIENCE_TIMEOUTS * config.election_timeout_ms * NS_PER_MS

    def founded(self, record: FoundingRecord) -> None:
        """The record is stored: founding is over for this node."""
        self._founding.founding.stored(record)

    def begin(self, replica: Replica, driver: Driver, random: Random) -> None:
        """The node is founded and its journal read: from now on it takes part."""
        self.replica = replica
        self.driver = driver
        self.election = Election(
            replica,
            node_id=self.config.node_id,
            members=self.config.members,
            phase1_quorum=self.config.phase1_size,
            phase2_quorum=self.config.phase2_size,
            heartbeat_interval_ms=self.config.heartbeat_interval_ms,
            election_timeout_ms=self.config.election_timeout_ms,
            lag_slots_max=min(self.config.window_slots, LAG_SLOTS_MAX),
            random=random,
            now_ns=self._clock_ns(),
        )
        self.service.replica = replica
        self.service.changed = driver.wake
        self.tick()

    # Time

    def tick(self) -> None:
        """Every 10 ms: all timers of the node."""
        now_ns = self._clock_ns()
        if self.transport is not None:
            self.transport.sweep(now_ns)
        replica, driver, election = self.replica, self.driver, self.election
        if replica is None or driver is None or election is None:
            return
        replica.tick(now_ns, self._wall_ns())
        stalled = driver.write_stalled_ns(now_ns) > self._disk_patience_ns
        self._carry_out(election.tick(now_ns, disk_stalled=stalled))
        self._announce_leader(replica)
        driver.write_marker()
        driver.wake()

    def _announce_leader(self, replica: Replica) -> None:
        leader_id = self.leader_id()
        if leader_id == self._announced_leader:
            return
        self._announced_leader = leader_id
        logger.info(
            "node %d: the leader is %s, ballot %d.%d",
            self.config.node_id,
            f"node {leader_id}" if leader_id else "unknown",
            replica.ballot >> 16,
            replica.ballot & 0xFFFF,
        )
        message = {"op": "leader_changed", "leader_id": leader_id, "leader_address": self.address_of(leader_id)}
        frame = self.service.writer.control(message)
        if self.transport is not None:
            for connection in self.transport.clients:
                connection.send([frame])

    def leader_id(self) -> int:
        """Whom clients should turn to, 0 if unknown. A leader that still recovers is not announced yet."""
        replica = self.replica
        if replica is None:
            return 0
        leader_id = replica.leader_id
        if leader_id == self.config.node_id and not replica.is_ready:
            return 0
        return leader_id

    def address_of(self, node_id: int) -> str:
        """The address of a member, "" for 0."""
        return self.config.cluster.get(node_id, "")

    # Transport

    def client_hello(self) -> dict[str, Any]:
        """The map that a client is greeted with."""
        leader_id = self.leader_id()
        config = self.config
        return {
            **self.identity.hello("node"),
            "leader_id": leader_id,
            "leader_address": self.address_of(leader_id),
            "members": dict(config.cluster),
            "limits": {
                "block_bytes_max": config.block_bytes_max,
                "command_bytes_max": config.command_bytes_max,
                "commands_per_block_max": config.commands_per_block_max,
                "inflight_bytes_per_session": config.inflight_bytes_per_session,
            },
        }

    def peer_connected(self, connection: Connection, hello: Hello) -> None:
        peer = hello.node_id
        replica, election = self.replica, self.election
        if replica is None or election is None or not hello.founding:
            self._founding.connected(connection, hello)
            return
        self._live_peers.add(peer)
        replica.peer_connected(peer, hello.boot)
        self._carry_out(election.peer_connected(peer, self._clock_ns()))
        self._wake()

    def peer_disconnected(self, peer: int) -> None:
        if peer not in self._live_peers or self.replica is None or self.election is None:
            self._founding.disconnected(peer)
            return
        self._live_peers.discard(peer)
        self.replica.peer_disconnected(peer)
        self._carry_out(self.election.peer_disconnected(peer, self._clock_ns()))
        self._wake()

    def peer_refused(self, peer: int, reason: str, message: str) -> None:
        if reason == "incarnation" and not self.identity.founding:
            # This directory is empty, and the cluster remembers another one under this id.
            self._fail(ConfigError(f"node {peer} refused node {self.config.node_id}: {message}"))

    def peer_frame(self, peer: int, frame: Frame) -> None:
        if peer in self._live_peers and self.replica is not None:
            self.replica.receive(peer, frame)
            self._wake()

    def peer_control(self, peer: int, message: Mapping[str, Any]) -> None:
        op = message.get("op")
        if op in ELECTION_OPS:
            if peer in self._live_peers and self.election is not None:
                self._carry_out(self.election.receive(peer, message, self._clock_ns()))
                if self.replica is not None and "commit_index" in message:
                    # Whoever cannot hear the leader asks for votes, and learns from the answers what it misses.
                    self.replica.peer_committed(peer, message["commit_index"])
                self._wake()
        elif op == "founding":
            self._founding.control(peer, message)
        else:
            raise FrameError(f"node {peer} sent the unknown control message {op!r}")

    def client_disconnected(self, connection: ClientConnection) -> None:
        self.service.forget(connection)

    def failed(self, error: BaseException) -> None:
        self._fail(error)

    # Election

    def resign(self) -> None:
        """The node stops: hand over leadership at once instead of being missed."""
        if self.election is not None:
            self._carry_out(self.election.resign())

    def _carry_out(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            if decision.action is Action.SEND:
                connection = self.transport.peers.get(decision.peer) if self.transport is not None else None
                if connection is not None and decision.message is not None:
                    connection.send([self.service.writer.control(decision.message)])
            elif self.replica is not None:
                if decision.action is Action.CAMPAIGN:
                    self.replica.campaign()
                else:
                    self.replica.step_down()

    def _wake(self) -> None:
        if self.driver is not None:
            self.driver.wake()
