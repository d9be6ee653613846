"""The live side of the journal: writes, tickets, segments, and reading back."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpaxos.directory import MemoryDirectory
from fastpaxos_core.block import build_block, build_noop, crc32c
from fastpaxos_core.directory import perform
from fastpaxos_core.errors import ConfigError, CorruptionError, InvariantError
from fastpaxos_core.journal import Journal
from journal_model import INCARNATION, NODE_ID, History, check_readable, open_journal, read_slot, recovered_state

HEAD = struct.Struct("<IBBHIIQQQQQQ")
HEAD_FIELDS = ("magic", "version", "kind", "flags", "crc", "count", "total", "number", "durable", "promised")
HEAD_FIELDS += ("commit", "reserved")
SEGMENT_HEAD = struct.Struct("<8sHHI11Q")


def new_journal(segment_bytes=1 << 20):
    directory = MemoryDirectory()
    journal, recovery = open_journal(directory, 1, segment_bytes)
    return directory, journal, recovery


def append(journal, slot_begin, slot_end, ballot=1, size=10, committed=False):
    block = build_block([bytes(size)] * (slot_end - slot_begin), 1, slot_begin)
    return journal.append(slot_begin, slot_end, ballot, slot_begin, block, committed)


def carry_out(directory, journal, write):
    perform(directory, write)
    journal.synced(write.ticket)


def head_of(write):
    data = b"".join(write.buffers)
    assert len(data) == write.nbytes
    return dict(zip(HEAD_FIELDS, HEAD.unpack_from(data), strict=True))


def test_fresh_journal():
    directory, journal, recovery = new_journal()
    assert (recovery.promised_ballot, recovery.commit_index, recovery.promised_known) == (0, 0, True)
    assert (recovery.batches, recovery.unknown, recovery.problems) == ([], [], [])
    assert (journal.next_ticket, journal.durable_ticket, journal.has_pending) == (1, 0, False)
    assert directory.list() == ["journal-0000000000000001.segment"]
    assert directory.size(directory.list()[0]) == 1 << 20
    assert journal.journal_bytes == 1024


def test_everything_appended_before_a_seal_shares_its_ticket():
    directory, journal, _ = new_journal()
    assert journal.seal(0, 0) is None
    assert append(journal, 1, 3) == 1
    assert append(journal, 3, 4) == 1
    assert journal.has_pending
    assert journal.pending_bytes == 2 * 48 + (40 + 20) + (40 + 10)
    write = journal.seal(5, 0)
    assert (write.ticket, write.needs_sync, write.is_marker) == (1, True, False)
    assert (journal.next_ticket, journal.durable_ticket, journal.has_pending, journal.pending_bytes) == (2, 0, False, 0)
    assert append(journal, 4, 5) == 2
    carry_out(directory, journal, write)
    assert journal.durable_ticket == 1
    write = journal.seal(5, 3)
    head = head_of(write)
    assert head["magic"] == int.from_bytes(b"FPJW", "little")
    assert (head["number"], head["durable"], head["promised"], head["commit"], head["count"]) == (2, 1, 5, 3, 1)
    assert head["total"] == 64 + 48 + 50


def test_promise_alone_is_a_write():
    directory, journal, _ = new_journal()
    journal.touch()
    assert journal.has_pending
    carry_out(directory, journal, journal.seal(7 << 16, 0))
    _, recovery = open_journal(directory.crash(), 2)
    assert recovery.promised_ballot == 7 << 16


def test_small_blocks_are_joined_and_large_ones_are_not_copied():
    _, journal, _ = new_journal()
    small = build_block([b"s" * 100], 1, 1)
    large = build_block([b"L" * 5000], 1, 2)
    for slot, block in enumerate([small, large, small, small, large, large], 1):
        journal.append(slot, slot + 1, 1, 0, block)
    write = journal.seal(1, 0)
    assert [buffer is large for buffer in write.buffers] == [False, True, False, True, True, False]
    data = b"".join(write.buffers)
    assert data[64 + 6 * 48 :].rstrip(b"\0") == b"".join([small, large, small, small, large, large])
    assert len(data) % 512 == 0


def test_new_segment_when_the_write_does_not_fit():
    directory, journal, _ = new_journal(4096)
    names = []
    for slot in range(1, 9):
        append(journal, slot, slot + 1, size=700)
        write = journal.seal(1, slot - 1)
        if write.new_segment is not None:
            name, header, size = write.new_segment
            assert (name, size, len(header)) == (write.segment_name, 4096, 1024)
            assert write.offset == 1024
            assert header[:512] == header[512:]
            fields = SEGMENT_HEAD.unpack_from(header)
            assert fields[0] == b"FPXSEG01"
            assert fields[4:7] == (NODE_ID, INCARNATION, 1)
            # segment number, size, first write, last durable write; the commit index rests on earlier writes only.
            assert fields[7:11] == (write.segment_number, 4096, write.ticket, write.ticket - 1)
            assert fields[14] == slot - 2
            names.append(name)
        carry_out(directory, journal, write)
    assert names == [f"journal-{number:016x}.segment" for number in (2, 3)]


def test_write_larger_than_a_segment_gets_a_segment_of_its_own_size():
    directory, journal, _ = new_journal(4096)
    append(journal, 1, 2, size=20_000)
    write = journal.seal(1, 0)
    assert write.new_segment[2] == write.segment_bytes == 1024 + write.nbytes
    carry_out(directory, journal, write)
    append(journal, 2, 3)
    write = journal.seal(1, 0)
    assert write.new_segment[2] == 4096
    carry_out(directory, journal, write)
    _, recovery = open_journal(directory.crash(), 2)
    assert [batch.block_bytes for batch in recovery.batches] == [20_040, 50]


def test_marker_names_the_durable_point_once():
    directory, journal, _ = new_journal()
    assert journal.marker(0, 0) is None
    append(journal, 1, 2)
    assert journal.marker(1, 0) is None
    write = journal.seal(1, 0)
    assert journal.marker(1, 0) is None
    carry_out(directory, journal, write)
    marker = journal.marker(1, 1)
    assert (marker.ticket, marker.is_marker, marker.needs_sync, marker.nbytes) == (2, True, False, 512)
    assert (head_of(marker)["kind"], head_of(marker)["durable"]) == (1, 1)
    assert journal.durable_ticket == 2
    assert journal.marker(1, 1) is None
    carry_out(directory, journal, marker)
    append(journal, 2, 3)
    write = journal.seal(1, 1)
    # It says that a marker stood before it, and names the last synced write, not the marker.
    assert (head_of(write)["number"], head_of(write)["flags"], head_of(write)["durable"]) == (3, 1, 1)


def test_marker_never_starts_a_segment():
    directory, journal, _ = new_journal(4096)
    append(journal, 1, 2, size=3072 - 64 - 48 - 40)
    write = journal.seal(1, 0)
    assert write.offset + write.nbytes == 4096
    carry_out(directory, journal, write)
    assert journal.marker(1, 0) is None


@pytest.mark.parametrize("survives", [True, False])
def test_marker_that_was_never_synced_may_be_missing(survives):
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    carry_out(directory, journal, journal.seal(1, 0))
    marker = journal.marker(1, 0)
    if survives:
        perform(directory, marker)
    append(journal, 2, 3)
    carry_out(directory, journal, journal.seal(1, 0))
    append(journal, 3, 4)
    carry_out(directory, journal, journal.seal(1, 0))
    _, recovery = open_journal(directory.crash(), 2)
    assert recovery.problems == []
    assert [batch.slot_begin for batch in recovery.batches] == [1, 2, 3]


@pytest.mark.parametrize("survives", [True, False])
def test_marker_at_the_end_of_a_segment_may_be_missing(survives):
    directory, journal, _ = new_journal(4096)
    append(journal, 1, 2)
    carry_out(directory, journal, journal.seal(1, 0))
    marker = journal.marker(1, 0)
    if survives:
        perform(directory, marker)
    append(journal, 2, 3, size=2500)
    write = journal.seal(1, 0)
    assert write.new_segment is not None
    for torn in (False, True):
        image = directory.crash(lambda kind, name: True)
        name, header, size = write.new_segment
        image.create(name, size)
        image.write(name, 0, [header] if torn else [header, *write.buffers])
        for boot in (2, 3):
            _, recovery = open_journal(image, boot, 4096)
            assert recovery.problems == []
            assert [batch.slot_begin for batch in recovery.batches] == ([1] if torn else [1, 2])


def test_newer_batch_drops_older_ones_whole():
    directory, journal, _ = new_journal()
    for slot_begin, slot_end in ((1, 4), (4, 6), (6, 9), (9, 11)):
        append(journal, slot_begin, slot_end)
    carry_out(directory, journal, journal.seal(1, 0))
    append(journal, 5, 8, ballot=2)
    carry_out(directory, journal, journal.seal(2, 0))
    _, recovery = open_journal(directory.crash(), 2)
    assert [(batch.slot_begin, batch.slot_end) for batch in recovery.batches] == [(1, 4), (5, 8), (9, 11)]


def test_neither_promise_nor_commit_index_falls():
    _, journal, _ = new_journal()
    journal.touch()
    journal.seal(5, 3)
    journal.touch()
    with pytest.raises(InvariantError, match="lower"):
        journal.seal(4, 3)
    with pytest.raises(InvariantError, match="lower"):
        journal.seal(5, 2)
    assert journal.seal(5, 3).ticket == 2


def test_what_is_not_sealed_cannot_be_durable():
    _, journal, _ = new_journal()
    append(journal, 1, 2)
    with pytest.raises(InvariantError, match="not sealed"):
        journal.synced(1)


def test_bad_batches_are_refused():
    _, journal, _ = new_journal()
    with pytest.raises(ValueError, match="no valid block"):
        journal.append(1, 2, 1, 0, b"x" * 50)
    with pytest.raises(InvariantError, match="empty slot range"):
        journal.append(2, 2, 1, 0, build_noop(1))
    with pytest.raises(InvariantError, match="empty slot range"):
        journal.append(0, 1, 1, 0, build_noop(1))
    assert not journal.has_pending


@pytest.mark.parametrize("segment_bytes", [0, 1024, 4097, (1 << 40) + 512])
def test_segment_size_limits(segment_bytes):
    with pytest.raises(ConfigError, match="segment_bytes"):
        open_journal(MemoryDirectory(), 1, segment_bytes)


def test_numbers_leave_room_for_lost_writes_after_a_restart():
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    carry_out(directory, journal, journal.seal(1, 0))
    journal, _ = open_journal(directory.crash(), 2)
    # The last write was carried over, under a number of its own.
    assert journal.durable_ticket == 1 + (1 << 20)
    assert journal.next_ticket == 2 + (1 << 20)
    assert journal.segment_number == 2


# --- reading back ---


def test_one_read_gives_all_consecutive_batches():
    directory, journal, _ = new_journal()
    for slot in range(1, 200, 2):
        append(journal, slot, slot + 2)
        if slot % 10 == 9:
            carry_out(directory, journal, journal.seal(1, slot - 1))
    assert len(journal.index) == 1
    read = journal.locate(21)
    data = directory.read(read.segment_name, read.offset, read.length)
    found = journal.parse(read, data)
    assert [batch.slot_begin for batch in found] == list(range(21, 200, 2))
    assert all(batch.owner is data for batch in found)
    assert found[0].block == build_block([bytes(10)] * 2, 1, 21)
    assert journal.locate(201) is None
    assert journal.locate(0) is None


def test_nothing_is_read_that_is_not_durable():
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    write = journal.seal(1, 0)
    assert journal.locate(1) is None
    carry_out(directory, journal, write)
    assert journal.locate(1).slot == 1


def test_batch_replaced_by_one_in_flight_is_not_read():
    """Slot 2 was accepted again; until that write is durable, neither value may be taken from the disk."""
    directory, journal, _ = new_journal()
    for slot in (1, 2, 3):
        append(journal, slot, slot + 1)
    carry_out(directory, journal, journal.seal(1, 0))
    append(journal, 2, 3, ballot=2, size=11)
    for sealed in (False, True):
        write = journal.seal(2, 0) if sealed else None
        assert [batch.slot_begin for batch in read_all(journal, directory, 1)] == [1]
    carry_out(directory, journal, write)
    assert [(batch.slot_begin, batch.ballot) for batch in read_all(journal, directory, 1)] == [(1, 1), (2, 2), (3, 1)]


def test_batch_replaced_since_the_read_was_asked_for_is_not_read():
    """The newest entry of the index grows while the bytes are on their way (simulation seed 9918)."""
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    append(journal, 2, 4)
    carry_out(directory, journal, journal.seal(1, 1))
    read = journal.locate(1)
    data = directory.read(read.segment_name, read.offset, read.length)
    append(journal, 2, 3, ballot=2)
    carry_out(directory, journal, journal.seal(2, 1))
    assert [(batch.slot_begin, batch.slot_end) for batch in journal.parse(read, data)] == [(1, 2)]


def read_all(journal, directory, slot):
    read = journal.locate(slot)
    return journal.parse(read, directory.read(read.segment_name, read.offset, read.length))


def test_short_or_foreign_bytes_are_not_parsed():
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    carry_out(directory, journal, journal.seal(1, 0))
    for data in (b"", bytes(511), bytes(512)):
        read = journal.locate(1)
        assert journal.parse(read, data) == []
        assert read.is_corrupt
        assert journal.locate(1, before=read) is None
    # A read that was never answered says nothing about older places.
    assert journal.locate(1, before=journal.locate(1)) is None


def test_a_good_block_of_another_batch_is_not_read_in_its_place():
    """A misdirected write: the block is whole by itself, but it is not the one that the record names."""
    directory, journal, _ = new_journal()
    for slot in (1, 2):
        append(journal, slot, slot + 1)
        write = journal.seal(1, 0)
        carry_out(directory, journal, write)
        if slot == 1:
            place = write.segment_name, write.offset + HEAD.size + 48
    other = build_block([bytes(10)], 1, 7)
    directory.overwrite(*place, other)
    assert read_all(journal, directory, 1) == []
    _, recovery = open_journal(directory, 2)
    assert recovery.unknown == [(1, 2)]
    assert [batch.slot_begin for batch in recovery.batches] == [2]


def test_a_corrupt_write_that_a_start_carried_over_is_no_torn_write():
    """The segment's own header says that its first write was durable, although nothing good follows it."""
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    carry_out(directory, journal, journal.seal(1, 0))
    journal, recovery = open_journal(directory, 2)
    assert recovery.rewritten == 1
    directory.overwrite(f"journal-{journal.segment_number:016x}.segment", 1024 + 20, b"\xff")
    _, recovery = open_journal(directory, 3)
    assert recovery.problems
    assert not recovery.torn_write
    assert not recovery.promised_known


def test_index_stays_small():
    directory, journal, _ = new_journal(8 << 20)
    for slot in range(1, 2001):
        append(journal, slot, slot + 1, size=400)
        carry_out(directory, journal, journal.seal(1, slot - 1))
    assert len(journal.index) == pytest.approx(2000 * 1024 / (256 << 10), abs=2)


def test_refill_does_not_widen_the_newest_piece():
    directory, journal, _ = new_journal(8 << 20)
    for slot in range(1, 1001):
        append(journal, slot, slot + 1, size=400)
        carry_out(directory, journal, journal.seal(1, slot - 1))
    append(journal, 5, 6, size=400, committed=True)
    append(journal, 1001, 1002)
    carry_out(directory, journal, journal.seal(1, 1000))
    assert journal.locate(500).position < journal.locate(1001).position < journal.locate(5).position
    assert len(read_all(journal, directory, 6)) > 100
    _, recovery = open_journal(directory, 2, 8 << 20)
    assert recovery.commit_index == 1000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), max_size=4), max_size=40), st.booleans())
def test_index_finds_the_last_write_whose_range_covers_a_slot(writes, fine):
    directory, journal, _ = new_journal(1 << 18)
    journal.index.entry_bytes_min = 512 if fine else 2048
    places = []
    for ranges in writes:
        for slot_begin, count in ranges:
            journal.append(slot_begin, slot_begin + count, 1, 0, build_noop(count))
        write = journal.seal(1, 0)
        if write is not None:
            places.append((write.offset, ranges))
            carry_out(directory, journal, write)
    for slot in range(70):
        covering = [
            (offset, ranges)
            for offset, ranges in places
            if any(begin <= slot < begin + count for begin, count in ranges)
        ]
        read, found = journal.locate(slot), []
        while read is not None and not found:
            found = journal.parse(read, directory.read(read.segment_name, read.offset, read.length))
            read = read if found else journal.locate(slot, before=read)
        if found:
            offset, ranges = covering[-1]
            assert read.offset <= offset < read.offset + read.length
            last = [(begin, begin + count) for begin, count in ranges if begin <= slot < begin + count][-1]
            assert (found[0].slot_begin, found[0].slot_end) == last
            assert found[0].slot_begin == slot
        elif covering:
            # The last batch that covers it begins elsewhere, or a later one overlaps its end: not a boundary of a log.
            after = [r for _, ranges in places[places.index(covering[-1]) :] for r in ranges]
            last = max(index for index, (begin, count) in enumerate(after) if begin <= slot < begin + count)
            begin, count = after[last]
            overlapped = any(b < begin + count and b + c > begin for b, c in after[last + 1 :])
            assert begin != slot or overlapped


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([512, 4096, 256 << 10]))
def test_every_committed_slot_reads_the_chosen_value(seed, entry_bytes):
    """Slots are accepted again in later ballots, cut in other ways, learned and refilled: the last record wins."""
    history = History.start(seed, segment_bytes=16384)
    history.journal.index.entry_bytes_min = entry_bytes
    for _ in range(3):
        history.run(50)
        history.write()
        check_readable(history.journal, history.directory, history.chosen, history.state.commit_index)
    for slot in random.Random(seed).choices(range(1, history.state.commit_index + 2), k=10):
        found = read_slot(history.journal, history.directory, slot)
        assert bool(found) == (slot in history.chosen) or slot > history.state.commit_index


# --- headers on disk ---


def rewrite_segment_header(directory, name, change):
    """Change a field of both header copies and make their checksums right again."""
    data = bytearray(directory.read(name, 0, 512))
    change(data)
    data[12:16] = crc32c(bytes(data[16:]), crc32c(bytes(data[:12]))).to_bytes(4, "little")
    for offset in (0, 512):
        directory.overwrite(name, offset, bytes(data))


@pytest.mark.parametrize(("offset", "value"), [(8, 2), (10, 8)])
def test_unknown_segment_version_or_flag_is_refused_by_name(offset, value):
    directory, _, _ = new_journal()
    rewrite_segment_header(directory, directory.list()[0], lambda data: data.__setitem__(offset, value))
    with pytest.raises(ConfigError, match="newer one"):
        open_journal(directory, 2)


@pytest.mark.parametrize(("offset", "value"), [(4, 2), (5, 2), (6, 4), (56, 1), (64 + 40, 2), (64 + 44, 1)])
def test_unknown_write_version_kind_or_flag_is_refused_by_name(offset, value):
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    write = journal.seal(1, 0)
    carry_out(directory, journal, write)
    data = bytearray(b"".join(write.buffers)[: 64 + 48])
    data[offset] = value
    place = struct.pack("<QQQ", INCARNATION, 1, 1024)
    data[8:12] = crc32c(bytes(data[12:]), crc32c(bytes(data[:8]), crc32c(place))).to_bytes(4, "little")
    directory.overwrite(write.segment_name, write.offset, bytes(data))
    with pytest.raises(ConfigError, match="newer one"):
        open_journal(directory, 2)


@pytest.mark.parametrize("copy", [0, 1])
def test_one_good_copy_of_the_segment_header_suffices(copy):
    directory, journal, _ = new_journal()
    append(journal, 1, 2)
    carry_out(directory, journal, journal.seal(1, 0))
    directory.overwrite(directory.list()[0], copy * 512 + 20, b"\xff")
    _, recovery = open_journal(directory, 2)
    assert len(recovery.problems) == 1
    assert "segment header" in recovery.problems[0]
    assert recovered_state(recovery).batches


def test_without_a_good_segment_header_the_journal_is_refused():
    directory, _, _ = new_journal()
    for copy in (0, 1):
        directory.overwrite(directory.list()[0], copy * 512 + 20, b"\xff")
    with pytest.raises(CorruptionError, match=r"journal-0000000000000001\.segment"):
        open_journal(directory, 2)


def test_unfinished_files_are_removed():
    directory, _, _ = new_journal()
    directory.create("journal-0000000000000002.segment.temporary", 4096)
    directory.create("journal-spare.temporary", 4096)
    directory.create("unrelated", 10)
    open_journal(directory, 2)
    assert directory.list() == [
        "journal-0000000000000001.segment",
        "journal-0000000000000002.segment",
        "unrelated",
    ]


def test_open_with_another_incarnation_is_refused():
    directory, _, _ = new_journal()
    with pytest.raises(ConfigError, match="incarnation"):
        Journal.open(directory, node_id=NODE_ID, incarnation=INCARNATION + 1, boot=2)
