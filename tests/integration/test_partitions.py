"""Replicas that cannot hear each other, in one direction or both, while every client reaches all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness import SILENCE_MS, running

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("direction", ["both", "outgoing", "incoming"])
async def test_leader_cut_off(tmp_path: Path, direction: str) -> None:
    """The others elect a new leader; the old one answers nothing until the network is whole again."""
    async with running(tmp_path, proxies=True) as scenario:
        old = await scenario.leader()
        async with scenario.pinned(old) as pinned:
            scenario.network.isolate(old, direction)
            pinned.ask()
            assert await scenario.leader(scenario.others(old)) != old
            await scenario.progress()
            pinned.ask()
            await scenario.progress()
            pinned.check_unanswered()
            # Once with what the cut held back, once without it.
            scenario.network.heal(reset=direction == "both")
            pinned.release()
            await pinned.answers()
        await scenario.caught_up()
        await scenario.progress()


async def test_follower_cut_off_and_back(tmp_path: Path) -> None:
    """A follower that is cut off in any direction stops nobody, and raises no ballot as long as no quorum hears it."""
    async with running(tmp_path, proxies=True) as scenario:
        for direction in ("both", "outgoing", "incoming"):
            leader = await scenario.leader()
            follower = scenario.others(leader)[0]
            listener, speaker = (leader, follower) if direction == "outgoing" else (follower, leader)
            scenario.network.isolate(follower, direction)
            await scenario.progress()
            [before] = await scenario.silence(listener, speaker, SILENCE_MS // 2)
            [after] = await scenario.silence(listener, speaker, SILENCE_MS)
            if listener == follower:
                for name in ("promised_ballot", "commit_index"):
                    assert after[name] == before[name], name
            await scenario.progress()
            scenario.network.heal(reset=direction == "outgoing")
            await scenario.caught_up()
            await scenario.progress()


async def test_partial_partition(tmp_path: Path) -> None:
    """Two replicas lose each other and both still reach the third: the cluster goes on, whoever of them leads."""
    async with running(tmp_path, proxies=True) as scenario:
        for leader_is_cut in (True, False):
            leader = await scenario.leader()
            first, second = scenario.others(leader)
            pair = (leader, second) if leader_is_cut else (first, second)
            scenario.network.separate(*pair)
            await scenario.silence(pair[1], pair[0])
            await scenario.progress()
            scenario.network.heal(reset=leader_is_cut)
            await scenario.caught_up()
        await scenario.progress()


async def test_connections_reset_under_load(tmp_path: Path) -> None:
    """Broken connections lose messages in the middle; what was lost is sent again."""
    async with running(tmp_path, proxies=True) as scenario:
        for _ in range(3):
            for first, second in ((1, 2), (1, 3), (2, 3)):
                scenario.network.reset(first, second)
            await scenario.progress()
        await scenario.caught_up()
