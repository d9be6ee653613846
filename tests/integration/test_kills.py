"""kill -9 of real replicas under load: nothing that was acknowledged is lost, nothing is applied twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness import running

pytestmark = pytest.mark.timeout(60)


async def test_leader_and_followers_killed_in_turn(tmp_path: Path) -> None:
    async with running(tmp_path) as scenario:
        for victim_leads in (True, False, True):
            leader = await scenario.leader()
            victim = leader if victim_leads else scenario.others(leader)[-1]
            scenario.step(f"replica {victim} is killed, the leader is {leader}")
            scenario.cluster.kill(victim)
            await scenario.progress()
            await scenario.leader(scenario.others(victim))
            scenario.step(f"replica {victim} comes back")
            scenario.cluster.start(victim)
            await scenario.caught_up()
        await scenario.progress()
        boots = {entry["id"]: entry["boot"] for entry in await scenario.statuses()}
        assert sum(boots.values()) == len(boots) + 3, boots


async def test_full_cluster_killed_and_started_cold(tmp_path: Path) -> None:
    async with running(tmp_path) as scenario:
        scenario.step("all replicas are killed at once")
        for node_id in scenario.members:
            scenario.cluster.kill(node_id)
        assert scenario.cluster.running() == []
        for node_id in scenario.members:
            scenario.cluster.start(node_id)
        await scenario.progress()

        scenario.step("two replicas acknowledge what the third never saw, and die")
        leader = await scenario.leader()
        stale, witness = scenario.others(leader)
        scenario.cluster.kill(stale)
        await scenario.progress()
        scenario.cluster.kill(leader)
        scenario.cluster.kill(witness)
        scenario.step("the stale one starts with one of them, and what was acknowledged is there")
        scenario.cluster.start(stale)
        scenario.cluster.start(witness)
        await scenario.progress()
        scenario.cluster.start(leader)
        await scenario.caught_up()
