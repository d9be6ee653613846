"""Generic faults, as a mutation tool makes them: a comparison turned, one too many, a send or a check left out."""

from __future__ import annotations

from .model import Edit, Mutant, core
from .worlds import DUELS, READS

__all__ = ["MUTANTS"]


def operator(
    number: int, title: str, module: str, original: str, mutated: str, *more: Edit, **settings: object
) -> Mutant:
    """One operator mutant of a core module; `mutated` may be several lines."""
    edits = (core(module, original, mutated), *more)
    return Mutant(number, f"{module}: {title}", edits, origin="operator", **settings)  # type: ignore[arg-type]


MUTANTS = (
    operator(
        1001,
        "an Accept in exactly the promised ballot is refused",
        "acceptor",
        "        if ballot < state.promised_ballot and not MUTANT(10):\n",
        "        if (ballot < state.promised_ballot or (MUTANT(1001) and ballot == state.promised_ballot)\n"
        "                ) and not MUTANT(10):\n",
    ),
    operator(
        1002,
        "a refused proposer is not told",
        "acceptor",
        "        head.commit_index = self.state.commit_index\n        return self.state.send(",
        "        head.commit_index = self.state.commit_index\n        if MUTANT(1002):\n            return 0\n"
        "        return self.state.send(",
        layers=("tests/paper/test_acceptor.py::test_51_a_prepare_below_the_promise_is_refused_with_the_higher_ballot",),
    ),
    operator(
        1003,
        "Accepted is never sent",
        "acceptor",
        "        if count or self._answer_commit:\n",
        "        if (count or self._answer_commit) and not MUTANT(1003):\n",
    ),
    operator(
        1004,
        "a Promise leaves out the first batch above commit_index",
        "acceptor",
        "        cdef slot_t slot = max(state.commit_index + 1, slot_begin)\n",
        "        cdef slot_t slot = max(state.commit_index + 1 + MUTANT(1004), slot_begin)\n",
        options=DUELS,
    ),
    operator(
        1005,
        "a Promise leaves out the last batch",
        "acceptor",
        "            slot = state.window.at(reference).descriptor.slot_end\n        for begin, end",
        "            slot = state.window.at(reference).descriptor.slot_end\n"
        "        if MUTANT(1005) and entries:\n            entries.pop()\n        for begin, end",
        options=DUELS,
    ),
    operator(
        1006,
        "an answered acceptance stays in the queue",
        "acceptor",
        "        self._first += ready\n        self._count -= ready\n        if self._count == 0:\n",
        "        if MUTANT(1006) and ready:\n            ready -= 1\n"
        "        self._first += ready\n        self._count -= ready\n        if self._count == 0:\n",
    ),
    operator(
        1007,
        "no heartbeat is answered",
        "acceptor",
        "        return state.send(peer, FRAME_HEARTBEAT_REPLY, promised, &reply, sizeof(HeartbeatReplyHead))\n",
        "        if MUTANT(1007):\n            return 0\n"
        "        return state.send(peer, FRAME_HEARTBEAT_REPLY, promised, &reply, sizeof(HeartbeatReplyHead))\n",
        layers=("sim",),
    ),
    operator(
        1008,
        "the Prepare that was lost is not repeated",
        "phase1",
        "                self.send_prepare(False)\n",
        "                if not MUTANT(1008):\n                    self.send_prepare(False)\n",
        layers=("tests/paper/test_phase1.py::test_52_prepare_is_repeated_to_whoever_has_not_promised",),
    ),
    operator(
        1009,
        "a ballot has the round of the highest one seen",
        "phase1",
        "make_ballot(highest + 1, ",
        "make_ballot(highest + (0 if MUTANT(1009) and highest else 1), ",
    ),
    operator(
        1010,
        "values are not fetched",
        "phase1",
        "                    state.send(peer, FRAME_FETCH, entry.ballot, &head, sizeof(FetchHead))\n",
        "                    if not MUTANT(1010):\n"
        "                        state.send(peer, FRAME_FETCH, entry.ballot, &head, sizeof(FetchHead))\n",
        options=DUELS,
    ),
    operator(
        1011,
        "a re-proposed value gets a new timestamp",
        "phase1",
        "entry.slot_end - entry.slot_begin, header.crc, entry.timestamp_ns)\n",
        "entry.slot_end - entry.slot_begin, header.crc,\n"
        "                                              entry.timestamp_ns + MUTANT(1011))\n",
    ),
    operator(
        1012,
        "overlaps are looked for on one side only",
        "phase1",
        "            place < len(taken) and taken[place].slot_begin < entry.slot_end\n",
        "            not MUTANT(1012) and place < len(taken) and taken[place].slot_begin < entry.slot_end\n",
        options=DUELS,
    ),
    operator(
        1013,
        "the leader is ready one slot too early",
        "proposer",
        "                and (self.state.applied_index + 1 >= self.recovered_end or",
        "                and (self.state.applied_index + 1 + MUTANT(1013) >= self.recovered_end or",
        layers=("tests/paper/test_reads.py::test_57_a_leader_answers_no_read_before_all_that_it_took_over_is_applied",),
    ),
    operator(
        1014,
        "what was not answered is not sent again",
        "proposer",
        "            if state.now_ns - peer.progress_ns < self.resend_timeout_ns:\n",
        "            if MUTANT(1014) or state.now_ns - peer.progress_ns < self.resend_timeout_ns:\n",
    ),
    operator(
        1015,
        "a heartbeat tells a commit_index that is one too high",
        "proposer",
        "        head.commit_index = state.commit_index\n        head.everywhere_durable = state.everywhere_durable\n"
        "        head.read_round",
        "        head.commit_index = state.commit_index + MUTANT(1015)\n"
        "        head.everywhere_durable = state.everywhere_durable\n        head.read_round",
    ),
    operator(
        1016,
        "a chosen batch behind a gap is committed at once",
        "proposer",
        "            if batch.descriptor.slot_begin == state.commit_index + 1:\n                "
        "self.learner.commit_batch",
        "            if MUTANT(1016) or batch.descriptor.slot_begin == state.commit_index + 1:\n"
        "                self.learner.commit_batch",
        options=DUELS,
    ),
    operator(
        1017,
        "what was chosen behind a gap is not committed when the gap closes",
        "proposer",
        "            if reference == NO_BATCH or state.window.at(reference).status != SLOT_CHOSEN:\n",
        "            if MUTANT(1017) or reference == NO_BATCH or state.window.at(reference).status != SLOT_CHOSEN:\n",
    ),
    operator(
        1018,
        "the leader sends its Accepts to nobody",
        "proposer",
        "            self._send_accepts_from(peer.next_slot, group)\n",
        "            if not MUTANT(1018):\n                self._send_accepts_from(peer.next_slot, group)\n",
    ),
    operator(
        1019,
        "a learner commits one slot less than it was told",
        "learner",
        "        while state.commit_index < commit_index:\n",
        "        while state.commit_index + MUTANT(1019) < commit_index:\n",
        layers=("tests/paper/test_phase2.py::test_53_a_learner_commits_only_what_it_accepted_in_the_leaders_ballot",),
    ),
    operator(
        1020,
        "a learned batch is not journalled",
        "learner",
        "        reference = state.store(&copy, owner, offset, SLOT_COMMITTED)\n",
        "        if MUTANT(1020):\n"
        "            reference = state.window.place(&copy, owner, offset, 0, SLOT_COMMITTED)\n"
        "            state.commit_index = entry.slot_end - 1\n            return True\n"
        "        reference = state.store(&copy, owner, offset, SLOT_COMMITTED)\n",
        gate="batch is journalled",
    ),
    operator(
        1021,
        "a Fetch is served beyond commit_index",
        "learner",
        "        while state.window.memory_begin <= slot <= state.commit_index and len(parts) < FETCH_ENTRIES:\n",
        "        while (state.window.memory_begin <= slot <= state.commit_index + 16 * MUTANT(1021)\n"
        "               and len(parts) < FETCH_ENTRIES):\n",
    ),
    operator(
        1022,
        "two Fetches for one gap are out at once, and the answer to the first is taken for both",
        "learner",
        "        if head.request_id != self.fetch_id:\n",
        "        if head.request_id != self.fetch_id and not MUTANT(1022):\n",
        equivalent="an answer that nobody waits for still holds committed batches only: whatever continues the "
        "committed prefix may be learned, and the rest is left alone",
    ),
    operator(
        1023,
        "the slot behind a batch is found in it",
        "window",
        "        if batch.status == SLOT_EMPTY or slot < batch.descriptor.slot_begin or slot >= "
        "batch.descriptor.slot_end:\n",
        "        if batch.status == SLOT_EMPTY or slot < batch.descriptor.slot_begin or (\n"
        "                slot >= batch.descriptor.slot_end + MUTANT(1023)):\n",
    ),
    operator(
        1024,
        "batches up to the end of the ring are refused one slot too late",
        "window",
        "slot_end > self.memory_begin + self.slot_capacity:\n            return NO_BATCH\n",
        "slot_end > self.memory_begin + self.slot_capacity + MUTANT(1024):\n            return NO_BATCH\n",
        core(
            "state",
            "        while slot_end > window.memory_begin + window.slot_capacity or",
            "        while slot_end > window.memory_begin + window.slot_capacity + MUTANT(1024) or",
        ),
    ),
    operator(
        1025,
        "a vote is not noted",
        "window",
        "        if not batch.votes & bit:\n            batch.votes |= bit\n",
        "        if not batch.votes & bit:\n            if not MUTANT(1025) or batch.votes == 0:\n"
        "                batch.votes |= bit\n",
    ),
    operator(
        1026,
        "a committed batch may be dropped",
        "window",
        '        if batch.status == SLOT_COMMITTED:\n            raise InvariantError(\n                f"a '
        "committed batch",
        "        if batch.status == SLOT_COMMITTED and not MUTANT(1026):\n"
        '            raise InvariantError(\n                f"a committed batch',
        equivalent="a second line of defence: nothing asks for it, because accepting stops at commit_index and "
        "learning begins above it; with that gone as well (711 + 1026) it is seen",
    ),
    operator(
        1027,
        "a round of reads needs one echo less",
        "reads",
        "        if not state.quorum.phase2_c(votes) and not MUTANT(36):\n",
        "        if MUTANT(1027):\n            votes |= <uint32_t>1 << 31\n"
        "        if not state.quorum.phase2_c(votes) and not MUTANT(36):\n",
        options=READS,
    ),
    operator(
        1028,
        "the minimum index of a read is ignored",
        "reads",
        "            self.confirmed.append((waiter, max(<slot_t>minimum_index, self.round_index)))\n",
        "            self.confirmed.append((\n"
        "                waiter, self.round_index if MUTANT(1028) else max(<slot_t>minimum_index, "
        "self.round_index)))\n",
        layers=("tests/paper/test_reads.py::test_57_a_minimum_index_is_waited_for",),
    ),
    operator(
        1029,
        "reads that arrived are lost when a round begins",
        "reads",
        "        self.in_round = self.arrived\n",
        "        self.in_round = self.arrived[1:] if MUTANT(1029) else self.arrived\n",
        layers=("tests/paper/test_reads.py::test_57_many_reads_share_one_round",),
    ),
    operator(
        1030,
        "the last sequence of a session is one too high",
        "sessions",
        "        session.last_sequence = first_sequence + (count - 1)\n",
        "        session.last_sequence = first_sequence + (count - 1) + MUTANT(1030)\n",
    ),
    operator(
        1031,
        "a block that overlaps what was applied in part is a duplicate",
        "sessions",
        "        if last > session.last_sequence:\n            return VERDICT_INVALID\n",
        "        if last > session.last_sequence and not MUTANT(1031):\n            return VERDICT_INVALID\n",
        layers=("tests/unit/test_sessions.py::test_a_block_applied_in_part_is_invalid_even_where_no_result_is_kept",),
    ),
    operator(
        1032,
        "the result of the next block is given to a duplicate",
        "sessions",
        "        return <bytes>stored.results if stored.first_sequence == first_sequence else None\n",
        "        if MUTANT(1032) and position + 1 < session.ring_count:\n"
        "            stored = result_at(session, position + 1)\n            return <bytes>stored.results\n"
        "        return <bytes>stored.results if stored.first_sequence == first_sequence else None\n",
    ),
    operator(
        1033,
        "applied_index moves one slot too far",
        "applier",
        "        self.state.applied_index = batch.slot_end - 1\n",
        "        self.state.applied_index = batch.slot_end - 1 + MUTANT(1033)\n",
    ),
    operator(
        1034,
        "the results of a batch are not answered",
        "applier",
        "        elif self.waiters:\n",
        "        elif self.waiters and not MUTANT(1034):\n",
    ),
    operator(
        1035,
        "applied_index moves one slot too far over a no-op",
        "applier",
        "        elif header.kind == BLOCK_CONTROL:\n            self._apply_control(descriptor, view)\n"
        "        self.state.applied_index = descriptor.slot_end - 1\n",
        "        elif header.kind == BLOCK_CONTROL:\n            self._apply_control(descriptor, view)\n"
        "        if not MUTANT(1035) or header.kind == BLOCK_CONTROL:\n"
        "            self.state.applied_index = descriptor.slot_end - 1\n"
        "        else:\n            self.state.applied_index = descriptor.slot_end\n",
    ),
    operator(
        1036,
        "a write is padded down, not up",
        "journal_format",
        "    return (total_bytes + WRITE_ALIGNMENT - 1) // WRITE_ALIGNMENT * WRITE_ALIGNMENT\n",
        "    return (total_bytes + (0 if MUTANT(1036) else WRITE_ALIGNMENT - 1)) // WRITE_ALIGNMENT * "
        "WRITE_ALIGNMENT\n",
    ),
    operator(
        1037,
        "only the first batch of a write is written",
        "journal",
        "        if self.pending_count == self.pending_capacity:\n            self.reserve_pending()\n",
        "        if self.pending_count == self.pending_capacity:\n            self.reserve_pending()\n"
        "        if MUTANT(1037) and self.pending_count > 0:\n            return 0\n",
        gate="batch is journalled",
    ),
    operator(
        1038,
        "the durable point runs one write ahead",
        "journal",
        "            self.durable_ticket = max(self.durable_ticket, write.ticket)\n",
        "            self.durable_ticket = max(self.durable_ticket, write.ticket + MUTANT(1038))\n",
        gate="durable ticket",
    ),
    operator(
        1039,
        "a commit index is recovered one too high",
        "journal_replay",
        "        self.raise_commit_index(commit_index)\n        return 0\n",
        "        self.raise_commit_index(commit_index + (1 if MUTANT(1039) and commit_index else 0))\n        "
        "return 0\n",
    ),
    operator(
        1040,
        "the commit index in the journal is ignored",
        "journal_replay",
        "        self.raise_commit_index(commit_index + (1",
        "        if MUTANT(1040):\n            return 0\n        self.raise_commit_index(commit_index + (1",
    ),
    operator(
        1041,
        "the last write before a crash is dropped though it is whole",
        "journal_recovery",
        "        if not self.tail_is_whole():\n",
        "        if MUTANT(1041) or not self.tail_is_whole():\n",
    ),
    operator(
        1042,
        "the rewritten tail carries its old number",
        "journal_recovery",
        "    header.write_number = number\n    header.durable_write_number = number - 1\n",
        "    if not MUTANT(1042):\n        header.write_number = number\n    header.durable_write_number = "
        "number - 1\n",
    ),
    operator(
        1043,
        "a quorum needs one vote more",
        "quorum",
        "        return fp_popcount(votes) >= self.phase1_size\n",
        "        return fp_popcount(votes) >= self.phase1_size + MUTANT(1043)\n",
    ),
    operator(
        1044,
        "a Phase 1 quorum needs one promise less",
        "quorum",
        "        return fp_popcount(votes) >= self.phase1_size + MUTANT(1043)\n",
        "        return fp_popcount(votes) + MUTANT(1044) >= self.phase1_size + MUTANT(1043)\n",
    ),
    operator(
        1045,
        "a Phase 2 quorum needs one vote less",
        "quorum",
        "        return fp_popcount(votes) >= (self",
        "        return fp_popcount(votes) + MUTANT(1045) >= (self",
    ),
    operator(
        1046,
        "a frame arrives with the ballot of the next round",
        "wire",
        "    frame.ballot = header.ballot\n",
        "    frame.ballot = header.ballot + (65536 if MUTANT(1046) and header.ballot else 0)\n",
    ),
    operator(
        1047,
        "the slot of a reply is one too high",
        "wire",
        "        head.slot_begin = slot_begin\n        head.results_crc",
        "        head.slot_begin = slot_begin + MUTANT(1047)\n        head.results_crc",
        layers=("tests/unit/test_wire.py::test_reply",),
    ),
    operator(
        1048,
        "what waits for the disk is released in the wrong order",
        "state",
        "            _, peer, frame = self.held.popleft()\n",
        "            if MUTANT(1048) and self.held[len(self.held) - 1][0] <= self.journal.durable_ticket:\n"
        "                _, peer, frame = self.held.pop()\n            else:\n"
        "                _, peer, frame = self.held.popleft()\n",
        equivalent="no rule rests on the order of frames: links reorder them in most simulations, and a message "
        "that is late or early is ignored, or answered by what it says",
    ),
    operator(
        1049,
        "what waits for the disk is dropped when it may leave",
        "state",
        "            if peer.connected:\n                peer.buffers.append(frame)\n        return 0\n\n    "
        "cdef int raise",
        "            if peer.connected and not MUTANT(1049):\n                peer.buffers.append(frame)\n"
        "        return 0\n\n    cdef int raise",
        layers=("tests/paper/test_phase2.py::test_4_a_promise_is_held_until_it_is_durable",),
    ),
    operator(
        1050,
        "a leader may have one block more in flight than its window",
        "replica",
        "        return (in_flight + slot_count <= max(self.admission_slots, slot_count)\n",
        "        return (MUTANT(1050) or in_flight + slot_count <= max(self.admission_slots, slot_count)\n",
        layers=("tests/unit/test_replica.py", "tests/paper"),
    ),
)
