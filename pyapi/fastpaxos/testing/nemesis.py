"""The nemesis: at random moments it breaks or mends something, in the proportions that the options say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from .cluster import SimCluster
    from .node import SimNode

__all__ = ["Nemesis"]

_RECOVERY_OPERATIONS = 12
_CLOCK_JUMP_MAX_NS = 10_000 * MILLISECOND_NS


class Nemesis:
    """Draws actions for one cluster until it is stopped."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._running = False
        options = cluster.options.nemesis
        self._actions = [
            (weight, action)
            for weight, action in (
                (options.crash, self._crash),
                (options.crash_all, self._crash_all),
                (options.restart, self._restart),
                (options.partition, self._partition),
                (options.one_way_cut, self._one_way_cut),
                (options.isolate_leader, self._isolate_leader),
                (options.heal, self._heal),
                (options.reset_connection, self._reset_connection),
                (options.pause, self._pause),
                (options.resume, self._resume),
                (options.campaign, self._campaign),
                (options.step_down, self._step_down),
                (options.wall_clock_jump, self._wall_clock_jump),
            )
            if weight > 0
        ]

    def start(self) -> None:
        """Begin."""
        self._running = True
        self._next()

    def stop(self) -> None:
        """Do nothing any more. What is broken stays broken."""
        self._running = False

    def _next(self) -> None:
        if self._running:
            delay_ns = self._cluster.random.randrange(1, self._cluster.options.nemesis.interval_ns)
            self._cluster.schedule.after(delay_ns, self._act)

    def _act(self) -> None:
        if not self._running:
            return
        weights = [weight for weight, _ in self._actions]
        _, action = self._cluster.random.choices(self._actions, weights)[0]
        action()
        self._next()

    def _some(self, *, running: bool, paused: bool = False) -> SimNode | None:
        nodes = [node for node in self._cluster.nodes.values() if node.running == running and node.paused == paused]
        return self._cluster.random.choice(nodes) if nodes else None

    def _crash(self) -> None:
        node = self._some(running=True)
        if self._cluster.random.random() < 0.3:
            node = self._cluster.leader() or node
        if node is not None:
            self._cluster.crash_node(node.node_id)

    def _crash_all(self) -> None:
        for node in self._cluster.nodes.values():
            if node.running:
                self._cluster.crash_node(node.node_id)

    def _restart(self) -> None:
        node = self._some(running=False)
        if node is None:
            return
        random = self._cluster.random
        crash_at = None
        if random.random() < self._cluster.options.nemesis.crash_in_recovery:
            crash_at = random.randint(1, _RECOVERY_OPERATIONS)
        self._cluster.start_node(node.node_id, crash_at)

    def _partition(self) -> None:
        members = list(self._cluster.members)
        self._cluster.random.shuffle(members)
        border = self._cluster.random.randrange(len(members) + 1)
        self._cluster.network.partition([members[:border], members[border:]])

    def _one_way_cut(self) -> None:
        if len(self._cluster.members) > 1:
            source, target = self._cluster.random.sample(self._cluster.members, 2)
            self._cluster.network.cut(source, target, both_ways=self._cluster.random.random() < 0.5)

    def _isolate_leader(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            others = [node_id for node_id in self._cluster.members if node_id != leader.node_id]
            self._cluster.network.partition([[leader.node_id], others])

    def _heal(self) -> None:
        self._cluster.network.heal()

    def _reset_connection(self) -> None:
        if len(self._cluster.members) > 1:
            self._cluster.drop_connection(*self._cluster.random.sample(self._cluster.members, 2))

    def _pause(self) -> None:
        node = self._some(running=True)
        if node is not None:
            node.pause()

    def _resume(self) -> None:
        node = self._some(running=True, paused=True)
        if node is not None:
            node.resume()

    def _campaign(self) -> None:
        node = self._some(running=True)
        if node is not None:
            node.input(node.replica.campaign)

    def _step_down(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            leader.input(leader.replica.step_down)

    def _wall_clock_jump(self) -> None:
        node = self._cluster.random.choice(list(self._cluster.nodes.values()))
        node.wall_offset_ns += self._cluster.random.randint(-_CLOCK_JUMP_MAX_NS, _CLOCK_JUMP_MAX_NS)
