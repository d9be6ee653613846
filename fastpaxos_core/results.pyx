"""Result blobs: the results of all commands of one block, in the form in which they are kept and sent.

The layout is in docs/protocol.md, "Result blob". A result is bytes, or a `CommandFailure` when the state machine
raised.
"""

import msgpack

from fastpaxos_core.errors import FrameError

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from libc.string cimport memcpy, memset

from fastpaxos_core.types cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    RESULTS_VERSION = 1
    RESULTS_HEADER_BYTES = 8
    RESULTS_UNIFORM = 1          # all results have payload_bytes / count bytes, no length array
    RESULTS_HAS_ERRORS = 2       # an error bitmap follows the lengths
    RESULTS_SHARED = 4           # the payload is the one result of every command; excludes UNIFORM
    RESULTS_FLAGS_KNOWN = 7
    TYPE_NAME_BYTES_MAX = 256
    MESSAGE_BYTES_MAX = 1024

cdef uint64_t _SIZE_MAX = 0xFFFFFFFF

cdef packed struct ResultsHeader:
    uint8_t version
    uint8_t flags
    uint16_t reserved
    uint32_t count


cdef str _cut(str text, Py_ssize_t bytes_max):
    # Cuts at a character; lone surrogates have no UTF-8 form and become "?", on every replica alike.
    encoded = text.encode("utf-8", "replace")
    return encoded[:bytes_max].decode("utf-8", "ignore")


cdef class CommandFailure:
    """The result of a command whose application raised: the exception's type name and message.

    Both are cut, to 256 and 1024 bytes of UTF-8, when the object is made, so that it survives a round trip unchanged.
    """

    cdef readonly str type_name
    cdef readonly str message

    def __cinit__(self, str type_name not None, str message not None):
        self.type_name = _cut(type_name, TYPE_NAME_BYTES_MAX)
        self.message = _cut(message, MESSAGE_BYTES_MAX)

    def __eq__(self, other) -> bool:
        if not isinstance(other, CommandFailure):
            return NotImplemented
        return (self.type_name, self.message) == ((<CommandFailure>other).type_name, (<CommandFailure>other).message)

    def __hash__(self) -> int:
        return hash((self.type_name, self.message))

    def __repr__(self) -> str:
        return f"CommandFailure({self.type_name!r}, {self.message!r})"


cdef bytes _pack_failure(CommandFailure failure):
    return msgpack.packb([failure.type_name, failure.message], use_bin_type=True)


cdef object _unpack_failure(bytes data, uint32_t index):
    try:
        parts = msgpack.unpackb(data, raw=False, max_str_len=MESSAGE_BYTES_MAX, max_bin_len=0, max_array_len=2,
                                max_map_len=0, max_ext_len=0)
    except MemoryError:
        raise
    except Exception as error:
        raise FrameError(f"failure of command {index}: {type(error).__name__}: {error}") from None
    if not isinstance(parts, list) or len(parts) != 2 or not isinstance(parts[0], str) or not isinstance(parts[1], str):
        raise FrameError(f"failure of command {index} is not [type name, message]")
    return CommandFailure(parts[0], parts[1])


# ---- encoding ----

cdef bytes _new_blob(int flags, uint64_t count, uint64_t payload_bytes):
    # Ownership: the caller fills in everything behind the header, nobody else sees the object before that.
    cdef uint64_t total = RESULTS_HEADER_BYTES + payload_bytes
    cdef ResultsHeader header
    cdef bytes blob
    if not flags & (RESULTS_UNIFORM | RESULTS_SHARED):
        total += 4 * count
    if flags & RESULTS_HAS_ERRORS:
        total += (count + 7) // 8
    if count == 0:
        raise ValueError("a result blob needs at least one result")
    if count > _SIZE_MAX or total > _SIZE_MAX:
        raise ValueError(f"{count} results with {payload_bytes} bytes need a blob of {total} bytes, "
                         f"the format allows {_SIZE_MAX}")
    blob = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>total)
    header.version = RESULTS_VERSION
    header.flags = <uint8_t>flags
    header.reserved = 0
    header.count = <uint32_t>count
    memcpy(PyBytes_AS_STRING(blob), &header, sizeof(ResultsHeader))
    return blob


cdef bint _all_bytes(list results) noexcept:
    cdef Py_ssize_t i
    for i in range(PyList_GET_SIZE(results)):
        if not PyBytes_CheckExact(<object>PyList_GET_ITEM(results, i)):
            return False
    return True


cdef list _payloads(object results, list failed):
    # One bytes object per result; the indexes of the failures go into `failed`.
    cdef list payloads = []
    cdef Py_ssize_t index = -1
    if PyList_CheckExact(results) and _all_bytes(<list>results):
        return <list>results
    for result in results:
        index += 1
        if PyBytes_CheckExact(result):
            payloads.append(result)
        elif isinstance(result, CommandFailure):
            failed.append(index)
            payloads.append(_pack_failure(<CommandFailure>result))
        elif isinstance(result, bytes):
            payloads.append(bytes(memoryview(result)))
        else:
            raise TypeError(f"result {index} is {type(result).__name__}, it must be bytes or CommandFailure")
    return payloads


def encode_results(results) -> bytes:
    """Return the blob of one result (bytes or `CommandFailure`) per command, in order.

    Equal results give equal blobs. Raises TypeError for another type, ValueError for no results or a blob above
    2**32 - 1 bytes.
    """
    cdef list failed = []
    cdef list payloads = _payloads(results, failed)
    cdef Py_ssize_t count = len(payloads)
    cdef Py_ssize_t size, uniform_size
    cdef uint64_t payload_bytes = 0
    cdef bint is_uniform = True
    cdef uint32_t length
    cdef uint8_t* position
    cdef bytes payload
    # No Python code runs until the blob is filled, so a list of the caller cannot change in between.
    uniform_size = PyBytes_GET_SIZE(payloads[0]) if count else 0
    for payload in payloads:
        size = PyBytes_GET_SIZE(payload)
        payload_bytes += <uint64_t>size
        is_uniform &= size == uniform_size
    blob = _new_blob((RESULTS_UNIFORM if is_uniform else 0) | (RESULTS_HAS_ERRORS if failed else 0), <uint64_t>count,
                     payload_bytes)
    position = <uint8_t*>PyBytes_AS_STRING(blob) + RESULTS_HEADER_BYTES
    if not is_uniform:
        for payload in payloads:
            length = <uint32_t>PyBytes_GET_SIZE(payload)
            memcpy(position, &length, 4)
            position += 4
    if failed:
        memset(position, 0, <size_t>((count + 7) // 8))
        for index in failed:
            position[<size_t>index >> 3] |= <uint8_t>(1 << (<size_t>index & 7))
        position += (count + 7) // 8
    for payload in payloads:
        memcpy(position, PyBytes_AS_STRING(payload), <size_t>PyBytes_GET_SIZE(payload))
        position += PyBytes_GET_SIZE(payload)
    return blob


def uniform_results(uint32_t count, payload) -> bytes:
    """Return the blob of `count` results of equal length that stand back to back in the bytes-like `payload`.

    Raises ValueError when there are no results or the payload cannot be divided by their count.
    """
    cdef Py_buffer view
    cdef bytes blob
    PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
    try:
        if count == 0 or view.len % count != 0:
            raise ValueError(f"{view.len} payload bytes are not {count} results of equal length")
        blob = _new_blob(RESULTS_UNIFORM, count, <uint64_t>view.len)
        memcpy(PyBytes_AS_STRING(blob) + RESULTS_HEADER_BYTES, view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return blob


def failure_results(uint32_t count, CommandFailure failure not None) -> bytes:
    """Return the blob in which each of `count` commands has the same failure, which is stored once.

    Raises ValueError when count is 0.
    """
    cdef bytes payload = _pack_failure(failure)
    cdef size_t bitmap_bytes = (<size_t>count + 7) // 8
    cdef bytes blob = _new_blob(RESULTS_SHARED | RESULTS_HAS_ERRORS, count, <uint64_t>PyBytes_GET_SIZE(payload))
    cdef uint8_t* bitmap = <uint8_t*>PyBytes_AS_STRING(blob) + RESULTS_HEADER_BYTES
    memset(bitmap, 0xFF, bitmap_bytes)
    if count % 8:
        bitmap[bitmap_bytes - 1] = <uint8_t>((1 << (count % 8)) - 1)
    memcpy(bitmap + bitmap_bytes, PyBytes_AS_STRING(payload), <size_t>PyBytes_GET_SIZE(payload))
    return blob


# ---- decoding ----

cdef struct Parts:
    # Where things stand in a checked blob; lengths and bitmap are NULL when absent. Borrowed from the blob.
    int flags
    uint32_t count
    const uint8_t* lengths
    const uint8_t* bitmap
    const uint8_t* payload
    uint64_t payload_bytes


cdef int _split(const uint8_t* data, uint64_t size, uint32_t count, Parts* parts) except -1:
    cdef ResultsHeader header
    cdef uint64_t fixed = RESULTS_HEADER_BYTES
    cdef uint64_t total = 0
    cdef uint32_t length, i
    if size < RESULTS_HEADER_BYTES:
        raise FrameError(f"result blob has {size} bytes, its header alone has {RESULTS_HEADER_BYTES}")
    memcpy(&header, data, sizeof(ResultsHeader))
    if (header.version != RESULTS_VERSION or header.flags & ~RESULTS_FLAGS_KNOWN or header.reserved != 0
            or header.flags & (RESULTS_UNIFORM | RESULTS_SHARED) == RESULTS_UNIFORM | RESULTS_SHARED):
        raise FrameError(f"result blob has version {header.version}, flags {header.flags:#04x}, reserved bits "
                         f"{header.reserved:#06x}; known are version {RESULTS_VERSION}, flags up to 6")
    if header.count != count or count == 0:
        raise FrameError(f"result blob has {header.count} results for {count} commands")
    memset(parts, 0, sizeof(Parts))
    parts.flags = header.flags
    parts.count = count
    if not header.flags & (RESULTS_UNIFORM | RESULTS_SHARED):
        parts.lengths = data + fixed
        fixed += 4 * <uint64_t>count
    if header.flags & RESULTS_HAS_ERRORS:
        parts.bitmap = data + fixed
        fixed += (<uint64_t>count + 7) // 8
    if size < fixed:
        raise FrameError(f"result blob has {size} bytes, {count} results need at least {fixed}")
    parts.payload = data + fixed
    parts.payload_bytes = size - fixed
    if parts.lengths != NULL:
        for i in range(count):
            memcpy(&length, parts.lengths + 4 * <size_t>i, 4)
            total += length
        if total != parts.payload_bytes:
            raise FrameError(f"result blob has {parts.payload_bytes} payload bytes, its lengths add up to {total}")
    elif header.flags & RESULTS_UNIFORM and parts.payload_bytes % count != 0:
        raise FrameError(f"result blob has {parts.payload_bytes} payload bytes for {count} results of equal length")
    if parts.bitmap != NULL and count % 8 and parts.bitmap[count // 8] >> (count % 8):
        raise FrameError(f"result blob marks failures beyond its {count} results")
    return 0


cdef list _decode(const Parts* parts):
    cdef list results = []
    cdef const uint8_t* position = parts.payload
    cdef uint32_t i
    cdef uint32_t length = 0
    cdef object result
    if parts.flags & RESULTS_UNIFORM:
        length = <uint32_t>(parts.payload_bytes // parts.count)
    for i in range(parts.count):
        if parts.lengths != NULL:
            memcpy(&length, parts.lengths + 4 * <size_t>i, 4)
        result = PyBytes_FromStringAndSize(<const char*>position, length)
        position += length
        if parts.bitmap != NULL and (parts.bitmap[i >> 3] >> (i & 7)) & 1:
            result = _unpack_failure(result, i)
        results.append(result)
    return results


cdef list _decode_shared(const Parts* parts):
    cdef list results = []
    cdef bytes payload = PyBytes_FromStringAndSize(<const char*>parts.payload, <Py_ssize_t>parts.payload_bytes)
    cdef object failure = None
    cdef uint32_t i
    for i in range(parts.count):
        if parts.bitmap != NULL and (parts.bitmap[i >> 3] >> (i & 7)) & 1:
            if failure is None:
                failure = _unpack_failure(payload, i)
            results.append(failure)
        else:
            results.append(payload)
    return results


def decode_results(bytes blob not None, uint32_t count) -> list:
    """Return the results of a blob for a block of `count` commands: bytes or `CommandFailure`, in order.

    Raises FrameError when the blob is not exactly that.
    """
    cdef Parts parts
    _split(<const uint8_t*>PyBytes_AS_STRING(blob), <uint64_t>PyBytes_GET_SIZE(blob), count, &parts)
    if parts.flags & RESULTS_SHARED:
        return _decode_shared(&parts)
    return _decode(&parts)


cdef class UniformResults:
    """The results of a block, all bytes and of one length: a read-only sequence that makes each object when asked.

    Comes from `view_results`; one that does not is empty. Ownership: holds the whole blob as long as it lives.
    """

    cdef bytes _blob
    cdef const uint8_t* _payload
    cdef Py_ssize_t _count
    cdef Py_ssize_t _length

    def __reduce__(self):
        # The pointer into the blob means nothing elsewhere.
        return (view_results, (self._blob, self._count)) if self._count else (UniformResults, ())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        i = index
        if i < 0:
            i += self._count
        if not 0 <= i < self._count:
            raise IndexError(f"result {index} of {self._count}")
        return PyBytes_FromStringAndSize(<const char*>self._payload + i * self._length, self._length)


def view_results(bytes blob not None, uint32_t count):
    """Return the results of a blob for a block of `count` commands as a sequence, in order.

    As `decode_results`, and where all are bytes of one length nothing is made before it is asked for. Raises
    FrameError when the blob is not exactly that.
    """
    cdef Parts parts
    cdef UniformResults view
    _split(<const uint8_t*>PyBytes_AS_STRING(blob), <uint64_t>PyBytes_GET_SIZE(blob), count, &parts)
    if parts.flags != RESULTS_UNIFORM:
        return decode_results(blob, count)
    view = UniformResults.__new__(UniformResults)
    view._blob = blob
    view._payload = parts.payload
    view._count = count
    view._length = <Py_ssize_t>(parts.payload_bytes // count)
    return view
