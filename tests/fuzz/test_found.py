"""What fuzzing found, each as a test of its own."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from fastpaxos.directory import MemoryDirectory, OsDirectory
from fastpaxos.handshake import Identity, check_hello
from fastpaxos.identity import DirectoryIdentity
from fastpaxos.testing import LoneReplica
from fastpaxos_core.block import build_control
from fastpaxos_core.directory import perform
from fastpaxos_core.errors import CorruptionError, FrameError, InvariantError
from fastpaxos_core.founding import FoundingRecord
from fastpaxos_core.journal_recovery import inspect, verify
from fastpaxos_core.mapping import unpack_mapping
from fastpaxos_core.messages import decode_message, encode_message
from fastpaxos_core.sessions import SessionTable
from fastpaxos_core.wire import FrameSplitter, FrameType, FrameWriter
from fuzz import corpus
from fuzz import formats as form
from fuzz.targets import SegmentDirectory
from journal_model import open_journal

JOURNAL = corpus.journals()[1]
FIRST_WRITE = form.WRITE_OFFSET
LAST = form.SEGMENT_BYTES * (len(JOURNAL) // form.SEGMENT_BYTES - 1)


def sealed(place: int, layout: str, value: int, journal: bytes = JOURNAL) -> SegmentDirectory:
    """The journal with one field set at `place`, and every checksum right."""
    data = bytearray(journal)
    struct.pack_into(layout, data, place, value)
    form.JournalFormat().seal(data)
    return SegmentDirectory(data)


def set_header(field: int, value: int) -> SegmentDirectory:
    """A journal whose newest segment header, in both copies, says something impossible."""
    data = bytearray(JOURNAL)
    struct.pack_into("<Q", data, LAST + field, value)
    return sealed(LAST + 512 + field, "<Q", value, bytes(data))


@pytest.mark.parametrize(
    ("field", "value"),
    [(56, 0), (56, 1 << 63), (64, (1 << 64) - 1), (72, 1 << 63), (80, 1 << 41), (48, 1 << 41), (48, 513), (48, 512)],
)
def test_a_segment_header_with_impossible_numbers_is_corruption(field: int, value: int) -> None:
    """Such numbers overflowed where recovery adds one to them."""
    assert verify(sealed(0, "<B", JOURNAL[0])) == []
    directory = set_header(field, value)
    with pytest.raises(CorruptionError, match="impossible numbers"):
        inspect(directory)
    [problem] = verify(directory)
    assert "impossible numbers" in problem


@pytest.mark.parametrize(
    ("field", "value"),
    [(24, 0), (24, 1 << 63), (32, 1 << 63), (48, (1 << 64) - 1), (48, (1 << 64) - 2), (48, 1 << 63), (72, 1 << 63)],
)
def test_a_write_with_impossible_numbers_is_a_bad_write(field: int, value: int) -> None:
    """A commit index of 2**64 - 1 wrapped to 0; an unknown range began where it ended."""
    recovery = inspect(sealed(FIRST_WRITE + field, "<Q", value))
    assert "unreadable" in recovery.problems[0]
    assert recovery.commit_index < 1 << 63
    for begin, end in recovery.unknown:
        assert begin < end


def test_a_batch_that_straddles_the_commit_index_is_not_recovered() -> None:
    """It came back as an uncommitted batch that begins below the commit index."""
    directory = MemoryDirectory()
    journal, _ = open_journal(directory, 1)
    for slot_end, commit_index in ((2, 1), (3, 1)):
        journal.append(1, slot_end, 1 << 16 | 2, 5, corpus.blocks()[slot_end], False)
        write = journal.seal(1 << 16 | 2, commit_index)
        perform(directory, write)
        journal.synced(write.ticket)
    with pytest.raises(InvariantError, match=r"slot 1 is committed, but the batch \[1, 3\)"):
        inspect(directory)


def test_a_length_from_a_file_is_not_allocated_beyond_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that claims 4 GiB in a truncated segment made the reader take memory for them first."""
    asked = []
    pread = os.pread

    def counting_pread(descriptor: int, length: int, offset: int) -> bytes:
        asked.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counting_pread)
    (tmp_path / "file").write_bytes(b"0123456789")
    directory = OsDirectory(tmp_path)
    assert directory.read("file", 4, 1 << 32) == b"456789"
    assert directory.read("file", 10, 1 << 32) == b""
    assert directory.read("file", 1 << 40, 1 << 32) == b""
    assert sum(asked) <= 10


@pytest.mark.parametrize(
    "body", [b"", b"\x81", b"\x80\x80", b"\xc1", b"\x81\x90\xc0", b"\x81\xa1\xff\xc0", b"\x91" * 2000]
)
def test_an_identity_that_is_no_map_is_corruption(body: bytes) -> None:
    """The errors of msgpack came through."""
    data = bytearray(corpus.identities()[0][:20] + body)
    form.IdentityFormat().fit(data)
    form.IdentityFormat().seal(data)
    with pytest.raises(CorruptionError, match="identity"):
        DirectoryIdentity.decode(bytes(data), "identity")


@pytest.mark.parametrize(
    "wrong",
    [
        {"node_id": 0}, {"node_id": 1 << 16}, {"node_id": True}, {"incarnation": 0}, {"boot": -1},
        {"boot": 1 << 32}, {"durability": "never"}, {"durability": []}, {"os_boot_id": None}, {"clean": 1},
        {"founding": "text"}, {"journal_segment": 1.5}, {"journal_segment": 1 << 63},
    ],
)  # fmt: skip
def test_an_identity_with_a_wrong_field_is_corruption(wrong: dict[str, object]) -> None:
    """Fields of any type were taken for good."""
    good = DirectoryIdentity.decode(corpus.identities()[1], "identity")
    with pytest.raises(CorruptionError, match="wrong type or out of range"):
        DirectoryIdentity.decode(replace(good, **wrong).encode(), "identity")  # type: ignore[arg-type]


def message_of(name: str, body: bytes, **fields: int) -> bytes:
    writer = FrameWriter(2, 1002, 1, bytes(16))
    [frame] = FrameSplitter(1000, 1000, None).feed(encode_message(writer, name, 1 << 16 | 2, **fields))
    return writer.encode(frame.type, frame.ballot, frame.head, frame.body + body)


@pytest.mark.parametrize("name", ["prepare", "promise", "accepted", "nack", "commit", "heartbeat", "fetch"])
def test_a_replica_message_with_an_unexpected_body_is_refused(name: str) -> None:
    """Bytes that nothing covers by a checksum were ignored."""
    [frame] = FrameSplitter(1000, 1000, None).feed(message_of(name, b"more"))
    with pytest.raises(FrameError, match="has a body of 4 bytes, expected none"):
        decode_message(frame)
    with pytest.raises(FrameError, match="has a body of 4 bytes, expected none"):
        LoneReplica().replica.receive(2, frame)


def test_a_message_is_decoded_only_with_all_its_blocks_and_nothing_else() -> None:
    """Blocks beyond the body came out short, and bytes behind the last block were ignored."""
    [accept] = FrameSplitter(1000, 1000, None).feed(corpus.messages()[3])
    writer = FrameWriter(2, 1002, 1, bytes(16))
    for body in (accept.body[:-1], accept.body + b"x", b""):
        [frame] = FrameSplitter(1000, 1000, None).feed(writer.encode(FrameType.ACCEPT, 9, accept.head, body))
        with pytest.raises(FrameError, match="body bytes, its batches name"):
            decode_message(frame)
    [frame] = FrameSplitter(1000, 1000, None).feed(writer.encode(FrameType.NACK, 9, bytes(17)))
    with pytest.raises(FrameError, match="its head has 17 bytes"):
        decode_message(frame)


def test_a_leader_that_names_the_last_possible_commit_index_commits_what_was_accepted() -> None:
    """One more than that index wrapped to 0."""
    lone = LoneReplica()
    lone.receive(2, "accept", 1 << 16 | 2, [corpus.entry_of(1, corpus.blocks()[0])], commit_index=0)
    lone.receive(2, "commit", 1 << 16 | 2, commit_index=(1 << 64) - 1)
    assert lone.replica.commit_index == 3


def test_refusals_of_long_texts_are_short() -> None:
    """A stranger's 64 KiB stood in the error, and so in the log."""
    long = "x" * 60_000
    for key in ("kind", "durability", "node_id", "founding"):
        with pytest.raises(FrameError) as refusal:
            check_hello({**Identity(1, 1, 1, "fsync").hello("peer"), key: long})
        assert len(str(refusal.value)) < 300
    twice = b"\x82" + 2 * (msgpack.packb(long) + b"\xc0")
    with pytest.raises(FrameError) as refusal:
        unpack_mapping(twice)
    assert len(str(refusal.value)) < 300
    for decode, error in ((FoundingRecord.decode, FrameError), (SessionTable.from_state, CorruptionError)):
        with pytest.raises(error) as told:
            decode(msgpack.packb([long, 2, 3, 4, 5, 6]))
        assert len(str(told.value)) < 300


def test_a_nonce_that_is_a_number_is_no_length() -> None:
    """bytes(number) took that many bytes while the log was applied."""
    lone = LoneReplica()
    entry = corpus.entry_of(1, build_control(msgpack.packb({"op": "open_session", "nonce": 1 << 62})))
    lone.receive(2, "accept", 1 << 16 | 2, [entry], commit_index=0)
    lone.receive(2, "commit", 1 << 16 | 2, commit_index=1)
    lone.sync()
    assert lone.apply() == []
    assert lone.replica.applied_index == 1


def test_a_promise_in_more_parts_than_a_ring_can_fill_is_refused() -> None:
    """A peer could have had its candidate collect parts without end."""
    lone = LoneReplica()
    lone.replica.campaign()
    ballot = lone.replica.promised_ballot
    lone.receive(2, "promise", ballot, part_count=512)
    with pytest.raises(FrameError, match="promises part 0 of 513"):
        lone.receive(2, "promise", ballot, part_count=513)
