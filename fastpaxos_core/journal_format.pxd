"""Layouts of the journal (docs/protocol.md, "Journal")."""

from fastpaxos_core.types cimport BatchDescriptor, uint8_t, uint16_t, uint32_t, uint64_t

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


# A batch with its block at owner[offset:offset + descriptor.block_bytes].
# Ownership: keeps `owner` alive; the block is not copied.
cdef class StoredBatch:
    cdef BatchDescriptor descriptor
    cdef readonly object owner
    cdef readonly size_t offset

    @staticmethod
    cdef StoredBatch make(const BatchDescriptor* descriptor, bytes owner, size_t offset)


cdef uint32_t write_crc(uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                        const uint8_t* head, size_t head_bytes) noexcept nogil
# Judges the write at data[0:size], which stands at `offset` of the segment. 1 good, 0 bad, -1 more bytes needed (the
# head is longer than size), -2 good but of an unknown version, kind or flag.
cdef int write_check(const uint8_t* data, size_t size, uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                     uint64_t segment_bytes, WriteHeader* header) noexcept nogil
# Checks the block of a batch against its descriptor: its own CRC and the value CRC.
cdef bint block_matches(const BatchDescriptor* descriptor, const uint8_t* block) noexcept nogil
# Bytes that a write of total_bytes takes up.
cdef uint64_t padded_bytes(uint64_t total_bytes) noexcept nogil
cdef bytes encode_segment_header(SegmentHeader* header)               # both copies, 1024 bytes
cdef bint decode_segment_header(const uint8_t* data, SegmentHeader* header) noexcept nogil
cdef str segment_name_of(uint64_t segment_number)
