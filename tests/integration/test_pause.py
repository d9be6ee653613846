"""SIGSTOP of real replicas under load: a leader that slept does not know that it was deposed, and must do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness import running

pytestmark = pytest.mark.timeout(60)


async def test_a_paused_leader_answers_no_stale_read_and_acknowledges_no_lost_write(tmp_path: Path) -> None:
    async with running(tmp_path) as scenario:
        old = await scenario.leader()
        async with scenario.pinned(old) as pinned:
            scenario.cluster.pause(old)
            pinned.ask()
            assert await scenario.leader(scenario.others(old)) != old
            await scenario.progress()
            # These lie in the sleeper's socket, and what they must see was written behind its back.
            pinned.ask()
            await scenario.progress()
            pinned.release()
            scenario.cluster.resume(old)
            await pinned.answers()
        await scenario.caught_up()
        await scenario.progress()


async def test_a_paused_leader_that_wakes_up_alone_answers_nothing(tmp_path: Path) -> None:
    """No word of the new leader reaches the old one when it wakes: only its missing quorum can hold it back."""
    async with running(tmp_path, proxies=True) as scenario:
        old = await scenario.leader()
        async with scenario.pinned(old) as pinned:
            scenario.network.isolate(old)
            scenario.cluster.pause(old)
            assert await scenario.leader(scenario.others(old)) != old
            await scenario.progress()
            pinned.ask()
            scenario.cluster.resume(old)
            await scenario.until(lambda seen: seen[0]["role"] == "follower", "the old leader's resignation", [old])
            pinned.check_unanswered()
            scenario.network.heal()
            pinned.release()
            await pinned.answers()
        await scenario.caught_up()


async def test_a_paused_follower_stops_nobody_and_catches_up(tmp_path: Path) -> None:
    async with running(tmp_path) as scenario:
        leader = await scenario.leader()
        sleeper = scenario.others(leader)[0]
        scenario.cluster.pause(sleeper)
        await scenario.silence(leader, sleeper)
        await scenario.progress()
        scenario.cluster.resume(sleeper)
        await scenario.caught_up()
        await scenario.progress()
