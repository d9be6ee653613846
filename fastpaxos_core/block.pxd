"""Layout of a block, the client's encoding of many commands (docs/protocol.md, "Block")."""

from fastpaxos_core.types cimport int64_t, sequence_t, session_id_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "crc32c.h" nogil:
    # Chainable: fp_crc32c(fp_crc32c(0, a, n), b, m) is the CRC32C of a followed by b.
    uint32_t fp_crc32c(uint32_t crc, const void* data, size_t size)

cdef enum:
    BLOCK_VERSION = 1
    BLOCK_HEADER_BYTES = 40
    BLOCK_COMMANDS = 0           # kind: client commands
    BLOCK_NOOP = 1               # kind: fills a gap; command_count slots, no payload
    BLOCK_CONTROL = 2            # kind: one control entry, payload is a msgpack map
    BLOCK_UNIFORM_LENGTH = 1     # flag: all commands have payload_bytes / command_count bytes, no length array
    BLOCK_FLAGS_KNOWN = 1

cdef packed struct BlockHeader:
    uint8_t version
    uint8_t kind
    uint16_t flags
    uint32_t crc                 # CRC32C of the whole block without these four bytes
    uint32_t command_count
    uint32_t payload_bytes
    uint64_t session_id
    uint64_t first_sequence
    uint64_t acknowledged_below  # the client has the results of every sequence below this one

# Parses and checks one block at data[0:size]. Returns 0, or a negative BLOCK_BAD_* code; no exception, no GIL.
# verify_crc=0 skips only the checksum.
cdef enum:
    BLOCK_BAD_SIZE = -1          # shorter than its header, or lengths do not add up to size
    BLOCK_BAD_VERSION = -2       # unknown version, kind or flag
    BLOCK_BAD_COUNT = -3         # zero commands, or lengths inconsistent with payload_bytes
    BLOCK_BAD_CRC = -4
cdef int block_check(const uint8_t* data, size_t size, BlockHeader* header, bint verify_crc) noexcept nogil

# CRC32C(slot_begin, slot_end, timestamp_ns, block_crc): identifies a value (docs/protocol.md, "Value CRC").
cpdef uint32_t value_crc(uint64_t slot_begin, uint64_t slot_end, int64_t timestamp_ns,
                         uint32_t block_crc) noexcept nogil

# A read-only sequence of the commands of one block.
# Ownership: holds a reference to the object that owns the bytes, and its Py_buffer, as long as it lives.
cdef class BlockView:
    cdef object _owner
    cdef Py_buffer _buffer
    cdef const uint8_t* _data            # first byte of the block
    cdef size_t _size
    cdef BlockHeader _header
    cdef const uint8_t* _lengths         # unaligned uint32 array, NULL when uniform
    cdef const uint8_t* _payload
    cdef uint32_t _uniform_length
    cdef uint64_t* _offsets              # lazily built prefix sums when not uniform, NULL before
    @staticmethod
    cdef BlockView from_owner(object owner, size_t offset, size_t size)   # block already checked
