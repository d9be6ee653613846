"""Faults of Phase 1: which promises count, what is re-proposed, and under which ballot (rule 5.2)."""

from __future__ import annotations

from .model import Mutant, core
from .worlds import DUELS

__all__ = ["MUTANTS"]

PAPER = "tests/paper/test_phase1.py::"

MUTANTS = (
    Mutant(
        7,
        "a reported value is ignored",
        (
            core(
                "phase1",
                "            if promise.is_whole:\n                entries.extend(promise.entries)\n",
                "            if promise.is_whole and not MUTANT(7):\n                entries.extend(promise.entries)\n",
            ),
        ),
        rows=(7,),
        origin="class",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        107,
        "the value of the lowest ballot wins",
        (
            core(
                "phase1",
                "key=lambda item: (-item.ballot, item.slot_begin)):\n",
                "key=lambda item: (\n"
                "            item.ballot if MUTANT(107) else 0 if MUTANT(207) else -item.ballot, item.slot_begin)):\n",
            ),
        ),
        rows=(7,),
        origin="class",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        207,
        "the reply that came first wins, whatever its ballot",
        (
            core(
                "phase1",
                "    for entry in entries:\n        if entry.slot_begin <= commit_index:\n            continue\n",
                "    for entry in reversed(entries) if MUTANT(207) else entries:\n"
                "        if entry.slot_begin <= commit_index:\n            continue\n",
            ),
        ),
        rows=(7,),
        origin="class",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        307,
        "the candidate ignores what it accepted itself",
        (
            core(
                "phase1",
                "        while slot < state.window.slot_end_max:\n",
                "        while not MUTANT(307) and slot < state.window.slot_end_max:\n",
            ),
        ),
        rows=(7,),
        origin="class",
        rules=("5.2",),
    ),
    Mutant(
        8,
        "a Promise of an earlier ballot counts",
        (
            core(
                "phase1",
                "        if (not self.active or frame.ballot != self.ballot or",
                "        if (not self.active or (frame.ballot != self.ballot and not MUTANT(8)) or",
            ),
            core(
                "phase1",
                "            if begin == 0 or end <= begin or ballot >= self.ballot:\n",
                "            if begin == 0 or end <= begin or (ballot >= self.ballot and not MUTANT(8)):\n",
            ),
        ),
        rows=(8,),
        origin="MyPaxos #18",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        208,
        "a Promise to another boot of this node counts",
        (
            core(
                "phase1",
                " head.proposer_boot != self.state.boot\n                or head.slot_begin",
                " (head.proposer_boot != self.state.boot and not MUTANT(208))\n                or head.slot_begin",
            ),
        ),
        rows=(8,),
        origin="class",
        rules=("5.2",),
        layers=(f"{PAPER}test_52_promises_of_another_ballot_or_boot_are_ignored",),
    ),
    Mutant(
        109,
        "two Promises of one acceptor count twice",
        (
            core(
                "phase1",
                "        if head.part in promise.parts:\n            return 0\n",
                "        if head.part in promise.parts:\n"
                "            if MUTANT(109) and promise.is_whole:\n"
                "                self.promises[peer.node_id + 70000] = promise\n"
                "            return 0\n",
            ),
            core(
                "phase1",
                "                votes |= state.peer(node_id).bit\n                unknown",
                "                if node_id > 70000:\n"
                "                    votes |= <uint32_t>1 << 31\n"
                "                    continue\n"
                "                votes |= state.peer(node_id).bit\n                unknown",
            ),
        ),
        rows=(9,),
        origin="ai-memory-mcp #341",
        rules=("5.2", "5.4"),
        options={**DUELS, "nodes": 5},
    ),
    Mutant(
        11,
        "every node makes the ballots of node 1",
        (
            core(
                "phase1",
                "        self.ballot = make_ballot(highest + 1, state.node_id)\n",
                "        self.ballot = make_ballot(highest + 1, 1 if MUTANT(11) else state.node_id)\n",
            ),
        ),
        rows=(11,),
        origin="phxpaxos #145",
        rules=("5.2",),
    ),
    Mutant(
        111,
        "a new ballot lies above what was seen since the start, not above the journal",
        (
            core(
                "phase1",
                "        self.abandon()\n        self.ballot = ",
                "        if MUTANT(111):\n            highest = ballot_round(state.leader_ballot)\n"
                "        self.abandon()\n        self.ballot = ",
            ),
        ),
        rows=(11,),
        origin="phxpaxos #145",
        rules=("5.2",),
    ),
    Mutant(
        112,
        "re-proposing counts the old acceptances that the Promises reported as votes for the new ballot",
        (
            core(
                "phase1",
                "            self.plan_next += 1\n        if not self.plan",
                "            self.plan_next += 1\n"
                "            if MUTANT(112):\n"
                "                for reporter in entry.reporters:\n"
                "                    if reporter != state.node_id:\n"
                "                        self.proposer.count_vote(reference, state.peer(reporter).bit)\n"
                "        if not self.plan",
            ),
        ),
        rows=(12,),
        origin="CCF (Raft Fig. 8)",
        rules=("5.2", "5.3"),
        options=DUELS,
    ),
    Mutant(
        16,
        "the new leader counts itself for what it re-proposes before that is durable",
        (
            core(
                "phase1",
                "            self.plan_next += 1\n            if MUTANT(112):\n",
                "            self.plan_next += 1\n"
                "            if MUTANT(16):\n"
                "                self.proposer.count_vote(reference, state.own_bit)\n"
                "            if MUTANT(112):\n",
            ),
        ),
        rows=(16,),
        origin="TigerBeetle #861, #2295; ZOOKEEPER-4646",
        gate="own vote",
        rules=("5.3",),
    ),
    Mutant(
        18,
        "gaps between re-proposed batches are not filled",
        (
            core(
                "phase1",
                "            if gap:\n                if not self._propose_noop",
                "            if gap and not MUTANT(18):\n                if not self._propose_noop",
            ),
        ),
        rows=(18,),
        origin="class",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        118,
        "Phase 1 asks only for the slots above those that the candidate holds, and fills the rest with no-ops",
        (
            core(
                "phase1",
                "        self.slot_begin = state.commit_index + 1\n",
                "        self.slot_begin = state.window.slot_end_max if MUTANT(118) else state.commit_index + 1\n",
            ),
        ),
        rows=(18,),
        origin="class",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        218,
        "a new leader with nothing to re-propose proposes nothing",
        (
            core(
                "phase1",
                "        if not self.plan and not self._propose_noop(1):\n",
                "        if not self.plan and not MUTANT(218) and not self._propose_noop(1):\n",
            ),
        ),
        rows=(18, 37),
        origin="class",
        rules=("5.2", "5.7"),
        layers=(f"{PAPER}test_52_at_least_one_slot_is_proposed",),
    ),
    Mutant(
        701,
        "the candidate does not wait for what others know to be committed",
        (
            core(
                "phase1",
                "                if promise.is_whole and promise.commit_index > state.commit_index:\n",
                "                if promise.is_whole and promise.commit_index > state.commit_index and not "
                "MUTANT(701):\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        702,
        "a reported batch that overlaps a taken one is taken too",
        (
            core(
                "phase1",
                "        if overlaps:\n            continue\n",
                "        if overlaps and not MUTANT(702):\n            continue\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2",),
        options=DUELS,
    ),
    Mutant(
        127,
        "an acceptor that does not know a range counts for it",
        (
            core(
                "phase1",
                "        for probe, _, _ in unknown:\n",
                "        for probe, _, _ in [] if MUTANT(127) else unknown:\n",
            ),
        ),
        rows=(27,),
        origin="PAR (FAST'18)",
        rules=("5.2",),
        layers=(f"{PAPER}test_52_an_unknown_range_does_not_count_toward_its_quorum",),
    ),
    Mutant(
        704,
        "a Promise counts as soon as one of its parts is here",
        (
            core(
                "phase1",
                "        return len(self.parts) == self.part_count\n",
                "        return len(self.parts) == self.part_count or (MUTANT(704) and len(self.parts) > 0)\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2",),
        layers=(f"{PAPER}test_52_a_promise_counts_when_all_its_parts_are_here",),
    ),
    Mutant(
        705,
        "parts of two different answers make one Promise",
        (
            core(
                "phase1",
                "        if (promise is None or promise.commit_index != head.commit_index\n",
                "        if (promise is None or (promise.commit_index != head.commit_index and not MUTANT(705))\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2",),
        layers=(f"{PAPER}test_52_parts_of_two_different_answers_are_not_one_promise",),
    ),
    Mutant(
        706,
        "a fetched value need not be the one that was reported",
        (
            core(
                "phase1",
                "                entry.slot_begin, entry.slot_end, entry.value_crc):\n"
                '            raise FrameError(f"node {peer.node_id} sent another',
                "                entry.slot_begin, entry.slot_end, entry.value_crc) and not MUTANT(706):\n"
                '            raise FrameError(f"node {peer.node_id} sent another',
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.2",),
        layers=(f"{PAPER}test_52_a_wrong_value_in_answer_to_a_fetch_is_refused",),
    ),
    Mutant(
        707,
        "two values for one ballot and slot are no error at the candidate",
        (
            core(
                "phase1",
                "                entry.slot_end, entry.value_crc, entry.timestamp_ns):\n            raise "
                "InvariantError(\n",
                "                entry.slot_end, entry.value_crc, entry.timestamp_ns) and not MUTANT(707):\n"
                "            raise InvariantError(\n",
            ),
        ),
        origin="DESIGN 5.2",
        rules=("5.1", "5.2"),
        layers=(f"{PAPER}test_52_two_values_for_one_ballot_and_slot_stop_the_candidate",),
    ),
    Mutant(
        708,
        "a leader that promised a higher ballot goes on",
        (
            core(
                "replica",
                "            state.promised_ballot > self.proposer.ballot\n",
                "            (state.promised_ballot > self.proposer.ballot and not MUTANT(708))\n",
            ),
            core(
                "proposer",
                "        if state.promised_ballot != self.ballot:\n",
                "        if state.promised_ballot != self.ballot and not MUTANT(708):\n",
            ),
        ),
        origin="DESIGN 5.1",
        rules=("5.1", "5.2"),
        options=DUELS,
    ),
)
