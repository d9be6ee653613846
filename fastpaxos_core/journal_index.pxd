"""Which piece of the journal covers a slot; which batches stand in a piece."""

from fastpaxos_core.types cimport BatchDescriptor, slot_t, uint8_t, uint32_t, uint64_t

# One piece of the journal that is read back at once. 48 bytes.
cdef struct IndexEntry:
    uint64_t segment_number
    uint32_t sector                 # offset / 512
    uint32_t sector_count           # 0: a corrupt place, whatever stood there cannot be read
    uint64_t slot_min
    uint64_t slot_max               # inclusive
    uint64_t suffix_slot_min        # minimum of slot_min over this and all later entries
    uint64_t prefix_slot_max        # maximum of slot_max over this and all earlier entries


cdef class JournalIndex:
    cdef IndexEntry* entries
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef public uint64_t entry_bytes_min
    cdef bint closed                         # the last entry takes no further writes
    cdef int add(self, uint64_t segment_number, uint64_t offset, uint64_t nbytes, slot_t slot_min,
                 slot_t slot_max) except -1
    cdef int add_corrupt(self, uint64_t segment_number, slot_t slot_min) except -1
    cdef int add_refill(self, uint64_t segment_number, uint64_t offset, uint64_t nbytes, slot_t slot_min,
                        slot_t slot_max) except -1
    cdef int _spread(self, slot_t slot_min) except -1
    cdef int grow(self) except -1
    cdef Py_ssize_t find(self, slot_t slot, Py_ssize_t before) noexcept nogil      # -1 when there is none
    cdef bint is_superseded(self, Py_ssize_t position, slot_t slot_begin, slot_t slot_end) noexcept nogil


# The batches of one piece, in journal order.
cdef class Piece:
    cdef BatchDescriptor* descriptors
    cdef size_t* offsets                     # of their blocks in the data
    cdef uint64_t* suffix_slot_begin         # minimum of slot_begin over this and all later batches
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef bint has_gap                        # a write in it is unreadable; only what follows the last gap is listed
    cdef int scan(self, bytes data, uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                  size_t length) except -1
    cdef int add(self, const uint8_t* head, size_t position, uint32_t descriptor_count) except -1
    cdef Py_ssize_t find(self, slot_t slot) noexcept nogil                         # -1 when there is none
    cdef bint is_superseded(self, Py_ssize_t record) noexcept nogil
    cdef bint is_readable(self, Py_ssize_t record, bytes data) noexcept
    cdef Py_ssize_t find_value(self, const BatchDescriptor* wanted, bytes data) noexcept   # -1 when there is none
