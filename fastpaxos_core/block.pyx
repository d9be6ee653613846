"""Blocks: the client's encoding of many commands, made once and carried unchanged to every disk.

The layout is in docs/protocol.md, "Block". A block is built in one pass over the commands into one allocation, checked
as a whole, and read through `BlockView` without decoding what nobody asks for.
"""

import cython
import numpy as np

from fastpaxos_core.errors import FrameError

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastpaxos_core.types cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "crc32c.h" nogil:
    uint32_t fp_crc32c_portable(uint32_t crc, const void* data, size_t size)
    const char* fp_crc32c_implementation

cdef extern from "Python.h":
    # Borrowed items of a list or tuple, as a C array; no Python code runs.
    Py_ssize_t PySequence_Fast_GET_SIZE(object sequence)
    PyObject** PySequence_Fast_ITEMS(object sequence)
    object PyList_New(Py_ssize_t size)
    void PyList_SET_ITEM(object target, Py_ssize_t index, PyObject* stolen)
    PyObject* _new_bytes "PyBytes_FromStringAndSize"(const char* data, Py_ssize_t size) except NULL

cdef enum:
    CRC_OFFSET = 4               # of BlockHeader.crc, which the checksum leaves out
    CRC_END = 8
    CRC_NOGIL_BYTES = 65536      # shorter inputs take less time than giving the GIL away

cdef uint64_t _SIZE_MAX = 0xFFFFFFFF
cdef uint64_t _UINT64_MAX = 0xFFFFFFFFFFFFFFFFU


# ---- checksums ----

cdef inline uint32_t _block_crc(const uint8_t* data, size_t size) noexcept nogil:
    return fp_crc32c(fp_crc32c(0, data, CRC_OFFSET), data + CRC_END, size - CRC_END)


cpdef uint32_t value_crc(uint64_t slot_begin, uint64_t slot_end, int64_t timestamp_ns,
                         uint32_t block_crc) noexcept nogil:
    """Return the CRC32C that identifies a value: a block together with its slots and its timestamp."""
    cdef uint8_t packed[28]
    memcpy(packed, &slot_begin, 8)
    memcpy(packed + 8, &slot_end, 8)
    memcpy(packed + 16, &timestamp_ns, 8)
    memcpy(packed + 24, &block_crc, 4)
    return fp_crc32c(0, packed, sizeof(packed))


def crc32c(data, uint32_t value=0) -> int:
    """Return the CRC32C of the bytes-like `data`, continuing from `value`, the CRC32C of what stands before it."""
    return _crc_of(data, value, 0)


def crc32c_portable(data, uint32_t value=0) -> int:
    """Return the same as `crc32c`, computed by tables: what platforms without CRC instructions use."""
    return _crc_of(data, value, 1)


def crc32c_implementation() -> str:
    """Return which implementation `crc32c` uses here: "x86 sse4.2 pclmul", "armv8 crc" or "portable"."""
    return fp_crc32c_implementation.decode("ascii")


cdef uint32_t _crc_of(object data, uint32_t value, bint portable) except? 0:
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if portable:
            value = fp_crc32c_portable(value, view.buf, <size_t>view.len)
        elif view.len < CRC_NOGIL_BYTES:
            value = fp_crc32c(value, view.buf, <size_t>view.len)
        else:
            with nogil:
                value = fp_crc32c(value, view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return value


# ---- building ----

cdef bytes _new_block(int kind, int flags, uint64_t count, uint64_t payload_bytes, uint64_t session_id,
                      uint64_t first_sequence, uint64_t acknowledged_below):
    # Ownership: the caller fills in lengths and payload and then seals it; nobody else sees the object before that.
    cdef uint64_t total = BLOCK_HEADER_BYTES + payload_bytes
    cdef BlockHeader header
    cdef bytes block
    if not flags & BLOCK_UNIFORM_LENGTH:
        total += 4 * count
    if count > _SIZE_MAX or total > _SIZE_MAX:
        raise ValueError(f"{count} commands with {payload_bytes} bytes need a block of {total} bytes, "
                         f"the format allows {_SIZE_MAX}")
    block = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>total)
    header.version = BLOCK_VERSION
    header.kind = <uint8_t>kind
    header.flags = <uint16_t>flags
    header.crc = 0
    header.command_count = <uint32_t>count
    header.payload_bytes = <uint32_t>payload_bytes
    header.session_id = session_id
    header.first_sequence = first_sequence
    header.acknowledged_below = acknowledged_below
    memcpy(PyBytes_AS_STRING(block), &header, sizeof(BlockHeader))
    return block


cdef bytes _sealed(bytes block):
    cdef uint8_t* data = <uint8_t*>PyBytes_AS_STRING(block)
    cdef uint32_t crc = _block_crc(data, <size_t>PyBytes_GET_SIZE(block))
    memcpy(data + CRC_OFFSET, &crc, 4)
    return block


cdef object _commands_as_bytes(object commands):
    # The slow way in: any iterable, and commands that are not bytes objects yet.
    converted = []
    for index, command in enumerate(commands):
        if not isinstance(command, (bytes, bytearray, memoryview)):
            raise TypeError(f"command {index} is {type(command).__name__}, it must be bytes, bytearray or memoryview")
        # Not bytes(command): a subclass may answer that with anything.
        converted.append(bytes(memoryview(command)))
    return converted


cdef int _measure(PyObject** items, Py_ssize_t count, uint64_t* total, Py_ssize_t* shortest,
                  Py_ssize_t* longest) noexcept:
    # False if one of the items is no bytes object.
    cdef Py_ssize_t i, size
    total[0] = 0
    shortest[0] = 0x7FFFFFFFFFFFFFFF
    longest[0] = 0
    for i in range(count):
        if not PyBytes_CheckExact(<object>items[i]):
            return False
        size = PyBytes_GET_SIZE(<object>items[i])
        total[0] += <uint64_t>size
        shortest[0] = min(shortest[0], size)
        longest[0] = max(longest[0], size)
    return True


def longest_command(list commands not None) -> int:
    """Return the bytes of the longest command, 0 if there is none, -1 if one of them is no bytes object."""
    cdef uint64_t total
    cdef Py_ssize_t shortest, longest
    if not _measure(PySequence_Fast_ITEMS(commands), PySequence_Fast_GET_SIZE(commands), &total, &shortest, &longest):
        return -1
    return longest


cdef bytes _packed(object commands, uint64_t bytes_max, Py_ssize_t* count_out, Py_ssize_t* longest_out):
    cdef PyObject** items
    cdef Py_ssize_t count, i, shortest, longest
    cdef uint64_t payload_bytes, block_bytes
    cdef bytes block
    cdef char* lengths
    cdef char* payload
    cdef uint32_t length
    if not isinstance(commands, (list, tuple)):
        commands = _commands_as_bytes(commands)
    if not _measure(PySequence_Fast_ITEMS(commands), PySequence_Fast_GET_SIZE(commands), &payload_bytes, &shortest,
                    &longest):
        commands = _commands_as_bytes(commands)
        if not _measure(PySequence_Fast_ITEMS(commands), PySequence_Fast_GET_SIZE(commands), &payload_bytes, &shortest,
                        &longest):
            raise TypeError("the commands are no bytes")
    items = PySequence_Fast_ITEMS(commands)
    count = PySequence_Fast_GET_SIZE(commands)
    if count == 0:
        raise ValueError("a block needs at least one command")
    block_bytes = BLOCK_HEADER_BYTES + payload_bytes + (0 if shortest == longest else 4 * <uint64_t>count)
    if block_bytes > bytes_max:
        raise OverflowError(f"{count} commands make a block of {block_bytes} bytes; at most {bytes_max} fit into one")
    # No Python code runs between the pass above and the one below, so the items cannot change in between.
    block = _new_block(BLOCK_COMMANDS, BLOCK_UNIFORM_LENGTH if shortest == longest else 0, <uint64_t>count,
                       payload_bytes, 0, 0, 0)
    lengths = PyBytes_AS_STRING(block) + BLOCK_HEADER_BYTES
    payload = lengths
    if shortest == longest == 16:
        # What many benchmarks send, and many services: a copy of known size is a single instruction.
        for i in range(count):
            memcpy(payload, PyBytes_AS_STRING(<object>items[i]), 16)
            payload += 16
    elif shortest == longest:
        for i in range(count):
            memcpy(payload, PyBytes_AS_STRING(<object>items[i]), <size_t>longest)
            payload += longest
    else:
        payload += 4 * count
        for i in range(count):
            length = <uint32_t>PyBytes_GET_SIZE(<object>items[i])
            memcpy(lengths, &length, 4)
            memcpy(payload, PyBytes_AS_STRING(<object>items[i]), length)
            lengths += 4
            payload += length
    count_out[0] = count
    longest_out[0] = longest
    return block


def pack_commands(commands, uint64_t bytes_max=0xFFFFFFFFFFFFFFFF) -> tuple[bytes, int, int]:
    """Return a block of client commands that still needs `stamp_block`, how many there are, and the longest's bytes.

    `commands` is a sequence of bytes-like objects; a list or tuple of bytes is the fast path. Raises TypeError for a
    command that is not bytes-like, ValueError for no commands and for a block above 2**32 - 1 bytes, OverflowError for
    one above `bytes_max` bytes, before anything is copied.
    """
    cdef Py_ssize_t count, longest
    block = _packed(commands, bytes_max, &count, &longest)
    return block, count, longest


cdef int _stamp(bytes block, uint64_t session_id, uint64_t first_sequence, uint64_t acknowledged_below) except -1:
    cdef BlockHeader* header = <BlockHeader*>PyBytes_AS_STRING(block)
    if header.command_count > _UINT64_MAX - first_sequence:
        raise ValueError(f"{header.command_count} commands from sequence {first_sequence} pass the last sequence "
                         f"number {_UINT64_MAX}")
    header.session_id = session_id
    header.first_sequence = first_sequence
    header.acknowledged_below = acknowledged_below
    _sealed(block)
    return 0


def stamp_block(bytes block not None, uint64_t session_id, uint64_t first_sequence,
                uint64_t acknowledged_below=0) -> None:
    """Write into a packed block whose it is and which sequences its commands have, and seal it with its checksum.

    Ownership: changes the object itself, which nobody but the caller may have seen yet. Raises ValueError when the
    sequences pass 2**64 - 1, and for what `pack_commands` has not made.
    """
    cdef BlockHeader* header = <BlockHeader*>PyBytes_AS_STRING(block)
    if PyBytes_GET_SIZE(block) < BLOCK_HEADER_BYTES or header.kind != BLOCK_COMMANDS or header.session_id:
        raise ValueError("only a block that pack_commands has made can be stamped, and only once")
    _stamp(block, session_id, first_sequence, acknowledged_below)


def build_block(commands, uint64_t session_id, uint64_t first_sequence, uint64_t acknowledged_below=0) -> bytes:
    """Return one block of client commands: sequence numbers first_sequence, first_sequence + 1, ... of a session.

    The client declares that it has the results of every sequence below `acknowledged_below`. Raises what
    `pack_commands` and `stamp_block` raise, and OverflowError for a number that is no uint64.
    """
    cdef Py_ssize_t count, longest
    cdef bytes block = _packed(commands, _UINT64_MAX, &count, &longest)
    _stamp(block, session_id, first_sequence, acknowledged_below)
    return block


def build_noop(uint64_t slot_count) -> bytes:
    """Return a block that fills `slot_count` slots with nothing. Raises ValueError unless 1 <= slot_count < 2**32."""
    if slot_count == 0:
        raise ValueError("a no-op block needs at least one slot")
    return _sealed(_new_block(BLOCK_NOOP, BLOCK_UNIFORM_LENGTH, slot_count, 0, 0, 0, 0))


def build_control(bytes payload not None) -> bytes:
    """Return a block of one control entry; `payload` is its msgpack map. Raises ValueError above 2**32 - 41 bytes."""
    cdef size_t size = <size_t>PyBytes_GET_SIZE(payload)
    cdef bytes block = _new_block(BLOCK_CONTROL, BLOCK_UNIFORM_LENGTH, 1, size, 0, 0, 0)
    memcpy(PyBytes_AS_STRING(block) + BLOCK_HEADER_BYTES, PyBytes_AS_STRING(payload), size)
    return _sealed(block)


# ---- checking ----

cdef bint _lengths_add_up(const uint8_t* lengths, uint32_t count, uint32_t payload_bytes) noexcept nogil:
    # 2**32 lengths below 2**32 cannot overflow the sum.
    cdef uint64_t total = 0
    cdef uint32_t i, length
    for i in range(count):
        memcpy(&length, lengths + 4 * <size_t>i, 4)
        total += length
    return total == payload_bytes


cdef int block_check(const uint8_t* data, size_t size, BlockHeader* header, bint verify_crc) noexcept nogil:
    cdef uint64_t total
    cdef bint is_uniform
    if data == NULL or size < BLOCK_HEADER_BYTES:
        memset(header, 0, sizeof(BlockHeader))
        return BLOCK_BAD_SIZE
    memcpy(header, data, sizeof(BlockHeader))
    if header.version != BLOCK_VERSION or header.kind > BLOCK_CONTROL or header.flags & ~BLOCK_FLAGS_KNOWN:
        return BLOCK_BAD_VERSION
    is_uniform = (header.flags & BLOCK_UNIFORM_LENGTH) != 0
    total = BLOCK_HEADER_BYTES + <uint64_t>header.payload_bytes
    if not is_uniform:
        total += 4 * <uint64_t>header.command_count
    if total != size:
        return BLOCK_BAD_SIZE
    if verify_crc and _block_crc(data, size) != header.crc:
        return BLOCK_BAD_CRC
    if header.command_count == 0:
        return BLOCK_BAD_COUNT
    if is_uniform:
        if header.payload_bytes % header.command_count != 0:
            return BLOCK_BAD_COUNT
    elif not _lengths_add_up(data + BLOCK_HEADER_BYTES, header.command_count, header.payload_bytes):
        return BLOCK_BAD_COUNT
    if header.kind == BLOCK_COMMANDS:
        if header.command_count > _UINT64_MAX - header.first_sequence:
            return BLOCK_BAD_COUNT
        return 0
    if not is_uniform or header.session_id != 0:
        return BLOCK_BAD_COUNT
    if header.kind == BLOCK_NOOP and header.payload_bytes != 0:
        return BLOCK_BAD_COUNT
    if header.kind == BLOCK_CONTROL and header.command_count != 1:
        return BLOCK_BAD_COUNT
    return 0


cdef str _problem_text(int code, const uint8_t* data, size_t size, const BlockHeader* header):
    # The values are those of the header; a header that fails its CRC may hold any.
    if size < BLOCK_HEADER_BYTES:
        return f"block has {size} bytes, its header alone has {BLOCK_HEADER_BYTES}"
    if code == BLOCK_BAD_VERSION:
        return (f"block has version {header.version}, kind {header.kind}, flags {header.flags:#06x}; known are version "
                f"{BLOCK_VERSION}, kinds up to {BLOCK_CONTROL}, flags {BLOCK_FLAGS_KNOWN:#06x}")
    shape = (f"{header.command_count} commands, {header.payload_bytes} payload bytes"
             f"{', uniform' if header.flags & BLOCK_UNIFORM_LENGTH else ''}")
    if code == BLOCK_BAD_SIZE:
        return f"block has {size} bytes, but its header says {shape}"
    if code == BLOCK_BAD_CRC:
        return f"block of {size} bytes has CRC {_block_crc(data, size):#010x}, its header says {header.crc:#010x}"
    return (f"block of kind {header.kind}, session {header.session_id}, first sequence {header.first_sequence} has "
            f"{shape}: these do not fit together")


cdef int _check(const uint8_t* data, size_t size, BlockHeader* header, bint verify_crc) except -1:
    cdef int code
    if size < CRC_NOGIL_BYTES:
        code = block_check(data, size, header, verify_crc)
    else:
        with nogil:
            code = block_check(data, size, header, verify_crc)
    if code != 0:
        raise FrameError(_problem_text(code, data, size, header))
    return 0


def check_block(data, bint verify_crc=True) -> None:
    """Raise FrameError, naming the values, unless the bytes-like `data` is exactly one whole block.

    `verify_crc=False` leaves out only the checksum.
    """
    cdef Py_buffer view
    cdef BlockHeader header
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        _check(<const uint8_t*>view.buf, <size_t>view.len, &header, verify_crc)
    finally:
        PyBuffer_Release(&view)


# ---- reading ----

@cython.no_gc
cdef class BlockView:
    """A read-only sequence of the commands of one block, each as bytes.

    `BlockView(data)` checks the block, its CRC included, and raises FrameError when it is none. Bytes and memoryviews
    of bytes are borrowed; anything that could still change is copied first.

    Ownership: holds a reference to the object that owns the bytes, and its Py_buffer, as long as it lives. The owner is
    a bytes object or a view of one and refers to nothing else, so the view takes no part in garbage collection.
    """

    def __cinit__(self):
        self._data = NULL
        self._size = 0
        self._lengths = NULL
        self._payload = NULL
        self._uniform_length = 0
        self._offsets = NULL
        memset(&self._header, 0, sizeof(BlockHeader))

    def __init__(self, data):
        if self._data != NULL:
            raise TypeError("a BlockView is made only once")
        is_bytes_view = isinstance(data, memoryview) and isinstance(data.obj, bytes) and data.c_contiguous
        if not isinstance(data, bytes) and not is_bytes_view:
            data = bytes(memoryview(data))
        _attach(self, data, 0, _SIZE_MAX + 1, 1)

    def __dealloc__(self):
        free(self._offsets)
        if self._data != NULL:
            PyBuffer_Release(&self._buffer)

    @staticmethod
    cdef BlockView from_owner(object owner, size_t offset, size_t size):
        cdef BlockView view = BlockView.__new__(BlockView)
        _attach(view, owner, offset, size, 0)
        return view

    def __len__(self) -> int:
        return self._header.command_count

    def __getitem__(self, Py_ssize_t index) -> bytes:
        cdef uint64_t count = self._header.command_count
        cdef uint64_t begin
        if index < 0:
            index += <Py_ssize_t>count
        if index < 0 or <uint64_t>index >= count:
            raise IndexError(f"command index out of range: the block has {count} commands")
        if self._lengths == NULL:
            begin = <uint64_t>index * self._uniform_length
            return PyBytes_FromStringAndSize(<const char*>self._payload + begin, self._uniform_length)
        if self._offsets == NULL:
            _build_offsets(self)
        begin = self._offsets[index]
        return PyBytes_FromStringAndSize(<const char*>self._payload + begin,
                                         <Py_ssize_t>(self._offsets[index + 1] - begin))

    def __iter__(self):
        cdef BlockIterator iterator = BlockIterator.__new__(BlockIterator)
        iterator._view = self
        return iterator

    def __repr__(self) -> str:
        return (f"BlockView(kind={self.kind}, command_count={self.command_count}, payload_bytes={self.payload_bytes}, "
                f"session_id={self.session_id}, first_sequence={self.first_sequence})")

    def commands(self) -> list:
        """Return all commands as a list of bytes; faster than iterating."""
        cdef uint32_t count = self._header.command_count
        cdef uint32_t i, length = self._uniform_length
        cdef const uint8_t* payload = self._payload
        cdef list commands = PyList_New(count)
        for i in range(count):
            if self._lengths != NULL:
                memcpy(&length, self._lengths + 4 * <size_t>i, 4)
            PyList_SET_ITEM(commands, i, _new_bytes(<const char*>payload, length))
            payload += length
        return commands

    def lengths(self):
        """Return the length of each command in bytes, as a new NumPy array of uint32."""
        if self._lengths == NULL:
            return np.full(self._header.command_count, self._uniform_length, dtype=np.uint32)
        cdef size_t begin = <size_t>self._lengths - <size_t>self._data
        lengths = _borrowed(self, begin, 4 * <size_t>self._header.command_count)
        return np.frombuffer(lengths, dtype="<u4").astype(np.uint32)

    @property
    def kind(self) -> int:
        """0 client commands, 1 no-op, 2 control."""
        return self._header.kind

    @property
    def command_count(self) -> int:
        return self._header.command_count

    @property
    def payload_bytes(self) -> int:
        return self._header.payload_bytes

    @property
    def session_id(self) -> int:
        return self._header.session_id

    @property
    def first_sequence(self) -> int:
        return self._header.first_sequence

    @property
    def acknowledged_below(self) -> int:
        return self._header.acknowledged_below

    @property
    def crc(self) -> int:
        return self._header.crc

    @property
    def uniform_length(self) -> int:
        """The length of every command when the block says that they are all equal, else 0."""
        return self._uniform_length

    @property
    def payload_view(self):
        """All commands back to back, as a read-only memoryview that keeps the block's owner alive."""
        if self._data == NULL:
            return memoryview(b"")
        return _borrowed(self, <size_t>self._payload - <size_t>self._data, self._header.payload_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole block, header included."""
        return self._size


@cython.final
@cython.no_gc
cdef class BlockIterator:
    # Ownership: holds the view, which owns the bytes; the view never refers back.
    cdef BlockView _view
    cdef uint32_t _index
    cdef uint64_t _offset

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        cdef BlockView view = self._view
        cdef uint32_t length
        cdef const char* command
        if view is None or self._index >= view._header.command_count:
            raise StopIteration
        length = view._uniform_length
        if view._lengths != NULL:
            memcpy(&length, view._lengths + 4 * <size_t>self._index, 4)
        command = <const char*>view._payload + self._offset
        self._index += 1
        self._offset += length
        return PyBytes_FromStringAndSize(command, length)


cdef int _attach(BlockView view, object owner, size_t offset, uint64_t size, bint verify_crc) except -1:
    # A size above what a block can have means: all that is there behind the offset.
    PyObject_GetBuffer(owner, &view._buffer, PyBUF_SIMPLE)
    cdef size_t owned = <size_t>view._buffer.len
    cdef const uint8_t* data = <const uint8_t*>view._buffer.buf
    try:
        if offset > owned or (size <= _SIZE_MAX and size > owned - offset):
            raise FrameError(f"a block of {size} bytes at offset {offset} does not fit into {owned} bytes")
        if size > _SIZE_MAX:
            size = owned - offset
        # The lengths are judged again even when the caller vouches for the CRC: every later access rests on them.
        _check(data + offset, <size_t>size, &view._header, verify_crc)
    except BaseException:
        memset(&view._header, 0, sizeof(BlockHeader))
        PyBuffer_Release(&view._buffer)
        raise
    view._owner = owner
    view._data = data + offset
    view._size = <size_t>size
    if view._header.flags & BLOCK_UNIFORM_LENGTH:
        view._uniform_length = view._header.payload_bytes // view._header.command_count
        view._payload = view._data + BLOCK_HEADER_BYTES
    else:
        view._lengths = view._data + BLOCK_HEADER_BYTES
        view._payload = view._lengths + 4 * <size_t>view._header.command_count
    return 0


cdef int _build_offsets(BlockView view) except -1:
    cdef size_t count = view._header.command_count
    cdef uint64_t* offsets = <uint64_t*>malloc((count + 1) * sizeof(uint64_t))
    cdef uint64_t offset = 0
    cdef uint32_t length
    cdef size_t i
    if offsets == NULL:
        raise MemoryError(f"no memory for the offsets of {count} commands")
    for i in range(count):
        offsets[i] = offset
        memcpy(&length, view._lengths + 4 * i, 4)
        offset += length
    offsets[count] = offset
    view._offsets = offsets
    return 0


cdef object _borrowed(BlockView view, size_t begin, size_t size):
    # A memoryview of the owner, so that it outlives this object safely.
    cdef size_t offset = <size_t>view._data - <size_t>view._buffer.buf + begin
    return memoryview(view._owner).cast("B")[offset : offset + size].toreadonly()
