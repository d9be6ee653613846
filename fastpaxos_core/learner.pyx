"""The learner (rule 5.3): commit what was accepted in the leader's own ballot, fetch everything else.

Catch-up pulls: one Fetch is outstanding, to whoever was last heard to know more, and to the next peer when it stays
silent or has nothing. Committed batches come from the window or, when memory no longer holds them, from the journal.
"""

from cpython.bytes cimport PyBytes_AS_STRING

from fastpaxos_core.errors import FrameError, InvariantError

from fastpaxos_core.ballot cimport ballot_node
from fastpaxos_core.block cimport BlockHeader
from fastpaxos_core.journal cimport JournalRead
from fastpaxos_core.journal_format cimport StoredBatch
from fastpaxos_core.messages cimport LEARN_FETCHED, FetchHead, LearnHead, check_entries, head_of
from fastpaxos_core.state cimport Peer, ReplicaState, block_part, check_batch
from fastpaxos_core.types cimport (
    BATCH_COMMITTED,
    BatchDescriptor,
    ballot_t,
    slot_t,
    uint8_t,
    uint32_t,
    uint64_t,
)
from fastpaxos_core.window cimport NO_BATCH, SLOT_COMMITTED, Batch
from fastpaxos_core.wire cimport FRAME_FETCH, FRAME_LEARN, Frame

cdef enum:
    FETCH_BYTES = 1048576
    FETCH_ENTRIES = 4096


cdef class Learner:
    """Moves commit_index and closes gaps."""

    def __init__(self, ReplicaState state, fetch_timeout_ns: int):
        self.state = state
        self.fetch_timeout_ns = fetch_timeout_ns
        # Unique over starts: an answer to an earlier start is no answer to this one.
        self.next_request_id = <uint64_t>state.boot << 32
        self.repaired = []
        self.reads = []
        self.read_purposes = {}

    cdef uint64_t request_id(self) except 0:
        self.next_request_id += 1
        return self.next_request_id

    cdef int heard_commit(self, Peer peer, ballot_t ballot, slot_t commit_index, slot_t everywhere_durable) except -1:
        """The leader of `ballot` says that every slot <= commit_index is committed."""
        if everywhere_durable > self.state.everywhere_durable:
            self.state.everywhere_durable = everywhere_durable
        if ballot > self.told_ballot or (ballot == self.told_ballot and commit_index > self.told_commit):
            self.told_ballot = ballot
            self.told_commit = commit_index
        self.hint(peer, commit_index)
        return self.advance(ballot, commit_index)

    cdef int hint(self, Peer peer, slot_t commit_index) except -1:
        """Somebody knows slots <= commit_index to be committed: a reason to fetch, never to commit."""
        if commit_index > peer.commit_index:
            peer.commit_index = commit_index
        if commit_index > self.commit_hint:
            self.commit_hint = commit_index
            if not self.source_failed:
                self.hint_node = peer.node_id
        return 0

    cdef int advance(self, ballot_t ballot, slot_t commit_index) except -1:
        """Rule 5.3: commit only batches accepted in exactly this ballot, in order, whole."""
        cdef ReplicaState state = self.state
        cdef uint32_t reference
        cdef Batch* batch
        while state.commit_index < commit_index:
            reference = state.window.find(state.commit_index + 1)
            if reference == NO_BATCH:
                return 0
            batch = state.window.at(reference)
            if batch.descriptor.ballot != ballot or batch.descriptor.slot_end - 1 > commit_index:
                return 0
            self.commit_batch(reference)
        return 0

    cdef int commit_batch(self, uint32_t reference) except -1:
        """This batch is chosen and everything below it is committed: so is it."""
        cdef ReplicaState state = self.state
        cdef Batch* batch = state.window.at(reference)
        if batch.descriptor.slot_begin != state.commit_index + 1 or batch.status == SLOT_COMMITTED:
            raise InvariantError(
                f"batch [{batch.descriptor.slot_begin}, {batch.descriptor.slot_end}) cannot be committed after slot "
                f"{state.commit_index}"
            )
        state.window.set_status(reference, SLOT_COMMITTED)
        state.commit_index = batch.descriptor.slot_end - 1
        # Zero on everybody but a leader, whose proposals these are.
        state.bytes_in_flight -= min(<uint64_t>batch.descriptor.block_bytes, state.bytes_in_flight)
        return 0

    cdef int fetch_missing(self) except -1:
        """Ask for the first slot that is committed elsewhere and not here, unless an answer is already on its way."""
        cdef ReplicaState state = self.state
        cdef FetchHead head
        cdef Peer peer
        cdef slot_t slot = 0 if self.repair_failed else self.repair_slot
        if self.fetch_id or self.waits:
            return 0
        if slot == 0:
            if self.told_commit > state.commit_index:
                self.advance(self.told_ballot, self.told_commit)
            if self.commit_hint <= state.commit_index:
                self.repair_failed = False
                return 0
            slot = state.commit_index + 1
        peer = self._source(slot)
        if peer is None:
            self.waits = True
            return 0
        self.repair_failed = False
        self.fetch_id = self.request_id()
        self.fetch_slot = slot
        self.fetch_repairs = slot <= state.commit_index
        self.fetch_node = peer.node_id
        self.fetch_sent_ns = state.now_ns
        head.request_id = self.fetch_id
        head.slot_begin = slot
        head.slot_end = 0
        head.bytes_max = FETCH_BYTES
        head.value_crc = 0
        return state.send(peer, FRAME_FETCH, 0, &head, sizeof(FetchHead))

    cdef Peer _source(self, slot_t slot):
        """The last one that gave a hint, or whose turn it is; else one that has the slot; else anybody connected.

        Followers do not tell each other their commit_index, so one that seems to know nothing is asked as well: its
        answer says what it has.
        """
        cdef Peer peer = self.state.peer(self.hint_node)
        cdef Peer found = None
        if peer is not None and peer.connected:
            return peer
        for peer in self.state.peer_list:
            if peer.connected and (found is None or peer.commit_index >= slot):
                found = peer
                if peer.commit_index >= slot:
                    break
        return found

    cdef int _try_another_source(self) except -1:
        cdef list peers = self.state.peer_list
        cdef Peer peer
        cdef int start = 0
        self.fetch_id = 0
        if self.fetch_repairs:
            self.repair_failures += 1
        else:
            self.failures += 1
        for index, peer in enumerate(peers):
            if peer.node_id == self.fetch_node:
                start = index + 1
        for index in range(len(peers)):
            peer = peers[(start + index) % len(peers)]
            if peer.connected:
                self.hint_node = peer.node_id
                self.source_failed = True
                break
        return 0

    cdef int ask_for_repair(self, slot_t slot) except -1:
        """This committed slot cannot be read back here: a peer is asked for it."""
        self.repair_slot = slot
        self.repair_since_ns = self.state.now_ns
        return 0

    cdef int tick(self) except -1:
        self.waits = False
        if self.repair_slot and self.state.now_ns - self.repair_since_ns > self.fetch_timeout_ns:
            # Perhaps nobody is there to ask, and the read failed only once: let apply try the own journal again.
            self.repair_slot = 0
        if self.fetch_id and self.state.now_ns - self.fetch_sent_ns > self.fetch_timeout_ns:
            self._try_another_source()
        return 0

    cdef int handle_fetch(self, Peer peer, Frame frame) except -1:
        """Serve committed batches from slot_begin on, or one accepted value of Phase 1 (ballot != 0)."""
        cdef const FetchHead* head = <const FetchHead*>head_of(frame, sizeof(FetchHead))
        cdef ReplicaState state = self.state
        cdef LearnHead answer
        cdef uint32_t reference
        cdef Batch* batch
        check_entries(frame, sizeof(FetchHead), 0, 0)
        if head.slot_begin == 0:
            raise FrameError(f"node {peer.node_id} fetches slot 0")
        if not peer.connected:
            return 0
        if frame.ballot == 0:
            bytes_max = min(<uint64_t>head.bytes_max, <uint64_t>FETCH_BYTES)
            return self.serve(peer, head.request_id, head.slot_begin, bytes_max)
        answer.request_id = head.request_id
        answer.commit_index = state.commit_index
        answer.entry_count = 0
        answer.kind = LEARN_FETCHED
        reference = state.window.find(head.slot_begin)
        if reference != NO_BATCH:
            batch = state.window.at(reference)
            if (batch.descriptor.slot_begin == head.slot_begin and batch.descriptor.slot_end == head.slot_end
                    and batch.descriptor.value_crc == head.value_crc):
                answer.entry_count = 1
                part = block_part(<object>batch.owner, batch.block_offset, batch.descriptor.block_bytes)
                return state.send_batches(
                    [peer], FRAME_LEARN, state.promised_ballot, &answer, sizeof(LearnHead), &batch.descriptor, 1, [part]
                )
        return state.send(peer, FRAME_LEARN, state.promised_ballot, &answer, sizeof(LearnHead))

    cdef int serve(self, Peer peer, uint64_t request_id, slot_t slot_begin, uint64_t bytes_max) except -1:
        cdef ReplicaState state = self.state
        cdef slot_t slot = slot_begin
        cdef uint64_t size = 0
        cdef uint32_t reference
        cdef Batch* batch
        cdef BatchDescriptor copy
        cdef LearnHead head
        if slot < state.window.memory_begin and slot <= state.commit_index:
            if self.request_read(slot, ("serve", peer.node_id, request_id, bytes_max), None) is not None:
                return 0
        packed = bytearray()
        parts = []
        while state.window.memory_begin <= slot <= state.commit_index and len(parts) < FETCH_ENTRIES:
            reference = state.window.find(slot)
            if reference == NO_BATCH:
                break
            batch = state.window.at(reference)
            if batch.descriptor.slot_begin != slot or (parts and size + batch.descriptor.block_bytes > bytes_max):
                break
            copy = batch.descriptor
            copy.flags = BATCH_COMMITTED
            packed += (<char*>&copy)[: sizeof(BatchDescriptor)]
            parts.append(block_part(<object>batch.owner, batch.block_offset, batch.descriptor.block_bytes))
            size += batch.descriptor.block_bytes
            slot = batch.descriptor.slot_end
        head.request_id = request_id
        head.commit_index = state.commit_index
        head.entry_count = len(parts)
        head.kind = LEARN_FETCHED
        descriptors = bytes(packed)
        return state.send_batches(
            [peer], FRAME_LEARN, state.promised_ballot, &head, sizeof(LearnHead),
            <const BatchDescriptor*>PyBytes_AS_STRING(descriptors), len(parts), parts
        )

    cdef int serve_stored(self, Peer peer, uint64_t request_id, list stored, uint64_t bytes_max) except -1:
        """Answer a Fetch with what was read back from the journal."""
        cdef ReplicaState state = self.state
        cdef StoredBatch batch
        cdef BatchDescriptor copy
        cdef LearnHead head
        cdef uint64_t size = 0
        if not peer.connected:
            return 0
        packed = bytearray()
        parts = []
        for batch in stored:
            if (batch.descriptor.slot_end > state.commit_index + 1 or len(parts) >= FETCH_ENTRIES
                    or (parts and size + batch.descriptor.block_bytes > bytes_max)):
                break
            copy = batch.descriptor
            copy.flags = BATCH_COMMITTED
            packed += (<char*>&copy)[: sizeof(BatchDescriptor)]
            parts.append(block_part(batch.owner, batch.offset, batch.descriptor.block_bytes))
            size += batch.descriptor.block_bytes
        head.request_id = request_id
        head.commit_index = state.commit_index
        head.entry_count = len(parts)
        head.kind = LEARN_FETCHED
        descriptors = bytes(packed)
        return state.send_batches(
            [peer], FRAME_LEARN, state.promised_ballot, &head, sizeof(LearnHead),
            <const BatchDescriptor*>PyBytes_AS_STRING(descriptors), len(parts), parts
        )

    cdef object request_read(self, slot_t slot, tuple purpose, object before):
        """Ask the shell to read the piece of the journal that should hold `slot`; return the JournalRead or None."""
        if before is not None and (<JournalRead>before).slot != slot:
            raise InvariantError(f"a search for slot {slot} goes on from a read for slot {(<JournalRead>before).slot}")
        read = self.state.journal.locate(slot, before)
        if read is not None:
            self.reads.append(read)
            self.read_purposes[read] = purpose
        return read

    cdef int handle_learn(self, Peer peer, Frame frame) except -1:
        """Committed batches that were asked for: they continue the committed prefix, or refill a corrupt record."""
        cdef const uint8_t* bytes_of_head = head_of(frame, sizeof(LearnHead))
        cdef const LearnHead* head = <const LearnHead*>bytes_of_head
        cdef const BatchDescriptor* entries = <const BatchDescriptor*>(bytes_of_head + sizeof(LearnHead))
        cdef ReplicaState state = self.state
        cdef bytes body = frame.body
        cdef const uint8_t* blocks = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef uint64_t size = len(body)
        cdef uint64_t offset = 0
        cdef uint32_t index
        cdef BlockHeader header
        check_entries(frame, sizeof(LearnHead), head.entry_count, sizeof(BatchDescriptor))
        self.hint(peer, head.commit_index)
        if head.request_id != self.fetch_id:
            return 0
        self.fetch_id = 0
        if head.entry_count == 0:
            # This peer cannot read it back (any more): ask another one, not before the next tick. A repair that nobody
            # can give takes turns with catching up.
            self.repair_failed = self.repair_slot != 0 and self.fetch_slot == self.repair_slot
            self._try_another_source()
            self.waits = True
            return 0
        self.source_failed = False
        if self.fetch_repairs:
            self.repair_failures = 0
        else:
            self.failures = 0
        for index in range(head.entry_count):
            check_batch(&entries[index], blocks + offset, size - offset, &header)
            if entries[index].flags != BATCH_COMMITTED:
                raise FrameError(f"node {peer.node_id} answers a Fetch of committed slots with an uncommitted batch")
            if self.repair_slot and self.fetch_slot == self.repair_slot:
                self._repair(&entries[index], body, offset)
            elif entries[index].slot_begin == state.commit_index + 1:
                if not self._learn(&entries[index], body, offset):
                    self.waits = True
                    break
            offset += entries[index].block_bytes
        return 0

    cdef bint learn_surveyed(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1:
        """Take a committed batch if it is one that is missing; tell whether it was."""
        if entry.slot_begin == self.state.commit_index + 1:
            if not self._learn(entry, owner, offset):
                self.waits = True
                return False
            return True
        if self.repair_slot and entry.slot_begin == self.repair_slot:
            self._repair(entry, owner, offset)
            return True
        return False

    cdef bint _learn(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1:
        """Commit a batch that a peer knows to be committed; False when the window has no room for it yet."""
        cdef ReplicaState state = self.state
        cdef uint32_t reference = state.window.find(entry.slot_begin)
        cdef Batch* batch
        cdef BatchDescriptor copy = entry[0]
        if reference != NO_BATCH:
            batch = state.window.at(reference)
            if (batch.descriptor.slot_begin == entry.slot_begin and batch.descriptor.slot_end == entry.slot_end
                    and batch.descriptor.value_crc == entry.value_crc):
                # The same value stands here already, and so does its record: the commit is all that is new.
                self.commit_batch(reference)
                return True
        if not state.make_room(entry.slot_begin, entry.slot_end):
            return False
        if state.window.drop_overlapping(entry.slot_begin, entry.slot_end, entry.ballot):
            # Something else was accepted here: it lost. If this replica proposed it, it has been deposed.
            if ballot_node(state.promised_ballot) == state.node_id:
                state.deposed = True
        reference = state.store(&copy, owner, offset, SLOT_COMMITTED)
        if reference == NO_BATCH:
            return False
        state.commit_index = entry.slot_end - 1
        return True

    cdef int _repair(self, const BatchDescriptor* entry, bytes owner, uint64_t offset) except -1:
        """Write a committed batch again whose record was unreadable, and hand it to the applier."""
        cdef BatchDescriptor copy = entry[0]
        if entry.slot_begin != self.repair_slot or entry.slot_end > self.state.commit_index + 1:
            return 0
        self.state.journal.append_batch(&copy, owner, offset)
        cdef StoredBatch stored = StoredBatch.__new__(StoredBatch)
        stored.descriptor = copy
        stored.owner = owner
        stored.offset = offset
        self.repaired.append(stored)
        self.repair_slot = 0
        return 0
