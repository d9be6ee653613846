"""The slot window: a ring of preallocated slot arrays and the table of the batches that stand in them."""

from cpython.ref cimport PyObject

from fastpaxos_core.types cimport BatchDescriptor, ballot_t, slot_t, ticket_t, uint8_t, uint32_t, uint64_t

cdef enum:
    NO_BATCH = 0xFFFFFFFF
    SLOT_EMPTY = 0
    SLOT_ACCEPTED = 1            # accepted here in accepted_ballot
    SLOT_CHOSEN = 2              # leader only: a Phase 2 quorum accepted it, an earlier slot is still open
    SLOT_COMMITTED = 3

# One batch in memory. `owner` is a strong reference to the bytes object that holds the block.
cdef struct Batch:
    BatchDescriptor descriptor
    ticket_t ticket              # durable here once the journal's durable ticket reaches it
    uint32_t votes               # leader only: bit per member that durably accepted it in this ballot
    uint32_t next_free
    uint8_t status               # SLOT_*; SLOT_EMPTY marks a free entry
    PyObject* owner
    size_t block_offset          # of the block inside owner

cdef class SlotWindow:
    # Ownership: the NumPy arrays own the ring's memory, the raw pointers borrow it; the batch table is allocated here.
    cdef object _ballots_array, _refs_array, _votes_array, _status_array
    cdef ballot_t* _ballots
    cdef uint32_t* _refs
    cdef uint32_t* _votes
    cdef uint8_t* _status
    cdef Batch* _batches
    cdef uint32_t _free_head
    cdef readonly uint64_t slot_capacity     # ring cells, a power of two
    cdef readonly uint32_t batch_capacity
    cdef readonly uint32_t batch_count
    cdef readonly slot_t memory_begin        # first slot whose batch is still in memory
    cdef readonly slot_t slot_end_max        # one past the highest slot that holds a batch
    cdef readonly uint64_t block_bytes       # sum of the blocks in memory

    cdef Batch* at(self, uint32_t reference) noexcept nogil
    cdef uint32_t find(self, slot_t slot) noexcept nogil
    cdef uint32_t place(self, const BatchDescriptor* descriptor, object owner, size_t block_offset, ticket_t ticket,
                        uint8_t status) except? 0xFFFFFFFF
    cdef int drop_overlapping(self, slot_t slot_begin, slot_t slot_end, ballot_t ballot) except -1
    cdef uint32_t count_overlapping(self, slot_t slot_begin, slot_t slot_end) noexcept nogil
    cdef int drop(self, uint32_t reference) except -1
    cdef int set_status(self, uint32_t reference, uint8_t status) noexcept nogil
    cdef int add_vote(self, uint32_t reference, uint32_t bit) noexcept nogil
    cdef bint evict_first(self, slot_t commit_index, ticket_t durable_ticket) except -1
    cdef int restart_at(self, slot_t slot) except -1
    cdef int _release(self, uint32_t reference) except -1
