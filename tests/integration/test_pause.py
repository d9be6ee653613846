"""SIGSTOP of real replicas under load: a leader that slept does not know that it was deposed, and must do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.harness import running

pytestmark = pytest.mark.timeout(60)


async def test_paused_replicas_answer_no_stale_read_and_acknowledge_no_lost_write(tmp_path: Path) -> None:
    async with running(tmp_path) as scenario:
        old = await scenario.leader()
        async with scenario.pinned(old) as pinned:
            scenario.step(f"the leader {old} is paused")
            scenario.cluster.pause(old)
            pinned.ask()
            assert await scenario.leader(scenario.others(old)) != old
            await scenario.progress()
            # These lie in the sleeper's socket, and what they must see was written behind its back.
            pinned.ask()
            await scenario.progress()
            scenario.step(f"the old leader {old} goes on")
            pinned.release()
            scenario.cluster.resume(old)
            await pinned.answers()
        await scenario.caught_up()

        leader = await scenario.leader()
        follower = scenario.others(leader)[0]
        scenario.step(f"the follower {follower} is paused, the leader is {leader}")
        scenario.cluster.pause(follower)
        await scenario.silence(leader, follower)
        await scenario.progress()
        scenario.step(f"the follower {follower} goes on")
        scenario.cluster.resume(follower)
        await scenario.caught_up()
        await scenario.progress()


async def test_a_paused_leader_that_wakes_up_alone_answers_nothing(tmp_path: Path) -> None:
    """No word of the new leader reaches the old one when it wakes: only its missing quorum can hold it back."""
    async with running(tmp_path, proxies=True) as scenario:
        old = await scenario.leader()
        async with scenario.pinned(old) as pinned:
            scenario.step(f"the leader {old} is cut off and paused")
            scenario.network.isolate(old)
            scenario.cluster.pause(old)
            assert await scenario.leader(scenario.others(old)) != old
            await scenario.progress()
            pinned.ask()
            scenario.step(f"the old leader {old} goes on, still cut off")
            scenario.cluster.resume(old)
            await scenario.until(lambda seen: seen[0]["role"] == "follower", "the old leader's resignation", [old])
            pinned.check_unanswered()
            scenario.step("the network is whole again")
            scenario.network.heal()
            pinned.release()
            await pinned.answers()
        await scenario.caught_up()
