"""The journal, the write-ahead log: the live side (DESIGN 5.11).

The journal is sans-I/O: `seal` says which bytes go where, the shell writes and syncs them in that order and reports
with `synced`; `locate` says which bytes to read, `parse` judges them. Formats are in journal_format, recovery is in
journal_recovery.

Every group-commit write carries its own number (its ticket), the last number known durable, the promised ballot and a
commit index.
"""

from collections import deque

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from fastpaxos_core.block cimport BlockHeader, block_check, value_crc
from fastpaxos_core.journal_format cimport (
    DESCRIPTOR_BYTES, SEGMENT_AFTER_MARKER, SEGMENT_FIRST_OFFSET, SEGMENT_PROMISE_UNKNOWN, WRITE_AFTER_MARKER,
    WRITE_ALIGNMENT, WRITE_BATCHES, WRITE_HEADER_BYTES, WRITE_MAGIC, WRITE_MARKER, WRITE_PROMISE_UNKNOWN, WRITE_VERSION,
    SegmentHeader, encode_segment_header, padded_bytes, segment_name_of, write_crc,
)
from fastpaxos_core.journal_index cimport IndexEntry, Piece
from fastpaxos_core.types cimport BATCH_COMMITTED

from fastpaxos_core.errors import ConfigError, InvariantError


cdef enum:
    JOIN_BYTES_MAX = 4096           # blocks below this size are copied next to the head, larger ones are not
    PENDING_INITIAL = 64

cdef uint64_t SLOT_INFINITY = 0xFFFFFFFFFFFFFFFF
cdef uint64_t SEGMENT_BYTES_MIN = 4096
cdef uint64_t SEGMENT_BYTES_MAX = 1 << 40


cdef class JournalWrite:
    """One sealed group commit: create `new_segment` durably if it is not None, then write `buffers` at `offset`.

    Writes must be carried out one after the other, each synced before the next begins (a marker is not synced).
    """

    def __repr__(self) -> str:
        return (f"JournalWrite(ticket={self.ticket}, segment={self.segment_number}, offset={self.offset}, "
                f"nbytes={self.nbytes}, is_marker={self.is_marker}, new_segment={self.new_segment is not None})")


cdef class JournalRead:
    """One piece of the journal to be read: `length` bytes at `offset` of `segment_name`, then given to `parse`."""

    @property
    def is_corrupt(self) -> bool:
        """True after `parse` found the slot's record unreadable (and not just absent from this piece)."""
        return self.outcome == READ_CORRUPT

    def __repr__(self) -> str:
        return (f"JournalRead(slot={self.slot}, segment={self.segment_number}, offset={self.offset}, "
                f"length={self.length}, position={self.position})")


cdef class Journal:
    """The live side: collects batches, seals them into writes, and knows where each slot can be read back.

    Made by `Journal.open`. Ownership: keeps the owners of pending blocks alive until they are sealed; a JournalWrite
    keeps them alive until it is dropped, and the journal keeps each JournalWrite until `synced`.
    """

    def __cinit__(self, uint64_t node_id, uint64_t incarnation, uint64_t boot, uint64_t segment_bytes):
        if segment_bytes % WRITE_ALIGNMENT or not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise ConfigError(
                f"segment_bytes {segment_bytes} must be a multiple of {WRITE_ALIGNMENT} in "
                f"{SEGMENT_BYTES_MIN}..{SEGMENT_BYTES_MAX}"
            )
        self.node_id = node_id
        self.incarnation = incarnation
        self.boot = boot
        self.segment_bytes = segment_bytes
        self.next_ticket = 1
        self.promised_known = True
        self.index = JournalIndex()
        self.in_flight = deque()
        self.pending_owners = []
        self.reserve_pending()

    def __dealloc__(self):
        free(self.pending)
        free(self.pending_offsets)

    @staticmethod
    def open(directory, *, node_id: int, incarnation: int, boot: int, segment_bytes: int = 64 << 20):
        """Recover the journal of `directory` and start a new segment.

        Returns:
            (Journal, Recovery): see `fastpaxos_core.journal_recovery.Recovery`.

        Raises:
            ConfigError: the journal belongs to another node or was written by a newer version.
            CorruptionError: both copies of a segment header are unreadable.
        """
        from fastpaxos_core.journal_recovery import open_journal

        return open_journal(directory, node_id, incarnation, boot, segment_bytes)

    cdef bint has_pending_c(self) noexcept nogil:
        return self.has_pending

    cdef int reserve_pending(self) except -1:
        cdef size_t capacity = 2 * self.pending_capacity if self.pending_capacity else PENDING_INITIAL
        cdef BatchDescriptor* pending
        cdef size_t* offsets
        pending = <BatchDescriptor*>realloc(self.pending, capacity * sizeof(BatchDescriptor))
        if pending == NULL:
            raise MemoryError(f"no memory for {capacity} pending batches")
        self.pending = pending
        offsets = <size_t*>realloc(self.pending_offsets, capacity * sizeof(size_t))
        if offsets == NULL:
            raise MemoryError(f"no memory for {capacity} pending batches")
        self.pending_offsets = offsets
        self.pending_capacity = capacity
        return 0

    cdef int append_batch(self, const BatchDescriptor* descriptor, bytes owner, size_t block_offset) except -1:
        cdef size_t size
        if owner is None:
            raise InvariantError("a batch is journalled without its block")
        size = PyBytes_GET_SIZE(owner)
        if block_offset > size or descriptor.block_bytes > size - block_offset:
            raise InvariantError(
                f"block of {descriptor.block_bytes} bytes at {block_offset} lies outside its owner of {size} bytes"
            )
        if descriptor.slot_begin == 0 or descriptor.slot_begin >= descriptor.slot_end:
            raise InvariantError(f"batch with the empty slot range [{descriptor.slot_begin}, {descriptor.slot_end})")
        if descriptor.flags & ~<uint32_t>BATCH_COMMITTED or descriptor.reserved:
            raise InvariantError(f"descriptor flags {descriptor.flags:#x} cannot be journalled")
        if self.pending_count == self.pending_capacity:
            self.reserve_pending()
        self.pending_owners.append(owner)
        self.pending[self.pending_count] = descriptor[0]
        self.pending_offsets[self.pending_count] = block_offset
        self.pending_count += 1
        self.pending_bytes += DESCRIPTOR_BYTES + descriptor.block_bytes
        self.has_pending = True
        return 0

    def append(self, slot_begin: int, slot_end: int, ballot: int, timestamp_ns: int, block: bytes,
               committed: bool = False) -> int:
        """Append a batch and return its ticket.

        Raises:
            ValueError: `block` is no valid block.
            InvariantError: the slot range is empty.
        """
        cdef BatchDescriptor descriptor
        cdef BlockHeader header
        if block_check(<const uint8_t*>PyBytes_AS_STRING(block), PyBytes_GET_SIZE(block), &header, True) != 0:
            raise ValueError(f"{len(block)} bytes that are no valid block")
        descriptor.slot_begin = slot_begin
        descriptor.slot_end = slot_end
        descriptor.ballot = ballot
        descriptor.timestamp_ns = timestamp_ns
        descriptor.block_bytes = <uint32_t>PyBytes_GET_SIZE(block)
        descriptor.value_crc = value_crc(slot_begin, slot_end, timestamp_ns, header.crc)
        descriptor.flags = BATCH_COMMITTED if committed else 0
        descriptor.reserved = 0
        self.append_batch(&descriptor, block, 0)
        return self.next_ticket

    cpdef int touch(self) except -1:
        """Ask for a write although no batch is pending, for a promise; it is durable with `next_ticket`."""
        self.has_pending = True
        return 0

    cpdef JournalWrite seal(self, ballot_t promised_ballot, slot_t commit_index):
        """Turn all that is pending into one write with ticket `next_ticket`, or return None.

        `commit_index` promises that every batch up to it was appended before this call.

        Raises:
            InvariantError: promised_ballot or commit_index is lower than in an earlier write.
        """
        if not self.has_pending:
            return None
        return self.build_write(WRITE_BATCHES, promised_ballot, commit_index)

    cpdef JournalWrite marker(self, ballot_t promised_ballot, slot_t commit_index):
        """Return a write that names the durable point, when nothing is pending or in flight and none names it yet.

        It need not be waited for, nor synced: it only lets recovery tell a torn write from a corrupt one.
        """
        if (self.has_pending or self.in_flight or self.synced_ticket <= self.named_ticket
                or self.offset + WRITE_ALIGNMENT > self.segment_size):
            return None
        return self.build_write(WRITE_MARKER, promised_ballot, commit_index)

    cdef JournalWrite build_write(self, uint8_t kind, ballot_t promised_ballot, slot_t commit_index):
        cdef JournalWrite write = JournalWrite.__new__(JournalWrite)
        cdef WriteHeader header
        cdef BatchDescriptor* descriptor
        cdef size_t index, padded
        cdef uint64_t old_commit_index = self.sealed_commit_index
        if promised_ballot < self.sealed_promised_ballot or commit_index < self.sealed_commit_index:
            raise InvariantError(
                f"journal write {self.next_ticket} would lower promised ballot {self.sealed_promised_ballot:#x} to "
                f"{promised_ballot:#x} or commit index {self.sealed_commit_index} to {commit_index}"
            )
        memset(&header, 0, sizeof(header))
        header.magic = WRITE_MAGIC
        header.version = WRITE_VERSION
        header.kind = kind
        header.flags = (WRITE_AFTER_MARKER if self.last_was_marker else 0) | (
            0 if self.promised_known else WRITE_PROMISE_UNKNOWN)
        header.descriptor_count = <uint32_t>self.pending_count
        header.total_bytes = WRITE_HEADER_BYTES + self.pending_bytes
        header.write_number = self.next_ticket
        header.durable_write_number = self.synced_ticket
        header.promised_ballot = promised_ballot
        header.commit_index = commit_index
        padded = padded_bytes(header.total_bytes)
        write.new_segment = None
        if self.offset + padded > self.segment_size:
            write.new_segment = self.start_segment(padded)
        write.ticket = self.next_ticket
        write.segment_number = self.segment_number
        write.segment_name = segment_name_of(self.segment_number)
        write.segment_bytes = self.segment_size
        write.offset = self.offset
        write.nbytes = padded
        write.is_marker = kind == WRITE_MARKER
        write.needs_sync = kind != WRITE_MARKER
        write.buffers = self.build_buffers(&header, padded)
        write.slot_min = SLOT_INFINITY
        for index in range(self.pending_count):
            descriptor = &self.pending[index]
            if descriptor.slot_end - 1 <= old_commit_index:
                if write.refills is None:
                    write.refills = []
                write.refills.append((descriptor.slot_begin, descriptor.slot_end - 1))
            else:
                write.slot_min = min(write.slot_min, descriptor.slot_begin)
                write.slot_max = max(write.slot_max, descriptor.slot_end - 1)
        self.in_flight.append(write)
        self.offset += padded
        self.journal_bytes += padded
        self.next_ticket += 1
        self.named_ticket = self.synced_ticket
        self.last_was_marker = write.is_marker
        if write.is_marker:
            # Nothing rests on a marker: all that was appended before it is durable already.
            self.durable_ticket = write.ticket
        self.sealed_promised_ballot = promised_ballot
        self.sealed_commit_index = commit_index
        self.pending_count = 0
        self.pending_owners = []
        self.pending_bytes = 0
        self.has_pending = False
        return write

    cdef tuple start_segment(self, size_t padded):
        """Move to a new segment that begins with the write being sealed; returns (name, header_bytes, size).

        The header rests only on earlier writes: batches that the write itself brings are not committed by the header.
        """
        cdef SegmentHeader header
        memset(&header, 0, sizeof(header))
        self.segment_number += 1
        self.segment_size = max(self.segment_bytes, SEGMENT_FIRST_OFFSET + padded)
        self.offset = SEGMENT_FIRST_OFFSET
        self.journal_bytes += SEGMENT_FIRST_OFFSET
        header.flags = (SEGMENT_AFTER_MARKER if self.last_was_marker else 0) | (
            0 if self.promised_known else SEGMENT_PROMISE_UNKNOWN)
        header.node_id = self.node_id
        header.incarnation = self.incarnation
        header.boot = self.boot
        header.segment_number = self.segment_number
        header.segment_bytes = self.segment_size
        header.first_write_number = self.next_ticket
        header.durable_write_number = self.synced_ticket
        header.promised_ballot = self.sealed_promised_ballot
        header.commit_index = self.sealed_commit_index
        return segment_name_of(self.segment_number), encode_segment_header(&header), self.segment_size

    cdef list build_buffers(self, WriteHeader* header, size_t padded):
        """The bytes of a write: runs of head, small blocks and padding, with large blocks left where they are."""
        cdef list buffers = []
        cdef size_t index, offset, size
        cdef size_t first = 0
        cdef WriteHeader* head = header
        cdef bytes owner
        for index in range(self.pending_count):
            size = self.pending[index].block_bytes
            if size < JOIN_BYTES_MAX:
                continue
            if head != NULL or first < index:
                buffers.append(self.build_run(head, first, index, 0))
            head = NULL
            first = index + 1
            owner = <bytes>self.pending_owners[index]
            offset = self.pending_offsets[index]
            if offset == 0 and size == <size_t>PyBytes_GET_SIZE(owner):
                buffers.append(owner)
            else:
                buffers.append(memoryview(owner)[offset:offset + size])
        size = padded - header.total_bytes
        if head != NULL or first < self.pending_count or size:
            buffers.append(self.build_run(head, first, self.pending_count, size))
        return buffers

    cdef bytes build_run(self, WriteHeader* header, size_t first, size_t last, size_t padding):
        """Join the head (unless NULL), the blocks [first, last) and padding into one buffer."""
        cdef size_t head_bytes = 0
        cdef size_t size, index
        cdef bytes run
        cdef uint8_t* data
        if header != NULL:
            head_bytes = WRITE_HEADER_BYTES + self.pending_count * DESCRIPTOR_BYTES
        size = head_bytes + padding
        for index in range(first, last):
            size += self.pending[index].block_bytes
        run = PyBytes_FromStringAndSize(NULL, size)
        data = <uint8_t*>PyBytes_AS_STRING(run)
        if header != NULL:
            memcpy(data, header, WRITE_HEADER_BYTES)
            memcpy(data + WRITE_HEADER_BYTES, self.pending, self.pending_count * DESCRIPTOR_BYTES)
            (<WriteHeader*>data).crc = write_crc(
                self.incarnation, self.segment_number, self.offset, data, head_bytes
            )
            data += head_bytes
        for index in range(first, last):
            size = self.pending[index].block_bytes
            memcpy(data, PyBytes_AS_STRING(self.pending_owners[index]) + self.pending_offsets[index], size)
            data += size
        memset(data, 0, padding)
        return run

    cpdef int synced(self, ticket_t ticket) except -1:
        """Say that every write up to `ticket` is carried out and synced: it can be read back from now on.

        Raises:
            InvariantError: the ticket was not sealed yet.
        """
        cdef JournalWrite write
        if ticket >= self.next_ticket:
            raise InvariantError(f"ticket {ticket} is reported durable, but {self.next_ticket} is not sealed yet")
        while self.in_flight:
            write = <JournalWrite>self.in_flight[0]
            if write.ticket > ticket:
                break
            self.in_flight.popleft()
            self._add_to_index(write)
            if not write.is_marker:
                self.synced_ticket = write.ticket
            self.durable_ticket = max(self.durable_ticket, write.ticket)
        return 0

    cdef int _add_to_index(self, JournalWrite write) except -1:
        self.index.add(write.segment_number, write.offset, write.nbytes, write.slot_min, write.slot_max)
        if write.refills is not None:
            for slot_min, slot_max in write.refills:
                self.index.add_refill(write.segment_number, write.offset, write.nbytes, slot_min, slot_max)
        return 0

    cdef int find_unsynced(self, slot_t* slot_min, slot_t* slot_max) except -1:
        """The smallest range around every batch that is appended and not yet reported by `synced`."""
        cdef JournalWrite write
        cdef size_t index
        slot_min[0] = SLOT_INFINITY
        slot_max[0] = 0
        for index in range(self.pending_count):
            slot_min[0] = min(slot_min[0], self.pending[index].slot_begin)
            slot_max[0] = max(slot_max[0], self.pending[index].slot_end - 1)
        for write in self.in_flight:
            slot_min[0] = min(slot_min[0], write.slot_min)
            slot_max[0] = max(slot_max[0], write.slot_max)
            for refill_min, refill_max in write.refills or ():
                slot_min[0] = min(slot_min[0], <slot_t>refill_min)
                slot_max[0] = max(slot_max[0], <slot_t>refill_max)
        return 0

    cpdef JournalRead locate(self, slot_t slot, JournalRead before=None):
        """Where the batch that begins at the committed `slot` can be read, or None: it must come from a peer.

        The last record that covers a committed slot holds the chosen value. `before` is a parsed read that did not have
        it: an earlier piece is named when that piece held nothing for the slot, or when a record of the very same value
        is all that is wanted. A record that cannot be read is never replaced by another value.
        """
        cdef JournalRead read
        cdef IndexEntry* entry
        cdef Py_ssize_t position = self.index.count
        cdef bint has_wanted = False
        if before is not None:
            has_wanted = before.has_wanted
            if before.outcome != READ_ABSENT and not (before.outcome == READ_CORRUPT and has_wanted):
                return None
            position = before.position
        while True:
            position = self.index.find(slot, position)
            if position < 0:
                return None
            entry = &self.index.entries[position]
            if entry.sector_count:
                break
            if not has_wanted:
                return None
        read = JournalRead.__new__(JournalRead)
        read.segment_name = segment_name_of(entry.segment_number)
        read.segment_number = entry.segment_number
        read.offset = entry.sector * <uint64_t>WRITE_ALIGNMENT
        read.length = entry.sector_count * <size_t>WRITE_ALIGNMENT
        read.slot = slot
        read.position = position
        read.outcome = READ_PENDING
        read.has_wanted = has_wanted
        if has_wanted:
            read.wanted = before.wanted
        return read

    cpdef list parse(self, JournalRead read, bytes data):
        """Judge what was read: the consecutive batches from `read.slot` on, as far as no later record replaces them.

        Every head, block and value checksum is verified. An empty list means that the batch is not readable here: try
        `locate(slot, before=read)`, then a peer. Batches above the commit index may be among those returned. What is
        not yet synced is never looked at: the caller has it in memory, and a batch that it replaces ends the list.
        """
        cdef Piece piece = Piece()
        cdef list batches = []
        cdef slot_t newer_min, newer_max
        cdef slot_t slot = read.slot
        cdef Py_ssize_t record
        cdef BatchDescriptor* descriptor
        # The newest entry grows: what was added since these bytes were asked for may replace all but the first batch.
        cdef uint64_t entry_bytes = self.index.entries[read.position].sector_count * <uint64_t>WRITE_ALIGNMENT
        cdef bint has_grown = entry_bytes != read.length
        self.find_unsynced(&newer_min, &newer_max)
        piece.scan(data, self.incarnation, read.segment_number, read.offset, read.length)
        read.outcome = READ_ABSENT
        while True:
            record = piece.find(slot)
            if record < 0:
                if piece.has_gap and not batches and not read.has_wanted:
                    read.outcome = READ_CORRUPT
                break
            descriptor = &piece.descriptors[record]
            if batches:
                if (descriptor.slot_begin != slot or has_grown or piece.is_superseded(record)
                        or (descriptor.slot_begin <= newer_max and descriptor.slot_end > newer_min)
                        or self.index.is_superseded(read.position, descriptor.slot_begin, descriptor.slot_end)
                        or not piece.is_readable(record, data)):
                    break
            else:
                read.outcome = READ_CORRUPT
                if not read.has_wanted:
                    if descriptor.slot_begin != slot or piece.is_superseded(record):
                        break
                    if not piece.is_readable(record, data):
                        read.has_wanted = True
                        read.wanted = descriptor[0]
                if read.has_wanted:
                    # The last record of this slot is unreadable: only its very value will do, wherever it stands.
                    record = piece.find_value(&read.wanted, data)
                    if record < 0:
                        break
                    descriptor = &piece.descriptors[record]
            batches.append(StoredBatch.make(descriptor, data, piece.offsets[record]))
            read.outcome = READ_FOUND
            if read.has_wanted:
                break
            slot = descriptor.slot_end
        return batches
