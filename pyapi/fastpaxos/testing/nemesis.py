"""The nemesis: at random moments it breaks or mends something, in the proportions that the options say.

What it does to nodes, links and clocks is here; what it does to disks is in `disk_nemesis.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .disk_nemesis import DiskNemesis
from .schedule import MILLISECOND_NS

if TYPE_CHECKING:
    from .cluster import SimCluster
    from .node import SimNode

__all__ = ["Nemesis"]

_RECOVERY_OPERATIONS = 16
_EFFECTS_MAX = 60
_CLOCK_JUMP_MAX_NS = 10_000 * MILLISECOND_NS
_FLAPS_MAX = 6
_FLAP_MAX_NS = 200 * MILLISECOND_NS


class Nemesis:
    """Draws actions for one cluster until it is stopped."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._running = False
        self.disks = DiskNemesis(cluster)
        options = cluster.options.nemesis
        drawn: list[tuple[float, Callable[[], None]]] = [
            (options.crash, self._crash),
            (options.crash_all, self._crash_all),
            (options.kill, self._kill),
            (options.crash_between_effects, self._crash_between_effects),
            (options.restart, self._restart),
            (options.partition, self._partition),
            (options.one_way_cut, self._one_way_cut),
            (options.partial_cut, self._partial_cut),
            (options.chain, self._chain),
            (options.hub, self._hub),
            (options.flap, self._flap),
            (options.swizzle, self._swizzle),
            (options.isolate_leader, self._isolate_leader),
            (options.heal, self._heal),
            (options.reset_connection, self._reset_connection),
            (options.pause, self._pause),
            (options.resume, self._resume),
            (options.campaign, self._campaign),
            (options.step_down, self._step_down),
            (options.wall_clock_jump, self._wall_clock_jump),
            (options.reset_client, self._reset_client),
            (options.cut_client, self._cut_client),
            *self.disks.actions(),
        ]
        self._actions = [action for weight, action in drawn if weight > 0]
        self._weights = [weight for weight, _ in drawn if weight > 0]

    def start(self) -> None:
        """Begin."""
        self._running = bool(self._actions)
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
        self._cluster.random.choices(self._actions, self._weights)[0]()
        self._next()

    def _some(self, *, running: bool, paused: bool = False) -> SimNode | None:
        nodes = [node for node in self._cluster.nodes.values() if node.running == running and node.paused == paused]
        return self._cluster.random.choice(nodes) if nodes else None

    def _note(self, kind: str, text: str) -> None:
        self._cluster.marks[kind] += 1
        self._cluster.note(text)

    # Processes

    def _victim(self) -> SimNode | None:
        """A running node, rather often the leader."""
        node = self._some(running=True)
        if self._cluster.random.random() < 0.3:
            node = self._cluster.leader() or node
        return node

    def _crash(self) -> None:
        node = self._victim()
        if node is not None:
            self._cluster.crash_node(node.node_id)

    def _crash_all(self) -> None:
        self._note("crash_of_all", "all nodes lose their power")
        for node in self._cluster.nodes.values():
            if node.running:
                self._cluster.crash_node(node.node_id)

    def _kill(self) -> None:
        node = self._victim()
        if node is not None:
            self._cluster.kill_node(node.node_id)
        elif (down := self._some(running=False)) is not None:
            # The power fails on a machine whose process was killed before.
            self._cluster.crash_node(down.node_id)

    def _crash_between_effects(self) -> None:
        node = self._victim()
        if node is not None and node.effects_left is None:
            node.effects_left = self._cluster.random.randint(1, _EFFECTS_MAX)

    def _restart(self) -> None:
        node = self._some(running=False)
        if node is None:
            return
        random = self._cluster.random
        crash_at = None
        if random.random() < self._cluster.options.nemesis.crash_in_recovery:
            crash_at = random.randint(1, _RECOVERY_OPERATIONS)
        self._cluster.start_node(node.node_id, crash_at)

    def _pause(self) -> None:
        node = self._victim()
        if node is not None:
            self._note("pause", f"{node!r} is paused")
            node.pause()

    def _resume(self) -> None:
        node = self._some(running=True, paused=True)
        if node is not None:
            self._cluster.note(f"{node!r} goes on")
            node.resume()

    def _campaign(self) -> None:
        node = self._some(running=True)
        if node is not None:
            self._note("forced_campaign", f"{node!r} campaigns for no reason")
            node.input(node.campaign)

    def _step_down(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            self._note("forced_step_down", f"{leader!r} steps down for no reason")
            leader.input(leader.step_down)

    def _wall_clock_jump(self) -> None:
        node = self._cluster.random.choice(list(self._cluster.nodes.values()))
        jump_ns = self._cluster.random.randint(-_CLOCK_JUMP_MAX_NS, _CLOCK_JUMP_MAX_NS)
        self._note("clock_jump", f"the clock of {node!r} jumps by {jump_ns} ns")
        node.wall_offset_ns += jump_ns

    # Links

    def _partition(self) -> None:
        members = list(self._cluster.members)
        self._cluster.random.shuffle(members)
        border = self._cluster.random.randrange(len(members) + 1)
        self._note("partition", f"partition: {members[:border]} and {members[border:]}")
        self._cluster.network.partition([members[:border], members[border:]])

    def _pair(self) -> tuple[int, int] | None:
        if len(self._cluster.members) < 2:
            return None
        source, target = self._cluster.random.sample(self._cluster.members, 2)
        return source, target

    def _one_way_cut(self) -> None:
        if (pair := self._pair()) is not None:
            self._note("one_way_cut", f"nothing passes from node {pair[0]} to node {pair[1]}")
            self._cluster.network.cut(*pair, both_ways=False)

    def _partial_cut(self) -> None:
        if (pair := self._pair()) is not None:
            self._note("partial_cut", f"nodes {pair[0]} and {pair[1]} lose each other")
            self._cluster.network.cut(*pair)

    def _cut_all_but(self, kept: set[tuple[int, int]]) -> None:
        for first in self._cluster.members:
            for second in self._cluster.members:
                if first < second:
                    if (first, second) in kept or (second, first) in kept:
                        self._cluster.network.heal_link(first, second)
                        self._cluster.network.heal_link(second, first)
                    else:
                        self._cluster.network.cut(first, second)

    def _chain(self) -> None:
        order = list(self._cluster.members)
        self._cluster.random.shuffle(order)
        self._note("chain", f"only neighbours see each other in {order}")
        self._cut_all_but(set(itertools.pairwise(order)))

    def _hub(self) -> None:
        hub = self._cluster.random.choice(self._cluster.members)
        self._note("hub", f"only node {hub} sees the others")
        self._cut_all_but({(hub, other) for other in self._cluster.members if other != hub})

    def _flap(self) -> None:
        if (pair := self._pair()) is None:
            return
        self._note("flap", f"the link of nodes {pair[0]} and {pair[1]} flaps")
        random, network = self._cluster.random, self._cluster.network
        delay_ns = 0
        for _ in range(random.randint(1, _FLAPS_MAX)):
            self._cluster.schedule.after(delay_ns, lambda: self._while_running(lambda: network.cut(*pair)))
            delay_ns += random.randrange(1, _FLAP_MAX_NS)
            self._cluster.schedule.after(delay_ns, lambda: self._while_running(lambda: self._mend(*pair)))
            delay_ns += random.randrange(1, _FLAP_MAX_NS)

    def _mend(self, first: int, second: int) -> None:
        self._cluster.network.heal_link(first, second)
        self._cluster.network.heal_link(second, first)

    def _while_running(self, action: Callable[[], None]) -> None:
        if self._running:
            action()

    def _swizzle(self) -> None:
        """Cut off nodes one by one, then let them back in another order."""
        random, members = self._cluster.random, self._cluster.members
        chosen = random.sample(members, random.randint(1, len(members)))
        self._note("swizzle", f"nodes {chosen} are cut off one by one")
        delay_ns = 0
        for node_id in chosen:
            self._cluster.schedule.after(delay_ns, partial(self._set_links, node_id, cut=True))
            delay_ns += random.randrange(1, _FLAP_MAX_NS)
        random.shuffle(chosen)
        for node_id in chosen:
            self._cluster.schedule.after(delay_ns, partial(self._set_links, node_id, cut=False))
            delay_ns += random.randrange(1, _FLAP_MAX_NS)

    def _set_links(self, node_id: int, *, cut: bool) -> None:
        if not self._running:
            return
        for other in self._cluster.members:
            if other != node_id and cut:
                self._cluster.network.cut(node_id, other)
            elif other != node_id:
                self._mend(node_id, other)

    def _isolate_leader(self) -> None:
        leader = self._cluster.leader()
        if leader is not None:
            others = [node_id for node_id in self._cluster.members if node_id != leader.node_id]
            self._note("isolated_leader", f"the leader {leader!r} is cut off")
            self._cluster.network.partition([[leader.node_id], others])

    def _heal(self) -> None:
        self._cluster.note("all links are mended")
        self._cluster.network.heal()
        self._cluster.client_connections.network.heal()

    def _reset_connection(self) -> None:
        if (pair := self._pair()) is not None:
            self._note("reset", f"the connection of nodes {pair[0]} and {pair[1]} breaks")
            self._cluster.drop_connection(*pair)

    # Clients

    def _reset_client(self) -> None:
        self._note("client_reset", "the connection of a client breaks")
        self._cluster.client_connections.break_some()

    def _cut_client(self) -> None:
        random, members = self._cluster.random, self._cluster.members
        if not self._cluster.session_clients:
            return
        client = random.choice(self._cluster.session_clients)
        out_of_reach = random.sample(members, random.randint(1, len(members)))
        self._note("client_cut", f"{client.name} cannot reach nodes {out_of_reach}")
        for node_id in out_of_reach:
            self._cluster.client_connections.cut(client, node_id)
