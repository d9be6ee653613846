"""Frame header, frame splitter and frame writer (docs/protocol.md, "Frame")."""

from fastpaxos_core.types cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    FRAME_MAGIC = 0x31585046     # b"FPX1"
    FRAME_VERSION = 1
    FRAME_HEADER_BYTES = 64
    # replica to replica, hot
    FRAME_PREPARE = 1
    FRAME_PROMISE = 2
    FRAME_ACCEPT = 3
    FRAME_ACCEPTED = 4
    FRAME_NACK = 5
    FRAME_COMMIT = 6
    FRAME_HEARTBEAT = 7
    FRAME_HEARTBEAT_REPLY = 8
    FRAME_FETCH = 9
    FRAME_LEARN = 10
    # client
    FRAME_SUBMIT = 20
    FRAME_REPLY = 21
    FRAME_QUERY = 22
    FRAME_QUERY_REPLY = 23
    # msgpack maps
    FRAME_HELLO = 40
    FRAME_CONTROL = 41

cdef packed struct FrameHeader:
    uint32_t magic
    uint8_t version
    uint8_t type
    uint16_t flags               # unknown flags are refused; none is defined yet
    uint32_t crc                 # CRC32C of this header without these four bytes, then the head
    uint32_t head_bytes          # covered by crc
    uint32_t body_bytes          # blocks or results: covered by their own CRCs
    uint32_t group_id
    uint8_t cluster_id[16]       # zeros before founding
    uint64_t incarnation         # of the sender; a client's random id
    uint32_t boot                # of the sender; 0 for clients
    uint16_t sender              # node id; 0 for clients
    uint16_t reserved
    uint64_t ballot              # meaning depends on type; 0 where it has none

# One whole, checked frame. head and body are bytes objects of their own (body is b"" when there is none).
cdef class Frame:
    cdef readonly int type
    cdef readonly int flags
    cdef readonly uint32_t group_id
    cdef readonly bytes cluster_id
    cdef readonly uint64_t incarnation
    cdef readonly uint32_t boot
    cdef readonly int sender
    cdef readonly uint64_t ballot
    cdef readonly bytes head
    cdef readonly bytes body

# Makes frames on behalf of one sender.
cdef class FrameWriter:
    cdef FrameHeader _template
    # Returns header + head as one bytes object; the caller sends body_bytes bytes of body right behind it.
    cdef bytes encode_c(self, int frame_type, uint64_t ballot, const uint8_t* head, size_t head_bytes,
                        size_t body_bytes)
