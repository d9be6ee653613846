"""fastpaxos.election on a virtual network: somebody leads when somebody can, and nobody disturbs when nobody can.

The replicas here are stand-ins that know ballots, promises and heartbeats but no log. Time, delays and chance come from
the test, so a failure replays from the seed in its parameters.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from itertools import count, pairwise, permutations
from random import Random
from typing import Any

import pytest

from fastpaxos.election import Action, Decision, Election

MS = 1_000_000
HEARTBEAT_MS = 50
TIMEOUT_MS = 400
TICK_NS = 10 * MS


class FakeReplica:
    """Ballots, promises and heartbeats of one member; `committed` counts heartbeat rounds that a quorum answered."""

    def __init__(self, network: Network, node_id: int) -> None:
        self.network = network
        self.node_id = node_id
        self.role = "follower"
        self.promised_ballot = 0
        self.max_ballot_seen = 0
        self.leader_id = 0
        self.voting = True
        self.commit_index = 0
        self.last_slot = 0
        self.last_leader_contact_ns = -(10**18)
        self.quorum_contact_ns = -(10**18)
        self.campaigns = 0
        self.committed = 0
        self._promises: set[int] = set()
        self._heard: dict[int, int] = {}
        self._next_heartbeat_ns = 0

    def campaign(self) -> None:
        self.campaigns += 1
        self.max_ballot_seen = ((self.max_ballot_seen >> 16) + 1) << 16 | self.node_id
        self.promised_ballot = self.max_ballot_seen
        self.role, self.leader_id = "candidate", 0
        self._promises = {self.node_id}
        self._broadcast("prepare")
        self._count_promises()

    def step_down(self) -> None:
        self.role, self.leader_id = "follower", 0

    def tick(self) -> None:
        if self.role == "leader" and self.network.now_ns >= self._next_heartbeat_ns:
            self._next_heartbeat_ns = self.network.now_ns + HEARTBEAT_MS * MS
            self._broadcast("heartbeat")

    def receive(self, peer: int, op: str, ballot: int) -> None:
        self.max_ballot_seen = max(self.max_ballot_seen, ballot)
        if op in ("prepare", "heartbeat"):
            if ballot < self.promised_ballot or not self.voting:
                self.network.send(self.node_id, peer, ("nack", self.promised_ballot))
                return
            if ballot > self.promised_ballot:
                self.promised_ballot = ballot
                self.role, self.leader_id = "follower", 0
            if op == "heartbeat":
                self.leader_id = peer
                self.last_leader_contact_ns = self.network.now_ns
            self.network.send(self.node_id, peer, (op + "_reply", ballot))
        elif op == "nack" and ballot > self.promised_ballot and self.role != "follower":
            self.step_down()
        elif op == "prepare_reply" and ballot == self.promised_ballot and self.role == "candidate":
            self._promises.add(peer)
            self._count_promises()
        elif op == "heartbeat_reply" and ballot == self.promised_ballot and self.role == "leader":
            self._heard[peer] = self.network.now_ns
            latest = sorted(self._heard.values(), reverse=True)
            if len(latest) + 1 >= self.network.quorum:
                self.quorum_contact_ns = latest[self.network.quorum - 2]
                self.committed += 1

    def _count_promises(self) -> None:
        if len(self._promises) >= self.network.quorum:
            self.role, self.leader_id = "leader", self.node_id
            self.quorum_contact_ns = self.network.now_ns
            self._heard = {}
            self._next_heartbeat_ns = 0
            self.tick()

    def _broadcast(self, op: str) -> None:
        for peer in self.network.replicas:
            if peer != self.node_id:
                self.network.send(self.node_id, peer, (op, self.promised_ballot))


class Network:
    """A virtual clock, directed links with small random delays, and one Election and FakeReplica per member."""

    def __init__(self, size: int, seed: int, *, voting: Iterable[int] | None = None) -> None:
        self.random = Random(seed)
        self.now_ns = 0
        self.size = size
        self.quorum = size // 2 + 1
        self.members = tuple(range(1, size + 1))
        self.cut_links: set[tuple[int, int]] = set()
        self.broken: set[frozenset[int]] = set()
        self.stopped: set[int] = set()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self.replicas = {member: FakeReplica(self, member) for member in self.members}
        for member, replica in self.replicas.items():
            replica.voting = voting is None or member in voting
        self.elections = {member: self._election(member) for member in self.members}
        for member, peer in permutations(self.members, 2):
            self.apply(member, self.elections[member].peer_connected(peer, 0))
        for member in self.members:
            self._schedule_tick(member)

    def _election(self, member: int) -> Election:
        return Election(
            self.replicas[member],
            node_id=member,
            members=self.members,
            phase1_quorum=self.quorum,
            phase2_quorum=self.quorum,
            heartbeat_interval_ms=HEARTBEAT_MS,
            election_timeout_ms=TIMEOUT_MS,
            lag_slots_max=1000,
            random=Random(self.random.random()),
            now_ns=self.now_ns,
        )

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_ns + delay_ns, next(self._order), action))

    def run_ms(self, duration_ms: int) -> None:
        until_ns = self.now_ns + duration_ms * MS
        while self._events and self._events[0][0] <= until_ns:
            self.now_ns, _, action = heapq.heappop(self._events)
            action()
        self.now_ns = until_ns

    def _schedule_tick(self, member: int) -> None:
        def tick() -> None:
            if member not in self.stopped:
                self.replicas[member].tick()
                self.apply(member, self.elections[member].tick(self.now_ns))
            self._schedule_tick(member)

        self.after(TICK_NS + self.random.randrange(MS), tick)

    def send(self, sender: int, receiver: int, message: tuple[str, int] | Mapping[str, Any]) -> None:
        def deliver() -> None:
            if (sender, receiver) in self.cut_links or frozenset((sender, receiver)) in self.broken:
                return
            if receiver in self.stopped:
                self.after(TICK_NS, deliver)
            elif isinstance(message, tuple):
                self.replicas[receiver].receive(sender, *message)
            else:
                self.apply(receiver, self.elections[receiver].receive(sender, message, self.now_ns))

        self.after(MS // 5 + self.random.randrange(MS), deliver)

    def apply(self, member: int, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            if decision.action is Action.CAMPAIGN:
                self.replicas[member].campaign()
            elif decision.action is Action.STEP_DOWN:
                self.replicas[member].step_down()
            else:
                assert decision.message is not None
                self.send(member, decision.peer, decision.message)

    def cut(self, sender: int, receiver: int) -> None:
        """Messages in this direction vanish; nobody is told."""
        self.cut_links.add((sender, receiver))

    def part(self, a: int, b: int, *, noticed: bool) -> None:
        """Cut both directions. `noticed`: the connection breaks and both sides are told."""
        if not noticed:
            self.cut(a, b)
            self.cut(b, a)
        elif frozenset((a, b)) not in self.broken:
            self.broken.add(frozenset((a, b)))
            for member, peer in ((a, b), (b, a)):
                self.apply(member, self.elections[member].peer_disconnected(peer, self.now_ns))

    def heal(self) -> None:
        self.cut_links.clear()
        broken, self.broken = self.broken, set()
        for a, b in sorted(tuple(sorted(pair)) for pair in broken):
            self.apply(a, self.elections[a].peer_connected(b, self.now_ns))
            self.apply(b, self.elections[b].peer_connected(a, self.now_ns))

    def keep_only(self, pairs: Iterable[tuple[int, int]], *, noticed: bool) -> None:
        """Part every pair of members that is not named."""
        kept = {frozenset(pair) for pair in pairs}
        for a, b in permutations(self.members, 2):
            if a < b and frozenset((a, b)) not in kept:
                self.part(a, b, noticed=noticed)

    def leader(self) -> int:
        """The one leader that a quorum confirmed within the last election timeout; fails if there is none."""
        confirmed = [
            member
            for member, replica in self.replicas.items()
            if replica.role == "leader" and self.now_ns - replica.quorum_contact_ns < TIMEOUT_MS * MS
        ]
        assert len(confirmed) == 1, f"confirmed leaders: {confirmed}"
        return confirmed[0]

    def stable_leader(self) -> int:
        """The leader, after checking that for ten timeouts it stays, works, and nobody raises a ballot."""
        leader = self.leader()
        ballots = {member: replica.max_ballot_seen for member, replica in self.replicas.items()}
        committed = self.replicas[leader].committed
        self.run_ms(10 * TIMEOUT_MS)
        assert self.leader() == leader
        assert self.replicas[leader].committed >= committed + 10 * TIMEOUT_MS // (2 * HEARTBEAT_MS)
        assert all(replica.max_ballot_seen <= max(ballots.values()) for replica in self.replicas.values())
        return leader

    def reaches(self, member: int) -> int:
        """How many members, itself included, can exchange messages with `member` in both directions."""
        return 1 + sum(
            1
            for peer in self.members
            if peer != member
            and frozenset((member, peer)) not in self.broken
            and not {(member, peer), (peer, member)} & self.cut_links
        )


def elected(size: int, seed: int) -> tuple[Network, int]:
    network = Network(size, seed)
    network.run_ms(5 * TIMEOUT_MS)
    return network, network.stable_leader()


NOTICED = pytest.mark.parametrize("noticed", [True, False], ids=["broken", "silent"])
SEEDS = pytest.mark.parametrize("seed", range(4))
SIZES = pytest.mark.parametrize("size", [3, 5, 7])


@SIZES
@SEEDS
def test_a_cluster_elects_one_leader_and_keeps_it(size: int, seed: int) -> None:
    network, leader = elected(size, seed)
    assert all(replica.leader_id == leader for replica in network.replicas.values())
    assert sum(replica.campaigns for replica in network.replicas.values()) <= size


def test_a_single_member_campaigns_at_its_first_tick() -> None:
    network = Network(1, 0)
    network.run_ms(12)
    assert network.replicas[1].role == "leader"


@SIZES
@SEEDS
def test_a_dead_leader_is_replaced_without_waiting_for_the_timeout(size: int, seed: int) -> None:
    network, leader = elected(size, seed)
    for member in network.members:
        if member != leader:
            network.part(leader, member, noticed=True)
    network.run_ms(TIMEOUT_MS // 2)
    assert network.replicas[leader].role == "leader", "the cut-off leader cannot know it yet"
    successors = [
        member for member, replica in network.replicas.items() if replica.role == "leader" and member != leader
    ]
    assert len(successors) == 1
    network.run_ms(TIMEOUT_MS)
    assert network.stable_leader() == successors[0]


@SIZES
@SEEDS
def test_a_silent_leader_is_replaced_after_the_timeout(size: int, seed: int) -> None:
    network, leader = elected(size, seed)
    network.stopped.add(leader)
    network.run_ms(TIMEOUT_MS - 2 * HEARTBEAT_MS)
    assert not any(replica.role == "leader" for member, replica in network.replicas.items() if member != leader)
    network.run_ms(5 * TIMEOUT_MS)
    network.stopped.clear()
    network.run_ms(3 * TIMEOUT_MS)
    assert network.stable_leader() != leader
    assert network.replicas[leader].role == "follower"


@NOTICED
@SIZES
@SEEDS
def test_quorum_loss_the_hub_of_a_star_takes_over(size: int, seed: int, noticed: bool) -> None:
    """OmniPaxos, quorum loss: everybody reaches only the hub, which still hears the old leader."""
    network, leader = elected(size, seed)
    hub = leader % size + 1
    network.keep_only([(hub, member) for member in network.members if member != hub], noticed=noticed)
    network.run_ms(10 * TIMEOUT_MS)
    # In a star of three the old leader still has a quorum with the hub, and keeps it.
    assert network.stable_leader() == (leader if size == 3 else hub)


@NOTICED
@SIZES
@SEEDS
def test_constrained_election_the_only_one_with_a_quorum_leads_though_it_lags(
    size: int, seed: int, noticed: bool
) -> None:
    """OmniPaxos, constrained election: the leader is cut off, and the hub that alone has a quorum lags by far."""
    network, leader = elected(size, seed)
    hub = leader % size + 1
    for member, replica in network.replicas.items():
        replica.commit_index = 0 if member == hub else 1_000_000
    arms = [(hub, member) for member in network.members if member not in (hub, leader)]
    network.keep_only(arms, noticed=noticed)
    network.run_ms(12 * TIMEOUT_MS)
    assert network.replicas[leader].role == "follower"
    # Of three, hub and arm are a quorum for each other, so either may lead.
    assert network.stable_leader() in ({hub} if size > 3 else {1, 2, 3} - {leader})
    if size > 3:
        arms_campaigns = [r.campaigns for member, r in network.replicas.items() if member not in (hub, leader)]
        assert max(arms_campaigns) <= 1, "nobody but the hub can have gained a quorum after the cut"


@NOTICED
@pytest.mark.parametrize("size", [3, 5])
@SEEDS
def test_chained_members_do_not_depose_each_other(size: int, seed: int, noticed: bool) -> None:
    """OmniPaxos, chained: members in a line; the ends do not hear each other but the middle hears both."""
    network, leader = elected(size, seed)
    line = [leader, *(member for member in network.members if member != leader)]
    network.keep_only(pairwise(line), noticed=noticed)
    network.run_ms(10 * TIMEOUT_MS)
    assert network.reaches(network.stable_leader()) >= network.quorum


@NOTICED
@SIZES
@pytest.mark.parametrize("seed", range(8))
def test_any_partial_partition_with_a_quorum_left_has_a_leader(size: int, seed: int, noticed: bool) -> None:
    network, _ = elected(size, 1000 + seed)
    chance = Random(seed)
    pairs = [pair for pair in permutations(network.members, 2) if pair[0] < pair[1]]
    hub = chance.choice(network.members)
    arms = {
        frozenset((hub, peer)) for peer in chance.sample([m for m in network.members if m != hub], network.quorum - 1)
    }
    for a, b in pairs:
        if frozenset((a, b)) not in arms and chance.random() < 0.6:
            if noticed:
                network.part(a, b, noticed=True)
            else:
                # Silent cuts may be one-way.
                directions = chance.choice([[(a, b)], [(b, a)], [(a, b), (b, a)]])
                for direction in directions:
                    network.cut(*direction)
    network.run_ms(15 * TIMEOUT_MS)
    assert network.reaches(network.stable_leader()) >= network.quorum
    network.heal()
    network.run_ms(3 * TIMEOUT_MS)
    network.stable_leader()


@NOTICED
@SIZES
@SEEDS
def test_members_without_a_quorum_never_raise_ballots(size: int, seed: int, noticed: bool) -> None:
    network, _ = elected(size, seed)
    group = set(network.members[: network.quorum - 1])
    for a in group:
        for b in set(network.members) - group:
            network.part(a, b, noticed=noticed)
    before = {member: network.replicas[member].campaigns for member in group}
    network.run_ms(60 * TIMEOUT_MS)
    assert {member: network.replicas[member].campaigns for member in group} == before
    winner = network.stable_leader()
    assert winner not in group
    network.heal()
    network.run_ms(2 * TIMEOUT_MS)
    assert network.stable_leader() == winner, "members that return disturb nobody"


@SIZES
@SEEDS
def test_no_quorum_anywhere_means_no_leader_and_no_ballots(size: int, seed: int) -> None:
    network, _ = elected(size, seed)
    network.keep_only([], noticed=False)
    network.run_ms(2 * TIMEOUT_MS)
    ballots = {member: replica.max_ballot_seen for member, replica in network.replicas.items()}
    network.run_ms(40 * TIMEOUT_MS)
    assert all(replica.role == "follower" for replica in network.replicas.values())
    assert ballots == {member: replica.max_ballot_seen for member, replica in network.replicas.items()}
    network.heal()
    network.run_ms(5 * TIMEOUT_MS)
    network.stable_leader()


@SEEDS
@pytest.mark.parametrize("deaf", [True, False], ids=["cannot-hear", "cannot-speak"])
def test_a_follower_cut_off_in_one_direction_does_not_disturb(seed: int, deaf: bool) -> None:
    network, leader = elected(5, seed)
    follower = leader % 5 + 1
    for member in network.members:
        if member != follower:
            network.cut(*((member, follower) if deaf else (follower, member)))
    before = network.replicas[follower].campaigns
    network.run_ms(20 * TIMEOUT_MS)
    assert network.stable_leader() == leader
    assert network.replicas[follower].campaigns == before


@SEEDS
def test_a_leader_that_cannot_hear_steps_down(seed: int) -> None:
    network, leader = elected(3, seed)
    for member in network.members:
        if member != leader:
            network.cut(member, leader)
    network.run_ms(6 * TIMEOUT_MS)
    assert network.stable_leader() != leader


@SEEDS
def test_members_that_may_not_vote_never_campaign_and_never_grant(seed: int) -> None:
    network = Network(3, seed, voting=[1, 2])
    network.run_ms(10 * TIMEOUT_MS)
    assert network.stable_leader() in (1, 2)
    assert network.replicas[3].campaigns == 0
    network = Network(3, seed, voting=[1])
    network.run_ms(20 * TIMEOUT_MS)
    assert all(replica.campaigns == 0 for replica in network.replicas.values())


@SEEDS
def test_resigning_hands_over_at_once(seed: int) -> None:
    network, leader = elected(3, seed)
    network.apply(leader, network.elections[leader].resign())
    assert network.replicas[leader].role == "follower"
    network.run_ms(TIMEOUT_MS // 2)
    assert network.leader() != leader
    assert network.elections[leader].resign() == []


@SEEDS
def test_a_restarted_leader_process_is_not_mistaken_for_the_leader(seed: int) -> None:
    network, leader = elected(3, seed)
    network.replicas[leader].step_down()
    for member in network.members:
        if member != leader:
            network.part(leader, member, noticed=True)
    network.run_ms(1)
    network.heal()
    others = [network.elections[member] for member in network.members if member != leader]
    assert all(network.replicas[election.node_id].leader_id == leader for election in others)
    assert not any(election.hears_leader(network.now_ns) for election in others)
    network.run_ms(TIMEOUT_MS // 2)
    network.stable_leader()
