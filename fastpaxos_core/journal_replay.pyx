"""The state that the writes of a journal add up to: promise, commit index, uncommitted batches, index (DESIGN 5.1).

Writes are replayed in journal order. Only descriptors are looked at; blocks are read at the end, for those batches that
are still uncommitted then.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from fastpaxos_core.journal_format cimport (
    WRITE_HEADER_BYTES, WRITE_PROMISE_UNKNOWN, StoredBatch, WriteHeader, block_matches, padded_bytes, segment_name_of,
)
from fastpaxos_core.types cimport BATCH_COMMITTED, SLOTS_AHEAD_MAX, uint8_t, uint32_t

from fastpaxos_core.errors import InvariantError

cdef uint64_t SLOT_INFINITY = 0xFFFFFFFFFFFFFFFF


cdef class Replay:
    """Empty at first: no promise, nothing committed, nothing unknown."""

    def __cinit__(self):
        self.index = JournalIndex()
        self.unknown = []
        self.promised_known = True

    def __dealloc__(self):
        free(self.located)

    cdef int replay_header(self, ballot_t promised_ballot, bint promised_known, slot_t commit_index) except -1:
        """What every head says, a segment's too: it knows all promises made before it unless it says otherwise."""
        self.promised_ballot = max(self.promised_ballot, promised_ballot)
        self.promised_known = promised_known
        self.raise_commit_index(commit_index)
        return 0

    cdef int replay_write(self, bytes head, uint64_t segment_number, uint64_t offset) except -1:
        """Count one write that stands at `offset` of the segment: its promise, its batches, its commit index."""
        cdef const WriteHeader* header = <const WriteHeader*>PyBytes_AS_STRING(head)
        cdef const BatchDescriptor* descriptors = <const BatchDescriptor*>(
            PyBytes_AS_STRING(head) + WRITE_HEADER_BYTES)
        cdef const BatchDescriptor* descriptor
        cdef uint64_t block_offset = offset + PyBytes_GET_SIZE(head)
        cdef uint64_t padded = padded_bytes(header.total_bytes)
        cdef slot_t slot_min = SLOT_INFINITY
        cdef slot_t slot_max = 0
        cdef slot_t old_commit_index = self.commit_index
        cdef list refills = []
        cdef uint32_t index
        for index in range(header.descriptor_count):
            descriptor = &descriptors[index]
            if descriptor.slot_end - 1 <= old_commit_index:
                refills.append((descriptor.slot_begin, descriptor.slot_end - 1))
            else:
                slot_min = min(slot_min, descriptor.slot_begin)
                slot_max = max(slot_max, descriptor.slot_end - 1)
            self.replay_batch(descriptor, segment_number, block_offset)
            block_offset += descriptor.block_bytes
        self.index.add(segment_number, offset, padded, slot_min, slot_max)
        for refill_min, refill_max in refills:
            self.index.add_refill(segment_number, offset, padded, refill_min, refill_max)
        self.replay_header(header.promised_ballot, not header.flags & WRITE_PROMISE_UNKNOWN, header.commit_index)
        return self.close_bound()

    cdef int close_bound(self) except -1:
        """What is lost was accepted before this place, at a commit index that was not higher yet."""
        if self.bound_is_open:
            self.bound_is_open = False
            self.unknown = subtract_range(self.unknown, self.commit_index + 1 + SLOTS_AHEAD_MAX, SLOT_INFINITY)
        return 0

    cdef int replay_batch(self, const BatchDescriptor* descriptor, uint64_t segment_number, uint64_t offset) except -1:
        """An accepted or learned batch drops, whole, every older uncommitted batch that it overlaps (rule 5.1)."""
        cdef Py_ssize_t position
        cdef Py_ssize_t last
        if not descriptor.flags & BATCH_COMMITTED:
            self.promised_ballot = max(self.promised_ballot, descriptor.ballot)
        if descriptor.slot_end - 1 <= self.commit_index:
            return 0
        if descriptor.slot_begin <= self.commit_index:
            raise InvariantError(
                f"the journal says that slot {self.commit_index} is committed, but the batch [{descriptor.slot_begin}, "
                f"{descriptor.slot_end}) that was accepted after that covers it as well"
            )
        last = self.count
        while last > 0 and self.located[self.first + last - 1].descriptor.slot_begin >= descriptor.slot_end:
            last -= 1
        position = last
        while position > 0 and self.located[self.first + position - 1].descriptor.slot_end > descriptor.slot_begin:
            position -= 1
        self.make_room(position, last)
        self.located[self.first + position].descriptor = descriptor[0]
        self.located[self.first + position].segment_number = segment_number
        self.located[self.first + position].offset = offset
        if self.unknown:
            self.unknown = subtract_range(self.unknown, descriptor.slot_begin, descriptor.slot_end)
        if descriptor.flags & BATCH_COMMITTED and descriptor.slot_begin == self.commit_index + 1:
            self.raise_commit_index(descriptor.slot_end - 1)
        return 0

    cdef int make_room(self, Py_ssize_t begin, Py_ssize_t end) except -1:
        """Replace the batches [begin, end) by one unset entry at `begin`."""
        cdef Located* located
        if self.first + self.count == self.capacity:
            if self.first > self.capacity // 2:
                memmove(self.located, self.located + self.first, self.count * sizeof(Located))
                self.first = 0
            else:
                located = <Located*>realloc(self.located, (2 * self.capacity + 64) * sizeof(Located))
                if located == NULL:
                    raise MemoryError(f"no memory for {2 * self.capacity + 64} uncommitted batches")
                self.located = located
                self.capacity = 2 * self.capacity + 64
        located = self.located + self.first
        memmove(located + begin + 1, located + end, (self.count - end) * sizeof(Located))
        self.count += 1 - (end - begin)
        return 0

    cdef int raise_commit_index(self, slot_t commit_index) except -1:
        cdef BatchDescriptor* descriptor
        if commit_index <= self.commit_index:
            return 0
        self.commit_index = commit_index
        while self.count and self.located[self.first].descriptor.slot_begin <= commit_index:
            descriptor = &self.located[self.first].descriptor
            if descriptor.slot_end - 1 > commit_index:
                raise InvariantError(
                    f"the journal says that slot {commit_index} is the last committed one, but it is inside of the "
                    f"batch [{descriptor.slot_begin}, {descriptor.slot_end}) that was accepted last"
                )
            self.first += 1
            self.count -= 1
        if self.unknown:
            self.unknown = subtract_range(self.unknown, 0, commit_index + 1)
        return 0

    cdef int replay_corrupt_place(self, uint64_t segment_number) except -1:
        """Something unreadable stood here: it may have replaced every batch that is not committed before it."""
        self.unknown = [(self.commit_index + 1, SLOT_INFINITY)]
        self.first = 0
        self.count = 0
        self.promised_known = False
        self.bound_is_open = True
        self.index.add_corrupt(segment_number, self.commit_index + 1)
        return 0

    cdef list load_batches(self, directory, list problems, bytes tail, uint64_t tail_segment, uint64_t tail_offset):
        """The uncommitted batches as StoredBatches; those with a corrupt block become unknown.

        Blocks at or behind `tail_offset` of `tail_segment` are taken from `tail` (None: no such write).
        """
        cdef Located* located
        cdef Py_ssize_t position
        cdef bytes owner
        cdef size_t offset
        cdef list batches = []
        for position in range(self.count):
            located = &self.located[self.first + position]
            name = segment_name_of(located.segment_number)
            if tail is not None and located.segment_number == tail_segment and located.offset >= tail_offset:
                owner, offset = tail, located.offset - tail_offset
            else:
                owner, offset = directory.read(name, located.offset, located.descriptor.block_bytes), 0
            if (<size_t>PyBytes_GET_SIZE(owner) - offset < located.descriptor.block_bytes or not block_matches(
                    &located.descriptor, <const uint8_t*>PyBytes_AS_STRING(owner) + offset)):
                slots = located.descriptor.slot_begin, located.descriptor.slot_end
                problems.append(f"{name}: the block of the batch [{slots[0]}, {slots[1]}) is corrupt")
                self.unknown = merge_range(self.unknown, slots)
            else:
                batches.append(StoredBatch.make(&located.descriptor, owner, offset))
        return batches


cdef list subtract_range(list ranges, slot_t slot_begin, slot_t slot_end):
    """The half-open ranges without [slot_begin, slot_end)."""
    cdef list result = []
    cdef slot_t begin, end
    for begin, end in ranges:
        if begin < min(end, slot_begin):
            result.append((begin, min(end, slot_begin)))
        if max(begin, slot_end) < end:
            result.append((max(begin, slot_end), end))
    return result


cdef list merge_range(list ranges, tuple added):
    """The half-open ranges, sorted, together with one that overlaps none of them."""
    cdef list result = []
    for begin, end in sorted([*ranges, added]):
        if result and result[len(result) - 1][1] >= begin:
            begin, last_end = result.pop()
            end = max(end, last_end)
        result.append((begin, end))
    return result
