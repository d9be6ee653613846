"""One segment file of the journal, for reading: its header, and finding good writes in it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastpaxos_core.journal_format cimport (
    DESCRIPTOR_BYTES, SEGMENT_FIRST_OFFSET, SEGMENT_FLAGS_KNOWN, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, WRITE_ALIGNMENT,
    WRITE_HEADER_BYTES, WRITE_MAGIC, decode_segment_header, segment_name_of, write_check,
)

from fastpaxos_core.types cimport NUMBER_BITS

from fastpaxos_core.errors import ConfigError, CorruptionError

cdef size_t PIECE_BYTES = 1 << 20
# What the journal index can address; a segment is larger than its setting only to hold one large write.
cdef uint64_t SEGMENT_SIZE_LIMIT = 1 << 41


cdef class SegmentFile:
    """One segment in the chain, read through a buffer of about 1 MiB."""

    cdef int load_header(self, directory, uint64_t number, list problems) except -1:
        cdef bytes data
        cdef uint64_t copy
        self.directory = directory
        self.name = segment_name_of(number)
        self.file_size = directory.size(self.name)
        data = directory.read(self.name, 0, SEGMENT_FIRST_OFFSET)
        for copy in range(2):
            if (<uint64_t>PyBytes_GET_SIZE(data) >= (copy + 1) * SEGMENT_HEADER_BYTES and decode_segment_header(
                    <const uint8_t*>PyBytes_AS_STRING(data) + copy * SEGMENT_HEADER_BYTES, &self.header)):
                if copy:
                    problems.append(f"{self.name}: the first copy of the segment header is corrupt, the second is good")
                break
        else:
            raise CorruptionError(
                f"{self.name}: both copies of the segment header are corrupt; this disk's data cannot be trusted"
            )
        if copy == 0 and data[:SEGMENT_HEADER_BYTES] != data[SEGMENT_HEADER_BYTES:]:
            problems.append(f"{self.name}: the second copy of the segment header is corrupt, the first is good")
        if self.header.version != SEGMENT_VERSION or self.header.flags & ~SEGMENT_FLAGS_KNOWN:
            raise ConfigError(
                f"{self.name}: segment version {self.header.version} with flags {self.header.flags:#x} is unknown to "
                f"this program; it was written by a newer one"
            )
        self.check_numbers()
        if self.header.segment_number != number:
            raise CorruptionError(
                f"{self.name}: the header says that this is segment {self.header.segment_number}; files were exchanged"
            )
        self.end = self.header.segment_bytes
        self.buffer = b""
        return 0

    cdef int check_numbers(self) except -1:
        """What no start of any node writes: an error of whoever wrote the header, or a forgery."""
        cdef SegmentHeader* header = &self.header
        if (header.first_write_number == 0
                or (header.segment_number | header.first_write_number | header.durable_write_number
                    | header.cut_segment | header.commit_index) >> NUMBER_BITS
                or header.segment_bytes % WRITE_ALIGNMENT or header.segment_bytes < SEGMENT_FIRST_OFFSET
                or header.segment_bytes >= SEGMENT_SIZE_LIMIT or header.cut_offset >= SEGMENT_SIZE_LIMIT):
            raise CorruptionError(
                f"{self.name}: the segment header has impossible numbers: segment {header.segment_number} of "
                f"{header.segment_bytes} bytes, first write {header.first_write_number}, durable "
                f"{header.durable_write_number}, cut at {header.cut_offset} of segment {header.cut_segment}, commit "
                f"index {header.commit_index}"
            )
        return 0

    cdef const uint8_t* fetch(self, uint64_t offset, size_t length) except? NULL:
        """Pointer to at least `length` bytes at `offset`, or NULL when the file (or what may be read) ends before."""
        cdef uint64_t limit = min(self.end, self.file_size)
        cdef uint64_t buffer_end = self.buffer_offset + <uint64_t>PyBytes_GET_SIZE(self.buffer)
        if offset + length > limit:
            return NULL
        if offset < self.buffer_offset or offset + length > buffer_end:
            self.buffer = self.directory.read(
                self.name, offset, min(max(length, PIECE_BYTES), limit - offset)
            )
            self.buffer_offset = offset
            if <size_t>PyBytes_GET_SIZE(self.buffer) < length:
                return NULL
        return <const uint8_t*>PyBytes_AS_STRING(self.buffer) + (offset - self.buffer_offset)

    cdef int check(self, uint64_t offset, uint64_t incarnation, WriteHeader* header) except -1:
        """1 when a good write stands at `offset`, with its head at `fetch(offset, head bytes)`; else 0."""
        cdef const uint8_t* data = self.fetch(offset, WRITE_HEADER_BYTES)
        cdef size_t size = WRITE_HEADER_BYTES
        cdef int verdict
        if data == NULL or (<const WriteHeader*>data).magic != WRITE_MAGIC:
            return 0
        verdict = write_check(data, size, incarnation, self.header.segment_number, offset, self.end, header)
        if verdict == -1:
            size += <size_t>header.descriptor_count * DESCRIPTOR_BYTES
            data = self.fetch(offset, size)
            if data == NULL:
                return 0
            verdict = write_check(data, size, incarnation, self.header.segment_number, offset, self.end, header)
        if verdict == -2:
            raise ConfigError(
                f"{self.name}: the write at offset {offset} has version {header.version}, kind {header.kind} and flags "
                f"{header.flags:#x}, or batches with flags, that are unknown to this program; a newer one wrote it"
            )
        return verdict == 1

    cdef bint is_zero(self, uint64_t offset) except -1:
        """True when the sector at `offset` was never written."""
        cdef bytes sector = self.directory.read(self.name, offset, WRITE_ALIGNMENT)
        return sector.count(0) == len(sector)

    cdef uint64_t find_write(self, uint64_t offset, uint64_t incarnation, uint64_t number,
                             WriteHeader* header) except? 0:
        """Place of the next good write whose number is above `number`, at or behind `offset`, or 0."""
        while offset < self.end and offset < self.file_size:
            if self.check(offset, incarnation, header) and header.write_number > number:
                return offset
            offset += WRITE_ALIGNMENT
        return 0
