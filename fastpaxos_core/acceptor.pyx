"""The acceptor (rule 5.1): Prepare -> Promise | Nack, Accept -> Accepted | Nack, all gated by the disk.

Paper: Lamport, "Paxos Made Simple" (2001), section 2.2, P1a and P2a; Multi-Paxos runs Phase 1 once for all later slots.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free, realloc
from libc.string cimport memmove, memset

from fastpaxos_core.errors import FrameError, InvariantError

from fastpaxos_core.ballot cimport ballot_node
from fastpaxos_core.block cimport BlockHeader
from fastpaxos_core.messages cimport (
    AcceptedHead,
    AcceptedRange,
    AcceptHead,
    CommitHead,
    HeartbeatHead,
    HeartbeatReplyHead,
    NackHead,
    PrepareHead,
    PromiseHead,
    check_entries,
    head_of,
)
from fastpaxos_core.state cimport Peer, ReplicaState, check_batch
from fastpaxos_core.types cimport (
    BATCH_UNKNOWN,
    BatchDescriptor,
    ballot_t,
    slot_t,
    ticket_t,
    uint8_t,
    uint32_t,
    uint64_t,
)
from fastpaxos_core.window cimport NO_BATCH, SLOT_ACCEPTED, Batch
from fastpaxos_core.wire cimport FRAME_ACCEPTED, FRAME_HEARTBEAT_REPLY, FRAME_NACK, FRAME_PROMISE, Frame

cdef enum:
    PROMISE_PART_ENTRIES = 4096
    ACCEPTED_PART_ENTRIES = 8192


cdef class Acceptor:
    """Votes for one replica. `unknown` are ranges that a corrupt journal made unreadable (rule 5.2: never a vote)."""

    def __init__(self, ReplicaState state, learner, list unknown):
        self.state = state
        self.learner = learner
        self.unknown = unknown

    def __dealloc__(self):
        free(self._waiting)

    cdef int handle_prepare(self, Peer peer, Frame frame) except -1:
        """Phase 1b: promise a higher ballot, or the same one of the same boot again; refuse everything else."""
        cdef ReplicaState state = self.state
        cdef const PrepareHead* head = <const PrepareHead*>head_of(frame, sizeof(PrepareHead))
        cdef ballot_t ballot = frame.ballot
        check_entries(frame, sizeof(PrepareHead), 0, 0)
        if ballot_node(ballot) != peer.node_id or head.slot_begin == 0:
            raise FrameError(f"node {peer.node_id} prepares ballot {ballot} from slot {head.slot_begin}")
        if not state.voting:
            return 0
        if ballot < state.promised_ballot or (ballot == state.promised_ballot and state.promised_boot != frame.boot):
            return self.send_nack(peer, ballot)
        state.raise_promise(ballot, frame.boot)
        for promise in self.promise_frames(ballot, frame.boot, head.slot_begin):
            state.hold(peer, promise)
        return 0

    cdef list promise_frames(self, ballot_t ballot, uint32_t proposer_boot, slot_t slot_begin):
        """The Promise in parts: commit_index, every uncommitted accepted batch from slot_begin on, unknown ranges."""
        cdef ReplicaState state = self.state
        cdef slot_t slot = max(state.commit_index + 1, slot_begin)
        cdef uint32_t reference
        cdef BatchDescriptor unknown
        cdef PromiseHead head
        entries = []
        while slot < state.window.slot_end_max:
            reference = state.window.find(slot)
            if reference == NO_BATCH:
                slot += 1
                continue
            entries.append((<char*>&state.window.at(reference).descriptor)[: sizeof(BatchDescriptor)])
            slot = state.window.at(reference).descriptor.slot_end
        for begin, end in self.unknown:
            if end > max(state.commit_index + 1, slot_begin):
                memset(&unknown, 0, sizeof(BatchDescriptor))
                unknown.slot_begin = max(<slot_t>begin, state.commit_index + 1, slot_begin)
                unknown.slot_end = end
                unknown.flags = BATCH_UNKNOWN
                entries.append((<char*>&unknown)[: sizeof(BatchDescriptor)])
        chunks = [entries[i : i + PROMISE_PART_ENTRIES] for i in range(0, len(entries), PROMISE_PART_ENTRIES)] or [[]]
        frames = []
        for part, chunk in enumerate(chunks):
            head.commit_index = state.commit_index
            head.slot_begin = slot_begin
            head.proposer_boot = proposer_boot
            head.part = part
            head.part_count = len(chunks)
            head.entry_count = len(chunk)
            packed = (<char*>&head)[: sizeof(PromiseHead)] + b"".join(chunk)
            frames.append(state.writer.encode_c(
                FRAME_PROMISE, ballot, <const uint8_t*>PyBytes_AS_STRING(packed), len(packed), 0
            ))
        return frames

    cdef int send_nack(self, Peer peer, ballot_t rejected) except -1:
        """A refusal rests on nothing that must be durable: the promise it names only ever grows."""
        cdef NackHead head
        head.promised_ballot = self.state.promised_ballot
        head.commit_index = self.state.commit_index
        return self.state.send(peer, FRAME_NACK, rejected, &head, sizeof(NackHead))

    cdef int handle_accept(self, Peer peer, Frame frame) except -1:
        """Phase 2b for every batch of the frame."""
        cdef ReplicaState state = self.state
        cdef const uint8_t* bytes_of_head = head_of(frame, sizeof(AcceptHead))
        cdef const AcceptHead* head = <const AcceptHead*>bytes_of_head
        cdef const BatchDescriptor* entries = <const BatchDescriptor*>(bytes_of_head + sizeof(AcceptHead))
        cdef ballot_t ballot = frame.ballot
        cdef bytes body = frame.body
        cdef const uint8_t* blocks = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef uint64_t offset = 0
        cdef uint64_t size = len(body)
        cdef uint32_t index
        cdef BlockHeader header
        check_entries(frame, sizeof(AcceptHead), head.entry_count, sizeof(BatchDescriptor))
        if ballot_node(ballot) != peer.node_id:
            raise FrameError(f"node {peer.node_id} proposes in ballot {ballot} of node {ballot_node(ballot)}")
        if not state.voting:
            state.hear_leader(ballot)
            return self.learner.heard_commit(peer, ballot, head.commit_index, head.everywhere_durable)
        if ballot < state.promised_ballot:
            return self.send_nack(peer, ballot)
        # Everything is checked before anything is taken: a bad frame changes nothing.
        for index in range(head.entry_count):
            check_batch(&entries[index], blocks + offset, size - offset, &header)
            if entries[index].ballot != ballot or entries[index].flags:
                raise FrameError(f"an Accept in ballot {ballot} holds a batch of ballot {entries[index].ballot}")
            offset += entries[index].block_bytes
        if offset != size:
            raise FrameError(f"an Accept has {size} body bytes, its batches name {offset}")
        state.raise_promise(ballot, frame.boot)
        state.hear_leader(ballot)
        offset = 0
        for index in range(head.entry_count):
            self._accept(&entries[index], body, offset)
            offset += entries[index].block_bytes
        return self.learner.heard_commit(peer, ballot, head.commit_index, head.everywhere_durable)

    cdef int _accept(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1:
        cdef ReplicaState state = self.state
        cdef uint32_t reference
        cdef Batch* batch
        cdef BatchDescriptor copy
        if entry.slot_begin <= state.commit_index:
            self._answer_commit = True
            return 0
        reference = state.window.find(entry.slot_begin)
        if reference != NO_BATCH:
            batch = state.window.at(reference)
            if batch.descriptor.ballot == entry.ballot:
                if (batch.descriptor.slot_begin != entry.slot_begin or batch.descriptor.slot_end != entry.slot_end
                        or batch.descriptor.value_crc != entry.value_crc):
                    raise InvariantError(
                        f"ballot {entry.ballot} proposes two values for slot {entry.slot_begin}: CRC "
                        f"{batch.descriptor.value_crc:#x} and {entry.value_crc:#x}"
                    )
                # A duplicate is answered under the first copy's ticket: when that is still out, its answer is too.
                if batch.ticket <= state.journal.durable_ticket:
                    self.note_acceptance(
                        batch.ticket, entry.ballot, entry.slot_begin, entry.slot_end, entry.value_crc
                    )
                return 0
        copy = entry[0]
        cdef ticket_t ticket = state.journal.next_ticket
        # Beyond the ring: stay silent; heard_commit fetches what is missing.
        if state.store(&copy, owner, offset, SLOT_ACCEPTED) == NO_BATCH:
            return 0
        if self.unknown:
            self.forget_unknown(entry.slot_begin, entry.slot_end)
        return self.note_acceptance(ticket, entry.ballot, entry.slot_begin, entry.slot_end, entry.value_crc)

    cdef int handle_commit(self, Peer peer, Frame frame) except -1:
        """The leader's commit_index, told when no Accept carries it."""
        cdef const CommitHead* head = <const CommitHead*>head_of(frame, sizeof(CommitHead))
        check_entries(frame, sizeof(CommitHead), 0, 0)
        if ballot_node(frame.ballot) != peer.node_id:
            raise FrameError(f"node {peer.node_id} commits in ballot {frame.ballot} of another node")
        if frame.ballot >= self.state.promised_ballot:
            self.state.hear_leader(frame.ballot)
        return self.learner.heard_commit(peer, frame.ballot, head.commit_index, head.everywhere_durable)

    cdef int handle_heartbeat(self, Peer peer, Frame frame) except -1:
        """Answer with what is promised here: the leader counts the answer for a read only if it is its own ballot."""
        cdef ReplicaState state = self.state
        cdef const HeartbeatHead* head = <const HeartbeatHead*>head_of(frame, sizeof(HeartbeatHead))
        cdef HeartbeatReplyHead reply
        cdef ballot_t promised = 0
        check_entries(frame, sizeof(HeartbeatHead), 0, 0)
        if ballot_node(frame.ballot) != peer.node_id:
            raise FrameError(f"node {peer.node_id} leads in ballot {frame.ballot} of another node")
        if state.voting:
            if frame.ballot < state.promised_ballot:
                return self.send_nack(peer, frame.ballot)
            state.raise_promise(frame.ballot, frame.boot)
            promised = state.promised_ballot
        state.hear_leader(frame.ballot)
        self.learner.heard_commit(peer, frame.ballot, head.commit_index, head.everywhere_durable)
        reply.read_round = head.read_round
        reply.commit_index = state.commit_index
        reply.applied_index = state.applied_index
        reply.durable_index = state.durable_index()
        reply.proposer_boot = frame.boot
        reply.reserved = 0
        if promised and state.promise_ticket > state.journal.durable_ticket:
            return state.hold(peer, state.writer.encode_c(
                FRAME_HEARTBEAT_REPLY, promised, <const uint8_t*>&reply, sizeof(HeartbeatReplyHead), 0
            ))
        return state.send(peer, FRAME_HEARTBEAT_REPLY, promised, &reply, sizeof(HeartbeatReplyHead))

    cdef int forget_unknown(self, slot_t slot_begin, slot_t slot_end) except -1:
        """What is accepted or learned again is known again."""
        known = []
        for begin, end in self.unknown:
            if end <= slot_begin or begin >= slot_end:
                known.append((begin, end))
                continue
            if begin < slot_begin:
                known.append((begin, slot_begin))
            if end > slot_end:
                known.append((slot_end, end))
        self.unknown = known
        return 0

    cdef int note_acceptance(self, ticket_t ticket, ballot_t ballot, slot_t slot_begin, slot_t slot_end,
                             uint32_t value_crc) except -1:
        cdef Acceptance* grown
        cdef size_t capacity = 64 if self._capacity < 32 else 2 * self._capacity
        cdef Acceptance* entry
        if self._first + self._count == self._capacity:
            if self._first > self._capacity // 2:
                memmove(self._waiting, self._waiting + self._first, self._count * sizeof(Acceptance))
                self._first = 0
            else:
                grown = <Acceptance*>realloc(self._waiting, capacity * sizeof(Acceptance))
                if grown == NULL:
                    raise MemoryError("no memory for the acceptances that wait for the disk")
                self._waiting = grown
                self._capacity = capacity
        entry = &self._waiting[self._first + self._count]
        entry.ticket = ticket
        entry.ballot = ballot
        entry.slot_begin = slot_begin
        entry.slot_end = slot_end
        entry.value_crc = value_crc
        self._count += 1
        return 0

    cdef int flush_accepted(self) except -1:
        """Answer what is durable by now, in one frame, to the proposer of the promised ballot.

        The queue is in journal order but for duplicates, whose older ticket is durable already: the loop stops at the
        first entry that is not durable, which delays a duplicate at most until then.
        """
        cdef ReplicaState state = self.state
        cdef Peer peer
        cdef size_t ready = 0
        cdef size_t index
        cdef uint32_t count = 0
        cdef Acceptance* entry
        cdef AcceptedHead* head
        cdef AcceptedRange* ranges
        while ready < self._count and self._waiting[self._first + ready].ticket <= state.journal.durable_ticket:
            ready += 1
        if ready == 0 and not self._answer_commit:
            return 0
        peer = state.peer(ballot_node(state.promised_ballot))
        if peer is None or not peer.connected:
            self._first += ready
            self._count -= ready
            self._answer_commit = False
            return 0
        ready = min(ready, <size_t>ACCEPTED_PART_ENTRIES)
        packed = bytearray(sizeof(AcceptedHead) + ready * sizeof(AcceptedRange))
        cdef uint8_t[::1] view = packed
        head = <AcceptedHead*>&view[0]
        ranges = <AcceptedRange*>(<uint8_t*>head + sizeof(AcceptedHead))
        for index in range(ready):
            entry = &self._waiting[self._first + index]
            # An answer in an older ballot helps nobody: its proposer has been superseded here.
            if entry.ballot != state.promised_ballot:
                continue
            ranges[count].slot_begin = entry.slot_begin
            ranges[count].slot_end = entry.slot_end
            ranges[count].value_crc = entry.value_crc
            count += 1
        self._first += ready
        self._count -= ready
        if self._count == 0:
            self._first = 0
        if count or self._answer_commit:
            head.commit_index = state.commit_index
            head.durable_index = state.durable_index()
            head.proposer_boot = state.promised_boot
            head.entry_count = count
            state.send(peer, FRAME_ACCEPTED, state.promised_ballot, head,
                       sizeof(AcceptedHead) + count * sizeof(AcceptedRange))
        self._answer_commit = False
        if self._count and self._waiting[self._first].ticket <= state.journal.durable_ticket:
            return self.flush_accepted()
        return 0
