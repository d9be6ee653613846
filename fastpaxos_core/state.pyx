"""State that the roles of one replica share, and the one place where messages wait for the disk.

A message that rests on durability is held here until the journal says that a sync which started after its bytes were
appended has ended (DESIGN: core contract). Nothing else may send a Promise, an Accepted or a Prepare.
"""

from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy

from fastpaxos_core.errors import ConfigError, FrameError, InvariantError

from fastpaxos_core.block cimport BlockHeader, block_check, value_crc
from fastpaxos_core.types cimport (
    BATCH_FLAGS_KNOWN,
    SLOTS_AHEAD_MAX,
    BatchDescriptor,
    ballot_t,
    node_id_t,
    slot_t,
    uint8_t,
    uint32_t,
)
from fastpaxos_core.window cimport NO_BATCH, Batch

# Frames with less body than this are joined into one buffer; larger blocks travel as buffers of their own, uncopied.
cdef enum:
    JOIN_BYTES_MAX = 32768


cdef class Peer:
    """Another replica as this one knows it."""

    def __init__(self, node_id: int, bit: int):
        self.node_id = node_id
        self.bit = bit
        self.next_slot = 1
        self.buffers = []


cdef class ReplicaState:
    """Shared by acceptor, proposer and learner; see the fields in state.pxd."""

    def __init__(self, int node_id, int boot, quorum, window, journal, writer, *, window_slots, window_bytes,
                 log_memory_bytes, bint voting):
        self.node_id = node_id
        self.boot = boot
        self.quorum = quorum
        self.window = window
        self.journal = journal
        self.writer = writer
        self.own_bit = quorum.bit_of(node_id)
        self.peer_list = [Peer(member, quorum.bit_of(member)) for member in quorum.members if member != node_id]
        self.peers = {peer.node_id: peer for peer in self.peer_list}
        self.window_slots = window_slots
        self.window_bytes = window_bytes
        self.log_memory_bytes = log_memory_bytes
        self.reserved_batches = (window.batch_capacity + 3) // 4
        self.voting = voting
        self.held = deque()

    cdef Peer peer(self, node_id_t node_id):
        return <Peer>self.peers.get(node_id)

    cdef int send(self, Peer peer, int frame_type, ballot_t ballot, const void* head, size_t head_bytes) except -1:
        """Queue a frame without a body. Frames for a peer that is not connected are dropped: resending repairs it."""
        if peer.connected:
            peer.buffers.append(self.writer.encode_c(frame_type, ballot, <const uint8_t*>head, head_bytes, 0))
        return 0

    cdef int hold(self, Peer peer, bytes frame) except -1:
        """Queue a frame that may leave only when everything journalled so far is durable."""
        # What is pending goes into write `next_ticket`; with nothing pending, the last sealed write is what counts.
        cdef ticket_t ticket = self.journal.next_ticket if self.journal.has_pending else self.sealed_ticket
        if ticket > self.journal.durable_ticket:
            self.held.append((ticket, peer, frame))
        elif peer.connected:
            peer.buffers.append(frame)
        return 0

    cdef int release_held(self) except -1:
        cdef Peer peer
        while self.held and self.held[0][0] <= self.journal.durable_ticket:
            _, peer, frame = self.held.popleft()
            if peer.connected:
                peer.buffers.append(frame)
        return 0

    cdef int raise_promise(self, ballot_t ballot, uint32_t proposer_boot) except -1:
        """Rule 5.1: promised_ballot never falls. The new promise goes into the next journal write."""
        if ballot < self.promised_ballot:
            raise InvariantError(f"promised ballot would fall from {self.promised_ballot} to {ballot}")
        if ballot > self.promised_ballot:
            self.promised_ballot = ballot
            self.journal.touch()
            self.promise_ticket = self.journal.next_ticket
        self.promised_boot = proposer_boot
        if ballot > self.max_ballot_seen:
            self.max_ballot_seen = ballot
        return 0

    cdef int hear_leader(self, ballot_t ballot) except -1:
        if ballot >= self.leader_ballot:
            self.leader_ballot = ballot
            self.leader_heard_ns = self.now_ns
        return 0

    cdef uint32_t store(self, BatchDescriptor* descriptor, object owner, size_t block_offset, uint8_t status
                        ) except? 0xFFFFFFFF:
        """Journal a batch and put it into the window; NO_BATCH (and nothing journalled) when the window has no room."""
        if not self.make_room(descriptor.slot_begin, descriptor.slot_end):
            return NO_BATCH
        self.window.drop_overlapping(descriptor.slot_begin, descriptor.slot_end, descriptor.ballot)
        cdef uint32_t reference = self.window.place(
            descriptor, owner, block_offset, self.journal.next_ticket, status
        )
        if reference == NO_BATCH:
            raise InvariantError(f"no cell for [{descriptor.slot_begin}, {descriptor.slot_end}) after making room")
        self.journal.append_batch(descriptor, <bytes>owner, block_offset)
        if descriptor.timestamp_ns > self.last_timestamp_ns:
            self.last_timestamp_ns = descriptor.timestamp_ns
        return reference

    cdef bint make_room(self, slot_t slot_begin, slot_t slot_end) except -1:
        """Evict old batches until the range fits and a batch entry is free; False when it can't be.

        A quarter of the entries is kept for what continues the committed prefix: else batches beyond a gap could fill
        the table, and the one that closes the gap would find no place in it.
        """
        cdef SlotWindow window = self.window
        cdef uint32_t batches_max = window.batch_capacity
        if slot_end - slot_begin > window.slot_capacity:
            raise ConfigError(
                f"the batch [{slot_begin}, {slot_end}) is wider than this replica's ring of {window.slot_capacity} "
                "slots: start it with the window_slots of the other members"
            )
        if slot_end > self.commit_index + 1 + SLOTS_AHEAD_MAX:
            return False
        if slot_begin != self.commit_index + 1:
            batches_max -= self.reserved_batches
        batches_max += window.count_overlapping(slot_begin, slot_end)
        while slot_end > window.memory_begin + window.slot_capacity or window.batch_count >= batches_max:
            if not window.evict_first(self.commit_index, self.journal.durable_ticket):
                return False
        return True

    cdef int trim_memory(self) except -1:
        """Bound the committed log in memory: what is applied and durable here can be read back from the journal."""
        cdef SlotWindow window = self.window
        while window.block_bytes > self.log_memory_bytes and window.memory_begin <= self.applied_index:
            if not window.evict_first(self.applied_index, self.journal.durable_ticket):
                break
        return 0

    cdef slot_t durable_index(self) noexcept nogil:
        """Committed slots <= it are on this disk.

        A cursor that only moves up: batches need not become durable in slot order, a fetched one may come late.
        """
        cdef uint32_t reference
        cdef Batch* batch
        if self.durable_cursor + 1 < self.window.memory_begin:
            # What has left memory was durable.
            self.durable_cursor = self.window.memory_begin - 1
        while self.durable_cursor < self.commit_index:
            reference = self.window.find(self.durable_cursor + 1)
            if reference == NO_BATCH:
                break
            batch = self.window.at(reference)
            if batch.ticket > self.journal.durable_ticket:
                break
            self.durable_cursor = batch.descriptor.slot_end - 1
        return self.durable_cursor

    cdef int send_batches(self, list peers, int frame_type, ballot_t ballot, const void* fixed, size_t fixed_bytes,
                          const BatchDescriptor* descriptors, size_t count, list parts) except -1:
        """Queue one frame of batches (Accept or Learn) for every peer of the list; `parts` are the blocks in order."""
        cdef size_t index
        cdef uint64_t body_bytes = 0
        cdef bytes head = PyBytes_FromStringAndSize(NULL, fixed_bytes + count * sizeof(BatchDescriptor))
        cdef char* target = PyBytes_AS_STRING(head)
        cdef Peer peer
        memcpy(target, fixed, fixed_bytes)
        memcpy(target + fixed_bytes, descriptors, count * sizeof(BatchDescriptor))
        for index in range(count):
            body_bytes += descriptors[index].block_bytes
        frame = self.writer.encode_c(frame_type, ballot, <const uint8_t*>target, len(head), body_bytes)
        if body_bytes <= JOIN_BYTES_MAX:
            frame = b"".join([frame, *parts])
            for peer in peers:
                peer.buffers.append(frame)
        else:
            for peer in peers:
                peer.buffers.append(frame)
                peer.buffers.extend(parts)
        return 0


cdef object block_part(object owner, size_t offset, size_t size):
    """Return the block's bytes as something that a transport can write, without a copy where it is the whole owner."""
    if offset == 0 and <size_t>len(<bytes>owner) == size:
        return owner
    return memoryview(owner)[offset : offset + size]


cdef int check_batch(const BatchDescriptor* descriptor, const uint8_t* block, uint64_t room, BlockHeader* header
                     ) except -1:
    cdef int code
    if descriptor.slot_begin == 0 or descriptor.slot_end <= descriptor.slot_begin:
        raise FrameError(f"a batch names the slots [{descriptor.slot_begin}, {descriptor.slot_end})")
    if descriptor.flags & ~<uint32_t>BATCH_FLAGS_KNOWN or descriptor.reserved:
        raise FrameError(f"a batch has unknown flags {descriptor.flags:#x} or a reserved value {descriptor.reserved}")
    if descriptor.block_bytes > room:
        raise FrameError(f"a batch names a block of {descriptor.block_bytes} bytes, {room} bytes are left in its frame")
    code = block_check(block, descriptor.block_bytes, header, 1)
    if code < 0:
        raise FrameError(f"the block of slot {descriptor.slot_begin} is bad (code {code})")
    if header.command_count != descriptor.slot_end - descriptor.slot_begin:
        raise FrameError(
            f"the block of slots [{descriptor.slot_begin}, {descriptor.slot_end}) has {header.command_count} commands"
        )
    if value_crc(descriptor.slot_begin, descriptor.slot_end, descriptor.timestamp_ns, header.crc) \
            != descriptor.value_crc:
        raise FrameError(f"the value CRC of slot {descriptor.slot_begin} does not fit its block")
    return 0
