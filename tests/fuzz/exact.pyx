"""Decoders of the core on memory of exactly the input's size, so that the address sanitizer sees every byte too far."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastpaxos_core.block cimport BlockHeader, BlockView, block_check
from fastpaxos_core.journal_format cimport (
    SEGMENT_HEADER_BYTES, WRITE_HEADER_BYTES, SegmentHeader, WriteHeader, block_matches, decode_segment_header,
    write_check,
)
from fastpaxos_core.types cimport BatchDescriptor

from fuzz.mutation cimport Chance, interesting

cdef extern from "crc32c.h":
    uint32_t fp_crc32c(uint32_t crc, const void* data, size_t size) noexcept nogil

cdef enum:
    FIELDS_MAX = 64
    TALLY_CODES = 8              # verdicts -5 .. 2
    TALLY_ZERO = 5
    BOX_BYTES = 20               # before the input: iteration, chance, and in the last four its size

cdef extern from *:
    """
    /* Defined by the instrumented modules (coverage.h); without them there is nothing to count. */
    __attribute__((weak)) extern uint64_t fp_edge_count;
    static uint64_t fp_edges_now(void) { return &fp_edge_count ? fp_edge_count : 0; }
    """
    uint64_t fp_edges_now() noexcept nogil


def edges() -> int:
    """How many edges of the instrumented decoders were ever taken."""
    return fp_edges_now()


cdef class ExactBytes:
    """A read-only copy of some bytes in memory of their size: bytes objects end with one zero more."""

    cdef uint8_t* _data
    cdef Py_ssize_t _size

    def __cinit__(self, source):
        cdef Py_buffer view
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        self._size = view.len
        self._data = <uint8_t*>malloc(<size_t>view.len)
        if self._data != NULL and view.len:
            memcpy(self._data, view.buf, <size_t>view.len)
        PyBuffer_Release(&view)
        if self._data == NULL:
            raise MemoryError(f"no memory for {self._size} bytes")

    def __dealloc__(self):
        free(self._data)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._data, self._size, 1, flags)

    def __len__(self):
        return self._size


def check_block_exact(ExactBytes data not None) -> int:
    """0 when this is a block, else the code of `block_check`."""
    cdef BlockHeader header
    return block_check(data._data, <size_t>data._size, &header, True)


def view_block(ExactBytes data not None) -> BlockView:
    """The view of a block whose checksum is not looked at. Raises FrameError."""
    return BlockView.from_owner(data, 0, <size_t>data._size)


cdef int fit_block(uint8_t* data, size_t size) noexcept:
    """Make the lengths of a block agree with its size, as formats.BlockFormat.fit does."""
    cdef BlockHeader* header = <BlockHeader*>data
    cdef size_t room = size - sizeof(BlockHeader)
    cdef uint32_t* lengths = <uint32_t*>(data + sizeof(BlockHeader))
    cdef uint64_t others = 0
    cdef size_t index
    if size < sizeof(BlockHeader):
        return 0
    if not header.flags & 1:
        header.command_count = <uint32_t>min(<size_t>header.command_count, room // 4)
        room -= 4 * <size_t>header.command_count
    header.payload_bytes = <uint32_t>room
    if not header.flags & 1 and header.command_count:
        for index in range(header.command_count - 1):
            others += lengths[index]
        if others <= room:
            lengths[header.command_count - 1] = <uint32_t>(room - others)
    return 0


cdef struct Place:
    # Where a write is judged.
    uint64_t incarnation
    uint64_t segment_number
    uint64_t offset
    uint64_t segment_bytes


cdef int judge_write(const uint8_t* data, size_t size, const Place* place, uint32_t* whole,
                     uint32_t* matching) noexcept:
    """The verdict of `write_check`; of a good write also how many of its blocks are here, and match."""
    cdef WriteHeader header
    cdef const BatchDescriptor* descriptors = <const BatchDescriptor*>(data + WRITE_HEADER_BYTES)
    cdef uint64_t position
    cdef uint32_t index
    cdef int verdict = write_check(data, size, place.incarnation, place.segment_number, place.offset,
                                   place.segment_bytes, &header)
    whole[0] = matching[0] = 0
    if verdict != 1:
        return verdict
    position = WRITE_HEADER_BYTES + header.descriptor_count * <uint64_t>sizeof(BatchDescriptor)
    for index in range(header.descriptor_count):
        # As the readers do: what the file does not hold is judged by their length checks, not by this one.
        if position + descriptors[index].block_bytes > size:
            break
        whole[0] += 1
        matching[0] += block_matches(&descriptors[index], data + position)
        position += descriptors[index].block_bytes
    return verdict


def check_write(ExactBytes data not None, uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                uint64_t segment_bytes) -> tuple:
    """(verdict of `write_check`, whole blocks, blocks that match their descriptors)."""
    cdef uint32_t whole, matching
    cdef Place place = [incarnation, segment_number, offset, segment_bytes]
    cdef int verdict = judge_write(data._data, <size_t>data._size, &place, &whole, &matching)
    return verdict, whole, matching


def check_segment_header(ExactBytes data not None):
    """(flags, version, segment_bytes) of a good segment header, or None. `data` has at least 512 bytes."""
    cdef SegmentHeader header
    if data._size < SEGMENT_HEADER_BYTES or not decode_segment_header(data._data, &header):
        return None
    return header.flags, header.version, header.segment_bytes


cdef class Burst:
    """Many small changes of one input, each in exact memory of its own: changed, sealed, judged without Python.

    Args:
        kind: "block", "write" or "header".
        fields: (offset, width) of the fields that are changed; behind `entries_begin`, `entry` repeats every `stride`.
        place: (incarnation, segment number, offset, segment bytes) of writes.

    Attributes:
        tallies: how often each verdict was given, the one with code c at c + 5; a write with a bad block has 2.
        failed: the input that broke a property, or None.
        reached: the last input that took a new edge, or None.
    """

    cdef int _kind
    cdef size_t[FIELDS_MAX] _offsets
    cdef size_t[FIELDS_MAX] _widths
    cdef size_t _fixed
    cdef size_t _count
    cdef size_t _entries_begin
    cdef size_t _stride
    cdef Place _place
    cdef uint64_t[TALLY_CODES] _tallies
    cdef readonly bytes failed
    cdef readonly bytes reached

    def __init__(self, kind, fields, entries_begin, stride, entry, place=(0, 0, 0, 0)):
        self._kind = ("block", "write", "header").index(kind)
        self._fixed = len(fields)
        for offset, width in [*fields, *entry]:
            self._offsets[self._count] = offset
            self._widths[self._count] = width
            self._count += 1
        self._entries_begin = entries_begin
        self._stride = stride
        self._place = [place[0], place[1], place[2], place[3]]

    @property
    def tallies(self) -> list:
        return [self._tallies[index] for index in range(TALLY_CODES)]

    def run(self, ExactBytes base not None, Chance chance not None, int count, uint8_t[::1] box=None) -> int:
        """Judge up to `count` variants of `base`; stops after one that broke a property or took a new edge.

        Each variant is copied into `box` before it is judged. Returns how many were judged.
        """
        cdef size_t size
        cdef uint8_t* data
        cdef int index, code
        cdef uint64_t edge_count = fp_edges_now()
        self.failed = self.reached = None
        for index in range(count):
            size = <size_t>base._size
            # One in eight is cut or goes on behind its end.
            if chance.below(8) == 0:
                size = chance.below(size + 16) + 1
            data = <uint8_t*>malloc(size)
            if data == NULL:
                raise MemoryError(f"no memory for {size} bytes")
            self.vary(data, size, base, chance)
            if box is not None and size + BOX_BYTES <= <size_t>box.shape[0]:
                (<uint32_t*>&box[BOX_BYTES - 4])[0] = <uint32_t>size
                memcpy(&box[BOX_BYTES], data, size)
            code = self.judge(data, size)
            if code == TALLY_CODES:
                self.failed = data[:size]
            elif fp_edges_now() != edge_count:
                self.reached = data[:size]
            free(data)
            if code != TALLY_CODES:
                self._tallies[code] += 1
            if self.failed is not None or self.reached is not None:
                return index + 1
        return count

    cdef int vary(self, uint8_t* data, size_t size, ExactBytes base, Chance chance) except -1:
        """Copy the base, change one field or more, and seal."""
        cdef size_t kept = min(size, <size_t>base._size)
        cdef size_t offset, width, field, entry
        cdef uint64_t value
        memcpy(data, base._data, kept)
        memset(data + kept, <int>chance.below(256), size - kept)
        while True:
            field = chance.below(self._count)
            offset = self._offsets[field]
            width = self._widths[field]
            if field >= self._fixed and size > self._entries_begin:
                entry = chance.below((size - self._entries_begin) // self._stride + 1)
                offset += self._entries_begin + entry * self._stride
            if offset + width <= size:
                value = 0
                memcpy(&value, data + offset, width)
                value = interesting(chance, value, width, size)
                memcpy(data + offset, &value, width)
            if chance.below(4):
                break
        if self._kind == 0 and chance.below(2):
            fit_block(data, size)
        if chance.below(8):
            self.seal(data, size)
        return 0

    cdef int seal(self, uint8_t* data, size_t size) noexcept:
        cdef uint32_t crc
        cdef size_t place = 4 if self._kind == 0 else 8 if self._kind == 1 else 12
        cdef size_t end = size
        if self._kind == 1:
            if size < WRITE_HEADER_BYTES:
                return 0
            end = WRITE_HEADER_BYTES + sizeof(BatchDescriptor) * <size_t>(<const WriteHeader*>data).descriptor_count
            if end > size:
                return 0
        elif self._kind == 2:
            end = SEGMENT_HEADER_BYTES
        if end > size or size < place + 4:
            return 0
        crc = fp_crc32c(0, &self._place, 24) if self._kind == 1 else 0
        crc = fp_crc32c(crc, data, place)
        crc = fp_crc32c(crc, data + place + 4, end - place - 4)
        memcpy(data + place, &crc, 4)
        return 0

    cdef int judge(self, const uint8_t* data, size_t size) noexcept:
        """The place of the verdict in `tallies`, or TALLY_CODES when a property is broken."""
        cdef BlockHeader block
        cdef SegmentHeader segment
        cdef uint32_t whole, matching
        cdef int code
        if self._kind == 0:
            code = block_check(data, size, &block, True)
            if code == 0 and (block.command_count == 0 or block.payload_bytes > size - sizeof(BlockHeader)):
                return TALLY_CODES
        elif self._kind == 1:
            code = judge_write(data, size, &self._place, &whole, &matching)
            if code == 1 and ((<const WriteHeader*>data).total_bytes > self._place.segment_bytes - self._place.offset
                              or whole > (<const WriteHeader*>data).descriptor_count):
                return TALLY_CODES
            if code == 1 and matching < whole:
                code = 2
        else:
            if size < SEGMENT_HEADER_BYTES:
                return TALLY_ZERO - 1
            code = decode_segment_header(data, &segment)
        return code + TALLY_ZERO


def read_too_far(ExactBytes data not None) -> int:
    """A planted bug: sums the payload of a block as long as its header says. The sanitizer must stop this."""
    cdef BlockHeader header
    cdef uint32_t index
    cdef uint64_t total = 0
    if <size_t>data._size < sizeof(BlockHeader):
        return 0
    memcpy(&header, data._data, sizeof(BlockHeader))
    for index in range(header.payload_bytes & 0xFFFFF):
        total += data._data[sizeof(BlockHeader) + index]
    return total
