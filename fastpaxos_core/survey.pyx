"""The survey (rule 5.3): a slot is known to be committed, and nobody can read it back as a committed one.

The replica that knew may have gone, or its record may have rotted, while others hold the value accepted and never heard
that it was chosen. Of acceptors that meet every Phase 2 quorum, asked after the slot was chosen, one at least accepted
the chosen value, in the ballot that chose it or in a later one, and from that ballot on nobody accepts anything else
there: the value of the highest ballot among them is the chosen one. No promise is needed, for nothing is proposed. An
answer belongs to one question of one start: what was true of another slot, or before the choice, says nothing.
"""

from cpython.bytes cimport PyBytes_AS_STRING

from fastpaxos_core.errors import FrameError, InvariantError

from fastpaxos_core.block cimport BlockHeader
from fastpaxos_core.messages cimport LEARN_ACCEPTED, FetchHead, LearnHead, check_entries, head_of
from fastpaxos_core.state cimport Peer, ReplicaState, block_part, check_batch
from fastpaxos_core.types cimport BATCH_COMMITTED, BatchDescriptor, slot_t, uint8_t, uint32_t, uint64_t
from fastpaxos_core.window cimport NO_BATCH, Batch
from fastpaxos_core.wire cimport FRAME_FETCH, FRAME_LEARN, Frame


cdef class Survey:
    """One slot at a time, after every connected peer was asked in vain for its committed batch."""

    def __init__(self, ReplicaState state, acceptor, learner, timeout_ns: int):
        self.state = state
        self.acceptor = acceptor
        self.learner = learner
        self.timeout_ns = timeout_ns

    cdef int progress(self) except -1:
        """Begin when a whole round of Fetches has failed: for a slot to be repaired, or the next one, in turns."""
        cdef Peer peer
        cdef uint32_t connected = 0
        cdef bint repair, catch_up
        if self.slot or (self.learner.failures == 0 and self.learner.repair_failures == 0):
            return 0
        for peer in self.state.peer_list:
            connected += peer.connected
        if connected == 0:
            return 0
        repair = self.learner.repair_slot != 0 and self.learner.repair_failures >= connected
        catch_up = self.learner.commit_hint > self.state.commit_index and self.learner.failures >= connected
        if repair and (not catch_up or not self.was_repair):
            self.was_repair = True
            self.learner.repair_failures = 0
            return self._begin(self.learner.repair_slot)
        if catch_up:
            self.was_repair = False
            self.learner.failures = 0
            return self._begin(self.state.commit_index + 1)
        return 0

    cdef int _begin(self, slot_t slot) except -1:
        cdef ReplicaState state = self.state
        cdef FetchHead head
        cdef uint32_t reference
        cdef Batch* batch
        cdef BatchDescriptor own
        cdef Peer peer
        self.slot = slot
        self.request_id = self.learner.request_id()
        self.sent_ns = state.now_ns
        self.votes = 0
        self.owner = None
        # Where the own record of a committed slot is unreadable, the own acceptor has nothing to say.
        if slot == state.commit_index + 1 and not self._is_blind(slot):
            self.votes = state.own_bit
            reference = state.window.find(slot)
            if reference != NO_BATCH:
                batch = state.window.at(reference)
                own = batch.descriptor
                own.flags = 0
                self._take(&own, <object>batch.owner, batch.block_offset)
        head.request_id = self.request_id
        head.slot_begin = slot
        head.slot_end = slot + 1
        head.bytes_max = 0
        head.value_crc = 0
        for peer in state.peer_list:
            state.send(peer, FRAME_FETCH, 0, &head, sizeof(FetchHead))
        return self._conclude()

    cdef bint _is_blind(self, slot_t slot) except -1:
        """This acceptor does not know what it accepted there (rule 5.2: it never counts as an answer)."""
        cdef slot_t begin, end
        if not self.state.voting:
            return True
        for begin, end in self.acceptor.unknown:
            if begin <= slot < end:
                return True
        return False

    cdef bint handle_fetch(self, Peer peer, Frame frame) except -1:
        """Answer a survey; False when this Fetch is none."""
        cdef const FetchHead* head = <const FetchHead*>head_of(frame, sizeof(FetchHead))
        check_entries(frame, sizeof(FetchHead), 0, 0)
        if frame.ballot or head.slot_begin == 0 or head.slot_end != head.slot_begin + 1:
            return False
        if peer.connected:
            self._answer(peer, head)
        return True

    cdef int _answer(self, Peer peer, const FetchHead* asked) except -1:
        """Say what is accepted or committed here. An acceptor that cannot tell says nothing: silence is no answer."""
        cdef ReplicaState state = self.state
        cdef slot_t slot = asked.slot_begin
        cdef LearnHead answer
        cdef uint32_t reference
        cdef Batch* batch
        cdef BatchDescriptor copy
        if slot < state.window.memory_begin or (slot > state.commit_index and self._is_blind(slot)):
            return 0
        answer.request_id = asked.request_id
        answer.commit_index = state.commit_index
        answer.entry_count = 0
        answer.kind = LEARN_ACCEPTED
        reference = state.window.find(slot)
        if reference == NO_BATCH:
            return state.send(peer, FRAME_LEARN, state.promised_ballot, &answer, sizeof(LearnHead))
        batch = state.window.at(reference)
        copy = batch.descriptor
        copy.flags = BATCH_COMMITTED if slot <= state.commit_index else 0
        answer.entry_count = 1
        part = block_part(<object>batch.owner, batch.block_offset, batch.descriptor.block_bytes)
        return state.send_batches(
            [peer], FRAME_LEARN, state.promised_ballot, &answer, sizeof(LearnHead), &copy, 1, [part]
        )

    cdef bint handle_learn(self, Peer peer, Frame frame) except -1:
        """Take one acceptor's answer; False when this Learn answers something else."""
        cdef const uint8_t* bytes_of_head = head_of(frame, sizeof(LearnHead))
        cdef const LearnHead* head = <const LearnHead*>bytes_of_head
        cdef const BatchDescriptor* entries = <const BatchDescriptor*>(bytes_of_head + sizeof(LearnHead))
        cdef bytes body = frame.body
        cdef BlockHeader header
        if head.kind > LEARN_ACCEPTED:
            raise FrameError(f"node {peer.node_id} sends a Learn of the unknown kind {head.kind}")
        if head.kind != LEARN_ACCEPTED:
            return False
        check_entries(frame, sizeof(LearnHead), head.entry_count, sizeof(BatchDescriptor))
        self.learner.hint(peer, head.commit_index)
        if self.slot == 0 or head.request_id != self.request_id:
            return True
        if head.entry_count > 1 or <uint64_t>len(body) != (entries[0].block_bytes if head.entry_count else 0):
            raise FrameError(
                f"node {peer.node_id} names {head.entry_count} batches for slot {self.slot}, in {len(body)} bytes"
            )
        if head.entry_count == 1:
            check_batch(&entries[0], <const uint8_t*>PyBytes_AS_STRING(body), len(body), &header)
            if entries[0].flags & ~<uint32_t>BATCH_COMMITTED or not (
                    entries[0].slot_begin <= self.slot < entries[0].slot_end):
                raise FrameError(
                    f"node {peer.node_id} was asked for slot {self.slot} and answers with "
                    f"[{entries[0].slot_begin}, {entries[0].slot_end}), flags {entries[0].flags:#x}"
                )
            self._take(&entries[0], body, 0)
        self.votes |= peer.bit
        self._conclude()
        return True

    cdef int _take(self, const BatchDescriptor* entry, object owner, size_t offset) except -1:
        """Keep the highest ballot; what somebody knows to be committed is above all ballots."""
        cdef bint is_known = self.owner is not None and self.best.flags == BATCH_COMMITTED
        if is_known or (self.owner is not None and entry.flags != BATCH_COMMITTED
                        and entry.ballot < self.best.ballot):
            return 0
        if (self.owner is not None and entry.ballot == self.best.ballot
                and (entry.slot_begin, entry.slot_end, entry.value_crc)
                != (self.best.slot_begin, self.best.slot_end, self.best.value_crc)):
            raise InvariantError(
                f"ballot {entry.ballot} has two values at slot {self.slot}: CRC {self.best.value_crc:#x} and "
                f"{entry.value_crc:#x}"
            )
        self.best = entry[0]
        self.owner = owner
        self.offset = offset
        return 0

    cdef int _conclude(self) except -1:
        """With answers that meet every Phase 2 quorum, or one that knows: the slot is learned."""
        cdef slot_t slot = self.slot
        if self.owner is None:
            return 0
        if self.best.flags != BATCH_COMMITTED and not self.state.quorum.meets_phase2_c(self.votes):
            return 0
        self.slot = 0
        owner, self.owner = self.owner, None
        if self.best.slot_begin != slot:
            return 0
        self.best.flags = BATCH_COMMITTED
        self.learned += self.learner.learn_surveyed(&self.best, owner, self.offset)
        return 0

    cdef int tick(self) except -1:
        if self.slot and self.state.now_ns - self.sent_ns > self.timeout_ns:
            self.slot = 0
            self.owner = None
        return 0
