"""Rules 5.9, 5.10, 5.12 and 5.13: exactly once, what an answer may say, apply, and replicated time.

Each docstring paraphrases one sentence of the rules.
"""

from __future__ import annotations

from typing import Any

import msgpack

from fastpaxos.testing import LoneReplica, batch
from fastpaxos_core.ballot import pack_ballot
from fastpaxos_core.block import build_block, build_control, build_noop
from fastpaxos_core.results import decode_results
from fastpaxos_core.wire import ReplyStatus

NONCE = bytes(range(16))
B2 = pack_ballot(5, 2)
OPEN = build_control(msgpack.packb({"op": "open_session", "nonce": NONCE}))


def leader_with_session(**settings: Any) -> tuple[LoneReplica, int]:
    """A ready leader and the session that was opened through its log."""
    leader = LoneReplica(**settings)
    leader.lead()
    assert leader.replica.open_session(NONCE, "opener") == ReplyStatus.OK
    leader.accept_all(2)
    leader.apply()
    [(waiter, status, session_id, *_)] = leader.replica.take_replies()
    assert (waiter, status) == ("opener", ReplyStatus.OK)
    return leader, session_id


def block(session_id: int, first: int, count: int = 1, acknowledged_below: int = 0) -> bytes:
    commands = [f"c{number}".encode() for number in range(first, first + count)]
    return build_block(commands, session_id, first, acknowledged_below)


def replies(node: LoneReplica) -> list[tuple[Any, int, list[int]]]:
    """(waiter, status, counts told by the results) of every answer since the last call."""
    return [
        (
            waiter,
            status,
            [int.from_bytes(result, "little") for result in decode_results(results, count)] if results else [],
        )
        for waiter, status, _, _, count, _, results in node.replica.take_replies()
    ]


def follow(node: LoneReplica, first_slot: int, *blocks: bytes, timestamp_ns: int = 1) -> list[tuple[int, list[bytes]]]:
    """Let the follower accept, commit and apply these blocks; return what its state machine saw."""
    entries = []
    for item in blocks:
        entries.append(batch(first_slot, item, B2, timestamp_ns))
        first_slot = entries[-1]["slot_end"]
    node.receive(2, "accept", B2, entries)
    node.receive(2, "commit", B2, commit_index=first_slot - 1)
    return node.apply()


def test_59_opening_again_returns_the_same_session() -> None:
    """5.9: a session is opened through the log with the client's nonce; opening again returns the same one."""
    leader, session_id = leader_with_session()
    assert leader.replica.open_session(NONCE, "again") == ReplyStatus.OK
    leader.accept_all(2)
    leader.apply()
    [(waiter, status, again, *_)] = leader.replica.take_replies()
    assert (waiter, status, again) == ("again", ReplyStatus.OK, session_id)


def test_59_blocks_are_admitted_in_order() -> None:
    """5.9: the leader admits a session's blocks in order."""
    leader, session = leader_with_session()
    assert leader.replica.submit(block(session, 2), "early") == ReplyStatus.OUT_OF_ORDER
    assert leader.replica.submit(block(session, 1), "first") == ReplyStatus.OK
    assert leader.replica.submit(block(session, 2), "second") == ReplyStatus.OK


def test_59_a_refusal_refuses_what_follows() -> None:
    """5.9: any refusal refuses all later blocks of the session."""
    leader, session = leader_with_session(window_slots=4, ring_slots=8, commands_per_block_max=4)
    assert leader.replica.submit(block(session, 1, 4), "first") == ReplyStatus.OK
    assert leader.replica.submit(block(session, 5, 1), "second") == ReplyStatus.BUSY
    leader.accept_all(2)
    assert leader.replica.submit(block(session, 6, 1), "third") == ReplyStatus.OUT_OF_ORDER
    assert leader.replica.submit(block(session, 5, 1), "second") == ReplyStatus.OK


def test_59_a_block_that_runs_already_is_not_proposed_again() -> None:
    """5.9: a resent block is attached to the attempt that runs."""
    leader, session = leader_with_session()
    for waiter in ("one", "two"):
        assert leader.replica.submit(block(session, 1), waiter) == ReplyStatus.OK
    assert len(leader.accept_all(2)) == 1
    leader.apply()
    assert ("two", ReplyStatus.OK, [1]) in replies(leader)


def test_59_a_block_that_ran_already_gets_its_first_results() -> None:
    """5.9: results that are not acknowledged are kept, and a repetition returns them."""
    leader, session = leader_with_session()
    for first in (1, 3):
        leader.replica.submit(block(session, first, 2), first)
    leader.accept_all(2)
    leader.apply()
    assert replies(leader) == [(1, ReplyStatus.OK, [1, 2]), (3, ReplyStatus.OK, [3, 4])]
    assert leader.replica.submit(block(session, 1, 2), "again") == ReplyStatus.OK
    assert leader.accept_all(2) == []
    assert replies(leader) == [("again", ReplyStatus.OK, [1, 2])]


def test_59_acknowledged_results_are_let_go() -> None:
    """5.9: what the client says that it has is not kept."""
    leader, session = leader_with_session()
    leader.replica.submit(block(session, 1), "first")
    leader.accept_all(2)
    leader.replica.submit(block(session, 2, acknowledged_below=2), "second")
    leader.accept_all(2)
    leader.apply()
    replies(leader)
    leader.replica.submit(block(session, 1), "again")
    leader.accept_all(2)
    leader.apply()
    assert replies(leader) == [("again", ReplyStatus.RESULT_GONE, [])]


def test_59_apply_alone_decides_duplicates() -> None:
    """5.9: a block that stands in the log twice takes effect once, on every replica."""
    follower = LoneReplica()
    seen = follow(follower, 1, OPEN, block(1, 1, 2), block(1, 1, 2), block(1, 3))
    assert seen == [(2, [b"c1", b"c2"]), (6, [b"c3"])]
    assert follower.replica.applied_index == 6


def test_59_gaps_and_partial_overlaps_are_refused_deterministically() -> None:
    """5.9: partial overlaps and gaps never take effect."""
    follower = LoneReplica()
    seen = follow(follower, 1, OPEN, block(1, 2), block(1, 1, 2), block(1, 2, 2), block(1, 4), block(1, 3))
    assert [commands for _, commands in seen] == [[b"c1", b"c2"], [b"c3"]]


def test_59_an_unknown_or_closed_session_applies_nothing() -> None:
    """5.9: sessions end by close; 5.10: then the log proves that a later block never applies."""
    follower = LoneReplica()
    close = build_control(msgpack.packb({"op": "close_session", "session_id": 1}))
    assert follow(follower, 1, block(1, 1), OPEN, block(2, 1), close, block(2, 2))[0] == (3, [b"c1"])
    assert follower.machine.count == 2
    leader, session = leader_with_session()
    assert leader.replica.close_session(session, "closer") == ReplyStatus.OK
    leader.accept_all(2)
    leader.apply()
    assert leader.replica.submit(block(session, 1), "late") == ReplyStatus.OK
    leader.accept_all(2)
    leader.apply()
    assert [(waiter, status) for waiter, status, _ in replies(leader)] == [
        ("closer", ReplyStatus.OK),
        ("late", ReplyStatus.SESSION_UNKNOWN),
    ]


def test_59_the_least_recently_used_session_makes_room() -> None:
    """5.9: sessions end by least-recent use over a replicated limit."""
    opens = [build_control(msgpack.packb({"op": "open_session", "nonce": bytes([n]) * 16})) for n in range(3)]
    follower = LoneReplica(sessions_max=2)
    seen = follow(follower, 1, opens[0], opens[1], block(1, 1), opens[2], block(2, 1), block(1, 2), block(4, 1))
    assert [slot for slot, _ in seen] == [3, 6, 7]


def test_59_a_restarted_replica_comes_to_the_same_sessions() -> None:
    """5.9: the table follows from the log."""
    leader, session = leader_with_session()
    leader.replica.submit(block(session, 1, 3), "waiter")
    leader.accept_all(2)
    leader.apply()
    digest, state = leader.replica.sessions.digest(), leader.machine.digest
    leader.replica.open_session(bytes(16), "other")
    leader.sync()
    leader.crash()
    leader.apply()
    commit = leader.replica.commit_index
    leader.receive(2, "heartbeat", B2 + (9 << 16), commit_index=4)
    for fetch in leader.sent("fetch"):
        assert fetch["slot_begin"] == commit + 1
    if leader.replica.applied_index >= 5:
        assert (leader.replica.sessions.digest(), leader.machine.digest) == (digest, state)


def test_510_a_deposed_leader_answers_its_waiters_by_what_the_log_says() -> None:
    """5.10: a deposed leader never says "not applied" of what it proposed; the answer comes when it applies."""
    leader, session = leader_with_session()
    assert leader.replica.submit(block(session, 1), "waiter") == ReplyStatus.OK
    [entry] = leader.accept_all(3) or [entry for message in leader.sent("accept", to=2) for entry in message["entries"]]
    higher = pack_ballot(50, 2)
    leader.receive(2, "accept", higher, [{**entry, "ballot": higher}])
    assert leader.replica.role == "follower"
    leader.receive(2, "commit", higher, commit_index=entry["slot_end"] - 1)
    leader.apply()
    assert replies(leader) == [("waiter", ReplyStatus.OK, [1])]


def test_510_waiters_are_keyed_by_session_and_sequence_never_by_slot() -> None:
    """5.10: when another command is chosen in the slot, its waiter is not told OK."""
    leader, session = leader_with_session()
    assert leader.replica.submit(block(session, 1), "waiter") == ReplyStatus.OK
    [message, *_] = leader.sent("accept")
    slot = message["entries"][0]["slot_begin"]
    higher = pack_ballot(50, 2)
    leader.receive(2, "accept", higher, [batch(slot, build_noop(1), higher)])
    leader.receive(2, "commit", higher, commit_index=slot)
    leader.apply()
    assert leader.replica.applied_index == slot
    assert replies(leader) == []
    again = batch(slot + 1, block(session, 1), higher)
    leader.receive(2, "accept", higher, [again])
    leader.receive(2, "commit", higher, commit_index=slot + 1)
    leader.apply()
    assert replies(leader) == [("waiter", ReplyStatus.OK, [1])]


def test_510_a_follower_refuses_at_once() -> None:
    """5.10: what never reached a proposer is refused as such."""
    assert LoneReplica().replica.submit(block(1, 1), "waiter") == ReplyStatus.NOT_LEADER


def test_512_apply_follows_slot_order_without_gap() -> None:
    """5.12 and invariant 9: batches are applied in slot order, each once."""
    follower = LoneReplica()
    follower.receive(2, "accept", B2, [batch(2, block(1, 1, 2), B2), batch(4, block(1, 3), B2)])
    follower.receive(2, "commit", B2, commit_index=4)
    assert follower.apply() == []
    follower.receive(2, "accept", B2, [batch(1, OPEN, B2)])
    follower.receive(2, "commit", B2, commit_index=4)
    assert follower.apply() == [(2, [b"c1", b"c2"]), (4, [b"c3"])]
    assert follower.apply() == []


def test_512_the_same_batch_is_handed_out_until_it_is_completed() -> None:
    """5.12: the state machine runs in slices; the next batch waits for the one before."""
    follower = LoneReplica()
    follower.receive(2, "accept", B2, [batch(1, OPEN, B2), batch(2, block(1, 1), B2), batch(3, block(1, 2), B2)])
    follower.receive(2, "commit", B2, commit_index=3)
    first = follower.replica.next_batch()
    assert first is follower.replica.next_batch()
    follower.replica.complete_batch(follower.machine.fold(first.view))
    second = follower.replica.next_batch()
    assert second is not None
    assert second.slot_begin == 3


def test_512_a_restart_applies_the_log_again_from_its_journal() -> None:
    """5.12 with 5.11: what memory no longer holds is read back."""
    leader, session = leader_with_session(log_memory_bytes=0)
    for first in range(1, 40, 3):
        leader.replica.submit(block(session, first, 3), first)
        leader.accept_all(2)
    leader.apply()
    digest, count = leader.machine.digest, leader.machine.count
    leader.replica.open_session(bytes(16), "push the commit index to disk")
    leader.accept_all(2)
    leader.crash()
    leader.apply()
    assert leader.machine.count == count
    assert leader.machine.digest == digest


def test_513_replicated_time_never_falls() -> None:
    """5.13: now_ns is the maximum of what was before and the batch's timestamp."""
    follower = LoneReplica()
    times = []
    slot = 1
    for number, (item, stamp) in enumerate([(OPEN, 50), (block(1, 1), 40), (block(1, 2), 70), (block(1, 3), 60)]):
        entry = batch(slot, item, B2, stamp)
        slot = entry["slot_end"]
        follower.receive(2, "accept", B2, [entry])
        follower.receive(2, "commit", B2, commit_index=slot - 1)
        handed = follower.replica.next_batch()
        if number == 0:
            assert handed is None
            continue
        assert handed is not None
        times.append(handed.now_ns)
        follower.replica.complete_batch(follower.machine.fold(handed.view))
    assert times == [50, 70, 70]


def test_513_a_leader_with_a_slow_clock_gives_no_older_timestamps() -> None:
    """5.13: the leader's timestamps do not fall behind those in the log."""
    leader, session = leader_with_session()
    leader.wall_ns = 17
    leader.tick(1)
    leader.replica.submit(block(session, 1), "waiter")
    [entry] = leader.accept_all(2)
    assert entry["timestamp_ns"] >= 5_000_000_000


def test_59_a_duplicate_whose_results_are_gone_is_not_applied_again() -> None:
    """5.9: apply alone decides duplicates, and needs no results for it."""
    node = LoneReplica()
    follow(node, 1, OPEN, block(1, 1), block(1, 2, acknowledged_below=2))
    assert node.replica.sessions.result(1, 1) is None
    assert follow(node, 4, block(1, 1)) == []
    assert node.replica.sessions.last_sequence(1) == 2


def test_59_a_duplicate_counts_as_use_of_its_session() -> None:
    """5.9: sessions end by least-recent use, on every replica alike, and a client that resends is there."""
    node = LoneReplica(sessions_max=2)
    opens = [build_control(msgpack.packb({"op": "open_session", "nonce": bytes([number]) * 16})) for number in range(3)]
    follow(node, 1, opens[0], opens[1], block(1, 1), block(2, 1), block(1, 1), opens[2])
    assert node.replica.sessions.session_ids() == [1, 6]
