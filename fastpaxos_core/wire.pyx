"""Frames: what stands on a connection. A splitter takes bytes in, a writer makes bytes; neither knows sockets.

The layouts of the frame and of the client messages are in docs/protocol.md, "Frame". Nothing here is unpickled or
evaluated, and every length is judged before memory is allocated for it.
"""

import enum
from typing import NamedTuple

import cython

from fastpaxos_core.errors import FrameError
from fastpaxos_core.mapping import pack_mapping, unpack_mapping

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp, memcpy, memset

from fastpaxos_core.block cimport fp_crc32c
from fastpaxos_core.types cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    CLUSTER_BYTES = 16
    CRC_OFFSET = 8               # of FrameHeader.crc, which the checksum leaves out
    CRC_END = 12
    RECEIVE_BYTES = 262144       # of a splitter's receive buffer
    LARGE_BYTES = 32768          # so much is not copied to its head when it is sent, and is received in its place
    STATUS_MAX = 11              # highest ReplyStatus

cdef uint64_t _SIZE_MAX = 0xFFFFFFFF
cdef uint64_t _KNOWN_TYPES = (
    (<uint64_t>1 << FRAME_PREPARE) | (<uint64_t>1 << FRAME_PROMISE) | (<uint64_t>1 << FRAME_ACCEPT)
    | (<uint64_t>1 << FRAME_ACCEPTED) | (<uint64_t>1 << FRAME_NACK) | (<uint64_t>1 << FRAME_COMMIT)
    | (<uint64_t>1 << FRAME_HEARTBEAT) | (<uint64_t>1 << FRAME_HEARTBEAT_REPLY) | (<uint64_t>1 << FRAME_FETCH)
    | (<uint64_t>1 << FRAME_LEARN) | (<uint64_t>1 << FRAME_SUBMIT) | (<uint64_t>1 << FRAME_REPLY)
    | (<uint64_t>1 << FRAME_QUERY) | (<uint64_t>1 << FRAME_QUERY_REPLY) | (<uint64_t>1 << FRAME_HELLO)
    | (<uint64_t>1 << FRAME_CONTROL)
)
cdef bytes _EMPTY = b""
cdef bytes _NO_CLUSTER = bytes(CLUSTER_BYTES)


class FrameType(enum.IntEnum):
    """What a frame is. 1 to 10 go between replicas, 20 to 23 between client and node, 40 and 41 carry msgpack maps."""

    PREPARE = FRAME_PREPARE
    PROMISE = FRAME_PROMISE
    ACCEPT = FRAME_ACCEPT
    ACCEPTED = FRAME_ACCEPTED
    NACK = FRAME_NACK
    COMMIT = FRAME_COMMIT
    HEARTBEAT = FRAME_HEARTBEAT
    HEARTBEAT_REPLY = FRAME_HEARTBEAT_REPLY
    FETCH = FRAME_FETCH
    LEARN = FRAME_LEARN
    SUBMIT = FRAME_SUBMIT
    REPLY = FRAME_REPLY
    QUERY = FRAME_QUERY
    QUERY_REPLY = FRAME_QUERY_REPLY
    HELLO = FRAME_HELLO
    CONTROL = FRAME_CONTROL


class ReplyStatus(enum.IntEnum):
    """How a node answers a block or a query.

    OK; RESULT_GONE (applied before, its result is no longer kept); SESSION_UNKNOWN (the log proves that the session is
    over or never was); NOT_LEADER; NOT_READY (the leader still recovers); BUSY; OUT_OF_ORDER (resend oldest first);
    TOO_LARGE; MALFORMED; COMMAND_ERROR (queries: the state machine raised); CLOSING; INVALID_SEQUENCE (apply refused a
    partial overlap or a gap).
    """

    OK = 0
    RESULT_GONE = 1
    SESSION_UNKNOWN = 2
    NOT_LEADER = 3
    NOT_READY = 4
    BUSY = 5
    OUT_OF_ORDER = 6
    TOO_LARGE = 7
    MALFORMED = 8
    COMMAND_ERROR = 9
    CLOSING = 10
    INVALID_SEQUENCE = 11


cdef str _type_text(int frame_type):
    try:
        return FrameType(frame_type).name
    except ValueError:
        return f"type {frame_type}"


cdef bytes _cluster_bytes(object cluster_id):
    # None, b"" and zeros all say: not founded yet.
    if cluster_id is None or len(cluster_id) == 0:
        return _NO_CLUSTER
    if not isinstance(cluster_id, bytes):
        raise TypeError(f"a cluster id is bytes, not {type(cluster_id).__name__}")
    if len(cluster_id) != CLUSTER_BYTES:
        raise ValueError(f"a cluster id has {CLUSTER_BYTES} bytes, not {len(cluster_id)}")
    return cluster_id


# ---- frames ----

@cython.freelist(64)
cdef class Frame:
    """One whole, checked frame, as a `FrameSplitter` returns it; all attributes are read-only.

    Ownership: `head` and `body` are bytes objects of their own (`b""` when there is none) and may be kept for ever.
    """

    def __cinit__(self):
        self.cluster_id = _NO_CLUSTER
        self.head = _EMPTY
        self.body = _EMPTY

    def __init__(self):
        raise TypeError("frames are made by FrameSplitter")

    def __repr__(self) -> str:
        return (f"Frame({_type_text(self.type)}, sender={self.sender}, boot={self.boot}, ballot={self.ballot}, "
                f"head={len(self.head)} bytes, body={len(self.body)} bytes)")


cdef class FrameWriter:
    """Makes frames on behalf of one sender.

    `node_id` and `boot` are 0 for clients, `incarnation` is the sender's random id. `cluster_id` is 16 bytes, or b""
    before founding, and may be set later.
    """

    def __cinit__(self, uint16_t node_id, uint64_t incarnation, uint32_t boot, cluster_id=b"", uint32_t group_id=0):
        memset(&self._template, 0, sizeof(FrameHeader))
        self._template.magic = FRAME_MAGIC
        self._template.version = FRAME_VERSION
        self._template.group_id = group_id
        self._template.incarnation = incarnation
        self._template.boot = boot
        self._template.sender = node_id
        self.cluster_id = cluster_id

    @property
    def node_id(self) -> int:
        return self._template.sender

    @property
    def incarnation(self) -> int:
        return self._template.incarnation

    @property
    def boot(self) -> int:
        return self._template.boot

    @property
    def group_id(self) -> int:
        return self._template.group_id

    @property
    def cluster_id(self) -> bytes:
        """The 16 bytes that every frame names; zeros before founding."""
        return PyBytes_FromStringAndSize(<const char*>self._template.cluster_id, CLUSTER_BYTES)

    @cluster_id.setter
    def cluster_id(self, value):
        memcpy(self._template.cluster_id, PyBytes_AS_STRING(_cluster_bytes(value)), CLUSTER_BYTES)

    cdef bytes encode_c(self, int frame_type, uint64_t ballot, const uint8_t* head, size_t head_bytes,
                        size_t body_bytes):
        return _new_frame(&self._template, frame_type, ballot, head, head_bytes, _EMPTY, 0, body_bytes)

    def encode(self, uint8_t frame_type, uint64_t ballot, bytes head not None, bytes body not None=b"") -> bytes:
        """Return one whole frame. Raises ValueError for an unknown type or a head or body above 2**32 - 1 bytes."""
        return _joined(self, frame_type, ballot, <const uint8_t*>PyBytes_AS_STRING(head),
                       <size_t>PyBytes_GET_SIZE(head), body)

    def submit(self, bytes block not None, uint64_t request_id, uint32_t deadline_ms=0) -> list[bytes]:
        """Return the buffers of a SUBMIT frame; `deadline_ms` counts from its arrival, 0 means none."""
        cdef SubmitHead head = SubmitHead(request_id=request_id, deadline_ms=deadline_ms, reserved=0)
        return _buffers(self, FRAME_SUBMIT, <const uint8_t*>&head, sizeof(head), block)

    def reply(self, uint64_t session_id, uint64_t first_sequence, uint64_t request_id, uint32_t command_count,
              uint16_t status, uint16_t leader_hint, uint64_t slot_begin, bytes results not None=b"") -> list[bytes]:
        """Return the buffers of a REPLY frame; `leader_hint` is a node id or 0, `results` a result blob or empty."""
        cdef ReplyHead head
        head.session_id = session_id
        head.first_sequence = first_sequence
        head.request_id = request_id
        head.command_count = command_count
        head.status = status
        head.leader_hint = leader_hint
        head.slot_begin = slot_begin
        head.results_crc = _crc_of(results)
        head.reserved = 0
        return _buffers(self, FRAME_REPLY, <const uint8_t*>&head, sizeof(head), results)

    def query(self, uint64_t query_id, bytes request not None, uint32_t deadline_ms=0, uint16_t read_mode=0,
              uint64_t minimum_index=0) -> bytes:
        """Return a QUERY frame; read mode 0 is linearizable, the answer reflects at least `minimum_index`."""
        cdef QueryHead head
        memset(&head, 0, sizeof(head))
        head.query_id = query_id
        head.deadline_ms = deadline_ms
        head.read_mode = read_mode
        head.minimum_index = minimum_index
        return _two_part_head(self, FRAME_QUERY, <const uint8_t*>&head, sizeof(head), request)

    def query_reply(self, uint64_t query_id, uint16_t status, uint16_t leader_hint, uint64_t read_index,
                    bytes result not None=b"") -> bytes:
        """Return a QUERY_REPLY frame; for COMMAND_ERROR the result is msgpack [type_name, message]."""
        cdef QueryReplyHead head
        memset(&head, 0, sizeof(head))
        head.query_id = query_id
        head.status = status
        head.leader_hint = leader_hint
        head.read_index = read_index
        return _two_part_head(self, FRAME_QUERY_REPLY, <const uint8_t*>&head, sizeof(head), result)

    def hello(self, mapping) -> bytes:
        """Return a HELLO frame. Raises ValueError or TypeError for a map that `parse_mapping` would refuse."""
        return self.encode(FRAME_HELLO, 0, pack_mapping(mapping))

    def control(self, mapping) -> bytes:
        """Return a CONTROL frame. Raises ValueError or TypeError for a map that `parse_mapping` would refuse."""
        return self.encode(FRAME_CONTROL, 0, pack_mapping(mapping))


cdef bytes _new_frame(const FrameHeader* template, int frame_type, uint64_t ballot, const uint8_t* head,
                      uint64_t head_bytes, bytes tail, uint64_t body_room, uint64_t body_bytes):
    # Makes header, head and `tail` (the rest of the head), then leaves `body_room` bytes for the caller to fill.
    cdef uint64_t tail_bytes = <uint64_t>PyBytes_GET_SIZE(tail)
    cdef FrameHeader header
    cdef bytes frame
    cdef uint8_t* data
    cdef uint32_t crc
    if frame_type < 0 or frame_type >= 64 or not (_KNOWN_TYPES >> frame_type) & 1:
        raise ValueError(f"frame type {frame_type} is unknown")
    if head_bytes + tail_bytes > _SIZE_MAX or body_bytes > _SIZE_MAX:
        raise ValueError(f"a frame holds {_SIZE_MAX} bytes of head and of body each, "
                         f"not {head_bytes + tail_bytes} and {body_bytes}")
    header = template[0]
    header.type = <uint8_t>frame_type
    header.ballot = ballot
    header.head_bytes = <uint32_t>(head_bytes + tail_bytes)
    header.body_bytes = <uint32_t>body_bytes
    frame = PyBytes_FromStringAndSize(
        NULL, <Py_ssize_t>(FRAME_HEADER_BYTES + head_bytes + tail_bytes + body_room))
    data = <uint8_t*>PyBytes_AS_STRING(frame)
    memcpy(data, &header, sizeof(FrameHeader))
    if head_bytes != 0:
        memcpy(data + FRAME_HEADER_BYTES, head, <size_t>head_bytes)
    memcpy(data + FRAME_HEADER_BYTES + head_bytes, PyBytes_AS_STRING(tail), <size_t>tail_bytes)
    crc = fp_crc32c(0, data, CRC_OFFSET)
    crc = fp_crc32c(crc, data + CRC_END, <size_t>(FRAME_HEADER_BYTES - CRC_END + head_bytes + tail_bytes))
    memcpy(data + CRC_OFFSET, &crc, 4)
    return frame


cdef list _buffers(FrameWriter writer, int frame_type, const uint8_t* head, size_t head_bytes, bytes body):
    if PyBytes_GET_SIZE(body) < LARGE_BYTES:
        return [_joined(writer, frame_type, 0, head, head_bytes, body)]
    return [_new_frame(&writer._template, frame_type, 0, head, head_bytes, _EMPTY, 0, PyBytes_GET_SIZE(body)), body]


cdef bytes _joined(FrameWriter writer, int frame_type, uint64_t ballot, const uint8_t* head, size_t head_bytes,
                   bytes body):
    cdef size_t body_bytes = <size_t>PyBytes_GET_SIZE(body)
    cdef bytes frame = _new_frame(&writer._template, frame_type, ballot, head, head_bytes, _EMPTY, body_bytes,
                                  body_bytes)
    memcpy(PyBytes_AS_STRING(frame) + FRAME_HEADER_BYTES + head_bytes, PyBytes_AS_STRING(body), body_bytes)
    return frame


cdef bytes _two_part_head(FrameWriter writer, int frame_type, const uint8_t* head, size_t head_bytes, bytes tail):
    return _new_frame(&writer._template, frame_type, 0, head, head_bytes, tail, 0, 0)


# ---- splitting ----

cdef class _FinalBytes:
    # Lends the memory of a bytes object that nobody else sees yet, so that a large body is received in place.
    # Ownership: a memoryview of this object keeps the bytes alive, however long the caller keeps the memoryview.
    cdef bytes _target

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, PyBytes_AS_STRING(self._target), PyBytes_GET_SIZE(self._target), 0, flags)


cdef enum:
    READ_HEADER = 0
    READ_HEAD = 1
    READ_BODY = 2

cdef enum:
    LENT_NOTHING = 0
    LENT_BUFFER = 1
    LENT_TARGET = 2


cdef class FrameSplitter:
    """Cuts a byte stream into frames, whatever its fragments are.

    Either `feed(data)` with received bytes, or `get_buffer()`, write into it, `buffer_updated(count)`: an asyncio
    BufferedProtocol is a thin shell over the latter. A fragment may be one byte or thousands of frames.

    The head of a frame may have `head_bytes_max` bytes, its body `body_bytes_max`. With `expected_cluster` (16 bytes;
    None or b"" before founding) a frame that names another cluster is refused, and one that names none is taken only if
    it is HELLO or CONTROL.

    Errors are sticky, because the stream has lost its place: after one FrameError every later call raises it again.
    The frames before the bad one in the same fragment are dropped with it.

    Ownership: holds a receive buffer (or shares `receive_buffer` with others that never lend it at the same time) and
    the parts of at most one frame, allocated when their lengths are within the limits: memory is bounded.
    """

    cdef readonly uint32_t head_bytes_max
    cdef readonly uint32_t body_bytes_max
    cdef bytes _expected_cluster     # zeros: any
    cdef bint _is_founded
    cdef bytes _last_cluster         # of the frame before, to share one object
    cdef str _error
    cdef int _stage                  # READ_*
    cdef uint64_t _filled            # bytes of the current stage that are here
    cdef FrameHeader _header
    cdef bytes _head
    cdef bytes _body
    cdef int _lent                   # LENT_*: what get_buffer gave out last
    cdef uint64_t _lent_bytes
    cdef bytearray _receive_buffer

    def __cinit__(self, uint32_t head_bytes_max, uint32_t body_bytes_max, expected_cluster=None,
                  bytearray receive_buffer=None):
        self._receive_buffer = receive_buffer
        self.head_bytes_max = head_bytes_max
        self.body_bytes_max = body_bytes_max
        self.expected_cluster = expected_cluster
        self._last_cluster = _NO_CLUSTER
        self._stage = READ_HEADER
        self._lent = LENT_NOTHING

    @property
    def expected_cluster(self):
        """The cluster that frames must name, or None while there is none; may be set at any time."""
        return self._expected_cluster if self._is_founded else None

    @expected_cluster.setter
    def expected_cluster(self, value):
        self._expected_cluster = _cluster_bytes(value)
        self._is_founded = self._expected_cluster != _NO_CLUSTER

    @property
    def pending_bytes(self) -> int:
        """Bytes of the unfinished frame that have arrived; 0 exactly between frames."""
        if self._stage == READ_HEADER:
            return self._filled
        if self._stage == READ_HEAD:
            return FRAME_HEADER_BYTES + self._filled
        return FRAME_HEADER_BYTES + <uint64_t>self._header.head_bytes + self._filled

    def feed(self, data) -> list:
        """Take the next bytes of the stream and return the frames that are now whole. Raises FrameError."""
        cdef Py_buffer view
        self._lent = LENT_NOTHING
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return _consume(self, <const uint8_t*>view.buf, <uint64_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def get_buffer(self, size_hint=-1):
        """Return a writable memoryview for the next bytes, yours until `buffer_updated`. Raises FrameError.

        A large rest of a head or body is received straight into its final place.
        """
        cdef _FinalBytes final_bytes
        cdef bytes target = self._head if self._stage == READ_HEAD else self._body
        if self._error is not None:
            raise FrameError(self._error)
        if self._stage != READ_HEADER and <uint64_t>PyBytes_GET_SIZE(target) - self._filled >= LARGE_BYTES:
            final_bytes = _FinalBytes.__new__(_FinalBytes)
            final_bytes._target = target
            self._lent = LENT_TARGET
            self._lent_bytes = <uint64_t>PyBytes_GET_SIZE(target) - self._filled
            return memoryview(final_bytes)[self._filled :]
        if self._receive_buffer is None:
            self._receive_buffer = bytearray(RECEIVE_BYTES)
        self._lent = LENT_BUFFER
        self._lent_bytes = <uint64_t>PyByteArray_GET_SIZE(self._receive_buffer)
        return memoryview(self._receive_buffer)

    def buffer_updated(self, Py_ssize_t byte_count) -> list:
        """Take what was written into the last `get_buffer()`, as `feed`. ValueError: that is shorter, or was taken."""
        cdef int lent = self._lent
        if self._error is not None:
            raise FrameError(self._error)
        if lent == LENT_NOTHING or byte_count < 0 or <uint64_t>byte_count > self._lent_bytes:
            raise ValueError(f"buffer_updated({byte_count}) after a buffer of "
                             f"{self._lent_bytes if lent != LENT_NOTHING else 0} bytes was given out")
        self._lent = LENT_NOTHING
        if lent == LENT_TARGET:
            self._filled += <uint64_t>byte_count
            return _consume(self, NULL, 0)
        return _consume(self, <const uint8_t*>PyByteArray_AS_STRING(self._receive_buffer), <uint64_t>byte_count)


cdef int _fail(FrameSplitter splitter, str problem) except -1:
    splitter._error = problem
    splitter._head = None
    splitter._body = None
    splitter._stage = READ_HEADER
    splitter._filled = 0
    raise FrameError(problem)


cdef list _consume(FrameSplitter splitter, const uint8_t* data, uint64_t size):
    cdef list frames = []
    if splitter._error is not None:
        raise FrameError(splitter._error)
    try:
        _finish_stages(splitter, frames)
        while size != 0:
            _take_bytes(splitter, &data, &size)
            _finish_stages(splitter, frames)
    except MemoryError:
        # The frames in the list are lost to the caller, so the stream must not go on as if they had been returned.
        splitter._error = f"no memory for a frame with {splitter._header.body_bytes} body bytes"
        raise
    return frames


cdef int _take_bytes(FrameSplitter splitter, const uint8_t** data, uint64_t* size) noexcept:
    # Copies what the current stage still lacks, or all there is.
    cdef uint64_t wanted
    cdef char* target
    if splitter._stage == READ_HEADER:
        target = <char*>&splitter._header
        wanted = FRAME_HEADER_BYTES
    elif splitter._stage == READ_HEAD:
        target = PyBytes_AS_STRING(splitter._head)
        wanted = splitter._header.head_bytes
    else:
        target = PyBytes_AS_STRING(splitter._body)
        wanted = splitter._header.body_bytes
    wanted = min(wanted - splitter._filled, size[0])
    memcpy(target + splitter._filled, data[0], <size_t>wanted)
    splitter._filled += wanted
    data[0] += wanted
    size[0] -= wanted
    return 0


cdef int _finish_stages(FrameSplitter splitter, list frames) except -1:
    # Goes on through every stage that is complete; a head or body of no bytes is complete at once.
    cdef FrameHeader* header = &splitter._header
    if splitter._stage == READ_HEADER:
        _judge_header(splitter, splitter._filled)
        if splitter._filled < FRAME_HEADER_BYTES:
            return 0
        splitter._head = PyBytes_FromStringAndSize(NULL, header.head_bytes) if header.head_bytes else _EMPTY
        splitter._stage = READ_HEAD
        splitter._filled = 0
    if splitter._stage == READ_HEAD:
        if splitter._filled < header.head_bytes:
            return 0
        _judge_head(splitter)
        splitter._body = PyBytes_FromStringAndSize(NULL, header.body_bytes) if header.body_bytes else _EMPTY
        splitter._stage = READ_BODY
        splitter._filled = 0
    if splitter._filled == header.body_bytes:
        frames.append(_take_frame(splitter))
    return 0


cdef int _judge_header(FrameSplitter splitter, uint64_t available) except -1:
    # Judges each field as soon as its last byte is here, so that a stranger is refused after his first bytes.
    cdef FrameHeader* header = &splitter._header
    if available >= 4 and header.magic != FRAME_MAGIC:
        _fail(splitter, f"frame starts with {header.magic:#010x}, expected {FRAME_MAGIC:#010x} (\"FPX1\"): "
                        f"the sender does not speak this protocol")
    if available >= 5 and header.version != FRAME_VERSION:
        _fail(splitter, f"frame has version {header.version}, this build knows only version {FRAME_VERSION}")
    if available >= 6 and (header.type >= 64 or not (_KNOWN_TYPES >> header.type) & 1):
        _fail(splitter, f"frame type {header.type} is unknown")
    if available >= 8 and header.flags != 0:
        _fail(splitter, f"frame has flags {header.flags:#06x}, none is known")
    if available >= 16 and header.head_bytes > splitter.head_bytes_max:
        _fail(splitter, f"frame says {header.head_bytes} head bytes, limit is {splitter.head_bytes_max}")
    if available >= 20 and header.body_bytes > splitter.body_bytes_max:
        _fail(splitter, f"frame says {header.body_bytes} body bytes, limit is {splitter.body_bytes_max}")
    if available >= FRAME_HEADER_BYTES and header.reserved != 0:
        _fail(splitter, f"frame has reserved bits {header.reserved:#06x}, they must be 0")
    return 0


cdef int _judge_head(FrameSplitter splitter) except -1:
    cdef const uint8_t* data = <const uint8_t*>&splitter._header
    cdef uint32_t crc = fp_crc32c(0, data, CRC_OFFSET)
    crc = fp_crc32c(crc, data + CRC_END, FRAME_HEADER_BYTES - CRC_END)
    crc = fp_crc32c(crc, PyBytes_AS_STRING(splitter._head), splitter._header.head_bytes)
    if crc != splitter._header.crc:
        _fail(splitter, f"frame header and head have CRC {crc:#010x}, the frame says {splitter._header.crc:#010x}")
    cdef const char* cluster = <const char*>splitter._header.cluster_id
    if memcmp(cluster, PyBytes_AS_STRING(splitter._last_cluster), CLUSTER_BYTES) != 0:
        splitter._last_cluster = PyBytes_FromStringAndSize(cluster, CLUSTER_BYTES)
    if splitter._is_founded and splitter._last_cluster is not splitter._expected_cluster:
        _judge_cluster(splitter)
    return 0


cdef int _judge_cluster(FrameSplitter splitter) except -1:
    if splitter._last_cluster == splitter._expected_cluster:
        splitter._last_cluster = splitter._expected_cluster
    elif splitter._last_cluster != _NO_CLUSTER:
        _fail(splitter, f"frame is of cluster {splitter._last_cluster.hex()}, "
                        f"expected cluster {splitter._expected_cluster.hex()}")
    elif splitter._header.type != FRAME_HELLO and splitter._header.type != FRAME_CONTROL:
        _fail(splitter, f"frame {_type_text(splitter._header.type)} names no cluster, "
                        f"expected cluster {splitter._expected_cluster.hex()}")
    return 0


cdef Frame _take_frame(FrameSplitter splitter):
    cdef FrameHeader* header = &splitter._header
    cdef Frame frame = Frame.__new__(Frame)
    frame.type = header.type
    frame.flags = header.flags
    frame.group_id = header.group_id
    frame.cluster_id = splitter._last_cluster
    frame.incarnation = header.incarnation
    frame.boot = header.boot
    frame.sender = header.sender
    frame.ballot = header.ballot
    frame.head = splitter._head
    frame.body = splitter._body
    splitter._head = None
    splitter._body = None
    splitter._stage = READ_HEADER
    splitter._filled = 0
    return frame


# ---- heads of client frames ----

cdef packed struct SubmitHead:
    uint64_t request_id
    uint32_t deadline_ms
    uint32_t reserved

cdef packed struct ReplyHead:
    uint64_t session_id
    uint64_t first_sequence
    uint64_t request_id
    uint32_t command_count
    uint16_t status
    uint16_t leader_hint
    uint64_t slot_begin
    uint32_t results_crc         # CRC32C of the body
    uint32_t reserved

cdef packed struct QueryHead:
    uint64_t query_id
    uint32_t deadline_ms
    uint16_t read_mode
    uint16_t reserved
    uint64_t minimum_index

cdef packed struct QueryReplyHead:
    uint64_t query_id
    uint16_t status
    uint16_t leader_hint
    uint32_t reserved
    uint64_t read_index


class Reply(NamedTuple):
    """A parsed REPLY. `status` is a ReplyStatus value, `leader_hint` a node id or 0, `results` a result blob or b""."""

    session_id: int
    first_sequence: int
    request_id: int
    command_count: int
    status: int
    leader_hint: int
    slot_begin: int
    results: bytes


class Query(NamedTuple):
    """A parsed QUERY. `deadline_ms` 0 means none; the only read mode is 0, linearizable."""

    query_id: int
    deadline_ms: int
    read_mode: int
    minimum_index: int
    request: bytes


class QueryReply(NamedTuple):
    """A parsed QUERY_REPLY. `status` is a ReplyStatus value, `leader_hint` a node id or 0."""

    query_id: int
    status: int
    leader_hint: int
    read_index: int
    result: bytes


# Skips the keyword handling of the classes' own constructors, which costs more than the parsing.
cdef object _tuple_new = tuple.__new__


cdef const uint8_t* _head_of(Frame frame, int frame_type, Py_ssize_t head_bytes, bint is_exact) except NULL:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(frame.head)
    if frame.type != frame_type:
        raise FrameError(f"frame is {_type_text(frame.type)}, expected {_type_text(frame_type)}")
    if size < head_bytes or (is_exact and size != head_bytes):
        raise FrameError(f"{_type_text(frame_type)} has a head of {size} bytes, "
                         f"it needs {'exactly' if is_exact else 'at least'} {head_bytes}")
    return <const uint8_t*>PyBytes_AS_STRING(frame.head)


cdef int _no_body(Frame frame) except -1:
    if PyBytes_GET_SIZE(frame.body) != 0:
        raise FrameError(f"{_type_text(frame.type)} has a body of {PyBytes_GET_SIZE(frame.body)} bytes, expected none")
    return 0


cdef int _known_status(Frame frame, uint16_t status) except -1:
    if status > STATUS_MAX:
        raise FrameError(f"{_type_text(frame.type)} has status {status}, known are 0 to {STATUS_MAX}")
    return 0


cdef int _reserved_zero(Frame frame, uint32_t reserved) except -1:
    if reserved != 0:
        raise FrameError(f"{_type_text(frame.type)} has reserved bits {reserved:#x}, they must be 0")
    return 0


def parse_submit(Frame frame not None) -> tuple:
    """Return (request_id, deadline_ms) of a SUBMIT frame; its block is `frame.body`. Raises FrameError."""
    cdef SubmitHead head
    memcpy(&head, _head_of(frame, FRAME_SUBMIT, sizeof(head), True), sizeof(head))
    _reserved_zero(frame, head.reserved)
    return head.request_id, head.deadline_ms


cdef uint32_t _crc_of(bytes data) noexcept:
    return fp_crc32c(0, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def parse_reply(Frame frame not None):
    """Return the `Reply` of a REPLY frame. Raises FrameError."""
    cdef ReplyHead head
    memcpy(&head, _head_of(frame, FRAME_REPLY, sizeof(head), True), sizeof(head))
    _known_status(frame, head.status)
    _reserved_zero(frame, head.reserved)
    if head.results_crc != _crc_of(frame.body):
        raise FrameError(f"the results of REPLY {head.request_id} have CRC {_crc_of(frame.body):#010x}, "
                         f"its head says {head.results_crc:#010x}")
    return _tuple_new(Reply, (head.session_id, head.first_sequence, head.request_id, head.command_count, head.status,
                              head.leader_hint, head.slot_begin, frame.body))


def parse_query(Frame frame not None):
    """Return the `Query` of a QUERY frame. Raises FrameError."""
    cdef QueryHead head
    memcpy(&head, _head_of(frame, FRAME_QUERY, sizeof(head), False), sizeof(head))
    _reserved_zero(frame, head.reserved)
    _no_body(frame)
    if head.read_mode != 0:
        raise FrameError(f"QUERY has read mode {head.read_mode}, known is only 0 (linearizable)")
    return _tuple_new(Query, (head.query_id, head.deadline_ms, head.read_mode, head.minimum_index,
                              frame.head[sizeof(head) :]))


def parse_query_reply(Frame frame not None):
    """Return the `QueryReply` of a QUERY_REPLY frame. Raises FrameError."""
    cdef QueryReplyHead head
    memcpy(&head, _head_of(frame, FRAME_QUERY_REPLY, sizeof(head), False), sizeof(head))
    _reserved_zero(frame, head.reserved)
    _no_body(frame)
    _known_status(frame, head.status)
    return _tuple_new(QueryReply, (head.query_id, head.status, head.leader_hint, head.read_index,
                                   frame.head[sizeof(head) :]))


# ---- msgpack maps ----

def parse_mapping(Frame frame not None) -> dict:
    """Return the map of a HELLO or CONTROL frame. Raises FrameError for what `unpack_mapping` refuses."""
    if frame.type != FRAME_HELLO and frame.type != FRAME_CONTROL:
        raise FrameError(f"frame is {_type_text(frame.type)}, expected HELLO or CONTROL")
    _no_body(frame)
    return unpack_mapping(frame.head)
