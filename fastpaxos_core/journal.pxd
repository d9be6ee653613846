"""Formats and live side of the journal, the write-ahead log (docs/protocol.md, "Journal").

A write is one group commit. Its number is its ticket: whatever was appended before `seal` is durable once that ticket is.
Writes must reach the disk strictly one after the other, each synced before the next one begins; only a marker is not
synced by itself. Recovery rests on that order: a good write proves that every write before it was durable.
"""

from fastpaxos_core.types cimport (
    BatchDescriptor, ballot_t, slot_t, ticket_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)

cdef enum:
    SEGMENT_VERSION = 1
    SEGMENT_HEADER_BYTES = 512
    SEGMENT_FIRST_OFFSET = 1024     # two copies of the header, then the first write
    SEGMENT_START = 1               # flag: made by a start of the node; cut_segment and cut_offset end what was before
    SEGMENT_AFTER_MARKER = 2        # flag: the write before the first one of this segment was a marker
    SEGMENT_PROMISE_UNKNOWN = 4     # flag: promised_ballot is only a lower bound
    SEGMENT_FLAGS_KNOWN = 7
    WRITE_MAGIC = 0x574A5046        # "FPJW"
    WRITE_VERSION = 1
    WRITE_HEADER_BYTES = 64
    WRITE_ALIGNMENT = 512
    WRITE_BATCHES = 0               # kind
    WRITE_MARKER = 1                # kind: names the durable point, holds no batches, is not synced by itself
    WRITE_AFTER_MARKER = 1          # flag: the write before this one was a marker, it may be missing
    WRITE_PROMISE_UNKNOWN = 2       # flag: promised_ballot is only a lower bound
    WRITE_FLAGS_KNOWN = 3
    DESCRIPTOR_BYTES = 48

cdef packed struct SegmentHeader:
    uint64_t magic                  # "FPXSEG01"
    uint16_t version
    uint16_t flags
    uint32_t crc                    # CRC32C of the 512 bytes without these four
    uint64_t node_id
    uint64_t incarnation
    uint64_t boot
    uint64_t segment_number
    uint64_t segment_bytes          # size of the file from the start; a shorter file was truncated
    uint64_t first_write_number
    uint64_t durable_write_number   # every write up to this one was durable when the header was written
    uint64_t cut_segment            # SEGMENT_START: last segment before this one that is read, 0 = none
    uint64_t cut_offset             # SEGMENT_START: nothing at or behind this offset of cut_segment is read again
    uint64_t promised_ballot
    uint64_t commit_index

cdef packed struct WriteHeader:
    uint32_t magic
    uint8_t version
    uint8_t kind
    uint16_t flags
    uint32_t crc                    # CRC32C of incarnation, segment number, offset; header without crc; descriptors
    uint32_t descriptor_count
    uint64_t total_bytes            # header + descriptors + blocks, without the padding to 512
    uint64_t write_number
    uint64_t durable_write_number   # last write known durable when this one was sealed
    uint64_t promised_ballot
    uint64_t commit_index           # every batch up to this slot is in the journal before or in this write
    uint64_t reserved

# One piece of the journal that is read back at once. 48 bytes.
cdef struct IndexEntry:
    uint64_t segment_number
    uint32_t sector                 # offset / 512
    uint32_t sector_count           # 0: a corrupt place, whatever stood there cannot be read
    uint64_t slot_min
    uint64_t slot_max               # inclusive
    uint64_t suffix_slot_min        # minimum of slot_min over this and all later entries
    uint64_t prefix_slot_max        # maximum of slot_max over this and all earlier entries

cdef enum:
    READ_PENDING = 0                # not parsed yet
    READ_FOUND = 1
    READ_ABSENT = 2                 # this piece holds nothing for the slot: an earlier one may
    READ_CORRUPT = 3                # it did, and cannot be read: only the very same value may be taken from an earlier one


# A batch with its block at owner[offset:offset + descriptor.block_bytes].
# Ownership: keeps `owner` alive; the block is not copied.
cdef class StoredBatch:
    cdef BatchDescriptor descriptor
    cdef readonly object owner
    cdef readonly size_t offset
    @staticmethod
    cdef StoredBatch make(const BatchDescriptor* descriptor, bytes owner, size_t offset)


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


cdef class JournalIndex:
    cdef IndexEntry* entries
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef readonly uint64_t entry_bytes_min
    cdef bint closed                         # the last entry takes no further writes
    cdef int add(self, uint64_t segment_number, uint64_t offset, uint64_t nbytes, slot_t slot_min,
                 slot_t slot_max) except -1
    cdef int add_corrupt(self, uint64_t segment_number, slot_t slot_min) except -1
    cdef int add_refill(self, uint64_t segment_number, uint64_t offset, uint64_t nbytes, slot_t slot_min,
                        slot_t slot_max) except -1
    cdef int add_write(self, JournalWrite write) except -1
    cdef int _spread(self, slot_t slot_min) except -1
    cdef int grow(self) except -1
    cdef Py_ssize_t find(self, slot_t slot, Py_ssize_t before) noexcept nogil      # -1 when there is none
    cdef bint is_superseded(self, Py_ssize_t position, slot_t slot_begin, slot_t slot_end) noexcept nogil


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
    cdef readonly uint64_t journal_bytes     # header and writes of all segments, sealed so far
    cdef public bint promised_known          # False: the disk lost promises; written down with every write
    cdef readonly JournalIndex index
    # position of the next write
    cdef uint64_t segment_number
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
    cdef int find_unsynced(self, slot_t* slot_min, slot_t* slot_max) except -1
    cdef int reserve_pending(self) except -1
    cdef list build_buffers(self, WriteHeader* header, size_t padded)
    cdef bytes build_run(self, WriteHeader* header, size_t first, size_t last, size_t padding)
    cdef JournalWrite build_write(self, uint8_t kind, ballot_t promised_ballot, slot_t commit_index)
    cdef tuple start_segment(self, size_t padded)


cdef uint32_t write_crc(uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                        const uint8_t* head, size_t head_bytes) noexcept nogil
# Judges the write at data[0:size], which stands at `offset` of the segment. 1 good, 0 bad, -1 more bytes needed (the
# head is longer than size), -2 good but of an unknown version, kind or flag.
cdef int write_check(const uint8_t* data, size_t size, uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                     uint64_t segment_bytes, WriteHeader* header) noexcept nogil
# Checks the block of a batch against its descriptor: its own CRC and the value CRC.
cdef bint block_matches(const BatchDescriptor* descriptor, const uint8_t* block) noexcept nogil
cdef bytes encode_segment_header(SegmentHeader* header)               # both copies, 1024 bytes
cdef bint decode_segment_header(const uint8_t* data, SegmentHeader* header) noexcept nogil
cdef str segment_name_of(uint64_t segment_number)
