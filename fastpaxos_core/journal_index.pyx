"""Finding slots in the journal: which piece covers a slot, and which batches stand in a piece that was read.

The last record that covers a committed slot holds the chosen value, so both look from the end.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc

from fastpaxos_core.journal_format cimport (
    DESCRIPTOR_BYTES, WRITE_ALIGNMENT, WRITE_HEADER_BYTES, WriteHeader, block_matches, padded_bytes,
    write_check,
)

from fastpaxos_core.errors import InvariantError

cdef uint64_t SLOT_INFINITY = 0xFFFFFFFFFFFFFFFF
cdef uint64_t INDEX_ENTRY_BYTES = 256 << 10


cdef class JournalIndex:
    """Which pieces of the journal cover which slots, in journal order: 48 bytes per 256 KiB of writes."""

    def __cinit__(self):
        self.entry_bytes_min = INDEX_ENTRY_BYTES
        self.closed = True

    def __dealloc__(self):
        free(self.entries)

    def __len__(self) -> int:
        return self.count

    cdef int grow(self) except -1:
        cdef Py_ssize_t capacity = 2 * self.capacity if self.capacity else 16
        cdef IndexEntry* entries
        if self.count < self.capacity:
            return 0
        entries = <IndexEntry*>realloc(self.entries, capacity * sizeof(IndexEntry))
        if entries == NULL:
            raise MemoryError(f"no memory for {capacity} journal index entries")
        self.entries = entries
        self.capacity = capacity
        return 0

    cdef int add(self, uint64_t segment_number, uint64_t offset, uint64_t nbytes, slot_t slot_min,
                 slot_t slot_max) except -1:
        """Add a write: it extends the last entry while that is small and ends where the write begins."""
        cdef IndexEntry* last
        cdef uint64_t sector = offset // WRITE_ALIGNMENT
        cdef uint64_t sector_count = nbytes // WRITE_ALIGNMENT
        cdef uint64_t slot_before = 0
        if sector + sector_count > 0xFFFFFFFF:
            raise InvariantError(f"a write of {nbytes} bytes at offset {offset} does not fit into the journal index")
        if not self.closed:
            last = &self.entries[self.count - 1]
            if (last.segment_number == segment_number and last.sector + last.sector_count == sector
                    and last.sector_count * <uint64_t>WRITE_ALIGNMENT < self.entry_bytes_min):
                last.sector_count += <uint32_t>sector_count
                if slot_min > slot_max:
                    return 0
                last.slot_min = min(last.slot_min, slot_min)
                last.slot_max = max(last.slot_max, slot_max)
                self._spread(slot_min)
                return 0
        if slot_min > slot_max:
            return 0
        self.grow()
        if self.count:
            slot_before = self.entries[self.count - 1].prefix_slot_max
        last = &self.entries[self.count]
        last.segment_number = segment_number
        last.sector = <uint32_t>sector
        last.sector_count = <uint32_t>sector_count
        last.slot_min = slot_min
        last.slot_max = slot_max
        last.suffix_slot_min = slot_min
        last.prefix_slot_max = max(slot_before, slot_max)
        self.count += 1
        self.closed = False
        self._spread(slot_min)
        return 0

    cdef int _spread(self, slot_t slot_min) except -1:
        """Keep the running minimum and maximum right after the last entry has changed."""
        cdef IndexEntry* last = &self.entries[self.count - 1]
        cdef Py_ssize_t position = self.count - 2
        last.prefix_slot_max = max(last.prefix_slot_max, last.slot_max)
        last.suffix_slot_min = last.slot_min
        while position >= 0 and self.entries[position].suffix_slot_min > slot_min:
            self.entries[position].suffix_slot_min = slot_min
            position -= 1
        return 0

    cdef int add_refill(self, uint64_t segment_number, uint64_t offset, uint64_t nbytes, slot_t slot_min,
                        slot_t slot_max) except -1:
        """Add an entry of its own, so that old slots written again do not widen the range of the newest entry."""
        self.closed = True
        self.add(segment_number, offset, nbytes, slot_min, slot_max)
        self.closed = True
        return 0

    cdef int add_corrupt(self, uint64_t segment_number, slot_t slot_min) except -1:
        """Add a place that cannot be read and may have held anything from `slot_min` on."""
        return self.add_refill(segment_number, 0, 0, slot_min, SLOT_INFINITY)

    cdef Py_ssize_t find(self, slot_t slot, Py_ssize_t before) noexcept nogil:
        """Position of the last entry before `before` whose range covers the slot, or -1."""
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = min(before, self.count)
        cdef Py_ssize_t middle
        # suffix_slot_min never falls from one entry to the next: no entry behind the last one that is <= slot counts.
        while low < high:
            middle = (low + high) // 2
            if self.entries[middle].suffix_slot_min <= slot:
                low = middle + 1
            else:
                high = middle
        low -= 1
        while low >= 0 and self.entries[low].prefix_slot_max >= slot:
            if self.entries[low].slot_min <= slot <= self.entries[low].slot_max:
                return low
            low -= 1
        return -1

    cdef bint is_superseded(self, Py_ssize_t position, slot_t slot_begin, slot_t slot_end) noexcept nogil:
        """True when a later entry may hold something for the range."""
        cdef Py_ssize_t later = position + 1
        while later < self.count and self.entries[later].suffix_slot_min < slot_end:
            if self.entries[later].slot_min < slot_end and self.entries[later].slot_max >= slot_begin:
                return True
            later += 1
        return False


cdef class Piece:
    """The batches of one piece of the journal, in journal order."""

    def __dealloc__(self):
        free(self.descriptors)
        free(self.offsets)
        free(self.suffix_slot_begin)

    cdef int scan(self, bytes data, uint64_t incarnation, uint64_t segment_number, uint64_t offset,
                  size_t length) except -1:
        """List the batches; a bad head hides what stood before it, for it may have replaced any of that."""
        cdef const uint8_t* bytes_of_data = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef size_t size = min(<size_t>PyBytes_GET_SIZE(data), length)
        cdef size_t position = 0
        cdef uint64_t number = 0
        cdef WriteHeader header
        cdef Py_ssize_t index
        while position < size:
            if (write_check(bytes_of_data + position, size - position, incarnation, segment_number,
                            offset + position, offset + size, &header) != 1
                    or header.write_number <= number):
                self.has_gap = True
                self.count = 0
                position += WRITE_ALIGNMENT
                continue
            number = header.write_number
            self.add(bytes_of_data + position, position, header.descriptor_count)
            position += padded_bytes(header.total_bytes)
        if size < length:
            self.has_gap = True
            self.count = 0
        self.suffix_slot_begin = <uint64_t*>malloc((self.count + 1) * sizeof(uint64_t))
        if self.suffix_slot_begin == NULL:
            raise MemoryError(f"no memory for {self.count} batches of a journal piece")
        self.suffix_slot_begin[self.count] = SLOT_INFINITY
        for index in range(self.count - 1, -1, -1):
            self.suffix_slot_begin[index] = min(
                self.suffix_slot_begin[index + 1], self.descriptors[index].slot_begin
            )
        return 0

    cdef int add(self, const uint8_t* head, size_t position, uint32_t descriptor_count) except -1:
        cdef const BatchDescriptor* descriptors = <const BatchDescriptor*>(head + WRITE_HEADER_BYTES)
        cdef size_t offset = position + WRITE_HEADER_BYTES + <size_t>descriptor_count * DESCRIPTOR_BYTES
        cdef Py_ssize_t capacity = max(2 * self.capacity, self.count + <Py_ssize_t>descriptor_count)
        cdef uint32_t index
        cdef void* memory
        if self.count + <Py_ssize_t>descriptor_count > self.capacity:
            memory = realloc(self.descriptors, capacity * sizeof(BatchDescriptor))
            if memory == NULL:
                raise MemoryError(f"no memory for {capacity} batches of a journal piece")
            self.descriptors = <BatchDescriptor*>memory
            memory = realloc(self.offsets, capacity * sizeof(size_t))
            if memory == NULL:
                raise MemoryError(f"no memory for {capacity} batches of a journal piece")
            self.offsets = <size_t*>memory
            self.capacity = capacity
        for index in range(descriptor_count):
            self.descriptors[self.count] = descriptors[index]
            self.offsets[self.count] = offset
            self.count += 1
            offset += descriptors[index].block_bytes
        return 0

    cdef Py_ssize_t find(self, slot_t slot) noexcept nogil:
        """The last batch that covers the slot, or -1."""
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle
        while low < high:
            middle = (low + high) // 2
            if self.suffix_slot_begin[middle] <= slot:
                low = middle + 1
            else:
                high = middle
        low -= 1
        while low >= 0 and not self.descriptors[low].slot_begin <= slot < self.descriptors[low].slot_end:
            low -= 1
        return low

    cdef bint is_superseded(self, Py_ssize_t record) noexcept nogil:
        """True when a later batch of this piece overlaps this one."""
        cdef BatchDescriptor* descriptor = &self.descriptors[record]
        cdef Py_ssize_t later = record + 1
        while self.suffix_slot_begin[later] < descriptor.slot_end:
            if (self.descriptors[later].slot_begin < descriptor.slot_end
                    and self.descriptors[later].slot_end > descriptor.slot_begin):
                return True
            later += 1
        return False

    cdef bint is_readable(self, Py_ssize_t record, bytes data) noexcept:
        return block_matches(
            &self.descriptors[record], <const uint8_t*>PyBytes_AS_STRING(data) + self.offsets[record]
        )

    cdef Py_ssize_t find_value(self, const BatchDescriptor* wanted, bytes data) noexcept:
        """The last readable batch with the wanted value, or -1."""
        cdef Py_ssize_t record = self.count - 1
        cdef BatchDescriptor* descriptor
        while record >= 0:
            descriptor = &self.descriptors[record]
            if (descriptor.slot_begin == wanted.slot_begin and descriptor.slot_end == wanted.slot_end
                    and descriptor.timestamp_ns == wanted.timestamp_ns and descriptor.value_crc == wanted.value_crc
                    and descriptor.block_bytes == wanted.block_bytes and self.is_readable(record, data)):
                return record
            record -= 1
        return -1
