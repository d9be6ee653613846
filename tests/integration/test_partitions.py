"""Replicas that cannot hear each other, in one direction or both, while every client reaches all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness import SILENCE_MS, running

pytestmark = pytest.mark.timeout(60)

DIRECTIONS = ("both", "outgoing", "incoming")


async def test_leader_cut_off(tmp_path: Path) -> None:
    """The others elect a new leader; the old one answers nothing until the network is whole again."""
    async with running(tmp_path, proxies=True) as scenario:
        for direction in DIRECTIONS:
            old = await scenario.leader()
            async with scenario.pinned(old) as pinned:
                scenario.step(f"the leader {old} is cut off, {direction}")
                scenario.network.isolate(old, direction)
                pinned.ask()
                assert await scenario.leader(scenario.others(old)) != old
                await scenario.progress()
                pinned.ask()
                await scenario.progress()
                pinned.check_unanswered()
                scenario.step(f"the network is whole again, after {direction}")
                # What the cut held back arrives late, or is gone with its connection.
                scenario.network.heal(reset=direction == "both")
                pinned.release()
                await pinned.answers()
            await scenario.caught_up()
        await scenario.progress()


async def test_follower_cut_off(tmp_path: Path) -> None:
    """A follower that is cut off in any direction stops nobody, and raises no ballot that no quorum wants."""
    async with running(tmp_path, proxies=True) as scenario:
        for direction in DIRECTIONS:
            leader = await scenario.leader()
            follower = scenario.others(leader)[0]
            listener, speaker = (leader, follower) if direction == "outgoing" else (follower, leader)
            scenario.step(f"the follower {follower} is cut off, {direction}, the leader is {leader}")
            scenario.network.isolate(follower, direction)
            await scenario.progress()
            [before] = await scenario.silence(listener, speaker, SILENCE_MS // 2)
            [after] = await scenario.silence(listener, speaker, SILENCE_MS)
            if listener == follower:
                for name in ("promised_ballot", "commit_index"):
                    assert after[name] == before[name], name
            await scenario.progress()
            scenario.step(f"the network is whole again, after {direction}")
            scenario.network.heal(reset=direction == "outgoing")
            await scenario.caught_up()
        await scenario.progress()


async def test_partial_partition_and_broken_connections(tmp_path: Path) -> None:
    """Two replicas lose each other and both still reach the third: the cluster goes on, whoever of them leads."""
    async with running(tmp_path, proxies=True) as scenario:
        for leader_is_cut in (True, False):
            leader = await scenario.leader()
            first, second = scenario.others(leader)
            listener, speaker = (second, leader) if leader_is_cut else (second, first)
            scenario.step(f"replicas {listener} and {speaker} lose each other, the leader is {leader}")
            scenario.network.separate(listener, speaker)
            await scenario.silence(listener, speaker)
            await scenario.progress()
            scenario.step("the network is whole again")
            scenario.network.heal(reset=leader_is_cut)
            await scenario.caught_up()
        for _ in range(3):
            scenario.step("all connections between replicas break")
            for one, other in ((1, 2), (1, 3), (2, 3)):
                scenario.network.reset(one, other)
            await scenario.progress()
        await scenario.caught_up()
