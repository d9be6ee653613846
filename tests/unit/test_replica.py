"""Replica: bad frames, settings that differ between members, and what must not grow or wait for ever."""

from __future__ import annotations

import gc
import struct
from pathlib import Path
from typing import Any

import pytest

from fastpaxos.testing import LoneReplica, batch
from fastpaxos.testing.wired import WiredReplicas
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block
from fastpaxos_core.errors import ConfigError, FrameError, InvariantError
from fastpaxos_core.founding import Founding, FoundingRecord
from fastpaxos_core.wire import FrameSplitter, FrameWriter, ReplyStatus
from local_cluster import LocalCluster

BALLOT = pack_ballot(1, 2)
HIGHER = pack_ballot(9, 3)


def block(text: str, count: int = 1) -> bytes:
    return build_block([f"{text}{number}".encode() for number in range(count)], 9, 1)


# --- bad frames ---


def accept_with_a_damaged_block(replica: LoneReplica, slot: int) -> None:
    """Two batches in a higher ballot arrive. The second one's block was damaged on its way; only its CRC shows it."""
    good, bad = batch(slot, block("good"), HIGHER), batch(slot + 1, block("bad"), HIGHER)
    bad["block"] = bad["block"][:-1] + bytes([bad["block"][-1] ^ 1])
    with pytest.raises(FrameError):
        replica.receive(3, "accept", HIGHER, [good, bad])


def test_a_leader_is_not_deposed_by_half_of_a_bad_frame() -> None:
    """The promise was raised, then the frame turned out bad: a leader of a ballot below its own promise remained.

    The next command of a client stopped the node with an InvariantError.
    """
    leader = LoneReplica()
    ballot = leader.lead()
    last = leader.replica.last_slot
    accept_with_a_damaged_block(leader, last + 1)
    assert (leader.replica.role, leader.replica.ballot, leader.replica.promised_ballot) == ("leader", ballot, ballot)
    assert leader.replica.last_slot == last
    assert leader.replica.open_session(b"n" * 16, "waiter") == ReplyStatus.OK
    assert [(entry["slot_begin"], entry["ballot"]) for entry in leader.accept_all(2)] == [(last + 1, ballot)]
    assert leader.replica.commit_index == last + 1


def test_large_blocks_of_one_frame_are_journalled_each_at_its_own_place() -> None:
    """Large blocks go to the journal as views of the frame that brought them, from where each begins."""
    acceptor = LoneReplica()
    blocks = [build_block([bytes([number]) * 5000], 9, number) for number in (1, 2, 3)]
    acceptor.receive(2, "accept", BALLOT, [batch(slot, data, BALLOT) for slot, data in enumerate(blocks, 1)])
    acceptor.sync()
    acceptor.crash()
    assert [stored.block for stored in acceptor.recovery.batches] == blocks


@pytest.mark.parametrize("name", ["accept", "promise", "accepted", "learn"])
def test_a_message_must_have_the_entries_that_it_counts(name: str) -> None:
    """The count stands in the frame's head: whoever believed it would read memory that is not the frame's."""
    replica = LoneReplica()
    good = replica.frame(2, name, BALLOT)
    layouts = {"accept": "<QQII", "promise": "<QQIIII", "accepted": "<QQII", "learn": "<QQII"}
    fields = list(struct.unpack(layouts[name], good.head))
    # The count is the last field, or stands before a reserved one.
    fields[-1 if name in ("promise", "accepted") else -2] = 3
    data = FrameWriter(2, 1002, 1, replica.cluster_id).encode(
        good.type, BALLOT, struct.pack(layouts[name], *fields), good.body
    )
    [frame] = FrameSplitter(1 << 20, 1 << 20).feed(data)
    with pytest.raises(FrameError, match="names 3 entries"):
        replica.replica.receive(2, frame)


def test_a_batch_must_have_the_bytes_that_it_counts() -> None:
    """The length of a block stands in its descriptor: whoever believed it would read behind the frame."""
    replica = LoneReplica()
    entry = {**batch(1, block("a"), BALLOT), "block_bytes": 4096}
    with pytest.raises(FrameError, match="bytes are left in its frame"):
        replica.receive(2, "accept", BALLOT, [entry])


def test_an_acceptor_takes_nothing_from_a_bad_frame() -> None:
    """A good batch before the damaged one was accepted, and the promise raised, though the frame was refused."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", BALLOT, [batch(1, block("first"), BALLOT)])
    acceptor.sync()
    acceptor.sent()
    accept_with_a_damaged_block(acceptor, 1)
    assert acceptor.replica.promised_ballot == BALLOT
    assert not acceptor.begin_write()
    assert acceptor.sent() == []
    # The older ballot still has its say.
    acceptor.receive(2, "accept", BALLOT, [batch(2, block("second"), BALLOT)])
    acceptor.receive(2, "commit", BALLOT, commit_index=2)
    assert acceptor.replica.commit_index == 2


def test_overlapping_batches_of_one_ballot_are_never_accepted() -> None:
    """Of [4, 6) and [5, 10) in one ballot the first to come was dropped without a word, after it had been voted for."""
    acceptor = LoneReplica()
    acceptor.receive(2, "accept", BALLOT, [batch(5, block("wide", 5), BALLOT)])
    acceptor.sync()
    with pytest.raises(InvariantError):
        acceptor.receive(2, "accept", BALLOT, [batch(4, block("early", 2), BALLOT)])


# --- settings that differ between members ---


def test_a_batch_wider_than_the_ring_is_refused_by_name() -> None:
    """A member with a smaller ring than the leader's stood still for ever, and said nothing."""
    replica = LoneReplica(window_slots=32, ring_slots=64, commands_per_block_max=32)
    with pytest.raises(ConfigError, match=r"\[1, 101\) is wider than this replica's ring of 64"):
        replica.receive(2, "accept", BALLOT, [batch(1, block("c", 100), BALLOT)])


def test_a_wide_batch_that_is_learned_is_refused_by_name_as_well() -> None:
    """As above, for a member that comes to know of the batch by catching up."""
    replica = LoneReplica(window_slots=32, ring_slots=64, commands_per_block_max=32)
    replica.receive(2, "heartbeat", BALLOT, commit_index=100)
    [fetch] = replica.sent("fetch")
    wide = batch(1, block("c", 100), BALLOT, flags=1)
    with pytest.raises(ConfigError, match="wider than this replica's ring"):
        replica.receive(2, "learn", BALLOT, [wide], request_id=fetch["request_id"], commit_index=100)


def test_a_ring_beyond_what_a_lost_record_is_assumed_to_hold_is_refused() -> None:
    """What a rotten record makes unknown is bounded by the largest ring that is allowed."""
    with pytest.raises(ConfigError, match="1048576"):
        LoneReplica(ring_slots=1 << 21)


def test_the_founding_record_carries_the_session_limits() -> None:
    """Each member took the limits of its own settings: with two values, replicas applied different commands."""
    record = FoundingRecord(bytes(16), {1: 11, 2: 12}, 2, 1, "fsync", 7, 4321)
    again = FoundingRecord.decode(record.encode())
    assert again == record
    assert (again.sessions_max, again.result_bytes_per_session_max) == (7, 4321)
    others = [
        FoundingRecord(bytes(16), {1: 11, 2: 12}, 2, 1, "fsync", 8, 4321),
        FoundingRecord(bytes(16), {1: 11, 2: 12}, 2, 1, "fsync", 7, 4322),
    ]
    assert len({each.digest for each in [record, *others]}) == 3
    with pytest.raises(ValueError, match="sessions_max 0"):
        FoundingRecord(bytes(16), {1: 11}, 1, 1, "fsync", 0, 4321)


def test_session_limits_of_a_member_do_not_matter_to_a_record_that_another_made() -> None:
    """The record wins over the settings of whoever takes it over; the maker's settings go into it."""

    def member(node_id: int, sessions_max: int) -> Founding:
        return Founding(
            node_id=node_id,
            incarnation=10 + node_id,
            members=[1, 2],
            phase1_quorum=2,
            phase2_quorum=1,
            durability="fsync",
            sessions_max=sessions_max,
        )

    maker, taker = member(1, 5), member(2, 99)
    maker.peer_hello(2, 12, b"", "fsync")
    record = maker.propose(bytes(16))
    assert record is not None
    assert record.sessions_max == 5
    taken = taker.receive_record(1, record.encode())
    assert taken is not None
    assert taken.sessions_max == 5


async def test_a_node_keeps_the_session_limits_that_it_was_founded_with(tmp_path: Path) -> None:
    """One restart with other settings let the replay of the log evict other sessions than the rest had evicted."""
    async with LocalCluster(tmp_path, 1, sessions_max=2) as cluster:
        await cluster.wait_for_leader()
        await cluster.stop(1)
        node = await cluster.start(1, sessions_max=50, result_bytes_per_session_max=4096)
        await cluster.wait_for_leader()
        [sessions] = [each for each in map(sessions_of, gc.get_referents(node.__dict__)) if each is not None]
        assert sessions.sessions_max == 2
        assert sessions.result_bytes_per_session_max == 4 << 20


def sessions_of(candidate: object) -> Any:
    """The session table of a node's replica, if this is its replica."""
    return getattr(candidate, "sessions", None) if type(candidate).__name__ == "Replica" else None


# --- what must not wait for ever ---


def test_a_peer_that_paused_is_sent_accepts_again() -> None:
    """Bytes on their way to a peer were given back only by its own vote for a batch still in memory.

    After one pause of its disk nothing but heartbeats was sent to it any more: it learned by fetching, and never voted.
    """
    leader = LoneReplica(log_memory_bytes=1 << 20)
    leader.lead()
    leader.replica.open_session(b"n" * 16, "session")
    leader.accept_all(2)
    leader.apply()
    [(_, _, session_id, *_)] = leader.replica.take_replies()
    sent = []
    for sequence in range(1, 41):
        data = build_block([b"x" * 1_000_000], session_id, sequence)
        assert leader.replica.submit(data, sequence) == ReplyStatus.OK
        leader.sync()
        messages = leader.sent("accept")
        sent.append({message["to"] for message in messages})
        for message in messages:
            if message["to"] == 2:
                leader.receive(2, "accepted", leader.replica.ballot, message["entries"])
        leader.sync()
        leader.apply()
        # Node 3 keeps up by fetching, and says so; it never votes.
        leader.receive(
            3, "heartbeat_reply", leader.replica.ballot, commit_index=leader.replica.commit_index - 1, read_round=0
        )
        [status] = [peer for peer in leader.replica.peer_status() if peer["id"] == 3]
        assert isinstance(status["bytes_in_flight"], int)
        assert status["bytes_in_flight"] <= 18_000_000
    skipped = sum(3 not in receivers for receivers in sent)
    # Once per 16 MiB the allowance is used up, and given back.
    assert 1 <= skipped <= 4
    assert any(3 in receivers for receivers in sent[-10:])


def test_a_leader_slows_down_for_members_that_lag_beyond_half_of_their_ring() -> None:
    """With only a bare quorum inside its ring, a leader at full speed would leave the third member behind for ever."""
    leader = LoneReplica(window_slots=64, ring_slots=128, commands_per_block_max=16)
    leader.lead()
    leader.replica.open_session(b"n" * 16, "session")
    leader.accept_all(2)
    leader.apply()
    [(_, _, session_id, *_)] = leader.replica.take_replies()

    def submit_while_taken(sequence: int) -> int:
        """Submit single commands until one is refused; return how many were taken."""
        taken = 0
        while leader.replica.submit(build_block([b"x"], session_id, sequence + taken), 0) == ReplyStatus.OK:
            taken += 1
        return taken

    leader.tick()
    assert submit_while_taken(1) == 64
    leader.accept_all(2)
    leader.apply()
    leader.receive(2, "heartbeat_reply", leader.replica.ballot, commit_index=leader.replica.commit_index)
    # Node 3 has not committed anything: it is more than half a ring behind.
    leader.tick()
    assert submit_while_taken(65) == 64 // 16
    leader.receive(3, "heartbeat_reply", leader.replica.ballot, commit_index=leader.replica.commit_index)
    leader.tick()
    assert submit_while_taken(65 + 64 // 16) == 64 - 64 // 16


def entries_of_admitted(replica: object) -> int:
    return max(len(held) for held in gc.get_referents(replica) if isinstance(held, dict))


def test_sessions_that_ended_are_not_remembered_by_the_leader() -> None:
    """A leader kept a number for every session that had ever written, until its leadership ended."""
    cluster = WiredReplicas([1], sessions_max=4)
    cluster.elect(1)
    leader = cluster.replicas[1]
    most = 0
    for nonce in range(1, 41):
        session_id = cluster.open_session(1, nonce)
        assert cluster.submit(1, session_id, 1, [b"x"]) == ReplyStatus.OK
        cluster.run()
        if nonce % 2:
            assert leader.close_session(session_id, object()) == ReplyStatus.OK
            cluster.run()
        most = max(most, entries_of_admitted(leader))
    assert 1 <= most <= 2 * 4
    # What is open is still known: a gap is refused, the next block is not.
    assert cluster.submit(1, session_id, 3, [b"y"]) == ReplyStatus.OUT_OF_ORDER
    assert cluster.submit(1, session_id, 2, [b"y"]) == ReplyStatus.OK
    cluster.run()
    assert cluster.applied[1][-1] == b"y"


@pytest.mark.parametrize("index", [1 << 20, (1 << 64) - 1])
def test_a_read_that_waits_for_an_impossible_slot_is_refused(index: int) -> None:
    """Reads with a minimum index from nowhere stayed until the leadership ended; enough of them blocked all reads."""
    cluster = WiredReplicas([1, 2, 3])
    cluster.elect(1)
    assert cluster.replicas[1].read("absurd", index) == ReplyStatus.MALFORMED
    assert cluster.replicas[1].read("possible", cluster.replicas[1].commit_index) == ReplyStatus.OK
    cluster.run()
    assert [(waiter, status) for waiter, status, _ in cluster.ready_reads] == [("possible", ReplyStatus.OK)]


def test_who_waits_for_what_was_never_chosen_is_answered_when_the_node_leads_again() -> None:
    """Waiters of blocks that lost with a leadership stayed until their client sent again.

    Those of clients that had died stayed for ever, and with enough of them the leader was busy for ever.
    """
    cluster = WiredReplicas([1, 2, 3])
    cluster.elect(1)
    session_id = cluster.open_session(1)
    links = {(1, 2), (2, 1), (1, 3), (3, 1)}
    cluster.cut |= links
    assert cluster.submit(1, session_id, 1, [b"lost"], "block") == ReplyStatus.OK
    assert cluster.replicas[1].open_session(b"m" * 16, "open") == ReplyStatus.OK
    assert cluster.replicas[1].close_session(session_id, "close") == ReplyStatus.OK
    cluster.run()
    cluster.elect(2)
    other = cluster.open_session(2, 7)
    for sequence in range(1, 6):
        cluster.submit(2, other, sequence, [b"kept"])
        cluster.run()
    cluster.cut -= links
    for peer in (2, 3):
        cluster.replicas[1].peer_disconnected(peer)
        cluster.replicas[peer].peer_disconnected(1)
        cluster.replicas[1].peer_connected(peer, 1)
        cluster.replicas[peer].peer_connected(1, 1)
    cluster.run()
    assert cluster.replicas[1].role == "follower"
    cluster.replies.clear()
    cluster.run()
    assert cluster.replies == []
    cluster.elect(1)
    assert {(reply[0], reply[1]) for reply in cluster.replies} == {
        ("block", ReplyStatus.OUT_OF_ORDER),
        ("open", ReplyStatus.NOT_READY),
        ("close", ReplyStatus.NOT_READY),
    }
    assert b"lost" not in cluster.applied[1]
    # And the session goes on where it was.
    assert cluster.submit(1, session_id, 1, [b"again"], "again") == ReplyStatus.OK
    cluster.run()
    assert cluster.applied[3][-1] == b"again"
