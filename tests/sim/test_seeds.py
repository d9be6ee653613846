"""Seeded simulation: whole clusters in trouble, every property checked all the time.

Each seed draws its own faults, sizes and clients. A failure prints the options and the one command that replays it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from fastpaxos.testing import SimCluster

SEEDS_PER_TEST = 10
DEFAULT_GROUPS = range(15)
CAMPAIGN_GROUPS = range(15, 300)
# Each of these must happen somewhere in the default seeds, or the simulation has lost its power.
MUST_HAPPEN = (
    "acknowledged",
    "reads",
    "crash",
    "crash_of_leader",
    "crash_in_recovery",
    "journal_read",
    "promise_with_entries",
    "sent_nack",
    "sent_fetch",
    "sent_learn",
    "session_evicted",
    "frame_replayed",
    "frame_lost",
    "submit_OUT_OF_ORDER",
    "submit_NOT_LEADER",
    "submit_NOT_READY",
)


def run_seed(seed: int) -> dict[str, int]:
    cluster = SimCluster(seed)
    try:
        cluster.run()
    except BaseException as error:
        error.add_note(f"{cluster.options}\nreplay: {cluster.replay_command()}")
        raise
    return cluster.report()


@pytest.mark.usefixtures("quiet_elections")
@pytest.mark.parametrize("group", DEFAULT_GROUPS)
def test_seeds(group: int) -> None:
    for seed in range(group * SEEDS_PER_TEST, (group + 1) * SEEDS_PER_TEST):
        report = run_seed(seed)
        assert report["commands"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_elections")
@pytest.mark.parametrize("group", CAMPAIGN_GROUPS)
def test_campaign(group: int) -> None:
    for seed in range(group * SEEDS_PER_TEST, (group + 1) * SEEDS_PER_TEST):
        run_seed(seed)


@pytest.mark.usefixtures("quiet_elections")
def test_the_simulation_has_power() -> None:
    """A simulation in which nothing bad happens proves nothing."""
    totals: Counter[str] = Counter()
    for seed in range(30):
        totals.update(run_seed(seed))
    assert [name for name in MUST_HAPPEN if not totals[name]] == []
    assert totals["acknowledged"] > 1000


@pytest.mark.usefixtures("quiet_elections")
@pytest.mark.parametrize("seed", [3, 17])
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    """Equal traces: every frame the same bytes at the same virtual nanosecond."""
    assert run_seed(seed) == run_seed(seed)
