"""`SimCluster`: a whole cluster in one thread, in virtual time, from one seed.

Real Replica, Journal and Election code; simulated network, disks, clocks and clients; a nemesis that breaks things, and
checkers that see everything (`checkers.py`, `history.py`). The same seed and options give the same run, event by event.

    cluster = SimCluster(seed=7)
    cluster.run()                # trouble, then calm; raises Violation when a property is broken
    print(cluster.report())
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import fastpaxos
import fastpaxos_core
from fastpaxos_core.wire import Frame

from .checkers import ProtocolChecker
from .clients import SimClient
from .disk import SimulatedCrash
from .history import ClientHistory, Violation
from .nemesis import Nemesis
from .network import LinkOptions, SimNetwork
from .node import SimNode
from .options import DiskOptions, SimOptions
from .schedule import MILLISECOND_NS, Schedule

__all__ = ["SimCluster"]

_RECONNECT_MAX_NS = 50 * MILLISECOND_NS
_NOTICE_MAX_NS = 20 * MILLISECOND_NS


class SimCluster:
    """One simulated cluster with its clients and its checkers.

    Args:
        seed: everything random comes from it.
        options: what is done to the cluster; drawn from the seed when left out.
    """

    def __init__(self, seed: int, options: SimOptions | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.options = options if options is not None else SimOptions.swarm(self.random)
        self.schedule = Schedule(self.random)
        self.cluster_id = self.random.randbytes(16)
        self.members = list(range(1, self.options.nodes + 1))
        majority = self.options.nodes // 2 + 1
        self.phase1_size = self.options.phase1_quorum or majority
        self.phase2_size = self.options.phase2_quorum or majority
        self.checker = ProtocolChecker(self.members, self.phase1_size, self.phase2_size, self.options.sessions_max)
        self.history = ClientHistory()
        self.network = SimNetwork(self.schedule, self.options.links, self._deliver)
        self.client_network = SimNetwork(self.schedule, self.options.client_links, self._deliver_client)
        self.disk_options = self.options.disk
        self.trace_digest = 0
        """Checksum over every frame sent, with time and direction: equal for equal runs."""
        self.settled_after_ns = 0
        self._connections: dict[tuple[int, int], int] = {}
        self._connecting: set[tuple[int, int]] = set()
        self._epoch = 0
        self.nodes = {node_id: SimNode(self, node_id) for node_id in self.members}
        for node_id in self.members:
            self.start_node(node_id)
        self.clients = {-number: SimClient(self, number, self.options.client) for number in self._client_numbers()}
        self.nemesis = Nemesis(self)

    def _client_numbers(self) -> range:
        return range(1, self.options.clients + 1)

    # Running

    def run(self) -> None:
        """Trouble for `duration_ns`, then calm until everybody agrees; then judge the whole history."""
        self.nemesis.start()
        self.schedule.run_until(self.options.duration_ns)
        self.settle()
        self.check()

    def run_for(self, duration_ns: int) -> None:
        """Let virtual time pass."""
        self.schedule.run_until(self.schedule.now_ns + duration_ns)

    def settle(self, election_timeouts: int = 40) -> None:
        """End all trouble; the cluster must commit again and converge within so many election timeouts."""
        self.nemesis.stop()
        self.network.heal()
        self.network.options = self.client_network.options = LinkOptions()
        self.disk_options = DiskOptions()
        for node in self.nodes.values():
            if not node.running:
                self.start_node(node.node_id)
            elif node.paused:
                node.resume()
        start_ns = self.schedule.now_ns
        bound_ns = election_timeouts * self.options.election_timeout_ms * MILLISECOND_NS
        commands = self.checker.log.commands
        if not self.schedule.run_until(start_ns + bound_ns // 2, lambda: self.checker.log.commands > commands):
            raise Violation(f"no command was committed for {bound_ns // 2 // MILLISECOND_NS} ms after all was healed")
        self.settled_after_ns = self.schedule.now_ns - start_ns
        for client in self.clients.values():
            client.stop()
        if not self.schedule.run_until(start_ns + bound_ns, self._is_quiet):
            raise Violation(f"the cluster did not converge within {bound_ns // MILLISECOND_NS} ms: {self._unrest()}")

    def check(self) -> None:
        """Judge what clients were told, and that all replicas are equal. For a settled cluster."""
        self.history.check(self.checker.log)
        for node in self.nodes.values():
            self.checker.check_caught_up(node.node_id)
        states = {
            (node.machine.digest, node.machine.count, node.replica.sessions.digest()) for node in self.nodes.values()
        }
        if len(states) != 1:
            raise Violation(f"replicas ended in {len(states)} different states")
        if self.nodes[1].machine.count != self.checker.log.commands:
            raise Violation(
                f"{self.nodes[1].machine.count} commands applied, {self.checker.log.commands} are in the log"
            )
        for client in self.clients.values():
            for session_id, _ in client.sessions_lost:
                if session_id not in self.checker.log.ended:
                    raise Violation(f"{client.name} was told that session {session_id} is unknown; it never ended")

    def _is_quiet(self) -> bool:
        log = self.checker.log
        return (
            all(client.is_idle for client in self.clients.values())
            and any(node.replica.role == "leader" and node.replica.is_ready for node in self.nodes.values())
            and all(
                node.replica.commit_index == log.end_slot - 1 == node.replica.applied_index
                for node in self.nodes.values()
            )
        )

    def _unrest(self) -> str:
        nodes = [
            f"node {node.node_id} {node.replica.role} commit {node.replica.commit_index} applied "
            f"{node.replica.applied_index} promised {node.replica.promised_ballot}"
            for node in self.nodes.values()
        ]
        clients = [
            f"{client.name} waits for {list(client.unanswered)}"
            for client in self.clients.values()
            if client.unanswered
        ]
        return "; ".join([f"chosen {self.checker.log.end_slot - 1}", *nodes, *clients])

    def replay_command(self) -> str:
        """The command that runs this seed again on this build, if its options were drawn from it."""
        folders = {str(Path(package.__file__ or "").parents[1]) for package in (fastpaxos, fastpaxos_core)}
        return f"PYTHONPATH={':'.join(sorted(folders))} {sys.executable} -m fastpaxos.testing --seed {self.seed}"

    def report(self) -> dict[str, Any]:
        """Figures of the run, to see that it was not vacuous."""
        return {
            "seed": self.seed,
            "events": self.schedule.events_run,
            "frames": self.network.frames_sent,
            "commands": self.checker.log.commands,
            "acknowledged": len(self.history.answered_writes()),
            "reads": sum(read.count is not None for read in self.history.reads),
            "duplicates": self.checker.log.duplicates,
            "session_evicted": self.checker.log.evictions,
            "frame_lost": self.network.frames_lost,
            "frame_replayed": self.network.frames_replayed,
            "ballots": len(self.checker.proposals),
            "settled_ms": self.settled_after_ns // MILLISECOND_NS,
            "trace": self.trace_digest,
            **self.checker.marks,
        }

    # Nodes

    def start_node(self, node_id: int, crash_at: int | None = None) -> bool:
        """Start a node that is down; with `crash_at` it may die at that disk operation of its recovery."""
        node = self.nodes[node_id]
        node.disk.crash_at = None if crash_at is None else node.disk.operations + crash_at
        try:
            node.start()
        except SimulatedCrash:
            self.checker.marks["crash_in_recovery"] += 1
            node.crash()
            return False
        node.disk.crash_at = None
        for peer in self.members:
            if peer != node_id and self.nodes[peer].running:
                self._connect_later(node_id, peer)
        return True

    def crash_node(self, node_id: int) -> None:
        """Kill a node and cut the power of its disk; its peers notice after a while."""
        self.checker.marks["crash"] += 1
        node = self.nodes[node_id]
        if node.replica.role == "leader":
            self.checker.marks["crash_of_leader"] += 1
        peers = list(node.peer_epoch)
        node.crash()
        for peer in peers:
            self._drop(node_id, peer)

    def leader(self) -> SimNode | None:
        """A running node that believes that it leads, if there is one."""
        return next((node for node in self.nodes.values() if node.running and node.replica.role == "leader"), None)

    # Connections between nodes

    def drop_connection(self, first: int, second: int) -> None:
        """Break the connection of two nodes; it is made again a little later."""
        self._drop(first, second)
        self._connect_later(first, second)

    def _drop(self, first: int, second: int) -> None:
        epoch = self._connections.pop((min(first, second), max(first, second)), None)
        if epoch is None:
            return
        for one, other in ((first, second), (second, first)):
            node = self.nodes[one]
            delay_ns = self.random.randrange(_NOTICE_MAX_NS)

            def notice(node: SimNode = node, other: int = other) -> None:
                node.input(lambda: node.peer_down(other, epoch))

            self.schedule.after(delay_ns, notice)

    def _connect_later(self, first: int, second: int) -> None:
        pair = (min(first, second), max(first, second))
        if pair in self._connecting:
            return
        self._connecting.add(pair)
        self.schedule.after(self.random.randrange(1, _RECONNECT_MAX_NS), lambda: self._connect(pair))

    def _connect(self, pair: tuple[int, int]) -> None:
        self._connecting.discard(pair)
        one, other = self.nodes[pair[0]], self.nodes[pair[1]]
        if not (one.running and other.running) or pair in self._connections:
            return
        if one.paused or other.paused or self.network.is_cut(*pair) or self.network.is_cut(pair[1], pair[0]):
            self._connect_later(*pair)
            return
        self._epoch += 1
        epoch = self._connections[pair] = self._epoch
        one.input(lambda: one.peer_up(other.node_id, other.boot, epoch))
        other.input(lambda: other.peer_up(one.node_id, one.boot, epoch))

    def send(self, source: int, target: int, epoch: int, data: bytes) -> None:
        """Carry frames from node to node."""
        self._trace(source, target, data)
        self.network.send(source, target, epoch, data)

    def _deliver(self, source: int, target: int, epoch: int | None, frame: Frame) -> None:
        node = self.nodes[target]
        node.input(lambda: node.receive(source, epoch, frame))

    def note_message(self, source: int, target: int, message: Mapping[str, Any]) -> None:
        """Count the kinds of messages, for the report."""
        self.checker.marks[f"sent_{message['message']}"] += 1

    def _trace(self, source: int, target: int, data: bytes) -> None:
        head = f"{self.schedule.now_ns} {source} {target} ".encode()
        self.trace_digest = zlib.crc32(data, zlib.crc32(head, self.trace_digest))

    # Clients (addresses of clients are negative)

    def node_ids(self) -> list[int]:
        """All nodes, reachable or not."""
        return self.members

    def note_submitted(self, block: bytes) -> None:
        """A client is about to send this block for the first time."""
        self.checker.submitted_blocks.add(block)

    def note_nonce(self, nonce: bytes) -> None:
        """A client is about to open a session with this nonce."""
        self.checker.submitted_nonces.add(nonce)

    def send_from_client(self, client: SimClient, node: int, data: bytes) -> None:
        """Carry a frame from a client to a node."""
        self._trace(-client.number, node, data)
        self.client_network.send(-client.number, node, 0, data)

    def send_to_client(self, node: int, client: int, data: bytes) -> None:
        """Carry a frame from a node to a client."""
        self._trace(node, client, data)
        self.client_network.send(node, client, 0, data)

    def _deliver_client(self, source: int, target: int, _epoch: int | None, frame: Frame) -> None:
        if target < 0:
            self.clients[target].receive(source, frame)
        else:
            node = self.nodes[target]
            node.input(lambda: node.receive_from_client(source, frame))
