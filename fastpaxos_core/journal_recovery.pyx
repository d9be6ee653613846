"""Recovery of the journal: what survives a crash, what is corrupt, and where to go on (DESIGN 5.11).

The segments are read from the oldest to the newest, hopping from head to head. A good write, or a later segment, proves
that every write before it was durable. So only the last write can be torn: it is cut. Anything else that is unreadable
is corruption. It hides whatever was accepted there: every slot above the commit index before it becomes unknown, until
it is accepted again later in the journal.

The last write was perhaps never synced, and what the page cache shows of it need not be on the disk. It is written
again into a new segment. The header of that segment names the cut: nothing at or behind it is ever read again.
"""

import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memset

from fastpaxos_core.journal cimport Journal
from fastpaxos_core.journal_format cimport (
    DESCRIPTOR_BYTES, SEGMENT_AFTER_MARKER, SEGMENT_FIRST_OFFSET, SEGMENT_PROMISE_UNKNOWN, SEGMENT_START,
    WRITE_AFTER_MARKER, WRITE_HEADER_BYTES, WRITE_MARKER, WRITE_PROMISE_UNKNOWN, SegmentHeader,
    StoredBatch, WriteHeader, block_matches, encode_segment_header, padded_bytes, segment_name_of, write_crc,
)
from fastpaxos_core.journal_replay cimport Replay
from fastpaxos_core.journal_segment cimport SegmentFile
from fastpaxos_core.types cimport BatchDescriptor, slot_t, ticket_t, uint8_t, uint32_t, uint64_t

from fastpaxos_core.directory import TEMPORARY_SUFFIX, create_segment
from fastpaxos_core.errors import ConfigError, CorruptionError

cdef uint64_t WRITE_NUMBER_STEP = 1 << 20      # left free after a crash: more than can have been in flight

SEGMENT_NAME = re.compile(r"journal-([0-9a-f]{16})\.segment")


class Recovery:
    """What a journal holds.

    Attributes:
        promised_ballot: highest ballot promised; a lower bound when not `promised_known`.
        promised_known: False when the disk lost promises: the node must not vote.
        commit_index: every slot up to it is committed, and in the journal unless its place is corrupt.
        batches: list[StoredBatch] above commit_index, by slot, not overlapping: the last accepted ones.
        unknown: list[(slot_begin, slot_end)] above commit_index where corruption hides what was accepted.
        problems: list[str], one sentence for each corrupt place.
        writes: number of readable writes.
        batch_count: number of batches in them.
        journal_bytes: bytes of segment headers and writes.
        last_write_number: highest number seen.
        cut_segment, cut_offset: nothing at or behind this place is read again; segment 0: the journal was empty.
        torn_write: True when a write that never became durable was cut off.
        rewritten: writes carried over into the new segment.
        segments: list of dicts, one for each segment that is read: name, segment_number, size, first_write_number,
            writes, starts (True for the first segment of a start).
    """

    def __init__(self):
        self.promised_ballot = 0
        self.promised_known = True
        self.commit_index = 0
        self.batches = []
        self.unknown = []
        self.problems = []
        self.writes = 0
        self.batch_count = 0
        self.journal_bytes = 0
        self.last_write_number = 0
        self.cut_segment = 0
        self.cut_offset = 0
        self.torn_write = False
        self.rewritten = 0
        self.segments = []

    def __repr__(self) -> str:
        return (f"Recovery(commit_index={self.commit_index}, promised_ballot={self.promised_ballot:#x}, "
                f"promised_known={self.promised_known}, batches={len(self.batches)}, unknown={self.unknown}, "
                f"problems={len(self.problems)})")


cdef class Scanner:
    """Reads a whole journal, in order, without changing anything."""

    cdef object directory
    cdef readonly object recovery
    cdef bint deep                             # check every block, not only those that matter for recovery
    cdef uint64_t node_id                      # 0: whatever the newest segment says
    cdef uint64_t incarnation
    cdef readonly Replay state
    cdef list chain                            # SegmentFiles that are read, oldest first
    cdef readonly list void_names              # segments behind a cut
    cdef readonly list numbers                 # of all segment files
    cdef ticket_t last_number                  # of the last write read, or assumed before the next one
    cdef ticket_t highest_number
    cdef ticket_t durable_number               # named by some segment header
    # The last write, as long as nothing proves that it is durable.
    cdef SegmentFile tail_file
    cdef uint64_t tail_offset
    cdef bytes tail_head                       # None: there is none
    # The first place that is not known durable: there the next start cuts.
    cdef uint64_t cut_segment
    cdef uint64_t cut_offset

    def __init__(self, directory, uint64_t node_id, uint64_t incarnation, bint deep=False):
        self.directory = directory
        self.node_id = node_id
        self.incarnation = incarnation
        self.deep = deep
        self.recovery = Recovery()
        self.state = Replay()
        self.void_names = []

    # --- the chain of segments ---

    cdef int load_chain(self) except -1:
        """Find the segments that are read, from the newest back: each start names where its past ends."""
        cdef SegmentFile file
        cdef SegmentFile newer = None
        cdef uint64_t number
        cdef Py_ssize_t position
        matches = [SEGMENT_NAME.fullmatch(name) for name in self.directory.list()]
        self.numbers = sorted(int(match[1], 16) for match in matches if match)
        self.chain = []
        position = len(self.numbers) - 1
        while position >= 0:
            number = self.numbers[position]
            if newer is not None and newer.header.flags & SEGMENT_START and number > newer.header.cut_segment:
                self.void_names.append(segment_name_of(number))
                position -= 1
                continue
            file = SegmentFile()
            file.load_header(self.directory, number, self.recovery.problems)
            self.check_owner(file)
            if newer is not None:
                if newer.header.flags & SEGMENT_START and newer.header.cut_segment == number:
                    file.end = newer.header.cut_offset
                    file.is_cut = True
                    file.is_cut_unknown = newer.header.flags & SEGMENT_PROMISE_UNKNOWN != 0
                elif number != newer.header.segment_number - 1 or newer.header.flags & SEGMENT_START:
                    newer.missing_before = True
            self.durable_number = max(self.durable_number, file.header.durable_write_number)
            self.chain.append(file)
            newer = file
            position -= 1
        if newer is not None and not (newer.header.flags & SEGMENT_START and newer.header.cut_segment == 0):
            newer.missing_before = True
        self.chain.reverse()
        return 0

    cdef int check_owner(self, SegmentFile file) except -1:
        if self.node_id == 0:
            self.node_id = file.header.node_id
            self.incarnation = file.header.incarnation
        if file.header.node_id != self.node_id or file.header.incarnation != self.incarnation:
            raise ConfigError(
                f"{file.name} belongs to node {file.header.node_id}, incarnation {file.header.incarnation:#x}, not to "
                f"node {self.node_id}, incarnation {self.incarnation:#x}"
            )
        return 0

    cdef int check_boot(self, uint64_t boot) except -1:
        """Each start counts one up before it opens the journal. Else the count was set back: a lost write, a copy."""
        cdef SegmentFile newest
        if self.chain:
            newest = <SegmentFile>self.chain[len(self.chain) - 1]
            if newest.header.boot >= boot:
                raise CorruptionError(
                    f"{newest.name} was written by start {newest.header.boot} of this node, but this one counts as "
                    f"start {boot}: its count was set back, and with it perhaps more of the directory"
                )
        return 0

    # --- reading ---

    cdef int scan(self) except -1:
        cdef SegmentFile file
        cdef Py_ssize_t position
        self.load_chain()
        for position in range(len(self.chain)):
            file = <SegmentFile>self.chain[position]
            self.enter_segment(file)
            self.scan_segment(file, position == len(self.chain) - 1)
        return 0

    cdef int enter_segment(self, SegmentFile file) except -1:
        """Judge a segment's header: it stands in the journal like a write that holds no batches."""
        cdef SegmentHeader* header = &file.header
        cdef ticket_t before = header.first_write_number - 1
        if file.missing_before:
            self.add_corrupt_place(
                header.segment_number, SEGMENT_FIRST_OFFSET, f"the segment before {file.name} is missing"
            )
        elif not header.flags & SEGMENT_START and before != self.last_number and not (
                header.flags & SEGMENT_AFTER_MARKER and before == self.last_number + 1):
            self.add_corrupt_place(header.segment_number, SEGMENT_FIRST_OFFSET, (
                f"writes {self.last_number + 1} to {before} before {file.name} are unreadable"))
        else:
            self.settle_tail()
        self.last_number = before
        self.highest_number = max(self.highest_number, before)
        if header.flags & SEGMENT_START:
            self.cut_segment, self.cut_offset = header.segment_number, SEGMENT_FIRST_OFFSET
            if header.flags & SEGMENT_PROMISE_UNKNOWN:
                # Nothing good of its own boot followed the lost place: no commit index bounds what it can have held.
                self.state.bound_is_open = False
        self.state.replay_header(
            header.promised_ballot, not header.flags & SEGMENT_PROMISE_UNKNOWN, header.commit_index
        )
        if header.flags & SEGMENT_START and header.durable_write_number < header.first_write_number:
            # This start recovered a commit index that bounds the lost place; a carried-over write says it itself.
            self.state.close_bound()
        self.recovery.journal_bytes += SEGMENT_FIRST_OFFSET
        return 0

    cdef int scan_segment(self, SegmentFile file, bint is_newest) except -1:
        cdef uint64_t offset = SEGMENT_FIRST_OFFSET
        cdef uint64_t found
        cdef uint64_t number = file.header.segment_number
        cdef WriteHeader header
        while offset < file.end:
            if file.check(offset, self.incarnation, &header) and self.follows(&header):
                offset = self.add_write(file, offset, &header)
                continue
            found = file.find_write(offset, self.incarnation, self.last_number, &header)
            if found == 0:
                break
            if not self.follows(&header):
                self.add_corrupt_place(number, found, (
                    f"{file.name}: writes {self.last_number + 1} to {header.write_number - 1} are unreadable, "
                    f"from offset {offset} to {found}"))
                self.last_number = header.write_number - 1
            offset = found
        self.recovery.segments.append({
            "name": file.name, "segment_number": number, "size": file.file_size, "writes": file.writes,
            "first_write_number": file.header.first_write_number, "starts": bool(file.header.flags & SEGMENT_START),
        })
        if offset < file.end or file.file_size < file.end:
            self.end_segment(file, offset, is_newest)
        return 0

    cdef bint follows(self, const WriteHeader* header) noexcept nogil:
        """True when the write is the next one, or the next but one when only a marker is between them."""
        return header.write_number == self.last_number + 1 or (
            header.flags & WRITE_AFTER_MARKER != 0 and header.write_number == self.last_number + 2
        )

    cdef int end_segment(self, SegmentFile file, uint64_t offset, bint is_newest) except -1:
        """Nothing good stands at or behind `offset`: the normal end, a torn write, or corruption."""
        cdef uint64_t number = file.header.segment_number
        if file.is_cut:
            # Of a file that is too short, all heads may be good. If it was the newest one when the cut was made, that
            # start did not know what was behind its end, and said so; else only blocks are lost.
            problem = f"{file.name}: unreadable from offset {min(offset, file.file_size)} to {file.end}"
            if offset < file.end or file.is_cut_unknown:
                self.add_corrupt_place(number, file.end, problem)
            else:
                self.recovery.problems.append(problem)
        elif not is_newest:
            # The header of the next segment says whether a write is missing.
            if file.file_size < file.end:
                self.recovery.problems.append(
                    f"{file.name} has {file.file_size} bytes instead of {file.end}: it was truncated"
                )
        elif file.file_size < file.end:
            self.add_corrupt_place(number, file.end, (
                f"{file.name} has {file.file_size} bytes instead of {file.end}: it was truncated"))
        elif self.durable_number > self.last_number:
            self.add_corrupt_place(number, file.end, (
                f"{file.name}: unreadable from offset {offset} on, although write {self.durable_number} was durable"))
        elif not file.is_zero(offset):
            self.recovery.torn_write = True
        return 0

    cdef uint64_t add_write(self, SegmentFile file, uint64_t offset, const WriteHeader* header) except 0:
        """Take one good head. Its batches count as soon as something proves the write durable. Returns its end."""
        cdef size_t head_bytes = WRITE_HEADER_BYTES + <size_t>header.descriptor_count * DESCRIPTOR_BYTES
        cdef uint64_t end = offset + padded_bytes(header.total_bytes)
        cdef const uint8_t* data
        self.settle_tail()
        self.last_number = header.write_number
        self.highest_number = max(self.highest_number, header.write_number)
        file.writes += 1
        self.recovery.writes += 1
        self.recovery.batch_count += header.descriptor_count
        self.recovery.journal_bytes += end - offset
        data = file.fetch(offset, head_bytes)
        self.tail_head = data[:head_bytes]
        self.tail_file = file
        self.tail_offset = offset
        if header.kind == WRITE_MARKER:
            # It says nothing that is not known without it, so it counts although it may not be durable: the cut stays
            # before it.
            self.tail_head = None
            self.state.replay_write(data[:head_bytes], file.header.segment_number, offset)
        elif header.write_number <= self.durable_number:
            self.settle_tail()
        return end

    cdef int settle_tail(self) except -1:
        """The last write is known durable: its batches count, and its blocks are judged when they are read."""
        cdef bytes head = self.tail_head
        cdef uint64_t total_bytes
        if head is not None:
            self.tail_head = None
            self.state.replay_write(head, self.tail_file.header.segment_number, self.tail_offset)
            total_bytes = (<const WriteHeader*>PyBytes_AS_STRING(head)).total_bytes
            self.cut_segment = self.tail_file.header.segment_number
            self.cut_offset = self.tail_offset + padded_bytes(total_bytes)
            if self.deep:
                self.check_blocks(head)
        return 0

    cdef bint tail_is_whole(self) except -1:
        """True when every block of the last write is good: else it is torn."""
        cdef const WriteHeader* header = <const WriteHeader*>PyBytes_AS_STRING(self.tail_head)
        cdef bytes data = self.directory.read(self.tail_file.name, self.tail_offset, header.total_bytes)
        if <uint64_t>PyBytes_GET_SIZE(data) < header.total_bytes:
            return False
        return self.first_bad_block(self.tail_head, data) == 0

    cdef slot_t first_bad_block(self, bytes head, bytes data) except? 0:
        """First slot of the first batch with a bad block in a whole write, or 0."""
        cdef const WriteHeader* header = <const WriteHeader*>PyBytes_AS_STRING(head)
        cdef const BatchDescriptor* descriptors = <const BatchDescriptor*>(
            PyBytes_AS_STRING(head) + WRITE_HEADER_BYTES)
        cdef const uint8_t* block = <const uint8_t*>PyBytes_AS_STRING(data) + PyBytes_GET_SIZE(head)
        cdef uint32_t index
        for index in range(header.descriptor_count):
            if not block_matches(&descriptors[index], block):
                return descriptors[index].slot_begin
            block += descriptors[index].block_bytes
        return 0

    cdef int check_blocks(self, bytes head) except -1:
        cdef const WriteHeader* header = <const WriteHeader*>PyBytes_AS_STRING(head)
        cdef bytes data = self.directory.read(self.tail_file.name, self.tail_offset, header.total_bytes)
        cdef slot_t slot = 0
        if <uint64_t>PyBytes_GET_SIZE(data) == header.total_bytes:
            slot = self.first_bad_block(head, data)
            if slot == 0:
                return 0
        self.recovery.problems.append(
            f"{self.tail_file.name}: the write at offset {self.tail_offset} has a corrupt block"
            + (f" of the batch that begins at slot {slot}" if slot else "")
        )
        return 0

    cdef int add_corrupt_place(self, uint64_t segment_number, uint64_t end, str problem) except -1:
        """Something unreadable ends here: it may have replaced every batch that is not committed before it.

        It stays before the cut, so that the next recovery finds it as well.
        """
        self.settle_tail()
        self.recovery.problems.append(problem)
        self.state.replay_corrupt_place(segment_number)
        self.cut_segment, self.cut_offset = segment_number, end
        return 0

    # --- the result ---

    cdef bytes take_tail(self):
        """The last write as bytes, if it is whole and must be carried over; else it is dropped, and None returned."""
        cdef const WriteHeader* header
        if self.tail_head is None:
            return None
        if not self.tail_is_whole():
            self.tail_head = None
            self.recovery.torn_write = True
            return None
        header = <const WriteHeader*>PyBytes_AS_STRING(self.tail_head)
        return self.directory.read(self.tail_file.name, self.tail_offset, header.total_bytes)

    cdef int finish(self, bytes tail, uint64_t tail_segment, uint64_t tail_offset) except -1:
        """Fill in the result; the last write, if any, stands at `tail_offset` of `tail_segment` and is `tail`."""
        cdef Replay state = self.state
        recovery = self.recovery
        if tail is not None:
            state.replay_write(self.tail_head, tail_segment, tail_offset)
            self.tail_head = None
        recovery.batches = state.load_batches(self.directory, recovery.problems, tail, tail_segment, tail_offset)
        recovery.promised_ballot = state.promised_ballot
        recovery.promised_known = state.promised_known
        recovery.commit_index = state.commit_index
        recovery.unknown = state.unknown
        recovery.last_write_number = self.highest_number
        recovery.cut_segment = self.cut_segment
        recovery.cut_offset = self.cut_offset
        return 0


def open_journal(directory, uint64_t node_id, uint64_t incarnation, uint64_t boot, uint64_t segment_bytes):
    """Recover a journal and start a new segment; see `Journal.open`."""
    cdef Scanner scanner = Scanner(directory, node_id, incarnation)
    cdef Journal journal = Journal(node_id, incarnation, boot, segment_bytes)
    cdef SegmentHeader header
    cdef bytes tail
    cdef size_t padded = 0
    cdef list buffers = []
    cdef slot_t header_commit_index
    scanner.scan()
    scanner.check_boot(boot)
    tail = scanner.take_tail()
    # The header stands before the last write: what that write commits may be in that write only.
    header_commit_index = scanner.state.commit_index
    journal.segment_number = max(scanner.numbers, default=0) + 1
    scanner.finish(tail, journal.segment_number, SEGMENT_FIRST_OFFSET)
    recovery = scanner.recovery
    memset(&header, 0, sizeof(header))
    header.first_write_number = scanner.highest_number + WRITE_NUMBER_STEP if scanner.numbers else 1
    header.durable_write_number = header.first_write_number - 1
    if tail is not None:
        padded = padded_bytes(PyBytes_GET_SIZE(tail))
        tail = rewrite(tail, journal, recovery, header.first_write_number) + bytes(padded - PyBytes_GET_SIZE(tail))
        header.durable_write_number += 1
        recovery.rewritten = 1
        buffers.append(tail)
    journal.segment_size = max(segment_bytes, SEGMENT_FIRST_OFFSET + padded)
    header.flags = SEGMENT_START | (0 if recovery.promised_known else SEGMENT_PROMISE_UNKNOWN)
    header.node_id = node_id
    header.incarnation = incarnation
    header.boot = boot
    header.segment_number = journal.segment_number
    header.segment_bytes = journal.segment_size
    header.cut_segment = scanner.cut_segment
    header.cut_offset = scanner.cut_offset
    header.promised_ballot = recovery.promised_ballot
    header.commit_index = header_commit_index
    buffers.insert(0, encode_segment_header(&header))
    create_segment(directory, segment_name_of(journal.segment_number), journal.segment_size, buffers)
    # What is behind a cut is of no use any more. Removing it need not be durable: the cut is.
    void_names = {segment_name_of(number) for number in scanner.numbers if number > scanner.cut_segment}
    for name in sorted(directory.list()):
        if name in void_names or name in scanner.void_names or (
                name.startswith("journal-") and name.endswith(TEMPORARY_SUFFIX)):
            directory.remove(name)
    journal.offset = SEGMENT_FIRST_OFFSET + padded
    journal.next_ticket = header.durable_write_number + 1
    journal.durable_ticket = header.durable_write_number
    journal.synced_ticket = header.durable_write_number
    journal.named_ticket = header.durable_write_number
    journal.sealed_promised_ballot = recovery.promised_ballot
    journal.sealed_commit_index = recovery.commit_index
    journal.promised_known = recovery.promised_known
    journal.journal_bytes = recovery.journal_bytes + SEGMENT_FIRST_OFFSET + padded
    journal.index = scanner.state.index
    return journal, recovery


cdef bytes rewrite(bytes tail, Journal journal, recovery, ticket_t number):
    """The same write under a new number, as the first one of the journal's new segment."""
    cdef bytes copy = PyBytes_AS_STRING(tail)[:PyBytes_GET_SIZE(tail)]
    cdef uint8_t* data = <uint8_t*>PyBytes_AS_STRING(copy)
    cdef WriteHeader* header = <WriteHeader*>data
    header.flags = 0 if recovery.promised_known else WRITE_PROMISE_UNKNOWN
    header.write_number = number
    header.durable_write_number = number - 1
    header.promised_ballot = recovery.promised_ballot
    header.commit_index = recovery.commit_index
    header.crc = write_crc(
        journal.incarnation, journal.segment_number, SEGMENT_FIRST_OFFSET, data,
        WRITE_HEADER_BYTES + <size_t>header.descriptor_count * DESCRIPTOR_BYTES,
    )
    return copy


cdef Scanner scan_read_only(directory, bint deep):
    cdef Scanner scanner = Scanner(directory, 0, 0, deep)
    cdef bytes tail
    scanner.scan()
    tail = scanner.take_tail()
    if tail is not None:
        scanner.finish(tail, scanner.tail_file.header.segment_number, scanner.tail_offset)
    else:
        scanner.finish(None, 0, 0)
    return scanner


def inspect(directory) -> Recovery:
    """Say what a journal holds, without changing it. The node that owns it may be running: its last write may then be
    incomplete.

    Raises:
        ConfigError: a newer program wrote it.
        CorruptionError: both copies of a segment header are unreadable.
    """
    return scan_read_only(directory, False).recovery


def verify(directory) -> list[str]:
    """Check every byte that matters, without changing anything; returns one sentence for each corrupt place."""
    try:
        return list(scan_read_only(directory, True).recovery.problems)
    except CorruptionError as error:
        return [str(error)]


def iterate_batches(directory):
    """Yield every committed batch, by slot, as StoredBatch, without changing anything.

    Raises:
        CorruptionError: a committed batch is not readable.
    """
    cdef Scanner scanner = scan_read_only(directory, False)
    cdef Journal journal = Journal(scanner.node_id, scanner.incarnation, 0, 1 << 20)
    cdef StoredBatch batch
    cdef slot_t slot = 1
    journal.index = scanner.state.index
    while slot <= scanner.state.commit_index:
        read = journal.locate(slot)
        batches = []
        while read is not None and not batches:
            batches = journal.parse(read, directory.read(read.segment_name, read.offset, read.length))
            if not batches:
                read = journal.locate(slot, read)
        if not batches:
            raise CorruptionError(f"no readable record holds the committed slot {slot}")
        for batch in batches:
            if batch.descriptor.slot_end - 1 > scanner.state.commit_index:
                break
            yield batch
            slot = batch.descriptor.slot_end
