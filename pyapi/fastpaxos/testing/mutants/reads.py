"""Faults of linearizable reads (rule 5.7)."""

from __future__ import annotations

from .model import Mutant, core
from .worlds import READS, SLOW_ECHOES

__all__ = ["MUTANTS"]

PAPER = "tests/paper/test_reads.py::"

MUTANTS = (
    Mutant(
        36,
        "a leader answers reads without asking a quorum",
        (
            core(
                "reads",
                "        if not state.quorum.phase2_c(votes):\n            return 0\n",
                "        if not state.quorum.phase2_c(votes) and not MUTANT(36):\n            return 0\n",
            ),
        ),
        rows=(36,),
        origin="etcd #741, dqlite #258, consul #54",
        rules=("5.7",),
        options=READS,
    ),
    Mutant(
        37,
        "a leader answers reads before it has committed in its own ballot",
        (
            core(
                "replica",
                "        if not self.proposer.is_ready():\n            return STATUS_NOT_READY\n        if "
                "minimum_index",
                "        if not self.proposer.is_ready() and not MUTANT(37):\n"
                "            return STATUS_NOT_READY\n        if minimum_index",
            ),
        ),
        rows=(37,),
        origin="rqlite #1935, #1944",
        rules=("5.7",),
        options=READS,
    ),
    Mutant(
        137,
        "a leader is ready before it has committed in its own ballot",
        (
            core(
                "proposer",
                "                and self.state.applied_index + 1 >= self.recovered_end)\n",
                "                and (self.state.applied_index + 1 >= self.recovered_end or MUTANT(137)))\n",
            ),
        ),
        rows=(37,),
        origin="rqlite #1935",
        rules=("5.7",),
        options=READS,
    ),
    Mutant(
        237,
        "an echo of the round before confirms a round",
        (
            core(
                "reads",
                "            if peer.read_round >= self.round:\n",
                "            if peer.read_round + MUTANT(237) >= self.round:\n",
            ),
        ),
        rows=(37,),
        origin="d-engine #381",
        rules=("5.7",),
        options=READS,
    ),
    Mutant(
        337,
        "a read that arrives while a round is out is confirmed by it",
        (
            core(
                "reads",
                "        if self.round_pending or not self.arrived:\n",
                "        if MUTANT(337) and self.round_pending:\n"
                "            self.in_round, self.arrived = self.in_round + self.arrived, []\n"
                "        if self.round_pending or not self.arrived:\n",
            ),
        ),
        rows=(37,),
        origin="class",
        rules=("5.7",),
        layers=(
            "tests/paper/test_reads.py::test_57_a_read_that_arrives_while_a_round_is_out_waits_for_the_next_one",
            "sim",
        ),
        options=SLOW_ECHOES,
    ),
    Mutant(
        437,
        "an acceptor echoes rounds of a ballot below its promise",
        (
            core(
                "acceptor",
                "            if frame.ballot < state.promised_ballot:\n                return self.send_nack(peer, "
                "frame.ballot)\n            state.raise_promise(frame.ballot, frame.boot)\n"
                "            promised = state.promised_ballot\n",
                "            if frame.ballot < state.promised_ballot and not MUTANT(437):\n"
                "                return self.send_nack(peer, frame.ballot)\n"
                "            if frame.ballot >= state.promised_ballot:\n"
                "                state.raise_promise(frame.ballot, frame.boot)\n"
                "            promised = frame.ballot\n",
            ),
        ),
        rows=(36,),
        origin="class",
        rules=("5.7",),
        options=READS,
    ),
    Mutant(
        537,
        "an echo in another ballot counts",
        (
            core(
                "proposer",
                "        if self.role != ROLE_LEADER or frame.ballot != self.ballot or head.proposer_boot != "
                "self.state.boot:\n",
                "        if self.role != ROLE_LEADER or (frame.ballot != self.ballot and not MUTANT(537)) or (\n"
                "                head.proposer_boot != self.state.boot):\n",
            ),
        ),
        rows=(36,),
        origin="class",
        rules=("5.7",),
        layers=(f"{PAPER}test_57_an_echo_in_another_ballot_is_not_counted",),
    ),
    Mutant(
        38,
        "a read is answered before the state machine has reached its index",
        (
            core(
                "reads",
                "            if read_index <= self.state.applied_index:\n",
                "            if read_index <= self.state.applied_index or MUTANT(38):\n",
            ),
        ),
        rows=(38,),
        origin="etcd #20418, #3879",
        rules=("5.7",),
        options={"apply_delay_max_ns": 50_000_000},
        layers=(
            f"{PAPER}test_57_the_answer_waits_for_apply",
            "sim",
        ),
    ),
    Mutant(
        138,
        "reads that wait outlive the leadership in which they arrived",
        (
            core(
                "replica",
                "        self.reads.fail_all(STATUS_NOT_LEADER)\n",
                "        if not MUTANT(138):\n            self.reads.fail_all(STATUS_NOT_LEADER)\n",
            ),
        ),
        rows=(38,),
        origin="class",
        rules=("5.7",),
        layers=(f"{PAPER}test_57_a_leader_that_promised_more_fails_its_reads",),
    ),
    Mutant(
        238,
        "the index of a read round is that of what was applied, not of what is committed",
        (
            core(
                "reads",
                "        self.round_index = self.state.commit_index\n",
                "        self.round_index = self.state.applied_index if MUTANT(238) else self.state.commit_index\n",
            ),
        ),
        rows=(38,),
        origin="class",
        rules=("5.7",),
        options={"apply_delay_max_ns": 50_000_000},
        layers=(
            f"{PAPER}test_57_the_answer_waits_for_apply",
            "sim",
        ),
    ),
)
