"""Rules 5.11, 5.5 and 5.8 as the replica feels them: what a crash, rot or a lost disk does to its word.

The journal's own tests (tests/unit, tests/crash) go through its bytes one by one; here only the consequences count.
"""

from __future__ import annotations

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos.testing.journal_view import parse_write
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block
from fastpaxos_core.errors import ConfigError
from fastpaxos_core.founding import Founding, FoundingAnswer, FoundingRecord

B2 = pack_ballot(5, 2)
B3 = pack_ballot(6, 3)
HEAD_BYTES = 64 + 48


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


def write_one(acceptor: LoneReplica, slot: int, text: str, ballot: int = B2) -> tuple[str, int]:
    """Accept a batch durably, markers included; return where its write stands: (segment, offset)."""
    acceptor.receive(ballot & 0xFFFF, "accept", ballot, [batch(slot, block(text), ballot)])
    assert acceptor.begin_write()
    write = acceptor.writing
    assert write is not None
    acceptor.end_write()
    acceptor.write_marker()
    return write.segment_name, write.offset


def promise_of(acceptor: LoneReplica, ballot: int = B3) -> list[tuple[int, int, int]]:
    """(slot_begin, slot_end, flags) of everything in the acceptor's Promise."""
    acceptor.sent()
    acceptor.receive(3, "prepare", ballot, slot_begin=1)
    acceptor.sync()
    return [
        (entry["slot_begin"], entry["slot_end"], entry["flags"])
        for promise in acceptor.sent("promise")
        for entry in promise["entries"]
    ]


def test_511_every_write_carries_the_promise_and_a_commit_index() -> None:
    """5.11: every group-commit write carries promised_ballot and a commit_index whose values it follows."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", B2, [batch(1, block("a"), B2)], commit_index=1)
    assert acceptor.begin_write()
    assert acceptor.writing is not None
    promised, commit_index, entries = parse_write(b"".join(bytes(buffer) for buffer in acceptor.writing.buffers))
    assert (promised, commit_index, len(entries)) == (B2, 1, 1)


@pytest.mark.parametrize("survival", [0.0, 0.5, 1.0])
def test_511_a_torn_tail_is_cut_and_what_was_synced_stays(survival: float) -> None:
    """5.11: only a bad tail is a torn write."""
    acceptor = LoneReplica()
    write_one(acceptor, 1, "kept")
    acceptor.receive(2, "accept", B2, [batch(2, block("torn" * 200, 3), B2)])
    assert acceptor.begin_write()
    acceptor.crash(survival)
    assert acceptor.recovery.problems == []
    listed = promise_of(acceptor)
    assert listed[0] == (1, 2, 0)
    assert listed[1:] in ([], [(2, 5, 0)])


def test_511_a_bad_record_below_a_durable_point_is_corruption_and_never_a_nack() -> None:
    """5.11 and 5.2: its slots are unknown; the Promise says so and does not say "nothing accepted"."""
    acceptor = LoneReplica()
    places = [write_one(acceptor, slot, f"v{slot}") for slot in (1, 2, 3)]
    acceptor.disk.corrupt(places[1][0], places[1][1] + HEAD_BYTES + 41)
    acceptor.crash()
    assert acceptor.recovery.promised_known
    assert acceptor.replica.voting
    assert (2, 3, 2) in promise_of(acceptor)


def test_511_a_record_whose_range_is_unreadable_hides_everything_above_the_commit_index_before_it() -> None:
    """5.11: it makes unknown every slot above the last good commit_index, unless accepted again later."""
    acceptor = LoneReplica()
    places = [write_one(acceptor, slot, f"v{slot}") for slot in (1, 2, 3)]
    acceptor.disk.corrupt(places[1][0], places[1][1] + 20)
    acceptor.crash()
    unknown = [(begin, end) for begin, end, flags in promise_of(acceptor) if flags]
    assert all(not begin <= 3 < end for begin, end in unknown)
    for slot in (1, 2, 4, 1000):
        assert any(begin <= slot < end for begin, end in unknown), (slot, unknown)


def test_511_what_is_accepted_again_is_known_again() -> None:
    """5.11: unless accepted again later."""
    acceptor = LoneReplica()
    places = [write_one(acceptor, slot, f"v{slot}") for slot in (1, 2, 3)]
    acceptor.disk.corrupt(places[1][0], places[1][1] + HEAD_BYTES + 41)
    acceptor.crash()
    acceptor.receive(2, "accept", B2, [batch(2, block("v2"), B2)])
    acceptor.sync()
    assert promise_of(acceptor) == [(1, 2, 0), (2, 3, 0), (3, 4, 0)]


def test_511_a_corrupt_write_with_nothing_good_behind_it_silences_the_acceptor() -> None:
    """5.11: if no good write follows, the promise is unknown too, and the node does not vote until repaired."""
    acceptor = LoneReplica()
    write_one(acceptor, 1, "v1")
    name, offset = write_one(acceptor, 2, "v2", B3)
    acceptor.disk.truncate(name, offset)
    acceptor.crash()
    assert not acceptor.recovery.promised_known
    acceptor.receive(2, "prepare", pack_ballot(9, 2), slot_begin=1)
    acceptor.receive(2, "accept", pack_ballot(9, 2), [batch(1, block("new"), pack_ballot(9, 2))])
    acceptor.replica.campaign()
    acceptor.sync()
    assert {message["message"] for message in acceptor.sent()} <= {"fetch"}
    assert acceptor.replica.role == "follower"


def test_511_recovery_is_idempotent() -> None:
    """5.11: bytes behind a cut are never read again; starting twice gives the same as starting once."""
    acceptor = LoneReplica()
    for slot in (1, 2, 3):
        write_one(acceptor, slot, f"v{slot}")
    acceptor.receive(3, "prepare", B3, slot_begin=1)
    assert acceptor.begin_write()
    facts = []
    for _ in range(3):
        acceptor.crash(0.0)
        window = [item[:4] for item in acceptor.replica.window.batches()]
        facts.append((acceptor.replica.promised_ballot, acceptor.replica.commit_index, window))
    assert facts[0] == facts[1] == facts[2]


def test_511_write_numbers_are_never_reused() -> None:
    """5.11: a crash leaves no number that a later write could carry, too."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", B2, [batch(1, block("lost"), B2)])
    assert acceptor.begin_write()
    assert acceptor.writing is not None
    lost = acceptor.writing.ticket
    acceptor.crash(0.0)
    acceptor.receive(2, "accept", B2, [batch(1, block("lost"), B2)])
    assert acceptor.begin_write()
    assert acceptor.writing is not None
    assert acceptor.writing.ticket > lost


def test_511_a_directory_belongs_to_one_node_and_one_incarnation() -> None:
    """5.11: a directory of another node is refused by name."""
    acceptor = LoneReplica(node_id=1)
    write_one(acceptor, 1, "v1")
    acceptor.node_id = 2
    with pytest.raises(ConfigError):
        acceptor.start()


def test_511_a_directory_that_was_emptied_remembers_nothing() -> None:
    """5.5 and 5.8: this is why a node whose disk was lost must not vote again under its old id."""
    acceptor = LoneReplica()
    acceptor.receive(3, "prepare", B3, slot_begin=1)
    acceptor.sync()
    for name in acceptor.disk.list():
        acceptor.disk.remove(name)
    acceptor.disk.sync_directory()
    acceptor.start()
    assert acceptor.replica.promised_ballot == 0


# Founding


def founding(node_id: int, incarnation: int, record: FoundingRecord | None = None) -> Founding:
    return Founding(
        node_id=node_id,
        incarnation=incarnation,
        members=(1, 2, 3),
        phase1_quorum=2,
        phase2_quorum=2,
        durability="fsync",
        record=record,
    )


RECORD = FoundingRecord(bytes(range(16)), {1: 11, 2: 22, 3: 33}, 2, 2, "fsync")


def test_55_the_record_lists_the_incarnations_of_all_initial_members() -> None:
    """5.5: {node id: incarnation} learned from all initial members, and nothing is made before all were heard."""
    first = founding(1, 11)
    assert first.peer_hello(2, 22, b"", "fsync") is FoundingAnswer.WAIT
    assert first.propose(RECORD.cluster_id) is None
    assert first.peer_hello(3, 33, b"", "fsync") is FoundingAnswer.PROPOSE
    assert first.propose(RECORD.cluster_id) == RECORD


def test_55_an_empty_directory_founds_nothing_where_others_are_founded() -> None:
    """5.5: it founds only if every other member is unfounded, or already lists this very incarnation."""
    wiped = founding(1, 99)
    wiped.peer_hello(2, 22, RECORD.digest, "fsync")
    wiped.peer_hello(3, 33, b"", "fsync")
    assert wiped.propose(bytes(16)) is None
    with pytest.raises(ConfigError, match="disk of node 1 was lost"):
        wiped.receive_record(2, RECORD.encode())


def test_55_a_directory_whose_incarnation_the_record_lists_takes_it_over() -> None:
    """5.5: or already lists this very incarnation."""
    late = founding(3, 33)
    assert late.receive_record(2, RECORD.encode()) == RECORD


def test_55_a_founded_member_refuses_a_peer_whose_disk_was_lost() -> None:
    """5.5: a node whose disk was lost never votes again under its old id."""
    with pytest.raises(ConfigError, match="must not vote again"):
        founding(1, 11, RECORD).peer_hello(2, 99, b"", "fsync")


def test_58_mixed_durability_modes_are_refused() -> None:
    """5.8: mixed modes in a cluster are refused."""
    node = founding(1, 11)
    with pytest.raises(ConfigError):
        node.peer_hello(2, 22, b"", "memory")
