"""Pinned scenarios: one named trouble each, in calm weather otherwise."""

from __future__ import annotations

import pytest

from fastpaxos.testing import LinkOptions, NemesisOptions, SimCluster, SimNode, SimOptions
from fastpaxos.testing.schedule import MILLISECOND_NS

pytestmark = pytest.mark.usefixtures("quiet_elections")

TIMEOUT_NS = 400 * MILLISECOND_NS
CALM = NemesisOptions(crash=0, restart=0, partition=0, one_way_cut=0, isolate_leader=0, heal=1, reset_connection=0)


def calm_cluster(seed: int = 1, **options: object) -> SimCluster:
    cluster = SimCluster(seed, SimOptions(nemesis=CALM, **options))  # type: ignore[arg-type]
    run_until_commands(cluster, 20, 8 * TIMEOUT_NS)
    return cluster


def run_until_commands(cluster: SimCluster, count: int, within_ns: int) -> int:
    """Run until `count` more commands are chosen; return how long it took."""
    begin_ns = cluster.schedule.now_ns
    target = cluster.checker.log.commands + count
    done = cluster.schedule.run_until(begin_ns + within_ns, lambda: cluster.checker.log.commands >= target)
    assert done, f"only {cluster.checker.log.commands} of {target} commands were chosen in {within_ns} ns"
    return cluster.schedule.now_ns - begin_ns


def the_leader(cluster: SimCluster) -> SimNode:
    leader = cluster.leader()
    assert leader is not None
    return leader


def followers(cluster: SimCluster) -> list[SimNode]:
    leader = the_leader(cluster)
    return [node for node in cluster.nodes.values() if node is not leader]


def finish(cluster: SimCluster) -> None:
    cluster.settle()
    cluster.check()


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 7])
def test_a_calm_cluster_commits_and_keeps_one_leader(nodes: int) -> None:
    cluster = calm_cluster(nodes=nodes)
    ballot = the_leader(cluster).replica.ballot
    cluster.run_for(3_000 * MILLISECOND_NS)
    assert the_leader(cluster).replica.ballot == ballot
    assert len(cluster.checker.proposals) <= 2
    finish(cluster)
    assert len(cluster.history.answered_writes()) > 50


@pytest.mark.parametrize("nodes", [3, 5])
def test_the_leader_crashes_and_another_takes_over(nodes: int) -> None:
    cluster = calm_cluster(nodes=nodes)
    cluster.crash_node(the_leader(cluster).node_id)
    assert run_until_commands(cluster, 5, 4 * TIMEOUT_NS) < 4 * TIMEOUT_NS
    finish(cluster)


def test_every_node_crashes_at_once_and_nothing_acknowledged_is_lost() -> None:
    cluster = calm_cluster()
    for _ in range(5):
        cluster.run_for(300 * MILLISECOND_NS)
        acknowledged = len(cluster.history.answered_writes())
        for node_id in cluster.members:
            cluster.crash_node(node_id)
        cluster.run_for(100 * MILLISECOND_NS)
        for node_id in cluster.members:
            assert cluster.start_node(node_id)
        run_until_commands(cluster, 5, 8 * TIMEOUT_NS)
        assert len(cluster.history.answered_writes()) >= acknowledged
    finish(cluster)


def test_followers_crash_in_turn_while_the_leader_goes_on() -> None:
    cluster = calm_cluster()
    leader = the_leader(cluster)
    for follower in followers(cluster) * 2:
        cluster.crash_node(follower.node_id)
        run_until_commands(cluster, 10, 4 * TIMEOUT_NS)
        assert cluster.start_node(follower.node_id)
        cluster.run_for(200 * MILLISECOND_NS)
        assert the_leader(cluster) is leader
    finish(cluster)


def test_a_paused_leader_is_replaced_and_answers_no_stale_read_when_it_wakes() -> None:
    cluster = calm_cluster()
    sleeper = the_leader(cluster)
    sleeper.pause()
    begin_ns = cluster.schedule.now_ns
    replaced = cluster.schedule.run_until(
        begin_ns + 6 * TIMEOUT_NS,
        lambda: any(node is not sleeper and node.replica.is_ready for node in cluster.nodes.values()),
    )
    assert replaced
    run_until_commands(cluster, 10, 4 * TIMEOUT_NS)
    sleeper.resume()
    cluster.run_for(2 * TIMEOUT_NS)
    assert sleeper.replica.role == "follower"
    finish(cluster)


def test_an_isolated_leader_steps_down_and_its_writes_survive_elsewhere_or_nowhere() -> None:
    cluster = calm_cluster(nodes=5)
    leader = the_leader(cluster)
    others = [node.node_id for node in followers(cluster)]
    cluster.network.partition([[leader.node_id], others])
    run_until_commands(cluster, 10, 6 * TIMEOUT_NS)
    cluster.run_for(2 * TIMEOUT_NS)
    assert leader.replica.role == "follower"
    finish(cluster)


def test_a_minority_that_is_cut_off_raises_no_ballots() -> None:
    cluster = calm_cluster(nodes=5)
    ballot = the_leader(cluster).replica.ballot
    lonely = [node.node_id for node in followers(cluster)[:2]]
    rest = [node_id for node_id in cluster.members if node_id not in lonely]
    cluster.network.partition([lonely, rest])
    cluster.run_for(10 * TIMEOUT_NS)
    cluster.network.heal()
    cluster.run_for(4 * TIMEOUT_NS)
    assert the_leader(cluster).replica.ballot == ballot
    finish(cluster)


def test_one_way_cut_of_the_leader_is_survived() -> None:
    cluster = calm_cluster(nodes=3)
    leader = the_leader(cluster)
    for node in followers(cluster):
        cluster.network.cut(node.node_id, leader.node_id, both_ways=False)
    run_until_commands(cluster, 10, 10 * TIMEOUT_NS)
    finish(cluster)


def test_a_replica_that_slept_through_much_catches_up_from_journals() -> None:
    cluster = calm_cluster(log_memory_bytes=0, ring_slots=128, window_slots=64)
    sleeper = followers(cluster)[0]
    cluster.crash_node(sleeper.node_id)
    run_until_commands(cluster, 600, 60 * TIMEOUT_NS)
    reads = cluster.checker.marks["journal_read"]
    assert cluster.start_node(sleeper.node_id)
    finish(cluster)
    assert cluster.checker.marks["journal_read"] > reads


def test_a_replica_with_a_full_batch_table_above_a_gap_catches_up() -> None:
    """What it accepted beyond the gap may not take the last place that the missing batch needs."""
    cluster = calm_cluster(batch_capacity=16, window_slots=64, ring_slots=256, links=LinkOptions(loss=0.1, reorder=0.3))
    run_until_commands(cluster, 200, 40 * TIMEOUT_NS)
    finish(cluster)


def test_a_slow_state_machine_delays_answers_only() -> None:
    cluster = calm_cluster(apply_delay_max_ns=60 * MILLISECOND_NS)
    cluster.run_for(2_000 * MILLISECOND_NS)
    finish(cluster)


@pytest.mark.parametrize(("phase1", "phase2"), [(4, 2), (2, 4), (5, 1), (1, 5)])
def test_flexible_quorums(phase1: int, phase2: int) -> None:
    cluster = calm_cluster(nodes=5, phase1_quorum=phase1, phase2_quorum=phase2)
    cluster.crash_node(the_leader(cluster).node_id)
    cluster.run_for(6 * TIMEOUT_NS)
    finish(cluster)


def test_wild_campaigning_costs_time_and_never_agreement() -> None:
    """Liveness decisions are not trusted: every node campaigns whenever it likes."""
    wild = NemesisOptions(interval_ns=40 * MILLISECOND_NS, campaign=5, step_down=2, crash=0.5, restart=1)
    cluster = SimCluster(11, SimOptions(nodes=5, nemesis=wild))
    cluster.run()
    assert len(cluster.checker.proposals) > 5


def test_sessions_beyond_the_limit_end_for_the_least_recently_used() -> None:
    cluster = calm_cluster(clients=4, sessions_max=3)
    cluster.run_for(4_000 * MILLISECOND_NS)
    assert cluster.checker.log.evictions > 0
    finish(cluster)


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_follower_that_cannot_hear_the_leader_catches_up_from_other_followers(nodes: int) -> None:
    """It hears from the answers to its pre-votes what it misses. Before, it stayed behind for ever."""
    cluster = calm_cluster(nodes=nodes)
    leader = the_leader(cluster)
    lonely = followers(cluster)[0]
    cluster.network.cut(leader.node_id, lonely.node_id)
    cluster.run_for(4 * TIMEOUT_NS)
    begin = cluster.checker.log.end_slot
    run_until_commands(cluster, 30, 8 * TIMEOUT_NS)
    for client in cluster.clients.values():
        client.stop()
    cluster.run_for(8 * TIMEOUT_NS)
    assert cluster.network.is_cut(leader.node_id, lonely.node_id)
    assert lonely.replica is not None
    assert lonely.replica.commit_index >= cluster.checker.log.end_slot - 1 > begin
    assert lonely.replica.applied_index == lonely.replica.commit_index
    finish_stopped(cluster)


def finish_stopped(cluster: SimCluster) -> None:
    """The clients have stopped, so nothing more is committed: only judge what was."""
    cluster.network.heal()
    cluster.run_for(4 * TIMEOUT_NS)
    cluster.check()
