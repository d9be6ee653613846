"""Live side of the journal, the write-ahead log (docs/protocol.md, "Journal").

A write is one group commit. Its number is its ticket: what was appended before `seal` is durable once that ticket is.
Writes must reach the disk strictly one after the other, each synced before the next one begins; only a marker is not
synced by itself. Recovery rests on that order: a good write proves that every write before it was durable.
"""

from fastpaxos_core.journal_format cimport StoredBatch, WriteHeader
from fastpaxos_core.journal_index cimport JournalIndex
from fastpaxos_core.types cimport BatchDescriptor, ballot_t, slot_t, ticket_t, uint8_t, uint32_t, uint64_t

cdef enum:
    READ_PENDING = 0                # not parsed yet
    READ_FOUND = 1
    READ_ABSENT = 2                 # this piece holds nothing for the slot: an earlier one may
    READ_CORRUPT = 3                # it did, unreadably: only the very same value may be taken from an earlier one


# One sealed group commit: what to write where, and what to create before.
cdef class JournalWrite:
    cdef readonly ticket_t ticket
    cdef readonly uint64_t segment_number
    cdef readonly str segment_name
    cdef readonly uint64_t segment_bytes     # size of that segment's file
    cdef readonly uint64_t offset
    cdef readonly list buffers               # bytes-like objects, together nbytes
    cdef readonly size_t nbytes              # a multiple of 512
    cdef readonly bint is_marker
    cdef readonly bint needs_sync
    cdef readonly object new_segment         # None or (name, header_bytes, size): create it first, durably
    cdef slot_t slot_min                     # over its batches; slot_min > slot_max when it has none
    cdef slot_t slot_max
    cdef list refills                        # None or [(slot_min, slot_max)] of batches far behind, written again


# One piece to read: length bytes at offset of segment_name, for the batches from slot on.
cdef class JournalRead:
    cdef readonly str segment_name
    cdef readonly uint64_t segment_number
    cdef readonly uint64_t offset
    cdef readonly size_t length
    cdef readonly slot_t slot
    cdef readonly Py_ssize_t position        # of the index entry
    cdef int outcome                         # READ_*
    cdef bint has_wanted                     # a later record of this slot was corrupt: only its value will do
    cdef BatchDescriptor wanted


cdef class Journal:
    # read-only facts
    cdef readonly uint64_t node_id
    cdef readonly uint64_t incarnation
    cdef readonly uint64_t boot
    cdef readonly uint64_t segment_bytes     # of an ordinary segment
    cdef readonly ticket_t next_ticket       # ticket of whatever is appended now
    cdef readonly ticket_t durable_ticket    # last ticket known durable
    cdef readonly bint has_pending           # something waits for `seal`
    cdef readonly size_t pending_bytes       # blocks and descriptors that wait for `seal`
    cdef readonly uint64_t journal_bytes     # headers and writes of all segments, sealed so far
    cdef public bint promised_known          # False: the disk lost promises; written down with every write
    cdef readonly JournalIndex index
    # position of the next write
    cdef readonly uint64_t segment_number
    cdef uint64_t segment_size
    cdef uint64_t offset
    # what waits for `seal`
    cdef BatchDescriptor* pending
    cdef size_t pending_count
    cdef size_t pending_capacity
    cdef size_t* pending_offsets
    cdef list pending_owners
    # what is sealed and not yet durable, oldest first
    cdef object in_flight
    cdef ticket_t named_ticket               # highest durable ticket that a sealed header names
    cdef bint last_was_marker
    cdef ticket_t synced_ticket              # last write that was synced; markers only move durable_ticket
    cdef ballot_t sealed_promised_ballot     # of the last sealed write; neither ever falls
    cdef slot_t sealed_commit_index
    cdef list pending_refills

    # Appends a batch; it is durable with ticket `next_ticket`. Keeps a reference to `owner` until the write is dropped.
    cdef int append_batch(self, const BatchDescriptor* descriptor, bytes owner, size_t block_offset) except -1
    cdef bint has_pending_c(self) noexcept nogil
    cpdef int touch(self) except -1                                   # a write is needed although no batch is
    cpdef JournalWrite seal(self, ballot_t promised_ballot, slot_t commit_index)      # None when nothing is pending
    cpdef JournalWrite marker(self, ballot_t promised_ballot, slot_t commit_index)    # None when nothing needs one
    cpdef int synced(self, ticket_t ticket) except -1
    cpdef JournalRead locate(self, slot_t slot, JournalRead before=*)                 # None when no record covers slot
    cpdef list parse(self, JournalRead read, bytes data)              # list[StoredBatch], empty: not readable here
    cdef int _add_to_index(self, JournalWrite write) except -1
    cdef int find_unsynced(self, slot_t* slot_min, slot_t* slot_max) except -1
    cdef int reserve_pending(self) except -1
    cdef list build_buffers(self, WriteHeader* header, size_t padded)
    cdef bytes build_run(self, WriteHeader* header, size_t first, size_t last, size_t padding)
    cdef JournalWrite build_write(self, uint8_t kind, ballot_t promised_ballot, slot_t commit_index)
    cdef tuple start_segment(self, size_t padded)
