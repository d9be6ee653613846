"""Does to a cluster what a schedule says: kills, pauses, partitions, bad links, failing and rotting disks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random

from fastpaxos.cli.demo_run import first_error
from fastpaxos.testing.chaos.processes import ChaosCluster
from fastpaxos.testing.chaos.rot import RotBudget
from fastpaxos.testing.chaos.schedule import Scene, Schedule
from fastpaxos.testing.fault_proxy import CLIENTS, FaultNetwork

__all__ = ["Nemesis"]

# A node whose fsync failed has this long to end on its own; the machine may be busy.
FSYNC_STOP_S = 10.0
FSYNC_WAIT_S = 6.0
FSYNC_CALL_NUMBERS = (2, 250)
POLL_S = 0.02
FLAP_S = (0.05, 0.6)
STORM_PAUSE_S = 0.03
DELAY_S = (0.005, 0.15)
TRICKLE = ((1, 4_000.0), (1, 1_000.0), (7, 10_000.0), (100, 50_000.0))
STARTING_S = (0.02, 0.6)
# Long enough for one replica to start, and to be elected or to fail.
LONELY_S = 2.0
DEAF_S = 0.05


class Nemesis:
    """Plays the two tracks of a schedule.

    Args:
        leader: who leads now, as far as anybody knows, or None.
        say: told each thing that is done.

    Attributes:
        counts: how often each scene was played.
        fsync_errors: replicas whose fsync failed.
        problems: what must not happen: a replica that went on although its fsync had failed.
    """

    def __init__(
        self,
        schedule: Schedule,
        cluster: ChaosCluster,
        network: FaultNetwork,
        leader: Callable[[], int | None],
        say: Callable[[str], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.fsync_errors = 0
        self.problems: list[str] = []
        self.rot = RotBudget(cluster.data_dir)
        self._schedule = schedule
        self._cluster = cluster
        self._network = network
        self._leader = leader
        self._say = say

    async def play(self) -> None:
        """Play both tracks to their ends; what is broken then stays broken."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._play(self._schedule.process))
                tasks.create_task(self._play(self._schedule.network))
        except ExceptionGroup as group:
            raise first_error(group) from group

    async def _play(self, scenes: list[Scene]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._schedule.seconds
        for scene in scenes:
            await asyncio.sleep(scene.wait_s)
            # Scenes may take longer than their hold: starts, and a failure that is waited for.
            if loop.time() > end:
                return
            act: Callable[[Random, float], Awaitable[None]] = getattr(self, f"_{scene.kind}")
            self.counts[scene.kind] += 1
            await act(Random(scene.seed), scene.hold_s)

    # --- choices ------------------------------------------------------------------------------------------------------

    def _leader_or_any(self, random: Random) -> int:
        anybody = random.choice(self._cluster.members)
        return self._leader() or anybody

    def _majority(self, random: Random) -> list[int]:
        members = self._cluster.members
        return random.sample(members, len(members) // 2 + 1)

    # --- processes ----------------------------------------------------------------------------------------------------

    async def _kill(self, node_ids: list[int], hold_s: float) -> None:
        self._say(f"SIGKILL {node_ids}")
        victims = await self._cluster.take_down(node_ids)
        await asyncio.sleep(hold_s)
        self._say(f"start {victims}")
        self._cluster.bring_up(victims)

    async def _kill_one(self, random: Random, hold_s: float) -> None:
        await self._kill([random.choice(self._cluster.members)], hold_s)

    async def _kill_leader(self, random: Random, hold_s: float) -> None:
        await self._kill([self._leader_or_any(random)], hold_s)

    async def _kill_all(self, random: Random, hold_s: float) -> None:
        await self._kill(self._cluster.members, hold_s / 4)

    async def _kill_majority(self, random: Random, hold_s: float) -> None:
        await self._kill(self._majority(random), hold_s / 2)

    async def _kill_while_starting(self, random: Random, hold_s: float) -> None:
        victim = self._leader_or_any(random)
        await self._kill([victim], hold_s / 4)
        for _ in range(random.randint(1, 3)):
            await asyncio.sleep(random.uniform(*STARTING_S))
            await self._kill([victim], 0.0)

    async def _stop_cleanly(self, random: Random, hold_s: float) -> None:
        victim = self._leader_or_any(random)
        self._say(f"SIGTERM {victim}")
        victims = await self._cluster.take_down([victim], cleanly=True)
        await asyncio.sleep(hold_s)
        self._cluster.bring_up(victims)

    async def _pause(self, node_ids: list[int], hold_s: float) -> None:
        self._say(f"SIGSTOP {node_ids}")
        self._cluster.sleep(node_ids)
        await asyncio.sleep(hold_s)
        self._say(f"SIGCONT {node_ids}")
        self._cluster.wake(node_ids)

    async def _pause_one(self, random: Random, hold_s: float) -> None:
        await self._pause([random.choice(self._cluster.members)], hold_s)

    async def _pause_leader(self, random: Random, hold_s: float) -> None:
        await self._pause([self._leader_or_any(random)], hold_s)

    async def _pause_leader_alone(self, random: Random, hold_s: float) -> None:
        """The leader sleeps while another is elected, and wakes up without a word from its peers.

        Clients still reach it, with requests that may lie in its sockets already: it must answer none of them.
        """
        victim = self._leader_or_any(random)
        self._network.isolate(victim)
        await self._pause([victim], hold_s)
        await asyncio.sleep(random.uniform(*FLAP_S))
        self._say(f"replica {victim} is not isolated any more")
        for other in self._cluster.members:
            if other != victim:
                self._network.mend(victim, other)
                self._network.mend(other, victim)

    # --- disks --------------------------------------------------------------------------------------------------------

    async def _fsync_error(self, random: Random, hold_s: float) -> None:
        """A member runs on a disk whose fsync fails at some call: it must end on its own, and starts again later."""
        cluster = self._cluster
        victim = self._leader_or_any(random)
        victims = await cluster.take_down([victim])
        if not victims:
            return
        call_number = random.randint(*FSYNC_CALL_NUMBERS)
        cluster.start_with_fsync_error(victim, call_number)
        self._say(f"fdatasync number {call_number} of replica {victim} is going to fail")
        await self._until(lambda: cluster.has_fsync_error(victim) or not cluster.is_running(victim), FSYNC_WAIT_S)
        if cluster.has_fsync_error(victim):
            self.fsync_errors += 1
            self._say(f"fdatasync of replica {victim} has failed")
            if not await self._until(lambda: not cluster.is_running(victim), FSYNC_STOP_S):
                self.problems.append(f"replica {victim} goes on although fdatasync has failed")
            elif cluster.exit_code(victim) != 1:
                self.problems.append(
                    f"replica {victim} ended with code {cluster.exit_code(victim)} after a failed fdatasync, not with 1"
                )
        elif not cluster.is_running(victim):
            self.problems.append(f"replica {victim} ended before its fsync failed:\n{cluster.log_tail(victim)}")
        await cluster.end_fsync_error(victim)
        await asyncio.sleep(hold_s / 4)
        cluster.bring_up([victim])

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Look every few milliseconds whether something holds; False if it does not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - a process tells nobody when it ends
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return condition()
        return True

    async def _rot(self, random: Random, hold_s: float) -> None:
        """A replica is stopped, its journal is damaged in one place, and it is started again."""
        cluster = self._cluster
        victims = await cluster.take_down([random.choice(cluster.members)], cleanly=random.random() < 0.3)
        if victims:
            done = await asyncio.to_thread(self.rot.damage, victims[0], random)
            self._say(f"damage to {done}" if done else f"no damage to replica {victims[0]} is allowed now")
            await asyncio.sleep(hold_s / 4)
            cluster.bring_up(victims)

    async def _rot_uncommitted(self, random: Random, hold_s: float) -> None:
        """A bare majority goes on alone and dies; what one of it accepted rots, and only that one comes back at first.

        It and the others are a majority again, of which nobody can say what was acknowledged last: they must wait.
        """
        cluster, network = self._cluster, self._network
        leader = self._leader_or_any(random)
        others = random.sample([member for member in cluster.members if member != leader], len(cluster.members) - 1)
        together = [leader, *others[: len(cluster.members) // 2]]
        apart = [member for member in cluster.members if member not in together]
        ways = [(one, other) for one in together for other in apart]
        for one, other in ways:
            network.separate(one, other)
        self._say(f"{apart} are cut off, and soon {together} die")
        await asyncio.sleep(random.uniform(*FLAP_S))
        # Its last votes count, and it does not hear any more that what it voted for is committed.
        network.cut(leader, together[1])
        await asyncio.sleep(DEAF_S)
        victims = await cluster.take_down(together)
        rotten = [member for member in victims if member != leader][:1]
        done = await asyncio.to_thread(self.rot.damage_uncommitted, rotten[0], random) if rotten else None
        self._say(f"damage to {done}" if done else "nothing that may be damaged now is not committed")
        for one, other in (*ways, (leader, together[1])):
            network.mend(one, other)
            network.mend(other, one)
        cluster.bring_up(rotten)
        await asyncio.sleep(LONELY_S + hold_s)
        cluster.bring_up(victims)

    # --- network ------------------------------------------------------------------------------------------------------

    async def _hold(self, what: str, hold_s: float, random: Random) -> None:
        """Leave the network as it is for a while, then heal all of it."""
        self._say(what)
        await asyncio.sleep(hold_s)
        self._say("the network heals")
        self._network.heal(reset=random.random() < 0.5)

    async def _split(self, random: Random, hold_s: float) -> None:
        members = self._cluster.members
        size = random.randint(1, len(members) // 2)
        minority = random.sample(members, size)
        for one in minority:
            for other in members:
                if other not in minority:
                    self._network.separate(one, other)
        await self._hold(f"{minority} are cut off from the others", hold_s, random)

    async def _isolate_leader(self, random: Random, hold_s: float) -> None:
        await self._isolate(self._leader_or_any(random), random, hold_s)

    async def _isolate_one(self, random: Random, hold_s: float) -> None:
        await self._isolate(random.choice(self._cluster.members), random, hold_s)

    async def _isolate(self, victim: int, random: Random, hold_s: float) -> None:
        direction = random.choice(("both", "outgoing", "incoming"))
        self._network.isolate(victim, direction)
        await self._hold(f"replica {victim} is isolated, {direction}", hold_s, random)

    async def _one_way(self, random: Random, hold_s: float) -> None:
        sender, receiver = random.sample(self._cluster.members, 2)
        self._network.cut(sender, receiver)
        await self._hold(f"nothing passes from {sender} to {receiver}", hold_s, random)

    async def _partial(self, random: Random, hold_s: float) -> None:
        """Two members lose each other, and both still reach the others: one of the two often leads."""
        one = self._leader_or_any(random)
        other = random.choice([member for member in self._cluster.members if member != one])
        self._network.separate(one, other)
        await self._hold(f"replicas {one} and {other} lose each other", hold_s, random)

    async def _chained(self, random: Random, hold_s: float) -> None:
        """Each member reaches only its neighbours in a chain."""
        order = random.sample(self._cluster.members, len(self._cluster.members))
        for place, one in enumerate(order):
            for other in order[place + 2 :]:
                self._network.separate(one, other)
        await self._hold(f"the replicas form a chain {order}", hold_s, random)

    async def _flapping(self, random: Random, hold_s: float) -> None:
        victim = self._leader_or_any(random)
        self._say(f"replica {victim} comes and goes")
        loop = asyncio.get_running_loop()
        end = loop.time() + hold_s
        while loop.time() < end:
            self._network.isolate(victim, random.choice(("both", "outgoing", "incoming")))
            await asyncio.sleep(random.uniform(*FLAP_S))
            self._network.heal(reset=random.random() < 0.3)
            await asyncio.sleep(random.uniform(*FLAP_S))

    async def _clients_cut_off(self, random: Random, hold_s: float) -> None:
        leader = self._leader_or_any(random)
        if random.random() < 0.5:
            self._network.cut(leader, CLIENTS)
            await self._hold(f"no answer of replica {leader} reaches a client", hold_s, random)
        else:
            self._network.separate(CLIENTS, leader)
            await self._hold(f"clients do not reach replica {leader}", hold_s, random)

    def _ways(self, random: Random) -> list[tuple[int, int]]:
        """Some ways to make bad: one, those of one member, or all."""
        sides = [CLIENTS, *self._cluster.members]
        ways = [(one, other) for one in sides for other in sides if one != other]
        draw = random.random()
        if draw < 0.4:
            return [random.choice(ways)]
        if draw < 0.8:
            victim = self._leader_or_any(random)
            return [way for way in ways if victim in way]
        return ways

    async def _delay(self, random: Random, hold_s: float) -> None:
        ways = self._ways(random)
        for sender, receiver in ways:
            self._network.delay(sender, receiver, random.uniform(*DELAY_S))
        await self._hold(f"delay on {len(ways)} ways, {ways[0]} first", hold_s, random)

    async def _trickle(self, random: Random, hold_s: float) -> None:
        ways = self._ways(random)
        piece_bytes, bytes_per_second = random.choice(TRICKLE)
        for sender, receiver in ways:
            self._network.trickle(sender, receiver, bytes_per_second, piece_bytes)
        what = f"{bytes_per_second:g} bytes/s in pieces of {piece_bytes}"
        await self._hold(f"{what} on {len(ways)} ways, {ways[0]} first", hold_s, random)

    async def _stall(self, random: Random, hold_s: float) -> None:
        ways = self._ways(random)
        for sender, receiver in ways:
            self._network.stall(sender, receiver)
        await self._hold(f"half-open connections on {len(ways)} ways, {ways[0]} first", hold_s, random)

    async def _break_frames(self, random: Random, hold_s: float) -> None:
        await self._again_and_again("connections break inside of frames", self._network.break_inside, random, hold_s)

    async def _flip_bits(self, random: Random, hold_s: float) -> None:
        await self._again_and_again("bits flip on the way", self._network.flip, random, hold_s)

    async def _reset_storm(self, random: Random, hold_s: float) -> None:
        await self._again_and_again("connections break as soon as they stand", self._network.reset, random, hold_s)

    async def _again_and_again(self, what: str, act: Callable[[int, int], None], random: Random, hold_s: float) -> None:
        ways = self._ways(random)
        pause_s = STORM_PAUSE_S * random.choice((1, 3, 10))
        self._say(f"{what}, each {pause_s:g} s on {len(ways)} ways, {ways[0]} first")
        loop = asyncio.get_running_loop()
        end = loop.time() + hold_s
        while loop.time() < end:
            for sender, receiver in ways:
                act(sender, receiver)
            await asyncio.sleep(pause_s)
        self._network.heal()
