"""What stands in the journal: segment headers, heads of writes, batches (docs/protocol.md, "Journal").

The checksum of a head covers incarnation, segment and offset, so that recycled and misdirected bytes are seen. Blocks
are covered by their own checksum and bound to their slots by the value CRC of the descriptor.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from fastpaxos_core.block cimport BlockHeader, block_check, value_crc
from fastpaxos_core.types cimport BATCH_COMMITTED, NUMBER_BITS


cdef extern from "crc32c.h":
    uint32_t fp_crc32c(uint32_t crc, const void* data, size_t size) noexcept nogil


cdef uint64_t SEGMENT_MAGIC = 0x3130474553585046        # "FPXSEG01"


cdef uint32_t write_crc(uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                        const uint8_t* head, size_t head_bytes) noexcept nogil:
    cdef uint64_t[3] place
    cdef uint32_t crc
    place[0] = incarnation
    place[1] = segment_number
    place[2] = offset
    crc = fp_crc32c(0, <const void*>place, sizeof(place))
    crc = fp_crc32c(crc, head, 8)
    return fp_crc32c(crc, head + 12, head_bytes - 12)


cdef int write_check(const uint8_t* data, size_t size, uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                     uint64_t segment_bytes, WriteHeader* header) noexcept nogil:
    cdef uint64_t head_bytes, block_bytes, index
    cdef const BatchDescriptor* descriptor
    if size < WRITE_HEADER_BYTES:
        return -1
    memcpy(header, data, WRITE_HEADER_BYTES)
    if header.magic != WRITE_MAGIC or offset > segment_bytes:
        return 0
    head_bytes = WRITE_HEADER_BYTES + <uint64_t>header.descriptor_count * DESCRIPTOR_BYTES
    if header.total_bytes < head_bytes or header.total_bytes > segment_bytes - offset:
        return 0
    if size < head_bytes:
        return -1
    if write_crc(incarnation, segment_number, offset, data, head_bytes) != header.crc:
        return 0
    if (header.version != WRITE_VERSION or header.kind > WRITE_MARKER or header.flags & ~WRITE_FLAGS_KNOWN
            or header.reserved != 0):
        return -2
    if header.write_number == 0 or (
            header.write_number | header.durable_write_number | header.commit_index) >> NUMBER_BITS:
        return 0
    block_bytes = 0
    for index in range(header.descriptor_count):
        descriptor = <const BatchDescriptor*>(data + WRITE_HEADER_BYTES + index * DESCRIPTOR_BYTES)
        if descriptor.flags & ~<uint32_t>BATCH_COMMITTED or descriptor.reserved:
            return -2
        if (descriptor.slot_begin == 0 or descriptor.slot_begin >= descriptor.slot_end
                or descriptor.slot_end >> NUMBER_BITS):
            return 0
        block_bytes += descriptor.block_bytes
    return header.total_bytes == head_bytes + block_bytes


cdef bint block_matches(const BatchDescriptor* descriptor, const uint8_t* block) noexcept nogil:
    cdef BlockHeader header
    if block_check(block, descriptor.block_bytes, &header, True) != 0:
        return False
    return descriptor.value_crc == value_crc(
        descriptor.slot_begin, descriptor.slot_end, descriptor.timestamp_ns, header.crc
    )


cdef uint64_t padded_bytes(uint64_t total_bytes) noexcept nogil:
    return (total_bytes + WRITE_ALIGNMENT - 1) // WRITE_ALIGNMENT * WRITE_ALIGNMENT


cdef uint32_t segment_header_crc(const uint8_t* data) noexcept nogil:
    return fp_crc32c(fp_crc32c(0, data, 12), data + 16, SEGMENT_HEADER_BYTES - 16)


cdef bytes encode_segment_header(SegmentHeader* header):
    cdef bytes data = PyBytes_FromStringAndSize(NULL, SEGMENT_FIRST_OFFSET)
    cdef uint8_t* copy = <uint8_t*>PyBytes_AS_STRING(data)
    cdef uint32_t crc
    memset(copy, 0, SEGMENT_FIRST_OFFSET)
    header.magic = SEGMENT_MAGIC
    header.version = SEGMENT_VERSION
    header.crc = 0
    memcpy(copy, header, sizeof(SegmentHeader))
    crc = segment_header_crc(copy)
    (<SegmentHeader*>copy).crc = crc
    memcpy(copy + SEGMENT_HEADER_BYTES, copy, SEGMENT_HEADER_BYTES)
    return data


cdef bint decode_segment_header(const uint8_t* data, SegmentHeader* header) noexcept nogil:
    memcpy(header, data, sizeof(SegmentHeader))
    return header.magic == SEGMENT_MAGIC and header.crc == segment_header_crc(data)


cdef str segment_name_of(uint64_t segment_number):
    return f"journal-{segment_number:016x}.segment"


cdef class StoredBatch:
    """A batch and where its block stands: `owner[offset:offset + block_bytes]`. Keeps `owner` alive."""

    @staticmethod
    cdef StoredBatch make(const BatchDescriptor* descriptor, bytes owner, size_t offset):
        cdef StoredBatch batch = StoredBatch.__new__(StoredBatch)
        batch.descriptor = descriptor[0]
        batch.owner = owner
        batch.offset = offset
        return batch

    @property
    def slot_begin(self) -> int:
        """First slot."""
        return self.descriptor.slot_begin

    @property
    def slot_end(self) -> int:
        """One past the last slot."""
        return self.descriptor.slot_end

    @property
    def ballot(self) -> int:
        """Ballot in which it was accepted; only informative when `committed`."""
        return self.descriptor.ballot

    @property
    def timestamp_ns(self) -> int:
        """UTC nanoseconds given by the leader that first proposed it."""
        return self.descriptor.timestamp_ns

    @property
    def value_crc(self) -> int:
        """Names the value: CRC32C over slots, timestamp and the block's own CRC."""
        return self.descriptor.value_crc

    @property
    def committed(self) -> bool:
        """True when it was learned as chosen instead of being accepted."""
        return bool(self.descriptor.flags & BATCH_COMMITTED)

    @property
    def block_bytes(self) -> int:
        """Length of the block."""
        return self.descriptor.block_bytes

    @property
    def block(self) -> bytes:
        """A copy of the block."""
        return bytes(self.owner[self.offset:self.offset + self.descriptor.block_bytes])

    def __repr__(self) -> str:
        return (f"StoredBatch([{self.descriptor.slot_begin}, {self.descriptor.slot_end}), "
                f"ballot={self.descriptor.ballot:#x}, value_crc={self.descriptor.value_crc:#010x}, "
                f"committed={self.committed})")
