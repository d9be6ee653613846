"""The applier reads back what memory no longer holds: which answers it takes, and when it asks."""

from __future__ import annotations

import msgpack
import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block, build_control
from fastpaxos_core.journal import JournalRead

OLD = pack_ballot(1, 2)
NEW = pack_ballot(2, 3)
LATER = pack_ballot(3, 3)
HEAD_BYTES = 64
DESCRIPTOR_BYTES = 48
# Large enough that the two writes are two pieces of the journal.
PADDING = b"." * 300_000

CONTROL = build_control(msgpack.packb({"op": "open_session", "nonce": bytes(16)}))
SECOND = batch(2, build_block([b"two" + PADDING], 1, 1), OLD)


@pytest.fixture
def replica() -> LoneReplica:
    """Restarted with slots 1 to 3 committed. The only record of slot 2 is rotten; slot 3 has an older, lost value."""
    lone = LoneReplica()
    lost = batch(3, build_block([b"LOST" + PADDING], 1, 2), OLD)
    chosen = batch(3, build_block([b"CHOSEN" + PADDING], 1, 2), NEW)
    lone.receive(2, "accept", OLD, [batch(1, CONTROL, OLD), SECOND, lost])
    assert lone.begin_write()
    assert lone.writing is not None
    place = lone.writing.segment_name, lone.writing.offset + HEAD_BYTES + 3 * DESCRIPTOR_BYTES + len(CONTROL) + 60
    lone.end_write()
    lone.receive(3, "accept", NEW, [batch(1, CONTROL, NEW), chosen], commit_index=3)
    lone.sync()
    [fetch] = lone.sent("fetch")
    assert fetch["slot_begin"] == 2
    lone.receive(3, "learn", NEW, [dict(SECOND, flags=1)], request_id=fetch["request_id"], commit_index=3)
    lone.sent()
    assert lone.replica.commit_index == 3
    # A promise makes a write, which carries the commit index.
    lone.receive(3, "prepare", LATER, slot_begin=4)
    lone.sync()
    lone.disk.corrupt(*place)
    lone.crash()
    assert lone.replica.commit_index == 3
    assert lone.recovery.problems == []
    return lone


def answer(lone: LoneReplica, reads: list[JournalRead]) -> None:
    for read in reads:
        lone.replica.journal_data(read, lone.disk.read(read.segment_name, read.offset, read.length))


def apply_all(lone: LoneReplica) -> list[bytes]:
    """Apply what is there, without reading anything back; return the beginning of every command."""
    texts = []
    while (handed := lone.replica.next_batch()) is not None:
        texts += [command.split(b".")[0] for command in handed.view.commands()]
        lone.replica.complete_batch(lone.machine.fold(handed.view))
    return texts


def repair_fetch(lone: LoneReplica) -> int:
    """Let the replica find out that slot 2 is rotten; return the id of its request for it."""
    for _ in range(10):
        assert apply_all(lone) == []
        answer(lone, lone.replica.take_reads())
        for message in lone.sent("fetch"):
            assert message["slot_begin"] == 2
            request_id: int = message["request_id"]
            return request_id
    raise AssertionError("slot 2 was never asked for")


def test_a_read_of_an_older_slot_is_not_taken_for_one_of_the_next(replica: LoneReplica) -> None:
    """A late answer about slot 2, which a peer had repaired by then, continued as a search for slot 3.

    It skipped the newest record of slot 3, and the replica applied an older value that was never chosen.
    """
    request_id = repair_fetch(replica)
    replica.receive(3, "learn", LATER, [dict(SECOND, flags=1)], request_id=request_id, commit_index=3)
    # The shell may ask for work before the repaired batch is handed on: slot 2 is read once more.
    assert apply_all(replica) == []
    early = replica.replica.take_reads()
    assert [read.slot for read in early] == [2]
    replica.sent()
    assert apply_all(replica) == [b"two"]
    right = replica.replica.take_reads()
    assert [read.slot for read in right] == [3]
    answer(replica, early)
    assert apply_all(replica) == []
    assert replica.replica.take_reads() == []
    answer(replica, right)
    assert apply_all(replica) == [b"CHOSEN"]
    assert replica.replica.applied_index == 3


def test_nothing_is_read_while_a_peer_is_asked(replica: LoneReplica) -> None:
    """The rotten piece was read again on every turn of the loop until a peer answered."""
    request_id = repair_fetch(replica)
    reads = []
    for _ in range(50):
        assert apply_all(replica) == []
        reads += replica.replica.take_reads()
        replica.sync()
        replica.sent()
    assert reads == []
    replica.receive(3, "learn", LATER, [dict(SECOND, flags=1)], request_id=request_id, commit_index=3)
    replica.sent()
    assert apply_all(replica) == [b"two"]
