"""The three partial partitions that stop many protocols: each must commit again within four election timeouts.

Paper: Ng, Haridi, Carbone, "Omni-Paxos: Breaking the Barriers of Partial Connectivity", EuroSys 2023, section 2.
"""

from __future__ import annotations

import pytest

from fastpaxos.testing import NemesisOptions, SimCluster, SimNode, SimOptions
from fastpaxos.testing.schedule import MILLISECOND_NS

pytestmark = pytest.mark.usefixtures("quiet_elections")

TIMEOUT_NS = 400 * MILLISECOND_NS
BOUND_NS = 4 * TIMEOUT_NS
CALM = NemesisOptions(crash=0, restart=0, partition=0, one_way_cut=0, isolate_leader=0, heal=0, pause=0)
SEEDS = (1, 2)
SIZES = [3, 5, 7]


def calm_cluster(seed: int, nodes: int) -> SimCluster:
    cluster = SimCluster(seed, SimOptions(nodes=nodes, nemesis=CALM))
    commits_within(cluster, 8 * TIMEOUT_NS, count=20)
    return cluster


def commits_within(cluster: SimCluster, bound_ns: int, count: int = 1) -> None:
    """New commands are chosen in time, and not only those that were on their way."""
    begin_ns = cluster.schedule.now_ns
    target = cluster.checker.log.commands + count
    done = cluster.schedule.run_until(begin_ns + bound_ns, lambda: cluster.checker.log.commands >= target)
    assert done, f"seed {cluster.seed}: {cluster.checker.log.commands} of {target} after {bound_ns} ns"


def the_leader(cluster: SimCluster) -> SimNode:
    leader = cluster.leader()
    assert leader is not None
    return leader


def followers(cluster: SimCluster) -> list[int]:
    leader = the_leader(cluster)
    return [node_id for node_id in cluster.members if node_id != leader.node_id]


def leave_only(cluster: SimCluster, kept: set[frozenset[int]]) -> None:
    for first in cluster.members:
        for second in cluster.members:
            if first < second and frozenset((first, second)) not in kept:
                cluster.network.cut(first, second)


def drain(cluster: SimCluster) -> None:
    """Let what was on its way arrive or be lost."""
    cluster.run_for(5 * MILLISECOND_NS)


def finish(cluster: SimCluster) -> None:
    cluster.settle()
    cluster.check()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", SIZES)
def test_quorum_loss(nodes: int, seed: int) -> None:
    """Only one follower still sees a quorum, and it still hears the leader, which does not."""
    cluster = calm_cluster(seed, nodes)
    hub = followers(cluster)[0]
    leave_only(cluster, {frozenset((hub, other)) for other in cluster.members if other != hub})
    drain(cluster)
    commits_within(cluster, BOUND_NS)
    if nodes > 3:  # of three, the old leader and the hub are a quorum by themselves
        assert the_leader(cluster).node_id == hub
    finish(cluster)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", SIZES)
def test_constrained_election(nodes: int, seed: int) -> None:
    """The leader is gone, and the only node that sees a quorum lags behind all others."""
    cluster = calm_cluster(seed, nodes)
    leader = the_leader(cluster).node_id
    hub = followers(cluster)[0]
    for other in cluster.members:
        if other != hub:
            cluster.network.cut(hub, other)
    commits_within(cluster, 4 * TIMEOUT_NS, count=30)
    cluster.network.heal()
    leave_only(cluster, {frozenset((hub, other)) for other in cluster.members if other not in (hub, leader)})
    drain(cluster)
    commits_within(cluster, BOUND_NS)
    if nodes > 3:  # of three, either of the two that are left may lead
        assert cluster.nodes[hub].role() == "leader"
    finish(cluster)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", SIZES)
def test_chained(nodes: int, seed: int) -> None:
    """The leader loses one neighbour of a row: both ends must not depose each other for ever."""
    cluster = calm_cluster(seed, nodes)
    leader = the_leader(cluster).node_id
    others = followers(cluster)
    # The leader is at one end of the row of three; further nodes see the middle one only.
    kept = {frozenset((leader, others[0]))} | {frozenset((others[0], other)) for other in others[1:]}
    leave_only(cluster, kept)
    drain(cluster)
    commits_within(cluster, BOUND_NS)
    cluster.run_for(4 * TIMEOUT_NS)
    ballots = len(cluster.checker.proposals)
    cluster.run_for(8 * TIMEOUT_NS)
    assert len(cluster.checker.proposals) <= ballots + 1, f"seed {seed}: leaders go on deposing each other"
    commits_within(cluster, BOUND_NS)
    finish(cluster)
