"""Phase 2 at the leader (rules 5.3, 5.4): a batch is chosen when a Phase 2 quorum durably accepted it in one ballot.

Accepts are streamed: each peer has a cursor, everything proposed since the last turn goes out as one frame, and peers
with equal cursors share that frame's bytes. Votes name exact ranges, never "up to".
Paper: Lamport, "The Part-Time Parliament" (1998), section 3; pipelining as in van Renesse and Altinbuken, "Paxos Made
Moderately Complex" (2015).
"""

from libc.stdlib cimport free, malloc

from fastpaxos_core.errors import FrameError, InvariantError

from fastpaxos_core.block cimport value_crc
from fastpaxos_core.messages cimport (
    AcceptedHead,
    AcceptedRange,
    AcceptHead,
    CommitHead,
    HeartbeatHead,
    HeartbeatReplyHead,
    check_entries,
    head_of,
)
from fastpaxos_core.state cimport Peer, ReplicaState, block_part
from fastpaxos_core.types cimport (
    BatchDescriptor,
    ballot_t,
    int64_t,
    slot_t,
    uint8_t,
    uint32_t,
    uint64_t,
)
from fastpaxos_core.window cimport (
    NO_BATCH,
    SLOT_ACCEPTED,
    SLOT_CHOSEN,
    Batch,
)
from fastpaxos_core.wire cimport (
    FRAME_ACCEPT,
    FRAME_COMMIT,
    FRAME_HEARTBEAT,
    Frame,
)

cdef enum:
    ACCEPT_ENTRIES_MAX = 4096
    ACCEPT_BYTES_MAX = 1048576
    PEER_BYTES_IN_FLIGHT_MAX = 16777216


cdef class Proposer:
    """Proposes batches in one ballot; `lead` and `follow` begin and end a leadership."""

    def __cinit__(self):
        self._scratch = <BatchDescriptor*>malloc(ACCEPT_ENTRIES_MAX * sizeof(BatchDescriptor))
        if self._scratch == NULL:
            raise MemoryError("no memory for the descriptors of one frame")

    def __init__(self, ReplicaState state, learner, reads, heartbeat_interval_ns: int, resend_timeout_ns: int):
        self.state = state
        self.learner = learner
        self.reads = reads
        self.heartbeat_interval_ns = heartbeat_interval_ns
        self.resend_timeout_ns = resend_timeout_ns

    def __dealloc__(self):
        free(self._scratch)

    cdef int lead(self, ballot_t ballot) except -1:
        """Phase 1 is over: propose from commit_index + 1 on, in this ballot only."""
        cdef Peer peer
        self.role = ROLE_LEADER
        self.ballot = ballot
        self.next_slot = self.state.commit_index + 1
        self.own_next = self.next_slot
        self.recovered_end = 0
        self.state.bytes_in_flight = 0
        self.quorum_heard_ns = self.state.now_ns
        self.heartbeat_ns = 0
        for peer in self.state.peer_list:
            peer.next_slot = peer.owed_slot = self.next_slot
            peer.commit_sent = 0
            peer.read_round = 0
            peer.bytes_in_flight = 0
            peer.progress_ns = self.state.now_ns
        self.state.hear_leader(ballot)
        return 0

    cdef int follow(self) except -1:
        """End a candidacy or leadership. What was proposed stays accepted here and may still be chosen."""
        self.role = ROLE_FOLLOWER
        self.ballot = 0
        self.state.bytes_in_flight = 0
        return 0

    cdef bint is_ready(self) noexcept:
        """Rule 5.7: the leader has committed, and applied, in its own ballot."""
        return (self.role == ROLE_LEADER and self.recovered_end != 0
                and self.state.applied_index + 1 >= self.recovered_end)

    cdef uint32_t propose(self, object owner, size_t offset, uint32_t block_bytes, uint32_t slot_count,
                          uint32_t block_crc, int64_t timestamp_ns) except? 0xFFFFFFFF:
        """Accept a value here at the next slots and let it go out; NO_BATCH when the window has no room."""
        cdef ReplicaState state = self.state
        cdef BatchDescriptor descriptor
        cdef uint32_t reference
        if state.promised_ballot != self.ballot:
            raise InvariantError(f"proposing in ballot {self.ballot} after promising {state.promised_ballot}")
        descriptor.slot_begin = self.next_slot
        descriptor.slot_end = self.next_slot + slot_count
        descriptor.ballot = self.ballot
        descriptor.timestamp_ns = timestamp_ns
        descriptor.block_bytes = block_bytes
        descriptor.value_crc = value_crc(descriptor.slot_begin, descriptor.slot_end, timestamp_ns, block_crc)
        descriptor.flags = 0
        descriptor.reserved = 0
        reference = state.store(&descriptor, owner, offset, SLOT_ACCEPTED)
        if reference != NO_BATCH:
            self.next_slot = descriptor.slot_end
            state.bytes_in_flight += block_bytes
        return reference

    cdef int count_vote(self, uint32_t reference, uint32_t bit) except -1:
        cdef ReplicaState state = self.state
        cdef Batch* batch = state.window.at(reference)
        state.window.add_vote(reference, bit)
        if batch.status == SLOT_ACCEPTED and state.quorum.phase2_c(batch.votes):
            if batch.descriptor.slot_begin == state.commit_index + 1:
                self.learner.commit_batch(reference)
            else:
                state.window.set_status(reference, SLOT_CHOSEN)
        return 0

    cdef int count_own_votes(self) except -1:
        """The leader's own vote counts when its own disk is done (rule 5.3), in the order of its proposals."""
        cdef ReplicaState state = self.state
        cdef uint32_t reference
        cdef Batch* batch
        if self.role != ROLE_LEADER:
            return 0
        while self.own_next < self.next_slot:
            if self.own_next < state.window.memory_begin:
                self.own_next = state.window.memory_begin
                continue
            reference = state.window.find(self.own_next)
            if reference == NO_BATCH:
                raise InvariantError(f"own proposal for slot {self.own_next} is gone")
            batch = state.window.at(reference)
            if batch.ticket > state.journal.durable_ticket:
                break
            self.own_next = batch.descriptor.slot_end
            self.count_vote(reference, state.own_bit)
        return self.commit_chosen()

    cdef int commit_chosen(self) except -1:
        """Advance commit_index over what is chosen without a gap."""
        cdef ReplicaState state = self.state
        cdef uint32_t reference
        while True:
            reference = state.window.find(state.commit_index + 1)
            if reference == NO_BATCH or state.window.at(reference).status != SLOT_CHOSEN:
                return 0
            self.learner.commit_batch(reference)

    cdef int handle_accepted(self, Peer peer, Frame frame) except -1:
        """Phase 2b answers. Other ballots and other boots are ignored; every acceptor counts once per batch."""
        cdef const uint8_t* bytes_of_head = head_of(frame, sizeof(AcceptedHead))
        cdef const AcceptedHead* head = <const AcceptedHead*>bytes_of_head
        cdef const AcceptedRange* ranges = <const AcceptedRange*>(bytes_of_head + sizeof(AcceptedHead))
        cdef ReplicaState state = self.state
        cdef uint32_t index, reference
        cdef Batch* batch
        check_entries(frame, sizeof(AcceptedHead), head.entry_count, sizeof(AcceptedRange))
        self.learner.hint(peer, head.commit_index)
        peer.durable_index = max(peer.durable_index, head.durable_index)
        if self.role != ROLE_LEADER or frame.ballot != self.ballot or head.proposer_boot != state.boot:
            return 0
        for index in range(head.entry_count):
            if ranges[index].slot_begin >= self.next_slot or ranges[index].slot_end > self.next_slot:
                raise FrameError(
                    f"node {peer.node_id} accepted [{ranges[index].slot_begin}, {ranges[index].slot_end}), "
                    f"but nothing beyond slot {self.next_slot} was proposed"
                )
            reference = state.window.find(ranges[index].slot_begin)
            if reference == NO_BATCH:
                continue
            batch = state.window.at(reference)
            if batch.descriptor.ballot != self.ballot:
                continue
            if (batch.descriptor.slot_begin != ranges[index].slot_begin
                    or batch.descriptor.slot_end != ranges[index].slot_end
                    or batch.descriptor.value_crc != ranges[index].value_crc):
                raise InvariantError(
                    f"node {peer.node_id} accepted another value in ballot {self.ballot} at slot "
                    f"{ranges[index].slot_begin}"
                )
            if not batch.votes & peer.bit:
                peer.bytes_in_flight -= min(<uint64_t>batch.descriptor.block_bytes, peer.bytes_in_flight)
                self.count_vote(reference, peer.bit)
        return self.commit_chosen()

    cdef int handle_heartbeat_reply(self, Peer peer, Frame frame) except -1:
        """Liveness of a peer, its progress, and its echo of a read round."""
        cdef const HeartbeatReplyHead* head = <const HeartbeatReplyHead*>head_of(frame, sizeof(HeartbeatReplyHead))
        check_entries(frame, sizeof(HeartbeatReplyHead), 0, 0)
        self.learner.hint(peer, head.commit_index)
        peer.applied_index = max(peer.applied_index, head.applied_index)
        peer.durable_index = max(peer.durable_index, head.durable_index)
        if self.role != ROLE_LEADER or frame.ballot != self.ballot or head.proposer_boot != self.state.boot:
            return 0
        if peer.commit_index + 1 >= peer.next_slot:
            peer.bytes_in_flight = 0
        if head.read_round > peer.read_round:
            peer.read_round = head.read_round
            self.reads.confirm(self.ballot)
        return 0

    cdef int update_quorum_contact(self) except -1:
        """The latest time by which a Phase 2 quorum, this leader included, had been heard from."""
        cdef ReplicaState state = self.state
        cdef uint32_t votes = state.own_bit
        cdef Peer peer
        cdef uint64_t heard = state.now_ns
        for peer in sorted(state.peer_list, key=_last_heard, reverse=True):
            if state.quorum.phase2_c(votes):
                break
            votes |= peer.bit
            heard = min(heard, peer.last_heard_ns)
        if state.quorum.phase2_c(votes) and heard > self.quorum_heard_ns:
            self.quorum_heard_ns = heard
        return 0

    cdef int send_accepts(self) except -1:
        """Stream what each connected peer has not been sent; equal cursors share the frames."""
        cdef ReplicaState state = self.state
        cdef Peer peer
        cdef Peer other
        if self.role != ROLE_LEADER:
            return 0
        done = 0
        for peer in state.peer_list:
            if done & peer.bit or not peer.connected:
                continue
            # What is committed meanwhile is told by Commit, and fetched by whoever has not accepted it.
            if peer.next_slot <= state.commit_index:
                peer.next_slot = state.commit_index + 1
                # Nothing that was sent is waited for any more. A peer that keeps up gets its allowance back; one that
                # is far behind gets it when it has caught up.
                if peer.commit_index + state.window.slot_capacity // 2 >= state.commit_index:
                    peer.bytes_in_flight = 0
            if peer.next_slot >= self.next_slot or peer.bytes_in_flight > PEER_BYTES_IN_FLIGHT_MAX:
                continue
            group = [peer]
            for other in state.peer_list:
                if (other is not peer and other.connected and other.next_slot == peer.next_slot
                        and other.bytes_in_flight <= PEER_BYTES_IN_FLIGHT_MAX):
                    group.append(other)
                    done |= other.bit
            self._send_accepts_from(peer.next_slot, group)
        return 0

    cdef int _send_accepts_from(self, slot_t slot, list peers) except -1:
        cdef ReplicaState state = self.state
        cdef AcceptHead head
        cdef uint32_t reference
        cdef Batch* batch
        cdef Peer peer
        cdef size_t count
        cdef uint64_t size
        cdef uint64_t sent = 0
        while slot < self.next_slot and sent < PEER_BYTES_IN_FLIGHT_MAX:
            count = 0
            size = 0
            parts = []
            while slot < self.next_slot and count < ACCEPT_ENTRIES_MAX:
                reference = state.window.find(slot)
                if reference == NO_BATCH:
                    raise InvariantError(f"own proposal for slot {slot} is gone")
                batch = state.window.at(reference)
                if count and size + batch.descriptor.block_bytes > ACCEPT_BYTES_MAX:
                    break
                if batch.descriptor.ballot != self.ballot:
                    raise InvariantError(
                        f"slot {slot} holds ballot {batch.descriptor.ballot}, not {self.ballot}"
                    )
                self._scratch[count] = batch.descriptor
                parts.append(block_part(<object>batch.owner, batch.block_offset, batch.descriptor.block_bytes))
                size += batch.descriptor.block_bytes
                count += 1
                slot = batch.descriptor.slot_end
            head.commit_index = state.commit_index
            head.everywhere_durable = state.everywhere_durable
            head.entry_count = count
            head.reserved = 0
            state.send_batches(peers, FRAME_ACCEPT, self.ballot, &head, sizeof(AcceptHead), self._scratch, count, parts)
            sent += size
            for peer in peers:
                peer.next_slot = slot
                peer.bytes_in_flight += size
                peer.commit_sent = state.commit_index
        return 0

    cdef int send_commits(self) except -1:
        """Tell commit_index to the peers that no Accept has told it to."""
        cdef ReplicaState state = self.state
        cdef CommitHead head
        cdef Peer peer
        for peer in state.peer_list:
            if peer.connected and peer.commit_sent < state.commit_index:
                head.commit_index = state.commit_index
                head.everywhere_durable = state.everywhere_durable
                state.send(peer, FRAME_COMMIT, self.ballot, &head, sizeof(CommitHead))
                peer.commit_sent = state.commit_index
        return 0

    cdef int send_heartbeats(self) except -1:
        cdef ReplicaState state = self.state
        cdef HeartbeatHead head
        cdef Peer peer
        state.everywhere_durable = max(state.everywhere_durable, self.everywhere_durable())
        head.commit_index = state.commit_index
        head.everywhere_durable = state.everywhere_durable
        head.read_round = self.reads.round
        for peer in state.peer_list:
            state.send(peer, FRAME_HEARTBEAT, self.ballot, &head, sizeof(HeartbeatHead))
            peer.commit_sent = state.commit_index
        self.heartbeat_ns = state.now_ns
        return 0

    cdef slot_t everywhere_durable(self) except? 0xFFFFFFFFFFFFFFFF:
        """The lowest durable_index of all members."""
        cdef slot_t lowest = self.state.durable_index()
        cdef Peer peer
        for peer in self.state.peer_list:
            lowest = min(lowest, peer.durable_index)
        return lowest

    cdef int tick(self) except -1:
        """Heartbeats, late commit news, and resending to peers that made no progress for a while."""
        cdef ReplicaState state = self.state
        cdef Peer peer
        cdef slot_t slot
        cdef uint32_t reference
        if self.role != ROLE_LEADER:
            return 0
        if state.now_ns - self.heartbeat_ns >= self.heartbeat_interval_ns:
            self.send_heartbeats()
        self.send_commits()
        for peer in state.peer_list:
            # Progress is a vote for the first batch that it owes: behind a lost one, later ones may go on for ever.
            slot = max(peer.owed_slot, state.commit_index + 1)
            while slot < peer.next_slot:
                reference = state.window.find(slot)
                if reference == NO_BATCH or not state.window.at(reference).votes & peer.bit:
                    break
                slot = state.window.at(reference).descriptor.slot_end
            if not peer.connected or slot != peer.owed_slot or slot >= peer.next_slot:
                peer.owed_slot = slot
                peer.progress_ns = state.now_ns
                continue
            if state.now_ns - peer.progress_ns < self.resend_timeout_ns:
                continue
            peer.next_slot = slot
            peer.bytes_in_flight = 0
            peer.progress_ns = state.now_ns
        self.update_quorum_contact()
        return 0


def _last_heard(Peer peer):
    return peer.last_heard_ns
