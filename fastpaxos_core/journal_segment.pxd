"""One segment file of the journal, for reading."""

from fastpaxos_core.journal_format cimport SegmentHeader, WriteHeader
from fastpaxos_core.types cimport uint8_t, uint64_t


# Ownership: the buffer is a bytes object of about 1 MiB; pointers into it are valid until the next fetch or check.
cdef class SegmentFile:
    cdef object directory
    cdef readonly str name
    cdef SegmentHeader header
    cdef uint64_t file_size
    cdef uint64_t end                          # nothing is read at or behind it
    cdef bint is_cut                           # `end` was named by a later start
    cdef bint is_cut_unknown                   # the promised ballot was unknown at that start
    cdef bint missing_before                   # the segment that should stand before it is gone
    cdef uint64_t writes
    cdef bytes buffer
    cdef uint64_t buffer_offset
    cdef int load_header(self, directory, uint64_t number, list problems) except -1
    cdef int check_numbers(self) except -1
    cdef const uint8_t* fetch(self, uint64_t offset, size_t length) except? NULL
    cdef int check(self, uint64_t offset, uint64_t incarnation, WriteHeader* header) except -1
    cdef uint64_t find_write(self, uint64_t offset, uint64_t incarnation, uint64_t number,
                             WriteHeader* header) except? 0
    cdef bint is_zero(self, uint64_t offset) except -1
