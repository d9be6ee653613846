"""Faults of the survey: a committed slot that nobody can read back (rule 5.3)."""

from __future__ import annotations

from .model import Mutant, core

__all__ = ["MUTANTS"]

UNIT = "tests/unit/test_survey.py::"

MUTANTS = (
    Mutant(
        740,
        "a survey learns from fewer acceptors than a Phase 1 quorum",
        (
            core(
                "survey",
                "        if self.best.flags != BATCH_COMMITTED and not self.state.quorum.meets_phase2_c(self.votes):\n",
                "        if (self.best.flags != BATCH_COMMITTED and not self.state.quorum.meets_phase2_c(self.votes)\n"
                "                and not MUTANT(740)):\n",
            ),
        ),
        origin="DESIGN 5.2, 5.3",
        rules=("5.3",),
        layers=(f"{UNIT}test_a_minority_of_five_is_not_enough",),
    ),
    Mutant(
        741,
        "a survey takes the value of the first answer, not that of the highest ballot",
        (
            core(
                "survey",
                "                        and entry.ballot < self.best.ballot):\n",
                "                        and (entry.ballot < self.best.ballot or MUTANT(741))):\n",
            ),
        ),
        origin="DESIGN 5.2, 5.3",
        rules=("5.3",),
        layers=(f"{UNIT}test_the_highest_ballot_is_the_chosen_value",),
    ),
    Mutant(
        742,
        "an acceptor whose record rotted tells a survey that it accepted nothing",
        (
            core(
                "survey",
                " or (slot > state.commit_index and self._is_blind(slot)):\n",
                " or (slot > state.commit_index and self._is_blind(slot) and not MUTANT(742)):\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2", "5.3"),
        layers=(f"{UNIT}test_an_acceptor_that_cannot_tell_is_silent",),
    ),
    Mutant(
        743,
        "a replica whose own record rotted counts itself in its survey",
        (
            core(
                "survey",
                "        if slot == state.commit_index + 1 and not self._is_blind(slot):\n",
                "        if (slot == state.commit_index + 1 and not self._is_blind(slot)) or MUTANT(743):\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2", "5.3"),
        layers=(f"{UNIT}test_an_acceptor_that_lost_its_record_does_not_count_itself",),
    ),
    Mutant(
        744,
        "a committed slot that is not in memory any more is told to a survey as nothing accepted",
        (
            core(
                "survey",
                "        if slot < state.window.memory_begin or",
                "        if (slot < state.window.memory_begin and not MUTANT(744)) or",
            ),
        ),
        origin="class",
        rules=("5.3",),
        layers=(f"{UNIT}test_an_acceptor_that_cannot_tell_is_silent",),
    ),
    Mutant(
        745,
        "a committed slot that nobody can read back is asked for for ever",
        (
            core(
                "survey",
                "        if self.slot or (self.learner.failures == 0 and self.learner.repair_failures == 0):\n",
                "        if (self.slot or (self.learner.failures == 0 and self.learner.repair_failures == 0)\n"
                "                or MUTANT(745)):\n",
            ),
        ),
        origin="found by this simulator (seeds 16147, 32970)",
        layers=(f"{UNIT}test_one_more_answer_makes_a_quorum_of_three",),
    ),
    Mutant(
        746,
        "votes of an earlier survey count",
        (
            core(
                "survey",
                "        self.votes = 0\n",
                "        if not MUTANT(746):\n            self.votes = 0\n",
            ),
        ),
        origin="class of 8",
        rules=("5.3",),
        layers=(f"{UNIT}test_votes_of_an_earlier_survey_do_not_count",),
    ),
    Mutant(
        747,
        "request ids begin anew at every start: an answer to an earlier one counts",
        (
            core(
                "learner",
                "        self.next_request_id = <uint64_t>state.boot << 32\n",
                "        self.next_request_id = 1 if MUTANT(747) else <uint64_t>state.boot << 32\n",
            ),
        ),
        origin="MyPaxos #18 kin, found by a review",
        rules=("5.3",),
        layers=(f"{UNIT}test_an_answer_to_an_earlier_start_is_no_vote",),
    ),
    Mutant(
        748,
        "a survey believes a Phase 2 quorum",
        (
            core(
                "quorum",
                "        return fp_popcount(votes) > self._count - self.phase2_size\n",
                "        return fp_popcount(votes) >= self.phase2_size if MUTANT(748) else (\n"
                "            fp_popcount(votes) > self._count - self.phase2_size)\n",
            ),
        ),
        origin="DESIGN 5.4",
        rules=("5.4",),
        layers=(f"{UNIT}test_flexible_quorums_every_phase_2_quorum_must_be_met",),
    ),
)
