"""`SimCluster`: a whole cluster in one thread, in virtual time, from one seed.

Shipped code in every node and in the session clients; simulated network, disks, clocks and event loops; a nemesis that
breaks things, and checkers that see everything (`checkers.py`, `history.py`). The same seed and options give the same
run, event by event, on every build.

    cluster = SimCluster(seed=7)
    cluster.run()                # trouble, then calm; raises Violation when a property is broken
    print(cluster.report())
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from fastpaxos.handshake import HandshakeRefusedError
from fastpaxos.statemachine import StateMachine, load_machine
from fastpaxos_core.errors import ConfigError, CorruptionError
from fastpaxos_core.wire import Frame, Reply, ReplyStatus

from .checkers import ProtocolChecker
from .client_connections import ClientConnections
from .clients import SimClient
from .disk import SimulatedCrash
from .history import ClientHistory, Violation
from .nemesis import Nemesis
from .network import LinkOptions, SimNetwork
from .node import SimNode
from .options import DiskOptions, SimOptions
from .schedule import MILLISECOND_NS, Schedule
from .session_client import SimSessionClient
from .swarm import draw_options
from .workloads import HashChainWorkload, KeyValueWorkload, Workload

if TYPE_CHECKING:
    from .connections import ClientLink

__all__ = ["SimCluster"]

_RECONNECT_MAX_NS = 50 * MILLISECOND_NS
_NOTICE_MAX_NS = 20 * MILLISECOND_NS
_PATIENCE_NS = 100 * MILLISECOND_NS


class SimCluster:
    """One simulated cluster with its clients and its checkers.

    Args:
        seed: everything random comes from it.
        options: what is done to the cluster; drawn from the seed when left out.
        make_machine: makes the state machine of every node; `options.machine` says which when left out.
        trace: told a line about everything that happens.

    Attributes:
        marks: how often interesting things happened, to see that a campaign is not vacuous.
        violation: what a checker found where nothing could be raised; raised at the end of the event.
        core: the nodes that must be alive and equal in the end; set by `settle`.
    """

    def __init__(
        self,
        seed: int,
        options: SimOptions | None = None,
        make_machine: Callable[[], StateMachine] | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.options = options if options is not None else draw_options(seed)
        self.make_machine = make_machine or load_machine(self.options.machine)
        self.schedule = Schedule(self.random)
        self.members = list(range(1, self.options.nodes + 1))
        majority = self.options.nodes // 2 + 1
        self.phase1_size = self.options.phase1_quorum or majority
        self.phase2_size = self.options.phase2_quorum or majority
        self.losses_max = self.options.nodes - max(self.phase1_size, self.phase2_size)
        """How many nodes may be lost for ever while the others go on."""
        self.marks: defaultdict[str, int] = defaultdict(int)
        self.checker = ProtocolChecker(
            self.members, self.phase1_size, self.phase2_size, self.options.sessions_max, self.marks
        )
        self.history = ClientHistory()
        self.network = SimNetwork(self.schedule, self.options.links, self._deliver, self._lost)
        self.client_network = SimNetwork(self.schedule, self.options.client_links, self._deliver_client)
        self.client_connections = ClientConnections(self, self.options.session_links)
        self.disk_options = self.options.disk
        self.violation: BaseException | None = None
        self.trace_digest = 0
        """Checksum over every frame sent, with time and direction: equal for equal runs."""
        self.trace = trace
        self.settled_after_ns = 0
        self.core: list[int] = list(self.members)
        self.is_settling = False
        self._connections: dict[tuple[int, int], int] = {}
        self._connecting: set[tuple[int, int]] = set()
        self._epoch = 0
        self._answered: set[tuple[int, int]] = set()
        self.nodes = {node_id: SimNode(self, node_id) for node_id in self.members}
        for node_id in self.members:
            self.start_node(node_id)
        self.clients = {-number: SimClient(self, number, self.options.client) for number in self._client_numbers()}
        self.workload = self._make_workload()
        self.session_clients = [
            SimSessionClient(self, number, self.workload) for number in range(1, self.options.session_clients + 1)
        ]
        self.nemesis = Nemesis(self)

    def _client_numbers(self) -> range:
        return range(1, self.options.clients + 1)

    def _make_workload(self) -> Workload:
        if self.options.machine == "kv":
            return KeyValueWorkload(self.history, self.random)
        return HashChainWorkload(self.history, self.random)

    def _all_clients(self) -> list[SimClient | SimSessionClient]:
        return [*self.clients.values(), *self.session_clients]

    # Running

    def run(self) -> None:
        """Trouble for `duration_ns`, then calm until everybody agrees; then judge the whole history."""
        self.nemesis.start()
        self.schedule.run_until(self.options.duration_ns)
        if self.settle():
            self.check()
        else:
            self._check_history()

    def run_for(self, duration_ns: int) -> None:
        """Let virtual time pass."""
        self.schedule.run_until(self.schedule.now_ns + duration_ns)

    def settle(self, election_timeouts: int = 40) -> bool:
        """End all trouble in the core; it must commit again and converge within so many election timeouts.

        The core is every node whose disk can be trusted, or (`options.core_only`) a random quorum of them; all other
        nodes stay as they are. Returns False, and demands nothing, where faults took more than the cluster can lose.
        """
        self.nemesis.stop()
        self.core = self._choose_core()
        self.is_settling = True
        if len(self.core) < max(self.phase1_size, self.phase2_size):
            self.note("no quorum of sound disks is left: the cluster may halt")
            self.marks["may_halt"] += 1
            return False
        self._heal_core()
        start_ns = self.schedule.now_ns
        bound_ns = election_timeouts * self.options.election_timeout_ms * MILLISECOND_NS
        commands = self.checker.log.commands
        acknowledged = {client: client.acknowledged for client in self._entitled_clients()}

        reads = self._reads_answered()

        def commits() -> bool:
            """Something was committed, every session client found the leader, and a read was answered."""
            return (
                self.checker.log.commands > commands
                and all(client.acknowledged > before for client, before in acknowledged.items())
                and (reads is None or (self._reads_answered() or 0) > reads)
            )

        if not self.schedule.run_until(start_ns + bound_ns // 2, commits):
            raise Violation(
                f"no command was committed (or no read, or client, answered) for {bound_ns // 2 // MILLISECOND_NS} ms "
                f"after the core {self.core} was healed: {self._unrest()}",
                checker="liveness",
            )
        self.settled_after_ns = self.schedule.now_ns - start_ns
        for client in self._all_clients():
            client.stop()
        if not self.schedule.run_until(start_ns + bound_ns, self._is_quiet):
            raise Violation(
                f"the core {self.core} did not converge within {bound_ns // MILLISECOND_NS} ms: {self._unrest()}",
                checker="convergence",
            )
        return True

    def _reads_answered(self) -> int | None:
        """How many reads of the independent clients were answered; None where they are not owed an answer."""
        is_hasty = self.options.client.retry_ns < _PATIENCE_NS
        is_slow = self.options.apply_delay_max_ns > (0 if is_hasty else _NOTICE_MAX_NS)
        clients = self.options.clients + self.options.session_clients
        if is_slow or clients > self.options.sessions_max or not self.options.client.reads or not self.clients:
            return None
        return sum(client.reads_answered for client in self.clients.values())

    def _entitled_clients(self) -> list[SimSessionClient]:
        """Those that must get an answer in the end: not where clients push out each other's sessions, or nodes are so
        slow that they cannot answer within anybody's patience, or lead clients into dead ends; nor those that were told
        of one node only; nor those that wait a moment only, where nodes take time to apply what others queue up."""
        clients = self.options.clients + self.options.session_clients
        is_slow = self.options.apply_delay_max_ns > _NOTICE_MAX_NS
        if is_slow or clients > self.options.sessions_max or len(self.core) < len(self.members):
            return []
        takes_time = self.options.apply_delay_max_ns > 0
        manners = [(client, client.manner) for client in self.session_clients]
        return [client for client, manner in manners if manner.names_nodes and not (takes_time and manner.is_hasty)]

    def _choose_core(self) -> list[int]:
        if self.options.nemesis.rot_where == "everywhere" and self.marks["rot"]:
            return []
        striped = self.options.nemesis.rot_where == "striped"
        sound = [node.node_id for node in self.nodes.values() if not node.is_lost and (striped or not node.is_damaged)]
        is_founded = len(self.checker.founded_nodes) == len(self.members)
        if not self.options.core_only or striped or not is_founded:
            return sound
        least = max(self.phase1_size, self.phase2_size)
        if len(sound) < least:
            return sound
        return sorted(self.random.sample(sound, self.random.randint(least, len(sound))))

    def _heal_core(self) -> None:
        self.note(f"the core {self.core} is healed")
        for source in self.core:
            for target in self.core:
                self.network.heal_link(source, target)
        if len(self.core) == len(self.members):
            self.network.options = LinkOptions()
        self.network.calm = frozenset(self.core)
        self.client_network.options = self.client_connections.network.options = LinkOptions()
        self.client_connections.heal()
        self.disk_options = DiskOptions(inline=self.options.disk.inline)
        for node_id in self.core:
            node = self.nodes[node_id]
            node.disk.heal()
            node.effects_left = None
            if not node.running:
                self.start_node(node_id)
            elif node.paused:
                node.resume()

    def check(self) -> None:
        """Judge what clients were told, and that the core's replicas are equal. For a settled cluster."""
        self._check_history()
        core = [self.nodes[node_id] for node_id in self.core]
        for node in core:
            node.look()
            self.checker.check_caught_up(node.node_id)
        states = {(node.machine.digest(), node.replica.sessions.digest()) for node in core if node.replica is not None}
        if len(states) != 1:
            raise Violation(f"replicas ended in {len(states)} different states", checker="digests")

    def _check_history(self) -> None:
        """Judge what clients were told."""
        self.history.check(self.checker.log, self.make_machine())
        self.workload.check(self.checker.log)
        lost = [(client.name, session_id) for client in self.clients.values() for session_id, _ in client.sessions_lost]
        lost += [(client.name, session_id) for client in self.session_clients for session_id in client.sessions_lost]
        for name, session_id in lost:
            if session_id not in self.checker.log.ended:
                raise Violation(
                    f"{name} was told that session {session_id} is unknown; it never ended", checker="sessions"
                )

    def _is_quiet(self) -> bool:
        end = self.checker.log.end_slot - 1
        if not all(client.is_idle for client in self._all_clients()):
            return False
        ready = 0
        for node_id in self.core:
            replica = self.nodes[node_id].replica
            if replica is None or replica.commit_index != end or replica.applied_index != end:
                return False
            ready += replica.is_ready
        return ready > 0 or any(node.is_ready() for node in self.nodes.values())

    def _unrest(self) -> str:
        nodes = [
            f"{node!r} {node.replica.role} ballot {node.replica.ballot} commit {node.replica.commit_index} applied "
            f"{node.replica.applied_index} promised {node.replica.promised_ballot}"
            if node.replica is not None
            else f"{node!r} stopped by {node.stopped_by}"
            for node in self.nodes.values()
        ]
        clients = [
            f"{client.name} waits for {list(client.unanswered)}"
            for client in self.clients.values()
            if client.unanswered
        ]
        clients += [f"{client!r} waits for {client.waiting}" for client in self.session_clients]
        return "; ".join([f"chosen {self.checker.log.end_slot - 1}", *nodes, *clients])

    def note(self, text: str) -> None:
        """Something happened that a reader of the trace wants to know."""
        if self.trace is not None:
            self.trace(f"{self.schedule.now_ns / MILLISECOND_NS:12.3f} ms  {text}")

    def replay_command(self) -> str:
        """The command that runs this seed again, if its options were drawn from it."""
        return f"fastpaxos sim replay {self.seed}"

    def report(self) -> dict[str, Any]:
        """Figures of the run, to see that it was not vacuous."""
        disk_faults: Counter[str] = Counter()
        for node in self.nodes.values():
            disk_faults.update(node.disk.fault_counts)
        return {
            "seed": self.seed,
            "events": self.schedule.events_run,
            "frames": self.network.frames_sent,
            "commands": self.checker.log.commands,
            "acknowledged": len(self.history.answered_writes()) + sum(c.acknowledged for c in self.session_clients),
            "reads": sum(read.count is not None for read in self.history.reads),
            "duplicates": self.checker.log.duplicates,
            "session_evicted": self.checker.log.evictions,
            "frame_lost": self.network.frames_lost,
            "frame_replayed": self.network.frames_replayed,
            "frame_duplicated": self.network.frames_duplicated,
            "frame_reordered": self.network.frames_reordered,
            "frame_corrupted": self.network.frames_corrupted + self.client_network.frames_corrupted,
            "ballots": len(self.checker.proposals),
            "settled_ms": self.settled_after_ns // MILLISECOND_NS,
            "trace": self.trace_digest,
            **{f"disk_{kind}": count for kind, count in sorted(disk_faults.items())},
            **self.marks,
        }

    # Nodes

    def start_node(self, node_id: int, crash_at: int | None = None) -> bool:
        """Start a node that is down; with `crash_at` it may die at that disk operation of its recovery."""
        node = self.nodes[node_id]
        node.disk.crash_at = None if crash_at is None else node.disk.operations + crash_at
        self.note(f"node {node_id} starts")
        try:
            node.start()
        except SimulatedCrash:
            self.marks["crash_in_recovery"] += 1
            self.note(f"node {node_id} crashes while it recovers")
            node.crash()
            return False
        if self.violation is not None:
            raise self.violation
        node.disk.crash_at = None
        for peer in self.members:
            if peer != node_id and self.nodes[peer].running and node.running:
                self._connect_later(node_id, peer)
        return node.running

    def _start_if_down(self, node_id: int) -> None:
        if not self.nodes[node_id].running:
            self.start_node(node_id)

    def crash_node(self, node_id: int) -> None:
        """Kill a node and cut the power of its disk; its peers notice after a while."""
        self.marks["crash"] += 1
        self.note(f"node {node_id} loses its power")
        self._end(self.nodes[node_id], self.nodes[node_id].crash)

    def kill_node(self, node_id: int) -> None:
        """Kill a process; its disk goes on showing what it wrote."""
        self.marks["kill"] += 1
        self.note(f"node {node_id} is killed")
        self._end(self.nodes[node_id], self.nodes[node_id].kill)

    def power_failed(self, node: SimNode) -> None:
        """A node died in the middle of something."""
        self.crash_node(node.node_id)

    def note_stopped(self, node: SimNode, error: BaseException) -> None:
        """A process ended by itself. Only its disk may make it do so; everything else is a bug."""
        lost = isinstance(error, ConfigError) and node.disk_lost
        if lost or (isinstance(error, CorruptionError) and node.is_damaged):
            node.is_lost = True
            self.marks["expelled" if lost else "stopped_as_corrupt"] += 1
        elif isinstance(error, OSError):
            self.marks["stopped_by_disk"] += 1
        else:
            self.violation = error
            return
        self.note(f"node {node.node_id} stops: {error}")
        self._end(node, node.kill)

    def _end(self, node: SimNode, ending: Callable[[], None]) -> None:
        if node.role() == "leader":
            self.marks["leader_ended"] += 1
        # Connections that the process has not seen yet end with it as well.
        unseen = [sum(pair) - node.node_id for pair in self._connections if node.node_id in pair]
        peers = dict.fromkeys([*node.transport.peers, *unseen])
        ending()
        if self.is_settling and node.node_id in self.core:
            # A failure that was on its way when the trouble ended; somebody starts the process again.
            self.schedule.after(_RECONNECT_MAX_NS, partial(self._start_if_down, node.node_id))
        for peer in peers:
            self._drop(node.node_id, peer)
        self.client_connections.node_ended(node.node_id)

    def leader(self) -> SimNode | None:
        """A running node that believes that it leads, if there is one."""
        return next((node for node in self.nodes.values() if node.role() == "leader"), None)

    # Connections between nodes

    def epoch_of(self, first: int, second: int) -> int:
        """Number of the connection that stands between two nodes, 0 for none."""
        return self._connections.get((min(first, second), max(first, second)), 0)

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
            delay_ns = self.schedule.delay(0, _NOTICE_MAX_NS)

            def notice(node: SimNode = node, other: int = other) -> None:
                node.input(lambda: node.peer_down(other, epoch))

            self.schedule.after(delay_ns, notice)

    def _connect_later(self, first: int, second: int) -> None:
        pair = (min(first, second), max(first, second))
        if pair in self._connecting:
            return
        self._connecting.add(pair)
        self.schedule.after(self.schedule.delay(1, _RECONNECT_MAX_NS), partial(self._connect, pair))

    def _connect(self, pair: tuple[int, int]) -> None:
        self._connecting.discard(pair)
        one, other = self.nodes[pair[0]], self.nodes[pair[1]]
        if not (one.running and other.running) or pair in self._connections:
            return
        if one.paused or other.paused or self.network.is_cut(*pair) or self.network.is_cut(pair[1], pair[0]):
            self._connect_later(*pair)
            return
        hello, answer = one.hello(), other.hello()
        for node, said, dialed in ((other, hello, 0), (one, answer, other.node_id)):
            try:
                node.greet(said, dialed)
            except HandshakeRefusedError as refusal:
                self.refuse(node.node_id, said.node_id, refusal)
                return
        self._epoch += 1
        epoch = self._connections[pair] = self._epoch
        one.input(lambda: one.peer_up(other.node_id, epoch, answer))
        other.input(lambda: other.peer_up(one.node_id, epoch, hello))

    def refuse(self, node_id: int, peer: int, refusal: HandshakeRefusedError) -> None:
        """`node_id` does not want this peer: it says why, and they try again later."""
        self.marks[f"refused_{refusal.reason}"] += 1
        node = self.nodes[peer]
        node.later(
            self.random.randrange(1, _NOTICE_MAX_NS),
            lambda: node.switchboard.peer_refused(node_id, refusal.reason, str(refusal)),
        )
        self.drop_connection(node_id, peer)

    def send(self, source: int, target: int, epoch: int, data: bytes, frame: Frame) -> None:
        """Carry a frame from node to node."""
        self.note_frame(source, target, data)
        self.network.send(source, target, epoch, data, frame)

    def _deliver(self, source: int, target: int, epoch: int | None, frame: Frame | None) -> None:
        node = self.nodes[target]
        if node.running:
            node.input(partial(node.receive, source, epoch, frame))

    def _lost(self, source: int, target: int, epoch: int) -> None:
        if self.epoch_of(source, target) == epoch:
            self.drop_connection(source, target)

    def note_frame(self, source: int, target: int, data: bytes) -> None:
        """A frame is sent: it belongs to the trace."""
        self.trace_digest = zlib.crc32(data, self.trace_digest ^ self.schedule.now_ns & 0xFFFF_FFFF) ^ (source + target)

    # Clients (addresses of clients are negative)

    def node_ids(self) -> list[int]:
        """All nodes, reachable or not."""
        return self.members

    def note_submitted(self, block: bytes) -> None:
        """A client is about to send this block for the first time."""
        self.checker.submitted_blocks.add(block)

    def note_answer(self, reply: Reply) -> None:
        """A node answers a block; a block that was answered before is answered from the session table."""
        if reply.status == ReplyStatus.OK:
            key = (reply.session_id, reply.first_sequence)
            self.marks["answered_again"] += key in self._answered
            self._answered.add(key)

    def note_nonce(self, nonce: bytes) -> None:
        """A client is about to open a session with this nonce."""
        self.checker.submitted_nonces.add(nonce)

    def send_from_client(self, client: int, node: int, epoch: int, data: bytes, frame: Frame) -> None:
        """Carry a frame from a client to a node."""
        self.note_frame(client, node, data)
        self.client_network.send(client, node, epoch, data, frame)

    def send_to_client(self, node: int, client: int, epoch: int, data: bytes, frame: Frame) -> None:
        """Carry a frame from a node to a client."""
        if epoch:
            self.client_connections.send_to_client(epoch, data, frame)
        else:
            self.note_frame(node, client, data)
            self.client_network.send(node, client, epoch, data, frame)

    def drop_client(self, node_id: int, link: ClientLink) -> None:
        """Break the connection of a client."""
        self.nodes[node_id].transport.client_down(link.client, link.epoch)
        if link.epoch:
            self.client_connections.left_by_node(link.epoch)

    def _deliver_client(self, source: int, target: int, epoch: int | None, frame: Frame | None) -> None:
        if target < 0:
            if frame is not None:
                self.clients[target].receive(source, frame)
        else:
            node = self.nodes[target]
            if node.running:
                node.input(lambda: node.transport.receive_from_client(source, epoch or 0, frame))
