"""Faults of the election: who campaigns, who refuses, who steps down. They cost progress, never agreement."""

from __future__ import annotations

from .model import Mutant, core, package

__all__ = ["MUTANTS"]

PARTITIONS = "tests/unit/test_election_partitions.py::"
ELECTION = "tests/unit/test_election.py::"
SCENARIOS = "tests/sim/test_scenarios.py::"

MUTANTS = (
    Mutant(
        22,
        "the quorum check counts silence: a leader that nobody answers believes that it was heard",
        (
            core(
                "proposer",
                "        if state.quorum.phase2_c(votes) and heard > self.quorum_heard_ns:\n",
                "        if MUTANT(22):\n            heard = state.now_ns\n"
                "        if state.quorum.phase2_c(votes) and heard > self.quorum_heard_ns:\n",
            ),
        ),
        rows=(22, 61),
        origin="CCF #7375",
        layers=(
            f"{SCENARIOS}test_an_isolated_leader_steps_down_and_its_writes_survive_elsewhere_or_nowhere",
            "sim",
        ),
    ),
    Mutant(
        60,
        "a node campaigns without having asked a quorum",
        (
            package(
                "election",
                "        if len(wanted_by) + 1 < self.votes_needed or self._disk_stalled:\n",
                "        if (len(wanted_by) + 1 < self.votes_needed and not mutant(60)) or self._disk_stalled:\n",
            ),
        ),
        rows=(60,),
        origin="Cloudflare 2020",
        layers=(
            f"{PARTITIONS}test_no_quorum_anywhere_means_no_leader_and_no_ballots",
            f"{SCENARIOS}test_a_minority_that_is_cut_off_raises_no_ballots",
        ),
    ),
    Mutant(
        160,
        "a member says yes although it hears a leader",
        (
            package(
                "election",
                "            and not self._leads_for_sure(now_ns)\n            and not self.hears_leader(now_ns)\n",
                "            and (mutant(160) or not self._leads_for_sure(now_ns))\n"
                "            and (mutant(160) or not self.hears_leader(now_ns))\n",
            ),
        ),
        rows=(60,),
        origin="Cloudflare 2020",
        layers=(f"{ELECTION}test_who_refuses_a_pre_vote",),
    ),
    Mutant(
        260,
        "campaigns that come to nothing are repeated without back-off",
        (
            package(
                "election",
                "            self._failures += 1\n            self._rest(now_ns)\n",
                "            if not mutant(260):\n                self._failures += 1\n            "
                "self._rest(now_ns)\n",
            ),
        ),
        rows=(60,),
        origin="class",
        layers=(f"{ELECTION}test_a_campaign_without_progress_is_given_up_and_the_next_waits_longer",),
    ),
    Mutant(
        61,
        "a leader without a quorum does not step down",
        (
            package(
                "election",
                "        if not self._is_recent(self._facts.quorum_contact_ns, now_ns):\n",
                "        if not mutant(61) and not self._is_recent(self._facts.quorum_contact_ns, now_ns):\n",
            ),
        ),
        rows=(61,),
        origin="OmniPaxos (quorum loss)",
        layers=(
            f"{PARTITIONS}test_quorum_loss_the_hub_of_a_star_takes_over",
            "tests/sim/test_partial_connectivity.py::test_quorum_loss",
        ),
    ),
    Mutant(
        161,
        "a candidate whose campaign makes no progress never gives up",
        (
            package(
                "election",
                "        if now_ns - self._progress_at_ns > 2 * self.election_timeout_ns:\n",
                "        if now_ns - self._progress_at_ns > 2 * self.election_timeout_ns and not mutant(161):\n",
            ),
        ),
        rows=(61,),
        origin="class",
        layers=(f"{ELECTION}test_a_campaign_without_progress_is_given_up_and_the_next_waits_longer",),
    ),
    Mutant(
        261,
        "a member that lags by far never leads",
        (
            package(
                "election",
                "            self._deferred_for_lag = True\n            return decisions\n",
                "            self._deferred_for_lag = not mutant(261)\n            return decisions\n",
            ),
        ),
        rows=(61,),
        origin="OmniPaxos (constrained election)",
        layers=(
            f"{ELECTION}test_a_member_that_lags_by_far_waits_one_more_timeout_and_then_goes_ahead",
            "tests/sim/test_partial_connectivity.py::test_constrained_election",
        ),
    ),
    Mutant(
        62,
        "a leader whose disk hangs goes on leading",
        (
            package(
                "election",
                "        elif self._disk_stalled and now_ns - self._progress_at_ns",
                "        elif not mutant(62) and self._disk_stalled and now_ns - self._progress_at_ns",
            ),
        ),
        rows=(62,),
        origin="etcd #15247",
        layers=(f"{ELECTION}test_a_hung_disk_never_campaigns_and_gives_up_a_leadership_that_chooses_nothing",),
    ),
    Mutant(
        162,
        "a write that hangs is never seen as stalled",
        (
            package(
                "driver",
                "        return 0 if self._write_started_ns is None else now_ns - self._write_started_ns\n",
                "        if mutant(162):\n            return 0\n"
                "        return 0 if self._write_started_ns is None else now_ns - self._write_started_ns\n",
            ),
        ),
        rows=(62,),
        origin="etcd #15247",
        layers=("tests/unit/test_driver.py", "tests/integration/test_pause.py", "sim"),
    ),
)
