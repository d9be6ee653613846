"""Faults of Phase 2 at the leader: which votes count, and quorums (rules 5.3, 5.4)."""

from __future__ import annotations

from .model import Mutant, core, package
from .worlds import LONE

__all__ = ["MUTANTS"]

PAPER = "tests/paper/test_phase2.py::"

MUTANTS = (
    Mutant(
        4,
        "the leader counts its own vote before its own sync returned",
        (
            core(
                "proposer",
                "            if batch.ticket > state.journal.durable_ticket:\n                break\n",
                "            if batch.ticket > state.journal.durable_ticket and not MUTANT(4):\n                "
                "break\n",
            ),
            core(
                "replica",
                "            # A gap that closed by learning may have freed what was chosen behind it.\n",
                "            if MUTANT(4):\n                self.proposer.count_own_votes()\n"
                "            # A gap that closed by learning may have freed what was chosen behind it.\n",
            ),
        ),
        rows=(4,),
        origin="etcd #14370, d-engine #447",
        rules=("5.3",),
        gate="own vote",
    ),
    Mutant(
        9,
        "two answers of one acceptor count twice",
        (
            core(
                "proposer",
                "                self.count_vote(reference, peer.bit)\n",
                "                self.count_vote(reference, peer.bit)\n"
                "            elif MUTANT(9):\n"
                "                self.count_vote(reference, <uint32_t>1 << 31)\n",
            ),
        ),
        rows=(9,),
        origin="ai-memory-mcp #341",
        rules=("5.3", "5.4"),
    ),
    Mutant(
        12,
        "an Accepted of an earlier ballot counts for what was re-proposed since",
        (
            core(
                "proposer",
                "        if self.role != ROLE_LEADER or frame.ballot != self.ballot or head.proposer_boot != "
                "state.boot:\n",
                "        if self.role != ROLE_LEADER or (frame.ballot != self.ballot and not MUTANT(12)) or (\n"
                "                head.proposer_boot != state.boot):\n",
            ),
            core(
                "proposer",
                "            if ranges[index].slot_begin >= self.next_slot or ranges[index].slot_end > "
                "self.next_slot:\n",
                "            if MUTANT(12) and ranges[index].slot_end > self.next_slot:\n                continue\n"
                "            if ranges[index].slot_begin >= self.next_slot or ranges[index].slot_end > "
                "self.next_slot:\n",
            ),
            core(
                "proposer",
                "                    or batch.descriptor.value_crc != ranges[index].value_crc):\n",
                "                    or batch.descriptor.value_crc != ranges[index].value_crc):\n"
                "                if MUTANT(12):\n                    continue\n",
            ),
        ),
        rows=(8, 12),
        origin="MyPaxos #18, CCF (Raft Fig. 8)",
        rules=("5.3",),
        layers=(
            f"{PAPER}test_53_a_batch_is_chosen_by_a_quorum_in_the_same_ballot",
            "sim",
        ),
    ),
    Mutant(
        308,
        "an Accepted to another boot of this node counts",
        (
            core(
                "proposer",
                "                head.proposer_boot != state.boot):\n",
                "                head.proposer_boot != state.boot and not MUTANT(308)):\n",
            ),
        ),
        rows=(8,),
        origin="class",
        rules=("5.3",),
        layers=(f"{PAPER}test_53_answers_to_another_boot_are_ignored",),
    ),
    Mutant(
        20,
        "half of the members are a majority",
        (
            core(
                "quorum",
                "        majority = len(ids) // 2 + 1\n",
                "        majority = max(1, len(ids) // 2) if MUTANT(20) else len(ids) // 2 + 1\n",
            ),
            core(
                "quorum",
                "        if phase1 + phase2 <= len(ids):\n",
                "        if phase1 + phase2 <= len(ids) and not MUTANT(20):\n",
            ),
            core(
                "founding.py",
                "    if phase1_quorum + phase2_quorum <= member_count:\n",
                "    if phase1_quorum + phase2_quorum <= member_count and not mutant(20):\n",
            ),
            package(
                "config",
                "        if phase1 + phase2 <= members:\n",
                "        if phase1 + phase2 <= members and not mutant(20):\n",
            ),
            *(
                package(
                    "config",
                    f"        return self.{name}_quorum or len(self.cluster) // 2 + 1\n",
                    f"        return self.{name}_quorum or max(1, len(self.cluster) // 2 + (0 if mutant(20) else 1))\n",
                )
                for name in ("phase1", "phase2")
            ),
        ),
        rows=(20,),
        origin="camunda #57387 kin",
        rules=("5.4",),
        options={"phase1_quorum": 0, "phase2_quorum": 0},
        layers=(
            "tests/unit/test_quorum.py::test_majorities_intersect",
            "sim",
        ),
    ),
    Mutant(
        120,
        "quorums that do not meet are accepted",
        (
            core(
                "quorum",
                "        if phase1 + phase2 <= len(ids) and not MUTANT(20):\n",
                "        if phase1 + phase2 <= len(ids) and not MUTANT(20) and not MUTANT(120):\n",
            ),
        ),
        rows=(20,),
        origin="class",
        rules=("5.4",),
        layers=(f"{PAPER}test_54_quorums_that_do_not_meet_are_refused",),
    ),
    Mutant(
        220,
        "Phase 2 is judged by the size of a Phase 1 quorum",
        (
            core(
                "quorum",
                "        return fp_popcount(votes) >= self.phase2_size\n",
                "        return fp_popcount(votes) >= (self.phase1_size if MUTANT(220) else self.phase2_size)\n",
            ),
        ),
        rows=(20,),
        origin="class",
        rules=("5.4",),
    ),
    Mutant(
        104,
        "a lone replica commits before its sync returned",
        (
            core(
                "proposer",
                "            if batch.ticket > state.journal.durable_ticket and not MUTANT(4):\n",
                "            if batch.ticket > state.journal.durable_ticket and not MUTANT(4) and not (\n"
                "                    MUTANT(104) and state.quorum.phase2_size == 1):\n",
            ),
            core(
                "replica",
                "            if MUTANT(4):\n",
                "            if MUTANT(4) or MUTANT(104):\n",
            ),
        ),
        rows=(4,),
        origin="etcd #14370",
        rules=("5.3",),
        gate="own vote",
        options=LONE,
    ),
    Mutant(
        721,
        "a vote for another value than the proposed one is no error",
        (
            core(
                "proposer",
                "                if MUTANT(12):\n                    continue\n",
                "                if MUTANT(12):\n                    continue\n                if MUTANT(721):\n"
                "                    self.count_vote(reference, peer.bit)\n                    continue\n",
            ),
        ),
        origin="DESIGN 5.3",
        rules=("5.3",),
        layers=(f"{PAPER}test_53_a_vote_for_another_value_stops_the_leader",),
    ),
    Mutant(
        722,
        "a vote for what was never proposed is no error",
        (
            core(
                "proposer",
                "            if MUTANT(12) and ranges[index].slot_end > self.next_slot:\n",
                "            if (MUTANT(12) or MUTANT(722)) and ranges[index].slot_end > self.next_slot:\n",
            ),
        ),
        origin="DESIGN 5.3",
        rules=("5.3",),
        layers=(f"{PAPER}test_53_a_vote_for_what_was_never_proposed_is_a_bad_frame",),
    ),
    Mutant(
        720,
        "everywhere_durable is the highest durable index of a member, not the lowest",
        (
            core(
                "proposer",
                "            lowest = min(lowest, peer.durable_index)\n",
                "            lowest = max(lowest, peer.durable_index) if MUTANT(720) else min(lowest, "
                "peer.durable_index)\n",
            ),
        ),
        origin="DESIGN 5.14",
        rules=("5.3",),
    ),
)
