"""The state that the writes of a journal add up to."""

from fastpaxos_core.journal_index cimport JournalIndex
from fastpaxos_core.types cimport BatchDescriptor, ballot_t, slot_t, uint64_t

cdef struct Located:
    BatchDescriptor descriptor
    uint64_t segment_number
    uint64_t offset                            # of the block in its segment


# Ownership: `located` is malloc'd; [first, first + count) are the batches above commit_index, by slot.
cdef class Replay:
    cdef readonly JournalIndex index
    cdef readonly list unknown                 # half-open slot ranges, by slot
    cdef readonly slot_t commit_index
    cdef ballot_t promised_ballot
    cdef bint promised_known
    cdef bint bound_is_open                    # what is unknown has no end yet: the next write of this boot bounds it
    cdef Located* located
    cdef Py_ssize_t first
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef int replay_header(self, ballot_t promised_ballot, bint promised_known, slot_t commit_index) except -1
    cdef int replay_write(self, bytes head, uint64_t segment_number, uint64_t offset) except -1
    cdef int close_bound(self) except -1
    cdef int replay_batch(self, const BatchDescriptor* descriptor, uint64_t segment_number, uint64_t offset) except -1
    cdef int replay_corrupt_place(self, uint64_t segment_number) except -1
    cdef int make_room(self, Py_ssize_t begin, Py_ssize_t end) except -1
    cdef int raise_commit_index(self, slot_t commit_index) except -1
    cdef list load_batches(self, directory, list problems, bytes tail, uint64_t tail_segment, uint64_t tail_offset)
