"""Faults of the learner: what is taken for committed, catching up, and what is durable here (rule 5.3)."""

from __future__ import annotations

from .model import Mutant, core
from .worlds import DUELS

__all__ = ["MUTANTS"]

PAPER = "tests/paper/test_phase2.py::"

MUTANTS = (
    Mutant(
        13,
        "a follower commits what it accepted in another ballot than the leader's",
        (
            core(
                "learner",
                "            if batch.descriptor.ballot != ballot or",
                "            if (batch.descriptor.ballot != ballot and not MUTANT(13)) or",
            ),
        ),
        rows=(13,),
        origin="rabbitmq/ra #508, CCF #6016",
        rules=("5.3",),
        options=DUELS,
    ),
    Mutant(
        113,
        "half of a batch is committed",
        (
            core(
                "learner",
                " or batch.descriptor.slot_end - 1 > commit_index:\n                return 0\n            self.commit",
                " or (\n                    batch.descriptor.slot_end - 1 > commit_index and not MUTANT(113)):\n"
                "                return 0\n            self.commit",
            ),
        ),
        rows=(13,),
        origin="DESIGN 5.3",
        rules=("5.3",),
        layers=(f"{PAPER}test_53_half_a_batch_is_never_committed",),
    ),
    Mutant(
        19,
        "told which batch is chosen at a slot, a learner commits its own batch there",
        (
            core(
                "learner",
                "                    and batch.descriptor.value_crc == entry.value_crc):\n"
                "                # The same value",
                "                    and (batch.descriptor.value_crc == entry.value_crc or MUTANT(19))):\n"
                "                # The same value",
            ),
        ),
        rows=(19,),
        origin="ra #508 kin",
        rules=("5.3",),
        options=DUELS,
    ),
    Mutant(
        119,
        "an uncommitted batch is taken as a lesson",
        (
            core(
                "learner",
                "            if entries[index].flags != BATCH_COMMITTED:\n",
                "            if entries[index].flags != BATCH_COMMITTED and not MUTANT(119):\n",
            ),
        ),
        rows=(19,),
        origin="DESIGN 5.3",
        rules=("5.3",),
        layers=(f"{PAPER}test_53_a_learner_takes_nothing_uncommitted_as_a_lesson",),
    ),
    Mutant(
        219,
        "a hint about somebody's commit_index commits what is accepted here",
        (
            core(
                "learner",
                "                self.hint_node = peer.node_id\n        return 0\n\n    cdef int advance",
                "                self.hint_node = peer.node_id\n"
                "        if MUTANT(219) and commit_index > self.state.commit_index:\n"
                "            if self.state.window.find(self.state.commit_index + 1) != NO_BATCH:\n"
                "                self.advance(self.state.window.at(\n"
                "                    self.state.window.find(self.state.commit_index + 1)).descriptor.ballot, "
                "commit_index)\n"
                "        return 0\n\n    cdef int advance",
            ),
        ),
        rows=(13, 19),
        origin="class",
        rules=("5.3",),
        options=DUELS,
    ),
    Mutant(
        718,
        "durable_index counts what is not durable",
        (
            core(
                "state",
                "            if batch.ticket > self.journal.durable_ticket:\n                break\n",
                "            if batch.ticket > self.journal.durable_ticket and not MUTANT(718):\n               "
                " break\n",
            ),
        ),
        origin="DESIGN 5.3, 5.14",
        rules=("5.3",),
        gate="durable_index",
    ),
    Mutant(
        719,
        "a batch leaves memory before it is durable",
        (
            core(
                "window",
                "        if batch.status != SLOT_COMMITTED or batch.ticket > durable_ticket:\n",
                "        if batch.status != SLOT_COMMITTED or (batch.ticket > durable_ticket and not MUTANT(719)):\n",
            ),
        ),
        origin="DESIGN 3",
        rules=("5.3",),
        gate="eviction",
        options={"log_memory_bytes": 0},
    ),
    Mutant(
        63,
        "a replica that missed something never fetches it",
        (
            core(
                "learner",
                "        if self.fetch_id or self.waits:\n",
                "        if self.fetch_id or self.waits or MUTANT(63):\n",
            ),
        ),
        rows=(63,),
        origin="TigerBeetle 2025-06, camunda #4451",
        rules=("5.3",),
    ),
    Mutant(
        163,
        "a leader does not slow down for members that lag beyond their ring",
        (
            core(
                "replica",
                "        if inside < min(state.quorum.phase2_size + 1, connected):\n",
                "        if inside < min(state.quorum.phase2_size + 1, connected) and not MUTANT(163):\n",
            ),
        ),
        rows=(63,),
        origin="TigerBeetle 2025-06",
        layers=("tests/unit/test_replica.py::test_a_leader_slows_down_for_members_that_lag_beyond_half_of_their_ring",),
    ),
    Mutant(
        263,
        "what has left memory is not served to a member that lags",
        (
            core(
                "learner",
                "        if slot < state.window.memory_begin and slot <= state.commit_index:\n",
                "        if slot < state.window.memory_begin and slot <= state.commit_index and not MUTANT(263):\n",
            ),
        ),
        rows=(63,),
        origin="class",
        rules=("5.3",),
        options={"log_memory_bytes": 0},
    ),
    Mutant(
        363,
        "a Fetch that is not answered is never given to another member",
        (
            core(
                "learner",
                "        if self.fetch_id and self.state.now_ns - self.fetch_sent_ns > self.fetch_timeout_ns:\n",
                "        if (self.fetch_id and self.state.now_ns - self.fetch_sent_ns > self.fetch_timeout_ns\n"
                "                and not MUTANT(363)):\n",
            ),
        ),
        rows=(63,),
        origin="class",
        rules=("5.3",),
    ),
    Mutant(
        64,
        "a corrupt record that nobody can refill keeps the replica from catching up",
        (
            core(
                "learner",
                "        cdef slot_t slot = 0 if self.repair_failed else self.repair_slot\n",
                "        cdef slot_t slot = 0 if self.repair_failed and not MUTANT(64) else self.repair_slot\n",
            ),
        ),
        rows=(64,),
        origin="TigerBeetle #109",
        layers=("tests/unit/test_learner.py",),
    ),
)
