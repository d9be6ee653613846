"""The slot window (DESIGN: data, slot arrays).

Slots live in a ring of struct-of-arrays: accepted ballot, batch reference, vote bitmask, status. All cells of a batch
move together, so what can be done once per batch is done once, and the cells are filled by vectorised loops.

A cell is valid only while the batch that it refers to is in use and covers that slot: `find` checks it, so cells of
evicted batches need no clearing.

Invariant: every slot in [memory_begin, commit_index] has a committed batch in memory.
"""

import numpy as np

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport calloc, free

from fastpaxos_core.errors import InvariantError

from fastpaxos_core.types cimport BatchDescriptor, ballot_t, slot_t, ticket_t, uint8_t, uint32_t, uint64_t


cdef extern from "checks.h":
    int FASTPAXOS_CHECKED


cdef extern from *:
    """
    #include <string.h>
    #include <stdint.h>
    /* Wider stores where the processor has them, chosen when the module is loaded. */
    #if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) \\
            && !defined(__SANITIZE_ADDRESS__)
    #define FP_WIDE __attribute__((target_clones("avx2", "default"), optimize("unroll-loops")))
    #else
    #define FP_WIDE
    #endif
    /* Fills cells [begin, end) of a ring of `mask + 1` cells; the compiler vectorises the two straight runs. */
    #define FP_RING_FILL(NAME, TYPE)                                                                        \\
    FP_WIDE static void NAME##_run(TYPE* cells, uint64_t count, TYPE value) {                               \\
        for (uint64_t i = 0; i < count; i++) cells[i] = value;                                              \\
    }                                                                                                       \\
    static inline void NAME(TYPE* cells, uint64_t mask, uint64_t begin, uint64_t end, TYPE value) {         \\
        uint64_t first = begin & mask, count = end - begin, room = mask + 1 - first;                        \\
        uint64_t head = count < room ? count : room;                                                        \\
        NAME##_run(cells + first, head, value);                                                             \\
        if (count > head) NAME##_run(cells, count - head, value);                                           \\
    }
    FP_RING_FILL(fp_fill_u64, uint64_t)
    FP_RING_FILL(fp_fill_u32, uint32_t)
    FP_RING_FILL(fp_fill_u8, uint8_t)
    """
    void fp_fill_u64(uint64_t* cells, uint64_t mask, uint64_t begin, uint64_t end, uint64_t value) noexcept nogil
    void fp_fill_u32(uint32_t* cells, uint64_t mask, uint64_t begin, uint64_t end, uint32_t value) noexcept nogil
    void fp_fill_u8(uint8_t* cells, uint64_t mask, uint64_t begin, uint64_t end, uint8_t value) noexcept nogil


cdef class SlotWindow:
    """A ring of `slot_capacity` slots and a table of `batch_capacity` batches, both preallocated.

    Args:
        slot_capacity: cells in the ring, a power of two, at least 2 x the number of slots in flight.
        batch_capacity: batches that can be in memory at once.

    Raises:
        ValueError: a capacity is out of range.
        MemoryError: the arrays cannot be allocated.
    """

    def __cinit__(self, slot_capacity: int, batch_capacity: int):
        if slot_capacity < 2 or slot_capacity & (slot_capacity - 1) or slot_capacity > 1 << 30:
            raise ValueError(f"slot_capacity {slot_capacity} must be a power of two in 2..2**30")
        if not 1 <= batch_capacity <= 2**32 - 2:
            raise ValueError(f"batch_capacity {batch_capacity} must be in 1..2**32-2")
        cdef uint64_t[::1] ballots
        cdef uint32_t[::1] refs
        cdef uint32_t[::1] votes
        cdef uint8_t[::1] status
        cdef uint32_t index
        self._ballots_array = np.zeros(slot_capacity, np.uint64)
        self._refs_array = np.full(slot_capacity, 2**32 - 1, np.uint32)
        self._votes_array = np.zeros(slot_capacity, np.uint32)
        self._status_array = np.zeros(slot_capacity, np.uint8)
        ballots, refs, votes, status = self._ballots_array, self._refs_array, self._votes_array, self._status_array
        self._ballots = <ballot_t*>&ballots[0]
        self._refs = &refs[0]
        self._votes = &votes[0]
        self._status = &status[0]
        self._batches = <Batch*>calloc(batch_capacity, sizeof(Batch))
        if self._batches == NULL:
            raise MemoryError(f"no memory for a table of {batch_capacity} batches")
        self.slot_capacity = slot_capacity
        self.batch_capacity = batch_capacity
        for index in range(self.batch_capacity):
            self._batches[index].next_free = index + 1
        self._batches[self.batch_capacity - 1].next_free = NO_BATCH
        self._free_head = 0
        self.memory_begin = 1
        self.slot_end_max = 1

    def __dealloc__(self):
        cdef uint32_t index
        if self._batches != NULL:
            for index in range(self.batch_capacity):
                if self._batches[index].owner != NULL:
                    Py_DECREF(<object>self._batches[index].owner)
            free(self._batches)

    cdef Batch* at(self, uint32_t reference) noexcept nogil:
        if FASTPAXOS_CHECKED and reference >= self.batch_capacity:
            with gil:
                raise InvariantError(f"batch reference {reference} is outside the table of {self.batch_capacity}")
        return &self._batches[reference]

    cdef uint32_t find(self, slot_t slot) noexcept nogil:
        """Return the reference of the batch that covers `slot`, or NO_BATCH."""
        cdef uint32_t reference = self._refs[slot & (self.slot_capacity - 1)]
        if reference == NO_BATCH:
            return NO_BATCH
        cdef Batch* batch = self.at(reference)
        if batch.status == SLOT_EMPTY or slot < batch.descriptor.slot_begin or slot >= batch.descriptor.slot_end:
            return NO_BATCH
        return reference

    cdef uint32_t place(self, const BatchDescriptor* descriptor, object owner, size_t block_offset, ticket_t ticket,
                        uint8_t status) except? 0xFFFFFFFF:
        """Put a batch into its cells; the caller has dropped what it overlaps and made sure that it fits.

        Returns the batch's reference, or NO_BATCH when the table is full or the range leaves the ring.
        """
        cdef uint64_t mask = self.slot_capacity - 1
        cdef uint32_t reference = self._free_head
        cdef slot_t slot_begin = descriptor.slot_begin
        cdef slot_t slot_end = descriptor.slot_end
        if reference == NO_BATCH or slot_begin < self.memory_begin or slot_end > self.memory_begin + self.slot_capacity:
            return NO_BATCH
        cdef Batch* batch = &self._batches[reference]
        self._free_head = batch.next_free
        batch.descriptor = descriptor[0]
        batch.ticket = ticket
        batch.votes = 0
        batch.status = status
        Py_INCREF(owner)
        batch.owner = <PyObject*>owner
        batch.block_offset = block_offset
        self.batch_count += 1
        self.block_bytes += descriptor.block_bytes
        if slot_end > self.slot_end_max:
            self.slot_end_max = slot_end
        # hot: begin
        fp_fill_u64(self._ballots, mask, slot_begin, slot_end, descriptor.ballot)
        fp_fill_u32(self._refs, mask, slot_begin, slot_end, reference)
        fp_fill_u32(self._votes, mask, slot_begin, slot_end, 0)
        fp_fill_u8(self._status, mask, slot_begin, slot_end, status)
        # hot: end
        return reference

    cdef int drop_overlapping(self, slot_t slot_begin, slot_t slot_end, ballot_t ballot) except -1:
        """Drop, whole, every uncommitted batch that overlaps a new one of `ballot` (rule 5.1). Returns how many went.

        Raises InvariantError when one of them is of the same ballot: a ballot never proposes two overlapping batches.
        """
        cdef slot_t slot = slot_begin
        cdef slot_t end = min(slot_end, self.slot_end_max)
        cdef uint32_t reference
        cdef Batch* batch
        cdef int dropped = 0
        while slot < end:
            reference = self.find(slot)
            if reference == NO_BATCH:
                slot += 1
                continue
            batch = self.at(reference)
            if batch.descriptor.ballot == ballot:
                raise InvariantError(
                    f"ballot {ballot} proposes [{slot_begin}, {slot_end}) over its own batch "
                    f"[{batch.descriptor.slot_begin}, {batch.descriptor.slot_end})"
                )
            slot = batch.descriptor.slot_end
            self.drop(reference)
            dropped += 1
        return dropped

    cdef uint32_t count_overlapping(self, slot_t slot_begin, slot_t slot_end) noexcept nogil:
        """Return how many batches `drop_overlapping` would drop."""
        cdef slot_t slot = slot_begin
        cdef uint32_t reference
        cdef uint32_t count = 0
        while slot < slot_end and slot < self.slot_end_max:
            reference = self.find(slot)
            if reference == NO_BATCH:
                slot += 1
                continue
            slot = self._batches[reference].descriptor.slot_end
            count += 1
        return count

    cdef int drop(self, uint32_t reference) except -1:
        """Forget an uncommitted batch."""
        cdef Batch* batch = self.at(reference)
        cdef uint64_t mask = self.slot_capacity - 1
        if batch.status == SLOT_COMMITTED:
            raise InvariantError(
                f"a committed batch [{batch.descriptor.slot_begin}, {batch.descriptor.slot_end}) would be dropped"
            )
        fp_fill_u8(self._status, mask, batch.descriptor.slot_begin, batch.descriptor.slot_end, SLOT_EMPTY)
        fp_fill_u64(self._ballots, mask, batch.descriptor.slot_begin, batch.descriptor.slot_end, 0)
        self._release(reference)
        return 0

    cdef int _release(self, uint32_t reference) except -1:
        cdef Batch* batch = self.at(reference)
        cdef PyObject* owner = batch.owner
        self.block_bytes -= batch.descriptor.block_bytes
        self.batch_count -= 1
        batch.status = SLOT_EMPTY
        batch.owner = NULL
        batch.next_free = self._free_head
        self._free_head = reference
        Py_DECREF(<object>owner)
        return 0

    cdef int set_status(self, uint32_t reference, uint8_t status) noexcept nogil:
        cdef Batch* batch = self.at(reference)
        batch.status = status
        # hot: begin
        fp_fill_u8(self._status, self.slot_capacity - 1, batch.descriptor.slot_begin, batch.descriptor.slot_end, status)
        # hot: end
        return 0

    cdef int add_vote(self, uint32_t reference, uint32_t bit) noexcept nogil:
        cdef Batch* batch = self.at(reference)
        if not batch.votes & bit:
            batch.votes |= bit
            # hot: begin
            fp_fill_u32(
                self._votes, self.slot_capacity - 1, batch.descriptor.slot_begin, batch.descriptor.slot_end, batch.votes
            )
            # hot: end
        return 0

    cdef bint evict_first(self, slot_t commit_index, ticket_t durable_ticket) except -1:
        """Let go of the oldest batch in memory if it is committed and durable here; tell whether it went."""
        if self.memory_begin > commit_index:
            return False
        cdef uint32_t reference = self.find(self.memory_begin)
        if reference == NO_BATCH:
            raise InvariantError(f"committed slot {self.memory_begin} is missing from memory (commit {commit_index})")
        cdef Batch* batch = self.at(reference)
        if batch.status != SLOT_COMMITTED or batch.ticket > durable_ticket:
            return False
        self.memory_begin = batch.descriptor.slot_end
        self._release(reference)
        return True

    cdef int restart_at(self, slot_t slot) except -1:
        """Begin an empty window at `slot` (after recovery)."""
        if self.batch_count:
            raise InvariantError("only an empty window can be moved")
        self.memory_begin = slot
        self.slot_end_max = slot
        return 0

    @property
    def accepted_ballots(self):
        """Ballot in which each cell was accepted: uint64[slot_capacity], read-only; cell = slot % slot_capacity."""
        return _read_only(self._ballots_array)

    @property
    def batch_references(self):
        """Batch-table entry of each cell: uint32[slot_capacity], read-only; 2**32-1 = none yet."""
        return _read_only(self._refs_array)

    @property
    def vote_masks(self):
        """Votes counted for each cell: uint32[slot_capacity], read-only; the bit is the member's position."""
        return _read_only(self._votes_array)

    @property
    def status(self):
        """Status of each cell: uint8[slot_capacity], read-only; 0 empty, 1 accepted, 2 chosen, 3 committed."""
        return _read_only(self._status_array)

    def batches(self) -> list[tuple[int, int, int, int, int]]:
        """Return (slot_begin, slot_end, ballot, value_crc, status) of every batch in memory, by slot."""
        found = []
        cdef uint32_t index
        cdef Batch* batch
        for index in range(self.batch_capacity):
            batch = &self._batches[index]
            if batch.status != SLOT_EMPTY:
                found.append((batch.descriptor.slot_begin, batch.descriptor.slot_end, batch.descriptor.ballot,
                              batch.descriptor.value_crc, batch.status))
        return sorted(found)


cdef object _read_only(object array):
    view = array.view()
    view.flags.writeable = False
    return view
